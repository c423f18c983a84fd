// Floor: x read once and y written once (windows overlap in the caches), or dy and dx; indices beside y are 4 bytes
// each. A thread has a pack of channels of one pixel; in the gradients of x, which are sums over the windows that a
// pixel lies in, of one pixel of x: nothing is added by two threads, so sums have an order.
#include "cuda/channel_lanes.hpp"
#include "dispatch.hpp"
#include "dunnock/kernels/pooling.hpp"

namespace dunnock::kernels::detail::DUNNOCK_KERNELS {
namespace {

using namespace device_code;

constexpr unsigned kBlock = kLanesBlock;

struct Planes {
  std::size_t batch;
  unsigned height, width, out_height, out_width, channels;
  unsigned kernel_height, kernel_width, stride_height, stride_width, padding_height, padding_width;
  bool padding_counts;

  explicit Planes(const PoolingShape& s)
      : batch(s.batch),
        height(static_cast<unsigned>(s.height)),
        width(static_cast<unsigned>(s.width)),
        out_height(static_cast<unsigned>(s.out_height())),
        out_width(static_cast<unsigned>(s.out_width())),
        channels(static_cast<unsigned>(s.channels)),
        kernel_height(static_cast<unsigned>(s.kernel_height)),
        kernel_width(static_cast<unsigned>(s.kernel_width)),
        stride_height(static_cast<unsigned>(s.stride_height)),
        stride_width(static_cast<unsigned>(s.stride_width)),
        padding_height(static_cast<unsigned>(s.padding_height)),
        padding_width(static_cast<unsigned>(s.padding_width)),
        padding_counts(s.padding_counts) {}
};

/// first .. last - 1
struct Range {
  unsigned first;
  unsigned last;
};
/// The inputs of an output's window, along one axis.
__device__ Range window(unsigned out, unsigned kernel, unsigned stride, unsigned padding, unsigned size) {
  const unsigned begin = out * stride;  // In the padded plane.
  const unsigned end = begin + kernel;
  return {begin > padding ? begin - padding : 0U, end - padding < size ? end - padding : size};
}
/// The outputs whose windows an input lies in.
__device__ Range windows_of(unsigned in, unsigned kernel, unsigned stride, unsigned padding, unsigned outputs) {
  const unsigned place = in + padding;
  const unsigned first = place < kernel ? 0U : (place - kernel) / stride + 1;
  const unsigned last = place / stride + 1;
  return {first, last < outputs ? last : outputs};
}
__device__ unsigned values_of(const Planes& p, Range rows, Range columns) {
  if (p.padding_counts) return p.kernel_height * p.kernel_width;
  return (rows.last - rows.first) * (columns.last - columns.first);
}

/// Item i of (batch, height, width, packs).
struct Item {
  std::size_t image;
  unsigned row, column, channel;
};
__device__ Item item_of(std::size_t index, unsigned height, unsigned width, unsigned packs, unsigned a_pack) {
  const std::size_t pixel = index / packs;
  const std::size_t line = pixel / width;
  return {line / height, static_cast<unsigned>(line % height), static_cast<unsigned>(pixel % width),
          static_cast<unsigned>(index % packs) * a_pack};
}

template <class T, unsigned kWidth>
__global__ void __launch_bounds__(kBlock)
    max_pool_kernel(const T* __restrict__ x, T* __restrict__ y, std::uint32_t* __restrict__ indices, Planes p) {
  const unsigned packs = p.channels / kWidth;
  const std::size_t items = p.batch * p.out_height * p.out_width * packs;
  for (std::size_t i = first_item(); i < items; i += items_a_round()) {
    const Item at = item_of(i, p.out_height, p.out_width, packs, kWidth);
    const Range rows = window(at.row, p.kernel_height, p.stride_height, p.padding_height, p.height);
    const Range columns = window(at.column, p.kernel_width, p.stride_width, p.padding_width, p.width);
    float best[kWidth] = {};
    unsigned where[kWidth] = {};
    bool first = true;
    for (unsigned row = rows.first; row < rows.last; ++row) {
      for (unsigned column = columns.first; column < columns.last; ++column) {
        float values[kWidth];
        load_floats(x + ((at.image * p.height + row) * p.width + column) * p.channels + at.channel, values);
#pragma unroll
        for (unsigned j = 0; j < kWidth; ++j) {
          const bool is_best = best[j] == best[j] && (values[j] > best[j] || values[j] != values[j]);
          if (first || is_best) {
            best[j] = values[j];
            where[j] = row * p.width + column;
          }
        }
        first = false;
      }
    }
    const std::size_t out = i * kWidth;
    store_floats(y + out, best);
    if (indices == nullptr) continue;
#pragma unroll
    for (unsigned j = 0; j < kWidth; j += kWidth < 4 ? 1 : 4) {
      Pack<std::uint32_t, (kWidth < 4 ? 1 : 4)> pack;
#pragma unroll
      for (unsigned k = 0; k < (kWidth < 4 ? 1 : 4); ++k) pack.values[k] = where[j + k];
      store_pack(indices + out + j, pack);
    }
  }
}

/// kMax: dy where the index says so; else dy divided by the window's values.
template <bool kMax, class T, unsigned kWidth>
__global__ void __launch_bounds__(kBlock)
    pool_backward_kernel(const T* __restrict__ dy, const std::uint32_t* __restrict__ indices, T* __restrict__ dx,
                         Planes p) {
  const unsigned packs = p.channels / kWidth;
  const std::size_t items = p.batch * p.height * p.width * packs;
  for (std::size_t i = first_item(); i < items; i += items_a_round()) {
    const Item at = item_of(i, p.height, p.width, packs, kWidth);
    const Range rows = windows_of(at.row, p.kernel_height, p.stride_height, p.padding_height, p.out_height);
    const Range columns = windows_of(at.column, p.kernel_width, p.stride_width, p.padding_width, p.out_width);
    float sums[kWidth] = {};
    for (unsigned row = rows.first; row < rows.last; ++row) {
      for (unsigned column = columns.first; column < columns.last; ++column) {
        const std::size_t out = ((at.image * p.out_height + row) * p.out_width + column) * p.channels + at.channel;
        float values[kWidth];
        load_floats(dy + out, values);
        if constexpr (kMax) {
          constexpr unsigned kIndices = kWidth < 4 ? 1 : 4;
          const unsigned me = at.row * p.width + at.column;
#pragma unroll
          for (unsigned j = 0; j < kWidth; j += kIndices) {
            const auto pack = load_pack<kIndices>(indices + out + j);
#pragma unroll
            for (unsigned k = 0; k < kIndices; ++k) sums[j + k] += pack.values[k] == me ? values[j + k] : 0.0F;
          }
        } else {
          const Range of_rows = window(row, p.kernel_height, p.stride_height, p.padding_height, p.height);
          const Range of_columns = window(column, p.kernel_width, p.stride_width, p.padding_width, p.width);
          const float share = 1.0F / static_cast<float>(values_of(p, of_rows, of_columns));
#pragma unroll
          for (unsigned j = 0; j < kWidth; ++j) sums[j] += values[j] * share;
        }
      }
    }
    store_floats(dx + i * kWidth, sums);
  }
}

template <class T, unsigned kWidth>
__global__ void __launch_bounds__(kBlock) average_pool_kernel(const T* __restrict__ x, T* __restrict__ y, Planes p) {
  const unsigned packs = p.channels / kWidth;
  const std::size_t items = p.batch * p.out_height * p.out_width * packs;
  for (std::size_t i = first_item(); i < items; i += items_a_round()) {
    const Item at = item_of(i, p.out_height, p.out_width, packs, kWidth);
    const Range rows = window(at.row, p.kernel_height, p.stride_height, p.padding_height, p.height);
    const Range columns = window(at.column, p.kernel_width, p.stride_width, p.padding_width, p.width);
    float sums[kWidth] = {};
    for (unsigned row = rows.first; row < rows.last; ++row) {
      for (unsigned column = columns.first; column < columns.last; ++column) {
        float values[kWidth];
        load_floats(x + ((at.image * p.height + row) * p.width + column) * p.channels + at.channel, values);
#pragma unroll
        for (unsigned j = 0; j < kWidth; ++j) sums[j] += values[j];
      }
    }
    const float share = 1.0F / static_cast<float>(values_of(p, rows, columns));
#pragma unroll
    for (unsigned j = 0; j < kWidth; ++j) sums[j] *= share;
    store_floats(y + i * kWidth, sums);
  }
}

/// Block x: an image's block of lanes, x = image * blocks + block.
template <class T, unsigned kWidth>
__global__ void __launch_bounds__(kBlock)
    global_average_kernel(const T* __restrict__ x, T* __restrict__ y, std::size_t positions, unsigned blocks,
                          ChannelLanes lanes) {
  __shared__ float shared[kWidth * kLanesBlock];
  const std::size_t image = blockIdx.x / blocks;
  const unsigned pack = (blockIdx.x % blocks) * lanes.lanes() + threadIdx.x % lanes.lanes();
  const std::size_t channels = std::size_t{lanes.packs} * kWidth;
  const bool mine = pack < lanes.packs;
  float sums[kWidth] = {};
  for (std::size_t p = lanes.row(); mine && p < positions; p += lanes.rows()) {
    float values[kWidth];
    load_floats(x + (image * positions + p) * channels + std::size_t{pack} * kWidth, values);
#pragma unroll
    for (unsigned j = 0; j < kWidth; ++j) sums[j] += values[j];
  }
  sum_rows(sums, shared, lanes);
  if (!mine || lanes.row() != 0) return;
  const float share = 1.0F / static_cast<float>(positions);
#pragma unroll
  for (unsigned j = 0; j < kWidth; ++j) sums[j] *= share;
  store_floats(y + image * channels + std::size_t{pack} * kWidth, sums);
}

template <class T, unsigned kWidth>
__global__ void __launch_bounds__(kBlock)
    global_average_backward_kernel(const T* __restrict__ dy, T* __restrict__ dx, std::size_t batch,
                                   std::size_t positions, unsigned packs) {
  const float share = 1.0F / static_cast<float>(positions);
  const std::size_t items = batch * positions * packs;
  for (std::size_t i = first_item(); i < items; i += items_a_round()) {
    float values[kWidth];
    load_floats(dy + (i / (positions * packs) * packs + i % packs) * kWidth, values);
#pragma unroll
    for (unsigned j = 0; j < kWidth; ++j) values[j] *= share;
    store_floats(dx + i * kWidth, values);
  }
}

template <bool kMax, class T>
void backward(device::Span<const T> dy, device::Span<const std::uint32_t> indices, device::Span<T> dx,
              const PoolingShape& shape, device::Stream& stream) {
  const Planes planes(shape);
  const bool aligned =
      is_aligned(dy.device_data()) && is_aligned(dx.device_data()) && is_aligned(indices.device_data());
  with_pack_width<T>(shape.channels, aligned, [&](auto width) {
    launch(kMax ? "max pool backward" : "average pool backward", pool_backward_kernel<kMax, T, width()>,
           item_blocks(shape.x_size() / width()), stream, dy.device_data(), indices.device_data(), dx.device_data(),
           planes);
  });
}

template <class T>
void global_average(device::Span<const T> x, device::Span<T> y, const GlobalPoolingShape& shape,
                    device::Stream& stream) {
  with_pack_width<T>(shape.channels, is_aligned(x.device_data()) && is_aligned(y.device_data()), [&](auto width) {
    const ChannelLanes lanes = ChannelLanes::of(shape.channels / width());
    const unsigned blocks = lanes.blocks();
    launch("global average pool", global_average_kernel<T, width()>,
           {dim3(static_cast<unsigned>(shape.batch * blocks)), dim3(kBlock)}, stream, x.device_data(), y.device_data(),
           shape.positions, blocks, lanes);
  });
}

template <class T, class F>
void with_planes(device::Span<const T> x, device::Span<T> y, const PoolingShape& shape, bool aligned, const F& f) {
  with_pack_width<T>(shape.channels, aligned && is_aligned(x.device_data()) && is_aligned(y.device_data()),
                     [&](auto width) { f(width, Planes(shape)); });
}

}  // namespace

template <class T>
void run(const MaxPool<T>& call, device::Stream& stream) {
  with_planes<T>(call.x, call.y, call.shape, is_aligned(call.indices.device_data()),
                 [&](auto width, const auto& planes) {
                   launch("max pool", max_pool_kernel<T, width()>, item_blocks(call.shape.y_size() / width()), stream,
                          call.x.device_data(), call.y.device_data(), call.indices.device_data(), planes);
                 });
}
template <class T>
void run(const MaxPoolBackward<T>& call, device::Stream& stream) {
  backward<true, T>(call.dy, call.indices, call.dx, call.shape, stream);
}
template <class T>
void run(const AveragePool<T>& call, device::Stream& stream) {
  with_planes<T>(call.x, call.y, call.shape, true, [&](auto width, const auto& planes) {
    launch("average pool", average_pool_kernel<T, width()>, item_blocks(call.shape.y_size() / width()), stream,
           call.x.device_data(), call.y.device_data(), planes);
  });
}
template <class T>
void run(const AveragePoolBackward<T>& call, device::Stream& stream) {
  backward<false, T>(call.dy, {}, call.dx, call.shape, stream);
}
template <class T>
void run(const GlobalAveragePool<T>& call, device::Stream& stream) {
  global_average<T>(call.x, call.y, call.shape, stream);
}
template <class T>
void run(const GlobalAveragePoolBackward<T>& call, device::Stream& stream) {
  with_pack_width<T>(
      call.shape.channels, is_aligned(call.dy.device_data()) && is_aligned(call.dx.device_data()), [&](auto width) {
        launch("global average pool backward", global_average_backward_kernel<T, width()>,
               item_blocks(call.dx.size() / width()), stream, call.dy.device_data(), call.dx.device_data(),
               call.shape.batch, call.shape.positions, static_cast<unsigned>(call.shape.channels / width()));
      });
}

DUNNOCK_INSTANTIATE_KERNELS(MaxPool, MaxPoolBackward, AveragePool, AveragePoolBackward, GlobalAveragePool,
                            GlobalAveragePoolBackward);

}  // namespace dunnock::kernels::detail::DUNNOCK_KERNELS
