// The durable steps of the value log. See Point in pmem/media.hpp, and pmem/point_table.hpp. Their numbers continue
// those of the index, since the two work together in one store.
#pragma once

#include "dunnock/index/index_points.hpp"
#include "dunnock/pmem/point_table.hpp"

namespace dunnock::log_point {

#define DUNNOCK_LOG_POINTS(POINT)                                                                                \
  /* Values. */                                                                                                  \
  POINT(kHeader, "LogHeader", kStore | kFlush, "key, length, checksum and mark are there")                       \
  POINT(kPayload, "LogPayload", kStore | kFlush, "the bytes are there")                                          \
  POINT(kAppendFence, "LogAppendFence", kFence, "the record may be pointed to")                                  \
  POINT(kTake, "LogTake", kStore | kFlush | kFence, "the segment is in use, in a new epoch")                     \
  POINT(kFree, "LogFree", kStore, "it is free (no flush)")                                                       \
  POINT(kFormatFields, "LogFormatFields", kStore | kFlush | kFence, "header except its magic word, table")       \
  POINT(kFormatMagic, "LogFormatMagic", kStore | kFlush | kFence, "the log exists")                              \
  POINT(kPayloadEnd, "LogPayloadEnd", kStore | kFlush, "the last bytes are there, if they are not a whole word") \
  POINT(kMovedFence, "LogMovedFence", kFence, "a record that compaction has moved may be pointed to")            \
  /* What readers and compaction ask. */                                                                         \
  POINT(kPin, "LogPin", kCheck, "a reader pins the segment, then asks:")                                         \
  POINT(kStillInUse, "LogStillInUse", kCheck, "is it in use?")                                                   \
  POINT(kSameEpoch, "LogSameEpoch", kCheck, "is it as old as the locator?")                                      \
  POINT(kVictimUnpinned, "LogVictimUnpinned", kCheck, "a segment that is pinned is not compacted,")              \
  POINT(kFreedUnpinned, "LogFreedUnpinned", kCheck, "a free one not used again while it is pinned,")             \
  POINT(kStillPinned, "LogStillPinned", kCheck, "nor is one that has been waiting for that")                     \
  POINT(kLookAgain, "LogLookAgain", kCheck, "a store's get that found nothing in the log asks the index again")

DUNNOCK_POINT_TABLE(DUNNOCK_LOG_POINTS, index_point)
#undef DUNNOCK_LOG_POINTS

}  // namespace dunnock::log_point
