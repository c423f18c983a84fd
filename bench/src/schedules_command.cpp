// dunnock-bench schedules: the schedules of training steps beside each other, in the simulator; tables as Markdown, and
// pictures. Nothing is measured here but how long the simulator takes.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "commands.hpp"
#include "dunnock/training/profiles.hpp"
#include "dunnock/training/schedules.hpp"
#include "dunnock/training/timeline_svg.hpp"
#include "report.hpp"

namespace dunnock::bench {
namespace {

using namespace training;

struct Options {
  std::string json;
  std::string svg;
  std::string trace;
  bool quick = false;
};

/// A plan and its figures, or the reason why there is no plan.
struct Outcome {
  std::string refused;
  Plan plan{};
  Figures figures{};
  [[nodiscard]] double peak_bytes() const { return static_cast<double>(*std::ranges::max_element(figures.peak_bytes)); }
};

Outcome simulate(std::string_view name, const Step& step, const PlanOptions& options) {
  Outcome outcome;
  auto plan = make_plan(name, step, options);
  if (!plan) return {.refused = plan.error().message};
  auto figures = figures_of(*plan);
  if (!figures) return {.refused = figures.error().message};
  outcome.plan = std::move(*plan);
  outcome.figures = std::move(*figures);
  return outcome;
}

std::vector<std::string_view> names_of(Family family) {
  std::vector<std::string_view> names;
  for (const ScheduleName& one : schedule_names()) {
    if (one.family == family) names.push_back(one.name);
  }
  return names;
}

/// The geometric mean, as means of ratios have to be.
double mean_of(const std::vector<double>& ratios) {
  double sum = 0;
  for (const double ratio : ratios) sum += std::log(ratio);
  return ratios.empty() ? NAN : std::exp(sum / static_cast<double>(ratios.size()));
}

// ----- equal costs --------------------------------------------------------------------------------------------------

/// Idle time by the closed form, in F of a stage, with F = B = W; NAN: there is none.
double closed_form(std::string_view name, unsigned devices, unsigned chunks) {
  const double others = devices - 1;
  if (name == "gpipe" || name == "1f1b") return 3 * others;
  if (name == "interleaved-1f1b") return 3 * others / chunks;
  if (name == "gpipe-fast-forwarding") return 2 * others;
  if (name == "zb-h1") return others;
  if (name == "zb-h2" || name == "zb-v") return 0;
  if (name == "dualpipe-v") return others / 2;  // Published: twice that, with gradients that leave after W.
  return NAN;
}

void equal_costs(Report& report) {
  constexpr unsigned kDevices = 8;
  constexpr unsigned kMicroBatches = 16;
  constexpr unsigned kLayers = 8 * 8;
  const Step step = uniform_step(kLayers, {.forward = {0.125},
                                           .output_gradient = {0.125},
                                           .weight_gradient = {0.125},
                                           .kept_bytes = 125,
                                           .kept_for_weights_bytes = 125});
  std::printf(
      "\n## Equal costs (simulated)\n\n8 stages of 8 layers, 16 micro-batches, F = B = W = 1 per stage, no time for "
      "transfers.\n\n"
      "| schedule | idle | closed form | bubble share | iteration | GPipe / it | from a standing start | GPipe / it "
      "| activations, stages |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n");
  double gpipe_us = 0;
  double gpipe_step_us = 0;
  for (const std::string_view name : names_of(Family::kPipeline)) {
    const Outcome one = simulate(name, step, {.devices = kDevices, .micro_batches = kMicroBatches});
    const double idle = one.figures.iteration_us - 3 * kMicroBatches;
    if (name == "gpipe") {
      gpipe_us = one.figures.iteration_us;
      gpipe_step_us = one.figures.step_us;
    }
    const double form = closed_form(name, kDevices, 2);
    std::printf("| %s | %.2f | %s | %.1f %% | %.2f | %.3f | %.2f | %.3f | %.2f |\n", std::string(name).c_str(), idle,
                std::isnan(form) ? "" : std::to_string(form).substr(0, 5).c_str(), 100 * one.figures.bubble_share,
                one.figures.iteration_us, gpipe_us / one.figures.iteration_us, one.figures.step_us,
                gpipe_step_us / one.figures.step_us, one.peak_bytes() / 1000);
    const std::string schedule(name);
    report.add("equal costs, 8 x 16", "bubble share", schedule, "", one.figures.bubble_share);
    report.add("equal costs, 8 x 16", "iteration", schedule, "F", one.figures.iteration_us);
    report.add("equal costs, 8 x 16", "step", schedule, "F", one.figures.step_us);
    report.add("equal costs, 8 x 16", "peak", schedule, "stages", one.peak_bytes() / 1000);
  }
  const double both = report.median("equal costs, 8 x 16", "step", "fast-forwarding-modulo");
  const double both_gpipe = report.median("equal costs, 8 x 16", "step", "gpipe-fast-forwarding-modulo");
  std::printf("\n");
  report.target("8 stages x 16, equal costs: fast-forwarding + modulo / GPipe, one step", gpipe_step_us / both,
                at_least(1.4));
  report.target("the same, all forwards first (GPipe's order)", gpipe_step_us / both_gpipe, at_least(1.4));
}

// ----- pipelines of profiles ----------------------------------------------------------------------------------------

struct Machine {
  DeviceModel device;
  Link link;
  const char* link_name;
};

std::vector<Machine> machines() {
  return {{v100_like(), {.latency_us = 10, .gb_per_s = 12.5}, "100 Gbit/s"},
          {h200_like(), {.latency_us = 10, .gb_per_s = 50}, "400 Gbit/s"}};
}

void pipelines(Report& report, bool quick) {
  struct Case {
    std::string_view profile;
    unsigned batch;
    unsigned devices;
    unsigned micro_batches;
  };
  std::vector<Case> cases = {{"gpt3-like", 1, 8, 16},
                             {"gpt3-like", 1, 16, 32},
                             {"gpt3-like", 1, 48, 64},
                             {"gpt2-xl", 1, 8, 16},
                             {"bert-large", 4, 8, 16}};
  if (quick) cases = {{"bert-large", 4, 8, 16}};
  for (const Machine& machine : machines()) {
    for (const Case& c : cases) {
      const Step step = *profile(c.profile, machine.device, c.batch);
      std::printf(
          "\n## Pipeline of %u, %u micro-batches: %s, %s between devices (simulated)\n\n"
          "| schedule | ms | GPipe / it | 1F1B / it | bubble share | peak GB | notes |\n"
          "| --- | --- | --- | --- | --- | --- | --- |\n",
          c.devices, c.micro_batches, step.name.c_str(), machine.link_name);
      const PlanOptions base{.devices = c.devices, .micro_batches = c.micro_batches, .link = machine.link};
      const double gpipe_us = simulate("gpipe", step, base).figures.iteration_us;
      const double one_us = simulate("1f1b", step, base).figures.iteration_us;
      for (const std::string_view name : names_of(Family::kPipeline)) {
        // The automatic scheduler gets what the device has.
        const bool limited = name == "zb-auto";
        PlanOptions options = base;
        if (limited) options.memory_limit_bytes = machine.device.memory_bytes;
        Outcome one;
        const double ns = ns_of([&] { one = simulate(name, step, options); });
        if (!one.refused.empty()) {
          std::printf("| %s | | | | | | %s |\n", std::string(name).c_str(), one.refused.c_str());
          continue;
        }
        const double us = one.figures.iteration_us;
        const bool fits = one.peak_bytes() <= static_cast<double>(machine.device.memory_bytes);
        const std::string notes = one.plan.choice + (fits ? "" : "more than the device has");
        std::printf("| %s | %.1f | %.3f | %.3f | %.1f %% | %.1f | %s |\n", std::string(name).c_str(), us / 1e3,
                    gpipe_us / us, one_us / us, 100 * one.figures.bubble_share, one.peak_bytes() / 1e9, notes.c_str());
        const std::string setting =
            step.name + ", " + std::to_string(c.devices) + " x " + std::to_string(c.micro_batches);
        const std::string schedule(name);
        report.add("pipeline iteration", setting, schedule, "us", us);
        report.add("pipeline bubble share", setting, schedule, "", one.figures.bubble_share);
        report.add("pipeline peak", setting, schedule, "B", one.peak_bytes());
        report.add("time to make and simulate", setting, schedule, "ms", ns / 1e6);
      }
    }
  }
  if (quick) return;
  for (const char* name : {"1f1b", "interleaved-1f1b", "zb-h1", "zb-v"}) {
    const double ms = report.median("time to make and simulate", "gpt3-like, batch 1, v100-like, 48 x 64", name);
    report.target(std::string("making and simulating 48 devices x 64 micro-batches, ") + name + ", ms", ms,
                  below(1000));
  }
}

// ----- data-parallel ------------------------------------------------------------------------------------------------

void data_parallel(Report& report, bool quick) {
  std::vector<std::string_view> profiles = {"gpt2-small", "bert-base",    "bert-large",
                                            "resnet-50",  "densenet-121", "mobilenet-v1"};
  if (quick) profiles = {"resnet-50"};
  constexpr std::array<double, 5> kLoads = {0.25, 0.5, 1, 2, 4};
  for (const unsigned devices : {16U, 48U}) {
    for (const Machine& machine : machines()) {
      std::printf(
          "\n## Data-parallel, %u devices: reverse first-k / overlap, and / priority (simulated)\n\n"
          "%s, batch 64 per device. The column says how slow the link is: sending all gradients' bytes takes that many "
          "times as long as the computation; 20 us latency. Message sizes are searched for each schedule.\n\n"
          "| step |",
          devices, std::string(machine.device.name).c_str());
      for (const double load : kLoads) std::printf(" %.4g |", load);
      std::printf("\n| --- | --- | --- | --- | --- | --- |\n");
      std::vector<std::vector<double>> over(kLoads.size());
      std::vector<std::vector<double>> over_priority(kLoads.size());
      for (const std::string_view name : profiles) {
        const Step step = *profile(name, machine.device, 64);
        double compute_us = 0;
        double bytes = 0;
        for (const Layer& layer : step.layers) {
          compute_us += layer.forward.us + layer.output_gradient.us + layer.weight_gradient.us + layer.update.us;
          bytes += static_cast<double>(layer.gradient_bytes);
        }
        std::printf("| %s |", std::string(name).c_str());
        for (std::size_t i = 0; i < kLoads.size(); ++i) {
          const double ring_bytes = 2.0 * (devices - 1) / devices * bytes;
          const PlanOptions options{
              .devices = devices,
              .iterations = 3,
              .link = {.latency_us = 20, .gb_per_s = ring_bytes / (kLoads[i] * compute_us * 1e3)}};
          const auto us = [&](const char* schedule) {
            const double value = simulate(schedule, step, options).figures.iteration_us;
            report.add("data-parallel iteration, " + std::to_string(devices),
                       step.name + ", load " + std::to_string(kLoads[i]).substr(0, 4), schedule, "us", value);
            return value;
          };
          (void)us("no-overlap");
          const double overlap = us("overlap");
          const double priority = us("priority");
          const double reverse = us("reverse-first-k");
          over[i].push_back(overlap / reverse);
          over_priority[i].push_back(priority / reverse);
          std::printf(" %.3f / %.3f |", over[i].back(), over_priority[i].back());
        }
        std::printf("\n");
      }
      std::printf("| geometric mean |");
      for (std::size_t i = 0; i < kLoads.size(); ++i)
        std::printf(" %.3f / %.3f |", mean_of(over[i]), mean_of(over_priority[i]));
      std::printf("\n\n");
      if (devices != 16) continue;
      for (const std::size_t i : {std::size_t{1}, std::size_t{2}, std::size_t{3}}) {
        const double mean = mean_of(over[i]);
        report.target("16 devices, " + std::string(machine.device.name) + ", link load " +
                          std::to_string(kLoads[i]).substr(0, 3) + ": reverse first-k / overlap, mean",
                      mean, at_least(1.1));
      }
    }
  }
}

// ----- one device ---------------------------------------------------------------------------------------------------

void one_device(Report& report, bool quick) {
  std::printf(
      "\n## One device (simulated)\n\nIterations of three in a row. Launching takes 10 us per operation (a layer's "
      "few kernels) without a graph, and no time with a graph.\n\n"
      "| step | conventional, launched | conventional, graph | multi-stream, graph | graph alone | multi-stream alone "
      "| both | peak GB, conventional / multi-stream | found |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- "
      "|\n");
  std::vector<unsigned> batches = {8, 32, 128};
  if (quick) batches = {8};
  for (const Machine& machine : machines()) {
    for (const std::string_view name : {"densenet-121", "mobilenet-v1", "resnet-50", "bert-base", "gpt2-small"}) {
      for (const unsigned batch : batches) {
        if (batch > 32 && name.find("net") == std::string_view::npos) continue;
        const Step step = *profile(name, machine.device, batch);
        const auto run = [&](const char* schedule, double launch_us) {
          Outcome one =
              simulate(schedule, step,
                       {.iterations = 3, .memory_limit_bytes = machine.device.memory_bytes, .launch_us = launch_us});
          if (one.refused.empty())
            report.add("one device, iteration", step.name,
                       std::string(schedule) + (launch_us > 0 ? ", launched" : ", graph"), "us",
                       one.figures.iteration_us);
          return one;
        };
        const Outcome launched = run("conventional", 10);
        const Outcome graph = run("conventional", 0);
        const Outcome ours = run("multi-stream", 0);
        if (!ours.refused.empty()) {
          std::printf("| %s | | | | | | | | %s |\n", step.name.c_str(), ours.refused.c_str());
          continue;
        }
        const double a = launched.figures.iteration_us;
        const double b = graph.figures.iteration_us;
        const double c = ours.figures.iteration_us;
        std::printf("| %s | %.2f ms | %.2f | %.2f | %.3f | %.3f | %.3f | %.2f / %.2f | %s |\n", step.name.c_str(),
                    a / 1e3, b / 1e3, c / 1e3, a / b, b / c, a / c, graph.peak_bytes() / 1e9, ours.peak_bytes() / 1e9,
                    ours.plan.choice.c_str());
      }
    }
  }
  std::printf("\n");
}

// ----- pictures -----------------------------------------------------------------------------------------------------

/// One small case a schedule: pipelines of 4 devices and 8 micro-batches with equal costs; 8 layers for the others.
Outcome picture_of(const ScheduleName& name) {
  Layer layer{.forward = {8}, .output_gradient = {8}, .weight_gradient = {8}};
  PlanOptions options;
  switch (name.family) {
    case Family::kPipeline:
      options = {.devices = 4, .micro_batches = 8, .chunks = 2};
      return simulate(name.name, uniform_step(8, layer), options);
    case Family::kDataParallel:
      // The last layers have most of the weights, as in convolutional networks.
      options = {.devices = 16, .iterations = 2, .link = {.gb_per_s = 1}, .message_bytes = 8000};
      layer.update = {2};
      break;
    case Family::kOneDevice:
      options.iterations = 2;
      layer.update = {2, 0.5};
      break;
  }
  Step step = uniform_step(8, layer);
  for (unsigned i = 0; i < step.layers.size(); ++i) {
    step.layers[i].gradient_bytes = 2000 * (i + 1);
    // Later layers are smaller: they keep less of the device busy.
    step.layers[i].block = i / 2;
    if (name.family == Family::kOneDevice) {
      const double demand = 0.9 - 0.1 * (i / 2);
      step.layers[i].forward.demand = step.layers[i].output_gradient.demand = demand;
      step.layers[i].weight_gradient.demand = 0.5;
    }
  }
  return simulate(name.name, step, options);
}

/// The exit status.
int draw(const std::string& svg, const std::string& trace) {
  for (const std::string& folder : {svg, trace}) {
    if (folder.empty()) continue;
    std::error_code error;
    std::filesystem::create_directories(folder, error);
    if (!error) continue;
    std::fprintf(stderr, "can't make %s: %s\n", folder.c_str(), error.message().c_str());
    return 3;
  }
  for (const ScheduleName& name : schedule_names()) {
    const Outcome one = picture_of(name);
    if (!one.refused.empty()) {
      std::fprintf(stderr, "%s\n", one.refused.c_str());
      return 3;
    }
    const std::string file = "/" + std::string(name.name);
    Status drawn;
    if (!svg.empty())
      drawn = write_svg(svg + file + ".svg", one.plan, one.figures.timeline, {.title = std::string(name.name)});
    if (drawn && !trace.empty())
      drawn =
          schedule::write_chrome_json(trace + file + ".json", one.plan.graph, one.plan.schedule, one.figures.timeline);
    if (drawn) continue;
    std::fprintf(stderr, "%s\n", drawn.error().message.c_str());
    return 3;
  }
  return 0;
}

int run_schedules(const Options& options) {
  if (!options.svg.empty() || !options.trace.empty()) {
    if (const int status = draw(options.svg, options.trace); status != 0) return status;
  }
  Report report;
  report.note("simulated", true);
  equal_costs(report);
  pipelines(report, options.quick);
  data_parallel(report, options.quick);
  one_device(report, options.quick);
  return report.write_json(options.json, "schedules");
}

}  // namespace

void add_schedules_command(CLI::App& app, Run& run) {
  auto options = std::make_shared<Options>();
  CLI::App* const command =
      app.add_subcommand("schedules", "Schedules of training steps, simulated: tables and pictures");
  command->add_option("--json", options->json, "Write the results to this file");
  command->add_option("--svg", options->svg, "Draw one picture a schedule into this folder");
  command->add_option("--trace", options->trace, "Write one trace for Perfetto a schedule into this folder");
  command->add_flag("--quick", options->quick, "Few cases: to see whether it runs");
  command->callback([&run, options] { run = [options] { return run_schedules(*options); }; });
}

}  // namespace dunnock::bench
