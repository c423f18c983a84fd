// In the place of the CUDA backend, in a build without it.
#include "driver.hpp"
#include "dunnock/base/check.hpp"

namespace dunnock::device::detail {

unsigned cuda_devices(std::string& why_none) {
  why_none = "this build of dunnock has no CUDA";
  return 0;
}

Result<Driver*> cuda_driver(unsigned) {
  return make_error(ErrorCode::kUnsupported, "this build of dunnock has no CUDA");
}

}  // namespace dunnock::device::detail
