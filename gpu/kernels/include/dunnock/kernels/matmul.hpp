// The matrix product, with what precedes and follows it in training and inference done in the same pass.
//
//   V = alpha * op(A) * op(B) + beta * C + bias          op: as stored, or transposed
//   C = activation(V)                                    forward;   V itself may be saved for the backward pass
//   C = V * activation'(at)                              backward, `at` being what forward saved
//
//   forward      Y = gelu(X W + b)         A = X (tokens, in), B = W (in, out), bias = b, saved = V
//   backward     dX = gelu'(V) * dY W'     A = dY, B = W transposed, gradient_at = V of the layer below,
//                                          sums = the dbias of the layer below
//                dW = X' dY                A = X transposed, B = dY, beta = 1 to accumulate, b_sums = dbias
//
// Matrices are stored by rows, each with its leading dimension: the distance in values from one stored row to the next.
// T of A and B is float or Bf16; C is of the same type, or float if T is Bf16. Products are summed in float. GELU is
// the tanh form, as in GPT-2 (Hendrycks, Gimpel 2016, arXiv 1606.08415). Spans that do not fit the shape are programmer
// errors.
//
// CPU: oneDNN where the build has it, our own kernels (AVX-512, AVX2) elsewhere; the same sums in each run with the
// same number of threads, and with our own kernels with any number. bf16 products flush denormals where the processor's
// own instruction makes them. CUDA: cuBLASLt; what it does not fuse is a separate pass after it, over values that have
// been rounded to C's type.
// Plans (oneDNN's primitives with their scratch, cuBLASLt's algorithms) are made when a stream's thread, or a GPU,
// first sees a shape, and a bounded number is kept: the oldest is dropped. So run a shape once before a CUDA graph
// records it. Nothing else allocates, and nothing synchronizes. In a build whose CUDA toolkit has no cuBLASLt, the
// stream reports Unsupported.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dunnock/device/bf16.hpp"
#include "dunnock/device/memory.hpp"
#include "dunnock/kernels/kernel.hpp"

namespace dunnock::kernels {

/// One product, or `count` of them. 0 means the default: a leading dimension of the row's length, a stride of the whole
/// matrix.
struct MatmulShape {
  std::size_t rows = 0;      ///< Of op(A) and C.
  std::size_t columns = 0;   ///< Of op(B) and C.
  std::size_t inner = 0;     ///< Columns of op(A), rows of op(B).
  bool transpose_a = false;  ///< A is stored as (inner, rows), otherwise (rows, inner).
  bool transpose_b = false;  ///< B is stored as (columns, inner), otherwise (inner, columns).
  std::size_t lda = 0;       ///< In values.
  std::size_t ldb = 0;
  std::size_t ldc = 0;
  std::size_t count = 1;
  std::size_t stride_a = 0;  ///< Values from one matrix to the next.
  std::size_t stride_b = 0;
  std::size_t stride_c = 0;
  bool tf32 = false;  ///< CUDA, floats: the products may round to 10 bits of mantissa first (tensor cores).
};

enum class MatmulActivation : std::uint8_t { kNone, kRelu, kGelu };

/// Empty spans mean that the part is not needed. C is the result's type. `saved` and `gradient_at` have C's leading
/// dimension and stride.
template <class C>
struct MatmulEpilogue {
  float alpha = 1;
  float beta = 0;  ///< 0: C is not read.
  MatmulActivation activation = MatmulActivation::kNone;
  device::Span<const C> bias;         ///< (columns)
  device::Span<C> saved;              ///< (count, rows, columns): V; not C itself
  device::Span<const C> gradient_at;  ///< (count, rows, columns): backward. For ReLU, its result will do.
  device::Span<C> sums;               ///< (columns): sums of the result's columns; one matrix only
  device::Span<C> b_sums;             ///< (columns): sums of op(B)'s columns; one matrix only
  bool adds_sums = false;             ///< Adds to both instead of setting them.
};

/// Bytes of workspace that suffice for the shape on this device, for any type and epilogue; aligned to 256 bytes, as
/// buffers are.
[[nodiscard]] std::size_t matmul_workspace_bytes(const MatmulShape& shape, device::Device device);

/// a (count, rows, inner), b (count, inner, columns) as stored -> c (count, rows, columns)
template <class T, class C>
struct Matmul {
  device::Span<const T> a{}, b{};
  device::Span<C> c{};
  MatmulShape shape{};
  MatmulEpilogue<C> epilogue{};
  device::Span<std::byte> workspace{};
};
DUNNOCK_KERNEL_2(Matmul);

}  // namespace dunnock::kernels
