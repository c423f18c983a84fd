// PoolFile: the file of a pool, and everything about it that is not libpmemobj's.
//
// A pool is one file, known by what it is and not by its name: the file is opened once, and locked for as long as the
// pool is open, from before the first byte is read until after the last is written. The name is used to find it and,
// once more, to give or take it. So a pool may be renamed, linked or removed at any time; what another process does at
// its old name concerns another file.
//
// The lock is one of the open file description (F_OFD_SETLK): one writer or any number of readers. libpmemobj has
// another, by flock, which programs of older versions of this library look for; both are asked.
//
// What opening for writing does with the head of the root object (pool_format.hpp):
//
//   sealed  journal   the pool was                        so
//   1       0         closed                              the seal is compared, then broken, durably
//   0       0         killed; its pages are whole         -
//   0       id        killed or lost its power, with a    the journal is replayed into the pages, durably; then the
//                     journal                             head says that it is not needed
//
// The head is written and synced at every opening, whatever it says: what an earlier process could not make durable may
// stand in the page cache and not on the disk.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "dunnock/base/file.hpp"
#include "dunnock/pmem/header.hpp"
#include "journal.hpp"
#include "pool_format.hpp"

namespace dunnock::detail {

enum class PoolAccess : std::uint8_t {
  kWrite,  ///< Nobody else has it open.
  kRead,   ///< Any number of readers, and no writer.
  kLook,   ///< Beside anybody: no lock.
};

/// The head of a pool's root, and where it lies in the file.
struct FoundHead {
  std::uint64_t root_offset;
  PoolHead head;
};

/// Where the journal of this head lies. 0 bytes: it has none, or none that could be.
[[nodiscard]] JournalExtent journal_extent(int fd, const PoolHead& head, std::uint64_t file_bytes);

class PoolFile {
 public:
  /// Opens and locks the file of a pool. Errors: NotFound, NotADunnockPool (no file, no pool of libpmemobj's, too
  /// short), AlreadyOpen, ReadOnly, Io.
  [[nodiscard]] static Result<PoolFile> open(const std::string& path, PoolAccess access);
  /// Makes an unnamed file of `bytes` zeroed, allocated bytes in the folder of `path`, locked. Errors: AlreadyExists,
  /// NotFound (the folder), NoSpace, ReadOnly, AlreadyOpen (somebody is creating it: only where files need a name from
  /// the beginning), Io.
  [[nodiscard]] static Result<PoolFile> create(const std::string& path, std::uint64_t bytes, mode_t mode);
  /// create() with the size, mode and, where this process may, owner of `other`.
  [[nodiscard]] static Result<PoolFile> create_like(const std::string& path, const PoolFile& other);
  /// Gives the new file its name, durably, after making all of it durable. Errors: AlreadyExists, Io; then nothing is
  /// there.
  [[nodiscard]] Status publish();
  /// Takes the name of the file `path` away, durably, if it is a pool that nobody has open. Errors: NotFound,
  /// NotADunnockPool, AlreadyOpen, ReadOnly, Io.
  [[nodiscard]] static Status remove(const std::string& path);

  PoolFile(PoolFile&& other) noexcept;
  PoolFile& operator=(PoolFile&&) = delete;
  /// Closes and unlocks it; an unnamed file is gone then.
  ~PoolFile();

  [[nodiscard]] int fd() const noexcept { return fd_.get(); }
  [[nodiscard]] const std::string& path() const noexcept { return path_; }
  [[nodiscard]] std::uint64_t bytes() const noexcept { return bytes_; }
  /// A path to this very file, whatever its name is by now.
  [[nodiscard]] std::string self() const;

  /// Reads the head of the root without libpmemobj. Nothing: it is not where it should be.
  [[nodiscard]] std::optional<FoundHead> read_head() const;
  /// Errors: WrongVersion, Corrupt (checksum, truncated, a broken seal).
  [[nodiscard]] Status check_head(const FoundHead& found) const;
  /// Allocates what a sparse copy has left out, so that no store meets a full disk. Errors: NoSpace, Io.
  [[nodiscard]] Status fill_holes() const;
  /// Makes the pages whole and the head that of an open pool, durably; see the table above. A crash in the middle
  /// leaves what is done again. Errors: Corrupt (nothing was changed), Io.
  [[nodiscard]] Status recover(const FoundHead& found) const;
  /// Calls apply(offset, words) for each line that the journal brings back, if the head needs one. Errors: Corrupt, Io.
  [[nodiscard]] Status replay(const FoundHead& found,
                              const std::function<void(std::uint64_t, const std::uint64_t*)>& apply) const;
  /// Seals the pool, durably. libpmemobj must have closed it. Errors: Io; then it is not sealed.
  [[nodiscard]] Status seal() const;
  /// Notes that the pool needs the journal `id`, durably. False: the disk refuses; see errno.
  [[nodiscard]] bool note_journal(std::uint64_t root_offset, std::uint64_t id) const noexcept;

 private:
  PoolFile(UniqueFd fd, std::string path) : fd_(std::move(fd)), path_(std::move(path)) {}
  [[nodiscard]] Status lock(PoolAccess access);
  [[nodiscard]] std::string side_journal() const { return path_ + ".journal"; }

  UniqueFd fd_;
  std::string path_;
  std::uint64_t bytes_ = 0;
  // Of a file in the making.
  UniqueFd folder_;
  std::string name_;
  bool has_name_ = true;         // of its own choosing: the file is not to be removed
  std::string unfinished_name_;  // where the file system can't do without
};

}  // namespace dunnock::detail
