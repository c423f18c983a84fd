// The durable steps of the filter. See Point in pmem/media.hpp, and pmem/point_table.hpp.
#pragma once

#include "dunnock/pmem/point_table.hpp"

namespace dunnock::filter_point {

#define DUNNOCK_FILTER_POINTS(POINT)                                                                              \
  /* One insert or erase. */                                                                                      \
  POINT(kHome, "Home", kStore | kFlush | kFence, "the fingerprint is in its home bucket")                         \
  POINT(kSpillMark, "SpillMark", kStore | kFlush,                                                                 \
        "the home bucket notes its spill (same line as kSpill; flush: only in bulk, where kSpill comes after a "  \
        "fence of its own)")                                                                                      \
  POINT(kSpill, "Spill", kStore | kFlush | kFence, "the fingerprint is in its group")                             \
  POINT(kOverflowMark, "OverflowMark", kStore | kFlush | kFence, "the home bucket notes its overflow")            \
  POINT(kOverflow, "Overflow", kStore | kFlush | kFence, "the fingerprint is in the other group")                 \
  POINT(kErase, "Erase", kStore | kFlush | kFence, "the fingerprint is gone")                                     \
  POINT(kEraseMarks, "EraseMarks", kStore, "buckets that may now rely on the copy in the other group are marked") \
  /* A kick. */                                                                                                   \
  POINT(kLogFields, "LogFields", kStore, "the record is filled, before it is armed (same line as kLogArm)")       \
  POINT(kLogArm, "LogArm", kStore | kFlush | kFence, "from here a crash completes the move")                      \
  POINT(kKickCopy, "KickCopy", kStore | kFlush, "the copy is in the other group")                                 \
  POINT(kKickRemove, "KickRemove", kStore | kFlush, "the original is gone, its bucket notes its overflow")        \
  POINT(kKickFence, "KickFence", kFence, "both are durable")                                                      \
  POINT(kLogRetire, "LogRetire", kStore | kFlush | kFence, "the record is idle again")                            \
  /* Bulk operations: one fence for a group of the steps above. */                                                \
  POINT(kGroupFence, "GroupFence", kFence, "the group's steps are durable")                                       \
  /* Readers. */                                                                                                  \
  POINT(kReaderPersist, "ReaderPersist", kFlush | kFence, "what was read is durable before it is returned")       \
  /* Life of a filter. */                                                                                         \
  POINT(kFormatFields, "FormatFields", kStore | kFlush | kFence,                                                  \
        "the header is filled except its magic word (flush: its second line; the first becomes durable with the " \
        "magic word)")                                                                                            \
  POINT(kFormatMagic, "FormatMagic", kStore | kFlush | kFence, "the filter exists")                               \
  POINT(kRecoverCopy, "RecoverCopy", kStore | kFlush, "a kick is redone in the other group")                      \
  POINT(kRecoverRemove, "RecoverRemove", kStore | kFlush, "a kick is redone in the home bucket")                  \
  POINT(kRecoverFence, "RecoverFence", kFence, "both are durable")                                                \
  POINT(kRecoverRetire, "RecoverRetire", kStore | kFlush | kFence, "the record is idle again")                    \
  POINT(kCloseCount, "CloseCount", kStore, "the number of items is there (same line as kCloseClean)")             \
  POINT(kCloseClean, "CloseClean", kStore | kFlush | kFence, "the number of items can be trusted")                \
  POINT(kOpenDirty, "OpenDirty", kStore | kFlush | kFence, "it can't be trusted any more")                        \
  POINT(kClearBegin, "ClearBegin", kStore | kFlush | kFence, "from here a crash completes the clearing")          \
  POINT(kClearWord, "ClearWord", kStore | kFlush | kFence, "the table is empty")                                  \
  POINT(kClearEnd, "ClearEnd", kStore | kFlush | kFence, "the clearing is over")                                  \
  /* The same steps for many keys of a bulk insert at once. */                                                    \
  POINT(kBulkMarkFence, "BulkMarkFence", kFence, "the buckets' marks are durable")                                \
  POINT(kBulkArmFence, "BulkArmFence", kFence, "from here a crash completes the moves")                           \
  POINT(kBulkMoveFence, "BulkMoveFence", kFence, "the moves are durable")                                         \
  POINT(kBulkRetireFence, "BulkRetireFence", kFence, "the records are idle again")                                \
  /* The same records, for many kicks at once. */                                                                 \
  POINT(kBulkLogArm, "BulkLogArm", kStore | kFlush, "the record is marked")                                       \
  POINT(kBulkLogRetire, "BulkLogRetire", kStore | kFlush, "the record is idle again")                             \
  /* What readers examine before they answer. */                                                                  \
  POINT(kNearStripe, "NearStripe", kCheck, "is the key's own line being written?")                                \
  POINT(kFarStripe, "FarStripe", kCheck, "the same when the other group was read, too")                           \
  POINT(kBulkStripe, "BulkStripe", kCheck, "kNearStripe of contains_bulk")                                        \
  POINT(kLevelAgain, "LevelAgain", kCheck, "the level after the foreign lanes")                                   \
  POINT(kBulkLevelAgain, "BulkLevelAgain", kCheck, "the same in contains_bulk")                                   \
  POINT(kOwnGroupAgain, "OwnGroupAgain", kCheck,                                                                  \
        "the key's own group again, after the other one, if it is the higher")

DUNNOCK_POINT_TABLE(DUNNOCK_FILTER_POINTS, no_point)
#undef DUNNOCK_FILTER_POINTS

}  // namespace dunnock::filter_point
