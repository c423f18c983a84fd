#include "dunnock/data/llama2c_tokenizer.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <queue>
#include <utility>

#include "dunnock/base/check.hpp"
#include "dunnock/base/input_file.hpp"

namespace dunnock::data {
namespace {

tl::unexpected<Error> corrupt(const std::string& what) {
  return make_error(ErrorCode::kCorrupt, "not a llama2.c tokenizer: " + what);
}

std::string name_of_byte(unsigned byte) {
  constexpr std::string_view kDigits = "0123456789ABCDEF";
  return std::string("<0x") + kDigits[byte >> 4] + kDigits[byte & 15U] + ">";
}

}  // namespace

Result<Llama2cTokenizer> Llama2cTokenizer::parse(std::span<const std::byte> file) {
  const auto take = [&file](auto& value) {
    if (file.size() < sizeof value) return false;
    std::memcpy(&value, file.data(), sizeof value);
    file = file.subspan(sizeof value);
    return true;
  };
  Llama2cTokenizer made;
  std::uint32_t longest = 0;
  if (!take(longest)) return corrupt("it has no header");
  while (!file.empty()) {
    const auto wrong = [&made](const std::string& what) {
      return corrupt("token " + std::to_string(made.tokens_.size()) + " " + what);
    };
    Token token;
    std::int32_t bytes = 0;
    if (!take(token.score) || !take(bytes)) return wrong("is truncated");
    if (std::isnan(token.score)) return wrong("has the score NaN");
    if (bytes <= 0 || static_cast<std::uint32_t>(bytes) > longest)
      return wrong("has " + std::to_string(bytes) + " bytes; its length must be 1 to " + std::to_string(longest));
    if (file.size() < static_cast<std::size_t>(bytes)) return wrong("is truncated");
    token.text.assign(reinterpret_cast<const char*>(file.data()), static_cast<std::size_t>(bytes));
    file = file.subspan(static_cast<std::size_t>(bytes));
    // Not those before: text that spells a control token, or "<0x41>", is text.
    if (made.vocabulary() >= kFirstByte + 256 && !made.by_text_.emplace(token.text, made.vocabulary()).second)
      return wrong("occurs twice");
    made.tokens_.push_back(std::move(token));
  }
  for (unsigned byte = 0; byte < 256; ++byte) {
    const auto token = static_cast<std::size_t>(kFirstByte) + byte;
    if (token >= made.tokens_.size() || made.tokens_[token].text != name_of_byte(byte))
      return corrupt("token " + std::to_string(token) + " is not " + name_of_byte(byte));
  }
  return made;
}

Result<Llama2cTokenizer> Llama2cTokenizer::load(const std::string& path) {
  DUNNOCK_TRY(const auto file, read_file(path));
  auto made = parse(std::as_bytes(std::span(file)));
  if (!made) return make_error(made.error().code, path + ": " + made.error().message);
  return made;
}

std::string_view Llama2cTokenizer::text_of(std::int32_t token) const {
  DUNNOCK_CHECK(token >= 0 && token < vocabulary(), "the token is in the vocabulary");
  return tokens_[static_cast<std::size_t>(token)].text;
}

std::optional<std::int32_t> Llama2cTokenizer::token_of(const std::string& text) const {
  const auto found = by_text_.find(text);
  return found == by_text_.end() ? std::nullopt : std::optional(found->second);
}

std::vector<std::int32_t> Llama2cTokenizer::encode(std::string_view text, const EncodeOptions& options) const {
  std::vector<std::int32_t> start;
  const auto add = [&](const std::string& character) {
    if (const auto token = token_of(character)) {
      start.push_back(*token);
    } else {
      for (const char c : character) start.push_back(kFirstByte + static_cast<unsigned char>(c));
    }
  };
  if (!text.empty()) add(" ");
  for (std::size_t i = 0; i < text.size();) {
    // A character: a byte and up to three that go on. What is no UTF-8 ends up as bytes all the same.
    std::size_t bytes = 1;
    while (bytes < 4 && i + bytes < text.size() && (static_cast<unsigned char>(text[i + bytes]) & 0xC0U) == 0x80U)
      ++bytes;
    add(std::string(text.substr(i, bytes)));
    i += bytes;
  }

  // A list of tokens and a heap of pairs: the highest score first, of the same ones the leftmost.
  constexpr std::size_t kNone = ~std::size_t{0};
  struct Node {
    std::int32_t token;
    std::size_t before, after;
    unsigned version = 0;  // Counts changes: a candidate of an older one is void.
    bool gone = false;
  };
  struct Candidate {
    float score;
    std::size_t left;
    std::int32_t merged;
    unsigned left_version, right_version;
    bool operator<(const Candidate& other) const {
      return score != other.score ? score < other.score : left > other.left;
    }
  };
  std::vector<Node> nodes(start.size());
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    nodes[i].token = start[i];
    nodes[i].before = i - 1;  // Of the first: kNone.
    nodes[i].after = i + 1 < nodes.size() ? i + 1 : kNone;
  }
  std::priority_queue<Candidate> heap;
  std::string both;
  const auto offer = [&](std::size_t left) {
    if (left == kNone || nodes[left].after == kNone) return;
    const Node& a = nodes[left];
    const Node& b = nodes[a.after];
    both.assign(text_of(a.token)).append(text_of(b.token));
    if (const auto merged = token_of(both))
      heap.push({tokens_[static_cast<std::size_t>(*merged)].score, left, *merged, a.version, b.version});
  };
  for (std::size_t i = 0; i < nodes.size(); ++i) offer(i);
  while (!heap.empty()) {
    const Candidate best = heap.top();
    heap.pop();
    Node& left = nodes[best.left];
    if (left.gone || left.version != best.left_version || left.after == kNone) continue;
    Node& right = nodes[left.after];
    if (right.version != best.right_version) continue;
    right.gone = true;
    left.token = best.merged;
    ++left.version;
    left.after = right.after;
    if (left.after != kNone) nodes[left.after].before = best.left;
    offer(left.before);
    offer(best.left);
  }

  std::vector<std::int32_t> tokens;
  if (options.begin) tokens.push_back(kBegin);
  for (std::size_t at = nodes.empty() ? kNone : 0; at != kNone; at = nodes[at].after) tokens.push_back(nodes[at].token);
  if (options.end) tokens.push_back(kEnd);
  return tokens;
}

Result<std::string> Llama2cTokenizer::decode(std::span<const std::int32_t> tokens) const {
  std::string text;
  std::int32_t before = 0;
  for (const std::int32_t token : tokens) {
    if (token < 0 || token >= vocabulary())
      return make_error(ErrorCode::kInvalidArgument, "token " + std::to_string(token) +
                                                         " is out of range: the vocabulary has " +
                                                         std::to_string(vocabulary()) + " tokens");
    const bool space_in_front = before == kBegin && token == kFirstByte + ' ' && !token_of(" ");
    if (space_in_front) {
      // As below, of a vocabulary that spells the space by its byte.
    } else if (token >= kFirstByte && token < kFirstByte + 256) {
      text.push_back(static_cast<char>(token - kFirstByte));
    } else if (token != kBegin && token != kEnd) {
      std::string_view piece = text_of(token);
      if (before == kBegin && piece.starts_with(' ')) piece.remove_prefix(1);
      text += piece;
    }
    before = token;
  }
  return text;
}

}  // namespace dunnock::data
