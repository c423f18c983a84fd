#include "dunnock/training/trainer.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <utility>

#include "dunnock/kernels/cross_entropy.hpp"
#include "dunnock/kernels/elementwise.hpp"
#include "dunnock/kernels/optimizer.hpp"
#include "dunnock/kernels/reduce.hpp"
#include "dunnock/model/network.hpp"
#include "dunnock/schedule/executor.hpp"
#include "network_inputs.hpp"
#include "rank_program.hpp"
#include "step_of_model.hpp"

namespace dunnock::training {
namespace {

tl::unexpected<Error> invalid(std::string what) { return make_error(ErrorCode::kInvalidArgument, std::move(what)); }

/// A piece of device memory, or why there is none.
template <class U>
Status make_buffer(device::Buffer<U>& buffer, std::size_t size, device::Stream& stream) {
  DUNNOCK_TRY(auto made, device::Buffer<U>::create(size, stream));
  buffer = std::move(made);
  return {};
}

unsigned size_of(const ranks::Communicator* ranks) { return ranks == nullptr ? 1 : ranks->size(); }
unsigned rank_of(const ranks::Communicator* ranks) { return ranks == nullptr ? 0 : ranks->rank(); }

template <class T>
class TrainerOf final : public Trainer {
 public:
  TrainerOf(device::Stream main, const TrainerOptions& options, const Ranks& ranks)
      : options_(options), ranks_(ranks), main_(std::move(main)) {}

  Status set_up() {
    share_threads();
    DUNNOCK_TRY(choose_costs());
    DUNNOCK_TRY(auto program, make_program(window()));
    const Program& whole = *program;
    DUNNOCK_TRY(make_network(whole));
    auto inputs =
        NetworkInputs<T>::create(options_.model, std::size_t{window()} * options_.micro_batches, options_.rows, main_);
    DUNNOCK_TRY(inputs);
    inputs_ = std::move(*inputs);
    DUNNOCK_TRY(make_buffers());
    DUNNOCK_TRY(make_tables());
    DUNNOCK_TRY(bind(*program));
    programs_.emplace(window(), std::move(program));
    return main_.synchronize();
  }

  Result<std::vector<StepResult>> run(std::span<const StepInput> steps) override {
    if (steps.empty()) return std::vector<StepResult>{};
    if (steps.size() > options_.window)
      return invalid("a run has at most " + std::to_string(options_.window) + " steps, not " +
                     std::to_string(steps.size()));
    for (const StepInput& step : steps) {
      DUNNOCK_TRY(check_input(step, step_rows()));
    }
    std::vector<StepResult> results;
    const std::size_t at_once = gate_ ? 1 : window();
    for (std::size_t done = 0; done < steps.size(); done += at_once) {
      const auto part = steps.subspan(done, std::min(at_once, steps.size() - done));
      DUNNOCK_TRY(run_window(part, results));
    }
    return results;
  }

  Result<Evaluation> evaluate(const StepInput& input) override {
    const model::InputSizes& sizes = inputs_.sizes();
    if (sizes.targets == 0 || input.targets.size() % sizes.targets != 0) return invalid("an evaluation has whole rows");
    const std::size_t rows = input.targets.size() / sizes.targets;
    DUNNOCK_TRY(check_input(input, rows));
    if (std::exchange(statistics_differ_, false))
      ranks_.data->broadcast<float>(network_.parameters().state_values(), 0, main_);
    Evaluation sum;
    for (std::size_t done = 0; done < rows; done += options_.rows) {
      const std::size_t some = std::min(options_.rows, rows - done);
      DUNNOCK_TRY(evaluate_some(part_of(input, done, some), some, sum));
    }
    return sum;
  }

  Result<std::vector<float>> logits(const StepInput& row) override {
    if (size_of(ranks_.pipeline) > 1) return invalid("a stage of a pipeline has no logits of its own");
    const model::InputSizes& sizes = inputs_.sizes();
    StepInput one = row;
    std::vector<std::int32_t> targets;
    if (row.targets.empty()) {
      targets.assign(sizes.targets, 0);
      one.targets = targets;
    }
    DUNNOCK_TRY(check_input(one, 1));
    evaluation_.upload(0, 1, one, main_);
    forward_all(1);
    const std::size_t count = sizes.targets * sizes.classes;
    std::vector<T> values(count);
    device::download(std::span(values), network_.logits(0).subspan(0, count), main_);
    DUNNOCK_TRY(main_.synchronize());
    std::vector<float> floats(count);
    std::ranges::transform(values, floats.begin(), [](T value) { return static_cast<float>(value); });
    return floats;
  }

  const Plan& plan() const override { return programs_.at(window())->plan; }
  const Step& costs() const override { return costs_; }
  double flops_per_step() const override {
    return network_.flops(options_.rows) * options_.micro_batches * size_of(ranks_.data);
  }
  std::uint64_t steps_done() const override { return steps_done_; }
  void set_steps_done(std::uint64_t steps) override { steps_done_ = steps; }

  std::vector<model::StateTensor> state() const override {
    std::vector<model::StateTensor> state;
    const model::Parameters<T>& parameters = network_.parameters();
    const auto add = [&](std::size_t i, model::StateTensor::What what, device::Span<float> values) {
      const model::ParameterSpec& spec = parameters.tensors()[i].spec;
      state.push_back({spec.name, what, spec.shape, spec.positions, values});
    };
    for (std::size_t i = 0; i < parameters.tensors().size(); ++i) {
      if (parameters.tensors()[i].owner) continue;
      add(i, model::StateTensor::What::kWeight, parameters.master(i));
      if (options_.optimizer.kind == OptimizerKind::kAdamw || options_.optimizer.momentum != 0)
        add(i, model::StateTensor::What::kFirstMoment, parameters.first_moment(i));
      if (options_.optimizer.kind == OptimizerKind::kAdamw)
        add(i, model::StateTensor::What::kSecondMoment, parameters.second_moment(i));
    }
    for (std::size_t i = 0; i < parameters.states().size(); ++i) {
      const model::StateSpec& spec = parameters.states()[i].spec;
      state.push_back({spec.name, model::StateTensor::What::kStatistic, {spec.size}, 1, parameters.state(i)});
    }
    return state;
  }

  std::vector<model::StateTensor> whole_state() const override {
    std::vector<model::StateTensor> state;
    for_whole_state([&](unsigned, model::StateTensor tensor) { state.push_back(std::move(tensor)); });
    return state;
  }

  Result<std::vector<std::vector<float>>> gather() override {
    const std::vector<model::StateTensor> whole = whole_state();
    const std::vector<model::StateTensor> mine = state();
    const bool collects = rank_of(ranks_.pipeline) == 0;
    std::vector<std::vector<float>> values(collects ? whole.size() : 0);
    device::Buffer<float> arrived;
    for (std::size_t i = 0; i < whole.size(); ++i) {
      const model::StateTensor* here = find(mine, whole[i]);
      const std::size_t size = values_of(whole[i]);
      const unsigned holder = holder_of(i);
      device::Span<float> from = here != nullptr ? here->values : device::Span<float>();
      if (holder != 0) {
        if (rank_of(ranks_.pipeline) == holder) ranks_.pipeline->send<float>(from, 0, main_);
        if (!collects) continue;
        if (Status made = make_buffer(arrived, size, main_); !made) {
          (void)main_.synchronize();  // For `values` goes.
          return tl::unexpected(made.error());
        }
        from = arrived.span();
        ranks_.pipeline->receive<float>(from, holder, main_);
      }
      if (!collects) continue;
      values[i].resize(size);
      device::download(std::span(values[i]), from, main_);
    }
    DUNNOCK_TRY(main_.synchronize());
    return values;
  }

  Status load(std::span<const std::vector<float>> whole) override {
    const std::vector<model::StateTensor> names = whole_state();
    if (whole.size() != names.size()) return invalid("the state has another number of tensors");
    const std::vector<model::StateTensor> mine = state();
    // All of it before the first copy, which reads `whole` when its turn comes.
    for (std::size_t i = 0; i < names.size(); ++i) {
      if (!whole[i].empty() && whole[i].size() != values_of(names[i]))
        return invalid("tensor '" + names[i].name + "' has " + std::to_string(values_of(names[i])) + " values, not " +
                       std::to_string(whole[i].size()));
    }
    for (std::size_t i = 0; i < names.size(); ++i) {
      const model::StateTensor* here = find(mine, names[i]);
      if (here != nullptr && !whole[i].empty()) device::upload(here->values, whole[i], main_);
    }
    network_.parameters().refresh_weights(main_);
    return main_.synchronize();
  }

  const TrainerOptions& options() const override { return options_; }
  device::Device device() const override { return main_.device(); }
  unsigned data_rank() const override { return rank_of(ranks_.data); }

  void before_next_update(std::function<Status()> wait) override {
    // Each update asks for it, on any lane; the first calls it, and the others wait for what it says.
    struct Once {
      std::once_flag flag;
      std::function<Status()> wait;
      Status answer;
    };
    auto once = std::make_shared<Once>();
    once->wait = std::move(wait);
    before_next_update_ = [once] {
      std::call_once(once->flag, [&once] { once->answer = once->wait(); });
      return once->answer;
    };
  }

  Status hold_updates(std::function<Status()> gate) override {
    if (is_pipeline() || options_.as_graph || main_.device().backend() != device::Backend::kCpu)
      return make_error(ErrorCode::kUnsupported, "updates are held of data-parallel ranks of the CPU");
    gate_ = std::move(gate);
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
  const schedule::TaskGraph& rank_graph() const override { return (last_ != nullptr ? *last_ : *whole()).graph; }
  const schedule::Schedule& rank_schedule() const override {
    return (last_ != nullptr ? *last_ : *whole()).rank.schedule;
  }

 private:
  /// A plan for some steps, and what this rank runs of it.
  struct Program {
    Plan plan;
    RankProgram rank;
    schedule::TaskGraph graph;
    std::vector<device::Buffer<std::byte>> workspaces;  // [lane]; of those that compute
    std::optional<schedule::Executor> executor;
    unsigned runs = 0;
  };
  /// What updates a layer's tensors at once.
  struct Table {
    device::Buffer<kernels::OptimizerTensor<float>> tensors;
    std::size_t chunks = 0;
  };

  /// Steps that are issued at once.
  [[nodiscard]] unsigned window() const { return accumulates_apart() ? 1 : options_.window; }
  [[nodiscard]] bool is_pipeline() const { return family_ == Family::kPipeline; }
  /// Plans of pipelines have the micro-batches; in front of others all but the last run by themselves.
  [[nodiscard]] bool accumulates_apart() const { return !is_pipeline() && options_.micro_batches > 1; }
  [[nodiscard]] std::size_t step_rows() const { return options_.rows * options_.micro_batches; }
  [[nodiscard]] float gradient_factor() const {
    return 1.0F / static_cast<float>(step_rows() * input_sizes(options_.model).targets);
  }
  static const model::StateTensor* find(const std::vector<model::StateTensor>& tensors,
                                        const model::StateTensor& wanted) {
    const auto same = [&wanted](const model::StateTensor& one) {
      return one.what == wanted.what && one.name == wanted.name;
    };
    const auto found = std::ranges::find_if(tensors, same);
    return found == tensors.end() ? nullptr : &*found;
  }
  static std::size_t values_of(const model::StateTensor& tensor) {
    return std::accumulate(tensor.shape.begin(), tensor.shape.end(), std::size_t{1}, std::multiplies<>());
  }
  /// visit(layer, tensor) of the whole model: parameters, and then what forward passes keep.
  template <class Visit>
  void for_whole_state(const Visit& visit) const {
    const bool adamw = options_.optimizer.kind == OptimizerKind::kAdamw;
    for (unsigned l = 0; l < network_.layers(); ++l) {
      for (const model::ParameterSpec& spec : network_.layer(l).parameters()) {
        if (spec.tied) continue;
        const auto add = [&](model::StateTensor::What what) {
          visit(l, model::StateTensor{spec.name, what, spec.shape, spec.positions, {}});
        };
        add(model::StateTensor::What::kWeight);
        if (adamw || options_.optimizer.momentum != 0) add(model::StateTensor::What::kFirstMoment);
        if (adamw) add(model::StateTensor::What::kSecondMoment);
      }
    }
    for (unsigned l = 0; l < network_.layers(); ++l) {
      for (const model::StateSpec& spec : network_.layer(l).states())
        visit(l, model::StateTensor{spec.name, model::StateTensor::What::kStatistic, {spec.size}, 1, {}});
    }
  }
  /// The stage that has tensor `number` of whole_state(); of a tied one, its owner.
  [[nodiscard]] unsigned holder_of(std::size_t number) const {
    std::vector<unsigned> layers;
    for_whole_state([&](unsigned layer, const model::StateTensor&) { layers.push_back(layer); });
    return stage_of(layers.at(number));
  }
  [[nodiscard]] const Program* whole() const { return programs_.at(window()).get(); }

  // ----- setting up -------------------------------------------------------------------------------------------------

  /// Lanes side by side share the processors.
  void share_threads() {
    const bool shares = options_.threads == 0 && options_.schedule == "multi-stream";
    if (shares && main_.device().backend() == device::Backend::kCpu)
      options_.threads = std::max(1U, main_.device().info().processors / 2);
  }

  Status choose_costs() {
    const auto& names = schedule_names();
    const auto name = std::ranges::find(names, options_.schedule, &ScheduleName::name);
    if (name != names.end()) family_ = name->family;  // Otherwise make_plan() says so.
    if (family_ != Family::kPipeline && size_of(ranks_.pipeline) > 1)
      return invalid("schedule '" + options_.schedule + "' is not for pipelines");
    if (family_ == Family::kOneDevice && size_of(ranks_.data) > 1)
      return invalid("schedule '" + options_.schedule + "' is for one device, not for data-parallel ranks");
    const bool alone = size_of(ranks_.data) == 1 && size_of(ranks_.pipeline) == 1;
    if (options_.costs) {
      costs_ = *options_.costs;
      costs_.clips = options_.optimizer.clip > 0;
      return {};
    }
    if (options_.measures_costs || (alone && options_.schedule == "multi-stream")) {
      DUNNOCK_TRY(auto measured, profile_step(main_.device(), options_.model, options_.type, options_.rows,
                                              options_.optimizer, {.threads = options_.threads, .pairs = alone}));
      costs_ = std::move(measured);
      return share_costs();
    }
    costs_ = estimate_step(options_.model, options_.type, options_.rows, {});
    costs_.clips = options_.optimizer.clip > 0;
    return {};
  }

  /// The mean of all ranks' costs: over equal stages, and then over the stages, so that all have the same bits.
  Status share_costs() {
    std::vector<Cost*> all;
    for (Layer& layer : costs_.layers) {
      for (Cost* cost : {&layer.forward, &layer.output_gradient, &layer.weight_gradient, &layer.update})
        all.push_back(cost);
    }
    for (ranks::Communicator* group : {ranks_.data, ranks_.pipeline}) {
      if (size_of(group) == 1) continue;
      device::Buffer<float> on_device;
      DUNNOCK_TRY(make_buffer(on_device, all.size(), main_));
      std::vector<float> us;
      for (const Cost* cost : all) us.push_back(static_cast<float>(cost->us));
      device::upload(on_device.span(), us, main_);
      group->all_reduce<float>(on_device.span(), ranks::Reduction::kMean, main_);
      device::download(std::span(us), on_device.span(), main_);
      DUNNOCK_TRY(main_.synchronize());
      for (std::size_t i = 0; i < all.size(); ++i) all[i]->us = static_cast<double>(us[i]);
    }
    return {};
  }

  /// `holds`: all updates come behind all gradients, as where they are clipped.
  Result<std::unique_ptr<Program>> make_program(unsigned iterations, bool holds = false) {
    PlanOptions plan_options = options_.plan;
    plan_options.devices = is_pipeline() ? size_of(ranks_.pipeline) : size_of(ranks_.data);
    plan_options.data_parallel = is_pipeline() ? size_of(ranks_.data) : 1;
    plan_options.micro_batches = is_pipeline() ? options_.micro_batches : 1;
    plan_options.iterations = iterations;
    Step costs = costs_;
    costs.clips = costs.clips || holds;
    auto plan = make_plan(options_.schedule, costs, plan_options);
    DUNNOCK_TRY(plan);
    auto program = std::make_unique<Program>();
    program->plan = std::move(*plan);
    program->rank = make_rank_program(program->plan, is_pipeline() ? rank_of(ranks_.pipeline) : 0, clips());
    return program;
  }

  Status make_network(const Program& program) {
    model::NetworkOptions network_options{.slots = program.rank.slots, .rows = options_.rows, .seed = options_.seed};
    if (is_pipeline()) {
      const Plan& plan = program.plan;
      for (std::size_t c = 0; c < plan.chunk_begins.size(); ++c) {
        for (unsigned l = plan.chunk_begins[c]; l < chunk_end(plan, c); ++l) {
          stage_of_layer_.push_back(plan.chunk_devices[c]);
          network_options.held.push_back(plan.chunk_devices[c] == rank_of(ranks_.pipeline));
        }
      }
    }
    DUNNOCK_TRY(auto network, model::Network<T>::create(options_.model, network_options, main_));
    network_ = std::move(network);
    return {};
  }

  [[nodiscard]] unsigned chunk_end(const Plan& plan, std::size_t chunk) const {
    const auto layers = static_cast<unsigned>(costs_.layers.size());
    return chunk + 1 < plan.chunk_begins.size() ? plan.chunk_begins[chunk + 1] : layers;
  }

  Status make_buffers() {
    DUNNOCK_TRY(auto evaluation, NetworkInputs<T>::create(options_.model, 1, options_.rows, main_));
    evaluation_ = std::move(evaluation);
    DUNNOCK_TRY(make_buffer(main_workspace_, std::max<std::size_t>(1, network_.workspace_bytes()), main_));
    DUNNOCK_TRY(make_buffer(adamw_steps_, window(), main_));
    DUNNOCK_TRY(make_buffer(sgd_steps_, window(), main_));
    DUNNOCK_TRY(make_buffer(means_, window(), main_));
    DUNNOCK_TRY(make_buffer(norms_, window(), main_));
    DUNNOCK_TRY(make_buffer(factors_, window(), main_));
    DUNNOCK_TRY(make_buffer(stage_norms_, size_of(ranks_.pipeline), main_));
    DUNNOCK_TRY(make_buffer(results_, 3, main_));
    kernels::run(kernels::Fill<float>{.y = means_, .value = 0}, main_);
    const model::InputSizes sizes = input_sizes(options_.model);
    return make_buffer(guesses_, options_.rows * sizes.targets, main_);
  }

  Status make_tables() {
    const model::Parameters<T>& parameters = network_.parameters();
    std::vector<kernels::ReduceTensor<float>> counted;
    tables_.resize(network_.layers());
    std::size_t largest_tie = 0;
    for (unsigned l = 0; l < network_.layers(); ++l) {
      std::vector<kernels::OptimizerTensor<float>> table;
      const auto [first, last] = parameters.of_layer(l);
      for (std::size_t i = first; i < last; ++i) {
        const auto& tensor = parameters.tensors()[i];
        if (tensor.far_tie) largest_tie = std::max(largest_tie, tensor.size);
        if (tensor.owner) continue;
        kernels::OptimizerTensor<float> entry{.weights = parameters.master(i).device_data(),
                                              .first_moment = parameters.first_moment(i).device_data(),
                                              .second_moment = parameters.second_moment(i).device_data(),
                                              .gradient = parameters.gradient(i).device_data(),
                                              .size = tensor.size,
                                              .decay = tensor.spec.decays ? options_.optimizer.weight_decay : 0};
        if constexpr (!std::is_same_v<T, float>) entry.copy = parameters.weight(i).device_data();
        table.push_back(entry);
        // What is tied to another stage's counts there.
        if (!tensor.spec.tied) counted.push_back({parameters.gradient(i).device_data(), tensor.size});
      }
      tables_[l].chunks = kernels::lay_out<float>(std::span(table));
      if (table.empty()) continue;
      DUNNOCK_TRY(make_buffer(tables_[l].tensors, table.size(), main_));
      device::upload(tables_[l].tensors.span(), table, main_);
      DUNNOCK_TRY(main_.synchronize());  // For `table` goes.
    }
    if (largest_tie > 0) {
      DUNNOCK_TRY(make_buffer(other_end_, largest_tie, main_));
    }
    norm_chunks_ = kernels::lay_out<float>(std::span(counted));
    DUNNOCK_TRY(make_buffer(norm_table_, counted.size(), main_));
    device::upload(norm_table_.span(), counted, main_);
    std::vector<kernels::ReduceTensor<float>> stages{{stage_norms_.span().device_data(), stage_norms_.size()}};
    stage_norm_chunks_ = kernels::lay_out<float>(std::span(stages));
    DUNNOCK_TRY(make_buffer(stage_norm_table_, stages.size(), main_));
    device::upload(stage_norm_table_.span(), stages, main_);
    DUNNOCK_TRY(make_buffer(norm_workspace_, norm_chunks_ + stage_norm_chunks_, main_));
    return main_.synchronize();
  }

  // ----- operations -------------------------------------------------------------------------------------------------

  Status bind(Program& program) {
    DUNNOCK_CHECK(program.rank.slots <= network_.slots(), "shorter windows need no more slots");
    program.workspaces.resize(program.rank.schedule.lanes.size());
    for (const unsigned lane : program.rank.computing_lanes) {
      if (Status done =
              make_buffer(program.workspaces[lane], std::max<std::size_t>(1, network_.workspace_bytes()), main_);
          !done)
        return done;
    }
    // The first of a chunk in each iteration set gradients, the others add to them.
    std::map<std::pair<unsigned, unsigned>, bool> small_seen;
    std::map<std::pair<unsigned, unsigned>, bool> weights_seen;
    for (std::size_t i = 0; i < program.rank.ops.size(); ++i) {
      const RankOp& op = program.rank.ops[i];
      bool adds = accumulates_apart();
      const std::pair key{op.tag.iteration, op.tag.chunk};
      if (op.tag.part == Part::kOutputGradient) adds = std::exchange(small_seen[key], true) || adds;
      if (op.tag.part == Part::kWeightGradient) adds = std::exchange(weights_seen[key], true) || adds;
      program.graph.add({.name = op.name,
                         .kind = op.kind,
                         .cost_us = op.cost_us,
                         .issue = issue_of(program, op, program.rank.schedule.slots[i].lane, adds)});
    }
    return make_executor(program, false);
  }
  Status make_executor(Program& program, bool as_graph) {
    DUNNOCK_TRY(auto executor,
                schedule::Executor::create(
                    main_.device(), program.graph, program.rank.schedule,
                    {.measures = options_.measures && !as_graph, .as_graph = as_graph, .threads = options_.threads}));
    program.executor.emplace(std::move(executor));
    return {};
  }

  std::function<void(device::Stream&)> issue_of(Program& program, const RankOp& op, unsigned lane, bool adds) {
    const OpTag tag = op.tag;
    const unsigned begin =
        is_pipeline() && !program.plan.chunk_begins.empty() && tag.chunk < program.plan.chunk_begins.size()
            ? program.plan.chunk_begins[tag.chunk]
            : tag.chunk;
    const unsigned end = is_pipeline() ? chunk_end(program.plan, tag.chunk) : tag.chunk + 1;
    const unsigned slot = op.slot;
    const unsigned peer = op.peer;
    switch (tag.part) {
      case Part::kForward:
        return [=, this, &program](device::Stream& stream) {
          const model::MicroBatch<T> batch = batch_of(tag);
          for (unsigned l = begin; l < end; ++l) network_.forward(l, run_of(batch, slot, adds, program, lane, stream));
        };
      case Part::kOutputGradient:
        return [=, this, &program](device::Stream& stream) {
          const model::MicroBatch<T> batch = batch_of(tag);
          for (unsigned l = end; l-- > std::max(begin, 1U);)
            network_.output_gradient(l, run_of(batch, slot, adds, program, lane, stream));
        };
      case Part::kWeightGradient:
        return [=, this, &program](device::Stream& stream) {
          const model::MicroBatch<T> batch = batch_of(tag);
          for (unsigned l = end; l-- > begin;)
            network_.weight_gradient(l, run_of(batch, slot, adds, program, lane, stream));
        };
      case Part::kUpdate: return [=, this](device::Stream& stream) { update(tag.iteration, begin, end, stream); };
      case Part::kNorm:
        return [=, this](device::Stream& stream) {
          if (clips()) norm(tag.iteration, stream);
          if (gate_) stream.run("waits to update", gate_);
        };
      case Part::kAllReduce:
        return [=, this, &program](device::Stream& stream) { all_reduce(program.plan, tag, begin, end, stream); };
      case Part::kSendActivation:
      case Part::kSendGradient: break;
    }
    // The value between two chunks, and its gradient.
    const bool activation = tag.part == Part::kSendActivation;
    const unsigned between = activation ? end - 1 : begin - 1;
    const bool sends = op.role == Role::kSend;
    return [=, this](device::Stream& stream) {
      const device::Span<T> values =
          activation ? network_.value(between, slot, options_.rows) : network_.gradient(between, slot, options_.rows);
      if (sends) {
        ranks_.pipeline->send<T>(values, peer, stream);
      } else {
        ranks_.pipeline->receive<T>(values, peer, stream);
      }
    };
  }

  [[nodiscard]] model::MicroBatch<T> batch_of(const OpTag& tag) const {
    // Plans without micro-batches compute the last.
    const unsigned micro_batch = is_pipeline() ? tag.micro_batch : options_.micro_batches - 1;
    return inputs_.batch(std::size_t{tag.iteration} * options_.micro_batches + micro_batch, options_.rows,
                         gradient_factor());
  }
  [[nodiscard]] model::NetworkRun<T> run_of(const model::MicroBatch<T>& batch, unsigned slot, bool adds,
                                            const Program& program, unsigned lane, device::Stream& stream) const {
    return {.batch = batch,
            .slot = slot,
            .adds = adds,
            .training = true,
            .workspace = program.workspaces[lane].span(),
            .stream = stream};
  }

  void all_reduce(const Plan& plan, const OpTag& tag, unsigned begin, unsigned end, device::Stream& stream) {
    if (size_of(ranks_.data) == 1) return;
    if (is_pipeline()) {
      ranks_.data->all_reduce<float>(network_.parameters().layer_gradients(begin, end - 1), ranks::Reduction::kMean,
                                     stream);
      return;
    }
    const Message& message = plan.messages[tag.message];
    const auto [first, last] = std::ranges::minmax(message.layers);
    const device::Span<float> gradients = network_.parameters().layer_gradients(first, last);
    const std::size_t first_value = message.first_byte / sizeof(float);
    ranks_.data->all_reduce<float>(gradients.subspan(first_value, message.bytes / sizeof(float)),
                                   ranks::Reduction::kMean, stream);
  }

  /// The gradients of tied tensors become the sum of both ends', on both.
  void add_ties(unsigned begin, unsigned end, device::Stream& stream) {
    const model::Parameters<T>& parameters = network_.parameters();
    for (unsigned l = begin; l < end; ++l) {
      const auto [first, last] = parameters.of_layer(l);
      for (std::size_t i = first; i < last; ++i) {
        const auto& tensor = parameters.tensors()[i];
        const device::Span<float> mine = parameters.gradient(i);
        if (tensor.tied)
          kernels::run(
              kernels::AddScaled<float>{.a = mine, .b = parameters.gradient(*tensor.tied), .factor = 1, .y = mine},
              stream);
        if (!tensor.far_tie) continue;
        const device::Span<float> theirs = other_end_.span().subspan(0, tensor.size);
        const unsigned me = rank_of(ranks_.pipeline);
        // GPT's table, which the first layer owns and the last uses.
        const unsigned peer = tensor.spec.tied ? first_stage() : last_stage();
        ranks::Communicator& sums = *ranks_.pipeline_sums;
        if (me < peer) sums.send<float>(mine, peer, stream);
        sums.receive<float>(theirs, peer, stream);
        if (me > peer) sums.send<float>(mine, peer, stream);
        kernels::run(kernels::AddScaled<float>{.a = mine, .b = theirs, .factor = 1, .y = mine}, stream);
      }
    }
  }
  [[nodiscard]] unsigned first_stage() const { return stage_of_layer_.front(); }
  [[nodiscard]] unsigned last_stage() const { return stage_of_layer_.back(); }

  void norm(unsigned iteration, device::Stream& stream) {
    add_ties(0, network_.layers(), stream);
    const device::Span<float> result = norms_.span().subspan(iteration, 1);
    kernels::run(
        kernels::GradientNorm<float>{
            .table = {norm_table_.span(), norm_chunks_}, .norm = result, .workspace = norm_workspace_.span()},
        stream);
    if (size_of(ranks_.pipeline) > 1) {
      ranks_.pipeline_sums->all_gather<float>(result, stage_norms_.span(), stream);
      kernels::run(kernels::GradientNorm<float>{.table = {stage_norm_table_.span(), stage_norm_chunks_},
                                                .norm = result,
                                                .workspace = norm_workspace_.span()},
                   stream);
    }
    kernels::run(
        kernels::ClipFactor{
            .norm = result, .norm_max = options_.optimizer.clip, .factor = factors_.span().subspan(iteration, 1)},
        stream);
  }
  [[nodiscard]] bool clips() const { return options_.optimizer.clip > 0; }

  void update(unsigned iteration, unsigned begin, unsigned end, device::Stream& stream) {
    if (iteration == 0 && before_next_update_) stream.run("waits for the snapshot", before_next_update_);
    if (!clips()) add_ties(begin, end, stream);
    const device::Span<const float> factor = clips() ? factors_.span().subspan(iteration, 1) : device::Span<float>();
    for (unsigned l = begin; l < end; ++l) {
      if (tables_[l].tensors.size() == 0) continue;
      const kernels::OptimizerTable<float> table{tables_[l].tensors.span(), tables_[l].chunks};
      if (options_.optimizer.kind == OptimizerKind::kAdamw) {
        kernels::run(
            kernels::AdamwFromDevice<float>{
                .table = table, .step = adamw_steps_.span().subspan(iteration, 1), .factor = factor},
            stream);
      } else {
        kernels::run(
            kernels::SgdFromDevice<float>{
                .table = table, .step = sgd_steps_.span().subspan(iteration, 1), .factor = factor},
            stream);
      }
    }
  }

  // ----- running ----------------------------------------------------------------------------------------------------

  [[nodiscard]] Status check_input(const StepInput& input, std::size_t rows) const {
    const model::InputSizes& sizes = inputs_.sizes();
    const auto wrong = [](const char* what, std::size_t is, std::size_t wanted) {
      return invalid("a step wants " + std::to_string(wanted) + " " + what + ", not " + std::to_string(is));
    };
    if (input.images.size() != rows * sizes.values)
      return wrong("values of images", input.images.size(), rows * sizes.values);
    if (input.tokens.size() != rows * sizes.tokens) return wrong("tokens", input.tokens.size(), rows * sizes.tokens);
    if (input.targets.size() != rows * sizes.targets)
      return wrong("targets", input.targets.size(), rows * sizes.targets);
    const auto unknown = [&](std::int32_t number) {
      return number < 0 || static_cast<std::size_t>(number) >= sizes.classes;
    };
    if (const auto bad = std::ranges::find_if(input.tokens, unknown); bad != input.tokens.end())
      return invalid("token " + std::to_string(*bad) + " is none of " + std::to_string(sizes.classes));
    if (const auto bad = std::ranges::find_if(input.targets, unknown); bad != input.targets.end())
      return invalid("target " + std::to_string(*bad) + " is none of " + std::to_string(sizes.classes));
    return {};
  }

  static StepInput part_of(const StepInput& input, std::size_t first, std::size_t rows,
                           const model::InputSizes& sizes) {
    const auto part = [&](auto values, std::size_t a_row) { return values.subspan(first * a_row, rows * a_row); };
    return {.images = part(input.images, sizes.values),
            .tokens = part(input.tokens, sizes.tokens),
            .targets = part(input.targets, sizes.targets)};
  }
  [[nodiscard]] StepInput part_of(const StepInput& input, std::size_t first, std::size_t rows) const {
    return part_of(input, first, rows, inputs_.sizes());
  }

  Status run_window(std::span<const StepInput> steps, std::vector<StepResult>& results) {
    const auto count = static_cast<unsigned>(steps.size());
    auto& program = gate_ ? held_program_ : programs_[count];
    if (program == nullptr) {
      DUNNOCK_TRY(auto made, make_program(count, gate_ != nullptr));
      const auto is_gate = [](const RankOp& op) { return op.tag.part == Part::kNorm; };
      DUNNOCK_CHECK(!gate_ || std::ranges::any_of(made->rank.ops, is_gate), "held updates have a gate");
      DUNNOCK_TRY(bind(*made));
      program = std::move(made);
    }
    last_ = program.get();
    if (gate_) {
      // What forward passes change already.
      held_statistics_.clear();
      for (const model::StateTensor& tensor : state()) {
        const float* const values = tensor.values.device_data();
        if (tensor.what == model::StateTensor::What::kStatistic)
          held_statistics_.insert(held_statistics_.end(), values, values + tensor.values.size());
      }
    }
    // Running statistics change in forward passes already, and a recorded graph has no place for it.
    if (before_next_update_ && (options_.as_graph || network_.parameters().state_values().size() > 0))
      main_.run("waits for the snapshot", std::exchange(before_next_update_, nullptr));
    // Kernels make their plans in the first run, which a graph that is recorded can't. It is made before anything is
    // copied from memory that goes if that fails.
    if (options_.as_graph && program->runs == 1) {
      DUNNOCK_TRY(make_executor(*program, true));
    }
    std::vector<kernels::AdamwStep> adamw_steps;
    std::vector<kernels::SgdStep> sgd_steps;
    const OptimizerOptions& optimizer = options_.optimizer;
    for (unsigned t = 0; t < count; ++t) {
      inputs_.upload(std::size_t{t} * options_.micro_batches, step_rows(), steps[t], main_);
      adamw_steps.push_back({.learning_rate = steps[t].learning_rate,
                             .beta1 = optimizer.beta1,
                             .beta2 = optimizer.beta2,
                             .epsilon = optimizer.epsilon,
                             .step = steps_done_ + t + 1});
      sgd_steps.push_back({steps[t].learning_rate, optimizer.momentum, optimizer.nesterov});
    }
    device::upload(adamw_steps_.span().subspan(0, count), adamw_steps, main_);
    device::upload(sgd_steps_.span().subspan(0, count), sgd_steps, main_);
    if (accumulates_apart()) accumulate();
    program->executor->run(main_);
    ++program->runs;
    before_next_update_ = nullptr;
    statistics_differ_ = size_of(ranks_.data) > 1 && network_.parameters().state_values().size() > 0;
    steps_done_ += count;
    return collect(count, *program, results);
  }

  /// All micro-batches but the last, one after the other.
  void accumulate() {
    for (unsigned m = 0; m + 1 < options_.micro_batches; ++m) {
      const model::MicroBatch<T> batch = inputs_.batch(m, options_.rows, gradient_factor());
      const model::NetworkRun<T> run{.batch = batch,
                                     .slot = 0,
                                     .adds = m > 0,
                                     .training = true,
                                     .workspace = main_workspace_.span(),
                                     .stream = main_};
      for (unsigned l = 0; l < network_.layers(); ++l) network_.forward(l, run);
      for (unsigned l = network_.layers(); l-- > 0;) {
        if (l > 0) network_.output_gradient(l, run);
        network_.weight_gradient(l, run);
      }
    }
  }

  Status collect(unsigned count, Program& program, std::vector<StepResult>& results) {
    const bool has_losses = network_.held(network_.layers() - 1);
    if (has_losses) {
      for (unsigned t = 0; t < count; ++t) {
        const std::size_t first = std::size_t{t} * options_.micro_batches;
        kernels::run(kernels::CrossEntropyMean{.losses = inputs_.losses(first, step_rows()),
                                               .targets = inputs_.targets(first, step_rows()),
                                               .ignore_index = -100,
                                               .mean = means_.span().subspan(t, 1)},
                     main_);
      }
    }
    if (size_of(ranks_.data) > 1) ranks_.data->all_reduce<float>(means_.span(), ranks::Reduction::kMean, main_);
    if (size_of(ranks_.pipeline) > 1) ranks_.pipeline->broadcast<float>(means_.span(), last_stage(), main_);
    std::vector<float> means(count);
    std::vector<float> norms(count);
    device::download(std::span(means), means_.span().subspan(0, count), main_);
    if (clips()) device::download(std::span(norms), norms_.span().subspan(0, count), main_);
    const Status done = main_.synchronize();
    DUNNOCK_TRY(program.executor->synchronize());
    if (!done) return done;
    for (unsigned t = 0; t < count; ++t) {
      StepResult result{.loss = means[t]};
      if (clips()) result.gradient_norm = norms[t];
      results.push_back(result);
    }
    return {};
  }

  /// In evaluation, on the first slot; values of other stages are sent and received where they are due.
  void forward_all(std::size_t rows) {
    const model::MicroBatch<T> batch = evaluation_.batch(0, rows, 1);
    const model::NetworkRun<T> run{.batch = batch,
                                   .slot = 0,
                                   .adds = false,
                                   .training = false,
                                   .workspace = main_workspace_.span(),
                                   .stream = main_};
    for (unsigned l = 0; l < network_.layers(); ++l) {
      if (network_.held(l)) network_.forward(l, run);
      if (l + 1 == network_.layers() || stage_of(l) == stage_of(l + 1)) continue;
      if (network_.held(l)) ranks_.pipeline->send<T>(network_.value(l, 0, rows), stage_of(l + 1), main_);
      if (network_.held(l + 1)) ranks_.pipeline->receive<T>(network_.value(l, 0, rows), stage_of(l), main_);
    }
  }
  [[nodiscard]] unsigned stage_of(unsigned layer) const { return is_pipeline() ? stage_of_layer_[layer] : 0; }

  Status evaluate_some(const StepInput& input, std::size_t rows, Evaluation& sum) {
    evaluation_.upload(0, rows, input, main_);
    forward_all(rows);
    const model::InputSizes& sizes = inputs_.sizes();
    const std::size_t targets = rows * sizes.targets;
    std::vector<float> losses(targets);
    std::vector<std::int32_t> guesses(targets);
    double results[2] = {};
    if (network_.held(network_.layers() - 1)) {
      kernels::run(kernels::ArgmaxRows<T>{.x = network_.logits(0).subspan(0, targets * sizes.classes),
                                          .indices = guesses_.span().subspan(0, targets),
                                          .values = {},
                                          .shape = {.rows = targets, .columns = sizes.classes}},
                   main_);
      device::download(std::span(losses), evaluation_.losses(0, rows), main_);
      device::download(std::span(guesses), guesses_.span().subspan(0, targets), main_);
      DUNNOCK_TRY(main_.synchronize());
      results[0] = std::accumulate(losses.begin(), losses.end(), 0.0);
      for (std::size_t i = 0; i < targets; ++i) results[1] += guesses[i] == input.targets[i] ? 1 : 0;
    }
    if (size_of(ranks_.pipeline) > 1) {
      const auto bytes = std::as_writable_bytes(std::span(results));
      const device::Span<std::byte> on_device(reinterpret_cast<std::byte*>(results_.span().device_data()),
                                              bytes.size());
      device::upload(on_device, bytes, main_);
      ranks_.pipeline->broadcast<std::byte>(on_device, last_stage(), main_);
      device::download(bytes, on_device, main_);
    }
    DUNNOCK_TRY(main_.synchronize());
    sum.loss += results[0];
    sum.correct += static_cast<std::size_t>(results[1]);
    sum.targets += targets;
    return {};
  }

  TrainerOptions options_;
  Ranks ranks_;
  Family family_ = Family::kOneDevice;
  device::Stream main_;
  Step costs_;
  model::Network<T> network_;
  NetworkInputs<T> inputs_;      // [step of the window][micro-batch]
  NetworkInputs<T> evaluation_;  // one micro-batch
  device::Buffer<std::byte> main_workspace_;
  device::Buffer<kernels::AdamwStep> adamw_steps_;  // (window), as what follows
  device::Buffer<kernels::SgdStep> sgd_steps_;
  device::Buffer<float> means_;
  device::Buffer<float> norms_;
  device::Buffer<float> factors_;
  device::Buffer<float> stage_norms_;  // (stages)
  device::Buffer<double> results_;
  device::Buffer<std::int32_t> guesses_;  // (rows * targets of a row)
  std::vector<Table> tables_;             // [layer]
  std::vector<unsigned> stage_of_layer_;  // Of a pipeline.
  device::Buffer<kernels::ReduceTensor<float>> norm_table_;
  std::size_t norm_chunks_ = 0;
  device::Buffer<kernels::ReduceTensor<float>> stage_norm_table_;
  std::size_t stage_norm_chunks_ = 0;
  device::Buffer<float> norm_workspace_;
  device::Buffer<float> other_end_;                        // Of a tie to another stage: its gradient.
  std::map<unsigned, std::unique_ptr<Program>> programs_;  // by steps
  std::unique_ptr<Program> held_program_;                  // Of one step, whose updates are held.
  std::function<Status()> gate_;
  mutable std::vector<float> held_statistics_;
  const Program* last_ = nullptr;
  std::uint64_t steps_done_ = 0;
  std::function<Status()> before_next_update_;
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
  if (options.rows == 0) return invalid("a micro-batch has rows");
  if (options.micro_batches == 0) return invalid("a step has a micro-batch");
  if (options.window == 0) return invalid("a window has a step");
  if (size_of(ranks.pipeline) > 1 && ranks.pipeline_sums == nullptr)
    return invalid("stages of a pipeline need a communicator for what they add up");
  if (options.optimizer.nesterov && options.optimizer.momentum == 0) return invalid("Nesterov's way needs a momentum");
  DUNNOCK_TRY(check(options.model));
  return options.type == model::DataType::kF32 ? create_of<float>(device, options, ranks)
                                               : create_of<device::Bf16>(device, options, ranks);
}

}  // namespace dunnock::training
