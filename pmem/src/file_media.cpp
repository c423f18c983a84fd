#include "dunnock/pmem/file_media.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "dunnock/base/check.hpp"
#include "journal.hpp"

namespace dunnock::detail {
namespace {

/// Fences before a journal is made: who opens a pool to look at it needs none.
constexpr std::uint64_t kFencesBefore = 32;
/// The longest that a fence waits for others to share its write: less than half of what a write to a disk takes.
constexpr auto kGatherFor = std::chrono::microseconds(50);
/// Writes of so many bytes go past the journal.
constexpr std::size_t kLongWrite = 16 << 10;

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

/// What this thread has noted and not yet fenced, one entry a mapping. `mapping` is a number that is never used twice,
/// so an entry of a mapping that is gone can't be mistaken for another's.
struct NotedHere {
  std::uint64_t mapping;
  Noted noted;
};
thread_local std::vector<NotedHere> noted_here;

std::atomic<std::uint64_t> next_mapping{1};

Noted& noted_for(std::uint64_t mapping) {
  for (NotedHere& one : noted_here) {
    if (one.mapping == mapping) return one.noted;
  }
  noted_here.push_back({mapping, {}});
  return noted_here.back().noted;
}

/// A line as it is at one moment, while others may store to it: what was read twice alike. Their stores to one line
/// become durable in their order, so a copy must not have a younger word and lack an older one.
#if defined(__SANITIZE_THREAD__)
__attribute__((no_sanitize("thread")))
#endif
void copy_line(const std::byte* line, std::uint64_t* words) noexcept {
  auto* from = reinterpret_cast<const volatile std::uint64_t*>(line);
  constexpr std::size_t kWords = kLineBytes / sizeof(std::uint64_t);
  while (true) {
    for (std::size_t i = 0; i < kWords; ++i) words[i] = from[i];
    std::atomic_thread_fence(std::memory_order_acquire);
    bool same = true;
    for (std::size_t i = 0; i < kWords; ++i) same = same && words[i] == from[i];
    if (same) return;
    cpu_pause();
  }
}

}  // namespace

struct FileSync::State {
  std::uint64_t mapping = next_mapping.fetch_add(1, std::memory_order_relaxed);
  std::byte* base = nullptr;
  std::uint64_t bytes = 0;
  std::uint64_t page_bytes = 4096;
  Options options;
  int file = -1;

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

  // Of the leader.
  Noted leading;
  std::unique_ptr<Journal> journal;
  std::atomic<bool> journaled{false};
  bool journal_tried = false;

  static void require(bool fine) noexcept {
    DUNNOCK_CHECK(fine, "the disk refuses a write: nothing more can be acknowledged (see file_media.hpp)");
  }
  [[nodiscard]] std::string journal_path() const { return options.path + ".journal"; }

  void write_back(std::uint64_t offset, std::uint64_t length) noexcept {
    const std::uint64_t from = offset / page_bytes * page_bytes;
    require(msync(base + from, std::min(offset + length, bytes) - from, MS_SYNC) == 0);
    syncs.fetch_add(1, std::memory_order_relaxed);
  }

  void start_journal() {
    journal_tried = true;
    if (file < 0 || options.journal_bytes == 0) return;
    std::random_device random;
    const std::uint64_t id = (static_cast<std::uint64_t>(random()) << 32 | random()) | 1;
    const std::uint64_t half = options.journal_bytes / 2 / kJournalBlock * kJournalBlock;
    auto made = Journal::create(journal_path(), id, half, bytes, [this] { return fdatasync(file) == 0; });
    if (!made) return;  // Slower, and as safe.
    options.note_journal(id);
    journal = std::move(*made);
    journaled.store(true, std::memory_order_relaxed);
  }

  /// Makes what has gathered durable. One thread at a time.
  void commit(Noted& noted) {
    if (!journal && !journal_tried && fences.load(std::memory_order_relaxed) >= kFencesBefore) start_journal();
    std::sort(noted.lines.begin(), noted.lines.end());
    noted.lines.erase(std::unique(noted.lines.begin(), noted.lines.end()), noted.lines.end());
    // Ranges that touch become one.
    std::sort(noted.ranges.begin(), noted.ranges.end(),
              [](const JournalRevoke& a, const JournalRevoke& b) { return a.offset < b.offset; });
    std::size_t kept = 0;
    for (std::size_t i = 1; i < noted.ranges.size(); ++i) {
      JournalRevoke& last = noted.ranges[kept];
      const JournalRevoke& next = noted.ranges[i];
      if (next.offset <= last.offset + last.bytes + page_bytes)
        last.bytes = std::max(last.bytes, next.offset + next.bytes - last.offset);
      else
        noted.ranges[++kept] = next;
    }
    if (!noted.ranges.empty()) noted.ranges.resize(kept + 1);

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
    if (noted.lines.size() > journal->lines_max()) {
      write_back_all();
      return;
    }
    for (const JournalRevoke& range : noted.ranges) write_back(range.offset, range.bytes);
    // Older lines there must not come back. Those between ranges that were joined are written back, too.
    std::erase_if(noted.ranges,
                  [this](const JournalRevoke& range) { return !journal->may_hold(range.offset, range.bytes); });
    if (noted.lines.empty() && noted.ranges.empty()) return;
    require(journal->append(noted.lines, noted.ranges,
                            [this](std::uint64_t offset, std::uint64_t* words) { copy_line(base + offset, words); }));
    syncs.fetch_add(1, std::memory_order_relaxed);
  }

  void write_back_all() {
    require(fdatasync(file) == 0);
    syncs.fetch_add(1, std::memory_order_relaxed);
    if (!journal) return;
    const JournalRevoke everything{0, bytes};
    require(journal->append({}, {&everything, 1}, [](std::uint64_t, std::uint64_t*) {}));
  }

  /// Calls work() as the leader of a round.
  template <class Work>
  void lead(std::unique_lock<std::mutex>& lock, const Work& work) {
    running = true;
    if (met.load(std::memory_order_relaxed) < expected) {
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
    if (!leading.empty()) commit(leading);
    leading.clear();
    work();
    lock.lock();
    running = false;
    round_done = round;
    round_over.notify_all();
  }
};

FileSync::FileSync(void* base, std::size_t bytes, Options options) : state_(std::make_unique<State>()) {
  state_->base = static_cast<std::byte*>(base);
  state_->bytes = bytes;
  state_->page_bytes = static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
  state_->options = std::move(options);
  if (!state_->options.path.empty()) state_->file = ::open(state_->options.path.c_str(), O_RDWR | O_CLOEXEC);
}

FileSync::~FileSync() {
  State& s = *state_;
  if (s.journal) {
    State::require(fdatasync(s.file) == 0);
    s.options.note_journal(0);
    s.journal.reset();
    unlink(s.journal_path().c_str());
  }
  if (s.file >= 0) ::close(s.file);
}

void FileSync::note(const void* address) noexcept {
  const auto offset = static_cast<std::uint64_t>(static_cast<const std::byte*>(address) - state_->base);
  DUNNOCK_CHECK(offset < state_->bytes, "a flushed address lies in the pool");
  const std::uint64_t line = offset / kLineBytes * kLineBytes;
  std::vector<std::uint64_t>& lines = noted_for(state_->mapping).lines;
  if (lines.empty() || lines.back() != line) lines.push_back(line);
}

void FileSync::write(void* to, const void* from, std::size_t bytes) noexcept {
  if (bytes == 0) return;
  const auto offset = static_cast<std::uint64_t>(static_cast<std::byte*>(to) - state_->base);
  DUNNOCK_CHECK(offset < state_->bytes, "what is written lies in the pool");
  DUNNOCK_CHECK(bytes <= state_->bytes - offset, "what is written lies in the pool");
  if (bytes < kLongWrite || state_->file < 0) {
    std::memcpy(to, from, bytes);
    std::vector<std::uint64_t>& lines = noted_for(state_->mapping).lines;
    for (std::uint64_t line = offset / kLineBytes * kLineBytes; line < offset + bytes; line += kLineBytes)
      lines.push_back(line);
    return;
  }
  // Through the page cache, which the mapping shows: without a page fault for each page that was written back.
  std::size_t done = 0;
  while (done < bytes) {
    const ssize_t put = pwrite(state_->file, static_cast<const std::byte*>(from) + done, bytes - done,
                               static_cast<off_t>(offset + done));
    if (put < 0 && errno == EINTR) continue;
    State::require(put > 0);
    done += static_cast<std::size_t>(put);
  }
  // The disk may begin; whether it does is its matter.
  (void)sync_file_range(state_->file, static_cast<off_t>(offset), static_cast<off_t>(bytes), SYNC_FILE_RANGE_WRITE);
  noted_for(state_->mapping).ranges.push_back({offset, bytes});
}

void FileSync::sync() noexcept {
  Noted& mine = noted_for(state_->mapping);
  if (mine.empty()) return;
  State& s = *state_;
  s.fences.fetch_add(1, std::memory_order_relaxed);
  std::unique_lock lock(s.mutex);
  s.gathering.take(mine);
  s.met.fetch_add(1, std::memory_order_relaxed);
  const std::uint64_t my_round = s.round_started + 1;  // The one that `gathering` belongs to.
  while (s.round_done < my_round) {
    if (s.running)
      s.round_over.wait(lock);
    else
      s.lead(lock, [] {});  // Takes what has gathered, makes it durable without the lock, tells the others.
  }
}

void FileSync::write_back_all() noexcept {
  State& s = *state_;
  if (s.file < 0) return;
  std::unique_lock lock(s.mutex);
  s.round_over.wait(lock, [&s] { return !s.running; });
  s.lead(lock, [&s] { s.write_back_all(); });
}

std::uint64_t FileSync::syncs() const noexcept { return state_->syncs.load(std::memory_order_relaxed); }
std::uint64_t FileSync::fences() const noexcept { return state_->fences.load(std::memory_order_relaxed); }
bool FileSync::has_journal() const noexcept { return state_->journaled.load(std::memory_order_relaxed); }

}  // namespace dunnock::detail
