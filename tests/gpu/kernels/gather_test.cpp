// Gather and scatter against their twins.
#include "dunnock/kernels/gather.hpp"

#include <algorithm>
#include <numeric>

#include "gather_parts.hpp"
#include "runners.hpp"

namespace dunnock::kernels {
namespace {

class Gathers : public test::OnEachRunner {
 protected:
  /// Different ones, some of them outside, in any order.
  std::vector<std::int32_t> any_indices(std::size_t extent) {
    std::vector<std::int32_t> all(extent);
    std::iota(all.begin(), all.end(), 0);
    all.push_back(-1);
    all.push_back(static_cast<std::int32_t>(extent));
    all.push_back(std::numeric_limits<std::int32_t>::min());
    std::shuffle(all.begin(), all.end(), random());
    all.resize(random()() % (all.size() + 1));
    return all;
  }

  template <class T>
  void agrees(bool of_rows, detail::Move move) {
    const bool gathers = move == detail::Move::kGather;
    for (int round = 0; round < 12; ++round) {
      GatherShape shape{.rows = any_size(60), .columns = any_size(40)};
      if (round % 3 == 0) shape.columns = 16 * any_size(6);
      const auto index = any_indices(of_rows ? shape.rows : shape.columns);
      const std::size_t y_rows = of_rows ? index.size() : shape.rows;
      const std::size_t y_columns = of_rows ? shape.columns : index.size();
      if (round % 2 == 0) {
        shape.x_stride = shape.columns + random()() % 9;
        shape.y_stride = y_columns + random()() % 9;
      }
      SCOPED_TRACE(std::to_string(shape.rows) + " x " + std::to_string(shape.columns) + ", " +
                   std::to_string(index.size()) + " indices");
      const auto x = normal<T>(shape.rows * (shape.x_stride == 0 ? shape.columns : shape.x_stride));
      const auto y = normal<T>(y_rows * (shape.y_stride == 0 ? y_columns : shape.y_stride));
      const auto run = [&](bool twin) {
        device::Stream& on = twin ? twin_stream() : stream();
        auto large = put(x, on);
        auto small = put(y, on);
        auto where = put(index, on);
        const bool adds = move == detail::Move::kScatterAdd;
        GatherShape full = shape;
        if (full.x_stride == 0) full.x_stride = shape.columns;
        if (full.y_stride == 0) full.y_stride = y_columns;
        // CUDA's form alone gets what its caller has checked: strides that are set, and something to move.
        const bool bare = emulated() && !twin;
        if (bare && index.empty()) return gathers ? get(small.span(), on) : get(large.span(), on);
        const GatherShape& as = bare ? full : shape;
        if (gathers && of_rows) run_form(twin, GatherRows<T>{.x = large, .index = where, .y = small, .shape = as}, on);
        if (gathers && !of_rows)
          run_form(twin, GatherColumns<T>{.x = large, .index = where, .y = small, .shape = as}, on);
        if (!gathers && of_rows)
          run_form(twin, ScatterRows<T>{.y = small, .index = where, .x = large, .adds = adds, .shape = as}, on);
        if (!gathers && !of_rows)
          run_form(twin, ScatterColumns<T>{.y = small, .index = where, .x = large, .adds = adds, .shape = as}, on);
        return gathers ? get(small.span(), on) : get(large.span(), on);
      };
      EXPECT_EQ(run(false), run(true)) << "seed " << test::seed();
    }
  }
};
DUNNOCK_ON_EACH_RUNNER(Gathers);

TEST_P(Gathers, gathered_rows_are_those_of_the_twin) {
  agrees<float>(true, detail::Move::kGather);
  agrees<device::Bf16>(true, detail::Move::kGather);
}
TEST_P(Gathers, gathered_columns_are_those_of_the_twin) {
  agrees<float>(false, detail::Move::kGather);
  agrees<device::Bf16>(false, detail::Move::kGather);
}
TEST_P(Gathers, scattered_rows_are_those_of_the_twin) {
  agrees<float>(true, detail::Move::kScatter);
  agrees<device::Bf16>(true, detail::Move::kScatter);
}
TEST_P(Gathers, scattered_columns_are_those_of_the_twin) {
  agrees<float>(false, detail::Move::kScatter);
  agrees<device::Bf16>(false, detail::Move::kScatter);
}
TEST_P(Gathers, rows_that_are_added_are_those_of_the_twin) {
  agrees<float>(true, detail::Move::kScatterAdd);
  agrees<device::Bf16>(true, detail::Move::kScatterAdd);
}
TEST_P(Gathers, columns_that_are_added_are_those_of_the_twin) {
  agrees<float>(false, detail::Move::kScatterAdd);
  agrees<device::Bf16>(false, detail::Move::kScatterAdd);
}

TEST(GatherDeathTest, needs_spans_that_fit) {
  auto stream = std::move(*device::Stream::create(device::Device::cpu()));
  auto x = std::move(*device::Buffer<float>::create(12, stream));
  auto y = std::move(*device::Buffer<float>::create(8, stream));
  auto index = std::move(*device::Buffer<std::int32_t>::create(3, stream));
  EXPECT_DEATH(
      kernels::run(GatherRows<float>{.x = x, .index = index, .y = y, .shape = {.rows = 3, .columns = 4}}, stream),
      "spans fit the shape");
  EXPECT_DEATH(
      kernels::run(GatherRows<float>{.x = x, .index = index, .y = x, .shape = {.rows = 4, .columns = 4}}, stream),
      "spans fit the shape");
  EXPECT_DEATH(
      kernels::run(GatherRows<float>{.x = x, .index = index, .y = x, .shape = {.rows = 3, .columns = 4, .x_stride = 3}},
                   stream),
      "a row ends before the next begins");
}

}  // namespace
}  // namespace dunnock::kernels
