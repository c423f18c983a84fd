#include "dunnock/index/index_format.hpp"

#include <xxhash.h>

#include <cstddef>

namespace dunnock {

IndexKey IndexKey::of(std::string_view name) noexcept {
  const XXH128_hash_t hash = XXH3_128bits(name.data(), name.size());
  return {hash.low64, hash.high64};
}

}  // namespace dunnock
