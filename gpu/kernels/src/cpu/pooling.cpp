#include "dunnock/kernels/pooling.hpp"

#include <algorithm>

#include "checks.hpp"
#include "dispatch.hpp"
#include "parallel.hpp"

namespace dunnock::kernels {
namespace {

using detail::check_optional;
using detail::check_sizes;
using device::parallel_for;

constexpr std::size_t kChannels = 64;  // at a time

/// first .. last - 1
struct Range {
  std::size_t first;
  std::size_t last;
};
/// The inputs of an output's window, along one axis.
Range window(std::size_t out, std::size_t kernel, std::size_t stride, std::size_t padding, std::size_t size) {
  const std::size_t begin = out * stride;  // In the padded plane.
  return {begin > padding ? begin - padding : 0, std::min(begin + kernel - padding, size)};
}
Range window_rows(const PoolingShape& s, std::size_t row) {
  return window(row, s.kernel_height, s.stride_height, s.padding_height, s.height);
}
Range window_columns(const PoolingShape& s, std::size_t column) {
  return window(column, s.kernel_width, s.stride_width, s.padding_width, s.width);
}
/// The outputs whose windows an input lies in.
Range windows_of(std::size_t in, std::size_t kernel, std::size_t stride, std::size_t padding, std::size_t outputs) {
  const std::size_t place = in + padding;
  return {place < kernel ? 0 : (place - kernel) / stride + 1, std::min(place / stride + 1, outputs)};
}
float share_of(const PoolingShape& s, Range rows, Range columns) {
  const std::size_t values =
      s.padding_counts ? s.kernel_height * s.kernel_width : (rows.last - rows.first) * (columns.last - columns.first);
  return 1.0F / static_cast<float>(values);
}

/// Line `line` of all lines (batch * out_height) of y.
template <class T>
[[gnu::always_inline]] inline void max_line(const T* x, T* y, std::uint32_t* indices, const PoolingShape& s,
                                            std::size_t line) {
  const std::size_t image = line / s.out_height();
  const Range rows = window_rows(s, line % s.out_height());
  for (std::size_t out_column = 0; out_column < s.out_width(); ++out_column) {
    const Range columns = window_columns(s, out_column);
    for (std::size_t c = 0; c < s.channels; c += kChannels) {
      const std::size_t count = std::min(kChannels, s.channels - c);
      float best[kChannels];
      std::uint32_t where[kChannels];
      bool first = true;
      for (std::size_t row = rows.first; row < rows.last; ++row) {
        for (std::size_t column = columns.first; column < columns.last; ++column) {
          const auto index = static_cast<std::uint32_t>(row * s.width + column);
          const T* const from = x + (image * s.height * s.width + index) * s.channels + c;
          if (first) {
            for (std::size_t k = 0; k < count; ++k) best[k] = static_cast<float>(from[k]);
            std::fill_n(where, count, index);
            first = false;
            continue;
          }
#pragma omp simd
          for (std::size_t k = 0; k < count; ++k) {
            const float value = static_cast<float>(from[k]);
            // Not `value > best || isnan(value)`: a NaN that is there stays.
            const bool better = !(value <= best[k]) & (best[k] == best[k]);
            best[k] = better ? value : best[k];
            where[k] = better ? index : where[k];
          }
        }
      }
      const std::size_t to = (line * s.out_width() + out_column) * s.channels + c;
      for (std::size_t k = 0; k < count; ++k) y[to + k] = T(best[k]);
      if (indices != nullptr) std::copy_n(where, count, indices + to);
    }
  }
}

template <class T>
[[gnu::always_inline]] inline void average_line(const T* x, T* y, const PoolingShape& s, std::size_t line) {
  const std::size_t image = line / s.out_height();
  const Range rows = window_rows(s, line % s.out_height());
  for (std::size_t out_column = 0; out_column < s.out_width(); ++out_column) {
    const Range columns = window_columns(s, out_column);
    const float share = share_of(s, rows, columns);
    for (std::size_t c = 0; c < s.channels; c += kChannels) {
      const std::size_t count = std::min(kChannels, s.channels - c);
      float sums[kChannels] = {};
      for (std::size_t row = rows.first; row < rows.last; ++row) {
        for (std::size_t column = columns.first; column < columns.last; ++column) {
          const T* const from = x + ((image * s.height + row) * s.width + column) * s.channels + c;
#pragma omp simd
          for (std::size_t k = 0; k < count; ++k) sums[k] += static_cast<float>(from[k]);
        }
      }
      T* const to = y + (line * s.out_width() + out_column) * s.channels + c;
      for (std::size_t k = 0; k < count; ++k) to[k] = T(sums[k] * share);
    }
  }
}

/// Line `line` of all lines (batch * height) of dx. No indices: of averages.
template <class T>
[[gnu::always_inline]] inline void backward_line(const T* dy, const std::uint32_t* indices, T* dx,
                                                 const PoolingShape& s, std::size_t line) {
  const std::size_t image = line / s.height;
  const std::size_t row = line % s.height;
  const Range rows = windows_of(row, s.kernel_height, s.stride_height, s.padding_height, s.out_height());
  for (std::size_t column = 0; column < s.width; ++column) {
    const Range columns = windows_of(column, s.kernel_width, s.stride_width, s.padding_width, s.out_width());
    const auto me = static_cast<std::uint32_t>(row * s.width + column);
    for (std::size_t c = 0; c < s.channels; c += kChannels) {
      const std::size_t count = std::min(kChannels, s.channels - c);
      float sums[kChannels] = {};
      for (std::size_t i = rows.first; i < rows.last; ++i) {
        for (std::size_t j = columns.first; j < columns.last; ++j) {
          const std::size_t from = ((image * s.out_height() + i) * s.out_width() + j) * s.channels + c;
          if (indices != nullptr) {
#pragma omp simd
            for (std::size_t k = 0; k < count; ++k)
              sums[k] += indices[from + k] == me ? static_cast<float>(dy[from + k]) : 0.0F;
          } else {
            const float share = share_of(s, window_rows(s, i), window_columns(s, j));
#pragma omp simd
            for (std::size_t k = 0; k < count; ++k) sums[k] += static_cast<float>(dy[from + k]) * share;
          }
        }
      }
      T* const to = dx + (line * s.width + column) * s.channels + c;
      for (std::size_t k = 0; k < count; ++k) to[k] = T(sums[k]);
    }
  }
}

template <class T>
[[gnu::always_inline]] inline void global_average_image(const T* x, T* y, const GlobalPoolingShape& s,
                                                        std::size_t image) {
  const float share = 1.0F / static_cast<float>(s.positions);
  for (std::size_t c = 0; c < s.channels; c += kChannels) {
    const std::size_t count = std::min(kChannels, s.channels - c);
    float sums[kChannels] = {};
    for (std::size_t p = 0; p < s.positions; ++p) {
      const T* const from = x + (image * s.positions + p) * s.channels + c;
#pragma omp simd
      for (std::size_t k = 0; k < count; ++k) sums[k] += static_cast<float>(from[k]);
    }
    for (std::size_t k = 0; k < count; ++k) y[image * s.channels + c + k] = T(sums[k] * share);
  }
}

#define DUNNOCK_LEAVES(T)                                                                                              \
  DUNNOCK_VECTOR_CLONES void line_of_max(const T* x, T* y, std::uint32_t* indices, const PoolingShape& s,              \
                                         std::size_t line) {                                                           \
    max_line<T>(x, y, indices, s, line);                                                                               \
  }                                                                                                                    \
  DUNNOCK_VECTOR_CLONES void line_of_average(const T* x, T* y, const PoolingShape& s, std::size_t line) {              \
    average_line<T>(x, y, s, line);                                                                                    \
  }                                                                                                                    \
  DUNNOCK_VECTOR_CLONES void line_of_gradient(const T* dy, const std::uint32_t* indices, T* dx, const PoolingShape& s, \
                                              std::size_t line) {                                                      \
    backward_line<T>(dy, indices, dx, s, line);                                                                        \
  }                                                                                                                    \
  DUNNOCK_VECTOR_CLONES void image_of_average(const T* x, T* y, const GlobalPoolingShape& s, std::size_t image) {      \
    global_average_image<T>(x, y, s, image);                                                                           \
  }
DUNNOCK_LEAVES(float)
DUNNOCK_LEAVES(device::Bf16)
#undef DUNNOCK_LEAVES

/// f(line) for all lines; `work`: values that a line touches.
template <class F>
void each_line(std::string_view name, std::size_t lines, std::size_t work, device::Stream& stream, const F& f) {
  stream.run(name, [=] {
    device::parallel_for(lines, device::kParallelGrain / (work + 1) + 1, [&](std::size_t first, std::size_t last) {
      for (std::size_t line = first; line < last; ++line) f(line);
    });
    return Status{};
  });
}

void check_shape(const PoolingShape& shape) {
  DUNNOCK_CHECK(shape.valid(), "padding is less than the kernel, which fits in the padded input");
}
void check_shape(const GlobalPoolingShape& shape) {
  DUNNOCK_CHECK(shape.positions > 0, "a plane has positions");
  DUNNOCK_CHECK(shape.channels > 0, "a plane has channels");
}

}  // namespace

template <class T>
void run(const MaxPool<T>& call, device::Stream& stream) {
  check_shape(call.shape);
  check_sizes(call.shape.x_size(), call.x);
  check_sizes(call.shape.y_size(), call.y);
  check_optional(call.shape.y_size(), call.indices);
  if (call.shape.batch == 0) return;
  if (ran_on_cuda(call, stream)) return;
  each_line("max pool", call.shape.batch * call.shape.out_height(),
            call.shape.out_width() * call.shape.channels * call.shape.kernel_height * call.shape.kernel_width, stream,
            [=](std::size_t line) {
              line_of_max(call.x.device_data(), call.y.device_data(), call.indices.device_data(), call.shape, line);
            });
}

template <class T>
void run(const MaxPoolBackward<T>& call, device::Stream& stream) {
  check_shape(call.shape);
  check_sizes(call.shape.y_size(), call.dy, call.indices);
  check_sizes(call.shape.x_size(), call.dx);
  if (call.shape.batch == 0) return;
  if (ran_on_cuda(call, stream)) return;
  each_line("max pool backward", call.shape.batch * call.shape.height, call.shape.width * call.shape.channels, stream,
            [=](std::size_t line) {
              line_of_gradient(call.dy.device_data(), call.indices.device_data(), call.dx.device_data(), call.shape,
                               line);
            });
}

template <class T>
void run(const AveragePool<T>& call, device::Stream& stream) {
  check_shape(call.shape);
  check_sizes(call.shape.x_size(), call.x);
  check_sizes(call.shape.y_size(), call.y);
  if (call.shape.batch == 0) return;
  if (ran_on_cuda(call, stream)) return;
  each_line("average pool", call.shape.batch * call.shape.out_height(),
            call.shape.out_width() * call.shape.channels * call.shape.kernel_height * call.shape.kernel_width, stream,
            [=](std::size_t line) { line_of_average(call.x.device_data(), call.y.device_data(), call.shape, line); });
}

template <class T>
void run(const AveragePoolBackward<T>& call, device::Stream& stream) {
  check_shape(call.shape);
  check_sizes(call.shape.y_size(), call.dy);
  check_sizes(call.shape.x_size(), call.dx);
  if (call.shape.batch == 0) return;
  if (ran_on_cuda(call, stream)) return;
  each_line("average pool backward", call.shape.batch * call.shape.height, call.shape.width * call.shape.channels,
            stream, [=](std::size_t line) {
              line_of_gradient(call.dy.device_data(), nullptr, call.dx.device_data(), call.shape, line);
            });
}

template <class T>
void run(const GlobalAveragePool<T>& call, device::Stream& stream) {
  check_shape(call.shape);
  check_sizes(call.shape.batch * call.shape.positions * call.shape.channels, call.x);
  check_sizes(call.shape.batch * call.shape.channels, call.y);
  if (call.shape.batch == 0) return;
  if (ran_on_cuda(call, stream)) return;
  each_line(
      "global average pool", call.shape.batch, call.shape.positions * call.shape.channels, stream,
      [=](std::size_t image) { image_of_average(call.x.device_data(), call.y.device_data(), call.shape, image); });
}

template <class T>
void run(const GlobalAveragePoolBackward<T>& call, device::Stream& stream) {
  check_shape(call.shape);
  check_sizes(call.shape.batch * call.shape.channels, call.dy);
  check_sizes(call.shape.batch * call.shape.positions * call.shape.channels, call.dx);
  if (call.shape.batch == 0) return;
  if (ran_on_cuda(call, stream)) return;
  each_line("global average pool backward", call.shape.batch, call.shape.positions * call.shape.channels, stream,
            [=](std::size_t image) {
              const float share = 1.0F / static_cast<float>(call.shape.positions);
              const T* const from = call.dy.device_data() + image * call.shape.channels;
              T* const to = call.dx.device_data() + image * call.shape.positions * call.shape.channels;
              for (std::size_t c = 0; c < call.shape.channels; ++c) to[c] = T(static_cast<float>(from[c]) * share);
              for (std::size_t p = 1; p < call.shape.positions; ++p)
                std::copy_n(to, call.shape.channels, to + p * call.shape.channels);
            });
}

DUNNOCK_INSTANTIATE_KERNELS(MaxPool, MaxPoolBackward, AveragePool, AveragePoolBackward, GlobalAveragePool,
                            GlobalAveragePoolBackward);

}  // namespace dunnock::kernels
