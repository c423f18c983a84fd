#include "dunnock/kernels/elementwise.hpp"

#include "kernel_case.hpp"

namespace dunnock::bench {
namespace {

using namespace kernels;

template <class T>
void add_cases(std::vector<KernelCase>& cases, CaseSize size) {
  using Other = std::conditional_t<std::is_same_v<T, float>, device::Bf16, float>;
  const std::size_t count = size == CaseSize::kTiny ? 5003 : std::size_t{1} << (size == CaseSize::kCpu ? 25 : 28);
  const auto add = [&](const char* name, const std::string& shape, double bytes, PeerOperation operation,
                       auto prepare) {
    KernelCase one;
    one.kernel = name;
    one.type = type_name<T>();
    one.shape = shape;
    one.bytes = bytes;
    one.operation = std::move(operation);
    one.relative = 1.0 / 127;
    one.absolute = 0.05;
    one.prepare = prepare;
    cases.push_back(std::move(one));
  };
  const auto values_count = static_cast<double>(count);
  const auto peer = [&](const char* op) { return PeerOperation{op, {{"n", count}}}; };
  add("add", std::to_string(count), 3 * sizeof(T) * values_count, peer("add_scaled"),
      [=](KernelValues& values) -> KernelCase::Run {
        const auto a = values.normal<T>(count);
        const auto b = values.normal<T>(count);
        const auto y = values.result<T>(count);
        return [=](device::Stream& stream, Form form) {
          run_form(form, AddScaled<T>{.a = a, .b = b, .factor = 0.5F, .y = y}, stream);
        };
      });
  add("cast", std::to_string(count), 6 * values_count, peer("cast"), [=](KernelValues& values) -> KernelCase::Run {
    const auto x = values.normal<T>(count);
    const auto y = values.result<Other>(count);
    return [=](device::Stream& stream, Form form) { run_form(form, Cast<Other, T>{.x = x, .y = y}, stream); };
  });
  const RowMatrix shape{.rows = std::max<std::size_t>(3, count / 3072), .columns = 3072};
  const std::string text = std::to_string(shape.rows) + " x 3072";
  const auto bytes = static_cast<double>(sizeof(T) * shape.rows * shape.columns);
  const auto row_peer = [&](const char* op) {
    return PeerOperation{op, {{"rows", shape.rows}, {"columns", shape.columns}}};
  };
  add("bias add", text, 2 * bytes, row_peer("bias_add"), [=](KernelValues& values) -> KernelCase::Run {
    const auto x = values.normal<T>(shape.rows * shape.columns);
    const auto bias = values.normal<T>(shape.columns);
    const auto y = values.result<T>(x.size());
    return [=](device::Stream& stream, Form form) {
      run_form(form, BiasAdd<T>{.x = x, .bias = bias, .y = y, .shape = shape}, stream);
    };
  });
  add("column sums", text, bytes, row_peer("column_sums"), [=](KernelValues& values) -> KernelCase::Run {
    const auto x = values.normal<T>(shape.rows * shape.columns);
    const auto sums = values.result<T>(shape.columns);
    const auto space = values.workspace<float>(column_sums_workspace(shape, values.device()));
    return [=](device::Stream& stream, Form form) {
      run_form(form, ColumnSums<T>{.x = x, .sums = sums, .adds = false, .shape = shape, .workspace = space}, stream);
    };
  });
}

}  // namespace

std::vector<KernelCase> elementwise_cases(CaseSize size) {
  std::vector<KernelCase> cases;
  add_cases<float>(cases, size);
  add_cases<device::Bf16>(cases, size);
  return cases;
}

}  // namespace dunnock::bench
