// The executor: any schedule of a graph gives what the sequential one gives, on each backend, issued or as a graph.
#include "dunnock/schedule/executor.hpp"

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <mutex>
#include <thread>

#include "dunnock/schedule/simulator.hpp"
#include "support/devices.hpp"
#include "support/graphs.hpp"
#include "support/seed.hpp"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace dunnock::schedule {
namespace {

class Executors : public test::OnEachDevice {};
DUNNOCK_ON_EACH_DEVICE(Executors);

/// A graph whose operations compute: each value is a number that depends on the operation and on all its inputs.
struct Computing {
  TaskGraph graph;
  std::vector<std::uint64_t> numbers;

  explicit Computing(TaskGraph made) : numbers(made.values().size()) {
    for (const Value& value : made.values()) graph.add_value(value.name, value.bytes, value.kept);
    for (OpId id = 0; id < made.ops().size(); ++id) {
      Op op = made.op(id);
      op.issue = [this, id](device::Stream& stream) {
        stream.run(graph.op(id).name, [this, id] {
          std::uint64_t number = id + 1;
          for (const ValueId input : graph.op(id).inputs) number = number * 1000003 + numbers[input];
          for (const ValueId output : graph.op(id).outputs) numbers[output] += number++;
          return Status{};
        });
      };
      graph.add(std::move(op));
    }
  }
};

TEST_P(Executors, give_what_the_sequential_schedule_gives) {
  auto random = test::generator(1);
  auto stream = device::Stream::create(device());
  ASSERT_TRUE(stream);
  for (unsigned round = 0; round < 40; ++round) {
    Computing one(test::random_graph(random, 1 + random() % 60));
    const auto plain = Executor::create(device(), one.graph, *sequential(one.graph));
    ASSERT_TRUE(plain) << plain.error().message;
    const auto run_three_times = [&](Executor& executor) {
      std::ranges::fill(one.numbers, 0);
      for (int i = 0; i < 3; ++i) executor.run(*stream);
      EXPECT_TRUE(stream->synchronize());
      return one.numbers;
    };
    const auto expected = run_three_times(const_cast<Executor&>(*plain));
    const Schedule schedule = test::random_schedule(one.graph, random, 1 + random() % 4, 1);
    for (const bool as_graph : {false, true}) {
      auto executor = Executor::create(device(), one.graph, schedule, {.as_graph = as_graph});
      ASSERT_TRUE(executor) << executor.error().message;
      ASSERT_EQ(run_three_times(*executor), expected) << to_string(one.graph, schedule);
    }
  }
}

TEST_P(Executors, run_in_an_order_that_the_simulator_has_too) {
  auto random = test::generator(2);
  auto stream = device::Stream::create(device());
  ASSERT_TRUE(stream);
  for (unsigned round = 0; round < 20; ++round) {
    Computing one(test::random_graph(random, 1 + random() % 40));
    const Schedule schedule = test::random_schedule(one.graph, random, 1 + random() % 4, 1);
    auto executor = Executor::create(device(), one.graph, schedule, {.measures = true});
    ASSERT_TRUE(executor);
    EXPECT_FALSE(executor->last_run()) << "nothing has run";
    executor->run(*stream);
    ASSERT_TRUE(stream->synchronize());
    const auto measured = executor->last_run();
    const auto simulated = simulate(one.graph, schedule);
    ASSERT_TRUE(measured && simulated);
    ASSERT_EQ(measured->intervals.size(), simulated->intervals.size());
    // Operations that the simulator runs one after the other because of a lane or a wait have run in that order.
    for (std::size_t i = 0; i < measured->intervals.size(); ++i) {
      const Interval& mine = measured->intervals[i];
      ASSERT_EQ(mine.op, simulated->intervals[i].op);
      ASSERT_LE(mine.start_us, mine.end_us);
      for (std::size_t j = 0; j < i; ++j) {
        const bool same_lane = schedule.slots[j].lane == schedule.slots[i].lane;
        const bool waited = std::ranges::count(schedule.slots[i].waits, schedule.slots[j].op) != 0;
        if (!same_lane && !waited) continue;
        ASSERT_LE(simulated->intervals[j].end_us, simulated->intervals[i].start_us);
        ASSERT_LE(measured->intervals[j].end_us, mine.start_us);
      }
    }
  }
}

TEST_P(Executors, come_behind_what_the_stream_has_and_before_what_it_gets) {
  auto stream = device::Stream::create(device());
  ASSERT_TRUE(stream);
  std::vector<int> order;
  std::mutex mutex;
  const auto note = [&](int what) {
    return [&, what] {
      const std::lock_guard lock(mutex);
      order.push_back(what);
      return Status{};
    };
  };
  TaskGraph graph;
  const OpId a = graph.add({.name = "a", .issue = [&](device::Stream& s) { s.run("a", note(1)); }});
  const OpId c = graph.add({.name = "c", .issue = [&](device::Stream& s) { s.run("c", note(1)); }});
  auto executor = Executor::create(device(), graph, {"two", {{"x"}, {"y"}}, {{a, 0}, {c, 1}}});
  ASSERT_TRUE(executor);
  for (int i = 0; i < 50; ++i) {
    stream->run("before", note(0));
    executor->run(*stream);
    stream->run("behind", note(2));
  }
  ASSERT_TRUE(stream->synchronize());
  for (std::size_t i = 0; i < order.size(); i += 4)
    ASSERT_EQ(std::vector<int>(order.begin() + static_cast<std::ptrdiff_t>(i),
                               order.begin() + static_cast<std::ptrdiff_t>(i) + 4),
              (std::vector<int>{0, 1, 1, 2}));
}

TEST_P(Executors, give_the_kernels_of_each_lane_their_threads) {
#if defined(_OPENMP)
  if (GetParam() != device::Backend::kCpu) GTEST_SKIP() << "lanes of the CPU backend have threads";
  auto stream = device::Stream::create(device());
  ASSERT_TRUE(stream);
  std::array<int, 2> threads{};
  const auto note = [&threads](std::size_t lane) {
    return [&threads, lane](device::Stream& on) {
      on.run("note", [&threads, lane] {
        threads[lane] = omp_get_max_threads();
        return Status{};
      });
    };
  };
  TaskGraph graph;
  const OpId a = graph.add({.name = "a", .issue = note(0)});
  const OpId c = graph.add({.name = "c", .issue = note(1)});
  const int by_default = omp_get_max_threads();
  for (const int asked : {0, by_default + 1, by_default + 2}) {
    auto executor = Executor::create(device(), graph, {"two", {{"x"}, {"y"}}, {{a, 0}, {c, 1}}},
                                     {.threads = static_cast<unsigned>(asked)});
    ASSERT_TRUE(executor);
    executor->run(*stream);
    ASSERT_TRUE(stream->synchronize());
    const int expected = asked == 0 ? by_default : asked;
    EXPECT_EQ(threads, (std::array<int, 2>{expected, expected}));
  }
#else
  GTEST_SKIP() << "this build has no OpenMP";
#endif
}

TEST_P(Executors, report_the_operation_that_failed_and_run_again) {
  auto stream = device::Stream::create(device());
  ASSERT_TRUE(stream);
  bool breaks = true;
  std::atomic<int> ran = 0;
  TaskGraph graph;
  const OpId bad = graph.add({.name = "dW7", .issue = [&](device::Stream& s) {
                                s.run("dW7", [&]() -> Status {
                                  ++ran;
                                  if (breaks) return make_error(ErrorCode::kCorrupt, "not a number");
                                  return {};
                                });
                              }});
  const OpId fine =
      graph.add({.name = "fine", .issue = [](device::Stream& s) { s.run("fine", [] { return Status{}; }); }});
  auto executor = Executor::create(device(), graph, {"two", {{"x"}, {"y"}}, {{bad, 0}, {fine, 1}}});
  ASSERT_TRUE(executor);
  executor->run(*stream);
  const Status done = executor->synchronize();
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().message, "operation 'dW7' failed: not a number");
  if (GetParam() == device::Backend::kCpu) {
    EXPECT_FALSE(stream->synchronize()) << "what waits for it has its error";
  }
  breaks = false;
  executor->run(*stream);
  EXPECT_TRUE(stream->synchronize());
  EXPECT_TRUE(executor->synchronize());
  EXPECT_EQ(ran, 2);
}

TEST_P(Executors, refuse_what_they_can_not_run) {
  TaskGraph graph;
  const ValueId v = graph.add_value("v", 1);
  const auto nothing = [](device::Stream&) {};
  const OpId a = graph.add({.name = "a", .outputs = {v}, .issue = nothing});
  const OpId c = graph.add({.name = "c", .inputs = {v}, .issue = nothing});
  Schedule schedule{"s", {{"x", 0}, {"y", 1}}, {{a, 0}, {c, 1}}};
  EXPECT_EQ(Executor::create(device(), graph, schedule).error().code, ErrorCode::kInvalidArgument) << "no wait";
  add_waits(graph, schedule);
  EXPECT_TRUE(Executor::create(device(), graph, schedule, {.rank = 0})) << "rank 0 waits for nobody";
  const auto other = Executor::create(device(), graph, schedule, {.rank = 1});
  ASSERT_FALSE(other);
  EXPECT_EQ(other.error().message, "operation 'c' waits for 'a', which runs on another rank");
  EXPECT_EQ(Executor::create(device(), graph, *sequential(graph), {.measures = true, .as_graph = true}).error().code,
            ErrorCode::kInvalidArgument);
  TaskGraph empty;
  empty.add({.name = "only to simulate"});
  const auto hollow = Executor::create(device(), empty, *sequential(empty));
  ASSERT_FALSE(hollow);
  EXPECT_EQ(hollow.error().message, "operation 'only to simulate' has no function that issues it");
}

}  // namespace
}  // namespace dunnock::schedule
