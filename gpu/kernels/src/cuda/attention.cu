// Floor: forward 4, backward 10 * query_tokens * key_tokens * heads * head_dim operations (half of it when causal) at
// the speed of the tensor cores (Bf16) or of f32; here 4 and 14, since s and dp are computed in both backward kernels.
//
// One scheme for both types: a warp owns 16 rows of a product, and what it sums up lies over its lanes as mma's
// accumulators do: of a row's columns, lane 4 g + t has 8 j + 2 t and the next, of rows g and g + 8. Floats are
// multiplied by FMA from the same places.
//
//   forward   a block has queries; over blocks of keys: s = q k^T, softmax in registers, o += p v
//   dq        a block has queries; over blocks of keys: dq += ds k
//   dk, dv    a block has keys; over the queries of all heads of the group: s^T = k q^T, dv += p^T do, dk += ds^T q
//
// Rows in shared memory are 16 bytes longer than head_dim, so that 8 rows lie in different banks.
#include <limits>

#include "attention_parts.hpp"
#include "cuda/device_code.hpp"

namespace dunnock::kernels::detail::DUNNOCK_KERNELS {
namespace {

using namespace device_code;

constexpr float kLog2E = 1.44269504F;
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

__device__ float exp2_fast(float x) {
#if defined(__CUDACC__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return std::exp2(x);
#endif
}

/// Where a tensor's rows lie.
template <class T>
struct View {
  T* data;
  std::size_t batch, token, head;  // strides
  __device__ T* row(std::size_t b, std::size_t t, std::size_t h) const {
    return data + b * batch + t * token + h * head;
  }
};
template <class T>
View<T> view_of(const HeadsView<T>& view) {
  return {view.values.device_data(), view.batch_stride, view.token_stride, view.head_stride};
}

template <class T>
struct Args {
  View<const T> q, k, v;
  View<T> o;  // forward
  float* lse_out;
  View<const T> o_grad;  // backward
  View<T> dq, dk, dv;
  const float* lse;
  const float* delta;
  unsigned query_tokens, key_tokens, heads, kv_heads, head_dim;
  bool causal;
  bool aligned;  // rows of all tensors are whole packs of 16 bytes, aligned
  float scale;

  __device__ bool sees(unsigned query, unsigned key) const {
    return query < query_tokens && key < key_tokens &&
           (!causal || std::size_t{key} + query_tokens <= std::size_t{query} + key_tokens);
  }
  /// Whether each of the queries sees each of the keys from `key` on.
  __device__ bool all_see(unsigned query, unsigned queries, unsigned key, unsigned keys) const {
    return query + queries <= query_tokens && key + keys <= key_tokens &&
           (!causal || std::size_t{key} + keys - 1 + query_tokens <= std::size_t{query} + key_tokens);
  }
  /// Keys that queries before `last` see.
  __device__ unsigned keys_end(unsigned last) const {
    if (!causal) return key_tokens;
    const unsigned end = last < query_tokens ? last : query_tokens;
    const std::size_t seen = std::size_t{end} + key_tokens;
    return seen <= query_tokens ? 0 : static_cast<unsigned>(seen - query_tokens);
  }
};

/// The shapes of blocks. Shared memory stays under 163 KiB, which sm_80 has.
template <class T, unsigned kDim>
struct Tiles {
  static constexpr bool kHuge = kDim * sizeof(T) > 512;  // floats of 256 dimensions
  static constexpr unsigned kWarps = kHuge ? 2 : 4;
  static constexpr unsigned kThreads = kWarps * kWarp;
  static constexpr unsigned kRowTiles = kDim <= 128 && sizeof(T) == 2 ? 2 : 1;  // forward: of 16 queries a warp
  static constexpr unsigned kRows = kWarps * 16;                                // of a block, backward
  static constexpr unsigned kColumns = kDim <= 64 ? 64 : 32;                    // keys or queries at a time
  static constexpr unsigned kForwardColumns = kDim <= 64 ? 64 : 32;             // else registers spill
  static constexpr unsigned kStride = kDim + kPack<T>;
  static constexpr unsigned kSlice = kDim < 128 ? kDim : 128;  // of dk's and dv's columns, a block
  static constexpr std::size_t kRowBytes = kStride * sizeof(T);
  static constexpr std::size_t kForwardBytes = (kRows * kRowTiles + 2 * kForwardColumns) * kRowBytes;
  static constexpr unsigned kStages = (2 * kRows + 4 * kColumns) * kRowBytes <= (110 << 10) ? 2 : 1;
  static constexpr std::size_t kBackwardBytes =
      (2 * kRows + 2 * kColumns * kStages) * kRowBytes + 2 * kColumns * kStages * sizeof(float);
};

/// Begins to copy kRows rows to shared memory, zeros for what is not there.
template <class T, unsigned kDim, unsigned kRows, unsigned kThreads>
__device__ void load_rows(T* to, const T* from, std::size_t row_stride, unsigned rows, unsigned dim, bool aligned) {
  using Shape = Tiles<T, kDim>;
  if (aligned) {
    constexpr unsigned kPacks = kDim / kPack<T>;
#pragma unroll
    for (unsigned i = 0; i < kRows * kPacks; i += kThreads) {
      const unsigned n = i + threadIdx.x;
      if (kRows * kPacks % kThreads != 0 && n >= kRows * kPacks) break;
      const unsigned row = n / kPacks;
      const unsigned d = n % kPacks * kPack<T>;
      const bool there = row < rows && d < dim;
      copy_async_16(to + row * Shape::kStride + d, there ? from + row * row_stride + d : from, there);
    }
  } else {
    for (unsigned n = threadIdx.x; n < kRows * kDim; n += kThreads) {
      const unsigned row = n / kDim;
      const unsigned d = n % kDim;
      to[row * Shape::kStride + d] = row < rows && d < dim ? from[row * row_stride + d] : from_float<T>(0.0F);
    }
  }
}

// ----- products of a warp -------------------------------------------------------------------------------------------

/// sums (16 rows, kN) += a (16 rows, kDim) * b (kN rows, kDim)^T, both in shared memory; kM times 16 rows.
template <unsigned kDim, unsigned kStride, unsigned kM, unsigned kN>
__device__ void product_of_rows(float (&sums)[kM][kN / 8][4], const device::Bf16* a, const device::Bf16* b) {
  const unsigned lane = threadIdx.x % kWarp;
  const device::Bf16* const a_at = a + lane % 16 * kStride + lane / 16 * 8;
  const device::Bf16* const b_at = b + (lane % 8 + lane / 16 * 8) * kStride + lane / 8 % 2 * 8;
#pragma unroll
  for (unsigned k = 0; k < kDim; k += 16) {
    std::uint32_t left[kM][4];
#pragma unroll
    for (unsigned m = 0; m < kM; ++m) load_matrices<false>(left[m], a_at + m * 16 * kStride + k);
#pragma unroll
    for (unsigned n = 0; n < kN; n += 16) {
      std::uint32_t right[4];
      load_matrices<false>(right, b_at + n * kStride + k);
      const std::uint32_t first[2] = {right[0], right[1]};
      const std::uint32_t second[2] = {right[2], right[3]};
#pragma unroll
      for (unsigned m = 0; m < kM; ++m) {
        mma_bf16(sums[m][n / 8], left[m], first);
        mma_bf16(sums[m][n / 8 + 1], left[m], second);
      }
    }
  }
}
template <unsigned kDim, unsigned kStride, unsigned kM, unsigned kN>
__device__ void product_of_rows(float (&sums)[kM][kN / 8][4], const float* a, const float* b) {
  const unsigned lane = threadIdx.x % kWarp;
  const float* const a_at = a + lane / 4 * kStride;
  const float* const b_at = b + lane % 4 * 2 * kStride;
#pragma unroll 2
  for (unsigned k = 0; k < kDim; k += 4) {
    Pack<float, 4> left[kM][2];
#pragma unroll
    for (unsigned m = 0; m < kM; ++m) {
      left[m][0] = load_pack<4>(a_at + m * 16 * kStride + k);
      left[m][1] = load_pack<4>(a_at + (m * 16 + 8) * kStride + k);
    }
#pragma unroll
    for (unsigned n = 0; n < kN / 8; ++n) {
#pragma unroll
      for (unsigned c = 0; c < 2; ++c) {
        const auto right = load_pack<4>(b_at + (n * 8 + c) * kStride + k);
#pragma unroll
        for (unsigned m = 0; m < kM; ++m) {
#pragma unroll
          for (unsigned i = 0; i < 4; ++i) {
            sums[m][n][c] += left[m][0].values[i] * right.values[i];
            sums[m][n][2 + c] += left[m][1].values[i] * right.values[i];
          }
        }
      }
    }
  }
}

/// sums (16 rows, kN) += p (16 rows, kDepth: sums of another product) * b (kDepth rows, kN columns, in shared memory).
template <unsigned kStride, unsigned kM, unsigned kDepth, unsigned kN>
__device__ void product_of_sums(float (&sums)[kM][kN / 8][4], const float (&p)[kM][kDepth / 8][4],
                                const device::Bf16* b) {
  const unsigned lane = threadIdx.x % kWarp;
  const device::Bf16* const b_at = b + lane % 16 * kStride + lane / 16 * 8;
#pragma unroll
  for (unsigned k = 0; k < kDepth; k += 16) {
    std::uint32_t left[kM][4];
#pragma unroll
    for (unsigned m = 0; m < kM; ++m) {
#pragma unroll
      for (unsigned i = 0; i < 4; ++i)
        left[m][i] = pack_bf16(p[m][k / 8 + i / 2][i % 2 * 2], p[m][k / 8 + i / 2][i % 2 * 2 + 1]);
    }
#pragma unroll
    for (unsigned n = 0; n < kN; n += 16) {
      std::uint32_t right[4];
      load_matrices<true>(right, b_at + k * kStride + n);
      const std::uint32_t first[2] = {right[0], right[1]};
      const std::uint32_t second[2] = {right[2], right[3]};
#pragma unroll
      for (unsigned m = 0; m < kM; ++m) {
        mma_bf16(sums[m][n / 8], left[m], first);
        mma_bf16(sums[m][n / 8 + 1], left[m], second);
      }
    }
  }
}
template <unsigned kStride, unsigned kM, unsigned kDepth, unsigned kN>
__device__ void product_of_sums(float (&sums)[kM][kN / 8][4], const float (&p)[kM][kDepth / 8][4], const float* b) {
  const unsigned lane = threadIdx.x % kWarp;
  const float* const b_at = b + lane % 4 * 2;
#pragma unroll
  for (unsigned k = 0; k < kDepth; ++k) {
    float left[kM][2];
#pragma unroll
    for (unsigned m = 0; m < kM; ++m) {
      left[m][0] = shuffle(p[m][k / 8][k % 2], lane / 4 * 4 + k % 8 / 2);
      left[m][1] = shuffle(p[m][k / 8][2 + k % 2], lane / 4 * 4 + k % 8 / 2);
    }
#pragma unroll
    for (unsigned n = 0; n < kN / 8; ++n) {
      const auto right = load_pack<2>(b_at + k * kStride + n * 8);
#pragma unroll
      for (unsigned m = 0; m < kM; ++m) {
#pragma unroll
        for (unsigned c = 0; c < 2; ++c) {
          sums[m][n][c] += left[m][0] * right.values[c];
          sums[m][n][2 + c] += left[m][1] * right.values[c];
        }
      }
    }
  }
}

template <unsigned kM, unsigned kTiles>
__device__ void clear(float (&sums)[kM][kTiles][4]) {
#pragma unroll
  for (unsigned m = 0; m < kM; ++m) {
#pragma unroll
    for (unsigned n = 0; n < kTiles; ++n) {
#pragma unroll
      for (unsigned i = 0; i < 4; ++i) sums[m][n][i] = 0.0F;
    }
  }
}

/// Columns first_d .. of a row: lane t's part, times factor.
template <unsigned kTiles, class T>
__device__ void store_row(T* row, const float (&sums)[kTiles][4], unsigned half, float factor, unsigned first_d,
                          unsigned dim, bool aligned) {
  const unsigned t = threadIdx.x % 4;
#pragma unroll
  for (unsigned n = 0; n < kTiles; ++n) {
    const unsigned d = first_d + n * 8 + t * 2;
    const Pack<T, 2> values = {from_float<T>(sums[n][half * 2] * factor),
                               from_float<T>(sums[n][half * 2 + 1] * factor)};
    if (aligned) {
      if (d < dim) store_pack(row + d, values);
    } else {
      if (d < dim) row[d] = values.values[0];
      if (d + 1 < dim) row[d + 1] = values.values[1];
    }
  }
}

// ----- forward ------------------------------------------------------------------------------------------------------

/// Block: (queries' block of a head, from the last: they have the most keys).
template <class T, unsigned kDim>
__global__ void __launch_bounds__(Tiles<T, kDim>::kThreads) attention_kernel(Args<T> args) {
  using Shape = Tiles<T, kDim>;
  constexpr unsigned kM = Shape::kRowTiles;
  constexpr unsigned kQueries = Shape::kRows * kM;
  constexpr unsigned kKeys = Shape::kForwardColumns;
  DUNNOCK_DYNAMIC_SHARED(T, q);  // (kQueries, kStride)
  T* const k = q + kQueries * Shape::kStride;
  T* const v = k + kKeys * Shape::kStride;
  const unsigned blocks = (args.query_tokens + kQueries - 1) / kQueries;
  const unsigned query = (blocks - 1 - blockIdx.x % blocks) * kQueries;
  const unsigned h = blockIdx.x / blocks % args.heads;
  const unsigned b = blockIdx.x / blocks / args.heads;
  const unsigned kv_head = h / (args.heads / args.kv_heads);
  const unsigned g = threadIdx.x % kWarp / 4;
  const unsigned t = threadIdx.x % 4;
  const unsigned first_row = threadIdx.x / kWarp * 16 * kM;  // of the warp, in the block
  const unsigned keys_end = args.keys_end(query + kQueries);
  const float scale = args.scale * kLog2E;

  const auto load = [&](T* to, const View<const T>& from, unsigned key) {
    load_rows<T, kDim, kKeys, Shape::kThreads>(to, from.row(b, key, kv_head), from.token, args.key_tokens - key,
                                               args.head_dim, args.aligned);
    copies_commit();
  };
  load_rows<T, kDim, kQueries, Shape::kThreads>(q, args.q.row(b, query, h), args.q.token, args.query_tokens - query,
                                                args.head_dim, args.aligned);
  copies_commit();
  if (keys_end > 0) load(k, args.k, 0);

  float o[kM][kDim / 8][4];
  clear(o);
  float max[kM][2];
  float sum[kM][2];  // of this lane's columns
#pragma unroll
  for (unsigned m = 0; m < kM; ++m) {
    max[m][0] = max[m][1] = kMinusInfinity;
    sum[m][0] = sum[m][1] = 0;
  }
  for (unsigned key = 0; key < keys_end; key += kKeys) {
    copies_wait<0>();
    __syncthreads();  // k is here, and nobody reads v any more.
    load(v, args.v, key);
    float s[kM][kKeys / 8][4];
    clear(s);
    product_of_rows<kDim, Shape::kStride, kM, kKeys>(s, q + first_row * Shape::kStride, k);
    copies_wait<0>();
    __syncthreads();  // v is here, and nobody reads k any more.
    if (key + kKeys < keys_end) load(k, args.k, key + kKeys);
    if (!args.all_see(query, kQueries, key, kKeys)) {
#pragma unroll
      for (unsigned m = 0; m < kM; ++m) {
#pragma unroll
        for (unsigned n = 0; n < kKeys / 8; ++n) {
#pragma unroll
          for (unsigned i = 0; i < 4; ++i) {
            if (!args.sees(query + first_row + m * 16 + g + i / 2 * 8, key + n * 8 + t * 2 + i % 2))
              s[m][n][i] = kMinusInfinity;
          }
        }
      }
    }
#pragma unroll
    for (unsigned m = 0; m < kM; ++m) {
#pragma unroll
      for (unsigned half = 0; half < 2; ++half) {
        float highest = max[m][half];
#pragma unroll
        for (unsigned n = 0; n < kKeys / 8; ++n) {
          highest = Max{}(highest, s[m][n][half * 2]);
          highest = Max{}(highest, s[m][n][half * 2 + 1]);
        }
        highest = warp_reduce<Max, 4>(highest);
        // Where nothing has been seen yet all is -infinity, and exp2(-infinity - 0) is 0.
        const float from = highest == kMinusInfinity ? 0.0F : highest * scale;
        const float factor = exp2_fast(max[m][half] * scale - from);
        max[m][half] = highest;
        float total = sum[m][half] * factor;
#pragma unroll
        for (unsigned n = 0; n < kKeys / 8; ++n) {
#pragma unroll
          for (unsigned c = half * 2; c < half * 2 + 2; ++c) {
            s[m][n][c] = exp2_fast(s[m][n][c] * scale - from);
            total += s[m][n][c];
          }
        }
        sum[m][half] = total;
#pragma unroll
        for (unsigned n = 0; n < kDim / 8; ++n) {
          o[m][n][half * 2] *= factor;
          o[m][n][half * 2 + 1] *= factor;
        }
      }
    }
    product_of_sums<Shape::kStride, kM, kKeys, kDim>(o, s, v);
  }
  copies_wait<0>();
#pragma unroll
  for (unsigned m = 0; m < kM; ++m) {
#pragma unroll
    for (unsigned half = 0; half < 2; ++half) {
      const float total = warp_reduce<Sum, 4>(sum[m][half]);
      const unsigned row = query + first_row + m * 16 + g + half * 8;
      if (row >= args.query_tokens) continue;
      store_row(args.o.row(b, row, h), o[m], half, total == 0.0F ? 0.0F : 1.0F / total, 0, args.head_dim, args.aligned);
      if (t == 0 && args.lse_out != nullptr)
        args.lse_out[(std::size_t{b} * args.heads + h) * args.query_tokens + row] =
            total == 0.0F ? kMinusInfinity : max[m][half] * args.scale + logf(total);
    }
  }
}

// ----- backward -----------------------------------------------------------------------------------------------------

/// A warp a row: delta (batch, heads, query_tokens) = sum over d of do * o.
template <class T>
__global__ void __launch_bounds__(128)
    delta_kernel(View<const T> o, View<const T> o_grad, float* delta, std::size_t rows, unsigned heads,
                 unsigned query_tokens, unsigned head_dim) {
  const std::size_t row = std::size_t{blockIdx.x} * 4 + threadIdx.x / kWarp;
  if (row >= rows) return;
  // Heads are inside tokens where the rows lie, so neighbors read neighbors.
  const auto h = static_cast<unsigned>(row % heads);
  const auto token = static_cast<unsigned>(row / heads % query_tokens);
  const std::size_t b = row / heads / query_tokens;
  const T* const left = o.row(b, token, h);
  const T* const right = o_grad.row(b, token, h);
  float sum = 0;
  for (unsigned d = threadIdx.x % kWarp; d < head_dim; d += kWarp) sum += to_float(left[d]) * to_float(right[d]);
  sum = warp_reduce<Sum>(sum);
  if (threadIdx.x % kWarp == 0) delta[(b * heads + h) * query_tokens + token] = sum;
}

/// Block: queries of a head.
template <class T, unsigned kDim>
__global__ void __launch_bounds__(Tiles<T, kDim>::kThreads) attention_dq_kernel(Args<T> args) {
  using Shape = Tiles<T, kDim>;
  constexpr unsigned kQueries = Shape::kRows;
  constexpr unsigned kKeys = Shape::kColumns;
  constexpr unsigned kStages = Shape::kStages;
  DUNNOCK_DYNAMIC_SHARED(T, q);  // (kQueries, kStride)
  T* const o_grad = q + kQueries * Shape::kStride;
  T* const stages = o_grad + kQueries * Shape::kStride;  // (kStages, 2, kKeys, kStride): k and v
  const unsigned blocks = (args.query_tokens + kQueries - 1) / kQueries;
  const unsigned query = (blocks - 1 - blockIdx.x % blocks) * kQueries;
  const unsigned h = blockIdx.x / blocks % args.heads;
  const unsigned b = blockIdx.x / blocks / args.heads;
  const unsigned kv_head = h / (args.heads / args.kv_heads);
  const unsigned g = threadIdx.x % kWarp / 4;
  const unsigned t = threadIdx.x % 4;
  const unsigned first_row = threadIdx.x / kWarp * 16;
  const unsigned keys_end = args.keys_end(query + kQueries);
  const float scale = args.scale * kLog2E;

  const auto load = [&](unsigned key) {
    T* const to = stages + key / kKeys % kStages * 2 * kKeys * Shape::kStride;
    load_rows<T, kDim, kKeys, Shape::kThreads>(to, args.k.row(b, key, kv_head), args.k.token, args.key_tokens - key,
                                               args.head_dim, args.aligned);
    load_rows<T, kDim, kKeys, Shape::kThreads>(to + kKeys * Shape::kStride, args.v.row(b, key, kv_head), args.v.token,
                                               args.key_tokens - key, args.head_dim, args.aligned);
  };
  load_rows<T, kDim, kQueries, Shape::kThreads>(q, args.q.row(b, query, h), args.q.token, args.query_tokens - query,
                                                args.head_dim, args.aligned);
  load_rows<T, kDim, kQueries, Shape::kThreads>(o_grad, args.o_grad.row(b, query, h), args.o_grad.token,
                                                args.query_tokens - query, args.head_dim, args.aligned);
  if (keys_end > 0) load(0);
  copies_commit();
  float log_sums[2];
  float deltas[2];
#pragma unroll
  for (unsigned half = 0; half < 2; ++half) {
    const unsigned row = query + first_row + g + half * 8;
    const std::size_t at = (std::size_t{b} * args.heads + h) * args.query_tokens + row;
    log_sums[half] = row < args.query_tokens ? args.lse[at] * kLog2E : 0.0F;
    deltas[half] = row < args.query_tokens ? args.delta[at] : 0.0F;
  }
  float dq[1][kDim / 8][4];
  clear(dq);
  for (unsigned key = 0; key < keys_end; key += kKeys) {
    if constexpr (kStages == 2) {
      if (key + kKeys < keys_end) load(key + kKeys);
      copies_commit();
    }
    copies_wait<kStages - 1>();
    __syncthreads();
    const T* const k = stages + key / kKeys % kStages * 2 * kKeys * Shape::kStride;
    const T* const v = k + kKeys * Shape::kStride;
    float s[1][kKeys / 8][4];
    float dp[1][kKeys / 8][4];
    clear(s);
    clear(dp);
    product_of_rows<kDim, Shape::kStride, 1, kKeys>(s, q + first_row * Shape::kStride, k);
    product_of_rows<kDim, Shape::kStride, 1, kKeys>(dp, o_grad + first_row * Shape::kStride, v);
    const bool all_see = args.all_see(query, kQueries, key, kKeys);
#pragma unroll
    for (unsigned n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (unsigned i = 0; i < 4; ++i) {
        float p = exp2_fast(s[0][n][i] * scale - log_sums[i / 2]);
        if (!all_see && !args.sees(query + first_row + g + i / 2 * 8, key + n * 8 + t * 2 + i % 2)) p = 0.0F;
        s[0][n][i] = p * (dp[0][n][i] - deltas[i / 2]);
      }
    }
    product_of_sums<Shape::kStride, 1, kKeys, kDim>(dq, s, k);
    __syncthreads();  // Nobody reads this stage any more.
    if constexpr (kStages == 1) {
      if (key + kKeys < keys_end) load(key + kKeys);
      copies_commit();
    }
  }
  copies_wait<0>();
#pragma unroll
  for (unsigned half = 0; half < 2; ++half) {
    const unsigned row = query + first_row + g + half * 8;
    if (row < args.query_tokens)
      store_row(args.dq.row(b, row, h), dq[0], half, args.scale, 0, args.head_dim, args.aligned);
  }
}

/// Block (x, y): keys of a head of keys; slice y of the columns of dk and dv.
template <class T, unsigned kDim>
__global__ void __launch_bounds__(Tiles<T, kDim>::kThreads) attention_dkv_kernel(Args<T> args) {
  using Shape = Tiles<T, kDim>;
  constexpr unsigned kKeys = Shape::kRows;
  constexpr unsigned kQueries = Shape::kColumns;
  constexpr unsigned kStages = Shape::kStages;
  constexpr unsigned kSlice = Shape::kSlice;
  DUNNOCK_DYNAMIC_SHARED(T, k);  // (kKeys, kStride)
  T* const v = k + kKeys * Shape::kStride;
  T* const stages = v + kKeys * Shape::kStride;  // (kStages, 2, kQueries, kStride): q and do
  float* const rows = reinterpret_cast<float*>(stages + kStages * 2 * kQueries * Shape::kStride);
  const unsigned blocks = (args.key_tokens + kKeys - 1) / kKeys;
  const unsigned key = blockIdx.x % blocks * kKeys;
  const unsigned kv_head = blockIdx.x / blocks % args.kv_heads;
  const unsigned b = blockIdx.x / blocks / args.kv_heads;
  const unsigned group = args.heads / args.kv_heads;
  const unsigned g = threadIdx.x % kWarp / 4;
  const unsigned t = threadIdx.x % 4;
  const unsigned first_row = threadIdx.x / kWarp * 16;
  const unsigned first_d = blockIdx.y * kSlice;
  const float scale = args.scale * kLog2E;
  // The first queries that see the first key; each head has `steps` blocks of queries from there on.
  const std::size_t behind = std::size_t{key} + args.query_tokens;
  const unsigned first_query = args.causal && behind > args.key_tokens
                                   ? static_cast<unsigned>(behind - args.key_tokens) / kQueries * kQueries
                                   : 0;
  const unsigned steps =
      first_query < args.query_tokens ? (args.query_tokens - first_query + kQueries - 1) / kQueries : 0;

  const auto load = [&](unsigned step) {
    const unsigned h = kv_head * group + step / steps;
    const unsigned query = first_query + step % steps * kQueries;
    T* const to = stages + step % kStages * 2 * kQueries * Shape::kStride;
    load_rows<T, kDim, kQueries, Shape::kThreads>(to, args.q.row(b, query, h), args.q.token, args.query_tokens - query,
                                                  args.head_dim, args.aligned);
    load_rows<T, kDim, kQueries, Shape::kThreads>(to + kQueries * Shape::kStride, args.o_grad.row(b, query, h),
                                                  args.o_grad.token, args.query_tokens - query, args.head_dim,
                                                  args.aligned);
    // (kStages, 2, kQueries): lse and delta.
    if (threadIdx.x < kQueries) {
      const bool there = query + threadIdx.x < args.query_tokens;
      const std::size_t at = (std::size_t{b} * args.heads + h) * args.query_tokens + query + threadIdx.x;
      float* const lse_to = rows + step % kStages * 2 * kQueries + threadIdx.x;
      lse_to[0] = there ? args.lse[at] * kLog2E : 0.0F;
      lse_to[kQueries] = there ? args.delta[at] : 0.0F;
    }
  };
  load_rows<T, kDim, kKeys, Shape::kThreads>(k, args.k.row(b, key, kv_head), args.k.token, args.key_tokens - key,
                                             args.head_dim, args.aligned);
  load_rows<T, kDim, kKeys, Shape::kThreads>(v, args.v.row(b, key, kv_head), args.v.token, args.key_tokens - key,
                                             args.head_dim, args.aligned);
  const unsigned steps_all = steps * group;
  if (steps_all > 0) load(0);
  copies_commit();
  float dk[1][kSlice / 8][4];
  float dv[1][kSlice / 8][4];
  clear(dk);
  clear(dv);
  for (unsigned step = 0; step < steps_all; ++step) {
    if constexpr (kStages == 2) {
      if (step + 1 < steps_all) load(step + 1);
      copies_commit();
    }
    copies_wait<kStages - 1>();
    __syncthreads();
    const T* const q = stages + step % kStages * 2 * kQueries * Shape::kStride;
    const T* const o_grad = q + kQueries * Shape::kStride;
    const float* const lse = rows + step % kStages * 2 * kQueries;
    const float* const delta = lse + kQueries;
    const unsigned query = first_query + step % steps * kQueries;
    const bool all_see = args.all_see(query, kQueries, key, kKeys);
    float p[1][kQueries / 8][4];  // (keys, queries)
    clear(p);
    product_of_rows<kDim, Shape::kStride, 1, kQueries>(p, k + first_row * Shape::kStride, q);
#pragma unroll
    for (unsigned n = 0; n < kQueries / 8; ++n) {
#pragma unroll
      for (unsigned i = 0; i < 4; ++i) {
        const unsigned column = n * 8 + t * 2 + i % 2;
        p[0][n][i] = exp2_fast(p[0][n][i] * scale - lse[column]);
        if (!all_see && !args.sees(query + column, key + first_row + g + i / 2 * 8)) p[0][n][i] = 0.0F;
      }
    }
    product_of_sums<Shape::kStride, 1, kQueries, kSlice>(dv, p, o_grad + first_d);
    float dp[1][kQueries / 8][4];
    clear(dp);
    product_of_rows<kDim, Shape::kStride, 1, kQueries>(dp, v + first_row * Shape::kStride, o_grad);
#pragma unroll
    for (unsigned n = 0; n < kQueries / 8; ++n) {
#pragma unroll
      for (unsigned i = 0; i < 4; ++i) p[0][n][i] *= dp[0][n][i] - delta[n * 8 + t * 2 + i % 2];
    }
    product_of_sums<Shape::kStride, 1, kQueries, kSlice>(dk, p, q + first_d);
    __syncthreads();  // Nobody reads this stage any more.
    if constexpr (kStages == 1) {
      if (step + 1 < steps_all) load(step + 1);
      copies_commit();
    }
  }
  copies_wait<0>();
#pragma unroll
  for (unsigned half = 0; half < 2; ++half) {
    const unsigned row = key + first_row + g + half * 8;
    if (row >= args.key_tokens) continue;
    store_row(args.dk.row(b, row, kv_head), dk[0], half, args.scale, first_d, args.head_dim, args.aligned);
    store_row(args.dv.row(b, row, kv_head), dv[0], half, 1.0F, first_d, args.head_dim, args.aligned);
  }
}

// ----- launchers ----------------------------------------------------------------------------------------------------

template <class T, class... Views>
bool rows_are_aligned(std::size_t head_dim, const Views&... views) {
  const auto is_one = [head_dim](const auto& view) {
    return is_aligned(view.values.device_data()) && head_dim % kPack<T> == 0 && view.batch_stride % kPack<T> == 0 &&
           view.token_stride % kPack<T> == 0 && view.head_stride % kPack<T> == 0;
  };
  return (is_one(views) && ...);
}

template <class T>
Args<T> args_of(const AttentionInputs<T>& in, const AttentionShape& shape) {
  Args<T> args{};
  args.q = view_of(in.q);
  args.k = view_of(in.k);
  args.v = view_of(in.v);
  args.query_tokens = static_cast<unsigned>(shape.query_tokens);
  args.key_tokens = static_cast<unsigned>(shape.key_tokens);
  args.heads = static_cast<unsigned>(shape.heads);
  args.kv_heads = static_cast<unsigned>(shape.kv_heads);
  args.head_dim = static_cast<unsigned>(shape.head_dim);
  args.causal = shape.causal;
  args.scale = attention_scale(shape.scale, shape.head_dim);
  return args;
}

/// Calls f with the least of 32, 64, 128, 256 that has room for a head.
template <class F>
void with_dim(std::size_t head_dim, const F& f) {
  if (head_dim <= 32) {
    f(std::integral_constant<unsigned, 32>{});
  } else if (head_dim <= 64) {
    f(std::integral_constant<unsigned, 64>{});
  } else if (head_dim <= 128) {
    f(std::integral_constant<unsigned, 128>{});
  } else {
    f(std::integral_constant<unsigned, 256>{});
  }
}

template <class T>
void launch_forward(const Args<T>& args, const AttentionShape& shape, device::Stream& stream) {
  with_dim(shape.head_dim, [&](auto dim) {
    using Shape = Tiles<T, dim()>;
    const std::size_t blocks =
        shape.batch * shape.heads * blocks_for(shape.query_tokens, std::size_t{Shape::kRows} * Shape::kRowTiles);
    launch("attention", attention_kernel<T, dim()>,
           {dim3(static_cast<unsigned>(blocks)), dim3(Shape::kThreads), Shape::kForwardBytes}, stream, args);
  });
}

template <class T>
void launch_backward(const Args<T>& args, const View<const T>& o, const AttentionShape& shape,
                     device::Span<float> workspace, device::Stream& stream) {
  const std::size_t rows = shape.batch * shape.heads * shape.query_tokens;
  if (rows > 0)
    launch("attention delta", delta_kernel<T>, {dim3(blocks_for(rows, 4)), dim3(128)}, stream, o, args.o_grad,
           workspace.device_data(), rows, args.heads, args.query_tokens, args.head_dim);
  with_dim(shape.head_dim, [&](auto dim) {
    using Shape = Tiles<T, dim()>;
    const std::size_t key_blocks = shape.batch * shape.kv_heads * blocks_for(shape.key_tokens, Shape::kRows);
    const std::size_t query_blocks = shape.batch * shape.heads * blocks_for(shape.query_tokens, Shape::kRows);
    if (key_blocks > 0)
      launch("attention dk dv", attention_dkv_kernel<T, dim()>,
             {dim3(static_cast<unsigned>(key_blocks), dim() / Shape::kSlice), dim3(Shape::kThreads),
              Shape::kBackwardBytes},
             stream, args);
    if (query_blocks > 0)
      launch("attention dq", attention_dq_kernel<T, dim()>,
             {dim3(static_cast<unsigned>(query_blocks)), dim3(Shape::kThreads), Shape::kBackwardBytes}, stream, args);
  });
}

}  // namespace

template <class T>
void run(const Attention<T>& call, device::Stream& stream) {
  Args<T> args = args_of(call.in, call.shape);
  args.o = view_of(call.o);
  args.lse_out = call.lse.device_data();
  args.aligned = rows_are_aligned<T>(call.shape.head_dim, call.in.q, call.in.k, call.in.v, call.o);
  launch_forward(args, call.shape, stream);
}

std::size_t attention_backward_workspace(const AttentionShape& shape) {
  return shape.batch * shape.heads * shape.query_tokens;  // delta
}

template <class T>
void run(const AttentionBackward<T>& call, device::Stream& stream) {
  Args<T> args = args_of(call.in, call.shape);
  args.o_grad = view_of(call.results.o_grad);
  args.dq = view_of(call.gradients.q);
  args.dk = view_of(call.gradients.k);
  args.dv = view_of(call.gradients.v);
  args.lse = call.results.lse.device_data();
  args.delta = call.workspace.device_data();
  args.aligned = rows_are_aligned<T>(call.shape.head_dim, call.in.q, call.in.k, call.in.v, call.results.o_grad,
                                     call.gradients.q, call.gradients.k, call.gradients.v);
  launch_backward(args, view_of(call.results.o), call.shape, call.workspace, stream);
}

DUNNOCK_INSTANTIATE_KERNELS(Attention, AttentionBackward);

}  // namespace dunnock::kernels::detail::DUNNOCK_KERNELS
