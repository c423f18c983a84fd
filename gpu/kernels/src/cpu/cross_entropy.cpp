#include "dunnock/kernels/cross_entropy.hpp"

#include <cmath>
#include <limits>

#include "checks.hpp"
#include "cpu/vector_for.hpp"
#include "dispatch.hpp"

namespace dunnock::kernels {
namespace {

using detail::check_sizes;
using detail::load;
using detail::store;
using detail::vector_for;
namespace vector_math = detail::vector_math;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct RowSum {
  float max;      // -infinity: all are
  float sum_exp;  // of exp(x - max)
  float sum;      // of x
};

/// Reads a row once from memory: chunks that fit the L1 cache are read twice, for their maximum and for their sum.
template <class T>
DUNNOCK_INLINED inline RowSum sum_row(const T* row, std::size_t columns) {
  constexpr std::size_t kChunk = 2048;
  RowSum all{-kInfinity, 0, 0};
  for (std::size_t at = 0; at < columns; at += kChunk) {
    const std::size_t end = at + kChunk < columns ? at + kChunk : columns;
    float max = -kInfinity;
#pragma omp simd reduction(max : max)
    for (std::size_t c = at; c < end; ++c) {
      const float x = load(row + c);
      max = x > max ? x : max;
    }
    const float base = max == -kInfinity ? 0.0F : max;  // A NaN is in no maximum, but is in the sum.
    float sum_exp = 0;
    float sum = 0;
#pragma omp simd reduction(+ : sum_exp, sum)
    for (std::size_t c = at; c < end; ++c) {
      const float x = load(row + c);
      sum_exp += vector_math::exp(x - base);
      sum += x;
    }
    all.sum += sum;
    if (max == -kInfinity) {
      all.sum_exp += sum_exp;
    } else if (max > all.max) {
      all.sum_exp = all.sum_exp * vector_math::exp(all.max - max) + sum_exp;
      all.max = max;
    } else {
      all.sum_exp += sum_exp * vector_math::exp(max - all.max);
    }
  }
  return all;
}
/// exp(x - its maximum) * factor - shift
template <class T>
DUNNOCK_INLINED inline void write_row(const T* row, T* to, std::size_t columns, float max, float factor, float shift) {
#pragma omp simd
  for (std::size_t c = 0; c < columns; ++c) store(to + c, vector_math::exp(load(row + c) - max) * factor - shift);
}

}  // namespace

template <class T>
void run(const CrossEntropy<T>& call, device::Stream& stream) {
  DUNNOCK_CHECK(call.shape.classes > 0, "there are classes");
  DUNNOCK_CHECK(call.shape.classes < (std::size_t{1} << 31), "a class is an i32");
  check_sizes(call.shape.rows * call.shape.classes, call.logits);
  detail::check_optional(call.shape.rows * call.shape.classes, call.gradient);
  check_sizes(call.shape.rows, call.targets, call.losses);
  if (call.shape.rows == 0) return;
  if (ran_on_cuda(call, stream)) return;
  stream.run("cross-entropy", [=] {
    vector_for(call.shape.rows, detail::rows_grain(2 * call.shape.classes),
               [=](std::size_t first, std::size_t last) DUNNOCK_INLINED {
                 const std::size_t classes = call.shape.classes;
                 const float smooth = call.shape.label_smoothing;
                 const float factor = call.shape.gradient_factor;
                 const float shift = factor * smooth / static_cast<float>(classes);
                 for (std::size_t row = first; row < last; ++row) {
                   const T* const x = call.logits.device_data() + row * classes;
                   T* const out = call.gradient.empty() ? nullptr : call.gradient.device_data() + row * classes;
                   const std::int32_t target = call.targets.device_data()[row];
                   const bool ignored = target == call.shape.ignore_index;
                   if (ignored || target < 0 || static_cast<std::size_t>(target) >= classes) {
                     call.losses.device_data()[row] = ignored ? 0 : std::numeric_limits<float>::quiet_NaN();
                     for (std::size_t c = 0; out != nullptr && c < classes; ++c) out[c] = T(0.0F);
                     continue;
                   }
                   const RowSum all = sum_row(x, classes);
                   const float at_target = load(x + target);
                   float loss = all.max + std::log(all.sum_exp) - (1.0F - smooth) * at_target;
                   if (smooth != 0) loss -= smooth * all.sum / static_cast<float>(classes);
                   call.losses.device_data()[row] = loss;
                   if (out == nullptr) continue;
                   write_row(x, out, classes, all.max, factor / all.sum_exp, shift);
                   const float p = vector_math::exp(at_target - all.max) / all.sum_exp;
                   store(out + target, factor * (p - (1.0F - smooth)) - shift);  // Not of what was rounded to T.
                 }
               });
    return Status{};
  });
}

void run(const CrossEntropyMean& call, device::Stream& stream) {
  check_sizes(call.losses.size(), call.targets);
  check_sizes(1, call.mean);
  if (ran_on_cuda(call, stream)) return;
  stream.run("mean of losses", [=] {
    double sum = 0;
    std::size_t count = 0;
    for (std::size_t i = 0; i < call.losses.size(); ++i) {
      if (call.targets.device_data()[i] == call.ignore_index) continue;
      sum += static_cast<double>(call.losses.device_data()[i]);
      ++count;
    }
    *call.mean.device_data() = static_cast<float>(sum / static_cast<double>(count));
    return Status{};
  });
}

template <class T>
void run(const Softmax<T>& call, device::Stream& stream) {
  DUNNOCK_CHECK(call.shape.columns > 0, "a row has columns");
  check_sizes(call.shape.rows * call.shape.columns, call.x, call.y);
  if (call.shape.rows == 0) return;
  if (ran_on_cuda(call, stream)) return;
  stream.run("softmax", [=] {
    vector_for(call.shape.rows, detail::rows_grain(2 * call.shape.columns),
               [=](std::size_t first, std::size_t last) DUNNOCK_INLINED {
                 for (std::size_t row = first; row < last; ++row) {
                   const T* const from = call.x.device_data() + row * call.shape.columns;
                   const RowSum all = sum_row(from, call.shape.columns);
                   write_row(from, call.y.device_data() + row * call.shape.columns, call.shape.columns, all.max,
                             1.0F / all.sum_exp, 0.0F);
                 }
               });
    return Status{};
  });
}

template <class T>
void run(const LogSumExp<T>& call, device::Stream& stream) {
  DUNNOCK_CHECK(call.shape.columns > 0, "a row has columns");
  check_sizes(call.shape.rows * call.shape.columns, call.x);
  check_sizes(call.shape.rows, call.sums);
  if (call.shape.rows == 0) return;
  if (ran_on_cuda(call, stream)) return;
  stream.run("log-sum-exp", [=] {
    vector_for(call.shape.rows, detail::rows_grain(call.shape.columns),
               [=](std::size_t first, std::size_t last) DUNNOCK_INLINED {
                 for (std::size_t row = first; row < last; ++row) {
                   const RowSum all = sum_row(call.x.device_data() + row * call.shape.columns, call.shape.columns);
                   call.sums.device_data()[row] = all.max == -kInfinity && all.sum_exp == 0.0F
                                                      ? std::numeric_limits<float>::quiet_NaN()
                                                      : all.max + std::log(all.sum_exp);
                 }
               });
    return Status{};
  });
}

DUNNOCK_INSTANTIATE_KERNELS(CrossEntropy, Softmax, LogSumExp);

}  // namespace dunnock::kernels
