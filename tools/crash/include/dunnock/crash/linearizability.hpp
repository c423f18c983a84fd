// Linearizability: is there an order of a recorded history that a single thread could have run?
//
// A history is a list of calls: each one's arguments and answer, when it began and when it returned. It is
// linearizable (Herlihy and Wing, 1990) if all calls can be put in one order such that
//   * a call that returned before another one began comes before it, and
//   * each answer is the one that a sequential object gives in that order.
// Calls that never returned (their thread was killed) may have had their effect at any time after they began, or none.
//
// The search is that of Wing and Gong (1993) with the memory of Lowe ("Testing for linearizability", 2017): of the
// calls that may come next, take one that the object allows, and never visit the same set of calls with the same state
// of the object twice. It is exponential in the number of calls that overlap, not in the length of the history.
//
// Objects that are made of independent ones (the keys of a map) are judged one by one: a history is linearizable if
// and only if those of its parts are (Herlihy and Wing's locality). The caller makes one history per key.
//
//   struct Counter {                                    // the sequential object
//     struct Call { bool add; int read; };
//     struct State { int value = 0; bool operator==(const State&) const = default; };
//     static std::size_t hash(const State& state) { return state.value; }
//     /// Is this answer to the call possible in this state? If so, updates the state.
//     static bool step(State& state, const Call& call) { ... }
//   };
//   const Verdict verdict = linearize<Counter>(history);
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

namespace dunnock::crash {

/// One call of a history. Times are from any clock that all threads share; calls that overlap may have equal times.
template <class Call>
struct Timed {
  static constexpr std::uint64_t kNever = std::numeric_limits<std::uint64_t>::max();
  Call call;
  std::uint64_t began = 0;
  std::uint64_t returned = kNever;
};

/// A clock for real threads: reading it is a step between what came before and what comes after it.
class HistoryClock {
 public:
  /// An atomic addition, which on x86 waits for the stores before it, so a call's effects are visible by the time that
  /// is recorded as its return. Relaxed, so that ThreadSanitizer does not take it for synchronization and still sees
  /// races.
  [[nodiscard]] std::uint64_t now() noexcept { return time_.fetch_add(1, std::memory_order_relaxed); }

 private:
  std::atomic<std::uint64_t> time_{1};
};

struct Verdict {
  bool linearizable = true;
  bool gave_up = false;  ///< More states than `states_max` were seen: neither yes nor no.
  std::vector<std::size_t>
      order;               ///< Of the calls: all if linearizable, otherwise the longest order found.
  std::size_t states = 0;  ///< Number of states visited.
  explicit operator bool() const noexcept { return linearizable && !gave_up; }
};

/// Searches for an order of the calls (given in any sequence) that `Object` could have run from `state`.
/// O(calls * states); `states_max` bounds the states.
template <class Object>
[[nodiscard]] Verdict linearize(std::vector<Timed<typename Object::Call>> calls, typename Object::State state = {},
                                std::size_t states_max = 2000000) {
  using State = typename Object::State;
  constexpr std::uint64_t kNever = Timed<typename Object::Call>::kNever;
  // In the order of their beginnings, a set of completed calls is a number of first ones and a few after these.
  std::vector<std::size_t> original(calls.size());
  for (std::size_t i = 0; i < calls.size(); ++i) original[i] = i;
  std::stable_sort(original.begin(), original.end(),
                   [&](std::size_t a, std::size_t b) { return calls[a].began < calls[b].began; });
  std::stable_sort(calls.begin(), calls.end(), [](const auto& a, const auto& b) { return a.began < b.began; });

  struct Configuration {
    std::size_t first_open = 0;         // all calls before it are done
    std::vector<std::uint64_t> beyond;  // bit i: call first_open + i is done; bit 0 is clear; no zero words at the end
    State state;
    bool operator==(const Configuration&) const = default;
    [[nodiscard]] bool done(std::size_t i) const {
      if (i < first_open) return true;
      const std::size_t bit = i - first_open;
      return bit / 64 < beyond.size() && (beyond[bit / 64] >> bit % 64 & 1) != 0;
    }
    void finish(std::size_t i) {
      const std::size_t bit = i - first_open;
      if (bit / 64 >= beyond.size()) beyond.resize(bit / 64 + 1);
      beyond[bit / 64] |= std::uint64_t{1} << bit % 64;
      std::size_t closed = 0;
      while (closed / 64 < beyond.size() && (beyond[closed / 64] >> closed % 64 & 1) != 0) ++closed;
      if (closed != 0) {
        std::vector<std::uint64_t> rest;
        for (std::size_t bit_at = closed; bit_at < beyond.size() * 64; ++bit_at) {
          if ((beyond[bit_at / 64] >> bit_at % 64 & 1) == 0) continue;
          const std::size_t to = bit_at - closed;
          if (to / 64 >= rest.size()) rest.resize(to / 64 + 1);
          rest[to / 64] |= std::uint64_t{1} << to % 64;
        }
        beyond = std::move(rest);
        first_open += closed;
      }
    }
  };
  struct Hash {
    std::size_t operator()(const Configuration& one) const {
      std::size_t value = one.first_open * 0x9e3779b97f4a7c15ULL ^ Object::hash(one.state);
      for (const std::uint64_t word : one.beyond) value = (value ^ word) * 0x2545f4914f6cdd1dULL + (value >> 29);
      return value;
    }
  };
  struct Frame {
    Configuration at;
    std::size_t next;      // the call to be tried next
    std::size_t took = 0;  // the one that led here
  };

  Verdict verdict;
  const auto returned = static_cast<std::size_t>(
      std::count_if(calls.begin(), calls.end(), [](const auto& one) { return one.returned != kNever; }));
  std::unordered_set<Configuration, Hash> seen;
  std::vector<Frame> path;
  path.push_back({{0, {}, std::move(state)}, 0, 0});
  seen.insert(path.back().at);
  std::size_t returned_done = 0, longest = 0;
  const auto note_longest = [&] {
    if (returned_done < longest || (returned_done == longest && !verdict.order.empty())) return;
    longest = returned_done;
    verdict.order.clear();
    for (std::size_t i = 1; i < path.size(); ++i) verdict.order.push_back(original[path[i].took]);
  };
  while (!path.empty()) {
    if (returned_done == returned) {
      note_longest();
      return verdict;
    }
    Frame& frame = path.back();
    // A call may come next if none that is open returned before it began.
    std::uint64_t earliest_return = kNever;
    for (std::size_t i = frame.at.first_open; i < calls.size() && calls[i].began <= earliest_return; ++i) {
      if (!frame.at.done(i)) earliest_return = std::min(earliest_return, calls[i].returned);
    }
    bool deeper = false;
    for (std::size_t i = std::max(frame.next, frame.at.first_open); i < calls.size(); ++i) {
      if (calls[i].began > earliest_return) break;
      if (frame.at.done(i)) continue;
      Configuration next = frame.at;
      if (!Object::step(next.state, calls[i].call)) continue;
      next.finish(i);
      if (!seen.insert(next).second) continue;
      if (seen.size() > states_max) {
        note_longest();
        verdict.gave_up = true;
        verdict.states = seen.size();
        return verdict;
      }
      frame.next = i + 1;
      returned_done += calls[i].returned != kNever ? 1 : 0;
      path.push_back({std::move(next), 0, i});
      deeper = true;
      break;
    }
    verdict.states = seen.size();
    if (deeper) continue;
    note_longest();
    if (path.size() > 1) returned_done -= calls[path.back().took].returned != kNever ? 1 : 0;
    path.pop_back();
  }
  verdict.linearizable = false;
  return verdict;
}

/// The calls that could have come next after the longest order that was found: those that can't be explained.
template <class Call>
[[nodiscard]] std::vector<std::size_t> unexplained(const std::vector<Timed<Call>>& calls, const Verdict& verdict) {
  std::vector<bool> done(calls.size(), false);
  for (const std::size_t i : verdict.order) done[i] = true;
  std::uint64_t earliest_return = Timed<Call>::kNever;
  for (std::size_t i = 0; i < calls.size(); ++i) {
    if (!done[i]) earliest_return = std::min(earliest_return, calls[i].returned);
  }
  std::vector<std::size_t> left;
  for (std::size_t i = 0; i < calls.size(); ++i) {
    if (!done[i] && calls[i].began <= earliest_return) left.push_back(i);
  }
  return left;
}

}  // namespace dunnock::crash
