#include "dunnock/index/prefix_hash.hpp"

#define XXH_INLINE_ALL  // Compiled here, with the vector instructions that the rest of the library uses.
#include <xxhash.h>

namespace dunnock::detail {

IndexKey chained_hash(const IndexKey& before, std::span<const std::byte> bytes) noexcept {
  XXH3_state_t state;
  XXH3_128bits_reset(&state);
  XXH3_128bits_update(&state, &before, sizeof before);
  XXH3_128bits_update(&state, bytes.data(), bytes.size());
  const XXH128_hash_t hash = XXH3_128bits_digest(&state);
  return {hash.low64, hash.high64};
}

IndexKey chain_start(const HashSeed& secret) noexcept {
  const XXH128_hash_t hash = XXH3_128bits(secret.words.data(), sizeof secret.words);
  return {hash.low64, hash.high64};
}

}  // namespace dunnock::detail
