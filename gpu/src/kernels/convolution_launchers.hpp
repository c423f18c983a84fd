// The launchers of src/cuda/convolution.cu: our own kernels, for depthwise convolutions and where cuDNN is missing or
// has nothing; and, with cuDNN, those of src/cuda/convolution_cudnn.cpp.
#pragma once

#include <optional>

#include "dunnock/gpu/kernels/convolution.hpp"
#include "kernels/dispatch.hpp"

namespace dunnock::gpu::detail::DUNNOCK_KERNELS {

[[nodiscard]] std::size_t convolution_workspace(ConvolutionPass pass, const ConvolutionShape& shape,
                                                unsigned multiprocessors);
template <class T>
void convolution(DeviceSpan<const T> x, DeviceSpan<const T> weight, DeviceSpan<const T> bias, DeviceSpan<T> y,
                 bool relu, const ConvolutionShape& shape, DeviceSpan<std::byte> workspace, Stream& stream);
template <class T>
void convolution_input_gradient(DeviceSpan<const T> dy, DeviceSpan<const T> weight, DeviceSpan<T> dx,
                                const ConvolutionShape& shape, DeviceSpan<std::byte> workspace, Stream& stream);
template <class T>
void convolution_weight_gradient(DeviceSpan<const T> dy, DeviceSpan<const T> x, DeviceSpan<T> dweight,
                                 DeviceSpan<T> dbias, bool adds, const ConvolutionShape& shape,
                                 DeviceSpan<std::byte> workspace, Stream& stream);

/// What cuDNN leaves to do. values (rows, channels) += bias, or of a null bias nothing; then ReLU.
template <class T>
void add_bias(DeviceSpan<T> values, DeviceSpan<const T> bias, bool relu, Stream& stream);
/// Floats of workspace for bias_gradient.
[[nodiscard]] std::size_t bias_gradient_workspace(const ConvolutionShape& shape, unsigned multiprocessors);
template <class T>
void bias_gradient(DeviceSpan<const T> dy, DeviceSpan<T> dbias, bool adds, const ConvolutionShape& shape,
                   DeviceSpan<float> workspace, Stream& stream);
/// to = from, or to += from.
template <class T, class From>
void put_gradient(DeviceSpan<const From> from, DeviceSpan<T> to, bool adds, Stream& stream);

}  // namespace dunnock::gpu::detail::DUNNOCK_KERNELS

#if DUNNOCK_HAS_CUDNN
namespace dunnock::gpu::detail::cudnn {
/// Nothing when cuDNN has no plan for it. Makes the plan.
template <class T>
[[nodiscard]] std::optional<std::size_t> convolution_workspace(ConvolutionPass pass, const ConvolutionShape& shape,
                                                               Device device);
// False when cuDNN has no plan for it; then nothing was issued.
template <class T>
[[nodiscard]] bool convolution(DeviceSpan<const T> x, DeviceSpan<const T> weight, DeviceSpan<const T> bias,
                               DeviceSpan<T> y, bool relu, const ConvolutionShape& shape,
                               DeviceSpan<std::byte> workspace, Stream& stream);
template <class T>
[[nodiscard]] bool convolution_input_gradient(DeviceSpan<const T> dy, DeviceSpan<const T> weight, DeviceSpan<T> dx,
                                              const ConvolutionShape& shape, DeviceSpan<std::byte> workspace,
                                              Stream& stream);
template <class T>
[[nodiscard]] bool convolution_weight_gradient(DeviceSpan<const T> dy, DeviceSpan<const T> x, DeviceSpan<T> dweight,
                                               DeviceSpan<T> dbias, bool adds, const ConvolutionShape& shape,
                                               DeviceSpan<std::byte> workspace, Stream& stream);
}  // namespace dunnock::gpu::detail::cudnn
#endif
