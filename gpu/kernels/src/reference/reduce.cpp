#include "dunnock/kernels/reduce.hpp"

#include <cmath>
#include <limits>

#include "dispatch.hpp"
#include "reference/values.hpp"

namespace dunnock::kernels::reference {

template <class T>
void run(const Reduce<T>& call, device::Stream& stream) {
  stream.run("reduce", [=] {
    double sum = 0;
    double squares = 0;
    double max = -std::numeric_limits<double>::infinity();
    for (std::size_t i = 0; i < call.x.size(); ++i) {
      const double value = at(call.x, i);
      sum += value;
      squares += value * value;
      if (value > max || std::isnan(value)) max = value;  // Nothing is larger than a NaN.
    }
    if (call.kind == ReduceKind::kSum) set(call.result, 0, sum);
    if (call.kind == ReduceKind::kSumOfSquares) set(call.result, 0, squares);
    if (call.kind == ReduceKind::kMean) set(call.result, 0, sum / double(call.x.size()));
    if (call.kind == ReduceKind::kMax) set(call.result, 0, max);
    return Status{};
  });
}
template <class T>
void run(const AnyNotFinite<T>& call, device::Stream& stream) {
  stream.run("any not finite", [=] {
    *call.flag.device_data() = 0;
    for (std::size_t i = 0; i < call.x.size(); ++i) {
      if (!std::isfinite(at(call.x, i))) *call.flag.device_data() = 1;
    }
    return Status{};
  });
}
template <class T>
void run(const GradientNorm<T>& call, device::Stream& stream) {
  stream.run("gradient norm", [=] {
    double squares = 0;
    for (std::size_t t = 0; t < call.table.tensors.size(); ++t) {
      const ReduceTensor<T>& tensor = call.table.tensors.device_data()[t];
      const device::Span<const T> x(tensor.values, tensor.size);
      for (std::size_t i = 0; i < x.size(); ++i) squares += at(x, i) * at(x, i);
    }
    set(call.norm, 0, std::sqrt(squares));
    return Status{};
  });
}
void run(const ClipFactor& call, device::Stream& stream) {
  stream.run("clip factor", [=] {
    const double share = double(call.norm_max) / at(call.norm, 0);
    set(call.factor, 0, share > 1 ? 1 : share);
    return Status{};
  });
}
template <class T>
void run(const ArgmaxRows<T>& call, device::Stream& stream) {
  stream.run("argmax", [=] {
    for (std::size_t row = 0; row < call.shape.rows; ++row) {
      std::size_t best = 0;
      for (std::size_t c = 1; c < call.shape.columns; ++c) {
        const double value = at(call.x, row * call.shape.columns + c);
        const double max = at(call.x, row * call.shape.columns + best);
        if (value > max || (std::isnan(value) && !std::isnan(max))) best = c;
      }
      call.indices.device_data()[row] = static_cast<std::int32_t>(best);
      if (!call.values.empty()) set(call.values, row, at(call.x, row * call.shape.columns + best));
    }
    return Status{};
  });
}

DUNNOCK_INSTANTIATE_KERNELS(Reduce, AnyNotFinite, GradientNorm, ArgmaxRows);

}  // namespace dunnock::kernels::reference
