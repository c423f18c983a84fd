// Pooling of planes: the largest value or the average of each window, and their gradients.
//
// Activations are (batch, height, width, channels); each channel is pooled separately. T is float or Bf16, averages are
// summed in float, in the order of rows and columns. Nothing allocates or synchronizes.
// Spans that do not fit the shape are programmer errors.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dunnock/device/bf16.hpp"
#include "dunnock/device/memory.hpp"
#include "dunnock/kernels/kernel.hpp"

namespace dunnock::kernels {

struct PoolingShape {
  std::size_t batch = 0;
  std::size_t height = 0;
  std::size_t width = 0;
  std::size_t channels = 0;
  std::size_t kernel_height = 1;
  std::size_t kernel_width = 1;
  std::size_t stride_height = 1;
  std::size_t stride_width = 1;
  std::size_t padding_height = 0;  ///< Less than the kernel, so that each window holds a value.
  std::size_t padding_width = 0;
  bool padding_counts = false;  ///< Averages divide by the whole kernel, not by the number of values in it.

  [[nodiscard]] constexpr bool valid() const noexcept {
    if (kernel_height == 0 || kernel_width == 0 || stride_height == 0 || stride_width == 0 || channels == 0)
      return false;
    if (height == 0 || width == 0 || height * width > UINT32_MAX) return false;
    if (padding_height >= kernel_height || padding_width >= kernel_width) return false;
    return kernel_height <= height + 2 * padding_height && kernel_width <= width + 2 * padding_width;
  }
  [[nodiscard]] constexpr std::size_t out_height() const noexcept {
    return (height + 2 * padding_height - kernel_height) / stride_height + 1;
  }
  [[nodiscard]] constexpr std::size_t out_width() const noexcept {
    return (width + 2 * padding_width - kernel_width) / stride_width + 1;
  }
  [[nodiscard]] constexpr std::size_t x_size() const noexcept { return batch * height * width * channels; }
  [[nodiscard]] constexpr std::size_t y_size() const noexcept { return batch * out_height() * out_width() * channels; }
};

/// The first largest value in the order of rows and columns; a NaN is larger than all. Padding never is the largest.
/// x (batch, height, width, channels) -> y (batch, out_height, out_width, channels); indices as y: row * width + column
/// of where the value was, for the backward pass; empty if there is no backward pass.
template <class T>
struct MaxPool {
  device::Span<const T> x{};
  device::Span<T> y{};
  device::Span<std::uint32_t> indices{};
  PoolingShape shape{};
};
DUNNOCK_KERNEL(MaxPool);
/// dy, indices as y -> dx as x: each value gets the sum over the windows in which it was the largest.
template <class T>
struct MaxPoolBackward {
  device::Span<const T> dy{};
  device::Span<const std::uint32_t> indices{};
  device::Span<T> dx{};
  PoolingShape shape{};
};
DUNNOCK_KERNEL(MaxPoolBackward);

/// x as above -> y
template <class T>
struct AveragePool {
  device::Span<const T> x{};
  device::Span<T> y{};
  PoolingShape shape{};
};
DUNNOCK_KERNEL(AveragePool);
/// dy as y -> dx as x
template <class T>
struct AveragePoolBackward {
  device::Span<const T> dy{};
  device::Span<T> dx{};
  PoolingShape shape{};
};
DUNNOCK_KERNEL(AveragePoolBackward);

struct GlobalPoolingShape {
  std::size_t batch = 0;
  std::size_t positions = 0;  ///< height * width, > 0.
  std::size_t channels = 0;   ///< > 0.
};
/// x (batch, positions, channels) -> y (batch, channels)
template <class T>
struct GlobalAveragePool {
  device::Span<const T> x{};
  device::Span<T> y{};
  GlobalPoolingShape shape{};
};
DUNNOCK_KERNEL(GlobalAveragePool);
/// dy as y -> dx as x
template <class T>
struct GlobalAveragePoolBackward {
  device::Span<const T> dy{};
  device::Span<T> dx{};
  GlobalPoolingShape shape{};
};
DUNNOCK_KERNEL(GlobalAveragePoolBackward);

}  // namespace dunnock::kernels
