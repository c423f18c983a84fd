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
#include <array>
#include <atomic>
#include <cstdint>

#include "dunnock/index/detail/media_mutex.hpp"
#include "dunnock/index/index_points.hpp"
#include "dunnock/pmem/marks.hpp"
#include "dunnock/pmem/media.hpp"

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
      if (turns % 64 == 0) {
        let_others_run(media);  // A split holds its locks for a millisecond.
      } else {
        media.pause();
      }
    }
  }
  void dirty(std::uint64_t lock) const noexcept { value(lock).store(1, std::memory_order_relaxed); }
};

inline constexpr unsigned kIndexBatch = 32;  // Keys whose lines are fetched together.
// Keys that share a fence. Their groups stay locked until then, so more of them pay off only where fences are slow.
template <Media M>
inline constexpr unsigned kIndexFenceBatch = [] {
  if constexpr (requires { M::kFenceBatch; })
    return M::kFenceBatch;
  else
    return kIndexBatch;
}();

/// The locks that one writer holds, and the fence that it must make before it may release them. Locks are taken in
/// ascending order; out of that order, only a lock that is free.
template <Media M>
class WriterLocks {
 public:
  /// `batch`: for several keys.
  WriterLocks(const GroupLocks& locks, const M& media, bool batch) noexcept
      : locks_(locks), media_(media), batch_(batch) {}
  WriterLocks(const WriterLocks&) = delete;
  WriterLocks& operator=(const WriterLocks&) = delete;
  ~WriterLocks() { commit(); }

  [[nodiscard]] const GroupLocks& all() const noexcept { return locks_; }
  /// False: the lock is not available while the others are held.
  [[nodiscard]] bool lock(std::uint64_t id) noexcept {
    if (!locks_.try_acquire(id)) {
      if (holds(id)) return true;
      if (held_count_ != 0 && id < highest_) return false;
      locks_.acquire(id, media_);
    }
    highest_ = held_count_ == 0 ? id : std::max(highest_, id);
    held_[held_count_++] = id;
    return true;
  }
  /// Makes readers persist what they read of the group from here on. Call before the first store to it.
  void dirty(std::uint64_t id) const noexcept { locks_.dirty(id); }
  /// Notes that something was flushed; `fence` names the fence that makes it durable.
  void owe(Point fence) noexcept { owed_ = batch_ ? index_point::kBatchFence : fence; }
  /// Makes everything durable and releases all locks.
  void commit() noexcept {
    if (owed_ != Point{}) media_.fence(owed_);
    owed_ = Point{};
    for (unsigned i = 0; i < held_count_; ++i) locks_.release(held_[i]);
    held_count_ = 0;
  }
  /// Is there no room for the locks of another key?
  [[nodiscard]] bool full() const noexcept { return held_count_ + 2 > held_.size(); }

 private:
  [[nodiscard]] bool holds(std::uint64_t id) const noexcept {
    return std::find(held_.begin(), held_.begin() + held_count_, id) != held_.begin() + held_count_;
  }

  const GroupLocks& locks_;
  const M& media_;
  bool batch_;
  Point owed_{};
  unsigned held_count_ = 0;
  std::uint64_t highest_ = 0;
  std::array<std::uint64_t, 2 * kIndexFenceBatch<M>> held_;  // the first held_count_
};

}  // namespace dunnock::detail
