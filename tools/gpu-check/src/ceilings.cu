// What a GPU's memory gives at most to reads of random sectors: the ceiling of lookups.
#include <cuda_runtime.h>

#include "report.hpp"

namespace dunnock::gpu_check {
namespace {

constexpr unsigned kThreads = 256;
constexpr unsigned kReadsAThread = 8;

__device__ unsigned long long mixed(unsigned long long x) {
  x ^= x >> 33;
  x *= 0xff51afd7ed558ccdULL;
  x ^= x >> 33;
  x *= 0xc4ceb9fe1a85ec53ULL;
  return x ^ x >> 33;
}

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

double random_sectors_ms(gpu::Device device, const unsigned long long* words, unsigned long long sectors,
                         unsigned long long count, void* native_stream) {
  const auto stream = static_cast<cudaStream_t>(native_stream);
  cudaEvent_t begin = nullptr;
  cudaEvent_t end = nullptr;
  if (cudaEventCreate(&begin) != cudaSuccess || cudaEventCreate(&end) != cudaSuccess) return -1;
  const unsigned blocks = device.info().processors * (2048 / kThreads);
  float best = -1;
  for (int round = 0; round < 5; ++round) {
    (void)cudaEventRecord(begin, stream);
    read_kernel<<<blocks, kThreads, 0, stream>>>(words, sectors, count, const_cast<unsigned long long*>(words));
    (void)cudaEventRecord(end, stream);
    float ms = 0;
    if (cudaEventSynchronize(end) != cudaSuccess || cudaEventElapsedTime(&ms, begin, end) != cudaSuccess) return -1;
    if (best < 0 || ms < best) best = ms;
  }
  (void)cudaEventDestroy(begin);
  (void)cudaEventDestroy(end);
  return static_cast<double>(best);
}

}  // namespace dunnock::gpu_check
