#include "dunnock/gpu/kernels/elementwise.hpp"

#include "kernels/elementwise_launchers.hpp"
#include "reference/values.hpp"

namespace dunnock::gpu::reference {

template <class T>
void add_scaled(DeviceSpan<const T> a, DeviceSpan<const T> b, float factor, DeviceSpan<T> y, Stream& stream) {
  stream.run("add", [=] {
    for (std::size_t i = 0; i < y.size(); ++i) set(y, i, at(a, i) + double(factor) * at(b, i));
    return Status{};
  });
}
template <class T>
void add_relu(DeviceSpan<const T> a, DeviceSpan<const T> b, DeviceSpan<T> y, Stream& stream) {
  stream.run("add and ReLU", [=] {
    for (std::size_t i = 0; i < y.size(); ++i) {
      const double sum = at(a, i) + at(b, i);
      set(y, i, sum < 0 ? 0 : sum);
    }
    return Status{};
  });
}
template <class T>
void add_relu_backward(DeviceSpan<const T> a, DeviceSpan<const T> b, DeviceSpan<const T> where, DeviceSpan<T> y,
                       Stream& stream) {
  stream.run("add and ReLU backward", [=] {
    for (std::size_t i = 0; i < y.size(); ++i) set(y, i, at(where, i) > 0 ? at(a, i) + at(b, i) : 0);
    return Status{};
  });
}
template <class T>
void scale(DeviceSpan<const T> x, float factor, DeviceSpan<T> y, Stream& stream) {
  stream.run("scale", [=] {
    for (std::size_t i = 0; i < y.size(); ++i) set(y, i, double(factor) * at(x, i));
    return Status{};
  });
}
template <class T>
void fill(DeviceSpan<T> y, float value, Stream& stream) {
  stream.run("fill", [=] {
    for (std::size_t i = 0; i < y.size(); ++i) set(y, i, double(value));
    return Status{};
  });
}
template <class To, class From>
void cast(DeviceSpan<const From> x, DeviceSpan<To> y, Stream& stream) {
  stream.run("cast", [=] {
    for (std::size_t i = 0; i < y.size(); ++i) set(y, i, at(x, i));
    return Status{};
  });
}
template <class T>
void bias_add(DeviceSpan<const T> x, DeviceSpan<const T> bias, DeviceSpan<T> y, const RowMatrix& shape,
              Stream& stream) {
  stream.run("bias add", [=] {
    for (std::size_t i = 0; i < y.size(); ++i) set(y, i, at(x, i) + at(bias, i % shape.columns));
    return Status{};
  });
}
template <class T>
void column_sums(DeviceSpan<const T> x, DeviceSpan<T> sums, bool adds, const RowMatrix& shape, DeviceSpan<float>,
                 Stream& stream) {
  stream.run("column sums", [=] {
    for (std::size_t c = 0; c < shape.columns; ++c) {
      double sum = 0;
      for (std::size_t row = 0; row < shape.rows; ++row) sum += at(x, row * shape.columns + c);
      add_or_set(sums, c, sum, adds);
    }
    return Status{};
  });
}

template <class T>
void copy_columns(DeviceSpan<const T> from, DeviceSpan<T> to, bool adds, const ColumnsShape& shape, Stream& stream) {
  stream.run("copy columns", [=] {
    for (std::size_t row = 0; row < shape.rows; ++row) {
      for (std::size_t c = 0; c < shape.columns; ++c)
        add_or_set(to, row * shape.to_stride + c, at(from, row * shape.from_stride + c), adds);
    }
    return Status{};
  });
}

DUNNOCK_INSTANTIATE_ELEMENTWISE(float, Bf16)
DUNNOCK_INSTANTIATE_ELEMENTWISE(Bf16, float)

}  // namespace dunnock::gpu::reference
