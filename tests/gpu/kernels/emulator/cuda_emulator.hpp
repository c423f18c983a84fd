// Runs CUDA kernels on the host, thread by thread, to show that their indices, barriers and warp operations are right
// on a machine without a GPU. For the tests only: gpu/kernels/src/cuda/*.cu are compiled by the host's compiler with
// this header in the place of CUDA's (see gpu/kernels/src/cuda/device_code.hpp), into the namespace `emulated`.
//
// The threads of a block are fibers of one thread of the host; blocks run one after the other. A thread runs until it
// comes to a barrier or a warp operation, then another one does, in random order; between two barriers of the block
// the warps go either in step or one after the other, by chance. So what needs a barrier and has none goes wrong.
// Shared memory of the launch's size is filled with NaNs before each block (that of a kernel's own __shared__ arrays
// keeps what the last block left), copies that are asynchronous are done as late as they may be, and threads that wait
// at different barriers for ever are an error. So is a pack that is not aligned.
//
// It cannot show: how fast a kernel is, races between blocks, and what a real memory model allows.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#include "dunnock/base/result.hpp"

// NOLINTBEGIN: CUDA's names
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static thread_local
#define __align__(n) alignas(n)
#define __grid_constant__

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(16) ulonglong2 {
  unsigned long long x, y;
};

namespace dunnock::emulator {

/// Runs all blocks. Errors: InvalidArgument: a launch that CUDA refuses; Device: threads wait for ever, a copy that was
/// not waited for at a block's end.
[[nodiscard]] Status run_grid(dim3 blocks, dim3 threads, std::size_t shared_bytes, const std::function<void()>& kernel);
/// Of the random turns; the tests' seed.
void set_seed(std::uint64_t seed);

struct Builtins {
  dim3 thread, block, block_dim, grid_dim;
};
[[nodiscard]] const Builtins& builtins() noexcept;
[[nodiscard]] unsigned char* shared_memory() noexcept;

void block_barrier();
/// The instructions that all lanes of a warp make together; an error if they come to different ones.
enum class WarpOperation : unsigned char { kBarrier, kShuffle, kBallot, kMma, kLoadMatrices };
void warp_barrier(WarpOperation operation = WarpOperation::kBarrier);
[[nodiscard]] unsigned lane() noexcept;
/// The other lanes' copies of what each brought to this warp operation; 64 bytes each.
[[nodiscard]] const std::byte (*warp_meet(const void* mine, std::size_t bytes, WarpOperation operation))[64];

template <class T>
T exchange(T value, unsigned source_lane) {
  static_assert(sizeof(T) <= 64 && std::is_trivially_copyable_v<T>);
  T theirs;
  std::memcpy(&theirs, warp_meet(&value, sizeof value, WarpOperation::kShuffle)[source_lane % 32], sizeof theirs);
  return theirs;
}
/// Ends the program unless the address is a multiple of `bytes`, as an access of that size must be.
void check_alignment(const void* address, std::size_t bytes);
[[nodiscard]] unsigned ballot(bool value);
void mma_m16n8k16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]);
void load_matrices(std::uint32_t (&r)[4], const void* row, bool transposed);
void copy_async_16(void* to, const void* from, bool there);
void copies_commit();
void copies_wait(unsigned pending);

}  // namespace dunnock::emulator

#define threadIdx (::dunnock::emulator::builtins().thread)
#define blockIdx (::dunnock::emulator::builtins().block)
#define blockDim (::dunnock::emulator::builtins().block_dim)
#define gridDim (::dunnock::emulator::builtins().grid_dim)
#define DUNNOCK_DYNAMIC_SHARED(T, name) T* const name = reinterpret_cast<T*>(::dunnock::emulator::shared_memory())

inline void __syncthreads() { ::dunnock::emulator::block_barrier(); }
inline void __threadfence() {}

template <class T>
T atomicAdd(T* where, T value) {
  const T before = *where;
  *where = before + value;
  return before;
}
template <class T>
T atomicMax(T* where, T value) {
  const T before = *where;
  *where = std::max(before, value);
  return before;
}
template <class T>
T atomicCAS(T* where, T expected, T desired) {
  const T before = *where;
  if (before == expected) *where = desired;
  return before;
}
template <class T>
T __ldg(const T* from) {
  ::dunnock::emulator::check_alignment(from, alignof(T));
  return *from;
}
template <class T>
T __ldcg(const T* from) {
  ::dunnock::emulator::check_alignment(from, alignof(T));
  return *from;
}
template <class T>
T __ldcs(const T* from) {
  ::dunnock::emulator::check_alignment(from, alignof(T));
  return *from;
}
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float erff(float x) { return std::erf(x); }
inline float rsqrtf(float x) { return 1.0F / std::sqrt(x); }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<std::uint64_t>(a) * b >> 32);
}
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __ffs(int x) { return x == 0 ? 0 : std::countr_zero(static_cast<unsigned>(x)) + 1; }
// NOLINTEND
