// Volatile locks, one byte for each group of an index (folded to a bounded number), with a warning to readers.
//
//   0 free      no thread changes the group; what a reader has read is durable
//   1 dirty     a writer may have stored what is not durable yet: a reader that finds this *after* reading persists
//               what it read before it answers
//   2 held      a writer looks or copies, but has stored nothing
//
// Readers never write here and never wait. Partners: dirty() precedes the writer's first store (release) <-> the
// reader's loads (acquire) precede its is_dirty(): a reader that saw the store sees the mark, or the release() after
// its fence.
#pragma once

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdint>
#include <memory>
#include <thread>

namespace dunnock::detail {

class GroupLocks {
 public:
  /// 2^18 bytes stay in a second-level cache.
  static constexpr std::uint64_t kMax = 1ULL << 18;

  /// For at least `groups` (those of one segment must not share) and at most `all` groups.
  GroupLocks(std::uint64_t groups, std::uint64_t all)
      : mask_(std::bit_ceil(std::max(groups, std::min(all, kMax))) - 1),
        states_(std::make_unique<std::atomic<std::uint8_t>[]>(mask_ + 1)) {}

  /// Number of the lock of a group; the groups of one segment have different ones, in their order.
  [[nodiscard]] std::uint64_t of(std::uint64_t group) const noexcept { return group & mask_; }

  [[nodiscard]] std::uint64_t count() const noexcept { return mask_ + 1; }

  [[nodiscard]] bool is_dirty(std::uint64_t lock) const noexcept {
    return states_[lock].load(std::memory_order_acquire) == 1;
  }
  [[nodiscard]] bool try_acquire(std::uint64_t lock) noexcept {
    std::uint8_t free = 0;
    return states_[lock].compare_exchange_strong(free, 2, std::memory_order_acquire, std::memory_order_relaxed);
  }
  template <class Media>
  void acquire(std::uint64_t lock, const Media& media) noexcept {
    for (unsigned turns = 1; !try_acquire(lock); ++turns) {
      media.pause();
      if (turns % 64 == 0) std::this_thread::yield();  // A split holds its locks for a millisecond.
    }
  }
  void dirty(std::uint64_t lock) noexcept { states_[lock].store(1, std::memory_order_relaxed); }
  void release(std::uint64_t lock) noexcept { states_[lock].store(0, std::memory_order_release); }

 private:
  std::uint64_t mask_;
  std::unique_ptr<std::atomic<std::uint8_t>[]> states_;
};

}  // namespace dunnock::detail
