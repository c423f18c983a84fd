// What a checkpoint store adds to a KvStore in the pool. docs/on_media_format.md says the same in prose.
//
// Region "<name>.catalog":
//
//   offset 0      CatalogHeader   128 B   written once; magic last. Never changes.
//   offset 4096   CatalogLine[]    64 B each: one checkpoint, or free
//
// The KvStore "<name>.data" holds
//   chunks      key = XXH3-128 of the bytes: the same bytes are stored once
//   manifests   key = manifest_key(id, piece): a manifest (manifest.hpp) is cut into pieces that a log segment can hold
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include "dunnock/index/index_format.hpp"
#include "dunnock/pmem/media.hpp"

namespace dunnock {

inline constexpr std::uint64_t kCatalogMagic = 0x31544143'4b4e4e44ULL;  // "DNNKCAT1", little endian
inline constexpr std::uint32_t kCatalogFormatVersion = 2;
inline constexpr std::uint64_t kCatalogLinesOffset = 4096;

/// The parameters of a checkpoint store. Every field is checked when it is attached.
struct CatalogHeader {
  std::uint64_t magic;           // kCatalogMagic. Written last: without it the store does not exist.
  std::uint32_t format_version;  // kCatalogFormatVersion
  std::uint32_t chunk_bytes;     // tensors are cut into chunks of this many bytes
  std::uint64_t lines;           // maximum number of live checkpoints
  std::uint64_t id;              // catalog_name_hash() of the store's name
  std::array<std::uint64_t, 11> zero;
  std::uint64_t checksum;  // XXH3 of the 112 bytes between magic and this
};
static_assert(sizeof(CatalogHeader) == 128 && std::is_trivially_copyable_v<CatalogHeader>);

/// One checkpoint. One line, so its stores become durable in their order: the fields first, then `state`.
///   state == catalog_free(place)            free. The fields have no meaning.
///   state == catalog_mark(fields, place)    the checkpoint exists, with everything that it needs: all of that was
///                                           durable before this word was stored
///   anything else                           the pool was damaged. This includes 0: a medium that loses data reads as
///                                           zeros, which must not look like a line that never held a checkpoint.
/// Both words depend on the line's place: if a damaged medium shows another line, or one of another store in the pool,
/// it is not taken for this one. (An earlier state of the same line is.) Formatting and deleting store
/// catalog_free(place).
struct alignas(kLineBytes) CatalogLine {
  Word state;
  Word manifest_id;
  Word manifest_bytes;
  Word name_hash;
  Word version;
  Word created_seconds;
  Word tensor_bytes;
  std::uint64_t zero;
};
static_assert(sizeof(CatalogLine) == kLineBytes);

/// The fields of a line as plain numbers, in their order.
struct CatalogFields {
  std::uint64_t manifest_id = 0;
  std::uint64_t manifest_bytes = 0;
  std::uint64_t name_hash = 0;
  std::uint64_t version = 0;
  std::uint64_t created_seconds = 0;
  std::uint64_t tensor_bytes = 0;
  friend bool operator==(const CatalogFields&, const CatalogFields&) = default;
};

/// Where a line is: its store (CatalogHeader::id) and its number.
struct CatalogPlace {
  std::uint64_t id = 0;
  std::uint64_t line = 0;
};

/// Checksum of a line's fields and its place; never 0, and odd.
[[nodiscard]] std::uint64_t catalog_mark(const CatalogFields& fields, const CatalogPlace& place) noexcept;
/// The state word of a free line; never 0, and even.
[[nodiscard]] std::uint64_t catalog_free(const CatalogPlace& place) noexcept;
/// A number for a manifest, distinct among those whose pieces may still exist. Never 0.
[[nodiscard]] std::uint64_t catalog_manifest_id(std::uint64_t line, std::uint64_t save, std::uint64_t name_hash,
                                                std::uint64_t version) noexcept;
[[nodiscard]] std::uint64_t catalog_name_hash(std::string_view name) noexcept;
[[nodiscard]] IndexKey manifest_key(std::uint64_t manifest_id, std::uint64_t piece) noexcept;
/// Key and payload checksum (see payload_checksum) of a chunk, in one pass.
struct ChunkDigest {
  IndexKey key;
  std::uint32_t checksum = 0;
};
[[nodiscard]] ChunkDigest chunk_digest(std::span<const std::byte> bytes) noexcept;

}  // namespace dunnock
