// Rotary position embedding against its twin.
#include "dunnock/kernels/rotary.hpp"

#include "runners.hpp"

namespace dunnock::kernels {
namespace {

class Rotaries : public test::OnEachRunner {
 protected:
  static constexpr std::size_t kPositions = 100;

  RotaryShape any_shape() {
    constexpr std::size_t kDims[] = {2, 6, 16, 32, 64, 80, 128};
    RotaryShape shape;
    shape.batch = any_size(3);
    shape.tokens = any_size(20);
    shape.heads = any_size(4);
    shape.rotary_dim = kDims[random()() % std::size(kDims)];
    shape.head_dim = shape.rotary_dim + (random()() % 2 == 0 ? 0 : random()() % 9);
    shape.form = random()() % 2 == 0 ? RotaryForm::kHalves : RotaryForm::kInterleaved;
    return shape;
  }

  std::vector<float> table_of(const RotaryTableShape& shape, device::Stream& on, bool twin) {
    const auto table = put(std::vector<float>(shape.positions * shape.rotary_dim), on);
    run_form(twin, RotaryTable{.table = table, .shape = shape}, on);
    return get(table.span(), on);
  }

  static constexpr std::size_t kBetween = 2;  // tokens' rows that lie between two entries of a batch

  /// Of q and k in one call, in place in a packed projection.
  template <class T>
  std::vector<T> turned(const std::vector<T>& packed, const std::vector<float>& table,
                        const std::vector<std::int32_t>& positions, const RotaryShape& shape, bool back,
                        device::Stream& on, bool twin) {
    const auto x = put(packed, on);
    // A span may begin at any float.
    std::vector<float> shifted(table.size() + 1);
    std::copy(table.begin(), table.end(), shifted.begin() + 1);
    const auto whole_table = put(shifted, on);
    const auto table_there = whole_table.span().subspan(1, table.size());
    const auto positions_there = put(positions, on);
    const auto view = heads_view<T>(
        x, {.tokens = shape.tokens + kBetween, .heads = shape.heads + 1, .head_dim = shape.head_dim, .first_head = 1});
    if (back) {
      run_form(twin, RotaryBackward<T>{.dx = view, .table = table_there, .positions = positions_there, .shape = shape},
               on);
    } else {
      run_form(twin, Rotary<T>{.x = view, .table = table_there, .positions = positions_there, .shape = shape}, on);
    }
    return get(x.span(), on);
  }

  template <class T>
  void agrees() {
    for (int round = 0; round < 20; ++round) {
      const RotaryShape shape = any_shape();
      SCOPED_TRACE(std::to_string(shape.rotary_dim) + " of " + std::to_string(shape.head_dim) +
                   (shape.form == RotaryForm::kHalves ? ", halves" : ", interleaved"));
      const auto x = normal<T>(shape.batch * (shape.tokens + kBetween) * (shape.heads + 1) * shape.head_dim);
      const auto table = table_of({kPositions, shape.rotary_dim}, twin_stream(), true);
      std::vector<std::int32_t> positions(shape.batch * shape.tokens);
      for (std::int32_t& position : positions) position = static_cast<std::int32_t>(random()() % kPositions);
      for (const bool back : {false, true})
        test::expect_close(turned(x, table, positions, shape, back, stream(), false),
                           turned(x, table, positions, shape, back, twin_stream(), true), test::kRounding<T>, 1e-6,
                           "x");
      const auto there = turned(x, table, positions, shape, false, stream(), false);
      test::expect_close(turned(there, table, positions, shape, true, stream(), false), x, 2 * test::kRounding<T>,
                         std::is_same_v<T, float> ? 1e-5 : 0.06, "x turned there and back");
    }
  }
};
DUNNOCK_ON_EACH_RUNNER(Rotaries);

TEST_P(Rotaries, of_floats_agrees_with_its_twin_and_turns_back) { agrees<float>(); }
TEST_P(Rotaries, of_bf16_agrees_with_its_twin_and_turns_back) { agrees<device::Bf16>(); }
TEST_P(Rotaries, table_agrees_with_its_twin) {
  for (const double base : {10000.0, 500000.0}) {
    const RotaryTableShape shape{.positions = 300, .rotary_dim = 12, .base = base};
    test::expect_close(table_of(shape, stream(), false), table_of(shape, twin_stream(), true), 0, 2e-7, "table");
  }
}

class RotaryChecks : public Rotaries {};
INSTANTIATE_TEST_SUITE_P(Runners, RotaryChecks, ::testing::Values(test::Runner::kCpu), test::name_of_runner);

TEST_P(RotaryChecks, refuses_shapes_that_do_not_fit) {
  const auto x = put(std::vector<float>(8), stream());
  const auto positions = put(std::vector<std::int32_t>(1), stream());
  const auto turn = [&](std::size_t rotary_dim, std::size_t heads) {
    kernels::run(
        Rotary<float>{.x = heads_view<float>(x, {.tokens = 1, .heads = 1, .head_dim = 8}),
                      .table = x,
                      .positions = positions,
                      .shape = {.batch = 1, .tokens = 1, .heads = heads, .head_dim = 8, .rotary_dim = rotary_dim}},
        stream());
  };
  EXPECT_DEATH(turn(3, 1), "rotary_dim is even");
  EXPECT_DEATH(turn(10, 1), "rotary_dim is at most head_dim");
  EXPECT_DEATH(turn(0, 1), "rotary_dim is above 0");
  EXPECT_DEATH(turn(8, 2), "views are within their memory");
  EXPECT_DEATH(kernels::run(RotaryTable{.table = x, .shape = {.positions = 3, .rotary_dim = 4}}, stream()),
               "spans fit the shape");
}

}  // namespace
}  // namespace dunnock::kernels
