#include "commands.hpp"

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
#include <memory>
#include <numeric>
#include <span>
#include <thread>

#include "dunnock/base/output_file.hpp"
#include "known_histories.hpp"
#include "shrink.hpp"

namespace dunnock::crash {
namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::json;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }
unsigned long long number(std::uint64_t value) { return value; }

std::vector<std::size_t> everything(const Subject& subject) {
  std::vector<std::size_t> all(subject.operations());
  std::iota(all.begin(), all.end(), 0);
  return all;
}

/// `keep` empty: all operations.
std::string replay_line(const Settings& settings, const Exploration& way, std::uint64_t seed,
                        const std::vector<std::size_t>& keep) {
  std::string line =
      "dunnock-crash explore --structure " + settings.structure + way.own_options() + " --fingerprint-bits " +
      std::to_string(settings.bits) + " --threads " + std::to_string(settings.threads) + " --ops " +
      std::to_string(settings.operations) + " --seed " + std::to_string(seed) + " --only-seed --images-per-moment " +
      std::to_string(way.images_per_moment()) + " --recovery-every " + std::to_string(settings.recovery_every) +
      (settings.bug.empty() ? "" : " --mutant '" + settings.bug + "'");
  for (std::size_t i = 0; i < keep.size(); ++i) line += (i == 0 ? " --keep " : ",") + std::to_string(keep[i]);
  return line;
}

Json report_of(const char* command, const Settings& settings) {
  return {{"command", command},    {"structure", settings.structure},   {"media", settings.media},
          {"eadr", settings.eadr}, {"fingerprint_bits", settings.bits}, {"seed", settings.seed}};
}

/// The replay line of the history that this thread explores.
thread_local std::string running_replay;

/// A structure that stops the process (a failed check, a stray pointer) has violated its contract, too. Such a history
/// can't be shrunk here, but it can be replayed.
extern "C" void report_stopped_structure(int signal) {
  const auto say = [](const char* text, std::size_t length) { return write(STDOUT_FILENO, text, length) >= 0; };
  const char* const kind = signal == SIGABRT  ? "VIOLATION: a check of the structure failed\nreplay: "
                           : signal == SIGFPE ? "VIOLATION: a division by zero\nreplay: "
                                              : "VIOLATION: the structure touched memory that is not there\nreplay: ";
  (void)(say(kind, std::strlen(kind)) && say(running_replay.data(), running_replay.size()) && say("\n", 1));
  _exit(kViolated);
}

/// Progress of a long run, for a person at a terminal.
class Progress {
 public:
  Progress() : shown_(isatty(STDERR_FILENO) != 0) {}
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  ~Progress() {
    if (shown_) std::fprintf(stderr, "\r\033[K");
  }
  [[nodiscard]] bool shown() const { return shown_; }
  void say(const std::string& text) const {
    if (shown_) std::fprintf(stderr, "\r%s ", text.c_str());
  }

 private:
  bool shown_;
};

/// What has come of all histories so far.
struct Totals {
  std::atomic<std::uint64_t> images{0}, recovery_images{0}, histories{0}, moments{0}, sampled{0}, operations{0},
      replayed{0}, refused{0};
  void add(const Explored& one) {
    images += one.images;
    recovery_images += one.recovery_images;
    moments += one.moments;
    sampled += one.moments_sampled;
    replayed += one.replayed;
    refused += one.refused;
    ++histories;
  }
};

/// What the search for one planted bug has come to. Lies in memory that the searching process shares with us, for a
/// planted bug may make the structure stop the process.
struct Search {
  std::uint64_t images = 0, histories = 0;
  std::uint64_t seed = 0;  // of the last history
  bool was_known = false;  // that history was known to catch it
  char what[400] = {};
  std::size_t step_count = 0;
  /// Of the code without a bug. Names of files are literals of this program, which its children share.
  Exploration::Step steps[512] = {};
  void say(const std::string& text) { text.copy(what, sizeof what - 1); }
  [[nodiscard]] std::span<const Exploration::Step> all_steps() const { return std::span(steps).first(step_count); }
  void note(const Exploration::Step& one) {
    const auto known = all_steps();
    const bool is_known = std::any_of(known.begin(), known.end(), [&](const Exploration::Step& other) {
      return other.left_out_by == one.left_out_by && other.point == one.point && other.line == one.line;
    });
    if (!is_known && step_count < std::size(steps)) steps[step_count++] = one;
  }
};

/// One search: with a planted bug, or with kNoBug.
struct Quest {
  std::size_t bug = Exploration::kNoBug;
  std::uint64_t budget = 0;          // images
  std::vector<std::uint64_t> known;  // seeds of the histories to try first
};

void search(const Exploration& way, const Settings& settings, const Quest& quest, Search& result) {
  const auto is_over = [&](std::uint64_t seed) {
    const auto subject = way.subject(seed);
    ++result.histories;
    result.seed = seed;
    const Explored explored = way.explore(*subject, everything(*subject), seed, quest.bug);
    result.images += explored.images + 1;
    for (const auto& step : explored.steps) result.note(step);
    if (explored.violation) result.say(*explored.violation);
    return explored.violation.has_value();
  };
  result.was_known = true;
  for (const std::uint64_t seed : quest.known) {
    if (is_over(seed)) return;
  }
  result.was_known = false;
  for (std::uint64_t seed = settings.seed; result.images < quest.budget; ++seed) {
    if (is_over(seed)) return;
  }
}

/// A process that searches; what it prints (a check that fails has last words) goes to `words`.
struct Searcher {
  pid_t process = 0;
  std::size_t place = 0;
  int words = -1;
};

Searcher start_search(const Exploration& way, const Settings& settings, std::size_t place, const Quest& quest,
                      Search& result) {
  int ends[2];
  if (pipe(ends) != 0) return {-1, place, -1};
  const pid_t process = fork();
  if (process == 0) {
    dup2(ends[1], STDERR_FILENO);
    const rlimit none{0, 0};
    setrlimit(RLIMIT_CORE, &none);
    search(way, settings, quest, result);
    _exit(0);
  }
  close(ends[1]);
  return {process, place, ends[0]};
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
  Searches(const Exploration& way, const Settings& settings, const std::vector<Quest>& quests) : count_(quests.size()) {
    void* shared =
        mmap(nullptr, count_ * sizeof(Search) + 1, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) return;
    results_ = static_cast<Search*>(shared);
    std::uninitialized_value_construct_n(results_, count_);
    const Progress progress;
    std::vector<Searcher> running;
    for (std::size_t next = 0; next < count_ || !running.empty();) {
      if (next < count_ && running.size() < settings.jobs) {
        const std::size_t place = count_ - 1 - next++;
        progress.say(std::to_string(next) + " of " + std::to_string(count_));
        running.push_back(start_search(way, settings, place, quests[place], results_[place]));
        if (running.back().process > 0) continue;
        return;
      }
      int status = 0;
      const pid_t ended = waitpid(-1, &status, 0);
      const auto searcher =
          std::find_if(running.begin(), running.end(), [&](const Searcher& s) { return s.process == ended; });
      if (searcher == running.end()) continue;
      finish_search(*searcher, status, results_[searcher->place]);
      running.erase(searcher);
    }
    done_ = true;
  }
  Searches(const Searches&) = delete;
  Searches& operator=(const Searches&) = delete;
  ~Searches() {
    if (results_ != nullptr) munmap(results_, count_ * sizeof(Search) + 1);
  }
  /// False: there was no memory or no process for them.
  [[nodiscard]] bool done() const {
    if (!done_) std::fprintf(stderr, "can't allocate memory or start processes for %zu searches\n", count_);
    return done_;
  }
  [[nodiscard]] const Search& operator[](std::size_t i) const { return results_[i]; }

 private:
  std::size_t count_;
  Search* results_ = nullptr;
  bool done_ = false;
};

/// The histories of the command explore, on several threads.
class HistoryRun {
 public:
  HistoryRun(const Settings& settings, const Exploration& way, std::size_t bug)
      : settings_(settings), way_(way), bug_(bug), next_seed_(settings.seed) {}

  int run() {
    const auto start = Clock::now();
    explore_all();
    Json report = summarize(seconds_since(start));
    if (!violation_.is_null()) return tell_violation(std::move(report));
    if (totals_.images == 0 || totals_.operations == 0)
      return finish_without_a_check(settings_.json, report, "no image of any operation was checked");
    std::printf("no violation\n");
    return finish(settings_.json, report, kFine);
  }

 private:
  [[nodiscard]] bool is_over() const { return stop_.load() || totals_.images.load() >= settings_.images; }

  void explore_all() {
    const Progress progress;
    std::vector<std::thread> threads;
    for (unsigned i = 0; i < (settings_.only_seed ? 1 : settings_.jobs); ++i) {
      threads.emplace_back([this] {
        while (!is_over()) explore_one(next_seed_.fetch_add(1));
      });
    }
    while (progress.shown() && !is_over()) {
      progress.say(std::to_string(totals_.images) + " images of " + std::to_string(totals_.histories) + " histories");
      std::this_thread::sleep_for(std::chrono::milliseconds(200));
    }
    for (std::thread& thread : threads) thread.join();
  }

  void explore_one(std::uint64_t seed) {
    running_replay = replay_line(settings_, way_, seed, settings_.keep);
    const auto subject = way_.subject(seed);
    std::vector<std::size_t> keep = settings_.keep.empty() ? everything(*subject) : settings_.keep;
    std::erase_if(keep, [&](std::size_t i) { return i >= subject->operations(); });
    totals_.operations += keep.size();
    const Explored result = way_.explore(*subject, keep, seed, bug_);
    totals_.add(result);
    if (result.violation && !stop_.exchange(true)) note_violation(*subject, std::move(keep), seed, *result.violation);
    if (settings_.only_seed) stop_.store(true);
  }

  void note_violation(Subject& subject, std::vector<std::size_t> keep, std::uint64_t seed, const std::string& what) {
    keep = shrink_while(keep, [&](const std::vector<std::size_t>& fewer) {
      return way_.explore(subject, fewer, seed, bug_).violation.has_value();
    });
    const Explored shrunk = way_.explore(subject, keep, seed, bug_);
    violation_ = {{"seed", seed},
                  {"what", shrunk.violation.value_or(what)},
                  {"replay", replay_line(settings_, way_, seed, keep)}};
    for (const std::size_t i : keep) violation_["history"].push_back(subject.describe(i));
  }

  [[nodiscard]] Json summarize(double seconds) const {
    const double per_second = static_cast<double>(totals_.images) / seconds;
    std::printf(
        "%llu images (%llu of them in the middle of recovery) of %llu histories at %llu moments (%llu sampled), "
        "%.1f s, %.0f images/s\n",
        number(totals_.images), number(totals_.recovery_images), number(totals_.histories), number(totals_.moments),
        number(totals_.sampled), seconds, per_second);
    Json report = report_of("explore", settings_);
    report["mutant"] = settings_.bug;
    report["images"] = totals_.images.load();
    report["recovery_images"] = totals_.recovery_images.load();
    report["histories"] = totals_.histories.load();
    report["moments"] = totals_.moments.load();
    report["moments_sampled"] = totals_.sampled.load();
    report["seconds"] = seconds;
    report["images_per_second"] = per_second;
    report["violations"] = violation_.is_null() ? 0 : 1;
    if (settings_.media == "file") {
      std::printf("%llu images needed the journal; in %llu histories the disk refused a call\n",
                  number(totals_.replayed), number(totals_.refused));
      report["replayed"] = totals_.replayed.load();
      report["refused"] = totals_.refused.load();
    }
    return report;
  }

  int tell_violation(Json report) const {
    report["violation"] = violation_;
    std::printf("VIOLATION with seed %llu: %s\n", number(violation_["seed"].get<std::uint64_t>()),
                violation_["what"].get<std::string>().c_str());
    for (const auto& line : violation_["history"]) std::printf("  %s\n", line.get<std::string>().c_str());
    std::printf("replay: %s\n", violation_["replay"].get<std::string>().c_str());
    return finish(settings_.json, report, kViolated);
  }

  const Settings& settings_;
  const Exploration& way_;
  std::size_t bug_;
  std::atomic<std::uint64_t> next_seed_;
  Totals totals_;
  std::atomic<bool> stop_{false};
  Json violation_;  // written by the one thread that has set stop_
};

}  // namespace

int finish(const std::string& json, const Json& report, int code) {
  if (json.empty()) return code;
  const Status written = write_output_file(json, report.dump(2) + "\n");
  if (written) return code;
  std::fprintf(stderr, "%s\n", written.error().message.c_str());
  return kEnvironment;
}

int finish_without_a_check(const std::string& json, Json report, const char* what) {
  std::printf("FAILED: %s\n", what);
  report["failed"] = what;
  return finish(json, report, kViolated);
}

int explore_histories(const Settings& settings) {
  const auto way = make_exploration(settings);
  std::size_t bug = Exploration::kNoBug;
  if (!settings.bug.empty()) {
    bug = way->bug(settings.bug);
    if (bug == Exploration::kNoBug) {
      std::fprintf(stderr, "unknown planted bug '%s'; dunnock-crash mutants --list lists them\n", settings.bug.c_str());
      return kUsage;
    }
  }
  for (const int signal : {SIGABRT, SIGSEGV, SIGBUS, SIGFPE}) std::signal(signal, report_stopped_structure);
  return HistoryRun(settings, *way, bug).run();
}

int list_bugs(const Settings& settings) {
  for (const std::string& name : make_exploration(settings)->bugs()) {
    if (name.find(settings.bug) != std::string::npos) std::printf("%s\n", name.c_str());
  }
  return kFine;
}

namespace {

/// What `mutants` has found so far.
class Planting {
 public:
  Planting(const Settings& settings, const Exploration& way, KnownHistories& known)
      : settings_(settings), way_(way), known_(known), report_(report_of("mutants", settings)) {
    report_["budget"] = settings.budget;
  }

  /// Searches for the bugs from `first` on, and with `with_original` explores the code without any, which takes
  /// longest.
  [[nodiscard]] bool plant(std::size_t first, bool with_original) {
    const std::vector<std::string> names = way_.bugs();
    std::vector<Quest> quests;
    for (std::size_t i = first; i < names.size(); ++i) {
      if (names[i].find(settings_.bug) != std::string::npos)
        quests.push_back({i, settings_.budget, known_.of(settings_, names[i])});
    }
    if (with_original)
      quests.push_back({Exploration::kNoBug, settings_.original.value_or(settings_.budget), known_.all_of(settings_)});
    const Searches searches(way_, settings_, quests);
    if (!searches.done()) return false;
    for (std::size_t i = 0; i < quests.size(); ++i) {
      if (quests[i].bug == Exploration::kNoBug)
        original_ = searches[i];
      else
        tell(names[quests[i].bug], searches[i]);
    }
    return true;
  }

  [[nodiscard]] const Search& original() const { return original_; }
  [[nodiscard]] std::size_t planted() const { return planted_; }
  [[nodiscard]] std::size_t caught() const { return caught_; }
  [[nodiscard]] std::size_t known() const { return by_known_; }
  [[nodiscard]] Json& report() { return report_; }
  /// Writes which history has caught which bug. A search for all bugs replaces what was known.
  [[nodiscard]] Status learn() {
    if (settings_.bug.empty()) known_.forget(settings_);
    for (const auto& [name, seed] : learned_) known_.learn(settings_, name, seed);
    return known_.write(settings_.known);
  }

 private:
  void tell(const std::string& name, const Search& result) {
    const std::string what = result.what;
    const bool found = !what.empty();
    ++planted_;
    caught_ += found ? 1 : 0;
    by_known_ += found && result.was_known ? 1 : 0;
    if (found) learned_.emplace_back(name, result.seed);
    std::printf("%-8s %-52s %9llu images  %s\n", found ? "caught" : "MISSED", name.c_str(), number(result.images),
                what.c_str());
    report_["mutants"].push_back({{"name", name},
                                  {"caught", found},
                                  {"images", result.images},
                                  {"histories", result.histories},
                                  {"seed", result.seed},
                                  {"what", what}});
  }

  const Settings& settings_;
  const Exploration& way_;
  KnownHistories& known_;
  Json report_;
  Search original_;
  std::vector<std::pair<std::string, std::uint64_t>> learned_;
  std::size_t planted_ = 0, caught_ = 0, by_known_ = 0;
};

}  // namespace

int plant_bugs(const Settings& settings) {
  const auto way = make_exploration(settings);
  const auto start = Clock::now();
  KnownHistories known;
  if (!settings.known.empty()) {
    auto read = KnownHistories::read(settings.known, settings.learn);
    if (!read) {
      std::fprintf(stderr, "%s\n", read.error().message.c_str());
      return kEnvironment;
    }
    known = std::move(*read);
  }
  Planting planting(settings, *way, known);
  if (!planting.plant(0, true)) return kEnvironment;
  const Search& original = planting.original();
  const std::size_t bugs_of_steps = planting.planted();
  const std::vector<std::string> alone =
      settings.bug.empty() ? way->untried(original.all_steps()) : std::vector<std::string>();
  const std::size_t first_of_lines = way->bugs().size();
  way->add_bugs_of_lines(original.all_steps());
  if (!planting.plant(first_of_lines, false)) return kEnvironment;
  if (settings.learn) {
    if (Status written = planting.learn(); !written) {
      std::fprintf(stderr, "%s\n", written.error().message.c_str());
      return kEnvironment;
    }
  }

  const std::size_t planted = planting.planted(), caught = planting.caught();
  Json& report = planting.report();
  const std::string what = original.what;
  for (const std::string& test : way->left_to_tests()) std::printf("left to  %s\n", test.c_str());
  for (const std::string& step : alone) std::printf("UNTRIED  %s: no planted bug leaves it out\n", step.c_str());
  std::printf(
      "%zu of %zu planted bugs caught (%zu of them in one line of several that share a step, %zu by the history that "
      "was known to catch it); the code without any: %llu images, %s; %.0f s\n",
      caught, planted, planted - bugs_of_steps, planting.known(), number(original.images),
      what.empty() ? "no violation" : what.c_str(), seconds_since(start));
  report["seconds"] = seconds_since(start);
  report["planted"] = planted;
  report["caught"] = caught;
  report["untried_steps"] = alone;
  report["original"] = {{"images", original.images}, {"violation", what}};
  const bool fine = caught == planted && what.empty() && alone.empty();
  const bool checked = planted != 0 && original.images != 0;
  if (fine && !checked) return finish_without_a_check(settings.json, report, "no bug was planted, or no image checked");
  return finish(settings.json, report, fine ? kFine : kViolated);
}

}  // namespace dunnock::crash
