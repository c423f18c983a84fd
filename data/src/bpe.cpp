#include "dunnock/data/bpe.hpp"

#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>
#include <queue>

#include "dunnock/base/check.hpp"
#include "dunnock/base/input_file.hpp"
#include "dunnock/base/output_file.hpp"
#include "dunnock/data/pieces.hpp"
#include "json.hpp"
#include "permutation.hpp"

namespace dunnock::data {
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
    if (!open_) return other();
    entries_.emplace_back(key_, number);
    return true;
  }
  bool start_object(std::size_t /*elements*/) override {
    if (open_) return other();
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
    return wrong("it is not valid JSON: the first error is at byte " + std::to_string(at));
  }

  [[nodiscard]] const std::string& what_is_wrong() const { return wrong_; }
  [[nodiscard]] std::vector<std::pair<std::string, std::uint64_t>>& entries() { return entries_; }

 private:
  bool other() {
    return wrong(open_ ? "the number of '" + key_ + "' is not a whole number of 0 or more" : "it is not a JSON object");
  }
  bool wrong(std::string what) {
    wrong_ = std::move(what);
    return false;
  }
  bool open_ = false;
  std::string key_;
  std::string wrong_;
  std::vector<std::pair<std::string, std::uint64_t>> entries_;
};

/// The largest number and one. There may be numbers without a token, but no file makes us take memory for more of them
/// than that.
Result<std::size_t> vocabulary_size(const std::vector<std::pair<std::string, std::uint64_t>>& entries) {
  const std::uint64_t limit = std::max<std::uint64_t>(std::uint64_t{1} << 20, 8 * entries.size());
  std::uint64_t size = 0;
  for (const auto& [text, number] : entries) {
    if (number >= limit)
      return corrupt("not a vocabulary: '" + text + "' is token " + std::to_string(number) +
                     ", but the number of tokens is " + std::to_string(entries.size()));
    size = std::max(size, number + 1);
  }
  return static_cast<std::size_t>(size);
}

Result<std::vector<std::string>> read_vocabulary(std::string_view json) {
  if (json.find('\0') != std::string_view::npos) return corrupt("not a vocabulary: it contains a NUL byte");
  VocabularyReader reader;
  if (!Json::sax_parse(json.begin(), json.end(), &reader))
    return corrupt("not a vocabulary: " + reader.what_is_wrong());
  auto& entries = reader.entries();
  DUNNOCK_TRY(const auto size, vocabulary_size(entries));
  std::vector<std::string> bytes(size);
  for (const auto& [text, number] : entries) {
    if (!bytes[number].empty())
      return corrupt("not a vocabulary: two tokens have the number " + std::to_string(number));
    auto decoded = from_visible(text);
    if (!decoded || decoded->empty())
      return corrupt("not a vocabulary: token " + std::to_string(number) + " stands for no bytes");
    bytes[number] = std::move(*decoded);
  }
  return bytes;
}

constexpr std::uint64_t pair_key(std::int32_t left, std::int32_t right) {
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 | static_cast<std::uint32_t>(right);
}

}  // namespace

Result<Bpe> Bpe::of_vocabulary(std::vector<std::string> bytes) {
  Bpe bpe;
  bpe.bytes_ = std::move(bytes);
  for (std::size_t token = 0; token < bpe.bytes_.size(); ++token) {
    if (bpe.bytes_[token].empty()) continue;
    if (!bpe.tokens_.emplace(bpe.bytes_[token], static_cast<std::int32_t>(token)).second)
      return corrupt("not a vocabulary: '" + to_visible(bpe.bytes_[token]) + "' occurs twice");
  }
  for (unsigned byte = 0; byte < 256; ++byte) {
    const auto token = bpe.token_of(std::string(1, static_cast<char>(byte)));
    if (!token) return corrupt("not a vocabulary: byte " + std::to_string(byte) + " has no token");
    bpe.byte_tokens_[byte] = *token;
  }
  return bpe;
}

Result<Bpe> Bpe::parse_vocabulary(std::string_view json) {
  DUNNOCK_TRY(auto bytes, read_vocabulary(json));
  auto bpe = of_vocabulary(std::move(bytes));
  if (bpe) bpe->index_merges();
  return bpe;
}

Status Bpe::add_merges(std::string_view text) {
  constexpr std::string_view kMark = "\xEF\xBB\xBF";
  if (text.starts_with(kMark)) text.remove_prefix(kMark.size());
  std::unordered_map<std::uint64_t, std::size_t> seen;
  for (std::size_t number = 1; !text.empty(); ++number) {
    const std::size_t end = text.find('\n');
    std::string_view line = text.substr(0, end);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty() || (number == 1 && line.starts_with("#version"))) continue;
    const auto wrong = [number](const std::string& what) {
      return corrupt("not a list of merges: line " + std::to_string(number) + " " + what);
    };
    const std::size_t space = line.find(' ');
    const bool is_pair = space != std::string_view::npos && line.find(' ', space + 1) == std::string_view::npos;
    // "# #" may well be a pair. What begins so and can't be one is a comment: anywhere if it is not two words, and
    // before the first pair if these are no tokens.
    const bool may_be_comment = line[0] == '#' && (!is_pair || merges_.empty());
    auto pair = is_pair ? pair_of(line.substr(0, space), line.substr(space + 1))
                        : Result<Merge>(corrupt("is not two words with a space between them"));
    if (!pair && may_be_comment) continue;
    if (!pair) return wrong(pair.error().message);
    if (!seen.emplace(pair_key(pair->left, pair->right), number).second) return wrong("occurs twice");
    merges_.push_back(*pair);
  }
  index_merges();
  return {};
}

/// What merging two tokens, as visible characters, makes.
Result<Bpe::Merge> Bpe::pair_of(std::string_view left, std::string_view right) const {
  const auto left_bytes = from_visible(left), right_bytes = from_visible(right);
  if (!left_bytes || !right_bytes) return corrupt("has a character that stands for no byte");
  const auto left_token = token_of(*left_bytes), right_token = token_of(*right_bytes);
  if (!left_token || !right_token) return corrupt("merges a part that is not a token");
  const auto merged = token_of(*left_bytes + *right_bytes);
  if (!merged) return corrupt("makes a word that is not a token");
  return Merge{*left_token, *right_token, *merged};
}

Result<Bpe> Bpe::parse(const Texts& texts) {
  auto bpe = parse_vocabulary(texts.vocabulary);
  if (!bpe) return bpe;
  DUNNOCK_TRY(bpe->add_merges(texts.merges));
  return bpe;
}

Result<Bpe> Bpe::load(const Paths& paths) {
  DUNNOCK_TRY(const auto vocabulary, read_file(paths.vocabulary));
  DUNNOCK_TRY(const auto merges, read_file(paths.merges));
  auto bpe = parse_vocabulary(vocabulary);
  if (!bpe) return make_error(bpe.error().code, paths.vocabulary + ": " + bpe.error().message);
  if (Status added = bpe->add_merges(merges); !added)
    return make_error(added.error().code, paths.merges + ": " + added.error().message);
  return bpe;
}

std::string Bpe::vocabulary_json() const {
  std::string json = "{";
  for (std::size_t token = 0; token < bytes_.size(); ++token) {
    if (bytes_[token].empty()) continue;
    if (json.size() > 1) json += ", ";
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
  DUNNOCK_TRY(write_output_file(paths.vocabulary, vocabulary_json()));
  return write_output_file(paths.merges, merges_text());
}

std::string_view Bpe::bytes_of(std::int32_t token) const {
  DUNNOCK_CHECK(token >= 0 && token < vocabulary(), "the token is in the vocabulary");
  return bytes_[static_cast<std::size_t>(token)];
}

std::optional<std::int32_t> Bpe::token_of(std::string_view bytes) const {
  if (const auto found = tokens_.find(std::string(bytes)); found != tokens_.end()) return found->second;
  for (const AddedSet* set : {&added_, &added_normalized_}) {
    const auto found = std::ranges::find(set->all(), bytes, &Added::text);
    if (found != set->all().end()) return found->token;
  }
  return std::nullopt;
}

Result<std::string> Bpe::decode(std::span<const std::int32_t> tokens) const {
  std::string text;
  for (const std::int32_t token : tokens) {
    if (token < 0 || token >= vocabulary())
      return make_error(ErrorCode::kInvalidArgument, "token " + std::to_string(token) +
                                                         " is out of range: the vocabulary has " +
                                                         std::to_string(vocabulary()) + " tokens");
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

/// The same with a heap of pairs and a list of tokens: O(n log n). In any order as tokenizers goes about it: always the
/// lowest rank of all pairs that there are now, of equals the first. Where every merge uses what earlier ones make (as
/// training gives them), that is what the others do.
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
    do {  // From the left: places order what has the same rank.
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
    } while (!any_order_ && !heap.empty() && heap.top().first == rank);
    // Only now: a new pair of a lower rank waits until this rank has been merged everywhere.
    for (const std::size_t at : changed) offer(at);
  }
  for (std::size_t at = 0; at != kNone; at = nodes[at].after) to.push_back(nodes[at].token);
}

void Bpe::encode_piece(std::string_view piece, std::vector<std::int32_t>& to) const {
  if (ignores_merges_) {
    if (const auto found = tokens_.find(std::string(piece)); found != tokens_.end()) {
      to.push_back(found->second);
      return;
    }
  }
  if (any_order_ || piece.size() > kShortBytes) {
    encode_long(piece, to);
  } else {
    encode_short(piece, to);
  }
}

/// Pieces that were encoded before, direct-mapped: the last one of each place. They point into the text and the tokens.
struct Bpe::Pieces {
  struct Known {
    const char* text = nullptr;
    std::uint32_t bytes = 0;
    std::uint32_t tokens = 0;
    std::size_t first_token = 0;
  };
  static constexpr std::size_t kPlacesMax = 1U << 15;  // 768 KiB: fits a core's second cache.
  explicit Pieces(std::size_t text_bytes)
      : known(std::clamp<std::size_t>(std::bit_ceil(text_bytes / 16 + 1), 1, kPlacesMax)) {}
  std::vector<Known> known;
};

void Bpe::encode_pieces(std::string_view text, Pieces& pieces, std::vector<std::int32_t>& tokens) const {
  while (!text.empty()) {
    const std::string_view piece = text.substr(0, whole_texts_ ? text.size() : first_piece_bytes(text));
    text.remove_prefix(piece.size());
    if (piece.size() == 1) {
      tokens.push_back(byte_tokens_[static_cast<unsigned char>(piece[0])]);
      continue;
    }
    if (piece.size() > kShortBytes) {
      encode_piece(piece, tokens);
      continue;
    }
    Pieces::Known& place = pieces.known[XXH3_64bits(piece.data(), piece.size()) & (pieces.known.size() - 1)];
    if (place.bytes == piece.size() && std::memcmp(place.text, piece.data(), piece.size()) == 0) {
      const std::size_t count = place.tokens, at = tokens.size();
      tokens.resize(at + count);
      std::copy_n(tokens.begin() + static_cast<std::ptrdiff_t>(place.first_token), count,
                  tokens.begin() + static_cast<std::ptrdiff_t>(at));
      continue;
    }
    const std::size_t first = tokens.size();
    encode_piece(piece, tokens);
    place = {piece.data(), static_cast<std::uint32_t>(piece.size()), static_cast<std::uint32_t>(tokens.size() - first),
             first};
  }
}

// ----- added tokens -------------------------------------------------------------------------------------------------

void Bpe::AddedSet::add(Added added) {
  all_.push_back(std::move(added));
  std::ranges::sort(all_, [](const Added& a, const Added& b) {
    const auto first_a = static_cast<unsigned char>(a.text[0]), first_b = static_cast<unsigned char>(b.text[0]);
    return first_a != first_b ? first_a < first_b : a.text.size() > b.text.size();
  });
  of_byte_ = {};
  for (std::uint32_t i = 0; i < all_.size(); ++i) {
    auto& [begin, end] = of_byte_[static_cast<unsigned char>(all_[i].text[0])];
    if (begin == end) begin = i;
    end = i + 1;
  }
}

const Bpe::Added* Bpe::AddedSet::find(std::string_view text, std::size_t from, std::size_t& at) const {
  for (at = from; at < text.size(); ++at) {
    const auto [begin, end] = of_byte_[static_cast<unsigned char>(text[at])];
    for (std::uint32_t i = begin; i < end; ++i) {
      if (text.substr(at).starts_with(all_[i].text)) return &all_[i];
    }
  }
  return nullptr;
}

/// The added tokens of a set in the text, from the left, and what stands between them. One may eat the spaces beside
/// it, but none that another has eaten before.
void Bpe::encode_between(std::string_view text, bool normalized, Pieces& pieces, std::vector<std::int32_t>& to) const {
  const AddedSet& set = normalized ? added_normalized_ : added_;
  const auto encode_rest = [&](std::string_view part) {
    if (part.empty()) return;
    if (!normalized) {
      encode_between(part, true, pieces, to);
    } else if (adds_space_ && part[0] != ' ') {
      const std::string with_space = " " + std::string(part);
      Pieces of_its_own(with_space.size());  // They point into what goes at once.
      encode_pieces(with_space, of_its_own, to);
    } else {
      encode_pieces(part, pieces, to);
    }
  };
  std::size_t done = 0, from = 0, at = 0;
  while (const Added* const added = set.empty() ? nullptr : set.find(text, from, at)) {
    from = at + added->text.size();
    std::size_t begin = at, end = from;
    if (added->eats_spaces_before) begin = std::max(begin - trailing_space_bytes(text.substr(0, begin)), done);
    if (added->eats_spaces_behind) end += leading_space_bytes(text.substr(end));
    if (done < begin) encode_rest(text.substr(done, begin - done));
    to.push_back(added->token);
    done = end;
  }
  if (done < text.size()) encode_rest(text.substr(done));
}

bool Bpe::gives_back() const noexcept {
  if (adds_space_) return false;
  for (const AddedSet* set : {&added_, &added_normalized_}) {
    for (const Added& added : set->all()) {
      if (added.eats_spaces_before || added.eats_spaces_behind) return false;
    }
  }
  return true;
}

std::vector<std::int32_t> Bpe::encode(std::string_view text) const {
  Pieces pieces(text.size());
  std::vector<std::int32_t> tokens;
  tokens.reserve(text.size() / 3);
  if (added_.empty() && added_normalized_.empty() && !adds_space_) {
    encode_pieces(text, pieces, tokens);
  } else {
    encode_between(text, false, pieces, tokens);
  }
  return tokens;
}

// ----- tokenizer.json -----------------------------------------------------------------------------------------------

/// Reads what stands there member by member, and takes nothing that it does not know.
class Bpe::JsonReader {
 public:
  explicit JsonReader(const Json& file) : file_(file) {}

  Result<Bpe> read() {
    if (!file_.is_object()) return corrupt("it is not a JSON object");
    constexpr std::string_view kMembers[] = {"version",       "truncation",     "padding", "added_tokens", "normalizer",
                                             "pre_tokenizer", "post_processor", "decoder", "model"};
    DUNNOCK_TRY(only(file_, kMembers, ""));
    if (const Json& version = member(file_, "version"); !version.is_null() && version != "1.0")
      return unsupported("version", version);
    for (const auto& read_part : {&JsonReader::read_limits, &JsonReader::read_pre_tokenizer,
                                  &JsonReader::read_post_processor, &JsonReader::read_decoder, &JsonReader::read_model,
                                  &JsonReader::read_vocabulary, &JsonReader::read_merges, &JsonReader::read_added}) {
      DUNNOCK_TRY((this->*read_part)());
    }
    return std::move(bpe_);
  }

 private:
  static tl::unexpected<Error> unsupported(const std::string& name, const Json& value) {
    std::string text = value.dump(-1, ' ', true);
    if (text.size() > 60) text = text.substr(0, 57) + "...";
    return make_error(ErrorCode::kUnsupported, "\"" + name + "\" is " + text + ", which is not supported");
  }
  /// Null where there is none.
  static const Json& member(const Json& object, const char* name) {
    static const Json null;
    const auto found = object.find(name);
    return found == object.end() ? null : *found;
  }
  static Status only(const Json& object, std::span<const std::string_view> names, const std::string& where) {
    for (const auto& [name, value] : object.items()) {
      if (std::ranges::find(names, std::string_view(name)) == names.end()) return unsupported(where + name, value);
    }
    return {};
  }
  static std::string type_of(const Json& object) {
    const Json& type = object.is_object() ? member(object, "type") : object;
    return type.is_string() ? type.get<std::string>() : std::string();
  }
  /// Whether it does nothing: null, or a sequence of what does nothing.
  static bool is_nothing(const Json& object, const char* parts) {
    if (object.is_null()) return true;
    if (type_of(object) != "Sequence") return false;
    const Json& all = member(object, parts);
    return all.is_array() && std::ranges::all_of(all, [&](const Json& one) { return is_nothing(one, parts); });
  }
  /// The one part of a sequence of one.
  static const Json& alone(const Json& object, const char* parts) {
    if (type_of(object) != "Sequence") return object;
    const Json& all = member(object, parts);
    return all.is_array() && all.size() == 1 ? alone(all[0], parts) : object;
  }
  /// true, false, or what it is without a word.
  static Result<bool> flag(const Json& object, const char* name, bool otherwise, const std::string& where) {
    const Json& value = member(object, name);
    if (value.is_null()) return otherwise;
    if (!value.is_boolean()) return unsupported(where + name, value);
    return value.get<bool>();
  }

  Status read_limits() {
    if (const Json& truncation = member(file_, "truncation"); !truncation.is_null())
      return unsupported("truncation", truncation);
    if (const Json& padding = member(file_, "padding"); !padding.is_null()) return unsupported("padding", padding);
    if (const Json& normalizer = member(file_, "normalizer"); !is_nothing(normalizer, "normalizers"))
      return unsupported("normalizer", normalizer);
    return {};
  }

  Status read_pre_tokenizer() {
    const Json& part = alone(member(file_, "pre_tokenizer"), "pretokenizers");
    if (type_of(part) != "ByteLevel") return unsupported("pre_tokenizer", part);
    constexpr std::string_view kMembers[] = {"type", "add_prefix_space", "trim_offsets", "use_regex"};
    DUNNOCK_TRY(only(part, kMembers, "pre_tokenizer."));
    DUNNOCK_TRY(const auto space, flag(part, "add_prefix_space", true, "pre_tokenizer."));
    DUNNOCK_TRY(const auto pieces, flag(part, "use_regex", true, "pre_tokenizer."));
    bpe_.adds_space_ = space;
    bpe_.whole_texts_ = !pieces;
    return {};
  }

  /// ByteLevel changes offsets only, and a template of nothing but the text adds nothing.
  Status read_post_processor() { return check_post_processor(member(file_, "post_processor")); }
  static Status check_post_processor(const Json& part) {
    const std::string type = type_of(part);
    if (part.is_null() || type == "ByteLevel") return {};
    if (type == "Sequence" && member(part, "processors").is_array()) {
      for (const Json& one : member(part, "processors")) {
        DUNNOCK_TRY(check_post_processor(one));
      }
      return {};
    }
    const Json& single = member(part, "single");
    const bool adds_nothing = type == "TemplateProcessing" && single.is_array() && single.size() == 1 &&
                              single[0].is_object() && single[0].contains("Sequence");
    return adds_nothing ? Status() : unsupported("post_processor", part);
  }

  Status read_decoder() {
    const Json& part = alone(member(file_, "decoder"), "decoders");
    if (!part.is_null() && type_of(part) != "ByteLevel") return unsupported("decoder", part);
    return {};
  }

  Status read_model() {
    const Json& model = member(file_, "model");
    if (!model.is_object()) return unsupported("model", model);
    if (const Json& type = member(model, "type"); !type.is_null() && type != "BPE")
      return unsupported("model.type", type);
    constexpr std::string_view kMembers[] = {"type",
                                             "dropout",
                                             "unk_token",
                                             "continuing_subword_prefix",
                                             "end_of_word_suffix",
                                             "fuse_unk",
                                             "byte_fallback",
                                             "ignore_merges",
                                             "vocab",
                                             "merges"};
    DUNNOCK_TRY(only(model, kMembers, "model."));
    if (const Json& dropout = member(model, "dropout"); !dropout.is_null() && dropout != 0)
      return unsupported("model.dropout", dropout);
    for (const char* name : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      if (const Json& text = member(model, name); !text.is_null() && text != "")
        return unsupported(std::string("model.") + name, text);
    }
    // Of a vocabulary that has every byte nothing is unknown, so unk_token, fuse_unk and byte_fallback say nothing.
    DUNNOCK_TRY(const auto ignores, flag(model, "ignore_merges", false, "model."));
    bpe_.ignores_merges_ = ignores;
    return {};
  }

  Status read_vocabulary() {
    const Json& vocabulary = member(member(file_, "model"), "vocab");
    if (!vocabulary.is_object()) return corrupt("\"model.vocab\" is not an object of tokens");
    std::vector<std::pair<std::string, std::uint64_t>> entries;
    for (const auto& [text, number] : vocabulary.items()) {
      if (!number.is_number_unsigned()) return corrupt("\"model.vocab\" has no number for '" + text + "'");
      entries.emplace_back(text, number.get<std::uint64_t>());
    }
    DUNNOCK_TRY(const auto size, vocabulary_size(entries));
    std::vector<std::string> bytes(size);
    std::vector<bool> taken(size);
    for (const auto& [text, number] : entries) {
      if (taken[number]) return corrupt("two tokens have the number " + std::to_string(number));
      taken[number] = true;
      in_model_.emplace(text, static_cast<std::int32_t>(number));
      auto decoded = from_visible(text);
      if (decoded && !decoded->empty()) {
        bytes[number] = std::move(*decoded);
      } else {
        foreign_.emplace_back(text, static_cast<std::int32_t>(number));  // An added token may be it.
      }
    }
    DUNNOCK_TRY(auto made, of_vocabulary(std::move(bytes)));
    bpe_.bytes_ = std::move(made.bytes_);
    bpe_.tokens_ = std::move(made.tokens_);
    bpe_.byte_tokens_ = made.byte_tokens_;
    return {};
  }

  Status read_merges() {
    const Json& merges = member(member(file_, "model"), "merges");
    if (!merges.is_array()) return corrupt("\"model.merges\" is not a list of pairs");
    std::unordered_map<std::uint64_t, std::size_t> seen;
    std::vector<std::int64_t> made_last(bpe_.bytes_.size(), -1);  // The last rank that makes a token.
    for (std::size_t rank = 0; rank < merges.size(); ++rank) {
      const auto wrong = [rank](const std::string& what) {
        return corrupt("merge " + std::to_string(rank) + " " + what);
      };
      const Json& one = merges[rank];
      std::string left, right;
      if (one.is_string()) {
        const auto& text = one.get_ref<const std::string&>();
        const std::size_t space = text.find(' ');
        if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos)
          return wrong("is not two words with a space between them");
        left = text.substr(0, space);
        right = text.substr(space + 1);
      } else if (one.is_array() && one.size() == 2 && one[0].is_string() && one[1].is_string()) {
        left = one[0].get<std::string>();
        right = one[1].get<std::string>();
      } else {
        return wrong("is not a pair");
      }
      const auto pair = bpe_.pair_of(left, right);
      if (!pair) return wrong(pair.error().message);
      if (!seen.emplace(pair_key(pair->left, pair->right), rank).second) return wrong("occurs twice");
      bpe_.merges_.push_back(*pair);
      made_last[static_cast<std::size_t>(pair->merged)] = static_cast<std::int64_t>(rank);
    }
    for (std::size_t rank = 0; rank < bpe_.merges_.size(); ++rank) {
      const auto made = [&](std::int32_t token) { return made_last[static_cast<std::size_t>(token)]; };
      const Merge& merge = bpe_.merges_[rank];
      if (std::max(made(merge.left), made(merge.right)) >= static_cast<std::int64_t>(rank)) bpe_.any_order_ = true;
    }
    bpe_.index_merges();
    return {};
  }

  Status read_added() {
    const Json& all = member(file_, "added_tokens");
    if (!all.is_null() && !all.is_array()) return corrupt("\"added_tokens\" is not a list");
    // tokenizers numbers those that the model does not have itself, whatever the file says.
    std::uint64_t next = in_model_.size();
    std::unordered_map<std::string, std::int32_t> seen;
    for (const Json& one : all) {
      constexpr std::string_view kMembers[] = {"id",     "content", "single_word", "lstrip",
                                               "rstrip", "special", "normalized"};
      if (!one.is_object()) return corrupt("an added token is not an object");
      DUNNOCK_TRY(only(one, kMembers, "added_tokens."));
      const Json& content = member(one, "content");
      const Json& id = member(one, "id");
      if (!content.is_string() || content == "") return corrupt("an added token has no content");
      Added added{.text = content.get<std::string>()};
      const std::string words = "the added token " + content.dump(-1, ' ', true);
      if (!id.is_number_unsigned()) return corrupt(words + " has no number");
      const auto in_model = in_model_.find(added.text);
      const std::uint64_t number = in_model != in_model_.end() ? static_cast<std::uint64_t>(in_model->second) : next++;
      if (id != number)
        return corrupt(words + " has the number " + id.dump() + ", but other readers of the file give it the number " +
                       std::to_string(number));
      added.token = static_cast<std::int32_t>(number);
      if (!seen.emplace(added.text, added.token).second) return corrupt(words + " occurs twice");
      const auto whole_words = flag(one, "single_word", false, "added_tokens.");
      const auto before = flag(one, "lstrip", false, "added_tokens.");
      const auto behind = flag(one, "rstrip", false, "added_tokens.");
      const auto normalized = flag(one, "normalized", true, "added_tokens.");
      const auto special = flag(one, "special", false, "added_tokens.");
      for (const auto* read : {&whole_words, &before, &behind, &normalized, &special}) {
        if (!*read) return tl::unexpected(read->error());
      }
      if (*whole_words) return make_error(ErrorCode::kUnsupported, words + " is a single_word, which is not supported");
      added.eats_spaces_before = *before;
      added.eats_spaces_behind = *behind;
      eats_ = eats_ || *before || *behind;
      if (bpe_.bytes_.size() <= number) bpe_.bytes_.resize(number + 1);
      std::string& bytes = bpe_.bytes_[number];
      if (in_model == in_model_.end() && !bytes.empty())
        return corrupt(words + " has the number of another token, " + std::to_string(number));
      if (in_model != in_model_.end() && !bytes.empty() && bytes != added.text)
        return corrupt(words + " has the number of a token of the model with other bytes, " + std::to_string(number));
      bytes = added.text;
      (*normalized ? bpe_.added_normalized_ : bpe_.added_).add(std::move(added));
    }
    // Of spaces that one token is and another eats, tokenizers 0.23 makes a token twice, or dies.
    if (eats_) {
      for (const AddedSet* set : {&bpe_.added_, &bpe_.added_normalized_}) {
        for (const Added& added : set->all()) {
          if (leading_space_bytes(added.text) + trailing_space_bytes(added.text) == 0) continue;
          return make_error(
              ErrorCode::kUnsupported,
              "the added token " + Json(added.text).dump(-1, ' ', true) +
                  " begins or ends with white space while another has lstrip or rstrip, which is not supported");
        }
      }
    }
    for (const auto& [text, number] : foreign_) {
      if (!seen.contains(text))
        return corrupt("token " + std::to_string(number) + " stands for no bytes and is not an added token");
    }
    return {};
  }

  const Json& file_;
  Bpe bpe_;
  bool eats_ = false;                                          // An added token eats spaces.
  std::unordered_map<std::string, std::int32_t> in_model_;     // As it stands there.
  std::vector<std::pair<std::string, std::int32_t>> foreign_;  // Tokens of the model that stand for no bytes.
};

Result<Bpe> Bpe::parse_json(std::string_view text) {
  const auto json = dunnock::parse_json(text);
  if (!json) return make_error(json.error().code, "not a tokenizer.json: " + json.error().message);
  auto bpe = JsonReader(*json).read();
  if (!bpe) return make_error(bpe.error().code, "not a tokenizer.json that can be read: " + bpe.error().message);
  return bpe;
}

Result<Bpe> Bpe::load_json(const std::string& path) {
  DUNNOCK_TRY(const auto text, read_file(path));
  auto bpe = parse_json(text);
  if (!bpe) return make_error(bpe.error().code, path + ": " + bpe.error().message);
  return bpe;
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
  /// Replaces the pair in the word, and its neighbors in the table.
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
    return make_error(ErrorCode::kInvalidArgument, "a vocabulary needs " + std::to_string(256 + special) +
                                                       " to 2^31 tokens, not " + std::to_string(options.vocabulary));
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

}  // namespace dunnock::data
