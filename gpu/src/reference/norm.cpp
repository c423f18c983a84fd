#include "dunnock/gpu/kernels/norm.hpp"

#include <cmath>

#include "reference/values.hpp"

namespace dunnock::gpu::reference {
namespace {

template <class T>
void norm(bool centred, DeviceSpan<const T> x, DeviceSpan<const T> weight, DeviceSpan<const T> bias, DeviceSpan<T> y,
          DeviceSpan<float> mean, DeviceSpan<float> r, const NormShape& shape) {
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
void norm_backward(bool centred, DeviceSpan<const T> dy, DeviceSpan<const T> x, DeviceSpan<const T> weight,
                   DeviceSpan<const float> mean, DeviceSpan<const float> r, DeviceSpan<T> dx, DeviceSpan<T> dweight,
                   DeviceSpan<T> dbias, bool adds, const NormShape& shape) {
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
void layer_norm(DeviceSpan<const T> x, DeviceSpan<const T> weight, DeviceSpan<const T> bias, DeviceSpan<T> y,
                DeviceSpan<float> mean, DeviceSpan<float> r, const NormShape& shape, Stream& stream) {
  stream.run("layer norm", [=] { return norm<T>(true, x, weight, bias, y, mean, r, shape), Status{}; });
}
template <class T>
void rms_norm(DeviceSpan<const T> x, DeviceSpan<const T> weight, DeviceSpan<T> y, DeviceSpan<float> r,
              const NormShape& shape, Stream& stream) {
  stream.run("RMS norm", [=] { return norm<T>(false, x, weight, {}, y, {}, r, shape), Status{}; });
}
template <class T>
void layer_norm_backward(DeviceSpan<const T> dy, DeviceSpan<const T> x, DeviceSpan<const T> weight,
                         DeviceSpan<const float> mean, DeviceSpan<const float> r, DeviceSpan<T> dx,
                         DeviceSpan<T> dweight, DeviceSpan<T> dbias, bool adds, const NormShape& shape,
                         DeviceSpan<float>, Stream& stream) {
  stream.run("layer norm backward",
             [=] { return norm_backward<T>(true, dy, x, weight, mean, r, dx, dweight, dbias, adds, shape), Status{}; });
}
template <class T>
void rms_norm_backward(DeviceSpan<const T> dy, DeviceSpan<const T> x, DeviceSpan<const T> weight,
                       DeviceSpan<const float> r, DeviceSpan<T> dx, DeviceSpan<T> dweight, bool adds,
                       const NormShape& shape, DeviceSpan<float>, Stream& stream) {
  stream.run("RMS norm backward",
             [=] { return norm_backward<T>(false, dy, x, weight, {}, r, dx, dweight, {}, adds, shape), Status{}; });
}

#define DUNNOCK_INSTANTIATE(T)                                                                                         \
  template void layer_norm<T>(DeviceSpan<const T>, DeviceSpan<const T>, DeviceSpan<const T>, DeviceSpan<T>,            \
                              DeviceSpan<float>, DeviceSpan<float>, const NormShape&, Stream&);                        \
  template void rms_norm<T>(DeviceSpan<const T>, DeviceSpan<const T>, DeviceSpan<T>, DeviceSpan<float>,                \
                            const NormShape&, Stream&);                                                                \
  template void layer_norm_backward<T>(DeviceSpan<const T>, DeviceSpan<const T>, DeviceSpan<const T>,                  \
                                       DeviceSpan<const float>, DeviceSpan<const float>, DeviceSpan<T>, DeviceSpan<T>, \
                                       DeviceSpan<T>, bool, const NormShape&, DeviceSpan<float>, Stream&);             \
  template void rms_norm_backward<T>(DeviceSpan<const T>, DeviceSpan<const T>, DeviceSpan<const T>,                    \
                                     DeviceSpan<const float>, DeviceSpan<T>, DeviceSpan<T>, bool, const NormShape&,    \
                                     DeviceSpan<float>, Stream&);
DUNNOCK_INSTANTIATE(float)
DUNNOCK_INSTANTIATE(Bf16)
#undef DUNNOCK_INSTANTIATE

}  // namespace dunnock::gpu::reference
