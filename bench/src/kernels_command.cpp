// dunnock-bench kernels: each kernel's rate beside the floor of this machine: what a copy of as many bytes takes, or
// the largest rate of a matrix product in the same run.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "commands.hpp"
#include "kernel_case.hpp"
#include "report.hpp"

namespace dunnock::bench {
namespace {

using namespace kernels;

struct Options {
  std::string json;
  std::string only;
  unsigned threads = 0;
  int rounds = 5;
  bool quick = false;
};

/// Seconds of one call, when it is repeated for some 20 ms.
double seconds_of(device::Stream& stream, const std::function<void()>& issue) {
  const auto once = [&](int times) {
    const double ns = ns_of([&] {
      for (int i = 0; i < times; ++i) issue();
      (void)stream.synchronize();
    });
    return ns * 1e-9 / times;
  };
  const double first = once(1);
  return once(std::clamp(static_cast<int>(0.02 / std::max(first, 1e-9)), 1, 10000));
}

/// Copies a buffer as large as what the case moves (half is read, half written), up to 256 MiB.
class Copy {
 public:
  explicit Copy(device::Stream& stream, double bytes) {
    const auto half = static_cast<std::size_t>(std::clamp(bytes / 2, 64.0, 256.0 * (1 << 20)));
    from_ = std::move(*device::Buffer<std::byte>::create(half, stream));
    to_ = std::move(*device::Buffer<std::byte>::create(half, stream));
    fill_bytes(from_.span(), std::byte{1}, stream);
  }
  /// Bytes a second, read and written. By as many threads as the kernels have.
  double rate(device::Stream& stream, unsigned threads) {
    const std::size_t size = from_.size();
    const auto copy = [&](std::size_t first, std::size_t last) {
      std::copy_n(from_.span().device_data() + first, last - first, to_.span().device_data() + first);
    };
    const double seconds = seconds_of(stream, [&] {
      stream.run("copy", [&] {
        in_parts(threads, size, copy);
        return Status{};
      });
    });
    return 2 * static_cast<double>(size) / seconds;
  }

 private:
  device::Buffer<std::byte> from_;
  device::Buffer<std::byte> to_;
};

int run_kernels(const Options& options) {
  const unsigned processors = device::Device::cpu().info().processors;
  const unsigned threads = options.threads == 0 ? processors : options.threads;
  auto stream = std::move(*device::Stream::create(device::Device::cpu(), {.threads = threads}));
  Report report;
  report.note("threads", threads);
  report.note("device", device::Device::cpu().info().name);
  std::printf("%-26s %-5s %-28s %10s %10s %10s %9s\n", "kernel", "type", "shape", "us", "GB/s", "Gflop/s", "of copy");
  for (const KernelCase& one : all_kernel_cases(options.quick ? CaseSize::kTiny : CaseSize::kCpu)) {
    if (!options.only.empty() && one.name().find(options.only) == std::string::npos) continue;
    KernelValues values(stream, 1);
    const KernelCase::Run run = one.prepare(values);
    if (values.failed()) {
      std::printf("%-61s no room for its buffers\n", one.name().c_str());
      continue;
    }
    std::unique_ptr<Copy> copy;
    if (one.bytes > 0) copy = std::make_unique<Copy>(stream, one.bytes);
    std::vector<double> seconds;
    std::vector<double> ceiling;
    std::vector<double> peer;
    for (int round = 0; round < options.rounds; ++round) {  // In turn, so that both see the same machine.
      seconds.push_back(seconds_of(stream, [&] { run(stream, Form::kKernel); }));
      if (copy) ceiling.push_back(copy->rate(stream, threads));
      if (!one.peer.empty()) {
        peer.push_back(seconds_of(stream, [&] { run(stream, Form::kPeer); }));
        report.add(one.kernel, one.type + " " + one.shape, one.peer, "us", peer.back() * 1e6);
      }
      report.add(one.kernel, one.type + " " + one.shape, "dunnock", "us", seconds.back() * 1e6);
      if (copy)
        report.add(one.kernel, one.type + " " + one.shape, "share of copy", "",
                   one.bytes / seconds.back() / ceiling.back());
    }
    const double median = median_of(seconds);
    std::printf("%-26s %-5s %-28s %10.1f %10.2f %10.1f", one.kernel.c_str(), one.type.c_str(), one.shape.c_str(),
                median * 1e6, one.bytes / median * 1e-9, one.flops / median * 1e-9);
    if (copy) std::printf(" %7.0f %%", 100 * report.median(one.kernel, one.type + " " + one.shape, "share of copy"));
    std::printf("\n");
    if (peer.empty()) continue;
    const double theirs = median_of(peer);
    std::printf("  %-59s %10.1f %10s %10.1f   ours is %.2f of its rate\n", one.peer.c_str(), theirs * 1e6, "",
                one.flops / theirs * 1e-9, theirs / median);
  }
  return report.write_json(options.json, "kernels");
}

}  // namespace

void add_kernels_command(CLI::App& app, Run& run) {
  auto options = std::make_shared<Options>();
  CLI::App* const command = app.add_subcommand("kernels", "The CPU's kernels beside a copy of as many bytes");
  command->add_option("--json", options->json, "Write the results to this file");
  command->add_option("--only", options->only, "Only cases whose name contains this");
  command->add_option("--threads", options->threads, "Threads a kernel; 0: all processors")->check(CLI::Range(0, 256));
  command->add_option("--rounds", options->rounds, "Samples of each")->check(CLI::Range(1, 1000));
  command->add_flag("--quick", options->quick, "Tiny shapes: to see whether it runs");
  command->callback([&run, options] { run = [options] { return run_kernels(*options); }; });
}

}  // namespace dunnock::bench
