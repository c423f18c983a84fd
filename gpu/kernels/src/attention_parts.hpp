// What the forms of attention share, and what CUDA's needs besides its call.
#pragma once

#include <cmath>

#include "dispatch.hpp"
#include "dunnock/kernels/attention.hpp"

namespace dunnock::kernels::detail {

[[nodiscard]] inline float attention_scale(float scale, std::size_t head_dim) {
  return scale != 0 ? scale : 1.0F / std::sqrt(static_cast<float>(head_dim));
}

}  // namespace dunnock::kernels::detail

namespace dunnock::kernels::detail::DUNNOCK_KERNELS {

[[nodiscard]] std::size_t attention_backward_workspace(const AttentionShape& shape);

}  // namespace dunnock::kernels::detail::DUNNOCK_KERNELS
