// What the thread's state in CUDA has to be for a call, for a scope.
#pragma once

#include <cuda_runtime.h>

namespace dunnock::device::detail {

/// Makes a device the thread's current one: kernels, memory and the handles of libraries belong to that one, whatever
/// stream they are given. A failure shows in the calls that follow.
class OnDevice {
 public:
  explicit OnDevice(unsigned ordinal) noexcept {
    const auto wanted = static_cast<int>(ordinal);
    if (cudaGetDevice(&before_) != cudaSuccess) before_ = wanted;
    changed_ = before_ != wanted && cudaSetDevice(wanted) == cudaSuccess;
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  ~OnDevice() {
    if (changed_) (void)cudaSetDevice(before_);
  }

 private:
  int before_ = 0;
  bool changed_ = false;
};

/// Lets the thread ask for events, and make what libraries keep (handles, plans: they allocate and load modules), while
/// one of its streams records: CUDA refuses such calls then, and they spoil the recording, though they are no part of
/// it.
class BesideCapture {
 public:
  BesideCapture() noexcept { (void)cudaThreadExchangeStreamCaptureMode(&mode_); }
  BesideCapture(const BesideCapture&) = delete;
  BesideCapture& operator=(const BesideCapture&) = delete;
  ~BesideCapture() { (void)cudaThreadExchangeStreamCaptureMode(&mode_); }

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;  // and, once exchanged, what it was
};

}  // namespace dunnock::device::detail
