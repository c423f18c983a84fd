// What the device layer reaches, beside ceilings of the same run.
#include <algorithm>
#include <chrono>
#include <functional>
#include <random>
#include <vector>

#include "dunnock/gpu/filter_view.hpp"
#include "dunnock/gpu/graph.hpp"
#include "dunnock/gpu/memory.hpp"
#include "report.hpp"

namespace dunnock::gpu_check {

#if !DUNNOCK_HAS_CUDA
double random_sectors_ms(gpu::Device, const unsigned long long*, unsigned long long, unsigned long long, void*) {
  return -1;
}
#endif

namespace {

using namespace dunnock::gpu;

/// The median of a few rounds, after one that does not count.
double median_ms(Stream& stream, const std::function<void()>& issue) {
  auto begin = std::move(*Event::create(stream.device()));
  auto end = std::move(*Event::create(stream.device()));
  std::vector<double> times;
  for (int round = 0; round < 6; ++round) {
    stream.record(begin);
    issue();
    stream.record(end);
    (void)stream.synchronize();
    if (round != 0) times.push_back(end.ms_since(begin));
  }
  std::ranges::nth_element(times, times.begin() + 2);
  return times[2];
}

/// GB/s, read and written.
double copy_bandwidth(Device device, bool quick, Report& report) {
  auto stream = std::move(*Stream::create(device));
  const std::size_t bytes = quick ? 64 << 20 : std::size_t{4} << 30;
  auto from = std::move(*Buffer<std::byte>::create(bytes, stream));
  auto to = std::move(*Buffer<std::byte>::create(bytes, stream));
  fill_bytes(from.span(), std::byte{1}, stream);
  const double ms = median_ms(stream, [&] { device_copy(to.span(), from.span(), stream); });
  const double rate = 2e-6 * static_cast<double>(bytes) / ms;
  report.figure({"ceiling: copy within the device", rate, "GB/s", "", true});
  return rate;
}

void filter(Device device, bool quick, Report& report) {
  auto stream = std::move(*Stream::create(device));
  FilterShape shape;
  shape.groups = (quick ? 1ULL << 20 : 1ULL << 30) / 40;  // 12 bits: 5 lanes, 8 words a group
  std::mt19937_64 random(1);
  for (auto& word : shape.seed) word = random() | 1;
  const std::uint64_t slots = shape.groups * 40;
  auto words = std::move(*Buffer<std::uint64_t>::create(shape.groups * 8, stream));
  fill_bytes(words.span(), std::byte{0}, stream);
  const FilterView view = *FilterView::create(shape, words.span());

  double ceiling = -1;
  if (device.backend() == Backend::kCuda) {
    const std::uint64_t reads = quick ? 1 << 22 : 1 << 28;
    const double ms = random_sectors_ms(device, reinterpret_cast<const unsigned long long*>(words.span().device_data()),
                                        words.size() / 4, reads, stream.native());
    ceiling = static_cast<double>(reads) / ms * 1e-6;
    report.figure({"ceiling: reads of random 32-byte sectors of the table", ceiling, "G/s", "", true});
  }

  // Batches of different random keys; a hash of the key decides, so numbers in sequence are as good as any.
  const std::uint64_t batch = std::min<std::uint64_t>(slots / 10, 1 << 26);
  auto keys = std::move(*Buffer<std::uint64_t>::create(batch, stream));
  auto answers = std::move(*Buffer<std::uint8_t>::create(batch, stream));
  std::vector<std::uint64_t> host(batch);
  std::uint64_t next = 0;
  const auto upload_next = [&] {
    for (auto& key : host) key = (next++) * 0x9e3779b97f4a7c15ULL;
    upload(keys.span(), host, stream);
    (void)stream.synchronize();
  };
  auto begin = std::move(*Event::create(device));
  auto end = std::move(*Event::create(device));
  double insert_ms = 0;
  double worst_rate = 0;
  std::uint64_t inserted = 0;
  std::uint64_t refused = 0;
  std::vector<std::uint8_t> back(batch);
  while (inserted + batch <= slots * 9 / 10) {
    upload_next();
    stream.record(begin);
    view.insert(keys.span(), answers.span(), stream);
    stream.record(end);
    download(back, answers.span(), stream);
    if (const Status done = stream.synchronize(); !done) return report.check("inserts run", done.error().message);
    const double ms = end.ms_since(begin);
    insert_ms += ms;
    worst_rate = static_cast<double>(batch) / ms * 1e-6;
    inserted += batch;
    refused += batch - static_cast<std::uint64_t>(std::ranges::count(back, 1));
  }
  report.check("no key is refused up to 90 % load", refused == 0 ? "" : std::to_string(refused) + " are");
  const double insert_rate = static_cast<double>(inserted) / insert_ms * 1e-6;
  report.figure({"filter of " + std::to_string(slots) + " slots: inserts to 90 %", insert_rate, "G/s", ">= 1 (H200)",
                 insert_rate >= 1});
  report.figure({"the last batch of these", worst_rate, "G/s", "", true});
  for (const bool there : {true, false}) {
    next = there ? 0 : 1ULL << 40;
    upload_next();
    const double ms = median_ms(stream, [&] { view.contains(keys.span(), answers.span(), stream); });
    const double rate = static_cast<double>(batch) / ms * 1e-6;
    report.figure({std::string("lookups of keys that are ") + (there ? "there" : "not there"), rate, "G/s",
                   ">= 5 (H200)", rate >= 5});
    if (ceiling > 0)
      report.figure({"of the random-sector ceiling", 100 * rate / ceiling, "%", ">= 60", rate >= 0.6 * ceiling});
  }
  next = 0;
  upload_next();
  stream.record(begin);
  view.erase(keys.span(), answers.span(), stream);
  stream.record(end);
  (void)stream.synchronize();
  report.figure({"erasures", static_cast<double>(batch) / end.ms_since(begin) * 1e-6, "G/s", "", true});
}

void graph_replay(Device device, Report& report) {
  constexpr int kOperations = 1000;
  auto stream = std::move(*Stream::create(device));
  auto small = std::move(*Buffer<std::byte>::create(512, stream));
  const auto issue = [&] {
    for (int i = 0; i < kOperations; ++i) fill_bytes(small.span(), static_cast<std::byte>(i), stream);
  };
  auto graph = Graph::capture(stream, issue);
  if (!graph) return report.check("a graph of 1000 operations", graph.error().message);
  const auto host_us = [&](const std::function<void()>& what) {
    std::vector<double> times;
    for (int round = 0; round < 21; ++round) {
      (void)stream.synchronize();
      const auto start = std::chrono::steady_clock::now();
      what();
      times.push_back(std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count());
      (void)stream.synchronize();
    }
    std::ranges::nth_element(times, times.begin() + 10);
    return times[10];
  };
  const double eager = host_us(issue);
  const double replayed = host_us([&] { graph->launch(stream); });
  report.figure({"host time to issue 1000 tiny operations", eager, "us", "", true});
  report.figure({"the same, replayed as a graph", replayed, "us", "", true});
  report.figure({"times less", eager / replayed, "x", ">= 5", eager >= 5 * replayed});
}

}  // namespace

void run_benchmarks(Device device, bool quick, Report& report) {
  (void)copy_bandwidth(device, quick, report);
  filter(device, quick, report);
  graph_replay(device, report);
}

}  // namespace dunnock::gpu_check
