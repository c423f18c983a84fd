// The functions of KvStore.
#pragma once

#include <algorithm>
#include <optional>
#include <thread>

namespace dunnock {

template <Media M>
KvStore<M>::KvStore(KvIndex<M> index, ValueLog<M> log) : index_(std::move(index)), log_(std::move(log)) {}

template <Media M>
Status KvStore<M>::check_options(const StoreOptions& options) {
  DUNNOCK_TRY(ValueLog<M>::check_options(options.log));
  if (options.index.bytes_max == 0) return detail::check_index_segments(options.index);  // As many as the pool has.
  return KvIndex<M>::check_options(options.index);
}

/// What a crash has left of a creation in a pool of an older format. The log was made first there, so a formatted one
/// that was never used, without an index, is left over, too. `formatted`: so is such an index.
/// Errors: AlreadyExists: other data exists.
template <Media M>
Result<std::vector<std::string>> KvStore<M>::left_over(Pool& pool, std::string_view name, bool formatted) {
  auto left = ValueLog<M>::left_over(pool, name, true);
  if (!left) return left;
  const auto of_index = detail::left_over_index(pool, name, formatted);
  if (!of_index) return of_index;
  left->insert(left->end(), of_index->begin(), of_index->end());
  return left;
}

template <Media M>
auto KvStore<M>::create_in(PendingRegions& pending, std::string_view name, const StoreOptions& options, M media)
    -> Result<KvStore> {
  Pool& pool = pending.pool();
  DUNNOCK_TRY(const auto left, left_over(pool, name, false));
  DUNNOCK_TRY(pool.remove_regions(left));
  DUNNOCK_TRY(auto log, ValueLog<M>::create_in(pending, name, options.log, media));
  DUNNOCK_TRY(auto index, KvIndex<M>::create_in(pending, name, options.index, media));
  return KvStore(std::move(index), std::move(log));
}

template <Media M>
auto KvStore<M>::create(Pool& pool, std::string_view name, const StoreOptions& options, M media) -> Result<KvStore> {
  return detail::create_structure(
      pool, [&](PendingRegions& pending) { return create_in(pending, name, options, std::move(media)); });
}

template <Media M>
auto KvStore<M>::open_as(Pool& pool, std::string_view name, const Agreement& agreement, M media) -> Result<Opened> {
  DUNNOCK_TRY(auto log, ValueLog<M>::open_as(pool, name, agreement.log, media));
  DUNNOCK_TRY(auto index, KvIndex<M>::open_as(pool, name, agreement.index, media));
  return Opened{KvStore(std::move(index.index), std::move(log)), index.report};
}

template <Media M>
auto KvStore<M>::open(Pool& pool, std::string_view name, M media) -> Result<Opened> {
  return open_as(pool, name, {}, std::move(media));
}

template <Media M>
auto KvStore<M>::open_or_create(Pool& pool, std::string_view name, const StoreOptions& options, M media)
    -> Result<Opened> {
  DUNNOCK_TRY(check_options(options));
  return detail::open_or_create_structure(
      pool, [&] { return open_as(pool, name, {&options.index, &options.log}, media); },
      [&](PendingRegions& pending) { return create_in(pending, name, options, media); });
}

template <Media M>
std::uint64_t KvStore<M>::pool_bytes(const StoreOptions& options) noexcept {
  return KvIndex<M>::pool_bytes(options.index) + ValueLog<M>::pool_bytes(options.log);
}

template <Media M>
auto KvStore<M>::open_or_create(const std::string& path, std::string_view name, const StoreOptions& options)
    -> Result<InPool<Opened>>
requires PoolMedia<M> {
  DUNNOCK_TRY(check_options(options));
  return detail::open_or_create_in_file(path, pool_bytes(options), [&](Pool& pool) {
    return open_or_create(pool, name, options, detail::media_of<M>(pool));
  });
}

template <Media M>
PutResult KvStore<M>::put(const IndexKey& key, std::span<const std::byte> value) {
  if constexpr (kIsReadOnly<M>) return PutResult::kIo;
  IndexValue previous;
  PutResult result;
  if (value.size() <= IndexValue::kInlineBytesMax) {
    result = index_.put(key, IndexValue::of(value), &previous);
  } else {
    auto ticket = log_.append(key, value);
    while (!ticket) {
      if (!status()) return PutResult::kIo;
      if (value.size() > log_.value_bytes_max() || !make_room()) return PutResult::kFull;
      ticket = log_.append(key, value);
    }
    result = index_.put(key, IndexValue::of(ticket->locator), &previous);
    if (result == PutResult::kFull || result == PutResult::kIo) log_.discard(ticket->locator);
  }
  if (result == PutResult::kReplaced && previous.is_locator()) log_.discard(previous.locator());
  return result;
}

template <Media M>
bool KvStore<M>::put_bulk(std::span<const Item> items) {
  Batch batch(*this);
  for (const Item& item : items) {
    if (!batch.add(item)) return false;
  }
  return batch.commit();
}

template <Media M>
KvStore<M>::Batch::Batch(Batch&& other) noexcept
    : store_(other.store_),
      entries_(std::move(other.entries_)),
      tickets_(std::move(other.tickets_)),
      bytes_(std::exchange(other.bytes_, 0)) {
  other.entries_.clear();
  other.tickets_.clear();
}

template <Media M>
KvStore<M>::Batch::~Batch() {
  for (const auto& ticket : tickets_) store_->log_.discard(ticket.locator);
}

template <Media M>
bool KvStore<M>::Batch::add(const Item& item) {
  if constexpr (kIsReadOnly<M>) return false;
  if (item.bytes.size() <= IndexValue::kInlineBytesMax) {
    entries_.push_back({item.key, IndexValue::of(item.bytes)});
    return true;
  }
  if (item.bytes.size() > store_->log_.value_bytes_max()) return false;
  auto ticket = store_->log_.begin_append(item);
  while (!ticket) {
    // Committed, the batch pins no segment.
    if (!store_->status() || !commit() || !store_->make_room()) return false;
    ticket = store_->log_.begin_append(item);
  }
  entries_.push_back({item.key, IndexValue::of(ticket->locator)});
  tickets_.push_back(std::move(*ticket));
  bytes_ += item.bytes.size();
  return true;
}

template <Media M>
bool KvStore<M>::Batch::commit() {
  if (entries_.empty()) return true;
  if (!tickets_.empty() && !store_->log_.fence()) return false;
  std::vector<PutResult> results(entries_.size());
  std::vector<IndexValue> previous(entries_.size());
  store_->index_.put_bulk(entries_, results.data(), previous.data());
  std::vector<typename KvIndex<M>::Entry> refused;
  std::vector<typename ValueLog<M>::Ticket> their_tickets;
  std::size_t next_ticket = 0;
  bytes_ = 0;
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    const bool in_log = entries_[i].value.is_locator();
    if (results[i] == PutResult::kFull || results[i] == PutResult::kIo) {
      refused.push_back(entries_[i]);
      if (in_log) {
        bytes_ += tickets_[next_ticket].locator.length;
        their_tickets.push_back(std::move(tickets_[next_ticket]));
      }
    } else if (results[i] != PutResult::kInserted && previous[i].is_locator()) {
      store_->log_.discard(previous[i].locator());
    }
    next_ticket += in_log ? 1 : 0;
  }
  entries_ = std::move(refused);
  tickets_ = std::move(their_tickets);
  return entries_.empty();
}

template <Media M>
KvValue<M> KvStore<M>::get(const IndexKey& key) const {
  GetResult found = index_.get(key);
  for (;;) {
    KvValue<M> value;
    value.state = found.state;
    if (!found) return value;
    value.entry = found.value;
    if (!found.value.is_locator()) return value;
    value.in_log = log_.view(found.value.locator(), key);
    if (value.in_log.state == ReadState::kFound) return value;
    if (value.in_log.state == ReadState::kIo) {
      value.state = GetState::kIo;
      return value;
    }
    // It may have been replaced or moved in between; if not, it is damaged.
    const GetResult again = index_.get(key);
    if (!is_taken(log_.media(), log_point::kLookAgain) || (again && again.value == found.value)) {
      value.state = GetState::kDamaged;
      return value;
    }
    found = again;
  }
}

template <Media M>
Compared KvStore<M>::compare(const Item& item) const {
  GetResult found = index_.get(item.key);
  std::optional<std::uint32_t> checksum = item.checksum;
  for (;;) {
    if (found.state == GetState::kMissing) return Compared::kMissing;
    if (!found) return Compared::kDifferent;
    if (!found.value.is_locator())
      return std::ranges::equal(found.value.bytes(), item.bytes) ? Compared::kSame : Compared::kDifferent;
    const Locator locator = found.value.locator();
    if (!checksum) checksum = payload_checksum(item.bytes);
    if (locator.length != item.bytes.size() || locator.checksum != *checksum) return Compared::kDifferent;
    if (log_.compare(locator, item.key, item.bytes) == ReadState::kFound) return Compared::kSame;
    // As in get: it may have been replaced or moved in between.
    const GetResult again = index_.get(item.key);
    if (again && again.value == found.value) return Compared::kDifferent;
    found = again;
  }
}

template <Media M>
bool KvStore<M>::erase(const IndexKey& key) {
  IndexValue previous;
  if (!index_.erase(key, &previous)) return false;
  if (previous.is_locator()) log_.discard(previous.locator());
  return true;
}

template <Media M>
std::size_t KvStore<M>::erase_bulk(std::span<const IndexKey> keys) {
  std::vector<std::uint8_t> erased(keys.size());
  std::vector<IndexValue> previous(keys.size());
  const std::size_t gone = index_.erase_bulk(keys, erased.data(), previous.data());
  for (std::size_t i = 0; i < keys.size(); ++i) {
    if (erased[i] != 0 && previous[i].is_locator()) log_.discard(previous[i].locator());
  }
  return gone;
}

/// Under the lock of compaction. False: nothing was gained.
template <Media M>
bool KvStore<M>::compact_one(double live_at_most) {
  const auto victim = log_.victim(live_at_most);
  if (!victim) return false;
  const bool emptied =
      log_.visit(*victim, [&](const IndexKey& key, const Locator& locator, std::span<const std::byte> bytes) {
        const IndexValue old = IndexValue::of(locator);
        const GetResult found = index_.get(key);
        if (!found || !(found.value == old)) return true;  // Garbage.
        if (bytes.size() != locator.length) return false;  // Damaged, and still needed: it stays where it is.
        const auto moved = log_.append_moved(*victim, key, bytes);
        if (!moved) return false;
        if (!index_.replace_if(key, old, IndexValue::of(moved->locator))) log_.discard(moved->locator);
        return true;
      });
  if (!emptied || !status()) {
    log_.keep(*victim);
    return false;
  }
  log_.free(*victim);
  return true;
}

template <Media M>
std::uint64_t KvStore<M>::compact(std::uint64_t segments_max, double live_at_most) {
  if constexpr (kIsReadOnly<M>) return 0;
  if (!status()) return 0;  // After a fork, the thread that compacts may not exist.
  std::uint64_t freed = 0;
  while (shared_->compacting.exchange(true, std::memory_order_acquire)) log_.pause();  // Partner: the store below.
  while (freed < segments_max && compact_one(live_at_most)) ++freed;
  shared_->compacting.store(false, std::memory_order_release);
  return freed;
}

/// A segment for users is free, or can be made so.
template <Media M>
bool KvStore<M>::make_room() {
  if constexpr (kIsReadOnly<M>) return false;
  if (!status()) return false;
  while (shared_->compacting.exchange(true, std::memory_order_acquire)) log_.pause();
  bool room = log_.has_room();
  // What is moved may fill a segment before one is gained, so more than one may have to be compacted.
  for (std::uint64_t n = 0; !room && n < log_.stats().segments; ++n) {
    if (!compact_one(0.97)) {
      if (std::exchange(shared_->counted, true)) break;
      recount();
    }
    room = log_.has_room();
  }
  shared_->compacting.store(false, std::memory_order_release);
  return room;
}

template <Media M>
void KvStore<M>::recount() {
  log_.recount([&](const auto& add) {
    // What can't be read counts as garbage here; a compaction that meets it checks again.
    (void)index_.for_each([&](const IndexKey&, const IndexValue& value) {
      if (value.is_locator()) add(value.locator());
    });
  });
}

template <Media M>
IndexCheck KvStore<M>::check() const {
  IndexCheck report = index_.check();
  if (std::string wrong = log_.check(); !wrong.empty()) report.violations.push_back(std::move(wrong));
  (void)index_.for_each([&](const IndexKey& key, const IndexValue& value) {  // The index has reported its own damage.
    if (!value.is_locator()) return;
    const auto view = log_.view(value.locator(), key);
    if (view.state == ReadState::kFound) return;
    ++report.damaged;
    if (report.violations.size() < 100) {
      report.violations.push_back("the value at " + std::to_string(value.locator().position) + " of " +
                                  std::to_string(value.locator().length) + " bytes is " +
                                  (view.state == ReadState::kStale ? "in a segment that is free" : "damaged"));
    }
  });
  return report;
}

}  // namespace dunnock
