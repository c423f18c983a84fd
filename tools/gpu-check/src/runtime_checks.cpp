// Streams that wait for each other, and graphs.
#include <algorithm>
#include <vector>

#include "checks.hpp"
#include "dunnock/device/graph.hpp"
#include "dunnock/device/memory.hpp"

namespace dunnock::gpu_check {
namespace {

std::string check_streams(device::Device device, std::size_t size) {
  auto one = std::move(*device::Stream::create(device));
  auto two = std::move(*device::Stream::create(device));
  auto ready = std::move(*device::Event::create(device));
  auto a = std::move(*device::Buffer<std::uint32_t>::create(size, one));
  auto b = std::move(*device::Buffer<std::uint32_t>::create(size, two));
  std::vector<std::uint32_t> back(size);
  for (unsigned round = 0; round < 20; ++round) {
    fill_bytes(a.span(), static_cast<std::byte>(round), one);
    one.record(ready);
    two.wait(ready);
    device_copy(b.span(), a.span(), two);
    two.record(ready);
    one.wait(ready);
  }
  download(back, b.span(), two);
  if (const Status done = two.synchronize(); !done) return done.error().message;
  if (const Status done = one.synchronize(); !done) return done.error().message;
  const bool right = std::ranges::all_of(back, [](std::uint32_t value) { return value == 0x13131313U; });
  return right ? "" : "what a stream has written is not what the other reads";
}

std::string check_graph(device::Device device) {
  auto stream = std::move(*device::Stream::create(device));
  auto side = std::move(*device::Stream::create(device));
  auto fork = std::move(*device::Event::create(device));
  auto join = std::move(*device::Event::create(device));
  auto a = std::move(*device::Buffer<std::uint8_t>::create(1 << 20, stream));
  auto b = std::move(*device::Buffer<std::uint8_t>::create(1 << 20, stream));
  auto graph = device::Graph::capture(stream, [&] {
    device_copy(b.span(), a.span(), stream);
    stream.record(fork);
    side.wait(fork);
    fill_bytes(a.span(), std::byte{7}, side);
    side.record(join);
    stream.wait(join);
  });
  if (!graph) return graph.error().message;
  fill_bytes(a.span(), std::byte{5}, stream);
  graph->launch(stream);
  std::vector<std::uint8_t> first(1 << 20);
  download(first, b.span(), stream);
  graph->launch(stream);
  std::vector<std::uint8_t> second(1 << 20);
  download(second, b.span(), stream);
  if (const Status done = stream.synchronize(); !done) return done.error().message;
  const auto all = [](const auto& values, std::uint8_t value) {
    return std::ranges::all_of(values, [value](std::uint8_t one) { return one == value; });
  };
  return all(first, 5) && all(second, 7) ? "" : "a graph does not do what was recorded";
}

}  // namespace

void check_runtime(device::Device device, const CheckOptions& options, Report& report) {
  report.check("streams wait for each other", check_streams(device, options.small ? 100'000 : 10'000'000));
  report.check("graphs", check_graph(device));
}

}  // namespace dunnock::gpu_check
