#include "dunnock/schedule/schedule.hpp"

#include <algorithm>
#include <optional>
#include <utility>

#include "dunnock/base/check.hpp"

namespace dunnock::schedule {
namespace {

/// What has happened before, as far as lanes and waits promise: operations done of each lane.
using Clock = std::vector<std::size_t>;

void merge(Clock& into, const Clock& other) {
  for (std::size_t lane = 0; lane < into.size(); ++lane) into[lane] = std::max(into[lane], other[lane]);
}

/// Walks the slots of a schedule in order and knows what comes before what.
class Walk {
 public:
  Walk(const TaskGraph& graph, const Schedule& schedule)
      : lanes_(schedule.lanes.size(), Clock(schedule.lanes.size())),
        after_(graph.ops().size()),
        lane_of_(graph.ops().size()),
        place_(graph.ops().size()) {}

  [[nodiscard]] bool seen(OpId op) const { return !after_[op].empty(); }
  [[nodiscard]] bool is_before(OpId op, unsigned lane) const { return lanes_[lane][lane_of_[op]] > place_[op]; }
  [[nodiscard]] unsigned lane_of(OpId op) const { return lane_of_[op]; }
  void wait(unsigned lane, OpId op) { merge(lanes_[lane], after_[op]); }
  void run(unsigned lane, OpId op) {
    place_[op] = lanes_[lane][lane]++;
    lane_of_[op] = lane;
    after_[op] = lanes_[lane];
  }

 private:
  std::vector<Clock> lanes_;
  std::vector<Clock> after_;  // Of an operation that has run: what is done when it is.
  std::vector<unsigned> lane_of_;
  std::vector<std::size_t> place_;
};

Status invalid(const Schedule& schedule, std::string what) {
  return make_error(ErrorCode::kInvalidArgument, "schedule '" + schedule.name + "': " + std::move(what));
}

}  // namespace

Result<Schedule> sequential(const TaskGraph& graph, std::string name) {
  Schedule schedule;
  schedule.name = std::move(name);
  schedule.lanes.push_back({"main", 0, 0});
  const auto order = graph.any_order();
  if (!order) return make_error(ErrorCode::kInvalidArgument, "the graph has a cycle");
  for (const OpId op : *order) schedule.slots.push_back({op, 0, {}});
  return schedule;
}

void add_waits(const TaskGraph& graph, Schedule& schedule) {
  Walk walk(graph, schedule);
  std::vector<std::size_t> slot_of(graph.ops().size());
  for (std::size_t i = 0; i < schedule.slots.size(); ++i) {
    Slot& slot = schedule.slots[i];
    for (const OpId op : slot.waits) walk.wait(slot.lane, op);
    std::vector<OpId> needs = graph.needs(slot.op);
    // The latest first: what it has waited for itself need not be waited for again.
    std::ranges::sort(needs, [&](OpId a, OpId b) { return slot_of[a] > slot_of[b]; });
    for (const OpId op : needs) {
      DUNNOCK_CHECK(walk.seen(op), "the order of the slots keeps the dependencies");
      if (walk.is_before(op, slot.lane)) continue;
      slot.waits.push_back(op);
      walk.wait(slot.lane, op);
    }
    walk.run(slot.lane, slot.op);
    slot_of[slot.op] = i;
  }
}

std::vector<std::uint64_t> peak_bytes(const TaskGraph& graph, const Schedule& schedule) {
  unsigned ranks = 0;
  for (const Lane& lane : schedule.lanes) ranks = std::max(ranks, lane.rank + 1);
  std::vector<unsigned> rank_of(graph.ops().size());
  std::vector<std::size_t> readers_left(graph.values().size());
  for (const Slot& slot : schedule.slots) rank_of[slot.op] = schedule.lanes[slot.lane].rank;
  std::vector<std::uint64_t> now(ranks);
  for (ValueId v = 0; v < graph.values().size(); ++v) {
    const Value& value = graph.value(v);
    readers_left[v] = value.readers.size();
    if (value.source != kNoOp) continue;
    std::vector<bool> there(ranks);
    for (const OpId reader : value.readers) {
      if (!there[rank_of[reader]]) now[rank_of[reader]] += value.bytes;
      there[rank_of[reader]] = true;
    }
  }
  std::vector<std::uint64_t> peak = now;
  for (const Slot& slot : schedule.slots) {
    const Op& op = graph.op(slot.op);
    const unsigned rank = rank_of[slot.op];
    now[rank] += op.workspace_bytes;
    for (const ValueId output : op.outputs) now[rank] += graph.value(output).bytes;
    peak[rank] = std::max(peak[rank], now[rank]);
    now[rank] -= op.workspace_bytes;
    const auto free_if_unread = [&](ValueId v) {
      const Value& value = graph.value(v);
      if (readers_left[v] == 0 && !value.kept && value.source != kNoOp) now[rank_of[value.source]] -= value.bytes;
    };
    for (const ValueId input : op.inputs) {
      --readers_left[input];
      free_if_unread(input);
    }
    for (const ValueId output : op.outputs) free_if_unread(output);
  }
  return peak;
}

Status validate(const TaskGraph& graph, const Schedule& schedule) {
  const auto name = [&graph](OpId op) { return "'" + graph.op(op).name + "'"; };
  Walk walk(graph, schedule);
  for (const Slot& slot : schedule.slots) {
    if (slot.op >= graph.ops().size())
      return invalid(schedule, "operation " + std::to_string(slot.op) + " is not in the graph");
    if (slot.lane >= schedule.lanes.size())
      return invalid(schedule, name(slot.op) + " is in lane " + std::to_string(slot.lane) +
                                   ", but the number of lanes is " + std::to_string(schedule.lanes.size()));
    if (walk.seen(slot.op)) return invalid(schedule, name(slot.op) + " occurs twice");
    for (const OpId op : slot.waits) {
      if (op >= graph.ops().size() || !walk.seen(op))
        return invalid(schedule, name(slot.op) + " waits for " +
                                     (op < graph.ops().size() ? name(op) : "operation " + std::to_string(op)) +
                                     ", which is not issued earlier");
      walk.wait(slot.lane, op);
    }
    for (const OpId op : graph.needs(slot.op)) {
      if (!walk.seen(op))
        return invalid(schedule, name(slot.op) + " needs " + name(op) + ", which is issued later or never");
      if (!walk.is_before(op, slot.lane))
        return invalid(schedule, name(slot.op) + " in lane '" + schedule.lanes[slot.lane].name + "' needs " + name(op) +
                                     " of lane '" + schedule.lanes[walk.lane_of(op)].name + "' without a wait for it");
    }
    walk.run(slot.lane, slot.op);
  }
  for (OpId op = 0; op < graph.ops().size(); ++op) {
    if (!walk.seen(op)) return invalid(schedule, name(op) + " is not in the schedule");
  }
  const auto peaks = peak_bytes(graph, schedule);
  for (std::size_t rank = 0; rank < peaks.size(); ++rank) {
    if (peaks[rank] > schedule.memory_limit_bytes)
      return make_error(ErrorCode::kNoSpace, "schedule '" + schedule.name + "' needs " + std::to_string(peaks[rank]) +
                                                 " bytes on rank " + std::to_string(rank) + "; the limit is " +
                                                 std::to_string(schedule.memory_limit_bytes));
  }
  return {};
}

std::string to_string(const TaskGraph& graph, const Schedule& schedule) {
  std::string text;
  for (unsigned lane = 0; lane < schedule.lanes.size(); ++lane) {
    text += (lane == 0 ? "" : " | ") + schedule.lanes[lane].name + ":";
    for (const Slot& slot : schedule.slots) {
      if (slot.lane != lane) continue;
      text += " " + graph.op(slot.op).name;
      for (std::size_t i = 0; i < slot.waits.size(); ++i) text += (i == 0 ? "<" : ",") + graph.op(slot.waits[i]).name;
    }
  }
  return text;
}

}  // namespace dunnock::schedule
