#include "filter/targets.hpp"

#include <cstdio>
#include <string>
#include <string_view>

#include "filter/cases.hpp"

namespace dunnock::bench {
namespace {

/// The rows that targets are about: at the top load, of one thread, unless they say otherwise. Where a row was not
/// measured, neither is its target.
struct Measured {
  const FilterBenchOptions& options;
  const FilterResults& results;

  [[nodiscard]] const Row& dram(const char* op, Mode mode = Mode::kSingle) const {
    return row(ours(), Medium::kDram, op, mode);
  }
  [[nodiscard]] const Row& textbook(const char* op) const {
    return row("textbook-4x12", Medium::kDram, op, Mode::kSingle);
  }
  [[nodiscard]] const Row& durable(const char* op, Mode mode = Mode::kSingle) const {
    return row(ours(), Medium::kDirect, op, mode);
  }
  /// Up to the first load, where keys go into empty lanes.
  [[nodiscard]] const Row& plain_durable_insert(Mode mode = Mode::kSingle) const {
    return results.rows.find(
        {ours(), name_of(Medium::kDirect), "insert", name_of(mode), options.loads.front(), /*threads=*/1});
  }
  [[nodiscard]] const Row& nvm_insert(const std::string& structure) const {
    return results.rows.find({structure, name_of(Medium::kNvm), "insert", name_of(Mode::kSingle), options.loads.back(),
                              options.threads.back()});
  }
  [[nodiscard]] std::string ours() const { return "dunnock-" + std::to_string(options.bits); }
  [[nodiscard]] const Row& row(const std::string& structure, Medium medium, const char* op, Mode mode) const {
    const bool is_fill = std::string_view(op) == "fill";
    const unsigned load = is_fill ? options.stops().back() : options.loads.back();
    return results.rows.find({structure, name_of(medium), op, name_of(mode), load, /*threads=*/1});
  }
};

/// How many times as long `theirs` takes.
double times(const Row& theirs, const Row& ours) { return theirs.median_ns() / ours.median_ns(); }

using M = const Measured&;
using enum Mode;

struct FilterTarget {
  const char* what;
  Bound wanted;
  double (*value)(M);
};

constexpr FilterTarget kTargets[] = {
    {"bits per item at the top load", at_most(13.5), [](M m) { return m.dram("insert").bits_per_item; }},
    {"false positives at the top load", at_most(0.25, "%"), [](M m) { return 100 * m.dram("negative").fpr; }},
    {"highest load before a refusal", at_least(97, "%"), [](M m) { return 100 * m.results.highest_load; }},
    {"DRAM fill, single insert, times textbook 4x12", at_least(2.5, "x"),
     [](M m) { return times(m.textbook("fill"), m.dram("fill")); }},
    {"DRAM fill, bulk insert, times textbook 4x12 (single)", at_least(5, "x"),
     [](M m) { return times(m.textbook("fill"), m.dram("fill", kBulk)); }},
    {"DRAM insert in the last 1 % before the top load, times textbook", at_least(5, "x"),
     [](M m) { return times(m.textbook("insert"), m.dram("insert")); }},
    {"DRAM negative lookup at the top load, single, times textbook", at_least(1.2, "x"),
     [](M m) { return times(m.textbook("negative"), m.dram("negative")); }},
    {"DRAM positive lookup at the top load, single, times textbook", at_least(1.0, "x"),
     [](M m) { return times(m.textbook("positive"), m.dram("positive")); }},
    {"DRAM negative lookup, bulk, times textbook (single)", at_least(2, "x"),
     [](M m) { return times(m.textbook("negative"), m.dram("negative", kBulk)); }},
    {"DRAM positive lookup, bulk, times textbook (single)", at_least(2, "x"),
     [](M m) { return times(m.textbook("positive"), m.dram("positive", kBulk)); }},
    {"durable plain insert (to 50 %), times the floor", at_most(1.25, "x"),
     [](M m) { return m.plain_durable_insert().median_ns() / median_of(m.results.floors.persist); }},
    {"durable bulk insert (to 50 %), times durable single", at_least(4, "x"),
     [](M m) { return times(m.plain_durable_insert(), m.plain_durable_insert(kBulk)); }},
    {"durable bulk fill, times durable single fill", at_least(4, "x"),
     [](M m) { return times(m.durable("fill"), m.durable("fill", kBulk)); }},
    {"durable fill, flushed lines per insert, log and marks included", at_most(1.4),
     [](M m) { return m.durable("fill").flushes; }},
    {"emulated NVM, parallel insert in the last 1 %, times durable textbook", at_least(5, "x"),
     [](M m) { return times(m.nvm_insert("textbook-durable"), m.nvm_insert(m.ours())); }},
    {"reopen and recover 1 GiB after a kill", at_most(50, "ms"), [](M m) { return m.results.reopen_ms; }},
};

}  // namespace

void report_targets(const FilterBenchOptions& options, const FilterResults& results, Report& report) {
  std::printf("\nAgainst the targets (medians of %u rounds, %llu slots):\n", options.repeat,
              static_cast<unsigned long long>(options.slots));
  const Measured measured{options, results};
  for (const FilterTarget& target : kTargets) report.target(target.what, target.value(measured), target.wanted);
}

}  // namespace dunnock::bench
