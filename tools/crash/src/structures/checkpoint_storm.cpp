// CheckpointStore in a real process on a real pool file: killed, and damaged.
#include <algorithm>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "damage.hpp"
#include "dunnock/index/checkpoint_store.hpp"
#include "storm.hpp"

namespace dunnock::crash {
namespace {

using What = JournalLine::What;

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
  for (std::size_t i = 0; i < kTensors; ++i) sources.push_back({spec_of(i, tensors[i].size()), tensors[i], {}, {}});
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
  if (tensors != expected) return make_error(ErrorCode::kInvalidArgument, "the bytes differ from those saved");
  return {};
}

template <class M>
class CheckpointStorm final : public StormSystem {
 public:
  std::string create(Pool& pool) override {
    auto made = CheckpointStore<M>::create(pool, "c", checkpoint_options(), media_of<M>(pool));
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
    auto opened = CheckpointStore<FusedMedia<M>>::open(pool, "c", {media_of<M>(pool), fuse});
    if (!opened) return;
    std::mt19937_64 random(seed);
    std::set<std::uint64_t> versions = sure_;
    for (std::uint64_t version = next_;; ++version) {
      say(journal, {What::kIntent, 0, version, 1});
      const bool saved = save_version(*opened, version).has_value();
      say(journal, {saved ? What::kDone : What::kWrong, 0, version, 1});
      versions.insert(version);
      while (versions.size() > 2 + random() % 3) {
        const std::uint64_t victim = *versions.begin();
        say(journal, {What::kIntent, 0, victim, 0});
        const bool removed = opened->remove("run", victim).has_value();
        say(journal, {removed ? What::kDone : What::kWrong, 0, victim, 0});
        versions.erase(victim);
      }
      if (random() % 8 == 0) (void)opened->collect();
    }
  }
  bool open_only(Pool& pool, Fuse& fuse) override {
    return CheckpointStore<FusedMedia<M>>::open(pool, "c", {media_of<M>(pool), fuse}).has_value();
  }
  std::string verify(Pool& pool, const std::string& journal, KillResult& result) override {
    std::optional<JournalLine> in_flight;
    for (const JournalLine& line : lines_of(journal)) {
      next_ = std::max(next_, line.key + 1);
      if (line.what == What::kWrong) return "while running: version " + std::to_string(line.key) + " failed";
      if (line.what == What::kIntent) {
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
    auto opened = open_timed(result, [&] { return CheckpointStore<M>::open(pool, "c", media_of<M>(pool)); });
    if (!opened) return opened.error().message;
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
  std::set<std::uint64_t> sure_;
  std::uint64_t next_ = 1;
};

}  // namespace

KillResult kill_checkpoint(const KillOptions& options) { return run_storm_of<CheckpointStorm>(options); }

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
    if (!opened) return refuse(opened.error(), error);
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
    return right == kVersions ? kUnharmed : kLostSilently;
  };
  return run_damage(options, system);
}

}  // namespace dunnock::crash
