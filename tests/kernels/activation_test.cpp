// Activations and SwiGLU against their twins.
#include "dunnock/gpu/kernels/activation.hpp"

#include <limits>

#include "kernels/activation_launchers.hpp"
#include "runners.hpp"

namespace dunnock::gpu {
namespace {

constexpr Activation kAll[] = {Activation::kGeluTanh, Activation::kGeluErf, Activation::kSilu, Activation::kRelu};

class Activations : public test::OnEachRunner {
 protected:
  template <class T>
  void agrees(Activation kind) {
    for (int round = 0; round < 6; ++round) {
      const std::size_t count = any_size(emulated() ? 5000 : 100000);
      const std::size_t skip = random()() % 2;  // Sometimes an address that is not aligned.
      SCOPED_TRACE(std::to_string(count) + " from " + std::to_string(skip));
      auto x = normal<T>(count + skip, 3);
      x[0] = T(0.0F);
      x.back() = T(-60.0F);
      const auto dy = normal<T>(count + skip);
      const auto run = [&](Stream& on, bool twin, std::vector<T>& y) {
        auto xs = put(x, on);
        auto dys = put(dy, on);
        auto ys = put(std::vector<T>(x.size()), on);
        const DeviceSpan<const T> from = xs.span().subspan(skip, count);
        const DeviceSpan<T> grad = dys.span().subspan(skip, count);
        pick(twin, activation<T>, detail::emulated::activation<T>, reference::activation<T>)(
            kind, from, ys.span().subspan(skip, count), on);
        pick(twin, activation_backward<T>, detail::emulated::activation_backward<T>, reference::activation_backward<T>)(
            kind, grad, from, grad, on);
        y = get(ys.span(), on);
        return get(dys.span(), on);
      };
      std::vector<T> y, twin_y;
      const auto dx = run(stream(), false, y);
      const auto twin_dx = run(twin_stream(), true, twin_y);
      test::expect_close(y, twin_y, test::kRounding<T>, 2e-6, "y");
      test::expect_close(dx, twin_dx, test::kRounding<T>, 5e-6, "dx");
    }
  }

  template <class T>
  void swiglu_agrees() {
    for (int round = 0; round < 8; ++round) {
      constexpr std::size_t kColumns[] = {1, 8, 37, 256, 344, 1000};
      const std::size_t rows = any_size(emulated() ? 12 : 200);
      const std::size_t columns = kColumns[random()() % std::size(kColumns)];
      const bool packed = random()() % 2 == 0;
      auto shape = packed ? SwigluShape::packed(rows, columns) : SwigluShape::separate(rows, columns);
      if (!packed && random()() % 2 == 0) shape.gate_stride += any_size(9);
      SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(columns) + (packed ? " packed" : ""));
      const auto x = normal<T>(rows * shape.gate_stride + rows * shape.up_stride, 2);
      const auto dy = normal<T>(rows * columns);
      const auto run = [&](Stream& on, bool twin, std::vector<T>& y) {
        auto xs = put(x, on);  // The gradients take the place of gate and up.
        auto dys = put(dy, on);
        auto ys = put(std::vector<T>(dy.size()), on);
        const std::size_t up_at = packed ? columns : rows * shape.gate_stride;
        const auto gate = xs.span().subspan(0, packed ? x.size() : up_at);
        const auto up = xs.span().subspan(up_at, rows * shape.up_stride - (packed ? columns : 0));
        pick(twin, swiglu<T>, detail::emulated::swiglu<T>, reference::swiglu<T>)(gate, up, ys, shape, on);
        y = get(ys.span(), on);
        pick(twin, swiglu_backward<T>, detail::emulated::swiglu_backward<T>, reference::swiglu_backward<T>)(
            dys, gate, up, gate, up, shape, on);
        return get(xs.span(), on);  // What lies between the rows must stay.
      };
      std::vector<T> y, twin_y;
      const auto dx = run(stream(), false, y);
      const auto twin_dx = run(twin_stream(), true, twin_y);
      test::expect_close(y, twin_y, test::kRounding<T>, 5e-6, "y");
      test::expect_close(dx, twin_dx, test::kRounding<T>, 1e-5, "dgate and dup");
    }
  }
};
DUNNOCK_ON_EACH_RUNNER(Activations);

TEST_P(Activations, OfFloatsAgreeWithTheirTwins) {
  for (const Activation kind : kAll) agrees<float>(kind);
}
TEST_P(Activations, OfBf16AgreeWithTheirTwins) {
  for (const Activation kind : kAll) agrees<Bf16>(kind);
}
TEST_P(Activations, SwigluOfFloatsAgreesWithItsTwin) { swiglu_agrees<float>(); }
TEST_P(Activations, SwigluOfBf16AgreesWithItsTwin) { swiglu_agrees<Bf16>(); }
TEST_P(Activations, OfANanAreNans) {
  for (const Activation kind : kAll) {
    auto x = put(std::vector<float>(40, std::numeric_limits<float>::quiet_NaN()), stream());
    pick(false, activation<float>, detail::emulated::activation<float>, reference::activation<float>)(kind, x, x,
                                                                                                      stream());
    for (const float y : get(x.span(), stream())) EXPECT_TRUE(std::isnan(y));
  }
}
TEST(ActivationsDeathTest, SpansThatDoNotFitAreRefused) {
  auto stream = std::move(*Stream::create(Device::cpu()));
  auto x = std::move(*Buffer<float>::create(8, stream));
  auto y = std::move(*Buffer<float>::create(7, stream));
  EXPECT_DEATH(activation<float>(Activation::kRelu, x, y, stream), "spans fit the shape");
  EXPECT_DEATH(activation_backward<float>(Activation::kRelu, y, x, x, stream), "spans fit the shape");
  EXPECT_DEATH(swiglu<float>(x, x, x, SwigluShape::packed(2, 4), stream), "spans fit the shape");
  EXPECT_DEATH(swiglu<float>(x, x, x, {.rows = 2, .columns = 4, .gate_stride = 3, .up_stride = 4}, stream),
               "do not overlap");
  EXPECT_DEATH(swiglu_backward<float>(x, x, x, y, x, SwigluShape::separate(2, 4), stream), "spans fit the shape");
}

}  // namespace
}  // namespace dunnock::gpu
