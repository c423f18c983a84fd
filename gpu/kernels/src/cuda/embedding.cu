// Floor: forward reads a row of the table (and of the positions, from L2) and writes one, a token. Backward reads dy
// once and writes the table once; beside that, each block reads all tokens (from L2): 4 bytes * tokens * vocabulary /
// 64 for each 32 packs of columns, so it is made for up to some 10^5 tokens. A token that is most of them is one warp's
// work.
#include <limits>

#include "cuda/map.hpp"
#include "dispatch.hpp"
#include "dunnock/kernels/embedding.hpp"

namespace dunnock::kernels::detail::DUNNOCK_KERNELS {
namespace {

using namespace device_code;

template <class T>
struct Forward {
  const T* table;
  const T* positions;  // or null
  const std::int32_t* tokens;
  T* y;
  std::size_t vocabulary, columns, length;
  bool small;  // 32 bits of division suffice

  template <unsigned W>
  struct Held {
    Pack<T, W> row, position;
    bool inside;
  };
  template <unsigned W>
  __device__ void load(Held<W>& held, std::size_t first) const {
    const std::size_t i = small ? static_cast<unsigned>(first) / static_cast<unsigned>(columns) : first / columns;
    const std::size_t c = first - i * columns;
    const std::int32_t token = tokens[i];
    held.inside = token >= 0 && static_cast<std::size_t>(token) < vocabulary;
    if (held.inside) held.row = load_pack<W>(table + static_cast<std::size_t>(token) * columns + c);
    if (positions != nullptr) held.position = load_pack<W>(positions + i % length * columns + c);
  }
  template <unsigned W>
  __device__ void finish(const Held<W>& held, std::size_t first) const {
    Pack<T, W> out;
#pragma unroll
    for (unsigned j = 0; j < W; ++j) {
      float value = held.inside ? to_float(held.row.values[j]) : std::numeric_limits<float>::quiet_NaN();
      if (positions != nullptr) value += to_float(held.position.values[j]);
      out.values[j] = from_float<T>(value);
    }
    store_pack(y + first, out);
  }
};

constexpr unsigned kBlock = 256;
constexpr unsigned kWarps = kBlock / kWarp;
constexpr unsigned kRowsAWarp = 8;
constexpr unsigned kRows = kWarps * kRowsAWarp;  // of the table, a block

struct Found {
  unsigned token_at;  // which token it is
  unsigned row;       // of the block's
};

/// Block (b, s): rows b * 64 .. of the table, columns s * 32 * W ..; warp w owns each 8th row and sums it in registers.
/// The block looks at 256 tokens at a time and lists those of its rows, in their order.
template <class T, class G, unsigned W>
__global__ void __launch_bounds__(kBlock)
    backward_kernel(const T* __restrict__ dy, const std::int32_t* __restrict__ tokens, std::size_t count, G* dtable,
                    bool adds, std::size_t vocabulary, std::size_t columns) {
  __shared__ Found list[kBlock];
  __shared__ unsigned counts[kWarps];
  const unsigned warp = threadIdx.x / kWarp;
  const unsigned lane = threadIdx.x % kWarp;
  const std::size_t first_row = std::size_t{blockIdx.x} * kRows;
  const std::size_t c = (std::size_t{blockIdx.y} * kWarp + lane) * W;
  float sums[kRowsAWarp][W] = {};
  for (std::size_t at = 0; at < count; at += kBlock) {
    const std::size_t i = at + threadIdx.x;
    const std::int32_t token = i < count ? tokens[i] : -1;
    const std::size_t row = token < 0 ? vocabulary : static_cast<std::size_t>(token);
    const bool mine = row >= first_row && row < first_row + kRows && row < vocabulary;
    const unsigned who = ballot(mine);
    if (lane == 0) counts[warp] = static_cast<unsigned>(__popc(who));
    __syncthreads();
    unsigned before = static_cast<unsigned>(__popc(who & ((1U << lane) - 1U)));
    unsigned found = 0;
#pragma unroll
    for (unsigned w = 0; w < kWarps; ++w) {
      if (w < warp) before += counts[w];
      found += counts[w];
    }
    if (mine) list[before] = {threadIdx.x, static_cast<unsigned>(row - first_row)};
    __syncthreads();
    for (unsigned k = 0; k < found; ++k) {
      const Found one = list[k];
      if (one.row % kWarps != warp || c >= columns) continue;
      const auto some = load_pack<W>(dy + (at + one.token_at) * columns + c);
#pragma unroll
      for (unsigned r = 0; r < kRowsAWarp; ++r) {
        if (r != one.row / kWarps) continue;
#pragma unroll
        for (unsigned j = 0; j < W; ++j) sums[r][j] += to_float(some.values[j]);
      }
    }
  }
#pragma unroll
  for (unsigned r = 0; r < kRowsAWarp; ++r) {
    const std::size_t row = first_row + r * kWarps + warp;
    if (row >= vocabulary || c >= columns) continue;
    Pack<G, W> out;
    if (adds) out = load_pack<W>(dtable + row * columns + c);
#pragma unroll
    for (unsigned j = 0; j < W; ++j)
      out.values[j] = from_float<G>(adds ? to_float(out.values[j]) + sums[r][j] : sums[r][j]);
    store_pack(dtable + row * columns + c, out);
  }
}

}  // namespace

template <class T>
void run(const Embedding<T>& call, device::Stream& stream) {
  constexpr unsigned kWidth = kPack<T>;
  const Forward<T> body{call.table.device_data(),
                        call.positions.empty() ? nullptr : call.positions.device_data(),
                        call.tokens.device_data(),
                        call.y.device_data(),
                        call.shape.vocabulary,
                        call.shape.columns,
                        call.positions.size() / call.shape.columns,
                        call.y.size() < (std::size_t{1} << 32)};
  const bool aligned = call.shape.columns % kWidth == 0 && all_aligned(call.table, call.positions, call.y);
  launch_map<kWidth>("embedding", body, call.y.size(), aligned, stream);
}

template <class T, class G>
void run(const EmbeddingBackward<T, G>& call, device::Stream& stream) {
  constexpr unsigned kWidth = 4;  // 16 bytes of float, 8 of bf16
  const auto go = [&](auto width) {
    constexpr unsigned kW = decltype(width)::value;
    launch("embedding backward", backward_kernel<T, G, kW>,
           {dim3(blocks_for(call.shape.vocabulary, kRows), blocks_for(call.shape.columns, kWarp * kW)), dim3(kBlock)},
           stream, call.dy.device_data(), call.tokens.device_data(), call.tokens.size(), call.dtable.device_data(),
           call.adds, call.shape.vocabulary, call.shape.columns);
  };
  if (call.shape.columns % kWidth == 0 && all_aligned(call.dy, call.dtable)) {
    go(std::integral_constant<unsigned, kWidth>{});
  } else {
    go(std::integral_constant<unsigned, 1>{});
  }
}

DUNNOCK_INSTANTIATE_KERNELS(Embedding);
DUNNOCK_INSTANTIATE_KERNEL_WIDENING(EmbeddingBackward);

}  // namespace dunnock::kernels::detail::DUNNOCK_KERNELS
