#include "dunnock/kernels/activation.hpp"

#include <cmath>
#include <numbers>

#include "reference/values.hpp"

namespace dunnock::kernels::reference {
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
void run(const Activate<T>& call, device::Stream& stream) {
  stream.run("activation", [=] {
    for (std::size_t i = 0; i < call.x.size(); ++i) set(call.y, i, value_of(call.kind, at(call.x, i)));
    return Status{};
  });
}
template <class T>
void run(const ActivateBackward<T>& call, device::Stream& stream) {
  stream.run("activation backward", [=] {
    for (std::size_t i = 0; i < call.x.size(); ++i)
      set(call.dx, i, at(call.dy, i) * slope_of(call.kind, at(call.x, i)));
    return Status{};
  });
}
template <class T>
void run(const Swiglu<T>& call, device::Stream& stream) {
  stream.run("SwiGLU", [=] {
    for (std::size_t row = 0; row < call.shape.rows; ++row) {
      for (std::size_t c = 0; c < call.shape.columns; ++c) {
        const double g = at(call.gate, row * call.shape.gate_stride + c);
        set(call.y, row * call.shape.columns + c,
            value_of(Activation::kSilu, g) * at(call.up, row * call.shape.up_stride + c));
      }
    }
    return Status{};
  });
}
template <class T>
void run(const SwigluBackward<T>& call, device::Stream& stream) {
  stream.run("SwiGLU backward", [=] {
    for (std::size_t row = 0; row < call.shape.rows; ++row) {
      for (std::size_t c = 0; c < call.shape.columns; ++c) {
        const double d = at(call.dy, row * call.shape.columns + c);
        const double g = at(call.gate, row * call.shape.gate_stride + c);
        const double u = at(call.up, row * call.shape.up_stride + c);
        set(call.dgate, row * call.shape.gate_stride + c, d * u * slope_of(Activation::kSilu, g));
        set(call.dup, row * call.shape.up_stride + c, d * value_of(Activation::kSilu, g));
      }
    }
    return Status{};
  });
}

DUNNOCK_INSTANTIATE_KERNELS(Activate, ActivateBackward, Swiglu, SwigluBackward);

}  // namespace dunnock::kernels::reference
