// What machine a run was on.
#pragma once

#include <string>

#include "dunnock/device/device.hpp"

namespace dunnock::gpu_check {

struct DeviceFacts {
  device::DeviceInfo info;
  std::string label;
  std::string driver;       // Of the GPU, as it names itself; empty: none.
  std::string cuda;         // Versions: "driver 13.0, runtime 13.0"; empty: built without.
  unsigned clock_mhz = 0;   // The most that the multiprocessors run at. 0: unknown.
  unsigned memory_mhz = 0;  // The same of the memory.
  unsigned bus_bits = 0;    // Of the memory.
};

[[nodiscard]] DeviceFacts facts_of(device::Device device);
/// Now, in ISO 8601, UTC.
[[nodiscard]] std::string date_now();

}  // namespace dunnock::gpu_check
