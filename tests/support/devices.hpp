// The devices that a test of the gpu layer runs on: the CPU, and the GPU where there is one.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "dunnock/device/device.hpp"

namespace dunnock::test {

/// A test that runs once a backend; on CUDA it is skipped where there is none, and says why.
class OnEachDevice : public ::testing::TestWithParam<device::Backend> {
 protected:
  void SetUp() override {
    if (GetParam() == device::Backend::kCuda && device::Device::cuda_count() == 0)
      GTEST_SKIP() << device::Device::why_no_cuda();
  }
  [[nodiscard]] static device::Device device() {
    return GetParam() == device::Backend::kCpu ? device::Device::cpu() : device::Device::cuda().value();
  }
};

inline std::string name_of_backend(const ::testing::TestParamInfo<device::Backend>& info) {
  return info.param == device::Backend::kCpu ? "cpu" : "cuda";
}

}  // namespace dunnock::test

/// Gives the tests of `suite`, an alias of OnEachDevice, their devices.
#define DUNNOCK_ON_EACH_DEVICE(suite)                                                                        \
  INSTANTIATE_TEST_SUITE_P(Devices, suite, ::testing::Values(device::Backend::kCpu, device::Backend::kCuda), \
                           dunnock::test::name_of_backend)
