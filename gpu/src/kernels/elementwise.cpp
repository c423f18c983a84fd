#include "dunnock/gpu/kernels/elementwise.hpp"

#include <algorithm>

#include "kernels/checks.hpp"
#include "kernels/elementwise_launchers.hpp"
#include "kernels/vector_for.hpp"

namespace dunnock::gpu {
namespace {

using detail::check_sizes;
using detail::load;
using detail::store;
using detail::vector_for;

/// Parts of the rows that are summed up by themselves: fixed, so that sums do not depend on the number of threads.
constexpr std::size_t kParts = 16;

}  // namespace

template <class T>
void add_scaled(DeviceSpan<const T> a, DeviceSpan<const T> b, float factor, DeviceSpan<T> y, Stream& stream) {
  check_sizes(y.size(), a, b);
  if (y.empty()) return;
  DUNNOCK_ON_CUDA(stream, detail::cuda::add_scaled<T>(a, b, factor, y, stream));
  stream.run("add", [=] {
    vector_for(y.size(), [=](std::size_t first, std::size_t last) DUNNOCK_INLINED {
      const T* const one = a.device_data();
      const T* const other = b.device_data();
      T* const to = y.device_data();
#pragma omp simd
      for (std::size_t i = first; i < last; ++i) store(to + i, load(one + i) + factor * load(other + i));
    });
    return Status{};
  });
}

template <class T>
void add_relu(DeviceSpan<const T> a, DeviceSpan<const T> b, DeviceSpan<T> y, Stream& stream) {
  check_sizes(y.size(), a, b);
  if (y.empty()) return;
  DUNNOCK_ON_CUDA(stream, detail::cuda::add_relu<T>(a, b, y, stream));
  stream.run("add and ReLU", [=] {
    vector_for(y.size(), [=](std::size_t first, std::size_t last) DUNNOCK_INLINED {
      const T* const one = a.device_data();
      const T* const other = b.device_data();
      T* const to = y.device_data();
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
void add_relu_backward(DeviceSpan<const T> a, DeviceSpan<const T> b, DeviceSpan<const T> at, DeviceSpan<T> y,
                       Stream& stream) {
  check_sizes(y.size(), a, b, at);
  if (y.empty()) return;
  DUNNOCK_ON_CUDA(stream, detail::cuda::add_relu_backward<T>(a, b, at, y, stream));
  stream.run("add and ReLU backward", [=] {
    vector_for(y.size(), [=](std::size_t first, std::size_t last) DUNNOCK_INLINED {
      const T* const one = a.device_data();
      const T* const other = b.device_data();
      const T* const result = at.device_data();
      T* const to = y.device_data();
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
void scale(DeviceSpan<const T> x, float factor, DeviceSpan<T> y, Stream& stream) {
  check_sizes(y.size(), x);
  if (y.empty()) return;
  DUNNOCK_ON_CUDA(stream, detail::cuda::scale<T>(x, factor, y, stream));
  stream.run("scale", [=] {
    vector_for(y.size(), [=](std::size_t first, std::size_t last) DUNNOCK_INLINED {
      const T* const from = x.device_data();
      T* const to = y.device_data();
#pragma omp simd
      for (std::size_t i = first; i < last; ++i) store(to + i, factor * load(from + i));
    });
    return Status{};
  });
}

template <class T>
void fill(DeviceSpan<T> y, float value, Stream& stream) {
  if (y.empty()) return;
  DUNNOCK_ON_CUDA(stream, detail::cuda::fill<T>(y, value, stream));
  stream.run("fill", [=] {
    detail::parallel_for(y.size(), detail::kParallelGrain, [=](std::size_t first, std::size_t last) {
      std::fill(y.device_data() + first, y.device_data() + last, T(value));
    });
    return Status{};
  });
}

template <class To, class From>
void cast(DeviceSpan<const From> x, DeviceSpan<To> y, Stream& stream) {
  check_sizes(y.size(), x);
  if (y.empty()) return;
  DUNNOCK_ON_CUDA(stream, (detail::cuda::cast<To, From>(x, y, stream)));
  stream.run("cast", [=] {
    vector_for(y.size(), [=](std::size_t first, std::size_t last) DUNNOCK_INLINED {
      const From* const from = x.device_data();
      To* const to = y.device_data();
#pragma omp simd
      for (std::size_t i = first; i < last; ++i) store(to + i, load(from + i));
    });
    return Status{};
  });
}

template <class T>
void bias_add(DeviceSpan<const T> x, DeviceSpan<const T> bias, DeviceSpan<T> y, const RowMatrix& shape,
              Stream& stream) {
  DUNNOCK_CHECK(shape.columns > 0, "a row has columns");
  check_sizes(shape.rows * shape.columns, x, y);
  check_sizes(shape.columns, bias);
  if (shape.rows == 0) return;
  DUNNOCK_ON_CUDA(stream, detail::cuda::bias_add<T>(x, bias, y, shape, stream));
  stream.run("bias add", [=] {
    vector_for(shape.rows, detail::rows_grain(shape.columns), [=](std::size_t first, std::size_t last) DUNNOCK_INLINED {
      const T* const add = bias.device_data();
      for (std::size_t row = first; row < last; ++row) {
        const T* const from = x.device_data() + row * shape.columns;
        T* const to = y.device_data() + row * shape.columns;
#pragma omp simd
        for (std::size_t c = 0; c < shape.columns; ++c) store(to + c, load(from + c) + load(add + c));
      }
    });
    return Status{};
  });
}

std::size_t column_sums_workspace(const RowMatrix& shape, [[maybe_unused]] Device device) {
#if DUNNOCK_HAS_CUDA
  if (device.backend() == Backend::kCuda) return detail::cuda::column_sums_workspace(shape, device.info().processors);
#endif
  return kParts * shape.columns;
}

template <class T>
void column_sums(DeviceSpan<const T> x, DeviceSpan<T> sums, bool adds, const RowMatrix& shape,
                 DeviceSpan<float> workspace, Stream& stream) {
  DUNNOCK_CHECK(shape.columns > 0, "a row has columns");
  check_sizes(shape.rows * shape.columns, x);
  check_sizes(shape.columns, sums);
  DUNNOCK_CHECK(workspace.size() >= column_sums_workspace(shape, stream.device()), "the workspace is large enough");
  DUNNOCK_ON_CUDA(stream, detail::cuda::column_sums<T>(x, sums, adds, shape, workspace, stream));
  stream.run("column sums", [=] {
    const std::size_t columns = shape.columns;
    float* const parts = workspace.device_data();  // (parts, columns)
    vector_for(kParts, shape.rows * columns < detail::kParallelGrain ? kParts : 1,
               [=](std::size_t first, std::size_t last) DUNNOCK_INLINED {
                 for (std::size_t part = first; part < last; ++part) {
                   float* const mine = parts + part * columns;
                   for (std::size_t c = 0; c < columns; ++c) mine[c] = 0;
                   const std::size_t end = shape.rows * (part + 1) / kParts;
                   for (std::size_t row = shape.rows * part / kParts; row < end; ++row) {
                     const T* const from = x.device_data() + row * columns;
#pragma omp simd
                     for (std::size_t c = 0; c < columns; ++c) mine[c] += load(from + c);
                   }
                 }
               });
    for (std::size_t c = 0; c < columns; ++c) {
      float sum = adds ? load(sums.device_data() + c) : 0;
      for (std::size_t part = 0; part < kParts; ++part) sum += parts[part * columns + c];
      store(sums.device_data() + c, sum);
    }
    return Status{};
  });
}

template <class T>
void copy_columns(DeviceSpan<const T> from, DeviceSpan<T> to, bool adds, const ColumnsShape& shape, Stream& stream) {
  DUNNOCK_CHECK(shape.columns <= std::min(shape.from_stride, shape.to_stride), "a row ends before the next begins");
  if (shape.rows == 0 || shape.columns == 0) return;
  DUNNOCK_CHECK(from.size() >= (shape.rows - 1) * shape.from_stride + shape.columns, "spans fit the shape");
  DUNNOCK_CHECK(to.size() >= (shape.rows - 1) * shape.to_stride + shape.columns, "spans fit the shape");
  DUNNOCK_ON_CUDA(stream, detail::cuda::copy_columns<T>(from, to, adds, shape, stream));
  stream.run("copy columns", [=] {
    vector_for(shape.rows, detail::rows_grain(shape.columns), [=](std::size_t first, std::size_t last) DUNNOCK_INLINED {
      for (std::size_t row = first; row < last; ++row) {
        const T* const source = from.device_data() + row * shape.from_stride;
        T* const target = to.device_data() + row * shape.to_stride;
        if (adds) {
#pragma omp simd
          for (std::size_t c = 0; c < shape.columns; ++c) store(target + c, load(target + c) + load(source + c));
        } else {
#pragma omp simd
          for (std::size_t c = 0; c < shape.columns; ++c) target[c] = source[c];
        }
      }
    });
    return Status{};
  });
}

DUNNOCK_INSTANTIATE_ELEMENTWISE(float, Bf16)
DUNNOCK_INSTANTIATE_ELEMENTWISE(Bf16, float)

}  // namespace dunnock::gpu
