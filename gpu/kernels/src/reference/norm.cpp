#include "dunnock/kernels/norm.hpp"

#include <cmath>

#include "reference/values.hpp"

namespace dunnock::kernels::reference {
namespace {

template <class T>
void norm(bool centred, device::Span<const T> x, device::Span<const T> weight, device::Span<const T> bias,
          device::Span<T> y, device::Span<float> mean, device::Span<float> r, const NormShape& shape) {
  const std::size_t columns = shape.columns;
  for (std::size_t row = 0; row < shape.rows; ++row) {
    double centre = 0;
    for (std::size_t c = 0; centred && c < columns; ++c) centre += at(x, row * columns + c) / double(columns);
    double variance = 0;
    for (std::size_t c = 0; c < columns; ++c)
      variance += std::pow(at(x, row * columns + c) - centre, 2) / double(columns);
    const double inverse = 1 / std::sqrt(variance + double(shape.epsilon));
    for (std::size_t c = 0; c < columns; ++c) {
      const double z = (at(x, row * columns + c) - centre) * inverse;
      y.device_data()[row * columns + c] = T(static_cast<float>(z * at(weight, c) + (centred ? at(bias, c) : 0)));
    }
    if (!mean.empty()) mean.device_data()[row] = static_cast<float>(centre);
    if (!r.empty()) r.device_data()[row] = static_cast<float>(inverse);
  }
}

template <class T>
void norm_backward(bool centred, device::Span<const T> dy, device::Span<const T> x, device::Span<const T> weight,
                   device::Span<const float> mean, device::Span<const float> r, device::Span<T> dx,
                   device::Span<T> dweight, device::Span<T> dbias, bool adds, const NormShape& shape) {
  const std::size_t columns = shape.columns;
  const auto z_at = [&](std::size_t row, std::size_t c) {
    return (at(x, row * columns + c) - (centred ? at(mean, row) : 0)) * at(r, row);
  };
  for (std::size_t c = 0; c < columns; ++c) {  // Before dx, which may be dy.
    double weight_sum = 0;
    double bias_sum = 0;
    for (std::size_t row = 0; row < shape.rows; ++row) {
      weight_sum += at(dy, row * columns + c) * z_at(row, c);
      bias_sum += at(dy, row * columns + c);
    }
    add_or_set(dweight, c, weight_sum, adds);
    if (centred) add_or_set(dbias, c, bias_sum, adds);
  }
  for (std::size_t row = 0; row < shape.rows; ++row) {
    double g_mean = 0;
    double gz_mean = 0;
    for (std::size_t c = 0; c < columns; ++c) {
      const double g = at(dy, row * columns + c) * at(weight, c);
      g_mean += (centred ? g : 0) / double(columns);
      gz_mean += g * z_at(row, c) / double(columns);
    }
    for (std::size_t c = 0; c < columns; ++c) {
      const double g = at(dy, row * columns + c) * at(weight, c);
      dx.device_data()[row * columns + c] = T(static_cast<float>(at(r, row) * (g - g_mean - z_at(row, c) * gz_mean)));
    }
  }
}

}  // namespace

template <class T>
void run(const LayerNorm<T>& call, device::Stream& stream) {
  stream.run("layer norm", [=] {
    return norm<T>(true, call.x, call.weight, call.bias, call.y, call.mean, call.r, call.shape), Status{};
  });
}
template <class T>
void run(const RmsNorm<T>& call, device::Stream& stream) {
  stream.run("RMS norm",
             [=] { return norm<T>(false, call.x, call.weight, {}, call.y, {}, call.r, call.shape), Status{}; });
}
template <class T>
void run(const LayerNormBackward<T>& call, device::Stream& stream) {
  stream.run("layer norm backward", [=] {
    return norm_backward<T>(true, call.dy, call.x, call.weight, call.mean, call.r, call.dx, call.dweight, call.dbias,
                            call.adds, call.shape),
           Status{};
  });
}
template <class T>
void run(const RmsNormBackward<T>& call, device::Stream& stream) {
  stream.run("RMS norm backward", [=] {
    return norm_backward<T>(false, call.dy, call.x, call.weight, {}, call.r, call.dx, call.dweight, {}, call.adds,
                            call.shape),
           Status{};
  });
}

DUNNOCK_INSTANTIATE_KERNELS(LayerNorm, RmsNorm, LayerNormBackward, RmsNormBackward);

}  // namespace dunnock::kernels::reference
