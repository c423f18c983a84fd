// The launchers of src/cuda/optimizer.cu, and what both forms take from the step.
#pragma once

#include <cmath>

#include "dunnock/gpu/kernels/optimizer.hpp"
#include "kernels/dispatch.hpp"

#if defined(__CUDACC__)
#define DUNNOCK_OPTIMIZER_HOST_DEVICE __host__ __device__
#else
#define DUNNOCK_OPTIMIZER_HOST_DEVICE
#endif

namespace dunnock::gpu::detail {

/// w *= keep(decay); w -= rate * m / (sqrt(v) * root + epsilon)
struct AdamwFactors {
  float learning_rate, beta1, beta2, epsilon, rate, root;

  AdamwFactors() = default;
  DUNNOCK_OPTIMIZER_HOST_DEVICE explicit AdamwFactors(const AdamwStep& step)
      : learning_rate(step.learning_rate), beta1(step.beta1), beta2(step.beta2), epsilon(step.epsilon) {
    const auto n = static_cast<double>(step.step);
    rate = static_cast<float>(static_cast<double>(step.learning_rate) /
                              (1 - std::pow(static_cast<double>(step.beta1), n)));
    root = static_cast<float>(1 / std::sqrt(1 - std::pow(static_cast<double>(step.beta2), n)));
  }
};

namespace DUNNOCK_KERNELS {
template <class T>
void adamw(const OptimizerTable<T>& table, const AdamwStep& step, DeviceSpan<const float> factor, Stream& stream);
template <class T>
void sgd(const OptimizerTable<T>& table, const SgdStep& step, DeviceSpan<const float> factor, Stream& stream);
template <class T>
void adamw(const OptimizerTable<T>& table, DeviceSpan<const AdamwStep> step, DeviceSpan<const float> factor,
           Stream& stream);
template <class T>
void sgd(const OptimizerTable<T>& table, DeviceSpan<const SgdStep> step, DeviceSpan<const float> factor,
         Stream& stream);
}  // namespace DUNNOCK_KERNELS

}  // namespace dunnock::gpu::detail

/// Of the CPU's form, CUDA's and the twins alike.
#define DUNNOCK_INSTANTIATE_OPTIMIZER(T)                                                                           \
  template void adamw<T>(const OptimizerTable<T>&, const AdamwStep&, DeviceSpan<const float>, Stream&);            \
  template void sgd<T>(const OptimizerTable<T>&, const SgdStep&, DeviceSpan<const float>, Stream&);                \
  template void adamw<T>(const OptimizerTable<T>&, DeviceSpan<const AdamwStep>, DeviceSpan<const float>, Stream&); \
  template void sgd<T>(const OptimizerTable<T>&, DeviceSpan<const SgdStep>, DeviceSpan<const float>, Stream&);
