// Random orders that are functions: the i-th of a permutation or of a sequence, from a key, without a table and without
// what came before. So a position in a run is a number, and no generator's state has to be saved.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

namespace dunnock::data::detail {

/// Mixes all bits (the finalizer of SplitMix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators",
/// OOPSLA 2014).
[[nodiscard]] constexpr std::uint64_t mixed(std::uint64_t x) noexcept {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
  x = (x ^ x >> 27) * 0x94d049bb133111eb;
  return x ^ x >> 31;
}
[[nodiscard]] constexpr std::uint64_t mixed(std::uint64_t key, std::uint64_t x) noexcept {
  return mixed(mixed(key) ^ x);
}

/// A number below `bound` (>= 1) from random bits; the bias is below bound / 2^64.
[[nodiscard]] constexpr std::uint64_t below(std::uint64_t bound, std::uint64_t random) noexcept {
  __extension__ using Wide = unsigned __int128;
  return static_cast<std::uint64_t>(static_cast<Wide>(random) * bound >> 64);
}

/// A permutation of 0 .. size - 1, chosen by a key: a Feistel network over the next even power of two; what falls
/// outside goes through it again (less than 4 times on average).
class Permutation {
 public:
  constexpr Permutation(std::uint64_t size, std::uint64_t key) noexcept
      : size_(size), key_(key), half_bits_(std::max(1U, (static_cast<unsigned>(std::bit_width(size - 1)) + 1) / 2)) {}

  /// `index` < size.
  [[nodiscard]] constexpr std::uint64_t operator()(std::uint64_t index) const noexcept {
    if (size_ < 2) return index;
    do {
      index = through(index);
    } while (index >= size_);
    return index;
  }

 private:
  static constexpr unsigned kRounds = 8;  // 4 make it pseudo-random for wide halves; small ones need some more.

  [[nodiscard]] constexpr std::uint64_t through(std::uint64_t value) const noexcept {
    const std::uint64_t mask = (std::uint64_t{1} << half_bits_) - 1;
    std::uint64_t left = value >> half_bits_, right = value & mask;
    for (unsigned round = 0; round < kRounds; ++round) {
      const std::uint64_t next = left ^ (mixed(key_ + round, right) >> (64 - half_bits_));
      left = right;
      right = next;
    }
    return left << half_bits_ | right;
  }

  std::uint64_t size_;
  std::uint64_t key_;
  unsigned half_bits_;
};

}  // namespace dunnock::data::detail
