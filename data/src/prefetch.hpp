// Prefetch: a thread that fills slots in order, ahead of the one who takes them. What a slot is and how it is filled is
// the loader's matter.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "dunnock/base/result.hpp"

namespace dunnock::data::detail {

/// Threads: next() and stop() one at a time; give_back() any.
template <class Slot>
class Prefetch {
 public:
  /// Makes a slot the batch of this number, counted from the one that the prefetch begins with. Runs on the thread.
  using Fill = std::function<Status(std::uint64_t number, Slot& slot)>;

  Prefetch(std::vector<Slot> slots, std::uint64_t first, Fill fill) : slots_(std::move(slots)), fill_(std::move(fill)) {
    for (std::size_t i = 0; i < slots_.size(); ++i) free_.push_back(i);
    thread_ = std::thread([this, first] { run(first); });
  }
  Prefetch(const Prefetch&) = delete;
  Prefetch& operator=(const Prefetch&) = delete;
  ~Prefetch() { stop(); }

  /// The slot of the next batch. Errors: what filling it said; InvalidArgument: all slots are with the caller.
  Result<std::size_t> next() {
    std::unique_lock lock(mutex_);
    if (taken_ == slots_.size())
      return make_error(ErrorCode::kInvalidArgument,
                        "all " + std::to_string(slots_.size()) + " batches of the loader are held; release one first");
    changed_.wait(lock, [this] { return !ready_.empty() || error_.has_value(); });
    if (ready_.empty()) return tl::unexpected(*error_);
    const std::size_t slot = ready_.front();
    ready_.pop_front();
    ++taken_;
    return slot;
  }
  void give_back(std::size_t slot) {
    {
      const std::scoped_lock lock(mutex_);
      free_.push_back(slot);
      --taken_;
    }
    changed_.notify_all();
  }
  /// Ends the thread; the slots stay as they are.
  void stop() {
    {
      const std::scoped_lock lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    if (thread_.joinable()) thread_.join();
  }
  [[nodiscard]] Slot& slot(std::size_t index) noexcept { return slots_[index]; }

 private:
  void run(std::uint64_t number) {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [this] { return stopping_ || !free_.empty(); });
      if (stopping_) return;
      const std::size_t slot = free_.front();
      free_.pop_front();
      lock.unlock();
      Status filled = fill_(number++, slots_[slot]);
      lock.lock();
      if (!filled) {
        error_ = std::move(filled.error());  // After the batches that are ready: order is kept.
        changed_.notify_all();
        return;
      }
      ready_.push_back(slot);
      changed_.notify_all();
    }
  }

  std::vector<Slot> slots_;
  Fill fill_;
  std::mutex mutex_;
  std::condition_variable changed_;
  // All below with the mutex. A slot is free, being filled, ready, or with the caller.
  std::deque<std::size_t> free_;
  std::deque<std::size_t> ready_;
  std::size_t taken_ = 0;
  std::optional<Error> error_;
  bool stopping_ = false;
  std::thread thread_;
};

/// A slot with the caller; gives it back.
template <class Slot>
class Lease {
 public:
  Lease(std::shared_ptr<Prefetch<Slot>> from, std::size_t slot) noexcept : from_(std::move(from)), slot_(slot) {}
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;
  ~Lease() { from_->give_back(slot_); }
  [[nodiscard]] const Slot& slot() const noexcept { return from_->slot(slot_); }

 private:
  std::shared_ptr<Prefetch<Slot>> from_;
  std::size_t slot_;
};

}  // namespace dunnock::data::detail
