// The baselines on a GPU.
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <algorithm>

#include "baselines.hpp"
#include "cuda/device_code.hpp"

namespace dunnock::gpu_check::detail {
namespace {

namespace cg = cooperative_groups;
using kernels::detail::device_code::launch;
using Word = unsigned long long;
using Pair = ulonglong2;

constexpr unsigned kThreads = 256;
constexpr unsigned kKeysAThread = 4;  // On their way at a time.

__global__ void __launch_bounds__(kThreads) make_keys_kernel(Word* keys, std::size_t count, std::uint64_t first) {
  const std::size_t stride = static_cast<std::size_t>(gridDim.x) * kThreads;
  for (std::size_t i = static_cast<std::size_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += stride)
    keys[i] = key_number(first + i);
}

/// Four lanes have four keys, and set the four words of one key after the other.
__global__ void __launch_bounds__(kThreads) bloom_insert_kernel(Word* __restrict__ words, std::uint64_t blocks,
                                                                const Word* __restrict__ keys, std::size_t count) {
  const auto tile = cg::tiled_partition<kSectorWords>(cg::this_thread_block());
  const std::size_t stride = static_cast<std::size_t>(gridDim.x) * kThreads;
  for (std::size_t begin = static_cast<std::size_t>(blockIdx.x) * kThreads; begin < count; begin += stride) {
    const std::size_t i = begin + threadIdx.x;
    const BloomPlace mine = bloom_place(__ldcs(keys + std::min(i, count - 1)), blocks);
#pragma unroll
    for (unsigned lane = 0; lane < kSectorWords; ++lane) {
      const std::uint64_t block = tile.shfl(mine.block, lane);
      const std::uint32_t bits = tile.shfl(mine.bits, lane);
      // Past the end the last key is repeated, which changes nothing.
      (void)atomicOr(words + block * kSectorWords + tile.thread_rank(), bloom_mask(bits, tile.thread_rank()));
    }
  }
}

/// One thread a key: its block is two loads of 16 bytes.
__global__ void __launch_bounds__(kThreads)
    bloom_contains_kernel(const Word* __restrict__ words, std::uint64_t blocks, const Word* __restrict__ keys,
                          std::size_t count, std::uint8_t* __restrict__ answers) {
  const std::size_t stride = static_cast<std::size_t>(gridDim.x) * kThreads;
  const std::size_t first = static_cast<std::size_t>(blockIdx.x) * kThreads + threadIdx.x;
  for (std::size_t begin = first; begin < count; begin += stride * kKeysAThread) {
    Word mine[kKeysAThread];
    std::uint32_t bits[kKeysAThread];
    Pair low[kKeysAThread];
    Pair high[kKeysAThread];
#pragma unroll
    for (unsigned k = 0; k < kKeysAThread; ++k) mine[k] = __ldcs(keys + std::min(begin + k * stride, count - 1));
#pragma unroll
    for (unsigned k = 0; k < kKeysAThread; ++k) {
      const BloomPlace place = bloom_place(mine[k], blocks);
      const Pair* const block = reinterpret_cast<const Pair*>(words + place.block * kSectorWords);
      bits[k] = place.bits;
      low[k] = __ldg(block);
      high[k] = __ldg(block + 1);
    }
#pragma unroll
    for (unsigned k = 0; k < kKeysAThread; ++k) {
      const std::size_t i = begin + k * stride;
      const Word absent = (~low[k].x & bloom_mask(bits[k], 0)) | (~low[k].y & bloom_mask(bits[k], 1)) |
                          (~high[k].x & bloom_mask(bits[k], 2)) | (~high[k].y & bloom_mask(bits[k], 3));
      if (i < count) answers[i] = absent == 0 ? 1 : 0;
    }
  }
}

/// Four lanes have four keys, and look at the windows of one key after the other, each at one slot; the first windows
/// of all four are loaded before the first is looked at.
template <bool kInsert>
__global__ void __launch_bounds__(kThreads)
    set_kernel(Word* slots, std::uint64_t windows, const Word* __restrict__ keys, std::size_t count,
               std::uint8_t* __restrict__ answers) {
  const auto tile = cg::tiled_partition<kSectorWords>(cg::this_thread_block());
  const unsigned rank = tile.thread_rank();
  const auto slot_of = [&](std::uint64_t window) { return slots + window * kSectorWords + rank; };
  const auto load = [](const Word* slot) { return kInsert ? __ldcg(slot) : __ldg(slot); };
  const std::size_t stride = static_cast<std::size_t>(gridDim.x) * kThreads;
  for (std::size_t begin = static_cast<std::size_t>(blockIdx.x) * kThreads; begin < count; begin += stride) {
    const std::size_t i = begin + threadIdx.x;
    const Word mine = __ldcs(keys + std::min(i, count - 1));
    const std::uint64_t home = set_window(mine, windows);
    Word firsts[kSectorWords];
#pragma unroll
    for (unsigned k = 0; k < kSectorWords; ++k) firsts[k] = load(slot_of(tile.shfl(home, k)));
    bool answer = false;
#pragma unroll
    for (unsigned k = 0; k < kSectorWords; ++k) {
      const Word key = tile.shfl(mine, k);
      std::uint64_t window = tile.shfl(home, k);
      Word there = firsts[k];
      if (tile.shfl(static_cast<unsigned>(i >= count), k) != 0) continue;  // The same for all four lanes.
      bool yes = false;
      for (;;) {
        if (tile.any(there == key)) {
          yes = !kInsert;
          break;
        }
        const unsigned empty = tile.ballot(there == kEmptySlot);
        if (empty == 0) {
          window = window + 1 == windows ? 0 : window + 1;
          there = load(slot_of(window));
          continue;
        }
        if constexpr (kInsert) {
          const unsigned taker = static_cast<unsigned>(__ffs(static_cast<int>(empty)) - 1);
          Word old = 0;
          if (rank == taker) old = atomicCAS(slot_of(window), kEmptySlot, key);
          old = tile.shfl(old, taker);
          if (old != kEmptySlot && old != key) {  // Another key has taken it.
            there = load(slot_of(window));
            continue;
          }
          yes = old == kEmptySlot;
        }
        break;
      }
      if (rank == k) answer = yes;
    }
    if (i < count) answers[i] = answer ? 1 : 0;
  }
}

unsigned blocks_for(std::size_t count, const device::Stream& stream) {
  const std::size_t most = std::size_t{stream.device().info().processors} * (2048 / kThreads) * 4;
  return static_cast<unsigned>(std::clamp<std::size_t>((count + kThreads - 1) / kThreads, 1, most));
}
const Word* in(device::Span<const std::uint64_t> span) { return reinterpret_cast<const Word*>(span.device_data()); }
Word* out(device::Span<std::uint64_t> span) { return reinterpret_cast<Word*>(span.device_data()); }

}  // namespace

void make_keys_cuda(device::Span<std::uint64_t> keys, std::uint64_t first, device::Stream& stream) {
  if (keys.empty()) return;
  launch("keys", make_keys_kernel, {dim3(blocks_for(keys.size(), stream)), dim3(kThreads)}, stream, out(keys),
         keys.size(), first);
}
void bloom_insert_cuda(device::Span<std::uint64_t> words, device::Span<const std::uint64_t> keys,
                       device::Stream& stream) {
  if (keys.empty()) return;
  launch("Bloom filter insert", bloom_insert_kernel, {dim3(blocks_for(keys.size(), stream)), dim3(kThreads)}, stream,
         out(words), words.size() / kSectorWords, in(keys), keys.size());
}
void bloom_contains_cuda(device::Span<const std::uint64_t> words, device::Span<const std::uint64_t> keys,
                         device::Span<std::uint8_t> answers, device::Stream& stream) {
  if (keys.empty()) return;
  launch("Bloom filter contains", bloom_contains_kernel,
         {dim3(blocks_for(keys.size() / kKeysAThread, stream)), dim3(kThreads)}, stream, in(words),
         words.size() / kSectorWords, in(keys), keys.size(), answers.device_data());
}
void set_insert_cuda(device::Span<std::uint64_t> slots, device::Span<const std::uint64_t> keys,
                     device::Span<std::uint8_t> inserted, device::Stream& stream) {
  if (keys.empty()) return;
  launch("set insert", set_kernel<true>, {dim3(blocks_for(keys.size(), stream)), dim3(kThreads)}, stream, out(slots),
         slots.size() / kSectorWords, in(keys), keys.size(), inserted.device_data());
}
void set_contains_cuda(device::Span<const std::uint64_t> slots, device::Span<const std::uint64_t> keys,
                       device::Span<std::uint8_t> answers, device::Stream& stream) {
  if (keys.empty()) return;
  launch("set contains", set_kernel<false>, {dim3(blocks_for(keys.size(), stream)), dim3(kThreads)}, stream,
         const_cast<Word*>(in(slots)), slots.size() / kSectorWords, in(keys), keys.size(), answers.device_data());
}

}  // namespace dunnock::gpu_check::detail
