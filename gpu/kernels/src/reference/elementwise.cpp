#include "dunnock/kernels/elementwise.hpp"

#include "elementwise_parts.hpp"
#include "reference/values.hpp"

namespace dunnock::kernels::reference {

template <class T>
void run(const AddScaled<T>& call, device::Stream& stream) {
  stream.run("add", [=] {
    for (std::size_t i = 0; i < call.y.size(); ++i) set(call.y, i, at(call.a, i) + double(call.factor) * at(call.b, i));
    return Status{};
  });
}
template <class T>
void run(const AddRelu<T>& call, device::Stream& stream) {
  stream.run("add and ReLU", [=] {
    for (std::size_t i = 0; i < call.y.size(); ++i) {
      const double sum = at(call.a, i) + at(call.b, i);
      set(call.y, i, sum < 0 ? 0 : sum);
    }
    return Status{};
  });
}
template <class T>
void run(const AddReluBackward<T>& call, device::Stream& stream) {
  stream.run("add and ReLU backward", [=] {
    for (std::size_t i = 0; i < call.y.size(); ++i)
      set(call.y, i, at(call.at, i) > 0 ? at(call.a, i) + at(call.b, i) : 0);
    return Status{};
  });
}
template <class T>
void run(const Scale<T>& call, device::Stream& stream) {
  stream.run("scale", [=] {
    for (std::size_t i = 0; i < call.y.size(); ++i) set(call.y, i, double(call.factor) * at(call.x, i));
    return Status{};
  });
}
template <class T>
void run(const Fill<T>& call, device::Stream& stream) {
  stream.run("fill", [=] {
    for (std::size_t i = 0; i < call.y.size(); ++i) set(call.y, i, double(call.value));
    return Status{};
  });
}
template <class To, class From>
void run(const Cast<To, From>& call, device::Stream& stream) {
  stream.run("cast", [=] {
    for (std::size_t i = 0; i < call.y.size(); ++i) set(call.y, i, at(call.x, i));
    return Status{};
  });
}
template <class T>
void run(const BiasAdd<T>& call, device::Stream& stream) {
  stream.run("bias add", [=] {
    for (std::size_t i = 0; i < call.y.size(); ++i)
      set(call.y, i, at(call.x, i) + at(call.bias, i % call.shape.columns));
    return Status{};
  });
}
template <class T>
void run(const ColumnSums<T>& call, device::Stream& stream) {
  stream.run("column sums", [=] {
    for (std::size_t c = 0; c < call.shape.columns; ++c) {
      double sum = 0;
      for (std::size_t row = 0; row < call.shape.rows; ++row) sum += at(call.x, row * call.shape.columns + c);
      add_or_set(call.sums, c, sum, call.adds);
    }
    return Status{};
  });
}

template <class T>
void run(const CopyColumns<T>& call, device::Stream& stream) {
  stream.run("copy columns", [=] {
    for (std::size_t row = 0; row < call.shape.rows; ++row) {
      for (std::size_t c = 0; c < call.shape.columns; ++c)
        add_or_set(call.to, row * call.shape.to_stride + c, at(call.from, row * call.shape.from_stride + c), call.adds);
    }
    return Status{};
  });
}

DUNNOCK_INSTANTIATE_KERNELS(AddScaled, AddRelu, AddReluBackward, Scale, Fill, BiasAdd, ColumnSums, CopyColumns);
DUNNOCK_INSTANTIATE_KERNEL_2(Cast, device::Bf16, float);
DUNNOCK_INSTANTIATE_KERNEL_2(Cast, float, device::Bf16);

}  // namespace dunnock::kernels::reference
