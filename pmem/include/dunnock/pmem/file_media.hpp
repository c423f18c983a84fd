// FileMedia: durability for pools in ordinary files, where the page cache stands between memory and the disk.
//
//   flush()  notes the line.
//   fence()  makes all lines that this thread has noted durable by one sequential write to a redo journal, which is an
//            extent of the pool's own file, of the lines as they are then. Fences of several threads that meet share a
//            write. When a half of the journal is full, the pool's pages are written back in the background.
//   write()  of 16 KiB or more goes to the pool's file past the journal, and its fence writes that range back.
//
// The journal is begun when a pool has been fenced some times, and replayed when a pool is opened after a crash. Where
// there is no room for one, fence() writes back the pages themselves with msync, as it does before.
//
// The kernel may write a page at any time before it is fenced, which is what the model in media.hpp allows.
//
// When the disk refuses a write or a sync, what is in memory and what is on disk can no longer be told apart (a second
// sync may succeed although the pages are lost). So from the first such error on the media has failed: ok() is false,
// no fence makes anything durable, nothing is acknowledged any more, and nothing that the next opening may need is
// thrown away. Before the fence that met the error returns, the mapping is made private to the process, so that no
// later store reaches the file: what is there is what a crash at that moment could have left. Close the pool and open
// it again to go on. The same happens when a page of the file can't be read (SIGBUS), and in the child of a fork.
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

/// What all FileMedia of one pool share.
class FileSync {
 public:
  struct Options {
    /// Of the pool's file, open for reading and writing for as long as this lives. -1: there is none, and no journal.
    int file = -1;
    /// An extent of the file for a journal, durably allocated and used by nobody else; 0 bytes: there is no room.
    /// `fresh` says whether its blocks were never written. Called once. Null: no journal.
    std::function<JournalExtent(bool& fresh)> journal_extent;
    /// Notes in the pool, durably, that it needs the journal with this number; 0: none. False: the disk refuses.
    std::function<bool(std::uint64_t id)> note_journal;
    /// Makes the mapping private. Called once, also from a signal handler. Null: mmap over it.
    std::function<void()> freeze;
    /// Ends the process at the first error instead, with a message.
    bool abort_on_error = false;
    /// Write back full halves of the journal on a thread of its own, and let fences wait a little for others. Where no
    /// thread can be started, the fence that needs a half writes it back.
    bool in_background = true;
    /// Called instead of sleeping while another thread's fence is at work (simulated threads). Null: sleep.
    std::function<void()> pause;
    /// The number of the calling thread, small. Null: of the real one. (Simulated threads share a real one.)
    std::function<unsigned()> thread;
    /// Called between the words of a line that is copied for the journal (simulated threads). Null: nothing.
    std::function<void()> between_words;
    /// Fences before a journal is made: who opens a pool to look at it needs none.
    std::uint64_t fences_before_journal = 32;
    /// Writes of so many bytes go past the journal.
    std::size_t long_write = 16 << 10;
  };
  FileSync(void* base, std::size_t bytes, Options options);
  /// As close(), without a word.
  ~FileSync();
  FileSync(const FileSync&) = delete;
  FileSync& operator=(const FileSync&) = delete;

  /// Writes back the pool's pages and says that the journal is not needed. Errors: Io (also an earlier one), and then
  /// the journal stays.
  [[nodiscard]] Status close();

  /// Notes the line of `address` for the calling thread.
  void note(const void* address) noexcept;
  /// Copies bytes into the pool and notes them.
  void write(void* to, const void* from, std::size_t bytes) noexcept;
  /// Returns when everything that the calling thread has noted is on disk, or the media has failed.
  void sync() noexcept;
  /// Returns when everything in the pool's file is on disk, and voids the journal: bytes that were fenced may now get
  /// another use, by those who do not fence.
  void write_back_all() noexcept;
  /// Looks for errors of the disk that libpmemobj has met and not told of. False: the media has failed.
  bool check_disk() noexcept;

  /// Calls work() while no fence is at work, and none begins.
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
  /// Something has failed. Safe in a signal handler.
  void fail(int error) noexcept;
  /// In the child of a fork, by the handler: only marks, since locks may be held for ever.
  void abandon() noexcept;

  [[nodiscard]] std::uint64_t syncs() const noexcept;   ///< writes to the disk so far
  [[nodiscard]] std::uint64_t fences() const noexcept;  ///< sync() calls that had something to do
  [[nodiscard]] bool has_journal() const noexcept;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace detail

/// A copyable handle; the Pool that it came from must outlive it.
struct FileMedia : detail::MappedLoads {
  static constexpr Durability kDurability = Durability::kPower;
  static constexpr bool kVisibleIsDurable = false;
  static constexpr unsigned kFenceBatch = 256;  ///< Keys of a bulk operation that should share a fence.

  explicit FileMedia(detail::FileSync& file_sync) noexcept : sync_(&file_sync) {}
  void write(Point, void* to, const void* from, std::size_t bytes) const noexcept { sync_->write(to, from, bytes); }
  void flush(Point, const void* address) const noexcept { sync_->note(address); }
  void fence(Point) const noexcept { sync_->sync(); }
  /// False from the first error of the disk on: nothing that was fenced since is durable (see above).
  [[nodiscard]] bool ok() const noexcept { return sync_->ok(); }

  /// Writes to the disk and fences since the pool was opened: their ratio says how many fences shared one write.
  [[nodiscard]] std::uint64_t syncs() const noexcept { return sync_->syncs(); }
  [[nodiscard]] std::uint64_t fences() const noexcept { return sync_->fences(); }
  /// Is there a journal by now?
  [[nodiscard]] bool has_journal() const noexcept { return sync_->has_journal(); }

 private:
  detail::FileSync* sync_;
};

static_assert(Media<FileMedia>);

}  // namespace dunnock
