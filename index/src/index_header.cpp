// The header of an index: made, checked before it is written, and checked after it is read.
#include <algorithm>
#include <bit>
#include <utility>

#include "dunnock/index/detail/index_regions.hpp"
#include "dunnock/pmem/header.hpp"

namespace dunnock::detail {
namespace {

/// Numbers of segments may be up to four times the count of them before depth runs out: splits need not be even.
constexpr std::uint64_t directory_depth_for(std::uint64_t segments_max) noexcept {
  return static_cast<std::uint64_t>(std::bit_width(segments_max - 1)) + 2;
}

/// Checks a header before it is written and after it is read. Empty: nothing is wrong.
std::string wrong_with(const IndexHeader& header) {
  if (header.segment_groups < 2 || header.segment_groups > 4096 || !std::has_single_bit(header.segment_groups))
    return "a segment has 2 to 4096 groups, a power of two, not " + std::to_string(header.segment_groups);
  const std::string segment_of_bytes = std::to_string(index_segment_bytes(header.segment_groups)) + " bytes";
  if (header.segments_max == 0) return "an index needs at least one segment of " + segment_of_bytes;
  if (header.segments_max > 1ULL << (kIndexDepthMax - 2))
    return "an index of more than 2^" + std::to_string(kIndexDepthMax - 2) + " segments; make the segments larger";
  if (header.directory_depth != directory_depth_for(header.segments_max))
    return "a directory of 2^" + std::to_string(header.directory_depth) + " words does not fit " +
           std::to_string(header.segments_max) + " segments";
  if (!std::has_single_bit(header.initial_segments) || header.initial_segments > header.segments_max)
    return "it begins with " + std::to_string(header.initial_segments) + " segments of " + segment_of_bytes +
           ", and there may be " + std::to_string(header.segments_max);
  if (header.zero != decltype(header.zero){}) return "fields that are not used are not zero";
  return {};
}

}  // namespace

IndexHeader index_header_for(const IndexOptions& options) {
  IndexHeader header{};
  header.magic = kIndexMagic;
  header.format_version = kIndexFormatVersion;
  header.segment_groups = options.segment_groups;
  // Segments are planned to be three fifths full; they split when they are three quarters full.
  const std::uint64_t per_segment = static_cast<std::uint64_t>(options.segment_groups) * kIndexGroupLanes * 3 / 5;
  header.initial_segments =
      std::bit_ceil(std::max<std::uint64_t>(1, (options.entries + per_segment - 1) / per_segment));
  header.segments_max = options.bytes_max / index_segment_bytes(options.segment_groups);
  header.directory_depth = directory_depth_for(header.segments_max);
  header.seed = options.seed;
  header.checksum = checksum_of(header);
  return header;
}

std::uint64_t index_meta_bytes(const IndexHeader& header) noexcept {
  const std::uint64_t words = 1ULL << header.directory_depth;
  return kIndexDirectoryOffset + (words * sizeof(Word) + kLineBytes - 1) / kLineBytes * kLineBytes;
}

Status check_index_segments(const IndexOptions& options) {
  IndexHeader header{};
  header.segment_groups = options.segment_groups;
  header.segments_max = header.initial_segments = 1;
  header.directory_depth = directory_depth_for(1);
  if (std::string wrong = wrong_with(header); !wrong.empty())
    return make_error(ErrorCode::kInvalidArgument, std::move(wrong));
  return {};
}

Status check_index_options(const IndexOptions& options) {
  const auto refuse = [](std::string why) { return make_error(ErrorCode::kInvalidArgument, std::move(why)); };
  DUNNOCK_TRY(check_index_segments(options));
  const std::uint64_t bytes = index_segment_bytes(options.segment_groups);
  if (options.bytes_max < bytes)
    return refuse("an index needs at least one segment of " + std::to_string(bytes) + " bytes, not " +
                  std::to_string(options.bytes_max));
  if (options.entries / kIndexGroupLanes > options.bytes_max / index_segment_bytes(1))
    return refuse(std::to_string(options.entries) + " entries do not fit in " + std::to_string(options.bytes_max) +
                  " bytes");
  if (std::string wrong = wrong_with(index_header_for(options)); !wrong.empty())
    return refuse("for " + std::to_string(options.entries) + " entries: " + wrong);
  return {};
}

Status read_index_header(const Region& meta, IndexHeader& header) {
  constexpr HeaderKind kKind{"index", kIndexMagic, kIndexFormatVersion};
  DUNNOCK_TRY(read_header(kKind, meta, kIndexDirectoryOffset + kLineBytes, header));
  if (std::string what = wrong_with(header); !what.empty()) return kKind.refuse(ErrorCode::kCorrupt, what);
  if (meta.bytes() < kIndexDirectoryOffset + (sizeof(Word) << header.directory_depth))
    return kKind.refuse(ErrorCode::kCorrupt, "its directory is larger than its meta region");
  return {};
}

}  // namespace dunnock::detail
