#include "dunnock/kernels/paged_attention.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "reference/values.hpp"

namespace dunnock::kernels::reference {
namespace {

/// Where the cache has value 0 of a head of a token of a sequence.
std::size_t place(device::Span<const std::int32_t> tables, std::size_t sequence, std::size_t token, std::size_t head,
                  const PagedShape& shape) {
  const std::size_t entry = sequence * shape.blocks_a_sequence + token / shape.block_tokens;
  const auto block = static_cast<std::size_t>(tables.device_data()[entry]);
  return ((block * shape.kv_heads + head) * shape.block_tokens + token % shape.block_tokens) * shape.head_dim;
}

template <class T, class C>
void attend(HeadsView<const T> q, PagedCache<const C> cache, const PagedSequences& sequences, device::Span<T> o,
            const PagedShape& shape) {
  const double scale = shape.scale != 0 ? double(shape.scale) : 1 / std::sqrt(double(shape.head_dim));
  for (std::size_t s = 0; s < shape.sequences; ++s) {
    const auto length = static_cast<std::size_t>(sequences.lengths.device_data()[s]);
    for (std::size_t h = 0; h < shape.heads; ++h) {
      const std::size_t kv_head = h / (shape.heads / shape.kv_heads);
      std::vector<double> logits(length);
      double max = -std::numeric_limits<double>::infinity();
      for (std::size_t t = 0; t < length; ++t) {
        const std::size_t row = place(sequences.tables, s, t, kv_head, shape);
        for (std::size_t d = 0; d < shape.head_dim; ++d)
          logits[t] += scale * at(q.values, s * q.token_stride + h * q.head_stride + d) * at(cache.k, row + d);
        max = std::max(max, logits[t]);
      }
      double sum = 0;
      for (const double logit : logits) sum += std::exp(logit - max);
      for (std::size_t d = 0; d < shape.head_dim; ++d) {
        double value = 0;
        for (std::size_t t = 0; t < length; ++t)
          value += std::exp(logits[t] - max) / sum * at(cache.v, place(sequences.tables, s, t, kv_head, shape) + d);
        set(o, (s * shape.heads + h) * shape.head_dim + d, value);
      }
    }
  }
}

template <class T, class C>
void append(const NewKeysValues<T>& tokens, PagedCache<C> cache, const PagedShape& shape) {
  for (std::size_t i = 0; i < tokens.tokens; ++i) {
    const std::int32_t position = tokens.positions.device_data()[i];
    if (position < 0) continue;
    const std::size_t sequence =
        tokens.sequence_of.empty() ? i : static_cast<std::size_t>(tokens.sequence_of.device_data()[i]);
    for (std::size_t h = 0; h < shape.kv_heads; ++h) {
      const std::size_t row = place(tokens.tables, sequence, static_cast<std::size_t>(position), h, shape);
      for (std::size_t d = 0; d < shape.head_dim; ++d) {
        set(cache.k, row + d, at(tokens.k.values, i * tokens.k.token_stride + h * tokens.k.head_stride + d));
        set(cache.v, row + d, at(tokens.v.values, i * tokens.v.token_stride + h * tokens.v.head_stride + d));
      }
    }
  }
}

}  // namespace

template <class T, class C>
void run(const PagedAttention<T, C>& call, device::Stream& stream) {
  stream.run("paged attention",
             [=] { return attend<T, C>(call.q, call.cache, call.sequences, call.o, call.shape), Status{}; });
}
template <class T, class C>
void run(const AppendToPagedCache<T, C>& call, device::Stream& stream) {
  stream.run("append to paged cache", [=] { return append<T, C>(call.tokens, call.cache, call.shape), Status{}; });
}

DUNNOCK_INSTANTIATE_KERNEL_NARROWING(PagedAttention);
DUNNOCK_INSTANTIATE_KERNEL_NARROWING(AppendToPagedCache);

}  // namespace dunnock::kernels::reference
