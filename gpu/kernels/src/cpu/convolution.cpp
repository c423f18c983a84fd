#include "dunnock/kernels/convolution.hpp"

#include <algorithm>

#include "checks.hpp"
#include "convolution_parts.hpp"
#include "cpu/convolution_cpu.hpp"

namespace dunnock::kernels {
namespace {

using detail::check_optional;
using detail::check_sizes;
using detail::ConvolutionData;

void check_shape(const ConvolutionShape& shape) {
  DUNNOCK_CHECK(shape.valid(), "channels are divided among the groups, and the kernel fits in the padded input");
}

template <class T>
std::size_t cpu_workspace(ConvolutionPass pass, const ConvolutionShape& shape) {
  std::size_t bytes = detail::direct::convolution_workspace<T>(pass, shape);
#if DUNNOCK_HAS_DNNL
  bytes = std::max(bytes, detail::onednn::convolution_workspace<T>(pass, shape).value_or(0));
#endif
  return bytes;
}

template <class T>
void on_cpu(std::string_view name, ConvolutionPass pass, const ConvolutionData<T>& data, const ConvolutionShape& shape,
            device::Stream& stream) {
  stream.run(name, [=] {
#if DUNNOCK_HAS_DNNL
    if (shape.batch != 0) {
      const Status done = detail::onednn::convolution<T>(pass, data, shape);
      if (done || done.error().code != ErrorCode::kUnsupported) return done;
    }
#endif
    detail::direct::convolution<T>(pass, data, shape);
    return Status{};
  });
}

template <class T>
void check_workspace(ConvolutionPass pass, const ConvolutionShape& shape, device::Span<std::byte> workspace,
                     device::Stream& stream) {
  DUNNOCK_CHECK(workspace.size() >= convolution_workspace<T>(pass, shape, stream.device()),
                "the workspace is large enough");
  DUNNOCK_CHECK(reinterpret_cast<std::uintptr_t>(workspace.device_data()) % 256 == 0,
                "the workspace is aligned to 256");
}

/// Depthwise convolutions, and those that cuDNN has no plan for, are our own kernels'.
template <class Call>
bool ran_by_cudnn([[maybe_unused]] const Call& call, [[maybe_unused]] device::Stream& stream) {
#if DUNNOCK_HAS_CUDNN
  return stream.device().backend() == device::Backend::kCuda && !call.shape.depthwise() && call.shape.batch != 0 &&
         detail::cudnn::ran(call, stream);
#else
  return false;
#endif
}

}  // namespace

template <class T>
std::size_t convolution_workspace(ConvolutionPass pass, const ConvolutionShape& shape,
                                  [[maybe_unused]] device::Device device) {
  check_shape(shape);
#if DUNNOCK_HAS_CUDA
  if (device.backend() == device::Backend::kCuda) {
    const std::size_t own = detail::cuda::convolution_workspace(pass, shape, device.info().processors);
#if DUNNOCK_HAS_CUDNN
    if (!shape.depthwise())
      return std::max(own, detail::cudnn::convolution_workspace<T>(pass, shape, device).value_or(0));
#endif
    return own;
  }
#endif
  return cpu_workspace<T>(pass, shape);
}

template <class T>
void run(const Convolution<T>& call, device::Stream& stream) {
  check_shape(call.shape);
  check_sizes(call.shape.x_size(), call.x);
  check_sizes(call.shape.weight_size(), call.weight);
  check_optional(call.shape.out_channels, call.bias);
  check_sizes(call.shape.y_size(), call.y);
  if (call.shape.batch == 0) return;
  check_workspace<T>(ConvolutionPass::kForward, call.shape, call.workspace, stream);
  if (ran_by_cudnn(call, stream) || ran_on_cuda(call, stream)) return;
  ConvolutionData<T> data;
  data.x = call.x.device_data();
  data.weight = call.weight.device_data();
  data.bias = call.bias.device_data();
  data.y = call.y.device_data();
  data.relu = call.relu;
  data.workspace = call.workspace.device_data();
  on_cpu<T>("convolution", ConvolutionPass::kForward, data, call.shape, stream);
}

template <class T>
void run(const ConvolutionInputGradient<T>& call, device::Stream& stream) {
  check_shape(call.shape);
  check_sizes(call.shape.y_size(), call.dy);
  check_sizes(call.shape.weight_size(), call.weight);
  check_sizes(call.shape.x_size(), call.dx);
  if (call.shape.batch == 0) return;
  check_workspace<T>(ConvolutionPass::kInputGradient, call.shape, call.workspace, stream);
  if (ran_by_cudnn(call, stream) || ran_on_cuda(call, stream)) return;
  ConvolutionData<T> data;
  data.dy = call.dy.device_data();
  data.weight = call.weight.device_data();
  data.dx = call.dx.device_data();
  data.workspace = call.workspace.device_data();
  on_cpu<T>("convolution's input gradient", ConvolutionPass::kInputGradient, data, call.shape, stream);
}

template <class T>
void run(const ConvolutionWeightGradient<T>& call, device::Stream& stream) {
  check_shape(call.shape);
  check_sizes(call.shape.y_size(), call.dy);
  check_sizes(call.shape.x_size(), call.x);
  check_sizes(call.shape.weight_size(), call.dweight);
  check_optional(call.shape.out_channels, call.dbias);
  if (call.shape.batch == 0 && call.adds) return;
  check_workspace<T>(ConvolutionPass::kWeightGradient, call.shape, call.workspace, stream);
  if (ran_by_cudnn(call, stream) || ran_on_cuda(call, stream)) return;
  ConvolutionData<T> data;
  data.dy = call.dy.device_data();
  data.x = call.x.device_data();
  data.dweight = call.dweight.device_data();
  data.dbias = call.dbias.device_data();
  data.adds = call.adds;
  data.workspace = call.workspace.device_data();
  on_cpu<T>("convolution's weight gradient", ConvolutionPass::kWeightGradient, data, call.shape, stream);
}

DUNNOCK_INSTANTIATE_KERNELS(Convolution, ConvolutionInputGradient, ConvolutionWeightGradient);

template std::size_t convolution_workspace<float>(ConvolutionPass, const ConvolutionShape&, device::Device);
template std::size_t convolution_workspace<device::Bf16>(ConvolutionPass, const ConvolutionShape&, device::Device);

}  // namespace dunnock::kernels
