#include "dunnock/training/profiles.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <utility>

namespace dunnock::training {
namespace {

constexpr double kBytes = 2;  // Of an activation, a weight, a gradient.
constexpr double kKernelUs = 2;
constexpr double kStateBytes = 2 + 12;  // A weight, its master copy and two moments.

double ceil_div(double a, double b) { return std::ceil(a / b); }

/// A matrix product by its rows, columns and depth, and what is read and written besides.
struct Product {
  double rows = 0;
  double columns = 0;
  double depth = 0;
  double more_bytes = 0;
  double count = 1;  // As many at once.
};

class Coster {
 public:
  explicit Coster(const DeviceModel& device) : device_(device) {}

  [[nodiscard]] Cost product(const Product& p) const {
    const double splits = std::clamp(std::floor(p.depth / 2048), 1.0, 16.0);
    const double tiles = p.count * ceil_div(p.rows, 128) * ceil_div(p.columns, 128) * splits;
    const double bytes =
        p.count * kBytes * (p.rows * p.depth + p.depth * p.columns + p.rows * p.columns) + p.more_bytes;
    return kernel(2 * p.count * p.rows * p.columns * p.depth, bytes, tiles);
  }
  /// Something that only moves bytes; a block for each 16 KiB.
  [[nodiscard]] Cost moves(double bytes) const { return kernel(0, bytes, std::max(1.0, bytes / 16384)); }

  /// One after the other: the time is the sum, the demand the mean.
  [[nodiscard]] static Cost in_turn(std::initializer_list<Cost> costs) {
    Cost all{0, 0};
    for (const Cost& cost : costs) {
      all.us += cost.us;
      all.demand += cost.us * cost.demand;
    }
    all.demand = all.us > 0 ? std::min(1.0, all.demand / all.us) : 1;
    return all;
  }

 private:
  [[nodiscard]] Cost kernel(double flops, double bytes, double tiles) const {
    const double demand = std::min(1.0, tiles / device_.multiprocessors);
    const double compute_us = flops / (device_.matrix_tflops * 1e6 * device_.efficiency * demand);
    const double memory_us = bytes / (device_.memory_gb_per_s * 1e3 * 0.8 * std::min(1.0, 2 * demand));
    return {std::max(compute_us, memory_us) + kKernelUs, demand};
  }

  DeviceModel device_;
};

std::uint64_t bytes_of(double bytes) { return static_cast<std::uint64_t>(bytes); }

void set_weights(Layer& layer, double weights, const Coster& coster) {
  layer.weight_bytes = bytes_of(weights * kStateBytes);
  layer.gradient_bytes = bytes_of(weights * kBytes);
  layer.update = coster.moves(weights * (2 * kStateBytes + kBytes));
}

// ----- transformers -------------------------------------------------------------------------------------------------

struct Transformer {
  unsigned blocks;
  double width;
  double sequence;
  double vocabulary;
};

Step transformer(const Transformer& t, const Coster& coster, double batch) {
  const double tokens = batch * t.sequence;
  const double h = t.width;
  const double activation = kBytes * tokens * h;
  Step step;
  Layer embedding{.name = "e"};
  embedding.forward = coster.moves(2 * activation);
  embedding.output_gradient = {0, 1};
  embedding.weight_gradient = coster.moves(2 * activation + kBytes * t.vocabulary * h);
  embedding.output_bytes = bytes_of(activation);
  embedding.kept_bytes = embedding.kept_for_weights_bytes = bytes_of(4 * tokens);
  set_weights(embedding, (t.vocabulary + t.sequence) * h, coster);
  step.layers.push_back(embedding);

  // Query, key and value; projection; up; down.
  const auto linear = [&](double in, double out, double passes) {
    return coster.product({tokens, out, in, passes * kBytes * tokens * out});
  };
  const auto weights = [&](double in, double out) { return coster.product({in, out, tokens}); };
  const double heads = h / 64;
  const Product scores{t.sequence, t.sequence, 64, 0, batch * heads};
  Layer block;
  block.forward = Coster::in_turn({linear(h, 3 * h, 2), coster.product(scores), coster.product(scores), linear(h, h, 4),
                                   linear(h, 4 * h, 2), linear(4 * h, h, 4)});
  block.output_gradient =
      Coster::in_turn({linear(h, 4 * h, 2), linear(4 * h, h, 4), linear(h, h, 2), coster.product(scores),
                       coster.product(scores), coster.product(scores), coster.product(scores), linear(3 * h, h, 4)});
  block.weight_gradient = Coster::in_turn({weights(h, 3 * h), weights(h, h), weights(h, 4 * h), weights(4 * h, h)});
  block.output_bytes = bytes_of(activation);
  block.kept_bytes = bytes_of(34 * tokens * h);
  block.kept_for_weights_bytes = bytes_of(32 * tokens * h);
  set_weights(block, 12 * h * h, coster);
  for (unsigned i = 0; i < t.blocks; ++i) {
    block.name = std::to_string(i + 1);
    block.block = 1 + i / std::max(1U, t.blocks / 4);
    step.layers.push_back(block);
  }

  // The head's weights are the embedding's; their gradient and update are counted there.
  Layer head{.name = "h", .block = step.layers.back().block + 1};
  head.forward = coster.product({tokens, t.vocabulary, h, 2 * kBytes * tokens * t.vocabulary});
  head.output_gradient = coster.product({tokens, h, t.vocabulary});
  head.weight_gradient = coster.product({h, t.vocabulary, tokens});
  head.update = {0, 1};
  head.output_bytes = 4;  // The loss.
  head.kept_bytes = head.kept_for_weights_bytes = bytes_of(kBytes * tokens * (h + t.vocabulary));
  step.layers.push_back(head);
  return step;
}

// ----- convolutions -------------------------------------------------------------------------------------------------

struct Convolution {
  unsigned block;
  double in_channels;
  double out_channels;
  double kernel;
  double in_side;
  double out_side;
  bool depth_wise = false;
};

class ConvolutionStack {
 public:
  ConvolutionStack(const Coster& coster, double batch) : coster_(coster), batch_(batch) {}

  void add(const Convolution& c) {
    const double in = batch_ * c.in_side * c.in_side;
    const double out = batch_ * c.out_side * c.out_side;
    const double in_bytes = kBytes * in * c.in_channels;
    const double out_bytes = kBytes * out * c.out_channels;
    const double inner = c.kernel * c.kernel;
    Layer layer{.name = std::to_string(step_.layers.size() + 1), .block = c.block};
    if (c.depth_wise) {
      layer.forward = coster_.moves(in_bytes + 3 * out_bytes);
      layer.output_gradient = coster_.moves(in_bytes + 3 * out_bytes);
      layer.weight_gradient = coster_.moves(in_bytes + out_bytes);
    } else {
      layer.forward = coster_.product(
          {out, c.out_channels, c.in_channels * inner, 2 * out_bytes - saved(c.in_channels, inner * out, in)});
      layer.output_gradient = coster_.product(
          {in, c.in_channels, c.out_channels * inner, 2 * in_bytes - saved(c.out_channels, inner * in, out)});
      layer.weight_gradient =
          coster_.product({c.in_channels * inner, c.out_channels, out, -saved(c.in_channels, inner * out, in)});
    }
    if (step_.layers.empty()) layer.output_gradient = {0, 1};
    layer.output_bytes = bytes_of(out_bytes);
    layer.kept_bytes = bytes_of(in_bytes + out_bytes);
    layer.kept_for_weights_bytes = bytes_of(in_bytes);
    set_weights(layer, c.out_channels * inner * (c.depth_wise ? 1 : c.in_channels), coster_);
    step_.layers.push_back(layer);
  }
  void add_classifier(unsigned block, double in, double out) {
    Layer layer{.name = std::to_string(step_.layers.size() + 1), .block = block};
    layer.forward = coster_.product({batch_, out, in});
    layer.output_gradient = coster_.product({batch_, in, out});
    layer.weight_gradient = coster_.product({in, out, batch_});
    layer.output_bytes = bytes_of(kBytes * batch_ * out);
    layer.kept_bytes = layer.kept_for_weights_bytes = bytes_of(kBytes * batch_ * in);
    set_weights(layer, in * out, coster_);
    step_.layers.push_back(layer);
  }
  Step take() { return std::move(step_); }

 private:
  /// Bytes: a convolution reads each position once, not k^2 times as its product would.
  static double saved(double channels, double of_product, double positions) {
    return kBytes * channels * std::max(0.0, of_product - positions);
  }

  const Coster& coster_;
  double batch_;
  Step step_;
};

Step resnet_50(const Coster& coster, double batch) {
  ConvolutionStack stack(coster, batch);
  stack.add({0, 3, 64, 7, 224, 112});
  double channels = 64;
  double side = 56;
  constexpr std::array<unsigned, 4> kUnits = {3, 4, 6, 3};
  for (unsigned stage = 0; stage < kUnits.size(); ++stage) {
    const double width = 64.0 * (1U << stage);
    for (unsigned unit = 0; unit < kUnits[stage]; ++unit) {
      const double out_side = stage > 0 && unit == 0 ? side / 2 : side;
      stack.add({stage + 1, channels, width, 1, side, side});
      stack.add({stage + 1, width, width, 3, side, out_side});
      stack.add({stage + 1, width, 4 * width, 1, out_side, out_side});
      if (unit == 0) stack.add({stage + 1, channels, 4 * width, 1, side, out_side});
      channels = 4 * width;
      side = out_side;
    }
  }
  stack.add_classifier(5, 2048, 1000);
  return stack.take();
}

Step densenet_121(const Coster& coster, double batch) {
  ConvolutionStack stack(coster, batch);
  stack.add({0, 3, 64, 7, 224, 112});
  double channels = 64;
  double side = 56;
  constexpr std::array<unsigned, 4> kUnits = {6, 12, 24, 16};
  for (unsigned dense = 0; dense < kUnits.size(); ++dense) {
    for (unsigned unit = 0; unit < kUnits[dense]; ++unit) {
      stack.add({dense + 1, channels, 128, 1, side, side});
      stack.add({dense + 1, 128, 32, 3, side, side});
      channels += 32;
    }
    if (dense + 1 == kUnits.size()) break;
    stack.add({dense + 1, channels, channels / 2, 1, side, side});
    channels /= 2;
    side /= 2;
  }
  stack.add_classifier(5, channels, 1000);
  return stack.take();
}

Step mobilenet_v1(const Coster& coster, double batch) {
  ConvolutionStack stack(coster, batch);
  stack.add({0, 3, 32, 3, 224, 112});
  struct Unit {
    double out_channels;
    double stride;
  };
  constexpr std::array<Unit, 13> kUnits = {{{64, 1},
                                            {128, 2},
                                            {128, 1},
                                            {256, 2},
                                            {256, 1},
                                            {512, 2},
                                            {512, 1},
                                            {512, 1},
                                            {512, 1},
                                            {512, 1},
                                            {512, 1},
                                            {1024, 2},
                                            {1024, 1}}};
  double channels = 32;
  double side = 112;
  unsigned block = 0;
  for (const Unit& unit : kUnits) {
    if (unit.stride > 1) ++block;
    stack.add({block, channels, channels, 3, side, side / unit.stride, true});
    side /= unit.stride;
    stack.add({block, channels, unit.out_channels, 1, side, side});
    channels = unit.out_channels;
  }
  stack.add_classifier(block + 1, 1024, 1000);
  return stack.take();
}

constexpr std::array<std::string_view, 8> kNames = {"gpt2-small", "gpt2-xl",   "gpt3-like",    "bert-base",
                                                    "bert-large", "resnet-50", "densenet-121", "mobilenet-v1"};

}  // namespace

DeviceModel v100_like() noexcept {
  return {.name = "v100-like",
          .matrix_tflops = 125,
          .memory_gb_per_s = 900,
          .multiprocessors = 80,
          .memory_bytes = std::uint64_t{32} << 30};
}

DeviceModel h200_like() noexcept {
  return {.name = "h200-like",
          .matrix_tflops = 989,
          .memory_gb_per_s = 4800,
          .multiprocessors = 132,
          .memory_bytes = 141'000'000'000};
}

std::span<const std::string_view> profile_names() noexcept { return kNames; }

Result<Step> profile(std::string_view name, const DeviceModel& device, unsigned batch) {
  if (batch == 0) return make_error(ErrorCode::kInvalidArgument, "a profile needs a batch of at least 1 row");
  const Coster coster(device);
  Step step;
  if (name == "gpt2-small") {
    step = transformer({12, 768, 1024, 50257}, coster, batch);
  } else if (name == "gpt2-xl") {
    step = transformer({48, 1600, 1024, 50257}, coster, batch);
  } else if (name == "gpt3-like") {
    step = transformer({96, 2048, 1024, 50257}, coster, batch);
  } else if (name == "bert-base") {
    step = transformer({12, 768, 512, 30522}, coster, batch);
  } else if (name == "bert-large") {
    step = transformer({24, 1024, 512, 30522}, coster, batch);
  } else if (name == "resnet-50") {
    step = resnet_50(coster, batch);
  } else if (name == "densenet-121") {
    step = densenet_121(coster, batch);
  } else if (name == "mobilenet-v1") {
    step = mobilenet_v1(coster, batch);
  } else {
    std::string message = "unknown profile '" + std::string(name) + "': expected one of";
    for (const std::string_view other : kNames) message += (other == kNames[0] ? " " : ", ") + std::string(other);
    return make_error(ErrorCode::kNotFound, message);
  }
  step.name = std::string(name) + ", batch " + std::to_string(batch) + ", " + std::string(device.name);
  return step;
}

}  // namespace dunnock::training
