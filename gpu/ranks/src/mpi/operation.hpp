// Operation: one call of a communicator, as requests of MPI in groups that are waited for together.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include "dunnock/base/check.hpp"
#include "mpi/sleeper.hpp"

namespace dunnock::ranks::detail::mpi {

/// One operation: requests in groups, and the patience with them. Of the stream's thread.
class Operation {
 public:
  /// `receives`: of a message.
  Operation(Job& job, const Call& call, bool receives = false) noexcept : job_(job), call_(call), receives_(receives) {}
  Operation(const Operation&) = delete;
  Operation& operator=(const Operation&) = delete;
  ~Operation() {
    if (!scratch_) return;
    const std::lock_guard lock(job_.mutex);
    job_.scratch.push_back(std::move(scratch_));
  }

  /// One of its own, of at most kGroups.
  [[nodiscard]] Group& group() {
    DUNNOCK_CHECK(begun_ < kGroups, "an operation has room for its groups");
    return groups_[begun_++];
  }
  [[nodiscard]] unsigned rank() const noexcept { return job_.rank; }
  [[nodiscard]] unsigned size() const noexcept { return job_.size; }
  [[nodiscard]] Job& job() const noexcept { return job_; }
  [[nodiscard]] const Call& call() const noexcept { return call_; }
  [[nodiscard]] Bells& bells() const noexcept { return *job_.world->bells; }
  /// The rank that is `steps` behind this one: each begins with another, so that none is crowded.
  [[nodiscard]] unsigned behind(unsigned steps) const noexcept { return (job_.rank + steps) % job_.size; }
  [[nodiscard]] unsigned before(unsigned steps) const noexcept { return (job_.rank + job_.size - steps) % job_.size; }

  [[nodiscard]] std::byte* scratch() {
    if (scratch_) return scratch_.get();
    {
      const std::lock_guard lock(job_.mutex);
      if (!job_.scratch.empty()) {
        scratch_ = std::move(job_.scratch.back());
        job_.scratch.pop_back();
        return scratch_.get();
      }
    }
    scratch_ = std::make_unique_for_overwrite<std::byte[]>(scratch_bytes(job_));
    return scratch_.get();
  }

  void send(const void* from, std::size_t bytes, unsigned to, int tag, MPI_Comm comm, Group& group) {
    {
      const std::lock_guard all(mpi_mutex());
      note(MPI_Isend(from, static_cast<int>(bytes), MPI_BYTE, job_.members[to], tag, comm, &group.add({})));
    }
    bells().ring(job_.members[to]);
  }
  void receive(void* to, std::size_t bytes, unsigned from, int tag, MPI_Comm comm, Group& group) {
    receive(to, bytes, {.sender = job_.members[from]}, tag, comm, group);
  }
  /// A greeting with `bytes` more, at most kFewBytes.
  void greet(const void* values, std::size_t bytes, unsigned to, int tag, MPI_Comm comm, Group& group) {
    std::byte* const at = greeting(size() - 1, to);
    std::memcpy(at, &call_, sizeof call_);
    if (bytes != 0) std::memcpy(at + sizeof call_, values, bytes);
    send(at, sizeof call_ + bytes, to, tag, comm, group);
  }
  void be_greeted(unsigned from, int tag, MPI_Comm comm, Group& group) {
    std::byte* const at = greeting(0, from);
    group.call = call_;
    receive(at, kGreetingBytes, {.sender = job_.members[from], .greeting = at, .from = from}, tag, comm, group);
  }
  /// What came with the greeting.
  [[nodiscard]] const std::byte* values_of(unsigned from) { return greeting(0, from) + sizeof call_; }

  /// Returns when all of the group are done. Errors, after which nothing more may be waited for: PeerLost;
  /// InvalidArgument (another rank has called something else).
  [[nodiscard]] Status wait(Group& group) {
    if (group.requests.empty()) return {};
    const auto began = Clock::now();
    bool done = false;
    {
      // Where more are awake than there are processors, each lets others run. Other ranks are taken to be like this.
      const Awake here;
      const auto is_crowded = [this] { return Awake::count() * bells().ranks_here() > processors(); };
      // Who stays awake beside one that computes makes it slower, and itself: it has used up its turn when it is woken.
      const auto is_in_the_way = [this] {
        const int computing = device::detail::Computing::threads();
        return bells().are_enough() && computing > 0 &&
               (static_cast<unsigned>(computing) + 1) * bells().ranks_here() > processors();
      };
      bool crowded = is_crowded();
      for (unsigned tries = 1; code_ == MPI_SUCCESS; ++tries) {
        bool found = false;
        {
          const std::lock_guard all(mpi_mutex());
          note(test(group, bells(), found));
          done = group.left == 0;
        }
        if (group.other) return disagree(group);
        if (found && !done) continue;                            // Then MPI has moved nothing along.
        if (done || (tries % 2 == 0 && is_in_the_way())) break;  // (Twice: see test().)
        if (crowded) std::this_thread::yield();
        if (tries % 16 != 0) continue;
        const auto waited = Clock::now() - began;
        if (waited > kAwake && tries >= kTriesAwake) break;
        if (waited < std::chrono::microseconds(50)) continue;
        std::this_thread::yield();
        crowded = is_crowded();
      }
    }
    if (!done && code_ == MPI_SUCCESS) {
      Sleeper sleeper(job_, group, began, began + job_.timeout);
      note(sleeper.sleep());
      if (group.other) return disagree(group);
      done = sleeper.done();
      if (Status fine = job_.check(); !done && !fine) {
        abandon();
        return fine;
      }
      if (!done && code_ == MPI_SUCCESS)
        return give_up(" was not done within " + std::to_string(job_.timeout.count()) + " ms");
    }
    if (code_ != MPI_SUCCESS) return give_up(": " + text_of(code_));
    group.clear();
    return {};
  }

 private:
  // What comes at all mostly comes soon. Then they sleep. (The tries count where others have the processors meanwhile.)
  static constexpr std::chrono::microseconds kAwake{500};
  static constexpr unsigned kTriesAwake = 64;

  struct Awake {
    Awake() noexcept { ++counter(); }
    Awake(const Awake&) = delete;
    Awake& operator=(const Awake&) = delete;
    ~Awake() { --counter(); }
    static unsigned count() noexcept { return counter(); }

   private:
    static std::atomic<unsigned>& counter() noexcept {
      static std::atomic<unsigned> operations{0};
      return operations;
    }
  };

  void note(int code) {
    if (code_ == MPI_SUCCESS) code_ = code;
  }
  Status give_up(const std::string& what) {
    given_up() = true;
    (void)scratch_.release();  // MPI may still write there.
    return make_error(ErrorCode::kPeerLost, name_of(call_.kind, receives_) + what + ": another rank is lost");
  }
  void receive(void* to, std::size_t bytes, const Group::Waited& what, int tag, MPI_Comm comm, Group& group) {
    const std::lock_guard all(mpi_mutex());
    note(MPI_Irecv(to, static_cast<int>(bytes), MPI_BYTE, what.sender, tag, comm, &group.add(what)));
  }
  Status disagree(const Group& group) {
    const auto [rank, call] = *group.other;
    abandon();
    return tl::unexpected(mismatch(job_.rank, call_, rank, call, receives_));
  }
  /// Takes back what nobody will send. What nobody will take can't be taken back.
  void abandon() {
    const std::lock_guard all(mpi_mutex());
    bool done = true;
    for (Group& group : groups_) {
      for (std::size_t i = 0; i < group.requests.size(); ++i) {
        if (group.requests[i] != MPI_REQUEST_NULL && group.waited[i].sender != Group::kOwn)
          MPI_Cancel(&group.requests[i]);
      }
      int these = 0;
      MPI_Testall(static_cast<int>(group.requests.size()), group.requests.data(), &these, MPI_STATUSES_IGNORE);
      done = done && these != 0;
    }
    // Unlike after a lost rank, all ranks exist, so MPI is finalized all the same: Open MPI tolerates that
    // (tests/gpu/ranks/communicator_test.cpp).
    if (!done) (void)scratch_.release();
  }
  /// Room in scratch(), of one rank's; `first`: 0 for theirs, size() - 1 for ours.
  [[nodiscard]] std::byte* greeting(unsigned first, unsigned rank) {
    const std::size_t place = first + (rank < job_.rank ? rank : rank - 1);
    return scratch() + 2 * kSegmentBytes * (job_.size - 1) + place * kGreetingBytes;
  }

  Job& job_;
  const Call call_;
  const bool receives_;
  static constexpr std::size_t kGroups = 5;
  std::array<Group, kGroups> groups_;
  std::size_t begun_ = 0;
  std::unique_ptr<std::byte[]> scratch_;
  int code_ = MPI_SUCCESS;
};

}  // namespace dunnock::ranks::detail::mpi
