// Reductions against their twins.
#include "dunnock/kernels/reduce.hpp"

#include <deque>
#include <limits>

#include "runners.hpp"

namespace dunnock::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr ReduceKind kAll[] = {ReduceKind::kSum, ReduceKind::kSumOfSquares, ReduceKind::kMean, ReduceKind::kMax};

class Reductions : public test::OnEachRunner {
 protected:
  template <class T>
  float reduced(ReduceKind kind, const std::vector<T>& x, std::size_t skip, bool twin) {
    device::Stream& on = twin ? twin_stream() : stream();
    auto xs = put(x, on);
    auto result = put(std::vector<float>{5}, on);
    auto space = put(std::vector<float>(reduce_workspace(x.size()) + 1, kNan), on);
    run_form(
        twin,
        Reduce<T>{.kind = kind, .x = xs.span().subspan(skip, x.size() - skip), .result = result, .workspace = space},
        on);
    return get(result.span(), on)[0];
  }
  template <class T>
  std::uint32_t flag(const std::vector<T>& x, bool twin) {
    device::Stream& on = twin ? twin_stream() : stream();
    auto xs = put(x, on);
    auto result = put(std::vector<std::uint32_t>{5}, on);
    auto space = put(std::vector<float>(reduce_workspace(x.size()) + 1, kNan), on);
    run_form(twin, AnyNotFinite<T>{.x = xs, .flag = result, .workspace = space}, on);
    return get(result.span(), on)[0];
  }

  template <class T>
  void agrees() {
    for (int round = 0; round < 8; ++round) {
      const std::size_t skip = random()() % 2;
      const std::size_t count = round == 0 ? 0 : any_size(emulated() ? 40000 : 300000);
      const auto x = normal<T>(count + skip, 1, 0.1F);
      for (const ReduceKind kind : kAll) {
        const float is = reduced(kind, x, skip, false);
        const float should = reduced(kind, x, skip, true);
        if (std::isnan(should)) {
          EXPECT_TRUE(std::isnan(is));  // The mean of nothing.
        } else if (std::isinf(should) || kind == ReduceKind::kMax) {
          EXPECT_EQ(is, should);
        } else {
          EXPECT_NEAR(is, should, 2e-6 * static_cast<double>(count) * (kind == ReduceKind::kMean ? 0 : 1) + 1e-5);
        }
        EXPECT_EQ(std::bit_cast<std::uint32_t>(is), std::bit_cast<std::uint32_t>(reduced(kind, x, skip, false)));
      }
    }
  }

  template <class T>
  void norm_agrees() {
    for (int round = 0; round < 4; ++round) {
      std::vector<std::vector<T>> values(any_size(7));
      for (auto& one : values)
        one = normal<T>(random()() % 3 == 0 ? random()() % 3 : any_size(emulated() ? 20000 : 90000));
      const auto run = [&](device::Stream& on, bool twin) {
        std::deque<device::Buffer<T>> buffers;
        std::vector<ReduceTensor<T>> table;
        for (const auto& one : values) {
          buffers.push_back(put(one, on));
          table.push_back({.values = buffers.back().span().device_data(), .size = one.size()});
        }
        const std::size_t chunks = lay_out(std::span(table));
        auto there = put(table, on);
        auto norm = put(std::vector<float>{0}, on);
        auto factor = put(std::vector<float>{0}, on);
        auto space = put(std::vector<float>(chunks + 1), on);
        run_form(twin, GradientNorm<T>{.table = {there, chunks}, .norm = norm, .workspace = space}, on);
        run_form(twin, ClipFactor{.norm = norm, .norm_max = 50, .factor = factor}, on);
        return std::vector{get(norm.span(), on)[0], get(factor.span(), on)[0]};
      };
      test::expect_close(run(stream(), false), run(twin_stream(), true), 1e-5, 0, "norm and factor");
    }
  }

  template <class T>
  void argmax_agrees() {
    for (int round = 0; round < 10; ++round) {
      constexpr std::size_t kColumns[] = {1, 10, 64, 1000, 1024, 1027, 5000};
      const ReduceRows shape{.rows = any_size(emulated() ? 20 : 100),
                             .columns = kColumns[random()() % std::size(kColumns)]};
      auto x = normal<T>(shape.rows * shape.columns);
      for (T& value : x) value = T(std::round(static_cast<float>(value) * 4));  // Many are equal.
      if (round % 3 == 0) x[random()() % x.size()] = T(kNan);
      if (round % 3 == 1) std::fill_n(x.begin(), shape.columns, T(-kInfinity));
      const auto run = [&](device::Stream& on, bool twin) {
        auto xs = put(x, on);
        auto indices = put(std::vector<std::int32_t>(shape.rows), on);
        auto values = put(std::vector<float>(shape.rows), on);
        run_form(twin, ArgmaxRows<T>{.x = xs, .indices = indices, .values = values, .shape = shape}, on);
        std::vector<std::uint32_t> bits;
        for (const float value : get(values.span(), on))
          bits.push_back(std::isnan(value) ? 1 : std::bit_cast<std::uint32_t>(value + 0.0F));
        return std::pair{get(indices.span(), on), bits};
      };
      EXPECT_EQ(run(stream(), false), run(twin_stream(), true))
          << shape.rows << " x " << shape.columns << ", seed " << test::seed();
    }
  }
};
DUNNOCK_ON_EACH_RUNNER(Reductions);

TEST_P(Reductions, of_floats_agrees_with_its_twin_and_with_itself) { agrees<float>(); }
TEST_P(Reductions, of_bf16_agrees_with_its_twin_and_with_itself) { agrees<device::Bf16>(); }
TEST_P(Reductions, norms_of_float_tensors_agree_with_their_twin) { norm_agrees<float>(); }
TEST_P(Reductions, norms_of_bf16_tensors_agree_with_their_twin) { norm_agrees<device::Bf16>(); }
TEST_P(Reductions, argmax_of_floats_agrees_with_its_twin) { argmax_agrees<float>(); }
TEST_P(Reductions, argmax_of_bf16_agrees_with_its_twin) { argmax_agrees<device::Bf16>(); }
TEST_P(Reductions, finds_the_one_value_that_is_not_finite) {
  for (const std::size_t count : {std::size_t{1}, std::size_t{33}, std::size_t{20001}}) {
    for (const float bad : {kNan, kInfinity, -kInfinity}) {
      auto x = normal<device::Bf16>(count);
      EXPECT_EQ(flag(x, false), 0U);
      x[random()() % count] = device::Bf16(bad);
      EXPECT_EQ(flag(x, false), 1U);
      EXPECT_EQ(flag(x, true), 1U);
      EXPECT_TRUE(std::isnan(reduced(ReduceKind::kMax, x, 0, false)) == std::isnan(bad));
    }
  }
  EXPECT_EQ(flag(std::vector<float>{3e38F}, false), 0U);
}
TEST_P(Reductions, clip_factor_is_at_most_one_and_keeps_a_nan) {
  for (const auto& [norm, factor] :
       {std::pair{0.0F, 1.0F}, {2.0F, 0.5F}, {0.5F, 1.0F}, {kInfinity, 0.0F}, {kNan, kNan}}) {
    auto value = put(std::vector<float>{norm}, stream());
    run_form(false, ClipFactor{.norm = value, .norm_max = 1, .factor = value}, stream());
    const float is = get(value.span(), stream())[0];
    if (std::isnan(factor))
      EXPECT_TRUE(std::isnan(is));
    else
      EXPECT_EQ(is, factor);
  }
}
TEST(ReduceDeathTest, spans_that_do_not_fit_are_refused) {
  auto stream = std::move(*device::Stream::create(device::Device::cpu()));
  auto x = std::move(*device::Buffer<float>::create(8, stream));
  auto one = std::move(*device::Buffer<float>::create(1, stream));
  auto index = std::move(*device::Buffer<std::int32_t>::create(1, stream));
  EXPECT_DEATH(kernels::run(Reduce<float>{.kind = ReduceKind::kSum, .x = x, .result = x, .workspace = one}, stream),
               "spans fit the shape");
  EXPECT_DEATH(kernels::run(Reduce<float>{.kind = ReduceKind::kSum, .x = x, .result = one, .workspace = {}}, stream),
               "workspace");
  EXPECT_DEATH(kernels::run(GradientNorm<float>{.table = {{}, 2}, .norm = one, .workspace = one}, stream), "workspace");
  EXPECT_DEATH(
      kernels::run(ArgmaxRows<float>{.x = x, .indices = index, .values = {}, .shape = {.rows = 2, .columns = 4}},
                   stream),
      "spans fit the shape");
}

}  // namespace
}  // namespace dunnock::kernels
