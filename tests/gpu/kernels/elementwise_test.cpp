// Sums, casts and biases against their twins.
#include "dunnock/kernels/elementwise.hpp"

#include "elementwise_parts.hpp"
#include "runners.hpp"

namespace dunnock::kernels {
namespace {

class Elementwise : public test::OnEachRunner {
 protected:
  template <class T, class Other>
  void values_agree() {
    for (int round = 0; round < 8; ++round) {
      const std::size_t count = any_size(emulated() ? 5000 : 100000);
      const std::size_t skip = random()() % 2;
      SCOPED_TRACE(std::to_string(count) + " from " + std::to_string(skip));
      const auto a = normal<T>(count + skip);
      const auto b = normal<T>(count + skip);
      const auto run = [&](device::Stream& on, bool twin) {
        auto as = put(a, on);
        auto bs = put(b, on);
        auto others = put(std::vector<Other>(a.size()), on);
        auto filled = put(a, on);
        auto sums = put(a, on);
        auto slopes = put(a, on);
        const auto part = [&](auto& whole) { return whole.span().subspan(skip, count); };
        run_form(twin, AddScaled<T>{.a = part(as), .b = part(bs), .factor = 0.7F, .y = part(as)}, on);
        run_form(twin, AddRelu<T>{.a = part(as), .b = part(bs), .y = part(sums)}, on);
        run_form(twin, AddReluBackward<T>{.a = part(as), .b = part(bs), .at = part(sums), .y = part(slopes)}, on);
        run_form(twin, Scale<T>{.x = part(bs), .factor = -3, .y = part(bs)}, on);
        run_form(twin, Cast<Other, T>{.x = part(as), .y = part(others)}, on);
        run_form(twin, Fill<T>{.y = part(filled), .value = 0.3F}, on);
        auto all = get(as.span(), on);
        const auto others_there = get(others.span(), on);
        for (const auto& more :
             {get(bs.span(), on), get(filled.span(), on), get(sums.span(), on), get(slopes.span(), on)})
          all.insert(all.end(), more.begin(), more.end());
        return std::pair{all, others_there};
      };
      const auto [is, is_other] = run(stream(), false);
      const auto [should, should_other] = run(twin_stream(), true);
      test::expect_close(is, should, test::kRounding<T>, 1e-6, "sums, products and fills");
      test::expect_close(is_other, should_other, test::kRounding<device::Bf16>, 1e-6, "casts");
    }
  }

  template <class T>
  void moved_columns_agree() {
    for (int round = 0; round < 12; ++round) {
      ColumnsShape shape{.rows = any_size(emulated() ? 60 : 500), .columns = any_size(70)};
      if (round % 3 == 0) shape.columns = 8 * any_size(9);
      const std::size_t unit = round % 2 == 0 ? 8 : 1;
      shape.from_stride = shape.columns + unit * (random()() % 5);
      shape.to_stride = shape.columns + unit * (random()() % 5);
      const bool adds = random()() % 2 == 0;
      SCOPED_TRACE(std::to_string(shape.rows) + " x " + std::to_string(shape.columns) + (adds ? ", added" : ""));
      const auto from = normal<T>(shape.rows * shape.from_stride);
      const auto to = normal<T>(shape.rows * shape.to_stride);
      const auto run = [&](device::Stream& on, bool twin) {
        auto source = put(from, on);
        auto target = put(to, on);
        run_form(twin, CopyColumns<T>{.from = source, .to = target, .adds = adds, .shape = shape}, on);
        return get(target.span(), on);
      };
      EXPECT_EQ(run(stream(), false), run(twin_stream(), true)) << "seed " << test::seed();
    }
  }

  template <class T>
  void columns_agree() {
    for (int round = 0; round < 10; ++round) {
      constexpr std::size_t kColumns[] = {1, 10, 64, 100, 257, 768, 3000};
      const RowMatrix shape{.rows = any_size(emulated() ? 90 : 500),
                            .columns = kColumns[random()() % std::size(kColumns)]};
      SCOPED_TRACE(std::to_string(shape.rows) + " x " + std::to_string(shape.columns));
      const bool adds = random()() % 2 == 0;
      const auto x = normal<T>(shape.rows * shape.columns);
      const auto bias = normal<T>(shape.columns);
      const auto run = [&](device::Stream& on, bool twin, std::vector<T>& sums) {
        auto xs = put(x, on);
        auto there = put(bias, on);
        auto space = put(std::vector<float>(std::max(column_sums_workspace(shape, on.device()),
                                                     detail::emulated::column_sums_workspace(shape, 4))),
                         on);
        run_form(twin, BiasAdd<T>{.x = xs, .bias = there, .y = xs, .shape = shape}, on);
        run_form(twin, ColumnSums<T>{.x = xs, .sums = there, .adds = adds, .shape = shape, .workspace = space}, on);
        sums = get(there.span(), on);
        return get(xs.span(), on);
      };
      std::vector<T> sums, twin_sums, again;
      const auto y = run(stream(), false, sums);
      const auto twin_y = run(twin_stream(), true, twin_sums);
      (void)run(stream(), false, again);
      test::expect_close(y, twin_y, test::kRounding<T>, 1e-6, "x + bias");
      test::expect_close(sums, twin_sums, test::kRounding<T>, std::is_same_v<T, float> ? 2e-3 : 0.1, "sums of columns");
      EXPECT_TRUE(std::memcmp(sums.data(), again.data(), sums.size() * sizeof(T)) == 0) << "the same bits in each run";
    }
  }
};
DUNNOCK_ON_EACH_RUNNER(Elementwise);

TEST_P(Elementwise, values_of_floats_agree_with_their_twins) { values_agree<float, device::Bf16>(); }
TEST_P(Elementwise, values_of_bf16_agree_with_their_twins) { values_agree<device::Bf16, float>(); }
TEST_P(Elementwise, biases_of_floats_agree_with_their_twins) { columns_agree<float>(); }
TEST_P(Elementwise, biases_of_bf16_agree_with_their_twins) { columns_agree<device::Bf16>(); }
TEST_P(Elementwise, moved_columns_are_those_of_the_twin) {
  moved_columns_agree<float>();
  moved_columns_agree<device::Bf16>();
}
TEST(ElementwiseDeathTest, spans_that_do_not_fit_are_refused) {
  auto stream = std::move(*device::Stream::create(device::Device::cpu()));
  auto x = std::move(*device::Buffer<float>::create(8, stream));
  auto y = std::move(*device::Buffer<float>::create(7, stream));
  auto half = std::move(*device::Buffer<device::Bf16>::create(7, stream));
  EXPECT_DEATH(kernels::run(AddScaled<float>{.a = x, .b = y, .factor = 1, .y = x}, stream), "spans fit the shape");
  EXPECT_DEATH(kernels::run(AddRelu<float>{.a = x, .b = y, .y = x}, stream), "spans fit the shape");
  EXPECT_DEATH(kernels::run(AddReluBackward<float>{.a = x, .b = x, .at = y, .y = x}, stream), "spans fit the shape");
  EXPECT_DEATH(
      kernels::run(
          CopyColumns<float>{
              .from = x, .to = y, .adds = false, .shape = {.rows = 2, .columns = 3, .from_stride = 4, .to_stride = 5}},
          stream),
      "spans fit the shape");
  EXPECT_DEATH(
      kernels::run(
          CopyColumns<float>{
              .from = x, .to = y, .adds = false, .shape = {.rows = 2, .columns = 3, .from_stride = 2, .to_stride = 3}},
          stream),
      "a row ends before the next begins");
  EXPECT_DEATH(kernels::run(Scale<float>{.x = x, .factor = 1, .y = y}, stream), "spans fit the shape");
  EXPECT_DEATH((kernels::run(Cast<device::Bf16, float>{.x = x, .y = half}, stream)), "spans fit the shape");
  EXPECT_DEATH(kernels::run(BiasAdd<float>{.x = x, .bias = y, .y = x, .shape = {.rows = 2, .columns = 4}}, stream),
               "spans fit the shape");
  EXPECT_DEATH(
      kernels::run(
          ColumnSums<float>{.x = x, .sums = y, .adds = false, .shape = {.rows = 2, .columns = 4}, .workspace = y},
          stream),
      "spans fit the shape");
  EXPECT_DEATH(
      kernels::run(
          ColumnSums<float>{.x = x, .sums = x, .adds = false, .shape = {.rows = 1, .columns = 8}, .workspace = y},
          stream),
      "workspace");
}

}  // namespace
}  // namespace dunnock::kernels
