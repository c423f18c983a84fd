// dunnock-gpu-check: is the device layer right on this machine's GPU, and how near is it to what the GPU can do?
#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <random>
#include <string>

#include "benchmarks.hpp"
#include "budget.hpp"
#include "checks.hpp"
#include "dunnock/base/program.hpp"
#include "facts.hpp"
#include "kernel_benchmarks.hpp"
#include "peers.hpp"
#include "report.hpp"
#include "sanitizer.hpp"

namespace dunnock::gpu_check {
namespace {

struct Options {
  bool quick = false;
  bool rehearse = false;
  bool checks_only = false;
  bool small = false;
  bool list_cases = false;
  double seconds = 450;
  std::uint64_t seed = 0;
  std::string json;
  std::string peers = DUNNOCK_PEERS_SCRIPT;
};

int usage(int code) {
  std::printf(
      "dunnock-gpu-check [--quick] [--rehearse] [--seconds N] [--seed N] [--json FILE] [--peers FILE]\n"
      "                  [--checks-only [--small]] [--list-cases [--quick]]\n"
      "  --quick        small sizes: does it run?\n"
      "  --rehearse     on the CPU backend, where there is no GPU; its figures say nothing about one\n"
      "  --seconds N    the time for all of it (450); what does not fit is skipped, and the report says so\n"
      "  --seed N       of the checks' random inputs (one of the system's; it is printed)\n"
      "  --json FILE    the report, for programs; README.md says what is in it\n"
      "  --peers FILE   the script that measures PyTorch (%s)\n"
      "  --checks-only  no benchmarks; with --small inputs for compute-sanitizer\n"
      "  --list-cases   prints the kernels and sizes that PyTorch has too, for peers.py\n"
      "Exit codes: 0 all is right, 1 a check failed or the time was over, 2 usage, 3 no GPU.\n",
      DUNNOCK_PEERS_SCRIPT);
  return code;
}

template <class T>
bool read_number(const char* text, T& value) {
  const auto [end, error] = std::from_chars(text, text + std::strlen(text), value);
  return error == std::errc{} && *end == '\0';
}

/// False: that is no way to call it.
bool read_options(int argc, char** argv, Options& options) {
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    const char* const value = i + 1 < argc ? argv[i + 1] : nullptr;
    if (name == "--quick") {
      options.quick = true;
    } else if (name == "--rehearse") {
      options.rehearse = true;
    } else if (name == "--checks-only") {
      options.checks_only = true;
    } else if (name == "--small") {
      options.small = true;
    } else if (name == "--list-cases") {
      options.list_cases = true;
    } else if (value == nullptr) {
      return false;
    } else if (name == "--json") {
      options.json = argv[++i];
    } else if (name == "--peers") {
      options.peers = argv[++i];
    } else if (name == "--seconds" && read_number(value, options.seconds) && options.seconds > 0) {
      ++i;
    } else if (name == "--seed" && read_number(value, options.seed)) {
      ++i;
    } else {
      return false;
    }
  }
  return true;
}

/// Prints the report, and writes it where it is wanted. The exit code.
int finish(const Options& options, const RunFacts& facts, const Report& report) {
  report.print(facts);
  if (!options.json.empty()) {
    if (Status written = report.write_json(options.json, facts); !written) {
      std::fprintf(stderr, "%s\n", written.error().message.c_str());
      return 2;
    }
  }
  return report.all_passed() ? 0 : 1;
}

/// PyTorch's times, and a skipped check for each case that has none.
PeerResults measure_peers(const Options& options, bool quick, const std::vector<bench::KernelCase>& cases,
                          const Budget& budget, Report& report) {
  constexpr double kSecondsMax = 150;  // On an H200 it takes about a minute.
  PeerOptions peers{.script = options.peers, .cases = "", .seconds_max = kSecondsMax, .rehearse = options.rehearse};
  for (const bench::KernelCase& one : cases) {
    if (!one.operation.op.empty()) peers.cases += json_of(one) + "\n";
  }
  if (quick) peers.seconds_max = 60;
  constexpr double kKept = 100;  // For the sanitizers.
  peers.seconds_max = std::min(peers.seconds_max, budget.seconds_left() - kKept);
  if (peers.seconds_max < 20) {
    report.skip("PyTorch", "no time is left");
    return {.about = "none: no time was left"};
  }
  PeerResults results = run_peers(peers);
  for (const auto& [name, error] : results.errors) report.skip("PyTorch, " + name, error);
  if (results.broken_lines != 0)
    report.skip("PyTorch", std::to_string(results.broken_lines) + " lines of peers.py are not understood");
  return results;
}

int run(int argc, char** argv) {
  Options options;
  options.seed = std::random_device{}();
  const auto is_help = [](const char* argument) { return std::strcmp(argument, "--help") == 0; };
  if (std::any_of(argv + 1, argv + argc, is_help)) return usage(0);
  if (!read_options(argc, argv, options)) return usage(2);
  const bool quick = options.quick || options.rehearse;
  const auto cases = measured_cases(quick);
  if (options.list_cases) {
    for (const bench::KernelCase& one : cases) {
      if (!one.operation.op.empty()) std::printf("%s\n", json_of(one).c_str());
    }
    return 0;
  }
  if (!options.rehearse && device::Device::cuda_count() == 0) {
    std::printf("No GPU: %s\n", device::Device::why_no_cuda().c_str());
    return 3;
  }
  device::Device device = options.rehearse ? device::Device::cpu() : *device::Device::cuda();
  const RunFacts facts{.device = facts_of(device), .date = date_now(), .rehearsal = options.rehearse, .quick = quick};
  std::printf("%s: %s, %u processors, %.1f GiB; seed %llu\n", facts.device.label.c_str(),
              facts.device.info.name.c_str(), facts.device.info.processors,
              static_cast<double>(facts.device.info.memory_bytes) / (1 << 30),
              static_cast<unsigned long long>(options.seed));

  const Budget budget(options.seconds);
  Report report;
  const Watchdog watchdog(budget, [&] {
    report.check("the time", "the time limit was reached: something hangs, or --seconds is too small");
    std::_Exit(finish(options, facts, report) == 2 ? 2 : 1);
  });
  // What must be right comes first; what is only measured yields to it when time is short.
  run_checks(device, {.small = options.small, .seed = options.seed}, budget, report);
  if (!options.checks_only) {
    const BenchmarkOptions benchmarks{.quick = quick};
    benchmark_copies(device, benchmarks, report);
    benchmark_filters(device, benchmarks, budget, report);
    benchmark_graphs(device, benchmarks, report);
    const auto ours = measure_kernels(device, cases, benchmarks, budget, report);
    device.release_kept_memory();  // For the programs that come now.
    const PeerResults peers = measure_peers(options, quick, cases, budget, report);
    report.peers(peers.about);
    report_kernels(cases, ours, peers, report);
    std::error_code unknown;
    const std::string self = std::filesystem::read_symlink("/proc/self/exe", unknown);
    std::vector<std::string> again{self, "--checks-only", "--small", "--seed", std::to_string(options.seed)};
    if (options.rehearse) again.emplace_back("--rehearse");
    run_sanitizers(again, budget, report);
  }
  return finish(options, facts, report);
}

}  // namespace
}  // namespace dunnock::gpu_check

int main(int argc, char** argv) {
  return dunnock::run_program("dunnock-gpu-check", 2, [&] { return dunnock::gpu_check::run(argc, argv); });
}
