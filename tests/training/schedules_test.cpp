// Names of schedules, those of one device and of data-parallel devices, and the pictures.
#include "dunnock/training/schedules.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <set>

#include "dunnock/training/profiles.hpp"
#include "dunnock/training/timeline_svg.hpp"
#include "support/seed.hpp"
#include "training/support.hpp"

namespace dunnock::training {
namespace {

using test::equal_step;
using test::figures_or_fail;
using test::plan_or_fail;

TEST(Schedules, are_known_by_name_and_an_unknown_one_is_refused_with_all_names) {
  std::set<std::string_view> names;
  const auto none = make_plan("1b1f", equal_step(4), {});
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().code, ErrorCode::kNotFound);
  for (const ScheduleName& one : schedule_names()) {
    EXPECT_TRUE(names.insert(one.name).second) << one.name << " twice";
    EXPECT_NE(none.error().message.find(one.name), std::string::npos) << one.name;
    const Plan plan = plan_or_fail(one.name, equal_step(8), {.devices = 2, .micro_batches = 2});
    EXPECT_EQ(plan.name, one.name);
    EXPECT_EQ(plan.schedule.name, one.name);
    EXPECT_EQ(plan.family, one.family);
  }
  EXPECT_EQ(names.size(), 19U);
}

TEST(Schedules, are_found_by_name_and_say_what_the_runtime_has_to_know_of_them) {
  EXPECT_EQ(find_schedule("1b1f"), nullptr);
  Step step = equal_step(8);
  for (Layer& layer : step.layers)
    layer.forward.demand = layer.output_gradient.demand = layer.weight_gradient.demand = 0.3;
  for (const ScheduleName& one : schedule_names()) {
    EXPECT_EQ(find_schedule(one.name), &one);
    EXPECT_EQ(one.wants_measured_costs, one.lanes_compute > 1) << one.name << " places operations beside each other";
    if (one.family != Family::kOneDevice) continue;
    const Plan plan = plan_or_fail(one.name, step, {.iterations = 3});
    EXPECT_EQ(plan.schedule.lanes.size(), one.lanes_compute) << one.name;
  }
}

TEST(Schedules, refuse_options_that_say_nothing) {
  const auto code = [](const PlanOptions& options) {
    const auto plan = make_plan("gpipe", equal_step(4), options);
    return plan ? "fine" : std::string(to_string(plan.error().code));
  };
  EXPECT_EQ(code({}), "fine");
  EXPECT_EQ(code({.devices = 0}), "InvalidArgument");
  EXPECT_EQ(code({.micro_batches = 0}), "InvalidArgument");
  EXPECT_EQ(code({.iterations = 0}), "InvalidArgument");
  EXPECT_EQ(code({.data_parallel = 0}), "InvalidArgument");
  EXPECT_EQ(code({.link = {.latency_us = -1}}), "InvalidArgument");
  EXPECT_EQ(code({.link = {.gb_per_s = -1}}), "InvalidArgument");
  EXPECT_EQ(code({.launch_us = -1}), "InvalidArgument");
  EXPECT_EQ(make_plan("gpipe", {}, {}).error().code, ErrorCode::kInvalidArgument) << "no layers";
}

TEST(Schedules, of_layers_are_valid_and_compute_everything_once) {
  auto random = test::generator(31);
  for (unsigned round = 0; round < 60; ++round) {
    const auto layers = static_cast<unsigned>(1 + random() % 24);
    const Step step = test::random_step(random, layers);
    PlanOptions options{.devices = static_cast<unsigned>(1 + random() % 16),
                        .iterations = static_cast<unsigned>(1 + random() % 4)};
    options.link = {.latency_us = static_cast<double>(random() % 3), .gb_per_s = 0.02};
    options.message_bytes = random() % 2 == 0 ? 0 : 1 + random() % 1500;
    options.launch_us = static_cast<double>(random() % 3);
    for (const ScheduleName& known : schedule_names()) {
      if (known.family == Family::kPipeline) continue;
      SCOPED_TRACE(std::string(known.name) + ", " + std::to_string(layers) + " layers");
      Plan plan = plan_or_fail(known.name, step, options);
      ASSERT_FALSE(plan.tags.empty());
      ASSERT_EQ(plan.schedule.slots.size(), plan.graph.ops().size());
      auto counts = test::counts_of(plan);
      double work = 0;
      for (unsigned i = 0; i < layers; ++i) {
        const Layer& layer = step.layers[i];
        const bool weights = layer.gradient_bytes > 0;
        work += layer.forward.us + (i > 0 ? layer.output_gradient.us : 0) + layer.weight_gradient.us + layer.update.us;
        for (unsigned t = 0; t < options.iterations; ++t) {
          const auto count = [&](Part part) { return counts[{static_cast<unsigned>(part), t, i, 0}]; };
          ASSERT_EQ(count(Part::kForward), 1U);
          ASSERT_EQ(count(Part::kOutputGradient), i > 0 ? 1U : 0U);
          ASSERT_EQ(count(Part::kWeightGradient), weights ? 1U : 0U);
          ASSERT_EQ(count(Part::kUpdate), weights ? 1U : 0U);
        }
      }
      const Figures figures = figures_or_fail(plan);
      ASSERT_NEAR(figures.work_us, work, 1e-6 * work + 1e-9);
      plan.schedule.memory_limit_bytes = test::largest(schedule::peak_bytes(plan.graph, plan.schedule));
      ASSERT_TRUE(schedule::validate(plan.graph, plan.schedule));
    }
  }
}

TEST(Schedules, of_one_device_update_no_weights_that_are_still_read) {
  auto random = test::generator(32);
  for (unsigned round = 0; round < 40; ++round) {
    const Step step = test::random_step(random, static_cast<unsigned>(2 + random() % 12));
    const Plan plan = plan_or_fail("multi-stream", step, {.iterations = 3});
    const auto timeline = figures_or_fail(plan).timeline;
    // [iteration][layer]: when its weights were updated, and when they were read.
    std::map<std::pair<unsigned, unsigned>, const schedule::Interval*> update;
    for (const auto& one : timeline.intervals) {
      if (plan.tags[one.op].part == Part::kUpdate)
        update[{plan.tags[one.op].iteration, plan.tags[one.op].chunk}] = &one;
    }
    for (const auto& one : timeline.intervals) {
      const OpTag& tag = plan.tags[one.op];
      if (tag.part != Part::kForward && tag.part != Part::kOutputGradient) continue;
      const auto after = update.find({tag.iteration, tag.chunk});
      if (after != update.end()) {
        ASSERT_GE(after->second->start_us, one.end_us - 1e-9) << plan.graph.op(one.op).name;
      }
      if (tag.iteration == 0) continue;
      const auto before = update.find({tag.iteration - 1, tag.chunk});
      if (before != update.end()) {
        ASSERT_GE(one.start_us, before->second->end_us - 1e-9) << plan.graph.op(one.op).name;
      }
    }
  }
}

TEST(MultiStream, is_never_slower_than_conventional_and_wins_where_kernels_are_small) {
  auto random = test::generator(33);
  for (unsigned round = 0; round < 40; ++round) {
    const Step step = test::random_step(random, static_cast<unsigned>(1 + random() % 16));
    const double conventional = figures_or_fail(plan_or_fail("conventional", step, {.iterations = 3})).iteration_us;
    const double ours = figures_or_fail(plan_or_fail("multi-stream", step, {.iterations = 3})).iteration_us;
    ASSERT_LE(ours, conventional * (1 + 1e-9));
  }
  const auto ratio = [](double demand) {
    Step step = equal_step(12, 10, 10, 10);
    for (Layer& layer : step.layers) {
      layer.forward.demand = layer.output_gradient.demand = layer.weight_gradient.demand = demand;
    }
    return figures_or_fail(plan_or_fail("conventional", step, {.iterations = 3})).iteration_us /
           figures_or_fail(plan_or_fail("multi-stream", step, {.iterations = 3})).iteration_us;
  };
  EXPECT_NEAR(ratio(1), 1, 1e-9) << "nothing is left of a device that is full";
  // Of 12 F, 11 dO and 12 dW, all but a few dW run beside something: 35 / 23 at most.
  EXPECT_GT(ratio(0.5), 1.4);
  EXPECT_LE(ratio(0.5), 35.0 / 23 + 1e-9);
}

TEST(MultiStream, keeps_within_its_memory) {
  Step step = equal_step(12, 10, 10, 10);
  for (Layer& layer : step.layers) {
    layer.output_bytes = 40;
    layer.forward.demand = layer.output_gradient.demand = layer.weight_gradient.demand = 0.4;
  }
  const Plan conventional = plan_or_fail("conventional", step, {.iterations = 3});
  const std::uint64_t least = schedule::peak_bytes(conventional.graph, conventional.schedule)[0];
  double before = std::numeric_limits<double>::infinity();
  for (std::uint64_t limit = least; limit <= least + 800; limit += 100) {
    const Plan plan = plan_or_fail("multi-stream", step, {.iterations = 3, .memory_limit_bytes = limit});
    EXPECT_LE(schedule::peak_bytes(plan.graph, plan.schedule)[0], limit);
    const double us = figures_or_fail(plan).iteration_us;
    EXPECT_LE(us, before * (1 + 1e-9)) << "more memory is never slower";
    before = us;
  }
  EXPECT_EQ(make_plan("multi-stream", step, {.memory_limit_bytes = least - 1}).error().code, ErrorCode::kNoSpace);
}

TEST(DataParallel, has_the_iteration_time_that_can_be_reckoned) {
  // 4 layers of F = dO = dW = 10 (no first dO), 1000 bytes each; a message of one layer takes 30 us.
  Step step = equal_step(4, 10, 10, 10);
  for (Layer& layer : step.layers) layer.gradient_bytes = 1000;
  PlanOptions options{
      .devices = 2, .iterations = 3, .link = {.latency_us = 14.5, .gb_per_s = 1}, .message_bytes = 1000};
  ASSERT_DOUBLE_EQ(options.link.all_reduce_us(1000, 2), 30);
  const auto us = [&](std::string_view name) {
    return figures_or_fail(plan_or_fail(name, step, options)).iteration_us;
  };
  EXPECT_NEAR(us("no-overlap"), 40 + 70 + 120, 1e-9);
  // Backward: dO4 dW4 (20) dO3 dW3 dO2 dW2 dW1; messages from 20 on without a break: 20 + 120.
  EXPECT_NEAR(us("overlap"), 40 + 20 + 120, 1e-9);
  // Layer 1's sum: ready at 70, sent behind that of layer 3 (50 to 80): 80 to 110; then 2: 140. F1 110, F2 140 to 150
  // ...
  EXPECT_NEAR(us("priority"), 110 + 30 + 10 + 10 + 10, 1e-9);
  EXPECT_LE(us("reverse-first-k"), us("priority") + 1e-9);
}

TEST(DataParallel, reverse_first_k_wins_on_a_slow_link) {
  // 16 devices, the link about as slow as the computation; message sizes searched for all alike.
  for (const auto& [name, gb_per_s] : std::map<std::string_view, double>{{"bert-large", 1.25}, {"resnet-50", 2.5}}) {
    const Step step = *profile(name, v100_like(), 64);
    const PlanOptions options{.devices = 16, .iterations = 3, .link = {.latency_us = 20, .gb_per_s = gb_per_s}};
    const double overlap = figures_or_fail(plan_or_fail("overlap", step, options)).iteration_us;
    const double reverse = figures_or_fail(plan_or_fail("reverse-first-k", step, options)).iteration_us;
    EXPECT_GE(overlap / reverse, 1.10) << name;
  }
}

TEST(Picture, has_a_box_for_each_operation_and_says_that_it_is_simulated) {
  const Plan plan = plan_or_fail("1f1b", equal_step(4, 10, 10, 10), {.devices = 4, .micro_batches = 3});
  const auto timeline = figures_or_fail(plan).timeline;
  const std::string svg = to_svg(plan, timeline, {.title = "a < b & \"c\""});
  const auto count = [&svg](std::string_view what) {
    std::size_t n = 0;
    for (std::size_t at = svg.find(what); at != std::string::npos; at = svg.find(what, at + 1)) ++n;
    return n;
  };
  EXPECT_EQ(count("<rect class=\"f\""), 12U + 1) << "and one in the legend";
  EXPECT_EQ(count("<rect class=\"b\""), 12U + 1);
  EXPECT_EQ(count("<rect class=\"w\""), 12U + 1);
  EXPECT_EQ(count("a &lt; b &amp; &quot;c&quot; (simulated)"), 1U);
  EXPECT_EQ(count(">device 3<"), 1U);
  EXPECT_TRUE(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
  EXPECT_EQ(count("<text"), count("</text>"));

  const auto path = std::filesystem::temp_directory_path() / ("plan." + std::to_string(getpid()) + ".svg");
  ASSERT_TRUE(write_svg(path, plan, timeline, {.title = "a < b & \"c\""}));
  std::ifstream file(path);
  EXPECT_EQ(std::string(std::istreambuf_iterator<char>(file), {}), svg);
  std::filesystem::remove(path);
  EXPECT_EQ(write_svg("/nowhere/at/all.svg", plan, timeline).error().code, ErrorCode::kNotFound);
}

}  // namespace
}  // namespace dunnock::training
