// What a GPU's memory gives at most to reads of random sectors: the ceiling of lookups.
#include <cuda_runtime.h>

#include "benchmarks.hpp"
#include "cuda/device_code.hpp"
#include "keys.hpp"

namespace dunnock::gpu_check {
namespace {

constexpr unsigned kThreads = 256;
constexpr unsigned kReadsAThread = 8;

__global__ void __launch_bounds__(kThreads)
    read_kernel(const unsigned long long* __restrict__ words, unsigned long long sectors, unsigned long long count,
                unsigned long long* sink) {
  const unsigned long long stride = 1ULL * gridDim.x * kThreads;
  unsigned long long sum = 0;
  for (unsigned long long i = 1ULL * blockIdx.x * kThreads + threadIdx.x; i < count; i += stride * kReadsAThread) {
    unsigned long long values[kReadsAThread];
#pragma unroll
    for (unsigned k = 0; k < kReadsAThread; ++k)
      values[k] = __ldg(words + 4 * __umul64hi(mixed(i + k * stride), sectors));
#pragma unroll
    for (unsigned k = 0; k < kReadsAThread; ++k) sum += values[k];
  }
  if (sum == 1) *sink = sum;  // Never, but the compiler does not know.
}

}  // namespace

void read_random_sectors(device::Span<const std::uint64_t> words, std::uint64_t count, device::Stream& stream) {
  const auto* const from = reinterpret_cast<const unsigned long long*>(words.device_data());
  const unsigned blocks = stream.device().info().processors * (2048 / kThreads);
  kernels::detail::device_code::launch("reads of random sectors", read_kernel, {dim3(blocks), dim3(kThreads)}, stream,
                                       from, words.size() / 4, count, const_cast<unsigned long long*>(from));
}

}  // namespace dunnock::gpu_check
