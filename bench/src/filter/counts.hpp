// Flushes, fences and lines per operation. They do not depend on the table's size, and a pass that counts is not timed.
#pragma once

#include "filter/cases.hpp"
#include "filter/keys.hpp"
#include "filter/rows.hpp"

namespace dunnock::bench {

/// Of our filter with one writer and of the durable textbook filter, on up to 2^20 slots.
void count_operations(const FilterBenchOptions& options, Rows& rows);

}  // namespace dunnock::bench
