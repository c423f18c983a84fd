// Creating a structure in a pool: it is there, or nothing is, whatever happens in the middle.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <thread>

#include "dunnock/filter/cuckoo_filter.hpp"
#include "dunnock/index/checkpoint_store.hpp"
#include "dunnock/index/prefix_store.hpp"
#include "pmem/killed_write_back.hpp"
#include "support/pool_objects.hpp"
#include "support/stepped_media.hpp"

namespace dunnock {
namespace {

/// Kills the process at a step.
struct Kill {
  static inline long left = 0;  // 0: never
  static bool take() noexcept {
    if (left > 0 && --left == 0) kill(getpid(), SIGKILL);
    return true;
  }
};
/// Only the first steps take place.
struct Drop {
  static inline long left = 0;
  static bool take() noexcept { return left-- > 0; }
};
using KillingMedia = test::SteppedMedia<ProcessMedia, Kill>;
using DroppingMedia = test::SteppedMedia<ProcessMedia, Drop>;

constexpr std::uint64_t kPoolBytes = 32 << 20;
constexpr char kName[] = "x";
const IndexKey kKey{1, 2};

// ----- the six, each with its options and something to do with it --------------------------------------------------

struct AFilter {
  template <Media M>
  using Of = CuckooFilter<12, M>;
  static FilterOptions options() { return {.slots = 1000}; }
  static FilterOptions invalid_options() { return {.slots = 0}; }
  static std::array<FilterOptions, 1> other_options() { return {FilterOptions{.slots = 2000}}; }
  template <Media M>
  static bool use(Of<M>& filter) {
    return filter.insert(std::uint64_t{7});
  }
  template <Media M>
  static bool was_used(const Of<M>& filter) {
    return filter.size() == 1 && filter.contains(std::uint64_t{7}) && filter.check().ok();
  }
};

struct AnIndex {
  template <Media M>
  using Of = KvIndex<M>;
  static IndexOptions options() { return {.bytes_max = 4 << 20, .segment_groups = 4}; }
  static IndexOptions invalid_options() { return {.segment_groups = 3}; }
  static std::array<IndexOptions, 3> other_options() {
    return {IndexOptions{.bytes_max = 4 << 20, .segment_groups = 8},
            IndexOptions{.bytes_max = 2 << 20, .segment_groups = 4},
            IndexOptions{.entries = 1000, .bytes_max = 4 << 20, .segment_groups = 4}};
  }
  template <Media M>
  static bool use(Of<M>& index) {
    return index.put(kKey, IndexValue::of(std::uint64_t{3})) == PutResult::kInserted;
  }
  template <Media M>
  static bool was_used(const Of<M>& index) {
    return index.size() == 1 && index.get(kKey).value.number() == 3 && index.check().ok();
  }
};

struct ALog {
  template <Media M>
  using Of = ValueLog<M>;
  static LogOptions options() { return {.capacity_bytes = 1 << 16, .segment_bytes = 1 << 14}; }
  static LogOptions invalid_options() { return {.capacity_bytes = 1 << 16, .segment_bytes = 1000}; }
  static std::array<LogOptions, 2> other_options() {
    return {LogOptions{.capacity_bytes = 1 << 17, .segment_bytes = 1 << 14},
            LogOptions{.capacity_bytes = 1 << 16, .segment_bytes = 1 << 13}};
  }
  template <Media M>
  static bool use(Of<M>& log) {
    return log.append(kKey, std::as_bytes(std::span("a value that does not fit elsewhere"))).has_value();
  }
  template <Media M>
  static bool was_used(const Of<M>& log) {
    return log.stats().segments_free == log.stats().segments - 1 && log.check().empty();
  }
};

struct AStore {
  template <Media M>
  using Of = KvStore<M>;
  static StoreOptions options() { return {.index = AnIndex::options(), .log = ALog::options()}; }
  static StoreOptions invalid_options() { return {.index = AnIndex::invalid_options(), .log = ALog::options()}; }
  static std::array<StoreOptions, 2> other_options() {
    return {StoreOptions{.index = AnIndex::options(), .log = ALog::other_options()[0]},
            StoreOptions{.index = AnIndex::other_options()[0], .log = ALog::options()}};
  }
  static std::span<const std::byte> value() { return std::as_bytes(std::span("twenty bytes or more of a value")); }
  template <Media M>
  static bool use(Of<M>& store) {
    return store.put(kKey, value()) == PutResult::kInserted;
  }
  template <Media M>
  static bool was_used(const Of<M>& store) {
    return store.size() == 1 && std::ranges::equal(store.get(kKey).bytes(), value()) && store.check().ok();
  }
};

struct APrefixStore {
  template <Media M>
  using Of = PrefixStore<M>;
  static PrefixOptions options() { return {.capacity_bytes = 1 << 16, .segment_bytes = 1 << 14, .blocks_max = 100}; }
  static PrefixOptions invalid_options() { return {.capacity_bytes = 1 << 16, .blocks_max = 0}; }
  static std::array<PrefixOptions, 1> other_options() {
    return {PrefixOptions{.capacity_bytes = 1 << 17, .segment_bytes = 1 << 14, .blocks_max = 100}};
  }
  template <Media M>
  static bool use(Of<M>& store) {
    return store.put({&kKey, 1}, 0, AStore::value()) == PutBlock::kStored;
  }
  template <Media M>
  static bool was_used(const Of<M>& store) {
    return store.lookup({&kKey, 1}).blocks() == 1 && store.check().ok();
  }
};

struct ACheckpointStore {
  template <Media M>
  using Of = CheckpointStore<M>;
  static CheckpointOptions options() {
    return {.capacity_bytes = 1 << 18, .chunk_bytes = 4096, .segment_bytes = 1 << 15, .checkpoints_max = 20};
  }
  static CheckpointOptions invalid_options() { return {.capacity_bytes = 1 << 18, .chunk_bytes = 1}; }
  static std::array<CheckpointOptions, 3> other_options() {
    std::array all{options(), options(), options()};
    all[0].chunk_bytes = 2048;
    all[1].checkpoints_max = 21;
    all[2].capacity_bytes *= 2;
    return all;
  }
  template <Media M>
  static bool use(Of<M>& store) {
    const std::vector<std::byte> bytes(10000, std::byte{5});
    const std::array tensors{TensorSource{{"w", Dtype::kU8, {bytes.size()}}, bytes, {}, {}}};
    return store.save("run", 1, tensors).has_value();
  }
  template <Media M>
  static bool was_used(const Of<M>& store) {
    return store.latest("run") == 1 && store.verify("run").has_value() && store.check().ok();
  }
};

/// A structure and whether open_or_create has made it just now; not all say so.
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

template <class Kind, Media M>
auto open(Pool& pool, const M& media) {
  if constexpr (std::is_same_v<Kind, APrefixStore>) {
    return PrefixStore<M>::open(pool, kName, Kind::options(), media);
  } else {
    return Kind::template Of<M>::open(pool, kName, media);
  }
}
template <class Kind, Media M>
auto open_or_create(Pool& pool, const M& media) {
  return Kind::template Of<M>::open_or_create(pool, kName, Kind::options(), media);
}
template <class Kind, Media M>
auto create(Pool& pool, const M& media) {
  return Kind::template Of<M>::create(pool, kName, Kind::options(), media);
}

std::vector<std::string> names_in(const Pool& pool) {
  std::vector<std::string> names;
  for (const RegionInfo& info : pool.regions()) names.push_back(info.name);
  return names;
}

template <class Kind>
class Creation : public testing::Test {
 protected:
  void SetUp() override {
    (void)Pool::remove(path_);
    ASSERT_TRUE(Pool::create(path_, {.bytes = kPoolBytes}));
    auto pool = Pool::open(path_);
    ASSERT_TRUE(create<Kind>(*pool, ProcessMedia()));
    names_ = names_in(*pool);
    ASSERT_TRUE(pool->remove_regions(names_));
  }
  void TearDown() override { (void)Pool::remove(path_); }

  /// Frees the regions that have names; then the pool holds nothing.
  void expect_no_leak() {
    {
      auto pool = Pool::open(path_);
      ASSERT_TRUE(pool) << pool.error().message;
      ASSERT_TRUE(pool->remove_regions(names_in(*pool)));
    }
    EXPECT_EQ(test::objects_in(path_), 0U) << "memory has leaked";
  }

  /// Runs `work` on the pool in a process of its own. Was it killed?
  template <class Work>
  bool killed(const Work& work) {
    const pid_t child = fork();
    if (child == 0) {
      auto pool = Pool::open(path_);
      if (!pool) _exit(1);
      work(*pool);
      _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    EXPECT_TRUE(WIFSIGNALED(status) || WEXITSTATUS(status) == 0);
    return WIFSIGNALED(status);
  }

  /// After a kill: opens or creates the structure, which works, and leaves the pool empty, without a leak.
  void goes_on() {
    auto pool = Pool::open(path_);
    ASSERT_TRUE(pool) << pool.error().message;
    const auto left = names_in(*pool);
    EXPECT_TRUE(left.empty() || left == names_) << "some of its regions";
    const bool was_there = !left.empty();
    EXPECT_EQ(open<Kind>(*pool, ProcessMedia()).has_value(), was_there);
    {
      auto opened = open_or_create<Kind>(*pool, ProcessMedia());
      ASSERT_TRUE(opened) << opened.error().message;
      if constexpr (requires { opened->created; }) {
        EXPECT_EQ(opened->created, !was_there);
      }
      EXPECT_TRUE(Kind::use(structure_of(*opened)));
    }
    auto again = open<Kind>(*pool, ProcessMedia());
    ASSERT_TRUE(again) << again.error().message;
    EXPECT_TRUE(Kind::was_used(structure_of(*again)));
    ASSERT_TRUE(pool->remove_regions(names_));
  }

  std::string path_ =
      (std::filesystem::temp_directory_path() / ("dunnock_creation." + std::to_string(getpid()) + ".pool")).string();
  std::vector<std::string> names_;  // of the structure's regions
};

using Kinds = testing::Types<AFilter, AnIndex, ALog, AStore, APrefixStore, ACheckpointStore>;
TYPED_TEST_SUITE(Creation, Kinds);

TYPED_TEST(Creation, killed_at_any_durable_step_leaves_the_structure_or_nothing) {
  long step = 1;
  for (;; ++step) {
    SCOPED_TRACE(step);
    const bool killed = this->killed([step](Pool& pool) {
      Kill::left = step;
      (void)open_or_create<TypeParam>(pool, KillingMedia());
    });
    this->goes_on();
    if (!killed || this->HasFatalFailure()) break;
  }
  EXPECT_GT(step, 15) << "it has more steps than that";
  this->expect_no_leak();
}

TYPED_TEST(Creation, killed_at_any_write_back_leaves_the_structure_or_nothing) {
  long step = 1;
  for (;; ++step) {
    SCOPED_TRACE(step);
    const bool killed = this->killed([step](Pool& pool) {
      const FileMedia media = pool.file_media();
      test::write_backs_left = step;
      (void)open_or_create<TypeParam>(pool, media);
      test::write_backs_left = 0;
    });
    this->goes_on();
    if (!killed || this->HasFatalFailure()) break;
  }
  EXPECT_GT(step, 15) << "it has more write-backs than that";
  this->expect_no_leak();
}

TYPED_TEST(Creation, without_room_leaves_nothing) {
  unsigned refused = 0;
  {
    auto pool = Pool::open(this->path_);
    ASSERT_TRUE(pool);
    std::vector<std::string> fillers;
    for (bool room = true; room;) {
      fillers.push_back("filler" + std::to_string(fillers.size()));
      room = pool->create_regions(std::array{RegionSpec{fillers.back(), 64}}).has_value();  // They take half a MiB.
    }
    fillers.pop_back();
    for (bool made = false; !made;) {
      SCOPED_TRACE(fillers.size());
      const auto structure = create<TypeParam>(*pool, ProcessMedia());
      made = structure.has_value();
      if (made) break;
      ++refused;
      ASSERT_EQ(structure.error().code, ErrorCode::kNoSpace) << structure.error().message;
      EXPECT_EQ(names_in(*pool).size(), fillers.size());
      ASSERT_FALSE(fillers.empty());
      ASSERT_TRUE(pool->remove_region(fillers.back()));
      fillers.pop_back();
    }
    EXPECT_EQ(names_in(*pool).size(), fillers.size() + this->names_.size());
  }
  EXPECT_GE(refused, 2U);
  this->expect_no_leak();
}

TYPED_TEST(Creation, is_refused_where_the_structure_is_and_leaves_it_alone) {
  auto pool = Pool::open(this->path_);
  auto made = create<TypeParam>(*pool, ProcessMedia());
  ASSERT_TRUE(made) << made.error().message;
  ASSERT_TRUE(TypeParam::use(*made));
  const auto again = create<TypeParam>(*pool, ProcessMedia());
  ASSERT_FALSE(again);
  EXPECT_EQ(again.error().code, ErrorCode::kAlreadyExists) << again.error().message;
  EXPECT_EQ(names_in(*pool), this->names_);
  auto opened = open_or_create<TypeParam>(*pool, ProcessMedia());
  ASSERT_TRUE(opened) << opened.error().message;
  EXPECT_TRUE(TypeParam::was_used(structure_of(*opened)));
}

TYPED_TEST(Creation, with_other_options_is_refused_by_open_or_create) {
  auto pool = Pool::open(this->path_);
  {
    auto made = create<TypeParam>(*pool, ProcessMedia());
    ASSERT_TRUE(made);
    ASSERT_TRUE(TypeParam::use(*made));
  }
  using Structure = typename TypeParam::template Of<ProcessMedia>;
  for (const auto& other : TypeParam::other_options()) {
    const auto refused = Structure::open_or_create(*pool, kName, other, ProcessMedia());
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, ErrorCode::kWrongLayout) << refused.error().message;
    EXPECT_NE(refused.error().message.find("'x"), std::string::npos) << refused.error().message;
  }
  auto opened = open_or_create<TypeParam>(*pool, ProcessMedia());
  ASSERT_TRUE(opened) << opened.error().message;
  EXPECT_TRUE(TypeParam::was_used(structure_of(*opened)));
}

TYPED_TEST(Creation, by_many_threads_at_once_makes_one_structure) {
  auto pool = Pool::open(this->path_);
  for (int round = 0; round < 10; ++round) {
    std::atomic<int> failed{0};
    std::atomic<int> created{0};
    std::atomic<bool> go{false};
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&] {
        while (!go) std::this_thread::yield();
        auto opened = open_or_create<TypeParam>(*pool, ProcessMedia());
        if (!opened) ++failed;
        if constexpr (requires { opened->created; }) {
          if (opened && opened->created) ++created;
        } else {
          created = 1;
        }
      });
    }
    go = true;
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(failed, 0);
    EXPECT_EQ(created, 1);
    EXPECT_EQ(names_in(*pool), this->names_);
    ASSERT_TRUE(pool->remove_regions(this->names_));
  }
}

// ----- with a pool of its own ---------------------------------------------------------------------------------------

template <class Kind, Media M>
auto open_or_create_file(const std::string& path, const auto& options) {
  return Kind::template Of<M>::open_or_create(path, kName, options);
}

TYPED_TEST(Creation, by_path_makes_the_file_and_then_opens_it) {
  ASSERT_TRUE(Pool::remove(this->path_));
  for (const bool first : {true, false}) {
    auto opened = open_or_create_file<TypeParam, FileMedia>(this->path_, TypeParam::options());
    ASSERT_TRUE(opened) << opened.error().message;
    if constexpr (requires { opened->opened().created; }) {
      EXPECT_EQ(opened->opened().created, first);
      EXPECT_TRUE(opened->opened().report.clean_shutdown);
    }
    if (first) {
      EXPECT_TRUE(TypeParam::use(**opened));
    }
    EXPECT_TRUE(TypeParam::was_used(**opened));
    const auto second = open_or_create_file<TypeParam, FileMedia>(this->path_, TypeParam::options());
    ASSERT_FALSE(second) << "the pool is open";
    EXPECT_EQ(second.error().code, ErrorCode::kAlreadyOpen) << second.error().message;
    EXPECT_EQ(names_in(opened->pool()), this->names_);
    EXPECT_TRUE(opened->close());
  }
}

TYPED_TEST(Creation, by_path_also_in_a_pool_that_has_none) {
  auto opened = open_or_create_file<TypeParam, ProcessMedia>(this->path_, TypeParam::options());
  ASSERT_TRUE(opened) << opened.error().message;
  EXPECT_EQ(opened->pool().bytes(), kPoolBytes);
  EXPECT_TRUE(TypeParam::use(**opened));
}

TYPED_TEST(Creation, by_path_killed_at_any_durable_step_leaves_no_file_or_the_structure) {
  ASSERT_TRUE(Pool::remove(this->path_));
  long step = 1;
  for (bool killed = true; killed && !this->HasFatalFailure(); ++step) {
    SCOPED_TRACE(step);
    const pid_t child = fork();
    if (child == 0) {
      Kill::left = step;
      _exit(open_or_create_file<TypeParam, KillingMedia>(this->path_, TypeParam::options()) ? 0 : 1);
    }
    int status = 0;
    waitpid(child, &status, 0);
    killed = WIFSIGNALED(status);
    EXPECT_TRUE(killed || WEXITSTATUS(status) == 0);
    if (std::filesystem::exists(this->path_)) {
      auto pool = Pool::open(this->path_);
      ASSERT_TRUE(pool) << pool.error().message;
      EXPECT_EQ(names_in(*pool), this->names_);
    } else {
      EXPECT_TRUE(killed);
    }
    auto opened = open_or_create_file<TypeParam, ProcessMedia>(this->path_, TypeParam::options());
    ASSERT_TRUE(opened) << opened.error().message;
    EXPECT_TRUE(TypeParam::use(**opened));
    EXPECT_TRUE(TypeParam::was_used(**opened));
    ASSERT_TRUE(opened->close());
    ASSERT_TRUE(Pool::remove(this->path_));
  }
  EXPECT_GT(step, 15) << "it has more steps than that";
}

TYPED_TEST(Creation, by_path_is_refused_with_other_options_and_without_room) {
  {
    auto made = open_or_create_file<TypeParam, FileMedia>(this->path_, TypeParam::options());
    ASSERT_TRUE(made);
    ASSERT_TRUE(TypeParam::use(**made));
  }
  for (const auto& other : TypeParam::other_options()) {
    const auto refused = open_or_create_file<TypeParam, FileMedia>(this->path_, other);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, ErrorCode::kWrongLayout) << refused.error().message;
    EXPECT_NE(refused.error().message.find(this->path_), std::string::npos) << refused.error().message;
  }
  {
    auto pool = Pool::open(this->path_);
    ASSERT_TRUE(pool->remove_regions(this->names_));
    std::uint64_t bytes = kPoolBytes;  // Fills the pool, from large to small.
    for (int n = 0; bytes >= 4096;) {
      const std::string name = "filler" + std::to_string(n);
      if (pool->create_regions(std::array{RegionSpec{name, bytes}})) {
        ++n;
      } else {
        bytes /= 2;
      }
    }
  }
  const auto refused = open_or_create_file<TypeParam, FileMedia>(this->path_, TypeParam::options());
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kNoSpace) << refused.error().message;
}

TYPED_TEST(Creation, by_path_with_invalid_options_makes_no_file) {
  ASSERT_TRUE(Pool::remove(this->path_));
  const auto refused = open_or_create_file<TypeParam, FileMedia>(this->path_, TypeParam::invalid_options());
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kInvalidArgument) << refused.error().message;
  EXPECT_FALSE(std::filesystem::exists(this->path_));
}

using IndexFile = Creation<AnIndex>;

TEST_F(IndexFile, of_an_unbounded_index_has_room_for_the_entries_asked_for) {
  for (const std::uint64_t entries : {0ULL, 300'000ULL}) {
    SCOPED_TRACE(entries);
    ASSERT_TRUE(Pool::remove(path_));
    auto index = KvIndex<ProcessMedia>::open_or_create(path_, kName, {.entries = entries});
    ASSERT_TRUE(index) << index.error().message;
    std::uint64_t n = 0;
    while (n <= entries && (*index)->put({n, ~n}, IndexValue::of(n)) == PutResult::kInserted) ++n;
    EXPECT_EQ(n, entries + 1);
  }
}

// ----- what creations of pool format version 2 and before have left -------------------------------------------------

// They named the regions first and formatted them afterwards.

/// Creates named regions without formatting them.
std::vector<Region> named(Pool& pool, std::span<const RegionSpec> specs) {
  auto regions = pool.create_regions(specs);
  EXPECT_TRUE(regions) << regions.error().message;
  return *regions;
}

void format_old(Pool& pool, const std::string& name, const FilterOptions& options) {
  using F = CuckooFilter<12, DroppingMedia>;
  const std::string meta = name + ".meta", table = name + ".table";
  const auto regions =
      named(pool, std::array{RegionSpec{meta, F::meta_bytes()}, RegionSpec{table, F::table_bytes(options.slots)}});
  (void)F::format(regions[0], regions[1], options, {});
}

void format_old(Pool& pool, const std::string& name, const LogOptions& options) {
  using Log = ValueLog<DroppingMedia>;
  const std::string meta = name + ".logmeta", data = name + ".log";
  const auto regions =
      named(pool, std::array{RegionSpec{meta, Log::meta_bytes(options)}, RegionSpec{data, Log::data_bytes(options)}});
  (void)Log::format(regions[0], regions[1], options, {});
}

void format_old(Pool& pool, const std::string& name, const IndexOptions& options) {
  using Index = KvIndex<DroppingMedia>;
  const std::string meta = name + ".meta";
  const auto obtain = [&](unsigned chunk, std::uint64_t bytes) -> Result<Region> {
    const std::string region = name + ".s" + std::to_string(chunk);
    return named(pool, std::array{RegionSpec{region, bytes}}).front();
  };
  const auto regions = named(pool, std::array{RegionSpec{meta, Index::meta_bytes(options)}});
  if (Drop::left > 0) (void)Index::format(regions[0], {obtain, obtain}, options, {});
}

void format_old(Pool& pool, const std::string& name, const StoreOptions& options) {
  format_old(pool, name, options.log);
  if (Drop::left > 0) format_old(pool, name, options.index);
}

void format_old(Pool& pool, const std::string& name, const PrefixOptions& options) {
  format_old(pool, name, PrefixStore<DroppingMedia>::store_options(options));
}

void format_old(Pool& pool, const std::string& name, const CheckpointOptions& options) {
  using Store = CheckpointStore<DroppingMedia>;
  const std::string catalog = name + ".catalog";
  const auto regions = named(pool, std::array{RegionSpec{catalog, Store::catalog_bytes(options)}});
  if (Drop::left > 0) format_old(pool, name + ".data", Store::store_options(options));
  if (Drop::left <= 0) return;
  auto data = KvStore<DroppingMedia>::open(pool, name + ".data", {});
  ASSERT_TRUE(data) << data.error().message;
  (void)Store::format(regions.front(), std::move(data->store), options, {}, name);
}

TYPED_TEST(Creation, goes_on_where_one_of_an_older_format_was_interrupted) {
  long steps = 0;
  for (bool whole = false; !whole; ++steps) {
    SCOPED_TRACE(steps);
    {
      auto pool = Pool::open(this->path_);
      Drop::left = steps;
      format_old(*pool, kName, TypeParam::options());
      whole = Drop::left > 0;
      ASSERT_FALSE(names_in(*pool).empty());
      const auto opened = open<TypeParam>(*pool, ProcessMedia());
      if (!opened) {
        EXPECT_EQ(opened.error().code, ErrorCode::kNotFound) << opened.error().message;
        EXPECT_TRUE(create<TypeParam>(*pool, ProcessMedia()));
      }
      ASSERT_TRUE(pool->remove_regions(names_in(*pool)));
      Drop::left = steps;
      format_old(*pool, kName, TypeParam::options());
    }
    auto pool = Pool::open(this->path_);
    const bool was_there = open<TypeParam>(*pool, ProcessMedia()).has_value();
    auto opened = open_or_create<TypeParam>(*pool, ProcessMedia());
    ASSERT_TRUE(opened) << opened.error().message;
    if constexpr (requires { opened->created; }) {
      EXPECT_EQ(opened->created, !was_there);
    }
    EXPECT_TRUE(TypeParam::use(structure_of(*opened)));
    EXPECT_TRUE(TypeParam::was_used(structure_of(*opened)));
    ASSERT_TRUE(pool->remove_regions(names_in(*pool)));
  }
  EXPECT_GT(steps, 15);
  this->expect_no_leak();
}

TYPED_TEST(Creation, takes_no_data_for_what_an_interrupted_one_has_left) {
  auto pool = Pool::open(this->path_);
  {
    auto made = create<TypeParam>(*pool, ProcessMedia());
    ASSERT_TRUE(made);
    ASSERT_TRUE(TypeParam::use(*made));
  }
  // The magic words of all headers are lost, and only that of one.
  std::vector<std::string> headers;
  for (const std::string& name : this->names_) {
    if (name.ends_with("meta") || name.ends_with(".catalog")) headers.push_back(name);
  }
  ASSERT_FALSE(headers.empty());
  for (std::size_t lost = 0; lost <= headers.size(); ++lost) {
    std::vector<std::uint64_t> magics;
    for (std::size_t i = 0; i < headers.size(); ++i) {
      auto* magic = reinterpret_cast<std::uint64_t*>(pool->open_region(headers[i])->at(0));
      magics.push_back(*magic);
      if (i == lost || lost == headers.size()) *magic = 0;
    }
    const auto opened = open_or_create<TypeParam>(*pool, ProcessMedia());
    ASSERT_FALSE(opened) << lost;
    EXPECT_TRUE(opened.error().code == ErrorCode::kWrongLayout || opened.error().code == ErrorCode::kAlreadyExists)
        << opened.error().message;
    EXPECT_EQ(create<TypeParam>(*pool, ProcessMedia()).error().code, ErrorCode::kAlreadyExists);
    ASSERT_EQ(names_in(*pool), this->names_);
    for (std::size_t i = 0; i < headers.size(); ++i)
      *reinterpret_cast<std::uint64_t*>(pool->open_region(headers[i])->at(0)) = magics[i];
  }
  auto again = open<TypeParam>(*pool, ProcessMedia());
  ASSERT_TRUE(again) << again.error().message;
  EXPECT_TRUE(TypeParam::was_used(structure_of(*again)));
}

// ----- growth ------------------------------------------------------------------------------------------------------

using IndexGrowth = Creation<AnIndex>;

TEST_F(IndexGrowth, killed_at_any_step_leaves_nothing_in_the_way) {
  constexpr std::uint64_t kEntries = 30'000;
  {
    auto pool = Pool::open(path_);
    ASSERT_TRUE(create<AnIndex>(*pool, ProcessMedia()));
  }
  const auto fill = [](auto& index) {
    std::uint64_t n = 0;
    while (n < kEntries && index.put({n, ~n}, IndexValue::of(n)) != PutResult::kFull) ++n;
    return n;
  };
  unsigned kills = 0;
  for (long step = 1;; ++step) {  // From one process to the next it is fuller, and grows elsewhere.
    SCOPED_TRACE(step);
    const bool was_killed = killed([&](Pool& pool) {
      auto opened = KvIndex<KillingMedia>::open(pool, kName, {});
      if (!opened) _exit(1);
      test::write_backs_left = step;  // Of libpmemobj, which makes chunks.
      Kill::left = 12'000 * step;
      fill(opened->index);
      test::write_backs_left = Kill::left = 0;
    });
    auto pool = Pool::open(path_);
    auto opened = KvIndex<ProcessMedia>::open(*pool, kName, {});
    ASSERT_TRUE(opened) << opened.error().message;
    EXPECT_TRUE(opened->index.check().ok());
    if (!was_killed) {
      EXPECT_EQ(fill(opened->index), kEntries);
      EXPECT_EQ(opened->index.size(), kEntries);
      break;
    }
    ++kills;
  }
  EXPECT_GT(kills, 5U);
  auto pool = Pool::open(path_);
  std::uint64_t chunks = 0;
  for (const std::string& name : names_in(*pool)) chunks += name.starts_with("x.s") ? 1 : 0;
  EXPECT_EQ(names_in(*pool).size(), chunks + 1) << "nothing else";
  EXPECT_GE(chunks, 3U);
  pool = make_error(ErrorCode::kNotFound, "");  // Closes it.
  expect_no_leak();
}

TEST_F(IndexGrowth, takes_no_region_of_another_size_for_its_chunk) {
  auto pool = Pool::open(path_);
  auto index = create<AnIndex>(*pool, ProcessMedia());
  ASSERT_TRUE(index);
  const auto theirs = named(*pool, std::array{RegionSpec{"x.s1", 3 << 20}});
  std::memset(theirs.front().at(0), 5, 3 << 20);
  std::uint64_t n = 0;
  while (index->put({n, ~n}, IndexValue::of(n)) != PutResult::kFull) ++n;
  EXPECT_EQ(index->size(), n);
  for (std::uint64_t at = 0; at < 3 << 20; at += 64) ASSERT_EQ(*theirs.front().at(at), std::byte{5});
}

}  // namespace
}  // namespace dunnock
