// CheckpointStore: named, versioned sets of tensors. A save writes only what has changed.
//
// What it is for: saving the state of a training job often, without writing unchanged tensors again, without stopping
// the job, and so that a crash at any moment leaves every checkpoint whole whose save had returned.
// What it is not for: sharing a pool between processes (a pool is open in one), or hiding data: keys of chunks are a
// fast hash, not a cryptographic one, so anyone who chooses the contents of tensors could make two chunks that are
// taken for one.
//
//   tensors           chunks of 1 MiB          KvStore                                catalog
//   +----------+      +---+---+---+    key =   +-------------------------+           +-----------------+
//   | weight A | ---> |   |   |   | -- hash -> | there already: nothing  |           | name, version   |
//   +----------+      +---+---+---+            | new: append, put        | <-------- | manifest        |
//                                              | manifest: append, put   |  last,    +-----------------+
//                                              +-------------------------+  one 8-byte store
//
// Order: chunks and manifest become durable, then the catalog line, then one word of it. So a checkpoint exists
// completely or not at all, and what an interrupted save has written is reused by the next save, or collected.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <shared_mutex>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "dunnock/base/result.hpp"
#include "dunnock/index/checkpoint_format.hpp"
#include "dunnock/index/checkpoint_points.hpp"
#include "dunnock/index/detail/catalog.hpp"
#include "dunnock/index/detail/chunk_references.hpp"
#include "dunnock/index/kv_store.hpp"
#include "dunnock/index/manifest.hpp"
#include "dunnock/index/tensor.hpp"
#include "dunnock/pmem/header.hpp"

namespace dunnock {

struct CheckpointOptions {
  std::uint64_t capacity_bytes = 0;         ///< Space for all chunks and manifests together.
  std::uint32_t chunk_bytes = 1 << 20;      ///< 64 .. segment_bytes / 2. Smaller ones share more, and cost more.
  std::uint64_t segment_bytes = 32 << 20;   ///< Segment size of the log: see LogOptions.
  std::uint64_t checkpoints_max = 1024;     ///< Maximum number of live checkpoints.
  std::uint32_t index_segment_groups = 64;  ///< See IndexOptions.
};

/// Threads that one save or restore can be asked to use: more than machines have cores, and each holds a chunk.
inline constexpr unsigned kCheckpointThreadsMax = 1024;

struct SaveOptions {
  /// Up to kCheckpointThreadsMax, the calling one included; fewer work where the system does not start so many.
  unsigned threads = 1;
  std::vector<std::pair<std::string, std::string>> notes;  ///< Kept with the checkpoint; exported as __metadata__.
};

struct SaveReport {
  std::string name;
  std::uint64_t version = 0;
  std::uint64_t tensor_bytes = 0;
  std::uint64_t chunks = 0;
  std::uint64_t chunks_written = 0;  ///< The others were already stored, byte for byte.
  std::uint64_t chunks_healed = 0;   ///< Those of the written chunks that were stored before, but damaged.
  std::uint64_t bytes_written = 0;   ///< Bytes written to the log, with headers, padding and the manifest.
  double seconds = 0;
};

struct RestoreReport {
  std::uint64_t version = 0;
  std::uint64_t tensor_bytes = 0;
  double seconds = 0;
};

inline constexpr std::uint64_t kLatestVersion = detail::kNewestVersion;

/// A checkpoint, or what is known of one that can't be read.
struct CheckpointInfo {
  std::string name;                        ///< Empty: unknown.
  std::uint64_t version = kLatestVersion;  ///< kLatestVersion: unknown.
  std::uint64_t created_seconds = 0;       ///< Since 1970.
  std::uint64_t tensors = 0;
  std::uint64_t tensor_bytes = 0;
  std::uint64_t line = 0;  ///< Its line of the catalog.
  Status status{};         ///< Corrupt, WrongVersion: why its line or its manifest can't be read.
};

/// The differences between two checkpoints, by tensor name.
struct CheckpointDiff {
  std::vector<std::string> added, removed, reshaped, changed, same;
  std::uint64_t changed_bytes = 0;  ///< Bytes in chunks of the second that the first does not have.
};

struct Retention {
  std::uint64_t keep_last = 1;   ///< How many of the newest versions of a name to keep: at least one.
  std::uint64_t keep_every = 0;  ///< Also keep versions that are a multiple of this. 0: no others.
};

struct RetainReport {
  std::uint64_t removed = 0;
  std::uint64_t damaged = 0;  ///< Versions that can't be read and are newer than what had to be kept; left in place.
};

struct CheckpointCheck {
  std::uint64_t checkpoints = 0;
  std::uint64_t chunks_read = 0;
  std::vector<std::string> violations;  ///< At most 100 sentences. Empty when all is well.
  [[nodiscard]] bool ok() const noexcept { return violations.empty(); }
};

/// Chunks of this many bytes in total, or this many chunks, share their fences: the disk writes while more are hashed.
/// They are in the log already; a saving thread holds one such batch.
inline constexpr std::uint64_t kSaveBatchBytes = 64 << 20;
inline constexpr std::size_t kSaveBatchChunks = 4096;

/// Threads: any number of threads may call all functions except check at any time. Space is freed when no save is in
/// progress.
///
/// Crashes: when save returns, the checkpoint survives. A save that a crash interrupts leaves only chunks that the next
/// save may use; an interrupted removal takes effect completely or not at all.
template <Media M>
class CheckpointStore {
 public:
  /// Creates a store in `pool` under `name` (region "<name>.catalog" and a KvStore "<name>.data"). It exists when this
  /// returns; an error or a crash before that leaves nothing.
  /// Errors: InvalidArgument, AlreadyExists, NoSpace, Io.
  [[nodiscard]] static Result<CheckpointStore> create(Pool& pool, std::string_view name,
                                                      const CheckpointOptions& options, M media);
  /// The same as part of a larger creation: the store exists when that is finished.
  [[nodiscard]] static Result<CheckpointStore> create_in(PendingRegions& pending, std::string_view name,
                                                         const CheckpointOptions& options, M media);
  /// Opens the store `name`. Does not read the checkpoints. Errors: NotFound, WrongVersion, WrongLayout, Corrupt.
  [[nodiscard]] static Result<CheckpointStore> open(Pool& pool, std::string_view name, M media);
  /// Opens the store `name`, or creates it if it does not exist. Of threads that call this at once, one creates it and
  /// the others open it. Errors: those of create and open; WrongLayout also when it was created with other options.
  [[nodiscard]] static Result<CheckpointStore> open_or_create(Pool& pool, std::string_view name,
                                                              const CheckpointOptions& options, M media);
  /// The same in the pool in the file `path`, which is opened with it. If there is no such file, it is made with
  /// pool_bytes(options) bytes, and gets its name when the store is in it: a crash before leaves nothing. For several
  /// structures in one pool, open the pool yourself. Errors: also those of Pool::open_or_create, such as AlreadyOpen.
  [[nodiscard]] static Result<InPool<CheckpointStore>> open_or_create(
      const std::string& path, std::string_view name, const CheckpointOptions& options) requires PoolMedia<M>;
  /// Can a store be created with these options? Errors: InvalidArgument.
  [[nodiscard]] static Status check_options(const CheckpointOptions& options);
  /// Building a store from parts that the caller has made. For crash harnesses and embedding.
  [[nodiscard]] static std::uint64_t catalog_bytes(const CheckpointOptions& options) noexcept;
  /// A pool size that holds such a store and nothing else.
  [[nodiscard]] static std::uint64_t pool_bytes(const CheckpointOptions& options) noexcept;
  [[nodiscard]] static StoreOptions store_options(const CheckpointOptions& options) noexcept;
  [[nodiscard]] static Result<CheckpointStore> format(Region catalog, KvStore<M> data, const CheckpointOptions& options,
                                                      M media, std::string_view name = {});
  [[nodiscard]] static Result<CheckpointStore> attach(Region catalog, KvStore<M> data, M media);

  CheckpointStore(CheckpointStore&&) noexcept = default;
  CheckpointStore& operator=(CheckpointStore&&) noexcept = default;

  /// See KvIndex::close.
  void close() { data_.close(); }
  /// Is the structure still usable? After the medium fails nothing is acknowledged any more: functions that return a
  /// Result or Status answer Io, and nothing is forgotten.
  /// What was acknowledged before is found when the pool is opened again. Errors: Io.
  [[nodiscard]] Status status() const { return media_status(media_); }

  // ----- saving and restoring -------------------------------------------------------------------------------------

  /// Saves the tensors as `version` of `name`; they must not change meanwhile. Durable when it returns. A chunk that is
  /// there already is read and compared with the bytes at hand: what has rotted is written anew, for this checkpoint
  /// and all others that have it. So every chunk of this checkpoint was sound when save returned. Errors:
  /// InvalidArgument (names, sizes, threads), AlreadyExists (the version is there, or is being saved), NoSpace (nothing
  /// is changed; see collect), Io (a source can't be read).
  [[nodiscard]] Result<SaveReport> save(std::string_view name, std::uint64_t version,
                                        std::span<const TensorSource> tensors, const SaveOptions& options = {});
  /// Brings tensors back; those that the checkpoint has besides are left out. `version`: one, or kLatestVersion.
  /// `threads`: as in SaveOptions. Errors: NotFound (name, version, tensor), InvalidArgument (dtype or shape differ
  /// from what is expected; threads), Corrupt (which tensor; what was written to the sinks by then is to be thrown
  /// away), Io (a sink refuses).
  [[nodiscard]] Result<RestoreReport> restore(std::string_view name, std::uint64_t version,
                                              std::span<const TensorSink> tensors, unsigned threads = 1) const;
  /// Errors: NotFound, Corrupt.
  [[nodiscard]] Result<Manifest> manifest(std::string_view name, std::uint64_t version = kLatestVersion) const;

  // ----- all of them ----------------------------------------------------------------------------------------------

  /// Everything that the catalog has, by name and version: also what can't be read, with the reason in `status`. A name
  /// in a manifest that can't be read is known only if another checkpoint has it. Empty in the child of a fork, where
  /// status() says so.
  [[nodiscard]] std::vector<CheckpointInfo> list() const;
  /// The checkpoints of the name, by version, and those that may be: lines of the catalog that can't be read.
  [[nodiscard]] std::vector<CheckpointInfo> list(std::string_view name) const;
  /// The newest version of the name, if there is one; its manifest may be damaged. Errors: Corrupt (a line of the
  /// catalog can't be read, so the newest version is unknown; all functions fail so for kLatestVersion).
  [[nodiscard]] Result<std::optional<std::uint64_t>> latest(std::string_view name) const;
  /// Reads every chunk of a checkpoint and compares it with its key. Errors: NotFound, Corrupt.
  [[nodiscard]] Status verify(std::string_view name, std::uint64_t version = kLatestVersion) const;
  /// Errors: NotFound, Corrupt.
  [[nodiscard]] Result<CheckpointDiff> diff(std::string_view first_name, std::uint64_t first_version,
                                            std::string_view second_name, std::uint64_t second_version) const;
  /// Removes a checkpoint, durably, and frees the space of what no other needs. Errors: NotFound.
  [[nodiscard]] Status remove(std::string_view name, std::uint64_t version);
  /// Removes the versions of the name that the policy does not keep. Only versions whose manifest can be read count
  /// among the newest, so `keep_last` of them stay; their chunks are not read (verify does that). While anything in the
  /// catalog is damaged, versions are removed but no space is freed, since what the damaged ones need is unknown.
  /// Errors: InvalidArgument (keep_last is 0, which would remove everything).
  [[nodiscard]] Result<RetainReport> retain(std::string_view name, const Retention& retention);
  /// Checks the policy as retain does. Errors: InvalidArgument.
  [[nodiscard]] static Status check_retention(const Retention& retention);
  /// Lines of the catalog that fail their checksum: so many checkpoints, removed ones at most among them, can't be
  /// told. While there is one, no space is given back, and which checkpoint is the newest can't be told.
  /// 0 in the child of a fork.
  [[nodiscard]] std::uint64_t damaged() const;
  /// Removes those lines and the checkpoints whose manifest is damaged, durably. Returns how many. collect() then frees
  /// the space of what only they needed.
  std::uint64_t forget_damaged();
  /// Frees the space of everything that no checkpoint needs: what interrupted saves have left. Reads all manifests and
  /// the whole index. Returns the number of values removed. Waits for saves in progress. Errors: Corrupt, WrongVersion
  /// (a checkpoint can't be read, so what it needs is unknown: nothing is freed).
  [[nodiscard]] Result<std::uint64_t> collect();

  [[nodiscard]] StoreStats stats() const { return data_.stats(); }
  /// Checks everything: the KvStore's check, every catalog line, every manifest, every chunk.
  [[nodiscard]] CheckpointCheck check() const;
  [[nodiscard]] std::uint32_t chunk_bytes() const noexcept { return chunk_bytes_; }

 private:
  /// Volatile state that does not move with the object.
  struct Save;
  struct Shared {
    detail::ForkMark fork;   // Locks are not for the child of a fork: who holds them may not be there.
    std::shared_mutex gate;  // shared: a save writes chunks; exclusive: chunks are collected
    std::mutex catalog;      // the lines, and what follows
    std::map<std::pair<std::string, std::uint64_t>, const Save*> saving;
    std::set<std::uint64_t> lines_taken;
    std::uint64_t saves = 0;
    std::vector<std::pair<CatalogFields, Manifest>> removed;  // their space is still to be freed
    detail::ChunkReferences references;
  };

  CheckpointStore(Region catalog, KvStore<M> data, const CatalogHeader& header, M media);
  [[nodiscard]] static Result<std::vector<std::string>> left_over(Pool& pool, std::string_view name);
  [[nodiscard]] static Result<CheckpointStore> open_as(Pool& pool, std::string_view name,
                                                       const CheckpointOptions* options, M media);
  [[nodiscard]] static CatalogHeader header_for(const CheckpointOptions& options, std::string_view name);
  [[nodiscard]] static std::string wrong_with(const CatalogHeader& header, std::uint64_t segment_bytes);

  [[nodiscard]] Result<Manifest> read_manifest(const CatalogFields& fields) const;
  [[nodiscard]] Result<Manifest> manifest_of(std::string_view name, std::uint64_t version) const;
  struct Entry {
    CheckpointInfo info;
    std::uint64_t name_hash = 0;  // 0: a line that can't be read.
  };
  [[nodiscard]] std::vector<Entry> entries(std::optional<std::uint64_t> name_hash) const;
  [[nodiscard]] static std::vector<CheckpointInfo> sorted(std::vector<Entry> entries);
  [[nodiscard]] tl::unexpected<Error> no_such(std::string_view name, std::uint64_t version) const;

  [[nodiscard]] static Status check_tensors(std::span<const TensorSource> tensors);
  [[nodiscard]] Status save_once(Save& save, std::span<const TensorSource> tensors, unsigned threads);
  void save_chunks(Save& save, std::span<const TensorSource> tensors);
  void save_chunk(Save& save, const TensorSource& source, std::size_t tensor, std::uint64_t chunk,
                  typename Save::Batch& batch, std::shared_ptr<std::byte[]>& buffer);
  [[nodiscard]] bool write_left(Save& save);
  void finish(Save& save, typename Save::Batch& batch);
  [[nodiscard]] bool write_manifest(Save& save, CatalogFields& fields);
  [[nodiscard]] std::uint64_t pieces_of(std::uint64_t manifest_bytes) const noexcept;
  [[nodiscard]] std::uint64_t piece_bytes() const noexcept { return data_.log().value_bytes_max() / 2; }
  [[nodiscard]] Status restore_chunk(const ManifestTensor& from, const TensorSink& to, std::uint64_t chunk) const;
  void count_references();
  void give_back_removed();

  [[no_unique_address]] M media_;
  std::uint32_t chunk_bytes_;
  detail::Catalog<M> catalog_;
  KvStore<M> data_;
  std::unique_ptr<Shared> shared_ = std::make_unique<Shared>();
};

}  // namespace dunnock

#include "dunnock/index/detail/checkpoint_life.ipp"     // IWYU pragma: export
#include "dunnock/index/detail/checkpoint_list.ipp"     // IWYU pragma: export
#include "dunnock/index/detail/checkpoint_restore.ipp"  // IWYU pragma: export
#include "dunnock/index/detail/checkpoint_save.ipp"     // IWYU pragma: export
#include "dunnock/index/detail/checkpoint_space.ipp"    // IWYU pragma: export
#include "dunnock/index/detail/standard_media.hpp"

namespace dunnock {

DUNNOCK_ON_STANDARD_MEDIA(extern, CheckpointStore);

}  // namespace dunnock
