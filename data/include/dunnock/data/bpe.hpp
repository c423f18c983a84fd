// Bpe: byte-pair encoding as in GPT-2 (Sennrich et al., ACL 2016; Radford et al., 2019): any bytes to tokens and back.
//
//   text  --pieces.hpp-->  pieces  --each byte a token-->  --merge pairs, lowest rank first-->  tokens
//
// Reads and writes the two files that come with GPT-2 and that Hugging Face's tools exchange:
//
//   vocab.json   {"!": 0, .., "\u0120the": 262, ..}: each token's bytes, and its number; numbers may be left out
//   merges.txt   "#version: 0.2", then one pair per line, "\u0120 t": rank 0, 1, 2, ...; lines may end in CRLF, be
//                empty or comments ("# ..."), and a byte order mark may come first
//
// Both write bytes as visible characters: those that are printable in Latin-1 as themselves, the others as U+0100 and
// up, in order. Special tokens ("<|endoftext|>") are in the vocabulary and in no merge: text never becomes one.
//
// Also reads tokenizer.json, the one file that transformers 5 writes: everything that it can say about byte pairs on
// bytes, with the same tokens as Hugging Face's tokenizers (encode(text, add_special_tokens=False)). With that file,
// added tokens are found in the text, including special ones. Refuses by name what can't be done exactly.
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

namespace dunnock::data {

/// Threads: any number may use an object that does not change.
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
  /// Parses the contents of the files. Errors: Corrupt, with what is wrong: not JSON, numbers that are far apart, a
  /// byte without a token, a merge that involves something other than tokens, a duplicate merge.
  [[nodiscard]] static Result<Bpe> parse(const Texts& texts);

  /// The two parts of parse(), so that an error belongs to one file or the other.
  [[nodiscard]] static Result<Bpe> parse_vocabulary(std::string_view json);
  /// Errors: Corrupt; the object must not be used then.
  [[nodiscard]] Status add_merges(std::string_view text);

  /// Reads tokenizer.json. Errors: those of load(); Corrupt: the file is damaged, or contradicts itself; Unsupported: a
  /// model other than BPE, a pre_tokenizer other than ByteLevel, a normalizer, truncation or padding, a post_processor
  /// that adds tokens, dropout, prefixes and suffixes of words, added tokens of whole words only, or anything unknown.
  [[nodiscard]] static Result<Bpe> load_json(const std::string& path);
  [[nodiscard]] static Result<Bpe> parse_json(std::string_view text);

  struct TrainOptions {
    std::size_t vocabulary = 1024;  ///< Maximum number of tokens, including the 256 bytes and the special one.
    std::size_t occurrences = 2;    ///< A rarer pair gets no token.
    bool end_of_text = true;        ///< Adds kEndOfText as the last token.
  };
  /// Repeatedly merges the most frequent pair of the text; among equally frequent pairs, the one of the lowest tokens.
  /// The same text gives the same tokens. Takes several times the memory of the text's distinct words.
  /// Errors: InvalidArgument: a vocabulary of less than 256 (257 with kEndOfText) or more than 2^31 tokens.
  [[nodiscard]] static Result<Bpe> train(std::string_view text, const TrainOptions& options);

  /// Writes both files, each whole or not at all. Whatever only a tokenizer.json can express is omitted. Errors:
  /// NotFound (the directory), ReadOnly, NoSpace, Io.
  [[nodiscard]] Status save(const Paths& paths) const;
  [[nodiscard]] std::string vocabulary_json() const;
  [[nodiscard]] std::string merges_text() const;

  /// The largest token plus one; there may be fewer tokens.
  [[nodiscard]] std::int32_t vocabulary() const noexcept { return static_cast<std::int32_t>(bytes_.size()); }
  /// The bytes that a token stands for; empty for a number without a token. `token`: 0 to vocabulary() - 1.
  [[nodiscard]] std::string_view bytes_of(std::int32_t token) const;
  [[nodiscard]] std::optional<std::int32_t> token_of(std::string_view bytes) const;
  /// The token between documents, if there is one.
  [[nodiscard]] std::optional<std::int32_t> end_of_text() const { return token_of(kEndOfText); }

  /// The tokens of any bytes; for UTF-8 the same as GPT-2's own code returns (except for characters that are newer than
  /// its Unicode). O(n log n) at worst. Long texts are cheaper whole: each call remembers repeated pieces.
  [[nodiscard]] std::vector<std::int32_t> encode(std::string_view text) const;
  /// Is decode(encode(text)) == text for every text? Not if a tokenizer.json adds spaces or lets added tokens absorb
  /// them.
  [[nodiscard]] bool gives_back() const noexcept;
  /// The bytes of the tokens. They may not be UTF-8, since a token may be part of a character. A number without a token
  /// adds no bytes. Errors: InvalidArgument: a token outside the vocabulary.
  [[nodiscard]] Result<std::string> decode(std::span<const std::int32_t> tokens) const;

 private:
  struct Merge {
    std::int32_t left, right, merged;
  };
  static constexpr std::uint32_t kNoRank = ~std::uint32_t{0};

  /// A token that is looked for in the text before anything else.
  struct Added {
    std::string text;
    std::int32_t token = 0;
    bool eats_spaces_before = false;
    bool eats_spaces_behind = false;
  };
  /// Several added tokens that are looked for at once.
  class AddedSet {
   public:
    void add(Added added);
    [[nodiscard]] bool empty() const noexcept { return all_.empty(); }
    /// The longest of those that occur first, at or after `from`; null if there is none.
    [[nodiscard]] const Added* find(std::string_view text, std::size_t from, std::size_t& at) const;
    [[nodiscard]] const std::vector<Added>& all() const noexcept { return all_; }

   private:
    std::vector<Added> all_;  // By the first byte, then the longest first.
    std::array<std::array<std::uint32_t, 2>, 256> of_byte_{};
  };
  struct Pieces;
  class JsonReader;

  Bpe() = default;
  [[nodiscard]] static Result<Bpe> of_vocabulary(std::vector<std::string> bytes);
  [[nodiscard]] Result<Merge> pair_of(std::string_view left, std::string_view right) const;
  void index_merges();
  [[nodiscard]] std::uint32_t rank_of(std::int32_t left, std::int32_t right) const noexcept;
  void encode_short(std::string_view piece, std::vector<std::int32_t>& to) const;
  void encode_long(std::string_view piece, std::vector<std::int32_t>& to) const;
  void encode_piece(std::string_view piece, std::vector<std::int32_t>& to) const;
  void encode_pieces(std::string_view text, Pieces& pieces, std::vector<std::int32_t>& to) const;
  void encode_between(std::string_view text, bool normalized, Pieces& pieces, std::vector<std::int32_t>& to) const;

  std::vector<std::string> bytes_;                        // The bytes of each token.
  std::unordered_map<std::string, std::int32_t> tokens_;  // The token of given bytes.
  std::array<std::int32_t, 256> byte_tokens_{};
  std::vector<Merge> merges_;                                   // By rank.
  std::vector<std::pair<std::uint64_t, std::uint32_t>> ranks_;  // Hash table: a pair, and its rank or kNoRank.
  // Only from a tokenizer.json.
  AddedSet added_;             // Looked for first,
  AddedSet added_normalized_;  // and then these.
  bool adds_space_ = false;    // Adds a space before a text that begins with none.
  bool whole_texts_ = false;   // Whole texts are pieces.
  bool ignores_merges_ = false;
  bool any_order_ = false;  // Merges may use what later ones make.
};

}  // namespace dunnock::data
