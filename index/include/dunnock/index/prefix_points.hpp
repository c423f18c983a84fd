// The steps of the prefix store that the crash harness leaves out. See Point in pmem/media.hpp, and
// pmem/point_table.hpp. The prefix store itself stores nothing, so all are checks. Their numbers continue the
// checkpoint store's.
#pragma once

#include "dunnock/index/checkpoint_points.hpp"
#include "dunnock/pmem/point_table.hpp"

namespace dunnock::prefix_point {

#define DUNNOCK_PREFIX_POINTS(POINT)                                                                               \
  POINT(kLeafFirst, "PrefixLeafFirst", kCheck, "a parent may be evicted only when its last child is durably gone") \
  POINT(kEvictUnpinned, "PrefixEvictUnpinned", kCheck, "what is pinned is not evicted")                            \
  POINT(kStillThere, "PrefixStillThere", kCheck, "a lookup: was it evicted meanwhile?")                            \
  POINT(kParentStays, "PrefixParentStays", kCheck, "a put: is the parent being evicted?")

DUNNOCK_POINT_TABLE(DUNNOCK_PREFIX_POINTS, checkpoint_point)
#undef DUNNOCK_PREFIX_POINTS

}  // namespace dunnock::prefix_point
