// What readers look at again before they answer, and pins: a reader is stopped before each of its loads and checks in
// turn, others run whole operations there, and the answer must still be right. Each of these looks is then left out
// (is_taken in pmem/media.hpp), and the same search must find a wrong answer. For one of them a writer is stopped, too.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <random>
#include <thread>
#include <vector>

#include "dunnock/filter/cuckoo_filter.hpp"
#include "dunnock/index/kv_store.hpp"
#include "support/seed.hpp"

namespace dunnock {
namespace {

/// Where a reader stops, and what happens there.
struct Stop {
  long loads_left = -1;  // before it stops; -1: it doesn't
  std::function<void()> meanwhile;
  Point left_out{};
  /// Before the first store of this step.
  Point store_at{};
  std::function<void()> before_store{};
  void count() {
    if (loads_left < 0 || loads_left-- != 0) return;
    const std::function<void()> run = std::move(meanwhile);
    run();
  }
};

/// Memory whose reader can be stopped.
struct StoppingMedia {
  static constexpr Durability kDurability = Durability::kPower;
  static constexpr bool kVisibleIsDurable = true;
  Stop* stop;
  [[nodiscard]] std::uint64_t load(const Word& word) const noexcept {
    stop->count();
    return word.load(std::memory_order_acquire);
  }
  void store(Point point, Word& word, std::uint64_t value) const noexcept {
    if (point == stop->store_at && stop->before_store) std::exchange(stop->before_store, nullptr)();
    word.store(value, std::memory_order_release);
  }
  void flush(Point, const void*) const noexcept {}
  void fence(Point) const noexcept {}
  void pause() const noexcept {}
  [[nodiscard]] bool skips(Point point) const noexcept {
    stop->count();
    return point == stop->left_out;
  }
};
static_assert(Media<StoppingMedia>);

/// Zeroed memory in lines.
class Memory {
 public:
  explicit Memory(std::size_t bytes)
      : bytes_(bytes), at_(static_cast<std::byte*>(std::aligned_alloc(kLineBytes, bytes)), &std::free) {
    std::memset(at_.get(), 0, bytes);
  }
  [[nodiscard]] std::byte* data() const { return at_.get(); }
  [[nodiscard]] Region region(std::size_t from, std::size_t bytes) const {
    return Region({at_.get() + from}, bytes, std::bit_ceil(bytes));
  }
  void become(const Memory& other) { std::memcpy(data(), other.data(), bytes_); }

 private:
  std::size_t bytes_;
  std::unique_ptr<std::byte, void (*)(void*)> at_;
};

// ----- the filter ---------------------------------------------------------------------------------------------------

using Filter = CuckooFilter<8, StoppingMedia>;
constexpr std::uint64_t kSlots = 2 * 8 * Filter::kLanes;  // two groups

/// Looks for a key that is there and is reported absent, with `left_out` left out, on tables of two groups and keys of
/// one fingerprint. `bulk`: by contains_bulk. Returns the trial that found one.
std::optional<int> absent_though_there(Point left_out, bool bulk, int trials) {
  const std::size_t meta_bytes = Filter::meta_bytes(), bytes = meta_bytes + Filter::table_bytes(kSlots);
  Stop stop;
  const StoppingMedia media{&stop};
  auto random = test::generator(1);
  for (int trial = 0; trial < trials; ++trial) {
    const FilterOptions options{kSlots, HashSeed::from(random())};
    const KeyHasher hasher(options.seed);
    const auto group_of = [&](std::uint64_t key) { return Layout<8>::place(hasher(key), 16).bucket / 8; };
    const std::uint64_t fingerprint = Layout<8>::place(hasher(random()), 16).fingerprint;
    const auto equal_key = [&] {
      for (;;) {
        const std::uint64_t key = random();
        if (Layout<8>::place(hasher(key), 16).fingerprint == fingerprint) return key;
      }
    };
    // One group is full when the first keys of that fingerprint come, and has room again for others.
    Memory memory(bytes), start(bytes);
    std::vector<std::uint64_t> there;
    {
      auto filter = std::move(
          *Filter::format(memory.region(0, meta_bytes), memory.region(meta_bytes, bytes - meta_bytes), options, media));
      const std::uint64_t full = random() % 2;
      std::vector<std::uint64_t> others;
      while (others.size() < kSlots / 2) {
        const std::uint64_t key = random();
        if (group_of(key) == full && filter.insert(key)) others.push_back(key);
      }
      for (std::uint64_t n = 20 + random() % 30; n > 0;) {
        const std::uint64_t key = random();
        if (group_of(key) != full) (void)filter.insert(key), --n;
      }
      const auto put_some = [&](std::uint64_t n) {
        for (; n > 0; --n) {
          const std::uint64_t key = equal_key();
          if (filter.insert(key)) there.push_back(key);
        }
      };
      put_some(2 + random() % 3);
      for (std::uint64_t n = random() % 12; n > 0; --n) (void)filter.erase(others[n]);
      put_some(2 + random() % 4);
    }
    start.become(memory);
    // The others' operations, one to three, on keys that can't be told from those that are looked for. A key that is
    // inserted may be erased again.
    struct Operation {
      bool insert;
      std::uint64_t key;
    };
    const auto sibling = [&](std::uint64_t key) {
      for (;;) {
        const std::uint64_t other = equal_key();
        if (Layout<8>::place(hasher(other), 16).bucket == Layout<8>::place(hasher(key), 16).bucket) return other;
      }
    };
    std::vector<Operation> operations;
    std::shuffle(there.begin(), there.end(), random);
    std::size_t live = there.size();
    if (live == 0) continue;
    for (std::uint64_t n = 1 + random() % 3; n > 0; --n) {
      if (random() % 2 == 0) {
        operations.push_back({true, random() % 2 == 0 ? equal_key() : sibling(there[0])});
        if (random() % 2 == 0) operations.push_back({false, operations.back().key});
      } else if (live > 1) {
        operations.push_back({false, there[--live]});
      }
    }
    for (std::size_t i = 0; i < live; ++i) {
      for (long loads = 0; loads < 40; ++loads) {
        memory.become(start);
        auto opened =
            Filter::attach(memory.region(0, meta_bytes), memory.region(meta_bytes, bytes - meta_bytes), media);
        Filter& filter = opened->filter;
        bool stopped = false;
        stop = {loads,
                [&] {
                  stopped = true;
                  std::uint64_t refused = 0;
                  for (const Operation& one : operations) {
                    if (one.insert) {
                      if (!filter.insert(one.key)) refused = one.key;
                    } else if (one.key != refused) {
                      EXPECT_TRUE(filter.erase(one.key));
                    }
                  }
                },
                left_out};
        std::uint8_t found = 0;
        if (bulk) {
          (void)filter.contains_bulk(std::span(&there[i], 1), &found);
        } else {
          found = filter.contains(there[i]) ? 1 : 0;
        }
        stop = {};
        if (found == 0) return trial;
        if (!stopped) break;  // It had fewer loads than that.
      }
    }
  }
  return std::nullopt;
}

TEST(SecondLooks, of_the_filter_never_report_a_key_absent_that_is_there) {
  EXPECT_EQ(absent_though_there({}, false, 300), std::nullopt);
  EXPECT_EQ(absent_though_there({}, true, 300), std::nullopt);
}

TEST(SecondLooks, of_the_filter_are_each_missed) {
  EXPECT_TRUE(absent_though_there(filter_point::kLevelAgain, false, 20000)) << "the level, after the foreign lanes";
  EXPECT_TRUE(absent_though_there(filter_point::kBulkLevelAgain, true, 20000)) << "the same in contains_bulk";
  EXPECT_TRUE(absent_though_there(filter_point::kOwnGroupAgain, false, 20000)) << "the own group, after the other one";
}

// ----- the index ----------------------------------------------------------------------------------------------------

/// Looks for a key that is there and is missing or damaged, while others change it, or make its segment split. `maybe`:
/// by may_contain. Returns the trial that found one.
std::optional<int> missing_though_there(Point left_out, bool maybe, int trials) {
  using Index = KvIndex<StoppingMedia>;
  Stop stop;
  const StoppingMedia media{&stop};
  auto random = test::generator(3);
  const std::size_t segment = Index::segment_bytes(2);
  const IndexOptions options{.bytes_max = 4 * segment, .segment_groups = 2, .seed = HashSeed::from(test::seed())};
  const std::size_t meta_bytes = Index::meta_bytes(options);
  for (int trial = 0; trial < trials; ++trial) {
    Memory memory(meta_bytes + 4 * segment);
    const auto chunk = [&](unsigned number, std::uint64_t bytes) -> Result<Region> {
      return memory.region(meta_bytes + number * segment, bytes);
    };
    auto index = std::move(*Index::format(memory.region(0, meta_bytes), {chunk, chunk}, options, media));
    std::vector<IndexKey> there;
    const auto put_new = [&](std::uint64_t n) {
      for (; n > 0; --n) {
        const IndexKey key{random(), random()};
        if (index.put(key, IndexValue::of(random())) == PutResult::kInserted) there.push_back(key);
      }
    };
    put_new(60 + random() % 21);
    const IndexKey key = there[random() % there.size()];
    stop = {static_cast<long>(random() % 24),
            [&] {
              for (std::uint64_t n = random() % 4; n > 0; --n) (void)index.put(key, IndexValue::of(random()));
              if (random() % 2 == 0) put_new(20);
            },
            left_out};
    const bool found = maybe ? index.may_contain(key) : static_cast<bool>(index.get(key));
    stop = {};
    if (!found) return trial;
  }
  return std::nullopt;
}

TEST(SecondLooks, of_the_index_never_miss_a_key_that_is_there) {
  EXPECT_EQ(missing_though_there({}, false, 3000), std::nullopt);
  EXPECT_EQ(missing_though_there({}, true, 3000), std::nullopt);
}

TEST(SecondLooks, of_the_index_are_each_missed) {
  EXPECT_TRUE(missing_though_there(index_point::kControlAgain, false, 50000)) << "the control word, after the value";
  EXPECT_TRUE(missing_though_there(index_point::kSplitAgain, false, 50000)) << "was the segment split?";
  EXPECT_TRUE(missing_though_there(index_point::kSplitAgainMaybe, true, 50000)) << "the same in may_contain";
}

/// A reader has loaded a word of fingerprints and stops, before its load of number `loads`. The key is erased and put
/// again, into the same lane, and the put stops before it stores the lane: the reader goes on, and another follows it.
/// True: the first one has seen the new value, and the second one has not. Nothing: the reader had fewer loads.
std::optional<bool> seen_and_gone(long loads, Point left_out) {
  using Index = KvIndex<StoppingMedia>;
  Stop reading, writing;
  reading.left_out = writing.left_out = left_out;
  const std::size_t segment = Index::segment_bytes(2);
  const IndexOptions options{.bytes_max = segment, .segment_groups = 2, .seed = HashSeed::from(test::seed())};
  const std::size_t meta_bytes = Index::meta_bytes(options);
  Memory memory(meta_bytes + segment);
  const auto chunk = [&](unsigned, std::uint64_t bytes) -> Result<Region> { return memory.region(meta_bytes, bytes); };
  const auto attach = [&](Stop& stop) {
    return std::move(Index::attach(memory.region(0, meta_bytes), {chunk, chunk}, StoppingMedia{&stop})->index);
  };
  const IndexKey key{1, 2};
  {
    auto made =
        std::move(*Index::format(memory.region(0, meta_bytes), {chunk, chunk}, options, StoppingMedia{&writing}));
    EXPECT_EQ(made.put(key, IndexValue::of(std::uint64_t{1})), PutResult::kInserted);
  }
  // Two of them on one memory: each thread has a media of its own.
  Index reader = attach(reading), writer = attach(writing);
  std::promise<void> stopped, goes_on;
  reading.loads_left = loads;
  reading.meanwhile = [&] {
    stopped.set_value();
    goes_on.get_future().wait();
  };
  GetResult first;
  bool in_time = false;
  std::thread thread([&] {
    first = reader.get(key);
    in_time = reading.loads_left >= 0;
    if (in_time) stopped.set_value();
  });
  stopped.get_future().wait();
  if (in_time) {
    thread.join();
    return std::nullopt;
  }
  const IndexValue next = IndexValue::of(std::uint64_t{2});
  EXPECT_TRUE(writer.erase(key));
  GetResult second;
  writing.store_at = index_point::kLane;
  writing.before_store = [&] {
    goes_on.set_value();
    thread.join();
    second = writer.get(key);
  };
  EXPECT_EQ(writer.put(key, next), PutResult::kInserted);
  return first && first.value == next && !second;
}

TEST(SecondLooks, of_the_index_tell_no_value_of_a_put_under_way) {
  long loads = 0;
  bool wrong = false;
  for (; const auto seen = seen_and_gone(loads, {}); ++loads) EXPECT_FALSE(*seen) << "stopped at load " << loads;
  EXPECT_GT(loads, 5);
  for (long at = 0; at < loads; ++at) wrong = wrong || seen_and_gone(at, index_point::kLaneAgain).value_or(false);
  EXPECT_TRUE(wrong) << "the lane, after the record";
}

// ----- what the index tells before it is durable --------------------------------------------------------------------

/// What a power failure would leave of a memory: lines as they were at the last fence after a flush of theirs.
struct Disk {
  Memory& memory;
  Memory durable;
  Point left_out{};
  Point fence_at{};
  std::function<void()> before_fence{};
};

/// Memory that is visible before it is durable. Copies share what has been flushed since the last fence: one thread.
struct DiskMedia {
  static constexpr Durability kDurability = Durability::kPower;
  static constexpr bool kVisibleIsDurable = false;
  Disk* disk;
  std::shared_ptr<std::vector<std::size_t>> flushed = std::make_shared<std::vector<std::size_t>>();
  [[nodiscard]] std::uint64_t load(const Word& word) const noexcept { return word.load(std::memory_order_acquire); }
  void store(Point, Word& word, std::uint64_t value) const noexcept { word.store(value, std::memory_order_release); }
  void flush(Point, const void* address) const noexcept {
    const auto at = static_cast<std::size_t>(static_cast<const std::byte*>(address) - disk->memory.data());
    flushed->push_back(at / kLineBytes * kLineBytes);
  }
  void fence(Point point) const noexcept {
    if (point == disk->fence_at && disk->before_fence) {
      const auto mine = std::exchange(*flushed, {});  // What another flushes meanwhile is his.
      std::exchange(disk->before_fence, nullptr)();
      *flushed = mine;
    }
    for (const std::size_t line : *flushed)
      std::memcpy(disk->durable.data() + line, disk->memory.data() + line, kLineBytes);
    flushed->clear();
  }
  void pause() const noexcept {}
  [[nodiscard]] bool skips(Point point) const noexcept { return point == disk->left_out; }
};
static_assert(Media<DiskMedia>);

/// A put or an erase stops before its fence. Another asks for the key, by get or may_contain, and is answered. Then the
/// power fails. True: the key is there and the answer was no, or the other way round by get.
bool contradicted(bool put, bool maybe, Point left_out) {
  using Index = KvIndex<DiskMedia>;
  const std::size_t segment = Index::segment_bytes(2);
  const IndexOptions options{.bytes_max = segment, .segment_groups = 2, .seed = HashSeed::from(test::seed())};
  const std::size_t meta_bytes = Index::meta_bytes(options);
  Memory memory(meta_bytes + segment);
  Disk disk{memory, Memory(meta_bytes + segment), left_out, {}, {}};
  const auto chunks_of = [&](const Memory& of) {
    const auto chunk = [&of, meta_bytes](unsigned, std::uint64_t bytes) -> Result<Region> {
      return of.region(meta_bytes, bytes);
    };
    return IndexMemory{chunk, chunk};
  };
  const IndexKey key{1, 2};
  bool there = false;
  {
    auto writer = std::move(*Index::format(memory.region(0, meta_bytes), chunks_of(memory), options, DiskMedia{&disk}));
    if (!put) {
      EXPECT_EQ(writer.put(key, IndexValue::of(std::uint64_t{1})), PutResult::kInserted);
    }
    // Its groups are locked in the object that writes, so that is also the one that is read.
    disk.fence_at = put ? index_point::kPutFence : index_point::kEraseRecord;
    Memory at_crash(meta_bytes + segment);
    disk.before_fence = [&] {
      there = maybe ? writer.may_contain(key) : static_cast<bool>(writer.get(key));
      at_crash.become(disk.durable);
    };
    if (put) {
      EXPECT_EQ(writer.put(key, IndexValue::of(std::uint64_t{1})), PutResult::kInserted);
    } else {
      EXPECT_TRUE(writer.erase(key));
    }
    disk.durable.become(at_crash);
  }
  memory.become(disk.durable);
  disk.left_out = {};
  auto opened = Index::attach(memory.region(0, meta_bytes), chunks_of(memory), DiskMedia{&disk});
  const bool still_there = static_cast<bool>(opened->index.get(key));
  return maybe ? !there && still_there : there != still_there;
}

TEST(SecondLooks, of_the_index_tell_nothing_that_a_crash_contradicts) {
  for (const bool put : {true, false}) {
    for (const bool maybe : {true, false}) EXPECT_FALSE(contradicted(put, maybe, {})) << put << maybe;
  }
  EXPECT_TRUE(contradicted(true, false, index_point::kPersistGet));
  EXPECT_TRUE(contradicted(false, false, index_point::kPersistGet));
  EXPECT_TRUE(contradicted(false, true, index_point::kPersistMaybe)) << "that there is no fingerprint any more";
}

// ----- the log ------------------------------------------------------------------------------------------------------

std::vector<std::byte> bytes_of(std::uint64_t number) {
  std::vector<std::byte> bytes(100 + number * 37 % 300);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(number * 31 + i * 7);
  std::memcpy(bytes.data(), &number, sizeof number);
  return bytes;
}
bool is_value(std::span<const std::byte> bytes) {
  std::uint64_t number = 0;
  if (bytes.size() < sizeof number) return false;
  std::memcpy(&number, bytes.data(), sizeof number);
  return std::ranges::equal(bytes, bytes_of(number % 100000));
}

/// Looks for a value that is none that was put, or that changes in the hands of who has read it, or for a key that is
/// missing or damaged, while others replace values and compact segments. Returns the trial that found one.
std::optional<int> wrong_value(Point left_out, int trials) {
  Stop stop;
  const StoppingMedia media{&stop};
  auto random = test::generator(2);
  constexpr std::uint64_t kKeys = 5;
  const IndexOptions index_options{
      .bytes_max = KvIndex<StoppingMedia>::segment_bytes(2), .segment_groups = 2, .seed = HashSeed::from(test::seed())};
  const LogOptions log_options{.capacity_bytes = 5 * 1024, .segment_bytes = 1024};
  const std::size_t index_meta = KvIndex<StoppingMedia>::meta_bytes(index_options);
  const std::size_t log_meta = ValueLog<StoppingMedia>::meta_bytes(log_options);
  const std::size_t segment = index_options.bytes_max, data = ValueLog<StoppingMedia>::data_bytes(log_options);
  const auto key_of = [](std::uint64_t n) { return IndexKey{n, n * 0x9e3779b97f4a7c15ULL}; };
  for (int trial = 0; trial < trials; ++trial) {
    Memory memory(index_meta + segment + log_meta + data);
    const auto chunk = [&](unsigned, std::uint64_t) -> Result<Region> { return memory.region(index_meta, segment); };
    KvStore<StoppingMedia> store(
        std::move(*KvIndex<StoppingMedia>::format(memory.region(0, index_meta), {chunk, chunk}, index_options, media)),
        std::move(*ValueLog<StoppingMedia>::format(memory.region(index_meta + segment, log_meta),
                                                   memory.region(index_meta + segment + log_meta, data), log_options,
                                                   media)));
    std::uint64_t number = 1;
    const auto put_some = [&](std::uint64_t n) {
      for (; n > 0; --n) {
        (void)store.put(key_of(random() % kKeys), bytes_of(number++));
        if (random() % 8 == 0) (void)store.compact(1 + random() % 2, 0.95);
      }
    };
    for (std::uint64_t n = 0; n < kKeys; ++n) (void)store.put(key_of(n), bytes_of(number++));
    put_some(random() % 20);
    stop = {static_cast<long>(random() % 30), [&] { put_some(1 + random() % 20); }, left_out};
    const auto found = store.get(key_of(random() % kKeys));
    stop.loads_left = -1;
    bool right = found && is_value(found.bytes());
    put_some(random() % 20);
    right = right && is_value(found.bytes());
    stop = {};
    if (!right) return trial;
  }
  return std::nullopt;
}

TEST(SecondLooks, of_the_log_never_show_a_value_that_changes) { EXPECT_EQ(wrong_value({}, 3000), std::nullopt); }

TEST(SecondLooks, of_the_log_are_each_missed) {
  using namespace log_point;
  EXPECT_TRUE(wrong_value(kPin, 200000)) << "a reader's pin";
  EXPECT_TRUE(wrong_value(kStillInUse, 200000)) << "is the segment in use?";
  EXPECT_TRUE(wrong_value(kSameEpoch, 200000)) << "is it as old as the locator?";
  EXPECT_TRUE(wrong_value(kLookAgain, 200000)) << "a value that has moved is looked up again";
}

}  // namespace
}  // namespace dunnock
