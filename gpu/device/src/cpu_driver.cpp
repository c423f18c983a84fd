// The CPU backend: a stream is a thread with a queue, device memory is host memory.
#include <sys/mman.h>
#include <unistd.h>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <new>
#include <optional>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "computing.hpp"
#include "driver.hpp"
#include "dunnock/base/check.hpp"
#include "parallel.hpp"

namespace dunnock::device::detail {
namespace {

using Clock = std::chrono::steady_clock;

/// A stream that has been idle for so long gives its team of threads back: longer than between two windows of training
/// steps, for the next parallel loop makes the team anew (some 50 us).
constexpr std::chrono::milliseconds kTeamKept{100};

/// Of the calling thread. OpenMP's threads of several teams together that are more than the processors do not wait
/// actively any more (libgomp), not even while the other teams sleep: each loop then costs a wake.
void give_team_back() noexcept {
// GCC has the call since 9, and says that it is OpenMP 4.5.
#if defined(_OPENMP) && !defined(__SANITIZE_THREAD__) && (_OPENMP >= 201811 || !defined(__clang__))
  (void)omp_pause_resource_all(omp_pause_soft);
#endif
}

/// What one record() of an event stands for.
struct Mark {
  std::mutex mutex;
  std::condition_variable reached;
  bool done = false;
  Clock::time_point when;
  std::optional<Error> failed;  // What the stream had not reported when it came here.

  void reach(const std::optional<Error>& error) {
    {
      const std::lock_guard lock(mutex);
      done = true;
      when = Clock::now();
      failed = error;
    }
    reached.notify_all();
  }
  std::optional<Error> wait() {
    std::unique_lock lock(mutex);
    reached.wait(lock, [this] { return done; });
    return failed;
  }
};

struct Node {
  std::string_view name;
  Work work;
};

class CpuStream;

/// What is recorded for a graph, by one or more streams; and how far each has been waited for by which other.
struct Capture {
  using Clocks = std::map<std::uint64_t, std::size_t>;  // stream -> operations of it that are known to come before
  std::vector<Node> nodes;
  std::map<std::uint64_t, Clocks> seen;  // by each stream; its own entry counts its operations
  std::map<std::uint64_t, CpuStream*> streams;
  std::uint64_t origin = 0;
  bool active = true;
  std::optional<Error> wrong;

  void fail(std::string what) {
    if (!wrong) wrong = Error{ErrorCode::kInvalidArgument, std::move(what)};
  }
};

class CpuEvent final : public EventImpl {
 public:
  [[nodiscard]] bool done() const override {
    if (!mark) return true;
    const std::lock_guard lock(mark->mutex);
    return mark->done;
  }
  [[nodiscard]] Status synchronize() const override {
    if (capture) return make_error(ErrorCode::kInvalidArgument, "the event was recorded in a graph");
    if (!mark) return {};
    if (const auto failed = mark->wait()) return tl::unexpected(*failed);
    return {};
  }
  [[nodiscard]] double ms_since(const EventImpl& start) const override {
    const auto& first = dynamic_cast<const CpuEvent&>(start);
    DUNNOCK_CHECK(mark && done(), "the event has happened");
    DUNNOCK_CHECK(first.mark && first.done(), "the first event has happened");
    return std::chrono::duration<double, std::milli>(mark->when - first.mark->when).count();
  }

  std::shared_ptr<Mark> mark;        // Of the last record.
  std::shared_ptr<Capture> capture;  // Instead, if that was recorded into a graph,
  Capture::Clocks seen;              // and what came before it.
};

class CpuGraph final : public GraphImpl {
 public:
  explicit CpuGraph(std::vector<Node> nodes) : nodes_(std::make_shared<std::vector<Node>>(std::move(nodes))) {}
  [[nodiscard]] std::size_t size() const noexcept override { return nodes_->size(); }
  [[nodiscard]] const std::shared_ptr<std::vector<Node>>& nodes() const noexcept { return nodes_; }

 private:
  std::shared_ptr<std::vector<Node>> nodes_;
};

/// The streams of a device.
struct Streams {
  std::mutex mutex;
  std::set<CpuStream*> all;
};

class CpuStream final : public StreamImpl {
 public:
  CpuStream(Device device, Streams& streams, unsigned threads)
      : StreamImpl(device), streams_(streams), thread_([this, threads] {
          set_parallel_threads(threads);
          threads_ = static_cast<int>(parallel_threads());
          work();
        }) {
    const std::lock_guard lock(streams_.mutex);
    streams_.all.insert(this);
  }
  ~CpuStream() override {
    {
      const std::lock_guard lock(streams_.mutex);
      streams_.all.erase(this);
    }
    if (capture_) {
      capture_->fail("a stream was destroyed while it was recording a graph");
      leave_capture();
    }
    {
      const std::lock_guard lock(mutex_);
      ending_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  void run(std::string_view name, Work work) override {
    if (capture_) {
      capture_->nodes.push_back({name, std::move(work)});
      ++capture_->seen[number()][number()];
      return;
    }
    issue([this, name, work = std::move(work)] {
      if (failed_) return;
      const Computing here(threads_);
      if (const Status done = work(); !done) fail(operation_failed(name, done.error()));
    });
  }
  void copy(void* to, const void* from, std::size_t bytes) override {
    run("copy", [=] {
      if (bytes != 0) std::memmove(to, from, bytes);
      return Status{};
    });
  }
  void fill(void* to, std::byte value, std::size_t bytes) override {
    run("fill", [=] {
      if (bytes != 0) std::memset(to, std::to_integer<int>(value), bytes);
      return Status{};
    });
  }

  void record(EventImpl& event) override {
    auto& mine = dynamic_cast<CpuEvent&>(event);
    mine.capture = capture_;
    mine.mark.reset();
    if (capture_) {
      mine.seen = capture_->seen[number()];
      return;
    }
    mine.mark = mark_end();
  }

  void wait(const EventImpl& event) override {
    const auto& theirs = dynamic_cast<const CpuEvent&>(event);
    if (theirs.capture) {
      if (!theirs.capture->active)
        return run("wait", [] { return not_in_graph("a stream waits for an event that was recorded in a graph"); });
      if (!capture_) {
        capture_ = theirs.capture;
        capture_->streams[number()] = this;
      }
      if (capture_ != theirs.capture) return capture_->fail("the graph waits for an event of another graph");
      for (const auto& [stream, operations] : theirs.seen) {
        std::size_t& known = capture_->seen[number()][stream];
        known = std::max(known, operations);
      }
      return;
    }
    if (!theirs.mark) return;
    if (capture_) return capture_->fail("the graph waits for an event from before its recording");
    issue([this, mark = theirs.mark] {
      const auto failed = mark->wait();
      if (failed && !failed_) fail(*failed);
    });
  }

  [[nodiscard]] Status synchronize() override {
    if (capture_) {
      capture_->fail("a stream was synchronized while it was recording a graph");
      return tl::unexpected(*capture_->wrong);
    }
    auto mark = std::make_shared<Mark>();
    issue([this, mark] { mark->reach(std::exchange(failed_, std::nullopt)); }, Counts::kNot);
    if (const auto failed = mark->wait()) return tl::unexpected(*failed);
    return {};
  }
  [[nodiscard]] bool idle() const override { return left_.load() == 0; }

  [[nodiscard]] bool capturing() const override { return capture_ != nullptr; }
  [[nodiscard]] Status begin_capture() override {
    if (capture_) return make_error(ErrorCode::kInvalidArgument, "the stream is already recording a graph");
    capture_ = std::make_shared<Capture>();
    capture_->origin = number();
    capture_->streams[number()] = this;
    return {};
  }
  [[nodiscard]] Result<std::unique_ptr<GraphImpl>> end_capture() override {
    const std::shared_ptr<Capture> capture = capture_;
    DUNNOCK_CHECK(capture != nullptr, "the stream records");
    capture->active = false;
    const Capture::Clocks known = capture->seen[number()];
    for (const auto& [stream, seen] : capture->seen) {
      const auto own = seen.find(stream);
      if (own == seen.end() || own->second == 0 || stream == number()) continue;
      const auto joined = known.find(stream);
      if (joined == known.end() || joined->second < own->second)
        capture->fail("the graph does not wait for one of its streams before its end");
    }
    for (const auto streams = capture->streams; const auto& [stream, one] : streams) one->leave_capture();
    if (capture->wrong) return tl::unexpected(*capture->wrong);
    return std::make_unique<CpuGraph>(std::move(capture->nodes));
  }
  void launch(GraphImpl& graph) override {
    const auto nodes = dynamic_cast<CpuGraph&>(graph).nodes();
    if (capture_) return capture_->fail("a graph was launched while another was being recorded");
    issue([this, nodes] {
      for (const Node& node : *nodes) {
        if (failed_) return;
        const Computing here(threads_);
        if (const Status done = node.work(); !done) fail(operation_failed(node.name, done.error()));
      }
    });
  }
  void launched(std::string_view, int) override {}

  /// A mark behind all that was issued. Unlike the rest, for any thread.
  [[nodiscard]] std::shared_ptr<Mark> mark_end() {
    auto mark = std::make_shared<Mark>();
    issue([this, mark] { mark->reach(failed_); }, Counts::kNot);
    return mark;
  }

 private:
  static Status not_in_graph(const char* what) { return make_error(ErrorCode::kInvalidArgument, what); }

  void leave_capture() {
    capture_->streams.erase(number());
    capture_.reset();
  }
  void fail(Error error) { failed_ = std::move(error); }  // In the thread.

  /// Marks do not count as operations: a stream is idle once a mark at its end has been reached.
  enum class Counts : std::uint8_t { kNot, kOne };
  struct Issued {
    std::function<void()> run;
    Counts counts;
  };

  void issue(std::function<void()> operation, Counts counts = Counts::kOne) {
    bool sleeps = false;
    if (counts == Counts::kOne) ++left_;
    {
      const std::lock_guard lock(mutex_);
      queue_.push_back({std::move(operation), counts});
      sleeps = !busy_;
    }
    if (sleeps) changed_.notify_one();
  }

  void work() {
    std::deque<Issued> mine;
    std::unique_lock lock(mutex_);
    for (;;) {
      busy_ = false;
      const auto wakes = [this] { return ending_ || !queue_.empty(); };
      if (!changed_.wait_for(lock, kTeamKept, wakes)) {
        lock.unlock();
        give_team_back();
        lock.lock();
        changed_.wait(lock, wakes);
      }
      if (queue_.empty()) return;
      busy_ = true;
      mine.swap(queue_);
      lock.unlock();
      for (; !mine.empty(); mine.pop_front()) {
        mine.front().run();
        if (mine.front().counts == Counts::kOne) --left_;
      }
      lock.lock();
    }
  }

  Streams& streams_;
  int threads_ = 1;  // that an operation computes with; of the thread
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::atomic<std::size_t> left_{0};  // operations that are not done
  std::deque<Issued> queue_;          // under the mutex, as the next two
  bool busy_ = false;
  bool ending_ = false;
  std::optional<Error> failed_;       // of the thread
  std::shared_ptr<Capture> capture_;  // of the caller
  std::thread thread_;
};

class CpuDriver final : public Driver {
 public:
  explicit CpuDriver(unsigned ordinal) {
    info_.backend = Backend::kCpu;
    info_.ordinal = ordinal;
    info_.name = "cpu";
    info_.processors = std::max(1U, std::thread::hardware_concurrency());
    info_.memory_bytes =
        static_cast<std::uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
    const long l2 = sysconf(_SC_LEVEL2_CACHE_SIZE);
    info_.l2_bytes = l2 > 0 ? static_cast<std::uint64_t>(l2) : 0;
  }

  void* take(std::size_t bytes) override {
    if (bytes > info_.memory_bytes) return nullptr;  // Where memory is promised and not there, asking tells nothing.
    void* const memory = ::operator new(bytes, kSegmentAlignment, std::nothrow);
    if (memory != nullptr) (void)madvise(memory, bytes, MADV_HUGEPAGE);
    return memory;
  }
  void give(void* segment) override { ::operator delete(segment, kSegmentAlignment); }
  void finish_all() override {
    std::vector<std::shared_ptr<Mark>> ends;
    {
      const std::lock_guard lock(streams_.mutex);
      for (CpuStream* stream : streams_.all) ends.push_back(stream->mark_end());
    }
    for (const auto& end : ends) (void)end->wait();
  }
  Result<std::unique_ptr<StreamImpl>> make_stream(Device device, const StreamOptions& options) override {
    return std::make_unique<CpuStream>(device, streams_, options.threads);
  }
  Result<std::unique_ptr<EventImpl>> make_event() override { return std::make_unique<CpuEvent>(); }
  void* take_pinned(std::size_t bytes) override {
    if (bytes > info_.memory_bytes) return nullptr;
    return ::operator new(std::max<std::size_t>(bytes, 1), kPinnedAlignment, std::nothrow);
  }
  void give_pinned(void* memory) override { ::operator delete(memory, kPinnedAlignment); }

 private:
  static constexpr std::align_val_t kSegmentAlignment{CachingAllocator::kSegmentBytes};
  static constexpr std::align_val_t kPinnedAlignment{4096};
  Streams streams_;
};

}  // namespace

Driver& cpu_driver(unsigned ordinal) {
  DUNNOCK_CHECK(ordinal < Device::kCpuDevicesMax, "there are 64 CPU devices");
  // Never destroyed: buffers may outlive everything else in the process.
  static auto& drivers = *new std::array<std::atomic<CpuDriver*>, Device::kCpuDevicesMax>{};
  static auto& mutex = *new std::mutex;
  CpuDriver* driver = drivers[ordinal].load(std::memory_order_acquire);
  if (driver != nullptr) return *driver;
  const std::lock_guard lock(mutex);
  driver = drivers[ordinal].load(std::memory_order_relaxed);
  if (driver == nullptr) {
    driver = new CpuDriver(ordinal);
    drivers[ordinal].store(driver, std::memory_order_release);  // Partner: the load above.
  }
  return *driver;
}

}  // namespace dunnock::device::detail
