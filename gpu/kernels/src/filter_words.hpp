// What a thread does with a filter's words, on the CPU and on a GPU: one source for both.
//
// Every change is a compare-and-swap of one word (Access::swap). Why inserts need no lock among themselves:
//   home    the new fingerprint is in the word, or the swap failed and all is looked at again
//   spill   the mark of the home word goes up first; a mark without a copy costs a lookup a comparison, no more
//   kick    the copy is in its other group first; then one swap takes the original and raises its mark. When the
//           original is not there any more, another kick has moved it: our copy is one too many and is taken back.
// And erasures among themselves: a copy is taken by one swap; the thread that loses it looks again.
//
// What it costs at least: 32-byte sectors (what a GPU's memory is read in) that a lookup touches, 12-bit fingerprints.
// The home word is one. A marked home (level > 0, unless it matches) adds what else its group has: with 8 words one
// more sector, with 4 words none. A home that is marked for its other group too adds that: 2 sectors, or 1. So
//   8 words   1 + P(marked) + 2 P(far)      4 words   1 + P(far)
//   load         50 %          70 %          80 %          90 %          95 %       (absent / present keys)
//   8 words   1.04 / 1.03   1.15 / 1.08   1.26 / 1.13   1.45 / 1.24   1.63 / 1.33
//   4 words   1.00 / 1.00   1.01 / 1.01   1.03 / 1.03   1.09 / 1.06   1.15 / 1.09
// (counted by tests/gpu/kernels/filter_view_test.cpp; ceiling of random sectors / this number = most lookups a second).
// Groups of 4 words are therefore what a filter for a GPU should be made with.
//
// The order of preference is CuckooFilter's (filter/detail/cuckoo_filter_ops.ipp): home, the group, then moves that
// mark no bucket for the first time, then the other group, then kicks, breadth first.
#pragma once

#include <cstdint>

#include "dunnock/filter/layout.hpp"
#include "dunnock/kernels/filter_view.hpp"
#include "filter_groups.hpp"

namespace dunnock::kernels::detail {

/// The hash of CuckooFilter (KeyHasher); `seed` as CuckooFilter::seed() has it.
struct FilterSeed {
  std::uint64_t words[4];
};
DUNNOCK_HOST_DEVICE inline std::uint64_t fold(std::uint64_t a, std::uint64_t b) noexcept {
  return multiply_high(a, b) ^ (a * b);
}
DUNNOCK_HOST_DEVICE inline std::uint64_t hash_of(const FilterSeed& seed, std::uint64_t key) noexcept {
  const std::uint64_t x = key ^ seed.words[0];
  return fold((x * seed.words[1]) ^ seed.words[2], multiply_high(x, seed.words[1]) ^ seed.words[3]);
}
DUNNOCK_HOST_DEVICE inline std::uint64_t hash_of(const FilterSeed& seed, const Key128& key) noexcept {
  const std::uint64_t x = key.low ^ seed.words[0];
  const std::uint64_t y = key.high ^ seed.words[2];
  const std::uint64_t d = seed.words[3] | 1;
  return fold((x * seed.words[1]) ^ multiply_high(y, d) ^ seed.words[3],
              multiply_high(x, seed.words[1]) ^ (y * d) ^ seed.words[2]);
}

/// Of the three steps of an insert, kNeeds... names the next one that has not been tried.
enum class Insertion : std::uint8_t { kRefused = 0, kAccepted = 1, kNeedsMove = 2, kNeedsSearch = 3 };

/// A lookup between its loads: the answer, or which words it must see.
enum class Look : std::uint8_t { kNo = 0, kYes = 1, kGroup = 2, kOtherGroup = 3 };

/// Lookups, inserts and erasures of keys. Access: see FilterGroups.
template <unsigned kBits, unsigned kGroupWords, class Access>
class FilterWords {
 public:
  using L = Layout<kBits>;
  using Word = std::uint64_t;
  static constexpr unsigned kWords = kGroupWords;

  DUNNOCK_HOST_DEVICE FilterWords(Word* words, std::uint64_t groups) noexcept : groups_(words, groups) {}

  [[nodiscard]] DUNNOCK_HOST_DEVICE Place place(std::uint64_t hash) const noexcept {
    return L::place(hash, groups_.size() * kGroupWords);
  }
  [[nodiscard]] DUNNOCK_HOST_DEVICE Word home_of(const Place& place) const noexcept {
    return Access::load(groups_.word(place.bucket));
  }

  // ----- lookup -----------------------------------------------------------------------------------------------------

  /// `home`: the word of the home bucket. kNo, kYes or kGroup.
  [[nodiscard]] DUNNOCK_HOST_DEVICE Look look_at_home(const Place& place, Word home) const noexcept {
    if (L::match_quickly(home, L::pattern(place.fingerprint)) != 0) return Look::kYes;
    return L::level(home) == 0 ? Look::kNo : Look::kGroup;
  }
  /// `values`: the home group. kNo, kYes or kOtherGroup.
  [[nodiscard]] DUNNOCK_HOST_DEVICE Look look_at_group(const Place& place, Word home,
                                                       const Word (&values)[kGroupWords]) const noexcept {
    if (groups_.has_foreign(values, L::pattern(place.fingerprint))) return Look::kYes;
    return L::is_far(home, place.fingerprint) ? Look::kOtherGroup : Look::kNo;
  }
  /// `values`: the other group. The answer.
  [[nodiscard]] DUNNOCK_HOST_DEVICE bool look_at_other(const Place& place,
                                                       const Word (&values)[kGroupWords]) const noexcept {
    return groups_.has_foreign(values, L::pattern(place.fingerprint));
  }
  DUNNOCK_HOST_DEVICE void load_home_group(const Place& place, Word (&values)[kGroupWords]) const noexcept {
    groups_.load(place.bucket / kGroupWords, values);
  }
  DUNNOCK_HOST_DEVICE void load_other_group(const Place& place, Word (&values)[kGroupWords]) const noexcept {
    groups_.load(groups_.other_group(place.bucket / kGroupWords, place.fingerprint), values);
  }
  /// All of it, one load after the other. `home`: the word of the home bucket.
  [[nodiscard]] DUNNOCK_HOST_DEVICE bool contains(const Place& place, Word home) const noexcept {
    Look look = look_at_home(place, home);
    Word values[kGroupWords];
    if (look == Look::kGroup) {
      load_home_group(place, values);
      look = look_at_group(place, home, values);
    }
    if (look != Look::kOtherGroup) return look == Look::kYes;
    load_other_group(place, values);
    return look_at_other(place, values);
  }

  // ----- insert -----------------------------------------------------------------------------------------------------

  /// Home or group: all that most keys need. Accepted, or kNeedsMove.
  [[nodiscard]] DUNNOCK_HOST_DEVICE Insertion insert_near(const Place& place) const noexcept {
    return insert_near(place, home_of(place));
  }
  /// `value`: the word of the home bucket, as it was a while ago.
  [[nodiscard]] DUNNOCK_HOST_DEVICE Insertion insert_near(const Place& place, Word value) const noexcept {
    Word* const home = groups_.word(place.bucket);
    while (L::empty_lanes(value) != 0) {
      if (Access::swap(home, value, L::add_home(value, place.fingerprint))) return Insertion::kAccepted;
      value = Access::load(home);
    }
    const std::uint64_t group = place.bucket / kGroupWords;
    for (;;) {
      const int v = groups_.roomiest(group, place.fingerprint);
      if (v < 0) return Insertion::kNeedsMove;
      groups_.raise(home, 1);
      if (groups_.add_foreign(group * kGroupWords + static_cast<unsigned>(v), place.fingerprint))
        return Insertion::kAccepted;
    }
  }

  /// The other group, or one move that makes room: what is left when the group is full. Accepted, or kNeedsSearch.
  [[nodiscard]] DUNNOCK_HOST_DEVICE Insertion insert_aside(const Place& place) const noexcept {
    return insert_in_rounds(place, [](std::uint64_t) { return Room::kNotSought; });
  }
  /// Whatever it takes. `moves`: room for kMovesMax. Accepted or refused.
  [[nodiscard]] DUNNOCK_HOST_DEVICE Insertion insert_far(const Place& place, Move* moves) const noexcept {
    return insert_in_rounds(place, [this, &place, moves](std::uint64_t other) {
      return groups_.make_room(place, other, moves) ? Room::kMade : Room::kNone;
    });
  }

  // ----- erase ------------------------------------------------------------------------------------------------------

  /// `value`: the word of the home bucket, as it was a while ago.
  [[nodiscard]] DUNNOCK_HOST_DEVICE bool erase(const Place& place, Word value) const noexcept {
    const Word pattern = L::pattern(place.fingerprint);
    const std::uint64_t group = place.bucket / kGroupWords;
    Word* const home = groups_.word(place.bucket);
    for (;; value = Access::load(home)) {
      while (const Word lanes = L::match_home(value, pattern)) {
        if (Access::swap(home, value, L::remove_home(value, L::lane_of(lanes)))) return true;
        value = Access::load(home);
      }
      const Reach reach = L::reach(value, place.fingerprint);
      if (reach == Reach::kHome) return false;
      if (reach == Reach::kGroup) {
        const int v = groups_.first_foreign(group, pattern);
        // Somebody who took a copy from under our eyes has raised the level before.
        if (v < 0) Access::fence();  // Partner: the one before take_foreign below.
        if (v < 0 && L::reach(Access::load(home), place.fingerprint) == Reach::kGroup) return false;
        if (v >= 0 && groups_.take_foreign(group * kGroupWords + static_cast<unsigned>(v), pattern)) return true;
        continue;
      }
      // Both groups are one pool of equal copies; the first in ascending order is taken. While the higher one has a
      // copy too, a bucket of the lower one that only spilled may lose its own: from now on it looks there as well.
      const std::uint64_t other = groups_.other_group(group, place.fingerprint);
      const std::uint64_t low = group < other ? group : other;
      const std::uint64_t high = group < other ? other : group;
      const int in_low = groups_.first_foreign(low, pattern);
      const int in_high = high == low ? -1 : groups_.first_foreign(high, pattern);
      if (in_low < 0 && in_high < 0) return false;
      if (in_low >= 0 && in_high >= 0) {
        for (unsigned v = 0; v < kGroupWords; ++v)
          groups_.raise_if_spilled(groups_.word(low * kGroupWords + v), place.fingerprint);
        Access::fence();  // The levels are up before a copy goes.
      }
      const std::uint64_t taken = in_low >= 0 ? low * kGroupWords + static_cast<unsigned>(in_low)
                                              : high * kGroupWords + static_cast<unsigned>(in_high);
      if (groups_.take_foreign(taken, pattern)) return true;
    }
  }

 private:
  enum class Room : std::uint8_t { kMade, kNone, kNotSought };

  /// Each round places the key, or makes room by a move, or gives up; others may take the room that was made.
  /// search(other group): what is done when only a path of moves can help.
  template <class Search>
  [[nodiscard]] DUNNOCK_HOST_DEVICE Insertion insert_in_rounds(const Place& place,
                                                               const Search& search) const noexcept {
    constexpr unsigned kRounds = 64;
    const std::uint64_t group = place.bucket / kGroupWords;
    const std::uint64_t other = groups_.other_group(group, place.fingerprint);
    bool may_mark = false;
    for (unsigned round = 0; round < kRounds; ++round) {
      if (insert_near(place) == Insertion::kAccepted) return Insertion::kAccepted;
      may_mark = may_mark || L::is_far(home_of(place), place.fingerprint);
      if (may_mark) {
        const int v = groups_.roomiest(other, place.fingerprint);
        if (v >= 0) {
          groups_.raise(groups_.word(place.bucket), L::far_level(place.fingerprint));
          if (groups_.add_foreign(other * kGroupWords + static_cast<unsigned>(v), place.fingerprint))
            return Insertion::kAccepted;
          continue;
        }
        const Room room = search(other);
        if (room == Room::kNotSought) return Insertion::kNeedsSearch;
        if (room == Room::kNone) return Insertion::kRefused;
      } else {
        may_mark = true;  // If there is no other way.
        groups_.make_room_unmarked(place);
      }
    }
    return Insertion::kRefused;
  }

  FilterGroups<kBits, kGroupWords, Access> groups_;
};

/// The longest prefix for which `has` is true, provided that it is true for nothing after a false.
template <class Has>
DUNNOCK_HOST_DEVICE std::uint32_t longest_prefix(std::uint32_t blocks, const Has& has) {
  std::uint32_t low = 0;        // This many are stored,
  std::uint32_t high = blocks;  // and none behind these.
  while (low < high) {
    const std::uint32_t middle = low + (high - low + 1) / 2;
    if (has(middle - 1)) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

/// Calls f with the FilterWords of the shape.
template <class Access, class F>
void with_words(const FilterShape& shape, std::uint64_t* words, F&& f) {
  const auto by_group = [&]<unsigned kBits>() {
    if (shape.group_words == 8) return f(FilterWords<kBits, 8, Access>(words, shape.groups));
    return f(FilterWords<kBits, 4, Access>(words, shape.groups));
  };
  if (shape.fingerprint_bits == 8) return by_group.template operator()<8>();
  if (shape.fingerprint_bits == 12) return by_group.template operator()<12>();
  return by_group.template operator()<16>();
}

enum class FilterOperation : std::uint8_t { kContains, kInsert, kErase };

}  // namespace dunnock::kernels::detail
