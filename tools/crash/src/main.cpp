// dunnock-crash: explores power failures, kills processes, damages files, and proves by planted bugs that it notices.
// Exit codes: 0 fine, 1 violated, 2 usage, 3 environment.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <thread>

#include "commands.hpp"
#include "dunnock/base/command_line.hpp"
#include "dunnock/base/program.hpp"
#include "life.hpp"
#include "structures.hpp"

namespace {

using dunnock::crash::finish;
using dunnock::crash::finish_without_a_check;
using dunnock::crash::kEnvironment;
using dunnock::crash::kFine;
using dunnock::crash::kUsage;
using dunnock::crash::kViolated;
using dunnock::crash::Settings;
using dunnock::crash::Structure;
using Clock = std::chrono::steady_clock;
using Json = nlohmann::json;

/// What the commands take besides the structure, the seed, the threads and the JSON.
struct Options {
  std::string directory;
  std::string kill_media = "process";
  unsigned kills = 20;
  unsigned rounds = 200;
  bool lists = false;
  dunnock::crash::LifeOptions life;
};

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

int kill_storm(const Structure& structure, const Settings& settings, const Options& options) {
  dunnock::crash::KillOptions how;
  how.path =
      (std::filesystem::path(options.directory) / ("dunnock-kill-" + std::to_string(getpid()) + ".pool")).string();
  how.seed = settings.seed;
  how.kills = options.kills;
  how.threads = std::min(settings.threads, 8U);
  how.process_media = options.kill_media == "process";
  if (isatty(STDERR_FILENO) != 0) how.progress = [](unsigned kills) { std::fprintf(stderr, "\r%u kills ", kills); };
  const auto start = Clock::now();
  const auto result = structure.kill(how);
  if (how.progress) std::fprintf(stderr, "\r\033[K");
  std::printf(
      "%u kills on %s media (%u of them at a chosen step, %u more during recovery), %llu operations acknowledged, "
      "%llu kicks completed by recovery, open and recover at most %.1f ms, %.1f s\n",
      result.kills, options.kill_media.c_str(), result.kills_at_steps, result.kills_in_recovery,
      static_cast<unsigned long long>(result.acknowledged), static_cast<unsigned long long>(result.completed_kicks),
      result.recovery_ms_max, seconds_since(start));
  const bool checked = result.kills != 0 && result.acknowledged != 0;
  std::printf("%s\n",
              result.violation.empty()
                  ? (checked ? "no violation" : "nothing was acknowledged before a kill")
                  : ("VIOLATION " + result.violation + "\nreplay: --seed " + std::to_string(settings.seed)).c_str());
  const Json report = {{"command", "kill"},
                       {"structure", settings.structure},
                       {"media", options.kill_media},
                       {"seed", settings.seed},
                       {"kills", result.kills},
                       {"kills_at_steps", result.kills_at_steps},
                       {"kills_in_recovery", result.kills_in_recovery},
                       {"acknowledged", result.acknowledged},
                       {"kicks_completed", result.completed_kicks},
                       {"recovery_ms_max", result.recovery_ms_max},
                       {"violations", result.violation.empty() ? 0 : 1},
                       {"violation", result.violation}};
  if (result.violation.empty() && !checked)
    return finish_without_a_check(settings.json, report, "no acknowledged operation was looked for");
  return finish(settings.json, report, result.violation.empty() ? kFine : kViolated);
}

int corrupt(const Structure& structure, const Settings& settings, const Options& options) {
  dunnock::crash::CorruptOptions how;
  const auto directory = std::filesystem::path(options.directory) / ("dunnock-corrupt-" + std::to_string(getpid()));
  std::error_code failed;
  std::filesystem::create_directories(directory, failed);
  if (failed) {
    std::fprintf(stderr, "can't create %s: %s\n", directory.c_str(), failed.message().c_str());
    return kEnvironment;
  }
  how.directory = directory;
  how.seed = settings.seed;
  how.rounds = options.rounds;
  const auto cases = structure.corrupt(how);
  std::filesystem::remove_all(directory);
  Json report = {{"command", "corrupt"}, {"structure", settings.structure}, {"seed", settings.seed}};
  bool fine = true;
  bool checked = !cases.empty();
  std::printf("%-36s %5s %8s %8s %8s %11s\n", "damage", "runs", "refused", "found", "unharmed", "approximate");
  for (const auto& one : cases) {
    std::printf("%-36s %5u %8u %8u %8u %11u  %s\n", one.name.c_str(), one.runs, one.refused, one.found, one.unharmed,
                one.approximate, one.violation.empty() ? one.example.c_str() : ("VIOLATION " + one.violation).c_str());
    fine = fine && one.violation.empty();
    checked = checked && one.runs != 0;
    report["cases"].push_back({{"name", one.name},
                               {"runs", one.runs},
                               {"refused", one.refused},
                               {"found", one.found},
                               {"unharmed", one.unharmed},
                               {"approximate", one.approximate},
                               {"example", one.example},
                               {"violation", one.violation}});
  }
  if (fine && !checked)
    return finish_without_a_check(settings.json, report, "there is a kind of damage that was not done");
  std::printf("%s\n", fine ? "no violation" : "VIOLATION");
  return finish(settings.json, report, fine ? kFine : kViolated);
}

int live(const Settings& settings, dunnock::crash::LifeOptions how) {
  const auto start = Clock::now();
  how.seed = settings.seed;
  const auto result = live_and_crash(how);
  const std::string violation = result.violation;
  std::printf("%llu images of %llu lives (%llu began with a crashed pool), %llu syncs, %.1f s\n",
              static_cast<unsigned long long>(result.images), static_cast<unsigned long long>(result.lives),
              static_cast<unsigned long long>(result.replayed), static_cast<unsigned long long>(result.calls),
              seconds_since(start));
  const Json report = {{"command", "life"},
                       {"seed", how.seed},
                       {"images", result.images},
                       {"lives", result.lives},
                       {"replayed", result.replayed},
                       {"syncs", result.calls},
                       {"violations", violation.empty() ? 0 : 1},
                       {"violation", violation}};
  if (!violation.empty()) {
    std::printf("VIOLATION %s\nreplay: dunnock-crash life --seed %llu --images %llu%s\n", violation.c_str(),
                static_cast<unsigned long long>(how.seed), static_cast<unsigned long long>(how.images),
                how.drop.empty() ? "" : (" --drop '" + how.drop + "'").c_str());
    return finish(settings.json, report, kViolated);
  }
  if (result.images == 0) return finish_without_a_check(settings.json, report, "no image was checked");
  if (!how.drop.empty() && result.dropped == 0)
    return finish_without_a_check(settings.json, report, ("there was no sync '" + how.drop + "' to leave out").c_str());
  std::printf("no violation\n");
  return finish(settings.json, report, kFine);
}

/// A number in digits, and within these bounds; to CLI11 -1 is the greatest one, and so is what does not fit.
CLI::Validator whole(std::uint64_t least, std::uint64_t most) {
  const std::string bounds = std::to_string(least) + " to " + std::to_string(most);
  return CLI::Validator(
      [=](std::string& text) {
        std::uint64_t value = 0;
        const char* const end = text.data() + text.size();
        const auto [read, error] = std::from_chars(text.data(), end, value);
        const bool fine = error == std::errc{} && read == end && value >= least && value <= most;
        return fine ? std::string() : "'" + text + "' is not a whole number from " + bounds;
      },
      "[" + bounds + "]");
}

// ----- the command line ----------------------------------------------------------------------------------------------

// A run of nothing would be a pass of nothing.
CLI::Validator at_least_one() { return whole(1, std::numeric_limits<std::uint64_t>::max()); }
CLI::Validator positive_number() { return whole(1, std::numeric_limits<unsigned>::max()); }

void add_seed_and_json(CLI::App& command, Settings& settings) {
  command.add_option("--seed", settings.seed, "of everything random")
      ->check(whole(0, std::numeric_limits<std::uint64_t>::max()))
      ->capture_default_str();
  command.add_option("--json", settings.json, "file for a summary");
}

/// Of all commands that work on a structure.
void add_common_options(CLI::App& command, Settings& settings) {
  command.add_option("--structure", settings.structure, dunnock::crash::names_of_structures())->capture_default_str();
  add_seed_and_json(command, settings);
  command.add_option("--threads", settings.threads, "at most so many simulated or real threads")
      ->check(whole(1, 8))
      ->capture_default_str();
}

/// Of explore and mutants.
void add_exploring_options(CLI::App& command, Settings& settings) {
  add_common_options(command, settings);
  command.add_option("--fingerprint-bits", settings.bits, "8, 12 or 16")
      ->check(CLI::IsMember({8, 12, 16}))
      ->capture_default_str();
  command.add_option("--ops", settings.operations, "operations in a history")
      ->check(whole(1, 200))
      ->capture_default_str();
  command.add_option("--images-per-moment", settings.images_per_moment, "sample when more are legal [64, of files 8]")
      ->check(at_least_one());
  command.add_option("--recovery-every", settings.recovery_every, "explore one recovery in so many for crashes in it")
      ->check(whole(1, 1000000))
      ->capture_default_str();
  command.add_option("--schedules", settings.schedules, "other turns of the threads, of which no images are taken")
      ->check(whole(0, 1U << 20))
      ->capture_default_str();
  command.add_option("--jobs", settings.jobs, "real threads")->check(whole(1, 256))->capture_default_str();
  command.add_option("--media", settings.media, "memory, or file: a model of a file and its disk")
      ->check(CLI::IsMember({"memory", "file"}))
      ->capture_default_str();
}

void add_explore_command(CLI::App& app, Settings& settings) {
  CLI::App& command = *app.add_subcommand("explore", "play the legal power failures of recorded histories");
  add_exploring_options(command, settings);
  command.add_option("--images", settings.images, "stop after so many")->check(at_least_one())->capture_default_str();
  command.add_flag("--eadr", settings.eadr, "caches survive the power failure");
  command.add_flag("--only-seed", settings.only_seed, "one history: that of --seed");
  command.add_option("--mutant", settings.bug, "plant this bug first");
  command.add_option("--keep", settings.keep, "only these operations of it")->delimiter(',');
}

void add_mutants_command(CLI::App& app, Settings& settings, Options& options) {
  CLI::App& command = *app.add_subcommand("mutants", "plant persistence bugs; every one must be caught");
  add_exploring_options(command, settings);
  command.add_option("--only", settings.bug, "those with these words in their name");
  command.add_option("--budget", settings.budget, "images to catch one with")
      ->check(at_least_one())
      ->capture_default_str();
  command.add_option("--original-images", settings.original, "images of the code without a bug [--budget]")
      ->check(at_least_one());
  CLI::Option* known =
      command.add_option("--known", settings.known, "first try the histories of this file, which caught bugs before");
  command.add_flag("--learn", settings.learn, "write to this file which history caught which bug")->needs(known);
  command.add_flag("--list", options.lists, "only print their names; not those of single lines of the source");
}

void add_life_command(CLI::App& app, Settings& settings, Options& options) {
  CLI::App& command = *app.add_subcommand("life", "play power failures in the life of a real pool's file");
  add_seed_and_json(command, settings);
  command.add_option("--images", options.life.images, "stop after so many")
      ->check(at_least_one())
      ->capture_default_str();
  const auto names_syncs = [](const std::string& drop) {
    return dunnock::crash::is_drop(drop)
               ? std::string()
               : "'" + drop + "' is not a known set of syncs; expected " + dunnock::crash::drops_in_words();
  };
  command.add_option("--drop", options.life.drop, "plant a bug: these syncs do nothing, such as 'folder'")
      ->check(CLI::Validator(names_syncs, "", "syncs"));
}

void add_kill_command(CLI::App& app, Settings& settings, Options& options) {
  CLI::App& command = *app.add_subcommand("kill", "SIGKILL a process on a real pool, again and again");
  add_common_options(command, settings);
  command.add_option("--kills", options.kills)->check(positive_number())->capture_default_str();
  command.add_option("--media", options.kill_media, "process or file")
      ->check(CLI::IsMember({"process", "file"}))
      ->capture_default_str();
  command.add_option("--directory", options.directory, "for the pool file")->capture_default_str();
}

void add_corrupt_command(CLI::App& app, Settings& settings, Options& options) {
  CLI::App& command = *app.add_subcommand("corrupt", "damage pool files in every way");
  add_common_options(command, settings);
  command.add_option("--rounds", options.rounds, "random damages of each kind")
      ->check(positive_number())
      ->capture_default_str();
  command.add_option("--directory", options.directory, "for the pool files")->capture_default_str();
}

int print_structures() {
  for (const Structure& one : dunnock::crash::structures()) std::printf("%s\n", std::string(one.name).c_str());
  return kFine;
}

int run_command(const std::string& name, const Settings& settings, const Options& options) {
  const Structure* structure = dunnock::crash::find_structure(settings.structure);
  if (structure == nullptr) {
    std::fprintf(stderr, "unknown structure '%s'; expected %s\n", settings.structure.c_str(),
                 dunnock::crash::names_of_structures().c_str());
    return kUsage;
  }
  std::error_code unknown;
  if (!std::filesystem::is_directory(options.directory, unknown)) {
    std::fprintf(stderr, "%s is not a directory\n", options.directory.c_str());
    return kEnvironment;
  }
  if (settings.eadr && settings.media == "file") {
    std::fprintf(stderr, "--eadr needs --media memory: a file has no caches that survive\n");
    return kUsage;
  }
  if (name == "structures") return print_structures();
  if (name == "explore") return explore_histories(settings);
  if (name == "mutants") return options.lists ? list_bugs(settings) : plant_bugs(settings);
  if (name == "life") return live(settings, options.life);
  if (name == "kill") return kill_storm(*structure, settings, options);
  return corrupt(*structure, settings, options);
}

int run(int argc, char** argv) {
  Settings settings;
  Options options;
  settings.jobs = std::max(1U, std::thread::hardware_concurrency());
  std::error_code unknown;  // Where there is none, --directory must name one.
  options.directory = std::filesystem::temp_directory_path(unknown);
  CLI::App app("Looks for lost, torn and resurrected data: plays power failures, kills processes, damages files.");
  app.require_subcommand(1);
  app.footer("Exit codes: 0 fine, 1 violated, 2 usage, 3 environment.");
  add_explore_command(app, settings);
  add_mutants_command(app, settings, options);
  add_life_command(app, settings, options);
  add_kill_command(app, settings, options);
  add_corrupt_command(app, settings, options);
  app.add_subcommand("structures", "print the names of the structures");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const std::string complaint = dunnock::explain_parse_error(app, error, {argv, static_cast<std::size_t>(argc)});
    (void)std::fputs(complaint.c_str(), stderr);
    return complaint.empty() ? kFine : kUsage;
  }
  return run_command(app.get_subcommands().front()->get_name(), settings, options);
}

}  // namespace

int main(int argc, char** argv) {
  return dunnock::run_program("dunnock-crash", kEnvironment, [&] { return run(argc, argv); });
}
