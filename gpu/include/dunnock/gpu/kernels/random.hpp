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

#include "dunnock/gpu/kernels/philox.hpp"
#include "dunnock/gpu/memory.hpp"

namespace dunnock::gpu {

/// The number of blocks that this many values take.
[[nodiscard]] constexpr std::uint64_t random_blocks(std::size_t values) noexcept { return (values + 3) / 4; }

/// (any)
template <class T>
void random_uniform(DeviceSpan<T> out, const RandomKey& key, Stream& stream);

struct NormalShape {
  float mean = 0;
  float deviation = 1;
};
/// (any)
template <class T>
void random_normal(DeviceSpan<T> out, const NormalShape& shape, const RandomKey& key, Stream& stream);

/// x (any) -> y (as many), may be x. 0 < keep <= 1. `mask`: bit i % 8 of byte i / 8 says that value i was kept; or
/// empty if not needed.
template <class T>
void dropout(DeviceSpan<const T> x, DeviceSpan<T> y, DeviceSpan<std::uint8_t> mask, float keep, const RandomKey& key,
             Stream& stream);
/// dx = dy / keep where the value was kept, otherwise 0: the same call as forward, for the same key.
template <class T>
void dropout_backward(DeviceSpan<const T> dy, DeviceSpan<T> dx, float keep, const RandomKey& key, Stream& stream) {
  dropout<T>(dy, dx, {}, keep, key, stream);
}
/// The same from a mask that was stored: ((n + 7) / 8) bytes.
template <class T>
void apply_mask(DeviceSpan<const T> x, DeviceSpan<const std::uint8_t> mask, DeviceSpan<T> y, float keep,
                Stream& stream);

/// The twins, written to be read. On CPU streams.
namespace reference {
template <class T>
void random_uniform(DeviceSpan<T> out, const RandomKey& key, Stream& stream);
template <class T>
void random_normal(DeviceSpan<T> out, const NormalShape& shape, const RandomKey& key, Stream& stream);
template <class T>
void dropout(DeviceSpan<const T> x, DeviceSpan<T> y, DeviceSpan<std::uint8_t> mask, float keep, const RandomKey& key,
             Stream& stream);
template <class T>
void apply_mask(DeviceSpan<const T> x, DeviceSpan<const std::uint8_t> mask, DeviceSpan<T> y, float keep,
                Stream& stream);
}  // namespace reference

}  // namespace dunnock::gpu
