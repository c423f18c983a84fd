// The checks once more, under compute-sanitizer, where the CUDA toolkit has it.
#pragma once

#include <string>
#include <vector>

#include "budget.hpp"
#include "process.hpp"
#include "report.hpp"

namespace dunnock::gpu_check {

/// What a run under one of its tools has shown. The sanitizer ends with this code when it has found something.
inline constexpr int kSanitizerFound = 86;
struct Verdict {
  Outcome outcome = Outcome::kSkipped;
  std::string why;  // When it did not pass.
};
[[nodiscard]] Verdict judge_sanitizer(const Finished& finished, double seconds_max);

/// What the checks have said of kernels that they had no time for; empty: they did all.
[[nodiscard]] std::string why_kernels_were_left_out(const std::string& output);

/// Runs `checks` (a command: this program, its small checks) under memcheck, racecheck and initcheck, one check each
/// in the report: passed, failed with the first lines, or skipped with the reason.
void run_sanitizers(const std::vector<std::string>& checks, const Budget& budget, Report& report);

}  // namespace dunnock::gpu_check
