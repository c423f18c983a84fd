// Rows of a table for tokens, with a position's row added where there are positions; and the gradient of the table.
//
// T is float or Bf16; sums are in float, in the order of the tokens: the same bits in each run. A token outside the
// table reads nothing: its row is NaN, and it adds nothing to the gradient. Spans that do not fit the shape are
// programmer errors. Nothing allocates.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dunnock/gpu/bf16.hpp"
#include "dunnock/gpu/memory.hpp"

namespace dunnock::gpu {

struct EmbeddingShape {
  std::size_t vocabulary = 0;  ///< < 2^31
  std::size_t columns = 0;     ///< > 0
};

/// y[i] = table[tokens[i]] + positions[i % length]. table (vocabulary, columns), positions (length, columns) or empty,
/// tokens (n) -> y (n, columns)
template <class T>
void embedding(DeviceSpan<const T> table, DeviceSpan<const T> positions, DeviceSpan<const std::int32_t> tokens,
               DeviceSpan<T> y, const EmbeddingShape& shape, Stream& stream);

/// Words of workspace that embedding_backward needs for `tokens` tokens on this device.
[[nodiscard]] std::size_t embedding_backward_workspace(std::size_t tokens, const EmbeddingShape& shape, Device device);
/// dtable[v] = the sum of dy[i] of all i whose token is v, or += with `adds`. G is T or float. The gradient of the
/// positions is column_sums() of dy as (n / length, length * columns). dy (n, columns), tokens (n) -> dtable
/// (vocabulary, columns)
template <class T, class G>
void embedding_backward(DeviceSpan<const T> dy, DeviceSpan<const std::int32_t> tokens, DeviceSpan<G> dtable, bool adds,
                        const EmbeddingShape& shape, DeviceSpan<std::uint32_t> workspace, Stream& stream);

/// The twins, written to be read: in double. On CPU streams.
namespace reference {
template <class T>
void embedding(DeviceSpan<const T> table, DeviceSpan<const T> positions, DeviceSpan<const std::int32_t> tokens,
               DeviceSpan<T> y, const EmbeddingShape& shape, Stream& stream);
template <class T, class G>
void embedding_backward(DeviceSpan<const T> dy, DeviceSpan<const std::int32_t> tokens, DeviceSpan<G> dtable, bool adds,
                        const EmbeddingShape& shape, DeviceSpan<std::uint32_t> workspace, Stream& stream);
}  // namespace reference

}  // namespace dunnock::gpu
