// VolatileRegion: owns plain anonymous memory, in huge pages where the system provides them.
#pragma once

#include <cstdint>
#include <utility>

#include "dunnock/base/result.hpp"
#include "dunnock/pmem/region.hpp"

namespace dunnock {

class VolatileRegion {
 public:
  /// Allocates `bytes` (> 0) of zeroed memory, 2-MiB aligned and touched, so that no later access faults. Errors:
  /// NoSpace.
  [[nodiscard]] static Result<VolatileRegion> create(std::uint64_t bytes);

  VolatileRegion(VolatileRegion&& other) noexcept
      : memory_(std::exchange(other.memory_, nullptr)), mapped_bytes_(other.mapped_bytes_), bytes_(other.bytes_) {}
  VolatileRegion& operator=(VolatileRegion&& other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(mapped_bytes_, other.mapped_bytes_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~VolatileRegion();

  /// A view of the memory as one extent.
  [[nodiscard]] Region region() const;

 private:
  VolatileRegion(std::byte* memory, std::uint64_t mapped_bytes, std::uint64_t bytes) noexcept
      : memory_(memory), mapped_bytes_(mapped_bytes), bytes_(bytes) {}

  std::byte* memory_;
  std::uint64_t mapped_bytes_;
  std::uint64_t bytes_;
};

}  // namespace dunnock
