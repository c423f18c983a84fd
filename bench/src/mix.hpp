// Numbers that look random: SplitMix64's finalizer (Steele, Lea, Flood 2014).
#pragma once

#include <cstdint>

namespace dunnock::bench {

constexpr std::uint64_t mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

}  // namespace dunnock::bench
