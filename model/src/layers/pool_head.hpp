// The end of ResNet and DenseNet: perhaps batch norm and ReLU, then the average of each channel, a linear layer and the
// loss.
#pragma once

#include <algorithm>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "convolutions.hpp"

namespace dunnock::model {

struct PoolHeadOptions {
  std::string name{};  // Of the linear layer.
  std::string norm{};  // Empty: none, and x is the result of a ReLU.
  ImageShape image{};
  std::size_t classes = 0;
  unsigned block = 0;
};

template <class T>
class PoolHead final : public NormedLayer<T> {
 public:
  explicit PoolHead(PoolHeadOptions options)
      : options_(std::move(options)),
        norm_(options_.image, true),
        linear_(LinearOptions{
            .name = options_.name, .in = options_.image.channels, .out = options_.classes, .loss = true}) {}

  [[nodiscard]] std::string name() const override { return options_.name; }
  [[nodiscard]] unsigned block() const override { return options_.block; }
  [[nodiscard]] std::vector<ParameterSpec> parameters() const override {
    std::vector<ParameterSpec> specs;
    if (normed()) append_norm(specs, options_.norm, options_.image.channels);
    std::ranges::move(linear_.parameters(), std::back_inserter(specs));
    return specs;
  }
  [[nodiscard]] std::vector<StateSpec> states() const override {
    std::vector<StateSpec> specs;
    if (normed()) append_norm(specs, options_.norm, options_.image.channels);
    return specs;
  }
  [[nodiscard]] std::size_t outputs() const override { return 0; }
  [[nodiscard]] LayerBytes bytes(std::size_t rows) const override {
    const LayerBytes linear = linear_.bytes(rows);
    const std::uint64_t x = rows * options_.image.size() * sizeof(T);
    return {.output = 0,
            .kept = x + linear.kept + (normed() ? norm_.bytes() : 0),
            .kept_for_weights = linear.kept_for_weights};
  }
  [[nodiscard]] double flops(std::size_t rows) const override { return linear_.flops(rows); }
  [[nodiscard]] std::size_t workspace_bytes(std::size_t rows, device::Device device) const override {
    const std::size_t full = normed() ? room_for<T>(rows * options_.image.size()) : 0;
    const std::size_t pooled = room_for<T>(rows * options_.image.channels);
    return full + pooled + std::max(norm_.workspace_bytes(rows, device), linear_.workspace_bytes(rows, device));
  }
  [[nodiscard]] Status reserve(unsigned slots, std::size_t rows, device::Stream& stream) override {
    if (normed()) {
      DUNNOCK_TRY(norm_.reserve(slots, stream));
    }
    DUNNOCK_TRY(pooled_.reserve(slots, rows * options_.image.channels, stream));
    return linear_.reserve(slots, rows, stream);
  }
  void bind(LayerParameters<T> parameters) override {
    const auto last = [](const auto& all) { return std::vector(all.end() - 2, all.end()); };
    linear_.bind({.weights = last(parameters.weights), .gradients = last(parameters.gradients), .states = {}});
    NetworkLayer<T>::bind(std::move(parameters));
  }

  void forward(const LayerValues<T>& values, const LayerRun<T>& run) override {
    Workspace workspace(run.workspace);
    device::Span<const T> x = values.x;
    if (normed()) {
      const device::Span<T> n = workspace.take<T>(x.size());
      norm_.forward(x, n, this->norm_parameters(0, 0), workspace, run);
      x = n;
    }
    kernels::run(kernels::GlobalAveragePool<T>{.x = x, .y = pooled(run), .shape = pool_shape(run)}, run.stream);
    linear_.forward({.x = pooled(run), .y = {}, .dy = {}, .dx = {}}, inner_run(run, workspace));
  }
  void output_gradient(const LayerValues<T>& values, const LayerRun<T>& run) override {
    Workspace workspace(run.workspace);
    const device::Span<T> dpooled = workspace.take<T>(pooled(run).size());
    linear_.output_gradient({.x = pooled(run), .y = {}, .dy = {}, .dx = dpooled}, inner_run(run, workspace));
    kernels::run(kernels::GlobalAveragePoolBackward<T>{.dy = dpooled, .dx = values.dx, .shape = pool_shape(run)},
                 run.stream);
    if (normed()) {
      norm_.backward(values.dx, values.x, values.dx, this->norm_parameters(0, 0), workspace, run);
    } else {
      kernels::run(
          kernels::ActivateBackward<T>{
              .kind = kernels::Activation::kRelu, .dy = values.dx, .x = values.x, .dx = values.dx},
          run.stream);
    }
  }
  void weight_gradient(const LayerValues<T>& /*values*/, const LayerRun<T>& run) override {
    linear_.weight_gradient({.x = pooled(run), .y = {}, .dy = {}, .dx = {}}, run);
  }
  [[nodiscard]] device::Span<const T> logits(unsigned slot) const override { return linear_.logits(slot); }

 private:
  [[nodiscard]] bool normed() const { return !options_.norm.empty(); }
  [[nodiscard]] kernels::GlobalPoolingShape pool_shape(const LayerRun<T>& run) const {
    return {run.batch.rows, options_.image.height * options_.image.width, options_.image.channels};
  }
  [[nodiscard]] device::Span<T> pooled(const LayerRun<T>& run) const {
    return pooled_.get(run.slot, run.batch.rows * options_.image.channels);
  }
  [[nodiscard]] static LayerRun<T> inner_run(const LayerRun<T>& run, const Workspace& workspace) {
    return {run.batch, run.slot, run.adds, run.training, workspace.rest(), run.stream};
  }

  PoolHeadOptions options_;
  Norm<T> norm_;
  LinearLayer<T> linear_;
  SlotBuffers<T> pooled_;  // (rows, channels)
};

}  // namespace dunnock::model
