// CuckooFilter: a failure-atomic, parallel cuckoo filter in persistent memory (AniFilter, EuroSys 2020).
//
// What it is for: answering "was this key inserted?" with a small rate of false positives and never a false negative,
// at memory speed, with inserts and erases that survive a crash the moment they return.
// What it is not for: finding where a key is, counting keys exactly, or enumerating them. See index/ for a map.
//
//             hash(key)                          a group: 4 or 8 words of one 64-byte line
//   key ----------------> group g, word w, f     +------+------+------+------+------+------+------+------+
//                            |                   | word | word |*word*| word | word | word | word | word |
//                            |                   +------+------+------+------+------+------+------+------+
//                            |                                   home: 5 lanes of 12 bits + level + count
//                            +--> other group = S(f) - g mod groups
//
//   insert   home word has an empty lane: one store.                                  1 line, 1 fence
//            else spill to a word of the same group (spillable buckets).              1 line, 1 fence
//            else overflow to the other group; the home word is marked first.         1 line, 1 fence (2 + 2 at first)
//            (before a bucket is marked, a neighbor that is already free to move is moved instead)
//            else kick: move a home fingerprint whose other group has room, found by looking ahead.
//                                                                     2 lines + 1 log line per kick, 3 fences
//   lookup   the lanes of w; if w is marked, the foreign lanes of g; if w has overflowed for this half of the
//            fingerprints (even, odd), the foreign lanes of the other group
//            (bucket primacy: mostly one line).
//   erase    one store.                                                               1 line, 1 fence
//
// To find a key, we hash it once. The hash names its group g, its home word w in g, and its fingerprint f. We compare f
// with the lanes of w. If one is equal, the answer is yes. If none is and the level of w is 0, the answer is no,
// because every fingerprint of w is in w; most lookups end here, after one line. If the level is higher, we compare f
// with the foreign lanes of the other words of g, which are in the same line. Only if the level says that fingerprints
// of f's parity have overflowed, we read the other group too, and compare f with its foreign lanes.
//
// To insert a key, we store f in an empty lane of w. If w is full, we raise its level to 1, and store f in a foreign
// lane of the word of g that has the most room. If g is full, we raise the level of w to 2 or 3, and store f in a
// foreign lane of the other group, S(f) - g. From there g is S(f) - (S(f) - g), so either group can be computed from
// the other one and f, without the key. A level is durable before the copy that needs it: a crash between the two
// leaves a level that is too high, which costs comparisons, and never a copy that lookups miss.
//
// If both groups are full, we kick: we look for a fingerprint that is at home in one of them and whose own other group
// has room, write the move to the log, add the copy there, and remove the old one. If there is no such fingerprint, we
// look for a path of moves, and make them from its far end. A fingerprint that moves is in at least one place where
// lookups look at any time, and recovery completes an interrupted move from the log.
//
// To erase a key, we look where a lookup looks, and store an empty lane over the first copy. Levels stay as they are.
//
// False positives: f equals an unrelated fingerprint in 1 of 4,095 cases (12 bits). A filter that was filled to 95 %
// has 4.75 occupied lanes per word, 8.1 foreign lanes per group, 46 % of its words at level 1 or more, and 15 % at 2 or
// 3. A lookup of an absent key expects this many equal lanes:
//
//   in its home word          4.75 / 4095                                       0.12 %
//   in the rest of its group  0.46 x (8.1 x 7/8) / 4095                         0.08 %
//   in the other group        0.15 x (1/2 at level 2, 1 at 3) x 8.1 / 4095      0.01 to 0.03 %
//
// The sum is 0.21 to 0.23 %. Measured: 0.24 %, because words with a high level are in groups with many foreign lanes
// (Filter.has_the_levels_and_false_positives_that_its_header_derives).
//
// Where we differ from the paper: fingerprints away from home are in separate, marked lanes ("foreign"), so a lookup
// does not compare them unless it must; kicks go forward only, so readers take no lock and no version; and kicks are
// logged by redo rather than undo. The words are described in layout.hpp, the bytes in the pool in
// format.hpp, the proofs in docs/concurrency.md and docs/crash_consistency.md.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dunnock/base/result.hpp"
#include "dunnock/filter/detail/filter_counts.hpp"
#include "dunnock/filter/detail/filter_table.hpp"
#include "dunnock/filter/detail/group_scan.hpp"
#include "dunnock/filter/detail/kick_log.hpp"
#include "dunnock/filter/detail/kick_search.hpp"
#include "dunnock/filter/detail/stripes.hpp"
#include "dunnock/filter/format.hpp"
#include "dunnock/filter/hash.hpp"
#include "dunnock/filter/layout.hpp"
#include "dunnock/filter/points.hpp"
#include "dunnock/filter/policy.hpp"
#include "dunnock/pmem/clean_count.hpp"
#include "dunnock/pmem/media.hpp"
#include "dunnock/pmem/media_status.hpp"
#include "dunnock/pmem/named_regions.hpp"
#include "dunnock/pmem/pool.hpp"
#include "dunnock/pmem/region.hpp"
#include "dunnock/pmem/volatile_region.hpp"

namespace dunnock {

struct FilterOptions {
  /// Number of fingerprints to have room for, 1 .. 2^36; rounded up to whole groups. Plan for a load of at most 95 %.
  std::uint64_t slots = 0;
  HashSeed seed = HashSeed::random();
};

/// What opening found and did.
struct RecoveryReport {
  bool clean_shutdown = false;    ///< close() was called; otherwise the last user crashed.
  unsigned kicks_completed = 0;   ///< Moves that were in flight and are finished now.
  bool clear_completed = false;   ///< A clear() was in flight and is finished now.
  std::uint64_t nanoseconds = 0;  ///< Duration of recovery. Does not depend on the size of the table.
};

/// A picture of the table (by a full scan) and counts since the filter was opened.
struct FilterStats {
  std::uint64_t slots = 0;
  std::uint64_t items = 0;
  std::uint64_t foreign_items = 0;  ///< Items that are not in their home word.
  std::uint64_t words = 0;
  std::uint64_t words_spilled = 0;     ///< Words of level 1, 2 and 3.
  std::uint64_t words_overflowed = 0;  ///< Words of level 2 and 3.
  std::uint64_t memory_bytes = 0;      ///< Size of the table and meta regions.
  std::uint64_t overflows = 0;         ///< Inserts that went to the other group.
  std::uint64_t kicks = 0;             ///< Fingerprints moved.
  std::uint64_t kick_groups_read = 0;  ///< Groups looked at to find where to kick.
  std::uint64_t refusals = 0;          ///< Inserts that returned false.
  std::uint64_t reader_persists = 0;   ///< Lookups that had to persist what they had read.
};

/// The outcome of check(): the violations that a scan of everything found. Empty when all is well.
struct CheckReport {
  std::uint64_t items = 0;
  std::vector<std::string> violations;  ///< At most 100 sentences.
  [[nodiscard]] bool ok() const noexcept { return violations.empty(); }
};

/// Threads: any number of threads may call contains and size at any time, and also insert and erase if
/// kPolicy.multi_writer; otherwise one thread at a time may. clear, close and check need exclusive use of the filter.
///
/// Crashes: when a call returns, its effect is durable as the media defines it. A call that a crash interrupts takes
/// effect completely or not at all (a bulk call: for each of its keys). A crash never undoes a result that a call has
/// returned, not even one that depends on another thread's call that had not returned yet.
///
/// Duplicates: the filter is a multiset of fingerprints. A key inserted n times needs n erases. At most
/// 2 * kLanes * group_words copies fit (fewer when other keys hold the lanes); then insert returns false.
template <unsigned kBits, Media M, FilterPolicy kPolicy = FilterPolicy{}>
class CuckooFilter {
 public:
  using L = Layout<kBits>;
  static constexpr unsigned kFingerprintBits = kBits;
  static constexpr unsigned kLanes = L::kLanes;
  static constexpr unsigned kGroupWords = kPolicy.group_words;
  static_assert(kGroupWords == 4 || kGroupWords == 8);
  static constexpr std::uint64_t kSlotsMax = 1ULL << 36;

  struct Opened;

  // ----- life -----------------------------------------------------------------------------------------------------

  /// Creates a filter in `pool` under `name` (regions "<name>.meta" and "<name>.table"). It exists when this returns;
  /// an error or a crash before that leaves nothing. Errors: InvalidArgument (slots, name), AlreadyExists, NoSpace, Io.
  [[nodiscard]] static Result<CuckooFilter> create(Pool& pool, std::string_view name, const FilterOptions& options,
                                                   M media);
  /// The same as part of a larger creation: the filter exists when that is finished.
  [[nodiscard]] static Result<CuckooFilter> create_in(PendingRegions& pending, std::string_view name,
                                                      const FilterOptions& options, M media);
  /// Opens the filter `name` and recovers it. Constant time. The pool must outlive the filter.
  /// Errors: NotFound, WrongVersion, WrongLayout (fingerprint width, group size), Corrupt.
  [[nodiscard]] static Result<Opened> open(Pool& pool, std::string_view name, M media);
  /// Opens the filter `name`, or creates it if it does not exist. Of threads that call this at once, one creates it and
  /// the others open it. The seed is that of the creation.
  /// Errors: those of create and open; WrongLayout also when the filter has another number of slots.
  [[nodiscard]] static Result<Opened> open_or_create(Pool& pool, std::string_view name, const FilterOptions& options,
                                                     M media);
  /// The same in the pool in the file `path`, which is opened with it. If there is no such file, it is made with
  /// pool_bytes(options) bytes, and gets its name when the filter is in it: a crash before leaves nothing. For several
  /// structures in one pool, open the pool yourself. Errors: also those of Pool::open_or_create, such as AlreadyOpen.
  [[nodiscard]] static Result<InPool<Opened>> open_or_create(const std::string& path, std::string_view name,
                                                             const FilterOptions& options) requires PoolMedia<M>;
  /// A pool size, in bytes, that holds such a filter and nothing else.
  [[nodiscard]] static std::uint64_t pool_bytes(const FilterOptions& options) noexcept {
    return Pool::bytes_for(std::array{meta_bytes(), table_bytes(options.slots)});
  }
  /// Creates a filter in its own plain memory, with huge pages where the system provides them. Lost with the process.
  [[nodiscard]] static Result<CuckooFilter> create_volatile(const FilterOptions& options,
                                                            M media = {}) requires std::default_initializable<M>;

  /// create() and open() on the caller's memory, which must be zeroed (for format) and outlive the filter. For tests,
  /// crash harnesses and embedding.
  [[nodiscard]] static constexpr std::uint64_t meta_bytes() noexcept { return kFilterMetaBytes; }
  [[nodiscard]] static constexpr std::uint64_t table_bytes(std::uint64_t slots) noexcept {
    return (groups_for(slots) * kGroupWords * sizeof(Word) + kLineBytes - 1) / kLineBytes * kLineBytes;
  }
  /// Errors: InvalidArgument.
  [[nodiscard]] static Status check_options(const FilterOptions& options);
  [[nodiscard]] static Result<CuckooFilter> format(Region meta, Region table, const FilterOptions& options, M media);
  [[nodiscard]] static Result<Opened> attach(Region meta, Region table, M media);

  /// Marks a clean shutdown, so that size() is known when the filter is opened next. The filter must not be used
  /// afterwards. Without close() (a crash, or just destroying the object) only that mark is missing.
  void close();

  /// Is the structure still usable? After the medium fails nothing is acknowledged any more: insert and erase return
  /// false, bulk calls 0, and lookups true.
  /// What was acknowledged before is found when the pool is opened again. Errors: Io.
  [[nodiscard]] Status status() const { return media_status(media_); }

  CuckooFilter(CuckooFilter&&) noexcept = default;
  CuckooFilter& operator=(CuckooFilter&&) noexcept = default;

  // ----- one key --------------------------------------------------------------------------------------------------

  /// Adds the key. False: no room could be made, and the filter is unchanged. (Or see status().) Expected O(1).
  bool insert(std::uint64_t key) { return insert_place(place_of(key)); }
  bool insert(std::string_view key) { return insert_place(place_of(key)); }

  /// May the key have been inserted (and not erased)? Never false for a key that was. Wait-free, writes nothing.
  [[nodiscard, gnu::always_inline]] bool contains(std::uint64_t key) const { return contains_place(place_of(key)); }
  [[nodiscard]] bool contains(std::string_view key) const { return contains_place(place_of(key)); }

  /// Removes one copy of the key. False: there was none. Only for keys that were inserted: erasing one that was not
  /// removes, with the probability of a false positive, the equal fingerprint of another key, which is then lost.
  bool erase(std::uint64_t key) { return erase_place(place_of(key)); }
  bool erase(std::string_view key) { return erase_place(place_of(key)); }

  // ----- many keys ------------------------------------------------------------------------------------------------

  /// Like one call per key in some order, but with memory latency hidden and one fence for a group of keys.
  /// `inserted`, `found` and `erased` receive one byte per key, 0 or 1, and may be null (except `found`). All return
  /// the number of ones.
  std::size_t insert_bulk(std::span<const std::uint64_t> keys, std::uint8_t* inserted = nullptr) {
    return insert_many(keys, inserted);
  }
  std::size_t insert_bulk(std::span<const std::string_view> keys, std::uint8_t* inserted = nullptr) {
    return insert_many(keys, inserted);
  }
  std::size_t contains_bulk(std::span<const std::uint64_t> keys, std::uint8_t* found) const {
    return contains_many(keys, found);
  }
  std::size_t contains_bulk(std::span<const std::string_view> keys, std::uint8_t* found) const {
    return contains_many(keys, found);
  }
  std::size_t erase_bulk(std::span<const std::uint64_t> keys, std::uint8_t* erased = nullptr) {
    return erase_many(keys, erased);
  }
  std::size_t erase_bulk(std::span<const std::string_view> keys, std::uint8_t* erased = nullptr) {
    return erase_many(keys, erased);
  }

  /// The bulk forms on all threads of the current TBB arena.
  std::size_t insert_parallel(std::span<const std::uint64_t> keys,
                              std::uint8_t* inserted = nullptr) requires(kPolicy.multi_writer) {
    return insert_on_all_threads(keys, inserted);
  }
  std::size_t insert_parallel(std::span<const std::string_view> keys,
                              std::uint8_t* inserted = nullptr) requires(kPolicy.multi_writer) {
    return insert_on_all_threads(keys, inserted);
  }
  std::size_t contains_parallel(std::span<const std::uint64_t> keys, std::uint8_t* found) const {
    return contains_on_all_threads(keys, found);
  }
  std::size_t contains_parallel(std::span<const std::string_view> keys, std::uint8_t* found) const {
    return contains_on_all_threads(keys, found);
  }
  std::size_t erase_parallel(std::span<const std::uint64_t> keys,
                             std::uint8_t* erased = nullptr) requires(kPolicy.multi_writer) {
    return erase_on_all_threads(keys, erased);
  }
  std::size_t erase_parallel(std::span<const std::string_view> keys,
                             std::uint8_t* erased = nullptr) requires(kPolicy.multi_writer) {
    return erase_on_all_threads(keys, erased);
  }

  // ----- the whole ------------------------------------------------------------------------------------------------

  /// Number of items. Exact when no writer is active. After a crash the first call counts the table (writers wait).
  [[nodiscard]] std::uint64_t size() const;
  [[nodiscard]] std::uint64_t slots() const noexcept { return table_.slots(); }
  /// size() / slots().
  [[nodiscard]] double load() const { return static_cast<double>(size()) / static_cast<double>(slots()); }
  [[nodiscard]] std::uint64_t memory_bytes() const noexcept { return table_.region().bytes() + meta_.bytes(); }
  [[nodiscard]] const HashSeed& seed() const noexcept { return hasher_.seed(); }

  /// Removes everything. O(table). After a crash in the middle the filter is empty once it is opened again.
  void clear();

  /// The words of all buckets, as described in layout.hpp: for a copy elsewhere, such as kernels/filter_view.hpp. Their
  /// values are undefined while any thread writes. (groups x group_words)
  [[nodiscard]] std::span<const std::uint64_t> words() const noexcept {
    return {reinterpret_cast<const std::uint64_t*>(table_.words_of(0)), table_.buckets()};
  }
  /// Fills an empty filter with these words, which come from a filter of the same seed and size (keys under another
  /// seed would not be found again). No other thread may use the filter meanwhile. O(table). Errors: InvalidArgument:
  /// another number of words, or the filter is not empty; Corrupt: no filter leaves such words, and nothing was
  /// changed. After a crash in the middle the filter is empty once it is opened again.
  [[nodiscard]] Status assign_words(std::span<const std::uint64_t> words);
  [[nodiscard]] FilterStats stats() const;
  /// Scans everything and proves the invariants of layout.hpp and format.hpp, and that size() is right.
  [[nodiscard]] CheckReport check() const;

 private:
  static constexpr bool kDurable = M::kDurability != Durability::kNone;
  static constexpr bool kReadersPersist = !M::kVisibleIsDurable;
  static constexpr bool kUseStripes = kPolicy.multi_writer || kReadersPersist;
  static constexpr unsigned kBatch = 64;  // keys that share a fence: 170 ns of fence are 3 ns per key
  using Guard = detail::StripeGuard<kUseStripes, kPolicy.multi_writer, M>;

  using Table = detail::FilterTable<kBits, kPolicy>;
  using Search = detail::KickSearch<kBits, M, kPolicy>;

  /// Volatile state that does not move with the object.
  struct Shared {
    Shared(std::uint64_t lines, LogLine* log_lines) : stripes(kUseStripes ? lines : 1), log(log_lines) {}
    detail::Stripes stripes;
    detail::FilterCounters counters;
    detail::KickLog log;
  };

  enum class Placed : std::uint8_t { kNowhere, kHome, kSpilled };

  CuckooFilter(Region meta, Region table, std::uint64_t groups, const HashSeed& seed, M media);

  [[nodiscard]] static constexpr std::uint64_t groups_for(std::uint64_t slots) noexcept {
    return (slots + kGroupWords * kLanes - 1) / (kGroupWords * kLanes);
  }
  template <class Key>
  [[nodiscard]] Place place_of(Key key) const noexcept {
    return L::place(hasher_(key), table_.buckets());
  }
  [[nodiscard]] static std::array<std::string, 2> region_names(std::string_view name) {
    return {std::string(name) + ".meta", std::string(name) + ".table"};
  }
  [[nodiscard]] static Result<std::vector<std::string>> left_over(const Pool& pool, std::string_view name);
  [[nodiscard]] static Result<Opened> open_as(Pool& pool, std::string_view name, const FilterOptions* options, M media);
  [[nodiscard]] static std::string wrong_with(const FilterHeader& header);
  [[nodiscard]] static Status check_header(const Region& meta, const Region& table, FilterHeader& header);
  [[nodiscard]] Result<RecoveryReport> recover();
  template <class NewWord>
  void rewrite(NewWord&& new_word);

  [[nodiscard]] std::uint64_t stripe_of(std::uint64_t group) const noexcept {
    return shared_->stripes.of(Table::line_of(group));
  }
  [[nodiscard]] Reach reach_of(const Place& place) const noexcept {
    return Table::reach(media_.load(table_.word_at(place.bucket)), place.fingerprint);
  }
  [[nodiscard]] FilterState& state() const noexcept {
    return *reinterpret_cast<FilterState*>(meta_.at(kFilterStateOffset));
  }
  static constexpr detail::CleanPoints kCleanPoints{filter_point::kCloseCount, filter_point::kCloseClean,
                                                    filter_point::kOpenDirty};
  [[nodiscard]] detail::CleanWords clean_words() const noexcept { return {state().clean, state().items, clean_mark}; }
  /// Where a foreign fingerprint goes: -1 or a word of the group. Starting at another word for every fingerprint
  /// spreads them evenly.
  [[nodiscard]] int roomiest(const Word* group, std::uint64_t fingerprint) const {
    return detail::roomiest<kBits, kGroupWords>(media_, group, fingerprint % kGroupWords);
  }
  [[nodiscard]] Search search() const noexcept { return {table_, media_}; }
  /// The counts of this thread, and adding to one of them.
  [[nodiscard]] detail::FilterCounts& counts() const noexcept {
    return kPolicy.multi_writer ? shared_->counters.of_thread() : shared_->counters.only();
  }
  template <class T>
  static void add(std::atomic<T>& count, T by) noexcept {
    detail::add<kPolicy.multi_writer>(count, by);
  }

  bool insert_place(const Place& place);
  bool insert_in_group(const Place& place);
  [[gnu::noinline]] bool insert_beyond_group(const Place& place);
  // `Flushes` takes the flush of a store: FlushNow, or DeferredFlushes in bulk operations.
  struct FlushNow {
    const M& media;
    void add(Point point, const Word* word) const noexcept { media.flush(point, word); }
  };
  class DeferredFlushes;
  template <class Flushes>
  [[nodiscard]] Placed place_in_group(const Place& place, Flushes&& flushes) const;
  void mark_overflowed(const Place& place) const;
  template <class Flushes>
  void place_in_other(Word& target, std::uint64_t fingerprint, Flushes&& flushes) const;
  template <class Flushes>
  [[nodiscard]] Placed spill(const Place& place, std::uint64_t home, Flushes&& flushes) const;
  bool make_room_unmarked(const Place& place);
  bool make_room(const Place& place, std::uint64_t other);
  [[nodiscard]] bool find_path(const Place& place, std::uint64_t other, std::vector<detail::KickMove>& path) const;
  bool apply(const detail::KickMove& move);

  bool contains_place(const Place& place) const;
  bool in_other(const Place& place, std::uint64_t other, std::uint64_t pattern) const;
  bool answer(std::uint64_t group, bool found) const;
  bool answer(std::uint64_t group, std::uint64_t other, bool found) const;
  void persist_read(std::uint64_t group, std::uint64_t other) const;

  bool erase_place(const Place& place);
  bool erase_in_group(const Place& place, std::uint64_t pattern);
  template <class Flushes>
  bool erase_home(const Place& place, std::uint64_t pattern, Flushes&& flushes) const;
  [[nodiscard]] int first_foreign(const Word* group, std::uint64_t pattern) const;
  void erase_foreign(Word& word, std::uint64_t pattern) const;
  [[gnu::noinline]] bool erase_beyond_group(const Place& place);

  template <class Key>
  std::size_t insert_many(std::span<const Key> keys, std::uint8_t* inserted);
  template <class Key>
  std::size_t contains_many(std::span<const Key> keys, std::uint8_t* found) const;
  template <class Key>
  std::size_t erase_many(std::span<const Key> keys, std::uint8_t* erased);
  template <class Key>
  std::size_t insert_on_all_threads(std::span<const Key> keys, std::uint8_t* inserted);
  template <class Key>
  std::size_t contains_on_all_threads(std::span<const Key> keys, std::uint8_t* found) const;
  template <class Key>
  std::size_t erase_on_all_threads(std::span<const Key> keys, std::uint8_t* erased);

  class HeldStripes;
  class Wave;
  struct Later;
  template <class Key>
  class Batches;
  template <class Key>
  [[nodiscard]] unsigned insert_together(Batches<Key>& batches, std::span<const Place> places, unsigned n,
                                         Later& later);
  [[nodiscard]] unsigned insert_in_wave(std::span<const Place> places, Later& later);
  struct Census;
  [[nodiscard]] Census census() const;

  [[no_unique_address]] M media_;
  KeyHasher hasher_;
  Table table_;
  Region meta_;
  std::unique_ptr<Shared> shared_;
  std::optional<VolatileRegion> owned_meta_;  // create_volatile only
  std::optional<VolatileRegion> owned_table_;
};

template <unsigned kBits, Media M, FilterPolicy kPolicy>
struct CuckooFilter<kBits, M, kPolicy>::Opened {
  CuckooFilter filter;
  RecoveryReport report;
  bool created = false;  ///< Did open_or_create just create it?
  [[nodiscard]] CuckooFilter& structure() noexcept { return filter; }
};

}  // namespace dunnock

#include "dunnock/filter/detail/cuckoo_filter_bulk.ipp"  // IWYU pragma: export
#include "dunnock/filter/detail/cuckoo_filter_life.ipp"  // IWYU pragma: export
#include "dunnock/filter/detail/cuckoo_filter_ops.ipp"   // IWYU pragma: export
