// The launchers of src/cuda/attention.cu.
#pragma once

#include <cmath>

#include "dunnock/gpu/kernels/attention.hpp"
#include "kernels/dispatch.hpp"

namespace dunnock::gpu::detail {

[[nodiscard]] inline float attention_scale(float scale, std::size_t head_dim) {
  return scale != 0 ? scale : 1.0F / std::sqrt(static_cast<float>(head_dim));
}

}  // namespace dunnock::gpu::detail

namespace dunnock::gpu::detail::DUNNOCK_KERNELS {

template <class T>
void attention(const AttentionInputs<T>& in, HeadsView<T> o, DeviceSpan<float> lse, const AttentionShape& shape,
               Stream& stream);
[[nodiscard]] std::size_t attention_backward_workspace(const AttentionShape& shape);
template <class T>
void attention_backward(const AttentionInputs<T>& in, const AttentionResults<T>& results,
                        const AttentionGradients<T>& gradients, const AttentionShape& shape,
                        DeviceSpan<float> workspace, Stream& stream);

}  // namespace dunnock::gpu::detail::DUNNOCK_KERNELS
