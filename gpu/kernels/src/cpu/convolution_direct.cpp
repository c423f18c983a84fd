// Convolutions in loops of our own: where there is no oneDNN, and for what it lacks.
//
// Forward and the input gradient are one walk: each pixel of the output is the sum, over the taps of the kernel, of a
// source pixel's channels times a matrix (source channels, output channels). A tile of kPixels x kLanes sums stays in
// registers. They differ in where a tap's source pixel is, and in which side of the weights is which.
//
//   packed weights   (groups, taps, source channels, output channels padded to kLanes) floats
//
// The weight gradient holds a tile of kPixels output channels x kLanes input channels of one tap, over all pixels.
// Depthwise convolutions have no sums over channels; their loops run along the channels.
#include <algorithm>
#include <array>

#include "cpu/convolution_cpu.hpp"
#include "parallel.hpp"

namespace dunnock::kernels::detail::direct {
namespace {

constexpr std::size_t kPixels = 6;
constexpr std::size_t kLanes = 16;
constexpr std::size_t kChannels = 64;  // that a depthwise loop sums up at a time
/// Parts of the batch that depthwise weight gradients sum up by themselves: fixed, whatever the number of threads.
constexpr std::size_t kParts = 16;
constexpr std::size_t kNowhere = SIZE_MAX;

constexpr std::size_t padded(std::size_t channels) { return (channels + kLanes - 1) / kLanes * kLanes; }

/// One direction of the plane, seen from an output pixel: where tap t's source is.
struct Axis {
  std::size_t sources;
  std::size_t outputs;
  std::size_t taps;
  std::size_t stride;
  std::size_t padding;
  std::size_t dilation;
  bool backward;

  [[nodiscard]] std::size_t source(std::size_t output, std::size_t tap) const {
    const std::size_t offset = tap * dilation;
    if (!backward) {
      const std::size_t place = output * stride + offset;  // In the padded plane.
      return place < padding || place >= padding + sources ? kNowhere : place - padding;
    }
    const std::size_t place = output + padding;
    if (place < offset || (place - offset) % stride != 0) return kNowhere;
    const std::size_t source = (place - offset) / stride;
    return source < sources ? source : kNowhere;
  }
};
Axis rows_of(const ConvolutionShape& s, bool backward) {
  return {backward ? s.out_height() : s.height,
          backward ? s.height : s.out_height(),
          s.kernel_height,
          s.stride_height,
          s.padding_height,
          s.dilation_height,
          backward};
}
Axis columns_of(const ConvolutionShape& s, bool backward) {
  return {backward ? s.out_width() : s.width,
          backward ? s.width : s.out_width(),
          s.kernel_width,
          s.stride_width,
          s.padding_width,
          s.dilation_width,
          backward};
}

template <class T>
struct Walk {
  const T* source;
  const float* packed;
  const T* zeros;  // as many as a group's source channels: what padding reads
  const T* bias;
  T* output;
  Axis rows;
  Axis columns;
  std::size_t groups;
  std::size_t source_channels;  // of a group
  std::size_t output_channels;  // of a group
  bool relu;
};

/// sums[p][lane] += from[p][k] * weights[k][lane], over k.
template <class T>
[[gnu::always_inline]] inline void multiply(const std::array<const T*, kPixels>& from, const float* weights,
                                            std::size_t channels, std::size_t row, float (&sums)[kPixels][kLanes]) {
  for (std::size_t k = 0; k < channels; ++k) {
    const float* const w = weights + k * row;
    for (std::size_t p = 0; p < kPixels; ++p) {
      const float value = static_cast<float>(from[p][k]);
#pragma omp simd
      for (std::size_t lane = 0; lane < kLanes; ++lane) sums[p][lane] += value * w[lane];
    }
  }
}

/// Row `row` of the outputs of one image.
template <class T>
[[gnu::always_inline]] inline void walk_row(const Walk<T>& walk, std::size_t image, std::size_t row) {
  const std::size_t width = padded(walk.output_channels);
  const std::size_t taps = walk.rows.taps * walk.columns.taps;
  // Pixels of one tile have the same taps: those of the input gradient lie a stride apart.
  const std::size_t step = walk.columns.backward ? walk.columns.stride : 1;
  for (std::size_t g = 0; g < walk.groups; ++g) {
    for (std::size_t first = 0; first < walk.output_channels; first += kLanes) {
      const std::size_t lanes = std::min(kLanes, walk.output_channels - first);
      for (std::size_t phase = 0; phase < step; ++phase) {
        for (std::size_t column = phase; column < walk.columns.outputs; column += kPixels * step) {
          float sums[kPixels][kLanes] = {};
          for (std::size_t u = 0; u < walk.rows.taps; ++u) {
            const std::size_t from_row = walk.rows.source(row, u);
            if (from_row == kNowhere) continue;
            const T* const line = walk.source + (image * walk.rows.sources + from_row) * walk.columns.sources *
                                                    walk.groups * walk.source_channels;
            for (std::size_t v = 0; v < walk.columns.taps; ++v) {
              std::array<const T*, kPixels> from;
              bool any = false;
              for (std::size_t p = 0; p < kPixels; ++p) {
                const std::size_t to = column + p * step;
                const std::size_t at = to < walk.columns.outputs ? walk.columns.source(to, v) : kNowhere;
                from[p] = at == kNowhere ? walk.zeros : line + (at * walk.groups + g) * walk.source_channels;
                any = any || at != kNowhere;
              }
              if (!any) continue;
              const std::size_t tap = u * walk.columns.taps + v;
              multiply<T>(from, walk.packed + ((g * taps + tap) * walk.source_channels) * width + first,
                          walk.source_channels, width, sums);
            }
          }
          for (std::size_t p = 0; p < kPixels && column + p * step < walk.columns.outputs; ++p) {
            const std::size_t pixel = (image * walk.rows.outputs + row) * walk.columns.outputs + column + p * step;
            const std::size_t channel = g * walk.output_channels + first;
            T* const to = walk.output + pixel * walk.groups * walk.output_channels + channel;
            for (std::size_t lane = 0; lane < lanes; ++lane) {
              float value = sums[p][lane];
              if (walk.bias != nullptr) value += static_cast<float>(walk.bias[channel + lane]);
              to[lane] = T(walk.relu && value < 0 ? 0.0F : value);
            }
          }
        }
      }
    }
  }
}

// A depthwise walk: the packed weights are (taps, channels).
template <class T>
[[gnu::always_inline]] inline void walk_depthwise_row(const Walk<T>& walk, std::size_t image, std::size_t row) {
  for (std::size_t column = 0; column < walk.columns.outputs; ++column) {
    const std::size_t pixel = (image * walk.rows.outputs + row) * walk.columns.outputs + column;
    for (std::size_t first = 0; first < walk.groups; first += kChannels) {
      const std::size_t count = std::min(kChannels, walk.groups - first);
      float sums[kChannels] = {};
      for (std::size_t u = 0; u < walk.rows.taps; ++u) {
        const std::size_t from_row = walk.rows.source(row, u);
        if (from_row == kNowhere) continue;
        for (std::size_t v = 0; v < walk.columns.taps; ++v) {
          const std::size_t at = walk.columns.source(column, v);
          if (at == kNowhere) continue;
          const T* const from =
              walk.source + ((image * walk.rows.sources + from_row) * walk.columns.sources + at) * walk.groups + first;
          const float* const w = walk.packed + (u * walk.columns.taps + v) * walk.groups + first;
#pragma omp simd
          for (std::size_t c = 0; c < count; ++c) sums[c] += static_cast<float>(from[c]) * w[c];
        }
      }
      T* const to = walk.output + pixel * walk.groups + first;
      for (std::size_t c = 0; c < count; ++c) {
        float value = sums[c];
        if (walk.bias != nullptr) value += static_cast<float>(walk.bias[first + c]);
        to[c] = T(walk.relu && value < 0 ? 0.0F : value);
      }
    }
  }
}

/// Of one tap: tile[o][c] += dy[pixel][o] * x[source of pixel][c], over all pixels; each image by itself first.
template <class T>
struct TapGradient {
  const T* dy;  // at the tile's first output channel
  const T* x;   // at the tile's first input channel
  std::size_t outputs;
  std::size_t inputs;
  std::size_t u;
  std::size_t v;
};
template <class T>
[[gnu::always_inline]] inline void sum_tap(const TapGradient<T>& tap, const ConvolutionShape& s, std::size_t image,
                                           float (&sums)[kPixels][kLanes]) {
  const Axis rows = rows_of(s, false);
  const Axis columns = columns_of(s, false);
  for (std::size_t i = 0; i < rows.outputs; ++i) {
    const std::size_t row = rows.source(i, tap.u);
    if (row == kNowhere) continue;
    for (std::size_t j = 0; j < columns.outputs; ++j) {
      const std::size_t column = columns.source(j, tap.v);
      if (column == kNowhere) continue;
      const T* const d = tap.dy + ((image * rows.outputs + i) * columns.outputs + j) * s.out_channels;
      const T* const in = tap.x + ((image * s.height + row) * s.width + column) * s.in_channels;
      float values[kLanes];
      if (tap.inputs == kLanes) {
        for (std::size_t c = 0; c < kLanes; ++c) values[c] = static_cast<float>(in[c]);
      } else {
        for (std::size_t c = 0; c < kLanes; ++c) values[c] = c < tap.inputs ? static_cast<float>(in[c]) : 0.0F;
      }
      for (std::size_t o = 0; o < kPixels; ++o) {
        const float of = o < tap.outputs ? static_cast<float>(d[o]) : 0.0F;
#pragma omp simd
        for (std::size_t c = 0; c < kLanes; ++c) sums[o][c] += of * values[c];
      }
    }
  }
}

/// sums (taps, channels) += of images first .. last - 1
template <class T>
[[gnu::always_inline]] inline void sum_depthwise(const T* dy, const T* x, const ConvolutionShape& s, std::size_t first,
                                                 std::size_t last, float* sums) {
  const Axis rows = rows_of(s, false);
  const Axis columns = columns_of(s, false);
  const std::size_t channels = s.in_channels;
  for (std::size_t image = first; image < last; ++image) {
    for (std::size_t i = 0; i < rows.outputs; ++i) {
      for (std::size_t u = 0; u < rows.taps; ++u) {
        const std::size_t row = rows.source(i, u);
        if (row == kNowhere) continue;
        for (std::size_t v = 0; v < columns.taps; ++v) {
          for (std::size_t block = 0; block < channels; block += kChannels) {
            const std::size_t count = std::min(kChannels, channels - block);
            float* const to = sums + (u * columns.taps + v) * channels + block;
            float mine[kChannels] = {};  // Of this line of pixels.
            for (std::size_t j = 0; j < columns.outputs; ++j) {
              const std::size_t column = columns.source(j, v);
              if (column == kNowhere) continue;
              const T* const d = dy + ((image * rows.outputs + i) * columns.outputs + j) * channels + block;
              const T* const in = x + ((image * s.height + row) * s.width + column) * channels + block;
#pragma omp simd
              for (std::size_t c = 0; c < count; ++c) mine[c] += static_cast<float>(d[c]) * static_cast<float>(in[c]);
            }
            for (std::size_t c = 0; c < count; ++c) to[c] += mine[c];
          }
        }
      }
    }
  }
}

// The hot leaves, once for AVX-512 where the machine has it. Templates can't be cloned.
#define DUNNOCK_LEAVES(T, suffix)                                                                                      \
  DUNNOCK_VECTOR_CLONES void walk_row_##suffix(const Walk<T>& walk, std::size_t image, std::size_t row) {              \
    walk_row<T>(walk, image, row);                                                                                     \
  }                                                                                                                    \
  DUNNOCK_VECTOR_CLONES void walk_depthwise_row_##suffix(const Walk<T>& walk, std::size_t image, std::size_t row) {    \
    walk_depthwise_row<T>(walk, image, row);                                                                           \
  }                                                                                                                    \
  DUNNOCK_VECTOR_CLONES void sum_tap_##suffix(const TapGradient<T>& tap, const ConvolutionShape& s, std::size_t image, \
                                              float(&sums)[kPixels][kLanes]) {                                         \
    sum_tap<T>(tap, s, image, sums);                                                                                   \
  }                                                                                                                    \
  DUNNOCK_VECTOR_CLONES void sum_depthwise_##suffix(const T* dy, const T* x, const ConvolutionShape& s,                \
                                                    std::size_t first, std::size_t last, float* sums) {                \
    sum_depthwise<T>(dy, x, s, first, last, sums);                                                                     \
  }
DUNNOCK_LEAVES(float, f32)
DUNNOCK_LEAVES(device::Bf16, bf16)
#undef DUNNOCK_LEAVES

template <class T>
struct Leaves;
template <>
struct Leaves<float> {
  static constexpr auto kWalkRow = walk_row_f32;
  static constexpr auto kWalkDepthwiseRow = walk_depthwise_row_f32;
  static constexpr auto kSumTap = sum_tap_f32;
  static constexpr auto kSumDepthwise = sum_depthwise_f32;
};
template <>
struct Leaves<device::Bf16> {
  static constexpr auto kWalkRow = walk_row_bf16;
  static constexpr auto kWalkDepthwiseRow = walk_depthwise_row_bf16;
  static constexpr auto kSumTap = sum_tap_bf16;
  static constexpr auto kSumDepthwise = sum_depthwise_bf16;
};

std::size_t packed_floats(const ConvolutionShape& s, bool backward) {
  const std::size_t taps = s.kernel_height * s.kernel_width;
  if (s.depthwise()) return taps * s.in_channels;
  const std::size_t inputs = s.in_channels / s.groups;
  const std::size_t outputs = s.out_channels / s.groups;
  return s.groups * taps * (backward ? outputs * padded(inputs) : inputs * padded(outputs));
}

template <class T>
void pack(const T* weight, float* packed, const ConvolutionShape& s, bool backward) {
  const std::size_t taps = s.kernel_height * s.kernel_width;
  if (s.depthwise()) {
    for (std::size_t tap = 0; tap < taps; ++tap)
      for (std::size_t c = 0; c < s.in_channels; ++c)
        packed[tap * s.in_channels + c] = static_cast<float>(weight[c * taps + tap]);
    return;
  }
  const std::size_t inputs = s.in_channels / s.groups;
  const std::size_t outputs = s.out_channels / s.groups;
  const std::size_t from = backward ? outputs : inputs;
  const std::size_t to = backward ? inputs : outputs;
  device::parallel_for(s.groups * taps, device::kParallelGrain / (from * to) + 1,
                       [&](std::size_t first, std::size_t last) {
                         for (std::size_t i = first; i < last; ++i) {
                           const std::size_t g = i / taps;
                           const std::size_t tap = i % taps;
                           for (std::size_t k = 0; k < from; ++k) {
                             float* const row = packed + (i * from + k) * padded(to);
                             std::fill(row + to, row + padded(to), 0.0F);
                             for (std::size_t m = 0; m < to; ++m) {
                               const std::size_t o = g * outputs + (backward ? k : m);
                               row[m] = static_cast<float>(weight[(o * taps + tap) * inputs + (backward ? m : k)]);
                             }
                           }
                         }
                       });
}

/// Forward, or backward to the input.
template <class T>
void walk_all(const ConvolutionData<T>& data, const ConvolutionShape& s, bool backward) {
  auto* const packed = reinterpret_cast<float*>(data.workspace);
  auto* const zeros = reinterpret_cast<T*>(packed + packed_floats(s, backward));
  Walk<T> walk;
  walk.source = backward ? data.dy : data.x;
  walk.packed = packed;
  walk.zeros = zeros;
  walk.bias = backward ? nullptr : data.bias;
  walk.output = backward ? data.dx : data.y;
  walk.rows = rows_of(s, backward);
  walk.columns = columns_of(s, backward);
  walk.groups = s.groups;
  walk.source_channels = (backward ? s.out_channels : s.in_channels) / s.groups;
  walk.output_channels = (backward ? s.in_channels : s.out_channels) / s.groups;
  walk.relu = !backward && data.relu;
  pack(data.weight, packed, s, backward);
  std::fill_n(zeros, walk.source_channels, T(0.0F));
  const std::size_t lines = s.batch * walk.rows.outputs;
  const std::size_t work = walk.columns.outputs * walk.groups * walk.source_channels * walk.output_channels *
                           walk.rows.taps * walk.columns.taps;
  device::parallel_for(lines, device::kParallelGrain * 8 / (work + 1) + 1, [&](std::size_t first, std::size_t last) {
    for (std::size_t line = first; line < last; ++line) {
      const auto row = s.depthwise() ? Leaves<T>::kWalkDepthwiseRow : Leaves<T>::kWalkRow;
      row(walk, line / walk.rows.outputs, line % walk.rows.outputs);
    }
  });
}

template <class T>
void put(T& to, float value, bool adds) {
  to = T((adds ? static_cast<float>(to) : 0.0F) + value);
}

template <class T>
void weight_gradient(const ConvolutionData<T>& data, const ConvolutionShape& s) {
  const std::size_t taps = s.kernel_height * s.kernel_width;
  const std::size_t inputs = s.in_channels / s.groups;
  const std::size_t outputs = s.out_channels / s.groups;
  const std::size_t tiles = (outputs + kPixels - 1) / kPixels;
  device::parallel_for(s.groups * taps * tiles, 1, [&](std::size_t first, std::size_t last) {
    for (std::size_t item = first; item < last; ++item) {
      const std::size_t g = item / (taps * tiles);
      const std::size_t tap = item / tiles % taps;
      const std::size_t o = item % tiles * kPixels;
      for (std::size_t c = 0; c < inputs; c += kLanes) {
        const TapGradient<T> gradient{data.dy + g * outputs + o,      data.x + g * inputs + c,
                                      std::min(kPixels, outputs - o), std::min(kLanes, inputs - c),
                                      tap / s.kernel_width,           tap % s.kernel_width};
        float all[kPixels][kLanes] = {};
        for (std::size_t image = 0; image < s.batch; ++image) {
          float sums[kPixels][kLanes] = {};
          Leaves<T>::kSumTap(gradient, s, image, sums);
          for (std::size_t i = 0; i < kPixels; ++i)
            for (std::size_t j = 0; j < kLanes; ++j) all[i][j] += sums[i][j];
        }
        for (std::size_t i = 0; i < gradient.outputs; ++i) {
          T* const to = data.dweight + ((g * outputs + o + i) * taps + tap) * inputs + c;
          for (std::size_t j = 0; j < gradient.inputs; ++j) put(to[j], all[i][j], data.adds);
        }
      }
    }
  });
}

template <class T>
void depthwise_weight_gradient(const ConvolutionData<T>& data, const ConvolutionShape& s) {
  const std::size_t size = s.kernel_height * s.kernel_width * s.in_channels;
  const std::size_t taps = s.kernel_height * s.kernel_width;
  auto* const sums = reinterpret_cast<float*>(data.workspace);  // (parts, taps, channels)
  device::parallel_for(kParts, 1, [&](std::size_t first, std::size_t last) {
    for (std::size_t part = first; part < last; ++part) {
      std::fill_n(sums + part * size, size, 0.0F);
      Leaves<T>::kSumDepthwise(data.dy, data.x, s, s.batch * part / kParts, s.batch * (part + 1) / kParts,
                               sums + part * size);
    }
  });
  for (std::size_t tap = 0; tap < taps; ++tap) {
    for (std::size_t c = 0; c < s.in_channels; ++c) {
      float sum = 0;
      for (std::size_t part = 0; part < kParts; ++part) sum += sums[part * size + tap * s.in_channels + c];
      put(data.dweight[c * taps + tap], sum, data.adds);
    }
  }
}

template <class T>
void bias_gradient(const ConvolutionData<T>& data, const ConvolutionShape& s) {
  const std::size_t pixels = s.out_height() * s.out_width();
  const std::size_t blocks = (s.out_channels + kChannels - 1) / kChannels;
  device::parallel_for(blocks, device::kParallelGrain / (s.batch * pixels * kChannels + 1) + 1,
                       [&](std::size_t one, std::size_t end) {
                         for (std::size_t block = one; block < end; ++block) {
                           const std::size_t first = block * kChannels;
                           const std::size_t count = std::min(kChannels, s.out_channels - first);
                           float all[kChannels] = {};
                           for (std::size_t image = 0; image < s.batch; ++image) {
                             float sums[kChannels] = {};
                             for (std::size_t pixel = 0; pixel < pixels; ++pixel) {
                               const T* const from = data.dy + (image * pixels + pixel) * s.out_channels + first;
#pragma omp simd
                               for (std::size_t c = 0; c < count; ++c) sums[c] += static_cast<float>(from[c]);
                             }
                             for (std::size_t c = 0; c < count; ++c) all[c] += sums[c];
                           }
                           for (std::size_t c = 0; c < count; ++c) put(data.dbias[first + c], all[c], data.adds);
                         }
                       });
}

}  // namespace

template <class T>
std::size_t convolution_workspace(ConvolutionPass pass, const ConvolutionShape& shape) {
  if (pass == ConvolutionPass::kWeightGradient) {
    return shape.depthwise() ? kParts * shape.weight_size() * sizeof(float) : 0;
  }
  const bool backward = pass == ConvolutionPass::kInputGradient;
  const std::size_t channels = (backward ? shape.out_channels : shape.in_channels) / shape.groups;
  return packed_floats(shape, backward) * sizeof(float) + channels * sizeof(T);
}

template <class T>
void convolution(ConvolutionPass pass, const ConvolutionData<T>& data, const ConvolutionShape& shape) {
  if (pass != ConvolutionPass::kWeightGradient) {
    walk_all(data, shape, pass == ConvolutionPass::kInputGradient);
    return;
  }
  if (shape.depthwise()) {
    depthwise_weight_gradient(data, shape);
  } else {
    weight_gradient(data, shape);
  }
  if (data.dbias != nullptr) bias_gradient(data, shape);
}

#define DUNNOCK_INSTANTIATE(T)                                                             \
  template std::size_t convolution_workspace<T>(ConvolutionPass, const ConvolutionShape&); \
  template void convolution<T>(ConvolutionPass, const ConvolutionData<T>&, const ConvolutionShape&);
DUNNOCK_INSTANTIATE(float)
DUNNOCK_INSTANTIATE(device::Bf16)
#undef DUNNOCK_INSTANTIATE

}  // namespace dunnock::kernels::detail::direct
