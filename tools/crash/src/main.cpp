// dunnock-crash: explores power failures, kills processes, damages files, and proves by planted bugs that it notices.
// Exit codes: 0 fine, 1 violated, 2 usage, 3 environment.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <numeric>
#include <thread>

#include "structures.hpp"

namespace {

using dunnock::crash::Structure;
using Clock = std::chrono::steady_clock;
using Json = nlohmann::json;

constexpr int kFine = 0, kViolated = 1, kUsage = 2, kEnvironment = 3;

struct Options {
  std::string structure = "filter";
  unsigned bits = 12;
  std::uint64_t seed = 1;
  unsigned threads = 4;
  unsigned operations = 24;
  std::uint64_t images = 1000000;
  std::size_t images_per_moment = 64;
  unsigned jobs = 0;
  bool eadr = false;
  bool only_seed = false;
  std::vector<std::size_t> keep;
  std::string json;
  std::string directory;
  std::string media = "process";
  unsigned kills = 20;
  unsigned rounds = 200;
  std::uint64_t budget = 400000;  // images a mutant
};

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

const Structure* find_structure(const std::string& name) {
  for (const Structure& one : dunnock::crash::structures()) {
    if (one.name == name) return &one;
  }
  return nullptr;
}

int finish(const Options& options, const Json& report, int code) {
  if (!options.json.empty()) {
    std::ofstream file(options.json);
    file << report.dump(2) << "\n";
    if (!file) {
      std::fprintf(stderr, "can't write %s\n", options.json.c_str());
      return kEnvironment;
    }
  }
  return code;
}

/// How the history of a seed looks: the thread count cycles, so that a run has some of each.
std::unique_ptr<dunnock::crash::Subject> subject_of(const Structure& structure, const Options& options, std::uint64_t seed) {
  const unsigned threads = 1 + static_cast<unsigned>(seed % options.threads);
  return structure.subject(seed, threads, options.operations, options.bits, options.eadr);
}

std::vector<std::size_t> everything(const dunnock::crash::Subject& subject) {
  std::vector<std::size_t> all(subject.operations());
  std::iota(all.begin(), all.end(), 0);
  return all;
}

std::string replay_line(const Options& options, std::uint64_t seed, const std::vector<std::size_t>& keep) {
  std::string line = "dunnock-crash explore --structure " + options.structure + " --fingerprint-bits " +
                     std::to_string(options.bits) + " --threads " + std::to_string(options.threads) + " --ops " +
                     std::to_string(options.operations) + " --seed " + std::to_string(seed) + " --only-seed" +
                     (options.eadr ? " --eadr" : "") + " --keep ";
  for (std::size_t i = 0; i < keep.size(); ++i) line += (i == 0 ? "" : ",") + std::to_string(keep[i]);
  return line;
}

int explore(const Structure& structure, const Options& options) {
  const bool terminal = isatty(STDERR_FILENO) != 0;
  const auto start = Clock::now();
  std::atomic<std::uint64_t> next_seed{options.seed};
  std::atomic<std::uint64_t> images{0}, recovery_images{0}, histories{0}, moments{0}, sampled{0};
  std::atomic<bool> stop{false};
  std::mutex mutex;
  Json violation;
  const auto work = [&] {
    while (!stop.load() && images.load() < options.images) {
      const std::uint64_t seed = next_seed.fetch_add(1);
      const auto subject = subject_of(structure, options, seed);
      dunnock::crash::ExploreOptions how;
      how.eadr = options.eadr;
      how.seed = seed;
      how.images_per_moment = options.images_per_moment;
      std::vector<std::size_t> keep = options.keep.empty() ? everything(*subject) : options.keep;
      std::erase_if(keep, [&](std::size_t i) { return i >= subject->operations(); });
      const auto result = dunnock::crash::explore(*subject, keep, how);
      images += result.images;
      recovery_images += result.recovery_images;
      moments += result.moments;
      sampled += result.moments_sampled;
      ++histories;
      if (result.violation && !stop.exchange(true)) {
        keep = dunnock::crash::shrink(*subject, keep, how);
        const auto shrunk = dunnock::crash::explore(*subject, keep, how);
        const std::lock_guard lock(mutex);
        violation = {{"seed", seed}, {"what", shrunk.violation.value_or(*result.violation)}, {"replay", replay_line(options, seed, keep)}};
        for (const std::size_t i : keep) violation["history"].push_back(subject->describe(i));
      }
      if (options.only_seed) stop.store(true);
    }
  };
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < (options.only_seed ? 1 : options.jobs); ++i) threads.emplace_back(work);
  if (terminal) {
    while (!stop.load() && images.load() < options.images) {
      std::fprintf(stderr, "\r%llu images of %llu histories ", static_cast<unsigned long long>(images.load()),
                   static_cast<unsigned long long>(histories.load()));
      std::this_thread::sleep_for(std::chrono::milliseconds(200));
    }
    std::fprintf(stderr, "\r\033[K");
  }
  for (std::thread& thread : threads) thread.join();
  const double seconds = seconds_since(start);
  std::printf("%llu images (%llu of them in the middle of recovery) of %llu histories at %llu moments (%llu sampled), %.1f s, %.0f images/s\n",
              static_cast<unsigned long long>(images.load()), static_cast<unsigned long long>(recovery_images.load()),
              static_cast<unsigned long long>(histories.load()), static_cast<unsigned long long>(moments.load()),
              static_cast<unsigned long long>(sampled.load()), seconds, static_cast<double>(images.load()) / seconds);
  Json report = {{"command", "explore"}, {"structure", options.structure}, {"fingerprint_bits", options.bits}, {"eadr", options.eadr},
                 {"seed", options.seed}, {"images", images.load()}, {"recovery_images", recovery_images.load()},
                 {"histories", histories.load()}, {"moments", moments.load()}, {"moments_sampled", sampled.load()},
                 {"seconds", seconds}, {"images_per_second", static_cast<double>(images.load()) / seconds}, {"violations", violation.is_null() ? 0 : 1}};
  if (violation.is_null()) {
    std::printf("no violation\n");
    return finish(options, report, kFine);
  }
  report["violation"] = violation;
  std::printf("VIOLATION with seed %llu: %s\n", static_cast<unsigned long long>(violation["seed"].get<std::uint64_t>()), violation["what"].get<std::string>().c_str());
  for (const auto& line : violation["history"]) std::printf("  %s\n", line.get<std::string>().c_str());
  std::printf("replay: %s\n", violation["replay"].get<std::string>().c_str());
  return finish(options, report, kViolated);
}

int mutants(const Structure& structure, const Options& options) {
  const std::vector<dunnock::crash::Mutant> all = structure.mutants();
  struct Outcome {
    std::uint64_t images = 0, histories = 0;
    std::string what;
  };
  std::vector<Outcome> outcomes(all.size() + 1);
  std::atomic<std::size_t> next{0};
  const bool terminal = isatty(STDERR_FILENO) != 0;
  const auto start = Clock::now();
  const auto work = [&] {
    for (;;) {
      const std::size_t i = next.fetch_add(1);
      if (i > all.size()) return;
      if (terminal) std::fprintf(stderr, "\r%zu of %zu ", i, all.size());
      Outcome& outcome = outcomes[i];
      for (std::uint64_t seed = options.seed; outcome.images < options.budget; ++seed) {
        const auto subject = subject_of(structure, options, seed);
        dunnock::crash::ExploreOptions how;
        how.seed = seed;
        how.images_per_moment = options.images_per_moment;
        if (i < all.size()) how.mutation = all[i].mutation;  // The last one is the unmodified code.
        const auto result = dunnock::crash::explore(*subject, everything(*subject), how);
        outcome.images += result.images + 1;
        ++outcome.histories;
        if (result.violation) {
          outcome.what = *result.violation;
          break;
        }
      }
    }
  };
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < options.jobs; ++i) threads.emplace_back(work);
  for (std::thread& thread : threads) thread.join();
  if (terminal) std::fprintf(stderr, "\r\033[K");

  Json report = {{"command", "mutants"}, {"structure", options.structure}, {"fingerprint_bits", options.bits}, {"seconds", seconds_since(start)}};
  std::size_t caught = 0;
  for (std::size_t i = 0; i < all.size(); ++i) {
    const bool found = !outcomes[i].what.empty();
    caught += found ? 1 : 0;
    std::printf("%-8s %-48s %9llu images  %s\n", found ? "caught" : "MISSED", all[i].name.c_str(), static_cast<unsigned long long>(outcomes[i].images), outcomes[i].what.c_str());
    report["mutants"].push_back({{"name", all[i].name}, {"caught", found}, {"images", outcomes[i].images}, {"histories", outcomes[i].histories}, {"what", outcomes[i].what}});
  }
  const Outcome& original = outcomes[all.size()];
  std::printf("%zu of %zu planted bugs caught; the code without any: %llu images, %s\n", caught, all.size(), static_cast<unsigned long long>(original.images),
              original.what.empty() ? "no violation" : original.what.c_str());
  report["planted"] = all.size();
  report["caught"] = caught;
  report["original"] = {{"images", original.images}, {"violation", original.what}};
  return finish(options, report, caught == all.size() && original.what.empty() ? kFine : kViolated);
}

int kill_storm(const Structure& structure, const Options& options) {
  dunnock::crash::KillOptions how;
  how.path = (std::filesystem::path(options.directory) / ("dunnock-kill-" + std::to_string(getpid()) + ".pool")).string();
  how.seed = options.seed;
  how.kills = options.kills;
  how.threads = std::min(options.threads, 8U);
  how.process_media = options.media == "process";
  if (isatty(STDERR_FILENO) != 0) how.progress = [](unsigned kills) { std::fprintf(stderr, "\r%u kills ", kills); };
  const auto start = Clock::now();
  const auto result = structure.kill(how);
  if (how.progress) std::fprintf(stderr, "\r\033[K");
  std::printf("%u kills on %s media, %llu operations acknowledged, %llu kicks completed by recovery, open and recover at most %.1f ms, %.1f s\n", result.kills,
              options.media.c_str(), static_cast<unsigned long long>(result.acknowledged), static_cast<unsigned long long>(result.completed_kicks), result.recovery_ms_max, seconds_since(start));
  std::printf("%s\n", result.violation.empty() ? "no violation" : ("VIOLATION " + result.violation + "\nreplay: --seed " + std::to_string(options.seed)).c_str());
  const Json report = {{"command", "kill"}, {"structure", options.structure}, {"media", options.media}, {"seed", options.seed}, {"kills", result.kills},
                       {"acknowledged", result.acknowledged}, {"kicks_completed", result.completed_kicks}, {"recovery_ms_max", result.recovery_ms_max},
                       {"violations", result.violation.empty() ? 0 : 1}, {"violation", result.violation}};
  return finish(options, report, result.violation.empty() ? kFine : kViolated);
}

int corrupt(const Structure& structure, const Options& options) {
  dunnock::crash::CorruptOptions how;
  const auto directory = std::filesystem::path(options.directory) / ("dunnock-corrupt-" + std::to_string(getpid()));
  std::error_code failed;
  std::filesystem::create_directories(directory, failed);
  if (failed) {
    std::fprintf(stderr, "can't create %s: %s\n", directory.c_str(), failed.message().c_str());
    return kEnvironment;
  }
  how.directory = directory;
  how.seed = options.seed;
  how.rounds = options.rounds;
  const auto cases = structure.corrupt(how);
  std::filesystem::remove_all(directory);
  Json report = {{"command", "corrupt"}, {"structure", options.structure}, {"seed", options.seed}};
  bool fine = true;
  std::printf("%-36s %5s %8s %8s %8s %11s\n", "damage", "runs", "refused", "found", "unharmed", "approximate");
  for (const auto& one : cases) {
    std::printf("%-36s %5u %8u %8u %8u %11u  %s\n", one.name.c_str(), one.runs, one.refused, one.found, one.unharmed, one.approximate,
                one.violation.empty() ? one.example.c_str() : ("VIOLATION " + one.violation).c_str());
    fine = fine && one.violation.empty();
    report["cases"].push_back({{"name", one.name}, {"runs", one.runs}, {"refused", one.refused}, {"found", one.found}, {"unharmed", one.unharmed},
                               {"approximate", one.approximate}, {"example", one.example}, {"violation", one.violation}});
  }
  std::printf("%s\n", fine ? "no violation" : "VIOLATION");
  return finish(options, report, fine ? kFine : kViolated);
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  options.jobs = std::max(1U, std::thread::hardware_concurrency());
  options.directory = std::filesystem::temp_directory_path();
  CLI::App app("Looks for lost, torn and resurrected data: plays power failures, kills processes, damages files.");
  app.require_subcommand(1);
  app.footer("Exit codes: 0 fine, 1 violated, 2 usage, 3 environment.");
  const auto common = [&options](CLI::App* command) {
    command->add_option("--structure", options.structure, "what to test: filter")->capture_default_str();
    command->add_option("--seed", options.seed, "of everything random")->capture_default_str();
    command->add_option("--json", options.json, "file for a summary");
    command->add_option("--threads", options.threads, "at most so many simulated or real threads")->check(CLI::Range(1, 8))->capture_default_str();
  };
  const auto exploring = [&options](CLI::App* command) {
    command->add_option("--fingerprint-bits", options.bits, "8, 12 or 16")->check(CLI::IsMember({8, 12, 16}))->capture_default_str();
    command->add_option("--ops", options.operations, "operations in a history")->check(CLI::Range(1, 200))->capture_default_str();
    command->add_option("--images-per-moment", options.images_per_moment, "sample when more are legal")->capture_default_str();
    command->add_option("--jobs", options.jobs, "real threads")->check(CLI::Range(1, 256))->capture_default_str();
  };
  CLI::App* explore_command = app.add_subcommand("explore", "play the legal power failures of recorded histories");
  common(explore_command);
  exploring(explore_command);
  explore_command->add_option("--images", options.images, "stop after so many")->capture_default_str();
  explore_command->add_flag("--eadr", options.eadr, "caches survive the power failure");
  explore_command->add_flag("--only-seed", options.only_seed, "one history: that of --seed");
  explore_command->add_option("--keep", options.keep, "only these operations of it")->delimiter(',');
  CLI::App* mutants_command = app.add_subcommand("mutants", "plant persistence bugs; every one must be caught");
  common(mutants_command);
  exploring(mutants_command);
  mutants_command->add_option("--budget", options.budget, "images to catch one with")->capture_default_str();
  CLI::App* kill_command = app.add_subcommand("kill", "SIGKILL a process on a real pool, again and again");
  common(kill_command);
  kill_command->add_option("--kills", options.kills)->capture_default_str();
  kill_command->add_option("--media", options.media, "process or file")->check(CLI::IsMember({"process", "file"}))->capture_default_str();
  kill_command->add_option("--directory", options.directory, "for the pool file")->capture_default_str();
  CLI::App* corrupt_command = app.add_subcommand("corrupt", "damage pool files in every way");
  common(corrupt_command);
  corrupt_command->add_option("--rounds", options.rounds, "random damages of each kind")->capture_default_str();
  corrupt_command->add_option("--directory", options.directory, "for the pool files")->capture_default_str();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kFine : kUsage;
  }
  const Structure* structure = find_structure(options.structure);
  if (structure == nullptr) {
    std::fprintf(stderr, "no structure '%s'; there is: filter\n", options.structure.c_str());
    return kUsage;
  }
  if (!std::filesystem::is_directory(options.directory)) {
    std::fprintf(stderr, "%s is not a directory\n", options.directory.c_str());
    return kEnvironment;
  }
  if (*explore_command) return explore(*structure, options);
  if (*mutants_command) return mutants(*structure, options);
  if (*kill_command) return kill_storm(*structure, options);
  return corrupt(*structure, options);
}
