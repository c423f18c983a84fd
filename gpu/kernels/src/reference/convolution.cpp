#include "dunnock/kernels/convolution.hpp"

#include <algorithm>
#include <optional>
#include <vector>

#include "reference/values.hpp"

namespace dunnock::kernels::reference {
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
void run(const Convolution<T>& call, device::Stream& stream) {
  stream.run("convolution", [=] {
    std::vector<double> sums(call.y.size());
    each_product(call.shape, [&](std::size_t in, std::size_t w, std::size_t out) {
      sums[out] += at(call.x, in) * at(call.weight, w);
    });
    for (std::size_t i = 0; i < sums.size(); ++i) {
      const double value = sums[i] + (call.bias.empty() ? 0 : at(call.bias, i % call.shape.out_channels));
      set(call.y, i, call.relu ? std::max(value, 0.0) : value);
    }
    return Status{};
  });
}

template <class T>
void run(const ConvolutionInputGradient<T>& call, device::Stream& stream) {
  stream.run("convolution's input gradient", [=] {
    std::vector<double> sums(call.dx.size());
    each_product(call.shape, [&](std::size_t in, std::size_t w, std::size_t out) {
      sums[in] += at(call.dy, out) * at(call.weight, w);
    });
    for (std::size_t i = 0; i < sums.size(); ++i) set(call.dx, i, sums[i]);
    return Status{};
  });
}

template <class T>
void run(const ConvolutionWeightGradient<T>& call, device::Stream& stream) {
  stream.run("convolution's weight gradient", [=] {
    std::vector<double> sums(call.dweight.size());
    each_product(call.shape,
                 [&](std::size_t in, std::size_t w, std::size_t out) { sums[w] += at(call.dy, out) * at(call.x, in); });
    for (std::size_t i = 0; i < sums.size(); ++i) add_or_set(call.dweight, i, sums[i], call.adds);
    std::vector<double> biases(call.shape.out_channels);
    for (std::size_t i = 0; i < call.dy.size(); ++i) biases[i % call.shape.out_channels] += at(call.dy, i);
    for (std::size_t o = 0; o < call.dbias.size(); ++o) add_or_set(call.dbias, o, biases[o], call.adds);
    return Status{};
  });
}

DUNNOCK_INSTANTIATE_KERNELS(Convolution, ConvolutionInputGradient, ConvolutionWeightGradient);

}  // namespace dunnock::kernels::reference
