#include "dunnock/gpu/kernels/reduce.hpp"

#include <cmath>
#include <limits>

#include "kernels/reduce_launchers.hpp"
#include "reference/values.hpp"

namespace dunnock::gpu::reference {

template <class T>
void reduce(ReduceKind kind, DeviceSpan<const T> x, DeviceSpan<float> result, DeviceSpan<float>, Stream& stream) {
  stream.run("reduce", [=] {
    double sum = 0;
    double squares = 0;
    double max = -std::numeric_limits<double>::infinity();
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double value = at(x, i);
      sum += value;
      squares += value * value;
      if (value > max || std::isnan(value)) max = value;  // Nothing is larger than a NaN.
    }
    if (kind == ReduceKind::kSum) set(result, 0, sum);
    if (kind == ReduceKind::kSumOfSquares) set(result, 0, squares);
    if (kind == ReduceKind::kMean) set(result, 0, sum / double(x.size()));
    if (kind == ReduceKind::kMax) set(result, 0, max);
    return Status{};
  });
}
template <class T>
void any_not_finite(DeviceSpan<const T> x, DeviceSpan<std::uint32_t> flag, DeviceSpan<float>, Stream& stream) {
  stream.run("any not finite", [=] {
    *flag.device_data() = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      if (!std::isfinite(at(x, i))) *flag.device_data() = 1;
    }
    return Status{};
  });
}
template <class T>
void gradient_norm(const ReduceTable<T>& table, DeviceSpan<float> norm, DeviceSpan<float>, Stream& stream) {
  stream.run("gradient norm", [=] {
    double squares = 0;
    for (std::size_t t = 0; t < table.tensors.size(); ++t) {
      const ReduceTensor<T>& tensor = table.tensors.device_data()[t];
      const DeviceSpan<const T> x(tensor.values, tensor.size);
      for (std::size_t i = 0; i < x.size(); ++i) squares += at(x, i) * at(x, i);
    }
    set(norm, 0, std::sqrt(squares));
    return Status{};
  });
}
void clip_factor(DeviceSpan<const float> norm, float norm_max, DeviceSpan<float> factor, Stream& stream) {
  stream.run("clip factor", [=] {
    const double share = double(norm_max) / at(norm, 0);
    set(factor, 0, share > 1 ? 1 : share);
    return Status{};
  });
}
template <class T>
void argmax_rows(DeviceSpan<const T> x, DeviceSpan<std::int32_t> indices, DeviceSpan<float> values,
                 const ReduceRows& shape, Stream& stream) {
  stream.run("argmax", [=] {
    for (std::size_t row = 0; row < shape.rows; ++row) {
      std::size_t best = 0;
      for (std::size_t c = 1; c < shape.columns; ++c) {
        const double value = at(x, row * shape.columns + c);
        const double max = at(x, row * shape.columns + best);
        if (value > max || (std::isnan(value) && !std::isnan(max))) best = c;
      }
      indices.device_data()[row] = static_cast<std::int32_t>(best);
      if (!values.empty()) set(values, row, at(x, row * shape.columns + best));
    }
    return Status{};
  });
}

DUNNOCK_INSTANTIATE_REDUCE(float)
DUNNOCK_INSTANTIATE_REDUCE(Bf16)

}  // namespace dunnock::gpu::reference
