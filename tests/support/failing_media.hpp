// A media that fails at a fence, as a disk does, and knows what is durable by then.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <vector>

#include "dunnock/pmem/media.hpp"

namespace dunnock::test {

/// What all FailingMedia of one run share. For one thread.
struct FailingStorage {
  using Line = std::array<std::byte, kLineBytes>;
  long fences_left = -1;  ///< The fence that comes after this many fails, and all after it. Negative: none.
  long fences = 0;        ///< So far.
  bool failed = false;
  std::vector<std::byte*> flushed;  ///< Lines since the last fence.
  std::map<std::byte*, Line> durable;

  void fence() {
    ++fences;
    if (fences_left == 0) failed = true;
    if (failed) return;
    --fences_left;
    for (std::byte* line : flushed) std::memcpy(durable[line].data(), line, kLineBytes);
    flushed.clear();
  }
};

struct FailingMedia : detail::MappedMedia {
  static constexpr Durability kDurability = Durability::kPower;
  static constexpr bool kVisibleIsDurable = false;
  FailingStorage* storage;
  explicit FailingMedia(FailingStorage& of) noexcept : storage(&of) {}
  void flush(Point, const void* address) const noexcept {
    const auto at = reinterpret_cast<std::uintptr_t>(address) & ~(kLineBytes - 1);
    storage->flushed.push_back(reinterpret_cast<std::byte*>(at));
  }
  void fence(Point) const noexcept { storage->fence(); }
  [[nodiscard]] bool ok() const noexcept { return !storage->failed; }
};
static_assert(Media<FailingMedia>);

}  // namespace dunnock::test
