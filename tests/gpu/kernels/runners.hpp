// Where a test of a kernel runs it: on the CPU backend, the CUDA kernel emulated thread by thread, and the CUDA kernel
// on a GPU where there is one. What comes out is compared with the twin in namespace reference.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "dunnock/device/bf16.hpp"
#include "dunnock/device/device.hpp"
#include "dunnock/device/memory.hpp"
#include "dunnock/kernels/kernel.hpp"
#include "emulator/cuda_emulator.hpp"
#include "support/seed.hpp"

namespace dunnock::kernels::test {

using dunnock::test::seed;

enum class Runner : std::uint8_t { kCpu, kEmulated, kCuda };

inline std::string name_of_runner(const ::testing::TestParamInfo<Runner>& info) {
  if (info.param == Runner::kCpu) return "cpu";
  return info.param == Runner::kEmulated ? "emulated" : "cuda";
}

/// A test that runs once a runner; on CUDA it is skipped where there is none, and says why. Small shapes when emulated:
/// a thread's turn costs some 50 ns.
class OnEachRunner : public ::testing::TestWithParam<Runner> {
 protected:
  void SetUp() override {
    if (GetParam() == Runner::kCuda && device::Device::cuda_count() == 0) GTEST_SKIP() << device::Device::why_no_cuda();
    emulator::set_seed(seed());
    random_.seed(seed());
    stream_.emplace(std::move(
        *device::Stream::create(GetParam() == Runner::kCuda ? device::Device::cuda().value() : device::Device::cpu())));
    twin_stream_.emplace(std::move(*device::Stream::create(device::Device::cpu())));
  }
  [[nodiscard]] static bool emulated() { return GetParam() == Runner::kEmulated; }
  /// Runs the twin, or the form that this runner is for.
  template <class Call>
  static void run_form(bool twin, const Call& call, device::Stream& on) {
    if (twin) return reference::run(call, on);
    if (emulated()) return detail::emulated::run(call, on);
    kernels::run(call, on);
  }
  [[nodiscard]] static bool on_cuda() { return GetParam() == Runner::kCuda; }

  device::Stream& stream() { return *stream_; }
  /// For the twins, which run on the CPU whatever the runner.
  device::Stream& twin_stream() { return *twin_stream_; }
  std::mt19937_64& random() { return random_; }
  /// 1 .. max.
  std::size_t any_size(std::size_t max) { return 1 + random_() % max; }

  template <class T>
  std::vector<T> normal(std::size_t count, float deviation = 1, float mean = 0) {
    std::normal_distribution<float> distribution(mean, deviation);
    std::vector<T> values(count);
    for (T& value : values) value = T(distribution(random_));
    return values;
  }

  template <class T>
  static device::Buffer<T> put(const std::vector<T>& values, device::Stream& on) {
    auto buffer = std::move(*device::Buffer<T>::create(values.size(), on));
    upload(buffer.span(), values, on);
    EXPECT_TRUE(on.synchronize());  // `values` may go.
    return buffer;
  }
  template <class T>
  static std::vector<T> get(device::Span<T> span, device::Stream& on) {
    std::vector<T> values(span.size());
    download(values, span, on);
    const Status done = on.synchronize();
    EXPECT_TRUE(done) << done.error().message;
    return values;
  }

 private:
  std::mt19937_64 random_;
  std::optional<device::Stream> stream_;
  std::optional<device::Stream> twin_stream_;
};

/// The distance that rounding to T allows, relative: of bf16 a unit in the last place, since a sum in another order may
/// be rounded to the other side; of float some units.
template <class T>
inline constexpr double kRounding = std::is_same_v<T, float> ? 2e-6 : 1.0 / 127;

/// Each value lies within absolute + relative * |expected| of the twin's.
template <class T>
void expect_close(const std::vector<T>& values, const std::vector<T>& expected, double relative, double absolute,
                  const std::string& what) {
  ASSERT_EQ(values.size(), expected.size()) << what;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const auto is = static_cast<double>(static_cast<float>(values[i]));
    const auto should = static_cast<double>(static_cast<float>(expected[i]));
    ASSERT_LE(std::abs(is - should), absolute + relative * std::abs(should))
        << what << " [" << i << "] of " << values.size() << ": " << is << ", the twin has " << should << " (seed "
        << seed() << ")";
  }
}

}  // namespace dunnock::kernels::test

#define DUNNOCK_ON_EACH_RUNNER(suite)                                                                    \
  INSTANTIATE_TEST_SUITE_P(                                                                              \
      Runners, suite,                                                                                    \
      ::testing::Values(dunnock::kernels::test::Runner::kCpu, dunnock::kernels::test::Runner::kEmulated, \
                        dunnock::kernels::test::Runner::kCuda),                                          \
      dunnock::kernels::test::name_of_runner)
