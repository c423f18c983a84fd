// FileMedia: durability for pools in ordinary files, where the page cache stands between memory and the disk.
//
//   flush()  notes the line.
//   fence()  makes all lines that this thread has noted durable by one sequential write to a redo journal beside the
//            pool ("<pool>.journal"), of the lines as they are then. Fences of several threads that meet share a write.
//            When a half of the journal is full, the pool's file is written back in the background.
//   write()  of 16 KiB or more goes to the pool's file past the journal, and its fence writes that range back.
//
// The journal is made when a pool has been fenced some times, replayed when a pool is opened after a crash, and removed
// when it is closed: a pool that is closed is one file; one that is open, or was when the machine failed, is two. Where
// no journal can be made (no room), fence() writes back the pages themselves with msync, as it does before.
//
// The kernel may write a page at any time before it is fenced, which is what the model in media.hpp allows.
//
// When the disk refuses a write, what is in memory and what is on disk can no longer be told apart ("fsyncgate"), so
// the process is stopped with a message; the next opening recovers what is on disk.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "dunnock/pmem/media.hpp"

namespace dunnock {

namespace detail {

/// What all FileMedia of one pool share.
class FileSync {
 public:
  struct Options {
    std::string path;                 ///< Of the pool's file. Empty: there is none, and no journal.
    std::uint64_t journal_bytes = 0;  ///< 0: no journal.
    /// Notes in the pool, durably, that it needs the journal with this number; 0: none.
    std::function<void(std::uint64_t id)> note_journal;
  };
  FileSync(void* base, std::size_t bytes, Options options);
  /// Writes back the pool's file and removes the journal.
  ~FileSync();
  FileSync(const FileSync&) = delete;
  FileSync& operator=(const FileSync&) = delete;

  /// Notes the line of `address` for the calling thread.
  void note(const void* address) noexcept;
  /// Copies bytes into the pool and notes them.
  void write(void* to, const void* from, std::size_t bytes) noexcept;
  /// Returns when everything that the calling thread has noted is on disk.
  void sync() noexcept;
  /// Returns when everything in the pool's file is on disk, and voids the journal: bytes that were fenced may now get
  /// another use, by those who do not fence.
  void write_back_all() noexcept;

  [[nodiscard]] std::uint64_t syncs() const noexcept;   ///< writes to the disk so far
  [[nodiscard]] std::uint64_t fences() const noexcept;  ///< sync() calls that had something to do
  [[nodiscard]] bool has_journal() const noexcept;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace detail

/// A copyable handle; the Pool that it came from must outlive it.
struct FileMedia : detail::MappedMedia {
  static constexpr Durability kDurability = Durability::kPower;
  static constexpr bool kVisibleIsDurable = false;
  static constexpr unsigned kFenceBatch = 256;  ///< Keys of a bulk operation that should share a fence.

  explicit FileMedia(detail::FileSync& file_sync) noexcept : sync_(&file_sync) {}
  void write(Point, void* to, const void* from, std::size_t bytes) const noexcept { sync_->write(to, from, bytes); }
  void flush(Point, const void* address) const noexcept { sync_->note(address); }
  void fence(Point) const noexcept { sync_->sync(); }

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
