// Softmax cross-entropy, loss and gradient in one pass; also softmax and log-sum-exp of rows by themselves.
//
//   p = softmax(row);  with s = label_smoothing and t = the row's target:
//   loss     = log(sum of exp(x)) - (1 - s) * x[t] - s * mean of x          (as PyTorch's cross_entropy)
//   gradient = gradient_factor * (p - s / classes - (1 - s at t, otherwise 0))
//
// A row whose target is `ignore_index` has loss 0 and gradient 0. A row whose target is neither that nor a class has
// loss NaN and gradient 0: nothing is read or written outside, and the loss shows the error. T is float or Bf16,
// arithmetic is in float; the largest value of a row is subtracted first. A row that has a NaN, +infinity or only
// -infinity gives NaN. Spans that do not fit the shape are programmer errors. Nothing allocates.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dunnock/device/bf16.hpp"
#include "dunnock/device/memory.hpp"
#include "dunnock/kernels/kernel.hpp"

namespace dunnock::kernels {

struct CrossEntropyShape {
  std::size_t rows = 0;
  std::size_t classes = 0;  ///< > 0, < 2^31
  std::int32_t ignore_index = -100;
  float label_smoothing = 0;  ///< 0 .. 1
  float gradient_factor = 1;  ///< for a mean: 1 / the rows that are not ignored
};

/// logits (rows, classes), targets (rows) -> losses (rows), and gradient (rows, classes), may be the logits; empty:
/// only the losses.
template <class T>
struct CrossEntropy {
  device::Span<const T> logits{};
  device::Span<const std::int32_t> targets{};
  device::Span<float> losses{};
  device::Span<T> gradient{};
  CrossEntropyShape shape{};
};
DUNNOCK_KERNEL(CrossEntropy);
/// The mean of the losses of rows that are not ignored, summed in a fixed order; NaN if all are ignored.
/// losses, targets (any) -> mean (1)
struct CrossEntropyMean {
  device::Span<const float> losses{};
  device::Span<const std::int32_t> targets{};
  std::int32_t ignore_index = 0;
  device::Span<float> mean{};
};
DUNNOCK_KERNEL_0(CrossEntropyMean);

struct SoftmaxShape {
  std::size_t rows = 0;
  std::size_t columns = 0;  ///< > 0, < 2^31
};
/// x (rows, columns) -> y (rows, columns), may be x
template <class T>
struct Softmax {
  device::Span<const T> x{};
  device::Span<T> y{};
  SoftmaxShape shape{};
};
DUNNOCK_KERNEL(Softmax);
/// x (rows, columns) -> sums (rows): the logarithm of the sum of exp(x)
template <class T>
struct LogSumExp {
  device::Span<const T> x{};
  device::Span<float> sums{};
  SoftmaxShape shape{};
};
DUNNOCK_KERNEL(LogSumExp);

}  // namespace dunnock::kernels
