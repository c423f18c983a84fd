// ValueLog: append-only, checksummed storage for values of any size, in segments of a pool.
//
// What it is for: keeping the bytes that an index points to. Appending is a copy at the speed of the media and one
// fence; no allocator is involved. What it is not for: finding anything (an index does that), or knowing what is still
// needed: its owner decides that when a segment is compacted.
//
//   segments   [ full ][ full ][ writing ][ free ][ full ][ writing ][ free ] ...
//                 |                 ^
//                 |  compaction:    |     live records are appended elsewhere, the owner is notified, and the
//                 +-----------------+     segment is free again when no thread reads in it any more
//
// Life of a value: append() makes the bytes durable and returns a ticket; the owner publishes the ticket's locator in
// its index, durably; then the ticket may be destroyed. When the owner has replaced or erased the locator, durably, it
// calls discard(). KvStore (kv_store.hpp) is a ready-made owner.
//
// The bytes in the pool: log_format.hpp.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dunnock/base/result.hpp"
#include "dunnock/index/detail/media_mutex.hpp"
#include "dunnock/index/log_format.hpp"
#include "dunnock/index/log_points.hpp"
#include "dunnock/pmem/media.hpp"
#include "dunnock/pmem/media_status.hpp"
#include "dunnock/pmem/named_regions.hpp"
#include "dunnock/pmem/pool.hpp"
#include "dunnock/pmem/region.hpp"
#include "dunnock/pmem/volatile_region.hpp"

namespace dunnock {

struct LogOptions {
  /// Size of all segments together; rounded down to whole segments, at least three.
  std::uint64_t capacity_bytes = 0;
  /// A power of two, 1024 .. 2^30. No value is longer than this less 32.
  std::uint64_t segment_bytes = 8 << 20;
};

struct LogStats {
  std::uint64_t segments = 0;
  std::uint64_t segments_free = 0;
  std::uint64_t segment_bytes = 0;
  std::uint64_t live_bytes = 0;       ///< Estimate: after a crash, what was discarded before it counts as alive.
  std::uint64_t appended_bytes = 0;   ///< Since the log was opened, with headers and padding.
  std::uint64_t compacted_bytes = 0;  ///< Those of them that compaction moved.
  std::uint64_t compactions = 0;
};

enum class ReadState : std::uint8_t {
  kFound,
  kStale,    ///< The segment was freed since: look the locator up again.
  kDamaged,  ///< The bytes fail a checksum. They are not returned.
  kIo,       ///< The medium has failed. They are not returned.
};

/// Threads: any number of threads may call all functions at any time, except that only one at a time may compact
/// (victim, visit, free).
///
/// Crashes: a record whose ticket was returned is whole after a crash. Of one that was being appended, parts may be
/// left; no locator points to them, and compaction skips them.
template <Media M>
class ValueLog {
 public:
  static constexpr std::uint64_t kOverheadBytes = sizeof(RecordHeader);

  /// Keeps a segment from being freed or compacted while this lives.
  class Pin {
   public:
    Pin() = default;
    Pin(Pin&& other) noexcept : pins_(std::exchange(other.pins_, nullptr)) {}
    Pin& operator=(Pin&& other) noexcept {
      std::swap(pins_, other.pins_);
      return *this;
    }
    ~Pin() {
      if (pins_ != nullptr) pins_->fetch_sub(1, std::memory_order_release);
    }

   private:
    friend ValueLog;
    explicit Pin(std::atomic<std::uint32_t>& pins) noexcept : pins_(&pins) {}
    std::atomic<std::uint32_t>* pins_ = nullptr;
  };
  /// A durable record that nothing points to yet. Keep the ticket until the locator is published.
  struct Ticket {
    Locator locator;
    Pin pin;
  };
  /// A value in place. The bytes stay where and as they are while this lives.
  struct View {
    ReadState state = ReadState::kStale;
    std::span<const std::byte> bytes;
    Pin pin;
  };
  struct Item {
    IndexKey key;
    std::span<const std::byte> bytes;
    std::optional<std::uint32_t> checksum{};  ///< payload_checksum(bytes), if it is known.
  };

  // ----- life -----------------------------------------------------------------------------------------------------

  /// Creates a log in `pool` under `name` (regions "<name>.log" and "<name>.logmeta"). It exists when this returns; an
  /// error or a crash before that leaves nothing. Errors: InvalidArgument, AlreadyExists, NoSpace, Io.
  [[nodiscard]] static Result<ValueLog> create(Pool& pool, std::string_view name, const LogOptions& options, M media);
  /// The same as part of a larger creation: the log exists when that is finished.
  [[nodiscard]] static Result<ValueLog> create_in(PendingRegions& pending, std::string_view name,
                                                  const LogOptions& options, M media);
  /// Opens the log `name`; reads eight bytes per segment. Errors: NotFound, WrongVersion, WrongLayout, Corrupt.
  [[nodiscard]] static Result<ValueLog> open(Pool& pool, std::string_view name, M media);
  /// Opens the log `name`, or creates it if it does not exist. Of threads that call this at once, one creates it and
  /// the others open it. Errors: those of create and open; WrongLayout also when it was created with other options.
  [[nodiscard]] static Result<ValueLog> open_or_create(Pool& pool, std::string_view name, const LogOptions& options,
                                                       M media);
  /// The same in the pool in the file `path`, which is opened with it. If there is no such file, it is made with
  /// pool_bytes(options) bytes, and gets its name when the log is in it: a crash before leaves nothing. For several
  /// structures in one pool, open the pool yourself. Errors: also those of Pool::open_or_create, such as AlreadyOpen.
  [[nodiscard]] static Result<InPool<ValueLog>> open_or_create(const std::string& path, std::string_view name,
                                                               const LogOptions& options) requires PoolMedia<M>;
  /// A pool size, in bytes, that holds such a log and nothing else.
  [[nodiscard]] static std::uint64_t pool_bytes(const LogOptions& options) noexcept {
    return Pool::bytes_for(std::array{meta_bytes(options), options.capacity_bytes});
  }
  /// create() and open() on the caller's memory, which must be zeroed (for format) and outlive the log. Segments do not
  /// cross extents.
  [[nodiscard]] static std::uint64_t meta_bytes(const LogOptions& options) noexcept;
  [[nodiscard]] static std::uint64_t data_bytes(const LogOptions& options) noexcept;
  [[nodiscard]] static Status check_options(const LogOptions& options);
  [[nodiscard]] static Result<ValueLog> format(Region meta, Region data, const LogOptions& options, M media);
  [[nodiscard]] static Result<ValueLog> attach(Region meta, Region data, M media);

  /// Is the structure still usable? After the medium fails nothing is acknowledged any more: appends return nothing,
  /// and views are kIo.
  /// What was acknowledged before is found when the pool is opened again. Errors: Io.
  [[nodiscard]] Status status() const { return media_status(media_); }

  ValueLog(ValueLog&&) noexcept = default;
  ValueLog& operator=(ValueLog&&) noexcept = default;

  // ----- values ---------------------------------------------------------------------------------------------------

  /// Appends the value, durably. Empty result: no segment is free (compact, or erase something), or the value is longer
  /// than value_bytes_max(). (Or see status().)
  [[nodiscard]] std::optional<Ticket> append(const IndexKey& key, std::span<const std::byte> bytes);
  /// Like append, but durable only after fence() by the same thread, so that many appends can share one.
  [[nodiscard]] std::optional<Ticket> begin_append(const Item& item);
  /// Makes what this thread has appended durable: locators to it may be published. False: they may not; see status().
  bool fence();
  /// The value at `locator`, verified. `key`: the key that it must belong to.
  [[nodiscard]] View view(const Locator& locator, const IndexKey& key) const;
  /// Reads the value at `locator` and compares it with these bytes, which must have the locator's checksum. kFound:
  /// they are the same as what view() would return. kDamaged: they are not, or the record's header is damaged.
  [[nodiscard]] ReadState compare(const Locator& locator, const IndexKey& key, std::span<const std::byte> bytes) const;
  /// Reads the first bytes of the value at `locator`. Verifies its header, but not the bytes. False: the value is
  /// stale, damaged, or shorter than `into`.
  [[nodiscard]] bool peek(const Locator& locator, const IndexKey& key, std::span<std::byte> into) const;
  /// Notes that the value at `locator` is not needed any more: no index points to it.
  void discard(const Locator& locator) noexcept;

  /// Bytes that a value of this length occupies, with header and padding.
  [[nodiscard]] static constexpr std::uint64_t record_bytes(std::uint64_t length) noexcept {
    return (sizeof(RecordHeader) + length + kLogAlignment - 1) / kLogAlignment * kLogAlignment;
  }
  [[nodiscard]] std::uint64_t value_bytes_max() const noexcept { return segment_bytes_ - sizeof(RecordHeader); }
  [[nodiscard]] std::uint64_t capacity_bytes() const noexcept { return segments_ * segment_bytes_; }
  [[nodiscard]] LogStats stats() const;
  /// Does the durable table match the volatile state? Returns a sentence if not. Needs exclusive use of the log.
  [[nodiscard]] std::string check() const;

  // ----- compaction, for owners -----------------------------------------------------------------------------------

  /// Appends a value of segment `victim` elsewhere; may use the one free segment that is reserved for compaction. When
  /// a crash in the middle of a compaction has left none, it uses the space that the crash left unused at the end of
  /// another segment.
  [[nodiscard]] std::optional<Ticket> append_moved(std::uint64_t victim, const IndexKey& key,
                                                   std::span<const std::byte> bytes);
  /// The segment that seems to hold the least live data, if that is less than the share `live_at_most` of its bytes.
  /// Empty: no such segment is full, unpinned and in use.
  [[nodiscard]] std::optional<std::uint64_t> victim(double live_at_most) const;
  /// Calls visit(key, locator, payload) for each whole record of a full segment. Stops and returns false when visit
  /// returns false. A record that fails its payload's checksum is visited with an empty payload.
  template <class Visit>
  [[nodiscard]] bool visit(std::uint64_t segment, Visit&& visit) const;
  /// Notes that the segment can't be emptied: victim() does not return it again until something in it is discarded.
  void keep(std::uint64_t segment) noexcept {
    shared_->table[segment].live_bytes.store(static_cast<std::int64_t>(segment_bytes_), std::memory_order_relaxed);
  }
  /// Is a segment free for users?
  [[nodiscard]] bool has_room() const noexcept { return shared_->free_count.load(std::memory_order_relaxed) > 1; }
  [[nodiscard]] const M& media() const noexcept { return media_; }
  /// Lets other threads continue, simulated ones too.
  void pause() const noexcept { detail::let_others_run(media_); }
  /// Frees the segment. Nothing may point into it any more.
  void free(std::uint64_t segment);
  /// Replaces the estimates of what is alive in each segment by counts from the owner's index.
  /// `for_each_locator(add)` calls add(locator) for each locator.
  template <class ForEachLocator>
  void recount(ForEachLocator&& for_each_locator);

 private:
  // How much of a value to prefetch: as many lines as a core has outstanding loads; beyond, it detects the sequence.
  static constexpr std::uint64_t kPrefetchBytes = 512;

  static constexpr unsigned kHeads = 4;  // Segments that users write concurrently; compaction has one more.

  struct Segment {
    std::atomic<std::uint64_t> word{0};  // as in the table
    std::atomic<std::uint32_t> pins{0};
    std::atomic<std::uint32_t> full{0};       // 1: no thread appends to it any more
    std::atomic<std::int64_t> live_bytes{0};  // estimate
  };
  /// Where records are being appended.
  struct alignas(kLineBytes) Head {
    std::atomic<bool> taken{false};
    std::uint64_t segment = kNone;
    std::uint64_t used_bytes = 0;
  };
  static constexpr std::uint64_t kNone = ~0ULL;
  struct Shared {
    explicit Shared(std::uint64_t segments) : table(std::make_unique<Segment[]>(segments)) {}
    std::unique_ptr<Segment[]> table;
    std::array<Head, kHeads + 1> heads;
    std::atomic<bool> listing{false};  // The lock of the two lists.
    std::vector<std::uint64_t> free;
    std::vector<std::uint64_t> unpinning;  // free, but some thread still reads in it
    std::atomic<std::uint64_t> free_count{0};
    std::atomic<std::uint64_t> appended_bytes{0};
    std::atomic<std::uint64_t> compacted_bytes{0};
    std::atomic<std::uint64_t> compactions{0};
  };

  template <Media Other>
  friend class KvStore;
  static constexpr std::uint64_t kSegmentBytesMin = 1024;
  static constexpr std::uint64_t kSegmentBytesMax = 1ULL << 30;
  [[nodiscard]] static std::string wrong_with(const LogHeader& header);
  ValueLog(Region meta, Region data, const LogHeader& header, M media);
  [[nodiscard]] static std::array<std::string, 2> region_names(std::string_view name) {
    return {std::string(name) + ".logmeta", std::string(name) + ".log"};
  }
  [[nodiscard]] static Status check_header(const Region& meta, const Region& data, LogHeader& header);
  [[nodiscard]] static bool is_unused(const Region& meta);
  [[nodiscard]] static Result<std::vector<std::string>> left_over(Pool& pool, std::string_view name, bool formatted);
  [[nodiscard]] static Result<ValueLog> open_as(Pool& pool, std::string_view name, const LogOptions* options, M media);
  [[nodiscard]] static LogHeader header_for(const LogOptions& options) noexcept;
  [[nodiscard]] Status recover();

  [[nodiscard]] Word& table_at(std::uint64_t segment) const noexcept {
    return *reinterpret_cast<Word*>(meta_.at(kLogTableOffset + segment * sizeof(Word)));
  }
  [[nodiscard]] static constexpr std::uint64_t position_of(std::uint64_t offset, std::uint64_t epoch) noexcept {
    return offset | epoch << 48;
  }
  [[nodiscard]] static constexpr std::uint64_t offset_of(std::uint64_t position) noexcept {
    return position & ((1ULL << 48) - 1);
  }
  template <class Visit>
  [[nodiscard]] bool visit_headers(std::uint64_t segment, Visit&& visit) const;
  [[nodiscard]] View whole_record(const Locator& locator, const IndexKey& key) const;
  [[nodiscard]] unsigned head_of_thread() const noexcept;
  [[nodiscard]] std::optional<Ticket> reserve(unsigned head, std::uint64_t length, std::uint64_t kept_back);
  [[nodiscard]] bool take_segment(Head& head, std::uint64_t kept_back);
  [[nodiscard]] bool adopt_tail(std::uint64_t victim, std::uint64_t bytes);
  void write(const Ticket& ticket, const IndexKey& key, std::span<const std::byte> bytes, std::uint32_t checksum) const;

  [[no_unique_address]] M media_;
  std::uint64_t segment_bytes_;
  std::uint64_t segments_;
  Region meta_;
  Region data_;
  std::unique_ptr<Shared> shared_;
};

}  // namespace dunnock

#include "dunnock/index/detail/value_log.ipp"  // IWYU pragma: export
