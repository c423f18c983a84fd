// Learning rates beside values that were computed by hand.
#include "dunnock/training/learning_rate.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace dunnock::training {
namespace {

constexpr std::uint64_t kForever = std::numeric_limits<std::uint64_t>::max();

TEST(LearningRate, is_constant_when_nothing_is_said) {
  const LearningRate rate{.peak = 0.25};
  for (const std::uint64_t step : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{1000}, kForever})
    EXPECT_EQ(learning_rate_at(rate, step), 0.25);
}

TEST(LearningRate, grows_evenly_to_the_peak_behind_the_warm_up) {
  for (const RateSchedule schedule :
       {RateSchedule::kConstant, RateSchedule::kCosine, RateSchedule::kLinear, RateSchedule::kDrops}) {
    const LearningRate rate{.schedule = schedule, .peak = 8, .warmup_steps = 3, .steps = 11};
    EXPECT_DOUBLE_EQ(learning_rate_at(rate, 0), 2) << to_string(schedule);
    EXPECT_DOUBLE_EQ(learning_rate_at(rate, 1), 4) << to_string(schedule);
    EXPECT_DOUBLE_EQ(learning_rate_at(rate, 2), 6) << to_string(schedule);
    EXPECT_DOUBLE_EQ(learning_rate_at(rate, 3), 8) << to_string(schedule);
  }
}

TEST(LearningRate, falls_along_half_a_cosine) {
  const LearningRate rate{
      .schedule = RateSchedule::kCosine, .peak = 2, .warmup_steps = 4, .steps = 16, .final_share = 0.1};
  EXPECT_DOUBLE_EQ(learning_rate_at(rate, 4), 2);
  EXPECT_DOUBLE_EQ(learning_rate_at(rate, 7), 2 * (0.1 + 0.9 * (1 + std::sqrt(0.5)) / 2));  // A quarter: cos 45 degrees
  EXPECT_DOUBLE_EQ(learning_rate_at(rate, 8), 2 * (0.1 + 0.9 * 0.75));                      // A third: cos 60 degrees
  EXPECT_DOUBLE_EQ(learning_rate_at(rate, 10), 2 * (0.1 + 0.9 * 0.5));
  EXPECT_DOUBLE_EQ(learning_rate_at(rate, 16), 0.2);
  EXPECT_DOUBLE_EQ(learning_rate_at(rate, kForever), 0.2);
}

TEST(LearningRate, falls_along_a_line) {
  const LearningRate rate{
      .schedule = RateSchedule::kLinear, .peak = 1, .warmup_steps = 10, .steps = 20, .final_share = 0.5};
  EXPECT_DOUBLE_EQ(learning_rate_at(rate, 10), 1);
  EXPECT_DOUBLE_EQ(learning_rate_at(rate, 12), 0.9);
  EXPECT_DOUBLE_EQ(learning_rate_at(rate, 19), 0.55);
  EXPECT_DOUBLE_EQ(learning_rate_at(rate, 20), 0.5);
  EXPECT_DOUBLE_EQ(learning_rate_at(rate, 21), 0.5);
}

TEST(LearningRate, drops) {
  const LearningRate rate{
      .schedule = RateSchedule::kDrops, .peak = 4, .warmup_steps = 1, .drop_every = 3, .drop_factor = 0.5};
  const double expected[] = {2, 4, 4, 4, 2, 2, 2, 1, 1, 1, 0.5};
  for (std::uint64_t step = 0; step < std::size(expected); ++step)
    EXPECT_DOUBLE_EQ(learning_rate_at(rate, step), expected[step]) << step;
}

TEST(LearningRate, is_at_its_end_when_the_warm_up_is_the_whole_run) {
  for (const RateSchedule schedule : {RateSchedule::kCosine, RateSchedule::kLinear}) {
    const LearningRate rate{.schedule = schedule, .peak = 1, .warmup_steps = 4, .steps = 4, .final_share = 0.25};
    EXPECT_DOUBLE_EQ(learning_rate_at(rate, 3), 0.8);
    EXPECT_DOUBLE_EQ(learning_rate_at(rate, 4), 0.25);
  }
}

}  // namespace
}  // namespace dunnock::training
