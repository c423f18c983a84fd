// dunnock-bench: what the structures do, on what, against what. See docs/benchmarking.md for the method.
// Exit codes: 0 fine, 2 usage, 3 environment.
#include <CLI/CLI.hpp>

#include <cstdio>

#include "commands.hpp"
#include "dunnock/base/command_line.hpp"
#include "dunnock/base/program.hpp"

namespace {

int measure(int argc, char** argv) {
  CLI::App app("Measures dunnock's structures beside what one would use instead, in one process run.");
  app.require_subcommand(1);
  dunnock::bench::Run run;
  dunnock::bench::add_filter_command(app, run);
  dunnock::bench::add_model_command(app, run);
  dunnock::bench::add_index_command(app, run);
  dunnock::bench::add_checkpoint_command(app, run);
  dunnock::bench::add_prefix_command(app, run);
  dunnock::bench::add_kernels_command(app, run);
  dunnock::bench::add_collectives_command(app, run);
  dunnock::bench::add_overlap_command(app, run);
  dunnock::bench::add_schedules_command(app, run);
  dunnock::bench::add_simulator_command(app, run);
  dunnock::bench::add_training_command(app, run);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const std::string complaint = dunnock::explain_parse_error(app, error, {argv, static_cast<std::size_t>(argc)});
    (void)std::fputs(complaint.c_str(), stderr);
    return complaint.empty() ? 0 : 2;
  }
  return run();
}

}  // namespace

int main(int argc, char** argv) {
  return dunnock::run_program("dunnock-bench", 3, [&] { return measure(argc, argv); });
}
