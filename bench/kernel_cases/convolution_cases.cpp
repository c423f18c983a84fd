// Layers of LeNet, VGG, ResNet and MobileNet: convolutions, pooling and batch norm.
#include <string>

#include "dunnock/kernels/batch_norm.hpp"
#include "dunnock/kernels/convolution.hpp"
#include "dunnock/kernels/pooling.hpp"
#include "kernel_case.hpp"

namespace dunnock::bench {
namespace {

using namespace kernels;

struct Layer {
  const char* name;
  ConvolutionShape shape;
};

std::vector<Layer> layers(CaseSize size) {
  // Planes and channels shrink for the twins.
  const bool tiny = size == CaseSize::kTiny;
  const std::size_t batch = tiny ? 2 : size == CaseSize::kCpu ? 32 : 256;
  const auto plane = [tiny](std::size_t full) { return tiny ? full / 7 + 1 : full; };
  const auto channels = [tiny](std::size_t full) { return tiny && full > 16 ? full / 8 : full; };
  const auto square = [&](std::size_t side, std::size_t in, std::size_t out, std::size_t kernel, std::size_t stride,
                          std::size_t padding) {
    ConvolutionShape shape;
    shape.batch = batch;
    shape.height = shape.width = plane(side);
    shape.in_channels = channels(in);
    shape.out_channels = channels(out);
    shape.kernel_height = shape.kernel_width = kernel;
    shape.stride_height = shape.stride_width = stride;
    shape.padding_height = shape.padding_width = padding;
    return shape;
  };
  const auto depthwise = [&](std::size_t side, std::size_t all, std::size_t stride) {
    ConvolutionShape shape = square(side, all, all, 3, stride, 1);
    shape.groups = shape.in_channels;
    return shape;
  };
  return {
      {"LeNet", square(28, 1, 6, 5, 1, 2)},        {"VGG", square(28, 128, 256, 3, 1, 1)},
      {"VGG", square(14, 512, 512, 3, 1, 1)},      {"ResNet", square(112, 3, 64, 7, 2, 3)},
      {"ResNet", square(28, 128, 128, 3, 1, 1)},   {"ResNet", square(28, 512, 128, 1, 1, 0)},
      {"MobileNet", depthwise(56, 144, 1)},        {"MobileNet", depthwise(56, 144, 2)},
      {"MobileNet", square(28, 192, 64, 1, 1, 0)},
  };
}

std::string text(const Layer& layer) {
  const ConvolutionShape& s = layer.shape;
  std::string all = layer.name;
  all += ' ';
  all += std::to_string(s.batch);
  all += " x ";
  all += std::to_string(s.height);
  all += '^';
  all += "2 x ";
  all += std::to_string(s.in_channels);
  all += " -> ";
  all += std::to_string(s.out_channels);
  all += ", ";
  all += std::to_string(s.kernel_height);
  all += "^2 / ";
  all += std::to_string(s.stride_height);
  if (s.depthwise()) all += " depthwise";
  return all;
}

template <class T>
KernelCase convolution_case(ConvolutionPass pass, const Layer& layer) {
  const ConvolutionShape shape = layer.shape;
  KernelCase one;
  one.kernel = pass == ConvolutionPass::kForward         ? "convolution"
               : pass == ConvolutionPass::kInputGradient ? "convolution dx"
                                                         : "convolution dweight";
  one.type = type_name<T>();
  one.shape = text(layer);
  if (shape.depthwise()) {
    one.bytes = static_cast<double>(sizeof(T)) * static_cast<double>(shape.x_size() + shape.y_size());
  } else {
    one.flops =
        2.0 * static_cast<double>(shape.y_size()) * static_cast<double>(shape.weight_size() / shape.out_channels);
  }
  one.operation = {pass == ConvolutionPass::kForward         ? "convolution"
                   : pass == ConvolutionPass::kInputGradient ? "convolution_input_gradient"
                                                             : "convolution_weight_gradient",
                   {{"batch", shape.batch},
                    {"side", shape.height},
                    {"in", shape.in_channels},
                    {"out", shape.out_channels},
                    {"kernel", shape.kernel_height},
                    {"stride", shape.stride_height},
                    {"padding", shape.padding_height},
                    {"groups", shape.groups}}};
  one.relative = kCaseRounding<T>;
  one.absolute = 1e-3;
  one.prepare = [=](KernelValues& values) -> KernelCase::Run {
    const auto space = values.workspace<std::byte>(convolution_workspace<T>(pass, shape, values.device()));
    const auto in = values.normal<T>(pass == ConvolutionPass::kInputGradient ? 0 : shape.x_size());
    const auto weight = values.normal<T>(pass == ConvolutionPass::kWeightGradient ? 0 : shape.weight_size(), 0, 0.1F);
    if (pass == ConvolutionPass::kForward) {
      const auto bias = values.normal<T>(shape.out_channels);
      const auto y = values.result<T>(shape.y_size());
      return [=](device::Stream& stream, Form form) {
        run_form(form,
                 Convolution<T>{
                     .x = in, .weight = weight, .bias = bias, .y = y, .relu = true, .shape = shape, .workspace = space},
                 stream);
      };
    }
    const auto dy = values.normal<T>(shape.y_size());
    if (pass == ConvolutionPass::kInputGradient) {
      const auto dx = values.result<T>(shape.x_size());
      return [=](device::Stream& stream, Form form) {
        run_form(form,
                 ConvolutionInputGradient<T>{.dy = dy, .weight = weight, .dx = dx, .shape = shape, .workspace = space},
                 stream);
      };
    }
    const auto dweight = values.result<T>(shape.weight_size());
    const auto dbias = values.result<T>(shape.out_channels);
    return [=](device::Stream& stream, Form form) {
      run_form(
          form,
          ConvolutionWeightGradient<T>{
              .dy = dy, .x = in, .dweight = dweight, .dbias = dbias, .adds = false, .shape = shape, .workspace = space},
          stream);
    };
  };
  return one;
}

template <class T>
KernelCase max_pool_case(bool backward, const PoolingShape& shape) {
  KernelCase one;
  one.kernel = backward ? "max pool backward" : "max pool";
  one.type = type_name<T>();
  one.shape = std::to_string(shape.batch) + " x " + std::to_string(shape.height) + "^2 x " +
              std::to_string(shape.channels) + ", " + std::to_string(shape.kernel_height) + "^2 / " +
              std::to_string(shape.stride_height);
  one.bytes = static_cast<double>(sizeof(T) * shape.x_size() + (sizeof(T) + 4) * shape.y_size());
  one.operation = {backward ? "max_pool_backward" : "max_pool",
                   {{"batch", shape.batch},
                    {"side", shape.height},
                    {"channels", shape.channels},
                    {"kernel", shape.kernel_height},
                    {"stride", shape.stride_height},
                    {"padding", shape.padding_height}}};
  one.relative = kCaseRounding<T>;
  one.absolute = 1e-5;
  one.prepare = [=](KernelValues& values) -> KernelCase::Run {
    const auto x = values.normal<T>(shape.x_size());
    if (!backward) {
      const auto y = values.result<T>(shape.y_size());
      const auto indices = values.result<std::uint32_t>(shape.y_size());
      return [=](device::Stream& stream, Form form) {
        run_form(form, MaxPool<T>{.x = x, .y = y, .indices = indices, .shape = shape}, stream);
      };
    }
    // The indices are those of x, made once.
    const auto y = values.workspace<T>(shape.y_size());
    const auto indices = values.workspace<std::uint32_t>(shape.y_size());
    if (values.failed()) return [](device::Stream&, Form) {};
    kernels::run(MaxPool<T>{.x = x, .y = y, .indices = indices, .shape = shape}, values.stream());
    const auto dy = values.normal<T>(shape.y_size());
    const auto dx = values.result<T>(shape.x_size());
    return [=](device::Stream& stream, Form form) {
      run_form(form, MaxPoolBackward<T>{.dy = dy, .indices = indices, .dx = dx, .shape = shape}, stream);
    };
  };
  return one;
}

template <class T>
KernelCase global_average_case(const GlobalPoolingShape& shape) {
  KernelCase one;
  one.kernel = "global average pool";
  one.type = type_name<T>();
  one.shape =
      std::to_string(shape.batch) + " x " + std::to_string(shape.positions) + " x " + std::to_string(shape.channels);
  one.bytes = static_cast<double>(sizeof(T) * shape.batch * shape.positions * shape.channels);
  one.operation = {"global_average_pool",
                   {{"batch", shape.batch}, {"positions", shape.positions}, {"channels", shape.channels}}};
  one.relative = kCaseRounding<T>;
  one.absolute = 1e-5;
  one.prepare = [=](KernelValues& values) -> KernelCase::Run {
    const auto x = values.normal<T>(shape.batch * shape.positions * shape.channels);
    const auto y = values.result<T>(shape.batch * shape.channels);
    return [=](device::Stream& stream, Form form) {
      run_form(form, GlobalAveragePool<T>{.x = x, .y = y, .shape = shape}, stream);
    };
  };
  return one;
}

template <class T>
KernelCase batch_norm_case(bool backward, const BatchNormShape& shape) {
  KernelCase one;
  one.kernel = backward ? "batch norm backward" : "batch norm";
  one.type = type_name<T>();
  one.shape = std::to_string(shape.rows) + " x " + std::to_string(shape.channels);
  // Read once and written once: the second reading that statistics ask for counts against us.
  const double values_read = backward ? 3 : 2;
  one.bytes = values_read * static_cast<double>(sizeof(T) * shape.rows * shape.channels);
  one.operation = {backward ? "batch_norm_backward" : "batch_norm",
                   {{"rows", shape.rows}, {"channels", shape.channels}}};
  one.relative = 2 * kCaseRounding<T>;
  one.absolute = 2e-3;
  one.prepare = [=](KernelValues& values) -> KernelCase::Run {
    const auto x = values.normal<T>(shape.rows * shape.channels);
    const auto weight = values.normal<T>(shape.channels);
    const auto bias = values.normal<T>(shape.channels);
    const auto space = values.workspace<float>(batch_norm_workspace(shape, values.device()));
    if (!backward) {
      const auto y = values.result<T>(x.size());
      const auto mean = values.result<float>(shape.channels);
      const auto r = values.result<float>(shape.channels);
      return [=](device::Stream& stream, Form form) {
        run_form(form,
                 BatchNorm<T>{.x = x,
                              .weight = weight,
                              .bias = bias,
                              .y = y,
                              .mean = mean,
                              .r = r,
                              .running_mean = {},
                              .running_variance = {},
                              .shape = shape,
                              .workspace = space},
                 stream);
      };
    }
    const auto dy = values.normal<T>(x.size());
    const auto mean = values.normal<float>(shape.channels, 0, 0.1F);
    const auto r = values.normal<float>(shape.channels, 1, 0.1F);
    const auto dx = values.result<T>(x.size());
    const auto dweight = values.result<T>(shape.channels);
    const auto dbias = values.result<T>(shape.channels);
    return [=](device::Stream& stream, Form form) {
      run_form(form,
               BatchNormBackward<T>{.dy = dy,
                                    .x = x,
                                    .weight = weight,
                                    .bias = bias,
                                    .mean = mean,
                                    .r = r,
                                    .dx = dx,
                                    .dweight = dweight,
                                    .dbias = dbias,
                                    .adds = false,
                                    .shape = shape,
                                    .workspace = space},
               stream);
    };
  };
  return one;
}

template <class T>
void append(std::vector<KernelCase>& cases, CaseSize size) {
  for (const Layer& layer : layers(size)) {
    for (const ConvolutionPass pass :
         {ConvolutionPass::kForward, ConvolutionPass::kInputGradient, ConvolutionPass::kWeightGradient})
      cases.push_back(convolution_case<T>(pass, layer));
  }
  const bool tiny = size == CaseSize::kTiny;
  const std::size_t batch = tiny ? 2 : size == CaseSize::kCpu ? 32 : 256;
  const std::size_t side = tiny ? 9 : 112;
  PoolingShape pool;
  pool.batch = batch;
  pool.height = pool.width = side;
  pool.channels = 64;
  pool.kernel_height = pool.kernel_width = 3;
  pool.stride_height = pool.stride_width = 2;
  pool.padding_height = pool.padding_width = 1;
  cases.push_back(max_pool_case<T>(false, pool));
  cases.push_back(max_pool_case<T>(true, pool));
  cases.push_back(global_average_case<T>({batch, 49, tiny ? 64U : 2048U}));
  for (const bool backward : {false, true}) {
    BatchNormShape norm;
    norm.rows = batch * (tiny ? 25 : 28 * 28);
    norm.channels = tiny ? 40 : 256;
    cases.push_back(batch_norm_case<T>(backward, norm));
  }
}

}  // namespace

std::vector<KernelCase> convolution_cases(CaseSize size) {
  std::vector<KernelCase> cases;
  append<float>(cases, size);
  append<device::Bf16>(cases, size);
  return cases;
}

}  // namespace dunnock::bench
