#include "dunnock/kernels/batch_norm.hpp"

#include <algorithm>
#include <cmath>

#include "reference/values.hpp"

namespace dunnock::kernels::reference {

template <class T>
void run(const BatchNorm<T>& call, device::Stream& stream) {
  stream.run("batch norm", [=] {
    const double rows = double(call.shape.rows);
    for (std::size_t c = 0; c < call.shape.channels; ++c) {
      double centre = 0;
      for (std::size_t row = 0; row < call.shape.rows; ++row)
        centre += at(call.x, row * call.shape.channels + c) / rows;
      double variance = 0;
      for (std::size_t row = 0; row < call.shape.rows; ++row)
        variance += std::pow(at(call.x, row * call.shape.channels + c) - centre, 2) / rows;
      const double inverse = 1 / std::sqrt(variance + double(call.shape.epsilon));
      for (std::size_t row = 0; row < call.shape.rows; ++row) {
        const std::size_t i = row * call.shape.channels + c;
        const double value = (at(call.x, i) - centre) * inverse * at(call.weight, c) + at(call.bias, c);
        set(call.y, i, call.shape.relu ? std::max(value, 0.0) : value);
      }
      set(call.mean, c, centre);
      set(call.r, c, inverse);
      if (call.running_mean.empty()) continue;
      const double momentum = double(call.shape.momentum);
      const double unbiased = call.shape.rows == 1 ? variance : variance * rows / (rows - 1);
      set(call.running_mean, c, (1 - momentum) * at<float>(call.running_mean, c) + momentum * centre);
      set(call.running_variance, c, (1 - momentum) * at<float>(call.running_variance, c) + momentum * unbiased);
    }
    return Status{};
  });
}

template <class T>
void run(const BatchNormInference<T>& call, device::Stream& stream) {
  stream.run("batch norm inference", [=] {
    for (std::size_t i = 0; i < call.x.size(); ++i) {
      const std::size_t c = i % call.shape.channels;
      const double inverse = 1 / std::sqrt(at(call.running_variance, c) + double(call.shape.epsilon));
      const double value = (at(call.x, i) - at(call.running_mean, c)) * inverse * at(call.weight, c) + at(call.bias, c);
      set(call.y, i, call.shape.relu ? std::max(value, 0.0) : value);
    }
    return Status{};
  });
}

template <class T>
void run(const BatchNormBackward<T>& call, device::Stream& stream) {
  stream.run("batch norm backward", [=] {
    const double rows = double(call.shape.rows);
    for (std::size_t c = 0; c < call.shape.channels; ++c) {
      const auto z_at = [&](std::size_t i) { return (at(call.x, i) - at(call.mean, c)) * at(call.r, c); };
      const auto g_at = [&](std::size_t i) {
        return call.shape.relu && z_at(i) * at(call.weight, c) + at(call.bias, c) <= 0 ? 0 : at(call.dy, i);
      };
      double of_weight = 0;
      double of_bias = 0;
      for (std::size_t i = c; i < call.x.size(); i += call.shape.channels) {
        of_weight += g_at(i) * z_at(i);
        of_bias += g_at(i);
      }
      for (std::size_t i = c; i < call.x.size(); i += call.shape.channels)
        set(call.dx, i, at(call.weight, c) * at(call.r, c) * (g_at(i) - of_bias / rows - z_at(i) * of_weight / rows));
      add_or_set(call.dweight, c, of_weight, call.adds);
      add_or_set(call.dbias, c, of_bias, call.adds);
    }
    return Status{};
  });
}

DUNNOCK_INSTANTIATE_KERNELS(BatchNorm, BatchNormInference, BatchNormBackward);

}  // namespace dunnock::kernels::reference
