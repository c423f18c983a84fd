// Random numbers on the device, and dropout. Value i is made from word i of the key's numbers (philox.hpp), so results
// do not depend on threads, and a mask need not be stored: backward recomputes it.
//
//   uniform    u = the upper 24 bits of the word * 2^-24                          the same bits on every backend
//   normal     Box-Muller of the words 2 j and 2 j + 1: with a = (upper 24 bits + 1) * 2^-24, b = uniform of the other,
//              values 2 j and 2 j + 1 = sqrt(-2 ln a) * (cos, sin)(2 pi b)        within 1e-5 of it
//   dropout    y = x / keep where the 24 bits are below keep * 2^24, otherwise 0  the same mask on every backend
//
// T is float or Bf16. Spans that do not fit are programmer errors. Nothing allocates. A caller that uses a seed again
// must advance RandomKey::first_block by random_blocks(values). Source: Srivastava et al. 2014 for dropout, scaled in
// training ("inverted").
#pragma once

#include <cstddef>

#include "dunnock/device/memory.hpp"
#include "dunnock/kernels/kernel.hpp"
#include "dunnock/kernels/philox.hpp"

namespace dunnock::kernels {

/// The number of blocks that this many values take.
[[nodiscard]] constexpr std::uint64_t random_blocks(std::size_t values) noexcept { return (values + 3) / 4; }

/// (any)
template <class T>
struct RandomUniform {
  device::Span<T> out{};
  RandomKey key{};
};
DUNNOCK_KERNEL(RandomUniform);

struct NormalShape {
  float mean = 0;
  float deviation = 1;
};
/// (any)
template <class T>
struct RandomNormal {
  device::Span<T> out{};
  NormalShape shape{};
  RandomKey key{};
};
DUNNOCK_KERNEL(RandomNormal);

/// x (any) -> y (as many), may be x. 0 < keep <= 1. `mask`: bit i % 8 of byte i / 8 says that value i was kept; or
/// empty if not needed.
template <class T>
struct Dropout {
  device::Span<const T> x{};
  device::Span<T> y{};
  device::Span<std::uint8_t> mask{};
  float keep = 0;
  RandomKey key{};
};
DUNNOCK_KERNEL(Dropout);
/// dx = dy / keep where the value was kept, otherwise 0: the same call as forward, for the same key.
template <class T>
void dropout_backward(device::Span<const T> dy, device::Span<T> dx, float keep, const RandomKey& key,
                      device::Stream& stream) {
  run(Dropout<T>{.x = dy, .y = dx, .mask = {}, .keep = keep, .key = key}, stream);
}
/// The same from a mask that was stored: ((n + 7) / 8) bytes.
template <class T>
struct ApplyMask {
  device::Span<const T> x{};
  device::Span<const std::uint8_t> mask{};
  device::Span<T> y{};
  float keep = 0;
};
DUNNOCK_KERNEL(ApplyMask);

}  // namespace dunnock::kernels
