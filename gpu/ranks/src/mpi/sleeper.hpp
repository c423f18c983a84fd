// Sleeper: an operation that has waited for long leaves its processor to others, and is woken or looks from time to
// time.
#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "computing.hpp"
#include "mpi/job.hpp"

namespace dunnock::ranks::detail::mpi {

using Clock = std::chrono::steady_clock;

/// What is waited for together.
struct Group {
  struct Waited {
    int sender = kOwn;                    // Who may wait until its message has been taken; none: kOwn.
    const std::byte* greeting = nullptr;  // Where it lies, when one is received.
    unsigned from = 0;                    // The greeting's rank in the job.
  };
  std::vector<MPI_Request> requests;
  std::vector<Waited> waited;                        // by request
  std::vector<int> found;                            // room for MPI's answer
  std::size_t left = 0;                              // that are not done
  Call call{};                                       // What all greetings should say.
  std::optional<std::pair<unsigned, Call>> other{};  // A rank that calls something else, and what.

  static constexpr int kOwn = -1;

  [[nodiscard]] MPI_Request& add(const Waited& what) {
    waited.push_back(what);
    found.push_back(0);
    ++left;
    return requests.emplace_back(MPI_REQUEST_NULL);
  }
  /// The next ones use its memory again.
  void clear() noexcept {
    requests.clear();
    waited.clear();
    found.clear();
    left = 0;
  }
};

/// Whether one of the group is done that was not, and rings for those whose messages have been taken; MPI's code. MPI
/// answers first, and then moves all messages along: what has come, it may say the next time only. Under the lock.
inline int test(Group& group, const Bells& bells, bool& found) {
  int count = 0;
  const int code = MPI_Testsome(static_cast<int>(group.requests.size()), group.requests.data(), &count,
                                group.found.data(), MPI_STATUSES_IGNORE);
  if (count == MPI_UNDEFINED) count = 0;
  for (int i = 0; i < count; ++i) {
    const Group::Waited& one = group.waited[static_cast<std::size_t>(group.found[static_cast<std::size_t>(i)])];
    if (one.sender != Group::kOwn) bells.ring(one.sender);
    if (one.greeting == nullptr) continue;
    Call call;
    std::memcpy(&call, one.greeting, sizeof call);
    if (call != group.call && !group.other) group.other = {one.from, call};
  }
  group.left -= static_cast<std::size_t>(count);
  found = count > 0;
  return code;
}

/// An operation that has waited for long. One of those that sleep looks for all of them from time to time, so that many
/// lanes that wait for other ranks cost no more than one, and leave the processors to those that compute. It is woken
/// by the bell; where bells are not enough, what has come is noticed at most 1/64 of the time late that its operation
/// has waited.
class Sleeper {
 public:
  Sleeper(Job& job, Group& group, Clock::time_point began, Clock::time_point until) noexcept
      : job_(job), bells_(*job.world->bells), group_(group), began_(began), until_(until) {}
  Sleeper(const Sleeper&) = delete;
  Sleeper& operator=(const Sleeper&) = delete;

  /// Returns when the group is done or a greeting is wrong, or the job has failed, or it is late, or MPI has an error:
  /// its code.
  [[nodiscard]] int sleep() {
    std::unique_lock lock(mpi_mutex());
    sleepers().push_back(this);
    if (looks() != nullptr) bells_.own().ring_loudly();  // What this one waits for may have come by now.
    while (!over() && Clock::now() < until_) {
      if (looks() == nullptr) looks() = this;
      if (looks() != this) {
        woken_.wait_until(lock, until_);
        continue;
      }
      const std::uint32_t rung = bells_.own().rung.load();
      look();
      if (over()) break;
      // Where more ranks than processors do no more than communicate, each wake would take a processor from another.
      const bool listens = device::detail::Computing::threads() > 0 || bells_.ranks_here() <= processors();
      const auto time = std::min(next_look(listens), until_) - Clock::now();
      if (time <= Clock::duration::zero()) continue;
      lock.unlock();
      bells_.own().wait(rung, time, listens);
      lock.lock();
    }
    std::erase(sleepers(), this);
    if (looks() == this) looks() = nullptr;
    // Somebody must look, and who was asked to may be on its way out as well.
    if (looks() == nullptr && !sleepers().empty()) sleepers().front()->woken_.notify_one();
    return code_;
  }
  [[nodiscard]] bool done() const noexcept { return group_.left == 0; }

 private:
  [[nodiscard]] bool over() const noexcept {
    return done() || group_.other.has_value() || failed_ || code_ != MPI_SUCCESS;
  }

  static constexpr std::chrono::microseconds kLookEvery{250};
  /// Where bells are enough. Little should be found then: what MPI had no room to send at once.
  static constexpr std::chrono::milliseconds kLookAnyway{2};

  // Of all, under the lock.
  static std::vector<Sleeper*>& sleepers() {
    static auto& all = *new std::vector<Sleeper*>;
    return all;
  }
  static Sleeper*& looks() {
    static Sleeper* one = nullptr;
    return one;
  }

  /// For all of them, until twice nothing is found: see test().
  void look() {
    for (unsigned in_vain = 0; in_vain < 2;) {
      bool any = false;
      for (Sleeper* const one : sleepers()) {
        if (one->over()) continue;
        bool found = false;
        one->code_ = test(one->group_, one->bells_, found);
        if (!one->done()) {
          look_for_notice(one->job_);
          one->failed_ = !one->job_.check().has_value();
        }
        if (one != this && one->over()) one->woken_.notify_one();
        any = any || found;
      }
      in_vain = any ? 0 : in_vain + 1;
    }
  }
  [[nodiscard]] Clock::time_point next_look(bool listens) const {
    const auto now = Clock::now();
    if (listens && bells_.are_enough()) return now + kLookAnyway;
    Clock::duration wait = kLookEvery;
    for (const Sleeper* const one : sleepers()) {
      if (!one->done()) wait = std::min(wait, (now - one->began_) / 64);
    }
    return now + wait;
  }

  Job& job_;
  Bells& bells_;
  Group& group_;
  Clock::time_point began_;
  Clock::time_point until_;
  std::condition_variable woken_;
  bool failed_ = false;  // The job, by a notice.
  int code_ = MPI_SUCCESS;
};

}  // namespace dunnock::ranks::detail::mpi
