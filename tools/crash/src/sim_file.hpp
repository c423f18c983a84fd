// SimFile: simulated memory that is the mapping of a pool's file, on a disk that remembers.
//
//   the file: | structure, whole pages | 2 pages of others | journal's extent | root page: id of the journal, or 0 |
//
// The pages of others are for what the structures alone do seldom: lines that are fenced and then written past the
// journal, fences of too many lines for it, and bytes that another (libpmemobj, in a pool) takes and syncs himself.
//
// The production code for ordinary files (FileSync, Journal, replay_journal) runs on it as it is, on simulated threads:
// what it asks of the operating system goes through a FileSystem that records each call with its beginning and its end
// among the events of the memory. So stores fall before, into and after every call. From the record, the explorer
// derives what a disk may hold (file_explorer.hpp).
//
// A SimFile can also refuse one call, and plant bugs (FileMutation).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "dunnock/base/file.hpp"
#include "dunnock/pmem/file_media.hpp"
#include "dunnock/pmem/sim_media.hpp"
#include "journal.hpp"

namespace dunnock::crash {

/// What a call is for.
enum class Site : std::uint8_t {
  kLongWrite,    // pwrite of a long value into the pages
  kEarlySync,    // msync of a fence before there is a journal
  kRangeSync,    // msync of what was written past the journal
  kAllSync,      // fdatasync instead of a group that is too long
  kHalfSync,     // fdatasync before a half of the journal is begun anew
  kBeginFill,    // the blocks of a new journal
  kBeginHead,    // its head
  kBeginSync,    // fdatasync of both
  kNoteWrite,    // the root needs this journal
  kNoteSync,     // durably
  kGroup,        // a group of lines
  kRevokes,      // a group of revokes alone
  kHandOver,     // an empty group: what the other half holds is not needed
  kCloseSync,    // fdatasync of everything before
  kForgetWrite,  // the root needs no journal
  kForgetSync,
  kReplayWrite,  // lines of the journal, to the pages
  kReplaySync,   // durably, before
  kReplayForgetWrite,  // the root needs no journal
  kReplayForgetSync,
  kOthersSync,  // msync by another
};
inline constexpr std::size_t kSites = 21;
[[nodiscard]] std::string_view name(Site site) noexcept;

/// A planted bug of what is done to the file.
struct FileMutation {
  enum class Kind : std::uint8_t {
    kNone,
    kNotDone,     ///< The calls of `site` do not happen.
    kNotDurable,  ///< Its durable writes are plain ones.
    kSwapped,     ///< They happen after the call that follows.
    kFailed,      ///< They fail, and the error is ignored: what they were to write counts as written, and is not.
    kLeftOut,     ///< The code leaves out the step of this name (FileSystem::leaves_out).
  };
  Kind kind = Kind::kNone;
  Site site{};
  std::string_view step;
};

class SimFile final : public SimMemory {
 public:
  enum class CallKind : std::uint8_t {
    kWrite,         // to the page cache
    kDurableWrite,  // past it
    kSync,          // of a range of pages
    kFreeze,        // From here stores do not reach the file.
  };
  struct Call {
    CallKind kind;
    Site site;
    bool fails;
    std::uint64_t offset, bytes;
    std::vector<std::byte> data;  // of a write
    bool lost = false;            // A write that never reaches the page cache, though the code believes so.
  };
  /// How a history uses the file, by its seed.
  struct Shape {
    unsigned half_blocks = 4;
    std::uint64_t fences_before_journal = 0;
    std::size_t long_write = 16 << 10;
    unsigned reopen_every = 0;  // fences after which the pool is closed and opened, about; 0: never
    unsigned others_every = 0;  // fences after which something happens in the pages of others, about; 0: never
    bool fresh = true;          // The extent was never written.
    [[nodiscard]] static Shape of(std::uint64_t seed);
  };
  struct Options {
    std::size_t structure_bytes = 0;
    Shape shape;
    std::uint64_t seed = 1;
    FileMutation mutation;
    std::size_t fail_at = 0;  ///< The call of this number (from 1) fails; 0: none.
    int fail_with = 0;        ///< errno
  };
  /// Its first structure_bytes bytes are the structure's.
  explicit SimFile(Options options);
  ~SimFile();

  [[nodiscard]] static std::size_t bytes_for(std::size_t structure_bytes, const Shape& shape);
  [[nodiscard]] detail::JournalExtent extent() const noexcept { return extent_; }
  [[nodiscard]] std::uint64_t root() const noexcept { return root_; }

  [[nodiscard]] const std::vector<Call>& calls() const noexcept { return calls_; }
  /// What the calls that could fail were for, so far.
  [[nodiscard]] const std::vector<Site>& fallible() const noexcept { return fallible_; }
  /// Has the call `fail_at` failed?
  [[nodiscard]] bool has_failed() const noexcept {
    return options_.fail_at != 0 && fallible_.size() >= options_.fail_at;
  }

  /// What Pool does when it opens a file after a crash (PoolFile::recover), recorded. A sentence when that fails.
  std::optional<std::string> replay();
  /// Closes the file as a pool is closed. To be called when the workload is over.
  void finish();

  // Called by the media.
  void open();
  void note(Point point, const void* address) noexcept;
  void write(Point point, void* to, const void* from, std::size_t bytes) noexcept;
  void sync(Point point) noexcept;
  [[nodiscard]] bool ok() const noexcept { return !failed_; }

  // Called by the FileSystem. False and errno: it failed.
  bool call(CallKind kind, std::uint64_t offset, std::uint64_t bytes, const void* data) noexcept;
  bool leaves_out(std::string_view step) noexcept;

 private:
  [[nodiscard]] Site site_of(CallKind kind, std::uint64_t offset, const void* data) const noexcept;
  void perform(Call call) noexcept;
  bool fence_now(Point point) noexcept;
  void use_others_pages();
  bool note_journal(std::uint64_t id) noexcept;
  void open_anew();
  void close_it();

  enum class Phase : std::uint8_t { kWork, kBegin, kNote, kClose, kForget, kReplay, kReplayForget };
  Options options_;
  detail::JournalExtent extent_;
  std::uint64_t root_;
  UniqueFd descriptor_;
  std::unique_ptr<detail::FileSync> sync_;
  std::vector<Call> calls_;
  std::optional<Call> late_;  // put off by a mutation
  Phase phase_ = Phase::kWork;
  std::string_view step_;  // what leaves_out() was asked for last
  std::vector<Site> fallible_;
  std::mt19937_64 random_;
  std::uint64_t others_;      // where the pages of others begin
  bool among_others_ = false;
  std::size_t fences_ = 0;
  std::vector<std::size_t> unfenced_;  // of each thread: lines noted since its last fence
  unsigned syncing_ = 0;               // threads in sync()
  bool quiet_ = false;                 // Threads are not switched.
  bool failed_ = false;
  bool begun_ = false;   // The extent has been written.
  SimFile* outer_ = nullptr;
};

/// FileMedia on a SimFile; `memory` is one.
struct SimFileMedia {
  static constexpr Durability kDurability = Durability::kPower;
  static constexpr bool kVisibleIsDurable = false;
  static constexpr unsigned kFenceBatch = FileMedia::kFenceBatch;
  static constexpr bool kThreadsAreSimulated = true;
  explicit SimFileMedia(SimMemory& memory) : file_(static_cast<SimFile*>(&memory)) { file_->open(); }
  [[nodiscard]] std::uint64_t load(const Word& word) const noexcept { return file_->load(word); }
  void store(Point point, Word& word, std::uint64_t value) const noexcept { file_->store(point, word, value); }
  void write(Point point, void* to, const void* from, std::size_t bytes) const noexcept {
    file_->write(point, to, from, bytes);
  }
  void flush(Point point, const void* address) const noexcept { file_->note(point, address); }
  void fence(Point point) const noexcept { file_->sync(point); }
  void pause() const noexcept { file_->pause(); }
  [[nodiscard]] bool ok() const noexcept { return file_->ok(); }

 private:
  SimFile* file_;
};

static_assert(Media<SimFileMedia>);

}  // namespace dunnock::crash
