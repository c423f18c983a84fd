// Random numbers: the published ones, the same on every backend, and as they should be distributed.
#include "dunnock/kernels/random.hpp"

#include <array>
#include <cmath>
#include <numeric>

#include "runners.hpp"

namespace dunnock::kernels {
namespace {

bool is(const PhiloxBlock& block, std::array<std::uint32_t, 4> words) {
  return std::equal(words.begin(), words.end(), block.words);
}

TEST(Philox, makes_the_published_numbers) {
  EXPECT_TRUE(is(philox({0, 0, 0, 0}, 0, 0), {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  constexpr std::uint32_t kOnes = 0xffffffff;
  EXPECT_TRUE(is(philox({kOnes, kOnes, kOnes, kOnes}, kOnes, kOnes), {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_TRUE(is(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0xa4093822, 0x299f31d0),
                 {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

class Randoms : public test::OnEachRunner {
 protected:
  RandomKey any_key() {
    // Blocks whose numbers pass 2^32, and those at the end of 2^64.
    constexpr std::uint64_t kFirst[] = {0, 1, 0xfffffff0U, ~0ULL - 5};
    return {.seed = random()(), .first_block = kFirst[random()() % std::size(kFirst)]};
  }

  /// Values after the results, which must not be written: a partial group ends where it should.
  static constexpr std::size_t kGuards = 16;
  static constexpr float kGuard = 77;
  template <class T>
  static std::vector<T> guarded(std::size_t count) {
    return std::vector<T>(count + kGuards, T(kGuard));
  }
  template <class T>
  static std::vector<T> unguarded(std::vector<T> values) {
    for (std::size_t i = values.size() - kGuards; i < values.size(); ++i) EXPECT_EQ(values[i], T(kGuard)) << i;
    values.resize(values.size() - kGuards);
    return values;
  }

  template <class T>
  std::vector<T> uniform(std::size_t count, const RandomKey& key, bool twin) {
    device::Stream& on = twin ? twin_stream() : stream();
    auto all = put(guarded<T>(count), on);
    const device::Span<T> out = all.span().subspan(0, count);
    run_form(twin, RandomUniform<T>{.out = out, .key = key}, on);
    return unguarded(get(all.span(), on));
  }
  template <class T>
  std::vector<T> normals(std::size_t count, const NormalShape& shape, const RandomKey& key, bool twin) {
    device::Stream& on = twin ? twin_stream() : stream();
    auto all = put(guarded<T>(count), on);
    const device::Span<T> out = all.span().subspan(0, count);
    run_form(twin, RandomNormal<T>{.out = out, .shape = shape, .key = key}, on);
    return unguarded(get(all.span(), on));
  }
  template <class T>
  void dropout_agrees() {
    for (int round = 0; round < 12; ++round) {
      const std::size_t count = any_size(5000);
      const auto x = normal<T>(count);
      const RandomKey key = any_key();
      const float keep = round == 0 ? 1.0F : 0.05F + 0.9F * static_cast<float>(random()() % 1000) / 1000;
      const bool stores = round % 2 == 0;
      const auto run = [&](bool twin, std::vector<std::uint8_t>& bits, std::vector<T>& again) {
        device::Stream& on = twin ? twin_stream() : stream();
        auto in = put(x, on);
        auto y = put(std::vector<T>(count), on);
        auto masked = put(std::vector<T>(count), on);
        auto mask = put(std::vector<std::uint8_t>(stores ? (count + 7) / 8 : 0, 0xaa), on);
        run_form(twin, Dropout<T>{.x = in, .y = y, .mask = mask, .keep = keep, .key = key}, on);
        if (stores) run_form(twin, ApplyMask<T>{.x = in, .mask = mask, .y = masked, .keep = keep}, on);
        bits = get(mask.span(), on);
        again = get(masked.span(), on);
        return get(y.span(), on);
      };
      std::vector<std::uint8_t> bits, twin_bits;
      std::vector<T> again, twin_again;
      const auto y = run(false, bits, again);
      const auto twin = run(true, twin_bits, twin_again);
      test::expect_close(y, twin, test::kRounding<T>, 0, "y");
      test::expect_close(again, twin_again, test::kRounding<T>, 0, "y by mask");
      EXPECT_EQ(bits, twin_bits);
      for (std::size_t i = 0; i < count; ++i)
        EXPECT_EQ(static_cast<float>(y[i]) == 0, static_cast<float>(twin[i]) == 0);
      if (stores) {
        EXPECT_EQ(again, y);
      }
    }
  }
};
DUNNOCK_ON_EACH_RUNNER(Randoms);

TEST_P(Randoms, uniform_numbers_have_the_same_bits_as_the_twins) {
  for (int round = 0; round < 10; ++round) {
    const std::size_t count = any_size(5000);
    const RandomKey key = any_key();
    EXPECT_EQ(uniform<float>(count, key, false), uniform<float>(count, key, true)) << count;
    EXPECT_EQ(uniform<device::Bf16>(count, key, false), uniform<device::Bf16>(count, key, true)) << count;
  }
}
TEST_P(Randoms, normal_numbers_agree_with_their_twin) {
  for (int round = 0; round < 10; ++round) {
    const std::size_t count = any_size(5000);
    const RandomKey key = any_key();
    const NormalShape shape{.mean = 0.5F, .deviation = 3};
    test::expect_close(normals<float>(count, shape, key, false), normals<float>(count, shape, key, true), 1e-5, 1e-4,
                       "f32");
    test::expect_close(normals<device::Bf16>(count, shape, key, false), normals<device::Bf16>(count, shape, key, true),
                       test::kRounding<device::Bf16>, 1e-4, "bf16");
  }
}
TEST_P(Randoms, dropout_of_floats_agrees_with_its_twin) { dropout_agrees<float>(); }
TEST_P(Randoms, dropout_of_bf16_agrees_with_its_twin) { dropout_agrees<device::Bf16>(); }
TEST_P(Randoms, of_the_next_blocks_continue_those_before) {
  const RandomKey key = any_key();
  const auto all = uniform<float>(1000, key, false);
  const auto behind =
      uniform<float>(600, {.seed = key.seed, .first_block = key.first_block + random_blocks(400)}, false);
  EXPECT_TRUE(std::equal(behind.begin(), behind.end(), all.begin() + 400));
}

// Of the twin's numbers, which the others have been compared with; fixed seeds.
class Distribution : public Randoms {};
INSTANTIATE_TEST_SUITE_P(Cpu, Distribution, ::testing::Values(test::Runner::kCpu), test::name_of_runner);

TEST_P(Distribution, of_uniform_numbers_is_flat) {
  constexpr std::size_t kCount = 1 << 20;
  constexpr std::size_t kBins = 256;
  for (const std::uint64_t number : {1U, 2U, 3U}) {
    const auto values = uniform<float>(kCount, {.seed = number}, false);
    std::vector<double> bins(kBins);
    for (const float value : values) ++bins[static_cast<std::size_t>(value * kBins)];
    double chi = 0;
    for (const double bin : bins) chi += std::pow(bin - double(kCount) / kBins, 2) / (double(kCount) / kBins);
    EXPECT_GT(chi, 255 - 5 * std::sqrt(2 * 255.0));  // Mean 255, deviation sqrt(2 * 255).
    EXPECT_LT(chi, 255 + 5 * std::sqrt(2 * 255.0));
    double product = 0;
    for (std::size_t i = 1; i < kCount; ++i) product += (values[i] - 0.5) * (values[i - 1] - 0.5);
    EXPECT_LT(std::abs(product / kCount * 12), 5 / std::sqrt(double(kCount)));
  }
}
TEST_P(Distribution, of_normal_numbers_has_its_moments) {
  constexpr std::size_t kCount = 1 << 20;
  const auto values = normals<float>(kCount, {.mean = 2, .deviation = 0.5F}, {.seed = 7}, false);
  double moments[5] = {};
  for (const float value : values) {
    const double z = (double(value) - 2) / 0.5;
    for (int power = 1; power <= 4; ++power) moments[power] += std::pow(z, power) / kCount;
  }
  const double error = 5 / std::sqrt(double(kCount));
  EXPECT_NEAR(moments[1], 0, error);
  EXPECT_NEAR(moments[2], 1, error * std::sqrt(2));
  EXPECT_NEAR(moments[3], 0, error * std::sqrt(15));
  EXPECT_NEAR(moments[4], 3, error * std::sqrt(96));
}
TEST_P(Distribution, of_kept_values_is_as_many_as_asked_for) {
  constexpr std::size_t kCount = 1 << 20;
  for (const float keep : {0.1F, 0.5F, 0.9F}) {
    auto x = put(std::vector<float>(kCount, 1), stream());
    kernels::run(Dropout<float>{.x = x, .y = x, .mask = {}, .keep = keep, .key = {.seed = 11}}, stream());
    double kept = 0;
    for (const float value : get(x.span(), stream())) {
      ASSERT_TRUE(value == 0 || std::abs(value * keep - 1) < 1e-6F);
      kept += value != 0 ? 1 : 0;
    }
    const double deviation = std::sqrt(double(keep) * (1 - double(keep)) / kCount);
    EXPECT_NEAR(kept / kCount, double(keep), 5 * deviation);
  }
}

TEST(DropoutDeathTest, keeps_a_share) {
  auto stream = std::move(*device::Stream::create(device::Device::cpu()));
  auto x = std::move(*device::Buffer<float>::create(4, stream));
  EXPECT_DEATH(kernels::run(Dropout<float>{.x = x, .y = x, .mask = {}, .keep = 0, .key = {}}, stream),
               "the kept share is above 0");
  EXPECT_DEATH(kernels::run(Dropout<float>{.x = x, .y = x, .mask = {}, .keep = 1.5F, .key = {}}, stream),
               "the kept share is at most 1");
  EXPECT_DEATH(
      kernels::run(Dropout<float>{.x = x, .y = x.span().subspan(0, 2), .mask = {}, .keep = 0.5F, .key = {}}, stream),
      "spans fit the shape");
}

}  // namespace
}  // namespace dunnock::kernels
