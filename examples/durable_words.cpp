// dunnock-filter-demo: kill a process that is filling a durable filter, and prove that nothing it had acknowledged is
// lost.
//
//   parent                                         child
//   ------                                         -----
//   makes a pool and an empty filter in it
//   forks ---------------------------------------> opens both; several threads insert groups of keys with
//   reads acknowledgements  <-------- pipe ------- insert_bulk and acknowledge each group once it is durable
//   at 40 % of the groups: SIGKILL --------------> dies wherever it happens to be
//   reads what is left in the pipe
//   opens the filter again (recovery), looks up every acknowledged key, scans the table,
//   inserts the groups that were not acknowledged, measures load, throughput and false positives
//
// Not a test of power loss: a kill leaves the page cache alive. `dunnock-crash explore` plays power failures.
//
// The keys are the words of a word list, and the words and two-word phrases of the plays of Shakespeare.
// Exit status: 0 everything held, 1 something did not, 2 wrong usage, 3 the surroundings refused (no data, no disk).
#include <fcntl.h>
#include <fmt/core.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cctype>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <dunnock/base/command_line.hpp>
#include <dunnock/base/program.hpp>
#include <dunnock/filter/cuckoo_filter.hpp>
#include <dunnock/pmem/detect.hpp>
#include <dunnock/pmem/pool.hpp>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <type_traits>
#include <unordered_set>
#include <vector>

namespace {

constexpr int kHeld = 0;
constexpr int kBroken = 1;
constexpr int kUsage = 2;
constexpr int kSurroundings = 3;

constexpr std::size_t kGroupKeys = 256;  // Keys per acknowledgement; insert_bulk fences a few times for them.
constexpr double kTargetLoad = 0.90;
constexpr unsigned kAbsentKeys = 1'000'000;  // Lookups to measure the rate of false positives with.
constexpr char kFilterName[] = "words";

/// One acknowledgement. As wide as a cache line so that few fit the pipe: see open_pipe.
struct Acknowledgement {
  std::uint32_t group;
  std::array<char, 60> padding;
};
static_assert(sizeof(Acknowledgement) == 64 && std::is_trivially_copyable_v<Acknowledgement>);

using Keys = std::vector<std::string>;
using Views = std::vector<std::string_view>;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// Reports an error of the surroundings.
int refuse(const dunnock::Error& error) {
  fmt::print(stderr, "{}: {}\n", dunnock::to_string(error.code), error.message);
  return kSurroundings;
}

int refuse_system(std::string_view what) {
  return refuse({dunnock::ErrorCode::kIo, fmt::format("{}: {}", what, std::strerror(errno))});
}

/// Prints one thing that was to be proved. Returns `holds`.
bool prove(bool holds, const std::string& what) {
  fmt::print("  [{}] {}\n", holds ? "ok" : "BROKEN", what);
  return holds;
}

// ----- keys ---------------------------------------------------------------------------------------------------------

std::optional<std::string> read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return std::nullopt;
  return std::string(std::istreambuf_iterator<char>(file), {});
}

/// Calls `use` with each maximal run of letters, digits and apostrophes, in lower case.
template <class Use>
void for_each_word(const std::string& text, Use&& use) {
  std::string word;
  for (const char c : text + ' ') {
    const auto byte = static_cast<unsigned char>(c);
    if (std::isalnum(byte) || byte >= 0x80 || c == '\'') {
      word += static_cast<char>(std::tolower(byte));
    } else if (!word.empty()) {
      use(word);
      word.clear();
    }
  }
}

/// All keys, each once, in the order of first appearance.
std::optional<Keys> load_keys(const std::filesystem::path& data) {
  const auto words = read_file(data / "words.txt");
  const auto plays = read_file(data / "shakespeare.txt");
  if (!words || !plays) return std::nullopt;
  Keys keys;
  std::unordered_set<std::string> seen;
  const auto add = [&](const std::string& key) {
    if (seen.insert(key).second) keys.push_back(key);
  };
  for_each_word(*words, add);
  std::string previous;
  for_each_word(*plays, [&](const std::string& word) {
    add(word);
    if (!previous.empty()) add(previous + ' ' + word);
    previous = word;
  });
  return keys;
}

/// Two-word phrases that are not among the keys. The same ones in every run.
Keys absent_keys(const Keys& keys, std::size_t count) {
  const std::unordered_set<std::string_view> present(keys.begin(), keys.end());
  std::mt19937_64 random(1);
  Keys absent;
  absent.reserve(count);
  while (absent.size() < count) {
    std::string phrase = keys[random() % keys.size()] + ' ' + keys[random() % keys.size()];
    if (!present.contains(phrase)) absent.push_back(std::move(phrase));
  }
  return absent;
}

std::size_t groups_of(const Views& keys) { return (keys.size() + kGroupKeys - 1) / kGroupKeys; }

std::span<const std::string_view> group_of(const Views& keys, std::size_t group) {
  const std::size_t first = group * kGroupKeys;
  return std::span(keys).subspan(first, std::min(kGroupKeys, keys.size() - first));
}

// ----- the child ----------------------------------------------------------------------------------------------------

/// A pipe of one page: the child can be at most 64 acknowledgements ahead of the parent, so the kill meets it in the
/// middle on a machine of any speed.
bool open_pipe(int (&ends)[2]) { return pipe(ends) == 0 && fcntl(ends[1], F_SETPIPE_SZ, 4096) >= 4096; }

/// Fills the filter from `threads` threads until somebody kills this process. Returns the exit status if nobody does.
template <class Filter, class MediaOf>
int fill_and_acknowledge(const std::string& path, const Views& keys, unsigned threads, int pipe_end, MediaOf media_of) {
  auto pool = dunnock::Pool::open(path);
  if (!pool) return refuse(pool.error());
  auto opened = Filter::open(*pool, kFilterName, media_of(*pool));
  if (!opened) return refuse(opened.error());
  Filter& filter = opened->filter;

  std::vector<std::jthread> workers;
  for (unsigned t = 0; t < threads; ++t) {
    workers.emplace_back([&, t] {
      for (std::size_t group = t; group < groups_of(keys); group += threads) {
        const auto part = group_of(keys, group);
        if (filter.insert_bulk(part) != part.size()) return;  // Full: the parent will miss the acknowledgement.
        // From here on every key of the group must survive.
        const Acknowledgement acknowledgement{static_cast<std::uint32_t>(group), {}};
        if (write(pipe_end, &acknowledgement, sizeof acknowledgement) != sizeof acknowledgement) return;
      }
    });
  }
  workers.clear();
  return kHeld;
}

// ----- the parent ---------------------------------------------------------------------------------------------------

struct Outcome {
  std::vector<bool> acknowledged;  // by group
  std::size_t groups = 0;          // that are acknowledged
  double seconds = 0;              // from the first acknowledgement to the kill
  std::size_t groups_at_kill = 0;
  bool killed = false;  // The child died of our signal.
};

/// Reads acknowledgements, kills the child when there are `kill_at`, and reads what it still had sent.
Outcome read_and_kill(pid_t child, int pipe_end, std::size_t groups, std::size_t kill_at) {
  Outcome outcome;
  outcome.acknowledged.resize(groups);
  Clock::time_point start;
  Acknowledgement acknowledgement;
  // Writes of up to PIPE_BUF bytes are whole, so reads of the same size never meet half of one.
  while (read(pipe_end, &acknowledgement, sizeof acknowledgement) == sizeof acknowledgement) {
    if (outcome.groups == 0) start = Clock::now();
    outcome.acknowledged.at(acknowledgement.group) = true;
    ++outcome.groups;
    if (outcome.groups == kill_at) {
      outcome.seconds = seconds_since(start);
      outcome.groups_at_kill = outcome.groups - 1;
      kill(child, SIGKILL);
    }
  }
  int status = 0;
  waitpid(child, &status, 0);
  outcome.killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
  return outcome;
}

struct Tally {
  std::size_t keys = 0;
  std::size_t found = 0;
};

/// Looks up all keys of the groups whose acknowledgement is `acknowledged`.
template <class Filter>
Tally look_up(const Filter& filter, const Views& keys, const Outcome& outcome, bool acknowledged) {
  Tally tally;
  std::vector<std::uint8_t> found(kGroupKeys);
  for (std::size_t group = 0; group < groups_of(keys); ++group) {
    if (outcome.acknowledged[group] != acknowledged) continue;
    const auto part = group_of(keys, group);
    tally.keys += part.size();
    tally.found += filter.contains_bulk(part, found.data());
  }
  return tally;
}

template <class Filter>
double false_positive_rate(const Filter& filter, const Keys& keys, double& lookups_per_second) {
  const Keys absent = absent_keys(keys, kAbsentKeys);
  const Views views(absent.begin(), absent.end());
  std::vector<std::uint8_t> found(views.size());
  const auto start = Clock::now();
  const std::size_t positives = filter.contains_bulk(std::span(views), found.data());
  lookups_per_second = static_cast<double>(views.size()) / seconds_since(start);
  return static_cast<double>(positives) / static_cast<double>(views.size());
}

/// Opens the filter again after the kill, proves what it must hold, and finishes the work.
template <class Filter, class MediaOf>
int reopen_and_prove(const std::string& path, const Keys& keys, const Views& views, const Outcome& outcome,
                     unsigned threads, MediaOf media_of) {
  const auto start = Clock::now();
  auto pool = dunnock::Pool::open(path);
  if (!pool) return refuse(pool.error());
  const double pool_seconds = seconds_since(start);
  auto opened = Filter::open(*pool, kFilterName, media_of(*pool));
  if (!opened) return refuse(opened.error());
  Filter& filter = opened->filter;
  const dunnock::RecoveryReport& report = opened->report;
  fmt::print("reopened: pool {:.1f} ms, recovery of the filter {:.1f} us\n", pool_seconds * 1e3,
             static_cast<double>(report.nanoseconds) / 1e3);
  fmt::print("  recovery report: {} shutdown, {} kicks were in flight and completed\n",
             report.clean_shutdown ? "clean" : "no clean", report.kicks_completed);

  bool all = prove(!report.clean_shutdown, "recovery noticed the crash");
  const Tally acknowledged = look_up(filter, views, outcome, true);
  all &= prove(acknowledged.found == acknowledged.keys,
               fmt::format("{} of {} acknowledged keys are there", acknowledged.found, acknowledged.keys));
  dunnock::CheckReport check = filter.check();
  all &= prove(check.ok(), "a scan of the whole table finds every invariant intact");
  for (const std::string& violation : check.violations) fmt::print("       {}\n", violation);
  // Each thread had one group at most that was begun and not acknowledged.
  const std::uint64_t items = filter.size();
  const std::uint64_t in_flight_max = threads * kGroupKeys;
  all &= prove(items >= acknowledged.keys && items - acknowledged.keys <= in_flight_max,
               fmt::format("{} items: the acknowledged ones and {} of the {} that may have been in flight", items,
                           static_cast<std::int64_t>(items - acknowledged.keys), in_flight_max));

  // What was in flight is inserted once more; a key that had arrived already is then there twice, which does no harm.
  const auto resumed = Clock::now();
  std::size_t inserted = 0;
  std::size_t missing = 0;
  for (std::size_t group = 0; group < groups_of(views); ++group) {
    if (outcome.acknowledged[group]) continue;
    missing += group_of(views, group).size();
    inserted += filter.insert_bulk(group_of(views, group));
  }
  const double resumed_seconds = seconds_since(resumed);
  fmt::print("finished by one thread: {} keys, {:.0f} keys/s, load now {:.1f} %\n", inserted,
             static_cast<double>(inserted) / resumed_seconds, filter.load() * 100);
  all &= prove(inserted == missing, "the remaining keys went in");
  std::vector<std::uint8_t> found(views.size());
  const auto looked_up = Clock::now();
  const std::size_t present = filter.contains_bulk(std::span(views), found.data());
  const double positive_per_second = static_cast<double>(views.size()) / seconds_since(looked_up);
  all &= prove(present == views.size(), fmt::format("{} of {} keys are there", present, views.size()));
  check = filter.check();
  all &= prove(check.ok() && filter.size() == items + inserted, "size and invariants agree with a second scan");

  double negative_per_second = 0;
  const double rate = false_positive_rate(filter, keys, negative_per_second);
  // About 0.18 % is usual for 12 bits at this load; the seed is another one in every run, so the bound leaves room.
  all &= prove(rate < 0.0030,
               fmt::format("false positives: {:.4f} % of {} phrases never loaded", rate * 100, kAbsentKeys));
  fmt::print("lookups by one thread: {:.1f} M/s present, {:.1f} M/s absent\n", positive_per_second / 1e6,
             negative_per_second / 1e6);
  fmt::print("memory: {:.2f} bits per item\n",
             static_cast<double>(filter.memory_bytes()) * 8 / static_cast<double>(filter.size()));

  const std::uint64_t size = filter.size();
  filter.close();
  auto again = Filter::open(*pool, kFilterName, media_of(*pool));
  if (!again) return refuse(again.error());
  all &= prove(again->report.clean_shutdown && again->filter.size() == size, "a clean shutdown is seen as one");
  fmt::print("{}\n", all ? "Everything that was acknowledged survived." : "BROKEN: see above.");
  return all ? kHeld : kBroken;
}

struct DemoOptions {
  std::filesystem::path data = DUNNOCK_DEMO_DATA;
  std::string path;
  unsigned threads = std::clamp(std::thread::hardware_concurrency(), 2U, 8U);
  std::string media = "auto";
  unsigned kill_at_percent = 40;
  bool keep = false;
  bool made = false;  ///< The pool is this program's.
};

/// The whole demo with the media that `media_of(pool)` gives.
template <dunnock::Media M, class MediaOf>
int run_demo(const DemoOptions& options, const Keys& keys, MediaOf media_of) {
  using Filter = dunnock::CuckooFilter<12, M>;
  const Views views(keys.begin(), keys.end());
  const auto slots = static_cast<std::uint64_t>(static_cast<double>(keys.size()) / kTargetLoad);
  {
    auto pool = dunnock::Pool::open(options.path);
    if (!pool) return refuse(pool.error());
    auto filter = Filter::create(*pool, kFilterName, {.slots = slots}, media_of(*pool));
    if (!filter) return refuse(filter.error());
    filter->close();
  }  // The child opens the pool itself: a pool is open in one process at a time.

  int ends[2];
  if (!open_pipe(ends)) return refuse_system("can't create a pipe");
  std::fflush(stdout);
  const pid_t child = fork();
  if (child < 0) return refuse_system("can't start a process");
  if (child == 0) {
    close(ends[0]);
    _exit(fill_and_acknowledge<Filter>(options.path, views, options.threads, ends[1], media_of));
  }
  close(ends[1]);
  const std::size_t kill_at = std::max<std::size_t>(groups_of(views) * options.kill_at_percent / 100, 1);
  const Outcome outcome = read_and_kill(child, ends[0], groups_of(views), kill_at);
  close(ends[0]);
  if (!outcome.killed) {
    fmt::print(stderr, "the child exited by itself after {} of {} groups\n", outcome.groups, groups_of(views));
    return kBroken;
  }
  fmt::print("killed while {} threads were inserting: {} of {} groups acknowledged, {:.0f} keys/s until then\n",
             options.threads, outcome.groups, groups_of(views),
             static_cast<double>(outcome.groups_at_kill * kGroupKeys) / outcome.seconds);
  return reopen_and_prove<Filter>(options.path, keys, views, outcome, options.threads, media_of);
}

/// Makes the pool and chooses the media.
int demo(DemoOptions& options) {
  const auto keys = load_keys(options.data);
  if (!keys) {
    return refuse({dunnock::ErrorCode::kNotFound,
                   fmt::format("no words.txt and shakespeare.txt in {}: say --data", options.data.string())});
  }
  if (options.media != "auto") {  // Before a file is made.
    const auto named = dunnock::media_kind(options.media);
    if (!named || *named == dunnock::MediaKind::kDram) {
      fmt::print(stderr, "{}\n", named ? "plain memory does not outlive a process" : named.error().message);
      return kUsage;
    }
  }
  auto created = dunnock::Pool::create(options.path, {.bytes = 32 << 20});
  if (!created) return refuse(created.error());
  options.made = true;
  { const dunnock::Pool closed = std::move(*created); }

  dunnock::MediaKind kind{};
  if (options.media == "auto") {
    const auto detected = dunnock::detect_media(options.path);
    if (!detected) return refuse(detected.error());
    kind = detected->kind;
    fmt::print("media: {} ({})\n", dunnock::to_string(kind), detected->why);
  } else {
    kind = *dunnock::media_kind(options.media);
    fmt::print("media: {}\n", dunnock::to_string(kind));
  }
  fmt::print("{} distinct words and phrases for the pool {}\n", keys->size(), options.path);

  using dunnock::MediaKind;
  switch (kind) {
    case MediaKind::kFile:
      return run_demo<dunnock::FileMedia>(options, *keys, [](const dunnock::Pool& pool) { return pool.file_media(); });
    case MediaKind::kDirect:
      return run_demo<dunnock::DirectMedia>(options, *keys,
                                            [](const dunnock::Pool&) { return dunnock::DirectMedia{}; });
    case MediaKind::kEadr:
      return run_demo<dunnock::EadrMedia>(options, *keys, [](const dunnock::Pool&) { return dunnock::EadrMedia{}; });
    case MediaKind::kProcess:
      return run_demo<dunnock::ProcessMedia>(options, *keys,
                                             [](const dunnock::Pool&) { return dunnock::ProcessMedia{}; });
    case MediaKind::kDram: break;
  }
  return kUsage;
}

int run(int argc, char** argv) {
  DemoOptions options;
  CLI::App app(
      "Kills a process that fills a durable filter, reopens it, and proves that nothing acknowledged is lost.");
  app.add_option("--data", options.data, "folder with words.txt and shakespeare.txt")->capture_default_str();
  app.add_option("--pool", options.path, "a new file for the pool (default: in the folder for temporary files)");
  app.add_option("--threads", options.threads, "threads that insert")->check(CLI::Range(1, 64))->capture_default_str();
  app.add_option("--media", options.media, "auto, file, process, direct or eadr")->capture_default_str();
  app.add_option("--kill-at", options.kill_at_percent, "kill when so many percent of the groups are acknowledged")
      ->check(CLI::Range(1, 85))  // The child may be a pipe's length ahead and has to be still at work.
      ->capture_default_str();
  app.add_flag("--keep", options.keep, "leave the pool file there");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const std::string complaint =
        dunnock::explain_parse_error(app, error, {argv, static_cast<std::size_t>(argc)});
    (void)std::fputs(complaint.c_str(), stderr);
    return complaint.empty() ? kHeld : kUsage;
  }
  if (options.path.empty()) {
    const std::string name = fmt::format("dunnock-filter-demo-{}.pool", getpid());
    options.path = (std::filesystem::temp_directory_path() / name).string();
  }
  std::error_code ignored;
  if (std::filesystem::exists(options.path, ignored)) {
    fmt::print(stderr, "{} exists and may be of value: give another file\n", options.path);
    return kUsage;
  }
  const int status = demo(options);
  if (options.made && !options.keep) static_cast<void>(dunnock::Pool::remove(options.path));
  return status;
}

}  // namespace

int main(int argc, char** argv) {
  return dunnock::run_program("dunnock-filter-demo", kSurroundings, [&] { return run(argc, argv); });
}
