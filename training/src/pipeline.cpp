// Pipelines: which layers lie where, which device computes what in which order (pipeline_orders.hpp), and the graph of
// it all.
//
// Conventional schedules send a gradient upstream after both gradients of the stage; the others after dO. In the
// graph that is one more wait, so all schedules with the same chunks are schedules of one graph.
#include <algorithm>
#include <array>
#include <string>
#include <utility>
#include <vector>

#include "families.hpp"
#include "names.hpp"
#include "pipeline_orders.hpp"

namespace dunnock::training {
namespace {

using schedule::OpId;
using schedule::OpKind;
using schedule::ValueId;

/// Sums over a chunk's layers.
struct ChunkSums {
  std::string name;
  double update_us = 0;
  std::uint64_t output_bytes = 0;
  std::uint64_t weight_bytes = 0;
  std::uint64_t gradient_bytes = 0;
  /// Other chunks of the device that use its weights: its update adds their gradients. (Those of other devices come by
  /// messages of the updates themselves.)
  std::vector<unsigned> used_by{};
};

struct Stages {
  Pipe pipe;
  std::vector<ChunkSums> sums;
  std::vector<unsigned> begins;
};

unsigned device_of(Deal deal, unsigned chunk, unsigned devices) {
  switch (deal) {
    case Deal::kBlocks:
    case Deal::kRoundRobin: return chunk % devices;
    case Deal::kThereAndBack: return chunk < devices ? chunk : 2 * devices - 1 - chunk;
  }
  return 0;
}

Stages stages_of(const PipelineSchedule& of, const Step& step, const PlanOptions& options, unsigned chunks) {
  Stages stages;
  stages.pipe.devices = options.devices;
  stages.pipe.micro_batches = options.micro_batches;
  stages.pipe.splits = of.splits;
  stages.begins = balanced_parts(step, chunks);
  for (unsigned c = 0; c < chunks; ++c) {
    Chunk chunk{.device = device_of(of.deal, c, options.devices)};
    ChunkSums sums{.name = std::to_string(c + 1)};
    const std::size_t end = c + 1 < chunks ? stages.begins[c + 1] : step.layers.size();
    for (std::size_t i = stages.begins[c]; i < end; ++i) {
      const Layer& layer = step.layers[i];
      chunk.forward_us += layer.forward.us;
      chunk.backward_us += layer.output_gradient.us;
      chunk.weights_us += layer.weight_gradient.us;
      chunk.kept_bytes += layer.kept_bytes;
      chunk.kept_for_weights_bytes += layer.kept_for_weights_bytes;
      sums.update_us += layer.update.us;
      sums.weight_bytes += layer.weight_bytes;
      sums.gradient_bytes += layer.gradient_bytes;
      sums.output_bytes = layer.output_bytes;
    }
    stages.pipe.chunks.push_back(chunk);
    stages.sums.push_back(sums);
  }
  auto& made = stages.pipe.chunks;
  const auto chunk_of = [&](std::size_t layer) {
    return static_cast<unsigned>(std::ranges::upper_bound(stages.begins, layer) - stages.begins.begin() - 1);
  };
  for (std::size_t i = 0; i < step.layers.size(); ++i) {
    if (!step.layers[i].tied_to) continue;
    const unsigned owner = chunk_of(*step.layers[i].tied_to);
    const unsigned user = chunk_of(i);
    if (user != owner && made[user].device == made[owner].device) stages.sums[owner].used_by.push_back(user);
  }
  for (unsigned c = 0; c + 1 < chunks; ++c) {
    if (made[c].device == made[c + 1].device) continue;
    made[c].send_activation_us = options.link.send_us(stages.sums[c].output_bytes);
    made[c + 1].send_gradient_us = made[c].send_activation_us;
  }
  return stages;
}

/// The graph, and the slots as the devices' orders come to pass.
class Maker {
 public:
  Maker(const Stages& stages, const PlanOptions& options) : stages_(stages), options_(options) {
    const unsigned chunks = static_cast<unsigned>(stages.pipe.chunks.size());
    for (unsigned d = 0; d < options.devices; ++d) {
      const std::string name = named("device ", std::to_string(d));
      const bool alone = options.data_parallel < 2;
      lanes_of_.push_back(static_cast<unsigned>(plan_.schedule.lanes.size()));
      plan_.schedule.lanes.push_back({name, d, 1});
      plan_.schedule.lanes.push_back({name + " from before", d, 0});
      plan_.schedule.lanes.push_back({name + " from behind", d, 0});
      if (!alone) plan_.schedule.lanes.push_back({name + " sums", d, 0});
    }
    for (unsigned c = 0; c < chunks; ++c)
      weights_.push_back(
          value(named("w", stages.sums[c].name), stages.sums[c].weight_bytes + stages.sums[c].gradient_bytes));
    updated_.resize(chunks);
    for (unsigned t = 0; t < options.iterations; ++t) add_iteration(t);
  }

  Plan follow(const Orders& orders) {
    Pipe all = stages_.pipe;
    // Later iterations are more micro-batches to the walk; updates lie between them.
    struct Item {
      OpId op;
      Action action;
      unsigned iteration;
      bool update;
    };
    std::vector<std::vector<Item>> todo(options_.devices);
    for (unsigned d = 0; d < options_.devices; ++d) {
      for (unsigned t = 0; t < options_.iterations; ++t) {
        for (const Action& action : orders[d]) todo[d].push_back({op(t, action), action, t, false});
        for (unsigned c = 0; c < all.chunks.size(); ++c) {
          if (all.chunks[c].device == d) todo[d].push_back({updates_[t][c], {Move::kWeights, c, 0}, t, true});
        }
      }
    }
    end_us_.assign(plan_.graph.ops().size(), kNotYet);
    std::vector<std::size_t> next(options_.devices);
    std::vector<double> free_us(options_.devices);
    lane_free_us_.assign(plan_.schedule.lanes.size(), 0);
    std::vector<double> start(options_.devices);
    const auto look = [&](unsigned d) {
      start[d] = kNotYet;
      if (next[d] < todo[d].size()) start[d] = std::max(free_us[d], ready_us(todo[d][next[d]].op));
    };
    for (unsigned d = 0; d < options_.devices; ++d) look(d);
    while (true) {
      const auto first = std::ranges::min_element(start);
      if (*first == kNotYet) break;
      const auto d = static_cast<unsigned>(first - start.begin());
      const Item& item = todo[d][next[d]++];
      free_us[d] = end_us_[item.op] = start[d] + plan_.graph.op(item.op).cost_us;
      plan_.schedule.slots.push_back({item.op, lanes_of_[d], {}});
      if (!item.update) send(item.iteration, item.action);
      look(d);
      for (const std::size_t chunk : {item.action.chunk - 1UL, item.action.chunk + 1UL}) {
        if (chunk < all.chunks.size()) look(all.chunks[chunk].device);
      }
    }
    plan_.schedule.memory_limit_bytes = options_.memory_limit_bytes;
    schedule::add_waits(plan_.graph, plan_.schedule);
    plan_.devices = options_.devices;
    plan_.iterations = options_.iterations;
    plan_.chunk_begins = stages_.begins;
    for (const Chunk& chunk : all.chunks) plan_.chunk_devices.push_back(chunk.device);
    plan_.launch_us = options_.launch_us;
    return std::move(plan_);
  }

 private:
  static constexpr double kNotYet = std::numeric_limits<double>::infinity();
  /// Transfers ask for nothing of the device; a demand is above 0.
  static constexpr double kNoDemand = 1e-12;

  ValueId value(const std::string& name, std::uint64_t bytes) { return plan_.graph.add_value(name, bytes); }

  OpId add(schedule::Op op, const OpTag& tag) {
    if (options_.iterations > 1) op.name += named(".", std::to_string(tag.iteration + 1));
    plan_.tags.push_back(tag);
    return plan_.graph.add(std::move(op));
  }

  void add_iteration(unsigned t) {
    const unsigned chunks = static_cast<unsigned>(stages_.pipe.chunks.size());
    const unsigned m = options_.micro_batches;
    const auto table = [&] { return std::vector<std::vector<OpId>>(chunks, std::vector<OpId>(m, schedule::kNoOp)); };
    moves_.push_back({table(), table(), table()});
    activations_.push_back(table());
    gradients_.push_back(table());
    std::vector<std::vector<ValueId>> accumulated(chunks);
    for (unsigned j = 0; j < m; ++j) {
      std::vector<ValueId> kept(chunks);
      std::vector<ValueId> kept_for_weights(chunks);
      ValueId passing = 0;  // Down to the next chunk, and then up again.
      const auto of = [&](unsigned c) { return stages_.sums[c].name + named("m", std::to_string(j + 1)); };
      for (unsigned c = 0; c < chunks; ++c) {
        const Chunk& chunk = stages_.pipe.chunks[c];
        kept[c] = value(named("k", of(c)), chunk.kept_bytes - chunk.kept_for_weights_bytes);
        kept_for_weights[c] = value(named("x", of(c)), chunk.kept_for_weights_bytes);
        schedule::Op op{.name = named("F", of(c)),
                        .kind = OpKind::kForward,
                        .inputs = {weights_[c]},
                        .outputs = {kept[c], kept_for_weights[c]},
                        .cost_us = chunk.forward_us};
        if (c > 0) op.inputs.push_back(passing);
        if (t > 0) op.inputs.push_back(updated_[c]);
        passing = value(named("y", of(c)), stages_.sums[c].output_bytes);
        op.outputs.push_back(passing);
        moves_[t][0][c][j] = add(std::move(op), {Part::kForward, t, chunk.device, c, j, 0});
        if (c + 1 < chunks && stages_.pipe.chunks[c + 1].device != chunk.device)
          activations_[t][c][j] = add_send(named("Y", of(c)), Part::kSendActivation, t, c, c + 1, j,
                                           chunk.send_activation_us, stages_.sums[c].output_bytes, passing);
      }
      for (unsigned c = chunks; c-- > 0;) {
        const Chunk& chunk = stages_.pipe.chunks[c];
        const ValueId inner = value(named("i", of(c)), 0);
        schedule::Op op{.name = named("B", of(c)),
                        .kind = OpKind::kOutputGradient,
                        .inputs = {weights_[c], passing, kept[c], kept_for_weights[c]},
                        .outputs = {inner},
                        .cost_us = chunk.backward_us};
        if (c > 0) {
          passing = value(named("d", of(c - 1)), stages_.sums[c - 1].output_bytes);
          op.outputs.push_back(passing);
        }
        moves_[t][1][c][j] = add(std::move(op), {Part::kOutputGradient, t, chunk.device, c, j, 0});
        accumulated[c].push_back(value(named("g", of(c)), 0));
        moves_[t][2][c][j] = add({.name = named("W", of(c)),
                                  .kind = OpKind::kWeightGradient,
                                  .inputs = {inner, kept_for_weights[c]},
                                  .outputs = {accumulated[c].back()},
                                  .cost_us = chunk.weights_us},
                                 {Part::kWeightGradient, t, chunk.device, c, j, 0});
        if (c > 0 && stages_.pipe.chunks[c - 1].device != chunk.device)
          gradients_[t][c][j] = add_send(named("D", of(c)), Part::kSendGradient, t, c, c - 1, j, chunk.send_gradient_us,
                                         stages_.sums[c - 1].output_bytes, passing);
      }
    }
    updates_.emplace_back();
    sums_.emplace_back();
    std::vector<std::vector<ValueId>> gradients = accumulated;  // Of each chunk, as its update reads them.
    if (options_.data_parallel > 1) {
      for (unsigned c = 0; c < chunks; ++c) {
        const ValueId sum = value(named("s", stages_.sums[c].name), 0);
        sums_[t].push_back(
            add({.name = named("S", stages_.sums[c].name),
                 .kind = OpKind::kCommunication,
                 .inputs = accumulated[c],
                 .outputs = {sum},
                 .cost_us = options_.link.all_reduce_us(stages_.sums[c].gradient_bytes, options_.data_parallel),
                 .demand = kNoDemand},
                {Part::kAllReduce, t, stages_.pipe.chunks[c].device, c, 0, 0}));
        gradients[c] = {sum};
      }
    }
    for (unsigned c = 0; c < chunks; ++c) {
      schedule::Op update{.name = named("U", stages_.sums[c].name),
                          .kind = OpKind::kUpdate,
                          .inputs = gradients[c],
                          .cost_us = stages_.sums[c].update_us};
      for (const unsigned user : stages_.sums[c].used_by)
        update.inputs.insert(update.inputs.end(), gradients[user].begin(), gradients[user].end());
      updated_[c] = value(named("u", stages_.sums[c].name), 0);
      update.outputs = {updated_[c]};
      updates_[t].push_back(add(std::move(update), {Part::kUpdate, t, stages_.pipe.chunks[c].device, c, 0, 0}));
    }
  }

  /// What arrives takes the place of `passing`.
  OpId add_send(const std::string& name, Part part, unsigned t, unsigned from, unsigned to, unsigned j, double us,
                std::uint64_t bytes, ValueId& passing) {
    const ValueId arrived = value(named("at", name), bytes);
    const OpId id = add({.name = name,
                         .kind = OpKind::kCommunication,
                         .inputs = {passing},
                         .outputs = {arrived},
                         .cost_us = us,
                         .demand = kNoDemand},
                        {part, t, stages_.pipe.chunks[to].device, from, j, 0});
    passing = arrived;
    return id;
  }

  [[nodiscard]] OpId op(unsigned t, const Action& action) const {
    return moves_[t][static_cast<std::size_t>(action.move)][action.chunk][action.micro_batch];
  }

  [[nodiscard]] double ready_us(OpId id) const {
    double us = 0;
    for (const OpId need : plan_.graph.needs(id)) us = std::max(us, end_us_[need]);
    return us;
  }

  void send(unsigned t, const Action& action) {
    OpId id = schedule::kNoOp;
    std::vector<OpId> waits;
    if (action.move == Move::kForward) id = activations_[t][action.chunk][action.micro_batch];
    if (action.move == (stages_.pipe.splits ? Move::kBackward : Move::kWeights))
      id = gradients_[t][action.chunk][action.micro_batch];
    if (id != schedule::kNoOp) {
      // In conventional schedules, a gradient is sent after the W of its stage.
      if (action.move == Move::kWeights) waits.push_back(op(t, action));
      const unsigned sender = stages_.pipe.chunks[action.chunk].device;
      const unsigned receiver = plan_.tags[id].device;
      const bool before = sender == (receiver + options_.devices - 1) % options_.devices;
      const unsigned lane = lanes_of_[receiver] + (before ? 1 : 2);
      const double start = std::max(lane_free_us_[lane], end_us_[op(t, action)]);
      lane_free_us_[lane] = end_us_[id] = start + plan_.graph.op(id).cost_us;
      plan_.schedule.slots.push_back({id, lane, std::move(waits)});
    }
    if (options_.data_parallel > 1 && action.move == Move::kWeights && finished(t, action.chunk)) {
      const OpId sum = sums_[t][action.chunk];
      const unsigned lane = lanes_of_[stages_.pipe.chunks[action.chunk].device] + 3;
      lane_free_us_[lane] = end_us_[sum] =
          std::max(lane_free_us_[lane], end_us_[op(t, action)]) + plan_.graph.op(sum).cost_us;
      plan_.schedule.slots.push_back({sum, lane, {}});
    }
  }
  [[nodiscard]] bool finished(unsigned t, unsigned chunk) const {
    return std::ranges::all_of(moves_[t][2][chunk], [this](OpId w) { return end_us_[w] != kNotYet; });
  }

  const Stages& stages_;
  const PlanOptions& options_;
  Plan plan_;
  std::vector<unsigned> lanes_of_;  // [device]: the first of its lanes.
  std::vector<ValueId> weights_;
  std::vector<ValueId> updated_;
  std::vector<std::array<std::vector<std::vector<OpId>>, 3>> moves_;  // [iteration][move][chunk][micro-batch]
  std::vector<std::vector<std::vector<OpId>>> activations_;           // Transfers, [iteration][chunk][micro-batch].
  std::vector<std::vector<std::vector<OpId>>> gradients_;
  std::vector<std::vector<OpId>> updates_;  // [iteration][chunk]
  std::vector<std::vector<OpId>> sums_;
  std::vector<double> end_us_;
  std::vector<double> lane_free_us_;
};

/// What the device with the largest weights has left for what forwards keep.
std::uint64_t kept_bytes_max(const Stages& stages, std::uint64_t memory_limit_bytes) {
  std::vector<std::uint64_t> fixed(stages.pipe.devices);
  for (unsigned c = 0; c < stages.pipe.chunks.size(); ++c) {
    const ChunkSums& sums = stages.sums[c];
    // What arrives, leaves, and is passed on; twice, for one is there while the next arrives.
    const std::uint64_t passing = 2 * (sums.output_bytes + (c > 0 ? stages.sums[c - 1].output_bytes : 0));
    fixed[stages.pipe.chunks[c].device] += sums.weight_bytes + sums.gradient_bytes + passing;
  }
  const std::uint64_t largest = *std::ranges::max_element(fixed);
  return memory_limit_bytes - std::min(memory_limit_bytes, largest);
}

/// Runs of layers per device; 0: there are fewer layers than devices.
unsigned chunks_per_device(const PipelineSchedule& of, const Step& step, const PlanOptions& options) {
  if (of.deal == Deal::kRoundRobin && options.chunks != 0) return options.chunks;
  const auto layers = static_cast<unsigned>(step.layers.size());
  return of.chunks_per_device == kOnePerLayer ? layers / options.devices : of.chunks_per_device;
}

}  // namespace

Result<Plan> plan_pipeline(const PipelineSchedule& of, const Step& step, const PlanOptions& options) {
  const unsigned per_device = chunks_per_device(of, step, options);
  if (std::uint64_t{options.devices} * std::max(1U, per_device) > step.layers.size()) {
    return make_error(ErrorCode::kInvalidArgument, std::to_string(step.layers.size()) +
                                                       " layers can't be divided among " +
                                                       std::to_string(options.devices) + " devices with " +
                                                       std::to_string(std::max(1U, per_device)) + " or more each");
  }
  Stages stages = stages_of(of, step, options, options.devices * per_device);
  stages.pipe.kept_bytes_max = kept_bytes_max(stages, options.memory_limit_bytes);
  const std::optional<Drawn> drawn = of.draw(stages.pipe);
  if (!drawn) {
    return make_error(ErrorCode::kNoSpace, "the activations of the forward passes do not fit in " +
                                               std::to_string(options.memory_limit_bytes) + " bytes per device");
  }
  Plan plan = Maker(stages, options).follow(drawn->orders);
  plan.choice = drawn->choice;
  return plan;
}

}  // namespace dunnock::training
