// The time that a run may take, and what happens when it is over.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

namespace dunnock::gpu_check {

/// A budget of this many seconds from its creation on.
class Budget {
 public:
  explicit Budget(double seconds)
      : end_(Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds))) {}
  /// Not less than 0.
  [[nodiscard]] double seconds_left() const {
    const double left = std::chrono::duration<double>(end_ - Clock::now()).count();
    return left > 0 ? left : 0;
  }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point end_;
};

/// Calls `when_over` on a thread of its own when the budget is over, unless it is destroyed before: an operation of a
/// device that never ends can't be called off, so `when_over` must end the process.
class Watchdog {
 public:
  Watchdog(const Budget& budget, std::function<void()> when_over)
      : thread_([this, &budget, when_over = std::move(when_over)] {
          std::unique_lock lock(mutex_);
          const auto left = std::chrono::duration<double>(budget.seconds_left());
          if (!called_off_.wait_for(lock, left, [this] { return done_; })) when_over();
        }) {}
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;
  ~Watchdog() {
    {
      const std::lock_guard lock(mutex_);
      done_ = true;
    }
    called_off_.notify_one();
    thread_.join();
  }

 private:
  std::mutex mutex_;
  std::condition_variable called_off_;
  bool done_ = false;
  std::thread thread_;  // The last: it uses the others.
};

}  // namespace dunnock::gpu_check
