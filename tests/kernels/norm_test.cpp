// Layer norm and RMS norm against their twins.
#include "dunnock/gpu/kernels/norm.hpp"

#include "kernels/norm_launchers.hpp"
#include "runners.hpp"

namespace dunnock::gpu {
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
      const auto run = [&](Stream& on, bool twin, std::vector<float>& mean, std::vector<float>& r) {
        auto there = put(x, on);
        auto w = put(weight, on);
        auto b = put(bias, on);
        auto means = put(std::vector<float>(shape.rows), on);
        auto rs = put(std::vector<float>(shape.rows), on);
        // In its place, or elsewhere; elsewhere is not aligned.
        Buffer<T> other = put(std::vector<T>(x.size() + 1), on);
        const DeviceSpan<T> y = round % 2 == 0 ? there.span() : other.span().subspan(1, x.size());
        if (twin && centred) reference::layer_norm<T>(there, w, b, y, means, rs, shape, on);
        if (twin && !centred) reference::rms_norm<T>(there, w, y, rs, shape, on);
        if (!twin && emulated() && centred) detail::emulated::norm<T>(true, there, w, b, y, means, rs, shape, on);
        if (!twin && emulated() && !centred) detail::emulated::norm<T>(false, there, w, {}, y, {}, rs, shape, on);
        if (!twin && !emulated() && centred) layer_norm<T>(there, w, b, y, means, rs, shape, on);
        if (!twin && !emulated() && !centred) rms_norm<T>(there, w, y, rs, shape, on);
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
      const auto run = [&](Stream& on, bool twin, std::vector<T>& dweight, std::vector<T>& dbias) {
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
        const DeviceSpan<T> dx = round % 2 == 0 ? dys.span() : other.span().subspan(1, dy.size());
        if (twin) {
          if (centred) reference::layer_norm_backward<T>(dys, xs, w, means, rs, dx, dw, db, adds, shape, space, on);
          if (!centred) reference::rms_norm_backward<T>(dys, xs, w, rs, dx, dw, adds, shape, space, on);
        } else if (emulated()) {
          if (centred)
            detail::emulated::norm_backward<T>(true, dys, xs, w, means, rs, dx, dw, db, adds, shape, space, on);
          if (!centred)
            detail::emulated::norm_backward<T>(false, dys, xs, w, {}, rs, dx, dw, {}, adds, shape, space, on);
        } else {
          if (centred) layer_norm_backward<T>(dys, xs, w, means, rs, dx, dw, db, adds, shape, space, on);
          if (!centred) rms_norm_backward<T>(dys, xs, w, rs, dx, dw, adds, shape, space, on);
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

TEST_P(Norms, LayerNormOfFloatsAgreesWithItsTwin) { forward_agrees<float>(true); }
TEST_P(Norms, LayerNormOfBf16AgreesWithItsTwin) { forward_agrees<Bf16>(true); }
TEST_P(Norms, RmsNormOfFloatsAgreesWithItsTwin) { forward_agrees<float>(false); }
TEST_P(Norms, RmsNormOfBf16AgreesWithItsTwin) { forward_agrees<Bf16>(false); }
TEST_P(Norms, GradientsOfLayerNormOfFloatsAgreeWithTheirTwin) { backward_agrees<float>(true); }
TEST_P(Norms, GradientsOfLayerNormOfBf16AgreeWithTheirTwin) { backward_agrees<Bf16>(true); }
TEST_P(Norms, GradientsOfRmsNormOfFloatsAgreeWithTheirTwin) { backward_agrees<float>(false); }
TEST_P(Norms, GradientsOfRmsNormOfBf16AgreeWithTheirTwin) { backward_agrees<Bf16>(false); }

TEST(NormDeathTest, needs_spans_that_fit) {
  auto stream = std::move(*Stream::create(Device::cpu()));
  auto x = std::move(*Buffer<float>::create(12, stream));
  auto weight = std::move(*Buffer<float>::create(4, stream));
  const NormShape shape{.rows = 3, .columns = 4};
  EXPECT_DEATH(layer_norm<float>(x, weight, weight, x, {}, {}, {.rows = 3, .columns = 0}, stream), "a row has columns");
  EXPECT_DEATH(layer_norm<float>(x, weight, x, x, {}, {}, shape, stream), "spans fit the shape");
  EXPECT_DEATH(rms_norm<float>(x, weight, weight, {}, shape, stream), "spans fit the shape");
  EXPECT_DEATH(rms_norm<float>(x, weight, x, weight, shape, stream), "spans fit the shape, or are empty");
  EXPECT_DEATH(rms_norm_backward<float>(x, x, weight, x.span().subspan(0, 3), x, weight, false, shape, {}, stream),
               "the workspace is large enough");
}

}  // namespace
}  // namespace dunnock::gpu
