#include "dunnock/kernels/norm.hpp"

#include "kernel_case.hpp"

namespace dunnock::bench {
namespace {

using namespace kernels;

template <class T>
KernelCase forward(bool centred, NormShape shape) {
  KernelCase one;
  one.kernel = centred ? "layer norm" : "RMS norm";
  one.type = type_name<T>();
  one.shape = std::to_string(shape.rows) + " x " + std::to_string(shape.columns);
  one.bytes = 2.0 * sizeof(T) * static_cast<double>(shape.rows * shape.columns);
  one.operation = {centred ? "layer_norm" : "rms_norm", {{"rows", shape.rows}, {"columns", shape.columns}}};
  one.relative = kCaseRounding<T>;
  one.absolute = 2e-5;
  one.prepare = [=](KernelValues& values) -> KernelCase::Run {
    const auto x = values.normal<T>(shape.rows * shape.columns, 1, 2);
    const auto weight = values.normal<T>(shape.columns);
    const auto bias = values.normal<T>(shape.columns);
    const auto y = values.result<T>(x.size());
    const auto mean = values.result<float>(shape.rows);
    const auto r = values.result<float>(shape.rows);
    return [=](device::Stream& stream, Form form) {
      if (centred)
        run_form(form,
                 LayerNorm<T>{.x = x, .weight = weight, .bias = bias, .y = y, .mean = mean, .r = r, .shape = shape},
                 stream);
      if (!centred) run_form(form, RmsNorm<T>{.x = x, .weight = weight, .y = y, .r = r, .shape = shape}, stream);
    };
  };
  return one;
}

template <class T>
KernelCase backward(bool centred, NormShape shape) {
  KernelCase one;
  one.kernel = centred ? "layer norm backward" : "RMS norm backward";
  one.type = type_name<T>();
  one.shape = std::to_string(shape.rows) + " x " + std::to_string(shape.columns);
  // dy and x are read twice: the sums over columns and those over rows want different orders.
  one.bytes = 3.0 * sizeof(T) * static_cast<double>(shape.rows * shape.columns);
  one.operation = {centred ? "layer_norm_backward" : "rms_norm_backward",
                   {{"rows", shape.rows}, {"columns", shape.columns}}};
  one.relative = kCaseRounding<T>;
  one.absolute = 2e-3;
  one.prepare = [=](KernelValues& values) -> KernelCase::Run {
    const auto dy = values.normal<T>(shape.rows * shape.columns);
    const auto x = values.normal<T>(shape.rows * shape.columns);
    const auto weight = values.normal<T>(shape.columns);
    const auto mean = values.normal<float>(shape.rows, 0, 0.1F);
    const auto r = values.normal<float>(shape.rows, 1, 0.1F);
    const auto dx = values.result<T>(dy.size());
    const auto dweight = values.result<T>(shape.columns);
    const auto dbias = values.result<T>(shape.columns);
    const auto space = values.workspace<float>(norm_backward_workspace(shape, values.device()));
    return [=](device::Stream& stream, Form form) {
      if (centred)
        run_form(form,
                 LayerNormBackward<T>{.dy = dy,
                                      .x = x,
                                      .weight = weight,
                                      .mean = mean,
                                      .r = r,
                                      .dx = dx,
                                      .dweight = dweight,
                                      .dbias = dbias,
                                      .adds = false,
                                      .shape = shape,
                                      .workspace = space},
                 stream);
      if (!centred)
        run_form(form,
                 RmsNormBackward<T>{.dy = dy,
                                    .x = x,
                                    .weight = weight,
                                    .r = r,
                                    .dx = dx,
                                    .dweight = dweight,
                                    .adds = false,
                                    .shape = shape,
                                    .workspace = space},
                 stream);
    };
  };
  return one;
}

}  // namespace

std::vector<KernelCase> norm_cases(CaseSize size) {
  const std::size_t rows = size == CaseSize::kTiny ? 37 : size == CaseSize::kCpu ? 8192 : 65536;
  std::vector<KernelCase> cases;
  for (const bool centred : {true, false}) {
    for (const std::size_t columns : {std::size_t{768}, std::size_t{4096}}) {
      const NormShape shape{.rows = rows, .columns = columns};
      cases.push_back(forward<float>(centred, shape));
      cases.push_back(forward<device::Bf16>(centred, shape));
      cases.push_back(backward<float>(centred, shape));
      cases.push_back(backward<device::Bf16>(centred, shape));
    }
  }
  return cases;
}

}  // namespace dunnock::bench
