// Makes foreign text fit for a terminal: names of tensors, files and regions may contain anything.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace dunnock {

/// Escapes everything that could act on a terminal or pass itself off as other text: control characters and DEL (\n,
/// \t, \r, \x1b), bytes that are not UTF-8 (\xff), Latin-1 controls (\u009b), characters that change the writing
/// direction (\u202e), and line and paragraph separators (\u2028). All other text stays as it is, backslashes too, so
/// that printable(printable(text)) == printable(text).
[[nodiscard]] std::string printable(std::string_view text);

/// The same in quotation marks: 'name'.
[[nodiscard]] std::string in_quotes(std::string_view text);

/// printable() line by line: the text's own line breaks stay, but none of those in the words that it may quote, such as
/// a program's arguments.
[[nodiscard]] std::string printable_lines(std::string text, std::span<char* const> quoted);

}  // namespace dunnock
