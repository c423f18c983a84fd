// What a filter looks like in the pool, next to its table. docs/on_media_format.md says the same in prose.
//
// Region "<name>.meta", 8192 bytes:
//
//   offset 0      FilterHeader   128 B  written once by format(); magic last. Never changes.
//   offset 128    FilterState     64 B  clean shutdown mark and clearing mark
//   offset 192    zero
//   offset 4096   LogLine[64]   4096 B  one kick in flight each
//
// Region "<name>.table": groups x group_words x 8 bytes, rounded up to a line; a word is described in layout.hpp.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "dunnock/filter/hash.hpp"
#include "dunnock/pmem/header.hpp"
#include "dunnock/pmem/media.hpp"

namespace dunnock {

inline constexpr std::uint64_t kFilterMagic = 0x31544c464b4e4e44ULL;  // "DNNKFLT1", little endian
inline constexpr std::uint32_t kFilterFormatVersion = 2;
inline constexpr unsigned kLogLines = 64;
inline constexpr std::uint64_t kFilterStateOffset = 128;
inline constexpr std::uint64_t kFilterLogOffset = 4096;
inline constexpr std::uint64_t kFilterMetaBytes = 8192;

/// The parameters of a filter. Every field is checked when a filter is attached.
struct FilterHeader {
  std::uint64_t magic;             // kFilterMagic. Written last: without it the filter does not exist.
  std::uint32_t format_version;    // kFilterFormatVersion
  std::uint16_t fingerprint_bits;  // 8, 12, 16
  std::uint16_t group_words;       // 4 or 8
  std::uint64_t slots;             // as asked for
  std::uint64_t groups;            // slots rounded up to whole groups
  HashSeed seed;                   // 32 B
  std::uint64_t log_lines;         // kLogLines
  std::array<std::uint64_t, 6> zero;
  std::uint64_t checksum;          // XXH3 of the 112 bytes between magic and this
};
static_assert(sizeof(FilterHeader) == 128 && std::is_trivially_copyable_v<FilterHeader>);

/// What changes besides the table: one line, so its stores become durable in the order of the arrows.
///   close():  items, then clean = clean_mark(items)      A crash in between leaves clean = 0: the items are recounted.
///   attach(): clean = 0                                  Before the first operation.
///   clear():  clearing = 1 ... table zeroed ... 0        A crash in between: attach() zeroes the table again.
struct alignas(kLineBytes) FilterState {
  Word clean;
  Word items;
  Word clearing;
  std::array<std::uint64_t, 5> zero;
};
static_assert(sizeof(FilterState) == kLineBytes);

/// The mark that says that `items` can be trusted; never 0.
[[nodiscard]] constexpr std::uint64_t clean_mark(std::uint64_t items) noexcept {
  return ((items ^ 0x6c62272e07bb0142ULL) * 0x9e3779b97f4a7c15ULL) | 1;
}

/// A kick in flight: a fingerprint moves from a home lane of word `source` to a foreign lane of word `target`.
/// One line. The fields are stored first and `armed` last, so an armed record is always whole.
///   armed == 0                     idle; recovery ignores the line
///   armed == log_mark(the fields)  recovery completes the move: it stores both words and sets armed = 0
///   anything else                  the pool was damaged
/// The writer holds both lines (in volatile memory) until the record is idle again *durably*, so no later operation
/// can have touched either word when recovery replays the record.
struct alignas(kLineBytes) LogLine {
  Word armed;
  Word target;        // index of the word in the table
  Word target_after;  // its value after the move
  Word source;
  Word source_after;
  std::array<std::uint64_t, 3> zero;
};
static_assert(sizeof(LogLine) == kLineBytes);

/// Checksum of a record's fields, never 0.
[[nodiscard]] constexpr std::uint64_t log_mark(std::uint64_t target, std::uint64_t target_after, std::uint64_t source,
                                               std::uint64_t source_after) noexcept {
  std::uint64_t mark = 0x9ae16a3b2f90404fULL;
  for (const std::uint64_t field : {target, target_after, source, source_after}) {
    mark = (mark ^ field) * 0x9e3779b97f4a7c15ULL;
    mark ^= mark >> 29;
  }
  return mark | 1;
}

}  // namespace dunnock
