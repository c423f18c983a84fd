// The bytes of a pool: libpmemobj's root object, with a catalog of regions. docs/on_media_format.md says it in prose.
#pragma once

#include <xxhash.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <type_traits>

namespace dunnock::detail {

inline constexpr char kPoolLayout[] = "dunnock";
inline constexpr std::uint64_t kPoolMagic = 0x314c4f4f504b4e44ULL;  // "DNKPOOL1", little endian
inline constexpr std::uint32_t kPoolFormatVersion = 3;
/// Its journal was a file beside it, "<pool>.journal". Opening for writing makes it version 3.
inline constexpr std::uint32_t kSideJournalVersion = 2;
/// Where libpmemobj's descriptor (media format 6) keeps the offset of the root object.
inline constexpr std::uint64_t kRootOffsetAt = 4096 + 2048;
inline constexpr unsigned kCatalogEntries = 256;
inline constexpr unsigned kExtentsMax = 128;
// libpmemobj serves smaller allocations out of runs of several MiB, one for each class of sizes: a dozen small regions
// of different sizes would fill a pool of 24 MiB.
inline constexpr std::uint64_t kReserveBytesMin = 512 << 10;
inline constexpr std::size_t kNameBytes = 48;  // with the terminating 0
inline constexpr std::uint64_t kRegionAlignment = 4096;

/// What a catalog entry stands for. The states of all regions of a creation change by one libpmemobj action list, with
/// the allocation of their extents or the freeing of it:
///
///   kFree --create_regions--------------------------------> kNamed ---remove_regions---> kFree
///   kFree --PendingRegions::create--> kPending --finish---> kNamed
///                                     kPending --an error, or the next opening after a crash--> kFree
enum CatalogState : std::uint64_t { kFree = 0, kNamed = 1, kPending = 2 };

/// One region. `state` is the only word that makes it exist: it is set after the rest is durable.
struct CatalogEntry {
  std::uint64_t state;  // CatalogState; any other value is damage
  std::array<char, kNameBytes> name;
  std::uint64_t bytes;
  std::uint64_t extent_bytes;
  std::uint64_t extents;                           // how many
  std::array<std::uint64_t, kExtentsMax> offsets;  // of the allocations in the pool; data starts at the next 4096
  std::uint64_t checksum;                          // XXH3 of name .. offsets
};
static_assert(sizeof(CatalogEntry) == 1112 && std::is_trivially_copyable_v<CatalogEntry>);

/// What is known of a pool without libpmemobj. Written as a whole when the pool is created and opened, and `sealed` and
/// `seal` when it is closed. It lies in one sector of a disk (libpmemobj allocates the root first, at the same offset
/// in every pool; creation checks it), so a power failure leaves it as it was before a write or as it is after it.
struct PoolHead {
  std::uint64_t magic;
  std::uint32_t format_version;
  std::uint32_t entries;
  std::uint64_t file_bytes;  // as created: a shorter file was truncated
  std::uint64_t checksum;    // XXH3 of format_version .. file_bytes
  /// libpmemobj believes its own lanes and heap when it opens a pool, and may crash when they are damaged. So closing
  /// seals everything before the root, and opening looks at the seal before libpmemobj looks at anything.
  std::uint64_t sealed;  // 1 while the pool is closed cleanly, 0 while it is open and after a crash
  std::uint64_t seal;    // XXH3 of the file up to the root; while the pool is open, a word to find its mapping by
  /// Id of the journal without which the pages are not whole (see journal.hpp); 0: none.
  std::uint64_t journal;
  /// Of libpmemobj's allocation for the journal, which begins at the next kRegionAlignment: a CheckedOffset. 0: none
  /// was made. Set by the action list that allocates it. In version 2: zero.
  std::uint64_t journal_allocation;
};
static_assert(sizeof(PoolHead) == 64);

/// An offset in its lower 48 bits and a checksum of it in the others, so that one word changes both at once.
struct CheckedOffset {
  static constexpr unsigned kBits = 48;
  [[nodiscard]] static std::uint64_t of(std::uint64_t offset) noexcept {
    return offset | XXH3_64bits_withSeed(&offset, sizeof offset, kPoolMagic) << kBits;
  }
  /// Nothing: it is damaged. 0 stands for no offset.
  [[nodiscard]] static std::optional<std::uint64_t> read(std::uint64_t word) noexcept {
    const std::uint64_t offset = word & ((1ULL << kBits) - 1);
    if (word == 0 || word == of(offset)) return offset;
    return std::nullopt;
  }
};

/// libpmemobj zeroes the root; `magic` is written last.
struct PoolRoot {
  PoolHead head;
  std::array<CatalogEntry, kCatalogEntries> catalog;
};
static_assert(std::is_trivially_copyable_v<PoolRoot>);

}  // namespace dunnock::detail
