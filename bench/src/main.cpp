// dunnock-bench: what the structures do, on what, against what. See docs/benchmarking.md for the method.
// Exit codes: 0 fine, 2 usage, 3 environment.
#include <CLI/CLI.hpp>
#include <cstdio>

#include <cstdio>

#include "commands.hpp"
#include "dunnock/base/command_line.hpp"
#include "dunnock/base/last_catch.hpp"
#include "dunnock/base/standard_streams.hpp"

namespace {

int measure(int argc, char** argv) try {
  CLI::App app("Measures dunnock's structures beside what one would use instead, in one process run.");
  app.require_subcommand(1);
  dunnock::bench::Run run;
  dunnock::bench::add_filter_commands(app, run);
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
    const std::string complaint =
        dunnock::explain_parse_error(app, error, {argv, static_cast<std::size_t>(argc)});
    (void)std::fputs(complaint.c_str(), stderr);
    return complaint.empty() ? 0 : 2;
  }
  return run();
} catch (...) {
  std::fprintf(stderr, "dunnock-bench: %s\n", dunnock::words_of_exception().c_str());
  return 3;
}

}  // namespace

int main(int argc, char** argv) {
  dunnock::keep_standard_descriptors();
  const int status = measure(argc, argv);
  const dunnock::Status printed = dunnock::flush_standard_output();
  if (printed) return status;
  std::fprintf(stderr, "dunnock-bench: %s\n", printed.error().message.c_str());
  return status == 0 ? 3 : status;
}
