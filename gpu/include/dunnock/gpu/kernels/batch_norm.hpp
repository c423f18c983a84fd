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

#include "dunnock/gpu/bf16.hpp"
#include "dunnock/gpu/memory.hpp"

namespace dunnock::gpu {

struct BatchNormShape {
  std::size_t rows = 0;      ///< batch * height * width; > 0 in training
  std::size_t channels = 0;  ///< > 0
  float epsilon = 1e-5F;
  float momentum = 0.1F;
  bool relu = false;
};

/// Floats of workspace that training and backward need on this device.
[[nodiscard]] std::size_t batch_norm_workspace(const BatchNormShape& shape, Device device);

/// x (rows, channels); weight, bias (channels) -> y (rows, channels), may be x; mean, r (channels), for the backward
/// pass; running_mean, running_variance (channels) are updated, or both empty. With one row, the running variance takes
/// the variance as it is, 0.
template <class T>
void batch_norm(DeviceSpan<const T> x, DeviceSpan<const T> weight, DeviceSpan<const T> bias, DeviceSpan<T> y,
                DeviceSpan<float> mean, DeviceSpan<float> r, DeviceSpan<float> running_mean,
                DeviceSpan<float> running_variance, const BatchNormShape& shape, DeviceSpan<float> workspace,
                Stream& stream);

/// x (rows, channels); weight, bias, running_mean, running_variance (channels) -> y (rows, channels), may be x
template <class T>
void batch_norm_inference(DeviceSpan<const T> x, DeviceSpan<const T> weight, DeviceSpan<const T> bias,
                          DeviceSpan<const float> running_mean, DeviceSpan<const float> running_variance,
                          DeviceSpan<T> y, const BatchNormShape& shape, Stream& stream);

/// dy, x (rows, channels); weight, bias, mean, r (channels) -> dx (rows, channels), may be dy or x; dweight,
/// dbias (channels). `adds`: adds to the existing values.
template <class T>
void batch_norm_backward(DeviceSpan<const T> dy, DeviceSpan<const T> x, DeviceSpan<const T> weight,
                         DeviceSpan<const T> bias, DeviceSpan<const float> mean, DeviceSpan<const float> r,
                         DeviceSpan<T> dx, DeviceSpan<T> dweight, DeviceSpan<T> dbias, bool adds,
                         const BatchNormShape& shape, DeviceSpan<float> workspace, Stream& stream);

/// The twins, written to be read: in double. On CPU streams.
namespace reference {
template <class T>
void batch_norm(DeviceSpan<const T> x, DeviceSpan<const T> weight, DeviceSpan<const T> bias, DeviceSpan<T> y,
                DeviceSpan<float> mean, DeviceSpan<float> r, DeviceSpan<float> running_mean,
                DeviceSpan<float> running_variance, const BatchNormShape& shape, DeviceSpan<float> workspace,
                Stream& stream);
template <class T>
void batch_norm_inference(DeviceSpan<const T> x, DeviceSpan<const T> weight, DeviceSpan<const T> bias,
                          DeviceSpan<const float> running_mean, DeviceSpan<const float> running_variance,
                          DeviceSpan<T> y, const BatchNormShape& shape, Stream& stream);
template <class T>
void batch_norm_backward(DeviceSpan<const T> dy, DeviceSpan<const T> x, DeviceSpan<const T> weight,
                         DeviceSpan<const T> bias, DeviceSpan<const float> mean, DeviceSpan<const float> r,
                         DeviceSpan<T> dx, DeviceSpan<T> dweight, DeviceSpan<T> dbias, bool adds,
                         const BatchNormShape& shape, DeviceSpan<float> workspace, Stream& stream);
}  // namespace reference

}  // namespace dunnock::gpu
