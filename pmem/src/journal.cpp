#include "journal.hpp"

#include <fcntl.h>
#include <unistd.h>
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

namespace dunnock::detail {
namespace {

std::uint64_t rounded_up(std::uint64_t bytes) noexcept {
  return (bytes + kJournalBlock - 1) / kJournalBlock * kJournalBlock;
}

std::uint64_t checksum_of(const JournalHead& head) noexcept {
  return XXH3_64bits(&head, offsetof(JournalHead, checksum));
}

/// Of a group's head as it stands at `group` and the bytes that follow it.
std::uint64_t checksum_of(const std::byte* group, std::uint64_t body_bytes) noexcept {
  return XXH3_64bits_withSeed(group + sizeof(JournalGroup), body_bytes,
                              XXH3_64bits(group, offsetof(JournalGroup, checksum)));
}

class FileJournal final : public Journal {
 public:
  FileJournal(int file, std::uint64_t id, std::uint64_t half_bytes, std::uint64_t pool_bytes,
              std::function<bool()> write_back)
      : file_(file), id_(id), half_bytes_(half_bytes), write_back_(std::move(write_back)) {
    while (pool_bytes >> grain_bits_ > kGrainsMax) ++grain_bits_;
    for (auto& grains : held_) grains.resize((pool_bytes >> grain_bits_) + 1);
    thread_ = std::thread([this] { write_back_halves(); });
  }
  ~FileJournal() override {
    {
      const std::lock_guard lock(mutex_);
      ends_ = true;
      changed_.notify_all();
    }
    thread_.join();
    std::free(buffer_);
    ::close(file_);
  }

  [[nodiscard]] std::size_t lines_max() const noexcept override {
    // A third of a half, so that no half is left almost empty.
    return (half_bytes_ / 3 - kJournalBlock) / sizeof(JournalLine);
  }

  [[nodiscard]] bool append(std::span<const std::uint64_t> line_offsets, std::span<const JournalRevoke> revokes,
                            const std::function<void(std::uint64_t, std::uint64_t*)>& copy) override {
    const std::uint64_t body = revokes.size_bytes() + line_offsets.size() * sizeof(JournalLine);
    const std::uint64_t bytes = rounded_up(sizeof(JournalGroup) + body);
    if (bytes > half_bytes_ || !make_room(bytes)) return false;
    if (bytes > buffer_bytes_) {
      std::free(buffer_);
      buffer_ = static_cast<std::byte*>(std::aligned_alloc(kJournalBlock, bytes));
      buffer_bytes_ = buffer_ == nullptr ? 0 : bytes;
      if (buffer_ == nullptr) return false;
    }
    JournalGroup group{id_, number_, line_offsets.size(), revokes.size(), 0, {}};
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
    const auto to = static_cast<off_t>(kJournalBlock + half_ * half_bytes_ + used_);
    std::uint64_t done = 0;
    while (done < bytes) {
      const ssize_t put = pwrite(file_, buffer_ + done, bytes - done, to + static_cast<off_t>(done));
      if (put < 0 && errno == EINTR) continue;
      if (put <= 0) return false;
      done += static_cast<std::uint64_t>(put);
    }
    used_ += bytes;
    ++number_;
    return true;
  }

  [[nodiscard]] bool may_hold(std::uint64_t offset, std::uint64_t bytes) const noexcept override {
    for (std::uint64_t grain = offset >> grain_bits_; grain <= (offset + bytes - 1) >> grain_bits_; ++grain) {
      if (held_[0][grain] != 0 || held_[1][grain] != 0) return true;
    }
    return false;
  }

 private:
  static constexpr std::uint64_t kGrainsMax = 1 << 20;

  /// Goes on in the other half when this one is full. False: the pool's file can't be written back.
  [[nodiscard]] bool make_room(std::uint64_t bytes) {
    if (used_ + bytes <= half_bytes_) return !failed_.load(std::memory_order_relaxed);
    std::unique_lock lock(mutex_);
    // The other half may be begun anew when everything in it has reached the pool's file.
    changed_.wait(lock, [this] { return !writing_back_ || failed_; });
    if (failed_) return false;
    writing_back_ = true;  // For the half that is full.
    half_ = 1 - half_;
    used_ = 0;
    std::fill(held_[half_].begin(), held_[half_].end(), 0);
    changed_.notify_all();
    return true;
  }

  void write_back_halves() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [this] { return writing_back_ || ends_; });
      if (ends_) return;
      lock.unlock();
      const bool fine = write_back_();
      lock.lock();
      if (!fine) failed_ = true;
      writing_back_ = false;
      changed_.notify_all();
    }
  }

  int file_;
  std::uint64_t id_;
  std::uint64_t half_bytes_;
  std::function<bool()> write_back_;
  unsigned grain_bits_ = 12;
  std::array<std::vector<std::uint8_t>, 2> held_;  // grains of the pool with lines in a half
  unsigned half_ = 0;
  std::uint64_t used_ = 0;  // bytes of that half
  std::uint64_t number_ = 1;
  std::byte* buffer_ = nullptr;
  std::uint64_t buffer_bytes_ = 0;

  std::mutex mutex_;  // of what follows
  std::condition_variable changed_;
  bool writing_back_ = false;
  bool ends_ = false;
  std::atomic<bool> failed_{false};
  std::thread thread_;
};

/// The groups of a half, as far as they follow each other.
struct Half {
  struct Group {
    const std::byte* body;
    std::uint64_t lines, revokes;
  };
  std::uint64_t first = 0, last = 0;  // numbers; first is 0 when there are none
  std::uint64_t youngest = 0;         // of all that are sound, in order or not
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
  while (at < bytes.size() && read_group(bytes, at, id, group) && (half.first == 0 || group.number == half.last + 1)) {
    if (half.first == 0) half.first = group.number;
    if (group.number == 0) break;
    half.last = group.number;
    half.groups.push_back({bytes.data() + at + sizeof group, group.lines, group.revokes});
    at += rounded_up(sizeof group + group.lines * sizeof(JournalLine) + group.revokes * sizeof(JournalRevoke));
  }
  // What follows was begun and not acknowledged, or is older.
  half.youngest = half.last;
  for (; at < bytes.size(); at += kJournalBlock) {
    if (read_group(bytes, at, id, group)) half.youngest = std::max(half.youngest, group.number);
  }
  return half;
}

}  // namespace

Result<std::unique_ptr<Journal>> Journal::create(const std::string& path, std::uint64_t id, std::uint64_t half_bytes,
                                                 std::uint64_t pool_bytes, std::function<bool()> write_back) {
  const auto refuse = [&path](int error) {
    unlink(path.c_str());
    return make_error(error == ENOSPC || error == EDQUOT ? ErrorCode::kNoSpace : ErrorCode::kIo,
                      "can't create the journal " + path + ": " + std::strerror(error));
  };
  unlink(path.c_str());
  constexpr int kFlags = O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC | O_DSYNC;
  int file = ::open(path.c_str(), kFlags | O_DIRECT, 0644);
  if (file < 0) {  // As on a file system in memory, which may have left the file there.
    unlink(path.c_str());
    file = ::open(path.c_str(), kFlags, 0644);
  }
  if (file < 0) return refuse(errno);
  // Blocks that are written later need no change of the file system's own data: a third of the time of a fence.
  constexpr std::uint64_t kPiece = 1 << 20;
  auto* piece = static_cast<std::byte*>(std::aligned_alloc(kJournalBlock, kPiece));
  bool fine = piece != nullptr;
  if (fine) std::memset(piece, 0, kPiece);
  const std::uint64_t bytes = kJournalBlock + 2 * half_bytes;
  for (std::uint64_t at = 0; fine && at < bytes; at += kPiece) {
    const std::uint64_t length = std::min(kPiece, bytes - at);
    fine = pwrite(file, piece, length, static_cast<off_t>(at)) == static_cast<ssize_t>(length);
  }
  if (fine) {
    JournalHead head{kJournalMagic, id, half_bytes, 0};
    head.checksum = checksum_of(head);
    std::memcpy(piece, &head, sizeof head);
    fine = pwrite(file, piece, kJournalBlock, 0) == static_cast<ssize_t>(kJournalBlock) && fsync(file) == 0;
  }
  const int error = fine ? 0 : errno != 0 ? errno : EIO;
  std::free(piece);
  if (!fine) {
    ::close(file);
    return refuse(error);
  }
  // Its name must survive, too.
  const std::size_t slash = path.rfind('/');
  const std::string directory = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  const int parent = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (parent >= 0) {
    fsync(parent);
    ::close(parent);
  }
  return std::make_unique<FileJournal>(file, id, half_bytes, pool_bytes, std::move(write_back));
}

Status replay_journal(std::span<const std::byte> journal, std::uint64_t id, std::uint64_t pool_bytes,
                      const std::function<void(std::uint64_t, const std::uint64_t*)>& apply) {
  JournalHead head;
  if (journal.size() < kJournalBlock) return make_error(ErrorCode::kCorrupt, "it is too short");
  std::memcpy(&head, journal.data(), sizeof head);
  if (head.magic != kJournalMagic || head.checksum != checksum_of(head))
    return make_error(ErrorCode::kCorrupt, "its head is damaged");
  if (head.id != id) return make_error(ErrorCode::kCorrupt, "it belongs to another pool");
  if (head.half_bytes % kJournalBlock != 0 || (journal.size() - kJournalBlock) / 2 < head.half_bytes)
    return make_error(ErrorCode::kCorrupt, "it is too short");
  std::array<Half, 2> halves;
  for (std::size_t i = 0; i < 2; ++i)
    halves[i] = read_half(journal.subspan(kJournalBlock + i * head.half_bytes, head.half_bytes), id);
  if (halves[0].first > halves[1].first) std::swap(halves[0], halves[1]);
  // Younger groups than the last in order would be acknowledged ones behind damage.
  if (std::max(halves[0].youngest, halves[1].youngest) > halves[1].last)
    return make_error(ErrorCode::kCorrupt, "a group of it is damaged");
  if (halves[0].first != 0 && halves[1].first != halves[0].last + 1)
    return make_error(ErrorCode::kCorrupt, "groups of it are missing");
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
          return make_error(ErrorCode::kCorrupt, "a line of it is outside of the pool");
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
