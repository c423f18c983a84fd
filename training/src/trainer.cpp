#include "dunnock/training/trainer.hpp"

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <utility>

#include "dunnock/kernels/cross_entropy.hpp"
#include "dunnock/kernels/elementwise.hpp"
#include "dunnock/model/network.hpp"
#include "evaluation.hpp"
#include "network_inputs.hpp"
#include "place.hpp"
#include "rank_program.hpp"
#include "step_of_model.hpp"
#include "step_program.hpp"
#include "training_state.hpp"
#include "updater.hpp"

namespace dunnock::training {
namespace {

/// The mean of all ranks' costs: over equal stages, and then over the stages, so that all have the same bits.
Status share_costs(Step& costs, const Ranks& ranks, device::Stream& main) {
  std::vector<Cost*> all;
  for (Layer& layer : costs.layers) {
    for (Cost* cost : {&layer.forward, &layer.output_gradient, &layer.weight_gradient, &layer.update})
      all.push_back(cost);
  }
  for (ranks::Communicator* group : {ranks.data, ranks.pipeline}) {
    if (group == nullptr || group->size() == 1) continue;
    device::Buffer<float> on_device;
    DUNNOCK_TRY(make_buffer(on_device, all.size(), main));
    std::vector<float> us;
    for (const Cost* cost : all) us.push_back(static_cast<float>(cost->us));
    device::upload(on_device.span(), us, main);
    group->all_reduce<float>(on_device.span(), ranks::Reduction::kMean, main);
    device::download(std::span(us), on_device.span(), main);
    DUNNOCK_TRY(main.synchronize());
    for (std::size_t i = 0; i < all.size(); ++i) all[i]->us = static_cast<double>(us[i]);
  }
  return {};
}

/// The costs that the plan is made from: given, measured, or estimated.
Result<Step> choose_costs(const Place& place, device::Stream& main) {
  const TrainerOptions& options = place.options;
  const bool alone = place.data_ranks() == 1 && place.stages() == 1;
  const bool clips = options.optimizer.clip > 0;
  if (options.costs) {
    Step costs = *options.costs;
    costs.clips = clips;
    return costs;
  }
  const ScheduleName* const schedule = find_schedule(options.schedule);
  if (options.measures_costs || (alone && schedule != nullptr && schedule->wants_measured_costs)) {
    DUNNOCK_TRY(auto measured, profile_step(main.device(), options.model, options.type, options.rows, options.optimizer,
                                            {.threads = options.threads, .pairs = alone}));
    DUNNOCK_TRY(share_costs(measured, place.ranks, main));
    return measured;
  }
  Step costs = estimate_step(options.model, options.type, options.rows, {});
  costs.clips = clips;
  return costs;
}

template <class T>
class TrainerOf final : public Trainer {
 public:
  TrainerOf(device::Stream main, const TrainerOptions& options, const Ranks& ranks)
      : place_{.options = options, .ranks = ranks, .family = Family::kOneDevice, .stage_of_layer = {}},
        main_(std::move(main)) {}

  Status set_up() {
    share_threads();
    DUNNOCK_TRY(find_family());
    DUNNOCK_TRY(auto costs, choose_costs(place_, main_));
    costs_ = std::move(costs);
    DUNNOCK_TRY(auto program, make_program(place_.window(), false));
    DUNNOCK_TRY(make_network(*program));
    DUNNOCK_TRY(auto inputs, NetworkInputs<T>::create(place_.options.model,
                                                      std::size_t{place_.window()} * place_.options.micro_batches,
                                                      place_.options.rows, main_));
    inputs_ = std::move(inputs);
    DUNNOCK_TRY(make_buffer(workspace_, std::max<std::size_t>(1, network_.workspace_bytes()), main_));
    DUNNOCK_TRY(make_buffer(means_, place_.window(), main_));
    kernels::run(kernels::Fill<float>{.y = means_, .value = 0}, main_);
    DUNNOCK_TRY(evaluator_.set_up(main_));
    DUNNOCK_TRY(updater_.set_up(main_));
    DUNNOCK_TRY(bind(*program, parts(), main_));
    programs_.emplace(place_.window(), std::move(program));
    return main_.synchronize();
  }

  Result<std::vector<StepResult>> run(std::span<const StepInput> steps) override {
    if (steps.empty()) return std::vector<StepResult>{};
    if (steps.size() > place_.options.window)
      return invalid("a run can have at most " + std::to_string(place_.options.window) + " steps, not " +
                     std::to_string(steps.size()));
    for (const StepInput& step : steps) {
      DUNNOCK_TRY(check_input(step, place_.step_rows(), inputs_.sizes()));
    }
    std::vector<StepResult> results;
    const std::size_t at_once = hooks_.gate ? 1 : place_.window();
    for (std::size_t done = 0; done < steps.size(); done += at_once) {
      const auto part = steps.subspan(done, std::min(at_once, steps.size() - done));
      DUNNOCK_TRY(run_window(part, results));
    }
    return results;
  }

  Result<Evaluation> evaluate(const StepInput& input) override {
    const model::InputSizes& sizes = inputs_.sizes();
    if (sizes.targets == 0 || input.targets.size() % sizes.targets != 0)
      return invalid("an evaluation needs a whole number of rows");
    DUNNOCK_TRY(check_input(input, input.targets.size() / sizes.targets, sizes));
    if (std::exchange(statistics_differ_, false))
      place_.ranks.data->template broadcast<float>(network_.parameters().state_values(), 0, main_);
    return evaluator_.evaluate(input, workspace_.span(), main_);
  }

  Result<std::vector<float>> logits(const StepInput& row) override {
    if (place_.stages() > 1) return invalid("a stage of a pipeline can't compute logits alone");
    StepInput one = row;
    std::vector<std::int32_t> targets;
    if (row.targets.empty()) {
      targets.assign(inputs_.sizes().targets, 0);
      one.targets = targets;
    }
    DUNNOCK_TRY(check_input(one, 1, inputs_.sizes()));
    return evaluator_.logits(one, workspace_.span(), main_);
  }

  const Plan& plan() const override { return whole().plan; }
  const Step& costs() const override { return costs_; }
  double flops_per_step() const override {
    return network_.flops(place_.options.rows) * place_.options.micro_batches * place_.data_ranks();
  }
  std::uint64_t steps_done() const override { return steps_done_; }
  void set_steps_done(std::uint64_t steps) override { steps_done_ = steps; }

  std::vector<model::StateTensor> state() const override { return training_state().held(); }
  std::vector<model::StateTensor> whole_state() const override { return training_state().whole(); }
  Result<std::vector<std::vector<float>>> gather() override { return training_state().gather(main_); }
  Status load(std::span<const std::vector<float>> whole) override {
    DUNNOCK_TRY(training_state().upload(whole, main_));
    network_.parameters().refresh_weights(main_);
    return main_.synchronize();
  }

  const TrainerOptions& options() const override { return place_.options; }
  device::Device device() const override { return main_.device(); }
  unsigned data_rank() const override { return place_.data_rank(); }

  void before_next_update(std::function<Status()> wait) override {
    hooks_.before_next_update = called_once(std::move(wait));  // Each update asks for it, on any lane.
  }

  Status hold_updates(std::function<Status()> gate) override {
    if (place_.is_pipeline() || place_.options.as_graph || main_.device().backend() != device::Backend::kCpu)
      return make_error(ErrorCode::kUnsupported, "updates can be held only on data-parallel ranks of the CPU");
    hooks_.gate = std::move(gate);
    return {};
  }
  std::vector<model::StateTensor> held_state() const override {
    std::vector<model::StateTensor> held = state();
    std::size_t begin = 0;
    for (model::StateTensor& tensor : held) {
      if (tensor.what != model::StateTensor::What::kStatistic || held_statistics_.empty()) continue;
      tensor.values = device::Span<float>(held_statistics_.data() + begin, tensor.values.size());
      begin += tensor.values.size();
    }
    return held;
  }

  Result<schedule::Timeline> last_run() const override {
    if (last_ == nullptr) return invalid("nothing has run yet");
    return last_->executor->last_run();
  }
  const schedule::TaskGraph& rank_graph() const override { return (last_ != nullptr ? *last_ : whole()).graph; }
  const schedule::Schedule& rank_schedule() const override {
    return (last_ != nullptr ? *last_ : whole()).rank.schedule;
  }

 private:
  [[nodiscard]] TrainingState<T> training_state() const { return {place_, network_}; }
  [[nodiscard]] StepParts<T> parts() { return {place_, network_, inputs_, updater_, hooks_}; }
  /// The program of a whole window.
  [[nodiscard]] const StepProgram& whole() const { return *programs_.at(place_.window()); }

  // ----- setting up -------------------------------------------------------------------------------------------------

  /// Lanes side by side share the processors.
  void share_threads() {
    TrainerOptions& options = place_.options;
    const ScheduleName* const schedule = find_schedule(options.schedule);
    if (options.threads != 0 || schedule == nullptr || schedule->lanes_compute == 1) return;
    if (main_.device().backend() == device::Backend::kCpu)
      options.threads = std::max(1U, main_.device().info().processors / schedule->lanes_compute);
  }

  Status find_family() {
    const std::string& schedule = place_.options.schedule;
    // make_plan() reports a schedule that is not known.
    if (const ScheduleName* const known = find_schedule(schedule)) place_.family = known->family;
    if (!place_.is_pipeline() && place_.stages() > 1)
      return invalid("schedule '" + schedule + "' is not for pipelines");
    if (place_.family == Family::kOneDevice && place_.data_ranks() > 1)
      return invalid("schedule '" + schedule + "' is for one device, not for data-parallel ranks");
    return {};
  }

  /// `holds`: all updates come after all gradients, as where they are clipped.
  Result<std::unique_ptr<StepProgram>> make_program(unsigned iterations, bool holds) {
    const bool pipeline = place_.is_pipeline();
    PlanOptions plan_options = place_.options.plan;
    plan_options.devices = pipeline ? place_.stages() : place_.data_ranks();
    plan_options.data_parallel = pipeline ? place_.data_ranks() : 1;
    plan_options.micro_batches = pipeline ? place_.options.micro_batches : 1;
    plan_options.iterations = iterations;
    Step costs = costs_;
    costs.clips = costs.clips || holds;
    DUNNOCK_TRY(auto plan, make_plan(place_.options.schedule, costs, plan_options));
    auto program = std::make_unique<StepProgram>();
    program->plan = std::move(plan);
    program->rank = make_rank_program(program->plan, pipeline ? place_.stage() : 0, place_.clips());
    return program;
  }

  Status make_network(const StepProgram& program) {
    const TrainerOptions& options = place_.options;
    model::NetworkOptions network_options{.slots = program.rank.slots, .rows = options.rows, .seed = options.seed};
    if (place_.is_pipeline()) {
      const Plan& plan = program.plan;
      const auto layers = static_cast<unsigned>(costs_.layers.size());
      for (std::size_t c = 0; c < plan.chunk_begins.size(); ++c) {
        for (unsigned l = plan.chunk_begins[c]; l < chunk_end(plan, c, layers); ++l) {
          place_.stage_of_layer.push_back(plan.chunk_devices[c]);
          network_options.held.push_back(plan.chunk_devices[c] == place_.stage());
        }
      }
    }
    DUNNOCK_TRY(auto network, model::Network<T>::create(options.model, network_options, main_));
    network_ = std::move(network);
    return {};
  }

  // ----- running ----------------------------------------------------------------------------------------------------

  /// The program of a window of `count` steps, made when it is first needed.
  Result<StepProgram*> program_of(unsigned count) {
    auto& program = hooks_.gate ? held_program_ : programs_[count];
    if (program == nullptr) {
      DUNNOCK_TRY(auto made, make_program(count, hooks_.gate != nullptr));
      const auto is_gate = [](const RankOp& op) { return op.tag.part == Part::kNorm; };
      DUNNOCK_CHECK(!hooks_.gate || std::ranges::any_of(made->rank.ops, is_gate), "held updates have a gate");
      DUNNOCK_TRY(bind(*made, parts(), main_));
      program = std::move(made);
    }
    return program.get();
  }

  /// Copies what forward passes change before the gate.
  void hold_statistics() {
    held_statistics_.clear();
    for (const model::StateTensor& tensor : state()) {
      const float* const values = tensor.values.device_data();
      if (tensor.what == model::StateTensor::What::kStatistic)
        held_statistics_.insert(held_statistics_.end(), values, values + tensor.values.size());
    }
  }

  Status run_window(std::span<const StepInput> steps, std::vector<StepResult>& results) {
    const auto count = static_cast<unsigned>(steps.size());
    const TrainerOptions& options = place_.options;
    DUNNOCK_TRY(StepProgram* const program, program_of(count));
    last_ = program;
    if (hooks_.gate) hold_statistics();
    const bool has_statistics = network_.parameters().state_values().size() > 0;
    // Forward passes already change running statistics, and a recorded graph has no place for the wait.
    if (hooks_.before_next_update && (options.as_graph || has_statistics))
      main_.run("waits for the snapshot", std::exchange(hooks_.before_next_update, nullptr));
    // Kernels make their plans in the first run, which a graph that is recorded can't. The graph is made before
    // anything is copied from memory that goes if that fails.
    if (options.as_graph && program->runs == 1) {
      DUNNOCK_TRY(make_executor(*program, options, true, main_.device()));
    }
    for (unsigned t = 0; t < count; ++t)
      inputs_.upload(std::size_t{t} * options.micro_batches, place_.step_rows(), steps[t], main_);
    updater_.prepare(steps, steps_done_, main_);
    if (place_.accumulates_apart()) accumulate();
    program->executor->run(main_);
    ++program->runs;
    hooks_.before_next_update = nullptr;
    statistics_differ_ = place_.data_ranks() > 1 && has_statistics;
    steps_done_ += count;
    return collect(count, *program, results);
  }

  /// All micro-batches but the last, one after the other.
  void accumulate() {
    for (unsigned m = 0; m + 1 < place_.options.micro_batches; ++m) {
      const model::MicroBatch<T> batch = inputs_.batch(m, place_.options.rows, place_.gradient_factor());
      const model::NetworkRun<T> run{
          .batch = batch, .slot = 0, .adds = m > 0, .training = true, .workspace = workspace_.span(), .stream = main_};
      for (unsigned l = 0; l < network_.layers(); ++l) network_.forward(l, run);
      for (unsigned l = network_.layers(); l-- > 0;) {
        if (l > 0) network_.output_gradient(l, run);
        train_weights(network_, updater_, l, 0, run);
      }
    }
  }

  Status collect(unsigned count, StepProgram& program, std::vector<StepResult>& results) {
    const bool has_losses = network_.held(network_.layers() - 1);
    if (has_losses) {
      for (unsigned t = 0; t < count; ++t) {
        const std::size_t first = std::size_t{t} * place_.options.micro_batches;
        kernels::run(kernels::CrossEntropyMean{.losses = inputs_.losses(first, place_.step_rows()),
                                               .targets = inputs_.targets(first, place_.step_rows()),
                                               .ignore_index = -100,
                                               .mean = means_.span().subspan(t, 1)},
                     main_);
      }
    }
    if (place_.data_ranks() > 1)
      place_.ranks.data->template all_reduce<float>(means_.span(), ranks::Reduction::kMean, main_);
    if (place_.stages() > 1)
      place_.ranks.pipeline->template broadcast<float>(means_.span(), place_.last_stage(), main_);
    std::vector<float> means(count);
    std::vector<float> norms(count);
    device::download(std::span(means), means_.span().subspan(0, count), main_);
    if (place_.clips()) device::download(std::span(norms), updater_.norms(count), main_);
    const Status done = main_.synchronize();
    DUNNOCK_TRY(program.executor->synchronize());
    if (!done) return done;
    for (unsigned t = 0; t < count; ++t) {
      StepResult result{.loss = means[t]};
      if (place_.clips()) result.gradient_norm = norms[t];
      results.push_back(result);
    }
    return {};
  }

  Place place_;
  device::Stream main_;
  Step costs_;
  model::Network<T> network_;
  NetworkInputs<T> inputs_;  // [step of the window][micro-batch]
  Updater<T> updater_{place_, network_};
  Evaluator<T> evaluator_{place_, network_};
  device::Buffer<std::byte> workspace_;  // Of the main stream.
  device::Buffer<float> means_;          // (window)
  UpdateHooks hooks_;
  std::map<unsigned, std::unique_ptr<StepProgram>> programs_;  // by steps
  std::unique_ptr<StepProgram> held_program_;                  // Of one step, whose updates are held.
  mutable std::vector<float> held_statistics_;
  const StepProgram* last_ = nullptr;
  std::uint64_t steps_done_ = 0;
  bool statistics_differ_ = false;  // Running ones, of data-parallel ranks.
};

template <class T>
Result<std::unique_ptr<Trainer>> create_of(device::Device device, const TrainerOptions& options, const Ranks& ranks) {
  DUNNOCK_TRY(auto main, device::Stream::create(device, {.priority = 1, .threads = options.threads}));
  auto trainer = std::make_unique<TrainerOf<T>>(std::move(main), options, ranks);
  DUNNOCK_TRY(trainer->set_up());
  return trainer;
}

}  // namespace

Result<std::unique_ptr<Trainer>> Trainer::create(device::Device device, const TrainerOptions& options,
                                                 const Ranks& ranks) {
  if (options.rows == 0) return invalid("a micro-batch needs at least one row");
  if (options.micro_batches == 0) return invalid("a step needs at least one micro-batch");
  if (options.window == 0) return invalid("a window needs at least one step");
  if (ranks.pipeline != nullptr && ranks.pipeline->size() > 1 && ranks.pipeline_sums == nullptr)
    return invalid("the stages of a pipeline need a communicator for their sums");
  if (options.optimizer.nesterov && options.optimizer.momentum == 0)
    return invalid("nesterov needs a momentum other than 0");
  if (options.policy != nullptr && options.as_graph)
    return make_error(ErrorCode::kUnsupported,
                      "a policy and as_graph exclude each other: a recorded graph trains the same layers in each step");
  DUNNOCK_TRY(check(options.model));
  return options.type == model::DataType::kF32 ? create_of<float>(device, options, ranks)
                                               : create_of<device::Bf16>(device, options, ranks);
}

}  // namespace dunnock::training
