// The pieces into which GPT-2 cuts a text before it looks for pairs: words with the space before them, numbers, runs of
// other characters, white space. No token crosses the end of a piece.
//
//   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
//
// (Radford et al., "Language models are unsupervised multitask learners", 2019, and the code published with it.)
// Written by hand here: one pass, no backtracking, time linear in the text.
//
// Each byte that is not UTF-8 counts as a character that is neither space, letter nor number, so every sequence of
// bytes has pieces.
#pragma once

#include <cstddef>
#include <string_view>

namespace dunnock::data {

/// Bytes of the first piece of a text: 1 or more for a text that is not empty, 0 for an empty one. The last piece of a
/// text depends on what follows the text, so cut texts only between pieces.
[[nodiscard]] std::size_t first_piece_bytes(std::string_view text) noexcept;

/// Bytes of the white space (Unicode's) that a text begins with, or ends with.
[[nodiscard]] std::size_t leading_space_bytes(std::string_view text) noexcept;
[[nodiscard]] std::size_t trailing_space_bytes(std::string_view text) noexcept;

}  // namespace dunnock::data
