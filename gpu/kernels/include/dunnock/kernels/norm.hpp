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

#include "dunnock/device/bf16.hpp"
#include "dunnock/device/memory.hpp"
#include "dunnock/kernels/kernel.hpp"

namespace dunnock::kernels {

struct NormShape {
  std::size_t rows = 0;
  std::size_t columns = 0;  ///< > 0
  float epsilon = 1e-5F;
};

/// mean, r: what the backward pass needs; empty spans if there is no backward pass.
/// x (rows, columns); weight, bias (columns) -> y (rows, columns), may be x; mean, r (rows)
template <class T>
struct LayerNorm {
  device::Span<const T> x{}, weight{}, bias{};
  device::Span<T> y{};
  device::Span<float> mean{}, r{};
  NormShape shape{};
};
DUNNOCK_KERNEL(LayerNorm);
/// x (rows, columns); weight (columns) -> y (rows, columns), may be x; r (rows)
template <class T>
struct RmsNorm {
  device::Span<const T> x{}, weight{};
  device::Span<T> y{};
  device::Span<float> r{};
  NormShape shape{};
};
DUNNOCK_KERNEL(RmsNorm);

/// Floats of workspace that the backward passes need on this device.
[[nodiscard]] std::size_t norm_backward_workspace(const NormShape& shape, device::Device device);

/// `adds`: adds to dweight and dbias instead of setting them. The order of the sums is the same in each run.
/// dy, x (rows, columns); weight (columns); mean, r (rows) -> dx (rows, columns), may be dy; dweight, dbias (columns)
template <class T>
struct LayerNormBackward {
  device::Span<const T> dy{}, x{}, weight{};
  device::Span<const float> mean{}, r{};
  device::Span<T> dx{}, dweight{}, dbias{};
  bool adds = false;
  NormShape shape{};
  device::Span<float> workspace{};
};
DUNNOCK_KERNEL(LayerNormBackward);
template <class T>
struct RmsNormBackward {
  device::Span<const T> dy{}, x{}, weight{};
  device::Span<const float> r{};
  device::Span<T> dx{}, dweight{};
  bool adds = false;
  NormShape shape{};
  device::Span<float> workspace{};
};
DUNNOCK_KERNEL(RmsNormBackward);

}  // namespace dunnock::kernels
