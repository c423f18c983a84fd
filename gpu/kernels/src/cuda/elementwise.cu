// Floor: each input is read once and each output written once.
#include "cuda/map.hpp"
#include "elementwise_parts.hpp"

namespace dunnock::kernels::detail::DUNNOCK_KERNELS {
namespace {

using namespace device_code;

struct AddScaledBody {
  float factor;
  __device__ void operator()(const float (&x)[2], float (&y)[1]) const { y[0] = x[0] + factor * x[1]; }
};
struct ScaleBody {
  float factor;
  __device__ void operator()(const float (&x)[1], float (&y)[1]) const { y[0] = factor * x[0]; }
};

struct AddReluBody {
  __device__ void operator()(const float (&x)[2], float (&y)[1]) const {
    const float sum = x[0] + x[1];
    y[0] = sum < 0 ? 0.0F : sum;
  }
};
struct AddReluBackwardBody {
  __device__ void operator()(const float (&x)[3], float (&y)[1]) const { y[0] = x[2] > 0 ? x[0] + x[1] : 0.0F; }
};

template <class T>
struct FillBody {
  T* y;
  float value;
  template <unsigned W>
  struct Held {};
  template <unsigned W>
  __device__ void load(Held<W>&, std::size_t) const {}
  template <unsigned W>
  __device__ void finish(const Held<W>&, std::size_t first) const {
    Pack<T, W> out;
#pragma unroll
    for (unsigned j = 0; j < W; ++j) out.values[j] = from_float<T>(value);
    store_pack(y + first, out);
  }
};

/// In packs of 4: 16 bytes of float, 8 of bf16.
template <class To, class From>
struct CastBody {
  const From* x;
  To* y;
  template <unsigned W>
  struct Held {
    Pack<From, W> x;
  };
  template <unsigned W>
  __device__ void load(Held<W>& held, std::size_t first) const {
    held.x = load_pack<W>(x + first);
  }
  template <unsigned W>
  __device__ void finish(const Held<W>& held, std::size_t first) const {
    Pack<To, W> out;
#pragma unroll
    for (unsigned j = 0; j < W; ++j) out.values[j] = from_float<To>(to_float(held.x.values[j]));
    store_pack(y + first, out);
  }
};

template <class T>
struct BiasAddBody {
  const T* x;
  const T* bias;
  T* y;
  std::size_t columns;
  bool small;  // 32 bits of division suffice
  template <unsigned W>
  struct Held {
    Pack<T, W> x, bias;
  };
  template <unsigned W>
  __device__ void load(Held<W>& held, std::size_t first) const {
    const std::size_t c = small ? static_cast<unsigned>(first) % static_cast<unsigned>(columns) : first % columns;
    held.x = load_pack<W>(x + first);
    held.bias = load_pack<W>(bias + c);
  }
  template <unsigned W>
  __device__ void finish(const Held<W>& held, std::size_t first) const {
    Pack<T, W> out;
#pragma unroll
    for (unsigned j = 0; j < W; ++j)
      out.values[j] = from_float<T>(to_float(held.x.values[j]) + to_float(held.bias.values[j]));
    store_pack(y + first, out);
  }
};

template <class T>
struct CopyColumnsBody {
  const T* from;
  T* to;
  bool adds;
  ColumnsShape shape;
  template <unsigned W>
  struct Held {
    Pack<T, W> from, to;
    std::size_t at;
  };
  template <unsigned W>
  __device__ void load(Held<W>& held, std::size_t first) const {
    const std::size_t row = first / shape.columns;
    const std::size_t c = first % shape.columns;
    held.from = load_pack<W>(from + row * shape.from_stride + c);
    held.at = row * shape.to_stride + c;
    if (adds) held.to = load_pack<W>(to + held.at);
  }
  template <unsigned W>
  __device__ void finish(const Held<W>& held, std::size_t) const {
    Pack<T, W> out = held.from;
#pragma unroll
    for (unsigned j = 0; adds && j < W; ++j)
      out.values[j] = from_float<T>(to_float(held.to.values[j]) + to_float(held.from.values[j]));
    store_pack(to + held.at, out);
  }
};

constexpr unsigned kBlock = 256;
constexpr unsigned kWarps = kBlock / kWarp;

/// Block (b, s): of slice s of the rows the sums of 32 * W columns -> parts[s]. Each warp takes each 8th row.
template <class T, unsigned W>
__global__ void __launch_bounds__(kBlock)
    column_sums_kernel(const T* __restrict__ x, float* __restrict__ parts, std::size_t rows, std::size_t columns) {
  __shared__ float shared[kWarps][kWarp * W];
  const unsigned warp = threadIdx.x / kWarp;
  const unsigned lane = threadIdx.x % kWarp;
  const std::size_t c = std::size_t{blockIdx.x} * (kWarp * W) + lane * W;
  const std::size_t last = rows * (blockIdx.y + 1) / gridDim.y;
  float sums[W] = {};
  if (c < columns) {
    constexpr unsigned kAtOnce = 4;
    std::size_t row = rows * blockIdx.y / gridDim.y + warp;
    for (; row + (kAtOnce - 1) * kWarps < last; row += kAtOnce * kWarps) {
      Pack<T, W> some[kAtOnce];
#pragma unroll
      for (unsigned k = 0; k < kAtOnce; ++k) some[k] = load_pack<W>(x + (row + k * kWarps) * columns + c);
#pragma unroll
      for (unsigned k = 0; k < kAtOnce; ++k) {
#pragma unroll
        for (unsigned j = 0; j < W; ++j) sums[j] += to_float(some[k].values[j]);
      }
    }
    for (; row < last; row += kWarps) {
      const auto some = load_pack<W>(x + row * columns + c);
#pragma unroll
      for (unsigned j = 0; j < W; ++j) sums[j] += to_float(some.values[j]);
    }
  }
#pragma unroll
  for (unsigned j = 0; j < W; ++j) shared[warp][lane * W + j] = sums[j];
  __syncthreads();
  for (unsigned i = threadIdx.x; i < kWarp * W; i += kBlock) {
    const std::size_t column = std::size_t{blockIdx.x} * (kWarp * W) + i;
    if (column >= columns) continue;
    float sum = 0;
#pragma unroll
    for (unsigned w = 0; w < kWarps; ++w) sum += shared[w][i];
    parts[std::size_t{blockIdx.y} * columns + column] = sum;
  }
}

/// Adds the slices up, in their order.
template <class T>
__global__ void __launch_bounds__(kBlock)
    column_sums_end_kernel(const float* __restrict__ parts, unsigned slices, T* sums, bool adds, std::size_t columns) {
  const std::size_t c = std::size_t{blockIdx.x} * kBlock + threadIdx.x;
  if (c >= columns) return;
  float sum = adds ? to_float(sums[c]) : 0.0F;
  for (unsigned s = 0; s < slices; ++s) sum += parts[s * columns + c];
  sums[c] = from_float<T>(sum);
}

/// Enough blocks for the device, but no slice under 32 rows.
unsigned slices_of(const RowMatrix& shape, unsigned processors) {
  const std::size_t by_columns = blocks_for(shape.columns, kWarp * 8);
  const std::size_t wanted = (8 * std::size_t{processors} + by_columns - 1) / by_columns;
  return static_cast<unsigned>(std::clamp<std::size_t>(std::min(wanted, shape.rows / 32), 1, 512));
}

}  // namespace

template <class T>
void run(const AddScaled<T>& call, device::Stream& stream) {
  constexpr unsigned kWidth = kPack<T>;
  const PlainMap<T, 2, 1, AddScaledBody> body{
      {call.a.device_data(), call.b.device_data()}, {call.y.device_data()}, {call.factor}};
  launch_map<kWidth>("add", body, call.y.size(), all_aligned(call.a, call.b, call.y), stream);
}
template <class T>
void run(const AddRelu<T>& call, device::Stream& stream) {
  constexpr unsigned kWidth = kPack<T>;
  const PlainMap<T, 2, 1, AddReluBody> body{{call.a.device_data(), call.b.device_data()}, {call.y.device_data()}, {}};
  launch_map<kWidth>("add and ReLU", body, call.y.size(), all_aligned(call.a, call.b, call.y), stream);
}
template <class T>
void run(const AddReluBackward<T>& call, device::Stream& stream) {
  constexpr unsigned kWidth = kPack<T>;
  const PlainMap<T, 3, 1, AddReluBackwardBody> body{
      {call.a.device_data(), call.b.device_data(), call.at.device_data()}, {call.y.device_data()}, {}};
  launch_map<kWidth>("add and ReLU backward", body, call.y.size(), all_aligned(call.a, call.b, call.at, call.y),
                     stream);
}
template <class T>
void run(const Scale<T>& call, device::Stream& stream) {
  constexpr unsigned kWidth = kPack<T>;
  const PlainMap<T, 1, 1, ScaleBody> body{{call.x.device_data()}, {call.y.device_data()}, {call.factor}};
  launch_map<kWidth>("scale", body, call.y.size(), all_aligned(call.x, call.y), stream);
}
template <class T>
void run(const Fill<T>& call, device::Stream& stream) {
  constexpr unsigned kWidth = kPack<T>;
  const FillBody<T> body{call.y.device_data(), call.value};
  launch_map<kWidth>("fill", body, call.y.size(), all_aligned(call.y), stream);
}
template <class To, class From>
void run(const Cast<To, From>& call, device::Stream& stream) {
  const CastBody<To, From> body{call.x.device_data(), call.y.device_data()};
  launch_map<4>("cast", body, call.y.size(), all_aligned(call.x, call.y), stream);
}
template <class T>
void run(const BiasAdd<T>& call, device::Stream& stream) {
  constexpr unsigned kWidth = kPack<T>;
  const BiasAddBody<T> body{call.x.device_data(), call.bias.device_data(), call.y.device_data(), call.shape.columns,
                            call.y.size() < (std::size_t{1} << 32)};
  const bool aligned = call.shape.columns % kWidth == 0 && all_aligned(call.x, call.bias, call.y);
  launch_map<kWidth>("bias add", body, call.y.size(), aligned, stream);
}

std::size_t column_sums_workspace(const RowMatrix& shape, unsigned processors) {
  return slices_of(shape, processors) * shape.columns;
}
template <class T>
void run(const ColumnSums<T>& call, device::Stream& stream) {
  constexpr unsigned kWidth = kPack<T>;
  const unsigned slices = slices_of(call.shape, multiprocessors(stream));
  if (call.shape.columns % kWidth == 0 && all_aligned(call.x)) {
    launch("column sums", column_sums_kernel<T, kWidth>,
           {dim3(blocks_for(call.shape.columns, kWarp * kWidth), slices), dim3(kBlock)}, stream, call.x.device_data(),
           call.workspace.device_data(), call.shape.rows, call.shape.columns);
  } else {
    launch("column sums", column_sums_kernel<T, 1>, {dim3(blocks_for(call.shape.columns, kWarp), slices), dim3(kBlock)},
           stream, call.x.device_data(), call.workspace.device_data(), call.shape.rows, call.shape.columns);
  }
  launch("column sums end", column_sums_end_kernel<T>, {dim3(blocks_for(call.shape.columns, kBlock)), dim3(kBlock)},
         stream, call.workspace.device_data(), slices, call.sums.device_data(), call.adds, call.shape.columns);
}

template <class T>
void run(const CopyColumns<T>& call, device::Stream& stream) {
  constexpr unsigned kWidth = kPack<T>;
  const CopyColumnsBody<T> body{call.from.device_data(), call.to.device_data(), call.adds, call.shape};
  const bool packs =
      call.shape.columns % kWidth == 0 && call.shape.from_stride % kWidth == 0 && call.shape.to_stride % kWidth == 0;
  launch_map<kWidth>("copy columns", body, call.shape.rows * call.shape.columns,
                     packs && all_aligned(call.from, call.to), stream);
}

DUNNOCK_INSTANTIATE_KERNELS(AddScaled, AddRelu, AddReluBackward, Scale, Fill, BiasAdd, ColumnSums, CopyColumns);
DUNNOCK_INSTANTIATE_KERNEL_2(Cast, device::Bf16, float);
DUNNOCK_INSTANTIATE_KERNEL_2(Cast, float, device::Bf16);

}  // namespace dunnock::kernels::detail::DUNNOCK_KERNELS
