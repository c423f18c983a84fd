#include "dunnock/index/checkpoint_format.hpp"

#define XXH_INLINE_ALL  // Compiled here, with the vector instructions that the rest of the library uses.
#include <xxhash.h>

#include <string_view>

namespace dunnock {

namespace {
std::uint64_t hash_of(const CatalogPlace& place) noexcept {
  static_assert(std::has_unique_object_representations_v<CatalogPlace>);
  return XXH3_64bits_withSeed(&place, sizeof place, kCatalogMagic);
}
}  // namespace

std::uint64_t catalog_mark(const CatalogFields& fields, const CatalogPlace& place) noexcept {
  static_assert(std::has_unique_object_representations_v<CatalogFields>);
  return XXH3_64bits_withSeed(&fields, sizeof fields, hash_of(place)) | 1;
}

std::uint64_t catalog_free(const CatalogPlace& place) noexcept { return (hash_of(place) | 2) & ~std::uint64_t{1}; }

std::uint64_t catalog_manifest_id(std::uint64_t line, std::uint64_t save, std::uint64_t name_hash,
                                  std::uint64_t version) noexcept {
  const std::uint64_t words[4] = {line, save, name_hash, version};
  return XXH3_64bits(words, sizeof words) | 1;
}

std::uint64_t catalog_name_hash(std::string_view name) noexcept { return XXH3_64bits(name.data(), name.size()); }

IndexKey manifest_key(std::uint64_t manifest_id, std::uint64_t piece) noexcept {
  const std::uint64_t words[2] = {manifest_id, piece};
  const XXH128_hash_t hash = XXH3_128bits_withSeed(words, sizeof words, 0x6d616e6966657374ULL);
  return {hash.low64, hash.high64};
}

ChunkDigest chunk_digest(std::span<const std::byte> bytes) noexcept {
  XXH3_state_t state;  // One pass gives both: the two hashes differ in how they end only.
  XXH3_128bits_reset(&state);
  XXH3_128bits_update(&state, bytes.data(), bytes.size());
  const XXH128_hash_t hash = XXH3_128bits_digest(&state);
  return {{hash.low64, hash.high64}, static_cast<std::uint32_t>(XXH3_64bits_digest(&state))};
}

}  // namespace dunnock
