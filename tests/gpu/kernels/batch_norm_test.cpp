// Batch norm against its twins, and the twins' gradients against differences.
#include "dunnock/kernels/batch_norm.hpp"

#include "batch_norm_parts.hpp"
#include "runners.hpp"

namespace dunnock::kernels {
namespace {

class BatchNorms : public test::OnEachRunner {
 protected:
  BatchNormShape any_shape() {
    constexpr std::size_t kChannels[] = {1, 3, 8, 20, 64, 100, 256, 264, 515};
    BatchNormShape shape;
    shape.channels = kChannels[random()() % std::size(kChannels)];
    shape.rows = any_size(emulated() ? 300 : 2000);
    shape.relu = random()() % 2 == 0;
    shape.momentum = 0.3F;
    return shape;
  }
  static std::string text(const BatchNormShape& shape) {
    return std::to_string(shape.rows) + " x " + std::to_string(shape.channels) + (shape.relu ? " with ReLU" : "");
  }
  static std::size_t workspace_of(bool twin, const BatchNormShape& shape, device::Stream& on) {
    return !twin && emulated() ? detail::emulated::batch_norm_workspace(shape, 4)
                               : batch_norm_workspace(shape, on.device());
  }

  template <class T>
  struct Trained {
    std::vector<T> y;
    std::vector<float> mean, r, running_mean, running_variance;
  };

  template <class T>
  Trained<T> train(bool twin, const std::vector<T>& x, const std::vector<T>& weight, const std::vector<T>& bias,
                   bool runs, const BatchNormShape& shape, device::Stream& on) {
    auto xs = put(x, on);  // y takes its place.
    auto w = put(weight, on);
    auto b = put(bias, on);
    auto mean = put(std::vector<float>(shape.channels), on);
    auto r = put(std::vector<float>(shape.channels), on);
    auto running_mean = put(std::vector<float>(runs ? shape.channels : 0, 2.0F), on);
    auto running_variance = put(std::vector<float>(runs ? shape.channels : 0, 3.0F), on);
    const device::Span<float> means = runs ? running_mean.span() : device::Span<float>();
    const device::Span<float> variances = runs ? running_variance.span() : device::Span<float>();
    auto space = put(std::vector<float>(workspace_of(twin, shape, on), NAN), on);
    const device::Span<T> y = xs;
    run_form(twin,
             BatchNorm<T>{.x = xs,
                          .weight = w,
                          .bias = b,
                          .y = y,
                          .mean = mean,
                          .r = r,
                          .running_mean = means,
                          .running_variance = variances,
                          .shape = shape,
                          .workspace = space},
             on);
    return {get(y, on), get(mean.span(), on), get(r.span(), on), get(running_mean.span(), on),
            get(running_variance.span(), on)};
  }

  template <class T>
  void training_agrees(const BatchNormShape& shape, float mean) {
    SCOPED_TRACE(text(shape));
    const auto x = normal<T>(shape.rows * shape.channels, 2, mean);
    const auto weight = normal<T>(shape.channels);
    const auto bias = normal<T>(shape.channels);
    const bool runs = random()() % 2 == 0;
    const auto is = train(false, x, weight, bias, runs, shape, stream());
    const auto should = train(true, x, weight, bias, runs, shape, twin_stream());
    test::expect_close(is.mean, should.mean, 2e-6, 4e-6, "mean");
    test::expect_close(is.r, should.r, 1e-4, 0, "r");
    test::expect_close(is.running_mean, should.running_mean, 4e-6, 4e-6, "running mean");
    test::expect_close(is.running_variance, should.running_variance, 1e-4, 1e-5, "running variance");
    // With one row z is 0 / sqrt(epsilon): the mean's last bit is magnified by 1 / sqrt(epsilon).
    const double magnified = shape.rows < 4 ? 320 : 1;
    test::expect_close(is.y, should.y, 4 * test::kRounding<T>, magnified * (2e-5 + 1e-6 * std::abs(double(mean))), "y");
  }

  template <class T>
  void inference_agrees(const BatchNormShape& shape) {
    SCOPED_TRACE(text(shape));
    const auto x = normal<T>(shape.rows * shape.channels, 2, 1);
    const auto weight = normal<T>(shape.channels);
    const auto bias = normal<T>(shape.channels);
    const auto mean = normal<float>(shape.channels);
    auto variance = normal<float>(shape.channels);
    for (float& value : variance) value *= value;
    const auto run = [&](bool twin, device::Stream& on) {
      auto xs = put(x, on);
      auto w = put(weight, on);
      auto b = put(bias, on);
      auto means = put(mean, on);
      auto variances = put(variance, on);
      auto y = put(std::vector<T>(x.size(), T(NAN)), on);
      run_form(twin,
               BatchNormInference<T>{.x = xs,
                                     .weight = w,
                                     .bias = b,
                                     .running_mean = means,
                                     .running_variance = variances,
                                     .y = y,
                                     .shape = shape},
               on);
      return get(y.span(), on);
    };
    test::expect_close(run(false, stream()), run(true, twin_stream()), 4 * test::kRounding<T>, 1e-4, "y");
  }

  template <class T>
  void backward_agrees(const BatchNormShape& shape) {
    SCOPED_TRACE(text(shape));
    const bool adds = random()() % 2 == 0;
    const bool over_x = random()() % 2 == 0;  // dx takes x's place, or dy's.
    const auto x = normal<T>(shape.rows * shape.channels);
    auto dy = normal<T>(x.size());
    const auto weight = normal<T>(shape.channels);
    const auto bias = normal<T>(shape.channels);
    const auto mean = normal<float>(shape.channels, 0.1F);
    const auto r = normal<float>(shape.channels, 0.1F, 1);
    const auto before = normal<T>(shape.channels);
    // Where rounding decides whether ReLU was 0, nothing is compared.
    for (std::size_t i = 0; i < x.size(); ++i) {
      const std::size_t c = i % shape.channels;
      const double z = (double(static_cast<float>(x[i])) - double(mean[c])) * double(r[c]);
      const double value = z * double(static_cast<float>(weight[c])) + double(static_cast<float>(bias[c]));
      if (std::abs(value) < 1e-5) dy[i] = T(0.0F);
    }
    const auto run = [&](bool twin, device::Stream& on, std::vector<T>& dweight, std::vector<T>& dbias) {
      auto dys = put(dy, on);
      auto xs = put(x, on);
      auto w = put(weight, on);
      auto b = put(bias, on);
      auto means = put(mean, on);
      auto rs = put(r, on);
      auto dw = put(before, on);
      auto db = put(before, on);
      auto space = put(std::vector<float>(workspace_of(twin, shape, on), NAN), on);
      const device::Span<T> dx = over_x ? xs.span() : dys.span();
      run_form(twin,
               BatchNormBackward<T>{.dy = dys,
                                    .x = xs,
                                    .weight = w,
                                    .bias = b,
                                    .mean = means,
                                    .r = rs,
                                    .dx = dx,
                                    .dweight = dw,
                                    .dbias = db,
                                    .adds = adds,
                                    .shape = shape,
                                    .workspace = space},
               on);
      dweight = get(dw.span(), on);
      dbias = get(db.span(), on);
      return get(dx, on);
    };
    std::vector<T> dweight, dbias, twin_dweight, twin_dbias;
    const auto dx = run(false, stream(), dweight, dbias);
    const auto twin = run(true, twin_stream(), twin_dweight, twin_dbias);
    test::expect_close(dx, twin, 2 * test::kRounding<T>, 2e-5, "dx");
    test::expect_close(dweight, twin_dweight, test::kRounding<T>, 5e-4, "dweight");
    test::expect_close(dbias, twin_dbias, test::kRounding<T>, 5e-4, "dbias");
  }

  [[nodiscard]] static int rounds() { return emulated() ? 10 : 30; }
};
DUNNOCK_ON_EACH_RUNNER(BatchNorms);

TEST_P(BatchNorms, training_agrees_with_its_twin) {
  for (int round = 0; round < rounds(); ++round) {
    training_agrees<float>(any_shape(), 1);
    training_agrees<device::Bf16>(any_shape(), 1);
  }
}
TEST_P(BatchNorms, of_one_row_agrees_with_its_twin) {
  BatchNormShape shape;
  shape.rows = 1;
  shape.channels = 40;
  training_agrees<float>(shape, 0);
}
TEST_P(BatchNorms, variances_survive_a_large_mean) {
  BatchNormShape shape = any_shape();
  shape.rows += 100;
  training_agrees<float>(shape, 1000);
}
TEST_P(BatchNorms, inference_agrees_with_its_twin) {
  for (int round = 0; round < rounds(); ++round) {
    inference_agrees<float>(any_shape());
    inference_agrees<device::Bf16>(any_shape());
  }
}
TEST_P(BatchNorms, gradients_agree_with_their_twin) {
  for (int round = 0; round < rounds(); ++round) {
    backward_agrees<float>(any_shape());
    backward_agrees<device::Bf16>(any_shape());
  }
}
TEST_P(BatchNorms, statistics_do_not_depend_on_the_number_of_threads) {
  if (GetParam() != test::Runner::kCpu) GTEST_SKIP() << "threads are the CPU's";
  const BatchNormShape shape = any_shape();
  SCOPED_TRACE(text(shape));
  const auto x = normal<float>(shape.rows * shape.channels);
  const auto weight = normal<float>(shape.channels);
  const auto run = [&](unsigned threads) {
    auto on = std::move(*device::Stream::create(device::Device::cpu(), {.threads = threads}));
    return train(false, x, weight, weight, true, shape, on);
  };
  const auto one = run(1);
  const auto three = run(3);
  EXPECT_EQ(one.mean, three.mean);
  EXPECT_EQ(one.r, three.r);
  EXPECT_EQ(one.y, three.y);
}

/// The sum of all outputs, each times its dy, changes with x, weight and bias as the gradients say.
TEST(BatchNormTwin, gradients_agree_with_differences) {
  std::mt19937_64 random(test::seed());
  auto stream = std::move(*device::Stream::create(device::Device::cpu()));
  BatchNormShape shape;
  shape.rows = 7;
  shape.channels = 5;
  const auto normal = [&](std::size_t count) {
    std::vector<float> values(count);
    for (float& value : values) value = std::normal_distribution<float>()(random);
    return values;
  };
  std::vector<float> x = normal(shape.rows * shape.channels), dy = normal(x.size());
  std::vector<float> weight = normal(shape.channels), bias = normal(shape.channels);
  std::vector<float> mean(shape.channels), r(shape.channels), y(x.size());
  const auto span = [](std::vector<float>& values) { return device::Span<float>(values.data(), values.size()); };
  const auto loss = [&] {
    reference::run(BatchNorm<float>{.x = span(x),
                                    .weight = span(weight),
                                    .bias = span(bias),
                                    .y = span(y),
                                    .mean = span(mean),
                                    .r = span(r),
                                    .running_mean = {},
                                    .running_variance = {},
                                    .shape = shape,
                                    .workspace = {}},
                   stream);
    EXPECT_TRUE(stream.synchronize());
    double sum = 0;
    for (std::size_t i = 0; i < y.size(); ++i) sum += double(y[i]) * double(dy[i]);
    return sum;
  };
  (void)loss();
  std::vector<float> dx(x.size()), dweight(shape.channels), dbias(shape.channels);
  reference::run(BatchNormBackward<float>{.dy = span(dy),
                                          .x = span(x),
                                          .weight = span(weight),
                                          .bias = span(bias),
                                          .mean = span(mean),
                                          .r = span(r),
                                          .dx = span(dx),
                                          .dweight = span(dweight),
                                          .dbias = span(dbias),
                                          .adds = false,
                                          .shape = shape,
                                          .workspace = {}},
                 stream);
  ASSERT_TRUE(stream.synchronize());
  const auto check = [&](std::vector<float>& values, const std::vector<float>& gradient, const char* what) {
    for (std::size_t at = 0; at < values.size(); ++at) {
      const float before = values[at];
      constexpr float kStep = 1.0F / 256;
      values[at] = before + kStep;
      const double above = loss();
      values[at] = before - kStep;
      const double difference = (above - loss()) / (2.0 * double(kStep));
      values[at] = before;
      EXPECT_NEAR(difference, double(gradient[at]), 0.01 + 0.01 * std::abs(difference))
          << what << " [" << at << "] (seed " << test::seed() << ")";
    }
  };
  check(x, dx, "dx");
  check(weight, dweight, "dweight");
  check(bias, dbias, "dbias");
}

TEST(BatchNormDeathTest, refuses_what_does_not_fit) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  std::vector<float> values(12);
  const auto call = [&](std::size_t rows, std::size_t count, std::size_t running) {
    auto stream = std::move(*device::Stream::create(device::Device::cpu()));
    BatchNormShape shape;
    shape.rows = rows;
    shape.channels = 3;
    const device::Span<float> x(values.data(), count);
    const device::Span<float> three(values.data(), 3);
    kernels::run(BatchNorm<float>{.x = x,
                                  .weight = three,
                                  .bias = three,
                                  .y = x,
                                  .mean = three,
                                  .r = three,
                                  .running_mean = device::Span<float>(values.data(), running),
                                  .running_variance = {},
                                  .shape = shape,
                                  .workspace = {}},
                 stream);
  };
  EXPECT_DEATH(call(0, 0, 0), "statistics need at least one row");
  EXPECT_DEATH(call(4, 11, 0), "spans fit the shape");
  EXPECT_DEATH(call(4, 12, 3), "the running mean and variance have one size");
  EXPECT_DEATH(call(4, 12, 0), "the workspace is large enough");
}

}  // namespace
}  // namespace dunnock::kernels
