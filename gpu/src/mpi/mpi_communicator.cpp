// Ranks that are processes of an mpirun. Every call of MPI is nonblocking and made under one lock: an operation is
// begun, and then tested until it is done or its time is over, so that a rank that has died is an error and no hang.
#define OMPI_SKIP_MPICXX 1
#define MPICH_SKIP_MPICXX 1
#include <mpi.h>

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <functional>
#include <limits>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "communicator_impl.hpp"
#include "dunnock/base/check.hpp"

namespace dunnock::gpu::detail {
namespace {

std::mutex& mpi_mutex() {
  static auto& mutex = *new std::mutex;
  return mutex;
}
/// Operations that were given up still use MPI: then it can't be finalised.
std::atomic<bool>& given_up() {
  static std::atomic<bool> value{false};
  return value;
}

std::string text_of(int code) {
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  MPI_Error_string(code, text, &length);
  return std::string(text, static_cast<std::size_t>(length));
}

Status initialise() {
  const std::lock_guard lock(mpi_mutex());
  int there = 0;
  MPI_Initialized(&there);
  if (there != 0) return {};
  int provided = MPI_THREAD_SINGLE;
  const int code = MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided);
  if (code != MPI_SUCCESS) return make_error(ErrorCode::kDevice, "MPI does not start: " + text_of(code));
  if (provided < MPI_THREAD_SERIALIZED) return make_error(ErrorCode::kUnsupported, "this MPI is for one thread only");
  (void)std::atexit([] {
    int over = 0;
    MPI_Finalized(&over);
    if (over == 0 && !given_up()) MPI_Finalize();
  });
  return {};
}

/// bf16 in MPI: a sum or a maximum of two, rounded.
void reduce_bf16_sum(void* from, void* into, int* count, MPI_Datatype*) {
  reduce_into(into, from, static_cast<std::size_t>(*count), Element::kBf16, Reduction::kSum);
}
void reduce_bf16_max(void* from, void* into, int* count, MPI_Datatype*) {
  reduce_into(into, from, static_cast<std::size_t>(*count), Element::kBf16, Reduction::kMax);
}

struct Bf16Kind {
  MPI_Datatype type = MPI_DATATYPE_NULL;
  MPI_Op sum = MPI_OP_NULL;
  MPI_Op max = MPI_OP_NULL;
};
/// Under the lock.
const Bf16Kind& bf16_kind() {
  static const Bf16Kind kind = [] {
    Bf16Kind made;
    MPI_Type_contiguous(2, MPI_BYTE, &made.type);
    MPI_Type_commit(&made.type);
    MPI_Op_create(reduce_bf16_sum, 1, &made.sum);
    MPI_Op_create(reduce_bf16_max, 1, &made.max);
    return made;
  }();
  return kind;
}
MPI_Datatype type_of(Element element) {
  if (element == Element::kByte) return MPI_BYTE;
  return element == Element::kF32 ? MPI_FLOAT : bf16_kind().type;
}
MPI_Op op_of(Element element, Reduction reduction) {
  if (element == Element::kF32) return reduction == Reduction::kSum ? MPI_SUM : MPI_MAX;
  return reduction == Reduction::kSum ? bf16_kind().sum : bf16_kind().max;
}

/// What the operations of a communicator share; they may outlive it in their streams.
struct Job {
  MPI_Comm comm = MPI_COMM_NULL;
  std::chrono::milliseconds timeout;
  std::mutex mutex;
  std::condition_variable changed;
  std::uint64_t next_collective = 0;  // to be begun
  std::optional<Error> failed;

  void fail(Error error) {
    const std::lock_guard lock(mutex);
    if (!failed) failed = std::move(error);
    changed.notify_all();
  }
};

/// Counts of MPI are ints: long messages go in parts.
constexpr std::size_t kCountMax = std::size_t{1} << 30;

class MpiCommunicator final : public CommunicatorImpl {
 public:
  MpiCommunicator(std::shared_ptr<Job> job, unsigned rank, unsigned size) noexcept
      : job_(std::move(job)), rank_(rank), size_(size) {}

  [[nodiscard]] unsigned rank() const noexcept override { return rank_; }
  [[nodiscard]] unsigned size() const noexcept override { return size_; }
  [[nodiscard]] Status check() const override {
    const std::lock_guard lock(job_->mutex);
    if (job_->failed) return tl::unexpected(*job_->failed);
    return {};
  }

  void all_reduce(void* values, std::size_t count, Element element, Reduction reduction, Stream& stream) override {
    collective("all-reduce", count, stream, [=](Job& job, std::size_t at, int many, MPI_Request* request) {
      return MPI_Iallreduce(MPI_IN_PLACE, static_cast<std::byte*>(values) + at * bytes_of(element), many,
                            type_of(element), op_of(element, reduction), job.comm, request);
    });
  }
  void reduce_scatter(const void* in, void* out, std::size_t count, Element element, Reduction reduction,
                      Stream& stream) override {
    DUNNOCK_CHECK(count <= kCountMax, "a part has at most 2^30 values");
    collective("reduce-scatter", count, stream, [=](Job& job, std::size_t, int many, MPI_Request* request) {
      return MPI_Ireduce_scatter_block(in, out, many, type_of(element), op_of(element, reduction), job.comm, request);
    });
  }
  void all_gather(const void* in, void* out, std::size_t count, Element element, Stream& stream) override {
    DUNNOCK_CHECK(count <= kCountMax, "a part has at most 2^30 values");
    const bool in_place = in == static_cast<std::byte*>(out) + rank_ * count * bytes_of(element);
    collective("all-gather", count, stream, [=](Job& job, std::size_t, int many, MPI_Request* request) {
      return MPI_Iallgather(in_place ? MPI_IN_PLACE : in, many, type_of(element), out, many, type_of(element), job.comm,
                            request);
    });
  }
  void broadcast(void* values, std::size_t count, Element element, unsigned root, Stream& stream) override {
    collective("broadcast", count, stream, [=](Job& job, std::size_t at, int many, MPI_Request* request) {
      return MPI_Ibcast(static_cast<std::byte*>(values) + at * bytes_of(element), many, type_of(element),
                        static_cast<int>(root), job.comm, request);
    });
  }
  void barrier(Stream& stream) override {
    collective("barrier", 1, stream,
               [](Job& job, std::size_t, int, MPI_Request* request) { return MPI_Ibarrier(job.comm, request); });
  }
  void send(const void* values, std::size_t count, Element element, unsigned to, Stream& stream) override {
    const int tag = next_tag(sent_[to]);
    issue("send", std::nullopt, count, stream, [=](Job& job, std::size_t at, int many, MPI_Request* request) {
      return MPI_Isend(static_cast<const std::byte*>(values) + at * bytes_of(element), many, type_of(element),
                       static_cast<int>(to), tag, job.comm, request);
    });
  }
  void receive(void* values, std::size_t count, Element element, unsigned from, Stream& stream) override {
    const int tag = next_tag(received_[from]);
    issue("receive", std::nullopt, count, stream, [=](Job& job, std::size_t at, int many, MPI_Request* request) {
      return MPI_Irecv(static_cast<std::byte*>(values) + at * bytes_of(element), many, type_of(element),
                       static_cast<int>(from), tag, job.comm, request);
    });
  }

 private:
  /// Begins the part of `many` values from `at` on.
  using Begin = std::function<int(Job&, std::size_t at, int many, MPI_Request*)>;

  static int next_tag(std::uint64_t& count) { return static_cast<int>(count++ % 32768); }  // MPI's least bound of tags.

  void collective(const char* name, std::size_t count, Stream& stream, Begin begin) {
    issue(name, collectives_++, count, stream, std::move(begin));
  }
  void issue(const char* name, std::optional<std::uint64_t> turn, std::size_t count, Stream& stream, Begin begin) {
    DUNNOCK_CHECK(stream.device().backend() == Backend::kCpu, "ranks that are processes of MPI have host memory");
    stream.run(name, [job = job_, name, turn, count, begin = std::move(begin)] {
      const Status done = run(*job, name, turn, count, begin);
      if (!done) job->fail(done.error());
      return done;
    });
  }

  static Status run(Job& job, const char* name, std::optional<std::uint64_t> turn, std::size_t count,
                    const Begin& begin) {
    const auto deadline = std::chrono::steady_clock::now() + job.timeout;
    const auto late = [&](const char* what) {
      return make_error(ErrorCode::kPeerLost, std::string(name) + ' ' + what + " within " +
                                                  std::to_string(job.timeout.count()) + " ms: another rank is lost");
    };
    std::vector<MPI_Request> requests;
    {
      // All ranks begin collectives in the same order, whichever streams they come from.
      std::unique_lock lock(job.mutex);
      const bool mine =
          job.changed.wait_until(lock, deadline, [&] { return job.failed || !turn || *turn == job.next_collective; });
      if (job.failed) return tl::unexpected(*job.failed);
      if (!mine) return late("did not begin");
      const std::lock_guard all(mpi_mutex());
      for (std::size_t at = 0; at == 0 || at < count; at += kCountMax) {
        requests.push_back(MPI_REQUEST_NULL);
        const int code = begin(job, at, static_cast<int>(std::min(count - at, kCountMax)), &requests.back());
        if (code != MPI_SUCCESS) return make_error(ErrorCode::kPeerLost, std::string(name) + ": " + text_of(code));
      }
      if (turn) {
        ++job.next_collective;
        job.changed.notify_all();
      }
    }
    for (unsigned tries = 0;; ++tries) {
      int done = 0;
      {
        const std::lock_guard all(mpi_mutex());
        const int code = MPI_Testall(static_cast<int>(requests.size()), requests.data(), &done, MPI_STATUSES_IGNORE);
        if (code != MPI_SUCCESS) return make_error(ErrorCode::kPeerLost, std::string(name) + ": " + text_of(code));
      }
      if (done != 0) return {};
      if (std::chrono::steady_clock::now() > deadline) {
        given_up() = true;
        return late("was not done");
      }
      if (tries < 200) {
        std::this_thread::yield();
      } else {
        std::this_thread::sleep_for(std::chrono::microseconds(20));
      }
    }
  }

  std::shared_ptr<Job> job_;
  unsigned rank_;
  unsigned size_;
  std::uint64_t collectives_ = 0;
  std::map<unsigned, std::uint64_t> sent_;
  std::map<unsigned, std::uint64_t> received_;
};

}  // namespace

Result<std::unique_ptr<CommunicatorImpl>> make_mpi(const CommunicatorOptions& options) {
  if (Status ready = initialise(); !ready) return tl::unexpected(ready.error());
  auto job = std::make_shared<Job>();
  job->timeout = options.timeout;
  const std::lock_guard lock(mpi_mutex());
  const int code = MPI_Comm_dup(MPI_COMM_WORLD, &job->comm);
  if (code != MPI_SUCCESS) return make_error(ErrorCode::kDevice, "MPI: " + text_of(code));
  MPI_Comm_set_errhandler(job->comm, MPI_ERRORS_RETURN);
  int rank = 0;
  int size = 0;
  MPI_Comm_rank(job->comm, &rank);
  MPI_Comm_size(job->comm, &size);
  return std::make_unique<MpiCommunicator>(job, static_cast<unsigned>(rank), static_cast<unsigned>(size));
}

}  // namespace dunnock::gpu::detail
