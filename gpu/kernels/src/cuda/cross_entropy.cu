// Floor: the logits are read once from memory and the gradient is written once. The second read of a row, for the
// gradient, comes from the L2 cache: two blocks a multiprocessor hold 264 rows, 26 MiB of 50257 bf16 (L2 of an H200:
// 50).
#include <algorithm>
#include <limits>

#include "cuda/device_code.hpp"
#include "dispatch.hpp"
#include "dunnock/kernels/cross_entropy.hpp"

namespace dunnock::kernels::detail::DUNNOCK_KERNELS {
namespace {

using namespace device_code;

constexpr unsigned kWide = 1024;   // threads a row: a block
constexpr unsigned kNarrow = 128;  // a block of 4 rows, each of a warp
constexpr float kNothing = -3.4028234e38F;
__device__ inline bool is_nothing(float max) { return !(max > kNothing); }

struct RowSum {
  float max, sum_exp, sum;
};

/// f(first, width as a constant) for a thread's share of a row: single values until `row` is aligned, packs, the rest.
template <class T, unsigned kThreads, class F>
__device__ void each_pack(const T* row, unsigned columns, unsigned thread, const F& f) {
  const auto beyond = static_cast<unsigned>(reinterpret_cast<std::uintptr_t>(row) % 16 / sizeof(T));
  const unsigned before = beyond == 0 ? 0 : kPack<T> - beyond;
  const unsigned head = before < columns ? before : columns;
  const unsigned packs = (columns - head) / kPack<T>;
  for (unsigned c = thread; c < head; c += kThreads) f(c, std::integral_constant<unsigned, 1>{});
  for (unsigned p = thread; p < packs; p += kThreads)
    f(head + p * kPack<T>, std::integral_constant<unsigned, kPack<T>>{});
  for (unsigned c = head + packs * kPack<T> + thread; c < columns; c += kThreads)
    f(c, std::integral_constant<unsigned, 1>{});
}

/// Of the whole row, for all its threads: running maximum and sum, so that the row is read once.
template <class T, unsigned kThreads>
__device__ RowSum sum_row(const T* row, unsigned columns, unsigned thread, float* shared) {
  float max = kNothing;
  float sum_exp = 0;
  float sum = 0;
  each_pack<T, kThreads>(row, columns, thread, [&](unsigned c, auto width) {
    constexpr unsigned kWidth = decltype(width)::value;
    const auto pack = load_pack<kWidth>(row + c);
    float values[kWidth];
    float now = max;
#pragma unroll
    for (unsigned j = 0; j < kWidth; ++j) {
      values[j] = to_float(pack.values[j]);
      now = values[j] > now ? values[j] : now;
    }
    sum_exp *= __expf(max - now);
    max = now;
#pragma unroll
    for (unsigned j = 0; j < kWidth; ++j) {
      sum_exp += __expf(values[j] - max);  // While all are -infinity: exp of that, 0. A NaN stays.
      sum += values[j];
    }
  });
  RowSum all;
  if constexpr (kThreads == kWarp) {
    all.max = warp_reduce<Max>(max);
    all.sum_exp = warp_reduce<Sum>(sum_exp * __expf(max - all.max));
    all.sum = warp_reduce<Sum>(sum);
  } else {
    all.max = block_reduce<Max, kThreads>(max, shared);
    all.sum_exp = block_reduce<Sum, kThreads>(sum_exp * __expf(max - all.max), shared);
    all.sum = block_reduce<Sum, kThreads>(sum, shared);
  }
  return all;
}

/// exp(x - max) * factor - shift. `row` and `to` are aligned alike, or one by one.
template <class T, unsigned kThreads>
__device__ void write_row(const T* row, T* to, unsigned columns, unsigned thread, float max, float factor,
                          float shift) {
  const auto some = [&](unsigned c, auto width) {
    constexpr unsigned kWidth = decltype(width)::value;
    const auto pack = load_pack<kWidth>(row + c);
    Pack<T, kWidth> out;
#pragma unroll
    for (unsigned j = 0; j < kWidth; ++j)
      out.values[j] = from_float<T>(__expf(to_float(pack.values[j]) - max) * factor - shift);
    store_pack(to + c, out);
  };
  if ((reinterpret_cast<std::uintptr_t>(row) - reinterpret_cast<std::uintptr_t>(to)) % 16 == 0) {
    each_pack<T, kThreads>(row, columns, thread, some);
  } else {
    for (unsigned c = thread; c < columns; c += kThreads) some(c, std::integral_constant<unsigned, 1>{});
  }
}

template <unsigned kThreads>
inline constexpr unsigned kBlockOf = kThreads == kWarp ? kNarrow : kWide;

template <class T, unsigned kThreads>
__global__ void __launch_bounds__(kBlockOf<kThreads>)
    cross_entropy_kernel(const T* logits, const std::int32_t* __restrict__ targets, float* __restrict__ losses,
                         T* gradient, CrossEntropyShape shape) {
  __shared__ float shared[kWide / kWarp];
  constexpr unsigned kRows = kBlockOf<kThreads> / kThreads;
  const unsigned thread = threadIdx.x % kThreads;
  const auto classes = static_cast<unsigned>(shape.classes);
  const float smooth = shape.label_smoothing;
  const float shift = shape.gradient_factor * smooth / static_cast<float>(classes);
  for (std::size_t row = std::size_t{blockIdx.x} * kRows + threadIdx.x / kThreads; row < shape.rows;
       row += std::size_t{gridDim.x} * kRows) {
    const T* const x = logits + row * classes;
    T* const out = gradient == nullptr ? nullptr : gradient + row * classes;
    const std::int32_t target = targets[row];
    const bool ignored = target == shape.ignore_index;
    if (ignored || target < 0 || static_cast<unsigned>(target) >= classes) {
      if (thread == 0) losses[row] = ignored ? 0.0F : std::numeric_limits<float>::quiet_NaN();
      for (unsigned c = thread; out != nullptr && c < classes; c += kThreads) out[c] = from_float<T>(0.0F);
      continue;
    }
    const RowSum all = sum_row<T, kThreads>(x, classes, thread, shared);
    const float at_target = to_float(x[target]);
    if (thread == 0) {
      float loss = all.max + logf(all.sum_exp) - (1.0F - smooth) * at_target;
      if (smooth != 0) loss -= smooth * all.sum / static_cast<float>(classes);
      losses[row] = is_nothing(all.max) ? std::numeric_limits<float>::quiet_NaN() : loss;
    }
    if (out == nullptr) continue;
    if constexpr (kThreads == kWarp) {
      sync_warp();  // All have read the target's logit, which may be overwritten.
    } else {
      __syncthreads();
    }
    write_row<T, kThreads>(x, out, classes, thread, all.max, shape.gradient_factor / all.sum_exp, shift);
    if constexpr (kThreads == kWarp) {
      sync_warp();
    } else {
      __syncthreads();
    }
    if (thread == 0) {
      const float p = __expf(at_target - all.max) / all.sum_exp;
      out[target] = from_float<T>(shape.gradient_factor * (p - (1.0F - smooth)) - shift);
    }
  }
}

/// y, or the logarithms of the sums where y is null.
template <class T, unsigned kThreads>
__global__ void __launch_bounds__(kBlockOf<kThreads>)
    softmax_kernel(const T* x, T* y, float* sums, std::size_t rows, unsigned columns) {
  __shared__ float shared[kWide / kWarp];
  constexpr unsigned kRows = kBlockOf<kThreads> / kThreads;
  const unsigned thread = threadIdx.x % kThreads;
  for (std::size_t row = std::size_t{blockIdx.x} * kRows + threadIdx.x / kThreads; row < rows;
       row += std::size_t{gridDim.x} * kRows) {
    const T* const from = x + row * columns;
    const RowSum all = sum_row<T, kThreads>(from, columns, thread, shared);
    const bool nothing = is_nothing(all.max);
    const float nan = std::numeric_limits<float>::quiet_NaN();
    if (y != nullptr) {
      write_row<T, kThreads>(from, y + row * columns, columns, thread, all.max, nothing ? nan : 1.0F / all.sum_exp,
                             0.0F);
    } else if (thread == 0) {
      sums[row] = nothing ? nan : all.max + logf(all.sum_exp);
    }
  }
}

constexpr unsigned kMeanBlock = 256;

__global__ void __launch_bounds__(kMeanBlock)
    mean_kernel(const float* __restrict__ losses, const std::int32_t* __restrict__ targets, std::int32_t ignore_index,
                float* mean, std::size_t count) {
  __shared__ float shared[kMeanBlock / kWarp];
  float sum = 0;
  float rows = 0;  // Exact up to 2^24 a thread.
  for (std::size_t i = threadIdx.x; i < count; i += kMeanBlock) {
    if (targets[i] == ignore_index) continue;
    sum += losses[i];
    rows += 1.0F;
  }
  sum = block_reduce<Sum, kMeanBlock>(sum, shared);
  rows = block_reduce<Sum, kMeanBlock>(rows, shared);
  if (threadIdx.x == 0) *mean = sum / rows;
}

template <class F>
void with_threads(std::size_t rows, std::size_t columns, device::Stream& stream, const F& f) {
  const std::size_t processors = multiprocessors(stream);
  if (columns <= 1024) {
    const std::size_t blocks = std::min<std::size_t>(blocks_for(rows, kNarrow / kWarp), processors * 16 * 4);
    f(std::integral_constant<unsigned, kWarp>{}, LaunchShape{dim3(static_cast<unsigned>(blocks)), dim3(kNarrow)});
  } else {
    const std::size_t blocks = std::min(rows, processors * 2);  // What L2 holds: see above.
    f(std::integral_constant<unsigned, kWide>{}, LaunchShape{dim3(static_cast<unsigned>(blocks)), dim3(kWide)});
  }
}

template <class T>
void softmax_or_sums(device::Span<const T> x, T* y, float* sums, const SoftmaxShape& shape, device::Stream& stream) {
  with_threads(shape.rows, shape.columns, stream, [&](auto threads, const LaunchShape& launch_shape) {
    constexpr unsigned kThreads = decltype(threads)::value;
    launch(y != nullptr ? "softmax" : "log-sum-exp", softmax_kernel<T, kThreads>, launch_shape, stream, x.device_data(),
           y, sums, shape.rows, static_cast<unsigned>(shape.columns));
  });
}

}  // namespace

template <class T>
void run(const CrossEntropy<T>& call, device::Stream& stream) {
  with_threads(call.shape.rows, call.shape.classes, stream, [&](auto threads, const LaunchShape& launch_shape) {
    constexpr unsigned kThreads = decltype(threads)::value;
    launch("cross-entropy", cross_entropy_kernel<T, kThreads>, launch_shape, stream, call.logits.device_data(),
           call.targets.device_data(), call.losses.device_data(), call.gradient.device_data(), call.shape);
  });
}
void run(const CrossEntropyMean& call, device::Stream& stream) {
  launch("mean of losses", mean_kernel, {dim3(1), dim3(kMeanBlock)}, stream, call.losses.device_data(),
         call.targets.device_data(), call.ignore_index, call.mean.device_data(), call.losses.size());
}
template <class T>
void run(const Softmax<T>& call, device::Stream& stream) {
  softmax_or_sums<T>(call.x, call.y.device_data(), nullptr, call.shape, stream);
}
template <class T>
void run(const LogSumExp<T>& call, device::Stream& stream) {
  softmax_or_sums<T>(call.x, nullptr, call.sums.device_data(), call.shape, stream);
}

DUNNOCK_INSTANTIATE_KERNELS(CrossEntropy, Softmax, LogSumExp);

}  // namespace dunnock::kernels::detail::DUNNOCK_KERNELS
