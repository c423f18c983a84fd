#include "dunnock/gpu/kernels/activation.hpp"

#include <cmath>
#include <numbers>

#include "reference/values.hpp"

namespace dunnock::gpu::reference {
namespace {

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
double normal_density(double x) { return std::exp(-x * x / 2) / std::sqrt(2 * std::numbers::pi); }
double normal_share_below(double x) { return std::erfc(-x / std::numbers::sqrt2) / 2; }

double value_of(Activation kind, double x) {
  const double factor = std::sqrt(2 / std::numbers::pi);
  switch (kind) {
    case Activation::kGeluTanh: return x * (1 + std::tanh(factor * (x + 0.044715 * x * x * x))) / 2;
    case Activation::kGeluErf: return x * normal_share_below(x);
    case Activation::kSilu: return x * sigmoid(x);
    case Activation::kRelu: return x < 0 ? 0 : x;
  }
  return 0;
}
double slope_of(Activation kind, double x) {
  const double factor = std::sqrt(2 / std::numbers::pi);
  switch (kind) {
    case Activation::kGeluTanh: {
      const double t = std::tanh(factor * (x + 0.044715 * x * x * x));
      return (1 + t) / 2 + x / 2 * (1 - t * t) * factor * (1 + 3 * 0.044715 * x * x);
    }
    case Activation::kGeluErf: return normal_share_below(x) + x * normal_density(x);
    case Activation::kSilu: return sigmoid(x) * (1 + x * (1 - sigmoid(x)));
    case Activation::kRelu: return x > 0 ? 1 : 0;
  }
  return 0;
}

}  // namespace

template <class T>
void activation(Activation kind, DeviceSpan<const T> x, DeviceSpan<T> y, Stream& stream) {
  stream.run("activation", [=] {
    for (std::size_t i = 0; i < x.size(); ++i) set(y, i, value_of(kind, at(x, i)));
    return Status{};
  });
}
template <class T>
void activation_backward(Activation kind, DeviceSpan<const T> dy, DeviceSpan<const T> x, DeviceSpan<T> dx,
                         Stream& stream) {
  stream.run("activation backward", [=] {
    for (std::size_t i = 0; i < x.size(); ++i) set(dx, i, at(dy, i) * slope_of(kind, at(x, i)));
    return Status{};
  });
}
template <class T>
void swiglu(DeviceSpan<const T> gate, DeviceSpan<const T> up, DeviceSpan<T> y, const SwigluShape& shape,
            Stream& stream) {
  stream.run("SwiGLU", [=] {
    for (std::size_t row = 0; row < shape.rows; ++row) {
      for (std::size_t c = 0; c < shape.columns; ++c) {
        const double g = at(gate, row * shape.gate_stride + c);
        set(y, row * shape.columns + c, value_of(Activation::kSilu, g) * at(up, row * shape.up_stride + c));
      }
    }
    return Status{};
  });
}
template <class T>
void swiglu_backward(DeviceSpan<const T> dy, DeviceSpan<const T> gate, DeviceSpan<const T> up, DeviceSpan<T> dgate,
                     DeviceSpan<T> dup, const SwigluShape& shape, Stream& stream) {
  stream.run("SwiGLU backward", [=] {
    for (std::size_t row = 0; row < shape.rows; ++row) {
      for (std::size_t c = 0; c < shape.columns; ++c) {
        const double d = at(dy, row * shape.columns + c);
        const double g = at(gate, row * shape.gate_stride + c);
        const double u = at(up, row * shape.up_stride + c);
        set(dgate, row * shape.gate_stride + c, d * u * slope_of(Activation::kSilu, g));
        set(dup, row * shape.up_stride + c, d * value_of(Activation::kSilu, g));
      }
    }
    return Status{};
  });
}

#define DUNNOCK_INSTANTIATE(T)                                                                                        \
  template void activation<T>(Activation, DeviceSpan<const T>, DeviceSpan<T>, Stream&);                               \
  template void activation_backward<T>(Activation, DeviceSpan<const T>, DeviceSpan<const T>, DeviceSpan<T>, Stream&); \
  template void swiglu<T>(DeviceSpan<const T>, DeviceSpan<const T>, DeviceSpan<T>, const SwigluShape&, Stream&);      \
  template void swiglu_backward<T>(DeviceSpan<const T>, DeviceSpan<const T>, DeviceSpan<const T>, DeviceSpan<T>,      \
                                   DeviceSpan<T>, const SwigluShape&, Stream&);
DUNNOCK_INSTANTIATE(float)
DUNNOCK_INSTANTIATE(Bf16)
#undef DUNNOCK_INSTANTIATE

}  // namespace dunnock::gpu::reference
