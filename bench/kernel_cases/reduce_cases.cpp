#include "dunnock/kernels/reduce.hpp"

#include "kernel_case.hpp"

namespace dunnock::bench {
namespace {

using namespace kernels;

template <class T>
void add_cases(std::vector<KernelCase>& cases, CaseSize size) {
  const std::size_t count = size == CaseSize::kTiny ? 20003 : std::size_t{1} << (size == CaseSize::kCpu ? 26 : 29);
  KernelCase sum;
  sum.kernel = "sum of squares";
  sum.type = type_name<T>();
  sum.shape = std::to_string(count);
  sum.bytes = static_cast<double>(count * sizeof(T));
  sum.operation = {"sum_of_squares", {{"n", count}}};
  sum.relative = 1e-5;
  sum.prepare = [=](KernelValues& values) -> KernelCase::Run {
    const auto x = values.normal<T>(count);
    const auto result = values.result<float>(1);
    const auto space = values.workspace<float>(reduce_workspace(count));
    return [=](device::Stream& stream, Form form) {
      run_form(form, Reduce<T>{.kind = ReduceKind::kSumOfSquares, .x = x, .result = result, .workspace = space},
               stream);
    };
  };
  cases.push_back(sum);
  const ReduceRows shape{.rows = std::max<std::size_t>(2, count / 50257), .columns = 50257};
  KernelCase argmax = sum;
  argmax.kernel = "argmax of rows";
  argmax.operation = {"argmax_rows", {{"rows", shape.rows}, {"columns", shape.columns}}};
  argmax.shape = std::to_string(shape.rows) + " x 50257";
  argmax.bytes = static_cast<double>(shape.rows * shape.columns * sizeof(T));
  argmax.prepare = [=](KernelValues& values) -> KernelCase::Run {
    const auto x = values.normal<T>(shape.rows * shape.columns);
    const auto indices = values.result<std::int32_t>(shape.rows);
    return [=](device::Stream& stream, Form form) {
      run_form(form, ArgmaxRows<T>{.x = x, .indices = indices, .values = {}, .shape = shape}, stream);
    };
  };
  cases.push_back(argmax);
}

}  // namespace

std::vector<KernelCase> reduce_cases(CaseSize size) {
  std::vector<KernelCase> cases;
  add_cases<float>(cases, size);
  add_cases<device::Bf16>(cases, size);
  return cases;
}

}  // namespace dunnock::bench
