#include "dunnock/training/bpe.hpp"

#include <fcntl.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>
#include <queue>

#include "dunnock/base/check.hpp"
#include "dunnock/training/pieces.hpp"
#include "files.hpp"
#include "permutation.hpp"

namespace dunnock::training {
namespace {

using Json = nlohmann::json;

tl::unexpected<Error> corrupt(const std::string& what) { return make_error(ErrorCode::kCorrupt, what); }

// ----- bytes as visible characters ----------------------------------------------------------------------------------

constexpr std::size_t kVisibleMax = 256 + 68;  // 68 bytes are not visible.

constexpr bool is_visible(unsigned byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || (byte >= 0xAE && byte <= 0xFF);
}

/// The character of each byte.
constexpr std::array<std::uint16_t, 256> kVisible = [] {
  std::array<std::uint16_t, 256> characters{};
  std::uint16_t next = 256;
  for (unsigned byte = 0; byte < 256; ++byte)
    characters[byte] = is_visible(byte) ? static_cast<std::uint16_t>(byte) : next++;
  return characters;
}();

/// The byte of each character, or -1.
constexpr std::array<std::int16_t, kVisibleMax> kByteOf = [] {
  std::array<std::int16_t, kVisibleMax> bytes{};
  for (auto& byte : bytes) byte = -1;
  for (unsigned byte = 0; byte < 256; ++byte) bytes[kVisible[byte]] = static_cast<std::int16_t>(byte);
  return bytes;
}();

/// The bytes in the order of their tokens, as GPT-2 numbers them: the visible ones first.
constexpr std::array<std::uint8_t, 256> kByteOrder = [] {
  std::array<std::uint8_t, 256> order{};
  std::size_t at = 0;
  for (const bool visible : {true, false}) {
    for (unsigned byte = 0; byte < 256; ++byte) {
      if (is_visible(byte) == visible) order[at++] = static_cast<std::uint8_t>(byte);
    }
  }
  return order;
}();

std::string to_visible(std::string_view bytes) {
  std::string text;
  for (const char c : bytes) {
    const unsigned code = kVisible[static_cast<unsigned char>(c)];
    if (code < 0x80) {
      text.push_back(static_cast<char>(code));
    } else {
      text.push_back(static_cast<char>(0xC0U | code >> 6));
      text.push_back(static_cast<char>(0x80U | (code & 0x3FU)));
    }
  }
  return text;
}

/// Nothing where a character stands for no byte.
std::optional<std::string> from_visible(std::string_view text) {
  std::string bytes;
  for (std::size_t i = 0; i < text.size(); ++i) {
    unsigned code = static_cast<unsigned char>(text[i]);
    if (code >= 0x80) {  // All that stand for a byte have at most two bytes in UTF-8.
      const unsigned second = i + 1 < text.size() ? static_cast<unsigned char>(text[i + 1]) : 0U;
      if ((code & 0xE0U) != 0xC0U || (second & 0xC0U) != 0x80U) return std::nullopt;
      code = (code & 0x1FU) << 6 | (second & 0x3FU);
      if (code < 0x80) return std::nullopt;
      ++i;
    }
    if (code >= kByteOf.size() || kByteOf[code] < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(kByteOf[code]));
  }
  return bytes;
}

// ----- the files ----------------------------------------------------------------------------------------------------

/// Takes {"text": number, ..} and nothing else from the JSON parser.
class VocabularyReader : public nlohmann::json_sax<Json> {
 public:
  bool key(string_t& text) override {
    key_ = text;
    return true;
  }
  bool number_unsigned(number_unsigned_t number) override {
    if (!open_) return wrong("it is not an object");
    entries_.emplace_back(key_, number);
    return true;
  }
  bool start_object(std::size_t /*elements*/) override {
    if (open_) return wrong("'" + key_ + "' has no number");
    open_ = true;
    return true;
  }
  bool end_object() override { return true; }
  bool null() override { return other(); }
  bool boolean(bool /*value*/) override { return other(); }
  bool number_integer(number_integer_t /*value*/) override { return other(); }
  bool number_float(number_float_t /*value*/, const string_t& /*text*/) override { return other(); }
  bool string(string_t& /*value*/) override { return other(); }
  bool binary(binary_t& /*value*/) override { return other(); }
  bool start_array(std::size_t /*elements*/) override { return other(); }
  bool end_array() override { return other(); }
  bool parse_error(std::size_t at, const std::string& /*token*/, const Json::exception& /*why*/) override {
    return wrong("it is not JSON, from byte " + std::to_string(at) + " on");
  }

  [[nodiscard]] const std::string& what_is_wrong() const { return wrong_; }
  [[nodiscard]] std::vector<std::pair<std::string, std::uint64_t>>& entries() { return entries_; }

 private:
  bool other() { return wrong(open_ ? "'" + key_ + "' has no number" : "it is not an object"); }
  bool wrong(std::string what) {
    wrong_ = std::move(what);
    return false;
  }
  bool open_ = false;
  std::string key_;
  std::string wrong_;
  std::vector<std::pair<std::string, std::uint64_t>> entries_;
};

Result<std::vector<std::string>> parse_vocabulary(std::string_view json) {
  VocabularyReader reader;
  if (!Json::sax_parse(json.begin(), json.end(), &reader))
    return corrupt("not a vocabulary: " + reader.what_is_wrong());
  auto& entries = reader.entries();
  std::vector<std::string> bytes(entries.size());
  for (const auto& [text, number] : entries) {
    if (number >= bytes.size())
      return corrupt("not a vocabulary: '" + text + "' is token " + std::to_string(number) + " of " +
                     std::to_string(bytes.size()));
    if (!bytes[number].empty()) return corrupt("not a vocabulary: two tokens are number " + std::to_string(number));
    auto decoded = from_visible(text);
    if (!decoded || decoded->empty())
      return corrupt("not a vocabulary: the token " + std::to_string(number) + " stands for no bytes");
    bytes[number] = std::move(*decoded);
  }
  return bytes;
}

Status write_file(const std::string& path, std::string_view text) {
  const std::string temporary = path + ".part";
  const detail::Descriptor file(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  if (file.get() < 0) return detail::system_error("can't write " + temporary, errno);
  Status done;
  if (!detail::write_all(file.get(), 0, std::as_bytes(std::span(text))))
    done = detail::system_error("can't write " + temporary, errno);
  if (done) done = detail::publish(file, temporary, path);
  if (!done) (void)::unlink(temporary.c_str());
  return done;
}

std::string_view text_of(const detail::MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

constexpr std::uint64_t pair_key(std::int32_t left, std::int32_t right) {
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 | static_cast<std::uint32_t>(right);
}

}  // namespace

Result<Bpe> Bpe::of_vocabulary(std::vector<std::string> bytes) {
  Bpe bpe;
  bpe.bytes_ = std::move(bytes);
  for (std::size_t token = 0; token < bpe.bytes_.size(); ++token) {
    if (!bpe.tokens_.emplace(bpe.bytes_[token], static_cast<std::int32_t>(token)).second)
      return corrupt("not a vocabulary: '" + to_visible(bpe.bytes_[token]) + "' occurs twice");
  }
  for (unsigned byte = 0; byte < 256; ++byte) {
    const auto token = bpe.token_of(std::string(1, static_cast<char>(byte)));
    if (!token) return corrupt("not a vocabulary: no token for the byte " + std::to_string(byte));
    bpe.byte_tokens_[byte] = *token;
  }
  return bpe;
}

Result<Bpe> Bpe::parse(const Texts& texts) {
  auto bytes = parse_vocabulary(texts.vocabulary);
  if (!bytes) return tl::unexpected(bytes.error());
  if (bytes->size() > std::size_t{1} << 31) return corrupt("not a vocabulary: more than 2^31 tokens");
  auto bpe = of_vocabulary(std::move(*bytes));
  if (!bpe) return bpe;
  std::unordered_map<std::uint64_t, std::size_t> seen;
  std::string_view rest = texts.merges;
  for (std::size_t number = 1; !rest.empty(); ++number) {
    const std::size_t end = rest.find('\n');
    const std::string_view line = rest.substr(0, end);
    rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
    if (number == 1 && line.starts_with("#version")) continue;
    const auto wrong = [number](const std::string& what) {
      return corrupt("not a list of merges: line " + std::to_string(number) + " " + what);
    };
    const std::size_t space = line.find(' ');
    if (space == std::string_view::npos || line.find(' ', space + 1) != std::string_view::npos)
      return wrong("is not two words with a space between them");
    const auto left = from_visible(line.substr(0, space)), right = from_visible(line.substr(space + 1));
    if (!left || !right) return wrong("has a character that stands for no byte");
    const auto left_token = bpe->token_of(*left), right_token = bpe->token_of(*right);
    if (!left_token || !right_token) return wrong("merges what is no token");
    const auto merged = bpe->token_of(*left + *right);
    if (!merged) return wrong("makes what is no token");
    if (!seen.emplace(pair_key(*left_token, *right_token), number).second) return wrong("is there twice");
    bpe->merges_.push_back({*left_token, *right_token, *merged});
  }
  bpe->index_merges();
  return bpe;
}

Result<Bpe> Bpe::load(const Paths& paths) {
  const auto vocabulary = detail::MappedFile::open(paths.vocabulary);
  if (!vocabulary) return tl::unexpected(vocabulary.error());
  const auto merges = detail::MappedFile::open(paths.merges);
  if (!merges) return tl::unexpected(merges.error());
  auto bpe = parse({.vocabulary = text_of(*vocabulary), .merges = text_of(*merges)});
  if (!bpe) return make_error(bpe.error().code, paths.vocabulary + ", " + paths.merges + ": " + bpe.error().message);
  return bpe;
}

std::string Bpe::vocabulary_json() const {
  std::string json = "{";
  for (std::size_t token = 0; token < bytes_.size(); ++token) {
    if (token != 0) json += ", ";
    json += Json(to_visible(bytes_[token])).dump() + ": " + std::to_string(token);
  }
  return json + "}\n";
}

std::string Bpe::merges_text() const {
  std::string text = "#version: 0.2\n";
  for (const Merge& merge : merges_)
    text += to_visible(bytes_of(merge.left)) + " " + to_visible(bytes_of(merge.right)) + "\n";
  return text;
}

Status Bpe::save(const Paths& paths) const {
  if (auto written = write_file(paths.vocabulary, vocabulary_json()); !written) return written;
  return write_file(paths.merges, merges_text());
}

std::string_view Bpe::bytes_of(std::int32_t token) const {
  DUNNOCK_CHECK(token >= 0 && token < vocabulary(), "a token is one of the vocabulary");
  return bytes_[static_cast<std::size_t>(token)];
}

std::optional<std::int32_t> Bpe::token_of(std::string_view bytes) const {
  const auto found = tokens_.find(std::string(bytes));
  return found == tokens_.end() ? std::nullopt : std::optional(found->second);
}

Result<std::string> Bpe::decode(std::span<const std::int32_t> tokens) const {
  std::string text;
  for (const std::int32_t token : tokens) {
    if (token < 0 || token >= vocabulary())
      return make_error(ErrorCode::kInvalidArgument,
                        "the token " + std::to_string(token) + " of a vocabulary of " + std::to_string(vocabulary()));
    text += bytes_[static_cast<std::size_t>(token)];
  }
  return text;
}

// ----- encoding -----------------------------------------------------------------------------------------------------

void Bpe::index_merges() {
  ranks_.assign(std::bit_ceil(2 * merges_.size() + 1), {0, kNoRank});
  const std::size_t mask = ranks_.size() - 1;
  for (std::size_t rank = 0; rank < merges_.size(); ++rank) {
    const std::uint64_t key = pair_key(merges_[rank].left, merges_[rank].right);
    std::size_t at = detail::mixed(key) & mask;
    while (ranks_[at].second != kNoRank) at = (at + 1) & mask;
    ranks_[at] = {key, static_cast<std::uint32_t>(rank)};
  }
}

std::uint32_t Bpe::rank_of(std::int32_t left, std::int32_t right) const noexcept {
  const std::uint64_t key = pair_key(left, right);
  const std::size_t mask = ranks_.size() - 1;
  for (std::size_t at = detail::mixed(key) & mask; ranks_[at].second != kNoRank; at = (at + 1) & mask) {
    if (ranks_[at].first == key) return ranks_[at].second;
  }
  return kNoRank;
}

namespace {
constexpr std::size_t kShortBytes = 48;  // Up to here looking through all pairs beats a heap (and it is most pieces).
}

/// Passes: the lowest rank of all, merged wherever it occurs, from the left.
void Bpe::encode_short(std::string_view piece, std::vector<std::int32_t>& to) const {
  std::array<std::int32_t, kShortBytes> tokens;
  std::array<std::uint32_t, kShortBytes> ranks;  // Of a token and the next one.
  std::size_t count = piece.size();
  for (std::size_t i = 0; i < count; ++i) tokens[i] = byte_tokens_[static_cast<unsigned char>(piece[i])];
  for (std::size_t i = 0; i + 1 < count; ++i) ranks[i] = rank_of(tokens[i], tokens[i + 1]);
  ranks[count - 1] = kNoRank;
  while (count > 1) {
    const std::uint32_t lowest =
        *std::min_element(ranks.begin(), ranks.begin() + static_cast<std::ptrdiff_t>(count - 1));
    if (lowest == kNoRank) break;
    std::size_t kept = 0;
    for (std::size_t i = 0; i < count; ++kept) {
      const bool merge = i + 1 < count && ranks[i] == lowest;
      tokens[kept] = merge ? merges_[lowest].merged : tokens[i];
      ranks[kept] = merge ? kNoRank : ranks[i];
      // The pair that ends here, and the one that begins, are new ones: looked up below, when both sides are known.
      i += merge ? 2 : 1;
      if (kept > 0 && (merge || tokens[kept - 1] == merges_[lowest].merged))
        ranks[kept - 1] = rank_of(tokens[kept - 1], tokens[kept]);
    }
    count = kept;
  }
  to.insert(to.end(), tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(count));
}

/// The same with a heap of pairs and a list of tokens: O(n log n).
void Bpe::encode_long(std::string_view piece, std::vector<std::int32_t>& to) const {
  constexpr std::size_t kNone = ~std::size_t{0};
  constexpr std::int32_t kGone = -1;
  struct Node {
    std::int32_t token;
    std::size_t before, after;
  };
  std::vector<Node> nodes(piece.size());
  for (std::size_t i = 0; i < nodes.size(); ++i)
    nodes[i] = {byte_tokens_[static_cast<unsigned char>(piece[i])], i - 1, i + 1 < nodes.size() ? i + 1 : kNone};
  const auto rank_at = [&](std::size_t at) {
    const Node& node = nodes[at];
    return node.token == kGone || node.after == kNone ? kNoRank : rank_of(node.token, nodes[node.after].token);
  };
  using Candidate = std::pair<std::uint32_t, std::size_t>;  // Rank, and where its left token is.
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> heap;
  const auto offer = [&](std::size_t at) {
    if (const std::uint32_t rank = rank_at(at); rank != kNoRank) heap.emplace(rank, at);
  };
  for (std::size_t i = 0; i < nodes.size(); ++i) offer(i);
  std::vector<std::size_t> changed;
  while (!heap.empty()) {
    const std::uint32_t rank = heap.top().first;
    changed.clear();
    while (!heap.empty() && heap.top().first == rank) {  // From the left: places order what has the same rank.
      const std::size_t at = heap.top().second;
      heap.pop();
      if (rank_at(at) != rank) continue;  // Another merge was here before.
      Node& node = nodes[at];
      const std::size_t gone = node.after;
      node.token = merges_[rank].merged;
      node.after = nodes[gone].after;
      nodes[gone].token = kGone;
      if (node.after != kNone) nodes[node.after].before = at;
      if (node.before != kNone) changed.push_back(node.before);
      changed.push_back(at);
    }
    // Only now: a new pair of a lower rank waits until this rank has been merged everywhere.
    for (const std::size_t at : changed) offer(at);
  }
  for (std::size_t at = 0; at != kNone; at = nodes[at].after) to.push_back(nodes[at].token);
}

std::vector<std::int32_t> Bpe::encode(std::string_view text) const {
  // Pieces that were encoded before, direct-mapped: the last one of each place. They point into the text and the
  // tokens.
  struct Known {
    const char* text = nullptr;
    std::uint32_t bytes = 0;
    std::uint32_t tokens = 0;
    std::size_t first_token = 0;
  };
  constexpr std::size_t kPlacesMax = 1U << 15;  // 768 KiB: fits a core's second cache.
  std::vector<Known> known(std::clamp<std::size_t>(std::bit_ceil(text.size() / 16 + 1), 1, kPlacesMax));
  std::vector<std::int32_t> tokens;
  tokens.reserve(text.size() / 3);
  while (!text.empty()) {
    const std::string_view piece = text.substr(0, first_piece_bytes(text));
    text.remove_prefix(piece.size());
    if (piece.size() == 1) {
      tokens.push_back(byte_tokens_[static_cast<unsigned char>(piece[0])]);
      continue;
    }
    if (piece.size() > kShortBytes) {
      encode_long(piece, tokens);
      continue;
    }
    Known& place = known[XXH3_64bits(piece.data(), piece.size()) & (known.size() - 1)];
    if (place.bytes == piece.size() && std::memcmp(place.text, piece.data(), piece.size()) == 0) {
      const std::size_t count = place.tokens, at = tokens.size();
      tokens.resize(at + count);
      std::copy_n(tokens.begin() + static_cast<std::ptrdiff_t>(place.first_token), count,
                  tokens.begin() + static_cast<std::ptrdiff_t>(at));
      continue;
    }
    const std::size_t first = tokens.size();
    encode_short(piece, tokens);
    place = {piece.data(), static_cast<std::uint32_t>(piece.size()), static_cast<std::uint32_t>(tokens.size() - first),
             first};
  }
  return tokens;
}

// ----- training -----------------------------------------------------------------------------------------------------

namespace {

/// A word of the text, as the tokens that it has so far.
struct Word {
  std::vector<std::int32_t> tokens;
  std::int64_t count = 0;
};

/// How often each pair occurs, and in which words (some of which may have lost it since).
class PairTable {
 public:
  explicit PairTable(const std::vector<Word>& words) {
    for (std::size_t i = 0; i < words.size(); ++i) count(words[i], i, 1);
    for (const auto& [key, pair] : pairs_) offer(key, pair.count);
  }

  struct Best {
    std::int32_t left, right;
    std::int64_t count;
    std::vector<std::size_t> words;  // Each once, in order.
  };
  /// Takes the most frequent pair out.
  std::optional<Best> take() {
    while (!heap_.empty()) {
      const auto [count, backwards] = heap_.top();
      const std::uint64_t key = ~backwards;
      heap_.pop();
      const auto found = pairs_.find(key);
      if (found == pairs_.end() || found->second.count != count) continue;  // Offered again since.
      Best best{static_cast<std::int32_t>(key >> 32), static_cast<std::int32_t>(key & 0xFFFFFFFFU), count,
                std::move(found->second.words)};
      std::ranges::sort(best.words);
      best.words.erase(std::unique(best.words.begin(), best.words.end()), best.words.end());
      return best;
    }
    return std::nullopt;
  }
  /// Replaces the pair in the word, and its neighbours in the table.
  void merge(Word& word, std::size_t index, const Best& pair, std::int32_t merged) {
    count(word, index, -1);
    std::size_t kept = 0;
    for (std::size_t i = 0; i < word.tokens.size(); ++kept) {
      const bool here = i + 1 < word.tokens.size() && word.tokens[i] == pair.left && word.tokens[i + 1] == pair.right;
      word.tokens[kept] = here ? merged : word.tokens[i];
      i += here ? 2 : 1;
    }
    word.tokens.resize(kept);
    count(word, index, 1);
  }
  /// Offers what has changed since the last time.
  void offer_changed() {
    std::ranges::sort(changed_);
    changed_.erase(std::unique(changed_.begin(), changed_.end()), changed_.end());
    for (const std::uint64_t key : changed_) {
      const auto found = pairs_.find(key);
      if (found->second.count == 0) {
        pairs_.erase(found);
      } else {
        offer(key, found->second.count);
      }
    }
    changed_.clear();
  }

 private:
  struct Pair {
    std::int64_t count = 0;
    std::vector<std::size_t> words;
  };

  void count(const Word& word, std::size_t index, int sign) {
    for (std::size_t i = 0; i + 1 < word.tokens.size(); ++i) {
      const std::uint64_t key = pair_key(word.tokens[i], word.tokens[i + 1]);
      Pair& pair = pairs_[key];
      pair.count += sign * word.count;
      if (sign > 0 && (pair.words.empty() || pair.words.back() != index)) pair.words.push_back(index);
      changed_.push_back(key);
    }
  }
  void offer(std::uint64_t key, std::int64_t count) { heap_.emplace(count, ~key); }

  std::unordered_map<std::uint64_t, Pair> pairs_;
  // The most frequent first; of those the lowest tokens, whose inverse is the highest.
  std::priority_queue<std::pair<std::int64_t, std::uint64_t>> heap_;
  std::vector<std::uint64_t> changed_;
};

std::vector<Word> words_of(std::string_view text, const std::array<std::int32_t, 256>& byte_tokens) {
  std::unordered_map<std::string_view, std::size_t> places;
  std::vector<Word> words;
  while (!text.empty()) {
    const std::string_view piece = text.substr(0, first_piece_bytes(text));
    text.remove_prefix(piece.size());
    const auto [place, is_new] = places.try_emplace(piece, words.size());
    if (is_new) {
      Word& word = words.emplace_back();
      for (const char c : piece) word.tokens.push_back(byte_tokens[static_cast<unsigned char>(c)]);
    }
    ++words[place->second].count;
  }
  return words;
}

}  // namespace

Result<Bpe> Bpe::train(std::string_view text, const TrainOptions& options) {
  const std::size_t special = options.end_of_text ? 1 : 0;
  if (options.vocabulary < 256 + special || options.vocabulary > std::size_t{1} << 31)
    return make_error(ErrorCode::kInvalidArgument, "a vocabulary of " + std::to_string(options.vocabulary) +
                                                       " tokens; it has " + std::to_string(256 + special) + " to 2^31");
  std::vector<std::string> bytes;
  for (const std::uint8_t byte : kByteOrder) bytes.emplace_back(1, static_cast<char>(byte));
  auto bpe = of_vocabulary(std::move(bytes));
  if (!bpe) return bpe;
  std::vector<Word> words = words_of(text, bpe->byte_tokens_);
  PairTable pairs(words);
  while (bpe->bytes_.size() + special < options.vocabulary) {
    const auto best = pairs.take();
    if (!best || best->count < static_cast<std::int64_t>(std::max<std::size_t>(options.occurrences, 1))) break;
    const std::string both = std::string(bpe->bytes_of(best->left)).append(bpe->bytes_of(best->right));
    // Other pairs may have made the same bytes before; a vocabulary has them once.
    const auto [place, is_new] = bpe->tokens_.try_emplace(both, static_cast<std::int32_t>(bpe->bytes_.size()));
    if (is_new) bpe->bytes_.push_back(both);
    bpe->merges_.push_back({best->left, best->right, place->second});
    for (const std::size_t index : best->words) pairs.merge(words[index], index, *best, place->second);
    pairs.offer_changed();
  }
  if (options.end_of_text) {
    bpe->tokens_.emplace(kEndOfText, bpe->vocabulary());
    bpe->bytes_.emplace_back(kEndOfText);
  }
  bpe->index_merges();
  return bpe;
}

}  // namespace dunnock::training
