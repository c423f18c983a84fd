// CuckooFilter, part 1: creating, opening, recovering, closing, counting, checking. Included by cuckoo_filter.hpp only.
#pragma once

#include <chrono>
#include <cstring>
#include <tuple>

#include "dunnock/pmem/header.hpp"

namespace dunnock {

template <unsigned kBits, Media M, FilterPolicy kPolicy>
CuckooFilter<kBits, M, kPolicy>::CuckooFilter(Region meta, Region table, std::uint64_t groups, const HashSeed& seed,
                                              M media)
    : media_(std::move(media)),
      hasher_(seed),
      table_(std::move(table), groups),
      meta_(std::move(meta)),
      shared_(std::make_unique<Shared>(table_.region().bytes() / kLineBytes,
                                       reinterpret_cast<LogLine*>(meta_.at(kFilterLogOffset)))) {}

template <unsigned kBits, Media M, FilterPolicy kPolicy>
Status CuckooFilter<kBits, M, kPolicy>::check_options(const FilterOptions& options) {
  FilterHeader header{};
  header.slots = options.slots;
  header.groups = options.slots == 0 ? 0 : groups_for(options.slots);
  header.log_lines = kLogLines;
  if (std::string wrong = wrong_with(header); !wrong.empty())
    return make_error(ErrorCode::kInvalidArgument, std::move(wrong));
  return {};
}

/// Checks a header before create() writes it and after attach() reads it. Empty: nothing is wrong.
template <unsigned kBits, Media M, FilterPolicy kPolicy>
std::string CuckooFilter<kBits, M, kPolicy>::wrong_with(const FilterHeader& header) {
  if (header.slots == 0 || header.slots > kSlotsMax)
    return "a filter needs 1 to 2^36 slots, not " + std::to_string(header.slots);
  if (header.groups != groups_for(header.slots))
    return std::to_string(header.groups) + " groups do not fit " + std::to_string(header.slots) + " slots";
  if (header.log_lines != kLogLines)
    return "its log has " + std::to_string(header.log_lines) + " lines, expected " + std::to_string(kLogLines);
  if (header.zero != decltype(header.zero){}) return "its unused fields are not zero";
  return {};
}

template <unsigned kBits, Media M, FilterPolicy kPolicy>
auto CuckooFilter<kBits, M, kPolicy>::format(Region meta, Region table, const FilterOptions& options, M media)
    -> Result<CuckooFilter> {
  DUNNOCK_TRY(check_options(options));
  if (meta.bytes() < meta_bytes() || meta.extents().size() != 1 || table.bytes() != table_bytes(options.slots)) {
    return make_error(ErrorCode::kInvalidArgument, "the regions' sizes do not match the filter's options");
  }
  FilterHeader header{};
  header.magic = kFilterMagic;
  header.format_version = kFilterFormatVersion;
  header.fingerprint_bits = kBits;
  header.group_words = kGroupWords;
  header.slots = options.slots;
  header.groups = groups_for(options.slots);
  header.seed = options.seed;
  header.log_lines = kLogLines;
  header.checksum = checksum_of(header);
  write_header(media, {.fields = filter_point::kFormatFields, .magic = filter_point::kFormatMagic}, meta, header);
  return CuckooFilter(std::move(meta), std::move(table), header.groups, header.seed, std::move(media));
}

template <unsigned kBits, Media M, FilterPolicy kPolicy>
Status CuckooFilter<kBits, M, kPolicy>::check_header(const Region& meta, const Region& table, FilterHeader& header) {
  constexpr HeaderKind kKind{"filter", kFilterMagic, kFilterFormatVersion};
  DUNNOCK_TRY(read_header(kKind, meta, meta_bytes(), header));
  if (header.fingerprint_bits != kBits)
    return kKind.refuse(ErrorCode::kWrongLayout, "its fingerprints have " + std::to_string(header.fingerprint_bits) +
                                                     " bits, expected " + std::to_string(kBits));
  if (header.group_words != kGroupWords)
    return kKind.refuse(ErrorCode::kWrongLayout, "its groups have " + std::to_string(header.group_words) +
                                                     " words, expected " + std::to_string(kGroupWords));
  if (std::string what = wrong_with(header); !what.empty()) return kKind.refuse(ErrorCode::kCorrupt, what);
  if (table.bytes() != table_bytes(header.slots))
    return kKind.refuse(ErrorCode::kCorrupt, "its table has " + std::to_string(table.bytes()) + " bytes, expected " +
                                                 std::to_string(table_bytes(header.slots)));
  return {};
}

template <unsigned kBits, Media M, FilterPolicy kPolicy>
auto CuckooFilter<kBits, M, kPolicy>::attach(Region meta, Region table, M media) -> Result<Opened> {
  const auto start = std::chrono::steady_clock::now();
  FilterHeader header;
  DUNNOCK_TRY(check_header(meta, table, header));
  CuckooFilter filter(std::move(meta), std::move(table), header.groups, header.seed, std::move(media));
  Result<RecoveryReport> report = filter.recover();
  DUNNOCK_TRY(report);
  report->nanoseconds = static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - start).count());
  return Opened{std::move(filter), *report};
}

/// Finishes what was in flight. Idempotent: after a crash in here, the next call completes the recovery.
template <unsigned kBits, Media M, FilterPolicy kPolicy>
Result<RecoveryReport> CuckooFilter<kBits, M, kPolicy>::recover() {
  RecoveryReport report;
  // Look before touching anything, so that a damaged pool is left as it is.
  DUNNOCK_TRY(shared_->log.check(media_, table_.buckets()));
  if (media_.load(state().clearing) > 1) return make_error(ErrorCode::kCorrupt, "the filter's state is damaged");
  report.kicks_completed = shared_->log.replay(media_, table_);
  const auto items = detail::take_clean_count(media_, kCleanPoints, clean_words());
  report.clean_shutdown = items.has_value();
  shared_->counters.start(items);
  if (media_.load(state().clearing) != 0) {
    rewrite([](std::uint64_t) { return std::uint64_t{0}; });
    report.clear_completed = true;
  }
  return report;
}

/// What a crash has left of a creation in a pool of format version 2 and before.
/// Errors: AlreadyExists: a filter, or other data, exists.
template <unsigned kBits, Media M, FilterPolicy kPolicy>
Result<std::vector<std::string>> CuckooFilter<kBits, M, kPolicy>::left_over(const Pool& pool, std::string_view name) {
  return detail::left_over_regions(pool, region_names(name), [](const std::string& region, const Region& there) {
    if (!region.ends_with(".meta")) return is_blank(there);
    return there.bytes() == meta_bytes() && word_of(there, 0) == 0 && is_blank(there, sizeof(FilterHeader));
  });
}

template <unsigned kBits, Media M, FilterPolicy kPolicy>
auto CuckooFilter<kBits, M, kPolicy>::create_in(PendingRegions& pending, std::string_view name,
                                                const FilterOptions& options, M media) -> Result<CuckooFilter> {
  DUNNOCK_TRY(check_options(options));
  DUNNOCK_TRY(const auto left, left_over(pending.pool(), name));
  DUNNOCK_TRY(pending.pool().remove_regions(left));
  const auto names = region_names(name);
  DUNNOCK_TRY(auto regions, pending.create(std::array{RegionSpec{names[0], meta_bytes()},
                                                      RegionSpec{names[1], table_bytes(options.slots)}}));
  return format(regions[0], regions[1], options, std::move(media));
}

template <unsigned kBits, Media M, FilterPolicy kPolicy>
auto CuckooFilter<kBits, M, kPolicy>::create(Pool& pool, std::string_view name, const FilterOptions& options, M media)
    -> Result<CuckooFilter> {
  return detail::create_structure(
      pool, [&](PendingRegions& pending) { return create_in(pending, name, options, std::move(media)); });
}

/// `options`, if not null: what the filter must have been created with.
template <unsigned kBits, Media M, FilterPolicy kPolicy>
auto CuckooFilter<kBits, M, kPolicy>::open_as(Pool& pool, std::string_view name, const FilterOptions* options, M media)
    -> Result<Opened> {
  const auto names = region_names(name);
  DUNNOCK_TRY(auto meta, pool.open_region(names[0]));
  DUNNOCK_TRY(auto table, pool.open_region(names[1]));
  const std::string about = detail::about("filter", name, pool);
  if (word_of(meta, 0) == 0 && left_over(pool, name)) return detail::never_finished(about);
  FilterHeader header;
  if (options != nullptr && check_header(meta, table, header))
    DUNNOCK_TRY(detail::check_agreed(about, std::array{detail::Agreed{"slots", header.slots, options->slots}}));
  DUNNOCK_TRY(auto opened, attach(meta, table, std::move(media)));
  DUNNOCK_TRY(opened.filter.status());
  return opened;
}

template <unsigned kBits, Media M, FilterPolicy kPolicy>
auto CuckooFilter<kBits, M, kPolicy>::open(Pool& pool, std::string_view name, M media) -> Result<Opened> {
  return open_as(pool, name, nullptr, std::move(media));
}

template <unsigned kBits, Media M, FilterPolicy kPolicy>
auto CuckooFilter<kBits, M, kPolicy>::open_or_create(Pool& pool, std::string_view name, const FilterOptions& options,
                                                     M media) -> Result<Opened> {
  DUNNOCK_TRY(check_options(options));
  return detail::open_or_create_structure(
      pool, [&] { return open_as(pool, name, &options, media); },
      [&](PendingRegions& pending) { return create_in(pending, name, options, media); });
}

template <unsigned kBits, Media M, FilterPolicy kPolicy>
auto CuckooFilter<kBits, M, kPolicy>::open_or_create(const std::string& path, std::string_view name,
                                                     const FilterOptions& options) -> Result<InPool<Opened>>
requires PoolMedia<M> {
  DUNNOCK_TRY(check_options(options));
  return detail::open_or_create_in_file(path, pool_bytes(options), [&](Pool& pool) {
    return open_or_create(pool, name, options, detail::media_of<M>(pool));
  });
}

template <unsigned kBits, Media M, FilterPolicy kPolicy>
auto CuckooFilter<kBits, M, kPolicy>::create_volatile(const FilterOptions& options, M media) -> Result<CuckooFilter>
requires std::default_initializable<M> {
  DUNNOCK_TRY(check_options(options));
  DUNNOCK_TRY(auto meta, VolatileRegion::create(meta_bytes()));
  DUNNOCK_TRY(auto table, VolatileRegion::create(table_bytes(options.slots)));
  auto filter = format(meta.region(), table.region(), options, std::move(media));
  if (filter) {
    filter->owned_meta_ = std::move(meta);
    filter->owned_table_ = std::move(table);
  }
  return filter;
}

template <unsigned kBits, Media M, FilterPolicy kPolicy>
void CuckooFilter<kBits, M, kPolicy>::close() {
  detail::store_clean_count(media_, kCleanPoints, clean_words(), size());
}

template <unsigned kBits, Media M, FilterPolicy kPolicy>
void CuckooFilter<kBits, M, kPolicy>::clear() {
  if constexpr (kIsReadOnly<M>) return;
  if (!media_ok(media_)) return;
  rewrite([](std::uint64_t) { return std::uint64_t{0}; });
}

template <unsigned kBits, Media M, FilterPolicy kPolicy>
Status CuckooFilter<kBits, M, kPolicy>::assign_words(std::span<const std::uint64_t> words) {
  if constexpr (kIsReadOnly<M>) return make_error(ErrorCode::kReadOnly, "the pool is open read-only");
  if (words.size() != table_.buckets())
    return make_error(
        ErrorCode::kInvalidArgument,
        std::to_string(words.size()) + " words were given, but the filter has " + std::to_string(table_.buckets()));
  if (size() != 0)
    return make_error(ErrorCode::kInvalidArgument, "the filter is not empty: a crash now would lose its contents");
  for (std::size_t i = 0; i < words.size(); ++i) {
    if (!L::is_word(words[i]))
      return make_error(ErrorCode::kCorrupt, "word " + std::to_string(i) + " has a value that no filter writes");
  }
  rewrite([words](std::uint64_t i) { return words[i]; });
  return status();
}

/// Gives every word a new value. After a crash, either all new values are stored or none is.
template <unsigned kBits, Media M, FilterPolicy kPolicy>
template <class NewWord>
void CuckooFilter<kBits, M, kPolicy>::rewrite(NewWord&& new_word) {
  media_.store(filter_point::kClearBegin, state().clearing, 1);
  media_.flush(filter_point::kClearBegin, &state());
  media_.fence(filter_point::kClearBegin);  // From here a crash clears the table.
  std::uint64_t items = 0;
  for (std::uint64_t group = 0; group < table_.groups(); ++group) {
    Word* words = table_.words_of(group);
    for (unsigned v = 0; v < kGroupWords; ++v) {
      const std::uint64_t value = new_word(group * kGroupWords + v);
      items += L::occupied(value);
      media_.store(filter_point::kClearWord, words[v], value);
    }
    media_.flush(filter_point::kClearWord, words);
  }
  media_.fence(filter_point::kClearWord);
  media_.store(filter_point::kClearEnd, state().clearing, 0);
  media_.flush(filter_point::kClearEnd, &state());
  media_.fence(filter_point::kClearEnd);
  shared_->counters.start(items);
}

/// The results of one scan of the table.
template <unsigned kBits, Media M, FilterPolicy kPolicy>
struct CuckooFilter<kBits, M, kPolicy>::Census {
  std::uint64_t items = 0;
  std::uint64_t foreign = 0;
  std::uint64_t spilled = 0;
  std::uint64_t overflowed = 0;
};

template <unsigned kBits, Media M, FilterPolicy kPolicy>
auto CuckooFilter<kBits, M, kPolicy>::census() const -> Census {
  Census census;
  for (std::uint64_t group = 0; group < table_.groups(); ++group) {
    const Word* words = table_.words_of(group);
    for (unsigned v = 0; v < kGroupWords; ++v) {
      const std::uint64_t value = media_.load(words[v]);
      census.items += L::occupied(value);
      census.foreign += L::foreign_count(value);
      census.spilled += L::level(value) != 0 ? 1 : 0;
      census.overflowed += L::level(value) >= 2 ? 1 : 0;
    }
  }
  return census;
}

template <unsigned kBits, Media M, FilterPolicy kPolicy>
std::uint64_t CuckooFilter<kBits, M, kPolicy>::size() const {
  return shared_->counters.items(media_ok(media_), [this](const auto& now) {
    // Writers wait while the table is counted; the key of one that has just left its stripe is counted in the table
    // but perhaps not yet in its shard, so this is exact only when no writer is active, as promised.
    const detail::Stripes& stripes = shared_->stripes;
    if constexpr (kPolicy.multi_writer) {
      for (std::uint64_t i = 0; i < stripes.count(); ++i) stripes.template acquire<true>(i, media_);
    }
    now(census().items);
    if constexpr (kPolicy.multi_writer) {
      for (std::uint64_t i = 0; i < stripes.count(); ++i) stripes.release(i);
    }
  });
}

template <unsigned kBits, Media M, FilterPolicy kPolicy>
FilterStats CuckooFilter<kBits, M, kPolicy>::stats() const {
  const Census seen = census();
  FilterStats stats;
  stats.slots = slots();
  stats.items = seen.items;
  stats.foreign_items = seen.foreign;
  stats.words = table_.buckets();
  stats.words_spilled = seen.spilled;
  stats.words_overflowed = seen.overflowed;
  stats.memory_bytes = memory_bytes();
  for (const detail::FilterCounts& one : shared_->counters.shards()) {
    stats.overflows += one.overflows.load(std::memory_order_relaxed);
    stats.kicks += one.kicks.load(std::memory_order_relaxed);
    stats.kick_groups_read += one.kick_groups_read.load(std::memory_order_relaxed);
    stats.refusals += one.refusals.load(std::memory_order_relaxed);
    stats.reader_persists += one.reader_persists.load(std::memory_order_relaxed);
  }
  return stats;
}

template <unsigned kBits, Media M, FilterPolicy kPolicy>
CheckReport CuckooFilter<kBits, M, kPolicy>::check() const {
  CheckReport report;
  const auto violated = [&report](std::string what) {
    if (report.violations.size() < 100) report.violations.push_back(std::move(what));
  };
  FilterHeader header;
  if (Status valid = check_header(meta_, table_.region(), header); !valid) violated(valid.error().message);
  if (media_.load(state().clearing) != 0) violated("a clear() is in flight");
  shared_->log.for_each_armed(media_,
                              [&](unsigned i) { violated("kick record " + std::to_string(i) + " is in flight"); });

  // Does any bucket of the group say that a fingerprint may be that far?
  const auto admits = [this](std::uint64_t group, std::uint64_t fingerprint, Reach wanted) {
    const Word* words = table_.words_of(group);
    for (unsigned v = 0; v < kGroupWords; ++v) {
      if (Table::reach(media_.load(words[v]), fingerprint) >= wanted) return true;
    }
    return false;
  };
  for (std::uint64_t group = 0; group < table_.groups(); ++group) {
    const Word* words = table_.words_of(group);
    for (unsigned v = 0; v < kGroupWords; ++v) {
      const std::uint64_t value = media_.load(words[v]);
      const auto where = [&] { return "word " + std::to_string(group * kGroupWords + v); };
      report.items += L::occupied(value);
      if ((value & ~L::kLanesMask & ~(0xfULL << L::kCountShift)) != 0) violated(where() + " uses a spare bit");
      const unsigned foreign = L::foreign_count(value);
      if ((L::empty_lanes(value) & L::foreign_lanes(value)) != 0) violated(where() + " has an empty foreign lane");
      for (unsigned i = kLanes - foreign; i < kLanes; ++i) {
        const std::uint64_t fingerprint = L::lane(value, i);
        if (fingerprint == 0) continue;
        const bool own = kPolicy.spill && admits(group, fingerprint, Reach::kGroup);
        if (!own && !admits(table_.other_group(group, fingerprint), fingerprint, Reach::kOtherGroup)) {
          violated(where() + " holds a foreign fingerprint that no bucket admits to");
        }
      }
    }
  }
  if (shared_->counters.known() && size() != report.items) {
    violated("size() is " + std::to_string(size()) + " but the table holds " + std::to_string(report.items));
  }
  return report;
}

}  // namespace dunnock
