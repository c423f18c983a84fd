// How many threads compute for the streams of the CPU just now, in this process: who waits for others asks, and leaves
// its processor to them.
#pragma once

#include <atomic>
#include <cstdint>

namespace dunnock::device::detail {

/// While this lives, the calling thread runs an operation on `threads` threads. Objects of one thread nest.
class Computing {
 public:
  explicit Computing(int threads) noexcept : before_(own()) {
    operations() += before_ == 0 ? 1 : 0;
    set(threads);
  }
  Computing(const Computing&) = delete;
  Computing& operator=(const Computing&) = delete;
  ~Computing() { set(before_); }

  /// Of all threads of the process. Any thread.
  [[nodiscard]] static int threads() noexcept { return total().load(std::memory_order_relaxed); }
  /// How many of this thread's own there have been, those within another left out.
  [[nodiscard]] static std::uint64_t operations_of_this_thread() noexcept { return operations(); }

 private:
  static std::atomic<int>& total() noexcept {
    static std::atomic<int> sum{0};
    return sum;
  }
  static std::uint64_t& operations() noexcept {
    static thread_local std::uint64_t count = 0;
    return count;
  }
  static int& own() noexcept {
    static thread_local int threads = 0;
    return threads;
  }
  static void set(int threads) noexcept {
    total().fetch_add(threads - own(), std::memory_order_relaxed);
    own() = threads;
  }

  int before_;
};

}  // namespace dunnock::device::detail
