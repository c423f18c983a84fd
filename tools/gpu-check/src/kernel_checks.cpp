// Every kernel of the layer beside its readable twin, at the tiny sizes of bench/kernel_cases.
#include <algorithm>
#include <string>
#include <vector>

#include "checks.hpp"
#include "kernel_case.hpp"

namespace dunnock::gpu_check {
namespace {

using bench::KernelCase;

/// All cases of one kernel: types and shapes.
struct Family {
  std::string kernel;
  std::vector<KernelCase> cases;
};

std::vector<Family> families(bool small) {
  std::vector<KernelCase> all = bench::all_kernel_cases(bench::CaseSize::kTiny);
  // A sanitizer takes long to look through cuBLAS and cuDNN: what is ours alone has its turn before.
  const auto is_ours = [](const KernelCase& one) {
    return !one.kernel.starts_with("matmul") && !one.kernel.starts_with("convolution");
  };
  if (small) std::ranges::stable_partition(all, is_ours);
  std::vector<Family> found;
  for (KernelCase& one : all) {
    auto at = std::ranges::find(found, one.kernel, &Family::kernel);
    if (at == found.end()) at = found.insert(found.end(), Family{one.kernel, {}});
    at->cases.push_back(std::move(one));
  }
  return found;
}

}  // namespace

std::string first_that_differs(const std::vector<KernelCase>& cases, device::Device device, std::uint64_t seed) {
  for (const KernelCase& one : cases) {
    if (const std::string why = bench::compare_with_twin(one, device, seed); !why.empty())
      return one.type + " " + one.shape + ": " + why;
  }
  return {};
}

void check_kernels(device::Device device, const CheckOptions& options, const Budget& budget, Report& report) {
  constexpr double kSecondsKept = 25;  // For the case that runs, and the end.
  const std::vector<Family> all = families(options.small);
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (budget.seconds_left() < kSecondsKept) {
      return report.skip(kAllKernels, std::to_string(all.size() - i) + " of " + std::to_string(all.size()) + ", from " +
                                          all[i].kernel + " on: no time is left");
    }
    report.check(all[i].kernel + " beside its twin, seed " + std::to_string(options.seed),
                 first_that_differs(all[i].cases, device, options.seed));
  }
}

}  // namespace dunnock::gpu_check
