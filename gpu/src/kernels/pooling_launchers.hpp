// The launchers of src/cuda/pooling.cu.
#pragma once

#include "dunnock/gpu/kernels/pooling.hpp"
#include "kernels/dispatch.hpp"

namespace dunnock::gpu::detail::DUNNOCK_KERNELS {

template <class T>
void max_pool(DeviceSpan<const T> x, DeviceSpan<T> y, DeviceSpan<std::uint32_t> indices, const PoolingShape& shape,
              Stream& stream);
template <class T>
void max_pool_backward(DeviceSpan<const T> dy, DeviceSpan<const std::uint32_t> indices, DeviceSpan<T> dx,
                       const PoolingShape& shape, Stream& stream);
template <class T>
void average_pool(DeviceSpan<const T> x, DeviceSpan<T> y, const PoolingShape& shape, Stream& stream);
template <class T>
void average_pool_backward(DeviceSpan<const T> dy, DeviceSpan<T> dx, const PoolingShape& shape, Stream& stream);
template <class T>
void global_average_pool(DeviceSpan<const T> x, DeviceSpan<T> y, const GlobalPoolingShape& shape, Stream& stream);
template <class T>
void global_average_pool_backward(DeviceSpan<const T> dy, DeviceSpan<T> dx, const GlobalPoolingShape& shape,
                                  Stream& stream);

}  // namespace dunnock::gpu::detail::DUNNOCK_KERNELS
