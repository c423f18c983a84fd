// In the place of the NCCL communicator, in a build without it.
#include "communicator_impl.hpp"

namespace dunnock::ranks::detail {

Result<std::unique_ptr<CommunicatorImpl>> make_nccl(device::Device, Communicator&, const CommunicatorOptions&) {
  return make_error(ErrorCode::kUnsupported, "this build of dunnock has no NCCL");
}

}  // namespace dunnock::ranks::detail
