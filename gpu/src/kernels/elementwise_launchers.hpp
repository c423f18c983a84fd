// The launchers of src/cuda/elementwise.cu.
#pragma once

#include "dunnock/gpu/kernels/elementwise.hpp"
#include "kernels/dispatch.hpp"

namespace dunnock::gpu::detail::DUNNOCK_KERNELS {

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
[[nodiscard]] std::size_t column_sums_workspace(const RowMatrix& shape, unsigned multiprocessors);
template <class T>
void column_sums(DeviceSpan<const T> x, DeviceSpan<T> sums, bool adds, const RowMatrix& shape,
                 DeviceSpan<float> workspace, Stream& stream);
template <class T>
void copy_columns(DeviceSpan<const T> from, DeviceSpan<T> to, bool adds, const ColumnsShape& shape, Stream& stream);

}  // namespace dunnock::gpu::detail::DUNNOCK_KERNELS

/// Of the CPU's form, CUDA's and the twins alike.
#define DUNNOCK_INSTANTIATE_ELEMENTWISE(T, Other)                                                                  \
  template void add_scaled<T>(DeviceSpan<const T>, DeviceSpan<const T>, float, DeviceSpan<T>, Stream&);            \
  template void add_relu<T>(DeviceSpan<const T>, DeviceSpan<const T>, DeviceSpan<T>, Stream&);                     \
  template void add_relu_backward<T>(DeviceSpan<const T>, DeviceSpan<const T>, DeviceSpan<const T>, DeviceSpan<T>, \
                                     Stream&);                                                                     \
  template void copy_columns<T>(DeviceSpan<const T>, DeviceSpan<T>, bool, const ColumnsShape&, Stream&);           \
  template void scale<T>(DeviceSpan<const T>, float, DeviceSpan<T>, Stream&);                                      \
  template void fill<T>(DeviceSpan<T>, float, Stream&);                                                            \
  template void cast<Other, T>(DeviceSpan<const T>, DeviceSpan<Other>, Stream&);                                   \
  template void bias_add<T>(DeviceSpan<const T>, DeviceSpan<const T>, DeviceSpan<T>, const RowMatrix&, Stream&);   \
  template void column_sums<T>(DeviceSpan<const T>, DeviceSpan<T>, bool, const RowMatrix&, DeviceSpan<float>, Stream&);
