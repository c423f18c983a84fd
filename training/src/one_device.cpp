// One device: conventional order, and multi-stream out-of-order computation.
//
// The paper (out-of-order backprop, EuroSys 2022, its single-GPU part) puts dW kernels beside regions of the main
// stream, by profiled solo and co-run times, under a memory bound, and delays some into the next forward pass. What we
// chose where it leaves things open, or where we could not read it:
//
// - Main lane: the forward pass and the dO chain, in order. A region is a run of main-lane operations of one block of
// the
//   step (a dense block, a stage of a ResNet), cut further into pieces of a share of the iteration.
// - Co-run time of a region and a dW: by the simulator's own model of a shared device (Op::demand), so that what is
//   predicted here is what is simulated. A runtime puts its measured times into the step's costs and demands.
// - Regions are filled one after the other in the order of time, each with the ready dW that wins most per microsecond
// of
//   its own, until the region's time is used or nothing wins. Greedy; no look at later regions.
// - The memory bound: gradients of outputs and inputs that unplaced dW hold. When a region ends with more than a bound
//   pending, the oldest are placed there although nothing is won.
// - A dW that wins nowhere stays in the main lane, where it is in the conventional order.
// - Beside the regions, a second way is tried: the sub lane is never idle while a dW is ready, and takes that first
//   whose layer's next forward pass comes first; a share of the dW stays in the main lane.
// - Size of the pieces, bound and delay are searched with the simulator; the conventional order is one of the
// candidates,
//   so the result is never slower than it, in the simulator.
#include <algorithm>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "families.hpp"
#include "layer_graph.hpp"

namespace dunnock::training {
namespace {

constexpr unsigned kMain = 0;
constexpr unsigned kSub = 1;

/// An operation of the main lane: dO of the last layer to the second, then the next iteration's forward pass.
struct MainOp {
  Cost cost;
  unsigned block = 0;
  bool forward = false;
};

/// Operations first .. last - 1 of the main lane.
struct Region {
  std::size_t first = 0;
  std::size_t last = 0;
};

struct Knobs {
  double piece = 1;    // A region has at most this share of the main lane's time.
  double pending = 1;  // dW that wait may hold this share of what all of them would.
  bool delays = false;
};

/// For each layer, the region beside which its dW runs; kInMain: in the main lane.
constexpr std::size_t kInMain = std::numeric_limits<std::size_t>::max();
struct Placement {
  std::vector<Region> regions;
  std::vector<std::size_t> region_of;         // [layer]
  std::vector<std::vector<unsigned>> before;  // [operation of the main lane]: layers whose dW are issued before it.
};

std::vector<MainOp> main_lane(const Step& step) {
  std::vector<MainOp> ops;
  for (std::size_t i = step.layers.size(); i-- > 1;)
    ops.push_back({step.layers[i].output_gradient, step.layers[i].block, false});
  for (const Layer& layer : step.layers) ops.push_back({layer.forward, layer.block, true});
  return ops;
}

std::vector<Region> regions_of(const std::vector<MainOp>& ops, double piece) {
  double whole_us = 0;
  for (const MainOp& op : ops) whole_us += op.cost.us;
  std::vector<Region> regions;
  double us = 0;
  for (std::size_t i = 0; i < ops.size(); ++i) {
    const bool cut = i == 0 || ops[i].block != ops[i - 1].block || ops[i].forward != ops[i - 1].forward ||
                     us + ops[i].cost.us > piece * whole_us;
    if (cut) {
      regions.push_back({i, i});
      us = 0;
    }
    us += ops[i].cost.us;
    regions.back().last = i + 1;
  }
  return regions;
}

/// Where the main lane is within a region while the sub lane runs beside it.
struct Place {
  std::size_t op = 0;
  double done_us = 0;  // Of the operation, alone on its device.
};

/// Lets `side` run concurrently with the main lane from `place` to the region's end, and alone after it.
struct CoRun {
  Place place;
  double won_us = 0;  // Less than one after the other.
};
CoRun co_run(const std::vector<MainOp>& ops, const Region& region, Place place, const Cost& side) {
  double left_us = side.us;
  double elapsed_us = 0;
  double main_us = 0;
  while (left_us > 0 && place.op < region.last) {
    const Cost& main = ops[place.op].cost;
    const double slowdown = std::max(1.0, main.demand + side.demand);
    const double main_left_us = main.us - place.done_us;
    const double step_us = std::min(left_us, main_left_us);
    elapsed_us += step_us * slowdown;
    main_us += step_us;
    left_us -= step_us;
    place.done_us += step_us;
    if (place.done_us >= main.us) place = {place.op + 1, 0};
  }
  return {place, main_us + side.us - (elapsed_us + left_us)};
}

Placement place(const Step& step, const Knobs& knobs) {
  const std::vector<MainOp> ops = main_lane(step);
  const auto layers = static_cast<unsigned>(step.layers.size());
  Placement placement{regions_of(ops, knobs.piece), std::vector<std::size_t>(layers, kInMain), {}};
  placement.before.resize(ops.size());

  const auto held_bytes = [&](unsigned layer) {
    return step.layers[layer].output_bytes + step.layers[layer].kept_for_weights_bytes;
  };
  double all_bytes = 0;
  for (unsigned i = 0; i < layers; ++i) all_bytes += has_weights(step.layers[i]) ? held_bytes(i) : 0;
  // dW of layer i needs dO of layer i + 1, which is number layers - 2 - i of the main lane, or its own, the next.
  const auto ready = [&](unsigned layer, std::size_t op) {
    const bool behind = layer > 0 && step.layers[layer].weights_behind_output;
    return op + layer + (behind ? 0 : 1) >= layers;
  };
  // Its update comes before the next forward pass of the layer, or of the one that it is tied to.
  const auto in_time = [&](unsigned layer, const Region& region) {
    return region.last <= layers - 1 + step.awaited_by(layer);
  };

  for (std::size_t r = 0; r < placement.regions.size(); ++r) {
    const Region& region = placement.regions[r];
    if (ops[region.first].forward && !knobs.delays) break;
    Place at{region.first, 0};
    const auto put = [&](unsigned layer, const Place& next) {
      placement.region_of[layer] = r;
      placement.before[std::min(at.op, region.last - 1)].push_back(layer);
      at = next;
    };
    const auto candidates = [&](std::size_t op) {
      std::vector<unsigned> some;
      for (unsigned i = layers; i-- > 0;) {
        if (has_weights(step.layers[i]) && placement.region_of[i] == kInMain && ready(i, op) && in_time(i, region))
          some.push_back(i);
      }
      return some;
    };
    while (at.op < region.last) {
      double best_share = 0.02;  // Less than this is not worth a wait.
      std::optional<unsigned> best;
      CoRun best_run;
      for (const unsigned i : candidates(at.op)) {
        const Cost& cost = step.layers[i].weight_gradient;
        if (cost.us <= 0) continue;
        const CoRun run = co_run(ops, region, at, cost);
        if (run.won_us / cost.us <= best_share) continue;
        best_share = run.won_us / cost.us;
        best = i;
        best_run = run;
      }
      if (!best) break;
      put(*best, best_run.place);
    }
    double pending = 0;
    for (const unsigned i : candidates(region.last)) pending += static_cast<double>(held_bytes(i));
    for (const unsigned i : candidates(region.first)) {  // The oldest first.
      if (pending <= knobs.pending * all_bytes) break;
      pending -= static_cast<double>(held_bytes(i));
      put(i, at);
    }
  }
  return placement;
}

/// dW of which this share, by time, stays in the main lane; the others as soon as the sub lane is free.
Placement place_at_once(const Step& step, double main_share, bool delays) {
  const std::vector<MainOp> ops = main_lane(step);
  const auto layers = static_cast<unsigned>(step.layers.size());
  Placement placement{{}, std::vector<std::size_t>(layers, kInMain), {}};
  placement.before.resize(ops.size());
  for (std::size_t i = 0; i < ops.size(); ++i) placement.regions.push_back({i, i + 1});

  std::vector<unsigned> waiting;  // Not ready, or not placed.
  double owed_us = 0;             // To the main lane.
  std::vector<double> done_us(layers);
  for (unsigned i = layers; i-- > 0;) {
    if (!has_weights(step.layers[i])) continue;
    owed_us += main_share * step.layers[i].weight_gradient.us;
    if (owed_us >= step.layers[i].weight_gradient.us && main_share > 0) {
      owed_us -= step.layers[i].weight_gradient.us;
    } else {
      waiting.push_back(i);
    }
  }
  const auto ready_from = [&](unsigned layer) {  // After this many operations of the main lane.
    const bool behind = layer > 0 && step.layers[layer].weights_behind_output;
    return std::min<std::size_t>(layers - 1, layers - 1 - layer + (behind ? 1 : 0));
  };
  double now_us = 0;
  double sub_us = 0;
  for (std::size_t i = 0; i < ops.size(); ++i) {
    if (ops[i].forward && !delays) break;
    const auto put = [&](unsigned layer) {
      placement.region_of[layer] = i;
      placement.before[i].push_back(layer);
      sub_us = std::max(sub_us, now_us) + step.layers[layer].weight_gradient.us;
      done_us[step.awaited_by(layer)] = std::max(done_us[step.awaited_by(layer)], sub_us);
      std::erase(waiting, layer);
    };
    const auto next = [&](auto&& may) {
      std::optional<unsigned> first;
      for (const unsigned layer : waiting) {
        if (ready_from(layer) > i || !may(layer)) continue;
        if (!first || step.awaited_by(layer) < step.awaited_by(*first)) first = layer;
      }
      return first;
    };
    if (ops[i].forward) {
      const auto forward = static_cast<unsigned>(i - (layers - 1));
      // Its layer's gradients, and what else it waits for, must be there.
      while (const auto due = next([&](unsigned layer) { return step.awaited_by(layer) <= forward; })) put(*due);
      now_us = std::max(now_us, done_us[forward]);
    }
    while (std::max(sub_us, now_us) < now_us + ops[i].cost.us) {
      const auto any = next([](unsigned) { return true; });
      if (!any) break;
      put(*any);
    }
    now_us += ops[i].cost.us;
  }
  return placement;
}

/// Writes the slots of all iterations.
class Writer {
 public:
  Writer(const Step& step, const LayerGraph& made, schedule::Schedule& schedule)
      : step_(step), made_(made), schedule_(schedule) {}

  void conventional() {
    for (std::size_t t = 0; t < made_.ops.size(); ++t) {
      const std::vector<LayerOps>& ops = made_.ops[t];
      for (const LayerOps& layer : ops) put(layer.forward, kMain);
      for (std::size_t i = ops.size(); i-- > 0;) {
        put(ops[i].output_gradient, kMain);
        put(ops[i].weight_gradient, kMain);
      }
      put_all_updates(t);
    }
  }

  void placed(const Placement& placement) {
    const std::size_t layers = made_.ops.front().size();
    for (const LayerOps& layer : made_.ops.front()) put(layer.forward, kMain);
    for (std::size_t t = 0; t < made_.ops.size(); ++t) {
      const std::vector<LayerOps>& ops = made_.ops[t];
      progress_.assign(layers, {});
      progress_[0].output_gradient = true;  // It has none.
      const auto put_in_main = [&](std::size_t layer, bool behind_output) {
        const bool behind = layer > 0 && step_.layers[layer].weights_behind_output;
        if (placement.region_of[layer] == kInMain && behind == behind_output)
          put_weight_gradient(ops, layer, kMain, {});
      };
      put_in_main(layers - 1, false);
      if (layers == 1 && step_.clips) put_all_updates(t);
      for (std::size_t i = 0; i < placement.before.size(); ++i) {
        // Not earlier than it was placed: beside this operation, and not beside one before it.
        const std::vector<schedule::OpId> begin = last_of_main_;
        for (const unsigned layer : placement.before[i]) put_weight_gradient(ops, layer, kSub, begin);
        if (i >= layers - 1) {
          if (t + 1 < made_.ops.size()) put(made_.ops[t + 1][i - (layers - 1)].forward, kMain);
          continue;
        }
        const std::size_t layer = layers - 1 - i;
        put(ops[layer].output_gradient, kMain);
        progress_[layer].output_gradient = true;
        update_if_ready(ops, layer);
        put_in_main(layer, true);
        put_in_main(layer - 1, false);
        // None is delayed, for the norm needs all.
        if (layer == 1 && step_.clips) put_all_updates(t);
      }
    }
  }

 private:
  struct Progress {
    bool output_gradient = false;
    bool weight_gradient = false;
    unsigned lane = kMain;
    bool updated = false;
  };

  void put_all_updates(std::size_t t) {
    if (step_.clips) put(made_.norms[t], kMain);
    for (std::size_t i = made_.ops[t].size(); i-- > 0;) put(made_.ops[t][i].update, kMain);
  }

  void put(schedule::OpId op, unsigned lane, std::vector<schedule::OpId> waits = {}) {
    if (op == schedule::kNoOp) return;
    schedule_.slots.push_back({op, lane, std::move(waits)});
    if (lane == kMain) last_of_main_ = {op};
  }
  void put_weight_gradient(const std::vector<LayerOps>& ops, std::size_t layer, unsigned lane,
                           const std::vector<schedule::OpId>& waits) {
    if (ops[layer].weight_gradient == schedule::kNoOp) return;
    put(ops[layer].weight_gradient, lane, waits);
    progress_[layer].weight_gradient = true;
    progress_[layer].lane = lane;
    update_if_ready(ops, layer);
    if (step_.layers[layer].tied_to) update_if_ready(ops, *step_.layers[layer].tied_to);
  }
  /// In the lane of its dW, also after the dO of its layer, which reads the weights, and the dW of what is tied to it.
  void update_if_ready(const std::vector<LayerOps>& ops, std::size_t layer) {
    if (step_.clips) return;  // The update comes after all of them.
    Progress& progress = progress_[layer];
    if (!progress.output_gradient || !progress.weight_gradient || progress.updated) return;
    for (std::size_t i = layer + 1; i < step_.layers.size(); ++i) {
      if (step_.layers[i].tied_to == layer && !progress_[i].weight_gradient) return;
    }
    progress.updated = true;
    put(ops[layer].update, progress.lane);
  }

  const Step& step_;

  const LayerGraph& made_;
  schedule::Schedule& schedule_;
  std::vector<schedule::OpId> last_of_main_;
  std::vector<Progress> progress_;  // Of the layers, in this iteration.
};

/// One way to place dW.
struct Way {
  std::optional<Knobs> regions;
  double main_share = 0;  // At once.
  bool delays = false;
};

Plan plan_of(const Step& step, const PlanOptions& options, const std::optional<Way>& way) {
  LayerGraph made = make_layer_graph(step, options.iterations, {}, 1, {});
  Plan plan;
  plan.schedule.memory_limit_bytes = options.memory_limit_bytes;
  plan.schedule.lanes.push_back({"main", 0, 1});
  Writer writer(step, made, plan.schedule);
  if (way) {
    plan.schedule.lanes.push_back({"sub", 0, 0});
    const Placement placement =
        way->regions ? place(step, *way->regions) : place_at_once(step, way->main_share, way->delays);
    writer.placed(placement);
    std::size_t beside = 0;
    std::size_t delayed = 0;
    for (const std::size_t region : placement.region_of) {
      if (region == kInMain) continue;
      ++beside;
      delayed += placement.regions[region].first + 1 >= step.layers.size() ? 1 : 0;
    }
    plan.choice = way->regions ? std::to_string(placement.regions.size()) + " regions, " : "at once, ";
    plan.choice += std::to_string(beside) + " dW beside, " + std::to_string(delayed) + " of them delayed";
  } else {
    writer.conventional();
    plan.choice = "conventional order";
  }
  schedule::add_waits(made.graph, plan.schedule);
  plan.graph = std::move(made.graph);
  plan.tags = std::move(made.tags);
  plan.iterations = options.iterations;
  plan.launch_us = options.launch_us;
  return plan;
}

}  // namespace

Result<Plan> plan_one_device(OneDevice kind, const Step& step, const PlanOptions& options) {
  if (kind == OneDevice::kConventional) {
    Plan plan = plan_of(step, options, std::nullopt);
    plan.choice.clear();
    return plan;
  }
  // Searched in the steady state, whatever was asked for: a delayed dW is paid for in the next iteration. So plans of
  // any number of iterations make the same choice, and a shorter window of the trainer needs no more than a whole one.
  PlanOptions searched = options;
  searched.iterations = 3;
  std::vector<std::optional<Way>> candidates{std::nullopt};
  for (const bool delays : {false, true}) {
    if (delays && step.clips) continue;
    for (const double piece : {1.0, 0.1, 0.03}) {
      for (const double pending : {1.0, 0.5, 0.25, 0.1}) candidates.push_back(Way{Knobs{piece, pending, delays}});
    }
    for (const double main_share : {0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7})
      candidates.push_back(Way{std::nullopt, main_share, delays});
  }
  Best best;
  for (std::size_t i = 0; i < candidates.size(); ++i) best.offer(plan_of(step, searched, candidates[i]), i);
  const auto found = best.number();
  if (!found || options.iterations == searched.iterations) return best.take();
  return plan_of(step, options, candidates[*found]);
}

}  // namespace dunnock::training
