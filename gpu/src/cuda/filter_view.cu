// The filter's words on a GPU.
#include <cuda_runtime.h>

#include <algorithm>

#include "driver.hpp"
#include "filter_words.hpp"

namespace dunnock::gpu::detail {
namespace {

/// Lookups: nothing changes, so words may come from any cache.
struct ReadAccess {
  __device__ static std::uint64_t load(const std::uint64_t* word) noexcept {
    return __ldg(reinterpret_cast<const unsigned long long*>(word));
  }
};

/// Changes: the L2 cache is where all multiprocessors meet.
struct SwapAccess {
  __device__ static std::uint64_t load(const std::uint64_t* word) noexcept {
    return __ldcg(reinterpret_cast<const unsigned long long*>(word));
  }
  __device__ static bool swap(std::uint64_t* word, std::uint64_t expected, std::uint64_t desired) noexcept {
    __threadfence();  // A mark that was raised before is seen by whoever sees what it announces.
    return atomicCAS(reinterpret_cast<unsigned long long*>(word), expected, desired) == expected;
  }
};

constexpr unsigned kThreads = 256;
constexpr unsigned kKeysAThread = 4;  // Independent loads on their way before the first word is looked at.

template <class Filter, class Key>
__global__ void __launch_bounds__(kThreads)
    contains_kernel(Filter filter, FilterSeed seed, const Key* __restrict__ keys, std::size_t count,
                    std::uint8_t* __restrict__ answers) {
  const std::size_t stride = static_cast<std::size_t>(gridDim.x) * kThreads;
  const std::size_t first = static_cast<std::size_t>(blockIdx.x) * kThreads + threadIdx.x;
  for (std::size_t begin = first; begin < count; begin += stride * kKeysAThread) {
    Place places[kKeysAThread];
    std::uint64_t homes[kKeysAThread];
#pragma unroll
    for (unsigned k = 0; k < kKeysAThread; ++k) {
      const std::size_t i = begin + k * stride;
      if (i >= count) continue;
      places[k] = filter.place(hash_of(seed, keys[i]));
      homes[k] = filter.home_of(places[k]);
    }
#pragma unroll
    for (unsigned k = 0; k < kKeysAThread; ++k) {
      const std::size_t i = begin + k * stride;
      if (i < count) answers[i] = filter.contains(places[k], homes[k]) ? 1 : 0;
    }
  }
}

/// Home or group; the others are left for the kernel below.
template <class Filter, class Key>
__global__ void __launch_bounds__(kThreads)
    insert_near_kernel(Filter filter, FilterSeed seed, const Key* __restrict__ keys, std::size_t count,
                       std::uint8_t* __restrict__ answers) {
  const std::size_t stride = static_cast<std::size_t>(gridDim.x) * kThreads;
  for (std::size_t i = static_cast<std::size_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += stride)
    answers[i] = static_cast<std::uint8_t>(filter.insert_near(filter.place(hash_of(seed, keys[i]))));
}

/// Searches keep their moves in shared memory: 2 KiB a thread, so blocks are one warp.
constexpr unsigned kSearchThreads = 32;
constexpr std::size_t kSearchBytes = std::size_t{kSearchThreads} * kMovesMax * sizeof(Move);

template <class Filter, class Key>
__global__ void __launch_bounds__(kSearchThreads)
    insert_far_kernel(Filter filter, FilterSeed seed, const Key* __restrict__ keys, std::size_t count,
                      std::uint8_t* __restrict__ answers) {
  extern __shared__ std::uint64_t shared[];
  Move* const moves = reinterpret_cast<Move*>(shared) + threadIdx.x * kMovesMax;
  const std::size_t stride = static_cast<std::size_t>(gridDim.x) * kSearchThreads;
  for (std::size_t i = static_cast<std::size_t>(blockIdx.x) * kSearchThreads + threadIdx.x; i < count; i += stride) {
    if (answers[i] != static_cast<std::uint8_t>(Insertion::kNeedsSearch)) continue;
    answers[i] = static_cast<std::uint8_t>(filter.insert_far(filter.place(hash_of(seed, keys[i])), moves));
  }
}

template <class Filter, class Key>
__global__ void __launch_bounds__(kThreads) erase_kernel(Filter filter, FilterSeed seed, const Key* __restrict__ keys,
                                                         std::size_t count, std::uint8_t* __restrict__ answers) {
  const std::size_t stride = static_cast<std::size_t>(gridDim.x) * kThreads;
  for (std::size_t i = static_cast<std::size_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += stride)
    answers[i] = filter.erase(filter.place(hash_of(seed, keys[i]))) ? 1 : 0;
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

/// Blocks for `count` threads' work: as many as the device holds, a few times over, at most.
unsigned blocks_for(std::size_t count, unsigned threads, const Stream& stream) {
  const std::size_t needed = (count + threads - 1) / threads;
  const std::size_t most = std::size_t{stream.device().info().processors} * (2048 / threads) * 4;
  return static_cast<unsigned>(std::clamp<std::size_t>(needed, 1, most));
}

FilterSeed seed_of(const FilterShape& shape) noexcept {
  return {{shape.seed[0], shape.seed[1], shape.seed[2], shape.seed[3]}};
}

}  // namespace

template <class Key>
void cuda_filter(FilterOperation operation, const FilterShape& shape, std::uint64_t* words, DeviceSpan<const Key> keys,
                 DeviceSpan<std::uint8_t> answers, Stream& stream) {
  const auto queue = static_cast<cudaStream_t>(stream.impl().native());
  const FilterSeed seed = seed_of(shape);
  const std::size_t count = keys.size();
  const Key* const in = keys.device_data();
  std::uint8_t* const out = answers.device_data();
  if (operation == FilterOperation::kContains) {
    with_words<ReadAccess>(shape, words, [&](const auto& filter) {
      const unsigned blocks = blocks_for((count + kKeysAThread - 1) / kKeysAThread, kThreads, stream);
      contains_kernel<<<blocks, kThreads, 0, queue>>>(filter, seed, in, count, out);
    });
    return stream.impl().launched("filter contains");
  }
  with_words<SwapAccess>(shape, words, [&](const auto& filter) {
    const unsigned blocks = blocks_for(count, kThreads, stream);
    if (operation == FilterOperation::kErase) {
      erase_kernel<<<blocks, kThreads, 0, queue>>>(filter, seed, in, count, out);
      return stream.impl().launched("filter erase");
    }
    insert_near_kernel<<<blocks, kThreads, 0, queue>>>(filter, seed, in, count, out);
    stream.impl().launched("filter insert");
    using Filter = std::remove_cvref_t<decltype(filter)>;
    const auto search = insert_far_kernel<Filter, Key>;
    (void)cudaFuncSetAttribute(search, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kSearchBytes));
    search<<<blocks_for(count, kSearchThreads, stream), kSearchThreads, kSearchBytes, queue>>>(filter, seed, in, count,
                                                                                               out);
    stream.impl().launched("filter insert, search");
  });
}

template void cuda_filter<std::uint64_t>(FilterOperation, const FilterShape&, std::uint64_t*,
                                         DeviceSpan<const std::uint64_t>, DeviceSpan<std::uint8_t>, Stream&);
template void cuda_filter<Key128>(FilterOperation, const FilterShape&, std::uint64_t*, DeviceSpan<const Key128>,
                                  DeviceSpan<std::uint8_t>, Stream&);

void cuda_longest_prefix(const FilterShape& shape, std::uint64_t* words, DeviceSpan<const Key128> hashes,
                         DeviceSpan<const std::uint32_t> first, DeviceSpan<std::uint32_t> lengths, Stream& stream) {
  with_words<ReadAccess>(shape, words, [&](const auto& filter) {
    longest_prefix_kernel<<<blocks_for(lengths.size(), kThreads, stream), kThreads, 0,
                            static_cast<cudaStream_t>(stream.impl().native())>>>(
        filter, seed_of(shape), hashes.device_data(), first.device_data(), lengths.size(), lengths.device_data());
  });
  stream.impl().launched("filter longest prefix");
}

}  // namespace dunnock::gpu::detail
