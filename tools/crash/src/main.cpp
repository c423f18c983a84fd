// dunnock-crash: explores power failures, kills processes, damages files, and proves by planted bugs that it notices.
// Exit codes: 0 fine, 1 violated, 2 usage, 3 environment.
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <numeric>
#include <thread>

#include "file_commands.hpp"
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
  std::size_t recovery_every = 16;
  unsigned jobs = 0;
  bool eadr = false;
  bool only_seed = false;
  std::vector<std::size_t> keep;
  std::string mutant;
  std::string json;
  std::string directory;
  std::string media = "process";
  unsigned kills = 20;
  unsigned rounds = 200;
  std::uint64_t budget = 2000000;  // images a mutant
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
std::unique_ptr<dunnock::crash::Subject> subject_of(const Structure& structure, const Options& options,
                                                    std::uint64_t seed) {
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
                     " --images-per-moment " + std::to_string(options.images_per_moment) + " --recovery-every " +
                     std::to_string(options.recovery_every) + (options.eadr ? " --eadr" : "") +
                     (options.mutant.empty() ? "" : " --mutant '" + options.mutant + "'") + " --keep ";
  for (std::size_t i = 0; i < keep.size(); ++i) line += (i == 0 ? "" : ",") + std::to_string(keep[i]);
  return line;
}

/// The replay line of the history that this thread explores.
thread_local std::string running_replay;

/// A structure that stops the process (a failed check, a stray pointer) has violated its contract, too. Such a history
/// can't be shrunk here, but it can be replayed.
extern "C" void report_stopped_structure(int signal) {
  const auto say = [](const char* text, std::size_t length) { return write(STDOUT_FILENO, text, length) >= 0; };
  const char* kind = signal == SIGABRT ? "VIOLATION: a check of the structure failed\nreplay: "
                                       : "VIOLATION: the structure touched memory that is not there\nreplay: ";
  (void)(say(kind, std::strlen(kind)) && say(running_replay.data(), running_replay.size()) && say("\n", 1));
  _exit(kViolated);
}

int explore(const Structure& structure, const Options& options) {
  dunnock::Mutation mutation;
  if (!options.mutant.empty()) {
    const std::vector<dunnock::crash::Mutant> all = structure.mutants();
    const auto named = [&](const dunnock::crash::Mutant& one) { return one.name == options.mutant; };
    const auto mutant = std::find_if(all.begin(), all.end(), named);
    if (mutant == all.end()) {
      std::fprintf(stderr, "no planted bug '%s'; dunnock-crash mutants names them\n", options.mutant.c_str());
      return kUsage;
    }
    mutation = mutant->mutation;
  }
  for (const int signal : {SIGABRT, SIGSEGV, SIGBUS, SIGFPE}) std::signal(signal, report_stopped_structure);
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
      how.mutation = mutation;
      how.seed = seed;
      how.images_per_moment = options.images_per_moment;
      how.recovery_every = options.recovery_every;
      std::vector<std::size_t> keep = options.keep.empty() ? everything(*subject) : options.keep;
      std::erase_if(keep, [&](std::size_t i) { return i >= subject->operations(); });
      running_replay = replay_line(options, seed, keep);
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
        violation = {{"seed", seed},
                     {"what", shrunk.violation.value_or(*result.violation)},
                     {"replay", replay_line(options, seed, keep)}};
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
  std::printf(
      "%llu images (%llu of them in the middle of recovery) of %llu histories at %llu moments (%llu sampled), %.1f s, "
      "%.0f images/s\n",
      static_cast<unsigned long long>(images.load()), static_cast<unsigned long long>(recovery_images.load()),
      static_cast<unsigned long long>(histories.load()), static_cast<unsigned long long>(moments.load()),
      static_cast<unsigned long long>(sampled.load()), seconds, static_cast<double>(images.load()) / seconds);
  Json report = {{"command", "explore"},
                 {"structure", options.structure},
                 {"fingerprint_bits", options.bits},
                 {"eadr", options.eadr},
                 {"mutant", options.mutant},
                 {"seed", options.seed},
                 {"images", images.load()},
                 {"recovery_images", recovery_images.load()},
                 {"histories", histories.load()},
                 {"moments", moments.load()},
                 {"moments_sampled", sampled.load()},
                 {"seconds", seconds},
                 {"images_per_second", static_cast<double>(images.load()) / seconds},
                 {"violations", violation.is_null() ? 0 : 1}};
  if (violation.is_null()) {
    std::printf("no violation\n");
    return finish(options, report, kFine);
  }
  report["violation"] = violation;
  std::printf("VIOLATION with seed %llu: %s\n", static_cast<unsigned long long>(violation["seed"].get<std::uint64_t>()),
              violation["what"].get<std::string>().c_str());
  for (const auto& line : violation["history"]) std::printf("  %s\n", line.get<std::string>().c_str());
  std::printf("replay: %s\n", violation["replay"].get<std::string>().c_str());
  return finish(options, report, kViolated);
}

/// What the search for one planted bug has come to. Lies in memory that the searching process shares with us, for a
/// planted bug may make the structure stop the process.
struct Search {
  std::uint64_t images = 0, histories = 0;
  char what[400] = {};
  bool seen[4 * 256] = {};  // ExploreResult::steps_seen, of the code without a bug
  void say(const std::string& text) { text.copy(what, sizeof what - 1); }
};

void search(const Structure& structure, const Options& options, const dunnock::Mutation& mutation, Search& result) {
  for (std::uint64_t seed = options.seed; result.images < options.budget; ++seed) {
    const auto subject = subject_of(structure, options, seed);
    dunnock::crash::ExploreOptions how;
    how.seed = seed;
    how.images_per_moment = options.images_per_moment;
    how.recovery_every = options.recovery_every;
    how.mutation = mutation;
    ++result.histories;
    const auto explored = dunnock::crash::explore(*subject, everything(*subject), how);
    result.images += explored.images + 1;
    for (std::size_t i = 0; i < std::min(explored.steps_seen.size(), std::size(result.seen)); ++i) {
      result.seen[i] = result.seen[i] || explored.steps_seen[i];
    }
    if (explored.violation) return result.say(*explored.violation);
  }
}

/// A process that searches; what it prints (a check that fails has last words) goes to `words`.
struct Searcher {
  pid_t process = 0;
  std::size_t mutant = 0;
  int words = -1;
};

Searcher start_search(const Structure& structure, const Options& options, std::size_t mutant,
                      const dunnock::Mutation& mutation, Search& result) {
  int ends[2];
  if (pipe(ends) != 0) return {-1, mutant, -1};
  const pid_t process = fork();
  if (process == 0) {
    dup2(ends[1], STDERR_FILENO);
    const rlimit none{0, 0};
    setrlimit(RLIMIT_CORE, &none);
    search(structure, options, mutation, result);
    _exit(0);
  }
  close(ends[1]);
  return {process, mutant, ends[0]};
}

/// The structure may notice a planted bug by itself and stop; that counts as noticed.
void finish_search(const Searcher& searcher, int status, Search& result) {
  std::string words;
  char buffer[400];
  for (ssize_t got; (got = read(searcher.words, buffer, sizeof buffer)) > 0;) {
    words.append(buffer, static_cast<std::size_t>(got));
  }
  close(searcher.words);
  if (!WIFSIGNALED(status)) return;
  words.erase(std::min(words.find('\n'), words.size()));
  const std::size_t check = words.find("check failed");
  result.say("it stopped with signal " + std::to_string(WTERMSIG(status)) + ": " +
             (check == std::string::npos ? words : words.substr(check)));
}

/// A durable step of the running code that no planted bug leaves out.
std::vector<std::string> steps_left_alone(const Structure& structure, const std::vector<dunnock::crash::Mutant>& all,
                                          const Search& original) {
  using Event = dunnock::SimMemory::EventKind;
  using Kind = dunnock::Mutation::Kind;
  static constexpr struct {
    Event event;
    Kind drop;
    const char* name;
  } kSteps[] = {{Event::kStore, Kind::kDropStore, "store"},
                {Event::kFlush, Kind::kDropFlush, "flush"},
                {Event::kFence, Kind::kDropFence, "fence"}};
  std::vector<std::string> alone;
  for (std::size_t p = structure.first_point; p < 256; ++p) {
    const auto point = static_cast<dunnock::Point>(p);
    for (const auto& step : kSteps) {
      if (!original.seen[dunnock::crash::ExploreResult::index_of(step.event, point)]) continue;
      const bool planted = std::any_of(all.begin(), all.end(), [&](const dunnock::crash::Mutant& one) {
        return one.mutation.kind == step.drop && one.mutation.point == point;
      });
      if (!planted) alone.push_back(std::string(step.name) + " " + std::string(structure.point_name(point)));
    }
  }
  return alone;
}

int mutants(const Structure& structure, const Options& options) {
  const std::vector<dunnock::crash::Mutant> all = structure.mutants();
  const std::size_t searches = all.size() + 1;  // The last one is for the code without a bug, and takes longest.
  const std::size_t bytes = searches * sizeof(Search);
  void* shared = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) {
    std::fprintf(stderr, "no memory for %zu results\n", searches);
    return kEnvironment;
  }
  auto* results = static_cast<Search*>(shared);
  std::uninitialized_value_construct_n(results, searches);
  const bool terminal = isatty(STDERR_FILENO) != 0;
  const auto start = Clock::now();
  std::vector<Searcher> running;
  for (std::size_t next = 0; next < searches || !running.empty();) {
    if (next < searches && running.size() < options.jobs) {
      const std::size_t mutant = searches - 1 - next++;
      if (terminal) std::fprintf(stderr, "\r%zu of %zu ", next, searches);
      const auto mutation = mutant < all.size() ? all[mutant].mutation : dunnock::Mutation{};
      running.push_back(start_search(structure, options, mutant, mutation, results[mutant]));
      if (running.back().process > 0) continue;
      std::fprintf(stderr, "can't start a process\n");
      return kEnvironment;
    }
    int status = 0;
    const pid_t ended = waitpid(-1, &status, 0);
    const auto searcher =
        std::find_if(running.begin(), running.end(), [&](const Searcher& s) { return s.process == ended; });
    if (searcher == running.end()) continue;
    finish_search(*searcher, status, results[searcher->mutant]);
    running.erase(searcher);
  }
  if (terminal) std::fprintf(stderr, "\r\033[K");

  Json report = {{"command", "mutants"}, {"structure", options.structure}, {"fingerprint_bits", options.bits},
                 {"seed", options.seed}, {"budget", options.budget},       {"seconds", seconds_since(start)}};
  std::size_t caught = 0;
  for (std::size_t i = 0; i < all.size(); ++i) {
    const std::string what = results[i].what;
    const bool found = !what.empty();
    caught += found ? 1 : 0;
    std::printf("%-8s %-48s %9llu images  %s\n", found ? "caught" : "MISSED", all[i].name.c_str(),
                static_cast<unsigned long long>(results[i].images), what.c_str());
    report["mutants"].push_back({{"name", all[i].name},
                                 {"caught", found},
                                 {"images", results[i].images},
                                 {"histories", results[i].histories},
                                 {"what", what}});
  }
  const Search& original = results[all.size()];
  const std::string what = original.what;
  const std::vector<std::string> alone = steps_left_alone(structure, all, original);
  for (const std::string& step : alone) std::printf("UNTRIED  %s: no planted bug leaves it out\n", step.c_str());
  std::printf("%zu of %zu planted bugs caught; the code without any: %llu images, %s\n", caught, all.size(),
              static_cast<unsigned long long>(original.images), what.empty() ? "no violation" : what.c_str());
  report["planted"] = all.size();
  report["caught"] = caught;
  report["untried_steps"] = alone;
  report["original"] = {{"images", original.images}, {"violation", what}};
  const bool fine = caught == all.size() && what.empty() && alone.empty();
  munmap(shared, bytes);
  return finish(options, report, fine ? kFine : kViolated);
}

int kill_storm(const Structure& structure, const Options& options) {
  dunnock::crash::KillOptions how;
  how.path =
      (std::filesystem::path(options.directory) / ("dunnock-kill-" + std::to_string(getpid()) + ".pool")).string();
  how.seed = options.seed;
  how.kills = options.kills;
  how.threads = std::min(options.threads, 8U);
  how.process_media = options.media == "process";
  if (isatty(STDERR_FILENO) != 0) how.progress = [](unsigned kills) { std::fprintf(stderr, "\r%u kills ", kills); };
  const auto start = Clock::now();
  const auto result = structure.kill(how);
  if (how.progress) std::fprintf(stderr, "\r\033[K");
  std::printf(
      "%u kills on %s media (%u of them at a chosen step, %u more during recovery), %llu operations acknowledged, "
      "%llu kicks completed by recovery, open and recover at most %.1f ms, %.1f s\n",
      result.kills, options.media.c_str(), result.kills_at_steps, result.kills_in_recovery,
      static_cast<unsigned long long>(result.acknowledged), static_cast<unsigned long long>(result.completed_kicks),
      result.recovery_ms_max, seconds_since(start));
  std::printf("%s\n",
              result.violation.empty()
                  ? "no violation"
                  : ("VIOLATION " + result.violation + "\nreplay: --seed " + std::to_string(options.seed)).c_str());
  const Json report = {{"command", "kill"},
                       {"structure", options.structure},
                       {"media", options.media},
                       {"seed", options.seed},
                       {"kills", result.kills},
                       {"kills_at_steps", result.kills_at_steps},
                       {"kills_in_recovery", result.kills_in_recovery},
                       {"acknowledged", result.acknowledged},
                       {"kicks_completed", result.completed_kicks},
                       {"recovery_ms_max", result.recovery_ms_max},
                       {"violations", result.violation.empty() ? 0 : 1},
                       {"violation", result.violation}};
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
    std::printf("%-36s %5u %8u %8u %8u %11u  %s\n", one.name.c_str(), one.runs, one.refused, one.found, one.unharmed,
                one.approximate, one.violation.empty() ? one.example.c_str() : ("VIOLATION " + one.violation).c_str());
    fine = fine && one.violation.empty();
    report["cases"].push_back({{"name", one.name},
                               {"runs", one.runs},
                               {"refused", one.refused},
                               {"found", one.found},
                               {"unharmed", one.unharmed},
                               {"approximate", one.approximate},
                               {"example", one.example},
                               {"violation", one.violation}});
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
    command->add_option("--structure", options.structure, "filter, index, log, checkpoint or prefix")
        ->capture_default_str();
    command->add_option("--seed", options.seed, "of everything random")->capture_default_str();
    command->add_option("--json", options.json, "file for a summary");
    command->add_option("--threads", options.threads, "at most so many simulated or real threads")
        ->check(CLI::Range(1, 8))
        ->capture_default_str();
  };
  const auto exploring = [&options](CLI::App* command) {
    command->add_option("--fingerprint-bits", options.bits, "8, 12 or 16")
        ->check(CLI::IsMember({8, 12, 16}))
        ->capture_default_str();
    command->add_option("--ops", options.operations, "operations in a history")
        ->check(CLI::Range(1, 200))
        ->capture_default_str();
    command->add_option("--images-per-moment", options.images_per_moment, "sample when more are legal")
        ->capture_default_str();
    command->add_option("--recovery-every", options.recovery_every, "explore one recovery in so many for crashes in it")
        ->check(CLI::Range(1, 1000000))
        ->capture_default_str();
    command->add_option("--jobs", options.jobs, "real threads")->check(CLI::Range(1, 256))->capture_default_str();
  };
  CLI::App* explore_command = app.add_subcommand("explore", "play the legal power failures of recorded histories");
  common(explore_command);
  exploring(explore_command);
  explore_command->add_option("--images", options.images, "stop after so many")->capture_default_str();
  explore_command->add_flag("--eadr", options.eadr, "caches survive the power failure");
  explore_command->add_flag("--only-seed", options.only_seed, "one history: that of --seed");
  explore_command->add_option("--mutant", options.mutant, "plant this bug first");
  explore_command->add_option("--keep", options.keep, "only these operations of it")->delimiter(',');
  CLI::App* mutants_command = app.add_subcommand("mutants", "plant persistence bugs; every one must be caught");
  common(mutants_command);
  exploring(mutants_command);
  mutants_command->add_option("--budget", options.budget, "images to catch one with")->capture_default_str();
  dunnock::crash::FileCommandOptions files;
  for (CLI::App* command : {explore_command, mutants_command}) {
    command->add_option("--media", files.media, "memory, or file: a model of a file and its disk")
        ->check(CLI::IsMember({"memory", "file"}))
        ->capture_default_str();
  }
  CLI::App* life_command = app.add_subcommand("life", "play power failures in the life of a real pool's file");
  life_command->add_option("--seed", options.seed, "of everything random")->capture_default_str();
  life_command->add_option("--json", options.json, "file for a summary");
  life_command->add_option("--images", files.life_images, "stop after so many")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  life_command->add_option("--drop", files.life_drop, "plant a bug: these syncs do nothing, such as 'folder'");
  CLI::App* kill_command = app.add_subcommand("kill", "SIGKILL a process on a real pool, again and again");
  common(kill_command);
  kill_command->add_option("--kills", options.kills)->capture_default_str();
  kill_command->add_option("--media", options.media, "process or file")
      ->check(CLI::IsMember({"process", "file"}))
      ->capture_default_str();
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
    std::fprintf(stderr, "no structure '%s'; there is:", options.structure.c_str());
    for (const Structure& one : dunnock::crash::structures())
      std::fprintf(stderr, " %s", std::string(one.name).c_str());
    std::fprintf(stderr, "\n");
    return kUsage;
  }
  if (!std::filesystem::is_directory(options.directory)) {
    std::fprintf(stderr, "%s is not a directory\n", options.directory.c_str());
    return kEnvironment;
  }
  if (*life_command || files.media == "file") {
    files.structure = structure->name;
    files.bits = options.bits;
    files.seed = options.seed;
    files.threads = options.threads;
    files.operations = options.operations;
    files.images = options.images;
    // Fewer images a moment, and more histories: most of a file's state is the same for a long time.
    const bool chosen =
        explore_command->count("--images-per-moment") + mutants_command->count("--images-per-moment") > 0;
    files.images_per_moment = chosen ? options.images_per_moment : 8;
    files.recovery_every = options.recovery_every;
    files.jobs = options.jobs;
    files.only_seed = options.only_seed;
    files.keep = options.keep;
    files.mutant = options.mutant;
    files.json = options.json;
    files.budget = options.budget;
    if (*life_command) return live(files);
    if (options.eadr) {
      std::fprintf(stderr, "a file has no caches that survive: --eadr is for --media memory\n");
      return kUsage;
    }
    return *explore_command ? explore_files(files) : mutants_of_files(files);
  }
  if (*explore_command) return explore(*structure, options);
  if (*mutants_command) return mutants(*structure, options);
  if (*kill_command) return kill_storm(*structure, options);
  return corrupt(*structure, options);
}
