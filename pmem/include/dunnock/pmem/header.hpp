// The header of a durable structure: parameters that are written once, with a magic word that is written last.
//
//   offset 0   magic      without it the structure does not exist
//   offset 8   fields     version, parameters, a checksum
//
// What it is for: writing a header in the right order, reading it back when it is whole, and recognizing memory that
// was never formatted. What it is not for: judging a structure's parameters, which only the structure can.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <type_traits>

#include "dunnock/base/result.hpp"
#include "dunnock/pmem/media.hpp"
#include "dunnock/pmem/region.hpp"

namespace dunnock {

namespace detail {
[[nodiscard]] std::uint64_t checksum_between(const void* begin, const void* end) noexcept;
}

/// The checksum that belongs in a header: XXH3 of its bytes from `format_version` up to `checksum`.
template <class Header>
requires requires(const Header& header) {
  header.format_version;
  header.checksum;
}
[[nodiscard]] std::uint64_t checksum_of(const Header& header) noexcept {
  return detail::checksum_between(&header.format_version, &header.checksum);
}

/// The durable steps of write_header.
struct HeaderPoints {
  Point fields;  ///< store/flush/fence: the header except its magic word, and everything flushed before it
  Point magic;   ///< store/flush/fence: the structure exists
};

/// Writes `header` durably to the start of a zeroed region. Everything that the thread flushed before becomes durable
/// before the magic word does.
template <class Header, Media M>
void write_header(const M& media, const HeaderPoints& points, const Region& region, const Header& header) noexcept {
  static_assert(std::is_trivially_copyable_v<Header> && sizeof(Header) % sizeof(Word) == 0);
  std::array<std::uint64_t, sizeof(Header) / sizeof(Word)> values;
  std::memcpy(values.data(), &header, sizeof header);
  Word* words = reinterpret_cast<Word*>(region.at(0));
  for (std::size_t i = 1; i < values.size(); ++i) media.store(points.fields, words[i], values[i]);
  // The fields of the first line need no flush: they are in the line of the magic word, and are stored before it.
  constexpr std::size_t kWords = kLineBytes / sizeof(Word);
  for (std::size_t i = kWords; i < values.size(); i += kWords) media.flush(points.fields, words + i);
  media.fence(points.fields);
  media.store(points.magic, words[0], values[0]);
  media.flush(points.magic, words);
  media.fence(points.magic);  // The structure exists.
}

/// What every header of one kind of structure says.
struct HeaderKind {
  std::string_view structure;  ///< For messages, such as "filter".
  std::uint64_t magic;
  std::uint32_t format_version;

  /// The error that a region does not hold such a structure.
  [[nodiscard]] tl::unexpected<Error> refuse(ErrorCode code, const std::string& why) const {
    return make_error(code, "this is not a valid " + std::string(structure) + ": " + why);
  }
};

/// Reads the header at the start of a region, which has at least `bytes_min` bytes in one extent. The structure checks
/// its own fields afterwards. Errors: WrongLayout (the magic word), WrongVersion, Corrupt (sizes, checksum).
template <class Header>
[[nodiscard]] Status read_header(const HeaderKind& kind, const Region& region, std::uint64_t bytes_min,
                                 Header& header) {
  static_assert(std::is_trivially_copyable_v<Header>);
  if (region.bytes() < bytes_min || region.extents().size() != 1)
    return kind.refuse(ErrorCode::kCorrupt, "the region of the header has " + std::to_string(region.bytes()) +
                                                " bytes in " + std::to_string(region.extents().size()) +
                                                " extents, expected " + std::to_string(bytes_min) + " or more in 1");
  std::memcpy(&header, region.at(0), sizeof header);
  if (header.magic != kind.magic) return kind.refuse(ErrorCode::kWrongLayout, "the header's magic word is missing");
  if (header.format_version != kind.format_version)
    return kind.refuse(ErrorCode::kWrongVersion, "it has format version " + std::to_string(header.format_version) +
                                                     ", expected " + std::to_string(kind.format_version));
  if (header.checksum != checksum_of(header)) return kind.refuse(ErrorCode::kCorrupt, "the header fails its checksum");
  return {};
}

/// The word stored at an offset.
[[nodiscard]] inline std::uint64_t word_of(const Region& region, std::uint64_t offset_bytes) noexcept {
  std::uint64_t word = 0;
  std::memcpy(&word, region.at(offset_bytes), sizeof word);
  return word;
}

/// Is every word from `offset_bytes` on zero or equal to expected(offset)? Reads everything.
template <class Expected>
[[nodiscard]] bool is_blank(const Region& region, std::uint64_t offset_bytes, Expected&& expected) {
  for (std::uint64_t at = offset_bytes; at + sizeof(std::uint64_t) <= region.bytes(); at += sizeof(std::uint64_t)) {
    const std::uint64_t word = word_of(region, at);
    if (word != 0 && word != expected(at)) return false;
  }
  return true;
}
[[nodiscard]] inline bool is_blank(const Region& region, std::uint64_t offset_bytes = 0) {
  return is_blank(region, offset_bytes, [](std::uint64_t) { return std::uint64_t{0}; });
}

}  // namespace dunnock
