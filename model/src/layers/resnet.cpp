// The ResNet, as torchvision's: a stem, residual blocks, and the end with its pool.
//
//   block        y = ReLU(normN(convN(... ReLU(norm1(conv1(x))))) + shortcut(x))
//   shortcut     x, or norm(conv(x)) where the block changes the shape
//
// With dy the gradient of what was before the last ReLU (convolutions.hpp):
//
//   dO:  from the last convolution to the first: dz = norm backward (kept), input gradient of dz;  so the shortcut;
//        dx = both, where x is above 0
//   dW:  of each convolution, from its dz and what went in
#include <optional>

#include "convolutions.hpp"
#include "dunnock/kernels/elementwise.hpp"
#include "layers.hpp"
#include "pool_head.hpp"

namespace dunnock::model {
namespace {

using device::Span;

struct BlockOptions {
  std::string name{};
  ImageShape image{};
  std::size_t width = 0;
  std::size_t out = 0;
  std::size_t stride = 1;
  bool bottleneck = false;
  bool x_is_relu = false;
  unsigned block = 0;
};

template <class T>
class ResidualBlock final : public NormedLayer<T> {
 public:
  explicit ResidualBlock(BlockOptions options) : options_(std::move(options)) {
    const ImageShape& image = options_.image;
    const std::size_t width = options_.width;
    const std::size_t stride = options_.stride;
    if (options_.bottleneck) {
      append({.image = image, .out = width, .kernel = 1, .padding = 0}, true);
      append({.image = parts_.back().result, .out = width, .stride = stride}, true);
      append({.image = parts_.back().result, .out = options_.out, .kernel = 1, .padding = 0}, false);
    } else {
      append({.image = image, .out = width, .stride = stride}, true);
      append({.image = parts_.back().result, .out = options_.out}, false);
    }
    convolutions_ = parts_.size();
    if (stride != 1 || image.channels != options_.out)
      append({.image = image, .out = options_.out, .kernel = 1, .stride = stride, .padding = 0}, false);
  }

  [[nodiscard]] ImageShape result() const { return parts_[convolutions_ - 1].result; }

  [[nodiscard]] std::string name() const override { return options_.name; }
  [[nodiscard]] unsigned block() const override { return options_.block; }
  [[nodiscard]] std::vector<ParameterSpec> parameters() const override {
    std::vector<ParameterSpec> specs;
    for (std::size_t i = 0; i < parts_.size(); ++i) {
      specs.push_back(
          convolution_parameter(convolution_name(i) + ".weight", parts_[i].convolution.options(), Fan::kOut));
      append_norm(specs, norm_name(i), parts_[i].result.channels);
    }
    return specs;
  }
  [[nodiscard]] std::vector<StateSpec> states() const override {
    std::vector<StateSpec> specs;
    for (std::size_t i = 0; i < parts_.size(); ++i) append_norm(specs, norm_name(i), parts_[i].result.channels);
    return specs;
  }
  [[nodiscard]] std::size_t outputs() const override { return result().size(); }
  [[nodiscard]] LayerBytes bytes(std::size_t rows) const override {
    // x, what the convolutions have made or its gradients, and what goes into them.
    std::uint64_t values = rows * options_.image.size();
    std::uint64_t statistics = 0;
    for (const Part& part : parts_) {
      values += rows * part.result.size() * (part.relu ? 2 : 1);
      statistics += part.norm.bytes();
    }
    return {.output = rows * outputs() * sizeof(T),
            .kept = values * sizeof(T) + statistics,
            .kept_for_weights = values * sizeof(T)};
  }
  [[nodiscard]] double flops(std::size_t rows) const override {
    double sum = 0;
    for (const Part& part : parts_) sum += part.convolution.flops(rows);
    return sum;
  }
  [[nodiscard]] std::size_t workspace_bytes(std::size_t rows, device::Device device) const override {
    std::size_t between = outputs();
    std::size_t bytes = 0;
    for (const Part& part : parts_) {
      between = std::max(between, part.convolution.options().image.size());
      bytes =
          std::max({bytes, part.convolution.workspace_bytes(rows, device), part.norm.workspace_bytes(rows, device)});
    }
    return room_for<T>(rows * between) + bytes;
  }
  [[nodiscard]] Status reserve(unsigned slots, std::size_t rows, device::Stream& stream) override {
    for (Part& part : parts_) {
      const std::size_t size = rows * part.result.size();
      DUNNOCK_TRY(part.norm.reserve(slots, stream));
      DUNNOCK_TRY(part.z.reserve(slots, size, stream));
      if (!part.relu) continue;
      DUNNOCK_TRY(part.h.reserve(slots, size, stream));
    }
    return {};
  }

  void forward(const LayerValues<T>& values, const LayerRun<T>& run) override {
    Workspace workspace(run.workspace);
    device::Span<const T> shortcut = values.x;
    if (projects()) {
      const device::Span<T> to = workspace.take<T>(values.y.size());
      part_forward(convolutions_, values.x, to, workspace, run);
      shortcut = to;
    }
    for (std::size_t i = 0; i < convolutions_; ++i)
      part_forward(i, input(i, values, run), parts_[i].relu ? h(i, run) : values.y, workspace, run);
    kernels::run(kernels::AddRelu<T>{.a = values.y, .b = shortcut, .y = values.y}, run.stream);
  }

  void output_gradient(const LayerValues<T>& values, const LayerRun<T>& run) override {
    Workspace workspace(run.workspace);
    std::size_t largest = values.x.size();
    for (std::size_t i = 1; i < convolutions_; ++i) largest = std::max(largest, input(i, values, run).size());
    const device::Span<T> between = workspace.take<T>(largest);
    device::Span<const T> dh = values.dy;
    for (std::size_t i = convolutions_; i-- > 0;) {
      norm_backward(i, dh, workspace, run);
      if (i == 0) break;
      const device::Span<T> to = between.subspan(0, input(i, values, run).size());
      parts_[i].convolution.input_gradient(z(i, run), this->weight(3 * i), to, workspace, run);
      dh = to;
    }
    if (projects()) norm_backward(convolutions_, values.dy, workspace, run);
    if (values.dx.empty()) return;
    parts_[0].convolution.input_gradient(z(0, run), this->weight(0), values.dx, workspace, run);
    device::Span<const T> of_shortcut = values.dy;
    if (projects()) {
      const device::Span<T> to = between.subspan(0, values.dx.size());
      parts_[convolutions_].convolution.input_gradient(z(convolutions_, run), this->weight(3 * convolutions_), to,
                                                       workspace, run);
      of_shortcut = to;
    }
    if (options_.x_is_relu) {
      kernels::run(kernels::AddReluBackward<T>{.a = values.dx, .b = of_shortcut, .at = values.x, .y = values.dx},
                   run.stream);
    } else {
      kernels::run(kernels::AddScaled<T>{.a = values.dx, .b = of_shortcut, .factor = 1, .y = values.dx}, run.stream);
    }
  }

  void weight_gradient(const LayerValues<T>& values, const LayerRun<T>& run) override {
    for (std::size_t i = 0; i < parts_.size(); ++i)
      parts_[i].convolution.weight_gradient(z(i, run), input(i, values, run), this->gradient(3 * i), {}, run);
  }

 private:
  /// A convolution and its norm: parameters 3 i (weight), 3 i + 1, 3 i + 2 (norm), states 2 i, 2 i + 1.
  struct Part {
    Convolution<T> convolution;
    ImageShape result;
    bool relu;
    Norm<T> norm;
    SlotBuffers<T> z{};  // (rows, result): what the convolution has made, then its gradient.
    SlotBuffers<T> h{};  // (rows, result): after the norm, if the block continues from there.
  };

  void append(const ConvolutionOptions& convolution, bool relu) {
    const Convolution<T> made(convolution);
    parts_.push_back({made, made.result(), relu, Norm<T>(made.result(), relu)});
  }
  [[nodiscard]] bool projects() const { return parts_.size() > convolutions_; }
  [[nodiscard]] std::string convolution_name(std::size_t i) const {
    return options_.name + (i < convolutions_ ? ".conv" + std::to_string(i + 1) : ".downsample.0");
  }
  [[nodiscard]] std::string norm_name(std::size_t i) const {
    return options_.name + (i < convolutions_ ? ".bn" + std::to_string(i + 1) : ".downsample.1");
  }
  [[nodiscard]] device::Span<T> z(std::size_t i, const LayerRun<T>& run) const {
    return parts_[i].z.get(run.slot, run.batch.rows * parts_[i].result.size());
  }
  [[nodiscard]] device::Span<T> h(std::size_t i, const LayerRun<T>& run) const {
    return parts_[i].h.get(run.slot, run.batch.rows * parts_[i].result.size());
  }
  /// Of a convolution: x, or what the one before it has made.
  [[nodiscard]] device::Span<const T> input(std::size_t i, const LayerValues<T>& values, const LayerRun<T>& run) const {
    return i == 0 || i == convolutions_ ? values.x : device::Span<const T>(h(i - 1, run));
  }
  void part_forward(std::size_t i, device::Span<const T> x, device::Span<T> y, const Workspace& workspace,
                    const LayerRun<T>& run) {
    parts_[i].convolution.forward(x, this->weight(3 * i), {}, z(i, run), false, workspace, run);
    parts_[i].norm.forward(z(i, run), y, this->norm_parameters(3 * i + 1, 2 * i), workspace, run);
  }
  void norm_backward(std::size_t i, device::Span<const T> dy, const Workspace& workspace, const LayerRun<T>& run) {
    parts_[i].norm.backward(dy, z(i, run), z(i, run), this->norm_parameters(3 * i + 1, 2 * i), workspace, run);
  }

  BlockOptions options_;
  std::vector<Part> parts_;  // The convolutions in sequence, then that of the shortcut, if it has one.
  std::size_t convolutions_ = 0;
};

}  // namespace

template <class T>
Layers<T> make_layers(const ResNetOptions& options) {
  Layers<T> layers;
  const bool large = options.large_stem;
  auto stem =
      std::make_unique<ConvolutionUnit<T>>(UnitOptions{.name = "conv1",
                                                       .norm = "bn1",
                                                       .convolution = {.image = options.image,
                                                                       .out = options.width,
                                                                       .kernel = large ? std::size_t{7} : 3,
                                                                       .stride = large ? std::size_t{2} : 1,
                                                                       .padding = large ? std::size_t{3} : 1},
                                                       .pool = {.kernel = large ? std::size_t{3} : 0, .padding = 1}});
  ImageShape image = stem->result();
  layers.push_back(std::move(stem));
  for (std::size_t stage = 0; stage < options.blocks.size(); ++stage) {
    const std::size_t width = options.width << stage;
    for (std::size_t i = 0; i < options.blocks[stage]; ++i) {
      auto block = std::make_unique<ResidualBlock<T>>(
          BlockOptions{.name = "layer" + std::to_string(stage + 1) + "." + std::to_string(i),
                       .image = image,
                       .width = width,
                       .out = options.bottleneck ? 4 * width : width,
                       .stride = stage > 0 && i == 0 ? std::size_t{2} : 1,
                       .bottleneck = options.bottleneck,
                       .x_is_relu = stage > 0 || i > 0,  // The stem's norm finds its mask by itself.
                       .block = static_cast<unsigned>(stage + 1)});
      image = block->result();
      layers.push_back(std::move(block));
    }
  }
  layers.push_back(
      std::make_unique<PoolHead<T>>(PoolHeadOptions{.name = "fc",
                                                    .image = image,
                                                    .classes = options.classes,
                                                    .block = static_cast<unsigned>(options.blocks.size() + 1)}));
  return layers;
}
template Layers<float> make_layers<float>(const ResNetOptions&);
template Layers<device::Bf16> make_layers<device::Bf16>(const ResNetOptions&);

}  // namespace dunnock::model
