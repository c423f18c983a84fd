// The launchers of src/cuda/filter_view.cu, as FilterView calls them. `Key` is std::uint64_t or Key128.
#pragma once

#include "dispatch.hpp"
#include "filter_words.hpp"

namespace dunnock::kernels::detail::DUNNOCK_KERNELS {

template <class Key>
void filter_operation(FilterOperation operation, const FilterShape& shape, std::uint64_t* words,
                      device::Span<const Key> keys, device::Span<std::uint8_t> answers, device::Stream& stream);
void filter_longest_prefix(const FilterShape& shape, std::uint64_t* words, device::Span<const Key128> hashes,
                           device::Span<const std::uint32_t> first, device::Span<std::uint32_t> lengths,
                           device::Stream& stream);

}  // namespace dunnock::kernels::detail::DUNNOCK_KERNELS
