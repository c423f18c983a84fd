#include "dunnock/gpu/kernels/batch_norm.hpp"

#include <algorithm>
#include <cmath>

#include "reference/values.hpp"

namespace dunnock::gpu::reference {

template <class T>
void batch_norm(DeviceSpan<const T> x, DeviceSpan<const T> weight, DeviceSpan<const T> bias, DeviceSpan<T> y,
                DeviceSpan<float> mean, DeviceSpan<float> r, DeviceSpan<float> running_mean,
                DeviceSpan<float> running_variance, const BatchNormShape& shape, DeviceSpan<float>, Stream& stream) {
  stream.run("batch norm", [=] {
    const double rows = double(shape.rows);
    for (std::size_t c = 0; c < shape.channels; ++c) {
      double centre = 0;
      for (std::size_t row = 0; row < shape.rows; ++row) centre += at(x, row * shape.channels + c) / rows;
      double variance = 0;
      for (std::size_t row = 0; row < shape.rows; ++row)
        variance += std::pow(at(x, row * shape.channels + c) - centre, 2) / rows;
      const double inverse = 1 / std::sqrt(variance + double(shape.epsilon));
      for (std::size_t row = 0; row < shape.rows; ++row) {
        const std::size_t i = row * shape.channels + c;
        const double value = (at(x, i) - centre) * inverse * at(weight, c) + at(bias, c);
        set(y, i, shape.relu ? std::max(value, 0.0) : value);
      }
      set(mean, c, centre);
      set(r, c, inverse);
      if (running_mean.empty()) continue;
      const double momentum = double(shape.momentum);
      const double unbiased = shape.rows == 1 ? variance : variance * rows / (rows - 1);
      set(running_mean, c, (1 - momentum) * at<float>(running_mean, c) + momentum * centre);
      set(running_variance, c, (1 - momentum) * at<float>(running_variance, c) + momentum * unbiased);
    }
    return Status{};
  });
}

template <class T>
void batch_norm_inference(DeviceSpan<const T> x, DeviceSpan<const T> weight, DeviceSpan<const T> bias,
                          DeviceSpan<const float> running_mean, DeviceSpan<const float> running_variance,
                          DeviceSpan<T> y, const BatchNormShape& shape, Stream& stream) {
  stream.run("batch norm inference", [=] {
    for (std::size_t i = 0; i < x.size(); ++i) {
      const std::size_t c = i % shape.channels;
      const double inverse = 1 / std::sqrt(at(running_variance, c) + double(shape.epsilon));
      const double value = (at(x, i) - at(running_mean, c)) * inverse * at(weight, c) + at(bias, c);
      set(y, i, shape.relu ? std::max(value, 0.0) : value);
    }
    return Status{};
  });
}

template <class T>
void batch_norm_backward(DeviceSpan<const T> dy, DeviceSpan<const T> x, DeviceSpan<const T> weight,
                         DeviceSpan<const T> bias, DeviceSpan<const float> mean, DeviceSpan<const float> r,
                         DeviceSpan<T> dx, DeviceSpan<T> dweight, DeviceSpan<T> dbias, bool adds,
                         const BatchNormShape& shape, DeviceSpan<float>, Stream& stream) {
  stream.run("batch norm backward", [=] {
    const double rows = double(shape.rows);
    for (std::size_t c = 0; c < shape.channels; ++c) {
      const auto z_at = [&](std::size_t i) { return (at(x, i) - at(mean, c)) * at(r, c); };
      const auto g_at = [&](std::size_t i) {
        return shape.relu && z_at(i) * at(weight, c) + at(bias, c) <= 0 ? 0 : at(dy, i);
      };
      double of_weight = 0;
      double of_bias = 0;
      for (std::size_t i = c; i < x.size(); i += shape.channels) {
        of_weight += g_at(i) * z_at(i);
        of_bias += g_at(i);
      }
      for (std::size_t i = c; i < x.size(); i += shape.channels)
        set(dx, i, at(weight, c) * at(r, c) * (g_at(i) - of_bias / rows - z_at(i) * of_weight / rows));
      add_or_set(dweight, c, of_weight, adds);
      add_or_set(dbias, c, of_bias, adds);
    }
    return Status{};
  });
}

#define DUNNOCK_INSTANTIATE(T)                                                                                   \
  template void batch_norm<T>(DeviceSpan<const T>, DeviceSpan<const T>, DeviceSpan<const T>, DeviceSpan<T>,      \
                              DeviceSpan<float>, DeviceSpan<float>, DeviceSpan<float>, DeviceSpan<float>,        \
                              const BatchNormShape&, DeviceSpan<float>, Stream&);                                \
  template void batch_norm_inference<T>(DeviceSpan<const T>, DeviceSpan<const T>, DeviceSpan<const T>,           \
                                        DeviceSpan<const float>, DeviceSpan<const float>, DeviceSpan<T>,         \
                                        const BatchNormShape&, Stream&);                                         \
  template void batch_norm_backward<T>(DeviceSpan<const T>, DeviceSpan<const T>, DeviceSpan<const T>,            \
                                       DeviceSpan<const T>, DeviceSpan<const float>, DeviceSpan<const float>,    \
                                       DeviceSpan<T>, DeviceSpan<T>, DeviceSpan<T>, bool, const BatchNormShape&, \
                                       DeviceSpan<float>, Stream&);
DUNNOCK_INSTANTIATE(float)
DUNNOCK_INSTANTIATE(Bf16)
#undef DUNNOCK_INSTANTIATE

}  // namespace dunnock::gpu::reference
