// The durable steps of the index, by name. See Point in pmem/media.hpp.
#pragma once

#include <string_view>

#include "dunnock/pmem/media.hpp"

namespace dunnock::index_point {

// A put of a new key.
inline constexpr Point kResetRecord{1};   // store/flush/fence: what a crash left in the line is not an entry
inline constexpr Point kRecordFields{2};  // store: key and value (same line as kRecordLive)
inline constexpr Point kRecordLive{3};    // store/flush: the line holds the entry
inline constexpr Point kGroupMark{4};     // store: the home bucket notes its spill (same line as kLane)
inline constexpr Point kFarMark{5};       // store/flush/fence: the home bucket notes its overflow
inline constexpr Point kLane{6};          // store/flush: a lane points to the line
inline constexpr Point kPutFence{7};      // fence: line and lane are durable
// A put of an existing key, replace_if.
inline constexpr Point kUpdateFields{8};  // store: the other value (same line as kUpdateLive)
inline constexpr Point kUpdateLive{9};    // store/flush/fence: that value is current
// An erase.
inline constexpr Point kEraseRecord{10};  // store/flush/fence: the entry is gone
inline constexpr Point kEraseLane{11};    // store: no lane points to it (no flush: such a lane means nothing)
// Many keys: one fence for a batch of the steps above.
inline constexpr Point kBatchFence{12};  // fence
// Readers.
inline constexpr Point kReadPersist{13};  // flush/fence: what was read is durable before it is returned
// Growth.
inline constexpr Point kSplitRecord{14};  // store/flush: a record of the new segment
inline constexpr Point kSplitWord{15};    // store/flush: a word of the new segment
inline constexpr Point kSplitFence{16};   // fence: the whole segment is durable
inline constexpr Point kDepth{17};        // store/flush/fence: the directory may be read that far
inline constexpr Point kSplitCommit{18};  // store/flush/fence: the new segment exists
inline constexpr Point kCleanRecord{19};  // store: what has moved is free in the old segment (no flush: the key's
inline constexpr Point kCleanWord{20};    // store:   hash says that it is not to be looked for there)
inline constexpr Point kScrubLane{21};    // store: a lane that points to no entry is free (no flush)
// Life of an index.
inline constexpr Point kFormatFields{22};  // store/flush/fence: header except its magic word, state, directory
                                           // (the line of the magic word becomes durable with that)
inline constexpr Point kFormatMagic{23};   // store/flush/fence: the index exists
inline constexpr Point kCloseCount{24};    // store: the number of entries (same line as kCloseClean)
inline constexpr Point kCloseClean{25};    // store/flush/fence: the number of entries can be trusted
inline constexpr Point kOpenDirty{26};     // store/flush/fence: it can't be trusted any more
// Checks (is_taken): what readers check again before they answer, and writers before they store.
inline constexpr Point kControlAgain{27};      // the record's control word, after key and value
inline constexpr Point kSplitAgain{28};        // was the segment split? (get)
inline constexpr Point kSplitAgainMaybe{29};   // the same (may_contain)
inline constexpr Point kSplitAgainLocked{30};  // the same, by a writer that has its lock
inline constexpr Point kOwnGroupDirty{31};     // is the key's own group being written?
inline constexpr Point kOtherGroupDirty{32};   // is the other group, if it was read?
inline constexpr Point kPersistOther{33};      // then the other group is persisted, too
inline constexpr Point kPersistGet{34};        // get persists
inline constexpr Point kPersistMaybe{35};      // may_contain persists
inline constexpr Point kLaneAgain{36};         // the lane that led to a record, after the record
inline constexpr unsigned kCount = 36;

/// The name of a point as above, without the k. "?" for an unknown point.
[[nodiscard]] constexpr std::string_view name(Point point) noexcept {
  constexpr std::string_view kNames[] = {"?",
                                         "ResetRecord",
                                         "RecordFields",
                                         "RecordLive",
                                         "GroupMark",
                                         "FarMark",
                                         "Lane",
                                         "PutFence",
                                         "UpdateFields",
                                         "UpdateLive",
                                         "EraseRecord",
                                         "EraseLane",
                                         "BatchFence",
                                         "ReadPersist",
                                         "SplitRecord",
                                         "SplitWord",
                                         "SplitFence",
                                         "Depth",
                                         "SplitCommit",
                                         "CleanRecord",
                                         "CleanWord",
                                         "ScrubLane",
                                         "FormatFields",
                                         "FormatMagic",
                                         "CloseCount",
                                         "CloseClean",
                                         "OpenDirty",
                                         "ControlAgain",
                                         "SplitAgain",
                                         "SplitAgainMaybe",
                                         "SplitAgainLocked",
                                         "OwnGroupDirty",
                                         "OtherGroupDirty",
                                         "PersistOther",
                                         "PersistGet",
                                         "PersistMaybe",
                                         "LaneAgain"};
  static_assert(sizeof(kNames) / sizeof(kNames[0]) == kCount + 1);
  const auto index = static_cast<unsigned>(point);
  return index <= kCount ? kNames[index] : kNames[0];
}

}  // namespace dunnock::index_point
