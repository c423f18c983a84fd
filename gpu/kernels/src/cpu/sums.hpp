// Sums of float expressions over an index, as CPU kernels want them: many independent partial sums, so that additions
// do not wait for each other, and always in the same order.
#pragma once

#include <array>
#include <cstddef>

namespace dunnock::kernels::detail {

/// The sums of f(i), an array of kSums floats, over i = 0 .. count - 1. To be inlined where vectors are as wide as the
/// caller's; f must be plain arithmetic.
template <std::size_t kSums, class F>
[[gnu::always_inline]] inline std::array<float, kSums> sums_over(std::size_t count, const F& f) {
  constexpr std::size_t kLanes = 64;  // Four vectors of AVX-512 to hide the latency of an addition.
  float partial[kSums][kLanes] = {};
  std::size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
#pragma GCC ivdep
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      const std::array<float, kSums> values = f(i + lane);
      for (std::size_t s = 0; s < kSums; ++s) partial[s][lane] += values[s];
    }
  }
  for (std::size_t lane = 0; i < count; ++i, ++lane) {
    const std::array<float, kSums> values = f(i);
    for (std::size_t s = 0; s < kSums; ++s) partial[s][lane] += values[s];
  }
  std::array<float, kSums> sums{};
  for (std::size_t s = 0; s < kSums; ++s) {
    for (std::size_t width = kLanes / 2; width > 0; width /= 2) {
      for (std::size_t lane = 0; lane < width; ++lane) partial[s][lane] += partial[s][lane + width];
    }
    sums[s] = partial[s][0];
  }
  return sums;
}

}  // namespace dunnock::kernels::detail
