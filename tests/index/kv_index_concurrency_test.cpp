// KvIndex under many threads: what was acknowledged is there at every moment, values never go back, nothing is counted
// twice, and all answers of a history are those that some order of its calls gives, while segments split under way. Run
// under TSan too.
#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <set>
#include <thread>
#include <vector>

#include "dunnock/crash/sequential_objects.hpp"
#include "dunnock/index/kv_index.hpp"
#include "support/histories.hpp"
#include "support/seed.hpp"

namespace dunnock {
namespace {

#if defined(__SANITIZE_THREAD__)
constexpr std::uint64_t kSteps = 8000;
#else
constexpr std::uint64_t kSteps = 80000;
#endif

template <class M>
KvIndex<M> make() {
  auto index = KvIndex<M>::create_volatile(
      {.bytes_max = 2048 * KvIndex<M>::segment_bytes(4), .segment_groups = 4, .seed = HashSeed::from(test::seed())});
  EXPECT_TRUE(index);
  return std::move(*index);
}
IndexKey key_of(std::uint64_t n) { return {n, n * 0x9e3779b97f4a7c15ULL}; }

template <class M>
class KvIndexOn : public testing::Test {};
using Medias = testing::Types<DramMedia, DirectMedia>;
TYPED_TEST_SUITE(KvIndexOn, Medias);

/// Each key has one writer, which counts it up; readers remember what they saw.
TYPED_TEST(KvIndexOn, readers_never_see_a_value_go_back_while_segments_split) {
  auto index = make<TypeParam>();
  constexpr std::uint64_t kWriters = 3;
  std::atomic<std::uint64_t> acknowledged[kWriters] = {};  // keys below this are in
  std::atomic<bool> done{false};
  std::atomic<unsigned> wrong{0};
  std::vector<std::thread> threads;
  for (std::uint64_t w = 0; w < kWriters; ++w) {
    threads.emplace_back([&, w] {
      auto random = test::generator(w);
      std::map<std::uint64_t, std::uint64_t> mine;
      std::uint64_t next = 0;
      for (std::uint64_t step = 0; step < kSteps; ++step) {
        if (random() % 2 == 0 || next == 0) {
          if (index.put(key_of(next * kWriters + w), IndexValue::of(1)) != PutResult::kInserted) ++wrong;
          mine[next++] = 1;
          acknowledged[w].store(next, std::memory_order_release);
        } else {
          const std::uint64_t n = random() % next;
          if (index.put(key_of(n * kWriters + w), IndexValue::of(++mine[n])) != PutResult::kReplaced) ++wrong;
        }
      }
      for (const auto& [n, value] : mine) {
        const GetResult found = index.get(key_of(n * kWriters + w));
        if (!found || found.value.number() != value) ++wrong;
      }
    });
  }
  for (unsigned r = 0; r < 2; ++r) {
    threads.emplace_back([&, r] {
      auto random = test::generator(100 + r);
      std::map<std::uint64_t, std::uint64_t> seen;
      while (!done.load()) {
        const std::uint64_t w = random() % kWriters;
        const std::uint64_t there = acknowledged[w].load(std::memory_order_acquire);
        if (there == 0) continue;
        const std::uint64_t n = random() % there * kWriters + w;
        const GetResult found = index.get(key_of(n));
        if (!found || found.value.number() < seen[n]) ++wrong;
        if (found) seen[n] = found.value.number();
        if (!index.may_contain(key_of(n))) ++wrong;
        if (index.get(key_of(n + (1ULL << 40)))) ++wrong;
      }
    });
  }
  threads.emplace_back([&] {
    while (!done.load()) {  // What is there all the while is visited, once.
      std::uint64_t least[kWriters];
      for (std::uint64_t w = 0; w < kWriters; ++w) least[w] = acknowledged[w].load(std::memory_order_acquire);
      std::set<std::uint64_t> visited;
      wrong += index.for_each(
          [&](const IndexKey& key, const IndexValue&) { wrong += visited.insert(key.low).second ? 0 : 1; });
      for (std::uint64_t w = 0; w < kWriters; ++w) {
        for (std::uint64_t n = 0; n < least[w]; ++n) wrong += visited.contains(n * kWriters + w) ? 0 : 1;
      }
    }
  });
  for (std::uint64_t w = 0; w < kWriters; ++w) threads[w].join();
  done = true;
  for (std::size_t i = kWriters; i < threads.size(); ++i) threads[i].join();
  EXPECT_EQ(wrong.load(), 0u);
  const IndexCheck report = index.check();
  EXPECT_TRUE(report.ok()) << report.violations.front();
  EXPECT_GT(index.stats().splits, 20u);
}

/// Counters that all threads count up with replace_if: none is lost, none counted twice.
TYPED_TEST(KvIndexOn, replace_if_is_one_step) {
  auto index = make<TypeParam>();
  constexpr std::uint64_t kKeys = 8;
  for (std::uint64_t n = 0; n < kKeys; ++n) index.put(key_of(n), IndexValue::of(0));
  std::atomic<std::uint64_t> successes{0};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      auto random = test::generator(t);
      for (std::uint64_t step = 0; step < kSteps / 4; ++step) {
        const IndexKey key = key_of(random() % kKeys);
        const std::uint64_t now = index.get(key).value.number();
        if (index.replace_if(key, IndexValue::of(now), IndexValue::of(now + 1))) successes.fetch_add(1);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::uint64_t sum = 0;
  for (std::uint64_t n = 0; n < kKeys; ++n) sum += index.get(key_of(n)).value.number();
  EXPECT_EQ(sum, successes.load());
}

/// Threads put and erase keys that they share, one by one and in bulk; each put that inserts and each erase that
/// finds is counted, and in the end the balance is what is there.
TYPED_TEST(KvIndexOn, puts_and_erases_balance) {
  auto index = make<TypeParam>();
  std::atomic<std::int64_t> balance{0};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      auto random = test::generator(t);
      std::int64_t mine = 0;
      for (std::uint64_t step = 0; step < kSteps / 16; ++step) {
        std::vector<typename KvIndex<TypeParam>::Entry> entries;
        std::vector<IndexKey> keys;
        for (unsigned i = 0; i < 40; ++i) {
          entries.push_back({key_of(random() % 3000), IndexValue::of(random())});
          keys.push_back(key_of(random() % 3000));
        }
        switch (random() % 4) {
          case 0: mine += static_cast<std::int64_t>(index.put_bulk(entries)); break;
          case 1: mine -= static_cast<std::int64_t>(index.erase_bulk(keys)); break;
          case 2: mine += index.put(entries[0].key, entries[0].value) == PutResult::kInserted ? 1 : 0; break;
          default: mine -= index.erase(keys[0]) ? 1 : 0; break;
        }
      }
      balance.fetch_add(mine);
    });
  }
  for (std::thread& thread : threads) thread.join();
  const IndexCheck report = index.check();
  EXPECT_TRUE(report.ok()) << report.violations.front();
  EXPECT_EQ(static_cast<std::int64_t>(report.entries), balance.load());
}

/// All threads do everything to a few keys that they share, and put others that make segments split. Then an order of
/// the calls on each key is searched that a map of one thread could have run.
TYPED_TEST(KvIndexOn, histories_of_shared_keys_are_linearizable) {
  using Index = KvIndex<TypeParam>;
  using crash::MapKey;
  using What = MapKey::What;
  using Answer = MapKey::Answer;
  constexpr unsigned kThreads = 4;
  constexpr std::uint64_t kShared = 12;
  auto index = make<TypeParam>();
  test::Histories<MapKey> histories(kThreads);
  std::atomic<unsigned> wrong{0};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      auto random = test::generator(t);
      std::uint64_t next_value = t + 1, next_key = (t + 1ULL) << 32;
      const auto value = [&] { return next_value += kThreads; };
      const auto told = [](PutResult result) {
        return result == PutResult::kInserted ? Answer::kDone
               : result == PutResult::kFull   ? Answer::kRefused
                                              : Answer::kReplaced;
      };
      const auto yes = [](bool done) { return done ? Answer::kDone : Answer::kRefused; };
      const auto number = [](bool there, const IndexValue& found) {
        return there ? MapKey::Value(found.number()) : MapKey::Value();
      };
      const auto note_get = [&](std::uint64_t n, const GetResult& found) {
        if (found.state == GetState::kDamaged) ++wrong;
        histories.note(t, n, {What::kGet, Answer::kDone, 0, 0, number(static_cast<bool>(found), found.value)});
      };
      for (std::uint64_t step = 0; step < kSteps / 4; ++step) {
        const std::uint64_t n = random() % kShared;
        const IndexKey key = key_of(n);
        switch (random() % 12) {
          case 0:
          case 1: {
            IndexValue previous;
            const std::uint64_t now = value();
            const PutResult result = histories.timed(t, [&] { return index.put(key, IndexValue::of(now), &previous); });
            histories.note(t, n, {What::kPut, told(result), now, 0, number(result == PutResult::kReplaced, previous)});
            break;
          }
          case 2: {
            IndexValue previous;
            const bool erased = histories.timed(t, [&] { return index.erase(key, &previous); });
            histories.note(t, n, {What::kErase, yes(erased), 0, 0, number(erased, previous)});
            break;
          }
          case 3: {
            const GetResult found = histories.timed(t, [&] { return index.get(key); });
            note_get(n, found);
            if (!found) break;
            const std::uint64_t then = found.value.number(), now = value();
            const bool replaced =
                histories.timed(t, [&] { return index.replace_if(key, IndexValue::of(then), IndexValue::of(now)); });
            histories.note(t, n, {What::kReplaceIf, yes(replaced), now, then, {}});
            break;
          }
          case 4: {
            const GetResult found = histories.timed(t, [&] { return index.get(key); });
            note_get(n, found);
            if (!found) break;
            const std::uint64_t then = found.value.number();
            const bool erased = histories.timed(t, [&] { return index.erase_if(key, IndexValue::of(then)); });
            histories.note(t, n, {What::kEraseIf, yes(erased), 0, then, {}});
            break;
          }
          case 5: {
            const bool maybe = histories.timed(t, [&] { return index.may_contain(key); });
            histories.note(t, n, {What::kMayContain, yes(maybe), 0, 0, {}});
            break;
          }
          case 6: {  // Two keys of all, and some of its own.
            std::vector<typename Index::Entry> entries;
            for (const std::uint64_t m : {n, (n + 5) % kShared})
              entries.push_back({key_of(m), IndexValue::of(value())});
            for (unsigned i = 0; i < 12; ++i) entries.push_back({key_of(next_key++), IndexValue::of(1)});
            std::vector<PutResult> results(entries.size());
            std::vector<IndexValue> previous(entries.size());
            (void)histories.timed(t, [&] { return index.put_bulk(entries, results.data(), previous.data()); });
            for (std::size_t i = 0; i < entries.size(); ++i) {
              const bool replaced = results[i] == PutResult::kReplaced;
              histories.note(
                  t, entries[i].key.low,
                  {What::kPut, told(results[i]), entries[i].value.number(), 0, number(replaced, previous[i])});
            }
            break;
          }
          case 7: {
            const std::vector<IndexKey> keys{key, key_of((n + 7) % kShared)};
            std::vector<std::uint8_t> erased(keys.size());
            std::vector<IndexValue> previous(keys.size());
            (void)histories.timed(t, [&] { return index.erase_bulk(keys, erased.data(), previous.data()); });
            for (std::size_t i = 0; i < keys.size(); ++i) {
              histories.note(t, keys[i].low,
                             {What::kErase, yes(erased[i] != 0), 0, 0, number(erased[i] != 0, previous[i])});
            }
            break;
          }
          case 8: {
            const std::vector<IndexKey> keys{key, key_of((n + 3) % kShared), key_of((n + 8) % kShared)};
            std::vector<GetResult> found(keys.size());
            (void)histories.timed(t, [&] { return index.get_bulk(keys, found.data()); });
            for (std::size_t i = 0; i < keys.size(); ++i) note_get(keys[i].low, found[i]);
            break;
          }
          default: note_get(n, histories.timed(t, [&] { return index.get(key); }));
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong.load(), 0u);
  EXPECT_EQ(histories.unexplained(), "");
  EXPECT_GT(index.stats().splits, 20u);
  const IndexCheck report = index.check();
  EXPECT_TRUE(report.ok()) << report.violations.front();
}

}  // namespace
}  // namespace dunnock
