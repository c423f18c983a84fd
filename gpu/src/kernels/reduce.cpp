#include "dunnock/gpu/kernels/reduce.hpp"

#include <bit>
#include <cmath>
#include <limits>

#include "kernels/checks.hpp"
#include "kernels/reduce_launchers.hpp"
#include "kernels/vector_for.hpp"

namespace dunnock::gpu {
namespace {

using detail::check_sizes;
using detail::load;
using detail::vector_for;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

DUNNOCK_INLINED inline bool not_finite(float x) {
  return (std::bit_cast<std::uint32_t>(x) & 0x7f800000U) == 0x7f800000U;
}

template <class T>
DUNNOCK_INLINED inline float sum_of(const T* x, std::size_t count, bool squares) {
  float sum = 0;
  if (squares) {
#pragma omp simd reduction(+ : sum)
    for (std::size_t i = 0; i < count; ++i) sum += load(x + i) * load(x + i);
  } else {
#pragma omp simd reduction(+ : sum)
    for (std::size_t i = 0; i < count; ++i) sum += load(x + i);
  }
  return sum;
}
template <class T>
DUNNOCK_INLINED inline float max_of(const T* x, std::size_t count) {
  float max = -kInfinity;
  std::uint32_t nans = 0;
#pragma omp simd reduction(max : max) reduction(+ : nans)
  for (std::size_t i = 0; i < count; ++i) {
    const float value = load(x + i);
    nans += (std::bit_cast<std::uint32_t>(value) & 0x7fffffffU) > 0x7f800000U ? 1U : 0U;
    max = value > max ? value : max;
  }
  return nans != 0 ? kNan : max;
}
template <class T>
DUNNOCK_INLINED inline std::uint32_t not_finite_of(const T* x, std::size_t count) {
  std::uint32_t found = 0;
#pragma omp simd reduction(+ : found)
  for (std::size_t i = 0; i < count; ++i) found += not_finite(load(x + i)) ? 1U : 0U;
  return found;
}

/// parts[p] = f(its values, how many) for each chunk.
template <class T, class F>
void each_part(DeviceSpan<const T> x, DeviceSpan<float> parts, const F& f) {
  vector_for(reduce_workspace(x.size()), 4, [&](std::size_t first, std::size_t last) DUNNOCK_INLINED {
    for (std::size_t part = first; part < last; ++part) {
      const std::size_t at = part * kReduceChunk;
      const std::size_t rest = x.size() - at;
      parts.device_data()[part] = f(x.device_data() + at, rest < kReduceChunk ? rest : kReduceChunk);
    }
  });
}
double sum_parts(DeviceSpan<float> parts, std::size_t count) {
  double sum = 0;
  for (std::size_t part = 0; part < count; ++part) sum += static_cast<double>(parts.device_data()[part]);
  return sum;
}

}  // namespace

template <class T>
void reduce(ReduceKind kind, DeviceSpan<const T> x, DeviceSpan<float> result, DeviceSpan<float> workspace,
            Stream& stream) {
  check_sizes(1, result);
  DUNNOCK_CHECK(workspace.size() >= reduce_workspace(x.size()), "the workspace is large enough");
  DUNNOCK_ON_CUDA(stream, detail::cuda::reduce<T>(kind, x, result, workspace, stream));
  stream.run("reduce", [=] {
    const std::size_t parts = reduce_workspace(x.size());
    if (kind == ReduceKind::kMax) {
      each_part(x, workspace, [](const T* from, std::size_t count) DUNNOCK_INLINED { return max_of(from, count); });
      *result.device_data() = max_of(workspace.device_data(), parts);
      return Status{};
    }
    const bool squares = kind == ReduceKind::kSumOfSquares;
    each_part(x, workspace,
              [=](const T* from, std::size_t count) DUNNOCK_INLINED { return sum_of(from, count, squares); });
    double sum = sum_parts(workspace, parts);
    if (kind == ReduceKind::kMean) sum /= static_cast<double>(x.size());
    *result.device_data() = static_cast<float>(sum);
    return Status{};
  });
}

template <class T>
void any_not_finite(DeviceSpan<const T> x, DeviceSpan<std::uint32_t> flag, DeviceSpan<float> workspace,
                    Stream& stream) {
  check_sizes(1, flag);
  DUNNOCK_CHECK(workspace.size() >= reduce_workspace(x.size()), "the workspace is large enough");
  DUNNOCK_ON_CUDA(stream, detail::cuda::any_not_finite<T>(x, flag, workspace, stream));
  stream.run("any not finite", [=] {
    each_part(x, workspace, [](const T* from, std::size_t count) DUNNOCK_INLINED {
      return static_cast<float>(not_finite_of(from, count));
    });
    *flag.device_data() = sum_parts(workspace, reduce_workspace(x.size())) > 0 ? 1 : 0;
    return Status{};
  });
}

template <class T>
void gradient_norm(const ReduceTable<T>& table, DeviceSpan<float> norm, DeviceSpan<float> workspace, Stream& stream) {
  check_sizes(1, norm);
  DUNNOCK_CHECK(workspace.size() >= table.chunks, "the workspace is large enough");
  DUNNOCK_ON_CUDA(stream, detail::cuda::gradient_norm<T>(table, norm, workspace, stream));
  stream.run("gradient norm", [=] {
    const ReduceTensor<T>* const tensors = table.tensors.device_data();
    vector_for(table.chunks, 4, [=](std::size_t first, std::size_t last) DUNNOCK_INLINED {
      std::size_t t = table.tensors.size() - 1;
      while (tensors[t].first_chunk > first) --t;
      for (std::size_t chunk = first; chunk < last; ++chunk) {
        while (t + 1 < table.tensors.size() && tensors[t + 1].first_chunk <= chunk) ++t;
        const std::size_t at = (chunk - tensors[t].first_chunk) * kReduceChunk;
        const std::size_t rest = tensors[t].size - at;
        workspace.device_data()[chunk] =
            sum_of(tensors[t].values + at, rest < kReduceChunk ? rest : kReduceChunk, true);
      }
    });
    *norm.device_data() = static_cast<float>(std::sqrt(sum_parts(workspace, table.chunks)));
    return Status{};
  });
}

void clip_factor(DeviceSpan<const float> norm, float norm_max, DeviceSpan<float> factor, Stream& stream) {
  check_sizes(1, norm, factor);
  DUNNOCK_ON_CUDA(stream, detail::cuda::clip_factor(norm, norm_max, factor, stream));
  stream.run("clip factor", [=] {
    const float share = norm_max / *norm.device_data();
    *factor.device_data() = share > 1.0F ? 1.0F : share;
    return Status{};
  });
}

template <class T>
void argmax_rows(DeviceSpan<const T> x, DeviceSpan<std::int32_t> indices, DeviceSpan<float> values,
                 const ReduceRows& shape, Stream& stream) {
  DUNNOCK_CHECK(shape.columns > 0, "a row has columns");
  DUNNOCK_CHECK(shape.columns < (std::size_t{1} << 31), "an index is an i32");
  check_sizes(shape.rows * shape.columns, x);
  check_sizes(shape.rows, indices);
  detail::check_optional(shape.rows, values);
  if (shape.rows == 0) return;
  DUNNOCK_ON_CUDA(stream, detail::cuda::argmax_rows<T>(x, indices, values, shape, stream));
  stream.run("argmax", [=] {
    vector_for(shape.rows, detail::rows_grain(shape.columns), [=](std::size_t first, std::size_t last) DUNNOCK_INLINED {
      for (std::size_t row = first; row < last; ++row) {
        const T* const from = x.device_data() + row * shape.columns;
        // The maximum as vectors, then where it is: a second read from the cache, up to there.
        const float max = max_of(from, shape.columns);
        std::size_t c = 0;
        if (std::isnan(max)) {
          while (!std::isnan(load(from + c))) ++c;
        } else {
          while (load(from + c) != max) ++c;
        }
        indices.device_data()[row] = static_cast<std::int32_t>(c);
        if (!values.empty()) values.device_data()[row] = max;
      }
    });
    return Status{};
  });
}

DUNNOCK_INSTANTIATE_REDUCE(float)
DUNNOCK_INSTANTIATE_REDUCE(Bf16)

}  // namespace dunnock::gpu
