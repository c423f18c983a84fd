// AdamW and SGD against their twins, and against steps that were worked out by hand.
#include "dunnock/kernels/optimizer.hpp"

#include <cstring>
#include <deque>

#include "dunnock/device/graph.hpp"
#include "optimizer_parts.hpp"
#include "runners.hpp"

namespace dunnock::kernels {
namespace {

class Optimizer : public test::OnEachRunner {
 protected:
  /// Weights, moments and copies of all tensors after three steps, as one list.
  template <class T, class Step>
  std::vector<float> after(device::Stream& on, const std::vector<std::size_t>& sizes, const Step& step,
                           std::uint64_t seed_of) {
    std::mt19937_64 random(seed_of);
    std::normal_distribution<float> distribution;
    std::deque<device::Buffer<float>> floats;
    std::deque<device::Buffer<T>> gradients;
    std::deque<device::Buffer<device::Bf16>> copies;
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
      copies.push_back(put(std::vector<device::Bf16>(size + skip), on));
      if (random() % 2 == 0) tensor.copy = copies.back().span().device_data() + skip;
      table.push_back(tensor);
    }
    const std::size_t chunks = lay_out(std::span(table));
    auto there = put(table, on);
    auto factor = put(std::vector<float>{0.25F}, on);
    for (std::uint64_t n = 1; n <= 3; ++n)
      step(OptimizerTable<T>{there, chunks}, n, n == 2 ? device::Span<const float>() : factor, on);
    std::vector<float> all;
    for (const auto& buffer : floats) {
      const auto values = get(buffer.span(), on);
      all.insert(all.end(), values.begin(), values.end());
    }
    for (const auto& buffer : copies) {
      for (const device::Bf16 value : get(buffer.span(), on)) all.push_back(static_cast<float>(value));
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
      const auto run = [&](device::Stream& on, bool twin, bool is_adamw) {
        return after<T>(
            on, sizes,
            [&](const OptimizerTable<T>& table, std::uint64_t n, device::Span<const float> factor, device::Stream& at) {
              if (is_adamw)
                run_form(twin,
                         Adamw<T>{.table = table,
                                  .step = {.learning_rate = 0.01F, .epsilon = 0.03F, .step = n},
                                  .factor = factor},
                         at);  // One that can be seen.
              if (!is_adamw)
                run_form(twin,
                         Sgd<T>{.table = table,
                                .step = {.learning_rate = 0.1F, .momentum = momentum, .nesterov = nesterov},
                                .factor = factor},
                         at);
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

  /// One step, whose settings come by value or from device memory.
  template <class T>
  static void by_value(bool twin, const OptimizerTable<T>& table, const AdamwStep& step,
                       device::Span<const float> factor, device::Stream& on) {
    run_form(twin, Adamw<T>{.table = table, .step = step, .factor = factor}, on);
  }
  template <class T>
  static void by_value(bool twin, const OptimizerTable<T>& table, const SgdStep& step, device::Span<const float> factor,
                       device::Stream& on) {
    run_form(twin, Sgd<T>{.table = table, .step = step, .factor = factor}, on);
  }
  template <class T>
  static void from_memory(bool twin, const OptimizerTable<T>& table, device::Span<const AdamwStep> step,
                          device::Span<const float> factor, device::Stream& on) {
    run_form(twin, AdamwFromDevice<T>{.table = table, .step = step, .factor = factor}, on);
  }
  template <class T>
  static void from_memory(bool twin, const OptimizerTable<T>& table, device::Span<const SgdStep> step,
                          device::Span<const float> factor, device::Stream& on) {
    run_form(twin, SgdFromDevice<T>{.table = table, .step = step, .factor = factor}, on);
  }

  /// Three steps, one after the other: as values, from memory, and from memory by one graph that is launched thrice.
  template <class T, class Step>
  void is_the_same_from_memory(const std::vector<Step>& steps) {
    std::vector<std::size_t> sizes(any_size(4));
    for (std::size_t& size : sizes) size = any_size(20000);
    const std::uint64_t seed_of = random()();
    for (const bool twin : {false, true}) {
      device::Stream& on = twin ? twin_stream() : stream();
      const auto should = after<T>(
          on, sizes,
          [&](const OptimizerTable<T>& table, std::uint64_t n, device::Span<const float> factor, device::Stream& at) {
            by_value<T>(twin, table, steps[n - 1], factor, at);
          },
          seed_of);
      auto in_memory = put(std::vector<Step>(1), on);
      for (const bool as_graph : {false, true}) {
        std::vector<device::Graph> graphs;  // One with a factor, one without.
        const auto is = after<T>(
            on, sizes,
            [&](const OptimizerTable<T>& table, std::uint64_t n, device::Span<const float> factor, device::Stream& at) {
              const auto issue = [&] { from_memory<T>(twin, table, in_memory.span(), factor, at); };
              if (as_graph && n <= 2) graphs.push_back(std::move(*device::Graph::capture(at, issue)));
              upload(in_memory.span(), std::span(steps).subspan(n - 1, 1), at);
              if (as_graph) graphs[n == 2 ? 1 : 0].launch(at);
              if (!as_graph) issue();
            },
            seed_of);
        ASSERT_EQ(is.size(), should.size());
        if (on_cuda() && !twin) {
          test::expect_close(is, should, 1.0 / 127, 2e-6, "on CUDA");  // Its pow is not the host's.
        } else {
          EXPECT_EQ(std::memcmp(is.data(), should.data(), is.size() * sizeof(float)), 0)
              << (as_graph ? "as a graph" : "issued") << (twin ? ", the twin" : "") << ", seed " << test::seed();
        }
      }
    }
  }
};
DUNNOCK_ON_EACH_RUNNER(Optimizer);

TEST_P(Optimizer, has_the_same_bits_with_the_step_in_memory) {
  const auto rate = [&] { return 0.001F * static_cast<float>(any_size(100)); };
  for (int round = 0; round < (emulated() ? 2 : 5); ++round) {
    std::vector<AdamwStep> adamw_steps;
    std::vector<SgdStep> sgd_steps;
    for (std::uint64_t n = 0; n < 3; ++n) {
      const float beta1 = 0.8F + 0.01F * static_cast<float>(any_size(15));
      const float beta2 = 0.9F + 0.001F * static_cast<float>(any_size(99));
      adamw_steps.push_back({rate(), beta1, beta2, rate(), any_size(random()() % 2 == 0 ? 3 : 100'000)});
      const float momentum = n == 1 ? 0.0F : 0.9F;  // Both kinds, of one graph too.
      sgd_steps.push_back({rate(), momentum, momentum != 0 && random()() % 2 == 0});
    }
    is_the_same_from_memory<float>(adamw_steps);
    is_the_same_from_memory<device::Bf16>(adamw_steps);
    is_the_same_from_memory<float>(sgd_steps);
    is_the_same_from_memory<device::Bf16>(sgd_steps);
  }
}

TEST(OptimizerFromMemory, fails_the_stream_of_a_step_that_makes_no_sense) {
  auto stream = std::move(*device::Stream::create(device::Device::cpu()));
  std::vector<float> w{1};
  std::vector<float> g{1};
  std::vector<OptimizerTensor<float>> table{{.weights = w.data(), .gradient = g.data(), .size = 1}};
  const OptimizerTable<float> all{{table.data(), 1}, lay_out(std::span(table))};
  const AdamwStep zeroth{.step = 0};
  kernels::run(AdamwFromDevice<float>{.table = all, .step = device::Span(&zeroth, 1), .factor = {}}, stream);
  Status done = stream.synchronize();
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(done.error().message, "operation 'AdamW' failed: the first step is 1");
  const SgdStep without{.nesterov = true};
  kernels::run(SgdFromDevice<float>{.table = all, .step = device::Span(&without, 1), .factor = {}}, stream);
  done = stream.synchronize();
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().message, "operation 'SGD' failed: nesterov needs a momentum other than 0");
  EXPECT_EQ(w[0], 1) << "nothing is written";
}

TEST_P(Optimizer, of_float_gradients_agrees_with_its_twin) { agrees<float>(); }
TEST_P(Optimizer, of_bf16_gradients_agrees_with_its_twin) { agrees<device::Bf16>(); }

// By hand: AdamW's first step is learning_rate * sign(g), whatever g is; SGD's second with momentum 0.9 is 1.9 times
// its first.
TEST_P(Optimizer, takes_the_steps_of_py_torch) {
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
  run_form(false, Adamw<float>{.table = {there, chunks}, .step = {.learning_rate = 0.01F}, .factor = {}}, stream());
  auto is = get(w.span(), stream());
  EXPECT_NEAR(is[0], 1 - 0.001F - 0.01F, 1e-6);
  EXPECT_NEAR(is[1], -2 + 0.002F + 0.01F, 1e-6);

  table[0].decay = 0;
  there = put(table, stream());
  fill_bytes(m.span(), std::byte{0}, stream());
  for (const float step : {1.0F, 1.9F}) {
    const auto before = get(w.span(), stream());
    run_form(false,
             Sgd<float>{.table = {there, chunks}, .step = {.learning_rate = 0.1F, .momentum = 0.9F}, .factor = {}},
             stream());
    is = get(w.span(), stream());
    EXPECT_NEAR(before[0] - is[0], 0.1F * step * 0.5F, 1e-6);
    EXPECT_NEAR(before[1] - is[1], 0.1F * step * -3, 1e-6);
  }
}
TEST(OptimizerDeathTest, what_makes_no_sense_is_refused) {
  auto stream = std::move(*device::Stream::create(device::Device::cpu()));
  auto x = std::move(*device::Buffer<float>::create(2, stream));
  EXPECT_DEATH(kernels::run(Adamw<float>{.table = {}, .step = {.step = 0}, .factor = {}}, stream),
               "the first step is 1");
  EXPECT_DEATH(kernels::run(Adamw<float>{.table = {}, .step = AdamwStep{}, .factor = x}, stream),
               "spans fit the shape");
  EXPECT_DEATH(
      kernels::run(AdamwFromDevice<float>{.table = {}, .step = device::Span<const AdamwStep>(), .factor = {}}, stream),
      "spans fit the shape");
  EXPECT_DEATH(
      kernels::run(SgdFromDevice<float>{.table = {}, .step = device::Span<const SgdStep>(), .factor = {}}, stream),
      "spans fit the shape");
  EXPECT_DEATH(kernels::run(Sgd<float>{.table = {}, .step = {.nesterov = true}, .factor = {}}, stream),
               "needs a momentum");
}

}  // namespace
}  // namespace dunnock::kernels
