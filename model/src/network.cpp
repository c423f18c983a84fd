#include "dunnock/model/network.hpp"

#include <algorithm>
#include <string>
#include <utility>

#include "layers/layers.hpp"

namespace dunnock::model {

template <class T>
std::vector<std::unique_ptr<NetworkLayer<T>>> layers_of(const ModelOptions& model) {
  return std::visit([](const auto& sizes) { return make_layers<T>(sizes); }, model);
}
template std::vector<std::unique_ptr<NetworkLayer<float>>> layers_of<float>(const ModelOptions&);
template std::vector<std::unique_ptr<NetworkLayer<device::Bf16>>> layers_of<device::Bf16>(const ModelOptions&);

template <class T>
Result<Network<T>> Network<T>::create(const ModelOptions& model, const NetworkOptions& options,
                                      device::Stream& stream) {
  DUNNOCK_TRY(check(model));
  if (options.slots == 0) return make_error(ErrorCode::kInvalidArgument, "a network needs at least one slot");
  if (options.rows == 0) return make_error(ErrorCode::kInvalidArgument, "a micro-batch needs at least one row");
  Network network;
  network.model_ = model;
  network.layers_ = layers_of<T>(model);
  const std::size_t layers = network.layers_.size();
  network.held_ = options.held.empty() ? std::vector<bool>(layers, true) : options.held;
  if (network.held_.size() != layers) {
    return make_error(ErrorCode::kInvalidArgument, "the model has " + std::to_string(layers) +
                                                       " layers, but held has " + std::to_string(options.held.size()));
  }
  network.slots_ = options.slots;
  network.rows_ = options.rows;

  std::vector<LayerSpecs> specs;
  for (std::size_t i = 0; i < layers; ++i)
    specs.push_back({network.layers_[i]->parameters(), network.layers_[i]->states(), network.held_[i]});
  DUNNOCK_TRY(auto parameters, Parameters<T>::create(specs, options.seed, stream));
  network.parameters_ = std::move(parameters);

  network.values_.resize(layers * options.slots);
  network.gradients_.resize(layers * options.slots);
  for (std::size_t i = 0; i < layers; ++i) {
    NetworkLayer<T>& layer = *network.layers_[i];
    const bool next_held = i + 1 < layers && network.held_[i + 1];
    if (i + 1 < layers && (network.held_[i] || next_held)) {
      for (unsigned slot = 0; slot < options.slots; ++slot) {
        for (auto* buffers : {&network.values_, &network.gradients_}) {
          DUNNOCK_TRY(auto buffer, device::Buffer<T>::create(options.rows * layer.outputs(), stream));
          (*buffers)[i * options.slots + slot] = std::move(buffer);
        }
      }
    }
    if (!network.held_[i]) continue;
    DUNNOCK_TRY(layer.reserve(options.slots, options.rows, stream));
    layer.bind(network.parameters_.layer(static_cast<unsigned>(i)));
    network.workspace_bytes_ = std::max(network.workspace_bytes_, layer.workspace_bytes(options.rows, stream.device()));
  }
  return network;
}

template <class T>
double Network<T>::flops(std::size_t rows) const {
  double sum = 0;
  for (const auto& layer : layers_) sum += 3 * layer->flops(rows);
  // Nothing wants the gradient of what goes in.
  return sum - layers_.front()->flops(rows);
}

template <class T>
device::Span<T> Network<T>::value(unsigned layer, unsigned slot, std::size_t rows) const {
  return values_[layer * slots_ + slot].span().subspan(0, rows * layers_[layer]->outputs());
}

template <class T>
device::Span<T> Network<T>::gradient(unsigned layer, unsigned slot, std::size_t rows) const {
  return gradients_[layer * slots_ + slot].span().subspan(0, rows * layers_[layer]->outputs());
}

template <class T>
LayerValues<T> Network<T>::values(unsigned layer, const NetworkRun<T>& run) const {
  LayerValues<T> values;
  const std::size_t rows = run.batch.rows;
  DUNNOCK_CHECK(held_[layer], "a rank runs the layers that it holds");
  DUNNOCK_CHECK(rows <= rows_, "a micro-batch has at most the rows given to create()");
  if (layer == 0) {
    values.x = run.batch.images;
  } else {
    values.x = value(layer - 1, run.slot, rows);
    values.dx = gradient(layer - 1, run.slot, rows);
  }
  if (layer + 1 < layers_.size()) {
    values.y = value(layer, run.slot, rows);
    values.dy = gradient(layer, run.slot, rows);
  }
  return values;
}

template <class T>
void Network<T>::forward(unsigned layer, const NetworkRun<T>& run) {
  layers_[layer]->forward(values(layer, run), {run.batch, run.slot, run.adds, run.training, run.workspace, run.stream});
}

template <class T>
void Network<T>::output_gradient(unsigned layer, const NetworkRun<T>& run) {
  layers_[layer]->output_gradient(values(layer, run),
                                  {run.batch, run.slot, run.adds, run.training, run.workspace, run.stream});
}

template <class T>
void Network<T>::weight_gradient(unsigned layer, const NetworkRun<T>& run) {
  const LayerRun<T> layer_run{run.batch, run.slot, run.adds, run.training, run.workspace, run.stream};
  // The first layer's dO has nobody to go to, and is no operation of schedules; but what it leaves is needed here.
  if (layer == 0) layers_[layer]->output_gradient(values(layer, run), layer_run);
  layers_[layer]->weight_gradient(values(layer, run), layer_run);
}

template class Network<float>;
template class Network<device::Bf16>;

}  // namespace dunnock::model
