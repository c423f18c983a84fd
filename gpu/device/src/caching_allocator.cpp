#include "caching_allocator.hpp"

#include <algorithm>
#include <string>
#include <utility>

#include "driver.hpp"
#include "dunnock/base/check.hpp"

namespace dunnock::device::detail {

/// A part of a segment. All of them, from the first to the last, are the segment.
struct CachingAllocator::Block {
  std::byte* address;
  std::size_t bytes;
  std::uint64_t stream;  // who may use it when it is free
  bool is_free = false;
  std::size_t asked_bytes = 0;  // rounded up; what the counts have
  Block* before = nullptr;
  Block* behind = nullptr;
  std::vector<std::unique_ptr<EventImpl>> uses{};  // it is not free before these
};

bool CachingAllocator::BySize::operator()(const Block* a, const Block* b) const noexcept {
  return std::pair(a->bytes, a->address) < std::pair(b->bytes, b->address);
}

CachingAllocator::~CachingAllocator() {
  for (auto& [address, first] : segments_) {
    for (Block* block = first; block != nullptr;) delete std::exchange(block, block->behind);
    source_->give(address);
  }
}

void* CachingAllocator::address_of(const Block* block) noexcept { return block->address; }

Result<CachingAllocator::Block*> CachingAllocator::allocate(std::size_t bytes, std::uint64_t stream) {
  DUNNOCK_CHECK(stream != kNoStream, "memory belongs to a stream");
  std::unique_lock lock(mutex_);
  const auto no_space = [&](const std::string& why) {
    return make_error(ErrorCode::kNoSpace, "can't allocate " + std::to_string(bytes) + " bytes: " + why +
                                               "; buffers use " + std::to_string(stats_.used_bytes) +
                                               " bytes, and the allocator holds " + std::to_string(stats_.held_bytes));
  };
  if (bytes > std::numeric_limits<std::size_t>::max() - kSegmentBytes)
    return no_space("the size exceeds the address space");
  const std::size_t size = std::max<std::size_t>(bytes + kAlignment - 1, kAlignment) / kAlignment * kAlignment;
  if (size > limit_bytes_ || stats_.used_bytes > limit_bytes_ - size)
    return no_space("the limit is " + std::to_string(limit_bytes_) + " bytes");

  poll_pending();
  Block* block = find(size, stream);
  if (block != nullptr) {
    ++stats_.hits;
  } else {
    block = take_segment(size, stream);
    if (block == nullptr) {
      release_kept(lock);
      ++stats_.releases;
      block = take_segment(size, stream);
    }
    if (block == nullptr) return no_space("the device has no memory left");
  }
  free_[block->stream].erase(block);
  block->is_free = false;
  const std::size_t left = block->bytes - size;
  if (size <= kSmallBytes ? left >= kAlignment : left > kSmallBytes) {
    auto* rest = new Block{block->address + size, left, block->stream, true};
    rest->before = block;
    rest->behind = block->behind;
    if (rest->behind != nullptr) rest->behind->before = rest;
    block->behind = rest;
    block->bytes = size;
    free_[rest->stream].insert(rest);
  }
  block->stream = stream;
  block->asked_bytes = size;
  ++stats_.allocations;
  stats_.used_bytes += size;
  stats_.used_bytes_peak = std::max(stats_.used_bytes_peak, stats_.used_bytes);
  return block;
}

/// The smallest free block that is large enough, the stream's own before one that is everybody's. Small requests do not
/// begin a large segment, nor large ones waste one.
CachingAllocator::Block* CachingAllocator::find(std::size_t bytes, std::uint64_t stream) {
  for (const std::uint64_t owner : {stream, kNoStream}) {
    const auto blocks = free_.find(owner);
    if (blocks == free_.end()) continue;
    Block key{nullptr, bytes, owner};
    const auto fit = blocks->second.lower_bound(&key);
    if (fit != blocks->second.end()) return *fit;
  }
  return nullptr;
}

CachingAllocator::Block* CachingAllocator::take_segment(std::size_t bytes, std::uint64_t stream) {
  const std::size_t segment = (bytes + kSegmentBytes - 1) / kSegmentBytes * kSegmentBytes;
  void* const address = source_->take(segment);
  if (address == nullptr) return nullptr;
  auto* block = new Block{static_cast<std::byte*>(address), segment, stream, true};
  segments_.emplace(address, block);
  free_[stream].insert(block);
  stats_.held_bytes += segment;
  ++stats_.device_allocations;
  return block;
}

void CachingAllocator::free(Block* block) {
  const std::lock_guard lock(mutex_);
  DUNNOCK_CHECK(!block->is_free, "a block is freed once");
  stats_.used_bytes -= std::exchange(block->asked_bytes, 0);
  if (block->uses.empty()) return make_free(block);
  pending_.push_back(block);
}

/// Joins it with free neighbors of the same owner.
void CachingAllocator::make_free(Block* block) {
  block->is_free = true;
  block->uses.clear();
  const auto joins = [stream = block->stream](const Block* other) {
    return other != nullptr && other->is_free && other->stream == stream;
  };
  Free& blocks = free_[block->stream];
  if (Block* const before = block->before; joins(before)) {
    blocks.erase(before);
    before->bytes += block->bytes;
    before->behind = block->behind;
    if (block->behind != nullptr) block->behind->before = before;
    delete block;
    block = before;
  }
  if (Block* const behind = block->behind; joins(behind)) {
    blocks.erase(behind);
    block->bytes += behind->bytes;
    block->behind = behind->behind;
    if (behind->behind != nullptr) behind->behind->before = block;
    delete behind;
  }
  blocks.insert(block);
}

void CachingAllocator::add_use(Block* block, std::unique_ptr<EventImpl> event) {
  const std::lock_guard lock(mutex_);
  block->uses.push_back(std::move(event));
}

void CachingAllocator::poll_pending() {
  std::erase_if(pending_, [this](Block* block) {
    std::erase_if(block->uses, [](const auto& event) { return event->done(); });
    if (!block->uses.empty()) return false;
    make_free(block);
    return true;
  });
}

void CachingAllocator::forget_stream(std::uint64_t stream) {
  const std::lock_guard lock(mutex_);
  poll_pending();
  std::vector<Block*> orphans;
  if (const auto found = free_.find(stream); found != free_.end()) {
    orphans.assign(found->second.begin(), found->second.end());
    free_.erase(found);
  }
  for (auto& [address, first] : segments_) {
    for (Block* block = first; block != nullptr; block = block->behind) {
      if (block->stream == stream) block->stream = kNoStream;  // In use, or pending: free for all when it comes back.
    }
  }
  free_for_all(orphans);
}

/// Free blocks that are in no list become everybody's, joined with their neighbors.
void CachingAllocator::free_for_all(const std::vector<Block*>& blocks) {
  for (Block* block : blocks) {
    block->stream = kNoStream;
    block->is_free = false;  // Until its turn: no other joins it before.
  }
  for (Block* block : blocks) make_free(block);
}

void CachingAllocator::release_kept() {
  std::unique_lock lock(mutex_);
  release_kept(lock);
}

void CachingAllocator::release_kept(std::unique_lock<std::mutex>& lock) {
  std::vector<Block*> blocks = std::exchange(pending_, {});
  for (auto& [stream, free] : free_) blocks.insert(blocks.end(), free.begin(), free.end());
  free_.clear();
  for (Block* block : blocks) block->is_free = false;  // Nobody else's while the lock is given up.
  lock.unlock();                                       // What is waited for may free buffers.
  source_->finish_all();
  lock.lock();
  // Nothing runs that uses what was free: it is everybody's, and its neighbors can join.
  free_for_all(blocks);
  std::erase_if(segments_, [this](const auto& segment) {
    Block* const first = segment.second;
    if (!first->is_free || first->behind != nullptr) return false;
    free_[first->stream].erase(first);
    stats_.held_bytes -= first->bytes;
    source_->give(segment.first);
    delete first;
    return true;
  });
}

MemoryStats CachingAllocator::stats() const {
  const std::lock_guard lock(mutex_);
  return stats_;
}

void CachingAllocator::reset_peak() {
  const std::lock_guard lock(mutex_);
  stats_.used_bytes_peak = stats_.used_bytes;
}

void CachingAllocator::set_limit(std::uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  limit_bytes_ = bytes;
}

std::string CachingAllocator::check() const {
  const std::lock_guard lock(mutex_);
  std::uint64_t used = 0;
  std::uint64_t held = 0;
  std::size_t free_blocks = 0;
  for (const auto& [address, first] : segments_) {
    const auto* expected = static_cast<const std::byte*>(address);
    for (const Block* block = first; block != nullptr; block = block->behind) {
      if (block->address != expected) return "a block does not follow the previous block";
      if (block->behind != nullptr && block->behind->before != block)
        return "a block's links to its neighbor are inconsistent";
      expected += block->bytes;
      held += block->bytes;
      used += block->asked_bytes;
      if (!block->is_free) continue;
      ++free_blocks;
      const auto blocks = free_.find(block->stream);
      if (blocks == free_.end() || !blocks->second.contains(const_cast<Block*>(block)))
        return "a free block is not in the list of its owner";
      if (block->behind != nullptr && block->behind->is_free && block->behind->stream == block->stream)
        return "two free neighbors of one owner were not merged";
    }
  }
  for (const auto& [stream, blocks] : free_) free_blocks -= blocks.size();
  if (free_blocks != 0) return "a list has blocks that are not in a segment";
  if (used != stats_.used_bytes) return "the count of the bytes in use is wrong";
  if (held != stats_.held_bytes) return "the count of the bytes held is wrong";
  return {};
}

}  // namespace dunnock::device::detail
