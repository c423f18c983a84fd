// AdamW and SGD against their twins, and against steps that were worked out by hand.
#include "dunnock/gpu/kernels/optimizer.hpp"

#include <deque>

#include "kernels/optimizer_launchers.hpp"
#include "runners.hpp"

namespace dunnock::gpu {
namespace {

class Optimizer : public test::OnEachRunner {
 protected:
  /// Weights, moments and copies of all tensors after three steps, as one list.
  template <class T, class Step>
  std::vector<float> after(Stream& on, const std::vector<std::size_t>& sizes, const Step& step, std::uint64_t seed_of) {
    std::mt19937_64 random(seed_of);
    std::normal_distribution<float> distribution;
    std::deque<Buffer<float>> floats;
    std::deque<Buffer<T>> gradients;
    std::deque<Buffer<Bf16>> copies;
    std::vector<OptimizerTensor<T>> table;
    for (const std::size_t size : sizes) {
      const std::size_t skip = random() % 3 == 0 ? 1 : 0;  // Addresses that are not aligned.
      const auto some = [&](float deviation, bool positive) {
        std::vector<float> values(size + skip);
        for (float& value : values)
          value = deviation * (positive ? std::abs(distribution(random)) : distribution(random));
        return values;
      };
      OptimizerTensor<T> tensor{.size = size, .decay = random() % 2 == 0 ? 0.1F : 0.0F};
      float** const places[] = {&tensor.weights, &tensor.first_moment, &tensor.second_moment};
      for (int k = 0; k < 3; ++k) {
        floats.push_back(put(some(k == 0 ? 1 : 0.1F, k == 2), on));
        *places[k] = floats.back().span().device_data() + skip;
      }
      std::vector<T> gradient;
      for (const float value : some(1, false)) gradient.push_back(T(value));
      gradients.push_back(put(gradient, on));
      tensor.gradient = gradients.back().span().device_data() + skip;
      copies.push_back(put(std::vector<Bf16>(size + skip), on));
      if (random() % 2 == 0) tensor.copy = copies.back().span().device_data() + skip;
      table.push_back(tensor);
    }
    const std::size_t chunks = lay_out(std::span(table));
    auto there = put(table, on);
    auto factor = put(std::vector<float>{0.25F}, on);
    for (std::uint64_t n = 1; n <= 3; ++n)
      step(OptimizerTable<T>{there, chunks}, n, n == 2 ? DeviceSpan<const float>() : factor, on);
    std::vector<float> all;
    for (const auto& buffer : floats) {
      const auto values = get(buffer.span(), on);
      all.insert(all.end(), values.begin(), values.end());
    }
    for (const auto& buffer : copies) {
      for (const Bf16 value : get(buffer.span(), on)) all.push_back(static_cast<float>(value));
    }
    return all;
  }

  template <class T>
  void agrees() {
    for (int round = 0; round < 5; ++round) {
      std::vector<std::size_t> sizes(any_size(6));
      for (std::size_t& size : sizes) size = random()() % 4 == 0 ? random()() % 4 : any_size(emulated() ? 9000 : 40000);
      const std::uint64_t seed_of = random()();
      const bool nesterov = random()() % 2 == 0;
      const float momentum = nesterov || random()() % 2 == 0 ? 0.9F : 0;
      const auto run = [&](Stream& on, bool twin, bool is_adamw) {
        return after<T>(
            on, sizes,
            [&](const OptimizerTable<T>& table, std::uint64_t n, DeviceSpan<const float> factor, Stream& at) {
              if (is_adamw)
                pick(twin, adamw<T>, detail::emulated::adamw<T>, reference::adamw<T>)(
                    table, {.learning_rate = 0.01F, .epsilon = 0.03F, .step = n}, factor, at);  // One that can be seen.
              if (!is_adamw)
                pick(twin, sgd<T>, detail::emulated::sgd<T>, reference::sgd<T>)(
                    table, {.learning_rate = 0.1F, .momentum = momentum, .nesterov = nesterov}, factor, at);
            },
            seed_of);
      };
      for (const bool is_adamw : {true, false}) {
        const auto is = run(stream(), false, is_adamw);
        const auto should = run(twin_stream(), true, is_adamw);
        // The copies are bf16: a float's last bit may take them to the next one.
        std::size_t count = 0;
        for (const std::size_t size : sizes) count += 3 * size;
        count = std::min(count, is.size());
        test::expect_close(std::vector(is.begin(), is.begin() + std::ptrdiff_t(count)),
                           std::vector(should.begin(), should.begin() + std::ptrdiff_t(count)), 2e-5, 2e-6,
                           "weights and moments");
        test::expect_close(is, should, 1.0 / 127, 2e-6, "copies");
      }
    }
  }
};
DUNNOCK_ON_EACH_RUNNER(Optimizer);

TEST_P(Optimizer, OfFloatGradientsAgreesWithItsTwin) { agrees<float>(); }
TEST_P(Optimizer, OfBf16GradientsAgreesWithItsTwin) { agrees<Bf16>(); }

// By hand: AdamW's first step is learning_rate * sign(g), whatever g is; SGD's second with momentum 0.9 is 1.9 times
// its first.
TEST_P(Optimizer, TakesTheStepsOfPyTorch) {
  auto w = put(std::vector<float>{1, -2}, stream());
  auto m = put(std::vector<float>(2), stream());
  auto v = put(std::vector<float>(2), stream());
  auto g = put(std::vector<float>{0.5F, -3}, stream());
  std::vector<OptimizerTensor<float>> table{{.weights = w.span().device_data(),
                                             .first_moment = m.span().device_data(),
                                             .second_moment = v.span().device_data(),
                                             .gradient = g.span().device_data(),
                                             .size = 2,
                                             .decay = 0.1F}};
  const std::size_t chunks = lay_out(std::span(table));
  EXPECT_EQ(chunks, 1U);
  auto there = put(table, stream());
  pick(false, adamw<float>, detail::emulated::adamw<float>, reference::adamw<float>)(
      {there, chunks}, {.learning_rate = 0.01F}, {}, stream());
  auto is = get(w.span(), stream());
  EXPECT_NEAR(is[0], 1 - 0.001F - 0.01F, 1e-6);
  EXPECT_NEAR(is[1], -2 + 0.002F + 0.01F, 1e-6);

  table[0].decay = 0;
  there = put(table, stream());
  fill_bytes(m.span(), std::byte{0}, stream());
  for (const float step : {1.0F, 1.9F}) {
    const auto before = get(w.span(), stream());
    pick(false, sgd<float>, detail::emulated::sgd<float>, reference::sgd<float>)(
        {there, chunks}, {.learning_rate = 0.1F, .momentum = 0.9F}, {}, stream());
    is = get(w.span(), stream());
    EXPECT_NEAR(before[0] - is[0], 0.1F * step * 0.5F, 1e-6);
    EXPECT_NEAR(before[1] - is[1], 0.1F * step * -3, 1e-6);
  }
}
TEST(OptimizerDeathTest, WhatMakesNoSenseIsRefused) {
  auto stream = std::move(*Stream::create(Device::cpu()));
  auto x = std::move(*Buffer<float>::create(2, stream));
  EXPECT_DEATH(adamw<float>({}, {.step = 0}, {}, stream), "the first step is 1");
  EXPECT_DEATH(adamw<float>({}, {}, x, stream), "spans fit the shape");
  EXPECT_DEATH(sgd<float>({}, {.nesterov = true}, {}, stream), "needs a momentum");
}

}  // namespace
}  // namespace dunnock::gpu
