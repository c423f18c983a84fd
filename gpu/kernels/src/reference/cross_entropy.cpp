#include "dunnock/kernels/cross_entropy.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "dispatch.hpp"
#include "reference/values.hpp"

namespace dunnock::kernels::reference {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

double log_sum(const std::vector<double>& row) {
  const double max = *std::max_element(row.begin(), row.end());
  double sum = 0;
  for (const double x : row) sum += std::exp(x - max);
  return max + std::log(sum);
}
template <class T>
std::vector<double> row_of(device::Span<const T> x, std::size_t row, std::size_t columns) {
  std::vector<double> values(columns);
  for (std::size_t c = 0; c < columns; ++c) values[c] = at(x, row * columns + c);
  return values;
}

}  // namespace

template <class T>
void run(const CrossEntropy<T>& call, device::Stream& stream) {
  stream.run("cross-entropy", [=] {
    const auto classes = static_cast<std::int64_t>(call.shape.classes);
    const double smooth = double(call.shape.label_smoothing);
    for (std::size_t row = 0; row < call.shape.rows; ++row) {
      const auto x = row_of(call.logits, row, call.shape.classes);
      const std::int64_t target = call.targets.device_data()[row];
      const bool ignored = target == call.shape.ignore_index;
      const bool known = !ignored && target >= 0 && target < classes;
      double mean = 0;
      for (const double value : x) mean += value / double(classes);
      const double sum = log_sum(x);
      double loss = ignored ? 0 : kNan;
      if (known) loss = sum - (1 - smooth) * x[std::size_t(target)] - (smooth == 0 ? 0 : smooth * mean);
      set(call.losses, row, loss);
      for (std::int64_t c = 0; c < classes && !call.gradient.empty(); ++c) {
        const double wanted = smooth / double(classes) + (c == target ? 1 - smooth : 0);
        const double g = known ? double(call.shape.gradient_factor) * (std::exp(x[std::size_t(c)] - sum) - wanted) : 0;
        set(call.gradient, row * call.shape.classes + std::size_t(c), g);
      }
    }
    return Status{};
  });
}

void run(const CrossEntropyMean& call, device::Stream& stream) {
  stream.run("mean of losses", [=] {
    double sum = 0;
    double count = 0;
    for (std::size_t i = 0; i < call.losses.size(); ++i) {
      if (call.targets.device_data()[i] == call.ignore_index) continue;
      sum += at(call.losses, i);
      count += 1;
    }
    set(call.mean, 0, sum / count);
    return Status{};
  });
}

template <class T>
void run(const Softmax<T>& call, device::Stream& stream) {
  stream.run("softmax", [=] {
    for (std::size_t row = 0; row < call.shape.rows; ++row) {
      const auto values = row_of(call.x, row, call.shape.columns);
      const double sum = log_sum(values);
      for (std::size_t c = 0; c < call.shape.columns; ++c)
        set(call.y, row * call.shape.columns + c, std::exp(values[c] - sum));
    }
    return Status{};
  });
}
template <class T>
void run(const LogSumExp<T>& call, device::Stream& stream) {
  stream.run("log-sum-exp", [=] {
    for (std::size_t row = 0; row < call.shape.rows; ++row)
      set(call.sums, row, log_sum(row_of(call.x, row, call.shape.columns)));
    return Status{};
  });
}

DUNNOCK_INSTANTIATE_KERNELS(CrossEntropy, Softmax, LogSumExp);

}  // namespace dunnock::kernels::reference
