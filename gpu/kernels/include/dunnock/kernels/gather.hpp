// Gather and scatter of rows and columns by lists of indices: selected parts of a matrix become a dense, smaller one,
// and are put back in their places.
//
//   gather rows      y[i][c] = x[index[i]][c]          scatter rows      x[index[i]][c] = y[i][c]   (or +=)
//   gather columns   y[r][i] = x[r][index[i]]          scatter columns   x[r][index[i]] = y[r][i]   (or +=)
//
// An index outside x is not an error: it gathers zeros, and what it scatters is dropped. If an index of a scatter
// occurs twice, one of its values is stored, or both are added. T is float or Bf16; sums are rounded once. Spans that
// do not fit are programmer errors; x and y do not overlap. Nothing allocates. Source: the use in Gyro Dropout (MLSys
// 2022), whose masks stay for many iterations.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dunnock/device/bf16.hpp"
#include "dunnock/device/memory.hpp"
#include "dunnock/kernels/kernel.hpp"

namespace dunnock::kernels {

/// The shape of x, the large matrix. y has as many rows (or columns) as there are indices, and x's other extent.
struct GatherShape {
  std::size_t rows = 0;
  std::size_t columns = 0;
  std::size_t x_stride = 0;  ///< Values from a row of x to the next; 0: columns.
  std::size_t y_stride = 0;  ///< 0: y's own columns.
};

/// x (rows, columns), index (n) -> y (n, columns)
template <class T>
struct GatherRows {
  device::Span<const T> x{};
  device::Span<const std::int32_t> index{};
  device::Span<T> y{};
  GatherShape shape{};
};
DUNNOCK_KERNEL(GatherRows);
/// x (rows, columns), index (n) -> y (rows, n)
template <class T>
struct GatherColumns {
  device::Span<const T> x{};
  device::Span<const std::int32_t> index{};
  device::Span<T> y{};
  GatherShape shape{};
};
DUNNOCK_KERNEL(GatherColumns);
/// y (n, columns), index (n) -> x (rows, columns), whose other rows stay. `adds`: adds to the existing values.
template <class T>
struct ScatterRows {
  device::Span<const T> y{};
  device::Span<const std::int32_t> index{};
  device::Span<T> x{};
  bool adds = false;
  GatherShape shape{};
};
DUNNOCK_KERNEL(ScatterRows);
/// y (rows, n), index (n) -> x (rows, columns), whose other columns stay.
template <class T>
struct ScatterColumns {
  device::Span<const T> y{};
  device::Span<const std::int32_t> index{};
  device::Span<T> x{};
  bool adds = false;
  GatherShape shape{};
};
DUNNOCK_KERNEL(ScatterColumns);

}  // namespace dunnock::kernels
