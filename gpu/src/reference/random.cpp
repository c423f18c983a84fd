#include "dunnock/gpu/kernels/random.hpp"

#include <cmath>
#include <numbers>

#include "reference/values.hpp"

namespace dunnock::gpu::reference {
namespace {

std::uint32_t word(const RandomKey& key, std::size_t i) { return philox_block(key, i / 4).words[i % 4]; }

}  // namespace

template <class T>
void random_uniform(DeviceSpan<T> out, const RandomKey& key, Stream& stream) {
  stream.run("uniform", [=] {
    for (std::size_t i = 0; i < out.size(); ++i) out.device_data()[i] = T(uniform_of(word(key, i)));
    return Status{};
  });
}

template <class T>
void random_normal(DeviceSpan<T> out, const NormalShape& shape, const RandomKey& key, Stream& stream) {
  stream.run("normal", [=] {
    for (std::size_t i = 0; i < out.size(); ++i) {
      const double a = (static_cast<double>(word(key, i / 2 * 2) >> 8) + 1) * 0x1p-24;
      const double angle = 2 * std::numbers::pi * static_cast<double>(uniform_of(word(key, i / 2 * 2 + 1)));
      const double z = std::sqrt(-2 * std::log(a)) * (i % 2 == 0 ? std::cos(angle) : std::sin(angle));
      set(out, i, double(shape.mean) + double(shape.deviation) * z);
    }
    return Status{};
  });
}

template <class T>
void dropout(DeviceSpan<const T> x, DeviceSpan<T> y, DeviceSpan<std::uint8_t> mask, float keep, const RandomKey& key,
             Stream& stream) {
  stream.run("dropout", [=] {
    for (std::size_t i = 0; i < mask.size(); ++i) mask.device_data()[i] = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const bool kept = is_kept(word(key, i), keep_threshold(keep));
      set(y, i, kept ? at(x, i) / double(keep) : 0);
      if (kept && !mask.empty()) mask.device_data()[i / 8] |= static_cast<std::uint8_t>(1U << i % 8);
    }
    return Status{};
  });
}

template <class T>
void apply_mask(DeviceSpan<const T> x, DeviceSpan<const std::uint8_t> mask, DeviceSpan<T> y, float keep,
                Stream& stream) {
  stream.run("apply mask", [=] {
    for (std::size_t i = 0; i < x.size(); ++i)
      set(y, i, (mask.device_data()[i / 8] >> i % 8 & 1) != 0 ? at(x, i) / double(keep) : 0);
    return Status{};
  });
}

#define DUNNOCK_INSTANTIATE(T)                                                                                    \
  template void random_uniform<T>(DeviceSpan<T>, const RandomKey&, Stream&);                                      \
  template void random_normal<T>(DeviceSpan<T>, const NormalShape&, const RandomKey&, Stream&);                   \
  template void dropout<T>(DeviceSpan<const T>, DeviceSpan<T>, DeviceSpan<std::uint8_t>, float, const RandomKey&, \
                           Stream&);                                                                              \
  template void apply_mask<T>(DeviceSpan<const T>, DeviceSpan<const std::uint8_t>, DeviceSpan<T>, float, Stream&);
DUNNOCK_INSTANTIATE(float)
DUNNOCK_INSTANTIATE(Bf16)
#undef DUNNOCK_INSTANTIATE

}  // namespace dunnock::gpu::reference
