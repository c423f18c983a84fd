// What a thread does with a filter's words, on the CPU and on a GPU: one source for both.
//
// Every change is a compare-and-swap of one word (Access::swap). Why inserts need no lock among themselves:
//   home    the new fingerprint is in the word, or the swap failed and all is looked at again
//   spill   the mark of the home word goes up first; a mark without a copy costs a lookup a comparison, no more
//   kick    the copy is in its other group first; then one swap takes the original and raises its mark. When the
//           original is not there any more, another kick has moved it: our copy is one too many and is taken back.
// And erasures among themselves: a copy is taken by one swap; whoever loses it looks again.
//
// The order of preference is CuckooFilter's (filter/detail/cuckoo_filter_ops.hpp): home, the group, then moves that
// mark no bucket for the first time, then the other group, then kicks, breadth first.
#pragma once

#include <cstdint>

#include "dunnock/filter/layout.hpp"
#include "dunnock/gpu/filter_view.hpp"

namespace dunnock::gpu::detail {

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

enum class Insertion : std::uint8_t { kRefused = 0, kAccepted = 1, kNeedsSearch = 2 };

/// Access: load(const u64*) and swap(u64*, expected, desired) -> bool, both atomic.
template <unsigned kBits, unsigned kGroupWords, class Access>
class FilterWords {
 public:
  using L = Layout<kBits>;
  using Word = std::uint64_t;

  DUNNOCK_HOST_DEVICE FilterWords(Word* words, std::uint64_t groups) noexcept : words_(words), groups_(groups) {}

  [[nodiscard]] DUNNOCK_HOST_DEVICE Place place(std::uint64_t hash) const noexcept {
    return L::place(hash, groups_ * kGroupWords);
  }
  [[nodiscard]] DUNNOCK_HOST_DEVICE Word home_of(const Place& place) const noexcept {
    return Access::load(words_ + place.bucket);
  }

  // ----- lookup -----------------------------------------------------------------------------------------------------

  /// `home`: the word of the home bucket.
  [[nodiscard]] DUNNOCK_HOST_DEVICE bool contains(const Place& place, Word home) const noexcept {
    const Word pattern = L::pattern(place.fingerprint);
    if (L::match_quickly(home, pattern) != 0) return true;
    if (L::level(home) == 0) return false;
    const std::uint64_t group = place.bucket / kGroupWords;
    if (any_foreign(group, pattern)) return true;
    if (!L::is_far(home, place.fingerprint)) return false;
    const std::uint64_t other = L::other_group(group, place.fingerprint, groups_);
    return any_foreign(other, pattern);
  }

  // ----- insert -----------------------------------------------------------------------------------------------------

  /// Home or group: all that most keys need.
  [[nodiscard]] DUNNOCK_HOST_DEVICE Insertion insert_near(const Place& place) const noexcept {
    Word* const home = words_ + place.bucket;
    Word value = Access::load(home);
    while (L::empty_lanes(value) != 0) {
      if (Access::swap(home, value, L::add_home(value, place.fingerprint))) return Insertion::kAccepted;
      value = Access::load(home);
    }
    const std::uint64_t group = place.bucket / kGroupWords;
    for (;;) {
      const int v = roomiest(group, place.fingerprint);
      if (v < 0) return Insertion::kNeedsSearch;
      raise(home, 1);
      if (add_foreign(group * kGroupWords + static_cast<unsigned>(v), place.fingerprint)) return Insertion::kAccepted;
    }
  }

  /// Whatever it takes. `moves`: room for kMovesMax.
  [[nodiscard]] DUNNOCK_HOST_DEVICE Insertion insert_far(const Place& place, Move* moves) const noexcept {
    // Each round places the key, or makes room by a move, or gives up; others may take the room that was made.
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
        if (!make_room(place, other, moves)) return Insertion::kRefused;
      } else {
        may_mark = true;  // If there is no other way.
        make_room_unmarked(place);
      }
    }
    return Insertion::kRefused;
  }

  // ----- erase ------------------------------------------------------------------------------------------------------

  [[nodiscard]] DUNNOCK_HOST_DEVICE bool erase(const Place& place) const noexcept {
    const Word pattern = L::pattern(place.fingerprint);
    const std::uint64_t group = place.bucket / kGroupWords;
    Word* const home = words_ + place.bucket;
    for (;;) {
      Word value = Access::load(home);
      while (const Word lanes = L::match_home(value, pattern)) {
        if (Access::swap(home, value, L::remove_home(value, L::lane_of(lanes)))) return true;
        value = Access::load(home);
      }
      const Reach reach = L::reach(value, place.fingerprint);
      if (reach == Reach::kHome) return false;
      if (reach == Reach::kGroup) {
        const int v = first_foreign(group, pattern);
        // Somebody who took a copy from under our eyes has raised the level before.
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
      }
      const std::uint64_t taken = in_low >= 0 ? low * kGroupWords + static_cast<unsigned>(in_low)
                                              : high * kGroupWords + static_cast<unsigned>(in_high);
      if (take_foreign(taken, pattern)) return true;
    }
  }

 private:
  /// Says yes as CuckooFilter does: match_quickly, over foreign lanes only.
  [[nodiscard]] DUNNOCK_HOST_DEVICE bool any_foreign(std::uint64_t group, Word pattern) const noexcept {
    Word values[kGroupWords];  // All loads are on their way before the first is looked at.
    for (unsigned v = 0; v < kGroupWords; ++v) values[v] = Access::load(words_ + group * kGroupWords + v);
    Word hits = 0;
    for (unsigned v = 0; v < kGroupWords; ++v)
      hits |= L::match_quickly(values[v], pattern) & L::foreign_lanes(values[v]);
    return hits != 0;
  }
  [[nodiscard]] DUNNOCK_HOST_DEVICE int first_foreign(std::uint64_t group, Word pattern) const noexcept {
    Word values[kGroupWords];
    for (unsigned v = 0; v < kGroupWords; ++v) values[v] = Access::load(words_ + group * kGroupWords + v);
    int first = -1;
    for (unsigned v = kGroupWords; v-- > 0;) {
      if (L::match_foreign(values[v], pattern) != 0) first = static_cast<int>(v);
    }
    return first;
  }
  /// The word of the group with the most empty lanes, counted up to three, that takes a foreign one; the first of
  /// equals from word `start` on. -1: none.
  [[nodiscard]] DUNNOCK_HOST_DEVICE int roomiest(std::uint64_t group, std::uint64_t start) const noexcept {
    int best = -1;
    int best_empty = 0;
    for (unsigned i = 0; i < kGroupWords; ++i) {
      const auto v = static_cast<unsigned>((start + i) % kGroupWords);
      const Word word = Access::load(words_ + group * kGroupWords + v);
      if (L::foreign_count(word) == L::kForeignMax) continue;
      const int empty = std::popcount(L::empty_lanes(word)) < 3 ? std::popcount(L::empty_lanes(word)) : 3;
      if (empty <= best_empty) continue;
      best = static_cast<int>(v);
      best_empty = empty;
    }
    return best;
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

  // ----- kicks
  // --------------------------------------------------------------------------------------------------------

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

/// The longest prefix that `has` says yes to, when it says yes to nothing behind a no.
template <class Has>
DUNNOCK_HOST_DEVICE std::uint32_t longest_prefix(std::uint32_t blocks, const Has& has) {
  std::uint32_t low = 0;        // So many are there,
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

/// What the CUDA backend does; `Key` is std::uint64_t or Key128.
enum class FilterOperation : std::uint8_t { kContains, kInsert, kErase };
template <class Key>
void cuda_filter(FilterOperation operation, const FilterShape& shape, std::uint64_t* words, DeviceSpan<const Key> keys,
                 DeviceSpan<std::uint8_t> answers, Stream& stream);
void cuda_longest_prefix(const FilterShape& shape, std::uint64_t* words, DeviceSpan<const Key128> hashes,
                         DeviceSpan<const std::uint32_t> first, DeviceSpan<std::uint32_t> lengths, Stream& stream);

}  // namespace dunnock::gpu::detail
