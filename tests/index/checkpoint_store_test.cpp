// CheckpointStore: what is saved comes back, only what changed is written, space is given back, and errors say what.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "dunnock/index/checkpoint_store.hpp"
#include "support/seed.hpp"

namespace dunnock {
namespace {

using Store = CheckpointStore<ProcessMedia>;

/// Tensors of odd sizes, with their bytes.
struct Model {
  std::vector<TensorSpec> specs;
  std::vector<std::vector<std::byte>> bytes;

  void add(std::string name, Dtype dtype, std::vector<std::uint64_t> shape, std::uint64_t seed) {
    specs.push_back({std::move(name), dtype, std::move(shape)});
    bytes.emplace_back(*specs.back().bytes());
    std::mt19937_64 random(seed);
    for (std::byte& one : bytes.back()) one = static_cast<std::byte>(random());
  }
  [[nodiscard]] std::vector<TensorSource> sources() const {
    std::vector<TensorSource> all;
    for (std::size_t i = 0; i < specs.size(); ++i) all.push_back({specs[i], bytes[i], {}});
    return all;
  }
  [[nodiscard]] std::uint64_t total() const {
    std::uint64_t total = 0;
    for (const auto& one : bytes) total += one.size();
    return total;
  }
};
Model small_model(std::uint64_t seed) {
  Model model;
  model.add("embedding", Dtype::kF32, {123, 77}, seed);
  model.add("block.0.weight", Dtype::kBF16, {64, 129}, seed + 1);
  model.add("block.0.bias", Dtype::kF32, {3}, seed + 2);
  model.add("step", Dtype::kI64, {}, seed + 3);
  model.add("empty", Dtype::kU8, {0, 5}, seed + 4);
  return model;
}
/// Restores all tensors and compares them.
::testing::AssertionResult holds(const Store& store, std::string_view name, std::uint64_t version, const Model& model,
                                 unsigned threads = 1) {
  std::vector<std::vector<std::byte>> bytes;
  std::vector<TensorSink> sinks;
  for (const TensorSpec& spec : model.specs) bytes.emplace_back(*spec.bytes(), std::byte{0xee});
  for (std::size_t i = 0; i < model.specs.size(); ++i) sinks.push_back({model.specs[i], bytes[i], {}});
  const auto restored = store.restore(name, version, sinks, threads);
  if (!restored) return ::testing::AssertionFailure() << restored.error().message;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    if (bytes[i] != model.bytes[i]) return ::testing::AssertionFailure() << model.specs[i].name << " differs";
  }
  return ::testing::AssertionSuccess();
}

struct TemporaryFile {
  TemporaryFile() = default;
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  ~TemporaryFile() { (void)Pool::remove(path()); }
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_ =
      (std::filesystem::temp_directory_path() / ("dunnock_creation_" + std::to_string(getpid()))).string();
};

class CheckpointStoreTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::remove(path_);
    pool_.emplace(std::move(*Pool::create(path_, {.bytes = 96 << 20})));
    store_.emplace(std::move(*Store::create(*pool_, "c", options_, {})));
  }
  void TearDown() override {
    store_.reset();
    pool_.reset();
    std::filesystem::remove(path_);
  }
  void reopen() {
    store_.reset();
    pool_.reset();
    pool_.emplace(std::move(*Pool::open(path_)));
    auto opened = Store::open(*pool_, "c", {});
    ASSERT_TRUE(opened) << opened.error().message;
    store_.emplace(std::move(*opened));
  }
  std::string path_ =
      (std::filesystem::temp_directory_path() / ("checkpoint_store_test." + std::to_string(getpid()))).string();
  CheckpointOptions options_{.capacity_bytes = 4 << 20,
                             .chunk_bytes = 4096,
                             .segment_bytes = 1 << 16,
                             .checkpoints_max = 64,
                             .index_segment_groups = 4};
  std::optional<Pool> pool_;
  std::optional<Store> store_;
};

TEST_F(CheckpointStoreTest, brings_back_what_was_saved_also_after_reopening) {
  const Model first = small_model(1);
  Model second = small_model(1);
  second.bytes[1][77] ^= std::byte{1};
  ASSERT_TRUE(store_->save("run", 1, first.sources(), {.notes = {{"step", "1"}}}));
  ASSERT_TRUE(store_->save("run", 2, second.sources(), {.threads = 3}));
  for (int round = 0; round < 2; ++round) {
    EXPECT_TRUE(holds(*store_, "run", 1, first));
    EXPECT_TRUE(holds(*store_, "run", 2, second, 3));
    EXPECT_TRUE(holds(*store_, "run", kLatestVersion, second));
    EXPECT_EQ(store_->latest("run"), 2u);
    EXPECT_TRUE(store_->verify("run", 1));
    const auto all = store_->list();
    ASSERT_EQ(all.size(), 2u);
    EXPECT_EQ(all[0].version, 1u);
    EXPECT_EQ(all[0].tensors, 5u);
    EXPECT_EQ(all[0].tensor_bytes, first.total());
    EXPECT_EQ(store_->manifest("run", 1)->notes.front().second, "1");
    const CheckpointCheck report = store_->check();
    EXPECT_TRUE(report.ok()) << report.violations.front();
    reopen();
  }
}

TEST_F(CheckpointStoreTest, writes_only_chunks_that_are_not_there) {
  Model model;
  model.add("w", Dtype::kU8, {100 * 4096}, 1);
  auto saved = store_->save("run", 1, model.sources());
  ASSERT_TRUE(saved);
  EXPECT_EQ(saved->chunks_written, 100u);
  for (const std::size_t chunk : {3, 50, 99}) model.bytes[0][chunk * 4096 + 5] ^= std::byte{1};
  saved = store_->save("run", 2, model.sources());
  ASSERT_TRUE(saved);
  EXPECT_EQ(saved->chunks, 100u);
  EXPECT_EQ(saved->chunks_written, 3u);
  EXPECT_LT(saved->bytes_written, 3 * 4096 + 100 * 16 + 1000);
  saved = store_->save("other", 1, model.sources());
  ASSERT_TRUE(saved);
  EXPECT_EQ(saved->chunks_written, 0u) << "another name shares them, too";
  const auto diff = store_->diff("run", 1, "run", 2);
  ASSERT_TRUE(diff);
  EXPECT_EQ(diff->changed, std::vector<std::string>{"w"});
  EXPECT_EQ(diff->changed_bytes, 3u * 4096);
}

TEST_F(CheckpointStoreTest, gives_space_back_when_checkpoints_go) {
  // Each needs a third of what there is.
  for (std::uint64_t version = 1; version <= 30; ++version) {
    Model model;
    model.add("w", Dtype::kU8, {1200000}, version);
    auto saved = store_->save("run", version, model.sources());
    ASSERT_TRUE(saved) << version << ": " << saved.error().message;
    EXPECT_TRUE(holds(*store_, "run", version, model));
    ASSERT_TRUE(store_->retain("run", {.keep_last = 2}));
    if (version % 10 == 5) reopen();
  }
  EXPECT_EQ(store_->list().size(), 2u);
  EXPECT_TRUE(store_->check().ok());
}

TEST_F(CheckpointStoreTest, keeps_the_last_and_every_tenth) {
  Model model;
  model.add("w", Dtype::kU8, {100}, 1);
  for (std::uint64_t version = 5; version < 20; ++version) ASSERT_TRUE(store_->save("run", version, model.sources()));
  EXPECT_EQ(store_->retain("run", {.keep_last = 2, .keep_every = 10})->removed, 12u);
  std::vector<std::uint64_t> left;
  for (const auto& one : store_->list()) left.push_back(one.version);
  EXPECT_EQ(left, (std::vector<std::uint64_t>{10, 18, 19}));
  EXPECT_TRUE(holds(*store_, "run", 10, model));
}

TEST_F(CheckpointStoreTest, refuses_when_full_and_loses_nothing) {
  Model first;
  first.add("w", Dtype::kU8, {2000000}, 1);
  ASSERT_TRUE(store_->save("run", 1, first.sources()));
  Model second;
  second.add("w", Dtype::kU8, {3000000}, 2);
  EXPECT_EQ(store_->save("run", 2, second.sources()).error().code, ErrorCode::kNoSpace);
  EXPECT_TRUE(holds(*store_, "run", 1, first));
  EXPECT_EQ(store_->list().size(), 1u);
  ASSERT_TRUE(store_->remove("run", 1));
  EXPECT_TRUE(store_->save("run", 2, second.sources())) << "what the failed save left is used or collected";
  EXPECT_TRUE(holds(*store_, "run", 2, second));
  EXPECT_TRUE(store_->check().ok());
}

TEST_F(CheckpointStoreTest, says_what_is_wrong) {
  const Model model = small_model(1);
  ASSERT_TRUE(store_->save("run", 1, model.sources()));
  const auto code_of_save = [&](std::string_view name, std::uint64_t version,
                                const std::vector<TensorSource>& tensors) {
    const auto saved = store_->save(name, version, tensors);
    return saved ? ErrorCode::kIo : saved.error().code;
  };
  EXPECT_EQ(code_of_save("run", 1, model.sources()), ErrorCode::kAlreadyExists);
  EXPECT_EQ(code_of_save("", 1, model.sources()), ErrorCode::kInvalidArgument);
  auto sources = model.sources();
  sources[1].spec.name = sources[0].spec.name;
  EXPECT_EQ(code_of_save("run", 2, sources), ErrorCode::kInvalidArgument);
  sources = model.sources();
  sources[1].spec.shape[0] += 1;
  EXPECT_EQ(code_of_save("run", 2, sources), ErrorCode::kInvalidArgument);
  sources[1].spec.shape = {1ULL << 40, 1ULL << 40};
  EXPECT_EQ(code_of_save("run", 2, sources), ErrorCode::kInvalidArgument);
  sources = model.sources();
  sources[0].read = [](std::uint64_t, std::span<std::byte>) -> Status {
    return make_error(ErrorCode::kIo, "the cable is out");
  };
  const auto unreadable = store_->save("run", 2, sources);
  EXPECT_EQ(unreadable.error().code, ErrorCode::kIo);
  EXPECT_NE(unreadable.error().message.find("the cable is out"), std::string::npos) << unreadable.error().message;
  EXPECT_EQ(store_->list().size(), 1u);

  std::vector<std::byte> room(*model.specs[0].bytes());
  const auto restore = [&](std::string_view name, std::uint64_t version, TensorSpec spec) {
    const TensorSink sink{std::move(spec), room, {}};
    return store_->restore(name, version, std::span(&sink, 1));
  };
  EXPECT_TRUE(restore("run", 1, model.specs[0]));
  EXPECT_EQ(restore("none", 1, model.specs[0]).error().code, ErrorCode::kNotFound);
  EXPECT_EQ(restore("run", 9, model.specs[0]).error().code, ErrorCode::kNotFound);
  TensorSpec spec = model.specs[0];
  spec.name = "nothing";
  EXPECT_EQ(restore("run", 1, spec).error().code, ErrorCode::kNotFound);
  spec = model.specs[0];
  spec.dtype = Dtype::kI32;
  const auto mismatch = restore("run", 1, spec);
  EXPECT_EQ(mismatch.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(mismatch.error().message.find("F32 [123, 77]"), std::string::npos) << mismatch.error().message;
  spec = model.specs[0];
  std::swap(spec.shape[0], spec.shape[1]);
  EXPECT_EQ(restore("run", 1, spec).error().code, ErrorCode::kInvalidArgument);
  room.pop_back();
  EXPECT_EQ(restore("run", 1, model.specs[0]).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(store_->remove("run", 7).error().code, ErrorCode::kNotFound);
  EXPECT_EQ(store_->verify("none").error().code, ErrorCode::kNotFound);
  EXPECT_EQ(store_->diff("run", 1, "run", 2).error().code, ErrorCode::kNotFound);
  EXPECT_EQ(Store::create(*pool_, "c", options_, {}).error().code, ErrorCode::kAlreadyExists);
  EXPECT_EQ(Store::open(*pool_, "d", {}).error().code, ErrorCode::kNotFound);
}

TEST_F(CheckpointStoreTest, finds_damage_and_says_where) {
  Model model;
  model.add("w", Dtype::kU8, {20000}, 1);
  ASSERT_TRUE(store_->save("run", 1, model.sources()));
  auto data = pool_->open_region("c.data.log");
  ASSERT_TRUE(data);
  // The third chunk's bytes, wherever they are.
  std::byte* at = nullptr;
  for (std::uint64_t offset = 0; at == nullptr && offset + 4096 < data->bytes(); offset += 32) {
    if (std::memcmp(data->at(offset), &model.bytes[0][2 * 4096], 4096) == 0) at = data->at(offset);
  }
  ASSERT_NE(at, nullptr);
  at[100] ^= std::byte{4};
  const auto verified = store_->verify("run", 1);
  ASSERT_FALSE(verified);
  EXPECT_EQ(verified.error().code, ErrorCode::kCorrupt);
  EXPECT_NE(verified.error().message.find("8192"), std::string::npos) << verified.error().message;
  EXPECT_FALSE(holds(*store_, "run", 1, model));
  EXPECT_FALSE(store_->check().ok());
  at[100] ^= std::byte{4};
  auto catalog = pool_->open_region("c.catalog");
  auto* line = reinterpret_cast<std::uint64_t*>(catalog->at(kCatalogLinesOffset));
  line[4] ^= 2;
  EXPECT_FALSE(store_->check().ok());
  EXPECT_EQ(store_->collect().error().code, ErrorCode::kCorrupt)
      << "what a damaged checkpoint needs is not thrown away";
  line[4] ^= 2;
  EXPECT_TRUE(store_->check().ok());
  EXPECT_TRUE(holds(*store_, "run", 1, model));
}

/// Where these bytes lie in a region, at a boundary of 8.
std::byte* find_bytes(const Region& region, std::span<const std::byte> bytes, std::size_t which = 0) {
  for (std::uint64_t at = 0; at + bytes.size() <= region.bytes(); at += 8) {
    if (std::memcmp(region.at(at), bytes.data(), bytes.size()) == 0 && which-- == 0) return region.at(at);
  }
  return nullptr;
}

TEST_F(CheckpointStoreTest, heals_what_has_rotted_when_the_same_bytes_are_saved_again) {
  Model model;
  model.add("frozen", Dtype::kU8, {16 * 4096 + 100}, 1);
  ASSERT_TRUE(store_->save("run", 0, model.sources()));
  const auto log = pool_->open_region("c.data.log");
  const auto index = pool_->open_region("c.data.s0");
  ASSERT_TRUE(log && index);
  std::uint64_t version = 0;
  const auto chunk = [&](std::size_t n) { return std::span(model.bytes[0]).subspan(n * 4096, 64); };
  // In the payload, at its beginning and at its end; in each field of the record's header; in the index's record.
  // `which`: of the copies of the chunk, or of its records in the index; those that were healed are still there, and
  // mean nothing.
  const auto damages = [&](std::size_t n, std::size_t which) -> std::vector<std::byte*> {
    std::byte* const payload = find_bytes(*log, chunk(n), which);
    const IndexKey key = chunk_digest(std::span(model.bytes[0]).subspan(n * 4096, 4096)).key;
    std::byte* const record = find_bytes(*index, std::as_bytes(std::span(&key, 1)), which);
    std::vector<std::byte*> all(11, nullptr);  // What there is no copy of.
    if (payload != nullptr)
      std::ranges::copy(std::array{payload, payload + 4095, payload - 32, payload - 16, payload - 12, payload - 8},
                        all.begin());
    if (record != nullptr)
      std::ranges::copy(std::array{record + 16, record + 24, record + 28, record - 8, record - 4}, all.begin() + 6);
    return all;
  };
  const std::size_t kinds = damages(3, 0).size();
  ASSERT_EQ(kinds, 11u);
  for (std::size_t kind = 0; kind < kinds; ++kind) {
    bool damaged = false;
    for (std::size_t which = 0; !damaged; ++which) {
      const std::vector<std::byte*> places = damages(3, which);
      ASSERT_NE(places[kind], nullptr) << "no damage of kind " << kind << " is noticed";
      // A record of the index has two values, of which one holds.
      for (const std::size_t value : {0, 16}) {
        if (damaged || (value != 0 && (kind < 6 || kind > 8))) continue;
        places[kind][value] ^= std::byte{0x10};
        damaged = !holds(*store_, "run", version, model);
        if (!damaged) places[kind][value] ^= std::byte{0x10};
      }
    }
    const auto saved =
        store_->save("run", ++version, model.sources(), {.threads = static_cast<unsigned>(kind % 3 + 1)});
    ASSERT_TRUE(saved) << kind << ": " << saved.error().message;
    EXPECT_EQ(saved->chunks_written, 1u) << kind;
    for (std::uint64_t one = 0; one <= version; ++one)
      EXPECT_TRUE(holds(*store_, "run", one, model)) << "version " << one << " after damage of kind " << kind;
    EXPECT_TRUE(store_->verify("run", version));
  }
  const auto unchanged = store_->save("run", ++version, model.sources());
  ASSERT_TRUE(unchanged);
  EXPECT_EQ(unchanged->chunks_written, 0u);
  EXPECT_EQ(unchanged->chunks_healed, 0u);
  reopen();
  for (std::uint64_t one = 0; one <= version; ++one) EXPECT_TRUE(holds(*store_, "run", one, model)) << one;
}

TEST_F(CheckpointStoreTest, counts_what_it_has_healed) {
  Model model;
  model.add("w", Dtype::kU8, {8 * 4096}, 1);
  ASSERT_TRUE(store_->save("run", 1, model.sources()));
  const auto log = pool_->open_region("c.data.log");
  for (const std::size_t n : {1, 5})
    find_bytes(*log, std::span(model.bytes[0]).subspan(n * 4096, 64))[9] ^= std::byte{1};
  const auto saved = store_->save("run", 2, model.sources());
  ASSERT_TRUE(saved);
  EXPECT_EQ(saved->chunks_healed, 2u);
  EXPECT_EQ(saved->chunks_written, 2u);
  EXPECT_TRUE(store_->check().ok());
}

/// Damages the manifest of the n-th checkpoint that was saved, if nothing was removed.
void damage_manifest(Pool& pool, std::size_t n) {
  const auto log = pool.open_region("c.data.log");
  ASSERT_TRUE(log);
  constexpr char kMagic[] = "DNNKMAN1";
  std::byte* const at = find_bytes(*log, std::as_bytes(std::span(kMagic, 8)), n);
  ASSERT_NE(at, nullptr);
  at[20] ^= std::byte{1};
}

TEST_F(CheckpointStoreTest, lists_what_it_cannot_read_and_says_why) {
  Model model;
  model.add("w", Dtype::kU8, {20000}, 1);
  ASSERT_TRUE(store_->save("only", 7, model.sources()));
  ASSERT_TRUE(store_->save("run", 1, model.sources()));
  ASSERT_TRUE(store_->save("run", 2, model.sources()));
  damage_manifest(*pool_, 0);
  damage_manifest(*pool_, 2);
  for (int round = 0; round < 2; ++round) {
    const auto all = store_->list();
    ASSERT_EQ(all.size(), 3u);
    EXPECT_EQ(all[0].name, "") << "nothing else says what it was called";
    EXPECT_EQ(all[0].version, 7u);
    EXPECT_EQ(all[0].status.error().code, ErrorCode::kCorrupt);
    EXPECT_EQ(all[1].name, "run");
    EXPECT_TRUE(all[1].status);
    EXPECT_EQ(all[2].name, "run") << "as that of another version";
    EXPECT_EQ(all[2].version, 2u);
    EXPECT_FALSE(all[2].status);
    const auto mine = store_->list("only");
    ASSERT_EQ(mine.size(), 1u);
    EXPECT_EQ(mine[0].name, "only");
    EXPECT_FALSE(mine[0].status);
    EXPECT_EQ(store_->latest("run"), 2u) << "the newest, though it is damaged";
    EXPECT_EQ(store_->manifest("run").error().code, ErrorCode::kCorrupt) << "never an older one without a word";
    EXPECT_EQ(store_->verify("only").error().code, ErrorCode::kCorrupt);
    EXPECT_EQ(store_->collect().error().code, ErrorCode::kCorrupt);
    const auto again = store_->save("run", 2, model.sources());
    EXPECT_EQ(again.error().code, ErrorCode::kAlreadyExists);
    EXPECT_NE(again.error().message.find("damaged"), std::string::npos) << again.error().message;
    reopen();
  }
  EXPECT_EQ(store_->forget_damaged(), 2u);
  EXPECT_GT(store_->collect().value_or(0), 0u);
  EXPECT_TRUE(store_->check().ok());
  EXPECT_EQ(store_->list().size(), 1u);
  EXPECT_TRUE(holds(*store_, "run", 1, model));
}

TEST_F(CheckpointStoreTest, lists_lines_of_the_catalog_that_it_cannot_read) {
  Model model;
  model.add("w", Dtype::kU8, {20000}, 1);
  ASSERT_TRUE(store_->save("run", 1, model.sources()));
  ASSERT_TRUE(store_->save("run", 2, model.sources()));
  auto catalog = pool_->open_region("c.catalog");
  *catalog->at(kCatalogLinesOffset + kLineBytes + 32) ^= std::byte{1};
  for (const auto& all : {store_->list(), store_->list("run"), store_->list("other")}) {
    const auto damaged = std::ranges::find_if(all, [](const CheckpointInfo& one) { return !one.status; });
    ASSERT_NE(damaged, all.end());
    EXPECT_EQ(damaged->version, kLatestVersion);
    EXPECT_EQ(damaged->name, "");
    EXPECT_EQ(damaged->line, 1u);
  }
  EXPECT_EQ(store_->list().size(), 2u);
  EXPECT_EQ(store_->latest("run").error().code, ErrorCode::kCorrupt);
  EXPECT_EQ(store_->verify("run").error().code, ErrorCode::kCorrupt);
  EXPECT_EQ(store_->remove("run", kLatestVersion).error().code, ErrorCode::kCorrupt);
  EXPECT_EQ(store_->manifest("run", 2).error().code, ErrorCode::kCorrupt) << "it may be there";
  EXPECT_TRUE(holds(*store_, "run", 1, model));
}

TEST_F(CheckpointStoreTest, keeps_sound_versions_beside_damaged_ones) {
  Model model;
  model.add("w", Dtype::kU8, {20000}, 1);
  for (std::uint64_t version = 1; version <= 5; ++version) {
    model.bytes[0][version] ^= std::byte{1};
    ASSERT_TRUE(store_->save("run", version, model.sources()));
  }
  damage_manifest(*pool_, 4);
  const auto retained = store_->retain("run", {.keep_last = 2});
  ASSERT_TRUE(retained);
  EXPECT_EQ(retained->removed, 2u);
  EXPECT_EQ(retained->damaged, 1u) << "version 5 is not what can be gone on from";
  std::vector<std::uint64_t> left;
  for (const auto& one : store_->list()) left.push_back(one.version);
  EXPECT_EQ(left, (std::vector<std::uint64_t>{3, 4, 5}));
  model.bytes[0][5] ^= std::byte{1};
  EXPECT_TRUE(holds(*store_, "run", 4, model));
  EXPECT_TRUE(store_->verify("run", 3));
}

TEST_F(CheckpointStoreTest, refuses_a_retention_that_would_remove_everything) {
  Model model;
  model.add("w", Dtype::kU8, {100}, 1);
  ASSERT_TRUE(store_->save("run", 1, model.sources()));
  for (const std::uint64_t every : {0, 5})
    EXPECT_EQ(store_->retain("run", {.keep_last = 0, .keep_every = every}).error().code, ErrorCode::kInvalidArgument);
  EXPECT_TRUE(holds(*store_, "run", 1, model));
}

TEST_F(CheckpointStoreTest, names_what_others_have_named_without_acting_on_the_terminal) {
  Model model;
  model.add("w\x1b[2J\n", Dtype::kU8, {100}, 1);
  ASSERT_TRUE(store_->save("r\x1b", 1, model.sources()));
  auto spec = model.specs[0];
  spec.shape = {99};
  std::vector<std::byte> room(99);
  const TensorSink sink{spec, room, {}};
  for (const auto& message :
       {store_->restore("r\x1b", 1, std::span(&sink, 1)).error().message, store_->manifest("r\x1b", 2).error().message,
        store_->save("r\x1b", 1, model.sources()).error().message}) {
    EXPECT_EQ(message.find('\x1b'), std::string::npos);
    EXPECT_NE(message.find("\\x1b"), std::string::npos) << message;
  }
}

TEST_F(CheckpointStoreTest, holds_tensors_of_every_dtype) {
  Model model;
  for (std::uint8_t number = 1; number <= kDtypeLast; ++number) {
    const auto dtype = static_cast<Dtype>(number);
    ASSERT_NE(name_of(dtype), "") << int{number};
    EXPECT_EQ(dtype_of(name_of(dtype)), dtype);
    model.add(std::string(name_of(dtype)), dtype, {3, 8}, number);
    EXPECT_EQ(model.bytes.back().size(), 3 * bits_of(dtype));
  }
  ASSERT_TRUE(store_->save("run", 1, model.sources()));
  reopen();
  EXPECT_TRUE(holds(*store_, "run", 1, model));
  const std::vector<TensorSource> half{{{"h", Dtype::kF4, {3}}, model.bytes[0], {}, {}}};
  EXPECT_EQ(store_->save("run", 2, half).error().code, ErrorCode::kInvalidArgument) << "a byte and a half";
}

TEST_F(CheckpointStoreTest, forgets_damaged_lines_when_told_to_and_gives_back_their_space) {
  Model first, second;
  first.add("w", Dtype::kU8, {20000}, 1);
  second.add("w", Dtype::kU8, {20000}, 2);
  ASSERT_TRUE(store_->save("run", 1, first.sources()));
  ASSERT_TRUE(store_->save("run", 2, second.sources()));
  EXPECT_EQ(store_->damaged(), 0u);
  EXPECT_EQ(store_->forget_damaged(), 0u);
  EXPECT_EQ(store_->list().size(), 2u);
  auto catalog = pool_->open_region("c.catalog");
  auto* second_line = reinterpret_cast<std::uint64_t*>(catalog->at(kCatalogLinesOffset + kLineBytes));
  second_line[4] ^= 2;
  EXPECT_EQ(store_->damaged(), 1u);
  EXPECT_EQ(store_->latest("run").error().code, ErrorCode::kCorrupt) << "a newer one may be in the damaged line";
  EXPECT_EQ(store_->collect().error().code, ErrorCode::kCorrupt);
  EXPECT_EQ(store_->forget_damaged(), 1u);
  EXPECT_EQ(store_->damaged(), 0u);
  EXPECT_EQ(second_line[0], catalog_free({catalog_name_hash("c"), 1}));
  EXPECT_GE(store_->collect().value_or(0), 5u) << "five chunks of the second, and its manifest";
  EXPECT_TRUE(store_->check().ok());
  EXPECT_TRUE(holds(*store_, "run", 1, first));
  // Its line and its version are free.
  ASSERT_TRUE(store_->save("run", 2, second.sources()));
  EXPECT_NE(second_line[0], catalog_free({catalog_name_hash("c"), 1}));
  EXPECT_TRUE(holds(*store_, "run", 2, second));
}

TEST_F(CheckpointStoreTest, takes_neither_zeros_nor_another_line_for_an_empty_line_or_a_checkpoint) {
  Model model;
  model.add("w", Dtype::kU8, {20000}, 1);
  ASSERT_TRUE(store_->save("run", 1, model.sources()));
  ASSERT_TRUE(store_->save("run", 2, model.sources()));
  auto catalog = pool_->open_region("c.catalog");
  const auto line = [&](std::uint64_t number) { return catalog->at(kCatalogLinesOffset + number * kLineBytes); };
  std::array<std::byte, kLineBytes> second;
  std::memcpy(second.data(), line(1), kLineBytes);
  const auto expect_damage = [&](const char* what) {
    EXPECT_EQ(store_->damaged(), 1u) << what;
    EXPECT_FALSE(store_->check().ok()) << what;
    EXPECT_EQ(store_->collect().error().code, ErrorCode::kCorrupt) << what;
    std::memcpy(line(1), second.data(), kLineBytes);
    EXPECT_TRUE(store_->check().ok()) << what;
  };
  std::memset(line(1), 0, kLineBytes);
  expect_damage("zeros");
  std::memcpy(line(1), line(0), kLineBytes);
  expect_damage("the line of another checkpoint");
  std::memcpy(line(1), line(2), kLineBytes);
  expect_damage("a free line of another place");
  auto other =
      Store::create(*pool_, "d", {.capacity_bytes = 1 << 20, .chunk_bytes = 4096, .segment_bytes = 1 << 17}, {});
  ASSERT_TRUE(other) << other.error().message;
  std::memcpy(line(1), pool_->open_region("d.catalog")->at(kCatalogLinesOffset + kLineBytes), kLineBytes);
  expect_damage("the same line of another store");
  EXPECT_TRUE(holds(*store_, "run", 2, model));
}

TEST(CheckpointStoreCreation, goes_on_after_a_crash_at_any_of_its_steps) {
  const TemporaryFile file;
  const CheckpointOptions options{.capacity_bytes = 4 << 20, .chunk_bytes = 4096, .segment_bytes = 1 << 20};
  const auto bytes = Store::pool_bytes(options) * 2;
  Model model = small_model(3);
  // What there is of it: nothing, the catalog, the log as well, the whole KvStore, some lines, the header but for its
  // magic word.
  for (int steps = 0; steps <= 5; ++steps) {
    SCOPED_TRACE(steps);
    (void)Pool::remove(file.path());
    auto pool = Pool::create(file.path(), {.bytes = bytes});
    ASSERT_TRUE(pool) << pool.error().message;
    if (steps >= 1) {
      RegionSpec catalog{};
      catalog.name = "c.catalog";
      catalog.bytes = Store::catalog_bytes(options);
      ASSERT_TRUE(pool->create_regions(std::span(&catalog, 1)));
    }
    if (steps == 2) {
      ASSERT_TRUE(ValueLog<ProcessMedia>::create(*pool, "c.data", Store::store_options(options).log, {}));
    }
    if (steps >= 3) {
      auto data = KvStore<ProcessMedia>::create(*pool, "c.data", Store::store_options(options), {});
      ASSERT_TRUE(data) << data.error().message;
      if (steps >= 4) {
        auto catalog = pool->open_region("c.catalog");
        ASSERT_TRUE(Store::format(*catalog, std::move(*data), options, {}, "c"));
        std::memset(catalog->at(0), 0, 8);
        if (steps == 4) {  // Every third, for a crash need not keep the first ones.
          std::memset(catalog->at(0), 0, sizeof(CatalogHeader));
          for (std::uint64_t line = 0; line < options.checkpoints_max; line += 3)
            std::memset(catalog->at(kCatalogLinesOffset + line * kLineBytes), 0, kLineBytes);
        }
      }
    }
    const auto none = Store::open(*pool, "c", {});
    ASSERT_FALSE(none);
    EXPECT_EQ(none.error().code, ErrorCode::kNotFound) << none.error().message;
    auto store = Store::create(*pool, "c", options, {});
    ASSERT_TRUE(store) << store.error().message;
    ASSERT_TRUE(store->save("run", 1, model.sources()));
    EXPECT_TRUE(holds(*store, "run", 1, model));
    EXPECT_TRUE(store->check().ok());
    const auto again = Store::create(*pool, "c", options, {});
    ASSERT_FALSE(again);
    EXPECT_EQ(again.error().code, ErrorCode::kAlreadyExists);
    // With a checkpoint in it, a magic word that is gone is damage, and nothing is made over it.
    store->close();
    std::memset(pool->open_region("c.catalog")->at(0), 0, 8);
    EXPECT_EQ(Store::open(*pool, "c", {}).error().code, ErrorCode::kWrongLayout);
    EXPECT_EQ(Store::create(*pool, "c", options, {}).error().code, ErrorCode::kAlreadyExists);
  }
}

TEST(CheckpointStoreCreation, takes_nothing_away_that_is_not_its_own) {
  const TemporaryFile file;
  const CheckpointOptions options{.capacity_bytes = 4 << 20, .chunk_bytes = 4096, .segment_bytes = 1 << 20};
  const IndexKey key = IndexKey::of("robin");
  const std::array value{std::byte{1}, std::byte{2}};
  // A store that has its data's name, and one whose name only begins like it.
  for (const char* name : {"c.data", "c.data.x"}) {
    SCOPED_TRACE(name);
    (void)Pool::remove(file.path());
    auto pool = Pool::create(file.path(), {.bytes = Store::pool_bytes(options) * 3});
    ASSERT_TRUE(pool) << pool.error().message;
    const bool same_name = std::string_view(name) == "c.data";
    auto theirs = KvStore<ProcessMedia>::create(*pool, name, Store::store_options(options), {});
    ASSERT_TRUE(theirs) << theirs.error().message;
    ASSERT_EQ(theirs->put(key, value), PutResult::kInserted);
    if (!same_name) {  // And a creation that a crash has interrupted.
      RegionSpec catalog{};
      catalog.name = "c.catalog";
      catalog.bytes = Store::catalog_bytes(options);
      ASSERT_TRUE(pool->create_regions(std::span(&catalog, 1)));
    }
    const auto made = Store::create(*pool, "c", options, {});
    EXPECT_EQ(made.has_value(), !same_name);
    if (same_name) {
      EXPECT_EQ(made.error().code, ErrorCode::kAlreadyExists);
      EXPECT_FALSE(pool->open_region("c.catalog")) << "nothing says that the data is left of a creation";
    }
    theirs->close();
    auto again = KvStore<ProcessMedia>::open(*pool, name, {});
    ASSERT_TRUE(again) << again.error().message;
    const auto found = again->store.get(key);
    ASSERT_TRUE(found);
    EXPECT_TRUE(std::ranges::equal(found.bytes(), value));
  }
}

TEST(CheckpointStoreCreation, without_room_leaves_nothing) {
  const TemporaryFile file;
  auto pool = Pool::create(file.path(), {.bytes = 32 << 20});
  ASSERT_TRUE(pool) << pool.error().message;
  const auto refused = CheckpointStore<ProcessMedia>::create(
      *pool, "c", {.capacity_bytes = 1 << 30, .chunk_bytes = 4096, .segment_bytes = 1 << 20}, {});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kNoSpace) << refused.error().message;
  EXPECT_TRUE(pool->regions().empty());
}

TEST_F(CheckpointStoreTest, saves_and_restores_what_does_not_fit_in_memory) {
  TensorSpec spec{"big", Dtype::kU8, {1000000}};
  const auto byte_at = [](std::uint64_t i) { return static_cast<std::byte>(i * 7 + (i >> 12) * 3); };
  const TensorSource source{spec, {}, [&](std::uint64_t offset, std::span<std::byte> into) {
                              for (std::size_t i = 0; i < into.size(); ++i) into[i] = byte_at(offset + i);
                              return Status();
                            }};
  ASSERT_TRUE(store_->save("run", 1, std::span(&source, 1), {.threads = 2}));
  std::atomic<std::uint64_t> seen{0};
  const TensorSink sink{spec, {}, [&](std::uint64_t offset, std::span<const std::byte> from) -> Status {
                          for (std::size_t i = 0; i < from.size(); ++i) {
                            if (from[i] != byte_at(offset + i)) return make_error(ErrorCode::kIo, "other bytes");
                          }
                          seen += from.size();
                          return {};
                        }};
  ASSERT_TRUE(store_->restore("run", 1, std::span(&sink, 1), 2));
  EXPECT_EQ(seen.load(), 1000000u);
}

TEST_F(CheckpointStoreTest, many_threads_save_restore_and_remove) {
  std::vector<std::thread> threads;
  std::atomic<unsigned> wrong{0};
  for (unsigned t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      const std::string name = "run" + std::to_string(t % 2 == 0 ? 0 : t);  // Two of them share a name.
      for (std::uint64_t round = 1; round <= 12; ++round) {
        const std::uint64_t version = round * 4 + t;
        Model model = small_model(round);  // The same tensors in all threads, but for one.
        model.bytes[0][t] ^= std::byte{0x55};
        if (!store_->save(name, version, model.sources(), {.threads = 2})) ++wrong;
        if (!holds(*store_, name, version, model)) ++wrong;
        if (round % 2 == 0 && !store_->remove(name, version)) ++wrong;
        if (round % 5 == 0) (void)store_->collect();
      }
    });
  }
  threads.emplace_back([&] {
    for (int i = 0; i < 20; ++i) {
      for (const CheckpointInfo& one : store_->list()) (void)store_->verify(one.name, one.version);
    }
  });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong.load(), 0u);
  const CheckpointCheck report = store_->check();
  EXPECT_TRUE(report.ok()) << report.violations.front();
}

}  // namespace
}  // namespace dunnock
