#include "dunnock/kernels/elementwise.hpp"

#include <algorithm>

#include "checks.hpp"
#include "cpu/vector_for.hpp"
#include "elementwise_parts.hpp"

namespace dunnock::kernels {
namespace {

using detail::check_sizes;
using detail::load;
using detail::store;
using detail::vector_for;

/// Parts of the rows that are summed up by themselves: fixed, so that sums do not depend on the number of threads.
constexpr std::size_t kParts = 16;

}  // namespace

template <class T>
void run(const AddScaled<T>& call, device::Stream& stream) {
  check_sizes(call.y.size(), call.a, call.b);
  if (call.y.empty()) return;
  if (ran_on_cuda(call, stream)) return;
  stream.run("add", [=] {
    vector_for(call.y.size(), [=](std::size_t first, std::size_t last) DUNNOCK_INLINED {
      const T* const one = call.a.device_data();
      const T* const other = call.b.device_data();
      T* const to = call.y.device_data();
#pragma omp simd
      for (std::size_t i = first; i < last; ++i) store(to + i, load(one + i) + call.factor * load(other + i));
    });
    return Status{};
  });
}

template <class T>
void run(const AddRelu<T>& call, device::Stream& stream) {
  check_sizes(call.y.size(), call.a, call.b);
  if (call.y.empty()) return;
  if (ran_on_cuda(call, stream)) return;
  stream.run("add and ReLU", [=] {
    vector_for(call.y.size(), [=](std::size_t first, std::size_t last) DUNNOCK_INLINED {
      const T* const one = call.a.device_data();
      const T* const other = call.b.device_data();
      T* const to = call.y.device_data();
#pragma omp simd
      for (std::size_t i = first; i < last; ++i) {
        const float sum = load(one + i) + load(other + i);
        store(to + i, sum < 0 ? 0.0F : sum);
      }
    });
    return Status{};
  });
}

template <class T>
void run(const AddReluBackward<T>& call, device::Stream& stream) {
  check_sizes(call.y.size(), call.a, call.b, call.at);
  if (call.y.empty()) return;
  if (ran_on_cuda(call, stream)) return;
  stream.run("add and ReLU backward", [=] {
    vector_for(call.y.size(), [=](std::size_t first, std::size_t last) DUNNOCK_INLINED {
      const T* const one = call.a.device_data();
      const T* const other = call.b.device_data();
      const T* const result = call.at.device_data();
      T* const to = call.y.device_data();
#pragma omp simd
      for (std::size_t i = first; i < last; ++i) {
        const float sum = load(one + i) + load(other + i);
        store(to + i, load(result + i) > 0 ? sum : 0.0F);
      }
    });
    return Status{};
  });
}

template <class T>
void run(const Scale<T>& call, device::Stream& stream) {
  check_sizes(call.y.size(), call.x);
  if (call.y.empty()) return;
  if (ran_on_cuda(call, stream)) return;
  stream.run("scale", [=] {
    vector_for(call.y.size(), [=](std::size_t first, std::size_t last) DUNNOCK_INLINED {
      const T* const from = call.x.device_data();
      T* const to = call.y.device_data();
#pragma omp simd
      for (std::size_t i = first; i < last; ++i) store(to + i, call.factor * load(from + i));
    });
    return Status{};
  });
}

template <class T>
void run(const Fill<T>& call, device::Stream& stream) {
  if (call.y.empty()) return;
  if (ran_on_cuda(call, stream)) return;
  stream.run("fill", [=] {
    device::parallel_for(call.y.size(), device::kParallelGrain, [=](std::size_t first, std::size_t last) {
      std::fill(call.y.device_data() + first, call.y.device_data() + last, T(call.value));
    });
    return Status{};
  });
}

template <class To, class From>
void run(const Cast<To, From>& call, device::Stream& stream) {
  check_sizes(call.y.size(), call.x);
  if (call.y.empty()) return;
  if (ran_on_cuda(call, stream)) return;
  stream.run("cast", [=] {
    vector_for(call.y.size(), [=](std::size_t first, std::size_t last) DUNNOCK_INLINED {
      const From* const from = call.x.device_data();
      To* const to = call.y.device_data();
#pragma omp simd
      for (std::size_t i = first; i < last; ++i) store(to + i, load(from + i));
    });
    return Status{};
  });
}

template <class T>
void run(const BiasAdd<T>& call, device::Stream& stream) {
  DUNNOCK_CHECK(call.shape.columns > 0, "a row has columns");
  check_sizes(call.shape.rows * call.shape.columns, call.x, call.y);
  check_sizes(call.shape.columns, call.bias);
  if (call.shape.rows == 0) return;
  if (ran_on_cuda(call, stream)) return;
  stream.run("bias add", [=] {
    vector_for(call.shape.rows, detail::rows_grain(call.shape.columns),
               [=](std::size_t first, std::size_t last) DUNNOCK_INLINED {
                 const T* const add = call.bias.device_data();
                 for (std::size_t row = first; row < last; ++row) {
                   const T* const from = call.x.device_data() + row * call.shape.columns;
                   T* const to = call.y.device_data() + row * call.shape.columns;
#pragma omp simd
                   for (std::size_t c = 0; c < call.shape.columns; ++c) store(to + c, load(from + c) + load(add + c));
                 }
               });
    return Status{};
  });
}

std::size_t column_sums_workspace(const RowMatrix& shape, [[maybe_unused]] device::Device device) {
#if DUNNOCK_HAS_CUDA
  if (device.backend() == device::Backend::kCuda)
    return detail::cuda::column_sums_workspace(shape, device.info().processors);
#endif
  return kParts * shape.columns;
}

template <class T>
void run(const ColumnSums<T>& call, device::Stream& stream) {
  DUNNOCK_CHECK(call.shape.columns > 0, "a row has columns");
  check_sizes(call.shape.rows * call.shape.columns, call.x);
  check_sizes(call.shape.columns, call.sums);
  DUNNOCK_CHECK(call.workspace.size() >= column_sums_workspace(call.shape, stream.device()),
                "the workspace is large enough");
  if (ran_on_cuda(call, stream)) return;
  stream.run("column sums", [=] {
    const std::size_t columns = call.shape.columns;
    float* const parts = call.workspace.device_data();  // (parts, columns)
    vector_for(kParts, call.shape.rows * columns < device::kParallelGrain ? kParts : 1,
               [=](std::size_t first, std::size_t last) DUNNOCK_INLINED {
                 for (std::size_t part = first; part < last; ++part) {
                   float* const mine = parts + part * columns;
                   for (std::size_t c = 0; c < columns; ++c) mine[c] = 0;
                   const std::size_t end = call.shape.rows * (part + 1) / kParts;
                   for (std::size_t row = call.shape.rows * part / kParts; row < end; ++row) {
                     const T* const from = call.x.device_data() + row * columns;
#pragma omp simd
                     for (std::size_t c = 0; c < columns; ++c) mine[c] += load(from + c);
                   }
                 }
               });
    for (std::size_t c = 0; c < columns; ++c) {
      float sum = call.adds ? load(call.sums.device_data() + c) : 0;
      for (std::size_t part = 0; part < kParts; ++part) sum += parts[part * columns + c];
      store(call.sums.device_data() + c, sum);
    }
    return Status{};
  });
}

template <class T>
void run(const CopyColumns<T>& call, device::Stream& stream) {
  DUNNOCK_CHECK(call.shape.columns <= std::min(call.shape.from_stride, call.shape.to_stride),
                "a row ends before the next begins");
  if (call.shape.rows == 0 || call.shape.columns == 0) return;
  DUNNOCK_CHECK(call.from.size() >= (call.shape.rows - 1) * call.shape.from_stride + call.shape.columns,
                "spans fit the shape");
  DUNNOCK_CHECK(call.to.size() >= (call.shape.rows - 1) * call.shape.to_stride + call.shape.columns,
                "spans fit the shape");
  if (ran_on_cuda(call, stream)) return;
  stream.run("copy columns", [=] {
    vector_for(call.shape.rows, detail::rows_grain(call.shape.columns),
               [=](std::size_t first, std::size_t last) DUNNOCK_INLINED {
                 for (std::size_t row = first; row < last; ++row) {
                   const T* const source = call.from.device_data() + row * call.shape.from_stride;
                   T* const target = call.to.device_data() + row * call.shape.to_stride;
                   if (call.adds) {
#pragma omp simd
                     for (std::size_t c = 0; c < call.shape.columns; ++c)
                       store(target + c, load(target + c) + load(source + c));
                   } else {
#pragma omp simd
                     for (std::size_t c = 0; c < call.shape.columns; ++c) target[c] = source[c];
                   }
                 }
               });
    return Status{};
  });
}

DUNNOCK_INSTANTIATE_KERNELS(AddScaled, AddRelu, AddReluBackward, Scale, Fill, BiasAdd, ColumnSums, CopyColumns);
DUNNOCK_INSTANTIATE_KERNEL_2(Cast, device::Bf16, float);
DUNNOCK_INSTANTIATE_KERNEL_2(Cast, float, device::Bf16);

}  // namespace dunnock::kernels
