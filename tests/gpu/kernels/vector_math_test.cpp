// The vector functions against double: all floats of the binades that matter, and each 61st of the others.
#include "cpu/vector_math.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numbers>
#include <random>
#include <vector>

#include "support/seed.hpp"

namespace dunnock::kernels::detail {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

/// f(x) for each float of both signs with from <= |x| < to, `step` apart.
template <class F>
void each_float(float from, float to, std::uint32_t step, const F& f) {
  for (std::uint32_t bits = std::bit_cast<std::uint32_t>(from); bits < std::bit_cast<std::uint32_t>(to); bits += step) {
    f(std::bit_cast<float>(bits));
    f(-std::bit_cast<float>(bits));
  }
}

/// What one unit in the last place is at `value`.
double unit(double value) {
  const double size = std::max(std::abs(value), double{std::numeric_limits<float>::min()});
  return std::ldexp(1.0, std::ilogb(size) - 23);
}

struct Worst {
  double error = 0;
  float at = 0;
  void add(float x, double is, double should) {
    const double now = std::abs(is - should) / unit(should);
    if (now > error || std::isnan(now)) error = now, at = x;
  }
};

template <class F, class G>
Worst worst_of(float exact_from, float exact_to, float range, const F& f, const G& truth) {
  Worst worst;
  const auto look = [&](float x) { worst.add(x, f(x), truth(x)); };
  each_float(exact_from, exact_to, 1, look);
  each_float(1e-38F, range, 61, look);
  return worst;
}

TEST(VectorMath, exp_is_within_1_1_units_of_all_floats_from_a_half_to_4) {
  const Worst worst = worst_of(
      0.5F, 4, 88.7F, [](float x) { return double{vector_math::exp(x)}; }, [](float x) { return std::exp(double{x}); });
  EXPECT_LE(worst.error, 1.1) << "at " << worst.at;
  RecordProperty("units", std::to_string(worst.error));
}
TEST(VectorMath, exp_of_what_is_not_ordinary) {
  EXPECT_EQ(vector_math::exp(0.0F), 1.0F);
  EXPECT_EQ(vector_math::exp(-kInfinity), 0.0F);
  EXPECT_EQ(vector_math::exp(-1e30F), 0.0F);
  EXPECT_EQ(vector_math::exp(kInfinity), kInfinity);
  EXPECT_EQ(vector_math::exp(88.8F), kInfinity);
  EXPECT_TRUE(std::isnan(vector_math::exp(kNan)));
  EXPECT_NEAR(vector_math::exp(-100.0F), std::exp(-100.0), std::numeric_limits<float>::denorm_min());
}
TEST(VectorMath, sigmoid_is_within_3_units) {
  const Worst worst = worst_of(
      0.5F, 8, 80, [](float x) { return double{vector_math::sigmoid(x)}; },
      [](float x) { return 1 / (1 + std::exp(-double{x})); });
  EXPECT_LE(worst.error, 3) << "at " << worst.at;
}
TEST(VectorMath, tanh_is_within_5_units_and_never_beyond_1) {
  const Worst worst = worst_of(
      0.25F, 4, kInfinity, [](float x) { return double{vector_math::tanh(x)}; },
      [](float x) { return std::tanh(double{x}); });
  EXPECT_LE(worst.error, 5) << "at " << worst.at;
  each_float(4, 10, 1, [](float x) { ASSERT_LE(std::abs(vector_math::tanh(x)), 1.0F); });
  EXPECT_TRUE(std::isnan(vector_math::tanh(kNan)));
  EXPECT_EQ(vector_math::tanh(kInfinity), 1.0F);
  EXPECT_EQ(vector_math::tanh(-kInfinity), -1.0F);
}
TEST(VectorMath, erf_is_within_6_units_and_never_beyond_1) {
  const Worst worst = worst_of(
      0.25F, 4, kInfinity, [](float x) { return double{vector_math::erf(x)}; },
      [](float x) { return std::erf(double{x}); });
  EXPECT_LE(worst.error, 6) << "at " << worst.at;
  each_float(2, 5, 1, [](float x) { ASSERT_LE(std::abs(vector_math::erf(x)), 1.0F); });
  EXPECT_TRUE(std::isnan(vector_math::erf(kNan)));
  EXPECT_EQ(vector_math::erf(kInfinity), 1.0F);
}
TEST(VectorMath, log_is_within_1_5_units_or_1e_7) {
  double worst = 0;
  each_float(std::numeric_limits<float>::min(), kInfinity, 61, [&](float x) {
    if (x < 0) return;
    const double should = std::log(double{x});
    worst = std::max(worst, std::abs(double{vector_math::log(x)} - should) / std::max(1.5 * unit(should), 1e-7));
  });
  each_float(0.5F, 2, 1, [&](float x) {
    if (x < 0) return;
    const double should = std::log(double{x});
    worst = std::max(worst, std::abs(double{vector_math::log(x)} - should) / std::max(1.5 * unit(should), 1e-7));
  });
  EXPECT_LE(worst, 1);
}
TEST(VectorMath, sine_and_cosine_of_a_turn_are_within_1e_7) {
  double worst = 0;
  each_float(1.0F / 1024, 1, 5, [&](float turn) {
    const auto both = vector_math::sine_cosine(turn);
    const double angle = 2 * std::numbers::pi * double{turn};
    worst = std::max({worst, std::abs(both.sine - std::sin(angle)), std::abs(both.cosine - std::cos(angle))});
  });
  EXPECT_LE(worst, 1e-7);
  EXPECT_EQ(vector_math::sine_cosine(0).sine, 0.0F);
  EXPECT_EQ(vector_math::sine_cosine(0.25F).sine, 1.0F);
}
TEST(VectorMath, a_store_of_bf16_rounds_as_its_constructor_does) {
  std::mt19937_64 random(test::seed());
  for (int i = 0; i < 1'000'000; ++i) {
    const auto value = std::bit_cast<float>(static_cast<std::uint32_t>(random()));
    device::Bf16 stored;
    store(&stored, value);
    ASSERT_EQ(stored.bits, device::Bf16(value).bits) << std::bit_cast<std::uint32_t>(value);
  }
}
/// The same source as vectors, as AVX-512 where there is one, and as scalars differ by no more than fused roundings.
TEST(VectorMath, the_widest_vectors_give_the_same_values) {
  std::mt19937_64 random(test::seed());
  std::normal_distribution<float> normal(0, 4);
  std::vector<float> x(1037), wide(x.size());
  for (float& value : x) value = normal(random);
  widest([&]() DUNNOCK_INLINED {
    for (std::size_t i = 0; i < x.size(); ++i) wide[i] = vector_math::tanh(vector_math::exp(x[i]) - 1.0F);
  });
  for (std::size_t i = 0; i < x.size(); ++i)
    EXPECT_NEAR(wide[i], std::tanh(std::expm1(double{x[i]})), 4e-7) << x[i] << " (seed " << test::seed() << ")";
}

}  // namespace
}  // namespace dunnock::kernels::detail
