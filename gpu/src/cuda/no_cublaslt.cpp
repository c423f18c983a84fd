// In the place of the matrix product on CUDA, where the toolkit has no cuBLASLt.
#include "kernels/matmul_launchers.hpp"

namespace dunnock::gpu::detail::cuda {

std::size_t matmul_workspace_bytes(const MatmulShape&, unsigned) noexcept { return 0; }

template <class T, class C>
void matmul(const MatmulCall<T, C>&, Stream& stream) {
  stream.run("matrix product",
             [] { return Status(make_error(ErrorCode::kUnsupported, "this build of dunnock has no cuBLASLt")); });
}
template void matmul<float, float>(const MatmulCall<float, float>&, Stream&);
template void matmul<Bf16, Bf16>(const MatmulCall<Bf16, Bf16>&, Stream&);
template void matmul<Bf16, float>(const MatmulCall<Bf16, float>&, Stream&);

}  // namespace dunnock::gpu::detail::cuda
