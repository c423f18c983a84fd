// CuckooFilter, part 3: bulk operations. Included by cuckoo_filter.hpp only.
//
// A batch of keys is hashed and its lines prefetched, then worked through while the lines arrive; durable media get
// one fence a batch. Keys that need more than their own group and a ready neighbour go the single way afterwards.
#pragma once

#include <tbb/blocked_range.h>
#include <tbb/parallel_for.h>

#include "dunnock/filter/cuckoo_filter.hpp"

namespace dunnock {

/// The stripes of one batch, held until its fence. Only ever tries, so it can't deadlock with other batches.
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
        if (stripes_.marked(stripe)) return true;  // There is no writer but us.
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

/// The flushes of one batch, put off until all its stores are done. Taking a stripe is a locked instruction, and those
/// wait for the write-backs before them: with a flush after every store, a batch took as long as its single operations
/// (183 ns a key instead of under 40).
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

template <unsigned kBits, Media M, FilterPolicy kPolicy>
template <class Key>
std::size_t CuckooFilter<kBits, M, kPolicy>::insert_many(std::span<const Key> keys, std::uint8_t* inserted) {
  std::size_t total = 0;
  std::array<Place, kBatch> places;
  std::array<unsigned, kBatch> beyond;  // keys whose own group is full
  std::array<unsigned, kBatch> later;   // keys that take the single way
  for (std::size_t start = 0; start < keys.size(); start += kBatch) {
    const auto n = static_cast<unsigned>(std::min<std::size_t>(kBatch, keys.size() - start));
    const auto batch = keys.subspan(start, n);
    for (unsigned i = 0; i < std::min(n, kAhead); ++i) prepare<true>(batch, i, places[i]);
    unsigned beyond_count = 0;
    unsigned later_count = 0;
    unsigned done = 0;
    unsigned overflows = 0;
    {
      HeldStripes held(shared_->stripes);
      DeferredFlushes flushes;
      for (unsigned i = 0; i < n; ++i) {
        if (i + kAhead < n) prepare<true>(batch, i + kAhead, places[i + kAhead]);
        if (!held.try_take(stripe_of(places[i].group))) {
          later[later_count++] = i;
        } else if (place_in_group(places[i], flushes) == Placed::kNowhere) {
          beyond[beyond_count++] = i;
          __builtin_prefetch(words_of(L::other_group(places[i].group, places[i].fingerprint, groups_)), 1);
        } else {
          ++done;
        }
      }
      for (unsigned b = 0; b < beyond_count; ++b) {
        const Place& place = places[beyond[b]];
        const std::uint64_t other = L::other_group(place.group, place.fingerprint, groups_);
        Word* target = words_of(other);
        // A bucket that overflows for the first time must be marked durably before, so it can't share the fence.
        const bool marked = level_of(media_.load(words_of(place.group)[place.word])) == 2;
        const bool ready = (marked || !kDurable) && held.try_take(stripe_of(other));
        const int v = ready ? roomiest(target, place.fingerprint) : -1;
        if (v < 0) {
          later[later_count++] = beyond[b];
          continue;
        }
        if constexpr (!kDurable) {
          Word& home = words_of(place.group)[place.word];
          mark_overflowed(home, media_.load(home));
        }
        place_in_other(target[v], place.fingerprint, flushes);
        ++done;
        ++overflows;
      }
      flushes.flush_and_fence(media_);
    }
    count(shard().items, static_cast<std::int64_t>(done));
    if (overflows != 0) count(shard().overflows, static_cast<std::uint64_t>(overflows));
    if (inserted != nullptr) std::fill_n(inserted + start, n, std::uint8_t{1});
    for (unsigned k = 0; k < later_count; ++k) {
      const bool placed = insert_place(places[later[k]]);
      done += placed ? 1 : 0;
      if (inserted != nullptr && !placed) inserted[start + later[k]] = 0;
    }
    total += done;
  }
  return total;
}

template <unsigned kBits, Media M, FilterPolicy kPolicy>
template <class Key>
std::size_t CuckooFilter<kBits, M, kPolicy>::contains_many(std::span<const Key> keys, std::uint8_t* found) const {
  std::size_t total = 0;
  std::array<Place, kBatch> places;
  std::array<std::uint64_t, kBatch> others;
  std::array<unsigned, kBatch> beyond;
  for (std::size_t start = 0; start < keys.size(); start += kBatch) {
    const auto n = static_cast<unsigned>(std::min<std::size_t>(kBatch, keys.size() - start));
    const auto batch = keys.subspan(start, n);
    for (unsigned i = 0; i < std::min(n, kAhead); ++i) prepare<false>(batch, i, places[i]);
    std::uint8_t* verdict = found + start;
    unsigned beyond_count = 0;
    for (unsigned i = 0; i < n; ++i) {
      if (i + kAhead < n) prepare<false>(batch, i + kAhead, places[i + kAhead]);
      const Word* group = words_of(places[i].group);
      const std::uint64_t pattern = L::pattern(places[i].fingerprint);
      // As in contains_place: home, foreign lanes, level, in this order.
      bool hit = L::match_home(media_.load(group[places[i].word]), pattern) != 0;
      bool hit_foreign = false;
      if constexpr (kPolicy.spill) hit_foreign = detail::any_foreign<kBits, kGroupWords>(media_, group, pattern);
      const unsigned level = level_of(media_.load(group[places[i].word]));
      hit |= hit_foreign & (level != 0);
      verdict[i] = hit ? 1 : 0;
      beyond[beyond_count] = i;
      beyond_count += static_cast<unsigned>((level == 2) & !hit);
    }
    for (unsigned b = 0; b < beyond_count; ++b) {
      const Place& place = places[beyond[b]];
      others[b] = L::other_group(place.group, place.fingerprint, groups_);
      __builtin_prefetch(words_of(others[b]));
    }
    if constexpr (kReadersPersist) {
      bool dirty = false;
      for (unsigned i = 0; i < n; ++i) {
        if (!shared_->stripes.marked(stripe_of(places[i].group))) [[likely]] continue;
        media_.flush(filter_point::kReaderPersist, words_of(places[i].group));
        dirty = true;
      }
      if (dirty) {
        media_.fence(filter_point::kReaderPersist);
        shard().reader_persists.fetch_add(1, std::memory_order_relaxed);
      }
    }
    for (unsigned b = 0; b < beyond_count; ++b) {
      const Place& place = places[beyond[b]];
      verdict[beyond[b]] = contains_in_other(place, others[b], L::pattern(place.fingerprint)) ? 1 : 0;
    }
    for (unsigned i = 0; i < n; ++i) total += verdict[i];
  }
  return total;
}

template <unsigned kBits, Media M, FilterPolicy kPolicy>
template <class Key>
std::size_t CuckooFilter<kBits, M, kPolicy>::erase_many(std::span<const Key> keys, std::uint8_t* erased) {
  std::size_t total = 0;
  std::array<Place, kBatch> places;
  std::array<unsigned, kBatch> later;
  for (std::size_t start = 0; start < keys.size(); start += kBatch) {
    const auto n = static_cast<unsigned>(std::min<std::size_t>(kBatch, keys.size() - start));
    const auto batch = keys.subspan(start, n);
    for (unsigned i = 0; i < std::min(n, kAhead); ++i) prepare<true>(batch, i, places[i]);
    unsigned later_count = 0;
    unsigned done = 0;
    {
      HeldStripes held(shared_->stripes);
      DeferredFlushes flushes;
      for (unsigned i = 0; i < n; ++i) {
        if (i + kAhead < n) prepare<true>(batch, i + kAhead, places[i + kAhead]);
        Word* group = words_of(places[i].group);
        if (held.try_take(stripe_of(places[i].group)) &&
            erase_home(group, places[i], L::pattern(places[i].fingerprint), flushes)) {
          ++done;
          continue;
        }
        later[later_count++] = i;
        __builtin_prefetch(words_of(L::other_group(places[i].group, places[i].fingerprint, groups_)), 1);
      }
      flushes.flush_and_fence(media_);
    }
    count(shard().items, -static_cast<std::int64_t>(done));
    if (erased != nullptr) std::fill_n(erased + start, n, std::uint8_t{1});
    for (unsigned k = 0; k < later_count; ++k) {
      const bool gone = erase_place(places[later[k]]);
      done += gone ? 1 : 0;
      if (erased != nullptr && !gone) erased[start + later[k]] = 0;
    }
    total += done;
  }
  return total;
}

namespace detail {
/// Runs `work(start, length)` over slices of [0, n) in parallel and adds up what it returns.
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
std::size_t CuckooFilter<kBits, M, kPolicy>::insert_parallel(std::span<const std::uint64_t> keys,
                                                             std::uint8_t* inserted)
  requires(kPolicy.multi_writer)
{
  return detail::sum_in_parallel(keys.size(), [&](std::size_t start, std::size_t length) {
    return insert_many(keys.subspan(start, length), inserted == nullptr ? nullptr : inserted + start);
  });
}

template <unsigned kBits, Media M, FilterPolicy kPolicy>
std::size_t CuckooFilter<kBits, M, kPolicy>::contains_parallel(std::span<const std::uint64_t> keys,
                                                               std::uint8_t* found) const {
  return detail::sum_in_parallel(keys.size(), [&](std::size_t start, std::size_t length) {
    return contains_many(keys.subspan(start, length), found + start);
  });
}

template <unsigned kBits, Media M, FilterPolicy kPolicy>
std::size_t CuckooFilter<kBits, M, kPolicy>::erase_parallel(std::span<const std::uint64_t> keys, std::uint8_t* erased)
  requires(kPolicy.multi_writer)
{
  return detail::sum_in_parallel(keys.size(), [&](std::size_t start, std::size_t length) {
    return erase_many(keys.subspan(start, length), erased == nullptr ? nullptr : erased + start);
  });
}

}  // namespace dunnock
