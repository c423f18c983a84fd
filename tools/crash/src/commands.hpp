// The commands explore and mutants, whatever way of exploring they are given, and how every command ends. Each returns
// an exit code.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "exploration.hpp"

namespace dunnock::crash {

inline constexpr int kFine = 0, kViolated = 1, kUsage = 2, kEnvironment = 3;

/// Writes the report to the file `json`, if it has a name. Returns `code`, or kEnvironment if it can't be written.
[[nodiscard]] int finish(const std::string& json, const nlohmann::json& report, int code);
/// For a run that ends without having checked anything: that is no pass.
[[nodiscard]] int finish_without_a_check(const std::string& json, nlohmann::json report, const char* what);

/// Explores histories until settings.images images have been checked, or one violates its contract.
[[nodiscard]] int explore_histories(const Settings& settings);
/// Prints the names of the bugs that can be planted, one per line.
[[nodiscard]] int list_bugs(const Settings& settings);
/// Plants bugs, one at a time, and explores with each of them until it is caught.
[[nodiscard]] int plant_bugs(const Settings& settings);

}  // namespace dunnock::crash
