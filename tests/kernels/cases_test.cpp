// The cases that are measured compute what their twins do.
#include <algorithm>

#include "kernel_case.hpp"
#include "runners.hpp"

namespace dunnock::gpu {
namespace {

TEST(KernelCases, agree_with_their_twins) {
  for (const auto& one : bench::all_kernel_cases(bench::CaseSize::kTiny))
    EXPECT_EQ(bench::compare_with_twin(one, Device::cpu(), test::seed()), "") << one.name();
}

TEST(KernelCases, that_differ_from_their_twins_are_told) {
  bench::KernelCase wrong;
  wrong.prepare = [](bench::KernelValues& values) -> bench::KernelCase::Run {
    const auto x = values.result<float>(3);
    return [x](Stream& stream, bench::Form form) {
      stream.run("wrong", [x, form] {
        x.device_data()[1] = form == bench::Form::kTwin ? 1.0F : 1.5F;
        return Status{};
      });
    };
  };
  EXPECT_EQ(bench::compare_with_twin(wrong, Device::cpu(), test::seed()),
            "result 0 [1] is 1.500000, the twin's 1.000000");
}

}  // namespace
}  // namespace dunnock::gpu
