// The functions of ValueLog.
#pragma once

#include <algorithm>
#include <bit>
#include <cstring>
#include <string>

#include "dunnock/pmem/header.hpp"

namespace dunnock {

template <Media M>
ValueLog<M>::ValueLog(Region meta, Region data, const LogHeader& header, M media)
    : media_(std::move(media)),
      segment_bytes_(header.segment_bytes),
      segments_(header.segments),
      meta_(std::move(meta)),
      data_(std::move(data)),
      shared_(std::make_unique<Shared>(header.segments)) {}

template <Media M>
LogHeader ValueLog<M>::header_for(const LogOptions& options) noexcept {
  LogHeader header{};
  header.magic = kLogMagic;
  header.format_version = kLogFormatVersion;
  header.segment_bytes = options.segment_bytes;
  header.segments = options.capacity_bytes / options.segment_bytes;
  header.checksum = checksum_of(header);
  return header;
}

template <Media M>
std::uint64_t ValueLog<M>::meta_bytes(const LogOptions& options) noexcept {
  const std::uint64_t table = header_for(options).segments * sizeof(Word);
  return kLogTableOffset + (table + kLineBytes - 1) / kLineBytes * kLineBytes;
}

template <Media M>
std::uint64_t ValueLog<M>::data_bytes(const LogOptions& options) noexcept {
  return header_for(options).segments * options.segment_bytes;
}

/// Checks a header before create() writes it and after attach() reads it. Empty: nothing is wrong.
template <Media M>
std::string ValueLog<M>::wrong_with(const LogHeader& header) {
  if (header.segment_bytes < kSegmentBytesMin || header.segment_bytes > kSegmentBytesMax ||
      !std::has_single_bit(header.segment_bytes))
    return "a segment of the log needs a power of two from 1024 bytes to 1 GiB, not " +
           std::to_string(header.segment_bytes);
  if (header.segments < 3 || header.segments > ((1ULL << 48) - 1) / header.segment_bytes)
    return "a log needs at least 3 segments and at most 2^48 bytes, not " + std::to_string(header.segments) +
           " segments of " + std::to_string(header.segment_bytes) + " bytes";
  if (header.zero32 != 0 || header.zero != decltype(header.zero){}) return "its unused fields are not zero";
  return {};
}

template <Media M>
Status ValueLog<M>::check_options(const LogOptions& options) {
  LogHeader header{};
  header.segment_bytes = options.segment_bytes;
  header.segments = options.segment_bytes == 0 ? 0 : options.capacity_bytes / options.segment_bytes;
  if (std::string wrong = wrong_with(header); !wrong.empty())
    return make_error(ErrorCode::kInvalidArgument, std::move(wrong));
  return {};
}

template <Media M>
auto ValueLog<M>::format(Region meta, Region data, const LogOptions& options, M media) -> Result<ValueLog> {
  DUNNOCK_TRY(check_options(options));
  if (meta.bytes() < meta_bytes(options) || meta.extents().size() != 1 || data.bytes() < data_bytes(options) ||
      data.extent_bytes() % options.segment_bytes != 0)
    return make_error(ErrorCode::kInvalidArgument, "the sizes of the log's regions do not match its options");
  const LogHeader header = header_for(options);
  for (std::uint64_t s = 0; s < header.segments; ++s) {
    Word& word = *reinterpret_cast<Word*>(meta.at(kLogTableOffset + s * sizeof(Word)));
    media.store(log_point::kFormatFields, word, segment_word(s, 0, false));
    if (s % 8 == 7 || s + 1 == header.segments) media.flush(log_point::kFormatFields, &word);
  }
  write_header(media, {.fields = log_point::kFormatFields, .magic = log_point::kFormatMagic}, meta, header);
  ValueLog log(std::move(meta), std::move(data), header, std::move(media));
  DUNNOCK_TRY(log.recover());
  return log;
}

template <Media M>
Status ValueLog<M>::check_header(const Region& meta, const Region& data, LogHeader& header) {
  constexpr HeaderKind kKind{"log", kLogMagic, kLogFormatVersion};
  DUNNOCK_TRY(read_header(kKind, meta, kLogTableOffset, header));
  if (std::string what = wrong_with(header); !what.empty()) return kKind.refuse(ErrorCode::kCorrupt, what);
  if (data.bytes() / header.segment_bytes < header.segments || data.extent_bytes() % header.segment_bytes != 0 ||
      (meta.bytes() - kLogTableOffset) / sizeof(Word) < header.segments)
    return kKind.refuse(ErrorCode::kCorrupt, "its sizes contradict each other");
  return {};
}

template <Media M>
auto ValueLog<M>::attach(Region meta, Region data, M media) -> Result<ValueLog> {
  LogHeader header;
  DUNNOCK_TRY(check_header(meta, data, header));
  ValueLog log(std::move(meta), std::move(data), header, std::move(media));
  DUNNOCK_TRY(log.recover());
  return log;
}

/// Finds which segments are free. One that was being written counts as full: what a crash left of its last record is
/// determined when it is compacted.
template <Media M>
Status ValueLog<M>::recover() {
  Shared& shared = *shared_;
  for (std::uint64_t s = segments_; s-- > 0;) {
    const std::uint64_t word = media_.load(table_at(s));
    const bool in_use = (word & 1) != 0;
    if (word != segment_word(s, word >> 48, in_use))
      return make_error(ErrorCode::kCorrupt, "the log is damaged in the word of segment " + std::to_string(s));
    Segment& segment = shared.table[s];
    segment.word.store(word, std::memory_order_relaxed);
    segment.full.store(in_use ? 1 : 0, std::memory_order_relaxed);
    segment.live_bytes.store(in_use ? static_cast<std::int64_t>(segment_bytes_) : 0, std::memory_order_relaxed);
    if (!in_use) shared.free.push_back(s);
  }
  shared.free_count.store(shared.free.size(), std::memory_order_relaxed);
  return {};
}

/// Does the meta region, formatted or not, say that no segment was ever used?
template <Media M>
bool ValueLog<M>::is_unused(const Region& meta) {
  return meta.bytes() >= kLogTableOffset && meta.extents().size() == 1 &&
         is_blank(meta, sizeof(LogHeader), [](std::uint64_t at) {
           return at < kLogTableOffset ? 0 : segment_word((at - kLogTableOffset) / sizeof(Word), 0, false);
         });
}

/// The regions that a crash has left of a creation in a pool of an older format: without a magic word, or, where a
/// larger structure knows that it was never finished, `formatted` ones that nothing was ever appended to.
/// Errors: AlreadyExists: other data exists.
template <Media M>
Result<std::vector<std::string>> ValueLog<M>::left_over(Pool& pool, std::string_view name, bool formatted) {
  return detail::left_over_regions(pool, region_names(name), [&](const std::string& region, const Region& there) {
    if (!region.ends_with("meta")) return is_blank(there);
    return is_unused(there) && (formatted || word_of(there, 0) == 0);
  });
}

template <Media M>
auto ValueLog<M>::create_in(PendingRegions& pending, std::string_view name, const LogOptions& options, M media)
    -> Result<ValueLog> {
  DUNNOCK_TRY(check_options(options));
  DUNNOCK_TRY(const auto left, left_over(pending.pool(), name, false));
  DUNNOCK_TRY(pending.pool().remove_regions(left));
  const auto names = region_names(name);
  DUNNOCK_TRY(auto regions, pending.create(std::array{RegionSpec{names[0], meta_bytes(options)},
                                                      RegionSpec{names[1], data_bytes(options)}}));
  return format(regions[0], regions[1], options, std::move(media));
}

template <Media M>
auto ValueLog<M>::create(Pool& pool, std::string_view name, const LogOptions& options, M media) -> Result<ValueLog> {
  return detail::create_structure(
      pool, [&](PendingRegions& pending) { return create_in(pending, name, options, std::move(media)); });
}

/// `options`, if not null: what the log must have been created with.
template <Media M>
auto ValueLog<M>::open_as(Pool& pool, std::string_view name, const LogOptions* options, M media) -> Result<ValueLog> {
  const auto names = region_names(name);
  DUNNOCK_TRY(auto meta, pool.open_region(names[0]));
  DUNNOCK_TRY(auto data, pool.open_region(names[1]));
  const std::string about = detail::about("log", name, pool);
  if (word_of(meta, 0) == 0 && left_over(pool, name, false)) return detail::never_finished(about);
  LogHeader header;
  if (options != nullptr && check_header(meta, data, header)) {
    const LogHeader asked = header_for(*options);
    DUNNOCK_TRY(detail::check_agreed(
        about, std::array{detail::Agreed{"segment_bytes", header.segment_bytes, asked.segment_bytes},
                          detail::Agreed{"a number of segments of", header.segments, asked.segments}}));
  }
  return attach(meta, data, std::move(media));
}

template <Media M>
auto ValueLog<M>::open(Pool& pool, std::string_view name, M media) -> Result<ValueLog> {
  return open_as(pool, name, nullptr, std::move(media));
}

template <Media M>
auto ValueLog<M>::open_or_create(Pool& pool, std::string_view name, const LogOptions& options, M media)
    -> Result<ValueLog> {
  DUNNOCK_TRY(check_options(options));
  return detail::open_or_create_structure(
      pool, [&] { return open_as(pool, name, &options, media); },
      [&](PendingRegions& pending) { return create_in(pending, name, options, media); });
}

template <Media M>
auto ValueLog<M>::open_or_create(const std::string& path, std::string_view name, const LogOptions& options)
    -> Result<InPool<ValueLog>>
requires PoolMedia<M> {
  DUNNOCK_TRY(check_options(options));
  return detail::open_or_create_in_file(path, pool_bytes(options), [&](Pool& pool) {
    return open_or_create(pool, name, options, detail::media_of<M>(pool));
  });
}

// ----- appending -----------------------------------------------------------------------------------------------------

template <Media M>
unsigned ValueLog<M>::head_of_thread() const noexcept {
  static std::atomic<unsigned> next{0};
  static thread_local const unsigned mine = next.fetch_add(1, std::memory_order_relaxed);
  return mine % static_cast<unsigned>(std::min<std::uint64_t>(kHeads, segments_ - 2));
}

/// Under the lock of the head. A segment is durably in use before any locator can point into it.
template <Media M>
bool ValueLog<M>::take_segment(Head& head, std::uint64_t kept_back) {
  Shared& shared = *shared_;
  std::uint64_t taken = kNone;
  {
    const detail::SpinLock listing(shared.listing, media_);
    std::erase_if(shared.unpinning, [&](std::uint64_t s) {
      if (is_taken(media_, log_point::kStillPinned) && shared.table[s].pins.load(std::memory_order_seq_cst) != 0)
        return false;
      shared.free.push_back(s);
      return true;
    });
    if (shared.free.size() > kept_back) {
      taken = shared.free.back();
      shared.free.pop_back();
    }
    shared.free_count.store(shared.free.size(), std::memory_order_relaxed);
  }
  if (taken == kNone) return false;
  if (head.segment != kNone) shared.table[head.segment].full.store(1, std::memory_order_release);
  Segment& segment = shared.table[taken];
  const std::uint64_t epoch = ((segment.word.load(std::memory_order_relaxed) >> 48) + 1) & kEpochMask;
  const std::uint64_t word = segment_word(taken, epoch, true);
  media_.store(log_point::kTake, table_at(taken), word);
  media_.flush(log_point::kTake, &table_at(taken));
  media_.fence(log_point::kTake);  // The segment is in use, in a new epoch.
  if (!media_ok(media_)) return false;
  segment.live_bytes.store(0, std::memory_order_relaxed);
  segment.full.store(0, std::memory_order_relaxed);
  segment.word.store(word, std::memory_order_seq_cst);
  head.segment = taken;
  head.used_bytes = 0;
  return true;
}

/// Reserves room for a record, pinned.
template <Media M>
auto ValueLog<M>::reserve(unsigned number, std::uint64_t length, std::uint64_t kept_back) -> std::optional<Ticket> {
  if (length > value_bytes_max() || !media_ok(media_)) return std::nullopt;
  Shared& shared = *shared_;
  Head& head = shared.heads[number];
  const detail::SpinLock lock(head.taken, media_);
  const std::uint64_t bytes = record_bytes(length);
  if (head.segment == kNone || head.used_bytes + bytes > segment_bytes_) {
    if (!take_segment(head, kept_back)) return std::nullopt;
  }
  Segment& segment = shared.table[head.segment];
  segment.pins.fetch_add(1, std::memory_order_relaxed);  // It is not full, so it is not freed.
  segment.live_bytes.fetch_add(static_cast<std::int64_t>(bytes), std::memory_order_relaxed);
  shared.appended_bytes.fetch_add(bytes, std::memory_order_relaxed);
  Ticket ticket;
  ticket.locator.position =
      position_of(head.segment * segment_bytes_ + head.used_bytes, segment.word.load(std::memory_order_relaxed) >> 48);
  ticket.locator.length = static_cast<std::uint32_t>(length);
  ticket.pin = Pin(segment.pins);
  head.used_bytes += bytes;
  return ticket;
}

template <Media M>
void ValueLog<M>::write(const Ticket& ticket, const IndexKey& key, std::span<const std::byte> bytes,
                        std::uint32_t checksum) const {
  RecordHeader header{key, static_cast<std::uint32_t>(bytes.size()), checksum, 0};
  header.mark = record_mark(ticket.locator.position, header);
  std::byte* at = data_.at(offset_of(ticket.locator.position));
  write_durably(media_, log_point::kHeader, at, &header, sizeof header);
  const std::size_t whole = bytes.size() / sizeof(Word) * sizeof(Word);
  write_durably(media_, log_point::kPayload, at + sizeof header, bytes.data(), whole);
  if (whole == bytes.size()) return;
  std::uint64_t rest = 0;
  std::memcpy(&rest, bytes.data() + whole, bytes.size() - whole);
  write_durably(media_, log_point::kPayloadEnd, at + sizeof header + whole, &rest, sizeof rest);
}

template <Media M>
auto ValueLog<M>::begin_append(const Item& item) -> std::optional<Ticket> {
  if constexpr (kIsReadOnly<M>) return std::nullopt;
  auto ticket = reserve(head_of_thread(), item.bytes.size(), 1);
  if (!ticket) return std::nullopt;
  ticket->locator.checksum = item.checksum ? *item.checksum : payload_checksum(item.bytes);
  write(*ticket, item.key, item.bytes, ticket->locator.checksum);
  return ticket;
}

template <Media M>
bool ValueLog<M>::fence() {
  media_.fence(log_point::kAppendFence);  // Records may be pointed to.
  return media_ok(media_);
}

template <Media M>
auto ValueLog<M>::append(const IndexKey& key, std::span<const std::byte> bytes) -> std::optional<Ticket> {
  auto ticket = begin_append({key, bytes});
  if (!ticket || fence()) return ticket;
  discard(ticket->locator);
  return std::nullopt;
}

template <Media M>
auto ValueLog<M>::append_moved(std::uint64_t victim, const IndexKey& key, std::span<const std::byte> bytes)
    -> std::optional<Ticket> {
  auto ticket = reserve(kHeads, bytes.size(), 0);
  if (!ticket && adopt_tail(victim, record_bytes(bytes.size()))) ticket = reserve(kHeads, bytes.size(), 0);
  if (!ticket) return std::nullopt;
  ticket->locator.checksum = payload_checksum(bytes);
  write(*ticket, key, bytes, ticket->locator.checksum);
  media_.fence(log_point::kMovedFence);  // The record may be pointed to.
  if (!media_ok(media_)) return std::nullopt;
  shared_->compacted_bytes.fetch_add(record_bytes(bytes.size()), std::memory_order_relaxed);
  return ticket;
}

/// Lets compaction continue in the full segment with the most room after its last record: crashes leave such segments,
/// since they make all segments full. Parts of a record that was being written there belong to no entry.
template <Media M>
bool ValueLog<M>::adopt_tail(std::uint64_t victim, std::uint64_t bytes) {
  if (!media_ok(media_)) return false;
  std::uint64_t best = kNone;
  std::uint64_t best_used = segment_bytes_;
  for (std::uint64_t s = 0; s < segments_; ++s) {
    const Segment& segment = shared_->table[s];
    if (s == victim || segment.full.load(std::memory_order_acquire) == 0 ||
        segment.pins.load(std::memory_order_acquire) != 0)
      continue;
    std::uint64_t used = 0;
    (void)visit_headers(s, [&](const RecordHeader& header, std::uint64_t at) {
      used = at + record_bytes(header.length);
      return true;
    });
    if (used >= best_used) continue;
    best = s;
    best_used = used;
  }
  if (best == kNone || segment_bytes_ - best_used < bytes) return false;
  Head& head = shared_->heads[kHeads];
  const detail::SpinLock lock(head.taken, media_);
  if (head.segment != kNone) shared_->table[head.segment].full.store(1, std::memory_order_release);
  shared_->table[best].full.store(0, std::memory_order_relaxed);
  head.segment = best;
  head.used_bytes = best_used;
  return true;
}

template <Media M>
void ValueLog<M>::discard(const Locator& locator) noexcept {
  const std::uint64_t s = offset_of(locator.position) / segment_bytes_;
  if (s >= segments_) return;
  shared_->table[s].live_bytes.fetch_sub(static_cast<std::int64_t>(record_bytes(locator.length)),
                                         std::memory_order_relaxed);
}

// ----- reading -------------------------------------------------------------------------------------------------------

/// The record at `locator`, pinned, if its header is that of this value. The payload is not verified.
template <Media M>
auto ValueLog<M>::whole_record(const Locator& locator, const IndexKey& key) const -> View {
  View view;
  const std::uint64_t offset = offset_of(locator.position);
  const std::uint64_t s = offset / segment_bytes_;
  view.state = ReadState::kDamaged;
  if (s >= segments_ || offset % kLogAlignment != 0 ||
      record_bytes(locator.length) > segment_bytes_ - offset % segment_bytes_)
    return view;
  // The length is known, so all lines come at once, and while the pin waits for the processor's stores.
  const std::byte* const at = data_.at(offset);
  for (std::uint64_t line = 0; line < std::min(record_bytes(locator.length), kPrefetchBytes); line += kLineBytes)
    __builtin_prefetch(at + line);
  Segment& segment = shared_->table[s];
  // Partners: pin, then look whether it is still in use <-> free(): free it, then look whether it is pinned.
  if (is_taken(media_, log_point::kPin)) {
    segment.pins.fetch_add(1, std::memory_order_seq_cst);
    view.pin = Pin(segment.pins);
  }
  const std::uint64_t word = segment.word.load(std::memory_order_seq_cst);
  if ((is_taken(media_, log_point::kStillInUse) && (word & 1) == 0) ||
      (is_taken(media_, log_point::kSameEpoch) && word >> 48 != locator.position >> 48)) {
    view.state = ReadState::kStale;
    return view;
  }
  RecordHeader header;
  std::memcpy(&header, at, sizeof header);
  if (header.mark != record_mark(locator.position, header) || !(header.key == key) || header.length != locator.length ||
      header.checksum != locator.checksum)
    return view;
  view.state = ReadState::kFound;
  view.bytes = {at + sizeof header, locator.length};
  return view;
}

template <Media M>
auto ValueLog<M>::view(const Locator& locator, const IndexKey& key) const -> View {
  View view = whole_record(locator, key);
  if (!media_ok(media_)) [[unlikely]] {
    view.state = ReadState::kIo;
    view.bytes = {};
  }
  if (view.state == ReadState::kFound && payload_checksum(view.bytes) != locator.checksum) {
    view.state = ReadState::kDamaged;
    view.bytes = {};
  }
  return view;
}

template <Media M>
ReadState ValueLog<M>::compare(const Locator& locator, const IndexKey& key, std::span<const std::byte> bytes) const {
  const View view = whole_record(locator, key);
  if (view.state != ReadState::kFound) return view.state;
  const bool same = view.bytes.size() == bytes.size() &&
                    (bytes.empty() || std::memcmp(view.bytes.data(), bytes.data(), bytes.size()) == 0);
  return same ? ReadState::kFound : ReadState::kDamaged;
}

template <Media M>
bool ValueLog<M>::peek(const Locator& locator, const IndexKey& key, std::span<std::byte> into) const {
  const View view = whole_record(locator, key);
  if (view.state != ReadState::kFound || view.bytes.size() < into.size() || !media_ok(media_)) return false;
  std::memcpy(into.data(), view.bytes.data(), into.size());
  return true;
}

template <Media M>
LogStats ValueLog<M>::stats() const {
  const Shared& shared = *shared_;
  LogStats stats;
  stats.segments = segments_;
  stats.segment_bytes = segment_bytes_;
  stats.segments_free = shared.free_count.load(std::memory_order_relaxed);
  for (std::uint64_t s = 0; s < segments_; ++s) {
    const std::int64_t live = shared.table[s].live_bytes.load(std::memory_order_relaxed);
    stats.live_bytes += live > 0 ? static_cast<std::uint64_t>(live) : 0;
  }
  stats.appended_bytes = shared.appended_bytes.load(std::memory_order_relaxed);
  stats.compacted_bytes = shared.compacted_bytes.load(std::memory_order_relaxed);
  stats.compactions = shared.compactions.load(std::memory_order_relaxed);
  return stats;
}

template <Media M>
std::string ValueLog<M>::check() const {
  for (std::uint64_t s = 0; s < segments_; ++s) {
    if (media_.load(table_at(s)) != shared_->table[s].word.load(std::memory_order_acquire))
      return "the word of segment " + std::to_string(s) + " of the log is damaged";
  }
  return {};
}

// ----- compaction ----------------------------------------------------------------------------------------------------

template <Media M>
std::optional<std::uint64_t> ValueLog<M>::victim(double live_at_most) const {
  std::optional<std::uint64_t> best;
  auto least = static_cast<std::int64_t>(static_cast<double>(segment_bytes_) * live_at_most);
  for (std::uint64_t s = 0; s < segments_; ++s) {
    const Segment& segment = shared_->table[s];
    // Pins of writers: a full segment gets no new ones, and a writer with a pin may be about to publish its locator.
    if (segment.full.load(std::memory_order_acquire) == 0) continue;
    if (is_taken(media_, log_point::kVictimUnpinned) && segment.pins.load(std::memory_order_acquire) != 0) continue;
    const std::int64_t live = segment.live_bytes.load(std::memory_order_relaxed);
    if (live >= least) continue;
    least = live;
    best = s;
  }
  return best;
}

/// Calls visit(header, offset in the segment) for each record whose header is whole; stops when that returns false.
template <Media M>
template <class Visit>
bool ValueLog<M>::visit_headers(std::uint64_t s, Visit&& visit) const {
  const std::uint64_t epoch = shared_->table[s].word.load(std::memory_order_acquire) >> 48;
  for (std::uint64_t at = 0; at + sizeof(RecordHeader) <= segment_bytes_;) {
    const std::uint64_t offset = s * segment_bytes_ + at;
    RecordHeader header;
    std::memcpy(&header, data_.at(offset), sizeof header);
    if (header.mark != record_mark(position_of(offset, epoch), header) ||
        record_bytes(header.length) > segment_bytes_ - at) {
      at += kLogAlignment;  // A gap, or a record that a crash has cut off.
      continue;
    }
    if (!visit(header, at)) return false;
    at += record_bytes(header.length);
  }
  return true;
}

template <Media M>
template <class Visit>
bool ValueLog<M>::visit(std::uint64_t s, Visit&& visit) const {
  const std::uint64_t epoch = shared_->table[s].word.load(std::memory_order_acquire) >> 48;
  return visit_headers(s, [&](const RecordHeader& header, std::uint64_t at) {
    const std::uint64_t offset = s * segment_bytes_ + at;
    std::span<const std::byte> payload{data_.at(offset) + sizeof header, header.length};
    if (payload_checksum(payload) != header.checksum) payload = {};
    return visit(header.key, Locator{position_of(offset, epoch), header.length, header.checksum}, payload);
  });
}

template <Media M>
void ValueLog<M>::free(std::uint64_t s) {
  Shared& shared = *shared_;
  Segment& segment = shared.table[s];
  const std::uint64_t word = segment_word(s, segment.word.load(std::memory_order_relaxed) >> 48, false);
  segment.full.store(0, std::memory_order_relaxed);
  segment.live_bytes.store(0, std::memory_order_relaxed);
  segment.word.store(word, std::memory_order_seq_cst);  // Partner: view().
  media_.store(log_point::kFree, table_at(s), word);
  const detail::SpinLock listing(shared.listing, media_);
  if (!is_taken(media_, log_point::kFreedUnpinned) || segment.pins.load(std::memory_order_seq_cst) == 0) {
    shared.free.push_back(s);
  } else {
    shared.unpinning.push_back(s);
  }
  shared.free_count.store(shared.free.size(), std::memory_order_relaxed);
  shared.compactions.fetch_add(1, std::memory_order_relaxed);
}

template <Media M>
template <class ForEachLocator>
void ValueLog<M>::recount(ForEachLocator&& for_each_locator) {
  std::vector<std::int64_t> live(segments_, 0);
  for_each_locator([&](const Locator& locator) {
    const std::uint64_t s = offset_of(locator.position) / segment_bytes_;
    if (s < segments_) live[s] += static_cast<std::int64_t>(record_bytes(locator.length));
  });
  for (std::uint64_t s = 0; s < segments_; ++s) {
    if (shared_->table[s].full.load(std::memory_order_acquire) != 0)
      shared_->table[s].live_bytes.store(live[s], std::memory_order_relaxed);
  }
}

}  // namespace dunnock
