// The pieces into which GPT-2 cuts a text before it looks for pairs: words with the space before them, numbers, runs of
// other characters, white space. No token reaches over the end of a piece.
//
//   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
//
// (Radford et al., "Language models are unsupervised multitask learners", 2019, and the code beside it.) Written out by
// hand here: one pass, no back-tracking, time linear in the text.
//
// Bytes that are not UTF-8 count, each by itself, as characters that are neither space, letter nor number, so every
// sequence of bytes has its pieces.
#pragma once

#include <cstddef>
#include <string_view>

namespace dunnock::training {

/// Bytes of the piece that a text begins with: 1 or more, of a text that is not empty; 0 of an empty one. What stands
/// behind the text matters to its last piece, so cut texts between pieces only.
[[nodiscard]] std::size_t first_piece_bytes(std::string_view text) noexcept;

/// Bytes of the white space (Unicode's) that a text begins with, or ends with.
[[nodiscard]] std::size_t leading_space_bytes(std::string_view text) noexcept;
[[nodiscard]] std::size_t trailing_space_bytes(std::string_view text) noexcept;

}  // namespace dunnock::training
