// CuckooFilter, part 2: single-key operations. Included by cuckoo_filter.hpp only.
//
// Every function that stores holds the stripes of the lines it stores to (Guard), from before the first store until
// the last fence. docs/concurrency.md has the proofs that the comments here refer to.
#pragma once

#include <thread>

namespace dunnock {

// ----- lookup -------------------------------------------------------------------------------------------------------

/// In a loop of lookups the processor overlaps as many as fit its instruction window, so this code is as short as
/// possible, and calls nothing: a foreign lane of the home bucket counts as a match too, which costs 0.02 % of false
/// positives at 95 % load.
template <unsigned kBits, Media M, FilterPolicy kPolicy>
[[gnu::always_inline]] inline bool CuckooFilter<kBits, M, kPolicy>::contains_place(const Place& place) const {
  const Word& home = table_.word_at(place.bucket);
  const std::uint64_t pattern = L::pattern(place.fingerprint);
  const std::uint64_t value = media_.load(home);
  if (L::match_quickly(value, pattern) != 0) return answer(Table::group_of(place), true);
  if (kPolicy.primacy && L::level(value) == 0) [[likely]]
    return answer(Table::group_of(place), false);
  // The order of the reads matters: home first (things move away from there), then the foreign lanes, then the level,
  // which any thread that takes a foreign copy meanwhile has raised before.
  const std::uint64_t fingerprint = pattern & L::kLaneMask;
  if constexpr (kPolicy.spill) {
    if (detail::any_foreign<kBits, kGroupWords>(media_, Table::first_of_group(&home), pattern)) {
      return answer(Table::group_of(place), true);
    }
  }
  const std::uint64_t again = is_taken(media_, filter_point::kLevelAgain) ? media_.load(home) : value;
  if (kPolicy.primacy && !L::is_far(again, fingerprint)) return answer(Table::group_of(place), false);
  const Place same{place.bucket, fingerprint};
  const std::uint64_t other = table_.other_group_of(same);
  return answer(Table::group_of(place), other, in_other(same, other, pattern));
}

template <unsigned kBits, Media M, FilterPolicy kPolicy>
[[gnu::always_inline]] inline bool CuckooFilter<kBits, M, kPolicy>::in_other(const Place& place, std::uint64_t other,
                                                                             std::uint64_t pattern) const {
  const std::uint64_t group = Table::group_of(place);
  if (detail::any_foreign<kBits, kGroupWords>(media_, table_.words_of(other), pattern)) return true;
  // Foreign lanes are read in ascending order of groups, the order in which erase removes equal fingerprints.
  return kPolicy.spill && other < group && is_taken(media_, filter_point::kOwnGroupAgain) &&
         detail::any_foreign<kBits, kGroupWords>(media_, table_.words_of(group), pattern);
}

/// An answer may be returned once everything that it depends on is durable.
template <unsigned kBits, Media M, FilterPolicy kPolicy>
bool CuckooFilter<kBits, M, kPolicy>::answer(std::uint64_t group, bool found) const {
  if constexpr (kReadersPersist) {
    if (is_taken(media_, filter_point::kNearStripe) && shared_->stripes.marked(stripe_of(group))) [[unlikely]]
      persist_read(group, group);
  }
  return found || !media_ok(media_);  // "No" may be wrong when something that was not acknowledged is lost.
}

template <unsigned kBits, Media M, FilterPolicy kPolicy>
bool CuckooFilter<kBits, M, kPolicy>::answer(std::uint64_t group, std::uint64_t other, bool found) const {
  if constexpr (kReadersPersist) {
    // The key's own stripe covers both lines: a thread that puts a copy of this key into its other group, or removes
    // one there, holds it too. What keys of the other group do there under only their own stripe may turn this key's no
    // into a yes, which promises nothing, but never a correct yes into a no.
    if (is_taken(media_, filter_point::kFarStripe) && shared_->stripes.marked(stripe_of(group))) [[unlikely]]
      persist_read(group, other);
  }
  return found || !media_ok(media_);
}

template <unsigned kBits, Media M, FilterPolicy kPolicy>
void CuckooFilter<kBits, M, kPolicy>::persist_read(std::uint64_t group, std::uint64_t other) const {
  media_.flush(filter_point::kReaderPersist, table_.words_of(group));
  if (other != group) media_.flush(filter_point::kReaderPersist, table_.words_of(other));
  media_.fence(filter_point::kReaderPersist);
  counts().reader_persists.fetch_add(1, std::memory_order_relaxed);
}

// ----- insert -------------------------------------------------------------------------------------------------------

template <unsigned kBits, Media M, FilterPolicy kPolicy>
[[gnu::always_inline]] inline bool CuckooFilter<kBits, M, kPolicy>::insert_place(const Place& place) {
  if constexpr (kIsReadOnly<M>) return false;
  if (!media_ok(media_)) [[unlikely]]  // After a fork, the thread that holds a stripe may not exist.
    return false;
  {
    if constexpr (kUseStripes) __builtin_prefetch(&table_.word_at(place.bucket), 1);  // while the stripe is fetched
    const Guard guard(shared_->stripes, media_, stripe_of(Table::group_of(place)));
    if (insert_in_group(place)) [[likely]]
      return media_ok(media_);
  }
  return insert_beyond_group(place);
}

/// Inserts durably in the key's own group. False: there is no room.
template <unsigned kBits, Media M, FilterPolicy kPolicy>
[[gnu::always_inline]] inline bool CuckooFilter<kBits, M, kPolicy>::insert_in_group(const Place& place) {
  const Placed placed = place_in_group(place, FlushNow{media_});
  if (placed == Placed::kNowhere) [[unlikely]]
    return false;
  media_.fence(placed == Placed::kHome ? filter_point::kHome : filter_point::kSpill);
  add(counts().items, std::int64_t{1});
  return true;
}

/// Inserts in the home bucket, otherwise in a neighbor. Stores and flushes; the caller fences.
template <unsigned kBits, Media M, FilterPolicy kPolicy>
template <class Flushes>
[[gnu::always_inline]] inline auto CuckooFilter<kBits, M, kPolicy>::place_in_group(const Place& place,
                                                                                   Flushes&& flushes) const -> Placed {
  Word& home = table_.word_at(place.bucket);
  const std::uint64_t value = media_.load(home);
  if (L::empty_lanes(value) != 0) [[likely]] {
    media_.store(filter_point::kHome, home, L::add_home(value, place.fingerprint));
    flushes.add(filter_point::kHome, &home);
    return Placed::kHome;
  }
  if constexpr (kPolicy.spill) return spill(place, value, flushes);
  return Placed::kNowhere;
}

template <unsigned kBits, Media M, FilterPolicy kPolicy>
template <class Flushes>
auto CuckooFilter<kBits, M, kPolicy>::spill(const Place& place, std::uint64_t home, Flushes&& flushes) const -> Placed {
  Word* group = table_.words_of(Table::group_of(place));
  const int v = roomiest(group, place.fingerprint);
  if (v < 0) return Placed::kNowhere;
  // Both stores hit one line and become durable in this order: a mark without a copy costs a comparison, a copy
  // without a mark would be lost.
  if (Table::reach(home, place.fingerprint) == Reach::kHome) {
    media_.store(filter_point::kSpillMark, table_.word_at(place.bucket), L::with_level(home, 1));
  }
  Word& target = group[v];
  media_.store(filter_point::kSpill, target, L::add_foreign(media_.load(target), place.fingerprint));
  flushes.add(filter_point::kSpill, &target);
  return Placed::kSpilled;
}

/// Marks durably in the home bucket that the fingerprint may be in the other group, before it is stored there.
template <unsigned kBits, Media M, FilterPolicy kPolicy>
void CuckooFilter<kBits, M, kPolicy>::mark_overflowed(const Place& place) const {
  Word& home = table_.word_at(place.bucket);
  const std::uint64_t value = media_.load(home);
  if (Table::reach(value, place.fingerprint) == Reach::kOtherGroup) return;
  media_.store(filter_point::kOverflowMark, home, Table::overflowed(value, place.fingerprint));
  media_.flush(filter_point::kOverflowMark, &home);
  media_.fence(filter_point::kOverflowMark);
}

template <unsigned kBits, Media M, FilterPolicy kPolicy>
template <class Flushes>
void CuckooFilter<kBits, M, kPolicy>::place_in_other(Word& target, std::uint64_t fingerprint, Flushes&& flushes) const {
  media_.store(filter_point::kOverflow, target, L::add_foreign(media_.load(target), fingerprint));
  flushes.add(filter_point::kOverflow, &target);
}

template <unsigned kBits, Media M, FilterPolicy kPolicy>
bool CuckooFilter<kBits, M, kPolicy>::insert_beyond_group(const Place& place) {
  // Each round either places the key, or frees a lane for it by at least one move, or gives up. Other writers may take
  // the freed lane; the bound only guards against losing that race forever.
  constexpr unsigned kRounds = 64;
  const std::uint64_t group = Table::group_of(place);
  const std::uint64_t other = table_.other_group_of(place);
  bool may_mark = !(kPolicy.primacy && kPolicy.lookahead);
  __builtin_prefetch(table_.words_of(other), 1);
  for (unsigned round = 0; round < kRounds; ++round) {
    {
      const Guard guard(shared_->stripes, media_, stripe_of(group), stripe_of(other));
      if (insert_in_group(place)) return media_ok(media_);
      Word* target = table_.words_of(other);
      may_mark = may_mark || reach_of(place) == Reach::kOtherGroup;
      const int v = may_mark ? roomiest(target, place.fingerprint) : -1;
      if (v >= 0) {
        mark_overflowed(place);
        place_in_other(target[v], place.fingerprint, FlushNow{media_});
        media_.fence(filter_point::kOverflow);
        add(counts().items, std::int64_t{1});
        add(counts().overflows, std::uint64_t{1});
        return media_ok(media_);
      }
    }
    if (!may_mark) {
      may_mark = true;  // If there is no other way.
      (void)make_room_unmarked(place);
    } else if (!make_room(place, other)) {
      break;
    }
  }
  add(counts().refusals, std::uint64_t{1});
  return false;
}

/// Makes the first possible move that marks no other bucket. False: there is none.
template <unsigned kBits, Media M, FilterPolicy kPolicy>
bool CuckooFilter<kBits, M, kPolicy>::make_room_unmarked(const Place& place) {
  const detail::UnmarkedMoves moves = search().unmarked_moves(place);
  for (unsigned i = 0; i < moves.count; ++i) {
    if (roomiest(table_.words_of(moves.list[i].target_group), 0) < 0) continue;
    counts().kick_groups_read.fetch_add(i + 1, std::memory_order_relaxed);
    return apply(moves.list[i]);
  }
  counts().kick_groups_read.fetch_add(moves.count, std::memory_order_relaxed);
  return false;
}

/// Makes room by kicks. False: no path was found and nothing was changed. True: at least one step was tried, so look
/// again.
template <unsigned kBits, Media M, FilterPolicy kPolicy>
bool CuckooFilter<kBits, M, kPolicy>::make_room(const Place& place, std::uint64_t other) {
  std::vector<detail::KickMove> path;
  const bool found =
      kPolicy.lookahead ? find_path(place, other, path) : search().find_path_randomly(place, other, path);
  if (!found) return false;
  // From the far end: every single move leaves a correct filter, so a crash or a lost race in between is fine.
  for (const detail::KickMove& move : path) {
    if (!apply(move)) break;
  }
  return true;
}

template <unsigned kBits, Media M, FilterPolicy kPolicy>
bool CuckooFilter<kBits, M, kPolicy>::find_path(const Place& place, std::uint64_t other,
                                                std::vector<detail::KickMove>& path) const {
  std::uint64_t groups_read = 0;
  const bool found = search().find_path(place, other, path, groups_read);
  counts().kick_groups_read.fetch_add(groups_read, std::memory_order_relaxed);
  return found;
}

/// Makes one move, if it is still possible.
template <unsigned kBits, Media M, FilterPolicy kPolicy>
bool CuckooFilter<kBits, M, kPolicy>::apply(const detail::KickMove& move) {
  const std::uint64_t source_group = move.source / kGroupWords;
  const Guard guard(shared_->stripes, media_, stripe_of(source_group), stripe_of(move.target_group));
  const std::uint64_t source = media_.load(table_.word_at(move.source));
  const std::uint64_t lanes = L::match_home(source, L::pattern(move.fingerprint));
  if (lanes == 0) return false;
  const int v = roomiest(table_.words_of(move.target_group), move.fingerprint);
  if (v < 0) return false;
  const std::uint64_t target = move.target_group * kGroupWords + static_cast<unsigned>(v);
  std::uint64_t source_after = L::remove_home(source, L::lane_of(lanes));
  if constexpr (kPolicy.primacy) source_after = Table::overflowed(source_after, move.fingerprint);
  shared_->log.move(
      media_, table_,
      {move.source, source_after, target, L::add_foreign(media_.load(table_.word_at(target)), move.fingerprint)});
  add(counts().kicks, std::uint64_t{1});
  return true;
}

// ----- erase --------------------------------------------------------------------------------------------------------

template <unsigned kBits, Media M, FilterPolicy kPolicy>
[[gnu::always_inline]] inline bool CuckooFilter<kBits, M, kPolicy>::erase_place(const Place& place) {
  if constexpr (kIsReadOnly<M>) return false;
  if (!media_ok(media_)) [[unlikely]]
    return false;
  const std::uint64_t pattern = L::pattern(place.fingerprint);
  {
    if constexpr (kUseStripes) __builtin_prefetch(&table_.word_at(place.bucket), 1);
    const Guard guard(shared_->stripes, media_, stripe_of(Table::group_of(place)));
    if (erase_in_group(place, pattern)) return media_ok(media_);
    if (reach_of(place) != Reach::kOtherGroup) return false;
  }
  return erase_beyond_group(place);
}

/// Erases durably from the home bucket, or from the foreign lanes of its own group if the key can't be further away.
/// False: there was no copy, or there may be one in the other group.
template <unsigned kBits, Media M, FilterPolicy kPolicy>
[[gnu::always_inline]] inline bool CuckooFilter<kBits, M, kPolicy>::erase_in_group(const Place& place,
                                                                                   std::uint64_t pattern) {
  bool erased = erase_home(place, pattern, FlushNow{media_});
  if (kPolicy.spill && !erased && reach_of(place) == Reach::kGroup) {
    Word* group = table_.words_of(Table::group_of(place));
    const int v = first_foreign(group, pattern);
    if (v >= 0) {
      erase_foreign(group[v], pattern);
      erased = true;
    }
  }
  if (!erased) return false;
  media_.fence(filter_point::kErase);
  add(counts().items, std::int64_t{-1});
  return true;
}

template <unsigned kBits, Media M, FilterPolicy kPolicy>
template <class Flushes>
bool CuckooFilter<kBits, M, kPolicy>::erase_home(const Place& place, std::uint64_t pattern, Flushes&& flushes) const {
  Word& home = table_.word_at(place.bucket);
  const std::uint64_t value = media_.load(home);
  const std::uint64_t lanes = L::match_home(value, pattern);
  if (lanes == 0) return false;
  media_.store(filter_point::kErase, home, L::remove_home(value, L::lane_of(lanes)));
  flushes.add(filter_point::kErase, &home);
  return true;
}

/// The first word of the group with the fingerprint in a foreign lane, or -1.
template <unsigned kBits, Media M, FilterPolicy kPolicy>
[[gnu::always_inline]] inline int CuckooFilter<kBits, M, kPolicy>::first_foreign(const Word* group,
                                                                                 std::uint64_t pattern) const {
  for (unsigned v = 0; v < kGroupWords; ++v) {
    if (L::match_foreign(media_.load(group[v]), pattern) != 0) return static_cast<int>(v);
  }
  return -1;
}

template <unsigned kBits, Media M, FilterPolicy kPolicy>
void CuckooFilter<kBits, M, kPolicy>::erase_foreign(Word& word, std::uint64_t pattern) const {
  const std::uint64_t value = media_.load(word);
  const std::uint64_t lanes = L::match_foreign(value, pattern);
  media_.store(filter_point::kErase, word, L::remove_foreign(value, L::lane_of(lanes)));
  media_.flush(filter_point::kErase, &word);
}

/// Erases with both groups locked. Equal fingerprints in the foreign lanes of the two groups are one pool of
/// indistinguishable copies; the first in ascending order is removed. If there is a copy in each group, the one removed
/// may have been another key's that stayed in the lower group so far: buckets there that have spilled now also say
/// that the fingerprint may have overflowed, so that key finds the copy in the higher group.
template <unsigned kBits, Media M, FilterPolicy kPolicy>
bool CuckooFilter<kBits, M, kPolicy>::erase_beyond_group(const Place& place) {
  const std::uint64_t pattern = L::pattern(place.fingerprint);
  const std::uint64_t group = Table::group_of(place);
  const std::uint64_t other = table_.other_group_of(place);
  const Guard guard(shared_->stripes, media_, stripe_of(group), stripe_of(other));
  if (erase_in_group(place, pattern)) return media_ok(media_);  // It came home while no thread held the stripes.
  Word* low = table_.words_of(kPolicy.spill ? std::min(group, other) : other);
  Word* high = table_.words_of(kPolicy.spill ? std::max(group, other) : other);
  const int in_low = first_foreign(low, pattern);
  const int in_high = high == low ? -1 : first_foreign(high, pattern);
  if (in_low >= 0) {
    if (in_high >= 0 && kPolicy.primacy) {
      for (unsigned v = 0; v < kGroupWords; ++v) {
        const std::uint64_t value = media_.load(low[v]);
        // Same line as the erase below, and before it.
        if (L::reach(value, place.fingerprint) != Reach::kGroup) continue;
        media_.store(filter_point::kEraseMarks, low[v], Table::overflowed(value, place.fingerprint));
      }
    }
    erase_foreign(low[in_low], pattern);
  } else if (in_high >= 0) {
    erase_foreign(high[in_high], pattern);
  } else {
    return false;
  }
  media_.fence(filter_point::kErase);
  add(counts().items, std::int64_t{-1});
  return media_ok(media_);
}

}  // namespace dunnock
