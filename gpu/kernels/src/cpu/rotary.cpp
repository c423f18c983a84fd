#include "dunnock/kernels/rotary.hpp"

#include <cmath>

#include "checks.hpp"
#include "cpu/vector_math.hpp"
#include "dispatch.hpp"
#include "parallel.hpp"

namespace dunnock::kernels {
namespace {

using detail::check_sizes;
using device::parallel_for;

void check_shape(const RotaryShape& shape) {
  DUNNOCK_CHECK(shape.rotary_dim > 0, "rotary_dim is above 0");
  DUNNOCK_CHECK(shape.rotary_dim % 2 == 0, "rotary_dim is even");
  DUNNOCK_CHECK(shape.rotary_dim <= shape.head_dim, "rotary_dim is at most head_dim");
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

template <class T, class Call>
void turn(HeadsView<T> x, float direction, const Call& call, device::Stream& stream) {
  const RotaryShape& shape = call.shape;
  check_shape(shape);
  check_sizes(shape.batch * shape.tokens, call.positions);
  if (shape.batch * shape.tokens * shape.heads == 0) return;
  const std::size_t end = (shape.batch - 1) * x.batch_stride + (shape.tokens - 1) * x.token_stride +
                          (shape.heads - 1) * x.head_stride + shape.head_dim;
  DUNNOCK_CHECK(end <= x.values.size(), "views are within their memory");
  if (ran_on_cuda(call, stream)) return;
  stream.run("rotary", [=] {
    const std::size_t grain = device::kParallelGrain / (call.shape.heads * call.shape.rotary_dim) + 1;
    device::parallel_for(call.shape.batch * call.shape.tokens, grain, [&](std::size_t first, std::size_t last) {
      turn_tokens<T>(x, call.table.device_data(), call.positions.device_data(), direction, call.shape, first, last);
    });
    return Status{};
  });
}

}  // namespace

void run(const RotaryTable& call, device::Stream& stream) {
  DUNNOCK_CHECK(call.shape.rotary_dim > 0, "rotary_dim is above 0");
  DUNNOCK_CHECK(call.shape.rotary_dim % 2 == 0, "rotary_dim is even");
  const std::size_t pairs = call.shape.rotary_dim / 2;
  check_sizes(call.shape.positions * pairs * 2, call.table);
  if (call.shape.positions == 0) return;
  if (ran_on_cuda(call, stream)) return;
  stream.run("rotary table", [=] {
    device::parallel_for(call.shape.positions, 256 / pairs + 1, [&](std::size_t first, std::size_t last) {
      for (std::size_t i = 0; i < pairs; ++i) {
        const double turn = std::pow(call.shape.base, -2.0 * double(i) / double(call.shape.rotary_dim));
        for (std::size_t position = first; position < last; ++position) {
          float* const to = call.table.device_data() + (position * pairs + i) * 2;
          to[0] = static_cast<float>(std::cos(double(position) * turn));
          to[1] = static_cast<float>(std::sin(double(position) * turn));
        }
      }
    });
    return Status{};
  });
}

template <class T>
void run(const Rotary<T>& call, device::Stream& stream) {
  turn<T>(call.x, 1, call, stream);
}
template <class T>
void run(const RotaryBackward<T>& call, device::Stream& stream) {
  turn<T>(call.dx, -1, call, stream);
}

DUNNOCK_INSTANTIATE_KERNELS(Rotary, RotaryBackward);

}  // namespace dunnock::kernels
