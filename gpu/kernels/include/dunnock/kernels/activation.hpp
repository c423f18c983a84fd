// Activations, forward and backward, value by value; and SwiGLU, which multiplies two halves.
//
//   GELU, tanh form   y = x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2
//   GELU, erf form    y = x * (1 + erf(x / sqrt(2))) / 2
//   SiLU              y = x / (1 + exp(-x))
//   ReLU              y = max(x, 0); a NaN stays NaN; its slope at 0 is 0
//   SwiGLU            y = SiLU(gate) * up
//
// T is float or Bf16; arithmetic is in float; the error is about 1e-6 of |x| before rounding to T. Spans that do not
// fit are programmer errors. Nothing allocates. Sources: Hendrycks, Gimpel 2016 (arXiv 1606.08415); Shazeer 2020 (arXiv
// 2002.05202).
#pragma once

#include <cstddef>
#include <cstdint>

#include "dunnock/device/bf16.hpp"
#include "dunnock/device/memory.hpp"
#include "dunnock/kernels/kernel.hpp"

namespace dunnock::kernels {

enum class Activation : std::uint8_t { kGeluTanh, kGeluErf, kSilu, kRelu };

/// x (any) -> y (as many), may be x.
template <class T>
struct Activate {
  Activation kind{};
  device::Span<const T> x{};
  device::Span<T> y{};
};
DUNNOCK_KERNEL(Activate);
/// dx = dy * slope at x. dy, x (any) -> dx (as many), may be dy or x.
template <class T>
struct ActivateBackward {
  Activation kind{};
  device::Span<const T> dy{}, x{};
  device::Span<T> dx{};
};
DUNNOCK_KERNEL(ActivateBackward);

/// gate[row][c] is at row * gate_stride + c of its span, and so is up. In a packed matrix x (rows, 2 * columns), gate
/// is x from 0 and up is x from `columns`, both with a stride of 2 * columns.
struct SwigluShape {
  std::size_t rows = 0;
  std::size_t columns = 0;      ///< > 0
  std::size_t gate_stride = 0;  ///< >= columns
  std::size_t up_stride = 0;    ///< >= columns

  [[nodiscard]] static SwigluShape packed(std::size_t rows, std::size_t columns) {
    return {.rows = rows, .columns = columns, .gate_stride = 2 * columns, .up_stride = 2 * columns};
  }
  [[nodiscard]] static SwigluShape separate(std::size_t rows, std::size_t columns) {
    return {.rows = rows, .columns = columns, .gate_stride = columns, .up_stride = columns};
  }
};

/// gate, up: at least as long as the strides say -> y (rows, columns), which is neither.
template <class T>
struct Swiglu {
  device::Span<const T> gate{}, up{};
  device::Span<T> y{};
  SwigluShape shape{};
};
DUNNOCK_KERNEL(Swiglu);
/// dy (rows, columns) -> dgate with the strides of gate, may be gate; dup with those of up, may be up.
template <class T>
struct SwigluBackward {
  device::Span<const T> dy{}, gate{}, up{};
  device::Span<T> dgate{}, dup{};
  SwigluShape shape{};
};
DUNNOCK_KERNEL(SwigluBackward);

}  // namespace dunnock::kernels
