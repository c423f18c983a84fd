// Layer norm and RMS norm against their twins.
#include "dunnock/kernels/norm.hpp"

#include "norm_parts.hpp"
#include "runners.hpp"

namespace dunnock::kernels {
namespace {

class Norms : public test::OnEachRunner {
 protected:
  /// Shapes whose rows take a warp or a block, with whole packs and without.
  NormShape any_shape() {
    constexpr std::size_t kColumns[] = {1, 7, 64, 100, 768, 1023, 1024, 1600, 8192, 9000};
    NormShape shape;
    shape.columns = kColumns[random()() % std::size(kColumns)];
    shape.rows = any_size(emulated() ? 70 : 300);
    return shape;
  }

  template <class T>
  void forward_agrees(bool centred) {
    for (int round = 0; round < 12; ++round) {
      const NormShape shape = any_shape();
      SCOPED_TRACE(std::to_string(shape.rows) + " x " + std::to_string(shape.columns));
      const auto x = normal<T>(shape.rows * shape.columns, 2, 1);
      const auto weight = normal<T>(shape.columns);
      const auto bias = normal<T>(shape.columns);
      const auto run = [&](device::Stream& on, bool twin, std::vector<float>& mean, std::vector<float>& r) {
        auto there = put(x, on);
        auto w = put(weight, on);
        auto b = put(bias, on);
        auto means = put(std::vector<float>(shape.rows), on);
        auto rs = put(std::vector<float>(shape.rows), on);
        // In its place, or elsewhere; elsewhere is not aligned.
        device::Buffer<T> other = put(std::vector<T>(x.size() + 1), on);
        const device::Span<T> y = round % 2 == 0 ? there.span() : other.span().subspan(1, x.size());
        if (centred) {
          run_form(twin,
                   LayerNorm<T>{.x = there, .weight = w, .bias = b, .y = y, .mean = means, .r = rs, .shape = shape},
                   on);
        } else {
          run_form(twin, RmsNorm<T>{.x = there, .weight = w, .y = y, .r = rs, .shape = shape}, on);
        }
        mean = get(means.span(), on);
        r = get(rs.span(), on);
        return get(y, on);
      };
      std::vector<float> mean, r, twin_mean, twin_r;
      const auto y = run(stream(), false, mean, r);
      const auto twin = run(twin_stream(), true, twin_mean, twin_r);
      test::expect_close(y, twin, test::kRounding<T>, 2e-5, "y");
      test::expect_close(mean, twin_mean, 1e-5, 1e-5, "mean");
      test::expect_close(r, twin_r, 1e-4, 0, "r");
    }
  }

  template <class T>
  void backward_agrees(bool centred) {
    for (int round = 0; round < 12; ++round) {
      NormShape shape = any_shape();
      if (round == 0) shape.rows = 0;  // Gradients of nothing: zero, or what is there.
      SCOPED_TRACE(std::to_string(shape.rows) + " x " + std::to_string(shape.columns));
      const bool adds = random()() % 2 == 0;
      const auto dy = normal<T>(shape.rows * shape.columns);
      const auto x = normal<T>(shape.rows * shape.columns);
      const auto weight = normal<T>(shape.columns);
      const auto mean = normal<float>(shape.rows, 0.1F);
      const auto r = normal<float>(shape.rows, 0.1F, 1);
      const auto before = normal<T>(shape.columns);
      const auto run = [&](device::Stream& on, bool twin, std::vector<T>& dweight, std::vector<T>& dbias) {
        auto dys = put(dy, on);  // dx takes its place, or is elsewhere and not aligned.
        auto xs = put(x, on);
        auto w = put(weight, on);
        auto means = put(mean, on);
        auto rs = put(r, on);
        auto dw = put(before, on);
        auto db = put(before, on);
        const std::size_t floats = emulated() && !twin ? detail::emulated::norm_backward_workspace(shape, 4)
                                                       : norm_backward_workspace(shape, on.device());
        auto space = put(std::vector<float>(floats), on);
        auto other = put(std::vector<T>(dy.size() + 1), on);
        const device::Span<T> dx = round % 2 == 0 ? dys.span() : other.span().subspan(1, dy.size());
        if (centred) {
          run_form(twin,
                   LayerNormBackward<T>{.dy = dys,
                                        .x = xs,
                                        .weight = w,
                                        .mean = means,
                                        .r = rs,
                                        .dx = dx,
                                        .dweight = dw,
                                        .dbias = db,
                                        .adds = adds,
                                        .shape = shape,
                                        .workspace = space},
                   on);
        } else {
          run_form(twin,
                   RmsNormBackward<T>{.dy = dys,
                                      .x = xs,
                                      .weight = w,
                                      .r = rs,
                                      .dx = dx,
                                      .dweight = dw,
                                      .adds = adds,
                                      .shape = shape,
                                      .workspace = space},
                   on);
        }
        dweight = get(dw.span(), on);
        dbias = get(db.span(), on);
        return get(dx, on);
      };
      std::vector<T> dweight, dbias, twin_dweight, twin_dbias;
      const auto dx = run(stream(), false, dweight, dbias);
      const auto twin = run(twin_stream(), true, twin_dweight, twin_dbias);
      test::expect_close(dx, twin, test::kRounding<T>, 2e-5, "dx");
      test::expect_close(dweight, twin_dweight, test::kRounding<T>, 2e-4, "dweight");
      if (centred) test::expect_close(dbias, twin_dbias, test::kRounding<T>, 2e-4, "dbias");
    }
  }
};
DUNNOCK_ON_EACH_RUNNER(Norms);

TEST_P(Norms, layer_norm_of_floats_agrees_with_its_twin) { forward_agrees<float>(true); }
TEST_P(Norms, layer_norm_of_bf16_agrees_with_its_twin) { forward_agrees<device::Bf16>(true); }
TEST_P(Norms, rms_norm_of_floats_agrees_with_its_twin) { forward_agrees<float>(false); }
TEST_P(Norms, rms_norm_of_bf16_agrees_with_its_twin) { forward_agrees<device::Bf16>(false); }
TEST_P(Norms, gradients_of_layer_norm_of_floats_agree_with_their_twin) { backward_agrees<float>(true); }
TEST_P(Norms, gradients_of_layer_norm_of_bf16_agree_with_their_twin) { backward_agrees<device::Bf16>(true); }
TEST_P(Norms, gradients_of_rms_norm_of_floats_agree_with_their_twin) { backward_agrees<float>(false); }
TEST_P(Norms, gradients_of_rms_norm_of_bf16_agree_with_their_twin) { backward_agrees<device::Bf16>(false); }

TEST(NormDeathTest, needs_spans_that_fit) {
  auto stream = std::move(*device::Stream::create(device::Device::cpu()));
  auto x = std::move(*device::Buffer<float>::create(12, stream));
  auto weight = std::move(*device::Buffer<float>::create(4, stream));
  const NormShape shape{.rows = 3, .columns = 4};
  EXPECT_DEATH(kernels::run(LayerNorm<float>{.x = x,
                                             .weight = weight,
                                             .bias = weight,
                                             .y = x,
                                             .mean = {},
                                             .r = {},
                                             .shape = {.rows = 3, .columns = 0}},
                            stream),
               "a row has columns");
  EXPECT_DEATH(
      kernels::run(LayerNorm<float>{.x = x, .weight = weight, .bias = x, .y = x, .mean = {}, .r = {}, .shape = shape},
                   stream),
      "spans fit the shape");
  EXPECT_DEATH(kernels::run(RmsNorm<float>{.x = x, .weight = weight, .y = weight, .r = {}, .shape = shape}, stream),
               "spans fit the shape");
  EXPECT_DEATH(kernels::run(RmsNorm<float>{.x = x, .weight = weight, .y = x, .r = weight, .shape = shape}, stream),
               "spans fit the shape, or are empty");
  EXPECT_DEATH(kernels::run(RmsNormBackward<float>{.dy = x,
                                                   .x = x,
                                                   .weight = weight,
                                                   .r = x.span().subspan(0, 3),
                                                   .dx = x,
                                                   .dweight = weight,
                                                   .adds = false,
                                                   .shape = shape,
                                                   .workspace = {}},
                            stream),
               "the workspace is large enough");
}

}  // namespace
}  // namespace dunnock::kernels
