#include "rank_program.hpp"

#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <utility>

namespace dunnock::training {
namespace {

/// A micro-batch of an iteration.
using Passenger = std::pair<unsigned, unsigned>;

bool is_transfer(Part part) { return part == Part::kSendActivation || part == Part::kSendGradient; }
bool has_passenger(Part part) {
  return is_transfer(part) || part == Part::kForward || part == Part::kOutputGradient || part == Part::kWeightGradient;
}

class Maker {
 public:
  Maker(const Plan& plan, unsigned device, bool clips)
      : plan_(plan), device_(device), clips_(clips && plan.family == Family::kPipeline) {}

  RankProgram take() {
    program_.schedule.name = plan_.schedule.name;
    lane_of_.assign(plan_.schedule.lanes.size(), kNone);
    receive_or_compute_.assign(plan_.graph.ops().size(), schedule::kNoOp);
    for (const schedule::Slot& slot : plan_.schedule.slots) {
      const OpTag& tag = plan_.tags[slot.op];
      if (is_transfer(tag.part)) {
        const unsigned sender = plan_.chunk_devices[tag.chunk];
        if (sender == device_) add(slot, Role::kSend, tag.device, send_lane(slot.lane));
        if (tag.device == device_) add(slot, Role::kReceive, sender, lane(slot.lane));
        continue;
      }
      // The link of a data-parallel device is a rank of its own to the simulator.
      const bool pipeline = plan_.family == Family::kPipeline;
      if (pipeline && plan_.schedule.lanes[slot.lane].rank != device_) continue;
      if (clips_ && tag.part == Part::kUpdate && normed_ != tag.iteration) add_norm(slot, tag.iteration);
      add(slot, Role::kCompute, device_, lane(slot.lane));
    }
    give_slots();
    return std::move(program_);
  }

 private:
  static constexpr unsigned kNone = ~0U;

  unsigned lane(unsigned of_plan) {
    if (lane_of_[of_plan] == kNone) lane_of_[of_plan] = add_lane(plan_.schedule.lanes[of_plan]);
    return lane_of_[of_plan];
  }
  /// The order of the receiver's lane is the order of the messages.
  unsigned send_lane(unsigned receivers_lane) {
    const auto found = send_lane_of_.find(receivers_lane);
    if (found != send_lane_of_.end()) return found->second;
    schedule::Lane lane = plan_.schedule.lanes[receivers_lane];
    lane.name = "to " + lane.name;
    return send_lane_of_[receivers_lane] = add_lane(lane);
  }
  unsigned add_lane(schedule::Lane lane) {
    lane.rank = 0;
    program_.schedule.lanes.push_back(std::move(lane));
    return static_cast<unsigned>(program_.schedule.lanes.size() - 1);
  }

  void add(const schedule::Slot& slot, Role role, unsigned peer, unsigned lane) {
    const auto id = static_cast<schedule::OpId>(program_.ops.size());
    const schedule::Op& op = plan_.graph.op(slot.op);
    std::string name = op.name;
    if (role == Role::kSend) name += ">";
    schedule::Slot mine{id, lane, {}};
    for (const schedule::OpId wait : slot.waits) {
      // What the other end waits for, it waits for.
      if (role != Role::kReceive && receive_or_compute_[wait] != schedule::kNoOp)
        mine.waits.push_back(receive_or_compute_[wait]);
    }
    program_.ops.push_back({plan_.tags[slot.op], role, peer, 0, std::move(name), op.kind, op.cost_us});
    program_.schedule.slots.push_back(std::move(mine));
    if (role != Role::kSend) receive_or_compute_[slot.op] = id;
    const Part part = plan_.tags[slot.op].part;
    if (part == Part::kAllReduce) sums_.push_back(id);
    if (role == Role::kCompute && part != Part::kAllReduce &&
        std::ranges::find(program_.computing_lanes, lane) == program_.computing_lanes.end())
      program_.computing_lanes.push_back(lane);
  }

  void add_norm(const schedule::Slot& before, unsigned iteration) {
    normed_ = iteration;
    const auto id = static_cast<schedule::OpId>(program_.ops.size());
    program_.ops.push_back({.tag = {.part = Part::kNorm, .iteration = iteration, .device = device_}, .name = "N"});
    // In the lane of the updates, behind all W of it.
    program_.schedule.slots.push_back({id, lane(before.lane), std::exchange(sums_, {})});
  }

  void give_slots() {
    auto& ops = program_.ops;
    std::map<Passenger, std::size_t> last;
    for (std::size_t i = 0; i < ops.size(); ++i) {
      if (has_passenger(ops[i].tag.part)) last[{ops[i].tag.iteration, ops[i].tag.micro_batch}] = i;
    }
    const bool side_by_side = plan_.family == Family::kOneDevice && program_.computing_lanes.size() > 1;
    const std::size_t slots_min = side_by_side ? std::min(2U, plan_.iterations) : 1;

    struct Used {
      std::map<unsigned, schedule::OpId> last_of_lane;  // Of the passenger before.
    };
    std::vector<Used> slots;
    std::vector<unsigned> free;  // The longest free first.
    struct Ride {
      unsigned slot;
      std::map<unsigned, schedule::OpId> before;
      std::map<unsigned, schedule::OpId> mine;
    };
    std::map<Passenger, Ride> rides;
    for (std::size_t i = 0; i < ops.size(); ++i) {
      if (!has_passenger(ops[i].tag.part)) continue;
      const Passenger passenger{ops[i].tag.iteration, ops[i].tag.micro_batch};
      auto ride = rides.find(passenger);
      if (ride == rides.end()) {
        if (free.empty() || slots.size() < slots_min) {
          slots.emplace_back();
          free.insert(free.begin(), static_cast<unsigned>(slots.size() - 1));
        }
        const unsigned slot = free.front();
        free.erase(free.begin());
        ride = rides.emplace(passenger, Ride{slot, slots[slot].last_of_lane, {}}).first;
      }
      ops[i].slot = ride->second.slot;
      const unsigned lane = program_.schedule.slots[i].lane;
      if (!ride->second.mine.contains(lane)) {
        for (const auto& [other, op] : ride->second.before) {
          auto& waits = program_.schedule.slots[i].waits;
          if (other != lane && std::ranges::find(waits, op) == waits.end()) waits.push_back(op);
        }
      }
      ride->second.mine[lane] = static_cast<schedule::OpId>(i);
      if (last[passenger] != i) continue;
      slots[ride->second.slot].last_of_lane = std::move(ride->second.mine);
      free.push_back(ride->second.slot);
    }
    program_.slots = static_cast<unsigned>(std::max<std::size_t>(1, slots.size()));
  }

  const Plan& plan_;
  unsigned device_;
  bool clips_;
  RankProgram program_;
  std::vector<unsigned> lane_of_;                   // [lane of the plan]
  std::map<unsigned, unsigned> send_lane_of_;       // by the receiver's lane
  std::vector<schedule::OpId> receive_or_compute_;  // [operation of the plan]: ours
  std::vector<schedule::OpId> sums_;
  std::optional<unsigned> normed_;
};

}  // namespace

RankProgram make_rank_program(const Plan& plan, unsigned device, bool clips) {
  return Maker(plan, device, clips).take();
}

}  // namespace dunnock::training
