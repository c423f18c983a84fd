// RankProgram: what one rank does of a plan, with a slot of memory for each micro-batch that is on its way.
#pragma once

#include <vector>

#include "dunnock/training/schedules.hpp"

namespace dunnock::training {

enum class Role : std::uint8_t { kCompute, kSend, kReceive };

struct RankOp {
  OpTag tag;
  Role role = Role::kCompute;
  unsigned peer = 0;  // Of a transfer: the other device.
  unsigned slot = 0;
  std::string name;
  schedule::OpKind kind = schedule::OpKind::kOther;
  double cost_us = 0;
};

struct RankProgram {
  std::vector<RankOp> ops;
  schedule::Schedule schedule;            // Its operations are numbers of `ops`; one a slot, in the same order.
  std::vector<unsigned> computing_lanes;  // Those with kernels of layers.
  unsigned slots = 1;
};

/// The part of `device`. Transfers become a send and a receive, the sends in lanes of their own. Waits for operations
/// of other ranks fall away, for messages carry them. A slot that is used again waits for all that used it before; of a
/// pipeline as few are used as the order of the plan allows, and of one device with two lanes two, so that iterations
/// overlap. `clips`: pipelines get an operation kNorm before the first update of each iteration.
[[nodiscard]] RankProgram make_rank_program(const Plan& plan, unsigned device, bool clips);

}  // namespace dunnock::training
