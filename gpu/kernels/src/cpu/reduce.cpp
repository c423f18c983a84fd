#include "dunnock/kernels/reduce.hpp"

#include <bit>
#include <cmath>
#include <limits>

#include "checks.hpp"
#include "cpu/vector_for.hpp"
#include "dispatch.hpp"

namespace dunnock::kernels {
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
void each_part(device::Span<const T> x, device::Span<float> parts, const F& f) {
  vector_for(reduce_workspace(x.size()), 4, [&](std::size_t first, std::size_t last) DUNNOCK_INLINED {
    for (std::size_t part = first; part < last; ++part) {
      const std::size_t at = part * kReduceChunk;
      const std::size_t rest = x.size() - at;
      parts.device_data()[part] = f(x.device_data() + at, rest < kReduceChunk ? rest : kReduceChunk);
    }
  });
}
double sum_parts(device::Span<float> parts, std::size_t count) {
  double sum = 0;
  for (std::size_t part = 0; part < count; ++part) sum += static_cast<double>(parts.device_data()[part]);
  return sum;
}

}  // namespace

template <class T>
void run(const Reduce<T>& call, device::Stream& stream) {
  check_sizes(1, call.result);
  DUNNOCK_CHECK(call.workspace.size() >= reduce_workspace(call.x.size()), "the workspace is large enough");
  if (ran_on_cuda(call, stream)) return;
  stream.run("reduce", [=] {
    const std::size_t parts = reduce_workspace(call.x.size());
    if (call.kind == ReduceKind::kMax) {
      each_part(call.x, call.workspace,
                [](const T* from, std::size_t count) DUNNOCK_INLINED { return max_of(from, count); });
      *call.result.device_data() = max_of(call.workspace.device_data(), parts);
      return Status{};
    }
    const bool squares = call.kind == ReduceKind::kSumOfSquares;
    each_part(call.x, call.workspace,
              [=](const T* from, std::size_t count) DUNNOCK_INLINED { return sum_of(from, count, squares); });
    double sum = sum_parts(call.workspace, parts);
    if (call.kind == ReduceKind::kMean) sum /= static_cast<double>(call.x.size());
    *call.result.device_data() = static_cast<float>(sum);
    return Status{};
  });
}

template <class T>
void run(const AnyNotFinite<T>& call, device::Stream& stream) {
  check_sizes(1, call.flag);
  DUNNOCK_CHECK(call.workspace.size() >= reduce_workspace(call.x.size()), "the workspace is large enough");
  if (ran_on_cuda(call, stream)) return;
  stream.run("any not finite", [=] {
    each_part(call.x, call.workspace, [](const T* from, std::size_t count) DUNNOCK_INLINED {
      return static_cast<float>(not_finite_of(from, count));
    });
    *call.flag.device_data() = sum_parts(call.workspace, reduce_workspace(call.x.size())) > 0 ? 1 : 0;
    return Status{};
  });
}

template <class T>
void run(const GradientNorm<T>& call, device::Stream& stream) {
  check_sizes(1, call.norm);
  DUNNOCK_CHECK(call.workspace.size() >= call.table.chunks, "the workspace is large enough");
  if (ran_on_cuda(call, stream)) return;
  stream.run("gradient norm", [=] {
    const ReduceTensor<T>* const tensors = call.table.tensors.device_data();
    vector_for(call.table.chunks, 4, [=](std::size_t first, std::size_t last) DUNNOCK_INLINED {
      std::size_t t = call.table.tensors.size() - 1;
      while (tensors[t].first_chunk > first) --t;
      for (std::size_t chunk = first; chunk < last; ++chunk) {
        while (t + 1 < call.table.tensors.size() && tensors[t + 1].first_chunk <= chunk) ++t;
        const std::size_t at = (chunk - tensors[t].first_chunk) * kReduceChunk;
        const std::size_t rest = tensors[t].size - at;
        call.workspace.device_data()[chunk] =
            sum_of(tensors[t].values + at, rest < kReduceChunk ? rest : kReduceChunk, true);
      }
    });
    *call.norm.device_data() = static_cast<float>(std::sqrt(sum_parts(call.workspace, call.table.chunks)));
    return Status{};
  });
}

void run(const ClipFactor& call, device::Stream& stream) {
  check_sizes(1, call.norm, call.factor);
  if (ran_on_cuda(call, stream)) return;
  stream.run("clip factor", [=] {
    const float share = call.norm_max / *call.norm.device_data();
    *call.factor.device_data() = share > 1.0F ? 1.0F : share;
    return Status{};
  });
}

template <class T>
void run(const ArgmaxRows<T>& call, device::Stream& stream) {
  DUNNOCK_CHECK(call.shape.columns > 0, "a row has columns");
  DUNNOCK_CHECK(call.shape.columns < (std::size_t{1} << 31), "an index is an i32");
  check_sizes(call.shape.rows * call.shape.columns, call.x);
  check_sizes(call.shape.rows, call.indices);
  detail::check_optional(call.shape.rows, call.values);
  if (call.shape.rows == 0) return;
  if (ran_on_cuda(call, stream)) return;
  stream.run("argmax", [=] {
    vector_for(call.shape.rows, detail::rows_grain(call.shape.columns),
               [=](std::size_t first, std::size_t last) DUNNOCK_INLINED {
                 for (std::size_t row = first; row < last; ++row) {
                   const T* const from = call.x.device_data() + row * call.shape.columns;
                   // The maximum as vectors, then where it is: a second read from the cache, up to there.
                   const float max = max_of(from, call.shape.columns);
                   std::size_t c = 0;
                   if (std::isnan(max)) {
                     while (!std::isnan(load(from + c))) ++c;
                   } else {
                     while (load(from + c) != max) ++c;
                   }
                   call.indices.device_data()[row] = static_cast<std::int32_t>(c);
                   if (!call.values.empty()) call.values.device_data()[row] = max;
                 }
               });
    return Status{};
  });
}

DUNNOCK_INSTANTIATE_KERNELS(Reduce, AnyNotFinite, GradientNorm, ArgmaxRows);

}  // namespace dunnock::kernels
