#include "dunnock/gpu/kernels/convolution.hpp"

#include <algorithm>

#include "kernels/checks.hpp"
#include "kernels/convolution_cpu.hpp"
#include "kernels/convolution_launchers.hpp"

namespace dunnock::gpu {
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
            Stream& stream) {
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
void check_workspace(ConvolutionPass pass, const ConvolutionShape& shape, DeviceSpan<std::byte> workspace,
                     Stream& stream) {
  DUNNOCK_CHECK(workspace.size() >= convolution_workspace<T>(pass, shape, stream.device()),
                "the workspace is large enough");
  DUNNOCK_CHECK(reinterpret_cast<std::uintptr_t>(workspace.device_data()) % 256 == 0,
                "the workspace is aligned to 256");
}

}  // namespace

template <class T>
std::size_t convolution_workspace(ConvolutionPass pass, const ConvolutionShape& shape, [[maybe_unused]] Device device) {
  check_shape(shape);
#if DUNNOCK_HAS_CUDA
  if (device.backend() == Backend::kCuda) {
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
void convolution(DeviceSpan<const T> x, DeviceSpan<const T> weight, DeviceSpan<const T> bias, DeviceSpan<T> y,
                 bool relu, const ConvolutionShape& shape, DeviceSpan<std::byte> workspace, Stream& stream) {
  check_shape(shape);
  check_sizes(shape.x_size(), x);
  check_sizes(shape.weight_size(), weight);
  check_optional(shape.out_channels, bias);
  check_sizes(shape.y_size(), y);
  if (shape.batch == 0) return;
  check_workspace<T>(ConvolutionPass::kForward, shape, workspace, stream);
#if DUNNOCK_HAS_CUDNN
  if (stream.device().backend() == Backend::kCuda && !shape.depthwise() &&
      detail::cudnn::convolution<T>(x, weight, bias, y, relu, shape, workspace, stream))
    return;
#endif
  DUNNOCK_ON_CUDA(stream, detail::cuda::convolution<T>(x, weight, bias, y, relu, shape, workspace, stream));
  ConvolutionData<T> data;
  data.x = x.device_data();
  data.weight = weight.device_data();
  data.bias = bias.device_data();
  data.y = y.device_data();
  data.relu = relu;
  data.workspace = workspace.device_data();
  on_cpu<T>("convolution", ConvolutionPass::kForward, data, shape, stream);
}

template <class T>
void convolution_input_gradient(DeviceSpan<const T> dy, DeviceSpan<const T> weight, DeviceSpan<T> dx,
                                const ConvolutionShape& shape, DeviceSpan<std::byte> workspace, Stream& stream) {
  check_shape(shape);
  check_sizes(shape.y_size(), dy);
  check_sizes(shape.weight_size(), weight);
  check_sizes(shape.x_size(), dx);
  if (shape.batch == 0) return;
  check_workspace<T>(ConvolutionPass::kInputGradient, shape, workspace, stream);
#if DUNNOCK_HAS_CUDNN
  if (stream.device().backend() == Backend::kCuda && !shape.depthwise() &&
      detail::cudnn::convolution_input_gradient<T>(dy, weight, dx, shape, workspace, stream))
    return;
#endif
  DUNNOCK_ON_CUDA(stream, detail::cuda::convolution_input_gradient<T>(dy, weight, dx, shape, workspace, stream));
  ConvolutionData<T> data;
  data.dy = dy.device_data();
  data.weight = weight.device_data();
  data.dx = dx.device_data();
  data.workspace = workspace.device_data();
  on_cpu<T>("convolution's input gradient", ConvolutionPass::kInputGradient, data, shape, stream);
}

template <class T>
void convolution_weight_gradient(DeviceSpan<const T> dy, DeviceSpan<const T> x, DeviceSpan<T> dweight,
                                 DeviceSpan<T> dbias, bool adds, const ConvolutionShape& shape,
                                 DeviceSpan<std::byte> workspace, Stream& stream) {
  check_shape(shape);
  check_sizes(shape.y_size(), dy);
  check_sizes(shape.x_size(), x);
  check_sizes(shape.weight_size(), dweight);
  check_optional(shape.out_channels, dbias);
  if (shape.batch == 0 && adds) return;
  check_workspace<T>(ConvolutionPass::kWeightGradient, shape, workspace, stream);
#if DUNNOCK_HAS_CUDNN
  if (stream.device().backend() == Backend::kCuda && !shape.depthwise() && shape.batch != 0 &&
      detail::cudnn::convolution_weight_gradient<T>(dy, x, dweight, dbias, adds, shape, workspace, stream))
    return;
#endif
  DUNNOCK_ON_CUDA(stream,
                  detail::cuda::convolution_weight_gradient<T>(dy, x, dweight, dbias, adds, shape, workspace, stream));
  ConvolutionData<T> data;
  data.dy = dy.device_data();
  data.x = x.device_data();
  data.dweight = dweight.device_data();
  data.dbias = dbias.device_data();
  data.adds = adds;
  data.workspace = workspace.device_data();
  on_cpu<T>("convolution's weight gradient", ConvolutionPass::kWeightGradient, data, shape, stream);
}

#define DUNNOCK_INSTANTIATE(T)                                                                                         \
  template std::size_t convolution_workspace<T>(ConvolutionPass, const ConvolutionShape&, Device);                     \
  template void convolution<T>(DeviceSpan<const T>, DeviceSpan<const T>, DeviceSpan<const T>, DeviceSpan<T>, bool,     \
                               const ConvolutionShape&, DeviceSpan<std::byte>, Stream&);                               \
  template void convolution_input_gradient<T>(DeviceSpan<const T>, DeviceSpan<const T>, DeviceSpan<T>,                 \
                                              const ConvolutionShape&, DeviceSpan<std::byte>, Stream&);                \
  template void convolution_weight_gradient<T>(DeviceSpan<const T>, DeviceSpan<const T>, DeviceSpan<T>, DeviceSpan<T>, \
                                               bool, const ConvolutionShape&, DeviceSpan<std::byte>, Stream&);
DUNNOCK_INSTANTIATE(float)
DUNNOCK_INSTANTIATE(Bf16)
#undef DUNNOCK_INSTANTIATE

}  // namespace dunnock::gpu
