// A region: zeroed, line-aligned memory of any size, made of extents.
//
// One libpmemobj allocation is capped near 16 GiB, so a large table is several of them. All extents but the last
// have the same power-of-two size, so that an offset is found with one shift:
//
//   offset          0                    extent_bytes             2 x extent_bytes      bytes
//                   | extents[0] ........ | extents[1] ............ | extents[2] ... |
//
// A Region is a view: it does not own the memory. The Pool (or VolatileRegion) that it came from must outlive it.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "dunnock/base/check.hpp"

namespace dunnock {

class Region {
 public:
  Region() = default;

  /// `extents` each start on a 64-byte boundary and are `extent_bytes` (a power of two) long, except the last.
  Region(std::vector<std::byte*> extents, std::uint64_t bytes, std::uint64_t extent_bytes)
      : extents_(std::move(extents)), bytes_(bytes), extent_bytes_(extent_bytes) {
    DUNNOCK_CHECK(extent_bytes != 0 && (extent_bytes & (extent_bytes - 1)) == 0, "extents are a power of two");
    DUNNOCK_CHECK(extents_.size() == (bytes + extent_bytes - 1) / extent_bytes, "extents cover the region");
    for (const std::byte* extent : extents_) {
      DUNNOCK_CHECK(reinterpret_cast<std::uintptr_t>(extent) % 64 == 0, "extents are line-aligned");
    }
  }

  /// Length in bytes.
  [[nodiscard]] std::uint64_t bytes() const noexcept { return bytes_; }
  [[nodiscard]] std::uint64_t extent_bytes() const noexcept { return extent_bytes_; }
  [[nodiscard]] const std::vector<std::byte*>& extents() const noexcept { return extents_; }

  /// Address of the byte at `offset_bytes` (< bytes()). Contiguous up to the end of its extent only.
  [[nodiscard]] std::byte* at(std::uint64_t offset_bytes) const noexcept {
    return extents_[offset_bytes >> std::countr_zero(extent_bytes_)] + (offset_bytes & (extent_bytes_ - 1));
  }

 private:
  std::vector<std::byte*> extents_;
  std::uint64_t bytes_ = 0;
  std::uint64_t extent_bytes_ = 1;
};

}  // namespace dunnock
