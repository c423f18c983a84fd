#include "dunnock/kernels/random.hpp"

#include <cmath>
#include <numbers>

#include "reference/values.hpp"

namespace dunnock::kernels::reference {
namespace {

std::uint32_t word(const RandomKey& key, std::size_t i) { return philox_block(key, i / 4).words[i % 4]; }

}  // namespace

template <class T>
void run(const RandomUniform<T>& call, device::Stream& stream) {
  stream.run("uniform", [=] {
    for (std::size_t i = 0; i < call.out.size(); ++i) call.out.device_data()[i] = T(uniform_of(word(call.key, i)));
    return Status{};
  });
}

template <class T>
void run(const RandomNormal<T>& call, device::Stream& stream) {
  stream.run("normal", [=] {
    for (std::size_t i = 0; i < call.out.size(); ++i) {
      const double a = (static_cast<double>(word(call.key, i / 2 * 2) >> 8) + 1) * 0x1p-24;
      const double angle = 2 * std::numbers::pi * static_cast<double>(uniform_of(word(call.key, i / 2 * 2 + 1)));
      const double z = std::sqrt(-2 * std::log(a)) * (i % 2 == 0 ? std::cos(angle) : std::sin(angle));
      set(call.out, i, double(call.shape.mean) + double(call.shape.deviation) * z);
    }
    return Status{};
  });
}

template <class T>
void run(const Dropout<T>& call, device::Stream& stream) {
  stream.run("dropout", [=] {
    for (std::size_t i = 0; i < call.mask.size(); ++i) call.mask.device_data()[i] = 0;
    for (std::size_t i = 0; i < call.x.size(); ++i) {
      const bool kept = is_kept(word(call.key, i), keep_threshold(call.keep));
      set(call.y, i, kept ? at(call.x, i) / double(call.keep) : 0);
      if (kept && !call.mask.empty()) call.mask.device_data()[i / 8] |= static_cast<std::uint8_t>(1U << i % 8);
    }
    return Status{};
  });
}

template <class T>
void run(const ApplyMask<T>& call, device::Stream& stream) {
  stream.run("apply mask", [=] {
    for (std::size_t i = 0; i < call.x.size(); ++i)
      set(call.y, i, (call.mask.device_data()[i / 8] >> i % 8 & 1) != 0 ? at(call.x, i) / double(call.keep) : 0);
    return Status{};
  });
}

DUNNOCK_INSTANTIATE_KERNELS(RandomUniform, RandomNormal, Dropout, ApplyMask);

}  // namespace dunnock::kernels::reference
