// In the place of the MPI communicator, in a build without it.
#include "communicator_impl.hpp"

namespace dunnock::ranks::detail {

Result<std::unique_ptr<CommunicatorImpl>> make_mpi(const CommunicatorOptions&) {
  return make_error(ErrorCode::kUnsupported, "this build of dunnock has no MPI");
}

}  // namespace dunnock::ranks::detail
