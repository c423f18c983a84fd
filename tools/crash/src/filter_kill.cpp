#include "filter_kill.hpp"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <new>
#include <random>
#include <thread>
#include <unordered_map>

#include "dunnock/filter/cuckoo_filter.hpp"
#include "storm.hpp"

namespace dunnock::crash {
namespace {

using Clock = std::chrono::steady_clock;

/// One line of the journal that a child writes through a pipe: intent before an operation, acknowledgement after it.
struct JournalEntry {
  enum class What : std::uint32_t { kInsertIntent, kInserted, kRefused, kEraseIntent, kErased, kMissing };
  What what;
  std::uint32_t thread;
  std::uint64_t key;
};
static_assert(sizeof(JournalEntry) == 16);  // Below PIPE_BUF: written whole or not at all.

constexpr std::uint64_t kSlots = 20000;
constexpr std::size_t kTargetItems = kSlots * 97 / 100;  // High enough that kicks are common.

/// Three of four kills happen at a step: at any, or at one of those that come seldom.
void light(Fuse& fuse, std::mt19937_64& random) {
  using namespace filter_point;
  static constexpr Point kSeldom[] = {kSpillMark, kSpill,    kOverflowMark, kOverflow,  kEraseMarks, kLogFields,
                                      kLogArm,    kKickCopy, kKickRemove,   kKickFence, kLogRetire};
  const std::uint64_t dice = random() % 4;
  if (dice == 0) return;
  fuse.point = dice == 1 ? Point{} : kSeldom[random() % std::size(kSeldom)];
  fuse.steps_left = static_cast<std::int64_t>(1 + random() % (dice == 1 ? 20000 : 30));
}

void write_entry(int pipe, JournalEntry entry) {
  if (write(pipe, &entry, sizeof entry) != static_cast<ssize_t>(sizeof entry)) _exit(3);
}

/// What one thread of the child does until it is killed.
template <class F>
void work_until_killed(F& filter, int pipe, unsigned thread, std::uint64_t seed, std::vector<std::uint64_t> mine,
                       std::uint64_t next_key, std::size_t target) {
  std::mt19937_64 random(seed);
  for (;;) {
    if (mine.size() < target && (mine.empty() || random() % 3 != 0)) {
      const std::uint64_t key = next_key++;
      write_entry(pipe, {JournalEntry::What::kInsertIntent, thread, key});
      const bool inserted = filter.insert(key);
      write_entry(pipe, {inserted ? JournalEntry::What::kInserted : JournalEntry::What::kRefused, thread, key});
      if (inserted) mine.push_back(key);
    } else {
      const std::size_t at = random() % mine.size();
      const std::uint64_t key = mine[at];
      mine[at] = mine.back();
      mine.pop_back();
      write_entry(pipe, {JournalEntry::What::kEraseIntent, thread, key});
      const bool erased = filter.erase(key);
      write_entry(pipe, {erased ? JournalEntry::What::kErased : JournalEntry::What::kMissing, thread, key});
    }
  }
}

template <class M, class MakeMedia>
KillResult kill_filter_on(const KillOptions& options, const MakeMedia& make_media) {
  using F = CuckooFilter<12, M>;
  using Fused = CuckooFilter<12, FusedMedia<M>>;
  KillResult result;
  void* shared = mmap(nullptr, sizeof(std::atomic<bool>), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) {
    result.violation = "no shared memory";
    return result;
  }
  auto* blown = new (shared) std::atomic<bool>(false);
  const auto wrong = [&result, &options](std::string what) {
    // The pool stays, to be looked at.
    result.violation =
        "after kill " + std::to_string(result.kills) + ": " + std::move(what) + " (the pool is " + options.path + ")";
    return result;
  };
  static_cast<void>(Pool::remove(options.path));
  std::mt19937_64 random(options.seed);
  std::vector<std::vector<std::uint64_t>> sure(options.threads);  // acknowledged keys of each thread
  std::vector<std::uint64_t> next_key(options.threads);
  {
    auto pool = Pool::create(options.path, {32 << 20});
    if (!pool) return wrong(pool.error().message);
    auto filter = F::create(*pool, "filter", {kSlots, HashSeed::from(options.seed)}, make_media(*pool));
    if (!filter) return wrong(filter.error().message);
    // Nearly full from the start, so that every storm has kicks.
    for (unsigned t = 0; t < options.threads; ++t) {
      std::vector<std::uint64_t> keys(kTargetItems / options.threads);
      next_key[t] = static_cast<std::uint64_t>(t + 1) << 48;
      for (std::uint64_t& key : keys) key = next_key[t]++;
      if (filter->insert_bulk(keys) != keys.size()) return wrong("the filter can't be filled");
      sure[t] = std::move(keys);
    }
  }
  std::uint64_t unsure = 0;  // operations that were in flight at some kill: their key may be there or not

  for (unsigned kill_number = 0; kill_number < options.kills; ++kill_number) {
    int pipe_ends[2];
    if (pipe(pipe_ends) != 0) return wrong("no pipe");
    const std::uint64_t round_seed = random();
    const pid_t child = fork();
    if (child < 0) return wrong("no process");
    if (child == 0) {
      close(pipe_ends[0]);
      auto pool = Pool::open(options.path);
      if (!pool) _exit(4);
      Fuse fuse{.blown = blown};
      auto opened = Fused::open(*pool, "filter", {make_media(*pool), fuse});
      if (!opened) _exit(4);
      std::mt19937_64 own_random(round_seed);
      light(fuse, own_random);
      std::vector<std::thread> threads;
      for (unsigned t = 0; t < options.threads; ++t) {
        threads.emplace_back([&, t] {
          work_until_killed(opened->filter, pipe_ends[1], t, round_seed + t, sure[t], next_key[t],
                            kTargetItems / options.threads);
        });
      }
      for (std::thread& thread : threads) thread.join();
      _exit(0);
    }
    close(pipe_ends[1]);
    // By the clock from the first word of the child on; opening takes its time.
    const auto life = std::chrono::microseconds(1000 + random() % 30000);
    auto until = Clock::now() + std::chrono::seconds(30);
    std::string journal;
    char buffer[1 << 16];
    bool killed = false;
    for (;;) {
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(until - Clock::now()).count();
      if (!killed && left <= 0) {
        kill(child, SIGKILL);
        killed = true;
      }
      pollfd ready{pipe_ends[0], POLLIN, 0};
      if (poll(&ready, 1, killed ? -1 : static_cast<int>(std::max<std::int64_t>(left, 1))) == 0) continue;
      const ssize_t got = read(pipe_ends[0], buffer, sizeof buffer);
      if (got <= 0) break;
      if (journal.empty()) until = Clock::now() + life;
      journal.append(buffer, static_cast<std::size_t>(got));
    }
    close(pipe_ends[0]);
    int status = 0;
    waitpid(child, &status, 0);
    ++result.kills;
    if (!WIFSIGNALED(status)) return wrong("the child ended by itself, status " + std::to_string(WEXITSTATUS(status)));
    if (WTERMSIG(status) != SIGKILL) return wrong("the child got signal " + std::to_string(WTERMSIG(status)));
    result.kills_at_steps += blown->exchange(false) ? 1 : 0;

    // Replay the journal into what must be there.
    std::vector<std::optional<JournalEntry>> in_flight(options.threads);
    for (std::size_t at = 0; at + sizeof(JournalEntry) <= journal.size(); at += sizeof(JournalEntry)) {
      JournalEntry entry;
      std::memcpy(&entry, journal.data() + at, sizeof entry);
      std::vector<std::uint64_t>& mine = sure[entry.thread];
      switch (entry.what) {
        case JournalEntry::What::kInsertIntent:
          next_key[entry.thread] = entry.key + 1;
          in_flight[entry.thread] = entry;
          break;
        case JournalEntry::What::kInserted:
          mine.push_back(entry.key);
          in_flight[entry.thread].reset();
          ++result.acknowledged;
          break;
        case JournalEntry::What::kEraseIntent: {
          const auto found = std::find(mine.begin(), mine.end(), entry.key);
          *found = mine.back();
          mine.pop_back();
          in_flight[entry.thread] = entry;
          break;
        }
        case JournalEntry::What::kErased: ++result.acknowledged; [[fallthrough]];
        case JournalEntry::What::kRefused: in_flight[entry.thread].reset(); break;
        case JournalEntry::What::kMissing: return wrong("a key that was there could not be erased");
      }
    }
    for (const auto& entry : in_flight) unsure += entry ? 1 : 0;

    // Now and then the process that recovers is killed as well.
    const std::int64_t recovery_steps = static_cast<std::int64_t>(1 + random() % 16);
    if (random() % 2 == 0) {
      const pid_t recoverer = fork();
      if (recoverer < 0) return wrong("no process");
      if (recoverer == 0) {
        auto pool = Pool::open(options.path);
        if (!pool) _exit(4);
        Fuse fuse{.steps_left = recovery_steps, .blown = blown};
        _exit(Fused::open(*pool, "filter", {make_media(*pool), fuse}) ? 0 : 4);
      }
      waitpid(recoverer, &status, 0);
      const bool killed_here = blown->exchange(false);
      if (!killed_here && (!WIFEXITED(status) || WEXITSTATUS(status) != 0)) return wrong("the pool can't be reopened");
      result.kills_in_recovery += killed_here ? 1 : 0;
    }

    const auto start = Clock::now();
    auto pool = Pool::open(options.path);
    if (!pool) return wrong(pool.error().message);
    auto opened = F::open(*pool, "filter", make_media(*pool));
    if (!opened) return wrong(opened.error().message);
    const double ms = std::chrono::duration<double, std::milli>(Clock::now() - start).count();
    result.recovery_ms_max = std::max(result.recovery_ms_max, ms);
    result.completed_kicks += opened->report.kicks_completed;
    const CheckReport report = opened->filter.check();
    if (!report.ok()) return wrong(report.violations.front());
    std::uint64_t least = 0;
    for (const auto& mine : sure) {
      least += mine.size();
      for (const std::uint64_t key : mine) {
        if (!opened->filter.contains(key)) return wrong("acknowledged key " + std::to_string(key) + " is lost");
      }
    }
    if (report.items < least || report.items > least + unsure) {
      return wrong(std::to_string(report.items) + " items, expected " + std::to_string(least) + " to " +
                   std::to_string(least + unsure));
    }
    if (options.progress) options.progress(result.kills);
  }
  munmap(shared, sizeof(std::atomic<bool>));
  static_cast<void>(Pool::remove(options.path));
  return result;
}

// ----- damage -------------------------------------------------------------------------------------------------------

using CorruptFilter = CuckooFilter<12, ProcessMedia>;
constexpr std::uint64_t kCorruptSlots = 100000;
constexpr std::uint64_t kCorruptKeys = 90000;

/// What a user would do with the file: open, check, look for the keys, insert and erase. In a process of its own.
int use_damaged(const std::string& path, int message_pipe) {
  const auto refuse = [message_pipe](const Error& error) {
    const std::string text = std::string(to_string(error.code)) + ": " + error.message;
    if (write(message_pipe, text.data(), std::min<std::size_t>(text.size(), 400)) < 0) return 1;
    return static_cast<int>(kRefused);
  };
  auto pool = Pool::open(path);
  if (!pool) return refuse(pool.error());
  auto opened = CorruptFilter::open(*pool, "filter", {});
  if (!opened) return refuse(opened.error());
  CorruptFilter& filter = opened->filter;
  const bool sound = filter.check().ok();
  std::uint64_t missing = 0;
  for (std::uint64_t key = 0; key < kCorruptKeys; ++key) missing += filter.contains(key) ? 0 : 1;
  const std::uint64_t items = filter.size();
  for (std::uint64_t key = 0; key < 1000; ++key) (void)filter.insert((1ULL << 40) + key);
  for (std::uint64_t key = 0; key < 1000; ++key) (void)filter.erase(key);
  if (!sound) return kFound;
  return missing == 0 && items == kCorruptKeys ? kUnharmed : kApproximate;
}

}  // namespace

KillResult kill_filter(const KillOptions& options) {
  if (options.process_media) return kill_filter_on<ProcessMedia>(options, [](const Pool&) { return ProcessMedia{}; });
  return kill_filter_on<FileMedia>(options, [](const Pool& pool) { return pool.file_media(); });
}

std::vector<CorruptCase> corrupt_filter(const CorruptOptions& options) {
  namespace fs = std::filesystem;
  const fs::path good = fs::path(options.directory) / "good.pool";
  const fs::path bad = fs::path(options.directory) / "bad.pool";
  fs::remove(good);
  std::vector<CorruptCase> cases;
  {
    auto pool = Pool::create(good, {16 << 20});
    if (!pool) {
      cases.push_back({.name = "set-up", .violation = pool.error().message});
      return cases;
    }
    auto filter = CorruptFilter::create(*pool, "filter", {kCorruptSlots, HashSeed::from(options.seed)}, {});
    for (std::uint64_t key = 0; key < kCorruptKeys; ++key) (void)filter->insert(key);
    filter->close();
  }
  const std::uint64_t size = fs::file_size(good);
  std::mt19937_64 random(options.seed);
  std::string message;

  const auto damage = [&](const char* name, unsigned rounds, const auto& harm) {
    CorruptCase one{.name = name};
    for (unsigned round = 0; round < rounds && one.violation.empty(); ++round) {
      fs::copy_file(good, bad, fs::copy_options::overwrite_existing);
      const std::string what = harm(round);
      const int outcome = in_child([&](int pipe_end) { return use_damaged(bad, pipe_end); }, message);
      count_outcome(one, outcome, message, what);
      if (options.progress) options.progress(round);
    }
    cases.push_back(one);
  };
  const auto overwrite = [&](std::uint64_t at, const std::string& bytes) {
    std::fstream file(bad, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(at));
    file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  };
  const auto flip = [&](std::uint64_t bit) {
    std::fstream file(bad, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(static_cast<std::streamoff>(bit / 8));
    const int byte = file.get();
    file.seekp(static_cast<std::streamoff>(bit / 8));
    file.put(static_cast<char>(byte ^ 1 << bit % 8));
    return "bit " + std::to_string(bit);
  };

  damage("nothing", 1, [&](unsigned) { return std::string("nothing"); });
  if (cases.back().unharmed != 1) cases.back().violation = "an unharmed pool is not found unharmed";
  damage("flipped bit anywhere", options.rounds, [&](unsigned) { return flip(random() % (size * 8)); });
  damage("flipped bit in the first 16 KiB", options.rounds, [&](unsigned) { return flip(random() % (16384 * 8)); });
  // The filter's own header and log, wherever libpmemobj has put them.
  std::uint64_t header_at = 0;
  {
    std::ifstream file(good, std::ios::binary);
    std::string bytes(size, '\0');
    file.read(bytes.data(), static_cast<std::streamsize>(size));
    const std::uint64_t magic = kFilterMagic;
    header_at = bytes.find(std::string(reinterpret_cast<const char*>(&magic), sizeof magic));
  }
  damage("flipped bit in the filter's header", options.rounds,
         [&](unsigned) { return flip(header_at * 8 + random() % (sizeof(FilterHeader) * 8)); });
  damage("flipped bit in the filter's log", options.rounds,
         [&](unsigned) { return flip((header_at + kFilterLogOffset) * 8 + random() % (kLogLines * kLineBytes * 8)); });
  damage("zeroed page", options.rounds, [&](unsigned) {
    const std::uint64_t page = random() % (size / 4096);
    overwrite(page * 4096, std::string(4096, '\0'));
    return "page " + std::to_string(page);
  });
  damage("zeroed first page", 1, [&](unsigned) {
    overwrite(0, std::string(4096, '\0'));
    return std::string("page 0");
  });
  damage("truncated file", options.rounds / 4 + 1, [&](unsigned round) {
    const std::uint64_t length = round == 0 ? 0 : round == 1 ? size - 4096 : random() % size;
    fs::resize_file(bad, length);
    return "to " + std::to_string(length);
  });
  damage("foreign file", 2, [&](unsigned round) {
    std::ofstream(bad, std::ios::trunc) << (round == 0 ? "This is a letter, not a pool.\n" : std::string(9 << 20, 'x'));
    return std::string("text");
  });
  damage("wrong format version", 1, [&](unsigned) {
    overwrite(header_at + offsetof(FilterHeader, format_version), std::string("\x02\0\0\0", 4));
    return std::string("version 2");
  });

  const auto refused = [&](const char* name, ErrorCode expected, const auto& attempt) {
    CorruptCase one{.name = name};
    const int outcome = in_child(
        [&](int pipe_end) {
          const Result<void> result = attempt();
          if (result) return static_cast<int>(kUnharmed);
          const std::string text = std::string(to_string(result.error().code)) + ": " + result.error().message;
          if (write(pipe_end, text.data(), text.size()) < 0) return 1;
          return result.error().code == expected ? static_cast<int>(kRefused) : static_cast<int>(kLostSilently);
        },
        message);
    count_outcome(one, outcome, message, name);
    if (one.refused != 1 && one.violation.empty()) one.violation = "not refused";
    if (outcome == kLostSilently) one.violation = "refused with another error: " + message;
    cases.push_back(one);
  };
  const auto status_of = [](const auto& result) -> Result<void> {
    if (result) return {};
    return tl::unexpected(result.error());
  };
  refused("wrong fingerprint width", ErrorCode::kWrongLayout, [&]() -> Result<void> {
    DUNNOCK_TRY(auto pool, Pool::open(good));
    return status_of(CuckooFilter<16, ProcessMedia>::open(pool, "filter", {}));
  });
  refused("no such filter", ErrorCode::kNotFound, [&]() -> Result<void> {
    DUNNOCK_TRY(auto pool, Pool::open(good));
    return status_of(CorruptFilter::open(pool, "other", {}));
  });
  refused("no such file", ErrorCode::kNotFound, [&] { return status_of(Pool::open(good.string() + ".none")); });
  refused("a directory", ErrorCode::kNotADunnockPool, [&] { return status_of(Pool::open(options.directory)); });
  refused("pool opened twice", ErrorCode::kAlreadyOpen, [&]() -> Result<void> {
    DUNNOCK_TRY(auto first, Pool::open(good));
    return status_of(Pool::open(good));
  });
  refused("pool opened by another process", ErrorCode::kAlreadyOpen, [&]() -> Result<void> {
    int ready[2];
    if (pipe(ready) != 0) return make_error(ErrorCode::kIo, "no pipe");
    const pid_t other = fork();
    if (other == 0) {
      auto pool = Pool::open(good);
      if (write(ready[1], "x", 1) < 0) _exit(1);
      pause();
      _exit(0);
    }
    char byte;
    if (read(ready[0], &byte, 1) != 1) return make_error(ErrorCode::kIo, "no child");
    Result<void> result = status_of(Pool::open(good));
    kill(other, SIGKILL);
    waitpid(other, nullptr, 0);
    return result;
  });
  refused("disk full", ErrorCode::kNoSpace, [&] {
    signal(SIGXFSZ, SIG_IGN);
    const rlimit small{4 << 20, 4 << 20};
    setrlimit(RLIMIT_FSIZE, &small);
    return status_of(Pool::create(bad.string() + ".new", {64 << 20}));
  });
  fs::remove(bad.string() + ".new");
  refused("pool full", ErrorCode::kNoSpace, [&]() -> Result<void> {
    DUNNOCK_TRY(auto pool, Pool::open(good));
    return status_of(CorruptFilter::create(pool, "second", {1ULL << 30}, {}));
  });
  refused("file exists", ErrorCode::kAlreadyExists, [&] { return status_of(Pool::create(good, {16 << 20})); });
  fs::copy_file(good, bad, fs::copy_options::overwrite_existing);
  chmod(bad.c_str(), 0444);
  if (geteuid() == 0) {
    // Root may write to anything, so become nobody.
    chmod(options.directory.c_str(), 0755);
    chmod(good.c_str(), 0644);
  }
  refused("read-only file", ErrorCode::kReadOnly, [&]() -> Result<void> {
    if (geteuid() == 0 && setuid(65534) != 0) return make_error(ErrorCode::kReadOnly, "can't give up root here");
    return status_of(Pool::open(bad));
  });
  refused("read-only directory", ErrorCode::kReadOnly, [&]() -> Result<void> {
    if (geteuid() == 0 && setuid(65534) != 0) return make_error(ErrorCode::kReadOnly, "can't give up root here");
    return status_of(Pool::create("/usr/dunnock.pool", {16 << 20}));
  });
  chmod(bad.c_str(), 0644);
  fs::remove(good);
  fs::remove(bad);
  return cases;
}

}  // namespace dunnock::crash
