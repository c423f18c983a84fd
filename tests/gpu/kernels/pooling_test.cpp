// Pooling against its twins, and the twins' gradients against differences.
#include "dunnock/kernels/pooling.hpp"

#include <limits>
#include <sstream>

#include "runners.hpp"

namespace dunnock::kernels {
namespace {

std::string text(const PoolingShape& s) {
  std::ostringstream out;
  out << s.batch << " of " << s.height << "x" << s.width << "x" << s.channels << ", kernel " << s.kernel_height << "x"
      << s.kernel_width << ", stride " << s.stride_height << "x" << s.stride_width << ", padding " << s.padding_height
      << "x" << s.padding_width << (s.padding_counts ? ", which counts" : "");
  return out.str();
}

class Pooling : public test::OnEachRunner {
 protected:
  PoolingShape any_shape() {
    const auto in = [this](std::size_t first, std::size_t last) { return first + random()() % (last - first + 1); };
    PoolingShape s;
    do {
      s.batch = in(1, 3);
      s.height = in(1, emulated() ? 9 : 20);
      s.width = in(1, emulated() ? 9 : 20);
      s.channels = in(0, 1) == 0 ? 8 * in(1, 9) : in(1, 70);
      s.kernel_height = in(1, 4);
      s.kernel_width = in(1, 4);
      s.stride_height = in(1, 5);
      s.stride_width = in(1, 5);
      s.padding_height = in(0, 3);
      s.padding_width = in(0, 3);
      s.padding_counts = in(0, 1) == 0;
    } while (!s.valid());
    return s;
  }

  /// From a few values, so that many are equal: the first of them is the largest.
  template <class T>
  std::vector<T> any_values(std::size_t count) {
    std::vector<T> values(count);
    const bool few = random()() % 2 == 0;
    for (T& value : values)
      value = few ? T(static_cast<float>(random()() % 5) - 2) : T(std::normal_distribution<float>()(random()));
    return values;
  }

  template <class T>
  void max_agrees(const std::vector<T>& x, const PoolingShape& s) {
    const auto dy = normal<T>(s.y_size());
    const auto run = [&](bool twin, device::Stream& on, std::vector<std::uint32_t>& where, std::vector<T>& dx) {
      auto xs = put(x, on);
      auto dys = put(dy, on);
      auto ys = put(std::vector<T>(s.y_size(), T(NAN)), on);
      auto unmarked = put(std::vector<T>(s.y_size(), T(NAN)), on);
      auto indices = put(std::vector<std::uint32_t>(s.y_size()), on);
      auto dxs = put(std::vector<T>(s.x_size(), T(NAN)), on);
      run_form(twin, MaxPool<T>{.x = xs, .y = ys, .indices = indices, .shape = s}, on);
      run_form(twin, MaxPool<T>{.x = xs, .y = unmarked, .indices = {}, .shape = s}, on);
      run_form(twin, MaxPoolBackward<T>{.dy = dys, .indices = indices, .dx = dxs, .shape = s}, on);
      where = get(indices.span(), on);
      dx = get(dxs.span(), on);
      const auto y = get(ys.span(), on);
      const auto without = get(unmarked.span(), on);
      EXPECT_EQ(std::memcmp(y.data(), without.data(), y.size() * sizeof(T)), 0);
      return y;
    };
    std::vector<std::uint32_t> where, twin_where;
    std::vector<T> dx, twin_dx;
    const auto y = run(false, stream(), where, dx);
    const auto twin = run(true, twin_stream(), twin_where, twin_dx);
    EXPECT_EQ(where, twin_where);
    // The same value, and the same NaN as far as there are several.
    for (std::size_t i = 0; i < y.size(); ++i) {
      const auto is = static_cast<float>(y[i]);
      const auto should = static_cast<float>(twin[i]);
      ASSERT_TRUE(is == should || (std::isnan(is) && std::isnan(should))) << i << ": " << is << ", not " << should;
    }
    test::expect_close(dx, twin_dx, test::kRounding<T>, 1e-5, "dx");
  }

  template <class T>
  void average_agrees(const PoolingShape& s) {
    const auto x = normal<T>(s.x_size());
    const auto dy = normal<T>(s.y_size());
    const auto run = [&](bool twin, device::Stream& on, std::vector<T>& dx) {
      auto xs = put(x, on);
      auto dys = put(dy, on);
      auto ys = put(std::vector<T>(s.y_size(), T(NAN)), on);
      auto dxs = put(std::vector<T>(s.x_size(), T(NAN)), on);
      run_form(twin, AveragePool<T>{.x = xs, .y = ys, .shape = s}, on);
      run_form(twin, AveragePoolBackward<T>{.dy = dys, .dx = dxs, .shape = s}, on);
      dx = get(dxs.span(), on);
      return get(ys.span(), on);
    };
    std::vector<T> dx, twin_dx;
    const auto y = run(false, stream(), dx);
    const auto twin = run(true, twin_stream(), twin_dx);
    test::expect_close(y, twin, test::kRounding<T>, 1e-5, "y");
    test::expect_close(dx, twin_dx, test::kRounding<T>, 1e-5, "dx");
  }

  template <class T>
  void global_agrees() {
    const GlobalPoolingShape s{any_size(3), any_size(60), random()() % 2 == 0 ? 8 * any_size(40) : any_size(90)};
    SCOPED_TRACE(std::to_string(s.batch) + " of " + std::to_string(s.positions) + " x " + std::to_string(s.channels));
    const auto x = normal<T>(s.batch * s.positions * s.channels);
    const auto dy = normal<T>(s.batch * s.channels);
    const auto run = [&](bool twin, device::Stream& on, std::vector<T>& dx) {
      auto xs = put(x, on);
      auto dys = put(dy, on);
      auto ys = put(std::vector<T>(dy.size(), T(NAN)), on);
      auto dxs = put(std::vector<T>(x.size(), T(NAN)), on);
      run_form(twin, GlobalAveragePool<T>{.x = xs, .y = ys, .shape = s}, on);
      run_form(twin, GlobalAveragePoolBackward<T>{.dy = dys, .dx = dxs, .shape = s}, on);
      dx = get(dxs.span(), on);
      return get(ys.span(), on);
    };
    std::vector<T> dx, twin_dx;
    const auto y = run(false, stream(), dx);
    const auto twin = run(true, twin_stream(), twin_dx);
    test::expect_close(y, twin, test::kRounding<T>, 1e-5, "y");
    test::expect_close(dx, twin_dx, test::kRounding<T>, 1e-6, "dx");
  }

  [[nodiscard]] static int rounds() { return emulated() ? 15 : 60; }
};
DUNNOCK_ON_EACH_RUNNER(Pooling);

TEST_P(Pooling, maxima_and_their_gradients_agree_with_their_twins) {
  for (int round = 0; round < rounds(); ++round) {
    const PoolingShape shape = any_shape();
    SCOPED_TRACE(text(shape));
    max_agrees(any_values<float>(shape.x_size()), shape);
    max_agrees(any_values<device::Bf16>(shape.x_size()), shape);
  }
}

TEST_P(Pooling, maxima_see_na_ns_and_infinities) {
  for (int round = 0; round < rounds() / 3; ++round) {
    const PoolingShape shape = any_shape();
    SCOPED_TRACE(text(shape));
    auto x = any_values<float>(shape.x_size());
    for (float& value : x) {
      if (random()() % 8 == 0) value = NAN;
      if (random()() % 8 == 0) value = -std::numeric_limits<float>::infinity();
    }
    max_agrees(x, shape);
  }
}

TEST_P(Pooling, averages_and_their_gradients_agree_with_their_twins) {
  for (int round = 0; round < rounds(); ++round) {
    const PoolingShape shape = any_shape();
    SCOPED_TRACE(text(shape));
    average_agrees<float>(shape);
    average_agrees<device::Bf16>(shape);
  }
}

TEST_P(Pooling, global_averages_and_their_gradients_agree_with_their_twins) {
  for (int round = 0; round < rounds() / 2; ++round) {
    global_agrees<float>();
    global_agrees<device::Bf16>();
  }
}

/// The sum of all outputs, each times its dy, changes with x as the gradients say.
TEST(PoolingTwin, gradients_agree_with_differences) {
  std::mt19937_64 random(test::seed());
  auto stream = std::move(*device::Stream::create(device::Device::cpu()));
  PoolingShape shape;
  shape = {2, 6, 7, 3, 3, 2, 2, 1, 1, 1};
  const auto span = [](auto& values) { return device::Span(values.data(), values.size()); };
  // Far from each other, so that a step changes no maximum.
  std::vector<float> x(shape.x_size());
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i);
  std::shuffle(x.begin(), x.end(), random);
  std::vector<float> dy(shape.y_size());
  for (float& value : dy) value = std::normal_distribution<float>()(random);
  std::vector<float> y(dy.size()), dx(x.size());
  std::vector<std::uint32_t> indices(dy.size());
  for (const bool max : {true, false}) {
    const auto loss = [&] {
      if (max)
        reference::run(MaxPool<float>{.x = span(x), .y = span(y), .indices = span(indices), .shape = shape}, stream);
      if (!max) reference::run(AveragePool<float>{.x = span(x), .y = span(y), .shape = shape}, stream);
      EXPECT_TRUE(stream.synchronize());
      double sum = 0;
      for (std::size_t i = 0; i < y.size(); ++i) sum += double(y[i]) * double(dy[i]);
      return sum;
    };
    (void)loss();
    if (max)
      reference::run(MaxPoolBackward<float>{.dy = span(dy), .indices = span(indices), .dx = span(dx), .shape = shape},
                     stream);
    if (!max) reference::run(AveragePoolBackward<float>{.dy = span(dy), .dx = span(dx), .shape = shape}, stream);
    ASSERT_TRUE(stream.synchronize());
    for (int i = 0; i < 30; ++i) {
      const std::size_t at = random() % x.size();
      const float before = x[at];
      x[at] = before + 0.25F;
      const double above = loss();
      x[at] = before - 0.25F;
      const double difference = (above - loss()) / 0.5;
      x[at] = before;
      EXPECT_NEAR(difference, double(dx[at]), 2e-3) << (max ? "max" : "average") << " (seed " << test::seed() << ")";
    }
  }
}

TEST(PoolingDeathTest, refuses_what_does_not_fit) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  std::vector<float> values(4 * 4 * 3);
  const auto call = [&](const PoolingShape& shape) {
    auto stream = std::move(*device::Stream::create(device::Device::cpu()));
    kernels::run(AveragePool<float>{.x = device::Span<float>(values.data(), values.size()),
                                    .y = device::Span<float>(values.data(), 1),
                                    .shape = shape},
                 stream);
  };
  PoolingShape padding;
  padding = {1, 4, 4, 3, 2, 2, 1, 1, 2, 0};
  EXPECT_DEATH(call(padding), "padding is less than the kernel");
  PoolingShape kernel;
  kernel = {1, 4, 4, 3, 5, 2};
  EXPECT_DEATH(call(kernel), "fits in the padded input");
  PoolingShape small;
  small = {1, 4, 4, 3, 2, 2};
  EXPECT_DEATH(call(small), "spans fit the shape");
}

}  // namespace
}  // namespace dunnock::kernels
