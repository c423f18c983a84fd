// Pool: one libpmemobj pool file that holds named regions.
//
// What it is for: creating, opening and checking the file, and handing out zeroed, aligned memory of any size that is
// there again after a restart. What it is not for: allocating small objects (a structure manages its own region), or
// making a structure's stores durable (that is the media's part, media.hpp).
//
// Caveats: a pool is opened by one process at a time. Its file must be on a local file system. Pointers into it change
// from one opening to the next; offsets within a region do not. After a crash a pool in an ordinary file is whole only
// together with the journal beside it, "<pool>.journal" (file_media.hpp): move both, or open and close it first.
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

/// The journal that FileMedia makes beside the pool: an eighth of the pool, 8 to 64 MiB.
inline constexpr std::uint64_t kJournalBytesAuto = ~0ULL;

struct PoolOptions {
  /// Size of the file in bytes; all of it is allocated on disk. See Pool::bytes_for.
  std::uint64_t bytes = 0;
  /// Of the journal, while the pool is open. 0: none, and every fence of FileMedia writes back pages.
  std::uint64_t journal_bytes = kJournalBytesAuto;
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

/// Threads: any number may call the functions of one pool and use its regions; a region that is being removed must not
/// be in use.
class Pool {
 public:
  /// Creates the file `path` with an empty pool in it. It is made as "<path>.new" and gets its name when it is whole:
  /// a crash leaves nothing at `path`, and the next create removes what it has left beside it.
  /// Errors: AlreadyExists, InvalidArgument (size), NoSpace, ReadOnly, NotFound (directory), AlreadyOpen (another
  /// process is creating it), Io.
  [[nodiscard]] static Result<Pool> create(const std::string& path, const PoolOptions& options);
  /// The same, and what make(pool), a Status, makes in it. When that is an error, it is returned, and the pool is
  /// removed again: a refused structure leaves no file behind. `make` is not called for a pool that was there before.
  /// Errors: those of create and of `make`.
  template <class Make>
  [[nodiscard]] static Result<Pool> create_with(const std::string& path, const PoolOptions& options, Make&& make) {
    auto pool = create(path, options);
    if (!pool) return pool;
    if (Status made = make(*pool); !made) {
      pool = tl::unexpected(std::move(made.error()));  // Closes it.
      (void)remove(path);
    }
    return pool;
  }
  /// Opens the pool in `path`. Does not read the regions; constant time, but for a journal that a crash has left.
  /// Errors: NotFound, NotADunnockPool, WrongVersion, AlreadyOpen, ReadOnly, Corrupt (also: its journal is missing),
  /// Io.
  [[nodiscard]] static Result<Pool> open(const std::string& path, std::uint64_t journal_bytes = kJournalBytesAuto);
  /// Removes the pool's file and what may lie beside it. It must not be open. Errors: NotFound, Io.
  [[nodiscard]] static Status remove(const std::string& path);

  Pool(Pool&&) noexcept;
  Pool& operator=(Pool&&) noexcept;
  ~Pool();

  /// Creates all of these regions or, when there is an error or a crash, none. Zeroed, durable, 4096-byte aligned.
  /// For regions that mean something only once they are formatted, see PendingRegions.
  /// Errors: InvalidArgument, AlreadyExists, NoSpace.
  [[nodiscard]] Result<std::vector<Region>> create_regions(std::span<const RegionSpec> specs);
  /// Errors: NotFound, Corrupt.
  [[nodiscard]] Result<Region> open_region(std::string_view name) const;
  /// Frees the memory. Region views of it are invalid from now on. Errors: NotFound, Io.
  [[nodiscard]] Status remove_region(std::string_view name);
  /// Frees all of these or, when there is an error or a crash, none. Errors: NotFound, Io.
  [[nodiscard]] Status remove_regions(std::span<const std::string> names);
  /// The regions that have their names: not those of a creation that is under way.
  [[nodiscard]] std::vector<RegionInfo> regions() const;

  [[nodiscard]] const std::string& path() const noexcept;
  [[nodiscard]] std::uint64_t bytes() const noexcept;
  /// The media for a pool in an ordinary file. Valid as long as the pool is open.
  [[nodiscard]] FileMedia file_media() const noexcept;

  /// A size for a pool that is to hold regions of these sizes, with room for libpmemobj's own needs.
  [[nodiscard]] static std::uint64_t bytes_for(std::span<const std::uint64_t> region_bytes) noexcept;

 private:
  friend class PendingRegions;
  struct Impl;
  explicit Pool(std::unique_ptr<Impl> impl) noexcept;
  std::unique_ptr<Impl> impl_;
};

/// The regions of a structure that is being created. Nobody sees them until finish() gives all of them their names in
/// one step, so a structure exists when it has been formatted, and not before:
///
///   PendingRegions pending(pool);                 waits for other creations in this pool
///   auto regions = pending.create(specs);         any number of times
///   ... format the structure, durably ...
///   pending.finish();                             the structure exists
///
/// Without finish(), the destructor frees them. After a crash the next opening of the pool frees them, and the
/// structure can be created again. A structure that is made of others passes its PendingRegions down: it is one
/// creation.
///
/// Threads: one creation at a time in a pool; the constructor waits for its turn, so a thread must not begin a second
/// one. What a thread finds missing while it holds one stays missing for everybody until it has finished.
class PendingRegions {
 public:
  explicit PendingRegions(Pool& pool);
  PendingRegions(const PendingRegions&) = delete;
  PendingRegions& operator=(const PendingRegions&) = delete;
  ~PendingRegions();

  /// As Pool::create_regions, but nobody finds the regions yet. Errors: InvalidArgument, AlreadyExists, NoSpace.
  [[nodiscard]] Result<std::vector<Region>> create(std::span<const RegionSpec> specs);
  /// Gives all regions their names or, when there is an error or a crash, none. What they hold must be durable by now.
  /// The creation is over. `formatted`: whether they are; an error is returned and ends the creation as one.
  /// Errors: that of `formatted`, Io, NoSpace.
  [[nodiscard]] Status finish(const Status& formatted = {});
  [[nodiscard]] Pool& pool() const noexcept { return *pool_; }

 private:
  Pool* pool_;
  std::unique_lock<std::mutex> turn_;
};

}  // namespace dunnock
