#include "sim_file.hpp"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <random>

#include "dunnock/base/check.hpp"
#include "dunnock/base/file.hpp"

namespace dunnock::crash {
namespace {

constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kOthersBytes = 2 * kPage;
constexpr std::uint64_t kOthersLines = kOthersBytes / kLineBytes;

/// The file that the library works on in this thread.
thread_local SimFile* current = nullptr;

/// The operating system, or the current file.
class SimFiles final : public FileSystem {
 public:
  SimFiles() { set_file_system(this); }
  int open(int directory, const char* path, int flags, mode_t mode) noexcept override {
    if (current == nullptr) return FileSystem::open(directory, path, flags, mode);
    return ::open("/dev/null", O_RDWR | O_CLOEXEC);  // A descriptor to be closed.
  }
  bool pwrite(int fd, const void* from, std::size_t bytes, std::uint64_t offset) noexcept override {
    if (current == nullptr) return FileSystem::pwrite(fd, from, bytes, offset);
    return current->call(SimFile::CallKind::kWrite, offset, bytes, from);
  }
  bool pwrite_durably(int fd, const void* from, std::size_t bytes, std::uint64_t offset) noexcept override {
    if (current == nullptr) return FileSystem::pwrite_durably(fd, from, bytes, offset);
    return current->call(SimFile::CallKind::kDurableWrite, offset, bytes, from);
  }
  void start_write(int fd, std::uint64_t offset, std::uint64_t bytes) noexcept override {
    if (current == nullptr) FileSystem::start_write(fd, offset, bytes);
  }
  int wait_for_writes(int fd, std::uint64_t offset, std::uint64_t bytes) noexcept override {
    return current == nullptr ? FileSystem::wait_for_writes(fd, offset, bytes) : 0;
  }
  int fsync(int fd) noexcept override { return current == nullptr ? FileSystem::fsync(fd) : fdatasync(fd); }
  int fdatasync(int fd) noexcept override {
    if (current == nullptr) return FileSystem::fdatasync(fd);
    return current->call(SimFile::CallKind::kSync, 0, current->bytes(), nullptr) ? 0 : -1;
  }
  int msync(void* address, std::size_t bytes) noexcept override {
    if (current == nullptr) return FileSystem::msync(address, bytes);
    const auto offset = static_cast<std::uint64_t>(static_cast<std::byte*>(address) - current->data());
    return current->call(SimFile::CallKind::kSync, offset, bytes, nullptr) ? 0 : -1;
  }
  bool leaves_out(std::string_view step) noexcept override {
    return current == nullptr ? false : current->leaves_out(step);
  }
};

std::uint64_t whole_pages(std::uint64_t bytes) noexcept { return (bytes + kPage - 1) / kPage * kPage; }

}  // namespace

std::string_view name(Site site) noexcept {
  static constexpr std::string_view kNames[kSites] = {"long write",
                                                      "sync before the journal",
                                                      "sync of ranges",
                                                      "sync of all",
                                                      "sync of a half",
                                                      "new blocks",
                                                      "new head",
                                                      "new sync",
                                                      "note",
                                                      "sync of the note",
                                                      "group",
                                                      "revokes",
                                                      "hand-over",
                                                      "sync at closing",
                                                      "forgetting at closing",
                                                      "sync of the forgetting",
                                                      "replayed lines",
                                                      "sync of the replay",
                                                      "forgetting after the replay",
                                                      "last sync of the replay",
                                                      "sync by another"};
  return kNames[static_cast<std::size_t>(site)];
}

SimFile::Shape SimFile::Shape::of(std::uint64_t seed) {
  std::mt19937_64 random(seed * 0x9e3779b97f4a7c15ULL + 21);
  Shape shape;
  shape.half_blocks = 4 + static_cast<unsigned>(random() % 4);
  shape.fences_before_journal = random() % 3 == 0 ? 1 + random() % 12 : 0;
  if (random() % 2 == 0) shape.long_write = 64 + random() % 3 * 32;
  if (random() % 3 == 0) shape.reopen_every = 8 + static_cast<unsigned>(random() % 32);
  if (random() % 3 != 0) shape.others_every = 4 + static_cast<unsigned>(random() % 12);
  shape.fresh = random() % 2 == 0;
  return shape;
}

std::size_t SimFile::bytes_for(std::size_t structure_bytes, const Shape& shape) {
  return whole_pages(structure_bytes) + kOthersBytes + detail::kJournalBlock * (1 + 2 * shape.half_blocks) + kPage;
}

SimFile::SimFile(Options options)
    : SimMemory(bytes_for(options.structure_bytes, options.shape)),
      options_(options),
      extent_{whole_pages(options.structure_bytes) + kOthersBytes,
              detail::kJournalBlock * (1 + 2 * options.shape.half_blocks)},
      root_(extent_.offset + extent_.bytes),
      random_(options.seed * 3 + 1),
      others_(extent_.offset - kOthersBytes) {
  static SimFiles files;
  if (options_.shape.fresh) return;
  // What was in the extent before means nothing.
  std::mt19937_64 random(options_.seed);
  for (std::uint64_t at = 0; at < extent_.bytes; at += sizeof(std::uint64_t)) {
    const std::uint64_t word = random();
    std::memcpy(data() + extent_.offset + at, &word, sizeof word);
  }
}

SimFile::~SimFile() {
  quiet_ = true;
  if (sync_ != nullptr) {
    current = this;
    options_.mutation = {};
    sync_.reset();
  }
  if (current == this) current = outer_;
}

void SimFile::open() {
  if (sync_ != nullptr) return;
  outer_ = current;
  current = this;
  open_anew();
}

void SimFile::open_anew() {
  step_ = {};
  detail::FileSync::Options how;
  how.file = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  DUNNOCK_CHECK(how.file >= 0, "/dev/null can be opened");
  how.journal_extent = [this](bool& fresh) {
    fresh = options_.shape.fresh && !begun_;
    begun_ = true;
    phase_ = Phase::kBegin;
    return extent_;
  };
  how.note_journal = [this](std::uint64_t id) { return note_journal(id); };
  how.freeze = [this] { perform({CallKind::kFreeze, Site{}, false, 0, 0, {}}); };
  how.in_background = false;
  how.pause = [this] { pause(); };
  how.thread = [this] { return static_cast<unsigned>(thread()); };
  how.between_words = [this] {
    if (!quiet_) may_switch(8);
  };
  how.fences_before_journal = options_.shape.fences_before_journal;
  how.long_write = options_.shape.long_write;
  const int file = how.file;
  sync_ = std::unique_ptr<detail::FileSync>(new detail::FileSync(data(), bytes(), std::move(how)));
  descriptor_ = UniqueFd(file);
}

void SimFile::close_it() {
  phase_ = Phase::kClose;
  (void)sync_->close();
  if (!sync_->ok()) failed_ = true;
  phase_ = Phase::kWork;
}

void SimFile::finish() {
  if (sync_ == nullptr) return;
  close_it();
  quiet_ = true;
  if (late_) perform(*std::exchange(late_, std::nullopt));
}

bool SimFile::note_journal(std::uint64_t id) noexcept {
  const Phase before = phase_;
  phase_ = id != 0 ? Phase::kNote : Phase::kForget;
  FileSystem& files = file_system();
  const bool fine = files.pwrite(descriptor_.get(), &id, sizeof id, root_) && files.fdatasync(descriptor_.get()) == 0;
  phase_ = before == Phase::kBegin ? Phase::kWork : before;
  return fine;
}

std::optional<std::string> SimFile::replay() {
  SimFile* const before = std::exchange(current, this);
  quiet_ = true;
  phase_ = Phase::kReplay;
  const auto leave = [&](std::optional<std::string> answer) {
    phase_ = Phase::kWork;
    quiet_ = false;
    current = before;
    return answer;
  };
  std::uint64_t id = 0;
  std::memcpy(&id, data() + root_, sizeof id);
  FileSystem& files = file_system();
  bool fine = true;
  if (id != 0) {
    std::vector<std::byte> run;
    std::uint64_t run_offset = 0;
    const auto write_run = [&] {
      if (fine && !run.empty()) fine = files.pwrite(-1, run.data(), run.size(), run_offset);
      run.clear();
    };
    const Status replayed =
        detail::replay_journal(std::span<const std::byte>(data() + extent_.offset, extent_.bytes), id, bytes(), extent_,
                               [&](std::uint64_t offset, const std::uint64_t* words) {
                                 if (!run.empty() && run_offset + run.size() != offset) write_run();
                                 if (run.empty()) run_offset = offset;
                                 const auto* line = reinterpret_cast<const std::byte*>(words);
                                 run.insert(run.end(), line, line + kLineBytes);
                               });
    if (!replayed) return leave("the journal can't be replayed: " + replayed.error().message);
    write_run();
  }
  fine = fine && files.fdatasync(-1) == 0;
  phase_ = Phase::kReplayForget;
  id = 0;
  fine = fine && files.pwrite(-1, &id, sizeof id, root_) && files.fdatasync(-1) == 0;
  begun_ = true;  // Or not; an extent that was written is the harder one.
  return leave(fine ? std::nullopt : std::optional<std::string>("the disk refuses"));
}

void SimFile::note(Point point, const void* address) noexcept {
  sync_->note(address);
  if (unfenced_.size() <= thread()) unfenced_.resize(thread() + 1U);
  ++unfenced_[thread()];
  flush(point, address);
}

void SimFile::write(Point point, void* to, const void* from, std::size_t bytes) noexcept {
  if (bytes == 0) return;
  if (unfenced_.size() <= thread()) unfenced_.resize(thread() + 1U);
  ++unfenced_[thread()];
  auto* const words = static_cast<Word*>(to);
  if (bytes < options_.shape.long_write || failed_) {
    // The stores, so that they are recorded; then the same by the production code.
    for (std::size_t i = 0; i < bytes / sizeof(Word); ++i) {
      std::uint64_t value;
      std::memcpy(&value, static_cast<const std::byte*>(from) + i * sizeof value, sizeof value);
      store(point, words[i], value);
    }
  }
  sync_->write(to, from, bytes);
  for (std::size_t i = 0; i < bytes / sizeof(Word); ++i) {
    const bool line_ends = (reinterpret_cast<std::uintptr_t>(words + i + 1) & (kLineBytes - 1)) == 0;
    if (line_ends || (i + 1) * sizeof(Word) == bytes) flush(point, words + i);
  }
}

bool SimFile::fence_now(Point point) noexcept {
  may_switch();
  ++syncing_;
  sync_->sync();
  --syncing_;
  if (!sync_->ok()) {
    failed_ = true;
    return false;
  }
  fence(point);
  if (thread() < unfenced_.size()) unfenced_[thread()] = 0;
  return true;
}

void SimFile::use_others_pages() {
  constexpr Point kNowhere{};
  // Threads have lines of their own there.
  const std::uint64_t mine = thread() % 8 * (kOthersLines / 8) + random_() % 12;
  const auto word = [this](std::uint64_t line, std::uint64_t at) -> Word& {
    return *reinterpret_cast<Word*>(data() + others_ + line * kLineBytes + at * sizeof(Word));
  };
  const auto put = [&] {
    const std::uint64_t first = random_() % 5;
    for (std::uint64_t i = 0; i < 4; ++i) store(kNowhere, word(mine, first + i), random_());
    note(kNowhere, &word(mine, 0));
    // Groups of more than a sector, of lines that others are at.
    for (std::uint64_t n = random_() % 2 * 20; n > 0; --n) note(kNowhere, &word(random_() % kOthersLines, 0));
  };
  switch (random_() % 3) {
    case 0: {  // What the journal holds is written past it.
      put();
      if (!fence_now(kNowhere) || options_.shape.long_write > 3 * kLineBytes) return;
      std::array<std::uint64_t, 3 * kLineBytes / sizeof(Word)> values;
      for (std::uint64_t& value : values) value = random_();
      write(kNowhere, &word(mine, 0), values.data(), sizeof values);
      (void)fence_now(kNowhere);
      return;
    }
    case 1: {  // A fence of too many lines for a group.
      put();
      if (!fence_now(kNowhere)) return;
      put();
      for (std::uint64_t line = 0; line < kOthersLines; ++line) note(kNowhere, &word(line, 0));
      (void)fence_now(kNowhere);
      return;
    }
    default: {  // Another takes over what was fenced.
      put();
      if (!fence_now(kNowhere)) return;
      ++syncing_;  // Nobody closes the pool meanwhile.
      sync_->write_back_all();
      --syncing_;
      if (!sync_->ok()) {
        failed_ = true;
        return;
      }
      for (int i = 0; i < 2; ++i) store(kNowhere, word(mine, random_() % 8), random_());
      flush(kNowhere, &word(mine, 0));
      const std::uint64_t page = (others_ + mine * kLineBytes) / kPage * kPage;
      perform({CallKind::kSync, Site::kOthersSync, false, page, kPage, {}});
      if (sync_->ok()) fence(kNowhere);
    }
  }
}

void SimFile::sync(Point point) noexcept {
  if (!fence_now(point)) return;
  if (options_.shape.others_every != 0 && !among_others_ && random_() % options_.shape.others_every == 0) {
    among_others_ = true;
    use_others_pages();
    among_others_ = false;
    if (failed_) return;
  }
  // Now and then the pool is closed and opened, when nobody is at work.
  if (options_.shape.reopen_every == 0 || ++fences_ % options_.shape.reopen_every != 0 || syncing_ != 0) return;
  for (const std::size_t lines : unfenced_) {
    if (lines != 0) return;
  }
  quiet_ = true;
  close_it();
  if (!failed_) open_anew();
  quiet_ = false;
}

bool SimFile::leaves_out(std::string_view step) noexcept {
  step_ = step;
  return options_.mutation.kind == FileMutation::Kind::kLeftOut && options_.mutation.step == step;
}

Site SimFile::site_of(CallKind kind, std::uint64_t offset, const void* data) const noexcept {
  if (kind == CallKind::kDurableWrite) {
    detail::JournalGroup group;
    std::memcpy(&group, data, sizeof group);
    return group.lines != 0 ? Site::kGroup : group.revokes != 0 ? Site::kRevokes : Site::kHandOver;
  }
  const bool write = kind == CallKind::kWrite;
  switch (phase_) {
    case Phase::kBegin:
      if (!write) return Site::kBeginSync;
      return offset == extent_.offset && static_cast<const std::byte*>(data)[0] != std::byte{} ? Site::kBeginHead
                                                                                               : Site::kBeginFill;
    case Phase::kNote: return write ? Site::kNoteWrite : Site::kNoteSync;
    case Phase::kForget: return write ? Site::kForgetWrite : Site::kForgetSync;
    case Phase::kReplay: return write ? Site::kReplayWrite : Site::kReplaySync;
    case Phase::kReplayForget: return write ? Site::kReplayForgetWrite : Site::kReplayForgetSync;
    case Phase::kClose: return Site::kCloseSync;
    case Phase::kWork: break;
  }
  if (write) return Site::kLongWrite;
  if (step_ == "write-back of a half") return Site::kHalfSync;
  if (step_ == "write-back of all") return Site::kAllSync;
  return step_ == "write-back of ranges" ? Site::kRangeSync : Site::kEarlySync;
}

bool SimFile::call(CallKind kind, std::uint64_t offset, std::uint64_t bytes, const void* data) noexcept {
  if (!quiet_) may_switch();
  const Site site = site_of(kind, offset, data);
  if (site != Site::kRangeSync) step_ = {};  // Several ranges may follow each other.
  Call one{kind, site, false, offset, bytes, {}};
  if (data != nullptr)
    one.data.assign(static_cast<const std::byte*>(data), static_cast<const std::byte*>(data) + bytes);
  fallible_.push_back(site);
  if (fallible_.size() == options_.fail_at) {
    one.fails = true;
    // A write that fails may have written a part.
    one.data.resize(std::min<std::size_t>(one.data.size(), random_() % 4 * 512));
    if (data != nullptr) one.bytes = one.data.size();
    perform(std::move(one));
    errno = options_.fail_with;
    return false;
  }
  using Kind = FileMutation::Kind;
  const FileMutation& mutation = options_.mutation;
  if (mutation.kind != Kind::kNone && mutation.kind != Kind::kLeftOut && mutation.site == site) {
    switch (mutation.kind) {
      case Kind::kNotDone: return true;
      case Kind::kNotDurable: one.kind = CallKind::kWrite; break;
      case Kind::kFailed:
        one.fails = true;
        one.lost = kind == CallKind::kWrite;
        break;
      case Kind::kSwapped:
        if (late_) perform(*std::exchange(late_, std::nullopt));
        late_ = std::move(one);
        return true;
      default: break;
    }
  }
  perform(std::move(one));
  if (late_) perform(*std::exchange(late_, std::nullopt));
  return true;
}

void SimFile::perform(Call call) noexcept {
  const auto number = static_cast<std::uint32_t>(calls_.size());
  const bool fails = call.fails;
  const bool freezes = call.kind == CallKind::kFreeze;
  if (!call.data.empty() && !call.lost) std::memcpy(data() + call.offset, call.data.data(), call.data.size());
  if (freezes) failed_ = true;
  calls_.push_back(std::move(call));
  record(EventKind::kCall, Point{}, number, 0);
  if (freezes) return;
  for (int i = 0; i < 3 && !quiet_; ++i) may_switch();
  record(EventKind::kCall, Point{}, number, 1);
  if (!fails && !quiet_) may_switch();
}

}  // namespace dunnock::crash
