// What kill storms of all structures share: processes that die at a chosen step, and the journal of what they did.
#pragma once

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <string>
#include <type_traits>
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

template <class M>
[[nodiscard]] M media_of(const Pool& pool) {
  if constexpr (std::is_same_v<M, FileMedia>) {
    return pool.file_media();
  } else {
    return M{};
  }
}

/// One line of a child's journal: intent before an operation, its outcome after it. Written whole or not at all, for it
/// is shorter than PIPE_BUF.
struct JournalLine {
  enum class What : std::uint32_t { kIntent, kDone, kRefused, kWrong };
  What what;
  std::uint32_t thread;
  std::uint64_t key;
  std::uint64_t value;  // 0: erased
};
static_assert(sizeof(JournalLine) == 24);

/// In the child. Ends it when the parent does not listen.
void say(int journal, const JournalLine& line);
[[nodiscard]] std::vector<JournalLine> lines_of(const std::string& journal);

class Stopwatch {
 public:
  [[nodiscard]] double milliseconds() const {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// One structure that processes work on until they are killed. The object lives in the parent; children have a copy.
class StormSystem {
 public:
  virtual ~StormSystem() = default;
  /// Makes the structure in a fresh pool. A sentence when that fails.
  virtual std::string create(Pool& pool) = 0;
  [[nodiscard]] virtual std::uint64_t pool_bytes() const = 0;
  /// Steps that come seldom, to be killed at.
  [[nodiscard]] virtual std::vector<Point> seldom() const = 0;
  /// About as many as the recovery of one crash takes.
  [[nodiscard]] virtual unsigned recovery_steps() const { return 4; }
  /// In a child: opens the structure and works, writing intents and acknowledgements to `journal`, until it is killed.
  /// Returns only when something is wrong.
  virtual void live(Pool& pool, Fuse& fuse, int journal, std::uint64_t seed) = 0;
  /// In a child that may be killed while it opens. False: it can't be opened.
  virtual bool open_only(Pool& pool, Fuse& fuse) = 0;
  /// In the parent: reads the journal, opens the structure and looks whether all is there. A sentence when not.
  virtual std::string verify(Pool& pool, const std::string& journal, KillResult& result) = 0;

  /// How long it took to open the pool that is verified.
  void set_pool_ms(double milliseconds) { pool_ms_ = milliseconds; }

 protected:
  /// Opens the structure that is verified, and notes how long it and its pool took.
  template <class Open>
  auto open_timed(KillResult& result, const Open& open) const {
    const Stopwatch stopwatch;
    auto opened = open();
    result.recovery_ms_max = std::max(result.recovery_ms_max, pool_ms_ + stopwatch.milliseconds());
    return opened;
  }

 private:
  double pool_ms_ = 0;
};

[[nodiscard]] KillResult run_storm(const KillOptions& options, StormSystem& system);

/// A storm on the media that the options name: Storm<M>(arguments...).
template <template <class> class Storm, class... Arguments>
[[nodiscard]] KillResult run_storm_of(const KillOptions& options, const Arguments&... arguments) {
  if (options.process_media) {
    Storm<ProcessMedia> storm(arguments...);
    return run_storm(options, storm);
  }
  Storm<FileMedia> storm(arguments...);
  return run_storm(options, storm);
}

}  // namespace dunnock::crash
