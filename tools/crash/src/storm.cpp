#include "storm.hpp"

#include <poll.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
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

}  // namespace

KillResult run_storm(const KillOptions& options, StormSystem& system) {
  KillResult result;
  void* shared = mmap(nullptr, sizeof(std::atomic<bool>), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) {
    result.violation = "no shared memory";
    return result;
  }
  auto* blown = new (shared) std::atomic<bool>(false);
  const auto wrong = [&result, &options](const std::string& what) {
    // The pool stays, to be looked at.
    result.violation =
        "after kill " + std::to_string(result.kills) + ": " + what + " (the pool is " + options.path + ")";
    return result;
  };
  static_cast<void>(Pool::remove(options.path));
  std::mt19937_64 random(options.seed);
  {
    auto pool = Pool::create(options.path, {system.pool_bytes()});
    if (!pool) return wrong(pool.error().message);
    if (std::string failed = system.create(*pool); !failed.empty()) return wrong(failed);
  }
  for (unsigned n = 0; n < options.kills; ++n) {
    int ends[2];
    if (pipe(ends) != 0) return wrong("no pipe");
    const std::uint64_t seed = random();
    const pid_t child = fork();
    if (child < 0) return wrong("no process");
    if (child == 0) {
      close(ends[0]);
      auto pool = Pool::open(options.path);
      if (!pool) _exit(4);
      Fuse fuse{.blown = blown};
      std::mt19937_64 own(seed);
      light(fuse, system.seldom(), own);
      system.live(*pool, fuse, ends[1], seed);
      _exit(5);
    }
    close(ends[1]);
    const std::string journal = read_journal(ends[0], child, std::chrono::microseconds(1000 + random() % 40000));
    close(ends[0]);
    int status = 0;
    waitpid(child, &status, 0);
    ++result.kills;
    if (!WIFSIGNALED(status)) return wrong("the child ended by itself, status " + std::to_string(WEXITSTATUS(status)));
    if (WTERMSIG(status) != SIGKILL) return wrong("the child got signal " + std::to_string(WTERMSIG(status)));
    result.kills_at_steps += blown->exchange(false) ? 1 : 0;

    // Now and then the process that recovers is killed as well.
    if (random() % 2 == 0) {
      const pid_t recoverer = fork();
      if (recoverer < 0) return wrong("no process");
      if (recoverer == 0) {
        auto pool = Pool::open(options.path);
        if (!pool) _exit(4);
        Fuse fuse{.steps_left = static_cast<std::int64_t>(1 + seed % 4), .blown = blown};
        _exit(system.open_only(*pool, fuse) ? 0 : 4);
      }
      waitpid(recoverer, &status, 0);
      const bool killed_here = blown->exchange(false);
      if (!killed_here && (!WIFEXITED(status) || WEXITSTATUS(status) != 0)) return wrong("it can't be reopened");
      result.kills_in_recovery += killed_here ? 1 : 0;
    }
    auto pool = Pool::open(options.path);
    if (!pool) return wrong(pool.error().message);
    if (std::string failed = system.verify(*pool, journal, result); !failed.empty()) return wrong(failed);
    if (options.progress) options.progress(result.kills);
  }
  munmap(shared, sizeof(std::atomic<bool>));
  static_cast<void>(Pool::remove(options.path));
  return result;
}

std::vector<CorruptCase> run_damage(const CorruptOptions& options, const DamageSystem& system) {
  namespace fs = std::filesystem;
  const fs::path good = fs::path(options.directory) / "good.pool";
  const fs::path bad = fs::path(options.directory) / "bad.pool";
  fs::remove(good);
  std::vector<CorruptCase> cases;
  {
    auto pool = Pool::create(good, {system.pool_bytes});
    const std::string failed = pool ? system.create(*pool) : pool.error().message;
    if (!failed.empty()) {
      cases.push_back({.name = "set-up", .violation = failed});
      return cases;
    }
  }
  const std::uint64_t size = fs::file_size(good);
  std::mt19937_64 random(options.seed);
  std::string message;
  const auto use = [&](int pipe_end) {
    std::string error;
    auto pool = Pool::open(bad);
    const int outcome = pool ? system.use(*pool, error) : static_cast<int>(kRefused);
    if (!pool) error = std::string(to_string(pool.error().code)) + ": " + pool.error().message;
    error.resize(std::min<std::size_t>(error.size(), 400));
    if (write(pipe_end, error.data(), error.size()) < 0) return 1;
    return outcome;
  };
  const auto damage = [&](const std::string& name, unsigned rounds, const auto& harm) {
    CorruptCase one{.name = name};
    for (unsigned round = 0; round < rounds && one.violation.empty(); ++round) {
      fs::copy_file(good, bad, fs::copy_options::overwrite_existing);
      const std::string what = harm();
      count_outcome(one, in_child(use, message), message, what);
      if (options.progress) options.progress(round);
    }
    cases.push_back(one);
  };
  const auto flip = [&](std::uint64_t bit) {
    std::fstream file(bad, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(static_cast<std::streamoff>(bit / 8));
    const int byte = file.get();
    file.seekp(static_cast<std::streamoff>(bit / 8));
    file.put(static_cast<char>(byte ^ 1 << bit % 8));
    return "bit " + std::to_string(bit);
  };
  const auto overwrite = [&](std::uint64_t at, const std::string& bytes) {
    std::fstream file(bad, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(at));
    file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  };
  std::string bytes(size, '\0');
  std::ifstream(good, std::ios::binary).read(bytes.data(), static_cast<std::streamsize>(size));
  const auto page_in_use = [&] {  // Most of a pool is empty, and damage there is none.
    for (;;) {
      const std::uint64_t page = random() % (size / 4096);
      if (bytes.find_first_not_of('\0', page * 4096) < (page + 1) * 4096) return page;
    }
  };

  damage("nothing", 1, [] { return std::string("nothing"); });
  if (cases.back().unharmed != 1) cases.back().violation = "an unharmed pool is not found unharmed";
  damage("flipped bit in a page in use", options.rounds * 2,
         [&] { return flip(page_in_use() * 4096 * 8 + random() % (4096 * 8)); });
  for (const std::uint64_t magic : system.magics) {
    const std::string text(reinterpret_cast<const char*>(&magic), sizeof magic);
    const std::uint64_t at = bytes.find(text);
    if (at == std::string::npos) {
      cases.push_back({.name = "header " + text, .violation = "there is no such header to be damaged"});
      continue;
    }
    damage("flipped bit in the header " + text, options.rounds / 2 + 1, [&] { return flip(at * 8 + random() % 1024); });
    damage("wrong version in the header " + text, 1, [&] {
      overwrite(at + 8, std::string("\x63\0\0\0", 4));
      return std::string("version 99");
    });
  }
  damage("zeroed page in use", options.rounds, [&] {
    const std::uint64_t page = page_in_use();
    overwrite(page * 4096, std::string(4096, '\0'));
    return "page " + std::to_string(page);
  });
  damage("page written to another place", options.rounds, [&] {
    const std::uint64_t from = page_in_use(), to = page_in_use();
    overwrite(to * 4096, bytes.substr(from * 4096, 4096));
    return "page " + std::to_string(from) + " to " + std::to_string(to);
  });
  damage("truncated file", options.rounds / 4 + 1, [&] {
    const std::uint64_t length = random() % size;
    fs::resize_file(bad, length);
    return "to " + std::to_string(length);
  });
  fs::remove(good);
  fs::remove(bad);
  return cases;
}

}  // namespace dunnock::crash
