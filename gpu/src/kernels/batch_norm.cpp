#include "dunnock/gpu/kernels/batch_norm.hpp"

#include <algorithm>
#include <cmath>

#include "kernels/batch_norm_launchers.hpp"
#include "kernels/checks.hpp"
#include "kernels/parallel.hpp"

namespace dunnock::gpu {
namespace {

using detail::check_optional;
using detail::check_sizes;
using detail::parallel_for;

/// Parts of the rows that are summed up by themselves: fixed, so that sums do not depend on the number of threads.
constexpr std::size_t kParts = 16;
/// Channels at a time: their sums stay near.
constexpr std::size_t kChannels = 64;
/// Rows at a time, whose mean comes first and whose distances from it second, while they are still in the cache.
constexpr std::size_t kRows = 64;

struct Rows {
  std::size_t first;
  std::size_t last;
};
Rows rows_of_part(const BatchNormShape& shape, std::size_t part) {
  return {shape.rows * part / kParts, shape.rows * (part + 1) / kParts};
}
std::size_t rows_a_part(const BatchNormShape& shape) { return detail::kParallelGrain / shape.channels + 1; }

/// What is normed, in float: scale and offset of a channel. Forward and backward decide about ReLU by the same
/// arithmetic.
[[gnu::always_inline]] inline float norm_value(float x, float mean, float r, float weight, float bias) {
  return (x - mean) * r * weight + bias;
}

/// mean, squares (channels): of the rows; squares are of distances from the mean. Chan, Golub, LeVeque 1983.
template <class T>
[[gnu::always_inline]] inline void moments_of(const T* x, float* mean, float* squares, std::size_t channels,
                                              Rows rows) {
  for (std::size_t c = 0; c < channels; c += kChannels) {
    const std::size_t width = std::min(kChannels, channels - c);
    float all_mean[kChannels] = {};
    float all_squares[kChannels] = {};
    float seen = 0;
    for (std::size_t row = rows.first; row < rows.last; row += kRows) {
      const std::size_t end = std::min(row + kRows, rows.last);
      const auto count = static_cast<float>(end - row);
      float here[kChannels] = {};
      float square[kChannels] = {};
      for (std::size_t i = row; i < end; ++i) {
        const T* const from = x + i * channels + c;
#pragma omp simd
        for (std::size_t k = 0; k < width; ++k) here[k] += static_cast<float>(from[k]);
      }
      for (std::size_t k = 0; k < width; ++k) here[k] /= count;
      for (std::size_t i = row; i < end; ++i) {
        const T* const from = x + i * channels + c;
#pragma omp simd
        for (std::size_t k = 0; k < width; ++k) {
          const float distance = static_cast<float>(from[k]) - here[k];
          square[k] += distance * distance;
        }
      }
      const float share = count / (seen + count);
      for (std::size_t k = 0; k < width; ++k) {
        const float distance = here[k] - all_mean[k];
        all_mean[k] += distance * share;
        all_squares[k] += square[k] + distance * distance * seen * share;
      }
      seen += count;
    }
    std::copy_n(all_mean, width, mean + c);
    std::copy_n(all_squares, width, squares + c);
  }
}

template <class T>
[[gnu::always_inline]] inline void apply_rows(const T* x, const T* weight, const T* bias, const float* mean,
                                              const float* r, T* y, const BatchNormShape& shape, Rows rows) {
  for (std::size_t c = 0; c < shape.channels; c += kChannels) {
    const std::size_t width = std::min(kChannels, shape.channels - c);
    const float floor = shape.relu ? 0.0F : -INFINITY;
    float w[kChannels];
    float b[kChannels];
    for (std::size_t k = 0; k < width; ++k) {
      w[k] = static_cast<float>(weight[c + k]);
      b[k] = static_cast<float>(bias[c + k]);
    }
    for (std::size_t row = rows.first; row < rows.last; ++row) {
      const T* const from = x + row * shape.channels + c;
      T* const to = y + row * shape.channels + c;
#pragma omp simd
      for (std::size_t k = 0; k < width; ++k) {
        const float value = norm_value(static_cast<float>(from[k]), mean[c + k], r[c + k], w[k], b[k]);
        to[k] = T(value < floor ? floor : value);
      }
    }
  }
}

/// What backward knows of the channels.
template <class T>
struct Known {
  const T* dy;
  const T* x;
  const T* weight;
  const T* bias;
  const float* mean;
  const float* r;
};

/// sums (2, channels) = of g * z, of g
template <class T>
[[gnu::always_inline]] inline void sums_of(const Known<T>& known, float* sums, const BatchNormShape& shape, Rows rows) {
  for (std::size_t c = 0; c < shape.channels; c += kChannels) {
    const std::size_t width = std::min(kChannels, shape.channels - c);
    float products[kChannels] = {};
    float gradients[kChannels] = {};
    for (std::size_t row = rows.first; row < rows.last; row += kRows) {
      const std::size_t end = std::min(row + kRows, rows.last);
      float product[kChannels] = {};
      float gradient[kChannels] = {};
      for (std::size_t i = row; i < end; ++i) {
        const T* const d = known.dy + i * shape.channels + c;
        const T* const from = known.x + i * shape.channels + c;
#pragma omp simd
        for (std::size_t k = 0; k < width; ++k) {
          const float in = static_cast<float>(from[k]);
          const float z = (in - known.mean[c + k]) * known.r[c + k];
          const float value = norm_value(in, known.mean[c + k], known.r[c + k], static_cast<float>(known.weight[c + k]),
                                         static_cast<float>(known.bias[c + k]));
          const bool off = shape.relu & (value <= 0);
          const float g = off ? 0.0F : static_cast<float>(d[k]);
          product[k] += g * z;
          gradient[k] += g;
        }
      }
      for (std::size_t k = 0; k < width; ++k) {
        products[k] += product[k];
        gradients[k] += gradient[k];
      }
    }
    std::copy_n(products, width, sums + c);
    std::copy_n(gradients, width, sums + shape.channels + c);
  }
}

template <class T>
[[gnu::always_inline]] inline void dx_rows(const Known<T>& known, const float* sums, T* dx, const BatchNormShape& shape,
                                           Rows rows) {
  const float share = 1.0F / static_cast<float>(shape.rows);
  for (std::size_t row = rows.first; row < rows.last; ++row) {
    const T* const d = known.dy + row * shape.channels;
    const T* const from = known.x + row * shape.channels;
    T* const to = dx + row * shape.channels;
#pragma omp simd
    for (std::size_t c = 0; c < shape.channels; ++c) {
      const float in = static_cast<float>(from[c]);
      const float w = static_cast<float>(known.weight[c]);
      const float z = (in - known.mean[c]) * known.r[c];
      const float value = norm_value(in, known.mean[c], known.r[c], w, static_cast<float>(known.bias[c]));
      const bool off = shape.relu & (value <= 0);
      const float g = off ? 0.0F : static_cast<float>(d[c]);
      to[c] = T(w * known.r[c] * (g - (sums[shape.channels + c] + z * sums[c]) * share));
    }
  }
}

#define DUNNOCK_LEAVES(T)                                                                                              \
  DUNNOCK_VECTOR_CLONES void part_moments(const T* x, float* mean, float* squares, std::size_t channels, Rows rows) {  \
    moments_of<T>(x, mean, squares, channels, rows);                                                                   \
  }                                                                                                                    \
  DUNNOCK_VECTOR_CLONES void part_apply(const T* x, const T* weight, const T* bias, const float* mean, const float* r, \
                                        T* y, const BatchNormShape& shape, Rows rows) {                                \
    apply_rows<T>(x, weight, bias, mean, r, y, shape, rows);                                                           \
  }                                                                                                                    \
  DUNNOCK_VECTOR_CLONES void part_sums(const Known<T>& known, float* sums, const BatchNormShape& shape, Rows rows) {   \
    sums_of<T>(known, sums, shape, rows);                                                                              \
  }                                                                                                                    \
  DUNNOCK_VECTOR_CLONES void part_dx(const Known<T>& known, const float* sums, T* dx, const BatchNormShape& shape,     \
                                     Rows rows) {                                                                      \
    dx_rows<T>(known, sums, dx, shape, rows);                                                                          \
  }
DUNNOCK_LEAVES(float)
DUNNOCK_LEAVES(Bf16)
#undef DUNNOCK_LEAVES

/// f(part) for all parts.
template <class F>
void each_part(const BatchNormShape& shape, const F& f) {
  const std::size_t least = shape.rows * shape.channels / kParts < detail::kParallelGrain / 2 ? kParts : 1;
  parallel_for(kParts, least, [&](std::size_t first, std::size_t last) {
    for (std::size_t part = first; part < last; ++part) f(part);
  });
}

void check_shape(const BatchNormShape& shape, bool training) {
  DUNNOCK_CHECK(shape.channels > 0, "a row has channels");
  DUNNOCK_CHECK(!training || shape.rows > 0, "statistics are of rows");
}

}  // namespace

std::size_t batch_norm_workspace(const BatchNormShape& shape, [[maybe_unused]] Device device) {
#if DUNNOCK_HAS_CUDA
  if (device.backend() == Backend::kCuda) return detail::cuda::batch_norm_workspace(shape, device.info().processors);
#endif
  return kParts * 2 * shape.channels;
}

template <class T>
void batch_norm(DeviceSpan<const T> x, DeviceSpan<const T> weight, DeviceSpan<const T> bias, DeviceSpan<T> y,
                DeviceSpan<float> mean, DeviceSpan<float> r, DeviceSpan<float> running_mean,
                DeviceSpan<float> running_variance, const BatchNormShape& shape, DeviceSpan<float> workspace,
                Stream& stream) {
  check_shape(shape, true);
  check_sizes(shape.rows * shape.channels, x, y);
  check_sizes(shape.channels, weight, bias, mean, r);
  check_optional(shape.channels, running_mean, running_variance);
  DUNNOCK_CHECK(running_mean.size() == running_variance.size(), "the running statistics are two");
  DUNNOCK_CHECK(workspace.size() >= batch_norm_workspace(shape, stream.device()), "the workspace is large enough");
  DUNNOCK_ON_CUDA(stream, detail::cuda::batch_norm<T>(x, weight, bias, y, mean, r, running_mean, running_variance,
                                                      shape, workspace, stream));
  stream.run("batch norm", [=] {
    const std::size_t channels = shape.channels;
    float* const sums = workspace.device_data();  // (parts, 2, channels): means, squares
    each_part(shape, [&](std::size_t part) {
      float* const mine = sums + part * 2 * channels;
      part_moments(x.device_data(), mine, mine + channels, channels, rows_of_part(shape, part));
    });
    for (std::size_t c = 0; c < channels; ++c) {
      float centre = 0;
      float squares = 0;
      float seen = 0;
      for (std::size_t part = 0; part < kParts; ++part) {
        const Rows rows = rows_of_part(shape, part);
        if (rows.first == rows.last) continue;
        const auto count = static_cast<float>(rows.last - rows.first);
        const float distance = sums[part * 2 * channels + c] - centre;
        const float share = count / (seen + count);
        centre += distance * share;
        squares += sums[(part * 2 + 1) * channels + c] + distance * distance * seen * share;
        seen += count;
      }
      const float variance = squares / static_cast<float>(shape.rows);
      mean.device_data()[c] = centre;
      r.device_data()[c] = 1.0F / std::sqrt(variance + shape.epsilon);
      if (running_mean.empty()) continue;
      const float unbiased = shape.rows == 1 ? variance : squares / static_cast<float>(shape.rows - 1);
      float& of_mean = running_mean.device_data()[c];
      float& of_variance = running_variance.device_data()[c];
      of_mean = (1 - shape.momentum) * of_mean + shape.momentum * centre;
      of_variance = (1 - shape.momentum) * of_variance + shape.momentum * unbiased;
    }
    each_part(shape, [&](std::size_t part) {
      part_apply(x.device_data(), weight.device_data(), bias.device_data(), mean.device_data(), r.device_data(),
                 y.device_data(), shape, rows_of_part(shape, part));
    });
    return Status{};
  });
}

template <class T>
void batch_norm_inference(DeviceSpan<const T> x, DeviceSpan<const T> weight, DeviceSpan<const T> bias,
                          DeviceSpan<const float> running_mean, DeviceSpan<const float> running_variance,
                          DeviceSpan<T> y, const BatchNormShape& shape, Stream& stream) {
  check_shape(shape, false);
  check_sizes(shape.rows * shape.channels, x, y);
  check_sizes(shape.channels, weight, bias, running_mean, running_variance);
  if (shape.rows == 0) return;
  DUNNOCK_ON_CUDA(
      stream, detail::cuda::batch_norm_inference<T>(x, weight, bias, running_mean, running_variance, y, shape, stream));
  stream.run("batch norm inference", [=] {
    parallel_for(shape.rows, rows_a_part(shape), [&](std::size_t first, std::size_t last) {
      float r[kChannels];
      // Of kChannels channels at a time, so that their r need no memory: as matrices of `width` columns would.
      for (std::size_t c = 0; c < shape.channels; c += kChannels) {
        const std::size_t width = std::min(kChannels, shape.channels - c);
        for (std::size_t k = 0; k < width; ++k)
          r[k] = 1.0F / std::sqrt(running_variance.device_data()[c + k] + shape.epsilon);
        const float* const mean = running_mean.device_data() + c;
        for (std::size_t row = first; row < last; ++row) {
          const std::size_t at = row * shape.channels + c;
          BatchNormShape one = shape;
          one.channels = width;
          part_apply(x.device_data() + at, weight.device_data() + c, bias.device_data() + c, mean, r,
                     y.device_data() + at, one, {0, 1});
        }
      }
    });
    return Status{};
  });
}

template <class T>
void batch_norm_backward(DeviceSpan<const T> dy, DeviceSpan<const T> x, DeviceSpan<const T> weight,
                         DeviceSpan<const T> bias, DeviceSpan<const float> mean, DeviceSpan<const float> r,
                         DeviceSpan<T> dx, DeviceSpan<T> dweight, DeviceSpan<T> dbias, bool adds,
                         const BatchNormShape& shape, DeviceSpan<float> workspace, Stream& stream) {
  check_shape(shape, true);
  check_sizes(shape.rows * shape.channels, dy, x, dx);
  check_sizes(shape.channels, weight, bias, mean, r, dweight, dbias);
  DUNNOCK_CHECK(workspace.size() >= batch_norm_workspace(shape, stream.device()), "the workspace is large enough");
  DUNNOCK_ON_CUDA(stream, detail::cuda::batch_norm_backward<T>(dy, x, weight, bias, mean, r, dx, dweight, dbias, adds,
                                                               shape, workspace, stream));
  stream.run("batch norm backward", [=] {
    const std::size_t channels = shape.channels;
    float* const sums = workspace.device_data();  // (parts, 2, channels); part 0's become all
    const Known<T> known{dy.device_data(),   x.device_data(),    weight.device_data(),
                         bias.device_data(), mean.device_data(), r.device_data()};
    each_part(shape, [&](std::size_t part) {
      part_sums(known, sums + part * 2 * channels, shape, rows_of_part(shape, part));
    });
    for (std::size_t part = 1; part < kParts; ++part) {
      for (std::size_t i = 0; i < 2 * channels; ++i) sums[i] += sums[part * 2 * channels + i];
    }
    for (std::size_t c = 0; c < channels; ++c) {
      T& of_weight = dweight.device_data()[c];
      T& of_bias = dbias.device_data()[c];
      of_weight = T((adds ? static_cast<float>(of_weight) : 0.0F) + sums[c]);
      of_bias = T((adds ? static_cast<float>(of_bias) : 0.0F) + sums[channels + c]);
    }
    each_part(shape,
              [&](std::size_t part) { part_dx(known, sums, dx.device_data(), shape, rows_of_part(shape, part)); });
    return Status{};
  });
}

#define DUNNOCK_INSTANTIATE(T)                                                                                   \
  template void batch_norm<T>(DeviceSpan<const T>, DeviceSpan<const T>, DeviceSpan<const T>, DeviceSpan<T>,      \
                              DeviceSpan<float>, DeviceSpan<float>, DeviceSpan<float>, DeviceSpan<float>,        \
                              const BatchNormShape&, DeviceSpan<float>, Stream&);                                \
  template void batch_norm_inference<T>(DeviceSpan<const T>, DeviceSpan<const T>, DeviceSpan<const T>,           \
                                        DeviceSpan<const float>, DeviceSpan<const float>, DeviceSpan<T>,         \
                                        const BatchNormShape&, Stream&);                                         \
  template void batch_norm_backward<T>(DeviceSpan<const T>, DeviceSpan<const T>, DeviceSpan<const T>,            \
                                       DeviceSpan<const T>, DeviceSpan<const float>, DeviceSpan<const float>,    \
                                       DeviceSpan<T>, DeviceSpan<T>, DeviceSpan<T>, bool, const BatchNormShape&, \
                                       DeviceSpan<float>, Stream&);
DUNNOCK_INSTANTIATE(float)
DUNNOCK_INSTANTIATE(Bf16)
#undef DUNNOCK_INSTANTIATE

}  // namespace dunnock::gpu
