// A filter is filled in steps of load; inserts, lookups and erases are timed on the way.
#pragma once

#include "filter/cases.hpp"
#include "filter/keys.hpp"
#include "filter/rows.hpp"
#include "filter/subject.hpp"

namespace dunnock::bench {

/// One round of a case. The first round also times single operations, for their tails.
void fill_and_measure(const Case& one, const FilterBenchOptions& options, unsigned round, Keys& keys, Rows& rows);

/// The first inserts into an empty table on a file, where a fence takes a millisecond: few of them.
void insert_on_file(const FilterBenchOptions& options, const Keys& keys, Rows& rows);

/// The load at which our filter refuses a key for the first time.
[[nodiscard]] double highest_load(const FilterBenchOptions& options, const Keys& keys);

}  // namespace dunnock::bench
