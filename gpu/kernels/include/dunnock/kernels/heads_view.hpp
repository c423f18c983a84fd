// HeadsView: refers to the rows of attention heads in place, so that a projection's output is used without a copy.
#pragma once

#include <cstddef>
#include <type_traits>

#include "dunnock/device/memory.hpp"

namespace dunnock::kernels {

/// Value d of head h of token t of batch entry b is values[b * batch_stride + t * token_stride + h * head_stride + d].
/// The strides are in values. Rows that are written do not overlap.
template <class T>
struct HeadsView {
  device::Span<T> values;
  std::size_t batch_stride = 0;
  std::size_t token_stride = 0;
  std::size_t head_stride = 0;

  // NOLINTNEXTLINE(google-explicit-constructor): as device::Span.
  template <class U>
  requires(std::is_same_v<const T, U> && !std::is_const_v<T>) operator HeadsView<U>() const noexcept {
    return {values, batch_stride, token_stride, head_stride};
  }
};

/// Memory (batch, tokens, heads, head_dim). A projection to q, k and v has the heads of all three, contiguously.
struct PackedHeads {
  std::size_t tokens = 0;
  std::size_t heads = 0;  ///< number of all heads in the memory
  std::size_t head_dim = 0;
  std::size_t first_head = 0;  ///< where the view begins
};

/// The heads from `first_head` on. In a packed projection (batch, tokens, 3, heads, head_dim), k is
/// heads_view(qkv, {.tokens = tokens, .heads = 3 * heads, .head_dim = head_dim, .first_head = heads}).
template <class T>
[[nodiscard]] HeadsView<T> heads_view(device::Span<T> values, const PackedHeads& packed) {
  const std::size_t row = packed.heads * packed.head_dim;
  const std::size_t first = values.empty() ? 0 : packed.first_head * packed.head_dim;
  return {values.subspan(first, values.size() - first), packed.tokens * row, row, packed.head_dim};
}

}  // namespace dunnock::kernels
