// ByteTokenizer: each byte is a token. For small models, and as a baseline for other tokenizers.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dunnock/base/result.hpp"

namespace dunnock::data {

struct ByteTokenizer {
  static constexpr std::int32_t kVocabulary = 256;

  [[nodiscard]] static std::vector<std::int32_t> encode(std::string_view text);
  /// Errors: InvalidArgument: a token that is not a byte.
  [[nodiscard]] static Result<std::string> decode(std::span<const std::int32_t> tokens);
};

}  // namespace dunnock::data
