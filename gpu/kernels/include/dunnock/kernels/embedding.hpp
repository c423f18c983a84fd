// Rows of a table for tokens, with a position's row added where there are positions; and the gradient of the table.
//
// T is float or Bf16; sums are in float, in the order of the tokens: the same bits in each run. A token outside the
// table reads nothing: its row is NaN, and it adds nothing to the gradient. Spans that do not fit the shape are
// programmer errors. Nothing allocates.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dunnock/device/bf16.hpp"
#include "dunnock/device/memory.hpp"
#include "dunnock/kernels/kernel.hpp"

namespace dunnock::kernels {

struct EmbeddingShape {
  std::size_t vocabulary = 0;  ///< < 2^31
  std::size_t columns = 0;     ///< > 0
};

/// y[i] = table[tokens[i]] + positions[i % length]. table (vocabulary, columns), positions (length, columns) or empty,
/// tokens (n) -> y (n, columns)
template <class T>
struct Embedding {
  device::Span<const T> table{}, positions{};
  device::Span<const std::int32_t> tokens{};
  device::Span<T> y{};
  EmbeddingShape shape{};
};
DUNNOCK_KERNEL(Embedding);

/// Words of workspace that embedding_backward needs for `tokens` tokens on this device.
[[nodiscard]] std::size_t embedding_backward_workspace(std::size_t tokens, const EmbeddingShape& shape,
                                                       device::Device device);
/// dtable[v] = the sum of dy[i] of all i whose token is v, or += with `adds`. G is T or float. The gradient of the
/// positions is ColumnSums of dy as (n / length, length * columns). dy (n, columns), tokens (n) -> dtable
/// (vocabulary, columns)
template <class T, class G>
struct EmbeddingBackward {
  device::Span<const T> dy{};
  device::Span<const std::int32_t> tokens{};
  device::Span<G> dtable{};
  bool adds = false;
  EmbeddingShape shape{};
  device::Span<std::uint32_t> workspace{};
};
DUNNOCK_KERNEL_2(EmbeddingBackward);

}  // namespace dunnock::kernels
