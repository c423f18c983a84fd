// dunnock-bench filter: throughput, flushes, fences, lines, space and false positives of the filter and of what one
// would use instead. The parts are in filter/: which cases there are (cases.hpp), how each is filled and timed
// (fill.hpp), what is counted (counts.hpp), the floors, the reopening, and the targets.
#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "commands.hpp"
#include "filter/cases.hpp"
#include "filter/counts.hpp"
#include "filter/fill.hpp"
#include "filter/floors.hpp"
#include "filter/keys.hpp"
#include "filter/reopen.hpp"
#include "filter/rows.hpp"
#include "filter/subject.hpp"
#include "filter/targets.hpp"
#include "report.hpp"

namespace dunnock::bench {
namespace {

FilterResults measure(const FilterBenchOptions& options) {
  FilterResults results;
  Keys keys(options.slots + options.slots / 50, options.seed);
  for (unsigned round = 0; round < options.repeat; ++round) {
    std::fprintf(stderr, "round %u of %u\n", round + 1, options.repeat);
    results.floors.measure(table_bytes(options.bits, options.slots));
    for (const Case& one : cases_of(options)) {
      if (round == 0 || !one.once) fill_and_measure(one, options, round, keys, results.rows);
    }
    if (options.wants("file")) insert_on_file(options, keys, results.rows);
    if (round != 0) continue;
    count_operations(options, results.rows);
    results.highest_load = highest_load(options, keys);
  }
  if (!options.quick) results.reopen_ms = reopen_ms(options, keys);
  return results;
}

int filter_command(const FilterBenchOptions& options) {
  const FilterResults results = measure(options);
  Report report;
  results.rows.print();
  results.floors.print();
  report_targets(options, results, report);
  report.note("library_build_type", "release");
  report.note("slots", options.slots);
  report.note("fingerprint_bits", options.bits);
  report.note("repeat", options.repeat);
  report.note("seed", options.seed);
  report.note("floors_ns", results.floors.json());
  // Readers of this file look values up by name.
  nlohmann::json targets;
  for (const nlohmann::json& target : report.targets()) targets[target["what"]] = target["value"];
  report.note("targets", targets);
  if (const int status = report.write_json(options.json, "filter", results.rows.json()); status != 0) return status;
  return write_result(options.csv, results.rows.csv());
}

}  // namespace

void add_filter_command(CLI::App& app, Run& run) {
  static FilterBenchOptions options;
  CLI::App* filter = app.add_subcommand("filter", "throughput, flushes, fences, lines, space, false positives");
  filter->add_option("--slots", options.slots, "fingerprints to have room for")
      ->check(CLI::Range(std::uint64_t{1000}, std::uint64_t{1} << 36))
      ->capture_default_str();
  filter->add_option("--seed", options.seed)->capture_default_str();
  filter->add_option("--fingerprint-bits", options.bits, "8, 12 or 16")
      ->check(CLI::IsMember({8, 12, 16}))
      ->capture_default_str();
  filter->add_option("--loads", options.loads, "percent, ascending")
      ->delimiter(',')
      ->check(CLI::Range(1, 96))
      ->capture_default_str();
  filter->add_option("--threads", options.threads)->delimiter(',')->check(CLI::Range(1, 256))->capture_default_str();
  filter->add_option("--media", options.media, "dram, direct, nvm, process, file")
      ->delimiter(',')
      ->check(CLI::IsMember({"dram", "direct", "nvm", "process", "file"}))
      ->capture_default_str();
  filter->add_option("--repeat", options.repeat, "rounds; medians are reported")
      ->check(CLI::Range(1, 100))
      ->capture_default_str();
  filter->add_option("--nvm-slots", options.nvm_slots, "table for the emulated NVM, which is slow")
      ->check(CLI::Range(std::uint64_t{1000}, std::uint64_t{1} << 36))
      ->capture_default_str();
  filter->add_option("--nvm-read-ns", options.nvm.read_ns, "added latency of a 256-byte block")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  filter->add_option("--nvm-write-gbps", options.nvm.write_gb_per_s, "bandwidth of written blocks")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  filter->add_flag("--quick", options.quick, "leave out ablations and the 1-GiB reopen");
  filter->add_option("--json", options.json, "Google-Benchmark-compatible file");
  filter->add_option("--csv", options.csv, "file");
  filter->callback([&run] {
    run = [] {
      std::sort(options.loads.begin(), options.loads.end());
      return filter_command(options);
    };
  });
}

}  // namespace dunnock::bench
