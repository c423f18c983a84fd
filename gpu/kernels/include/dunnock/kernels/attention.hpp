// Attention, forward and backward, without the matrix of tokens x tokens in memory.
//
//   s = scale * q k^T,   p = softmax of the rows of s,   o = p v,   lse = log of the sum of exp of the row of s
//   causal: query i sees keys 0 .. i + key_tokens - query_tokens: the queries are the last rows of the keys' sequence
//   grouped queries: head h of q reads head h / (heads / kv_heads) of k and v
//
// Backward, with delta = sum over d of do * o:
//   dv = p^T do,   dp = do v^T,   ds = p * (dp - delta),   dq = scale * ds k,   dk = scale * ds^T q
//
// For a row that sees no key, o and its gradients are 0 and lse is -infinity. T is float or Bf16; sums are floats, in
// an order that the shape and the device decide, so each run gives the same bits. On CUDA, products of Bf16 take p and
// ds rounded to Bf16. Nothing allocates. Spans that do not fit the shape are programmer errors. Source: Dao 2023,
// FlashAttention-2 (arXiv 2307.08691). We differ: two backward kernels, so that no sum is atomic.
#pragma once

#include <cstddef>

#include "dunnock/device/bf16.hpp"
#include "dunnock/device/memory.hpp"
#include "dunnock/kernels/heads_view.hpp"
#include "dunnock/kernels/kernel.hpp"

namespace dunnock::kernels {

struct AttentionShape {
  std::size_t batch = 0;
  std::size_t query_tokens = 0;
  std::size_t key_tokens = 0;
  std::size_t heads = 0;     ///< of q and o; a multiple of kv_heads
  std::size_t kv_heads = 0;  ///< > 0, of k and v
  std::size_t head_dim = 0;  ///< 1 .. 256
  bool causal = true;
  float scale = 0;  ///< >= 0; 0: 1 / sqrt(head_dim)
};

template <class T>
struct AttentionInputs {
  HeadsView<const T> q;  // (batch, query_tokens, heads, head_dim)
  HeadsView<const T> k;  // (batch, key_tokens, kv_heads, head_dim)
  HeadsView<const T> v;  // (batch, key_tokens, kv_heads, head_dim)
};

/// The results of the forward pass, and their gradient.
template <class T>
struct AttentionResults {
  HeadsView<const T> o;           // (batch, query_tokens, heads, head_dim)
  HeadsView<const T> o_grad;      // (batch, query_tokens, heads, head_dim)
  device::Span<const float> lse;  // (batch, heads, query_tokens)
};

/// Set, not added to. They may be parts of one packed gradient, and must not overlap what is read.
template <class T>
struct AttentionGradients {
  HeadsView<T> q;  // (batch, query_tokens, heads, head_dim)
  HeadsView<T> k;  // (batch, key_tokens, kv_heads, head_dim)
  HeadsView<T> v;  // (batch, key_tokens, kv_heads, head_dim)
};

/// -> o (batch, query_tokens, heads, head_dim); lse (batch, heads, query_tokens), or empty if not needed.
/// `o` must not overlap the inputs.
template <class T>
struct Attention {
  AttentionInputs<T> in{};
  HeadsView<T> o{};
  device::Span<float> lse{};
  AttentionShape shape{};
};
DUNNOCK_KERNEL(Attention);

/// Floats of workspace that the backward pass needs on this device.
[[nodiscard]] std::size_t attention_backward_workspace(const AttentionShape& shape, device::Device device);
template <class T>
struct AttentionBackward {
  AttentionInputs<T> in{};
  AttentionResults<T> results{};
  AttentionGradients<T> gradients{};
  AttentionShape shape{};
  device::Span<float> workspace{};
};
DUNNOCK_KERNEL(AttentionBackward);

}  // namespace dunnock::kernels
