// The task graph of a step whose layers are all on one device, for some iterations; with all-reduces of the gradients
// where devices are data-parallel.
#pragma once

#include <vector>

#include "dunnock/training/schedules.hpp"

namespace dunnock::training {

struct LayerOps {
  schedule::OpId forward = schedule::kNoOp;
  schedule::OpId output_gradient = schedule::kNoOp;  // None of the first layer.
  schedule::OpId weight_gradient = schedule::kNoOp;  // None where there are no weights.
  schedule::OpId update = schedule::kNoOp;
};

struct LayerGraph {
  schedule::TaskGraph graph;
  std::vector<OpTag> tags;
  std::vector<std::vector<LayerOps>> ops;             // [iteration][layer]
  std::vector<std::vector<schedule::OpId>> messages;  // [iteration][message]
  std::vector<schedule::OpId> norms;                  // [iteration]; none where nothing is clipped.
};

[[nodiscard]] inline bool has_weights(const Layer& layer) {
  return layer.weight_gradient.us > 0 || layer.gradient_bytes > 0;
}

/// `messages` are all-reduced by `ring` devices; none for one device.
[[nodiscard]] LayerGraph make_layer_graph(const Step& step, unsigned iterations, const std::vector<Message>& messages,
                                          unsigned ring, const Link& link);

}  // namespace dunnock::training
