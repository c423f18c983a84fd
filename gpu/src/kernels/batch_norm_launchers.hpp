// The launchers of src/cuda/batch_norm.cu.
#pragma once

#include "dunnock/gpu/kernels/batch_norm.hpp"
#include "kernels/dispatch.hpp"

namespace dunnock::gpu::detail::DUNNOCK_KERNELS {

[[nodiscard]] std::size_t batch_norm_workspace(const BatchNormShape& shape, unsigned multiprocessors);
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

}  // namespace dunnock::gpu::detail::DUNNOCK_KERNELS
