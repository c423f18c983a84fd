// FilterView: bulk lookups, inserts and erasures on the words of a CuckooFilter in a device's memory.
//
//   host   CuckooFilter in a pool  --words()-->  upload  -->  device::Span of words
//                                                               |  contains, insert, erase  (same bytes)
//   host   CuckooFilter, reopened  <-assign_words()-- download <-+
//
// The bytes are those of the pool (filter/layout.hpp), so a filter can be filled on a GPU and reopened on the host, and
// a replica can answer lookups on the GPU. Nothing here is durable: the filter makes the words durable when they
// return.
//
// A lookup reads the 8-byte word of its home bucket, one 32-byte sector, and is done unless that word says that
// fingerprints of its bucket are elsewhere. At 90 % load that makes 1.09 sectors per lookup with groups of 4 words,
// and 1.45 with 8 (src/filter_words.hpp has the table): a filter for a GPU has groups of 4 words
// (FilterPolicy::group_words). An insert is one compare-and-swap if its bucket has room. Neither takes a lock: every
// change is a compare-and-swap of one word, and marks are raised before what they announce is moved.
//
// Source: AniFilter (doi 10.1145/3342195.3387528) for the buckets; the bulk operations follow cuCollections.
#pragma once

#include <array>
#include <cstdint>

#include "dunnock/base/result.hpp"
#include "dunnock/device/memory.hpp"

namespace dunnock::kernels {

/// Properties of a filter that its words do not show. CuckooFilter knows each of these.
struct FilterShape {
  unsigned fingerprint_bits = 12;       ///< 8, 12 or 16
  unsigned group_words = 8;             ///< 8 or 4
  std::uint64_t groups = 0;             ///< words / group_words
  std::array<std::uint64_t, 4> seed{};  ///< seed of its hash: HashSeed::words of CuckooFilter::seed()
};

/// A 128-bit key, such as the chained hash of a prefix block.
struct Key128 {
  std::uint64_t low = 0;
  std::uint64_t high = 0;
};

/// Does not own the words. Threads: any number. Operations of one kind may overlap on the same words, on several
/// streams: contains with contains, insert with insert, erase with erase. Different kinds must be ordered.
/// The stream reports errors of the operations (stream.hpp); arguments that do not fit are programmer errors.
class FilterView {
 public:
  /// Alignment of the words: a GPU loads them two at a time. A Buffer has it; a subspan must begin with a group.
  static constexpr std::size_t kWordsAlignment = 16;

  /// Errors: InvalidArgument: no such fingerprints or groups, or `words` is not as large as the shape says, or not
  /// aligned to kWordsAlignment.
  [[nodiscard]] static Result<FilterView> create(const FilterShape& shape, device::Span<std::uint64_t> words);

  /// answers[i] = 1 if keys[i] may be in the filter, 0 if it is not. (n) -> (n)
  void contains(device::Span<const std::uint64_t> keys, device::Span<std::uint8_t> answers,
                device::Stream& stream) const;
  void contains(device::Span<const Key128> keys, device::Span<std::uint8_t> answers, device::Stream& stream) const;

  /// Adds each key, as often as it occurs. accepted[i] = 1, or 0 if there was no room. (n) -> (n)
  void insert(device::Span<const std::uint64_t> keys, device::Span<std::uint8_t> accepted,
              device::Stream& stream) const;
  void insert(device::Span<const Key128> keys, device::Span<std::uint8_t> accepted, device::Stream& stream) const;

  /// Removes one copy of each key's fingerprint. Only keys that were inserted may be erased, as with CuckooFilter.
  /// erased[i] = 0 if there was none. (n) -> (n)
  void erase(device::Span<const std::uint64_t> keys, device::Span<std::uint8_t> erased, device::Stream& stream) const;
  void erase(device::Span<const Key128> keys, device::Span<std::uint8_t> erased, device::Stream& stream) const;

  /// The longest prefix of each request that may be stored, by bisection: blocks first[r] .. first[r + 1] - 1 of
  /// `hashes` are those of request r, in order; lengths[r] is a number of blocks. As accurate as a filter can be,
  /// provided that a block is stored only if all blocks before it are. (n), (requests + 1) -> (requests)
  void longest_prefix(device::Span<const Key128> hashes, device::Span<const std::uint32_t> first,
                      device::Span<std::uint32_t> lengths, device::Stream& stream) const;

  [[nodiscard]] const FilterShape& shape() const noexcept { return shape_; }
  [[nodiscard]] device::Span<std::uint64_t> words() const noexcept { return words_; }

 private:
  FilterView(const FilterShape& shape, device::Span<std::uint64_t> words) noexcept : shape_(shape), words_(words) {}
  FilterShape shape_;
  device::Span<std::uint64_t> words_;
};

}  // namespace dunnock::kernels
