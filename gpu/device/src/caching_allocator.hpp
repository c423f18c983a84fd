// CachingAllocator: hands out parts of large pieces of a device's memory, and keeps them for the next one.
//
//   segment  | block | block |     free     |        taken from the device: 2 MiB for small requests,
//            <------------- one take ------->        the request rounded up to 2 MiB for large ones
//
// Why: asking a device for memory costs it a synchronization, and a training step asks thousands of times.
//
// Each stream has its own free blocks: one that was freed on a stream is used again on the same stream without waiting,
// for what it is used for next comes later there. A stream that has gone leaves its blocks to all. A block that other
// streams use too waits for their events before it is free. When the device has no more, everything is waited for, all
// that is wholly free is given back, and it is asked once more.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

#include "dunnock/base/result.hpp"
#include "dunnock/device/device.hpp"

namespace dunnock::device::detail {

class EventImpl;

/// Where an allocator has its memory from.
class MemorySource {
 public:
  virtual ~MemorySource() = default;
  /// Aligned to 512 bytes. Null: there is no more.
  [[nodiscard]] virtual void* take(std::size_t bytes) = 0;
  virtual void give(void* segment) = 0;
  /// Returns when nothing uses the memory that was freed so far.
  virtual void finish_all() = 0;
};

/// Threads: all functions may be called by any number of threads.
class CachingAllocator {
 public:
  struct Block;
  static constexpr std::size_t kAlignment = 512;
  static constexpr std::size_t kSegmentBytes = 2 << 20;
  /// Requests up to this share segments; a large block is split when more than this would be left.
  static constexpr std::size_t kSmallBytes = 1 << 20;
  static constexpr std::uint64_t kNoStream = 0;

  explicit CachingAllocator(MemorySource& source) noexcept : source_(&source) {}
  ~CachingAllocator();

  /// For use on the stream of that number (not kNoStream). Errors: NoSpace.
  [[nodiscard]] Result<Block*> allocate(std::size_t bytes, std::uint64_t stream);
  void free(Block* block);
  [[nodiscard]] static void* address_of(const Block* block) noexcept;
  /// Frees of `block` wait for the event.
  void add_use(Block* block, std::unique_ptr<EventImpl> event);
  /// The stream is idle and goes: what it had free is everybody's.
  void forget_stream(std::uint64_t stream);

  [[nodiscard]] MemoryStats stats() const;
  void reset_peak();
  void set_limit(std::uint64_t bytes);
  void release_kept();
  /// Blocks of a segment follow one another, free neighbors of one owner are one, and the counts are right. A sentence
  /// if not. For tests.
  [[nodiscard]] std::string check() const;

 private:
  struct BySize {
    bool operator()(const Block* a, const Block* b) const noexcept;
  };
  using Free = std::set<Block*, BySize>;

  Block* find(std::size_t bytes, std::uint64_t stream);
  Block* take_segment(std::size_t bytes, std::uint64_t stream);
  void make_free(Block* block);
  void free_for_all(const std::vector<Block*>& blocks);
  void poll_pending();
  void release_kept(std::unique_lock<std::mutex>& lock);

  MemorySource* source_;
  mutable std::mutex mutex_;  // of what follows
  std::map<std::uint64_t, Free> free_;
  std::vector<Block*> pending_;       // freed, and waiting for events
  std::map<void*, Block*> segments_;  // the first block of each
  std::uint64_t limit_bytes_ = std::numeric_limits<std::uint64_t>::max();
  MemoryStats stats_;
};

}  // namespace dunnock::device::detail
