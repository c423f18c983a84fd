#include "dunnock/kernels/optimizer.hpp"

#include "kernel_case.hpp"

namespace dunnock::bench {
namespace {

using namespace kernels;

/// Many tensors of one size: small ones show what one launch is worth.
template <class T>
KernelCase step(bool is_adamw, std::size_t tensors, std::size_t size) {
  KernelCase one;
  one.kernel = is_adamw ? "AdamW" : "SGD, momentum";
  one.type = type_name<T>();
  one.shape = std::to_string(tensors) + " of " + std::to_string(size);
  const std::size_t count = tensors * size;
  one.bytes =
      ((is_adamw ? 24.0 : 16.0) + sizeof(T) + (std::is_same_v<T, device::Bf16> ? 2 : 0)) * static_cast<double>(count);
  // PyTorch's keeps no bf16 copy beside f32 weights.
  if (std::is_same_v<T, float>) one.operation = {is_adamw ? "adamw" : "sgd", {{"tensors", tensors}, {"n", size}}};
  one.relative = 1.0 / 127;
  one.absolute = 1e-5;
  one.changes_itself = true;
  one.prepare = [=](KernelValues& values) -> KernelCase::Run {
    const auto w = values.track(values.normal<float>(count));
    const auto m = values.track(values.normal<float>(count, 0, 0.1F));
    const auto v = values.track(values.normal<float>(is_adamw ? count : 0, 10, 1));
    const auto g = values.normal<T>(count);
    const auto copy = values.result<device::Bf16>(std::is_same_v<T, device::Bf16> ? count : 0);
    if (values.failed()) return {};
    std::vector<OptimizerTensor<T>> table(tensors);
    for (std::size_t t = 0; t < tensors; ++t) {
      table[t] = {.weights = w.device_data() + t * size,
                  .first_moment = m.device_data() + t * size,
                  .second_moment = is_adamw ? v.device_data() + t * size : nullptr,
                  .gradient = g.device_data() + t * size,
                  .copy = copy.empty() ? nullptr : copy.device_data() + t * size,
                  .size = size,
                  .decay = 0.01F};
    }
    const std::size_t chunks = lay_out(std::span(table));
    const OptimizerTable<T> there{values.of(table), chunks};
    return [=](device::Stream& stream, Form form) {
      const AdamwStep by{.learning_rate = 1e-3F, .step = 10};
      const SgdStep sgd_by{.learning_rate = 1e-3F, .momentum = 0.9F};
      if (is_adamw) return run_form(form, Adamw<T>{.table = there, .step = by, .factor = {}}, stream);
      run_form(form, Sgd<T>{.table = there, .step = sgd_by, .factor = {}}, stream);
    };
  };
  return one;
}

}  // namespace

std::vector<KernelCase> optimizer_cases(CaseSize size) {
  const std::size_t large = size == CaseSize::kTiny ? 9001 : std::size_t{1} << (size == CaseSize::kCpu ? 23 : 27);
  std::vector<KernelCase> cases;
  for (const bool is_adamw : {true, false}) {
    cases.push_back(step<float>(is_adamw, 1, large));
    cases.push_back(step<device::Bf16>(is_adamw, 1, large));
    cases.push_back(step<device::Bf16>(is_adamw, size == CaseSize::kTiny ? 5 : 400, 1000));
  }
  return cases;
}

}  // namespace dunnock::bench
