#include "dunnock/data/token_file.hpp"

#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "dunnock/base/check.hpp"
#include "dunnock/base/input_file.hpp"
#include "dunnock/base/output_file.hpp"

namespace dunnock::data {
namespace {

std::uint64_t checksum_of(const TokenFileHeader& header) {
  return XXH3_64bits(&header, offsetof(TokenFileHeader, checksum));
}

/// Tokens as they stand in a file become those of the caller; the largest of them.
template <class Stored>
std::uint32_t widen(const std::byte* from, std::span<std::int32_t> to) {
  std::uint32_t largest = 0;
  for (std::size_t i = 0; i < to.size(); ++i) {
    Stored token;
    std::memcpy(&token, from + i * sizeof token, sizeof token);  // Formats of others need not be aligned.
    to[i] = static_cast<std::int32_t>(token);
    largest = std::max<std::uint32_t>(largest, token);
  }
  return largest;
}

struct Place {
  std::uint64_t begin_bytes = 0;
  std::uint64_t count = 0;
  std::uint64_t vocabulary = 0;
  std::uint64_t checksum = 0;
  unsigned width_bytes = 0;
};

tl::unexpected<Error> corrupt(const std::string& what) {
  return make_error(ErrorCode::kCorrupt, "not a token file: " + what);
}

/// Checks that the file has as many bytes as `place` requires. Errors: why it does not.
Status check_size(std::uint64_t bytes, const Place& place) {
  const std::uint64_t there = bytes - place.begin_bytes;
  if (place.count > there / place.width_bytes || place.count * place.width_bytes != there)
    return corrupt("its header says " + std::to_string(place.count) + " tokens of " +
                   std::to_string(place.width_bytes) + " bytes, but " + std::to_string(there) + " bytes follow it");
  return {};
}

Result<Place> place_dunnock(std::span<const std::byte> bytes) {
  TokenFileHeader header;
  if (bytes.size() < sizeof header) return corrupt("it has no header");
  std::memcpy(&header, bytes.data(), sizeof header);
  if (header.magic == 0) return corrupt("it was not written completely");
  if (header.magic != TokenFileHeader::kMagic) return corrupt("its magic word is missing");
  if (header.version != TokenFileHeader::kVersion)
    return make_error(ErrorCode::kWrongVersion, "the token file has version " + std::to_string(header.version) +
                                                    "; this build reads " + std::to_string(TokenFileHeader::kVersion));
  if (header.checksum != checksum_of(header)) return corrupt("its header is damaged");
  if (header.width_bytes != 2 && header.width_bytes != 4)
    return corrupt("a token needs 2 or 4 bytes, not " + std::to_string(header.width_bytes));
  if (header.vocabulary == 0 || header.vocabulary > TokenFile::kVocabularyMax)
    return corrupt("its vocabulary needs 1 to 2^31 tokens, not " + std::to_string(header.vocabulary));
  const Place place{sizeof header, header.count, header.vocabulary, header.tokens_checksum, header.width_bytes};
  DUNNOCK_TRY(check_size(bytes.size(), place));
  return place;
}

Result<Place> place_llm_c(std::span<const std::byte> bytes, std::uint64_t vocabulary) {
  constexpr std::size_t kHeaderBytes = 256 * 4;
  struct {
    std::uint32_t magic, version, count;
  } header{};
  if (bytes.size() < kHeaderBytes) return corrupt("it has no llm.c header");
  std::memcpy(&header, bytes.data(), sizeof header);
  unsigned width = 0;
  if (header.magic == 20240520 && header.version == 1) width = 2;
  if (header.magic == 20240801 && header.version == 7) width = 4;
  if (width == 0)
    return corrupt("an llm.c header begins with 20240520, 1 or with 20240801, 7, not with " +
                   std::to_string(header.magic) + ", " + std::to_string(header.version));
  const Place place{kHeaderBytes, header.count, vocabulary, 0, width};
  DUNNOCK_TRY(check_size(bytes.size(), place));
  return place;
}

Result<Place> place_of(std::span<const std::byte> bytes, const TokenFile::Options& options) {
  using Format = TokenFile::Format;
  if (options.format == Format::kDunnock) return place_dunnock(bytes);
  if (options.vocabulary == 0 || options.vocabulary > TokenFile::kVocabularyMax)
    return make_error(ErrorCode::kInvalidArgument,
                      "a token file of this format needs a vocabulary of 1 to 2^31 tokens, not " +
                          std::to_string(options.vocabulary));
  if (options.format == Format::kLlmC) return place_llm_c(bytes, options.vocabulary);
  const unsigned width = options.format == Format::kRaw16 ? 2 : 4;
  if (bytes.size() % width != 0)
    return corrupt(std::to_string(bytes.size()) + " bytes are not a whole number of tokens of " +
                   std::to_string(width) + " bytes");
  return Place{0, bytes.size() / width, options.vocabulary, 0, width};
}

/// What a reading of all tokens has found.
struct Scan {
  std::uint64_t checksum = 0;
  std::uint32_t largest = 0;
  struct Wrong {
    std::uint64_t position;
    std::uint32_t token;
  };
  std::optional<Wrong> wrong;  // The first that is not below the vocabulary.
};

template <class Stored>
void look_at(std::span<const std::byte> block, std::uint64_t first, std::uint64_t vocabulary, Scan& scan) {
  const auto* const tokens = reinterpret_cast<const Stored*>(block.data());  // The block is aligned.
  const std::size_t count = block.size() / sizeof(Stored);
  Stored largest = 0;
  for (std::size_t i = 0; i < count; ++i) largest = std::max(largest, tokens[i]);
  scan.largest = std::max<std::uint32_t>(scan.largest, largest);
  if (largest < vocabulary || scan.wrong) return;
  for (std::size_t i = 0; i < count && !scan.wrong; ++i) {
    if (tokens[i] >= vocabulary) scan.wrong = {first + i, tokens[i]};
  }
}

/// Read, not mapped: a file that is cut off meanwhile is an error then, and no signal.
Result<Scan> scan_tokens(const InputFile& file, const Place& place) {
  constexpr std::size_t kBlockBytes = 256U << 10;  // Is still in a core's cache when it is looked at.
  std::vector<std::uint32_t> memory(kBlockBytes / sizeof(std::uint32_t));
  const std::span<std::byte> block = std::as_writable_bytes(std::span(memory));
  const std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state(XXH3_createState(), XXH3_freeState);
  if (state == nullptr) return make_error(ErrorCode::kNoSpace, "can't allocate memory for checking the tokens");
  XXH3_64bits_reset(state.get());
  Scan scan;
  const std::uint64_t bytes = place.count * place.width_bytes;
  for (std::uint64_t at = 0; at < bytes; at += kBlockBytes) {
    const auto part = block.first(std::min<std::uint64_t>(kBlockBytes, bytes - at));
    DUNNOCK_TRY(file.read(place.begin_bytes + at, part));
    XXH3_64bits_update(state.get(), part.data(), part.size());
    const std::uint64_t first = at / place.width_bytes;
    if (place.width_bytes == 2) {
      look_at<std::uint16_t>(part, first, place.vocabulary, scan);
    } else {
      look_at<std::uint32_t>(part, first, place.vocabulary, scan);
    }
  }
  scan.checksum = XXH3_64bits_digest(state.get());
  return scan;
}

}  // namespace

TokenSplit split_tokens(std::uint64_t count, double validation_share) {
  DUNNOCK_CHECK(validation_share >= 0 && validation_share <= 1, "a share is from 0 to 1");
  const auto validation = std::min(count, static_cast<std::uint64_t>(static_cast<double>(count) * validation_share));
  return {{0, count - validation}, {count - validation, validation}};
}

Result<TokenFile> TokenFile::open(const std::string& path, const Options& options) {
  DUNNOCK_TRY(auto mapped, InputFile::open(path));
  const auto place = place_of(mapped.bytes(), options);
  if (!place) return make_error(place.error().code, path + ": " + place.error().message);
  TokenFile file;
  file.checksum_ = place->checksum;
  if (options.verify) {
    const auto scan = scan_tokens(mapped, *place);
    DUNNOCK_TRY(scan);
    if (options.format == Format::kDunnock && scan->checksum != place->checksum)
      return make_error(ErrorCode::kCorrupt, path + ": its tokens are damaged: they fail their checksum");
    if (scan->wrong)
      return make_error(ErrorCode::kCorrupt, path + ": token number " + std::to_string(scan->wrong->position) + " is " +
                                                 std::to_string(scan->wrong->token) +
                                                 ", which is out of range: the vocabulary has " +
                                                 std::to_string(place->vocabulary) + " tokens");
    file.checksum_ = scan->checksum;
    if (place->count > 0) file.largest_ = scan->largest;
  }
  file.format_ = options.format;
  file.file_ = std::make_shared<const InputFile>(std::move(mapped));
  file.tokens_ = file.file_->bytes().data() + place->begin_bytes;
  file.count_ = place->count;
  file.vocabulary_ = place->vocabulary;
  file.width_bytes_ = place->width_bytes;
  return file;
}

const std::string& TokenFile::path() const noexcept { return file_->path(); }

Status TokenFile::copy(std::uint64_t first, std::span<std::int32_t> to) const {
  DUNNOCK_CHECK(first <= count_, "the range of tokens is within the file");
  DUNNOCK_CHECK(to.size() <= count_ - first, "the range of tokens is within the file");
  if (!file_->still_whole()) return make_error(ErrorCode::kCorrupt, path() + " was truncated while it was open");
  const std::byte* from = tokens_ + first * width_bytes_;
  const std::uint32_t largest = width_bytes_ == 2 ? widen<std::uint16_t>(from, to) : widen<std::uint32_t>(from, to);
  if (!to.empty() && largest >= vocabulary_)
    return make_error(ErrorCode::kCorrupt, path() + ": token " + std::to_string(largest) + " at or after position " +
                                               std::to_string(first) + " is out of range: the vocabulary has " +
                                               std::to_string(vocabulary_) + " tokens");
  return {};
}

// ----- the writer ---------------------------------------------------------------------------------------------------

namespace detail {

class TokenSink {
 public:
  static constexpr std::size_t kBufferBytes = 1U << 20;

  TokenSink(OutputFile file, std::string path, std::uint64_t vocabulary)
      : file_(std::move(file)), path_(std::move(path)), state_(XXH3_createState()) {
    header_.vocabulary = vocabulary;
    header_.width_bytes = vocabulary <= 1U << 16 ? 2 : 4;
    XXH3_64bits_reset(state_);
    buffer_.resize(kBufferBytes);
  }
  TokenSink(const TokenSink&) = delete;
  TokenSink& operator=(const TokenSink&) = delete;
  ~TokenSink() { XXH3_freeState(state_); }

  Status append(std::span<const std::int32_t> tokens) {
    DUNNOCK_CHECK(!finished_, "a finished file gets no more tokens");
    const auto wrong = std::ranges::find_if(tokens, [this](std::int32_t token) {
      return token < 0 || static_cast<std::uint64_t>(token) >= header_.vocabulary;
    });
    if (wrong != tokens.end())
      return make_error(ErrorCode::kInvalidArgument, path_ + ": token " + std::to_string(*wrong) +
                                                         " is out of range: the vocabulary has " +
                                                         std::to_string(header_.vocabulary) + " tokens");
    for (auto rest = tokens; !rest.empty();) {
      const std::size_t count = std::min(rest.size(), (kBufferBytes - used_) / header_.width_bytes);
      narrow(rest.first(count), buffer_.data() + used_);
      used_ += count * header_.width_bytes;
      rest = rest.subspan(count);
      if (used_ == kBufferBytes) {
        DUNNOCK_TRY(flush());
      }
    }
    header_.count += tokens.size();
    return {};
  }

  Status finish() {
    DUNNOCK_CHECK(!finished_, "a file is finished once");
    DUNNOCK_TRY(flush());
    header_.tokens_checksum = XXH3_64bits_digest(state_);
    header_.checksum = checksum_of(header_);
    DUNNOCK_TRY(file_.write_at(0, std::as_bytes(std::span(&header_, 1))));
    DUNNOCK_TRY(file_.commit());
    finished_ = true;
    return {};
  }

 private:
  Status flush() {
    const auto used = std::span(buffer_).first(used_);
    DUNNOCK_TRY(file_.write_at(at_, used));
    XXH3_64bits_update(state_, used.data(), used.size());
    at_ += used_;
    used_ = 0;
    return {};
  }
  void narrow(std::span<const std::int32_t> tokens, std::byte* to) const {
    if (header_.width_bytes == 4) {
      std::memcpy(to, tokens.data(), tokens.size_bytes());
      return;
    }
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      const auto token = static_cast<std::uint16_t>(tokens[i]);
      std::memcpy(to + i * sizeof token, &token, sizeof token);
    }
  }

  OutputFile file_;
  std::string path_;
  XXH3_state_t* state_;
  TokenFileHeader header_;
  std::vector<std::byte> buffer_;
  std::size_t used_ = 0;  // Of the buffer.
  std::uint64_t at_ = sizeof(TokenFileHeader);
  bool finished_ = false;
};

}  // namespace detail

TokenFileWriter::TokenFileWriter(std::unique_ptr<detail::TokenSink> sink) noexcept : sink_(std::move(sink)) {}
TokenFileWriter::TokenFileWriter(TokenFileWriter&&) noexcept = default;
TokenFileWriter& TokenFileWriter::operator=(TokenFileWriter&&) noexcept = default;
TokenFileWriter::~TokenFileWriter() = default;

Result<TokenFileWriter> TokenFileWriter::create(const std::string& path, std::uint64_t vocabulary) {
  if (vocabulary == 0 || vocabulary > TokenFile::kVocabularyMax)
    return make_error(ErrorCode::kInvalidArgument,
                      "a vocabulary needs 1 to 2^31 tokens, not " + std::to_string(vocabulary));
  DUNNOCK_TRY(auto file, OutputFile::create(path));
  return TokenFileWriter(std::make_unique<detail::TokenSink>(std::move(file), path, vocabulary));
}

Status TokenFileWriter::append(std::span<const std::int32_t> tokens) { return sink_->append(tokens); }
Status TokenFileWriter::finish() { return sink_->finish(); }

}  // namespace dunnock::data
