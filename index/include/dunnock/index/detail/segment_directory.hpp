// The directory of an index: which segment a key is in. Durable words in the meta region, and in memory the pointers
// that readers use.
//
//   durable   word n       0, or the slot of segment n and a checksum        index_format.hpp
//   volatile  entry i      memory and depth of the segment that keys ending in the bits of i are in
//
// The volatile directory is built from the durable one at opening; only a split changes either. To grow, it is replaced
// by one twice as long; old ones stay for readers that still use them.
//
// Threads: any number; create, recover and check need exclusive use. Crashes: one store of a durable word makes a
// segment exist; nothing else has to be repaired.
#pragma once

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "dunnock/base/result.hpp"
#include "dunnock/index/detail/index_table.hpp"
#include "dunnock/index/detail/segment_slots.hpp"
#include "dunnock/index/index_format.hpp"
#include "dunnock/index/index_points.hpp"
#include "dunnock/pmem/media.hpp"
#include "dunnock/pmem/region.hpp"

namespace dunnock::detail {

class SegmentDirectory {
 public:
  SegmentDirectory(Region meta, const IndexHeader& header) : meta_(std::move(meta)), header_(header) {}

  [[nodiscard]] const Region& meta() const noexcept { return meta_; }
  [[nodiscard]] IndexState& state() const noexcept {
    return *reinterpret_cast<IndexState*>(meta_.at(kIndexStateOffset));
  }
  [[nodiscard]] unsigned depth() const noexcept { return entries_.load(std::memory_order_acquire)->depth(); }
  [[nodiscard]] unsigned depth_max() const noexcept { return static_cast<unsigned>(header_.directory_depth); }

  /// Of the keys whose hashes have these bits (IndexPlace::segment).
  [[nodiscard]] Segment segment_of(std::uint64_t bits) const noexcept {
    const Entries* entries = entries_.load(std::memory_order_acquire);
    return {entries->list[bits & entries->mask].load(std::memory_order_acquire)};
  }
  /// Calls visit(segment, number) for each segment, as they are when it comes to them.
  template <class Visit>
  void for_each_segment(Visit&& visit) const {
    std::uint64_t cursor = 0;
    do {
      const Segment segment = segment_of(cursor);
      visit(segment, segment.number(cursor));
      cursor = next_cursor(cursor, segment.depth());
    } while (cursor != 0);
  }
  /// The cursor that follows `cursor` when a segment of that depth has been seen: numbers are counted up from their
  /// highest bit, so what splits make of a segment is all past the cursor or all ahead of it. 0: that was the last.
  [[nodiscard]] static std::uint64_t next_cursor(std::uint64_t cursor, unsigned depth) noexcept {
    std::uint64_t bit = depth == 0 ? 0 : 1ULL << (depth - 1);
    for (; bit != 0 && (cursor & bit) != 0; bit >>= 1) cursor &= ~bit;
    return bit == 0 ? 0 : (cursor & (2 * bit - 1)) | bit;
  }

  /// Stores and flushes the words of the first segments, and the depth; write_header() fences them.
  template <Media M>
  void create(const M& media, const SegmentSlots& slots) {
    const auto depth = static_cast<unsigned>(std::countr_zero(header_.initial_segments));
    auto entries = std::make_unique<Entries>(depth);
    for (std::uint64_t n = 0; n < header_.initial_segments; ++n) {
      media.store(index_point::kFormatFields, word_at(n), directory_word(n, n));
      if (n % 8 == 7 || n + 1 == header_.initial_segments) media.flush(index_point::kFormatFields, &word_at(n));
      entries->list[n].store(Segment::at(slots.memory_at(n), depth).packed, std::memory_order_relaxed);
    }
    media.store(index_point::kFormatFields, state().depth, depth);
    media.flush(index_point::kFormatFields, &state());
    publish(std::move(entries));
  }

  /// Builds the volatile directory from the durable one, and opens the slots. Stores nothing. Returns the number of
  /// segments. Errors: Corrupt.
  template <Media M>
  [[nodiscard]] Result<std::uint64_t> recover(const M& media, SegmentSlots& slots) {
    const std::uint64_t depth = media.load(state().depth);
    if (depth < first_depth() || depth > depth_max())
      return corrupt("the directory's depth is " + std::to_string(depth) + ", which no index of this size can reach");
    std::vector<std::uint32_t> slot_of(1ULL << depth, 0);  // plus one
    std::vector<bool> used;
    DUNNOCK_TRY(const std::uint64_t segments, read(media, slot_of, used));
    DUNNOCK_TRY(slots.open(used));

    // A segment's depth is one more than that of the last split that it took part in.
    std::vector<std::uint8_t> depths(slot_of.size(), 0);
    for (std::uint64_t n = 0; n < slot_of.size(); ++n) {
      if (slot_of[n] == 0) continue;
      depths[n] =
          static_cast<std::uint8_t>(std::max<unsigned>(first_depth(), static_cast<unsigned>(std::bit_width(n))));
      if (n < header_.initial_segments) continue;
      std::uint8_t& of_parent = depths[n - std::bit_floor(n)];
      of_parent = std::max(of_parent, depths[n]);
    }
    auto entries = std::make_unique<Entries>(static_cast<unsigned>(depth));
    std::vector<std::uint64_t> owner(slot_of.size(), 0);
    for (std::uint64_t i = 0; i < slot_of.size(); ++i) {
      owner[i] = slot_of[i] != 0 ? i : owner[i - std::bit_floor(i)];
      const Segment segment = Segment::at(slots.memory_at(slot_of[owner[i]] - 1), depths[owner[i]]);
      entries->list[i].store(segment.packed, std::memory_order_relaxed);
    }
    publish(std::move(entries));
    return segments;
  }

  /// Makes the new half of segment `number` exist, in this slot and memory, where it is complete and durable. The
  /// caller holds all locks of the old one.
  template <Media M>
  void commit_split(const M& media, std::uint64_t number, Segment from, Segment to, std::uint64_t slot) {
    const SpinLock lock(growing_, media);
    const unsigned depth = from.depth();
    const std::uint64_t new_number = number + (1ULL << depth);
    const Entries* entries = entries_.load(std::memory_order_relaxed);
    if (depth == entries->depth()) {
      media.store(index_point::kDepth, state().depth, depth + 1);
      media.flush(index_point::kDepth, &state());
      media.fence(index_point::kDepth);  // Recovery reads that far.
      auto twice = std::make_unique<Entries>(depth + 1);
      for (std::uint64_t i = 0; i <= twice->mask; ++i) {
        twice->list[i].store(entries->list[i & entries->mask].load(std::memory_order_relaxed),
                             std::memory_order_relaxed);
      }
      entries = publish(std::move(twice));
    }
    media.store(index_point::kSplitCommit, word_at(new_number), directory_word(new_number, slot));
    media.flush(index_point::kSplitCommit, &word_at(new_number));
    media.fence(index_point::kSplitCommit);  // The new segment exists.

    // A thread that reads a key's entry here finds one segment or the other, and none has written to the new one yet
    // under a key whose directory entry is still the old one.
    for (std::uint64_t i = number; i <= entries->mask; i += 1ULL << depth) {
      const Segment now = (i >> depth & 1) != 0 ? to : from;
      entries->list[i].store(Segment::at(now.base(), depth + 1).packed, std::memory_order_release);
    }
  }

  /// Does the durable directory match the volatile one? Calls violated(sentence) where it does not.
  template <Media M, class Violated>
  void check(const M& media, const SegmentSlots& slots, Violated&& violated) const {
    const Entries& entries = *entries_.load(std::memory_order_acquire);
    if (media.load(state().depth) != entries.depth()) violated("the directory's depth differs from the durable one");
    for (std::uint64_t i = 0; i < 1ULL << depth_max(); ++i) {
      const std::uint64_t word = media.load(word_at(i));
      if (i > entries.mask) {
        if (word != 0) violated("directory word " + std::to_string(i) + " is beyond the directory's depth");
        continue;
      }
      if (word == 0) continue;
      if (word != directory_word(i, slot_in(word)) || segment_of(i).base() != slots.memory_at(slot_in(word)))
        violated("directory word " + std::to_string(i) + " is damaged");
    }
  }

 private:
  struct Entries {
    explicit Entries(unsigned depth)
        : mask((1ULL << depth) - 1), list(std::make_unique<std::atomic<std::uint64_t>[]>(mask + 1)) {}
    [[nodiscard]] unsigned depth() const noexcept { return static_cast<unsigned>(std::bit_width(mask)); }
    std::uint64_t mask;
    std::unique_ptr<std::atomic<std::uint64_t>[]> list;
  };

  [[nodiscard]] Word& word_at(std::uint64_t segment) const noexcept {
    return *reinterpret_cast<Word*>(meta_.at(kIndexDirectoryOffset + segment * sizeof(Word)));
  }
  [[nodiscard]] static constexpr std::uint64_t slot_in(std::uint64_t word) noexcept {
    return (word & 0xffffffffULL) - 1;
  }
  [[nodiscard]] unsigned first_depth() const noexcept {
    return static_cast<unsigned>(std::countr_zero(header_.initial_segments));
  }
  [[nodiscard]] static tl::unexpected<Error> corrupt(const std::string& what) {
    return make_error(ErrorCode::kCorrupt, "the index: " + what);
  }

  /// Reads and checks the words as far as there are `slot_of`. Returns the number of segments. Errors: Corrupt.
  template <Media M>
  [[nodiscard]] Result<std::uint64_t> read(const M& media, std::vector<std::uint32_t>& slot_of,
                                           std::vector<bool>& used) const {
    std::uint64_t segments = 0;
    for (std::uint64_t n = 0; n < slot_of.size(); ++n) {
      const std::uint64_t word = media.load(word_at(n));
      if (word == 0) {
        if (n < header_.initial_segments) return corrupt("segment " + std::to_string(n) + " is missing");
        continue;
      }
      const std::uint64_t slot = slot_in(word);
      if (slot >= header_.segments_max || word != directory_word(n, slot))
        return corrupt("directory word " + std::to_string(n) + " is damaged");
      if (n >= header_.initial_segments && slot_of[n - std::bit_floor(n)] == 0)
        return corrupt("segment " + std::to_string(n) + " has no parent");
      if (used.size() <= slot) used.resize(slot + 1, false);
      if (used[slot]) return corrupt("slot " + std::to_string(slot) + " is named by two segments");
      used[slot] = true;
      slot_of[n] = static_cast<std::uint32_t>(slot + 1);
      ++segments;
    }
    return segments;
  }

  const Entries* publish(std::unique_ptr<Entries> entries) {
    entries_.store(entries.get(), std::memory_order_release);  // Partner: segment_of().
    all_entries_.push_back(std::move(entries));
    return all_entries_.back().get();
  }

  Region meta_;
  IndexHeader header_;
  std::atomic<const Entries*> entries_{nullptr};
  std::atomic<bool> growing_{false};  // The lock of commits.
  std::vector<std::unique_ptr<Entries>> all_entries_;
};

}  // namespace dunnock::detail
