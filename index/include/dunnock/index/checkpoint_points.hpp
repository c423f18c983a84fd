// The durable steps of the checkpoint store, by name. See Point in pmem/media.hpp. Their numbers follow the log's.
#pragma once

#include <string_view>

#include "dunnock/index/log_points.hpp"
#include "dunnock/pmem/media.hpp"

namespace dunnock::checkpoint_point {

inline constexpr unsigned kFirst = log_point::kCount + 1;
inline constexpr Point kFields{kFirst};            // store: the line's fields (same line as kPublish)
inline constexpr Point kPublish{kFirst + 1};       // store/flush/fence: the checkpoint exists
inline constexpr Point kRemove{kFirst + 2};        // store/flush/fence: it does not exist any more
inline constexpr Point kFormatLines{kFirst + 3};   // store/flush: a line is free (fence of kFormatFields)
inline constexpr Point kFormatFields{kFirst + 4};  // store/flush/fence: header except its magic word
inline constexpr Point kFormatMagic{kFirst + 5};   // store/flush/fence: the store exists
inline constexpr unsigned kCount = kFirst + 5;

[[nodiscard]] constexpr std::string_view name(Point point) noexcept {
  constexpr std::string_view kNames[] = {"CatalogFields",      "CatalogPublish",      "CatalogRemove",
                                         "CatalogFormatLines", "CatalogFormatFields", "CatalogFormatMagic"};
  static_assert(sizeof(kNames) / sizeof(kNames[0]) == kCount - kFirst + 1);
  const auto index = static_cast<unsigned>(point);
  if (index < kFirst) return log_point::name(point);
  return index <= kCount ? kNames[index - kFirst] : std::string_view("?");
}

}  // namespace dunnock::checkpoint_point
