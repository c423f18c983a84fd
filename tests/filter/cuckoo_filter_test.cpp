// CuckooFilter, one thread: against a multiset as its obvious slow twin, at its limits, and through its errors.
#include "dunnock/filter/cuckoo_filter.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "dunnock/pmem/file_media.hpp"
#include "support/seed.hpp"

namespace dunnock {
namespace {

constexpr FilterPolicy kSingle{.multi_writer = false};
constexpr FilterPolicy kNoSpill{.spill = false};
constexpr FilterPolicy kNoLookahead{.lookahead = false};
constexpr FilterPolicy kNoPrimacy{.primacy = false};
constexpr FilterPolicy kSmallGroups{.group_words = 4};
constexpr FilterPolicy kTextbookLike{.spill = false, .lookahead = false, .primacy = false};

/// Media that watch loads, so that the scalar paths are tested in every build.
struct WatchedMedia : DramMedia {
  static constexpr bool kScalarLoads = true;
};
static_assert(!detail::VectorLoadable<WatchedMedia>);

/// All media of mapped memory scan groups by vectors: a lookup takes up to twice as long without.
template <class... M>
constexpr bool kAllScanByVectors = (detail::VectorLoadable<M> && ...);
static_assert(kAllScanByVectors<DramMedia, ProcessMedia, DirectMedia, EadrMedia, FileMedia, ReadOnlyMedia> ==
              (DUNNOCK_VECTOR_SCAN != 0));

template <class F>
class FilterOf : public testing::Test {};
using Filters =
    testing::Types<CuckooFilter<12, DramMedia>, CuckooFilter<8, DramMedia>, CuckooFilter<16, DramMedia>,
                   CuckooFilter<12, DramMedia, kSingle>, CuckooFilter<12, DramMedia, kNoSpill>,
                   CuckooFilter<12, DramMedia, kNoLookahead>, CuckooFilter<12, DramMedia, kNoPrimacy>,
                   CuckooFilter<12, DramMedia, kSmallGroups>, CuckooFilter<12, DramMedia, kTextbookLike>,
                   CuckooFilter<12, ProcessMedia>, CuckooFilter<12, DirectMedia>, CuckooFilter<12, WatchedMedia>,
                   CuckooFilter<8, DirectMedia, FilterPolicy{.multi_writer = false, .group_words = 4}>,
                   CuckooFilter<16, EadrMedia>>;
TYPED_TEST_SUITE(FilterOf, Filters);

/// A filter that is checked against a multiset of keys after every step.
template <class F>
class Pair {
 public:
  explicit Pair(std::uint64_t slots) : filter_(std::move(*F::create_volatile({slots, HashSeed::from(test::seed())}))) {}

  F& filter() { return filter_; }
  std::multiset<std::uint64_t>& keys() { return keys_; }

  bool insert(std::uint64_t key) {
    if (!filter_.insert(key)) return false;
    keys_.insert(key);
    return true;
  }
  void erase(std::uint64_t key) {
    ASSERT_TRUE(filter_.erase(key));
    keys_.erase(keys_.find(key));
  }
  void verify() {
    for (const std::uint64_t key : keys_) ASSERT_TRUE(filter_.contains(key)) << "lost " << key;
    ASSERT_EQ(filter_.size(), keys_.size());
    const CheckReport report = filter_.check();
    ASSERT_TRUE(report.ok()) << report.violations.front();
    ASSERT_EQ(report.items, keys_.size());
  }

 private:
  F filter_;
  std::multiset<std::uint64_t> keys_;
};

TYPED_TEST(FilterOf, agrees_with_a_multiset_on_random_operations) {
  std::mt19937_64 random = test::generator(1);
  for (const std::uint64_t slots : {1ULL, 60ULL, 300ULL, 3000ULL}) {
    Pair<TypeParam> pair(slots);
    const std::uint64_t universe = slots * 2 + 8;
    for (int step = 0; step < 4000; ++step) {
      const std::uint64_t key = random() % universe;
      const bool grow = pair.keys().size() < pair.filter().slots() * (step / 1000 % 2 == 0 ? 98 : 50) / 100;
      if (grow ? random() % 4 != 0 : random() % 4 == 0) {
        const std::uint64_t before = pair.filter().size();
        if (!pair.insert(key)) {
          ASSERT_EQ(pair.filter().size(), before);
        }
      } else if (!pair.keys().empty()) {
        auto victim = pair.keys().lower_bound(key);
        if (victim == pair.keys().end()) victim = pair.keys().begin();
        ASSERT_NO_FATAL_FAILURE(pair.erase(*victim));
      }
      if (step % 100 == 0) {
        ASSERT_NO_FATAL_FAILURE(pair.verify());
      }
    }
    ASSERT_NO_FATAL_FAILURE(pair.verify());
    while (!pair.keys().empty()) ASSERT_NO_FATAL_FAILURE(pair.erase(*pair.keys().begin()));
    ASSERT_NO_FATAL_FAILURE(pair.verify());
    ASSERT_EQ(pair.filter().stats().items, 0U);
  }
}

TYPED_TEST(FilterOf, does_in_bulk_what_it_does_one_by_one) {
  std::mt19937_64 random = test::generator(2);
  Pair<TypeParam> pair(20000);
  TypeParam& filter = pair.filter();
  for (int round = 0; round < 30; ++round) {
    std::vector<std::uint64_t> keys(random() % 2000);
    for (std::uint64_t& key : keys) key = random() % 40000;
    std::vector<std::uint8_t> verdicts(keys.size(), 7);
    const std::size_t inserted = filter.insert_bulk(keys, verdicts.data());
    std::size_t ones = 0;
    for (std::size_t i = 0; i < keys.size(); ++i) {
      ASSERT_LE(verdicts[i], 1);
      ones += verdicts[i];
      if (verdicts[i] == 1) pair.keys().insert(keys[i]);
    }
    ASSERT_EQ(ones, inserted);
    ASSERT_NO_FATAL_FAILURE(pair.verify());

    std::vector<std::uint8_t> found(keys.size(), 7);
    const std::size_t hits = filter.contains_bulk(keys, found.data());
    std::size_t singles = 0;
    for (std::size_t i = 0; i < keys.size(); ++i) {
      ASSERT_EQ(found[i] == 1, filter.contains(keys[i]));
      singles += found[i];
    }
    ASSERT_EQ(hits, singles);

    std::vector<std::uint64_t> some;
    for (const std::uint64_t key : pair.keys()) {
      if (random() % 3 == 0) some.push_back(key);
    }
    std::vector<std::uint8_t> erased(some.size(), 7);
    ASSERT_EQ(filter.erase_bulk(some, erased.data()), some.size());
    for (std::size_t i = 0; i < some.size(); ++i) {
      ASSERT_EQ(erased[i], 1);
      pair.keys().erase(pair.keys().find(some[i]));
    }
    ASSERT_NO_FATAL_FAILURE(pair.verify());
  }
}

TYPED_TEST(FilterOf, refuses_when_full_and_keeps_what_it_holds) {
  Pair<TypeParam> pair(5000);
  std::uint64_t key = 0;
  unsigned refused = 0;
  while (refused < 50) {
    const std::uint64_t before = pair.filter().size();
    if (!pair.insert(key++)) {
      ++refused;
      ASSERT_EQ(pair.filter().size(), before);
    }
  }
  EXPECT_GE(pair.filter().stats().refusals, 50U);
  ASSERT_NO_FATAL_FAILURE(pair.verify());
  // And takes keys again once there is room.
  for (std::uint64_t i = 0; i < 500; ++i) {
    if (pair.keys().count(i) != 0) {
      ASSERT_NO_FATAL_FAILURE(pair.erase(i));
    }
  }
  EXPECT_TRUE(pair.insert(1ULL << 40));
  ASSERT_NO_FATAL_FAILURE(pair.verify());
}

TYPED_TEST(FilterOf, holds_duplicates_up_to_its_bound) {
  constexpr std::uint64_t kBound = 2ULL * TypeParam::kLanes * TypeParam::kGroupWords;
  auto filter = std::move(*TypeParam::create_volatile({100000, HashSeed::from(test::seed())}));
  std::uint64_t copies = 0;
  while (copies <= kBound && filter.insert(42)) ++copies;
  EXPECT_LE(copies, kBound);
  EXPECT_GE(copies, TypeParam::kLanes);  // at the very least the home bucket
  EXPECT_EQ(filter.size(), copies);
  for (std::uint64_t i = 0; i < copies; ++i) {
    EXPECT_TRUE(filter.contains(42));
    EXPECT_TRUE(filter.erase(42));
  }
  EXPECT_FALSE(filter.contains(42));
  EXPECT_FALSE(filter.erase(42));
  EXPECT_TRUE(filter.check().ok());
}

TYPED_TEST(FilterOf, takes_byte_strings) {
  auto filter = std::move(*TypeParam::create_volatile({5000, HashSeed::from(test::seed())}));
  std::vector<std::string> texts;
  for (int i = 0; i < 1500; ++i)
    texts.push_back(std::string(static_cast<std::size_t>(i % 300), 'x') + std::to_string(i));
  for (const std::string& text : texts) ASSERT_TRUE(filter.insert(std::string_view(text)));
  const std::vector<std::string_view> views(texts.begin(), texts.end());
  std::vector<std::uint8_t> verdicts(views.size());
  EXPECT_EQ(filter.contains_bulk(views, verdicts.data()), views.size());
  EXPECT_EQ(filter.insert_bulk(views), views.size());
  EXPECT_EQ(filter.erase_bulk(views), views.size());
  for (const std::string& text : texts) ASSERT_TRUE(filter.contains(std::string_view(text)));
  for (const std::string& text : texts) ASSERT_TRUE(filter.erase(std::string_view(text)));
  EXPECT_EQ(filter.size(), 0U);
}

TYPED_TEST(FilterOf, clears) {
  Pair<TypeParam> pair(1000);
  for (std::uint64_t key = 0; key < 900; ++key) pair.insert(key);
  pair.filter().clear();
  pair.keys().clear();
  ASSERT_NO_FATAL_FAILURE(pair.verify());
  EXPECT_FALSE(pair.filter().contains(std::uint64_t{5}));
  EXPECT_TRUE(pair.insert(5));
  ASSERT_NO_FATAL_FAILURE(pair.verify());
}

TYPED_TEST(FilterOf, takes_the_words_of_another_when_it_is_empty) {
  Pair<TypeParam> pair(1000);
  for (std::uint64_t key = 0; key < 900; ++key) pair.insert(key);
  const auto words = pair.filter().words();
  ASSERT_EQ(words.size() * TypeParam::kLanes, pair.filter().slots());
  std::vector<std::uint64_t> copy(words.begin(), words.end());
  EXPECT_EQ(pair.filter().assign_words(copy).error().code, ErrorCode::kInvalidArgument) << "it is not empty";
  pair.filter().clear();
  EXPECT_EQ(pair.filter().assign_words(std::span(copy).first(copy.size() - 1)).error().code,
            ErrorCode::kInvalidArgument);
  // An empty foreign lane, in the last word.
  std::swap(copy.back(), copy.front());
  const std::uint64_t good = std::exchange(copy.back(), 1ULL << 60);
  EXPECT_EQ(pair.filter().assign_words(copy).error().code, ErrorCode::kCorrupt);
  EXPECT_TRUE(std::ranges::all_of(pair.filter().words(), [](std::uint64_t word) { return word == 0; }));
  copy.back() = good;
  std::swap(copy.back(), copy.front());
  ASSERT_TRUE(pair.filter().assign_words(copy));
  ASSERT_NO_FATAL_FAILURE(pair.verify());
  for (std::uint64_t key = 0; key < 300; ++key) pair.erase(key);
  ASSERT_NO_FATAL_FAILURE(pair.verify());
}

TEST(Filter, of_12_bits_reaches_97_percent_and_keeps_its_false_positive_rate) {
  auto filter = std::move(*CuckooFilter<12, DramMedia>::create_volatile({1 << 20, HashSeed::from(test::seed())}));
  const auto rate = [&filter] {
    constexpr int kKeys = 8000000;  // one standard deviation is 0.002 %
    int found = 0;
    for (std::uint64_t key = 0; key < kKeys; ++key) found += filter.contains((1ULL << 50) + key) ? 1 : 0;
    return 100.0 * found / kKeys;
  };
  std::uint64_t key = 0;
  for (; key < filter.slots() * 95 / 100; ++key) ASSERT_TRUE(filter.insert(key));
  EXPECT_LE(rate(), 0.25);
  const double bits =
      8.0 * static_cast<double>(filter.memory_bytes() - filter.meta_bytes()) / static_cast<double>(filter.size());
  EXPECT_LE(bits, 13.5);
  while (filter.insert(key)) ++key;
  EXPECT_GE(filter.load(), 0.97);
  EXPECT_TRUE(filter.check().ok());
}

TEST(Filter, has_the_levels_and_false_positives_that_its_header_derives) {
  auto filter = std::move(*CuckooFilter<12, DramMedia>::create_volatile({1 << 20, HashSeed::from(test::seed())}));
  std::uint64_t key = 0;
  for (; key < filter.slots() * 95 / 100; ++key) ASSERT_TRUE(filter.insert(key));
  const FilterStats stats = filter.stats();
  const auto words = static_cast<double>(stats.words);
  const double spilled = static_cast<double>(stats.words_spilled) / words;
  const double overflowed = static_cast<double>(stats.words_overflowed) / words;
  const double foreign = static_cast<double>(stats.foreign_items) / words * 8;
  EXPECT_NEAR(spilled, 0.46, 0.02);
  EXPECT_NEAR(overflowed, 0.15, 0.02);
  EXPECT_NEAR(foreign, 8.1, 0.3) << "per group";
  // A word of level 2 sends lookups of even fingerprints to the other group, one of level 3 all: between a half and 1.
  const double derived = (4.75 + spilled * foreign * 7 / 8 + overflowed * 0.75 * foreign) / 4095;
  constexpr int kKeys = 4000000;
  int found = 0;
  for (std::uint64_t absent = 0; absent < kKeys; ++absent) found += filter.contains((1ULL << 50) + absent) ? 1 : 0;
  EXPECT_NEAR(static_cast<double>(found) / kKeys, derived, 0.0004);
}

TEST(Filter, does_what_it_does_in_memory_of_many_extents) {
  using F = CuckooFilter<12, DirectMedia>;
  constexpr std::uint64_t kSlots = 50000;
  constexpr std::uint64_t kExtent = 4096;
  auto meta = VolatileRegion::create(F::meta_bytes());
  auto memory = VolatileRegion::create(2 * F::table_bytes(kSlots) + 2 * kExtent);
  std::vector<std::byte*> extents;
  const std::uint64_t count = (F::table_bytes(kSlots) + kExtent - 1) / kExtent;
  for (std::uint64_t i = 0; i < count; ++i) extents.push_back(memory->region().at((count - 1 - i) * 2 * kExtent));
  auto filter = std::move(*F::format(meta->region(), Region(extents, F::table_bytes(kSlots), kExtent),
                                     {kSlots, HashSeed::from(test::seed())}, {}));
  for (std::uint64_t key = 0; key < kSlots * 95 / 100; ++key) ASSERT_TRUE(filter.insert(key));
  for (std::uint64_t key = 0; key < kSlots * 95 / 100; ++key) ASSERT_TRUE(filter.contains(key));
  EXPECT_TRUE(filter.check().ok());
}

TEST(Filter, tells_what_is_wrong_with_its_options) {
  using F = CuckooFilter<12, DramMedia>;
  EXPECT_EQ(F::create_volatile({0}).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(F::create_volatile({(1ULL << 36) + 1}).error().code, ErrorCode::kInvalidArgument);
}

/// A formatted filter in memory, to be damaged.
struct Damaged : testing::Test {
  using F = CuckooFilter<12, DirectMedia>;
  static constexpr std::uint64_t kSlots = 1000;
  VolatileRegion meta = std::move(*VolatileRegion::create(F::meta_bytes()));
  VolatileRegion table = std::move(*VolatileRegion::create(F::table_bytes(kSlots)));
  void SetUp() override {
    auto filter = std::move(*F::format(meta.region(), table.region(), {kSlots, HashSeed::from(1)}, {}));
    for (std::uint64_t key = 0; key < 900; ++key) ASSERT_TRUE(filter.insert(key));
  }
  FilterHeader& header() { return *reinterpret_cast<FilterHeader*>(meta.region().at(0)); }
  LogLine& log() { return *reinterpret_cast<LogLine*>(meta.region().at(kFilterLogOffset + 5 * kLineBytes)); }
  template <class Filter = F>
  ErrorCode refusal() {
    auto opened = Filter::attach(meta.region(), table.region(), {});
    EXPECT_FALSE(opened.has_value());
    if (opened.has_value()) return ErrorCode::kIo;
    EXPECT_FALSE(opened.error().message.empty());
    return opened.error().code;
  }
};

TEST_F(Damaged, opens_while_nothing_is_damaged) {
  auto opened = F::attach(meta.region(), table.region(), {});
  ASSERT_TRUE(opened.has_value());
  EXPECT_FALSE(opened->report.clean_shutdown);
  EXPECT_EQ(opened->filter.size(), 900U);
  opened->filter.close();
  auto again = F::attach(meta.region(), table.region(), {});
  ASSERT_TRUE(again.has_value());
  EXPECT_TRUE(again->report.clean_shutdown);
  EXPECT_EQ(again->filter.size(), 900U);
  EXPECT_FALSE(F::attach(meta.region(), table.region(), {})->report.clean_shutdown) << "the mark is for one opening";
}
TEST_F(Damaged, refuses_another_fingerprint_width) {
  EXPECT_EQ((refusal<CuckooFilter<8, DirectMedia>>()), ErrorCode::kWrongLayout);
  EXPECT_EQ((refusal<CuckooFilter<16, DirectMedia>>()), ErrorCode::kWrongLayout);
}
TEST_F(Damaged, refuses_another_group_size) {
  EXPECT_EQ((refusal<CuckooFilter<12, DirectMedia, kSmallGroups>>()), ErrorCode::kWrongLayout);
}
TEST_F(Damaged, refuses_another_version) {
  header().format_version = kFilterFormatVersion + 1;
  EXPECT_EQ(refusal(), ErrorCode::kWrongVersion);
}
TEST_F(Damaged, refuses_zeros) {
  std::memset(meta.region().at(0), 0, F::meta_bytes());
  EXPECT_EQ(refusal(), ErrorCode::kWrongLayout);
}
TEST_F(Damaged, refuses_any_flipped_bit_of_its_header) {
  for (std::size_t bit = 0; bit < sizeof(FilterHeader) * 8; ++bit) {
    auto& byte = reinterpret_cast<unsigned char*>(meta.region().at(0))[bit / 8];
    byte = static_cast<unsigned char>(byte ^ 1U << bit % 8);
    (void)refusal();
    byte = static_cast<unsigned char>(byte ^ 1U << bit % 8);
  }
  EXPECT_TRUE(F::attach(meta.region(), table.region(), {}).has_value());
}
TEST_F(Damaged, refuses_a_damaged_kick_record_and_touches_nothing) {
  log().target.store(3);
  log().target_after.store(0);
  log().source.store(4);
  log().source_after.store(0);
  log().armed.store(log_mark(3, 0, 4, 0) ^ 2);
  EXPECT_EQ(refusal(), ErrorCode::kCorrupt);
  const std::uint64_t outside = kSlots;  // words are fewer than slots
  log().target.store(outside);
  log().armed.store(log_mark(outside, 0, 4, 0));
  EXPECT_EQ(refusal(), ErrorCode::kCorrupt);
  log().armed.store(0);
  auto opened = F::attach(meta.region(), table.region(), {});
  ASSERT_TRUE(opened.has_value());
  for (std::uint64_t key = 0; key < 900; ++key) EXPECT_TRUE(opened->filter.contains(key));
}
TEST_F(Damaged, finds_broken_invariants_when_it_checks) {
  auto opened = F::attach(meta.region(), table.region(), {});
  EXPECT_TRUE(opened->filter.check().ok());
  auto* words = reinterpret_cast<Word*>(table.region().at(0));
  const std::uint64_t before = words[7].load();
  // Foreign fingerprints that no bucket admits to.
  std::vector<std::uint64_t> saved;
  for (std::uint64_t i = 0; i < table.region().bytes() / sizeof(Word); ++i) {
    saved.push_back(words[i].load());
    words[i].store(saved.back() & ~(3ULL << 62));
  }
  EXPECT_FALSE(opened->filter.check().ok());
  for (std::uint64_t i = 0; i < saved.size(); ++i) words[i].store(saved[i]);
  EXPECT_TRUE(opened->filter.check().ok());
  words[7].store(1ULL << 60);  // a foreign lane that is empty
  EXPECT_FALSE(opened->filter.check().ok());
  words[7].store(before);
  EXPECT_TRUE(opened->filter.check().ok());
}

/// A pool file that goes away with the test.
class InPool : public testing::Test {
 protected:
  std::string path_ = std::filesystem::temp_directory_path() / ("dunnock_filter_" + std::to_string(getpid()) + ".pool");
  void SetUp() override { std::filesystem::remove(path_); }
  void TearDown() override { std::filesystem::remove(path_); }
};

TEST_F(InPool, is_there_again_after_reopening) {
  using F = CuckooFilter<12, FileMedia>;
  std::vector<std::uint64_t> keys(20000);
  for (std::size_t i = 0; i < keys.size(); ++i) keys[i] = i * 3;
  {
    auto pool = Pool::create(path_, {32 << 20});
    ASSERT_TRUE(pool.has_value()) << pool.error().message;
    auto filter = F::create(*pool, "words", {30000}, pool->file_media());
    ASSERT_TRUE(filter.has_value()) << filter.error().message;
    EXPECT_EQ(filter->insert_bulk(keys), keys.size());
    EXPECT_EQ(F::create(*pool, "words", {30000}, pool->file_media()).error().code, ErrorCode::kAlreadyExists);
    EXPECT_EQ(F::create(*pool, "huge", {1ULL << 33}, pool->file_media()).error().code, ErrorCode::kNoSpace);
    EXPECT_EQ(F::create(*pool, std::string(50, 'x'), {30}, pool->file_media()).error().code,
              ErrorCode::kInvalidArgument);
  }
  auto pool = Pool::open(path_);
  ASSERT_TRUE(pool.has_value()) << pool.error().message;
  EXPECT_EQ(F::open(*pool, "other", pool->file_media()).error().code, ErrorCode::kNotFound);
  EXPECT_EQ((CuckooFilter<8, FileMedia>::open(*pool, "words", pool->file_media()).error().code),
            ErrorCode::kWrongLayout);
  auto opened = F::open(*pool, "words", pool->file_media());
  ASSERT_TRUE(opened.has_value()) << opened.error().message;
  std::vector<std::uint8_t> found(keys.size());
  EXPECT_EQ(opened->filter.contains_bulk(keys, found.data()), keys.size());
  EXPECT_EQ(opened->filter.size(), keys.size());
  EXPECT_TRUE(opened->filter.check().ok());
}

TEST_F(InPool, has_the_words_that_it_was_given_after_reopening) {
  using F = CuckooFilter<16, FileMedia>;
  const FilterOptions options{5000, HashSeed::from(test::seed())};
  auto source = std::move(*CuckooFilter<16, DramMedia>::create_volatile(options));
  for (std::uint64_t key = 0; key < 4500; ++key) ASSERT_TRUE(source.insert(key));
  {
    auto pool = Pool::create(path_, {32 << 20});
    ASSERT_TRUE(pool.has_value()) << pool.error().message;
    auto filter = F::create(*pool, "words", options, pool->file_media());
    ASSERT_TRUE(filter.has_value()) << filter.error().message;
    ASSERT_TRUE(filter->assign_words(source.words()));
  }
  auto pool = Pool::open(path_);
  ASSERT_TRUE(pool.has_value()) << pool.error().message;
  auto opened = F::open(*pool, "words", pool->file_media());
  ASSERT_TRUE(opened.has_value()) << opened.error().message;
  EXPECT_FALSE(opened->report.clear_completed);
  EXPECT_TRUE(std::ranges::equal(opened->filter.words(), source.words()));
  EXPECT_EQ(opened->filter.size(), 4500U);
}

}  // namespace
}  // namespace dunnock
