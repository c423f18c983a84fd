// The durable steps of the value log, by name. See Point in pmem/media.hpp. Their numbers follow those of the index,
// for the two work together in one store.
#pragma once

#include <string_view>

#include "dunnock/index/index_points.hpp"
#include "dunnock/pmem/media.hpp"

namespace dunnock::log_point {

inline constexpr unsigned kFirst = index_point::kCount + 1;
inline constexpr Point kHeader{kFirst};            // store/flush: key, length, checksum, mark
inline constexpr Point kPayload{kFirst + 1};       // store/flush: the bytes
inline constexpr Point kAppendFence{kFirst + 2};   // fence: the record may be pointed to
inline constexpr Point kTake{kFirst + 3};          // store/flush/fence: the segment is in use, in a new epoch
inline constexpr Point kFree{kFirst + 4};          // store: it is free (no flush)
inline constexpr Point kFormatFields{kFirst + 5};  // store/flush/fence: header but for its magic word, table
inline constexpr Point kFormatMagic{kFirst + 6};   // store/flush/fence: the log exists
inline constexpr unsigned kCount = kFirst + 6;

/// The name of a point as it stands above, without the k, after "Log"; those of the index as index_point::name.
[[nodiscard]] constexpr std::string_view name(Point point) noexcept {
  constexpr std::string_view kNames[] = {"LogHeader", "LogPayload",      "LogAppendFence", "LogTake",
                                         "LogFree",   "LogFormatFields", "LogFormatMagic"};
  static_assert(sizeof(kNames) / sizeof(kNames[0]) == kCount - kFirst + 1);
  const auto index = static_cast<unsigned>(point);
  if (index < kFirst) return index_point::name(point);
  return index <= kCount ? kNames[index - kFirst] : std::string_view("?");
}

}  // namespace dunnock::log_point
