// What the device layer reaches, beside ceilings of the same run. One file a subject.
#pragma once

#include <cstdint>

#include "budget.hpp"
#include "dunnock/device/memory.hpp"
#include "report.hpp"

namespace dunnock::gpu_check {

/// Small sizes: does it run?
struct BenchmarkOptions {
  bool quick = false;
};

/// Names of figures that others stand beside.
inline constexpr const char* kCopyCeiling = "ceiling: copy within the device";

/// runtime_benchmarks.cpp: copies, graphs.
void benchmark_copies(device::Device device, const BenchmarkOptions& options, Report& report);
void benchmark_graphs(device::Device device, const BenchmarkOptions& options, Report& report);

/// filter_benchmarks.cpp: FilterView, a blocked Bloom filter and a set on the same keys. What does not fit in the
/// budget any more is skipped.
void benchmark_filters(device::Device device, const BenchmarkOptions& options, const Budget& budget, Report& report);

#if DUNNOCK_HAS_CUDA
/// ceilings.cu: reads 8 bytes of each of `count` random 32-byte sectors of `words`, as many at a time as the GPU can
/// hold.
void read_random_sectors(device::Span<const std::uint64_t> words, std::uint64_t count, device::Stream& stream);
#endif

}  // namespace dunnock::gpu_check
