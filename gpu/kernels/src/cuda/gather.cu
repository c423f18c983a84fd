// Floor: what is gathered, read and written once. Rows move in packs of 16 bytes where they lie so; columns are read as
// they come, and a thread has several rows on their way.
#include "cuda/device_code.hpp"
#include "gather_parts.hpp"

namespace dunnock::kernels::detail::DUNNOCK_KERNELS {
namespace {

using namespace device_code;
using detail::Move;

constexpr unsigned kBlock = 256;

template <Move kMove, class T, unsigned kWidth>
__device__ void move_pack(T* theirs, T* mine) {
  if constexpr (kMove == Move::kGather) {
    store_pack(mine, load_pack<kWidth>(theirs));
  } else if constexpr (kMove == Move::kScatter) {
    store_pack(theirs, load_pack<kWidth>(mine));
  } else {
    const auto more = load_pack<kWidth>(mine);
    auto sum = load_pack<kWidth>(theirs);
#pragma unroll
    for (unsigned j = 0; j < kWidth; ++j)
      sum.values[j] = from_float<T>(to_float(sum.values[j]) + to_float(more.values[j]));
    store_pack(theirs, sum);
  }
}

/// A thread moves a pack at a time; neighbors have neighboring packs of a row.
template <Move kMove, class T, unsigned kWidth>
__global__ void __launch_bounds__(kBlock)
    rows_kernel(T* x, const std::int32_t* __restrict__ index, std::size_t count, T* y, GatherShape shape) {
  const std::size_t packs = shape.columns / kWidth;
  const std::size_t all = count * packs;
  for (std::size_t n = std::size_t{blockIdx.x} * kBlock + threadIdx.x; n < all; n += std::size_t{gridDim.x} * kBlock) {
    const std::size_t i = n / packs;
    const std::size_t c = n % packs * kWidth;
    const std::int32_t row = __ldg(index + i);
    T* const mine = y + i * shape.y_stride + c;
    if (row < 0 || static_cast<std::size_t>(row) >= shape.rows) {
      if constexpr (kMove == Move::kGather) store_pack(mine, Pack<T, kWidth>{});
      continue;
    }
    move_pack<kMove, T, kWidth>(x + static_cast<std::size_t>(row) * shape.x_stride + c, mine);
  }
}

constexpr unsigned kRowsAThread = 4;

/// Thread i of the grid's x has index i; its blocks share the rows.
template <Move kMove, class T>
__global__ void __launch_bounds__(kBlock)
    columns_kernel(T* x, const std::int32_t* __restrict__ index, std::size_t count, T* y, GatherShape shape) {
  const std::size_t i = std::size_t{blockIdx.x} * kBlock + threadIdx.x;
  if (i >= count) return;
  const std::int32_t column = index[i];
  const bool there = column >= 0 && static_cast<std::size_t>(column) < shape.columns;
  if (kMove != Move::kGather && !there) return;
  for (std::size_t first = std::size_t{blockIdx.y} * kRowsAThread; first < shape.rows;
       first += std::size_t{gridDim.y} * kRowsAThread) {
    T values[kRowsAThread] = {};
#pragma unroll
    for (unsigned k = 0; k < kRowsAThread; ++k) {
      const std::size_t row = first + k;
      if (row >= shape.rows) continue;
      if constexpr (kMove == Move::kGather) {
        values[k] = there ? x[row * shape.x_stride + static_cast<std::size_t>(column)] : T{};
      } else {
        values[k] = y[row * shape.y_stride + i];
      }
    }
#pragma unroll
    for (unsigned k = 0; k < kRowsAThread; ++k) {
      const std::size_t row = first + k;
      if (row >= shape.rows) continue;
      if constexpr (kMove == Move::kGather) {
        y[row * shape.y_stride + i] = values[k];
      } else {
        T* const to = x + row * shape.x_stride + static_cast<std::size_t>(column);
        *to = kMove == Move::kScatter ? values[k] : from_float<T>(to_float(*to) + to_float(values[k]));
      }
    }
  }
}

/// Calls f with the move as a constant.
template <class F>
void with_move(Move move, const F& f) {
  if (move == Move::kGather) return f(std::integral_constant<Move, Move::kGather>{});
  if (move == Move::kScatter) return f(std::integral_constant<Move, Move::kScatter>{});
  f(std::integral_constant<Move, Move::kScatterAdd>{});
}

template <class T>
void move_rows(Move move, T* x, device::Span<const std::int32_t> index, T* y, const GatherShape& shape,
               device::Stream& stream) {
  constexpr unsigned kWidth = kPack<T>;
  const bool packs = shape.columns % kWidth == 0 && shape.x_stride % kWidth == 0 && shape.y_stride % kWidth == 0 &&
                     is_aligned(x) && is_aligned(y);
  const std::size_t work = index.size() * (shape.columns / (packs ? kWidth : 1));
  const std::size_t blocks =
      std::min<std::size_t>((work + kBlock - 1) / kBlock, std::size_t{multiprocessors(stream)} * 32);
  const LaunchShape launch_shape{dim3(static_cast<unsigned>(blocks)), dim3(kBlock)};
  with_move(move, [&](auto kind) {
    if (packs) {
      launch("move rows", rows_kernel<kind(), T, kWidth>, launch_shape, stream, x, index.device_data(), index.size(), y,
             shape);
    } else {
      launch("move rows", rows_kernel<kind(), T, 1>, launch_shape, stream, x, index.device_data(), index.size(), y,
             shape);
    }
  });
}

template <class T>
void move_columns(Move move, T* x, device::Span<const std::int32_t> index, T* y, const GatherShape& shape,
                  device::Stream& stream) {
  const unsigned across = blocks_for(index.size(), kBlock);
  const std::size_t down = (shape.rows + kRowsAThread - 1) / kRowsAThread;
  const std::size_t wanted = std::max<std::size_t>(1, std::size_t{multiprocessors(stream)} * 32 / across);
  const LaunchShape launch_shape{dim3(across, static_cast<unsigned>(std::min({down, wanted, std::size_t{65535}}))),
                                 dim3(kBlock)};
  with_move(move, [&](auto kind) {
    launch("move columns", columns_kernel<kind(), T>, launch_shape, stream, x, index.device_data(), index.size(), y,
           shape);
  });
}

}  // namespace

template <class T>
void run(const GatherRows<T>& call, device::Stream& stream) {
  move_rows<T>(Move::kGather, const_cast<T*>(call.x.device_data()), call.index, call.y.device_data(), call.shape,
               stream);
}
template <class T>
void run(const GatherColumns<T>& call, device::Stream& stream) {
  move_columns<T>(Move::kGather, const_cast<T*>(call.x.device_data()), call.index, call.y.device_data(), call.shape,
                  stream);
}
template <class T>
void run(const ScatterRows<T>& call, device::Stream& stream) {
  move_rows<T>(call.adds ? Move::kScatterAdd : Move::kScatter, call.x.device_data(), call.index,
               const_cast<T*>(call.y.device_data()), call.shape, stream);
}
template <class T>
void run(const ScatterColumns<T>& call, device::Stream& stream) {
  move_columns<T>(call.adds ? Move::kScatterAdd : Move::kScatter, call.x.device_data(), call.index,
                  const_cast<T*>(call.y.device_data()), call.shape, stream);
}

DUNNOCK_INSTANTIATE_KERNELS(GatherRows, GatherColumns, ScatterRows, ScatterColumns);

}  // namespace dunnock::kernels::detail::DUNNOCK_KERNELS
