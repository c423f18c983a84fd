// A mutex and a spin lock that simulated threads can wait for, too: they share a real one, which must not block.
#pragma once

#include <atomic>
#include <mutex>
#include <thread>
#include <type_traits>

#include "dunnock/pmem/media.hpp"

namespace dunnock::detail {

/// Are threads on this media simulated (pmem/sim_media.hpp)?
template <class M>
inline constexpr bool kSimulated = requires {
  requires M::kThreadsAreSimulated;
};

/// Lets other threads continue. Simulated threads share a real one, which must not give up its processor for them: that
/// took them most of their time where other programs ran.
template <Media M>
void let_others_run(const M& media) noexcept {
  media.pause();
  if constexpr (!kSimulated<M>) std::this_thread::yield();
}

/// Holds a lock of a few instructions.
class SpinLock {
 public:
  template <Media M>
  SpinLock(std::atomic<bool>& taken, const M& media) noexcept : taken_(taken) {
    while (taken_.exchange(true, std::memory_order_acquire)) let_others_run(media);  // Partner: the destructor.
  }
  SpinLock(const SpinLock&) = delete;
  SpinLock& operator=(const SpinLock&) = delete;
  ~SpinLock() { taken_.store(false, std::memory_order_release); }

 private:
  std::atomic<bool>& taken_;
};

template <Media M>
class MediaMutex {
 public:
  explicit MediaMutex(const M& media) : media_(media) {}
  void lock() {
    if constexpr (kSimulated<M>) {
      while (mutex_) media_.pause();
      mutex_ = true;
    } else {
      mutex_.lock();
    }
  }
  /// After a fork, the thread that holds it may not exist: ask media_ok() before locking.
  [[nodiscard]] const M& media() const noexcept { return media_; }
  void unlock() {
    if constexpr (kSimulated<M>) {
      mutex_ = false;
    } else {
      mutex_.unlock();
    }
  }

 private:
  [[no_unique_address]] M media_;
  std::conditional_t<kSimulated<M>, bool, std::mutex> mutex_{};
};

}  // namespace dunnock::detail
