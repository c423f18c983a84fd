// The launchers of src/cuda/cross_entropy.cu.
#pragma once

#include "dunnock/gpu/kernels/cross_entropy.hpp"
#include "kernels/dispatch.hpp"

namespace dunnock::gpu::detail::DUNNOCK_KERNELS {

template <class T>
void cross_entropy(DeviceSpan<const T> logits, DeviceSpan<const std::int32_t> targets, DeviceSpan<float> losses,
                   DeviceSpan<T> gradient, const CrossEntropyShape& shape, Stream& stream);
void cross_entropy_mean(DeviceSpan<const float> losses, DeviceSpan<const std::int32_t> targets,
                        std::int32_t ignore_index, DeviceSpan<float> mean, Stream& stream);
template <class T>
void softmax(DeviceSpan<const T> x, DeviceSpan<T> y, const SoftmaxShape& shape, Stream& stream);
template <class T>
void log_sum_exp(DeviceSpan<const T> x, DeviceSpan<float> sums, const SoftmaxShape& shape, Stream& stream);

}  // namespace dunnock::gpu::detail::DUNNOCK_KERNELS

/// Of the CPU's form, CUDA's and the twins alike.
#define DUNNOCK_INSTANTIATE_CROSS_ENTROPY(T)                                                             \
  template void cross_entropy<T>(DeviceSpan<const T>, DeviceSpan<const std::int32_t>, DeviceSpan<float>, \
                                 DeviceSpan<T>, const CrossEntropyShape&, Stream&);                      \
  template void softmax<T>(DeviceSpan<const T>, DeviceSpan<T>, const SoftmaxShape&, Stream&);            \
  template void log_sum_exp<T>(DeviceSpan<const T>, DeviceSpan<float>, const SoftmaxShape&, Stream&);
