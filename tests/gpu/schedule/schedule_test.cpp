// Task graphs, schedules, what is refused of them, and the simulator.
#include "dunnock/schedule/schedule.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "dunnock/schedule/simulator.hpp"
#include "support/graphs.hpp"
#include "support/seed.hpp"

namespace dunnock::schedule {
namespace {

/// Two layers, backwards: dO2 -> dO1, and a weight gradient each.
struct Backward {
  TaskGraph graph;
  ValueId loss = graph.add_value("dL", 8);
  ValueId d2 = graph.add_value("d2", 100);
  ValueId d1 = graph.add_value("d1", 100);
  ValueId w2 = graph.add_value("w2", 40, true);
  ValueId w1 = graph.add_value("w1", 40, true);
  OpId dO2 =
      graph.add({.name = "dO2", .kind = OpKind::kOutputGradient, .inputs = {loss}, .outputs = {d2}, .cost_us = 10});
  OpId dW2 =
      graph.add({.name = "dW2", .kind = OpKind::kWeightGradient, .inputs = {d2}, .outputs = {w2}, .cost_us = 10});
  OpId dO1 =
      graph.add({.name = "dO1", .kind = OpKind::kOutputGradient, .inputs = {d2}, .outputs = {d1}, .cost_us = 10});
  OpId dW1 =
      graph.add({.name = "dW1", .kind = OpKind::kWeightGradient, .inputs = {d1}, .outputs = {w1}, .cost_us = 10});

  [[nodiscard]] Schedule on_two_lanes() const {
    Schedule schedule{"out of order", {{"main"}, {"side"}}, {{dO2, 0}, {dO1, 0}, {dW2, 1}, {dW1, 1}}};
    add_waits(graph, schedule);
    return schedule;
  }
};

std::string reason(const TaskGraph& graph, const Schedule& schedule) {
  const Status valid = validate(graph, schedule);
  return valid ? "" : valid.error().message;
}

TEST(TaskGraph, knows_what_an_operation_needs_and_an_order) {
  const Backward b;
  EXPECT_EQ(b.graph.needs(b.dO2), std::vector<OpId>{});
  EXPECT_EQ(b.graph.needs(b.dW1), std::vector<OpId>{b.dO1});
  EXPECT_EQ(b.graph.any_order(), (std::vector<OpId>{b.dO2, b.dW2, b.dO1, b.dW1}));
}

TEST(TaskGraph, finds_a_circle) {
  TaskGraph graph;
  const ValueId a = graph.add_value("a", 1);
  const ValueId b = graph.add_value("b", 1);
  graph.add({.name = "one", .inputs = {b}, .outputs = {a}});
  graph.add({.name = "two", .inputs = {a}, .outputs = {b}});
  EXPECT_FALSE(graph.any_order());
  EXPECT_EQ(sequential(graph).error().code, ErrorCode::kInvalidArgument);
}

TEST(Schedule, gets_the_waits_that_it_needs_and_no_more) {
  const Backward b;
  const Schedule schedule = b.on_two_lanes();
  EXPECT_EQ(to_string(b.graph, schedule), "main: dO2 dO1 | side: dW2<dO2 dW1<dO1");
  EXPECT_EQ(reason(b.graph, schedule), "");
  // One that waits for dO1 has waited for dO2.
  Schedule late{"late", {{"main"}, {"side"}}, {{b.dO2, 0}, {b.dO1, 0}, {b.dW1, 1}, {b.dW2, 1}}};
  add_waits(b.graph, late);
  EXPECT_EQ(to_string(b.graph, late), "main: dO2 dO1 | side: dW1<dO1 dW2");
  EXPECT_EQ(reason(b.graph, late), "");
}

TEST(Schedule, is_refused_with_the_reason) {
  const Backward b;
  Schedule schedule = b.on_two_lanes();
  schedule.slots[2].waits.clear();
  EXPECT_EQ(reason(b.graph, schedule),
            "schedule 'out of order': 'dW2' in lane 'side' needs 'dO2' of lane 'main' without a wait for it");
  schedule = b.on_two_lanes();
  schedule.slots.pop_back();
  EXPECT_EQ(reason(b.graph, schedule), "schedule 'out of order': 'dW1' is not in the schedule");
  schedule = b.on_two_lanes();
  schedule.slots.push_back(schedule.slots[0]);
  EXPECT_EQ(reason(b.graph, schedule), "schedule 'out of order': 'dO2' occurs twice");
  schedule = b.on_two_lanes();
  schedule.slots[3].lane = 7;
  EXPECT_EQ(reason(b.graph, schedule), "schedule 'out of order': 'dW1' is in lane 7, but the number of lanes is 2");
  schedule = b.on_two_lanes();
  schedule.slots[0].waits.push_back(b.dW1);
  EXPECT_EQ(reason(b.graph, schedule), "schedule 'out of order': 'dO2' waits for 'dW1', which is not issued earlier");
  schedule.slots[0].waits = {99};
  EXPECT_EQ(reason(b.graph, schedule),
            "schedule 'out of order': 'dO2' waits for operation 99, which is not issued earlier");
  schedule = b.on_two_lanes();
  schedule.slots[0].op = 42;
  EXPECT_EQ(reason(b.graph, schedule), "schedule 'out of order': operation 42 is not in the graph");
  schedule = b.on_two_lanes();
  std::swap(schedule.slots[0], schedule.slots[1]);
  EXPECT_EQ(reason(b.graph, schedule), "schedule 'out of order': 'dO1' needs 'dO2', which is issued later or never");
}

TEST(Schedule, knows_its_memory_and_is_refused_beyond_its_limit) {
  const Backward b;
  // dL 8; dO2 takes 100; dW2 40; dO1 100 and then d2 goes; dW1 40.
  Schedule schedule = *sequential(b.graph);
  EXPECT_EQ(peak_bytes(b.graph, schedule), std::vector<std::uint64_t>{8 + 100 + 40 + 100});
  schedule.memory_limit_bytes = 247;
  EXPECT_EQ(validate(b.graph, schedule).error().code, ErrorCode::kNoSpace);
  EXPECT_EQ(reason(b.graph, schedule), "schedule 'sequential' needs 248 bytes on rank 0; the limit is 247");
  schedule.memory_limit_bytes = 248;
  EXPECT_EQ(reason(b.graph, schedule), "");
  // Weight gradients last: both d live until then.
  Schedule late{"late", {{"main"}}, {{b.dO2, 0}, {b.dO1, 0}, {b.dW2, 0}, {b.dW1, 0}}};
  EXPECT_EQ(peak_bytes(b.graph, late), std::vector<std::uint64_t>{8 + 200 + 40});
}

TEST(Schedule, needs_every_wait_that_it_was_given) {
  auto random = test::generator(1);
  std::size_t waits = 0;
  for (unsigned round = 0; round < 200; ++round) {
    const TaskGraph graph = test::random_graph(random, 1 + random() % 40);
    Schedule schedule = test::random_schedule(graph, random, 1 + random() % 5, 1 + random() % 3);
    ASSERT_EQ(reason(graph, schedule), "") << to_string(graph, schedule);
    for (Slot& slot : schedule.slots) {
      for (std::size_t i = 0; i < slot.waits.size(); ++i) {
        ++waits;
        const OpId removed = slot.waits[i];
        slot.waits.erase(slot.waits.begin() + static_cast<std::ptrdiff_t>(i));
        ASSERT_NE(reason(graph, schedule), "") << "without the wait for " << graph.op(removed).name;
        slot.waits.insert(slot.waits.begin() + static_cast<std::ptrdiff_t>(i), removed);
      }
    }
    Schedule again = schedule;
    add_waits(graph, again);
    ASSERT_EQ(to_string(graph, again), to_string(graph, schedule)) << "nothing more is needed";
  }
  EXPECT_GT(waits, 500U);
}

TEST(Simulator, lets_lanes_run_side_by_side_as_far_as_the_device_goes) {
  Backward b;
  const Schedule schedule = b.on_two_lanes();
  // Each keeps all of the device busy: nothing is won, 40 us of work take 40 us.
  EXPECT_DOUBLE_EQ(simulate(b.graph, schedule)->makespan_us(), 40);
  TaskGraph graph;
  const ValueId loss = graph.add_value("dL", 8);
  const ValueId d2 = graph.add_value("d2", 1);
  const ValueId d1 = graph.add_value("d1", 1);
  const OpId dO2 = graph.add({.name = "dO2", .inputs = {loss}, .outputs = {d2}, .cost_us = 10, .demand = 0.5});
  const OpId dW2 = graph.add({.name = "dW2", .inputs = {d2}, .cost_us = 10, .demand = 0.5});
  const OpId dO1 = graph.add({.name = "dO1", .inputs = {d2}, .outputs = {d1}, .cost_us = 10, .demand = 0.75});
  const OpId dW1 = graph.add({.name = "dW1", .inputs = {d1}, .cost_us = 10, .demand = 0.5});
  Schedule two{"two", {{"main"}, {"side"}}, {{dO2, 0}, {dO1, 0}, {dW2, 1}, {dW1, 1}}};
  add_waits(graph, two);
  // dO1 and dW2 ask for 1.25 devices: 12.5 us; then dW1 alone.
  const auto timeline = simulate(graph, two);
  EXPECT_DOUBLE_EQ(timeline->makespan_us(), 10 + 12.5 + 10);
  EXPECT_DOUBLE_EQ(timeline->intervals[1].start_us, 10);
  EXPECT_DOUBLE_EQ(timeline->intervals[2].end_us, 22.5);
  EXPECT_NEAR(timeline->idle_share(0), 10 / 32.5, 1e-12);
  EXPECT_DOUBLE_EQ(simulate(graph, *sequential(graph))->makespan_us(), 40);
}

TEST(Simulator, gives_each_rank_a_device_of_its_own) {
  TaskGraph graph;
  const OpId a = graph.add({.name = "a", .cost_us = 7});
  const OpId c = graph.add({.name = "c", .cost_us = 9});
  EXPECT_DOUBLE_EQ(simulate(graph, {"one", {{"x", 0}, {"y", 0}}, {{a, 0}, {c, 1}}})->makespan_us(), 16);
  EXPECT_DOUBLE_EQ(simulate(graph, {"two", {{"x", 0}, {"y", 1}}, {{a, 0}, {c, 1}}})->makespan_us(), 9);
}

TEST(Simulator, counts_what_the_host_takes_to_issue) {
  TaskGraph graph;
  Schedule schedule{"tiny", {{"main"}}, {}};
  for (int i = 0; i < 10; ++i) schedule.slots.push_back({graph.add({.name = "tiny", .cost_us = 1}), 0});
  EXPECT_DOUBLE_EQ(simulate(graph, schedule)->makespan_us(), 10);
  // One every 5 us: the last begins at 50, the first at 5.
  EXPECT_DOUBLE_EQ(simulate(graph, schedule, {.launch_us = 5})->makespan_us(), 46);
}

TEST(Simulator, refuses_what_is_not_a_schedule) {
  const Backward b;
  Schedule schedule = b.on_two_lanes();
  schedule.slots[2].waits.clear();
  EXPECT_EQ(simulate(b.graph, schedule).error().code, ErrorCode::kInvalidArgument);
}

TEST(Simulator, keeps_lanes_waits_and_work_on_random_schedules) {
  auto random = test::generator(2);
  for (unsigned round = 0; round < 200; ++round) {
    const TaskGraph graph = test::random_graph(random, 1 + random() % 60);
    const unsigned ranks = 1 + random() % 3;
    const Schedule schedule = test::random_schedule(graph, random, ranks + random() % 4, ranks);
    const auto timeline = simulate(graph, schedule);
    ASSERT_TRUE(timeline);
    std::vector<Interval> of_op(graph.ops().size());
    std::vector<double> lane_free(schedule.lanes.size());
    double work = 0;
    double last = 0;
    for (std::size_t i = 0; i < schedule.slots.size(); ++i) {
      const Interval& one = timeline->intervals[i];
      ASSERT_EQ(one.op, schedule.slots[i].op);
      const double cost = graph.op(one.op).cost_us;
      ASSERT_GE(one.end_us - one.start_us, cost * (1 - 1e-9)) << "no operation is faster than alone";
      ASSERT_GE(one.start_us, lane_free[one.lane] - 1e-9);
      lane_free[one.lane] = one.end_us;
      of_op[one.op] = one;
      work += cost;
      last = std::max(last, one.end_us);
    }
    double longest = 0;
    std::vector<double> path(graph.ops().size());
    const auto order = graph.any_order();
    for (const OpId op : *order) {
      for (const OpId need : graph.needs(op)) {
        ASSERT_GE(of_op[op].start_us, of_op[need].end_us - 1e-9);
        path[op] = std::max(path[op], path[need]);
      }
      path[op] += graph.op(op).cost_us;
      longest = std::max(longest, path[op]);
    }
    ASSERT_GE(last, longest * (1 - 1e-9)) << "not faster than the longest chain";
    ASSERT_LE(last, work * static_cast<double>(schedule.lanes.size()) * (1 + 1e-9));
    // Of one rank, no more than a device's worth of work is done in the time.
    std::vector<double> done(ranks);
    for (const Interval& one : timeline->intervals)
      done[schedule.lanes[one.lane].rank] += graph.op(one.op).cost_us * graph.op(one.op).demand;
    for (const double rank : done) ASSERT_LE(rank, last * (1 + 1e-9));
    ASSERT_EQ(timeline->peak_bytes.size(), peak_bytes(graph, schedule).size());
  }
}

TEST(Simulator, takes_the_memory_of_the_order_when_there_is_one_lane) {
  auto random = test::generator(3);
  for (unsigned round = 0; round < 100; ++round) {
    const TaskGraph graph = test::random_graph(random, 1 + random() % 60);
    const Schedule schedule = test::random_schedule(graph, random, 1, 1);
    ASSERT_EQ(simulate(graph, schedule)->peak_bytes, peak_bytes(graph, schedule));
  }
}

TEST(Timeline, is_drawn_for_chrome_and_perfetto) {
  Backward b;
  Schedule schedule = b.on_two_lanes();
  schedule.lanes[1].name = "side \"stream\"\n\\";
  const auto timeline = simulate(b.graph, schedule);
  const auto json = nlohmann::json::parse(to_chrome_json(b.graph, schedule, *timeline));
  EXPECT_EQ(json["otherData"]["schedule"], "out of order");
  EXPECT_TRUE(json["otherData"]["simulated"]);
  unsigned complete = 0;
  std::set<std::string> lanes;
  for (const auto& event : json["traceEvents"]) {
    if (event["name"] == "thread_name") lanes.insert(event["args"]["name"]);
    if (event["ph"] != "X") continue;
    const Interval& one = timeline->intervals[complete++];
    EXPECT_EQ(event["name"], b.graph.op(one.op).name);
    EXPECT_EQ(event["cat"], to_string(b.graph.op(one.op).kind));
    EXPECT_DOUBLE_EQ(event["ts"], one.start_us);
    EXPECT_DOUBLE_EQ(event["dur"], one.end_us - one.start_us);
  }
  EXPECT_EQ(complete, 4U);
  EXPECT_EQ(lanes, (std::set<std::string>{"main", "side \"stream\"\n\\"}));
  // Nothing at all is a picture, too.
  EXPECT_TRUE(nlohmann::json::accept(to_chrome_json({}, {}, {})));

  const auto path = std::filesystem::temp_directory_path() / ("timeline." + std::to_string(getpid()) + ".json");
  ASSERT_TRUE(write_chrome_json(path, b.graph, schedule, *timeline));
  EXPECT_EQ(nlohmann::json::parse(std::ifstream(path)), json);
  std::filesystem::remove(path);
  EXPECT_EQ(write_chrome_json("/nowhere/at/all.json", b.graph, schedule, *timeline).error().code, ErrorCode::kNotFound);
}

}  // namespace
}  // namespace dunnock::schedule
