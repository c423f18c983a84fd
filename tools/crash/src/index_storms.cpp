#include "index_storms.hpp"

#include <chrono>
#include <map>
#include <mutex>
#include <optional>
#include <random>
#include <set>
#include <thread>

#include "dunnock/index/checkpoint_store.hpp"
#include "dunnock/index/prefix_store.hpp"
#include "storm.hpp"

namespace dunnock::crash {
namespace {

using Clock = std::chrono::steady_clock;

/// One line of a child's journal: written whole or not at all, for it is shorter than PIPE_BUF.
struct Line {
  enum class What : std::uint32_t { kIntent, kDone, kWrong };
  What what;
  std::uint32_t thread;
  std::uint64_t key;
  std::uint64_t value;  // 0: erased
};
static_assert(sizeof(Line) == 24);

void say(int journal, const Line& line) {
  if (write(journal, &line, sizeof line) != static_cast<ssize_t>(sizeof line)) _exit(3);
}
std::vector<Line> lines_of(const std::string& journal) {
  std::vector<Line> lines(journal.size() / sizeof(Line));
  std::memcpy(lines.data(), journal.data(), lines.size() * sizeof(Line));
  return lines;
}

/// Bytes that follow from a number, of a length that does, too.
std::vector<std::byte> bytes_of(std::uint64_t number, std::size_t least, std::size_t most) {
  std::mt19937_64 random(number);
  std::vector<std::byte> bytes(least + random() % (most - least));
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(random());
  if (bytes.size() >= sizeof number) std::memcpy(bytes.data(), &number, sizeof number);
  return bytes;
}

// ----- maps -------------------------------------------------------------------------------------------------------

/// KvIndex and KvStore as maps from numbers to numbers. `Wrong`: what a value that is none of ours reads as.
constexpr std::uint64_t kWrong = ~0ULL;
IndexKey key_of(std::uint64_t n) { return {n * 0x9e3779b97f4a7c15ULL, n}; }

template <class M>
struct IndexMap {
  KvIndex<M> map;
  static constexpr std::uint64_t kPoolBytes = 64 << 20;
  static constexpr std::uint64_t kKeys = 4000;  // of a thread
  static IndexOptions options() {
    return {.entries = 0, .bytes_max = 12 << 20, .segment_groups = 4, .seed = HashSeed::from(11)};
  }
  static Result<IndexMap> create(Pool& pool, M media) {
    DUNNOCK_TRY(auto made, KvIndex<M>::create(pool, "map", options(), media));
    return IndexMap{std::move(made)};
  }
  static Result<IndexMap> open(Pool& pool, M media) {
    DUNNOCK_TRY(auto opened, KvIndex<M>::open(pool, "map", media));
    return IndexMap{std::move(opened.index)};
  }
  bool put(std::uint64_t n, std::uint64_t value) {
    return map.put(key_of(n), IndexValue::of(value)) != PutResult::kFull;
  }
  std::optional<std::uint64_t> get(std::uint64_t n) const {
    const GetResult found = map.get(key_of(n));
    if (found.state == GetState::kDamaged) return kWrong;
    return found ? std::optional(found.value.number()) : std::nullopt;
  }
  bool erase(std::uint64_t n) { return map.erase(key_of(n)); }
  static std::vector<Point> seldom() {
    using namespace index_point;
    return {kGroupMark,   kFarMark,     kSplitRecord, kSplitWord, kSplitFence, kDepth,
            kSplitCommit, kCleanRecord, kCleanWord,   kScrubLane, kResetRecord};
  }
  static std::vector<std::uint64_t> magics() { return {kIndexMagic}; }
};

template <class M>
struct StoreMap {
  KvStore<M> map;
  static constexpr std::uint64_t kPoolBytes = 64 << 20;
  static constexpr std::uint64_t kKeys = 700;
  static Result<StoreMap> create(Pool& pool, M media) {
    StoreOptions options;
    options.index = IndexMap<M>::options();
    options.log = {.capacity_bytes = 1 << 20, .segment_bytes = 1 << 15};
    DUNNOCK_TRY(auto made, KvStore<M>::create(pool, "map", options, media));
    return StoreMap{std::move(made)};
  }
  static Result<StoreMap> open(Pool& pool, M media) {
    DUNNOCK_TRY(auto opened, KvStore<M>::open(pool, "map", media));
    return StoreMap{std::move(opened.store)};
  }
  bool put(std::uint64_t n, std::uint64_t value) {
    return map.put(key_of(n), bytes_of(value, 8, 500)) != PutResult::kFull;
  }
  std::optional<std::uint64_t> get(std::uint64_t n) const {
    const auto found = map.get(key_of(n));
    if (found.state == GetState::kMissing) return std::nullopt;
    if (!found || found.bytes().size() < sizeof(std::uint64_t)) return kWrong;
    std::uint64_t value;
    std::memcpy(&value, found.bytes().data(), sizeof value);
    return std::ranges::equal(found.bytes(), bytes_of(value, 8, 500)) ? value : kWrong;
  }
  bool erase(std::uint64_t n) { return map.erase(key_of(n)); }
  static std::vector<Point> seldom() {
    using namespace log_point;
    return {kTake, kFree, kHeader, kAppendFence, index_point::kSplitCommit, index_point::kSplitWord};
  }
  static std::vector<std::uint64_t> magics() { return {kIndexMagic, kLogMagic}; }
};

template <template <class> class Map, class M, class MakeMedia>
class MapStorm final : public StormSystem {
 public:
  MapStorm(unsigned threads, MakeMedia make) : threads_(threads), make_(std::move(make)), sure_(threads) {}

  std::string create(Pool& pool) override {
    auto made = Map<M>::create(pool, make_(pool));
    return made ? "" : made.error().message;
  }
  [[nodiscard]] std::uint64_t pool_bytes() const override { return Map<M>::kPoolBytes; }
  [[nodiscard]] std::vector<Point> seldom() const override { return Map<M>::seldom(); }

  void live(Pool& pool, Fuse& fuse, int journal, std::uint64_t seed) override {
    auto opened = Map<FusedMedia<M>>::open(pool, {make_(pool), fuse});
    if (!opened) return;
    std::vector<std::thread> threads;
    for (unsigned t = 0; t < threads_; ++t) {
      threads.emplace_back([&, t] {
        std::mt19937_64 random(seed + t);
        auto mine = sure_[t];
        for (;;) {
          const std::uint64_t key = static_cast<std::uint64_t>(t) << 40 | random() % Map<M>::kKeys;
          const bool there = mine.contains(key);
          const std::uint64_t value = there && random() % 3 == 0 ? 0 : (random() >> 1) + 1;
          say(journal, {Line::What::kIntent, t, key, value});
          const bool done = value == 0 ? opened->erase(key) : opened->put(key, value);
          say(journal, {done ? Line::What::kDone : Line::What::kWrong, t, key, value});
          if (value == 0) {
            mine.erase(key);
          } else {
            mine[key] = value;
          }
          // Another thread's keys are read, too: never a value that nobody wrote.
          const std::uint64_t other = random() % threads_ << 40 | random() % Map<M>::kKeys;
          if (opened->get(other) == kWrong) say(journal, {Line::What::kWrong, t, other, 1});
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  bool open_only(Pool& pool, Fuse& fuse) override {
    return Map<FusedMedia<M>>::open(pool, {make_(pool), fuse}).has_value();
  }

  std::string verify(Pool& pool, const std::string& journal, KillResult& result) override {
    std::vector<std::optional<Line>> in_flight(threads_);
    for (const Line& line : lines_of(journal)) {
      if (line.what == Line::What::kWrong) {
        return "while running: key " + std::to_string(line.key) +
               (line.value == 0   ? " could not be erased"
                : line.value == 1 ? " had a value that nobody put"
                                  : " found no room");
      }
      if (line.what == Line::What::kIntent) {
        in_flight[line.thread] = line;
        continue;
      }
      in_flight[line.thread].reset();
      ++result.acknowledged;
      if (line.value == 0) {
        sure_[line.thread].erase(line.key);
      } else {
        sure_[line.thread][line.key] = line.value;
      }
    }
    const auto start = Clock::now();
    auto opened = Map<M>::open(pool, make_(pool));
    if (!opened) return opened.error().message;
    result.recovery_ms_max =
        std::max(result.recovery_ms_max, std::chrono::duration<double, std::milli>(Clock::now() - start).count());
    if (const IndexCheck report = opened->map.check(); !report.ok()) return report.violations.front();
    std::uint64_t count = 0;
    for (unsigned t = 0; t < threads_; ++t) {
      if (in_flight[t]) {  // Before or after: the first look decides.
        const Line& line = *in_flight[t];
        const auto found = opened->get(line.key);
        const auto old = sure_[t].find(line.key);
        const auto before = old == sure_[t].end() ? std::nullopt : std::optional(old->second);
        const auto after = line.value == 0 ? std::nullopt : std::optional(line.value);
        if (found != before && found != after)
          return "key " + std::to_string(line.key) + " has a value of no operation";
        if (found) {
          sure_[t][line.key] = *found;
        } else {
          sure_[t].erase(line.key);
        }
      }
      for (const auto& [key, value] : sure_[t]) {
        if (opened->get(key) != value) return "acknowledged key " + std::to_string(key) + " is lost or wrong";
      }
      count += sure_[t].size();
    }
    if (opened->map.size() != count)
      return std::to_string(opened->map.size()) + " entries, expected " + std::to_string(count);
    return {};
  }

 private:
  unsigned threads_;
  MakeMedia make_;
  std::vector<std::map<std::uint64_t, std::uint64_t>> sure_;
};

template <template <class> class Map>
KillResult kill_map(const KillOptions& options) {
  if (options.process_media) {
    const auto make = [](const Pool&) { return ProcessMedia{}; };
    MapStorm<Map, ProcessMedia, decltype(make)> storm(options.threads, make);
    return run_storm(options, storm);
  }
  const auto make = [](const Pool& pool) { return pool.file_media(); };
  MapStorm<Map, FileMedia, decltype(make)> storm(options.threads, make);
  return run_storm(options, storm);
}

template <template <class> class Map>
std::vector<CorruptCase> corrupt_map(const CorruptOptions& options) {
  constexpr std::uint64_t kEntries = Map<ProcessMedia>::kKeys * 2;
  DamageSystem system;
  system.pool_bytes = 24 << 20;
  system.magics = Map<ProcessMedia>::magics();
  system.create = [&](Pool& pool) -> std::string {
    auto made = Map<ProcessMedia>::create(pool, {});
    if (!made) return made.error().message;
    for (std::uint64_t n = 0; n < kEntries; ++n) {
      if (!made->put(n, n * 77 + 1)) return "it is full";
    }
    made->map.close();
    return {};
  };
  system.use = [](Pool& pool, std::string& error) -> int {
    auto opened = Map<ProcessMedia>::open(pool, {});
    if (!opened) {
      error = std::string(to_string(opened.error().code)) + ": " + opened.error().message;
      return kRefused;
    }
    bool sound = opened->map.check().ok();
    std::uint64_t missing = 0;
    for (std::uint64_t n = 0; n < kEntries; ++n) {
      const auto found = opened->get(n);
      if (found && *found != kWrong && *found != n * 77 + 1) return kLostSilently;
      missing += found && *found != kWrong ? 0 : 1;
    }
    for (std::uint64_t n = 0; n < 200; ++n) (void)opened->put((1ULL << 30) + n, n + 1);
    for (std::uint64_t n = 0; n < 200; ++n) (void)opened->erase((1ULL << 30) + n);
    if (!sound) return kFound;
    return missing == 0 ? static_cast<int>(kUnharmed) : static_cast<int>(kLostSilently);
  };
  return run_damage(options, system);
}

// ----- checkpoints ------------------------------------------------------------------------------------------------

constexpr std::size_t kTensors = 6;
CheckpointOptions checkpoint_options() {
  return {.capacity_bytes = 2 << 20,
          .chunk_bytes = 1024,
          .segment_bytes = 1 << 15,
          .checkpoints_max = 16,
          .index_segment_groups = 4};
}
/// Most tensors are those of the version before.
std::vector<std::vector<std::byte>> tensors_of(std::uint64_t version) {
  std::vector<std::vector<std::byte>> tensors;
  for (std::uint64_t i = 0; i < kTensors; ++i) {
    std::mt19937_64 random((version + i) / kTensors * kTensors + i);
    tensors.emplace_back(3000 + i * 7777);
    for (std::byte& one : tensors.back()) one = static_cast<std::byte>(random());
  }
  return tensors;
}
TensorSpec spec_of(std::size_t i, std::size_t bytes) { return {"t" + std::to_string(i), Dtype::kU8, {bytes}}; }

template <class Store>
Status save_version(Store& store, std::uint64_t version) {
  const auto tensors = tensors_of(version);
  std::vector<TensorSource> sources;
  for (std::size_t i = 0; i < kTensors; ++i) sources.push_back({spec_of(i, tensors[i].size()), tensors[i], {}});
  DUNNOCK_TRY(const auto saved, store.save("run", version, sources, {.threads = 2}));
  return {};
}
/// Right, or the error.
template <class Store>
Status restore_version(const Store& store, std::uint64_t version) {
  const auto expected = tensors_of(version);
  auto tensors = expected;
  std::vector<TensorSink> sinks;
  for (std::size_t i = 0; i < kTensors; ++i) {
    std::fill(tensors[i].begin(), tensors[i].end(), std::byte{0});
    sinks.push_back({spec_of(i, tensors[i].size()), tensors[i], {}});
  }
  DUNNOCK_TRY(const auto restored, store.restore("run", version, sinks));
  if (tensors != expected) return make_error(ErrorCode::kInvalidArgument, "other bytes than were saved");
  return {};
}

template <class M, class MakeMedia>
class CheckpointStorm final : public StormSystem {
 public:
  explicit CheckpointStorm(MakeMedia make) : make_(std::move(make)) {}
  std::string create(Pool& pool) override {
    auto made = CheckpointStore<M>::create(pool, "c", checkpoint_options(), make_(pool));
    return made ? "" : made.error().message;
  }
  [[nodiscard]] std::uint64_t pool_bytes() const override { return 64 << 20; }
  [[nodiscard]] std::vector<Point> seldom() const override {
    using namespace checkpoint_point;
    return {kFields,
            kPublish,
            kRemove,
            log_point::kTake,
            log_point::kFree,
            index_point::kSplitCommit,
            index_point::kEraseRecord};
  }
  void live(Pool& pool, Fuse& fuse, int journal, std::uint64_t seed) override {
    auto opened = CheckpointStore<FusedMedia<M>>::open(pool, "c", {make_(pool), fuse});
    if (!opened) return;
    std::mt19937_64 random(seed);
    std::set<std::uint64_t> versions = sure_;
    for (std::uint64_t version = next_;; ++version) {
      say(journal, {Line::What::kIntent, 0, version, 1});
      const bool saved = save_version(*opened, version).has_value();
      say(journal, {saved ? Line::What::kDone : Line::What::kWrong, 0, version, 1});
      versions.insert(version);
      while (versions.size() > 2 + random() % 3) {
        const std::uint64_t victim = *versions.begin();
        say(journal, {Line::What::kIntent, 0, victim, 0});
        const bool removed = opened->remove("run", victim).has_value();
        say(journal, {removed ? Line::What::kDone : Line::What::kWrong, 0, victim, 0});
        versions.erase(victim);
      }
      if (random() % 8 == 0) (void)opened->collect();
    }
  }
  bool open_only(Pool& pool, Fuse& fuse) override {
    return CheckpointStore<FusedMedia<M>>::open(pool, "c", {make_(pool), fuse}).has_value();
  }
  std::string verify(Pool& pool, const std::string& journal, KillResult& result) override {
    std::optional<Line> in_flight;
    for (const Line& line : lines_of(journal)) {
      next_ = std::max(next_, line.key + 1);
      if (line.what == Line::What::kWrong) return "while running: version " + std::to_string(line.key) + " failed";
      if (line.what == Line::What::kIntent) {
        in_flight = line;
        continue;
      }
      in_flight.reset();
      ++result.acknowledged;
      if (line.value == 0) {
        sure_.erase(line.key);
      } else {
        sure_.insert(line.key);
      }
    }
    const auto start = Clock::now();
    auto opened = CheckpointStore<M>::open(pool, "c", make_(pool));
    if (!opened) return opened.error().message;
    result.recovery_ms_max =
        std::max(result.recovery_ms_max, std::chrono::duration<double, std::milli>(Clock::now() - start).count());
    if (const CheckpointCheck report = opened->check(); !report.ok()) return report.violations.front();
    if (in_flight) {
      const Status there = restore_version(*opened, in_flight->key);
      if (!there && there.error().code != ErrorCode::kNotFound) return there.error().message;
      if (there) {
        sure_.insert(in_flight->key);
      } else {
        sure_.erase(in_flight->key);
      }
    }
    for (const std::uint64_t version : sure_) {
      if (const Status there = restore_version(*opened, version); !there)
        return "acknowledged version " + std::to_string(version) + ": " + there.error().message;
    }
    if (opened->list().size() != sure_.size()) return "there are more checkpoints than were saved";
    if (result.kills % 4 == 0) (void)opened->collect();
    return {};
  }

 private:
  MakeMedia make_;
  std::set<std::uint64_t> sure_;
  std::uint64_t next_ = 1;
};

// ----- prefixes ---------------------------------------------------------------------------------------------------

/// Prompts that share prefixes: some 1,100 blocks in all.
std::vector<std::uint32_t> prompt_of(std::uint64_t number) {
  std::mt19937_64 random(number);
  std::vector<std::uint32_t> tokens(1 + random() % 8);
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<std::uint32_t>(random() % (i < 2 ? 3 : 2));
  return tokens;
}
std::vector<std::byte> block_of(const IndexKey& key) { return bytes_of(key.low ^ key.high, 8, 500); }

template <class Store>
std::vector<IndexKey> keys_of_prompt(const Store& store, std::uint64_t number) {
  return Store::keys_of(store.root({}), prompt_of(number), 1);
}

template <class M, class MakeMedia>
class PrefixStorm final : public StormSystem {
 public:
  /// `roomy`: nothing has to be evicted, so nothing that was acknowledged may be missing.
  PrefixStorm(unsigned threads, bool roomy, MakeMedia make) : threads_(threads), roomy_(roomy), make_(std::move(make)) {
    options_.capacity_bytes = roomy ? 2 << 20 : 1 << 18;
    options_.segment_bytes = 1 << 14;
    options_.blocks_max = roomy ? 5000 : 400;
    options_.seed = HashSeed::from(5);
  }
  std::string create(Pool& pool) override {
    auto made = PrefixStore<M>::create(pool, "p", options_, make_(pool));
    return made ? "" : made.error().message;
  }
  [[nodiscard]] std::uint64_t pool_bytes() const override { return 64 << 20; }
  [[nodiscard]] std::vector<Point> seldom() const override {
    return {log_point::kTake, log_point::kFree, index_point::kEraseRecord, index_point::kPutFence,
            log_point::kAppendFence};
  }
  void live(Pool& pool, Fuse& fuse, int journal, std::uint64_t seed) override {
    auto opened = PrefixStore<FusedMedia<M>>::open(pool, "p", options_, {make_(pool), fuse});
    if (!opened) return;
    std::vector<std::thread> threads;
    for (unsigned t = 0; t < threads_; ++t) {
      threads.emplace_back([&, t] {
        std::mt19937_64 random(seed + t);
        for (;;) {
          const auto keys = keys_of_prompt(*opened, random() % 3000);
          const auto match = opened->lookup(keys);
          for (std::size_t i = 0; i < match.blocks(); ++i) {
            const auto block = opened->get(keys[i]);
            if (!block || !std::ranges::equal(block.bytes, block_of(keys[i])))
              say(journal, {Line::What::kWrong, t, keys[i].low, keys[i].high});
          }
          for (std::size_t i = match.blocks(); i < keys.size(); ++i) {
            if (opened->put(keys, i, block_of(keys[i])) > PutBlock::kThere) break;
            say(journal, {Line::What::kDone, t, keys[i].low, keys[i].high});
          }
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  bool open_only(Pool& pool, Fuse& fuse) override {
    return PrefixStore<FusedMedia<M>>::open(pool, "p", options_, {make_(pool), fuse}).has_value();
  }
  std::string verify(Pool& pool, const std::string& journal, KillResult& result) override {
    for (const Line& line : lines_of(journal)) {
      if (line.what == Line::What::kWrong) return "while running: a block was missing or wrong";
      acknowledged_.emplace(line.key, line.value);
      ++result.acknowledged;
    }
    const auto start = Clock::now();
    auto opened = PrefixStore<M>::open(pool, "p", options_, make_(pool));
    if (!opened) return opened.error().message;
    result.recovery_ms_max =
        std::max(result.recovery_ms_max, std::chrono::duration<double, std::milli>(Clock::now() - start).count());
    if (const IndexCheck report = opened->check(); !report.ok()) return report.violations.front();
    for (std::uint64_t number = 0; number < 3000; number += 7) {
      const auto keys = keys_of_prompt(*opened, number);
      const auto match = opened->lookup(keys);
      for (std::size_t i = 0; i < match.blocks(); ++i) {
        const auto block = opened->get(keys[i]);
        if (!block || !std::ranges::equal(block.bytes, block_of(keys[i]))) return "a block is missing or wrong";
      }
    }
    for (const auto& [low, high] : acknowledged_) {
      if (roomy_ && !opened->get({low, high})) return "an acknowledged block is lost, and none had to be evicted";
    }
    return {};
  }

 private:
  unsigned threads_;
  bool roomy_;
  MakeMedia make_;
  PrefixOptions options_;
  std::set<std::pair<std::uint64_t, std::uint64_t>> acknowledged_;
};

template <template <class, class> class Storm, class... Arguments>
KillResult kill_store(const KillOptions& options, Arguments... arguments) {
  if (options.process_media) {
    const auto make = [](const Pool&) { return ProcessMedia{}; };
    Storm<ProcessMedia, decltype(make)> storm(arguments..., make);
    return run_storm(options, storm);
  }
  const auto make = [](const Pool& pool) { return pool.file_media(); };
  Storm<FileMedia, decltype(make)> storm(arguments..., make);
  return run_storm(options, storm);
}

}  // namespace

KillResult kill_index(const KillOptions& options) { return kill_map<IndexMap>(options); }
KillResult kill_log(const KillOptions& options) { return kill_map<StoreMap>(options); }
KillResult kill_checkpoint(const KillOptions& options) { return kill_store<CheckpointStorm>(options); }
KillResult kill_prefix(const KillOptions& options) {
  return kill_store<PrefixStorm>(options, options.threads, options.seed % 2 == 0);
}

std::vector<CorruptCase> corrupt_index(const CorruptOptions& options) { return corrupt_map<IndexMap>(options); }
std::vector<CorruptCase> corrupt_log(const CorruptOptions& options) { return corrupt_map<StoreMap>(options); }

std::vector<CorruptCase> corrupt_checkpoint(const CorruptOptions& options) {
  constexpr std::uint64_t kVersions = 4;
  DamageSystem system;
  system.pool_bytes = 24 << 20;
  system.magics = {kIndexMagic, kLogMagic, kCatalogMagic};
  system.create = [](Pool& pool) -> std::string {
    auto made = CheckpointStore<ProcessMedia>::create(pool, "c", checkpoint_options(), {});
    if (!made) return made.error().message;
    for (std::uint64_t version = 1; version <= kVersions; ++version) {
      if (const Status saved = save_version(*made, version); !saved) return saved.error().message;
    }
    made->close();
    return {};
  };
  system.use = [](Pool& pool, std::string& error) -> int {
    auto opened = CheckpointStore<ProcessMedia>::open(pool, "c", {});
    if (!opened) {
      error = std::string(to_string(opened.error().code)) + ": " + opened.error().message;
      return kRefused;
    }
    const bool sound = opened->check().ok();
    std::uint64_t right = 0;
    for (std::uint64_t version = 1; version <= kVersions; ++version) {
      const Status there = restore_version(*opened, version);
      if (!there && there.error().code == ErrorCode::kInvalidArgument) return kLostSilently;  // Other bytes.
      right += there ? 1 : 0;
    }
    (void)save_version(*opened, 99);
    (void)opened->remove("run", 1);
    (void)opened->collect();
    if (!sound) return kFound;
    return right == kVersions ? static_cast<int>(kUnharmed) : static_cast<int>(kLostSilently);
  };
  return run_damage(options, system);
}

std::vector<CorruptCase> corrupt_prefix(const CorruptOptions& options) {
  const PrefixOptions prefix{
      .capacity_bytes = 2 << 20, .segment_bytes = 1 << 14, .blocks_max = 5000, .seed = HashSeed::from(5)};
  DamageSystem system;
  system.pool_bytes = 40 << 20;
  system.magics = {kIndexMagic, kLogMagic};
  system.create = [&](Pool& pool) -> std::string {
    auto made = PrefixStore<ProcessMedia>::create(pool, "p", prefix, {});
    if (!made) return made.error().message;
    for (std::uint64_t number = 0; number < 500; ++number) {
      const auto keys = keys_of_prompt(*made, number);
      for (std::size_t i = 0; i < keys.size(); ++i) (void)made->put(keys, i, block_of(keys[i]));
    }
    made->close();
    return {};
  };
  system.use = [&](Pool& pool, std::string& error) -> int {
    auto opened = PrefixStore<ProcessMedia>::open(pool, "p", prefix, {});
    if (!opened) {
      error = std::string(to_string(opened.error().code)) + ": " + opened.error().message;
      return kRefused;
    }
    const bool sound = opened->check().ok();
    std::uint64_t missing = 0;
    for (std::uint64_t number = 0; number < 500; ++number) {
      const auto keys = keys_of_prompt(*opened, number);
      const auto match = opened->lookup(keys);
      for (std::size_t i = 0; i < keys.size(); ++i) {
        const auto block = i < match.blocks() ? opened->get(keys[i]) : PrefixStore<ProcessMedia>::Block{};
        if (block && !std::ranges::equal(block.bytes, block_of(keys[i]))) return kLostSilently;
        missing += block ? 0 : 1;
      }
    }
    if (!sound) return kFound;
    return missing == 0 ? static_cast<int>(kUnharmed) : static_cast<int>(kLostSilently);
  };
  return run_damage(options, system);
}

}  // namespace dunnock::crash
