// Parameters: the weights of a network, their gradients and the optimizer's state, each in one piece of memory.
//
//   layer           0                1                2
//                   | table    |     | w | b | w | b | ...
//   masters  f32    [..............................................]   what is trained, and saved
//   weights  T      [..............................................]   what kernels read: the masters, where T is float
//   gradients f32   [..............................................]   of one step: micro-batches and ranks add them up
//   moments  f32    [..............................................]   two
//
// The tensors of a layer are contiguous, and so are layers: a run of layers is one span. Each tensor begins at a
// multiple of 64 values; the gaps are zero, and stay so.
//
// Gradients are sums over micro-batches, ranks and both ends of a tie: in bf16, with 8 bits of precision, adding to a
// sum 256 times as large changes nothing, and hundreds of micro-batches lose several percent of the norm.
//
// A tied tensor (the head's table, which is the embedding's) has its own gradient and, if the owner's layer is held
// here, the weights of its owner: so neither gradient waits for the other, and an update is one sum in one order, on
// one device or on two. If the owner is not held here, the tensor has its own weights, and the ranks that hold either
// one apply the same updates to both.
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
#include "dunnock/device/bf16.hpp"
#include "dunnock/device/memory.hpp"

namespace dunnock::model {

enum class Initial : std::uint8_t { kZeros, kOnes, kNormal, kUniform };

struct ParameterSpec {
  std::string name;
  std::vector<std::size_t> shape{};  ///< The shape that PyTorch's users see.
  Initial initial = Initial::kZeros;
  float scale = 0;      ///< The deviation of a normal distribution; a uniform one reaches from -scale to scale.
  bool decays = false;  ///< Weight decay applies.
  /// A tensor that users see as (out, channels, positions) is stored here as (out, positions, channels): convolutions,
  /// and matrices that read the output of convolutions. 1: stored as seen.
  std::size_t positions = 1;
  bool tied = false;  ///< Tied to the tensor of the same name in an earlier layer.

  [[nodiscard]] std::size_t size() const noexcept;
};

/// Number of values that a tensor takes, including the padding that aligns the next one to a line or more, for any
/// type.
[[nodiscard]] constexpr std::size_t aligned_values(std::size_t values) noexcept { return (values + 63) / 64 * 64; }

/// Values that forward passes change and gradients do not: running statistics.
struct StateSpec {
  std::string name;
  std::size_t size = 0;
  float initial = 0;
};

/// The parameters of one layer, in the order of its specs.
template <class T>
struct LayerParameters {
  std::vector<device::Span<const T>> weights;
  std::vector<device::Span<float>> gradients;
  std::vector<device::Span<float>> states;
};

/// The parameters that a layer declares.
struct LayerSpecs {
  std::vector<ParameterSpec> parameters{};
  std::vector<StateSpec> states{};
  bool held = true;  ///< False: another rank holds it. It takes no memory here, but its share of the random numbers.
};

/// Move-only. Threads: any number may read it; kernels on streams change what it points to. T: float or Bf16.
template <class T>
class Parameters {
 public:
  struct Tensor {
    ParameterSpec spec;
    unsigned layer = 0;
    std::size_t begin = 0;  ///< Offset in masters, weights and moments.
    std::size_t gradient_begin = 0;
    std::size_t size = 0;
    std::optional<std::size_t> owner{};  ///< For a tied tensor: its owner, if that is held here.
    std::optional<std::size_t> tied{};   ///< For an owner: the tensor tied to it, if that is held here.
    /// Another rank holds the other end of the tie: gradients are exchanged.
    bool far_tie = false;
  };
  struct State {
    StateSpec spec;
    unsigned layer = 0;
    std::size_t begin = 0;
  };

  /// Draws weights by `seed`, each tensor from its own part of the random numbers: the same on every device, whatever
  /// other ranks hold. Errors: InvalidArgument (duplicate names, empty tensors, a tie without owner), NoSpace, Device.
  [[nodiscard]] static Result<Parameters> create(const std::vector<LayerSpecs>& layers, std::uint64_t seed,
                                                 device::Stream& stream);

  /// The tensors of the held layers, in order.
  [[nodiscard]] const std::vector<Tensor>& tensors() const noexcept { return tensors_; }
  [[nodiscard]] const std::vector<State>& states() const noexcept { return states_; }
  [[nodiscard]] std::optional<std::size_t> find(std::string_view name) const;  ///< Skips tied ones that have an owner.
  /// The tensors of a layer: the first, and one past the last.
  [[nodiscard]] std::array<std::size_t, 2> of_layer(unsigned layer) const;
  [[nodiscard]] LayerParameters<T> layer(unsigned layer) const;

  [[nodiscard]] device::Span<float> masters() const noexcept { return masters_; }
  [[nodiscard]] device::Span<T> weights() const noexcept;
  [[nodiscard]] device::Span<float> gradients() const noexcept { return gradients_; }
  [[nodiscard]] device::Span<float> first_moments() const noexcept { return first_moments_; }
  [[nodiscard]] device::Span<float> second_moments() const noexcept { return second_moments_; }
  [[nodiscard]] device::Span<float> state_values() const noexcept { return state_values_; }

  [[nodiscard]] device::Span<float> master(std::size_t tensor) const;
  [[nodiscard]] device::Span<T> weight(std::size_t tensor) const;
  [[nodiscard]] device::Span<float> gradient(std::size_t tensor) const;
  [[nodiscard]] device::Span<float> first_moment(std::size_t tensor) const;
  [[nodiscard]] device::Span<float> second_moment(std::size_t tensor) const;
  [[nodiscard]] device::Span<float> state(std::size_t state) const;
  /// All gradients of the layers first .. last, which must be held, as one span.
  [[nodiscard]] device::Span<float> layer_gradients(unsigned first, unsigned last) const;

  /// Copies the masters to the weights; call it after the masters were changed.
  void refresh_weights(device::Stream& stream);

 private:
  std::vector<Tensor> tensors_;
  std::vector<State> states_;
  std::vector<std::size_t> first_tensor_;    // [layer], and one more
  std::vector<std::size_t> gradient_begin_;  // [layer], and one more
  std::vector<std::size_t> first_state_;
  device::Buffer<float> masters_;
  device::Buffer<T> copies_;  // Empty if T is float.
  device::Buffer<float> gradients_;
  device::Buffer<float> first_moments_;
  device::Buffer<float> second_moments_;
  device::Buffer<float> state_values_;
};

/// Converts a tensor from the order in which it is stored to the order in which users see it, and back.
/// See ParameterSpec::positions.
void to_seen_order(const ParameterSpec& spec, std::span<const float> lying, std::span<float> seen);
void to_lying_order(const ParameterSpec& spec, std::span<const float> seen, std::span<float> lying);

}  // namespace dunnock::model
