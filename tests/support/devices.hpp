// The devices that a test of the gpu layer runs on: the CPU, and the GPU where there is one.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "dunnock/gpu/device.hpp"

namespace dunnock::test {

/// A test that runs once a backend; on CUDA it is skipped where there is none, and says why.
class OnEachDevice : public ::testing::TestWithParam<gpu::Backend> {
 protected:
  void SetUp() override {
    if (GetParam() == gpu::Backend::kCuda && gpu::Device::cuda_count() == 0) GTEST_SKIP() << gpu::Device::why_no_cuda();
  }
  [[nodiscard]] static gpu::Device device() {
    return GetParam() == gpu::Backend::kCpu ? gpu::Device::cpu() : gpu::Device::cuda().value();
  }
};

inline std::string name_of_backend(const ::testing::TestParamInfo<gpu::Backend>& info) {
  return info.param == gpu::Backend::kCpu ? "cpu" : "cuda";
}

}  // namespace dunnock::test

/// Gives the tests of `suite`, an alias of OnEachDevice, their devices.
#define DUNNOCK_ON_EACH_DEVICE(suite)                                                                    \
  INSTANTIATE_TEST_SUITE_P(Devices, suite,                                                               \
                           ::testing::Values(dunnock::gpu::Backend::kCpu, dunnock::gpu::Backend::kCuda), \
                           dunnock::test::name_of_backend)
