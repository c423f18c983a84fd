// Schedule: the order and the place of the operations of a task graph. It is data, so it can be printed, compared,
// searched, run (executor.hpp) and simulated (simulator.hpp).
//
//   slots, in the order in which one host issues them:
//
//     slot   0        1        2           3           4
//     op     F1       F2       dO2         dW2         dO1
//     lane   0        0        0           1           0
//     waits  -        -        -           dO2         -
//
// A lane is a stream of a rank (a device, or a process). Operations of a lane run one after the other, in the order of
// their slots; a dependency between lanes needs a wait.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "dunnock/base/result.hpp"
#include "dunnock/schedule/task_graph.hpp"

namespace dunnock::schedule {

struct Lane {
  std::string name;
  unsigned rank = 0;
  int priority = 0;  ///< See StreamOptions.
};

struct Slot {
  OpId op = kNoOp;
  unsigned lane = 0;
  std::vector<OpId> waits{};  ///< Operations of other lanes, in earlier slots, that must be done before.
};

struct Schedule {
  std::string name;
  std::vector<Lane> lanes;
  std::vector<Slot> slots;
  /// The most that the values of a rank may take at any time, in the order of the slots.
  std::uint64_t memory_limit_bytes = std::numeric_limits<std::uint64_t>::max();
};

/// Puts all operations in one lane, in an order that the graph allows.
[[nodiscard]] Result<Schedule> sequential(const TaskGraph& graph, std::string name = "sequential");

/// Gives each slot the waits that the graph's dependencies need and no more: none for what its lane, or an earlier wait
/// of its lane, has waited for already. Existing waits stay. The slots' order must keep the dependencies.
void add_waits(const TaskGraph& graph, Schedule& schedule);

/// The most bytes that the values of each rank take when memory is taken and freed in the order of the slots: outputs
/// and workspace are taken when an operation is issued, values are freed after the slot of their last reader. A value
/// is on the rank of its source; one without a source is on the ranks of its readers.
[[nodiscard]] std::vector<std::uint64_t> peak_bytes(const TaskGraph& graph, const Schedule& schedule);

/// Success, or the reason why not, with the names of operations and lanes. InvalidArgument: an operation is missing,
/// occurs twice, or is in a lane that does not exist; a wait for a later slot; a dependency that neither lanes nor
/// waits keep. NoSpace: the memory limit. Time: slots x lanes.
[[nodiscard]] Status validate(const TaskGraph& graph, const Schedule& schedule);

/// One part per lane: "main: F1 F2 dO2 dO1 | side: dW2<dO2 dW1<dO1". For tests, logs and people.
[[nodiscard]] std::string to_string(const TaskGraph& graph, const Schedule& schedule);

}  // namespace dunnock::schedule
