// Executor: runs a schedule on streams of a device. On CUDA it is visible to profilers (NVTX, domain "dunnock"): a
// range with the schedule's name for each run, inside it one for each operation around what it issues, and the lanes'
// names at their streams.
#pragma once

#include <memory>
#include <vector>

#include "dunnock/base/result.hpp"
#include "dunnock/device/graph.hpp"
#include "dunnock/schedule/timeline.hpp"

namespace dunnock::schedule {

struct ExecutorOptions {
  unsigned rank = 0;      ///< Runs only the lanes of this rank; waits for lanes of other ranks are refused.
  bool measures = false;  ///< run() notes when each operation ran; costs two host or device events per operation.
  bool as_graph = false;  ///< Operations are recorded once and issued at once in each run (graph.hpp).
  /// CPU backend: threads per lane that kernels use, as in StreamOptions::threads; 0: the default, in each lane. Lanes
  /// that run concurrently need fewer. A recorded graph runs in run()'s stream, with that stream's threads.
  unsigned threads = 0;
};

/// The streams and events of one schedule, made once and used in each run. Move-only. Threads: one at a time.
class Executor {
 public:
  /// Keeps a copy of the schedule; the graph must outlive the executor. Errors: those of validate() and Stream::create;
  /// InvalidArgument: an operation has nothing to issue, a wait reaches another rank, or `measures` with `as_graph`.
  [[nodiscard]] static Result<Executor> create(device::Device device, const TaskGraph& graph, const Schedule& schedule,
                                               const ExecutorOptions& options = {});
  Executor(Executor&&) noexcept;
  Executor& operator=(Executor&&) noexcept;
  ~Executor();

  /// Issues all operations once. They run after what was issued on `stream` before; what is issued on it later runs
  /// after all of them.
  void run(device::Stream& stream);
  /// Returns when all runs are done. Errors: Device and those of the operations, with the name of the one that failed;
  /// reported once. The caller must judge which computed values a failure has affected.
  [[nodiscard]] Status synchronize();
  /// When the operations of the last run ran, in microseconds from its beginning; the run must be done. Errors:
  /// InvalidArgument (the executor does not measure, or has not run).
  [[nodiscard]] Result<Timeline> last_run() const;

 private:
  struct State;
  explicit Executor(std::unique_ptr<State> state) noexcept;
  std::unique_ptr<State> state_;
};

}  // namespace dunnock::schedule
