// Which media a file calls for.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "dunnock/base/result.hpp"
#include "dunnock/pmem/file_media.hpp"
#include "dunnock/pmem/media.hpp"
#include "dunnock/pmem/pool.hpp"

namespace dunnock {

enum class MediaKind : std::uint8_t { kDram, kProcess, kFile, kDirect, kEadr };

/// "dram", "process", "file", "direct", "eadr".
[[nodiscard]] std::string_view to_string(MediaKind kind) noexcept;
/// The inverse. Errors: InvalidArgument, naming the choices.
[[nodiscard]] Result<MediaKind> media_kind(std::string_view name);

struct Detection {
  MediaKind kind;
  std::string why;  // One sentence for people.
};

/// The media that keeps stores to this existing file through a power loss: direct on a DAX mapping, eADR where the
/// platform flushes its caches itself, otherwise file. Never process, which must be requested by name. PMDK's
/// environment variables are not trusted. Errors: NotFound, ReadOnly, Io.
[[nodiscard]] Result<Detection> detect_media(const std::string& path);
/// The same for the file of an open pool, whatever its name is by now.
[[nodiscard]] Result<Detection> detect_media(const Pool& pool);

/// Calls `use(media)` with the media of that kind for a pool; kDram is treated as kProcess. A pool that is open
/// read-only always gets ReadOnlyMedia, whatever the kind.
template <class Use>
decltype(auto) with_media(const Pool& pool, MediaKind kind, Use&& use) {
  if (pool.read_only()) return use(ReadOnlyMedia{});
  switch (kind) {
    case MediaKind::kDirect: return use(DirectMedia{});
    case MediaKind::kEadr: return use(EadrMedia{});
    case MediaKind::kFile: return use(pool.file_media());
    case MediaKind::kDram:
    case MediaKind::kProcess: break;
  }
  return use(ProcessMedia{});
}

}  // namespace dunnock
