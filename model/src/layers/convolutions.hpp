// What the convolutional families have in common: convolutions and batch norms as parts of a layer, the unit of both
// with ReLU and a pool, and the end with pool, linear layer and loss.
//
// ReLU's own gradient: as in linear.hpp, a layer that ends in ReLU without a norm in front of it gets the gradient of
// what was before ReLU, so the next layer masks its dx by its x ("x_is_relu"). A pool in between changes nothing: the
// largest value of a window is 0 where its ReLU was off. Where ReLU is fused with a norm, the norm's backward pass
// finds the mask by itself.
//
// A norm's input z is needed until dO is done, the gradient of z from then on until dW is: they share their memory.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "dunnock/kernels/activation.hpp"
#include "dunnock/kernels/batch_norm.hpp"
#include "dunnock/kernels/convolution.hpp"
#include "dunnock/kernels/pooling.hpp"
#include "dunnock/model/models.hpp"
#include "dunnock/model/network_layer.hpp"
#include "linear.hpp"
#include "workspace.hpp"

namespace dunnock::model {

/// A square kernel, as many zeros on each side.
struct ConvolutionOptions {
  ImageShape image{};  // What goes in.
  std::size_t out = 0;
  std::size_t kernel = 3;
  std::size_t stride = 1;
  std::size_t padding = 1;
};

/// He et al. 2015 (arXiv 1502.01852): of which end of the convolution the variance is to stay.
enum class Fan : std::uint8_t { kIn, kOut };

/// (out, in, kernel, kernel), and lies as (out, kernel, kernel, in).
[[nodiscard]] inline ParameterSpec convolution_parameter(std::string name, const ConvolutionOptions& options, Fan fan) {
  const std::size_t positions = options.kernel * options.kernel;
  const std::size_t values = positions * (fan == Fan::kIn ? options.image.channels : options.out);
  return {.name = std::move(name),
          .shape = {options.out, options.image.channels, options.kernel, options.kernel},
          .initial = Initial::kNormal,
          .scale = std::sqrt(2.0F / static_cast<float>(values)),
          .decays = true,
          .positions = positions};
}

inline void append_norm(std::vector<ParameterSpec>& specs, const std::string& name, std::size_t channels) {
  specs.push_back({.name = name + ".weight", .shape = {channels}, .initial = Initial::kOnes});
  specs.push_back({.name = name + ".bias", .shape = {channels}, .initial = Initial::kZeros});
}
inline void append_norm(std::vector<StateSpec>& specs, const std::string& name, std::size_t channels) {
  specs.push_back({.name = name + ".running_mean", .size = channels, .initial = 0});
  specs.push_back({.name = name + ".running_var", .size = channels, .initial = 1});
}

template <class T>
class Convolution {
 public:
  explicit Convolution(const ConvolutionOptions& options) : options_(options) {}

  [[nodiscard]] kernels::ConvolutionShape shape(std::size_t rows) const {
    return {.batch = rows,
            .height = options_.image.height,
            .width = options_.image.width,
            .in_channels = options_.image.channels,
            .out_channels = options_.out,
            .kernel_height = options_.kernel,
            .kernel_width = options_.kernel,
            .stride_height = options_.stride,
            .stride_width = options_.stride,
            .padding_height = options_.padding,
            .padding_width = options_.padding};
  }
  [[nodiscard]] const ConvolutionOptions& options() const { return options_; }
  [[nodiscard]] ImageShape result() const {
    const kernels::ConvolutionShape one = shape(1);
    return {one.out_height(), one.out_width(), options_.out};
  }
  [[nodiscard]] double flops(std::size_t rows) const {
    return 2.0 * static_cast<double>(rows * result().size()) *
           static_cast<double>(options_.kernel * options_.kernel * options_.image.channels);
  }
  [[nodiscard]] std::size_t workspace_bytes(std::size_t rows, device::Device device) const {
    using enum kernels::ConvolutionPass;
    std::size_t bytes = 0;
    for (const kernels::ConvolutionPass pass : {kForward, kInputGradient})
      bytes = std::max(bytes, kernels::convolution_workspace<T>(pass, shape(rows), device));
    const std::size_t weights = options_.out * options_.kernel * options_.kernel * options_.image.channels;
    return std::max(bytes, MadeGradient<T>::room(weights) + MadeGradient<T>::room(options_.out) +
                               kernels::convolution_workspace<T>(kWeightGradient, shape(rows), device));
  }

  void forward(device::Span<const T> x, device::Span<const T> weight, device::Span<const T> bias, device::Span<T> y,
               bool relu, const Workspace& workspace, const LayerRun<T>& run) const {
    kernels::run(kernels::Convolution<T>{.x = x,
                                         .weight = weight,
                                         .bias = bias,
                                         .y = y,
                                         .relu = relu,
                                         .shape = shape(run.batch.rows),
                                         .workspace = workspace.rest()},
                 run.stream);
  }
  void input_gradient(device::Span<const T> dy, device::Span<const T> weight, device::Span<T> dx,
                      const Workspace& workspace, const LayerRun<T>& run) const {
    kernels::run(
        kernels::ConvolutionInputGradient<T>{
            .dy = dy, .weight = weight, .dx = dx, .shape = shape(run.batch.rows), .workspace = workspace.rest()},
        run.stream);
  }
  void weight_gradient(device::Span<const T> dy, device::Span<const T> x, device::Span<float> dweight,
                       device::Span<float> dbias, const LayerRun<T>& run) const {
    Workspace workspace(run.workspace);
    const MadeGradient<T> of_weight(dweight, run.adds, workspace);
    const MadeGradient<T> of_bias(dbias, run.adds, workspace);
    kernels::run(kernels::ConvolutionWeightGradient<T>{.dy = dy,
                                                       .x = x,
                                                       .dweight = of_weight.target(),
                                                       .dbias = of_bias.target(),
                                                       .adds = of_weight.kernel_adds(),
                                                       .shape = shape(run.batch.rows),
                                                       .workspace = workspace.rest()},
                 run.stream);
    of_weight.add(run.stream);
    of_bias.add(run.stream);
  }

 private:
  ConvolutionOptions options_;
};

/// What a norm reads and makes of a layer's parameters.
template <class T>
struct NormParameters {
  device::Span<const T> weight;
  device::Span<const T> bias;
  device::Span<float> dweight;
  device::Span<float> dbias;
  device::Span<float> running_mean;
  device::Span<float> running_variance;
};

/// Batch norm, with ReLU or without.
template <class T>
class Norm {
 public:
  Norm(const ImageShape& image, bool relu) : image_(image), relu_(relu) {}

  [[nodiscard]] std::size_t workspace_bytes(std::size_t rows, device::Device device) const {
    return 2 * MadeGradient<T>::room(image_.channels) +
           room_for<float>(kernels::batch_norm_workspace(shape(rows), device));
  }
  /// Of what is kept besides its input.
  [[nodiscard]] std::uint64_t bytes() const { return 2 * image_.channels * sizeof(float); }
  [[nodiscard]] Status reserve(unsigned slots, device::Stream& stream) {
    DUNNOCK_TRY(mean_.reserve(slots, image_.channels, stream));
    return r_.reserve(slots, image_.channels, stream);
  }
  /// y may be x.
  void forward(device::Span<const T> x, device::Span<T> y, const NormParameters<T>& parameters, Workspace workspace,
               const LayerRun<T>& run) const {
    const kernels::BatchNormShape with = shape(run.batch.rows);
    if (!run.training) {
      kernels::run(kernels::BatchNormInference<T>{.x = x,
                                                  .weight = parameters.weight,
                                                  .bias = parameters.bias,
                                                  .running_mean = parameters.running_mean,
                                                  .running_variance = parameters.running_variance,
                                                  .y = y,
                                                  .shape = with},
                   run.stream);
      return;
    }
    kernels::run(kernels::BatchNorm<T>{.x = x,
                                       .weight = parameters.weight,
                                       .bias = parameters.bias,
                                       .y = y,
                                       .mean = mean_.all(run.slot),
                                       .r = r_.all(run.slot),
                                       .running_mean = parameters.running_mean,
                                       .running_variance = parameters.running_variance,
                                       .shape = with,
                                       .workspace = floats(workspace, run)},
                 run.stream);
  }
  /// dx may be dy or x.
  void backward(device::Span<const T> dy, device::Span<const T> x, device::Span<T> dx,
                const NormParameters<T>& parameters, Workspace workspace, const LayerRun<T>& run) const {
    const MadeGradient<T> of_weight(parameters.dweight, run.adds, workspace);
    const MadeGradient<T> of_bias(parameters.dbias, run.adds, workspace);
    kernels::run(kernels::BatchNormBackward<T>{.dy = dy,
                                               .x = x,
                                               .weight = parameters.weight,
                                               .bias = parameters.bias,
                                               .mean = mean_.all(run.slot),
                                               .r = r_.all(run.slot),
                                               .dx = dx,
                                               .dweight = of_weight.target(),
                                               .dbias = of_bias.target(),
                                               .adds = of_weight.kernel_adds(),
                                               .shape = shape(run.batch.rows),
                                               .workspace = floats(workspace, run)},
                 run.stream);
    of_weight.add(run.stream);
    of_bias.add(run.stream);
  }

 private:
  [[nodiscard]] kernels::BatchNormShape shape(std::size_t rows) const {
    return {.rows = rows * image_.height * image_.width, .channels = image_.channels, .relu = relu_};
  }
  [[nodiscard]] device::Span<float> floats(Workspace& workspace, const LayerRun<T>& run) const {
    return workspace.take<float>(kernels::batch_norm_workspace(shape(run.batch.rows), run.stream.device()));
  }

  ImageShape image_;
  bool relu_;
  SlotBuffers<float> mean_;  // (channels)
  SlotBuffers<float> r_;     // (channels)
};

/// Layers with norms.
template <class T>
class NormedLayer : public NetworkLayer<T> {
 protected:
  /// Of the norm whose weight is parameter `weight`, and whose running mean is state `state`; its others follow them.
  [[nodiscard]] NormParameters<T> norm_parameters(std::size_t weight, std::size_t state) const {
    return {this->weight(weight),       this->weight(weight + 1), this->gradient(weight),
            this->gradient(weight + 1), this->state(state),       this->state(state + 1)};
  }
};

/// A window of the max pool after a unit; kernel 0: no pool.
struct PoolOptions {
  std::size_t kernel = 0;
  std::size_t stride = 2;
  std::size_t padding = 0;
};

struct UnitOptions {
  std::string name{};  // Of the convolution: NAME.weight, and NAME.bias if wanted.
  std::string norm{};  // Empty: none.
  ConvolutionOptions convolution{};
  bool bias = false;
  Fan fan = Fan::kOut;
  PoolOptions pool{};
  bool x_is_relu = false;
  unsigned block = 0;
};

/// y = pool(ReLU(norm(convolution of x))); norm and pool may lack.
///
///               dO                                                  dW
///   plain       dx = input gradient of dy                           of dy
///   pool        dz = pool backward of dy (kept)                     of dz
///   norm        dz = norm backward of dy, or of the pool's (kept)   of dz
template <class T>
class ConvolutionUnit final : public NormedLayer<T> {
 public:
  explicit ConvolutionUnit(UnitOptions options)
      : options_(std::move(options)),
        convolution_(options_.convolution),
        inner_(convolution_.result()),
        norm_(inner_, true) {}

  [[nodiscard]] ImageShape result() const {
    if (!pooled()) return inner_;
    const kernels::PoolingShape shape = pool_shape(1);
    return {shape.out_height(), shape.out_width(), inner_.channels};
  }

  [[nodiscard]] std::string name() const override { return options_.name; }
  [[nodiscard]] unsigned block() const override { return options_.block; }
  [[nodiscard]] std::vector<ParameterSpec> parameters() const override {
    std::vector<ParameterSpec> specs{
        convolution_parameter(options_.name + ".weight", options_.convolution, options_.fan)};
    if (options_.bias) specs.push_back({.name = options_.name + ".bias", .shape = {inner_.channels}});
    if (normed()) append_norm(specs, options_.norm, inner_.channels);
    return specs;
  }
  [[nodiscard]] std::vector<StateSpec> states() const override {
    std::vector<StateSpec> specs;
    if (normed()) append_norm(specs, options_.norm, inner_.channels);
    return specs;
  }
  [[nodiscard]] std::size_t outputs() const override { return result().size(); }
  [[nodiscard]] LayerBytes bytes(std::size_t rows) const override {
    // x and, after a norm or before a pool, z or its gradient.
    const std::uint64_t x = rows * options_.convolution.image.size() * sizeof(T);
    const std::uint64_t z = keeps() ? rows * inner_.size() * sizeof(T) : 0;
    const std::uint64_t indices = pooled() ? rows * outputs() * sizeof(std::uint32_t) : 0;
    return {.output = rows * outputs() * sizeof(T),
            .kept = x + z + indices + (normed() ? norm_.bytes() : 0),
            .kept_for_weights = x + z};
  }
  [[nodiscard]] double flops(std::size_t rows) const override { return convolution_.flops(rows); }
  [[nodiscard]] std::size_t workspace_bytes(std::size_t rows, device::Device device) const override {
    const std::size_t full = normed() && pooled() ? room_for<T>(rows * inner_.size()) : 0;
    return full + std::max(convolution_.workspace_bytes(rows, device), norm_.workspace_bytes(rows, device));
  }
  [[nodiscard]] Status reserve(unsigned slots, std::size_t rows, device::Stream& stream) override {
    if (normed()) {
      DUNNOCK_TRY(norm_.reserve(slots, stream));
    }
    if (pooled()) {
      DUNNOCK_TRY(indices_.reserve(slots, rows * outputs(), stream));
    }
    return keeps() ? z_.reserve(slots, rows * inner_.size(), stream) : Status();
  }

  void forward(const LayerValues<T>& values, const LayerRun<T>& run) override {
    const std::size_t rows = run.batch.rows;
    Workspace workspace(run.workspace);
    const device::Span<const T> bias = options_.bias ? this->weight(1) : device::Span<const T>();
    const device::Span<T> z = keeps() ? this->z(run) : values.y;
    convolution_.forward(values.x, this->weight(0), bias, z, !normed(), workspace, run);
    device::Span<const T> result = z;
    if (normed()) {
      const device::Span<T> to = pooled() ? workspace.take<T>(rows * inner_.size()) : values.y;
      norm_.forward(z, to, parameters_of_norm(), workspace, run);
      result = to;
    }
    if (pooled()) {
      const auto indices = run.training ? this->indices(run) : device::Span<std::uint32_t>();
      kernels::run(kernels::MaxPool<T>{.x = result, .y = values.y, .indices = indices, .shape = pool_shape(rows)},
                   run.stream);
    }
  }

  void output_gradient(const LayerValues<T>& values, const LayerRun<T>& run) override {
    const std::size_t rows = run.batch.rows;
    Workspace workspace(run.workspace);
    device::Span<const T> dy = values.dy;
    if (pooled()) {
      const device::Span<T> to = normed() ? workspace.take<T>(rows * inner_.size()) : z(run);
      kernels::run(kernels::MaxPoolBackward<T>{.dy = dy, .indices = indices(run), .dx = to, .shape = pool_shape(rows)},
                   run.stream);
      dy = to;
    }
    if (normed()) norm_.backward(dy, z(run), z(run), parameters_of_norm(), workspace, run);
    if (values.dx.empty()) return;
    convolution_.input_gradient(dz(values, run), this->weight(0), values.dx, workspace, run);
    if (options_.x_is_relu)
      kernels::run(
          kernels::ActivateBackward<T>{
              .kind = kernels::Activation::kRelu, .dy = values.dx, .x = values.x, .dx = values.dx},
          run.stream);
  }

  void weight_gradient(const LayerValues<T>& values, const LayerRun<T>& run) override {
    const device::Span<float> dbias = options_.bias ? this->gradient(1) : device::Span<float>();
    convolution_.weight_gradient(dz(values, run), values.x, this->gradient(0), dbias, run);
  }

 private:
  [[nodiscard]] bool normed() const { return !options_.norm.empty(); }
  [[nodiscard]] bool pooled() const { return options_.pool.kernel != 0; }
  [[nodiscard]] bool keeps() const { return normed() || pooled(); }
  [[nodiscard]] NormParameters<T> parameters_of_norm() const { return this->norm_parameters(options_.bias ? 2 : 1, 0); }
  [[nodiscard]] kernels::PoolingShape pool_shape(std::size_t rows) const {
    return {.batch = rows,
            .height = inner_.height,
            .width = inner_.width,
            .channels = inner_.channels,
            .kernel_height = options_.pool.kernel,
            .kernel_width = options_.pool.kernel,
            .stride_height = options_.pool.stride,
            .stride_width = options_.pool.stride,
            .padding_height = options_.pool.padding,
            .padding_width = options_.pool.padding};
  }
  [[nodiscard]] device::Span<T> z(const LayerRun<T>& run) const {
    return z_.get(run.slot, run.batch.rows * inner_.size());
  }
  [[nodiscard]] device::Span<std::uint32_t> indices(const LayerRun<T>& run) const {
    return indices_.get(run.slot, run.batch.rows * outputs());
  }
  /// Behind output_gradient().
  [[nodiscard]] device::Span<const T> dz(const LayerValues<T>& values, const LayerRun<T>& run) const {
    return keeps() ? device::Span<const T>(z(run)) : values.dy;
  }

  UnitOptions options_;
  Convolution<T> convolution_;
  ImageShape inner_;  // What the convolution makes.
  Norm<T> norm_;
  SlotBuffers<T> z_;                    // (rows, inner): what the convolution has made, then its gradient.
  SlotBuffers<std::uint32_t> indices_;  // as y
};

}  // namespace dunnock::model
