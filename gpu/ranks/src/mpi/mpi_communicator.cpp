// Ranks that are processes of an mpirun, over MPI's messages between two of them; every call is nonblocking and made
// under one lock. MPI is asked again and again for what is waited for until it is there or its time is over, so a rank
// that has died is an error and no hang. Who waits for long sleeps meanwhile (sleeper.hpp), and ranks of one
// host wake each other (bells.hpp).
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
#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "mpi/rounds.hpp"

namespace dunnock::ranks::detail {
namespace {

using namespace mpi;

Status initialise() {
  const std::lock_guard lock(mpi_mutex());
  int there = 0;
  MPI_Initialized(&there);
  if (there != 0) return {};
  int provided = MPI_THREAD_SINGLE;
  const int code = MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided);
  if (code != MPI_SUCCESS) return make_error(ErrorCode::kDevice, "MPI can't be initialized: " + text_of(code));
  if (provided < MPI_THREAD_SERIALIZED)
    return make_error(ErrorCode::kUnsupported, "this MPI does not support MPI_THREAD_SERIALIZED");
  (void)std::atexit([] {
    int over = 0;
    MPI_Finalized(&over);
    if (over == 0 && !given_up()) MPI_Finalize();
  });
  return {};
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
  const bool wants = 2 * ++communications > device::detail::Computing::operations_of_this_thread() &&
                     (has || device::detail::Computing::threads() > 0);
  if (wants == has) return;
  Attributes attributes;
  // What the thread has otherwise stays: its policy, and how nice it is.
  if (syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0) != 0 || attributes.policy != 0) return;
  const std::uint64_t before = std::exchange(attributes.runtime_ns, wants ? 100'000 : *turns_before);
  if (syscall(SYS_sched_setattr, 0, &attributes, 0) != 0) return;
  turns_before = wants ? std::optional(before) : std::nullopt;
}

class MpiCommunicator final : public CommunicatorImpl {
 public:
  explicit MpiCommunicator(std::shared_ptr<Job> job) noexcept : job_(std::move(job)) {}

  [[nodiscard]] unsigned rank() const noexcept override { return job_->rank; }
  [[nodiscard]] unsigned size() const noexcept override { return job_->size; }
  [[nodiscard]] Status check() const override { return mpi::check(*job_); }
  [[nodiscard]] std::string description() const override {
    return job_->world->bells->are_enough() ? "processes, woken by each other"
                                            : "processes, asking MPI from time to time";
  }

  void all_reduce(void* values, std::size_t count, Element element, Reduction reduction,
                  device::Stream& stream) override {
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
                      device::Stream& stream) override {
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
  void all_gather(const void* in, void* out, std::size_t count, Element element, device::Stream& stream) override {
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
  void broadcast(void* values, std::size_t count, Element element, unsigned root, device::Stream& stream) override {
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
  void barrier(device::Stream& stream) override {
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
    DUNNOCK_TRY(mpi::check(*job_));
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
      return make_error(ErrorCode::kNoSpace, "MPI has tags for only " + std::to_string(world.groups_of_each) +
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

  void send(const void* values, std::size_t count, Element element, unsigned to, device::Stream& stream) override {
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
  void receive(void* values, std::size_t count, Element element, unsigned from, device::Stream& stream) override {
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
  void collective(const Call& call, device::Stream& stream, Work work) {
    issue(call, false, stream,
          [tag = next_collective(), work = std::move(work)](Operation& op) { return work(op, tag); });
  }
  /// `receives`: of a message.
  template <class Work>
  void issue(const Call& call, bool receives, device::Stream& stream, Work work) {
    DUNNOCK_CHECK(stream.device().backend() == device::Backend::kCpu,
                  "ranks that are processes of MPI have host memory");
    stream.run(name_of(call.kind, receives), [job = job_, call, receives, work = std::move(work)]() -> Status {
      DUNNOCK_TRY(mpi::check(*job));
      const device::detail::Computing waits(0);
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

}  // namespace dunnock::ranks::detail
