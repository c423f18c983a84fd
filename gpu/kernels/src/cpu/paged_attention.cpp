// The CPU's decoding. Floor: each byte of the sequences' keys and values once from memory. Dimensions lie in the lanes:
// 16 tokens' products with a query are 16 registers, which are summed up crosswise to one register of 16 logits; then o
// += p v, a register of dimensions at a time. The next tokens' rows are asked for while these are computed, since a
// cache's blocks are small and lie anywhere. All query heads of a group use the rows while they are in the L1 cache.
#include "dunnock/kernels/paged_attention.hpp"

#include <bit>
#include <cmath>
#include <limits>

#include "checks.hpp"
#include "cpu/wide_floats.hpp"
#include "paged_attention_parts.hpp"
#include "parallel.hpp"

namespace dunnock::kernels {
namespace {

using namespace detail;

constexpr std::size_t kTokens = kUnitTokens;  // at a time
constexpr std::size_t kDimMax = 256;
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
/// Parts of each head of keys: fixed, so that sums do not depend on the number of threads.
constexpr std::size_t kParts = 16;

template <class T, class C>
struct PagedWork {
  HeadsView<const T> q;
  PagedCache<const C> cache;
  PagedSequences sequences;
  Partials partials;
  PagedShape shape;
  std::size_t units;
  std::size_t first, last;  // of the parts of all heads of keys: (kv_heads, kParts)
};

/// One piece: tokens first .. last - 1 of a sequence.
struct Piece {
  std::size_t sequence, kv_head, first, last, number;
};

template <class C>
DUNNOCK_INLINE void prefetch_row(const C* row, std::size_t dim) {
  for (std::size_t byte = 0; byte < dim * sizeof(C); byte += 64)
    __builtin_prefetch(reinterpret_cast<const char*>(row) + byte);
}

template <unsigned kLanes, class T, class C>
DUNNOCK_INLINE void attend_piece(const PagedWork<T, C>& work, const Piece& piece) {
  using W = Wide<kLanes>;
  using Float = typename W::Float;
  static_assert(kTokens % kLanes == 0);
  const PagedShape& shape = work.shape;
  const std::size_t dim = shape.head_dim;
  const std::size_t padded = (dim + kLanes - 1) / kLanes * kLanes;
  const std::size_t group = shape.heads / shape.kv_heads;
  const float scale = attention_scale(shape.scale, dim);
  const std::int32_t* const table = work.sequences.tables.device_data() + piece.sequence * shape.blocks_a_sequence;
  const auto shift = static_cast<unsigned>(std::countr_zero(shape.block_tokens));
  // Value 0 of the rows of some tokens; past the last token, that of the last.
  const auto rows_of = [&](std::size_t first, std::size_t(&rows)[kTokens]) {
    for (std::size_t i = 0; i < kTokens; ++i) {
      const std::size_t token = std::min(first + i, piece.last - 1);
      const auto block = static_cast<std::size_t>(table[token >> shift]);
      rows[i] = (((block * shape.kv_heads + piece.kv_head) << shift) + (token & (shape.block_tokens - 1))) * dim;
    }
  };
  const C* const keys = work.cache.k.device_data();
  const C* const values = work.cache.v.device_data();
  // Eight heads at a time, as many as the stack's arrays have room for.
  constexpr std::size_t kHeads = 8;
  for (std::size_t first_head = 0; first_head < group; first_head += kHeads) {
    const std::size_t heads = std::min(kHeads, group - first_head);
    alignas(64) float q[kHeads * kDimMax];
    alignas(64) float o[kHeads * kDimMax] = {};
    float max[kHeads];
    float sum[kHeads] = {};
    for (std::size_t h = 0; h < heads; ++h) {
      max[h] = kMinusInfinity;
      const std::size_t head = piece.kv_head * group + first_head + h;
      const T* const row =
          work.q.values.device_data() + piece.sequence * work.q.token_stride + head * work.q.head_stride;
      for (std::size_t d = 0; d < padded; ++d) q[h * padded + d] = d < dim ? static_cast<float>(row[d]) * scale : 0;
    }
    std::size_t rows[kTokens];
    std::size_t next[kTokens];
    rows_of(piece.first, rows);
    for (std::size_t token = piece.first; token < piece.last; token += kTokens) {
      const std::size_t count = std::min(kTokens, piece.last - token);
      const bool goes_on = token + kTokens < piece.last;
      if (goes_on) rows_of(token + kTokens, next);
      for (std::size_t i = 0; goes_on && i < kTokens; ++i) {
        prefetch_row(keys + next[i], dim);
        prefetch_row(values + next[i], dim);
      }
      for (std::size_t h = 0; h < heads; ++h) {
        alignas(64) float p[kTokens];
        for (std::size_t first = 0; first < kTokens; first += kLanes) {
          Float products[kLanes];
          for (unsigned i = 0; i < kLanes; ++i) products[i] = Float{};
          for (std::size_t d = 0; d < dim; d += kLanes) {
            const Float query = W::load(q + h * padded + d);
            if (d + kLanes <= dim) {
#pragma GCC unroll 16
              for (unsigned i = 0; i < kLanes; ++i) products[i] += query * W::load(keys + rows[first + i] + d);
            } else {
              for (unsigned i = 0; i < kLanes; ++i)
                products[i] += query * W::load_some(keys + rows[first + i] + d, dim - d);
            }
          }
          W::store(p + first, W::sums_of_rows(products));
        }
        for (std::size_t i = count; i < kTokens; ++i) p[i] = kMinusInfinity;
        Float highest = Float{} + max[h];
        for (std::size_t first = 0; first < kTokens; first += kLanes) highest = W::max(highest, W::load(p + first));
        const float now = W::max_of(highest);
        Float total{};
        for (std::size_t first = 0; first < kTokens; first += kLanes) {
          const Float probability = W::exp(W::load(p + first) - now);
          total += probability;
          W::store(p + first, probability);
        }
        const float factor = now == max[h] ? 1.0F : std::exp(max[h] - now);
        max[h] = now;
        sum[h] = sum[h] * factor + W::sum_of(total);
        for (std::size_t d = 0; d < dim; d += kLanes) {
          float* const to = o + h * padded + d;
          Float even = W::load(to) * factor;
          Float odd{};
          if (d + kLanes <= dim) {
#pragma GCC unroll 8
            for (std::size_t i = 0; i < kTokens; i += 2) {
              even += W::load(values + rows[i] + d) * p[i];
              odd += W::load(values + rows[i + 1] + d) * p[i + 1];
            }
          } else {
            for (std::size_t i = 0; i < kTokens; ++i) even += W::load_some(values + rows[i] + d, dim - d) * p[i];
          }
          W::store(to, even + odd);
        }
      }
      std::copy_n(next, kTokens, rows);
    }
    for (std::size_t h = 0; h < heads; ++h) {
      const std::size_t row = piece.number * shape.heads + piece.kv_head * group + first_head + h;
      std::copy_n(o + h * padded, dim, work.partials.sums + row * dim);
      work.partials.stats[row * 2] = max[h];
      work.partials.stats[row * 2 + 1] = sum[h];
    }
  }
}

template <unsigned kLanes, class T, class C>
DUNNOCK_INLINE void attend_parts(const PagedWork<T, C>& work) {
  const std::int32_t* const lengths = work.sequences.lengths.device_data();
  for (std::size_t item = work.first; item < work.last; ++item) {
    const std::size_t parts = parts_used(kParts, work.units);
    const std::size_t part = item % kParts;
    if (part >= parts) continue;
    const std::size_t first = first_unit(part, parts, work.units);
    const std::size_t last = first_unit(part + 1, parts, work.units);
    std::size_t before = 0;
    for (std::size_t s = 0; s < work.shape.sequences && before < last; ++s) {
      const std::size_t end = before + units_of_length(lengths[s]);
      if (end > std::max(first, before)) {
        const std::size_t from = std::max(first, before) - before;
        const std::size_t to = end <= last ? static_cast<std::size_t>(lengths[s]) : (last - before) * kUnitTokens;
        attend_piece<kLanes>(work, Piece{s, item / kParts, from * kUnitTokens, to, part + s});
      }
      before = end;
    }
  }
}

template <class T, class C>
DUNNOCK_FOR_AVX512 void attend_512(const PagedWork<T, C>& work) {
  attend_parts<16>(work);
}
template <class T, class C>
__attribute__((noinline)) void attend_256(const PagedWork<T, C>& work) {
  attend_parts<8>(work);
}

template <class T, class C>
void merge(const PagedWork<T, C>& work, T* o) {
  const PagedShape& shape = work.shape;
  std::size_t before = 0;
  for (std::size_t s = 0; s < shape.sequences; ++s) {
    const std::size_t mine = units_of_length(work.sequences.lengths.device_data()[s]);
    for (std::size_t h = 0; h < shape.heads; ++h) {
      T* const row = o + (s * shape.heads + h) * shape.head_dim;
      float sums[kDimMax] = {};
      float total = 0;
      if (mine > 0) {
        const std::size_t parts = parts_used(kParts, work.units);
        const std::size_t first = part_of_unit(before, parts, work.units) + s;
        const std::size_t last = part_of_unit(before + mine - 1, parts, work.units) + s;
        float highest = kMinusInfinity;
        for (std::size_t piece = first; piece <= last; ++piece)
          highest = std::max(highest, work.partials.stats[(piece * shape.heads + h) * 2]);
        for (std::size_t piece = first; piece <= last; ++piece) {
          const std::size_t at = piece * shape.heads + h;
          const float factor = std::exp(work.partials.stats[at * 2] - highest);
          total += work.partials.stats[at * 2 + 1] * factor;
          for (std::size_t d = 0; d < shape.head_dim; ++d)
            sums[d] += work.partials.sums[at * shape.head_dim + d] * factor;
        }
      }
      const float share = total == 0 ? 0 : 1 / total;
      for (std::size_t d = 0; d < shape.head_dim; ++d) row[d] = T(sums[d] * share);
    }
    before += mine;
  }
}

template <class T, class C>
void append_rows(const NewKeysValues<T>& tokens, const PagedCache<C>& cache, const PagedShape& shape, std::size_t first,
                 std::size_t last) {
  for (std::size_t i = first; i < last; ++i) {
    const std::int32_t position = tokens.positions.device_data()[i];
    if (position < 0) continue;
    const auto at = static_cast<std::size_t>(position);
    const std::size_t sequence =
        tokens.sequence_of.empty() ? i : static_cast<std::size_t>(tokens.sequence_of.device_data()[i]);
    const auto block = static_cast<std::size_t>(
        tokens.tables.device_data()[sequence * shape.blocks_a_sequence + at / shape.block_tokens]);
    for (std::size_t h = 0; h < shape.kv_heads; ++h) {
      const std::size_t to =
          ((block * shape.kv_heads + h) * shape.block_tokens + at % shape.block_tokens) * shape.head_dim;
      const T* const k = tokens.k.values.device_data() + i * tokens.k.token_stride + h * tokens.k.head_stride;
      const T* const v = tokens.v.values.device_data() + i * tokens.v.token_stride + h * tokens.v.head_stride;
      for (std::size_t d = 0; d < shape.head_dim; ++d) {
        cache.k.device_data()[to + d] = C(static_cast<float>(k[d]));
        cache.v.device_data()[to + d] = C(static_cast<float>(v[d]));
      }
    }
  }
}

void check_shape(const PagedShape& shape) {
  DUNNOCK_CHECK(shape.head_dim >= 1 && shape.head_dim <= kDimMax, "a head has 1 to 256 dimensions");
  DUNNOCK_CHECK(shape.scale >= 0, "a scale is not negative");
  DUNNOCK_CHECK(shape.kv_heads > 0, "there is at least one head of keys");
  DUNNOCK_CHECK(shape.heads % shape.kv_heads == 0, "the heads of queries are a multiple of the heads of keys");
  DUNNOCK_CHECK(std::has_single_bit(shape.block_tokens), "a block has a power of two of tokens");
}

template <class T>
void check_view(const HeadsView<T>& view, std::size_t tokens, std::size_t heads, std::size_t head_dim) {
  if (tokens * heads == 0) return;
  const std::size_t end = (tokens - 1) * view.token_stride + (heads - 1) * view.head_stride + head_dim;
  DUNNOCK_CHECK(end <= view.values.size(), "views are within their memory");
}

template <class C>
void check_cache(const PagedCache<C>& cache, const PagedShape& shape) {
  check_shape(shape);
  check_sizes(shape.blocks * shape.kv_heads * shape.block_tokens * shape.head_dim, cache.k, cache.v);
}

}  // namespace

std::size_t paged_attention_workspace(const PagedShape& shape, [[maybe_unused]] device::Device device) {
  check_shape(shape);
#if DUNNOCK_HAS_CUDA
  if (device.backend() == device::Backend::kCuda)
    return detail::cuda::paged_attention_workspace(shape, device.info().processors);
#endif
  return partial_floats(shape, kParts);
}

template <class T, class C>
void run(const PagedAttention<T, C>& call, device::Stream& stream) {
  check_cache(call.cache, call.shape);
  check_view(call.q, call.shape.sequences, call.shape.heads, call.shape.head_dim);
  check_sizes(call.shape.sequences * call.shape.heads * call.shape.head_dim, call.o);
  check_sizes(call.shape.sequences * call.shape.blocks_a_sequence, call.sequences.tables);
  check_sizes(call.shape.sequences, call.sequences.lengths);
  DUNNOCK_CHECK(call.workspace.size() >= paged_attention_workspace(call.shape, stream.device()),
                "the workspace is large enough");
  if (call.shape.sequences * call.shape.heads == 0) return;
  if (ran_on_cuda(call, stream)) return;
  stream.run("paged attention", [=] {
    std::size_t units = 0;
    for (std::size_t s = 0; s < call.shape.sequences; ++s)
      units += units_of_length(call.sequences.lengths.device_data()[s]);
    const PagedWork<T, C> all{
        call.q, call.cache, call.sequences, partials_in(call.workspace, call.shape, kParts), call.shape, units, 0, 0};
    const std::size_t part_work =
        units * kUnitTokens / kParts * call.shape.head_dim * (call.shape.heads / call.shape.kv_heads);
    device::parallel_for(call.shape.kv_heads * kParts, device::kParallelGrain / (part_work + 1) + 1,
                         [&](std::size_t first, std::size_t last) {
                           PagedWork<T, C> work = all;
                           work.first = first;
                           work.last = last;
                           has_avx512() ? attend_512(work) : attend_256(work);
                         });
    merge(all, call.o.device_data());
    return Status{};
  });
}

template <class T, class C>
void run(const AppendToPagedCache<T, C>& call, device::Stream& stream) {
  check_cache(call.cache, call.shape);
  check_view(call.tokens.k, call.tokens.tokens, call.shape.kv_heads, call.shape.head_dim);
  check_view(call.tokens.v, call.tokens.tokens, call.shape.kv_heads, call.shape.head_dim);
  check_sizes(call.tokens.tokens, call.tokens.positions);
  check_optional(call.tokens.tokens, call.tokens.sequence_of);
  check_sizes(call.shape.sequences * call.shape.blocks_a_sequence, call.tokens.tables);
  if (call.tokens.tokens == 0) return;
  if (ran_on_cuda(call, stream)) return;
  stream.run("append to paged cache", [=] {
    device::parallel_for(call.tokens.tokens, device::kParallelGrain / (call.shape.kv_heads * call.shape.head_dim) + 1,
                         [&](std::size_t first, std::size_t last) {
                           append_rows<T, C>(call.tokens, call.cache, call.shape, first, last);
                         });
    return Status{};
  });
}

DUNNOCK_INSTANTIATE_KERNEL_NARROWING(PagedAttention);
DUNNOCK_INSTANTIATE_KERNEL_NARROWING(AppendToPagedCache);

}  // namespace dunnock::kernels
