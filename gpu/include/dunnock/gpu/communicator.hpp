// Communicator: what the ranks of a job tell each other: all-reduce, reduce-scatter, all-gather, broadcast, send and
// receive, barrier. Each is an operation of a stream.
//
//   threads()  ranks are threads of this process: for tests, and for many devices in one process
//   mpi()      ranks are processes, started by mpirun; host memory
//   nccl()     ranks are GPUs; their ids are exchanged over another communicator
//
// Collectives of one communicator are matched by the order in which each rank calls them, so all ranks must call the
// same ones in the same order, on whatever streams. Sums are made in float; between threads and between processes in
// the order of the ranks and rounded once, so these two give the same bits.
//
// Ranks that call different things (another operation, number of values, type, reduction or root; a message of another
// size or type than is received) are an error on all ranks of the communicator: InvalidArgument, which names both
// calls. All later operations answer the same. Threads and processes compare each call; the memory that it would have
// written is undefined then. A process that has sent few values (up to 3968 bytes) need not wait until they are taken:
// its send may be done, and check() and its next operation have the error. A rank that does not come at all is lost:
// see below. NCCL compares nothing: other types, reductions or roots go unnoticed there, and other counts may too, or
// wait until the timeout. (tests/gpu/communicator_test.cpp has one suite for threads and processes.)
//
// When a rank goes, or does not come within the timeout, the operation fails with PeerLost, as do all later ones of the
// communicator, on all ranks that notice: a job stops with a message instead of waiting for ever. On NCCL the
// communicator is aborted then; operations of a recorded graph are not watched there. MPI may still read and write
// memory that a failed operation was given: a process that goes on keeps it, and as it is.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "dunnock/base/result.hpp"
#include "dunnock/gpu/bf16.hpp"
#include "dunnock/gpu/memory.hpp"

namespace dunnock::gpu {

namespace detail {
class CommunicatorImpl;
}

/// kMean: the sum times 1 / ranks; on threads and MPI rounded once, on NCCL as it does.
enum class Reduction : std::uint8_t { kSum, kMax, kMean };

struct CommunicatorOptions {
  /// How long an operation waits for the other ranks.
  std::chrono::milliseconds timeout{60'000};
  /// Ranks that are threads: as if they were farther apart. Each message takes so much longer, and asleep: one of a
  /// sender, 2 (n - 1) of an all-reduce of n ranks with an n-th of the bytes each. For rehearsals of slow networks.
  double added_latency_us = 0;
  double added_us_per_mb = 0;  ///< 10^6 bytes; 1000 of a link of 1 GB/s.
};

/// One rank's end. Move-only. Threads: one at a time calls it; the operations run in their streams.
/// T is float or Bf16 in reductions; elsewhere also std::byte. A span that is given must live until the stream has come
/// to the operation, as with any other. Wrong sizes are programmer errors.
class Communicator {
 public:
  /// `ranks` ends, each for one thread. Errors: InvalidArgument (no ranks).
  [[nodiscard]] static Result<std::vector<Communicator>> threads(unsigned ranks,
                                                                 const CommunicatorOptions& options = {});
  /// All processes of this mpirun (or this process alone). Initialises MPI, and finalises it when the process ends in
  /// order. Errors: Unsupported (built without MPI), Device (MPI refuses).
  [[nodiscard]] static Result<Communicator> mpi(const CommunicatorOptions& options = {});
  /// One GPU a rank of `others`, over which the id is exchanged; all its ranks must call this. Errors: Unsupported (no
  /// NCCL in this build, or no CUDA device), Device, PeerLost.
  [[nodiscard]] static Result<Communicator> nccl(Device device, Communicator& others,
                                                 const CommunicatorOptions& options = {});
  Communicator(Communicator&&) noexcept;
  Communicator& operator=(Communicator&&) noexcept;
  ~Communicator();

  /// The communicator of those ranks that give the same `color`, in the order of their keys, and of their ranks here
  /// where keys are alike. A collective of all ranks: each calls it, in its order among the others, and it returns when
  /// all have come. The new one has this one's timeout and failures of its own; both may be used at the same time, and
  /// either may go first. On NCCL it waits until what has been issued on this one before is done. `color` and `key` are
  /// below 2^31. Errors: InvalidArgument (another rank calls something else), PeerLost, Device, NoSpace (MPI: its tags
  /// are divided among the groups; Open MPI's are enough for each of n processes to be the first of 32767 / n).
  [[nodiscard]] Result<Communicator> split(unsigned color, unsigned key);

  [[nodiscard]] unsigned rank() const noexcept;
  [[nodiscard]] unsigned size() const noexcept;

  /// Every rank's values become the reduction of all ranks' values, the same bits on each. In place. (n)
  template <class T>
  void all_reduce(DeviceSpan<T> values, Reduction reduction, Stream& stream);
  /// Rank r gets the reduction of part r of all ranks' `in`. `out` may be part `rank` of `in`. (size x n) -> (n)
  template <class T>
  void reduce_scatter(DeviceSpan<const T> in, DeviceSpan<T> out, Reduction reduction, Stream& stream);
  /// Every rank gets the `in` of all, one behind the other. `in` may be part `rank` of `out`. (n) -> (size x n)
  template <class T>
  void all_gather(DeviceSpan<const T> in, DeviceSpan<T> out, Stream& stream);
  /// Every rank gets the values of `root`. In place. (n)
  template <class T>
  void broadcast(DeviceSpan<T> values, unsigned root, Stream& stream);
  /// Messages from one rank to another arrive in the order in which they are sent; sizes must agree. A send may wait
  /// for its receive. (n)
  template <class T>
  void send(DeviceSpan<const T> values, unsigned to, Stream& stream);
  template <class T>
  void receive(DeviceSpan<T> values, unsigned from, Stream& stream);
  /// Comes behind what all ranks have issued before it.
  void barrier(Stream& stream);

  /// What has gone wrong, if anything has: InvalidArgument, PeerLost or Device. Any thread may ask.
  [[nodiscard]] Status check() const;
  /// What the ranks are, and how they wait for each other, for people: "threads", "processes, woken by each other" (all
  /// on one host, where MPI may copy from another's memory), "processes, asking MPI from time to time", "GPUs".
  [[nodiscard]] std::string description() const;

 private:
  explicit Communicator(std::unique_ptr<detail::CommunicatorImpl> impl) noexcept;
  std::unique_ptr<detail::CommunicatorImpl> impl_;
};

}  // namespace dunnock::gpu
