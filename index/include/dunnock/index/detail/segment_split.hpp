// Splitting a segment: half of its entries move to a new one.
//
//   1  take a slot for the new segment (may make a chunk)          nothing locked
//   2  lock all groups of the old one                              its writers wait, its readers do not
//   3  copy records and words of those that move; one fence        the new segment is complete, and unused
//   4  store its directory word; flush, fence                      the new segment exists
//   5  update the volatile directory                               readers that were in the old one look again
//   6  free in the old segment what has moved; unlock              no flush: after a crash the keys' hashes show it
//
// Threads: any number may split. Crashes: before 4 is durable nothing has happened; after it all has.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "dunnock/index/detail/group_locks.hpp"
#include "dunnock/index/detail/index_table.hpp"
#include "dunnock/index/detail/segment_directory.hpp"
#include "dunnock/index/detail/segment_slots.hpp"
#include "dunnock/index/index_format.hpp"
#include "dunnock/index/index_points.hpp"
#include "dunnock/pmem/media.hpp"

namespace dunnock::detail {

/// Of all threads.
struct SplitCounts {
  std::atomic<std::uint64_t> splits{0};
  std::atomic<std::uint64_t> ns_max{0};

  void add(std::chrono::steady_clock::duration time) noexcept {
    const auto ns = static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(time).count());
    splits.fetch_add(1, std::memory_order_relaxed);
    std::uint64_t most = ns_max.load(std::memory_order_relaxed);
    while (ns > most && !ns_max.compare_exchange_weak(most, ns, std::memory_order_relaxed)) {
    }
  }
};

template <Media M>
class SegmentSplit {
 public:
  using Table = IndexTable<M>;
  using L = typename Table::L;
  static constexpr unsigned kGroupWords = Table::kGroupWords;

  SegmentSplit(const Table& table, SegmentDirectory& directory, SegmentSlots& slots, const GroupLocks& locks) noexcept
      : table_(table), media_(table.media()), directory_(directory), slots_(slots), locks_(locks) {}

  /// Splits the segment that a key is in, if it is still that one. False: there is no room for another.
  [[nodiscard]] bool run(Segment segment, const IndexPlace& place, SplitCounts& counts) const {
    const auto start = std::chrono::steady_clock::now();
    if (segment.depth() == directory_.depth_max()) return false;
    std::uint64_t slot = 0;
    const std::byte* memory = slots_.take(media_, slot);
    const auto is_same = [&] { return directory_.segment_of(place.segment) == segment; };
    if (memory == nullptr) return !is_same();  // Another thread may have split it.

    const std::uint64_t number = segment.number(place.segment);
    const auto lock = [&](std::uint64_t group) { return table_.lock_of(locks_, number, group); };
    for (std::uint64_t group = 0; group < table_.groups(); ++group) locks_.acquire(lock(group), media_);
    const bool same = is_same();
    if (same) {
      const Segment to = Segment::at(memory, 0);
      const Plan plan = plan_of(segment, number);
      copy_movers(segment, to, plan);
      directory_.commit_split(media_, number, segment, to, slot);
      clean_up(segment, plan);
    }
    for (std::uint64_t group = 0; group < table_.groups(); ++group) locks_.release(lock(group));
    if (same) {
      counts.add(std::chrono::steady_clock::now() - start);
    } else {
      slots_.release(media_, slot);
    }
    return true;
  }

 private:
  /// What to do with a word of the old segment.
  struct WordPlan {
    std::uint8_t movers = 0;     // bit i: the entry of lane i moves
    std::uint8_t stayers = 0;    // bit i: it stays. Neither: no entry.
    std::uint8_t level_old = 0;  // how far its own entries are, of those that stay
    std::uint8_t level_new = 0;  // ... and of those that move
  };
  using Plan = std::vector<WordPlan>;

  /// Reads the segment, whose locks are held.
  [[nodiscard]] Plan plan_of(Segment segment, std::uint64_t number) const {
    Plan plan(table_.groups() * kGroupWords);
    table_.for_each_lane(segment, [&](const IndexLane& lane) {
      IndexPlace place;
      if (!table_.is_entry(segment, number, lane, place)) return;
      const bool moves = (place.segment >> segment.depth() & 1) != 0;
      WordPlan& here = plan[lane.group * kGroupWords + lane.word];
      (moves ? here.movers : here.stayers) |= static_cast<std::uint8_t>(1U << lane.lane);
      WordPlan& home = plan[place.group * kGroupWords + place.word];
      const unsigned level = lane.group != place.group ? L::far_level(lane.fingerprint)
                             : lane.word != place.word ? 1
                                                       : 0;
      std::uint8_t& needed = moves ? home.level_new : home.level_old;
      needed = std::max(needed, static_cast<std::uint8_t>(level));
    });
    return plan;
  }

  /// Every word of the new segment is written, so it does not matter what a crash left there. Records without a lane
  /// are not: SegmentWriter checks them.
  void copy_movers(Segment from, Segment to, const Plan& plan) const {
    for (std::uint64_t group = 0; group < table_.groups(); ++group) {
      const Word* words = table_.words_of(from, group);
      Word* new_words = table_.words_of(to, group);
      const IndexRecord* records = table_.records_of(from, group);
      IndexRecord* new_records = table_.records_of(to, group);
      for (unsigned v = 0; v < kGroupWords; ++v) {
        const WordPlan& one = plan[group * kGroupWords + v];
        const std::uint64_t value = media_.load(words[v]);
        std::uint64_t kept = 0;
        for (unsigned lane = 0; lane < L::kLanes; ++lane) {
          if ((one.movers >> lane & 1) == 0) continue;
          kept = L::with_lane(kept, lane, L::lane(value, lane));
          const IndexRecord& record = records[v * L::kLanes + lane];
          IndexRecord& copy = new_records[v * L::kLanes + lane];
          const std::uint64_t control = media_.load(record.control);
          const unsigned slot = Control::slot(control);
          media_.store(index_point::kSplitRecord, copy.key[0], media_.load(record.key[0]));
          media_.store(index_point::kSplitRecord, copy.key[1], media_.load(record.key[1]));
          media_.store(index_point::kSplitRecord, copy.values[slot][0], media_.load(record.values[slot][0]));
          media_.store(index_point::kSplitRecord, copy.values[slot][1], media_.load(record.values[slot][1]));
          media_.store(index_point::kSplitRecord, copy.control, control);
          media_.flush(index_point::kSplitRecord, &copy);
        }
        media_.store(index_point::kSplitWord, new_words[v], L::with_level(kept, one.level_new));
      }
      media_.flush(index_point::kSplitWord, new_words);
    }
    media_.fence(index_point::kSplitFence);  // The new segment is whole.
  }

  /// Frees what has moved.
  void clean_up(Segment segment, const Plan& plan) const {
    for (std::uint64_t group = 0; group < table_.groups(); ++group) {
      Word* words = table_.words_of(segment, group);
      IndexRecord* records = table_.records_of(segment, group);
      for (unsigned v = 0; v < kGroupWords; ++v) {
        const WordPlan& one = plan[group * kGroupWords + v];
        std::uint64_t value = L::with_level(media_.load(words[v]), one.level_old);
        for (unsigned lane = 0; lane < L::kLanes; ++lane) {
          if (L::lane(value, lane) == 0 || (one.stayers >> lane & 1) != 0) continue;
          value = L::with_lane(value, lane, 0);
          Word& control = records[v * L::kLanes + lane].control;
          if (const std::uint64_t before = media_.load(control); Control::live(before)) {
            media_.store(index_point::kCleanRecord, control, Control::next_free(before));
          }
        }
        media_.store(index_point::kCleanWord, words[v], value);
      }
    }
  }

  const Table& table_;
  const M& media_;
  SegmentDirectory& directory_;
  SegmentSlots& slots_;
  const GroupLocks& locks_;
};

}  // namespace dunnock::detail
