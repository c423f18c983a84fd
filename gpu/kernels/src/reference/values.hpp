// How the twins read and write values: in double, rounded once when they are stored.
#pragma once

#include <cstddef>

#include "dispatch.hpp"
#include "dunnock/device/bf16.hpp"
#include "dunnock/device/memory.hpp"

namespace dunnock::kernels::reference {

template <class T>
[[nodiscard]] double at(device::Span<const T> span, std::size_t i) {
  return static_cast<double>(static_cast<float>(span.device_data()[i]));
}
template <class T>
void set(device::Span<T> span, std::size_t i, double value) {
  span.device_data()[i] = T(static_cast<float>(value));
}
/// `adds`: to what is there.
template <class T>
void add_or_set(device::Span<T> span, std::size_t i, double value, bool adds) {
  set(span, i, (adds ? at<T>(span, i) : 0) + value);
}

}  // namespace dunnock::kernels::reference
