// The durable steps of the checkpoint store. See Point in pmem/media.hpp, and pmem/point_table.hpp. Their numbers
// continue the log's.
#pragma once

#include "dunnock/index/log_points.hpp"
#include "dunnock/pmem/point_table.hpp"

namespace dunnock::checkpoint_point {

#define DUNNOCK_CHECKPOINT_POINTS(POINT)                                                                \
  POINT(kFields, "CatalogFields", kStore, "the line's fields are there (same line as kPublish)")        \
  POINT(kPublish, "CatalogPublish", kStore | kFlush | kFence, "the checkpoint exists")                  \
  POINT(kRemove, "CatalogRemove", kStore | kFlush | kFence, "it does not exist any more")               \
  POINT(kFormatLines, "CatalogFormatLines", kStore | kFlush, "a line is free (fence of kFormatFields)") \
  POINT(kFormatFields, "CatalogFormatFields", kStore | kFlush | kFence, "header except its magic word") \
  POINT(kFormatMagic, "CatalogFormatMagic", kStore | kFlush | kFence, "the store exists")

DUNNOCK_POINT_TABLE(DUNNOCK_CHECKPOINT_POINTS, log_point)
#undef DUNNOCK_CHECKPOINT_POINTS

}  // namespace dunnock::checkpoint_point
