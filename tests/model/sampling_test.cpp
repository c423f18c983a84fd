// Sampling: the likeliest token, frequencies that match the probabilities (fixed seeds), and logits that are not
// finite.
#include "dunnock/model/sampling.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>

namespace dunnock::model {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::int32_t token(const std::vector<float>& logits, const SamplingOptions& options, std::uint64_t position = 0) {
  const auto chosen = Sampler(options).token(logits, position);
  EXPECT_TRUE(chosen) << chosen.error().message;
  return chosen.value_or(-1);
}

/// Chi-squared of `draws` tokens against softmax(logits / temperature) over `among`, whose others must not come.
double chi_squared(const std::vector<float>& logits, const SamplingOptions& options,
                   const std::vector<std::int32_t>& among, unsigned draws) {
  Sampler sampler(options);
  std::map<std::int32_t, double> counts;
  for (unsigned i = 0; i < draws; ++i) ++counts[sampler.token(logits, i).value()];
  double sum = 0, total = 0;
  for (const std::int32_t one : among) sum += std::exp(logits[static_cast<std::size_t>(one)] / options.temperature);
  for (const std::int32_t one : among) {
    const double expected = draws * std::exp(logits[static_cast<std::size_t>(one)] / options.temperature) / sum;
    total += std::pow(counts[one] - expected, 2) / expected;
    counts.erase(one);
  }
  EXPECT_TRUE(counts.empty()) << "token " << counts.begin()->first << " has come";
  return total;
}

TEST(Sampling, at_temperature_0_takes_the_likeliest_of_equals_the_first) {
  for (std::uint64_t position = 0; position < 20; ++position) {
    EXPECT_EQ(token({1, 5, 2, 5, -3}, {.temperature = 0}, position), 1);
    EXPECT_EQ(token({-kInfinity, -9}, {.temperature = 0, .top_k = 1}, position), 1);
    EXPECT_EQ(token({0}, {.temperature = 0}, position), 0);
  }
}

TEST(Sampling, of_the_likeliest_one_is_the_likeliest) {
  for (std::uint64_t position = 0; position < 20; ++position)
    EXPECT_EQ(token({1, 5, 2, 5, -3}, {.temperature = 3, .top_k = 1, .seed = 9}, position), 1);
}

// The seeds are fixed, so these either always pass or never do. 99.9 % of chi-squared with 4 degrees of freedom is
// below 18.5, with 2 below 13.8.
TEST(Sampling, draws_as_often_as_the_softmax_says) {
  const std::vector<float> logits = {0.5F, -1, 2, 0, 1};
  for (const std::uint64_t seed : {1, 2, 3}) {
    for (const double temperature : {0.5, 0.8, 1.0, 2.0}) {
      EXPECT_LT(chi_squared(logits, {.temperature = temperature, .seed = seed}, {0, 1, 2, 3, 4}, 20000), 18.5)
          << "seed " << seed << ", temperature " << temperature;
    }
  }
}

TEST(Sampling, draws_of_the_likeliest_only) {
  const std::vector<float> logits = {0.5F, -1, 2, 0, 1};
  EXPECT_LT(chi_squared(logits, {.temperature = 1, .top_k = 3, .seed = 4}, {0, 2, 4}, 20000), 13.8);
  EXPECT_LT(chi_squared(logits, {.temperature = 1, .top_k = 5, .seed = 5}, {0, 1, 2, 3, 4}, 20000), 18.5);
  EXPECT_LT(chi_squared(logits, {.temperature = 1, .top_k = 99, .seed = 6}, {0, 1, 2, 3, 4}, 20000), 18.5);
  // Of equals the first.
  EXPECT_LT(chi_squared({1, 1, 1, 1, 1}, {.temperature = 1, .top_k = 3, .seed = 7}, {0, 1, 2}, 20000), 13.8);
}

TEST(Sampling, is_a_function_of_seed_and_position) {
  const std::vector<float> logits(1000, 0);
  std::vector<std::int32_t> forwards, backwards, other;
  Sampler one({.temperature = 1, .seed = 5}), two({.temperature = 1, .seed = 5}), three({.temperature = 1, .seed = 6});
  for (std::uint64_t i = 0; i < 50; ++i) {
    forwards.push_back(one.token(logits, i).value());
    backwards.insert(backwards.begin(), two.token(logits, 49 - i).value());
    other.push_back(three.token(logits, i).value());
  }
  EXPECT_EQ(forwards, backwards);
  EXPECT_NE(forwards, other);
}

TEST(Sampling, stands_any_size_of_logits) {
  for (std::uint64_t position = 0; position < 100; ++position) {
    EXPECT_EQ(token({1e38F, -1e38F}, {.temperature = 1}, position), 0);
    EXPECT_EQ(token({0, 1}, {.temperature = 1e-300}, position), 1);
    EXPECT_EQ(token({-kInfinity, -1e30F, -kInfinity}, {.temperature = 100}, position), 1);
    EXPECT_EQ(token({-kInfinity, 3, -kInfinity}, {.temperature = 1, .top_k = 2}, position), 1);
  }
}

TEST(Sampling, draws_rare_tokens_too) {
  // 4095 tokens of 2^-24 each.
  std::vector<float> logits(1 << 12, std::log(0x1p-24F));
  logits[0] = std::log(1 - 0x1p-12F);
  Sampler sampler({.temperature = 1, .seed = 8});
  unsigned rare = 0;
  for (std::uint64_t i = 0; i < 20000; ++i) rare += sampler.token(logits, i).value() != 0 ? 1 : 0;
  EXPECT_GE(rare, 1U);  // 4.9 are expected.
  EXPECT_LE(rare, 15U);
}

TEST(Sampling, refuses_logits_that_are_none) {
  const auto why = [](const std::vector<float>& logits, double temperature) {
    const auto chosen = Sampler({.temperature = temperature}).token(logits, 0);
    EXPECT_EQ(chosen.error().code, ErrorCode::kCorrupt);
    return chosen.error().message;
  };
  for (const double temperature : {0.0, 1.0}) {
    EXPECT_EQ(why({1, std::nanf(""), 2}, temperature), "logit 1 is NaN");
    EXPECT_EQ(why({1, 2, kInfinity}, temperature), "logit 2 is Inf");
    EXPECT_EQ(why({-kInfinity, -kInfinity}, temperature), "all logits are -Inf");
  }
}

TEST(SamplingDeathTest, needs_a_sound_temperature_and_a_logit) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(Sampler({.temperature = -1}), "not negative");
  EXPECT_DEATH(Sampler({.temperature = std::nan("")}), "finite");
  EXPECT_DEATH((void)Sampler({}).token({}, 0), "at least one");
}

}  // namespace
}  // namespace dunnock::model
