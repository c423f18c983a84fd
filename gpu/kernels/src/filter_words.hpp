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

/// A fingerprint that could go to its other group, in 8 bytes:  source word 36 bits | fingerprint 16 | parent 12
class Move {
 public:
  static constexpr unsigned kNoParent = 0xfff;
  DUNNOCK_HOST_DEVICE Move() noexcept : bits_(0) {}
  DUNNOCK_HOST_DEVICE Move(std::uint64_t source, std::uint64_t fingerprint, unsigned parent) noexcept
      : bits_(source << 28 | fingerprint << 12 | parent) {}
  [[nodiscard]] DUNNOCK_HOST_DEVICE std::uint64_t source() const noexcept { return bits_ >> 28; }
  [[nodiscard]] DUNNOCK_HOST_DEVICE std::uint64_t fingerprint() const noexcept { return bits_ >> 12 & 0xffff; }
  [[nodiscard]] DUNNOCK_HOST_DEVICE unsigned parent() const noexcept { return static_cast<unsigned>(bits_ & 0xfff); }

 private:
  std::uint64_t bits_;
};
/// Moves that a search may look at: 2 KiB a thread. Less than CuckooFilter's 2048, which reach 98 % load.
inline constexpr unsigned kMovesMax = 256;

/// Of the three steps of an insert, kNeeds... names the next one that has not been tried.
enum class Insertion : std::uint8_t { kRefused = 0, kAccepted = 1, kNeedsMove = 2, kNeedsSearch = 3 };

/// A lookup between its loads: the answer, or which words it must see.
enum class Look : std::uint8_t { kNo = 0, kYes = 1, kGroup = 2, kOtherGroup = 3 };

/// Access: load(const u64*) and swap(u64*, expected, desired) -> bool, both atomic; load_group(const u64*, u64 (&)[n]):
/// n loads, each atomic, all on their way before it returns; fence(): what this thread has seen or changed before comes
/// before what it sees or changes behind, for all threads.
template <unsigned kBits, unsigned kGroupWords, class Access>
class FilterWords {
 public:
  using L = Layout<kBits>;
  using Word = std::uint64_t;
  static constexpr unsigned kWords = kGroupWords;

  DUNNOCK_HOST_DEVICE FilterWords(Word* words, std::uint64_t groups) noexcept : words_(words), groups_(groups) {}

  [[nodiscard]] DUNNOCK_HOST_DEVICE Place place(std::uint64_t hash) const noexcept {
    return L::place(hash, groups_ * kGroupWords);
  }
  [[nodiscard]] DUNNOCK_HOST_DEVICE Word home_of(const Place& place) const noexcept {
    return Access::load(words_ + place.bucket);
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
    if (has_foreign(values, L::pattern(place.fingerprint))) return Look::kYes;
    return L::is_far(home, place.fingerprint) ? Look::kOtherGroup : Look::kNo;
  }
  /// `values`: the other group. The answer.
  [[nodiscard]] DUNNOCK_HOST_DEVICE bool look_at_other(const Place& place,
                                                       const Word (&values)[kGroupWords]) const noexcept {
    return has_foreign(values, L::pattern(place.fingerprint));
  }
  DUNNOCK_HOST_DEVICE void load_home_group(const Place& place, Word (&values)[kGroupWords]) const noexcept {
    Access::load_group(words_ + place.bucket / kGroupWords * kGroupWords, values);
  }
  DUNNOCK_HOST_DEVICE void load_other_group(const Place& place, Word (&values)[kGroupWords]) const noexcept {
    const std::uint64_t other = L::other_group(place.bucket / kGroupWords, place.fingerprint, groups_);
    Access::load_group(words_ + other * kGroupWords, values);
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
    Word* const home = words_ + place.bucket;
    while (L::empty_lanes(value) != 0) {
      if (Access::swap(home, value, L::add_home(value, place.fingerprint))) return Insertion::kAccepted;
      value = Access::load(home);
    }
    const std::uint64_t group = place.bucket / kGroupWords;
    for (;;) {
      const int v = roomiest(group, place.fingerprint);
      if (v < 0) return Insertion::kNeedsMove;
      raise(home, 1);
      if (add_foreign(group * kGroupWords + static_cast<unsigned>(v), place.fingerprint)) return Insertion::kAccepted;
    }
  }

  /// The other group, or one move that makes room: what is left when the group is full. Accepted, or kNeedsSearch.
  [[nodiscard]] DUNNOCK_HOST_DEVICE Insertion insert_aside(const Place& place) const noexcept {
    return insert_in_rounds(place, [](std::uint64_t) { return Room::kNotSought; });
  }
  /// Whatever it takes. `moves`: room for kMovesMax. Accepted or refused.
  [[nodiscard]] DUNNOCK_HOST_DEVICE Insertion insert_far(const Place& place, Move* moves) const noexcept {
    return insert_in_rounds(place, [this, &place, moves](std::uint64_t other) {
      return make_room(place, other, moves) ? Room::kMade : Room::kNone;
    });
  }

  // ----- erase ------------------------------------------------------------------------------------------------------

  /// `value`: the word of the home bucket, as it was a while ago.
  [[nodiscard]] DUNNOCK_HOST_DEVICE bool erase(const Place& place, Word value) const noexcept {
    const Word pattern = L::pattern(place.fingerprint);
    const std::uint64_t group = place.bucket / kGroupWords;
    Word* const home = words_ + place.bucket;
    for (;; value = Access::load(home)) {
      while (const Word lanes = L::match_home(value, pattern)) {
        if (Access::swap(home, value, L::remove_home(value, L::lane_of(lanes)))) return true;
        value = Access::load(home);
      }
      const Reach reach = L::reach(value, place.fingerprint);
      if (reach == Reach::kHome) return false;
      if (reach == Reach::kGroup) {
        const int v = first_foreign(group, pattern);
        // Somebody who took a copy from under our eyes has raised the level before.
        if (v < 0) Access::fence();  // Partner: the one before take_foreign below.
        if (v < 0 && L::reach(Access::load(home), place.fingerprint) == Reach::kGroup) return false;
        if (v >= 0 && take_foreign(group * kGroupWords + static_cast<unsigned>(v), pattern)) return true;
        continue;
      }
      // Both groups are one pool of equal copies; the first in ascending order is taken. While the higher one has a
      // copy too, a bucket of the lower one that only spilled may lose its own: from now on it looks there as well.
      const std::uint64_t other = L::other_group(group, place.fingerprint, groups_);
      const std::uint64_t low = group < other ? group : other;
      const std::uint64_t high = group < other ? other : group;
      const int in_low = first_foreign(low, pattern);
      const int in_high = high == low ? -1 : first_foreign(high, pattern);
      if (in_low < 0 && in_high < 0) return false;
      if (in_low >= 0 && in_high >= 0) {
        for (unsigned v = 0; v < kGroupWords; ++v) raise_if_spilled(words_ + low * kGroupWords + v, place.fingerprint);
        Access::fence();  // The levels are up before a copy goes.
      }
      const std::uint64_t taken = in_low >= 0 ? low * kGroupWords + static_cast<unsigned>(in_low)
                                              : high * kGroupWords + static_cast<unsigned>(in_high);
      if (take_foreign(taken, pattern)) return true;
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
    const std::uint64_t other = L::other_group(group, place.fingerprint, groups_);
    bool may_mark = false;
    for (unsigned round = 0; round < kRounds; ++round) {
      if (insert_near(place) == Insertion::kAccepted) return Insertion::kAccepted;
      may_mark = may_mark || L::is_far(home_of(place), place.fingerprint);
      if (may_mark) {
        const int v = roomiest(other, place.fingerprint);
        if (v >= 0) {
          raise(words_ + place.bucket, L::far_level(place.fingerprint));
          if (add_foreign(other * kGroupWords + static_cast<unsigned>(v), place.fingerprint))
            return Insertion::kAccepted;
          continue;
        }
        const Room room = search(other);
        if (room == Room::kNotSought) return Insertion::kNeedsSearch;
        if (room == Room::kNone) return Insertion::kRefused;
      } else {
        may_mark = true;  // If there is no other way.
        make_room_unmarked(place);
      }
    }
    return Insertion::kRefused;
  }

  /// Says yes as CuckooFilter does: match_quickly, over foreign lanes only.
  [[nodiscard]] DUNNOCK_HOST_DEVICE static bool has_foreign(const Word (&values)[kGroupWords], Word pattern) noexcept {
    Word hits = 0;
    for (unsigned v = 0; v < kGroupWords; ++v)
      hits |= L::match_quickly(values[v], pattern) & L::foreign_lanes(values[v]);
    return hits != 0;
  }
  [[nodiscard]] DUNNOCK_HOST_DEVICE int first_foreign(std::uint64_t group, Word pattern) const noexcept {
    Word values[kGroupWords];
    Access::load_group(words_ + group * kGroupWords, values);
    int first = -1;
    for (unsigned v = kGroupWords; v-- > 0;) {
      if (L::match_foreign(values[v], pattern) != 0) first = static_cast<int>(v);
    }
    return first;
  }
  /// The word of the group with the most empty lanes, counted up to three, that takes a foreign one; the first of
  /// equals from word `start` on. -1: none.
  [[nodiscard]] DUNNOCK_HOST_DEVICE int roomiest(std::uint64_t group, std::uint64_t start) const noexcept {
    Word values[kGroupWords];
    Access::load_group(words_ + group * kGroupWords, values);
    unsigned best = 0;  // empty lanes * kGroupWords + how early it comes: the largest wins; 0: none has room
    unsigned found = 0;
    for (unsigned v = 0; v < kGroupWords; ++v) {
      const auto lanes = static_cast<unsigned>(std::popcount(L::empty_lanes(values[v])));
      const unsigned empty = L::foreign_count(values[v]) == L::kForeignMax ? 0 : lanes < 3 ? lanes : 3;
      const unsigned late = (v - static_cast<unsigned>(start)) % kGroupWords;
      const unsigned score = empty == 0 ? 0 : empty * kGroupWords + (kGroupWords - 1 - late);
      if (score <= best) continue;
      best = score;
      found = v;
    }
    return best == 0 ? -1 : static_cast<int>(found);
  }
  DUNNOCK_HOST_DEVICE void raise(Word* word, unsigned level) const noexcept {
    for (Word value = Access::load(word); L::level(value) < level; value = Access::load(word)) {
      if (Access::swap(word, value, L::with_level(value, level))) return;
    }
  }
  DUNNOCK_HOST_DEVICE void raise_if_spilled(Word* word, std::uint64_t fingerprint) const noexcept {
    for (Word value = Access::load(word); L::reach(value, fingerprint) == Reach::kGroup; value = Access::load(word)) {
      if (Access::swap(word, value, L::with_level(value, L::far_level(fingerprint)))) return;
    }
  }
  /// False: the word has no room any more.
  DUNNOCK_HOST_DEVICE bool add_foreign(std::uint64_t at, std::uint64_t fingerprint) const noexcept {
    for (Word value = Access::load(words_ + at); L::has_foreign_room(value); value = Access::load(words_ + at)) {
      if (Access::swap(words_ + at, value, L::add_foreign(value, fingerprint))) return true;
    }
    return false;
  }
  /// False: the word has no such foreign fingerprint any more.
  DUNNOCK_HOST_DEVICE bool take_foreign(std::uint64_t at, Word pattern) const noexcept {
    for (Word value = Access::load(words_ + at); const Word lanes = L::match_foreign(value, pattern);
         value = Access::load(words_ + at)) {
      if (Access::swap(words_ + at, value, L::remove_foreign(value, L::lane_of(lanes)))) return true;
    }
    return false;
  }

  // ----- kicks ------------------------------------------------------------------------------------------------------

  [[nodiscard]] DUNNOCK_HOST_DEVICE std::uint64_t target_of(const Move& move) const noexcept {
    return L::other_group(move.source() / kGroupWords, move.fingerprint(), groups_);
  }

  /// False: it is not possible any more, and nothing was changed.
  DUNNOCK_HOST_DEVICE bool apply(const Move& move) const noexcept {
    const std::uint64_t target = target_of(move);
    const std::uint64_t fingerprint = move.fingerprint();
    const Word pattern = L::pattern(fingerprint);
    Word* const source = words_ + move.source();
    if (L::match_home(Access::load(source), pattern) == 0) return false;
    int v = roomiest(target, fingerprint);
    if (v < 0) return false;
    const std::uint64_t copy = target * kGroupWords + static_cast<unsigned>(v);
    if (!add_foreign(copy, fingerprint)) return false;
    const unsigned far = L::far_level(fingerprint);
    for (Word value = Access::load(source); const Word lanes = L::match_home(value, pattern);
         value = Access::load(source)) {
      Word after = L::remove_home(value, L::lane_of(lanes));
      if (L::level(after) < far) after = L::with_level(after, far);
      if (Access::swap(source, value, after)) return true;
    }
    // Another kick has moved it. Copies of a fingerprint in foreign lanes of one word are alike, and stay in their
    // word.
    (void)take_foreign(copy, pattern);
    return false;
  }

  /// A move out of the key's group that marks no bucket for the first time for all its fingerprints; see CuckooFilter.
  DUNNOCK_HOST_DEVICE void make_room_unmarked(const Place& place) const noexcept {
    const std::uint64_t group = place.bucket / kGroupWords;
    const auto own = static_cast<unsigned>(place.bucket % kGroupWords);
    const bool evens = L::far_level(place.fingerprint) == 3 && L::level(home_of(place)) < 2;
    for (unsigned pass = 0; pass < (evens ? 2U : 1U); ++pass) {
      for (unsigned i = 0; i < kGroupWords; ++i) {
        const unsigned v = (own + i) % kGroupWords;
        const Word value = Access::load(words_ + group * kGroupWords + v);
        if ((L::level(value) >= 2) != (pass == 0)) continue;
        if (v != own && L::foreign_count(value) == L::kForeignMax) continue;
        Word lanes = L::level(value) == 3 ? L::occupied_home_lanes(value) : L::even_home_lanes(value);
        for (; lanes != 0; lanes &= lanes - 1) {
          const Move move(group * kGroupWords + v, L::lane(value, L::lane_of(lanes)), Move::kNoParent);
          if (target_of(move) != group && apply(move)) return;
        }
      }
    }
  }

  /// The levels that moves raise a word to, in the order of preference: none, 2, 3.
  [[nodiscard]] DUNNOCK_HOST_DEVICE static constexpr unsigned raises_of(unsigned i) noexcept {
    return i == 0 ? 0 : i + 1;
  }

  /// Home fingerprints of a word that could move: those that its level lets go already, or those that raise it.
  DUNNOCK_HOST_DEVICE unsigned add_victims(std::uint64_t at, unsigned parent, unsigned raises, Move* moves,
                                           unsigned count) const noexcept {
    const Word value = Access::load(words_ + at);
    for (unsigned i = 0; i < L::kLanes - L::foreign_count(value) && count < kMovesMax; ++i) {
      const std::uint64_t fingerprint = L::lane(value, i);
      if (fingerprint == 0) continue;
      if ((L::is_far(value, fingerprint) ? 0 : L::far_level(fingerprint)) != raises) continue;
      const Move move(at, fingerprint, parent);
      if (target_of(move) != at / kGroupWords) moves[count++] = move;
    }
    return count;
  }
  DUNNOCK_HOST_DEVICE unsigned add_group(std::uint64_t group, unsigned parent, unsigned raises, Move* moves,
                                         unsigned count) const noexcept {
    for (unsigned v = 0; v < kGroupWords; ++v) {
      const std::uint64_t at = group * kGroupWords + v;
      if (L::foreign_count(Access::load(words_ + at)) < L::kForeignMax)
        count = add_victims(at, parent, raises, moves, count);
    }
    return count;
  }

  /// Breadth first, as CuckooFilter::find_path. False: no path was found, and nothing was changed.
  DUNNOCK_HOST_DEVICE bool make_room(const Place& place, std::uint64_t other, Move* moves) const noexcept {
    const std::uint64_t group = place.bucket / kGroupWords;
    unsigned count = 0;
    unsigned examined = 0;
    unsigned expanded = 0;
    unsigned stage = 0;
    for (;;) {
      for (; examined < count; ++examined) {
        if (roomiest(target_of(moves[examined]), 0) < 0) continue;
        // From the far end: each move by itself leaves a correct filter.
        for (unsigned step = examined; step != Move::kNoParent; step = moves[step].parent()) {
          if (!apply(moves[step])) break;
        }
        return true;
      }
      if (stage == 0) {
        for (unsigned i = 0; i < 3; ++i) count = add_victims(place.bucket, Move::kNoParent, raises_of(i), moves, count);
        ++stage;
      } else if (stage <= 3) {
        const unsigned raises = raises_of(stage - 1);
        count = add_group(group, Move::kNoParent, raises, moves, count);
        if (other != group) count = add_group(other, Move::kNoParent, raises, moves, count);
        ++stage;
      } else if (expanded < count && count < kMovesMax) {
        const std::uint64_t target = target_of(moves[expanded]);
        for (unsigned i = 0; i < 3; ++i) count = add_group(target, expanded, raises_of(i), moves, count);
        ++expanded;
      } else {
        return false;
      }
    }
  }

  Word* words_;
  std::uint64_t groups_;
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
