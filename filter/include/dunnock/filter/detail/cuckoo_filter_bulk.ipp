// CuckooFilter, part 3: bulk operations. Included by cuckoo_filter.hpp only.
//
// While a batch of keys is processed, the next one is hashed and its lines are prefetched; durable media get one fence
// per batch. Keys that need more than their own group and a ready neighbor are handled one by one afterwards.
#pragma once

#include <tbb/blocked_range.h>
#include <tbb/parallel_for.h>

namespace dunnock {

/// The stripes of one batch, held until its fence. Never waits for a stripe, so it can't deadlock with other batches.
template <unsigned kBits, Media M, FilterPolicy kPolicy>
class CuckooFilter<kBits, M, kPolicy>::HeldStripes {
 public:
  explicit HeldStripes(const detail::Stripes& stripes) noexcept : stripes_(stripes) {}
  HeldStripes(const HeldStripes&) = delete;
  HeldStripes& operator=(const HeldStripes&) = delete;
  ~HeldStripes() {
    for (unsigned i = 0; i < held_; ++i) stripes_.release(taken_[i]);
  }

  /// True if this batch holds the stripe now, whether newly or already.
  [[nodiscard]] bool try_take(std::uint64_t stripe) noexcept {
    if constexpr (kUseStripes) {
      if (kPolicy.multi_writer) {
        if (!stripes_.template try_acquire<true>(stripe)) return holds(stripe);
      } else {
        if (stripes_.marked(stripe)) return true;  // There is no other writer.
        (void)stripes_.template try_acquire<false>(stripe);
      }
      taken_[held_++] = stripe;
    }
    return true;
  }

 private:
  [[nodiscard]] bool holds(std::uint64_t stripe) const noexcept {
    for (unsigned i = 0; i < held_; ++i) {
      if (taken_[i] == stripe) return true;
    }
    return false;
  }

  const detail::Stripes& stripes_;
  unsigned held_ = 0;
  std::array<std::uint64_t, 2 * kBatch> taken_;
};

/// The flushes of one batch, deferred until all its stores are done. Taking a stripe is a locked instruction, and those
/// wait for earlier write-backs: with a flush after every store, a batch took as long as its single operations (183 ns
/// per key instead of under 40).
template <unsigned kBits, Media M, FilterPolicy kPolicy>
class CuckooFilter<kBits, M, kPolicy>::DeferredFlushes {
 public:
  void add(Point point, const Word* word) noexcept {
    if constexpr (kDurable) pending_[count_++] = {point, word};
  }
  void flush_and_fence(const M& media) noexcept {
    if constexpr (kDurable) {
      for (unsigned i = 0; i < count_; ++i) media.flush(pending_[i].point, pending_[i].word);
      if (count_ != 0) media.fence(filter_point::kGroupFence);
    }
  }

 private:
  struct Pending {
    Point point;
    const Word* word;
  };
  unsigned count_ = 0;
  std::array<Pending, kBatch> pending_;
};

/// Keys of a batch that need a mark or a kick, done together: four fences for all instead of up to five each.
///
///   marks    buckets say that they have spilled or overflowed                        fence
///   arm      one log record per kick; its words already contain the new key          fence: a crash completes these
///   move     the words of the records; overflowing fingerprints to the other group   fence
///   retire   the records                                                             fence
///
/// No line serves two keys of a wave, and its stripes are held to the end: recovery replays whole words in any order,
/// so nothing else may have been stored to them since their record was armed. Never waits, like HeldStripes.
template <unsigned kBits, Media M, FilterPolicy kPolicy>
class CuckooFilter<kBits, M, kPolicy>::Wave {
 public:
  explicit Wave(CuckooFilter& filter) noexcept : filter_(filter) {}
  Wave(const Wave&) = delete;
  Wave& operator=(const Wave&) = delete;
  ~Wave() {
    for (unsigned i = 0; i < plan_count_; ++i) {
      if (plans_[i].log != nullptr) filter_.shared_->log.release(*plans_[i].log);
    }
    if constexpr (kUseStripes) {
      for (unsigned i = 0; i < claimed_; ++i) filter_.shared_->stripes.release(filter_.stripe_of(groups_[i]));
    }
  }

  /// False: not in this wave. Stores nothing yet.
  [[nodiscard]] bool add(const Place& place) {
    const std::uint64_t group = Table::group_of(place);
    if (plan_count_ == plans_.size() || !claim(group)) return false;
    const std::uint64_t home = filter_.media_.load(filter_.table_.word_at(place.bucket));
    if (L::empty_lanes(home) != 0) return false;  // Room again.
    if (filter_.roomiest(filter_.table_.words_of(group), 0) >= 0) return false;
    const detail::UnmarkedMoves moves = filter_.search().unmarked_moves(place);
    for (unsigned i = 0; i < moves.count; ++i) {
      if (plan_kick(place, moves.list[i])) return true;
    }
    const std::uint64_t other = filter_.table_.other_group_of(place);
    if (const int v = room_in(other, place.fingerprint); v >= 0) {
      plans_[plan_count_++] = {place, {}, other * kGroupWords + static_cast<unsigned>(v), nullptr};
      return true;
    }
    // One step of the single-key search, if it starts in this group.
    std::vector<detail::KickMove> path;
    return filter_.find_path(place, other, path) && path.size() == 1 && path[0].source / kGroupWords == group &&
           plan_kick(place, path[0]);
  }

  /// Inserts all keys that were added, durably.
  void commit() {
    const M& media = filter_.media_;
    unsigned marks = 0;
    unsigned kicks = 0;
    for (Plan& plan : plans()) marks += mark(plan) ? 1 : 0;
    if (marks != 0) media.fence(filter_point::kBulkMarkFence);
    for (Plan& plan : plans()) {
      plan.target_after = L::add_foreign(media.load(filter_.table_.word_at(plan.target)),
                                         plan.log != nullptr ? plan.move.fingerprint : plan.place.fingerprint);
      if (plan.log == nullptr) continue;
      plan.source_after = source_after(plan);
      detail::KickLog::arm<filter_point::kBulkLogArm>(
          media, *plan.log, {plan.move.source, plan.source_after, plan.target, plan.target_after});
      ++kicks;
    }
    if (kicks != 0) media.fence(filter_point::kBulkArmFence);  // From here a crash completes the kicks.
    for (const Plan& plan : plans()) {
      const bool kick = plan.log != nullptr;
      Word& target = filter_.table_.word_at(plan.target);
      media.store(kick ? filter_point::kKickCopy : filter_point::kOverflow, target, plan.target_after);
      media.flush(kick ? filter_point::kKickCopy : filter_point::kOverflow, &target);
      if (!kick) continue;
      Word& source = filter_.table_.word_at(plan.move.source);
      media.store(filter_point::kKickRemove, source, plan.source_after);
      media.flush(filter_point::kKickRemove, &source);
    }
    if (plan_count_ != 0) media.fence(filter_point::kBulkMoveFence);
    for (const Plan& plan : plans()) {
      if (plan.log != nullptr) detail::KickLog::retire<filter_point::kBulkLogRetire>(media, *plan.log);
    }
    if (kicks != 0) media.fence(filter_point::kBulkRetireFence);  // No crash replays them over later changes.
    filter_.add(filter_.counts().kicks, std::uint64_t{kicks});
    filter_.add(filter_.counts().overflows, std::uint64_t{plan_count_ - kicks});
  }

 private:
  static constexpr unsigned kKeysMax = 32;
  struct Plan {
    Place place;
    detail::KickMove move;  // if log is set
    std::uint64_t target;   // the word that receives the moved fingerprint, or the key itself
    LogLine* log;           // null: the key overflows
    std::uint64_t target_after = 0;
    std::uint64_t source_after = 0;
  };

  [[nodiscard]] std::span<Plan> plans() noexcept { return std::span(plans_).first(plan_count_); }

  /// Claims the group's line and stripe for this wave. False: not available, or claimed already.
  [[nodiscard]] bool claim(std::uint64_t group) noexcept {
    if (claimed_ == groups_.size()) return false;
    for (unsigned i = 0; i < claimed_; ++i) {
      if (Table::line_of(groups_[i]) == Table::line_of(group)) return false;
    }
    if constexpr (kUseStripes) {
      if (!filter_.shared_->stripes.template try_acquire<kPolicy.multi_writer>(filter_.stripe_of(group))) return false;
    }
    groups_[claimed_++] = group;
    return true;
  }
  /// Claims a group that has room for a foreign fingerprint; the word that takes it, or -1.
  [[nodiscard]] int room_in(std::uint64_t group, std::uint64_t fingerprint) noexcept {
    if (filter_.roomiest(filter_.table_.words_of(group), fingerprint) < 0 || !claim(group)) return -1;
    return filter_.roomiest(filter_.table_.words_of(group), fingerprint);
  }
  [[nodiscard]] bool plan_kick(const Place& place, const detail::KickMove& move) noexcept {
    const int v = room_in(move.target_group, move.fingerprint);
    LogLine* log = v < 0 ? nullptr : filter_.shared_->log.try_take(filter_.media_);
    if (log == nullptr) return false;
    plans_[plan_count_++] = {place, move, move.target_group * kGroupWords + static_cast<unsigned>(v), log};
    return true;
  }
  /// Raises the level of the key's own bucket if necessary: stores and flushes it.
  bool mark(const Plan& plan) const {
    const M& media = filter_.media_;
    Word& home = filter_.table_.word_at(plan.place.bucket);
    const std::uint64_t value = media.load(home);
    if (plan.log == nullptr && !L::is_far(value, plan.place.fingerprint)) {
      media.store(filter_point::kOverflowMark, home, Table::overflowed(value, plan.place.fingerprint));
      media.flush(filter_point::kOverflowMark, &home);
      return true;
    }
    if (plan.log != nullptr && plan.move.source != plan.place.bucket && L::level(value) == 0) {
      media.store(filter_point::kSpillMark, home, L::with_level(value, 1));
      media.flush(filter_point::kSpillMark, &home);
      return true;
    }
    return false;
  }
  /// The word that a fingerprint leaves, with the new key in its place.
  [[nodiscard]] std::uint64_t source_after(const Plan& plan) const {
    const std::uint64_t value = filter_.media_.load(filter_.table_.word_at(plan.move.source));
    const unsigned lane = L::lane_of(L::match_home(value, L::pattern(plan.move.fingerprint)));
    const std::uint64_t left = Table::overflowed(L::remove_home(value, lane), plan.move.fingerprint);
    return plan.move.source == plan.place.bucket ? L::add_home(left, plan.place.fingerprint)
                                                 : L::add_foreign(left, plan.place.fingerprint);
  }

  CuckooFilter& filter_;
  unsigned plan_count_ = 0;
  unsigned claimed_ = 0;
  std::array<Plan, kKeysMax> plans_;
  std::array<std::uint64_t, 3 * kKeysMax> groups_;
};

/// The places of a batch, and those of the next one, in preparation.
template <unsigned kBits, Media M, FilterPolicy kPolicy>
template <class Key>
class CuckooFilter<kBits, M, kPolicy>::Batches {
 public:
  Batches(const CuckooFilter& filter, std::span<const Key> keys) noexcept : filter_(filter), keys_(keys) {}

  /// The places of the keys from `start` on, prepared by the calls of ahead() meanwhile (the first batch: here).
  template <bool kForWriting>
  [[nodiscard]] std::span<const Place> next(std::size_t start) noexcept {
    if (start == 0) {
      for (unsigned i = 0; i < std::min<std::size_t>(kBatch, keys_.size()); ++i) prepare<kForWriting>(i, i);
    }
    start_ = start + kBatch;
    return places_[start / kBatch % 2];
  }
  /// Prepares key `i` of the batch after the current one, if there is one.
  template <bool kForWriting>
  void ahead(unsigned i) noexcept {
    if (start_ + i < keys_.size()) [[likely]]
      prepare<kForWriting>(start_ + i, i);
  }

 private:
  template <bool kForWriting>
  void prepare(std::size_t key, unsigned i) noexcept {
    Place& place = places_[key / kBatch % 2][i];
    place = filter_.place_of(keys_[key]);
    __builtin_prefetch(&filter_.table_.word_at(place.bucket), kForWriting ? 1 : 0);
  }

  const CuckooFilter& filter_;
  std::span<const Key> keys_;
  std::size_t start_ = 0;  // of the batch after the current one
  std::array<std::array<Place, kBatch>, 2> places_;
};

/// The keys of a batch that its first pass has left, by their numbers in the batch.
template <unsigned kBits, Media M, FilterPolicy kPolicy>
struct CuckooFilter<kBits, M, kPolicy>::Later {
  unsigned count = 0;
  std::array<unsigned, kBatch> keys;
  void add(unsigned key) noexcept { keys[count++] = key; }
};

/// Inserts the keys of a batch that need nothing but their own group, or room in the other one of a bucket that is
/// marked already, with one fence. Returns how many; the others are in `later`.
template <unsigned kBits, Media M, FilterPolicy kPolicy>
template <class Key>
[[gnu::always_inline]] inline unsigned CuckooFilter<kBits, M, kPolicy>::insert_together(Batches<Key>& batches,
                                                                                        std::span<const Place> places,
                                                                                        unsigned n, Later& later) {
  std::array<unsigned, kBatch> beyond;  // keys whose own group is full
  unsigned beyond_count = 0;
  unsigned done = 0;
  unsigned overflows = 0;
  {
    HeldStripes held(shared_->stripes);
    DeferredFlushes flushes;
    for (unsigned i = 0; i < n; ++i) {
      batches.template ahead<true>(i);
      if (!held.try_take(stripe_of(Table::group_of(places[i])))) {
        later.add(i);
      } else if (place_in_group(places[i], flushes) == Placed::kNowhere) {
        beyond[beyond_count++] = i;
        __builtin_prefetch(table_.words_of(table_.other_group_of(places[i])), 1);
      } else {
        ++done;
      }
    }
    for (unsigned b = 0; b < beyond_count; ++b) {
      const Place& place = places[beyond[b]];
      const std::uint64_t other = table_.other_group_of(place);
      Word* target = table_.words_of(other);
      // A bucket that overflows for the first time must be marked durably first, so it can't share the fence.
      const bool marked = reach_of(place) == Reach::kOtherGroup;
      const bool ready = marked && held.try_take(stripe_of(other));
      const int v = ready ? roomiest(target, place.fingerprint) : -1;
      if (v < 0) {
        later.add(beyond[b]);
        continue;
      }
      place_in_other(target[v], place.fingerprint, flushes);
      ++done;
      ++overflows;
    }
    flushes.flush_and_fence(media_);
  }
  add(counts().items, static_cast<std::int64_t>(done));
  if (overflows != 0) add(counts().overflows, static_cast<std::uint64_t>(overflows));
  return done;
}

/// Inserts those of the keys that can share marks and kicks, with four fences for all; they leave `later`. Returns how
/// many. Not inlined: few batches need it, and their callers are larger with it than the compiler lets them grow.
template <unsigned kBits, Media M, FilterPolicy kPolicy>
[[gnu::noinline]] unsigned CuckooFilter<kBits, M, kPolicy>::insert_in_wave(std::span<const Place> places,
                                                                           Later& later) {
  const unsigned before = later.count;
  Wave wave(*this);
  later.count = 0;
  for (unsigned k = 0; k < before; ++k) {
    if (!wave.add(places[later.keys[k]])) later.add(later.keys[k]);
  }
  wave.commit();
  add(counts().items, static_cast<std::int64_t>(before - later.count));
  return before - later.count;
}

template <unsigned kBits, Media M, FilterPolicy kPolicy>
template <class Key>
std::size_t CuckooFilter<kBits, M, kPolicy>::insert_many(std::span<const Key> keys, std::uint8_t* inserted) {
  if constexpr (kIsReadOnly<M>) {
    if (inserted != nullptr) std::fill_n(inserted, keys.size(), std::uint8_t{0});
    return 0;
  }
  std::size_t total = 0;
  Batches<Key> batches(*this, keys);
  for (std::size_t start = 0; start < keys.size(); start += kBatch) {
    const auto n = static_cast<unsigned>(std::min<std::size_t>(kBatch, keys.size() - start));
    const std::span<const Place> places = batches.template next<true>(start);
    Later later;
    unsigned done = insert_together(batches, places, n, later);
    if (inserted != nullptr) std::fill_n(inserted + start, n, std::uint8_t{1});
    if constexpr (kPolicy.primacy && kPolicy.lookahead) {  // Fetch what will be read.
      for (unsigned k = 0; k < later.count; ++k) (void)search().unmarked_moves(places[later.keys[k]]);
    }
    if constexpr (kDurable && kPolicy.primacy && kPolicy.lookahead && kPolicy.spill) {
      if (later.count > 1) done += insert_in_wave(places, later);
    }
    for (unsigned k = 0; k < later.count; ++k) {  // One by one.
      const bool placed = insert_place(places[later.keys[k]]);
      done += placed ? 1 : 0;
      if (inserted != nullptr && !placed) inserted[start + later.keys[k]] = 0;
    }
    if (!media_ok(media_)) [[unlikely]] {  // Nothing of this batch is acknowledged, nor of those that follow.
      if (inserted != nullptr) std::fill(inserted + start, inserted + keys.size(), std::uint8_t{0});
      return total;
    }
    total += done;
  }
  return total;
}

template <unsigned kBits, Media M, FilterPolicy kPolicy>
template <class Key>
std::size_t CuckooFilter<kBits, M, kPolicy>::contains_many(std::span<const Key> keys, std::uint8_t* found) const {
  std::size_t total = 0;
  Batches<Key> batches(*this, keys);
  std::array<std::uint64_t, kBatch> others;
  std::array<unsigned, kBatch> beyond;
  for (std::size_t start = 0; start < keys.size(); start += kBatch) {
    const auto n = static_cast<unsigned>(std::min<std::size_t>(kBatch, keys.size() - start));
    const std::span<const Place> places = batches.template next<false>(start);
    std::uint8_t* verdict = found + start;
    unsigned beyond_count = 0;
    for (unsigned i = 0; i < n; ++i) {
      batches.template ahead<false>(i);
      const Word* group = table_.words_of(Table::group_of(places[i]));
      const Word& home = table_.word_at(places[i].bucket);
      const std::uint64_t pattern = L::pattern(places[i].fingerprint);
      // As in contains_place: home, foreign lanes, level, in this order.
      const std::uint64_t value = media_.load(home);
      bool hit = L::match_quickly(value, pattern) != 0;
      bool hit_foreign = false;
      if constexpr (kPolicy.spill) hit_foreign = detail::any_foreign<kBits, kGroupWords>(media_, group, pattern);
      const std::uint64_t again = is_taken(media_, filter_point::kBulkLevelAgain) ? media_.load(home) : value;
      const Reach far = Table::reach(again, places[i].fingerprint);
      hit |= hit_foreign & (far != Reach::kHome);
      verdict[i] = hit ? 1 : 0;
      beyond[beyond_count] = i;
      beyond_count += static_cast<unsigned>((far == Reach::kOtherGroup) & !hit);
    }
    for (unsigned b = 0; b < beyond_count; ++b) {
      const Place& place = places[beyond[b]];
      others[b] = table_.other_group_of(place);
      __builtin_prefetch(table_.words_of(others[b]));
    }
    if constexpr (kReadersPersist) {
      bool dirty = false;
      for (unsigned i = 0; i < n; ++i) {
        if (!is_taken(media_, filter_point::kBulkStripe) ||
            !shared_->stripes.marked(stripe_of(Table::group_of(places[i])))) [[likely]]
          continue;
        media_.flush(filter_point::kReaderPersist, &table_.word_at(places[i].bucket));
        dirty = true;
      }
      if (dirty) {
        media_.fence(filter_point::kReaderPersist);
        counts().reader_persists.fetch_add(1, std::memory_order_relaxed);
      }
    }
    for (unsigned b = 0; b < beyond_count; ++b) {
      const Place& place = places[beyond[b]];
      const bool found_there = in_other(place, others[b], L::pattern(place.fingerprint));
      verdict[beyond[b]] = answer(Table::group_of(place), others[b], found_there) ? 1 : 0;
    }
    if (!media_ok(media_)) [[unlikely]]
      std::fill_n(verdict, n, std::uint8_t{1});
    for (unsigned i = 0; i < n; ++i) total += verdict[i];
  }
  return total;
}

template <unsigned kBits, Media M, FilterPolicy kPolicy>
template <class Key>
std::size_t CuckooFilter<kBits, M, kPolicy>::erase_many(std::span<const Key> keys, std::uint8_t* erased) {
  if constexpr (kIsReadOnly<M>) {
    if (erased != nullptr) std::fill_n(erased, keys.size(), std::uint8_t{0});
    return 0;
  }
  std::size_t total = 0;
  Batches<Key> batches(*this, keys);
  std::array<unsigned, kBatch> later;
  for (std::size_t start = 0; start < keys.size(); start += kBatch) {
    const auto n = static_cast<unsigned>(std::min<std::size_t>(kBatch, keys.size() - start));
    const std::span<const Place> places = batches.template next<true>(start);
    unsigned later_count = 0;
    unsigned done = 0;
    {
      HeldStripes held(shared_->stripes);
      DeferredFlushes flushes;
      for (unsigned i = 0; i < n; ++i) {
        batches.template ahead<true>(i);
        if (held.try_take(stripe_of(Table::group_of(places[i]))) &&
            erase_home(places[i], L::pattern(places[i].fingerprint), flushes)) {
          ++done;
          continue;
        }
        later[later_count++] = i;
        __builtin_prefetch(table_.words_of(table_.other_group_of(places[i])), 1);
      }
      flushes.flush_and_fence(media_);
    }
    add(counts().items, -static_cast<std::int64_t>(done));
    if (erased != nullptr) std::fill_n(erased + start, n, std::uint8_t{1});
    for (unsigned k = 0; k < later_count; ++k) {
      const bool gone = erase_place(places[later[k]]);
      done += gone ? 1 : 0;
      if (erased != nullptr && !gone) erased[start + later[k]] = 0;
    }
    if (!media_ok(media_)) [[unlikely]] {
      if (erased != nullptr) std::fill(erased + start, erased + keys.size(), std::uint8_t{0});
      return total;
    }
    total += done;
  }
  return total;
}

namespace detail {
/// Runs `work(start, length)` over slices of [0, n) in parallel and returns the sum of its results.
template <class Work>
std::size_t sum_in_parallel(std::size_t n, const Work& work) {
  constexpr std::size_t kGrain = 4096;  // keys: long enough to hide the scheduling, short enough to balance
  std::atomic<std::size_t> total{0};
  tbb::parallel_for(tbb::blocked_range<std::size_t>(0, n, kGrain), [&](const tbb::blocked_range<std::size_t>& slice) {
    total.fetch_add(work(slice.begin(), slice.size()), std::memory_order_relaxed);
  });
  return total.load(std::memory_order_relaxed);
}
}  // namespace detail

template <unsigned kBits, Media M, FilterPolicy kPolicy>
template <class Key>
std::size_t CuckooFilter<kBits, M, kPolicy>::insert_on_all_threads(std::span<const Key> keys, std::uint8_t* inserted) {
  return detail::sum_in_parallel(keys.size(), [&](std::size_t start, std::size_t length) {
    return insert_many(keys.subspan(start, length), inserted == nullptr ? nullptr : inserted + start);
  });
}

template <unsigned kBits, Media M, FilterPolicy kPolicy>
template <class Key>
std::size_t CuckooFilter<kBits, M, kPolicy>::contains_on_all_threads(std::span<const Key> keys,
                                                                     std::uint8_t* found) const {
  return detail::sum_in_parallel(keys.size(), [&](std::size_t start, std::size_t length) {
    return contains_many(keys.subspan(start, length), found + start);
  });
}

template <unsigned kBits, Media M, FilterPolicy kPolicy>
template <class Key>
std::size_t CuckooFilter<kBits, M, kPolicy>::erase_on_all_threads(std::span<const Key> keys, std::uint8_t* erased) {
  return detail::sum_in_parallel(keys.size(), [&](std::size_t start, std::size_t length) {
    return erase_many(keys.subspan(start, length), erased == nullptr ? nullptr : erased + start);
  });
}

}  // namespace dunnock
