// The durable steps of the filter, by name. See Point in pmem/media.hpp.
#pragma once

#include <string_view>

#include "dunnock/pmem/media.hpp"

namespace dunnock::filter_point {

// One insert or erase.
inline constexpr Point kHome{1};            // store/flush/fence: the fingerprint is in its home bucket
inline constexpr Point kSpillMark{2};       // store: the home bucket notes its spill (same line as kSpill);
                                            // flush: only in bulk, where kSpill comes after a fence of its own
inline constexpr Point kSpill{3};           // store/flush/fence: the fingerprint is in its group
inline constexpr Point kOverflowMark{4};    // store/flush/fence: the home bucket notes its overflow
inline constexpr Point kOverflow{5};        // store/flush/fence: the fingerprint is in the other group
inline constexpr Point kErase{6};           // store/flush/fence: the fingerprint is gone
inline constexpr Point kEraseMarks{7};      // store: marks buckets that may now rely on the copy in the other group
// A kick.
inline constexpr Point kLogFields{8};       // store: the record, before it is armed (same line as kLogArm)
inline constexpr Point kLogArm{9};          // store/flush/fence: from here a crash completes the move
inline constexpr Point kKickCopy{10};       // store/flush: the copy in the other group
inline constexpr Point kKickRemove{11};     // store/flush: the original is gone, its bucket notes its overflow
inline constexpr Point kKickFence{12};      // fence: both are durable
inline constexpr Point kLogRetire{13};      // store/flush/fence: the record is idle again
// Bulk operations: one fence for a group of the steps above.
inline constexpr Point kGroupFence{14};     // fence
// Readers.
inline constexpr Point kReaderPersist{15};  // flush/fence: what was read is durable before it is returned
// Life of a filter.
inline constexpr Point kFormatFields{16};   // store/flush/fence: the header except its magic word (flush: its second
                                            // line; the first becomes durable with the magic word)
inline constexpr Point kFormatMagic{17};    // store/flush/fence: the filter exists
inline constexpr Point kRecoverCopy{18};    // store/flush: redo of a kick, other group
inline constexpr Point kRecoverRemove{19};  // store/flush: redo of a kick, home bucket
inline constexpr Point kRecoverFence{20};   // fence: both are durable
inline constexpr Point kRecoverRetire{21};  // store/flush/fence: the record is idle again
inline constexpr Point kCloseCount{22};     // store: the number of items (same line as kCloseClean)
inline constexpr Point kCloseClean{23};     // store/flush/fence: the number of items can be trusted
inline constexpr Point kOpenDirty{24};      // store/flush/fence: it can't be trusted any more
inline constexpr Point kClearBegin{25};     // store/flush/fence: from here a crash completes the clearing
inline constexpr Point kClearWord{26};      // store/flush/fence: the table is empty
inline constexpr Point kClearEnd{27};       // store/flush/fence: the clearing is over
// The same steps for many keys of a bulk insert at once.
inline constexpr Point kBulkMarkFence{28};    // fence: the buckets' marks are durable
inline constexpr Point kBulkArmFence{29};     // fence: from here a crash completes the moves
inline constexpr Point kBulkMoveFence{30};    // fence: the moves are durable
inline constexpr Point kBulkRetireFence{31};  // fence: the records are idle again
// The same records, for many kicks at once.
inline constexpr Point kBulkLogArm{32};     // store/flush: the mark of a record
inline constexpr Point kBulkLogRetire{33};  // store/flush: the record is idle again
// Checks (is_taken): what readers examine before they answer.
inline constexpr Point kNearStripe{34};      // is the key's own line being written?
inline constexpr Point kFarStripe{35};       // the same when the other group was read, too
inline constexpr Point kBulkStripe{36};      // kNearStripe of contains_bulk
inline constexpr Point kLevelAgain{37};      // the level after the foreign lanes
inline constexpr Point kBulkLevelAgain{38};  // the same in contains_bulk
inline constexpr Point kOwnGroupAgain{39};   // the key's own group again, after the other one, if it is the higher
inline constexpr unsigned kCount = 39;

/// The name of a point as above, without the k. "?" for an unknown point.
[[nodiscard]] constexpr std::string_view name(Point point) noexcept {
  constexpr std::string_view kNames[] = {
      "?",           "Home",          "SpillMark",   "Spill",        "OverflowMark",  "Overflow",     "Erase",
      "EraseMarks",  "LogFields",     "LogArm",      "KickCopy",     "KickRemove",    "KickFence",    "LogRetire",
      "GroupFence",  "ReaderPersist", "FormatFields", "FormatMagic", "RecoverCopy",   "RecoverRemove", "RecoverFence",
      "RecoverRetire", "CloseCount",  "CloseClean",  "OpenDirty",    "ClearBegin",    "ClearWord",    "ClearEnd",
      "BulkMarkFence", "BulkArmFence", "BulkMoveFence", "BulkRetireFence", "BulkLogArm", "BulkLogRetire",
      "NearStripe",  "FarStripe",  "BulkStripe", "LevelAgain",   "BulkLevelAgain",
      "OwnGroupAgain"};
  static_assert(sizeof(kNames) / sizeof(kNames[0]) == kCount + 1);
  const auto index = static_cast<unsigned>(point);
  return index <= kCount ? kNames[index] : kNames[0];
}

}  // namespace dunnock::filter_point
