// Trainer: trains a model by a schedule, on one device or as one rank of many.
//
//   model, schedule  ->  costs of its layers (given, measured, or estimated from shapes)
//                    ->  Plan (schedules.hpp)         order and place of forward, dO, dW, updates, transfers, sums
//                    ->  this rank's part of it       lanes, waits, and a slot for each micro-batch that is on its way
//                    ->  gpu::Executor                each operation issues the kernels of its layers
//
// Some steps (a window) are issued at once, so that what a schedule delays into the next forward pass, or lets it wait
// for layer by layer, overlaps it; between windows everything is done.
//
// The same weights, whatever the schedule: each value is computed by the same kernels from the same inputs, and sums
// over micro-batches are made in their order. In f32, with the same number of threads a lane, schedules of one family
// with the same ranks and micro-batches agree to the bit; so do all pipelines with one device that accumulates as many
// micro-batches, but for the factor of clipping, whose sum of squares is made by stage. Data-parallel ranks add up
// gradients in the order of the ranks; another number of ranks rounds otherwise.
//
// Batch norms take the statistics of a micro-batch of a rank; running statistics are those of data-parallel rank 0.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dunnock/base/result.hpp"
#include "dunnock/gpu/communicator.hpp"
#include "dunnock/gpu/timeline.hpp"
#include "dunnock/training/models.hpp"
#include "dunnock/training/optimizer.hpp"
#include "dunnock/training/parameters.hpp"
#include "dunnock/training/schedules.hpp"

namespace dunnock::training {

enum class DataType : std::uint8_t {
  kF32,
  kBf16,  ///< Weights, values and their gradients in bf16; masters, moments and the gradients of weights in f32.
};

struct TrainerOptions {
  ModelOptions model{};
  DataType type = DataType::kF32;
  std::size_t rows = 1;        ///< Images or rows of tokens of a micro-batch, of this rank.
  unsigned micro_batches = 1;  ///< Of a step, of this rank: their gradients are averaged.
  std::uint64_t seed = 0;      ///< Of the weights.
  OptimizerOptions optimizer{};
  std::string schedule = "conventional";
  /// Steps that are issued at once. Where a one-device or data-parallel step has several micro-batches: one.
  unsigned window = 4;
  /// CPU: of each lane that computes; 0: all processors, shared by the two lanes of multi-stream. Ranks on one machine
  /// want fewer.
  unsigned threads = 0;
  bool as_graph = false;  ///< Operations of a window are recorded once and issued at once (gpu/graph.hpp).
  bool measures = false;  ///< last_run() tells when each operation ran.
  /// What the schedule reckons with; devices, micro_batches and iterations are set by the trainer.
  PlanOptions plan{};
  /// Costs of the layers, the same on all ranks. None: estimated from shapes, but measured for multi-stream.
  std::optional<Step> costs{};
  /// Without costs: all ranks measure them at the same time, each the whole model, and take the mean.
  bool measures_costs = false;
};

/// The ranks of a job: a grid of pipelines (each a stage a rank) and data-parallel groups (of equal stages). Null:
/// alone. They must outlive the trainer.
struct Ranks {
  gpu::Communicator* data = nullptr;      ///< Ranks that hold the same layers.
  gpu::Communicator* pipeline = nullptr;  ///< Ranks that hold the stages, in their order.
  /// The same ranks once more, for what stages add up: messages of one communicator have one order.
  gpu::Communicator* pipeline_sums = nullptr;
};

/// What a step is given: this rank's rows of all its micro-batches, one behind the other. Images, or tokens and
/// targets.
struct StepInput {
  std::span<const float> images{};          // (micro_batches * rows, height, width, channels)
  std::span<const std::int32_t> tokens{};   // (micro_batches * rows, context)
  std::span<const std::int32_t> targets{};  // (micro_batches * rows), or (micro_batches * rows, context)
  float learning_rate = 0;
};

struct StepResult {
  double loss = 0;                        ///< Mean of all ranks' rows, before the update.
  std::optional<double> gradient_norm{};  ///< Of the whole step, before clipping; only where it is clipped.
};

struct Evaluation {
  double loss = 0;          ///< Sum over the targets, of this rank.
  std::size_t correct = 0;  ///< Whose logit is the largest.
  std::size_t targets = 0;
};

/// A tensor of the training state, where it lies. On a CPU device the bytes may be read while nothing runs.
struct StateTensor {
  enum class What : std::uint8_t { kWeight, kFirstMoment, kSecondMoment, kStatistic };
  std::string name;  ///< The parameter's, or the running statistic's.
  What what = What::kWeight;
  std::vector<std::size_t> shape{};  ///< As seen.
  std::size_t positions = 1;         ///< See ParameterSpec.
  gpu::DeviceSpan<float> values;
};

/// Threads: one at a time. What a crash leaves: nothing; see checkpoints.hpp.
class Trainer {
 public:
  /// Errors: those of make_plan(), Network and Executor; InvalidArgument: options, a schedule that does not fit the
  /// ranks (data-parallel schedules need `data`, pipelines `pipeline`), another number of stages than ranks.
  [[nodiscard]] static Result<std::unique_ptr<Trainer>> create(gpu::Device device, const TrainerOptions& options,
                                                               const Ranks& ranks = {});
  Trainer() = default;
  Trainer(const Trainer&) = delete;
  Trainer& operator=(const Trainer&) = delete;
  virtual ~Trainer() = default;

  /// Trains the steps, at most `window` of them; returns when they are done. All ranks must call it alike. Errors:
  /// InvalidArgument: sizes, tokens or targets that the model does not know; Device, PeerLost: the weights are not to
  /// be used any more.
  [[nodiscard]] virtual Result<std::vector<StepResult>> run(std::span<const StepInput> steps) = 0;
  /// Forward in evaluation, of any number of rows; all ranks of a pipeline must call it alike, and all get the result.
  /// Data-parallel ranks each evaluate rows of their own; with batch norms all must call it as often, for behind a run
  /// they take the first one's running statistics. Errors: as run().
  [[nodiscard]] virtual Result<Evaluation> evaluate(const StepInput& input) = 0;
  /// Forward in evaluation of one row, without a pipeline: (classes), or (context, vocabulary). Errors: as run().
  [[nodiscard]] virtual Result<std::vector<float>> logits(const StepInput& row) = 0;

  [[nodiscard]] virtual const Plan& plan() const = 0;       ///< Of a whole window.
  [[nodiscard]] virtual const Step& costs() const = 0;      ///< What it was made from.
  [[nodiscard]] virtual double flops_per_step() const = 0;  ///< Of all ranks: products of forward and both gradients.
  [[nodiscard]] virtual std::uint64_t steps_done() const = 0;  ///< Updates, for the optimizer's corrections.
  virtual void set_steps_done(std::uint64_t steps) = 0;
  /// Everything that changes, of what this rank holds. Between runs.
  [[nodiscard]] virtual std::vector<StateTensor> state() const = 0;
  /// Names and shapes of the whole model's state, of all ranks, in one order.
  [[nodiscard]] virtual std::vector<StateTensor> whole_state() const = 0;
  /// The values of whole_state(), in its order and as they lie, at rank 0 of the pipeline; empty at the others. All
  /// ranks of the pipeline must call it. Errors: Device, PeerLost.
  [[nodiscard]] virtual Result<std::vector<std::vector<float>>> gather() = 0;
  /// Takes what it holds from the whole, as gather() gives it; empty tensors stay as they are. Errors:
  /// InvalidArgument (sizes), Device.
  [[nodiscard]] virtual Status load(std::span<const std::vector<float>> whole) = 0;
  [[nodiscard]] virtual const TrainerOptions& options() const = 0;
  [[nodiscard]] virtual gpu::Device device() const = 0;
  /// Among the ranks that hold the same layers; what they hold is the same but for running statistics.
  [[nodiscard]] virtual unsigned data_rank() const = 0;
  /// The next run calls this before it changes anything that state() shows, on threads of its own, once or more often;
  /// it may wait.
  virtual void before_next_update(std::function<Status()> wait) = 0;
  /// From the next run on one step at a time, and all its updates behind `gate`, which is called when all gradients are
  /// there, on a thread of the trainer's, and may wait: until it returns, held_state() is what state() was before the
  /// run, for any thread. Data-parallel ranks of the CPU must all ask for it alike, or none; the weights are the same.
  /// Errors: Unsupported: a pipeline (its stages are not at the same step), another device, a recorded graph.
  [[nodiscard]] virtual Status hold_updates(std::function<Status()> gate) = 0;
  [[nodiscard]] virtual std::vector<StateTensor> held_state() const = 0;
  /// When the operations of the last run ran, by the names of the plan; microseconds. Errors: InvalidArgument (it does
  /// not measure).
  [[nodiscard]] virtual Result<gpu::Timeline> last_run() const = 0;
  /// The graph and lanes that last_run() speaks of.
  [[nodiscard]] virtual const gpu::TaskGraph& rank_graph() const = 0;
  [[nodiscard]] virtual const gpu::Schedule& rank_schedule() const = 0;
};

/// Rates of a device, for costs that nobody has measured.
struct DeviceRates {
  double gflops = 50;
  double gb_per_s = 10;
  double launch_us = 2;
};
/// Costs from shapes: the same on every rank. The model is sound.
[[nodiscard]] Step estimate_step(const ModelOptions& model, DataType type, std::size_t rows, const DeviceRates& rates);

struct ProfileOptions {
  unsigned repeats = 5;  ///< The median counts.
  unsigned threads = 0;  ///< Of each lane, as in TrainerOptions.
  bool pairs = false;  ///< Measures each dW beside the dO of the layer below, on two streams, and from that the demand.
  /// That are on their way at a time, as in a pipeline: what forward has kept is no longer near when it is read.
  unsigned micro_batches = 1;
};
/// Costs by measuring each operation of each layer on `device`, on random numbers, in the order of a step: forwards,
/// gradients, updates, one after the other on one stream; takes as long as some steps.
/// Errors: those of Network.
[[nodiscard]] Result<Step> profile_step(gpu::Device device, const ModelOptions& model, DataType type, std::size_t rows,
                                        const OptimizerOptions& optimizer, const ProfileOptions& options = {});

}  // namespace dunnock::training
