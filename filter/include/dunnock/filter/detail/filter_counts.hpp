// What a filter counts in memory, per thread.
#pragma once

#include <atomic>
#include <cstdint>

#include "dunnock/pmem/clean_count.hpp"
#include "dunnock/pmem/media.hpp"

namespace dunnock::detail {

/// Counts of one thread (or of several, when there are more threads than shards).
struct alignas(kLineBytes) FilterCounts {
  std::atomic<std::int64_t> items{0};
  std::atomic<std::uint64_t> overflows{0};
  std::atomic<std::uint64_t> kicks{0};
  std::atomic<std::uint64_t> kick_groups_read{0};
  std::atomic<std::uint64_t> refusals{0};
  std::atomic<std::uint64_t> reader_persists{0};
};
using FilterCounters = ItemCount<FilterCounts>;

/// kManyWriters: false where no other thread changes this count.
template <bool kManyWriters, class T>
void add(std::atomic<T>& count, T by) noexcept {
  if constexpr (kManyWriters) {
    count.fetch_add(by, std::memory_order_relaxed);
  } else {
    count.store(count.load(std::memory_order_relaxed) + by, std::memory_order_relaxed);
  }
}

}  // namespace dunnock::detail
