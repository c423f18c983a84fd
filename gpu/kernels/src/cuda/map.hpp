// Kernels that work value by value: a thread loads its packs of all inputs before it uses one, so that enough bytes are
// in flight (2 x 16 bytes an input and thread, 2048 threads a multiprocessor).
#pragma once

#include <algorithm>
#include <cstddef>

#include "cuda/device_code.hpp"

namespace dunnock::kernels::detail::device_code {

inline constexpr unsigned kMapBlock = 256;
inline constexpr unsigned kMapPacks = 2;  // a thread

/// A body has, for W values from `first` on:
///   template <unsigned W> struct Held;                               what is loaded
///   template <unsigned W> void load(Held<W>&, std::size_t first);
///   template <unsigned W> void finish(const Held<W>&, std::size_t first);
template <unsigned kWidth, class Body>
__global__ void __launch_bounds__(kMapBlock) map_kernel(Body body, std::size_t packs, std::size_t count) {
  const std::size_t mine = std::size_t{blockIdx.x} * (kMapBlock * kMapPacks) + threadIdx.x;
  typename Body::template Held<kWidth> held[kMapPacks];
#pragma unroll
  for (unsigned k = 0; k < kMapPacks; ++k) {
    if (mine + k * kMapBlock < packs) body.template load<kWidth>(held[k], (mine + k * kMapBlock) * kWidth);
  }
#pragma unroll
  for (unsigned k = 0; k < kMapPacks; ++k) {
    if (mine + k * kMapBlock < packs) body.template finish<kWidth>(held[k], (mine + k * kMapBlock) * kWidth);
  }
  if constexpr (kWidth > 1) {  // What no pack holds.
    const std::size_t i = packs * kWidth + threadIdx.x;
    if (blockIdx.x == 0 && i < count) {
      typename Body::template Held<1> one;
      body.template load<1>(one, i);
      body.template finish<1>(one, i);
    }
  }
}

/// Launches body for values 0 .. count - 1 in packs of kWidth, or one by one when they are not `aligned`.
template <unsigned kWidth, class Body>
void launch_map(std::string_view name, const Body& body, std::size_t count, bool aligned, device::Stream& stream) {
  if (count == 0) return;
  if (aligned) {
    const std::size_t packs = count / kWidth;
    launch(name, map_kernel<kWidth, Body>,
           {dim3(std::max(1U, blocks_for(packs, kMapBlock * kMapPacks))), dim3(kMapBlock)}, stream, body, packs, count);
  } else {
    launch(name, map_kernel<1, Body>, {dim3(blocks_for(count, kMapBlock * kMapPacks)), dim3(kMapBlock)}, stream, body,
           count, count);
  }
}

/// Body of kIn inputs and kOut outputs of one type; F: void(const float (&x)[kIn], float (&y)[kOut]).
template <class T, unsigned kIn, unsigned kOut, class F>
struct PlainMap {
  const T* in[kIn];
  T* out[kOut];
  F f;

  template <unsigned W>
  struct Held {
    Pack<T, W> in[kIn];
  };
  template <unsigned W>
  __device__ void load(Held<W>& held, std::size_t first) const {
#pragma unroll
    for (unsigned k = 0; k < kIn; ++k) held.in[k] = load_pack<W>(in[k] + first);
  }
  template <unsigned W>
  __device__ void finish(const Held<W>& held, std::size_t first) const {
    Pack<T, W> packs[kOut];
#pragma unroll
    for (unsigned j = 0; j < W; ++j) {
      float x[kIn];
      float y[kOut];
#pragma unroll
      for (unsigned k = 0; k < kIn; ++k) x[k] = to_float(held.in[k].values[j]);
      f(x, y);
#pragma unroll
      for (unsigned k = 0; k < kOut; ++k) packs[k].values[j] = from_float<T>(y[k]);
    }
#pragma unroll
    for (unsigned k = 0; k < kOut; ++k) store_pack(out[k] + first, packs[k]);
  }
};

template <class... Spans>
[[nodiscard]] bool all_aligned(const Spans&... spans) {
  return (is_aligned(spans.device_data()) && ...);
}

}  // namespace dunnock::kernels::detail::device_code
