#include "dunnock/gpu/kernels/gather.hpp"

#include "reference/values.hpp"

namespace dunnock::gpu::reference {
namespace {

bool is_in(std::int32_t index, std::size_t extent) { return index >= 0 && static_cast<std::size_t>(index) < extent; }
std::size_t x_stride(const GatherShape& shape) { return shape.x_stride == 0 ? shape.columns : shape.x_stride; }
std::size_t y_stride(const GatherShape& shape, std::size_t columns) {
  return shape.y_stride == 0 ? columns : shape.y_stride;
}

}  // namespace

template <class T>
void gather_rows(DeviceSpan<const T> x, DeviceSpan<const std::int32_t> index, DeviceSpan<T> y, const GatherShape& shape,
                 Stream& stream) {
  stream.run("gather rows", [=] {
    for (std::size_t i = 0; i < index.size(); ++i) {
      const std::int32_t row = index.device_data()[i];
      for (std::size_t c = 0; c < shape.columns; ++c)
        set(y, i * y_stride(shape, shape.columns) + c,
            is_in(row, shape.rows) ? at(x, static_cast<std::size_t>(row) * x_stride(shape) + c) : 0);
    }
    return Status{};
  });
}

template <class T>
void gather_columns(DeviceSpan<const T> x, DeviceSpan<const std::int32_t> index, DeviceSpan<T> y,
                    const GatherShape& shape, Stream& stream) {
  stream.run("gather columns", [=] {
    for (std::size_t r = 0; r < shape.rows; ++r) {
      for (std::size_t i = 0; i < index.size(); ++i) {
        const std::int32_t column = index.device_data()[i];
        set(y, r * y_stride(shape, index.size()) + i,
            is_in(column, shape.columns) ? at(x, r * x_stride(shape) + static_cast<std::size_t>(column)) : 0);
      }
    }
    return Status{};
  });
}

template <class T>
void scatter_rows(DeviceSpan<const T> y, DeviceSpan<const std::int32_t> index, DeviceSpan<T> x, bool adds,
                  const GatherShape& shape, Stream& stream) {
  stream.run("scatter rows", [=] {
    for (std::size_t i = 0; i < index.size(); ++i) {
      const std::int32_t row = index.device_data()[i];
      if (!is_in(row, shape.rows)) continue;
      for (std::size_t c = 0; c < shape.columns; ++c)
        add_or_set(x, static_cast<std::size_t>(row) * x_stride(shape) + c,
                   at(y, i * y_stride(shape, shape.columns) + c), adds);
    }
    return Status{};
  });
}

template <class T>
void scatter_columns(DeviceSpan<const T> y, DeviceSpan<const std::int32_t> index, DeviceSpan<T> x, bool adds,
                     const GatherShape& shape, Stream& stream) {
  stream.run("scatter columns", [=] {
    for (std::size_t r = 0; r < shape.rows; ++r) {
      for (std::size_t i = 0; i < index.size(); ++i) {
        const std::int32_t column = index.device_data()[i];
        if (!is_in(column, shape.columns)) continue;
        add_or_set(x, r * x_stride(shape) + static_cast<std::size_t>(column),
                   at(y, r * y_stride(shape, index.size()) + i), adds);
      }
    }
    return Status{};
  });
}

#define DUNNOCK_INSTANTIATE(T)                                                                                         \
  template void gather_rows<T>(DeviceSpan<const T>, DeviceSpan<const std::int32_t>, DeviceSpan<T>, const GatherShape&, \
                               Stream&);                                                                               \
  template void gather_columns<T>(DeviceSpan<const T>, DeviceSpan<const std::int32_t>, DeviceSpan<T>,                  \
                                  const GatherShape&, Stream&);                                                        \
  template void scatter_rows<T>(DeviceSpan<const T>, DeviceSpan<const std::int32_t>, DeviceSpan<T>, bool,              \
                                const GatherShape&, Stream&);                                                          \
  template void scatter_columns<T>(DeviceSpan<const T>, DeviceSpan<const std::int32_t>, DeviceSpan<T>, bool,           \
                                   const GatherShape&, Stream&);
DUNNOCK_INSTANTIATE(float)
DUNNOCK_INSTANTIATE(Bf16)
#undef DUNNOCK_INSTANTIATE

}  // namespace dunnock::gpu::reference
