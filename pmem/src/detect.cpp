#include "dunnock/pmem/detect.hpp"

#include <fcntl.h>
#include <libpmem2.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

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
                    "no media '" + std::string(name) + "'; there are dram, process, file, direct, eadr");
}

Result<Detection> detect_media(const std::string& path) {
  const int fd = open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) {
    return make_error(errno == ENOENT ? ErrorCode::kNotFound : ErrorCode::kIo,
                      "can't open " + path + ": " + std::strerror(errno));
  }
  Detection detection{MediaKind::kFile, path + " is an ordinary file: pages are written back with msync"};
  pmem2_config* config = nullptr;
  pmem2_source* source = nullptr;
  pmem2_map* map = nullptr;
  if (pmem2_config_new(&config) == 0 && pmem2_source_from_fd(&source, fd) == 0 &&
      pmem2_config_set_required_store_granularity(config, PMEM2_GRANULARITY_PAGE) == 0 &&
      pmem2_map_new(&map, config, source) == 0) {
    switch (pmem2_map_get_store_granularity(map)) {
      case PMEM2_GRANULARITY_BYTE:
        detection = {MediaKind::kEadr, path + " is on DAX and the platform flushes its caches on power loss (eADR)"};
        break;
      case PMEM2_GRANULARITY_CACHE_LINE:
        detection = {MediaKind::kDirect, path + " is mapped with DAX: cache lines are written back with clwb"};
        break;
      case PMEM2_GRANULARITY_PAGE: break;
    }
    pmem2_map_delete(&map);
  }
  if (source != nullptr) pmem2_source_delete(&source);
  if (config != nullptr) pmem2_config_delete(&config);
  close(fd);
  return detection;
}

}  // namespace dunnock
