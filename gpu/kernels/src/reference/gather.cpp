#include "dunnock/kernels/gather.hpp"

#include "reference/values.hpp"

namespace dunnock::kernels::reference {
namespace {

bool is_in(std::int32_t index, std::size_t extent) { return index >= 0 && static_cast<std::size_t>(index) < extent; }
std::size_t x_stride(const GatherShape& shape) { return shape.x_stride == 0 ? shape.columns : shape.x_stride; }
std::size_t y_stride(const GatherShape& shape, std::size_t columns) {
  return shape.y_stride == 0 ? columns : shape.y_stride;
}

}  // namespace

template <class T>
void run(const GatherRows<T>& call, device::Stream& stream) {
  stream.run("gather rows", [=] {
    for (std::size_t i = 0; i < call.index.size(); ++i) {
      const std::int32_t row = call.index.device_data()[i];
      for (std::size_t c = 0; c < call.shape.columns; ++c)
        set(call.y, i * y_stride(call.shape, call.shape.columns) + c,
            is_in(row, call.shape.rows) ? at(call.x, static_cast<std::size_t>(row) * x_stride(call.shape) + c) : 0);
    }
    return Status{};
  });
}

template <class T>
void run(const GatherColumns<T>& call, device::Stream& stream) {
  stream.run("gather columns", [=] {
    for (std::size_t r = 0; r < call.shape.rows; ++r) {
      for (std::size_t i = 0; i < call.index.size(); ++i) {
        const std::int32_t column = call.index.device_data()[i];
        set(call.y, r * y_stride(call.shape, call.index.size()) + i,
            is_in(column, call.shape.columns) ? at(call.x, r * x_stride(call.shape) + static_cast<std::size_t>(column))
                                              : 0);
      }
    }
    return Status{};
  });
}

template <class T>
void run(const ScatterRows<T>& call, device::Stream& stream) {
  stream.run("scatter rows", [=] {
    for (std::size_t i = 0; i < call.index.size(); ++i) {
      const std::int32_t row = call.index.device_data()[i];
      if (!is_in(row, call.shape.rows)) continue;
      for (std::size_t c = 0; c < call.shape.columns; ++c)
        add_or_set(call.x, static_cast<std::size_t>(row) * x_stride(call.shape) + c,
                   at(call.y, i * y_stride(call.shape, call.shape.columns) + c), call.adds);
    }
    return Status{};
  });
}

template <class T>
void run(const ScatterColumns<T>& call, device::Stream& stream) {
  stream.run("scatter columns", [=] {
    for (std::size_t r = 0; r < call.shape.rows; ++r) {
      for (std::size_t i = 0; i < call.index.size(); ++i) {
        const std::int32_t column = call.index.device_data()[i];
        if (!is_in(column, call.shape.columns)) continue;
        add_or_set(call.x, r * x_stride(call.shape) + static_cast<std::size_t>(column),
                   at(call.y, r * y_stride(call.shape, call.index.size()) + i), call.adds);
      }
    }
    return Status{};
  });
}

DUNNOCK_INSTANTIATE_KERNELS(GatherRows, GatherColumns, ScatterRows, ScatterColumns);

}  // namespace dunnock::kernels::reference
