// Parameters: the weights of a network, their gradients and what the optimizer keeps, each in one piece of memory.
//
//   layer           0                1                2
//                   | table    |     | w | b | w | b | ...
//   masters  f32    [..............................................]   what is trained, and saved
//   weights  T      [..............................................]   what kernels read: the masters, where T is float
//   gradients f32   [..............................................]   of one step: micro-batches and ranks add them up
//   moments  f32    [..............................................]   two
//
// The tensors of a layer are neighbours, and so are layers: a run of layers is one span. Each tensor begins at a
// multiple of 64 values; what lies between is zero, and stays so.
//
// Gradients are sums, of micro-batches, of ranks, of both ends of a tie: in bf16, of 8 bits, what is added to a sum of
// 256 times its size changes nothing, and hundreds of micro-batches lose some percent of the norm.
//
// A tied tensor (the head's table, which is the embedding's) has a gradient of its own and the weights of its owner,
// where the owner's layer is held here: so neither gradient waits for the other, and what an update does is one sum in
// one order, on one device or on two. Where the owner is not held, the tensor has weights of its own, and those who
// hold either update both alike.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dunnock/base/result.hpp"
#include "dunnock/gpu/bf16.hpp"
#include "dunnock/gpu/memory.hpp"

namespace dunnock::training {

enum class Initial : std::uint8_t { kZeros, kOnes, kNormal, kUniform };

struct ParameterSpec {
  std::string name;
  std::vector<std::size_t> shape{};  ///< As PyTorch's users see it.
  Initial initial = Initial::kZeros;
  float scale = 0;      ///< Of a normal distribution the deviation; a uniform one reaches from -scale to scale.
  bool decays = false;  ///< Weight decay applies.
  /// Seen as (out, channels, positions), it lies here as (out, positions, channels): convolutions, and matrices that
  /// read what convolutions have left. 1: as it is seen.
  std::size_t positions = 1;
  bool tied = false;  ///< To the tensor of the same name of an earlier layer.

  [[nodiscard]] std::size_t size() const noexcept;
};

/// Values that a tensor takes with what aligns the next one: a line or more, of any type.
[[nodiscard]] constexpr std::size_t aligned_values(std::size_t values) noexcept { return (values + 63) / 64 * 64; }

/// Values that forward passes change and gradients do not: running statistics.
struct StateSpec {
  std::string name;
  std::size_t size = 0;
  float initial = 0;
};

/// Those of one layer, in the order of its specs.
template <class T>
struct LayerParameters {
  std::vector<gpu::DeviceSpan<const T>> weights;
  std::vector<gpu::DeviceSpan<float>> gradients;
  std::vector<gpu::DeviceSpan<float>> states;
};

/// What a layer has.
struct LayerSpecs {
  std::vector<ParameterSpec> parameters{};
  std::vector<StateSpec> states{};
  bool held = true;  ///< False: another rank's. It takes no memory here, but its share of the random numbers.
};

/// Move-only. Threads: any number read it; kernels on streams change what it points to. T: float or Bf16.
template <class T>
class Parameters {
 public:
  struct Tensor {
    ParameterSpec spec;
    unsigned layer = 0;
    std::size_t begin = 0;  ///< In masters, weights and moments.
    std::size_t gradient_begin = 0;
    std::size_t size = 0;
    std::optional<std::size_t> owner{};  ///< Of a tied tensor, where it is held here.
    std::optional<std::size_t> tied{};   ///< Of an owner: the tensor that is tied to it, where it is held here.
    /// The other end of the tie is another rank's: gradients are exchanged.
    bool far_tie = false;
  };
  struct State {
    StateSpec spec;
    unsigned layer = 0;
    std::size_t begin = 0;
  };

  /// Weights are drawn by `seed`, each tensor from its own part of the random numbers: the same on every device, and
  /// whatever is held elsewhere. Errors: InvalidArgument (names that come twice, empty tensors, a tie without owner),
  /// NoSpace, Device.
  [[nodiscard]] static Result<Parameters> create(const std::vector<LayerSpecs>& layers, std::uint64_t seed,
                                                 gpu::Stream& stream);

  /// Of the layers that are held, in their order.
  [[nodiscard]] const std::vector<Tensor>& tensors() const noexcept { return tensors_; }
  [[nodiscard]] const std::vector<State>& states() const noexcept { return states_; }
  [[nodiscard]] std::optional<std::size_t> find(std::string_view name) const;  ///< Not tied ones that have an owner.
  /// Tensors of a layer: first, and behind the last.
  [[nodiscard]] std::array<std::size_t, 2> of_layer(unsigned layer) const;
  [[nodiscard]] LayerParameters<T> layer(unsigned layer) const;

  [[nodiscard]] gpu::DeviceSpan<float> masters() const noexcept { return masters_; }
  [[nodiscard]] gpu::DeviceSpan<T> weights() const noexcept;
  [[nodiscard]] gpu::DeviceSpan<float> gradients() const noexcept { return gradients_; }
  [[nodiscard]] gpu::DeviceSpan<float> first_moments() const noexcept { return first_moments_; }
  [[nodiscard]] gpu::DeviceSpan<float> second_moments() const noexcept { return second_moments_; }
  [[nodiscard]] gpu::DeviceSpan<float> state_values() const noexcept { return state_values_; }

  [[nodiscard]] gpu::DeviceSpan<float> master(std::size_t tensor) const;
  [[nodiscard]] gpu::DeviceSpan<T> weight(std::size_t tensor) const;
  [[nodiscard]] gpu::DeviceSpan<float> gradient(std::size_t tensor) const;
  [[nodiscard]] gpu::DeviceSpan<float> first_moment(std::size_t tensor) const;
  [[nodiscard]] gpu::DeviceSpan<float> second_moment(std::size_t tensor) const;
  [[nodiscard]] gpu::DeviceSpan<float> state(std::size_t state) const;
  /// All gradients of the layers first .. last, which are held, as one span.
  [[nodiscard]] gpu::DeviceSpan<float> layer_gradients(unsigned first, unsigned last) const;

  /// After the masters were changed: the weights are theirs again.
  void refresh_weights(gpu::Stream& stream);

 private:
  std::vector<Tensor> tensors_;
  std::vector<State> states_;
  std::vector<std::size_t> first_tensor_;    // [layer], and one more
  std::vector<std::size_t> gradient_begin_;  // [layer], and one more
  std::vector<std::size_t> first_state_;
  gpu::Buffer<float> masters_;
  gpu::Buffer<T> copies_;  // None where T is float.
  gpu::Buffer<float> gradients_;
  gpu::Buffer<float> first_moments_;
  gpu::Buffer<float> second_moments_;
  gpu::Buffer<float> state_values_;
};

/// The tensor in the order in which it is seen, from that in which it lies, and back. `positions`: ParameterSpec's.
void to_seen_order(const ParameterSpec& spec, std::span<const float> lying, std::span<float> seen);
void to_lying_order(const ParameterSpec& spec, std::span<const float> seen, std::span<float> lying);

}  // namespace dunnock::training
