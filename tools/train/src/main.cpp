// dunnock-train: trains what a TOML file says. tools/train/README.md has the keys.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <optional>
#include <string>
#include <vector>

#include "config.hpp"
#include "dunnock/base/last_catch.hpp"
#include "dunnock/gpu/communicator.hpp"
#include "dunnock/training/schedules.hpp"
#include "run.hpp"

namespace {

using namespace dunnock;

constexpr int kFailed = 1;
constexpr int kInterrupted = 130;

int fail(const Error& error) {
  fmt::print(stderr, "dunnock-train: {}\n", error.message);
  return kFailed;
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
                                       gpu::Communicator* world) {
  try {
    return train::run(loaded, options, world);
  } catch (...) {
    return make_error(ErrorCode::kIo, words_of_exception());
  }
}

}  // namespace

int main(int argc, char** argv) try {
  CLI::App app{"Trains a model as a TOML file says, by any schedule, with durable checkpoints."};
  std::string config_path;
  std::vector<std::string> overrides;
  std::string schedule;
  std::uint64_t steps = 0;
  bool list_schedules = false;
  bool show_config = false;
  train::RunOptions options;
  app.add_option("--config", config_path, "TOML file; without one the defaults");
  app.add_option("--set", overrides, "SECTION.KEY=VALUE, over the file's; may come often")->allow_extra_args(false);
  app.add_option("--schedule", schedule, "The same as --set run.schedule=NAME; --list-schedules names them");
  app.add_option("--steps", steps, "The same as --set run.steps=N");
  app.add_flag("--resume", options.resume, "Goes on from the newest checkpoint of checkpoint.pool, if there is one");
  app.add_option("--resume-step", options.resume_step,
                 "Goes on from the checkpoint of this step; newer ones are removed");
  app.add_flag("--verify", options.verify, "Compares every byte of the checkpoint with its checksum first");
  app.add_option("--trace", options.trace, "Writes when each operation of the last window ran (Chrome, Perfetto)");
  app.add_option("--weights", options.weights, "Begins with the weights of a safetensors file");
  app.add_option("--save-weights", options.save_weights, "Writes the weights to a safetensors file at the end");
  app.add_option("--events", options.events, "Appends a JSON line as each save begins and ends, for what watches it");
  app.add_option("--max-seconds", options.seconds_max, "Stops then, saving");
  app.add_flag("--quiet", options.quiet, "No progress");
  app.add_flag("--list-schedules", list_schedules, "Prints the schedules and ends");
  app.add_flag("--show-config", show_config, "Prints the whole config and ends");
  CLI11_PARSE(app, argc, argv);

  if (list_schedules) {
    for (const training::ScheduleName& one : training::schedule_names())
      fmt::print("{:<30} {:<14} {}\n", one.name, training::to_string(one.family), one.what);
    return 0;
  }
  if (!schedule.empty()) overrides.push_back("run.schedule=" + schedule);
  if (steps != 0) overrides.push_back("run.steps=" + std::to_string(steps));
  const auto loaded =
      config_path.empty() ? train::parse_config("", "defaults", overrides) : train::read_config(config_path, overrides);
  if (!loaded) return fail(loaded.error());
  if (show_config) {
    fmt::print("{}", train::to_toml(loaded->config));
    return 0;
  }
  if (const Status ready = train::check_ready(*loaded); !ready) return fail(ready.error());
  std::optional<gpu::Communicator> world;
  if (under_mpi()) {
    auto made = gpu::Communicator::mpi({.timeout = train::peer_timeout(loaded->config.run)});
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
  if (!result->saved) return kFailed;
  return result->interrupted ? kInterrupted : 0;
} catch (...) {
  fmt::print(stderr, "dunnock-train: {}\n", dunnock::words_of_exception());
  return kFailed;
}
