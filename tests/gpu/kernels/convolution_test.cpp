// Convolutions against their twins, and the twins' gradients against differences.
#include "dunnock/kernels/convolution.hpp"

#include <sstream>
#include <thread>

#include "convolution_parts.hpp"
#include "cpu/convolution_cpu.hpp"
#include "plan_cache.hpp"
#include "runners.hpp"

namespace dunnock::kernels {
namespace {

std::string text(const ConvolutionShape& s) {
  std::ostringstream out;
  out << s.batch << " of " << s.height << "x" << s.width << "x" << s.in_channels << " -> " << s.out_channels
      << ", kernel " << s.kernel_height << "x" << s.kernel_width << ", stride " << s.stride_height << "x"
      << s.stride_width << ", padding " << s.padding_height << "x" << s.padding_width << ", dilation "
      << s.dilation_height << "x" << s.dilation_width << ", groups " << s.groups;
  return out.str();
}

/// Who convolves: the public functions, or one of the parts that they choose from.
enum class Form : std::uint8_t { kPublic, kDirect, kEmulated, kTwin };

template <class T>
struct Values {
  std::vector<T> x, weight, bias, dy, dweight, dbias;  // bias and dbias may be empty
};
template <class T>
struct Results {
  std::vector<T> y, dx, dweight, dbias;
};

class Convolutions : public test::OnEachRunner {
 protected:
  ConvolutionShape any_shape() {
    const auto in = [this](std::size_t first, std::size_t last) { return first + random()() % (last - first + 1); };
    ConvolutionShape s;
    do {
      s = {};
      s.batch = in(1, 3);
      s.height = in(1, emulated() ? 9 : 20);
      s.width = in(1, emulated() ? 9 : 20);
      s.kernel_height = in(1, 5);
      s.kernel_width = in(1, 5);
      if (in(0, 3) == 0) s.kernel_height = s.kernel_width = 1;
      s.stride_height = in(1, 3);
      s.stride_width = in(1, 3);
      s.padding_height = in(0, 4);
      s.padding_width = in(0, 4);
      s.dilation_height = in(1, 2);
      s.dilation_width = in(1, 2);
      switch (in(0, 3)) {
        case 0:  // depthwise
          s.groups = s.in_channels = s.out_channels = in(0, 1) == 0 ? 8 * in(1, 9) : in(2, 40);
          break;
        case 1:
          s.groups = in(2, 4);
          s.in_channels = s.groups * in(1, 9);
          s.out_channels = s.groups * in(1, 20);
          break;
        default:
          s.in_channels = in(0, 1) == 0 ? 16 * in(1, 3) : in(1, 20);
          s.out_channels = in(0, 1) == 0 ? 16 * in(1, 5) : in(1, 70);
      }
    } while (!s.valid());
    return s;
  }

  template <class T>
  Values<T> any_values(const ConvolutionShape& s) {
    Values<T> values;
    values.x = normal<T>(s.x_size());
    values.weight = normal<T>(s.weight_size());
    values.dy = normal<T>(s.y_size());
    values.dweight = normal<T>(s.weight_size());
    if (random()() % 2 == 0) values.bias = values.dbias = normal<T>(s.out_channels);
    return values;
  }

  static std::size_t workspace_of(Form form, ConvolutionPass pass, const ConvolutionShape& s, bool f32,
                                  device::Stream& on) {
    if (form == Form::kTwin) return 0;
    if (form == Form::kEmulated) return detail::emulated::convolution_workspace(pass, s, 4);
    if (form == Form::kDirect) {
      return f32 ? detail::direct::convolution_workspace<float>(pass, s)
                 : detail::direct::convolution_workspace<device::Bf16>(pass, s);
    }
    return f32 ? convolution_workspace<float>(pass, s, on.device())
               : convolution_workspace<device::Bf16>(pass, s, on.device());
  }

  template <class T>
  Results<T> run(Form form, const Values<T>& values, bool relu, bool adds, const ConvolutionShape& s,
                 device::Stream& on) {
    auto x = put(values.x, on);
    auto weight = put(values.weight, on);
    auto bias = put(values.bias, on);
    auto dy = put(values.dy, on);
    auto y = put(std::vector<T>(s.y_size(), T(NAN)), on);
    auto dx = put(std::vector<T>(s.x_size(), T(NAN)), on);
    auto dweight = put(values.dweight, on);
    auto dbias = put(values.dbias, on);
    const device::Span<const T> biases = values.bias.empty() ? device::Span<const T>() : bias.span();
    const device::Span<T> dbiases = values.dbias.empty() ? device::Span<T>() : dbias.span();
    for (const ConvolutionPass pass :
         {ConvolutionPass::kForward, ConvolutionPass::kInputGradient, ConvolutionPass::kWeightGradient}) {
      // The launchers are not called then.
      if (s.batch == 0 && pass != ConvolutionPass::kWeightGradient) continue;
      auto space =
          put(std::vector<std::byte>(workspace_of(form, pass, s, std::is_same_v<T, float>, on), std::byte{0xff}), on);
      const auto issue = [&](const auto& call) {
        if (form == Form::kPublic) kernels::run(call, on);
        if (form == Form::kTwin) reference::run(call, on);
        if (form == Form::kEmulated) detail::emulated::run(call, on);
      };
      if (pass == ConvolutionPass::kForward)
        issue(Convolution<T>{
            .x = x, .weight = weight, .bias = biases, .y = y, .relu = relu, .shape = s, .workspace = space});
      if (pass == ConvolutionPass::kInputGradient)
        issue(ConvolutionInputGradient<T>{.dy = dy, .weight = weight, .dx = dx, .shape = s, .workspace = space});
      if (pass == ConvolutionPass::kWeightGradient)
        issue(ConvolutionWeightGradient<T>{
            .dy = dy, .x = x, .dweight = dweight, .dbias = dbiases, .adds = adds, .shape = s, .workspace = space});
      if (form == Form::kDirect) {
        detail::ConvolutionData<T> data{x.span().device_data(),
                                        weight.span().device_data(),
                                        biases.device_data(),
                                        y.span().device_data(),
                                        dy.span().device_data(),
                                        dx.span().device_data(),
                                        dweight.span().device_data(),
                                        dbiases.device_data(),
                                        relu,
                                        adds,
                                        space.span().device_data()};
        on.run("direct", [=] { return detail::direct::convolution<T>(pass, data, s), Status{}; });
      }
      EXPECT_TRUE(on.synchronize());
    }
    return {get(y.span(), on), get(dx.span(), on), get(dweight.span(), on), get(dbias.span(), on)};
  }

  template <class T>
  void agrees(Form form, const ConvolutionShape& shape) {
    SCOPED_TRACE(text(shape));
    const Values<T> values = any_values<T>(shape);
    const bool relu = random()() % 2 == 0;
    const bool adds = random()() % 2 == 0;
    const Results<T> is = run(form, values, relu, adds, shape, stream());
    const Results<T> should = run(Form::kTwin, values, relu, adds, shape, twin_stream());
    // Sums of `count` products of normal values, of which many are rounded: their size is about sqrt(count).
    const auto absolute = [](std::size_t count) { return 4e-6 * std::sqrt(double(count)); };
    const std::size_t taps = shape.kernel_height * shape.kernel_width;
    const std::size_t pixels = shape.batch * shape.out_height() * shape.out_width();
    test::expect_close(is.y, should.y, test::kRounding<T>, absolute(taps * shape.in_channels), "y");
    test::expect_close(is.dx, should.dx, test::kRounding<T>, absolute(taps * shape.out_channels), "dx");
    test::expect_close(is.dweight, should.dweight, test::kRounding<T>, absolute(pixels + 1), "dweight");
    test::expect_close(is.dbias, should.dbias, test::kRounding<T>, absolute(pixels + 1), "dbias");
  }

  template <class T>
  void all_agree(Form form) {
    const int rounds = emulated() ? 12 : 60;
    for (int round = 0; round < rounds && !HasFatalFailure(); ++round) agrees<T>(form, any_shape());
  }
  [[nodiscard]] static Form form() { return emulated() ? Form::kEmulated : Form::kPublic; }
};
DUNNOCK_ON_EACH_RUNNER(Convolutions);

TEST_P(Convolutions, of_floats_agree_with_their_twins) { all_agree<float>(form()); }
TEST_P(Convolutions, of_bf16_agree_with_their_twins) { all_agree<device::Bf16>(form()); }

TEST_P(Convolutions, without_a_library_agree_with_their_twins) {
  if (GetParam() != test::Runner::kCpu) GTEST_SKIP() << "the CPU's own loops";
  all_agree<float>(Form::kDirect);
  all_agree<device::Bf16>(Form::kDirect);
}

TEST_P(Convolutions, at_the_edges_agree_with_their_twins) {
  ConvolutionShape larger_kernel;
  larger_kernel = {1, 2, 3, 4, 5, 5, 6};
  larger_kernel.padding_height = larger_kernel.padding_width = 3;
  ConvolutionShape only_padding;  // The outer outputs see nothing but padding.
  only_padding = {1, 3, 3, 2, 3, 1, 1};
  only_padding.padding_height = only_padding.padding_width = 2;
  ConvolutionShape unused;  // The last rows and columns reach no output.
  unused = {2, 8, 9, 3, 5, 2, 2, 3, 4};
  ConvolutionShape many_depthwise;
  many_depthwise = {1, 5, 6, 264, 264, 3, 3};
  many_depthwise.groups = 264;
  many_depthwise.padding_height = 1;
  ConvolutionShape one_each;
  one_each = {1, 1, 1, 1, 1};
  for (const ConvolutionShape& shape : {larger_kernel, only_padding, unused, many_depthwise, one_each}) {
    agrees<float>(form(), shape);
    agrees<device::Bf16>(form(), shape);
    if (GetParam() == test::Runner::kCpu) agrees<float>(Form::kDirect, shape);
  }
}

TEST_P(Convolutions, give_the_same_bits_again) {
  for (int round = 0; round < (emulated() ? 2 : 8); ++round) {
    const ConvolutionShape shape = any_shape();
    SCOPED_TRACE(text(shape));
    const auto values = any_values<float>(shape);
    const auto one = run(form(), values, true, true, shape, stream());
    const auto other = run(form(), values, true, true, shape, stream());
    EXPECT_EQ(one.y, other.y);
    EXPECT_EQ(one.dx, other.dx);
    EXPECT_EQ(one.dweight, other.dweight);
    EXPECT_EQ(one.dbias, other.dbias);
  }
}

TEST_P(Convolutions, of_no_images_give_gradients_of_zero) {
  ConvolutionShape shape;
  shape = {0, 4, 4, 3, 5, 3, 3};
  Values<float> values = any_values<float>(shape);
  values.dbias = normal<float>(5);
  values.bias = values.dbias;
  const auto set = run(form(), values, false, false, shape, stream());
  EXPECT_EQ(set.dweight, std::vector<float>(shape.weight_size()));
  EXPECT_EQ(set.dbias, std::vector<float>(5));
}

TEST_P(Convolutions, fit_in_their_workspace_with_any_number_of_threads) {
  if (GetParam() != test::Runner::kCpu) GTEST_SKIP() << "threads are the CPU's";
  const ConvolutionShape shape = any_shape();
  SCOPED_TRACE(text(shape));
  const auto values = any_values<float>(shape);
  const auto should = run(Form::kTwin, values, true, false, shape, twin_stream());
  for (const unsigned threads : {1U, 2U, 3U, 64U}) {
    auto other = std::move(*device::Stream::create(device::Device::cpu(), {.threads = threads}));
    const auto is = run(Form::kPublic, values, true, false, shape, other);
    test::expect_close(is.y, should.y, 1e-5, 1e-4, "y");
    test::expect_close(is.dx, should.dx, 1e-5, 1e-4, "dx");
    test::expect_close(is.dweight, should.dweight, 1e-5, 1e-4, "dweight");
  }
}

TEST_P(Convolutions, may_be_issued_by_many_threads_at_once) {
  if (emulated()) GTEST_SKIP() << "the emulated device is one thread's";
  ConvolutionShape shape;
  shape = {2, 9, 9, 16, 32, 3, 3};
  const auto values = any_values<float>(shape);
  const auto should = run(Form::kTwin, values, false, false, shape, twin_stream());
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&] {
      auto mine = std::move(*device::Stream::create(stream().device()));
      for (int round = 0; round < 5; ++round)
        test::expect_close(run(Form::kPublic, values, false, false, shape, mine).y, should.y, 1e-5, 1e-4, "y");
    });
  }
  for (std::thread& thread : threads) thread.join();
}

/// The sum of all outputs, each times its dy, changes with x and the weights as the gradients say.
TEST(ConvolutionTwin, gradients_agree_with_differences) {
  std::mt19937_64 random(test::seed());
  auto stream = std::move(*device::Stream::create(device::Device::cpu()));
  ConvolutionShape shape;
  shape = {2, 5, 6, 4, 6, 3, 2, 2, 1, 1, 1, 1, 2, 2};
  ASSERT_TRUE(shape.valid());
  const auto normal = [&](std::size_t count) {
    std::vector<float> values(count);
    for (float& value : values) value = std::normal_distribution<float>()(random);
    return values;
  };
  std::vector<float> x = normal(shape.x_size());
  std::vector<float> weight = normal(shape.weight_size());
  std::vector<float> bias = normal(shape.out_channels);
  std::vector<float> dy = normal(shape.y_size());
  const auto span = [](std::vector<float>& values) { return device::Span<float>(values.data(), values.size()); };
  const auto loss = [&] {
    std::vector<float> y(shape.y_size());
    reference::run(Convolution<float>{.x = span(x),
                                      .weight = span(weight),
                                      .bias = span(bias),
                                      .y = span(y),
                                      .relu = false,
                                      .shape = shape,
                                      .workspace = {}},
                   stream);
    EXPECT_TRUE(stream.synchronize());
    double sum = 0;
    for (std::size_t i = 0; i < y.size(); ++i) sum += double(y[i]) * double(dy[i]);
    return sum;
  };
  std::vector<float> dx(x.size()), dweight(weight.size()), dbias(bias.size());
  reference::run(
      ConvolutionInputGradient<float>{
          .dy = span(dy), .weight = span(weight), .dx = span(dx), .shape = shape, .workspace = {}},
      stream);
  reference::run(ConvolutionWeightGradient<float>{.dy = span(dy),
                                                  .x = span(x),
                                                  .dweight = span(dweight),
                                                  .dbias = span(dbias),
                                                  .adds = false,
                                                  .shape = shape,
                                                  .workspace = {}},
                 stream);
  ASSERT_TRUE(stream.synchronize());
  const auto check = [&](std::vector<float>& values, const std::vector<float>& gradient, const char* what) {
    for (int i = 0; i < 12; ++i) {
      const std::size_t at = random() % values.size();
      const float before = values[at];
      constexpr float kStep = 0.125F;  // The sum is linear in each: no step is too large.
      values[at] = before + kStep;
      const double above = loss();
      values[at] = before - kStep;
      const double difference = (above - loss()) / (2.0 * double(kStep));
      values[at] = before;
      EXPECT_NEAR(difference, double(gradient[at]), 1e-3) << what << " [" << at << "] (seed " << test::seed() << ")";
    }
  };
  check(x, dx, "dx");
  check(weight, dweight, "dweight");
  check(bias, dbias, "dbias");
}

TEST(ConvolutionDeathTest, refuses_what_does_not_fit) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  ConvolutionShape shape;
  shape = {1, 4, 4, 3, 4, 3, 3};
  std::vector<float> x(shape.x_size()), weight(shape.weight_size()), y(shape.y_size());
  const auto call = [&](const ConvolutionShape& with, std::size_t missing) {
    auto stream = std::move(*device::Stream::create(device::Device::cpu()));
    kernels::run(Convolution<float>{.x = device::Span<float>(x.data(), x.size() - missing),
                                    .weight = device::Span<float>(weight.data(), weight.size()),
                                    .bias = {},
                                    .y = device::Span<float>(y.data(), y.size()),
                                    .relu = false,
                                    .shape = with,
                                    .workspace = {}},
                 stream);
  };
  ConvolutionShape groups = shape;
  groups.groups = 2;
  EXPECT_DEATH(call(groups, 0), "divided among the groups");
  ConvolutionShape kernel = shape;
  kernel.kernel_height = 5;
  EXPECT_DEATH(call(kernel, 0), "fits in the padded input");
  EXPECT_DEATH(call(shape, 1), "spans fit the shape");
  EXPECT_DEATH(call(shape, 0), "the workspace is large enough");
}

TEST(PlanCache, keeps_a_bounded_number_and_forgets_the_longest_unused) {
  detail::PlanCache<std::size_t, std::size_t> cache;
  int made = 0;
  const auto get = [&](std::size_t key) {
    return *cache.get(key, [&] { return ++made, std::make_shared<const std::size_t>(key * 2); });
  };
  constexpr std::size_t kMax = decltype(cache)::kPlansMax;
  for (std::size_t key = 0; key < kMax; ++key) EXPECT_EQ(get(key), key * 2);
  EXPECT_EQ(get(0), 0U);  // Used again: 1 is the longest unused now.
  EXPECT_EQ(get(kMax), kMax * 2);
  EXPECT_EQ(cache.size(), kMax);
  EXPECT_EQ(made, static_cast<int>(kMax) + 1);
  get(0);
  EXPECT_EQ(made, static_cast<int>(kMax) + 1);
  get(1);
  EXPECT_EQ(made, static_cast<int>(kMax) + 2);
}

}  // namespace
}  // namespace dunnock::kernels
