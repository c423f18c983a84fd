#include "kernel_benchmarks.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <memory>
#include <optional>

#include "dunnock/device/graph.hpp"
#include "timing.hpp"

namespace dunnock::gpu_check {
namespace {

using bench::Form;
using bench::KernelCase;
using bench::KernelValues;

/// What must be left for PyTorch and the sanitizers, and what our kernels may take at most.
constexpr double kSecondsKept = 130;
constexpr double kSecondsMax = 110;
constexpr double kShortMs = 0.2;
constexpr std::size_t kSetsMax = 64;

bool by_arithmetic(const KernelCase& one) { return one.flops > 0; }
/// GB/s or TFLOP/s.
double rate(const KernelCase& one, double ms) {
  return by_arithmetic(one) ? one.flops / ms * 1e-9 : one.bytes / ms * 1e-6;
}

/// Buffers of a case, and the call on them.
struct Set {
  std::unique_ptr<KernelValues> values;
  KernelCase::Run run;
};
std::optional<Set> make_set(const KernelCase& one, std::uint64_t seed, device::Stream& stream) {
  Set set{std::make_unique<KernelValues>(stream, seed), {}};
  set.run = one.prepare(*set.values);
  if (set.values->failed()) return std::nullopt;
  return set;
}

/// The number of sets needed so that a cache of `cache_bytes` has lost a set before its next turn; 1 if one is enough.
std::size_t sets_for(std::size_t bytes, std::size_t cache_bytes) {
  if (bytes == 0 || bytes >= 2 * cache_bytes) return 1;
  return std::min((3 * cache_bytes + bytes - 1) / bytes, kSetsMax);
}

struct Measured {
  double ms = 0;
  std::string skipped{};  // Why it was not measured, though nothing is wrong.
  std::string error{};
};

Measured measure(const KernelCase& one, device::Device device, bool quick) {
  const unsigned rounds = quick ? 3 : 11;
  auto stream = device::Stream::create(device);
  if (!stream) return {.error = stream.error().message};
  std::vector<Set> sets;
  std::size_t count = 1;
  while (sets.size() < count) {
    auto set = make_set(one, sets.size() + 1, *stream);
    if (!set && sets.empty()) return {.skipped = "no room for its buffers"};
    if (!set) break;
    sets.push_back(std::move(*set));
    count = quick ? 2 : sets_for(sets.front().values->bytes(), device.info().l2_bytes);
  }
  const auto issue = [&](std::size_t call) { sets[call % sets.size()].run(*stream, Form::kKernel); };
  Timer timer(*stream);
  for (std::size_t call = 0; call < sets.size(); ++call) issue(call);  // Libraries choose their kernels.
  const double first = timer.once_ms([&] { issue(0); });
  if (!timer.error().empty()) return {.error = timer.error()};
  double ms = 0;
  if (first >= kShortMs) {
    ms = timer.median_ms([&](unsigned round) { issue(round); }, rounds);
  } else {
    const std::size_t calls = std::max<std::size_t>(sets.size(), 20);
    const auto all = [&] {
      for (std::size_t call = 0; call < calls; ++call) issue(call);
    };
    auto graph = device::Graph::capture(*stream, all);
    if (!graph) return {.error = "it can't be recorded: " + graph.error().message};
    ms = timer.median_ms([&](unsigned) { graph->launch(*stream); }, rounds) / static_cast<double>(calls);
  }
  if (!timer.error().empty()) return {.error = timer.error()};
  return {.ms = std::max(ms, 1e-6)};  // A clock may not see what is shorter.
}

struct Target {
  double share = 0;  // 0: none.
  bool of_peer = false;
};
Target target_of(const KernelCase& one) {
  if (one.kernel == "paged attention") return {.share = 0.80};
  if (!by_arithmetic(one)) return {.share = 0.85};
  if (one.name() == "matmul bf16 8192 x 8192 x 8192") return {.share = 0.95, .of_peer = true};
  return {};
}

}  // namespace

std::vector<KernelCase> measured_cases(bool quick) {
  return bench::all_kernel_cases(quick ? bench::CaseSize::kTiny : bench::CaseSize::kGpu);
}

std::string json_of(const KernelCase& one) {
  std::string line =
      "{\"name\": \"" + one.name() + "\", \"op\": \"" + one.operation.op + "\", \"type\": \"" + one.type + "\"";
  for (const auto& [name, value] : one.operation.sizes) line += ", \"" + name + "\": " + std::to_string(value);
  std::array<char, 96> costs{};
  std::snprintf(costs.data(), costs.size(), ", \"bytes\": %.0f, \"flops\": %.0f}", one.bytes, one.flops);
  return line + costs.data();
}

std::map<std::string, double> measure_kernels(device::Device device, const std::vector<KernelCase>& cases,
                                              const BenchmarkOptions& options, const Budget& budget, Report& report) {
  std::map<std::string, double> times;
  const Budget own(kSecondsMax);
  for (std::size_t i = 0; i < cases.size(); ++i) {
    const KernelCase& one = cases[i];
    if (budget.seconds_left() < kSecondsKept || own.seconds_left() == 0) {
      report.skip("kernels measured", std::to_string(cases.size() - i) + " of " + std::to_string(cases.size()) +
                                          ", from " + one.name() + " on: no time is left");
      break;
    }
    const Measured done = measure(one, device, options.quick);
    if (!done.error.empty()) {
      report.check(one.name() + " is measured", done.error);
    } else if (!done.skipped.empty()) {
      report.skip(one.name() + " is measured", done.skipped);
    } else {
      times[one.name()] = done.ms;
    }
    device.release_kept_memory();  // The next ones are of other sizes.
  }
  return times;
}

void report_kernels(const std::vector<KernelCase>& cases, const std::map<std::string, double>& ours,
                    const PeerResults& peers, Report& report) {
  const auto ms_in = [](const std::map<std::string, double>& times, const std::string& name) -> std::optional<double> {
    const auto found = times.find(name);
    return found == times.end() ? std::nullopt : std::optional(found->second);
  };
  const double copy = report.value_of(kCopyCeiling).value_or(0);
  std::map<std::string, double> best_product;  // By type.
  for (const KernelCase& one : cases) {
    if (one.kernel != "matmul") continue;
    for (const auto& ms : {ms_in(ours, one.name()), ms_in(peers.ms, one.name())}) {
      double& best = best_product[one.type];
      best = std::max(best, ms ? rate(one, *ms) : 0);
    }
  }
  for (const KernelCase& one : cases) {
    const auto mine = ms_in(ours, one.name());
    const auto theirs = ms_in(peers.ms, one.name());
    if (!mine && !theirs) continue;
    Figure figure{.name = one.name(), .unit = by_arithmetic(one) ? "TFLOP/s" : "GB/s"};
    if (mine) figure.value = rate(one, *mine);
    if (theirs) figure.peer = Peer{"PyTorch", rate(one, *theirs)};
    if (!by_arithmetic(one) && copy > 0) {
      figure.ceiling = kCopyCeiling;
      figure.ceiling_value = copy;
    } else if (by_arithmetic(one) && best_product[one.type] > 0) {
      figure.ceiling = "the fastest matmul " + one.type;
      figure.ceiling_value = best_product[one.type];
    }
    const Target target = target_of(one);
    const auto reached = target.of_peer ? figure.ratio() : figure.share();
    if (target.share > 0 && (reached || !mine)) {
      figure.target =
          ">= " + std::to_string(std::lround(100 * target.share)) + " % of " + (target.of_peer ? "PyTorch" : "copy");
      figure.met = reached.value_or(0) >= target.share;
    }
    report.figure(std::move(figure));
  }
}

}  // namespace dunnock::gpu_check
