// NetworkLayer: a link in a network's chain, with forward, output gradient (dO) and weight gradient (dW) as three
// operations that schedules can place freely.
//
//        forward            output_gradient              weight_gradient
//      x  ---->  y         dx  <----  dy               dy, what was kept  ---->  gradients of the weights
//           keeps what both gradients need
//
// Links may have branches inside (a shortcut, an attention block). What is kept is in slots: a micro-batch has one from
// its forward pass to its last gradient, so several can be in progress. Nothing is allocated after reserve().
//
// What output_gradient() keeps for weight_gradient() stays in the slot too, and so do x and dy, which are held outside
// the layer. output_gradient() also computes small gradients that are its by-products (of norms).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "dunnock/base/result.hpp"
#include "dunnock/device/memory.hpp"
#include "dunnock/model/parameters.hpp"

namespace dunnock::model {

/// The inputs, and where the losses go. Device memory that stays.
template <class T>
struct MicroBatch {
  std::size_t rows = 0;                        ///< Images, or rows of tokens.
  device::Span<const T> images{};              // (rows, height, width, channels)
  device::Span<const std::int32_t> tokens{};   // (rows, context)
  device::Span<const std::int32_t> targets{};  // (rows), or (rows, context); -100: no target
  device::Span<float> losses{};                // as targets
  float gradient_factor = 1;                   ///< Factor of each loss's gradient.
};

/// The values at a layer's ends. Some are empty: the first layer has no dx, the last no y and no dy. x of the first
/// layer is the batch's images.
template <class T>
struct LayerValues {
  device::Span<const T> x;
  device::Span<T> y;
  device::Span<const T> dy;
  device::Span<T> dx;
};

template <class T>
struct LayerRun {
  const MicroBatch<T>& batch;
  unsigned slot = 0;
  bool adds = false;     ///< Adds weight gradients to the existing values instead of setting them.
  bool training = true;  ///< False: evaluation. Nothing is kept, and running statistics are used, not updated.
  device::Span<std::byte> workspace;  ///< At least workspace_bytes(); used only by this stream.
  device::Stream& stream;
};

/// Bytes per micro-batch, for planning. As in step.hpp.
struct LayerBytes {
  std::uint64_t output = 0;
  std::uint64_t kept = 0;
  std::uint64_t kept_for_weights = 0;
};

/// T is float or Bf16. Threads: different slots may be used on different streams at the same time, as schedules allow.
template <class T>
class NetworkLayer {
 public:
  NetworkLayer() = default;
  NetworkLayer(const NetworkLayer&) = delete;
  NetworkLayer& operator=(const NetworkLayer&) = delete;
  virtual ~NetworkLayer() = default;

  [[nodiscard]] virtual std::string name() const = 0;
  /// Layers of one block are alike (step.hpp).
  [[nodiscard]] virtual unsigned block() const { return 0; }
  [[nodiscard]] virtual std::vector<ParameterSpec> parameters() const { return {}; }
  [[nodiscard]] virtual std::vector<StateSpec> states() const { return {}; }
  /// Values of y per row; 0: this is the last layer, which makes losses.
  [[nodiscard]] virtual std::size_t outputs() const = 0;
  /// Does weight_gradient() read what output_gradient() keeps, so that it must run after it?
  [[nodiscard]] virtual bool weights_behind_output() const { return true; }
  [[nodiscard]] virtual LayerBytes bytes(std::size_t rows) const = 0;
  /// Floating point operations of forward for this many rows: matrix products and convolutions. Both gradients together
  /// need twice that.
  [[nodiscard]] virtual double flops(std::size_t rows) const = 0;
  /// The most workspace that forward or either gradient needs.
  [[nodiscard]] virtual std::size_t workspace_bytes(std::size_t rows, device::Device device) const = 0;

  /// Allocates what the layer keeps for `slots` micro-batches of at most `rows` rows. Errors: NoSpace, Device.
  [[nodiscard]] virtual Status reserve(unsigned slots, std::size_t rows, device::Stream& stream) = 0;
  virtual void bind(LayerParameters<T> parameters) { parameters_ = std::move(parameters); }

  virtual void forward(const LayerValues<T>& values, const LayerRun<T>& run) = 0;
  /// Call after forward() of the slot; without dx (first layer) too, just before weight_gradient().
  virtual void output_gradient(const LayerValues<T>& values, const LayerRun<T>& run) = 0;
  /// Call after output_gradient() of the slot if weights_behind_output(); otherwise after that of the layer above.
  virtual void weight_gradient(const LayerValues<T>& values, const LayerRun<T>& run) = 0;
  /// The logits of the last layer, after forward() in evaluation: (rows, classes), or (rows, context, vocabulary).
  [[nodiscard]] virtual device::Span<const T> logits(unsigned slot) const;

 protected:
  [[nodiscard]] device::Span<const T> weight(std::size_t i) const { return parameters_.weights[i]; }
  [[nodiscard]] device::Span<float> gradient(std::size_t i) const { return parameters_.gradients[i]; }
  [[nodiscard]] device::Span<float> state(std::size_t i) const { return parameters_.states[i]; }

 private:
  LayerParameters<T> parameters_;
};

template <class T>
device::Span<const T> NetworkLayer<T>::logits(unsigned /*slot*/) const {
  return {};
}

}  // namespace dunnock::model
