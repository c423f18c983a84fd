// How long a filter of 1 GiB takes to open and recover when its process was killed.
#pragma once

#include "filter/keys.hpp"
#include "filter/options.hpp"

namespace dunnock::bench {

/// Milliseconds from opening the pool to the first answer. NaN, with the reason on stderr: the environment refuses.
[[nodiscard]] double reopen_ms(const FilterBenchOptions& options, const Keys& keys);

}  // namespace dunnock::bench
