#include "dunnock/data/pieces.hpp"

#include <algorithm>
#include <array>
#include <cstdint>

namespace dunnock::data {
namespace {

struct Run {
  std::uint32_t first, last;
};
#include "letters.inc"

enum class Kind : std::uint8_t { kOther, kLetter, kNumber, kSpace };

struct Character {
  Kind kind = Kind::kOther;
  unsigned bytes = 0;  // 0: the text has ended.
};

template <std::size_t N>
bool is_in(const std::array<Run, N>& runs, std::uint32_t code) noexcept {
  const auto after = std::upper_bound(runs.begin(), runs.end(), code,
                                      [](std::uint32_t value, const Run& run) { return value < run.first; });
  return after != runs.begin() && code <= std::prev(after)->last;
}

/// Unicode's White_Space.
constexpr bool is_space(std::uint32_t code) noexcept {
  return (code >= 0x9 && code <= 0xD) || code == 0x20 || code == 0x85 || code == 0xA0 || code == 0x1680 ||
         (code >= 0x2000 && code <= 0x200A) || code == 0x2028 || code == 0x2029 || code == 0x202F || code == 0x205F ||
         code == 0x3000;
}

Kind kind_of(std::uint32_t code) noexcept {
  if (is_space(code)) return Kind::kSpace;
  if (is_in(kLetters, code)) return Kind::kLetter;
  return is_in(kNumbers, code) ? Kind::kNumber : Kind::kOther;
}

constexpr std::array<Kind, 128> kAscii = [] {
  std::array<Kind, 128> kinds{};
  for (std::uint32_t code = 0; code < 128; ++code) {
    if (is_space(code)) kinds[code] = Kind::kSpace;
    if ((code >= 'a' && code <= 'z') || (code >= 'A' && code <= 'Z')) kinds[code] = Kind::kLetter;
    if (code >= '0' && code <= '9') kinds[code] = Kind::kNumber;
  }
  return kinds;
}();

/// The character at `at`; a byte that begins none is one by itself.
Character character_at(std::string_view text, std::size_t at) noexcept {
  if (at >= text.size()) return {};
  const auto byte = [&](std::size_t i) {
    return at + i < text.size() ? static_cast<std::uint32_t>(static_cast<unsigned char>(text[at + i])) : 0U;
  };
  const std::uint32_t first = byte(0);
  if (first < 0x80) return {kAscii[first], 1};
  const unsigned bytes = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
  if (first < 0xC2 || first > 0xF4) return {Kind::kOther, 1};
  std::uint32_t code = first & (0x7FU >> bytes);
  for (unsigned i = 1; i < bytes; ++i) {
    if ((byte(i) & 0xC0U) != 0x80U) return {Kind::kOther, 1};
    code = code << 6 | (byte(i) & 0x3FU);
  }
  // Longer than need be, half of a UTF-16 pair, beyond Unicode.
  constexpr std::array<std::uint32_t, 5> kLeast = {0, 0, 0x80, 0x800, 0x10000};
  if (code < kLeast[bytes] || (code >= 0xD800 && code <= 0xDFFF) || code > 0x10FFFF) return {Kind::kOther, 1};
  return {kind_of(code), bytes};
}

/// The end of the run of characters of this kind from `at` on.
std::size_t run_end(std::string_view text, std::size_t at, Kind kind) noexcept {
  for (Character c = character_at(text, at); c.bytes != 0 && c.kind == kind; c = character_at(text, at)) at += c.bytes;
  return at;
}

std::size_t contraction_bytes(std::string_view text) noexcept {
  for (const std::string_view ending : {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"}) {
    if (text.starts_with(ending)) return ending.size();
  }
  return 0;
}

}  // namespace

std::size_t first_piece_bytes(std::string_view text) noexcept {
  if (text.empty()) return 0;
  if (text[0] == '\'') {
    if (const std::size_t bytes = contraction_bytes(text); bytes != 0) return bytes;
  }
  const Character first = character_at(text, 0);
  if (first.kind != Kind::kSpace) return run_end(text, first.bytes, first.kind);
  const Character second = character_at(text, first.bytes);
  const bool ends = second.bytes == 0;
  if (text[0] == ' ' && !ends && second.kind != Kind::kSpace)
    return run_end(text, first.bytes + second.bytes, second.kind);
  // White space: all of it at the end of the text, otherwise all but the last, which goes with what follows.
  std::size_t end = first.bytes, last = 0;
  for (Character c = second; c.bytes != 0 && c.kind == Kind::kSpace; c = character_at(text, end)) {
    last = end;
    end += c.bytes;
  }
  return end == text.size() || last == 0 ? end : last;
}

std::size_t leading_space_bytes(std::string_view text) noexcept { return run_end(text, 0, Kind::kSpace); }

std::size_t trailing_space_bytes(std::string_view text) noexcept {
  std::size_t end = text.size();
  while (end > 0) {
    std::size_t begin = end - 1;
    while (begin > 0 && end - begin < 4 && (static_cast<unsigned char>(text[begin]) & 0xC0U) == 0x80U) --begin;
    const Character last = character_at(text.substr(0, end), begin);
    if (last.kind != Kind::kSpace || begin + last.bytes != end) break;
    end = begin;
  }
  return text.size() - end;
}

}  // namespace dunnock::data
