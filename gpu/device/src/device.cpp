#include "dunnock/device/device.hpp"

#include "driver.hpp"

namespace dunnock::device {

Device Device::cpu(unsigned ordinal) { return Device(detail::cpu_driver(ordinal)); }

Result<Device> Device::cuda(unsigned ordinal) {
  DUNNOCK_TRY(auto driver, detail::cuda_driver(ordinal));
  return Device(*driver);
}

unsigned Device::cuda_count() {
  std::string why;
  return detail::cuda_devices(why);
}

std::string Device::why_no_cuda() {
  std::string why;
  (void)detail::cuda_devices(why);
  return why;
}

const DeviceInfo& Device::info() const noexcept { return driver_->info(); }
std::string Device::label() const {
  return (backend() == Backend::kCpu ? "cpu:" : "cuda:") + std::to_string(ordinal());
}
MemoryStats Device::memory_stats() const { return driver_->allocator().stats(); }
void Device::reset_memory_peak() { driver_->allocator().reset_peak(); }
void Device::set_memory_limit(std::uint64_t bytes) { driver_->allocator().set_limit(bytes); }
void Device::release_kept_memory() { driver_->allocator().release_kept(); }

}  // namespace dunnock::device
