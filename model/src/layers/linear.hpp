// Linear layers: (rows, in) -> (rows, out), with ReLU or, as the last of a classifier, with the loss.
#pragma once

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "dunnock/kernels/cross_entropy.hpp"
#include "dunnock/kernels/elementwise.hpp"
#include "dunnock/kernels/matmul.hpp"
#include "dunnock/model/network_layer.hpp"
#include "workspace.hpp"

namespace dunnock::model {

struct LinearOptions {
  std::string name;  // Of the parameters: NAME.weight (out, in), NAME.bias (out)
  std::size_t in = 0;
  std::size_t out = 0;
  bool relu = false;  // y = max(0, .), and the gradient that comes is of what was before: the next layer sees to it
  /// x is the result of a ReLU, so dx is multiplied by its slope: of what was before.
  bool x_is_relu = false;
  bool loss = false;          // The last: softmax cross-entropy of y.
  std::size_t positions = 1;  // Of an x that convolutions have left (ParameterSpec).
  unsigned block = 0;
};

/// PyTorch's: uniform from -1 / sqrt(in) to 1 / sqrt(in), weight and bias.
[[nodiscard]] inline std::vector<ParameterSpec> linear_parameters(const LinearOptions& options) {
  const float bound = 1.0F / std::sqrt(static_cast<float>(options.in));
  return {{.name = options.name + ".weight",
           .shape = {options.out, options.in},
           .initial = Initial::kUniform,
           .scale = bound,
           .decays = true,
           .positions = options.positions},
          {.name = options.name + ".bias", .shape = {options.out}, .initial = Initial::kUniform, .scale = bound}};
}

template <class T>
class LinearLayer final : public NetworkLayer<T> {
 public:
  explicit LinearLayer(LinearOptions options) : options_(std::move(options)) {}

  [[nodiscard]] std::string name() const override { return options_.name; }
  [[nodiscard]] unsigned block() const override { return options_.block; }
  [[nodiscard]] std::vector<ParameterSpec> parameters() const override { return linear_parameters(options_); }
  [[nodiscard]] std::size_t outputs() const override { return options_.loss ? 0 : options_.out; }
  [[nodiscard]] bool weights_behind_output() const override { return false; }
  [[nodiscard]] LayerBytes bytes(std::size_t rows) const override {
    // x is the output of the layer below, and is needed until dW is done, as the gradient that comes is.
    const std::uint64_t x = rows * options_.in * sizeof(T);
    const std::uint64_t logits = options_.loss ? rows * options_.out * sizeof(T) : 0;
    return {.output = outputs() * rows * sizeof(T), .kept = x + logits, .kept_for_weights = x + logits};
  }
  [[nodiscard]] double flops(std::size_t rows) const override {
    return 2.0 * static_cast<double>(rows) * static_cast<double>(options_.in) * static_cast<double>(options_.out);
  }
  [[nodiscard]] std::size_t workspace_bytes(std::size_t rows, device::Device device) const override {
    std::size_t bytes = MadeGradient<T>::room(options_.out) +
                        room_for<float>(kernels::column_sums_workspace({rows, options_.out}, device));
    for (const kernels::MatmulShape& shape : {forward_shape(rows), dx_shape(rows), dw_shape(rows)})
      bytes = std::max(bytes, kernels::matmul_workspace_bytes(shape, device));
    return bytes;
  }
  [[nodiscard]] Status reserve(unsigned slots, std::size_t rows, device::Stream& stream) override {
    return options_.loss ? logits_.reserve(slots, rows * options_.out, stream) : Status();
  }

  void forward(const LayerValues<T>& values, const LayerRun<T>& run) override {
    const std::size_t rows = run.batch.rows;
    kernels::MatmulEpilogue<T> epilogue;
    epilogue.bias = this->weight(1);
    if (options_.relu) epilogue.activation = kernels::MatmulActivation::kRelu;
    const device::Span<T> y = options_.loss ? logits_.get(run.slot, rows * options_.out) : values.y;
    kernels::run(kernels::Matmul<T, T>{.a = values.x,
                                       .b = this->weight(0),
                                       .c = y,
                                       .shape = forward_shape(rows),
                                       .epilogue = epilogue,
                                       .workspace = run.workspace},
                 run.stream);
    if (!options_.loss) return;
    kernels::run(
        kernels::CrossEntropy<T>{
            .logits = y,
            .targets = run.batch.targets,
            .losses = run.batch.losses,
            .gradient = run.training ? y : device::Span<T>(),
            .shape = {.rows = rows, .classes = options_.out, .gradient_factor = run.batch.gradient_factor}},
        run.stream);
  }

  void output_gradient(const LayerValues<T>& values, const LayerRun<T>& run) override {
    if (values.dx.empty()) return;
    kernels::MatmulEpilogue<T> epilogue;
    if (options_.x_is_relu) {
      epilogue.activation = kernels::MatmulActivation::kRelu;
      epilogue.gradient_at = values.x;
    }
    kernels::run(kernels::Matmul<T, T>{.a = dy(values, run),
                                       .b = this->weight(0),
                                       .c = values.dx,
                                       .shape = dx_shape(run.batch.rows),
                                       .epilogue = epilogue,
                                       .workspace = run.workspace},
                 run.stream);
  }

  void weight_gradient(const LayerValues<T>& values, const LayerRun<T>& run) override {
    const std::size_t rows = run.batch.rows;
    kernels::MatmulEpilogue<float> epilogue;
    epilogue.beta = run.adds ? 1.0F : 0.0F;
    kernels::run(kernels::Matmul<T, float>{.a = dy(values, run),
                                           .b = values.x,
                                           .c = this->gradient(0),
                                           .shape = dw_shape(rows),
                                           .epilogue = epilogue,
                                           .workspace = run.workspace},
                 run.stream);
    Workspace workspace(run.workspace);
    const kernels::RowMatrix shape{rows, options_.out};
    const MadeGradient<T> of_bias(this->gradient(1), run.adds, workspace);
    kernels::run(kernels::ColumnSums<T>{.x = dy(values, run),
                                        .sums = of_bias.target(),
                                        .adds = of_bias.kernel_adds(),
                                        .shape = shape,
                                        .workspace = workspace.take<float>(
                                            kernels::column_sums_workspace(shape, run.stream.device()))},
                 run.stream);
    of_bias.add(run.stream);
  }

  [[nodiscard]] device::Span<const T> logits(unsigned slot) const override {
    return options_.loss ? logits_.all(slot) : device::Span<T>();
  }

 private:
  [[nodiscard]] kernels::MatmulShape forward_shape(std::size_t rows) const {
    return {.rows = rows, .columns = options_.out, .inner = options_.in, .transpose_b = true};
  }
  [[nodiscard]] kernels::MatmulShape dx_shape(std::size_t rows) const {
    return {.rows = rows, .columns = options_.in, .inner = options_.out};
  }
  [[nodiscard]] kernels::MatmulShape dw_shape(std::size_t rows) const {
    return {.rows = options_.out, .columns = options_.in, .inner = rows, .transpose_a = true};
  }
  [[nodiscard]] device::Span<const T> dy(const LayerValues<T>& values, const LayerRun<T>& run) const {
    return options_.loss ? device::Span<const T>(logits_.get(run.slot, run.batch.rows * options_.out)) : values.dy;
  }

  LinearOptions options_;
  SlotBuffers<T> logits_;  // (rows, out); after a forward pass in training their gradient.
};

}  // namespace dunnock::model
