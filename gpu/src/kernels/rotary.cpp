#include "dunnock/gpu/kernels/rotary.hpp"

#include <cmath>

#include "kernels/checks.hpp"
#include "kernels/parallel.hpp"
#include "kernels/rotary_launchers.hpp"
#include "kernels/vector_math.hpp"

namespace dunnock::gpu {
namespace {

using detail::check_sizes;
using detail::parallel_for;

void check_shape(const RotaryShape& shape) {
  DUNNOCK_CHECK(shape.rotary_dim > 0, "something turns");
  DUNNOCK_CHECK(shape.rotary_dim % 2 == 0, "values turn in pairs");
  DUNNOCK_CHECK(shape.rotary_dim <= shape.head_dim, "a head has the dimensions that turn");
}

template <class T>
void turn_tokens(HeadsView<T> x, const float* table, const std::int32_t* positions, float direction,
                 const RotaryShape& shape, std::size_t first, std::size_t last) {
  const std::size_t pairs = shape.rotary_dim / 2;
  for (std::size_t token = first; token < last; ++token) {
    const float* const turns = table + static_cast<std::size_t>(positions[token]) * pairs * 2;
    for (std::size_t h = 0; h < shape.heads; ++h) {
      T* const row = x.values.device_data() + token / shape.tokens * x.batch_stride +
                     token % shape.tokens * x.token_stride + h * x.head_stride;
      if (shape.form == RotaryForm::kHalves) {
#pragma omp simd
        for (std::size_t i = 0; i < pairs; ++i) {
          const float cosine = turns[2 * i];
          const float sine = direction * turns[2 * i + 1];
          const float a = detail::load(row + i);
          const float b = detail::load(row + i + pairs);
          detail::store(row + i, a * cosine - b * sine);
          detail::store(row + i + pairs, a * sine + b * cosine);
        }
      } else {
#pragma omp simd
        for (std::size_t i = 0; i < pairs; ++i) {
          const float cosine = turns[2 * i];
          const float sine = direction * turns[2 * i + 1];
          const float a = detail::load(row + 2 * i);
          const float b = detail::load(row + 2 * i + 1);
          detail::store(row + 2 * i, a * cosine - b * sine);
          detail::store(row + 2 * i + 1, a * sine + b * cosine);
        }
      }
    }
  }
}

template <class T>
void turn(HeadsView<T> x, DeviceSpan<const float> table, DeviceSpan<const std::int32_t> positions, float direction,
          const RotaryShape& shape, Stream& stream) {
  check_shape(shape);
  check_sizes(shape.batch * shape.tokens, positions);
  if (shape.batch * shape.tokens * shape.heads == 0) return;
  const std::size_t end = (shape.batch - 1) * x.batch_stride + (shape.tokens - 1) * x.token_stride +
                          (shape.heads - 1) * x.head_stride + shape.head_dim;
  DUNNOCK_CHECK(end <= x.values.size(), "views lie in their memory");
  DUNNOCK_ON_CUDA(stream, detail::cuda::rotary<T>(x, table, positions, direction, shape, stream));
  stream.run("rotary", [=] {
    const std::size_t grain = detail::kParallelGrain / (shape.heads * shape.rotary_dim) + 1;
    parallel_for(shape.batch * shape.tokens, grain, [&](std::size_t first, std::size_t last) {
      turn_tokens<T>(x, table.device_data(), positions.device_data(), direction, shape, first, last);
    });
    return Status{};
  });
}

}  // namespace

void rotary_table(DeviceSpan<float> table, const RotaryTableShape& shape, Stream& stream) {
  DUNNOCK_CHECK(shape.rotary_dim > 0, "something turns");
  DUNNOCK_CHECK(shape.rotary_dim % 2 == 0, "values turn in pairs");
  const std::size_t pairs = shape.rotary_dim / 2;
  check_sizes(shape.positions * pairs * 2, table);
  if (shape.positions == 0) return;
  DUNNOCK_ON_CUDA(stream, detail::cuda::rotary_table(table, shape, stream));
  stream.run("rotary table", [=] {
    parallel_for(shape.positions, 256 / pairs + 1, [&](std::size_t first, std::size_t last) {
      for (std::size_t i = 0; i < pairs; ++i) {
        const double turn = std::pow(shape.base, -2.0 * double(i) / double(shape.rotary_dim));
        for (std::size_t position = first; position < last; ++position) {
          float* const to = table.device_data() + (position * pairs + i) * 2;
          to[0] = static_cast<float>(std::cos(double(position) * turn));
          to[1] = static_cast<float>(std::sin(double(position) * turn));
        }
      }
    });
    return Status{};
  });
}

template <class T>
void rotary(HeadsView<T> x, DeviceSpan<const float> table, DeviceSpan<const std::int32_t> positions,
            const RotaryShape& shape, Stream& stream) {
  turn<T>(x, table, positions, 1, shape, stream);
}
template <class T>
void rotary_backward(HeadsView<T> dx, DeviceSpan<const float> table, DeviceSpan<const std::int32_t> positions,
                     const RotaryShape& shape, Stream& stream) {
  turn<T>(dx, table, positions, -1, shape, stream);
}

#define DUNNOCK_INSTANTIATE(T)                                                                                       \
  template void rotary<T>(HeadsView<T>, DeviceSpan<const float>, DeviceSpan<const std::int32_t>, const RotaryShape&, \
                          Stream&);                                                                                  \
  template void rotary_backward<T>(HeadsView<T>, DeviceSpan<const float>, DeviceSpan<const std::int32_t>,            \
                                   const RotaryShape&, Stream&);
DUNNOCK_INSTANTIATE(float)
DUNNOCK_INSTANTIATE(Bf16)
#undef DUNNOCK_INSTANTIATE

}  // namespace dunnock::gpu
