// Part of KvIndex: making, opening, closing, counting, checking.
#pragma once

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <map>
#include <tuple>

#include "dunnock/pmem/header.hpp"

namespace dunnock {

namespace detail {
/// A region that does not cross extents.
[[nodiscard]] inline RegionSpec one_extent(std::string_view name, std::uint64_t bytes) noexcept {
  return {.name = name, .bytes = bytes, .extent_bytes = std::max<std::uint64_t>(4096, std::bit_ceil(bytes))};
}
}  // namespace detail

/// The lock of growth: chunks, free slots, directory. A spin lock, because simulated threads can't block.
template <Media M>
class KvIndex<M>::GrowthLock {
 public:
  explicit GrowthLock(const KvIndex& index) : growing_(index.shared_->growing) {
    while (growing_.exchange(true, std::memory_order_acquire)) {  // Partner: the destructor.
      index.media_.pause();
      std::this_thread::yield();
    }
  }
  GrowthLock(const GrowthLock&) = delete;
  GrowthLock& operator=(const GrowthLock&) = delete;
  ~GrowthLock() { growing_.store(false, std::memory_order_release); }

 private:
  std::atomic<bool>& growing_;
};

template <Media M>
KvIndex<M>::KvIndex(Region meta, IndexMemory memory, const IndexHeader& header, M media)
    : media_(std::move(media)),
      hasher_(header.seed),
      groups_(header.segment_groups),
      initial_segments_(header.initial_segments),
      segments_max_(header.segments_max),
      directory_depth_max_(static_cast<unsigned>(header.directory_depth)),
      meta_(std::move(meta)),
      memory_(std::move(memory)),
      shared_(std::make_unique<Shared>(header.segment_groups, header.segments_max * header.segment_groups)) {
  shared_->chunk_starts.push_back(0);
}

/// Checks a header before create() writes it and after attach() reads it. Empty: nothing is wrong.
template <Media M>
std::string KvIndex<M>::wrong_with(const IndexHeader& header) {
  if (header.segment_groups < 2 || header.segment_groups > 4096 || !std::has_single_bit(header.segment_groups))
    return "a segment has 2 to 4096 groups, a power of two, not " + std::to_string(header.segment_groups);
  if (header.segments_max == 0)
    return "an index needs at least one segment of " + std::to_string(segment_bytes(header.segment_groups)) + " bytes";
  if (header.segments_max > 1ULL << (kIndexDepthMax - 2))
    return "an index of more than 2^" + std::to_string(kIndexDepthMax - 2) + " segments; make the segments larger";
  if (header.directory_depth != directory_depth_for(header.segments_max))
    return "a directory of 2^" + std::to_string(header.directory_depth) + " words does not fit " +
           std::to_string(header.segments_max) + " segments";
  if (!std::has_single_bit(header.initial_segments) || header.initial_segments > header.segments_max)
    return "it begins with " + std::to_string(header.initial_segments) + " segments of " +
           std::to_string(segment_bytes(header.segment_groups)) + " bytes, and there may be " +
           std::to_string(header.segments_max);
  if (header.zero != decltype(header.zero){}) return "fields that are not used are not zero";
  return {};
}

/// Checks what does not depend on bytes_max.
template <Media M>
Status KvIndex<M>::check_segments(const IndexOptions& options) {
  IndexHeader header{};
  header.segment_groups = options.segment_groups;
  header.segments_max = header.initial_segments = 1;
  header.directory_depth = directory_depth_for(1);
  if (std::string wrong = wrong_with(header); !wrong.empty())
    return make_error(ErrorCode::kInvalidArgument, std::move(wrong));
  return {};
}

template <Media M>
Status KvIndex<M>::check_options(const IndexOptions& options) {
  const auto refuse = [](std::string why) { return make_error(ErrorCode::kInvalidArgument, std::move(why)); };
  DUNNOCK_TRY(check_segments(options));
  if (options.bytes_max < segment_bytes(options.segment_groups))
    return refuse("an index needs at least one segment of " + std::to_string(segment_bytes(options.segment_groups)) +
                  " bytes, not " + std::to_string(options.bytes_max));
  if (options.entries / kGroupLanes > options.bytes_max / segment_bytes(1))
    return refuse(std::to_string(options.entries) + " entries do not fit in " + std::to_string(options.bytes_max) +
                  " bytes");
  if (std::string wrong = wrong_with(header_for(options)); !wrong.empty())
    return refuse("for " + std::to_string(options.entries) + " entries: " + wrong);
  return {};
}

template <Media M>
IndexHeader KvIndex<M>::header_for(const IndexOptions& options) {
  IndexHeader header{};
  header.magic = kIndexMagic;
  header.format_version = kIndexFormatVersion;
  header.segment_groups = options.segment_groups;
  // Segments are planned to be three fifths full; they split when they are three quarters full.
  const std::uint64_t per_segment = static_cast<std::uint64_t>(options.segment_groups) * kGroupLanes * 3 / 5;
  header.initial_segments =
      std::bit_ceil(std::max<std::uint64_t>(1, (options.entries + per_segment - 1) / per_segment));
  header.segments_max = options.bytes_max / segment_bytes(options.segment_groups);
  header.directory_depth = directory_depth_for(header.segments_max);
  header.seed = options.seed;
  header.checksum = checksum_of(header);
  return header;
}

template <Media M>
std::uint64_t KvIndex<M>::meta_bytes(const IndexOptions& options) {
  const std::uint64_t words = 1ULL << header_for(options).directory_depth;
  return kIndexDirectoryOffset + (words * sizeof(Word) + kLineBytes - 1) / kLineBytes * kLineBytes;
}

template <Media M>
auto KvIndex<M>::format(Region meta, IndexMemory memory, const IndexOptions& options, M media) -> Result<KvIndex> {
  DUNNOCK_TRY(check_options(options));
  if (meta.bytes() < meta_bytes(options) || meta.extents().size() != 1)
    return make_error(ErrorCode::kInvalidArgument, "the index's meta region does not fit its options");
  const IndexHeader header = header_for(options);
  KvIndex index(std::move(meta), std::move(memory), header, std::move(media));
  DUNNOCK_TRY(index.make_first_segments());
  write_header(index.media_, {.fields = index_point::kFormatFields, .magic = index_point::kFormatMagic}, index.meta_,
               header);
  return index;
}

/// Obtains the chunks of the first segments and writes directory and state; write_header() fences them.
template <Media M>
Status KvIndex<M>::make_first_segments() {
  const unsigned depth = static_cast<unsigned>(std::countr_zero(initial_segments_));
  Shared& shared = *shared_;
  while (shared.chunk_starts.back() < initial_segments_) {
    DUNNOCK_TRY(add_chunk(true));
  }
  for (std::uint64_t n = 0; n < initial_segments_; ++n) {
    media_.store(index_point::kFormatFields, directory_at(n), directory_word(n, n));
    if (n % 8 == 7 || n + 1 == initial_segments_) media_.flush(index_point::kFormatFields, &directory_at(n));
  }
  media_.store(index_point::kFormatFields, state().depth, depth);
  media_.flush(index_point::kFormatFields, &state());
  auto directory = std::make_unique<Directory>(depth);
  for (std::uint64_t n = 0; n < initial_segments_; ++n)
    directory->entries[n].store(reinterpret_cast<std::uintptr_t>(memory_at(n)) | depth, std::memory_order_relaxed);
  shared.directory.store(directory.get(), std::memory_order_release);
  shared.directories.push_back(std::move(directory));
  shared.segments = initial_segments_;
  shared.next_slot = initial_segments_;
  return {};
}

template <Media M>
Status KvIndex<M>::check_header(const Region& meta, IndexHeader& header) {
  constexpr HeaderKind kKind{"index", kIndexMagic, kIndexFormatVersion};
  DUNNOCK_TRY(read_header(kKind, meta, kIndexDirectoryOffset + kLineBytes, header));
  if (std::string what = wrong_with(header); !what.empty()) return kKind.refuse(ErrorCode::kCorrupt, what);
  if (meta.bytes() < kIndexDirectoryOffset + (sizeof(Word) << header.directory_depth))
    return kKind.refuse(ErrorCode::kCorrupt, "its directory does not fit its meta region");
  return {};
}

template <Media M>
auto KvIndex<M>::attach(Region meta, IndexMemory memory, M media) -> Result<Opened> {
  const auto start = std::chrono::steady_clock::now();
  IndexHeader header;
  DUNNOCK_TRY(check_header(meta, header));
  KvIndex index(std::move(meta), std::move(memory), header, std::move(media));
  Result<IndexRecovery> report = index.recover();
  DUNNOCK_TRY(report);
  report->nanoseconds = static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - start).count());
  return Opened{std::move(index), *report};
}

/// Builds the volatile directory from the durable one. Nothing else: see index_format.hpp.
template <Media M>
Result<IndexRecovery> KvIndex<M>::recover() {
  const auto corrupt = [](const std::string& what) { return make_error(ErrorCode::kCorrupt, "the index: " + what); };
  IndexRecovery report;
  Shared& shared = *shared_;
  const std::uint64_t depth = media_.load(state().depth);
  const auto first_depth = static_cast<unsigned>(std::countr_zero(initial_segments_));
  if (depth < first_depth || depth > directory_depth_max_)
    return corrupt("a directory of 2^" + std::to_string(depth) + " words is not possible");
  const std::uint64_t numbers = 1ULL << depth;
  std::vector<std::uint32_t> slots(numbers, 0);  // plus one
  std::vector<bool> used;
  for (std::uint64_t n = 0; n < numbers; ++n) {
    const std::uint64_t word = media_.load(directory_at(n));
    if (word == 0) {
      if (n < initial_segments_) return corrupt("segment " + std::to_string(n) + " is missing");
      continue;
    }
    const std::uint64_t slot = (word & 0xffffffffULL) - 1;
    if (slot >= segments_max_ || word != directory_word(n, slot))
      return corrupt("directory word " + std::to_string(n) + " is damaged");
    if (n >= initial_segments_ && slots[n - std::bit_floor(n)] == 0)
      return corrupt("segment " + std::to_string(n) + " has no parent");
    if (used.size() <= slot) used.resize(slot + 1, false);
    if (used[slot]) return corrupt("two segments in slot " + std::to_string(slot));
    used[slot] = true;
    slots[n] = static_cast<std::uint32_t>(slot + 1);
    ++report.segments;
  }
  while (shared.chunk_starts.back() < used.size()) {
    DUNNOCK_TRY(add_chunk(false));
  }
  for (std::uint64_t slot = used.size(); slot-- > 0;) {
    if (!used[slot]) shared.free_slots.push_back(slot);
  }
  shared.next_slot = used.size();
  shared.segments = report.segments;

  // A segment's depth is one more than that of the last split that it took part in.
  std::vector<std::uint8_t> depths(numbers, 0);
  for (std::uint64_t n = 0; n < numbers; ++n) {
    if (slots[n] == 0) continue;
    depths[n] = static_cast<std::uint8_t>(std::max<unsigned>(first_depth, static_cast<unsigned>(std::bit_width(n))));
    if (n < initial_segments_) continue;
    const std::uint64_t parent = n - std::bit_floor(n);
    depths[parent] = std::max(depths[parent], depths[n]);
  }
  auto directory = std::make_unique<Directory>(static_cast<unsigned>(depth));
  std::vector<std::uint64_t> owner(numbers, 0);
  for (std::uint64_t i = 0; i < numbers; ++i) {
    owner[i] = slots[i] != 0 ? i : owner[i - std::bit_floor(i)];
    directory->entries[i].store(reinterpret_cast<std::uintptr_t>(memory_at(slots[owner[i]] - 1)) | depths[owner[i]],
                                std::memory_order_relaxed);
  }
  shared.directory.store(directory.get(), std::memory_order_release);
  shared.directories.push_back(std::move(directory));

  const auto entries = detail::take_clean_count(media_, kCleanPoints, clean_words());
  report.clean_shutdown = entries.has_value();
  shared.counts.start(entries);
  return report;
}

/// Slots of the chunk that follows the first `before` slots: all of the first segments, then a quarter of the existing
/// slots, but at least 1 MiB. A chunk is one extent, so it stays under 1 GiB.
template <Media M>
std::uint64_t KvIndex<M>::chunk_slots(std::uint64_t before) const noexcept {
  const std::uint64_t bytes = segment_bytes(static_cast<std::uint32_t>(groups_));
  const std::uint64_t least = ((1ULL << 20) + bytes - 1) / bytes;
  const std::uint64_t most = std::max<std::uint64_t>(1, (1ULL << 30) / bytes);
  const std::uint64_t wanted = before < initial_segments_ ? initial_segments_ - before : before / 4;
  return std::min({std::max(wanted, least), most, segments_max_ - before});
}

template <Media M>
std::byte* KvIndex<M>::memory_at(std::uint64_t slot) const noexcept {
  const auto& starts = shared_->chunk_starts;
  const auto chunk =
      static_cast<std::size_t>(std::upper_bound(starts.begin(), starts.end(), slot) - starts.begin()) - 1;
  return shared_->chunks[chunk].at((slot - starts[chunk]) * segment_bytes(static_cast<std::uint32_t>(groups_)));
}

template <Media M>
Status KvIndex<M>::add_chunk(bool may_create) const {
  Shared& shared = *shared_;
  const std::uint64_t slots = chunk_slots(shared.chunk_starts.back());
  if (slots == 0) return make_error(ErrorCode::kNoSpace, "the index has all the segments that it may have");
  const auto number = static_cast<unsigned>(shared.chunks.size());
  const std::uint64_t bytes = slots * segment_bytes(static_cast<std::uint32_t>(groups_));
  Result<Region> chunk = may_create ? memory_.obtain(number, bytes) : memory_.open(number, bytes);
  if (!chunk && !may_create && chunk.error().code == ErrorCode::kNotFound)
    return make_error(ErrorCode::kCorrupt, "the index: " + chunk.error().message);
  DUNNOCK_TRY(chunk);
  if (chunk->bytes() < bytes || chunk->extents().size() != 1)
    return make_error(ErrorCode::kCorrupt, "chunk " + std::to_string(number) + " of the index has " +
                                               std::to_string(chunk->bytes()) + " bytes, expected " +
                                               std::to_string(bytes));
  shared.chunks.push_back(std::move(*chunk));
  shared.chunk_starts.push_back(shared.chunk_starts.back() + slots);
  return {};
}

template <Media M>
IndexMemory KvIndex<M>::memory_of(Pool& pool, std::string_view name) {
  const auto open = [pool = &pool, name = std::string(name)](unsigned chunk, std::uint64_t) {
    return pool->open_region(name + ".s" + std::to_string(chunk));
  };
  const auto obtain = [pool = &pool, name = std::string(name), open](unsigned chunk,
                                                                     std::uint64_t bytes) -> Result<Region> {
    const std::string region_name = name + ".s" + std::to_string(chunk);
    // It exists already if a crash came between making it and using it.
    if (auto region = open(chunk, bytes)) {
      if (region->bytes() == bytes) return region;
      return make_error(ErrorCode::kAlreadyExists, "region '" + region_name + "' of " + pool->path() + " has " +
                                                       std::to_string(region->bytes()) +
                                                       " bytes, and the index needs " + std::to_string(bytes));
    } else if (region.error().code != ErrorCode::kNotFound) {
      return region;
    }
    const RegionSpec spec = detail::one_extent(region_name, bytes);
    DUNNOCK_TRY(auto regions, pool->create_regions(std::span(&spec, 1)));
    return regions.front();
  };
  return {open, obtain};
}

/// For the first segments, which are a part of the creation.
template <Media M>
IndexMemory KvIndex<M>::memory_of(PendingRegions& pending, std::string_view name) {
  const auto obtain = [&pending, name = std::string(name)](unsigned chunk, std::uint64_t bytes) -> Result<Region> {
    const std::string region_name = name + ".s" + std::to_string(chunk);
    const RegionSpec spec = detail::one_extent(region_name, bytes);
    DUNNOCK_TRY(auto regions, pending.create(std::span(&spec, 1)));
    return regions.front();
  };
  return {obtain, obtain};
}

template <Media M>
IndexOptions KvIndex<M>::bounded(const IndexOptions& options, const Pool& pool) noexcept {
  IndexOptions all = options;
  if (all.bytes_max == 0) all.bytes_max = pool.bytes();
  return all;
}

/// Does the meta region, formatted or not, say that nothing was ever put, nor counted?
template <Media M>
bool KvIndex<M>::is_unused(const Region& meta) {
  if (meta.bytes() < kIndexDirectoryOffset + kLineBytes || meta.extents().size() != 1) return false;
  const std::uint64_t depth_at = kIndexStateOffset + offsetof(IndexState, depth);
  if (word_of(meta, depth_at) > kIndexDepthMax) return false;
  return is_blank(meta, kIndexStateOffset, [&](std::uint64_t at) -> std::uint64_t {
    if (at == depth_at) return word_of(meta, at);
    if (at < kIndexDirectoryOffset) return 0;
    const std::uint64_t n = (at - kIndexDirectoryOffset) / sizeof(Word);
    return directory_word(n, n);
  });
}

/// The regions that a crash has left of a creation in a pool of an older format: without a magic word, or, where a
/// larger structure knows that it was never finished, `formatted` ones that nothing was ever put into.
/// Errors: AlreadyExists: other data exists.
template <Media M>
Result<std::vector<std::string>> KvIndex<M>::left_over(Pool& pool, std::string_view name, bool formatted) {
  const auto is_meta = [name](std::string_view region) { return region.substr(name.size()) == ".meta"; };
  std::vector<std::string> names;
  for (const RegionInfo& info : pool.regions()) {
    if (!info.name.starts_with(name)) continue;
    const std::string_view end = std::string_view(info.name).substr(name.size());
    const bool is_chunk =
        end.size() > 2 && end.starts_with(".s") && end.find_first_not_of("0123456789", 2) == std::string_view::npos;
    if (is_meta(info.name) || is_chunk) names.push_back(info.name);
  }
  return detail::left_over_regions(pool, names, [&](const std::string& region, const Region& there) {
    return is_meta(region) ? is_unused(there) && (formatted || word_of(there, 0) == 0) : is_blank(there);
  });
}

template <Media M>
auto KvIndex<M>::create_in(PendingRegions& pending, std::string_view name, const IndexOptions& options, M media)
    -> Result<KvIndex> {
  Pool& pool = pending.pool();
  const IndexOptions all = bounded(options, pool);
  DUNNOCK_TRY(check_options(all));
  DUNNOCK_TRY(const auto left, left_over(pool, name, false));
  DUNNOCK_TRY(pool.remove_regions(left));
  const std::string meta_name = std::string(name) + ".meta";
  const RegionSpec spec = detail::one_extent(meta_name, meta_bytes(all));
  DUNNOCK_TRY(auto regions, pending.create(std::span(&spec, 1)));
  auto index = format(regions.front(), memory_of(pending, name), all, std::move(media));
  if (index) index->memory_ = memory_of(pool, name);
  return index;
}

template <Media M>
auto KvIndex<M>::create(Pool& pool, std::string_view name, const IndexOptions& options, M media) -> Result<KvIndex> {
  return detail::create_structure(
      pool, [&](PendingRegions& pending) { return create_in(pending, name, options, std::move(media)); });
}

/// `options`, if not null: what the index must have been created with.
template <Media M>
auto KvIndex<M>::open_as(Pool& pool, std::string_view name, const IndexOptions* options, M media) -> Result<Opened> {
  DUNNOCK_TRY(auto meta, pool.open_region(std::string(name) + ".meta"));
  const std::string about = detail::about("index", name, pool);
  if (word_of(meta, 0) == 0 && left_over(pool, name, false)) return detail::never_finished(about);
  IndexHeader header;
  if (options != nullptr && check_header(meta, header)) {
    const IndexHeader asked = header_for(bounded(*options, pool));
    DUNNOCK_TRY(detail::check_agreed(
        about, std::array{detail::Agreed{"segment_groups", header.segment_groups, asked.segment_groups},
                          detail::Agreed{"a number of first segments of", header.initial_segments,
                                         asked.initial_segments},
                          detail::Agreed{"a number of segments of at most", header.segments_max,
                                         asked.segments_max}}));
  }
  DUNNOCK_TRY(auto opened, attach(meta, memory_of(pool, name), std::move(media)));
  DUNNOCK_TRY(opened.index.status());
  return opened;
}

template <Media M>
auto KvIndex<M>::open(Pool& pool, std::string_view name, M media) -> Result<Opened> {
  return open_as(pool, name, nullptr, std::move(media));
}

template <Media M>
auto KvIndex<M>::open_or_create(Pool& pool, std::string_view name, const IndexOptions& options, M media)
    -> Result<Opened> {
  DUNNOCK_TRY(check_options(bounded(options, pool)));
  return detail::open_or_create_structure(
      pool, [&] { return open_as(pool, name, &options, media); },
      [&](PendingRegions& pending) { return create_in(pending, name, options, media); });
}

template <Media M>
std::uint64_t KvIndex<M>::pool_bytes(const IndexOptions& options) noexcept {
  const std::uint64_t segments = header_for(options).initial_segments;
  if (options.bytes_max == 0) return std::max(kPoolBytesAuto, 4 * segments * segment_bytes(options.segment_groups));
  return Pool::bytes_for(std::array{meta_bytes(options), options.bytes_max});
}

template <Media M>
auto KvIndex<M>::open_or_create(const std::string& path, std::string_view name, const IndexOptions& options)
    -> Result<InPool<Opened>>
requires PoolMedia<M> {
  DUNNOCK_TRY(check_segments(options));
  return detail::open_or_create_in_file(path, pool_bytes(options), [&](Pool& pool) {
    return open_or_create(pool, name, options, detail::media_of<M>(pool));
  });
}

template <Media M>
auto KvIndex<M>::create_volatile(const IndexOptions& options, M media) -> Result<KvIndex>
requires std::default_initializable<M> {
  IndexOptions bounded = options;
  if (bounded.bytes_max == 0) bounded.bytes_max = 64ULL << 30;
  DUNNOCK_TRY(check_options(bounded));
  auto owned = std::make_shared<std::vector<VolatileRegion>>();
  const auto obtain = [owned](unsigned, std::uint64_t bytes) -> Result<Region> {
    DUNNOCK_TRY(auto region, VolatileRegion::create(bytes));
    owned->push_back(std::move(region));
    return owned->back().region();
  };
  DUNNOCK_TRY(auto meta, obtain(0, meta_bytes(bounded)));
  return format(meta, {obtain, obtain}, bounded, std::move(media));
}

template <Media M>
void KvIndex<M>::close() {
  detail::store_clean_count(media_, kCleanPoints, clean_words(), size());
}

/// Calls visit(group, word, value, lane, record) for each occupied lane of a segment.
template <Media M>
template <class Visit>
void KvIndex<M>::for_each_lane(Segment segment, Visit&& visit) const {
  for (std::uint64_t group = 0; group < groups_; ++group) {
    Word* words = words_of(segment, group);
    IndexRecord* records = records_of(segment, group);
    for (unsigned v = 0; v < kGroupWords; ++v) {
      const std::uint64_t value = media_.load(words[v]);
      for (unsigned lane = 0; lane < L::kLanes; ++lane) {
        if (L::lane(value, lane) != 0) visit(group, v, value, lane, records[v * L::kLanes + lane]);
      }
    }
  }
}

/// The cursor that follows `cursor` when a segment of that depth has been seen: numbers are counted up from their
/// highest bit, so what splits make of a segment is all past the cursor or all ahead of it. 0: that was the last.
template <Media M>
std::uint64_t KvIndex<M>::next_cursor(std::uint64_t cursor, unsigned depth) noexcept {
  std::uint64_t bit = depth == 0 ? 0 : 1ULL << (depth - 1);
  for (; bit != 0 && (cursor & bit) != 0; bit >>= 1) cursor &= ~bit;
  return bit == 0 ? 0 : (cursor & (2 * bit - 1)) | bit;
}

/// Calls visit(segment, number) for each segment, as they are when it comes to them.
template <Media M>
template <class Visit>
void KvIndex<M>::for_each_segment(Visit&& visit) const {
  std::uint64_t cursor = 0;
  do {
    Place at{};
    at.segment = cursor;
    const Segment segment = segment_of(at);
    visit(segment, segment.number(cursor));
    cursor = next_cursor(cursor, segment.depth());
  } while (cursor != 0);
}

template <Media M>
bool KvIndex<M>::is_entry(Segment segment, std::uint64_t number, std::uint64_t group, std::uint64_t fingerprint,
                          const IndexRecord& record, Place& place) const {
  if (!detail::Control::live(media_.load(record.control))) return false;
  place = place_of(key_of(record));
  return place.fingerprint == fingerprint && segment.number(place.segment) == number &&
         (place.group == group || place.other == group);
}

/// Does a live record fail its checksum? No crash leaves one like that: none of its fields, not even its key, can be
/// trusted.
template <Media M>
bool KvIndex<M>::is_damaged(const IndexRecord& record) const {
  using detail::Control;
  std::uint64_t control = media_.load(record.control);
  while (Control::live(control)) {
    const std::uint64_t low = control & Control::kLowMask;
    const std::uint64_t sum = Control::sum(key_of(record), value_of(record, Control::slot(control)), low) | low;
    const std::uint64_t again = media_.load(record.control);
    if (again == control) return sum != control || !Control::sound_tag(control);
    control = again;  // A writer is changing it.
  }
  return false;
}

template <Media M>
template <class Visit>
std::uint64_t KvIndex<M>::for_each(Visit&& visit) const {
  std::vector<Entry> entries;
  std::uint64_t damaged = 0;
  std::uint64_t cursor = 0;
  do {
    Place at{};
    at.segment = cursor;
    Segment segment;
    std::uint64_t damaged_here = 0;
    do {  // Until it was not split meanwhile: then none has moved away before it was seen.
      segment = segment_of(at);
      entries.clear();
      damaged_here = 0;
      for_each_lane(segment,
                    [&](std::uint64_t group, unsigned, std::uint64_t value, unsigned lane, const IndexRecord& record) {
                      Place place;
                      if (is_damaged(record)) {
                        ++damaged_here;
                        return;
                      }
                      if (!is_entry(segment, segment.number(cursor), group, L::lane(value, lane), record, place))
                        return;
                      const IndexKey key = key_of(record);
                      const GetResult found = get_at(key, place_of(key));  // The value as of one moment, and durable.
                      if (found) entries.push_back({key, found.value});
                    });
    } while (!(segment_of(at) == segment));
    for (const Entry& entry : entries) visit(entry.key, entry.value);
    damaged += damaged_here;
    cursor = next_cursor(cursor, segment.depth());
  } while (cursor != 0);
  return damaged;
}

template <Media M>
std::uint64_t KvIndex<M>::size() const {
  return shared_->counts.items(media_ok(media_), [this](const auto& now) {
    // Writers wait while the table is counted.
    const detail::GroupLocks& locks = shared_->locks;
    for (std::uint64_t i = 0; i < locks.count(); ++i) locks.acquire(i, media_);
    std::uint64_t entries = 0;
    for_each_segment([&](Segment segment, std::uint64_t number) {
      for_each_lane(
          segment, [&](std::uint64_t group, unsigned, std::uint64_t value, unsigned lane, const IndexRecord& record) {
            Place place;
            entries += is_entry(segment, number, group, L::lane(value, lane), record, place) ? 1 : 0;
          });
    });
    now(entries);
    for (std::uint64_t i = 0; i < locks.count(); ++i) locks.release(i);
  });
}

template <Media M>
IndexStats KvIndex<M>::stats() const {
  IndexStats stats;
  for_each_segment([&](Segment segment, std::uint64_t number) {
    ++stats.segments;
    for (std::uint64_t group = 0; group < groups_; ++group) {
      for (unsigned v = 0; v < kGroupWords; ++v) {
        const unsigned level = L::level(media_.load(words_of(segment, group)[v]));
        stats.words_spilled += level != 0 ? 1 : 0;
        stats.words_overflowed += level >= 2 ? 1 : 0;
      }
    }
    for_each_lane(segment,
                  [&](std::uint64_t group, unsigned, std::uint64_t value, unsigned lane, const IndexRecord& record) {
                    Place place;
                    const bool entry = is_entry(segment, number, group, L::lane(value, lane), record, place);
                    stats.entries += entry ? 1 : 0;
                    stats.dead_lanes += entry ? 0 : 1;
                  });
  });
  const GrowthLock growth(*this);
  const Shared& shared = *shared_;
  stats.slots = stats.segments * groups_ * kGroupLanes;
  stats.depth = shared.directory.load(std::memory_order_relaxed)->depth;
  stats.bytes = meta_.bytes();
  for (const Region& chunk : shared.chunks) stats.bytes += chunk.bytes();
  stats.splits = shared.splits.load(std::memory_order_relaxed);
  stats.split_ns_max = shared.split_ns_max.load(std::memory_order_relaxed);
  stats.refusals = shared.refusals.load(std::memory_order_relaxed);
  for (const Shard& one : shared.counts.shards())
    stats.reader_persists += one.reader_persists.load(std::memory_order_relaxed);
  return stats;
}

template <Media M>
IndexCheck KvIndex<M>::check() const {
  IndexCheck report;
  const auto violated = [&report](std::string what) {
    if (report.violations.size() < 100) report.violations.push_back(std::move(what));
  };
  IndexHeader header;
  if (Status valid = check_header(meta_, header); !valid) violated(valid.error().message);
  // The durable directory must match the volatile one.
  const Directory& directory = *shared_->directory.load(std::memory_order_acquire);
  if (media_.load(state().depth) != directory.depth) violated("the directory's depth differs from the durable one");
  for (std::uint64_t i = 0; i < 1ULL << directory_depth_max_; ++i) {
    const std::uint64_t word = media_.load(directory_at(i));
    if (i > directory.mask()) {
      if (word != 0) violated("directory word " + std::to_string(i) + " is beyond the directory's depth");
      continue;
    }
    if (word == 0) continue;
    const Segment segment{directory.entries[i].load(std::memory_order_acquire)};
    if (word != directory_word(i, (word & 0xffffffffULL) - 1) ||
        segment.base() != memory_at((word & 0xffffffffULL) - 1))
      violated("directory word " + std::to_string(i) + " is damaged");
  }

  for_each_segment([&](Segment segment, std::uint64_t number) {
    std::map<std::pair<std::uint64_t, std::uint64_t>, unsigned> seen;
    const auto where = [&](std::uint64_t group, unsigned v) {
      return "segment " + std::to_string(number) + " group " + std::to_string(group) + " word " + std::to_string(v);
    };
    for (std::uint64_t group = 0; group < groups_; ++group) {
      for (unsigned v = 0; v < kGroupWords; ++v) {
        const std::uint64_t value = media_.load(words_of(segment, group)[v]);
        if ((value & ~L::kLanesMask & ~(3ULL << L::kLevelShift)) != 0) violated(where(group, v) + " uses a spare bit");
      }
    }
    for_each_lane(segment,
                  [&](std::uint64_t group, unsigned v, std::uint64_t value, unsigned lane, const IndexRecord& record) {
                    Place place;
                    const std::uint64_t fingerprint = L::lane(value, lane);
                    if (is_damaged(record)) {  // Before its key is trusted.
                      ++report.damaged;
                      violated(where(group, v) + " lane " + std::to_string(lane) + ": the record fails its checksum");
                      return;
                    }
                    if (!is_entry(segment, number, group, fingerprint, record, place)) {
                      ++report.dead_lanes;
                      return;
                    }
                    const IndexKey key = key_of(record);
                    ++report.entries;
                    if (++seen[{key.low, key.high}] == 2) violated(where(group, v) + " has a key for the second time");
                    const std::uint64_t home = media_.load(words_of(segment, place.group)[place.word]);
                    if (group != place.group && !L::is_far(home, fingerprint))
                      violated(where(group, v) + " has an entry in its other group, and its bucket does not say so");
                    if (group == place.group && v != place.word && L::level(home) == 0)
                      violated(where(group, v) + " has an entry outside of its bucket, and that does not say so");
                  });
  });
  if (shared_->counts.known() && size() != report.entries)
    violated("size() is " + std::to_string(size()) + " but there are " + std::to_string(report.entries) + " entries");
  return report;
}

}  // namespace dunnock
