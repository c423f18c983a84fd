// dunnock-crash: explores power failures, kills processes, damages files, and proves by planted bugs that it notices.
// Exit codes: 0 fine, 1 violated, 2 usage, 3 environment.
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <limits>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <numeric>
#include <span>
#include <thread>

#include "dunnock/base/last_catch.hpp"
#include "dunnock/base/output_file.hpp"
#include "dunnock/base/standard_streams.hpp"
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
  std::uint64_t schedules = 128;
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
    if (dunnock::Status written = dunnock::write_output_file(options.json, report.dump(2) + "\n"); !written) {
      std::fprintf(stderr, "%s\n", written.error().message.c_str());
      return kEnvironment;
    }
  }
  return code;
}

/// For a run that ends without having checked anything: that is no pass.
int finish_without_a_check(const Options& options, Json report, const char* what) {
  std::printf("FAILED: %s\n", what);
  report["failed"] = what;
  return finish(options, report, kViolated);
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
                     std::to_string(options.recovery_every) + " --schedules " + std::to_string(options.schedules) +
                     (options.eadr ? " --eadr" : "") +
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
    // "no flush Spill at cuckoo_filter_ops.hpp:151" is the one of that name, in that line alone.
    const std::size_t at = options.mutant.find(" at ");
    const std::size_t colon = at == std::string::npos ? at : options.mutant.rfind(':');
    const bool of_line = colon != std::string::npos && colon > at;
    const std::string name = of_line ? options.mutant.substr(0, at) : options.mutant;
    const auto named = [&](const dunnock::crash::Mutant& one) { return one.name == name; };
    const auto mutant = std::find_if(all.begin(), all.end(), named);
    if (mutant == all.end()) {
      std::fprintf(stderr, "no planted bug '%s'; dunnock-crash mutants names them\n", options.mutant.c_str());
      return kUsage;
    }
    mutation = mutant->mutation;
    if (of_line)
      mutation.line = static_cast<std::uint32_t>(std::strtoul(options.mutant.c_str() + colon + 1, nullptr, 10));
  }
  for (const int signal : {SIGABRT, SIGSEGV, SIGBUS, SIGFPE}) std::signal(signal, report_stopped_structure);
  const bool terminal = isatty(STDERR_FILENO) != 0;
  const auto start = Clock::now();
  std::atomic<std::uint64_t> next_seed{options.seed};
  std::atomic<std::uint64_t> images{0}, recovery_images{0}, histories{0}, moments{0}, sampled{0}, operations{0};
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
      how.schedules = options.schedules;
      std::vector<std::size_t> keep = options.keep.empty() ? everything(*subject) : options.keep;
      std::erase_if(keep, [&](std::size_t i) { return i >= subject->operations(); });
      operations += keep.size();
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
    if (images == 0 || operations == 0)
      return finish_without_a_check(options, report, "no image of any operation was checked");
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
  /// ExploreResult::Step, of the code without a bug.
  struct Step {
    dunnock::Mutation::Kind left_out_by;
    dunnock::Point point;
    std::uint32_t line;
    char file[48];
  };
  std::size_t step_count = 0;
  Step steps[512] = {};
  void say(const std::string& text) { text.copy(what, sizeof what - 1); }
  [[nodiscard]] std::span<const Step> all_steps() const { return std::span(steps).first(step_count); }
  void note(const dunnock::crash::ExploreResult::Step& one) {
    const bool known = std::any_of(steps, steps + step_count, [&](const Step& other) {
      return other.left_out_by == one.left_out_by && other.point == one.point && other.line == one.line;
    });
    if (known || step_count == std::size(steps)) return;
    Step& step = steps[step_count++];
    step = {one.left_out_by, one.point, one.line, {}};
    one.file.copy(step.file, sizeof step.file - 1);
  }
};

void search(const Structure& structure, const Options& options, const dunnock::Mutation& mutation, Search& result) {
  for (std::uint64_t seed = options.seed; result.images < options.budget; ++seed) {
    const auto subject = subject_of(structure, options, seed);
    dunnock::crash::ExploreOptions how;
    how.seed = seed;
    how.images_per_moment = options.images_per_moment;
    how.recovery_every = options.recovery_every;
    how.schedules = options.schedules;
    how.mutation = mutation;
    ++result.histories;
    const auto explored = dunnock::crash::explore(*subject, everything(*subject), how);
    result.images += explored.images + 1;
    for (const auto& step : explored.steps) result.note(step);
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

/// Searches for each of the bugs in a process of its own, the last ones of the list first.
class Searches {
 public:
  Searches(const Structure& structure, const Options& options, const std::vector<dunnock::Mutation>& bugs)
      : count_(bugs.size()) {
    void* shared =
        mmap(nullptr, count_ * sizeof(Search) + 1, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) return;
    results_ = static_cast<Search*>(shared);
    std::uninitialized_value_construct_n(results_, count_);
    const bool terminal = isatty(STDERR_FILENO) != 0;
    std::vector<Searcher> running;
    for (std::size_t next = 0; next < count_ || !running.empty();) {
      if (next < count_ && running.size() < options.jobs) {
        const std::size_t bug = count_ - 1 - next++;
        if (terminal) std::fprintf(stderr, "\r%zu of %zu ", next, count_);
        running.push_back(start_search(structure, options, bug, bugs[bug], results_[bug]));
        if (running.back().process > 0) continue;
        return;
      }
      int status = 0;
      const pid_t ended = waitpid(-1, &status, 0);
      const auto searcher =
          std::find_if(running.begin(), running.end(), [&](const Searcher& s) { return s.process == ended; });
      if (searcher == running.end()) continue;
      finish_search(*searcher, status, results_[searcher->mutant]);
      running.erase(searcher);
    }
    if (terminal) std::fprintf(stderr, "\r\033[K");
    done_ = true;
  }
  Searches(const Searches&) = delete;
  Searches& operator=(const Searches&) = delete;
  ~Searches() {
    if (results_ != nullptr) munmap(results_, count_ * sizeof(Search) + 1);
  }
  /// False: there was no memory or no process for them.
  [[nodiscard]] bool done() const { return done_; }
  [[nodiscard]] const Search& operator[](std::size_t i) const { return results_[i]; }

 private:
  std::size_t count_;
  Search* results_ = nullptr;
  bool done_ = false;
};

const char* what_is_left_out(dunnock::Mutation::Kind kind) {
  using Kind = dunnock::Mutation::Kind;
  return kind == Kind::kDropStore   ? "store"
         : kind == Kind::kDropFlush ? "flush"
         : kind == Kind::kDropFence ? "fence"
                                    : "check";
}

/// For each step of the running code that several lines of the source take: a bug in each of these lines alone. For one
/// line could stand in for the others.
std::vector<dunnock::crash::Mutant> mutants_of_lines(const Structure& structure,
                                                     const std::vector<dunnock::crash::Mutant>& all,
                                                     const Search& original) {
  std::vector<dunnock::crash::Mutant> lines;
  for (const Search::Step& step : original.all_steps()) {
    const auto same = [&](const Search::Step& other) {
      return other.left_out_by == step.left_out_by && other.point == step.point;
    };
    const auto named = [&](const dunnock::crash::Mutant& one) {
      return one.mutation.kind == step.left_out_by && one.mutation.point == step.point;
    };
    const auto steps = original.all_steps();
    if (static_cast<unsigned>(step.point) < structure.first_point ||
        std::count_if(steps.begin(), steps.end(), same) < 2 || std::none_of(all.begin(), all.end(), named))
      continue;
    lines.push_back({std::string("no ") + what_is_left_out(step.left_out_by) + " " +
                         std::string(structure.point_name(step.point)) + " at " + step.file + ":" +
                         std::to_string(step.line),
                     {step.left_out_by, step.point, {}, step.line}});
  }
  return lines;
}

/// A step of the running code that no planted bug leaves out.
std::vector<std::string> steps_left_alone(const Structure& structure, const std::vector<dunnock::crash::Mutant>& all,
                                          const Search& original) {
  std::vector<std::string> alone;
  for (const Search::Step& step : original.all_steps()) {
    if (static_cast<unsigned>(step.point) < structure.first_point) continue;
    const bool planted = std::any_of(all.begin(), all.end(), [&](const dunnock::crash::Mutant& one) {
      return one.mutation.kind == step.left_out_by && one.mutation.point == step.point;
    });
    const bool elsewhere = std::any_of(structure.elsewhere.begin(), structure.elsewhere.end(), [&](const auto& one) {
      return one.left_out_by == step.left_out_by && one.point == step.point;
    });
    if (planted || elsewhere) continue;
    alone.push_back(std::string(what_is_left_out(step.left_out_by)) + " " +
                    std::string(structure.point_name(step.point)) + " at " + step.file + ":" +
                    std::to_string(step.line));
  }
  return alone;
}

int mutants(const Structure& structure, const Options& options) {
  std::vector<dunnock::crash::Mutant> all = structure.mutants();
  const auto start = Clock::now();
  Json report = {{"command", "mutants"},
                 {"structure", options.structure},
                 {"fingerprint_bits", options.bits},
                 {"seed", options.seed},
                 {"budget", options.budget}};
  std::size_t caught = 0;
  const auto tell = [&](const dunnock::crash::Mutant& one, const Search& result) {
    const std::string what = result.what;
    const bool found = !what.empty();
    caught += found ? 1 : 0;
    std::printf("%-8s %-52s %9llu images  %s\n", found ? "caught" : "MISSED", one.name.c_str(),
                static_cast<unsigned long long>(result.images), what.c_str());
    report["mutants"].push_back({{"name", one.name},
                                 {"caught", found},
                                 {"images", result.images},
                                 {"histories", result.histories},
                                 {"what", what}});
  };
  if (!options.mutant.empty())
    std::erase_if(all, [&](const auto& one) { return one.name.find(options.mutant) == std::string::npos; });
  std::vector<dunnock::Mutation> bugs;
  for (const auto& one : all) bugs.push_back(one.mutation);
  bugs.emplace_back();  // The code without a bug, which takes longest.
  const Searches searches(structure, options, bugs);
  if (!searches.done()) {
    std::fprintf(stderr, "no memory or no processes for %zu searches\n", bugs.size());
    return kEnvironment;
  }
  const Search& original = searches[all.size()];
  for (std::size_t i = 0; i < all.size(); ++i) tell(all[i], searches[i]);

  const std::vector<dunnock::crash::Mutant> lines = mutants_of_lines(structure, all, original);
  std::vector<dunnock::Mutation> line_bugs;
  for (const auto& one : lines) line_bugs.push_back(one.mutation);
  const Searches line_searches(structure, options, line_bugs);
  if (!line_searches.done()) {
    std::fprintf(stderr, "no memory or no processes for %zu searches\n", line_bugs.size());
    return kEnvironment;
  }
  for (std::size_t i = 0; i < lines.size(); ++i) tell(lines[i], line_searches[i]);

  const std::string what = original.what;
  const std::vector<std::string> alone =
      options.mutant.empty() ? steps_left_alone(structure, all, original) : std::vector<std::string>();
  for (const auto& one : structure.elsewhere) {
    std::printf("left to  %s: no %s %s\n", std::string(one.test).c_str(), what_is_left_out(one.left_out_by),
                std::string(structure.point_name(one.point)).c_str());
  }
  for (const std::string& step : alone) std::printf("UNTRIED  %s: no planted bug leaves it out\n", step.c_str());
  const std::size_t planted = all.size() + lines.size();
  std::printf(
      "%zu of %zu planted bugs caught (%zu of them in one line of several that share a step); the code without "
      "any: %llu images, %s; %.0f s\n",
      caught, planted, lines.size(), static_cast<unsigned long long>(original.images),
      what.empty() ? "no violation" : what.c_str(), seconds_since(start));
  report["seconds"] = seconds_since(start);
  report["planted"] = planted;
  report["caught"] = caught;
  report["untried_steps"] = alone;
  report["original"] = {{"images", original.images}, {"violation", what}};
  const bool fine = caught == planted && what.empty() && alone.empty();
  const bool checked = planted != 0 && original.images != 0;
  if (fine && !checked) return finish_without_a_check(options, report, "no bug was planted, or no image checked");
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
  const bool checked = result.kills != 0 && result.acknowledged != 0;
  std::printf("%s\n",
              result.violation.empty()
                  ? (checked ? "no violation" : "nothing was acknowledged before a kill")
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
  if (result.violation.empty() && !checked)
    return finish_without_a_check(options, report, "no acknowledged operation was looked for");
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
  if (fine && !checked) return finish_without_a_check(options, report, "there is a kind of damage that was not done");
  std::printf("%s\n", fine ? "no violation" : "VIOLATION");
  return finish(options, report, fine ? kFine : kViolated);
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
        return fine ? std::string() : "'" + text + "' is no whole number from " + bounds;
      },
      "[" + bounds + "]");
}

int run(int argc, char** argv) try {
  Options options;
  options.jobs = std::max(1U, std::thread::hardware_concurrency());
  std::error_code unknown;  // Where there is none, --directory must name one.
  options.directory = std::filesystem::temp_directory_path(unknown);
  CLI::App app("Looks for lost, torn and resurrected data: plays power failures, kills processes, damages files.");
  app.require_subcommand(1);
  app.footer("Exit codes: 0 fine, 1 violated, 2 usage, 3 environment.");
  // A run of nothing would be a pass of nothing.
  const CLI::Validator some = whole(1, std::numeric_limits<std::uint64_t>::max());
  const CLI::Validator a_number = whole(1, std::numeric_limits<unsigned>::max());
  const auto common = [&options](CLI::App* command) {
    command->add_option("--structure", options.structure, "filter, index, log, checkpoint or prefix")
        ->capture_default_str();
    command->add_option("--seed", options.seed, "of everything random")
        ->check(whole(0, std::numeric_limits<std::uint64_t>::max()))
        ->capture_default_str();
    command->add_option("--json", options.json, "file for a summary");
    command->add_option("--threads", options.threads, "at most so many simulated or real threads")
        ->check(whole(1, 8))
        ->capture_default_str();
  };
  const auto exploring = [&options, some](CLI::App* command) {
    command->add_option("--fingerprint-bits", options.bits, "8, 12 or 16")
        ->check(CLI::IsMember({8, 12, 16}))
        ->capture_default_str();
    command->add_option("--ops", options.operations, "operations in a history")
        ->check(whole(1, 200))
        ->capture_default_str();
    command->add_option("--images-per-moment", options.images_per_moment, "sample when more are legal")
        ->check(some)
        ->capture_default_str();
    command->add_option("--recovery-every", options.recovery_every, "explore one recovery in so many for crashes in it")
        ->check(whole(1, 1000000))
        ->capture_default_str();
    command->add_option("--schedules", options.schedules, "other turns of the threads, of which no images are taken")
        ->check(whole(0, 1U << 20))
        ->capture_default_str();
    command->add_option("--jobs", options.jobs, "real threads")->check(whole(1, 256))->capture_default_str();
  };
  CLI::App* explore_command = app.add_subcommand("explore", "play the legal power failures of recorded histories");
  common(explore_command);
  exploring(explore_command);
  explore_command->add_option("--images", options.images, "stop after so many")->check(some)->capture_default_str();
  explore_command->add_flag("--eadr", options.eadr, "caches survive the power failure");
  explore_command->add_flag("--only-seed", options.only_seed, "one history: that of --seed");
  explore_command->add_option("--mutant", options.mutant, "plant this bug first");
  explore_command->add_option("--keep", options.keep, "only these operations of it")->delimiter(',');
  CLI::App* mutants_command = app.add_subcommand("mutants", "plant persistence bugs; every one must be caught");
  common(mutants_command);
  exploring(mutants_command);
  mutants_command->add_option("--only", options.mutant, "those with these words in their name");
  mutants_command->add_option("--budget", options.budget, "images to catch one with")
      ->check(some)
      ->capture_default_str();
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
  kill_command->add_option("--kills", options.kills)->check(a_number)->capture_default_str();
  kill_command->add_option("--media", options.media, "process or file")
      ->check(CLI::IsMember({"process", "file"}))
      ->capture_default_str();
  kill_command->add_option("--directory", options.directory, "for the pool file")->capture_default_str();
  CLI::App* corrupt_command = app.add_subcommand("corrupt", "damage pool files in every way");
  common(corrupt_command);
  corrupt_command->add_option("--rounds", options.rounds, "random damages of each kind")
      ->check(a_number)
      ->capture_default_str();
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
  if (!std::filesystem::is_directory(options.directory, unknown)) {
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
} catch (...) {
  std::fprintf(stderr, "dunnock-crash: %s\n", dunnock::words_of_exception().c_str());
  return kEnvironment;
}

}  // namespace

int main(int argc, char** argv) {
  dunnock::keep_standard_descriptors();
  const int status = run(argc, argv);
  const dunnock::Status printed = dunnock::flush_standard_output();
  if (printed) return status;
  std::fprintf(stderr, "dunnock-crash: %s\n", printed.error().message.c_str());
  return status == kFine ? kEnvironment : status;
}
