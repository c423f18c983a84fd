// How kernels walk matrices (rows, channels): neighboring threads hold neighboring packs of channels, so that a row's
// bytes are read together; threads further on hold other rows.
//
//   thread t of a block: lane t % lanes, row t / lanes; lanes is a power of two up to 32
//   block (x, y): packs x * lanes .. of slice y of the rows
#pragma once

#include <algorithm>
#include <bit>

#include "cuda/device_code.hpp"
#include "dispatch.hpp"

namespace dunnock::kernels::detail::DUNNOCK_KERNELS {

inline constexpr unsigned kLanesBlock = 256;

struct ChannelLanes {
  unsigned packs = 1;
  unsigned lanes_log2 = 0;

  [[nodiscard]] static ChannelLanes of(std::size_t packs) {
    const auto count = static_cast<unsigned>(packs);
    return {count, std::min(5U, static_cast<unsigned>(std::bit_width(count - 1)))};
  }
  [[nodiscard]] unsigned blocks() const { return device_code::blocks_for(packs, std::size_t{1} << lanes_log2); }
  [[nodiscard]] __device__ unsigned lanes() const { return 1U << lanes_log2; }
  [[nodiscard]] __device__ unsigned rows() const { return kLanesBlock >> lanes_log2; }
  [[nodiscard]] __device__ unsigned row() const { return threadIdx.x >> lanes_log2; }
  /// Beyond the last for threads that have nothing to do.
  [[nodiscard]] __device__ unsigned pack() const { return (blockIdx.x << lanes_log2) + (threadIdx.x & (lanes() - 1)); }
};

/// The slices of `rows` that make the device busy when each has `blocks` blocks: of at least `least` rows, at most 256.
[[nodiscard]] inline unsigned row_slices(std::size_t rows, std::size_t least, unsigned blocks, unsigned processors) {
  const std::size_t wanted = (4 * std::size_t{processors} + blocks - 1) / blocks;
  return static_cast<unsigned>(std::max<std::size_t>(1, std::min({wanted, rows / least, std::size_t{256}})));
}

/// The sums over the block's rows, lane by lane, in a fixed order; the threads of row 0 get them. All threads come
/// here. shared: kWidth * kLanesBlock floats.
template <unsigned kWidth>
__device__ void sum_rows(float (&values)[kWidth], float* shared, const ChannelLanes& lanes) {
  __syncthreads();  // All threads have read earlier sums.
  for (unsigned j = 0; j < kWidth; ++j) shared[j * kLanesBlock + threadIdx.x] = values[j];
  for (unsigned half = lanes.rows() / 2; half > 0; half /= 2) {
    __syncthreads();
    if (lanes.row() < half) {
      for (unsigned j = 0; j < kWidth; ++j)
        shared[j * kLanesBlock + threadIdx.x] += shared[j * kLanesBlock + threadIdx.x + half * lanes.lanes()];
    }
  }
  if (lanes.row() == 0) {
    for (unsigned j = 0; j < kWidth; ++j) values[j] = shared[j * kLanesBlock + threadIdx.x];
  }
}

/// Calls f with the packs' width: 16 bytes where channels and addresses allow.
template <class T, class F>
void with_pack_width(std::size_t channels, bool aligned, const F& f) {
  if (aligned && channels % device_code::kPack<T> == 0) {
    f(std::integral_constant<unsigned, device_code::kPack<T>>{});
  } else {
    f(std::integral_constant<unsigned, 1>{});
  }
}

template <class T, unsigned kWidth>
__device__ void load_floats(const T* from, float (&values)[kWidth]) {
  const auto pack = device_code::load_pack<kWidth>(from);
#pragma unroll
  for (unsigned j = 0; j < kWidth; ++j) values[j] = device_code::to_float(pack.values[j]);
}
template <class T, unsigned kWidth>
__device__ void store_floats(T* to, const float (&values)[kWidth]) {
  device_code::Pack<T, kWidth> pack;
#pragma unroll
  for (unsigned j = 0; j < kWidth; ++j) pack.values[j] = device_code::from_float<T>(values[j]);
  device_code::store_pack(to, pack);
}

/// (threads of 1 dimension) index and count of a loop over `work` items, of any size.
[[nodiscard]] __device__ inline std::size_t first_item() { return std::size_t{blockIdx.x} * kLanesBlock + threadIdx.x; }
[[nodiscard]] __device__ inline std::size_t items_a_round() { return std::size_t{gridDim.x} * kLanesBlock; }
[[nodiscard]] inline device_code::LaunchShape item_blocks(std::size_t items) {
  const std::size_t blocks = (items + kLanesBlock - 1) / kLanesBlock;
  return {dim3(static_cast<unsigned>(std::clamp<std::size_t>(blocks, 1, 1U << 30))), dim3(kLanesBlock)};
}

}  // namespace dunnock::kernels::detail::DUNNOCK_KERNELS
