// The launchers of src/cuda/gather.cu. The strides of the shape are set.
#pragma once

#include "dunnock/gpu/kernels/gather.hpp"
#include "kernels/dispatch.hpp"

namespace dunnock::gpu::detail {

enum class Move : std::uint8_t { kGather, kScatter, kScatterAdd };

}  // namespace dunnock::gpu::detail

namespace dunnock::gpu::detail::DUNNOCK_KERNELS {

/// `x` is written by scatters, `y` by gathers.
template <class T>
void move_rows(detail::Move move, T* x, DeviceSpan<const std::int32_t> index, T* y, const GatherShape& shape,
               Stream& stream);
template <class T>
void move_columns(detail::Move move, T* x, DeviceSpan<const std::int32_t> index, T* y, const GatherShape& shape,
                  Stream& stream);

}  // namespace dunnock::gpu::detail::DUNNOCK_KERNELS
