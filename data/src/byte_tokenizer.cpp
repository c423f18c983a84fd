#include "dunnock/data/byte_tokenizer.hpp"

#include <algorithm>

namespace dunnock::data {

std::vector<std::int32_t> ByteTokenizer::encode(std::string_view text) {
  std::vector<std::int32_t> tokens(text.size());
  std::ranges::transform(text, tokens.begin(), [](char c) { return static_cast<unsigned char>(c); });
  return tokens;
}

Result<std::string> ByteTokenizer::decode(std::span<const std::int32_t> tokens) {
  std::string text;
  text.reserve(tokens.size());
  for (const std::int32_t token : tokens) {
    if (token < 0 || token >= kVocabulary)
      return make_error(ErrorCode::kInvalidArgument,
                        "token " + std::to_string(token) + " is out of range: a byte is 0 to 255");
    text.push_back(static_cast<char>(token));
  }
  return text;
}

}  // namespace dunnock::data
