// Bells: how the ranks of a host wake each other when one has sent something to another.
#pragma once

#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <climits>
#include <cstdint>
#include <cstdio>
#include <ctime>
#include <random>
#include <thread>
#include <vector>

#include "mpi/library.hpp"

namespace dunnock::ranks::detail::mpi {

/// MPI has no way to sleep until a message comes: it is asked, again and again. So each rank has a bell, in memory that
/// the ranks of its host share. Who has given MPI something for a rank rings there, and nobody has to look without
/// need. A bell is a number that grows; waiting for it to change misses nothing that rang after the number was read.
struct Bell {
  std::atomic<std::uint32_t> rung{0};
  std::atomic<std::uint32_t> listens{0};  // Somebody sleeps, or is about to, and wants to be woken.
  std::atomic<std::uint32_t> taken{0};    // See receivers_are_enough().
  std::atomic<std::uint32_t> notices{0};  // That others have sent: see tell_others().
  std::array<std::byte, 112> apart{};     // Each has cache lines of its own.

  void ring() noexcept {
    rung.fetch_add(1);
    if (listens.load() != 0) wake();
  }
  /// Also one that does not listen.
  void ring_loudly() noexcept {
    rung.fetch_add(1);
    wake();
  }
  /// Returns when it has rung since it read `seen`, if it listens, or after this time, or now and then without a
  /// reason.
  void wait(std::uint32_t seen, std::chrono::nanoseconds time, bool hears) noexcept {
    const timespec least{static_cast<time_t>(time.count() / 1'000'000'000), time.count() % 1'000'000'000};
    listens.store(hears ? 1 : 0);
    syscall(SYS_futex, &rung, FUTEX_WAIT, seen, &least, nullptr, 0);
    listens.store(0);
  }

 private:
  void wake() noexcept { syscall(SYS_futex, &rung, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0); }
};
static_assert(std::atomic<std::uint32_t>::is_always_lock_free && sizeof(std::atomic<std::uint32_t>) == 4);

inline unsigned processors() {
  static const unsigned count = std::max(1U, std::thread::hardware_concurrency());
  return count;
}

class Bells {
 public:
  /// Collective; of ranks of MPI_COMM_WORLD. Made once in a process, and there until its end. Under the lock.
  static Bells& of_this_process() {
    static auto& all = *new Bells;
    return all;
  }
  Bells(const Bells&) = delete;
  Bells& operator=(const Bells&) = delete;

  [[nodiscard]] Bell& own() const noexcept { return *own_; }
  /// Whether who waits need not look before it rings: all ranks are on this host, and MPI moves a message, however
  /// long, while its receiver alone looks.
  [[nodiscard]] bool are_enough() const noexcept { return are_enough_; }
  [[nodiscard]] unsigned ranks_here() const noexcept { return ranks_here_; }
  /// The rank may be on another host.
  void ring(int rank) const noexcept {
    if (Bell* const bell = bells_[static_cast<std::size_t>(rank)]) bell->ring();
  }
  /// Call after posting a notice for the rank.
  void ring_with_notice(int rank) const noexcept {
    Bell* const bell = bells_[static_cast<std::size_t>(rank)];
    if (bell == nullptr) return;
    bell->notices.fetch_add(1);
    bell->ring();
  }
  /// False: nobody has sent one to this process.
  [[nodiscard]] bool may_have_notices() const noexcept {
    return own_->notices.load() != 0 || own_ == &alone_ || ranks_here_ < bells_.size();
  }

 private:
  Bells() {
    int size = 0;
    int rank = 0;
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    bells_.resize(static_cast<std::size_t>(size));
    ranks_here_ = static_cast<unsigned>(size);
    MPI_Comm host = MPI_COMM_NULL;
    if (MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &host) != MPI_SUCCESS) return;
    MPI_Comm_set_errhandler(host, MPI_ERRORS_RETURN);
    int here = 0;
    MPI_Comm_size(host, &here);
    ranks_here_ = static_cast<unsigned>(here);
    std::vector<int> ranks(ranks_here_);
    MPI_Allgather(&rank, 1, MPI_INT, ranks.data(), 1, MPI_INT, host);
    int rank_here = 0;
    MPI_Comm_rank(host, &rank_here);
    Bell* const all = share(host, rank_here, here);
    if (all == nullptr) return;  // They look from time to time.
    for (int i = 0; i < here; ++i) bells_[static_cast<std::size_t>(ranks[static_cast<std::size_t>(i)])] = all + i;
    own_ = new (all + rank_here) Bell;
    MPI_Barrier(host);  // All bells are there before one is rung.
    int enough = here == size && receivers_are_enough(rank, size, host) ? 1 : 0;
    MPI_Allreduce(MPI_IN_PLACE, &enough, 1, MPI_INT, MPI_MIN, host);
    are_enough_ = enough != 0;
  }

  /// Memory that all ranks of the host have, for the rest of their lives; or null on all of them.
  static Bell* share(MPI_Comm host, int rank_here, int here) {
    struct {
      int made = 0;
      std::array<char, 64> name{};
    } told;
    const std::size_t bytes = sizeof(Bell) * static_cast<std::size_t>(here);
    int file = -1;
    if (rank_here == 0) {
      std::random_device random;
      std::snprintf(told.name.data(), told.name.size(), "/dunnock-%ld-%08x%08x", static_cast<long>(getpid()), random(),
                    random());
      file = shm_open(told.name.data(), O_CREAT | O_EXCL | O_RDWR, 0600);
      told.made = file >= 0 && posix_fallocate(file, 0, static_cast<off_t>(bytes)) == 0 ? 1 : 0;
    }
    MPI_Bcast(&told, sizeof told, MPI_BYTE, 0, host);
    if (told.made != 0 && rank_here != 0) file = shm_open(told.name.data(), O_RDWR, 0);
    void* at = MAP_FAILED;
    if (told.made != 0 && file >= 0) at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (file >= 0) close(file);
    int have = at != MAP_FAILED ? 1 : 0;
    MPI_Allreduce(MPI_IN_PLACE, &have, 1, MPI_INT, MPI_MIN, host);
    if (rank_here == 0 && file >= 0) shm_unlink(told.name.data());
    if (have != 0) return static_cast<Bell*>(at);
    if (at != MAP_FAILED) munmap(at, bytes);
    return nullptr;
  }

  /// Tries it: of two ranks one sends a long message and makes no call of MPI until the other has it, or some time is
  /// over. All ranks are on this host, and have the same numbers there. (Open MPI copies from the sender's memory,
  /// unless a container forbids it.)
  [[nodiscard]] bool receivers_are_enough(int rank, int size, MPI_Comm host) const {
    constexpr std::size_t kBytes = 1 << 20;
    constexpr std::chrono::milliseconds kPatience{250};
    const int peer = rank ^ 1;
    if (peer >= size) return true;
    std::vector<std::byte> bytes(kBytes);
    MPI_Request request = MPI_REQUEST_NULL;
    const auto until = std::chrono::steady_clock::now() + kPatience;
    const auto is_late = [&] { return std::chrono::steady_clock::now() > until; };
    bool enough = false;
    if (rank % 2 == 0) {
      MPI_Isend(bytes.data(), kBytes, MPI_BYTE, peer, 0, host, &request);
      while (own_->taken.load() == 0 && !is_late()) std::this_thread::yield();
      enough = own_->taken.load() != 0;
    } else {
      MPI_Irecv(bytes.data(), kBytes, MPI_BYTE, peer, 0, host, &request);
      int done = 0;
      while (done == 0 && !is_late()) MPI_Test(&request, &done, MPI_STATUS_IGNORE);
      enough = done != 0;
      if (enough) bells_[static_cast<std::size_t>(peer)]->taken.store(1);
    }
    MPI_Wait(&request, MPI_STATUS_IGNORE);
    return enough;
  }

  std::vector<Bell*> bells_;  // by rank; null: of another host
  Bell alone_;                // Of a rank that hears no other: for its own threads.
  Bell* own_ = &alone_;
  unsigned ranks_here_ = 1;
  bool are_enough_ = false;
};

}  // namespace dunnock::ranks::detail::mpi
