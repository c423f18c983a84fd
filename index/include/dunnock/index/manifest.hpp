// The manifest of a checkpoint: which tensors it has, and the keys of the chunks that hold their bytes.
//
//   magic 8 B | version 4 B | chunk_bytes 4 B | name | version of the checkpoint 8 B | created 8 B
//   tensors 8 B | for each: name, dtype 1 B, dimensions 1 B, 8 B each; 16 B for each chunk
//   notes 8 B   | for each: key, value
//   XXH3 of everything before it, 8 B
//
// Numbers are little endian; a name, key or value is its length in 4 bytes and its bytes. A tensor of n bytes has
// ceil(n / chunk_bytes) chunks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dunnock/base/result.hpp"
#include "dunnock/index/index_format.hpp"
#include "dunnock/index/tensor.hpp"

namespace dunnock {

struct ManifestTensor {
  TensorSpec spec;
  std::vector<IndexKey> chunks;
  friend bool operator==(const ManifestTensor&, const ManifestTensor&) = default;
};

struct Manifest {
  std::string name;
  std::uint64_t version = 0;
  std::uint64_t created_seconds = 0;  ///< Since 1970.
  std::uint32_t chunk_bytes = 0;
  std::vector<ManifestTensor> tensors;
  std::vector<std::pair<std::string, std::string>> notes;  ///< What safetensors calls __metadata__.

  [[nodiscard]] std::uint64_t bytes() const noexcept;
  [[nodiscard]] const ManifestTensor* find(std::string_view tensor) const noexcept;
  friend bool operator==(const Manifest&, const Manifest&) = default;
};

[[nodiscard]] std::vector<std::byte> encode(const Manifest& manifest);
/// Decodes any bytes safely: never reads beyond them. Errors: Corrupt, WrongVersion.
[[nodiscard]] Result<Manifest> decode_manifest(std::span<const std::byte> bytes);

/// The number of chunks of a tensor of this many bytes.
[[nodiscard]] constexpr std::uint64_t chunks_of(std::uint64_t bytes, std::uint32_t chunk_bytes) noexcept {
  return bytes / chunk_bytes + (bytes % chunk_bytes != 0 ? 1 : 0);
}

}  // namespace dunnock
