#include "dunnock/index/detail/index_regions.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <span>
#include <utility>

#include "dunnock/pmem/header.hpp"

namespace dunnock::detail {
namespace {

/// Does the meta region, formatted or not, say that nothing was ever put, nor counted?
bool is_unused(const Region& meta) {
  if (meta.bytes() < kIndexDirectoryOffset + kLineBytes || meta.extents().size() != 1) return false;
  const std::uint64_t depth_at = kIndexStateOffset + offsetof(IndexState, depth);
  if (word_of(meta, depth_at) > kIndexDepthMax) return false;
  return is_blank(meta, kIndexStateOffset, [&](std::uint64_t at) -> std::uint64_t {
    if (at == depth_at) return word_of(meta, at);
    if (at < kIndexDirectoryOffset) return 0;
    const std::uint64_t n = (at - kIndexDirectoryOffset) / sizeof(Word);
    return directory_word(n, n);
  });
}

std::string chunk_name(const std::string& name, unsigned chunk) { return name + ".s" + std::to_string(chunk); }

/// Creates a chunk in a pool, or among the regions of a creation.
Result<Region> create_chunk(const std::string& name, std::uint64_t bytes, auto&& create) {
  const RegionSpec spec = one_extent(name, bytes);
  DUNNOCK_TRY(auto regions, create(std::span(&spec, 1)));
  return regions.front();
}

}  // namespace

IndexOptions bounded_by(const Pool& pool, const IndexOptions& options) noexcept {
  IndexOptions all = options;
  if (all.bytes_max == 0) all.bytes_max = pool.bytes();
  return all;
}

Status check_index_agreed(const std::string& about, const IndexHeader& header, const IndexOptions& options) {
  const IndexHeader asked = index_header_for(options);
  return check_agreed(
      about, std::array{Agreed{"segment_groups", header.segment_groups, asked.segment_groups},
                        Agreed{"a number of first segments of", header.initial_segments, asked.initial_segments},
                        Agreed{"a number of segments of at most", header.segments_max, asked.segments_max}});
}

RegionSpec one_extent(std::string_view name, std::uint64_t bytes) noexcept {
  return {.name = name, .bytes = bytes, .extent_bytes = std::max<std::uint64_t>(4096, std::bit_ceil(bytes))};
}

IndexMemory index_memory(Pool& pool, std::string_view name) {
  const auto open = [pool = &pool, name = std::string(name)](unsigned chunk, std::uint64_t) {
    return pool->open_region(chunk_name(name, chunk));
  };
  const auto obtain = [pool = &pool, name = std::string(name), open](unsigned chunk,
                                                                     std::uint64_t bytes) -> Result<Region> {
    // It exists already if a crash came between making it and using it.
    if (auto region = open(chunk, bytes)) {
      if (region->bytes() == bytes) return region;
      return make_error(ErrorCode::kAlreadyExists, "region '" + chunk_name(name, chunk) + "' of " + pool->path() +
                                                       " has " + std::to_string(region->bytes()) +
                                                       " bytes, and the index needs " + std::to_string(bytes));
    } else if (region.error().code != ErrorCode::kNotFound) {
      return region;
    }
    return create_chunk(chunk_name(name, chunk), bytes, [&](auto specs) { return pool->create_regions(specs); });
  };
  return {open, obtain};
}

IndexMemory index_memory(PendingRegions& pending, std::string_view name) {
  const auto obtain = [&pending, name = std::string(name)](unsigned chunk, std::uint64_t bytes) {
    return create_chunk(chunk_name(name, chunk), bytes, [&](auto specs) { return pending.create(specs); });
  };
  return {obtain, obtain};
}

Result<std::vector<std::string>> left_over_index(Pool& pool, std::string_view name, bool formatted) {
  const auto is_meta = [name](std::string_view region) { return region.substr(name.size()) == ".meta"; };
  std::vector<std::string> names;
  for (const RegionInfo& info : pool.regions()) {
    if (!info.name.starts_with(name)) continue;
    const std::string_view end = std::string_view(info.name).substr(name.size());
    const bool is_chunk =
        end.size() > 2 && end.starts_with(".s") && end.find_first_not_of("0123456789", 2) == std::string_view::npos;
    if (is_meta(info.name) || is_chunk) names.push_back(info.name);
  }
  return left_over_regions(pool, names, [&](const std::string& region, const Region& there) {
    return is_meta(region) ? is_unused(there) && (formatted || word_of(there, 0) == 0) : is_blank(there);
  });
}

}  // namespace dunnock::detail
