// KvIndex in a real process on a real pool file: killed, and damaged.
#include "dunnock/index/kv_index.hpp"
#include "structures/map_storm.hpp"

namespace dunnock::crash {

template <class M>
struct IndexMap {
  KvIndex<M> map;
  static constexpr std::uint64_t kPoolBytes = 64 << 20;
  static constexpr std::uint64_t kKeys = 4000;  // of a thread
  static Result<IndexMap> create(Pool& pool, M media) {
    DUNNOCK_TRY(auto made, KvIndex<M>::create(pool, "map", map_index_options(), media));
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
    if (found.state == GetState::kDamaged) return kWrongValue;
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

KillResult kill_index(const KillOptions& options) { return kill_map<IndexMap>(options); }
std::vector<CorruptCase> corrupt_index(const CorruptOptions& options) { return corrupt_map<IndexMap>(options); }

}  // namespace dunnock::crash
