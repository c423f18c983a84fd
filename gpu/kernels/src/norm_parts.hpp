// What CUDA's norms need besides their calls.
#pragma once

#include "dispatch.hpp"
#include "dunnock/kernels/norm.hpp"

namespace dunnock::kernels::detail::DUNNOCK_KERNELS {

[[nodiscard]] std::size_t norm_backward_workspace(const NormShape& shape, unsigned multiprocessors);

}  // namespace dunnock::kernels::detail::DUNNOCK_KERNELS
