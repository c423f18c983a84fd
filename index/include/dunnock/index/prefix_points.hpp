// The steps of the prefix store that the crash harness leaves out, by name. See Point in pmem/media.hpp. The prefix
// store itself stores nothing, so all are checks (is_taken). Their numbers follow the checkpoint store's.
#pragma once

#include <string_view>

#include "dunnock/index/checkpoint_points.hpp"
#include "dunnock/pmem/media.hpp"

namespace dunnock::prefix_point {

inline constexpr unsigned kFirst = checkpoint_point::kCount + 1;
inline constexpr Point kLeafFirst{kFirst};          // a parent may be evicted only when its last child is durably gone
inline constexpr Point kEvictUnpinned{kFirst + 1};  // what is pinned is not evicted
inline constexpr Point kStillThere{kFirst + 2};     // a lookup: was it evicted meanwhile?
inline constexpr Point kParentStays{kFirst + 3};    // a put: is the parent being evicted?
inline constexpr unsigned kCount = kFirst + 3;

[[nodiscard]] constexpr std::string_view name(Point point) noexcept {
  constexpr std::string_view kNames[] = {"PrefixLeafFirst", "PrefixEvictUnpinned", "PrefixStillThere",
                                         "PrefixParentStays"};
  static_assert(sizeof(kNames) / sizeof(kNames[0]) == kCount - kFirst + 1);
  const auto index = static_cast<unsigned>(point);
  if (index < kFirst) return checkpoint_point::name(point);
  return index <= kCount ? kNames[index - kFirst] : std::string_view("?");
}

}  // namespace dunnock::prefix_point
