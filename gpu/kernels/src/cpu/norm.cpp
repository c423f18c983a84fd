#include "dunnock/kernels/norm.hpp"

#include <algorithm>
#include <array>
#include <cmath>

#include "checks.hpp"
#include "cpu/sums.hpp"
#include "norm_parts.hpp"
#include "parallel.hpp"

namespace dunnock::kernels {
namespace {

using detail::check_optional;
using detail::check_sizes;
using detail::sums_over;
using device::parallel_for;

std::size_t rows_a_part(const NormShape& shape) { return device::kParallelGrain / shape.columns + 1; }

/// Parts that a backward pass sums up by itself: fixed, so that sums do not depend on the number of threads.
constexpr std::size_t kBackwardParts = 16;

void check_shape(const NormShape& shape) { DUNNOCK_CHECK(shape.columns > 0, "a row has columns"); }

template <bool kCentred, class T>
DUNNOCK_VECTOR_CLONES void norm_rows(const T* x, const T* weight, const T* bias, T* y, float* mean, float* r,
                                     const NormShape& shape, std::size_t first, std::size_t last) {
  const std::size_t columns = shape.columns;
  const float share = 1.0F / static_cast<float>(columns);
  for (std::size_t row = first; row < last; ++row) {
    const T* const in = x + row * columns;
    T* const out = y + row * columns;
    float centre = 0;
    if constexpr (kCentred) {
      const auto [sum] = sums_over<1>(columns, [&](std::size_t c) { return std::array{static_cast<float>(in[c])}; });
      centre = sum * share;
    }
    const auto [squares] = sums_over<1>(columns, [&](std::size_t c) {
      const float off = static_cast<float>(in[c]) - centre;
      return std::array{off * off};
    });
    const float inverse = 1.0F / std::sqrt(squares * share + shape.epsilon);
#pragma GCC ivdep
    for (std::size_t c = 0; c < columns; ++c) {
      const float z = (static_cast<float>(in[c]) - centre) * inverse;
      if constexpr (kCentred) {
        out[c] = T(z * static_cast<float>(weight[c]) + static_cast<float>(bias[c]));
      } else {
        out[c] = T(z * static_cast<float>(weight[c]));
      }
    }
    if (mean != nullptr) mean[row] = centre;
    if (r != nullptr) r[row] = inverse;
  }
}

template <bool kCentred, class T>
void norm_on_cpu(device::Span<const T> x, device::Span<const T> weight, device::Span<const T> bias, device::Span<T> y,
                 device::Span<float> mean, device::Span<float> r, const NormShape& shape, device::Stream& stream) {
  stream.run(kCentred ? "layer norm" : "RMS norm", [=] {
    device::parallel_for(shape.rows, rows_a_part(shape), [&](std::size_t first, std::size_t last) {
      norm_rows<kCentred>(x.device_data(), weight.device_data(), bias.device_data(), y.device_data(),
                          mean.device_data(), r.device_data(), shape, first, last);
    });
    return Status{};
  });
}

/// Of rows first .. last - 1; adds to dweight and dbias (columns), which are floats.
template <bool kCentred, class T>
DUNNOCK_VECTOR_CLONES void backward_rows(const T* dy, const T* x, const T* weight, const float* mean, const float* r,
                                         T* dx, float* dweight, float* dbias, const NormShape& shape, std::size_t first,
                                         std::size_t last) {
  const std::size_t columns = shape.columns;
  const float share = 1.0F / static_cast<float>(columns);
  for (std::size_t row = first; row < last; ++row) {
    const T* const in = x + row * columns;
    const T* const grad = dy + row * columns;
    T* const out = dx + row * columns;
    const float centre = kCentred ? mean[row] : 0;
    const float inverse = r[row];
    const auto [g_sum, gz_sum] = sums_over<2>(columns, [&](std::size_t c) {
      const float z = (static_cast<float>(in[c]) - centre) * inverse;
      const float g = static_cast<float>(grad[c]) * static_cast<float>(weight[c]);
      return std::array{g, g * z};
    });
    const float sum = kCentred ? g_sum * share : 0;
    const float product = gz_sum * share;
#pragma GCC ivdep
    for (std::size_t c = 0; c < columns; ++c) {
      const float z = (static_cast<float>(in[c]) - centre) * inverse;
      const float d = static_cast<float>(grad[c]);
      dweight[c] += d * z;
      if constexpr (kCentred) dbias[c] += d;
      out[c] = T(inverse * (d * static_cast<float>(weight[c]) - sum - z * product));
    }
  }
}

template <bool kCentred, class T>
void backward_on_cpu(device::Span<const T> dy, device::Span<const T> x, device::Span<const T> weight,
                     device::Span<const float> mean, device::Span<const float> r, device::Span<T> dx,
                     device::Span<T> dweight, device::Span<T> dbias, bool adds, const NormShape& shape,
                     device::Span<float> workspace, device::Stream& stream) {
  stream.run(kCentred ? "layer norm backward" : "RMS norm backward", [=] {
    const std::size_t columns = shape.columns;
    float* const sums = workspace.device_data();  // (parts, 2, columns)
    device::parallel_for(kBackwardParts, 1, [&](std::size_t first, std::size_t last) {
      for (std::size_t part = first; part < last; ++part) {
        float* const mine = sums + part * 2 * columns;
        std::fill_n(mine, 2 * columns, 0.0F);
        backward_rows<kCentred>(dy.device_data(), x.device_data(), weight.device_data(), mean.device_data(),
                                r.device_data(), dx.device_data(), mine, mine + columns, shape,
                                shape.rows * part / kBackwardParts, shape.rows * (part + 1) / kBackwardParts);
      }
    });
    for (std::size_t kind = 0; kind < (kCentred ? 2 : 1); ++kind) {
      T* const out = kind == 0 ? dweight.device_data() : dbias.device_data();
      for (std::size_t c = 0; c < columns; ++c) {
        float sum = adds ? static_cast<float>(out[c]) : 0;
        for (std::size_t part = 0; part < kBackwardParts; ++part) sum += sums[(part * 2 + kind) * columns + c];
        out[c] = T(sum);
      }
    }
    return Status{};
  });
}

}  // namespace

std::size_t norm_backward_workspace(const NormShape& shape, [[maybe_unused]] device::Device device) {
#if DUNNOCK_HAS_CUDA
  if (device.backend() == device::Backend::kCuda)
    return detail::cuda::norm_backward_workspace(shape, device.info().processors);
#endif
  return kBackwardParts * 2 * shape.columns;
}

template <class T>
void run(const LayerNorm<T>& call, device::Stream& stream) {
  check_shape(call.shape);
  check_sizes(call.shape.rows * call.shape.columns, call.x, call.y);
  check_sizes(call.shape.columns, call.weight, call.bias);
  check_optional(call.shape.rows, call.mean, call.r);
  if (call.shape.rows == 0) return;
  if (ran_on_cuda(call, stream)) return;
  norm_on_cpu<true, T>(call.x, call.weight, call.bias, call.y, call.mean, call.r, call.shape, stream);
}

template <class T>
void run(const RmsNorm<T>& call, device::Stream& stream) {
  check_shape(call.shape);
  check_sizes(call.shape.rows * call.shape.columns, call.x, call.y);
  check_sizes(call.shape.columns, call.weight);
  check_optional(call.shape.rows, call.r);
  if (call.shape.rows == 0) return;
  if (ran_on_cuda(call, stream)) return;
  norm_on_cpu<false, T>(call.x, call.weight, {}, call.y, {}, call.r, call.shape, stream);
}

template <class T>
void run(const LayerNormBackward<T>& call, device::Stream& stream) {
  check_shape(call.shape);
  check_sizes(call.shape.rows * call.shape.columns, call.dy, call.x, call.dx);
  check_sizes(call.shape.columns, call.weight, call.dweight, call.dbias);
  check_sizes(call.shape.rows, call.mean, call.r);
  DUNNOCK_CHECK(call.workspace.size() >= norm_backward_workspace(call.shape, stream.device()),
                "the workspace is large enough");
  if (ran_on_cuda(call, stream)) return;
  backward_on_cpu<true, T>(call.dy, call.x, call.weight, call.mean, call.r, call.dx, call.dweight, call.dbias,
                           call.adds, call.shape, call.workspace, stream);
}

template <class T>
void run(const RmsNormBackward<T>& call, device::Stream& stream) {
  check_shape(call.shape);
  check_sizes(call.shape.rows * call.shape.columns, call.dy, call.x, call.dx);
  check_sizes(call.shape.columns, call.weight, call.dweight);
  check_sizes(call.shape.rows, call.r);
  DUNNOCK_CHECK(call.workspace.size() >= norm_backward_workspace(call.shape, stream.device()),
                "the workspace is large enough");
  if (ran_on_cuda(call, stream)) return;
  backward_on_cpu<false, T>(call.dy, call.x, call.weight, {}, call.r, call.dx, call.dweight, {}, call.adds, call.shape,
                            call.workspace, stream);
}

DUNNOCK_INSTANTIATE_KERNELS(LayerNorm, RmsNorm, LayerNormBackward, RmsNormBackward);

}  // namespace dunnock::kernels
