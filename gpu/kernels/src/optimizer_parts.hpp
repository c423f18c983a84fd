// What the forms of the optimizer take from the step.
#pragma once

#include <cmath>

#include "dispatch.hpp"
#include "dunnock/kernels/optimizer.hpp"

namespace dunnock::kernels::detail {

/// w *= keep(decay); w -= rate * m / (sqrt(v) * root + epsilon)
struct AdamwFactors {
  float learning_rate, beta1, beta2, epsilon, rate, root;

  AdamwFactors() = default;
  DUNNOCK_HOST_DEVICE explicit AdamwFactors(const AdamwStep& step)
      : learning_rate(step.learning_rate), beta1(step.beta1), beta2(step.beta2), epsilon(step.epsilon) {
    const auto n = static_cast<double>(step.step);
    rate = static_cast<float>(static_cast<double>(step.learning_rate) /
                              (1 - std::pow(static_cast<double>(step.beta1), n)));
    root = static_cast<float>(1 / std::sqrt(1 - std::pow(static_cast<double>(step.beta2), n)));
  }
};

}  // namespace dunnock::kernels::detail
