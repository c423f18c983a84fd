#include "dunnock/base/printable.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

namespace dunnock {
namespace {

constexpr std::string_view kDigits = "0123456789abcdef";

struct Character {
  std::size_t bytes = 0;  // 0: not UTF-8.
  std::uint32_t number = 0;
};

/// The character that `text` begins with. Overlong forms, surrogates and numbers beyond U+10FFFF are not UTF-8.
Character first_character(std::string_view text) {
  const auto byte = [&text](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned first = byte(0);
  if (first < 0x80) return {1, first};
  const std::size_t length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  if (first < 0xc2 || first > 0xf4 || text.size() < length) return {};
  std::uint32_t number = first & (0x7fU >> length);
  for (std::size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return {};
    number = number << 6 | (byte(i) & 0x3fU);
  }
  constexpr std::array<std::uint32_t, 5> kLeast = {0, 0, 0x80, 0x800, 0x10000};
  if (number < kLeast[length] || number > 0x10ffff || (number >= 0xd800 && number < 0xe000)) return {};
  return {length, number};
}

bool is_harmless(std::uint32_t number) {
  if (number < 0x20 || (number >= 0x7f && number < 0xa0)) return false;
  if (number == 0x061c || number == 0x200e || number == 0x200f) return false;  // Marks of direction.
  if (number >= 0x2028 && number <= 0x202e) return false;  // Separators of lines; embeddings and overrides.
  return number < 0x2066 || number > 0x2069;               // Isolates.
}

void append_hex(std::string& to, std::uint32_t number, int digits) {
  for (int shift = 4 * (digits - 1); shift >= 0; shift -= 4) to += kDigits[number >> shift & 15];
}

}  // namespace

std::string printable(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const Character one = first_character(text);
    const std::size_t bytes = one.bytes == 0 ? 1 : one.bytes;
    if (one.bytes != 0 && is_harmless(one.number)) {
      out += text.substr(0, bytes);
    } else if (text.front() == '\n' || text.front() == '\r' || text.front() == '\t') {
      out += text.front() == '\n' ? "\\n" : text.front() == '\r' ? "\\r" : "\\t";
    } else if (bytes == 1) {
      out += "\\x";
      append_hex(out, static_cast<unsigned char>(text.front()), 2);
    } else {
      out += "\\u";
      append_hex(out, one.number, 4);
    }
    text.remove_prefix(bytes);
  }
  return out;
}

std::string in_quotes(std::string_view text) {
  std::string out(1, '\'');
  out += printable(text);
  out += '\'';
  return out;
}

std::string printable_lines(std::string text, std::span<char* const> quoted) {
  for (const std::string word : quoted) {
    const std::string shown = printable(word);
    if (shown == word) continue;
    for (std::size_t at = 0; (at = text.find(word, at)) != std::string::npos; at += shown.size())
      text.replace(at, word.size(), shown);
  }
  std::string lines;
  for (std::string_view rest = text; !rest.empty();) {
    const std::size_t end = std::min(rest.find('\n'), rest.size());
    lines += printable(rest.substr(0, end)) + "\n";
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  return lines;
}

}  // namespace dunnock
