// Simulator: runs a schedule in made-up time, with the costs that its operations have.
//
// Each lane runs its slots in order; an operation begins when its lane is free and all that it waits for is done. The
// operations that run on one rank at a time share its device: when they ask for more than all of it (Op::demand), each
// runs slower by what is asked too much. So three operations of demand 1 take three times as long side by side, and
// three of demand 0.3 no longer than alone.
//
// Not a model of caches, of clocks, or of a link that several messages share: a communication's cost is given.
#pragma once

#include "dunnock/base/result.hpp"
#include "dunnock/gpu/timeline.hpp"

namespace dunnock::gpu {

struct SimulatorOptions {
  double launch_us = 0;  ///< The host issues one operation after the other, and each takes it so long.
};

/// Errors: those of validate(). Time: operations x lanes. Deterministic.
[[nodiscard]] Result<Timeline> simulate(const TaskGraph& graph, const Schedule& schedule,
                                        const SimulatorOptions& options = {});

}  // namespace dunnock::gpu
