// What the commands measure: rows of samples, their medians, and targets.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "dunnock/base/output_file.hpp"
#include "timing.hpp"

namespace dunnock::bench {

/// What a target asks of a value.
struct Bound {
  const char* relation;  ///< As it is shown; empty: nothing is asked.
  double limit;
  const char* unit;

  [[nodiscard]] bool met_by(double value) const {
    const std::string_view is = relation;
    if (is == "<=") return value <= limit;
    if (is == ">=") return value >= limit;
    if (is == "<") return value < limit;
    return is.empty() || value == limit;
  }
  [[nodiscard]] std::string text() const {
    if (*relation == '\0') return "";
    char text[64];
    std::snprintf(text, sizeof text, "%s %g%s%s", relation, limit, *unit == '\0' ? "" : " ", unit);
    return text;
  }
};
constexpr Bound at_most(double limit, const char* unit = "") { return {"<=", limit, unit}; }
constexpr Bound at_least(double limit, const char* unit = "") { return {">=", limit, unit}; }
constexpr Bound below(double limit, const char* unit = "") { return {"<", limit, unit}; }
constexpr Bound exactly(double limit, const char* unit = "") { return {"=", limit, unit}; }
constexpr Bound no_bound() { return {"", 0, ""}; }

/// Writes what a command leaves. The exit status: 0, or 3 with the reason on stderr. An empty path: nothing to do.
inline int write_result(const std::string& path, const std::string& text) {
  if (path.empty()) return 0;
  const Status written = write_output_file(path, text);
  if (written) return 0;
  std::fprintf(stderr, "%s\n", written.error().message.c_str());
  return 3;
}

class Report {
 public:
  /// One sample of what `system` does in `setting` (a medium, a durability, a number of threads).
  void add(const std::string& what, const std::string& setting, const std::string& system, const std::string& unit,
           double value) {
    for (Row& row : rows_) {
      if (row.what == what && row.setting == setting && row.system == system) return row.values.push_back(value);
    }
    rows_.push_back({what, setting, system, unit, {value}});
  }
  [[nodiscard]] double median(const std::string& what, const std::string& setting, const std::string& system) const {
    for (const Row& row : rows_) {
      if (row.what == what && row.setting == setting && row.system == system) return median_of(row.values);
    }
    return NAN;
  }
  [[nodiscard]] double least(const std::string& what, const std::string& setting, const std::string& system) const {
    for (const Row& row : rows_) {
      if (row.what == what && row.setting == setting && row.system == system)
        return *std::ranges::min_element(row.values);
    }
    return NAN;
  }
  /// How many times `ours` the value of `theirs` is.
  [[nodiscard]] double times(const std::string& what, const std::string& setting, const std::string& theirs,
                             const std::string& ours = "dunnock") const {
    return median(what, setting, theirs) / median(what, setting, ours);
  }
  void print_rows() const {
    std::printf("%-26s %-26s %-22s %14s  %s\n", "what", "setting", "system", "median", "min .. max");
    for (const Row& row : rows_) {
      const auto [low, high] = std::minmax_element(row.values.begin(), row.values.end());
      std::printf("%-26s %-26s %-22s %11.4g %s  %.4g .. %.4g\n", row.what.c_str(), row.setting.c_str(),
                  row.system.c_str(), median_of(row.values), row.unit.c_str(), *low, *high);
    }
  }
  /// NaN: was not measured.
  void target(const std::string& what, double value, const Bound& wanted) {
    const bool met = wanted.met_by(value);
    targets_.push_back({{"what", what}, {"value", value}, {"target", wanted.text()}, {"met", met}});
    std::printf("%-72s %10.4g  target %-9s %s\n", what.c_str(), value, wanted.text().c_str(),
                std::isnan(value) ? "not measured"
                : met             ? "met"
                                  : "MISSED");
  }
  void add_skipped(const std::string& what, const std::string& why) { context_["skipped"][what] = why; }
  void note(const std::string& key, const nlohmann::json& value) { context_[key] = value; }
  /// The rows so far, as write_json() writes them.
  [[nodiscard]] nlohmann::json benchmarks(const std::string& command) const {
    nlohmann::json all = nlohmann::json::array();
    for (const Row& row : rows_) {
      all.push_back({{"name", command + "/" + row.what + "/" + row.setting + "/" + row.system},
                     {"run_type", "aggregate"},
                     {"aggregate_name", "median"},
                     {"value", median_of(row.values)},
                     {"unit", row.unit},
                     {"samples", row.values}});
    }
    return all;
  }
  [[nodiscard]] const nlohmann::json& targets() const { return targets_; }
  /// Writes the notes, the targets and `benchmarks`: the rows, unless a command has a table of its own.
  /// The exit status; usage where what was asked for measures nothing.
  [[nodiscard]] int write_json(const std::string& path, const std::string& command,
                               const nlohmann::json& benchmarks) const {
    if (benchmarks.empty()) {
      std::fprintf(stderr, "nothing was measured\n");
      return 2;
    }
    nlohmann::json context = {{"executable", "dunnock-bench"},
                              {"command", command},
                              {"num_cpus", std::thread::hardware_concurrency()},
                              {"targets", targets_}};
    context.update(context_);
    return write_result(path, nlohmann::json{{"context", context}, {"benchmarks", benchmarks}}.dump(2) + "\n");
  }
  [[nodiscard]] int write_json(const std::string& path, const std::string& command) const {
    return write_json(path, command, benchmarks(command));
  }

 private:
  struct Row {
    std::string what, setting, system, unit;
    std::vector<double> values;
  };
  std::vector<Row> rows_;
  nlohmann::json targets_ = nlohmann::json::array();
  nlohmann::json context_ = nlohmann::json::object();
};

}  // namespace dunnock::bench
