// CountingMedia: wraps a media and counts flushes, fences and distinct lines touched. For counted passes, not timed
// ones.
#pragma once

#include <array>
#include <cstdint>

#include "dunnock/pmem/media.hpp"

namespace dunnock::bench {

struct Counts {
  std::uint64_t flushes = 0, fences = 0, lines = 0;

  Counts& operator+=(const Counts& other) {
    flushes += other.flushes;
    fences += other.fences;
    lines += other.lines;
    return *this;
  }
  friend Counts operator-(const Counts& a, const Counts& b) {
    return {a.flushes - b.flushes, a.fences - b.fences, a.lines - b.lines};
  }
};

/// Counts of this thread. begin_operation() forgets which lines were touched.
struct Counter {
  Counts counts;
  std::array<std::uintptr_t, 64> seen{};
  unsigned seen_count = 0;
  static Counter& here() {
    thread_local Counter counter;
    return counter;
  }
  void begin_operation() { seen_count = 0; }
  void touch(const void* address) {
    const std::uintptr_t line = reinterpret_cast<std::uintptr_t>(address) / kLineBytes;
    for (unsigned i = 0; i < seen_count; ++i) {
      if (seen[i] == line) return;
    }
    if (seen_count < seen.size()) seen[seen_count++] = line;
    ++counts.lines;  // Beyond 64 lines in one operation repeats count again; none comes near that but a refused insert.
  }
};

template <Media M>
struct CountingMedia : detail::MappedMedia {
  static constexpr Durability kDurability = M::kDurability;
  static constexpr bool kVisibleIsDurable = M::kVisibleIsDurable;
  static constexpr bool kScalarLoads = true;
  [[nodiscard]] std::uint64_t load(const Word& word) const noexcept {
    Counter::here().touch(&word);
    return MappedMedia::load(word);
  }
  void store(Point point, Word& word, std::uint64_t value) const noexcept {
    Counter::here().touch(&word);
    MappedMedia::store(point, word, value);
  }
  void flush(Point, const void*) const noexcept { ++Counter::here().counts.flushes; }
  void fence(Point) const noexcept { ++Counter::here().counts.fences; }
};

}  // namespace dunnock::bench
