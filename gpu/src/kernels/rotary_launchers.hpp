// The launchers of src/cuda/rotary.cu. `direction`: 1 forward, -1 back.
#pragma once

#include "dunnock/gpu/kernels/rotary.hpp"
#include "kernels/dispatch.hpp"

namespace dunnock::gpu::detail::DUNNOCK_KERNELS {

void rotary_table(DeviceSpan<float> table, const RotaryTableShape& shape, Stream& stream);
template <class T>
void rotary(HeadsView<T> x, DeviceSpan<const float> table, DeviceSpan<const std::int32_t> positions, float direction,
            const RotaryShape& shape, Stream& stream);

}  // namespace dunnock::gpu::detail::DUNNOCK_KERNELS
