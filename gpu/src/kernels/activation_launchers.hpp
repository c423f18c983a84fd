// The launchers of src/cuda/activation.cu.
#pragma once

#include "dunnock/gpu/kernels/activation.hpp"
#include "kernels/dispatch.hpp"

namespace dunnock::gpu::detail::DUNNOCK_KERNELS {

template <class T>
void activation(Activation kind, DeviceSpan<const T> x, DeviceSpan<T> y, Stream& stream);
template <class T>
void activation_backward(Activation kind, DeviceSpan<const T> dy, DeviceSpan<const T> x, DeviceSpan<T> dx,
                         Stream& stream);
template <class T>
void swiglu(DeviceSpan<const T> gate, DeviceSpan<const T> up, DeviceSpan<T> y, const SwigluShape& shape,
            Stream& stream);
template <class T>
void swiglu_backward(DeviceSpan<const T> dy, DeviceSpan<const T> gate, DeviceSpan<const T> up, DeviceSpan<T> dgate,
                     DeviceSpan<T> dup, const SwigluShape& shape, Stream& stream);

}  // namespace dunnock::gpu::detail::DUNNOCK_KERNELS
