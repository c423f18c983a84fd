// Reading and writing the header of a safetensors file (https://huggingface.co/docs/safetensors).
//
//   8 B   length of the header, little endian
//   n B   JSON: {"__metadata__": {text: text}, name: {"dtype": "F32", "shape": [..], "data_offsets": [begin, end]}, ..}
//   ...   the tensors' bytes, without gaps; offsets count from the end of the header
//
// The parser believes nothing: lengths, types, names that occur twice, shapes that do not fit their bytes, gaps,
// overlaps and bytes behind the JSON other than white space are refused, and so is a header of more than 100 MB. It
// takes no header that safetensors 0.8 refuses. It is stricter in this: the format forbids names that occur twice and
// white space before the brace, and tensors written as lists or with more than 255 dimensions are refused. Members that
// we do not know are passed over, as they are there.
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
  std::uint64_t begin_bytes = 0;  ///< From the end of the header.
  friend bool operator==(const SafetensorsEntry&, const SafetensorsEntry&) = default;
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> tensors;                   ///< In the order of their bytes.
  std::vector<std::pair<std::string, std::string>> notes;  ///< __metadata__, in alphabetical order.
  std::uint64_t data_bytes = 0;                            ///< Bytes that follow the header.
};

inline constexpr std::uint64_t kSafetensorsHeaderBytesMax = 100'000'000;

/// Parses the JSON (without the eight bytes before it). `data_bytes`: how many bytes follow it in the file.
/// Errors: Corrupt, with what is wrong; Unsupported (a dtype that we do not know).
[[nodiscard]] Result<SafetensorsHeader> parse_safetensors_header(std::span<const std::byte> json,
                                                                 std::uint64_t data_bytes);

/// The eight bytes and the JSON, padded with spaces so that the data starts on a multiple of 8. The tensors' bytes are
/// to follow in this order. Errors: InvalidArgument (a name twice or reserved, text that is not UTF-8, too long).
[[nodiscard]] Result<std::string> safetensors_header(std::span<const TensorSpec> tensors,
                                                     std::span<const std::pair<std::string, std::string>> notes);

}  // namespace dunnock
