// A checked matrix product on its way to a backend: the shape with nothing left to guess, and the spans as pointers.
#pragma once

#include <cstddef>

#include "dunnock/kernels/matmul.hpp"

namespace dunnock::kernels::detail {

/// With the leading dimensions and strides that 0 stands for.
[[nodiscard]] inline MatmulShape completed(MatmulShape shape) noexcept {
  const auto set = [](std::size_t& value, std::size_t usual) {
    if (value == 0) value = usual;
  };
  set(shape.lda, shape.transpose_a ? shape.rows : shape.inner);
  set(shape.ldb, shape.transpose_b ? shape.inner : shape.columns);
  set(shape.ldc, shape.columns);
  set(shape.stride_a, (shape.transpose_a ? shape.inner : shape.rows) * shape.lda);
  set(shape.stride_b, (shape.transpose_b ? shape.columns : shape.inner) * shape.ldb);
  set(shape.stride_c, shape.rows * shape.ldc);
  return shape;
}

template <class T, class C>
struct MatmulCall {
  const T* a = nullptr;
  const T* b = nullptr;
  C* c = nullptr;
  MatmulShape shape;  // completed
  MatmulEpilogue<C> epilogue;
  device::Span<std::byte> workspace;
};

/// Spans that are empty become null, whatever address they had.
template <class T, class C>
[[nodiscard]] MatmulCall<T, C> matmul_call(const Matmul<T, C>& call) noexcept {
  MatmulEpilogue<C> epilogue = call.epilogue;
  const auto clear = [](auto& span) {
    if (span.empty()) span = {};
  };
  clear(epilogue.bias);
  clear(epilogue.saved);
  clear(epilogue.gradient_at);
  clear(epilogue.sums);
  clear(epilogue.b_sums);
  return {call.a.device_data(), call.b.device_data(), call.c.device_data(), completed(call.shape), epilogue,
          call.workspace};
}

// ----- CPU ----------------------------------------------------------------------------------------------------------

/// What the processor can do; a lower one can be asked for, to test it.
enum class MatmulIsa : std::uint8_t { kBase, kAvx512, kAvx512Bf16 };
[[nodiscard]] MatmulIsa best_matmul_isa() noexcept;

/// What computes the product on the CPU. kBest: the one that was measured to be faster, by shape.
enum class MatmulMaker : std::uint8_t { kBest, kOwn, kOneDnn };

/// On the calling thread and its OpenMP team. Errors: Device, what oneDNN failed with.
template <class T, class C>
[[nodiscard]] Status matmul_on_cpu(const MatmulCall<T, C>& call, MatmulMaker maker = MatmulMaker::kBest,
                                   MatmulIsa isa = best_matmul_isa());

/// The own kernels, and all of the epilogue but the sums.
template <class T, class C>
void own_matmul(const MatmulCall<T, C>& call, MatmulIsa isa);
[[nodiscard]] std::size_t own_matmul_workspace_bytes(const MatmulShape& shape, unsigned threads) noexcept;

/// The part of the epilogue behind V = alpha * op(A) * op(B) + beta * C + bias, when V lies in `v`, which has C's
/// layout and may be C.
template <class T, class C>
void finish_matmul(const MatmulCall<T, C>& call, const C* v, MatmulIsa isa);

/// Whether oneDNN makes V of this call. Not without an inner dimension, nor with both a bias and an alpha.
template <class T, class C>
[[nodiscard]] bool onednn_makes(const MatmulCall<T, C>& call) noexcept;
/// All of the epilogue but the sums. Errors: Device.
template <class T, class C>
[[nodiscard]] Status onednn_matmul(const MatmulCall<T, C>& call, MatmulIsa isa);

}  // namespace dunnock::kernels::detail
