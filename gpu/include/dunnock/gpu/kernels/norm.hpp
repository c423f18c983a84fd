// Layer norm and RMS norm of the rows of a matrix, forward and backward.
//
//   layer norm   y = (x - mean) * r * weight + bias,   r = 1 / sqrt(mean of (x - mean)^2 + epsilon)
//   RMS norm     y = x * r * weight,                   r = 1 / sqrt(mean of x^2 + epsilon)
//
// Backward, with z = (x - mean) * r (or x * r) and g = dy * weight:
//   dx = r * (g - mean of g - z * mean of (g * z));   RMS norm: without the mean of g
//   dweight = sum over rows of dy * z;   dbias = sum over rows of dy
//
// T is float or Bf16; arithmetic is in float. Spans that do not fit the shape are programmer errors. Nothing allocates.
// Sources: Ba, Kiros, Hinton 2016 (arXiv 1607.06450); Zhang, Sennrich 2019 (arXiv 1910.07467).
#pragma once

#include <cstddef>

#include "dunnock/gpu/bf16.hpp"
#include "dunnock/gpu/memory.hpp"

namespace dunnock::gpu {

struct NormShape {
  std::size_t rows = 0;
  std::size_t columns = 0;  ///< > 0
  float epsilon = 1e-5F;
};

/// mean, r: what the backward pass needs; empty spans if there is no backward pass.
/// x (rows, columns); weight, bias (columns) -> y (rows, columns), may be x; mean, r (rows)
template <class T>
void layer_norm(DeviceSpan<const T> x, DeviceSpan<const T> weight, DeviceSpan<const T> bias, DeviceSpan<T> y,
                DeviceSpan<float> mean, DeviceSpan<float> r, const NormShape& shape, Stream& stream);
/// x (rows, columns); weight (columns) -> y (rows, columns), may be x; r (rows)
template <class T>
void rms_norm(DeviceSpan<const T> x, DeviceSpan<const T> weight, DeviceSpan<T> y, DeviceSpan<float> r,
              const NormShape& shape, Stream& stream);

/// Floats of workspace that the backward passes need on this device.
[[nodiscard]] std::size_t norm_backward_workspace(const NormShape& shape, Device device);

/// `adds`: adds to dweight and dbias instead of setting them. The order of the sums is the same in each run.
/// dy, x (rows, columns); weight (columns); mean, r (rows) -> dx (rows, columns), may be dy; dweight, dbias (columns)
template <class T>
void layer_norm_backward(DeviceSpan<const T> dy, DeviceSpan<const T> x, DeviceSpan<const T> weight,
                         DeviceSpan<const float> mean, DeviceSpan<const float> r, DeviceSpan<T> dx,
                         DeviceSpan<T> dweight, DeviceSpan<T> dbias, bool adds, const NormShape& shape,
                         DeviceSpan<float> workspace, Stream& stream);
template <class T>
void rms_norm_backward(DeviceSpan<const T> dy, DeviceSpan<const T> x, DeviceSpan<const T> weight,
                       DeviceSpan<const float> r, DeviceSpan<T> dx, DeviceSpan<T> dweight, bool adds,
                       const NormShape& shape, DeviceSpan<float> workspace, Stream& stream);

/// The twins, written to be read: one loop per formula, in double. On CPU streams.
namespace reference {
template <class T>
void layer_norm(DeviceSpan<const T> x, DeviceSpan<const T> weight, DeviceSpan<const T> bias, DeviceSpan<T> y,
                DeviceSpan<float> mean, DeviceSpan<float> r, const NormShape& shape, Stream& stream);
template <class T>
void rms_norm(DeviceSpan<const T> x, DeviceSpan<const T> weight, DeviceSpan<T> y, DeviceSpan<float> r,
              const NormShape& shape, Stream& stream);
template <class T>
void layer_norm_backward(DeviceSpan<const T> dy, DeviceSpan<const T> x, DeviceSpan<const T> weight,
                         DeviceSpan<const float> mean, DeviceSpan<const float> r, DeviceSpan<T> dx,
                         DeviceSpan<T> dweight, DeviceSpan<T> dbias, bool adds, const NormShape& shape,
                         DeviceSpan<float> workspace, Stream& stream);
template <class T>
void rms_norm_backward(DeviceSpan<const T> dy, DeviceSpan<const T> x, DeviceSpan<const T> weight,
                       DeviceSpan<const float> r, DeviceSpan<T> dx, DeviceSpan<T> dweight, bool adds,
                       const NormShape& shape, DeviceSpan<float> workspace, Stream& stream);
}  // namespace reference

}  // namespace dunnock::gpu
