// exp, tanh, erf, log, sine and cosine of floats that the compiler makes vectors of, and loads and stores that it can:
// no branches, no calls, no tables. For loops of the CPU kernels:
//
//   widest([&]() DUNNOCK_INLINED {
//   #pragma omp simd
//     for (std::size_t i = first; i < last; ++i) store(y + i, vector_math::tanh(load(x + i)));
//   });
//
// The coefficients are minimax fits of our own (least squares, reweighted after Lawson). The errors below, against
// double, are of all floats in the range; tests/gpu/kernels/vector_math_test.cpp proves them.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "dunnock/device/bf16.hpp"

#define DUNNOCK_INLINED __attribute__((always_inline))

#if defined(__x86_64__)
#define DUNNOCK_AVX512 \
  __attribute__((target("avx512f,avx512bw,avx512cd,avx512dq,avx512vl,prefer-vector-width=512"), noinline))
#endif

namespace dunnock::kernels::detail {

#if defined(__x86_64__)
template <class F>
DUNNOCK_AVX512 void with_avx512(const F& f) {
  f();
}
#endif
template <class F>
__attribute__((noinline)) void with_baseline(const F& f) {
  f();
}

/// Calls f, compiled for the widest vectors that this processor has. `f` and what it calls are DUNNOCK_INLINED: what is
/// not inlined keeps the vectors of the build. Which of them runs does not change within a process.
template <class F>
void widest(const F& f) {
#if defined(__x86_64__)
  static const bool has_avx512 = __builtin_cpu_supports("avx512bw") != 0 && __builtin_cpu_supports("avx512cd") != 0 &&
                                 __builtin_cpu_supports("avx512dq") != 0 && __builtin_cpu_supports("avx512vl") != 0;
  if (has_avx512) return with_avx512(f);
#endif
  with_baseline(f);
}

// ----- values -------------------------------------------------------------------------------------------------------

// Of Bf16 by its bits: g++ 12 makes no vectors of `y[i] = Bf16(value)`, which is a temporary of a class.
DUNNOCK_INLINED inline float load(const float* from) { return *from; }
DUNNOCK_INLINED inline float load(const device::Bf16* from) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(from->bits) << 16);
}
DUNNOCK_INLINED inline void store(float* to, float value) { *to = value; }
/// Rounds as Bf16(value) does.
DUNNOCK_INLINED inline void store(device::Bf16* to, float value) {
  const auto word = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t rounded = (word + 0x7fffU + (word >> 16 & 1U)) >> 16;
  const std::uint32_t quiet = word >> 16 | 0x40U;
  to->bits = static_cast<std::uint16_t>((word & 0x7fffffffU) > 0x7f800000U ? quiet : rounded);
}

namespace vector_math {

/// Adding it rounds a float of less than 2^22 to an integer, which is then in the low bits.
inline constexpr float kRounder = 12582912.0F;  // 1.5 * 2^23
inline constexpr std::int32_t kRounderBits = 0x4b400000;

DUNNOCK_INLINED inline float power_of_two(std::int32_t n) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(n + 127) << 23);
}

/// Of all floats; 0 below -103.98, infinity above 88.73, of a NaN a NaN. Error: 1.1 units in the last place, and half a
/// denormal's step where the result is one.
DUNNOCK_INLINED inline float exp(float x) {
  x = x < -104.0F ? -104.0F : x;  // A NaN stays.
  x = x > 89.0F ? 89.0F : x;
  const float rounded = x * 1.44269502F + kRounder;
  const std::int32_t n = std::bit_cast<std::int32_t>(rounded) - kRounderBits;
  const float whole = rounded - kRounder;
  const float r = (x - whole * 0.693359375F) - whole * -2.12194440e-4F;  // The first has 9 bits: exact.
  const float q = (((0.00139517197F * r + 0.00836959854F) * r + 0.0416661873F) * r + 0.166665122F) * r + 0.5F;
  const float p = 1.0F + (r + r * r * q);
  const std::int32_t half = n >> 1;  // 2^n in two steps: n may be 128, or that of a denormal.
  return p * power_of_two(half) * power_of_two(n - half);
}

/// Error: 3 units in the last place.
DUNNOCK_INLINED inline float sigmoid(float x) { return 1.0F / (1.0F + exp(-x)); }

/// Within -1 and 1, which it is beyond 9.05; error: 5 units in the last place, which is 3e-7 near 1.
DUNNOCK_INLINED inline float tanh(float x) {
  float c = x < -9.05F ? -9.05F : x;
  c = c > 9.05F ? 9.05F : c;
  const float t = c * c;
  const float p =
      ((((-1.21394665e-11F * t + 3.0498768e-08F) * t + 2.79716223e-05F) * t + 0.00386655307F) * t + 0.136784986F) * t +
      1.0F;
  const float q = (((1.28486158e-06F * t + 0.000393550086F) * t + 0.027239345F) * t + 0.470118314F) * t + 1.0F;
  float y = c * p / q;
  y = y > 1.0F ? 1.0F : y;
  y = y < -1.0F ? -1.0F : y;
  y = x > 9.05F ? 1.0F : y;
  return x < -9.05F ? -1.0F : y;
}

/// Within -1 and 1, which it is beyond 3.95; error: 6 units in the last place, which is 3.6e-7 near 1.
DUNNOCK_INLINED inline float erf(float x) {
  float c = x < -3.95F ? -3.95F : x;
  c = c > 3.95F ? 3.95F : c;
  const float t = c * c;
  const float p =
      ((((2.02590422e-06F * t + 0.000284686103F) * t + 0.00380812399F) * t + 0.0528753288F) * t + 0.191549554F) * t +
      1.12837911F;
  const float q =
      ((((3.78316763e-05F * t + 0.0011707152F) * t + 0.0150550148F) * t + 0.114559293F) * t + 0.50308907F) * t + 1.0F;
  float y = c * p / q;
  y = y > 1.0F ? 1.0F : y;
  y = y < -1.0F ? -1.0F : y;
  y = x > 3.95F ? 1.0F : y;
  return x < -3.95F ? -1.0F : y;
}

/// Of normal floats above 0 only (of others: any value). Error: 1.5 units in the last place, or 1e-7 near 1.
DUNNOCK_INLINED inline float log(float x) {
  const auto word = std::bit_cast<std::int32_t>(x);
  const std::int32_t e = (word - 0x3f3504f3) >> 23;  // x = 2^e * m, sqrt(1/2) <= m < sqrt(2)
  const float f = std::bit_cast<float>(static_cast<std::uint32_t>(word) - (static_cast<std::uint32_t>(e) << 23)) - 1.0F;
  const auto n = static_cast<float>(e);
  float p = -0.0763449296F * f + 0.12761575F;
  p = p * f - 0.131601825F;
  p = p * f + 0.142017588F;
  p = p * f - 0.166233569F;
  p = p * f + 0.200012267F;
  p = p * f - 0.250008196F;
  p = p * f + 0.333333313F;
  const float square = f * f;
  return n * 0.693359375F + (f + (n * -2.12194440e-4F + square * (f * p - 0.5F)));
}

struct SineCosine {
  float sine, cosine;
};
/// Of 2 pi * turn, |turn| < 2^19. Error: 1e-7.
DUNNOCK_INLINED inline SineCosine sine_cosine(float turn) {
  const float rounded = turn * 4.0F + kRounder;
  const std::uint32_t quarter = std::bit_cast<std::uint32_t>(rounded);
  const float r = (turn - (rounded - kRounder) * 0.25F) * 6.28318531F;  // within pi / 4
  const float t = r * r;
  const float s = r + r * t * ((-0.00019514632F * t + 0.00833215564F) * t - 0.166666552F);
  const float c = 1.0F + t * (((2.44377297e-05F * t - 0.00138873619F) * t + 0.0416666456F) * t - 0.5F);
  const bool odd = (quarter & 1U) != 0;
  const auto sine = std::bit_cast<std::uint32_t>(odd ? c : s) ^ (quarter & 2U) << 30;
  const auto cosine = std::bit_cast<std::uint32_t>(odd ? s : c) ^ ((quarter + 1U) & 2U) << 30;
  return {std::bit_cast<float>(sine), std::bit_cast<float>(cosine)};
}

}  // namespace vector_math
}  // namespace dunnock::kernels::detail
