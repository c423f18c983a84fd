// Sums, products and casts, value by value; a bias for each column of a matrix, and its gradient; copies of columns.
//
// T is float or Bf16; arithmetic is in float. Spans that do not fit the shape are programmer errors. Nothing allocates.
#pragma once

#include <cstddef>

#include "dunnock/device/bf16.hpp"
#include "dunnock/device/memory.hpp"
#include "dunnock/kernels/kernel.hpp"

namespace dunnock::kernels {

/// y = a + factor * b: a sum (factor 1), a scaled residual, and axpy when y is a. a, b (any) -> y (as many), may be
/// either.
template <class T>
struct AddScaled {
  device::Span<const T> a{}, b{};
  float factor = 0;
  device::Span<T> y{};
};
DUNNOCK_KERNEL(AddScaled);
/// y = max(0, a + b), where branches of a network meet; a NaN stays NaN. a, b (any) -> y (as many), may be either.
template <class T>
struct AddRelu {
  device::Span<const T> a{}, b{};
  device::Span<T> y{};
};
DUNNOCK_KERNEL(AddRelu);
/// y = a + b where `at`, the result of a ReLU, is above 0; otherwise 0. a, b, at (any) -> y (as many), may be any of
/// them.
template <class T>
struct AddReluBackward {
  device::Span<const T> a{}, b{}, at{};
  device::Span<T> y{};
};
DUNNOCK_KERNEL(AddReluBackward);
/// y = factor * x; may be in place.
template <class T>
struct Scale {
  device::Span<const T> x{};
  float factor = 0;
  device::Span<T> y{};
};
DUNNOCK_KERNEL(Scale);
template <class T>
struct Fill {
  device::Span<T> y{};
  float value = 0;
};
DUNNOCK_KERNEL(Fill);
/// f32 -> bf16 rounds to nearest, ties to even; bf16 -> f32 is exact. Not in place.
template <class To, class From>
struct Cast {
  device::Span<const From> x{};
  device::Span<To> y{};
};
DUNNOCK_KERNEL_2(Cast);

struct RowMatrix {
  std::size_t rows = 0;
  std::size_t columns = 0;  ///< > 0
};

/// y[row][c] = x[row][c] + bias[c]. x (rows, columns), bias (columns) -> y (rows, columns), may be x.
template <class T>
struct BiasAdd {
  device::Span<const T> x{}, bias{};
  device::Span<T> y{};
  RowMatrix shape{};
};
DUNNOCK_KERNEL(BiasAdd);

/// Floats of workspace that column_sums needs on this device.
[[nodiscard]] std::size_t column_sums_workspace(const RowMatrix& shape, device::Device device);
/// Sums over the rows: the gradient of a bias. `adds`: adds to the values of `sums`. The order of the sums is the same
/// in each run, and with any number of threads. x (rows, columns) -> sums (columns)
template <class T>
struct ColumnSums {
  device::Span<const T> x{};
  device::Span<T> sums{};
  bool adds = false;
  RowMatrix shape{};
  device::Span<float> workspace{};
};
DUNNOCK_KERNEL(ColumnSums);

/// Columns of one matrix, and as many of another; a stride is the distance from one row to the next.
struct ColumnsShape {
  std::size_t rows = 0;
  std::size_t columns = 0;
  std::size_t from_stride = 0;  ///< >= columns
  std::size_t to_stride = 0;    ///< >= columns
};
/// to[row][c] = from[row][c], or with `adds` +=, which rounds once. Spans begin with the first of the columns, do not
/// overlap in what is copied, and reach at least to the last. from (rows, from_stride) -> to (rows, to_stride)
template <class T>
struct CopyColumns {
  device::Span<const T> from{};
  device::Span<T> to{};
  bool adds = false;
  ColumnsShape shape{};
};
DUNNOCK_KERNEL(CopyColumns);

}  // namespace dunnock::kernels
