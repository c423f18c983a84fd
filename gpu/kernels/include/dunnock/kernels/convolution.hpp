// 2-D convolution: forward, and its two gradients as separate functions, since schedules put them in different places.
//
//   y[n, i, j, o]  = bias[o] + sum over u, v, c of x[n, i * stride - padding + u * dilation, ..., first(o) + c]
//                                                  * weight[o, u, v, c]            (zero outside of x; then ReLU)
//   dx             = the same sum's gradient of x, dweight of weight;   dbias[o] = sum over n, i, j of dy[n, i, j, o]
//
// With groups, output channel o sees the in_channels / groups inputs that begin at first(o) = o / (out_channels /
// groups) * (in_channels / groups). Depthwise: groups = in_channels = out_channels.
//
// Channels are innermost, in activations (batch, height, width, channels) and in weights (out_channels, kernel_height,
// kernel_width, in_channels / groups): this suits cuDNN's tensor cores, pooling, norms and biases vectorize over
// channels, and on a CPU it is mostly as fast as oneDNN's own blocked layouts (src/cpu/convolution_onednn.cpp has
// the figures).
//
// CPU: oneDNN, or our own loops where it is missing. CUDA: cuDNN's deterministic engines (f32 without TF32), or our own
// kernels for depthwise convolutions, for spans that are not aligned to 16 bytes and where cuDNN is missing.
//
// T is float or Bf16; sums are in float. Where T is Bf16, dweight and dbias are summed in float and rounded once.
// The order of each sum is the same in each run with the same number of threads.
//
// Plans (oneDNN's primitives, cuDNN's execution plans) are made when a shape is first seen, by the first call or the
// first query for its workspace: that takes milliseconds and memory of the library's, so it should not happen while a
// graph is recorded. Up to 256 are kept. Apart from that nothing synchronizes, and nothing allocates except oneDNN's
// memory handles, a few small objects per call. Threads: any number, each with its own stream.
//
// Spans that do not fit the shape are programmer errors. ReLU's own gradient is not included: zero dy where y is 0.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>

#include "dunnock/device/bf16.hpp"
#include "dunnock/device/memory.hpp"
#include "dunnock/kernels/kernel.hpp"

namespace dunnock::kernels {

struct ConvolutionShape {
  std::size_t batch = 0;
  std::size_t height = 0;
  std::size_t width = 0;
  std::size_t in_channels = 0;   ///< A multiple of groups, > 0.
  std::size_t out_channels = 0;  ///< A multiple of groups, > 0.
  std::size_t kernel_height = 1;
  std::size_t kernel_width = 1;
  std::size_t stride_height = 1;
  std::size_t stride_width = 1;
  std::size_t padding_height = 0;  ///< Zeros above, and as many below.
  std::size_t padding_width = 0;
  std::size_t dilation_height = 1;
  std::size_t dilation_width = 1;
  std::size_t groups = 1;

  /// Does the kernel with its dilation fit in the padded input?
  [[nodiscard]] constexpr bool valid() const noexcept {
    if (groups == 0 || stride_height == 0 || stride_width == 0 || dilation_height == 0 || dilation_width == 0)
      return false;
    if (kernel_height == 0 || kernel_width == 0 || in_channels == 0 || out_channels == 0) return false;
    if (in_channels % groups != 0 || out_channels % groups != 0 || height == 0 || width == 0) return false;
    return dilation_height * (kernel_height - 1) < height + 2 * padding_height &&
           dilation_width * (kernel_width - 1) < width + 2 * padding_width;
  }
  [[nodiscard]] constexpr std::size_t out_height() const noexcept {
    return (height + 2 * padding_height - dilation_height * (kernel_height - 1) - 1) / stride_height + 1;
  }
  [[nodiscard]] constexpr std::size_t out_width() const noexcept {
    return (width + 2 * padding_width - dilation_width * (kernel_width - 1) - 1) / stride_width + 1;
  }
  [[nodiscard]] constexpr std::size_t x_size() const noexcept { return batch * height * width * in_channels; }
  [[nodiscard]] constexpr std::size_t y_size() const noexcept {
    return batch * out_height() * out_width() * out_channels;
  }
  [[nodiscard]] constexpr std::size_t weight_size() const noexcept {
    return out_channels * kernel_height * kernel_width * (in_channels / groups);
  }
  [[nodiscard]] constexpr bool depthwise() const noexcept {
    return groups == in_channels && groups == out_channels && groups > 1;
  }
  friend auto operator<=>(const ConvolutionShape&, const ConvolutionShape&) = default;
};

enum class ConvolutionPass : std::uint8_t { kForward, kInputGradient, kWeightGradient };

/// Bytes of workspace that the pass needs on this device, aligned to 256 (as a Buffer is); may be 0. On the CPU it is
/// enough for a stream with any number of threads.
template <class T>
[[nodiscard]] std::size_t convolution_workspace(ConvolutionPass pass, const ConvolutionShape& shape,
                                                device::Device device);

/// x (batch, height, width, in_channels); weight (out_channels, kernel_height, kernel_width, in_channels / groups);
/// bias (out_channels), or empty for none -> y (batch, out_height, out_width, out_channels). `relu`: max(0, .) of it.
template <class T>
struct Convolution {
  device::Span<const T> x{}, weight{}, bias{};
  device::Span<T> y{};
  bool relu = false;
  ConvolutionShape shape{};
  device::Span<std::byte> workspace{};
};
DUNNOCK_KERNEL(Convolution);

/// dy as y; weight -> dx as x
template <class T>
struct ConvolutionInputGradient {
  device::Span<const T> dy{}, weight{};
  device::Span<T> dx{};
  ConvolutionShape shape{};
  device::Span<std::byte> workspace{};
};
DUNNOCK_KERNEL(ConvolutionInputGradient);

/// dy as y; x -> dweight as weight; dbias (out_channels), or empty for none. `adds`: adds to the existing values.
template <class T>
struct ConvolutionWeightGradient {
  device::Span<const T> dy{}, x{};
  device::Span<T> dweight{}, dbias{};
  bool adds = false;
  ConvolutionShape shape{};
  device::Span<std::byte> workspace{};
};
DUNNOCK_KERNEL(ConvolutionWeightGradient);

}  // namespace dunnock::kernels
