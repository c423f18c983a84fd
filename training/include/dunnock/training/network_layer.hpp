// NetworkLayer: a link of the chain that a network is, with forward, output gradient (dO) and weight gradient (dW) as
// three operations, which schedules put where they like.
//
//        forward            output_gradient              weight_gradient
//      x  ---->  y         dx  <----  dy               dy, what was kept  ---->  gradients of the weights
//           keeps what both gradients need
//
// Links may have branches inside (a shortcut, an attention block). What is kept lies in slots: a micro-batch has one
// from its forward pass to its last gradient, so several can be on their way. Nothing is allocated after reserve().
//
// What output_gradient() keeps for weight_gradient() stays in the slot too, and so do x and dy, which others hold.
// Small gradients that fall off on the way (of norms) are made by output_gradient().
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "dunnock/base/result.hpp"
#include "dunnock/gpu/memory.hpp"
#include "dunnock/training/parameters.hpp"

namespace dunnock::training {

/// What goes in, and the losses that come out. Device memory that stays.
template <class T>
struct MicroBatch {
  std::size_t rows = 0;                           ///< Images, or rows of tokens.
  gpu::DeviceSpan<const T> images{};              // (rows, height, width, channels)
  gpu::DeviceSpan<const std::int32_t> tokens{};   // (rows, context)
  gpu::DeviceSpan<const std::int32_t> targets{};  // (rows), or (rows, context); -100: none
  gpu::DeviceSpan<float> losses{};                // as targets
  float gradient_factor = 1;                      ///< What the gradient of each loss is multiplied by.
};

/// The values at a layer's ends. Empty ones: the first layer has no dx, the last no y and no dy; x of the first is the
/// batch's images.
template <class T>
struct LayerValues {
  gpu::DeviceSpan<const T> x;
  gpu::DeviceSpan<T> y;
  gpu::DeviceSpan<const T> dy;
  gpu::DeviceSpan<T> dx;
};

template <class T>
struct LayerRun {
  const MicroBatch<T>& batch;
  unsigned slot = 0;
  bool adds = false;     ///< Gradients of weights are added to what is there, not set.
  bool training = true;  ///< False: evaluation. Nothing is kept, and running statistics are used, not made.
  gpu::DeviceSpan<std::byte> workspace;  ///< At least workspace_bytes(); of this stream alone.
  gpu::Stream& stream;
};

/// Bytes a micro-batch, for planning. As in step.hpp.
struct LayerBytes {
  std::uint64_t output = 0;
  std::uint64_t kept = 0;
  std::uint64_t kept_for_weights = 0;
};

/// T is float or Bf16. Threads: different slots on different streams at a time, as schedules allow.
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
  /// Values of y a row; 0: it is the last, and makes losses.
  [[nodiscard]] virtual std::size_t outputs() const = 0;
  /// weight_gradient() reads what output_gradient() keeps, and so comes behind it.
  [[nodiscard]] virtual bool weights_behind_output() const { return true; }
  [[nodiscard]] virtual LayerBytes bytes(std::size_t rows) const = 0;
  /// Floating point operations of forward for so many rows: matrix products and convolutions. Both gradients together
  /// are twice that.
  [[nodiscard]] virtual double flops(std::size_t rows) const = 0;
  /// Of forward and of both gradients: the most.
  [[nodiscard]] virtual std::size_t workspace_bytes(std::size_t rows, gpu::Device device) const = 0;

  /// Makes what it keeps for `slots` micro-batches of at most `rows` rows. Errors: NoSpace, Device.
  [[nodiscard]] virtual Status reserve(unsigned slots, std::size_t rows, gpu::Stream& stream) = 0;
  virtual void bind(LayerParameters<T> parameters) { parameters_ = std::move(parameters); }

  virtual void forward(const LayerValues<T>& values, const LayerRun<T>& run) = 0;
  /// Behind forward() of the slot. Without dx (first layer) it is called as well, just before weight_gradient().
  virtual void output_gradient(const LayerValues<T>& values, const LayerRun<T>& run) = 0;
  /// Behind output_gradient() of the slot, if weights_behind_output(); else behind the layer above's.
  virtual void weight_gradient(const LayerValues<T>& values, const LayerRun<T>& run) = 0;
  /// Of the last layer, after forward() in evaluation: (rows, classes), or (rows, context, vocabulary).
  [[nodiscard]] virtual gpu::DeviceSpan<const T> logits(unsigned slot) const;

 protected:
  [[nodiscard]] gpu::DeviceSpan<const T> weight(std::size_t i) const { return parameters_.weights[i]; }
  [[nodiscard]] gpu::DeviceSpan<float> gradient(std::size_t i) const { return parameters_.gradients[i]; }
  [[nodiscard]] gpu::DeviceSpan<float> state(std::size_t i) const { return parameters_.states[i]; }

 private:
  LayerParameters<T> parameters_;
};

template <class T>
gpu::DeviceSpan<const T> NetworkLayer<T>::logits(unsigned /*slot*/) const {
  return {};
}

}  // namespace dunnock::training
