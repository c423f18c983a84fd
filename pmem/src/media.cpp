#include "dunnock/pmem/media.hpp"

#include <cpuid.h>

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

}  // namespace dunnock::detail
