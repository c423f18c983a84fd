// Keys for filters and sets: number i is always the same, and none comes twice.
#pragma once

#include <cstdint>

#include "dunnock/device/memory.hpp"
#include "dunnock/filter/layout.hpp"

namespace dunnock::gpu_check {

/// A bijection of 64 bits, each bit of which depends on all (the finalizer of MurmurHash3).
DUNNOCK_HOST_DEVICE constexpr std::uint64_t mixed(std::uint64_t x) noexcept {
  x ^= x >> 33;
  x *= 0xff51afd7ed558ccdULL;
  x ^= x >> 33;
  x *= 0xc4ceb9fe1a85ec53ULL;
  return x ^ x >> 33;
}
DUNNOCK_HOST_DEVICE constexpr std::uint64_t key_number(std::uint64_t i) noexcept {
  return mixed(i + 0x9e3779b97f4a7c15ULL);
}

/// keys[i] = key_number(first + i), made where they lie.
void make_keys(device::Span<std::uint64_t> keys, std::uint64_t first, device::Stream& stream);

}  // namespace dunnock::gpu_check
