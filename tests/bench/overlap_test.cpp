// The model of backward passes: as large as the models are, and hidden as far as arithmetic allows.
#include <gtest/gtest.h>

#include <numeric>

#include "backward_model.hpp"

namespace dunnock::bench {
namespace {

const DeviceModel kDevice;

TEST(BackwardPasses, have_the_gradients_of_their_models) {
  std::vector<std::size_t> values;
  for (const ModelShape& model : kModelShapes) {
    const auto pass = backward_pass(model, 1024, kDevice);
    values.push_back(std::accumulate(pass.sizes.begin(), pass.sizes.end(), std::size_t{0}));
    // Each gradient is made once, in the order of the layout.
    std::size_t next = 0;
    for (const BackwardStep& step : pass.steps) {
      EXPECT_GT(step.cost_us, 0) << step.name;
      for (const std::size_t gradient : step.gradients) EXPECT_EQ(gradient, next++) << step.name;
    }
    EXPECT_EQ(next, pass.sizes.size());
  }
  // As published: the first two with GPT-2's checkpoints, the third as 6.7 B.
  EXPECT_EQ(values, (std::vector<std::size_t>{124'439'808, 1'557'611'200, 6'738'415'616}));
}

TEST(BackwardPasses, take_twice_the_arithmetic_of_the_forward_pass) {
  // 4 operations a value of the matrices and token, at 100 TFLOP/s; memory so fast that it takes nothing.
  const ModelShape shape{"one matrix", 0, 1000, 4000, 1000, 1, true};
  const auto pass = backward_pass(shape, 100, {.tflop_per_s = 100, .memory_gb_per_s = 1e12});
  double us = 0;
  for (const BackwardStep& step : pass.steps) us += step.cost_us;
  EXPECT_NEAR(us, 4.0 * 1000 * 1000 * 100 / 1e8, 1e-6);
}

TEST(Overlaps, hide_nine_tenths_of_a_large_models_all_reduces) {
  const auto pass = backward_pass(kModelShapes[2], 16'384, kDevice);
  const auto overlap = simulate_overlap(pass, 2, {}, {.ranks = 8, .link = {.latency_us = 20, .gb_per_s = 50}});
  ASSERT_TRUE(overlap) << overlap.error().message;
  EXPECT_GE(overlap->hidden, 0.9);
}

TEST(Overlaps, hide_no_more_than_what_is_not_last_and_nothing_in_one_bucket) {
  for (const ModelShape& model : kModelShapes) {
    const auto pass = backward_pass(model, 4096, kDevice);
    for (const double gb_per_s : {5.0, 50.0, 500.0}) {
      const ranks::AllReduceOptions all{.ranks = 8, .link = {.latency_us = 20, .gb_per_s = gb_per_s}, .demand = 1e-9};
      const auto overlap = simulate_overlap(pass, 2, {.bytes_max = 5 << 20}, all);
      const auto one = simulate_overlap(pass, 2, {.bytes_max = UINT64_MAX, .first_bytes_max = UINT64_MAX}, all);
      ASSERT_TRUE(overlap && one);
      EXPECT_EQ(one->buckets, 1U);
      EXPECT_NEAR(one->hidden, 0, 1e-6);
      EXPECT_GT(overlap->hidden, 0);
      EXPECT_LE(overlap->hidden, overlap->bound + 1e-6) << model.name << " " << gb_per_s;
      EXPECT_NEAR(overlap->makespan_ms, overlap->compute_ms + (1 - overlap->hidden) * overlap->communication_ms,
                  1e-6 * overlap->makespan_ms);
    }
  }
}

TEST(Overlaps, report_what_can_not_be_laid_out) {
  const auto pass = backward_pass(kModelShapes[0], 16, kDevice);
  EXPECT_EQ(simulate_overlap(pass, 2, {.alignment_bytes = 3}, {}).error().code, ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace dunnock::bench
