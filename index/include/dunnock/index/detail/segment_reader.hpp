// Looking a key up in a segment while writers change it.
//
// A get waits for two lines, one after the other. Gets in a row overlap as far as the processor's window of
// instructions reaches (256 on Zen 3). A hit takes 232 of them in plain memory; at 264 it took a third more time. So
// what a hit needs is inlined into one function, and what it does not need stays out of it (read_beyond). What stays
// out is static: a reader whose address is taken would be in memory.
//
// Threads: any number; lock-free. Crashes: what is read may not be durable yet; see is_unsettled and persist_read.
#pragma once

#include <array>
#include <cstdint>

#include "dunnock/index/detail/group_locks.hpp"
#include "dunnock/index/detail/index_table.hpp"
#include "dunnock/index/index_format.hpp"
#include "dunnock/index/index_points.hpp"
#include "dunnock/index/index_types.hpp"
#include "dunnock/pmem/media.hpp"

namespace dunnock::detail {

template <Media M>
class SegmentReader {
 public:
  using Table = IndexTable<M>;
  using L = typename Table::L;
  static constexpr unsigned kGroupWords = Table::kGroupWords;
  /// What one get has seen so far.
  struct Reading {
    GetResult result;
    bool far = false;  // the other group, too
  };

  SegmentReader(const Table& table, Segment segment, const IndexPlace& place) noexcept
      : table_(table),
        media_(table.media()),
        segment_(segment),
        place_(place),
        pattern_(L::pattern(place.fingerprint)) {}

  [[gnu::always_inline]] void read(const IndexKey& key, Reading& reading) const {
    const Word* words = table_.words_of(segment_, place_.group);
    const IndexRecord* records = table_.records_of(segment_, place_.group);
    const std::uint64_t home = media_.load(words[place_.word]);
    if (read_word(words[place_.word], home, records + place_.word * L::kLanes, key, reading)) return;
    if (L::level(home) != 0) [[unlikely]]
      read_beyond(table_, segment_, place_, home, key, reading);
  }

  /// Does a lane hold the key's fingerprint? `far`: could it be in the other group?
  [[nodiscard]] bool has_fingerprint(bool& far) const {
    const auto in_group = [&](std::uint64_t group) {
      const Word* words = table_.words_of(segment_, group);
      std::uint64_t lanes = 0;
      for (unsigned v = 0; v < kGroupWords; ++v) lanes |= L::match_quickly(media_.load(words[v]), pattern_);
      return lanes != 0;
    };
    const std::uint64_t home = media_.load(table_.home_word(segment_, place_));
    far = L::is_far(home, place_.fingerprint);
    return L::match_quickly(home, pattern_) != 0 || (L::level(home) != 0 && in_group(place_.group)) ||
           (far && in_group(place_.other));
  }

  /// May what was read not be durable yet? `far`: the other group was read, too.
  [[nodiscard]] bool is_unsettled(const GroupLocks& locks, bool far) const noexcept {
    const auto is_dirty = [&](std::uint64_t group) {
      return locks.is_dirty(table_.lock_of(locks, segment_.number(place_.segment), group));
    };
    return (is_taken(media_, index_point::kOwnGroupDirty) && is_dirty(place_.group)) ||
           (far && is_taken(media_, index_point::kOtherGroupDirty) && is_dirty(place_.other));
  }

  /// Makes durable what a get has read while a writer was active: the fingerprint lines, and the records that they
  /// point to for this fingerprint. (A record whose lane has gone since then was durable before: its lock was taken
  /// again.)
  static void persist_read(const Table& table, Segment segment, const IndexPlace& place, bool far) {
    const M& media = table.media();
    const std::uint64_t pattern = L::pattern(place.fingerprint);
    const auto persist_group = [&](std::uint64_t group) {
      const Word* words = table.words_of(segment, group);
      const IndexRecord* records = table.records_of(segment, group);
      for (unsigned v = 0; v < kGroupWords; ++v) {
        const std::uint64_t word = media.load(words[v]);
        for (std::uint64_t lanes = L::zero_lanes(word ^ pattern); lanes != 0; lanes &= lanes - 1)
          media.flush(index_point::kReadPersist, &records[v * L::kLanes + L::lane_of(lanes)]);
      }
      media.flush(index_point::kReadPersist, words);
    };
    persist_group(place.group);
    if (far && is_taken(media, index_point::kPersistOther)) persist_group(place.other);
    media.fence(index_point::kReadPersist);  // What was read is durable before it is returned.
  }

 private:
  /// True: the search is over. Starts again only when the record has changed under it. `is_still_there()`: does the
  /// lane still lead here?
  template <class IsStillThere>
  [[nodiscard, gnu::always_inline]] bool read_record(const IndexRecord& record, const IndexKey& key, Reading& reading,
                                                     const IsStillThere& is_still_there) const {
    std::uint64_t control = media_.load(record.control);
    while (Control::live(control)) {
      const IndexKey stored = table_.key_of(record);
      const std::array<std::uint64_t, 2> value = table_.value_of(record, Control::slot(control));
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
      // The record of a lane that was emptied since then may be that of a put in progress. If the lane is occupied
      // now, the entry was there after it was read.
      if (is_taken(media_, index_point::kLaneAgain) && !is_still_there()) [[unlikely]]
        return false;
      reading.result = {GetState::kFound, IndexValue(value, Control::tag(control))};
      return true;
    }
    return false;
  }

  /// The lanes of one word that hold the fingerprint, and their records. `seen`: what was loaded from `word`.
  [[nodiscard, gnu::always_inline]] bool read_word(const Word& word, std::uint64_t seen, const IndexRecord* records,
                                                   const IndexKey& key, Reading& reading) const {
    if (L::match_quickly(seen, pattern_) == 0) return false;
    // Exactly, now: the record of an empty lane may be that of a put in progress, or of one that a crash has
    // interrupted.
    for (std::uint64_t lanes = L::zero_lanes(seen ^ pattern_); lanes != 0; lanes &= lanes - 1) {
      const std::uint64_t lane = lanes & (0 - lanes);
      const auto is_still_there = [&] { return (L::zero_lanes(media_.load(word) ^ pattern_) & lane) != 0; };
      if (read_record(records[L::lane_of(lanes)], key, reading, is_still_there)) return true;
    }
    return false;
  }

  /// What is not in its home word: the other words of its group, then the other group.
  [[gnu::noinline]] static void read_beyond(const Table& table, Segment segment, const IndexPlace& place,
                                            std::uint64_t home, const IndexKey& key, Reading& reading) {
    const SegmentReader reader(table, segment, place);
    const auto read_group = [&](std::uint64_t group, unsigned but) {
      const Word* words = table.words_of(segment, group);
      const IndexRecord* records = table.records_of(segment, group);
      for (unsigned v = 0; v < kGroupWords; ++v) {
        if (v != but && reader.read_word(words[v], table.media().load(words[v]), records + v * L::kLanes, key, reading))
          return true;
      }
      return false;
    };
    if (read_group(place.group, place.word) || !L::is_far(home, place.fingerprint)) return;
    reading.far = true;
    (void)read_group(place.other, kGroupWords);
  }

  const Table& table_;
  const M& media_;
  Segment segment_;
  const IndexPlace& place_;
  std::uint64_t pattern_;
};

}  // namespace dunnock::detail
