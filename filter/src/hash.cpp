#include "dunnock/filter/hash.hpp"

#include <xxhash.h>

#include <cstring>
#include <random>

namespace dunnock {
namespace {

// Steele, Lea, Flood: SplitMix64 (OOPSLA 2014). One step of the sequence that starts at `state`.
std::uint64_t splitmix64(std::uint64_t& state) noexcept {
  std::uint64_t z = (state += 0x9e3779b97f4a7c15ULL);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return z ^ (z >> 31);
}

}  // namespace

HashSeed HashSeed::random() {
  std::random_device entropy;
  HashSeed seed;
  for (std::uint64_t& word : seed.words) word = (static_cast<std::uint64_t>(entropy()) << 32) | entropy();
  return seed;
}

HashSeed HashSeed::from(std::uint64_t number) noexcept {
  HashSeed seed;
  for (std::uint64_t& word : seed.words) word = splitmix64(number);
  return seed;
}

KeyHasher::KeyHasher(const HashSeed& seed) noexcept : seed_(seed) {
  seed_.words[1] |= 1;
  std::uint64_t state = seed.words[0] ^ (seed.words[1] * 3) ^ (seed.words[2] * 5) ^ (seed.words[3] * 7);
  for (std::size_t at = 0; at < secret_.size(); at += sizeof state) {
    const std::uint64_t word = splitmix64(state) ^ seed.words[(at / sizeof state) % 4];
    std::memcpy(secret_.data() + at, &word, sizeof word);
  }
}

std::uint64_t KeyHasher::operator()(std::string_view key) const noexcept {
  const XXH128_hash_t digest = XXH3_128bits_withSecret(key.data(), key.size(), secret_.data(), secret_.size());
  return fold(digest.low64 ^ seed_.words[2], digest.high64 ^ seed_.words[3]);
}

}  // namespace dunnock
