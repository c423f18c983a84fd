// Where to kick: the moves of home fingerprints to their other groups that make room for a new key.
//
// What it is for: finding moves. It reads without locks and changes nothing, so what it finds is a proposal; whoever
// makes the moves checks each step again under its locks. What it is not for: making them (KickLog). Kicks are rare:
// nothing here is inlined, so that the compiler's limits of growth are spent on inserts that need none.
//
//   unmarked_moves       one step, without marking another bucket as overflowed
//   find_path            breadth first, by looking ahead
//   find_path_randomly   the textbook's random walk, for comparison
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <vector>

#include "dunnock/filter/detail/filter_table.hpp"
#include "dunnock/filter/detail/group_scan.hpp"
#include "dunnock/filter/layout.hpp"
#include "dunnock/filter/policy.hpp"
#include "dunnock/pmem/media.hpp"

namespace dunnock::detail {

/// One step of a kick path: the home fingerprint of a word moves to its other group.
struct KickMove {
  static constexpr std::uint32_t kNoParent = ~0U;
  std::uint64_t source;  // index of the word
  std::uint64_t target_group;
  std::uint64_t fingerprint;
  std::uint32_t parent;  // the step that needs the lane that this one frees; kNoParent: the new key needs it
};

struct UnmarkedMoves {
  std::array<KickMove, 4> list;  // Lines fetched at once. Bench: eight are no better.
  unsigned count = 0;
};

template <unsigned kBits, Media M, FilterPolicy kPolicy>
class KickSearch {
 public:
  using Table = FilterTable<kBits, kPolicy>;
  using L = Layout<kBits>;
  static constexpr unsigned kGroupWords = Table::kGroupWords;

  KickSearch(const Table& table, const M& media) noexcept : table_(table), media_(media) {}

  /// Finds moves that would make room for a key in its group without marking another bucket as overflowed (which costs
  /// every later lookup of half its fingerprints a second line): they move a fingerprint of the group whose bucket is
  /// marked already, or an even one if the key is odd. Prefetches the lines of their targets.
  [[nodiscard, gnu::noinline]] UnmarkedMoves unmarked_moves(const Place& place) const {
    UnmarkedMoves moves;
    const std::uint64_t group = Table::group_of(place);
    const Word* words = table_.words_of(group);
    const auto own = static_cast<unsigned>(place.bucket % kGroupWords);
    const auto add = [&](std::uint64_t value, unsigned v, std::uint64_t lanes) {
      if (v != own && (!kPolicy.spill || L::foreign_count(value) == L::kForeignMax)) return;
      for (; lanes != 0 && moves.count < moves.list.size(); lanes &= lanes - 1) {
        const std::uint64_t fingerprint = L::lane(value, L::lane_of(lanes));
        const std::uint64_t target = table_.other_group(group, fingerprint);
        if (target == group) continue;
        __builtin_prefetch(table_.words_of(target), 1);
        moves.list[moves.count++] = {group * kGroupWords + v, target, fingerprint, KickMove::kNoParent};
      }
    };
    for (unsigned i = 0; i < kGroupWords; ++i) {
      const unsigned v = (own + i) % kGroupWords;
      const std::uint64_t value = media_.load(words[v]);
      if (L::level(value) < 2) continue;
      add(value, v, L::level(value) == 2 ? L::even_home_lanes(value) : L::occupied_home_lanes(value));
    }
    if (L::far_level(place.fingerprint) == 3 && L::level(media_.load(words[own])) < 2) {
      for (unsigned i = 0; i < kGroupWords && moves.count < moves.list.size(); ++i) {
        const unsigned v = (own + i) % kGroupWords;
        const std::uint64_t value = media_.load(words[v]);
        if (L::level(value) < 2) add(value, v, L::even_home_lanes(value));
      }
    }
    return moves;
  }

  /// Breadth first over home fingerprints that could move forward, until one is found whose other group has room.
  /// `other`: the key's other group. `path` receives the moves, last one (into the free lane) first. `groups_read`
  /// grows by the number of groups looked at. False: there is none.
  [[nodiscard, gnu::noinline]] bool find_path(const Place& place, std::uint64_t other, std::vector<KickMove>& path,
                                              std::uint64_t& groups_read) const {
    constexpr std::size_t kGroupsAhead = 6;  // Groups prefetched ahead of the one being examined.
    Frontier frontier(*this, place, other);
    const std::vector<KickMove>& moves = frontier.moves();
    std::size_t prefetched = 0;
    std::size_t examined = 0;
    do {
      for (; examined < moves.size(); ++examined) {
        for (; prefetched < std::min(examined + kGroupsAhead, moves.size()); ++prefetched) {
          __builtin_prefetch(table_.words_of(moves[prefetched].target_group));
        }
        if (!has_room(moves[examined].target_group)) continue;
        groups_read += examined + 1;
        path.clear();
        for (auto step = static_cast<std::uint32_t>(examined); step != KickMove::kNoParent; step = moves[step].parent) {
          path.push_back(moves[step]);
        }
        return true;
      }
    } while (frontier.grow());
    groups_read += examined;
    return false;
  }

  /// The textbook method, for comparison: a random victim, then a random victim where that one goes, and so on. As
  /// find_path, but counts no groups.
  [[nodiscard, gnu::noinline]] bool find_path_randomly(const Place& place, std::uint64_t other,
                                                       std::vector<KickMove>& path) const {
    constexpr unsigned kStepsMax = 500;
    // A sequence that depends only on the place, so that a run can be replayed.
    std::uint64_t random = (place.bucket << 16 | place.fingerprint) * 0x9e3779b97f4a7c15ULL;
    const auto next = [&random] {  // xorshift64 (Marsaglia 2003)
      random ^= random << 13;
      random ^= random >> 7;
      random ^= random << 17;
      return random;
    };
    path.clear();
    const std::uint64_t home = Table::group_of(place);
    std::uint64_t group = home;
    auto word = static_cast<unsigned>(place.bucket % kGroupWords);
    for (unsigned step = 0; step < kStepsMax; ++step) {
      const std::uint64_t value = media_.load(table_.words_of(group)[word]);
      const unsigned lanes = L::kLanes - L::foreign_count(value);
      const std::uint64_t fingerprint = lanes == 0 ? 0 : L::lane(value, static_cast<unsigned>(next() % lanes));
      const std::uint64_t target = fingerprint == 0 ? group : table_.other_group(group, fingerprint);
      if (target == group) {  // Nothing to move here: start again somewhere near.
        path.clear();
        group = (next() & 1) != 0 ? other : home;
        word = static_cast<unsigned>((group == home ? place.bucket : next()) % kGroupWords);
        continue;
      }
      path.insert(path.begin(), {group * kGroupWords + word, target, fingerprint, KickMove::kNoParent});
      if (has_room(target)) return true;
      group = target;
      word = static_cast<unsigned>(next() % kGroupWords);
      for (unsigned tries = 0; tries < kGroupWords; ++tries, word = (word + 1) % kGroupWords) {
        if (L::foreign_count(media_.load(table_.words_of(group)[word])) < L::kForeignMax) break;
      }
    }
    return false;
  }

 private:
  /// The moves of find_path in the order in which they are examined: one step away from the new key's bucket, then from
  /// its two groups, then one step further from each of those.
  class Frontier {
   public:
    Frontier(const KickSearch& search, const Place& place, std::uint64_t other)
        : search_(search),
          place_(place),
          other_(other),
          // A small table has no more moves than slots.
          moves_max_(std::min<std::uint64_t>(kMovesMax, search.table_.slots())) {
      moves_.reserve(64);
      // The key's own bucket: the new key is then at home, and no other has to become foreign for it.
      const auto word = static_cast<unsigned>(place.bucket % kGroupWords);
      for (const unsigned raises : kRaises) add_word(Table::group_of(place), word, KickMove::kNoParent, raises);
    }

    [[nodiscard]] const std::vector<KickMove>& moves() const noexcept { return moves_; }

    /// Adds the next moves, if any. False: there are no more.
    bool grow() {
      if (stage_ < std::size(kRaises)) {
        const unsigned raises = kRaises[stage_++];
        const std::uint64_t group = Table::group_of(place_);
        if constexpr (kPolicy.spill) add_group(group, KickMove::kNoParent, raises);
        if (other_ != group) add_group(other_, KickMove::kNoParent, raises);
        return true;
      }
      if (expanded_ == moves_.size() || moves_.size() >= moves_max_) return false;
      for (const unsigned raises : kRaises) {
        add_group(moves_[expanded_].target_group, static_cast<std::uint32_t>(expanded_), raises);
      }
      ++expanded_;
      return true;
    }

   private:
    // Groups read before the filter counts as full. Bench: load at refusal.
    static constexpr std::size_t kMovesMax = 2048;
    // Those that the word's level lets go already come before those that raise it to 2 and those that raise it to 3, so
    // that fewer lookups read a second line.
    static constexpr unsigned kRaises[] = {0, 2, 3};

    /// Home fingerprints of a word that could move.
    void add_word(std::uint64_t group, unsigned v, std::uint32_t parent, unsigned raises) {
      const Table& table = search_.table_;
      const std::uint64_t value = search_.media_.load(table.words_of(group)[v]);
      for (unsigned i = 0; i < L::kLanes - L::foreign_count(value); ++i) {
        const std::uint64_t fingerprint = L::lane(value, i);
        const bool admitted = Table::reach(value, fingerprint) == Reach::kOtherGroup;
        if (fingerprint == 0 || (admitted ? 0 : L::far_level(fingerprint)) != raises) continue;
        const std::uint64_t target = table.other_group(group, fingerprint);
        if (target != group) moves_.push_back({group * kGroupWords + v, target, fingerprint, parent});
      }
    }
    /// The same for all words that could then take a foreign fingerprint.
    void add_group(std::uint64_t group, std::uint32_t parent, unsigned raises) {
      const Word* words = search_.table_.words_of(group);
      for (unsigned v = 0; v < kGroupWords; ++v) {
        if (L::foreign_count(search_.media_.load(words[v])) < L::kForeignMax) add_word(group, v, parent, raises);
      }
    }

    const KickSearch& search_;
    const Place& place_;
    std::uint64_t other_;
    std::size_t moves_max_;
    // Not thread-local: simulated threads share one. A kick costs much more than an allocation.
    std::vector<KickMove> moves_;
    std::size_t stage_ = 0;     // of kRaises, for the key's two groups
    std::size_t expanded_ = 0;  // moves one step further from which are among the moves
  };

  /// Can a word of the group take a foreign fingerprint?
  [[nodiscard, gnu::always_inline]] bool has_room(std::uint64_t group) const {
    return roomiest<kBits, kGroupWords>(media_, table_.words_of(group), 0) >= 0;
  }

  const Table& table_;
  const M& media_;
};

}  // namespace dunnock::detail
