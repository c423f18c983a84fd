// Bpe: byte-pair encoding as GPT-2 has it (Sennrich et al., ACL 2016; Radford et al., 2019): any bytes to tokens and
// back.
//
//   text  --pieces.hpp-->  pieces  --each byte a token-->  --merge pairs, lowest rank first-->  tokens
//
// Reads and writes the two files that come with GPT-2 and that Hugging Face's tools exchange:
//
//   vocab.json   {"!": 0, .., "\u0120the": 262, ..}: each token's bytes, and its number; the numbers are 0, 1, 2, ...
//   merges.txt   "#version: 0.2", then a pair a line, "\u0120 t": rank 0, 1, 2, ...
//
// Both write bytes as visible characters: those that are printable in Latin-1 as themselves, the others as U+0100 and
// up, in order. Special tokens ("<|endoftext|>") stand in the vocabulary and in no merge: text never becomes one.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "dunnock/base/result.hpp"

namespace dunnock::training {

/// Threads: any number may use one that does not change.
class Bpe {
 public:
  static constexpr std::string_view kEndOfText = "<|endoftext|>";

  struct Paths {
    std::string vocabulary;  ///< vocab.json
    std::string merges;      ///< merges.txt
  };
  /// Errors: NotFound, ReadOnly, InvalidArgument (not a file), Io; those of parse().
  [[nodiscard]] static Result<Bpe> load(const Paths& paths);
  struct Texts {
    std::string_view vocabulary;
    std::string_view merges;
  };
  /// What stands in the files. Errors: Corrupt, with what is wrong: not JSON, numbers that leave gaps, a byte without a
  /// token, a merge of or into what is no token, one that stands there twice.
  [[nodiscard]] static Result<Bpe> parse(const Texts& texts);

  struct TrainOptions {
    std::size_t vocabulary = 1024;  ///< At most so many tokens, 256 bytes and the special one among them.
    std::size_t occurrences = 2;    ///< A pair that is rarer gets no token.
    bool end_of_text = true;        ///< One more token, the last: kEndOfText.
  };
  /// Merges the most frequent pair of the text, again and again; of pairs as frequent, that of the lowest tokens.
  /// The same text gives the same tokens. Takes memory of some times the text's different words.
  /// Errors: InvalidArgument: a vocabulary of less than 256 (257 with kEndOfText) or more than 2^31 tokens.
  [[nodiscard]] static Result<Bpe> train(std::string_view text, const TrainOptions& options);

  /// Writes both files, each whole or not at all. Errors: NotFound (the directory), ReadOnly, NoSpace, Io.
  [[nodiscard]] Status save(const Paths& paths) const;
  [[nodiscard]] std::string vocabulary_json() const;
  [[nodiscard]] std::string merges_text() const;

  [[nodiscard]] std::int32_t vocabulary() const noexcept { return static_cast<std::int32_t>(bytes_.size()); }
  /// What a token stands for. `token`: 0 to vocabulary() - 1.
  [[nodiscard]] std::string_view bytes_of(std::int32_t token) const;
  [[nodiscard]] std::optional<std::int32_t> token_of(std::string_view bytes) const;
  /// The token between documents, if there is one.
  [[nodiscard]] std::optional<std::int32_t> end_of_text() const { return token_of(kEndOfText); }

  /// The tokens of any bytes; of UTF-8 the same as GPT-2's own code gives (up to characters that are newer than its
  /// Unicode). O(n log n) at worst. Long texts are cheaper whole: pieces that occur again are remembered for one call.
  [[nodiscard]] std::vector<std::int32_t> encode(std::string_view text) const;
  /// The bytes; perhaps not UTF-8, for a token may be a part of a character. Errors: InvalidArgument: no such token.
  [[nodiscard]] Result<std::string> decode(std::span<const std::int32_t> tokens) const;

 private:
  struct Merge {
    std::int32_t left, right, merged;
  };
  static constexpr std::uint32_t kNoRank = ~std::uint32_t{0};

  Bpe() = default;
  [[nodiscard]] static Result<Bpe> of_vocabulary(std::vector<std::string> bytes);
  void index_merges();
  [[nodiscard]] std::uint32_t rank_of(std::int32_t left, std::int32_t right) const noexcept;
  void encode_short(std::string_view piece, std::vector<std::int32_t>& to) const;
  void encode_long(std::string_view piece, std::vector<std::int32_t>& to) const;

  std::vector<std::string> bytes_;                        // Of each token.
  std::unordered_map<std::string, std::int32_t> tokens_;  // Of bytes.
  std::array<std::int32_t, 256> byte_tokens_{};
  std::vector<Merge> merges_;                                   // By rank.
  std::vector<std::pair<std::uint64_t, std::uint32_t>> ranks_;  // Hash table: a pair, and its rank or kNoRank.
};

}  // namespace dunnock::training
