// CuckooFilter, part 2: single-key operations. Included by cuckoo_filter.hpp only.
//
// Every function that stores holds the stripes of the lines it stores to (Guard), from before the first store until
// the last fence. docs/concurrency.md has the proofs that the comments here refer to.
#pragma once

#include <thread>

#include "dunnock/filter/cuckoo_filter.hpp"

namespace dunnock {

// ----- counts -------------------------------------------------------------------------------------------------------

template <unsigned kBits, Media M, FilterPolicy kPolicy>
auto CuckooFilter<kBits, M, kPolicy>::shard() const noexcept -> Shard& {
  if constexpr (kPolicy.multi_writer) {
    return shared_->counts.of_thread();
  } else {
    return shared_->counts.only();
  }
}

template <unsigned kBits, Media M, FilterPolicy kPolicy>
template <class T>
void CuckooFilter<kBits, M, kPolicy>::count(std::atomic<T>& counter, T by) const noexcept {
  if constexpr (kPolicy.multi_writer) {
    counter.fetch_add(by, std::memory_order_relaxed);
  } else {
    counter.store(counter.load(std::memory_order_relaxed) + by, std::memory_order_relaxed);
  }
}

// ----- lookup -------------------------------------------------------------------------------------------------------

/// In a loop of lookups the processor overlaps as many as fit its instruction window, so this code is as short as
/// possible, and calls nothing: a foreign lane of the home bucket counts as a match too, which costs 0.02 % of false
/// positives at 95 % load.
template <unsigned kBits, Media M, FilterPolicy kPolicy>
[[gnu::always_inline]] inline bool CuckooFilter<kBits, M, kPolicy>::contains_place(const Place& place) const {
  const Word& home = word_at(place.bucket);
  const std::uint64_t pattern = L::pattern(place.fingerprint);
  const std::uint64_t value = media_.load(home);
  if (L::match_quickly(value, pattern) != 0) return answer(group_of(place), true);
  if (kPolicy.primacy && L::level(value) == 0) [[likely]]
    return answer(group_of(place), false);
  // The order of the reads matters: home first (things move away from there), then the foreign lanes, then the level,
  // which any thread that takes a foreign copy meanwhile has raised before.
  const std::uint64_t fingerprint = pattern & L::kLaneMask;
  if constexpr (kPolicy.spill) {
    if (detail::any_foreign<kBits, kGroupWords>(media_, first_of_group(&home), pattern)) {
      return answer(group_of(place), true);
    }
  }
  const std::uint64_t again = is_taken(media_, filter_point::kLevelAgain) ? media_.load(home) : value;
  if (kPolicy.primacy && !L::is_far(again, fingerprint)) return answer(group_of(place), false);
  const Place same{place.bucket, fingerprint};
  const std::uint64_t other = other_group_of(same);
  return answer(group_of(place), other, in_other(same, other, pattern));
}

template <unsigned kBits, Media M, FilterPolicy kPolicy>
[[gnu::always_inline]] inline bool CuckooFilter<kBits, M, kPolicy>::in_other(const Place& place, std::uint64_t other,
                                                                             std::uint64_t pattern) const {
  const std::uint64_t group = group_of(place);
  if (detail::any_foreign<kBits, kGroupWords>(media_, words_of(other), pattern)) return true;
  // Foreign lanes are read in ascending order of groups, the order in which erase removes equal fingerprints.
  return kPolicy.spill && other < group && is_taken(media_, filter_point::kOwnGroupAgain) &&
         detail::any_foreign<kBits, kGroupWords>(media_, words_of(group), pattern);
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
  media_.flush(filter_point::kReaderPersist, words_of(group));
  if (other != group) media_.flush(filter_point::kReaderPersist, words_of(other));
  media_.fence(filter_point::kReaderPersist);
  shard().reader_persists.fetch_add(1, std::memory_order_relaxed);
}

// ----- insert -------------------------------------------------------------------------------------------------------

template <unsigned kBits, Media M, FilterPolicy kPolicy>
[[gnu::always_inline]] inline bool CuckooFilter<kBits, M, kPolicy>::insert_place(const Place& place) {
  if constexpr (kIsReadOnly<M>) return false;
  if (!media_ok(media_)) [[unlikely]]  // After a fork, the thread that holds a stripe may not exist.
    return false;
  {
    if constexpr (kUseStripes) __builtin_prefetch(&word_at(place.bucket), 1);  // while the stripe is fetched
    const Guard guard(shared_->stripes, media_, stripe_of(group_of(place)));
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
  count(shard().items, std::int64_t{1});
  return true;
}

/// Inserts in the home bucket, otherwise in a neighbor. Stores and flushes; the caller fences.
template <unsigned kBits, Media M, FilterPolicy kPolicy>
template <class Flushes>
[[gnu::always_inline]] inline auto CuckooFilter<kBits, M, kPolicy>::place_in_group(const Place& place,
                                                                                   Flushes&& flushes) const -> Placed {
  Word& home = word_at(place.bucket);
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
  Word* group = words_of(group_of(place));
  const int v = roomiest(group, place.fingerprint);
  if (v < 0) return Placed::kNowhere;
  // Both stores hit one line and become durable in this order: a mark without a copy costs a comparison, a copy
  // without a mark would be lost.
  if (reach(home, place.fingerprint) == Reach::kHome) {
    media_.store(filter_point::kSpillMark, word_at(place.bucket), L::with_level(home, 1));
  }
  Word& target = group[v];
  media_.store(filter_point::kSpill, target, L::add_foreign(media_.load(target), place.fingerprint));
  flushes.add(filter_point::kSpill, &target);
  return Placed::kSpilled;
}

/// Marks durably in the home bucket that the fingerprint may be in the other group, before it is stored there.
template <unsigned kBits, Media M, FilterPolicy kPolicy>
void CuckooFilter<kBits, M, kPolicy>::mark_overflowed(const Place& place) const {
  Word& home = word_at(place.bucket);
  const std::uint64_t value = media_.load(home);
  if (reach(value, place.fingerprint) == Reach::kOtherGroup) return;
  media_.store(filter_point::kOverflowMark, home, overflowed(value, place.fingerprint));
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
  const std::uint64_t group = group_of(place);
  const std::uint64_t other = other_group_of(place);
  bool may_mark = !(kPolicy.primacy && kPolicy.lookahead);
  __builtin_prefetch(words_of(other), 1);
  for (unsigned round = 0; round < kRounds; ++round) {
    {
      const Guard guard(shared_->stripes, media_, stripe_of(group), stripe_of(other));
      if (insert_in_group(place)) return media_ok(media_);
      Word* target = words_of(other);
      may_mark = may_mark || reach(media_.load(word_at(place.bucket)), place.fingerprint) == Reach::kOtherGroup;
      const int v = may_mark ? roomiest(target, place.fingerprint) : -1;
      if (v >= 0) {
        mark_overflowed(place);
        place_in_other(target[v], place.fingerprint, FlushNow{media_});
        media_.fence(filter_point::kOverflow);
        count(shard().items, std::int64_t{1});
        count(shard().overflows, std::uint64_t{1});
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
  count(shard().refusals, std::uint64_t{1});
  return false;
}

/// Finds moves that would make room for a key in its group without marking another bucket as overflowed (which costs
/// every later lookup of half its fingerprints a second line): they move a fingerprint of the group whose bucket is
/// marked already, or an even one if the key is odd. Prefetches the lines of their targets.
template <unsigned kBits, Media M, FilterPolicy kPolicy>
auto CuckooFilter<kBits, M, kPolicy>::unmarked_moves(const Place& place) const -> UnmarkedMoves {
  UnmarkedMoves moves;
  const std::uint64_t group = group_of(place);
  const Word* words = words_of(group);
  const auto own = static_cast<unsigned>(place.bucket % kGroupWords);
  const auto add = [&](std::uint64_t value, unsigned v, std::uint64_t lanes) {
    if (v != own && (!kPolicy.spill || L::foreign_count(value) == L::kForeignMax)) return;
    for (; lanes != 0 && moves.count < moves.list.size(); lanes &= lanes - 1) {
      const std::uint64_t fingerprint = L::lane(value, L::lane_of(lanes));
      const std::uint64_t target = L::other_group(group, fingerprint, groups_);
      if (target == group) continue;
      __builtin_prefetch(words_of(target), 1);
      moves.list[moves.count++] = {group * kGroupWords + v, target, fingerprint, kNoParent};
    }
  };
  for (unsigned i = 0; i < kGroupWords; ++i) {
    const unsigned v = (own + i) % kGroupWords;
    const std::uint64_t value = media_.load(words[v]);
    if (L::level(value) < 2) continue;
    add(value, v, L::level(value) == 2 ? L::even_home_lanes(value) : L::occupied_home_lanes(value));
  }
  if (L::far_level(place.fingerprint) == 3 && L::level(media_.load(words[own])) < 2) {
    for (unsigned i = 0; i < kGroupWords && moves.count < moves.list.size(); ++i) {
      const unsigned v = (own + i) % kGroupWords;
      const std::uint64_t value = media_.load(words[v]);
      if (L::level(value) < 2) add(value, v, L::even_home_lanes(value));
    }
  }
  return moves;
}

/// Makes the first of these moves that is possible. False: none is.
template <unsigned kBits, Media M, FilterPolicy kPolicy>
bool CuckooFilter<kBits, M, kPolicy>::make_room_unmarked(const Place& place) {
  const UnmarkedMoves moves = unmarked_moves(place);
  for (unsigned i = 0; i < moves.count; ++i) {
    if (roomiest(words_of(moves.list[i].target_group), 0) < 0) continue;
    shard().kick_groups_read.fetch_add(i + 1, std::memory_order_relaxed);
    return apply(moves.list[i]);
  }
  shard().kick_groups_read.fetch_add(moves.count, std::memory_order_relaxed);
  return false;
}

/// Makes room by kicks. False: no path was found and nothing was changed. True: at least one step was tried, so look
/// again.
template <unsigned kBits, Media M, FilterPolicy kPolicy>
bool CuckooFilter<kBits, M, kPolicy>::make_room(const Place& place, std::uint64_t other) {
  std::vector<Move> path;
  const bool found = kPolicy.lookahead ? find_path(place, other, path) : find_path_randomly(place, other, path);
  if (!found) return false;
  // From the far end: every single move leaves a correct filter, so a crash or a lost race in between is fine.
  for (const Move& move : path) {
    if (!apply(move)) break;
  }
  return true;
}

/// Breadth first over home fingerprints that could move forward, until one is found whose other group has room.
/// `path` receives the moves, last one (into the free lane) first. Reads without locks; apply() checks each step.
template <unsigned kBits, Media M, FilterPolicy kPolicy>
bool CuckooFilter<kBits, M, kPolicy>::find_path(const Place& place, std::uint64_t other,
                                                std::vector<Move>& path) const {
  // Groups read before the filter counts as full; a small table has no more moves than slots. Bench: load at refusal.
  const std::size_t moves_max = std::min<std::uint64_t>(2048, slots());
  constexpr std::size_t kGroupsAhead = 6;  // Groups prefetched ahead of the one being examined.
  std::vector<Move> moves;  // Not thread-local: simulated threads share one. A kick costs much more than an allocation.
  moves.reserve(64);

  // Home fingerprints of a word that could move. Those that the word's level lets go already come before those that
  // raise it to 2 and those that raise it to 3, so that fewer lookups read a second line.
  const auto add_victims = [&](std::uint64_t group, unsigned v, std::uint32_t parent, unsigned raises) {
    const std::uint64_t value = media_.load(words_of(group)[v]);
    for (unsigned i = 0; i < kLanes - L::foreign_count(value); ++i) {
      const std::uint64_t fingerprint = L::lane(value, i);
      const bool admitted = reach(value, fingerprint) == Reach::kOtherGroup;
      if (fingerprint == 0 || (admitted ? 0 : L::far_level(fingerprint)) != raises) continue;
      const std::uint64_t target = L::other_group(group, fingerprint, groups_);
      if (target != group) moves.push_back({group * kGroupWords + v, target, fingerprint, parent});
    }
  };
  // The same for all words that could then take a foreign fingerprint.
  const auto add_group = [&](std::uint64_t group, std::uint32_t parent, unsigned raises) {
    for (unsigned v = 0; v < kGroupWords; ++v) {
      if (L::foreign_count(media_.load(words_of(group)[v])) < L::kForeignMax) add_victims(group, v, parent, raises);
    }
  };
  constexpr unsigned kRaises[] = {0, 2, 3};

  // One step away from the new key's bucket, then from its two groups, then one step further from each of those.
  const std::uint64_t group = group_of(place);
  const auto word = static_cast<unsigned>(place.bucket % kGroupWords);
  unsigned stage = 0;
  std::size_t examined = 0;
  std::size_t prefetched = 0;
  std::size_t expanded = 0;
  bool found = false;
  for (;;) {
    for (; examined < moves.size() && !found; ++examined) {
      for (; prefetched < std::min(examined + kGroupsAhead, moves.size()); ++prefetched) {
        __builtin_prefetch(words_of(moves[prefetched].target_group));
      }
      found = roomiest(words_of(moves[examined].target_group), 0) >= 0;
    }
    if (found) break;
    if (stage == 0) {  // The key's own bucket: the new key is then at home, and no other has to become foreign for it.
      for (const unsigned raises : kRaises) add_victims(group, word, kNoParent, raises);
      ++stage;
    } else if (stage <= std::size(kRaises)) {
      const unsigned raises = kRaises[stage++ - 1];
      if constexpr (kPolicy.spill) add_group(group, kNoParent, raises);
      if (other != group) add_group(other, kNoParent, raises);
    } else if (expanded < moves.size() && moves.size() < moves_max) {
      for (const unsigned raises : kRaises) {
        add_group(moves[expanded].target_group, static_cast<std::uint32_t>(expanded), raises);
      }
      ++expanded;
    } else {
      break;
    }
  }
  shard().kick_groups_read.fetch_add(examined, std::memory_order_relaxed);
  if (!found) return false;
  path.clear();
  for (auto step = static_cast<std::uint32_t>(examined - 1); step != kNoParent; step = moves[step].parent) {
    path.push_back(moves[step]);
  }
  return true;
}

/// The textbook method, for comparison: a random victim, then a random victim where that one goes, and so on.
template <unsigned kBits, Media M, FilterPolicy kPolicy>
bool CuckooFilter<kBits, M, kPolicy>::find_path_randomly(const Place& place, std::uint64_t other,
                                                         std::vector<Move>& path) const {
  constexpr unsigned kStepsMax = 500;
  // A sequence that depends only on the place, so that a run can be replayed.
  std::uint64_t random = (place.bucket << 16 | place.fingerprint) * 0x9e3779b97f4a7c15ULL;
  const auto next = [&random] {  // xorshift64 (Marsaglia 2003)
    random ^= random << 13;
    random ^= random >> 7;
    random ^= random << 17;
    return random;
  };
  path.clear();
  std::uint64_t group = group_of(place);
  auto word = static_cast<unsigned>(place.bucket % kGroupWords);
  for (unsigned step = 0; step < kStepsMax; ++step) {
    const std::uint64_t value = media_.load(words_of(group)[word]);
    const unsigned home = kLanes - L::foreign_count(value);
    const std::uint64_t fingerprint = home == 0 ? 0 : L::lane(value, static_cast<unsigned>(next() % home));
    const std::uint64_t target = fingerprint == 0 ? group : L::other_group(group, fingerprint, groups_);
    if (target == group) {  // Nothing to move here: start again somewhere near.
      path.clear();
      group = (next() & 1) != 0 ? other : group_of(place);
      word = static_cast<unsigned>((group == group_of(place) ? place.bucket : next()) % kGroupWords);
      continue;
    }
    path.insert(path.begin(), {group * kGroupWords + word, target, fingerprint, kNoParent});
    if (roomiest(words_of(target), 0) >= 0) return true;
    group = target;
    word = static_cast<unsigned>(next() % kGroupWords);
    for (unsigned tries = 0; tries < kGroupWords; ++tries, word = (word + 1) % kGroupWords) {
      if (L::foreign_count(media_.load(words_of(group)[word])) < L::kForeignMax) break;
    }
  }
  return false;
}

/// Makes one move, if it is still possible.
template <unsigned kBits, Media M, FilterPolicy kPolicy>
bool CuckooFilter<kBits, M, kPolicy>::apply(const Move& move) {
  const std::uint64_t source_group = move.source / kGroupWords;
  const Guard guard(shared_->stripes, media_, stripe_of(source_group), stripe_of(move.target_group));
  const std::uint64_t source = media_.load(word_at(move.source));
  const std::uint64_t lanes = L::match_home(source, L::pattern(move.fingerprint));
  if (lanes == 0) return false;
  const int v = roomiest(words_of(move.target_group), move.fingerprint);
  if (v < 0) return false;
  const std::uint64_t target = move.target_group * kGroupWords + static_cast<unsigned>(v);
  std::uint64_t source_after = L::remove_home(source, L::lane_of(lanes));
  if constexpr (kPolicy.primacy) source_after = overflowed(source_after, move.fingerprint);
  logged_move(move.source, source_after, target, L::add_foreign(media_.load(word_at(target)), move.fingerprint));
  count(shard().kicks, std::uint64_t{1});
  return true;
}

/// Stores both words as one failure-atomic step. The copy is visible to readers before the original is removed.
template <unsigned kBits, Media M, FilterPolicy kPolicy>
void CuckooFilter<kBits, M, kPolicy>::logged_move(std::uint64_t source, std::uint64_t source_after,
                                                  std::uint64_t target, std::uint64_t target_after) {
  Word& from = word_at(source);
  Word& to = word_at(target);
  if constexpr (!kDurable) {
    media_.store(filter_point::kKickCopy, to, target_after);
    media_.store(filter_point::kKickRemove, from, source_after);
    return;
  }
  LogLine* log = try_take_log_line();  // There are as many as useful concurrent kicks.
  for (; log == nullptr; log = try_take_log_line()) media_.pause();
  arm<filter_point::kLogArm>(*log, source, source_after, target, target_after);
  media_.fence(filter_point::kLogArm);  // From here a crash completes the move.

  media_.store(filter_point::kKickCopy, to, target_after);
  media_.flush(filter_point::kKickCopy, &to);
  media_.store(filter_point::kKickRemove, from, source_after);
  media_.flush(filter_point::kKickRemove, &from);
  media_.fence(filter_point::kKickFence);  // The move is durable by itself.

  retire<filter_point::kLogRetire>(*log);
  media_.fence(filter_point::kLogRetire);  // No crash replays it over later changes to these words.
  give_back(*log);
}

template <unsigned kBits, Media M, FilterPolicy kPolicy>
LogLine* CuckooFilter<kBits, M, kPolicy>::try_take_log_line() noexcept {
  std::uint64_t free_lines = shared_->free_log_lines.load(std::memory_order_relaxed);
  while (free_lines != 0) {
    const std::uint64_t taken = free_lines & (~free_lines + 1);
    // acquire: the last user's retirement (release in give_back) comes before our record.
    if (shared_->free_log_lines.compare_exchange_weak(free_lines, free_lines & ~taken, std::memory_order_acquire,
                                                      std::memory_order_relaxed)) {
      LogLine& log = log_line(static_cast<unsigned>(std::countr_zero(taken)));
      DUNNOCK_CHECK(media_.load(log.armed) == 0, "a free log line is idle");
      return &log;
    }
  }
  return nullptr;
}

/// Stores and flushes the record. The caller fences.
template <unsigned kBits, Media M, FilterPolicy kPolicy>
template <Point kArm>
void CuckooFilter<kBits, M, kPolicy>::arm(LogLine& log, std::uint64_t source, std::uint64_t source_after,
                                          std::uint64_t target, std::uint64_t target_after) const {
  media_.store(filter_point::kLogFields, log.target, target);
  media_.store(filter_point::kLogFields, log.target_after, target_after);
  media_.store(filter_point::kLogFields, log.source, source);
  media_.store(filter_point::kLogFields, log.source_after, source_after);
  media_.store(kArm, log.armed, log_mark(target, target_after, source, source_after));
  media_.flush(kArm, &log);
}

template <unsigned kBits, Media M, FilterPolicy kPolicy>
template <Point kRetire>
void CuckooFilter<kBits, M, kPolicy>::retire(LogLine& log) const {
  media_.store(kRetire, log.armed, 0);
  media_.flush(kRetire, &log);
}

template <unsigned kBits, Media M, FilterPolicy kPolicy>
void CuckooFilter<kBits, M, kPolicy>::give_back(const LogLine& log) noexcept {
  const auto number = static_cast<unsigned>(&log - &log_line(0));
  shared_->free_log_lines.fetch_or(1ULL << number, std::memory_order_release);
}

// ----- erase --------------------------------------------------------------------------------------------------------

template <unsigned kBits, Media M, FilterPolicy kPolicy>
bool CuckooFilter<kBits, M, kPolicy>::erase_place(const Place& place) {
  if constexpr (kIsReadOnly<M>) return false;
  if (!media_ok(media_)) [[unlikely]]
    return false;
  const std::uint64_t pattern = L::pattern(place.fingerprint);
  {
    if constexpr (kUseStripes) __builtin_prefetch(&word_at(place.bucket), 1);
    const Guard guard(shared_->stripes, media_, stripe_of(group_of(place)));
    if (erase_in_group(place, pattern)) return media_ok(media_);
    if (reach(media_.load(word_at(place.bucket)), place.fingerprint) != Reach::kOtherGroup) return false;
  }
  return erase_beyond_group(place);
}

/// Erases durably from the home bucket, or from the foreign lanes of its own group if the key can't be further away.
/// False: there was no copy, or there may be one in the other group.
template <unsigned kBits, Media M, FilterPolicy kPolicy>
[[gnu::always_inline]] inline bool CuckooFilter<kBits, M, kPolicy>::erase_in_group(const Place& place,
                                                                                   std::uint64_t pattern) {
  bool erased = erase_home(place, pattern, FlushNow{media_});
  if (kPolicy.spill && !erased && reach(media_.load(word_at(place.bucket)), place.fingerprint) == Reach::kGroup) {
    Word* group = words_of(group_of(place));
    const int v = first_foreign(group, pattern);
    if (v >= 0) {
      erase_foreign(group[v], pattern);
      erased = true;
    }
  }
  if (!erased) return false;
  media_.fence(filter_point::kErase);
  count(shard().items, std::int64_t{-1});
  return true;
}

template <unsigned kBits, Media M, FilterPolicy kPolicy>
template <class Flushes>
bool CuckooFilter<kBits, M, kPolicy>::erase_home(const Place& place, std::uint64_t pattern, Flushes&& flushes) const {
  Word& home = word_at(place.bucket);
  const std::uint64_t value = media_.load(home);
  const std::uint64_t lanes = L::match_home(value, pattern);
  if (lanes == 0) return false;
  media_.store(filter_point::kErase, home, L::remove_home(value, L::lane_of(lanes)));
  flushes.add(filter_point::kErase, &home);
  return true;
}

/// The first word of the group with the fingerprint in a foreign lane, or -1.
template <unsigned kBits, Media M, FilterPolicy kPolicy>
int CuckooFilter<kBits, M, kPolicy>::first_foreign(const Word* group, std::uint64_t pattern) const {
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
  const std::uint64_t group = group_of(place);
  const std::uint64_t other = other_group_of(place);
  const Guard guard(shared_->stripes, media_, stripe_of(group), stripe_of(other));
  if (erase_in_group(place, pattern)) return media_ok(media_);  // It came home while no thread held the stripes.
  Word* low = words_of(kPolicy.spill ? std::min(group, other) : other);
  Word* high = words_of(kPolicy.spill ? std::max(group, other) : other);
  const int in_low = first_foreign(low, pattern);
  const int in_high = high == low ? -1 : first_foreign(high, pattern);
  if (in_low >= 0) {
    if (in_high >= 0 && kPolicy.primacy) {
      for (unsigned v = 0; v < kGroupWords; ++v) {
        const std::uint64_t value = media_.load(low[v]);
        // Same line as the erase below, and before it.
        if (L::reach(value, place.fingerprint) != Reach::kGroup) continue;
        media_.store(filter_point::kEraseMarks, low[v], overflowed(value, place.fingerprint));
      }
    }
    erase_foreign(low[in_low], pattern);
  } else if (in_high >= 0) {
    erase_foreign(high[in_high], pattern);
  } else {
    return false;
  }
  media_.fence(filter_point::kErase);
  count(shard().items, std::int64_t{-1});
  return media_ok(media_);
}

}  // namespace dunnock
