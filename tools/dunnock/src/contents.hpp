// What a pool holds: which regions make which structure.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dunnock/pmem/detect.hpp"
#include "dunnock/pmem/pool.hpp"

namespace dunnock::tool {

enum class Kind : unsigned char { kFilter, kIndex, kLog, kStore, kCheckpoints };
[[nodiscard]] std::string_view to_string(Kind kind) noexcept;

struct Structure {
  std::string name;
  Kind kind;
  std::uint64_t bytes = 0;  // of its regions
};

struct Contents {
  std::vector<Structure> structures;   // by name
  std::vector<RegionInfo> unfinished;  // Regions of none: left by a crash in a create(), or of another program.
};

[[nodiscard]] Contents contents_of(const Pool& pool);
/// The structure that the user means: that name, or the only one of these kinds. Errors: NotFound, InvalidArgument.
[[nodiscard]] Result<Structure> find_structure(const Pool& pool, std::string_view name, std::vector<Kind> kinds);

/// Calls use(media) with what keeps the stores to the pool's file through a power loss.
template <class Use>
auto with_durable_media(const Pool& pool, Use&& use) -> decltype(use(DirectMedia{})) {
  if (pool.read_only()) return use(ReadOnlyMedia{});
  DUNNOCK_TRY(const auto detected, detect_media(pool));
  // Where caches survive a power loss, DirectMedia flushes in vain and is as right.
  if (detected.kind == MediaKind::kFile) return use(pool.file_media());
  return use(DirectMedia{});
}

/// Opens a pool for looking at it, also beside a process that has it open for writing. What such a look finds damaged
/// may have been read at different moments, so use(pool) is asked again then, with a pool that is opened anew.
template <class Use>
auto look_into(const std::string& path, Use&& use) -> decltype(use(std::declval<Pool&>())) {
  constexpr unsigned kLooksBesideWriter = 20;
  for (unsigned look = 1;; ++look) {
    auto pool = Pool::look(path);
    if (!pool) {
      if (pool.error().code != ErrorCode::kCorrupt || look == kLooksBesideWriter) return tl::unexpected(pool.error());
      continue;
    }
    auto answer = use(*pool);
    const bool sound = answer || answer.error().code != ErrorCode::kCorrupt;
    if (sound || !pool->beside_writer() || look == kLooksBesideWriter) return answer;
  }
}

/// Calls make(pool), a Status, which makes a structure in an existing pool. On an error the regions that it made are
/// removed again; nothing may use them by then. (In a new pool, Pool::create_with() does as much.)
template <class Make>
Status make_or_undo(Pool& pool, Make&& make) {
  const std::vector<RegionInfo> before = pool.regions();
  Status made = make(pool);
  if (made) return made;
  std::vector<std::string> rest;
  for (const RegionInfo& region : pool.regions()) {
    if (std::none_of(before.begin(), before.end(), [&](const RegionInfo& one) { return one.name == region.name; }))
      rest.push_back(region.name);
  }
  if (rest.empty()) return made;
  const Status removed = pool.remove_regions(rest);
  if (!removed) made.error().message += "; what was created for it can't be removed: " + removed.error().message;
  return made;
}

/// Segments for a log of that capacity: about 32 of them, of 1 MiB to 32 MiB, but not smaller than `least`.
[[nodiscard]] std::uint64_t segment_bytes_for(std::uint64_t capacity_bytes, std::uint64_t least) noexcept;

/// "12.3 MiB"
[[nodiscard]] std::string human_bytes(std::uint64_t bytes);

}  // namespace dunnock::tool
