// Sums, products and casts, value by value; a bias for each column of a matrix, and its gradient; copies of columns.
//
// T is float or Bf16; arithmetic is in float. Spans that do not fit the shape are programmer errors. Nothing allocates.
#pragma once

#include <cstddef>

#include "dunnock/gpu/bf16.hpp"
#include "dunnock/gpu/memory.hpp"

namespace dunnock::gpu {

/// y = a + factor * b: a sum (factor 1), a scaled residual, and axpy when y is a. a, b (any) -> y (as many), may be
/// either.
template <class T>
void add_scaled(DeviceSpan<const T> a, DeviceSpan<const T> b, float factor, DeviceSpan<T> y, Stream& stream);
/// y = max(0, a + b), where branches of a network meet; a NaN stays NaN. a, b (any) -> y (as many), may be either.
template <class T>
void add_relu(DeviceSpan<const T> a, DeviceSpan<const T> b, DeviceSpan<T> y, Stream& stream);
/// y = a + b where `at`, the result of a ReLU, is above 0; otherwise 0. a, b, at (any) -> y (as many), may be any of
/// them.
template <class T>
void add_relu_backward(DeviceSpan<const T> a, DeviceSpan<const T> b, DeviceSpan<const T> at, DeviceSpan<T> y,
                       Stream& stream);
/// y = factor * x; may be in place.
template <class T>
void scale(DeviceSpan<const T> x, float factor, DeviceSpan<T> y, Stream& stream);
template <class T>
void fill(DeviceSpan<T> y, float value, Stream& stream);
/// f32 -> bf16 rounds to nearest, ties to even; bf16 -> f32 is exact. Not in place.
template <class To, class From>
void cast(DeviceSpan<const From> x, DeviceSpan<To> y, Stream& stream);

struct RowMatrix {
  std::size_t rows = 0;
  std::size_t columns = 0;  ///< > 0
};

/// y[row][c] = x[row][c] + bias[c]. x (rows, columns), bias (columns) -> y (rows, columns), may be x.
template <class T>
void bias_add(DeviceSpan<const T> x, DeviceSpan<const T> bias, DeviceSpan<T> y, const RowMatrix& shape, Stream& stream);

/// Floats of workspace that column_sums needs on this device.
[[nodiscard]] std::size_t column_sums_workspace(const RowMatrix& shape, Device device);
/// Sums over the rows: the gradient of a bias. `adds`: adds to the values of `sums`. The order of the sums is the same
/// in each run, and with any number of threads. x (rows, columns) -> sums (columns)
template <class T>
void column_sums(DeviceSpan<const T> x, DeviceSpan<T> sums, bool adds, const RowMatrix& shape,
                 DeviceSpan<float> workspace, Stream& stream);

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
void copy_columns(DeviceSpan<const T> from, DeviceSpan<T> to, bool adds, const ColumnsShape& shape, Stream& stream);

/// The twins, written to be read: in double. On CPU streams.
namespace reference {
template <class T>
void add_scaled(DeviceSpan<const T> a, DeviceSpan<const T> b, float factor, DeviceSpan<T> y, Stream& stream);
template <class T>
void add_relu(DeviceSpan<const T> a, DeviceSpan<const T> b, DeviceSpan<T> y, Stream& stream);
template <class T>
void add_relu_backward(DeviceSpan<const T> a, DeviceSpan<const T> b, DeviceSpan<const T> at, DeviceSpan<T> y,
                       Stream& stream);
template <class T>
void scale(DeviceSpan<const T> x, float factor, DeviceSpan<T> y, Stream& stream);
template <class T>
void fill(DeviceSpan<T> y, float value, Stream& stream);
template <class To, class From>
void cast(DeviceSpan<const From> x, DeviceSpan<To> y, Stream& stream);
template <class T>
void bias_add(DeviceSpan<const T> x, DeviceSpan<const T> bias, DeviceSpan<T> y, const RowMatrix& shape, Stream& stream);
template <class T>
void column_sums(DeviceSpan<const T> x, DeviceSpan<T> sums, bool adds, const RowMatrix& shape,
                 DeviceSpan<float> workspace, Stream& stream);
template <class T>
void copy_columns(DeviceSpan<const T> from, DeviceSpan<T> to, bool adds, const ColumnsShape& shape, Stream& stream);
}  // namespace reference

}  // namespace dunnock::gpu
