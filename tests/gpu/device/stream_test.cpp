// Streams, events, buffers and graphs, on each backend.
#include "dunnock/device/stream.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <iterator>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "computing.hpp"
#include "dunnock/device/graph.hpp"
#include "dunnock/device/memory.hpp"
#include "dunnock/kernels/elementwise.hpp"
#include "support/devices.hpp"
#include "support/seed.hpp"

namespace dunnock::device {
namespace {

using namespace std::chrono_literals;

class Streams : public test::OnEachDevice {};
class Buffers : public test::OnEachDevice {};
class Graphs : public test::OnEachDevice {};
DUNNOCK_ON_EACH_DEVICE(Streams);
DUNNOCK_ON_EACH_DEVICE(Buffers);
DUNNOCK_ON_EACH_DEVICE(Graphs);

/// A host function that waits until the test opens it.
class Gate {
 public:
  [[nodiscard]] std::function<Status()> wait() {
    return [this] {
      while (!open_) std::this_thread::sleep_for(50us);
      return Status{};
    };
  }
  void open() { open_ = true; }

 private:
  std::atomic<bool> open_ = false;
};

std::function<Status()> fails() {
  return [] { return make_error(ErrorCode::kCorrupt, "the sky is falling"); };
}

TEST(Devices, have_names_and_say_why_there_is_no_cuda) {
  EXPECT_EQ(Device::cpu().label(), "cpu:0");
  EXPECT_EQ(Device::cpu(3).label(), "cpu:3");
  EXPECT_TRUE(Device::cpu(3) == Device::cpu(3));
  EXPECT_FALSE(Device::cpu(3) == Device::cpu(2));
  EXPECT_GT(Device::cpu().info().memory_bytes, 1U << 20);
  EXPECT_GE(Device::cpu().info().processors, 1U);
  EXPECT_EQ(Device::cuda_count() == 0, !Device::why_no_cuda().empty());
  const auto none = Device::cuda(Device::cuda_count());
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().code, ErrorCode::kUnsupported);
  EXPECT_FALSE(none.error().message.empty());
}

TEST_P(Streams, run_what_is_issued_in_order) {
  auto stream = Stream::create(device());
  ASSERT_TRUE(stream);
  std::vector<int> seen;
  for (int i = 0; i < 1000; ++i) {
    stream->run("note", [&seen, i] {
      seen.push_back(i);
      return Status{};
    });
  }
  ASSERT_TRUE(stream->synchronize());
  std::vector<int> expected(1000);
  std::iota(expected.begin(), expected.end(), 0);
  EXPECT_EQ(seen, expected);
  EXPECT_TRUE(stream->idle());
}

TEST_P(Streams, are_idle_when_synchronize_returns) {
  auto stream = Stream::create(device());
  ASSERT_TRUE(stream);
  for (int round = 0; round < 2000; ++round) {
    stream->run("nothing", [] { return Status{}; });
    ASSERT_TRUE(stream->synchronize());
    ASSERT_TRUE(stream->idle()) << "round " << round;
  }
}

TEST_P(Streams, do_not_wait_for_what_they_issue) {
  auto stream = Stream::create(device());
  ASSERT_TRUE(stream);
  auto event = Event::create(device());
  ASSERT_TRUE(event);
  EXPECT_TRUE(event->done()) << "nothing was recorded";
  Gate gate;
  stream->run("gate", gate.wait());
  stream->record(*event);
  EXPECT_FALSE(event->done());
  EXPECT_FALSE(stream->idle());
  gate.open();
  ASSERT_TRUE(event->synchronize());
  EXPECT_TRUE(event->done());
}

TEST_P(Streams, wait_for_events_of_others) {
  auto first = Stream::create(device());
  auto second = Stream::create(device());
  auto event = Event::create(device());
  ASSERT_TRUE(first && second && event);
  Gate gate;
  std::atomic<bool> before = false;
  bool seen = false;
  first->run("gate", gate.wait());
  first->run("set", [&] {
    before = true;
    return Status{};
  });
  first->record(*event);
  second->wait(*event);
  second->run("look", [&] {
    seen = before;
    return Status{};
  });
  EXPECT_FALSE(second->idle());
  gate.open();
  ASSERT_TRUE(second->synchronize());
  EXPECT_TRUE(seen);
  ASSERT_TRUE(first->synchronize());
}

TEST_P(Streams, run_side_by_side) {
  auto first = Stream::create(device());
  auto second = Stream::create(device());
  ASSERT_TRUE(first && second);
  // Each waits for the other: one after the other, they would not end.
  std::atomic<int> met = 0;
  const auto meet = [&met] {
    ++met;
    while (met < 2) std::this_thread::sleep_for(50us);
    return Status{};
  };
  if (GetParam() == Backend::kCuda) GTEST_SKIP() << "CUDA promises no two host functions at a time";
  first->run("meet", meet);
  second->run("meet", meet);
  EXPECT_TRUE(first->synchronize());
  EXPECT_TRUE(second->synchronize());
}

TEST_P(Streams, tell_of_a_failure_once_with_the_name_of_the_operation) {
  auto stream = Stream::create(device());
  ASSERT_TRUE(stream);
  bool ran = false;
  stream->run("first", [] { return Status{}; });
  stream->run("softmax of layer 3", fails());
  stream->run("behind it", [&] {
    ran = true;
    return Status{};
  });
  const Status done = stream->synchronize();
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().code, ErrorCode::kCorrupt);
  EXPECT_EQ(done.error().message, "operation 'softmax of layer 3' failed: the sky is falling");
  if (GetParam() == Backend::kCpu) {
    EXPECT_FALSE(ran) << "what comes behind a failure is dropped";
  }
  stream->run("again", [&] {
    ran = true;
    return Status{};
  });
  EXPECT_TRUE(stream->synchronize()) << "it was reported already";
  EXPECT_TRUE(ran);
}

/// CUDA keeps what a query answers as the thread's last error.
TEST_P(Streams, launch_kernels_after_a_query_that_says_not_yet) {
  auto stream = Stream::create(device());
  auto event = Event::create(device());
  ASSERT_TRUE(stream && event);
  auto values = Buffer<float>::create(100, *stream);
  ASSERT_TRUE(values);
  Gate gate;
  stream->run("gate", gate.wait());
  stream->record(*event);
  EXPECT_FALSE(event->done());
  EXPECT_FALSE(stream->idle());
  kernels::run(kernels::Fill<float>{.y = values->span(), .value = 3}, *stream);
  gate.open();
  const Status done = stream->synchronize();
  EXPECT_TRUE(done) << done.error().message;
  std::vector<float> back(100);
  download(back, values->span(), *stream);
  ASSERT_TRUE(stream->synchronize());
  EXPECT_EQ(back, std::vector<float>(100, 3));
}

TEST(CpuStreams, hand_a_failure_to_those_that_wait_for_them) {
  auto first = Stream::create(Device::cpu());
  auto second = Stream::create(Device::cpu());
  auto event = Event::create(Device::cpu());
  ASSERT_TRUE(first && second && event);
  bool ran = false;
  first->run("bad", fails());
  first->record(*event);
  second->wait(*event);
  second->run("uses its result", [&] {
    ran = true;
    return Status{};
  });
  const Status done = second->synchronize();
  ASSERT_FALSE(done);
  EXPECT_NE(done.error().message.find("'bad'"), std::string::npos);
  EXPECT_FALSE(ran);
  EXPECT_FALSE(event->synchronize());
  EXPECT_FALSE(first->synchronize());
  EXPECT_TRUE(first->synchronize());
  EXPECT_TRUE(second->synchronize());
}

TEST(CpuStreams, say_how_many_threads_compute) {
  using detail::Computing;
  auto one = Stream::create(Device::cpu(), {.threads = 1});
  auto two = Stream::create(Device::cpu(), {.threads = 2});
  EXPECT_EQ(Computing::threads(), 0);
  Gate gate;
  one->run("waits", gate.wait());
  two->run("waits", [wait = gate.wait()] {
    {
      const Computing does_not(0);
      EXPECT_LE(Computing::threads(), 1);
    }
    EXPECT_EQ(Computing::operations_of_this_thread(), 1U);
    return wait();
  });
#if defined(_OPENMP)
  const int all = 3;
#else
  const int all = 2;  // Each has one thread.
#endif
  const auto until = std::chrono::steady_clock::now() + 60s;
  while (Computing::threads() != all && std::chrono::steady_clock::now() < until) std::this_thread::sleep_for(50us);
  EXPECT_EQ(Computing::threads(), all);
  gate.open();
  ASSERT_TRUE(one->synchronize());
  ASSERT_TRUE(two->synchronize());
  EXPECT_EQ(Computing::threads(), 0);
}

TEST(CpuStreams, give_their_threads_back_when_they_are_idle) {
#if !defined(_OPENMP) || defined(__SANITIZE_THREAD__) || defined(__clang__)
  GTEST_SKIP() << "no OpenMP of GCC's here";
#endif
  // Each is a folder.
  const auto threads = [] {
    const std::filesystem::directory_iterator all("/proc/self/task");
    return std::distance(begin(all), end(all));
  };
  Stream stream = std::move(*Stream::create(Device::cpu(), {.threads = 3}));
  auto buffer = std::move(*Buffer<float>::create(1 << 20, stream));
  for (const float value : {1.0F, 2.0F}) {
    const auto before = threads();
    kernels::run(kernels::Fill<float>{.y = buffer.span(), .value = value}, stream);
    ASSERT_TRUE(stream.synchronize());
    EXPECT_EQ(threads(), before + 2);
    for (int i = 0; i < 200 && threads() != before; ++i) std::this_thread::sleep_for(25ms);
    EXPECT_EQ(threads(), before);
    std::vector<float> values(buffer.size());
    download(std::span(values), buffer.span(), stream);
    ASSERT_TRUE(stream.synchronize());
    EXPECT_EQ(std::ranges::count(values, value), static_cast<std::ptrdiff_t>(values.size()));
  }
}

TEST_P(Streams, measure_the_time_between_events) {
  auto stream = Stream::create(device());
  auto start = Event::create(device());
  auto end = Event::create(device());
  ASSERT_TRUE(stream && start && end);
  stream->record(*start);
  stream->run("sleep", [] {
    std::this_thread::sleep_for(20ms);
    return Status{};
  });
  stream->record(*end);
  ASSERT_TRUE(end->synchronize());
  EXPECT_GE(end->ms_since(*start), 19.0);
}

TEST_P(Streams, finish_what_was_issued_when_they_go) {
  std::atomic<int> ran = 0;
  {
    auto stream = Stream::create(device());
    ASSERT_TRUE(stream);
    for (int i = 0; i < 100; ++i) {
      stream->run("count", [&ran] {
        ++ran;
        return Status{};
      });
    }
    Stream moved = std::move(*stream);
    auto other = Stream::create(device());
    ASSERT_TRUE(other);
    moved = std::move(*other);
    EXPECT_EQ(ran, 100);
  }
}

// The history is checked: what each stream adds to a shared counter must come in the order that events allow.
TEST_P(Streams, keep_every_order_that_events_ask_for) {
  auto random = test::generator(1);
  constexpr int kStreams = 4;
  std::vector<Stream> streams;
  for (int i = 0; i < kStreams; ++i) streams.push_back(std::move(*Stream::create(device())));
  std::atomic<std::uint64_t> clock = 0;
  struct Step {
    std::uint64_t at = 0;
  };
  constexpr int kSteps = 400;
  std::vector<Step> steps(kSteps);
  std::vector<std::pair<int, int>> before;  // (earlier, later)
  std::vector<int> last(kStreams, -1);
  std::vector<Event> events;
  for (int i = 0; i < kSteps; ++i) {
    const auto s = static_cast<std::size_t>(random() % kStreams);
    if (random() % 3 == 0) {
      const auto other = static_cast<std::size_t>(random() % kStreams);
      events.push_back(std::move(*Event::create(device())));
      streams[other].record(events.back());
      streams[s].wait(events.back());
      if (last[other] >= 0) before.emplace_back(last[other], i);
    }
    if (last[s] >= 0) before.emplace_back(last[s], i);
    streams[s].run("step", [&clock, &steps, i] {
      steps[static_cast<std::size_t>(i)].at = ++clock;
      return Status{};
    });
    last[s] = i;
  }
  for (Stream& stream : streams) ASSERT_TRUE(stream.synchronize());
  for (const auto& [earlier, later] : before)
    ASSERT_LT(steps[static_cast<std::size_t>(earlier)].at, steps[static_cast<std::size_t>(later)].at);
}

TEST_P(Buffers, carry_bytes_there_and_back) {
  auto random = test::generator(2);
  auto stream = Stream::create(device());
  ASSERT_TRUE(stream);
  for (const std::size_t size : {std::size_t{0}, std::size_t{1}, std::size_t{1000}, std::size_t{3'000'001}}) {
    std::vector<float> values(size);
    for (float& value : values) value = static_cast<float>(random() % 1000);
    auto one = Buffer<float>::create(size, *stream);
    auto two = Buffer<float>::create(size, *stream);
    ASSERT_TRUE(one && two);
    std::vector<float> back(size);
    upload(one->span(), values, *stream);
    device_copy(two->span(), *one, *stream);
    fill_bytes(one->span(), std::byte{0}, *stream);
    download(back, two->span(), *stream);
    ASSERT_TRUE(stream->synchronize());
    EXPECT_EQ(back, values);
    download(back, one->span(), *stream);
    ASSERT_TRUE(stream->synchronize());
    EXPECT_EQ(back, std::vector<float>(size, 0.0F));
    if (size > 10) {
      download(std::span(back).first(3), two->span().subspan(5, 3), *stream);
      ASSERT_TRUE(stream->synchronize());
      EXPECT_EQ(back[2], values[7]);
    }
  }
}

TEST_P(Buffers, may_be_pinned_on_the_host) {
  auto stream = Stream::create(device());
  auto host = PinnedBuffer<int>::create(5000, device());
  ASSERT_TRUE(stream && host);
  std::iota(host->span().begin(), host->span().end(), 0);
  auto there = Buffer<int>::create(5000, *stream);
  ASSERT_TRUE(there);
  upload(there->span(), host->span(), *stream);
  std::vector<int> back(5000);
  download(back, there->span(), *stream);
  ASSERT_TRUE(stream->synchronize());
  EXPECT_TRUE(std::ranges::equal(back, host->span()));
}

TEST_P(Buffers, are_used_again_in_the_order_of_their_stream) {
  auto stream = Stream::create(device());
  ASSERT_TRUE(stream);
  device().release_kept_memory();
  const MemoryStats before = device().memory_stats();
  constexpr std::size_t kSize = 1 << 20;
  std::vector<std::vector<int>> back(20, std::vector<int>(kSize));
  Gate gate;
  stream->run("gate", gate.wait());  // All of it is issued before any of it runs.
  for (int i = 0; i < 20; ++i) {
    auto buffer = Buffer<int>::create(kSize, *stream);
    ASSERT_TRUE(buffer);
    fill_bytes(buffer->span(), static_cast<std::byte>(i), *stream);
    if (GetParam() == Backend::kCpu) download(back[static_cast<std::size_t>(i)], buffer->span(), *stream);
  }
  gate.open();
  ASSERT_TRUE(stream->synchronize());
  EXPECT_EQ(device().memory_stats().device_allocations - before.device_allocations, 1U);
  if (GetParam() != Backend::kCpu) return;  // There a copy to plain memory waits for the gate.
  for (int i = 0; i < 20; ++i) EXPECT_EQ(back[static_cast<std::size_t>(i)][kSize - 1], i * 0x01010101);
}

TEST_P(Buffers, of_one_stream_wait_for_the_others_that_use_them) {
  auto owner = Stream::create(device());
  auto user = Stream::create(device());
  ASSERT_TRUE(owner && user);
  constexpr std::size_t kSize = 1 << 18;
  std::vector<int> back(kSize);
  Gate gate;
  {
    auto buffer = Buffer<int>::create(kSize, *owner);
    ASSERT_TRUE(buffer);
    fill_bytes(buffer->span(), std::byte{1}, *owner);
    auto ready = Event::create(device());
    ASSERT_TRUE(ready);
    owner->record(*ready);
    user->wait(*ready);
    user->run("gate", gate.wait());
    if (GetParam() == Backend::kCpu) download(back, buffer->span(), *user);
    buffer->use_on(*user);
  }
  auto next = Buffer<int>::create(kSize, *owner);
  ASSERT_TRUE(next);
  fill_bytes(next->span(), std::byte{2}, *owner);
  ASSERT_TRUE(owner->synchronize());
  gate.open();
  ASSERT_TRUE(user->synchronize());
  if (GetParam() == Backend::kCpu) {
    EXPECT_EQ(back, std::vector<int>(kSize, 0x01010101));
  }
}

TEST_P(Buffers, are_refused_beyond_the_limit_and_counted) {
  auto stream = Stream::create(device());
  ASSERT_TRUE(stream);
  const MemoryStats before = device().memory_stats();
  device().set_memory_limit(before.used_bytes + (1 << 20));
  {
    auto half = Buffer<std::byte>::create(1 << 19, *stream);
    ASSERT_TRUE(half);
    EXPECT_EQ(device().memory_stats().used_bytes, before.used_bytes + (1 << 19));
    const auto refused = Buffer<std::byte>::create((1 << 19) + 1, *stream);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, ErrorCode::kNoSpace);
    EXPECT_NE(refused.error().message.find(device().label()), std::string::npos) << refused.error().message;
  }
  device().set_memory_limit(UINT64_MAX);
  EXPECT_EQ(device().memory_stats().used_bytes, before.used_bytes);
  EXPECT_EQ(Buffer<double>::create(SIZE_MAX / 2, *stream).error().code, ErrorCode::kNoSpace);
  EXPECT_EQ(Buffer<std::byte>::create(1ULL << 60, *stream).error().code, ErrorCode::kNoSpace);
}

TEST_P(Graphs, run_what_was_recorded_every_time_they_are_launched) {
  auto stream = Stream::create(device());
  ASSERT_TRUE(stream);
  int sum = 0;
  const auto graph = Graph::capture(*stream, [&] {
    for (int i = 1; i <= 3; ++i) {
      stream->run("add", [&sum, i] {
        sum = sum * 10 + i;
        return Status{};
      });
    }
    EXPECT_TRUE(stream->capturing());
  });
  ASSERT_TRUE(graph) << graph.error().message;
  EXPECT_FALSE(stream->capturing());
  EXPECT_EQ(graph->size(), 3U);
  ASSERT_TRUE(stream->synchronize());
  EXPECT_EQ(sum, 0) << "nothing runs while it is recorded";
  auto& replayed = const_cast<Graph&>(*graph);
  replayed.launch(*stream);
  replayed.launch(*stream);
  ASSERT_TRUE(stream->synchronize());
  EXPECT_EQ(sum, 123123);
  auto other = Stream::create(device());
  ASSERT_TRUE(other);
  replayed.launch(*other);
  ASSERT_TRUE(other->synchronize());
  EXPECT_EQ(sum, 123123123);
}

TEST_P(Graphs, take_in_the_streams_that_wait_for_their_own) {
  auto stream = Stream::create(device());
  auto side = Stream::create(device());
  auto fork = Event::create(device());
  auto join = Event::create(device());
  ASSERT_TRUE(stream && side && fork && join);
  constexpr std::size_t kSize = 1000;
  auto a = Buffer<int>::create(kSize, *stream);
  auto b = Buffer<int>::create(kSize, *stream);
  auto c = Buffer<int>::create(kSize, *stream);
  ASSERT_TRUE(a && b && c);
  auto graph = Graph::capture(*stream, [&] {
    device_copy(b->span(), *a, *stream);
    stream->record(*fork);
    side->wait(*fork);
    device_copy(c->span(), *b, *side);
    EXPECT_TRUE(side->capturing());
    side->record(*join);
    fill_bytes(a->span(), std::byte{9}, *stream);
    stream->wait(*join);
    fill_bytes(b->span(), std::byte{7}, *stream);
  });
  ASSERT_TRUE(graph) << graph.error().message;
  EXPECT_FALSE(side->capturing());
  EXPECT_EQ(graph->size(), 4U);
  std::vector<int> values(kSize, 5);
  upload(a->span(), values, *stream);
  graph->launch(*stream);
  std::vector<int> back(kSize);
  download(back, c->span(), *stream);
  ASSERT_TRUE(stream->synchronize());
  EXPECT_EQ(back, values);
  download(back, b->span(), *stream);
  ASSERT_TRUE(stream->synchronize());
  EXPECT_EQ(back[0], 0x07070707);
}

TEST_P(Graphs, are_refused_when_a_stream_is_left_behind) {
  auto stream = Stream::create(device());
  auto side = Stream::create(device());
  auto fork = Event::create(device());
  ASSERT_TRUE(stream && side && fork);
  auto a = Buffer<int>::create(10, *stream);
  ASSERT_TRUE(a);
  const auto graph = Graph::capture(*stream, [&] {
    fill_bytes(a->span(), std::byte{1}, *stream);
    stream->record(*fork);
    side->wait(*fork);
    fill_bytes(a->span(), std::byte{2}, *side);
  });
  ASSERT_FALSE(graph);
  EXPECT_EQ(graph.error().code, ErrorCode::kInvalidArgument);
  EXPECT_FALSE(stream->capturing());
  // Both work again.
  fill_bytes(a->span(), std::byte{3}, *stream);
  EXPECT_TRUE(stream->synchronize());
  if (GetParam() == Backend::kCpu) {
    EXPECT_FALSE(side->capturing());
    EXPECT_TRUE(side->synchronize());
  }
}

TEST_P(Graphs, make_no_buffers_and_are_not_synchronized_while_they_are_recorded) {
  auto stream = Stream::create(device());
  ASSERT_TRUE(stream);
  const auto graph = Graph::capture(*stream, [&] {
    EXPECT_EQ(Buffer<int>::create(10, *stream).error().code, ErrorCode::kInvalidArgument);
    EXPECT_EQ(Graph::capture(*stream, [] {}).error().code, ErrorCode::kInvalidArgument);
    if (GetParam() == Backend::kCpu) {
      EXPECT_FALSE(stream->synchronize());
    }
  });
  if (GetParam() == Backend::kCpu) {
    ASSERT_FALSE(graph);
    EXPECT_NE(graph.error().message.find("synchronized"), std::string::npos);
  }
  EXPECT_FALSE(stream->capturing());
  EXPECT_TRUE(stream->synchronize());
}

TEST_P(Graphs, leave_no_use_of_a_buffer_behind) {
  auto stream = Stream::create(device());
  auto side = Stream::create(device());
  auto fork = Event::create(device());
  auto join = Event::create(device());
  ASSERT_TRUE(stream && side && fork && join);
  const void* address = nullptr;
  {
    auto buffer = Buffer<std::byte>::create(5 << 20, *stream);
    ASSERT_TRUE(buffer);
    address = buffer->span().device_data();
    auto graph = Graph::capture(*stream, [&] {
      stream->record(*fork);
      side->wait(*fork);
      fill_bytes(buffer->span(), std::byte{1}, *side);
      buffer->use_on(*side);
      side->record(*join);
      stream->wait(*join);
    });
    ASSERT_TRUE(graph) << graph.error().message;
    graph->launch(*stream);
    ASSERT_TRUE(stream->synchronize());
  }
  const auto again = Buffer<std::byte>::create(5 << 20, *stream);
  ASSERT_TRUE(again);
  EXPECT_EQ(again->span().device_data(), address);
}

TEST_P(Graphs, tell_which_of_their_operations_failed) {
  auto stream = Stream::create(device());
  ASSERT_TRUE(stream);
  bool ran = false;
  auto graph = Graph::capture(*stream, [&] {
    stream->run("fine", [] { return Status{}; });
    stream->run("layer norm", fails());
    stream->run("behind", [&] {
      ran = true;
      return Status{};
    });
  });
  ASSERT_TRUE(graph);
  graph->launch(*stream);
  const Status done = stream->synchronize();
  ASSERT_FALSE(done);
  EXPECT_NE(done.error().message.find("'layer norm'"), std::string::npos) << done.error().message;
  if (GetParam() == Backend::kCpu) {
    EXPECT_FALSE(ran);
  }
}

TEST(CpuGraphs, refuse_events_from_elsewhere) {
  auto stream = Stream::create(Device::cpu());
  auto other = Stream::create(Device::cpu());
  auto outside = Event::create(Device::cpu());
  auto inside = Event::create(Device::cpu());
  ASSERT_TRUE(stream && other && outside && inside);
  other->record(*outside);
  EXPECT_FALSE(Graph::capture(*stream, [&] { stream->wait(*outside); }));
  EXPECT_TRUE(Graph::capture(*stream, [&] { stream->record(*inside); }));
  EXPECT_FALSE(inside->synchronize());
  other->wait(*inside);
  EXPECT_EQ(other->synchronize().error().code, ErrorCode::kInvalidArgument);
  // A stream that goes takes the recording with it.
  std::optional<Stream> gone;
  gone.emplace(std::move(*Stream::create(Device::cpu())));
  const auto graph = Graph::capture(*stream, [&] {
    stream->record(*inside);
    gone->wait(*inside);
    gone->run("left", [] { return Status{}; });
    gone.reset();
  });
  EXPECT_FALSE(graph);
  EXPECT_TRUE(stream->synchronize());
}

}  // namespace
}  // namespace dunnock::device
