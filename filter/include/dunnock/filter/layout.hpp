// The bits of a bucket, as a CPU or a GPU reads them. Pure functions on 8-byte values; no memory, no media.
//
// One 8-byte word is one bucket, so an insert or an erase is one atomic 8-byte store. With 12-bit fingerprints:
//
//   63 62 61 60 59        48 47        36 35        24 23        12 11         0
//  +-----+-----+------------+------------+------------+------------+------------+
//  |level|count|   lane 4   |   lane 3   |   lane 2   |   lane 1   |   lane 0   |
//  +-----+-----+------------+------------+------------+------------+------------+
//               <- foreign ->                                <------- home ----->
//
//   lane    a fingerprint, 1 .. 2^bits - 1; 0 is an empty lane.
//   count   how many of the top lanes are *foreign*: they hold fingerprints that belong to another bucket. 0 .. 3, and
//           every foreign lane is occupied. All other lanes are *home* lanes.
//   level   how far this bucket's own fingerprints may be: 0 all are in its home lanes; 1 some may have spilled to
//           foreign lanes of the same group; 2 even ones, 3 any may also be in foreign lanes of the other group. Only
//           grows. (Distinguishing even from odd halves the second lines that lookups read after a bucket's first
//           overflow.)
//
// A group is 4 or 8 words in one 64-byte line: a key has a home bucket in one group, may spill to the other buckets
// of that group (that line is loaded already), and may overflow to one other group. With 8-bit fingerprints a word has
// 7 lanes, with 12-bit 5, with 16-bit 3; bits between the last lane and the count are zero.
//
// Why home and foreign lanes are distinguished: a lookup compares the home lanes of one bucket, and compares the
// foreign lanes of others only if that bucket says so, which keeps the false-positive rate near that of one bucket; and
// a kick takes only a fingerprint that is at home, so it knows its bucket. Everything moves only forward (home -> other
// group), which is why readers need no lock and no version (docs/concurrency.md).
#pragma once

#include <bit>
#include <cstdint>

#if defined(__CUDACC__)
#define DUNNOCK_HOST_DEVICE __host__ __device__
#else
#define DUNNOCK_HOST_DEVICE
#endif

namespace dunnock {

/// A key's home: the number of its bucket (word) in the table, and its fingerprint.
struct Place {
  std::uint64_t bucket;
  std::uint64_t fingerprint;
};

/// How far one fingerprint of a bucket may be from home.
enum class Reach : unsigned char { kHome, kGroup, kOtherGroup };

/// High 64 bits of a * b: maps a uniform 64-bit `a` to [0, b) evenly (Lemire, "Fast random integer generation in an
/// interval", 2019), so that a table may have any size.
DUNNOCK_HOST_DEVICE constexpr std::uint64_t multiply_high(std::uint64_t a, std::uint64_t b) noexcept {
  return static_cast<std::uint64_t>((static_cast<unsigned __int128>(a) * b) >> 64);
}

namespace detail {
/// A one in the lowest bit of every lane.
constexpr std::uint64_t repeated_one(unsigned bits, unsigned lanes) noexcept {
  std::uint64_t word = 0;
  for (unsigned i = 0; i < lanes; ++i) word |= 1ULL << (bits * i);
  return word;
}
/// High bits of the home lanes, by the top nibble of a word (level * 4 ... count).
struct HomeLanes {
  std::uint64_t by_nibble[16];
};
constexpr HomeLanes home_lanes_table(unsigned bits, std::uint64_t high_bits) noexcept {
  HomeLanes table{};
  for (unsigned nibble = 0; nibble < 16; ++nibble) {
    table.by_nibble[nibble] = high_bits >> (bits * (nibble & 3)) & high_bits;
  }
  return table;
}
}  // namespace detail

template <unsigned kBits>
struct Layout {
  static_assert(kBits == 8 || kBits == 12 || kBits == 16, "fingerprints have 8, 12 or 16 bits");

  static constexpr unsigned kLanes = 60 / kBits;
  static constexpr unsigned kForeignMax = 3;
  static constexpr unsigned kLevelShift = 62;
  static constexpr unsigned kCountShift = 60;
  static constexpr std::uint64_t kLaneMask = (1ULL << kBits) - 1;

  static constexpr std::uint64_t kOnes = detail::repeated_one(kBits, kLanes);
  static constexpr std::uint64_t kHighBits = kOnes << (kBits - 1);  // the top bit of every lane
  static constexpr std::uint64_t kLowBits = kHighBits - kOnes;      // all other bits of every lane
  static constexpr std::uint64_t kLanesMask = kHighBits | kLowBits;
  static constexpr detail::HomeLanes kHomeLanes = detail::home_lanes_table(kBits, kHighBits);

  /// The top bit of every lane of `x` that is zero. Exact: no lane affects its neighbor.
  DUNNOCK_HOST_DEVICE static constexpr std::uint64_t zero_lanes(std::uint64_t x) noexcept {
    return ~(((x & kLowBits) + kLowBits) | x) & kHighBits;
  }
  DUNNOCK_HOST_DEVICE static constexpr unsigned foreign_count(std::uint64_t word) noexcept {
    return static_cast<unsigned>(word >> kCountShift) & 3U;
  }
  DUNNOCK_HOST_DEVICE static constexpr unsigned level(std::uint64_t word) noexcept {
    return static_cast<unsigned>(word >> kLevelShift);
  }
  /// The lowest level at which a fingerprint may be in the other group.
  DUNNOCK_HOST_DEVICE static constexpr unsigned far_level(std::uint64_t fingerprint) noexcept {
    return 2 + static_cast<unsigned>(fingerprint & 1);
  }
  /// Does the level let the fingerprint be in the other group?
  DUNNOCK_HOST_DEVICE static constexpr bool is_far(std::uint64_t word, std::uint64_t fingerprint) noexcept {
    return level(word) > 1 + (fingerprint & 1);
  }
  DUNNOCK_HOST_DEVICE static constexpr Reach reach(std::uint64_t word, std::uint64_t fingerprint) noexcept {
    if (level(word) == 0) return Reach::kHome;
    return is_far(word, fingerprint) ? Reach::kOtherGroup : Reach::kGroup;
  }
  /// The top bit of every home lane.
  DUNNOCK_HOST_DEVICE static constexpr std::uint64_t home_lanes(std::uint64_t word) noexcept {
#if defined(__CUDA_ARCH__)
    return kHighBits >> (kBits * foreign_count(word)) & kHighBits;
#else
    return kHomeLanes.by_nibble[word >> kCountShift];  // Two instructions instead of six.
#endif
  }
  DUNNOCK_HOST_DEVICE static constexpr std::uint64_t foreign_lanes(std::uint64_t word) noexcept {
    return kHighBits & ~home_lanes(word);
  }
  /// The top bit of every home (foreign) lane that holds the fingerprint that `pattern` repeats.
  DUNNOCK_HOST_DEVICE static constexpr std::uint64_t match_home(std::uint64_t word, std::uint64_t pattern) noexcept {
    return zero_lanes(word ^ pattern) & home_lanes(word);
  }
  DUNNOCK_HOST_DEVICE static constexpr std::uint64_t match_foreign(std::uint64_t word, std::uint64_t pattern) noexcept {
    return zero_lanes(word ^ pattern) & foreign_lanes(word);
  }
  /// The top bit of the lowest lane that holds the fingerprint, if any, and perhaps of lanes above it that hold the
  /// fingerprint with its lowest bit flipped (Mycroft's test: a zero lane is the lowest one to borrow). Lookups use
  /// this: it takes half of match_home's instructions, and as a yes or no over all lanes it is exact.
  DUNNOCK_HOST_DEVICE static constexpr std::uint64_t match_quickly(std::uint64_t word, std::uint64_t pattern) noexcept {
    const std::uint64_t x = word ^ pattern;
    return (x - kOnes) & ~x & kHighBits;
  }
  /// Fingerprint -> pattern for the three functions above.
  DUNNOCK_HOST_DEVICE static constexpr std::uint64_t pattern(std::uint64_t fingerprint) noexcept {
    return fingerprint * kOnes;
  }
  /// The top bits of the empty lanes. They are all home lanes.
  DUNNOCK_HOST_DEVICE static constexpr std::uint64_t empty_lanes(std::uint64_t word) noexcept {
    return zero_lanes(word & kLanesMask);
  }
  /// The top bits of the home lanes that hold anything, and of those that hold an even fingerprint.
  DUNNOCK_HOST_DEVICE static constexpr std::uint64_t occupied_home_lanes(std::uint64_t word) noexcept {
    return home_lanes(word) & ~empty_lanes(word);
  }
  DUNNOCK_HOST_DEVICE static constexpr std::uint64_t even_home_lanes(std::uint64_t word) noexcept {
    return occupied_home_lanes(word) & ~((word & kOnes) << (kBits - 1));
  }
  /// Number of the lane whose top bit is the lowest one in `bits` (not 0).
  DUNNOCK_HOST_DEVICE static constexpr unsigned lane_of(std::uint64_t bits) noexcept {
    return static_cast<unsigned>(std::countr_zero(bits)) / kBits;
  }
  DUNNOCK_HOST_DEVICE static constexpr std::uint32_t lane(std::uint64_t word, unsigned i) noexcept {
    return static_cast<std::uint32_t>(word >> (kBits * i) & kLaneMask);
  }
  DUNNOCK_HOST_DEVICE static constexpr std::uint64_t with_lane(std::uint64_t word, unsigned i,
                                                               std::uint64_t fingerprint) noexcept {
    return (word & ~(kLaneMask << (kBits * i))) | fingerprint << (kBits * i);
  }
  DUNNOCK_HOST_DEVICE static constexpr unsigned occupied(std::uint64_t word) noexcept {
    return kLanes - static_cast<unsigned>(std::popcount(empty_lanes(word)));
  }
  /// Could a filter have left this word? Every foreign lane is occupied, and unused bits are zero.
  DUNNOCK_HOST_DEVICE static constexpr bool is_word(std::uint64_t word) noexcept {
    constexpr std::uint64_t kMeaning = kLanesMask | 0xfULL << kCountShift;
    return (word & ~kMeaning) == 0 && foreign_count(word) <= kForeignMax &&
           (empty_lanes(word) & foreign_lanes(word)) == 0;
  }
  DUNNOCK_HOST_DEVICE static constexpr std::uint64_t with_level(std::uint64_t word, std::uint64_t level) noexcept {
    return (word & ~(3ULL << kLevelShift)) | level << kLevelShift;
  }

  /// `word` with one more home fingerprint in an empty lane, which must exist.
  DUNNOCK_HOST_DEVICE static constexpr std::uint64_t add_home(std::uint64_t word, std::uint64_t fingerprint) noexcept {
    // The lowest set bit is the top bit of the lane, kBits - 1 above its lowest.
    return word | static_cast<std::uint64_t>(fingerprint)
                      << (static_cast<unsigned>(std::countr_zero(empty_lanes(word))) - (kBits - 1));
  }
  /// May a foreign fingerprint be added?
  DUNNOCK_HOST_DEVICE static constexpr bool has_foreign_room(std::uint64_t word) noexcept {
    return foreign_count(word) < kForeignMax && empty_lanes(word) != 0;
  }
  /// `word` with one more foreign fingerprint: the top home lane turns foreign, and what it held goes to an empty lane.
  DUNNOCK_HOST_DEVICE static constexpr std::uint64_t add_foreign(std::uint64_t word,
                                                                 std::uint64_t fingerprint) noexcept {
    const unsigned top = kLanes - 1 - foreign_count(word);
    const unsigned empty = lane_of(empty_lanes(word));
    const std::uint64_t displaced = lane(word, top);
    return with_lane(with_lane(word, empty, displaced), top, fingerprint) + (1ULL << kCountShift);
  }
  /// `word` without the fingerprint in home lane `i`.
  DUNNOCK_HOST_DEVICE static constexpr std::uint64_t remove_home(std::uint64_t word, unsigned i) noexcept {
    return with_lane(word, i, 0);
  }
  /// `word` without the fingerprint in foreign lane `i`: the lowest foreign lane closes the gap and turns home.
  DUNNOCK_HOST_DEVICE static constexpr std::uint64_t remove_foreign(std::uint64_t word, unsigned i) noexcept {
    const unsigned lowest = kLanes - foreign_count(word);
    return with_lane(with_lane(word, i, lane(word, lowest)), lowest, 0) - (1ULL << kCountShift);
  }

  /// Hash -> place in a table of `buckets` words. The bucket comes from the top bits of the hash and the fingerprint
  /// from the low ones, so up to 2^36 slots they are independent. Fingerprint 1 is twice as likely as the others, which
  /// costs 1 / 2^(2 bits) in false positives.
  DUNNOCK_HOST_DEVICE static constexpr Place place(std::uint64_t hash, std::uint64_t buckets) noexcept {
    std::uint64_t bits = hash & kLaneMask;
    if (bits == 0) [[unlikely]] {
#if !defined(__CUDACC__)
      asm("");  // Keeps this a branch, never taken, where the compiler would put two instructions into every lookup.
#endif
      bits = 1;
    }
    return {multiply_high(hash, buckets), bits};
  }
  /// The other group of a fingerprint. other_group(other_group(g)) == g, for any number of groups.
  DUNNOCK_HOST_DEVICE static constexpr std::uint64_t other_group(std::uint64_t group, std::uint64_t fingerprint,
                                                                 std::uint64_t groups) noexcept {
    std::uint64_t x = fingerprint * 0x9e3779b97f4a7c15ULL;
    x ^= x >> 32;
    x *= 0xd6e8feb86659fd93ULL;
    x ^= x >> 32;
    const std::uint64_t sum = multiply_high(x, groups);
    return sum >= group ? sum - group : sum + groups - group;
  }
};

}  // namespace dunnock
