// How a kernel's public function gets to its backend.
//
//   public function   checks shapes; on a CUDA stream calls cuda::name(...), else issues the CPU's work on the stream
//   cuda::name        gpu/src/cuda/<family>.cu: the kernel and its launcher, of the same signature
//   emulated::name    the same file once more, compiled for the host by the tests (tests/kernels/emulator)
//   reference::name   the twin that is written to be read; what the others are compared with
#pragma once

#include "dunnock/gpu/stream.hpp"

/// The namespace of the launchers in <family>_launchers.hpp. The emulated build (tests/kernels/emulator) has another.
#if !defined(DUNNOCK_KERNELS)
#define DUNNOCK_KERNELS cuda
#endif

/// `DUNNOCK_ON_CUDA(stream, cuda::name(...));` returns after the call when the stream is one of CUDA. A build without
/// CUDA has no such streams, and no such function.
#if DUNNOCK_HAS_CUDA
#define DUNNOCK_ON_CUDA(stream, call)                    \
  do {                                                   \
    if ((stream).device().backend() == Backend::kCuda) { \
      call;                                              \
      return;                                            \
    }                                                    \
  } while (false)
#else
#define DUNNOCK_ON_CUDA(stream, call) \
  do {                                \
  } while (false)
#endif
