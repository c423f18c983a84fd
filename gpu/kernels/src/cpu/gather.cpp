#include "dunnock/kernels/gather.hpp"

#include <algorithm>
#include <cstring>

#include "dunnock/base/check.hpp"
#include "gather_parts.hpp"
#include "parallel.hpp"

namespace dunnock::kernels {
namespace {

using detail::Move;
using device::parallel_for;

bool is_in(std::int32_t index, std::size_t extent) { return index >= 0 && static_cast<std::size_t>(index) < extent; }

template <class T>
DUNNOCK_VECTOR_CLONES void add_row(T* to, const T* from, std::size_t count) {
#pragma GCC ivdep
  for (std::size_t c = 0; c < count; ++c) to[c] = T(static_cast<float>(to[c]) + static_cast<float>(from[c]));
}

template <class T>
void move_rows(Move move, T* x, device::Span<const std::int32_t> index, T* y, const GatherShape& shape) {
  const auto one = [&](std::size_t i) {
    const std::int32_t row = index.device_data()[i];
    T* const mine = y + i * shape.y_stride;
    if (!is_in(row, shape.rows)) {
      if (move == Move::kGather) std::fill_n(mine, shape.columns, T{});
      return;
    }
    T* const theirs = x + static_cast<std::size_t>(row) * shape.x_stride;
    if (move == Move::kGather) std::memcpy(mine, theirs, shape.columns * sizeof(T));
    if (move == Move::kScatter) std::memcpy(theirs, mine, shape.columns * sizeof(T));
    if (move == Move::kScatterAdd) add_row(theirs, mine, shape.columns);
  };
  if (move == Move::kGather) {
    device::parallel_for(index.size(), device::kParallelGrain / shape.columns + 1,
                         [&](std::size_t first, std::size_t last) {
                           for (std::size_t i = first; i < last; ++i) one(i);
                         });
    return;
  }
  // Each thread has rows of its own of x, so an index that comes twice is no race.
  device::parallel_for(
      shape.rows, device::kParallelGrain / shape.columns + 1, [&](std::size_t first, std::size_t last) {
        for (std::size_t i = 0; i < index.size(); ++i) {
          const std::int32_t row = index.device_data()[i];
          if (row >= 0 && static_cast<std::size_t>(row) >= first && static_cast<std::size_t>(row) < last) one(i);
        }
      });
}

template <class T>
void move_columns(Move move, T* x, device::Span<const std::int32_t> index, T* y, const GatherShape& shape) {
  const std::int32_t* const at = index.device_data();
  device::parallel_for(shape.rows, device::kParallelGrain / std::max<std::size_t>(index.size(), 1) + 1,
                       [&](std::size_t first, std::size_t last) {
                         for (std::size_t row = first; row < last; ++row) {
                           T* const theirs = x + row * shape.x_stride;
                           T* const mine = y + row * shape.y_stride;
                           for (std::size_t i = 0; i < index.size(); ++i) {
                             const bool there = is_in(at[i], shape.columns);
                             if (move == Move::kGather) mine[i] = there ? theirs[at[i]] : T{};
                             if (move == Move::kScatter && there) theirs[at[i]] = mine[i];
                             if (move == Move::kScatterAdd && there)
                               theirs[at[i]] = T(static_cast<float>(theirs[at[i]]) + static_cast<float>(mine[i]));
                           }
                         }
                       });
}

/// A matrix lies in its span.
void check_matrix(std::size_t size, std::size_t rows, std::size_t columns, std::size_t stride) {
  DUNNOCK_CHECK(stride >= columns, "a row ends before the next begins");
  if (rows == 0 || columns == 0) return;
  DUNNOCK_CHECK(size >= columns, "spans fit the shape");
  DUNNOCK_CHECK((size - columns) / stride >= rows - 1 || stride == 0, "spans fit the shape");
}

GatherShape checked(GatherShape shape, std::size_t x_size, std::size_t y_size, std::size_t y_rows,
                    std::size_t y_columns) {
  if (shape.x_stride == 0) shape.x_stride = shape.columns;
  if (shape.y_stride == 0) shape.y_stride = y_columns;
  check_matrix(x_size, shape.rows, shape.columns, shape.x_stride);
  check_matrix(y_size, y_rows, y_columns, shape.y_stride);
  return shape;
}

/// The move between rows, whichever of x and y it writes. `shape` has its strides set in CUDA's call.
template <class T, class Call>
void rows(const char* name, Move move, Call call, device::Stream& stream) {
  call.shape = checked(call.shape, call.x.size(), call.y.size(), call.index.size(), call.shape.columns);
  if (call.index.empty() || call.shape.columns == 0) return;
  if (ran_on_cuda(call, stream)) return;
  T* const x = const_cast<T*>(call.x.device_data());  // The one that is const is only read.
  T* const y = const_cast<T*>(call.y.device_data());
  stream.run(name, [=] {
    move_rows(move, x, call.index, y, call.shape);
    return Status{};
  });
}
template <class T, class Call>
void columns(const char* name, Move move, Call call, device::Stream& stream) {
  call.shape = checked(call.shape, call.x.size(), call.y.size(), call.shape.rows, call.index.size());
  if (call.index.empty() || call.shape.rows == 0) return;
  if (ran_on_cuda(call, stream)) return;
  T* const x = const_cast<T*>(call.x.device_data());
  T* const y = const_cast<T*>(call.y.device_data());
  stream.run(name, [=] {
    move_columns(move, x, call.index, y, call.shape);
    return Status{};
  });
}

}  // namespace

template <class T>
void run(const GatherRows<T>& call, device::Stream& stream) {
  rows<T>("gather rows", Move::kGather, call, stream);
}
template <class T>
void run(const GatherColumns<T>& call, device::Stream& stream) {
  columns<T>("gather columns", Move::kGather, call, stream);
}
template <class T>
void run(const ScatterRows<T>& call, device::Stream& stream) {
  rows<T>("scatter rows", call.adds ? Move::kScatterAdd : Move::kScatter, call, stream);
}
template <class T>
void run(const ScatterColumns<T>& call, device::Stream& stream) {
  columns<T>("scatter columns", call.adds ? Move::kScatterAdd : Move::kScatter, call, stream);
}

DUNNOCK_INSTANTIATE_KERNELS(GatherRows, GatherColumns, ScatterRows, ScatterColumns);

}  // namespace dunnock::kernels
