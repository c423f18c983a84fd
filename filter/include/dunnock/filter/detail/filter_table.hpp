// The words of a filter in memory: which group, word and line a place is, and what its level admits.
//
//   place    bucket = index of the home word, fingerprint
//   group    4 or 8 words, aligned to its size; groups of half a line share a line
//   table    groups x group_words words, in one extent or several
#pragma once

#include <cstdint>
#include <utility>

#include "dunnock/filter/layout.hpp"
#include "dunnock/filter/policy.hpp"
#include "dunnock/pmem/media.hpp"
#include "dunnock/pmem/region.hpp"

namespace dunnock::detail {

template <unsigned kBits, FilterPolicy kPolicy>
class FilterTable {
 public:
  using L = Layout<kBits>;
  static constexpr unsigned kGroupWords = kPolicy.group_words;

  FilterTable(Region region, std::uint64_t groups)
      : groups_(groups),
        buckets_(groups * kGroupWords),
        single_extent_(region.extents().size() == 1 ? region.extents().front() : nullptr),
        region_(std::move(region)) {}

  [[nodiscard]] std::uint64_t groups() const noexcept { return groups_; }
  /// Number of words, which is that of buckets.
  [[nodiscard]] std::uint64_t buckets() const noexcept { return buckets_; }
  [[nodiscard]] std::uint64_t slots() const noexcept { return buckets_ * L::kLanes; }
  [[nodiscard]] const Region& region() const noexcept { return region_; }

  [[nodiscard]] Word* words_of(std::uint64_t group) const noexcept {
    const std::uint64_t offset = group * (kGroupWords * sizeof(Word));
    if (single_extent_ != nullptr) [[likely]]
      return reinterpret_cast<Word*>(single_extent_ + offset);
    return reinterpret_cast<Word*>(region_.at(offset));
  }
  [[nodiscard]] Word& word_at(std::uint64_t index) const noexcept {
    if (single_extent_ != nullptr) [[likely]]
      return reinterpret_cast<Word*>(single_extent_)[index];
    return words_of(index / kGroupWords)[index % kGroupWords];
  }
  /// The first word of the group that a word belongs to: groups are aligned to their size.
  [[nodiscard]] static const Word* first_of_group(const Word* word) noexcept {
    constexpr std::uintptr_t kInGroup = kGroupWords * sizeof(Word) - 1;
    return reinterpret_cast<const Word*>(reinterpret_cast<std::uintptr_t>(word) & ~kInGroup);
  }

  [[nodiscard]] static constexpr std::uint64_t group_of(const Place& place) noexcept {
    return place.bucket / kGroupWords;
  }
  /// Of a fingerprint that is, or may be, in this group.
  [[nodiscard]] std::uint64_t other_group(std::uint64_t group, std::uint64_t fingerprint) const noexcept {
    return L::other_group(group, fingerprint, groups_);
  }
  [[nodiscard]] std::uint64_t other_group_of(const Place& place) const noexcept {
    return other_group(group_of(place), place.fingerprint);
  }
  /// Number of the line of a group: groups of half a line share one.
  [[nodiscard]] static constexpr std::uint64_t line_of(std::uint64_t group) noexcept {
    return group * kGroupWords * sizeof(Word) / kLineBytes;
  }

  /// How far from its home word a fingerprint may be, as the value of that word says.
  [[nodiscard]] static constexpr Reach reach(std::uint64_t home, std::uint64_t fingerprint) noexcept {
    return kPolicy.primacy ? L::reach(home, fingerprint) : Reach::kOtherGroup;
  }
  /// `value` with a level that lets the fingerprint be in the other group.
  [[nodiscard]] static constexpr std::uint64_t overflowed(std::uint64_t value, std::uint64_t fingerprint) noexcept {
    return L::level(value) >= L::far_level(fingerprint) ? value : L::with_level(value, L::far_level(fingerprint));
  }

 private:
  std::uint64_t groups_;
  std::uint64_t buckets_;     // groups_ * kGroupWords
  std::byte* single_extent_;  // the table when it is one extent, else null
  Region region_;
};

}  // namespace dunnock::detail
