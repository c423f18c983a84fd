// Histories of real threads: each notes its calls by itself, and in the end an order is searched that explains them
// (dunnock/crash/linearizability.hpp).
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "dunnock/crash/linearizability.hpp"

namespace dunnock::test {

/// The calls of several threads on an object of independent parts (the keys of a map).
template <class Object>
class Histories {
 public:
  using Call = typename Object::Call;

  explicit Histories(std::size_t threads) : threads_(threads) {}

  /// Runs `call()` for a thread. The caller says afterwards, with note(), what it was and what it answered.
  template <class Run>
  auto timed(std::size_t thread, Run&& run) {
    threads_[thread].began = clock_.now();
    auto answer = run();
    threads_[thread].returned = clock_.now();
    return answer;
  }
  /// The call that this thread has just made had this to do with `part`.
  void note(std::size_t thread, std::uint64_t part, Call call) {
    Thread& one = threads_[thread];
    one.calls.emplace_back(part, crash::Timed<Call>{std::move(call), one.began, one.returned});
  }

  /// All calls on each part. Only when no thread notes anything any more.
  [[nodiscard]] std::map<std::uint64_t, std::vector<crash::Timed<Call>>> parts() const {
    std::map<std::uint64_t, std::vector<crash::Timed<Call>>> parts;
    for (const Thread& one : threads_) {
      for (const auto& [part, call] : one.calls) parts[part].push_back(call);
    }
    return parts;
  }
  /// A sentence about a part whose calls no order explains; empty when there is none.
  [[nodiscard]] std::string unexplained(const typename Object::State& first = {}) const {
    for (const auto& [part, calls] : parts()) {
      const crash::Verdict verdict = crash::linearize<Object>(calls, first);
      if (verdict) continue;
      std::string text = "no order explains the " + std::to_string(calls.size()) + " calls on " + std::to_string(part);
      if (verdict.gave_up) return "the search for an order was given up for " + std::to_string(part);
      text += "; these can't follow the " + std::to_string(verdict.order.size()) + " that it does:";
      for (const std::size_t i : crash::unexplained(calls, verdict)) {
        text += " (kind " + std::to_string(static_cast<int>(calls[i].call.what)) + ", " +
                std::to_string(calls[i].began) + " to " + std::to_string(calls[i].returned) + ")";
      }
      return text;
    }
    return {};
  }

 private:
  struct Thread {
    std::uint64_t began = 0, returned = 0;
    std::vector<std::pair<std::uint64_t, crash::Timed<Call>>> calls;
  };
  crash::HistoryClock clock_;
  std::vector<Thread> threads_;
};

}  // namespace dunnock::test
