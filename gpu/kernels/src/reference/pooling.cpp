#include "dunnock/kernels/pooling.hpp"

#include <cmath>
#include <vector>

#include "reference/values.hpp"

namespace dunnock::kernels::reference {
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
void run(const MaxPool<T>& call, device::Stream& stream) {
  stream.run("max pool", [=] {
    std::vector<bool> seen(call.y.size());
    each_value(call.shape, [&](std::size_t out, std::size_t index, std::size_t in) {
      const double value = at(call.x, in);
      const double best = static_cast<double>(static_cast<float>(call.y.device_data()[out]));
      if (seen[out] && (std::isnan(best) || !(value > best || std::isnan(value)))) return;
      seen[out] = true;
      set(call.y, out, value);
      if (!call.indices.empty()) call.indices.device_data()[out] = static_cast<std::uint32_t>(index);
    });
    return Status{};
  });
}

template <class T>
void run(const MaxPoolBackward<T>& call, device::Stream& stream) {
  stream.run("max pool backward", [=] {
    std::vector<double> sums(call.dx.size());
    each_value(call.shape, [&](std::size_t out, std::size_t index, std::size_t in) {
      if (call.indices.device_data()[out] == index) sums[in] += at(call.dy, out);
    });
    for (std::size_t i = 0; i < sums.size(); ++i) set(call.dx, i, sums[i]);
    return Status{};
  });
}

template <class T>
void run(const AveragePool<T>& call, device::Stream& stream) {
  stream.run("average pool", [=] {
    const std::vector<double> counts = counts_of(call.shape);
    std::vector<double> sums(call.y.size());
    each_value(call.shape, [&](std::size_t out, std::size_t, std::size_t in) { sums[out] += at(call.x, in); });
    for (std::size_t i = 0; i < sums.size(); ++i) set(call.y, i, sums[i] / counts[i]);
    return Status{};
  });
}

template <class T>
void run(const AveragePoolBackward<T>& call, device::Stream& stream) {
  stream.run("average pool backward", [=] {
    const std::vector<double> counts = counts_of(call.shape);
    std::vector<double> sums(call.dx.size());
    each_value(call.shape,
               [&](std::size_t out, std::size_t, std::size_t in) { sums[in] += at(call.dy, out) / counts[out]; });
    for (std::size_t i = 0; i < sums.size(); ++i) set(call.dx, i, sums[i]);
    return Status{};
  });
}

template <class T>
void run(const GlobalAveragePool<T>& call, device::Stream& stream) {
  stream.run("global average pool", [=] {
    for (std::size_t i = 0; i < call.y.size(); ++i) {
      double sum = 0;
      for (std::size_t p = 0; p < call.shape.positions; ++p)
        sum += at(call.x,
                  (i / call.shape.channels * call.shape.positions + p) * call.shape.channels + i % call.shape.channels);
      set(call.y, i, sum / double(call.shape.positions));
    }
    return Status{};
  });
}

template <class T>
void run(const GlobalAveragePoolBackward<T>& call, device::Stream& stream) {
  stream.run("global average pool backward", [=] {
    for (std::size_t i = 0; i < call.dx.size(); ++i) {
      const std::size_t n = i / (call.shape.positions * call.shape.channels);
      set(call.dx, i, at(call.dy, n * call.shape.channels + i % call.shape.channels) / double(call.shape.positions));
    }
    return Status{};
  });
}

DUNNOCK_INSTANTIATE_KERNELS(MaxPool, MaxPoolBackward, AveragePool, AveragePoolBackward, GlobalAveragePool,
                            GlobalAveragePoolBackward);

}  // namespace dunnock::kernels::reference
