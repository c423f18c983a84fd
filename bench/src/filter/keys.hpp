// The keys of a run: distinct, in random order, the same for every filter.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "dunnock/filter/layout.hpp"
#include "mix.hpp"

namespace dunnock::bench {

using KeySpan = std::span<const std::uint64_t>;

class Keys {
 public:
  static constexpr std::uint64_t kLookups = 4'000'000;

  Keys(std::uint64_t count, std::uint64_t seed) : in_(count), absent_(kLookups), some_(kLookups) {
    for (std::uint64_t i = 0; i < count; ++i) in_[i] = mix(seed << 40 | i);
    for (std::uint64_t i = 0; i < kLookups; ++i) absent_[i] = mix(seed << 40 | 1ULL << 39 | i);
  }
  /// To be inserted, in this order.
  [[nodiscard]] KeySpan in() const { return in_; }
  /// The keys that are inserted when the first `last` are, without the first `first`.
  [[nodiscard]] KeySpan in(std::uint64_t first, std::uint64_t last) const {
    return KeySpan(in_).subspan(first, last - first);
  }
  /// Never inserted.
  [[nodiscard]] KeySpan absent() const { return absent_; }
  /// Drawn from the first `inserted` ones, with repetitions. Valid until the next call.
  [[nodiscard]] KeySpan present(std::uint64_t inserted, std::uint64_t salt) {
    for (std::uint64_t i = 0; i < kLookups; ++i) some_[i] = in_[multiply_high(mix(salt << 32 | i), inserted)];
    return some_;
  }

 private:
  std::vector<std::uint64_t> in_, absent_, some_;
};

}  // namespace dunnock::bench
