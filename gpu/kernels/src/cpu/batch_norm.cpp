#include "dunnock/kernels/batch_norm.hpp"

#include <algorithm>
#include <cmath>

#include "batch_norm_parts.hpp"
#include "checks.hpp"
#include "parallel.hpp"

namespace dunnock::kernels {
namespace {

using detail::check_optional;
using detail::check_sizes;
using device::parallel_for;

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
std::size_t rows_a_part(const BatchNormShape& shape) { return device::kParallelGrain / shape.channels + 1; }

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
DUNNOCK_LEAVES(device::Bf16)
#undef DUNNOCK_LEAVES

/// f(part) for all parts.
template <class F>
void each_part(const BatchNormShape& shape, const F& f) {
  const std::size_t least = shape.rows * shape.channels / kParts < device::kParallelGrain / 2 ? kParts : 1;
  device::parallel_for(kParts, least, [&](std::size_t first, std::size_t last) {
    for (std::size_t part = first; part < last; ++part) f(part);
  });
}

void check_shape(const BatchNormShape& shape, bool training) {
  DUNNOCK_CHECK(shape.channels > 0, "a row has channels");
  DUNNOCK_CHECK(!training || shape.rows > 0, "statistics need at least one row");
}

}  // namespace

std::size_t batch_norm_workspace(const BatchNormShape& shape, [[maybe_unused]] device::Device device) {
#if DUNNOCK_HAS_CUDA
  if (device.backend() == device::Backend::kCuda)
    return detail::cuda::batch_norm_workspace(shape, device.info().processors);
#endif
  return kParts * 2 * shape.channels;
}

template <class T>
void run(const BatchNorm<T>& call, device::Stream& stream) {
  check_shape(call.shape, true);
  check_sizes(call.shape.rows * call.shape.channels, call.x, call.y);
  check_sizes(call.shape.channels, call.weight, call.bias, call.mean, call.r);
  check_optional(call.shape.channels, call.running_mean, call.running_variance);
  DUNNOCK_CHECK(call.running_mean.size() == call.running_variance.size(),
                "the running mean and variance have one size");
  DUNNOCK_CHECK(call.workspace.size() >= batch_norm_workspace(call.shape, stream.device()),
                "the workspace is large enough");
  if (ran_on_cuda(call, stream)) return;
  stream.run("batch norm", [=] {
    const std::size_t channels = call.shape.channels;
    float* const sums = call.workspace.device_data();  // (parts, 2, channels): means, squares
    each_part(call.shape, [&](std::size_t part) {
      float* const mine = sums + part * 2 * channels;
      part_moments(call.x.device_data(), mine, mine + channels, channels, rows_of_part(call.shape, part));
    });
    for (std::size_t c = 0; c < channels; ++c) {
      float centre = 0;
      float squares = 0;
      float seen = 0;
      for (std::size_t part = 0; part < kParts; ++part) {
        const Rows rows = rows_of_part(call.shape, part);
        if (rows.first == rows.last) continue;
        const auto count = static_cast<float>(rows.last - rows.first);
        const float distance = sums[part * 2 * channels + c] - centre;
        const float share = count / (seen + count);
        centre += distance * share;
        squares += sums[(part * 2 + 1) * channels + c] + distance * distance * seen * share;
        seen += count;
      }
      const float variance = squares / static_cast<float>(call.shape.rows);
      call.mean.device_data()[c] = centre;
      call.r.device_data()[c] = 1.0F / std::sqrt(variance + call.shape.epsilon);
      if (call.running_mean.empty()) continue;
      const float unbiased = call.shape.rows == 1 ? variance : squares / static_cast<float>(call.shape.rows - 1);
      float& of_mean = call.running_mean.device_data()[c];
      float& of_variance = call.running_variance.device_data()[c];
      of_mean = (1 - call.shape.momentum) * of_mean + call.shape.momentum * centre;
      of_variance = (1 - call.shape.momentum) * of_variance + call.shape.momentum * unbiased;
    }
    each_part(call.shape, [&](std::size_t part) {
      part_apply(call.x.device_data(), call.weight.device_data(), call.bias.device_data(), call.mean.device_data(),
                 call.r.device_data(), call.y.device_data(), call.shape, rows_of_part(call.shape, part));
    });
    return Status{};
  });
}

template <class T>
void run(const BatchNormInference<T>& call, device::Stream& stream) {
  check_shape(call.shape, false);
  check_sizes(call.shape.rows * call.shape.channels, call.x, call.y);
  check_sizes(call.shape.channels, call.weight, call.bias, call.running_mean, call.running_variance);
  if (call.shape.rows == 0) return;
  if (ran_on_cuda(call, stream)) return;
  stream.run("batch norm inference", [=] {
    device::parallel_for(call.shape.rows, rows_a_part(call.shape), [&](std::size_t first, std::size_t last) {
      float r[kChannels];
      // Of kChannels channels at a time, so that their r need no memory: as matrices of `width` columns would.
      for (std::size_t c = 0; c < call.shape.channels; c += kChannels) {
        const std::size_t width = std::min(kChannels, call.shape.channels - c);
        for (std::size_t k = 0; k < width; ++k)
          r[k] = 1.0F / std::sqrt(call.running_variance.device_data()[c + k] + call.shape.epsilon);
        const float* const mean = call.running_mean.device_data() + c;
        for (std::size_t row = first; row < last; ++row) {
          const std::size_t at = row * call.shape.channels + c;
          BatchNormShape one = call.shape;
          one.channels = width;
          part_apply(call.x.device_data() + at, call.weight.device_data() + c, call.bias.device_data() + c, mean, r,
                     call.y.device_data() + at, one, {0, 1});
        }
      }
    });
    return Status{};
  });
}

template <class T>
void run(const BatchNormBackward<T>& call, device::Stream& stream) {
  check_shape(call.shape, true);
  check_sizes(call.shape.rows * call.shape.channels, call.dy, call.x, call.dx);
  check_sizes(call.shape.channels, call.weight, call.bias, call.mean, call.r, call.dweight, call.dbias);
  DUNNOCK_CHECK(call.workspace.size() >= batch_norm_workspace(call.shape, stream.device()),
                "the workspace is large enough");
  if (ran_on_cuda(call, stream)) return;
  stream.run("batch norm backward", [=] {
    const std::size_t channels = call.shape.channels;
    float* const sums = call.workspace.device_data();  // (parts, 2, channels); part 0's become all
    const Known<T> known{call.dy.device_data(),   call.x.device_data(),    call.weight.device_data(),
                         call.bias.device_data(), call.mean.device_data(), call.r.device_data()};
    each_part(call.shape, [&](std::size_t part) {
      part_sums(known, sums + part * 2 * channels, call.shape, rows_of_part(call.shape, part));
    });
    for (std::size_t part = 1; part < kParts; ++part) {
      for (std::size_t i = 0; i < 2 * channels; ++i) sums[i] += sums[part * 2 * channels + i];
    }
    for (std::size_t c = 0; c < channels; ++c) {
      T& of_weight = call.dweight.device_data()[c];
      T& of_bias = call.dbias.device_data()[c];
      of_weight = T((call.adds ? static_cast<float>(of_weight) : 0.0F) + sums[c]);
      of_bias = T((call.adds ? static_cast<float>(of_bias) : 0.0F) + sums[channels + c]);
    }
    each_part(call.shape, [&](std::size_t part) {
      part_dx(known, sums, call.dx.device_data(), call.shape, rows_of_part(call.shape, part));
    });
    return Status{};
  });
}

DUNNOCK_INSTANTIATE_KERNELS(BatchNorm, BatchNormInference, BatchNormBackward);

}  // namespace dunnock::kernels
