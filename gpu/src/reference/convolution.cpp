#include "dunnock/gpu/kernels/convolution.hpp"

#include <algorithm>
#include <optional>
#include <vector>

#include "reference/values.hpp"

namespace dunnock::gpu::reference {
namespace {

/// Where in x the tap (u, v) of the output at (i, j) is; nothing when that is padding.
struct Place {
  std::size_t row;
  std::size_t column;
};
std::optional<Place> place_of(const ConvolutionShape& s, std::size_t i, std::size_t j, std::size_t u, std::size_t v) {
  const std::size_t row = i * s.stride_height + u * s.dilation_height;  // In the padded plane.
  const std::size_t column = j * s.stride_width + v * s.dilation_width;
  if (row < s.padding_height || row >= s.padding_height + s.height) return std::nullopt;
  if (column < s.padding_width || column >= s.padding_width + s.width) return std::nullopt;
  return Place{row - s.padding_height, column - s.padding_width};
}

/// f(of x, of weight, of y): the places of each product there is.
template <class F>
void each_product(const ConvolutionShape& s, const F& f) {
  const std::size_t inputs = s.in_channels / s.groups;
  const std::size_t outputs = s.out_channels / s.groups;
  for (std::size_t n = 0; n < s.batch; ++n)
    for (std::size_t i = 0; i < s.out_height(); ++i)
      for (std::size_t j = 0; j < s.out_width(); ++j)
        for (std::size_t u = 0; u < s.kernel_height; ++u)
          for (std::size_t v = 0; v < s.kernel_width; ++v) {
            const auto place = place_of(s, i, j, u, v);
            if (!place) continue;
            for (std::size_t o = 0; o < s.out_channels; ++o)
              for (std::size_t c = 0; c < inputs; ++c)
                f(((n * s.height + place->row) * s.width + place->column) * s.in_channels + o / outputs * inputs + c,
                  ((o * s.kernel_height + u) * s.kernel_width + v) * inputs + c,
                  ((n * s.out_height() + i) * s.out_width() + j) * s.out_channels + o);
          }
}

}  // namespace

template <class T>
void convolution(DeviceSpan<const T> x, DeviceSpan<const T> weight, DeviceSpan<const T> bias, DeviceSpan<T> y,
                 bool relu, const ConvolutionShape& shape, DeviceSpan<std::byte>, Stream& stream) {
  stream.run("convolution", [=] {
    std::vector<double> sums(y.size());
    each_product(shape,
                 [&](std::size_t in, std::size_t w, std::size_t out) { sums[out] += at(x, in) * at(weight, w); });
    for (std::size_t i = 0; i < sums.size(); ++i) {
      const double value = sums[i] + (bias.empty() ? 0 : at(bias, i % shape.out_channels));
      set(y, i, relu ? std::max(value, 0.0) : value);
    }
    return Status{};
  });
}

template <class T>
void convolution_input_gradient(DeviceSpan<const T> dy, DeviceSpan<const T> weight, DeviceSpan<T> dx,
                                const ConvolutionShape& shape, DeviceSpan<std::byte>, Stream& stream) {
  stream.run("convolution's input gradient", [=] {
    std::vector<double> sums(dx.size());
    each_product(shape,
                 [&](std::size_t in, std::size_t w, std::size_t out) { sums[in] += at(dy, out) * at(weight, w); });
    for (std::size_t i = 0; i < sums.size(); ++i) set(dx, i, sums[i]);
    return Status{};
  });
}

template <class T>
void convolution_weight_gradient(DeviceSpan<const T> dy, DeviceSpan<const T> x, DeviceSpan<T> dweight,
                                 DeviceSpan<T> dbias, bool adds, const ConvolutionShape& shape, DeviceSpan<std::byte>,
                                 Stream& stream) {
  stream.run("convolution's weight gradient", [=] {
    std::vector<double> sums(dweight.size());
    each_product(shape, [&](std::size_t in, std::size_t w, std::size_t out) { sums[w] += at(dy, out) * at(x, in); });
    for (std::size_t i = 0; i < sums.size(); ++i) add_or_set(dweight, i, sums[i], adds);
    std::vector<double> biases(shape.out_channels);
    for (std::size_t i = 0; i < dy.size(); ++i) biases[i % shape.out_channels] += at(dy, i);
    for (std::size_t o = 0; o < dbias.size(); ++o) add_or_set(dbias, o, biases[o], adds);
    return Status{};
  });
}

#define DUNNOCK_INSTANTIATE(T)                                                                                         \
  template void convolution<T>(DeviceSpan<const T>, DeviceSpan<const T>, DeviceSpan<const T>, DeviceSpan<T>, bool,     \
                               const ConvolutionShape&, DeviceSpan<std::byte>, Stream&);                               \
  template void convolution_input_gradient<T>(DeviceSpan<const T>, DeviceSpan<const T>, DeviceSpan<T>,                 \
                                              const ConvolutionShape&, DeviceSpan<std::byte>, Stream&);                \
  template void convolution_weight_gradient<T>(DeviceSpan<const T>, DeviceSpan<const T>, DeviceSpan<T>, DeviceSpan<T>, \
                                               bool, const ConvolutionShape&, DeviceSpan<std::byte>, Stream&);
DUNNOCK_INSTANTIATE(float)
DUNNOCK_INSTANTIATE(Bf16)
#undef DUNNOCK_INSTANTIATE

}  // namespace dunnock::gpu::reference
