// Floor: each value is read once. A block a chunk of 16384 values (32 or 64 KiB: a thread has 16 bytes of each of its
// packs in flight, 4 at once), then one block for the parts.
#include <algorithm>
#include <limits>

#include "cuda/segments.hpp"
#include "dispatch.hpp"
#include "dunnock/kernels/reduce.hpp"

namespace dunnock::kernels::detail::DUNNOCK_KERNELS {
namespace {

using namespace device_code;

constexpr unsigned kBlock = 256;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct SumOf {
  static constexpr float kStart = 0;
  __device__ static float of(float x) { return x; }
  __device__ static float join(float a, float b) { return a + b; }
};
struct SquaresOf : SumOf {
  __device__ static float of(float x) { return x * x; }
};
/// A NaN wins.
struct MaxOf {
  static constexpr float kStart = -kInfinity;
  __device__ static float of(float x) { return x; }
  __device__ static float join(float a, float b) { return a != a || a > b ? a : b; }
};
struct NotFiniteOf : SumOf {
  __device__ static float of(float x) { return x - x == 0.0F ? 0.0F : 1.0F; }
};

template <class R>
struct Join {
  __device__ float operator()(float a, float b) const { return R::join(a, b); }
};

/// Of `count` values, for all threads of the block.
template <class R, class T>
__device__ float reduce_values(const T* x, unsigned count, float* shared) {
  float result = R::kStart;
  constexpr unsigned kWidth = kPack<T>;
  constexpr unsigned kAtOnce = 4;
  const bool aligned = reinterpret_cast<std::uintptr_t>(x) % 16 == 0;
  const unsigned packs = aligned ? count / kWidth : 0;
  for (unsigned p = threadIdx.x; p < packs; p += kAtOnce * kBlock) {
    Pack<T, kWidth> some[kAtOnce] = {};
#pragma unroll
    for (unsigned k = 0; k < kAtOnce; ++k) {
      if (p + k * kBlock < packs) some[k] = load_pack<kWidth>(x + std::size_t{p + k * kBlock} * kWidth);
    }
#pragma unroll
    for (unsigned k = 0; k < kAtOnce; ++k) {
      if (p + k * kBlock >= packs) continue;
#pragma unroll
      for (unsigned j = 0; j < kWidth; ++j) result = R::join(result, R::of(to_float(some[k].values[j])));
    }
  }
  for (unsigned i = packs * kWidth + threadIdx.x; i < count; i += kBlock)
    result = R::join(result, R::of(to_float(x[i])));
  return block_reduce<Join<R>, kBlock>(result, shared);
}

template <class R, class T>
__global__ void __launch_bounds__(kBlock) reduce_kernel(const T* __restrict__ x, float* parts, std::size_t count) {
  __shared__ float shared[kBlock / kWarp];
  const std::size_t first = std::size_t{blockIdx.x} * kReduceChunk;
  const std::size_t rest = count - first;
  const float part =
      reduce_values<R>(x + first, static_cast<unsigned>(rest < kReduceChunk ? rest : kReduceChunk), shared);
  if (threadIdx.x == 0) parts[blockIdx.x] = part;
}
template <class T>
__global__ void __launch_bounds__(kBlock)
    squares_kernel(const ReduceTensor<T>* __restrict__ tensors, unsigned count, float* parts) {
  __shared__ float shared[kBlock / kWarp];
  const ReduceTensor<T> tensor = tensors[tensor_of_chunk(tensors, count, blockIdx.x)];
  const std::size_t first = (blockIdx.x - tensor.first_chunk) * kReduceChunk;
  const std::size_t rest = tensor.size - first;
  const float part = reduce_values<SquaresOf>(tensor.values + first,
                                              static_cast<unsigned>(rest < kReduceChunk ? rest : kReduceChunk), shared);
  if (threadIdx.x == 0) parts[blockIdx.x] = part;
}

enum class End : unsigned char { kPlain, kMean, kRoot, kFlag };

/// Of the parts, by one block in a fixed order.
template <class R>
__global__ void __launch_bounds__(kBlock)
    reduce_end_kernel(const float* __restrict__ parts, std::size_t count, End end, float values, void* result) {
  __shared__ float shared[kBlock / kWarp];
  float all = R::kStart;
  for (std::size_t i = threadIdx.x; i < count; i += kBlock) all = R::join(all, parts[i]);
  all = block_reduce<Join<R>, kBlock>(all, shared);
  if (threadIdx.x != 0) return;
  if (end == End::kFlag) {
    *static_cast<std::uint32_t*>(result) = all > 0.0F ? 1U : 0U;
    return;
  }
  if (end == End::kMean) all /= values;
  if (end == End::kRoot) all = sqrtf(all);
  *static_cast<float*>(result) = all;
}

__global__ void clip_factor_kernel(const float* norm, float norm_max, float* factor) {
  if (threadIdx.x != 0) return;
  const float share = norm_max / *norm;
  *factor = share > 1.0F ? 1.0F : share;
}

struct Best {
  float value;
  unsigned index;
  __device__ bool beats(const Best& other) const {
    const bool is_nan = value != value;
    const bool other_is_nan = other.value != other.value;
    if (is_nan != other_is_nan) return is_nan;
    if (is_nan || value == other.value) return index < other.index;
    return value > other.value;
  }
};

/// A row a block, or a warp. Values of rows that are not aligned are read one by one: coalesced all the same.
template <class T, unsigned kThreads>
__global__ void __launch_bounds__(kBlock)
    argmax_kernel(const T* __restrict__ x, std::int32_t* indices, float* values, std::size_t rows, unsigned columns) {
  __shared__ Best shared[kBlock / kWarp];
  constexpr unsigned kRows = kBlock / kThreads;
  const unsigned thread = threadIdx.x % kThreads;
  const std::size_t rounds = (rows + kRows - 1) / kRows;
  for (std::size_t round = blockIdx.x; round < rounds; round += gridDim.x) {
    const std::size_t row = round * kRows + threadIdx.x / kThreads;
    Best best{-kInfinity, 0xffffffffU};
    if (row < rows) {
      const T* const from = x + row * columns;
      constexpr unsigned kWidth = kPack<T>;
      const unsigned packs = reinterpret_cast<std::uintptr_t>(from) % 16 == 0 ? columns / kWidth : 0;
      for (unsigned p = thread; p < packs; p += kThreads) {
        const auto some = load_pack<kWidth>(from + std::size_t{p} * kWidth);
#pragma unroll
        for (unsigned j = 0; j < kWidth; ++j) {
          const Best one{to_float(some.values[j]), p * kWidth + j};
          if (one.beats(best)) best = one;
        }
      }
      for (unsigned c = packs * kWidth + thread; c < columns; c += kThreads) {
        const Best one{to_float(from[c]), c};
        if (one.beats(best)) best = one;
      }
    }
#pragma unroll
    for (unsigned mask = kWarp / 2; mask > 0; mask /= 2) {
      const Best other{shuffle_xor(best.value, mask), shuffle_xor(best.index, mask)};
      if (other.beats(best)) best = other;
    }
    if constexpr (kThreads > kWarp) {
      __syncthreads();  // All threads have read the last row's.
      if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = best;
      __syncthreads();
      for (unsigned w = 0; w < kBlock / kWarp; ++w) {
        if (shared[w].beats(best)) best = shared[w];
      }
    }
    if (thread == 0 && row < rows) {
      indices[row] = static_cast<std::int32_t>(best.index);
      if (values != nullptr) values[row] = best.value;
    }
  }
}

template <class R, class T>
void two_stages(device::Span<const T> x, device::Span<float> workspace, End end, void* result, device::Stream& stream) {
  const std::size_t parts = reduce_workspace(x.size());
  if (parts > 0)
    launch("reduce", reduce_kernel<R, T>, {dim3(static_cast<unsigned>(parts)), dim3(kBlock)}, stream, x.device_data(),
           workspace.device_data(), x.size());
  launch("reduce end", reduce_end_kernel<R>, {dim3(1), dim3(kBlock)}, stream, workspace.device_data(), parts, end,
         static_cast<float>(x.size()), result);
}

}  // namespace

template <class T>
void run(const Reduce<T>& call, device::Stream& stream) {
  float* const to = call.result.device_data();
  if (call.kind == ReduceKind::kSum) two_stages<SumOf>(call.x, call.workspace, End::kPlain, to, stream);
  if (call.kind == ReduceKind::kMean) two_stages<SumOf>(call.x, call.workspace, End::kMean, to, stream);
  if (call.kind == ReduceKind::kMax) two_stages<MaxOf>(call.x, call.workspace, End::kPlain, to, stream);
  if (call.kind != ReduceKind::kSumOfSquares) return;
  const std::size_t parts = reduce_workspace(call.x.size());
  if (parts > 0)
    launch("reduce", reduce_kernel<SquaresOf, T>, {dim3(static_cast<unsigned>(parts)), dim3(kBlock)}, stream,
           call.x.device_data(), call.workspace.device_data(), call.x.size());
  launch("reduce end", reduce_end_kernel<SumOf>, {dim3(1), dim3(kBlock)}, stream, call.workspace.device_data(), parts,
         End::kPlain, 0.0F, static_cast<void*>(to));
}
template <class T>
void run(const AnyNotFinite<T>& call, device::Stream& stream) {
  const std::size_t parts = reduce_workspace(call.x.size());
  if (parts > 0)
    launch("any not finite", reduce_kernel<NotFiniteOf, T>, {dim3(static_cast<unsigned>(parts)), dim3(kBlock)}, stream,
           call.x.device_data(), call.workspace.device_data(), call.x.size());
  launch("any not finite end", reduce_end_kernel<SumOf>, {dim3(1), dim3(kBlock)}, stream, call.workspace.device_data(),
         parts, End::kFlag, 0.0F, static_cast<void*>(call.flag.device_data()));
}
template <class T>
void run(const GradientNorm<T>& call, device::Stream& stream) {
  if (call.table.chunks > 0)
    launch("gradient norm", squares_kernel<T>, {dim3(static_cast<unsigned>(call.table.chunks)), dim3(kBlock)}, stream,
           call.table.tensors.device_data(), static_cast<unsigned>(call.table.tensors.size()),
           call.workspace.device_data());
  launch("gradient norm end", reduce_end_kernel<SumOf>, {dim3(1), dim3(kBlock)}, stream, call.workspace.device_data(),
         call.table.chunks, End::kRoot, 0.0F, static_cast<void*>(call.norm.device_data()));
}
void run(const ClipFactor& call, device::Stream& stream) {
  launch("clip factor", clip_factor_kernel, {dim3(1), dim3(kWarp)}, stream, call.norm.device_data(), call.norm_max,
         call.factor.device_data());
}
template <class T>
void run(const ArgmaxRows<T>& call, device::Stream& stream) {
  const bool narrow = call.shape.columns <= 1024;
  const std::size_t rounds = narrow ? blocks_for(call.shape.rows, kBlock / kWarp) : call.shape.rows;
  const LaunchShape grid{dim3(static_cast<unsigned>(std::min<std::size_t>(rounds, multiprocessors(stream) * 32U))),
                         dim3(kBlock)};
  const auto columns = static_cast<unsigned>(call.shape.columns);
  if (narrow) {
    launch("argmax", argmax_kernel<T, kWarp>, grid, stream, call.x.device_data(), call.indices.device_data(),
           call.values.device_data(), call.shape.rows, columns);
  } else {
    launch("argmax", argmax_kernel<T, kBlock>, grid, stream, call.x.device_data(), call.indices.device_data(),
           call.values.device_data(), call.shape.rows, columns);
  }
}

DUNNOCK_INSTANTIATE_KERNELS(Reduce, AnyNotFinite, GradientNorm, ArgmaxRows);

}  // namespace dunnock::kernels::detail::DUNNOCK_KERNELS
