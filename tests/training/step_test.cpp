// Steps, links, and the profiles: their numbers beside what is known of the networks.
#include "dunnock/training/step.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "dunnock/training/profiles.hpp"
#include "support/seed.hpp"
#include "training/support.hpp"

namespace dunnock::training {
namespace {

TEST(Link, sends_and_sums_in_the_time_of_its_formulas) {
  const Link link{.latency_us = 5, .gb_per_s = 2};
  EXPECT_DOUBLE_EQ(link.send_us(4000), 5 + 2);
  EXPECT_DOUBLE_EQ(link.all_reduce_us(4000, 4), 6 * (5 + 0.5));
  EXPECT_DOUBLE_EQ(link.all_reduce_us(4000, 1), 0);
  EXPECT_DOUBLE_EQ(Link{}.send_us(1 << 30), 0);
}

TEST(Step, is_refused_with_the_reason) {
  const auto reason = [](const auto& change) {
    Step step = test::equal_step(3);
    change(step);
    const Status fine = check(step);
    return fine ? std::string() : fine.error().message;
  };
  EXPECT_EQ(reason([](Step&) {}), "");
  EXPECT_EQ(reason([](Step& s) { s.layers.clear(); }), "step 'uniform': it has no layers");
  EXPECT_EQ(reason([](Step& s) { s.layers[1].forward.us = -1; }),
            "step 'uniform': layer '2' has a cost that is negative or not finite");
  EXPECT_EQ(reason([](Step& s) { s.layers[1].update.us = NAN; }),
            "step 'uniform': layer '2' has a cost that is negative or not finite");
  EXPECT_EQ(reason([](Step& s) { s.layers[2].weight_gradient.demand = 0; }),
            "step 'uniform': layer '3' needs a share of the device above 0 and at most 1");
  EXPECT_EQ(reason([](Step& s) { s.layers[2].output_gradient.demand = 1.5; }),
            "step 'uniform': layer '3' needs a share of the device above 0 and at most 1");
  EXPECT_EQ(reason([](Step& s) { s.layers[0].kept_for_weights_bytes = 101; }),
            "step 'uniform': layer '1' keeps more bytes for its weights than in total");
  EXPECT_EQ(reason([](Step& s) { s.layers[0].block = 1; }),
            "step 'uniform': layer '2' belongs to an earlier block than the layer before it");
}

/// The shortest longest part, by trying every cut.
double shortest(const std::vector<double>& costs, std::size_t begin, unsigned parts) {
  if (parts == 1) {
    double sum = 0;
    for (std::size_t i = begin; i < costs.size(); ++i) sum += costs[i];
    return sum;
  }
  double best = std::numeric_limits<double>::infinity();
  double sum = 0;
  for (std::size_t end = begin + 1; end + parts - 1 <= costs.size(); ++end) {
    sum += costs[end - 1];
    best = std::min(best, std::max(sum, shortest(costs, end, parts - 1)));
  }
  return best;
}

TEST(Step, is_cut_into_parts_of_which_the_longest_is_as_short_as_can_be) {
  auto random = test::generator(21);
  for (unsigned round = 0; round < 200; ++round) {
    const auto layers = static_cast<unsigned>(1 + random() % 10);
    const auto parts = static_cast<unsigned>(1 + random() % layers);
    const Step step = test::random_step(random, layers);
    std::vector<double> costs;
    for (const Layer& layer : step.layers)
      costs.push_back(layer.forward.us + layer.output_gradient.us + layer.weight_gradient.us);
    const auto begins = balanced_parts(step, parts);
    ASSERT_EQ(begins.size(), parts);
    ASSERT_EQ(begins.front(), 0U);
    double longest = 0;
    for (unsigned n = 0; n < parts; ++n) {
      const unsigned end = n + 1 < parts ? begins[n + 1] : layers;
      ASSERT_LT(begins[n], end) << "there are at most as many parts as layers";
      double sum = 0;
      for (unsigned i = begins[n]; i < end; ++i) sum += costs[i];
      longest = std::max(longest, sum);
    }
    ASSERT_NEAR(longest, shortest(costs, 0, parts), 1e-9);
  }
}

TEST(Profiles, have_the_weights_of_the_networks) {
  // Millions of weights, as published; biases and norms, which have no part here, are below 1 % of them.
  const std::map<std::string_view, double> millions = {
      {"gpt2-small", 124.4}, {"gpt2-xl", 1557.6},    {"bert-base", 108.9},  {"bert-large", 334.0},
      {"resnet-50", 25.56},  {"densenet-121", 7.98}, {"mobilenet-v1", 4.23}};
  for (const auto& [name, expected] : millions) {
    const auto step = profile(name, v100_like(), 1);
    ASSERT_TRUE(step) << step.error().message;
    double gradients = 0;
    for (const Layer& layer : step->layers) gradients += static_cast<double>(layer.gradient_bytes) / 2;
    EXPECT_NEAR(gradients / 1e6, expected, 0.02 * expected) << name;
  }
}

TEST(Profiles, are_sound_and_scale_with_batch_and_device) {
  for (const std::string_view name : profile_names()) {
    const auto one = profile(name, v100_like(), 2);
    ASSERT_TRUE(one) << one.error().message;
    EXPECT_TRUE(check(*one)) << name;
    const auto time = [](const Step& step) {
      double us = 0;
      for (const Layer& layer : step.layers)
        us += layer.forward.us + layer.output_gradient.us + layer.weight_gradient.us;
      return us;
    };
    const auto large = profile(name, v100_like(), 64);
    EXPECT_GT(time(*large), 4 * time(*one)) << name;
    EXPECT_LT(time(*large), 33 * time(*one)) << name << ": a larger batch is no less efficient";
    EXPECT_LT(time(*profile(name, h200_like(), 64)), 0.5 * time(*large)) << name;
  }
}

TEST(Profiles, never_compute_faster_than_the_device) {
  // GPT-2's blocks, forward: 24 tokens width^2 + 4 tokens sequence width flops each.
  for (const DeviceModel& device : {v100_like(), h200_like()}) {
    const Step step = *profile("gpt2-xl", device, 4);
    const double tokens = 4 * 1024;
    const double flops = 24 * tokens * 1600 * 1600 + 4 * tokens * 1024 * 1600;
    EXPECT_GE(step.layers[1].forward.us, flops / (device.matrix_tflops * 1e6 * device.efficiency)) << device.name;
  }
}

TEST(Profiles, are_refused_with_the_names_that_there_are) {
  const auto none = profile("gpt-5", v100_like(), 1);
  EXPECT_EQ(none.error().code, ErrorCode::kNotFound);
  EXPECT_NE(none.error().message.find("unknown profile 'gpt-5': expected one of gpt2-small, gpt2-xl"),
            std::string::npos);
  EXPECT_EQ(profile("resnet-50", v100_like(), 0).error().code, ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace dunnock::training
