// Convolutions without cuDNN: for depthwise ones, and where the library is missing or has no plan.
//
// Floor: a depthwise convolution reads x once and writes y once (its weights and the overlap of windows come from the
// caches): bytes. The others are products of matrices that are never made (implicit GEMM): flops, of f32 on the
// ordinary cores. They are meant to be right everywhere, not to reach the tensor cores' rate: that is cuDNN's part.
#include "convolution_parts.hpp"
#include "cuda/channel_lanes.hpp"

namespace dunnock::kernels::detail::DUNNOCK_KERNELS {
namespace {

using namespace device_code;

constexpr unsigned kBlock = kLanesBlock;

/// ConvolutionShape, as kernels want it. Batches may be large, planes and channels are of 32 bits.
struct Geometry {
  std::size_t batch;
  unsigned height, width, out_height, out_width;
  unsigned inputs, outputs, groups;  // Channels of a group.
  unsigned kernel_height, kernel_width, stride_height, stride_width, padding_height, padding_width;
  unsigned dilation_height, dilation_width;

  explicit Geometry(const ConvolutionShape& s)
      : batch(s.batch),
        height(static_cast<unsigned>(s.height)),
        width(static_cast<unsigned>(s.width)),
        out_height(static_cast<unsigned>(s.out_height())),
        out_width(static_cast<unsigned>(s.out_width())),
        inputs(static_cast<unsigned>(s.in_channels / s.groups)),
        outputs(static_cast<unsigned>(s.out_channels / s.groups)),
        groups(static_cast<unsigned>(s.groups)),
        kernel_height(static_cast<unsigned>(s.kernel_height)),
        kernel_width(static_cast<unsigned>(s.kernel_width)),
        stride_height(static_cast<unsigned>(s.stride_height)),
        stride_width(static_cast<unsigned>(s.stride_width)),
        padding_height(static_cast<unsigned>(s.padding_height)),
        padding_width(static_cast<unsigned>(s.padding_width)),
        dilation_height(static_cast<unsigned>(s.dilation_height)),
        dilation_width(static_cast<unsigned>(s.dilation_width)) {}
  [[nodiscard]] __device__ unsigned taps() const { return kernel_height * kernel_width; }
};

// Where a tap's source is, along one axis; kNowhere where there is none. `out` to `in` and back.
constexpr unsigned kNowhere = 0xffffffffU;
__device__ unsigned input_of(unsigned out, unsigned tap, unsigned stride, unsigned dilation, unsigned padding,
                             unsigned size) {
  const unsigned place = out * stride + tap * dilation;  // In the padded plane.
  return place < padding || place - padding >= size ? kNowhere : place - padding;
}
__device__ unsigned output_of(unsigned in, unsigned tap, unsigned stride, unsigned dilation, unsigned padding,
                              unsigned size) {
  const unsigned place = in + padding;
  const unsigned offset = tap * dilation;
  if (place < offset || (place - offset) % stride != 0) return kNowhere;
  return (place - offset) / stride < size ? (place - offset) / stride : kNowhere;
}

struct Pixel {
  std::size_t image;
  unsigned row;
  unsigned column;
};
__device__ Pixel pixel_of(std::size_t index, unsigned height, unsigned width) {
  const std::size_t line = index / width;
  return {line / height, static_cast<unsigned>(line % height), static_cast<unsigned>(index % width)};
}
struct Tap {
  unsigned u;
  unsigned v;
  unsigned channel;
};
__device__ Tap tap_of(unsigned index, unsigned channels, unsigned kernel_width) {
  const unsigned tap = index / channels;
  return {tap / kernel_width, tap % kernel_width, index % channels};
}

// ----- products of matrices that are never made ---------------------------------------------------------------------
//
// A problem is sums[m][n] of left(m, k) * right(k, n) over k. Decoded indices (Row, Step, Column) are made once for
// what they serve. kLeftAlongK, kRightAlongK: values lie beside each other along k, else along m or n.

constexpr unsigned kTile = 64;   // of m and n
constexpr unsigned kDepth = 16;  // of k, at a time
constexpr unsigned kMine = 4;    // A thread sums kMine x kMine.

/// y: m a pixel of y, k (u, v, input channel), n an output channel.
template <class T>
struct Forward {
  static constexpr bool kLeftAlongK = true;
  static constexpr bool kRightAlongK = true;
  using Row = Pixel;
  using Step = Tap;
  const T* x;
  const T* weight;
  const T* bias;
  T* y;
  bool relu;
  Geometry g;

  [[nodiscard]] __device__ std::size_t rows() const { return g.batch * g.out_height * g.out_width; }
  [[nodiscard]] __device__ unsigned columns() const { return g.outputs; }
  [[nodiscard]] __device__ std::size_t depth() const { return std::size_t{g.taps()} * g.inputs; }
  [[nodiscard]] __device__ Row row(std::size_t m) const { return pixel_of(m, g.out_height, g.out_width); }
  [[nodiscard]] __device__ Step step(std::size_t k) const {
    return tap_of(static_cast<unsigned>(k), g.inputs, g.kernel_width);
  }
  [[nodiscard]] __device__ float left(unsigned group, std::size_t, const Row& at, const Step& tap) const {
    const unsigned i = input_of(at.row, tap.u, g.stride_height, g.dilation_height, g.padding_height, g.height);
    const unsigned j = input_of(at.column, tap.v, g.stride_width, g.dilation_width, g.padding_width, g.width);
    if (i == kNowhere || j == kNowhere) return 0.0F;
    const std::size_t pixel = (at.image * g.height + i) * g.width + j;
    return to_float(x[(pixel * g.groups + group) * g.inputs + tap.channel]);
  }
  [[nodiscard]] __device__ float right(unsigned group, std::size_t k, const Step&, unsigned n) const {
    return to_float(weight[(std::size_t{group} * g.outputs + n) * depth() + k]);
  }
  __device__ void put(unsigned group, unsigned, std::size_t m, unsigned n, float sum) const {
    const unsigned channel = group * g.outputs + n;
    if (bias != nullptr) sum += to_float(bias[channel]);
    if (relu && sum < 0) sum = 0;
    y[m * g.groups * g.outputs + channel] = from_float<T>(sum);
  }
};

/// dx: m a pixel of x, k (u, v, output channel), n an input channel.
template <class T>
struct InputGradient {
  static constexpr bool kLeftAlongK = true;
  static constexpr bool kRightAlongK = false;
  using Row = Pixel;
  using Step = Tap;
  const T* dy;
  const T* weight;
  T* dx;
  Geometry g;

  [[nodiscard]] __device__ std::size_t rows() const { return g.batch * g.height * g.width; }
  [[nodiscard]] __device__ unsigned columns() const { return g.inputs; }
  [[nodiscard]] __device__ std::size_t depth() const { return std::size_t{g.taps()} * g.outputs; }
  [[nodiscard]] __device__ Row row(std::size_t m) const { return pixel_of(m, g.height, g.width); }
  [[nodiscard]] __device__ Step step(std::size_t k) const {
    return tap_of(static_cast<unsigned>(k), g.outputs, g.kernel_width);
  }
  [[nodiscard]] __device__ float left(unsigned group, std::size_t, const Row& at, const Step& tap) const {
    const unsigned i = output_of(at.row, tap.u, g.stride_height, g.dilation_height, g.padding_height, g.out_height);
    const unsigned j = output_of(at.column, tap.v, g.stride_width, g.dilation_width, g.padding_width, g.out_width);
    if (i == kNowhere || j == kNowhere) return 0.0F;
    const std::size_t pixel = (at.image * g.out_height + i) * g.out_width + j;
    return to_float(dy[(pixel * g.groups + group) * g.outputs + tap.channel]);
  }
  [[nodiscard]] __device__ float right(unsigned group, std::size_t, const Step& tap, unsigned n) const {
    const std::size_t o = std::size_t{group} * g.outputs + tap.channel;
    return to_float(weight[(o * g.taps() + tap.u * g.kernel_width + tap.v) * g.inputs + n]);
  }
  __device__ void put(unsigned group, unsigned, std::size_t m, unsigned n, float sum) const {
    dx[(m * g.groups + group) * g.inputs + n] = from_float<T>(sum);
  }
};

/// dweight, in slices of k: m an output channel, k a pixel of y, n (u, v, input channel).
template <class T>
struct WeightGradient {
  static constexpr bool kLeftAlongK = false;
  static constexpr bool kRightAlongK = false;
  using Row = unsigned;
  using Step = Pixel;
  const T* dy;
  const T* x;
  float* sums;  // (slices, weights)
  Geometry g;

  [[nodiscard]] __device__ std::size_t rows() const { return g.outputs; }
  [[nodiscard]] __device__ unsigned columns() const { return g.taps() * g.inputs; }
  [[nodiscard]] __device__ std::size_t depth() const { return g.batch * g.out_height * g.out_width; }
  [[nodiscard]] __device__ Row row(std::size_t m) const { return static_cast<unsigned>(m); }
  [[nodiscard]] __device__ Step step(std::size_t k) const { return pixel_of(k, g.out_height, g.out_width); }
  [[nodiscard]] __device__ float left(unsigned group, std::size_t k, const Row& o, const Step&) const {
    return to_float(dy[(k * g.groups + group) * g.outputs + o]);
  }
  [[nodiscard]] __device__ float right(unsigned group, std::size_t, const Step& at, unsigned n) const {
    const Tap tap = tap_of(n, g.inputs, g.kernel_width);
    const unsigned i = input_of(at.row, tap.u, g.stride_height, g.dilation_height, g.padding_height, g.height);
    const unsigned j = input_of(at.column, tap.v, g.stride_width, g.dilation_width, g.padding_width, g.width);
    if (i == kNowhere || j == kNowhere) return 0.0F;
    const std::size_t pixel = (at.image * g.height + i) * g.width + j;
    return to_float(x[(pixel * g.groups + group) * g.inputs + tap.channel]);
  }
  __device__ void put(unsigned group, unsigned slice, std::size_t m, unsigned n, float sum) const {
    const std::size_t weights = std::size_t{g.groups} * g.outputs * columns();
    sums[slice * weights + (std::size_t{group} * g.outputs + m) * columns() + n] = sum;
  }
};

/// Block (x, y, z): tile x of m, tile y of n; of the pairs (group, slice of k) z, z + gridDim.z, ...
template <class Problem>
__global__ void __launch_bounds__(kBlock) product_kernel(Problem problem, unsigned slices) {
  __shared__ float lefts[kDepth][kTile + 1];
  __shared__ float rights[kDepth][kTile + 1];
  const std::size_t m0 = std::size_t{blockIdx.x} * kTile;
  const unsigned n0 = blockIdx.y * kTile;
  const unsigned thread = threadIdx.x;
  constexpr unsigned kLoads = kTile * kDepth / kBlock;
  // The values that a thread brings: of one k when they lie along k, else of one row or column.
  const auto place = [thread](bool along_k, unsigned load) {
    return along_k ? thread / kDepth + load * (kBlock / kDepth) : thread % kTile;
  };
  const auto level = [thread](bool along_k, unsigned load) {
    return along_k ? thread % kDepth : thread / kTile + load * (kBlock / kTile);
  };
  typename Problem::Row rows[kLoads];
#pragma unroll
  for (unsigned load = 0; load < kLoads; ++load) rows[load] = problem.row(m0 + place(Problem::kLeftAlongK, load));
  for (unsigned z = blockIdx.z; z < problem.g.groups * slices; z += gridDim.z) {
    const unsigned group = z / slices;
    const unsigned slice = z % slices;
    const std::size_t first = problem.depth() * slice / slices;
    const std::size_t last = problem.depth() * (slice + 1) / slices;
    float sums[kMine][kMine] = {};
    for (std::size_t k0 = first; k0 < last; k0 += kDepth) {
#pragma unroll
      for (unsigned load = 0; load < kLoads; ++load) {
        const unsigned m = place(Problem::kLeftAlongK, load);
        const unsigned k = level(Problem::kLeftAlongK, load);
        const bool there = m0 + m < problem.rows() && k0 + k < last;
        lefts[k][m] = there ? problem.left(group, k0 + k, rows[load], problem.step(k0 + k)) : 0.0F;
      }
#pragma unroll
      for (unsigned load = 0; load < kLoads; ++load) {
        const unsigned n = place(Problem::kRightAlongK, load);
        const unsigned k = level(Problem::kRightAlongK, load);
        const bool there = n0 + n < problem.columns() && k0 + k < last;
        rights[k][n] = there ? problem.right(group, k0 + k, problem.step(k0 + k), n0 + n) : 0.0F;
      }
      __syncthreads();
#pragma unroll
      for (unsigned k = 0; k < kDepth; ++k) {
#pragma unroll
        for (unsigned i = 0; i < kMine; ++i) {
#pragma unroll
          for (unsigned j = 0; j < kMine; ++j)
            sums[i][j] += lefts[k][thread / 16 + i * 16] * rights[k][thread % 16 + j * 16];
        }
      }
      __syncthreads();
    }
#pragma unroll
    for (unsigned i = 0; i < kMine; ++i) {
      const std::size_t m = m0 + thread / 16 + i * 16;
#pragma unroll
      for (unsigned j = 0; j < kMine; ++j) {
        const unsigned n = n0 + thread % 16 + j * 16;
        if (m < problem.rows() && n < problem.columns()) problem.put(group, slice, m, n, sums[i][j]);
      }
    }
  }
}

template <class Problem>
void launch_product(std::string_view name, const Problem& problem, std::size_t rows, std::size_t columns,
                    unsigned slices, device::Stream& stream) {
  const dim3 blocks(blocks_for(rows, kTile), blocks_for(columns, kTile), std::min(65535U, problem.g.groups * slices));
  launch(name, product_kernel<Problem>, {blocks, dim3(kBlock)}, stream, problem, slices);
}

// ----- depthwise ----------------------------------------------------------------------------------------------------

/// weight (channels, taps) -> packed (taps, channels)
template <class T>
__global__ void __launch_bounds__(kBlock)
    depthwise_pack_kernel(const T* __restrict__ weight, float* __restrict__ packed, unsigned taps, unsigned channels) {
  for (std::size_t i = first_item(); i < std::size_t{taps} * channels; i += items_a_round())
    packed[i] = to_float(weight[i % channels * taps + i / channels]);
}

constexpr unsigned kColumnsAtOnce = 4;  // Outputs of a thread, beside each other: they share weights and most of x.

/// Forward, or backward to the input (kBackward: from is dy, to is dx). A thread: a pack of channels of kColumnsAtOnce
/// pixels.
template <bool kBackward, class T, unsigned kWidth>
__global__ void __launch_bounds__(kBlock)
    depthwise_kernel(const T* __restrict__ from, const float* __restrict__ packed, const T* __restrict__ bias,
                     T* __restrict__ to, bool relu, Geometry g) {
  const unsigned channels = g.groups;
  const unsigned packs = channels / kWidth;
  const unsigned from_height = kBackward ? g.out_height : g.height;
  const unsigned from_width = kBackward ? g.out_width : g.width;
  const unsigned to_height = kBackward ? g.height : g.out_height;
  const unsigned to_width = kBackward ? g.width : g.out_width;
  const unsigned tiles = (to_width + kColumnsAtOnce - 1) / kColumnsAtOnce;
  const std::size_t items = g.batch * to_height * tiles * packs;
  for (std::size_t item = first_item(); item < items; item += items_a_round()) {
    const auto c = static_cast<unsigned>(item % packs) * kWidth;
    const Pixel at = pixel_of(item / packs, to_height, tiles);
    const unsigned column = at.column * kColumnsAtOnce;
    float sums[kColumnsAtOnce][kWidth] = {};
    for (unsigned u = 0; u < g.kernel_height; ++u) {
      const unsigned i = kBackward
                             ? output_of(at.row, u, g.stride_height, g.dilation_height, g.padding_height, g.out_height)
                             : input_of(at.row, u, g.stride_height, g.dilation_height, g.padding_height, g.height);
      if (i == kNowhere) continue;
      const T* const line = from + (at.image * from_height + i) * from_width * channels + c;
      for (unsigned v = 0; v < g.kernel_width; ++v) {
        float w[kWidth];
#pragma unroll
        for (unsigned j = 0; j < kWidth; ++j) w[j] = __ldg(packed + (u * g.kernel_width + v) * channels + c + j);
#pragma unroll
        for (unsigned t = 0; t < kColumnsAtOnce; ++t) {
          const unsigned j =
              kBackward ? output_of(column + t, v, g.stride_width, g.dilation_width, g.padding_width, g.out_width)
                        : input_of(column + t, v, g.stride_width, g.dilation_width, g.padding_width, g.width);
          if (j == kNowhere) continue;
          float values[kWidth];
          load_floats(line + std::size_t{j} * channels, values);
#pragma unroll
          for (unsigned lane = 0; lane < kWidth; ++lane) sums[t][lane] += values[lane] * w[lane];
        }
      }
    }
#pragma unroll
    for (unsigned t = 0; t < kColumnsAtOnce; ++t) {
      if (column + t >= to_width) continue;
#pragma unroll
      for (unsigned lane = 0; lane < kWidth; ++lane) {
        if (bias != nullptr) sums[t][lane] += to_float(bias[c + lane]);
        if (relu && sums[t][lane] < 0) sums[t][lane] = 0;
      }
      store_floats(to + ((at.image * to_height + at.row) * to_width + column + t) * channels + c, sums[t]);
    }
  }
}

constexpr unsigned kTapsAtOnce = 3;

/// Block (x, y, z): of row z of the kernel, slice y of the lines of y -> sums (slices, taps, channels).
template <class T, unsigned kWidth>
__global__ void __launch_bounds__(kBlock)
    depthwise_weight_kernel(const T* __restrict__ dy, const T* __restrict__ x, float* __restrict__ sums, Geometry g,
                            ChannelLanes lanes) {
  __shared__ float shared[kWidth * kLanesBlock];
  const unsigned channels = g.groups;
  const unsigned u = blockIdx.z;
  const unsigned c = lanes.pack() * kWidth;
  const bool mine = lanes.pack() < lanes.packs;
  const std::size_t lines = g.batch * g.out_height;
  const std::size_t first = lines * blockIdx.y / gridDim.y * g.out_width;
  const std::size_t last = lines * (blockIdx.y + 1) / gridDim.y * g.out_width;
  for (unsigned v0 = 0; v0 < g.kernel_width; v0 += kTapsAtOnce) {
    float taps[kTapsAtOnce][kWidth] = {};
    for (std::size_t pixel = first + lanes.row(); mine && pixel < last; pixel += lanes.rows()) {
      const Pixel at = pixel_of(pixel, g.out_height, g.out_width);
      const unsigned i = input_of(at.row, u, g.stride_height, g.dilation_height, g.padding_height, g.height);
      if (i == kNowhere) continue;
      float d[kWidth];
      load_floats(dy + pixel * channels + c, d);
#pragma unroll
      for (unsigned t = 0; t < kTapsAtOnce; ++t) {
        if (v0 + t >= g.kernel_width) continue;
        const unsigned j = input_of(at.column, v0 + t, g.stride_width, g.dilation_width, g.padding_width, g.width);
        if (j == kNowhere) continue;
        float values[kWidth];
        load_floats(x + ((at.image * g.height + i) * g.width + j) * channels + c, values);
#pragma unroll
        for (unsigned lane = 0; lane < kWidth; ++lane) taps[t][lane] += d[lane] * values[lane];
      }
    }
#pragma unroll
    for (unsigned t = 0; t < kTapsAtOnce; ++t) {
      if (v0 + t >= g.kernel_width) continue;  // The whole block does.
      sum_rows(taps[t], shared, lanes);
      if (!mine || lanes.row() != 0) continue;
      const std::size_t tap = std::size_t{blockIdx.y} * g.taps() + u * g.kernel_width + v0 + t;
#pragma unroll
      for (unsigned lane = 0; lane < kWidth; ++lane) sums[tap * channels + c + lane] = taps[t][lane];
    }
  }
}

// ----- sums of slices, biases ---------------------------------------------------------------------------------------

/// Adds slices (slices, count) up, in their order. kTransposed: a slice is (taps, channels), the result (channels,
/// taps).
template <bool kTransposed, class T>
__global__ void __launch_bounds__(kBlock)
    sum_slices_kernel(const float* __restrict__ sums, unsigned slices, T* __restrict__ to, bool adds, std::size_t count,
                      unsigned taps) {
  for (std::size_t i = first_item(); i < count; i += items_a_round()) {
    const std::size_t channels = count / taps;
    const std::size_t at = kTransposed ? i % channels * taps + i / channels : i;
    float sum = 0;
    for (unsigned s = 0; s < slices; ++s) sum += sums[s * count + i];
    to[at] = from_float<T>((adds ? to_float(to[at]) : 0.0F) + sum);
  }
}

/// Block (x, y): slice y of the rows of dy -> sums (slices, channels).
template <class T, unsigned kWidth>
__global__ void __launch_bounds__(kBlock)
    bias_gradient_kernel(const T* __restrict__ dy, float* __restrict__ sums, std::size_t rows, ChannelLanes lanes) {
  __shared__ float shared[kWidth * kLanesBlock];
  const std::size_t channels = std::size_t{lanes.packs} * kWidth;
  const std::size_t c = std::size_t{lanes.pack()} * kWidth;
  const bool mine = lanes.pack() < lanes.packs;
  const std::size_t last = rows * (blockIdx.y + 1) / gridDim.y;
  float all[kWidth] = {};
  for (std::size_t row = rows * blockIdx.y / gridDim.y + lanes.row(); mine && row < last; row += lanes.rows()) {
    float values[kWidth];
    load_floats(dy + row * channels + c, values);
#pragma unroll
    for (unsigned j = 0; j < kWidth; ++j) all[j] += values[j];
  }
  sum_rows(all, shared, lanes);
  if (!mine || lanes.row() != 0) return;
#pragma unroll
  for (unsigned j = 0; j < kWidth; ++j) sums[blockIdx.y * channels + c + j] = all[j];
}

template <class T>
__global__ void __launch_bounds__(kBlock)
    add_bias_kernel(T* values, const T* __restrict__ bias, bool relu, std::size_t count, std::size_t channels) {
  for (std::size_t i = first_item(); i < count; i += items_a_round()) {
    float value = to_float(values[i]);
    if (bias != nullptr) value += to_float(bias[i % channels]);
    values[i] = from_float<T>(relu && value < 0 ? 0.0F : value);
  }
}

template <class T, class From>
__global__ void __launch_bounds__(kBlock)
    put_gradient_kernel(const From* __restrict__ from, T* to, bool adds, std::size_t count) {
  for (std::size_t i = first_item(); i < count; i += items_a_round())
    to[i] = from_float<T>((adds ? to_float(to[i]) : 0.0F) + to_float(from[i]));
}

std::size_t pixels_of(const ConvolutionShape& s) { return s.batch * s.out_height() * s.out_width(); }

unsigned weight_slices(const ConvolutionShape& s, unsigned processors) {
  if (s.depthwise()) {
    // Of whole lines; as if packs were single channels, so that the workspace is the same for all addresses.
    const unsigned blocks = ChannelLanes::of(s.in_channels).blocks() * static_cast<unsigned>(s.kernel_height);
    return row_slices(s.batch * s.out_height(), 8, blocks, processors);
  }
  const std::size_t tiles = std::size_t{blocks_for(s.out_channels / s.groups, kTile)} *
                            blocks_for(s.weight_size() / s.out_channels, kTile) * s.groups;
  return row_slices(pixels_of(s), 256, static_cast<unsigned>(std::min<std::size_t>(tiles, 1U << 30)), processors);
}
unsigned bias_slices(const ConvolutionShape& s, unsigned processors) {
  return row_slices(pixels_of(s), 64, ChannelLanes::of(s.out_channels).blocks(), processors);
}

template <bool kBackward, class T>
void depthwise(device::Span<const T> from, device::Span<const T> weight, device::Span<const T> bias, device::Span<T> to,
               bool relu, const ConvolutionShape& shape, device::Span<std::byte> workspace, device::Stream& stream) {
  const Geometry g(shape);
  auto* const packed = reinterpret_cast<float*>(workspace.device_data());
  launch("depthwise weights", depthwise_pack_kernel<T>, item_blocks(shape.weight_size()), stream, weight.device_data(),
         packed, static_cast<unsigned>(shape.kernel_height * shape.kernel_width), g.groups);
  const bool aligned = is_aligned(from.device_data()) && is_aligned(to.device_data());
  with_pack_width<T>(shape.in_channels, aligned, [&](auto width) {
    const std::size_t columns = blocks_for(kBackward ? shape.width : shape.out_width(), kColumnsAtOnce);
    const std::size_t items =
        shape.batch * (kBackward ? shape.height : shape.out_height()) * columns * (shape.in_channels / width());
    launch(kBackward ? "depthwise convolution's input gradient" : "depthwise convolution",
           depthwise_kernel<kBackward, T, width()>, item_blocks(items), stream, from.device_data(), packed,
           bias.device_data(), to.device_data(), relu, g);
  });
}

template <class T>
void depthwise_weight_gradient(device::Span<const T> dy, device::Span<const T> x, float* sums, unsigned slices,
                               const ConvolutionShape& shape, device::Stream& stream) {
  const Geometry g(shape);
  const bool aligned = is_aligned(dy.device_data()) && is_aligned(x.device_data());
  with_pack_width<T>(shape.in_channels, aligned, [&](auto width) {
    const ChannelLanes lanes = ChannelLanes::of(shape.in_channels / width());
    launch("depthwise convolution's weight gradient", depthwise_weight_kernel<T, width()>,
           {dim3(lanes.blocks(), slices, g.kernel_height), dim3(kBlock)}, stream, dy.device_data(), x.device_data(),
           sums, g, lanes);
  });
}

}  // namespace

std::size_t bias_gradient_workspace(const ConvolutionShape& shape, unsigned processors) {
  return bias_slices(shape, processors) * shape.out_channels;
}

std::size_t convolution_workspace(ConvolutionPass pass, const ConvolutionShape& shape, unsigned processors) {
  if (pass != ConvolutionPass::kWeightGradient) return shape.depthwise() ? shape.weight_size() * sizeof(float) : 0;
  return std::max(weight_slices(shape, processors) * shape.weight_size(), bias_gradient_workspace(shape, processors)) *
         sizeof(float);
}

template <class T>
void run(const Convolution<T>& call, device::Stream& stream) {
  if (call.shape.depthwise())
    return depthwise<false, T>(call.x, call.weight, call.bias, call.y, call.relu, call.shape, call.workspace, stream);
  const Forward<T> problem{
      call.x.device_data(), call.weight.device_data(), call.bias.device_data(), call.y.device_data(), call.relu,
      Geometry(call.shape)};
  launch_product("convolution", problem, pixels_of(call.shape), call.shape.out_channels / call.shape.groups, 1, stream);
}

template <class T>
void run(const ConvolutionInputGradient<T>& call, device::Stream& stream) {
  if (call.shape.depthwise())
    return depthwise<true, T>(call.dy, call.weight, {}, call.dx, false, call.shape, call.workspace, stream);
  const InputGradient<T> problem{call.dy.device_data(), call.weight.device_data(), call.dx.device_data(),
                                 Geometry(call.shape)};
  launch_product("convolution's input gradient", problem, call.shape.batch * call.shape.height * call.shape.width,
                 call.shape.in_channels / call.shape.groups, 1, stream);
}

template <class T>
void bias_gradient(device::Span<const T> dy, device::Span<T> dbias, bool adds, const ConvolutionShape& shape,
                   device::Span<float> workspace, device::Stream& stream) {
  const unsigned slices = bias_slices(shape, multiprocessors(stream));
  float* const sums = workspace.device_data();
  with_pack_width<T>(shape.out_channels, is_aligned(dy.device_data()), [&](auto width) {
    const ChannelLanes lanes = ChannelLanes::of(shape.out_channels / width());
    launch("bias gradient", bias_gradient_kernel<T, width()>, {dim3(lanes.blocks(), slices), dim3(kBlock)}, stream,
           dy.device_data(), sums, pixels_of(shape), lanes);
  });
  launch("bias gradient's sum", sum_slices_kernel<false, T>, item_blocks(shape.out_channels), stream, sums, slices,
         dbias.device_data(), adds, shape.out_channels, 1U);
}

template <class T>
void run(const ConvolutionWeightGradient<T>& call, device::Stream& stream) {
  const unsigned slices = weight_slices(call.shape, multiprocessors(stream));
  auto* const sums = reinterpret_cast<float*>(call.workspace.device_data());
  const auto taps = static_cast<unsigned>(call.shape.kernel_height * call.shape.kernel_width);
  if (call.shape.depthwise()) {
    depthwise_weight_gradient<T>(call.dy, call.x, sums, slices, call.shape, stream);
    launch("weight gradient's sum", sum_slices_kernel<true, T>, item_blocks(call.shape.weight_size()), stream, sums,
           slices, call.dweight.device_data(), call.adds, call.shape.weight_size(), taps);
  } else {
    const WeightGradient<T> problem{call.dy.device_data(), call.x.device_data(), sums, Geometry(call.shape)};
    launch_product("convolution's weight gradient", problem, call.shape.out_channels / call.shape.groups,
                   call.shape.weight_size() / call.shape.out_channels, slices, stream);
    launch("weight gradient's sum", sum_slices_kernel<false, T>, item_blocks(call.shape.weight_size()), stream, sums,
           slices, call.dweight.device_data(), call.adds, call.shape.weight_size(), taps);
  }
  if (!call.dbias.empty())
    bias_gradient<T>(call.dy, call.dbias, call.adds, call.shape, {sums, call.workspace.size() / sizeof(float)}, stream);
}

template <class T>
void add_bias(device::Span<T> values, device::Span<const T> bias, bool relu, device::Stream& stream) {
  launch("bias", add_bias_kernel<T>, item_blocks(values.size()), stream, values.device_data(), bias.device_data(), relu,
         values.size(), std::max<std::size_t>(bias.size(), 1));
}

template <class T, class From>
void put_gradient(device::Span<const From> from, device::Span<T> to, bool adds, device::Stream& stream) {
  launch("gradient", put_gradient_kernel<T, From>, item_blocks(to.size()), stream, from.device_data(), to.device_data(),
         adds, to.size());
}

DUNNOCK_INSTANTIATE_KERNELS(Convolution, ConvolutionInputGradient, ConvolutionWeightGradient);

template void bias_gradient(device::Span<const float>, device::Span<float>, bool, const ConvolutionShape&,
                            device::Span<float>, device::Stream&);
template void bias_gradient(device::Span<const device::Bf16>, device::Span<device::Bf16>, bool, const ConvolutionShape&,
                            device::Span<float>, device::Stream&);
template void add_bias(device::Span<float>, device::Span<const float>, bool, device::Stream&);
template void add_bias(device::Span<device::Bf16>, device::Span<const device::Bf16>, bool, device::Stream&);
template void put_gradient(device::Span<const float>, device::Span<float>, bool, device::Stream&);
template void put_gradient(device::Span<const float>, device::Span<device::Bf16>, bool, device::Stream&);
template void put_gradient(device::Span<const device::Bf16>, device::Span<device::Bf16>, bool, device::Stream&);

}  // namespace dunnock::kernels::detail::DUNNOCK_KERNELS
