// The durable steps of the value log, by name. See Point in pmem/media.hpp. Their numbers follow those of the index,
// since the two work together in one store.
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
inline constexpr Point kFormatFields{kFirst + 5};  // store/flush/fence: header except its magic word, table
inline constexpr Point kFormatMagic{kFirst + 6};   // store/flush/fence: the log exists
inline constexpr Point kPayloadEnd{kFirst + 7};    // store/flush: the last bytes, if they are not a whole word
inline constexpr Point kMovedFence{kFirst + 8};    // fence: a record that compaction has moved may be pointed to
// Checks (is_taken).
inline constexpr Point kPin{kFirst + 9};              // a reader pins the segment, then asks:
inline constexpr Point kStillInUse{kFirst + 10};      // is it in use?
inline constexpr Point kSameEpoch{kFirst + 11};       // is it as old as the locator?
inline constexpr Point kVictimUnpinned{kFirst + 12};  // a segment that is pinned is not compacted,
inline constexpr Point kFreedUnpinned{kFirst + 13};   // a free one not used again while it is pinned,
inline constexpr Point kStillPinned{kFirst + 14};     // nor is one that has been waiting for that
inline constexpr Point kLookAgain{kFirst + 15};  // a store's get that found nothing in the log asks the index again
inline constexpr unsigned kCount = kFirst + 15;

/// The name of a point as above, without the k, after "Log"; points of the index as in index_point::name.
[[nodiscard]] constexpr std::string_view name(Point point) noexcept {
  constexpr std::string_view kNames[] = {
      "LogHeader",         "LogPayload",       "LogAppendFence", "LogTake",          "LogFree",       "LogFormatFields",
      "LogFormatMagic",    "LogPayloadEnd",    "LogMovedFence",  "LogPin",           "LogStillInUse", "LogSameEpoch",
      "LogVictimUnpinned", "LogFreedUnpinned", "LogStillPinned",  "LogLookAgain"};
  static_assert(sizeof(kNames) / sizeof(kNames[0]) == kCount - kFirst + 1);
  const auto index = static_cast<unsigned>(point);
  if (index < kFirst) return index_point::name(point);
  return index <= kCount ? kNames[index - kFirst] : std::string_view("?");
}

}  // namespace dunnock::log_point
