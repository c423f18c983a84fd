// Volatile write marks, one byte for each line of a table (folded to a bounded number): the writer's lock and the
// reader's warning in one.
//
// A byte is 1 from before the first store to its lines until those stores are durable. So
//   * writers of one line exclude each other (multi-writer filters), and
//   * a reader that finds the byte 0 *after* it has read a line knows that what it read is durable; one that finds 1
//     persists the line itself before it answers. Readers never write here and never wait.
// Partners: acquire() before the writer's first store (release) <-> the reader's loads of the words (acquire), then
// marked(); the reader that saw a store sees the mark that precedes it, or the release() that follows its fence.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "dunnock/pmem/marks.hpp"

namespace dunnock::detail {

class Stripes : public Marks {
 public:
  Stripes() = default;
  explicit Stripes(std::uint64_t lines) : Marks(std::clamp<std::uint64_t>(lines, 1, kMax)) {}

  [[nodiscard]] bool marked(std::uint64_t stripe) const noexcept {
    return value(stripe).load(std::memory_order_acquire) != 0;
  }

  /// Takes the mark if no thread has it.
  template <bool kExclusive>
  [[nodiscard]] bool try_acquire(std::uint64_t stripe) const noexcept {
    if constexpr (kExclusive) {
      return value(stripe).exchange(1, std::memory_order_acquire) == 0;
    } else {  // There is only one writer, so only readers look.
      value(stripe).store(1, std::memory_order_relaxed);
      return true;
    }
  }
  template <bool kExclusive, class Media>
  void acquire(std::uint64_t stripe, const Media& media) const noexcept {
    while (!try_acquire<kExclusive>(stripe)) {
      while (marked(stripe)) media.pause();
    }
  }
};

/// Holds one or two stripes, taken in ascending order, until it goes out of scope.
template <bool kActive, bool kExclusive, class Media>
class StripeGuard {
 public:
  StripeGuard(const Stripes& stripes, const Media& media, std::uint64_t a) noexcept
      : StripeGuard(stripes, media, a, a) {}
  StripeGuard(const Stripes& stripes, const Media& media, std::uint64_t a, std::uint64_t b) noexcept
      : stripes_(stripes), low_(std::min(a, b)), high_(std::max(a, b)) {
    if constexpr (kActive) {
      stripes_.template acquire<kExclusive>(low_, media);
      if (high_ != low_) stripes_.template acquire<kExclusive>(high_, media);
    }
  }
  StripeGuard(const StripeGuard&) = delete;
  StripeGuard& operator=(const StripeGuard&) = delete;
  [[gnu::always_inline]] ~StripeGuard() {
    if constexpr (kActive) {
      if (high_ != low_) stripes_.release(high_);
      stripes_.release(low_);
    }
  }

 private:
  const Stripes& stripes_;
  std::uint64_t low_;
  std::uint64_t high_;
};

}  // namespace dunnock::detail
