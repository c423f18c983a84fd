// The bits of a bucket against an obvious model: arrays of lanes.
#include "dunnock/filter/layout.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "dunnock/filter/detail/group_scan.hpp"
#include "support/seed.hpp"

namespace dunnock {
namespace {

template <class T>
class LayoutOf : public testing::Test {};
using Layouts = testing::Types<Layout<8>, Layout<12>, Layout<16>>;
TYPED_TEST_SUITE(LayoutOf, Layouts);

template <class L>
constexpr unsigned bits_of() {
  return 60 / L::kLanes == 8 ? 8 : 60 / L::kLanes == 12 ? 12 : 16;
}

/// A bucket as people think of it.
struct Model {
  std::vector<std::uint32_t> home;  // any order
  std::vector<std::uint32_t> foreign;
  unsigned level = 0;
};

template <class L>
Model read(std::uint64_t word) {
  Model model;
  model.level = L::level(word);
  for (unsigned i = 0; i < L::kLanes; ++i) {
    const std::uint32_t lane = L::lane(word, i);
    if (i >= L::kLanes - L::foreign_count(word)) {
      model.foreign.push_back(lane);
    } else if (lane != 0) {
      model.home.push_back(lane);
    }
  }
  std::sort(model.home.begin(), model.home.end());
  std::sort(model.foreign.begin(), model.foreign.end());
  return model;
}

TYPED_TEST(LayoutOf, follows_a_model_through_random_operations) {
  using L = TypeParam;
  std::mt19937_64 random = test::generator(1);
  for (int run = 0; run < 300; ++run) {
    std::uint64_t word = 0;
    Model model;
    for (int step = 0; step < 60; ++step) {
      const auto fingerprint = static_cast<std::uint32_t>(1 + random() % std::min<std::uint64_t>(L::kLaneMask, 5));
      const bool room = model.home.size() + model.foreign.size() < L::kLanes;
      ASSERT_EQ(L::empty_lanes(word) != 0, room);
      ASSERT_EQ(L::has_foreign_room(word), room && model.foreign.size() < L::kForeignMax);
      ASSERT_EQ(L::occupied(word), model.home.size() + model.foreign.size());
      const std::uint64_t pattern = L::pattern(fingerprint);
      const auto in_home = std::find(model.home.begin(), model.home.end(), fingerprint);
      const auto in_foreign = std::find(model.foreign.begin(), model.foreign.end(), fingerprint);
      ASSERT_EQ(L::match_home(word, pattern) != 0, in_home != model.home.end());
      ASSERT_EQ(L::match_foreign(word, pattern) != 0, in_foreign != model.foreign.end());
      ASSERT_EQ(L::match_quickly(word, pattern) != 0, in_home != model.home.end() || in_foreign != model.foreign.end());
      // Level 1 keeps everything in the group, level 2 lets even fingerprints go to the other one, level 3 all.
      const Reach reach = model.level == 0                                                 ? Reach::kHome
                          : model.level == 3 || (model.level == 2 && fingerprint % 2 == 0) ? Reach::kOtherGroup
                                                                                           : Reach::kGroup;
      ASSERT_EQ(L::reach(word, fingerprint), reach);
      ASSERT_EQ(L::reach(L::with_level(word, L::far_level(fingerprint)), fingerprint), Reach::kOtherGroup);
      switch (random() % 5) {
        case 0:
          if (!room) break;
          word = L::add_home(word, fingerprint);
          model.home.push_back(fingerprint);
          break;
        case 1:
          if (!L::has_foreign_room(word)) break;
          word = L::add_foreign(word, fingerprint);
          model.foreign.push_back(fingerprint);
          break;
        case 2:
          if (in_home == model.home.end()) break;
          word = L::remove_home(word, L::lane_of(L::match_home(word, pattern)));
          model.home.erase(in_home);
          break;
        case 3:
          if (in_foreign == model.foreign.end()) break;
          word = L::remove_foreign(word, L::lane_of(L::match_foreign(word, pattern)));
          model.foreign.erase(in_foreign);
          break;
        default: model.level = static_cast<unsigned>(random() % 4); word = L::with_level(word, model.level);
      }
      std::sort(model.home.begin(), model.home.end());
      std::sort(model.foreign.begin(), model.foreign.end());
      const Model seen = read<L>(word);
      ASSERT_EQ(seen.home, model.home);
      ASSERT_EQ(seen.foreign, model.foreign);
      ASSERT_EQ(seen.level, model.level);
      ASSERT_EQ(word & ~L::kLanesMask & ~(0xfULL << L::kCountShift), 0U) << "a spare bit is set";
    }
  }
}

TYPED_TEST(LayoutOf, finds_zero_lanes_exactly) {
  using L = TypeParam;
  std::mt19937_64 random = test::generator(2);
  for (int run = 0; run < 100000; ++run) {
    std::uint64_t word = 0;
    std::uint64_t expected = 0;
    for (unsigned i = 0; i < L::kLanes; ++i) {
      // 0, 1 and the extremes are where borrowing tricks go wrong.
      const std::uint64_t choices[] = {
          0, 1, L::kLaneMask, L::kLaneMask >> 1, (L::kLaneMask >> 1) + 1, random() & L::kLaneMask};
      const std::uint64_t lane = choices[random() % 6];
      word = L::with_lane(word, i, lane);
      if (lane == 0) expected |= L::kHighBits & (L::kLaneMask << (bits_of<L>() * i));
    }
    ASSERT_EQ(L::zero_lanes(word), expected);
  }
}

TYPED_TEST(LayoutOf, other_group_is_an_involution_for_any_number_of_groups) {
  using L = TypeParam;
  std::mt19937_64 random = test::generator(3);
  for (int run = 0; run < 200000; ++run) {
    const std::uint64_t groups = 1 + random() % (run % 2 == 0 ? 9 : (1ULL << 33));
    const std::uint64_t group = random() % groups;
    const auto fingerprint = static_cast<std::uint32_t>(1 + random() % L::kLaneMask);
    const std::uint64_t other = L::other_group(group, fingerprint, groups);
    ASSERT_LT(other, groups);
    ASSERT_EQ(L::other_group(other, fingerprint, groups), group);
  }
}

TYPED_TEST(LayoutOf, places_stay_in_range_and_fingerprints_are_never_zero) {
  using L = TypeParam;
  std::mt19937_64 random = test::generator(4);
  for (int run = 0; run < 200000; ++run) {
    const std::uint64_t hash = run == 0 ? 0 : run == 1 ? ~0ULL : random();
    const std::uint64_t buckets = 1 + random() % (1ULL << 34);
    const Place place = L::place(hash, buckets);
    ASSERT_LT(place.bucket, buckets);
    ASSERT_GE(place.fingerprint, 1U);
    ASSERT_LE(place.fingerprint, L::kLaneMask);
  }
}

#if DUNNOCK_VECTOR_SCAN
template <class L, unsigned kGroupWords>
void compare_scans(std::uint64_t number) {
  constexpr unsigned kBits = bits_of<L>();
  std::mt19937_64 random = test::generator(number);
  alignas(kLineBytes) Word group[8];
  for (int run = 0; run < 100000; ++run) {
    for (Word& word : group) {
      std::uint64_t value = 0;
      for (unsigned lanes = static_cast<unsigned>(random() % (L::kLanes + 1)); lanes != 0; --lanes) {
        const auto fingerprint = static_cast<std::uint32_t>(1 + random() % 7);
        value = (random() & 1) != 0 && L::has_foreign_room(value) ? L::add_foreign(value, fingerprint)
                                                                  : L::add_home(value, fingerprint);
      }
      word.store(L::with_level(value, random() % 4));
    }
    const std::uint64_t pattern = L::pattern(static_cast<std::uint32_t>(1 + random() % 7));
    const auto start = static_cast<unsigned>(random() % kGroupWords);
    const DramMedia media;
    ASSERT_EQ((detail::any_foreign_vector<kBits, kGroupWords>(group, pattern)),
              (detail::any_foreign_scalar<kBits, kGroupWords>(media, group, pattern)));
    ASSERT_EQ((detail::roomiest_vector<kBits, kGroupWords>(group, start)),
              (detail::roomiest_scalar<kBits, kGroupWords>(media, group, start)));
  }
}

TYPED_TEST(LayoutOf, the_vector_scans_agree_with_their_slow_twins) {
  compare_scans<TypeParam, 8>(5);
  compare_scans<TypeParam, 4>(6);
}
#endif

TEST(Words, that_no_filter_leaves_are_known) {
  EXPECT_TRUE(Layout<12>::is_word(0));
  EXPECT_TRUE(Layout<12>::is_word(~0ULL)) << "three foreign lanes, all full, level 3";
  EXPECT_FALSE(Layout<12>::is_word(1ULL << 60)) << "an empty foreign lane";
  EXPECT_TRUE(Layout<12>::is_word(1ULL << 60 | 1ULL << 48));
  EXPECT_TRUE(Layout<8>::is_word(1ULL << 55));
  EXPECT_FALSE(Layout<8>::is_word(1ULL << 56)) << "between the lanes and the count";
  EXPECT_FALSE(Layout<16>::is_word(1ULL << 48));
}

}  // namespace
}  // namespace dunnock
