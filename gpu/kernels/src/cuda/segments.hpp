// Work on many tensors in one launch: a table of them in device memory, each with the number of its first chunk.
#pragma once

#include "cuda/device_code.hpp"

namespace dunnock::kernels::detail::device_code {

/// The last of `count` tensors whose first_chunk is <= chunk (tensors without values have no chunk of their own).
template <class Tensor>
__device__ unsigned tensor_of_chunk(const Tensor* tensors, unsigned count, std::size_t chunk) {
  unsigned low = 0;
  unsigned high = count;
  while (high - low > 1) {
    const unsigned middle = (low + high) / 2;
    if (tensors[middle].first_chunk <= chunk) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

}  // namespace dunnock::kernels::detail::device_code
