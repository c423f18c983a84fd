#include "dunnock/kernels/rotary.hpp"

#include <cmath>

#include "reference/values.hpp"

namespace dunnock::kernels::reference {
namespace {

/// `direction`: 1 forward, -1 back.
template <class T>
void turn(HeadsView<T> x, device::Span<const float> table, device::Span<const std::int32_t> positions, double direction,
          const RotaryShape& shape) {
  const std::size_t pairs = shape.rotary_dim / 2;
  const bool halves = shape.form == RotaryForm::kHalves;
  for (std::size_t b = 0; b < shape.batch; ++b) {
    for (std::size_t t = 0; t < shape.tokens; ++t) {
      const auto position = static_cast<std::size_t>(positions.device_data()[b * shape.tokens + t]);
      for (std::size_t h = 0; h < shape.heads; ++h) {
        const std::size_t row = b * x.batch_stride + t * x.token_stride + h * x.head_stride;
        for (std::size_t i = 0; i < pairs; ++i) {
          const std::size_t first = row + (halves ? i : 2 * i);
          const std::size_t second = row + (halves ? i + pairs : 2 * i + 1);
          const double cosine = at(table, (position * pairs + i) * 2);
          const double sine = direction * at(table, (position * pairs + i) * 2 + 1);
          const double a = at<T>(x.values, first);
          const double c = at<T>(x.values, second);
          set(x.values, first, a * cosine - c * sine);
          set(x.values, second, a * sine + c * cosine);
        }
      }
    }
  }
}

}  // namespace

void run(const RotaryTable& call, device::Stream& stream) {
  stream.run("rotary table", [=] {
    const std::size_t pairs = call.shape.rotary_dim / 2;
    for (std::size_t position = 0; position < call.shape.positions; ++position) {
      for (std::size_t i = 0; i < pairs; ++i) {
        const double angle =
            double(position) * std::pow(call.shape.base, -2.0 * double(i) / double(call.shape.rotary_dim));
        set(call.table, (position * pairs + i) * 2, std::cos(angle));
        set(call.table, (position * pairs + i) * 2 + 1, std::sin(angle));
      }
    }
    return Status{};
  });
}
template <class T>
void run(const Rotary<T>& call, device::Stream& stream) {
  stream.run("rotary", [=] { return turn<T>(call.x, call.table, call.positions, 1, call.shape), Status{}; });
}
template <class T>
void run(const RotaryBackward<T>& call, device::Stream& stream) {
  stream.run("rotary backward", [=] { return turn<T>(call.dx, call.table, call.positions, -1, call.shape), Status{}; });
}

DUNNOCK_INSTANTIATE_KERNELS(Rotary, RotaryBackward);

}  // namespace dunnock::kernels::reference
