// Step: what one training step costs, layer by layer. Schedules (schedules.hpp) are made from it; the costs are
// profiled, or derived from shapes (profiles.hpp).
//
//   forward          F1 --> F2 --> F3 --> loss
//                    |keeps |keeps |keeps
//   output gradient        dO2 <- dO3 <- loss       the chain that everything waits for
//   weight gradient  dW1    dW2    dW3              each needs the gradient of its layer's output, and what F has kept
//
// A chain of layers: branches (shortcuts, concatenations) are costs of the layers that they join. Not a model of
// kernels: only three costs per layer, and bytes.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "dunnock/base/result.hpp"

namespace dunnock::training {

/// One operation of a layer: its time alone on its device, and how much of the device it keeps busy
/// (schedule::Op::demand).
struct Cost {
  double us = 0;
  double demand = 1;  ///< 0 < demand <= 1
};

/// A layer, for one micro-batch.
struct Layer {
  std::string name{};
  unsigned block = 0;  ///< Layers of one block are alike: a region of the multi-stream schedule. Ascending.
  Cost forward{};
  Cost output_gradient{};  ///< dO. The first layer's input has no gradient: 0 us there; graphs of layers leave it out.
  Cost weight_gradient{};  ///< dW; 0 us and no weights: no dW.
  Cost update{};           ///< Update of its weights, once per step.
  std::uint64_t output_bytes = 0;  ///< Activation to the next layer; its gradient is as large.
  std::uint64_t kept_bytes = 0;    ///< What forward keeps for both gradients: until dO is done ...
  /// ... except for this part, which stays until dW is done: the layer's inputs, and the gradients that replace what dO
  /// has freed. <= kept_bytes.
  std::uint64_t kept_for_weights_bytes = 0;
  std::uint64_t weight_bytes = 0;    ///< Weights and the optimizer's state. Allocated all the time.
  std::uint64_t gradient_bytes = 0;  ///< Gradients of the weights, which data-parallel devices add up.
  /// dW reads what dO leaves (the gradients inside a block), so it must run after dO; otherwise dO may run at any time.
  bool weights_behind_output = false;
  /// Some of its weights are those of an earlier layer, whose update needs this layer's gradient too (a tied head).
  std::optional<unsigned> tied_to{};
};

struct Step {
  std::string name{};
  std::vector<Layer> layers{};
  /// Gradients are clipped by the norm of all of them: updates wait for all dW, and none can be delayed.
  bool clips = false;

  /// The first layer whose forward pass waits for this one's gradients.
  [[nodiscard]] unsigned awaited_by(unsigned layer) const { return layers[layer].tied_to.value_or(layer); }
};

/// A link between two devices, in each direction.
struct Link {
  double latency_us = 0;
  double gb_per_s = 0;  ///< 10^9 bytes per second. 0: bytes take no time (a device's own memory).

  /// One message: latency + bytes / bandwidth.
  [[nodiscard]] double send_us(std::uint64_t bytes) const noexcept;
  /// A ring of `devices`: 2 (n - 1) messages of bytes / n, one after the other; 0 for one device.
  [[nodiscard]] double all_reduce_us(std::uint64_t bytes, unsigned devices) const noexcept;
};

/// Success, or what is wrong with the costs (InvalidArgument): no layers, a negative or infinite time, a demand that is
/// not in (0, 1], more bytes kept for weights than kept, blocks that do not ascend.
[[nodiscard]] Status check(const Step& step);

/// The first layer of each of `parts` runs of layers, chosen so that the longest run (forward and both gradients) is as
/// short as possible; every run has a layer. parts <= layers. Time: layers^2 x parts.
[[nodiscard]] std::vector<unsigned> balanced_parts(const Step& step, unsigned parts);

/// `layers` equal layers: for closed forms and tests.
[[nodiscard]] Step uniform_step(unsigned layers, const Layer& layer);

}  // namespace dunnock::training
