// What kill storms and damage tests of all structures share: processes that die at a chosen step, and their outcomes.
#pragma once

#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "dunnock/pmem/media.hpp"
#include "dunnock/pmem/pool.hpp"
#include "structures.hpp"

namespace dunnock::crash {

/// Kills the process at a chosen durable step: a kill by the clock nearly always finds all threads in their pipes.
struct Fuse {
  std::atomic<std::int64_t> steps_left{0};  // 0: does not burn
  Point point{};                            // counts the steps at this point; Point{}: all
  std::atomic<bool>* blown = nullptr;       // in memory that the parent sees
  void burn(Point at) noexcept {
    if (steps_left.load(std::memory_order_relaxed) <= 0) return;
    if (point != Point{} && point != at) return;
    if (steps_left.fetch_sub(1) != 1) return;
    blown->store(true);
    (void)kill(getpid(), SIGKILL);
    for (;;) pause();
  }
};

/// A media whose every durable step may be the process's last.
template <class M>
struct FusedMedia : M {
  Fuse* fuse;
  FusedMedia(const M& media, Fuse& burning) : M(media), fuse(&burning) {}
  void store(Point point, Word& word, std::uint64_t value) const noexcept {
    fuse->burn(point);
    M::store(point, word, value);
  }
  void write(Point point, void* to, const void* from, std::size_t bytes) const noexcept requires
      requires(const M& media) {
    media.write(point, to, from, bytes);
  }
  {
    fuse->burn(point);
    M::write(point, to, from, bytes);
  }
  void flush(Point point, const void* address) const noexcept {
    fuse->burn(point);
    M::flush(point, address);
  }
  void fence(Point point) const noexcept {
    fuse->burn(point);
    M::fence(point);
  }
};

// ----- storms -----------------------------------------------------------------------------------------------------

/// One structure that processes work on until they are killed. The object lives in the parent; children have a copy.
class StormSystem {
 public:
  virtual ~StormSystem() = default;
  /// Makes the structure in a fresh pool. A sentence when that fails.
  virtual std::string create(Pool& pool) = 0;
  [[nodiscard]] virtual std::uint64_t pool_bytes() const = 0;
  /// Steps that come seldom, to be killed at.
  [[nodiscard]] virtual std::vector<Point> seldom() const = 0;
  /// In a child: opens the structure and works, writing intents and acknowledgements to `journal`, until it is killed.
  /// Returns only when something is wrong.
  virtual void live(Pool& pool, Fuse& fuse, int journal, std::uint64_t seed) = 0;
  /// In a child that may be killed while it opens. False: it can't be opened.
  virtual bool open_only(Pool& pool, Fuse& fuse) = 0;
  /// In the parent: reads the journal, opens the structure and looks whether all is there. A sentence when not.
  virtual std::string verify(Pool& pool, const std::string& journal, KillResult& result) = 0;
};

[[nodiscard]] KillResult run_storm(const KillOptions& options, StormSystem& system);

// ----- damage -----------------------------------------------------------------------------------------------------

enum Outcome : int { kRefused = 10, kFound = 11, kUnharmed = 12, kApproximate = 13, kLostSilently = 14 };

/// What is done to a structure in a damaged pool.
struct DamageSystem {
  std::uint64_t pool_bytes = 0;
  std::function<std::string(Pool&)> create;  ///< And fills it, and closes it. A sentence when that fails.
  /// Opens it and uses everything in it. Returns an Outcome; an error goes to `error`.
  std::function<int(Pool&, std::string& error)> use;
  std::vector<std::uint64_t> magics;  ///< Of its headers, to be damaged in particular.
};
[[nodiscard]] std::vector<CorruptCase> run_damage(const CorruptOptions& options, const DamageSystem& system);

/// Runs `use` in a child; returns its exit code, or 128 + the signal that ended it.
template <class Use>
int in_child(const Use& use, std::string& message) {
  int pipe_ends[2];
  if (pipe(pipe_ends) != 0) return 1;
  const pid_t child = fork();
  if (child == 0) {
    close(pipe_ends[0]);
    const rlimit none{0, 0};
    setrlimit(RLIMIT_CORE, &none);
    alarm(60);  // An endless loop is a failure, too.
    _exit(use(pipe_ends[1]));
  }
  close(pipe_ends[1]);
  char buffer[512];
  message.clear();
  for (ssize_t got; (got = read(pipe_ends[0], buffer, sizeof buffer)) > 0;)
    message.append(buffer, static_cast<std::size_t>(got));
  close(pipe_ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

inline void count_outcome(CorruptCase& one, int outcome, const std::string& message, const std::string& damage) {
  ++one.runs;
  switch (outcome) {
    case kRefused:
      ++one.refused;
      if (one.example.empty()) one.example = message;
      if (message.empty()) one.violation = "refused without a word: " + damage;
      break;
    case kFound: ++one.found; break;
    case kUnharmed: ++one.unharmed; break;
    case kApproximate: ++one.approximate; break;
    default:
      one.violation = outcome > 128
                          ? "signal " + std::to_string(outcome - 128) + " (" + strsignal(outcome - 128) + "): " + damage
                      : outcome == kLostSilently ? "a wrong answer, or one that is lost without a word: " + damage
                                                 : "exit " + std::to_string(outcome) + ": " + damage;
  }
}

}  // namespace dunnock::crash
