// What the kernels' public functions check of their arguments.
#pragma once

#include <cstddef>

#include "dunnock/base/check.hpp"

namespace dunnock::kernels::detail {

template <class... Spans>
void check_sizes(std::size_t size, const Spans&... spans) {
  DUNNOCK_CHECK(((spans.size() == size) && ...), "spans fit the shape");
}
/// Or empty.
template <class... Spans>
void check_optional(std::size_t size, const Spans&... spans) {
  DUNNOCK_CHECK(((spans.size() == size || spans.empty()) && ...), "spans fit the shape, or are empty");
}

}  // namespace dunnock::kernels::detail
