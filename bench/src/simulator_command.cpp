// dunnock-bench simulator: is the simulator right? Each schedule's step time as it is predicted from the measured costs
// of its parts, beside that of the same plan run for real, in turn: on one device, by data-parallel ranks, and by the
// stages of a pipeline. Ranks are threads of this process; under mpirun, processes.
//
//   profile_step, all ranks at a time  -->  costs of layers  --+
//   messages between the ranks         -->  link             --+-->  plan  -->  simulate  -->  predicted
//                                                                     |
//                                                                     +---->  Trainer   -->  measured
//
// What is measured goes in as it is: nothing is fitted to the steps.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "commands.hpp"
#include "dunnock/kernels/elementwise.hpp"
#include "dunnock/ranks/communicator.hpp"
#include "dunnock/schedule/simulator.hpp"
#include "dunnock/training/trainer.hpp"
#include "mpirun.hpp"
#include "report.hpp"
#include "scratch.hpp"
#include "training_inputs.hpp"

namespace dunnock::bench {
namespace {

using namespace training;
using ranks::Communicator;

struct Options {
  std::string json;
  std::vector<std::string> families = {"one-device", "data-parallel", "pipeline"};
  unsigned rounds = 7;
  unsigned repeats = 3;  // of a profile, and of a schedule in a round
  unsigned window = 3;
  bool operations = false;
  bool quick = false;
};

constexpr unsigned kRanks = 2;

struct Case {
  std::string name;
  Family family = Family::kOneDevice;
  model::ModelOptions model;
  std::size_t rows = 1;
  unsigned micro_batches = 1;
  /// Ranks that are threads: as if their link was slower (CommunicatorOptions). It is measured like any other.
  double added_latency_us = 0;
  double added_us_per_mb = 0;
};

std::vector<Case> cases_of(const Options& options) {
  std::vector<Case> cases;
  const auto wants = [&](const char* family) {
    return std::ranges::find(options.families, family) != options.families.end();
  };
  const model::MlpOptions mlp{.inputs = 784, .hidden = {1024, 1024, 1024}, .classes = 10};
  const model::GptOptions gpt{};
  if (options.quick) {
    const model::MlpOptions tiny{.inputs = 20, .hidden = {24, 17, 16, 15, 12, 11, 10}, .classes = 5};
    if (wants("one-device")) cases.push_back({"MLP tiny", Family::kOneDevice, tiny, 8});
    if (wants("data-parallel")) cases.push_back({"MLP tiny", Family::kDataParallel, tiny, 8});
    if (wants("pipeline")) cases.push_back({"MLP tiny, 4 micro-batches", Family::kPipeline, tiny, 4, 4});
    return cases;
  }
  if (wants("one-device")) {
    cases.push_back({"MLP 784-1024-1024-1024-10, batch 512", Family::kOneDevice, mlp, 512});
    cases.push_back({"GPT 1.2 M, 8 rows", Family::kOneDevice, gpt, 8});
    cases.push_back({"DenseNet-40-like, batch 16", Family::kOneDevice,
                     model::DenseNetOptions{.blocks = {6, 6, 6}, .growth = 12, .stem_width = 24}, 16});
  }
  if (wants("data-parallel")) {
    cases.push_back({"MLP 784-1024-1024-1024-10, batch 2 x 256", Family::kDataParallel, mlp, 256});
    cases.push_back({"GPT 1.2 M, 2 x 8 rows", Family::kDataParallel, gpt, 8});
    // All gradients take as long as the computation, or longer.
    cases.push_back(
        {"MLP 784-1024-1024-1024-10, batch 2 x 256, slow link", Family::kDataParallel, mlp, 256, 1, 100, 1600});
    cases.push_back({"GPT 1.2 M, 2 x 8 rows, slow link", Family::kDataParallel, gpt, 8, 1, 100, 8000});
  }
  if (wants("pipeline")) {
    cases.push_back({"GPT 1.2 M, 4 micro-batches of 4 rows", Family::kPipeline, gpt, 4, 4});
    cases.push_back({"GPT 1.2 M, 8 micro-batches of 4 rows", Family::kPipeline, gpt, 4, 8});
    cases.push_back({"GPT 1.2 M, 4 micro-batches of 4 rows, slow link", Family::kPipeline, gpt, 4, 4, 500, 4000});
  }
  return cases;
}

// ----- ranks --------------------------------------------------------------------------------------------------------

/// What a rank has. Of one device: no communicators.
struct Rank {
  Communicator* world = nullptr;
  Communicator* sums = nullptr;
  device::Stream stream;
  device::Stream other;  // Receives, while `stream` sends.

  Rank(Communicator* all, Communicator* more) : world(all), sums(more), stream(make(number())), other(make(number())) {}
  static device::Stream make(unsigned rank) {
    auto made = device::Stream::create(device::Device::cpu(rank), {.threads = 1});
    if (!made) fail(made.error().message);
    return std::move(*made);
  }
  [[nodiscard]] unsigned number() const { return world == nullptr ? 0 : world->rank(); }
  [[nodiscard]] unsigned count() const { return world == nullptr ? 1 : world->size(); }
  void finish() {
    if (const Status done = stream.synchronize(); !done) fail(done.error().message);
  }
  /// Returns when all ranks are here.
  void meet() {
    if (world != nullptr) world->barrier(stream);
    finish();
  }
  /// The ranks' mean, on all of them.
  void agree(std::vector<float>& values) {
    if (world == nullptr) return;
    world->all_reduce<float>(device::Span<float>(values.data(), values.size()), ranks::Reduction::kMean, stream);
    finish();
  }
};

double cpu_seconds() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

/// Messages of one kind, one after the other, as in lanes.
struct LinkCosts {
  Link link;
  /// Of a processor, that moving a large message keeps busy at each rank.
  double demand = 0;
};

/// us(bytes): of one message. Two sizes tell latency and bandwidth; `messages` of the model's: how Link counts them.
template <class Issue>
LinkCosts measure_link(Rank& rank, bool is_mpi, double messages, double bytes_share, unsigned rounds,
                       const Issue& issue) {
  constexpr std::size_t kSmall = 32 << 10;
  constexpr std::size_t kLarge = 4 << 20;
  std::vector<double> small;
  std::vector<double> large;
  std::vector<double> busy;
  const auto us_of = [&](std::size_t bytes, unsigned times) {
    issue(bytes);
    rank.meet();
    return ns_of([&] {
             for (unsigned i = 0; i < times; ++i) issue(bytes);
             rank.finish();
           }) /
           1e3 / times;
  };
  for (unsigned round = 0; round < rounds; ++round) {
    small.push_back(us_of(kSmall, 20));
    const double cpu = cpu_seconds();
    large.push_back(us_of(kLarge, 8));
    // One is in front of those that are timed.
    busy.push_back((cpu_seconds() - cpu) * 1e6 / 9 / large.back() / (is_mpi ? 1 : rank.count()));
  }
  const double slope = std::max(1e-9, (median_of(large) - median_of(small)) / static_cast<double>(kLarge - kSmall));
  std::vector<float> agreed{static_cast<float>(std::max(0.0, median_of(small) - slope * kSmall) / messages),
                            static_cast<float>(bytes_share / slope / 1e3),
                            static_cast<float>(std::clamp(median_of(busy), 1e-6, 1.0))};
  rank.agree(agreed);
  return {{.latency_us = agreed[0], .gb_per_s = agreed[1]}, agreed[2]};
}

LinkCosts measure_all_reduce(Rank& rank, bool is_mpi, unsigned rounds) {
  std::vector<float> values((4 << 20) / sizeof(float));
  // A ring of two: two messages of half the bytes, as Link::all_reduce_us has it.
  return measure_link(rank, is_mpi, 2, 1, rounds, [&](std::size_t bytes) {
    rank.world->all_reduce<float>(device::Span<float>(values.data(), bytes / sizeof(float)), ranks::Reduction::kMean,
                                  rank.stream);
  });
}

LinkCosts measure_send(Rank& rank, bool is_mpi, unsigned rounds) {
  std::vector<float> values((4 << 20) / sizeof(float));
  // There and back, so two messages; each rank is busy with one of them.
  return measure_link(rank, is_mpi, 2, 2, rounds, [&](std::size_t bytes) {
    const device::Span<float> some(values.data(), bytes / sizeof(float));
    const unsigned peer = 1 - rank.number();
    if (rank.number() == 0) rank.world->send<float>(some, peer, rank.stream);
    rank.world->receive<float>(some, peer, rank.stream);
    if (rank.number() == 1) rank.world->send<float>(some, peer, rank.stream);
  });
}

// ----- costs --------------------------------------------------------------------------------------------------------

std::vector<Cost*> costs_in(Step& step) {
  std::vector<Cost*> costs;
  for (Layer& layer : step.layers) {
    for (Cost* cost : {&layer.forward, &layer.output_gradient, &layer.weight_gradient, &layer.update})
      costs.push_back(cost);
  }
  return costs;
}

/// All ranks at a time, so that they share memory and clocks as in a step. The ranks' mean.
Step measure_costs(Rank& rank, const Case& one, unsigned repeats) {
  rank.meet();
  auto step = profile_step(device::Device::cpu(rank.number()), one.model, model::DataType::kF32, one.rows, {},
                           {.repeats = repeats,
                            .threads = 1,
                            .pairs = one.family == Family::kOneDevice,
                            .micro_batches = one.micro_batches});
  if (!step) fail(step.error().message);
  std::vector<float> values;
  const std::vector<Cost*> costs = costs_in(*step);
  for (const Cost* cost : costs) {
    values.push_back(static_cast<float>(cost->us));
    values.push_back(static_cast<float>(cost->demand));
  }
  rank.agree(values);
  for (std::size_t i = 0; i < costs.size(); ++i) *costs[i] = {values[2 * i], std::min(1.0F, values[2 * i + 1])};
  return std::move(*step);
}

/// Of each cost the median.
Step median_of(std::vector<Step> steps) {
  Step result = steps.front();
  const std::vector<Cost*> costs = costs_in(result);
  for (std::size_t i = 0; i < costs.size(); ++i) {
    std::vector<double> us;
    std::vector<double> demands;
    for (Step& step : steps) {
      us.push_back(costs_in(step)[i]->us);
      demands.push_back(costs_in(step)[i]->demand);
    }
    *costs[i] = {bench::median_of(us), bench::median_of(demands)};
  }
  return result;
}

/// The plan's operations with these costs. Messages run on the ranks' processors, so their lanes share them.
double predict_us(const Plan& plan, const Step& step, const LinkCosts& link, double launch_us) {
  const auto layers = static_cast<unsigned>(step.layers.size());
  const auto sum = [&](const OpTag& tag, Cost Layer::*part) {
    const bool pipeline = plan.family == Family::kPipeline;
    const unsigned begin = pipeline ? plan.chunk_begins[tag.chunk] : tag.chunk;
    unsigned end = begin + 1;
    if (pipeline) end = tag.chunk + 1 < plan.chunk_begins.size() ? plan.chunk_begins[tag.chunk + 1] : layers;
    Cost total{.demand = (step.layers[begin].*part).demand};
    for (unsigned i = begin; i < end; ++i) total.us += (step.layers[i].*part).us;
    return total;
  };
  schedule::TaskGraph graph;
  for (const schedule::Value& value : plan.graph.values()) graph.add_value(value.name, value.bytes, value.kept);
  for (std::size_t i = 0; i < plan.graph.ops().size(); ++i) {
    schedule::Op op = plan.graph.ops()[i];
    const OpTag& tag = plan.tags[i];
    Cost cost{op.cost_us, op.demand};
    switch (tag.part) {
      case Part::kForward: cost = sum(tag, &Layer::forward); break;
      case Part::kOutputGradient: cost = sum(tag, &Layer::output_gradient); break;
      case Part::kWeightGradient: cost = sum(tag, &Layer::weight_gradient); break;
      case Part::kUpdate: cost = sum(tag, &Layer::update); break;
      case Part::kSendActivation:
      case Part::kSendGradient: cost.demand = link.demand; break;
      case Part::kAllReduce: cost.demand = link.demand; break;
      case Part::kNorm: break;
    }
    op.cost_us = cost.us;
    op.demand = cost.demand;
    graph.add(std::move(op));
  }
  schedule::Schedule schedule = plan.schedule;
  if (plan.family == Family::kDataParallel) {
    for (schedule::Lane& lane : schedule.lanes) lane.rank = 0;
  }
  const auto timeline = schedule::simulate(graph, schedule, {.launch_us = launch_us});
  if (!timeline) fail(timeline.error().message);
  return timeline->makespan_us();
}

// ----- a case -------------------------------------------------------------------------------------------------------

struct Ran {
  std::string name;
  std::unique_ptr<Trainer> trainer;
  double predicted_ms = 0;
  std::vector<double> measured_ms;
};

/// Of pairs of schedules whose predictions differ by more than the noise of the measurements: the share that is
/// measured in the predicted order, and Kendall's tau of them.
struct Order {
  unsigned pairs = 0;
  unsigned agreeing = 0;
  [[nodiscard]] double tau() const { return pairs == 0 ? NAN : 2.0 * agreeing / pairs - 1; }
};
double noise_of(const std::vector<Ran>& all) {
  std::vector<double> deviations;
  for (const Ran& one : all) {
    const double median = bench::median_of(one.measured_ms);
    std::vector<double> some;
    for (const double ms : one.measured_ms) some.push_back(std::abs(ms / median - 1));
    deviations.push_back(bench::median_of(some));
  }
  return bench::median_of(deviations);
}
Order order_of(const std::vector<Ran>& all, double noise) {
  Order order;
  for (std::size_t a = 0; a < all.size(); ++a) {
    for (std::size_t b = a + 1; b < all.size(); ++b) {
      const double predicted = all[a].predicted_ms / all[b].predicted_ms - 1;
      if (std::abs(predicted) <= 2 * noise) continue;
      const double measured = bench::median_of(all[a].measured_ms) / bench::median_of(all[b].measured_ms) - 1;
      ++order.pairs;
      if (predicted * measured > 0) ++order.agreeing;
    }
  }
  return order;
}

void print_operations(const Ran& one, const Case& of) {
  const auto timeline = one.trainer->last_run();
  if (!timeline) return;
  struct Sum {
    double planned = 0;
    double ran = 0;
    unsigned count = 0;
  };
  std::vector<std::pair<std::string, Sum>> sums;
  for (const schedule::Interval& interval : timeline->intervals) {
    const schedule::Op& op = one.trainer->rank_graph().op(interval.op);
    const std::string key = one.trainer->rank_schedule().lanes[interval.lane].name + ": " + op.name.substr(0, 1);
    auto found = std::ranges::find(sums, key, &std::pair<std::string, Sum>::first);
    if (found == sums.end()) found = sums.insert(sums.end(), {key, {}});
    found->second.planned += op.cost_us;
    found->second.ran += interval.end_us - interval.start_us;
    ++found->second.count;
  }
  std::printf("    %s, %s: makespan %.2f ms\n", of.name.c_str(), one.name.c_str(), timeline->makespan_us() / 1e3);
  for (const auto& [key, sum] : sums)
    std::printf("    %-30s x %3u planned %9.2f ms, ran %9.2f ms\n", key.c_str(), sum.count, sum.planned / 1e3,
                sum.ran / 1e3);
}

/// One of each schedule of the case's family; those that can't plan it are left out.
std::vector<Ran> make_trainers(const Rank& rank, const Case& one, const Step& costs, const LinkCosts& link,
                               const Options& options) {
  Ranks ranks;
  if (one.family == Family::kDataParallel) ranks.data = rank.world;
  if (one.family == Family::kPipeline) {
    ranks.pipeline = rank.world;
    ranks.pipeline_sums = rank.sums;
  }
  std::vector<Ran> all;
  for (const ScheduleName& name : schedule_names()) {
    if (name.family != one.family) continue;
    auto trainer = Trainer::create(device::Device::cpu(rank.number()),
                                   {.model = one.model,
                                    .rows = one.rows,
                                    .micro_batches = one.micro_batches,
                                    .seed = 1,
                                    .schedule = std::string(name.name),
                                    .window = options.window,
                                    .threads = 1,
                                    .measures = options.operations,
                                    .plan = {.link = link.link},
                                    .costs = costs},
                                   ranks);
    if (trainer) {
      all.push_back({std::string(name.name), std::move(*trainer), 0, {}});
    } else if (rank.number() == 0) {
      std::printf("%-34s skipped: %s\n", std::string(name.name).c_str(), trainer.error().message.c_str());
    }
  }
  return all;
}

/// Runs all schedules in turn, and profiles the step between the rounds. Returns the profiles.
std::vector<Step> measure_steps(Rank& rank, const Case& one, const Options& options, std::vector<Ran>& all) {
  const RandomInput input(one.model, one.rows * one.micro_batches, 7 + rank.number());
  const std::vector<StepInput> steps = input.steps(options.window, 1e-3F);
  const auto ms_of = [&](Trainer& trainer) {
    rank.meet();
    return ns_of([&] {
             const auto ran = trainer.run(steps);
             if (!ran) fail(ran.error().message);
             rank.meet();
           }) /
           1e6 / options.window;
  };
  for (Ran& ran : all) (void)ms_of(*ran.trainer);
  std::vector<Step> profiles;
  for (unsigned round = 0; round < options.rounds; ++round) {
    for (Ran& ran : all) {
      for (unsigned i = 0; i < options.repeats; ++i) ran.measured_ms.push_back(ms_of(*ran.trainer));
    }
    profiles.push_back(measure_costs(rank, one, options.repeats));
  }
  return profiles;
}

std::string setting_of(const Case& one) { return std::string(to_string(one.family)) + ", " + one.name; }

double mean_of(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return values.empty() ? 0 : sum / static_cast<double>(values.size());
}

void print_costs(const Case& one, const Step& costs, const LinkCosts& link) {
  double work_us = 0;
  for (const Layer& layer : costs.layers)
    work_us += layer.forward.us + layer.output_gradient.us + layer.weight_gradient.us;
  std::printf("%s\n  costs: %.2f ms a micro-batch, on one thread", setting_of(one).c_str(), work_us / 1e3);
  if (one.family != Family::kOneDevice)
    std::printf("; link: %.1f us + %.2f GB/s, %.2f of a processor", link.link.latency_us, link.link.gb_per_s,
                link.demand);
  std::printf("\n  %-32s %12s %12s %9s   %s\n", "schedule", "predicted ms", "measured ms", "error", "found");
}

/// Predicts each schedule's step, beside what it took. Returns the errors, in percent.
std::vector<double> report_errors(const Case& one, const Step& costs, const LinkCosts& link, const Options& options,
                                  std::vector<Ran>& all, Report& report) {
  const std::string setting = setting_of(one);
  print_costs(one, costs, link);
  std::vector<double> errors;
  for (Ran& ran : all) {
    ran.predicted_ms = predict_us(ran.trainer->plan(), costs, link, 0) / 1e3 / options.window;
    const double measured = bench::median_of(ran.measured_ms);
    const double error = 100 * (ran.predicted_ms / measured - 1);
    errors.push_back(std::abs(error));
    report.add("predicted", setting, ran.name, "ms", ran.predicted_ms);
    for (const double ms : ran.measured_ms) report.add("measured", setting, ran.name, "ms", ms);
    report.add("error", setting, ran.name, "%", error);
    std::printf("  %-32s %12.3f %12.3f %8.1f%%   %s\n", ran.name.c_str(), ran.predicted_ms, measured, error,
                ran.trainer->plan().choice.c_str());
    if (options.operations) print_operations(ran, one);
  }
  return errors;
}

void report_order(const Case& one, const LinkCosts& link, const std::vector<Ran>& all, double mean_error,
                  Report& report) {
  const double noise = noise_of(all);
  const Order order = order_of(all, noise);
  std::printf(
      "  mean error %.1f %%; noise of a measurement %.1f %%; order: %u of %u pairs that differ by more agree\n\n",
      mean_error, 100 * noise, order.agreeing, order.pairs);
  std::fflush(stdout);
  const auto add = [&, setting = setting_of(one)](const char* what, const char* system, const char* unit,
                                                  double value) { report.add(what, setting, system, unit, value); };
  add("mean error", "simulator", "%", mean_error);
  add("noise", "measurement", "%", 100 * noise);
  add("pairs of schedules", "that differ", "", order.pairs);
  add("pairs of schedules", "in the predicted order", "", order.agreeing);
  if (order.pairs > 0) add("Kendall's tau", "simulator", "", order.tau());
  add("link", "latency", "us", link.link.latency_us);
  add("link", "bandwidth", "GB/s", link.link.gb_per_s);
  add("link", "demand", "", link.demand);
}

/// As one rank; rank 0 reports. Returns its errors, in percent.
std::vector<double> run_case(Rank& rank, const Case& one, bool is_mpi, const Options& options, Report& report) {
  LinkCosts link;
  if (one.family == Family::kDataParallel) link = measure_all_reduce(rank, is_mpi, options.rounds);
  if (one.family == Family::kPipeline) link = measure_send(rank, is_mpi, options.rounds);
  const Step first_profile = measure_costs(rank, one, options.repeats);
  std::vector<Ran> all = make_trainers(rank, one, first_profile, link, options);
  std::vector<Step> profiles = measure_steps(rank, one, options, all);
  if (rank.number() != 0) return {};
  profiles.insert(profiles.begin(), first_profile);
  const std::vector<double> errors = report_errors(one, median_of(profiles), link, options, all, report);
  report_order(one, link, all, mean_of(errors), report);
  return errors;
}

int simulator_command(const Options& options) {
  Report report;
  std::vector<double> errors;
  const auto keep = [&](const std::vector<double>& some) { errors.insert(errors.end(), some.begin(), some.end()); };
  const bool is_mpi = is_under_mpirun();
  report.note("ranks", is_mpi ? "processes" : "threads");
  bool first = true;
  if (is_mpi) {
    auto all = Communicator::mpi();
    if (!all) fail(all.error().message);
    if (all->size() != kRanks) fail("the measurement needs 2 ranks: start with mpirun -n 2");
    auto sums = all->split(0, all->rank());
    if (!sums) fail(sums.error().message);
    first = all->rank() == 0;
    Rank rank(&*all, &*sums);
    for (const Case& one : cases_of(options)) {
      if (one.family != Family::kOneDevice && one.added_us_per_mb == 0)
        keep(run_case(rank, one, true, options, report));
    }
  } else {
    for (const Case& one : cases_of(options)) {
      if (one.family == Family::kOneDevice) {
        Rank rank(nullptr, nullptr);
        keep(run_case(rank, one, false, options, report));
        continue;
      }
      auto all = Communicator::threads(
          kRanks, {.added_latency_us = one.added_latency_us, .added_us_per_mb = one.added_us_per_mb});
      auto sums = Communicator::threads(kRanks);
      if (!all) fail(all.error().message);
      if (!sums) fail(sums.error().message);
      on_threads(kRanks, [&](unsigned number) {
        Rank rank(&(*all)[number], &(*sums)[number]);
        const auto some = run_case(rank, one, false, options, report);
        if (number == 0) keep(some);
      });
    }
  }
  if (!first) return 0;
  const double mean = mean_of(errors);
  if (!options.quick) report.target("simulator: mean error of all schedules, %", mean, at_most(10));
  report.note("mean_error_percent", mean);
  return report.write_json(options.json, "simulator");
}

}  // namespace

void add_simulator_command(CLI::App& app, Run& run) {
  auto options = std::make_shared<Options>();
  CLI::App* const command = app.add_subcommand(
      "simulator", "Predicted beside measured step times of each schedule; ranks are threads, under mpirun processes");
  command->add_option("--json", options->json, "Google-Benchmark-compatible file");
  command->add_option("--families", options->families, "Of schedules")
      ->delimiter(',')
      ->check(CLI::IsMember({"one-device", "data-parallel", "pipeline"}))
      ->capture_default_str();
  command->add_option("--rounds", options->rounds, "In turn; medians are reported")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command->add_option("--repeats", options->repeats, "Of a profile, and of each schedule in a round")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command->add_option("--window", options->window, "Steps that are issued at once")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  command->add_flag("--operations", options->operations, "Also what each kind of operation took; costs some time");
  command->add_flag("--quick", options->quick, "Tiny models: to see whether it runs");
  command->callback([&run, options] {
    if (options->quick) options->rounds = std::min(options->rounds, 2U);
    run = [options] { return simulator_command(*options); };
  });
}

}  // namespace dunnock::bench
