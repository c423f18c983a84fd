// Pool: one libpmemobj pool file that holds named regions.
//
// What it is for: creating, opening and checking the file, and handing out zeroed, aligned memory of any size that
// survives a restart. What it is not for: allocating small objects (a structure manages its own region), or making a
// structure's stores durable (that is the media's job, media.hpp).
//
// A pool is one file, identified by its contents: it may be copied while it is closed, also after a crash, and moved,
// linked and renamed at any time. To copy a pool that is open, see copy_to().
//
// Caveats: one process at a time may open a pool for writing, or any number for reading. It belongs to the process that
// opened it: in a child of fork() every call answers Io, and destructors only unmap. Its file must be on a local file
// system. Pointers into it change from one opening to the next; offsets within a region do not.
//
// After a disk error (a refused write or sync, a page that can't be read) the pool has failed: nothing is acknowledged
// any more, calls answer Io, and the file is left as a crash at that moment would have left it. status() says why.
// Close the pool and open it again to continue from what is durable.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dunnock/base/result.hpp"
#include "dunnock/pmem/file_media.hpp"
#include "dunnock/pmem/region.hpp"

namespace dunnock {

/// Lets the pool choose the size of FileMedia's journal: an eighth of the pool, 8 to 64 MiB, or what there is room for.
inline constexpr std::uint64_t kJournalBytesAuto = ~0ULL;

struct OpenOptions {
  /// Size of FileMedia's journal, within the pool: at least 64 KiB. 0: no journal; every fence writes back pages.
  std::uint64_t journal_bytes = kJournalBytesAuto;
  /// Ends the process at the first disk error, instead of letting calls answer Io.
  bool abort_on_error = false;
  /// Installs a SIGBUS handler for the process, so that a page that can't be read becomes an error of the pool. Faults
  /// elsewhere go to the previous handler. False: such a page ends the process.
  bool catch_sigbus = true;
};

struct PoolOptions {
  /// Size of the file in bytes; all of it is allocated on disk. See Pool::bytes_for.
  std::uint64_t bytes = 0;
  /// As in OpenOptions.
  std::uint64_t journal_bytes = kJournalBytesAuto;
  /// Permissions of the file, restricted by the umask. A pool may hold secrets, such as that of a prefix store.
  unsigned mode = 0600;
  bool abort_on_error = false;
  bool catch_sigbus = true;
};

struct RegionSpec {
  std::string_view name;    ///< 1 .. 47 bytes, unique in the pool.
  std::uint64_t bytes = 0;  ///< More than 0.
  /// Power of two, at least 4096. libpmemobj's heap is cut into zones of almost 16 GiB that no allocation crosses;
  /// extents of 2 GiB leave an eighth of a zone unused at most.
  std::uint64_t extent_bytes = 2ULL << 30;
};

struct RegionInfo {
  std::string name;
  std::uint64_t bytes;
};

/// Threads: any number may call the functions of one pool and use its regions. A region that is being removed must not
/// be in use.
class Pool {
 public:
  /// Creates the file `path` with an empty pool in it. The file gets its name when it is complete and durable: a crash
  /// leaves nothing at `path`. (Where the file system has no unnamed files, it is made as "<path>.new"; the next create
  /// removes what a crash has left of that.) Errors: AlreadyExists, InvalidArgument (size, journal_bytes), NoSpace,
  /// ReadOnly, NotFound (directory), AlreadyOpen (another process is creating it), Unsupported (see open), Io.
  [[nodiscard]] static Result<Pool> create(const std::string& path, const PoolOptions& options);
  /// The same, but calls make(pool), which returns a Status, before the file gets its name. So an error of `make`,
  /// which is returned, or a crash leaves nothing at `path`. (In `make` the name does not exist yet:
  /// path_of_descriptor() finds the file.) Errors: those of create and of `make`.
  template <class Make>
  [[nodiscard]] static Result<Pool> create_with(const std::string& path, const PoolOptions& options, Make&& make) {
    auto pool = create_unnamed(path, options);
    if (!pool) return pool;
    DUNNOCK_TRY(make(*pool));
    DUNNOCK_TRY(pool->publish());
    return pool;
  }
  /// Opens the pool in `path` for writing. Does not read the regions; takes constant time, except to replay a journal
  /// after a crash. A pool of format version 2 is upgraded to this version. Holes, as a sparse copy leaves them, are
  /// filled. Errors: NotFound, NotADunnockPool, WrongVersion, AlreadyOpen, ReadOnly, Corrupt, NoSpace (holes),
  /// InvalidArgument (journal_bytes), Unsupported (PMDK's environment variables make it take an ordinary file for
  /// persistent memory, or keep stores from the file: libpmemobj's own part would not be durable), Io.
  [[nodiscard]] static Result<Pool> open(const std::string& path, const OpenOptions& options = {});
  /// Opens the pool, or creates it if it does not exist; safe when others do the same at once. `options` as for
  /// create(); size and mode are ignored if the pool exists. Errors: those of both.
  [[nodiscard]] static Result<Pool> open_or_create(const std::string& path, const PoolOptions& options) {
    return open_or_create_with(path, options, [](Pool&) { return Status(); });
  }
  /// The same, but creates it as create_with does. Errors: those of open and create_with.
  template <class Make>
  [[nodiscard]] static Result<Pool> open_or_create_with(const std::string& path, const PoolOptions& options,
                                                        Make&& make) {
    for (int tries = 0;; ++tries) {
      auto opened = open(path, {options.journal_bytes, options.abort_on_error, options.catch_sigbus});
      if (opened || opened.error().code != ErrorCode::kNotFound) return opened;
      auto created = create_with(path, options, make);
      // Somebody else has created it in between; again and again, and it is a link that leads nowhere.
      if (created || created.error().code != ErrorCode::kAlreadyExists || tries == 100) return created;
    }
  }
  /// Opens the pool for reading: any number of readers, but not while a writer has it open. Needs no write permission
  /// and changes nothing: a journal left by a crash is replayed, and recovery's stores are kept, in this process's
  /// memory. Structures are opened with ReadOnlyMedia (with_media() does this) and refuse changes. A creation or
  /// removal of regions that a crash has interrupted may look undone. Errors: as open.
  [[nodiscard]] static Result<Pool> open_read_only(const std::string& path);
  /// The same, but also while a writer has the pool open (see beside_writer()). Each word of the regions is then one
  /// that the writer has stored, but words are read at different moments: opening may report damage in a structure that
  /// has none, and counts may be off. Checksummed records (checkpoints, values) that are found are whole. Opening again
  /// takes a fresh look.
  [[nodiscard]] static Result<Pool> look(const std::string& path);
  /// Removes the pool's file. Errors: NotFound, NotADunnockPool, AlreadyOpen, ReadOnly, Io.
  [[nodiscard]] static Status remove(const std::string& path);
  /// Copies a pool that no writer has open, crashed or not, as it is, including its mode and, where this process may,
  /// its owner. The copy gets its name when it is complete. Errors: those of open_read_only and create.
  [[nodiscard]] static Status copy(const std::string& from, const std::string& to);

  Pool(Pool&&) noexcept;
  Pool& operator=(Pool&&) noexcept;
  /// Like close(), but ignores errors.
  ~Pool();

  /// Makes everything durable, closes and seals the file. The pool and its regions must not be used afterwards; only
  /// status() and path() still answer. Errors: Io (also one met earlier): what was acknowledged is in the file all the
  /// same, and the next opening recovers it.
  [[nodiscard]] Status close();
  /// Success, or, once the pool has failed, Io with the reason, permanently.
  [[nodiscard]] Status status() const;

  /// A copy in the state of one moment: what a crash at that moment would have left, so that opening it recovers
  /// everything that was acknowledged before the call. Other threads may go on meanwhile where they use FileMedia; with
  /// other media, none may change the pool. Calls that create or remove regions wait, and so does fork(). The journal
  /// begins here if it has not yet. While the pool is open, this process can open the copy for reading only: for
  /// writing it is AlreadyOpen, because libpmemobj takes it for the same pool.
  /// Threads: any. Errors: those of create, ReadOnly never, Io.
  [[nodiscard]] Status copy_to(const std::string& path) const;

  /// Creates all of these regions or, when there is an error or a crash, none. They are zeroed, durable and 4096-byte
  /// aligned. For regions that mean something only once they are formatted, see PendingRegions.
  /// Errors: InvalidArgument, AlreadyExists, NoSpace.
  [[nodiscard]] Result<std::vector<Region>> create_regions(std::span<const RegionSpec> specs);
  /// Errors: NotFound, Corrupt.
  [[nodiscard]] Result<Region> open_region(std::string_view name) const;
  /// Frees the region's memory. Region views of it become invalid. Errors: NotFound, Io.
  [[nodiscard]] Status remove_region(std::string_view name);
  /// Frees all of these regions or, when there is an error or a crash, none. Errors: NotFound, Io.
  [[nodiscard]] Status remove_regions(std::span<const std::string> names);
  /// The regions that have names, so not those of a creation in progress.
  [[nodiscard]] std::vector<RegionInfo> regions() const;

  /// The path that the pool was opened or created with.
  [[nodiscard]] const std::string& path() const noexcept;
  /// A path to the open file itself, whatever its name is by now; valid in this process while the pool is open.
  [[nodiscard]] std::string path_of_descriptor() const;
  [[nodiscard]] std::uint64_t bytes() const noexcept;
  [[nodiscard]] bool read_only() const noexcept;
  /// Was the pool opened by look() while a writer had it open?
  [[nodiscard]] bool beside_writer() const noexcept;
  /// The media for a pool in an ordinary file. Valid as long as the pool is open.
  [[nodiscard]] FileMedia file_media() const noexcept;

  /// A pool size that holds regions of these sizes, a journal and libpmemobj's own data.
  [[nodiscard]] static std::uint64_t bytes_for(std::span<const std::uint64_t> region_bytes) noexcept;

 private:
  friend class PendingRegions;
  /// Creates the pool without its name. Destroying it before publish() leaves nothing.
  [[nodiscard]] static Result<Pool> create_unnamed(const std::string& path, const PoolOptions& options);
  /// Gives the file its name, durably. Errors: AlreadyExists, Io.
  [[nodiscard]] Status publish();

  struct Impl;
  explicit Pool(std::unique_ptr<Impl> impl) noexcept;
  std::unique_ptr<Impl> impl_;
};

/// The regions of a structure that is being created. They are invisible until finish() gives all of them their names in
/// one step, so a structure exists once it has been formatted, and not before:
///
///   PendingRegions pending(pool);                 waits for other creations in this pool
///   auto regions = pending.create(specs);         any number of times
///   ... format the structure, durably ...
///   pending.finish();                             the structure exists
///
/// Without finish(), the destructor frees them. After a crash the next opening of the pool frees them, and the
/// structure can be created again. A structure that is made of others passes its PendingRegions down, so that all are
/// one creation.
///
/// Threads: one creation at a time in a pool; the constructor waits for its turn, so a thread must not begin a second
/// one. What a thread finds missing during its creation stays missing for all threads until it has finished.
class PendingRegions {
 public:
  explicit PendingRegions(Pool& pool);
  PendingRegions(const PendingRegions&) = delete;
  PendingRegions& operator=(const PendingRegions&) = delete;
  ~PendingRegions();

  /// Like Pool::create_regions, but the regions can't be found yet. Errors: InvalidArgument, AlreadyExists, NoSpace.
  [[nodiscard]] Result<std::vector<Region>> create(std::span<const RegionSpec> specs);
  /// Ends the creation: gives all regions their names or, when there is an error or a crash, none. Their contents must
  /// be durable by now. `formatted`: the outcome of formatting them; if it is an error, the creation fails with it.
  /// Errors: that of `formatted`, Io, NoSpace.
  [[nodiscard]] Status finish(const Status& formatted = {});
  [[nodiscard]] Pool& pool() const noexcept { return *pool_; }

 private:
  Pool* pool_;
  std::unique_lock<std::mutex> turn_;
};

}  // namespace dunnock
