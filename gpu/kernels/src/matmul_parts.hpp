// The implementation of a matrix product on CUDA: src/cuda/cublaslt_matmul.cpp calls cuBLASLt,
// src/cuda/matmul_finish.cu has the kernels for the parts of an epilogue that it does not fuse.
#pragma once

#include "dispatch.hpp"
#include "matmul_call.hpp"

namespace dunnock::kernels::detail::DUNNOCK_KERNELS {

[[nodiscard]] std::size_t matmul_workspace_bytes(const MatmulShape& shape, unsigned compute_capability) noexcept;

/// Parts of an epilogue, of values that the product has left in C.
template <class C>
struct MatmulFinish {
  const C* v = nullptr;  // (count, rows, columns) in C's layout; may be c
  C* c = nullptr;
  C* saved = nullptr;              // or null
  const C* gradient_at = nullptr;  // or null
  const C* bias = nullptr;         // or null
  float scale = 1;                 // of v
  float beta = 0;                  // of what c has, which is not v then
  MatmulActivation activation = MatmulActivation::kNone;
};
/// c = activation(scale * v + beta * c + bias), or that times the derivative. `shape` is completed.
template <class C>
void matmul_finish(const MatmulFinish<C>& finish, const MatmulShape& shape, device::Stream& stream);

/// The sums of a matrix's columns: as stored, or of its transpose, whose rows are stored.
template <class T, class C>
struct StoredColumnSums {
  const T* from = nullptr;
  std::size_t rows = 0;
  std::size_t columns = 0;
  std::size_t ld = 0;
  bool transposed = false;
  C* sums = nullptr;  // (columns)
  bool adds = false;
};
[[nodiscard]] std::size_t column_sums_workspace_bytes(std::size_t columns) noexcept;
/// In the same order in each run. `workspace`: column_sums_workspace_bytes().
template <class T, class C>
void column_sums(const StoredColumnSums<T, C>& what, float* workspace, device::Stream& stream);

}  // namespace dunnock::kernels::detail::DUNNOCK_KERNELS
