// Stream and Event: operations in order, and points in them that other streams wait for.
//
//   Stream a   upload  ->  matmul  ->  record(e)  ->  softmax ...
//   Stream b                wait(e) ->  gradient of another layer ...
//
// Operations are started, not done, when a function returns. One that fails does not stop the program: the next
// synchronize() returns the error with its name.
//   CPU   Later operations, in its stream and in those that wait for it, are dropped until the error is reported.
//   CUDA  Later operations run unless CUDA itself refuses. A kernel that fails while it runs is noticed later, so the
//         error names the operations that may have failed; DUNNOCK_GPU_SYNC=1 in the environment waits for each
//         operation, and so names the one that failed.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string_view>

#include "dunnock/base/result.hpp"
#include "dunnock/device/device.hpp"

namespace dunnock::device {

namespace detail {
class StreamImpl;
class EventImpl;
class GraphImpl;
}  // namespace detail

/// A point in a stream. Move-only. Threads: one at a time.
class Event {
 public:
  /// Errors: NoSpace, Device.
  [[nodiscard]] static Result<Event> create(Device device);
  Event(Event&&) noexcept;
  Event& operator=(Event&&) noexcept;
  ~Event();

  /// Is everything issued before the last record() done? True if nothing was ever recorded.
  [[nodiscard]] bool done() const;
  /// Returns when done() is true. Errors: those of earlier operations, if their stream has not yet reported them.
  [[nodiscard]] Status synchronize() const;
  /// Milliseconds from `start`'s record to this one's, on the device's clock; both must be done.
  [[nodiscard]] double ms_since(const Event& start) const;

  [[nodiscard]] detail::EventImpl& impl() const noexcept { return *impl_; }  ///< For the layer itself.

 private:
  explicit Event(std::unique_ptr<detail::EventImpl> impl) noexcept;
  std::unique_ptr<detail::EventImpl> impl_;
};

struct StreamOptions {
  /// Runs before streams of lower priority where the device can (CUDA: two levels). The CPU backend ignores it.
  int priority = 0;
  /// CPU backend: number of threads for the kernels of this stream; 0: OpenMP's default (all processors, or
  /// OMP_NUM_THREADS). Streams that run concurrently need fewer each. CUDA ignores it.
  unsigned threads = 0;
};

/// A queue of operations. Move-only; its destructor waits for them. Threads: one at a time.
class Stream {
 public:
  /// Errors: NoSpace, Device.
  [[nodiscard]] static Result<Stream> create(Device device, const StreamOptions& options = {});
  Stream(Stream&&) noexcept;
  Stream& operator=(Stream&&) noexcept;
  ~Stream();

  [[nodiscard]] Device device() const noexcept;

  /// Runs `work` on the host, in order with the other operations; on CUDA it must not call CUDA. Errors and traces
  /// refer to it by `name`, which must outlive the operation (a literal does).
  void run(std::string_view name, std::function<Status()> work);

  void record(Event& event);
  /// What is issued after this begins when `event`'s last record is done. The event may be from any stream of the same
  /// backend.
  void wait(const Event& event);

  /// Returns when everything issued is done. Errors: Device, with the name of the operation that failed; reported once.
  [[nodiscard]] Status synchronize();
  /// Is everything that was issued done, or dropped after a failure?
  [[nodiscard]] bool idle() const;
  /// The cudaStream_t, for the caller's own kernels; null on the CPU.
  [[nodiscard]] void* native() const noexcept;
  /// Are operations being recorded (graph.hpp), not run?
  [[nodiscard]] bool capturing() const;

  [[nodiscard]] detail::StreamImpl& impl() const noexcept { return *impl_; }  ///< For the layer itself.

 private:
  explicit Stream(std::unique_ptr<detail::StreamImpl> impl) noexcept;
  std::unique_ptr<detail::StreamImpl> impl_;
};

}  // namespace dunnock::device
