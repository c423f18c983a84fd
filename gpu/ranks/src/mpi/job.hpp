// What the operations of one process share: the world that make_mpi() has made, and a job for each communicator.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "communicator_impl.hpp"
#include "mpi/bells.hpp"

namespace dunnock::ranks::detail::mpi {

/// What make_mpi() makes, and all groups that are split from it use.
///
/// A group has no MPI communicator of its own: all of MPI's ways to make one for some ranks stop the caller until the
/// others come, for ever if one is lost, and with it all operations, which need the same lock. Instead it has tags:
///
///   tag    kNumbers * group + 2 * number of the operation, each of which has two tags
///   group  0: all ranks;  1 + groups_of_each * r + i: the i-th group that rank r is the first of
///
/// The first rank of a group alone says which number it has, so two groups never have the same.
struct World {
  MPI_Comm comm = MPI_COMM_NULL;      // of collectives
  MPI_Comm messages = MPI_COMM_NULL;  // of send and receive
  MPI_Comm notices = MPI_COMM_NULL;   // of failures; the tag is the first of the group
  Bells* bells = nullptr;
  unsigned rank = 0;
  unsigned size = 0;
  std::uint64_t numbers = 0;  // Tags of a group.
  unsigned groups_of_each = 0;
  std::mutex mutex;
  unsigned groups_begun = 0;
  std::vector<unsigned> groups_back;  // Begun, and not used.

  static constexpr std::uint64_t kNumbers = 1 << 16;

  /// A group that this rank is the first of; 0: there is none left.
  [[nodiscard]] unsigned take_group() {
    const std::lock_guard lock(mutex);
    if (!groups_back.empty()) {
      const unsigned group = groups_back.back();
      groups_back.pop_back();
      return group;
    }
    return groups_begun == groups_of_each ? 0 : 1 + rank * groups_of_each + groups_begun++;
  }
  void give_group(unsigned group) {
    const std::lock_guard lock(mutex);
    if (group != 0) groups_back.push_back(group);
  }
};

/// What the operations of a communicator share; they may outlive it in their streams.
struct Job {
  std::shared_ptr<World> world;
  std::uint64_t first_tag = 0;
  unsigned rank = 0;
  unsigned size = 0;
  std::vector<int> members;  // by rank: the rank in the world
  std::chrono::milliseconds timeout{};
  std::mutex mutex;
  std::optional<Error> failed;
  std::vector<std::unique_ptr<std::byte[]>> scratch;  // Not in use now; each of scratch_bytes().

  /// Whether it is the first failure.
  bool fail(const Error& error) {
    const std::lock_guard lock(mutex);
    if (failed) return false;
    failed = error;
    return true;
  }
  [[nodiscard]] Status check() {
    const std::lock_guard lock(mutex);
    if (failed) return tl::unexpected(*failed);
    return {};
  }
};

constexpr unsigned kFewRanks = 8;
/// With a Call before them a short message of Open MPI's shared memory (4096 bytes with its own words), and whole
/// lines.
constexpr std::size_t kFewBytes = 3968;
constexpr std::size_t kGreetingBytes = kFewBytes + sizeof(Call);
constexpr std::size_t kNoticeBytes = 1024;
/// Of a part, that is in one message: large enough for the latency, small enough for the second cache.
constexpr std::size_t kSegmentBytes = 128 << 10;

/// Of a long message, that is on its way at once: moved in less time than who waits for it stays awake.
constexpr std::size_t kPartBytes = 1 << 20;

/// Room for the greetings of all others and for those to them, and for what they send of two segments.
[[nodiscard]] inline std::size_t scratch_bytes(const Job& job) {
  return 2 * (kSegmentBytes + kGreetingBytes) * (job.size - 1);
}

/// Looks for a notice of another rank of the job, which then has failed here too. Under the lock of MPI.
inline void look_for_notice(Job& job) {
  if (!job.world->bells->may_have_notices()) return;
  int there = 0;
  MPI_Status status;
  const auto tag = static_cast<int>(job.first_tag);
  const MPI_Comm comm = job.world->notices;
  if (MPI_Iprobe(MPI_ANY_SOURCE, tag, comm, &there, &status) != MPI_SUCCESS || there == 0) return;
  std::array<char, kNoticeBytes> text{};
  int length = 0;
  if (MPI_Recv(text.data(), kNoticeBytes, MPI_CHAR, status.MPI_SOURCE, tag, comm, &status) != MPI_SUCCESS) return;
  MPI_Get_count(&status, MPI_CHAR, &length);
  (void)job.fail({ErrorCode::kInvalidArgument, std::string(text.data(), static_cast<std::size_t>(length))});
}
/// Of the job, by what other ranks have found as well.
inline Status check(Job& job) {
  if (job.world->bells->may_have_notices()) {
    const std::lock_guard lock(mpi_mutex());
    look_for_notice(job);
  }
  return job.check();
}

/// The first failure of a job that is not that of a lost rank: the others are told, so that none waits for this one.
inline void tell_others(const Job& job, const Error& error) {
  // MPI may read it for as long as it likes.
  const auto& text = *new std::string(error.message.substr(0, kNoticeBytes));
  const std::lock_guard all(mpi_mutex());
  for (unsigned rank = 0; rank < job.size; ++rank) {
    if (rank == job.rank) continue;
    MPI_Request request = MPI_REQUEST_NULL;
    const int code = MPI_Isend(text.data(), static_cast<int>(text.size()), MPI_CHAR, job.members[rank],
                               static_cast<int>(job.first_tag), job.world->notices, &request);
    if (code == MPI_SUCCESS) MPI_Request_free(&request);
    job.world->bells->ring_with_notice(job.members[rank]);
  }
}
inline void fail(Job& job, const Error& error) {
  if (job.fail(error) && error.code == ErrorCode::kInvalidArgument) tell_others(job, error);
}

}  // namespace dunnock::ranks::detail::mpi
