// Activations and SwiGLU against their twins.
#include "dunnock/kernels/activation.hpp"

#include <limits>

#include "runners.hpp"

namespace dunnock::kernels {
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
      const auto run = [&](device::Stream& on, bool twin, std::vector<T>& y) {
        auto xs = put(x, on);
        auto dys = put(dy, on);
        auto ys = put(std::vector<T>(x.size()), on);
        const device::Span<const T> from = xs.span().subspan(skip, count);
        const device::Span<T> grad = dys.span().subspan(skip, count);
        run_form(twin, Activate<T>{.kind = kind, .x = from, .y = ys.span().subspan(skip, count)}, on);
        run_form(twin, ActivateBackward<T>{.kind = kind, .dy = grad, .x = from, .dx = grad}, on);
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
      const auto run = [&](device::Stream& on, bool twin, std::vector<T>& y) {
        auto xs = put(x, on);  // The gradients take the place of gate and up.
        auto dys = put(dy, on);
        auto ys = put(std::vector<T>(dy.size()), on);
        const std::size_t up_at = packed ? columns : rows * shape.gate_stride;
        const auto gate = xs.span().subspan(0, packed ? x.size() : up_at);
        const auto up = xs.span().subspan(up_at, rows * shape.up_stride - (packed ? columns : 0));
        run_form(twin, Swiglu<T>{.gate = gate, .up = up, .y = ys, .shape = shape}, on);
        y = get(ys.span(), on);
        run_form(twin, SwigluBackward<T>{.dy = dys, .gate = gate, .up = up, .dgate = gate, .dup = up, .shape = shape},
                 on);
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

TEST_P(Activations, of_floats_agree_with_their_twins) {
  for (const Activation kind : kAll) agrees<float>(kind);
}
TEST_P(Activations, of_bf16_agree_with_their_twins) {
  for (const Activation kind : kAll) agrees<device::Bf16>(kind);
}
TEST_P(Activations, swiglu_of_floats_agrees_with_its_twin) { swiglu_agrees<float>(); }
TEST_P(Activations, swiglu_of_bf16_agrees_with_its_twin) { swiglu_agrees<device::Bf16>(); }
TEST_P(Activations, of_a_nan_are_nans) {
  for (const Activation kind : kAll) {
    auto x = put(std::vector<float>(40, std::numeric_limits<float>::quiet_NaN()), stream());
    run_form(false, Activate<float>{.kind = kind, .x = x, .y = x}, stream());
    for (const float y : get(x.span(), stream())) EXPECT_TRUE(std::isnan(y));
  }
}
TEST(ActivationsDeathTest, spans_that_do_not_fit_are_refused) {
  auto stream = std::move(*device::Stream::create(device::Device::cpu()));
  auto x = std::move(*device::Buffer<float>::create(8, stream));
  auto y = std::move(*device::Buffer<float>::create(7, stream));
  EXPECT_DEATH(kernels::run(Activate<float>{.kind = Activation::kRelu, .x = x, .y = y}, stream), "spans fit the shape");
  EXPECT_DEATH(kernels::run(ActivateBackward<float>{.kind = Activation::kRelu, .dy = y, .x = x, .dx = x}, stream),
               "spans fit the shape");
  EXPECT_DEATH(kernels::run(Swiglu<float>{.gate = x, .up = x, .y = x, .shape = SwigluShape::packed(2, 4)}, stream),
               "spans fit the shape");
  EXPECT_DEATH(
      kernels::run(
          Swiglu<float>{
              .gate = x, .up = x, .y = x, .shape = {.rows = 2, .columns = 4, .gate_stride = 3, .up_stride = 4}},
          stream),
      "do not overlap");
  EXPECT_DEATH(kernels::run(
                   SwigluBackward<float>{
                       .dy = x, .gate = x, .up = x, .dgate = y, .dup = x, .shape = SwigluShape::separate(2, 4)},
                   stream),
               "spans fit the shape");
}

}  // namespace
}  // namespace dunnock::kernels
