// What the forms of gathers and scatters share. CUDA's calls have the strides of the shape set.
#pragma once

#include "dispatch.hpp"
#include "dunnock/kernels/gather.hpp"

namespace dunnock::kernels::detail {

enum class Move : std::uint8_t { kGather, kScatter, kScatterAdd };

}  // namespace dunnock::kernels::detail
