// Floor: training reads x twice (statistics, then values) and writes y; backward reads dy and x twice and writes dx;
// inference reads x and writes y. The second reading comes from L2 where that holds a tensor.
//
// Statistics: each thread sums up distances from the first value it sees, so that nothing is lost to a large mean;
// means and squares of threads, then of slices of the rows, are merged in a fixed order (Chan, Golub, LeVeque 1983).
#include "batch_norm_parts.hpp"
#include "cuda/channel_lanes.hpp"

namespace dunnock::kernels::detail::DUNNOCK_KERNELS {
namespace {

using namespace device_code;

constexpr unsigned kBlock = kLanesBlock;

struct Moments {
  float count = 0;
  float mean = 0;
  float squares = 0;  // of distances from the mean
};
__device__ Moments merge(const Moments& a, const Moments& b) {
  const float count = a.count + b.count;
  if (count == 0) return a;
  const float distance = b.mean - a.mean;
  const float share = b.count / count;
  return {count, a.mean + distance * share, a.squares + b.squares + distance * distance * a.count * share};
}

/// Block (x, y): of slice y of the rows -> sums (slices, 2, channels): mean, squares.
template <class T, unsigned kWidth>
__global__ void __launch_bounds__(kBlock)
    batch_norm_moments_kernel(const T* __restrict__ x, float* __restrict__ sums, std::size_t rows, ChannelLanes lanes) {
  __shared__ float counts[kLanesBlock];
  __shared__ float means[kWidth * kLanesBlock];
  __shared__ float squares[kWidth * kLanesBlock];
  const std::size_t channels = std::size_t{lanes.packs} * kWidth;
  const std::size_t c = std::size_t{lanes.pack()} * kWidth;
  const bool mine = lanes.pack() < lanes.packs;
  const std::size_t last = rows * (blockIdx.y + 1) / gridDim.y;
  float origin[kWidth] = {};
  float sum[kWidth] = {};
  float square[kWidth] = {};
  float count = 0;
  for (std::size_t row = rows * blockIdx.y / gridDim.y + lanes.row(); mine && row < last; row += lanes.rows()) {
    float values[kWidth];
    load_floats(x + row * channels + c, values);
#pragma unroll
    for (unsigned j = 0; j < kWidth; ++j) {
      if (count == 0) origin[j] = values[j];
      const float distance = values[j] - origin[j];
      sum[j] += distance;
      square[j] += distance * distance;
    }
    count += 1;
  }
  counts[threadIdx.x] = count;
#pragma unroll
  for (unsigned j = 0; j < kWidth; ++j) {
    const float distance = count == 0 ? 0 : sum[j] / count;
    means[j * kLanesBlock + threadIdx.x] = origin[j] + distance;
    squares[j * kLanesBlock + threadIdx.x] = square[j] - sum[j] * distance;
  }
  for (unsigned half = lanes.rows() / 2; half > 0; half /= 2) {
    __syncthreads();
    if (lanes.row() >= half) continue;
    const unsigned other = threadIdx.x + half * lanes.lanes();
#pragma unroll
    for (unsigned j = 0; j < kWidth; ++j) {
      const unsigned at = j * kLanesBlock;
      const Moments both = merge({counts[threadIdx.x], means[at + threadIdx.x], squares[at + threadIdx.x]},
                                 {counts[other], means[at + other], squares[at + other]});
      means[at + threadIdx.x] = both.mean;
      squares[at + threadIdx.x] = both.squares;
    }
    counts[threadIdx.x] += counts[other];
  }
  if (!mine || lanes.row() != 0) return;
#pragma unroll
  for (unsigned j = 0; j < kWidth; ++j) {
    sums[std::size_t{blockIdx.y} * 2 * channels + c + j] = means[j * kLanesBlock + threadIdx.x];
    sums[(std::size_t{blockIdx.y} * 2 + 1) * channels + c + j] = squares[j * kLanesBlock + threadIdx.x];
  }
}

__global__ void __launch_bounds__(kBlock)
    batch_norm_statistics_kernel(const float* __restrict__ sums, unsigned slices, float* mean, float* r,
                                 float* running_mean, float* running_variance, std::size_t rows, std::size_t channels,
                                 float epsilon, float momentum) {
  for (std::size_t c = first_item(); c < channels; c += items_a_round()) {
    Moments all;
    for (unsigned s = 0; s < slices; ++s) {
      const std::size_t count = rows * (s + 1) / slices - rows * s / slices;
      all = merge(all, {static_cast<float>(count), sums[std::size_t{s} * 2 * channels + c],
                        sums[(std::size_t{s} * 2 + 1) * channels + c]});
    }
    const float variance = all.squares / static_cast<float>(rows);
    mean[c] = all.mean;
    r[c] = 1.0F / sqrtf(variance + epsilon);
    if (running_mean == nullptr) continue;
    const float unbiased = rows == 1 ? variance : all.squares / static_cast<float>(rows - 1);
    running_mean[c] = (1 - momentum) * running_mean[c] + momentum * all.mean;
    running_variance[c] = (1 - momentum) * running_variance[c] + momentum * unbiased;
  }
}

/// Forward and backward decide about ReLU by the same arithmetic.
__device__ inline float norm_value(float x, float mean, float r, float weight, float bias) {
  return (x - mean) * r * weight + bias;
}

/// kVariance: r is a variance still.
template <bool kVariance, class T, unsigned kWidth>
__global__ void __launch_bounds__(kBlock)
    batch_norm_apply_kernel(const T* x, const T* __restrict__ weight, const T* __restrict__ bias,
                            const float* __restrict__ mean, const float* __restrict__ r, T* y, std::size_t rows,
                            float epsilon, bool relu, ChannelLanes lanes) {
  const std::size_t channels = std::size_t{lanes.packs} * kWidth;
  const std::size_t c = std::size_t{lanes.pack()} * kWidth;
  if (lanes.pack() >= lanes.packs) return;
  float w[kWidth];
  float b[kWidth];
  float centre[kWidth];
  float inverse[kWidth];
  load_floats(weight + c, w);
  load_floats(bias + c, b);
#pragma unroll
  for (unsigned j = 0; j < kWidth; ++j) {
    centre[j] = mean[c + j];
    inverse[j] = kVariance ? 1.0F / sqrtf(r[c + j] + epsilon) : r[c + j];
  }
  for (std::size_t row = std::size_t{blockIdx.y} * lanes.rows() + lanes.row(); row < rows;
       row += std::size_t{gridDim.y} * lanes.rows()) {
    float values[kWidth];
    load_floats(x + row * channels + c, values);
#pragma unroll
    for (unsigned j = 0; j < kWidth; ++j) {
      const float value = norm_value(values[j], centre[j], inverse[j], w[j], b[j]);
      values[j] = relu && value < 0 ? 0.0F : value;
    }
    store_floats(y + row * channels + c, values);
  }
}

/// Block (x, y): of slice y of the rows -> sums (slices, 2, channels): of g * z, of g.
template <class T, unsigned kWidth>
__global__ void __launch_bounds__(kBlock)
    batch_norm_sums_kernel(const T* __restrict__ dy, const T* __restrict__ x, const T* __restrict__ weight,
                           const T* __restrict__ bias, const float* __restrict__ mean, const float* __restrict__ r,
                           float* __restrict__ sums, std::size_t rows, bool relu, ChannelLanes lanes) {
  __shared__ float shared[kWidth * kLanesBlock];
  const std::size_t channels = std::size_t{lanes.packs} * kWidth;
  const std::size_t c = std::size_t{lanes.pack()} * kWidth;
  const bool mine = lanes.pack() < lanes.packs;
  const std::size_t last = rows * (blockIdx.y + 1) / gridDim.y;
  float products[kWidth] = {};
  float gradients[kWidth] = {};
  if (mine) {
    float w[kWidth];
    float b[kWidth];
    load_floats(weight + c, w);
    load_floats(bias + c, b);
    for (std::size_t row = rows * blockIdx.y / gridDim.y + lanes.row(); row < last; row += lanes.rows()) {
      float d[kWidth];
      float values[kWidth];
      load_floats(dy + row * channels + c, d);
      load_floats(x + row * channels + c, values);
#pragma unroll
      for (unsigned j = 0; j < kWidth; ++j) {
        if (relu && norm_value(values[j], mean[c + j], r[c + j], w[j], b[j]) <= 0) continue;
        products[j] += d[j] * ((values[j] - mean[c + j]) * r[c + j]);
        gradients[j] += d[j];
      }
    }
  }
  sum_rows(products, shared, lanes);
  sum_rows(gradients, shared, lanes);
  if (!mine || lanes.row() != 0) return;
#pragma unroll
  for (unsigned j = 0; j < kWidth; ++j) {
    sums[std::size_t{blockIdx.y} * 2 * channels + c + j] = products[j];
    sums[(std::size_t{blockIdx.y} * 2 + 1) * channels + c + j] = gradients[j];
  }
}

/// Adds the slices up, in their order; leaves the sums in slice 0 for dx.
template <class T>
__global__ void __launch_bounds__(kBlock)
    batch_norm_gradients_kernel(float* sums, unsigned slices, T* dweight, T* dbias, bool adds, std::size_t channels) {
  for (std::size_t c = first_item(); c < channels; c += items_a_round()) {
    float all[2] = {};
    for (unsigned s = 0; s < slices; ++s) {
      for (unsigned kind = 0; kind < 2; ++kind) all[kind] += sums[(std::size_t{s} * 2 + kind) * channels + c];
    }
    dweight[c] = from_float<T>((adds ? to_float(dweight[c]) : 0.0F) + all[0]);
    dbias[c] = from_float<T>((adds ? to_float(dbias[c]) : 0.0F) + all[1]);
    sums[c] = all[0];
    sums[channels + c] = all[1];
  }
}

template <class T, unsigned kWidth>
__global__ void __launch_bounds__(kBlock)
    batch_norm_dx_kernel(const T* dy, const T* x, const T* __restrict__ weight, const T* __restrict__ bias,
                         const float* __restrict__ mean, const float* __restrict__ r, const float* __restrict__ sums,
                         T* dx, std::size_t rows, bool relu, ChannelLanes lanes) {
  const std::size_t channels = std::size_t{lanes.packs} * kWidth;
  const std::size_t c = std::size_t{lanes.pack()} * kWidth;
  if (lanes.pack() >= lanes.packs) return;
  const float share = 1.0F / static_cast<float>(rows);
  float w[kWidth];
  float b[kWidth];
  load_floats(weight + c, w);
  load_floats(bias + c, b);
  for (std::size_t row = std::size_t{blockIdx.y} * lanes.rows() + lanes.row(); row < rows;
       row += std::size_t{gridDim.y} * lanes.rows()) {
    float d[kWidth];
    float values[kWidth];
    load_floats(dy + row * channels + c, d);
    load_floats(x + row * channels + c, values);
#pragma unroll
    for (unsigned j = 0; j < kWidth; ++j) {
      const float inverse = r[c + j];
      const float z = (values[j] - mean[c + j]) * inverse;
      const bool off = relu && norm_value(values[j], mean[c + j], inverse, w[j], b[j]) <= 0;
      d[j] = w[j] * inverse * ((off ? 0.0F : d[j]) - (sums[channels + c + j] + z * sums[c + j]) * share);
    }
    store_floats(dx + row * channels + c, d);
  }
}

unsigned slices_of(const BatchNormShape& shape, unsigned processors) {
  return row_slices(shape.rows, 64, ChannelLanes::of(shape.channels).blocks(), processors);
}
/// As many blocks as keep the device busy, for kernels that walk all rows.
dim3 walking_blocks(const BatchNormShape& shape, const ChannelLanes& lanes, device::Stream& stream) {
  const std::size_t rounds = blocks_for(shape.rows, kLanesBlock >> lanes.lanes_log2);
  const std::size_t wanted = (32 * std::size_t{multiprocessors(stream)} + lanes.blocks() - 1) / lanes.blocks();
  return {lanes.blocks(), static_cast<unsigned>(std::min({rounds, wanted, std::size_t{65535}}))};
}

template <bool kVariance, class T>
void apply(device::Span<const T> x, device::Span<const T> weight, device::Span<const T> bias,
           device::Span<const float> mean, device::Span<const float> r, device::Span<T> y, const BatchNormShape& shape,
           device::Stream& stream) {
  const bool aligned = is_aligned(x.device_data()) && is_aligned(y.device_data()) && is_aligned(weight.device_data()) &&
                       is_aligned(bias.device_data());
  with_pack_width<T>(shape.channels, aligned, [&](auto width) {
    const ChannelLanes lanes = ChannelLanes::of(shape.channels / width());
    launch("batch norm", batch_norm_apply_kernel<kVariance, T, width()>,
           {walking_blocks(shape, lanes, stream), dim3(kBlock)}, stream, x.device_data(), weight.device_data(),
           bias.device_data(), mean.device_data(), r.device_data(), y.device_data(), shape.rows, shape.epsilon,
           shape.relu, lanes);
  });
}

template <class T>
void moments(device::Span<const T> x, device::Span<float> sums, unsigned slices, const BatchNormShape& shape,
             device::Stream& stream) {
  with_pack_width<T>(shape.channels, is_aligned(x.device_data()), [&](auto width) {
    const ChannelLanes lanes = ChannelLanes::of(shape.channels / width());
    launch("batch norm moments", batch_norm_moments_kernel<T, width()>, {dim3(lanes.blocks(), slices), dim3(kBlock)},
           stream, x.device_data(), sums.device_data(), shape.rows, lanes);
  });
}

}  // namespace

std::size_t batch_norm_workspace(const BatchNormShape& shape, unsigned processors) {
  return std::size_t{slices_of(shape, processors)} * 2 * shape.channels;
}

template <class T>
void run(const BatchNorm<T>& call, device::Stream& stream) {
  const unsigned slices = slices_of(call.shape, multiprocessors(stream));
  moments<T>(call.x, call.workspace, slices, call.shape, stream);
  launch("batch norm statistics", batch_norm_statistics_kernel, item_blocks(call.shape.channels), stream,
         call.workspace.device_data(), slices, call.mean.device_data(), call.r.device_data(),
         call.running_mean.device_data(), call.running_variance.device_data(), call.shape.rows, call.shape.channels,
         call.shape.epsilon, call.shape.momentum);
  apply<false, T>(call.x, call.weight, call.bias, call.mean, call.r, call.y, call.shape, stream);
}

template <class T>
void run(const BatchNormInference<T>& call, device::Stream& stream) {
  apply<true, T>(call.x, call.weight, call.bias, call.running_mean, call.running_variance, call.y, call.shape, stream);
}

template <class T>
void run(const BatchNormBackward<T>& call, device::Stream& stream) {
  const unsigned slices = slices_of(call.shape, multiprocessors(stream));
  const bool aligned = is_aligned(call.dy.device_data()) && is_aligned(call.x.device_data()) &&
                       is_aligned(call.dx.device_data()) && is_aligned(call.weight.device_data()) &&
                       is_aligned(call.bias.device_data());
  float* const sums = call.workspace.device_data();
  with_pack_width<T>(call.shape.channels, aligned, [&](auto width) {
    const auto lanes = ChannelLanes::of(call.shape.channels / width());
    launch("batch norm backward", batch_norm_sums_kernel<T, width()>, {dim3(lanes.blocks(), slices), dim3(kBlock)},
           stream, call.dy.device_data(), call.x.device_data(), call.weight.device_data(), call.bias.device_data(),
           call.mean.device_data(), call.r.device_data(), sums, call.shape.rows, call.shape.relu, lanes);
  });
  launch("batch norm gradients", batch_norm_gradients_kernel<T>, item_blocks(call.shape.channels), stream, sums, slices,
         call.dweight.device_data(), call.dbias.device_data(), call.adds, call.shape.channels);
  with_pack_width<T>(call.shape.channels, aligned, [&](auto width) {
    const auto lanes = ChannelLanes::of(call.shape.channels / width());
    launch("batch norm dx", batch_norm_dx_kernel<T, width()>, {walking_blocks(call.shape, lanes, stream), dim3(kBlock)},
           stream, call.dy.device_data(), call.x.device_data(), call.weight.device_data(), call.bias.device_data(),
           call.mean.device_data(), call.r.device_data(), sums, call.dx.device_data(), call.shape.rows, call.shape.relu,
           lanes);
  });
}

DUNNOCK_INSTANTIATE_KERNELS(BatchNorm, BatchNormInference, BatchNormBackward);

}  // namespace dunnock::kernels::detail::DUNNOCK_KERNELS
