#include "dunnock/kernels/gather.hpp"

#include <numeric>

#include "kernel_case.hpp"

namespace dunnock::bench {
namespace {

using namespace kernels;

/// Half of 0 .. extent - 1, ascending, as a mask of dropout keeps them.
std::vector<std::int32_t> half_of(std::size_t extent) {
  std::vector<std::int32_t> kept;
  std::mt19937 random(3);
  for (std::size_t i = 0; i < extent; ++i) {
    if (random() % 2 == 0) kept.push_back(static_cast<std::int32_t>(i));
  }
  return kept;
}

template <class T>
KernelCase gather(bool of_rows, bool scatters, std::size_t rows, std::size_t columns) {
  const auto index = half_of(of_rows ? rows : columns);
  const std::size_t moved = index.size() * (of_rows ? columns : rows);
  KernelCase one;
  one.kernel = std::string(scatters ? "scatter " : "gather ") + (of_rows ? "rows" : "columns");
  one.type = type_name<T>();
  one.shape = std::to_string(rows) + " x " + std::to_string(columns) + ", half";
  one.bytes = 2.0 * sizeof(T) * static_cast<double>(moved);
  one.operation = {std::string(scatters ? "scatter_" : "gather_") + (of_rows ? "rows" : "columns"),
                   {{"rows", rows}, {"columns", columns}, {"count", index.size()}}};
  one.prepare = [=](KernelValues& values) -> KernelCase::Run {
    const GatherShape shape{.rows = rows, .columns = columns};
    const auto where = values.of(index);
    const auto large = scatters ? values.result<T>(rows * columns) : values.normal<T>(rows * columns);
    const auto small = scatters ? values.normal<T>(moved) : values.result<T>(moved);
    return [=](device::Stream& stream, Form form) {
      if (!scatters && of_rows)
        run_form(form, GatherRows<T>{.x = large, .index = where, .y = small, .shape = shape}, stream);
      if (!scatters && !of_rows)
        run_form(form, GatherColumns<T>{.x = large, .index = where, .y = small, .shape = shape}, stream);
      if (scatters && of_rows)
        run_form(form, ScatterRows<T>{.y = small, .index = where, .x = large, .adds = false, .shape = shape}, stream);
      if (scatters && !of_rows)
        run_form(form, ScatterColumns<T>{.y = small, .index = where, .x = large, .adds = false, .shape = shape},
                 stream);
    };
  };
  return one;
}

}  // namespace

std::vector<KernelCase> gather_cases(CaseSize size) {
  const std::size_t rows = size == CaseSize::kTiny ? 61 : size == CaseSize::kCpu ? 4096 : 32768;
  const std::size_t columns = size == CaseSize::kTiny ? 96 : 4096;
  std::vector<KernelCase> cases;
  for (const bool scatters : {false, true}) {
    for (const bool of_rows : {true, false}) {
      cases.push_back(gather<float>(of_rows, scatters, rows, columns));
      cases.push_back(gather<device::Bf16>(of_rows, scatters, rows, columns));
    }
  }
  return cases;
}

}  // namespace dunnock::bench
