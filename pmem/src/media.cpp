#include "dunnock/pmem/media.hpp"

#include <cpuid.h>
#include <immintrin.h>

#include <algorithm>
#include <cstdint>

namespace dunnock::detail {
namespace {

// Leaf 7, register b: bit 23 clflushopt, bit 24 clwb.
bool cpu_has(unsigned bit) noexcept {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (b >> bit & 1) != 0;
}

const bool kHasClflushopt = cpu_has(23);

}  // namespace

const bool kHasClwb = cpu_has(24);

void flush_line_slow(const void* address) noexcept {
  if (kHasClwb) {  // A caller that ran before this file's constants were set.
    asm volatile("clwb %0" : : "m"(*static_cast<const char*>(address)) : "memory");
  } else if (kHasClflushopt) {
    asm volatile("clflushopt %0" : : "m"(*static_cast<const char*>(address)) : "memory");
  } else {
    asm volatile("clflush %0" : : "m"(*static_cast<const char*>(address)) : "memory");
  }
}

void copy_and_flush(void* to, const void* from, std::size_t bytes) noexcept {
  auto* target = static_cast<std::byte*>(to);
  const auto* source = static_cast<const std::byte*>(from);
  const auto by_cache = [&](std::size_t length) {  // Within one line.
    if (length == 0) return;
    std::memcpy(target, source, length);
    flush_line(target);
    target += length;
    source += length;
    bytes -= length;
  };
  const std::size_t to_line = (kLineBytes - (reinterpret_cast<std::uintptr_t>(target) & (kLineBytes - 1))) % kLineBytes;
  by_cache(std::min(bytes, to_line));
#if defined(__AVX__)
  // A line written past the cache is not read first, and needs no flush: the fence waits for it.
  for (; bytes >= kLineBytes; bytes -= kLineBytes, target += kLineBytes, source += kLineBytes) {
    const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source));
    const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source) + 1);
    _mm256_stream_si256(reinterpret_cast<__m256i*>(target), low);
    _mm256_stream_si256(reinterpret_cast<__m256i*>(target) + 1, high);
  }
#endif
  while (bytes != 0) by_cache(std::min(bytes, kLineBytes));
}

}  // namespace dunnock::detail
