#include "dunnock/pmem/header.hpp"

#include <xxhash.h>

namespace dunnock::detail {

std::uint64_t checksum_between(const void* begin, const void* end) noexcept {
  return XXH3_64bits(begin, static_cast<std::size_t>(static_cast<const char*>(end) - static_cast<const char*>(begin)));
}

}  // namespace dunnock::detail
