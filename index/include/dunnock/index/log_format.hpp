// What a value log looks like in the pool. docs/on_media_format.md says the same in prose.
//
// Region "<name>.logmeta":
//
//   offset 0      LogHeader     128 B   written once by format(); magic last. Never changes.
//   offset 4096   segment table   8 B for each segment: see segment_word()
//
// Region "<name>.log": segments x segment_bytes. A segment holds records one after the other, each on a boundary of
// 32 bytes; between them there may be gaps and, after a crash, records that were never finished:
//
//   +-----------------------+---------------------------+-----+
//   | RecordHeader, 32 B    | payload, `length` bytes   | pad |
//   +-----------------------+---------------------------+-----+
//
// A record is only ever reached through a locator that was published after its bytes were durable.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include "dunnock/index/index_format.hpp"
#include "dunnock/pmem/media.hpp"

namespace dunnock {

inline constexpr std::uint64_t kLogMagic = 0x31474f4c'4b4e4e44ULL;  // "DNNKLOG1", little endian
inline constexpr std::uint32_t kLogFormatVersion = 1;
inline constexpr std::uint64_t kLogTableOffset = 4096;
inline constexpr std::uint64_t kLogAlignment = 32;

/// The parameters of a log. Every field is checked when a log is attached.
struct LogHeader {
  std::uint64_t magic;           // kLogMagic. Written last: without it the log does not exist.
  std::uint32_t format_version;  // kLogFormatVersion
  std::uint32_t zero32;
  std::uint64_t segment_bytes;  // a power of two
  std::uint64_t segments;
  std::array<std::uint64_t, 11> zero;
  std::uint64_t checksum;  // XXH3 of the 112 bytes between magic and this
};
static_assert(sizeof(LogHeader) == 128 && std::is_trivially_copyable_v<LogHeader>);

/// A segment's word in the table: bits 63..48 epoch, 47..16 checksum, 0 in use. The epoch grows each time that the
/// segment is taken into use, and is part of every locator into it, so that a locator kept too long is known to be
/// stale. A segment is durably in use before a locator into it can be published. A crash may lose the fact that it is
/// free again: it is then found to hold no live data.
[[nodiscard]] constexpr std::uint64_t segment_word(std::uint64_t segment, std::uint64_t epoch, bool in_use) noexcept {
  std::uint64_t mix = (segment * 0x9e3779b97f4a7c15ULL) ^ (epoch << 1 | (in_use ? 1 : 0)) * 0xd6e8feb86659fd93ULL;
  mix ^= mix >> 32;
  mix *= 0xd6e8feb86659fd93ULL;
  return epoch << 48 | (mix >> 32) << 16 | (in_use ? 1 : 0);
}
inline constexpr std::uint64_t kEpochMask = 0xffff;

/// Precedes each payload.
struct RecordHeader {
  IndexKey key;            // the key of this value: compaction asks the owner whether it still is
  std::uint32_t length;    // bytes of payload
  std::uint32_t checksum;  // of the payload: the low half of its XXH3
  std::uint64_t mark;      // record_mark(): says that the four above are whole, and meant for this place
};
static_assert(sizeof(RecordHeader) == 32 && std::is_trivially_copyable_v<RecordHeader>);

/// The mark of a record at this position (offset and epoch, as in a locator).
[[nodiscard]] std::uint64_t record_mark(std::uint64_t position, const RecordHeader& header) noexcept;

/// The checksum of a payload that locators and record headers contain.
[[nodiscard]] std::uint32_t payload_checksum(std::span<const std::byte> payload) noexcept;

}  // namespace dunnock
