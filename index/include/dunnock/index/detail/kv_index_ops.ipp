// Part of KvIndex: get, put, erase, one by one and in bulk.
#pragma once

#include <algorithm>
#include <array>

namespace dunnock {

// ----- reading -------------------------------------------------------------------------------------------------------

template <Media M>
GetResult KvIndex<M>::get_at(const IndexKey& key, const Place& place) const {
  for (;;) {
    const Segment segment = segment_of(place);
    const Reader reader(table_, segment, place);
    typename Reader::Reading reading;
    reader.read(key, reading);
    if (is_taken(media(), index_point::kSplitAgain) && !(segment_of(place) == segment)) [[unlikely]]
      continue;  // Split meanwhile: it may have moved.
    if constexpr (kReadersPersist) {
      if (is_taken(media(), index_point::kPersistGet) && reader.is_unsettled(shared_->locks, reading.far)) [[unlikely]]
        persist_read(segment, place, reading.far);
    }
    if (!media_ok(media())) [[unlikely]]
      return {GetState::kIo, {}};
    return reading.result;
  }
}

template <Media M>
void KvIndex<M>::persist_read(Segment segment, const Place& place, bool far) const {
  Reader::persist_read(table_, segment, place, far);
  shard().reader_persists.fetch_add(1, std::memory_order_relaxed);
}

template <Media M>
GetResult KvIndex<M>::get(const IndexKey& key) const {
  return get_at(key, table_.place_of(key));
}

template <Media M>
bool KvIndex<M>::may_contain(const IndexKey& key) const {
  const Place place = table_.place_of(key);
  for (;;) {
    const Segment segment = segment_of(place);
    const Reader reader(table_, segment, place);
    bool far = false;
    const bool found = reader.has_fingerprint(far);
    if (is_taken(media(), index_point::kSplitAgainMaybe) && !(segment_of(place) == segment)) [[unlikely]]
      continue;
    if constexpr (kReadersPersist) {
      if (is_taken(media(), index_point::kPersistMaybe) && reader.is_unsettled(shared_->locks, far)) [[unlikely]]
        persist_read(segment, place, far);
    }
    return found || !media_ok(media());
  }
}

template <Media M>
void KvIndex<M>::prefetch(const IndexKey& key) const {
  const Place place = table_.place_of(key);
  __builtin_prefetch(table_.words_of(segment_of(place), place.group));
}

template <Media M>
std::size_t KvIndex<M>::get_bulk(std::span<const IndexKey> keys, GetResult* results) const {
  std::size_t found = 0;
  std::array<Place, kBatch> places;
  for (std::size_t from = 0; from < keys.size(); from += kBatch) {
    const std::size_t count = std::min<std::size_t>(kBatch, keys.size() - from);
    for (std::size_t i = 0; i < count; ++i) {
      places[i] = table_.place_of(keys[from + i]);
      __builtin_prefetch(table_.words_of(segment_of(places[i]), places[i].group));
    }
    // The first lane that holds the fingerprint is usually the right one.
    for (std::size_t i = 0; i < count; ++i) {
      const Place& place = places[i];
      const Segment segment = segment_of(place);
      const Word* words = table_.words_of(segment, place.group);
      const std::uint64_t pattern = L::pattern(place.fingerprint);
      const std::uint64_t home = media().load(words[place.word]);
      const IndexRecord* records = table_.records_of(segment, place.group);
      unsigned v = place.word;
      std::uint64_t lanes = L::match_quickly(home, pattern);
      for (unsigned n = 1; lanes == 0 && L::level(home) != 0 && n < kGroupWords; ++n) {
        v = (place.word + n) % kGroupWords;
        lanes = L::match_quickly(media().load(words[v]), pattern);
      }
      if (lanes != 0) {
        __builtin_prefetch(&records[v * L::kLanes + L::lane_of(lanes)]);
      } else if (L::is_far(home, place.fingerprint)) {
        __builtin_prefetch(table_.words_of(segment, place.other));
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
PutResult KvIndex<M>::put_with(Writer& writer, const IndexKey& key, const Place& place, const IndexValue& value,
                               IndexValue* previous) {
  using Inserted = typename Writer::Inserted;
  Shared& shared = *shared_;
  for (bool both = false; media_ok(media());) {
    Site site = writer.lock_and_find(key, place, both);
    if (site.slot) {
      if (previous != nullptr) *previous = writer.value_at(site);
      writer.update(place, site, key, value);
      return PutResult::kReplaced;
    }
    switch (writer.insert(key, place, value, site)) {
      case Inserted::kYes: count(1); return PutResult::kInserted;
      case Inserted::kNeedsBothLocks:
        writer.commit();
        both = true;
        break;
      case Inserted::kNoRoom:
        writer.commit();
        const detail::SegmentSplit<M> split(table_, shared.directory, shared.slots, shared.locks);
        if (!split.run(site.segment, place, shared.splits)) {
          shared.refusals.fetch_add(1, std::memory_order_relaxed);
          return PutResult::kFull;
        }
        break;
    }
  }
  return PutResult::kIo;
}

template <Media M>
PutResult KvIndex<M>::put(const IndexKey& key, const IndexValue& value, IndexValue* previous) {
  if constexpr (kIsReadOnly<M>) return PutResult::kIo;
  PutResult result;
  {
    Writer writer = make_writer(false);
    result = put_with(writer, key, table_.place_of(key), value, previous);
  }
  return media_ok(media()) ? result : PutResult::kIo;
}

template <Media M>
void KvIndex<M>::remove(Writer& writer, const Place& place, const Site& site) const {
  writer.remove(place, site);
  count(-1);
}

/// Calls change(writer, place, site) if the key has an entry. False: it has none, or change() did nothing.
template <Media M>
template <class Change>
bool KvIndex<M>::change_entry(const IndexKey& key, const Change& change) {
  if constexpr (kIsReadOnly<M>) return false;
  if (!media_ok(media())) [[unlikely]]  // After a fork, who holds a lock may not be here.
    return false;
  Writer writer = make_writer(false);
  const Place place = table_.place_of(key);
  const Site site = writer.lock_and_find(key, place, false);
  if (!site.slot || !change(writer, place, site)) return false;
  writer.commit();
  return media_ok(media());
}

template <Media M>
bool KvIndex<M>::erase(const IndexKey& key, IndexValue* previous) {
  return change_entry(key, [&](Writer& writer, const Place& place, const Site& site) {
    if (previous != nullptr) *previous = writer.value_at(site);
    remove(writer, place, site);
    return true;
  });
}

template <Media M>
bool KvIndex<M>::erase_if(const IndexKey& key, const IndexValue& expected) {
  return change_entry(key, [&](Writer& writer, const Place& place, const Site& site) {
    if (!(writer.value_at(site) == expected)) return false;
    remove(writer, place, site);
    return true;
  });
}

template <Media M>
bool KvIndex<M>::replace_if(const IndexKey& key, const IndexValue& expected, const IndexValue& desired) {
  return change_entry(key, [&](Writer& writer, const Place& place, const Site& site) {
    if (!(writer.value_at(site) == expected)) return false;
    writer.update(place, site, key, desired);
    return true;
  });
}

/// The places of the keys key_at(0), ..., and fetches the lines that a change of them needs.
template <Media M>
template <class KeyAt>
void KvIndex<M>::find_places(std::span<Place> places, const KeyAt& key_at) const {
  for (std::size_t i = 0; i < places.size(); ++i) {
    places[i] = table_.place_of(key_at(i));
    __builtin_prefetch(table_.words_of(segment_of(places[i]), places[i].group), 1);
  }
  for (const Place& place : places) {
    const Segment segment = segment_of(place);
    const std::uint64_t home = media().load(table_.home_word(segment, place));
    std::uint64_t lanes = L::match_quickly(home, L::pattern(place.fingerprint));
    if (lanes == 0) lanes = L::empty_lanes(home);
    if (lanes == 0) continue;
    __builtin_prefetch(&table_.records_of(segment, place.group)[place.word * L::kLanes + L::lane_of(lanes)], 1);
  }
}

/// Calls change(writer, place, i) for each of this many keys, of which key_at(i) is one. Returns how often it answered
/// true. If the medium fails, refuse_from(i) is called: from there nothing is acknowledged.
template <Media M>
template <class KeyAt, class Change, class Refuse>
std::size_t KvIndex<M>::change_many(std::size_t keys, const KeyAt& key_at, const Change& change,
                                    const Refuse& refuse_from) {
  if constexpr (kIsReadOnly<M>) {
    refuse_from(0);
    return 0;
  }
  std::size_t changed = 0;
  std::array<Place, kBatch> places;
  for (std::size_t fenced = 0; fenced < keys; fenced += kFenceBatch) {
    const std::size_t end = std::min<std::size_t>(fenced + kFenceBatch, media_ok(media()) ? keys : fenced);
    Writer writer = make_writer(true);
    std::size_t changed_here = 0;
    for (std::size_t from = fenced; from < end; from += kBatch) {
      const std::size_t many = std::min<std::size_t>(kBatch, end - from);
      find_places(std::span(places).first(many), [&](std::size_t i) -> const IndexKey& { return key_at(from + i); });
      for (std::size_t i = 0; i < many; ++i) {
        if (writer.full()) writer.commit();
        changed_here += change(writer, places[i], from + i) ? 1 : 0;
      }
    }
    writer.commit();
    if (!media_ok(media())) [[unlikely]] {  // Nothing of this batch is acknowledged, nor of those that follow.
      refuse_from(fenced);
      return changed;
    }
    changed += changed_here;
  }
  return changed;
}

template <Media M>
std::size_t KvIndex<M>::put_bulk(std::span<const Entry> entries, PutResult* results, IndexValue* previous) {
  return change_many(
      entries.size(), [&](std::size_t i) -> const IndexKey& { return entries[i].key; },
      [&](Writer& writer, const Place& place, std::size_t i) {
        const PutResult result =
            put_with(writer, entries[i].key, place, entries[i].value, previous == nullptr ? nullptr : previous + i);
        if (results != nullptr) results[i] = result;
        return result == PutResult::kInserted;
      },
      [&](std::size_t from) {
        if (results != nullptr) std::fill(results + from, results + entries.size(), PutResult::kIo);
      });
}

template <Media M>
std::size_t KvIndex<M>::erase_bulk(std::span<const IndexKey> keys, std::uint8_t* erased, IndexValue* previous) {
  return change_many(
      keys.size(), [&](std::size_t i) -> const IndexKey& { return keys[i]; },
      [&](Writer& writer, const Place& place, std::size_t i) {
        const Site site = writer.lock_and_find(keys[i], place, false);
        if (site.slot && previous != nullptr) previous[i] = writer.value_at(site);
        if (site.slot) remove(writer, place, site);
        if (erased != nullptr) erased[i] = site.slot ? 1 : 0;
        return static_cast<bool>(site.slot);
      },
      [&](std::size_t from) {
        if (erased != nullptr) std::fill(erased + from, erased + keys.size(), std::uint8_t{0});
      });
}

}  // namespace dunnock
