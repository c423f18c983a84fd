// A loop over values on several processors, each with the widest vectors that it has.
#pragma once

#include <cstddef>

#include "kernels/parallel.hpp"
#include "kernels/vector_math.hpp"

namespace dunnock::gpu::detail {

/// Calls body(first, last) for parts of 0 .. count - 1, of at least `grain` each; body is DUNNOCK_INLINED, as is what
/// it calls.
template <class Body>
void vector_for(std::size_t count, std::size_t grain, const Body& body) {
  parallel_for(count, grain,
               [&](std::size_t first, std::size_t last) { widest([&]() DUNNOCK_INLINED { body(first, last); }); });
}
/// `count` values of f32 arithmetic.
template <class Body>
void vector_for(std::size_t count, const Body& body) {
  vector_for(count, kParallelGrain, body);
}

/// Rows that make a thread worth waking.
[[nodiscard]] inline std::size_t rows_grain(std::size_t columns) { return kParallelGrain / (columns + 1) + 1; }

}  // namespace dunnock::gpu::detail
