// KvStore, and so ValueLog, in a real process on a real pool file: killed, and damaged.
#include <algorithm>
#include <cstring>

#include "dunnock/index/kv_store.hpp"
#include "structures/map_storm.hpp"
#include "structures/numbered_bytes.hpp"

namespace dunnock::crash {

template <class M>
struct StoreMap {
  KvStore<M> map;
  static constexpr std::uint64_t kPoolBytes = 64 << 20;
  static constexpr std::uint64_t kKeys = 700;
  static Result<StoreMap> create(Pool& pool, M media) {
    StoreOptions options;
    options.index = map_index_options();
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
    if (!found || found.bytes().size() < sizeof(std::uint64_t)) return kWrongValue;
    std::uint64_t value;
    std::memcpy(&value, found.bytes().data(), sizeof value);
    return std::ranges::equal(found.bytes(), bytes_of(value, 8, 500)) ? value : kWrongValue;
  }
  bool erase(std::uint64_t n) { return map.erase(key_of(n)); }
  static std::vector<Point> seldom() {
    using namespace log_point;
    return {kTake, kFree, kHeader, kAppendFence, index_point::kSplitCommit, index_point::kSplitWord};
  }
  static std::vector<std::uint64_t> magics() { return {kIndexMagic, kLogMagic}; }
};

KillResult kill_log(const KillOptions& options) { return kill_map<StoreMap>(options); }
std::vector<CorruptCase> corrupt_log(const CorruptOptions& options) { return corrupt_map<StoreMap>(options); }

}  // namespace dunnock::crash
