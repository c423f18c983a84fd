// StepProgram: a plan for some steps, bound to the kernels of this rank's layers. One small class per part of a step.
#pragma once

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "dunnock/base/check.hpp"
#include "dunnock/kernels/elementwise.hpp"
#include "dunnock/schedule/executor.hpp"
#include "network_inputs.hpp"
#include "place.hpp"
#include "rank_program.hpp"
#include "updater.hpp"

namespace dunnock::training {

/// What may stop updates for a while; empty functions are not called. See Trainer.
struct UpdateHooks {
  std::function<Status()> before_next_update;
  std::function<Status()> gate;
};

/// `wait`, called by the first of several callers; the others wait for its answer.
[[nodiscard]] inline std::function<Status()> called_once(std::function<Status()> wait) {
  struct Once {
    std::once_flag flag;
    std::function<Status()> wait;
    Status answer;
  };
  auto once = std::make_shared<Once>();
  once->wait = std::move(wait);
  return [once] {
    std::call_once(once->flag, [&once] { once->answer = once->wait(); });
    return once->answer;
  };
}

/// What the operations of a step work on.
template <class T>
struct StepParts {
  const Place& place;
  model::Network<T>& network;
  const NetworkInputs<T>& inputs;
  Updater<T>& updater;
  const UpdateHooks& hooks;
};

/// A plan, and the part of it that this rank runs.
struct StepProgram {
  Plan plan;
  RankProgram rank;
  schedule::TaskGraph graph;
  std::vector<device::Buffer<std::byte>> workspaces;  // [lane]; of those that compute
  std::optional<schedule::Executor> executor;
  unsigned runs = 0;
};

/// One operation: a part of a step, for the layers begin .. end - 1, which are a chunk of the plan.
template <class T>
struct Operation {
  StepParts<T> parts;
  const StepProgram* program;
  OpTag tag;
  unsigned begin, end;
  unsigned slot;
  unsigned lane;
  bool adds;      // To gradients of micro-batches before.
  unsigned peer;  // Of a transfer.

  [[nodiscard]] model::MicroBatch<T> batch() const {
    const TrainerOptions& options = parts.place.options;
    // Plans without micro-batches compute the last.
    const unsigned micro_batch = parts.place.is_pipeline() ? tag.micro_batch : options.micro_batches - 1;
    return parts.inputs.batch(std::size_t{tag.iteration} * options.micro_batches + micro_batch, options.rows,
                              parts.place.gradient_factor());
  }
  [[nodiscard]] model::NetworkRun<T> run(const model::MicroBatch<T>& batch, device::Stream& stream) const {
    return {.batch = batch,
            .slot = slot,
            .adds = adds,
            .training = true,
            .workspace = program->workspaces[lane].span(),
            .stream = stream};
  }
};

template <class T>
struct Forward : Operation<T> {
  void operator()(device::Stream& stream) const {
    const model::MicroBatch<T> batch = this->batch();
    for (unsigned l = this->begin; l < this->end; ++l) this->parts.network.forward(l, this->run(batch, stream));
  }
};

template <class T>
struct OutputGradient : Operation<T> {
  void operator()(device::Stream& stream) const {
    const model::MicroBatch<T> batch = this->batch();
    for (unsigned l = this->end; l-- > std::max(this->begin, 1U);)
      this->parts.network.output_gradient(l, this->run(batch, stream));
  }
};

/// dW of a layer. A layer that the policy passes over has gradients of zero, which norms and sums may count. They are
/// zeroed for each micro-batch, because the output gradient of some layers writes a part of them (norms, biases); it
/// always comes before dW then (NetworkLayer::weights_behind_output()).
template <class T>
void train_weights(model::Network<T>& network, const Updater<T>& updater, unsigned layer, unsigned iteration,
                   const model::NetworkRun<T>& run) {
  if (updater.trains(layer, iteration)) {
    network.weight_gradient(layer, run);
  } else {
    kernels::run(kernels::Fill<float>{.y = network.parameters().layer_gradients(layer, layer), .value = 0}, run.stream);
  }
}

template <class T>
struct WeightGradient : Operation<T> {
  void operator()(device::Stream& stream) const {
    const model::MicroBatch<T> batch = this->batch();
    for (unsigned l = this->end; l-- > this->begin;)
      train_weights(this->parts.network, this->parts.updater, l, this->tag.iteration, this->run(batch, stream));
  }
};

template <class T>
struct Update : Operation<T> {
  void operator()(device::Stream& stream) const {
    const auto& wait = this->parts.hooks.before_next_update;
    if (this->tag.iteration == 0 && wait) stream.run("waits for the snapshot", wait);
    this->parts.updater.update(this->tag.iteration, this->begin, this->end, stream);
  }
};

template <class T>
struct Norm : Operation<T> {
  void operator()(device::Stream& stream) const {
    if (this->parts.place.clips()) this->parts.updater.norm(this->tag.iteration, stream);
    if (this->parts.hooks.gate) stream.run("waits to update", this->parts.hooks.gate);
  }
};

template <class T>
struct AllReduce : Operation<T> {
  void operator()(device::Stream& stream) const {
    const Place& place = this->parts.place;
    if (place.data_ranks() == 1) return;
    const model::Parameters<T>& parameters = this->parts.network.parameters();
    if (place.is_pipeline()) {
      place.ranks.data->template all_reduce<float>(parameters.layer_gradients(this->begin, this->end - 1),
                                                   ranks::Reduction::kMean, stream);
      return;
    }
    const Message& message = this->program->plan.messages[this->tag.message];
    const auto [first, last] = std::ranges::minmax(message.layers);
    const device::Span<float> gradients = parameters.layer_gradients(first, last);
    const std::size_t first_value = message.first_byte / sizeof(float);
    place.ranks.data->template all_reduce<float>(gradients.subspan(first_value, message.bytes / sizeof(float)),
                                                 ranks::Reduction::kMean, stream);
  }
};

/// A value between two chunks, or its gradient: sent, or received.
template <class T>
struct Transfer : Operation<T> {
  bool sends;

  void operator()(device::Stream& stream) const {
    const bool activation = this->tag.part == Part::kSendActivation;
    const unsigned between = activation ? this->end - 1 : this->begin - 1;
    const std::size_t rows = this->parts.place.options.rows;
    const device::Span<T> values = activation ? this->parts.network.value(between, this->slot, rows)
                                              : this->parts.network.gradient(between, this->slot, rows);
    ranks::Communicator& pipeline = *this->parts.place.ranks.pipeline;
    if (sends) {
      pipeline.send<T>(values, this->peer, stream);
    } else {
      pipeline.receive<T>(values, this->peer, stream);
    }
  }
};

template <class T>
[[nodiscard]] std::function<void(device::Stream&)> issue_of(const Operation<T>& operation, Role role) {
  switch (operation.tag.part) {
    case Part::kForward: return Forward<T>{operation};
    case Part::kOutputGradient: return OutputGradient<T>{operation};
    case Part::kWeightGradient: return WeightGradient<T>{operation};
    case Part::kUpdate: return Update<T>{operation};
    case Part::kNorm: return Norm<T>{operation};
    case Part::kAllReduce: return AllReduce<T>{operation};
    case Part::kSendActivation:
    case Part::kSendGradient: break;
  }
  return Transfer<T>{operation, role == Role::kSend};
}

/// One past the last layer of a chunk of a pipeline's plan.
[[nodiscard]] inline unsigned chunk_end(const Plan& plan, std::size_t chunk, unsigned layers) {
  return chunk + 1 < plan.chunk_begins.size() ? plan.chunk_begins[chunk + 1] : layers;
}

/// Errors: those of Executor.
[[nodiscard]] inline Status make_executor(StepProgram& program, const TrainerOptions& options, bool as_graph,
                                          device::Device device) {
  DUNNOCK_TRY(auto executor,
              schedule::Executor::create(
                  device, program.graph, program.rank.schedule,
                  {.measures = options.measures && !as_graph, .as_graph = as_graph, .threads = options.threads}));
  program.executor.emplace(std::move(executor));
  return {};
}

/// Binds each operation of the rank to its kernels, and makes the executor. The program must stay where it is.
template <class T>
[[nodiscard]] Status bind(StepProgram& program, const StepParts<T>& parts, device::Stream& main) {
  DUNNOCK_CHECK(program.rank.slots <= parts.network.slots(), "shorter windows need no more slots");
  program.workspaces.resize(program.rank.schedule.lanes.size());
  for (const unsigned lane : program.rank.computing_lanes) {
    DUNNOCK_TRY(make_buffer(program.workspaces[lane], std::max<std::size_t>(1, parts.network.workspace_bytes()), main));
  }
  const bool pipeline = parts.place.is_pipeline();
  const std::vector<unsigned>& begins = program.plan.chunk_begins;
  // In each iteration, the first micro-batch of a chunk sets gradients, and the others add to them.
  std::map<std::pair<unsigned, unsigned>, bool> output_seen;
  std::map<std::pair<unsigned, unsigned>, bool> weights_seen;
  for (std::size_t i = 0; i < program.rank.ops.size(); ++i) {
    const RankOp& op = program.rank.ops[i];
    bool adds = parts.place.accumulates_apart();
    const std::pair key{op.tag.iteration, op.tag.chunk};
    if (op.tag.part == Part::kOutputGradient) adds = std::exchange(output_seen[key], true) || adds;
    if (op.tag.part == Part::kWeightGradient) adds = std::exchange(weights_seen[key], true) || adds;
    const Operation<T> operation{
        .parts = parts,
        .program = &program,
        .tag = op.tag,
        .begin = pipeline && op.tag.chunk < begins.size() ? begins[op.tag.chunk] : op.tag.chunk,
        .end = pipeline ? chunk_end(program.plan, op.tag.chunk, parts.network.layers()) : op.tag.chunk + 1,
        .slot = op.slot,
        .lane = program.rank.schedule.slots[i].lane,
        .adds = adds,
        .peer = op.peer};
    program.graph.add({.name = op.name, .kind = op.kind, .cost_us = op.cost_us, .issue = issue_of(operation, op.role)});
  }
  return make_executor(program, parts.place.options, false, main.device());
}

}  // namespace dunnock::training
