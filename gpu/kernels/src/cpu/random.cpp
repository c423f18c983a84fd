#include "dunnock/kernels/random.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "checks.hpp"
#include "dispatch.hpp"
#include "parallel.hpp"

namespace dunnock::kernels {
namespace {

using device::parallel_for;

/// Blocks that are made at a time, a lane of a vector each.
constexpr std::size_t kLanes = 16;
constexpr std::size_t kWords = 4 * kLanes;

/// words[i] = word i of the numbers from block `first` on, for i < kWords: philox_block() for kLanes blocks at once. In
/// 64-bit lanes, where a product needs no shuffles (0.77 ns a word instead of 2.2).
[[gnu::always_inline]] inline void make_words(const RandomKey& key, std::uint64_t first, std::uint32_t* words) {
  constexpr std::uint64_t kLow = 0xffffffffU;
  std::uint64_t state[4][kLanes];  // each below 2^32
  for (std::size_t lane = 0; lane < kLanes; ++lane) {
    const std::uint64_t block = key.first_block + first + lane;
    state[0][lane] = block & kLow;
    state[1][lane] = block >> 32;
    state[2][lane] = 0;
    state[3][lane] = 0;
  }
  std::uint64_t low = key.seed & kLow;
  std::uint64_t high = key.seed >> 32;
  for (int round = 0; round < 10; ++round) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      const std::uint64_t a = std::uint64_t{0xD2511F53U} * (state[0][lane] & kLow);
      const std::uint64_t b = std::uint64_t{0xCD9E8D57U} * (state[2][lane] & kLow);
      state[0][lane] = b >> 32 ^ state[1][lane] ^ low;
      state[1][lane] = b & kLow;
      state[2][lane] = a >> 32 ^ state[3][lane] ^ high;
      state[3][lane] = a & kLow;
    }
    low = (low + 0x9E3779B9U) & kLow;
    high = (high + 0xBB67AE85U) & kLow;
  }
  for (std::size_t lane = 0; lane < kLanes; ++lane) {
    for (std::size_t w = 0; w < 4; ++w) words[lane * 4 + w] = static_cast<std::uint32_t>(state[w][lane]);
  }
}

template <class T>
DUNNOCK_VECTOR_CLONES void make_uniform(T* out, const RandomKey& key, std::size_t first, std::size_t last) {
  std::uint32_t words[kWords];
  for (std::size_t at = first; at < last; at += kWords) {
    make_words(key, at / 4, words);
    const std::size_t many = std::min(kWords, last - at);
    for (std::size_t i = 0; i < many; ++i) out[at + i] = T(uniform_of(words[i]));
  }
}

template <class T>
void make_normal(T* out, const NormalShape& shape, const RandomKey& key, std::size_t first, std::size_t last) {
  std::uint32_t words[kWords];
  for (std::size_t at = first; at < last; at += kWords) {
    make_words(key, at / 4, words);
    const std::size_t many = std::min(kWords, last - at);
    for (std::size_t i = 0; i < many; i += 2) {
      const float a = (static_cast<float>(words[i] >> 8) + 1) * 0x1p-24F;
      const float angle = 2 * std::numbers::pi_v<float> * uniform_of(words[i + 1]);
      const float radius = shape.deviation * std::sqrt(-2 * std::log(a));
      out[at + i] = T(shape.mean + radius * std::cos(angle));
      if (i + 1 < many) out[at + i + 1] = T(shape.mean + radius * std::sin(angle));
    }
  }
}

template <class T>
DUNNOCK_VECTOR_CLONES void drop(const T* x, T* y, std::uint8_t* mask, float keep, const RandomKey& key,
                                std::size_t first, std::size_t last) {
  const std::uint32_t threshold = keep_threshold(keep);
  const float scale = 1 / keep;
  std::uint32_t words[kWords];
  for (std::size_t at = first; at < last; at += kWords) {
    make_words(key, at / 4, words);
    const std::size_t many = std::min(kWords, last - at);
#pragma GCC ivdep
    for (std::size_t i = 0; i < many; ++i) {
      const float value = static_cast<float>(x[at + i]) * scale;
      y[at + i] = T(is_kept(words[i], threshold) ? value : 0.0F);
    }
    if (mask == nullptr) continue;
    for (std::size_t byte = 0; byte < (many + 7) / 8; ++byte) {
      unsigned bits = 0;
      for (std::size_t i = byte * 8; i < std::min(many, byte * 8 + 8); ++i)
        bits |= is_kept(words[i], threshold) ? 1U << i % 8 : 0U;
      mask[at / 8 + byte] = static_cast<std::uint8_t>(bits);
    }
  }
}

template <class T>
DUNNOCK_VECTOR_CLONES void keep_masked(const T* x, const std::uint8_t* mask, T* y, float keep, std::size_t first,
                                       std::size_t last) {
  const float scale = 1 / keep;
#pragma GCC ivdep
  for (std::size_t i = first; i < last; ++i) {
    const float value = static_cast<float>(x[i]) * scale;
    y[i] = T((mask[i / 8] >> i % 8 & 1) != 0 ? value : 0.0F);
  }
}

/// Parts that begin where make_words() may.
template <class Body>
void for_values(std::size_t count, const Body& body) {
  const std::size_t groups = (count + kWords - 1) / kWords;
  device::parallel_for(groups, device::kParallelGrain / kWords, [&](std::size_t first, std::size_t last) {
    body(first * kWords, std::min(count, last * kWords));
  });
}

void check_keep(float keep) {
  DUNNOCK_CHECK(keep > 0, "the kept share is above 0");
  DUNNOCK_CHECK(keep <= 1, "the kept share is at most 1");
}

}  // namespace

template <class T>
void run(const RandomUniform<T>& call, device::Stream& stream) {
  if (call.out.empty()) return;
  if (ran_on_cuda(call, stream)) return;
  stream.run("uniform", [=] {
    for_values(call.out.size(), [&](std::size_t first, std::size_t last) {
      make_uniform(call.out.device_data(), call.key, first, last);
    });
    return Status{};
  });
}

template <class T>
void run(const RandomNormal<T>& call, device::Stream& stream) {
  if (call.out.empty()) return;
  if (ran_on_cuda(call, stream)) return;
  stream.run("normal", [=] {
    for_values(call.out.size(), [&](std::size_t first, std::size_t last) {
      make_normal(call.out.device_data(), call.shape, call.key, first, last);
    });
    return Status{};
  });
}

template <class T>
void run(const Dropout<T>& call, device::Stream& stream) {
  detail::check_sizes(call.x.size(), call.y);
  detail::check_optional((call.x.size() + 7) / 8, call.mask);
  check_keep(call.keep);
  if (call.x.empty()) return;
  if (ran_on_cuda(call, stream)) return;
  stream.run("dropout", [=] {
    for_values(call.x.size(), [&](std::size_t first, std::size_t last) {
      drop(call.x.device_data(), call.y.device_data(), call.mask.device_data(), call.keep, call.key, first, last);
    });
    return Status{};
  });
}

template <class T>
void run(const ApplyMask<T>& call, device::Stream& stream) {
  detail::check_sizes(call.x.size(), call.y);
  detail::check_sizes((call.x.size() + 7) / 8, call.mask);
  check_keep(call.keep);
  if (call.x.empty()) return;
  if (ran_on_cuda(call, stream)) return;
  stream.run("apply mask", [=] {
    for_values(call.x.size(), [&](std::size_t first, std::size_t last) {
      keep_masked(call.x.device_data(), call.mask.device_data(), call.y.device_data(), call.keep, first, last);
    });
    return Status{};
  });
}

DUNNOCK_INSTANTIATE_KERNELS(RandomUniform, RandomNormal, Dropout, ApplyMask);

}  // namespace dunnock::kernels
