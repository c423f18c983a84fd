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
#include <bit>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dunnock/base/result.hpp"
#include "dunnock/filter/hash.hpp"
#include "dunnock/filter/layout.hpp"
#include "dunnock/index/detail/group_locks.hpp"
#include "dunnock/index/index_format.hpp"
#include "dunnock/index/index_points.hpp"
#include "dunnock/pmem/clean_count.hpp"
#include "dunnock/pmem/media.hpp"
#include "dunnock/pmem/media_status.hpp"
#include "dunnock/pmem/named_regions.hpp"
#include "dunnock/pmem/pool.hpp"
#include "dunnock/pmem/region.hpp"
#include "dunnock/pmem/volatile_region.hpp"

namespace dunnock {

struct IndexOptions {
  /// Number of entries to have room for from the start. The index grows beyond that.
  std::uint64_t entries = 0;
  /// Maximum number of bytes in all segments. 0: as many as the pool has (in plain memory: 64 GiB; a pool that
  /// open_or_create(path) makes has KvIndex::pool_bytes).
  std::uint64_t bytes_max = 0;
  /// Groups of 40 entries per segment: a power of two, 2 .. 4096. Larger segments are a little fuller when they split,
  /// and take longer to split.
  std::uint32_t segment_groups = 256;
  HashSeed seed = HashSeed::random();
};

/// What opening found. Nothing needs repair: see index_format.hpp.
struct IndexRecovery {
  bool clean_shutdown = false;  ///< close() was called; otherwise the last user crashed.
  std::uint64_t segments = 0;
  std::uint64_t nanoseconds = 0;  ///< Duration of opening: 8 bytes are read for each segment of 10,240 entries.
};

/// A picture of the index (by a full scan) and counts since it was opened.
struct IndexStats {
  std::uint64_t entries = 0;
  std::uint64_t slots = 0;  ///< Entries that the segments could hold.
  std::uint64_t segments = 0;
  std::uint64_t depth = 0;             ///< Number of bits that choose a segment.
  std::uint64_t bytes = 0;             ///< Size of segments and directory, including reserved segments.
  std::uint64_t dead_lanes = 0;        ///< Lanes that point to no entry: left by crashes, or erased just now.
  std::uint64_t words_spilled = 0;     ///< Buckets with an entry elsewhere in their group, or beyond.
  std::uint64_t words_overflowed = 0;  ///< Buckets with an entry in the other group.
  std::uint64_t splits = 0;
  std::uint64_t split_ns_max = 0;
  std::uint64_t refusals = 0;         ///< Puts that returned kFull.
  std::uint64_t reader_persists = 0;  ///< Gets that had to persist what they had read.
};

/// The outcome of check().
struct IndexCheck {
  std::uint64_t entries = 0;
  std::uint64_t dead_lanes = 0;
  std::uint64_t damaged = 0;            ///< Records that fail their checksum.
  std::vector<std::string> violations;  ///< At most 100 sentences. Empty when all is well.
  [[nodiscard]] bool ok() const noexcept { return violations.empty(); }
};

enum class PutResult : std::uint8_t {
  kInserted,  ///< The key is new.
  kReplaced,  ///< The key had another value, which this one replaces.
  kFull,      ///< No more segments are available. The index is unchanged.
  kIo,        ///< The medium has failed: nothing is acknowledged any more. A crash leaves the old value or this one.
};

enum class GetState : std::uint8_t {
  kMissing,
  kFound,
  kDamaged,  ///< A record with this fingerprint fails its checksum: it may have been this key's. Never a wrong value.
  kIo,       ///< The medium has failed: the key's value, if any, may not be durable, so it is not returned.
};

struct GetResult {
  GetState state = GetState::kMissing;
  IndexValue value;
  explicit operator bool() const noexcept { return state == GetState::kFound; }
};

/// Provides memory for an index's chunks. Both functions return at least `bytes` of line-aligned memory in one extent.
/// Called by one thread at a time.
struct IndexMemory {
  std::function<Result<Region>(unsigned chunk, std::uint64_t bytes)> open;    ///< Opens an existing chunk.
  std::function<Result<Region>(unsigned chunk, std::uint64_t bytes)> obtain;  ///< Opens it, or makes a new, zeroed one.
};

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
  [[nodiscard]] static std::uint64_t meta_bytes(const IndexOptions& options);
  [[nodiscard]] static std::uint64_t segment_bytes(std::uint32_t groups) noexcept {
    return groups * (1ULL + kGroupLanes) * kLineBytes;
  }
  /// Only create and open_or_create accept a `bytes_max` of 0. Errors: InvalidArgument.
  [[nodiscard]] static Status check_options(const IndexOptions& options);
  [[nodiscard]] static Result<KvIndex> format(Region meta, IndexMemory memory, const IndexOptions& options, M media);
  [[nodiscard]] static Result<Opened> attach(Region meta, IndexMemory memory, M media);

  /// Marks a clean shutdown, so that size() is known when the index is opened next. The index must not be used
  /// afterwards. Without close() only that mark is missing.
  void close();

  /// Is the structure still usable? After the medium fails nothing is acknowledged any more: puts and gets answer kIo,
  /// erases and replacements false.
  /// What was acknowledged before is found when the pool is opened again. Errors: Io.
  [[nodiscard]] Status status() const { return media_status(media_); }

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
  [[nodiscard]] const HashSeed& seed() const noexcept { return hasher_.seed(); }

 private:
  static constexpr bool kReadersPersist = !M::kVisibleIsDurable;
  static constexpr unsigned kBatch = 32;  // Keys whose lines are fetched together.
  // Keys that share a fence. Their groups stay locked until then, so more of them pay off only where fences are slow.
  static constexpr unsigned kFenceBatch = [] {
    if constexpr (requires { M::kFenceBatch; })
      return M::kFenceBatch;
    else
      return kBatch;
  }();
  static constexpr unsigned kDepthMask = 63;  // Low bits of a directory entry: segments are line-aligned.

  /// Where a key belongs, from its hash.
  struct Place {
    std::uint64_t fingerprint;
    unsigned word;          // of the home group
    std::uint64_t group;    // in the segment
    std::uint64_t other;    // group, too
    std::uint64_t segment;  // bits that choose the segment
  };
  /// A segment as the directory knows it: its memory and its depth in one word.
  struct Segment {
    std::uint64_t packed = 0;
    [[nodiscard]] std::byte* base() const noexcept {
      return reinterpret_cast<std::byte*>(packed & ~static_cast<std::uint64_t>(kDepthMask));
    }
    [[nodiscard]] unsigned depth() const noexcept { return static_cast<unsigned>(packed & kDepthMask); }
    [[nodiscard]] std::uint64_t number(std::uint64_t bits) const noexcept { return bits & ((1ULL << depth()) - 1); }
    friend bool operator==(const Segment&, const Segment&) = default;
  };
  /// The volatile directory. To grow, it is replaced by one twice as long; old ones stay for readers that still use
  /// them.
  struct Directory {
    explicit Directory(unsigned bits)
        : depth(bits), entries(std::make_unique<std::atomic<std::uint64_t>[]>(1ULL << bits)) {}
    unsigned depth;
    std::unique_ptr<std::atomic<std::uint64_t>[]> entries;
    [[nodiscard]] std::uint64_t mask() const noexcept { return (1ULL << depth) - 1; }
  };
  /// An occupied lane and its record.
  struct Slot {
    Word* word = nullptr;
    unsigned lane = 0;
    IndexRecord* record = nullptr;
    std::uint64_t group = 0;
    explicit operator bool() const noexcept { return record != nullptr; }
  };
  struct alignas(kLineBytes) Shard {
    std::atomic<std::int64_t> items{0};
    std::atomic<std::uint64_t> reader_persists{0};
  };

  /// Volatile state that does not move with the object.
  struct Shared {
    Shared(std::uint64_t groups, std::uint64_t all) : locks(groups, all) {}
    detail::GroupLocks locks;
    detail::ItemCount<Shard> counts;
    std::atomic<const Directory*> directory{nullptr};
    std::atomic<bool> growing{false};  // The lock of what follows, and of directory commits.
    std::vector<std::unique_ptr<Directory>> directories;
    std::vector<Region> chunks;
    std::vector<std::uint64_t> chunk_starts;  // First slot of each chunk, and the one after the last.
    std::vector<std::uint64_t> free_slots;
    std::uint64_t next_slot = 0;
    std::uint64_t segments = 0;
    std::atomic<std::uint64_t> splits{0};
    std::atomic<std::uint64_t> split_ns_max{0};
    std::atomic<std::uint64_t> refusals{0};
  };
  class GrowthLock;
  class Writer;

  KvIndex(Region meta, IndexMemory memory, const IndexHeader& header, M media);

  /// Numbers of segments may be up to four times the count of them before depth runs out: splits need not be even.
  [[nodiscard]] static constexpr std::uint64_t directory_depth_for(std::uint64_t segments_max) noexcept {
    return static_cast<std::uint64_t>(std::bit_width(segments_max - 1)) + 2;
  }
  [[nodiscard]] static std::string wrong_with(const IndexHeader& header);
  [[nodiscard]] static IndexHeader header_for(const IndexOptions& options);
  [[nodiscard]] static Status check_segments(const IndexOptions& options);
  [[nodiscard]] static Status check_header(const Region& meta, IndexHeader& header);
  [[nodiscard]] Result<IndexRecovery> recover();
  [[nodiscard]] Status make_first_segments();
  [[nodiscard]] static IndexMemory memory_of(Pool& pool, std::string_view name);
  [[nodiscard]] static IndexMemory memory_of(PendingRegions& pending, std::string_view name);
  template <Media Other>
  friend class KvStore;
  template <Media Other>
  friend class CheckpointStore;
  [[nodiscard]] static IndexOptions bounded(const IndexOptions& options, const Pool& pool) noexcept;
  [[nodiscard]] static bool is_unused(const Region& meta);
  [[nodiscard]] static Result<std::vector<std::string>> left_over(Pool& pool, std::string_view name, bool formatted);
  [[nodiscard]] static Result<Opened> open_as(Pool& pool, std::string_view name, const IndexOptions* options, M media);

  [[nodiscard]] IndexState& state() const noexcept {
    return *reinterpret_cast<IndexState*>(meta_.at(kIndexStateOffset));
  }
  static constexpr detail::CleanPoints kCleanPoints{index_point::kCloseCount, index_point::kCloseClean,
                                                    index_point::kOpenDirty};
  [[nodiscard]] detail::CleanWords clean_words() const noexcept {
    return {state().clean, state().entries, index_clean_mark};
  }
  [[nodiscard]] Word& directory_at(std::uint64_t segment) const noexcept {
    return *reinterpret_cast<Word*>(meta_.at(kIndexDirectoryOffset + segment * sizeof(Word)));
  }
  [[nodiscard]] std::uint64_t chunk_slots(std::uint64_t before) const noexcept;
  [[nodiscard]] std::byte* memory_at(std::uint64_t slot) const noexcept;
  [[nodiscard]] Status add_chunk(bool may_create) const;

  [[nodiscard]] Place place_of(const IndexKey& key) const noexcept;
  [[nodiscard]] Segment segment_of(const Place& place) const noexcept {
    const Directory* directory = shared_->directory.load(std::memory_order_acquire);
    return {directory->entries[place.segment & directory->mask()].load(std::memory_order_acquire)};
  }
  [[nodiscard]] Word* words_of(Segment segment, std::uint64_t group) const noexcept {
    return reinterpret_cast<Word*>(segment.base() + group * kLineBytes);
  }
  [[nodiscard]] IndexRecord* records_of(Segment segment, std::uint64_t group) const noexcept {
    return reinterpret_cast<IndexRecord*>(segment.base() + groups_ * kLineBytes) + group * kGroupLanes;
  }
  [[nodiscard]] std::uint64_t lock_of(Segment segment, const Place& place, std::uint64_t group) const noexcept {
    return shared_->locks.of(segment.number(place.segment) * groups_ + group);
  }
  [[nodiscard]] Shard& shard() const noexcept { return shared_->counts.of_thread(); }

  // Reading.
  [[nodiscard]] IndexKey key_of(const IndexRecord& record) const noexcept {
    return {media_.load(record.key[0]), media_.load(record.key[1])};
  }
  [[nodiscard]] std::array<std::uint64_t, 2> value_of(const IndexRecord& record, unsigned slot) const noexcept {
    return {media_.load(record.values[slot][0]), media_.load(record.values[slot][1])};
  }
  /// What one get has seen so far.
  struct Reading {
    GetResult result;
    bool far = false;  // the other group, too
  };
  template <class IsStillThere>
  [[nodiscard]] bool read_record(const IndexRecord& record, const IndexKey& key, Reading& reading,
                                 const IsStillThere& is_still_there) const;
  [[nodiscard]] bool read_word(const Word& word, std::uint64_t seen, std::uint64_t pattern, const IndexRecord* records,
                               const IndexKey& key, Reading& reading) const;
  void read_segment(Segment segment, const IndexKey& key, const Place& place, Reading& reading) const;
  void read_beyond(Segment segment, const IndexKey& key, const Place& place, std::uint64_t home,
                   Reading& reading) const;
  [[nodiscard]] GetResult get_at(const IndexKey& key, const Place& place) const;
  [[nodiscard]] bool is_unsettled(Segment segment, const Place& place, bool far) const noexcept;
  void persist_read(Segment segment, const Place& place, bool far) const;
  void prefetch_records(std::span<const Place> places) const;

  // Writing, under the locks that `writer` holds.
  /// What a writer knows of a key when it holds the locks that it needs.
  struct Site {
    Segment segment;
    Slot slot;          // the key's entry, if there is one
    bool both = false;  // the other group is locked, too
  };
  enum class Inserted : std::uint8_t { kYes, kNoRoom, kNeedsBothLocks };
  [[nodiscard]] Slot find_in(Segment segment, std::uint64_t group, unsigned first, unsigned last, std::uint64_t pattern,
                             const IndexKey& key) const;
  [[nodiscard]] Site lock_and_find(Writer& writer, const IndexKey& key, const Place& place, bool both) const;
  [[nodiscard]] bool lock_other(Writer& writer, const Place& place, Site& site) const;
  [[nodiscard]] int roomiest(Segment segment, std::uint64_t group) const;
  [[nodiscard]] PutResult put_with(Writer& writer, const IndexKey& key, const Place& place, const IndexValue& value,
                                   IndexValue* previous);
  [[nodiscard]] Inserted insert_at(Writer& writer, const IndexKey& key, const Place& place, const IndexValue& value,
                                   Site& site);
  void fill(Writer& writer, const Place& place, const Site& site, std::uint64_t group, unsigned v, const IndexKey& key,
            const IndexValue& value);
  void update(Writer& writer, const Place& place, const Site& site, const IndexKey& key, const IndexValue& value);
  void remove(Writer& writer, const Place& place, const Site& site);
  [[nodiscard]] IndexValue stored_value(const Slot& slot) const;
  [[nodiscard]] bool holds_value(const Slot& slot, const IndexValue& expected) const;
  [[nodiscard]] bool scrub(Writer& writer, const Place& place, const Site& site);
  void count(std::int64_t by) const noexcept { shard().items.fetch_add(by, std::memory_order_relaxed); }

  // Growth.
  struct SplitPlan;
  [[nodiscard]] std::byte* take_slot(std::uint64_t& slot);
  void give_slot_back(std::uint64_t slot);
  [[nodiscard]] bool split(Segment segment, const Place& place);
  void plan_split(Segment segment, std::uint64_t number, SplitPlan& plan) const;
  void copy_movers(Segment from, Segment to, const SplitPlan& plan) const;
  void commit_split(std::uint64_t number, Segment from, Segment to, std::uint64_t slot);
  void clean_up(Segment segment, const SplitPlan& plan) const;
  [[nodiscard]] bool is_damaged(const IndexRecord& record) const;
  /// Is there an entry in that lane: live, of this segment, and where its key may be? Sets `place` if it is live.
  [[nodiscard]] bool is_entry(Segment segment, std::uint64_t number, std::uint64_t group, std::uint64_t fingerprint,
                              const IndexRecord& record, Place& place) const;
  template <class Visit>
  void for_each_lane(Segment segment, Visit&& visit) const;
  [[nodiscard]] static std::uint64_t next_cursor(std::uint64_t cursor, unsigned depth) noexcept;
  template <class Visit>
  void for_each_segment(Visit&& visit) const;

  [[no_unique_address]] M media_;
  KeyHasher hasher_;
  std::uint64_t groups_;
  std::uint64_t initial_segments_;
  std::uint64_t segments_max_;
  unsigned directory_depth_max_;
  Region meta_;
  IndexMemory memory_;
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

#include "dunnock/index/detail/kv_index_growth.ipp"  // IWYU pragma: export
#include "dunnock/index/detail/kv_index_life.ipp"    // IWYU pragma: export
#include "dunnock/index/detail/kv_index_ops.ipp"     // IWYU pragma: export
