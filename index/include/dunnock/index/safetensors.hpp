// Reading and writing the header of a safetensors file (https://huggingface.co/docs/safetensors).
//
//   8 B   length of the header, little endian
//   n B   JSON: {"__metadata__": {text: text}, name: {"dtype": "F32", "shape": [..], "data_offsets": [begin, end]}, ..}
//   ...   the tensors' bytes, without gaps; offsets count from the end of the header
//
// The parser trusts nothing: it refuses wrong lengths and types, duplicate names, shapes that do not fit their bytes,
// gaps, overlaps, bytes after the JSON other than white space, and a header of more than 100 MB. It accepts no header
// that safetensors 0.8 refuses. It is stricter in refusing duplicate names and white space before the brace, which the
// format forbids, and tensors written as lists or with more than 255 dimensions. Like safetensors, it ignores unknown
// members.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dunnock/base/result.hpp"
#include "dunnock/index/tensor.hpp"

namespace dunnock {

struct SafetensorsEntry {
  TensorSpec spec;
  std::uint64_t begin_bytes = 0;  ///< Offset from the end of the header.
  friend bool operator==(const SafetensorsEntry&, const SafetensorsEntry&) = default;
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> tensors;                   ///< In the order of their bytes.
  std::vector<std::pair<std::string, std::string>> notes;  ///< __metadata__, in alphabetical order.
  std::uint64_t data_bytes = 0;                            ///< Bytes that follow the header.
};

inline constexpr std::uint64_t kSafetensorsHeaderBytesMax = 100'000'000;

/// Parses the JSON (without the eight bytes before it). `data_bytes`: the number of bytes after it in the file.
/// Errors: Corrupt, with what is wrong; Unsupported (an unknown dtype).
[[nodiscard]] Result<SafetensorsHeader> parse_safetensors_header(std::span<const std::byte> json,
                                                                 std::uint64_t data_bytes);

/// The eight bytes and the JSON, padded with spaces so that the data starts on a multiple of 8. The tensors' bytes must
/// follow in this order. Errors: InvalidArgument (a duplicate or reserved name, text that is not UTF-8, too long).
[[nodiscard]] Result<std::string> safetensors_header(std::span<const TensorSpec> tensors,
                                                     std::span<const std::pair<std::string, std::string>> notes);

}  // namespace dunnock
