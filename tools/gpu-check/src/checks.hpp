// The device beside the CPU's twins, on random inputs. `device` may be the CPU itself: a rehearsal of the same calls.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "budget.hpp"
#include "report.hpp"

namespace dunnock::bench {
struct KernelCase;
}

namespace dunnock::gpu_check {

struct CheckOptions {
  bool small = false;  // Inputs that a memory checker gets through in seconds.
  std::uint64_t seed = 0;
};

/// All of the below.
void run_checks(device::Device device, const CheckOptions& options, const Budget& budget, Report& report);

/// Streams, events, graphs.
void check_runtime(device::Device device, const CheckOptions& options, Report& report);
/// Every operation of a communicator, as the only rank: NCCL on a GPU, threads on the CPU.
void check_collectives(device::Device device, const CheckOptions& options, Report& report);
/// FilterView.
void check_filter_view(device::Device device, const CheckOptions& options, Report& report);
/// The Bloom filter and the set that FilterView is measured beside.
void check_baselines(device::Device device, const CheckOptions& options, Report& report);
/// Every kernel, a check each of all its tiny cases. Those that the budget has no time for are skipped as kAllKernels.
void check_kernels(device::Device device, const CheckOptions& options, const Budget& budget, Report& report);
inline constexpr const char* kAllKernels = "all kernels beside their twins";
/// The first of `cases` whose kernel and twin do not agree, and how; empty: all do.
[[nodiscard]] std::string first_that_differs(const std::vector<bench::KernelCase>& cases, device::Device device,
                                             std::uint64_t seed);

}  // namespace dunnock::gpu_check
