#include "dunnock/kernels/random.hpp"

#include "kernel_case.hpp"

namespace dunnock::bench {
namespace {

using namespace kernels;

template <class T>
KernelCase common(const char* kernel, const char* op, std::size_t count, double values_moved) {
  KernelCase one;
  one.kernel = kernel;
  one.type = type_name<T>();
  one.shape = std::to_string(count);
  one.bytes = values_moved * sizeof(T) * static_cast<double>(count);
  one.operation = {op, {{"n", count}}};
  one.relative = kCaseRounding<T>;
  one.absolute = 1e-4;
  return one;
}

template <class T>
void add_cases(std::size_t count, std::vector<KernelCase>& cases) {
  const RandomKey key{.seed = 5, .first_block = 9};
  KernelCase uniform = common<T>("random uniform", "random_uniform", count, 1);
  uniform.prepare = [=](KernelValues& values) -> KernelCase::Run {
    const auto out = values.result<T>(count);
    return [=](device::Stream& stream, Form form) { run_form(form, RandomUniform<T>{.out = out, .key = key}, stream); };
  };
  cases.push_back(uniform);
  KernelCase normal = common<T>("random normal", "random_normal", count, 1);
  normal.prepare = [=](KernelValues& values) -> KernelCase::Run {
    const auto out = values.result<T>(count);
    return [=](device::Stream& stream, Form form) {
      run_form(form, RandomNormal<T>{.out = out, .shape = {}, .key = key}, stream);
    };
  };
  cases.push_back(normal);
  KernelCase drop = common<T>("dropout", "dropout", count, 2);
  drop.prepare = [=](KernelValues& values) -> KernelCase::Run {
    const auto x = values.normal<T>(count);
    const auto y = values.result<T>(count);
    return [=](device::Stream& stream, Form form) {
      run_form(form, Dropout<T>{.x = x, .y = y, .mask = {}, .keep = 0.5F, .key = key}, stream);
    };
  };
  cases.push_back(drop);
}

}  // namespace

std::vector<KernelCase> random_cases(CaseSize size) {
  const std::size_t count = size == CaseSize::kTiny ? 10'007 : std::size_t{1} << (size == CaseSize::kCpu ? 24 : 28);
  std::vector<KernelCase> cases;
  add_cases<float>(count, cases);
  add_cases<device::Bf16>(count, cases);
  return cases;
}

}  // namespace dunnock::bench
