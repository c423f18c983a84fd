// Schedules of a training step, by name. Each is data: a task graph and a schedule::Schedule of it, which can be
// simulated (figures_of below), drawn (timeline_svg.hpp) or run (schedule/executor.hpp).
//
//   family      graph                                      lanes
//   one device  operations of layers, for some iterations  main, sub
//   data        the same, and all-reduces                  compute, link
//   pipeline    operations of chunks and micro-batches,    for each device: compute, receives from either side,
//               and transfers between devices              and all-reduce if stages have groups of devices
//
// All schedules of a family, with the same options, are schedules of one graph (except for how gradients are cut into
// messages): they compute the same values.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "dunnock/base/result.hpp"
#include "dunnock/schedule/simulator.hpp"
#include "dunnock/training/step.hpp"

namespace dunnock::training {

enum class Family : std::uint8_t { kOneDevice, kDataParallel, kPipeline };
/// "one device", "data-parallel", "pipeline"
[[nodiscard]] std::string_view to_string(Family family) noexcept;

struct ScheduleName {
  std::string_view name;
  Family family;
  std::string_view what;  ///< A one-line description, with the source.
  /// Lanes of one device that compute at the same time, and so share its processors.
  unsigned lanes_compute = 1;
  /// The schedule places operations by how long each takes, so estimates are not enough where costs can be measured.
  bool wants_measured_costs = false;
};

/// All schedules that make_plan() knows, by family.
[[nodiscard]] const std::vector<ScheduleName>& schedule_names();
/// The one of that name; null: none has it.
[[nodiscard]] const ScheduleName* find_schedule(std::string_view name);

struct PlanOptions {
  unsigned devices = 1;        ///< Stages of a pipeline, ranks of a data-parallel step; 1 for one device.
  unsigned micro_batches = 1;  ///< For pipelines; other families take the step's costs as those of a whole batch.
  /// Runs of layers per device, for schedules that have several (not those that go there and back, which have
  /// two). 0: the schedule's default: 2 if it is interleaved, and as many as there are layers for modulo allocation.
  unsigned chunks = 0;
  unsigned iterations = 1;     ///< Consecutive steps. The steady state of data-parallel steps needs 3.
  unsigned data_parallel = 1;  ///< Devices that hold each stage of a pipeline (hybrid).
  Link link{};                 ///< The link between the devices of a pipeline, or of a ring.
  std::uint64_t memory_limit_bytes = std::numeric_limits<std::uint64_t>::max();  ///< Per device.
  /// Bytes of gradients that data-parallel devices add up at a time: a bucket, or a slice of a large layer. 0: searched
  /// for each schedule separately, from 256 KiB to 256 MiB in powers of 4.
  std::uint64_t message_bytes = 0;
  double launch_us = 0;  ///< Time in which the host issues an operation; searches take it into account.
};

enum class Part : std::uint8_t {
  kForward,
  kOutputGradient,
  kWeightGradient,
  kUpdate,
  kSendActivation,  ///< From the device of `chunk` to that of the next; the runtime splits it into send and receive.
  kSendGradient,    ///< From the device of `chunk` to that of the previous one.
  kAllReduce,
  kNorm,  ///< The norm of all gradients, before all updates (Step::clips); pipelines have it in their updates.
};

/// What an operation of the graph is; the runtime finds its kernels by this.
struct OpTag {
  Part part = Part::kForward;
  unsigned iteration = 0;
  unsigned device = 0;  ///< The device that does the work or, for a transfer, that receives.
  unsigned chunk = 0;   ///< The layer (one device, data-parallel), or the run of layers (pipeline); first of a bucket.
  unsigned micro_batch = 0;
  /// kAllReduce in a data-parallel step: the number of its message in Plan::messages.
  unsigned message = 0;
};

/// Gradients that are added up in one message.
struct Message {
  /// Neighboring layers, in the order of the backward or forward pass; or one layer, of which this may be a slice.
  std::vector<unsigned> layers;
  std::uint64_t bytes = 0;
  std::uint64_t first_byte = 0;  ///< Where the slice begins in its layer's gradients.
};

struct Plan {
  std::string name;
  Family family = Family::kOneDevice;
  schedule::TaskGraph graph;
  schedule::Schedule schedule;
  std::vector<OpTag> tags;        ///< Tags of the graph's operations.
  std::vector<Message> messages;  ///< Messages of one iteration of a data-parallel step.
  unsigned devices = 1;           ///< Simulated devices: one for a data-parallel step, since all do the same.
  unsigned iterations = 1;
  std::vector<unsigned> chunk_begins;   ///< Pipeline: the first layer of each chunk.
  std::vector<unsigned> chunk_devices;  ///< Pipeline: the device of each chunk.
  std::string choice;                   ///< The result of a search ("k = 12"), or empty.
  double launch_us = 0;
};

/// Makes the schedule `name` of `step`; it passes schedule::validate(). Deterministic. Errors: NotFound: no such
/// schedule, and the message lists all; InvalidArgument: check(step), no devices, micro-batches or iterations, fewer
/// layers than stages; NoSpace: the plan does not fit the memory limit.
[[nodiscard]] Result<Plan> make_plan(std::string_view name, const Step& step, const PlanOptions& options);

/// The simulator's results for a plan.
struct Figures {
  double step_us = 0;  ///< All iterations, from the first start to the last end, with a barrier before and after.
  /// Steady state, without a barrier between iterations. One iteration of a pipeline: the longest time from a device's
  /// first operation to its last. Several: from the first operation of the last but one to that of the last, the
  /// longest of the devices'.
  double iteration_us = 0;
  double work_us = 0;       ///< Computation in one iteration, all devices together, each operation alone.
  double bubble_share = 0;  ///< 1 - work / (devices x iteration). Below 0 where operations share a device.
  std::vector<std::uint64_t> peak_bytes;  ///< Per device.
  schedule::Timeline timeline;
};

/// Simulates the plan. Errors: those of schedule::simulate().
[[nodiscard]] Result<Figures> figures_of(const Plan& plan);

}  // namespace dunnock::training
