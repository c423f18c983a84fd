// The task graph of a step whose layers are all on one device, for some iterations; with all-reduces of the gradients
// where devices are data-parallel.
#pragma once

#include <vector>

#include "dunnock/training/schedules.hpp"

namespace dunnock::training {

struct LayerOps {
  gpu::OpId forward = gpu::kNoOp;
  gpu::OpId output_gradient = gpu::kNoOp;  // None of the first layer.
  gpu::OpId weight_gradient = gpu::kNoOp;  // None where there are no weights.
  gpu::OpId update = gpu::kNoOp;
};

struct LayerGraph {
  gpu::TaskGraph graph;
  std::vector<OpTag> tags;
  std::vector<std::vector<LayerOps>> ops;        // [iteration][layer]
  std::vector<std::vector<gpu::OpId>> messages;  // [iteration][message]
  std::vector<gpu::OpId> norms;                  // [iteration]; none where nothing is clipped.
};

[[nodiscard]] inline bool has_weights(const Layer& layer) {
  return layer.weight_gradient.us > 0 || layer.gradient_bytes > 0;
}

/// `messages` are all-reduced by `ring` devices; none for one device.
[[nodiscard]] LayerGraph make_layer_graph(const Step& step, unsigned iterations, const std::vector<Message>& messages,
                                          unsigned ring, const Link& link);

}  // namespace dunnock::training
