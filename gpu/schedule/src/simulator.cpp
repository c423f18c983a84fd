#include "dunnock/schedule/simulator.hpp"

#include <algorithm>
#include <limits>
#include <vector>

namespace dunnock::schedule {
namespace {

constexpr std::size_t kNone = std::numeric_limits<std::size_t>::max();

/// What a run has come to.
class Run {
 public:
  Run(const TaskGraph& graph, const Schedule& schedule, const SimulatorOptions& options)
      : graph_(graph), schedule_(schedule), lanes_(schedule.lanes.size()), done_(graph.ops().size()) {
    unsigned ranks = 0;
    for (const Lane& lane : schedule.lanes) ranks = std::max(ranks, lane.rank + 1);
    std::vector<double> issued(ranks);
    rank_of_.resize(graph.ops().size());
    for (std::size_t i = 0; i < schedule.slots.size(); ++i) {
      const Slot& slot = schedule.slots[i];
      const unsigned rank = schedule.lanes[slot.lane].rank;
      rank_of_[slot.op] = rank;
      lanes_[slot.lane].slots.push_back(i);
      issued_.push_back(issued[rank] += options.launch_us);
      timeline_.intervals.push_back({slot.op, slot.lane, 0, 0});
    }
    start_memory(ranks);
    timeline_.simulated = true;
  }

  Timeline finish() {
    while (begin_what_can() || running_ != 0) advance();
    return std::move(timeline_);
  }

 private:
  struct LaneState {
    std::vector<std::size_t> slots;
    std::size_t next = 0;
    std::size_t running = kNone;  // a slot
    double left_us = 0;           // alone on the device
  };

  void start_memory(unsigned ranks) {
    now_bytes_.resize(ranks);
    readers_left_.resize(graph_.values().size());
    for (ValueId v = 0; v < graph_.values().size(); ++v) {
      const Value& value = graph_.value(v);
      readers_left_[v] = value.readers.size();
      if (value.source != kNoOp) continue;
      std::vector<bool> there(ranks);
      for (const OpId reader : value.readers) {
        if (!there[rank_of_[reader]]) now_bytes_[rank_of_[reader]] += value.bytes;
        there[rank_of_[reader]] = true;
      }
    }
    timeline_.peak_bytes = now_bytes_;
  }

  /// Starts every operation that may start now. True: one of those that wait only for their issue is yet to come.
  bool begin_what_can() {
    bool later = false;
    next_issue_us_ = std::numeric_limits<double>::max();
    for (LaneState& lane : lanes_) {
      if (lane.running != kNone || lane.next == lane.slots.size()) continue;
      const std::size_t slot = lane.slots[lane.next];
      const auto& waits = schedule_.slots[slot].waits;
      if (!std::ranges::all_of(waits, [this](OpId op) { return done_[op]; })) continue;
      if (issued_[slot] > now_us_) {
        next_issue_us_ = std::min(next_issue_us_, issued_[slot]);
        later = true;
        continue;
      }
      begin(lane, slot);
    }
    return later;
  }

  void begin(LaneState& lane, std::size_t slot) {
    const OpId id = schedule_.slots[slot].op;
    const Op& op = graph_.op(id);
    lane.running = slot;
    lane.left_us = op.cost_us;
    ++lane.next;
    ++running_;
    timeline_.intervals[slot].start_us = now_us_;
    std::uint64_t& now = now_bytes_[rank_of_[id]];
    now += op.workspace_bytes;
    for (const ValueId output : op.outputs) now += graph_.value(output).bytes;
    std::uint64_t& peak = timeline_.peak_bytes[rank_of_[id]];
    peak = std::max(peak, now);
  }

  void end(LaneState& lane) {
    const std::size_t slot = lane.running;
    const OpId id = schedule_.slots[slot].op;
    const Op& op = graph_.op(id);
    timeline_.intervals[slot].end_us = now_us_;
    lane.running = kNone;
    --running_;
    done_[id] = true;
    now_bytes_[rank_of_[id]] -= op.workspace_bytes;
    const auto free_if_unread = [&](ValueId v) {
      const Value& value = graph_.value(v);
      if (readers_left_[v] == 0 && !value.kept && value.source != kNoOp)
        now_bytes_[rank_of_[value.source]] -= value.bytes;
    };
    for (const ValueId input : op.inputs) {
      --readers_left_[input];
      free_if_unread(input);
    }
    for (const ValueId output : op.outputs) free_if_unread(output);
  }

  /// To the next end of an operation, or the next issue that a lane waits for.
  void advance() {
    std::vector<double> asked(now_bytes_.size());
    for (const LaneState& lane : lanes_) {
      if (lane.running == kNone) continue;
      const OpId op = schedule_.slots[lane.running].op;
      asked[rank_of_[op]] += graph_.op(op).demand;
    }
    const auto slowdown = [&](const LaneState& lane) {
      return std::max(1.0, asked[rank_of_[schedule_.slots[lane.running].op]]);
    };
    double step_us = next_issue_us_ - now_us_;
    for (const LaneState& lane : lanes_) {
      if (lane.running != kNone) step_us = std::min(step_us, lane.left_us * slowdown(lane));
    }
    // Who ends is decided before time moves: subtraction alone would leave some a rounding error before their end.
    std::vector<bool> ends(lanes_.size());
    for (std::size_t i = 0; i < lanes_.size(); ++i)
      ends[i] = lanes_[i].running != kNone && lanes_[i].left_us * slowdown(lanes_[i]) <= step_us * (1 + 1e-12);
    for (LaneState& lane : lanes_) {
      if (lane.running != kNone) lane.left_us = std::max(0.0, lane.left_us - step_us / slowdown(lane));
    }
    now_us_ += step_us;
    for (std::size_t i = 0; i < lanes_.size(); ++i) {
      if (ends[i]) end(lanes_[i]);
    }
  }

  const TaskGraph& graph_;
  const Schedule& schedule_;
  std::vector<LaneState> lanes_;
  std::vector<bool> done_;
  std::vector<unsigned> rank_of_;
  std::vector<double> issued_;  // of a slot, us
  std::vector<std::uint64_t> now_bytes_;
  std::vector<std::size_t> readers_left_;
  std::size_t running_ = 0;
  double now_us_ = 0;
  double next_issue_us_ = 0;
  Timeline timeline_;
};

}  // namespace

Result<Timeline> simulate(const TaskGraph& graph, const Schedule& schedule, const SimulatorOptions& options) {
  DUNNOCK_TRY(validate(graph, schedule));
  return Run(graph, schedule, options).finish();
}

}  // namespace dunnock::schedule
