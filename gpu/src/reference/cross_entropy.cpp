#include "dunnock/gpu/kernels/cross_entropy.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/cross_entropy_launchers.hpp"
#include "reference/values.hpp"

namespace dunnock::gpu::reference {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

double log_sum(const std::vector<double>& row) {
  const double max = *std::max_element(row.begin(), row.end());
  double sum = 0;
  for (const double x : row) sum += std::exp(x - max);
  return max + std::log(sum);
}
template <class T>
std::vector<double> row_of(DeviceSpan<const T> x, std::size_t row, std::size_t columns) {
  std::vector<double> values(columns);
  for (std::size_t c = 0; c < columns; ++c) values[c] = at(x, row * columns + c);
  return values;
}

}  // namespace

template <class T>
void cross_entropy(DeviceSpan<const T> logits, DeviceSpan<const std::int32_t> targets, DeviceSpan<float> losses,
                   DeviceSpan<T> gradient, const CrossEntropyShape& shape, Stream& stream) {
  stream.run("cross-entropy", [=] {
    const auto classes = static_cast<std::int64_t>(shape.classes);
    const double smooth = double(shape.label_smoothing);
    for (std::size_t row = 0; row < shape.rows; ++row) {
      const auto x = row_of(logits, row, shape.classes);
      const std::int64_t target = targets.device_data()[row];
      const bool ignored = target == shape.ignore_index;
      const bool known = !ignored && target >= 0 && target < classes;
      double mean = 0;
      for (const double value : x) mean += value / double(classes);
      const double sum = log_sum(x);
      double loss = ignored ? 0 : kNan;
      if (known) loss = sum - (1 - smooth) * x[std::size_t(target)] - (smooth == 0 ? 0 : smooth * mean);
      set(losses, row, loss);
      for (std::int64_t c = 0; c < classes && !gradient.empty(); ++c) {
        const double wanted = smooth / double(classes) + (c == target ? 1 - smooth : 0);
        const double g = known ? double(shape.gradient_factor) * (std::exp(x[std::size_t(c)] - sum) - wanted) : 0;
        set(gradient, row * shape.classes + std::size_t(c), g);
      }
    }
    return Status{};
  });
}

void cross_entropy_mean(DeviceSpan<const float> losses, DeviceSpan<const std::int32_t> targets,
                        std::int32_t ignore_index, DeviceSpan<float> mean, Stream& stream) {
  stream.run("mean of losses", [=] {
    double sum = 0;
    double count = 0;
    for (std::size_t i = 0; i < losses.size(); ++i) {
      if (targets.device_data()[i] == ignore_index) continue;
      sum += at(losses, i);
      count += 1;
    }
    set(mean, 0, sum / count);
    return Status{};
  });
}

template <class T>
void softmax(DeviceSpan<const T> x, DeviceSpan<T> y, const SoftmaxShape& shape, Stream& stream) {
  stream.run("softmax", [=] {
    for (std::size_t row = 0; row < shape.rows; ++row) {
      const auto values = row_of(x, row, shape.columns);
      const double sum = log_sum(values);
      for (std::size_t c = 0; c < shape.columns; ++c) set(y, row * shape.columns + c, std::exp(values[c] - sum));
    }
    return Status{};
  });
}
template <class T>
void log_sum_exp(DeviceSpan<const T> x, DeviceSpan<float> sums, const SoftmaxShape& shape, Stream& stream) {
  stream.run("log-sum-exp", [=] {
    for (std::size_t row = 0; row < shape.rows; ++row) set(sums, row, log_sum(row_of(x, row, shape.columns)));
    return Status{};
  });
}

DUNNOCK_INSTANTIATE_CROSS_ENTROPY(float)
DUNNOCK_INSTANTIATE_CROSS_ENTROPY(Bf16)

}  // namespace dunnock::gpu::reference
