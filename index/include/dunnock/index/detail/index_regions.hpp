// The regions of an index: their names and sizes, the header in the first, and what is left of an index that was never
// finished.
//
//   "<name>.meta"                    IndexHeader, IndexState, directory
//   "<name>.s0", "<name>.s1", ...    chunks of segments
//
// What it is for: what is decided before there is an index. Nothing here stores to a region.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "dunnock/base/result.hpp"
#include "dunnock/index/index_format.hpp"
#include "dunnock/index/index_types.hpp"
#include "dunnock/pmem/named_regions.hpp"
#include "dunnock/pmem/pool.hpp"
#include "dunnock/pmem/region.hpp"

namespace dunnock::detail {

[[nodiscard]] constexpr std::uint64_t index_segment_bytes(std::uint64_t groups) noexcept {
  return groups * (1 + kIndexGroupLanes) * kLineBytes;
}
[[nodiscard]] IndexHeader index_header_for(const IndexOptions& options);
[[nodiscard]] std::uint64_t index_meta_bytes(const IndexHeader& header) noexcept;
/// The options with a `bytes_max`: at most the pool's size.
[[nodiscard]] IndexOptions bounded_by(const Pool& pool, const IndexOptions& options) noexcept;

/// Checks what does not depend on bytes_max. Errors: InvalidArgument.
[[nodiscard]] Status check_index_segments(const IndexOptions& options);
/// Errors: InvalidArgument.
[[nodiscard]] Status check_index_options(const IndexOptions& options);
/// Errors: WrongVersion, WrongLayout, Corrupt.
[[nodiscard]] Status read_index_header(const Region& meta, IndexHeader& header);
/// Was the index created with these options? `about`: see check_agreed(). Errors: WrongLayout.
[[nodiscard]] Status check_index_agreed(const std::string& about, const IndexHeader& header,
                                        const IndexOptions& options);

/// A region that does not cross extents.
[[nodiscard]] RegionSpec one_extent(std::string_view name, std::uint64_t bytes) noexcept;
/// The chunks of an index in a pool, which must outlive it.
[[nodiscard]] IndexMemory index_memory(Pool& pool, std::string_view name);
/// The first chunks, which are a part of the creation.
[[nodiscard]] IndexMemory index_memory(PendingRegions& pending, std::string_view name);

/// The regions that a crash has left of a creation in a pool of an older format: without a magic word, or, where a
/// larger structure knows that it was never finished, `formatted` ones that nothing was ever put into.
/// Errors: AlreadyExists: other data exists.
[[nodiscard]] Result<std::vector<std::string>> left_over_index(Pool& pool, std::string_view name, bool formatted);

}  // namespace dunnock::detail
