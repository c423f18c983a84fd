// Bytes that follow from a number, so that a reader can tell whether they are right.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

namespace dunnock::crash {

/// Their length follows from it, too: `least` to below `most`.
inline std::vector<std::byte> bytes_of(std::uint64_t number, std::size_t least, std::size_t most) {
  std::mt19937_64 random(number);
  std::vector<std::byte> bytes(least + random() % (most - least));
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(random());
  if (bytes.size() >= sizeof number) std::memcpy(bytes.data(), &number, sizeof number);
  return bytes;
}

}  // namespace dunnock::crash
