// EmulatedNvm: plain memory made as slow as non-volatile memory, in the manner of Quartz (Volos, Magalhaes,
// Cherkasova, Li, Middleware 2015), for benchmarks on machines without it. Not a simulator of any product.
//
// An access outside the 64 256-byte blocks that a thread used last waits `read_ns` longer than DRAM takes. A flushed
// line uses 256 bytes of a write bandwidth that all threads share, and the fence waits until that write is done.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>

#include "dunnock/pmem/media.hpp"

namespace dunnock {

struct NvmSpeed {
  unsigned read_ns = 200;       ///< Extra latency over DRAM for a block that is not recent. (Optane: about 300 vs 100.)
  double write_gb_per_s = 2.0;  ///< Write bandwidth in 256-byte blocks, for all threads together.
};

/// Shared by all EmulatedNvm of one run.
class NvmModel {
 public:
  explicit NvmModel(const NvmSpeed& speed) : speed_(speed) {}

  void read(const void* address) noexcept {
    const std::uint64_t block = reinterpret_cast<std::uintptr_t>(address) / 256;
    std::uint64_t& slot = recent()[block % kRecent];
    if (slot == block) return;
    slot = block;
    wait_until(now_ns() + speed_.read_ns);
  }
  void write_back(const void* address) noexcept {
    const std::uint64_t block = reinterpret_cast<std::uintptr_t>(address) / 256;
    recent()[block % kRecent] = block;
    const auto cost = static_cast<std::uint64_t>(256.0 / speed_.write_gb_per_s);
    // Queue behind whatever is being written.
    std::uint64_t free_at = free_at_.load(std::memory_order_relaxed);
    std::uint64_t start;
    do {
      start = free_at > now_ns() ? free_at : now_ns();
    } while (!free_at_.compare_exchange_weak(free_at, start + cost, std::memory_order_relaxed));
    if (start + cost > pending()) pending() = start + cost;
  }
  void drain() noexcept {
    wait_until(pending());
    pending() = 0;
  }

 private:
  static constexpr std::size_t kRecent = 64;
  static std::array<std::uint64_t, kRecent>& recent() noexcept {
    thread_local std::array<std::uint64_t, kRecent> blocks{};
    return blocks;
  }
  static std::uint64_t& pending() noexcept {
    thread_local std::uint64_t until = 0;
    return until;
  }
  static std::uint64_t now_ns() noexcept {
    return static_cast<std::uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
  }
  static void wait_until(std::uint64_t ns) noexcept {
    while (now_ns() < ns) detail::cpu_pause();
  }

  NvmSpeed speed_;
  std::atomic<std::uint64_t> free_at_{0};
};

struct EmulatedNvm : detail::MappedMedia {
  static constexpr Durability kDurability = Durability::kPower;
  static constexpr bool kVisibleIsDurable = false;
  static constexpr bool kScalarLoads = true;  // The model must see every access.
  explicit EmulatedNvm(NvmModel& model) noexcept : model_(&model) {}
  [[nodiscard]] std::uint64_t load(const Word& word) const noexcept {
    model_->read(&word);
    return MappedMedia::load(word);
  }
  void flush(Point, const void* address) const noexcept {
    detail::flush_line(address);
    model_->write_back(address);
  }
  void fence(Point) const noexcept {
    detail::store_fence();
    model_->drain();
  }

 private:
  NvmModel* model_;
};

static_assert(Media<EmulatedNvm>);

}  // namespace dunnock
