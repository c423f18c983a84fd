// The two ways in which the CPU does convolutions, called on a stream's thread. Both give what the public functions
// promise.
//   direct   our loops; everywhere, for all shapes
//   onednn   oneDNN, where the build has it; it may have nothing for a shape
#pragma once

#include <cstddef>
#include <optional>

#include "dunnock/kernels/convolution.hpp"

namespace dunnock::kernels::detail {

/// What a convolution reads and writes. Of a pass only its own are there; a bias may be missing too.
template <class T>
struct ConvolutionData {
  const T* x = nullptr;
  const T* weight = nullptr;
  const T* bias = nullptr;
  T* y = nullptr;
  const T* dy = nullptr;
  T* dx = nullptr;
  T* dweight = nullptr;
  T* dbias = nullptr;
  bool relu = false;
  bool adds = false;
  std::byte* workspace = nullptr;
};

namespace direct {
template <class T>
[[nodiscard]] std::size_t convolution_workspace(ConvolutionPass pass, const ConvolutionShape& shape);
template <class T>
void convolution(ConvolutionPass pass, const ConvolutionData<T>& data, const ConvolutionShape& shape);
}  // namespace direct

#if DUNNOCK_HAS_DNNL
namespace onednn {
/// For any number of threads that a stream may have; nothing when oneDNN can't do it.
template <class T>
[[nodiscard]] std::optional<std::size_t> convolution_workspace(ConvolutionPass pass, const ConvolutionShape& shape);
/// Errors: Unsupported, when oneDNN can't do it: nothing is written then; Device, when it fails.
template <class T>
[[nodiscard]] Status convolution(ConvolutionPass pass, const ConvolutionData<T>& data, const ConvolutionShape& shape);
}  // namespace onednn
#endif

}  // namespace dunnock::kernels::detail
