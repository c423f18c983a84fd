// The media of images that are recovered and checked.
#pragma once

#include "dunnock/pmem/media.hpp"

namespace dunnock::crash {

/// Media for images that nobody else sees: plain memory.
struct ImageMedia : detail::MappedMedia {
  static constexpr Durability kDurability = Durability::kPower;
  static constexpr bool kVisibleIsDurable = true;
  void flush(Point, const void*) const noexcept {}
  void fence(Point) const noexcept {}
};

}  // namespace dunnock::crash
