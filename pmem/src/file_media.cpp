#include "dunnock/pmem/file_media.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "dunnock/base/check.hpp"
#include "dunnock/base/file.hpp"
#include "dunnock/pmem/fork_mark.hpp"
#include "journal.hpp"
#include "line_copy.hpp"

namespace dunnock::detail {
namespace {

/// The longest that a fence waits for others to share its write: less than half of what a write to a disk takes.
constexpr auto kGatherFor = std::chrono::microseconds(50);

/// What is to be made durable: offsets in the pool.
struct Noted {
  std::vector<std::uint64_t> lines;
  std::vector<JournalRevoke> ranges;  // Written to the file already, and to be written back.
  [[nodiscard]] bool empty() const noexcept { return lines.empty() && ranges.empty(); }
  void take(Noted& other) {
    lines.insert(lines.end(), other.lines.begin(), other.lines.end());
    ranges.insert(ranges.end(), other.ranges.begin(), other.ranges.end());
    other.clear();
  }
  void clear() noexcept {
    lines.clear();
    ranges.clear();
  }
};

/// A small number that no other running thread has. Numbers of threads that have ended are used again, so that what is
/// kept for each is bounded by the threads that run at once. Nothing here is destroyed before the last user: pools may
/// be closed by destructors of global objects, after a thread's own objects are gone.
class ThreadNumbers {
 public:
  static unsigned mine() noexcept {
    if (mine_ == 0) {
      mine_ = all().take();
      (void)&returns_;  // Made now, so that it is destroyed when the thread ends.
    }
    return mine_;
  }

 private:
  struct Returns {
    Returns() noexcept {}
    ~Returns() {
      if (mine_ != 0) all().give_back(mine_);
      mine_ = 0;  // What still runs on this thread takes another number, and keeps it.
    }
  };
  static ThreadNumbers& all() noexcept {
    static auto* const numbers = new ThreadNumbers;  // Never deleted.
    return *numbers;
  }
  unsigned take() noexcept {
    const std::lock_guard lock(mutex_);
    if (free_.empty()) return ++last_;
    const unsigned number = free_.back();
    free_.pop_back();
    return number;
  }
  void give_back(unsigned number) noexcept {
    const std::lock_guard lock(mutex_);
    free_.push_back(number);
  }

  static thread_local unsigned mine_;
  static thread_local Returns returns_;
  std::mutex mutex_;
  std::vector<unsigned> free_;
  unsigned last_ = 0;
};
thread_local unsigned ThreadNumbers::mine_ = 0;
thread_local ThreadNumbers::Returns ThreadNumbers::returns_;

/// What a thread has noted in the mappings that it used last. `mapping` is a number that is never used twice, so an
/// entry of a mapping that is gone can't be mistaken for another's.
struct NotedHere {
  std::uint64_t mapping;
  Noted* noted;
};
thread_local std::array<NotedHere, 4> noted_here{};

std::atomic<std::uint64_t> next_mapping{1};

}  // namespace

struct FileSync::State {
  std::uint64_t mapping = next_mapping.fetch_add(1, std::memory_order_relaxed);
  std::byte* base = nullptr;
  std::uint64_t bytes = 0;
  std::uint64_t page_bytes = 4096;
  Options options;
  ForkMark fork;

  std::mutex threads_mutex;
  std::deque<Noted> threads;  // what each thread has noted, by its number; addresses stay

  std::mutex mutex;
  std::condition_variable round_over;
  Noted gathering;                  // of the round that has not started
  std::uint64_t round_started = 0;  // rounds taken by a leader
  std::uint64_t round_done = 0;
  bool running = false;
  unsigned expected = 1;         // fences in the next round: as many as met in the last
  std::atomic<unsigned> met{0};  // fences in `gathering`
  std::atomic<std::uint64_t> syncs{0};
  std::atomic<std::uint64_t> fences{0};

  std::atomic<int> failing{0};  // errno of the first error
  std::atomic<int> failed{0};   // the same, once nothing more can reach the file
  bool closed = false;

  // Of the leader.
  Noted leading;
  std::unique_ptr<Journal> journal;
  std::atomic<bool> journaled{false};
  bool journal_tried = false;
  std::vector<JournalRevoke>* touched = nullptr;

  [[nodiscard]] bool ok() const noexcept { return failed.load(std::memory_order_acquire) == 0; }  // Partner: fail.

  void fail(int error) noexcept {
    int none = 0;
    if (!failing.compare_exchange_strong(none, error != 0 ? error : EIO)) {
      while (ok()) cpu_pause();  // Another thread is making the mapping private.
      return;
    }
    DUNNOCK_CHECK(!options.abort_on_error, "a write to the disk failed, and the pool was opened with abort_on_error");
    if (options.freeze) {
      options.freeze();
    } else if (options.file >= 0) {
      constexpr int kFlags = MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE;
      const bool frozen = mmap(base, bytes, PROT_READ | PROT_WRITE, kFlags, options.file, 0) != MAP_FAILED ||
                          mmap(base, bytes, PROT_READ | PROT_WRITE, kFlags | MAP_ANONYMOUS, -1, 0) != MAP_FAILED;
      DUNNOCK_CHECK(frozen, "after a disk error the pool's mapping can't be made private");
    }
    failed.store(failing.load(std::memory_order_relaxed), std::memory_order_release);
  }
  /// Takes note of a call that answers 0 when it went well.
  bool succeeded(int status) noexcept {
    if (status == 0 || file_system().leaves_out("error of a sync")) return true;
    fail(errno);
    return false;
  }

  void write_back(std::uint64_t offset, std::uint64_t length) noexcept {
    const std::uint64_t from = offset / page_bytes * page_bytes;
    if (succeeded(file_system().msync(base + from, std::min(offset + length, bytes) - from)))
      syncs.fetch_add(1, std::memory_order_relaxed);
  }
  bool write_back_pages() noexcept {
    // A file that somebody has cut off has lost what was in its pages, and no sync says so.
    struct stat info {};
    if (fstat(options.file, &info) == 0 && S_ISREG(info.st_mode) && static_cast<std::uint64_t>(info.st_size) < bytes) {
      fail(EIO);
      return false;
    }
    return succeeded(file_system().fdatasync(options.file));
  }

  /// No journal is slower, and as safe.
  void start_journal() {
    journal_tried = true;
    if (options.file < 0 || !options.journal_extent) return;
    Journal::Options place;
    place.extent = options.journal_extent(place.fresh);
    if (place.extent.bytes < kJournalBytesLeast) return;
    place.file = open_for_journal();
    if (!place.file) return;
    std::random_device random;
    place.id = (static_cast<std::uint64_t>(random()) << 32 | random()) | 1;
    place.pool_bytes = bytes;
    place.in_background = options.in_background;
    place.write_back = [this] { return write_back_pages() ? 0 : failing.load(std::memory_order_relaxed); };
    const std::uint64_t id = place.id;
    auto made = Journal::create(std::move(place));
    if (!made) {
      if (made.error().code == ErrorCode::kIo && !file_system().leaves_out("error of a new journal"))
        fail(EIO);  // A disk that has refused one write is not asked again.
      return;
    }
    if (!options.note_journal(id) && !file_system().leaves_out("error of the note")) {
      fail(errno);
      return;
    }
    journal = std::move(*made);
    journaled.store(true, std::memory_order_relaxed);
  }

  /// Another way to the same file: writes there are durable when they return.
  [[nodiscard]] UniqueFd open_for_journal() const {
    char self[40];
    std::snprintf(self, sizeof self, "/proc/self/fd/%d", options.file);
    constexpr int kFlags = O_RDWR | O_DSYNC;
    UniqueFd file(file_system().open(AT_FDCWD, self, kFlags | O_DIRECT, 0));
    if (!file) file = UniqueFd(file_system().open(AT_FDCWD, self, kFlags, 0));  // A file system without O_DIRECT.
    return file;
  }

  /// Makes what has gathered durable. One thread at a time.
  void commit(Noted& noted) {
    if (!journal && !journal_tried && fences.load(std::memory_order_relaxed) >= options.fences_before_journal)
      start_journal();
    if (!ok()) return;
    std::sort(noted.lines.begin(), noted.lines.end());
    noted.lines.erase(std::unique(noted.lines.begin(), noted.lines.end()), noted.lines.end());
    join(noted.ranges);
    if (touched != nullptr) {
      for (const std::uint64_t line : noted.lines) touched->push_back({line, kLineBytes});
      touched->insert(touched->end(), noted.ranges.begin(), noted.ranges.end());
    }

    if (!journal) {
      std::uint64_t low = ~0ULL, high = 0;
      for (const JournalRevoke& range : noted.ranges) {
        low = std::min(low, range.offset);
        high = std::max(high, range.offset + range.bytes);
      }
      if (!noted.lines.empty()) {
        low = std::min(low, noted.lines.front());
        high = std::max(high, noted.lines.back() + kLineBytes);
      }
      write_back(low, high - low);
      return;
    }
    if (!journal->fits(noted.lines.size(), noted.ranges.size())) {
      write_back_all();
      return;
    }
    if (!file_system().leaves_out("write-back of ranges")) {
      for (const JournalRevoke& range : noted.ranges) write_back(range.offset, range.bytes);
    }
    // Older lines there must not come back. Those between ranges that were joined are written back, too.
    std::erase_if(noted.ranges,
                  [this](const JournalRevoke& range) { return !journal->may_hold(range.offset, range.bytes); });
    if (file_system().leaves_out("revoke")) noted.ranges.clear();
    if (!ok() || (noted.lines.empty() && noted.ranges.empty())) return;
    append(noted.lines, noted.ranges);
  }

  void append(std::span<const std::uint64_t> lines, std::span<const JournalRevoke> revokes) {
    const int error = journal->append(lines, revokes, [this](std::uint64_t offset, std::uint64_t* words) {
      if (!options.between_words) return copy_line(base + offset, words);
      copy_line(base + offset, words, options.between_words, 2);
    });
    if (error != 0 && !file_system().leaves_out("error of the journal"))
      fail(error);
    else
      syncs.fetch_add(1, std::memory_order_relaxed);
  }

  /// Ranges that touch, or almost, become one.
  void join(std::vector<JournalRevoke>& ranges) const {
    if (ranges.empty()) return;
    std::sort(ranges.begin(), ranges.end(),
              [](const JournalRevoke& a, const JournalRevoke& b) { return a.offset < b.offset; });
    std::size_t kept = 0;
    for (std::size_t i = 1; i < ranges.size(); ++i) {
      JournalRevoke& last = ranges[kept];
      const JournalRevoke& next = ranges[i];
      if (next.offset <= last.offset + last.bytes + page_bytes)
        last.bytes = std::max(last.bytes, next.offset + next.bytes - last.offset);
      else
        ranges[++kept] = next;
    }
    ranges.resize(kept + 1);
  }

  void write_back_all() {
    if (!file_system().leaves_out("write-back of all") && !write_back_pages()) return;
    syncs.fetch_add(1, std::memory_order_relaxed);
    if (!journal || file_system().leaves_out("revoke of all")) return;
    const JournalRevoke everything{0, bytes};
    append({}, {&everything, 1});
  }

  void wait(std::unique_lock<std::mutex>& lock) {
    if (!options.pause) {
      round_over.wait(lock);
      return;
    }
    lock.unlock();
    options.pause();
    lock.lock();
  }

  /// Calls work() as the leader of a round.
  template <class Work>
  void lead(std::unique_lock<std::mutex>& lock, const Work& work) {
    running = true;
    if (options.in_background && met.load(std::memory_order_relaxed) < expected) {
      // The others of the last round are on their way, if they go on as they did.
      lock.unlock();
      const auto until = std::chrono::steady_clock::now() + kGatherFor;
      while (met.load(std::memory_order_relaxed) < expected && std::chrono::steady_clock::now() < until)
        std::this_thread::yield();
      lock.lock();
    }
    const std::uint64_t round = ++round_started;
    std::swap(leading, gathering);
    expected = std::max(1U, met.exchange(0, std::memory_order_relaxed));
    lock.unlock();
    if (!leading.empty() && ok()) commit(leading);
    leading.clear();
    work();
    lock.lock();
    running = false;
    round_done = round;
    round_over.notify_all();
  }

  Noted& noted() {
    const unsigned number = options.thread ? options.thread() : ThreadNumbers::mine();
    NotedHere& here = noted_here[mapping % noted_here.size()];
    if (!options.thread && here.mapping == mapping) return *here.noted;
    const std::lock_guard lock(threads_mutex);
    while (threads.size() <= number) threads.emplace_back();
    if (!options.thread) here = {mapping, &threads[number]};
    return threads[number];
  }
};

FileSync::FileSync(void* base, std::size_t bytes, Options options) : state_(std::make_unique<State>()) {
  state_->base = static_cast<std::byte*>(base);
  state_->bytes = bytes;
  state_->page_bytes = static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
  state_->options = std::move(options);
}

FileSync::~FileSync() {
  if (state_->fork.is_child())
    (void)state_.release();  // Its locks may be held by threads that fork has not copied.
  else
    (void)close();
}

Status FileSync::close() {
  State& s = *state_;
  if (!s.closed) {
    s.closed = true;
    if (s.journal && !s.fork.is_child()) {
      s.journal->finish_write_back();
      const bool fine = s.ok() || file_system().leaves_out("error before closing");
      if (fine && (file_system().leaves_out("write-back at closing") || s.write_back_pages()) &&
          !s.options.note_journal(0))
        s.fail(errno);
      s.journal.reset();
    }
  }
  if (s.ok()) return {};
  return system_error("a write to the pool has failed", s.failed.load(std::memory_order_relaxed));
}

void FileSync::note(const void* address) noexcept {
  const auto offset = static_cast<std::uint64_t>(static_cast<const std::byte*>(address) - state_->base);
  DUNNOCK_CHECK(offset < state_->bytes, "a flushed address is in the pool");
  if (!ok()) return;
  const std::uint64_t line = offset / kLineBytes * kLineBytes;
  std::vector<std::uint64_t>& lines = state_->noted().lines;
  if (lines.empty() || lines.back() != line) lines.push_back(line);
}

void FileSync::write(void* to, const void* from, std::size_t bytes) noexcept {
  if (bytes == 0) return;
  State& s = *state_;
  const auto offset = static_cast<std::uint64_t>(static_cast<std::byte*>(to) - s.base);
  DUNNOCK_CHECK(offset < s.bytes, "what is written is within the pool");
  DUNNOCK_CHECK(bytes <= s.bytes - offset, "what is written is within the pool");
  if (bytes >= s.options.long_write && s.options.file >= 0 && ok()) {
    // Through the page cache, which the mapping shows: without a page fault for each page that was written back.
    if (file_system().pwrite(s.options.file, from, bytes, offset)) {
      file_system().start_write(s.options.file, offset, bytes);
      s.noted().ranges.push_back({offset, bytes});
      return;
    }
    s.fail(errno);
  }
  std::memcpy(to, from, bytes);
  if (!ok()) return;
  std::vector<std::uint64_t>& lines = s.noted().lines;
  for (std::uint64_t line = offset / kLineBytes * kLineBytes; line < offset + bytes; line += kLineBytes)
    lines.push_back(line);
}

void FileSync::sync() noexcept {
  State& s = *state_;
  if (!s.ok()) return;
  Noted& mine = s.noted();
  if (mine.empty()) return;
  s.fences.fetch_add(1, std::memory_order_relaxed);
  std::unique_lock lock(s.mutex);
  s.gathering.take(mine);
  s.met.fetch_add(1, std::memory_order_relaxed);
  const std::uint64_t my_round = s.round_started + 1;  // The one that `gathering` belongs to.
  while (s.round_done < my_round) {
    if (s.running)
      s.wait(lock);
    else
      s.lead(lock, [] {});  // Takes what has gathered, makes it durable without the lock, tells the others.
  }
}

void FileSync::write_back_all() noexcept {
  State& s = *state_;
  if (s.options.file < 0) return;
  without_fences([&s] {
    if (s.ok()) s.write_back_all();
  });
}

bool FileSync::check_disk() noexcept {
  State& s = *state_;
  return s.ok() && (s.options.file < 0 || s.succeeded(file_system().wait_for_writes(s.options.file, 0, s.page_bytes)));
}

void FileSync::without_fences(const std::function<void()>& work) {
  State& s = *state_;
  std::unique_lock lock(s.mutex);
  while (s.running) s.wait(lock);
  s.lead(lock, work);
}

void FileSync::begin_journal() noexcept {
  State& s = *state_;
  without_fences([&s] {
    if (s.ok() && !s.journal && !s.journal_tried) s.start_journal();
  });
}

void FileSync::note_touched(std::vector<JournalRevoke>* touched) noexcept { state_->touched = touched; }

bool FileSync::ok() const noexcept { return state_->ok(); }
int FileSync::error() const noexcept { return state_->failed.load(std::memory_order_acquire); }
void FileSync::fail(int error) noexcept { state_->fail(error); }
void FileSync::abandon() noexcept {
  state_->failing.store(ECHILD, std::memory_order_relaxed);
  state_->failed.store(ECHILD, std::memory_order_release);  // Partner: ok.
}

std::uint64_t FileSync::syncs() const noexcept { return state_->syncs.load(std::memory_order_relaxed); }
std::uint64_t FileSync::fences() const noexcept { return state_->fences.load(std::memory_order_relaxed); }
bool FileSync::has_journal() const noexcept { return state_->journaled.load(std::memory_order_relaxed); }

}  // namespace dunnock::detail
