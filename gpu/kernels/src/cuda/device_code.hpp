// What the kernels in gpu/kernels/src/cuda/*.cu are written with: CUDA, or the host's emulation of it
// (tests/gpu/kernels/emulator).
//
// A kernel uses of CUDA what is named here and the built-in names (threadIdx, __syncthreads, __shared__, atomicAdd,
// __ldg, float math), so that the same source runs thread by thread on a machine without a GPU: each block's threads as
// fibers, with random turns between barriers (tests/gpu/kernels/emulator). What the emulation cannot show: speed, and
// the memory model between blocks.
//
// Warp operations are made by all 32 lanes; blocks are whole warps.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <type_traits>

#include "driver.hpp"
#include "dunnock/device/bf16.hpp"
#include "dunnock/device/memory.hpp"
#include "dunnock/device/stream.hpp"

#if defined(__CUDACC__)
#include <cuda_runtime.h>

#include "cuda/on_device.hpp"
/// Shared memory of the launch's size, as an array of T, aligned to 128 bytes.
#define DUNNOCK_DYNAMIC_SHARED(T, name)                              \
  extern __shared__ __align__(128) unsigned char shared_of_launch[]; \
  T* const name = reinterpret_cast<T*>(shared_of_launch)
#else
#include "cuda_emulator.hpp"
#endif

namespace dunnock::kernels::detail::device_code {

inline constexpr unsigned kWarp = 32;

struct LaunchShape {
  dim3 blocks;
  dim3 threads;
  std::size_t shared_bytes = 0;
};

// ----- launch -----------------------------------------------------------------------------------------------------

#if defined(__CUDACC__)
/// Launches kernel(args...) on the stream; errors come with the stream, under `name`.
template <class... Parameters, class... Args>
void launch(std::string_view name, void (*kernel)(Parameters...), const LaunchShape& shape, device::Stream& stream,
            Args&&... args) {
  const device::detail::OnDevice here(stream.device().ordinal());
  cudaError_t error = cudaSuccess;
  if (shape.shared_bytes > 48 * 1024)
    error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shape.shared_bytes));
  if (error == cudaSuccess) {
    cudaLaunchConfig_t config{};
    config.gridDim = shape.blocks;
    config.blockDim = shape.threads;
    config.dynamicSmemBytes = shape.shared_bytes;
    config.stream = static_cast<cudaStream_t>(stream.native());
    error = cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...);
  }
  stream.impl().launched(name, error);
}
#else
template <class... Parameters, class... Args>
void launch(std::string_view name, void (*kernel)(Parameters...), const LaunchShape& shape, device::Stream& stream,
            Args&&... args) {
  stream.run(name, [=] {
    return emulator::run_grid(shape.blocks, shape.threads, shape.shared_bytes, [&] { kernel(Parameters(args)...); });
  });
}
#endif

/// Multiprocessors of the stream's device; a CPU's emulated one has 4.
[[nodiscard]] inline unsigned multiprocessors(device::Stream& stream) {
  return stream.device().backend() == device::Backend::kCuda ? stream.device().info().processors : 4;
}
[[nodiscard]] constexpr unsigned blocks_for(std::size_t work, std::size_t a_block) noexcept {
  return static_cast<unsigned>((work + a_block - 1) / a_block);
}

// ----- values -------------------------------------------------------------------------------------------------------

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(device::Bf16 value) { return static_cast<float>(value); }
template <class T>
__device__ T from_float(float value) {
  return T(value);
}

/// N values that are read and written at once; N * sizeof(T) is 4, 8 or 16, and the address a multiple of it.
template <class T, unsigned N>
struct alignas(N * sizeof(T)) Pack {
  T values[N];
};
/// As many T as fill 16 bytes.
template <class T>
inline constexpr unsigned kPack = 16 / sizeof(T);

#if defined(__CUDACC__)
template <class Packed>
__device__ void check_alignment(const void*) {}
#else
/// A GPU stops at an access that is not aligned; a CPU does not.
template <class Packed>
void check_alignment(const void* address) {
  emulator::check_alignment(address, alignof(Packed));
}
#endif

template <unsigned N, class T>
__device__ Pack<T, N> load_pack(const T* from) {
  check_alignment<Pack<T, N>>(from);
  return *reinterpret_cast<const Pack<T, N>*>(from);
}
template <unsigned N, class T>
__device__ void store_pack(T* to, const Pack<T, N>& values) {
  check_alignment<Pack<T, N>>(to);
  *reinterpret_cast<Pack<T, N>*>(to) = values;
}
[[nodiscard]] inline bool is_aligned(const void* address, std::size_t bytes = 16) noexcept {
  return reinterpret_cast<std::uintptr_t>(address) % bytes == 0;
}

// ----- warps and blocks ---------------------------------------------------------------------------------------------

#if defined(__CUDACC__)
template <class T>
__device__ T shuffle(T value, unsigned lane) {
  return __shfl_sync(0xffffffffU, value, static_cast<int>(lane));
}
template <class T>
__device__ T shuffle_xor(T value, unsigned mask) {
  return __shfl_xor_sync(0xffffffffU, value, static_cast<int>(mask));
}
__device__ inline unsigned ballot(bool value) { return __ballot_sync(0xffffffffU, value); }
__device__ inline void sync_warp() { __syncwarp(); }
#else
template <class T>
T shuffle(T value, unsigned lane) {
  return emulator::exchange(value, lane);
}
template <class T>
T shuffle_xor(T value, unsigned mask) {
  return emulator::exchange(value, emulator::lane() ^ mask);
}
inline unsigned ballot(bool value) { return emulator::ballot(value); }
inline void sync_warp() { emulator::warp_barrier(); }
#endif

struct Sum {
  __device__ float operator()(float a, float b) const { return a + b; }
  static constexpr float kNothing = 0;
};
struct Max {
  __device__ float operator()(float a, float b) const { return a > b ? a : b; }  // A NaN in `b` wins, in `a` loses.
  static constexpr float kNothing = -3.4028234e38F;
};

/// Over `kWidth` neighboring lanes (a power of two); all get it.
template <class Operation, unsigned kWidth = kWarp>
__device__ float warp_reduce(float value) {
#pragma unroll
  for (unsigned mask = kWidth / 2; mask > 0; mask /= 2) value = Operation{}(value, shuffle_xor(value, mask));
  return value;
}

/// Over the block of `kThreads` threads (one dimension); all get it. All threads must come here. `shared`: kThreads /
/// 32 floats, which nobody else uses meanwhile; free again when the next barrier is passed.
template <class Operation, unsigned kThreads>
__device__ float block_reduce(float value, float* shared) {
  static_assert(kThreads % kWarp == 0);
  constexpr unsigned kWarps = kThreads / kWarp;
  value = warp_reduce<Operation>(value);
  if constexpr (kWarps == 1) return value;
  __syncthreads();  // All threads have read an earlier result.
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = value;
  __syncthreads();
  float all = shared[0];
#pragma unroll
  for (unsigned w = 1; w < kWarps; ++w) all = Operation{}(all, shared[w]);
  return all;
}

// ----- tensor cores and asynchronous copies (sm_80) -----------------------------------------------------------------

/// d += a * b for a warp: a (16 x 16, rows), b (16 x 8, columns), bf16; d (16 x 8) f32. Of lane l, with g = l / 4 and
/// t = l % 4, two values of bf16 a register, the lower index in the lower half:
///   a[0] = A[g][2t..], a[1] = A[g + 8][2t..], a[2] = A[g][2t + 8..], a[3] = A[g + 8][2t + 8..]
///   b[0] = B[2t..][g], b[1] = B[2t + 8..][g]
///   d[0], d[1] = D[g][2t], D[g][2t + 1];  d[2], d[3] = D[g + 8][2t], D[g + 8][2t + 1]
/// Source: PTX ISA, mma.m16n8k16.
__device__ inline void mma_bf16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
#if defined(__CUDACC__)
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  emulator::mma_m16n8k16(d, a, b);
#endif
}

/// Four 8 x 8 matrices of 2-byte values from shared memory: lane l gives the address of row l % 8 of matrix l / 8 (16
/// bytes, aligned) and gets of matrix m in r[m] the values [l / 4][2 (l % 4)] and the next; transposed: the values
/// [2 (l % 4)][l / 4] and the one below. Source: PTX ISA, ldmatrix.
template <bool kTransposed>
__device__ inline void load_matrices(std::uint32_t (&r)[4], const void* row) {
#if defined(__CUDACC__)
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  }
#else
  emulator::load_matrices(r, row, kTransposed);
#endif
}

/// Copies 16 bytes to shared memory while the thread goes on; zeros where `there` is false (`from` is not read). Both
/// aligned to 16. Done behind copies_commit() and copies_wait(), and a barrier for the other threads.
__device__ inline void copy_async_16(void* to_shared, const void* from, bool there = true) {
#if defined(__CUDACC__)
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(to_shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(address), "l"(from), "r"(there ? 16 : 0)
               : "memory");
#else
  emulator::copy_async_16(to_shared, from, there);
#endif
}
__device__ inline void copies_commit() {
#if defined(__CUDACC__)
  asm volatile("cp.async.commit_group;\n" ::: "memory");
#else
  emulator::copies_commit();
#endif
}
/// Until no more than `kPending` of this thread's committed groups are under way.
template <unsigned kPending>
__device__ inline void copies_wait() {
#if defined(__CUDACC__)
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
#else
  emulator::copies_wait(kPending);
#endif
}

/// Two floats as the two halves of a register of bf16, `low` in the lower.
__device__ inline std::uint32_t pack_bf16(float low, float high) {
#if defined(__CUDACC__)
  std::uint32_t both;  // One instruction of sm_80; rounds as Bf16 does.
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
#else
  return static_cast<std::uint32_t>(device::Bf16(low).bits) | static_cast<std::uint32_t>(device::Bf16(high).bits) << 16;
#endif
}

}  // namespace dunnock::kernels::detail::device_code
