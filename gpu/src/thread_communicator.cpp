// Ranks meet: each posts where its values are, waits for the others, does its part, and waits until all have done
// theirs.
//
//   all-reduce   rank r reduces part r of everybody's values, in the order of the ranks, into its own; then all copy
//                the parts of the others. So all get the same bits, and each byte is read size + 1 times.
#include "thread_communicator.hpp"

#include <algorithm>
#include <array>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>
#include <utility>

#include "dunnock/base/check.hpp"

namespace dunnock::gpu::detail {
namespace {

/// Who meets: all ranks for collective number n, or two for message number n.
struct Key {
  unsigned from = 0;
  unsigned to = 0;  // The same as `from`: a collective.
  std::uint64_t number = 0;
  friend auto operator<=>(const Key&, const Key&) = default;
};

/// What each one brings; it must be the same for all of them.
struct Call {
  const char* name = "";
  std::size_t count = 0;
  Element element = Element::kByte;
  unsigned detail = 0;  // reduction or root
};

struct Post {
  const std::byte* in = nullptr;
  std::byte* out = nullptr;
};

struct Meeting {
  Call call;
  std::map<unsigned, Post> posts;        // by rank
  std::array<std::size_t, 3> reached{};  // of the ranks: the begin, the middle, the end
  std::size_t inside = 0;                // at work on the others' memory
  std::size_t present = 0;
};

struct Job {
  explicit Job(unsigned ranks, const CommunicatorOptions& options)
      : size(ranks), timeout(options.timeout), gone(ranks), collectives(ranks) {}

  const unsigned size;
  const std::chrono::milliseconds timeout;
  std::mutex mutex;
  std::condition_variable changed;
  std::map<Key, Meeting> meetings;
  std::optional<Error> failed;
  std::vector<bool> gone;                                                      // ranks whose end is destroyed,
  std::vector<std::uint64_t> collectives;                                      // and how many each has called
  std::map<std::tuple<unsigned, unsigned, unsigned>, std::uint64_t> messages;  // (rank, from, to)
};

void reduce_all(std::byte* to, const std::vector<const std::byte*>& from, std::size_t count, Element element,
                Reduction reduction) {
  // In float, in pieces: a sum of bf16 is rounded once.
  std::array<float, 1024> sum{};
  const std::size_t width = bytes_of(element);
  const auto value = [element](const std::byte* at) {
    if (element == Element::kF32) {
      float one = 0;
      std::memcpy(&one, at, sizeof one);
      return one;
    }
    Bf16 one;
    std::memcpy(&one, at, sizeof one);
    return static_cast<float>(one);
  };
  for (std::size_t begin = 0; begin < count; begin += sum.size()) {
    const std::size_t many = std::min(sum.size(), count - begin);
    for (std::size_t rank = 0; rank < from.size(); ++rank) {
      const std::byte* const values = from[rank] + begin * width;
      for (std::size_t i = 0; i < many; ++i) {
        const float one = value(values + i * width);
        sum[i] = rank == 0 ? one : reduction == Reduction::kSum ? sum[i] + one : std::max(sum[i], one);
      }
    }
    for (std::size_t i = 0; i < many; ++i) {
      const Bf16 rounded(sum[i]);
      if (element == Element::kF32) {
        std::memcpy(to + (begin + i) * width, &sum[i], width);
      } else {
        std::memcpy(to + (begin + i) * width, &rounded, width);
      }
    }
  }
}

class ThreadCommunicator final : public CommunicatorImpl {
 public:
  ThreadCommunicator(std::shared_ptr<Job> job, unsigned rank) noexcept : job_(std::move(job)), rank_(rank) {}
  ThreadCommunicator(const ThreadCommunicator&) = delete;
  ThreadCommunicator& operator=(const ThreadCommunicator&) = delete;
  ~ThreadCommunicator() override {
    const std::lock_guard lock(job_->mutex);
    job_->gone[rank_] = true;
    job_->changed.notify_all();
  }

  [[nodiscard]] unsigned rank() const noexcept override { return rank_; }
  [[nodiscard]] unsigned size() const noexcept override { return job_->size; }
  [[nodiscard]] Status check() const override {
    const std::lock_guard lock(job_->mutex);
    if (job_->failed) return tl::unexpected(*job_->failed);
    return {};
  }

  void all_reduce(void* values, std::size_t count, Element element, Reduction reduction, Stream& stream) override {
    auto* const mine = static_cast<std::byte*>(values);
    const std::size_t width = bytes_of(element);
    const auto part = [count, size = size()](unsigned rank) { return count * rank / size; };
    collective(
        {"all-reduce", count, element, static_cast<unsigned>(reduction)}, {mine, mine}, stream,
        [=, rank = rank_](const Meeting& meeting) {
          std::vector<const std::byte*> all;
          for (const auto& [other, post] : meeting.posts) all.push_back(post.in + part(rank) * width);
          reduce_all(mine + part(rank) * width, all, part(rank + 1) - part(rank), element, reduction);
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
                      Stream& stream) override {
    auto* const mine = static_cast<std::byte*>(out);
    const std::size_t bytes = count * bytes_of(element);
    // What is read is everybody's `in`, which may be where an `out` is: so the results wait for the middle.
    const auto result = std::make_shared<std::vector<std::byte>>();
    collective(
        {"reduce-scatter", count, element, static_cast<unsigned>(reduction)}, {static_cast<const std::byte*>(in), mine},
        stream,
        [=, rank = rank_](const Meeting& meeting) {
          std::vector<const std::byte*> all;
          for (const auto& [other, post] : meeting.posts) all.push_back(post.in + rank * bytes);
          result->resize(bytes);
          reduce_all(result->data(), all, count, element, reduction);
        },
        [=](const Meeting&) {
          if (bytes != 0) std::memcpy(mine, result->data(), bytes);
        });
  }
  void all_gather(const void* in, void* out, std::size_t count, Element element, Stream& stream) override {
    auto* const mine = static_cast<std::byte*>(out);
    const std::size_t bytes = count * bytes_of(element);
    collective(
        {"all-gather", count, element, 0}, {static_cast<const std::byte*>(in), mine}, stream,
        [=](const Meeting& meeting) {
          for (const auto& [other, post] : meeting.posts) {
            if (bytes != 0 && mine + other * bytes != post.in) std::memcpy(mine + other * bytes, post.in, bytes);
          }
        },
        nullptr);
  }
  void broadcast(void* values, std::size_t count, Element element, unsigned root, Stream& stream) override {
    auto* const mine = static_cast<std::byte*>(values);
    const std::size_t bytes = count * bytes_of(element);
    collective(
        {"broadcast", count, element, root}, {mine, mine}, stream,
        [=, rank = rank_](const Meeting& meeting) {
          if (rank != root && bytes != 0) std::memcpy(mine, meeting.posts.at(root).in, bytes);
        },
        nullptr);
  }
  void barrier(Stream& stream) override { collective({"barrier", 0, Element::kByte, 0}, {}, stream, nullptr, nullptr); }

  void send(const void* values, std::size_t count, Element element, unsigned to, Stream& stream) override {
    issue({rank_, to, next_message(rank_, to)}, {"message", count, element, 0},
          {static_cast<const std::byte*>(values), nullptr}, stream, "send", nullptr, nullptr);
  }
  void receive(void* values, std::size_t count, Element element, unsigned from, Stream& stream) override {
    auto* const mine = static_cast<std::byte*>(values);
    const std::size_t bytes = count * bytes_of(element);
    issue(
        {from, rank_, next_message(from, rank_)}, {"message", count, element, 0}, {nullptr, mine}, stream, "receive",
        [=](const Meeting& meeting) {
          if (bytes != 0) std::memcpy(mine, meeting.posts.at(from).in, bytes);
        },
        nullptr);
  }

 private:
  using Part = std::function<void(const Meeting&)>;

  void collective(const Call& call, Post post, Stream& stream, Part first, Part second) {
    std::uint64_t number = 0;
    {
      const std::lock_guard lock(job_->mutex);
      number = job_->collectives[rank_]++;
    }
    issue({0, 0, number}, call, post, stream, call.name, std::move(first), std::move(second));
  }
  std::uint64_t next_message(unsigned from, unsigned to) {
    const std::lock_guard lock(job_->mutex);
    return job_->messages[{rank_, from, to}]++;
  }
  void issue(Key key, const Call& call, Post post, Stream& stream, const char* name, Part first, Part second) {
    DUNNOCK_CHECK(stream.device().backend() == Backend::kCpu, "ranks that are threads have host memory");
    stream.run(name, [job = job_, rank = rank_, key, call, post, first = std::move(first), second = std::move(second)] {
      return meet(*job, rank, key, call, post, first, second);
    });
  }

  static Status meet(Job& job, unsigned rank, const Key& key, const Call& call, Post post, const Part& first,
                     const Part& second) {
    std::unique_lock lock(job.mutex);
    if (job.failed) return tl::unexpected(*job.failed);
    const auto fail = [&job](ErrorCode code, std::string what) {
      if (!job.failed) job.failed = Error{code, std::move(what)};
      job.changed.notify_all();
    };
    Meeting& meeting = job.meetings[key];
    if (meeting.posts.empty()) meeting.call = call;
    const Call& others = meeting.call;
    if (std::strcmp(others.name, call.name) != 0 || others.count != call.count || others.element != call.element ||
        others.detail != call.detail) {
      fail(ErrorCode::kInvalidArgument, "rank " + std::to_string(rank) + " calls " + call.name + " of " +
                                            std::to_string(call.count) + " values where another rank calls " +
                                            others.name + " of " + std::to_string(others.count));
      return tl::unexpected(*job.failed);
    }
    meeting.posts[rank] = post;
    ++meeting.present;
    const std::size_t expected = key.from == key.to ? job.size : 2;
    const std::array<const Part*, 2> parts{&first, &second};
    for (std::size_t stage = 0; stage < meeting.reached.size() && !job.failed; ++stage) {
      if (++meeting.reached[stage] == expected) job.changed.notify_all();
      const auto deadline = std::chrono::steady_clock::now() + job.timeout;
      while (meeting.reached[stage] < expected && !job.failed) {
        if (const auto lost = first_gone(job, key, meeting)) {
          fail(ErrorCode::kPeerLost,
               "rank " + std::to_string(*lost) + " has left the job before " + call.name + " " + number_of(key));
        } else if (job.changed.wait_until(lock, deadline) == std::cv_status::timeout &&
                   meeting.reached[stage] < expected) {
          fail(ErrorCode::kPeerLost, std::to_string(expected - meeting.reached[stage]) + " of " +
                                         std::to_string(expected) + " ranks did not come to " + call.name + " " +
                                         number_of(key) + " within " + std::to_string(job.timeout.count()) + " ms");
        }
      }
      if (job.failed || stage == parts.size() || !*parts[stage]) continue;
      ++meeting.inside;
      lock.unlock();
      (*parts[stage])(meeting);  // The posts do not change any more.
      lock.lock();
      if (--meeting.inside == 0) job.changed.notify_all();
    }
    // Nobody goes while others are at work on the memory that it brought.
    job.changed.wait(lock, [&meeting] { return meeting.inside == 0; });
    if (--meeting.present == 0) job.meetings.erase(key);
    if (job.failed) return tl::unexpected(*job.failed);
    return {};
  }

  static std::string number_of(const Key& key) { return "number " + std::to_string(key.number); }

  /// A rank that has not called this and never will.
  static std::optional<unsigned> first_gone(Job& job, const Key& key, const Meeting& meeting) {
    for (unsigned other = 0; other < job.size; ++other) {
      if (!job.gone[other] || meeting.posts.contains(other)) continue;
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

}  // namespace dunnock::gpu::detail
