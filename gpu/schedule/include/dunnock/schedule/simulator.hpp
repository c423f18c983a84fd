// Simulator: runs a schedule in simulated time, with the costs of its operations.
//
// Each lane runs its slots in order; an operation begins when its lane is free and everything that it waits for is
// done. Operations that run on one rank at the same time share its device: when their demands add up to more than all
// of it (Op::demand), all slow down by that factor. So three operations of demand 1 take three times as long
// concurrently, and three of demand 0.3 no longer than alone.
//
// Not a model of caches, of clocks, or of a link that several messages share: a communication's cost is given.
#pragma once

#include "dunnock/base/result.hpp"
#include "dunnock/schedule/timeline.hpp"

namespace dunnock::schedule {

struct SimulatorOptions {
  double launch_us = 0;  ///< Time that the host takes to issue one operation; it issues one after the other.
};

/// Errors: those of validate(). Time: operations x lanes. Deterministic.
[[nodiscard]] Result<Timeline> simulate(const TaskGraph& graph, const Schedule& schedule,
                                        const SimulatorOptions& options = {});

}  // namespace dunnock::schedule
