// The durable steps of the index. See Point in pmem/media.hpp, and pmem/point_table.hpp.
#pragma once

#include "dunnock/pmem/point_table.hpp"

namespace dunnock::index_point {

#define DUNNOCK_INDEX_POINTS(POINT)                                                                              \
  /* A put of a new key. */                                                                                      \
  POINT(kResetRecord, "ResetRecord", kStore | kFlush | kFence, "what a crash left in the line is not an entry")  \
  POINT(kRecordFields, "RecordFields", kStore, "key and value are there (same line as kRecordLive)")             \
  POINT(kRecordLive, "RecordLive", kStore | kFlush, "the line holds the entry")                                  \
  POINT(kGroupMark, "GroupMark", kStore, "the home bucket notes its spill (same line as kLane)")                 \
  POINT(kFarMark, "FarMark", kStore | kFlush | kFence, "the home bucket notes its overflow")                     \
  POINT(kLane, "Lane", kStore | kFlush, "a lane points to the line")                                             \
  POINT(kPutFence, "PutFence", kFence, "line and lane are durable")                                              \
  /* A put of an existing key, replace_if. */                                                                    \
  POINT(kUpdateFields, "UpdateFields", kStore, "the other value is there (same line as kUpdateLive)")            \
  POINT(kUpdateLive, "UpdateLive", kStore | kFlush | kFence, "that value is current")                            \
  /* An erase. */                                                                                                \
  POINT(kEraseRecord, "EraseRecord", kStore | kFlush | kFence, "the entry is gone")                              \
  POINT(kEraseLane, "EraseLane", kStore, "no lane points to it (no flush: such a lane means nothing)")           \
  /* Many keys: one fence for a batch of the steps above. */                                                     \
  POINT(kBatchFence, "BatchFence", kFence, "the batch is durable")                                               \
  /* Readers. */                                                                                                 \
  POINT(kReadPersist, "ReadPersist", kFlush | kFence, "what was read is durable before it is returned")          \
  /* Growth. */                                                                                                  \
  POINT(kSplitRecord, "SplitRecord", kStore | kFlush, "a record of the new segment is there")                    \
  POINT(kSplitWord, "SplitWord", kStore | kFlush, "a word of the new segment is there")                          \
  POINT(kSplitFence, "SplitFence", kFence, "the whole segment is durable")                                       \
  POINT(kDepth, "Depth", kStore | kFlush | kFence, "the directory may be read that far")                         \
  POINT(kSplitCommit, "SplitCommit", kStore | kFlush | kFence, "the new segment exists")                         \
  POINT(kCleanRecord, "CleanRecord", kStore,                                                                     \
        "what has moved is free in the old segment (no flush: the key's hash says that it is not to be looked "  \
        "for there)")                                                                                            \
  POINT(kCleanWord, "CleanWord", kStore, "the same of a word")                                                   \
  POINT(kScrubLane, "ScrubLane", kStore, "a lane that points to no entry is free (no flush)")                    \
  /* Life of an index. */                                                                                        \
  POINT(kFormatFields, "FormatFields", kStore | kFlush | kFence,                                                 \
        "header except its magic word, state, directory (the line of the magic word becomes durable with that)") \
  POINT(kFormatMagic, "FormatMagic", kStore | kFlush | kFence, "the index exists")                               \
  POINT(kCloseCount, "CloseCount", kStore, "the number of entries is there (same line as kCloseClean)")          \
  POINT(kCloseClean, "CloseClean", kStore | kFlush | kFence, "the number of entries can be trusted")             \
  POINT(kOpenDirty, "OpenDirty", kStore | kFlush | kFence, "it can't be trusted any more")                       \
  /* What readers check again before they answer, and writers before they store. */                              \
  POINT(kControlAgain, "ControlAgain", kCheck, "the record's control word, after key and value")                 \
  POINT(kSplitAgain, "SplitAgain", kCheck, "was the segment split? (get)")                                       \
  POINT(kSplitAgainMaybe, "SplitAgainMaybe", kCheck, "the same (may_contain)")                                   \
  POINT(kSplitAgainLocked, "SplitAgainLocked", kCheck, "the same, by a writer that has its lock")                \
  POINT(kOwnGroupDirty, "OwnGroupDirty", kCheck, "is the key's own group being written?")                        \
  POINT(kOtherGroupDirty, "OtherGroupDirty", kCheck, "is the other group, if it was read?")                      \
  POINT(kPersistOther, "PersistOther", kCheck, "then the other group is persisted, too")                         \
  POINT(kPersistGet, "PersistGet", kCheck, "get persists")                                                       \
  POINT(kPersistMaybe, "PersistMaybe", kCheck, "may_contain persists")                                           \
  POINT(kLaneAgain, "LaneAgain", kCheck, "the lane that led to a record, after the record")

DUNNOCK_POINT_TABLE(DUNNOCK_INDEX_POINTS, no_point)
#undef DUNNOCK_INDEX_POINTS

}  // namespace dunnock::index_point
