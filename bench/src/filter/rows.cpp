#include "filter/rows.hpp"

#include <span>

#include "report.hpp"
#include "table.hpp"

namespace dunnock::bench {
namespace {

using Json = nlohmann::json;

// name in files, heading on the terminal, width, digits, value
constexpr Column<Row> kColumnList[] = {
    {"structure", "structure", -28, 0, [](const Row& row) -> Json { return row.structure; }},
    {"media", "media", -15, 0, [](const Row& row) -> Json { return row.media; }},
    {"op", "op", -9, 0, [](const Row& row) -> Json { return row.op; }},
    {"mode", "mode", -6, 0, [](const Row& row) -> Json { return row.mode; }},
    {"load", "load", 4, 0, [](const Row& row) -> Json { return row.load; }},
    {"threads", "thr", 3, 0, [](const Row& row) -> Json { return row.threads; }},
    {"ns", "ns/op", 9, 1, [](const Row& row) -> Json { return row.median_ns(); }},
    {"mops", "Mops/s", 8, 2, [](const Row& row) -> Json { return row.mops(); }},
    {"flushes_per_op", "flush", 7, 3, [](const Row& row) -> Json { return row.flushes; }},
    {"fences_per_op", "fence", 7, 3, [](const Row& row) -> Json { return row.fences; }},
    {"lines_per_op", "lines", 7, 3, [](const Row& row) -> Json { return row.lines; }},
    {"bits_per_item", "bits", 7, 2, [](const Row& row) -> Json { return row.bits_per_item; }},
    {"fpr", "", 0, 0, [](const Row& row) -> Json { return row.fpr; }},
    {"", "fpr %", 9, 4, [](const Row& row) -> Json { return 100 * row.fpr; }},
    {"p50_ns", "", 0, 0, [](const Row& row) -> Json { return row.p50; }},
    {"p99_ns", "p99 ns", 7, 0, [](const Row& row) -> Json { return row.p99; }},
    {"p999_ns", "", 0, 0, [](const Row& row) -> Json { return row.p999; }},
};
constexpr std::span<const Column<Row>> kColumns(kColumnList);

}  // namespace

double Row::median_ns() const { return median_of(ns); }

Row& Rows::at(const RowKey& key) {
  Row*& found = index_[key];
  if (found == nullptr) found = &rows_.emplace_back(key);
  return *found;
}

const Row& Rows::find(const RowKey& key) const {
  static const Row nothing;
  const auto found = index_.find(key);
  return found == index_.end() ? nothing : *found->second;
}

void Rows::print() const { print_table(kColumns, rows_); }

std::string Rows::csv() const { return csv_of(kColumns, rows_); }

Json Rows::json() const {
  Json all = Json::array();
  for (const Row& row : rows_) {
    Json one = json_of(kColumns, row);
    const double ns = row.median_ns();
    one.update({{"name", row.structure + "/" + row.media + "/" + row.op + "/" + row.mode +
                             "/load:" + std::to_string(row.load) + "/threads:" + std::to_string(row.threads)},
                {"run_name", row.structure + "/" + row.op},
                {"run_type", "iteration"},
                {"repetitions", row.ns.size()},
                {"repetition_index", 0},
                {"iterations", 1},
                {"real_time", ns},
                {"cpu_time", ns},
                {"time_unit", "ns"}});
    all.push_back(std::move(one));
  }
  return all;
}

}  // namespace dunnock::bench
