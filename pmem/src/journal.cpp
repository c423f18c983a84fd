#include "journal.hpp"

#include <xxhash.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <thread>

#include "dunnock/base/check.hpp"
#include "dunnock/pmem/fork_mark.hpp"
#include "dunnock/pmem/start_thread.hpp"

namespace dunnock::detail {
namespace {

std::uint64_t rounded_up(std::uint64_t bytes) noexcept {
  return (bytes + kJournalBlock - 1) / kJournalBlock * kJournalBlock;
}

std::uint64_t checksum_of(const JournalHead& head) noexcept {
  return XXH3_64bits(&head, offsetof(JournalHead, checksum));
}

/// Of a group's head as it stands at `group`, and the bytes that follow it.
std::uint64_t checksum_of(const std::byte* group, std::uint64_t body_bytes) noexcept {
  JournalGroup head;
  std::memcpy(&head, group, sizeof head);
  head.checksum = 0;
  // A side journal's groups have zeros where `oldest` is, and a checksum of the fields before it.
  const std::size_t length = head.oldest == 0 ? offsetof(JournalGroup, checksum) : sizeof head;
  return XXH3_64bits_withSeed(group + sizeof(JournalGroup), body_bytes, XXH3_64bits(&head, length));
}

class FileJournal final : public Journal {
 public:
  FileJournal(Options options, std::uint64_t half_bytes) : options_(std::move(options)), half_bytes_(half_bytes) {
    while (options_.pool_bytes >> grain_bits_ > kGrainsMax) ++grain_bits_;
    for (auto& grains : held_) grains.resize((options_.pool_bytes >> grain_bits_) + 1);
    if (options_.in_background) thread_ = start_thread([this] { write_back_halves(); });
    options_.in_background = thread_ != nullptr;  // With no thread to be had, fences write the halves back.
  }
  ~FileJournal() override {
    std::free(buffer_);
    if (!thread_) return;
    if (fork_.is_child()) {
      (void)thread_.release();  // fork has not copied the thread, so nobody can join it.
      return;
    }
    {
      const std::lock_guard lock(mutex_);
      ends_ = true;
      changed_.notify_all();
    }
    thread_->join();
  }

  [[nodiscard]] bool fits(std::size_t lines, std::size_t revokes) const noexcept override {
    // A third of a half, so that no half is left almost empty.
    const std::uint64_t most = (half_bytes_ - kJournalBlock) / 3 / kJournalBlock * kJournalBlock;
    return lines <= most / sizeof(JournalLine) && revokes <= most / sizeof(JournalRevoke) &&
           group_bytes(lines, revokes) <= most;
  }

  [[nodiscard]] int append(std::span<const std::uint64_t> line_offsets, std::span<const JournalRevoke> revokes,
                           const std::function<void(std::uint64_t, std::uint64_t*)>& copy) override {
    const std::uint64_t bytes = group_bytes(line_offsets.size(), revokes.size());
    if (const int error = make_room(bytes); error != 0) return error;
    return write_group(line_offsets, revokes, copy);
  }

  [[nodiscard]] bool may_hold(std::uint64_t offset, std::uint64_t bytes) const noexcept override {
    for (std::uint64_t grain = offset >> grain_bits_; grain <= (offset + bytes - 1) >> grain_bits_; ++grain) {
      if (held_[0][grain] != 0 || held_[1][grain] != 0) return true;
    }
    return false;
  }

  [[nodiscard]] int write_back_error() const noexcept override { return error_.load(std::memory_order_acquire); }

  void finish_write_back() noexcept override {
    std::unique_lock lock(mutex_);
    if (options_.in_background) changed_.wait(lock, [this] { return !writing_back_ || error_ != 0; });
  }

 private:
  static constexpr std::uint64_t kGrainsMax = 1 << 20;

  [[nodiscard]] static std::uint64_t group_bytes(std::size_t lines, std::size_t revokes) noexcept {
    return rounded_up(sizeof(JournalGroup) + revokes * sizeof(JournalRevoke) + lines * sizeof(JournalLine));
  }

  /// Goes on in the other half when this one is full. The errno of a failed write or write-back, or 0.
  [[nodiscard]] int make_room(std::uint64_t bytes) {
    if (const int error = write_back_error(); error != 0) return error;
    if (used_ + bytes <= half_bytes_ - kJournalBlock) return 0;  // The last block is kept for what follows.
    {
      std::unique_lock lock(mutex_);
      // The other half may be begun anew when everything in it has reached the pool's pages.
      if (options_.in_background) {
        changed_.wait(lock, [this] { return !writing_back_ || error_ != 0; });
      } else if (writing_back_) {
        write_back_now();
      }
      if (const int error = write_back_error(); error != 0) return error;
    }
    // The youngest group has to say so first.
    if (said_oldest_ != first_ && number_ != first_ && !file_system().leaves_out("hand-over")) {
      if (const int error = write_group({}, {}, {}); error != 0) return error;
    }
    const std::lock_guard lock(mutex_);
    writing_back_ = true;  // For the half that is full.
    half_ = 1 - half_;
    used_ = 0;
    other_first_ = first_;
    first_ = number_;
    std::fill(held_[half_].begin(), held_[half_].end(), 0);
    changed_.notify_all();
    return 0;
  }

  /// Writes a group at the end of the half, where there is room for it.
  [[nodiscard]] int write_group(std::span<const std::uint64_t> line_offsets, std::span<const JournalRevoke> revokes,
                                const std::function<void(std::uint64_t, std::uint64_t*)>& copy) {
    const std::uint64_t bytes = group_bytes(line_offsets.size(), revokes.size());
    const std::uint64_t body = revokes.size_bytes() + line_offsets.size() * sizeof(JournalLine);
    if (bytes > buffer_bytes_) {
      std::free(buffer_);
      buffer_ = static_cast<std::byte*>(std::aligned_alloc(kJournalBlock, bytes));
      buffer_bytes_ = buffer_ == nullptr ? 0 : bytes;
      if (buffer_ == nullptr) return ENOMEM;
    }
    JournalGroup group{options_.id, number_, line_offsets.size(), revokes.size(), 0, oldest_needed(), {}};
    std::byte* at = buffer_ + sizeof group;
    if (!revokes.empty()) std::memcpy(at, revokes.data(), revokes.size_bytes());
    at += revokes.size_bytes();
    JournalLine line;
    for (const std::uint64_t offset : line_offsets) {
      line.offset = offset;
      copy(offset, line.words.data());
      std::memcpy(at, &line, sizeof line);
      at += sizeof line;
      held_[half_][offset >> grain_bits_] = 1;
    }
    std::memset(at, 0, bytes - sizeof group - body);
    std::memcpy(buffer_, &group, sizeof group);
    group.checksum = checksum_of(buffer_, body);
    std::memcpy(buffer_, &group, sizeof group);
    const std::uint64_t to = options_.extent.offset + kJournalBlock + half_ * half_bytes_ + used_;
    errno = 0;
    if (!file_system().pwrite_durably(options_.file.get(), buffer_, bytes, to)) return errno != 0 ? errno : EIO;
    used_ += bytes;
    said_oldest_ = group.oldest;
    ++number_;
    return 0;
  }

  /// The first group that a replay needs from now on.
  [[nodiscard]] std::uint64_t oldest_needed() {
    const std::lock_guard lock(mutex_);
    return writing_back_ && !file_system().leaves_out("older half") ? other_first_ : first_;
  }

  void write_back_halves() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [this] { return writing_back_ || ends_; });
      if (ends_) return;
      lock.unlock();
      const int error = options_.write_back();
      lock.lock();
      note_write_back(error);
      changed_.notify_all();
    }
  }

  void write_back_now() {
    note_write_back(file_system().leaves_out("write-back of a half") ? 0 : options_.write_back());
  }

  /// After an error, what the full half holds is needed for ever: `writing_back_` stays.
  void note_write_back(int error) noexcept {
    if (error != 0 && file_system().leaves_out("error of a half")) error = 0;
    if (error != 0)
      error_.store(error, std::memory_order_release);  // Partner: write_back_error.
    else
      writing_back_ = false;
    if (error != 0) ends_ = true;
  }

  Options options_;
  std::uint64_t half_bytes_;
  ForkMark fork_;
  unsigned grain_bits_ = 12;
  std::array<std::vector<std::uint8_t>, 2> held_;  // grains of the pool with lines in a half
  unsigned half_ = 0;
  std::uint64_t used_ = 0;    // bytes of that half
  std::uint64_t number_ = 1;  // of the next group
  std::uint64_t first_ = 1;   // group of this half
  std::uint64_t other_first_ = 1;
  std::uint64_t said_oldest_ = 0;  // by the youngest group
  std::byte* buffer_ = nullptr;
  std::uint64_t buffer_bytes_ = 0;

  std::mutex mutex_;  // of what follows
  std::condition_variable changed_;
  bool writing_back_ = false;  // The other half is not yet in the pool's pages.
  bool ends_ = false;
  std::atomic<int> error_{0};
  std::unique_ptr<std::thread> thread_;
};

/// The groups of a half, as far as they follow each other.
struct Half {
  struct Group {
    const std::byte* body;
    std::uint64_t number, lines, revokes;
  };
  std::uint64_t first = 0, last = 0;  // group numbers; first is 0: no groups
  std::uint64_t youngest = 0;         // of all that are sound, in order or not
  std::uint64_t oldest = 0;           // what the youngest says is needed
  std::vector<Group> groups;
};

/// The head of a sound group at `at`.
bool read_group(std::span<const std::byte> half, std::uint64_t at, std::uint64_t id, JournalGroup& group) noexcept {
  if (half.size() - at < sizeof group) return false;
  std::memcpy(&group, half.data() + at, sizeof group);
  const std::uint64_t room = half.size() - at - sizeof group;
  if (group.id != id || group.lines > room / sizeof(JournalLine) || group.revokes > room / sizeof(JournalRevoke))
    return false;
  const std::uint64_t body = group.lines * sizeof(JournalLine) + group.revokes * sizeof(JournalRevoke);
  return body <= room && group.checksum == checksum_of(half.data() + at, body);
}

Half read_half(std::span<const std::byte> bytes, std::uint64_t id) {
  Half half;
  std::uint64_t at = 0;
  JournalGroup group;
  while (at < bytes.size() && read_group(bytes, at, id, group) && group.number != 0 &&
         (half.first == 0 || group.number == half.last + 1)) {
    if (half.first == 0) half.first = group.number;
    half.last = group.number;
    half.oldest = group.oldest;
    half.groups.push_back({bytes.data() + at + sizeof group, group.number, group.lines, group.revokes});
    at += rounded_up(sizeof group + group.lines * sizeof(JournalLine) + group.revokes * sizeof(JournalRevoke));
  }
  // What follows was begun and not acknowledged, or is older.
  half.youngest = half.last;
  for (; at < bytes.size(); at += kJournalBlock) {
    if (read_group(bytes, at, id, group)) half.youngest = std::max(half.youngest, group.number);
  }
  return half;
}

/// Which groups a replay needs: of `older` and then of `newer`, which is made the half with the youngest group.
/// Errors: Corrupt.
Status find_needed(Half& older, Half& newer, bool side_journal) {
  const auto damaged = [] { return make_error(ErrorCode::kCorrupt, "one of its groups is damaged"); };
  if (side_journal) {
    if (older.first > newer.first) std::swap(older, newer);
    // Younger groups than the last in order would be acknowledged ones after damage.
    if (std::max(older.youngest, newer.youngest) > newer.last) return damaged();
    if (older.first != 0 && newer.first != older.last + 1)
      return make_error(ErrorCode::kCorrupt, "some of its groups are missing");
    return {};
  }
  if (older.youngest > newer.youngest) std::swap(older, newer);
  if (newer.youngest != newer.last) return damaged();
  if (newer.oldest == 0 || newer.oldest > newer.last) {
    if (newer.last != 0) return damaged();
    older.groups.clear();
    return {};
  }
  if (newer.oldest >= newer.first) {
    // The other half has been written back. It may have been begun anew, and may hold anything.
    older.groups.clear();
    return {};
  }
  if (older.first == 0 || older.first > newer.oldest || older.last + 1 != newer.first)
    return make_error(ErrorCode::kCorrupt, "some of its groups are missing");
  return {};
}

/// Writes the head, and the blocks if they are new. `syncing` is set before the sync.
bool begin_journal(const Journal::Options& options, std::uint64_t half_bytes, bool& syncing) {
  constexpr std::uint64_t kPiece = 1 << 20;
  const std::unique_ptr<std::byte, void (*)(void*)> piece(
      static_cast<std::byte*>(std::aligned_alloc(kJournalBlock, kPiece)), &std::free);
  if (!piece) {
    errno = ENOMEM;
    return false;
  }
  std::memset(piece.get(), 0, kPiece);
  FileSystem& files = file_system();
  for (std::uint64_t at = 0; options.fresh && at < options.extent.bytes; at += kPiece) {
    const std::uint64_t length = std::min(kPiece, options.extent.bytes - at);
    if (!files.pwrite(options.file.get(), piece.get(), length, options.extent.offset + at)) return false;
  }
  JournalHead head{kJournalMagic, options.id, half_bytes, 0};
  head.checksum = checksum_of(head);
  std::memcpy(piece.get(), &head, sizeof head);
  if (!files.pwrite(options.file.get(), piece.get(), kJournalBlock, options.extent.offset)) return false;
  syncing = true;
  return files.fdatasync(options.file.get()) == 0;
}

}  // namespace

Result<std::unique_ptr<Journal>> Journal::create(Options options) {
  DUNNOCK_CHECK(options.extent.bytes >= kJournalBytesLeast, "a journal has room for a few groups");
  const std::uint64_t half_bytes = (options.extent.bytes - kJournalBlock) / 2 / kJournalBlock * kJournalBlock;
  errno = 0;
  bool syncing = false;
  if (!begin_journal(options, half_bytes, syncing)) {
    // A sync that fails may have lost pages of the pool, whatever its reason: without a journal it doesn't go on.
    if (syncing) return make_error(ErrorCode::kIo, std::string("can't begin a journal: ") + std::strerror(errno));
    return system_error("can't begin a journal", errno != 0 ? errno : EIO);
  }
  return std::make_unique<FileJournal>(std::move(options), half_bytes);
}

Status replay_journal(std::span<const std::byte> journal, std::uint64_t id, std::uint64_t pool_bytes,
                      JournalExtent extent, const std::function<void(std::uint64_t, const std::uint64_t*)>& apply) {
  JournalHead head;
  if (journal.size() < kJournalBlock) return make_error(ErrorCode::kCorrupt, "it is truncated");
  std::memcpy(&head, journal.data(), sizeof head);
  const bool side_journal = head.magic == kSideJournalMagic;
  if ((head.magic != kJournalMagic && !side_journal) || head.checksum != checksum_of(head))
    return make_error(ErrorCode::kCorrupt, "its head is damaged");
  if (head.id != id) return make_error(ErrorCode::kCorrupt, "it belongs to another pool");
  if (head.half_bytes % kJournalBlock != 0 || (journal.size() - kJournalBlock) / 2 < head.half_bytes)
    return make_error(ErrorCode::kCorrupt, "it is truncated");
  std::array<Half, 2> halves;
  for (std::size_t i = 0; i < 2; ++i)
    halves[i] = read_half(journal.subspan(kJournalBlock + i * head.half_bytes, head.half_bytes), id);
  DUNNOCK_TRY(find_needed(halves[0], halves[1], side_journal));
  std::map<std::uint64_t, const std::byte*> lines;  // the last of each
  for (const Half& half : halves) {
    for (const Half::Group& group : half.groups) {
      const std::byte* at = group.body;
      for (std::uint64_t i = 0; i < group.revokes; ++i, at += sizeof(JournalRevoke)) {
        JournalRevoke revoke;
        std::memcpy(&revoke, at, sizeof revoke);
        const std::uint64_t end = revoke.offset + std::min<std::uint64_t>(revoke.bytes, ~0ULL - revoke.offset);
        lines.erase(lines.lower_bound(revoke.offset / kLineBytes * kLineBytes), lines.lower_bound(end));
      }
      for (std::uint64_t i = 0; i < group.lines; ++i, at += sizeof(JournalLine)) {
        std::uint64_t offset = 0;
        std::memcpy(&offset, at, sizeof offset);
        if (offset % kLineBytes != 0 || offset >= pool_bytes || pool_bytes - offset < kLineBytes)
          return make_error(ErrorCode::kCorrupt, "one of its lines is outside the pool");
        if (offset >= extent.offset && offset - extent.offset < extent.bytes)
          return make_error(ErrorCode::kCorrupt, "one of its lines is inside the journal itself");
        lines[offset] = at + sizeof offset;
      }
    }
  }
  std::array<std::uint64_t, kLineBytes / 8> words;
  for (const auto& [offset, from] : lines) {
    std::memcpy(words.data(), from, sizeof words);
    apply(offset, words.data());
  }
  return {};
}

}  // namespace dunnock::detail
