// dunnock-bench model: the lines that the probabilistic model predicts, beside those that are counted on a small table.
#include <CLI/CLI.hpp>
#include <cstdio>

#include "commands.hpp"
#include "filter/counts.hpp"
#include "model.hpp"

namespace dunnock::bench {
namespace {

int model_command(FilterBenchOptions options) {
  options.loads = {30, 50, 60, 70, 80, 85, 90, 93, 95};
  Rows rows;
  count_operations(options, rows);
  std::printf("lines touched per operation: model / measured\n%5s  %21s %21s %21s   %21s %21s\n", "load",
              "ours: insert", "negative", "positive", "textbook: insert", "negative");
  unsigned before = 0;
  for (const unsigned load : options.loads) {
    const ModelPoint at = model_at(load / 100.0), from = model_at(before / 100.0);
    const auto lines = [&](const char* structure, const char* op) {
      return rows.find({structure, name_of(Medium::kCounted), op, name_of(Mode::kSingle), load, 1}).lines;
    };
    std::printf("%4u%%  %10.3f /%9.3f %10.3f /%9.3f %10.3f /%9.3f   %10.3f /%9.3f %10.3f /%9.3f\n", load,
                (at.insert_lines + from.insert_lines) / 2, lines("dunnock-12", "insert"), at.negative_lines,
                lines("dunnock-12", "negative"), at.positive_lines, lines("dunnock-12", "positive"),
                (at.textbook_insert_lines + from.textbook_insert_lines) / 2, lines("textbook-durable", "insert"), 2.0,
                lines("textbook-durable", "negative"));
    before = load;
  }
  return 0;
}

}  // namespace

void add_model_command(CLI::App& app, Run& run) {
  static FilterBenchOptions options;
  CLI::App* model = app.add_subcommand("model", "the probabilistic model beside the measurement");
  model->add_option("--slots", options.slots, "fingerprints to have room for")
      ->check(CLI::Range(std::uint64_t{1000}, std::uint64_t{1} << 36))
      ->capture_default_str();
  model->add_option("--seed", options.seed)->capture_default_str();
  model->callback([&run] { run = [] { return model_command(options); }; });
}

}  // namespace dunnock::bench
