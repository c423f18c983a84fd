// Part of KvIndex: making, opening, closing, counting, checking.
#pragma once

#include <chrono>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "dunnock/pmem/header.hpp"

namespace dunnock {

template <Media M>
auto KvIndex<M>::format(Region meta, IndexMemory memory, const IndexOptions& options, M media) -> Result<KvIndex> {
  DUNNOCK_TRY(check_options(options));
  if (meta.bytes() < meta_bytes(options) || meta.extents().size() != 1)
    return make_error(ErrorCode::kInvalidArgument, "the index's meta region is smaller than its options need");
  const IndexHeader header = detail::index_header_for(options);
  KvIndex index(std::move(meta), std::move(memory), header, std::move(media));
  Shared& shared = *index.shared_;
  DUNNOCK_TRY(shared.slots.create());
  shared.directory.create(index.media(), shared.slots);
  write_header(index.media(), {.fields = index_point::kFormatFields, .magic = index_point::kFormatMagic},
               shared.directory.meta(), header);
  return index;
}

template <Media M>
auto KvIndex<M>::attach(Region meta, IndexMemory memory, M media) -> Result<Opened> {
  const auto start = std::chrono::steady_clock::now();
  IndexHeader header;
  DUNNOCK_TRY(detail::read_index_header(meta, header));
  KvIndex index(std::move(meta), std::move(memory), header, std::move(media));
  Shared& shared = *index.shared_;
  IndexRecovery report;
  DUNNOCK_TRY(report.segments, shared.directory.recover(index.media(), shared.slots));
  const auto entries = detail::take_clean_count(index.media(), kCleanPoints, index.clean_words());
  report.clean_shutdown = entries.has_value();
  shared.counts.start(entries);
  report.nanoseconds = static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - start).count());
  return Opened{std::move(index), report};
}

template <Media M>
auto KvIndex<M>::create_in(PendingRegions& pending, std::string_view name, const IndexOptions& options, M media)
    -> Result<KvIndex> {
  Pool& pool = pending.pool();
  const IndexOptions all = detail::bounded_by(pool, options);
  DUNNOCK_TRY(check_options(all));
  DUNNOCK_TRY(const auto left, detail::left_over_index(pool, name, false));
  DUNNOCK_TRY(pool.remove_regions(left));
  const std::string meta_name = std::string(name) + ".meta";
  const RegionSpec spec = detail::one_extent(meta_name, meta_bytes(all));
  DUNNOCK_TRY(auto regions, pending.create(std::span(&spec, 1)));
  auto index = format(regions.front(), detail::index_memory(pending, name), all, std::move(media));
  if (index) index->shared_->slots.grow_in(detail::index_memory(pool, name));
  return index;
}

template <Media M>
auto KvIndex<M>::create(Pool& pool, std::string_view name, const IndexOptions& options, M media) -> Result<KvIndex> {
  return detail::create_structure(
      pool, [&](PendingRegions& pending) { return create_in(pending, name, options, std::move(media)); });
}

template <Media M>
auto KvIndex<M>::open_as(Pool& pool, std::string_view name, const IndexOptions* options, M media) -> Result<Opened> {
  DUNNOCK_TRY(auto meta, pool.open_region(std::string(name) + ".meta"));
  const std::string about = detail::about("index", name, pool);
  if (word_of(meta, 0) == 0 && detail::left_over_index(pool, name, false)) return detail::never_finished(about);
  IndexHeader header;
  if (options != nullptr && detail::read_index_header(meta, header))
    DUNNOCK_TRY(detail::check_index_agreed(about, header, detail::bounded_by(pool, *options)));
  DUNNOCK_TRY(auto opened, attach(meta, detail::index_memory(pool, name), std::move(media)));
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
  DUNNOCK_TRY(check_options(detail::bounded_by(pool, options)));
  return detail::open_or_create_structure(
      pool, [&] { return open_as(pool, name, &options, media); },
      [&](PendingRegions& pending) { return create_in(pending, name, options, media); });
}

template <Media M>
std::uint64_t KvIndex<M>::pool_bytes(const IndexOptions& options) noexcept {
  const std::uint64_t segments = detail::index_header_for(options).initial_segments;
  if (options.bytes_max == 0) return std::max(kPoolBytesAuto, 4 * segments * segment_bytes(options.segment_groups));
  return Pool::bytes_for(std::array{meta_bytes(options), options.bytes_max});
}

template <Media M>
auto KvIndex<M>::open_or_create(const std::string& path, std::string_view name, const IndexOptions& options)
    -> Result<InPool<Opened>>
requires PoolMedia<M> {
  DUNNOCK_TRY(detail::check_index_segments(options));
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
  detail::store_clean_count(media(), kCleanPoints, clean_words(), size());
}

template <Media M>
template <class Visit>
std::uint64_t KvIndex<M>::for_each(Visit&& visit) const {
  const detail::SegmentDirectory& directory = shared_->directory;
  std::vector<Entry> entries;
  std::uint64_t damaged = 0;
  std::uint64_t damaged_here = 0;
  std::uint64_t cursor = 0;
  Segment segment;
  do {
    do {  // Until it was not split meanwhile: then none has moved away before it was seen.
      segment = directory.segment_of(cursor);
      entries.clear();
      damaged_here = 0;
      table_.for_each_lane(segment, [&](const Lane& lane) {
        if (table_.is_damaged(lane.record)) {
          ++damaged_here;
          return;
        }
        Place place;
        if (!table_.is_entry(segment, segment.number(cursor), lane, place)) return;
        const IndexKey key = table_.key_of(lane.record);
        const GetResult found = get(key);  // The value as of one moment, and durable.
        if (found) entries.push_back({key, found.value});
      });
    } while (!(directory.segment_of(cursor) == segment));
    for (const Entry& entry : entries) visit(entry.key, entry.value);
    damaged += damaged_here;
    cursor = detail::SegmentDirectory::next_cursor(cursor, segment.depth());
  } while (cursor != 0);
  return damaged;
}

template <Media M>
std::uint64_t KvIndex<M>::size() const {
  return shared_->counts.items(media_ok(media()), [this](const auto& now) {
    // Writers wait while the table is counted.
    const detail::GroupLocks& locks = shared_->locks;
    for (std::uint64_t i = 0; i < locks.count(); ++i) locks.acquire(i, media());
    std::uint64_t entries = 0;
    shared_->directory.for_each_segment([&](Segment segment, std::uint64_t number) {
      table_.for_each_lane(segment, [&](const Lane& lane) {
        Place place;
        entries += table_.is_entry(segment, number, lane, place) ? 1 : 0;
      });
    });
    now(entries);
    for (std::uint64_t i = 0; i < locks.count(); ++i) locks.release(i);
  });
}

template <Media M>
IndexStats KvIndex<M>::stats() const {
  const Shared& shared = *shared_;
  IndexStats stats;
  shared.directory.for_each_segment([&](Segment segment, std::uint64_t number) {
    ++stats.segments;
    table_.for_each_word(segment, [&](std::uint64_t, unsigned, std::uint64_t value) {
      stats.words_spilled += L::level(value) != 0 ? 1 : 0;
      stats.words_overflowed += L::level(value) >= 2 ? 1 : 0;
    });
    table_.for_each_lane(segment, [&](const Lane& lane) {
      Place place;
      ++(table_.is_entry(segment, number, lane, place) ? stats.entries : stats.dead_lanes);
    });
  });
  stats.slots = stats.segments * table_.groups() * kGroupLanes;
  stats.depth = shared.directory.depth();
  stats.bytes = shared.directory.meta().bytes() + shared.slots.bytes(media());
  stats.splits = shared.splits.splits.load(std::memory_order_relaxed);
  stats.split_ns_max = shared.splits.ns_max.load(std::memory_order_relaxed);
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
  if (Status valid = detail::read_index_header(shared_->directory.meta(), header); !valid)
    violated(valid.error().message);
  shared_->directory.check(media(), shared_->slots, violated);

  shared_->directory.for_each_segment([&](Segment segment, std::uint64_t number) {
    std::map<std::pair<std::uint64_t, std::uint64_t>, unsigned> seen;
    const auto where = [&](std::uint64_t group, unsigned v) {
      return "segment " + std::to_string(number) + " group " + std::to_string(group) + " word " + std::to_string(v);
    };
    table_.for_each_word(segment, [&](std::uint64_t group, unsigned v, std::uint64_t value) {
      if ((value & ~L::kLanesMask & ~(3ULL << L::kLevelShift)) != 0) violated(where(group, v) + " uses a spare bit");
    });
    table_.for_each_lane(segment, [&](const Lane& lane) {
      const auto here = [&] { return where(lane.group, lane.word); };
      if (table_.is_damaged(lane.record)) {  // Before its key is trusted.
        ++report.damaged;
        violated(here() + " lane " + std::to_string(lane.lane) + ": the record fails its checksum");
        return;
      }
      Place place;
      if (!table_.is_entry(segment, number, lane, place)) {
        ++report.dead_lanes;
        return;
      }
      const IndexKey key = table_.key_of(lane.record);
      ++report.entries;
      if (++seen[{key.low, key.high}] == 2) violated(here() + " has a key for the second time");
      const std::uint64_t home = media().load(table_.home_word(segment, place));
      if (lane.group != place.group && !L::is_far(home, lane.fingerprint))
        violated(here() + " has an entry in its other group, and its bucket does not say so");
      if (lane.group == place.group && lane.word != place.word && L::level(home) == 0)
        violated(here() + " has an entry outside of its bucket, and that does not say so");
    });
  });
  if (shared_->counts.known() && size() != report.entries)
    violated("size() is " + std::to_string(size()) + " but there are " + std::to_string(report.entries) + " entries");
  return report;
}

}  // namespace dunnock
