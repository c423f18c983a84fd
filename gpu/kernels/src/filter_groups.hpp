// The groups of a filter's words, on the CPU and on a GPU: fingerprints are added, taken, and moved to their other
// group. filter_words.hpp decides which of these a key needs, and says why they need no lock.
#pragma once

#include <bit>
#include <cstdint>

#include "dunnock/filter/layout.hpp"
#include "dunnock/kernels/filter_view.hpp"

namespace dunnock::kernels::detail {

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

/// Access: load(const u64*) and swap(u64*, expected, desired) -> bool, both atomic; load_group(const u64*, u64 (&)[n]):
/// n loads, each atomic, all on their way before it returns; fence(): what this thread has seen or changed before comes
/// before what it sees or changes after, for all threads.
template <unsigned kBits, unsigned kGroupWords, class Access>
class FilterGroups {
 public:
  using L = Layout<kBits>;
  using Word = std::uint64_t;

  DUNNOCK_HOST_DEVICE FilterGroups(Word* words, std::uint64_t groups) noexcept : words_(words), groups_(groups) {}

  [[nodiscard]] DUNNOCK_HOST_DEVICE std::uint64_t size() const noexcept { return groups_; }
  [[nodiscard]] DUNNOCK_HOST_DEVICE Word* word(std::uint64_t at) const noexcept { return words_ + at; }
  [[nodiscard]] DUNNOCK_HOST_DEVICE std::uint64_t other_group(std::uint64_t group,
                                                              std::uint64_t fingerprint) const noexcept {
    return L::other_group(group, fingerprint, groups_);
  }
  DUNNOCK_HOST_DEVICE void load(std::uint64_t group, Word (&values)[kGroupWords]) const noexcept {
    Access::load_group(words_ + group * kGroupWords, values);
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
    load(group, values);
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
    load(group, values);
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

  /// A move out of the key's group that marks no bucket for the first time for all its fingerprints; see CuckooFilter.
  DUNNOCK_HOST_DEVICE void make_room_unmarked(const Place& place) const noexcept {
    const std::uint64_t group = place.bucket / kGroupWords;
    const auto own = static_cast<unsigned>(place.bucket % kGroupWords);
    const bool evens = L::far_level(place.fingerprint) == 3 && L::level(Access::load(words_ + place.bucket)) < 2;
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

 private:
  [[nodiscard]] DUNNOCK_HOST_DEVICE std::uint64_t target_of(const Move& move) const noexcept {
    return other_group(move.source() / kGroupWords, move.fingerprint());
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

  Word* words_;
  std::uint64_t groups_;
};

}  // namespace dunnock::kernels::detail
