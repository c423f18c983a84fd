// One writer's changes to segments: finds a key under its locks, and puts, updates or removes its entry.
//
// What it is for: the stores of a put and an erase, in their order (index_format.hpp says what a crash leaves of them).
// What it is not for: making room; it says when a segment must be split (segment_split.hpp).
//
// Threads: one, and any number of others like it. What was changed is durable, and visible as such, after commit().
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "dunnock/index/detail/group_locks.hpp"
#include "dunnock/index/detail/index_table.hpp"
#include "dunnock/index/detail/segment_directory.hpp"
#include "dunnock/index/index_format.hpp"
#include "dunnock/index/index_points.hpp"
#include "dunnock/pmem/media.hpp"

namespace dunnock::detail {

template <Media M>
class SegmentWriter {
 public:
  using Table = IndexTable<M>;
  using L = typename Table::L;
  static constexpr unsigned kGroupWords = Table::kGroupWords;

  /// What a writer knows of a key when it holds the locks that it needs.
  struct Site {
    Segment segment;
    IndexSlot slot;     // the key's entry, if there is one
    bool both = false;  // the other group is locked, too
  };
  enum class Inserted : std::uint8_t { kYes, kNoRoom, kNeedsBothLocks };

  SegmentWriter(const Table& table, const SegmentDirectory& directory, const GroupLocks& locks, bool batch) noexcept
      : table_(table), directory_(directory), locks_(locks, table.media(), batch) {}

  /// See WriterLocks.
  void commit() noexcept { locks_.commit(); }
  [[nodiscard]] bool full() const noexcept { return locks_.full(); }

  /// Takes the locks needed to know whether the key exists, and finds it. `both`: those of both groups from the start.
  [[nodiscard]] Site lock_and_find(const IndexKey& key, const IndexPlace& place, bool both) {
    const std::uint64_t pattern = L::pattern(place.fingerprint);
    for (;; commit()) {
      Site site;
      site.segment = directory_.segment_of(place.segment);
      const std::uint64_t home_lock = lock_of(site, place, place.group);
      const std::uint64_t other_lock = lock_of(site, place, place.other);
      if (both) {
        if (!locks_.lock(std::min(home_lock, other_lock))) continue;
        if (!locks_.lock(std::max(home_lock, other_lock))) continue;
      } else if (!locks_.lock(home_lock)) {
        continue;
      }
      // From here it can't be split, if it has not been.
      if (is_taken(media(), index_point::kSplitAgainLocked) && !(directory_.segment_of(place.segment) == site.segment))
        continue;
      site.both = both;
      const std::uint64_t home = media().load(table_.home_word(site.segment, place));
      site.slot = table_.find_in(site.segment, place.group, place.word, place.word + 1, pattern, key);
      if (!site.slot && L::level(home) != 0)
        site.slot = table_.find_in(site.segment, place.group, 0, kGroupWords, pattern, key);
      if (!site.slot && L::is_far(home, place.fingerprint)) {
        if (!lock_other(place, site)) {
          both = true;
          continue;
        }
        site.slot = table_.find_in(site.segment, place.other, 0, kGroupWords, pattern, key);
      }
      return site;
    }
  }

  /// Of the key's entry, which must exist.
  [[nodiscard]] IndexValue value_at(const Site& site) const {
    const std::uint64_t control = media().load(site.slot.record->control);
    if (!Control::sound_tag(control)) return {};  // Damaged; its value is unknown.
    return {table_.value_of(*site.slot.record, Control::slot(control)), Control::tag(control)};
  }

  /// Adds an entry for a key that has none.
  [[nodiscard]] Inserted insert(const IndexKey& key, const IndexPlace& place, const IndexValue& value, Site& site) {
    Word& home_word = table_.home_word(site.segment, place);
    for (bool scrubbed = false;; scrubbed = true) {
      const std::uint64_t home = media().load(home_word);
      if (L::empty_lanes(home) != 0) {
        fill(place, site, place.group, place.word, key, value);
        return Inserted::kYes;
      }
      if (const int v = roomiest(site.segment, place.group); v >= 0) {
        if (L::level(home) == 0) {  // In the same line as the lane, and before it.
          locks_.dirty(lock_of(site, place, place.group));
          media().store(index_point::kGroupMark, home_word, L::with_level(home, 1));
        }
        fill(place, site, place.group, static_cast<unsigned>(v), key, value);
        return Inserted::kYes;
      }
      if (!lock_other(place, site)) return Inserted::kNeedsBothLocks;
      if (const int v = roomiest(site.segment, place.other); v >= 0) {
        if (!L::is_far(home, place.fingerprint)) {
          locks_.dirty(lock_of(site, place, place.group));
          media().store(index_point::kFarMark, home_word, L::with_level(home, L::far_level(place.fingerprint)));
          media().flush(index_point::kFarMark, &home_word);
          media().fence(index_point::kFarMark);  // From here lookups go that far, also after a crash.
        }
        fill(place, site, place.other, static_cast<unsigned>(v), key, value);
        return Inserted::kYes;
      }
      if (scrubbed || !scrub(place, site)) return Inserted::kNoRoom;
    }
  }

  /// Gives the key's entry another value.
  void update(const IndexPlace& place, const Site& site, const IndexKey& key, const IndexValue& value) {
    IndexRecord& record = *site.slot.record;
    const std::uint64_t control = media().load(record.control);
    const unsigned slot = Control::slot(control) ^ 1;
    locks_.dirty(lock_of(site, place, site.slot.group));
    media().store(index_point::kUpdateFields, record.values[slot][0], value.words()[0]);
    media().store(index_point::kUpdateFields, record.values[slot][1], value.words()[1]);
    media().store(index_point::kUpdateLive, record.control,
                  Control::next_live(control, slot, value.tag(), key, value.words()));
    media().flush(index_point::kUpdateLive, &record);
    locks_.owe(index_point::kUpdateLive);
  }

  /// Removes the key's entry.
  void remove(const IndexPlace& place, const Site& site) {
    IndexRecord& record = *site.slot.record;
    Word& word = *site.slot.word;
    locks_.dirty(lock_of(site, place, site.slot.group));
    media().store(index_point::kEraseRecord, record.control, Control::next_free(media().load(record.control)));
    media().flush(index_point::kEraseRecord, &record);
    media().store(index_point::kEraseLane, word, L::with_lane(media().load(word), site.slot.lane, 0));
    locks_.owe(index_point::kEraseRecord);
  }

 private:
  [[nodiscard]] const M& media() const noexcept { return table_.media(); }
  [[nodiscard]] std::uint64_t lock_of(const Site& site, const IndexPlace& place, std::uint64_t group) const noexcept {
    return table_.lock_of(locks_.all(), site.segment.number(place.segment), group);
  }
  [[nodiscard]] bool lock_other(const IndexPlace& place, Site& site) {
    if (!site.both) site.both = locks_.lock(lock_of(site, place, place.other));
    return site.both;
  }

  /// The word of a group with the most empty lanes; -1 if there is none.
  [[nodiscard]] int roomiest(Segment segment, std::uint64_t group) const {
    const Word* words = table_.words_of(segment, group);
    int best = -1;
    int most = 0;
    for (unsigned v = 0; v < kGroupWords; ++v) {
      const int empty = std::popcount(L::empty_lanes(media().load(words[v])));
      if (empty > most) {
        most = empty;
        best = static_cast<int>(v);
      }
    }
    return best;
  }

  /// Writes the entry into an empty lane of the word and its record, in a group that is locked.
  void fill(const IndexPlace& place, const Site& site, std::uint64_t group, unsigned v, const IndexKey& key,
            const IndexValue& value) {
    Word& word = table_.words_of(site.segment, group)[v];
    const std::uint64_t before = media().load(word);
    const unsigned lane = L::lane_of(L::empty_lanes(before));
    IndexRecord& record = table_.records_of(site.segment, group)[v * L::kLanes + lane];
    locks_.dirty(lock_of(site, place, group));
    std::uint64_t control = media().load(record.control);
    if (Control::live(control)) [[unlikely]] {  // No lane points to it, but one will before it is written over durably.
      control = Control::next_free(control);
      media().store(index_point::kResetRecord, record.control, control);
      media().flush(index_point::kResetRecord, &record);
      media().fence(index_point::kResetRecord);  // What a crash left in the line is not an entry.
    }
    media().store(index_point::kRecordFields, record.key[0], key.low);
    media().store(index_point::kRecordFields, record.key[1], key.high);
    media().store(index_point::kRecordFields, record.values[0][0], value.words()[0]);
    media().store(index_point::kRecordFields, record.values[0][1], value.words()[1]);
    media().store(index_point::kRecordLive, record.control,
                  Control::next_live(control, 0, value.tag(), key, value.words()));
    media().flush(index_point::kRecordLive, &record);
    media().store(index_point::kLane, word, L::with_lane(before, lane, place.fingerprint));
    media().flush(index_point::kLane, &word);
    locks_.owe(index_point::kPutFence);
  }

  /// Frees the lanes of both groups that point to no entry: crashes leave them. True: there were some.
  [[nodiscard]] bool scrub(const IndexPlace& place, const Site& site) {
    const std::uint64_t number = site.segment.number(place.segment);
    bool freed = false;
    for (const std::uint64_t group : {place.group, place.other}) {
      Word* words = table_.words_of(site.segment, group);
      const IndexRecord* records = table_.records_of(site.segment, group);
      for (unsigned v = 0; v < kGroupWords; ++v) {
        for (unsigned lane = 0; lane < L::kLanes; ++lane) {
          const std::uint64_t word = media().load(words[v]);
          const IndexLane there{group, v, lane, L::lane(word, lane), records[v * L::kLanes + lane]};
          IndexPlace seen;
          if (there.fingerprint == 0 || table_.is_entry(site.segment, number, there, seen)) continue;
          locks_.dirty(lock_of(site, place, group));
          media().store(index_point::kScrubLane, words[v], L::with_lane(word, lane, 0));
          freed = true;
        }
      }
    }
    return freed;
  }

  const Table& table_;
  const SegmentDirectory& directory_;
  WriterLocks<M> locks_;
};

}  // namespace dunnock::detail
