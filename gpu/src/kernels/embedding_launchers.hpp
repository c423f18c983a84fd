// The launchers of src/cuda/embedding.cu.
#pragma once

#include "dunnock/gpu/kernels/embedding.hpp"
#include "kernels/dispatch.hpp"

namespace dunnock::gpu::detail::DUNNOCK_KERNELS {

template <class T>
void embedding(DeviceSpan<const T> table, DeviceSpan<const T> positions, DeviceSpan<const std::int32_t> tokens,
               DeviceSpan<T> y, const EmbeddingShape& shape, Stream& stream);
/// Needs no workspace.
template <class T, class G>
void embedding_backward(DeviceSpan<const T> dy, DeviceSpan<const std::int32_t> tokens, DeviceSpan<G> dtable, bool adds,
                        const EmbeddingShape& shape, DeviceSpan<std::uint32_t> workspace, Stream& stream);

}  // namespace dunnock::gpu::detail::DUNNOCK_KERNELS

/// Of the CPU's form, CUDA's and the twins alike.
#define DUNNOCK_INSTANTIATE_EMBEDDING(T)                                                                              \
  template void embedding<T>(DeviceSpan<const T>, DeviceSpan<const T>, DeviceSpan<const std::int32_t>, DeviceSpan<T>, \
                             const EmbeddingShape&, Stream&);
#define DUNNOCK_INSTANTIATE_EMBEDDING_BACKWARD(T, G)                                                               \
  template void embedding_backward<T, G>(DeviceSpan<const T>, DeviceSpan<const std::int32_t>, DeviceSpan<G>, bool, \
                                         const EmbeddingShape&, DeviceSpan<std::uint32_t>, Stream&);
#define DUNNOCK_INSTANTIATE_EMBEDDINGS                 \
  DUNNOCK_INSTANTIATE_EMBEDDING(float)                 \
  DUNNOCK_INSTANTIATE_EMBEDDING(Bf16)                  \
  DUNNOCK_INSTANTIATE_EMBEDDING_BACKWARD(float, float) \
  DUNNOCK_INSTANTIATE_EMBEDDING_BACKWARD(Bf16, Bf16)   \
  DUNNOCK_INSTANTIATE_EMBEDDING_BACKWARD(Bf16, float)
