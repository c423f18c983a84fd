// The DenseNet, as torchvision's: a stem, blocks of dense layers with transitions between them, and the end.
//
//   dense layer  y = x and, in more channels, conv2(ReLU(norm2(conv1(ReLU(norm1(x))))))
//   transition   y = conv of the average of 2 x 2 of ReLU(norm(x)). In torchvision the 1 x 1 convolution comes first;
//                both are linear and touch different indices, so their order is free, and this way it does a quarter of
//                the work.
//
//   dense layer  dO:  dnew = the last channels of dy (kept), dn2 = input gradient of conv2, dz1 = norm2 backward
//   (kept),
//                     dx = norm1 backward of the input gradient of conv1, plus the first channels of dy
//                dW:  of conv1 from dz1 and norm1's result, of conv2 from dnew and norm2's
//   transition   dO:  dx = norm backward of pool backward of the input gradient;    dW: from dy and the pool's result
#include "convolutions.hpp"
#include "dunnock/kernels/elementwise.hpp"
#include "layers.hpp"
#include "pool_head.hpp"

namespace dunnock::model {
namespace {

using device::Span;

struct DenseLayerOptions {
  std::string name{};
  ImageShape image{};
  std::size_t growth = 0;
  std::size_t width = 0;  // Of conv1.
  unsigned block = 0;
};

template <class T>
class DenseLayer final : public NormedLayer<T> {
 public:
  explicit DenseLayer(DenseLayerOptions options)
      : options_(std::move(options)),
        inner_{options_.image.height, options_.image.width, options_.width},
        norm1_(options_.image, true),
        conv1_({.image = options_.image, .out = options_.width, .kernel = 1, .padding = 0}),
        norm2_(inner_, true),
        conv2_({.image = inner_, .out = options_.growth}) {}

  [[nodiscard]] ImageShape result() const {
    return {inner_.height, inner_.width, options_.image.channels + options_.growth};
  }

  [[nodiscard]] std::string name() const override { return options_.name; }
  [[nodiscard]] unsigned block() const override { return options_.block; }
  [[nodiscard]] std::vector<ParameterSpec> parameters() const override {
    std::vector<ParameterSpec> specs;
    append_norm(specs, options_.name + ".norm1", options_.image.channels);
    specs.push_back(convolution_parameter(options_.name + ".conv1.weight", conv1_.options(), Fan::kIn));
    append_norm(specs, options_.name + ".norm2", inner_.channels);
    specs.push_back(convolution_parameter(options_.name + ".conv2.weight", conv2_.options(), Fan::kIn));
    return specs;
  }
  [[nodiscard]] std::vector<StateSpec> states() const override {
    std::vector<StateSpec> specs;
    append_norm(specs, options_.name + ".norm1", options_.image.channels);
    append_norm(specs, options_.name + ".norm2", inner_.channels);
    return specs;
  }
  [[nodiscard]] std::size_t outputs() const override { return result().size(); }
  [[nodiscard]] LayerBytes bytes(std::size_t rows) const override {
    // x, n1, z1 or its gradient, n2, the gradient of what is new. dW needs all of them but x.
    const std::uint64_t x = rows * options_.image.size() * sizeof(T);
    const std::uint64_t others = rows * (2 * inner_.size() + new_size()) * sizeof(T);
    return {.output = rows * outputs() * sizeof(T),
            .kept = 2 * x + others + norm1_.bytes() + norm2_.bytes(),
            .kept_for_weights = x + others};
  }
  [[nodiscard]] double flops(std::size_t rows) const override { return conv1_.flops(rows) + conv2_.flops(rows); }
  [[nodiscard]] std::size_t workspace_bytes(std::size_t rows, device::Device device) const override {
    return room_for<T>(rows * inner_.size()) +
           std::max({conv1_.workspace_bytes(rows, device), conv2_.workspace_bytes(rows, device),
                     norm1_.workspace_bytes(rows, device), norm2_.workspace_bytes(rows, device)});
  }
  [[nodiscard]] Status reserve(unsigned slots, std::size_t rows, device::Stream& stream) override {
    DUNNOCK_TRY(norm1_.reserve(slots, stream));
    DUNNOCK_TRY(norm2_.reserve(slots, stream));
    DUNNOCK_TRY(n1_.reserve(slots, rows * options_.image.size(), stream));
    DUNNOCK_TRY(z1_.reserve(slots, rows * inner_.size(), stream));
    DUNNOCK_TRY(n2_.reserve(slots, rows * inner_.size(), stream));
    return new_.reserve(slots, rows * new_size(), stream);
  }

  void forward(const LayerValues<T>& values, const LayerRun<T>& run) override {
    const Workspace workspace(run.workspace);
    norm1_.forward(values.x, n1(run), this->norm_parameters(0, 0), workspace, run);
    conv1_.forward(n1(run), this->weight(2), {}, z1(run), false, workspace, run);
    norm2_.forward(z1(run), n2(run), this->norm_parameters(3, 2), workspace, run);
    conv2_.forward(n2(run), this->weight(5), {}, new_of(run), false, workspace, run);
    kernels::run(kernels::CopyColumns<T>{.from = values.x, .to = values.y, .adds = false, .shape = shape_of_old(run)},
                 run.stream);
    kernels::run(kernels::CopyColumns<T>{.from = new_of(run),
                                         .to = new_columns(values.y),
                                         .adds = false,
                                         .shape = {.rows = positions(run),
                                                   .columns = options_.growth,
                                                   .from_stride = options_.growth,
                                                   .to_stride = result().channels}},
                 run.stream);
  }

  void output_gradient(const LayerValues<T>& values, const LayerRun<T>& run) override {
    Workspace workspace(run.workspace);
    kernels::run(kernels::CopyColumns<T>{.from = new_columns(values.dy),
                                         .to = new_of(run),
                                         .adds = false,
                                         .shape = {.rows = positions(run),
                                                   .columns = options_.growth,
                                                   .from_stride = result().channels,
                                                   .to_stride = options_.growth}},
                 run.stream);
    const device::Span<T> dn2 = workspace.take<T>(z1(run).size());
    conv2_.input_gradient(new_of(run), this->weight(5), dn2, workspace, run);
    norm2_.backward(dn2, z1(run), z1(run), this->norm_parameters(3, 2), workspace, run);
    conv1_.input_gradient(z1(run), this->weight(2), values.dx, workspace, run);
    norm1_.backward(values.dx, values.x, values.dx, this->norm_parameters(0, 0), workspace, run);
    const std::size_t old = options_.image.channels;
    kernels::run(
        kernels::CopyColumns<T>{
            .from = values.dy,
            .to = values.dx,
            .adds = true,
            .shape = {.rows = positions(run), .columns = old, .from_stride = result().channels, .to_stride = old}},
        run.stream);
  }

  void weight_gradient(const LayerValues<T>& /*values*/, const LayerRun<T>& run) override {
    conv1_.weight_gradient(z1(run), n1(run), this->gradient(2), {}, run);
    conv2_.weight_gradient(new_of(run), n2(run), this->gradient(5), {}, run);
  }

 private:
  [[nodiscard]] std::size_t new_size() const { return inner_.height * inner_.width * options_.growth; }
  [[nodiscard]] std::size_t positions(const LayerRun<T>& run) const {
    return run.batch.rows * inner_.height * inner_.width;
  }
  [[nodiscard]] kernels::ColumnsShape shape_of_old(const LayerRun<T>& run) const {
    const std::size_t old = options_.image.channels;
    return {.rows = positions(run), .columns = old, .from_stride = old, .to_stride = result().channels};
  }
  template <class U>
  [[nodiscard]] device::Span<U> new_columns(device::Span<U> all) const {
    return all.subspan(options_.image.channels, all.size() - options_.image.channels);
  }
  [[nodiscard]] device::Span<T> n1(const LayerRun<T>& run) const {
    return n1_.get(run.slot, run.batch.rows * options_.image.size());
  }
  [[nodiscard]] device::Span<T> z1(const LayerRun<T>& run) const {
    return z1_.get(run.slot, run.batch.rows * inner_.size());
  }
  [[nodiscard]] device::Span<T> n2(const LayerRun<T>& run) const {
    return n2_.get(run.slot, run.batch.rows * inner_.size());
  }
  [[nodiscard]] device::Span<T> new_of(const LayerRun<T>& run) const {
    return new_.get(run.slot, run.batch.rows * new_size());
  }

  DenseLayerOptions options_;
  ImageShape inner_;
  Norm<T> norm1_;
  Convolution<T> conv1_;
  Norm<T> norm2_;
  Convolution<T> conv2_;
  SlotBuffers<T> n1_;   // (rows, image)
  SlotBuffers<T> z1_;   // (rows, inner): what conv1 has made, then its gradient.
  SlotBuffers<T> n2_;   // (rows, inner)
  SlotBuffers<T> new_;  // (rows, height, width, growth): what conv2 has made, then its gradient.
};

struct TransitionOptions {
  std::string name{};
  ImageShape image{};
  unsigned block = 0;
};

template <class T>
class Transition final : public NormedLayer<T> {
 public:
  explicit Transition(TransitionOptions options)
      : options_(std::move(options)),
        pooled_image_{options_.image.height / 2, options_.image.width / 2, options_.image.channels},
        norm_(options_.image, true),
        convolution_({.image = pooled_image_, .out = options_.image.channels / 2, .kernel = 1, .padding = 0}) {}

  [[nodiscard]] ImageShape result() const { return convolution_.result(); }

  [[nodiscard]] std::string name() const override { return options_.name; }
  [[nodiscard]] unsigned block() const override { return options_.block; }
  [[nodiscard]] std::vector<ParameterSpec> parameters() const override {
    std::vector<ParameterSpec> specs;
    append_norm(specs, options_.name + ".norm", options_.image.channels);
    specs.push_back(convolution_parameter(options_.name + ".conv.weight", convolution_.options(), Fan::kIn));
    return specs;
  }
  [[nodiscard]] std::vector<StateSpec> states() const override {
    std::vector<StateSpec> specs;
    append_norm(specs, options_.name + ".norm", options_.image.channels);
    return specs;
  }
  [[nodiscard]] std::size_t outputs() const override { return result().size(); }
  [[nodiscard]] LayerBytes bytes(std::size_t rows) const override {
    const std::uint64_t pooled = rows * pooled_image_.size() * sizeof(T);
    return {.output = rows * outputs() * sizeof(T),
            .kept = rows * options_.image.size() * sizeof(T) + pooled + norm_.bytes(),
            .kept_for_weights = pooled};
  }
  [[nodiscard]] double flops(std::size_t rows) const override { return convolution_.flops(rows); }
  [[nodiscard]] std::size_t workspace_bytes(std::size_t rows, device::Device device) const override {
    return room_for<T>(rows * options_.image.size()) +
           std::max(convolution_.workspace_bytes(rows, device), norm_.workspace_bytes(rows, device));
  }
  [[nodiscard]] Status reserve(unsigned slots, std::size_t rows, device::Stream& stream) override {
    DUNNOCK_TRY(norm_.reserve(slots, stream));
    return pooled_.reserve(slots, rows * pooled_image_.size(), stream);
  }

  void forward(const LayerValues<T>& values, const LayerRun<T>& run) override {
    Workspace workspace(run.workspace);
    const device::Span<T> n = workspace.take<T>(values.x.size());
    norm_.forward(values.x, n, this->norm_parameters(0, 0), workspace, run);
    kernels::run(kernels::AveragePool<T>{.x = n, .y = pooled(run), .shape = pool_shape(run)}, run.stream);
    convolution_.forward(pooled(run), this->weight(2), {}, values.y, false, workspace, run);
  }
  void output_gradient(const LayerValues<T>& values, const LayerRun<T>& run) override {
    Workspace workspace(run.workspace);
    const device::Span<T> dpooled = workspace.take<T>(pooled(run).size());
    convolution_.input_gradient(values.dy, this->weight(2), dpooled, workspace, run);
    kernels::run(kernels::AveragePoolBackward<T>{.dy = dpooled, .dx = values.dx, .shape = pool_shape(run)}, run.stream);
    norm_.backward(values.dx, values.x, values.dx, this->norm_parameters(0, 0), workspace, run);
  }
  void weight_gradient(const LayerValues<T>& values, const LayerRun<T>& run) override {
    convolution_.weight_gradient(values.dy, pooled(run), this->gradient(2), {}, run);
  }

 private:
  [[nodiscard]] kernels::PoolingShape pool_shape(const LayerRun<T>& run) const {
    return {.batch = run.batch.rows,
            .height = options_.image.height,
            .width = options_.image.width,
            .channels = options_.image.channels,
            .kernel_height = 2,
            .kernel_width = 2,
            .stride_height = 2,
            .stride_width = 2};
  }
  [[nodiscard]] device::Span<T> pooled(const LayerRun<T>& run) const {
    return pooled_.get(run.slot, run.batch.rows * pooled_image_.size());
  }

  TransitionOptions options_;
  ImageShape pooled_image_;
  Norm<T> norm_;
  Convolution<T> convolution_;
  SlotBuffers<T> pooled_;  // (rows, pooled_image)
};

}  // namespace

template <class T>
Layers<T> make_layers(const DenseNetOptions& options) {
  Layers<T> layers;
  const bool large = options.large_stem;
  auto stem =
      std::make_unique<ConvolutionUnit<T>>(UnitOptions{.name = "features.conv0",
                                                       .norm = "features.norm0",
                                                       .convolution = {.image = options.image,
                                                                       .out = options.stem_width,
                                                                       .kernel = large ? std::size_t{7} : 3,
                                                                       .stride = large ? std::size_t{2} : 1,
                                                                       .padding = large ? std::size_t{3} : 1},
                                                       .fan = Fan::kIn,
                                                       .pool = {.kernel = large ? std::size_t{3} : 0, .padding = 1}});
  ImageShape image = stem->result();
  layers.push_back(std::move(stem));
  for (std::size_t stage = 0; stage < options.blocks.size(); ++stage) {
    const std::string number = std::to_string(stage + 1);
    const auto block = static_cast<unsigned>(stage + 1);
    for (std::size_t i = 0; i < options.blocks[stage]; ++i) {
      auto layer = std::make_unique<DenseLayer<T>>(
          DenseLayerOptions{.name = "features.denseblock" + number + ".denselayer" + std::to_string(i + 1),
                            .image = image,
                            .growth = options.growth,
                            .width = options.bottleneck * options.growth,
                            .block = block});
      image = layer->result();
      layers.push_back(std::move(layer));
    }
    if (stage + 1 == options.blocks.size()) break;
    auto transition = std::make_unique<Transition<T>>(
        TransitionOptions{.name = "features.transition" + number, .image = image, .block = block});
    image = transition->result();
    layers.push_back(std::move(transition));
  }
  layers.push_back(
      std::make_unique<PoolHead<T>>(PoolHeadOptions{.name = "classifier",
                                                    .norm = "features.norm5",
                                                    .image = image,
                                                    .classes = options.classes,
                                                    .block = static_cast<unsigned>(options.blocks.size() + 1)}));
  return layers;
}
template Layers<float> make_layers<float>(const DenseNetOptions&);
template Layers<device::Bf16> make_layers<device::Bf16>(const DenseNetOptions&);

}  // namespace dunnock::model
