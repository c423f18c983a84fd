// In the place of the matrix product on CUDA, where the toolkit has no cuBLASLt.
#include "matmul_parts.hpp"

namespace dunnock::kernels::detail::cuda {

std::size_t matmul_workspace_bytes(const MatmulShape&, unsigned) noexcept { return 0; }

template <class T, class C>
void run(const Matmul<T, C>&, device::Stream& stream) {
  stream.run("matrix product",
             [] { return Status(make_error(ErrorCode::kUnsupported, "this build of dunnock has no cuBLASLt")); });
}
DUNNOCK_INSTANTIATE_KERNEL_WIDENING(Matmul);

}  // namespace dunnock::kernels::detail::cuda
