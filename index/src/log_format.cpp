#include "dunnock/index/log_format.hpp"

#define XXH_INLINE_ALL  // Compiled here, with the vector instructions that the rest of the library uses.
#include <xxhash.h>

namespace dunnock {

std::uint64_t record_mark(std::uint64_t position, const RecordHeader& header) noexcept {
  return XXH3_64bits_withSeed(&header, offsetof(RecordHeader, mark), position) | 1;
}

std::uint32_t payload_checksum(std::span<const std::byte> payload) noexcept {
  return static_cast<std::uint32_t>(XXH3_64bits(payload.data(), payload.size()));
}

}  // namespace dunnock
