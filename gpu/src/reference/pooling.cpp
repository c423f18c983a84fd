#include "dunnock/gpu/kernels/pooling.hpp"

#include <cmath>
#include <vector>

#include "reference/values.hpp"

namespace dunnock::gpu::reference {
namespace {

/// f(place in y, row * width + column, place in x) for each value of each window, in its order.
template <class F>
void each_value(const PoolingShape& s, const F& f) {
  for (std::size_t n = 0; n < s.batch; ++n)
    for (std::size_t i = 0; i < s.out_height(); ++i)
      for (std::size_t j = 0; j < s.out_width(); ++j)
        for (std::size_t c = 0; c < s.channels; ++c)
          for (std::size_t u = 0; u < s.kernel_height; ++u)
            for (std::size_t v = 0; v < s.kernel_width; ++v) {
              const std::size_t row = i * s.stride_height + u;  // In the padded plane.
              const std::size_t column = j * s.stride_width + v;
              if (row < s.padding_height || row >= s.padding_height + s.height) continue;
              if (column < s.padding_width || column >= s.padding_width + s.width) continue;
              const std::size_t index = (row - s.padding_height) * s.width + column - s.padding_width;
              f(((n * s.out_height() + i) * s.out_width() + j) * s.channels + c, index,
                (n * s.height * s.width + index) * s.channels + c);
            }
}

/// What each window's average divides by.
std::vector<double> counts_of(const PoolingShape& s) {
  std::vector<double> counts(s.y_size());
  each_value(s, [&](std::size_t out, std::size_t, std::size_t) { counts[out] += 1; });
  if (s.padding_counts) counts.assign(counts.size(), double(s.kernel_height * s.kernel_width));
  return counts;
}

}  // namespace

template <class T>
void max_pool(DeviceSpan<const T> x, DeviceSpan<T> y, DeviceSpan<std::uint32_t> indices, const PoolingShape& shape,
              Stream& stream) {
  stream.run("max pool", [=] {
    std::vector<bool> seen(y.size());
    each_value(shape, [&](std::size_t out, std::size_t index, std::size_t in) {
      const double value = at(x, in);
      const double best = static_cast<double>(static_cast<float>(y.device_data()[out]));
      if (seen[out] && (std::isnan(best) || !(value > best || std::isnan(value)))) return;
      seen[out] = true;
      set(y, out, value);
      if (!indices.empty()) indices.device_data()[out] = static_cast<std::uint32_t>(index);
    });
    return Status{};
  });
}

template <class T>
void max_pool_backward(DeviceSpan<const T> dy, DeviceSpan<const std::uint32_t> indices, DeviceSpan<T> dx,
                       const PoolingShape& shape, Stream& stream) {
  stream.run("max pool backward", [=] {
    std::vector<double> sums(dx.size());
    each_value(shape, [&](std::size_t out, std::size_t index, std::size_t in) {
      if (indices.device_data()[out] == index) sums[in] += at(dy, out);
    });
    for (std::size_t i = 0; i < sums.size(); ++i) set(dx, i, sums[i]);
    return Status{};
  });
}

template <class T>
void average_pool(DeviceSpan<const T> x, DeviceSpan<T> y, const PoolingShape& shape, Stream& stream) {
  stream.run("average pool", [=] {
    const std::vector<double> counts = counts_of(shape);
    std::vector<double> sums(y.size());
    each_value(shape, [&](std::size_t out, std::size_t, std::size_t in) { sums[out] += at(x, in); });
    for (std::size_t i = 0; i < sums.size(); ++i) set(y, i, sums[i] / counts[i]);
    return Status{};
  });
}

template <class T>
void average_pool_backward(DeviceSpan<const T> dy, DeviceSpan<T> dx, const PoolingShape& shape, Stream& stream) {
  stream.run("average pool backward", [=] {
    const std::vector<double> counts = counts_of(shape);
    std::vector<double> sums(dx.size());
    each_value(shape, [&](std::size_t out, std::size_t, std::size_t in) { sums[in] += at(dy, out) / counts[out]; });
    for (std::size_t i = 0; i < sums.size(); ++i) set(dx, i, sums[i]);
    return Status{};
  });
}

template <class T>
void global_average_pool(DeviceSpan<const T> x, DeviceSpan<T> y, const GlobalPoolingShape& shape, Stream& stream) {
  stream.run("global average pool", [=] {
    for (std::size_t i = 0; i < y.size(); ++i) {
      double sum = 0;
      for (std::size_t p = 0; p < shape.positions; ++p)
        sum += at(x, (i / shape.channels * shape.positions + p) * shape.channels + i % shape.channels);
      set(y, i, sum / double(shape.positions));
    }
    return Status{};
  });
}

template <class T>
void global_average_pool_backward(DeviceSpan<const T> dy, DeviceSpan<T> dx, const GlobalPoolingShape& shape,
                                  Stream& stream) {
  stream.run("global average pool backward", [=] {
    for (std::size_t i = 0; i < dx.size(); ++i) {
      const std::size_t n = i / (shape.positions * shape.channels);
      set(dx, i, at(dy, n * shape.channels + i % shape.channels) / double(shape.positions));
    }
    return Status{};
  });
}

#define DUNNOCK_INSTANTIATE(T)                                                                                  \
  template void max_pool<T>(DeviceSpan<const T>, DeviceSpan<T>, DeviceSpan<std::uint32_t>, const PoolingShape&, \
                            Stream&);                                                                           \
  template void max_pool_backward<T>(DeviceSpan<const T>, DeviceSpan<const std::uint32_t>, DeviceSpan<T>,       \
                                     const PoolingShape&, Stream&);                                             \
  template void average_pool<T>(DeviceSpan<const T>, DeviceSpan<T>, const PoolingShape&, Stream&);              \
  template void average_pool_backward<T>(DeviceSpan<const T>, DeviceSpan<T>, const PoolingShape&, Stream&);     \
  template void global_average_pool<T>(DeviceSpan<const T>, DeviceSpan<T>, const GlobalPoolingShape&, Stream&); \
  template void global_average_pool_backward<T>(DeviceSpan<const T>, DeviceSpan<T>, const GlobalPoolingShape&, Stream&);
DUNNOCK_INSTANTIATE(float)
DUNNOCK_INSTANTIATE(Bf16)
#undef DUNNOCK_INSTANTIATE

}  // namespace dunnock::gpu::reference
