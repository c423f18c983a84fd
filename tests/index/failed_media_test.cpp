// After the medium has failed, at whichever fence, nothing is acknowledged any more, no answer rests on what may be
// lost, and what was acknowledged before is there when the structure is opened again.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <map>

#include "dunnock/filter/cuckoo_filter.hpp"
#include "dunnock/index/checkpoint_store.hpp"
#include "dunnock/index/prefix_store.hpp"
#include "support/failing_media.hpp"

namespace dunnock {
namespace {

template <class T>
bool is_io(const Result<T>& answer) {
  return !answer && answer.error().code == ErrorCode::kIo;
}

using test::FailingMedia;
using test::FailingStorage;

constexpr char kName[] = "x";
constexpr std::uint64_t kKeys = 60;

IndexKey key_of(std::uint64_t n) { return {n * 0x9e3779b97f4a7c15ULL, ~n}; }
std::vector<std::byte> bytes_of(std::uint64_t n) { return std::vector<std::byte>(40 + n % 7, std::byte(n)); }

// Of each structure: put(n) and erase(n), true: acknowledged; after the failure refuses(n): what it says of a key then;
// after recovery has(n) and lacks(n), where that can be told.

struct AFilter {
  template <Media M>
  using Of = CuckooFilter<12, M>;
  static FilterOptions options() { return {.slots = 80, .seed = HashSeed::from(1)}; }  // It spills, overflows, kicks.
  template <Media M>
  static bool put(Of<M>& filter, std::uint64_t n) {
    if (n % 5 != 0) return filter.insert(n);
    const std::array keys{n, n + 1000};
    std::array<std::uint8_t, 2> inserted{};
    return filter.insert_bulk(keys, inserted.data()) == 2 && inserted[0] == 1;
  }
  template <Media M>
  static bool erase(Of<M>& filter, std::uint64_t n) {
    if (n % 5 != 0) return filter.erase(n);
    const std::array keys{n, n + 1000};
    std::array<std::uint8_t, 2> erased{};
    return filter.erase_bulk(keys, erased.data()) == 2 && erased[0] == 1;
  }
  template <Media M>
  static bool refuses(Of<M>& filter, std::uint64_t n) {
    std::uint8_t found = 0;
    return filter.contains(n) && filter.contains_bulk(std::span(&n, 1), &found) == 1 && found == 1;
  }
  template <Media M>
  static bool has(Of<M>& filter, std::uint64_t n) {
    return filter.contains(n);
  }
  template <Media M>
  static bool lacks(Of<M>&, std::uint64_t) {
    return true;
  }
  template <Media M>
  static bool sound(Of<M>& filter) {
    return filter.check().ok();
  }
};

struct AnIndex {
  template <Media M>
  using Of = KvIndex<M>;
  static IndexOptions options() { return {.bytes_max = 4 << 20, .segment_groups = 2, .seed = HashSeed::from(1)}; }
  template <Media M>
  static bool put(Of<M>& index, std::uint64_t n) {
    if (n % 5 == 0) {
      const std::array entries{typename Of<M>::Entry{key_of(n), IndexValue::of(n)},
                               typename Of<M>::Entry{key_of(n + 1000), IndexValue::of(n)}};
      std::array<PutResult, 2> results{};
      (void)index.put_bulk(entries, results.data());
      EXPECT_EQ(results[0] == PutResult::kIo, !index.status().has_value());
      return results[0] == PutResult::kInserted && results[1] == PutResult::kInserted;
    }
    const PutResult result = index.put(key_of(n), IndexValue::of(n + 1));
    EXPECT_EQ(result == PutResult::kIo, !index.status().has_value());
    if (result != PutResult::kInserted) return false;
    return index.replace_if(key_of(n), IndexValue::of(n + 1), IndexValue::of(n));
  }
  template <Media M>
  static bool erase(Of<M>& index, std::uint64_t n) {
    if (n % 3 == 0) return index.erase_if(key_of(n), IndexValue::of(n));
    const IndexKey key = key_of(n);
    return n % 3 == 1 ? index.erase(key) : index.erase_bulk(std::span(&key, 1)) == 1;
  }
  template <Media M>
  static bool refuses(Of<M>& index, std::uint64_t n) {
    return index.get(key_of(n)).state == GetState::kIo && index.may_contain(key_of(n));
  }
  template <Media M>
  static bool has(Of<M>& index, std::uint64_t n) {
    const GetResult found = index.get(key_of(n));
    return found && found.value.number() == n;
  }
  template <Media M>
  static bool lacks(Of<M>& index, std::uint64_t n) {
    return index.get(key_of(n)).state == GetState::kMissing;
  }
  template <Media M>
  static bool sound(Of<M>& index) {
    return index.check().ok();
  }
};

struct AStore {
  template <Media M>
  using Of = KvStore<M>;
  static StoreOptions options() {
    return {.index = AnIndex::options(), .log = {.capacity_bytes = 1 << 13, .segment_bytes = 1 << 11}};  // It compacts.
  }
  template <Media M>
  static bool put(Of<M>& store, std::uint64_t n) {
    const auto bytes = bytes_of(n);
    if (n % 5 == 0) {
      const typename Of<M>::Item item{key_of(n), bytes, {}};
      return store.put_bulk(std::span(&item, 1));
    }
    const PutResult result = store.put(key_of(n), bytes);
    EXPECT_EQ(result == PutResult::kIo, !store.status().has_value());
    return result == PutResult::kInserted;
  }
  template <Media M>
  static bool erase(Of<M>& store, std::uint64_t n) {
    const IndexKey key = key_of(n);
    return n % 2 == 0 ? store.erase(key) : store.erase_bulk(std::span(&key, 1)) == 1;
  }
  template <Media M>
  static bool refuses(Of<M>& store, std::uint64_t n) {
    return store.get(key_of(n)).state == GetState::kIo;
  }
  template <Media M>
  static bool has(Of<M>& store, std::uint64_t n) {
    return std::ranges::equal(store.get(key_of(n)).bytes(), bytes_of(n));
  }
  template <Media M>
  static bool lacks(Of<M>& store, std::uint64_t n) {
    return store.get(key_of(n)).state == GetState::kMissing;
  }
  template <Media M>
  static bool sound(Of<M>& store) {
    return store.check().ok();
  }
};

struct ALog {
  template <Media M>
  using Of = ValueLog<M>;
  static inline std::map<std::uint64_t, Locator> locators;  // of what was acknowledged
  static LogOptions options() { return {.capacity_bytes = 1 << 13, .segment_bytes = 1 << 11}; }
  template <Media M>
  static bool put(Of<M>& log, std::uint64_t n) {
    const auto ticket = log.append(key_of(n), bytes_of(n));
    if (ticket) locators[n] = ticket->locator;
    return ticket.has_value();
  }
  template <Media M>
  static bool erase(Of<M>&, std::uint64_t) {
    return false;  // Its owner does.
  }
  template <Media M>
  static bool refuses(Of<M>& log, std::uint64_t n) {
    std::array<std::byte, 4> first{};
    return !locators.contains(n) || (log.view(locators[n], key_of(n)).state == ReadState::kIo &&
                                     !log.peek(locators[n], key_of(n), first) && !log.fence());
  }
  template <Media M>
  static bool has(Of<M>& log, std::uint64_t n) {
    return std::ranges::equal(log.view(locators[n], key_of(n)).bytes, bytes_of(n));
  }
  template <Media M>
  static bool lacks(Of<M>&, std::uint64_t) {
    return true;
  }
  template <Media M>
  static bool sound(Of<M>& log) {
    return log.check().empty();
  }
};

struct APrefixStore {
  template <Media M>
  using Of = PrefixStore<M>;
  static PrefixOptions options() {
    return {.capacity_bytes = 1 << 14, .segment_bytes = 1 << 11, .blocks_max = 40, .seed = HashSeed::from(1)};
  }
  template <Media M>
  static bool put(Of<M>& store, std::uint64_t n) {
    const IndexKey key = key_of(n);
    const PutBlock result = store.put({&key, 1}, 0, bytes_of(n));  // It evicts the oldest.
    EXPECT_EQ(result == PutBlock::kIo, !store.status().has_value());
    return result == PutBlock::kStored;
  }
  template <Media M>
  static bool erase(Of<M>&, std::uint64_t) {
    return false;
  }
  template <Media M>
  static bool refuses(Of<M>& store, std::uint64_t n) {
    const IndexKey key = key_of(n);
    return store.lookup({&key, 1}).blocks() == 0 && store.get(key).state == GetState::kIo;
  }
  template <Media M>
  static bool has(Of<M>& store, std::uint64_t n) {
    const auto block = store.get(key_of(n));  // It may have been evicted.
    return block.state == GetState::kMissing || std::ranges::equal(block.bytes, bytes_of(n));
  }
  template <Media M>
  static bool lacks(Of<M>&, std::uint64_t) {
    return true;
  }
  template <Media M>
  static bool sound(Of<M>& store) {
    return store.check().ok();
  }
};

struct ACheckpointStore {
  template <Media M>
  using Of = CheckpointStore<M>;
  static CheckpointOptions options() {
    return {.capacity_bytes = 1 << 16, .chunk_bytes = 512, .segment_bytes = 1 << 13, .checkpoints_max = 8};
  }
  static std::vector<std::byte> state_of(std::uint64_t n) {
    std::vector<std::byte> bytes(2000, std::byte{1});
    std::fill_n(bytes.begin() + static_cast<std::ptrdiff_t>(n % 4 * 500), 100, std::byte(n));
    return bytes;
  }
  template <Media M>
  static bool put(Of<M>& store, std::uint64_t n) {
    const auto bytes = state_of(n);
    const std::array tensors{TensorSource{{"w", Dtype::kU8, {bytes.size()}}, bytes, {}, {}}};
    const auto saved = store.save("run", n, tensors);
    EXPECT_EQ(saved.has_value() || saved.error().code != ErrorCode::kIo, store.status().has_value());
    return saved.has_value();
  }
  template <Media M>
  static bool erase(Of<M>& store, std::uint64_t n) {
    return store.remove("run", n).has_value();
  }
  template <Media M>
  static bool refuses(Of<M>& store, std::uint64_t n) {
    std::vector<std::byte> bytes(2000);
    const std::array sinks{TensorSink{{"w", Dtype::kU8, {bytes.size()}}, bytes, {}}};
    return store.restore("run", n, sinks).error().code == ErrorCode::kIo &&
           store.manifest("run", n).error().code == ErrorCode::kIo &&
           store.verify("run", n).error().code == ErrorCode::kIo && is_io(store.latest("run")) &&
           is_io(store.collect()) && is_io(store.retain("run", {.keep_last = 1, .keep_every = 0}));
  }
  template <Media M>
  static bool has(Of<M>& store, std::uint64_t n) {
    std::vector<std::byte> bytes(2000);
    const std::array sinks{TensorSink{{"w", Dtype::kU8, {bytes.size()}}, bytes, {}}};
    return store.restore("run", n, sinks) && bytes == state_of(n);
  }
  template <Media M>
  static bool lacks(Of<M>& store, std::uint64_t n) {
    return store.manifest("run", n).error().code == ErrorCode::kNotFound;
  }
  template <Media M>
  static bool sound(Of<M>& store) {
    return store.check().ok();
  }
};

template <class Structure>
auto& structure_of(Structure& structure) {
  if constexpr (requires { structure.filter; }) {
    return structure.filter;
  } else if constexpr (requires {
                         structure.index;
                         structure.created;
                       }) {
    return structure.index;
  } else if constexpr (requires { structure.store; }) {
    return structure.store;
  } else {
    return structure;
  }
}

/// What is known of a key: nothing when the operation on it was under way.
enum class Known : std::uint8_t { kNothing, kThere, kGone };

template <class Kind>
class FailedMedia : public testing::Test {
 protected:
  void SetUp() override {
    (void)Pool::remove(path_);
    pool_.emplace(std::move(*Pool::create(path_, {.bytes = 32 << 20})));
  }
  void TearDown() override {
    pool_.reset();
    (void)Pool::remove(path_);
  }

  /// Puts all keys, and erases each fourth some time later. Returns what was acknowledged.
  std::map<std::uint64_t, Known> work(typename Kind::template Of<FailingMedia>& structure) {
    std::map<std::uint64_t, Known> known;
    const auto acknowledged = [&](bool done, std::uint64_t n, Known what) {
      EXPECT_FALSE(done && storage_.failed) << "acknowledged after the failure: " << n;
      known[n] = done ? what : storage_.failed ? Known::kNothing : known[n];
    };
    for (std::uint64_t n = 0; n < kKeys; ++n) {
      if (!storage_.failed || n % 10 == 0) acknowledged(Kind::put(structure, n), n, Known::kThere);
      if (n >= 3 && n % 4 == 3 && !storage_.failed) acknowledged(Kind::erase(structure, n - 3), n - 3, Known::kGone);
    }
    return known;
  }

  /// Lets memory be what was durable when the medium failed, and the rest zero.
  void crash() {
    for (const RegionInfo& info : pool_->regions()) {
      const Region region = *pool_->open_region(info.name);
      for (std::uint64_t at = 0; at < region.bytes(); at += kLineBytes) std::memset(region.at(at), 0, kLineBytes);
    }
    for (const auto& [line, bytes] : storage_.durable) std::memcpy(line, bytes.data(), kLineBytes);
  }

  std::string path_ =
      (std::filesystem::temp_directory_path() / ("dunnock_failed." + std::to_string(getpid()) + ".pool")).string();
  std::optional<Pool> pool_;
  FailingStorage storage_;
};

using Kinds = testing::Types<AFilter, AnIndex, ALog, AStore, APrefixStore, ACheckpointStore>;
TYPED_TEST_SUITE(FailedMedia, Kinds);

TYPED_TEST(FailedMedia, acknowledges_nothing_more_and_what_it_acknowledged_is_there) {
  using Structure = typename TypeParam::template Of<FailingMedia>;
  using Recovered = typename TypeParam::template Of<ProcessMedia>;
  long fences = 0;  // until the failure
  for (bool failed = true; failed; ++fences) {
    SCOPED_TRACE(fences);
    this->storage_ = {};
    this->storage_.fences_left = fences;
    {
      auto made = Structure::create(*this->pool_, kName, TypeParam::options(), FailingMedia(this->storage_));
      failed = this->storage_.failed;
      if (!made) {
        ASSERT_TRUE(failed) << made.error().message;
        EXPECT_EQ(made.error().code, ErrorCode::kIo) << made.error().message;
        EXPECT_TRUE(this->pool_->regions().empty());
        continue;
      }
      ASSERT_FALSE(failed) << "created though the medium failed";
      const auto known = this->work(*made);
      failed = this->storage_.failed;
      EXPECT_EQ(made->status().has_value(), !failed);
      if (failed) {
        EXPECT_EQ(made->status().error().code, ErrorCode::kIo);
        for (std::uint64_t n = 0; n < kKeys + 5; n += 7) EXPECT_TRUE(TypeParam::refuses(*made, n)) << n;
        EXPECT_FALSE(TypeParam::put(*made, 500));
        EXPECT_FALSE(TypeParam::erase(*made, 1));
        this->crash();
      }
      const auto opened = [&] {
        if constexpr (std::is_same_v<TypeParam, APrefixStore>) {
          return Recovered::open(*this->pool_, kName, TypeParam::options(), ProcessMedia());
        } else {
          return Recovered::open(*this->pool_, kName, ProcessMedia());
        }
      };
      auto again = opened();
      ASSERT_TRUE(again) << again.error().message;
      auto& recovered = structure_of(*again);
      EXPECT_TRUE(TypeParam::sound(recovered));
      for (const auto& [n, what] : known) {
        if (what == Known::kThere) {
          EXPECT_TRUE(TypeParam::has(recovered, n)) << n;
        }
        if (what == Known::kGone) {
          EXPECT_TRUE(TypeParam::lacks(recovered, n)) << n;
        }
      }
    }
    std::vector<std::string> names;
    for (const RegionInfo& info : this->pool_->regions()) names.push_back(info.name);
    ASSERT_TRUE(this->pool_->remove_regions(names));
    if (this->HasFailure()) break;
  }
  EXPECT_GT(fences, 40);
}

}  // namespace
}  // namespace dunnock
