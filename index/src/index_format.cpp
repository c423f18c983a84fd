#include "dunnock/index/index_format.hpp"

#include <xxhash.h>

#include <cstddef>

namespace dunnock {

std::uint64_t checksum_of(const IndexHeader& header) noexcept {
  const auto* bytes = reinterpret_cast<const unsigned char*>(&header);
  constexpr std::size_t kFrom = offsetof(IndexHeader, format_version);
  return XXH3_64bits(bytes + kFrom, offsetof(IndexHeader, checksum) - kFrom);
}

IndexKey IndexKey::of(std::string_view name) noexcept {
  const XXH128_hash_t hash = XXH3_128bits(name.data(), name.size());
  return {hash.low64, hash.high64};
}

}  // namespace dunnock
