// What the histories of all structures share: simulated threads that run operations in an order that the seed chooses,
// the moments that a checker has to know of, and calls that must have an order.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "dunnock/crash/explorer.hpp"
#include "dunnock/crash/linearizability.hpp"
#include "workload.hpp"

namespace dunnock::crash {

class HistorySubject : public Subject {
 public:
  bool reschedule(std::uint64_t schedule) final {
    schedule_ = schedule;
    return workload_.threads > 1;
  }

 protected:
  explicit HistorySubject(const Workload& workload) : workload_(workload) {}

  void begin_record() {
    violation_.reset();
    closed_.clear();
    format_acked_ = 0;
    images_seen_ = 0;
  }

  /// Runs the operations named in `keep` on their threads, up to a violation. `in_turns`: each begins when the one
  /// before has returned, whichever thread it is of. False: all threads wait for each other.
  template <class Operation, class Run>
  [[nodiscard]] bool run_history(SimMemory& memory, const std::vector<Operation>& operations,
                                 const std::vector<std::size_t>& keep, bool in_turns, const Run& run) {
    std::size_t turn = 0;
    std::vector<std::function<void()>> threads;
    for (unsigned t = 0; t < workload_.threads; ++t) {
      threads.push_back([&, t] {
        for (std::size_t n = 0; n < keep.size(); ++n) {
          const Operation& operation = operations[keep[n]];
          if (operation.thread != t) continue;
          while (in_turns && turn != n) memory.pause();
          if (!violation_) run(operation);
          turn = n + 1;
        }
      });
    }
    const auto switch_every = 1 + static_cast<unsigned>((switch_every_ - 1 + schedule_) % 6);
    return memory.run_threads(threads, workload_.seed + schedule_ * 0x9e3779b97f4a7c15ULL, switch_every);
  }

  /// Recovers on one thread and continues on another, so that a fence that recovery forgot is not made up for.
  /// `recover` returns false if there is nothing to continue with.
  template <class Recover, class Continue>
  void recover_and_continue(SimMemory& memory, const Recover& recover, const Continue& go_on) const {
    bool recovered = false, there = false;
    const auto first = [&] {
      there = recover();
      recovered = true;
    };
    const auto second = [&] {
      while (!recovered) memory.pause();
      if (there) go_on();
    };
    const std::vector<std::function<void()>> threads = {first, second};
    (void)memory.run_threads(threads, workload_.seed, 1);
  }

  /// Before format() returns there may be no structure, but not half a one.
  [[nodiscard]] bool may_be_missing(std::size_t events, const Error& error) const {
    return life_ && events < format_acked_ && error.code == ErrorCode::kWrongLayout;
  }
  /// close() has returned, and nothing has happened since.
  [[nodiscard]] bool must_be_clean(std::size_t events, std::size_t more) const {
    return more == 0 && std::find(closed_.begin(), closed_.end(), events) != closed_.end();
  }
  /// For what is too costly for each image.
  [[nodiscard]] bool is_one_in(std::size_t many) const { return ++images_seen_ % many == 8; }

  Workload workload_;
  unsigned switch_every_ = 1;  // Threads switch at one step in this many; each schedule has another number.
  std::uint64_t schedule_ = 0;
  bool life_ = false;  // starts from zeroed memory
  std::size_t format_acked_ = 0;
  std::vector<std::size_t> closed_;  // events when close() had returned
  std::optional<std::string> violation_;

 private:
  mutable std::size_t images_seen_ = 0;
};

/// The calls on each of a structure's keys, which are independent. `Object` is what a single thread would see of one.
template <class Object>
class CallsOfKeys {
 public:
  using Call = typename Object::Call;
  void begin(std::size_t keys) {
    calls_.assign(keys, {});
    time_ = 0;
  }
  [[nodiscard]] std::uint64_t now() { return ++time_; }
  void returned(std::size_t key, Call call, std::uint64_t began) {
    calls_[key].push_back({std::move(call), began, ++time_});
  }
  void never_returned(std::size_t key, Call call, std::uint64_t began) {
    calls_[key].push_back({std::move(call), began, Timed<Call>::kNever});
  }
  /// A sentence about the first key whose calls have no order. `first(key)` is its state before all of them.
  template <class First>
  [[nodiscard]] std::optional<std::string> unexplained(const First& first) const {
    for (std::size_t key = 0; key < calls_.size(); ++key) {
      if (!linearize<Object>(calls_[key], first(key)))
        return "after running: no order explains the calls on key #" + std::to_string(key);
    }
    return std::nullopt;
  }

 private:
  std::vector<std::vector<Timed<Call>>> calls_;
  std::uint64_t time_ = 0;  // counts the beginnings and returns of calls
};

/// The keys that operations are changing, for others to follow.
class UnderWay {
 public:
  /// Some keys are under way while this lives.
  class Keys {
   public:
    Keys(std::vector<std::size_t>& list, std::vector<std::size_t> keys) : list_(list), keys_(std::move(keys)) {
      list_.insert(list_.end(), keys_.begin(), keys_.end());
    }
    Keys(const Keys&) = delete;
    Keys& operator=(const Keys&) = delete;
    ~Keys() {
      for (const std::size_t i : keys_) list_.erase(std::find(list_.begin(), list_.end(), i));
    }

   private:
    std::vector<std::size_t>& list_;
    std::vector<std::size_t> keys_;
  };

  void begin(std::uint64_t seed) {
    list_.clear();
    choices_.seed(seed);
  }
  [[nodiscard]] Keys enter(std::vector<std::size_t> keys) { return Keys(list_, std::move(keys)); }
  [[nodiscard]] bool empty() const { return list_.empty(); }
  [[nodiscard]] std::size_t any() { return list_[choose(list_.size())]; }
  /// A number below `count`, from the seed.
  [[nodiscard]] std::size_t choose(std::size_t count) { return choices_() % count; }

 private:
  std::vector<std::size_t> list_;
  std::mt19937_64 choices_;
};

}  // namespace dunnock::crash
