// Floor: forward reads x and writes y once; backward reads dy and x and writes dx. A row is held in registers between
// the passes over it where it fits.
#include "cuda/device_code.hpp"
#include "norm_parts.hpp"

namespace dunnock::kernels::detail::DUNNOCK_KERNELS {
namespace {

using namespace device_code;

constexpr unsigned kBlock = 256;
constexpr unsigned kHeldFloats = 32;  // a thread; what does not fit is read again, from a cache

/// What a thread has of a row: packs thread, thread + kThreads, ... of kWidth values.
template <class T, unsigned kWidth, unsigned kThreads>
struct RowReader {
  static constexpr unsigned kHeld = kHeldFloats / kWidth;
  float held[kHeld][kWidth];

  __device__ void read(const T* row, unsigned packs, unsigned thread) {
#pragma unroll
    for (unsigned i = 0; i < kHeld; ++i) {
      const unsigned p = thread + i * kThreads;
      if (p < packs) {
        const auto pack = load_pack<kWidth>(row + std::size_t{p} * kWidth);
#pragma unroll
        for (unsigned j = 0; j < kWidth; ++j) held[i][j] = to_float(pack.values[j]);
      }
    }
  }
  /// f(pack number, its values as float[kWidth]) for each of the thread's packs.
  template <class F>
  __device__ void each(const T* row, unsigned packs, unsigned thread, const F& f) const {
#pragma unroll
    for (unsigned i = 0; i < kHeld; ++i) {
      if (thread + i * kThreads < packs) f(thread + i * kThreads, held[i]);
    }
    for (unsigned p = thread + kHeld * kThreads; p < packs; p += kThreads) {
      const auto pack = load_pack<kWidth>(row + std::size_t{p} * kWidth);
      float values[kWidth];
#pragma unroll
      for (unsigned j = 0; j < kWidth; ++j) values[j] = to_float(pack.values[j]);
      f(p, values);
    }
  }
};

template <class Operation, unsigned kThreads>
__device__ float row_reduce(float value, float* shared) {
  if constexpr (kThreads == kWarp) return warp_reduce<Operation>(value);
  return block_reduce<Operation, kThreads>(value, shared);
}

/// kThreads a row: a warp, or the whole block.
template <bool kCentred, class T, unsigned kWidth, unsigned kThreads>
__global__ void __launch_bounds__(kBlock)
    norm_kernel(const T* x, const T* __restrict__ weight, const T* __restrict__ bias, T* y, float* mean, float* r,
                std::size_t rows, unsigned columns, float epsilon) {
  __shared__ float shared[kBlock / kWarp];
  const unsigned thread = threadIdx.x % kThreads;
  const unsigned packs = columns / kWidth;
  const float share = 1.0F / static_cast<float>(columns);
  constexpr unsigned kRowsABlock = kBlock / kThreads;
  for (std::size_t row = std::size_t{blockIdx.x} * kRowsABlock + threadIdx.x / kThreads; row < rows;
       row += std::size_t{gridDim.x} * kRowsABlock) {
    const T* const in = x + row * columns;
    RowReader<T, kWidth, kThreads> reader;
    reader.read(in, packs, thread);
    float centre = 0;
    if constexpr (kCentred) {
      reader.each(in, packs, thread, [&](unsigned, const float(&values)[kWidth]) {
#pragma unroll
        for (unsigned j = 0; j < kWidth; ++j) centre += values[j];
      });
      centre = row_reduce<Sum, kThreads>(centre, shared) * share;
    }
    float squares = 0;
    reader.each(in, packs, thread, [&](unsigned, const float(&values)[kWidth]) {
#pragma unroll
      for (unsigned j = 0; j < kWidth; ++j) squares += (values[j] - centre) * (values[j] - centre);
    });
    const float inverse = rsqrtf(row_reduce<Sum, kThreads>(squares, shared) * share + epsilon);
    reader.each(in, packs, thread, [&](unsigned p, const float(&values)[kWidth]) {
      const auto w = load_pack<kWidth>(weight + p * kWidth);
      Pack<T, kWidth> out;
      if constexpr (kCentred) {
        const auto b = load_pack<kWidth>(bias + p * kWidth);
#pragma unroll
        for (unsigned j = 0; j < kWidth; ++j)
          out.values[j] = from_float<T>((values[j] - centre) * inverse * to_float(w.values[j]) + to_float(b.values[j]));
      } else {
#pragma unroll
        for (unsigned j = 0; j < kWidth; ++j)
          out.values[j] = from_float<T>(values[j] * inverse * to_float(w.values[j]));
      }
      store_pack(y + row * columns + std::size_t{p} * kWidth, out);
    });
    if (thread == 0 && mean != nullptr) mean[row] = centre;
    if (thread == 0 && r != nullptr) r[row] = inverse;
  }
}

/// dx, a row at a time.
template <bool kCentred, class T, unsigned kWidth, unsigned kThreads>
__global__ void __launch_bounds__(kBlock)
    norm_dx_kernel(const T* dy, const T* __restrict__ x, const T* __restrict__ weight, const float* __restrict__ mean,
                   const float* __restrict__ r, T* dx, std::size_t rows, unsigned columns) {
  __shared__ float shared[kBlock / kWarp];
  const unsigned thread = threadIdx.x % kThreads;
  const unsigned packs = columns / kWidth;
  const float share = 1.0F / static_cast<float>(columns);
  constexpr unsigned kRowsABlock = kBlock / kThreads;
  for (std::size_t row = std::size_t{blockIdx.x} * kRowsABlock + threadIdx.x / kThreads; row < rows;
       row += std::size_t{gridDim.x} * kRowsABlock) {
    const float inverse = r[row];
    const float centre = kCentred ? mean[row] : 0.0F;
    const T* const in = x + row * columns;
    const T* const grad = dy + row * columns;
    RowReader<T, kWidth, kThreads> reader;
    RowReader<T, kWidth, kThreads> gradient;
    reader.read(in, packs, thread);
    gradient.read(grad, packs, thread);
    float sum = 0;
    float product = 0;
    // What is beyond the registers of both is read again here and below.
    const auto both = [&](const auto& f) {
      constexpr unsigned kHeld = RowReader<T, kWidth, kThreads>::kHeld;
#pragma unroll
      for (unsigned i = 0; i < kHeld; ++i) {
        if (thread + i * kThreads < packs) f(thread + i * kThreads, reader.held[i], gradient.held[i]);
      }
      for (unsigned p = thread + kHeld * kThreads; p < packs; p += kThreads) {
        const auto some_x = load_pack<kWidth>(in + std::size_t{p} * kWidth);
        const auto some_dy = load_pack<kWidth>(grad + std::size_t{p} * kWidth);
        float xs[kWidth];
        float dys[kWidth];
#pragma unroll
        for (unsigned j = 0; j < kWidth; ++j) {
          xs[j] = to_float(some_x.values[j]);
          dys[j] = to_float(some_dy.values[j]);
        }
        f(p, xs, dys);
      }
    };
    both([&](unsigned p, const float(&xs)[kWidth], const float(&dys)[kWidth]) {
      const auto w = load_pack<kWidth>(weight + p * kWidth);
#pragma unroll
      for (unsigned j = 0; j < kWidth; ++j) {
        const float g = dys[j] * to_float(w.values[j]);
        sum += g;
        product += g * (xs[j] - centre) * inverse;
      }
    });
    sum = kCentred ? row_reduce<Sum, kThreads>(sum, shared) * share : 0.0F;
    product = row_reduce<Sum, kThreads>(product, shared) * share;
    both([&](unsigned p, const float(&xs)[kWidth], const float(&dys)[kWidth]) {
      const auto w = load_pack<kWidth>(weight + p * kWidth);
      Pack<T, kWidth> out;
#pragma unroll
      for (unsigned j = 0; j < kWidth; ++j) {
        const float z = (xs[j] - centre) * inverse;
        out.values[j] = from_float<T>(inverse * (dys[j] * to_float(w.values[j]) - sum - z * product));
      }
      store_pack(dx + row * columns + std::size_t{p} * kWidth, out);
    });
  }
}

/// Columns that a block sums up, and the rows that its warps read at a time.
constexpr unsigned kColumns = 32;
constexpr unsigned kRowsAtOnce = kBlock / kColumns;

/// Block (b, s): columns b * 32 .. of slice s of the rows -> sums[s] (2, columns). Comes before dx, which may be dy.
template <bool kCentred, class T>
__global__ void __launch_bounds__(kBlock)
    norm_dweight_kernel(const T* __restrict__ dy, const T* __restrict__ x, const float* __restrict__ mean,
                        const float* __restrict__ r, float* __restrict__ sums, std::size_t rows, unsigned columns) {
  __shared__ float shared[2][kRowsAtOnce][kColumns];
  const unsigned lane = threadIdx.x % kColumns;
  const unsigned c = blockIdx.x * kColumns + lane;
  const std::size_t first = rows * blockIdx.y / gridDim.y;
  const std::size_t last = rows * (blockIdx.y + 1) / gridDim.y;
  float weights = 0;
  float biases = 0;
  if (c < columns) {
    for (std::size_t row = first + threadIdx.x / kColumns; row < last; row += kRowsAtOnce) {
      const float d = to_float(dy[row * columns + c]);
      const float centre = kCentred ? mean[row] : 0.0F;
      weights += d * (to_float(x[row * columns + c]) - centre) * r[row];
      biases += d;
    }
  }
  shared[0][threadIdx.x / kColumns][lane] = weights;
  shared[1][threadIdx.x / kColumns][lane] = biases;
  __syncthreads();
  if (threadIdx.x >= 2 * kColumns || c >= columns) return;
  const unsigned kind = threadIdx.x / kColumns;
  float sum = 0;
#pragma unroll
  for (unsigned i = 0; i < kRowsAtOnce; ++i) sum += shared[kind][i][lane];
  sums[(std::size_t{blockIdx.y} * 2 + kind) * columns + c] = sum;
}

/// Adds the slices up, in their order.
template <bool kCentred, class T>
__global__ void __launch_bounds__(kBlock) norm_dweight_sum_kernel(const float* __restrict__ sums, unsigned slices,
                                                                  T* dweight, T* dbias, bool adds, unsigned columns) {
  const unsigned c = blockIdx.x * kBlock + threadIdx.x;
  if (c >= columns) return;
  for (unsigned kind = 0; kind < (kCentred ? 2U : 1U); ++kind) {
    T* const out = kind == 0 ? dweight : dbias;
    float sum = adds ? to_float(out[c]) : 0.0F;
    for (unsigned s = 0; s < slices; ++s) sum += sums[(std::size_t{s} * 2 + kind) * columns + c];
    out[c] = from_float<T>(sum);
  }
}

/// Slices of the rows: enough blocks for the device, but no slice under 64 rows.
unsigned slices_of(const NormShape& shape, unsigned processors) {
  const std::size_t by_columns = blocks_for(shape.columns, kColumns);
  const std::size_t wanted = (4 * std::size_t{processors} + by_columns - 1) / by_columns;
  const std::size_t rows = shape.rows / 64;
  return static_cast<unsigned>(std::max<std::size_t>(1, std::min({wanted, rows, std::size_t{256}})));
}

/// Calls f with the width of packs that shape and addresses allow, and the threads a row.
template <class T, class F>
void with_row_shape(const NormShape& shape, bool aligned, const F& f) {
  const auto with_width = [&](auto width) {
    // A warp a row while its registers hold the row.
    if (shape.columns <= kWarp * kHeldFloats) {
      f(width, std::integral_constant<unsigned, kWarp>{});
    } else {
      f(width, std::integral_constant<unsigned, kBlock>{});
    }
  };
  if (aligned && shape.columns % kPack<T> == 0) {
    with_width(std::integral_constant<unsigned, kPack<T>>{});
  } else {
    with_width(std::integral_constant<unsigned, 1>{});
  }
}

unsigned blocks_for_rows(const NormShape& shape, unsigned threads_a_row, device::Stream& stream) {
  const std::size_t blocks = blocks_for(shape.rows, kBlock / threads_a_row);
  return static_cast<unsigned>(std::min<std::size_t>(blocks, std::size_t{multiprocessors(stream)} * 8 * 4));
}

template <bool kCentred, class T>
void forward(const LayerNorm<T>& call, device::Stream& stream) {
  const NormShape& shape = call.shape;
  const bool aligned = is_aligned(call.x.device_data()) && is_aligned(call.weight.device_data()) &&
                       is_aligned(call.bias.device_data()) && is_aligned(call.y.device_data());
  with_row_shape<T>(shape, aligned, [&](auto width, auto threads) {
    launch(kCentred ? "layer norm" : "RMS norm", norm_kernel<kCentred, T, width(), threads()>,
           {dim3(blocks_for_rows(shape, threads(), stream)), dim3(kBlock)}, stream, call.x.device_data(),
           call.weight.device_data(), call.bias.device_data(), call.y.device_data(), call.mean.device_data(),
           call.r.device_data(), shape.rows, static_cast<unsigned>(shape.columns), shape.epsilon);
  });
}

template <bool kCentred, class T>
void backward(const LayerNormBackward<T>& call, device::Stream& stream) {
  const NormShape& shape = call.shape;
  const auto columns = static_cast<unsigned>(shape.columns);
  const unsigned slices = slices_of(shape, multiprocessors(stream));
  launch("norm dweight", norm_dweight_kernel<kCentred, T>, {dim3(blocks_for(columns, kColumns), slices), dim3(kBlock)},
         stream, call.dy.device_data(), call.x.device_data(), call.mean.device_data(), call.r.device_data(),
         call.workspace.device_data(), shape.rows, columns);
  launch("norm dweight sum", norm_dweight_sum_kernel<kCentred, T>, {dim3(blocks_for(columns, kBlock)), dim3(kBlock)},
         stream, call.workspace.device_data(), slices, call.dweight.device_data(), call.dbias.device_data(), call.adds,
         columns);
  if (shape.rows == 0) return;
  const bool aligned = is_aligned(call.dy.device_data()) && is_aligned(call.x.device_data()) &&
                       is_aligned(call.weight.device_data()) && is_aligned(call.dx.device_data());
  with_row_shape<T>(shape, aligned, [&](auto width, auto threads) {
    launch(kCentred ? "layer norm dx" : "RMS norm dx", norm_dx_kernel<kCentred, T, width(), threads()>,
           {dim3(blocks_for_rows(shape, threads(), stream)), dim3(kBlock)}, stream, call.dy.device_data(),
           call.x.device_data(), call.weight.device_data(), call.mean.device_data(), call.r.device_data(),
           call.dx.device_data(), shape.rows, columns);
  });
}

}  // namespace

std::size_t norm_backward_workspace(const NormShape& shape, unsigned processors) {
  return std::size_t{slices_of(shape, processors)} * 2 * shape.columns;
}

template <class T>
void run(const LayerNorm<T>& call, device::Stream& stream) {
  forward<true>(call, stream);
}
template <class T>
void run(const RmsNorm<T>& call, device::Stream& stream) {
  forward<false>(
      LayerNorm<T>{
          .x = call.x, .weight = call.weight, .bias = {}, .y = call.y, .mean = {}, .r = call.r, .shape = call.shape},
      stream);
}
template <class T>
void run(const LayerNormBackward<T>& call, device::Stream& stream) {
  backward<true>(call, stream);
}
template <class T>
void run(const RmsNormBackward<T>& call, device::Stream& stream) {
  backward<false>(LayerNormBackward<T>{.dy = call.dy,
                                       .x = call.x,
                                       .weight = call.weight,
                                       .mean = {},
                                       .r = call.r,
                                       .dx = call.dx,
                                       .dweight = call.dweight,
                                       .dbias = {},
                                       .adds = call.adds,
                                       .shape = call.shape,
                                       .workspace = call.workspace},
                  stream);
}

DUNNOCK_INSTANTIATE_KERNELS(LayerNorm, RmsNorm, LayerNormBackward, RmsNormBackward);

}  // namespace dunnock::kernels::detail::DUNNOCK_KERNELS
