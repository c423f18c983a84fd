// The memory of an index's segments: chunks of slots, which are taken one by one and hold a segment each.
//
//   chunk 0                    chunk 1             chunk 2 ...
//   | slot 0 | slot 1 | ...    | slot n | ...      each a quarter of the slots before it, at least 1 MiB
//
// Which slots are in use is not durable: it follows from the directory. A crash after take() leaves a chunk that is
// found again, or a slot that is free again.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "dunnock/base/result.hpp"
#include "dunnock/index/detail/index_regions.hpp"
#include "dunnock/index/detail/media_mutex.hpp"
#include "dunnock/index/index_format.hpp"
#include "dunnock/index/index_types.hpp"
#include "dunnock/pmem/region.hpp"

namespace dunnock::detail {

/// Threads: any number may take, release and count; the others need exclusive use.
class SegmentSlots {
 public:
  SegmentSlots(IndexMemory memory, const IndexHeader& header)
      : memory_(std::move(memory)), header_(header), segment_bytes_(index_segment_bytes(header.segment_groups)) {}

  /// Obtains the slots of the first segments, which are in use then.
  [[nodiscard]] Status create() {
    next_ = header_.initial_segments;
    return add_chunks(next_, true);
  }
  /// Opens the chunks of these slots. Those that are not in use are free. Errors: Corrupt: a chunk is missing.
  [[nodiscard]] Status open(const std::vector<bool>& used) {
    next_ = used.size();
    for (std::uint64_t slot = used.size(); slot-- > 0;) {
      if (!used[slot]) free_.push_back(slot);
    }
    return add_chunks(next_, false);
  }
  /// Where chunks come from after this.
  void grow_in(IndexMemory memory) { memory_ = std::move(memory); }

  [[nodiscard]] std::byte* memory_at(std::uint64_t slot) const noexcept {
    const auto after = std::upper_bound(chunk_starts_.begin(), chunk_starts_.end(), slot);
    const auto chunk = static_cast<std::size_t>(after - chunk_starts_.begin()) - 1;
    return chunks_[chunk].at((slot - chunk_starts_[chunk]) * segment_bytes_);
  }

  /// A slot for one more segment, and its memory. Null: there is none, and no memory for one.
  template <Media M>
  [[nodiscard]] std::byte* take(const M& media, std::uint64_t& slot) {
    const SpinLock lock(growing_, media);
    if (!free_.empty()) {
      slot = free_.back();
      free_.pop_back();
      return memory_at(slot);
    }
    if (!add_chunks(next_ + 1, true)) return nullptr;
    slot = next_++;
    return memory_at(slot);
  }
  template <Media M>
  void release(const M& media, std::uint64_t slot) {
    const SpinLock lock(growing_, media);
    free_.push_back(slot);
  }
  /// Size of all chunks.
  template <Media M>
  [[nodiscard]] std::uint64_t bytes(const M& media) const {
    const SpinLock lock(growing_, media);
    std::uint64_t bytes = 0;
    for (const Region& chunk : chunks_) bytes += chunk.bytes();
    return bytes;
  }

 private:
  /// Chunks until there are this many slots.
  [[nodiscard]] Status add_chunks(std::uint64_t slots, bool may_create) {
    while (chunk_starts_.back() < slots) DUNNOCK_TRY(add_chunk(may_create));
    return {};
  }
  [[nodiscard]] Status add_chunk(bool may_create) {
    // All of the first segments, then a quarter of the existing slots, but at least 1 MiB. A chunk is one extent, so it
    // stays under 1 GiB.
    const std::uint64_t before = chunk_starts_.back();
    const std::uint64_t least = ((1ULL << 20) + segment_bytes_ - 1) / segment_bytes_;
    const std::uint64_t most = std::max<std::uint64_t>(1, (1ULL << 30) / segment_bytes_);
    const std::uint64_t wanted = before < header_.initial_segments ? header_.initial_segments - before : before / 4;
    const std::uint64_t slots = std::min({std::max(wanted, least), most, header_.segments_max - before});
    if (slots == 0) return make_error(ErrorCode::kNoSpace, "the index has its maximum number of segments");
    const auto number = static_cast<unsigned>(chunks_.size());
    const std::uint64_t bytes = slots * segment_bytes_;
    Result<Region> chunk = may_create ? memory_.obtain(number, bytes) : memory_.open(number, bytes);
    if (!chunk && !may_create && chunk.error().code == ErrorCode::kNotFound)
      return make_error(ErrorCode::kCorrupt, "the index: " + chunk.error().message);
    DUNNOCK_TRY(chunk);
    if (chunk->bytes() < bytes || chunk->extents().size() != 1)
      return make_error(ErrorCode::kCorrupt, "chunk " + std::to_string(number) + " of the index has " +
                                                 std::to_string(chunk->bytes()) + " bytes, expected " +
                                                 std::to_string(bytes));
    chunks_.push_back(std::move(*chunk));
    chunk_starts_.push_back(before + slots);
    return {};
  }

  IndexMemory memory_;
  IndexHeader header_;
  std::uint64_t segment_bytes_;
  mutable std::atomic<bool> growing_{false};  // The lock of what follows.
  std::vector<Region> chunks_;
  std::vector<std::uint64_t> chunk_starts_{0};  // First slot of each chunk, and the one after the last.
  std::vector<std::uint64_t> free_;
  std::uint64_t next_ = 0;
};

}  // namespace dunnock::detail
