#include "dunnock/filter/format.hpp"

#include <xxhash.h>

namespace dunnock {

std::uint64_t checksum_of(const FilterHeader& header) noexcept {
  const auto* bytes = reinterpret_cast<const unsigned char*>(&header);
  return XXH3_64bits(bytes + offsetof(FilterHeader, format_version),
                     offsetof(FilterHeader, checksum) - offsetof(FilterHeader, format_version));
}

}  // namespace dunnock
