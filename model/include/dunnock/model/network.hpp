// Network: a model's layers, its parameters, and the values between the layers.
//
//   batch -> layer 0 -> value 0 -> layer 1 -> value 1 -> ... -> last layer -> losses
//                       gradient 0            gradient 1
//
// Values and their gradients are in slots, like what layers keep: one slot per micro-batch in progress. A rank of a
// pipeline holds some of the layers; it holds a value if it holds either of the neighboring layers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "dunnock/base/result.hpp"
#include "dunnock/device/memory.hpp"
#include "dunnock/model/models.hpp"
#include "dunnock/model/network_layer.hpp"
#include "dunnock/model/parameters.hpp"

namespace dunnock::model {

/// The layers of a model without memory, for their names, shapes and costs. The model must be valid. T: float, Bf16.
template <class T>
[[nodiscard]] std::vector<std::unique_ptr<NetworkLayer<T>>> layers_of(const ModelOptions& model);

struct NetworkOptions {
  unsigned slots = 1;
  std::size_t rows = 1;      ///< Maximum rows per micro-batch.
  std::uint64_t seed = 0;    ///< Seed of the weights.
  std::vector<bool> held{};  ///< Layers that this rank has; empty: all.
};

/// The arguments of a call to a layer; the network finds the slot's values.
template <class T>
struct NetworkRun {
  const MicroBatch<T>& batch;
  unsigned slot = 0;
  bool adds = false;
  bool training = true;
  device::Span<std::byte> workspace;
  device::Stream& stream;
};

/// Move-only. T: float (f32) or Bf16, with masters in f32 (parameters.hpp). Threads: as NetworkLayer.
template <class T>
class Network {
 public:
  /// Errors: those of check(model); InvalidArgument (no slots or rows, another number of layers), NoSpace, Device.
  [[nodiscard]] static Result<Network> create(const ModelOptions& model, const NetworkOptions& options,
                                              device::Stream& stream);

  [[nodiscard]] const ModelOptions& model() const noexcept { return model_; }
  [[nodiscard]] unsigned layers() const noexcept { return static_cast<unsigned>(layers_.size()); }
  [[nodiscard]] const NetworkLayer<T>& layer(unsigned layer) const { return *layers_[layer]; }
  [[nodiscard]] bool held(unsigned layer) const { return held_[layer]; }
  [[nodiscard]] std::size_t rows() const noexcept { return rows_; }
  [[nodiscard]] unsigned slots() const noexcept { return slots_; }
  [[nodiscard]] Parameters<T>& parameters() noexcept { return parameters_; }
  [[nodiscard]] const Parameters<T>& parameters() const noexcept { return parameters_; }
  /// Workspace needed for each stream that layers run on.
  [[nodiscard]] std::size_t workspace_bytes() const noexcept { return workspace_bytes_; }
  /// Floating point operations of all layers, held or not, for `rows` rows: forward and both gradients.
  [[nodiscard]] double flops(std::size_t rows) const;

  void forward(unsigned layer, const NetworkRun<T>& run);
  void output_gradient(unsigned layer, const NetworkRun<T>& run);
  void weight_gradient(unsigned layer, const NetworkRun<T>& run);

  /// y of a layer, and its gradient, for `rows` rows. The last layer has none.
  [[nodiscard]] device::Span<T> value(unsigned layer, unsigned slot, std::size_t rows) const;
  [[nodiscard]] device::Span<T> gradient(unsigned layer, unsigned slot, std::size_t rows) const;
  /// The last layer's logits, after its forward() in evaluation.
  [[nodiscard]] device::Span<const T> logits(unsigned slot) const { return layers_.back()->logits(slot); }

 private:
  [[nodiscard]] LayerValues<T> values(unsigned layer, const NetworkRun<T>& run) const;

  ModelOptions model_;
  std::vector<std::unique_ptr<NetworkLayer<T>>> layers_;
  std::vector<bool> held_;
  unsigned slots_ = 0;
  std::size_t rows_ = 0;
  std::size_t workspace_bytes_ = 0;
  Parameters<T> parameters_;
  std::vector<device::Buffer<T>> values_;     // [layer * slots + slot]
  std::vector<device::Buffer<T>> gradients_;  // the same
};

}  // namespace dunnock::model
