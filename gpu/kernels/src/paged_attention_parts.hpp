// How the work is split on both backends: all sequences' tokens laid
// end to end, in units of 16 tokens, and that line cut into parts of one length. A piece is what part p has of sequence
// s; along the line p + s grows from piece to piece, so it is the piece's number in the workspace.
#pragma once

#include <algorithm>
#include <cmath>

#include "attention_parts.hpp"
#include "dispatch.hpp"
#include "dunnock/kernels/paged_attention.hpp"

namespace dunnock::kernels::detail {

inline constexpr unsigned kUnitTokens = 16;

DUNNOCK_HOST_DEVICE constexpr std::size_t units_of_length(std::int32_t length) {
  return length <= 0 ? 0 : (static_cast<std::size_t>(length) + kUnitTokens - 1) / kUnitTokens;
}
/// Parts that there are work for: each has a unit, so each piece between a sequence's first and last is written.
DUNNOCK_HOST_DEVICE constexpr std::size_t parts_used(std::size_t parts, std::size_t units) {
  return parts < units ? parts : units;
}
/// The first unit of a part.
DUNNOCK_HOST_DEVICE constexpr std::size_t first_unit(std::size_t part, std::size_t parts, std::size_t units) {
  return units * part / parts;
}
/// The part that has a unit: the last part whose first unit is not after it.
DUNNOCK_HOST_DEVICE constexpr std::size_t part_of_unit(std::size_t unit, std::size_t parts, std::size_t units) {
  return ((unit + 1) * parts - 1) / units;
}

/// The workspace: of each piece and head, what it has summed up (head_dim), the maximum and the sum.
struct Partials {
  float* sums;   // (pieces, heads, head_dim)
  float* stats;  // (pieces, heads, 2): maximum of the logits times log2(e) * scale, sum
};
inline std::size_t partial_floats(const PagedShape& shape, std::size_t parts) {
  return (parts + shape.sequences) * shape.heads * (shape.head_dim + 2);
}
inline Partials partials_in(device::Span<float> workspace, const PagedShape& shape, std::size_t parts) {
  return {workspace.device_data(), workspace.device_data() + (parts + shape.sequences) * shape.heads * shape.head_dim};
}

}  // namespace dunnock::kernels::detail

namespace dunnock::kernels::detail::DUNNOCK_KERNELS {

[[nodiscard]] std::size_t paged_attention_workspace(const PagedShape& shape, unsigned multiprocessors);

}  // namespace dunnock::kernels::detail::DUNNOCK_KERNELS
