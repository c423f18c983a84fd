// Scans the foreign lanes of a whole group: 32 or 64 bytes of one line.
//
// Two implementations with one meaning: the scalar one, which goes through the media word by word and is used with
// media that observe loads, under ThreadSanitizer and on machines without AVX2; and the AVX2 one.
// tests/filter/layout_test.cpp compares them on random words.
//
// The AVX2 loads are written in assembly because a concurrent writer may store to the words meanwhile. The C++ memory
// model has no vector atomics; x86 does have what is needed: each aligned 8-byte half of an aligned vector load is
// read untorn, and loads are not reordered with other loads. Assembly is outside of the C++ model, so there is no
// data race in its sense, and `volatile` with a memory clobber keeps the compiler from moving the load.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "dunnock/filter/layout.hpp"
#include "dunnock/pmem/media.hpp"

#if defined(__SANITIZE_THREAD__)
#define DUNNOCK_VECTOR_SCAN 0
#elif defined(__AVX2__)
#define DUNNOCK_VECTOR_SCAN 1
#else
#define DUNNOCK_VECTOR_SCAN 0
#endif

namespace dunnock::detail {

/// Media whose loads must be seen one by one say so with `static constexpr bool kScalarLoads = true`; media that are
/// not plain mapped memory are treated the same way.
template <class M>
concept VectorLoadable = (DUNNOCK_VECTOR_SCAN != 0) && std::derived_from<M, MappedLoads> && !requires {
  requires M::kScalarLoads;
};

/// The slow twin: may a fingerprint with this pattern be in a foreign lane of the group? Yes whenever it is, and once
/// in about 16 million times also when a home lane holds it and a foreign lane above holds a neighbor (match_quickly).
template <unsigned kBits, unsigned kGroupWords, class M>
[[nodiscard]] inline bool any_foreign_scalar(const M& media, const Word* group, std::uint64_t pattern) noexcept {
  using L = Layout<kBits>;
  std::uint64_t hits = 0;
  for (unsigned v = 0; v < kGroupWords; ++v) {
    const std::uint64_t word = media.load(group[v]);
    hits |= L::match_quickly(word, pattern) & L::foreign_lanes(word);
  }
  return hits != 0;
}

#if DUNNOCK_VECTOR_SCAN
[[nodiscard]] inline __m256i load_words(const Word* words) noexcept {
  __m256i value;
  asm volatile("vmovdqa %1, %0" : "=x"(value) : "m"(*reinterpret_cast<const __m256i*>(words)) : "memory");
  return value;
}

/// Constants of the vector scan. The compiler would build each by three instructions at every use.
template <unsigned kBits>
struct alignas(32) ScanConstants {
  static constexpr char k0 = 0, k1 = kBits, k2 = 2 * kBits, k3 = 3 * kBits;
  std::uint64_t ones[4] = {Layout<kBits>::kOnes, Layout<kBits>::kOnes, Layout<kBits>::kOnes, Layout<kBits>::kOnes};
  std::uint64_t high_bits[4] = {Layout<kBits>::kHighBits, Layout<kBits>::kHighBits, Layout<kBits>::kHighBits,
                                Layout<kBits>::kHighBits};
  // The top nibble of a word is level * 4 + count; a byte shuffle turns it into kBits * count. The other bytes of the
  // shifted word are 0 and so is their entry.
  char shifts[32] = {k0, k1, k2, k3, k0, k1, k2, k3, k0, k1, k2, k3, k0, k1, k2, k3,
                     k0, k1, k2, k3, k0, k1, k2, k3, k0, k1, k2, k3, k0, k1, k2, k3};
};
template <unsigned kBits>
alignas(32) inline constexpr ScanConstants<kBits> kScanConstants{};
[[nodiscard]] inline __m256i constant(const void* memory) noexcept {
  return _mm256_load_si256(static_cast<const __m256i*>(memory));
}

/// Top bits of the foreign lanes that match quickly, and any other bits. (layout.hpp has the same in scalar.)
template <unsigned kBits>
[[nodiscard]] inline __m256i match_foreign_quickly(const ScanConstants<kBits>& constants, __m256i words,
                                                   __m256i pattern) noexcept {
  const __m256i x = _mm256_xor_si256(words, pattern);
  const __m256i matches = _mm256_andnot_si256(x, _mm256_sub_epi64(x, constant(constants.ones)));
  const __m256i shift =
      _mm256_shuffle_epi8(constant(constants.shifts), _mm256_srli_epi64(words, Layout<kBits>::kCountShift));
  return _mm256_andnot_si256(_mm256_srlv_epi64(constant(constants.high_bits), shift), matches);
}

template <unsigned kBits, unsigned kGroupWords>
[[nodiscard]] inline bool any_foreign_vector(const Word* group, std::uint64_t pattern) noexcept {
  const ScanConstants<kBits>* constants = &kScanConstants<kBits>;
  asm("" : "+r"(constants));  // Hides the values: they are to be operands in memory.
  const __m256i repeated = _mm256_set1_epi64x(static_cast<long long>(pattern));
  __m256i matches = match_foreign_quickly<kBits>(*constants, load_words(group), repeated);
  if constexpr (kGroupWords == 8) {
    matches = _mm256_or_si256(matches, match_foreign_quickly<kBits>(*constants, load_words(group + 4), repeated));
  }
  return !_mm256_testz_si256(matches, constant(constants->high_bits));
}
#endif

/// The slow twin of roomiest_vector: the word with the most empty lanes (three or more count as three) among those
/// that may take a foreign fingerprint, the first at or after word `start` (cyclically), or -1.
template <unsigned kBits, unsigned kGroupWords, class M>
[[nodiscard]] inline int roomiest_scalar(const M& media, const Word* group, unsigned start) noexcept {
  int best = -1;
  int best_empty = 0;
  for (unsigned i = 0; i < kGroupWords; ++i) {
    const unsigned v = (start + i) % kGroupWords;
    const std::uint64_t word = media.load(group[v]);
    const int empty = std::min(std::popcount(Layout<kBits>::empty_lanes(word)), 3);
    if (Layout<kBits>::foreign_count(word) == Layout<kBits>::kForeignMax || empty <= best_empty) continue;
    best = static_cast<int>(v);
    best_empty = empty;
  }
  return best;
}

#if DUNNOCK_VECTOR_SCAN
/// One bit per word: does it take a foreign fingerprint and have at least one, two, three empty lanes?
struct RoomMasks {
  unsigned one, two, three;
};
template <unsigned kBits>
[[nodiscard]] inline RoomMasks room_masks(__m256i words) noexcept {
  using L = Layout<kBits>;
  const __m256i low_bits = _mm256_set1_epi64x(static_cast<long long>(L::kLowBits));
  const __m256i high_bits = _mm256_set1_epi64x(static_cast<long long>(L::kHighBits));
  const __m256i count_full = _mm256_set1_epi64x(static_cast<long long>(3ULL << L::kCountShift));
  const __m256i minus_one = _mm256_set1_epi64x(-1);
  const __m256i zero = _mm256_setzero_si256();
  const __m256i nonzero = _mm256_or_si256(_mm256_add_epi64(_mm256_and_si256(words, low_bits), low_bits), words);
  const __m256i full = _mm256_cmpeq_epi64(_mm256_and_si256(words, count_full), count_full);
  // One high bit per empty lane; x & (x - 1) removes the lowest.
  const __m256i one = _mm256_andnot_si256(full, _mm256_andnot_si256(nonzero, high_bits));
  const __m256i two = _mm256_and_si256(one, _mm256_add_epi64(one, minus_one));
  const __m256i three = _mm256_and_si256(two, _mm256_add_epi64(two, minus_one));
  const auto mask = [&zero](__m256i bits) {
    return 0xfU & ~static_cast<unsigned>(_mm256_movemask_pd(_mm256_castsi256_pd(_mm256_cmpeq_epi64(bits, zero))));
  };
  return {mask(one), mask(two), mask(three)};
}

template <unsigned kBits, unsigned kGroupWords>
[[nodiscard, gnu::always_inline]] inline int roomiest_vector(const Word* group, unsigned start) noexcept {
  RoomMasks masks = room_masks<kBits>(load_words(group));
  if constexpr (kGroupWords == 8) {
    const RoomMasks high = room_masks<kBits>(load_words(group + 4));
    masks = {masks.one | high.one << 4, masks.two | high.two << 4, masks.three | high.three << 4};
  }
  if (masks.one == 0) return -1;
  const unsigned best = masks.three != 0 ? masks.three : masks.two != 0 ? masks.two : masks.one;
  const unsigned from_start = (best | best << kGroupWords) >> start;  // Bit i: word (start + i) % kGroupWords.
  return static_cast<int>((start + static_cast<unsigned>(std::countr_zero(from_start))) % kGroupWords);
}
#endif

template <unsigned kBits, unsigned kGroupWords, class M>
[[nodiscard, gnu::always_inline]] inline int roomiest(const M& media, const Word* group, unsigned start) noexcept {
#if DUNNOCK_VECTOR_SCAN
  if constexpr (VectorLoadable<M>) return roomiest_vector<kBits, kGroupWords>(group, start);
#endif
  return roomiest_scalar<kBits, kGroupWords>(media, group, start);
}

template <unsigned kBits, unsigned kGroupWords, class M>
[[nodiscard]] inline bool any_foreign(const M& media, const Word* group, std::uint64_t pattern) noexcept {
#if DUNNOCK_VECTOR_SCAN
  if constexpr (VectorLoadable<M>) return any_foreign_vector<kBits, kGroupWords>(group, pattern);
#endif
  return any_foreign_scalar<kBits, kGroupWords>(media, group, pattern);
}

}  // namespace dunnock::detail
