// Bf16: the upper half of a float, with its range and 8 bits of precision. A storage type; arithmetic is done in float.
#pragma once

#include <bit>
#include <cstdint>

#if defined(__CUDACC__)
#define DUNNOCK_HOST_DEVICE __host__ __device__
#else
#define DUNNOCK_HOST_DEVICE
#endif

namespace dunnock::device {

struct Bf16 {
  std::uint16_t bits = 0;

  Bf16() = default;
  /// Rounds to nearest, ties to even; a NaN stays NaN.
  DUNNOCK_HOST_DEVICE explicit constexpr Bf16(float value) noexcept {
    const auto word = std::bit_cast<std::uint32_t>(value);
    const bool is_nan = (word & 0x7fffffffU) > 0x7f800000U;
    bits = static_cast<std::uint16_t>(is_nan ? (word >> 16 | 0x40U) : (word + 0x7fffU + (word >> 16 & 1U)) >> 16);
  }
  DUNNOCK_HOST_DEVICE explicit constexpr operator float() const noexcept {
    return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
  }
  friend bool operator==(const Bf16&, const Bf16&) = default;  ///< Compares the bits.
};
static_assert(sizeof(Bf16) == 2);

}  // namespace dunnock::device
