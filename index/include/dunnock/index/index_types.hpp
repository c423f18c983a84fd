// What an index is made with (its parameters, its memory), and what its calls answer.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "dunnock/base/result.hpp"
#include "dunnock/filter/hash.hpp"
#include "dunnock/index/index_format.hpp"
#include "dunnock/pmem/region.hpp"

namespace dunnock {

struct IndexOptions {
  /// Number of entries to have room for from the start. The index grows beyond that.
  std::uint64_t entries = 0;
  /// Maximum number of bytes in all segments. 0: as many as the pool has (in plain memory: 64 GiB; a pool that
  /// open_or_create(path) makes has KvIndex::pool_bytes).
  std::uint64_t bytes_max = 0;
  /// Groups of 40 entries per segment: a power of two, 2 .. 4096. Larger segments are a little fuller when they split,
  /// and take longer to split.
  std::uint32_t segment_groups = 256;
  HashSeed seed = HashSeed::random();
};

/// What opening found. Nothing needs repair: see index_format.hpp.
struct IndexRecovery {
  bool clean_shutdown = false;  ///< close() was called; otherwise the last user crashed.
  std::uint64_t segments = 0;
  std::uint64_t nanoseconds = 0;  ///< Duration of opening: 8 bytes are read for each segment of 10,240 entries.
};

/// A picture of the index (by a full scan) and counts since it was opened.
struct IndexStats {
  std::uint64_t entries = 0;
  std::uint64_t slots = 0;  ///< Entries that the segments could hold.
  std::uint64_t segments = 0;
  std::uint64_t depth = 0;             ///< Number of bits that choose a segment.
  std::uint64_t bytes = 0;             ///< Size of segments and directory, including reserved segments.
  std::uint64_t dead_lanes = 0;        ///< Lanes that point to no entry: left by crashes, or erased just now.
  std::uint64_t words_spilled = 0;     ///< Buckets with an entry elsewhere in their group, or beyond.
  std::uint64_t words_overflowed = 0;  ///< Buckets with an entry in the other group.
  std::uint64_t splits = 0;
  std::uint64_t split_ns_max = 0;
  std::uint64_t refusals = 0;         ///< Puts that returned kFull.
  std::uint64_t reader_persists = 0;  ///< Gets that had to persist what they had read.
};

/// The outcome of check().
struct IndexCheck {
  std::uint64_t entries = 0;
  std::uint64_t dead_lanes = 0;
  std::uint64_t damaged = 0;            ///< Records that fail their checksum.
  std::vector<std::string> violations;  ///< At most 100 sentences. Empty when all is well.
  [[nodiscard]] bool ok() const noexcept { return violations.empty(); }
};

enum class PutResult : std::uint8_t {
  kInserted,  ///< The key is new.
  kReplaced,  ///< The key had another value, which this one replaces.
  kFull,      ///< No more segments are available. The index is unchanged.
  kIo,        ///< The medium has failed: nothing is acknowledged any more. A crash leaves the old value or this one.
};

enum class GetState : std::uint8_t {
  kMissing,
  kFound,
  kDamaged,  ///< A record with this fingerprint fails its checksum: it may have been this key's. Never a wrong value.
  kIo,       ///< The medium has failed: the key's value, if any, may not be durable, so it is not returned.
};

struct GetResult {
  GetState state = GetState::kMissing;
  IndexValue value;
  explicit operator bool() const noexcept { return state == GetState::kFound; }
};

/// Provides memory for an index's chunks. Both functions return at least `bytes` of line-aligned memory in one extent.
/// Called by one thread at a time.
struct IndexMemory {
  std::function<Result<Region>(unsigned chunk, std::uint64_t bytes)> open;    ///< Opens an existing chunk.
  std::function<Result<Region>(unsigned chunk, std::uint64_t bytes)> obtain;  ///< Opens it, or makes a new, zeroed one.
};

}  // namespace dunnock
