// Sums and maxima of all values, of many tensors at once, and of rows; and what gradient clipping needs. All results
// are values in device memory, so the host need not wait.
//
//   gradient_norm(table, norm, ...);  clip_factor(norm, 1.0F, factor, ...);  adamw(table, step, factor, ...);
//
// T is float or Bf16; sums are f32, in parts of fixed size, added in their order: the same bits in each run on one
// device, with any number of threads. Spans that do not fit are programmer errors. Nothing allocates.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "dunnock/gpu/bf16.hpp"
#include "dunnock/gpu/memory.hpp"

namespace dunnock::gpu {

enum class ReduceKind : std::uint8_t { kSum, kSumOfSquares, kMean, kMax };

inline constexpr std::size_t kReduceChunk = 16384;  ///< Values whose sum is a part.

/// Floats of workspace that `count` values need.
[[nodiscard]] constexpr std::size_t reduce_workspace(std::size_t count) noexcept {
  return (count + kReduceChunk - 1) / kReduceChunk;
}
/// x (any) -> result (1). Without values: 0; the mean: NaN; the maximum: -infinity. With a NaN, the maximum is NaN.
template <class T>
void reduce(ReduceKind kind, DeviceSpan<const T> x, DeviceSpan<float> result, DeviceSpan<float> workspace,
            Stream& stream);
/// flag = 1 if a value is NaN or infinite, otherwise 0. x (any) -> flag (1); the workspace of reduce().
template <class T>
void any_not_finite(DeviceSpan<const T> x, DeviceSpan<std::uint32_t> flag, DeviceSpan<float> workspace, Stream& stream);

/// One tensor of many; the table is in device memory.
template <class T>
struct ReduceTensor {
  const T* values = nullptr;  // (size), device memory
  std::size_t size = 0;
  std::size_t first_chunk = 0;  // lay_out() sets it
};
/// Numbers the chunks of all tensors and returns their number: the floats of workspace that gradient_norm needs.
template <class T>
[[nodiscard]] std::size_t lay_out(std::span<ReduceTensor<T>> table) {
  std::size_t chunks = 0;
  for (ReduceTensor<T>& tensor : table) {
    tensor.first_chunk = chunks;
    chunks += reduce_workspace(tensor.size);
  }
  return chunks;
}
/// A table in device memory that lay_out() has processed, and its chunks.
template <class T>
struct ReduceTable {
  DeviceSpan<const ReduceTensor<T>> tensors;
  std::size_t chunks = 0;
};
/// The root of the sum of squares of all values of all tensors -> norm (1). Not finite if a value is not.
template <class T>
void gradient_norm(const ReduceTable<T>& table, DeviceSpan<float> norm, DeviceSpan<float> workspace, Stream& stream);
/// factor = min(1, norm_max / norm), or NaN if norm is NaN. norm (1) -> factor (1), may be norm.
void clip_factor(DeviceSpan<const float> norm, float norm_max, DeviceSpan<float> factor, Stream& stream);

struct ReduceRows {
  std::size_t rows = 0;
  std::size_t columns = 0;  ///< > 0, < 2^31
};
/// The largest value of each row and where it is: the first of equals; a NaN counts as the largest. x (rows, columns)
/// -> indices (rows), values (rows) or empty
template <class T>
void argmax_rows(DeviceSpan<const T> x, DeviceSpan<std::int32_t> indices, DeviceSpan<float> values,
                 const ReduceRows& shape, Stream& stream);

/// The twins, written to be read: in double. On CPU streams.
namespace reference {
template <class T>
void reduce(ReduceKind kind, DeviceSpan<const T> x, DeviceSpan<float> result, DeviceSpan<float> workspace,
            Stream& stream);
template <class T>
void any_not_finite(DeviceSpan<const T> x, DeviceSpan<std::uint32_t> flag, DeviceSpan<float> workspace, Stream& stream);
template <class T>
void gradient_norm(const ReduceTable<T>& table, DeviceSpan<float> norm, DeviceSpan<float> workspace, Stream& stream);
void clip_factor(DeviceSpan<const float> norm, float norm_max, DeviceSpan<float> factor, Stream& stream);
template <class T>
void argmax_rows(DeviceSpan<const T> x, DeviceSpan<std::int32_t> indices, DeviceSpan<float> values,
                 const ReduceRows& shape, Stream& stream);
}  // namespace reference

}  // namespace dunnock::gpu
