// The segments of an index in memory: where a key belongs, and what the lines of a segment hold.
//
//   place     a key's hash: fingerprint, home word and group, other group, the bits that choose the segment
//   segment   groups of 8 words, a line each; then 40 record lines for each group (index_format.hpp)
//   lane      a fingerprint, and the record line of the same number
//
// What it is for: addresses, and what writers and scans read. What it is not for: the lookups of readers, which race
// with writers (segment_reader.hpp), and changes (segment_writer.hpp). Stores nothing.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "dunnock/filter/hash.hpp"
#include "dunnock/filter/layout.hpp"
#include "dunnock/index/detail/group_locks.hpp"
#include "dunnock/index/index_format.hpp"
#include "dunnock/pmem/media.hpp"

namespace dunnock::detail {

/// Where a key belongs, from its hash.
struct IndexPlace {
  std::uint64_t fingerprint;
  unsigned word;          // of the home group
  std::uint64_t group;    // in the segment
  std::uint64_t other;    // group, too
  std::uint64_t segment;  // bits that choose the segment
};

/// A segment as the directory knows it: its memory and its depth in one word.
struct Segment {
  static constexpr std::uint64_t kDepthMask = 63;  // Segments are line-aligned.
  std::uint64_t packed = 0;
  [[nodiscard]] static Segment at(const std::byte* base, unsigned depth) noexcept {
    return {reinterpret_cast<std::uintptr_t>(base) | depth};
  }
  [[nodiscard]] std::byte* base() const noexcept { return reinterpret_cast<std::byte*>(packed & ~kDepthMask); }
  [[nodiscard]] unsigned depth() const noexcept { return static_cast<unsigned>(packed & kDepthMask); }
  [[nodiscard]] std::uint64_t number(std::uint64_t bits) const noexcept { return bits & ((1ULL << depth()) - 1); }
  friend bool operator==(const Segment&, const Segment&) = default;
};

/// An occupied lane and its record.
struct IndexSlot {
  Word* word = nullptr;
  unsigned lane = 0;
  IndexRecord* record = nullptr;
  std::uint64_t group = 0;
  explicit operator bool() const noexcept { return record != nullptr; }
};

/// The same as a scan finds it.
struct IndexLane {
  std::uint64_t group;
  unsigned word;
  unsigned lane;
  std::uint64_t fingerprint;
  const IndexRecord& record;
};

template <Media M>
class IndexTable {
 public:
  using L = Layout<12>;
  static constexpr unsigned kGroupWords = kIndexGroupWords;
  static constexpr unsigned kGroupLanes = kIndexGroupLanes;

  IndexTable(M media, const IndexHeader& header) noexcept
      : media_(std::move(media)), hasher_(header.seed), groups_(header.segment_groups) {}

  [[nodiscard]] const M& media() const noexcept { return media_; }
  [[nodiscard]] const HashSeed& seed() const noexcept { return hasher_.seed(); }
  /// In a segment.
  [[nodiscard]] std::uint64_t groups() const noexcept { return groups_; }

  [[nodiscard]] IndexPlace place_of(const IndexKey& key) const noexcept {
    const std::uint64_t hash = hasher_(key.low, key.high);
    IndexPlace place;
    const std::uint64_t fingerprint = hash & L::kLaneMask;
    place.fingerprint = fingerprint == 0 ? 1 : fingerprint;
    place.word = static_cast<unsigned>(hash >> 12) % kGroupWords;
    place.group = (hash >> 15) & (groups_ - 1);
    const std::uint64_t distance = (hash >> 27) & (groups_ - 1);
    place.other = place.group ^ (distance == 0 ? 1 : distance);
    place.segment = hash >> 39;
    return place;
  }
  [[nodiscard]] Word* words_of(Segment segment, std::uint64_t group) const noexcept {
    return reinterpret_cast<Word*>(segment.base() + group * kLineBytes);
  }
  [[nodiscard]] IndexRecord* records_of(Segment segment, std::uint64_t group) const noexcept {
    return reinterpret_cast<IndexRecord*>(segment.base() + groups_ * kLineBytes) + group * kGroupLanes;
  }
  [[nodiscard]] Word& home_word(Segment segment, const IndexPlace& place) const noexcept {
    return words_of(segment, place.group)[place.word];
  }
  [[nodiscard]] std::uint64_t lock_of(const GroupLocks& locks, std::uint64_t number,
                                      std::uint64_t group) const noexcept {
    return locks.of(number * groups_ + group);
  }

  [[nodiscard]] IndexKey key_of(const IndexRecord& record) const noexcept {
    return {media_.load(record.key[0]), media_.load(record.key[1])};
  }
  [[nodiscard]] std::array<std::uint64_t, 2> value_of(const IndexRecord& record, unsigned slot) const noexcept {
    return {media_.load(record.values[slot][0]), media_.load(record.values[slot][1])};
  }
  /// The key's entry in the words [first, last) of a group, if there is one.
  [[nodiscard]] IndexSlot find_in(Segment segment, std::uint64_t group, unsigned first, unsigned last,
                                  std::uint64_t pattern, const IndexKey& key) const {
    Word* words = words_of(segment, group);
    IndexRecord* records = records_of(segment, group);
    for (unsigned v = first; v < last; ++v) {
      for (std::uint64_t lanes = L::zero_lanes(media_.load(words[v]) ^ pattern); lanes != 0; lanes &= lanes - 1) {
        const unsigned lane = L::lane_of(lanes);
        IndexRecord& record = records[v * L::kLanes + lane];
        if (Control::live(media_.load(record.control)) && key_of(record) == key)
          return {&words[v], lane, &record, group};
      }
    }
    return {};
  }

  /// Calls visit(group, v, value) for each word of a segment.
  template <class Visit>
  void for_each_word(Segment segment, Visit&& visit) const {
    for (std::uint64_t group = 0; group < groups_; ++group) {
      for (unsigned v = 0; v < kGroupWords; ++v) visit(group, v, media_.load(words_of(segment, group)[v]));
    }
  }
  /// Calls visit(lane) for each occupied lane of a segment.
  template <class Visit>
  void for_each_lane(Segment segment, Visit&& visit) const {
    for_each_word(segment, [&](std::uint64_t group, unsigned v, std::uint64_t value) {
      for (unsigned lane = 0; lane < L::kLanes; ++lane) {
        if (const std::uint64_t fingerprint = L::lane(value, lane); fingerprint != 0)
          visit(IndexLane{group, v, lane, fingerprint, records_of(segment, group)[v * L::kLanes + lane]});
      }
    });
  }
  /// Is there an entry in that lane of segment `number`: live, of this segment, and where its key may be? Sets `place`
  /// if it is live.
  [[nodiscard]] bool is_entry(Segment segment, std::uint64_t number, const IndexLane& lane, IndexPlace& place) const {
    if (!Control::live(media_.load(lane.record.control))) return false;
    place = place_of(key_of(lane.record));
    return place.fingerprint == lane.fingerprint && segment.number(place.segment) == number &&
           (place.group == lane.group || place.other == lane.group);
  }
  /// Does a live record fail its checksum? No crash leaves one like that: none of its fields, not even its key, can be
  /// trusted.
  [[nodiscard]] bool is_damaged(const IndexRecord& record) const {
    std::uint64_t control = media_.load(record.control);
    while (Control::live(control)) {
      const std::uint64_t low = control & Control::kLowMask;
      const std::uint64_t sum = Control::sum(key_of(record), value_of(record, Control::slot(control)), low) | low;
      const std::uint64_t again = media_.load(record.control);
      if (again == control) return sum != control || !Control::sound_tag(control);
      control = again;  // A writer is changing it.
    }
    return false;
  }

 private:
  [[no_unique_address]] M media_;
  KeyHasher hasher_;
  std::uint64_t groups_;
};

}  // namespace dunnock::detail
