// The filter in a real process on a real pool file: killed, and damaged.
#pragma once

#include "structures.hpp"

namespace dunnock::crash {

[[nodiscard]] KillResult kill_filter(const KillOptions& options);
[[nodiscard]] std::vector<CorruptCase> corrupt_filter(const CorruptOptions& options);

}  // namespace dunnock::crash
