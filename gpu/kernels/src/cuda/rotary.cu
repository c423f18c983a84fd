// Floor: each value that turns read and written once; the table's rows are small, and heads of a token share them.
#include "cuda/device_code.hpp"
#include "dispatch.hpp"
#include "dunnock/kernels/rotary.hpp"

namespace dunnock::kernels::detail::DUNNOCK_KERNELS {
namespace {

using namespace device_code;

constexpr unsigned kBlock = 256;

__global__ void __launch_bounds__(kBlock)
    rotary_table_kernel(float* table, std::size_t entries, unsigned pairs, double log_base) {
  const std::size_t n = std::size_t{blockIdx.x} * kBlock + threadIdx.x;
  if (n >= entries) return;
  const double exponent = -static_cast<double>(n % pairs) / pairs;
  const double angle = static_cast<double>(n / pairs) * exp(exponent * log_base);
  table[2 * n] = static_cast<float>(cos(angle));
  table[2 * n + 1] = static_cast<float>(sin(angle));
}

/// Cosine and sine. A table may be a span that begins at any float; then all threads take the second way.
__device__ inline Pack<float, 2> turn_at(const float* turn) {
  if (reinterpret_cast<std::uintptr_t>(turn) % sizeof(Pack<float, 2>) == 0) return load_pack<2>(turn);
  return {turn[0], turn[1]};
}

/// A thread turns kWidth pairs (halves) or kWidth values, at least a pair (interleaved), of a head of a token.
template <class T, unsigned kWidth, bool kHalves>
__global__ void __launch_bounds__(kBlock)
    rotary_kernel(T* x, std::size_t batch_stride, std::size_t token_stride, std::size_t head_stride,
                  const float* __restrict__ table, const std::int32_t* __restrict__ positions, float direction,
                  std::size_t items, unsigned tokens, unsigned heads, unsigned pairs) {
  constexpr unsigned kPairs = kHalves ? kWidth : (kWidth + 1) / 2;
  const std::size_t n = std::size_t{blockIdx.x} * kBlock + threadIdx.x;
  if (n >= items) return;
  const unsigned parts = pairs / kPairs;
  const unsigned pair = static_cast<unsigned>(n % parts) * kPairs;
  const unsigned h = static_cast<unsigned>(n / parts % heads);
  const std::size_t token = n / parts / heads;  // of the batch
  T* const row = x + token / tokens * batch_stride + token % tokens * token_stride + h * head_stride;
  const float* const turns = table + (static_cast<std::size_t>(positions[token]) * pairs + pair) * 2;
  float cosine[kPairs];
  float sine[kPairs];
#pragma unroll
  for (unsigned i = 0; i < kPairs; ++i) {
    const auto turn = turn_at(turns + 2 * i);
    cosine[i] = turn.values[0];
    sine[i] = direction * turn.values[1];
  }
  if constexpr (kHalves) {
    auto first = load_pack<kWidth>(row + pair);
    auto second = load_pack<kWidth>(row + pairs + pair);
#pragma unroll
    for (unsigned i = 0; i < kWidth; ++i) {
      const float a = to_float(first.values[i]);
      const float b = to_float(second.values[i]);
      first.values[i] = from_float<T>(a * cosine[i] - b * sine[i]);
      second.values[i] = from_float<T>(a * sine[i] + b * cosine[i]);
    }
    store_pack(row + pair, first);
    store_pack(row + pairs + pair, second);
  } else {
    // A pair of two values need not be aligned to both.
    constexpr unsigned kOnce = kWidth == 1 ? 1 : kWidth;
    Pack<T, kOnce> values[kWidth == 1 ? 2 : 1];
#pragma unroll
    for (unsigned i = 0; i < std::size(values); ++i) values[i] = load_pack<kOnce>(row + 2 * pair + i * kOnce);
#pragma unroll
    for (unsigned i = 0; i < kPairs; ++i) {
      T& left = values[2 * i / kOnce].values[2 * i % kOnce];
      T& right = values[(2 * i + 1) / kOnce].values[(2 * i + 1) % kOnce];
      const float a = to_float(left);
      const float b = to_float(right);
      left = from_float<T>(a * cosine[i] - b * sine[i]);
      right = from_float<T>(a * sine[i] + b * cosine[i]);
    }
#pragma unroll
    for (unsigned i = 0; i < std::size(values); ++i) store_pack(row + 2 * pair + i * kOnce, values[i]);
  }
}

template <class T>
void turn(HeadsView<T> x, device::Span<const float> table, device::Span<const std::int32_t> positions, float direction,
          const RotaryShape& shape, device::Stream& stream) {
  const std::size_t pairs = shape.rotary_dim / 2;
  const bool halves = shape.form == RotaryForm::kHalves;
  const auto go = [&](auto width, auto is_halves) {
    constexpr unsigned kPairs = is_halves() ? width() : (width() + 1) / 2;
    const std::size_t items = shape.batch * shape.tokens * shape.heads * (pairs / kPairs);
    launch("rotary", rotary_kernel<T, width(), is_halves()>, {dim3(blocks_for(items, kBlock)), dim3(kBlock)}, stream,
           x.values.device_data(), x.batch_stride, x.token_stride, x.head_stride, table.device_data(),
           positions.device_data(), direction, items, static_cast<unsigned>(shape.tokens),
           static_cast<unsigned>(shape.heads), static_cast<unsigned>(pairs));
  };
  constexpr unsigned kWide = kPack<T>;
  const bool wide = is_aligned(x.values.device_data()) && x.batch_stride % kWide == 0 && x.token_stride % kWide == 0 &&
                    x.head_stride % kWide == 0 && (halves ? pairs : 2 * pairs) % kWide == 0;
  using Wide = std::integral_constant<unsigned, kWide>;
  using Narrow = std::integral_constant<unsigned, 1>;
  if (halves) {
    wide ? go(Wide{}, std::true_type{}) : go(Narrow{}, std::true_type{});
  } else {
    wide ? go(Wide{}, std::false_type{}) : go(Narrow{}, std::false_type{});
  }
}

}  // namespace

void run(const RotaryTable& call, device::Stream& stream) {
  const std::size_t pairs = call.shape.rotary_dim / 2;
  const std::size_t entries = call.shape.positions * pairs;
  launch("rotary table", rotary_table_kernel, {dim3(blocks_for(entries, kBlock)), dim3(kBlock)}, stream,
         call.table.device_data(), entries, static_cast<unsigned>(pairs), std::log(call.shape.base));
}

template <class T>
void run(const Rotary<T>& call, device::Stream& stream) {
  turn<T>(call.x, call.table, call.positions, 1, call.shape, stream);
}
template <class T>
void run(const RotaryBackward<T>& call, device::Stream& stream) {
  turn<T>(call.dx, call.table, call.positions, -1, call.shape, stream);
}

DUNNOCK_INSTANTIATE_KERNELS(Rotary, RotaryBackward);

}  // namespace dunnock::kernels::detail::DUNNOCK_KERNELS
