// Part of KvIndex: splitting a segment.
//
//   1  take a slot for the new segment (may make a chunk)          nothing locked
//   2  lock all groups of the old one                              its writers wait, its readers do not
//   3  copy records and words of those that move; one fence        the new segment is complete, and unused
//   4  store its directory word; flush, fence                      the new segment exists
//   5  update the volatile directory                               readers that were in the old one look again
//   6  free in the old segment what has moved; unlock              no flush: after a crash the keys' hashes show it
#pragma once

#include <chrono>

namespace dunnock {

/// What to do with each word of the old segment.
template <Media M>
struct KvIndex<M>::SplitPlan {
  struct OneWord {
    std::uint8_t movers = 0;     // bit i: the entry of lane i moves
    std::uint8_t stayers = 0;    // bit i: it stays. Neither: no entry.
    std::uint8_t level_old = 0;  // how far its own entries are, of those that stay
    std::uint8_t level_new = 0;  // ... and of those that move
  };
  std::vector<OneWord> words;
};

template <Media M>
void KvIndex<M>::plan_split(Segment segment, std::uint64_t number, SplitPlan& plan) const {
  plan.words.assign(groups_ * kGroupWords, {});
  for_each_lane(segment,
                [&](std::uint64_t group, unsigned v, std::uint64_t value, unsigned lane, const IndexRecord& record) {
                  Place place;
                  const std::uint64_t fingerprint = L::lane(value, lane);
                  if (!is_entry(segment, number, group, fingerprint, record, place)) return;
                  const bool moves = (place.segment >> segment.depth() & 1) != 0;
                  auto& here = plan.words[group * kGroupWords + v];
                  (moves ? here.movers : here.stayers) |= static_cast<std::uint8_t>(1U << lane);
                  auto& home = plan.words[place.group * kGroupWords + place.word];
                  const unsigned level = group != place.group ? L::far_level(fingerprint) : v != place.word ? 1 : 0;
                  std::uint8_t& needed = moves ? home.level_new : home.level_old;
                  needed = std::max(needed, static_cast<std::uint8_t>(level));
                });
}

/// Every word of the new segment is written, so it does not matter what a crash left there. Records without a lane
/// are not: fill() checks them.
template <Media M>
void KvIndex<M>::copy_movers(Segment from, Segment to, const SplitPlan& plan) const {
  for (std::uint64_t group = 0; group < groups_; ++group) {
    const Word* words = words_of(from, group);
    Word* new_words = words_of(to, group);
    const IndexRecord* records = records_of(from, group);
    IndexRecord* new_records = records_of(to, group);
    for (unsigned v = 0; v < kGroupWords; ++v) {
      const auto& one = plan.words[group * kGroupWords + v];
      const std::uint64_t value = media_.load(words[v]);
      std::uint64_t kept = 0;
      for (unsigned lane = 0; lane < L::kLanes; ++lane) {
        if ((one.movers >> lane & 1) == 0) continue;
        kept = L::with_lane(kept, lane, L::lane(value, lane));
        const IndexRecord& record = records[v * L::kLanes + lane];
        IndexRecord& copy = new_records[v * L::kLanes + lane];
        const std::uint64_t control = media_.load(record.control);
        const unsigned slot = detail::Control::slot(control);
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

template <Media M>
void KvIndex<M>::commit_split(std::uint64_t number, Segment from, Segment to, std::uint64_t slot) {
  const GrowthLock growth(*this);
  Shared& shared = *shared_;
  const unsigned depth = from.depth();
  const std::uint64_t new_number = number + (1ULL << depth);
  const Directory* directory = shared.directory.load(std::memory_order_relaxed);
  if (depth == directory->depth) {
    media_.store(index_point::kDepth, state().depth, depth + 1);
    media_.flush(index_point::kDepth, &state());
    media_.fence(index_point::kDepth);  // Recovery reads that far.
    auto twice = std::make_unique<Directory>(depth + 1);
    for (std::uint64_t i = 0; i <= twice->mask(); ++i) {
      twice->entries[i].store(directory->entries[i & directory->mask()].load(std::memory_order_relaxed),
                              std::memory_order_relaxed);
    }
    directory = twice.get();
    shared.directory.store(directory, std::memory_order_release);  // Partner: segment_of().
    shared.directories.push_back(std::move(twice));
  }
  media_.store(index_point::kSplitCommit, directory_at(new_number), directory_word(new_number, slot));
  media_.flush(index_point::kSplitCommit, &directory_at(new_number));
  media_.fence(index_point::kSplitCommit);  // The new segment exists.

  // A thread that reads a key's entry here finds one segment or the other, and none has written to the new one yet
  // under a key whose directory entry is still the old one.
  for (std::uint64_t i = number; i <= directory->mask(); i += 1ULL << depth) {
    const Segment now = (i >> depth & 1) != 0 ? to : from;
    directory->entries[i].store(reinterpret_cast<std::uintptr_t>(now.base()) | (depth + 1), std::memory_order_release);
  }
  ++shared.segments;
}

template <Media M>
void KvIndex<M>::clean_up(Segment segment, const SplitPlan& plan) const {
  for (std::uint64_t group = 0; group < groups_; ++group) {
    Word* words = words_of(segment, group);
    IndexRecord* records = records_of(segment, group);
    for (unsigned v = 0; v < kGroupWords; ++v) {
      const auto& one = plan.words[group * kGroupWords + v];
      std::uint64_t value = L::with_level(media_.load(words[v]), one.level_old);
      for (unsigned lane = 0; lane < L::kLanes; ++lane) {
        if (L::lane(value, lane) == 0 || (one.stayers >> lane & 1) != 0) continue;
        value = L::with_lane(value, lane, 0);
        Word& control = records[v * L::kLanes + lane].control;
        if (const std::uint64_t before = media_.load(control); detail::Control::live(before)) {
          media_.store(index_point::kCleanRecord, control, detail::Control::next_free(before));
        }
      }
      media_.store(index_point::kCleanWord, words[v], value);
    }
  }
}

/// A slot for one more segment, and its memory. Null: there is none, and no memory for one.
template <Media M>
std::byte* KvIndex<M>::take_slot(std::uint64_t& slot) {
  const GrowthLock growth(*this);
  Shared& shared = *shared_;
  if (!shared.free_slots.empty()) {
    slot = shared.free_slots.back();
    shared.free_slots.pop_back();
    return memory_at(slot);
  }
  if (shared.next_slot == shared.chunk_starts.back() && !add_chunk(true)) return nullptr;
  slot = shared.next_slot++;
  return memory_at(slot);
}

template <Media M>
void KvIndex<M>::give_slot_back(std::uint64_t slot) {
  const GrowthLock growth(*this);
  shared_->free_slots.push_back(slot);
}

/// Splits the segment that a key is in, if it is still that one. False: there is no room for another.
template <Media M>
bool KvIndex<M>::split(Segment segment, const Place& place) {
  const auto start = std::chrono::steady_clock::now();
  if (segment.depth() == directory_depth_max_) return false;
  std::uint64_t slot = 0;
  std::byte* memory = take_slot(slot);
  if (memory == nullptr) return !(segment_of(place) == segment);  // Another thread may have split it.

  Shared& shared = *shared_;
  const std::uint64_t number = segment.number(place.segment);
  const auto lock = [&](std::uint64_t group) { return shared.locks.of(number * groups_ + group); };
  for (std::uint64_t group = 0; group < groups_; ++group) shared.locks.acquire(lock(group), media_);
  const bool same = segment_of(place) == segment;
  if (same) {
    SplitPlan plan;
    const Segment to{reinterpret_cast<std::uintptr_t>(memory)};
    plan_split(segment, number, plan);
    copy_movers(segment, to, plan);
    commit_split(number, segment, to, slot);
    clean_up(segment, plan);
  }
  for (std::uint64_t group = 0; group < groups_; ++group) shared.locks.release(lock(group));
  if (!same) {
    give_slot_back(slot);
    return true;
  }
  const auto ns = static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - start).count());
  shared.splits.fetch_add(1, std::memory_order_relaxed);
  std::uint64_t most = shared.split_ns_max.load(std::memory_order_relaxed);
  while (ns > most && !shared.split_ns_max.compare_exchange_weak(most, ns, std::memory_order_relaxed)) {
  }
  return true;
}

}  // namespace dunnock
