// CuckooFilter under many threads: nothing acknowledged is ever absent, at any moment. Run under TSan too.
//
// Tables are tiny and fingerprints short, so that keys share lines, kicks are constant and equal fingerprints abound:
// the cases that the proofs in docs/concurrency.md are about.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <set>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "dunnock/crash/sequential_objects.hpp"
#include "dunnock/filter/cuckoo_filter.hpp"
#include "support/histories.hpp"
#include "support/seed.hpp"

namespace dunnock {
namespace {

#if defined(__SANITIZE_THREAD__)
constexpr int kSteps = 20000;
#else
constexpr int kSteps = 200000;
#endif

template <class F>
class FilterOf : public testing::Test {};
using Filters = testing::Types<CuckooFilter<8, DramMedia>, CuckooFilter<8, DirectMedia>, CuckooFilter<12, DirectMedia>,
                               CuckooFilter<8, DirectMedia, FilterPolicy{.group_words = 4}>,
                               CuckooFilter<8, DirectMedia, FilterPolicy{.spill = false}>,
                               CuckooFilter<8, DirectMedia, FilterPolicy{.lookahead = false}>,
                               CuckooFilter<8, DirectMedia, FilterPolicy{.primacy = false}>>;
TYPED_TEST_SUITE(FilterOf, Filters);

/// What a thread does with the keys that only it inserts and erases: a random walk, remembering what is in.
template <class F>
void churn(F& filter, std::uint64_t owner, std::uint64_t universe, std::size_t at_most, std::atomic<bool>& failed) {
  std::mt19937_64 random = test::generator(100 + owner);
  std::multiset<std::uint64_t> mine;
  for (int step = 0; step < kSteps && !failed.load(); ++step) {
    const std::uint64_t key = owner << 32 | random() % universe;
    if (mine.size() < at_most && (random() & 1) != 0) {
      if (filter.insert(key)) mine.insert(key);
    } else if (!mine.empty()) {
      auto victim = mine.lower_bound(key);
      if (victim == mine.end()) victim = mine.begin();
      if (!filter.contains(*victim) || !filter.erase(*victim)) failed.store(true);
      mine.erase(victim);
    }
  }
  std::vector<std::uint64_t> rest(mine.begin(), mine.end());
  if (filter.erase_bulk(rest) != rest.size()) failed.store(true);
}

TYPED_TEST(FilterOf, never_reports_a_resident_key_absent_while_others_come_and_go) {
  auto filter = std::move(*TypeParam::create_volatile({1500, HashSeed::from(test::seed())}));
  std::vector<std::uint64_t> residents;
  for (std::uint64_t key = 0; residents.size() < filter.slots() / 2; ++key) {
    ASSERT_TRUE(filter.insert(key));
    residents.push_back(key);
  }
  std::atomic<bool> failed{false};
  std::atomic<bool> done{false};
  std::atomic<std::uint64_t> lookups{0};
  const std::size_t room = filter.slots() * 46 / 100 / 2;
  std::vector<std::thread> threads;
  for (std::uint64_t owner = 1; owner <= 2; ++owner) {
    threads.emplace_back([&, owner] { churn(filter, owner, 400, room, failed); });
  }
  for (int reader = 0; reader < 2; ++reader) {
    threads.emplace_back([&, reader] {
      std::vector<std::uint8_t> found(residents.size());
      std::uint64_t count = 0;
      while (!done.load() && !failed.load()) {
        if (reader == 0) {
          for (const std::uint64_t key : residents) {
            if (!filter.contains(key)) failed.store(true);
          }
        } else if (filter.contains_bulk(residents, found.data()) != residents.size()) {
          failed.store(true);
        }
        count += residents.size();
      }
      lookups.fetch_add(count);
    });
  }
  threads[0].join();
  threads[1].join();
  done.store(true);
  threads[2].join();
  threads[3].join();
  EXPECT_FALSE(failed.load()) << "a key that was in the filter was reported absent";
  EXPECT_GT(lookups.load(), residents.size());
  EXPECT_EQ(filter.size(), residents.size());
  const CheckReport report = filter.check();
  EXPECT_TRUE(report.ok()) << report.violations.front();
  for (const std::uint64_t key : residents) ASSERT_TRUE(filter.erase(key));
  EXPECT_EQ(filter.check().items, 0U);
}

TYPED_TEST(FilterOf, makes_an_acknowledged_insert_visible_to_every_thread) {
  auto filter = std::move(*TypeParam::create_volatile({20000, HashSeed::from(test::seed())}));
  const std::uint64_t goal = filter.slots() * 93 / 100;
  std::atomic<std::uint64_t> acknowledged[2] = {0, 0};
  std::atomic<bool> failed{false};
  std::vector<std::thread> threads;
  for (std::uint64_t owner = 0; owner < 2; ++owner) {
    threads.emplace_back([&, owner] {
      for (std::uint64_t i = 0; i < goal / 2; ++i) {
        if (!filter.insert(owner << 32 | i)) failed.store(true);
        acknowledged[owner].store(i + 1, std::memory_order_release);
      }
    });
    threads.emplace_back([&, owner] {  // looks at the other's keys
      std::mt19937_64 random = test::generator(200 + owner);
      std::uint64_t seen = 0;
      while (seen < goal / 2 && !failed.load()) {
        seen = acknowledged[1 - owner].load(std::memory_order_acquire);
        if (seen == 0) continue;
        const std::uint64_t back = random() % std::min<std::uint64_t>(seen, random() % 2 == 0 ? 3 : seen);
        if (!filter.contains((1 - owner) << 32 | (seen - 1 - back))) failed.store(true);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_FALSE(failed.load());
  EXPECT_EQ(filter.size(), goal / 2 * 2);
  EXPECT_TRUE(filter.check().ok());
}

/// Batches of several plain threads on a table that is nearly full: marks and kicks of whole waves meet each other,
/// single operations and readers.
TYPED_TEST(FilterOf, loses_nothing_when_batches_of_several_threads_meet) {
  auto filter = std::move(*TypeParam::create_volatile({3000, HashSeed::from(test::seed())}));
  constexpr unsigned kThreads = 3;
  const std::size_t at_most = filter.slots() * 92 / 100 / kThreads;
  std::atomic<bool> failed{false};
  std::atomic<bool> done{false};
  std::vector<std::uint64_t> residents;
  for (std::uint64_t key = 0; key < 100; ++key) residents.push_back(~key);
  ASSERT_EQ(filter.insert_bulk(residents), residents.size());
  std::vector<std::thread> threads;
  for (unsigned owner = 0; owner < kThreads; ++owner) {
    threads.emplace_back([&filter, &failed, owner, at_most] {
      std::mt19937_64 random = test::generator(200 + owner);
      std::vector<std::uint64_t> mine;
      std::uint64_t next = std::uint64_t{owner} << 32;
      for (int round = 0; round < kSteps / 400 && !failed.load(); ++round) {
        std::vector<std::uint64_t> batch(1 + random() % 150);
        for (std::uint64_t& key : batch) key = next++;
        std::vector<std::uint8_t> verdicts(batch.size(), 2);
        const std::size_t placed = filter.insert_bulk(batch, verdicts.data());
        std::size_t counted = 0;
        for (std::size_t i = 0; i < batch.size(); ++i) {
          if (verdicts[i] > 1) failed.store(true);
          if (verdicts[i] != 1) continue;
          mine.push_back(batch[i]);
          ++counted;
        }
        verdicts.assign(mine.size(), 2);
        if (counted != placed || filter.contains_bulk(mine, verdicts.data()) != mine.size()) failed.store(true);
        std::shuffle(mine.begin(), mine.end(), random);
        const std::size_t some = random() % (mine.size() / 8 + 1);
        const std::size_t keep = mine.size() > at_most ? at_most * 3 / 4 : mine.size() - some;
        const std::vector<std::uint64_t> gone(mine.begin() + static_cast<std::ptrdiff_t>(keep), mine.end());
        mine.resize(keep);
        if (filter.erase_bulk(gone) != gone.size()) failed.store(true);
      }
      if (filter.erase_bulk(mine) != mine.size()) failed.store(true);
    });
  }
  std::thread reader([&] {
    std::vector<std::uint8_t> verdicts(residents.size());
    while (!done.load()) {
      for (const std::uint64_t key : residents) {
        if (!filter.contains(key)) failed.store(true);
      }
      if (filter.contains_bulk(residents, verdicts.data()) != residents.size()) failed.store(true);
    }
  });
  for (std::thread& thread : threads) thread.join();
  done.store(true);
  reader.join();
  EXPECT_FALSE(failed.load());
  EXPECT_EQ(filter.size(), residents.size());
  const CheckReport report = filter.check();
  EXPECT_TRUE(report.ok()) << report.violations.front();
}

/// All threads insert, erase and look up a few keys that they share, each up to two copies of its own, and push others
/// around. Then an order of the calls on each key is searched that a multiset could have run, one that may say yes too
/// often.
TYPED_TEST(FilterOf, histories_of_shared_keys_are_linearizable) {
  using crash::FilterKey;
  using What = FilterKey::What;
  constexpr unsigned kThreads = 4;
  constexpr std::uint64_t kShared = 10;
  auto filter = std::move(*TypeParam::create_volatile({700, HashSeed::from(test::seed())}));
  const std::size_t others = filter.slots() * 80 / 100 / kThreads;
  test::Histories<FilterKey> histories(kThreads);
  std::atomic<unsigned> wrong{0};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random = test::generator(300 + t);
      std::array<unsigned, kShared> copies{};
      std::vector<std::uint64_t> mine;  // keys that are shared with nobody
      std::uint64_t next = (t + 1ULL) << 32;
      for (int step = 0; step < kSteps / 20; ++step) {
        const std::uint64_t key = random() % kShared;
        const std::uint64_t another = (key + 1 + random() % (kShared - 1)) % kShared;
        switch (random() % 8) {
          case 0: {
            if (copies[key] == 2) break;
            const bool inserted = histories.timed(t, [&] { return filter.insert(key); });
            histories.note(t, key, {What::kInsert, true, inserted});
            copies[key] += inserted ? 1 : 0;
            break;
          }
          case 1: {
            if (copies[key] == 0) break;
            const bool erased = histories.timed(t, [&] { return filter.erase(key); });
            histories.note(t, key, {What::kErase, true, erased});
            --copies[key];
            break;
          }
          case 2: {
            if (copies[key] == 2 || copies[another] == 2) break;
            const std::uint64_t keys[] = {key, another};
            std::uint8_t inserted[2];
            (void)histories.timed(t, [&] { return filter.insert_bulk(keys, inserted); });
            for (unsigned i = 0; i < 2; ++i) {
              histories.note(t, keys[i], {What::kInsert, true, inserted[i] != 0});
              copies[keys[i]] += inserted[i];
            }
            break;
          }
          case 3: {
            if (copies[key] == 0 || copies[another] == 0) break;
            const std::uint64_t keys[] = {key, another};
            std::uint8_t erased[2];
            (void)histories.timed(t, [&] { return filter.erase_bulk(keys, erased); });
            for (unsigned i = 0; i < 2; ++i) {
              histories.note(t, keys[i], {What::kErase, true, erased[i] != 0});
              --copies[keys[i]];
            }
            break;
          }
          case 4: {
            const std::uint64_t keys[] = {key, another};
            std::uint8_t found[2];
            (void)histories.timed(t, [&] { return filter.contains_bulk(keys, found); });
            for (unsigned i = 0; i < 2; ++i) histories.note(t, keys[i], {What::kContains, true, found[i] != 0});
            break;
          }
          case 5: {  // What others have is moved by what comes and goes beside it.
            if (mine.size() < others) {
              if (filter.insert(next)) mine.push_back(next);
              ++next;
            } else {
              std::swap(mine[random() % mine.size()], mine.back());
              wrong += filter.erase(mine.back()) ? 0 : 1;
              mine.pop_back();
            }
            break;
          }
          default: {
            const bool found = histories.timed(t, [&] { return filter.contains(key); });
            histories.note(t, key, {What::kContains, true, found});
          }
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong.load(), 0U);
  EXPECT_EQ(histories.unexplained(), "");
  const CheckReport report = filter.check();
  EXPECT_TRUE(report.ok()) << report.violations.front();
}

TEST(Filter, has_parallel_bulk_operations_for_strings) {
  auto filter = std::move(*CuckooFilter<12, DramMedia>::create_volatile({20000, HashSeed::from(test::seed())}));
  std::vector<std::string> texts;
  for (int i = 0; i < 15000; ++i) texts.push_back("key " + std::to_string(i));
  const std::vector<std::string_view> keys(texts.begin(), texts.end());
  std::vector<std::uint8_t> verdicts(keys.size());
  EXPECT_EQ(filter.insert_parallel(keys, verdicts.data()), keys.size());
  EXPECT_EQ(filter.contains_parallel(keys, verdicts.data()), keys.size());
  EXPECT_EQ(filter.erase_parallel(keys, verdicts.data()), keys.size());
  EXPECT_EQ(filter.size(), 0U);
}

TYPED_TEST(FilterOf, fills_in_parallel_and_empties_in_parallel) {
  auto filter = std::move(*TypeParam::create_volatile({200000, HashSeed::from(test::seed())}));
  std::vector<std::uint64_t> keys(filter.slots() * 90 / 100);
  for (std::size_t i = 0; i < keys.size(); ++i) keys[i] = i;
  std::vector<std::uint8_t> verdicts(keys.size());
  EXPECT_EQ(filter.insert_parallel(keys, verdicts.data()), keys.size());
  EXPECT_EQ(filter.contains_parallel(keys, verdicts.data()), keys.size());
  EXPECT_TRUE(filter.check().ok());
  EXPECT_EQ(filter.erase_parallel(keys), keys.size());
  EXPECT_EQ(filter.check().items, 0U);
}

TEST(Filter, counts_itself_after_a_crash_while_readers_go_on) {
  using F = CuckooFilter<12, DirectMedia>;
  auto meta = VolatileRegion::create(F::meta_bytes());
  auto table = VolatileRegion::create(F::table_bytes(100000));
  {
    auto filter = std::move(*F::format(meta->region(), table->region(), {100000, HashSeed::from(test::seed())}, {}));
    for (std::uint64_t key = 0; key < 70000; ++key) ASSERT_TRUE(filter.insert(key));
  }  // gone without close()
  auto opened = F::attach(meta->region(), table->region(), {});
  ASSERT_TRUE(opened.has_value());
  std::atomic<bool> lost{false};
  std::thread reader([&] {
    for (std::uint64_t key = 0; key < 70000; ++key) {
      if (!opened->filter.contains(key)) lost.store(true);
    }
  });
  EXPECT_EQ(opened->filter.size(), 70000U);
  reader.join();
  EXPECT_FALSE(lost.load());
}

}  // namespace
}  // namespace dunnock
