// The headline table: a row per operation of a filter in a case, with the columns of its three forms.
#pragma once

#include <cmath>
#include <deque>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <utility>
#include <vector>

namespace dunnock::bench {

/// What a row is about.
struct RowKey {
  std::string structure, media, op, mode;
  unsigned load = 0;  // Percent.
  unsigned threads = 1;
  auto operator<=>(const RowKey&) const = default;
};

/// What was measured. NaN: was not.
struct Row : RowKey {
  std::vector<double> ns;  // A sample per round: wall time of all threads, divided by the operations.
  double bits_per_item = NAN;
  double fpr = NAN;                                 // False positives, as a share of the lookups.
  double flushes = NAN, fences = NAN, lines = NAN;  // Per operation.
  double p50 = NAN, p99 = NAN, p999 = NAN;          // Nanoseconds of one operation, reading the clock included.

  explicit Row(RowKey key = {}) : RowKey(std::move(key)) {}
  [[nodiscard]] double median_ns() const;
  [[nodiscard]] double mops() const { return 1000 / median_ns(); }
};

class Rows {
 public:
  /// The row of that key, which is added where there is none. The reference stays valid.
  [[nodiscard]] Row& at(const RowKey& key);
  /// The same to read: where there is none, one of which nothing was measured.
  [[nodiscard]] const Row& find(const RowKey& key) const;

  void print() const;
  [[nodiscard]] std::string csv() const;
  /// In the form of Google Benchmark's files, with the columns beside its own names.
  [[nodiscard]] nlohmann::json json() const;

 private:
  std::deque<Row> rows_;
  std::map<RowKey, Row*> index_;
};

}  // namespace dunnock::bench
