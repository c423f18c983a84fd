// Structures of a pool that is open for reading: they read what is there, and refuse every change.
#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <string>
#include <vector>

#include "dunnock/filter/cuckoo_filter.hpp"
#include "dunnock/index/checkpoint_store.hpp"
#include "dunnock/index/kv_store.hpp"
#include "dunnock/index/prefix_store.hpp"

namespace dunnock {
namespace {

class ReadOnly : public ::testing::Test {
 protected:
  void SetUp() override { std::filesystem::remove(path_); }
  void TearDown() override { std::filesystem::remove(path_); }
  /// Calls make(pool), and then use(pool) with the pool open for reading; the file must be the same afterwards.
  template <class Make, class Use>
  void written_then_read(Make&& make, Use&& use) {
    {
      auto pool = Pool::create(path_, {.bytes = 96 << 20});
      ASSERT_TRUE(pool) << pool.error().message;
      make(*pool);
    }
    const auto before = std::filesystem::last_write_time(path_);
    auto pool = Pool::open_read_only(path_);
    ASSERT_TRUE(pool) << pool.error().message;
    use(*pool);
    EXPECT_EQ(std::filesystem::last_write_time(path_), before);
  }
  static std::vector<std::byte> bytes(std::size_t count, int value) {
    return std::vector<std::byte>(count, static_cast<std::byte>(value));
  }
  std::string path_ =
      (std::filesystem::temp_directory_path() / ("read_only_test." + std::to_string(getpid()))).string();
};

TEST_F(ReadOnly, filters_answer_and_refuse_keys) {
  using Writer = CuckooFilter<12, ProcessMedia>;
  using Reader = CuckooFilter<12, ReadOnlyMedia>;
  written_then_read(
      [](Pool& pool) {
        auto filter = Writer::create(pool, "f", {.slots = 1000}, {});
        ASSERT_TRUE(filter) << filter.error().message;
        for (std::uint64_t key = 0; key < 500; ++key) ASSERT_TRUE(filter->insert(key));
      },
      [](Pool& pool) {
        auto opened = Reader::open(pool, "f", {});
        ASSERT_TRUE(opened) << opened.error().message;
        Reader& filter = opened->filter;
        for (std::uint64_t key = 0; key < 500; ++key) EXPECT_TRUE(filter.contains(key));
        std::uint64_t absent = 500;
        while (filter.contains(absent)) ++absent;
        EXPECT_FALSE(filter.insert(absent));
        EXPECT_FALSE(filter.erase(std::uint64_t{7}));
        const std::array<std::uint64_t, 2> keys{absent, 7};
        std::array<std::uint8_t, 2> verdicts{9, 9};
        EXPECT_EQ(filter.insert_bulk(keys, verdicts.data()), 0u);
        EXPECT_EQ(verdicts, (std::array<std::uint8_t, 2>{0, 0}));
        EXPECT_EQ(filter.erase_bulk(keys, verdicts.data()), 0u);
        filter.clear();
        EXPECT_FALSE(filter.contains(absent));
        for (std::uint64_t key = 0; key < 500; ++key) EXPECT_TRUE(filter.contains(key));
      });
}

TEST_F(ReadOnly, stores_give_values_and_refuse_puts) {
  const StoreOptions options{.index = {.entries = 1000, .bytes_max = 16 << 20},
                             .log = {.capacity_bytes = 8 << 20, .segment_bytes = 1 << 20}};
  written_then_read(
      [&](Pool& pool) {
        auto store = KvStore<ProcessMedia>::create(pool, "s", options, {});
        ASSERT_TRUE(store) << store.error().message;
        for (std::uint64_t key = 0; key < 200; ++key)
          ASSERT_EQ(store->put({key, key}, bytes(key, 1)), PutResult::kInserted);
      },
      [&](Pool& pool) {
        auto opened = KvStore<ReadOnlyMedia>::open(pool, "s", {});
        ASSERT_TRUE(opened) << opened.error().message;
        auto& store = opened->store;
        for (const std::size_t length : {8UL, 100UL}) {
          EXPECT_EQ(store.put({1000, 1000}, bytes(length, 2)), PutResult::kIo);
          EXPECT_EQ(store.put({5, 5}, bytes(length, 2)), PutResult::kIo);
        }
        EXPECT_FALSE(store.erase({5, 5}));
        const std::vector<std::byte> two = bytes(50, 2);
        const std::array<ValueLog<ReadOnlyMedia>::Item, 1> items{{{{7, 7}, two}}};
        EXPECT_FALSE(store.put_bulk(items));
        const std::array<IndexKey, 1> keys{{{7, 7}}};
        EXPECT_EQ(store.erase_bulk(keys), 0u);
        EXPECT_EQ(store.compact(1), 0u);
        EXPECT_EQ(store.size(), 200u);
        for (std::uint64_t key = 0; key < 200; ++key) {
          const auto value = store.get({key, key});
          ASSERT_TRUE(value) << key;
          EXPECT_EQ(value.bytes().size(), key);
        }
        EXPECT_FALSE(store.get({1000, 1000}));
      });
}

TEST_F(ReadOnly, checkpoints_are_restored_and_neither_saved_nor_removed) {
  const CheckpointOptions options{.capacity_bytes = 8 << 20, .chunk_bytes = 4096, .segment_bytes = 1 << 20};
  const std::vector<std::byte> one = bytes(10000, 1);
  const std::array sources{TensorSource{{"t", Dtype::kU8, {10000}}, one, {}, {}}};
  written_then_read(
      [&](Pool& pool) {
        auto store = CheckpointStore<ProcessMedia>::create(pool, "c", options, {});
        ASSERT_TRUE(store) << store.error().message;
        ASSERT_TRUE(store->save("run", 1, sources, {}));
      },
      [&](Pool& pool) {
        auto store = CheckpointStore<ReadOnlyMedia>::open(pool, "c", {});
        ASSERT_TRUE(store) << store.error().message;
        EXPECT_EQ(store->save("run", 2, sources, {}).error().code, ErrorCode::kReadOnly);
        EXPECT_EQ(store->remove("run", 1).error().code, ErrorCode::kReadOnly);
        EXPECT_EQ(store->retain("run", {.keep_last = 1}).error().code, ErrorCode::kReadOnly);
        EXPECT_EQ(store->collect().error().code, ErrorCode::kReadOnly);
        EXPECT_EQ(store->forget_damaged(), 0u);
        std::vector<std::byte> back(10000);
        const std::array sinks{TensorSink{{"t", Dtype::kU8, {10000}}, back, {}}};
        ASSERT_TRUE(store->restore("run", 1, sinks));
        EXPECT_TRUE(back == one);
        EXPECT_EQ(store->list().size(), 1u);
      });
}

}  // namespace
}  // namespace dunnock
