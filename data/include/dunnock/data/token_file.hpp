// TokenFile: a text as numbers, in a file that is mapped, not read, so that memory does not limit its size.
//
//   0   8 B  "DNKTOKEN"
//   8   4 B  version, 1
//   12  4 B  width_bytes: bytes per token, 2 or 4
//   16  8 B  count of tokens
//   24  8 B  vocabulary: every token is below it
//   32  8 B  XXH3-64 of the tokens' bytes
//   40  16 B zero
//   56  8 B  XXH3-64 of the 56 bytes above
//   64  ...  tokens, little endian; nothing follows
//
// TokenFileWriter writes the tokens into PATH.part after a header of zeros, then the header, and then gives the file
// its name. So an incomplete file has another name or no header, and is refused.
//
// TokenFile also reads the files of nanoGPT and llm.c (Format). Not for text: see byte_tokenizer.hpp and bpe.hpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "dunnock/base/result.hpp"

namespace dunnock {
class InputFile;
}
namespace dunnock::data {

namespace detail {
class TokenSink;
}  // namespace detail

/// The first 64 bytes of a file. Changing it bumps the version.
struct TokenFileHeader {
  static constexpr std::uint64_t kMagic = 0x4e454b4f544b4e44;  // "DNKTOKEN"
  static constexpr std::uint32_t kVersion = 1;

  std::uint64_t magic = kMagic;
  std::uint32_t version = kVersion;
  std::uint32_t width_bytes = 0;
  std::uint64_t count = 0;
  std::uint64_t vocabulary = 0;
  std::uint64_t tokens_checksum = 0;
  std::uint64_t zero[2] = {0, 0};
  std::uint64_t checksum = 0;
};
static_assert(sizeof(TokenFileHeader) == 64);
static_assert(std::is_trivially_copyable_v<TokenFileHeader>);

/// A range of a file's tokens.
struct TokenRange {
  std::uint64_t first = 0;
  std::uint64_t count = 0;
  friend bool operator==(const TokenRange&, const TokenRange&) = default;
};

struct TokenSplit {
  TokenRange training;
  TokenRange validation;
};

/// Assigns the last `validation_share` of `count` tokens, rounded down, to validation, the others to training: a text's
/// end is a different text from its beginning, while samples from everywhere would be neighbors of the training data.
/// `validation_share`: 0 to 1.
[[nodiscard]] TokenSplit split_tokens(std::uint64_t count, double validation_share);

/// A handle to an open file; copies refer to the same file. Threads: any number.
class TokenFile {
 public:
  enum class Format : std::uint8_t {
    kDunnock,  ///< As above.
    kRaw16,    ///< Only tokens of 16 bits, little endian (nanoGPT).
    kRaw32,    ///< The same with 32 bits.
    kLlmC,     ///< 256 words of 32 bits: 20240520, 1, count, zeros; then 16 bits per token. 20240801, 7: 32 bits.
  };
  struct Options {
    Format format = Format::kDunnock;
    std::uint64_t vocabulary = 0;  ///< For the other formats, which do not store it: every token is below it.
    /// Reads the whole file: compares its checksum (kDunnock) or computes one (other formats), and finds a token that
    /// is not below the vocabulary now rather than after hours.
    bool verify = true;
  };
  static constexpr std::uint64_t kVocabularyMax = std::uint64_t{1} << 31;

  /// Errors: NotFound, ReadOnly, Io; InvalidArgument: not a file, or no vocabulary for a format that needs one;
  /// WrongVersion; Corrupt: torn, foreign, of another size than its header says, damaged, or with a token that is not
  /// below the vocabulary, whose position is named.
  /// The time grows with the file only if it is verified: a second of one processor for each 3.7 GB that the system has
  /// in memory (an EPYC in a virtual machine), otherwise as long as the disk takes to read it.
  [[nodiscard]] static Result<TokenFile> open(const std::string& path, const Options& options);
  [[nodiscard]] static Result<TokenFile> open(const std::string& path) { return open(path, Options{}); }

  [[nodiscard]] std::uint64_t count() const noexcept { return count_; }
  [[nodiscard]] std::uint64_t vocabulary() const noexcept { return vocabulary_; }
  [[nodiscard]] unsigned width_bytes() const noexcept { return width_bytes_; }
  [[nodiscard]] TokenRange all() const noexcept { return {0, count_}; }
  [[nodiscard]] Format format() const noexcept { return format_; }
  /// The largest token; empty if there are no tokens, or they were not verified.
  [[nodiscard]] std::optional<std::uint32_t> largest() const noexcept { return largest_; }
  /// XXH3-64 of the tokens' bytes: from the header or, for the other formats, as computed by `verify` (otherwise 0).
  [[nodiscard]] std::uint64_t checksum() const noexcept { return checksum_; }
  [[nodiscard]] const std::string& path() const noexcept;

  /// Copies to.size() tokens from `first` on, which must be in the file. Errors: Corrupt: a token is not below the
  /// vocabulary, or the file has become shorter since it was opened.
  [[nodiscard]] Status copy(std::uint64_t first, std::span<std::int32_t> to) const;

 private:
  TokenFile() = default;
  std::shared_ptr<const InputFile> file_;
  const std::byte* tokens_ = nullptr;
  std::uint64_t count_ = 0;
  std::uint64_t vocabulary_ = 0;
  std::uint64_t checksum_ = 0;
  std::optional<std::uint32_t> largest_;
  unsigned width_bytes_ = 0;
  Format format_ = Format::kDunnock;
};

/// Writes a file token by token, with 1 MiB of memory. Threads: one at a time.
class TokenFileWriter {
 public:
  /// Creates a file with tokens of 16 bits if `vocabulary` fits, otherwise of 32. Errors: InvalidArgument: no
  /// vocabulary, or more than kVocabularyMax; NotFound (the directory), ReadOnly, NoSpace, Io.
  [[nodiscard]] static Result<TokenFileWriter> create(const std::string& path, std::uint64_t vocabulary);
  TokenFileWriter(TokenFileWriter&&) noexcept;
  TokenFileWriter& operator=(TokenFileWriter&&) noexcept;
  /// Leaves nothing if finish() was not called.
  ~TokenFileWriter();

  /// Errors: InvalidArgument: a token is not below the vocabulary (none of this call is written); NoSpace, Io.
  [[nodiscard]] Status append(std::span<const std::int32_t> tokens);
  /// Completes the file, makes it durable and gives it its name, replacing an existing file. Call it once, last.
  /// Errors: NoSpace, ReadOnly, Io; then there is no file of this name, or the previous one.
  [[nodiscard]] Status finish();

 private:
  explicit TokenFileWriter(std::unique_ptr<detail::TokenSink> sink) noexcept;
  std::unique_ptr<detail::TokenSink> sink_;
};

}  // namespace dunnock::data
