// FileMedia: durability for pools in ordinary files, where the page cache is between memory and the disk.
//
//   flush()  notes the line.
//   fence()  makes all lines that this thread has noted durable, as they are at that moment, by one sequential write to
//            a redo journal in an extent of the pool's own file. Concurrent fences of several threads share a write.
//            When one half of the journal is full, the pool's pages are written back in the background.
//   write()  bypasses the journal for 16 KiB or more: the bytes go to the pool's file, and the fence writes that range
//            back.
//
// The journal is created after a pool has been fenced several times (FileSync::Options::fences_before_journal), and
// replayed when a pool is opened after a crash. Until then, and where there is no room for one, fence() writes back the
// pages themselves with msync.
//
// The kernel may write a page at any time before it is fenced, which is what the model in media.hpp allows.
//
// When the disk refuses a write or a sync, it can no longer be known whether memory and disk agree (a second sync may
// succeed although the pages are lost). So the first such error makes the media fail: ok() is false, no fence makes
// anything durable, nothing is acknowledged any more, and nothing that the next opening may need is discarded. Before
// the fence that met the error returns, the mapping is made private to the process, so that no later store reaches the
// file: it holds what a crash at that moment could have left. Close the pool and open it again to continue. The same
// happens when a page of the file can't be read (SIGBUS), and in the child of a fork.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "dunnock/base/result.hpp"
#include "dunnock/pmem/media.hpp"

namespace dunnock {

namespace detail {

struct JournalExtent;
struct JournalRevoke;

/// State that all FileMedia of one pool share.
class FileSync {
 public:
  struct Options {
    /// Descriptor of the pool's file, open for reading and writing for as long as this lives. -1: no file, no journal.
    int file = -1;
    /// Provides an extent of the file for a journal, durably allocated and used by nobody else; 0 bytes: there is no
    /// room. `fresh` says whether its blocks were never written. Called once. Null: no journal.
    std::function<JournalExtent(bool& fresh)> journal_extent;
    /// Notes in the pool, durably, that it needs the journal with this number; 0: no journal. False: the disk refuses.
    std::function<bool(std::uint64_t id)> note_journal;
    /// Makes the mapping private. Called once, also from a signal handler. Null: mmap over it.
    std::function<void()> freeze;
    /// Ends the process with a message at the first error instead.
    bool abort_on_error = false;
    /// Write back full halves of the journal on a thread of its own, and let fences wait a little for others. Where no
    /// thread can be started, the fence that needs a half writes it back.
    bool in_background = true;
    /// Called instead of sleeping while another thread's fence is in progress (simulated threads). Null: sleep.
    std::function<void()> pause;
    /// A small number for the calling thread. Null: that of the real thread. (Simulated threads share a real one.)
    std::function<unsigned()> thread;
    /// Called between the words of a line that is copied for the journal (simulated threads). Null: nothing.
    std::function<void()> between_words;
    /// Number of fences before a journal is created: a process that only looks into a pool needs no journal.
    std::uint64_t fences_before_journal = 32;
    /// Writes of this many bytes or more bypass the journal.
    std::size_t long_write = 16 << 10;
  };
  FileSync(void* base, std::size_t bytes, Options options);
  /// Like close(), but ignores errors.
  ~FileSync();
  FileSync(const FileSync&) = delete;
  FileSync& operator=(const FileSync&) = delete;

  /// Writes back the pool's pages and notes that the journal is not needed. Errors: Io (also an earlier one); the
  /// journal then stays.
  [[nodiscard]] Status close();

  /// Notes the line of `address` for the calling thread.
  void note(const void* address) noexcept;
  /// Copies bytes into the pool and notes them.
  void write(void* to, const void* from, std::size_t bytes) noexcept;
  /// Returns when everything that the calling thread has noted is on disk or the media has failed.
  void sync() noexcept;
  /// Returns when everything in the pool's file is on disk, and voids the journal: bytes that were fenced may now be
  /// reused by code that does not fence.
  void write_back_all() noexcept;
  /// Looks for disk errors that libpmemobj has met and not reported. False: the media has failed.
  bool check_disk() noexcept;

  /// Calls work() while no fence is in progress and none can begin.
  void without_fences(const std::function<void()>& work);
  /// Begins the journal now, if it has not been tried yet, so that no later fence does.
  void begin_journal() noexcept;
  /// From now on, what fences make durable is noted in `touched` too, as ranges of the pool; null: no more. Only within
  /// without_fences().
  void note_touched(std::vector<JournalRevoke>* touched) noexcept;

  /// False from the first error on, forever.
  [[nodiscard]] bool ok() const noexcept;
  /// The errno of the first error, 0 while there is none; ECHILD in the child of a fork.
  [[nodiscard]] int error() const noexcept;
  /// Marks the media as failed. Safe in a signal handler.
  void fail(int error) noexcept;
  /// Called by the fork handler in the child: only sets a mark, since locks may be held forever.
  void abandon() noexcept;

  [[nodiscard]] std::uint64_t syncs() const noexcept;   ///< writes to the disk so far
  [[nodiscard]] std::uint64_t fences() const noexcept;  ///< sync() calls that had something to do
  [[nodiscard]] bool has_journal() const noexcept;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace detail

/// A copyable handle. The Pool that it came from must outlive it.
struct FileMedia : detail::MappedLoads {
  static constexpr Durability kDurability = Durability::kPower;
  static constexpr bool kVisibleIsDurable = false;
  static constexpr unsigned kFenceBatch = 256;  ///< How many keys of a bulk operation should share a fence.

  explicit FileMedia(detail::FileSync& file_sync) noexcept : sync_(&file_sync) {}
  void write(Point, void* to, const void* from, std::size_t bytes) const noexcept { sync_->write(to, from, bytes); }
  void flush(Point, const void* address) const noexcept { sync_->note(address); }
  void fence(Point) const noexcept { sync_->sync(); }
  /// False after the first disk error: nothing fenced since then is durable (see above).
  [[nodiscard]] bool ok() const noexcept { return sync_->ok(); }

  /// Disk writes and fences since the pool was opened. Their ratio is the number of fences per write.
  [[nodiscard]] std::uint64_t syncs() const noexcept { return sync_->syncs(); }
  [[nodiscard]] std::uint64_t fences() const noexcept { return sync_->fences(); }
  /// Is there a journal by now?
  [[nodiscard]] bool has_journal() const noexcept { return sync_->has_journal(); }

 private:
  detail::FileSync* sync_;
};

static_assert(Media<FileMedia>);

}  // namespace dunnock
