// Batch norm of the columns (channels) of a matrix whose rows are the positions of all images, forward and backward.
//
//   training    y = (x - mean) * r * weight + bias,   r = 1 / sqrt(variance + epsilon), both of the column
//               running mean     = (1 - momentum) * running mean + momentum * mean
//               running variance = (1 - momentum) * running variance + momentum * variance * rows / (rows - 1)
//   inference   the same with the running mean and variance
//   backward    z = (x - mean) * r;  g = dy, but 0 where ReLU was 0
//               dweight = sum of g * z;  dbias = sum of g;  dx = weight * r * (g - dbias / rows - z * dweight / rows)
//
// `relu`: y = max(0, .); backward recomputes from x where it was 0, so y need not be kept.
//
// T is float or Bf16; arithmetic is in float, sums are made in the same order in each run, whatever the number of
// threads. Variances are of distances from means, not differences of squares. Nothing allocates or synchronizes.
// Spans that do not fit the shape are programmer errors. Source: Ioffe, Szegedy 2015 (arXiv 1502.03167).
#pragma once

#include <cstddef>

#include "dunnock/device/bf16.hpp"
#include "dunnock/device/memory.hpp"
#include "dunnock/kernels/kernel.hpp"

namespace dunnock::kernels {

struct BatchNormShape {
  std::size_t rows = 0;      ///< batch * height * width; > 0 in training
  std::size_t channels = 0;  ///< > 0
  float epsilon = 1e-5F;
  float momentum = 0.1F;
  bool relu = false;
};

/// Floats of workspace that training and backward need on this device.
[[nodiscard]] std::size_t batch_norm_workspace(const BatchNormShape& shape, device::Device device);

/// x (rows, channels); weight, bias (channels) -> y (rows, channels), may be x; mean, r (channels), for the backward
/// pass; running_mean, running_variance (channels) are updated, or both empty. With one row, the running variance takes
/// the variance as it is, 0.
template <class T>
struct BatchNorm {
  device::Span<const T> x{}, weight{}, bias{};
  device::Span<T> y{};
  device::Span<float> mean{}, r{}, running_mean{}, running_variance{};
  BatchNormShape shape{};
  device::Span<float> workspace{};
};
DUNNOCK_KERNEL(BatchNorm);

/// x (rows, channels); weight, bias, running_mean, running_variance (channels) -> y (rows, channels), may be x
template <class T>
struct BatchNormInference {
  device::Span<const T> x{}, weight{}, bias{};
  device::Span<const float> running_mean{}, running_variance{};
  device::Span<T> y{};
  BatchNormShape shape{};
};
DUNNOCK_KERNEL(BatchNormInference);

/// dy, x (rows, channels); weight, bias, mean, r (channels) -> dx (rows, channels), may be dy or x; dweight,
/// dbias (channels). `adds`: adds to the existing values.
template <class T>
struct BatchNormBackward {
  device::Span<const T> dy{}, x{}, weight{}, bias{};
  device::Span<const float> mean{}, r{};
  device::Span<T> dx{}, dweight{}, dbias{};
  bool adds = false;
  BatchNormShape shape{};
  device::Span<float> workspace{};
};
DUNNOCK_KERNEL(BatchNormBackward);

}  // namespace dunnock::kernels
