// KvStore and the ValueLog in it: values of all sizes, compaction, bounds, damage, many threads.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "dunnock/index/kv_store.hpp"
#include "support/seed.hpp"

namespace dunnock {
namespace {

IndexKey key_of(std::uint64_t n) { return {n * 0x9e3779b97f4a7c15ULL, n}; }
std::vector<std::byte> bytes_of(std::uint64_t number, std::size_t length) {
  std::mt19937_64 random(number);
  std::vector<std::byte> bytes(length);
  for (std::byte& one : bytes) one = static_cast<std::byte>(random());
  return bytes;
}

/// A store in plain memory.
template <class M>
struct Volatile {
  explicit Volatile(std::uint64_t capacity, std::uint64_t segment_bytes, std::uint64_t index_segments = 512) {
    const LogOptions log{.capacity_bytes = capacity, .segment_bytes = segment_bytes};
    meta.emplace(std::move(*VolatileRegion::create(ValueLog<M>::meta_bytes(log))));
    data.emplace(std::move(*VolatileRegion::create(std::bit_ceil(ValueLog<M>::data_bytes(log)))));
    auto made = ValueLog<M>::format(meta->region(), data->region(), log, {});
    EXPECT_TRUE(made) << made.error().message;
    auto index = KvIndex<M>::create_volatile({.bytes_max = index_segments * KvIndex<M>::segment_bytes(4),
                                              .segment_groups = 4,
                                              .seed = HashSeed::from(test::seed())});
    store.emplace(std::move(*index), std::move(*made));
  }
  std::optional<VolatileRegion> meta, data;
  std::optional<KvStore<M>> store;
};

TEST(KvStore, keeps_values_of_every_size_and_compacts_what_was_replaced) {
  auto random = test::generator(1);
  Volatile<DramMedia> holder(1 << 20, 1 << 14);
  KvStore<DramMedia>& store = *holder.store;
  std::map<std::uint64_t, std::vector<std::byte>> model;
  for (unsigned step = 0; step < 30000; ++step) {
    const std::uint64_t n = random() % 400;
    if (random() % 4 == 0) {
      ASSERT_EQ(store.erase(key_of(n)), model.erase(n) == 1);
    } else if (random() % 5 == 0) {
      std::vector<std::vector<std::byte>> values;
      std::vector<KvStore<DramMedia>::Item> items;
      for (std::uint64_t i = 0; i < 5; ++i) values.push_back(bytes_of(step * 5 + i, random() % 700));
      for (std::uint64_t i = 0; i < 5; ++i) {
        items.push_back({key_of(n + i), values[i]});
        model[n + i] = values[i];
      }
      ASSERT_TRUE(store.put_bulk(items));
    } else {
      const auto value = bytes_of(step, random() % (random() % 8 == 0 ? 9000 : 600));
      ASSERT_EQ(store.put(key_of(n), value), model.contains(n) ? PutResult::kReplaced : PutResult::kInserted) << step;
      model[n] = value;
    }
  }
  for (std::uint64_t n = 0; n < 410; ++n) {
    const auto found = store.get(key_of(n));
    ASSERT_EQ(static_cast<bool>(found), model.contains(n));
    if (found) ASSERT_TRUE(std::ranges::equal(found.bytes(), model[n]));
  }
  EXPECT_GT(store.stats().log.compactions, 100u);
  EXPECT_TRUE(store.check().ok());
}

TEST(KvStore, tells_what_is_stored_from_what_has_rotted) {
  Volatile<DramMedia> holder(1 << 20, 1 << 14);
  KvStore<DramMedia>& store = *holder.store;
  const auto value = bytes_of(1, 500), other = bytes_of(2, 500), small = bytes_of(3, 9);
  EXPECT_EQ(store.compare({key_of(1), value}), Compared::kMissing);
  store.put(key_of(1), value);
  store.put(key_of(2), small);
  EXPECT_EQ(store.compare({key_of(1), value}), Compared::kSame);
  EXPECT_EQ(store.compare({key_of(1), value, payload_checksum(value)}), Compared::kSame);
  EXPECT_EQ(store.compare({key_of(1), other}), Compared::kDifferent);
  EXPECT_EQ(store.compare({key_of(1), std::span(value).first(499)}), Compared::kDifferent);
  EXPECT_EQ(store.compare({key_of(1), small}), Compared::kDifferent);
  EXPECT_EQ(store.compare({key_of(2), small}), Compared::kSame);
  EXPECT_EQ(store.compare({key_of(2), value}), Compared::kDifferent);
  const std::uint64_t offset = store.index().get(key_of(1)).value.locator().position & ((1ULL << 48) - 1);
  for (const std::uint64_t at : {0, 16, 20, 24, 32, 531}) {  // Of the record: key, length, checksum, mark, bytes.
    *holder.data->region().at(offset + at) ^= std::byte{1};
    EXPECT_EQ(store.compare({key_of(1), value}), Compared::kDifferent) << at;
    *holder.data->region().at(offset + at) ^= std::byte{1};
    EXPECT_EQ(store.compare({key_of(1), value}), Compared::kSame);
  }
  *holder.data->region().at(offset + 100) ^= std::byte{1};
  EXPECT_EQ(store.get(key_of(1)).state, GetState::kDamaged);
  store.put(key_of(1), value);
  EXPECT_TRUE(std::ranges::equal(store.get(key_of(1)).bytes(), value)) << "a put heals it";
}

TEST(KvStore, shows_a_batch_when_it_is_committed_and_needs_the_values_no_longer_than_it_adds_them) {
  Volatile<DramMedia> holder(1 << 20, 1 << 14);
  KvStore<DramMedia>& store = *holder.store;
  KvStore<DramMedia>::Batch batch(store);
  for (std::uint64_t n = 0; n < 100; ++n) {
    auto value = bytes_of(n, n * 7);  // The first ones fit into the index.
    ASSERT_TRUE(batch.add({key_of(n), value}));
    std::ranges::fill(value, std::byte{0xee});
  }
  EXPECT_EQ(store.size(), 0U);
  EXPECT_EQ(batch.size(), 100U);
  ASSERT_TRUE(batch.commit());
  EXPECT_EQ(batch.size(), 0U);
  EXPECT_EQ(batch.bytes(), 0U);
  for (std::uint64_t n = 0; n < 100; ++n)
    ASSERT_TRUE(std::ranges::equal(store.get(key_of(n)).bytes(), bytes_of(n, n * 7))) << n;
  EXPECT_TRUE(store.check().ok());
}

TEST(KvStore, gives_the_space_of_a_batch_back_that_is_not_committed) {
  Volatile<DramMedia> holder(1 << 18, 1 << 14);
  KvStore<DramMedia>& store = *holder.store;
  for (unsigned round = 0; round < 100; ++round) {  // Ten times what the log holds.
    KvStore<DramMedia>::Batch batch(store);
    for (std::uint64_t n = 0; n < 25; ++n) ASSERT_TRUE(batch.add({key_of(n), bytes_of(n, 1000)})) << round;
    ASSERT_GT(batch.bytes(), 0U);
  }
  for (std::uint64_t n = 0; n < 25; ++n) (void)store.erase(key_of(n));  // Full logs have had some committed.
  EXPECT_EQ(store.size(), 0U);
  EXPECT_EQ(store.stats().log.live_bytes, 0U);
}

TEST(KvStore, commits_a_batch_by_itself_when_the_log_is_full_and_refuses_what_has_no_room) {
  Volatile<DramMedia> holder(1 << 18, 1 << 14);
  KvStore<DramMedia>& store = *holder.store;
  KvStore<DramMedia>::Batch batch(store);
  std::uint64_t added = 0;
  while (batch.add({key_of(added), bytes_of(added, 1000)})) ++added;
  EXPECT_GT(added, 200U);
  EXPECT_EQ(store.size(), added) << "what was added before is there";
  EXPECT_FALSE(batch.add({key_of(1 << 20), bytes_of(0, 1 << 14)})) << "longer than a segment";
  for (std::uint64_t n = 0; n < added / 2; ++n) ASSERT_TRUE(store.erase(key_of(n)));
  EXPECT_TRUE(batch.add({key_of(added), bytes_of(added, 1000)}));
  ASSERT_TRUE(batch.commit());
  for (std::uint64_t n = added / 2; n <= added; ++n)
    ASSERT_TRUE(std::ranges::equal(store.get(key_of(n)).bytes(), bytes_of(n, 1000))) << n;
  EXPECT_TRUE(store.check().ok());
}

TEST(KvStore, keeps_in_a_batch_what_the_index_has_no_room_for) {
  Volatile<DramMedia> holder(1 << 20, 1 << 14, 1);
  KvStore<DramMedia>& store = *holder.store;
  KvStore<DramMedia>::Batch batch(store);
  constexpr std::uint64_t kMany = 600;
  for (std::uint64_t n = 0; n < kMany; ++n) ASSERT_TRUE(batch.add({key_of(n), bytes_of(n, 100 + n % 7)}));
  ASSERT_FALSE(batch.commit());
  const std::uint64_t held = store.size();
  ASSERT_GT(held, 0U);
  EXPECT_EQ(batch.size(), kMany - held);
  // Every time that there is room again, more of it goes in; nothing is lost.
  std::vector<bool> seen(kMany);
  for (bool all = false;;) {
    for (std::uint64_t n = 0; n < kMany; ++n) {
      const auto found = store.get(key_of(n));
      if (!found) continue;
      ASSERT_TRUE(std::ranges::equal(found.bytes(), bytes_of(n, 100 + n % 7))) << n;
      ASSERT_FALSE(seen[n]) << n << " came again";
      seen[n] = true;
    }
    if (all) break;
    for (std::uint64_t n = 0; n < kMany; ++n) (void)store.erase(key_of(n));
    all = batch.commit();
  }
  EXPECT_EQ(std::ranges::count(seen, true), static_cast<std::ptrdiff_t>(kMany));
  for (std::uint64_t n = 0; n < kMany; ++n) (void)store.erase(key_of(n));
  EXPECT_EQ(store.stats().log.live_bytes, 0U);
}

TEST(KvStore, erases_in_bulk_what_single_calls_would_and_gives_the_space_back) {
  auto random = test::generator(2);
  Volatile<DramMedia> holder(1 << 20, 1 << 14);
  KvStore<DramMedia>& store = *holder.store;
  std::map<std::uint64_t, std::vector<std::byte>> model;
  for (unsigned round = 0; round < 60; ++round) {
    for (unsigned i = 0; i < 100; ++i) {
      const std::uint64_t n = random() % 500;
      model[n] = bytes_of(round * 100 + i, random() % 600);  // Some in the index, most in the log.
      ASSERT_NE(store.put(key_of(n), model[n]), PutResult::kFull);
    }
    std::vector<IndexKey> keys;
    std::size_t expected = 0;
    for (unsigned i = 0; i < random() % 300; ++i) {
      const std::uint64_t n = random() % 600;  // Some that are not there, some twice.
      keys.push_back(key_of(n));
      expected += model.erase(n);
    }
    ASSERT_EQ(store.erase_bulk(keys), expected);
    ASSERT_EQ(store.size(), model.size());
  }
  for (std::uint64_t n = 0; n < 600; ++n) {
    const auto found = store.get(key_of(n));
    ASSERT_EQ(static_cast<bool>(found), model.contains(n));
    if (found) ASSERT_TRUE(std::ranges::equal(found.bytes(), model[n]));
  }
  EXPECT_TRUE(store.check().ok());
  std::vector<IndexKey> all;
  for (const auto& [n, value] : model) all.push_back(key_of(n));
  EXPECT_EQ(store.erase_bulk(all), all.size());
  EXPECT_EQ(store.size(), 0U);
  EXPECT_EQ(store.stats().log.live_bytes, 0U) << "an erased value is still counted as alive";
}

TEST(KvStore, refuses_when_full_and_has_room_again_after_erasing) {
  Volatile<DramMedia> holder(1 << 18, 1 << 14);
  KvStore<DramMedia>& store = *holder.store;
  std::uint64_t held = 0;
  while (store.put(key_of(held), bytes_of(held, 1000)) == PutResult::kInserted) ++held;
  // One of 16 segments is kept back, and in each there is a gap of less than a record at the end.
  EXPECT_GE(held, 15u * ((1 << 14) / 1056 - 1));
  EXPECT_EQ(store.put(key_of(0), bytes_of(7, 1000)), PutResult::kFull);
  for (std::uint64_t n = 0; n < held; ++n)
    ASSERT_TRUE(std::ranges::equal(store.get(key_of(n)).bytes(), bytes_of(n, 1000)));
  EXPECT_EQ(store.put(key_of(1000), bytes_of(0, 1 << 14)), PutResult::kFull) << "longer than a segment";
  for (std::uint64_t n = 0; n < held; n += 2) ASSERT_TRUE(store.erase(key_of(n)));
  for (std::uint64_t n = 0; n < held; n += 2) {
    if (n + 32 < held) ASSERT_EQ(store.put(key_of(n), bytes_of(n + 1, 1000)), PutResult::kInserted) << n;
  }
  for (std::uint64_t n = 1; n < held; n += 2)
    ASSERT_TRUE(std::ranges::equal(store.get(key_of(n)).bytes(), bytes_of(n, 1000)));
  EXPECT_TRUE(store.check().ok());
}

TEST(KvStore, a_value_in_use_stays_as_it_is) {
  Volatile<DramMedia> holder(1 << 17, 1 << 14);
  KvStore<DramMedia>& store = *holder.store;
  store.put(key_of(1), bytes_of(1, 500));
  const auto held = store.get(key_of(1));
  ASSERT_TRUE(held);
  for (std::uint64_t n = 0; n < 5000; ++n) ASSERT_NE(store.put(key_of(n % 20), bytes_of(n, 700)), PutResult::kFull);
  EXPECT_TRUE(std::ranges::equal(held.bytes(), bytes_of(1, 500)));
}

template <class M>
class KvStoreOn : public testing::Test {};
using Medias = testing::Types<DramMedia, DirectMedia>;
TYPED_TEST_SUITE(KvStoreOn, Medias);

/// Each key has one writer; the value's bytes say which version it is; compaction runs all the while.
TYPED_TEST(KvStoreOn, readers_see_whole_values_that_never_go_back) {
#if defined(__SANITIZE_THREAD__)
  constexpr std::uint64_t kSteps = 3000;
#else
  constexpr std::uint64_t kSteps = 30000;
#endif
  Volatile<TypeParam> holder(1 << 19, 1 << 14);
  KvStore<TypeParam>& store = *holder.store;
  constexpr std::uint64_t kWriters = 2, kKeys = 200;
  std::atomic<std::uint64_t> versions[kKeys] = {};
  std::atomic<bool> done{false};
  std::atomic<unsigned> wrong{0};
  const auto value_of = [](std::uint64_t n, std::uint64_t version) {
    std::vector<std::byte> bytes(16 + (n * 7 + version * 13) % 900);
    for (std::size_t i = 0; i + 8 <= bytes.size(); i += 8) std::memcpy(&bytes[i], &version, 8);
    return bytes;
  };
  std::vector<std::thread> threads;
  for (std::uint64_t w = 0; w < kWriters; ++w) {
    threads.emplace_back([&, w] {
      auto random = test::generator(w);
      std::map<std::uint64_t, std::uint64_t> mine;
      for (std::uint64_t step = 0; step < kSteps; ++step) {
        const std::uint64_t n = random() % (kKeys / kWriters) * kWriters + w;
        const std::uint64_t version = ++mine[n];
        if (store.put(key_of(n), value_of(n, version)) == PutResult::kFull) ++wrong;
        versions[n].store(version, std::memory_order_release);
      }
    });
  }
  for (unsigned r = 0; r < 2; ++r) {
    threads.emplace_back([&, r] {
      auto random = test::generator(100 + r);
      while (!done.load()) {
        const std::uint64_t n = random() % kKeys;
        const std::uint64_t least = versions[n].load(std::memory_order_acquire);
        const auto found = store.get(key_of(n));
        if (!found) {
          wrong += least != 0 ? 1 : 0;
          continue;
        }
        std::uint64_t version = 0;
        std::memcpy(&version, found.bytes().data(), sizeof version);
        if (version < least || !std::ranges::equal(found.bytes(), value_of(n, version))) ++wrong;
      }
    });
  }
  for (std::uint64_t w = 0; w < kWriters; ++w) threads[w].join();
  done = true;
  for (std::size_t i = kWriters; i < threads.size(); ++i) threads[i].join();
  EXPECT_EQ(wrong.load(), 0u);
  EXPECT_TRUE(store.check().ok());
  EXPECT_GT(store.stats().log.compactions, 3u);
}

/// Who has a value in its hands keeps it as it was, for as long as it likes, while it is replaced and its segment is
/// compacted, freed and written again.
TYPED_TEST(KvStoreOn, values_in_use_stay_as_they_are_beside_compaction) {
#if defined(__SANITIZE_THREAD__)
  constexpr std::uint64_t kSteps = 3000;
#else
  constexpr std::uint64_t kSteps = 30000;
#endif
  Volatile<TypeParam> holder(1 << 17, 1 << 12);  // 32 segments, and about four values in each.
  KvStore<TypeParam>& store = *holder.store;
  constexpr std::uint64_t kKeys = 24;
  std::atomic<bool> done{false};
  std::atomic<unsigned> wrong{0};
  std::vector<std::thread> threads;
  for (std::uint64_t w = 0; w < 2; ++w) {
    threads.emplace_back([&, w] {
      auto random = test::generator(w);
      for (std::uint64_t step = 0; step < kSteps; ++step) {
        const std::uint64_t n = random() % kKeys;
        (void)store.put(key_of(n), bytes_of(n * kSteps + step, 700 + random() % 300));
      }
    });
  }
  for (unsigned r = 0; r < 2; ++r) {
    threads.emplace_back([&, r] {
      auto random = test::generator(100 + r);
      while (!done.load()) {
        const auto found = store.get(key_of(random() % kKeys));
        if (!found) continue;
        const std::vector<std::byte> then(found.bytes().begin(), found.bytes().end());
        for (std::uint64_t turns = random() % 64; turns > 0; --turns) std::this_thread::yield();
        wrong += std::ranges::equal(found.bytes(), then) ? 0 : 1;
      }
    });
  }
  threads[0].join();
  threads[1].join();
  done = true;
  threads[2].join();
  threads[3].join();
  EXPECT_EQ(wrong.load(), 0u);
  EXPECT_TRUE(store.check().ok());
  EXPECT_GT(store.stats().log.compactions, 100u);
}

class KvStoreFile : public ::testing::Test {
 protected:
  void SetUp() override { std::filesystem::remove(path_); }
  void TearDown() override { std::filesystem::remove(path_); }
  static StoreOptions options() {
    StoreOptions options;
    options.index = {.bytes_max = 4 << 20, .segment_groups = 16, .seed = HashSeed::from(1)};
    options.log = {.capacity_bytes = 1 << 20, .segment_bytes = 1 << 16};
    return options;
  }
  std::string path_ = (std::filesystem::temp_directory_path() / ("kv_store_test." + std::to_string(getpid()))).string();
};

TEST_F(KvStoreFile, is_there_again_after_reopening_without_a_close) {
  {
    auto pool = Pool::create(path_, {.bytes = 64 << 20});
    auto store = KvStore<ProcessMedia>::create(*pool, "s", options(), {});
    ASSERT_TRUE(store) << store.error().message;
    for (std::uint64_t n = 0; n < 3000; ++n)
      ASSERT_NE(store->put(key_of(n % 300), bytes_of(n, 1 + n % 2000)), PutResult::kFull) << n;
  }
  auto pool = Pool::open(path_);
  auto opened = KvStore<ProcessMedia>::open(*pool, "s", {});
  ASSERT_TRUE(opened) << opened.error().message;
  KvStore<ProcessMedia>& store = opened->store;
  for (std::uint64_t n = 2700; n < 3000; ++n)
    ASSERT_TRUE(std::ranges::equal(store.get(key_of(n % 300)).bytes(), bytes_of(n, 1 + n % 2000)));
  // All segments count as full after this; puts find out what is alive.
  for (std::uint64_t n = 3000; n < 6000; ++n)
    ASSERT_NE(store.put(key_of(n % 300), bytes_of(n, 1 + n % 2000)), PutResult::kFull) << n;
  EXPECT_TRUE(store.check().ok());
  EXPECT_EQ(store.size(), 300u);
}

TEST_F(KvStoreFile, finds_every_flipped_bit_of_a_value_and_never_returns_it) {
  auto pool = Pool::create(path_, {.bytes = 64 << 20});
  auto store = KvStore<ProcessMedia>::create(*pool, "s", options(), {});
  ASSERT_TRUE(store);
  store->put(key_of(1), bytes_of(1, 50));
  store->put(key_of(2), bytes_of(2, 50));
  const Locator locator = store->index().get(key_of(1)).value.locator();
  auto data = pool->open_region("s.log");
  ASSERT_TRUE(data);
  std::byte* record = data->at(locator.position & ((1ULL << 48) - 1));
  for (unsigned bit = 0; bit < (32 + 50) * 8; ++bit) {
    record[bit / 8] ^= static_cast<std::byte>(1U << (bit % 8));
    ASSERT_EQ(store->get(key_of(1)).state, GetState::kDamaged) << "bit " << bit;
    ASSERT_FALSE(store->check().ok());
    record[bit / 8] ^= static_cast<std::byte>(1U << (bit % 8));
  }
  // A damaged value that is still needed is not thrown away by compaction, nor does it stop it elsewhere.
  record[40] ^= std::byte{1};
  for (std::uint64_t n = 0; n < 20000; ++n)
    ASSERT_NE(store->put(key_of(3 + n % 50), bytes_of(n, 900)), PutResult::kFull) << n;
  EXPECT_EQ(store->get(key_of(1)).state, GetState::kDamaged);
  record[40] ^= std::byte{1};
  EXPECT_TRUE(store->get(key_of(1)));
  EXPECT_TRUE(store->get(key_of(2)));
}

TEST_F(KvStoreFile, refuses_what_is_not_a_log) {
  auto pool = Pool::create(path_, {.bytes = 64 << 20});
  using Log = ValueLog<ProcessMedia>;
  EXPECT_EQ(Log::open(*pool, "none", {}).error().code, ErrorCode::kNotFound);
  EXPECT_EQ(Log::create(*pool, "l", {.capacity_bytes = 1 << 20, .segment_bytes = 1 << 19}, {}).error().code,
            ErrorCode::kInvalidArgument);
  EXPECT_EQ(Log::create(*pool, "l", {.capacity_bytes = 1 << 20, .segment_bytes = 5000}, {}).error().code,
            ErrorCode::kInvalidArgument);
  EXPECT_EQ(Log::create(*pool, "l", {.capacity_bytes = 1 << 30, .segment_bytes = 1 << 16}, {}).error().code,
            ErrorCode::kNoSpace);
  ASSERT_TRUE(Log::create(*pool, "l", {.capacity_bytes = 1 << 20, .segment_bytes = 1 << 16}, {}));
  EXPECT_EQ(Log::create(*pool, "l", {.capacity_bytes = 1 << 20, .segment_bytes = 1 << 16}, {}).error().code,
            ErrorCode::kAlreadyExists);
  auto meta = pool->open_region("l.logmeta");
  ASSERT_TRUE(meta);
  auto* header = reinterpret_cast<LogHeader*>(meta->at(0));
  const LogHeader good = *header;
  const auto refused = [&] { return Log::open(*pool, "l", {}).error().code; };
  header->magic ^= 1;
  EXPECT_EQ(refused(), ErrorCode::kWrongLayout);
  *header = good;
  header->format_version = 2;
  EXPECT_EQ(refused(), ErrorCode::kWrongVersion);
  *header = good;
  header->segments += 1;
  EXPECT_EQ(refused(), ErrorCode::kCorrupt);
  *header = good;
  *reinterpret_cast<std::uint64_t*>(meta->at(kLogTableOffset + 8)) ^= 1;
  EXPECT_EQ(refused(), ErrorCode::kCorrupt);
}

}  // namespace
}  // namespace dunnock
