#include "dump_text.hpp"

#include <array>
#include <charconv>

namespace dunnock::tool {
namespace {

constexpr std::string_view kHeader = "dunnock-dump 1";
constexpr std::string_view kDamaged = "# damaged entries: ";
constexpr std::string_view kDigits = "0123456789abcdef";

void append_hex(std::string& text, std::span<const std::byte> bytes) {
  for (const std::byte one : bytes) {
    text += kDigits[std::to_integer<unsigned>(one) >> 4];
    text += kDigits[std::to_integer<unsigned>(one) & 15];
  }
}

void append_key(std::string& text, const IndexKey& key) {
  for (const std::uint64_t word : {key.high, key.low}) {
    for (int shift = 60; shift >= 0; shift -= 4) text += kDigits[word >> shift & 15];
  }
}

int digit_of(char c) noexcept {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

std::optional<std::vector<std::byte>> bytes_of_hex(std::string_view text) {
  if (text.size() % 2 != 0) return std::nullopt;
  std::vector<std::byte> bytes;
  bytes.reserve(text.size() / 2);
  for (std::size_t i = 0; i < text.size(); i += 2) {
    const int high = digit_of(text[i]);
    const int low = digit_of(text[i + 1]);
    if (high < 0 || low < 0) return std::nullopt;
    bytes.push_back(static_cast<std::byte>(high * 16 + low));
  }
  return bytes;
}

/// Takes a number up to `end` (or the end of the text) from the front of the text.
template <class Number>
bool take_number(std::string_view& text, char end, Number& number) {
  const auto [after, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc()) return false;
  text.remove_prefix(static_cast<std::size_t>(after - text.data()));
  if (end == '\0') return text.empty();
  if (text.empty() || text.front() != end) return false;
  text.remove_prefix(1);
  return true;
}

}  // namespace

std::string dump_header() { return std::string(kHeader) + "\n"; }

std::string dump_line(const IndexKey& key, std::span<const std::byte> bytes) {
  std::string text;
  text.reserve(34 + 2 * bytes.size());
  append_key(text, key);
  text += ' ';
  if (bytes.empty()) text += '-';
  append_hex(text, bytes);
  return text + "\n";
}

std::string dump_line(const IndexKey& key, const Locator& locator) {
  std::string text;
  append_key(text, key);
  return text + " @" + std::to_string(locator.position) + ":" + std::to_string(locator.length) + ":" +
         std::to_string(locator.checksum) + "\n";
}

std::string dump_damaged(const IndexKey& key) {
  std::string text = "# damaged ";
  append_key(text, key);
  return text + "\n";
}

std::string dump_damaged(std::uint64_t entries) { return std::string(kDamaged) + std::to_string(entries) + "\n"; }

std::string dump_end(std::uint64_t entries) { return "end " + std::to_string(entries) + "\n"; }

Result<std::optional<DumpEntry>> DumpReader::line(std::string_view text) {
  ++lines_;
  const auto wrong = [this](const std::string& what) {
    return make_error(ErrorCode::kCorrupt, "line " + std::to_string(lines_) + ": " + what);
  };
  if (!text.empty() && text.back() == '\r') text.remove_suffix(1);
  if (lines_ == 1) {
    if (text != kHeader) return wrong("not a dump: it does not start with '" + std::string(kHeader) + "'");
    return std::nullopt;
  }
  if (text.starts_with(kDamaged)) {
    text.remove_prefix(kDamaged.size());
    std::uint64_t count = 0;
    if (take_number(text, '\0', count)) damaged_ = count;  // Else somebody's own comment.
    return std::nullopt;
  }
  if (text.empty() || text.front() == '#') return std::nullopt;
  if (ended_) return wrong("there is more after the end");
  if (text.starts_with("end ")) {
    text.remove_prefix(4);
    std::uint64_t count = 0;
    if (!take_number(text, '\0', count)) return wrong("the end has no number");
    if (count != entries_)
      return wrong("there are " + std::to_string(entries_) + " entries, and the end says " + std::to_string(count));
    ended_ = true;
    return std::nullopt;
  }
  if (text.size() < 34 || text[32] != ' ') return wrong("not a key of 32 digits, a space and a value");
  const auto key = bytes_of_hex(text.substr(0, 32));
  if (!key) return wrong("the key is not hexadecimal");
  DumpEntry entry;
  for (std::size_t i = 0; i < 16; ++i) {
    std::uint64_t& word = i < 8 ? entry.key.high : entry.key.low;
    word = word << 8 | std::to_integer<std::uint64_t>((*key)[i]);
  }
  text.remove_prefix(33);
  if (text.front() == '@') {
    text.remove_prefix(1);
    Locator locator;
    if (!take_number(text, ':', locator.position) || !take_number(text, ':', locator.length) ||
        !take_number(text, '\0', locator.checksum))
      return wrong("not a locator: @position:length:checksum");
    entry.value = locator;
  } else if (text == "-") {
    entry.value = std::vector<std::byte>();
  } else {
    auto bytes = bytes_of_hex(text);
    if (!bytes) return wrong("the value is not hexadecimal");
    entry.value = std::move(*bytes);
  }
  ++entries_;
  return entry;
}

Status DumpReader::end() const {
  if (!ended_) return make_error(ErrorCode::kCorrupt, "the dump is truncated: its last line, 'end', is missing");
  return {};
}

}  // namespace dunnock::tool
