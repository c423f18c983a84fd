// dunnock-bench overlap: how much of the all-reduces a backward pass hides: simulated, over sizes of buckets, ranks and
// links; and run by ranks that are threads, beside the simulator with the costs that were measured.
#include <atomic>
#include <barrier>
#include <cmath>
#include <limits>
#include <thread>

#include "backward_model.hpp"
#include "commands.hpp"
#include "dunnock/schedule/executor.hpp"
#include "report.hpp"
#include "scratch.hpp"

namespace dunnock::bench {
namespace {

using namespace ranks;

struct Options {
  std::size_t tokens = 16'384;
  std::size_t gradient_bytes = 2;
  double latency_us = 20;
  double demand = ranks::AllReduceOptions{}.demand;
  DeviceModel device;
  unsigned repeat = 25;
  std::string json;
};

constexpr std::uint64_t kWhole = std::numeric_limits<std::uint64_t>::max();

void sweep(const Options& options, Report& report) {
  const std::vector<std::uint64_t> buckets_mib{1, 5, 25, 100, kWhole};
  std::printf(
      "simulated: hidden share of the all-reduces, %% (exposed time, %% of the pass); %zu tokens a rank, gradients of "
      "%zu bytes,\n%.0f TFLOP/s, %.0f GB/s of memory, %.0f us a collective, which takes %.0f %% of the device\n",
      options.tokens, options.gradient_bytes, options.device.tflop_per_s, options.device.memory_gb_per_s,
      options.latency_us, 100 * options.demand);
  for (const ModelShape& model : kModelShapes) {
    const BackwardPass pass = backward_pass(model, options.tokens, options.device);
    std::printf("\n%-11s %6s %6s %11s %11s %7s |", model.name.c_str(), "GB/s", "ranks", "compute ms", "link ms",
                "bound");
    for (const std::uint64_t mib : buckets_mib)
      std::printf(" %15s", mib == kWhole ? "one bucket" : (std::to_string(mib) + " MiB").c_str());
    std::printf("\n");
    for (const double gb_per_s : {12.5, 25.0, 50.0, 400.0}) {
      for (const unsigned ranks : {2U, 8U, 64U}) {
        const ranks::AllReduceOptions all{
            .ranks = ranks, .link = {.latency_us = options.latency_us, .gb_per_s = gb_per_s}, .demand = options.demand};
        std::string cells;
        Overlap of_25;
        for (const std::uint64_t mib : buckets_mib) {
          ranks::BucketOptions buckets{.bytes_max = mib == kWhole ? kWhole : mib << 20};
          if (mib == kWhole) buckets.first_bytes_max = kWhole;
          const auto overlap = simulate_overlap(pass, options.gradient_bytes, buckets, all);
          if (!overlap) fail(overlap.error().message);
          if (mib == 25) of_25 = *overlap;
          char cell[64];
          std::snprintf(cell, sizeof cell, " %7.1f (%5.1f)", 100 * overlap->hidden,
                        100 * (1 - overlap->compute_ms / overlap->makespan_ms));
          cells += cell;
          char setting[64];
          std::snprintf(setting, sizeof setting, "%g GB/s, %u ranks, %s", gb_per_s, ranks,
                        mib == kWhole ? "one bucket" : (std::to_string(mib) + " MiB").c_str());
          report.add("hidden, simulated", setting, model.name, "%", 100 * overlap->hidden);
        }
        std::printf("%-11s %6.1f %6u %11.2f %11.2f %7.1f |%s\n", "", gb_per_s, ranks, of_25.compute_ms,
                    of_25.communication_ms, 100 * of_25.bound, cells.c_str());
      }
    }
  }
  std::printf("\n");
  for (const ModelShape& model : kModelShapes) {
    const double hidden = report.median("hidden, simulated", "50 GB/s, 8 ranks, 25 MiB", model.name);
    report.target(model.name + ", 8 ranks, 50 GB/s, buckets of 25 MiB: hidden %, simulated", hidden, at_least(90));
  }
}

// ----- run ----------------------------------------------------------------------------------------------------------

enum class Computes { kElsewhere, kHere };

/// What a backward pass of one rank took, microseconds.
struct Ran {
  double sequential_us = 0;
  double overlapped_us = 0;
  double simulated_us = 0;
  double compute_us = 0;
  double communication_us = 0;
};

std::atomic<float> sink{0};

/// As long alone as it takes, and longer when it must share its processor.
void work(std::size_t rounds) {
  float x = 1;
  for (std::size_t i = 0; i < rounds; ++i) x = x * 0.999F + 0.5F;
  sink.store(x, std::memory_order_relaxed);
}

/// A pass of 24 steps of about a millisecond, each with a gradient of a MiB, reduced in buckets of 4 MiB.
Ran run_rank(ranks::Communicator& all, std::barrier<>& meeting, Computes computes, std::size_t rounds,
             unsigned repeat) {
  const device::Device device = device::Device::cpu(all.rank());
  auto stream = device::Stream::create(device);
  if (!stream) fail(stream.error().message);
  constexpr std::size_t kSteps = 24;
  const std::vector<std::size_t> sizes(kSteps, (1 << 20) / sizeof(float) - 64);
  const auto buckets = ranks::GradientBuckets<float>::create(sizes, *stream, {.bytes_max = 4 << 20});
  if (!buckets) fail(buckets.error().message);
  schedule::TaskGraph graph;
  const auto gradients = add_gradients(graph, buckets->layout());
  schedule::ValueId before = graph.add_value("loss", 0);
  for (std::size_t i = 0; i < kSteps; ++i) {
    const schedule::ValueId behind = graph.add_value("step", 0);
    graph.add({.name = "step " + std::to_string(i),
               .kind = schedule::OpKind::kWeightGradient,
               .inputs = {before},
               .outputs = {behind, gradients[i]},
               .demand = computes == Computes::kHere ? 1.0 : 0.01,
               .issue = [computes, rounds](device::Stream& lane) {
                 lane.run("step", [computes, rounds] {
                   if (computes == Computes::kHere) {
                     work(rounds);
                   } else {
                     std::this_thread::sleep_for(std::chrono::milliseconds(1));
                   }
                   return Status{};
                 });
               }});
    before = behind;
  }
  add_all_reduces(graph, *buckets, gradients, all, {.demand = computes == Computes::kHere ? 1.0 : 0.99});

  const auto run = [&](const schedule::Schedule& schedule, std::vector<std::vector<double>>* costs) {
    auto executor = schedule::Executor::create(device, graph, schedule, {.measures = true});
    if (!executor) fail(executor.error().message);
    std::vector<double> makespans;
    for (unsigned i = 0; i < repeat; ++i) {
      meeting.arrive_and_wait();
      executor->run(*stream);
      if (const Status done = stream->synchronize(); !done) fail(done.error().message);
      const auto timeline = executor->last_run();
      if (!timeline) fail(timeline.error().message);
      makespans.push_back(timeline->makespan_us());
      if (costs == nullptr) continue;
      for (const schedule::Interval& interval : timeline->intervals)
        (*costs)[interval.op].push_back(interval.end_us - interval.start_us);
    }
    return *std::min_element(makespans.begin(), makespans.end());
  };
  const auto one_lane = sequential(graph);
  const auto two_lanes = overlapped(graph);
  if (!one_lane) fail(one_lane.error().message);
  if (!two_lanes) fail(two_lanes.error().message);
  Ran ran;
  std::vector<std::vector<double>> costs(graph.ops().size());
  ran.sequential_us = run(*one_lane, &costs);
  ran.overlapped_us = run(*two_lanes, nullptr);
  for (schedule::OpId op = 0; op < graph.ops().size(); ++op) {
    graph.set_cost_us(op, *std::min_element(costs[op].begin(), costs[op].end()));
    (graph.op(op).kind == schedule::OpKind::kCommunication ? ran.communication_us : ran.compute_us) +=
        graph.op(op).cost_us;
  }
  const auto simulated = simulate(graph, *two_lanes);
  if (!simulated) fail(simulated.error().message);
  ran.simulated_us = simulated->makespan_us();
  return ran;
}

void run_threads(const Options& options, Report& report) {
  constexpr unsigned kRanks = 2;
  std::size_t rounds = 1000;
  const auto least_ns = [&rounds] {
    double least = std::numeric_limits<double>::max();
    for (int i = 0; i < 5; ++i) least = std::min(least, ns_of([&rounds] { work(rounds); }));
    return least;
  };
  while (least_ns() < 1e6) rounds += rounds / 4;
  std::printf(
      "\nrun: 2 ranks that are threads, 24 steps of about 1 ms, 24 MiB of f32 in buckets of 4 MiB, the least of %u; "
      "ms\n",
      options.repeat);
  std::printf("%-34s %9s %9s %11s %11s %10s %9s %10s\n", "what computes", "compute", "reduce", "afterwards",
              "overlapped", "simulated", "hidden %", "simulated");
  for (const Computes computes : {Computes::kElsewhere, Computes::kHere}) {
    auto ends = ranks::Communicator::threads(kRanks);
    if (!ends) fail(ends.error().message);
    std::barrier meeting(kRanks);
    std::vector<Ran> ran(kRanks);
    on_threads(kRanks,
               [&](unsigned rank) { ran[rank] = run_rank((*ends)[rank], meeting, computes, rounds, options.repeat); });
    const Ran& one = ran[0];
    const char* const name =
        computes == Computes::kElsewhere ? "another device (the thread sleeps)" : "the processors that reduce, too";
    const auto hidden = [&](double makespan_us) {
      return 100 * (1 - (makespan_us - one.compute_us) / one.communication_us);
    };
    std::printf("%-34s %9.2f %9.2f %11.2f %11.2f %10.2f %9.1f %10.1f\n", name, one.compute_us / 1e3,
                one.communication_us / 1e3, one.sequential_us / 1e3, one.overlapped_us / 1e3, one.simulated_us / 1e3,
                hidden(one.overlapped_us), hidden(one.simulated_us));
    report.add("pass", name, "afterwards", "us", one.sequential_us);
    report.add("pass", name, "overlapped", "us", one.overlapped_us);
    report.add("pass", name, "overlapped, simulated", "us", one.simulated_us);
    report.add("pass", name, "compute alone", "us", one.compute_us);
    report.add("pass", name, "all-reduces alone", "us", one.communication_us);
  }
}

int overlap_command(const Options& options) {
  Report report;
  report.note("simulated", "rows with that word are simulated times of given costs");
  report.note("tokens", options.tokens);
  report.note("gradient_bytes", options.gradient_bytes);
  report.note("tflop_per_s", options.device.tflop_per_s);
  report.note("memory_gb_per_s", options.device.memory_gb_per_s);
  report.note("latency_us", options.latency_us);
  report.note("demand", options.demand);
  sweep(options, report);
  run_threads(options, report);
  return report.write_json(options.json, "overlap");
}

}  // namespace

void add_overlap_command(CLI::App& app, Run& run) {
  static Options options;
  CLI::App* overlap =
      app.add_subcommand("overlap", "all-reduces hidden behind a backward pass: simulated, and run on threads");
  overlap->add_option("--tokens", options.tokens, "of a rank")->check(CLI::Range(1, 1 << 24))->capture_default_str();
  overlap->add_option("--gradient-bytes", options.gradient_bytes, "of a value: 2 or 4")
      ->check(CLI::IsMember({2, 4}))
      ->capture_default_str();
  overlap->add_option("--latency-us", options.latency_us, "of a collective")
      ->check(CLI::Range(0.0, 1e9))
      ->capture_default_str();
  overlap->add_option("--demand", options.demand, "share of the device that a collective keeps busy")
      ->check(CLI::Range(0.001, 1.0))
      ->capture_default_str();
  overlap->add_option("--tflops", options.device.tflop_per_s, "that the simulated device reaches")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  overlap->add_option("--memory-gb-per-s", options.device.memory_gb_per_s, "of the simulated device")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  overlap->add_option("--repeat", options.repeat, "runs on threads; the least of each is reported")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  overlap->add_option("--json", options.json, "Google-Benchmark-compatible file");
  overlap->callback([&run] { run = [] { return overlap_command(options); }; });
}

}  // namespace dunnock::bench
