// What CUDA's column sums need besides their call.
#pragma once

#include "dispatch.hpp"
#include "dunnock/kernels/elementwise.hpp"

namespace dunnock::kernels::detail::DUNNOCK_KERNELS {

[[nodiscard]] std::size_t column_sums_workspace(const RowMatrix& shape, unsigned multiprocessors);

}  // namespace dunnock::kernels::detail::DUNNOCK_KERNELS
