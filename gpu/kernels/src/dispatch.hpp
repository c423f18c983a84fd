// How a kernel gets to its form.
//
//   run(call, stream)      checks shapes; on a CUDA stream runs CUDA's form, else issues the CPU's work
//   detail::cuda::run      src/cuda/<family>.cu
//   detail::emulated::run  the same file once more, compiled for the host by the tests (tests/gpu/kernels/emulator)
//   reference::run         the twin that is written to be read; what the others are compared with
#pragma once

#include "dunnock/device/bf16.hpp"
#include "dunnock/device/stream.hpp"
#include "dunnock/kernels/kernel.hpp"

/// The namespace of what src/cuda defines. The emulated build (tests/gpu/kernels/emulator) has another.
#if !defined(DUNNOCK_KERNELS)
#define DUNNOCK_KERNELS cuda
#endif

/// Instantiates a form of up to 16 kernels for the types that they have, in the namespace of the form.
#define DUNNOCK_INSTANTIATE_KERNELS(...) DUNNOCK_SCAN_16(DUNNOCK_INSTANTIATE_NEXT(__VA_ARGS__)) static_assert(true)
#define DUNNOCK_INSTANTIATE_NEXT(Call, ...)                      \
  template void run(const Call<float>&, device::Stream&);        \
  template void run(const Call<device::Bf16>&, device::Stream&); \
  __VA_OPT__(DUNNOCK_INSTANTIATE_REST DUNNOCK_NO_ARGUMENTS(__VA_ARGS__))
#define DUNNOCK_INSTANTIATE_REST() DUNNOCK_INSTANTIATE_NEXT
#define DUNNOCK_NO_ARGUMENTS ()
#define DUNNOCK_SCAN_16(...) DUNNOCK_SCAN_4(DUNNOCK_SCAN_4(DUNNOCK_SCAN_4(DUNNOCK_SCAN_4(__VA_ARGS__))))
#define DUNNOCK_SCAN_4(...) DUNNOCK_SCAN(DUNNOCK_SCAN(DUNNOCK_SCAN(DUNNOCK_SCAN(__VA_ARGS__))))
#define DUNNOCK_SCAN(...) __VA_ARGS__
#define DUNNOCK_INSTANTIATE_KERNEL_2(Call, T, U) template void run(const Call<T, U>&, device::Stream&)
/// For two equal types, and for the two that make the second one wider, or narrower.
#define DUNNOCK_INSTANTIATE_KERNEL_WIDENING(Call)                 \
  DUNNOCK_INSTANTIATE_KERNEL_2(Call, float, float);               \
  DUNNOCK_INSTANTIATE_KERNEL_2(Call, device::Bf16, device::Bf16); \
  DUNNOCK_INSTANTIATE_KERNEL_2(Call, device::Bf16, float)
#define DUNNOCK_INSTANTIATE_KERNEL_NARROWING(Call)                \
  DUNNOCK_INSTANTIATE_KERNEL_2(Call, float, float);               \
  DUNNOCK_INSTANTIATE_KERNEL_2(Call, device::Bf16, device::Bf16); \
  DUNNOCK_INSTANTIATE_KERNEL_2(Call, float, device::Bf16)

namespace dunnock::kernels {

#if DUNNOCK_HAS_CUDA
inline constexpr bool kHasCuda = true;
#else
inline constexpr bool kHasCuda = false;
#endif

/// Runs CUDA's form if the stream is one of CUDA, and says whether it did. A build without CUDA has no such streams.
/// The header of the kernel must be included before this one.
template <class Call>
[[nodiscard]] bool ran_on_cuda(const Call& call, device::Stream& stream) {
  if constexpr (kHasCuda) {
    if (stream.device().backend() == device::Backend::kCuda) {
      detail::cuda::run(call, stream);
      return true;
    }
  }
  return false;
}

}  // namespace dunnock::kernels
