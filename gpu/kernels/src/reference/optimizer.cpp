#include "dunnock/kernels/optimizer.hpp"

#include <cmath>

#include "optimizer_parts.hpp"
#include "reference/values.hpp"

namespace dunnock::kernels::reference {
namespace {

/// step(tensor, i, g) -> the new weight
template <class T, class Step>
void each_value(const OptimizerTable<T>& table, device::Span<const float> factor, const Step& step) {
  for (std::size_t t = 0; t < table.tensors.size(); ++t) {
    const OptimizerTensor<T>& tensor = table.tensors.device_data()[t];
    for (std::size_t i = 0; i < tensor.size; ++i) {
      const double g = (factor.empty() ? 1 : at(factor, 0)) * double(static_cast<float>(tensor.gradient[i]));
      tensor.weights[i] = static_cast<float>(step(tensor, i, g));
      if (tensor.copy != nullptr) tensor.copy[i] = device::Bf16(tensor.weights[i]);
    }
  }
}

template <class T>
void adamw_now(const OptimizerTable<T>& table, const AdamwStep& step, device::Span<const float> factor) {
  const double rate = double(step.learning_rate);
  const double beta1 = double(step.beta1);
  const double beta2 = double(step.beta2);
  each_value<T>(table, factor, [&](const OptimizerTensor<T>& tensor, std::size_t i, double g) {
    const double m = beta1 * double(tensor.first_moment[i]) + (1 - beta1) * g;
    const double v = beta2 * double(tensor.second_moment[i]) + (1 - beta2) * g * g;
    tensor.first_moment[i] = static_cast<float>(m);
    tensor.second_moment[i] = static_cast<float>(v);
    const double m_hat = m / (1 - std::pow(beta1, double(step.step)));
    const double v_hat = v / (1 - std::pow(beta2, double(step.step)));
    const double w = double(tensor.weights[i]);
    return w - rate * double(tensor.decay) * w - rate * m_hat / (std::sqrt(v_hat) + double(step.epsilon));
  });
}

template <class T>
void sgd_now(const OptimizerTable<T>& table, const SgdStep& step, device::Span<const float> factor) {
  const double momentum = double(step.momentum);
  each_value<T>(table, factor, [&](const OptimizerTensor<T>& tensor, std::size_t i, double g) {
    const double w = double(tensor.weights[i]);
    double change = g + double(tensor.decay) * w;
    if (momentum != 0) {
      const double m = momentum * double(tensor.first_moment[i]) + change;
      tensor.first_moment[i] = static_cast<float>(m);
      change = step.nesterov ? change + momentum * m : m;
    }
    return w - double(step.learning_rate) * change;
  });
}

}  // namespace

template <class T>
void run(const Adamw<T>& call, device::Stream& stream) {
  stream.run("AdamW", [=] {
    adamw_now(call.table, call.step, call.factor);
    return Status{};
  });
}
template <class T>
void run(const AdamwFromDevice<T>& call, device::Stream& stream) {
  stream.run("AdamW", [=] {
    adamw_now(call.table, *call.step.device_data(), call.factor);
    return Status{};
  });
}

template <class T>
void run(const Sgd<T>& call, device::Stream& stream) {
  stream.run("SGD", [=] {
    sgd_now(call.table, call.step, call.factor);
    return Status{};
  });
}
template <class T>
void run(const SgdFromDevice<T>& call, device::Stream& stream) {
  stream.run("SGD", [=] {
    sgd_now(call.table, *call.step.device_data(), call.factor);
    return Status{};
  });
}

DUNNOCK_INSTANTIATE_KERNELS(Adamw, AdamwFromDevice, Sgd, SgdFromDevice);

}  // namespace dunnock::kernels::reference
