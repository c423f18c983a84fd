// The launchers of src/cuda/random.cu.
#pragma once

#include "dunnock/gpu/kernels/random.hpp"
#include "kernels/dispatch.hpp"

namespace dunnock::gpu::detail::DUNNOCK_KERNELS {

template <class T>
void random_uniform(DeviceSpan<T> out, const RandomKey& key, Stream& stream);
template <class T>
void random_normal(DeviceSpan<T> out, const NormalShape& shape, const RandomKey& key, Stream& stream);
template <class T>
void dropout(DeviceSpan<const T> x, DeviceSpan<T> y, DeviceSpan<std::uint8_t> mask, float keep, const RandomKey& key,
             Stream& stream);
template <class T>
void apply_mask(DeviceSpan<const T> x, DeviceSpan<const std::uint8_t> mask, DeviceSpan<T> y, float keep,
                Stream& stream);

}  // namespace dunnock::gpu::detail::DUNNOCK_KERNELS
