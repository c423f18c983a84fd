// Copies within the device, and what it costs the host to issue operations.
#include <algorithm>
#include <chrono>
#include <functional>
#include <vector>

#include "benchmarks.hpp"
#include "dunnock/device/graph.hpp"
#include "timing.hpp"

namespace dunnock::gpu_check {

void benchmark_copies(device::Device device, const BenchmarkOptions& options, Report& report) {
  auto stream = std::move(*device::Stream::create(device));
  const std::size_t most = device.backend() == device::Backend::kCuda ? device.info().memory_bytes / 8 : 64 << 20;
  const std::size_t bytes = options.quick ? std::size_t{64} << 20 : std::min(std::size_t{4} << 30, most);
  auto from = device::Buffer<std::byte>::create(bytes, stream);
  auto to = device::Buffer<std::byte>::create(bytes, stream);
  if (!from || !to) return report.skip("copies", "no memory");
  fill_bytes(from->span(), std::byte{1}, stream);
  Timer timer(stream);
  const double ms = timer.median_ms([&](unsigned) { device_copy(to->span(), from->span(), stream); });
  if (!timer.error().empty()) return report.check("copies run", timer.error());
  report.figure({.name = kCopyCeiling, .value = 2e-6 * static_cast<double>(bytes) / ms, .unit = "GB/s"});
}

void benchmark_graphs(device::Device device, const BenchmarkOptions&, Report& report) {
  constexpr int kOperations = 1000;
  auto stream = std::move(*device::Stream::create(device));
  auto small = std::move(*device::Buffer<std::byte>::create(512, stream));
  const auto issue = [&] {
    for (int i = 0; i < kOperations; ++i) fill_bytes(small.span(), static_cast<std::byte>(i), stream);
  };
  auto graph = device::Graph::capture(stream, issue);
  if (!graph) return report.check("a graph of 1000 operations", graph.error().message);
  std::string error;
  const auto host_us = [&](const std::function<void()>& what) {
    std::vector<double> times;
    for (int round = 0; round < 22; ++round) {
      const auto start = std::chrono::steady_clock::now();
      what();
      const auto issued = std::chrono::steady_clock::now();
      if (const Status done = stream.synchronize(); !done && error.empty()) error = done.error().message;
      if (round != 0) times.push_back(std::chrono::duration<double, std::micro>(issued - start).count());
    }
    std::ranges::nth_element(times, times.begin() + 10);
    return times[10];
  };
  const double eager = host_us(issue);
  const double replayed = host_us([&] { graph->launch(stream); });
  if (!error.empty()) return report.check("tiny operations run", error);
  report.figure({.name = "host time to issue 1000 tiny operations", .value = eager, .unit = "us"});
  report.figure({.name = "the same, replayed as a graph", .value = replayed, .unit = "us"});
  report.figure(
      {.name = "times less", .value = eager / replayed, .unit = "x", .target = ">= 5", .met = eager >= 5 * replayed});
}

}  // namespace dunnock::gpu_check
