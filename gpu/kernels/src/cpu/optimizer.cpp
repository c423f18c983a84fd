#include "dunnock/kernels/optimizer.hpp"

#include <cmath>
#include <string_view>

#include "checks.hpp"
#include "cpu/vector_for.hpp"
#include "optimizer_parts.hpp"

namespace dunnock::kernels {
namespace {

using detail::AdamwFactors;
using detail::load;
using detail::store;
using detail::vector_for;

template <class T>
DUNNOCK_INLINED inline void adamw_values(const OptimizerTensor<T>& tensor, const AdamwFactors& by, float factor,
                                         std::size_t first, std::size_t last) {
  float* const w = tensor.weights;
  float* const m = tensor.first_moment;
  float* const v = tensor.second_moment;
  const T* const gradient = tensor.gradient;
  const float keep = 1.0F - by.learning_rate * tensor.decay;
#pragma omp simd
  for (std::size_t i = first; i < last; ++i) {
    const float g = factor * load(gradient + i);
    m[i] = by.beta1 * m[i] + (1.0F - by.beta1) * g;
    v[i] = by.beta2 * v[i] + (1.0F - by.beta2) * g * g;
    w[i] = keep * w[i] - by.rate * m[i] / (std::sqrt(v[i]) * by.root + by.epsilon);
  }
}
template <bool kMomentum, class T>
DUNNOCK_INLINED inline void sgd_values(const OptimizerTensor<T>& tensor, const SgdStep& by, float factor,
                                       std::size_t first, std::size_t last) {
  float* const w = tensor.weights;
  float* const m = tensor.first_moment;
  const T* const gradient = tensor.gradient;
  const float ahead = by.nesterov ? 1.0F : 0.0F;
  const float along = by.nesterov ? by.momentum : 1.0F;
#pragma omp simd
  for (std::size_t i = first; i < last; ++i) {
    const float g = factor * load(gradient + i) + tensor.decay * w[i];
    if constexpr (kMomentum) {
      m[i] = by.momentum * m[i] + g;
      w[i] -= by.learning_rate * (ahead * g + along * m[i]);
    } else {
      w[i] -= by.learning_rate * g;
    }
  }
}

/// values(tensor, first, last) for each chunk, and the copies: while a chunk's new weights lie in the cache.
template <class T, class Values>
void each_chunk(const OptimizerTable<T>& table, const Values& values) {
  const OptimizerTensor<T>* const tensors = table.tensors.device_data();
  vector_for(table.chunks, 4, [&](std::size_t first, std::size_t last) DUNNOCK_INLINED {
    std::size_t t = table.tensors.size() - 1;
    while (tensors[t].first_chunk > first) --t;
    for (std::size_t chunk = first; chunk < last; ++chunk) {
      while (t + 1 < table.tensors.size() && tensors[t + 1].first_chunk <= chunk) ++t;
      const OptimizerTensor<T>& tensor = tensors[t];
      const std::size_t begin = (chunk - tensor.first_chunk) * kOptimizerChunk;
      const std::size_t end = begin + kOptimizerChunk < tensor.size ? begin + kOptimizerChunk : tensor.size;
      values(tensor, begin, end);
      if (tensor.copy == nullptr) continue;
#pragma omp simd
      for (std::size_t i = begin; i < end; ++i) store(tensor.copy + i, tensor.weights[i]);
    }
  });
}

template <class T>
void adamw_now(const OptimizerTable<T>& table, const AdamwStep& step, device::Span<const float> factor) {
  const AdamwFactors by(step);
  const float scale = factor.empty() ? 1.0F : *factor.device_data();
  each_chunk(table, [&](const OptimizerTensor<T>& tensor, std::size_t first, std::size_t last)
                        DUNNOCK_INLINED { adamw_values(tensor, by, scale, first, last); });
}
template <class T>
void sgd_now(const OptimizerTable<T>& table, const SgdStep& step, device::Span<const float> factor) {
  const float scale = factor.empty() ? 1.0F : *factor.device_data();
  each_chunk(table, [&](const OptimizerTensor<T>& tensor, std::size_t first, std::size_t last) DUNNOCK_INLINED {
    if (step.momentum != 0) {
      sgd_values<true>(tensor, step, scale, first, last);
    } else {
      sgd_values<false>(tensor, step, scale, first, last);
    }
  });
}

// What a step has to be: a programmer's error where the host sees it, the stream's where the device reads it.
constexpr const char* kFirstStepIsOne = "the first step is 1";
constexpr const char* kNesterovNeedsMomentum = "nesterov needs a momentum other than 0";
bool is_step(const AdamwStep& step) { return step.step > 0; }
bool is_step(const SgdStep& step) { return !step.nesterov || step.momentum != 0; }

/// now(table, step, factor): all values of a step, which the call has, or the memory of the device.
template <class Call, class Now>
void run_step(std::string_view name, const Call& call, const char* requirement, const Now& now,
              device::Stream& stream) {
  constexpr bool kOnHost = requires { is_step(call.step); };
  if constexpr (kOnHost) {
    DUNNOCK_CHECK(is_step(call.step), requirement);
  } else {
    detail::check_sizes(1, call.step);
  }
  detail::check_optional(1, call.factor);
  if (call.table.chunks == 0) return;
  if (ran_on_cuda(call, stream)) return;
  stream.run(name, [=]() -> Status {
    if constexpr (kOnHost) {
      now(call.table, call.step, call.factor);
    } else {
      const auto step = *call.step.device_data();
      if (!is_step(step)) return make_error(ErrorCode::kInvalidArgument, requirement);
      now(call.table, step, call.factor);
    }
    return {};
  });
}

}  // namespace

template <class T>
void run(const Adamw<T>& call, device::Stream& stream) {
  run_step("AdamW", call, kFirstStepIsOne, adamw_now<T>, stream);
}
template <class T>
void run(const AdamwFromDevice<T>& call, device::Stream& stream) {
  run_step("AdamW", call, kFirstStepIsOne, adamw_now<T>, stream);
}
template <class T>
void run(const Sgd<T>& call, device::Stream& stream) {
  run_step("SGD", call, kNesterovNeedsMomentum, sgd_now<T>, stream);
}
template <class T>
void run(const SgdFromDevice<T>& call, device::Stream& stream) {
  run_step("SGD", call, kNesterovNeedsMomentum, sgd_now<T>, stream);
}

DUNNOCK_INSTANTIATE_KERNELS(Adamw, AdamwFromDevice, Sgd, SgdFromDevice);

}  // namespace dunnock::kernels
