#include "dunnock/kernels/cross_entropy.hpp"

#include "kernel_case.hpp"

namespace dunnock::bench {
namespace {

using namespace kernels;

template <class T>
KernelCase loss(std::size_t rows, std::size_t classes) {
  KernelCase one;
  one.kernel = "cross-entropy + gradient";
  one.type = type_name<T>();
  one.shape = std::to_string(rows) + " x " + std::to_string(classes);
  one.bytes = 2.0 * sizeof(T) * static_cast<double>(rows * classes);
  one.operation = {"cross_entropy", {{"rows", rows}, {"classes", classes}}};
  one.relative = std::max(2e-5, kCaseRounding<T>);
  one.absolute = 1e-5;
  one.prepare = [=](KernelValues& values) -> KernelCase::Run {
    const CrossEntropyShape shape{.rows = rows, .classes = classes, .gradient_factor = 1.0F / float(rows)};
    const auto logits = values.normal<T>(rows * classes, 0, 2);
    const auto targets = values.integers<std::int32_t>(rows, classes);
    const auto losses = values.result<float>(rows);
    const auto gradient = values.result<T>(logits.size());
    return [=](device::Stream& stream, Form form) {
      run_form(
          form,
          CrossEntropy<T>{.logits = logits, .targets = targets, .losses = losses, .gradient = gradient, .shape = shape},
          stream);
    };
  };
  return one;
}

template <class T>
KernelCase plain(std::size_t rows, std::size_t columns) {
  KernelCase one;
  one.kernel = "softmax";
  one.type = type_name<T>();
  one.shape = std::to_string(rows) + " x " + std::to_string(columns);
  one.bytes = 2.0 * sizeof(T) * static_cast<double>(rows * columns);
  one.operation = {"softmax", {{"rows", rows}, {"columns", columns}}};
  one.relative = std::max(2e-5, kCaseRounding<T>);
  one.absolute = 1e-7;
  one.prepare = [=](KernelValues& values) -> KernelCase::Run {
    const auto x = values.normal<T>(rows * columns, 0, 2);
    const auto y = values.result<T>(x.size());
    const SoftmaxShape shape{.rows = rows, .columns = columns};
    return
        [=](device::Stream& stream, Form form) { run_form(form, Softmax<T>{.x = x, .y = y, .shape = shape}, stream); };
  };
  return one;
}

}  // namespace

std::vector<KernelCase> cross_entropy_cases(CaseSize size) {
  const bool tiny = size == CaseSize::kTiny;
  const std::size_t scale = size == CaseSize::kGpu ? 16 : 1;
  std::vector<KernelCase> cases;
  for (const auto& [rows, classes] : {std::pair<std::size_t, std::size_t>{tiny ? 3 : 512 * scale, 50257},
                                      std::pair<std::size_t, std::size_t>{tiny ? 77 : 65536 * scale, 10}}) {
    cases.push_back(loss<float>(rows, classes));
    cases.push_back(loss<device::Bf16>(rows, classes));
  }
  cases.push_back(plain<float>(tiny ? 13 : 16384 * scale, 1024));
  cases.push_back(plain<device::Bf16>(tiny ? 13 : 16384 * scale, 1024));
  return cases;
}

}  // namespace dunnock::bench
