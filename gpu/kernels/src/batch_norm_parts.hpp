// What CUDA's batch norms need besides their calls.
#pragma once

#include "dispatch.hpp"
#include "dunnock/kernels/batch_norm.hpp"

namespace dunnock::kernels::detail::DUNNOCK_KERNELS {

[[nodiscard]] std::size_t batch_norm_workspace(const BatchNormShape& shape, unsigned multiprocessors);

}  // namespace dunnock::kernels::detail::DUNNOCK_KERNELS
