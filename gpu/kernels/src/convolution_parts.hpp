// What src/cuda/convolution.cu (our own kernels, for depthwise convolutions and where cuDNN is missing or has nothing)
// and src/cuda/convolution_cudnn.cpp have besides the calls.
#pragma once

#include <optional>

#include "dispatch.hpp"
#include "dunnock/kernels/convolution.hpp"

namespace dunnock::kernels::detail::DUNNOCK_KERNELS {

[[nodiscard]] std::size_t convolution_workspace(ConvolutionPass pass, const ConvolutionShape& shape,
                                                unsigned multiprocessors);

/// What cuDNN leaves to do. values (rows, channels) += bias, or of a null bias nothing; then ReLU.
template <class T>
void add_bias(device::Span<T> values, device::Span<const T> bias, bool relu, device::Stream& stream);
/// Floats of workspace for bias_gradient.
[[nodiscard]] std::size_t bias_gradient_workspace(const ConvolutionShape& shape, unsigned multiprocessors);
template <class T>
void bias_gradient(device::Span<const T> dy, device::Span<T> dbias, bool adds, const ConvolutionShape& shape,
                   device::Span<float> workspace, device::Stream& stream);
/// to = from, or to += from.
template <class T, class From>
void put_gradient(device::Span<const From> from, device::Span<T> to, bool adds, device::Stream& stream);

}  // namespace dunnock::kernels::detail::DUNNOCK_KERNELS

#if DUNNOCK_HAS_CUDNN
namespace dunnock::kernels::detail::cudnn {
/// Nothing when cuDNN has no plan for it. Makes the plan.
template <class T>
[[nodiscard]] std::optional<std::size_t> convolution_workspace(ConvolutionPass pass, const ConvolutionShape& shape,
                                                               device::Device device);
// False when cuDNN has no plan for it; then nothing was issued.
template <class T>
[[nodiscard]] bool ran(const Convolution<T>& call, device::Stream& stream);
template <class T>
[[nodiscard]] bool ran(const ConvolutionInputGradient<T>& call, device::Stream& stream);
template <class T>
[[nodiscard]] bool ran(const ConvolutionWeightGradient<T>& call, device::Stream& stream);
}  // namespace dunnock::kernels::detail::cudnn
#endif
