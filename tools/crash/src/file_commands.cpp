#include "file_commands.hpp"

#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <numeric>
#include <thread>

#include "file_explorer.hpp"
#include "file_structures.hpp"
#include "life.hpp"
#include "shrink.hpp"

namespace dunnock::crash {
namespace {

using Options = FileCommandOptions;
using Clock = std::chrono::steady_clock;
using Json = nlohmann::json;

constexpr int kFine = 0, kViolated = 1, kUsage = 2, kEnvironment = 3;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

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
std::unique_ptr<Subject> subject_of(const Options& options, std::uint64_t seed) {
  const unsigned threads = 1 + static_cast<unsigned>(seed % options.threads);
  return file_subject(options.structure, seed, threads, options.operations, options.bits);
}

std::vector<std::size_t> everything(const Subject& subject) {
  std::vector<std::size_t> all(subject.operations());
  std::iota(all.begin(), all.end(), 0);
  return all;
}

std::vector<FileMutant> bugs_of(const Options& options) {
  std::vector<FileMutant> all = file_mutants(options.structure);
  // The sync of the note after the first group is no bug: that group's fence has not returned by then.
  std::erase_if(all, [](const FileMutant& one) {
    return one.mutation.kind == FileMutation::Kind::kSwapped && one.mutation.site == Site::kNoteSync;
  });
  return all;
}

/// Explores one history.
FileExploreResult explore_history(const Options& options, Subject& subject, const std::vector<std::size_t>& keep,
                                  std::uint64_t seed, const FileMutant& planted) {
  FileExploreOptions how;
  how.seed = seed;
  how.images_per_moment = options.images_per_moment;
  how.recovery_every = options.recovery_every;
  how.mutation = planted.mutation;
  return explore_file(subject, keep, how);
}

std::string replay_line(const Options& options, std::uint64_t seed, const std::vector<std::size_t>& keep) {
  std::string line = "dunnock-crash explore --structure " + options.structure + " --media file --fingerprint-bits " +
                     std::to_string(options.bits) + " --threads " + std::to_string(options.threads) + " --ops " +
                     std::to_string(options.operations) + " --seed " + std::to_string(seed) + " --only-seed" +
                     " --images-per-moment " + std::to_string(options.images_per_moment) + " --recovery-every " +
                     std::to_string(options.recovery_every) +
                     (options.mutant.empty() ? "" : " --mutant '" + options.mutant + "'") + " --keep ";
  for (std::size_t i = 0; i < keep.size(); ++i) line += (i == 0 ? "" : ",") + std::to_string(keep[i]);
  return line;
}

/// The replay line of the history that this thread explores.
thread_local std::string running_replay;

/// A structure that stops the process (a failed check, a stray pointer) has violated its contract, too. Such a history
/// can't be shrunk here, but it can be replayed.
extern "C" void report_stopped_structure_on_file(int signal) {
  const auto say = [](const char* text, std::size_t length) { return write(STDOUT_FILENO, text, length) >= 0; };
  const char* kind = signal == SIGABRT ? "VIOLATION: a check of the structure failed\nreplay: "
                                       : "VIOLATION: the structure touched memory that is not there\nreplay: ";
  (void)(say(kind, std::strlen(kind)) && say(running_replay.data(), running_replay.size()) && say("\n", 1));
  _exit(kViolated);
}

/// What the search for one planted bug has come to. Lies in memory that the searching process shares with us, for a
/// planted bug may make the structure stop the process.
struct Search {
  std::uint64_t images = 0, histories = 0;
  char what[400] = {};
  bool sites[kSites] = {};
  void say(const std::string& text) { text.copy(what, sizeof what - 1); }
};

void search(const Options& options, const FileMutant& planted, Search& result) {
  for (std::uint64_t seed = options.seed; result.images < options.budget; ++seed) {
    const auto subject = subject_of(options, seed);
    ++result.histories;
    const auto explored = explore_history(options, *subject, everything(*subject), seed, planted);
    result.images += explored.images + 1;
    for (std::size_t i = 0; i < kSites; ++i) result.sites[i] = result.sites[i] || explored.sites[i];
    if (explored.violation) return result.say(*explored.violation);
  }
}

/// A process that searches; what it prints (a check that fails has last words) goes to `words`.
struct Searcher {
  pid_t process = 0;
  std::size_t mutant = 0;
  int words = -1;
};

Searcher start_search(const Options& options, std::size_t mutant, const FileMutant& planted, Search& result) {
  int ends[2];
  if (pipe(ends) != 0) return {-1, mutant, -1};
  const pid_t process = fork();
  if (process == 0) {
    dup2(ends[1], STDERR_FILENO);
    const rlimit none{0, 0};
    setrlimit(RLIMIT_CORE, &none);
    search(options, planted, result);
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

/// What the running code calls for, and no planted bug touches.
std::vector<std::string> calls_left_alone(const std::vector<FileMutant>& all, const Search& original) {
  std::vector<std::string> alone;
  for (std::size_t i = 0; i < kSites; ++i) {
    const auto site = static_cast<Site>(i);
    // The zeros of new blocks mean nothing, and what others do is the harness's own.
    if (!original.sites[i] || site == Site::kBeginFill || site == Site::kOthersSync) continue;
    const bool planted = std::any_of(all.begin(), all.end(), [&](const FileMutant& one) {
      using Kind = FileMutation::Kind;
      const bool drops = one.mutation.kind == Kind::kNotDone || one.mutation.kind == Kind::kFailed;
      return drops && one.mutation.site == site;
    });
    if (!planted) alone.emplace_back(name(site));
  }
  return alone;
}

}  // namespace

int explore_files(const Options& options) {
  FileMutant planted;
  if (!options.mutant.empty()) {
    const std::vector<FileMutant> all = bugs_of(options);
    const auto named = [&](const FileMutant& one) { return one.name == options.mutant; };
    const auto mutant = std::find_if(all.begin(), all.end(), named);
    if (mutant == all.end()) {
      std::fprintf(stderr, "no planted bug '%s'; dunnock-crash mutants names them\n", options.mutant.c_str());
      return kUsage;
    }
    planted = *mutant;
  }
  for (const int signal : {SIGABRT, SIGSEGV, SIGBUS, SIGFPE}) std::signal(signal, report_stopped_structure_on_file);
  const bool terminal = isatty(STDERR_FILENO) != 0;
  const auto start = Clock::now();
  std::atomic<std::uint64_t> next_seed{options.seed};
  std::atomic<std::uint64_t> images{0}, recovery_images{0}, histories{0}, moments{0}, sampled{0};
  std::atomic<std::uint64_t> replayed{0}, refused{0};
  std::atomic<bool> stop{false};
  std::mutex mutex;
  Json violation;
  const auto work = [&] {
    while (!stop.load() && images.load() < options.images) {
      const std::uint64_t seed = next_seed.fetch_add(1);
      const auto subject = subject_of(options, seed);
      std::vector<std::size_t> keep = options.keep.empty() ? everything(*subject) : options.keep;
      std::erase_if(keep, [&](std::size_t i) { return i >= subject->operations(); });
      running_replay = replay_line(options, seed, keep);
      const auto result = explore_history(options, *subject, keep, seed, planted);
      images += result.images;
      recovery_images += result.recovery_images;
      moments += result.moments;
      sampled += result.moments_sampled;
      replayed += result.replayed;
      refused += result.refused;
      ++histories;
      if (result.violation && !stop.exchange(true)) {
        keep = shrink_while(keep, [&](const std::vector<std::size_t>& fewer) {
          return explore_history(options, *subject, fewer, seed, planted).violation.has_value();
        });
        const auto shrunk = explore_history(options, *subject, keep, seed, planted);
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
  std::printf("%llu images needed the journal; in %llu histories the disk refused a call\n",
              static_cast<unsigned long long>(replayed.load()), static_cast<unsigned long long>(refused.load()));
  Json report = {{"command", "explore"},
                 {"structure", options.structure},
                 {"media", options.media},
                 {"fingerprint_bits", options.bits},
                 {"mutant", options.mutant},
                 {"seed", options.seed},
                 {"images", images.load()},
                 {"recovery_images", recovery_images.load()},
                 {"histories", histories.load()},
                 {"moments", moments.load()},
                 {"moments_sampled", sampled.load()},
                 {"replayed", replayed.load()},
                 {"refused", refused.load()},
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

int mutants_of_files(const Options& options) {
  const std::vector<FileMutant> all = bugs_of(options);
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
      const FileMutant planted = mutant < all.size() ? all[mutant] : FileMutant{};
      running.push_back(start_search(options, mutant, planted, results[mutant]));
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

  Json report = {{"command", "mutants"},           {"structure", options.structure}, {"fingerprint_bits", options.bits},
                 {"seed", options.seed},           {"media", options.media},         {"budget", options.budget},
                 {"seconds", seconds_since(start)}};
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
  const std::vector<std::string> alone = calls_left_alone(all, original);
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

int live(const Options& options) {
  const auto start = Clock::now();
  LifeOptions how;
  how.seed = options.seed;
  how.images = options.life_images;
  how.drop = options.life_drop;
  const auto result = live_and_crash(how);
  const std::string violation = result.violation;
  std::printf("%llu images of %llu lives (%llu began with a crashed pool), %llu syncs, %.1f s\n",
              static_cast<unsigned long long>(result.images), static_cast<unsigned long long>(result.lives),
              static_cast<unsigned long long>(result.replayed), static_cast<unsigned long long>(result.calls),
              seconds_since(start));
  const std::string replay = "\nreplay: dunnock-crash life --seed " + std::to_string(options.seed) + " --images " +
                             std::to_string(options.life_images) +
                             (options.life_drop.empty() ? "" : " --drop '" + options.life_drop + "'");
  std::printf("%s\n", violation.empty() ? "no violation" : ("VIOLATION " + violation + replay).c_str());
  const Json report = {{"command", "life"},
                       {"seed", options.seed},
                       {"images", result.images},
                       {"lives", result.lives},
                       {"replayed", result.replayed},
                       {"syncs", result.calls},
                       {"violations", violation.empty() ? 0 : 1},
                       {"violation", violation}};
  return finish(options, report, violation.empty() ? kFine : kViolated);
}

}  // namespace dunnock::crash
