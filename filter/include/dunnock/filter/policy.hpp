// What varies at compile time in a filter, besides the fingerprint width and the media.
//
// What it is for: comparing each of the paper's ideas with a filter that does without it, and filters of one writer.
// What it is not for: tuning at run time.
#pragma once

namespace dunnock {

struct FilterPolicy {
  bool multi_writer = true;  ///< False: one writer at a time (and any number of readers); no locked instructions.
  bool spill = true;         ///< Spillable buckets.
  bool lookahead = true;     ///< Lookahead eviction, breadth first; false: a random walk, as in a textbook filter.
  bool primacy = true;       ///< Bucket primacy. False: every lookup reads both groups.
  unsigned group_words = 8;  ///< Words in a group, 4 or 8.
};

}  // namespace dunnock
