// The number of items of a durable structure: counted in memory, and durable only across a clean shutdown.
//
//   two words of a line   clean == mark(items)   the number can be trusted
//                         otherwise              the items are counted when their number is first asked for
//
//   close   items, then clean              A crash in between leaves clean = 0.
//   open    clean = 0, durably, before the first operation
//
// In memory the number is a base and the changes since then, in shards, so that writers share no line.
//
// What it is for: size() without a scan and without a durable store per operation. What it is not for: numbers that
// must be exact while writers are active.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <optional>
#include <span>

#include "dunnock/pmem/media.hpp"

namespace dunnock::detail {

/// A small number that is unique to the thread while there are few threads.
[[gnu::always_inline]] inline unsigned thread_number() noexcept {
  static std::atomic<unsigned> next{0};
  thread_local const unsigned number = next.fetch_add(1, std::memory_order_relaxed);
  return number;
}

/// The durable steps of a clean count.
struct CleanPoints {
  Point count;  ///< store: the number of items (same line as the mark)
  Point clean;  ///< store/flush/fence: it can be trusted
  Point dirty;  ///< store/flush/fence: it can't be trusted any more
};

/// Where a structure keeps its number of items: two words of one line.
struct CleanWords {
  Word& clean;
  Word& items;
  std::uint64_t (*mark)(std::uint64_t items) noexcept;  // Never 0.
};

template <Media M>
void store_clean_count(const M& media, const CleanPoints& points, const CleanWords& words,
                       std::uint64_t items) noexcept {
  media.store(points.count, words.items, items);
  media.store(points.clean, words.clean, words.mark(items));
  media.flush(points.clean, &words.clean);
  media.fence(points.clean);  // The number can be trusted.
}

/// The number of items, if it can be trusted; from here on it can't be.
template <Media M>
[[nodiscard]] std::optional<std::uint64_t> take_clean_count(const M& media, const CleanPoints& points,
                                                            const CleanWords& words) noexcept {
  const std::uint64_t items = media.load(words.items);
  const std::uint64_t clean = media.load(words.clean);
  if (clean != 0) {
    media.store(points.dirty, words.clean, 0);
    media.flush(points.dirty, &words.clean);
    media.fence(points.dirty);  // From here the number is stale after a crash.
  }
  if (clean == 0 || clean != words.mark(items)) return std::nullopt;
  return items;
}

/// The count in memory. `Shard`: the counts of one thread, or of several when there are more threads than shards: a
/// line with a member `items`, a std::atomic<std::int64_t>.
///
/// Threads: any number, except for start().
template <class Shard>
class ItemCount {
 public:
  static constexpr unsigned kShards = 16;

  [[nodiscard]] Shard& of_thread() noexcept { return shards_[thread_number() % kShards]; }
  /// For structures with one writer.
  [[nodiscard]] Shard& only() noexcept { return shards_[0]; }
  [[nodiscard]] std::span<const Shard> shards() const noexcept { return shards_; }

  /// Begins at this number, or at one that is not known yet.
  void start(std::optional<std::uint64_t> items) noexcept {
    for (Shard& one : shards_) one.items.store(0, std::memory_order_relaxed);
    base_.store(static_cast<std::int64_t>(items.value_or(0)), std::memory_order_relaxed);
    known_.store(items.has_value(), std::memory_order_release);
  }
  [[nodiscard]] bool known() const noexcept { return known_.load(std::memory_order_acquire); }

  /// The number of items. If it is not known and `may_count`, count(now) must keep writers out, call now(items) with
  /// the number of items that it has counted, and let writers in again.
  template <class Count>
  [[nodiscard]] std::uint64_t items(bool may_count, Count&& count) {
    if (!known() && may_count) {
      const std::lock_guard lock(counting_);
      if (!known_.load(std::memory_order_relaxed)) {
        count([this](std::uint64_t items) {
          base_.store(static_cast<std::int64_t>(items) - changes(), std::memory_order_relaxed);
          known_.store(true, std::memory_order_release);
        });
      }
    }
    const std::int64_t items = base_.load(std::memory_order_relaxed) + changes();
    return items < 0 ? 0 : static_cast<std::uint64_t>(items);
  }

 private:
  [[nodiscard]] std::int64_t changes() const noexcept {
    std::int64_t sum = 0;
    for (const Shard& one : shards_) sum += one.items.load(std::memory_order_relaxed);
    return sum;
  }

  std::array<Shard, kShards> shards_;
  std::mutex counting_;
  std::atomic<bool> known_{true};
  std::atomic<std::int64_t> base_{0};  // items when the shards were zero
};

}  // namespace dunnock::detail
