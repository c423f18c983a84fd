// Executor: runs a schedule on streams of a device. On CUDA, profilers see it (NVTX, domain "dunnock"): a range for
// each run with the schedule's name, in it one for each operation around what it issues, and the lanes' names at their
// streams.
#pragma once

#include <memory>
#include <vector>

#include "dunnock/base/result.hpp"
#include "dunnock/gpu/graph.hpp"
#include "dunnock/gpu/timeline.hpp"

namespace dunnock::gpu {

struct ExecutorOptions {
  unsigned rank = 0;      ///< Runs the lanes of this rank. Those of others are theirs, and waits for them are refused.
  bool measures = false;  ///< run() notes when each operation ran; costs two host or device events an operation.
  bool as_graph = false;  ///< Operations are recorded once and issued at once in each run (graph.hpp).
  /// CPU backend: so many threads the kernels of each lane use, as StreamOptions::threads says; 0: the default, in each
  /// lane. Lanes that run side by side want fewer. A recorded graph runs in run()'s stream, with the threads of that.
  unsigned threads = 0;
};

/// Streams and events for one schedule, made once and used in each run. Move-only. Threads: one at a time.
class Executor {
 public:
  /// Keeps a copy of the schedule; the graph must stay. Errors: those of validate() and Stream::create;
  /// InvalidArgument: an operation has nothing to issue, a wait reaches another rank, or `measures` with `as_graph`.
  [[nodiscard]] static Result<Executor> create(Device device, const TaskGraph& graph, const Schedule& schedule,
                                               const ExecutorOptions& options = {});
  Executor(Executor&&) noexcept;
  Executor& operator=(Executor&&) noexcept;
  ~Executor();

  /// Issues all operations, once, behind what `stream` has; what is issued on it later comes behind all of them.
  void run(Stream& stream);
  /// Returns when all runs are done. Errors: Device and those of the operations, with the name of the one that failed;
  /// once. What a failure has cost the values that are computed is the caller's to judge.
  [[nodiscard]] Status synchronize();
  /// When the operations of the last run ran, which must be done; microseconds from its begin. Errors: InvalidArgument
  /// (it does not measure, or has not run).
  [[nodiscard]] Result<Timeline> last_run() const;

 private:
  struct State;
  explicit Executor(std::unique_ptr<State> state) noexcept;
  std::unique_ptr<State> state_;
};

}  // namespace dunnock::gpu
