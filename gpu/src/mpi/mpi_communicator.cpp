// Ranks that are processes of an mpirun, over MPI's messages between two of them; every call is nonblocking and made
// under one lock. MPI is asked again and again for what is waited for until it is there or its time is over, so a rank
// that has died is an error and no hang. Who waits for long sleeps meanwhile (Sleeper), and ranks of one host wake each
// other (Bells).
//
//   all-reduce, part by part (rank r has part r), segment by segment of the parts:
//     round 0   everybody sends its values of part r to rank r, which reduces them in the order of the ranks
//     round 1   rank r sends the result to everybody
//   Round 0 of the next segment is under way meanwhile. Each rank sends and receives 2 (n - 1) / n of the bytes, the
//   least that there is. Reduce-scatter is round 0, all-gather round 1, and a broadcast has the root's sends in round
//   0. Few values go to everybody at once, and all reduce them: one round.
//
//   greeting  The first message between two ranks in any operation: what the sender calls (Call), and its values where
//             they are few. Its receiver compares the call with its own, and takes nothing else before: so a rank that
//             calls something else is an error that names both, on both. Longer values are sent at once, and received
//             when the greeting was right.
//   notice    A rank that has found such an error tells all others of its communicator, who may wait for it elsewhere,
//             or have sent it few values and gone on.
//
// Why not MPI's own nonblocking collectives: Open MPI's are slower than its blocking ones, and those can't be given up;
// and they round sums of bf16 at each step. For many ranks on a network of few links they may be better.
#define OMPI_SKIP_MPICXX 1
#define MPICH_SKIP_MPICXX 1
#include <fcntl.h>
#include <linux/futex.h>
#include <mpi.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <climits>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "communicator_impl.hpp"
#include "computing.hpp"
#include "dunnock/base/check.hpp"

namespace dunnock::gpu::detail {
namespace {

std::mutex& mpi_mutex() {
  static auto& mutex = *new std::mutex;
  return mutex;
}
/// Operations that were given up still use MPI: then it can't be finalized.
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

/// MPI has no way to sleep until a message comes: it is asked, again and again. So each rank has a bell, in memory that
/// the ranks of its host share. Who has given MPI something for a rank rings there, and nobody has to look without
/// need. A bell is a number that grows; waiting for it to change misses nothing that rang after the number was read.
struct Bell {
  std::atomic<std::uint32_t> rung{0};
  std::atomic<std::uint32_t> listens{0};  // Somebody sleeps, or is about to, and wants to be woken.
  std::atomic<std::uint32_t> taken{0};    // See receivers_are_enough().
  std::atomic<std::uint32_t> notices{0};  // That others have sent: see tell_others().
  std::array<std::byte, 112> apart{};     // Each has cache lines of its own.

  void ring() noexcept {
    rung.fetch_add(1);
    if (listens.load() != 0) wake();
  }
  /// Also one that does not listen.
  void ring_loudly() noexcept {
    rung.fetch_add(1);
    wake();
  }
  /// Returns when it has rung since it read `seen`, if it listens, or after this time, or now and then without a
  /// reason.
  void wait(std::uint32_t seen, std::chrono::nanoseconds time, bool hears) noexcept {
    const timespec least{static_cast<time_t>(time.count() / 1'000'000'000), time.count() % 1'000'000'000};
    listens.store(hears ? 1 : 0);
    syscall(SYS_futex, &rung, FUTEX_WAIT, seen, &least, nullptr, 0);
    listens.store(0);
  }

 private:
  void wake() noexcept { syscall(SYS_futex, &rung, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0); }
};
static_assert(std::atomic<std::uint32_t>::is_always_lock_free && sizeof(std::atomic<std::uint32_t>) == 4);

unsigned processors() {
  static const unsigned count = std::max(1U, std::thread::hardware_concurrency());
  return count;
}

class Bells {
 public:
  /// Collective; of ranks of MPI_COMM_WORLD. Made once in a process, and there until its end. Under the lock.
  static Bells& of_this_process() {
    static auto& all = *new Bells;
    return all;
  }
  Bells(const Bells&) = delete;
  Bells& operator=(const Bells&) = delete;

  [[nodiscard]] Bell& own() const noexcept { return *own_; }
  /// Whether who waits need not look before it rings: all ranks are on this host, and MPI moves a message, however
  /// long, while its receiver alone looks.
  [[nodiscard]] bool are_enough() const noexcept { return are_enough_; }
  [[nodiscard]] unsigned ranks_here() const noexcept { return ranks_here_; }
  /// The rank may be on another host.
  void ring(int rank) const noexcept {
    if (Bell* const bell = bells_[static_cast<std::size_t>(rank)]) bell->ring();
  }
  /// Call after posting a notice for the rank.
  void ring_with_notice(int rank) const noexcept {
    Bell* const bell = bells_[static_cast<std::size_t>(rank)];
    if (bell == nullptr) return;
    bell->notices.fetch_add(1);
    bell->ring();
  }
  /// False: nobody has sent one to this process.
  [[nodiscard]] bool may_have_notices() const noexcept {
    return own_->notices.load() != 0 || own_ == &alone_ || ranks_here_ < bells_.size();
  }

 private:
  Bells() {
    int size = 0;
    int rank = 0;
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    bells_.resize(static_cast<std::size_t>(size));
    ranks_here_ = static_cast<unsigned>(size);
    MPI_Comm host = MPI_COMM_NULL;
    if (MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &host) != MPI_SUCCESS) return;
    MPI_Comm_set_errhandler(host, MPI_ERRORS_RETURN);
    int here = 0;
    MPI_Comm_size(host, &here);
    ranks_here_ = static_cast<unsigned>(here);
    std::vector<int> ranks(ranks_here_);
    MPI_Allgather(&rank, 1, MPI_INT, ranks.data(), 1, MPI_INT, host);
    int rank_here = 0;
    MPI_Comm_rank(host, &rank_here);
    Bell* const all = share(host, rank_here, here);
    if (all == nullptr) return;  // They look from time to time.
    for (int i = 0; i < here; ++i) bells_[static_cast<std::size_t>(ranks[static_cast<std::size_t>(i)])] = all + i;
    own_ = new (all + rank_here) Bell;
    MPI_Barrier(host);  // All bells are there before one is rung.
    int enough = here == size && receivers_are_enough(rank, size, host) ? 1 : 0;
    MPI_Allreduce(MPI_IN_PLACE, &enough, 1, MPI_INT, MPI_MIN, host);
    are_enough_ = enough != 0;
  }

  /// Memory that all ranks of the host have, for the rest of their lives; or null on all of them.
  static Bell* share(MPI_Comm host, int rank_here, int here) {
    struct {
      int made = 0;
      std::array<char, 64> name{};
    } told;
    const std::size_t bytes = sizeof(Bell) * static_cast<std::size_t>(here);
    int file = -1;
    if (rank_here == 0) {
      std::random_device random;
      std::snprintf(told.name.data(), told.name.size(), "/dunnock-%ld-%08x%08x", static_cast<long>(getpid()), random(),
                    random());
      file = shm_open(told.name.data(), O_CREAT | O_EXCL | O_RDWR, 0600);
      told.made = file >= 0 && posix_fallocate(file, 0, static_cast<off_t>(bytes)) == 0 ? 1 : 0;
    }
    MPI_Bcast(&told, sizeof told, MPI_BYTE, 0, host);
    if (told.made != 0 && rank_here != 0) file = shm_open(told.name.data(), O_RDWR, 0);
    void* at = MAP_FAILED;
    if (told.made != 0 && file >= 0) at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (file >= 0) close(file);
    int have = at != MAP_FAILED ? 1 : 0;
    MPI_Allreduce(MPI_IN_PLACE, &have, 1, MPI_INT, MPI_MIN, host);
    if (rank_here == 0 && file >= 0) shm_unlink(told.name.data());
    if (have != 0) return static_cast<Bell*>(at);
    if (at != MAP_FAILED) munmap(at, bytes);
    return nullptr;
  }

  /// Tries it: of two ranks one sends a long message and makes no call of MPI until the other has it, or some time is
  /// over. All ranks are on this host, and have the same numbers there. (Open MPI copies from the sender's memory,
  /// unless a container forbids it.)
  [[nodiscard]] bool receivers_are_enough(int rank, int size, MPI_Comm host) const {
    constexpr std::size_t kBytes = 1 << 20;
    constexpr std::chrono::milliseconds kPatience{250};
    const int peer = rank ^ 1;
    if (peer >= size) return true;
    std::vector<std::byte> bytes(kBytes);
    MPI_Request request = MPI_REQUEST_NULL;
    const auto until = std::chrono::steady_clock::now() + kPatience;
    const auto is_late = [&] { return std::chrono::steady_clock::now() > until; };
    bool enough = false;
    if (rank % 2 == 0) {
      MPI_Isend(bytes.data(), kBytes, MPI_BYTE, peer, 0, host, &request);
      while (own_->taken.load() == 0 && !is_late()) std::this_thread::yield();
      enough = own_->taken.load() != 0;
    } else {
      MPI_Irecv(bytes.data(), kBytes, MPI_BYTE, peer, 0, host, &request);
      int done = 0;
      while (done == 0 && !is_late()) MPI_Test(&request, &done, MPI_STATUS_IGNORE);
      enough = done != 0;
      if (enough) bells_[static_cast<std::size_t>(peer)]->taken.store(1);
    }
    MPI_Wait(&request, MPI_STATUS_IGNORE);
    return enough;
  }

  std::vector<Bell*> bells_;  // by rank; null: of another host
  Bell alone_;                // Of a rank that hears no other: for its own threads.
  Bell* own_ = &alone_;
  unsigned ranks_here_ = 1;
  bool are_enough_ = false;
};

/// What make_mpi() makes, and all groups that are split from it use.
///
/// A group has no MPI communicator of its own: all of MPI's ways to make one for some ranks stop the caller until the
/// others come, for ever if one is lost, and with it all operations, which need the same lock. Instead it has tags:
///
///   tag    kNumbers * group + 2 * number of the operation, each of which has two tags
///   group  0: all ranks;  1 + groups_of_each * r + i: the i-th group that rank r is the first of
///
/// The first rank of a group alone says which number it has, so two groups never have the same.
struct World {
  MPI_Comm comm = MPI_COMM_NULL;      // of collectives
  MPI_Comm messages = MPI_COMM_NULL;  // of send and receive
  MPI_Comm notices = MPI_COMM_NULL;   // of failures; the tag is the first of the group
  Bells* bells = nullptr;
  unsigned rank = 0;
  unsigned size = 0;
  std::uint64_t numbers = 0;  // Tags of a group.
  unsigned groups_of_each = 0;
  std::mutex mutex;
  unsigned groups_begun = 0;
  std::vector<unsigned> groups_back;  // Begun, and not used.

  static constexpr std::uint64_t kNumbers = 1 << 16;

  /// A group that this rank is the first of; 0: there is none left.
  [[nodiscard]] unsigned take_group() {
    const std::lock_guard lock(mutex);
    if (!groups_back.empty()) {
      const unsigned group = groups_back.back();
      groups_back.pop_back();
      return group;
    }
    return groups_begun == groups_of_each ? 0 : 1 + rank * groups_of_each + groups_begun++;
  }
  void give_group(unsigned group) {
    const std::lock_guard lock(mutex);
    if (group != 0) groups_back.push_back(group);
  }
};

/// What the operations of a communicator share; they may outlive it in their streams.
struct Job {
  std::shared_ptr<World> world;
  std::uint64_t first_tag = 0;
  unsigned rank = 0;
  unsigned size = 0;
  std::vector<int> members;  // by rank: the rank in the world
  std::chrono::milliseconds timeout{};
  std::mutex mutex;
  std::optional<Error> failed;
  std::vector<std::unique_ptr<std::byte[]>> scratch;  // Not in use now; each of scratch_bytes().

  /// Whether it is the first failure.
  bool fail(const Error& error) {
    const std::lock_guard lock(mutex);
    if (failed) return false;
    failed = error;
    return true;
  }
  [[nodiscard]] Status check() {
    const std::lock_guard lock(mutex);
    if (failed) return tl::unexpected(*failed);
    return {};
  }
};

constexpr unsigned kFewRanks = 8;
/// With a Call before them a short message of Open MPI's shared memory (4096 bytes with its own words), and whole
/// lines.
constexpr std::size_t kFewBytes = 3968;
constexpr std::size_t kGreetingBytes = kFewBytes + sizeof(Call);
constexpr std::size_t kNoticeBytes = 1024;
/// Of a part, that is in one message: large enough for the latency, small enough for the second cache.
constexpr std::size_t kSegmentBytes = 128 << 10;

/// Of a long message, that is on its way at once: moved in less time than who waits for it stays awake.
constexpr std::size_t kPartBytes = 1 << 20;

/// Room for the greetings of all others and for those to them, and for what they send of two segments.
[[nodiscard]] std::size_t scratch_bytes(const Job& job) {
  return 2 * (kSegmentBytes + kGreetingBytes) * (job.size - 1);
}

/// Looks for a notice of another rank of the job, which then has failed here too. Under the lock of MPI.
void look_for_notice(Job& job) {
  if (!job.world->bells->may_have_notices()) return;
  int there = 0;
  MPI_Status status;
  const auto tag = static_cast<int>(job.first_tag);
  const MPI_Comm comm = job.world->notices;
  if (MPI_Iprobe(MPI_ANY_SOURCE, tag, comm, &there, &status) != MPI_SUCCESS || there == 0) return;
  std::array<char, kNoticeBytes> text{};
  int length = 0;
  if (MPI_Recv(text.data(), kNoticeBytes, MPI_CHAR, status.MPI_SOURCE, tag, comm, &status) != MPI_SUCCESS) return;
  MPI_Get_count(&status, MPI_CHAR, &length);
  (void)job.fail({ErrorCode::kInvalidArgument, std::string(text.data(), static_cast<std::size_t>(length))});
}
/// Of the job, by what other ranks have found as well.
Status check(Job& job) {
  if (job.world->bells->may_have_notices()) {
    const std::lock_guard lock(mpi_mutex());
    look_for_notice(job);
  }
  return job.check();
}

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
int test(Group& group, const Bells& bells, bool& found) {
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

/// Lets this thread run soon after it is woken, though others compute on its processor: it asks for short turns, and
/// who does so need not wait until the turn of another, of several milliseconds, is over (Linux 6.12). Only a thread
/// that does little else, for one that computes would be in the way of others like that; and only where one computes,
/// for where all do no more than communicate, longer turns are better. Best effort.
void ask_for_short_turns() {
  struct Attributes {
    std::uint32_t size = 48;
    std::uint32_t policy = 0;  // SCHED_OTHER
    std::uint64_t flags = 0;
    std::int32_t nice = 0;
    std::uint32_t priority = 0;
    std::uint64_t runtime_ns = 0;
    std::uint64_t deadline_ns = 0;
    std::uint64_t period_ns = 0;
  };
  static thread_local std::uint64_t communications = 0;
  static thread_local std::optional<std::uint64_t> turns_before;  // Set: the thread has short ones.
  const bool has = turns_before.has_value();
  const bool wants = 2 * ++communications > Computing::operations_of_this_thread() && (has || Computing::threads() > 0);
  if (wants == has) return;
  Attributes attributes;
  // What the thread has otherwise stays: its policy, and how nice it is.
  if (syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0) != 0 || attributes.policy != 0) return;
  const std::uint64_t before = std::exchange(attributes.runtime_ns, wants ? 100'000 : *turns_before);
  if (syscall(SYS_sched_setattr, 0, &attributes, 0) != 0) return;
  turns_before = wants ? std::optional(before) : std::nullopt;
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
      const bool listens = Computing::threads() > 0 || bells_.ranks_here() <= processors();
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
        const int computing = Computing::threads();
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
    // (tests/gpu/communicator_test.cpp).
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

/// The first failure of a job that is not that of a lost rank: the others are told, so that none waits for this one.
void tell_others(const Job& job, const Error& error) {
  // MPI may read it for as long as it likes.
  const auto& text = *new std::string(error.message.substr(0, kNoticeBytes));
  const std::lock_guard all(mpi_mutex());
  for (unsigned rank = 0; rank < job.size; ++rank) {
    if (rank == job.rank) continue;
    MPI_Request request = MPI_REQUEST_NULL;
    const int code = MPI_Isend(text.data(), static_cast<int>(text.size()), MPI_CHAR, job.members[rank],
                               static_cast<int>(job.first_tag), job.world->notices, &request);
    if (code == MPI_SUCCESS) MPI_Request_free(&request);
    job.world->bells->ring_with_notice(job.members[rank]);
  }
}
void fail(Job& job, const Error& error) {
  if (job.fail(error) && error.code == ErrorCode::kInvalidArgument) tell_others(job, error);
}

/// What a rank has of one collective: where each part lies, and what it has to do in the two rounds.
struct Rounds {
  std::size_t count = 0;  // of values of all parts
  Element element = Element::kByte;
  const std::byte* in = nullptr;  // Round 0 sends from here, round 1 from the rank's part of `out`.
  std::byte* out = nullptr;
  std::byte* own = nullptr;  // The rank's own part.
  std::optional<Reduction> reduction{};
  std::optional<unsigned> root{};  // The only one that sends in round 0.
  bool first = true;
  bool second = true;

  [[nodiscard]] std::size_t begin(unsigned rank, unsigned ranks) const noexcept { return count * rank / ranks; }
};

/// See the picture above.
Status run_rounds(Operation& op, const Rounds& what, int tag) {
  const unsigned ranks = op.size();
  const unsigned me = op.rank();
  const MPI_Comm comm = op.job().world->comm;
  const std::size_t width = bytes_of(what.element);
  const std::size_t segment = kSegmentBytes / width;
  const auto part = [&](unsigned rank) { return what.begin(rank + 1, ranks) - what.begin(rank, ranks); };
  std::size_t longest = 0;
  for (unsigned rank = 0; rank < ranks; ++rank) longest = std::max(longest, part(rank));
  const std::size_t segments = (longest + segment - 1) / segment;
  const auto values_of = [&](unsigned rank, std::size_t s) {
    const std::size_t begin = std::min(s * segment, part(rank));
    return std::min(segment, part(rank) - begin);
  };
  const auto at = [&](unsigned rank, std::size_t s) { return (what.begin(rank, ranks) + s * segment) * width; };
  const auto theirs = [&](unsigned rank, std::size_t s) {
    return op.scratch() + ((s % 2) * (ranks - 1) + (rank < me ? rank : rank - 1)) * kSegmentBytes;
  };
  const bool is_root = what.root == me;
  const std::array<Group*, 2> first = {&op.group(), &op.group()};
  const std::array<Group*, 2> second = {&op.group(), &op.group()};
  const auto receive_first = [&](std::size_t s) {
    const std::size_t mine = values_of(me, s) * width;
    for (unsigned step = 1; step < ranks; ++step) {
      const unsigned from = op.before(step);
      if (mine == 0 || (what.root && from != *what.root)) continue;
      std::byte* const to = what.root ? what.own + s * segment * width : theirs(from, s);
      op.receive(to, mine, from, tag, comm, *first[s % 2]);
    }
  };
  const auto send_first = [&](std::size_t s) {
    for (unsigned step = 1; step < ranks; ++step) {
      const unsigned to = op.behind(step);
      const std::size_t bytes = values_of(to, s) * width;
      if (bytes != 0 && (!what.root || is_root)) op.send(what.in + at(to, s), bytes, to, tag, comm, *first[s % 2]);
    }
  };
  const auto receive_second = [&](std::size_t s) {
    for (unsigned step = 1; step < ranks; ++step) {
      const unsigned from = op.before(step);
      const std::size_t bytes = values_of(from, s) * width;
      if (bytes != 0 && !is_root) op.receive(what.out + at(from, s), bytes, from, tag + 1, comm, *second[s % 2]);
    }
  };
  const auto send_second = [&](std::size_t s) {
    const std::size_t mine = values_of(me, s) * width;
    for (unsigned step = 1; step < ranks; ++step) {
      const unsigned to = op.behind(step);
      if (mine != 0 && what.root != to)
        op.send(what.own + s * segment * width, mine, to, tag + 1, comm, *second[s % 2]);
    }
  };
  Group& greetings = op.group();
  for (unsigned step = 1; step < ranks; ++step) op.be_greeted(op.before(step), tag, comm, greetings);
  for (unsigned step = 1; step < ranks; ++step) op.greet(nullptr, 0, op.behind(step), tag, comm, greetings);
  if (segments != 0) what.first ? send_first(0) : send_second(0);
  DUNNOCK_TRY(op.wait(greetings));
  std::vector<const void*> inputs(ranks);
  if (what.first && segments != 0) receive_first(0);
  for (std::size_t s = 0; s < segments; ++s) {
    if (what.first) {
      if (s + 1 < segments) {
        receive_first(s + 1);
        send_first(s + 1);
      }
      DUNNOCK_TRY(op.wait(*first[s % 2]));
      if (what.reduction) {
        for (unsigned rank = 0; rank < ranks; ++rank)
          inputs[rank] = rank == me ? static_cast<const void*>(what.in + at(me, s)) : theirs(rank, s);
        reduce_all(what.own + s * segment * width, inputs, values_of(me, s), what.element, *what.reduction);
      }
    }
    if (!what.second) continue;
    const bool is_sent = s == 0 && !what.first;  // Already, and waits for its receivers.
    if (!is_sent) {
      DUNNOCK_TRY(op.wait(*second[s % 2]));
    }
    receive_second(s);
    if (!is_sent) send_second(s);
  }
  for (Group* const group : second) {
    DUNNOCK_TRY(op.wait(*group));
  }
  return {};
}

/// Few values, which go with the greetings: values(to) says where they lie. From them: Operation::values_of().
template <class Values>
Status exchange_few(Operation& op, std::size_t bytes, int tag, const Values& values) {
  const MPI_Comm comm = op.job().world->comm;
  Group& group = op.group();
  for (unsigned step = 1; step < op.size(); ++step) op.be_greeted(op.before(step), tag, comm, group);
  for (unsigned step = 1; step < op.size(); ++step)
    op.greet(values(op.behind(step)), bytes, op.behind(step), tag, comm, group);
  return op.wait(group);
}

/// to = the reduction of all ranks' few values, of which this rank has `own`.
void reduce_few(Operation& op, std::byte* to, const std::byte* own, std::size_t count, Reduction reduction) {
  std::vector<const void*> inputs(op.size());
  for (unsigned rank = 0; rank < op.size(); ++rank) inputs[rank] = rank == op.rank() ? own : op.values_of(rank);
  reduce_all(to, inputs, count, op.call().element, reduction);
}

class MpiCommunicator final : public CommunicatorImpl {
 public:
  explicit MpiCommunicator(std::shared_ptr<Job> job) noexcept : job_(std::move(job)) {}

  [[nodiscard]] unsigned rank() const noexcept override { return job_->rank; }
  [[nodiscard]] unsigned size() const noexcept override { return job_->size; }
  [[nodiscard]] Status check() const override { return detail::check(*job_); }
  [[nodiscard]] std::string description() const override {
    return job_->world->bells->are_enough() ? "processes, woken by each other"
                                            : "processes, asking MPI from time to time";
  }

  void all_reduce(void* values, std::size_t count, Element element, Reduction reduction, Stream& stream) override {
    auto* const mine = static_cast<std::byte*>(values);
    const Call call{.kind = Call::Kind::kAllReduce,
                    .element = element,
                    .detail = static_cast<std::uint32_t>(reduction),
                    .count = count};
    collective(call, stream, [=](Operation& op, int tag) {
      if (op.size() == 1) return Status{};
      const std::size_t bytes = count * bytes_of(element);
      if (bytes <= kFewBytes) {
        Status done = exchange_few(op, bytes, tag, [mine](unsigned) { return mine; });
        if (done) reduce_few(op, mine, mine, count, reduction);
        return done;
      }
      Rounds what{.count = count, .element = element, .in = mine, .out = mine, .reduction = reduction};
      what.own = mine + what.begin(op.rank(), op.size()) * bytes_of(element);
      return run_rounds(op, what, tag);
    });
  }
  void reduce_scatter(const void* in, void* out, std::size_t count, Element element, Reduction reduction,
                      Stream& stream) override {
    const auto* const all = static_cast<const std::byte*>(in);
    auto* const mine = static_cast<std::byte*>(out);
    const Call call{.kind = Call::Kind::kReduceScatter,
                    .element = element,
                    .detail = static_cast<std::uint32_t>(reduction),
                    .count = count};
    collective(call, stream, [=](Operation& op, int tag) {
      const std::size_t bytes = count * bytes_of(element);
      if (bytes <= kFewBytes) {
        Status done = exchange_few(op, bytes, tag, [=](unsigned to) { return all + to * bytes; });
        if (done) reduce_few(op, mine, all + op.rank() * bytes, count, reduction);
        return done;
      }
      return run_rounds(op,
                        {.count = count * op.size(),
                         .element = element,
                         .in = all,
                         .own = mine,
                         .reduction = reduction,
                         .second = false},
                        tag);
    });
  }
  void all_gather(const void* in, void* out, std::size_t count, Element element, Stream& stream) override {
    auto* const all = static_cast<std::byte*>(out);
    collective({.kind = Call::Kind::kAllGather, .element = element, .count = count}, stream,
               [=](Operation& op, int tag) {
                 const std::size_t bytes = count * bytes_of(element);
                 std::byte* const own = all + op.rank() * bytes;
                 if (bytes != 0 && own != in) std::memcpy(own, in, bytes);
                 if (bytes <= kFewBytes) {
                   Status done = exchange_few(op, bytes, tag, [own](unsigned) { return own; });
                   for (unsigned rank = 0; done && rank < op.size(); ++rank) {
                     if (rank != op.rank() && bytes != 0) std::memcpy(all + rank * bytes, op.values_of(rank), bytes);
                   }
                   return done;
                 }
                 return run_rounds(op, {.count = bytes * op.size(), .out = all, .own = own, .first = false}, tag);
               });
  }
  void broadcast(void* values, std::size_t count, Element element, unsigned root, Stream& stream) override {
    auto* const mine = static_cast<std::byte*>(values);
    const std::size_t bytes = count * bytes_of(element);
    collective({.kind = Call::Kind::kBroadcast, .element = element, .detail = root, .count = count}, stream,
               [=](Operation& op, int tag) {
                 if (bytes > kFewBytes) {
                   Rounds what{.count = bytes, .in = mine, .out = mine, .root = root};
                   what.own = mine + what.begin(op.rank(), op.size());
                   return run_rounds(op, what, tag);
                 }
                 // The others bring nothing but that they have called the same.
                 const bool is_root = op.rank() == root;
                 Status done = exchange_few(op, is_root ? bytes : 0, tag, [mine](unsigned) { return mine; });
                 if (done && !is_root && bytes != 0) std::memcpy(mine, op.values_of(root), bytes);
                 return done;
               });
  }
  void barrier(Stream& stream) override {
    // Few ranks tell all others that they are there; of many, each has heard of 2^i ranks after round i.
    collective({.kind = Call::Kind::kBarrier}, stream, [](Operation& op, int tag) {
      if (op.size() <= kFewRanks) return exchange_few(op, 0, tag, [](unsigned) { return nullptr; });
      Group& group = op.group();
      Status done;
      for (unsigned step = 1; step < op.size() && done; step *= 2) {
        op.be_greeted(op.before(step), tag, op.job().world->comm, group);
        op.greet(nullptr, 0, op.behind(step), tag, op.job().world->comm, group);
        done = op.wait(group);
      }
      return done;
    });
  }
  [[nodiscard]] Result<std::unique_ptr<CommunicatorImpl>> split(unsigned color, unsigned key) override {
    DUNNOCK_TRY(detail::check(*job_));
    struct Told {
      Choice choice;
      unsigned group = 0;
    };
    World& world = *job_->world;
    std::vector<Told> told(size());
    told[rank()] = {{color, key}, world.take_group()};
    {
      Operation op(*job_, {.kind = Call::Kind::kSplit});
      const auto mine = [&](unsigned) { return &told[rank()]; };
      if (Status gathered = exchange_few(op, sizeof(Told), next_collective(), mine); !gathered) {
        fail(*job_, gathered.error());
        return tl::unexpected(gathered.error());
      }
      for (unsigned other = 0; other < size(); ++other) {
        if (other != rank()) std::memcpy(&told[other], op.values_of(other), sizeof(Told));
      }
    }
    std::vector<Choice> choices;
    for (const Told& one : told) choices.push_back(one.choice);
    const std::vector<unsigned> members = group_of(choices, rank());
    if (members.front() != rank()) world.give_group(told[rank()].group);
    const unsigned group = told[members.front()].group;
    if (group == 0)
      return make_error(ErrorCode::kNoSpace, "MPI's tags are enough for " + std::to_string(world.groups_of_each) +
                                                 " groups with the same first rank");
    auto job = std::make_shared<Job>();
    job->world = job_->world;
    job->first_tag = group * World::kNumbers;
    job->rank = static_cast<unsigned>(std::ranges::find(members, rank()) - members.begin());
    job->size = static_cast<unsigned>(members.size());
    for (const unsigned member : members) job->members.push_back(job_->members[member]);
    job->timeout = job_->timeout;
    return std::make_unique<MpiCommunicator>(std::move(job));
  }

  void send(const void* values, std::size_t count, Element element, unsigned to, Stream& stream) override {
    const Call call{.kind = Call::Kind::kMessage, .element = element, .count = count};
    issue(call, false, stream, [=, tag = tag_of(sent_[to]++)](Operation& op) {
      const MPI_Comm comm = op.job().world->messages;
      const auto* const bytes = static_cast<const std::byte*>(values);
      return in_parts(
          op, count * bytes_of(element),
          [&](std::size_t few, Group& group) { op.greet(bytes, few, to, tag, comm, group); },
          [&](Group& group) { op.receive(nullptr, 0, to, tag + 1, comm, group); },
          [&](std::size_t at, std::size_t many, Group& group) { op.send(bytes + at, many, to, tag, comm, group); });
    });
  }
  void receive(void* values, std::size_t count, Element element, unsigned from, Stream& stream) override {
    const Call call{.kind = Call::Kind::kMessage, .element = element, .count = count};
    issue(call, true, stream, [=, tag = tag_of(received_[from]++)](Operation& op) {
      const MPI_Comm comm = op.job().world->messages;
      auto* const bytes = static_cast<std::byte*>(values);
      std::size_t first = 0;
      Status done = in_parts(
          op, count * bytes_of(element),
          [&](std::size_t few, Group& group) {
            first = few;
            op.be_greeted(from, tag, comm, group);
          },
          [&](Group& group) { op.send(nullptr, 0, from, tag + 1, comm, group); },
          [&](std::size_t at, std::size_t many, Group& group) {
            op.receive(bytes + at, many, from, tag, comm, group);
          });
      if (done && first != 0) std::memcpy(bytes, op.values_of(from), first);
      return done;
    });
  }

 private:
  /// greeting(bytes, group) with the first bytes of a message; part(at, bytes, group) for each part of the rest, which
  /// the receiver takes when the greeting was right. Where MPI moves a long one along only while both sides look, and
  /// who has waited for long looks rarely, the greeting tells the receiver that the rest is on its way, and
  /// receiver_is_there(group) tells the sender; then both are awake.
  template <class Greeting, class There, class Part>
  static Status in_parts(Operation& op, std::size_t bytes, const Greeting& greeting, const There& receiver_is_there,
                         const Part& part) {
    const std::array<Group*, 2> groups = {&op.group(), &op.group()};
    const std::size_t first = std::min(bytes, kFewBytes);
    greeting(first, *groups[0]);
    if (!op.bells().are_enough() && bytes > first) receiver_is_there(*groups[1]);
    std::size_t number = 0;
    for (std::size_t at = first; at < bytes; at += kPartBytes, ++number) {
      // Two at a time; of the first two both, as they are what is waited for.
      DUNNOCK_TRY(op.wait(*groups[number % 2]));
      if (number == 0) {
        DUNNOCK_TRY(op.wait(*groups[1]));
      }
      part(at, std::min(kPartBytes, bytes - at), *groups[number % 2]);
    }
    for (const std::size_t last : {number % 2, (number + 1) % 2}) {
      DUNNOCK_TRY(op.wait(*groups[last]));
    }
    return {};
  }
  /// Ranks meet by the numbers that they give to their collectives and messages, whichever streams these come from. The
  /// first of two tags.
  [[nodiscard]] int tag_of(std::uint64_t number) const {
    return static_cast<int>(job_->first_tag + 2 * (number % (job_->world->numbers / 2)));
  }
  int next_collective() { return tag_of(collectives_++); }
  template <class Work>
  void collective(const Call& call, Stream& stream, Work work) {
    issue(call, false, stream,
          [tag = next_collective(), work = std::move(work)](Operation& op) { return work(op, tag); });
  }
  /// `receives`: of a message.
  template <class Work>
  void issue(const Call& call, bool receives, Stream& stream, Work work) {
    DUNNOCK_CHECK(stream.device().backend() == Backend::kCpu, "ranks that are processes of MPI have host memory");
    stream.run(name_of(call.kind, receives), [job = job_, call, receives, work = std::move(work)]() -> Status {
      DUNNOCK_TRY(detail::check(*job));
      const Computing waits(0);
      ask_for_short_turns();
      Operation op(*job, call, receives);
      Status done = work(op);
      if (!done) fail(*job, done.error());
      return done;
    });
  }

  std::shared_ptr<Job> job_;
  std::uint64_t collectives_ = 0;
  std::map<unsigned, std::uint64_t> sent_;
  std::map<unsigned, std::uint64_t> received_;
};

}  // namespace

Result<std::unique_ptr<CommunicatorImpl>> make_mpi(const CommunicatorOptions& options) {
  DUNNOCK_TRY(initialise());
  auto world = std::make_shared<World>();
  const std::lock_guard lock(mpi_mutex());
  for (MPI_Comm* const comm : {&world->comm, &world->messages, &world->notices}) {
    const int code = MPI_Comm_dup(MPI_COMM_WORLD, comm);
    if (code != MPI_SUCCESS) return make_error(ErrorCode::kDevice, "MPI: " + text_of(code));
    MPI_Comm_set_errhandler(*comm, MPI_ERRORS_RETURN);
  }
  int rank = 0;
  int size = 0;
  MPI_Comm_rank(world->comm, &rank);
  MPI_Comm_size(world->comm, &size);
  world->rank = static_cast<unsigned>(rank);
  world->size = static_cast<unsigned>(size);
  world->bells = &Bells::of_this_process();
  void* greatest_tag = nullptr;
  int known = 0;
  MPI_Comm_get_attr(world->comm, MPI_TAG_UB, &greatest_tag, &known);
  const auto greatest = static_cast<std::uint64_t>(known != 0 ? *static_cast<int*>(greatest_tag) : 32767);
  world->numbers = std::min(greatest + 1, World::kNumbers);
  const std::uint64_t groups = (greatest + 1) / World::kNumbers;  // 0 where MPI has the least that it must.
  world->groups_of_each = groups == 0 ? 0 : static_cast<unsigned>((groups - 1) / world->size);
  auto job = std::make_shared<Job>();
  job->world = world;
  job->rank = world->rank;
  job->size = world->size;
  for (int member = 0; member < size; ++member) job->members.push_back(member);
  job->timeout = options.timeout;
  return std::make_unique<MpiCommunicator>(std::move(job));
}

}  // namespace dunnock::gpu::detail
