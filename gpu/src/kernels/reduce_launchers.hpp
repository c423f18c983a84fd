// The launchers of src/cuda/reduce.cu.
#pragma once

#include "dunnock/gpu/kernels/reduce.hpp"
#include "kernels/dispatch.hpp"

namespace dunnock::gpu::detail::DUNNOCK_KERNELS {

template <class T>
void reduce(ReduceKind kind, DeviceSpan<const T> x, DeviceSpan<float> result, DeviceSpan<float> workspace,
            Stream& stream);
template <class T>
void any_not_finite(DeviceSpan<const T> x, DeviceSpan<std::uint32_t> flag, DeviceSpan<float> workspace, Stream& stream);
template <class T>
void gradient_norm(const ReduceTable<T>& table, DeviceSpan<float> norm, DeviceSpan<float> workspace, Stream& stream);
void clip_factor(DeviceSpan<const float> norm, float norm_max, DeviceSpan<float> factor, Stream& stream);
template <class T>
void argmax_rows(DeviceSpan<const T> x, DeviceSpan<std::int32_t> indices, DeviceSpan<float> values,
                 const ReduceRows& shape, Stream& stream);

}  // namespace dunnock::gpu::detail::DUNNOCK_KERNELS

/// Of the CPU's form, CUDA's and the twins alike.
#define DUNNOCK_INSTANTIATE_REDUCE(T)                                                                               \
  template void reduce<T>(ReduceKind, DeviceSpan<const T>, DeviceSpan<float>, DeviceSpan<float>, Stream&);           \
  template void any_not_finite<T>(DeviceSpan<const T>, DeviceSpan<std::uint32_t>, DeviceSpan<float>, Stream&);      \
  template void gradient_norm<T>(const ReduceTable<T>&, DeviceSpan<float>, DeviceSpan<float>, Stream&);             \
  template void argmax_rows<T>(DeviceSpan<const T>, DeviceSpan<std::int32_t>, DeviceSpan<float>, const ReduceRows&, \
                               Stream&);
