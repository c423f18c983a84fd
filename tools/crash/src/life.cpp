#include "life.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "dunnock/base/file.hpp"
#include "dunnock/pmem/pool.hpp"

namespace dunnock::crash {
namespace {

constexpr std::uint64_t kSector = 512;
constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kPoolBytes = 16 << 20;
constexpr std::uint64_t kJournalBytes = 64 << 10;
constexpr std::size_t kRegions = 3;
constexpr std::size_t kLines = 8;  // that are written in each
constexpr std::array<const char*, kRegions> kNames{"a", "b", "c"};

/// What a crashed pool must and may hold.
struct Expected {
  std::array<bool, kRegions> must{}, may{};  // be there
  struct Line {
    std::uint64_t least, most;
  };
  std::array<std::array<Line, kLines>, kRegions> lines{};
};

/// What the processes share.
struct Shared {
  LifeResult result;
  Expected expected;
  bool also_go_on;   // The opener writes a little, closes and opens once more.
  char answer[300];  // of the opener
  bool crashed;      // `start` is a crashed pool, and the state after it:
  Expected start_expected;
  alignas(kPage) std::byte image[kPoolBytes];
  alignas(kPage) std::byte start[kPoolBytes];
};

/// Where files of this process go: into memory where that is possible.
std::filesystem::path folder_of(const char* what) {
  namespace fs = std::filesystem;
  std::error_code none;
  const fs::path memory = "/dev/shm";
  return (fs::is_directory(memory, none) ? memory : fs::temp_directory_path()) /
         ("dunnock-" + std::string(what) + "-" + std::to_string(getpid()));
}

Word& word_of(const Region& region, std::size_t line) {
  return *reinterpret_cast<Word*>(region.at(line * 8 * kLineBytes));
}

// ----- the process that opens images ------------------------------------------------------------------------------

std::string look_at(const Expected& expected, const std::string& path, bool go_on) {
  auto pool = Pool::open(path, {.journal_bytes = kJournalBytes, .catch_sigbus = false});
  if (!pool) return "it can't be opened: " + pool.error().message;
  for (std::size_t r = 0; r < kRegions; ++r) {
    auto region = pool->open_region(kNames[r]);
    if (!region && region.error().code != ErrorCode::kNotFound) return region.error().message;
    if (!region && expected.must[r]) return std::string("region ") + kNames[r] + " is lost";
    if (region && !expected.may[r]) return std::string("region ") + kNames[r] + " exists, although it must not";
    for (std::size_t line = 0; region && line < kLines; ++line) {
      const std::uint64_t value = word_of(*region, line).load();
      const auto [least, most] = expected.lines[r][line];
      if (value < least || value > most)
        return std::string("line ") + std::to_string(line) + " of region " + kNames[r] + " holds " +
               std::to_string(value) + ", expected " + std::to_string(least) + " to " + std::to_string(most);
    }
  }
  if (!go_on) return {};
  const FileMedia media = pool->file_media();
  auto fresh = pool->create_regions(std::array{RegionSpec{"fresh", 4096}});
  if (!fresh) return "no region can be created: " + fresh.error().message;
  for (int i = 1; i < 40; ++i) {
    Word& word = word_of(fresh->front(), 1);
    media.store(Point{}, word, static_cast<std::uint64_t>(i));
    media.flush(Point{}, &word);
    media.fence(Point{});
  }
  if (Status closed = pool->close(); !closed) return closed.error().message;
  auto again = Pool::open(path, {.journal_bytes = kJournalBytes, .catch_sigbus = false});
  if (!again) return "it can't be opened again: " + again.error().message;
  auto region = again->open_region("fresh");
  if (!region) return region.error().message;
  return word_of(*region, 1).load() == 39 ? std::string() : std::string("what was written after it is lost");
}

/// Opens the image whenever it is asked to.
[[noreturn]] void serve(int requests, int answers, Shared& shared) {
  const std::string path = folder_of("image.pool").string();
  const int file = ::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  void* mapped = MAP_FAILED;
  if (file >= 0 && ftruncate(file, kPoolBytes) == 0)
    mapped = mmap(nullptr, kPoolBytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (mapped == MAP_FAILED) _exit(3);
  auto* const bytes = static_cast<std::byte*>(mapped);
  for (char request = 0; read(requests, &request, 1) == 1;) {
    for (std::uint64_t at = 0; at < kPoolBytes; at += kPage) {
      if (std::memcmp(bytes + at, shared.image + at, kPage) != 0) std::memcpy(bytes + at, shared.image + at, kPage);
    }
    const std::string answer = look_at(shared.expected, path, shared.also_go_on);
    std::memset(shared.answer, 0, sizeof shared.answer);
    answer.copy(shared.answer, sizeof shared.answer - 1);
    if (write(answers, &request, 1) != 1) break;
  }
  unlink(path.c_str());
  _exit(0);
}

// ----- the process that lives -------------------------------------------------------------------------------------

class Life;
Life* living = nullptr;

/// One pool's file, on a disk that remembers.
class Life final : public FileSystem {
 public:
  Life(const LifeOptions& options, Shared& shared, int to_opener, int from_opener, std::uint64_t seed)
      : options_(options),
        shared_(shared),
        to_opener_(to_opener),
        from_opener_(from_opener),
        random_(seed),
        durable_(kPoolBytes),
        newest_(kPoolBytes),
        sectors_(kPoolBytes / kSector) {}

  // What the library asks. Each call looks first at what has changed since the last.
  int open(int directory, const char* path, int flags, mode_t mode) noexcept override {
    const int fd = FileSystem::open(directory, path, flags, mode);
    if (fd >= 0 && (flags & O_TMPFILE) == O_TMPFILE) new_file_ = fd;
    return fd;
  }
  int truncate(int fd, std::uint64_t bytes) noexcept override {
    const int status = FileSystem::truncate(fd, bytes);
    if (fd == new_file_ && status == 0) map(fd);
    return status;
  }
  bool pwrite(int fd, const void* from, std::size_t bytes, std::uint64_t offset) noexcept override {
    const bool fine = FileSystem::pwrite(fd, from, bytes, offset);
    moment();
    return fine;
  }
  bool pwrite_durably(int fd, const void* from, std::size_t bytes, std::uint64_t offset) noexcept override {
    const bool fine = FileSystem::pwrite_durably(fd, from, bytes, offset);
    sync(offset, bytes, false, "durable write");
    return fine;
  }
  int fsync(int fd) noexcept override {
    struct stat info {};
    if (fstat(fd, &info) == 0 && S_ISDIR(info.st_mode)) {
      moment();
      ++shared_.result.calls;
      if (!drops("folder")) name_durable_ = name_there_;
      return 0;
    }
    return fdatasync(fd);
  }
  int fdatasync(int) noexcept override {
    sync(0, kPoolBytes, true, "fdatasync");
    return 0;
  }
  int msync(void* address, std::size_t bytes) noexcept override { return synced_in_memory(address, bytes); }
  int name_file(int fd, int directory, const char* name) noexcept override {
    const int status = FileSystem::name_file(fd, directory, name);
    name_there_ = status == 0;
    moment();
    return status;
  }
  int unlink(int directory, const char* name) noexcept override {
    const int status = FileSystem::unlink(directory, name);
    if (status == 0) name_there_ = false;
    moment();
    return status;
  }

  /// Also of libpmemobj.
  int synced_in_memory(void* address, std::size_t bytes) noexcept {
    const auto* const at = static_cast<std::byte*>(address);
    // libpmemobj's mapping is another than ours, and where it is tells of no offset: the kernel does.
    const std::optional<std::uint64_t> offset = offset_of(at);
    if (!offset) return 0;
    sync(*offset, bytes, true, "msync");
    return 0;
  }

  /// The life. `crashed`: it begins with the pool in `start`.
  void run(bool crashed);

 private:
  struct Sector {
    std::vector<std::array<std::byte, kSector>> pending;
    std::size_t settled = 0;
  };

  void map(int fd) {
    // By a description of its own: a mapping keeps the locks of the one that it was made from.
    const UniqueFd own(::open(("/proc/self/fd/" + std::to_string(fd)).c_str(), O_RDONLY | O_CLOEXEC));
    void* const mapped = mmap(nullptr, kPoolBytes, PROT_READ, MAP_SHARED, own.get(), 0);
    file_ = mapped == MAP_FAILED ? nullptr : static_cast<const std::byte*>(mapped);
    struct stat info {};
    inode_ = fstat(fd, &info) == 0 ? info.st_ino : 0;
  }
  /// Where in the file the address is mapped from.
  [[nodiscard]] std::optional<std::uint64_t> offset_of(const void* address) noexcept {
    const auto wanted = reinterpret_cast<std::uintptr_t>(address);
    if (wanted >= cached_from_ && wanted < cached_to_) return wanted - cached_from_ + cached_offset_;
    std::FILE* const maps = std::fopen("/proc/self/maps", "re");
    if (maps == nullptr) return std::nullopt;
    char line[512];
    std::optional<std::uint64_t> found;
    while (std::fgets(line, sizeof line, maps) != nullptr) {
      unsigned long from = 0, to = 0, offset = 0, inode = 0;
      if (std::sscanf(line, "%lx-%lx %*s %lx %*s %lu", &from, &to, &offset, &inode) != 4) continue;
      if (wanted < from || wanted >= to || inode != inode_ || inode_ == 0) continue;
      cached_from_ = from;
      cached_to_ = to;
      cached_offset_ = offset;
      found = wanted - from + offset;
    }
    std::fclose(maps);
    return found;
  }

  /// Takes note of the sectors that have changed.
  void look() noexcept {
    if (file_ == nullptr) return;
    for (std::uint64_t page = 0; page < kPoolBytes; page += kPage) {
      if (std::memcmp(file_ + page, newest_.data() + page, kPage) == 0) continue;
      for (std::uint64_t at = page; at < page + kPage; at += kSector) {
        if (std::memcmp(file_ + at, newest_.data() + at, kSector) == 0) continue;
        std::memcpy(newest_.data() + at, file_ + at, kSector);
        Sector& sector = sectors_[at / kSector];
        if (sector.pending.empty()) open_.push_back(static_cast<std::uint32_t>(at / kSector));
        std::memcpy(sector.pending.emplace_back().data(), file_ + at, kSector);
      }
    }
  }
  bool drops(const char* what) {
    const bool dropped = options_.drop == what || options_.drop == what + (" while " + doing_);
    if (dropped) ++shared_.result.dropped;
    return dropped;
  }
  void sync(std::uint64_t offset, std::uint64_t bytes, bool pages, const char* what) noexcept {
    const std::lock_guard lock(mutex_);
    ++shared_.result.calls;
    ++syncs_;
    moment();
    if (drops(what)) return;
    const std::uint64_t unit = pages ? kPage : kSector;
    const std::uint64_t from = offset / unit * unit, to = (offset + bytes + unit - 1) / unit * unit;
    for (std::size_t i = 0; i < open_.size();) {
      const std::uint64_t at = open_[i] * kSector;
      if (at < from || at >= to) {
        ++i;
        continue;
      }
      Sector& sector = sectors_[open_[i]];
      std::memcpy(durable_.data() + at, sector.pending.back().data(), kSector);
      sector.pending.clear();
      open_[i] = open_.back();
      open_.pop_back();
    }
  }

  /// Some images of this moment.
  void moment() noexcept {
    const std::lock_guard lock(mutex_);
    look();
    if (file_ == nullptr || enough()) return;
    if (!name_durable_ && !name_there_) return;  // There is no pool, and nothing to look at.
    static constexpr int kEvery = 3;
    if (++moments_ % kEvery != 0 && !important_) return;
    // Where the name may be lost there is no pool then: that is allowed until create() has returned.
    if (!name_durable_ && exists_acknowledged_) return violated("the name of the pool may be lost");
    for (int way = 0; way < 3 && !enough(); ++way) one(static_cast<int>(random_() % 5));
  }
  void one(int way) noexcept {
    std::memcpy(shared_.image, durable_.data(), kPoolBytes);
    for (const std::uint32_t number : open_) {
      const Sector& sector = sectors_[number];
      std::size_t count = 0;
      switch (way) {
        case 0: break;
        case 1: count = sector.pending.size(); break;
        case 2: count = random_() % 2 == 0 ? 0 : sector.pending.size(); break;
        case 3: count = random_() % (sector.pending.size() + 1); break;
        default: count = random_() % 8 == 0 ? 0 : sector.pending.size(); break;
      }
      if (count != 0) std::memcpy(shared_.image + number * kSector, sector.pending[count - 1].data(), kSector);
    }
    shared_.expected = expected_;
    shared_.also_go_on = random_() % 8 == 0;
    if (random_() % 16 == 0 && has_journal_) {
      std::memcpy(shared_.start, shared_.image, kPoolBytes);
      shared_.start_expected = expected_;
      shared_.crashed = true;
    }
    char byte = 1;
    if (write(to_opener_, &byte, 1) != 1 || read(from_opener_, &byte, 1) != 1)
      return violated("the process that opens images has died");
    ++shared_.result.images;
    if (shared_.answer[0] != 0) violated(shared_.answer);
  }
  [[nodiscard]] bool enough() const noexcept {
    return shared_.result.violation[0] != 0 || shared_.result.images >= options_.images;
  }
  void violated(const std::string& what) noexcept {
    if (shared_.result.violation[0] != 0) return;
    const std::string all = "while " + doing_ + ", at sync " + std::to_string(syncs_) + ": " + what;
    all.copy(shared_.result.violation, sizeof shared_.result.violation - 1);
  }
  void acknowledged() noexcept {
    const std::lock_guard lock(mutex_);
    important_ = true;
    moment();
    important_ = false;
  }

  void put(const Pool& pool, std::size_t region, std::size_t line) {
    doing_ = "a fence";
    const auto memory = pool.open_region(kNames[region]);
    const FileMedia media = pool.file_media();
    Word& word = word_of(*memory, line);
    Expected::Line& value = expected_.lines[region][line];
    {
      const std::lock_guard lock(mutex_);
      ++value.most;
      media.store(Point{}, word, value.most);
    }
    media.flush(Point{}, &word);
    media.fence(Point{});
    has_journal_ = media.has_journal();
    if (!media.ok()) return violated("the media has failed");
    const std::lock_guard lock(mutex_);
    value.least = value.most;
    acknowledged();
  }
  void work(const Pool& pool, int puts) {
    for (int i = 0; i < puts && !enough(); ++i) {
      std::size_t region = random_() % kRegions;
      while (!expected_.must[region]) region = (region + 1) % kRegions;
      put(pool, region, random_() % kLines);
    }
  }
  void create_regions(Pool& pool, std::initializer_list<std::size_t> numbers) {
    doing_ = "the creation of regions";
    std::vector<RegionSpec> specs;
    for (const std::size_t r : numbers) {
      specs.push_back({kNames[r], 64 * kLineBytes});
      expected_.may[r] = true;
      expected_.lines[r] = {};
    }
    if (auto made = pool.create_regions(specs); !made) return violated(made.error().message);
    for (const std::size_t r : numbers) expected_.must[r] = true;
    acknowledged();
  }
  void remove_region(Pool& pool, std::size_t r) {
    doing_ = "the removal of a region";
    expected_.must[r] = false;
    if (Status removed = pool.remove_region(kNames[r]); !removed) return violated(removed.error().message);
    expected_.may[r] = false;
    acknowledged();
  }

  /// Until it returns the pool is there, whole, or it is not there.
  void remove(const std::string& path) {
    doing_ = "removal";
    exists_acknowledged_ = false;
    if (Status removed = Pool::remove(path); !removed) return violated(removed.error().message);
    const std::lock_guard lock(mutex_);
    if (name_durable_) violated("the name of a removed pool may come back");
  }

  const LifeOptions& options_;
  Shared& shared_;
  int to_opener_, from_opener_;
  std::recursive_mutex mutex_;  // The journal's write-back has a thread of its own. Guards what follows.
  std::mt19937_64 random_;
  std::vector<std::byte> durable_, newest_;
  std::vector<Sector> sectors_;
  std::vector<std::uint32_t> open_;
  const std::byte* file_ = nullptr;
  std::uint64_t inode_ = 0;
  std::uintptr_t cached_from_ = 0, cached_to_ = 0, cached_offset_ = 0;
  int new_file_ = -1;
  bool name_there_ = false, name_durable_ = false, exists_acknowledged_ = false;
  bool important_ = false, has_journal_ = false;
  std::uint64_t moments_ = 0, syncs_ = 0;
  Expected expected_;
  std::string doing_;
};

void Life::run(bool crashed) {
  namespace fs = std::filesystem;
  const fs::path folder = folder_of("life");
  std::error_code ignored;
  fs::create_directories(folder, ignored);
  const std::string path = (folder / "p.pool").string();
  set_file_system(this);
  living = this;
  std::optional<Pool> pool;
  const auto keep = [&](Result<Pool> made) {
    if (!made) return violated(made.error().message);
    pool.emplace(std::move(*made));
    exists_acknowledged_ = true;
    acknowledged();
  };
  if (crashed) {
    expected_ = shared_.start_expected;
    const UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    if (!fd || !FileSystem::pwrite(fd.get(), shared_.start, kPoolBytes, 0)) return violated("no room for a pool");
    std::memcpy(durable_.data(), shared_.start, kPoolBytes);
    std::memcpy(newest_.data(), shared_.start, kPoolBytes);
    name_there_ = name_durable_ = exists_acknowledged_ = true;
    map(fd.get());
    doing_ = "opening after a crash";
    keep(Pool::open(path, {.journal_bytes = kJournalBytes}));
    // What it holds now is what it holds.
    for (std::size_t r = 0; pool && r < kRegions; ++r) {
      const auto region = pool->open_region(kNames[r]);
      expected_.must[r] = expected_.may[r] = region.has_value();
      for (std::size_t line = 0; region && line < kLines; ++line)
        expected_.lines[r][line].most = std::max(expected_.lines[r][line].most, word_of(*region, line).load());
    }
    if (pool && !std::ranges::count(expected_.must, true)) create_regions(*pool, {0});
  } else {
    doing_ = "creation";
    keep(Pool::create(path, {.bytes = kPoolBytes, .journal_bytes = kJournalBytes}));
    if (pool) create_regions(*pool, {0, 1});
  }
  if (pool) work(*pool, crashed ? 8 : 40);
  if (pool && !expected_.may[2]) create_regions(*pool, {2});
  if (pool) work(*pool, 12);
  if (pool && expected_.must[1]) remove_region(*pool, 1);
  if (pool) work(*pool, 12);
  if (pool && !expected_.may[1]) create_regions(*pool, {1});
  if (pool) work(*pool, 36);
  doing_ = "closing";
  if (pool) {
    if (Status closed = pool->close(); !closed) violated(closed.error().message);
    acknowledged();
    pool.reset();
    has_journal_ = false;
    cached_to_ = 0;
    doing_ = "opening";
    keep(Pool::open(path, {.journal_bytes = kJournalBytes}));
  }
  if (pool) {
    work(*pool, 40);
    doing_ = "closing";
    pool.reset();
    acknowledged();
    remove(path);
  }
  living = nullptr;
  set_file_system(nullptr);
  fs::remove_all(folder, ignored);
}

constexpr std::array<std::string_view, 4> kSyncs{"folder", "fdatasync", "msync", "durable write"};
/// What Life::doing_ may say.
constexpr std::array<std::string_view, 8> kDoings{"creation",
                                                  "opening",
                                                  "opening after a crash",
                                                  "closing",
                                                  "removal",
                                                  "a fence",
                                                  "the creation of regions",
                                                  "the removal of a region"};

template <std::size_t N>
std::string listed(const std::array<std::string_view, N>& names) {
  std::string text;
  for (std::size_t i = 0; i < N; ++i) text.append(i == 0 ? "" : i + 1 == N ? " or " : ", ").append(names[i]);
  return text;
}

}  // namespace

bool is_drop(std::string_view drop) {
  return std::any_of(kSyncs.begin(), kSyncs.end(), [drop](std::string_view sync) {
    if (!drop.starts_with(sync)) return false;
    std::string_view rest = drop.substr(sync.size());
    if (rest.empty()) return true;
    constexpr std::string_view kWhile = " while ";
    if (!rest.starts_with(kWhile)) return false;
    rest.remove_prefix(kWhile.size());
    return std::find(kDoings.begin(), kDoings.end(), rest) != kDoings.end();
  });
}

std::string drops_in_words() { return listed(kSyncs) + ", alone or with ' while ' and " + listed(kDoings); }

LifeResult live_and_crash(const LifeOptions& options) {
  void* const memory = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  LifeResult result;
  const auto fail = [&result](const char* what) {
    std::strncpy(result.violation, what, sizeof result.violation - 1);
    return result;
  };
  if (memory == MAP_FAILED) return fail("out of memory");
  auto& shared = *static_cast<Shared*>(memory);
  int requests[2], answers[2];
  if (pipe(requests) != 0 || pipe(answers) != 0) return fail("can't create a pipe");
  // libpmemobj refuses copies of a pool that is open in its own process.
  const pid_t opener = fork();
  if (opener == 0) {
    close(requests[1]);
    close(answers[0]);
    serve(requests[0], answers[1], shared);
  }
  close(requests[0]);
  close(answers[1]);
  for (std::uint64_t n = 0; shared.result.images < options.images && shared.result.violation[0] == 0; ++n) {
    const bool crashed = n % 3 != 0 && shared.crashed;
    const pid_t process = fork();
    if (process == 0) {
      Life(options, shared, requests[1], answers[0], options.seed * 1000003 + n).run(crashed);
      _exit(0);
    }
    int status = 0;
    waitpid(process, &status, 0);
    ++shared.result.lives;
    shared.result.replayed += crashed ? 1 : 0;
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
      std::strncpy(shared.result.violation, "the process that lives has died", sizeof shared.result.violation - 1);
  }
  close(requests[1]);
  close(answers[0]);
  waitpid(opener, nullptr, 0);
  result = shared.result;
  munmap(memory, sizeof(Shared));
  return result;
}

}  // namespace dunnock::crash

// Before that of the C library: libpmemobj's syncs are recorded, too.
extern "C" int msync(void* address, std::size_t bytes, int flags) noexcept {
  if (dunnock::crash::living != nullptr) return dunnock::crash::living->synced_in_memory(address, bytes);
  return static_cast<int>(syscall(SYS_msync, address, bytes, flags));
}
