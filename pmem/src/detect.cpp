#include "dunnock/pmem/detect.hpp"

#include <fcntl.h>
#include <libpmem2.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>

#include "dax.hpp"
#include "dunnock/base/file.hpp"

namespace dunnock {

std::string_view to_string(MediaKind kind) noexcept {
  switch (kind) {
    case MediaKind::kDram: return "dram";
    case MediaKind::kProcess: return "process";
    case MediaKind::kFile: return "file";
    case MediaKind::kDirect: return "direct";
    case MediaKind::kEadr: return "eadr";
  }
  return "?";
}

Result<MediaKind> media_kind(std::string_view name) {
  for (const MediaKind kind :
       {MediaKind::kDram, MediaKind::kProcess, MediaKind::kFile, MediaKind::kDirect, MediaKind::kEadr}) {
    if (name == to_string(kind)) return kind;
  }
  return make_error(ErrorCode::kInvalidArgument,
                    "unknown media '" + std::string(name) + "': expected dram, process, file, direct or eadr");
}

namespace {

/// `path` finds the file, and people read `name`.
Result<Detection> detect(const std::string& path, const std::string& name) {
  UniqueFd file(open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (!file && (errno == EACCES || errno == EROFS)) file = UniqueFd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file) return system_error("can't open " + name, errno);
  const int fd = file.get();
  Detection detection{MediaKind::kFile, name + " is an ordinary file: fences write to its journal"};
  // PMDK's answer alone would not do: PMEM2_FORCE_GRANULARITY makes it say anything of any file.
  if (!detail::is_dax(fd)) return detection;
  const bool told = std::getenv("PMEM2_FORCE_GRANULARITY") != nullptr;
  if (told)
    return Detection{MediaKind::kDirect,
                     name + " is mapped with DAX; what PMEM2_FORCE_GRANULARITY says is not believed"};
  pmem2_config* config = nullptr;
  pmem2_source* source = nullptr;
  pmem2_map* map = nullptr;
  if (pmem2_config_new(&config) == 0 && pmem2_source_from_fd(&source, fd) == 0 &&
      pmem2_config_set_required_store_granularity(config, PMEM2_GRANULARITY_PAGE) == 0 &&
      pmem2_map_new(&map, config, source) == 0) {
    switch (pmem2_map_get_store_granularity(map)) {
      case PMEM2_GRANULARITY_BYTE:
        detection = {MediaKind::kEadr, name + " is on DAX and the platform flushes its caches on power loss (eADR)"};
        break;
      case PMEM2_GRANULARITY_CACHE_LINE:
        detection = {MediaKind::kDirect, name + " is mapped with DAX: cache lines are written back with clwb"};
        break;
      case PMEM2_GRANULARITY_PAGE: break;
    }
    pmem2_map_delete(&map);
  }
  if (source != nullptr) pmem2_source_delete(&source);
  if (config != nullptr) pmem2_config_delete(&config);
  return detection;
}

}  // namespace

Result<Detection> detect_media(const std::string& path) { return detect(path, path); }
Result<Detection> detect_media(const Pool& pool) { return detect(pool.path_of_descriptor(), pool.path()); }

}  // namespace dunnock
