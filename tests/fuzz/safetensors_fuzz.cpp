// Fuzzes the parsers of what comes from outside: safetensors headers and manifests. Whatever the bytes are, the answer
// is an error or something that is sound and can be written and parsed again.
#include <xxhash.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <vector>

#include "dunnock/index/manifest.hpp"
#include "dunnock/index/safetensors.hpp"

namespace {

void require(bool sound) {
  if (!sound) std::abort();
}

void safetensors(std::span<const std::byte> json, std::uint64_t data_bytes) {
  const auto header = dunnock::parse_safetensors_header(json, data_bytes);
  if (!header) return;
  std::uint64_t at = 0;
  std::vector<dunnock::TensorSpec> specs;
  for (const auto& entry : header->tensors) {
    require(entry.begin_bytes == at && entry.spec.bytes().has_value());
    at += *entry.spec.bytes();
    specs.push_back(entry.spec);
  }
  require(at == data_bytes);
  const auto text = dunnock::safetensors_header(specs, header->notes);
  if (!text) return;  // A name that is not UTF-8 can't be written.
  const auto again = dunnock::parse_safetensors_header(std::as_bytes(std::span(*text).subspan(8)), data_bytes);
  require(again && again->notes == header->notes && again->tensors.size() == header->tensors.size());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  if (size < 3) return 0;
  const std::uint64_t data_bytes = data[0] | static_cast<std::uint64_t>(data[1]) << 8;
  if (data[2] % 4 != 0) {
    safetensors(bytes.subspan(3), data_bytes);
  } else {
    // With the checksum that a manifest ends with, or nothing would come through.
    std::vector<std::byte> summed(bytes.begin() + 3, bytes.end());
    const std::uint64_t sum = XXH3_64bits(summed.data(), summed.size());
    const auto tail = std::as_bytes(std::span(&sum, 1));
    summed.insert(summed.end(), tail.begin(), tail.end());
    const auto manifest = dunnock::decode_manifest(summed);
    if (manifest) require(dunnock::decode_manifest(dunnock::encode(*manifest)) == *manifest);
  }
  return 0;
}
