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

/// Everything, as one rank; rank 0 reports.
void measure(Rank& rank, const Options& options, const std::string& setting, bool beside_mpi, Report& report) {
  const unsigned ranks = rank.all.size();
  const bool reports = rank.all.rank() == 0;
  std::vector<std::size_t> sizes;
  if (options.quick) {
    sizes = {4, 4096, 256 << 10, 4 << 20};
  } else {
    for (std::size_t bytes = 4; bytes <= 64 << 20; bytes *= bytes < 1024 ? 16 : 4) sizes.push_back(bytes);
  }
  rank.values.assign(sizes.back() / sizeof(float), 0.0F);
  rank.results.assign(sizes.back() / sizeof(float), 0.0F);
  const auto add = [&](const std::string& what, const std::string& system, const char* unit, double value) {
    if (reports) report.add(what, setting, system, unit, value);
  };
#if DUNNOCK_HAVE_MPI
  std::optional<std::array<Direct, 2>> direct;
  if (beside_mpi) direct.emplace(std::array{Direct(false), Direct(true)});
#else
  (void)beside_mpi;
#endif
  for (const std::size_t bytes : sizes) {
    const unsigned times = bytes <= 4096       ? 200
                           : bytes <= 64 << 10 ? 50
                           : bytes <= 1 << 20  ? 20
                           : bytes <= 4 << 20  ? 5
                                               : 2;
    for (unsigned round = 0; round < options.repeat; ++round) {
      // All ranks copy at a time: what the memory, or at this size the caches, let through.
      const double copy_us = us_of(rank, times, [&] {
        std::memcpy(rank.results.data(), rank.values.data(), bytes);
        asm volatile("" : : "r"(rank.results.data()) : "memory");  // The next copy is not this one.
      });
      const double copied_gb_per_s = 2.0 * ranks * static_cast<double>(bytes) / copy_us / 1e3;
      add("copy " + text_of(bytes), "memcpy", "GB/s", copied_gb_per_s);
      for (const Kind& kind : kKinds) {
        for (const bool is_bf16 : {false, true}) {
          if (kind.what == What::kBarrier && (bytes != 4 || is_bf16)) continue;
          const std::size_t width = is_bf16 ? 2 : 4;
          const bool in_parts = kind.what == What::kReduceScatter || kind.what == What::kAllGather;
          if (in_parts && bytes / width < ranks) continue;
          const std::string what = kind.what == What::kBarrier
                                       ? kind.name
                                       : std::string(kind.name) + (is_bf16 ? " bf16 " : " f32 ") + text_of(bytes);
          const auto issue_one = [&] {
            if (is_bf16) return issue<Bf16>(rank, kind.what, bytes);
            issue<float>(rank, kind.what, bytes);
          };
          const double us = us_of(rank, times, issue_one);
          add(what, "dunnock", "us", us);
          if (kind.what == What::kAllReduce && bytes <= 4096) {
            add(what, "dunnock, one at a time", "us", us_of(rank, times, [&] {
                  issue_one();
                  rank.finish();
                }));
          }
#if DUNNOCK_HAVE_MPI
          if (direct) {
            add(what, "MPI", "us",
                us_of(rank, times, [&] { (*direct)[is_bf16 ? 1 : 0].call(rank, kind.what, bytes, width); }));
          }
#endif
          if (kind.what == What::kBarrier) continue;
          const double gb_per_s = static_cast<double>(bytes) / us / 1e3;
          add(what, "algorithm", "GB/s", gb_per_s);
          add(what, "bus", "GB/s", gb_per_s * kind.bus_factor(ranks));
          add(what, "floor", "us", kind.memory_factor(ranks) * static_cast<double>(bytes) / copied_gb_per_s / 1e3);
        }
      }
    }
  }
  if (!reports) return;
  std::printf("%s, medians of %u rounds\n", setting.c_str(), options.repeat);
  std::printf("%-28s %10s %10s %10s %10s %8s %10s %8s\n", "operation", "us", "alg GB/s", "bus GB/s", "floor us",
              "x floor", "MPI us", "x MPI");
  for (const Kind& kind : kKinds) {
    for (const char* const type : {" f32 ", " bf16 "}) {
      for (const std::size_t bytes : sizes) {
        const std::string what =
            kind.what == What::kBarrier ? kind.name : kind.name + std::string(type) + text_of(bytes);
        if (kind.what == What::kBarrier && (bytes != 4 || std::strcmp(type, " f32 ") != 0)) continue;
        const double us = report.median(what, setting, "dunnock");
        if (std::isnan(us)) continue;
        std::printf("%-28s %10.2f %10.3f %10.3f %10.2f %8.2f %10.2f %8.2f\n", what.c_str(), us,
                    report.median(what, setting, "algorithm"), report.median(what, setting, "bus"),
                    report.median(what, setting, "floor"), us / report.median(what, setting, "floor"),
                    report.median(what, setting, "MPI"), us / report.median(what, setting, "MPI"));
      }
    }
  }
  for (const char* const what : {"all-reduce f32 4 B", "all-reduce f32 4 KiB"})
    std::printf("%s, issued and waited for one at a time: %.2f us\n", what,
                report.median(what, setting, "dunnock, one at a time"));
  if (beside_mpi) {
    const auto target = [&](const std::string& what, double most) {
      const double times = report.median(what, setting, "dunnock") / report.median(what, setting, "MPI");
      report.target(setting + ", " + what + ": time, times that of MPI", times,
                    "<= " + std::to_string(most).substr(0, 3), times <= most);
    };
    for (const char* const type : {" f32 ", " bf16 "}) {
      target("all-reduce" + std::string(type) + "4 B", 2);
      target("all-reduce" + std::string(type) + text_of(sizes.back()), 1.2);
    }
  }
  std::printf("\n");
}

bool is_under_mpirun() { return std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr || std::getenv("PMI_SIZE") != nullptr; }

int collectives_command(const Options& options) {
  Report report;
  if (is_under_mpirun()) {
    // MPI's collectives take and free room in each call: it is recycled, or what is measured is page faults.
    mallopt(M_MMAP_MAX, 0);
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
    auto all = Communicator::mpi();
    if (!all) fail(all.error().message);
    if (all->size() < 2) fail("one rank has nobody to tell: mpirun -n 2 or more");
    // Not a barrier of what is measured where that is MPI's: each system is left and entered at rest.
    Rank rank(*all, [&] {
#if DUNNOCK_HAVE_MPI
      MPI_Barrier(MPI_COMM_WORLD);
#endif
    });
    report.note("ranks", "processes");
    measure(rank, options, std::to_string(all->size()) + " processes", true, report);
    return all->rank() == 0 ? report.write_json(options.json, "collectives") : 0;
  }
  report.note("ranks", "threads");
  for (const unsigned ranks : options.ranks) {
    auto ends = Communicator::threads(ranks);
    if (!ends) fail(ends.error().message);
    std::barrier meeting(static_cast<std::ptrdiff_t>(ranks));
    on_threads(ranks, [&](unsigned number) {
      Rank rank((*ends)[number], [&meeting] { meeting.arrive_and_wait(); });
      measure(rank, options, std::to_string(ranks) + " threads", false, report);
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
