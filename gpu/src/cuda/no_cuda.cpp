// In the place of the CUDA backend, in a build without it.
#include "driver.hpp"
#include "dunnock/base/check.hpp"
#include "filter_words.hpp"

namespace dunnock::gpu::detail {

unsigned cuda_devices(std::string& why_none) {
  why_none = "this build of dunnock has no CUDA";
  return 0;
}

Result<Driver*> cuda_driver(unsigned) {
  return make_error(ErrorCode::kUnsupported, "this build of dunnock has no CUDA");
}

// Nobody has a CUDA stream, so nobody comes here.
template <class Key>
void cuda_filter(FilterOperation, const FilterShape&, std::uint64_t*, DeviceSpan<const Key>, DeviceSpan<std::uint8_t>,
                 Stream&) {
  DUNNOCK_CHECK(false, "there is no CUDA stream in a build without CUDA");
}
template void cuda_filter<std::uint64_t>(FilterOperation, const FilterShape&, std::uint64_t*,
                                         DeviceSpan<const std::uint64_t>, DeviceSpan<std::uint8_t>, Stream&);
template void cuda_filter<Key128>(FilterOperation, const FilterShape&, std::uint64_t*, DeviceSpan<const Key128>,
                                  DeviceSpan<std::uint8_t>, Stream&);
void cuda_longest_prefix(const FilterShape&, std::uint64_t*, DeviceSpan<const Key128>, DeviceSpan<const std::uint32_t>,
                         DeviceSpan<std::uint32_t>, Stream&) {
  DUNNOCK_CHECK(false, "there is no CUDA stream in a build without CUDA");
}

}  // namespace dunnock::gpu::detail
