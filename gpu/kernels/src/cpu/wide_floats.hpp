// Floats side by side, as many as a register holds: 16 with AVX-512, 8 with the AVX2 that the build asks for. Code over
// them is a template of the lanes, and everything in it is inlined into one of two functions, of which one is compiled
// for AVX-512:
//
//   DUNNOCK_FOR_AVX512 void work_512(Args args) { work<16>(args); }
//   void work_256(Args args) { work<8>(args); }
//   has_avx512() ? work_512(args) : work_256(args)
//
// Loops over vectors are of GCC's vector extension, since compilers do not see through blocks of accumulators.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "dunnock/device/bf16.hpp"

// Vectors are wider than the baseline's registers, but no function that is not inlined has one as a parameter.
#pragma GCC diagnostic ignored "-Wpsabi"

#define DUNNOCK_INLINE inline __attribute__((always_inline))
#define DUNNOCK_FOR_AVX512 \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512cd,prefer-vector-width=512"), noinline))

namespace dunnock::kernels::detail {

[[nodiscard]] inline bool has_avx512() noexcept {
  static const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                          __builtin_cpu_supports("avx512cd");
  return has;
}

template <unsigned kLanes>
struct WideTypes;
template <>
struct WideTypes<16> {
  using Float = float __attribute__((vector_size(64)));
  using Int = std::int32_t __attribute__((vector_size(64)));
  using Bits = std::uint32_t __attribute__((vector_size(64)));
  using Word = std::uint32_t __attribute__((vector_size(64)));
  using Half = std::uint16_t __attribute__((vector_size(32)));
};
template <>
struct WideTypes<8> {
  using Float = float __attribute__((vector_size(32)));
  using Int = std::int32_t __attribute__((vector_size(32)));
  using Bits = std::uint32_t __attribute__((vector_size(32)));
  using Word = std::uint32_t __attribute__((vector_size(32)));
  using Half = std::uint16_t __attribute__((vector_size(16)));
};

/// Operations on `kLanes` floats; addresses need no alignment.
template <unsigned kLanes>
struct Wide {
  using Float = typename WideTypes<kLanes>::Float;
  using Int = typename WideTypes<kLanes>::Int;
  using Bits = typename WideTypes<kLanes>::Bits;  // Arithmetic on them wraps, as it does below -87.3.
  using Word = typename WideTypes<kLanes>::Word;
  using Half = typename WideTypes<kLanes>::Half;

  DUNNOCK_INLINE static Float load(const float* from) {
    Float value;
    std::memcpy(&value, from, sizeof value);
    return value;
  }
  DUNNOCK_INLINE static Float load(const device::Bf16* from) {
    Half bits;
    std::memcpy(&bits, from, sizeof bits);
    return (Float)(__builtin_convertvector(bits, Word) << 16);  // NOLINT: reinterprets
  }
  DUNNOCK_INLINE static void store(float* to, Float value) { std::memcpy(to, &value, sizeof value); }
  /// Rounds to nearest even, as Bf16(float) does; a NaN stays one.
  DUNNOCK_INLINE static void store(device::Bf16* to, Float value) {
    const Word word = (Word)value;  // NOLINT: reinterprets
    const Word rounded = (word + 0x7fffU + ((word >> 16) & 1U)) >> 16;
    const Word is_nan = (Word)(value != value);  // NOLINT: reinterprets
    const Half bits = __builtin_convertvector((is_nan & ((word >> 16) | 0x40U)) | (~is_nan & rounded), Half);
    std::memcpy(static_cast<void*>(to), &bits, sizeof bits);
  }
  /// The first `count` values; the rest are 0.
  template <class T>
  DUNNOCK_INLINE static Float load_some(const T* from, std::size_t count) {
    if (count >= kLanes) return load(from);
    T values[kLanes] = {};
    std::memcpy(static_cast<void*>(values), from, count * sizeof(T));
    return load(values);
  }
  template <class T>
  DUNNOCK_INLINE static void store_some(T* to, Float value, std::size_t count) {
    if (count >= kLanes) return store(to, value);
    T values[kLanes];
    store(values, value);
    std::memcpy(static_cast<void*>(to), values, count * sizeof(T));
  }
  DUNNOCK_INLINE static Float max(Float a, Float b) { return a > b ? a : b; }

  /// e^x within 2 units in the last place; 0 below -87.3. x is not above 88.
  DUNNOCK_INLINE static Float exp(Float x) {
    constexpr float kMagic = 12582912.0F;            // 1.5 * 2^23: adding it rounds to an integer
    const Float shifted = x * 1.44269504F + kMagic;  // of log2(e) x
    const Float n = shifted - kMagic;
    const Float r = (x - n * 0.693145751953125F) - n * 1.42860677e-6F;  // ln 2 in two parts, the first exact times n
    Float p = r * 1.3888889e-3F + 8.3333333e-3F;                        // Taylor; |r| <= ln(2) / 2: error 1.2e-7
    p = p * r + 4.16666667e-2F;
    p = p * r + 0.166666667F;
    p = p * r + 0.5F;
    p = p * r + 1.0F;
    p = p * r + 1.0F;
    const Bits exponent = (Bits)shifted << 23;        // NOLINT: n's low bits move to the exponent
    const Float value = (Float)((Bits)p + exponent);  // NOLINT: reinterprets
    return x < -87.3F ? Float{} : value;
  }

  template <std::size_t... kLane>
  DUNNOCK_INLINE static Float take_low(Float a, Float b, int distance, std::index_sequence<kLane...>) {
    const Int from = {((int(kLane) & distance) == 0 ? int(kLane) : int(kLane) - distance + int(kLanes))...};
    return __builtin_shuffle(a, b, from);
  }
  template <std::size_t... kLane>
  DUNNOCK_INLINE static Float take_high(Float a, Float b, int distance, std::index_sequence<kLane...>) {
    const Int from = {((int(kLane) & distance) == 0 ? int(kLane) + distance : int(kLane) + int(kLanes))...};
    return __builtin_shuffle(a, b, from);
  }
  /// rows[i][j] <-> rows[j][i], by halves: two rows at a distance of 1, 2, 4, ... swap half of their lanes.
  DUNNOCK_INLINE static void transpose(Float (&rows)[kLanes]) {
    constexpr auto kAll = std::make_index_sequence<kLanes>{};
#pragma GCC unroll 4
    for (unsigned distance = 1; distance < kLanes; distance *= 2) {
#pragma GCC unroll 16
      for (unsigned i = 0; i < kLanes; ++i) {
        if ((i & distance) != 0) continue;
        const Float a = rows[i];
        const Float b = rows[i + distance];
        rows[i] = take_low(a, b, int(distance), kAll);
        rows[i + distance] = take_high(a, b, int(distance), kAll);
      }
    }
  }
  /// Lane i of what is returned: the sum of rows[i].
  DUNNOCK_INLINE static Float sums_of_rows(Float (&rows)[kLanes]) {
    constexpr auto kAll = std::make_index_sequence<kLanes>{};
#pragma GCC unroll 4
    for (unsigned distance = 1; distance < kLanes; distance *= 2) {
#pragma GCC unroll 16
      for (unsigned i = 0; i < kLanes; i += 2 * distance) {
        const Float a = rows[i];
        const Float b = rows[i + distance];
        rows[i] = take_low(a, b, int(distance), kAll) + take_high(a, b, int(distance), kAll);
      }
    }
    return rows[0];
  }
  DUNNOCK_INLINE static float max_of(Float value) {
    float lanes[kLanes];
    store(lanes, value);
    float max = lanes[0];
    for (unsigned i = 1; i < kLanes; ++i) max = lanes[i] > max ? lanes[i] : max;
    return max;
  }
  DUNNOCK_INLINE static float sum_of(Float value) {
    float lanes[kLanes];
    store(lanes, value);
    for (unsigned width = kLanes / 2; width > 0; width /= 2) {
      for (unsigned i = 0; i < width; ++i) lanes[i] += lanes[i + width];
    }
    return lanes[0];
  }
};

}  // namespace dunnock::kernels::detail
