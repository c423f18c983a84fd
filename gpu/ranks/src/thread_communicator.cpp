// Ranks meet: each posts where its values are, waits for the others, does its part, and waits until all have done
// theirs.
//
//   all-reduce   rank r reduces part r of everybody's values, in the order of the ranks, into its own; then all copy
//                the parts of the others. So all get the same bits, and each rank reads its bytes twice and writes them
//                once. Of few values each rank reduces all, aside: then nobody waits for the others' parts.
#include "thread_communicator.hpp"

#include <algorithm>
#include <array>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <tuple>
#include <utility>

#include "computing.hpp"
#include "dunnock/base/check.hpp"

namespace dunnock::ranks::detail {
namespace {

/// Who meets: all ranks for collective number n, or two for message number n.
struct Key {
  unsigned from = 0;
  unsigned to = 0;  // The same as `from`: a collective.
  std::uint64_t number = 0;
  friend auto operator<=>(const Key&, const Key&) = default;
};

struct Post {
  const std::byte* in = nullptr;
  std::byte* out = nullptr;
};

struct Meeting {
  Call call;                             // Of the first; all others must call the same.
  std::map<unsigned, Post> posts;        // by rank
  std::array<std::size_t, 3> reached{};  // of the ranks: the begin, the end of the first part, of the second
  std::size_t inside = 0;                // at work on the others' memory
  std::size_t present = 0;
  std::condition_variable changed;  // Of its own: who waits for others is not woken.
};

struct Job {
  explicit Job(unsigned ranks, const CommunicatorOptions& given)
      : size(ranks), options(given), timeout(given.timeout), gone(ranks), collectives(ranks) {}

  const unsigned size;
  const CommunicatorOptions options;
  const std::chrono::milliseconds timeout;
  std::mutex mutex;
  std::map<Key, Meeting> meetings;
  std::optional<Error> failed;
  std::set<std::pair<Key, unsigned>> dropped;                                  // by a rank, after a failure of its own
  std::vector<bool> gone;                                                      // ranks whose end is destroyed,
  std::vector<std::uint64_t> collectives;                                      // and how many each has called
  std::map<std::tuple<unsigned, unsigned, unsigned>, std::uint64_t> messages;  // (rank, from, to)

  struct Group {
    std::shared_ptr<Job> job;
    std::size_t joined = 0;
  };
  std::map<std::pair<std::uint64_t, unsigned>, Group> groups;  // (number of the split, color), until all have joined

  void wake_all() {
    for (auto& [key, meeting] : meetings) meeting.changed.notify_all();
  }
};

/// Goes with an operation. When it has not met the others by then, it never will: its stream has failed and dropped it,
/// and those who wait for it are told.
class Ticket {
 public:
  Ticket(std::shared_ptr<Job> job, unsigned rank, const Key& key) noexcept
      : job_(std::move(job)), rank_(rank), key_(key) {}
  Ticket(const Ticket&) = delete;
  Ticket& operator=(const Ticket&) = delete;
  ~Ticket() {
    if (used_) return;
    const std::lock_guard lock(job_->mutex);
    job_->dropped.insert({key_, rank_});
    if (const auto others = job_->meetings.find(key_); others != job_->meetings.end())
      others->second.changed.notify_all();
  }
  void use() noexcept { used_ = true; }

 private:
  std::shared_ptr<Job> job_;
  unsigned rank_;
  Key key_;
  bool used_ = false;  // Of the stream's thread.
};

class ThreadCommunicator final : public CommunicatorImpl {
 public:
  ThreadCommunicator(std::shared_ptr<Job> job, unsigned rank) noexcept : job_(std::move(job)), rank_(rank) {}
  ThreadCommunicator(const ThreadCommunicator&) = delete;
  ThreadCommunicator& operator=(const ThreadCommunicator&) = delete;
  ~ThreadCommunicator() override {
    const std::lock_guard lock(job_->mutex);
    job_->gone[rank_] = true;
    job_->wake_all();
  }

  [[nodiscard]] unsigned rank() const noexcept override { return rank_; }
  [[nodiscard]] unsigned size() const noexcept override { return job_->size; }
  [[nodiscard]] std::string description() const override { return "threads"; }
  [[nodiscard]] Status check() const override {
    const std::lock_guard lock(job_->mutex);
    if (job_->failed) return tl::unexpected(*job_->failed);
    return {};
  }

  void all_reduce(void* values, std::size_t count, Element element, Reduction reduction,
                  device::Stream& stream) override {
    auto* const mine = static_cast<std::byte*>(values);
    const std::size_t width = bytes_of(element);
    if (count <= kFewValues) {
      const auto result = std::make_shared<std::vector<std::byte>>(count * width);
      return collective(
          call_of(Call::Kind::kAllReduce, count, element, static_cast<unsigned>(reduction)), 2, {mine, mine}, stream,
          [=](const Meeting& meeting) { reduce_all(result->data(), inputs_of(meeting, 0), count, element, reduction); },
          [=](const Meeting&) {
            if (count != 0) std::memcpy(mine, result->data(), result->size());
          });
    }
    const auto part = [count, size = size()](unsigned rank) { return count * rank / size; };
    collective(
        call_of(Call::Kind::kAllReduce, count, element, static_cast<unsigned>(reduction)), 3, {mine, mine}, stream,
        [=, rank = rank_](const Meeting& meeting) {
          const std::size_t begin = part(rank);
          reduce_all(mine + begin * width, inputs_of(meeting, begin * width), part(rank + 1) - begin, element,
                     reduction);
        },
        [=, rank = rank_](const Meeting& meeting) {
          for (const auto& [other, post] : meeting.posts) {
            const std::size_t bytes = (part(other + 1) - part(other)) * width;
            if (other != rank && bytes != 0)
              std::memcpy(mine + part(other) * width, post.in + part(other) * width, bytes);
          }
        });
  }
  void reduce_scatter(const void* in, void* out, std::size_t count, Element element, Reduction reduction,
                      device::Stream& stream) override {
    auto* const mine = static_cast<std::byte*>(out);
    const std::size_t bytes = count * bytes_of(element);
    // An `out` that is a part of its `in` is the part that only its rank reads.
    collective(
        call_of(Call::Kind::kReduceScatter, count, element, static_cast<unsigned>(reduction)), 2,
        {static_cast<const std::byte*>(in), mine}, stream,
        [=, rank = rank_](const Meeting& meeting) {
          reduce_all(mine, inputs_of(meeting, rank * bytes), count, element, reduction);
        },
        nullptr);
  }
  void all_gather(const void* in, void* out, std::size_t count, Element element, device::Stream& stream) override {
    auto* const mine = static_cast<std::byte*>(out);
    const std::size_t bytes = count * bytes_of(element);
    collective(
        call_of(Call::Kind::kAllGather, count, element), 2, {static_cast<const std::byte*>(in), mine}, stream,
        [=](const Meeting& meeting) {
          for (const auto& [other, post] : meeting.posts) {
            if (bytes != 0 && mine + other * bytes != post.in) std::memcpy(mine + other * bytes, post.in, bytes);
          }
        },
        nullptr);
  }
  void broadcast(void* values, std::size_t count, Element element, unsigned root, device::Stream& stream) override {
    auto* const mine = static_cast<std::byte*>(values);
    const std::size_t bytes = count * bytes_of(element);
    collective(
        call_of(Call::Kind::kBroadcast, count, element, root), 2, {mine, mine}, stream,
        [=, rank = rank_](const Meeting& meeting) {
          if (rank != root && bytes != 0) std::memcpy(mine, meeting.posts.at(root).in, bytes);
        },
        nullptr);
  }
  void barrier(device::Stream& stream) override {
    collective(call_of(Call::Kind::kBarrier), 1, {}, stream, nullptr, nullptr);
  }

  [[nodiscard]] Result<std::unique_ptr<CommunicatorImpl>> split(unsigned color, unsigned key) override {
    const Choice mine{color, key};
    const std::uint64_t number = next_collective();
    std::unique_ptr<CommunicatorImpl> end;
    const Part join = [&](const Meeting& meeting) {
      std::vector<Choice> choices;
      for (const auto& [other, post] : meeting.posts) choices.push_back(*reinterpret_cast<const Choice*>(post.in));
      const std::vector<unsigned> members = group_of(choices, rank_);
      const auto place = std::ranges::find(members, rank_) - members.begin();
      const std::lock_guard lock(job_->mutex);
      const auto group = job_->groups.try_emplace({number, color}).first;
      if (!group->second.job)
        group->second.job = std::make_shared<Job>(static_cast<unsigned>(members.size()), job_->options);
      end = std::make_unique<ThreadCommunicator>(group->second.job, static_cast<unsigned>(place));
      if (++group->second.joined == members.size()) job_->groups.erase(group);
    };
    const Post post{reinterpret_cast<const std::byte*>(&mine), nullptr};
    // After an error the end goes, so that the others of the group, should they have theirs, do not wait for it.
    DUNNOCK_TRY(meet(*job_, rank_, {0, 0, number}, call_of(Call::Kind::kSplit), 2, post, join, nullptr));
    return end;
  }

  void send(const void* values, std::size_t count, Element element, unsigned to, device::Stream& stream) override {
    issue({rank_, to, next_message(rank_, to)}, call_of(Call::Kind::kMessage, count, element), 2,
          {static_cast<const std::byte*>(values), nullptr}, stream, nullptr, nullptr);
  }
  void receive(void* values, std::size_t count, Element element, unsigned from, device::Stream& stream) override {
    auto* const mine = static_cast<std::byte*>(values);
    const std::size_t bytes = count * bytes_of(element);
    issue(
        {from, rank_, next_message(from, rank_)}, call_of(Call::Kind::kMessage, count, element), 2, {nullptr, mine},
        stream,
        [=](const Meeting& meeting) {
          if (bytes != 0) std::memcpy(mine, meeting.posts.at(from).in, bytes);
        },
        nullptr);
  }

 private:
  using Part = std::function<void(const Meeting&)>;
  static constexpr std::size_t kFewValues = 1024;

  static Call call_of(Call::Kind kind, std::size_t count = 0, Element element = Element::kByte, unsigned detail = 0) {
    return {.kind = kind, .element = element, .detail = detail, .count = count};
  }

  static std::vector<const void*> inputs_of(const Meeting& meeting, std::size_t offset_bytes) {
    std::vector<const void*> inputs;
    inputs.reserve(meeting.posts.size());
    for (const auto& [rank, post] : meeting.posts) inputs.push_back(post.in + offset_bytes);
    return inputs;
  }

  /// `waits`: for all other ranks, at the beginning, and after each part in which they read this rank's memory.
  void collective(const Call& call, unsigned waits, Post post, device::Stream& stream, Part first, Part second) {
    issue({0, 0, next_collective()}, call, waits, post, stream, std::move(first), std::move(second));
  }
  std::uint64_t next_collective() {
    const std::lock_guard lock(job_->mutex);
    return job_->collectives[rank_]++;
  }
  std::uint64_t next_message(unsigned from, unsigned to) {
    const std::lock_guard lock(job_->mutex);
    return job_->messages[{rank_, from, to}]++;
  }
  void issue(Key key, const Call& call, unsigned waits, Post post, device::Stream& stream, Part first, Part second) {
    DUNNOCK_CHECK(stream.device().backend() == device::Backend::kCpu, "ranks that are threads have host memory");
    const auto ticket = std::make_shared<Ticket>(job_, rank_, key);
    const std::chrono::duration<double, std::micro> added(added_us(key, call));
    const bool receives = key.from != key.to && rank_ == key.to;
    stream.run(name_of(call.kind, receives), [job = job_, rank = rank_, key, call, waits, post, ticket, added,
                                              first = std::move(first), second = std::move(second)] {
      ticket->use();
      const device::detail::Computing waiting(0);
      Status met = meet(*job, rank, key, call, waits, post, first, second);
      if (met && added.count() > 0) std::this_thread::sleep_for(added);
      return met;
    });
  }

  /// What the options say of an operation. A sender need not wait for its message's way.
  [[nodiscard]] double added_us(const Key& key, const Call& call) const {
    const auto bytes = static_cast<double>(call.count * bytes_of(call.element));
    const auto messages = [&](double count, double bytes_each) {
      return count * (job_->options.added_latency_us + bytes_each * job_->options.added_us_per_mb / 1e6);
    };
    if (key.from != key.to) return rank_ == key.to ? messages(1, bytes) : 0;
    const double others = job_->size - 1;
    using Kind = Call::Kind;
    if (call.kind == Kind::kAllReduce) return messages(2 * others, bytes / job_->size);
    if (call.kind == Kind::kReduceScatter || call.kind == Kind::kAllGather) return messages(others, bytes);
    return call.kind == Kind::kBroadcast ? messages(1, bytes) : messages(others > 0 ? 1 : 0, 0);
  }

  static Status meet(Job& job, unsigned rank, const Key& key, const Call& call, unsigned waits, Post post,
                     const Part& first, const Part& second) {
    std::unique_lock lock(job.mutex);
    if (job.failed) return tl::unexpected(*job.failed);
    Meeting& meeting = job.meetings[key];
    if (meeting.posts.empty()) meeting.call = call;
    if (call != meeting.call) {
      const unsigned other = meeting.posts.begin()->first;
      fail(job, mismatch(rank, call, other, meeting.call, key.from != key.to && rank == key.to));
      return tl::unexpected(*job.failed);
    }
    meeting.posts[rank] = post;
    ++meeting.present;
    const std::size_t expected = key.from == key.to ? job.size : 2;
    const std::array<const Part*, 2> parts{&first, &second};
    // A call that all ranks have reached is complete, even if a rank has failed at its next call since.
    bool complete = true;
    for (std::size_t stage = 0; stage <= parts.size() && complete; ++stage) {
      if (stage < waits) {
        wait_for_all(job, lock, key, meeting, stage, expected);
        complete = meeting.reached[stage] >= expected;
      }
      if (!complete || stage == parts.size() || !*parts[stage]) continue;
      if (job.failed && stage + 1 < waits) {  // It reads the memory of others, who may be gone with it.
        complete = false;
        continue;
      }
      ++meeting.inside;
      lock.unlock();
      (*parts[stage])(meeting);  // The posts do not change any more.
      lock.lock();
      if (--meeting.inside == 0 && job.failed) meeting.changed.notify_all();
    }
    // After a failure, too, nobody goes while others are at work on the memory that it brought.
    if (job.failed) meeting.changed.wait(lock, [&meeting] { return meeting.inside == 0; });
    if (--meeting.present == 0) job.meetings.erase(key);
    if (!complete) return tl::unexpected(*job.failed);
    return {};
  }

  static void fail(Job& job, Error error) {
    if (!job.failed) job.failed = std::move(error);
    job.wake_all();
  }

  static void wait_for_all(Job& job, std::unique_lock<std::mutex>& lock, const Key& key, Meeting& meeting,
                           std::size_t stage, std::size_t expected) {
    if (++meeting.reached[stage] == expected) meeting.changed.notify_all();
    const auto what = [&] {
      return std::string(key.from == key.to ? name_of(meeting.call.kind) : "message") + " number " +
             std::to_string(key.number);
    };
    const auto deadline = std::chrono::steady_clock::now() + job.timeout;
    while (meeting.reached[stage] < expected && !job.failed) {
      if (const auto lost = first_lost(job, key, meeting)) {
        const bool dropped = job.dropped.contains({key, *lost});
        fail(job, {ErrorCode::kPeerLost, "rank " + std::to_string(*lost) +
                                             (dropped ? " has dropped " + what() + " after a failure"
                                                      : " has left the job before " + what())});
      } else if (meeting.changed.wait_until(lock, deadline) == std::cv_status::timeout &&
                 meeting.reached[stage] < expected) {
        fail(job, {ErrorCode::kPeerLost, std::to_string(expected - meeting.reached[stage]) + " of " +
                                             std::to_string(expected) + " ranks did not reach " + what() + " within " +
                                             std::to_string(job.timeout.count()) + " ms"});
      }
    }
  }

  /// A rank that has not called this and never will.
  static std::optional<unsigned> first_lost(Job& job, const Key& key, const Meeting& meeting) {
    for (unsigned other = 0; other < job.size; ++other) {
      if (meeting.posts.contains(other)) continue;
      if (job.dropped.contains({key, other})) return other;
      if (!job.gone[other]) continue;
      if (key.from == key.to) {
        if (job.collectives[other] <= key.number) return other;
      } else if ((other == key.from || other == key.to) && job.messages[{other, key.from, key.to}] <= key.number) {
        return other;
      }
    }
    return std::nullopt;
  }

  std::shared_ptr<Job> job_;
  unsigned rank_;
};

}  // namespace

std::vector<std::unique_ptr<CommunicatorImpl>> make_threads(unsigned ranks, const CommunicatorOptions& options) {
  const auto job = std::make_shared<Job>(ranks, options);
  std::vector<std::unique_ptr<CommunicatorImpl>> ends;
  for (unsigned rank = 0; rank < ranks; ++rank) ends.push_back(std::make_unique<ThreadCommunicator>(job, rank));
  return ends;
}

}  // namespace dunnock::ranks::detail
