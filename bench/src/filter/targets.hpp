// What the filter is held to.
#pragma once

#include "filter/floors.hpp"
#include "filter/options.hpp"
#include "filter/rows.hpp"
#include "report.hpp"

namespace dunnock::bench {

struct FilterResults {
  Rows rows;
  Floors floors;
  double highest_load = NAN;
  double reopen_ms = NAN;
};

/// Prints each target beside what was measured, and puts them into the report.
void report_targets(const FilterBenchOptions& options, const FilterResults& results, Report& report);

}  // namespace dunnock::bench
