// What the commands for the index structures measure: rows of samples, their medians, and targets.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "dunnock/base/output_file.hpp"

namespace dunnock::bench {

inline double median_of(std::vector<double> values) {
  if (values.empty()) return NAN;
  std::sort(values.begin(), values.end());
  const std::size_t n = values.size();
  return n % 2 == 1 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

/// Wall time of work(), in nanoseconds.
template <class Work>
double ns_of(const Work& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - start).count();
}

/// Calls work(thread) on `threads` threads; returns when all calls have.
template <class Work>
void on_threads(unsigned threads, const Work& work) {
  std::vector<std::thread> others;
  for (unsigned thread = 1; thread < threads; ++thread) others.emplace_back([&work, thread] { work(thread); });
  work(0U);
  for (std::thread& one : others) one.join();
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
  /// `met`: is the value what the target asks for?
  void target(const std::string& what, double value, const std::string& wanted, bool met) {
    targets_.push_back({{"what", what}, {"value", value}, {"target", wanted}, {"met", met}});
    std::printf("%-72s %10.4g  target %-9s %s\n", what.c_str(), value, wanted.c_str(),
                std::isnan(value) ? "not measured"
                : met             ? "met"
                                  : "MISSED");
  }
  void add_skipped(const std::string& what, const std::string& why) { context_["skipped"][what] = why; }
  void note(const std::string& key, const nlohmann::json& value) { context_[key] = value; }
  /// The exit status; usage where what was asked for measures nothing.
  [[nodiscard]] int write_json(const std::string& path, const std::string& command) const {
    if (rows_.empty()) {
      std::fprintf(stderr, "nothing was measured\n");
      return 2;
    }
    if (path.empty()) return 0;
    nlohmann::json out;
    out["context"] = context_;
    out["context"]["executable"] = "dunnock-bench";
    out["context"]["command"] = command;
    out["context"]["num_cpus"] = std::thread::hardware_concurrency();
    out["context"]["targets"] = targets_;
    for (const Row& row : rows_) {
      out["benchmarks"].push_back({{"name", command + "/" + row.what + "/" + row.setting + "/" + row.system},
                                   {"run_type", "aggregate"},
                                   {"aggregate_name", "median"},
                                   {"value", median_of(row.values)},
                                   {"unit", row.unit},
                                   {"samples", row.values}});
    }
    const Status written = write_output_file(path, out.dump(2) + "\n");
    if (written) return 0;
    std::fprintf(stderr, "%s\n", written.error().message.c_str());
    return 3;
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
