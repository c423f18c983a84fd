// Timeline: when each operation of a schedule ran, simulated or measured, with an export for chrome://tracing and
// ui.perfetto.dev.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dunnock/base/result.hpp"
#include "dunnock/schedule/schedule.hpp"

namespace dunnock::schedule {

struct Interval {
  OpId op = kNoOp;
  unsigned lane = 0;
  double start_us = 0;
  double end_us = 0;
};

struct Timeline {
  std::vector<Interval> intervals;        ///< In the order of the slots.
  std::vector<std::uint64_t> peak_bytes;  ///< Per rank; empty if it was not computed.
  bool simulated = false;

  /// From the first start to the last end.
  [[nodiscard]] double makespan_us() const noexcept;
  /// The time in which a lane runs nothing, as a share of the makespan.
  [[nodiscard]] double idle_share(unsigned lane) const noexcept;
};

/// Chrome's trace-event JSON (a process per rank, a thread per lane, a complete event per operation; microseconds).
[[nodiscard]] std::string to_chrome_json(const TaskGraph& graph, const Schedule& schedule, const Timeline& timeline);
/// Errors: those of OutputFile.
[[nodiscard]] Status write_chrome_json(const std::string& path, const TaskGraph& graph, const Schedule& schedule,
                                       const Timeline& timeline);

}  // namespace dunnock::schedule
