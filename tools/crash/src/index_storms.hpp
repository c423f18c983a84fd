// Kill storms and damage for the structures of index/.
#pragma once

#include "structures.hpp"

namespace dunnock::crash {

[[nodiscard]] KillResult kill_index(const KillOptions& options);
[[nodiscard]] KillResult kill_log(const KillOptions& options);
[[nodiscard]] KillResult kill_checkpoint(const KillOptions& options);
[[nodiscard]] KillResult kill_prefix(const KillOptions& options);
[[nodiscard]] std::vector<CorruptCase> corrupt_index(const CorruptOptions& options);
[[nodiscard]] std::vector<CorruptCase> corrupt_log(const CorruptOptions& options);
[[nodiscard]] std::vector<CorruptCase> corrupt_checkpoint(const CorruptOptions& options);
[[nodiscard]] std::vector<CorruptCase> corrupt_prefix(const CorruptOptions& options);

}  // namespace dunnock::crash
