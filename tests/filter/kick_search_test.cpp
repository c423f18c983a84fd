// Where to kick: what the search finds, compared with every move that there is.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <optional>
#include <random>
#include <set>
#include <vector>

#include "dunnock/filter/detail/kick_search.hpp"
#include "dunnock/pmem/volatile_region.hpp"
#include "support/seed.hpp"

namespace dunnock {
namespace {

using detail::FilterTable;
using detail::KickMove;
using detail::KickSearch;
using detail::UnmarkedMoves;

/// A small table of random words that a filter could have left, nearly full.
template <unsigned kBits, FilterPolicy kPolicy>
class RandomTable {
 public:
  using L = Layout<kBits>;
  using Table = FilterTable<kBits, kPolicy>;
  static constexpr unsigned kWords = kPolicy.group_words;

  /// `empty_share`: of the lanes, about.
  RandomTable(std::mt19937_64& random, std::uint64_t groups, double empty_share)
      : memory_(*VolatileRegion::create((groups * kWords * sizeof(Word) + 63) / 64 * 64)),
        table_(memory_.region(), groups) {
    std::bernoulli_distribution is_empty(empty_share);
    for (std::uint64_t i = 0; i < table_.buckets(); ++i) {
      const std::uint64_t foreign = kPolicy.spill ? random() % (L::kForeignMax + 1) : random() % 2;
      std::uint64_t word = foreign << L::kCountShift;
      for (unsigned lane = 0; lane < L::kLanes; ++lane) {
        const bool empty = lane < L::kLanes - foreign && is_empty(random);
        word = L::with_lane(word, lane, empty ? 0 : 1 + random() % L::kLaneMask);
      }
      table_.word_at(i).store(L::with_level(word, random() % 4));
      EXPECT_TRUE(L::is_word(value(i)));
    }
  }

  [[nodiscard]] const Table& table() const noexcept { return table_; }
  [[nodiscard]] std::uint64_t value(std::uint64_t word) const { return table_.word_at(word).load(); }
  [[nodiscard]] Place random_place(std::mt19937_64& random) const {
    return {random() % table_.buckets(), 1 + random() % L::kLaneMask};
  }
  [[nodiscard]] bool has_room(std::uint64_t group) const {
    for (unsigned v = 0; v < kWords; ++v) {
      if (L::has_foreign_room(value(group * kWords + v))) return true;
    }
    return false;
  }
  /// The moves of one word's home fingerprints to another group, in the order of its lanes.
  [[nodiscard]] std::vector<KickMove> moves_of_word(std::uint64_t word) const {
    std::vector<KickMove> moves;
    const std::uint64_t group = word / kWords;
    for (unsigned lane = 0; lane < L::kLanes - L::foreign_count(value(word)); ++lane) {
      const std::uint64_t fingerprint = L::lane(value(word), lane);
      const std::uint64_t target = L::other_group(group, fingerprint, table_.groups());
      if (fingerprint != 0 && target != group) moves.push_back({word, target, fingerprint, KickMove::kNoParent});
    }
    return moves;
  }
  /// Those of all words of a group in which a foreign fingerprint could take the freed lane.
  [[nodiscard]] std::vector<KickMove> moves_of_group(std::uint64_t group) const {
    std::vector<KickMove> moves;
    for (std::uint64_t word = group * kWords; word < (group + 1) * kWords; ++word) {
      if (L::foreign_count(value(word)) == L::kForeignMax) continue;
      for (const KickMove& move : moves_of_word(word)) moves.push_back(move);
    }
    return moves;
  }
  /// The moves that can be the last of a path: they free a lane for the key itself.
  [[nodiscard]] std::vector<KickMove> first_steps(const Place& place, std::uint64_t other) const {
    std::vector<KickMove> steps = moves_of_word(place.bucket);
    for (const std::uint64_t group : {place.bucket / kWords, other}) {
      if (!kPolicy.spill && group == place.bucket / kWords) continue;  // Nothing is foreign in its own group.
      for (const KickMove& move : moves_of_group(group)) steps.push_back(move);
    }
    return steps;
  }
  /// The least number of moves that makes room, by flooding groups; empty: there is none.
  [[nodiscard]] std::optional<std::size_t> least_steps(const Place& place, std::uint64_t other) const {
    std::set<std::uint64_t> reached;
    std::vector<KickMove> steps = first_steps(place, other);
    for (std::size_t length = 1; !steps.empty(); ++length) {
      std::vector<KickMove> next;
      for (const KickMove& step : steps) {
        if (has_room(step.target_group)) return length;
        if (!reached.insert(step.target_group).second) continue;
        for (const KickMove& move : moves_of_group(step.target_group)) next.push_back(move);
      }
      steps = std::move(next);
    }
    return std::nullopt;
  }
  /// Is this one of them?
  [[nodiscard]] static bool is_among(const KickMove& move, const std::vector<KickMove>& all) {
    return std::ranges::any_of(all, [&](const KickMove& one) {
      return one.source == move.source && one.target_group == move.target_group && one.fingerprint == move.fingerprint;
    });
  }
  /// Do these moves, last one first, make room for the key?
  void expect_path(const std::vector<KickMove>& path, const Place& place, std::uint64_t other) const {
    ASSERT_FALSE(path.empty());
    EXPECT_TRUE(has_room(path.front().target_group));
    for (std::size_t i = 0; i + 1 < path.size(); ++i) {
      EXPECT_EQ(path[i].source / kWords, path[i + 1].target_group) << "a step frees a lane for the one before it";
      EXPECT_TRUE(is_among(path[i], moves_of_group(path[i + 1].target_group)));
    }
    EXPECT_TRUE(is_among(path.back(), first_steps(place, other)));
  }

 private:
  VolatileRegion memory_;
  Table table_;
};

template <unsigned kBits, FilterPolicy kPolicy>
struct Of {
  static constexpr unsigned kFingerprintBits = kBits;
  static constexpr FilterPolicy policy = kPolicy;
};
using Kinds = testing::Types<Of<8, FilterPolicy{}>, Of<12, FilterPolicy{}>, Of<16, FilterPolicy{}>,
                             Of<12, FilterPolicy{.group_words = 4}>, Of<12, FilterPolicy{.spill = false}>,
                             Of<12, FilterPolicy{.primacy = false}>>;

template <class Kind>
class KickSearches : public testing::Test {
 protected:
  static constexpr unsigned kBits = Kind::kFingerprintBits;
  using Random = RandomTable<kBits, Kind::policy>;
  using Search = KickSearch<kBits, DramMedia, Kind::policy>;
  using L = Layout<kBits>;

  /// Calls check(table, search, place, other group) for many tables and keys.
  template <class Check>
  void for_many(std::uint64_t number, double empty_share, const Check& check) {
    std::mt19937_64 random = test::generator(number);
    for (int n = 0; n < 300; ++n) {
      const Random table(random, 1 + random() % 12, empty_share);
      const Search search(table.table(), media_);
      const Place place = table.random_place(random);
      check(table, search, place, table.table().other_group_of(place));
      if (testing::Test::HasFailure()) return;
    }
  }

  DramMedia media_;
};
TYPED_TEST_SUITE(KickSearches, Kinds);

TYPED_TEST(KickSearches, find_a_shortest_path_if_there_is_one) {
  std::size_t longest = 0, none = 0;
  for (const double empty_share : {0.0, 0.003, 0.02}) {
    this->for_many(1, empty_share, [&](const auto& table, const auto& search, const Place& place, std::uint64_t other) {
      std::vector<KickMove> path;
      std::uint64_t groups_read = 0;
      const bool found = search.find_path(place, other, path, groups_read);
      const auto least = table.least_steps(place, other);
      if (!found) {
        ++none;
        // There is no path, or one that is longer than the search looks.
        const std::uint64_t groups_max = std::min<std::uint64_t>(2048, table.table().slots());
        EXPECT_TRUE(!least || (*least > 1 && groups_read >= groups_max)) << groups_read;
        return;
      }
      ASSERT_TRUE(least);
      EXPECT_EQ(path.size(), *least);
      EXPECT_GE(groups_read, path.size());
      table.expect_path(path, place, other);
      longest = std::max(longest, path.size());
    });
  }
  EXPECT_GE(longest, 2U);
  EXPECT_GT(none, 0U);
}

TYPED_TEST(KickSearches, prefer_the_bucket_of_the_key) {
  using Words = typename TestFixture::L;
  this->for_many(2, 0.3, [&](const auto& table, const auto& search, const Place& place, std::uint64_t other) {
    std::vector<KickMove> path;
    std::uint64_t groups_read = 0;
    if (!search.find_path(place, other, path, groups_read)) return;
    const auto own = table.moves_of_word(place.bucket);
    const auto makes_room = [&](const KickMove& move) { return table.has_room(move.target_group); };
    if (std::ranges::none_of(own, makes_room)) return;
    EXPECT_EQ(path.size(), 1U);
    EXPECT_EQ(path.front().source, place.bucket);
    // Of its moves, one that raises the level least.
    const std::uint64_t value = table.value(place.bucket);
    const auto raises = [&](const KickMove& move) {
      const bool admitted = !TypeParam::policy.primacy || Words::is_far(value, move.fingerprint);
      return admitted ? 0U : Words::far_level(move.fingerprint);
    };
    for (const KickMove& move : own) {
      if (makes_room(move)) {
        EXPECT_LE(raises(path.front()), raises(move));
      }
    }
  });
}

TYPED_TEST(KickSearches, at_random_find_only_paths) {
  std::size_t found = 0;
  this->for_many(3, 0.02, [&](const auto& table, const auto& search, const Place& place, std::uint64_t other) {
    std::vector<KickMove> path;
    if (!search.find_path_randomly(place, other, path)) return;
    ++found;
    ASSERT_FALSE(path.empty());
    EXPECT_TRUE(table.has_room(path.front().target_group));
    for (std::size_t i = 0; i + 1 < path.size(); ++i)
      EXPECT_EQ(path[i].source / table.kWords, path[i + 1].target_group);
    const std::uint64_t start = path.back().source / table.kWords;
    EXPECT_TRUE(start == place.bucket / table.kWords || start == other);
  });
  EXPECT_GT(found, 0U);
}

TYPED_TEST(KickSearches, name_moves_that_mark_no_other_bucket) {
  using Words = typename TestFixture::L;
  std::size_t named = 0;
  this->for_many(4, 0.1, [&](const auto& table, const auto& search, const Place& place, std::uint64_t) {
    const std::uint64_t group = place.bucket / table.kWords;
    std::vector<KickMove> all;
    for (std::uint64_t word = group * table.kWords; word < (group + 1) * table.kWords; ++word) {
      const bool takes_foreign =
          TypeParam::policy.spill && Words::foreign_count(table.value(word)) < Words::kForeignMax;
      if (word != place.bucket && !takes_foreign) continue;
      for (const KickMove& move : table.moves_of_word(word)) {
        const bool is_even = move.fingerprint % 2 == 0;
        const unsigned level = Words::level(table.value(word));
        // An odd key in a bucket that has not overflowed would raise it to 3; an even one moves at 2.
        const bool instead = place.fingerprint % 2 == 1 && Words::level(table.value(place.bucket)) < 2 && is_even;
        if (level == 3 || (level == 2 && is_even) || (level < 2 && instead)) all.push_back(move);
      }
    }
    const UnmarkedMoves moves = search.unmarked_moves(place);
    EXPECT_EQ(moves.count, std::min(all.size(), moves.list.size()));
    for (unsigned i = 0; i < moves.count; ++i) EXPECT_TRUE(table.is_among(moves.list[i], all));
    named += moves.count;
  });
  EXPECT_GT(named, 0U);
}

}  // namespace
}  // namespace dunnock
