#include "dunnock/training/step.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "dunnock/base/check.hpp"

namespace dunnock::training {

double Link::send_us(std::uint64_t bytes) const noexcept {
  return latency_us + (gb_per_s > 0 ? static_cast<double>(bytes) / (gb_per_s * 1e3) : 0);
}

double Link::all_reduce_us(std::uint64_t bytes, unsigned devices) const noexcept {
  if (devices < 2) return 0;
  const double part = static_cast<double>(bytes) / devices;
  return 2.0 * (devices - 1) * (latency_us + (gb_per_s > 0 ? part / (gb_per_s * 1e3) : 0));
}

Status check(const Step& step) {
  const auto invalid = [&step](const std::string& what) {
    return make_error(ErrorCode::kInvalidArgument, "step '" + step.name + "': " + what);
  };
  if (step.layers.empty()) return invalid("it has no layers");
  unsigned block = 0;
  for (const Layer& layer : step.layers) {
    for (const Cost& cost : {layer.forward, layer.output_gradient, layer.weight_gradient, layer.update}) {
      if (!std::isfinite(cost.us) || cost.us < 0)
        return invalid("layer '" + layer.name + "' has a cost that is negative or not finite");
      if (!(cost.demand > 0 && cost.demand <= 1))
        return invalid("layer '" + layer.name + "' needs a share of the device above 0 and at most 1");
    }
    if (layer.kept_for_weights_bytes > layer.kept_bytes)
      return invalid("layer '" + layer.name + "' keeps more bytes for its weights than in total");
    if (layer.block < block)
      return invalid("layer '" + layer.name + "' belongs to an earlier block than the layer before it");
    block = layer.block;
  }
  for (std::size_t i = 0; i < step.layers.size(); ++i) {
    if (step.layers[i].tied_to && *step.layers[i].tied_to >= i)
      return invalid("layer '" + step.layers[i].name + "' is tied to a layer that does not precede it");
  }
  return {};
}

std::vector<unsigned> balanced_parts(const Step& step, unsigned parts) {
  const auto layers = static_cast<unsigned>(step.layers.size());
  DUNNOCK_CHECK(parts > 0, "there is at least one part");
  DUNNOCK_CHECK(parts <= layers, "there are at most as many parts as layers");
  std::vector<double> before(layers + 1);  // Time of the layers before.
  for (unsigned i = 0; i < layers; ++i) {
    const Layer& layer = step.layers[i];
    before[i + 1] = before[i] + layer.forward.us + layer.output_gradient.us + layer.weight_gradient.us;
  }
  constexpr double kNever = std::numeric_limits<double>::infinity();
  // longest[n][i]: of the first i layers in n parts; from[n][i]: where the last of them begins.
  std::vector<std::vector<double>> longest(parts + 1, std::vector<double>(layers + 1, kNever));
  std::vector<std::vector<unsigned>> from(parts + 1, std::vector<unsigned>(layers + 1));
  longest[0][0] = 0;
  for (unsigned n = 1; n <= parts; ++n) {
    for (unsigned i = n; i <= layers; ++i) {
      for (unsigned begin = n - 1; begin < i; ++begin) {
        const double value = std::max(longest[n - 1][begin], before[i] - before[begin]);
        if (value < longest[n][i]) {
          longest[n][i] = value;
          from[n][i] = begin;
        }
      }
    }
  }
  std::vector<unsigned> begins(parts);
  unsigned end = layers;
  for (unsigned n = parts; n > 0; --n) end = begins[n - 1] = from[n][end];
  return begins;
}

Step uniform_step(unsigned layers, const Layer& layer) {
  Step step{"uniform", {}};
  for (unsigned i = 0; i < layers; ++i) {
    step.layers.push_back(layer);
    step.layers.back().name = std::to_string(i + 1);
  }
  return step;
}

}  // namespace dunnock::training
