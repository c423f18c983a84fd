#include "dunnock/gpu/kernels/cross_entropy.hpp"

#include <cmath>
#include <limits>

#include "kernels/checks.hpp"
#include "kernels/cross_entropy_launchers.hpp"
#include "kernels/vector_for.hpp"

namespace dunnock::gpu {
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
void cross_entropy(DeviceSpan<const T> logits, DeviceSpan<const std::int32_t> targets, DeviceSpan<float> losses,
                   DeviceSpan<T> gradient, const CrossEntropyShape& shape, Stream& stream) {
  DUNNOCK_CHECK(shape.classes > 0, "there are classes");
  DUNNOCK_CHECK(shape.classes < (std::size_t{1} << 31), "a class is an i32");
  check_sizes(shape.rows * shape.classes, logits);
  detail::check_optional(shape.rows * shape.classes, gradient);
  check_sizes(shape.rows, targets, losses);
  if (shape.rows == 0) return;
  DUNNOCK_ON_CUDA(stream, detail::cuda::cross_entropy<T>(logits, targets, losses, gradient, shape, stream));
  stream.run("cross-entropy", [=] {
    vector_for(shape.rows, detail::rows_grain(2 * shape.classes),
               [=](std::size_t first, std::size_t last) DUNNOCK_INLINED {
                 const std::size_t classes = shape.classes;
                 const float smooth = shape.label_smoothing;
                 const float factor = shape.gradient_factor;
                 const float shift = factor * smooth / static_cast<float>(classes);
                 for (std::size_t row = first; row < last; ++row) {
                   const T* const x = logits.device_data() + row * classes;
                   T* const out = gradient.empty() ? nullptr : gradient.device_data() + row * classes;
                   const std::int32_t target = targets.device_data()[row];
                   const bool ignored = target == shape.ignore_index;
                   if (ignored || target < 0 || static_cast<std::size_t>(target) >= classes) {
                     losses.device_data()[row] = ignored ? 0 : std::numeric_limits<float>::quiet_NaN();
                     for (std::size_t c = 0; out != nullptr && c < classes; ++c) out[c] = T(0.0F);
                     continue;
                   }
                   const RowSum all = sum_row(x, classes);
                   const float at_target = load(x + target);
                   float loss = all.max + std::log(all.sum_exp) - (1.0F - smooth) * at_target;
                   if (smooth != 0) loss -= smooth * all.sum / static_cast<float>(classes);
                   losses.device_data()[row] = loss;
                   if (out == nullptr) continue;
                   write_row(x, out, classes, all.max, factor / all.sum_exp, shift);
                   const float p = vector_math::exp(at_target - all.max) / all.sum_exp;
                   store(out + target, factor * (p - (1.0F - smooth)) - shift);  // Not of what was rounded to T.
                 }
               });
    return Status{};
  });
}

void cross_entropy_mean(DeviceSpan<const float> losses, DeviceSpan<const std::int32_t> targets,
                        std::int32_t ignore_index, DeviceSpan<float> mean, Stream& stream) {
  check_sizes(losses.size(), targets);
  check_sizes(1, mean);
  DUNNOCK_ON_CUDA(stream, detail::cuda::cross_entropy_mean(losses, targets, ignore_index, mean, stream));
  stream.run("mean of losses", [=] {
    double sum = 0;
    std::size_t count = 0;
    for (std::size_t i = 0; i < losses.size(); ++i) {
      if (targets.device_data()[i] == ignore_index) continue;
      sum += static_cast<double>(losses.device_data()[i]);
      ++count;
    }
    *mean.device_data() = static_cast<float>(sum / static_cast<double>(count));
    return Status{};
  });
}

template <class T>
void softmax(DeviceSpan<const T> x, DeviceSpan<T> y, const SoftmaxShape& shape, Stream& stream) {
  DUNNOCK_CHECK(shape.columns > 0, "a row has columns");
  check_sizes(shape.rows * shape.columns, x, y);
  if (shape.rows == 0) return;
  DUNNOCK_ON_CUDA(stream, detail::cuda::softmax<T>(x, y, shape, stream));
  stream.run("softmax", [=] {
    vector_for(
        shape.rows, detail::rows_grain(2 * shape.columns), [=](std::size_t first, std::size_t last) DUNNOCK_INLINED {
          for (std::size_t row = first; row < last; ++row) {
            const T* const from = x.device_data() + row * shape.columns;
            const RowSum all = sum_row(from, shape.columns);
            write_row(from, y.device_data() + row * shape.columns, shape.columns, all.max, 1.0F / all.sum_exp, 0.0F);
          }
        });
    return Status{};
  });
}

template <class T>
void log_sum_exp(DeviceSpan<const T> x, DeviceSpan<float> sums, const SoftmaxShape& shape, Stream& stream) {
  DUNNOCK_CHECK(shape.columns > 0, "a row has columns");
  check_sizes(shape.rows * shape.columns, x);
  check_sizes(shape.rows, sums);
  if (shape.rows == 0) return;
  DUNNOCK_ON_CUDA(stream, detail::cuda::log_sum_exp<T>(x, sums, shape, stream));
  stream.run("log-sum-exp", [=] {
    vector_for(shape.rows, detail::rows_grain(shape.columns), [=](std::size_t first, std::size_t last) DUNNOCK_INLINED {
      for (std::size_t row = first; row < last; ++row) {
        const RowSum all = sum_row(x.device_data() + row * shape.columns, shape.columns);
        sums.device_data()[row] = all.max == -kInfinity && all.sum_exp == 0.0F ? std::numeric_limits<float>::quiet_NaN()
                                                                               : all.max + std::log(all.sum_exp);
      }
    });
    return Status{};
  });
}

DUNNOCK_INSTANTIATE_CROSS_ENTROPY(float)
DUNNOCK_INSTANTIATE_CROSS_ENTROPY(Bf16)

}  // namespace dunnock::gpu
