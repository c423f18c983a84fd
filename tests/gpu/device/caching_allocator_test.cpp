// The caching allocator, on a device that is made up: it counts, runs out, and has streams that lag behind.
#include "caching_allocator.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <vector>

#include "driver.hpp"
#include "support/seed.hpp"

namespace dunnock::device::detail {
namespace {

constexpr std::size_t kMega = 1 << 20;

/// Has `capacity` bytes, and says how much it was asked.
class Source final : public MemorySource {
 public:
  explicit Source(std::size_t capacity = 1ULL << 40) : capacity_(capacity) {}
  void* take(std::size_t bytes) override {
    if (taken_bytes + bytes > capacity_) return nullptr;
    // Addresses only; nobody writes there.
    auto* const address = reinterpret_cast<void*>(next_);
    next_ += bytes + kMega;
    segments[address] = bytes;
    taken_bytes += bytes;
    return address;
  }
  void give(void* segment) override {
    taken_bytes -= segments.at(segment);
    segments.erase(segment);
  }
  void finish_all() override {
    ++finishes;
    if (on_finish) on_finish();
  }

  std::map<void*, std::size_t> segments;
  std::size_t taken_bytes = 0;
  unsigned finishes = 0;
  std::function<void()> on_finish;

 private:
  std::size_t capacity_;
  std::uintptr_t next_ = 1ULL << 30;
};

class SetEvent final : public EventImpl {
 public:
  explicit SetEvent(std::shared_ptr<bool> is_done) : done_(std::move(is_done)) {}
  [[nodiscard]] bool done() const override { return *done_; }
  [[nodiscard]] Status synchronize() const override { return {}; }
  [[nodiscard]] double ms_since(const EventImpl&) const override { return 0; }

 private:
  std::shared_ptr<bool> done_;
};

using Block = CachingAllocator::Block;

TEST(CachingAllocator, uses_a_freed_block_again_on_the_same_stream_only) {
  Source source;
  CachingAllocator allocator(source);
  Block* const first = *allocator.allocate(1000, 1);
  const void* const address = CachingAllocator::address_of(first);
  allocator.free(first);
  Block* const other = *allocator.allocate(1000, 2);
  EXPECT_NE(CachingAllocator::address_of(other), address) << "stream 1 may still be writing there";
  Block* const again = *allocator.allocate(1000, 1);
  EXPECT_EQ(CachingAllocator::address_of(again), address);
  EXPECT_EQ(allocator.stats().device_allocations, 2U);
  EXPECT_EQ(allocator.stats().hits, 1U);
  EXPECT_EQ(allocator.stats().used_bytes, 2048U) << "rounded to 512";
  EXPECT_EQ(allocator.check(), "");
}

TEST(CachingAllocator, waits_for_the_events_of_other_streams) {
  Source source;
  CachingAllocator allocator(source);
  Block* const block = *allocator.allocate(2 * kMega, 1);
  const void* const address = CachingAllocator::address_of(block);
  const auto done = std::make_shared<bool>(false);
  allocator.add_use(block, std::make_unique<SetEvent>(done));
  allocator.free(block);
  EXPECT_EQ(allocator.stats().used_bytes, 0U);
  Block* const second = *allocator.allocate(2 * kMega, 1);
  EXPECT_NE(CachingAllocator::address_of(second), address);
  *done = true;
  Block* const third = *allocator.allocate(2 * kMega, 1);
  EXPECT_EQ(CachingAllocator::address_of(third), address);
  EXPECT_EQ(allocator.check(), "");
}

TEST(CachingAllocator, gives_everybody_what_a_stream_that_has_gone_had_free) {
  Source source;
  CachingAllocator allocator(source);
  std::vector<Block*> blocks;
  for (int i = 0; i < 4; ++i) blocks.push_back(*allocator.allocate(kMega / 2, 1));
  for (const int i : {0, 2}) allocator.free(blocks[static_cast<std::size_t>(i)]);
  allocator.forget_stream(1);
  EXPECT_EQ(allocator.check(), "");
  Block* const mine = *allocator.allocate(kMega / 2, 7);
  EXPECT_EQ(source.segments.size(), 1U);
  allocator.free(blocks[1]);  // Outlived its stream.
  EXPECT_EQ(allocator.check(), "");
  allocator.free(mine);
  EXPECT_EQ(allocator.check(), "");
}

TEST(CachingAllocator, gives_back_what_it_keeps_before_it_refuses) {
  Source source(8 * kMega);
  CachingAllocator allocator(source);
  allocator.free(*allocator.allocate(6 * kMega, 1));
  EXPECT_EQ(source.taken_bytes, 6 * kMega);
  // It fits only when the block of stream 1 goes back to the device.
  Block* const large = *allocator.allocate(7 * kMega, 2);
  EXPECT_EQ(source.finishes, 1U) << "stream 1 may have used it until now";
  EXPECT_EQ(allocator.stats().releases, 1U);
  const auto refused = allocator.allocate(kMega, 1);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kNoSpace);
  EXPECT_NE(refused.error().message.find("1048576 bytes"), std::string::npos) << refused.error().message;
  EXPECT_EQ(allocator.check(), "");
  allocator.free(large);
  EXPECT_TRUE(allocator.allocate(kMega, 1));
}

TEST(CachingAllocator, lets_operations_free_memory_while_it_waits_for_them) {
  Source source(4 * kMega);
  CachingAllocator allocator(source);
  Block* const first = *allocator.allocate(2 * kMega, 1);
  allocator.free(*allocator.allocate(2 * kMega, 1));
  source.on_finish = [&] { allocator.free(first); };
  EXPECT_TRUE(allocator.allocate(2 * kMega, 2));
  EXPECT_EQ(allocator.check(), "");
}

TEST(CachingAllocator, keeps_to_its_limit_and_knows_its_peak) {
  Source source;
  CachingAllocator allocator(source);
  allocator.set_limit(3 * kMega);
  Block* const block = *allocator.allocate(2 * kMega, 1);
  EXPECT_EQ(allocator.allocate(kMega + 1, 1).error().code, ErrorCode::kNoSpace);
  EXPECT_TRUE(allocator.allocate(kMega, 1));
  EXPECT_EQ(allocator.stats().used_bytes_peak, 3 * kMega);
  allocator.free(block);
  EXPECT_EQ(allocator.stats().used_bytes_peak, 3 * kMega);
  allocator.reset_peak();
  EXPECT_EQ(allocator.stats().used_bytes_peak, kMega);
  EXPECT_EQ(allocator.allocate(std::size_t{0} - 5, 1).error().code, ErrorCode::kNoSpace) << "nothing overflows";
}

TEST(CachingAllocator, never_gives_memory_twice_and_keeps_its_books) {
  auto random = test::generator(1);
  Source source(512 * kMega);
  CachingAllocator allocator(source);
  struct Held {
    Block* block;
    std::size_t bytes;
  };
  std::vector<Held> held;
  std::vector<std::shared_ptr<bool>> events;
  std::map<const std::byte*, std::size_t> ranges;  // in use
  std::set<std::uint64_t> gone;
  for (unsigned step = 0; step < 20000; ++step) {
    const unsigned what = random() % 100;
    if (what < 50) {
      const std::size_t bytes = random() % 10 == 0 ? random() % (40 * kMega) : random() % 5000;
      const std::uint64_t stream = 1 + random() % 5 + (step / 4000) * 5;
      const auto made = allocator.allocate(bytes, stream);
      if (!made) {
        ASSERT_EQ(made.error().code, ErrorCode::kNoSpace);
        continue;
      }
      const auto* const at = static_cast<const std::byte*>(CachingAllocator::address_of(*made));
      ASSERT_EQ(reinterpret_cast<std::uintptr_t>(at) % CachingAllocator::kAlignment, 0U);
      const std::size_t room = std::max<std::size_t>(bytes, 1);
      const auto behind = ranges.upper_bound(at);
      if (behind != ranges.end()) {
        ASSERT_LE(at + room, behind->first);
      }
      if (behind != ranges.begin()) {
        ASSERT_LE(std::prev(behind)->first + std::prev(behind)->second, at);
      }
      ranges[at] = room;
      held.push_back({*made, bytes});
    } else if (what < 97 && !held.empty()) {
      std::swap(held[random() % held.size()], held.back());
      Block* const block = held.back().block;
      held.pop_back();
      if (random() % 4 == 0) {
        events.push_back(std::make_shared<bool>(false));
        allocator.add_use(block, std::make_unique<SetEvent>(events.back()));
      }
      ranges.erase(static_cast<const std::byte*>(CachingAllocator::address_of(block)));
      allocator.free(block);
    } else if (what == 97) {
      for (const auto& event : events) *event = *event || random() % 2 == 0;
    } else if (what == 98) {
      allocator.forget_stream(1 + random() % 25);
    } else {
      source.on_finish = [&] {
        for (const auto& event : events) *event = true;
      };
      if (random() % 10 == 0) allocator.release_kept();
    }
    if (step % 64 == 0) {
      ASSERT_EQ(allocator.check(), "") << step;
    }
  }
  for (const Held& one : held) allocator.free(one.block);
  allocator.release_kept();
  EXPECT_EQ(allocator.check(), "");
  EXPECT_EQ(allocator.stats().used_bytes, 0U);
  EXPECT_EQ(allocator.stats().held_bytes, 0U);
  EXPECT_TRUE(source.segments.empty()) << "all went back to the device";
  EXPECT_GT(allocator.stats().hits, allocator.stats().device_allocations);
}

}  // namespace
}  // namespace dunnock::device::detail
