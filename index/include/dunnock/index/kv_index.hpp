// KvIndex: a durable concurrent map from 128-bit keys to small values, on the words of the cuckoo filter.
//
// What it is for: finding *where* something is, exactly, at memory speed, with changes that survive a crash the moment
// they return. A value is up to 16 bytes, or the locator of something in a ValueLog.
// What it is not for: ordered scans, and keys that an adversary chooses (hash them first).
//
//               hash(key)                 a segment: 256 groups
//   key -> segment n ---------> group g   +----------------------------+
//          bucket (word) w, f     |       | line of 8 words, 40 lanes  |  the filter's words: fingerprints of 12 bits
//                                 |       +----------------------------+
//                                 |       | 40 record lines            |  control, key, two values
//                                 |       +----------------------------+
//                                 +-> other group of the same segment, when g is full
//
//   get, hit     the line of g, the record line                              2 lines
//   get, miss    only the line of g; more if w has overflowed, or a fingerprint matches (1 of 500)     1 line
//   put, new     record line, fingerprint line                               2 lines flushed, 1 fence
//   put, again   record line: the other of its two values, then the control  1 line flushed, 1 fence
//   erase        record line: the control word                               1 line flushed, 1 fence
//
// To find a key, we hash it once. The low bits of the hash name the fingerprint f, the home word w and the group g; the
// others choose the segment in a directory that is kept in memory. We compare f with the five lanes of w. Lane i of a
// group belongs to record line i, so an equal lane leads to one record, and the record contains the whole key: answers
// are exact, and fingerprints only say where it is worth looking. If no record of w is the key's, the level of w says,
// as in the filter, whether other words of g or of the other group can hold it.
//
// To add a key, we write key, value and control word to the record of an empty lane, store f in the lane, flush both
// lines, and fence once. The order in which the two lines reach the medium does not matter: neither a lane whose record
// is free nor a record to which no lane leads is an entry. To change a value, we write the one of the record's two
// values that is not in use, then the control word, which selects it and has a checksum of it. To erase, we store a
// control word without the live bit, flush and fence; the store that empties the lane needs neither.
//
// When both groups of a key are full, its segment is split in two (extendible hashing): half of its entries are copied
// to a new segment, and one 8-byte store makes that segment exist. Readers continue meanwhile; writers of that segment
// wait. A reader looks at the directory again after it has read, and starts over if its segment was split.
//
// False matches: f equals an unrelated fingerprint in 1 of 4,095 cases. A growing index is about half full and a
// quarter of its words have spilled, so a miss expects 2.5 / 4095 + 1/4 x 17.5 / 4095 = 0.17 % equal lanes. Measured:
// 0.15 to 0.23 % (KvIndex.has_the_false_matches_that_its_header_derives). Levels only rise, so the bound after long use
// is that of both groups full: 80 / 4095 = 2 %.
//
// The bytes in the pool: index_format.hpp. Why this survives: docs/crash_consistency.md.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "dunnock/base/result.hpp"
#include "dunnock/filter/hash.hpp"
#include "dunnock/filter/layout.hpp"
#include "dunnock/index/detail/group_locks.hpp"
#include "dunnock/index/detail/index_regions.hpp"
#include "dunnock/index/detail/index_table.hpp"
#include "dunnock/index/detail/segment_directory.hpp"
#include "dunnock/index/detail/segment_reader.hpp"
#include "dunnock/index/detail/segment_slots.hpp"
#include "dunnock/index/detail/segment_split.hpp"
#include "dunnock/index/detail/segment_writer.hpp"
#include "dunnock/index/index_format.hpp"  // IWYU pragma: export
#include "dunnock/index/index_points.hpp"
#include "dunnock/index/index_types.hpp"  // IWYU pragma: export
#include "dunnock/pmem/clean_count.hpp"
#include "dunnock/pmem/media.hpp"
#include "dunnock/pmem/media_status.hpp"
#include "dunnock/pmem/named_regions.hpp"
#include "dunnock/pmem/pool.hpp"
#include "dunnock/pmem/region.hpp"
#include "dunnock/pmem/volatile_region.hpp"

namespace dunnock {

/// Threads: any number of threads may call all functions except close and check at any time. get, get_bulk and
/// may_contain are lock-free and never wait for a writer, not even for one that splits a segment.
///
/// Crashes: when a call returns, its effect is durable as the media defines it. A call that a crash interrupts takes
/// effect completely or not at all (a bulk call: for each of its entries). A crash never undoes a result that a call
/// has returned, not even one that depends on another thread's call that had not returned yet.
template <Media M>
class KvIndex {
 public:
  using L = Layout<12>;
  static constexpr unsigned kGroupWords = kIndexGroupWords;
  static constexpr unsigned kGroupLanes = kIndexGroupLanes;

  struct Entry {
    IndexKey key;
    IndexValue value;
  };
  struct Opened;

  // ----- life -----------------------------------------------------------------------------------------------------

  /// Creates an index in `pool` under `name` (regions "<name>.meta", "<name>.s0", ...). It exists when this returns; an
  /// error or a crash before that leaves nothing. Errors: InvalidArgument, AlreadyExists, NoSpace, Io.
  [[nodiscard]] static Result<KvIndex> create(Pool& pool, std::string_view name, const IndexOptions& options, M media);
  /// The same as part of a larger creation: the index exists when that is finished.
  [[nodiscard]] static Result<KvIndex> create_in(PendingRegions& pending, std::string_view name,
                                                 const IndexOptions& options, M media);
  /// Opens the index `name`. The pool must outlive the index.
  /// Errors: NotFound, WrongVersion, WrongLayout, Corrupt.
  [[nodiscard]] static Result<Opened> open(Pool& pool, std::string_view name, M media);
  /// Opens the index `name`, or creates it if it does not exist. Of threads that call this at once, one creates it and
  /// the others open it. The seed is that of the creation.
  /// Errors: those of create and open; WrongLayout also when it was created with other options.
  [[nodiscard]] static Result<Opened> open_or_create(Pool& pool, std::string_view name, const IndexOptions& options,
                                                     M media);
  /// The same in the pool in the file `path`, which is opened with it. If there is no such file, it is made with
  /// pool_bytes(options) bytes, and gets its name when the index is in it: a crash before leaves nothing. For several
  /// structures in one pool, open the pool yourself. Errors: also those of Pool::open_or_create, such as AlreadyOpen.
  [[nodiscard]] static Result<InPool<Opened>> open_or_create(const std::string& path, std::string_view name,
                                                             const IndexOptions& options) requires PoolMedia<M>;
  /// A pool size, in bytes, that holds such an index and nothing else. Where `bytes_max` is 0: kPoolBytesAuto, or four
  /// times what `entries` need, if that is more.
  [[nodiscard]] static std::uint64_t pool_bytes(const IndexOptions& options) noexcept;
  static constexpr std::uint64_t kPoolBytesAuto = 64ULL << 20;
  /// Creates an index in plain memory. Lost with the process.
  [[nodiscard]] static Result<KvIndex> create_volatile(const IndexOptions& options,
                                                       M media = {}) requires std::default_initializable<M>;

  /// create() and open() on the caller's memory, which must be zeroed (for format) and outlive the index. For tests,
  /// crash harnesses and embedding. `bytes_max` of the options must be given.
  [[nodiscard]] static std::uint64_t meta_bytes(const IndexOptions& options) {
    return detail::index_meta_bytes(detail::index_header_for(options));
  }
  [[nodiscard]] static std::uint64_t segment_bytes(std::uint32_t groups) noexcept {
    return detail::index_segment_bytes(groups);
  }
  /// Only create and open_or_create accept a `bytes_max` of 0. Errors: InvalidArgument.
  [[nodiscard]] static Status check_options(const IndexOptions& options) {
    return detail::check_index_options(options);
  }
  [[nodiscard]] static Result<KvIndex> format(Region meta, IndexMemory memory, const IndexOptions& options, M media);
  [[nodiscard]] static Result<Opened> attach(Region meta, IndexMemory memory, M media);

  /// Marks a clean shutdown, so that size() is known when the index is opened next. The index must not be used
  /// afterwards. Without close() only that mark is missing.
  void close();

  /// Is the structure still usable? After the medium fails nothing is acknowledged any more: puts and gets answer kIo,
  /// erases and replacements false.
  /// What was acknowledged before is found when the pool is opened again. Errors: Io.
  [[nodiscard]] Status status() const { return media_status(media()); }

  KvIndex(KvIndex&&) noexcept = default;
  KvIndex& operator=(KvIndex&&) noexcept = default;

  // ----- one key --------------------------------------------------------------------------------------------------

  /// Gives the key this value. Expected O(1); occasionally splits the key's segment. `previous`, if not null, receives
  /// the old value if the result is kReplaced.
  PutResult put(const IndexKey& key, const IndexValue& value, IndexValue* previous = nullptr);
  [[nodiscard]] GetResult get(const IndexKey& key) const;
  /// Erases the key. False: it was not found, or see status(). `previous`, if not null, receives its old value.
  bool erase(const IndexKey& key, IndexValue* previous = nullptr);
  /// Gives the key `desired` if its value is `expected`, in one step. False: the value was another, or there was none.
  bool replace_if(const IndexKey& key, const IndexValue& expected, const IndexValue& desired);
  /// Erases the key if its value is `expected`, in one step. False: the value was another, or there was none.
  bool erase_if(const IndexKey& key, const IndexValue& expected);

  /// Asks the filter inside the index: false only when the key is missing; true also for about 1 in 500 missing keys
  /// (see above), and for 1 in 50 at most. Reads only fingerprints.
  [[nodiscard]] bool may_contain(const IndexKey& key) const;
  /// Starts fetching what may_contain and get will read.
  void prefetch(const IndexKey& key) const;

  // ----- many keys ------------------------------------------------------------------------------------------------

  /// Like one call per key in some order, but with memory latency hidden and one fence for a batch of keys. `results`
  /// (`erased`) receives one entry per key and may be null in put_bulk and erase_bulk; so may `previous`. They return
  /// how many keys were new (put), found (get), or erased.
  std::size_t put_bulk(std::span<const Entry> entries, PutResult* results = nullptr, IndexValue* previous = nullptr);
  std::size_t get_bulk(std::span<const IndexKey> keys, GetResult* results) const;
  std::size_t erase_bulk(std::span<const IndexKey> keys, std::uint8_t* erased = nullptr,
                         IndexValue* previous = nullptr);

  // ----- the whole ------------------------------------------------------------------------------------------------

  /// Calls visit(key, value) for every entry: once for each that exists throughout, once or not at all for those that
  /// are added or erased meanwhile. `visit` may use the index. Returns how many records can't be read: this many
  /// entries, or remains of erased ones, were not visited.
  template <class Visit>
  [[nodiscard]] std::uint64_t for_each(Visit&& visit) const;
  /// Number of entries. Exact when no writer is active. After a crash the first call counts them (writers wait).
  [[nodiscard]] std::uint64_t size() const;
  [[nodiscard]] IndexStats stats() const;
  /// Scans everything: is each entry valid, where it belongs, and stored once? Needs exclusive use of the index.
  [[nodiscard]] IndexCheck check() const;
  [[nodiscard]] const HashSeed& seed() const noexcept { return table_.seed(); }

 private:
  template <Media Other>
  friend class KvStore;  // open_as

  static constexpr bool kReadersPersist = !M::kVisibleIsDurable;
  static constexpr unsigned kBatch = detail::kIndexBatch;
  static constexpr unsigned kFenceBatch = detail::kIndexFenceBatch<M>;
  static constexpr detail::CleanPoints kCleanPoints{index_point::kCloseCount, index_point::kCloseClean,
                                                    index_point::kOpenDirty};
  using Table = detail::IndexTable<M>;
  using Place = detail::IndexPlace;
  using Lane = detail::IndexLane;
  using Segment = detail::Segment;
  using Reader = detail::SegmentReader<M>;
  using Writer = detail::SegmentWriter<M>;
  using Site = typename Writer::Site;

  struct alignas(kLineBytes) Shard {
    std::atomic<std::int64_t> items{0};
    std::atomic<std::uint64_t> reader_persists{0};
  };
  /// Volatile state that does not move with the object.
  struct Shared {
    Shared(Region meta, IndexMemory memory, const IndexHeader& header)
        : locks(header.segment_groups, header.segments_max * header.segment_groups),
          directory(std::move(meta), header),
          slots(std::move(memory), header) {}
    detail::GroupLocks locks;
    detail::SegmentDirectory directory;
    detail::SegmentSlots slots;
    detail::ItemCount<Shard> counts;
    detail::SplitCounts splits;
    std::atomic<std::uint64_t> refusals{0};
  };

  KvIndex(Region meta, IndexMemory memory, const IndexHeader& header, M media)
      : table_(std::move(media), header),
        shared_(std::make_unique<Shared>(std::move(meta), std::move(memory), header)) {}

  /// `options`, if not null: what the index must have been created with.
  [[nodiscard]] static Result<Opened> open_as(Pool& pool, std::string_view name, const IndexOptions* options, M media);
  [[nodiscard]] detail::CleanWords clean_words() const noexcept {
    IndexState& state = shared_->directory.state();
    return {state.clean, state.entries, index_clean_mark};
  }

  [[nodiscard]] const M& media() const noexcept { return table_.media(); }
  [[nodiscard]] Segment segment_of(const Place& place) const noexcept {
    return shared_->directory.segment_of(place.segment);
  }
  [[nodiscard]] Shard& shard() const noexcept { return shared_->counts.of_thread(); }
  void count(std::int64_t by) const noexcept { shard().items.fetch_add(by, std::memory_order_relaxed); }

  [[nodiscard]] GetResult get_at(const IndexKey& key, const Place& place) const;
  void persist_read(Segment segment, const Place& place, bool far) const;

  /// A writer of one key, or of a batch.
  [[nodiscard]] Writer make_writer(bool batch) const noexcept {
    return {table_, shared_->directory, shared_->locks, batch};
  }
  [[nodiscard]] PutResult put_with(Writer& writer, const IndexKey& key, const Place& place, const IndexValue& value,
                                   IndexValue* previous);
  void remove(Writer& writer, const Place& place, const Site& site) const;
  template <class Change>
  bool change_entry(const IndexKey& key, const Change& change);
  template <class KeyAt>
  void find_places(std::span<Place> places, const KeyAt& key_at) const;
  template <class KeyAt, class Change, class Refuse>
  std::size_t change_many(std::size_t keys, const KeyAt& key_at, const Change& change, const Refuse& refuse_from);

  Table table_;
  std::unique_ptr<Shared> shared_;
};

template <Media M>
struct KvIndex<M>::Opened {
  KvIndex index;
  IndexRecovery report;
  bool created = false;  ///< Did open_or_create just create it?
  [[nodiscard]] KvIndex& structure() noexcept { return index; }
};

}  // namespace dunnock

#include "dunnock/index/detail/kv_index_life.ipp"  // IWYU pragma: export
#include "dunnock/index/detail/kv_index_ops.ipp"   // IWYU pragma: export
