// Communicator: communication between the ranks of a job: all-reduce, reduce-scatter, all-gather, broadcast, send and
// receive, barrier. Each is an operation of a stream.
//
//   threads()  ranks are threads of this process: for tests, and for many devices in one process
//   mpi()      ranks are processes, started by mpirun; host memory
//   nccl()     ranks are GPUs; their ids are exchanged over another communicator
//
// Collectives of one communicator are matched by the order in which each rank calls them, so all ranks must make the
// same calls in the same order, on whatever streams. Sums are made in float; between threads and between processes they
// are made in the order of the ranks and rounded once, so these two give the same bits.
//
// If ranks make different calls (another operation, number of values, type, reduction or root; a message of another
// size or type than the receive), that is an error on all ranks of the communicator: InvalidArgument, which names both
// calls. All later operations fail the same way. Threads and processes compare each call; after a mismatch the memory
// that the call would have written is undefined. A process that has sent few values (up to 3968 bytes) need not wait
// for the receiver: its send may succeed, and check() and its next operation report the error. A rank that makes no
// call at all is lost: see below. NCCL compares nothing: other types, reductions or roots go unnoticed there, and other
// counts may too, or wait until the timeout. (tests/gpu/ranks/communicator_test.cpp has one suite for threads and
// processes.)
//
// If a rank ends, or makes no call within the timeout, the operation fails with PeerLost, as do all later ones of the
// communicator, on all ranks that notice: a job stops with a message instead of waiting forever. On NCCL the
// communicator is then aborted; operations of a recorded graph are not watched there. MPI may still read and write the
// memory of a failed operation: a process that continues must neither free nor change it.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "dunnock/base/result.hpp"
#include "dunnock/device/bf16.hpp"
#include "dunnock/device/memory.hpp"

namespace dunnock::ranks {

namespace detail {
class CommunicatorImpl;
}

/// kMean: the sum times 1 / ranks; on threads and MPI rounded once, on NCCL as NCCL rounds.
enum class Reduction : std::uint8_t { kSum, kMax, kMean };

struct CommunicatorOptions {
  /// How long an operation waits for the other ranks.
  std::chrono::milliseconds timeout{60'000};
  /// For ranks that are threads: simulates distance. Each message takes this much longer, which the rank sleeps: one
  /// message for a send, 2 (n - 1) for an all-reduce of n ranks, with an n-th of the bytes each. For rehearsals of slow
  /// networks.
  double added_latency_us = 0;
  double added_us_per_mb = 0;  ///< Per 10^6 bytes; 1000 for a link of 1 GB/s.
};

/// One rank's end. Move-only. Threads: one at a time may call it; the operations run in their streams.
/// T is float or Bf16 in reductions; elsewhere also std::byte. A span must stay valid until the stream has finished the
/// operation, as with any other. Wrong sizes are programmer errors.
class Communicator {
 public:
  /// Makes `ranks` ends, each for one thread. Errors: InvalidArgument (no ranks).
  [[nodiscard]] static Result<std::vector<Communicator>> threads(unsigned ranks,
                                                                 const CommunicatorOptions& options = {});
  /// Connects all processes of this mpirun (or only this process). Initializes MPI, and finalizes it when the process
  /// ends normally. Errors: Unsupported (built without MPI), Device (MPI refuses).
  [[nodiscard]] static Result<Communicator> mpi(const CommunicatorOptions& options = {});
  /// Connects one GPU per rank of `others`, over which the id is exchanged; all its ranks must call this. Errors:
  /// Unsupported (no NCCL in this build, or no CUDA device), Device, PeerLost.
  [[nodiscard]] static Result<Communicator> nccl(device::Device device, Communicator& others,
                                                 const CommunicatorOptions& options = {});
  Communicator(Communicator&&) noexcept;
  Communicator& operator=(Communicator&&) noexcept;
  ~Communicator();

  /// Makes a communicator of the ranks that pass the same `color`, in the order of their keys, and of their ranks here
  /// if keys are equal. This is a collective of all ranks: each calls it, in order with its other calls, and it returns
  /// when all have called it. The new communicator has this one's timeout and its own failures; both may be used at the
  /// same time, and either may be destroyed first. On NCCL it waits until what was issued on this one before is done.
  /// `color` and `key` are below 2^31. Errors: InvalidArgument (another rank makes a different call), PeerLost, Device,
  /// NoSpace (MPI: its tags are divided among the groups; Open MPI's are enough for each of n processes to be the first
  /// of 32767 / n groups).
  [[nodiscard]] Result<Communicator> split(unsigned color, unsigned key);

  [[nodiscard]] unsigned rank() const noexcept;
  [[nodiscard]] unsigned size() const noexcept;

  /// Every rank's values become the reduction of all ranks' values, the same bits on each. In place. (n)
  template <class T>
  void all_reduce(device::Span<T> values, Reduction reduction, device::Stream& stream);
  /// Rank r gets the reduction of part r of all ranks' `in`. `out` may be part `rank` of `in`. (size x n) -> (n)
  template <class T>
  void reduce_scatter(device::Span<const T> in, device::Span<T> out, Reduction reduction, device::Stream& stream);
  /// Every rank gets the `in` of all ranks, in their order. `in` may be part `rank` of `out`. (n) -> (size x n)
  template <class T>
  void all_gather(device::Span<const T> in, device::Span<T> out, device::Stream& stream);
  /// Every rank gets the values of `root`. In place. (n)
  template <class T>
  void broadcast(device::Span<T> values, unsigned root, device::Stream& stream);
  /// Messages from one rank to another arrive in the order in which they are sent; sizes must agree. A send may wait
  /// for its receive. (n)
  template <class T>
  void send(device::Span<const T> values, unsigned to, device::Stream& stream);
  template <class T>
  void receive(device::Span<T> values, unsigned from, device::Stream& stream);
  /// Completes after everything that all ranks have issued before it.
  void barrier(device::Stream& stream);

  /// The error so far, if any: InvalidArgument, PeerLost or Device. Any thread may ask.
  [[nodiscard]] Status check() const;
  /// A description of what the ranks are and how they wait for each other: "threads", "processes, woken by each other"
  /// (all on one host, where MPI may copy from another's memory), "processes, asking MPI from time to time", "GPUs".
  [[nodiscard]] std::string description() const;

 private:
  explicit Communicator(std::unique_ptr<detail::CommunicatorImpl> impl) noexcept;
  std::unique_ptr<detail::CommunicatorImpl> impl_;
};

}  // namespace dunnock::ranks
