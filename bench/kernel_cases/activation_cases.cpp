#include "dunnock/kernels/activation.hpp"

#include "kernel_case.hpp"

namespace dunnock::bench {
namespace {

using namespace kernels;

template <class T>
KernelCase plain(Activation kind, const char* name, const char* op, bool backward, std::size_t count) {
  KernelCase one;
  one.kernel = std::string(name) + (backward ? " backward" : "");
  one.type = type_name<T>();
  one.shape = std::to_string(count);
  one.bytes = (backward ? 3.0 : 2.0) * sizeof(T) * static_cast<double>(count);
  one.operation = {std::string(op) + (backward ? "_backward" : ""), {{"n", count}}};
  one.relative = kCaseRounding<T>;
  one.absolute = 1e-5;
  one.prepare = [=](KernelValues& values) -> KernelCase::Run {
    const auto x = values.normal<T>(count, 0, 2);
    const auto dy = values.normal<T>(backward ? count : 0);
    const auto y = values.result<T>(count);
    return [=](device::Stream& stream, Form form) {
      if (backward) run_form(form, ActivateBackward<T>{.kind = kind, .dy = dy, .x = x, .dx = y}, stream);
      if (!backward) run_form(form, Activate<T>{.kind = kind, .x = x, .y = y}, stream);
    };
  };
  return one;
}

template <class T>
KernelCase packed_swiglu(bool backward, std::size_t rows, std::size_t columns) {
  const auto shape = SwigluShape::packed(rows, columns);
  KernelCase one;
  one.kernel = backward ? "SwiGLU backward" : "SwiGLU";
  one.type = type_name<T>();
  one.shape = std::to_string(rows) + " x 2 x " + std::to_string(columns);
  one.bytes = (backward ? 5.0 : 3.0) * sizeof(T) * static_cast<double>(rows * columns);
  one.operation = {backward ? "swiglu_backward" : "swiglu", {{"rows", rows}, {"columns", columns}}};
  one.relative = kCaseRounding<T>;
  one.absolute = 1e-4;
  one.prepare = [=](KernelValues& values) -> KernelCase::Run {
    const auto x = values.normal<T>(rows * columns * 2, 0, 2);
    const auto dy = values.normal<T>(backward ? rows * columns : 0);
    const auto y = values.result<T>(rows * columns * (backward ? 2 : 1));
    const auto halves = [=](auto whole) {
      return std::pair{whole.subspan(0, whole.size() - columns), whole.subspan(columns, whole.size() - columns)};
    };
    if (values.failed()) return {};
    return [=](device::Stream& stream, Form form) {
      const auto [gate, up] = halves(x);
      if (!backward) run_form(form, Swiglu<T>{.gate = gate, .up = up, .y = y, .shape = shape}, stream);
      if (backward) {
        const auto [dgate, dup] = halves(y);
        run_form(form, SwigluBackward<T>{.dy = dy, .gate = gate, .up = up, .dgate = dgate, .dup = dup, .shape = shape},
                 stream);
      }
    };
  };
  return one;
}

template <class T>
void add_cases(std::vector<KernelCase>& cases, CaseSize size) {
  const std::size_t count = size == CaseSize::kTiny ? 5003 : std::size_t{1} << (size == CaseSize::kCpu ? 25 : 28);
  for (const bool backward : {false, true}) {
    cases.push_back(plain<T>(Activation::kGeluTanh, "GELU tanh", "gelu_tanh", backward, count));
    cases.push_back(plain<T>(Activation::kGeluErf, "GELU erf", "gelu_erf", backward, count));
    cases.push_back(plain<T>(Activation::kSilu, "SiLU", "silu", backward, count));
    cases.push_back(plain<T>(Activation::kRelu, "ReLU", "relu", backward, count));
    const std::size_t columns = size == CaseSize::kTiny ? 344 : 11008;
    cases.push_back(packed_swiglu<T>(backward, std::max<std::size_t>(3, count / columns), columns));
  }
}

}  // namespace

std::vector<KernelCase> activation_cases(CaseSize size) {
  std::vector<KernelCase> cases;
  add_cases<float>(cases, size);
  add_cases<device::Bf16>(cases, size);
  return cases;
}

}  // namespace dunnock::bench
