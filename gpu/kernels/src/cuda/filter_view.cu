// The filter's words on a GPU.
#include <algorithm>

#include "cuda/device_code.hpp"
#include "filter_launchers.hpp"

namespace dunnock::kernels::detail::DUNNOCK_KERNELS {
namespace {

using namespace device_code;

using Pair = ulonglong2;  // 16 bytes, the most that one thread loads at once; FilterView::kWordsAlignment.

/// Lookups: nothing changes, so words may come from any cache.
struct ReadAccess {
  __device__ static std::uint64_t load(const std::uint64_t* word) noexcept {
    return __ldg(reinterpret_cast<const unsigned long long*>(word));
  }
  template <unsigned kWords>
  __device__ static void load_group(const std::uint64_t* words, std::uint64_t (&values)[kWords]) noexcept {
#pragma unroll
    for (unsigned i = 0; i < kWords; i += 2) {
      const Pair two = __ldg(reinterpret_cast<const Pair*>(words + i));
      values[i] = two.x;
      values[i + 1] = two.y;
    }
  }
};

/// Changes: the L2 cache is where all multiprocessors meet. No swap is a fence: what different operations see of each
/// other is in the order of the streams, and among inserts each word stands for itself (filter_words.hpp).
struct SwapAccess {
  __device__ static std::uint64_t load(const std::uint64_t* word) noexcept {
    return __ldcg(reinterpret_cast<const unsigned long long*>(word));
  }
  template <unsigned kWords>
  __device__ static void load_group(const std::uint64_t* words, std::uint64_t (&values)[kWords]) noexcept {
#pragma unroll
    for (unsigned i = 0; i < kWords; i += 2) {  // Each half is whole; the two need not be of one moment.
      const Pair two = __ldcg(reinterpret_cast<const Pair*>(words + i));
      values[i] = two.x;
      values[i + 1] = two.y;
    }
  }
  __device__ static bool swap(std::uint64_t* word, std::uint64_t expected, std::uint64_t desired) noexcept {
    const auto value = [](std::uint64_t bits) { return static_cast<unsigned long long>(bits); };
    return atomicCAS(reinterpret_cast<unsigned long long*>(word), value(expected), value(desired)) == expected;
  }
  __device__ static void fence() noexcept { __threadfence(); }
};

constexpr unsigned kThreads = 256;
/// On a multiprocessor at a time; 64 registers a thread. Left alone, ptxas spills to have more threads.
constexpr unsigned kBlocks = 4;
/// Keys that a thread has on their way at a time. By Little's law 40 G sectors/s at 1 us are 300 loads in flight on
/// each of 132 multiprocessors. Lookups take 95 registers: 512 threads, 2048 keys; in the second step, where half of
/// the homes are marked at 95 % load, a thousand are left.
constexpr unsigned kKeysAThread = 4;

__device__ std::uint64_t load_key(const std::uint64_t* key) noexcept {
  return __ldcs(reinterpret_cast<const unsigned long long*>(key));  // Once; the cache is for words.
}
__device__ Key128 load_key(const Key128* key) noexcept { return {load_key(&key->low), load_key(&key->high)}; }

/// The places and home words of keys `begin`, `begin + stride`, ...: all keys are loaded before the first is hashed,
/// all homes before the first is examined. Past the end the last key is used, whose answer is not stored.
template <class Filter, class Key>
__device__ void load_homes(const Filter& filter, const FilterSeed& seed, const Key* keys, std::size_t begin,
                           std::size_t stride, std::size_t count, Place (&places)[kKeysAThread],
                           std::uint64_t (&homes)[kKeysAThread]) {
  Key mine[kKeysAThread];
#pragma unroll
  for (unsigned k = 0; k < kKeysAThread; ++k) {
    const std::size_t i = begin + k * stride;
    mine[k] = load_key(keys + (i < count ? i : count - 1));
  }
#pragma unroll
  for (unsigned k = 0; k < kKeysAThread; ++k) {
    places[k] = filter.place(hash_of(seed, mine[k]));
    homes[k] = filter.home_of(places[k]);
  }
}

template <class Filter, class Key>
__global__ void __launch_bounds__(kThreads)
    contains_kernel(Filter filter, FilterSeed seed, const Key* __restrict__ keys, std::size_t count,
                    std::uint8_t* __restrict__ answers) {
  const std::size_t stride = static_cast<std::size_t>(gridDim.x) * kThreads;
  const std::size_t first = static_cast<std::size_t>(blockIdx.x) * kThreads + threadIdx.x;
  for (std::size_t begin = first; begin < count; begin += stride * kKeysAThread) {
    Place places[kKeysAThread];
    std::uint64_t homes[kKeysAThread];
    Look looks[kKeysAThread];
    load_homes(filter, seed, keys, begin, stride, count, places, homes);
#pragma unroll
    for (unsigned k = 0; k < kKeysAThread; ++k) looks[k] = filter.look_at_home(places[k], homes[k]);
      // Marked homes: the rest of the group, of two keys at a time (of more the registers would cost threads).
#pragma unroll
    for (unsigned k = 0; k < kKeysAThread; k += 2) {
      std::uint64_t values[2][Filter::kWords];
#pragma unroll
      for (unsigned j = 0; j < 2; ++j) {
        if (looks[k + j] == Look::kGroup) filter.load_home_group(places[k + j], values[j]);
      }
#pragma unroll
      for (unsigned j = 0; j < 2; ++j) {
        if (looks[k + j] == Look::kGroup) looks[k + j] = filter.look_at_group(places[k + j], homes[k + j], values[j]);
      }
    }
    // Marked for the other group too: few.
#pragma unroll
    for (unsigned k = 0; k < kKeysAThread; ++k) {
      if (looks[k] != Look::kOtherGroup) continue;
      std::uint64_t values[Filter::kWords];
      filter.load_other_group(places[k], values);
      looks[k] = filter.look_at_other(places[k], values) ? Look::kYes : Look::kNo;
    }
#pragma unroll
    for (unsigned k = 0; k < kKeysAThread; ++k) {
      const std::size_t i = begin + k * stride;
      if (i < count) answers[i] = looks[k] == Look::kYes ? 1 : 0;
    }
  }
}

// Inserts are three kernels, so that no warp waits for the one lane in which much is to do. Of the keys of a fill to 90
// %, 96 % are done by the first, 0.5 % need the third; from 85 to 90 %, 71 and 4 % (8 words a group; 4: 58 and 9 %).

/// Home or group; the others are left for the kernels below.
template <class Filter, class Key>
__global__ void __launch_bounds__(kThreads, kBlocks)
    insert_near_kernel(Filter filter, FilterSeed seed, const Key* __restrict__ keys, std::size_t count,
                       std::uint8_t* __restrict__ answers) {
  const std::size_t stride = static_cast<std::size_t>(gridDim.x) * kThreads;
  const std::size_t first = static_cast<std::size_t>(blockIdx.x) * kThreads + threadIdx.x;
  for (std::size_t begin = first; begin < count; begin += stride * kKeysAThread) {
    Place places[kKeysAThread];
    std::uint64_t homes[kKeysAThread];
    load_homes(filter, seed, keys, begin, stride, count, places, homes);
#pragma unroll
    for (unsigned k = 0; k < kKeysAThread; ++k) {
      const std::size_t i = begin + k * stride;
      if (i < count) answers[i] = static_cast<std::uint8_t>(filter.insert_near(places[k], homes[k]));
    }
  }
}

/// Calls work(i) for each key of the tile whose answer is `wanted`: the block's threads take them from a dense list in
/// shared memory, so all lanes of a warp have work. All threads of a block of kBlock must call it.
template <unsigned kBlock, unsigned kTile, class Work>
__device__ void for_each_left(const std::uint8_t* answers, std::size_t tile, std::size_t count, Insertion wanted,
                              const Work& work) {
  static_assert(kTile <= 1U << 16);
  __shared__ std::uint16_t list[kTile];
  __shared__ unsigned length;
  if (threadIdx.x == 0) length = 0;
  __syncthreads();
  for (unsigned at = threadIdx.x; at < kTile && tile + at < count; at += kBlock) {
    if (answers[tile + at] == static_cast<std::uint8_t>(wanted))
      list[atomicAdd(&length, 1U)] = static_cast<std::uint16_t>(at);
  }
  __syncthreads();
  for (unsigned next = threadIdx.x; next < length; next += kBlock) work(tile + list[next]);
  __syncthreads();  // The list is made anew for the next tile.
}

/// The other group, or one move.
constexpr unsigned kAsideTile = 4096;
template <class Filter, class Key>
__global__ void __launch_bounds__(kThreads, kBlocks)
    insert_aside_kernel(Filter filter, FilterSeed seed, const Key* __restrict__ keys, std::size_t count,
                        std::uint8_t* answers) {
  const std::size_t step = static_cast<std::size_t>(gridDim.x) * kAsideTile;
  for (std::size_t tile = static_cast<std::size_t>(blockIdx.x) * kAsideTile; tile < count; tile += step) {
    for_each_left<kThreads, kAsideTile>(answers, tile, count, Insertion::kNeedsMove, [&](std::size_t i) {
      answers[i] = static_cast<std::uint8_t>(filter.insert_aside(filter.place(hash_of(seed, load_key(keys + i)))));
    });
  }
}

/// Searches keep their moves in shared memory: 2 KiB a thread, so blocks are one warp.
constexpr unsigned kSearchThreads = 32;
constexpr unsigned kSearchTile = 1024;  // From 85 to 90 % load, 36 (or 93) of these: a warp's lanes or more.
constexpr std::size_t kSearchBytes = std::size_t{kSearchThreads} * kMovesMax * sizeof(Move);

template <class Filter, class Key>
__global__ void __launch_bounds__(kSearchThreads, 3)
    insert_far_kernel(Filter filter, FilterSeed seed, const Key* __restrict__ keys, std::size_t count,
                      std::uint8_t* answers) {
  DUNNOCK_DYNAMIC_SHARED(Move, all_moves);
  Move* const moves = all_moves + threadIdx.x * kMovesMax;
  const std::size_t step = static_cast<std::size_t>(gridDim.x) * kSearchTile;
  for (std::size_t tile = static_cast<std::size_t>(blockIdx.x) * kSearchTile; tile < count; tile += step) {
    for_each_left<kSearchThreads, kSearchTile>(answers, tile, count, Insertion::kNeedsSearch, [&](std::size_t i) {
      answers[i] = static_cast<std::uint8_t>(filter.insert_far(filter.place(hash_of(seed, load_key(keys + i))), moves));
    });
  }
}

template <class Filter, class Key>
__global__ void __launch_bounds__(kThreads, 3)
    erase_kernel(Filter filter, FilterSeed seed, const Key* __restrict__ keys, std::size_t count,
                 std::uint8_t* __restrict__ answers) {
  const std::size_t stride = static_cast<std::size_t>(gridDim.x) * kThreads;
  const std::size_t first = static_cast<std::size_t>(blockIdx.x) * kThreads + threadIdx.x;
  for (std::size_t begin = first; begin < count; begin += stride * kKeysAThread) {
    Place places[kKeysAThread];
    std::uint64_t homes[kKeysAThread];
    load_homes(filter, seed, keys, begin, stride, count, places, homes);
#pragma unroll
    for (unsigned k = 0; k < kKeysAThread; ++k) {
      const std::size_t i = begin + k * stride;
      if (i < count) answers[i] = filter.erase(places[k], homes[k]) ? 1 : 0;
    }
  }
}

template <class Filter>
__global__ void __launch_bounds__(kThreads)
    longest_prefix_kernel(Filter filter, FilterSeed seed, const Key128* __restrict__ hashes,
                          const std::uint32_t* __restrict__ first, std::size_t requests,
                          std::uint32_t* __restrict__ lengths) {
  const std::size_t stride = static_cast<std::size_t>(gridDim.x) * kThreads;
  for (std::size_t r = static_cast<std::size_t>(blockIdx.x) * kThreads + threadIdx.x; r < requests; r += stride) {
    const std::uint32_t begin = first[r];
    lengths[r] = longest_prefix(first[r + 1] - begin, [&](std::uint32_t block) {
      const Place place = filter.place(hash_of(seed, hashes[begin + block]));
      return filter.contains(place, filter.home_of(place));
    });
  }
}

/// For `count` threads' work: as many blocks as the device holds, a few times over, at most.
LaunchShape shape_for(std::size_t count, unsigned threads, device::Stream& stream) {
  const std::size_t needed = (count + threads - 1) / threads;
  const std::size_t most = std::size_t{multiprocessors(stream)} * (2048 / threads) * 4;
  return {dim3(static_cast<unsigned>(std::clamp<std::size_t>(needed, 1, most))), dim3(threads)};
}
/// For tiles of keys, one block each at a time.
LaunchShape shape_for_tiles(std::size_t count, unsigned tile, unsigned threads, device::Stream& stream) {
  return shape_for((count + tile - 1) / tile * threads, threads, stream);
}

FilterSeed seed_of(const FilterShape& shape) noexcept {
  return {{shape.seed[0], shape.seed[1], shape.seed[2], shape.seed[3]}};
}

}  // namespace

template <class Key>
void filter_operation(FilterOperation operation, const FilterShape& shape, std::uint64_t* words,
                      device::Span<const Key> keys, device::Span<std::uint8_t> answers, device::Stream& stream) {
  const FilterSeed seed = seed_of(shape);
  const std::size_t count = keys.size();
  const Key* const in = keys.device_data();
  std::uint8_t* const out = answers.device_data();
  const LaunchShape all = shape_for((count + kKeysAThread - 1) / kKeysAThread, kThreads, stream);
  if (operation == FilterOperation::kContains) {
    return with_words<ReadAccess>(shape, words, [&]<class Filter>(const Filter& filter) {
      launch("filter contains", contains_kernel<Filter, Key>, all, stream, filter, seed, in, count, out);
    });
  }
  with_words<SwapAccess>(shape, words, [&]<class Filter>(const Filter& filter) {
    if (operation == FilterOperation::kErase)
      return launch("filter erase", erase_kernel<Filter, Key>, all, stream, filter, seed, in, count, out);
    launch("filter insert", insert_near_kernel<Filter, Key>, all, stream, filter, seed, in, count, out);
    launch("filter insert, moves", insert_aside_kernel<Filter, Key>,
           shape_for_tiles(count, kAsideTile, kThreads, stream), stream, filter, seed, in, count, out);
    LaunchShape search = shape_for_tiles(count, kSearchTile, kSearchThreads, stream);
    search.shared_bytes = kSearchBytes;
    launch("filter insert, search", insert_far_kernel<Filter, Key>, search, stream, filter, seed, in, count, out);
  });
}

template void filter_operation<std::uint64_t>(FilterOperation, const FilterShape&, std::uint64_t*,
                                              device::Span<const std::uint64_t>, device::Span<std::uint8_t>,
                                              device::Stream&);
template void filter_operation<Key128>(FilterOperation, const FilterShape&, std::uint64_t*, device::Span<const Key128>,
                                       device::Span<std::uint8_t>, device::Stream&);

void filter_longest_prefix(const FilterShape& shape, std::uint64_t* words, device::Span<const Key128> hashes,
                           device::Span<const std::uint32_t> first, device::Span<std::uint32_t> lengths,
                           device::Stream& stream) {
  with_words<ReadAccess>(shape, words, [&]<class Filter>(const Filter& filter) {
    launch("filter longest prefix", longest_prefix_kernel<Filter>, shape_for(lengths.size(), kThreads, stream), stream,
           filter, seed_of(shape), hashes.device_data(), first.device_data(), lengths.size(), lengths.device_data());
  });
}

}  // namespace dunnock::kernels::detail::DUNNOCK_KERNELS
