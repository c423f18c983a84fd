// Trainer: trains a model by a schedule, on one device or as one rank of many.
//
//   model, schedule  ->  costs of its layers (given, measured, or estimated from shapes)
//                    ->  Plan (schedules.hpp)         order and place of forward, dO, dW, updates, transfers, sums
//                    ->  this rank's part of it       lanes, waits, and a slot for each micro-batch in progress
//                    ->  schedule::Executor                each operation issues the kernels of its layers
//
// Several steps (a window) are issued at once, so that work that a schedule delays into the next forward pass, or that
// this pass awaits layer by layer, overlaps it; between windows everything is done.
//
// The weights are the same, whatever the schedule: each value is computed by the same kernels from the same inputs, and
// sums over micro-batches are made in their order. In f32, with the same number of threads per lane, schedules of one
// family with the same ranks and micro-batches agree to the bit; so do all pipelines with one device that accumulates
// as many micro-batches, except for the clipping factor, whose sum of squares is made by stage. Data-parallel ranks add
// up gradients in the order of the ranks; another number of ranks rounds differently.
//
// Batch norms use the statistics of one rank's micro-batch; running statistics are those of data-parallel rank 0.
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
#include "dunnock/model/models.hpp"
#include "dunnock/model/parameters.hpp"
#include "dunnock/model/state_tensor.hpp"
#include "dunnock/ranks/communicator.hpp"
#include "dunnock/schedule/timeline.hpp"
#include "dunnock/training/optimizer.hpp"
#include "dunnock/training/schedules.hpp"

namespace dunnock::training {

/// Which layers train in which step: for methods that freeze layers, or train them in turn. All layers run forward and
/// pass gradients on; a layer that does not train has no dW, no update, and keeps its weights and moments.
class LayerPolicy {
 public:
  LayerPolicy() = default;
  LayerPolicy(const LayerPolicy&) = delete;
  LayerPolicy& operator=(const LayerPolicy&) = delete;
  virtual ~LayerPolicy() = default;
  /// A function of its arguments alone, the same on all ranks: the number of the layer (network.hpp), and of the step,
  /// counted from 1. Any thread calls it. A tensor that two layers share trains where its owner, the first one, does.
  [[nodiscard]] virtual bool trains(unsigned layer, std::uint64_t step) const = 0;
};

struct TrainerOptions {
  model::ModelOptions model{};
  model::DataType type = model::DataType::kF32;
  std::size_t rows = 1;        ///< Images or rows of tokens per micro-batch, on this rank.
  unsigned micro_batches = 1;  ///< Micro-batches per step, on this rank: their gradients are averaged.
  std::uint64_t seed = 0;      ///< Seed of the weights.
  OptimizerOptions optimizer{};
  std::string schedule = "conventional";
  /// Number of steps issued at once. One if a one-device or data-parallel step has several micro-batches.
  unsigned window = 4;
  /// CPU: threads of each lane that computes; 0: all processors, shared by the two lanes of multi-stream. Ranks on one
  /// machine need fewer.
  unsigned threads = 0;
  bool as_graph = false;  ///< Operations of a window are recorded once and issued at once (device/graph.hpp).
  bool measures = false;  ///< last_run() reports when each operation ran.
  /// Null: all layers train in each step. Not for recorded graphs (Unsupported).
  std::shared_ptr<const LayerPolicy> policy{};
  /// Options that the schedule is planned from; the trainer sets devices, micro_batches and iterations.
  PlanOptions plan{};
  /// Costs of the layers, the same on all ranks. Empty: estimated from shapes, but measured for multi-stream.
  std::optional<Step> costs{};
  /// If there are no costs: all ranks measure them at the same time, each the whole model, and take the mean.
  bool measures_costs = false;
};

/// The ranks of a job: a grid of pipelines (one stage per rank) and data-parallel groups (ranks with the same stage).
/// Null: a single rank. The communicators must outlive the trainer.
struct Ranks {
  ranks::Communicator* data = nullptr;      ///< Ranks that hold the same layers.
  ranks::Communicator* pipeline = nullptr;  ///< Ranks that hold the stages, in their order.
  /// A second communicator of the same ranks, for sums over stages: messages of one communicator have one order.
  ranks::Communicator* pipeline_sums = nullptr;
};

/// The input of a step: this rank's rows of all its micro-batches, one after the other. Images, or tokens and targets.
struct StepInput {
  std::span<const float> images{};          // (micro_batches * rows, height, width, channels)
  std::span<const std::int32_t> tokens{};   // (micro_batches * rows, context)
  std::span<const std::int32_t> targets{};  // (micro_batches * rows), or (micro_batches * rows, context)
  float learning_rate = 0;
};

struct StepResult {
  double loss = 0;                        ///< Mean over all ranks' rows, before the update.
  std::optional<double> gradient_norm{};  ///< Norm of the whole step, before clipping; only if gradients are clipped.
};

struct Evaluation {
  double loss = 0;          ///< Sum over this rank's targets.
  std::size_t correct = 0;  ///< Targets whose logit is the largest.
  std::size_t targets = 0;
};

/// Threads: one at a time. What a crash leaves: nothing; see checkpoints.hpp.
class Trainer {
 public:
  /// Errors: those of make_plan(), Network and Executor; InvalidArgument: options, a schedule that does not fit the
  /// ranks (data-parallel schedules need `data`, pipelines `pipeline`), another number of stages than ranks.
  [[nodiscard]] static Result<std::unique_ptr<Trainer>> create(device::Device device, const TrainerOptions& options,
                                                               const Ranks& ranks = {});
  Trainer() = default;
  Trainer(const Trainer&) = delete;
  Trainer& operator=(const Trainer&) = delete;
  virtual ~Trainer() = default;

  /// Trains the steps, at most `window` of them; returns when they are done. All ranks must make the same call. Errors:
  /// InvalidArgument: sizes, tokens or targets that the model does not know; Device, PeerLost: the weights must not be
  /// used any more.
  [[nodiscard]] virtual Result<std::vector<StepResult>> run(std::span<const StepInput> steps) = 0;
  /// Evaluates any number of rows by a forward pass; all ranks of a pipeline must make the same call, and all get the
  /// result. Data-parallel ranks each evaluate their own rows; with batch norms all must call it equally often, because
  /// after a run they take the first rank's running statistics. Errors: as run().
  [[nodiscard]] virtual Result<Evaluation> evaluate(const StepInput& input) = 0;
  /// Evaluates one row by a forward pass, without a pipeline: (classes), or (context, vocabulary). Errors: as run().
  [[nodiscard]] virtual Result<std::vector<float>> logits(const StepInput& row) = 0;

  [[nodiscard]] virtual const Plan& plan() const = 0;       ///< The plan of a whole window.
  [[nodiscard]] virtual const Step& costs() const = 0;      ///< The costs that the plan was made from.
  [[nodiscard]] virtual double flops_per_step() const = 0;  ///< Of all ranks: products of forward and both gradients.
  [[nodiscard]] virtual std::uint64_t steps_done() const = 0;  ///< Number of updates, for the optimizer's corrections.
  virtual void set_steps_done(std::uint64_t steps) = 0;
  /// All state that this rank holds and that training changes. Call between runs.
  [[nodiscard]] virtual std::vector<model::StateTensor> state() const = 0;
  /// Names and shapes of the whole model's state, of all ranks, in one order.
  [[nodiscard]] virtual std::vector<model::StateTensor> whole_state() const = 0;
  /// The values of whole_state(), in its order and as stored, at rank 0 of the pipeline; empty at the others. All ranks
  /// of the pipeline must call it. Errors: Device, PeerLost.
  [[nodiscard]] virtual Result<std::vector<std::vector<float>>> gather() = 0;
  /// Loads what this rank holds from the whole state, in the form that gather() returns; for an empty tensor the values
  /// stay as they are. Errors: InvalidArgument (sizes), Device.
  [[nodiscard]] virtual Status load(std::span<const std::vector<float>> whole) = 0;
  [[nodiscard]] virtual const TrainerOptions& options() const = 0;
  [[nodiscard]] virtual device::Device device() const = 0;
  /// This rank's number among the ranks that hold the same layers; their state is the same except running statistics.
  [[nodiscard]] virtual unsigned data_rank() const = 0;
  /// The next run calls `wait` before it changes anything that state() returns, on the trainer's own threads, once or
  /// several times; `wait` may block.
  virtual void before_next_update(std::function<Status()> wait) = 0;
  /// From the next run on, runs train one step at a time and make all updates after `gate`. A thread of the trainer
  /// calls `gate` when all gradients are ready, and it may block: until it returns, held_state() is what state() was
  /// before the run, for any thread. Either all data-parallel ranks on the CPU must call this, or none; the weights are
  /// the same. Errors: Unsupported: a pipeline (its stages are not at the same step), another device, a recorded graph.
  [[nodiscard]] virtual Status hold_updates(std::function<Status()> gate) = 0;
  [[nodiscard]] virtual std::vector<model::StateTensor> held_state() const = 0;
  /// When the operations of the last run ran, by their names in the plan, in microseconds. Errors: InvalidArgument (the
  /// trainer does not measure).
  [[nodiscard]] virtual Result<schedule::Timeline> last_run() const = 0;
  /// The graph and lanes that last_run() refers to.
  [[nodiscard]] virtual const schedule::TaskGraph& rank_graph() const = 0;
  [[nodiscard]] virtual const schedule::Schedule& rank_schedule() const = 0;
};

/// Rates of a device, for costs that have not been measured.
struct DeviceRates {
  double gflops = 50;
  double gb_per_s = 10;
  double launch_us = 2;
};
/// Estimates costs from shapes: the same on every rank. The model must be valid.
[[nodiscard]] Step estimate_step(const model::ModelOptions& model, model::DataType type, std::size_t rows,
                                 const DeviceRates& rates);

struct ProfileOptions {
  unsigned repeats = 5;  ///< Number of measurements; the median is used.
  unsigned threads = 0;  ///< Threads of each lane, as in TrainerOptions.
  bool pairs = false;    ///< Measures each dW concurrently with the dO of the layer below, to derive the demand.
  /// Micro-batches in progress at a time, as in a pipeline: what forward has kept is then no longer in a near cache.
  unsigned micro_batches = 1;
};
/// Measures the cost of each operation of each layer on `device`, with random numbers, in the order of a step:
/// forwards, gradients, updates, one after the other on one stream; takes as long as several steps.
/// Errors: those of Network.
[[nodiscard]] Result<Step> profile_step(device::Device device, const model::ModelOptions& model, model::DataType type,
                                        std::size_t rows, const OptimizerOptions& optimizer,
                                        const ProfileOptions& options = {});

}  // namespace dunnock::training
