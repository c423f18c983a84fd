// What the kernels are measured at: one table for ours and for PyTorch's (peers.py reads it as --list-cases prints it),
// so that both do surely the same.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "peers.hpp"
#include "report.hpp"

namespace dunnock::gpu_check {

/// What a kernel should be bound by: the device's memory, or its arithmetic.
enum class Bound : unsigned char { kMemory, kArithmetic };

struct KernelCase {
  std::string name;
  std::string op;                                   // What peers.py calls it.
  std::string type;                                 // "bf16" or "f32".
  std::vector<std::pair<std::string, long>> sizes;  // By name; what they are is said at each op in kernel_cases.cpp.
  Bound bound = Bound::kMemory;
  double bytes = 0;   // The fewest that must move: each input read once, each output written once.
  double flops = 0;   // Of matrix products and convolutions; others: 0.
  double target = 0;  // Share of the copy bandwidth (bound by memory) or of PyTorch's rate (by arithmetic); 0: none.

  [[nodiscard]] long size(const std::string& which) const;
  /// GB/s or TFLOP/s, by what it is bound by.
  [[nodiscard]] double rate(double ms) const;
  [[nodiscard]] std::string unit() const { return bound == Bound::kMemory ? "GB/s" : "TFLOP/s"; }
};

/// All of them. `quick`: the same operations at sizes for a rehearsal.
[[nodiscard]] std::vector<KernelCase> kernel_cases(bool quick);
/// One line of JSON.
[[nodiscard]] std::string json_of(const KernelCase& one);

/// A row of the report for each case: ours, what bounds it, and the peer's. `ours`: milliseconds by name.
void report_kernels(const std::vector<KernelCase>& cases, const std::map<std::string, double>& ours,
                    const PeerResults& peers, Report& report);

}  // namespace dunnock::gpu_check
