// The launchers of src/cuda/filter_view.cu, as FilterView calls them. `Key` is std::uint64_t or Key128.
#pragma once

#include "filter_words.hpp"
#include "kernels/dispatch.hpp"

namespace dunnock::gpu::detail::DUNNOCK_KERNELS {

template <class Key>
void filter_operation(FilterOperation operation, const FilterShape& shape, std::uint64_t* words,
                      DeviceSpan<const Key> keys, DeviceSpan<std::uint8_t> answers, Stream& stream);
void filter_longest_prefix(const FilterShape& shape, std::uint64_t* words, DeviceSpan<const Key128> hashes,
                           DeviceSpan<const std::uint32_t> first, DeviceSpan<std::uint32_t> lengths, Stream& stream);

}  // namespace dunnock::gpu::detail::DUNNOCK_KERNELS
