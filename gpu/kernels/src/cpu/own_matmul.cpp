// The CPU's own matrix product: packed, blocked, and all of the epilogue while a tile of C lies in the first cache.
//
//   a thread's part of C       columns in blocks of kBlockColumns, rows in blocks of kBlockRows, depth in blocks of
//                              kBlockDepth
//   B of a block  -> panels    (depth, kTileColumns), one after the other        1 MiB: shared cache
//   A of a block  -> panels    (depth, rows of the tile)                         half of a core's second cache
//   tile of C                  registers: 14 x 32 (AVX-512), 6 x 16 (AVX2); all of the depth, then the epilogue
//
// A depth is a float of A and of B; where the processor multiplies bf16, two of them in the 32 bits of a float. Bf16
// becomes float while it is packed elsewhere. Each value of C is summed in the order of the depth, so it does not
// depend on the threads.
#include <immintrin.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <utility>

#include "matmul_call.hpp"
#include "parallel.hpp"

// GCC 12 takes the intrinsics' own undefined operands for uninitialized ones.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

namespace dunnock::kernels::detail {
namespace {

using Word = std::uint32_t;  // a float, or two Bf16

constexpr std::size_t kBlockColumns = 512;
constexpr std::size_t kBlockRows = 224;
constexpr std::size_t kBlockDepth = 512;
constexpr std::size_t kTileWords = 14 * 32;

constexpr std::size_t kPanelsB = kBlockColumns * kBlockDepth;
constexpr std::size_t kPanelsA = kBlockRows * kBlockDepth;
constexpr std::size_t kSums = kBlockRows * kBlockColumns;
constexpr std::size_t kPartWords = kPanelsB + kPanelsA + kSums;

/// Products that make another thread worth waking: some 10 us of one.
constexpr std::size_t kProductsAThread = 1 << 20;

// ----- the epilogue -------------------------------------------------------------------------------------------------

#define DUNNOCK_INLINE [[gnu::always_inline]] inline

/// Within 2 units in the last place where exp(x) is a normal float; else the nearest one. Source: Cody, Waite 1980.
DUNNOCK_INLINE float exp_of(float x) {
  x = x < -87.0F ? -87.0F : x;
  x = x > 88.0F ? 88.0F : x;
  const float shifted = x * 1.44269504F + 12582912.0F;  // 1.5 * 2^23: its low bits are the nearest integer.
  const float n = shifted - 12582912.0F;
  const float r = (x - n * 0.693359375F) + n * 2.12194440e-4F;
  float p = 1.9875691500e-4F;
  p = p * r + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  p = p * r * r + r + 1.0F;
  return p * std::bit_cast<float>((std::bit_cast<std::uint32_t>(shifted) + 127U) << 23);
}

constexpr float kGeluScale = 0.7978845608F;  // sqrt(2 / pi)
constexpr float kGeluCube = 0.044715F;

/// (1 + tanh(u)) / 2 of GELU's u; below -10 it is nothing in float, and x may be too large to be multiplied by less.
DUNNOCK_INLINE float gelu_gate(float x) {
  const float u = kGeluScale * (x + kGeluCube * x * x * x);
  const float gate = 1.0F / (1.0F + exp_of(-2.0F * u));
  return x < -10.0F ? 0.0F : gate;
}
DUNNOCK_INLINE float gelu_derivative(float at) {
  float x = at < -10.0F ? -10.0F : at;  // Constant beyond, and no squares that overflow.
  x = x > 10.0F ? 10.0F : x;
  const float gate = gelu_gate(x);
  return gate + 2.0F * x * gate * (1.0F - gate) * kGeluScale * (1.0F + 3.0F * kGeluCube * x * x);
}

/// A part of C and what is done to it. The pointers are of its first value; null: not wanted.
template <class C>
struct Finish {
  C* c;
  C* saved;
  const C* gradient_at;
  const C* bias;
  std::size_t ldc;
  float alpha;
  float beta;
  MatmulActivation activation;

  DUNNOCK_INLINE Finish moved(std::size_t row, std::size_t column) const {
    Finish there = *this;
    const std::size_t by = row * ldc + column;
    there.c += by;
    if (saved != nullptr) there.saved += by;
    if (gradient_at != nullptr) there.gradient_at += by;
    if (bias != nullptr) there.bias += column;
    return there;
  }
};

template <class C>
Finish<C> whole_finish(const MatmulEpilogue<C>& e, C* c, const MatmulShape& shape, std::size_t matrix) {
  const std::size_t by = matrix * shape.stride_c;
  const auto moved = [by](auto* at) { return at == nullptr ? nullptr : at + by; };
  return {c + by,
          moved(e.saved.device_data()),
          moved(e.gradient_at.device_data()),
          e.bias.device_data(),
          shape.ldc,
          e.alpha,
          e.beta,
          e.activation};
}

/// Sums of products (rows, columns) -> C. The sums are changed.
template <class C>
DUNNOCK_INLINE void finish_rows(float* sums, std::size_t stride, std::size_t rows, std::size_t columns,
                                const Finish<C>& f) {
  for (std::size_t i = 0; i < rows; ++i) {
    float* const v = sums + i * stride;
    C* const out = f.c + i * f.ldc;
    if (f.alpha != 1.0F) {
      for (std::size_t j = 0; j < columns; ++j) v[j] *= f.alpha;
    }
    if (f.beta != 0.0F) {
      for (std::size_t j = 0; j < columns; ++j) v[j] += f.beta * static_cast<float>(out[j]);
    }
    if (f.bias != nullptr) {
      for (std::size_t j = 0; j < columns; ++j) v[j] += static_cast<float>(f.bias[j]);
    }
    if (f.saved != nullptr) {
      C* const saved = f.saved + i * f.ldc;
      for (std::size_t j = 0; j < columns; ++j) saved[j] = C(v[j]);
    }
    if (f.gradient_at != nullptr) {
      const C* const at = f.gradient_at + i * f.ldc;
      if (f.activation == MatmulActivation::kRelu) {
        for (std::size_t j = 0; j < columns; ++j) v[j] = static_cast<float>(at[j]) <= 0.0F ? 0.0F : v[j];
      } else if (f.activation == MatmulActivation::kGelu) {
#pragma omp simd
        for (std::size_t j = 0; j < columns; ++j) v[j] *= gelu_derivative(static_cast<float>(at[j]));
      }
    } else if (f.activation == MatmulActivation::kRelu) {
      for (std::size_t j = 0; j < columns; ++j) v[j] = v[j] < 0.0F ? 0.0F : v[j];  // A NaN stays one.
    } else if (f.activation == MatmulActivation::kGelu) {
#pragma omp simd
      for (std::size_t j = 0; j < columns; ++j) v[j] *= gelu_gate(v[j]);
    }
    for (std::size_t j = 0; j < columns; ++j) out[j] = C(v[j]);
  }
}

template <class C>
[[gnu::target("arch=x86-64-v4")]] void finish_avx512(float* sums, std::size_t stride, std::size_t rows,
                                                     std::size_t columns, const Finish<C>& f) {
  if (columns == 32) return finish_rows(sums, stride, rows, 32, f);
  finish_rows(sums, stride, rows, columns, f);
}
template <class C>
void finish_base(float* sums, std::size_t stride, std::size_t rows, std::size_t columns, const Finish<C>& f) {
  if (columns == 16) return finish_rows(sums, stride, rows, 16, f);
  finish_rows(sums, stride, rows, columns, f);
}

/// v (rows, columns) with C's leading dimension -> C; v may be C.
template <class C>
DUNNOCK_INLINE void finish_values(const C* v, std::size_t rows, std::size_t columns, const Finish<C>& f) {
  constexpr std::size_t kChunk = 256;
  float values[kChunk];
  for (std::size_t i = 0; i < rows; ++i) {
    for (std::size_t j = 0; j < columns; j += kChunk) {
      const std::size_t count = std::min(kChunk, columns - j);
      for (std::size_t at = 0; at < count; ++at) values[at] = static_cast<float>(v[i * f.ldc + j + at]);
      finish_rows(values, kChunk, 1, count, f.moved(i, j));
    }
  }
}
template <class C>
[[gnu::target("arch=x86-64-v4")]] void finish_values_avx512(const C* v, std::size_t rows, std::size_t columns,
                                                            const Finish<C>& f) {
  finish_values(v, rows, columns, f);
}
template <class C>
void finish_values_base(const C* v, std::size_t rows, std::size_t columns, const Finish<C>& f) {
  finish_values(v, rows, columns, f);
}

// ----- packing ------------------------------------------------------------------------------------------------------

/// A strip of A's rows or B's columns, `lines` of them, and `depth` values of each from `first` on.
template <class T>
struct Strip {
  const T* from;  // value 0 of line 0
  std::size_t ld;
  std::size_t lines;
  std::size_t first;
  std::size_t depth;    // values, not words
  bool depth_is_inner;  // the values of a line lie side by side; else those of a depth do
};

DUNNOCK_INLINE Word word_of(float value) { return std::bit_cast<Word>(value); }

template <class T>
DUNNOCK_INLINE T strip_at(const Strip<T>& strip, std::size_t line, std::size_t depth) {
  return strip.depth_is_inner ? strip.from[line * strip.ld + strip.first + depth]
                              : strip.from[(strip.first + depth) * strip.ld + line];
}

/// -> panel (words of depth, width): floats; zeros beyond the lines.
template <class T>
DUNNOCK_INLINE void pack_floats(const Strip<T>& strip, std::size_t width, Word* panel) {
  for (std::size_t d = 0; d < strip.depth; ++d) {
    Word* const out = panel + d * width;
    for (std::size_t line = 0; line < strip.lines; ++line)
      out[line] = word_of(static_cast<float>(strip_at(strip, line, d)));
    for (std::size_t line = strip.lines; line < width; ++line) out[line] = 0;
  }
}

/// 16 rows of 16 words, transposed. Masked: `lines` of them are there, and `words` of each.
[[gnu::target("avx512f")]] inline void transpose_16(const void* from, std::size_t ld_bytes, std::size_t lines,
                                                    unsigned words, Word* to, std::size_t width,
                                                    std::size_t width_left) {
  __m512i r[16];
  const auto mask = static_cast<__mmask16>((1U << words) - 1);
  const char* const bytes = static_cast<const char*>(from);
#pragma GCC unroll 16
  for (std::size_t i = 0; i < 16; ++i)
    r[i] = i < lines ? _mm512_maskz_loadu_epi32(mask, bytes + i * ld_bytes) : _mm512_setzero_si512();
  __m512i t[16];
#pragma GCC unroll 8
  for (std::size_t i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (std::size_t i = 0; i < 4; ++i) {  // r[4 i + j]: column j of each quarter, of rows 4 i .. 4 i + 3
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
  __m512i out[16];
#pragma GCC unroll 4
  for (std::size_t j = 0; j < 4; ++j) {
    const __m512i low01 = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x88);       // quarters 0, 2 of rows 0..7
    const __m512i low23 = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x88);  // of rows 8..15
    const __m512i high01 = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xdd);      // quarters 1, 3
    const __m512i high23 = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xdd);
    out[j] = _mm512_shuffle_i32x4(low01, low23, 0x88);
    out[4 + j] = _mm512_shuffle_i32x4(high01, high23, 0x88);
    out[8 + j] = _mm512_shuffle_i32x4(low01, low23, 0xdd);
    out[12 + j] = _mm512_shuffle_i32x4(high01, high23, 0xdd);
  }
  const auto out_mask = static_cast<__mmask16>(width_left >= 16 ? 0xffffU : (1U << width_left) - 1);
#pragma GCC unroll 16
  for (unsigned w = 0; w < 16; ++w) {
    if (w < words) _mm512_mask_storeu_epi32(to + w * width, out_mask, out[w]);
  }
}

/// A strip whose lines lie side by side as words: floats, or pairs of Bf16.
[[gnu::target("avx512f")]] inline void pack_lines_avx512(const void* from, std::size_t ld_bytes, std::size_t lines,
                                                         std::size_t words, std::size_t width, Word* panel) {
  for (std::size_t line = 0; line < width; line += 16) {
    const char* const at = static_cast<const char*>(from) + std::min(line, lines) * ld_bytes;
    const std::size_t there = line < lines ? std::min<std::size_t>(16, lines - line) : 0;
    for (std::size_t w = 0; w < words; w += 16) {
      transpose_16(at + w * sizeof(Word), ld_bytes, there, static_cast<unsigned>(std::min<std::size_t>(16, words - w)),
                   panel + w * width + line, width, width - line);
    }
  }
}

[[gnu::target("avx512f")]] inline void pack_avx512(const Strip<float>& strip, std::size_t width, Word* panel) {
  if (strip.depth_is_inner)
    return pack_lines_avx512(strip.from + strip.first, strip.ld * sizeof(float), strip.lines, strip.depth, width,
                             panel);
  for (std::size_t line = 0; line < width; line += 16) {
    const std::size_t there = line < strip.lines ? std::min<std::size_t>(16, strip.lines - line) : 0;
    const auto mask = static_cast<__mmask16>((1U << there) - 1);
    const auto out_mask = static_cast<__mmask16>(width - line >= 16 ? 0xffffU : (1U << (width - line)) - 1);
    const float* const from = strip.from + strip.first * strip.ld + std::min(line, strip.lines);
    for (std::size_t d = 0; d < strip.depth; ++d) {
      _mm512_mask_storeu_epi32(panel + d * width + line, out_mask, _mm512_maskz_loadu_epi32(mask, from + d * strip.ld));
    }
  }
}

/// Pairs of Bf16, the earlier one in the lower half; a zero after the last of an odd depth.
[[gnu::target("avx512f,avx512bw,avx512vl")]] inline void pack_pairs_avx512(const Strip<device::Bf16>& strip,
                                                                           std::size_t width, Word* panel) {
  const std::size_t whole = strip.depth / 2;
  if (strip.depth_is_inner) {
    pack_lines_avx512(strip.from + strip.first, strip.ld * sizeof(device::Bf16), strip.lines, whole, width, panel);
    if (strip.depth % 2 != 0) {
      for (std::size_t line = 0; line < width; ++line)
        panel[whole * width + line] = line < strip.lines ? strip_at(strip, line, strip.depth - 1).bits : Word{0};
    }
    return;
  }
  for (std::size_t line = 0; line < width; line += 16) {
    const std::size_t there = line < strip.lines ? std::min<std::size_t>(16, strip.lines - line) : 0;
    const auto mask = static_cast<__mmask16>((1U << there) - 1);
    const auto out_mask = static_cast<__mmask16>(width - line >= 16 ? 0xffffU : (1U << (width - line)) - 1);
    const device::Bf16* const from = strip.from + strip.first * strip.ld + std::min(line, strip.lines);
    for (std::size_t w = 0; w < (strip.depth + 1) / 2; ++w) {
      const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from + 2 * w * strip.ld));
      const auto high_mask = static_cast<__mmask16>(w < whole ? mask : 0);
      const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(high_mask, from + (2 * w + 1) * strip.ld));
      _mm512_mask_storeu_epi32(panel + w * width + line, out_mask, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
  }
}

// ----- tiles --------------------------------------------------------------------------------------------------------

/// Panels of A (words, kRows) and B (words, width of the tile) -> sums (kRows, columns) with a stride, or added to
/// them.
using Tile = void (*)(std::size_t words, const Word* a, const Word* b, float* sums, std::size_t stride, bool adds);

template <std::size_t kRows, std::size_t kVectors>
[[gnu::target("avx512f")]] void tile_avx512(std::size_t words, const Word* a, const Word* b, float* sums,
                                            std::size_t stride, bool adds) {
  __m512 sum[kRows][kVectors];
#pragma GCC unroll 14
  for (std::size_t i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (std::size_t v = 0; v < kVectors; ++v)
      sum[i][v] = adds ? _mm512_loadu_ps(sums + i * stride + v * 16) : _mm512_setzero_ps();
  }
  for (std::size_t w = 0; w < words; ++w, a += kRows, b += 32) {
    __m512 column[kVectors];
#pragma GCC unroll 2
    for (std::size_t v = 0; v < kVectors; ++v) column[v] = _mm512_loadu_ps(b + v * 16);
#pragma GCC unroll 14
    for (std::size_t i = 0; i < kRows; ++i) {
      const __m512 row = _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(a[i])));
#pragma GCC unroll 2
      for (std::size_t v = 0; v < kVectors; ++v) sum[i][v] = _mm512_fmadd_ps(row, column[v], sum[i][v]);
    }
  }
#pragma GCC unroll 14
  for (std::size_t i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (std::size_t v = 0; v < kVectors; ++v) _mm512_storeu_ps(sums + i * stride + v * 16, sum[i][v]);
  }
}

template <std::size_t kRows, std::size_t kVectors>
[[gnu::target("avx512f,avx512bf16")]] void tile_avx512_bf16(std::size_t words, const Word* a, const Word* b,
                                                            float* sums, std::size_t stride, bool adds) {
  __m512 sum[kRows][kVectors];
#pragma GCC unroll 14
  for (std::size_t i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (std::size_t v = 0; v < kVectors; ++v)
      sum[i][v] = adds ? _mm512_loadu_ps(sums + i * stride + v * 16) : _mm512_setzero_ps();
  }
  for (std::size_t w = 0; w < words; ++w, a += kRows, b += 32) {
    __m512i column[kVectors];
#pragma GCC unroll 2
    for (std::size_t v = 0; v < kVectors; ++v) column[v] = _mm512_loadu_si512(b + v * 16);
#pragma GCC unroll 14
    for (std::size_t i = 0; i < kRows; ++i) {
      const __m512i row = _mm512_set1_epi32(static_cast<int>(a[i]));
#pragma GCC unroll 2
      for (std::size_t v = 0; v < kVectors; ++v)
        sum[i][v] = _mm512_dpbf16_ps(sum[i][v], (__m512bh)row, (__m512bh)column[v]);  // No other cast there.
    }
  }
#pragma GCC unroll 14
  for (std::size_t i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (std::size_t v = 0; v < kVectors; ++v) _mm512_storeu_ps(sums + i * stride + v * 16, sum[i][v]);
  }
}

/// Of the build's own baseline: vectors of 8 floats.
template <std::size_t kRows, std::size_t kVectors>
void tile_base(std::size_t words, const Word* a, const Word* b, float* sums, std::size_t stride, bool adds) {
  using Vector [[gnu::vector_size(32)]] = float;
  Vector sum[kRows][kVectors];
#pragma GCC unroll 6
  for (std::size_t i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (std::size_t v = 0; v < kVectors; ++v) {
      sum[i][v] = Vector{};
      if (adds) std::memcpy(&sum[i][v], sums + i * stride + v * 8, sizeof(Vector));
    }
  }
  for (std::size_t w = 0; w < words; ++w, a += kRows, b += 16) {
    Vector column[kVectors];
#pragma GCC unroll 2
    for (std::size_t v = 0; v < kVectors; ++v) std::memcpy(&column[v], b + v * 8, sizeof(Vector));
#pragma GCC unroll 6
    for (std::size_t i = 0; i < kRows; ++i) {
      const float row = std::bit_cast<float>(a[i]);
#pragma GCC unroll 2
      for (std::size_t v = 0; v < kVectors; ++v) sum[i][v] += row * column[v];
    }
  }
#pragma GCC unroll 6
  for (std::size_t i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (std::size_t v = 0; v < kVectors; ++v) std::memcpy(sums + i * stride + v * 8, &sum[i][v], sizeof(Vector));
  }
}

/// By rows - 1, then vectors - 1.
template <std::size_t kRowsMax>
using Tiles = std::array<std::array<Tile, 2>, kRowsMax>;
template <std::size_t... kRows>
constexpr Tiles<sizeof...(kRows)> base_tiles(std::index_sequence<kRows...>) {
  return {{{tile_base<kRows + 1, 1>, tile_base<kRows + 1, 2>}...}};
}
template <std::size_t... kRows>
constexpr Tiles<sizeof...(kRows)> avx512_tiles(std::index_sequence<kRows...>) {
  return {{{tile_avx512<kRows + 1, 1>, tile_avx512<kRows + 1, 2>}...}};
}
template <std::size_t... kRows>
constexpr Tiles<sizeof...(kRows)> avx512_bf16_tiles(std::index_sequence<kRows...>) {
  return {{{tile_avx512_bf16<kRows + 1, 1>, tile_avx512_bf16<kRows + 1, 2>}...}};
}

template <MatmulIsa kIsa, class T>
struct Kernel {
  static constexpr bool kPairs = kIsa == MatmulIsa::kAvx512Bf16 && std::is_same_v<T, device::Bf16>;
  static constexpr std::size_t kTileRows = kIsa == MatmulIsa::kBase ? 6 : 14;
  static constexpr std::size_t kVector = kIsa == MatmulIsa::kBase ? 8 : 16;
  static constexpr std::size_t kTileColumns = 2 * kVector;
  static constexpr std::size_t kValuesAWord = kPairs ? 2 : 1;

  static void pack(const Strip<T>& strip, std::size_t width, Word* panel) {
    if constexpr (kPairs) {
      pack_pairs_avx512(strip, width, panel);
    } else if constexpr (kIsa != MatmulIsa::kBase && std::is_same_v<T, float>) {
      pack_avx512(strip, width, panel);
    } else {
      pack_floats(strip, width, panel);
    }
  }
  static Tile tile(std::size_t rows, std::size_t columns) {
    constexpr std::make_index_sequence<kTileRows> kSequence;
    if constexpr (kPairs) {
      static constexpr auto kTiles = avx512_bf16_tiles(kSequence);
      return kTiles[rows - 1][columns > kVector ? 1 : 0];
    } else if constexpr (kIsa != MatmulIsa::kBase) {
      static constexpr auto kTiles = avx512_tiles(kSequence);
      return kTiles[rows - 1][columns > kVector ? 1 : 0];
    } else {
      static constexpr auto kTiles = base_tiles(kSequence);
      return kTiles[rows - 1][columns > kVector ? 1 : 0];
    }
  }
  template <class C>
  static void finish(float* sums, std::size_t stride, std::size_t rows, std::size_t columns, const Finish<C>& f) {
    if constexpr (kIsa == MatmulIsa::kBase) {
      finish_base(sums, stride, rows, columns, f);
    } else {
      finish_avx512(sums, stride, rows, columns, f);
    }
  }
};

// ----- blocks and parts ---------------------------------------------------------------------------------------------

struct Range {
  std::size_t first;
  std::size_t last;
  [[nodiscard]] std::size_t size() const { return last - first; }
};
/// Part `part` of `parts` of the range, in whole grains.
Range part_of(Range range, std::size_t part, std::size_t parts, std::size_t grain) {
  const std::size_t grains = (range.size() + grain - 1) / grain;
  const auto edge = [&](std::size_t p) { return range.first + std::min(range.size(), grains * p / parts * grain); };
  return {edge(part), edge(part + 1)};
}

struct PartSpace {
  Word* b;
  Word* a;
  float* sums;
};

/// A block of C over all of the depth. `b_is_packed`: by the block above it.
template <class K, class T, class C>
void multiply_block(const MatmulCall<T, C>& call, std::size_t matrix, Range rows, Range columns, bool b_is_packed,
                    const PartSpace& space) {
  const MatmulShape& s = call.shape;
  constexpr std::size_t kDepth = kBlockDepth * K::kValuesAWord;
  const Finish<C> finish = whole_finish(call.epilogue, call.c, s, matrix);
  const std::size_t tiles = (rows.size() + K::kTileRows - 1) / K::kTileRows;
  const bool one_block = s.inner <= kDepth;
  alignas(64) float one_tile[kTileWords];
  std::size_t first = 0;
  do {
    const std::size_t depth = std::min(kDepth, s.inner - first);
    const std::size_t words = (depth + K::kValuesAWord - 1) / K::kValuesAWord;
    const bool last = first + depth == s.inner;
    for (std::size_t j = columns.first; words > 0 && !b_is_packed && j < columns.last; j += K::kTileColumns) {
      const T* const b = call.b + matrix * s.stride_b + (s.transpose_b ? j * s.ldb : j);
      K::pack({b, s.ldb, std::min(K::kTileColumns, columns.last - j), first, depth, s.transpose_b}, K::kTileColumns,
              space.b + (j - columns.first) * words);
    }
    for (std::size_t t = 0; words > 0 && t < tiles; ++t) {
      const Range tile = part_of(rows, t, tiles, 1);
      const T* const a = call.a + matrix * s.stride_a + (s.transpose_a ? tile.first : tile.first * s.lda);
      K::pack({a, s.lda, tile.size(), first, depth, !s.transpose_a}, tile.size(),
              space.a + (tile.first - rows.first) * words);
    }
    for (std::size_t j = columns.first; j < columns.last; j += K::kTileColumns) {
      const std::size_t width = std::min(K::kTileColumns, columns.last - j);
      for (std::size_t t = 0; t < tiles; ++t) {
        const Range tile = part_of(rows, t, tiles, 1);
        const std::size_t stride = one_block ? K::kTileColumns : kBlockColumns;
        float* const sums =
            one_block ? one_tile : space.sums + (tile.first - rows.first) * kBlockColumns + (j - columns.first);
        K::tile(tile.size(), width)(words, space.a + (tile.first - rows.first) * words,
                                    space.b + (j - columns.first) * words, sums, stride, first != 0);
        if (last) K::template finish<C>(sums, stride, tile.size(), width, finish.moved(tile.first, j));
      }
    }
    first += depth;
  } while (first < s.inner);
}

template <class K, class T, class C>
void multiply_part(const MatmulCall<T, C>& call, std::size_t matrix, Range rows, Range columns,
                   const PartSpace& space) {
  constexpr std::size_t kDepth = kBlockDepth * K::kValuesAWord;
  const std::size_t row_blocks = (rows.size() + kBlockRows - 1) / kBlockRows;
  for (std::size_t j = columns.first; j < columns.last; j += kBlockColumns) {
    const Range block{j, std::min(columns.last, j + kBlockColumns)};
    for (std::size_t i = 0; i < row_blocks; ++i)
      multiply_block<K>(call, matrix, part_of(rows, i, row_blocks, 1), block, i > 0 && call.shape.inner <= kDepth,
                        space);
  }
}

/// Parts of one matrix: over the longer side first, what is left over the other.
struct Grid {
  std::size_t rows;
  std::size_t columns;
};
Grid grid_of(const MatmulShape& shape, std::size_t parts) {
  const bool by_rows = shape.rows >= shape.columns;
  const std::size_t along = std::clamp<std::size_t>((by_rows ? shape.rows / 14 : shape.columns / 32), 1, parts);
  const std::size_t across =
      std::clamp<std::size_t>((by_rows ? shape.columns / 32 : shape.rows / 14), 1, parts / along);
  return by_rows ? Grid{along, across} : Grid{across, along};
}

template <class K, class T, class C>
void multiply(const MatmulCall<T, C>& call) {
  const MatmulShape& s = call.shape;
  const std::size_t spaces = call.workspace.size() / (kPartWords * sizeof(Word));
  const std::size_t products = s.rows * s.columns * std::max<std::size_t>(s.inner, 1);
  const std::size_t threads = std::clamp<std::size_t>(products * s.count / kProductsAThread, 1,
                                                      std::min<std::size_t>(spaces, device::parallel_threads()));
  // Whole matrices, if there are enough.
  const Grid grid = s.count >= threads ? Grid{1, 1} : grid_of(s, threads / s.count);
  const std::size_t parts = s.count * grid.rows * grid.columns;
  const std::size_t workers = std::min(parts, threads);
  device::parallel_for(workers, 1, [&](std::size_t first, std::size_t last) {
    for (std::size_t worker = first; worker < last; ++worker) {
      Word* const mine = reinterpret_cast<Word*>(call.workspace.device_data()) + worker * kPartWords;
      const PartSpace space{mine, mine + kPanelsB, reinterpret_cast<float*>(mine + kPanelsB + kPanelsA)};
      for (std::size_t part = parts * worker / workers; part < parts * (worker + 1) / workers; ++part) {
        const std::size_t in_matrix = part % (grid.rows * grid.columns);
        multiply_part<K>(call, part / (grid.rows * grid.columns),
                         part_of({0, s.rows}, in_matrix / grid.columns, grid.rows, 1),
                         part_of({0, s.columns}, in_matrix % grid.columns, grid.columns, K::kTileColumns), space);
      }
    }
  });
}

}  // namespace

MatmulIsa best_matmul_isa() noexcept {
  static const MatmulIsa best = [] {
    const bool avx512 = __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
                        __builtin_cpu_supports("avx512vl") != 0 && __builtin_cpu_supports("avx512dq") != 0 &&
                        __builtin_cpu_supports("avx512cd") != 0;
    if (!avx512) return MatmulIsa::kBase;
    return __builtin_cpu_supports("avx512bf16") != 0 ? MatmulIsa::kAvx512Bf16 : MatmulIsa::kAvx512;
  }();
  return best;
}

std::size_t own_matmul_workspace_bytes(const MatmulShape& shape, unsigned threads) noexcept {
  const std::size_t products = shape.count * shape.rows * shape.columns * std::max<std::size_t>(shape.inner, 1);
  return std::clamp<std::size_t>(products / kProductsAThread, 1, threads) * kPartWords * sizeof(Word);
}

template <class T, class C>
void own_matmul(const MatmulCall<T, C>& call, MatmulIsa isa) {
  switch (isa) {
    case MatmulIsa::kBase: return multiply<Kernel<MatmulIsa::kBase, T>>(call);
    case MatmulIsa::kAvx512: return multiply<Kernel<MatmulIsa::kAvx512, T>>(call);
    case MatmulIsa::kAvx512Bf16: return multiply<Kernel<MatmulIsa::kAvx512Bf16, T>>(call);
  }
}

template <class T, class C>
void finish_matmul(const MatmulCall<T, C>& call, const C* v, MatmulIsa isa) {
  const MatmulShape& s = call.shape;
  device::parallel_for(s.count * s.rows, device::kParallelGrain / std::max<std::size_t>(s.columns, 1) + 1,
                       [&](std::size_t first, std::size_t last) {
                         for (std::size_t row = first; row < last; ++row) {
                           const std::size_t by = row / s.rows * s.stride_c + row % s.rows * s.ldc;
                           Finish<C> finish =
                               whole_finish(call.epilogue, call.c, s, row / s.rows).moved(row % s.rows, 0);
                           finish.alpha = 1;
                           finish.beta = 0;
                           finish.bias = nullptr;
                           if (v + by == finish.saved) finish.saved = nullptr;
                           if (isa == MatmulIsa::kBase) {
                             finish_values_base(v + by, 1, s.columns, finish);
                           } else {
                             finish_values_avx512(v + by, 1, s.columns, finish);
                           }
                         }
                       });
}

#define DUNNOCK_INSTANTIATE(T, C)                                     \
  template void own_matmul<T, C>(const MatmulCall<T, C>&, MatmulIsa); \
  template void finish_matmul<T, C>(const MatmulCall<T, C>&, const C*, MatmulIsa);
DUNNOCK_INSTANTIATE(float, float)
DUNNOCK_INSTANTIATE(device::Bf16, device::Bf16)
DUNNOCK_INSTANTIATE(device::Bf16, float)
#undef DUNNOCK_INSTANTIATE
#undef DUNNOCK_INLINE

}  // namespace dunnock::kernels::detail
