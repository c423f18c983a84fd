#include "facts.hpp"

#include <array>
#include <ctime>
#include <fstream>

#if DUNNOCK_HAS_CUDA
#include <cuda_runtime.h>
#endif

namespace dunnock::gpu_check {

DeviceFacts facts_of(device::Device device) {
  DeviceFacts facts;
  facts.info = device.info();
  facts.label = device.label();
#if DUNNOCK_HAS_CUDA
  const auto version = [](int number) {
    return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
  };
  int driver = 0;
  int runtime = 0;
  (void)cudaDriverGetVersion(&driver);  // 0: there is none.
  (void)cudaRuntimeGetVersion(&runtime);
  facts.cuda = "driver " + (driver == 0 ? std::string("none") : version(driver)) + ", runtime " + version(runtime);
  if (device.backend() == device::Backend::kCuda) {
    const auto attribute = [&](cudaDeviceAttr which) {
      int value = 0;
      if (cudaDeviceGetAttribute(&value, which, static_cast<int>(device.ordinal())) != cudaSuccess) return 0U;
      return static_cast<unsigned>(value);
    };
    facts.clock_mhz = attribute(cudaDevAttrClockRate) / 1000;
    facts.memory_mhz = attribute(cudaDevAttrMemoryClockRate) / 1000;
    facts.bus_bits = attribute(cudaDevAttrGlobalMemoryBusWidth);
    std::ifstream file("/proc/driver/nvidia/version");
    std::getline(file, facts.driver);
  }
#endif
  return facts;
}

std::string date_now() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  (void)gmtime_r(&now, &utc);
  std::array<char, 32> text{};
  (void)std::strftime(text.data(), text.size(), "%Y-%m-%dT%H:%M:%SZ", &utc);
  return text.data();
}

}  // namespace dunnock::gpu_check
