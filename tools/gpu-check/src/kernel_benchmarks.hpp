// The kernels of bench/kernel_cases, measured on the device; the same cases are what peers.py measures PyTorch at.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "benchmarks.hpp"
#include "kernel_case.hpp"
#include "peers.hpp"
#include "report.hpp"

namespace dunnock::gpu_check {

/// The one list, for both sides. `quick`: the same kernels at sizes for a rehearsal.
[[nodiscard]] std::vector<bench::KernelCase> measured_cases(bool quick);

/// A case that PyTorch can do too, as one line of JSON for peers.py: name, op, type, sizes, bytes, flops.
[[nodiscard]] std::string json_of(const bench::KernelCase& one);

/// Milliseconds by name: medians of 11. If the buffers of a case are smaller than twice the L2 cache, enough sets of
/// them are used in turn to fill three times the cache; calls shorter than 0.2 ms are recorded in a graph, so that the
/// host's time does not count. Both as in peers.py. What does not fit (time, memory) is skipped, by name.
[[nodiscard]] std::map<std::string, double> measure_kernels(device::Device device,
                                                            const std::vector<bench::KernelCase>& cases,
                                                            const BenchmarkOptions& options, const Budget& budget,
                                                            Report& report);

/// A row of the report for each case that anybody has measured: ours, what bounds it, and the peer's. `ours`:
/// milliseconds by name. What bounds a product: the best rate of any plain product of its type, ours or the peer's.
void report_kernels(const std::vector<bench::KernelCase>& cases, const std::map<std::string, double>& ours,
                    const PeerResults& peers, Report& report);

}  // namespace dunnock::gpu_check
