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

#include "dunnock/gpu/bf16.hpp"
#include "dunnock/gpu/memory.hpp"

namespace dunnock::gpu {

enum class Activation : std::uint8_t { kGeluTanh, kGeluErf, kSilu, kRelu };

/// x (any) -> y (as many), may be x.
template <class T>
void activation(Activation kind, DeviceSpan<const T> x, DeviceSpan<T> y, Stream& stream);
/// dx = dy * slope at x. dy, x (any) -> dx (as many), may be dy or x.
template <class T>
void activation_backward(Activation kind, DeviceSpan<const T> dy, DeviceSpan<const T> x, DeviceSpan<T> dx,
                         Stream& stream);

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
void swiglu(DeviceSpan<const T> gate, DeviceSpan<const T> up, DeviceSpan<T> y, const SwigluShape& shape,
            Stream& stream);
/// dy (rows, columns) -> dgate with the strides of gate, may be gate; dup with those of up, may be up.
template <class T>
void swiglu_backward(DeviceSpan<const T> dy, DeviceSpan<const T> gate, DeviceSpan<const T> up, DeviceSpan<T> dgate,
                     DeviceSpan<T> dup, const SwigluShape& shape, Stream& stream);

/// The twins, written to be read: in double. On CPU streams.
namespace reference {
template <class T>
void activation(Activation kind, DeviceSpan<const T> x, DeviceSpan<T> y, Stream& stream);
template <class T>
void activation_backward(Activation kind, DeviceSpan<const T> dy, DeviceSpan<const T> x, DeviceSpan<T> dx,
                         Stream& stream);
template <class T>
void swiglu(DeviceSpan<const T> gate, DeviceSpan<const T> up, DeviceSpan<T> y, const SwigluShape& shape,
            Stream& stream);
template <class T>
void swiglu_backward(DeviceSpan<const T> dy, DeviceSpan<const T> gate, DeviceSpan<const T> up, DeviceSpan<T> dgate,
                     DeviceSpan<T> dup, const SwigluShape& shape, Stream& stream);
}  // namespace reference

}  // namespace dunnock::gpu
