// Seeded hashing of keys for the filter: 64-bit integers and byte strings.
//
// Integers: (low, high) = (x ^ a) * b as 128 bits, then h = fold((low ^ c) * (high ^ d)), fold = high half ^ low half:
// two multiplications with four secret words that are drawn at random for every filter, so nobody can choose colliding
// keys without the seed. Byte strings: XXH3 (128 bits) with a secret derived from the seed, folded the same way.
// tests/filter/hash_test.cpp measures evenness on sequences, strides, grids and sparse bits.
//
// Why not less: with one multiplication the groups of strided keys were up to 175 standard deviations from even.
// Why not more: on a table larger than the cache the processor overlaps as many lookups as fit its instruction window,
// so every instruction here counts.
//
// Not a cryptographic hash: anyone who can read the pool has the seed.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <string_view>

namespace dunnock {

/// The random words that make one filter's hash its own. Stored in the filter's header.
struct HashSeed {
  std::array<std::uint64_t, 4> words{};  // a, b, c, d

  /// A seed from the operating system's entropy.
  [[nodiscard]] static HashSeed random();
  /// The same seed for the same number: for tests and replays.
  [[nodiscard]] static HashSeed from(std::uint64_t number) noexcept;

  friend bool operator==(const HashSeed&, const HashSeed&) = default;
};

/// Hashes keys under one seed. Immutable, so any number of threads may share it. All 64 bits of the result are good.
class KeyHasher {
 public:
  explicit KeyHasher(const HashSeed& seed) noexcept;

  [[nodiscard]] std::uint64_t operator()(std::uint64_t key) const noexcept {
    // b is odd, so the low half alone is a bijection of the key: nothing is lost in the first step.
    const unsigned __int128 product = static_cast<unsigned __int128>(key ^ seed_.words[0]) * seed_.words[1];
    return fold(static_cast<std::uint64_t>(product) ^ seed_.words[2],
                static_cast<std::uint64_t>(product >> 64) ^ seed_.words[3]);
  }

  [[nodiscard]] std::uint64_t operator()(std::string_view key) const noexcept;

  /// Keys of 128 bits: each half has its own multiplication before the last one combines them.
  [[nodiscard]] std::uint64_t operator()(std::uint64_t low, std::uint64_t high) const noexcept {
    const unsigned __int128 a = static_cast<unsigned __int128>(low ^ seed_.words[0]) * seed_.words[1];
    const unsigned __int128 b = static_cast<unsigned __int128>(high ^ seed_.words[2]) * (seed_.words[3] | 1);
    return fold(static_cast<std::uint64_t>(a) ^ static_cast<std::uint64_t>(b >> 64) ^ seed_.words[3],
                static_cast<std::uint64_t>(a >> 64) ^ static_cast<std::uint64_t>(b) ^ seed_.words[2]);
  }

  /// The seed in use: as given, with an odd b.
  [[nodiscard]] const HashSeed& seed() const noexcept { return seed_; }

 private:
  /// High half ^ low half of the product.
  [[nodiscard]] static std::uint64_t fold(std::uint64_t a, std::uint64_t b) noexcept {
    const unsigned __int128 product = static_cast<unsigned __int128>(a) * b;
    return static_cast<std::uint64_t>(product >> 64) ^ static_cast<std::uint64_t>(product);
  }

  HashSeed seed_;
  std::array<unsigned char, 192> secret_{};  // XXH3's secret, a function of the seed.
};

}  // namespace dunnock
