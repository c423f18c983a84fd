// The life of a pool's file: one file, whatever happens to its name, its copies, its openers and the disk.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <mutex>
#include <optional>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "dunnock/base/file.hpp"
#include "dunnock/pmem/detect.hpp"
#include "dunnock/pmem/pool.hpp"
#include "journal.hpp"
#include "pool_format.hpp"
#include "support/seed.hpp"

namespace dunnock {
namespace {

constexpr std::uint64_t kPoolBytes = 24 << 20;
constexpr std::uint64_t kLines = 4096;

class PoolLife : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / ("pool_life." + std::to_string(getpid()));
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directory(folder_);
    path_ = at("p.pool");
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  [[nodiscard]] std::string at(const std::string& name) const { return (folder_ / name).string(); }
  [[nodiscard]] std::set<std::string> names() const {
    std::set<std::string> all;
    for (const auto& entry : std::filesystem::directory_iterator(folder_)) all.insert(entry.path().filename());
    return all;
  }

  /// A pool with a region "r" of kLines lines.
  static Pool make(const std::string& path, PoolOptions options = {.bytes = kPoolBytes}) {
    auto pool = Pool::create(path, options);
    EXPECT_TRUE(pool) << pool.error().message;
    EXPECT_TRUE(pool->create_regions(std::array{RegionSpec{"r", kLines * kLineBytes}}));
    return std::move(*pool);
  }
  static Word& word(const Pool& pool, std::uint64_t line) {
    return *reinterpret_cast<Word*>(pool.open_region("r")->at(line * kLineBytes));
  }
  /// The same, which nobody closes: as if the process were killed when it ends.
  static Pool& make_and_leave(const std::string& path, PoolOptions options = {.bytes = kPoolBytes}) {
    return *new Pool(make(path, options));
  }
  /// Stores `value` in a line, durably. False: it is not acknowledged.
  static bool put(const Pool& pool, std::uint64_t line, std::uint64_t value) {
    const FileMedia media = pool.file_media();
    media.store(Point{1}, word(pool, line), value);
    media.flush(Point{1}, &word(pool, line));
    media.fence(Point{1});
    return media.ok();
  }
  static std::uint64_t get(const Pool& pool, std::uint64_t line) { return word(pool, line).load(); }

  /// Runs `work` in a child and returns what it returned, or 256 + the signal that ended the child.
  static int in_child(const std::function<int()>& work) {
    const pid_t child = fork();
    if (child == 0) _exit(work());
    int status = 0;
    EXPECT_EQ(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 256 + WTERMSIG(status);
  }

  std::filesystem::path folder_;
  std::string path_;
};

/// Answers some calls with an error, and counts them.
class FailingFiles : public FileSystem {
 public:
  enum Call { kPwrite, kDurable, kFsync, kFdatasync, kMsync, kAllocate, kOpen, kName, kCalls };
  FailingFiles() { set_file_system(this); }
  ~FailingFiles() override { set_file_system(nullptr); }
  /// The `nth` call of that kind from now on (1: the next) fails, once.
  void fail(Call call, int nth, int error = EIO) {
    error_[call] = error;
    countdown_[call] = nth;
  }
  [[nodiscard]] int failed() const { return failed_; }
  std::atomic<bool> no_unnamed_files{false};

  int open(int directory, const char* path, int flags, mode_t mode) noexcept override {
    if (no_unnamed_files && (flags & O_TMPFILE) == O_TMPFILE) {
      errno = EOPNOTSUPP;
      return -1;
    }
    return fails(kOpen) ? -1 : FileSystem::open(directory, path, flags, mode);
  }
  bool pwrite(int fd, const void* from, std::size_t bytes, std::uint64_t offset) noexcept override {
    if (!fails(kPwrite)) return FileSystem::pwrite(fd, from, bytes, offset);
    const int error = errno;
    (void)FileSystem::pwrite(fd, from, bytes / 1024 * 512, offset);  // Half of its sectors.
    errno = error;
    return false;
  }
  bool pwrite_durably(int fd, const void* from, std::size_t bytes, std::uint64_t offset) noexcept override {
    return !fails(kDurable) && FileSystem::pwrite_durably(fd, from, bytes, offset);
  }
  int fsync(int fd) noexcept override { return fails(kFsync) ? -1 : FileSystem::fsync(fd); }
  int fdatasync(int fd) noexcept override { return fails(kFdatasync) ? -1 : FileSystem::fdatasync(fd); }
  int msync(void* address, std::size_t bytes) noexcept override {
    return fails(kMsync) ? -1 : FileSystem::msync(address, bytes);
  }
  int allocate(int fd, std::uint64_t offset, std::uint64_t bytes) noexcept override {
    return fails(kAllocate) ? -1 : FileSystem::allocate(fd, offset, bytes);
  }
  int name_file(int fd, int directory, const char* name) noexcept override {
    return fails(kName) ? -1 : FileSystem::name_file(fd, directory, name);
  }

 private:
  bool fails(Call call) noexcept {
    if (countdown_[call] == 0 || --countdown_[call] != 0) return false;
    ++failed_;
    errno = error_[call];
    return true;
  }
  std::array<std::atomic<int>, kCalls> countdown_{};
  std::array<int, kCalls> error_{};
  std::atomic<int> failed_{0};
};

TEST_F(PoolLife, is_one_file_while_it_is_open_and_after_a_kill) {
  ASSERT_EQ(in_child([&] {
              const Pool& pool = make_and_leave(path_);
              for (std::uint64_t i = 0; i < 100; ++i) {
                if (!put(pool, i, i + 1)) return 1;
              }
              return pool.file_media().has_journal() && names() == std::set<std::string>{"p.pool"} ? 0 : 2;
            }),
            0);
  EXPECT_EQ(names(), std::set<std::string>{"p.pool"});
  // It is whole under any name.
  std::filesystem::rename(path_, at("q.pool"));
  const auto pool = Pool::open(at("q.pool"));
  ASSERT_TRUE(pool) << pool.error().message;
  for (std::uint64_t i = 0; i < 100; ++i) EXPECT_EQ(get(*pool, i), i + 1);
}

TEST_F(PoolLife, keeps_the_new_pool_at_its_name_whatever_the_old_holder_does) {
  for (const bool removed : {false, true}) {
    std::optional<Pool> old = make(path_);
    for (std::uint64_t i = 0; i < 100; ++i) ASSERT_TRUE(put(*old, i, 7));
    if (removed)
      std::filesystem::remove(path_);
    else
      std::filesystem::rename(path_, at("old.pool"));
    ASSERT_EQ(in_child([&] {
                const Pool& fresh = make_and_leave(path_);
                for (std::uint64_t i = 0; i < 200; ++i) {
                  if (!put(fresh, i, 1000 + i)) return 1;
                }
                return 0;
              }),
              0);
    // The old holder goes on, closes and seals: its own file, wherever that is.
    for (std::uint64_t i = 0; i < 100; ++i) ASSERT_TRUE(put(*old, i, 8));
    ASSERT_TRUE(old->close());
    old.reset();
    {
      const auto fresh = Pool::open(path_);
      ASSERT_TRUE(fresh) << fresh.error().message;
      for (std::uint64_t i = 0; i < 200; ++i) ASSERT_EQ(get(*fresh, i), 1000 + i);
    }
    if (!removed) {
      const auto moved = Pool::open(at("old.pool"));
      ASSERT_TRUE(moved) << moved.error().message;
      EXPECT_EQ(get(*moved, 5), 8u);
      std::filesystem::remove(at("old.pool"));
    }
    ASSERT_TRUE(Pool::remove(path_));
  }
}

TEST_F(PoolLife, is_not_removed_while_it_is_open_and_nothing_else_is_ever_removed) {
  std::optional<Pool> pool = make(path_);
  EXPECT_EQ(Pool::remove(path_).error().code, ErrorCode::kAlreadyOpen);
  pool.reset();
  {
    const auto reader = Pool::open_read_only(path_);
    ASSERT_TRUE(reader) << reader.error().message;
    EXPECT_EQ(Pool::remove(path_).error().code, ErrorCode::kAlreadyOpen);
  }
  EXPECT_TRUE(Pool::remove(path_));
  EXPECT_EQ(Pool::remove(path_).error().code, ErrorCode::kNotFound);
  std::ofstream(at("letter")) << "of value, and longer than a signature";
  EXPECT_EQ(Pool::remove(at("letter")).error().code, ErrorCode::kNotADunnockPool);
  std::filesystem::create_symlink(at("letter"), at("link"));
  EXPECT_EQ(Pool::remove(at("link")).error().code, ErrorCode::kNotADunnockPool);
  EXPECT_EQ(Pool::remove(folder_.string()).error().code, ErrorCode::kNotADunnockPool);
  EXPECT_EQ(names(), (std::set<std::string>{"letter", "link"}));
}

TEST_F(PoolLife, is_created_by_one_of_many) {
  FailingFiles files;
  for (const bool named : {false, true}) {
    files.no_unnamed_files = named;
    for (int round = 0; round < 4; ++round) {
      std::atomic<int> created = 0;
      std::vector<pid_t> children;
      for (int i = 0; i < 4; ++i) {
        const pid_t child = fork();
        if (child != 0) {
          children.push_back(child);
          continue;
        }
        auto pool = Pool::create(path_, {.bytes = kPoolBytes});
        if (!pool)
          _exit(pool.error().code == ErrorCode::kAlreadyExists || pool.error().code == ErrorCode::kAlreadyOpen ? 1 : 2);
        if (!pool->create_regions(std::array{RegionSpec{"r", kLines * kLineBytes}})) _exit(3);
        for (std::uint64_t k = 0; k < 100; ++k) {
          if (!put(*pool, k, k + 1)) _exit(4);
        }
        _exit(0);
      }
      for (const pid_t child : children) {
        int status = 0;
        waitpid(child, &status, 0);
        ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) <= 1) << status;
        if (WEXITSTATUS(status) == 0) ++created;
      }
      ASSERT_EQ(created, 1);
      {
        const auto pool = Pool::open(path_);
        ASSERT_TRUE(pool) << pool.error().message;
        for (std::uint64_t k = 0; k < 100; ++k) ASSERT_EQ(get(*pool, k), k + 1);
      }
      ASSERT_TRUE(Pool::remove(path_));
      EXPECT_TRUE(names().empty());
    }
  }
}

TEST_F(PoolLife, is_opened_or_created_by_many_at_once) {
  std::vector<std::thread> threads;
  std::atomic<int> opened = 0, busy = 0;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 5; ++i) {
        auto pool = Pool::open_or_create(path_, {.bytes = kPoolBytes});
        if (pool)
          ++opened;
        else if (pool.error().code == ErrorCode::kAlreadyOpen)
          ++busy;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_GE(opened, 1);
  EXPECT_EQ(opened + busy, 20);
  EXPECT_EQ(names(), std::set<std::string>{"p.pool"});
}

TEST_F(PoolLife, where_files_need_a_name_removes_only_what_a_crash_has_left) {
  FailingFiles files;
  files.no_unnamed_files = true;
  const std::string unfinished = path_ + ".new";
  const UniqueFd other(::open(unfinished.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  ASSERT_EQ(flock(other.get(), LOCK_EX | LOCK_NB), 0);  // As libpmemobj does.
  EXPECT_EQ(Pool::create(path_, {.bytes = kPoolBytes}).error().code, ErrorCode::kAlreadyOpen);
  EXPECT_EQ(names(), std::set<std::string>{"p.pool.new"});
  ASSERT_EQ(flock(other.get(), LOCK_UN), 0);
  EXPECT_TRUE(Pool::create(path_, {.bytes = kPoolBytes}));
  EXPECT_EQ(names(), std::set<std::string>{"p.pool"});
}

TEST_F(PoolLife, leaves_nothing_when_its_creation_fails) {
  FailingFiles files;
  for (const bool named : {false, true}) {
    files.no_unnamed_files = named;
    files.fail(FailingFiles::kAllocate, 1, ENOSPC);
    EXPECT_EQ(Pool::create(path_, {.bytes = kPoolBytes}).error().code, ErrorCode::kNoSpace);
    EXPECT_TRUE(names().empty());
    for (int nth = 1; nth <= 2; ++nth) {  // Of the file, and of its folder.
      files.fail(FailingFiles::kFsync, nth);
      EXPECT_EQ(Pool::create(path_, {.bytes = kPoolBytes}).error().code, ErrorCode::kIo);
      EXPECT_TRUE(names().empty());
    }
  }
  EXPECT_EQ(files.failed(), 6);
  EXPECT_TRUE(Pool::create(path_, {.bytes = kPoolBytes}));
}

TEST_F(PoolLife, refuses_a_journal_that_is_too_small_when_it_is_given) {
  for (const std::uint64_t bytes : {1ULL, 4096ULL, 24575ULL, 24576ULL, 65535ULL})
    EXPECT_EQ(Pool::create(path_, {.bytes = kPoolBytes, .journal_bytes = bytes}).error().code,
              ErrorCode::kInvalidArgument);
  EXPECT_TRUE(names().empty());
  std::optional<Pool> pool = make(path_, {.bytes = kPoolBytes, .journal_bytes = 65536});
  for (std::uint64_t i = 0; i < 300; ++i) ASSERT_TRUE(put(*pool, i, i));
  EXPECT_TRUE(pool->file_media().has_journal());
  // Fences of any number of lines.
  const FileMedia media = pool->file_media();
  for (std::uint64_t lines = 1; lines <= kLines; lines = lines * 3 + 1) {
    for (std::uint64_t line = 0; line < lines; ++line) media.flush(Point{1}, &word(*pool, line));
    media.fence(Point{1});
    ASSERT_TRUE(media.ok());
  }
  pool.reset();
  EXPECT_EQ(Pool::open(path_, {.journal_bytes = 4096}).error().code, ErrorCode::kInvalidArgument);
}

TEST_F(PoolLife, has_the_mode_that_is_asked_for_less_the_umask) {
  const auto mode_of = [](const std::string& path) {
    struct stat info {};
    EXPECT_EQ(stat(path.c_str(), &info), 0);
    return info.st_mode & 0777;
  };
  const mode_t before = umask(022);
  (void)make(at("default"));
  EXPECT_EQ(mode_of(at("default")), 0600u) << "it may hold secrets";
  (void)make(at("group"), {.bytes = kPoolBytes, .mode = 0666});
  EXPECT_EQ(mode_of(at("group")), 0644u);
  umask(077);
  (void)make(at("strict"), {.bytes = kPoolBytes, .mode = 0666});
  EXPECT_EQ(mode_of(at("strict")), 0600u);
  umask(0);
  (void)make(at("open"), {.bytes = kPoolBytes, .mode = 0660});
  EXPECT_EQ(mode_of(at("open")), 0660u);
  // A copy has the mode of what it copies, whatever the umask says.
  umask(077);
  ASSERT_TRUE(Pool::copy(at("group"), at("copy")));
  EXPECT_EQ(mode_of(at("copy")), 0644u);
  umask(before);
}

TEST_F(PoolLife, fills_the_holes_of_a_sparse_copy_or_says_that_there_is_no_room) {
  { (void)make(path_); }
  const std::string sparse = at("sparse.pool");
  ASSERT_EQ(std::system(("cp --sparse=always " + path_ + " " + sparse).c_str()), 0);
  const auto blocks = [&] {
    struct stat info {};
    EXPECT_EQ(stat(sparse.c_str(), &info), 0);
    return static_cast<std::uint64_t>(info.st_blocks) * 512;
  };
  ASSERT_LT(blocks(), kPoolBytes);
  {
    FailingFiles files;
    files.fail(FailingFiles::kAllocate, 1, ENOSPC);
    const auto refused = Pool::open(sparse);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, ErrorCode::kNoSpace);
    EXPECT_NE(refused.error().message.find("holes"), std::string::npos) << refused.error().message;
  }
  // Looking does not fill them.
  EXPECT_TRUE(Pool::open_read_only(sparse));
  EXPECT_LT(blocks(), kPoolBytes);
  EXPECT_TRUE(Pool::open(sparse));
  EXPECT_GE(blocks(), kPoolBytes);
}

/// Runs this program's test `filter` again with a variable in its environment, for the pool `path`.
int again_with(const char* variable, const char* value, const std::string& path, const std::string& filter) {
  const pid_t child = fork();
  if (child == 0) {
    setenv(variable, value, 1);
    setenv("DUNNOCK_POOL_LIFE_CHILD", path.c_str(), 1);
    const std::string argument = "--gtest_filter=" + filter;
    execl("/proc/self/exe", "pool_life_test", argument.c_str(), nullptr);
    _exit(99);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 256 + WTERMSIG(status);
}

TEST_F(PoolLife, refuses_what_pmdks_environment_would_make_of_an_ordinary_file) {
  if (const char* path = std::getenv("DUNNOCK_POOL_LIFE_CHILD"); path != nullptr) {
    const auto pool = Pool::open(path);
    ASSERT_FALSE(pool);
    EXPECT_EQ(pool.error().code, ErrorCode::kUnsupported) << pool.error().message;
    const auto made = Pool::create(at("made"), {.bytes = kPoolBytes});
    if (std::getenv("PMEMOBJ_CONF") == nullptr) {  // That is about opening.
      ASSERT_FALSE(made);
      EXPECT_EQ(made.error().code, ErrorCode::kUnsupported) << made.error().message;
      EXPECT_FALSE(names().contains("made"));
    }
    std::ofstream(at("file")) << std::string(100000, 'x');
    EXPECT_EQ(detect_media(at("file"))->kind, MediaKind::kFile);
    return;
  }
  if (const auto made = Pool::create(path_, {.bytes = kPoolBytes}); !made) GTEST_SKIP() << made.error().message;
  if (detect_media(path_)->kind != MediaKind::kFile) GTEST_SKIP() << "persistent memory";
  std::string type;
  if (FILE* answer = popen(("stat -f -c %T " + folder_.string()).c_str(), "r"); answer != nullptr) {
    std::array<char, 64> line{};
    if (fgets(line.data(), line.size(), answer) != nullptr) type = line.data();
    pclose(answer);
  }
  if (type.starts_with("tmpfs")) GTEST_SKIP() << "a file in memory, where nothing is promised";
  const std::string me = "PoolLife.refuses_what_pmdks_environment_would_make_of_an_ordinary_file";
  EXPECT_EQ(again_with("PMEM_IS_PMEM_FORCE", "1", path_, me), 0);
  EXPECT_EQ(again_with("PMEMOBJ_CONF", "copy_on_write.at_open=1", path_, me), 0);
  EXPECT_TRUE(Pool::open(path_));
}

TEST_F(PoolLife, is_not_for_the_child_of_a_fork) {
  std::optional<Pool> pool = make(path_);
  for (std::uint64_t i = 0; i < 100; ++i) ASSERT_TRUE(put(*pool, i, i + 1));
  ASSERT_TRUE(pool->file_media().has_journal());
  for (const bool closes : {false, true}) {
    ASSERT_EQ(in_child([&] {
                alarm(20);  // It must not hang.
                const ProcessMedia inherited = [] { return ProcessMedia{}; }();
                if (put(*pool, 7, 666)) return 1;
                if (pool->status().error().code != ErrorCode::kIo) return 2;
                if (pool->create_regions(std::array{RegionSpec{"x", 4096}})) return 3;
                if (pool->remove_region("r")) return 4;
                if (pool->copy_to(at("copy"))) return 5;
                if (!inherited.ok()) return 6;  // Made here, for what is opened here.
                // Its own pools are its own.
                Pool own = make(at("own.pool"));
                if (!put(own, 3, 3) || get(own, 3) != 3) return 7;
                if (!own.close()) return 8;
                if (closes && pool->close()) return 9;
                pool.reset();
                return 0;
              }),
              0);
    ASSERT_TRUE(Pool::remove(at("own.pool")));
  }
  EXPECT_EQ(get(*pool, 7), 8u) << "the child's stores are its own";
  for (std::uint64_t i = 100; i < 300; ++i) ASSERT_TRUE(put(*pool, i, i + 1));
  EXPECT_TRUE(pool->close());
  pool.reset();
  const auto again = Pool::open(path_);
  ASSERT_TRUE(again) << again.error().message;
  for (std::uint64_t i = 0; i < 300; ++i) ASSERT_EQ(get(*again, i), i + 1);
}

TEST_F(PoolLife, media_of_shared_memory_know_a_fork) {
  const ProcessMedia process;
  const DirectMedia direct;
  const EadrMedia eadr;
  const Pool pool = make(path_);  // From the first pool on.
  EXPECT_TRUE(process.ok() && direct.ok() && eadr.ok());
  EXPECT_EQ(in_child([&] { return process.ok() || direct.ok() || eadr.ok() ? 1 : 0; }), 0);
}

TEST_F(PoolLife, is_not_locked_by_a_worker_that_outlives_its_killed_parent) {
  std::array<int, 2> ends{};
  ASSERT_EQ(pipe(ends.data()), 0);
  const pid_t parent = fork();
  if (parent == 0) {
    const Pool pool = make(path_);
    for (std::uint64_t i = 0; i < 100; ++i) {
      if (!put(pool, i, i + 1)) _exit(1);
    }
    if (fork() == 0) {
      const pid_t worker = getpid();
      if (write(ends[1], &worker, sizeof worker) != sizeof worker) _exit(1);
    }
    sleep(30);  // Both: they are killed.
    _exit(0);
  }
  ::close(ends[1]);
  pid_t worker = -1;
  ASSERT_EQ(read(ends[0], &worker, sizeof worker), static_cast<ssize_t>(sizeof worker));
  ASSERT_EQ(kill(parent, SIGKILL), 0);
  waitpid(parent, nullptr, 0);
  {
    const auto pool = Pool::open(path_);
    EXPECT_TRUE(pool) << pool.error().message;
    if (pool) {
      for (std::uint64_t i = 0; i < 100; ++i) EXPECT_EQ(get(*pool, i), i + 1);
    }
  }
  EXPECT_EQ(kill(worker, 0), 0) << "it lives";
  kill(worker, SIGKILL);
  ::close(ends[0]);
}

TEST_F(PoolLife, forks_beside_threads_that_work_on_it) {
  const Pool pool = make(path_, {.bytes = kPoolBytes, .journal_bytes = 65536});
  std::atomic<bool> ends = false;
  std::vector<std::thread> threads;
  for (std::uint64_t t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      Pool& mine = const_cast<Pool&>(pool);
      for (std::uint64_t i = 0; !ends; ++i) {
        EXPECT_TRUE(put(pool, t * 1000 + i % 1000, i));
        const std::string name = "t" + std::to_string(t);
        if (i % 50 != 0) continue;
        EXPECT_TRUE(mine.create_regions(std::array{RegionSpec{name, 4096}}));
        EXPECT_TRUE(mine.remove_region(name));
      }
    });
  }
  for (int i = 0; i < 40; ++i) {
    ASSERT_EQ(in_child([&] {
                alarm(20);
                return put(pool, 0, 1) || pool.status() ? 1 : 0;
              }),
              0);
  }
  ends = true;
  for (std::thread& thread : threads) thread.join();
}

TEST_F(PoolLife, is_read_by_many_and_written_by_nobody_then) {
  ASSERT_EQ(in_child([&] {
              const Pool& pool = make_and_leave(path_);
              for (std::uint64_t i = 0; i < 100; ++i) {
                if (!put(pool, i, i + 1)) return 1;
              }
              // What the kernel has not written yet: the pages lack what the journal has.
              for (std::uint64_t i = 50; i < 100; ++i) word(pool, i).store(0);
              return 0;
            }),
            0);
  ASSERT_EQ(chmod(path_.c_str(), 0444), 0);
  const auto contents = [this] {
    std::ifstream file(path_, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
  };
  const std::string before = contents();
  {
    const auto one = Pool::open_read_only(path_);
    ASSERT_TRUE(one) << one.error().message;
    auto two = Pool::open_read_only(path_);
    ASSERT_TRUE(two) << two.error().message;
    for (std::uint64_t i = 0; i < 100; ++i) {
      EXPECT_EQ(get(*one, i), i + 1);
      EXPECT_EQ(get(*two, i), i + 1);
    }
    EXPECT_TRUE(one->read_only());
    EXPECT_EQ(Pool::open(path_).error().code, ErrorCode::kAlreadyOpen);
    EXPECT_EQ(two->create_regions(std::array{RegionSpec{"x", 4096}}).error().code, ErrorCode::kReadOnly);
    EXPECT_EQ(two->remove_region("r").error().code, ErrorCode::kReadOnly);
    with_media(*two, MediaKind::kFile, [&]<class M>(const M& media) {
      EXPECT_TRUE(kIsReadOnly<M>) << "structures refuse to change";
      media.store(Point{1}, word(*two, 0), 99);
    });
    EXPECT_EQ(get(*one, 0), 1u) << "a reader's stores are its own";
  }
  EXPECT_EQ(contents(), before);
  ASSERT_EQ(chmod(path_.c_str(), 0644), 0);
  const auto writer = Pool::open(path_);
  ASSERT_TRUE(writer) << writer.error().message;
  EXPECT_EQ(Pool::open_read_only(path_).error().code, ErrorCode::kAlreadyOpen);
  const auto looker = Pool::look(path_);
  ASSERT_TRUE(looker) << looker.error().message;
  EXPECT_TRUE(looker->beside_writer());
  EXPECT_EQ(get(*looker, 70), 71u);
}

// What looking beside a writer promises: each word is one that was stored, and none is older than what was acknowledged
// before the look began.
TEST_F(PoolLife, shows_a_looker_what_the_writer_has_acknowledged) {
  std::array<int, 2> ends{};
  ASSERT_EQ(pipe(ends.data()), 0);
  const pid_t writer = fork();
  if (writer == 0) {
    const Pool pool = make(path_, {.bytes = kPoolBytes, .journal_bytes = 65536});
    for (std::uint64_t i = 1;; ++i) {
      if (!put(pool, i % 100, i)) _exit(1);
      if (write(ends[1], &i, sizeof i) != sizeof i) _exit(0);
    }
  }
  ::close(ends[1]);
  std::uint64_t acknowledged = 0;
  for (int look = 0; look < 30; ++look) {
    for (int i = 0; i < 50; ++i) ASSERT_EQ(read(ends[0], &acknowledged, 8), 8);
    const auto pool = Pool::look(path_);
    ASSERT_TRUE(pool) << pool.error().message;
    EXPECT_TRUE(pool->beside_writer());
    for (std::uint64_t line = 0; line < 100; ++line) {
      const std::uint64_t value = get(*pool, line);
      ASSERT_TRUE(value == 0 || value % 100 == line) << value;
      ASSERT_GE(value + 100, acknowledged);
    }
  }
  kill(writer, SIGKILL);
  waitpid(writer, nullptr, 0);
  ::close(ends[0]);
}

TEST_F(PoolLife, that_nobody_has_open_is_copied_as_it_is) {
  for (const bool killed : {false, true}) {
    ASSERT_EQ(in_child([&] {
                Pool& pool = make_and_leave(path_);
                for (std::uint64_t i = 0; i < 100; ++i) {
                  if (!put(pool, i, i + 1)) return 1;
                }
                return killed || pool.close() ? 0 : 2;
              }),
              0);
    ASSERT_TRUE(Pool::copy(path_, at("copy.pool")));
    EXPECT_EQ(Pool::copy(path_, at("copy.pool")).error().code, ErrorCode::kAlreadyExists);
    {
      const auto copy = Pool::open(at("copy.pool"));
      ASSERT_TRUE(copy) << copy.error().message;
      for (std::uint64_t i = 0; i < 100; ++i) ASSERT_EQ(get(*copy, i), i + 1);
      EXPECT_EQ(Pool::copy(at("copy.pool"), at("third")).error().code, ErrorCode::kAlreadyOpen);
    }
    ASSERT_TRUE(Pool::remove(at("copy.pool")));
    ASSERT_TRUE(Pool::remove(path_));
  }
  EXPECT_EQ(Pool::copy(path_, at("copy.pool")).error().code, ErrorCode::kNotFound);
}

// Two words on different pages: the second is stored after the first is durable, so no copy may have the second alone.
TEST_F(PoolLife, is_copied_in_the_state_of_one_moment_while_others_work) {
  constexpr std::uint64_t kThreads = 3, kPairs = 16;
  using Acknowledged = std::array<std::array<std::uint64_t, kPairs>, kThreads>;
  const auto first = [](std::uint64_t t, std::uint64_t pair) { return t * 64 + pair; };
  const auto second = [](std::uint64_t t, std::uint64_t pair) { return kLines - 1 - t * 64 - pair; };
  // libpmemobj opens no copy beside what it is a copy of, nor in a child of that process: a process from before.
  std::array<int, 2> asks{}, answers{};
  ASSERT_EQ(pipe(asks.data()), 0);
  ASSERT_EQ(pipe(answers.data()), 0);
  const pid_t opener = fork();
  if (opener == 0) {
    ::close(asks[1]);
    Acknowledged before{};
    while (read(asks[0], &before, sizeof before) == static_cast<ssize_t>(sizeof before)) {
      char wrong = 0;
      auto copy = Pool::open(at("copy.pool"));
      if (!copy) wrong = 1;
      for (std::uint64_t t = 0; copy && t < kThreads; ++t) {
        for (std::uint64_t pair = 0; pair < kPairs; ++pair) {
          const std::uint64_t a = get(*copy, first(t, pair)), b = get(*copy, second(t, pair));
          if (std::min(a, b) < before[t][pair]) wrong = 2;
          // The younger of the two was stored first in its turn.
          if (a != b && (std::max(a, b) / kPairs % 2 == 0) != (a > b)) wrong = 3;
        }
      }
      if (copy && !copy->close()) wrong = 4;
      if (write(answers[1], &wrong, 1) != 1) break;
    }
    _exit(0);
  }
  const Pool pool = make(path_, {.bytes = kPoolBytes, .journal_bytes = 65536});
  std::array<std::array<std::atomic<std::uint64_t>, kPairs>, kThreads> acknowledged{};
  std::atomic<bool> ends = false;
  std::vector<std::thread> threads;
  for (std::uint64_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::vector<std::byte> longer(20000, static_cast<std::byte>(t));
      for (std::uint64_t i = 1; !ends; ++i) {
        const std::uint64_t pair = i % kPairs;
        // On either side of the copy's way.
        const bool up = i / kPairs % 2 == 0;
        ASSERT_TRUE(put(pool, up ? first(t, pair) : second(t, pair), i));
        ASSERT_TRUE(put(pool, up ? second(t, pair) : first(t, pair), i));
        acknowledged[t][pair] = i;
        if (i % 100 == 0) {
          const FileMedia media = pool.file_media();
          media.write(Point{1}, pool.open_region("r")->at((1000 + t * 500) * kLineBytes), longer.data(), longer.size());
          media.fence(Point{1});
        }
      }
    });
  }
  for (int round = 0; round < 6; ++round) {
    Acknowledged before{};
    for (std::uint64_t t = 0; t < kThreads; ++t) {
      for (std::uint64_t pair = 0; pair < kPairs; ++pair) before[t][pair] = acknowledged[t][pair];
    }
    const Status copied = pool.copy_to(at("copy.pool"));
    EXPECT_TRUE(copied) << copied.error().message;
    char wrong = 9;
    EXPECT_EQ(write(asks[1], &before, sizeof before), static_cast<ssize_t>(sizeof before));
    EXPECT_EQ(read(answers[0], &wrong, 1), 1);
    EXPECT_EQ(wrong, 0) << "round " << round;
    EXPECT_TRUE(Pool::remove(at("copy.pool")));
  }
  ends = true;
  for (std::thread& thread : threads) thread.join();
  for (const int end : {asks[0], asks[1], answers[0], answers[1]}) ::close(end);
  waitpid(opener, nullptr, 0);
}

// --- Errors of the disk.

TEST_F(PoolLife, remembers_that_a_write_back_has_failed) {
  FailingFiles files;
  std::optional<Pool> pool = make(path_, {.bytes = kPoolBytes, .journal_bytes = 65536});
  std::uint64_t acknowledged = 0;
  while (!pool->file_media().has_journal()) {
    ASSERT_TRUE(put(*pool, acknowledged % 100, acknowledged + 1));
    ++acknowledged;
  }
  files.fail(FailingFiles::kFdatasync, 1);  // In the background, once.
  while (put(*pool, acknowledged % 100, acknowledged + 1)) {
    ++acknowledged;
    ASSERT_LT(acknowledged, 1000u);
  }
  EXPECT_EQ(files.failed(), 1);
  EXPECT_EQ(pool->status().error().code, ErrorCode::kIo);
  // Nothing is acknowledged any more, by anything.
  EXPECT_FALSE(put(*pool, 1, 1));
  EXPECT_EQ(pool->create_regions(std::array{RegionSpec{"x", 4096}}).error().code, ErrorCode::kIo);
  EXPECT_EQ(pool->remove_region("r").error().code, ErrorCode::kIo);
  EXPECT_EQ(pool->copy_to(at("copy")).error().code, ErrorCode::kIo);
  // And no store reaches the file.
  word(*pool, 99).store(12345678);
  const Status closed = pool->close();
  ASSERT_FALSE(closed);
  EXPECT_EQ(closed.error().code, ErrorCode::kIo);
  EXPECT_EQ(pool->close().error().code, ErrorCode::kIo) << "and again";
  pool.reset();
  const auto again = Pool::open(path_);
  ASSERT_TRUE(again) << again.error().message;
  for (std::uint64_t i = acknowledged > 100 ? acknowledged - 100 : 0; i < acknowledged; ++i)
    ASSERT_EQ(get(*again, i % 100), i + 1);
}

TEST_F(PoolLife, acknowledges_nothing_after_any_call_that_fails) {
  using Failure = std::pair<FailingFiles::Call, int>;
  for (const auto& [call, error] : {Failure{FailingFiles::kPwrite, EIO}, Failure{FailingFiles::kDurable, EIO},
                                    Failure{FailingFiles::kDurable, ENOSPC}, Failure{FailingFiles::kFdatasync, EIO},
                                    Failure{FailingFiles::kFdatasync, ENOSPC}, Failure{FailingFiles::kMsync, EIO},
                                    Failure{FailingFiles::kOpen, EIO}}) {
    for (int nth = 1; nth <= 40; nth += nth < 5 ? 1 : 12) {
      std::uint64_t acknowledged = 0;
      bool failed = false;
      {
        FailingFiles files;
        Pool pool = make(path_, {.bytes = kPoolBytes, .journal_bytes = 65536});
        const std::vector<std::byte> longer(20000, std::byte{1});
        files.fail(call, nth, error);
        for (std::uint64_t i = 0; i < 150; ++i) {
          const bool done = put(pool, i % 100, i + 1);
          if (done) {
            ASSERT_EQ(acknowledged, i) << "acknowledged after an error";
            acknowledged = i + 1;
          }
          if (i % 20 == 0 && done) {
            const FileMedia media = pool.file_media();
            media.write(Point{1}, pool.open_region("r")->at(2000 * kLineBytes), longer.data(), longer.size());
            media.fence(Point{1});
          }
          failed = files.failed() != 0;
        }
        // Opening a second way to the file may fail: then there is no journal, which is as safe.
        if (failed && call != FailingFiles::kOpen) {
          ASSERT_FALSE(pool.status());
        }
        const Status closed = pool.close();
        failed = files.failed() != 0;
        if (call != FailingFiles::kOpen) {
          ASSERT_EQ(closed.has_value(), !failed);
        }
      }
      const auto again = Pool::open(path_);
      ASSERT_TRUE(again) << again.error().message << " after call " << call << ", " << nth;
      for (std::uint64_t i = acknowledged > 100 ? acknowledged - 100 : 0; i < acknowledged; ++i)
        ASSERT_GE(get(*again, i % 100), i + 1);
      std::filesystem::remove(path_);
      if (!failed) break;  // There are no more calls of the kind.
    }
  }
}

TEST_F(PoolLife, opens_after_an_opening_that_failed_as_if_that_had_not_been) {
  ASSERT_EQ(in_child([&] {
              const Pool& pool = make_and_leave(path_);
              for (std::uint64_t i = 0; i < 100; ++i) {
                if (!put(pool, i, i + 1)) return 1;
              }
              return 0;
            }),
            0);
  for (const bool closed : {false, true}) {
    for (const auto call : {FailingFiles::kPwrite, FailingFiles::kFdatasync, FailingFiles::kFsync}) {
      for (int nth = 1; nth <= 8; ++nth) {
        FailingFiles files;
        files.fail(call, nth);
        const auto pool = Pool::open(path_);
        if (files.failed() == 0) break;
        ASSERT_FALSE(pool) << call << ", " << nth;
        EXPECT_EQ(pool.error().code, ErrorCode::kIo) << pool.error().message;
      }
      if (!closed) continue;
      FailingFiles files;
      auto pool = Pool::open(path_);
      ASSERT_TRUE(pool) << pool.error().message;
      files.fail(call, 1);
      const Status sealed = pool->close();
      EXPECT_EQ(files.failed() == 0, sealed.has_value()) << "closing says that the seal has failed";
    }
    const auto pool = Pool::open(path_);
    ASSERT_TRUE(pool) << pool.error().message;
    for (std::uint64_t i = 0; i < 100; ++i) ASSERT_EQ(get(*pool, i), i + 1);
  }
}

// What a process could not sync stands in the page cache as if it were on the disk. So every opening writes the head.
TEST_F(PoolLife, writes_its_head_at_every_opening_whatever_it_says) {
  { (void)make(path_); }
  struct Counting : FileSystem {
    int writes = 0, syncs = 0;
    Counting() { set_file_system(this); }
    ~Counting() override { set_file_system(nullptr); }
    bool pwrite(int fd, const void* from, std::size_t bytes, std::uint64_t offset) noexcept override {
      ++writes;
      return FileSystem::pwrite(fd, from, bytes, offset);
    }
    int fdatasync(int fd) noexcept override {
      ++syncs;
      return FileSystem::fdatasync(fd);
    }
  };
  for (const bool closed : {true, false}) {
    const int status = in_child([&] {
      Counting counting;
      auto pool = Pool::open(path_);
      if (!pool || counting.writes != 1 || counting.syncs != 2) return 1;
      return !closed || pool->close() ? 0 : 2;
    });
    ASSERT_EQ(status, 0);
  }
}

TEST_F(PoolLife, survives_a_page_that_can_not_be_read) {
  std::optional<Pool> pool = make(path_);
  for (std::uint64_t i = 0; i < 100; ++i) ASSERT_TRUE(put(*pool, i, i + 1));
  // The end of the file is gone, under its mapping.
  Region region = *pool->open_region("r");
  std::ifstream file(path_, std::ios::binary);
  const std::string bytes(std::istreambuf_iterator<char>(file), {});
  std::size_t offset = 0;
  while (offset < bytes.size() && std::memcmp(bytes.data() + offset, region.at(0), 4096) != 0) offset += 4096;
  ASSERT_LT(offset, bytes.size());
  ASSERT_EQ(truncate(path_.c_str(), static_cast<off_t>(offset)), 0);
  EXPECT_EQ(*reinterpret_cast<volatile std::uint64_t*>(region.at(0)), 0u);
  EXPECT_FALSE(put(*pool, 1, 1));
  EXPECT_EQ(pool->status().error().code, ErrorCode::kIo);
  EXPECT_EQ(pool->close().error().code, ErrorCode::kIo);
}

TEST_F(PoolLife, leaves_faults_of_others_to_others) {
  EXPECT_EQ(in_child([&] {
              const Pool pool = make(path_);
              const int file = ::open(at("other").c_str(), O_RDWR | O_CREAT, 0600);
              const MappedFile mapped(file, 4096, 3, 1);
              return static_cast<int>(mapped.bytes()[0]);
            }),
            256 + SIGBUS);
  EXPECT_EQ(in_child([&] {
              struct sigaction own {};
              own.sa_handler = [](int) { _exit(42); };
              sigaction(SIGBUS, &own, nullptr);
              const Pool pool = make(at("q.pool"));
              const int file = ::open(at("other").c_str(), O_RDWR | O_CREAT, 0600);
              const MappedFile mapped(file, 4096, 3, 1);
              return static_cast<int>(mapped.bytes()[0]);
            }),
            42);
}

TEST_F(PoolLife, ends_the_process_at_an_error_where_that_is_wished_for) {
  EXPECT_EQ(in_child([&] {
              FailingFiles files;
              const Pool pool = make(path_, {.bytes = kPoolBytes, .abort_on_error = true});
              files.fail(FailingFiles::kMsync, 1);
              (void)put(pool, 1, 1);
              return 0;
            }),
            256 + SIGABRT);
}

// --- Life of the process.

std::optional<Pool>& global_pool() {
  static std::optional<Pool> pool;
  return pool;
}

TEST_F(PoolLife, may_be_closed_by_the_destructor_of_a_global_object) {
  std::filesystem::path kept = folder_;
  EXPECT_EQ(in_child([&] {
              struct Closes {
                ~Closes() {
                  if (!put(*global_pool(), 1, 77)) _exit(3);
                  if (!global_pool()->close()) _exit(4);
                  global_pool().reset();
                }
              };
              (void)global_pool();
              static Closes closes;
              global_pool().emplace(make(path_));
              for (std::uint64_t i = 0; i < 100; ++i) {
                if (!put(*global_pool(), i, i)) return 2;
              }
              exit(0);  // Not _exit: with destructors.
              return 0;
            }),
            0);
  const auto pool = Pool::open(path_);
  ASSERT_TRUE(pool) << pool.error().message;
  EXPECT_EQ(get(*pool, 1), 77u);
}

TEST_F(PoolLife, keeps_nothing_of_threads_that_have_ended) {
  const Pool pool = make(path_);
  // Each thread leaves something noted; thousands of them share the few numbers that threads have at once.
  for (int i = 0; i < 2000; ++i) {
    std::thread([&] {
      const FileMedia media = pool.file_media();
      media.flush(Point{1}, &word(pool, static_cast<std::uint64_t>(i)));
    }).join();
  }
  EXPECT_TRUE(put(pool, 1, 1));
  // One fence has made durable what all of them had noted: they were all the same number.
  EXPECT_EQ(pool.file_media().fences(), 1u);
}

// --- Pools of version 2, whose journal lay beside them. The files were made by the library of that version: a region
// "r" of 64 pages whose line i, from 1 to 100, says 1000 i + 7. Of the killed one the last 30 lines are in the journal
// alone.

void unpack(const std::string& name, const std::string& to) {
  gzFile from = gzopen((std::string(DUNNOCK_SOURCE_DIR) + "/tests/pmem/data/" + name).c_str(), "rb");
  ASSERT_NE(from, nullptr);
  std::ofstream file(to, std::ios::binary);
  std::vector<char> piece(1 << 20);
  for (int got = 0; (got = gzread(from, piece.data(), static_cast<unsigned>(piece.size()))) > 0;)
    file.write(piece.data(), got);
  gzclose(from);
}

TEST_F(PoolLife, of_version_2_becomes_one_file) {
  for (const bool interrupted : {false, true}) {
    for (const bool killed : {false, true}) {
      unpack(killed ? "v2_killed.pool.gz" : "v2_closed.pool.gz", path_);
      if (killed) unpack("v2_killed.pool.journal.gz", path_ + ".journal");
      {
        const auto reader = Pool::open_read_only(path_);
        ASSERT_TRUE(reader) << reader.error().message;
        for (std::uint64_t i = 1; i <= 100; ++i) ASSERT_EQ(get(*reader, i), i * 1000 + 7);
      }
      EXPECT_EQ(Pool::copy(path_, at("copy")).has_value(), !killed);
      std::filesystem::remove(at("copy"));
      {
        // The first opening is interrupted anywhere; the next one goes on.
        for (int nth = 1; interrupted && nth <= 2; ++nth) {
          FailingFiles files;
          files.fail(FailingFiles::kFdatasync, nth);
          EXPECT_FALSE(Pool::open(path_));
        }
        const auto pool = Pool::open(path_);
        ASSERT_TRUE(pool) << pool.error().message;
        for (std::uint64_t i = 1; i <= 100; ++i) ASSERT_EQ(get(*pool, i), i * 1000 + 7);
        for (std::uint64_t i = 0; i < 60; ++i) ASSERT_TRUE(put(*pool, 0, i));
        EXPECT_TRUE(pool->file_media().has_journal());
      }
      if (interrupted)
        std::filesystem::remove(path_ + ".journal");  // It may stay, and nobody needs it.
      else
        EXPECT_EQ(names(), std::set<std::string>{"p.pool"}) << "its journal is in it";
      const auto again = Pool::open(path_);
      ASSERT_TRUE(again) << again.error().message;
      for (std::uint64_t i = 1; i <= 100; ++i) ASSERT_EQ(get(*again, i), i * 1000 + 7);
      std::filesystem::remove(path_);
    }
  }
}

/// What the opening of a pool asks of the operating system, in its order.
class RecordingFiles : public FileSystem {
 public:
  struct Event {
    enum class Kind { kWrite, kSync, kUnlink } kind;
    std::uint64_t offset = 0;
    std::string data{};
  };
  RecordingFiles() { set_file_system(this); }
  ~RecordingFiles() override { set_file_system(nullptr); }
  bool pwrite(int fd, const void* from, std::size_t bytes, std::uint64_t offset) noexcept override {
    events.push_back({Event::Kind::kWrite, offset, std::string(static_cast<const char*>(from), bytes)});
    return FileSystem::pwrite(fd, from, bytes, offset);
  }
  int fdatasync(int fd) noexcept override {
    events.push_back({Event::Kind::kSync});
    return FileSystem::fdatasync(fd);
  }
  int unlink(int directory, const char* name) noexcept override {
    events.push_back({Event::Kind::kUnlink});
    return FileSystem::unlink(directory, name);
  }
  std::vector<Event> events;
};

/// Each power failure while a killed pool of version 2 is opened leaves one that can be opened, with all that it held:
/// any sectors of the writes that no sync has made durable, and the name of the journal or not. Without the sync
/// between the replayed lines and the head that forgets the journal, lines are lost.
TEST_F(PoolLife, of_version_2_is_upgraded_through_power_failures) {
  using Kind = RecordingFiles::Event::Kind;
  const auto contents = [](const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
  };
  unpack("v2_killed.pool.gz", path_);
  unpack("v2_killed.pool.journal.gz", path_ + ".journal");
  const std::string before = contents(path_), journal = contents(path_ + ".journal");
  std::vector<RecordingFiles::Event> events;
  {
    RecordingFiles files;
    ASSERT_TRUE(Pool::open(path_));
    events = files.events;
  }
  const auto last = std::find_if(events.begin(), events.end(),
                                 [](const RecordingFiles::Event& event) { return event.kind == Kind::kUnlink; });
  ASSERT_NE(last, events.end());
  events.erase(last + 1, events.end());  // What follows is no part of it.

  auto random = test::generator(5);
  const std::string image = at("image.pool");
  unsigned images = 0;
  const auto is_sound = [&](const std::string& bytes, bool with_journal) {
    ++images;
    std::ofstream(image, std::ios::binary) << bytes;
    std::filesystem::remove(image + ".journal");
    if (with_journal) std::ofstream(image + ".journal", std::ios::binary) << journal;
    const auto pool = Pool::open(image);
    if (!pool) return false;
    for (std::uint64_t i = 1; i <= 100; ++i) {
      if (get(*pool, i) != i * 1000 + 7) return false;
    }
    return true;
  };
  constexpr std::size_t kSector = 512;
  /// Is every image sound when these syncs are done? `dropped`: one of them is not.
  const auto all_sound = [&](std::size_t dropped) {
    std::string durable = before;
    std::vector<const RecordingFiles::Event*> pending;
    std::size_t syncs = 0;
    for (const auto& event : events) {
      if (event.kind == Kind::kSync && syncs++ != dropped) {
        for (const auto* write : pending) durable.replace(write->offset, write->data.size(), write->data);
        pending.clear();
      }
      if (event.kind == Kind::kWrite) pending.push_back(&event);
      // Which sectors of the pending writes have reached the disk: none, all, those of the last write alone (a write
      // that overtook all others), all but those of the first, or any. The named ones find a missing sync for certain.
      enum Way { kNoSector, kAllSectors, kLastWrite, kAllButFirst, kAnySector, kWays = kAnySector + 4 };
      for (int way = 0; way < kWays; ++way) {
        std::string bytes = durable;
        for (const auto* write : pending) {
          const std::size_t end = write->offset + write->data.size();
          for (std::size_t at = write->offset; at < end;) {
            const std::size_t next = std::min(end, (at / kSector + 1) * kSector);
            const bool there = way == kNoSector      ? false
                               : way == kAllSectors  ? true
                               : way == kLastWrite   ? write == pending.back()
                               : way == kAllButFirst ? write != pending.front()
                                                     : random() % 2 == 0;
            if (there) bytes.replace(at, next - at, write->data, at - write->offset, next - at);
            at = next;
          }
        }
        if (!is_sound(bytes, event.kind != Kind::kUnlink || way % 2 == 0)) return false;
      }
    }
    return true;
  };
  constexpr std::size_t kNone = ~std::size_t{0};
  EXPECT_TRUE(all_sound(kNone));
  EXPECT_GE(images, 24u);
  EXPECT_FALSE(all_sound(0)) << "the lines are durable before the head forgets the journal";
}

TEST_F(PoolLife, of_version_2_needs_its_own_journal) {
  unpack("v2_killed.pool.gz", path_);
  EXPECT_EQ(Pool::open(path_).error().code, ErrorCode::kCorrupt) << "it is missing";
  unpack("v2_killed.pool.journal.gz", path_ + ".journal");
  {
    std::fstream file(path_ + ".journal", std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(8);
    file.write("another!", 8);
  }
  EXPECT_EQ(Pool::open(path_).error().code, ErrorCode::kCorrupt);
  EXPECT_TRUE(std::filesystem::exists(path_ + ".journal")) << "nothing is thrown away";
  // Removing the pool leaves what is not its own.
  ASSERT_TRUE(Pool::remove(path_));
  EXPECT_EQ(names(), std::set<std::string>{"p.pool.journal"});
}

// --- What comes from outside: bits, links, sizes, forks.

TEST_F(PoolLife, is_copied_while_its_journal_begins) {
  { const Pool pool = make(path_); }
  for (int round = 0; round < 5; ++round) {
    auto opened = Pool::open(path_);
    ASSERT_TRUE(opened) << opened.error().message;
    const Pool pool = std::move(*opened);
    ASSERT_FALSE(pool.file_media().has_journal());
    std::thread writer([&] {
      for (std::uint64_t i = 0; i < 100; ++i) EXPECT_TRUE(put(pool, i, i + 1));
    });
    Status copied = pool.copy_to(at("copy"));
    EXPECT_TRUE(copied) << copied.error().message;
    writer.join();
    ASSERT_TRUE(Pool::remove(at("copy")));
  }
}

TEST_F(PoolLife, finds_any_flipped_bit_of_where_its_journal_is) {
  {
    Pool pool = make(path_);
    for (std::uint64_t i = 0; i < 100; ++i) ASSERT_TRUE(put(pool, i, i + 1));
    ASSERT_TRUE(pool.file_media().has_journal());
    ASSERT_TRUE(pool.close());
  }
  std::fstream file(path_, std::ios::in | std::ios::out | std::ios::binary);
  std::uint64_t root = 0;
  file.seekg(detail::kRootOffsetAt);
  file.read(reinterpret_cast<char*>(&root), sizeof root);
  const auto place = static_cast<std::streamoff>(root + offsetof(detail::PoolHead, journal_allocation));
  std::uint64_t word = 0;
  file.seekg(place);
  file.read(reinterpret_cast<char*>(&word), sizeof word);
  ASSERT_NE(word, 0u);
  for (unsigned bit = 0; bit < 64; ++bit) {
    const std::uint64_t flipped = word ^ 1ULL << bit;
    file.seekp(place);
    file.write(reinterpret_cast<const char*>(&flipped), sizeof flipped);
    file.flush();
    const auto opened = Pool::open(path_);
    EXPECT_FALSE(opened) << bit;
    if (!opened) {
      EXPECT_EQ(opened.error().code, ErrorCode::kCorrupt) << opened.error().message;
    }
  }
  file.seekp(place);
  file.write(reinterpret_cast<const char*>(&word), sizeof word);
  file.flush();
  EXPECT_TRUE(Pool::open(path_));
}

TEST_F(PoolLife, answers_io_when_its_file_is_cut_off) {
  for (const std::uint64_t length : {std::uint64_t{0}, std::uint64_t{4096}, kPoolBytes - 4096}) {
    { const Pool pool = make(path_); }
    ASSERT_EQ(in_child([&] {
                auto pool = Pool::open(path_);
                if (!pool) return 1;
                std::filesystem::resize_file(path_, length);
                if (pool->create_regions(std::array{RegionSpec{"x", 4096}})) return 2;
                if (pool->remove_region("r")) return 3;
                if (pool->copy_to(at("copy"))) return 4;
                if (pool->status().error().code != ErrorCode::kIo) return 5;
                return pool->close() ? 6 : 0;
              }),
              0)
        << length;
    ASSERT_EQ(in_child([&] {
                std::filesystem::remove(path_);
                Pool pool = make(path_);
                std::filesystem::resize_file(path_, length);
                return pool.close() ? 7 : 0;
              }),
              0)
        << length;
    std::filesystem::remove(path_);
  }
}

TEST_F(PoolLife, is_not_created_where_a_link_leads_nowhere) {
  std::filesystem::create_symlink("nowhere", at("link"));
  EXPECT_EQ(Pool::open_or_create(at("link"), {.bytes = kPoolBytes}).error().code, ErrorCode::kAlreadyExists);
  EXPECT_FALSE(Pool::open_or_create("", {.bytes = kPoolBytes}));
}

TEST_F(PoolLife, refuses_modes_journals_and_regions_that_can_not_be) {
  for (const mode_t mode : {0U, 0200U, 0400U, 0444U, 01600U, 07777U}) {
    EXPECT_EQ(Pool::create(path_, {.bytes = kPoolBytes, .mode = mode}).error().code, ErrorCode::kInvalidArgument)
        << mode;
  }
  EXPECT_EQ(Pool::create(path_, {.bytes = kPoolBytes, .journal_bytes = 1ULL << 40}).error().code,
            ErrorCode::kInvalidArgument);
  Pool pool = make(path_);
  for (const RegionSpec& spec : {RegionSpec{"x", ~0ULL, 1ULL << 63}, RegionSpec{"x", (1ULL << 63) + 1, 1ULL << 63},
                                 RegionSpec{"x", ~0ULL, 4096}})
    EXPECT_FALSE(pool.create_regions(std::array{spec}));
  EXPECT_EQ(pool.regions().size(), 1u);
}

TEST_F(PoolLife, creates_nothing_in_a_child_while_another_thread_does) {
  Pool pool = make(path_);
  std::atomic<bool> holds{false}, ends{false};
  std::thread creator([&] {
    const PendingRegions pending(pool);
    holds = true;
    while (!ends) std::this_thread::yield();
  });
  while (!holds) std::this_thread::yield();
  EXPECT_EQ(in_child([&] {
              alarm(20);  // It must not hang.
              PendingRegions pending(pool);
              if (pending.create(std::array{RegionSpec{"x", 4096}})) return 1;
              return pending.finish({}) ? 2 : 0;
            }),
            0);
  ends = true;
  creator.join();
}

/// Children that are born while pools are opened, closed, copied and removed keep none of them locked.
TEST_F(PoolLife, is_not_locked_by_children_of_any_moment) {
  { const Pool pool = make(path_); }
  std::atomic<bool> ends{false};
  std::vector<pid_t> children;
  std::thread forks([&] {
    while (!ends && children.size() < 100) {
      const pid_t child = fork();
      if (child == 0) {
        pause();
        _exit(0);
      }
      children.push_back(child);
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
  });
  for (int round = 0; round < 25; ++round) {
    {
      const auto pool = Pool::open(path_);
      EXPECT_TRUE(pool) << pool.error().message;
    }
    {
      const auto pool = Pool::open_read_only(path_);
      EXPECT_TRUE(pool) << pool.error().message;
    }
    Status copied = Pool::copy(path_, at("copy"));
    EXPECT_TRUE(copied) << copied.error().message;
    Status removed = Pool::remove(at("copy"));
    EXPECT_TRUE(removed) << removed.error().message;
  }
  ends = true;
  forks.join();
  for (const pid_t child : children) {
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
  }
}

}  // namespace
}  // namespace dunnock
