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
#include <cstdint>
#include <thread>

#include "dunnock/pmem/marks.hpp"

namespace dunnock::detail {

class GroupLocks : public Marks {
 public:
  /// For at least `groups` (those of one segment must not share) and at most `all` groups.
  GroupLocks(std::uint64_t groups, std::uint64_t all) : Marks(std::max(groups, std::min(all, kMax))) {}

  [[nodiscard]] bool is_dirty(std::uint64_t lock) const noexcept {
    return value(lock).load(std::memory_order_acquire) == 1;
  }
  [[nodiscard]] bool try_acquire(std::uint64_t lock) const noexcept {
    std::uint8_t free = 0;
    return value(lock).compare_exchange_strong(free, 2, std::memory_order_acquire, std::memory_order_relaxed);
  }
  template <class Media>
  void acquire(std::uint64_t lock, const Media& media) const noexcept {
    for (unsigned turns = 1; !try_acquire(lock); ++turns) {
      media.pause();
      if (turns % 64 == 0) std::this_thread::yield();  // A split holds its locks for a millisecond.
    }
  }
  void dirty(std::uint64_t lock) const noexcept { value(lock).store(1, std::memory_order_relaxed); }
};

}  // namespace dunnock::detail
