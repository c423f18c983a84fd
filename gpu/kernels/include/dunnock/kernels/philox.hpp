// Philox 4x32-10: random numbers as a function of a key and a counter, so that any thread of any device can compute the
// numbers at any position, with the same bits everywhere.
// Source: Salmon, Moraes, Dror, Shaw: Parallel Random Numbers: As Easy as 1, 2, 3 (SC 2011,
// doi 10.1145/2063384.2063405).
#pragma once

#include <cstdint>

#include "dunnock/device/bf16.hpp"

namespace dunnock::kernels {

/// Selects a stream of numbers. Word w of it is word w % 4 of block first_block + w / 4; two uses of one seed that must
/// not be correlated take blocks that do not overlap.
struct RandomKey {
  std::uint64_t seed = 0;
  std::uint64_t first_block = 0;
};

struct PhiloxBlock {
  std::uint32_t words[4];
};

/// The ten rounds; `counter` and `key` as in the paper, the lower half first.
[[nodiscard]] DUNNOCK_HOST_DEVICE constexpr PhiloxBlock philox(PhiloxBlock counter, std::uint32_t key_low,
                                                               std::uint32_t key_high) noexcept {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{0xD2511F53U} * counter.words[0];
    const std::uint64_t b = std::uint64_t{0xCD9E8D57U} * counter.words[2];
    counter = {static_cast<std::uint32_t>(b >> 32) ^ counter.words[1] ^ key_low, static_cast<std::uint32_t>(b),
               static_cast<std::uint32_t>(a >> 32) ^ counter.words[3] ^ key_high, static_cast<std::uint32_t>(a)};
    key_low += 0x9E3779B9U;
    key_high += 0xBB67AE85U;
  }
  return counter;
}

/// Block `n` of the key's numbers: the block is the counter's lower half, its upper one is 0.
[[nodiscard]] DUNNOCK_HOST_DEVICE constexpr PhiloxBlock philox_block(const RandomKey& key, std::uint64_t n) noexcept {
  const std::uint64_t block = key.first_block + n;
  return philox({static_cast<std::uint32_t>(block), static_cast<std::uint32_t>(block >> 32), 0, 0},
                static_cast<std::uint32_t>(key.seed), static_cast<std::uint32_t>(key.seed >> 32));
}

/// 24 bits of a word as 0 <= u < 1.
[[nodiscard]] DUNNOCK_HOST_DEVICE constexpr float uniform_of(std::uint32_t word) noexcept {
  return static_cast<float>(word >> 8) * 0x1p-24F;
}
/// A value is kept when its word's 24 bits are below this: with the probability `keep`, to 2^-25.
[[nodiscard]] DUNNOCK_HOST_DEVICE constexpr std::uint32_t keep_threshold(float keep) noexcept {
  return static_cast<std::uint32_t>(keep * 0x1p24F + 0.5F);
}
[[nodiscard]] DUNNOCK_HOST_DEVICE constexpr bool is_kept(std::uint32_t word, std::uint32_t threshold) noexcept {
  return (word >> 8) < threshold;
}

}  // namespace dunnock::kernels
