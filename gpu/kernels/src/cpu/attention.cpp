// The CPU's attention: queries lie in the lanes. A block of 32 queries is transposed once (head_dim, 32); then each
// product has the queries, or the head's dimensions, side by side in registers and broadcasts a value of the other
// matrix:
//
//   s^T (keys, 32)  = k q^T         p^T = exp(s^T - max): the maximum and the sum of a query stay in its lane
//   o^T (dim, 32)   = v^T p^T       backward: dp^T = v do^T,  dq^T = k^T ds^T,  dv = p^T do,  dk = ds^T q
//
// k and v are read where they lie (Bf16: a block of them is converted), and nothing is padded but the queries. Two
// products forward and five backward, so the floor is 4 (10) * tokens^2 / 2 * heads * head_dim operations if causal.
#include "dunnock/kernels/attention.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "attention_parts.hpp"
#include "checks.hpp"
#include "cpu/wide_floats.hpp"
#include "parallel.hpp"

namespace dunnock::kernels {
namespace {

using detail::attention_scale;
using detail::check_optional;
using detail::has_avx512;
using detail::Wide;
using device::parallel_for;

constexpr std::size_t kQueries = 32;  // a block of them: two registers of 16
constexpr std::size_t kKeys = 64;     // a block of them: s^T and p^T are 8 KiB each, which the L1 cache holds
constexpr std::size_t kDimMax = 256;
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// ----- products of blocks -------------------------------------------------------------------------------------------

/// c (rows, columns) = a (rows, depth) * b (depth, columns), plus what c was, times a factor a column if there are any.
struct Product {
  const float* a;
  std::size_t a_row = 1, a_column = 1;  // strides
  const float* b;
  std::size_t b_row = kQueries;
  float* c;
  std::size_t c_row = kQueries;
  std::size_t rows, columns = kQueries, depth;  // columns: a multiple of 16
  bool adds = false;
  const float* factors = nullptr;  // (columns), or null
};

/// kRows x kWides accumulators, all of which stay in registers.
template <unsigned kLanes, unsigned kRows, unsigned kWides>
DUNNOCK_INLINE void product_tile(const Product& p, std::size_t row, std::size_t column) {
  using W = Wide<kLanes>;
  typename W::Float sums[kRows][kWides];
  float* const c = p.c + row * p.c_row + column;
#pragma GCC unroll 8
  for (unsigned i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (unsigned w = 0; w < kWides; ++w) {
      sums[i][w] = p.adds ? W::load(c + i * p.c_row + w * kLanes) : typename W::Float{};
      if (p.factors != nullptr) sums[i][w] *= W::load(p.factors + column + w * kLanes);
    }
  }
  const float* a = p.a + row * p.a_row;
  const float* b = p.b + column;
  for (std::size_t k = 0; k < p.depth; ++k, a += p.a_column, b += p.b_row) {
    typename W::Float right[kWides];
#pragma GCC unroll 2
    for (unsigned w = 0; w < kWides; ++w) right[w] = W::load(b + w * kLanes);
#pragma GCC unroll 8
    for (unsigned i = 0; i < kRows; ++i) {
      const float left = a[i * p.a_row];
#pragma GCC unroll 2
      for (unsigned w = 0; w < kWides; ++w) sums[i][w] += right[w] * left;
    }
  }
#pragma GCC unroll 8
  for (unsigned i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (unsigned w = 0; w < kWides; ++w) W::store(c + i * p.c_row + w * kLanes, sums[i][w]);
  }
}

template <unsigned kLanes, unsigned kWides>
DUNNOCK_INLINE void product_columns(const Product& p, std::size_t column) {
  constexpr unsigned kRows = kLanes == 16 ? 8 : 4;  // of 32 (16) registers
  std::size_t row = 0;
  for (; row + kRows <= p.rows; row += kRows) product_tile<kLanes, kRows, kWides>(p, row, column);
  if (kRows > 4 && row + 4 <= p.rows) {
    product_tile<kLanes, 4, kWides>(p, row, column);
    row += 4;
  }
  if (row + 2 <= p.rows) {
    product_tile<kLanes, 2, kWides>(p, row, column);
    row += 2;
  }
  if (row < p.rows) product_tile<kLanes, 1, kWides>(p, row, column);
}

template <unsigned kLanes>
DUNNOCK_INLINE void product_all(const Product& p) {
  std::size_t column = 0;
  for (; column + 2 * kLanes <= p.columns; column += 2 * kLanes) product_columns<kLanes, 2>(p, column);
  for (; column < p.columns; column += kLanes) product_columns<kLanes, 1>(p, column);
}

DUNNOCK_FOR_AVX512 void product_512(const Product& p) { product_all<16>(p); }
__attribute__((noinline)) void product_256(const Product& p) { product_all<8>(p); }

template <unsigned kLanes>
DUNNOCK_INLINE void product(const Product& p) {
  if constexpr (kLanes == 16) {
    product_512(p);
  } else {
    product_256(p);
  }
}

// ----- rows in and out ----------------------------------------------------------------------------------------------

/// out (dim, kQueries) = factor * in (rows, dim) transposed; zeros for the rows that are not there.
template <unsigned kLanes, class T>
DUNNOCK_INLINE void transpose_in(const T* in, std::size_t row_stride, std::size_t rows, std::size_t dim, float factor,
                                 float* out) {
  using W = Wide<kLanes>;
  for (std::size_t first = 0; first < kQueries; first += kLanes) {
    const std::size_t count = first < rows ? std::min<std::size_t>(rows - first, kLanes) : 0;
    for (std::size_t d = 0; d < dim; d += kLanes) {
      typename W::Float square[kLanes];
#pragma GCC unroll 16
      for (unsigned i = 0; i < kLanes; ++i)
        square[i] = i < count ? W::load_some(in + (first + i) * row_stride + d, dim - d) * factor : typename W::Float{};
      W::transpose(square);
      const std::size_t valid = std::min<std::size_t>(dim - d, kLanes);
      for (unsigned i = 0; i < valid; ++i) W::store(out + (d + i) * kQueries + first, square[i]);
    }
  }
}

/// out (rows, dim) = in (dim, kQueries) transposed, each row times its factor.
template <unsigned kLanes, class T>
DUNNOCK_INLINE void transpose_out(const float* in, std::size_t rows, std::size_t dim, const float* factors, T* out,
                                  std::size_t row_stride) {
  using W = Wide<kLanes>;
  for (std::size_t first = 0; first < rows; first += kLanes) {
    const std::size_t count = std::min<std::size_t>(rows - first, kLanes);
    for (std::size_t d = 0; d < dim; d += kLanes) {
      typename W::Float square[kLanes];
#pragma GCC unroll 16
      for (unsigned i = 0; i < kLanes; ++i)
        square[i] = d + i < dim ? W::load(in + (d + i) * kQueries + first) : typename W::Float{};
      W::transpose(square);
#pragma GCC unroll 16
      for (unsigned i = 0; i < kLanes; ++i) {
        if (i < count) W::store_some(out + (first + i) * row_stride + d, square[i] * factors[first + i], dim - d);
      }
    }
  }
}

/// Rows of floats: those in memory, or a copy of them in `scratch` (rows, multiple of 16) if they are Bf16.
struct Rows {
  const float* data;
  std::size_t stride;
};
template <unsigned kLanes, class T>
DUNNOCK_INLINE Rows rows_of_floats(const T* in, std::size_t row_stride, std::size_t rows, std::size_t dim,
                                   bool whole_wides, float* scratch) {
  using W = Wide<kLanes>;
  if constexpr (std::is_same_v<T, float>) {
    if (!whole_wides || dim % 16 == 0) return {in, row_stride};
  }
  const std::size_t padded = (dim + 15) / 16 * 16;
  for (std::size_t i = 0; i < rows; ++i) {
    for (std::size_t d = 0; d < padded; d += kLanes)
      W::store(scratch + i * padded + d,
               d < dim ? W::load_some(in + i * row_stride + d, dim - d) : typename W::Float{});
  }
  return {scratch, padded};
}

// ----- what is where ------------------------------------------------------------------------------------------------

std::size_t padded_dim(const AttentionShape& shape) { return (shape.head_dim + 15) / 16 * 16; }
std::size_t query_blocks(const AttentionShape& shape) { return (shape.query_tokens + kQueries - 1) / kQueries; }

/// Keys that queries before `last_query` see.
std::size_t keys_seen(const AttentionShape& shape, std::size_t last_query) {
  if (!shape.causal) return shape.key_tokens;
  const std::size_t end = last_query + shape.key_tokens;
  return end <= shape.query_tokens ? 0 : std::min(shape.key_tokens, end - shape.query_tokens);
}

/// Lanes of s^T that do not see their key become -infinity: lane r sees key j if j <= seen + r.
template <unsigned kLanes>
DUNNOCK_INLINE void hide_unseen(float* s, std::size_t keys, std::ptrdiff_t first_key, std::ptrdiff_t seen) {
  using W = Wide<kLanes>;
  for (std::size_t j = 0; j < keys; ++j) {
    // The last lane that does not see it.
    const auto behind = static_cast<std::int32_t>(
        std::clamp<std::ptrdiff_t>(first_key + static_cast<std::ptrdiff_t>(j) - seen - 1, -1, kQueries));
    if (behind < 0) continue;
    for (unsigned first = 0; first < kQueries; first += kLanes) {
      typename W::Int lane;
      for (unsigned i = 0; i < kLanes; ++i) lane[i] = static_cast<std::int32_t>(first + i);
      float* const at = s + j * kQueries + first;
      W::store(at, lane > behind ? W::load(at) : typename W::Float{} + kMinusInfinity);
    }
  }
}

// ----- forward ------------------------------------------------------------------------------------------------------

template <class T>
struct ForwardWork {
  AttentionInputs<T> in;
  HeadsView<T> o;
  float* lse;
  AttentionShape shape;
  std::size_t first, last;  // of the query blocks of all heads
};

/// Block n of a head's `count`, in an order in which neighbors have the same work together when it is causal.
DUNNOCK_INLINE std::size_t fair_order(std::size_t n, std::size_t count) {
  return n % 2 == 0 ? n / 2 : count - 1 - n / 2;
}

template <unsigned kLanes, class T>
DUNNOCK_INLINE void forward_blocks(const ForwardWork<T>& work) {
  using W = Wide<kLanes>;
  constexpr unsigned kWides = kQueries / kLanes;
  const AttentionShape& shape = work.shape;
  const std::size_t dim = shape.head_dim;
  const std::size_t blocks = query_blocks(shape);
  const float scale = attention_scale(shape.scale, dim);
  alignas(64) float q[kDimMax * kQueries];  // (dim, queries), times scale
  alignas(64) float s[kKeys * kQueries];    // (keys, queries)
  alignas(64) float o[kDimMax * kQueries];  // (dim, queries)
  alignas(64) float converted[std::is_same_v<T, float> ? 1 : kKeys * kDimMax];
  for (std::size_t unit = work.first; unit < work.last; ++unit) {
    const std::size_t b = unit / blocks / shape.heads;
    const std::size_t h = unit / blocks % shape.heads;
    const std::size_t kv_head = h / (shape.heads / shape.kv_heads);
    const std::size_t query = fair_order(unit % blocks, blocks) * kQueries;
    const std::size_t queries = std::min(kQueries, shape.query_tokens - query);
    const HeadsView<const T>& qs = work.in.q;
    transpose_in<kLanes>(qs.values.device_data() + b * qs.batch_stride + query * qs.token_stride + h * qs.head_stride,
                         qs.token_stride, queries, dim, scale, q);
    const T* const k = work.in.k.values.device_data() + b * work.in.k.batch_stride + kv_head * work.in.k.head_stride;
    const T* const v = work.in.v.values.device_data() + b * work.in.v.batch_stride + kv_head * work.in.v.head_stride;
    typename W::Float max[kWides];
    typename W::Float sum[kWides];
    for (unsigned w = 0; w < kWides; ++w) {
      max[w] = typename W::Float{} + kMinusInfinity;
      sum[w] = typename W::Float{};
    }
    const std::size_t keys_end = keys_seen(shape, query + queries);
    const auto seen = static_cast<std::ptrdiff_t>(query + shape.key_tokens - shape.query_tokens);
    for (std::size_t key = 0; key < keys_end; key += kKeys) {
      const std::size_t keys = std::min(kKeys, keys_end - key);
      const Rows k_rows =
          rows_of_floats<kLanes>(k + key * work.in.k.token_stride, work.in.k.token_stride, keys, dim, false, converted);
      product<kLanes>({.a = k_rows.data, .a_row = k_rows.stride, .b = q, .c = s, .rows = keys, .depth = dim});
      if (shape.causal) hide_unseen<kLanes>(s, keys, static_cast<std::ptrdiff_t>(key), seen);
      alignas(64) float factors[kQueries];
      for (unsigned w = 0; w < kWides; ++w) {
        float* const column = s + w * kLanes;
        typename W::Float now[4] = {max[w], max[w], max[w], max[w]};  // Four chains: a comparison takes some cycles.
        std::size_t j = 0;
        for (; j + 4 <= keys; j += 4) {
          for (unsigned c = 0; c < 4; ++c) now[c] = W::max(W::load(column + (j + c) * kQueries), now[c]);
        }
        for (; j < keys; ++j) now[0] = W::max(W::load(column + j * kQueries), now[0]);
        const typename W::Float highest = W::max(W::max(now[0], now[1]), W::max(now[2], now[3]));
        // Where nothing has been seen yet all is -infinity, and exp(-infinity - 0) is 0.
        const typename W::Float from = highest == kMinusInfinity ? typename W::Float{} : highest;
        const typename W::Float factor = W::exp(max[w] - from);
        typename W::Float total = sum[w] * factor;
        for (j = 0; j < keys; ++j) {
          const typename W::Float p = W::exp(W::load(column + j * kQueries) - from);
          total += p;
          W::store(column + j * kQueries, p);
        }
        W::store(factors + w * kLanes, factor);
        max[w] = highest;
        sum[w] = total;
      }
      const Rows v_rows =
          rows_of_floats<kLanes>(v + key * work.in.v.token_stride, work.in.v.token_stride, keys, dim, false, converted);
      product<kLanes>({.a = v_rows.data,
                       .a_column = v_rows.stride,
                       .b = s,
                       .c = o,
                       .rows = dim,
                       .depth = keys,
                       .adds = key != 0,
                       .factors = key != 0 ? factors : nullptr});
    }
    if (keys_end == 0) std::fill_n(o, dim * kQueries, 0.0F);
    alignas(64) float inverse[kQueries];
    alignas(64) float maxima[kQueries];
    alignas(64) float sums[kQueries];
    for (unsigned w = 0; w < kWides; ++w) {
      W::store(inverse + w * kLanes, sum[w] == 0.0F ? typename W::Float{} : 1.0F / sum[w]);
      W::store(maxima + w * kLanes, max[w]);
      W::store(sums + w * kLanes, sum[w]);
    }
    transpose_out<kLanes>(
        o, queries, dim, inverse,
        work.o.values.device_data() + b * work.o.batch_stride + query * work.o.token_stride + h * work.o.head_stride,
        work.o.token_stride);
    for (std::size_t r = 0; work.lse != nullptr && r < queries; ++r)
      work.lse[(b * shape.heads + h) * shape.query_tokens + query + r] = maxima[r] + std::log(sums[r]);
  }
}

template <class T>
DUNNOCK_FOR_AVX512 void forward_512(const ForwardWork<T>& work) {
  forward_blocks<16, T>(work);
}
template <class T>
__attribute__((noinline)) void forward_256(const ForwardWork<T>& work) {
  forward_blocks<8, T>(work);
}

// ----- backward -----------------------------------------------------------------------------------------------------

/// Parts of a head's queries whose gradients of k and v are summed up by themselves, so that few heads keep the
/// processors busy: by the shape alone, so that the sums do not depend on the threads.
std::size_t slices_of(const AttentionShape& shape) {
  constexpr std::size_t kUnits = 8;
  const std::size_t heads = std::max<std::size_t>(1, shape.batch * shape.heads);
  return std::clamp<std::size_t>(kUnits / heads, 1, std::max<std::size_t>(1, query_blocks(shape) / 4));
}
/// Each slice of a head has its own sums, unless it is the only one that goes to its rows of dk and dv.
bool sums_once(const AttentionShape& shape) { return shape.heads == shape.kv_heads && slices_of(shape) == 1; }
std::size_t units_of(const AttentionShape& shape) { return shape.batch * shape.heads * slices_of(shape); }
std::size_t unit_floats(const AttentionShape& shape) { return 2 * shape.key_tokens * padded_dim(shape); }

template <class T>
struct BackwardWork {
  AttentionInputs<T> in;
  AttentionResults<T> results;
  AttentionGradients<T> gradients;
  float* sums;  // (units, 2, key_tokens, padded dim): of dk and of dv
  AttentionShape shape;
  std::size_t first, last;
};

/// Rows first .. last - 1 of dk and dv of a head: its units' sums, in their order.
template <unsigned kLanes, class T>
DUNNOCK_INLINE void write_key_gradients(const BackwardWork<T>& work, std::size_t b, std::size_t kv_head,
                                        const float* sums, std::size_t units, std::size_t first, std::size_t last) {
  using W = Wide<kLanes>;
  const std::size_t padded = padded_dim(work.shape);
  const float scale = attention_scale(work.shape.scale, work.shape.head_dim);
  for (unsigned kind = 0; kind < 2; ++kind) {
    const HeadsView<T>& to = kind == 0 ? work.gradients.k : work.gradients.v;
    T* const rows = to.values.device_data() + b * to.batch_stride + kv_head * to.head_stride;
    for (std::size_t j = first; j < last; ++j) {
      for (std::size_t d = 0; d < work.shape.head_dim; d += kLanes) {
        const float* const from = sums + (kind * work.shape.key_tokens + j) * padded + d;
        typename W::Float sum = W::load(from);
        for (std::size_t u = 1; u < units; ++u) sum += W::load(from + u * unit_floats(work.shape));
        W::store_some(rows + j * to.token_stride + d, kind == 0 ? sum * scale : sum, work.shape.head_dim - d);
      }
    }
  }
}

template <unsigned kLanes, class T>
DUNNOCK_INLINE void backward_units(const BackwardWork<T>& work) {
  using W = Wide<kLanes>;
  constexpr unsigned kWides = kQueries / kLanes;
  const AttentionShape& shape = work.shape;
  const std::size_t dim = shape.head_dim;
  const std::size_t padded = padded_dim(shape);
  const std::size_t slices = slices_of(shape);
  const std::size_t blocks = query_blocks(shape);
  const float scale = attention_scale(shape.scale, dim);
  alignas(64) float q[kDimMax * kQueries];       // (dim, queries), times scale
  alignas(64) float o_grad[kDimMax * kQueries];  // (dim, queries)
  alignas(64) float dq[kDimMax * kQueries];      // (dim, queries)
  alignas(64) float q_copy[kDimMax * kQueries];  // (queries, padded dim), if it can't be used in place
  alignas(64) float o_grad_copy[kDimMax * kQueries];
  alignas(64) float p[kKeys * kQueries];   // (keys, queries)
  alignas(64) float ds[kKeys * kQueries];  // (keys, queries)
  alignas(64) float k_copy[std::is_same_v<T, float> ? 1 : kKeys * kDimMax];
  alignas(64) float v_copy[std::is_same_v<T, float> ? 1 : kKeys * kDimMax];
  const auto row_of = [](const auto& view, std::size_t b, std::size_t t, std::size_t h) {
    return view.values.device_data() + b * view.batch_stride + t * view.token_stride + h * view.head_stride;
  };
  for (std::size_t unit = work.first; unit < work.last; ++unit) {
    const std::size_t b = unit / slices / shape.heads;
    const std::size_t h = unit / slices % shape.heads;
    const std::size_t kv_head = h / (shape.heads / shape.kv_heads);
    // A thread uses the same memory for all its units if nobody adds them up later: the caches still hold it.
    float* const dk = work.sums + (sums_once(shape) ? work.first : unit) * unit_floats(shape);
    float* const dv = dk + shape.key_tokens * padded;
    std::fill_n(dk, unit_floats(shape), 0.0F);
    for (std::size_t n = unit % slices; n < blocks; n += slices) {
      const std::size_t query = n * kQueries;
      const std::size_t queries = std::min(kQueries, shape.query_tokens - query);
      const T* const q_at = row_of(work.in.q, b, query, h);
      const T* const o_at = row_of(work.results.o, b, query, h);
      const T* const o_grad_at = row_of(work.results.o_grad, b, query, h);
      transpose_in<kLanes>(q_at, work.in.q.token_stride, queries, dim, scale, q);
      transpose_in<kLanes>(o_grad_at, work.results.o_grad.token_stride, queries, dim, 1.0F, o_grad);
      const Rows q_rows = rows_of_floats<kLanes>(q_at, work.in.q.token_stride, queries, dim, true, q_copy);
      const Rows o_grad_rows =
          rows_of_floats<kLanes>(o_grad_at, work.results.o_grad.token_stride, queries, dim, true, o_grad_copy);
      alignas(64) float delta[kQueries] = {};
      alignas(64) float lse[kQueries] = {};
      for (std::size_t r = 0; r < queries; ++r) {
        typename W::Float sum{};
        for (std::size_t d = 0; d < dim; d += kLanes)
          sum += W::load_some(o_at + r * work.results.o.token_stride + d, dim - d) *
                 W::load_some(o_grad_at + r * work.results.o_grad.token_stride + d, dim - d);
        delta[r] = W::sum_of(sum);
        const float log_sum = work.results.lse.device_data()[(b * shape.heads + h) * shape.query_tokens + query + r];
        lse[r] = log_sum == kMinusInfinity ? 0 : log_sum;  // It sees nothing: exp(-infinity - 0) is 0.
      }
      const std::size_t keys_end = keys_seen(shape, query + queries);
      const auto seen = static_cast<std::ptrdiff_t>(query + shape.key_tokens - shape.query_tokens);
      std::fill_n(dq, dim * kQueries, 0.0F);
      for (std::size_t key = 0; key < keys_end; key += kKeys) {
        const std::size_t keys = std::min(kKeys, keys_end - key);
        const Rows k_rows = rows_of_floats<kLanes>(row_of(work.in.k, b, key, kv_head), work.in.k.token_stride, keys,
                                                   dim, false, k_copy);
        const Rows v_rows = rows_of_floats<kLanes>(row_of(work.in.v, b, key, kv_head), work.in.v.token_stride, keys,
                                                   dim, false, v_copy);
        product<kLanes>({.a = k_rows.data, .a_row = k_rows.stride, .b = q, .c = p, .rows = keys, .depth = dim});
        product<kLanes>({.a = v_rows.data, .a_row = v_rows.stride, .b = o_grad, .c = ds, .rows = keys, .depth = dim});
        if (shape.causal) hide_unseen<kLanes>(p, keys, static_cast<std::ptrdiff_t>(key), seen);
        for (unsigned w = 0; w < kWides; ++w) {
          const typename W::Float from = W::load(lse + w * kLanes);
          const typename W::Float less = W::load(delta + w * kLanes);
          for (std::size_t j = 0; j < keys; ++j) {
            float* const p_at = p + j * kQueries + w * kLanes;
            float* const ds_at = ds + j * kQueries + w * kLanes;
            const typename W::Float probability = W::exp(W::load(p_at) - from);
            W::store(p_at, probability);
            W::store(ds_at, probability * (W::load(ds_at) - less));
          }
        }
        product<kLanes>({.a = p,
                         .a_row = kQueries,
                         .b = o_grad_rows.data,
                         .b_row = o_grad_rows.stride,
                         .c = dv + key * padded,
                         .c_row = padded,
                         .rows = keys,
                         .columns = padded,
                         .depth = queries,
                         .adds = true});
        product<kLanes>({.a = ds,
                         .a_row = kQueries,
                         .b = q_rows.data,
                         .b_row = q_rows.stride,
                         .c = dk + key * padded,
                         .c_row = padded,
                         .rows = keys,
                         .columns = padded,
                         .depth = queries,
                         .adds = true});
        product<kLanes>(
            {.a = k_rows.data, .a_column = k_rows.stride, .b = ds, .c = dq, .rows = dim, .depth = keys, .adds = true});
      }
      float factors[kQueries];
      std::fill_n(factors, kQueries, scale);
      transpose_out<kLanes>(dq, queries, dim, factors, row_of(work.gradients.q, b, query, h),
                            work.gradients.q.token_stride);
    }
    if (sums_once(shape)) write_key_gradients<kLanes>(work, b, kv_head, dk, 1, 0, shape.key_tokens);
  }
}

/// Of rows first .. last - 1 of all heads' keys.
template <unsigned kLanes, class T>
DUNNOCK_INLINE void sum_units(const BackwardWork<T>& work) {
  const AttentionShape& shape = work.shape;
  const std::size_t units = slices_of(shape) * (shape.heads / shape.kv_heads);
  for (std::size_t row = work.first; row < work.last;) {
    const std::size_t head = row / shape.key_tokens;  // of batch * kv_heads
    const std::size_t last = std::min(work.last, (head + 1) * shape.key_tokens);
    write_key_gradients<kLanes>(work, head / shape.kv_heads, head % shape.kv_heads,
                                work.sums + head * units * unit_floats(shape), units, row - head * shape.key_tokens,
                                last - head * shape.key_tokens);
    row = last;
  }
}

template <class T>
DUNNOCK_FOR_AVX512 void backward_512(const BackwardWork<T>& work) {
  backward_units<16, T>(work);
}
template <class T>
__attribute__((noinline)) void backward_256(const BackwardWork<T>& work) {
  backward_units<8, T>(work);
}
template <class T>
DUNNOCK_FOR_AVX512 void sum_units_512(const BackwardWork<T>& work) {
  sum_units<16, T>(work);
}
template <class T>
__attribute__((noinline)) void sum_units_256(const BackwardWork<T>& work) {
  sum_units<8, T>(work);
}

template <class T>
void backward_on_cpu(const BackwardWork<T>& all) {
  const AttentionShape& shape = all.shape;
  const std::size_t unit_work = shape.query_tokens * shape.key_tokens * shape.head_dim;
  device::parallel_for(units_of(shape), device::kParallelGrain / (unit_work + 1) + 1,
                       [&](std::size_t first, std::size_t last) {
                         BackwardWork<T> work = all;
                         work.first = first;
                         work.last = last;
                         has_avx512() ? backward_512<T>(work) : backward_256<T>(work);
                       });
  if (sums_once(shape)) return;
  const std::size_t rows = shape.batch * shape.kv_heads * shape.key_tokens;
  device::parallel_for(rows, device::kParallelGrain / shape.head_dim + 1, [&](std::size_t first, std::size_t last) {
    BackwardWork<T> work = all;
    work.first = first;
    work.last = last;
    has_avx512() ? sum_units_512<T>(work) : sum_units_256<T>(work);
  });
}

// ----- checks -------------------------------------------------------------------------------------------------------

void check_shape(const AttentionShape& shape) {
  DUNNOCK_CHECK(shape.head_dim >= 1 && shape.head_dim <= kDimMax, "a head has 1 to 256 dimensions");
  // Maxima are taken before the scale: CUDA's kernels multiply once less so.
  DUNNOCK_CHECK(shape.scale >= 0, "a scale is not negative");
  DUNNOCK_CHECK(shape.kv_heads > 0, "there is at least one head of keys");
  DUNNOCK_CHECK(shape.heads % shape.kv_heads == 0, "the heads of queries are a multiple of the heads of keys");
}

template <class T>
void check_view(const HeadsView<T>& view, const AttentionShape& shape, std::size_t tokens, std::size_t heads) {
  if (shape.batch * tokens * heads == 0) return;
  const std::size_t end = (shape.batch - 1) * view.batch_stride + (tokens - 1) * view.token_stride +
                          (heads - 1) * view.head_stride + shape.head_dim;
  DUNNOCK_CHECK(end <= view.values.size(), "views are within their memory");
}

template <class T>
void check_inputs(const AttentionInputs<T>& in, const AttentionShape& shape) {
  check_shape(shape);
  check_view(in.q, shape, shape.query_tokens, shape.heads);
  check_view(in.k, shape, shape.key_tokens, shape.kv_heads);
  check_view(in.v, shape, shape.key_tokens, shape.kv_heads);
}

}  // namespace

template <class T>
void run(const Attention<T>& call, device::Stream& stream) {
  check_inputs(call.in, call.shape);
  check_view(call.o, call.shape, call.shape.query_tokens, call.shape.heads);
  check_optional(call.shape.batch * call.shape.heads * call.shape.query_tokens, call.lse);
  if (call.shape.batch * call.shape.heads * call.shape.query_tokens == 0) return;
  if (ran_on_cuda(call, stream)) return;
  stream.run("attention", [=] {
    const std::size_t unit_work = kQueries * (call.shape.key_tokens + 1) * call.shape.head_dim;
    device::parallel_for(call.shape.batch * call.shape.heads * query_blocks(call.shape),
                         device::kParallelGrain / unit_work + 1, [&](std::size_t first, std::size_t last) {
                           const ForwardWork<T> work{call.in, call.o, call.lse.device_data(), call.shape, first, last};
                           has_avx512() ? forward_512<T>(work) : forward_256<T>(work);
                         });
    return Status{};
  });
}

std::size_t attention_backward_workspace(const AttentionShape& shape, [[maybe_unused]] device::Device device) {
  check_shape(shape);
#if DUNNOCK_HAS_CUDA
  if (device.backend() == device::Backend::kCuda) return detail::cuda::attention_backward_workspace(shape);
#endif
  return units_of(shape) * unit_floats(shape);
}

template <class T>
void run(const AttentionBackward<T>& call, device::Stream& stream) {
  check_inputs(call.in, call.shape);
  check_view(call.results.o, call.shape, call.shape.query_tokens, call.shape.heads);
  check_view(call.results.o_grad, call.shape, call.shape.query_tokens, call.shape.heads);
  check_view(call.gradients.q, call.shape, call.shape.query_tokens, call.shape.heads);
  check_view(call.gradients.k, call.shape, call.shape.key_tokens, call.shape.kv_heads);
  check_view(call.gradients.v, call.shape, call.shape.key_tokens, call.shape.kv_heads);
  detail::check_sizes(call.shape.batch * call.shape.heads * call.shape.query_tokens, call.results.lse);
  DUNNOCK_CHECK(call.workspace.size() >= attention_backward_workspace(call.shape, stream.device()),
                "the workspace is large enough");
  if (call.shape.batch * call.shape.heads == 0) return;
  if (ran_on_cuda(call, stream)) return;
  stream.run("attention backward", [=] {
    backward_on_cpu(
        BackwardWork<T>{call.in, call.results, call.gradients, call.workspace.device_data(), call.shape, 0, 0});
    return Status{};
  });
}

DUNNOCK_INSTANTIATE_KERNELS(Attention, AttentionBackward);

}  // namespace dunnock::kernels
