// The launchers of src/cuda/norm.cu. `centred`: layer norm, with a mean and a bias; else RMS norm, where both are
// empty.
#pragma once

#include "dunnock/gpu/kernels/norm.hpp"
#include "kernels/dispatch.hpp"

namespace dunnock::gpu::detail::DUNNOCK_KERNELS {

template <class T>
void norm(bool centred, DeviceSpan<const T> x, DeviceSpan<const T> weight, DeviceSpan<const T> bias, DeviceSpan<T> y,
          DeviceSpan<float> mean, DeviceSpan<float> r, const NormShape& shape, Stream& stream);
[[nodiscard]] std::size_t norm_backward_workspace(const NormShape& shape, unsigned multiprocessors);
template <class T>
void norm_backward(bool centred, DeviceSpan<const T> dy, DeviceSpan<const T> x, DeviceSpan<const T> weight,
                   DeviceSpan<const float> mean, DeviceSpan<const float> r, DeviceSpan<T> dx, DeviceSpan<T> dweight,
                   DeviceSpan<T> dbias, bool adds, const NormShape& shape, DeviceSpan<float> workspace, Stream& stream);

}  // namespace dunnock::gpu::detail::DUNNOCK_KERNELS
