// The cases that are measured compute what their twins do.
#include <algorithm>
#include <chrono>
#include <future>

#include "kernel_case.hpp"
#include "runners.hpp"

namespace dunnock::kernels {
namespace {

TEST(KernelCases, agree_with_their_twins) {
  for (const auto& one : bench::all_kernel_cases(bench::CaseSize::kTiny))
    EXPECT_EQ(bench::compare_with_twin(one, device::Device::cpu(), test::seed()), "") << one.name();
}

// Behind an operation that stands until the kernel's call has returned.
TEST(KernelCases, return_before_they_run_and_take_no_device_memory) {
  for (const auto& one : bench::all_kernel_cases(bench::CaseSize::kTiny)) {
    SCOPED_TRACE(one.name());
    auto stream = std::move(*device::Stream::create(device::Device::cpu()));
    bench::KernelValues values(stream, test::seed());
    const auto run = one.prepare(values);
    run(stream, bench::Form::kKernel);  // Libraries prepare themselves at the first call.
    ASSERT_TRUE(stream.synchronize());
    const std::uint64_t before = device::Device::cpu().memory_stats().allocations;
    std::promise<void> returned;
    stream.run("gate", [gate = returned.get_future().share()] {
      if (gate.wait_for(std::chrono::seconds(20)) == std::future_status::ready) return Status{};
      return Status(make_error(ErrorCode::kDevice, "the call waits for its stream"));
    });
    run(stream, bench::Form::kKernel);
    returned.set_value();
    const Status done = stream.synchronize();
    EXPECT_TRUE(done) << done.error().message;
    EXPECT_EQ(device::Device::cpu().memory_stats().allocations, before);
  }
}

TEST(KernelCases, that_differ_from_their_twins_are_told) {
  bench::KernelCase wrong;
  wrong.prepare = [](bench::KernelValues& values) -> bench::KernelCase::Run {
    const auto x = values.result<float>(3);
    return [x](device::Stream& stream, bench::Form form) {
      stream.run("wrong", [x, form] {
        x.device_data()[1] = form == bench::Form::kTwin ? 1.0F : 1.5F;
        return Status{};
      });
    };
  };
  EXPECT_EQ(bench::compare_with_twin(wrong, device::Device::cpu(), test::seed()),
            "result 0 [1] is 1.500000, the twin's 1.000000");
}

}  // namespace
}  // namespace dunnock::kernels
