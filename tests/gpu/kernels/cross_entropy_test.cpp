// Cross-entropy and softmax against their twins.
#include "dunnock/kernels/cross_entropy.hpp"

#include <limits>

#include "runners.hpp"

namespace dunnock::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

class CrossEntropies : public test::OnEachRunner {
 protected:
  std::size_t any_classes() {
    constexpr std::size_t kClasses[] = {1, 2, 10, 64, 1000, 1025, 4096, 5003};
    return kClasses[random()() % std::size(kClasses)];
  }

  template <class T>
  void agrees(std::size_t rows_max, const std::vector<std::size_t>& classes_given) {
    for (std::size_t round = 0; round < std::max<std::size_t>(10, classes_given.size()); ++round) {
      CrossEntropyShape shape{.rows = any_size(rows_max), .classes = any_classes(), .gradient_factor = 0.3F};
      if (!classes_given.empty()) shape.classes = classes_given[round % classes_given.size()];
      if (random()() % 2 == 0) shape.label_smoothing = 0.1F;
      if (random()() % 2 == 0) shape.ignore_index = 0;
      const bool with_gradient = round % 4 != 3;
      SCOPED_TRACE(std::to_string(shape.rows) + " x " + std::to_string(shape.classes));
      auto logits = normal<T>(shape.rows * shape.classes, 4);
      logits[random()() % logits.size()] = T(300.0F);
      std::vector<std::int32_t> targets(shape.rows);
      for (auto& target : targets) {
        target = static_cast<std::int32_t>(random()() % shape.classes);
        if (random()() % 5 == 0) target = shape.ignore_index;
        if (random()() % 7 == 0) target = static_cast<std::int32_t>(random()());  // Likely no class.
        if (random()() % 9 == 0) target = static_cast<std::int32_t>(shape.classes);
      }
      const auto run = [&](device::Stream& on, bool twin, std::vector<float>& losses, std::vector<float>& mean) {
        auto there = put(logits, on);
        auto classes = put(targets, on);
        auto sums = put(std::vector<float>(shape.rows), on);
        auto one = put(std::vector<float>(1), on);
        run_form(twin,
                 CrossEntropy<T>{.logits = there,
                                 .targets = classes,
                                 .losses = sums,
                                 .gradient = with_gradient ? there.span() : device::Span<T>(),
                                 .shape = shape},
                 on);
        run_form(twin,
                 CrossEntropyMean{.losses = sums, .targets = classes, .ignore_index = shape.ignore_index, .mean = one},
                 on);
        losses = get(sums.span(), on);
        mean = get(one.span(), on);
        return get(there.span(), on);
      };
      std::vector<float> losses, twin_losses, mean, twin_mean;
      const auto gradient = run(stream(), false, losses, mean);
      const auto twin = run(twin_stream(), true, twin_losses, twin_mean);
      test::expect_close(gradient, twin, std::is_same_v<T, float> ? 2e-5 : test::kRounding<T>, 2e-7, "gradient");
      for (std::size_t row = 0; row < shape.rows; ++row) {
        if (std::isnan(twin_losses[row])) {
          EXPECT_TRUE(std::isnan(losses[row])) << "target " << targets[row];
        } else {
          EXPECT_NEAR(losses[row], twin_losses[row], 1e-4 + 1e-5 * std::abs(twin_losses[row])) << "row " << row;
        }
      }
      if (std::isnan(twin_mean[0])) {
        EXPECT_TRUE(std::isnan(mean[0]));
      } else {
        EXPECT_NEAR(mean[0], twin_mean[0], 1e-4 + 1e-5 * std::abs(twin_mean[0]));
      }
    }
  }

  template <class T>
  void softmax_agrees() {
    for (int round = 0; round < 10; ++round) {
      const SoftmaxShape shape{.rows = any_size(emulated() ? 9 : 60), .columns = any_classes()};
      SCOPED_TRACE(std::to_string(shape.rows) + " x " + std::to_string(shape.columns));
      const auto x = normal<T>(shape.rows * shape.columns, 5, 100);
      const std::size_t shift = random()() % 2;  // y is then not aligned as x is.
      const auto run = [&](device::Stream& on, bool twin, std::vector<float>& logs) {
        auto xs = put(x, on);
        auto ys = put(std::vector<T>(x.size() + shift), on);
        auto sums = put(std::vector<float>(shape.rows), on);
        run_form(twin, Softmax<T>{.x = xs, .y = ys.span().subspan(shift, x.size()), .shape = shape}, on);
        run_form(twin, LogSumExp<T>{.x = xs, .sums = sums, .shape = shape}, on);
        logs = get(sums.span(), on);
        return get(ys.span(), on);
      };
      std::vector<float> logs, twin_logs;
      const auto y = run(stream(), false, logs);
      const auto twin = run(twin_stream(), true, twin_logs);
      test::expect_close(y, twin, std::is_same_v<T, float> ? 2e-5 : test::kRounding<T>, 1e-9, "softmax");
      test::expect_close(logs, twin_logs, 1e-6, 1e-5, "log-sum-exp");
    }
  }
};
DUNNOCK_ON_EACH_RUNNER(CrossEntropies);

TEST_P(CrossEntropies, of_floats_agrees_with_its_twin) { agrees<float>(emulated() ? 9 : 60, {}); }
TEST_P(CrossEntropies, of_bf16_agrees_with_its_twin) { agrees<device::Bf16>(emulated() ? 9 : 60, {}); }
TEST_P(CrossEntropies, of_a_huge_odd_vocabulary_agrees_with_its_twin) {
  agrees<float>(2, {50257});
  agrees<device::Bf16>(2, {50257});
}
TEST_P(CrossEntropies, softmax_of_floats_agrees_with_its_twin) { softmax_agrees<float>(); }
TEST_P(CrossEntropies, softmax_of_bf16_agrees_with_its_twin) { softmax_agrees<device::Bf16>(); }

TEST_P(CrossEntropies, a_target_that_is_no_class_has_a_loss_of_nan_and_no_gradient) {
  const CrossEntropyShape shape{.rows = 3, .classes = 4};
  auto logits = put(std::vector<float>(12, 1.0F), stream());
  auto targets = put(std::vector<std::int32_t>{4, -1, -100}, stream());
  auto losses = put(std::vector<float>(3, 7.0F), stream());
  run_form(
      false,
      CrossEntropy<float>{.logits = logits, .targets = targets, .losses = losses, .gradient = logits, .shape = shape},
      stream());
  const auto is = get(losses.span(), stream());
  EXPECT_TRUE(std::isnan(is[0]));
  EXPECT_TRUE(std::isnan(is[1]));
  EXPECT_EQ(is[2], 0);  // Ignored.
  EXPECT_EQ(get(logits.span(), stream()), std::vector<float>(12, 0.0F));
}
TEST_P(CrossEntropies, masks_of_minus_infinity_have_no_share_and_what_is_not_a_number_shows) {
  for (const std::size_t columns : {std::size_t{6}, std::size_t{3000}}) {
    const SoftmaxShape shape{.rows = 4, .columns = columns};
    std::vector<float> x(shape.rows * columns, -kInfinity);
    x[columns - 1] = 2;          // Row 0: all but one are masked.
    x[columns + 1] = kNan;       // Row 1
    x[2 * columns] = kInfinity;  // Row 2; row 3: all are masked.
    auto xs = put(x, stream());
    auto sums = put(std::vector<float>(shape.rows), stream());
    run_form(false, LogSumExp<float>{.x = xs, .sums = sums, .shape = shape}, stream());
    run_form(false, Softmax<float>{.x = xs, .y = xs, .shape = shape}, stream());
    const auto y = get(xs.span(), stream());
    const auto logs = get(sums.span(), stream());
    EXPECT_EQ(y[0], 0);
    EXPECT_EQ(y[columns - 1], 1);
    EXPECT_EQ(logs[0], 2);
    for (std::size_t row = 1; row < 4; ++row) EXPECT_TRUE(std::isnan(logs[row])) << row;
    for (std::size_t i = 3 * columns; i < 4 * columns; ++i) ASSERT_TRUE(std::isnan(y[i])) << i;
    EXPECT_TRUE(std::isnan(y[columns + 1]));
    EXPECT_TRUE(std::isnan(y[2 * columns]));
  }
}
TEST(CrossEntropyDeathTest, spans_that_do_not_fit_are_refused) {
  auto stream = std::move(*device::Stream::create(device::Device::cpu()));
  auto x = std::move(*device::Buffer<float>::create(8, stream));
  auto y = std::move(*device::Buffer<float>::create(7, stream));
  auto targets = std::move(*device::Buffer<std::int32_t>::create(2, stream));
  EXPECT_DEATH(kernels::run(
                   CrossEntropy<float>{
                       .logits = x, .targets = targets, .losses = y, .gradient = x, .shape = {.rows = 2, .classes = 4}},
                   stream),
               "spans fit the shape");
  EXPECT_DEATH(kernels::run(Softmax<float>{.x = x, .y = y, .shape = {.rows = 2, .columns = 4}}, stream),
               "spans fit the shape");
  EXPECT_DEATH(kernels::run(LogSumExp<float>{.x = x, .sums = y, .shape = {.rows = 2, .columns = 4}}, stream),
               "spans fit the shape");
  EXPECT_DEATH(kernels::run(CrossEntropyMean{.losses = x, .targets = targets, .ignore_index = 0, .mean = x}, stream),
               "spans fit the shape");
}

}  // namespace
}  // namespace dunnock::kernels
