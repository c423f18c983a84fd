// dunnock-bench collectives: what the ranks of a communicator take for each operation, beside the bytes that must move
// at the speed of a copy, and under mpirun beside MPI called directly, in turn.
#if DUNNOCK_HAVE_MPI
#define OMPI_SKIP_MPICXX 1
#define MPICH_SKIP_MPICXX 1
#include <mpi.h>
#endif

#include <malloc.h>

#include <array>
#include <barrier>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <optional>

#include "commands.hpp"
#include "dunnock/ranks/communicator.hpp"
#include "mpirun.hpp"
#include "report.hpp"
#include "scratch.hpp"

namespace dunnock::bench {
namespace {

using device::Bf16;
using device::Device;
using device::Span;
using device::Stream;
using ranks::Communicator;
using ranks::Reduction;

struct Options {
  std::string json;
  bool quick = false;
  unsigned repeat = 5;
  std::vector<unsigned> ranks{2, 4};
};

enum class What { kAllReduce, kReduceScatter, kAllGather, kBroadcast, kSendReceive, kBarrier };

struct Kind {
  What what;
  const char* name;
  double (*bus_factor)(double ranks);  // As nccl-tests has them, so that links and sizes of jobs compare.
  /// That must be read and written by all ranks together, times the size.
  double (*memory_factor)(double ranks);
};
// The size is that of all-reduce's values, of reduce-scatter's `in`, of all-gather's `out`.
constexpr std::array kKinds = {
    Kind{What::kAllReduce, "all-reduce", [](double n) { return 2 * (n - 1) / n; }, [](double n) { return 2 * n; }},
    Kind{What::kReduceScatter, "reduce-scatter", [](double n) { return (n - 1) / n; }, [](double n) { return n + 1; }},
    Kind{What::kAllGather, "all-gather", [](double n) { return (n - 1) / n; }, [](double n) { return n + 1; }},
    Kind{What::kBroadcast, "broadcast", [](double) { return 1.0; }, [](double n) { return n; }},
    Kind{What::kSendReceive, "send + receive", [](double) { return 1.0; }, [](double n) { return 2 * n; }},
    Kind{What::kBarrier, "barrier", [](double) { return 0.0; }, [](double) { return 0.0; }},
};

std::string text_of(std::size_t bytes) {
  if (bytes < 1024) return std::to_string(bytes) + " B";
  if (bytes < 1 << 20) return std::to_string(bytes >> 10) + " KiB";
  return std::to_string(bytes >> 20) + " MiB";
}

/// What one rank has. `meet` returns when all ranks are there, and is no part of what is measured.
struct Rank {
  Communicator& all;
  std::function<void()> meet;
  Stream stream;
  Stream other;  // Receives, while `stream` sends.
  std::vector<float> values;
  std::vector<float> results;

  Rank(Communicator& communicator, std::function<void()> meets)
      : all(communicator), meet(std::move(meets)), stream(make()), other(make()) {}
  [[nodiscard]] Stream make() const {
    auto made = Stream::create(Device::cpu(all.rank()));
    if (!made) fail(made.error().message);
    return std::move(*made);
  }
  void finish() {
    for (Stream* one : {&stream, &other}) {
      if (const Status done = one->synchronize(); !done) fail(done.error().message);
    }
  }
};

template <class T>
void issue(Rank& rank, What what, std::size_t bytes) {
  const unsigned ranks = rank.all.size();
  const std::size_t count = bytes / sizeof(T);
  const std::size_t part = count / ranks;
  // The vectors are of whole floats; for Bf16 they are memory.
  const device::Span<T> values(reinterpret_cast<T*>(rank.values.data()), count);
  const device::Span<T> results(reinterpret_cast<T*>(rank.results.data()), count);
  switch (what) {
    case What::kAllReduce: return rank.all.all_reduce(values, Reduction::kSum, rank.stream);
    case What::kReduceScatter:
      return rank.all.reduce_scatter<T>(values.subspan(0, part * ranks), results.subspan(0, part), Reduction::kSum,
                                        rank.stream);
    case What::kAllGather:
      return rank.all.all_gather<T>(values.subspan(0, part), results.subspan(0, part * ranks), rank.stream);
    case What::kBroadcast: return rank.all.broadcast(values, 0, rank.stream);
    case What::kSendReceive:
      rank.all.send<T>(values, (rank.all.rank() + 1) % ranks, rank.stream);
      return rank.all.receive(results, (rank.all.rank() + ranks - 1) % ranks, rank.other);
    case What::kBarrier: return rank.all.barrier(rank.stream);
  }
}

/// Microseconds per operation, for many that are issued one after the other.
double us_of(Rank& rank, unsigned times, const std::function<void()>& issue_one) {
  issue_one();
  rank.finish();
  rank.meet();
  return ns_of([&] {
           for (unsigned i = 0; i < times; ++i) issue_one();
           rank.finish();
           rank.meet();
         }) /
         1e3 / times;
}

#if DUNNOCK_HAVE_MPI
void add_bf16(void* from, void* into, int* count, MPI_Datatype*) {
  const auto* const more = static_cast<const Bf16*>(from);
  auto* const sums = static_cast<Bf16*>(into);
  for (int i = 0; i < *count; ++i) sums[i] = Bf16(static_cast<float>(sums[i]) + static_cast<float>(more[i]));
}

/// MPI's own, as one would call them: blocking.
class Direct {
 public:
  explicit Direct(bool is_bf16) : type_(MPI_FLOAT), sum_(MPI_SUM) {
    if (!is_bf16) return;
    MPI_Type_contiguous(2, MPI_BYTE, &type_);
    MPI_Type_commit(&type_);
    MPI_Op_create(add_bf16, 1, &sum_);
  }
  void call(Rank& rank, What what, std::size_t bytes, std::size_t width) const {
    const int ranks = static_cast<int>(rank.all.size());
    const int mine = static_cast<int>(rank.all.rank());
    const int count = static_cast<int>(bytes / width);
    const int part = count / ranks;
    void* const values = rank.values.data();
    void* const results = rank.results.data();
    switch (what) {
      case What::kAllReduce: MPI_Allreduce(MPI_IN_PLACE, values, count, type_, sum_, MPI_COMM_WORLD); return;
      case What::kReduceScatter: MPI_Reduce_scatter_block(values, results, part, type_, sum_, MPI_COMM_WORLD); return;
      case What::kAllGather: MPI_Allgather(values, part, type_, results, part, type_, MPI_COMM_WORLD); return;
      case What::kBroadcast: MPI_Bcast(values, count, type_, 0, MPI_COMM_WORLD); return;
      case What::kSendReceive:
        MPI_Sendrecv(values, count, type_, (mine + 1) % ranks, 0, results, count, type_, (mine + ranks - 1) % ranks, 0,
                     MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        return;
      case What::kBarrier: MPI_Barrier(MPI_COMM_WORLD); return;
    }
  }

 private:
  MPI_Datatype type_;
  MPI_Op sum_;
};
#endif

std::vector<std::size_t> sizes_of(const Options& options) {
  if (options.quick) return {4, 4096, 256 << 10, 4 << 20};
  std::vector<std::size_t> sizes;
  for (std::size_t bytes = 4; bytes <= 64 << 20; bytes *= bytes < 1024 ? 16 : 4) sizes.push_back(bytes);
  return sizes;
}

/// How often an operation is issued for one sample.
unsigned times_of(std::size_t bytes) {
  if (bytes <= 4096) return 200;
  if (bytes <= 64 << 10) return 50;
  if (bytes <= 1 << 20) return 20;
  return bytes <= 4 << 20 ? 5 : 2;
}

/// An operation on values of a type, of a size.
struct Operation {
  const Kind& kind;
  bool is_bf16;
  std::size_t bytes;

  [[nodiscard]] std::size_t width() const { return is_bf16 ? 2 : 4; }
  [[nodiscard]] std::string name() const {
    if (kind.what == What::kBarrier) return kind.name;
    return kind.name + std::string(is_bf16 ? " bf16 " : " f32 ") + text_of(bytes);
  }
  /// A barrier has no size; what is divided needs a value for each rank.
  [[nodiscard]] bool is_for(unsigned ranks) const {
    if (kind.what == What::kBarrier) return bytes == 4 && !is_bf16;
    const bool in_parts = kind.what == What::kReduceScatter || kind.what == What::kAllGather;
    return !in_parts || bytes / width() >= ranks;
  }
  void issue(Rank& rank) const {
    if (is_bf16) return bench::issue<Bf16>(rank, kind.what, bytes);
    bench::issue<float>(rank, kind.what, bytes);
  }
};

/// All operations, as one rank; rank 0 reports.
class Measurement {
 public:
  Measurement(Rank& rank, const Options& options, std::string setting, bool beside_mpi, Report& report)
      : rank_(rank),
        sizes_(sizes_of(options)),
        repeat_(options.repeat),
        setting_(std::move(setting)),
        beside_mpi_(beside_mpi),
        report_(report) {
    rank.values.assign(sizes_.back() / sizeof(float), 0.0F);
    rank.results.assign(sizes_.back() / sizeof(float), 0.0F);
#if DUNNOCK_HAVE_MPI
    if (beside_mpi) direct_.emplace(std::array{Direct(false), Direct(true)});
#endif
  }

  void run() {
    for (const std::size_t bytes : sizes_) {
      for (unsigned round = 0; round < repeat_; ++round) {
        const double copied_gb_per_s = copy(bytes);
        for (const Kind& kind : kKinds) {
          for (const bool is_bf16 : {false, true}) {
            const Operation one{kind, is_bf16, bytes};
            if (one.is_for(rank_.all.size())) measure(one, copied_gb_per_s);
          }
        }
      }
    }
    if (rank_.all.rank() != 0) return;
    print();
    if (beside_mpi_) report_targets();
    std::printf("\n");
  }

 private:
  void add(const std::string& what, const char* system, const char* unit, double value) {
    if (rank_.all.rank() == 0) report_.add(what, setting_, system, unit, value);
  }
  [[nodiscard]] double median(const std::string& what, const char* system) const {
    return report_.median(what, setting_, system);
  }

  /// All ranks copy at a time: what the memory, or at this size the caches, let through.
  double copy(std::size_t bytes) {
    const double us = us_of(rank_, times_of(bytes), [&] {
      std::memcpy(rank_.results.data(), rank_.values.data(), bytes);
      asm volatile("" : : "r"(rank_.results.data()) : "memory");  // The next copy is not this one.
    });
    const double gb_per_s = 2.0 * rank_.all.size() * static_cast<double>(bytes) / us / 1e3;
    add("copy " + text_of(bytes), "memcpy", "GB/s", gb_per_s);
    return gb_per_s;
  }

  void measure(const Operation& one, double copied_gb_per_s) {
    const unsigned ranks = rank_.all.size();
    const unsigned times = times_of(one.bytes);
    const std::string what = one.name();
    const double us = us_of(rank_, times, [&] { one.issue(rank_); });
    add(what, "dunnock", "us", us);
    if (one.kind.what == What::kAllReduce && one.bytes <= 4096) {
      add(what, "dunnock, one at a time", "us", us_of(rank_, times, [&] {
            one.issue(rank_);
            rank_.finish();
          }));
    }
#if DUNNOCK_HAVE_MPI
    if (direct_) {
      const Direct& direct = (*direct_)[one.is_bf16 ? 1 : 0];
      add(what, "MPI", "us", us_of(rank_, times, [&] { direct.call(rank_, one.kind.what, one.bytes, one.width()); }));
    }
#endif
    if (one.kind.what == What::kBarrier) return;
    const auto bytes = static_cast<double>(one.bytes);
    const double gb_per_s = bytes / us / 1e3;
    add(what, "algorithm", "GB/s", gb_per_s);
    add(what, "bus", "GB/s", gb_per_s * one.kind.bus_factor(ranks));
    add(what, "floor", "us", one.kind.memory_factor(ranks) * bytes / copied_gb_per_s / 1e3);
  }

  void print() const {
    std::printf("%s, medians of %u rounds\n", setting_.c_str(), repeat_);
    std::printf("%-28s %10s %10s %10s %10s %8s %10s %8s\n", "operation", "us", "alg GB/s", "bus GB/s", "floor us",
                "x floor", "MPI us", "x MPI");
    for (const Kind& kind : kKinds) {
      for (const bool is_bf16 : {false, true}) {
        for (const std::size_t bytes : sizes_) {
          const Operation one{kind, is_bf16, bytes};
          if (!one.is_for(rank_.all.size())) continue;
          const std::string what = one.name();
          const double us = median(what, "dunnock"), floor = median(what, "floor"), mpi = median(what, "MPI");
          std::printf("%-28s %10.2f %10.3f %10.3f %10.2f %8.2f %10.2f %8.2f\n", what.c_str(), us,
                      median(what, "algorithm"), median(what, "bus"), floor, us / floor, mpi, us / mpi);
        }
      }
    }
    for (const char* const what : {"all-reduce f32 4 B", "all-reduce f32 4 KiB"})
      std::printf("%s, issued and waited for one at a time: %.2f us\n", what, median(what, "dunnock, one at a time"));
  }

  void report_targets() const {
    for (const bool is_bf16 : {false, true}) {
      for (const auto& [bytes, most] : {std::pair{std::size_t{4}, 2.0}, std::pair{sizes_.back(), 1.2}}) {
        const std::string what = Operation{kKinds[0], is_bf16, bytes}.name();
        report_.target(setting_ + ", " + what + ": time, times that of MPI",
                       median(what, "dunnock") / median(what, "MPI"), at_most(most));
      }
    }
  }

  Rank& rank_;
  const std::vector<std::size_t> sizes_;
  const unsigned repeat_;
  const std::string setting_;
  const bool beside_mpi_;
  Report& report_;
#if DUNNOCK_HAVE_MPI
  std::optional<std::array<Direct, 2>> direct_;
#endif
};

int collectives_command(const Options& options) {
  Report report;
  if (is_under_mpirun()) {
    // MPI's collectives take and free room in each call: it is recycled, or what is measured is page faults.
    mallopt(M_MMAP_MAX, 0);
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
    auto all = Communicator::mpi();
    if (!all) fail(all.error().message);
    if (all->size() < 2) fail("collectives need at least 2 ranks: start with mpirun -n 2 or more");
    // Not a barrier of what is measured where that is MPI's: each system is left and entered at rest.
    Rank rank(*all, [&] {
#if DUNNOCK_HAVE_MPI
      MPI_Barrier(MPI_COMM_WORLD);
#endif
    });
    report.note("ranks", "processes");
    Measurement(rank, options, std::to_string(all->size()) + " processes", true, report).run();
    return all->rank() == 0 ? report.write_json(options.json, "collectives") : 0;
  }
  report.note("ranks", "threads");
  for (const unsigned ranks : options.ranks) {
    auto ends = Communicator::threads(ranks);
    if (!ends) fail(ends.error().message);
    std::barrier meeting(static_cast<std::ptrdiff_t>(ranks));
    on_threads(ranks, [&](unsigned number) {
      Rank rank((*ends)[number], [&meeting] { meeting.arrive_and_wait(); });
      Measurement(rank, options, std::to_string(ranks) + " threads", false, report).run();
    });
  }
  return report.write_json(options.json, "collectives");
}

}  // namespace

void add_collectives_command(CLI::App& app, Run& run) {
  static Options options;
  CLI::App* collectives = app.add_subcommand(
      "collectives", "communicators: ranks that are threads; under mpirun, processes, beside MPI called directly");
  collectives->add_flag("--quick", options.quick, "four sizes, three rounds");
  collectives->add_option("--ranks", options.ranks, "that are threads")
      ->check(CLI::Range(2, 64))
      ->delimiter(',')
      ->capture_default_str();
  collectives->add_option("--repeat", options.repeat, "rounds; medians are reported")
      ->check(CLI::Range(1, 100))
      ->capture_default_str();
  collectives->add_option("--json", options.json, "Google-Benchmark-compatible file");
  collectives->callback([&run] {
    if (options.quick) options.repeat = std::min(options.repeat, 3U);
    run = [] { return collectives_command(options); };
  });
}

}  // namespace dunnock::bench
