#include "sanitizer.hpp"

#include <algorithm>
#include <string_view>

#include "checks.hpp"

namespace dunnock::gpu_check {
namespace {

/// The first lines with something on them, joined; those of the sanitizer itself if it says any.
std::string first_lines(std::string_view output, std::string_view prefix) {
  constexpr unsigned kLinesMax = 6;
  std::string lines;
  unsigned count = 0;
  while (!output.empty() && count < kLinesMax) {
    const std::size_t end = output.find('\n');
    std::string_view line = output.substr(0, end);
    output.remove_prefix(end == std::string_view::npos ? output.size() : end + 1);
    if (!line.starts_with(prefix)) continue;
    line.remove_prefix(prefix.size());
    const std::size_t begin = line.find_first_not_of(" \t=");
    if (begin == std::string_view::npos || line.substr(begin) == "COMPUTE-SANITIZER") continue;
    if (count++ != 0) lines += " | ";
    lines += line.substr(begin, 200);
  }
  return lines;
}

}  // namespace

Verdict judge_sanitizer(const Finished& finished, double seconds_max) {
  constexpr std::string_view kPrefix = "=========";
  if (finished.timed_out)
    return {Outcome::kSkipped, "it was not finished within " + std::to_string(static_cast<int>(seconds_max)) + " s"};
  const std::string said = first_lines(finished.output, kPrefix);
  // Every tool closes with a summary ("ERROR SUMMARY: 0 errors", "RACECHECK SUMMARY: 0 hazards displayed"). Without one
  // it has looked at nothing: some machines do not let it attach.
  const bool looked = finished.output.find(" SUMMARY: ") != std::string::npos;
  if (!looked) {
    const std::string why = !said.empty() ? said : first_lines(finished.output, "");
    return {Outcome::kSkipped, "it does not work on this machine" + (why.empty() ? "" : ": " + why)};
  }
  if (finished.status == 0) return {Outcome::kPassed, ""};
  if (finished.status == kSanitizerFound) return {Outcome::kFailed, said};
  return {Outcome::kFailed, "the checks ended with " + std::to_string(finished.status) + " under it: " + said};
}

std::string why_kernels_were_left_out(const std::string& output) {
  const std::string mark = std::string("skipped  ") + kAllKernels + ": ";  // As Report prints it.
  const std::size_t at = output.find(mark);
  if (at == std::string::npos) return {};
  const std::size_t begin = at + mark.size();
  return output.substr(begin, output.find('\n', begin) - begin);
}

void run_sanitizers(const std::vector<std::string>& checks, const Budget& budget, Report& report) {
  constexpr double kSecondsMax = 60;
  constexpr double kSecondsMin = 10;
  const std::string sanitizer = find_program("compute-sanitizer");
  // In the order of what they find most.
  for (const std::string tool : {"memcheck", "racecheck", "initcheck"}) {
    const std::string name = "compute-sanitizer " + tool;
    if (sanitizer.empty()) {
      report.skip(name, "not on this machine: compute-sanitizer is not on PATH");
      continue;
    }
    const double seconds = std::min(kSecondsMax, budget.seconds_left() - kSecondsMin);
    if (seconds < kSecondsMin) {
      report.skip(name, "no time is left");
      continue;
    }
    std::vector<std::string> command{
        sanitizer, "--tool", tool, "--error-exitcode", std::to_string(kSanitizerFound), "--print-limit", "5"};
    command.insert(command.end(), checks.begin(), checks.end());
    // A little more than it has, so that it leaves out kernels in time, and does not end itself before we do.
    command.insert(command.end(), {"--seconds", std::to_string(seconds + 10)});
    const Finished finished = run_process(command, {.seconds_max = seconds, .with_errors = true});
    const Verdict verdict = judge_sanitizer(finished, seconds);
    if (verdict.outcome == Outcome::kSkipped) {
      report.skip(name, verdict.why);
    } else {
      report.check(name, verdict.outcome == Outcome::kPassed ? "" : verdict.why);
      const std::string why = why_kernels_were_left_out(finished.output);
      if (!why.empty()) report.skip(name + ", " + kAllKernels, why);
    }
  }
}

}  // namespace dunnock::gpu_check
