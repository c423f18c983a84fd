#include "dunnock/gpu/kernels/norm.hpp"

#include <algorithm>
#include <array>
#include <cmath>

#include "kernels/checks.hpp"
#include "kernels/norm_launchers.hpp"
#include "kernels/parallel.hpp"
#include "kernels/sums.hpp"

namespace dunnock::gpu {
namespace {

using detail::check_optional;
using detail::check_sizes;
using detail::parallel_for;
using detail::sums_over;

std::size_t rows_a_part(const NormShape& shape) { return detail::kParallelGrain / shape.columns + 1; }

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
void norm_on_cpu(DeviceSpan<const T> x, DeviceSpan<const T> weight, DeviceSpan<const T> bias, DeviceSpan<T> y,
                 DeviceSpan<float> mean, DeviceSpan<float> r, const NormShape& shape, Stream& stream) {
  stream.run(kCentred ? "layer norm" : "RMS norm", [=] {
    parallel_for(shape.rows, rows_a_part(shape), [&](std::size_t first, std::size_t last) {
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
void backward_on_cpu(DeviceSpan<const T> dy, DeviceSpan<const T> x, DeviceSpan<const T> weight,
                     DeviceSpan<const float> mean, DeviceSpan<const float> r, DeviceSpan<T> dx, DeviceSpan<T> dweight,
                     DeviceSpan<T> dbias, bool adds, const NormShape& shape, DeviceSpan<float> workspace,
                     Stream& stream) {
  stream.run(kCentred ? "layer norm backward" : "RMS norm backward", [=] {
    const std::size_t columns = shape.columns;
    float* const sums = workspace.device_data();  // (parts, 2, columns)
    parallel_for(kBackwardParts, 1, [&](std::size_t first, std::size_t last) {
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

std::size_t norm_backward_workspace(const NormShape& shape, [[maybe_unused]] Device device) {
#if DUNNOCK_HAS_CUDA
  if (device.backend() == Backend::kCuda) return detail::cuda::norm_backward_workspace(shape, device.info().processors);
#endif
  return kBackwardParts * 2 * shape.columns;
}

template <class T>
void layer_norm(DeviceSpan<const T> x, DeviceSpan<const T> weight, DeviceSpan<const T> bias, DeviceSpan<T> y,
                DeviceSpan<float> mean, DeviceSpan<float> r, const NormShape& shape, Stream& stream) {
  check_shape(shape);
  check_sizes(shape.rows * shape.columns, x, y);
  check_sizes(shape.columns, weight, bias);
  check_optional(shape.rows, mean, r);
  if (shape.rows == 0) return;
  DUNNOCK_ON_CUDA(stream, detail::cuda::norm<T>(true, x, weight, bias, y, mean, r, shape, stream));
  norm_on_cpu<true, T>(x, weight, bias, y, mean, r, shape, stream);
}

template <class T>
void rms_norm(DeviceSpan<const T> x, DeviceSpan<const T> weight, DeviceSpan<T> y, DeviceSpan<float> r,
              const NormShape& shape, Stream& stream) {
  check_shape(shape);
  check_sizes(shape.rows * shape.columns, x, y);
  check_sizes(shape.columns, weight);
  check_optional(shape.rows, r);
  if (shape.rows == 0) return;
  DUNNOCK_ON_CUDA(stream, detail::cuda::norm<T>(false, x, weight, {}, y, {}, r, shape, stream));
  norm_on_cpu<false, T>(x, weight, {}, y, {}, r, shape, stream);
}

template <class T>
void layer_norm_backward(DeviceSpan<const T> dy, DeviceSpan<const T> x, DeviceSpan<const T> weight,
                         DeviceSpan<const float> mean, DeviceSpan<const float> r, DeviceSpan<T> dx,
                         DeviceSpan<T> dweight, DeviceSpan<T> dbias, bool adds, const NormShape& shape,
                         DeviceSpan<float> workspace, Stream& stream) {
  check_shape(shape);
  check_sizes(shape.rows * shape.columns, dy, x, dx);
  check_sizes(shape.columns, weight, dweight, dbias);
  check_sizes(shape.rows, mean, r);
  DUNNOCK_CHECK(workspace.size() >= norm_backward_workspace(shape, stream.device()), "the workspace is large enough");
  DUNNOCK_ON_CUDA(stream, detail::cuda::norm_backward<T>(true, dy, x, weight, mean, r, dx, dweight, dbias, adds, shape,
                                                         workspace, stream));
  backward_on_cpu<true, T>(dy, x, weight, mean, r, dx, dweight, dbias, adds, shape, workspace, stream);
}

template <class T>
void rms_norm_backward(DeviceSpan<const T> dy, DeviceSpan<const T> x, DeviceSpan<const T> weight,
                       DeviceSpan<const float> r, DeviceSpan<T> dx, DeviceSpan<T> dweight, bool adds,
                       const NormShape& shape, DeviceSpan<float> workspace, Stream& stream) {
  check_shape(shape);
  check_sizes(shape.rows * shape.columns, dy, x, dx);
  check_sizes(shape.columns, weight, dweight);
  check_sizes(shape.rows, r);
  DUNNOCK_CHECK(workspace.size() >= norm_backward_workspace(shape, stream.device()), "the workspace is large enough");
  DUNNOCK_ON_CUDA(stream, detail::cuda::norm_backward<T>(false, dy, x, weight, {}, r, dx, dweight, {}, adds, shape,
                                                         workspace, stream));
  backward_on_cpu<false, T>(dy, x, weight, {}, r, dx, dweight, {}, adds, shape, workspace, stream);
}

#define DUNNOCK_INSTANTIATE(T)                                                                                         \
  template void layer_norm<T>(DeviceSpan<const T>, DeviceSpan<const T>, DeviceSpan<const T>, DeviceSpan<T>,            \
                              DeviceSpan<float>, DeviceSpan<float>, const NormShape&, Stream&);                        \
  template void rms_norm<T>(DeviceSpan<const T>, DeviceSpan<const T>, DeviceSpan<T>, DeviceSpan<float>,                \
                            const NormShape&, Stream&);                                                                \
  template void layer_norm_backward<T>(DeviceSpan<const T>, DeviceSpan<const T>, DeviceSpan<const T>,                  \
                                       DeviceSpan<const float>, DeviceSpan<const float>, DeviceSpan<T>, DeviceSpan<T>, \
                                       DeviceSpan<T>, bool, const NormShape&, DeviceSpan<float>, Stream&);             \
  template void rms_norm_backward<T>(DeviceSpan<const T>, DeviceSpan<const T>, DeviceSpan<const T>,                    \
                                     DeviceSpan<const float>, DeviceSpan<T>, DeviceSpan<T>, bool, const NormShape&,    \
                                     DeviceSpan<float>, Stream&);
DUNNOCK_INSTANTIATE(float)
DUNNOCK_INSTANTIATE(Bf16)
#undef DUNNOCK_INSTANTIATE

}  // namespace dunnock::gpu
