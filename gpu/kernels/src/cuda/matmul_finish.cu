// What cuBLASLt does not fuse: the rest of an epilogue, and the sums of columns. Floors: finish reads v (and what else
// is wanted) and writes c once; the sums read the matrix once.
#include "cuda/device_code.hpp"
#include "matmul_parts.hpp"

namespace dunnock::kernels::detail::DUNNOCK_KERNELS {
namespace {

using namespace device_code;

constexpr unsigned kBlock = 256;

/// (1 + tanh(u)) / 2 of GELU's u; below -10 GELU is nothing in float, and the exponential overflows far out.
__device__ inline float gelu_gate(float x) {
  const float u = 0.7978845608F * (x + 0.044715F * x * x * x);
  return x < -10.0F ? 0.0F : 1.0F / (1.0F + expf(-2.0F * u));
}
__device__ inline float gelu_derivative(float at) {
  const float x = fminf(fmaxf(at, -10.0F), 10.0F);  // Constant beyond, and no squares that overflow.
  const float gate = gelu_gate(x);
  return gate + 2.0F * x * gate * (1.0F - gate) * 0.7978845608F * (1.0F + 3.0F * 0.044715F * x * x);
}

struct FinishShape {
  std::size_t rows;  // of all matrices
  std::size_t rows_a_matrix;
  std::size_t ld;
  std::size_t stride;
  unsigned packs;  // a row
  unsigned lanes;  // threads a row: a power of two
};

template <class C, unsigned kWidth>
__global__ void __launch_bounds__(kBlock) finish_kernel(MatmulFinish<C> f, FinishShape shape) {
  const unsigned rows_a_block = kBlock / shape.lanes;
  const unsigned first = blockIdx.x * shape.lanes + threadIdx.x % shape.lanes;
  for (std::size_t row = std::size_t{blockIdx.y} * rows_a_block + threadIdx.x / shape.lanes; row < shape.rows;
       row += std::size_t{gridDim.y} * rows_a_block) {
    const std::size_t by = row / shape.rows_a_matrix * shape.stride + row % shape.rows_a_matrix * shape.ld;
    for (unsigned p = first; p < shape.packs; p += gridDim.x * shape.lanes) {
      const std::size_t at = by + std::size_t{p} * kWidth;
      float values[kWidth] = {};
      if (f.scale != 0.0F) {
        const auto v = load_pack<kWidth>(f.v + at);
#pragma unroll
        for (unsigned j = 0; j < kWidth; ++j) values[j] = f.scale * to_float(v.values[j]);
      }
      if (f.beta != 0.0F) {
        const auto c = load_pack<kWidth>(f.c + at);
#pragma unroll
        for (unsigned j = 0; j < kWidth; ++j) values[j] += f.beta * to_float(c.values[j]);
      }
      if (f.bias != nullptr) {
        const auto bias = load_pack<kWidth>(f.bias + std::size_t{p} * kWidth);
#pragma unroll
        for (unsigned j = 0; j < kWidth; ++j) values[j] += to_float(bias.values[j]);
      }
      Pack<C, kWidth> out;
      if (f.saved != nullptr) {
#pragma unroll
        for (unsigned j = 0; j < kWidth; ++j) out.values[j] = from_float<C>(values[j]);
        store_pack(f.saved + at, out);
      }
      if (f.gradient_at != nullptr) {
        const auto x = load_pack<kWidth>(f.gradient_at + at);
#pragma unroll
        for (unsigned j = 0; j < kWidth; ++j) {
          const float here = to_float(x.values[j]);
          if (f.activation == MatmulActivation::kRelu) values[j] = here <= 0.0F ? 0.0F : values[j];
          if (f.activation == MatmulActivation::kGelu) values[j] *= gelu_derivative(here);
        }
      } else {
#pragma unroll
        for (unsigned j = 0; j < kWidth; ++j) {
          if (f.activation == MatmulActivation::kRelu) values[j] = values[j] < 0.0F ? 0.0F : values[j];
          if (f.activation == MatmulActivation::kGelu) values[j] *= gelu_gate(values[j]);
        }
      }
#pragma unroll
      for (unsigned j = 0; j < kWidth; ++j) out.values[j] = from_float<C>(values[j]);
      store_pack(f.c + at, out);
    }
  }
}

template <class C, unsigned kWidth>
void launch_finish(const MatmulFinish<C>& finish, const MatmulShape& s, device::Stream& stream) {
  FinishShape shape{s.count * s.rows, s.rows, s.ldc, s.stride_c, static_cast<unsigned>(s.columns / kWidth), kWarp};
  while (shape.lanes < kBlock && shape.lanes < shape.packs) shape.lanes *= 2;
  const unsigned across = blocks_for(shape.packs, shape.lanes);
  const std::size_t down = (shape.rows + kBlock / shape.lanes - 1) / (kBlock / shape.lanes);
  // Some blocks more than fit at once.
  const std::size_t wanted = std::size_t{multiprocessors(stream)} * 32 / across + 1;
  const auto blocks = static_cast<unsigned>(std::min<std::size_t>({down, wanted, 65535}));
  launch("matrix product's epilogue", finish_kernel<C, kWidth>, {dim3(across, blocks), dim3(kBlock)}, stream, finish,
         shape);
}

// ----- sums ---------------------------------------------------------------------------------------------------------

constexpr unsigned kColumns = 32;
constexpr unsigned kRowsAtOnce = kBlock / kColumns;
constexpr unsigned kSlicesMax = 64;

/// Block (b, s): columns b * 32 .. of slice s of the rows -> sums[s] (columns).
template <class T>
__global__ void __launch_bounds__(kBlock)
    column_slices_kernel(const T* __restrict__ from, std::size_t rows, std::size_t columns, std::size_t ld,
                         float* __restrict__ sums) {
  __shared__ float shared[kRowsAtOnce][kColumns];
  const unsigned lane = threadIdx.x % kColumns;
  const std::size_t c = std::size_t{blockIdx.x} * kColumns + lane;
  const std::size_t first = rows * blockIdx.y / gridDim.y;
  const std::size_t last = rows * (blockIdx.y + 1) / gridDim.y;
  float sum = 0;
  if (c < columns) {
    for (std::size_t row = first + threadIdx.x / kColumns; row < last; row += kRowsAtOnce)
      sum += to_float(from[row * ld + c]);
  }
  shared[threadIdx.x / kColumns][lane] = sum;
  __syncthreads();
  if (threadIdx.x >= kColumns || c >= columns) return;
  sum = 0;
#pragma unroll
  for (unsigned i = 0; i < kRowsAtOnce; ++i) sum += shared[i][lane];
  sums[blockIdx.y * columns + c] = sum;
}

template <class C>
__global__ void __launch_bounds__(kBlock) column_slices_sum_kernel(const float* __restrict__ slices, unsigned count,
                                                                   std::size_t columns, C* sums, bool adds) {
  const std::size_t c = std::size_t{blockIdx.x} * kBlock + threadIdx.x;
  if (c >= columns) return;
  float sum = adds ? to_float(sums[c]) : 0.0F;
  for (unsigned s = 0; s < count; ++s) sum += slices[s * columns + c];
  sums[c] = from_float<C>(sum);
}

/// A warp a line of `length` values.
template <class T, class C>
__global__ void __launch_bounds__(kBlock) line_sums_kernel(const T* __restrict__ from, std::size_t lines,
                                                           std::size_t length, std::size_t ld, C* sums, bool adds) {
  const unsigned lane = threadIdx.x % kWarp;
  const std::size_t line = std::size_t{blockIdx.x} * (kBlock / kWarp) + threadIdx.x / kWarp;
  if (line >= lines) return;  // A whole warp.
  float sum = 0;
  for (std::size_t i = lane; i < length; i += kWarp) sum += to_float(from[line * ld + i]);
  sum = warp_reduce<Sum>(sum);
  if (lane == 0) sums[line] = from_float<C>(sum + (adds ? to_float(sums[line]) : 0.0F));
}

}  // namespace

template <class C>
void matmul_finish(const MatmulFinish<C>& finish, const MatmulShape& s, device::Stream& stream) {
  if (s.count * s.rows * s.columns == 0) return;
  const bool packs = s.columns % kPack<C> == 0 && s.ldc % kPack<C> == 0 && s.stride_c % kPack<C> == 0 &&
                     is_aligned(finish.v) && is_aligned(finish.c) && is_aligned(finish.saved) &&
                     is_aligned(finish.gradient_at) && is_aligned(finish.bias);
  if (packs) {
    launch_finish<C, kPack<C>>(finish, s, stream);
  } else {
    launch_finish<C, 1>(finish, s, stream);
  }
}

std::size_t column_sums_workspace_bytes(std::size_t columns) noexcept { return kSlicesMax * columns * sizeof(float); }

template <class T, class C>
void column_sums(const StoredColumnSums<T, C>& what, float* workspace, device::Stream& stream) {
  if (what.columns == 0) return;
  if (what.transposed) {
    launch("sums of rows", line_sums_kernel<T, C>, {dim3(blocks_for(what.columns, kBlock / kWarp)), dim3(kBlock)},
           stream, what.from, what.columns, what.rows, what.ld, what.sums, what.adds);
    return;
  }
  const unsigned across = blocks_for(what.columns, kColumns);
  const std::size_t wanted = std::size_t{multiprocessors(stream)} * 4 / across + 1;
  const auto slices = static_cast<unsigned>(
      std::max<std::size_t>(1, std::min<std::size_t>({wanted, what.rows / 64, std::size_t{kSlicesMax}})));
  launch("sums of columns", column_slices_kernel<T>, {dim3(across, slices), dim3(kBlock)}, stream, what.from, what.rows,
         what.columns, what.ld, workspace);
  launch("sums of columns", column_slices_sum_kernel<C>, {dim3(blocks_for(what.columns, kBlock)), dim3(kBlock)}, stream,
         workspace, slices, what.columns, what.sums, what.adds);
}

template void matmul_finish<float>(const MatmulFinish<float>&, const MatmulShape&, device::Stream&);
template void matmul_finish<device::Bf16>(const MatmulFinish<device::Bf16>&, const MatmulShape&, device::Stream&);
template void column_sums<float, float>(const StoredColumnSums<float, float>&, float*, device::Stream&);
template void column_sums<device::Bf16, device::Bf16>(const StoredColumnSums<device::Bf16, device::Bf16>&, float*,
                                                      device::Stream&);
template void column_sums<device::Bf16, float>(const StoredColumnSums<device::Bf16, float>&, float*, device::Stream&);

}  // namespace dunnock::kernels::detail::DUNNOCK_KERNELS
