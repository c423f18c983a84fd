// Pipeline schedules: the closed forms of the literature, memory, random pipes, and the automatic scheduler beside an
// exhaustive search.
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "support/seed.hpp"
#include "training/support.hpp"

namespace dunnock::training {
namespace {

using test::equal_step;
using test::figures_or_fail;
using test::plan_or_fail;

struct Size {
  unsigned devices;
  unsigned micro_batches;
};
/// Micro-batches are multiples of the devices, and two or more each: what the closed forms are for.
constexpr std::array<Size, 6> kSizes = {{{2, 4}, {3, 6}, {4, 8}, {4, 12}, {8, 16}, {8, 32}}};

Figures figures(std::string_view name, const Step& step, const PlanOptions& options) {
  return figures_or_fail(plan_or_fail(name, step, options));
}

/// Idle time of the device that has the longest iteration, with stages of F, B and W.
double bubble_us(std::string_view name, const Size& size, double f, double b, double w, unsigned chunks = 1) {
  const Step step = equal_step(size.devices * chunks, f / chunks, b / chunks, w / chunks);
  const PlanOptions options{.devices = size.devices, .micro_batches = size.micro_batches, .chunks = chunks};
  return figures(name, step, options).iteration_us - size.micro_batches * (f + b + w);
}

TEST(Pipeline, gpipe_and_1f1b_idle_for_one_pass_of_all_other_stages) {
  for (const Size& size : kSizes) {
    for (const double w : {1.0, 0.5, 2.0}) {
      const double expected = (size.devices - 1) * (1 + 1.5 + w);
      EXPECT_NEAR(bubble_us("gpipe", size, 1, 1.5, w), expected, 1e-6);
      EXPECT_NEAR(bubble_us("1f1b", size, 1, 1.5, w), expected, 1e-6);
    }
    const Step step = equal_step(size.devices);
    const auto share =
        figures("gpipe", step, {.devices = size.devices, .micro_batches = size.micro_batches}).bubble_share;
    EXPECT_NEAR(share, (size.devices - 1.0) / (size.micro_batches + size.devices - 1.0), 1e-9);
  }
}

TEST(Pipeline, interleaving_divides_the_bubble_by_the_chunks) {
  for (const Size& size : kSizes) {
    for (const unsigned v : {1U, 2U, 3U, 4U}) {
      const double bubble = bubble_us("interleaved-1f1b", size, 1, 1, 1, v);
      // (p - 1) / (v m) of the ideal time, which is m (F + B + W).
      EXPECT_NEAR(bubble / (3.0 * size.micro_batches), (size.devices - 1.0) / (v * size.micro_batches), 1e-6)
          << size.devices << " devices, " << size.micro_batches << " micro-batches, " << v << " chunks";
    }
  }
}

TEST(Pipeline, zero_bubble_schedules_idle_as_published) {
  for (const Size& size : kSizes) {
    // (p - 1)(F + B - W), (p - 1)(F + B - 2 W), and nothing.
    EXPECT_NEAR(bubble_us("zb-h1", size, 1, 1, 1), size.devices - 1.0, 1e-6);
    EXPECT_NEAR(bubble_us("zb-h2", size, 1, 1, 1), 0, 1e-6);
    EXPECT_NEAR(bubble_us("zb-v", size, 1, 1, 1, 2), 0, 1e-6);
    // Published: (p - 1)(F + 2 B - W) of a chunk where F and B do not overlap; gradients that leave before W halve it.
    EXPECT_NEAR(bubble_us("dualpipe-v", size, 1, 1, 1, 2), (size.devices - 1) / 2.0, 1e-6);
    EXPECT_NEAR(bubble_us("zb-auto", size, 1, 1, 1), 0, 1e-6);
  }
}

/// What a device computes, in order: "F0 B3 W3 ...", with the numbers of its chunks.
std::string order_of(const Plan& plan, unsigned device) {
  std::string order;
  for (const schedule::Slot& slot : plan.schedule.slots) {
    const OpTag& tag = plan.tags[slot.op];
    if (tag.device != device || plan.graph.op(slot.op).kind == schedule::OpKind::kCommunication) continue;
    if (tag.part == Part::kUpdate) continue;
    order += tag.part == Part::kForward ? "F" : tag.part == Part::kOutputGradient ? "B" : "W";
    order += std::to_string(tag.chunk) + " ";
  }
  return order;
}

TEST(Pipeline, dualpipe_v_has_the_published_order) {
  const Plan two = plan_or_fail("dualpipe-v", equal_step(4), {.devices = 2, .micro_batches = 4});
  EXPECT_EQ(two.chunk_devices, (std::vector<unsigned>{0, 1, 1, 0}));
  EXPECT_EQ(order_of(two, 0), "F0 F0 F0 F3 B3 W3 F3 F0 B3 W3 F3 B0 W0 B3 W3 F3 B0 W0 B3 W3 B0 W0 B0 W0 ");
  EXPECT_EQ(order_of(two, 1), "F1 F2 F1 F2 F1 B2 W2 F2 B1 W1 F1 B2 W2 F2 B1 W1 B2 W2 B1 W1 B2 B1 W2 W1 ");
}

TEST(Pipeline, dualpipe_v_pairs_a_forward_of_one_chunk_with_the_gradients_of_the_other) {
  for (const Size& size : kSizes) {
    const unsigned p = size.devices;
    const PlanOptions options{.devices = p, .micro_batches = size.micro_batches};
    const Plan plan = plan_or_fail("dualpipe-v", equal_step(2 * p), options);
    for (unsigned d = 0; d < p; ++d) {
      const std::string order = order_of(plan, d);
      const std::string down = std::to_string(d) + " ";
      const std::string up = std::to_string(2 * p - 1 - d) + " ";
      unsigned pairs = 0;
      for (const std::string& pair : {"F" + down + "B" + up + "W" + up, "F" + up + "B" + down + "W" + down}) {
        for (auto at = order.find(pair); at != std::string::npos; at = order.find(pair, at + 1)) ++pairs;
      }
      // The main stretch has two per turn; the next, in which no micro-batch comes in, has one.
      EXPECT_GE(pairs, 2 * (size.micro_batches - 2 * p + d + 1) + (p - 1 - d)) << "device " << d << " of " << p;
    }
  }
}

TEST(Pipeline, fast_forwarding_takes_dW_out_of_gpipes_way) {
  // In GPipe's order a stage has nothing to do between its forwards and the first gradient: F + B of the others.
  for (const Size& size : kSizes)
    EXPECT_NEAR(bubble_us("gpipe-fast-forwarding", size, 1, 1, 1), 2.0 * (size.devices - 1), 1e-6);
}

TEST(Pipeline, steady_iterations_follow_each_other_as_the_span_says) {
  for (const std::string_view name :
       {"gpipe", "1f1b", "interleaved-1f1b", "fast-forwarding-modulo", "zb-h1", "zb-h2", "zb-v",
        "dualpipe-v"}) {
    const Step step = equal_step(16, 0.25, 0.25, 0.25);
    const auto once = figures(name, step, {.devices = 4, .micro_batches = 8, .chunks = 2});
    const auto often = figures(name, step, {.devices = 4, .micro_batches = 8, .chunks = 2, .iterations = 4});
    EXPECT_NEAR(often.iteration_us, once.iteration_us, 1e-6) << name;
    EXPECT_NEAR(often.work_us, once.work_us, 1e-9);
  }
}

TEST(Pipeline, keeps_what_it_says_in_memory) {
  for (const Size& size : kSizes) {
    const unsigned p = size.devices;
    const PlanOptions options{.devices = p, .micro_batches = size.micro_batches};
    const Step step = equal_step(2 * p, 1, 1, 1, 50);  // 100 bytes a stage, or 50 a chunk of two.
    const auto peaks = [&](std::string_view name) { return figures(name, step, options).peak_bytes; };
    const auto one = peaks("1f1b");
    for (unsigned d = 0; d < p; ++d) EXPECT_EQ(one[d], 100 * (p - d)) << "device " << d << " of " << p;
    EXPECT_EQ(test::largest(peaks("gpipe")), 100 * size.micro_batches);
    EXPECT_EQ(test::largest(peaks("zb-h1")), test::largest(one)) << "1F1B's memory";
    EXPECT_EQ(test::largest(peaks("zb-h2")), 100 * (2 * p - 1)) << "not quite twice";
    EXPECT_EQ(test::largest(peaks("zb-v")), test::largest(one));
    EXPECT_EQ(peaks("zb-v"), std::vector<std::uint64_t>(p, 100 * p)) << "the same on all devices";
    EXPECT_EQ(peaks("dualpipe-v"), std::vector<std::uint64_t>(p, 100 * p + 50)) << "a chunk more, on all devices";
  }
}

TEST(Pipeline, fast_forwarding_and_modulo_allocation_reach_their_target) {
  // 8 stages, 16 micro-batches; GPipe takes 69 thirds of a stage's work, the least is 48: 1.4375x.
  for (const unsigned chunks : {4U, 6U, 8U, 12U}) {
    const Step step = equal_step(8 * chunks, 1.0 / chunks, 1.0 / chunks, 1.0 / chunks);
    const PlanOptions options{.devices = 8, .micro_batches = 16};
    const double gpipe = figures("gpipe", step, options).step_us;
    const double both = figures("fast-forwarding-modulo", step, options).step_us;
    // From a standing start the last device idles until the first micro-batch comes: (p - 1) / v.
    EXPECT_NEAR(both, 48 + 7.0 / chunks, 1e-6) << chunks;
    if (chunks >= 6) {
      EXPECT_GE(gpipe / both, 1.4) << chunks << " layers a device";
    }
    EXPECT_NEAR(figures("fast-forwarding-modulo", step, options).iteration_us, 48, 1e-6) << "and none in steady state";
  }
}

TEST(Pipeline, gradients_leave_behind_dW_only_in_conventional_schedules) {
  const Step step = equal_step(4);
  for (const auto& [name, behind] :
       std::map<std::string_view, bool>{{"gpipe", true}, {"1f1b", true}, {"zb-h1", false}}) {
    const Plan plan = plan_or_fail(name, step, {.devices = 4, .micro_batches = 3, .link = {.latency_us = 0.1}});
    const auto timeline = figures_or_fail(plan).timeline;
    std::map<std::pair<unsigned, unsigned>, double> weights_end;
    for (const auto& one : timeline.intervals) {
      const OpTag& tag = plan.tags[one.op];
      if (tag.part == Part::kWeightGradient) weights_end[{tag.chunk, tag.micro_batch}] = one.end_us;
    }
    bool early = false;
    for (const auto& one : timeline.intervals) {
      const OpTag& tag = plan.tags[one.op];
      if (tag.part == Part::kSendGradient) early |= one.start_us < weights_end[{tag.chunk, tag.micro_batch}] - 1e-9;
    }
    EXPECT_EQ(early, !behind) << name;
  }
}

TEST(Pipeline, any_schedule_of_any_pipe_is_valid_and_computes_everything_once) {
  auto random = test::generator(11);
  unsigned made = 0;
  for (unsigned round = 0; round < 150; ++round) {
    PlanOptions options{.devices = static_cast<unsigned>(1 + random() % 7),
                        .micro_batches = static_cast<unsigned>(1 + random() % 14)};
    options.chunks = static_cast<unsigned>(random() % 4);
    options.iterations = static_cast<unsigned>(1 + random() % 2);
    options.data_parallel = static_cast<unsigned>(1 + random() % 3);
    options.link = {.latency_us = static_cast<double>(random() % 5),
                    .gb_per_s = static_cast<double>(random() % 3) * 0.01};
    const auto layers = static_cast<unsigned>(options.devices * (4 + random() % 3));
    const Step step = test::random_step(random, layers);
    std::string first_name;
    for (const ScheduleName& known : schedule_names()) {
      if (known.family != Family::kPipeline) continue;
      SCOPED_TRACE(std::string(known.name) + ": " + std::to_string(options.devices) + " devices, " +
                   std::to_string(options.micro_batches) + " micro-batches, " + std::to_string(layers) + " layers");
      Plan plan = plan_or_fail(known.name, step, options);
      ASSERT_FALSE(plan.tags.empty());
      ++made;
      const auto chunks = static_cast<unsigned>(plan.chunk_begins.size());
      ASSERT_EQ(plan.schedule.slots.size(), plan.graph.ops().size());
      const auto counts = test::counts_of(plan);
      for (unsigned t = 0; t < options.iterations; ++t) {
        for (unsigned c = 0; c < chunks; ++c) {
          for (unsigned j = 0; j < options.micro_batches; ++j) {
            for (const Part part : {Part::kForward, Part::kOutputGradient, Part::kWeightGradient})
              ASSERT_EQ(counts.at({static_cast<unsigned>(part), t, c, j}), 1U);
          }
          ASSERT_EQ(counts.at({static_cast<unsigned>(Part::kUpdate), t, c, 0}), 1U);
          ASSERT_EQ(counts.contains({static_cast<unsigned>(Part::kAllReduce), t, c, 0}), options.data_parallel > 1);
        }
      }
      const Figures result = figures_or_fail(plan);
      double work = 0;
      for (const Layer& layer : step.layers) {
        work += options.micro_batches * (layer.forward.us + layer.output_gradient.us + layer.weight_gradient.us) +
                layer.update.us;
      }
      ASSERT_NEAR(result.work_us, work, 1e-6 * work) << "no work is lost, none is done twice";
      ASSERT_GE(result.step_us * options.devices, work * options.iterations * (1 - 1e-9))
          << "no device does two things at a time";
      // The peak is a limit that it fits into, and one byte less is not.
      const auto peak = test::largest(schedule::peak_bytes(plan.graph, plan.schedule));
      plan.schedule.memory_limit_bytes = peak;
      ASSERT_TRUE(schedule::validate(plan.graph, plan.schedule));
      if (peak == 0) continue;
      plan.schedule.memory_limit_bytes = peak - 1;
      ASSERT_EQ(schedule::validate(plan.graph, plan.schedule).error().code, ErrorCode::kNoSpace);
    }
  }
  EXPECT_GE(made, 150U * 10);
}

TEST(Pipeline, groups_of_devices_sum_their_gradients_before_the_update) {
  Step step = equal_step(4);
  for (Layer& layer : step.layers) layer.gradient_bytes = 1000;
  const PlanOptions alone{.devices = 4, .micro_batches = 8};
  PlanOptions groups = alone;
  groups.data_parallel = 6;
  groups.link = {.gb_per_s = 0.001};  // A byte a microsecond: 2 * 5 / 6 * 1000 us.
  groups.link.latency_us = 0;
  const Figures one = figures("zb-h1", step, alone);
  const Figures six = figures("zb-h1", step, groups);
  EXPECT_NEAR(six.step_us, one.step_us + 10000.0 / 6, 1.1) << "the first stage has the last gradient";
}

TEST(Pipeline, is_refused_with_the_reason) {
  const Step step = equal_step(6);
  EXPECT_EQ(make_plan("1f1b", step, {.devices = 7}).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(make_plan("zb-v", step, {.devices = 4}).error().message,
            "6 layers can't be divided among 4 devices with 2 or more each");
  EXPECT_EQ(make_plan("dualpipe-v", step, {.devices = 4}).error().message,
            "6 layers can't be divided among 4 devices with 2 or more each");
  const PlanOptions tight{.devices = 3, .micro_batches = 6, .memory_limit_bytes = 699};
  EXPECT_EQ(make_plan("dualpipe-v", step, tight).error().code, ErrorCode::kNoSpace) << "7 chunks of 100 bytes";
  EXPECT_TRUE(make_plan("dualpipe-v", step, {.devices = 3, .micro_batches = 6, .memory_limit_bytes = 700}));
  const PlanOptions small{.devices = 3, .micro_batches = 6, .memory_limit_bytes = 599};
  EXPECT_EQ(make_plan("1f1b", step, small).error().code, ErrorCode::kNoSpace) << "3 micro-batches of 200 bytes";
  EXPECT_TRUE(make_plan("1f1b", step, {.devices = 3, .micro_batches = 6, .memory_limit_bytes = 600}));
  EXPECT_EQ(make_plan("zb-auto", step, {.devices = 3, .micro_batches = 6, .memory_limit_bytes = 199}).error().code,
            ErrorCode::kNoSpace);
}

TEST(Pipeline, the_automatic_scheduler_uses_the_memory_that_it_has) {
  const Step step = equal_step(8, 1.3, 1.1, 0.8);
  double before = std::numeric_limits<double>::infinity();
  for (unsigned fits = 1; fits <= 16; ++fits) {
    const PlanOptions options{.devices = 8, .micro_batches = 16, .memory_limit_bytes = 100 * fits};
    const Plan plan = plan_or_fail("zb-auto", step, options);
    const Figures result = figures_or_fail(plan);
    EXPECT_LE(test::largest(schedule::peak_bytes(plan.graph, plan.schedule)), 100 * fits);
    EXPECT_LE(result.iteration_us, before * (1 + 1e-9)) << "more memory is never slower: " << fits;
    before = result.iteration_us;
    if (fits < 8) continue;
    const Figures zb_h1 = figures("zb-h1", step, {.devices = 8, .micro_batches = 16});
    EXPECT_LE(result.iteration_us, zb_h1.iteration_us * (1 + 1e-9));
  }
}

// ----- beside an exhaustive search ----------------------------------------------------------------------------------

/// All orders of F, B and W of one device: micro-batches are alike, so each comes in order; B behind its F, W behind
/// its B, no more than `in_flight` F without their W.
void orders_of(std::string& order, std::array<unsigned, 3> done, unsigned m, unsigned in_flight,
               std::vector<std::string>& all) {
  if (order.size() == 3 * m) return all.push_back(order);
  for (unsigned move = 0; move < 3; ++move) {
    const unsigned ready = move == 0 ? m : move == 1 ? done[0] : done[1];
    if (done[move] == ready) continue;
    if (move == 0 && done[0] - done[2] == in_flight) continue;
    order.push_back("FBW"[move]);
    ++done[move];
    orders_of(order, done, m, in_flight, all);
    --done[move];
    order.pop_back();
  }
}

/// The longest time from a device's first start to its last end; infinite if they deadlock. Independent of the
/// library: rounds over all devices until nothing moves.
double span_of(const std::vector<const std::string*>& orders, unsigned m, const std::array<double, 3>& cost) {
  const std::size_t p = orders.size();
  constexpr double kNever = std::numeric_limits<double>::infinity();
  std::array<std::array<std::array<double, 4>, 4>, 3> end;  // [move][device][micro-batch]
  for (auto& move : end) {
    for (auto& device : move) device.fill(kNever);
  }
  std::array<std::size_t, 4> next{};
  std::array<std::array<unsigned, 3>, 4> done{};
  std::array<double, 4> free{};
  std::array<double, 4> first{};
  bool moved = true;
  while (moved) {
    moved = false;
    for (std::size_t d = 0; d < p; ++d) {
      while (next[d] < orders[d]->size()) {
        const char what = (*orders[d])[next[d]];
        const std::size_t move = what == 'F' ? 0 : what == 'B' ? 1 : 2;
        const unsigned j = done[d][move];
        double ready = 0;
        if (move == 0) ready = d == 0 ? 0 : end[0][d - 1][j];
        if (move == 1) ready = d + 1 == p ? end[0][d][j] : end[1][d + 1][j];
        if (ready == kNever) break;
        const double start = std::max(ready, free[d]);
        if (next[d] == 0) first[d] = start;
        free[d] = end[move][d][j] = start + cost[move];
        ++done[d][move];
        ++next[d];
        moved = true;
      }
    }
  }
  double span = 0;
  for (std::size_t d = 0; d < p; ++d) span = std::max(span, next[d] == 3 * m ? free[d] - first[d] : kNever);
  return span;
}

double shortest_span(unsigned p, unsigned m, unsigned in_flight, const std::array<double, 3>& cost) {
  std::vector<std::string> all;
  std::string order;
  orders_of(order, {}, m, in_flight, all);
  std::vector<std::size_t> choice(p);
  double best = std::numeric_limits<double>::infinity();
  while (true) {
    std::vector<const std::string*> orders;
    for (const std::size_t one : choice) orders.push_back(&all[one]);
    best = std::min(best, span_of(orders, m, cost));
    std::size_t d = 0;
    while (d < p && ++choice[d] == all.size()) choice[d++] = 0;
    if (d == p) return best;
  }
}

TEST(Pipeline, the_automatic_scheduler_is_near_the_best_of_all_orders) {
  auto random = test::generator(12);
  double worst = 1;
  double sum = 0;
  unsigned cases = 0;
  for (const auto& [p, m] : {std::pair{2U, 2U}, {2U, 3U}, {2U, 4U}, {3U, 2U}, {3U, 3U}}) {
    for (unsigned in_flight = 1; in_flight <= m; ++in_flight) {
      for (unsigned round = 0; round < 3; ++round) {
        std::array<double, 3> cost{};
        for (double& one : cost) one = round == 0 ? 1.0 : 1.0 + static_cast<double>(random() % 8) / 4;
        const double best = shortest_span(p, m, in_flight, cost);
        const Step step = equal_step(p, cost[0], cost[1], cost[2]);
        const double found =
            figures("zb-auto", step, {.devices = p, .micro_batches = m, .memory_limit_bytes = 100 * in_flight})
                .iteration_us;
        ASSERT_GE(found, best * (1 - 1e-9)) << "better than the best";
        EXPECT_LE(found, best * 1.2) << p << " devices, " << m << " micro-batches, " << in_flight << " in flight, F "
                                     << cost[0] << " B " << cost[1] << " W " << cost[2];
        worst = std::max(worst, found / best);
        sum += found / best;
        ++cases;
      }
    }
  }
  std::printf("automatic / best of all orders: mean %.4f, worst %.4f, %u cases\n", sum / cases, worst, cases);
}

}  // namespace
}  // namespace dunnock::training
