// dunnock-train: trains what a TOML file says. tools/train/README.md has the keys.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "config.hpp"
#include "dunnock/base/command_line.hpp"
#include "dunnock/base/last_catch.hpp"
#include "dunnock/base/printable.hpp"
#include "dunnock/base/program.hpp"
#include "dunnock/base/standard_streams.hpp"
#include "dunnock/ranks/communicator.hpp"
#include "dunnock/training/schedules.hpp"
#include "run.hpp"

namespace {

using namespace dunnock;

constexpr int kFailed = 1;
constexpr int kUsage = 2;
constexpr std::uint64_t kStepsMax = std::uint64_t{1} << 40;  // As in config.cpp.

// The conversions of CLI11 take "-3" for 18446744073709551613, and the like.
CLI::Validator whole_number(std::uint64_t least, std::uint64_t most) {
  const std::string wanted = "a whole number from " + std::to_string(least) + " to " + std::to_string(most);
  return {[least, most, wanted](std::string& text) {
            std::uint64_t value = 0;
            const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
            const bool is_one = !text.empty() && error == std::errc{} && end == text.data() + text.size();
            return is_one && value >= least && value <= most ? std::string() : "expected " + wanted + ", got " + text;
          },
          wanted, "whole number"};
}
CLI::Validator number_above_zero() {
  return {[](std::string& text) {
            double value = 0;
            const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
            const bool is_one = !text.empty() && error == std::errc{} && end == text.data() + text.size();
            return is_one && std::isfinite(value) && value > 0 ? std::string()
                                                               : "expected a number above 0, got " + text;
          },
          "a number above 0", "number above 0"};
}
CLI::Validator a_path() {
  return {[](std::string& text) { return text.empty() ? std::string("expected a path, got none") : std::string(); }, "",
          "path"};
}

int fail(const Error& error) {
  // Errors of a config are a line each; what they quote may be anything.
  std::string_view message = error.message;
  for (bool first = true; first || !message.empty(); first = false) {
    const std::size_t end = std::min(message.find('\n'), message.size());
    const std::string line = (first ? "dunnock-train: " : "") + printable(message.substr(0, end)) + "\n";
    (void)std::fwrite(line.data(), 1, line.size(), stderr);
    message.remove_prefix(std::min(end + 1, message.size()));
  }
  return kFailed;
}

int misused(const char* what) {
  fmt::print(stderr, "dunnock-train: {}\n", what);
  return kUsage;
}

/// Whether a launcher of MPI has started this process.
bool under_mpi() {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK"}) {
    if (std::getenv(name) != nullptr) return true;
  }
  return false;
}

/// An exception of others is an error here: the ranks that wait for this one need its end, and no unwinding.
Result<train::RunResult> run_and_catch(const train::LoadedConfig& loaded, const train::RunOptions& options,
                                       ranks::Communicator* world) {
  try {
    return train::run(loaded, options, world);
  } catch (...) {
    return make_error(ErrorCode::kIo, words_of_exception());
  }
}

int train_as_told(int argc, char** argv) {
  CLI::App app{"Trains a model as a TOML file says, by any schedule, with durable checkpoints."};
  std::string config_path;
  std::vector<std::string> overrides;
  std::string schedule;
  std::optional<std::uint64_t> steps;
  bool list_schedules = false;
  bool show_config = false;
  train::RunOptions options;
  app.add_option("--config", config_path, "TOML file; without one the defaults")->check(a_path());
  app.add_option("--set", overrides, "SECTION.KEY=VALUE, over the file's; may come often")->allow_extra_args(false);
  app.add_option("--schedule", schedule, "The same as --set run.schedule=NAME; --list-schedules names them");
  app.add_option("--steps", steps, "The same as --set run.steps=N")->check(whole_number(1, kStepsMax));
  app.add_flag("--resume", options.resume, "Goes on from the newest checkpoint of checkpoint.pool, if there is one");
  app.add_option("--resume-step", options.resume_step,
                 "Goes on from the checkpoint of this step; newer ones are removed")
      ->check(whole_number(0, kStepsMax));
  app.add_option("--change", options.changes,
                 "SECTION.KEY=VALUE, of a run that goes on: kept with its checkpoints from then on; may come often")
      ->allow_extra_args(false);
  app.add_flag("--verify", options.verify, "Compares every byte of the checkpoint with its checksum first");
  app.add_option("--trace", options.trace, "Writes when each operation of the last window ran (Chrome, Perfetto)")
      ->check(a_path());
  app.add_option("--weights", options.weights, "Begins with the weights of a safetensors file")->check(a_path());
  app.add_option("--save-weights", options.save_weights, "Writes the weights to a safetensors file at the end")
      ->check(a_path());
  app.add_option("--events", options.events, "Appends a JSON line as each save begins and ends, for what watches it")
      ->check(a_path());
  app.add_option("--max-seconds", options.seconds_max, "Stops then, saving")->check(number_above_zero());
  app.add_flag("--quiet", options.quiet, "No progress");
  app.add_flag("--list-schedules", list_schedules, "Prints the schedules and ends");
  app.add_flag("--show-config", show_config, "Prints the whole config and ends");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const std::string complaint = explain_parse_error(app, error, {argv, static_cast<std::size_t>(argc)});
    (void)std::fputs(complaint.c_str(), stderr);
    return complaint.empty() ? 0 : kUsage;
  }
  const bool resumes = options.resume || options.resume_step.has_value();
  if (!options.changes.empty() && !resumes)
    return misused(
        "--change needs --resume-step or --resume, because it changes a resumed run; use --set for a new run");
  options.command.assign(argv, argv + argc);

  if (list_schedules) {
    for (const training::ScheduleName& one : training::schedule_names())
      write_standard_output(fmt::format("{:<30} {:<14} {}\n", one.name, training::to_string(one.family), one.what));
    return 0;
  }
  if (!schedule.empty()) overrides.push_back("run.schedule=" + schedule);
  if (steps) overrides.push_back("run.steps=" + std::to_string(*steps));
  const auto loaded =
      config_path.empty() ? train::parse_config("", "defaults", overrides) : train::read_config(config_path, overrides);
  if (!loaded) return fail(loaded.error());
  for (const std::string& note : loaded->notes)
    (void)std::fputs(("dunnock-train: " + printable(note) + "\n").c_str(), stderr);
  if (show_config) {
    write_standard_output(train::to_toml(loaded->config));
    return 0;
  }
  if (const Status ready = train::check_ready(*loaded); !ready) return fail(ready.error());
  std::optional<ranks::Communicator> world;
  if (under_mpi()) {
    auto made = ranks::Communicator::mpi({.timeout = train::peer_timeout(loaded->config.run)});
    if (!made) return fail(made.error());
    if (made->size() > 1) world.emplace(std::move(*made));
  }
  train::stop_on_signals();
  const auto result = run_and_catch(*loaded, options, world ? &*world : nullptr);
  if (!result) {
    fail(result.error());
    // Other ranks may be waiting for this one: the launcher ends them when it goes without MPI's leave.
    if (world) std::_Exit(kFailed);
    return kFailed;
  }
  if (!result->saved || !result->logged) return kFailed;
  return result->interrupted ? train::kInterrupted : 0;
}

}  // namespace

int main(int argc, char** argv) {
  return run_program("dunnock-train", kFailed, [&] { return train_as_told(argc, argv); });
}
