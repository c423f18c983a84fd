#include "layer_graph.hpp"

#include <optional>
#include <string>
#include <utility>

#include "names.hpp"

namespace dunnock::training {
namespace {

using schedule::OpKind;
using schedule::ValueId;

class Maker {
 public:
  Maker(const Step& step, unsigned iterations, const std::vector<Message>& messages, unsigned ring, const Link& link)
      : step_(step), messages_(messages), ring_(ring), link_(link) {
    for (const Layer& layer : step.layers) weights_.push_back(value(named("w", layer.name), layer.weight_bytes));
    updated_.resize(step.layers.size());
    for (unsigned t = 0; t < iterations; ++t) {
      suffix_ = iterations > 1 ? named(".", std::to_string(t + 1)) : std::string();
      iteration_ = t;
      made_.ops.emplace_back(step.layers.size());
      add_forward();
      add_backward();
      add_messages();
      add_updates();
    }
  }

  LayerGraph take() { return std::move(made_); }

 private:
  ValueId value(const std::string& name, std::uint64_t bytes) { return made_.graph.add_value(name, bytes); }

  schedule::OpId add(schedule::Op op, Part part, unsigned layer) {
    op.name += suffix_;
    made_.tags.push_back({.part = part, .iteration = iteration_, .chunk = layer});
    return made_.graph.add(std::move(op));
  }

  void add_forward() {
    const std::size_t layers = step_.layers.size();
    kept_.assign(layers, {});
    kept_for_weights_.assign(layers, {});
    gradient_of_output_.assign(layers, {});
    std::optional<ValueId> input;
    for (unsigned i = 0; i < layers; ++i) {
      const Layer& layer = step_.layers[i];
      kept_[i] = value(named("k", layer.name), layer.kept_bytes - layer.kept_for_weights_bytes);
      kept_for_weights_[i] = value(named("x", layer.name), layer.kept_for_weights_bytes);
      const ValueId output = value(named("y", layer.name), layer.output_bytes);
      schedule::Op op{.name = named("F", layer.name),
                      .kind = OpKind::kForward,
                      .inputs = {weights_[i]},
                      .outputs = {kept_[i], kept_for_weights_[i], output},
                      .cost_us = layer.forward.us,
                      .demand = layer.forward.demand};
      if (input) op.inputs.push_back(*input);
      if (updated_[i]) op.inputs.push_back(*updated_[i]);
      made_.ops.back()[i].forward = add(std::move(op), Part::kForward, i);
      input = output;
    }
    gradient_of_output_.back() = *input;  // The loss is part of the last layer.
  }

  void add_backward() {
    weight_gradients_.assign(step_.layers.size(), {});
    weights_read_.assign(step_.layers.size(), {});
    for (auto i = static_cast<unsigned>(step_.layers.size()); i-- > 0;) {
      const Layer& layer = step_.layers[i];
      LayerOps& ops = made_.ops.back()[i];
      if (i > 0) {
        gradient_of_output_[i - 1] = value(named("d", step_.layers[i - 1].name), step_.layers[i - 1].output_bytes);
        weights_read_[i] = value(named("r", layer.name), 0);
        ops.output_gradient = add({.name = named("dO", layer.name),
                                   .kind = OpKind::kOutputGradient,
                                   .inputs = {weights_[i], gradient_of_output_[i], kept_[i], kept_for_weights_[i]},
                                   .outputs = {gradient_of_output_[i - 1], *weights_read_[i]},
                                   .cost_us = layer.output_gradient.us,
                                   .demand = layer.output_gradient.demand},
                                  Part::kOutputGradient, i);
      }
      if (!has_weights(layer)) continue;
      weight_gradients_[i] = value(named("g", layer.name), layer.gradient_bytes);
      std::vector<ValueId> inputs{gradient_of_output_[i], kept_for_weights_[i]};
      if (layer.weights_behind_output && weights_read_[i]) inputs.push_back(*weights_read_[i]);
      ops.weight_gradient = add({.name = named("dW", layer.name),
                                 .kind = OpKind::kWeightGradient,
                                 .inputs = std::move(inputs),
                                 .outputs = {weight_gradients_[i]},
                                 .cost_us = layer.weight_gradient.us,
                                 .demand = layer.weight_gradient.demand},
                                Part::kWeightGradient, i);
    }
  }

  void add_messages() {
    sums_.assign(step_.layers.size(), {});
    made_.messages.emplace_back();
    for (const Message& message : messages_) {
      const ValueId sum = value("s", 0);  // In place.
      schedule::Op op{.name = named("S", step_.layers[message.layers.front()].name),
                      .kind = OpKind::kCommunication,
                      .outputs = {sum},
                      .cost_us = link_.all_reduce_us(message.bytes, ring_)};
      for (const unsigned layer : message.layers) {
        op.inputs.push_back(weight_gradients_[layer]);
        sums_[layer].push_back(sum);
      }
      made_.messages.back().push_back(add(std::move(op), Part::kAllReduce, message.layers.front()));
      made_.tags.back().message = static_cast<unsigned>(&message - messages_.data());
    }
  }

  /// Everything that the update of a layer reads but its weights.
  std::vector<ValueId> gradients_for(unsigned layer) const {
    std::vector<ValueId> gradients = sums_[layer];
    gradients.push_back(weight_gradients_[layer]);
    for (unsigned i = layer + 1; i < step_.layers.size(); ++i) {
      if (step_.layers[i].tied_to != layer) continue;
      gradients.insert(gradients.end(), sums_[i].begin(), sums_[i].end());
      gradients.push_back(weight_gradients_[i]);
    }
    return gradients;
  }

  void add_norm() {
    norm_.reset();
    if (!step_.clips) return;
    norm_ = value("norm", 0);
    schedule::Op op{.name = "N", .kind = OpKind::kOther, .outputs = {*norm_}};
    for (unsigned i = 0; i < step_.layers.size(); ++i) {
      if (!has_weights(step_.layers[i])) continue;
      const std::vector<ValueId> gradients = gradients_for(i);
      op.inputs.insert(op.inputs.end(), gradients.begin(), gradients.end());
    }
    made_.norms.push_back(add(std::move(op), Part::kNorm, 0));
  }

  void add_updates() {
    add_norm();
    for (unsigned i = 0; i < step_.layers.size(); ++i) {
      const Layer& layer = step_.layers[i];
      if (!has_weights(layer)) continue;
      updated_[i] = value(named("u", layer.name), 0);
      schedule::Op op{.name = named("U", layer.name),
                      .kind = OpKind::kUpdate,
                      .inputs = gradients_for(i),
                      .outputs = {*updated_[i]},
                      .cost_us = layer.update.us,
                      .demand = layer.update.demand};
      if (norm_) op.inputs.push_back(*norm_);
      // In place, so not before dO has read the old weights.
      if (weights_read_[i]) op.inputs.push_back(*weights_read_[i]);
      made_.ops.back()[i].update = add(std::move(op), Part::kUpdate, i);
    }
  }

  const Step& step_;
  const std::vector<Message>& messages_;
  unsigned ring_;
  const Link& link_;
  LayerGraph made_;
  std::string suffix_;
  unsigned iteration_ = 0;
  // Values of each layer; those of an iteration are made anew.
  std::vector<ValueId> weights_;
  std::vector<std::optional<ValueId>> updated_;
  std::vector<ValueId> kept_;
  std::vector<ValueId> kept_for_weights_;
  std::vector<ValueId> gradient_of_output_;
  std::vector<ValueId> weight_gradients_;
  std::vector<std::optional<ValueId>> weights_read_;
  std::vector<std::vector<ValueId>> sums_;
  std::optional<ValueId> norm_;
};

}  // namespace

LayerGraph make_layer_graph(const Step& step, unsigned iterations, const std::vector<Message>& messages, unsigned ring,
                            const Link& link) {
  return Maker(step, iterations, messages, ring, link).take();
}

}  // namespace dunnock::training
