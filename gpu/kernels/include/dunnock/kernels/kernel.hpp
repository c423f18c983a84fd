// How a kernel is declared: a struct with all arguments of a call, and run() in each form that has the same meaning.
//
//   template <class T>
//   struct Scale {                         y = factor * x
//     device::Span<const T> x;
//     float factor;
//     device::Span<T> y;
//   };
//   DUNNOCK_KERNEL(Scale);
//
//   kernels::run(Scale<float>{.x = x, .factor = 2, .y = y}, stream);             on the device of the stream
//   kernels::reference::run(Scale<float>{.x = x, .factor = 2, .y = y}, stream);  its twin: in double, on CPU streams
//
// run() neither waits nor allocates device memory. Spans must stay valid until the stream has done the work.
#pragma once

#include "dunnock/device/stream.hpp"

#define DUNNOCK_KERNEL_FORMS(head, ...)                           \
  head void run(const __VA_ARGS__& call, device::Stream& stream); \
  namespace reference {                                           \
  head void run(const __VA_ARGS__& call, device::Stream& stream); \
  }                                                               \
  namespace detail::cuda {                                        \
  head void run(const __VA_ARGS__& call, device::Stream& stream); \
  }                                                               \
  namespace detail::emulated {                                    \
  head void run(const __VA_ARGS__& call, device::Stream& stream); \
  }                                                               \
  static_assert(true)

/// Declares the forms of a kernel whose call is `Call<T>`; of DUNNOCK_KERNEL_2, `Call<T, U>`; of DUNNOCK_KERNEL_0,
/// `Call`.
#define DUNNOCK_KERNEL(Call) DUNNOCK_KERNEL_FORMS(template <class T>, Call<T>)
#define DUNNOCK_KERNEL_2(Call) DUNNOCK_KERNEL_FORMS(DUNNOCK_KERNEL_HEAD_2, Call<T, U>)
#define DUNNOCK_KERNEL_0(Call) DUNNOCK_KERNEL_FORMS(, Call)
#define DUNNOCK_KERNEL_HEAD_2 template <class T, class U>

namespace dunnock::kernels {
/// No kernel: with it, all forms of run() are known names before the first kernel is declared.
struct NoKernel;
DUNNOCK_KERNEL_0(NoKernel);
}  // namespace dunnock::kernels
