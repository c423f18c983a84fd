// Sums and maxima of all values, of many tensors at once, and of rows; and what gradient clipping needs. All results
// are values in device memory, so the host need not wait.
//
//   run(GradientNorm<T>{table, norm, ...}, stream);
//   run(ClipFactor{norm, 1.0F, factor}, stream);
//   run(Adamw<T>{table, step, factor}, stream);
//
// T is float or Bf16; sums are f32, in parts of fixed size, added in their order: the same bits in each run on one
// device, with any number of threads. Spans that do not fit are programmer errors. Nothing allocates.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "dunnock/device/bf16.hpp"
#include "dunnock/device/memory.hpp"
#include "dunnock/kernels/kernel.hpp"

namespace dunnock::kernels {

enum class ReduceKind : std::uint8_t { kSum, kSumOfSquares, kMean, kMax };

inline constexpr std::size_t kReduceChunk = 16384;  ///< Values whose sum is a part.

/// Floats of workspace that `count` values need.
[[nodiscard]] constexpr std::size_t reduce_workspace(std::size_t count) noexcept {
  return (count + kReduceChunk - 1) / kReduceChunk;
}
/// x (any) -> result (1). Without values: 0; the mean: NaN; the maximum: -infinity. With a NaN, the maximum is NaN.
template <class T>
struct Reduce {
  ReduceKind kind{};
  device::Span<const T> x{};
  device::Span<float> result{}, workspace{};
};
DUNNOCK_KERNEL(Reduce);
/// flag = 1 if a value is NaN or infinite, otherwise 0. x (any) -> flag (1); the workspace of Reduce.
template <class T>
struct AnyNotFinite {
  device::Span<const T> x{};
  device::Span<std::uint32_t> flag{};
  device::Span<float> workspace{};
};
DUNNOCK_KERNEL(AnyNotFinite);

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
  device::Span<const ReduceTensor<T>> tensors;
  std::size_t chunks = 0;
};
/// The root of the sum of squares of all values of all tensors -> norm (1). Not finite if a value is not.
template <class T>
struct GradientNorm {
  ReduceTable<T> table{};
  device::Span<float> norm{}, workspace{};
};
DUNNOCK_KERNEL(GradientNorm);
/// factor = min(1, norm_max / norm), or NaN if norm is NaN. norm (1) -> factor (1), may be norm.
struct ClipFactor {
  device::Span<const float> norm{};
  float norm_max = 0;
  device::Span<float> factor{};
};
DUNNOCK_KERNEL_0(ClipFactor);

struct ReduceRows {
  std::size_t rows = 0;
  std::size_t columns = 0;  ///< > 0, < 2^31
};
/// The largest value of each row and where it is: the first of equals; a NaN counts as the largest. x (rows, columns)
/// -> indices (rows), values (rows) or empty
template <class T>
struct ArgmaxRows {
  device::Span<const T> x{};
  device::Span<std::int32_t> indices{};
  device::Span<float> values{};
  ReduceRows shape{};
};
DUNNOCK_KERNEL(ArgmaxRows);

}  // namespace dunnock::kernels
