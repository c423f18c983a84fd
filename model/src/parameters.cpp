#include "dunnock/model/parameters.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numbers>
#include <numeric>
#include <set>
#include <unordered_map>
#include <utility>

#include "dunnock/kernels/elementwise.hpp"
#include "dunnock/kernels/philox.hpp"

namespace dunnock::model {
namespace {

double uniform(std::uint32_t word) { return static_cast<double>(kernels::uniform_of(word)); }

/// On the host and in double, so that every device begins with the same bits.
void draw(const ParameterSpec& spec, std::uint64_t seed, std::uint64_t first_block, std::span<float> values) {
  switch (spec.initial) {
    case Initial::kZeros: std::ranges::fill(values, 0.0F); return;
    case Initial::kOnes: std::ranges::fill(values, 1.0F); return;
    case Initial::kNormal:
    case Initial::kUniform: break;
  }
  const kernels::RandomKey key{seed, first_block};
  for (std::size_t i = 0; i < values.size(); i += 4) {
    const kernels::PhiloxBlock block = kernels::philox_block(key, i / 4);
    double drawn[4] = {};
    for (unsigned pair = 0; pair < 4; pair += 2) {
      if (spec.initial == Initial::kUniform) {
        drawn[pair] = 2 * uniform(block.words[pair]) - 1;
        drawn[pair + 1] = 2 * uniform(block.words[pair + 1]) - 1;
      } else {
        const double radius = std::sqrt(-2 * std::log(uniform(block.words[pair]) + 0x1p-24));
        const double angle = 2 * std::numbers::pi * uniform(block.words[pair + 1]);
        drawn[pair] = radius * std::cos(angle);
        drawn[pair + 1] = radius * std::sin(angle);
      }
    }
    for (std::size_t j = i; j < std::min(i + 4, values.size()); ++j)
      values[j] = static_cast<float>(static_cast<double>(spec.scale) * drawn[j - i]);
  }
}

/// f(place as seen, place as lying) of each value.
template <class F>
void each_place(const ParameterSpec& spec, const F& f) {
  const std::size_t out = spec.shape.front();
  const std::size_t channels = spec.size() / out / spec.positions;
  for (std::size_t o = 0; o < out; ++o) {
    for (std::size_t p = 0; p < spec.positions; ++p) {
      for (std::size_t c = 0; c < channels; ++c)
        f((o * channels + c) * spec.positions + p, (o * spec.positions + p) * channels + c);
    }
  }
}

}  // namespace

std::size_t ParameterSpec::size() const noexcept {
  return std::accumulate(shape.begin(), shape.end(), std::size_t{1}, std::multiplies<>());
}

void to_seen_order(const ParameterSpec& spec, std::span<const float> lying, std::span<float> seen) {
  each_place(spec, [&](std::size_t to, std::size_t from) { seen[to] = lying[from]; });
}

void to_lying_order(const ParameterSpec& spec, std::span<const float> seen, std::span<float> lying) {
  each_place(spec, [&](std::size_t from, std::size_t to) { lying[to] = seen[from]; });
}

template <class T>
Result<Parameters<T>> Parameters<T>::create(const std::vector<LayerSpecs>& layers, std::uint64_t seed,
                                            device::Stream& stream) {
  const auto invalid = [](std::string what) { return make_error(ErrorCode::kInvalidArgument, std::move(what)); };
  Parameters made;
  std::unordered_map<std::string, std::pair<std::size_t, bool>> owners;  // Name: number, and held.
  std::vector<std::uint64_t> first_blocks;                               // Of each tensor that is held.
  std::unordered_map<std::string, std::uint64_t> blocks_of;              // Of each name, held or not.
  std::set<std::string> state_names;
  std::uint64_t block = 0;
  std::size_t values = 0;
  std::size_t gradient_values = 0;
  std::size_t state_values = 0;
  for (unsigned layer = 0; layer < layers.size(); ++layer) {
    made.first_tensor_.push_back(made.tensors_.size());
    made.gradient_begin_.push_back(gradient_values);
    made.first_state_.push_back(made.states_.size());
    for (const ParameterSpec& spec : layers[layer].parameters) {
      if (spec.size() == 0) return invalid("parameter '" + spec.name + "' is empty");
      Tensor tensor{.spec = spec, .layer = layer, .size = spec.size()};
      if (spec.tied) {
        const auto owner = owners.find(spec.name);
        if (owner == owners.end())
          return invalid("parameter '" + spec.name + "' is tied to a parameter that does not precede it");
        if (layers[layer].held) {
          if (owner->second.second) {
            tensor.owner = owner->second.first;
            made.tensors_[*tensor.owner].tied = made.tensors_.size();
          } else {
            tensor.far_tie = true;
          }
        } else if (owner->second.second) {
          made.tensors_[owner->second.first].far_tie = true;
        }
      } else {
        if (!owners.emplace(spec.name, std::pair(made.tensors_.size(), layers[layer].held)).second)
          return invalid("parameter '" + spec.name + "' occurs twice");
        blocks_of.emplace(spec.name, block);
        block += (spec.size() + 3) / 4;
      }
      if (!layers[layer].held) continue;
      tensor.begin = values;
      if (tensor.owner) {
        tensor.begin = made.tensors_[*tensor.owner].begin;
      } else {
        values += aligned_values(tensor.size);
      }
      tensor.gradient_begin = gradient_values;
      gradient_values += aligned_values(tensor.size);
      first_blocks.push_back(blocks_of.at(spec.name));
      made.tensors_.push_back(std::move(tensor));
    }
    for (const StateSpec& spec : layers[layer].states) {
      if (!state_names.insert(spec.name).second) return invalid("state '" + spec.name + "' occurs twice");
      if (!layers[layer].held) continue;
      made.states_.push_back({spec, layer, state_values});
      state_values += aligned_values(spec.size);
    }
  }
  made.first_tensor_.push_back(made.tensors_.size());
  made.gradient_begin_.push_back(gradient_values);
  made.first_state_.push_back(made.states_.size());

  const auto zeroed = [&stream](auto& buffer, std::size_t size) -> Status {
    using Buffer = std::remove_reference_t<decltype(buffer)>;
    DUNNOCK_TRY(auto created, Buffer::create(size, stream));
    buffer = std::move(created);
    if (size > 0) device::fill_bytes(buffer.span(), std::byte{0}, stream);
    return {};
  };
  DUNNOCK_TRY(zeroed(made.masters_, values));
  DUNNOCK_TRY(zeroed(made.copies_, std::is_same_v<T, float> ? 0 : values));
  DUNNOCK_TRY(zeroed(made.gradients_, gradient_values));
  DUNNOCK_TRY(zeroed(made.first_moments_, values));
  DUNNOCK_TRY(zeroed(made.second_moments_, values));
  DUNNOCK_TRY(zeroed(made.state_values_, state_values));

  std::vector<float> drawn;
  for (std::size_t i = 0; i < made.tensors_.size(); ++i) {
    const Tensor& tensor = made.tensors_[i];
    if (tensor.owner) continue;
    drawn.resize(tensor.size);
    draw(tensor.spec, seed, first_blocks[i], drawn);
    std::vector<float> lying = drawn;
    if (tensor.spec.positions > 1) to_lying_order(tensor.spec, drawn, lying);
    device::upload(made.master(i), lying, stream);
    DUNNOCK_TRY(stream.synchronize());
  }
  for (const State& state : made.states_)
    kernels::run(kernels::Fill<float>{.y = made.state_values_.span().subspan(state.begin, state.spec.size),
                                      .value = state.spec.initial},
                 stream);
  made.refresh_weights(stream);
  DUNNOCK_TRY(stream.synchronize());
  return made;
}

template <class T>
std::optional<std::size_t> Parameters<T>::find(std::string_view name) const {
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    if (tensors_[i].spec.name == name && !tensors_[i].owner) return i;
  }
  return std::nullopt;
}

template <class T>
std::array<std::size_t, 2> Parameters<T>::of_layer(unsigned layer) const {
  return {first_tensor_.at(layer), first_tensor_.at(layer + 1)};
}

template <class T>
LayerParameters<T> Parameters<T>::layer(unsigned layer) const {
  LayerParameters<T> parameters;
  for (std::size_t i = first_tensor_.at(layer); i < first_tensor_.at(layer + 1); ++i) {
    parameters.weights.push_back(weight(i));
    parameters.gradients.push_back(gradient(i));
  }
  for (std::size_t i = first_state_.at(layer); i < first_state_.at(layer + 1); ++i)
    parameters.states.push_back(state(i));
  return parameters;
}

template <class T>
device::Span<T> Parameters<T>::weights() const noexcept {
  if constexpr (std::is_same_v<T, float>) {
    return masters_.span();
  } else {
    return copies_.span();
  }
}

template <class T>
device::Span<float> Parameters<T>::master(std::size_t tensor) const {
  return masters_.span().subspan(tensors_.at(tensor).begin, tensors_[tensor].size);
}
template <class T>
device::Span<T> Parameters<T>::weight(std::size_t tensor) const {
  return weights().subspan(tensors_.at(tensor).begin, tensors_[tensor].size);
}
template <class T>
device::Span<float> Parameters<T>::gradient(std::size_t tensor) const {
  return gradients_.span().subspan(tensors_.at(tensor).gradient_begin, tensors_[tensor].size);
}
template <class T>
device::Span<float> Parameters<T>::first_moment(std::size_t tensor) const {
  return first_moments_.span().subspan(tensors_.at(tensor).begin, tensors_[tensor].size);
}
template <class T>
device::Span<float> Parameters<T>::second_moment(std::size_t tensor) const {
  return second_moments_.span().subspan(tensors_.at(tensor).begin, tensors_[tensor].size);
}
template <class T>
device::Span<float> Parameters<T>::state(std::size_t state) const {
  return state_values_.span().subspan(states_.at(state).begin, states_[state].spec.size);
}
template <class T>
device::Span<float> Parameters<T>::layer_gradients(unsigned first, unsigned last) const {
  const std::size_t begin = gradient_begin_.at(first);
  return gradients_.span().subspan(begin, gradient_begin_.at(last + 1) - begin);
}

template <class T>
void Parameters<T>::refresh_weights(device::Stream& stream) {
  if constexpr (!std::is_same_v<T, float>) {
    if (copies_.size() > 0) kernels::run(kernels::Cast<T, float>{.x = masters_, .y = copies_.span()}, stream);
  }
}

template class Parameters<float>;
template class Parameters<device::Bf16>;

}  // namespace dunnock::model
