// Llama2cTokenizer: reads the tokenizer files of llama2.c (tokenizer.bin, tok512.bin), and encodes and decodes as it
// does.
//
//   4 B   the length of the longest token
//   then, for each token, to the end of the file:
//   4 B   score, float: pairs are merged into the token of the highest score first
//   4 B   length, 1 or more
//   n B   its bytes
//
// Tokens 0, 1 and 2 are unknown, begin and end of a text; 3 to 258 are single bytes, written "<0x00>" to "<0xFF>".
// Characters without their own token become their bytes, so any bytes can be encoded.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "dunnock/base/result.hpp"

namespace dunnock::data {

/// Threads: any number.
class Llama2cTokenizer {
 public:
  static constexpr std::int32_t kBegin = 1;
  static constexpr std::int32_t kEnd = 2;
  static constexpr std::int32_t kFirstByte = 3;

  /// Errors: Corrupt, with what is wrong: the file is cut off, no token can have such a length, or the tokens of bytes
  /// are not as above.
  [[nodiscard]] static Result<Llama2cTokenizer> parse(std::span<const std::byte> file);
  /// Errors: NotFound, ReadOnly, InvalidArgument (not a file), Io; those of parse().
  [[nodiscard]] static Result<Llama2cTokenizer> load(const std::string& path);

  [[nodiscard]] std::int32_t vocabulary() const noexcept { return static_cast<std::int32_t>(tokens_.size()); }
  /// The token's text, as in the file. `token`: 0 to vocabulary() - 1.
  [[nodiscard]] std::string_view text_of(std::int32_t token) const;

  struct EncodeOptions {
    bool begin = true;  ///< Put kBegin first.
    bool end = false;   ///< Put kEnd last.
  };
  /// The same tokens as llama2.c's encode(), which puts a space before a text that is not empty; but text that spells
  /// one of the tokens 0 to 258 ("<0x41>") never becomes it, whatever the vocabulary. O(n log n).
  [[nodiscard]] std::vector<std::int32_t> encode(std::string_view text, const EncodeOptions& options) const;
  /// The bytes of the tokens. kBegin and kEnd add no bytes, and the space after kBegin is omitted, so that text encoded
  /// with `begin` is restored exactly. Errors: InvalidArgument: no such token.
  [[nodiscard]] Result<std::string> decode(std::span<const std::int32_t> tokens) const;

 private:
  struct Token {
    std::string text;
    float score = 0;
  };
  Llama2cTokenizer() = default;
  [[nodiscard]] std::optional<std::int32_t> token_of(const std::string& text) const;

  std::vector<Token> tokens_;
  std::unordered_map<std::string, std::int32_t> by_text_;  // Only tokens from 259 on.
};

}  // namespace dunnock::data
