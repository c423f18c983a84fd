// Part of KvIndex: get, put, erase, one by one and in bulk.
#pragma once

#include <algorithm>
#include <array>

namespace dunnock {

/// The locks that one writer holds, and the fence that it must make before it may release them. Locks are taken in
/// ascending order; out of that order, only a lock that is free.
template <Media M>
class KvIndex<M>::Writer {
 public:
  Writer(KvIndex& index, bool batch) noexcept : index_(index), batch_(batch) {}
  Writer(const Writer&) = delete;
  Writer& operator=(const Writer&) = delete;
  ~Writer() { commit(); }

  /// False: the lock is not available while the others are held.
  [[nodiscard]] bool lock(std::uint64_t id) noexcept {
    detail::GroupLocks& locks = index_.shared_->locks;
    if (!locks.try_acquire(id)) {
      if (holds(id)) return true;
      if (held_count_ != 0 && id < highest_) return false;
      locks.acquire(id, index_.media_);
    }
    highest_ = held_count_ == 0 ? id : std::max(highest_, id);
    held_[held_count_++] = id;
    return true;
  }
  /// Makes readers persist what they read of the group from here on. Call before the first store to it.
  void dirty(std::uint64_t id) noexcept { index_.shared_->locks.dirty(id); }
  /// Notes that something was flushed; `fence` names the fence that makes it durable.
  void owe(Point fence) noexcept { owed_ = batch_ ? index_point::kBatchFence : fence; }
  /// Makes everything durable and releases all locks.
  void commit() noexcept {
    if (owed_ != Point{}) index_.media_.fence(owed_);
    owed_ = Point{};
    for (unsigned i = 0; i < held_count_; ++i) index_.shared_->locks.release(held_[i]);
    held_count_ = 0;
  }
  [[nodiscard]] bool full() const noexcept { return held_count_ + 2 > held_.size(); }

 private:
  [[nodiscard]] bool holds(std::uint64_t id) const noexcept {
    return std::find(held_.begin(), held_.begin() + held_count_, id) != held_.begin() + held_count_;
  }

  KvIndex& index_;
  bool batch_;
  Point owed_{};
  unsigned held_count_ = 0;
  std::uint64_t highest_ = 0;
  std::array<std::uint64_t, 2 * kFenceBatch> held_;  // the first held_count_
};

template <Media M>
auto KvIndex<M>::place_of(const IndexKey& key) const noexcept -> Place {
  const std::uint64_t hash = hasher_(key.low, key.high);
  Place place;
  const std::uint64_t fingerprint = hash & L::kLaneMask;
  place.fingerprint = fingerprint == 0 ? 1 : fingerprint;
  place.word = static_cast<unsigned>(hash >> 12) % kGroupWords;
  place.group = (hash >> 15) & (groups_ - 1);
  const std::uint64_t distance = (hash >> 27) & (groups_ - 1);
  place.other = place.group ^ (distance == 0 ? 1 : distance);
  place.segment = hash >> 39;
  return place;
}

// ----- reading -------------------------------------------------------------------------------------------------------
//
// A get waits for two lines, one after the other. Gets in a row overlap as far as the processor's window of
// instructions reaches (256 on Zen 3). A hit takes 245 of them; at 264 it took a third more time. So what a hit needs
// is inlined into one function, and what it does not need stays out of it (read_beyond).

/// True: the search is over. Lock-free: it starts again only when the record has changed under it. `is_still_there()`:
/// does the lane still lead here?
template <Media M>
template <class IsStillThere>
[[gnu::always_inline]] inline bool KvIndex<M>::read_record(const IndexRecord& record, const IndexKey& key,
                                                           Reading& reading,
                                                           const IsStillThere& is_still_there) const {
  using detail::Control;
  std::uint64_t control = media_.load(record.control);
  while (Control::live(control)) {
    const IndexKey stored = key_of(record);
    const std::array<std::uint64_t, 2> value = value_of(record, Control::slot(control));
    const std::uint64_t again = media_.load(record.control);
    if (is_taken(media_, index_point::kControlAgain) && again != control) {
      control = again;
      continue;
    }
    const std::uint64_t low = control & Control::kLowMask;
    if ((Control::sum(stored, value, low) | low) != control || !Control::sound_tag(control)) [[unlikely]] {
      reading.result.state = GetState::kDamaged;  // Its key is unknown; the key sought may still be found elsewhere.
      return false;
    }
    if (!(stored == key)) return false;
    // The record of a lane that was emptied since then may be that of a put in progress. If the lane is occupied now,
    // the entry was there after it was read.
    if (is_taken(media_, index_point::kLaneAgain) && !is_still_there()) [[unlikely]]
      return false;
    reading.result = {GetState::kFound, IndexValue(value, Control::tag(control))};
    return true;
  }
  return false;
}

/// The lanes of one word that hold the fingerprint, and their records. `seen`: what was loaded from `word`.
template <Media M>
[[gnu::always_inline]] inline bool KvIndex<M>::read_word(const Word& word, std::uint64_t seen, std::uint64_t pattern,
                                                         const IndexRecord* records, const IndexKey& key,
                                                         Reading& reading) const {
  if (L::match_quickly(seen, pattern) == 0) return false;
  // Exactly, now: the record of an empty lane may be that of a put in progress, or of one that a crash has interrupted.
  for (std::uint64_t lanes = L::zero_lanes(seen ^ pattern); lanes != 0; lanes &= lanes - 1) {
    const std::uint64_t lane = lanes & (0 - lanes);
    const auto is_still_there = [&] { return (L::zero_lanes(media_.load(word) ^ pattern) & lane) != 0; };
    if (read_record(records[L::lane_of(lanes)], key, reading, is_still_there)) return true;
  }
  return false;
}

template <Media M>
[[gnu::always_inline]] inline void KvIndex<M>::read_segment(Segment segment, const IndexKey& key, const Place& place,
                                                            Reading& reading) const {
  const std::uint64_t pattern = L::pattern(place.fingerprint);
  const Word* words = words_of(segment, place.group);
  const IndexRecord* records = records_of(segment, place.group);
  const std::uint64_t home = media_.load(words[place.word]);
  if (read_word(words[place.word], home, pattern, records + place.word * L::kLanes, key, reading)) return;
  if (L::level(home) != 0) [[unlikely]]
    read_beyond(segment, key, place, home, reading);
}

/// What is not in its home word: the other words of its group, then the other group.
template <Media M>
[[gnu::noinline]] void KvIndex<M>::read_beyond(Segment segment, const IndexKey& key, const Place& place,
                                               std::uint64_t home, Reading& reading) const {
  const std::uint64_t pattern = L::pattern(place.fingerprint);
  const auto read_group = [&](std::uint64_t group, unsigned but) {
    const Word* words = words_of(segment, group);
    const IndexRecord* records = records_of(segment, group);
    for (unsigned v = 0; v < kGroupWords; ++v) {
      if (v != but && read_word(words[v], media_.load(words[v]), pattern, records + v * L::kLanes, key, reading))
        return true;
    }
    return false;
  };
  if (read_group(place.group, place.word) || !L::is_far(home, place.fingerprint)) return;
  reading.far = true;
  (void)read_group(place.other, kGroupWords);
}

/// Makes durable what a get has read while a writer was active: the fingerprint lines, and the records that they point
/// to for this fingerprint. (A record whose lane has gone since then was durable before: its lock was taken again.)
template <Media M>
void KvIndex<M>::persist_read(Segment segment, const Place& place, bool far) const {
  const std::uint64_t pattern = L::pattern(place.fingerprint);
  const auto persist_group = [&](std::uint64_t group) {
    const Word* words = words_of(segment, group);
    const IndexRecord* records = records_of(segment, group);
    for (unsigned v = 0; v < kGroupWords; ++v) {
      const std::uint64_t word = media_.load(words[v]);
      for (std::uint64_t lanes = L::zero_lanes(word ^ pattern); lanes != 0; lanes &= lanes - 1) {
        media_.flush(index_point::kReadPersist, &records[v * L::kLanes + L::lane_of(lanes)]);
      }
    }
    media_.flush(index_point::kReadPersist, words);
  };
  persist_group(place.group);
  if (far && is_taken(media_, index_point::kPersistOther)) persist_group(place.other);
  media_.fence(index_point::kReadPersist);  // What was read is durable before it is returned.
  shard().reader_persists.fetch_add(1, std::memory_order_relaxed);
}

template <Media M>
bool KvIndex<M>::is_unsettled(Segment segment, const Place& place, bool far) const noexcept {
  const detail::GroupLocks& locks = shared_->locks;
  return (is_taken(media_, index_point::kOwnGroupDirty) && locks.is_dirty(lock_of(segment, place, place.group))) ||
         (far && is_taken(media_, index_point::kOtherGroupDirty) &&
          locks.is_dirty(lock_of(segment, place, place.other)));
}

template <Media M>
GetResult KvIndex<M>::get_at(const IndexKey& key, const Place& place) const {
  for (;;) {
    const Segment segment = segment_of(place);
    Reading reading;
    read_segment(segment, key, place, reading);
    if (is_taken(media_, index_point::kSplitAgain) && !(segment_of(place) == segment)) [[unlikely]]
      continue;  // Split meanwhile: it may have moved.
    if constexpr (kReadersPersist) {
      if (is_taken(media_, index_point::kPersistGet) && is_unsettled(segment, place, reading.far)) [[unlikely]]
        persist_read(segment, place, reading.far);
    }
    if (!media_ok(media_)) [[unlikely]]
      return {GetState::kIo, {}};
    return reading.result;
  }
}

template <Media M>
GetResult KvIndex<M>::get(const IndexKey& key) const {
  return get_at(key, place_of(key));
}

template <Media M>
bool KvIndex<M>::may_contain(const IndexKey& key) const {
  const Place place = place_of(key);
  const std::uint64_t pattern = L::pattern(place.fingerprint);
  const auto in_group = [&](Segment segment, std::uint64_t group) {
    const Word* words = words_of(segment, group);
    std::uint64_t lanes = 0;
    for (unsigned v = 0; v < kGroupWords; ++v) lanes |= L::match_quickly(media_.load(words[v]), pattern);
    return lanes != 0;
  };
  for (;;) {
    const Segment segment = segment_of(place);
    const std::uint64_t home = media_.load(words_of(segment, place.group)[place.word]);
    const bool far = L::is_far(home, place.fingerprint);
    const bool found = L::match_quickly(home, pattern) != 0 ||
                       (L::level(home) != 0 && in_group(segment, place.group)) ||
                       (far && in_group(segment, place.other));
    if (is_taken(media_, index_point::kSplitAgainMaybe) && !(segment_of(place) == segment)) [[unlikely]]
      continue;
    if constexpr (kReadersPersist) {
      if (is_taken(media_, index_point::kPersistMaybe) && is_unsettled(segment, place, far)) [[unlikely]]
        persist_read(segment, place, far);
    }
    return found || !media_ok(media_);
  }
}

template <Media M>
void KvIndex<M>::prefetch(const IndexKey& key) const {
  const Place place = place_of(key);
  __builtin_prefetch(words_of(segment_of(place), place.group));
}

template <Media M>
std::size_t KvIndex<M>::get_bulk(std::span<const IndexKey> keys, GetResult* results) const {
  std::size_t found = 0;
  std::array<Place, kBatch> places;
  for (std::size_t from = 0; from < keys.size(); from += kBatch) {
    const std::size_t count = std::min<std::size_t>(kBatch, keys.size() - from);
    for (std::size_t i = 0; i < count; ++i) {
      places[i] = place_of(keys[from + i]);
      __builtin_prefetch(words_of(segment_of(places[i]), places[i].group));
    }
    // The first lane that holds the fingerprint is usually the right one.
    for (std::size_t i = 0; i < count; ++i) {
      const Place& place = places[i];
      const Segment segment = segment_of(place);
      const Word* words = words_of(segment, place.group);
      const std::uint64_t pattern = L::pattern(place.fingerprint);
      const std::uint64_t home = media_.load(words[place.word]);
      const IndexRecord* records = records_of(segment, place.group);
      unsigned v = place.word;
      std::uint64_t lanes = L::match_quickly(home, pattern);
      for (unsigned n = 1; lanes == 0 && L::level(home) != 0 && n < kGroupWords; ++n) {
        v = (place.word + n) % kGroupWords;
        lanes = L::match_quickly(media_.load(words[v]), pattern);
      }
      if (lanes != 0) {
        __builtin_prefetch(&records[v * L::kLanes + L::lane_of(lanes)]);
      } else if (L::is_far(home, place.fingerprint)) {
        __builtin_prefetch(words_of(segment, place.other));
      }
    }
    for (std::size_t i = 0; i < count; ++i) {
      results[from + i] = get_at(keys[from + i], places[i]);
      found += results[from + i] ? 1 : 0;
    }
  }
  return found;
}

// ----- writing -------------------------------------------------------------------------------------------------------

template <Media M>
auto KvIndex<M>::find_in(Segment segment, std::uint64_t group, unsigned first, unsigned last, std::uint64_t pattern,
                         const IndexKey& key) const -> Slot {
  Word* words = words_of(segment, group);
  IndexRecord* records = records_of(segment, group);
  for (unsigned v = first; v < last; ++v) {
    for (std::uint64_t lanes = L::zero_lanes(media_.load(words[v]) ^ pattern); lanes != 0; lanes &= lanes - 1) {
      const unsigned lane = L::lane_of(lanes);
      IndexRecord& record = records[v * L::kLanes + lane];
      if (detail::Control::live(media_.load(record.control)) && key_of(record) == key) {
        return {&words[v], lane, &record, group};
      }
    }
  }
  return {};
}

/// Takes the locks needed to know whether the key exists, and finds it. `both`: those of both groups from the start.
template <Media M>
auto KvIndex<M>::lock_and_find(Writer& writer, const IndexKey& key, const Place& place, bool both) const -> Site {
  const std::uint64_t pattern = L::pattern(place.fingerprint);
  for (;; writer.commit()) {
    Site site;
    site.segment = segment_of(place);
    const std::uint64_t home_lock = lock_of(site.segment, place, place.group);
    const std::uint64_t other_lock = lock_of(site.segment, place, place.other);
    if (both) {
      if (!writer.lock(std::min(home_lock, other_lock))) continue;
      if (!writer.lock(std::max(home_lock, other_lock))) continue;
    } else if (!writer.lock(home_lock)) {
      continue;
    }
    // From here it can't be split, if it has not been.
    if (is_taken(media_, index_point::kSplitAgainLocked) && !(segment_of(place) == site.segment)) continue;
    site.both = both;
    const std::uint64_t home = media_.load(words_of(site.segment, place.group)[place.word]);
    site.slot = find_in(site.segment, place.group, place.word, place.word + 1, pattern, key);
    if (!site.slot && L::level(home) != 0) site.slot = find_in(site.segment, place.group, 0, kGroupWords, pattern, key);
    if (!site.slot && L::is_far(home, place.fingerprint)) {
      if (!lock_other(writer, place, site)) {
        both = true;
        continue;
      }
      site.slot = find_in(site.segment, place.other, 0, kGroupWords, pattern, key);
    }
    return site;
  }
}

template <Media M>
bool KvIndex<M>::lock_other(Writer& writer, const Place& place, Site& site) const {
  if (!site.both) site.both = writer.lock(lock_of(site.segment, place, place.other));
  return site.both;
}

/// The word of a group with the most empty lanes; -1 if there is none.
template <Media M>
int KvIndex<M>::roomiest(Segment segment, std::uint64_t group) const {
  const Word* words = words_of(segment, group);
  int best = -1;
  int most = 0;
  for (unsigned v = 0; v < kGroupWords; ++v) {
    const int empty = std::popcount(L::empty_lanes(media_.load(words[v])));
    if (empty > most) {
      most = empty;
      best = static_cast<int>(v);
    }
  }
  return best;
}

/// Writes the entry into an empty lane of the word and its record, in a group that is locked.
template <Media M>
void KvIndex<M>::fill(Writer& writer, const Place& place, const Site& site, std::uint64_t group, unsigned v,
                      const IndexKey& key, const IndexValue& value) {
  using detail::Control;
  Word& word = words_of(site.segment, group)[v];
  const std::uint64_t before = media_.load(word);
  const unsigned lane = L::lane_of(L::empty_lanes(before));
  IndexRecord& record = records_of(site.segment, group)[v * L::kLanes + lane];
  writer.dirty(lock_of(site.segment, place, group));
  std::uint64_t control = media_.load(record.control);
  if (Control::live(control)) [[unlikely]] {  // No lane points to it, but one will before it is written over durably.
    control = Control::next_free(control);
    media_.store(index_point::kResetRecord, record.control, control);
    media_.flush(index_point::kResetRecord, &record);
    media_.fence(index_point::kResetRecord);  // What a crash left in the line is not an entry.
  }
  media_.store(index_point::kRecordFields, record.key[0], key.low);
  media_.store(index_point::kRecordFields, record.key[1], key.high);
  media_.store(index_point::kRecordFields, record.values[0][0], value.words()[0]);
  media_.store(index_point::kRecordFields, record.values[0][1], value.words()[1]);
  media_.store(index_point::kRecordLive, record.control,
               Control::next_live(control, 0, value.tag(), key, value.words()));
  media_.flush(index_point::kRecordLive, &record);
  media_.store(index_point::kLane, word, L::with_lane(before, lane, place.fingerprint));
  media_.flush(index_point::kLane, &word);
  writer.owe(index_point::kPutFence);
}

template <Media M>
auto KvIndex<M>::insert_at(Writer& writer, const IndexKey& key, const Place& place, const IndexValue& value, Site& site)
    -> Inserted {
  Word& home_word = words_of(site.segment, place.group)[place.word];
  for (bool scrubbed = false;; scrubbed = true) {
    const std::uint64_t home = media_.load(home_word);
    if (L::empty_lanes(home) != 0) {
      fill(writer, place, site, place.group, place.word, key, value);
      return Inserted::kYes;
    }
    if (const int v = roomiest(site.segment, place.group); v >= 0) {
      if (L::level(home) == 0) {  // In the same line as the lane, and before it.
        writer.dirty(lock_of(site.segment, place, place.group));
        media_.store(index_point::kGroupMark, home_word, L::with_level(home, 1));
      }
      fill(writer, place, site, place.group, static_cast<unsigned>(v), key, value);
      return Inserted::kYes;
    }
    if (!lock_other(writer, place, site)) return Inserted::kNeedsBothLocks;
    if (const int v = roomiest(site.segment, place.other); v >= 0) {
      if (!L::is_far(home, place.fingerprint)) {
        writer.dirty(lock_of(site.segment, place, place.group));
        media_.store(index_point::kFarMark, home_word, L::with_level(home, L::far_level(place.fingerprint)));
        media_.flush(index_point::kFarMark, &home_word);
        media_.fence(index_point::kFarMark);  // From here lookups go that far, also after a crash.
      }
      fill(writer, place, site, place.other, static_cast<unsigned>(v), key, value);
      return Inserted::kYes;
    }
    if (scrubbed || !scrub(writer, place, site)) return Inserted::kNoRoom;
  }
}

/// Frees the lanes of both groups that point to no entry: crashes leave them. True: there were some.
template <Media M>
bool KvIndex<M>::scrub(Writer& writer, const Place& place, const Site& site) {
  const std::uint64_t number = site.segment.number(place.segment);
  bool freed = false;
  for (const std::uint64_t group : {place.group, place.other}) {
    Word* words = words_of(site.segment, group);
    const IndexRecord* records = records_of(site.segment, group);
    for (unsigned v = 0; v < kGroupWords; ++v) {
      for (unsigned lane = 0; lane < L::kLanes; ++lane) {
        const std::uint64_t word = media_.load(words[v]);
        const std::uint64_t fingerprint = L::lane(word, lane);
        Place seen;
        if (fingerprint == 0 ||
            is_entry(site.segment, number, group, fingerprint, records[v * L::kLanes + lane], seen)) {
          continue;
        }
        writer.dirty(lock_of(site.segment, place, group));
        media_.store(index_point::kScrubLane, words[v], L::with_lane(word, lane, 0));
        freed = true;
      }
    }
  }
  return freed;
}

template <Media M>
PutResult KvIndex<M>::put_with(Writer& writer, const IndexKey& key, const Place& place, const IndexValue& value,
                               IndexValue* previous) {
  for (bool both = false; media_ok(media_);) {
    Site site = lock_and_find(writer, key, place, both);
    if (site.slot) {
      if (previous != nullptr) *previous = stored_value(site.slot);
      update(writer, place, site, key, value);
      return PutResult::kReplaced;
    }
    switch (insert_at(writer, key, place, value, site)) {
      case Inserted::kYes: count(1); return PutResult::kInserted;
      case Inserted::kNeedsBothLocks:
        writer.commit();
        both = true;
        break;
      case Inserted::kNoRoom:
        writer.commit();
        if (!split(site.segment, place)) {
          shared_->refusals.fetch_add(1, std::memory_order_relaxed);
          return PutResult::kFull;
        }
        break;
    }
  }
  return PutResult::kIo;
}

template <Media M>
void KvIndex<M>::update(Writer& writer, const Place& place, const Site& site, const IndexKey& key,
                        const IndexValue& value) {
  using detail::Control;
  IndexRecord& record = *site.slot.record;
  const std::uint64_t control = media_.load(record.control);
  const unsigned slot = Control::slot(control) ^ 1;
  writer.dirty(lock_of(site.segment, place, site.slot.group));
  media_.store(index_point::kUpdateFields, record.values[slot][0], value.words()[0]);
  media_.store(index_point::kUpdateFields, record.values[slot][1], value.words()[1]);
  media_.store(index_point::kUpdateLive, record.control,
               Control::next_live(control, slot, value.tag(), key, value.words()));
  media_.flush(index_point::kUpdateLive, &record);
  writer.owe(index_point::kUpdateLive);
}

template <Media M>
void KvIndex<M>::remove(Writer& writer, const Place& place, const Site& site) {
  IndexRecord& record = *site.slot.record;
  writer.dirty(lock_of(site.segment, place, site.slot.group));
  media_.store(index_point::kEraseRecord, record.control, detail::Control::next_free(media_.load(record.control)));
  media_.flush(index_point::kEraseRecord, &record);
  media_.store(index_point::kEraseLane, *site.slot.word, L::with_lane(media_.load(*site.slot.word), site.slot.lane, 0));
  writer.owe(index_point::kEraseRecord);
  count(-1);
}

template <Media M>
IndexValue KvIndex<M>::stored_value(const Slot& slot) const {
  const std::uint64_t control = media_.load(slot.record->control);
  if (!detail::Control::sound_tag(control)) return {};  // Damaged; its value is unknown.
  return {value_of(*slot.record, detail::Control::slot(control)), detail::Control::tag(control)};
}

template <Media M>
bool KvIndex<M>::holds_value(const Slot& slot, const IndexValue& expected) const {
  return stored_value(slot) == expected;
}

template <Media M>
PutResult KvIndex<M>::put(const IndexKey& key, const IndexValue& value, IndexValue* previous) {
  if constexpr (kIsReadOnly<M>) return PutResult::kIo;
  PutResult result;
  {
    Writer writer(*this, false);
    result = put_with(writer, key, place_of(key), value, previous);
  }
  return media_ok(media_) ? result : PutResult::kIo;
}

template <Media M>
bool KvIndex<M>::erase(const IndexKey& key, IndexValue* previous) {
  if constexpr (kIsReadOnly<M>) return false;
  if (!media_ok(media_)) [[unlikely]]  // After a fork, who holds a lock may not be here.
    return false;
  Writer writer(*this, false);
  const Place place = place_of(key);
  const Site site = lock_and_find(writer, key, place, false);
  if (!site.slot) return false;
  if (previous != nullptr) *previous = stored_value(site.slot);
  remove(writer, place, site);
  writer.commit();
  return media_ok(media_);
}

template <Media M>
bool KvIndex<M>::erase_if(const IndexKey& key, const IndexValue& expected) {
  if constexpr (kIsReadOnly<M>) return false;
  if (!media_ok(media_)) [[unlikely]]  // After a fork, who holds a lock may not be here.
    return false;
  Writer writer(*this, false);
  const Place place = place_of(key);
  const Site site = lock_and_find(writer, key, place, false);
  if (!site.slot || !holds_value(site.slot, expected)) return false;
  remove(writer, place, site);
  writer.commit();
  return media_ok(media_);
}

template <Media M>
bool KvIndex<M>::replace_if(const IndexKey& key, const IndexValue& expected, const IndexValue& desired) {
  if constexpr (kIsReadOnly<M>) return false;
  if (!media_ok(media_)) [[unlikely]]  // After a fork, who holds a lock may not be here.
    return false;
  Writer writer(*this, false);
  const Place place = place_of(key);
  const Site site = lock_and_find(writer, key, place, false);
  if (!site.slot || !holds_value(site.slot, expected)) return false;
  update(writer, place, site, key, desired);
  writer.commit();
  return media_ok(media_);
}

template <Media M>
std::size_t KvIndex<M>::put_bulk(std::span<const Entry> entries, PutResult* results, IndexValue* previous) {
  if constexpr (kIsReadOnly<M>) {
    if (results != nullptr) std::fill_n(results, entries.size(), PutResult::kIo);
    return 0;
  }
  std::size_t inserted = 0;
  std::array<Place, kBatch> places;
  for (std::size_t fenced = 0; fenced < entries.size(); fenced += kFenceBatch) {
    const std::size_t end = std::min<std::size_t>(fenced + kFenceBatch, entries.size());
    Writer writer(*this, true);
    std::size_t inserted_here = 0;
    for (std::size_t from = fenced; from < end; from += kBatch) {
      const std::size_t many = std::min<std::size_t>(kBatch, end - from);
      for (std::size_t i = 0; i < many; ++i) {
        places[i] = place_of(entries[from + i].key);
        __builtin_prefetch(words_of(segment_of(places[i]), places[i].group), 1);
      }
      prefetch_records(std::span(places).first(many));
      for (std::size_t i = 0; i < many; ++i) {
        if (writer.full()) writer.commit();
        const PutResult result = put_with(writer, entries[from + i].key, places[i], entries[from + i].value,
                                          previous == nullptr ? nullptr : previous + from + i);
        inserted_here += result == PutResult::kInserted ? 1 : 0;
        if (results != nullptr) results[from + i] = result;
      }
    }
    writer.commit();
    if (!media_ok(media_)) [[unlikely]] {  // Nothing of this group is acknowledged, nor of those that follow.
      if (results != nullptr) std::fill(results + fenced, results + entries.size(), PutResult::kIo);
      return inserted;
    }
    inserted += inserted_here;
  }
  return inserted;
}

template <Media M>
void KvIndex<M>::prefetch_records(std::span<const Place> places) const {
  for (const Place& place : places) {
    const Segment segment = segment_of(place);
    const std::uint64_t home = media_.load(words_of(segment, place.group)[place.word]);
    std::uint64_t lanes = L::match_quickly(home, L::pattern(place.fingerprint));
    if (lanes == 0) lanes = L::empty_lanes(home);
    if (lanes == 0) continue;
    __builtin_prefetch(&records_of(segment, place.group)[place.word * L::kLanes + L::lane_of(lanes)], 1);
  }
}

template <Media M>
std::size_t KvIndex<M>::erase_bulk(std::span<const IndexKey> keys, std::uint8_t* erased, IndexValue* previous) {
  if constexpr (kIsReadOnly<M>) {
    if (erased != nullptr) std::fill_n(erased, keys.size(), std::uint8_t{0});
    return 0;
  }
  std::size_t gone = 0;
  std::array<Place, kBatch> places;
  for (std::size_t fenced = 0; fenced < keys.size(); fenced += kFenceBatch) {
    const std::size_t end = std::min<std::size_t>(fenced + kFenceBatch, media_ok(media_) ? keys.size() : fenced);
    Writer writer(*this, true);
    std::size_t gone_here = 0;
    for (std::size_t from = fenced; from < end; from += kBatch) {
      const std::size_t many = std::min<std::size_t>(kBatch, end - from);
      for (std::size_t i = 0; i < many; ++i) {
        places[i] = place_of(keys[from + i]);
        __builtin_prefetch(words_of(segment_of(places[i]), places[i].group), 1);
      }
      prefetch_records(std::span(places).first(many));
      for (std::size_t i = 0; i < many; ++i) {
        if (writer.full()) writer.commit();
        const Site site = lock_and_find(writer, keys[from + i], places[i], false);
        if (site.slot && previous != nullptr) previous[from + i] = stored_value(site.slot);
        if (site.slot) remove(writer, places[i], site);
        gone_here += site.slot ? 1 : 0;
        if (erased != nullptr) erased[from + i] = site.slot ? 1 : 0;
      }
    }
    writer.commit();
    if (!media_ok(media_)) [[unlikely]] {
      if (erased != nullptr) std::fill(erased + fenced, erased + keys.size(), std::uint8_t{0});
      return gone;
    }
    gone += gone_here;
  }
  return gone;
}

}  // namespace dunnock
