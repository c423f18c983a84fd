#include "storm.hpp"

#include <poll.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include <cstring>
#include <new>
#include <random>

namespace dunnock::crash {
namespace {

using Clock = std::chrono::steady_clock;

/// What a child writes until it dies, read until its end of the pipe closes. Kills it after its time.
std::string read_journal(int pipe_end, pid_t child, std::chrono::microseconds life) {
  // By the clock from the first word of the child on; opening takes its time.
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
    pollfd ready{pipe_end, POLLIN, 0};
    if (poll(&ready, 1, killed ? -1 : static_cast<int>(std::max<std::int64_t>(left, 1))) == 0) continue;
    const ssize_t got = read(pipe_end, buffer, sizeof buffer);
    if (got <= 0) return journal;
    if (journal.empty()) until = Clock::now() + life;
    journal.append(buffer, static_cast<std::size_t>(got));
  }
}

/// Three of four kills happen at a step: at any, or at one of those that come seldom.
void light(Fuse& fuse, const std::vector<Point>& seldom, std::mt19937_64& random) {
  const std::uint64_t dice = random() % 4;
  if (dice == 0) return;
  const bool any = dice == 1 || seldom.empty();
  fuse.point = any ? Point{} : seldom[random() % seldom.size()];
  fuse.steps_left = static_cast<std::int64_t>(1 + random() % (any ? 20000 : 60));
}

/// Processes that work on one pool and are killed, one after the other.
class Storm {
 public:
  Storm(const KillOptions& options, StormSystem& system) : options_(options), system_(system), random_(options.seed) {
    void* shared = mmap(nullptr, sizeof(*blown_), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared != MAP_FAILED) blown_ = new (shared) std::atomic<bool>(false);
  }
  Storm(const Storm&) = delete;
  Storm& operator=(const Storm&) = delete;
  ~Storm() {
    if (blown_ != nullptr) munmap(blown_, sizeof(*blown_));
  }

  KillResult run() {
    std::string wrong = blown_ == nullptr ? "no shared memory" : create();
    while (wrong.empty() && result_.kills < options_.kills) {
      wrong = kill_once();
      if (wrong.empty() && options_.progress) options_.progress(result_.kills);
    }
    if (wrong.empty()) {
      static_cast<void>(Pool::remove(options_.path));
    } else {  // The pool stays, to be looked at.
      result_.violation =
          "after kill " + std::to_string(result_.kills) + ": " + wrong + " (the pool is " + options_.path + ")";
    }
    return result_;
  }

 private:
  std::string create() {
    static_cast<void>(Pool::remove(options_.path));
    auto pool = Pool::create(options_.path, {system_.pool_bytes()});
    return pool ? system_.create(*pool) : pool.error().message;
  }

  /// A life, its end, perhaps that of its successor, and a look at what is left.
  std::string kill_once() {
    const std::uint64_t seed = random_();
    std::string journal;
    if (std::string wrong = live_and_die(seed, journal); !wrong.empty()) return wrong;
    // Now and then the process that recovers is killed as well.
    if (random_() % 2 == 0) {
      if (std::string wrong = recover_and_die(seed); !wrong.empty()) return wrong;
    }
    const Stopwatch stopwatch;
    auto pool = Pool::open(options_.path);
    system_.set_pool_ms(stopwatch.milliseconds());
    return pool ? system_.verify(*pool, journal, result_) : pool.error().message;
  }

  std::string live_and_die(std::uint64_t seed, std::string& journal) {
    int ends[2];
    if (pipe(ends) != 0) return "can't create a pipe";
    const pid_t child = fork();
    if (child < 0) return "can't start a process";
    if (child == 0) {
      close(ends[0]);
      auto pool = Pool::open(options_.path);
      if (!pool) _exit(4);
      Fuse fuse{.blown = blown_};
      std::mt19937_64 own(seed);
      light(fuse, system_.seldom(), own);
      system_.live(*pool, fuse, ends[1], seed);
      _exit(5);
    }
    close(ends[1]);
    journal = read_journal(ends[0], child, std::chrono::microseconds(1000 + random_() % 40000));
    close(ends[0]);
    int status = 0;
    waitpid(child, &status, 0);
    ++result_.kills;
    if (!WIFSIGNALED(status)) return "the child exited by itself with status " + std::to_string(WEXITSTATUS(status));
    if (WTERMSIG(status) != SIGKILL) return "the child got signal " + std::to_string(WTERMSIG(status));
    result_.kills_at_steps += blown_->exchange(false) ? 1 : 0;
    return {};
  }

  std::string recover_and_die(std::uint64_t seed) {
    const pid_t recoverer = fork();
    if (recoverer < 0) return "can't start a process";
    if (recoverer == 0) {
      auto pool = Pool::open(options_.path);
      if (!pool) _exit(4);
      Fuse fuse{.steps_left = static_cast<std::int64_t>(1 + seed % system_.recovery_steps()), .blown = blown_};
      _exit(system_.open_only(*pool, fuse) ? 0 : 4);
    }
    int status = 0;
    waitpid(recoverer, &status, 0);
    const bool killed_here = blown_->exchange(false);
    if (!killed_here && (!WIFEXITED(status) || WEXITSTATUS(status) != 0)) return "it can't be reopened";
    result_.kills_in_recovery += killed_here ? 1 : 0;
    return {};
  }

  const KillOptions& options_;
  StormSystem& system_;
  std::mt19937_64 random_;
  std::atomic<bool>* blown_ = nullptr;  // in memory that the children share
  KillResult result_;
};

}  // namespace

void say(int journal, const JournalLine& line) {
  if (write(journal, &line, sizeof line) != static_cast<ssize_t>(sizeof line)) _exit(3);
}

std::vector<JournalLine> lines_of(const std::string& journal) {
  std::vector<JournalLine> lines(journal.size() / sizeof(JournalLine));
  std::memcpy(lines.data(), journal.data(), lines.size() * sizeof(JournalLine));
  return lines;
}

KillResult run_storm(const KillOptions& options, StormSystem& system) { return Storm(options, system).run(); }

}  // namespace dunnock::crash
