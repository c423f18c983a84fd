#include "dunnock/pmem/volatile_region.hpp"

#include <sys/mman.h>

#include <bit>
#include <string>

namespace dunnock {
namespace {
constexpr std::uint64_t kHugePageBytes = 2ULL << 20;
}  // namespace

Result<VolatileRegion> VolatileRegion::create(std::uint64_t bytes) {
  DUNNOCK_CHECK(bytes != 0, "a region is not empty");
  const std::uint64_t rounded = (bytes + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes;
  const std::uint64_t mapped = rounded + kHugePageBytes;
  void* raw = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (raw == MAP_FAILED) {
    return make_error(ErrorCode::kNoSpace, "can't allocate " + std::to_string(bytes) + " bytes of memory");
  }
  // Cut off what is not aligned.
  auto* start = static_cast<std::byte*>(raw);
  const std::uint64_t skip = (kHugePageBytes - reinterpret_cast<std::uintptr_t>(raw) % kHugePageBytes) % kHugePageBytes;
  std::byte* memory = start + skip;
  if (skip != 0) munmap(start, skip);
  if (skip != kHugePageBytes) munmap(memory + rounded, kHugePageBytes - skip);
  madvise(memory, rounded, MADV_HUGEPAGE);  // A wish; the region is right without it.
  for (std::uint64_t offset = 0; offset < rounded; offset += 4096) {
    *reinterpret_cast<volatile char*>(memory + offset) = 0;  // Faults now rather than later.
  }
  return VolatileRegion(memory, rounded, bytes);
}

VolatileRegion::~VolatileRegion() {
  if (memory_ != nullptr) munmap(memory_, mapped_bytes_);
}

Region VolatileRegion::region() const { return Region({memory_}, bytes_, std::bit_ceil(bytes_)); }

}  // namespace dunnock
