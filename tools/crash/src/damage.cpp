#include "damage.hpp"

#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>

namespace dunnock::crash {
namespace {

namespace fs = std::filesystem;

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
    std::string error;
    const int outcome = use(error);
    error.resize(std::min<std::size_t>(error.size(), 400));
    _exit(write(pipe_ends[1], error.data(), error.size()) < 0 ? 1 : outcome);
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

void count_outcome(CorruptCase& one, int outcome, const std::string& message, const std::string& damage) {
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

class Damager {
 public:
  Damager(const CorruptOptions& options, const DamageSystem& system)
      : options_(options),
        system_(system),
        good_(fs::path(options.directory) / "good.pool"),
        bad_(fs::path(options.directory) / "bad.pool"),
        random_(options.seed) {}

  std::vector<CorruptCase> run() {
    if (!create()) return cases_;
    damage("nothing", 1, [](unsigned) { return std::string("nothing"); });
    if (cases_.back().unharmed != 1) cases_.back().violation = "an unharmed pool is not found unharmed";
    flip_bits();
    for (const std::uint64_t magic : system_.magics) damage_header(magic);
    for (const DamagedArea& area : system_.areas) damage_area(area);
    damage_pages();
    damage_whole_file();
    refuse_paths();
    refuse_second_opening();
    for (const Refusal& one : system_.refusals) refuse_in_pool(one);
    refuse_without_space_or_rights();  // Last, for it changes the rights of the files.
    fs::remove(good_);
    fs::remove(bad_);
    return cases_;
  }

 private:
  bool create() {
    fs::remove(good_);
    auto pool = Pool::create(good_, {system_.pool_bytes});
    const std::string failed = pool ? system_.create(*pool) : pool.error().message;
    if (!failed.empty()) {
      cases_.push_back({.name = "set-up", .violation = failed});
      return false;
    }
    size_ = fs::file_size(good_);
    bytes_.resize(size_);
    std::ifstream(good_, std::ios::binary).read(bytes_.data(), static_cast<std::streamsize>(size_));
    return true;
  }

  // ----- damage ------------------------------------------------------------------------------------------------------

  /// Harms copies of the good pool, harm(round), and uses each. `may_end_libpmemobj`: whole pages are damaged, some of
  /// them libpmemobj's own; it divides by what it reads there, or loops over it, before anything of ours runs.
  template <class Harm>
  void damage(const std::string& name, unsigned rounds, const Harm& harm, bool may_end_libpmemobj = false) {
    CorruptCase one{.name = name};
    std::string message;
    for (unsigned round = 0; round < rounds && one.violation.empty(); ++round) {
      fs::copy_file(good_, bad_, fs::copy_options::overwrite_existing);
      const std::string what = harm(round);
      int outcome = in_child([this](std::string& error) { return use_bad_pool(error); }, message);
      if (may_end_libpmemobj && outcome > 128 && !*opened_) {
        message = "libpmemobj ended the process while it opened the pool";
        outcome = kRefused;
      }
      count_outcome(one, outcome, message, what);
      if (options_.progress) options_.progress(round);
    }
    cases_.push_back(one);
  }
  int use_bad_pool(std::string& error) const {
    *opened_ = false;
    auto pool = Pool::open(bad_);
    *opened_ = true;
    return pool ? system_.use(*pool, error) : refuse(pool.error(), error);
  }

  std::string flip(std::uint64_t bit) const {
    std::fstream file(bad_, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(static_cast<std::streamoff>(bit / 8));
    const int byte = file.get();
    file.seekp(static_cast<std::streamoff>(bit / 8));
    file.put(static_cast<char>(byte ^ 1 << bit % 8));
    return "bit " + std::to_string(bit);
  }
  void overwrite(std::uint64_t at, const std::string& bytes) const {
    std::fstream file(bad_, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(at));
    file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }
  std::uint64_t page_in_use() {  // Most of a pool is empty, and damage there is none.
    for (;;) {
      const std::uint64_t page = random_() % (size_ / 4096);
      if (bytes_.find_first_not_of('\0', page * 4096) < (page + 1) * 4096) return page;
    }
  }

  void flip_bits() {
    damage("flipped bit anywhere", options_.rounds, [&](unsigned) { return flip(random_() % (size_ * 8)); });
    damage("flipped bit in the first 16 KiB", options_.rounds, [&](unsigned) { return flip(random_() % (16384 * 8)); });
    damage("flipped bit in a page in use", options_.rounds * 2,
           [&](unsigned) { return flip(page_in_use() * 4096 * 8 + random_() % (4096 * 8)); });
  }

  static std::string text_of(std::uint64_t magic) {
    return std::string(reinterpret_cast<const char*>(&magic), sizeof magic);
  }
  /// Wherever libpmemobj has put that header; npos: it is missing, and that is noted.
  std::size_t find_header(std::uint64_t magic) {
    const std::size_t at = bytes_.find(text_of(magic));
    if (at == std::string::npos)
      cases_.push_back({.name = "header " + text_of(magic), .violation = "there is no such header to be damaged"});
    return at;
  }
  void damage_header(std::uint64_t magic) {
    const std::size_t at = find_header(magic);
    if (at == std::string::npos) return;
    damage("flipped bit in the header " + text_of(magic), options_.rounds / 2 + 1,
           [&](unsigned) { return flip(at * 8 + random_() % 1024); });
    damage("wrong version in the header " + text_of(magic), 1, [&](unsigned) {
      overwrite(at + 8, std::string("\x63\0\0\0", 4));
      return std::string("version 99");
    });
  }
  void damage_area(const DamagedArea& area) {
    const std::size_t at = find_header(area.magic);
    if (at == std::string::npos) return;
    damage("flipped bit in " + area.name, options_.rounds,
           [&](unsigned) { return flip((at + area.offset) * 8 + random_() % (area.bytes * 8)); });
  }

  void damage_pages() {
    damage("zeroed first page", 1, [&](unsigned) {
      overwrite(0, std::string(4096, '\0'));
      return std::string("page 0");
    });
    if (!system_.damages_whole_pages) {
      damage("zeroed page", options_.rounds, [&](unsigned) {
        const std::uint64_t page = random_() % (size_ / 4096);
        overwrite(page * 4096, std::string(4096, '\0'));
        return "page " + std::to_string(page);
      });
      return;
    }
    damage(
        "zeroed page in use", options_.rounds,
        [&](unsigned) {
          const std::uint64_t page = page_in_use();
          overwrite(page * 4096, std::string(4096, '\0'));
          return "page " + std::to_string(page);
        },
        true);
    damage(
        "page written to another place", options_.rounds,
        [&](unsigned) {
          const std::uint64_t from = page_in_use(), to = page_in_use();
          overwrite(to * 4096, bytes_.substr(from * 4096, 4096));
          return "page " + std::to_string(from) + " to " + std::to_string(to);
        },
        true);
  }

  void damage_whole_file() {
    damage("truncated file", options_.rounds / 4 + 1, [&](unsigned round) {
      const std::uint64_t length = round == 0 ? 0 : round == 1 ? size_ - 4096 : random_() % size_;
      fs::resize_file(bad_, length);
      return "to " + std::to_string(length);
    });
    damage("foreign file", 2, [&](unsigned round) {
      std::ofstream(bad_, std::ios::trunc)
          << (round == 0 ? "This is a letter, not a pool.\n" : std::string(9 << 20, 'x'));
      return std::string("text");
    });
  }

  // ----- what is refused ---------------------------------------------------------------------------------------------

  template <class Attempt>
  void refuses(const std::string& name, ErrorCode expected, const Attempt& attempt) {
    CorruptCase one{.name = name};
    std::string message;
    const int outcome = in_child(
        [&](std::string& error) {
          const Result<void> result = attempt();
          if (result) return static_cast<int>(kUnharmed);
          const int refused = refuse(result.error(), error);
          return result.error().code == expected ? refused : static_cast<int>(kLostSilently);
        },
        message);
    count_outcome(one, outcome, message, name);
    if (one.refused != 1 && one.violation.empty()) one.violation = "not refused";
    if (outcome == kLostSilently) one.violation = "refused with another error: " + message;
    cases_.push_back(one);
  }

  void refuse_in_pool(const Refusal& one) {
    refuses(one.name, one.expected, [&]() -> Result<void> {
      DUNNOCK_TRY(auto pool, Pool::open(good_));
      return one.attempt(pool);
    });
  }
  void refuse_paths() {
    refuses("no such file", ErrorCode::kNotFound, [&] { return status_of(Pool::open(good_.string() + ".none")); });
    refuses("a directory", ErrorCode::kNotADunnockPool, [&] { return status_of(Pool::open(options_.directory)); });
    refuses("file exists", ErrorCode::kAlreadyExists, [&] { return status_of(Pool::create(good_, {16 << 20})); });
  }
  void refuse_second_opening() {
    refuses("pool opened twice", ErrorCode::kAlreadyOpen, [&]() -> Result<void> {
      DUNNOCK_TRY(auto first, Pool::open(good_));
      return status_of(Pool::open(good_));
    });
    refuses("pool opened by another process", ErrorCode::kAlreadyOpen, [&]() -> Result<void> {
      int ready[2];
      if (pipe(ready) != 0) return make_error(ErrorCode::kIo, "no pipe");
      const pid_t other = fork();
      if (other == 0) {
        auto pool = Pool::open(good_);
        if (write(ready[1], "x", 1) < 0) _exit(1);
        pause();
        _exit(0);
      }
      char byte;
      if (read(ready[0], &byte, 1) != 1) return make_error(ErrorCode::kIo, "can't start a child process");
      Result<void> result = status_of(Pool::open(good_));
      kill(other, SIGKILL);
      waitpid(other, nullptr, 0);
      return result;
    });
  }
  void refuse_without_space_or_rights() {
    refuses("disk full", ErrorCode::kNoSpace, [&] {
      signal(SIGXFSZ, SIG_IGN);
      const rlimit small{4 << 20, 4 << 20};
      setrlimit(RLIMIT_FSIZE, &small);
      return status_of(Pool::create(bad_.string() + ".new", {64 << 20}));
    });
    fs::remove(bad_.string() + ".new");
    fs::copy_file(good_, bad_, fs::copy_options::overwrite_existing);
    chmod(bad_.c_str(), 0444);
    if (geteuid() == 0) {
      // Root may write to anything, so become nobody.
      chmod(options_.directory.c_str(), 0755);
      chmod(good_.c_str(), 0644);
    }
    const auto as_nobody = [](const auto& attempt) -> Result<void> {
      if (geteuid() == 0 && setuid(65534) != 0) return make_error(ErrorCode::kReadOnly, "can't give up root here");
      return status_of(attempt());
    };
    refuses("read-only file", ErrorCode::kReadOnly, [&] { return as_nobody([&] { return Pool::open(bad_); }); });
    refuses("read-only directory", ErrorCode::kReadOnly,
            [&] { return as_nobody([] { return Pool::create("/usr/dunnock.pool", {16 << 20}); }); });
    chmod(bad_.c_str(), 0644);
  }

  const CorruptOptions& options_;
  const DamageSystem& system_;
  fs::path good_, bad_;
  std::mt19937_64 random_;
  /// Shared with the children: whether the pool could be opened, or was refused.
  bool* opened_ =
      static_cast<bool*>(mmap(nullptr, sizeof(bool), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  std::uint64_t size_ = 0;
  std::string bytes_;  // of the good pool
  std::vector<CorruptCase> cases_;
};

}  // namespace

int refuse(const Error& error, std::string& words) {
  words = std::string(to_string(error.code)) + ": " + error.message;
  return kRefused;
}

std::vector<CorruptCase> run_damage(const CorruptOptions& options, const DamageSystem& system) {
  return Damager(options, system).run();
}

}  // namespace dunnock::crash
