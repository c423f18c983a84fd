// KvStore: a durable concurrent map from 128-bit keys to values of any size, made of a KvIndex and a ValueLog.
//
//   put      value of at most 16 bytes: only KvIndex::put               2 lines flushed (existing key: 1), 1 fence
//            longer: its bytes and a header to the log, fence; then KvIndex::put      2 fences
//   get      KvIndex::get, then the record in the log, whose checksum is verified
//   erase    KvIndex::erase; the record in the log becomes garbage, which is collected when space runs out
//
// When the log is full, a put compacts it: it reads the segment with the least live data, appends what is alive
// elsewhere, replaces its entries (those that are still the same), and frees the segment. If that gains nothing, the
// put is refused and the store is unchanged.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dunnock/base/result.hpp"
#include "dunnock/index/kv_index.hpp"
#include "dunnock/index/value_log.hpp"

namespace dunnock {

struct StoreOptions {
  IndexOptions index;
  LogOptions log;
};

/// A value that was found. Its bytes stay as they are while this lives, whatever happens to the key.
template <Media M>
class KvValue {
 public:
  GetState state = GetState::kMissing;
  explicit operator bool() const noexcept { return state == GetState::kFound; }
  /// Only when found.
  [[nodiscard]] std::span<const std::byte> bytes() const noexcept {
    return entry.is_locator() ? in_log.bytes : entry.bytes();
  }

  IndexValue entry;  ///< The value as stored in the index.
  typename ValueLog<M>::View in_log;
};

enum class Compared : std::uint8_t {
  kMissing,
  kSame,       ///< A get returns these bytes.
  kDifferent,  ///< Other bytes, or damaged ones.
};

struct StoreStats {
  IndexStats index;
  LogStats log;
};

/// Threads: any number of threads may call all functions except close and check at any time. get never waits for a
/// writer or for compaction.
/// Crashes: as KvIndex. A put that a crash interrupts leaves the previous value.
template <Media M>
class KvStore {
 public:
  struct Opened;
  class Batch;
  using Item = typename ValueLog<M>::Item;

  /// Creates a store in `pool` under `name`: a log and an index of that name. It exists when this returns; an error or
  /// a crash before that leaves nothing. Errors: those of KvIndex::create and ValueLog::create.
  [[nodiscard]] static Result<KvStore> create(Pool& pool, std::string_view name, const StoreOptions& options, M media);
  /// The same as part of a larger creation: the store exists when that is finished.
  [[nodiscard]] static Result<KvStore> create_in(PendingRegions& pending, std::string_view name,
                                                 const StoreOptions& options, M media);
  /// Opens the store `name`. Errors: NotFound, WrongVersion, WrongLayout, Corrupt.
  [[nodiscard]] static Result<Opened> open(Pool& pool, std::string_view name, M media);
  /// Opens the store `name`, or creates it if it does not exist. Of threads that call this at once, one creates it and
  /// the others open it. The seed is that of the creation.
  /// Errors: those of create and open; WrongLayout also when it was created with other options.
  [[nodiscard]] static Result<Opened> open_or_create(Pool& pool, std::string_view name, const StoreOptions& options,
                                                     M media);
  /// The same in the pool in the file `path`, which is opened with it. If there is no such file, it is made with
  /// pool_bytes(options) bytes, and gets its name when the store is in it: a crash before leaves nothing. For several
  /// structures in one pool, open the pool yourself. Errors: also those of Pool::open_or_create, such as AlreadyOpen.
  [[nodiscard]] static Result<InPool<Opened>> open_or_create(const std::string& path, std::string_view name,
                                                             const StoreOptions& options) requires PoolMedia<M>;
  /// A pool size, in bytes, that holds such a store and nothing else. See KvIndex::pool_bytes.
  [[nodiscard]] static std::uint64_t pool_bytes(const StoreOptions& options) noexcept;
  /// Can a store be created with these options? Errors: InvalidArgument.
  [[nodiscard]] static Status check_options(const StoreOptions& options);
  /// Makes a store from parts that the caller has made.
  KvStore(KvIndex<M> index, ValueLog<M> log);

  KvStore(KvStore&&) noexcept = default;
  KvStore& operator=(KvStore&&) noexcept = default;

  /// See KvIndex::close.
  void close() { index_.close(); }
  /// Is the structure still usable? After the medium fails nothing is acknowledged any more: puts and gets answer kIo,
  /// erases and bulk puts false or 0.
  /// What was acknowledged before is found when the pool is opened again. Errors: Io.
  [[nodiscard]] Status status() const { return index_.status(); }

  PutResult put(const IndexKey& key, std::span<const std::byte> value);
  /// Like one put per key, in some order, with few fences for all. False: there was no room for all of them; some may
  /// have been put.
  bool put_bulk(std::span<const Item> items);
  [[nodiscard]] KvValue<M> get(const IndexKey& key) const;
  /// Reads what is stored under the item's key and compares it with the item, byte by byte: for callers that are about
  /// to put what may be stored already, and have the correct bytes. Damaged bytes are kDifferent, so putting the item
  /// repairs them.
  [[nodiscard]] Compared compare(const Item& item) const;
  bool erase(const IndexKey& key);
  /// Like one erase per key, in some order, with few fences for all. Returns how many keys were found.
  std::size_t erase_bulk(std::span<const IndexKey> keys);
  /// Reads the first bytes of a value in the log. Verifies its header, but not the bytes. False: the value is stale,
  /// damaged or shorter than `into`.
  [[nodiscard]] bool peek(const IndexKey& key, const Locator& locator, std::span<std::byte> into) const {
    return log_.peek(locator, key, into);
  }
  [[nodiscard]] bool may_contain(const IndexKey& key) const { return index_.may_contain(key); }

  /// Compacts up to `segments_max` segments of which less than the share `live_at_most` seems to be alive. Returns how
  /// many it freed.
  std::uint64_t compact(std::uint64_t segments_max, double live_at_most = 0.75);

  [[nodiscard]] std::uint64_t size() const { return index_.size(); }
  [[nodiscard]] StoreStats stats() const { return {index_.stats(), log_.stats()}; }
  /// Does KvIndex::check, and reads and verifies every value in the log. Needs exclusive use of the store.
  [[nodiscard]] IndexCheck check() const;

  [[nodiscard]] KvIndex<M>& index() noexcept { return index_; }
  [[nodiscard]] const KvIndex<M>& index() const noexcept { return index_; }
  [[nodiscard]] const ValueLog<M>& log() const noexcept { return log_; }

 private:
  template <Media Other>
  friend class CheckpointStore;
  template <Media Other>
  friend class PrefixStore;
  /// Options that the parts of an opened store must have been created with.
  struct Agreement {
    const IndexOptions* index = nullptr;
    const LogOptions* log = nullptr;
  };
  [[nodiscard]] static Result<Opened> open_as(Pool& pool, std::string_view name, const Agreement& agreement, M media);
  [[nodiscard]] static Result<std::vector<std::string>> left_over(Pool& pool, std::string_view name, bool formatted);

  [[nodiscard]] bool make_room();
  [[nodiscard]] bool compact_one(double live_at_most);
  void recount();

  KvIndex<M> index_;
  ValueLog<M> log_;
  struct Shared {
    std::atomic<bool> compacting{false};
    bool counted = false;  // live bytes are known, not assumed
  };
  std::unique_ptr<Shared> shared_ = std::make_unique<Shared>();
};

/// Puts that become durable and visible together, with few fences for all. Values are in the log when add returns, so
/// their memory may be reused.
///
///   add, add, ...   bytes to the log        the disk may begin to write them
///   commit()        one fence; KvIndex::put_bulk
///
/// Threads: one; a batch may pass to another thread after a call that has returned false. The store must outlive it.
/// Crashes: before commit returns, any of its puts may have taken place.
template <Media M>
class KvStore<M>::Batch {
 public:
  explicit Batch(KvStore& store) noexcept : store_(&store) {}
  Batch(Batch&& other) noexcept;
  Batch& operator=(Batch&&) = delete;
  /// Drops what was not committed.
  ~Batch();

  /// False: there is no room for the item, even after what was added before has been committed.
  [[nodiscard]] bool add(const Item& item);
  /// False: the index has no room for some puts; these stay in the batch, durable in the log, for another commit. (Or
  /// see KvStore::status.)
  [[nodiscard]] bool commit();
  /// Number of puts not yet committed; bytes() is the size of their values in the log.
  [[nodiscard]] std::size_t size() const noexcept { return entries_.size(); }
  [[nodiscard]] std::uint64_t bytes() const noexcept { return bytes_; }

 private:
  KvStore* store_;
  std::vector<typename KvIndex<M>::Entry> entries_;
  std::vector<typename ValueLog<M>::Ticket> tickets_;  // They keep segments from being compacted.
  std::uint64_t bytes_ = 0;
};

template <Media M>
struct KvStore<M>::Opened {
  KvStore store;
  IndexRecovery report;
  bool created = false;  ///< Did open_or_create just create it?
  [[nodiscard]] KvStore& structure() noexcept { return store; }
};

}  // namespace dunnock

#include "dunnock/index/detail/kv_store.ipp"  // IWYU pragma: export
