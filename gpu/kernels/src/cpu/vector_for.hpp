// A loop over values on several processors, each with the widest vectors that it has.
#pragma once

#include <cstddef>

#include "cpu/vector_math.hpp"
#include "parallel.hpp"

namespace dunnock::kernels::detail {

/// Calls body(first, last) for parts of 0 .. count - 1, of at least `grain` each; body is DUNNOCK_INLINED, as is what
/// it calls.
template <class Body>
void vector_for(std::size_t count, std::size_t grain, const Body& body) {
  device::parallel_for(
      count, grain, [&](std::size_t first, std::size_t last) { widest([&]() DUNNOCK_INLINED { body(first, last); }); });
}
/// `count` values of f32 arithmetic.
template <class Body>
void vector_for(std::size_t count, const Body& body) {
  vector_for(count, device::kParallelGrain, body);
}

/// Rows that make a thread worth waking.
[[nodiscard]] inline std::size_t rows_grain(std::size_t columns) { return device::kParallelGrain / (columns + 1) + 1; }

}  // namespace dunnock::kernels::detail
