// What the tests of networks and trainers share: values of the double models (double_models.hpp) brought to them and
// back, small random models, and ranks that are threads.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#include "dunnock/training/trainer.hpp"
#include "model/double_models.hpp"
#include "model/golden_cases.hpp"

namespace dunnock::test {

// ----- random models ------------------------------------------------------------------------------------------------

/// "mlp", "cnn", "cnn of batch norms", "resnet", "resnet of bottlenecks", "densenet", "gpt", "rotary gpt"
inline const std::vector<std::string>& random_kinds() {
  static const std::vector<std::string> kinds = {
      "mlp", "cnn", "cnn of batch norms", "resnet", "resnet of bottlenecks", "densenet", "gpt", "rotary gpt"};
  return kinds;
}

/// Small, of awkward sizes. Batch norms have some 20 values and more to work on, so that variances are no accidents.
inline model::ModelOptions random_model(const std::string& kind, std::mt19937_64& random) {
  const auto some = [&random](std::size_t least, std::size_t most) { return least + random() % (most - least + 1); };
  const auto listed = [&](std::size_t count, std::size_t least, std::size_t most) {
    std::vector<std::size_t> sizes(count);
    for (std::size_t& size : sizes) size = some(least, most);
    return sizes;
  };
  const auto image = [&](std::size_t least, std::size_t most) {
    return model::ImageShape{.height = some(least, most), .width = some(least, most), .channels = some(1, 3)};
  };
  if (kind == "mlp")
    return model::MlpOptions{.inputs = some(1, 33), .hidden = listed(some(0, 3), 1, 20), .classes = some(2, 7)};
  if (kind.starts_with("cnn")) {
    std::vector<std::vector<std::size_t>> stages(some(1, 2));
    for (auto& stage : stages) stage = listed(some(1, 2), 1, 9);
    return model::CnnOptions{.image = image(5, 11),
                             .stages = stages,
                             .batch_norm = kind == "cnn of batch norms",
                             .hidden = listed(some(0, 1), 1, 9),
                             .classes = some(2, 6)};
  }
  if (kind.starts_with("resnet")) {
    const bool large = random() % 2 == 0;
    return model::ResNetOptions{.image = large ? image(15, 21) : image(5, 9),
                                .blocks = listed(some(1, 2), 1, 2),
                                .width = some(2, 6),
                                .bottleneck = kind == "resnet of bottlenecks",
                                .large_stem = large,
                                .classes = some(2, 6)};
  }
  if (kind == "densenet") {
    const bool large = random() % 2 == 0;
    return model::DenseNetOptions{.image = large ? image(17, 23) : image(6, 9),
                                  .blocks = listed(some(1, 2), 1, 3),
                                  .growth = some(1, 5),
                                  .stem_width = some(2, 7),
                                  .bottleneck = some(1, 3),
                                  .large_stem = large,
                                  .classes = some(2, 6)};
  }
  const std::size_t heads = some(1, 3);
  return model::GptOptions{.vocabulary = some(2, 40),
                           .context = some(1, 13),
                           .layers = some(1, 3),
                           .heads = heads,
                           .width = heads * 2 * some(2, 5),
                           .mlp_ratio = some(1, 4),
                           .positions = kind == "gpt" ? model::Positions::kLearned : model::Positions::kRotary};
}

/// Of the size that formula_weights() has, and exact in f32.
inline DoubleWeights random_weights(const model::ModelOptions& model, std::mt19937_64& random) {
  DoubleWeights weights = formula_weights(model);
  const std::string salt = std::to_string(random());
  for (auto& [name, values] : weights) {
    // The ending says what a tensor is for; what is before it says which numbers it gets.
    const std::vector<double> drawn = formula_weights(salt + name, parameter_shapes(model).at(name));
    values = drawn;
  }
  return weights;
}

/// Exact in f32.
inline DoubleBatch random_batch(const model::ModelOptions& model, std::size_t rows, std::mt19937_64& random) {
  DoubleBatch batch = formula_batch(model, rows, 0);
  std::normal_distribution<float> normal;
  for (double& value : batch.images) value = static_cast<double>(normal(random));
  const auto redraw = [&random](std::vector<std::int32_t>& numbers, std::size_t below) {
    for (std::int32_t& number : numbers) number = static_cast<std::int32_t>(random() % below);
  };
  if (const auto* gpt = std::get_if<model::GptOptions>(&model)) {
    redraw(batch.tokens, gpt->vocabulary);
    redraw(batch.targets, gpt->vocabulary);
    return batch;
  }
  std::visit(
      [&](const auto& sizes) {
        if constexpr (requires { sizes.classes; }) redraw(batch.labels, sizes.classes);
      },
      model);
  return batch;
}

inline bool has_batch_norm(const model::ModelOptions& model) {
  const auto shapes = parameter_shapes(model);
  if (std::holds_alternative<model::GptOptions>(model)) return false;
  return std::ranges::any_of(shapes,
                             [](const auto& at) { return at.first.ends_with(".weight") && at.second.size() == 1; });
}

// ----- values -------------------------------------------------------------------------------------------------------

inline std::vector<float> floats(std::span<const double> values) {
  std::vector<float> narrow(values.size());
  std::ranges::transform(values, narrow.begin(), [](double value) { return static_cast<float>(value); });
  return narrow;
}

inline std::vector<float> to_lying(const model::ParameterSpec& spec, std::span<const double> seen) {
  const std::vector<float> narrow = floats(seen);
  if (spec.positions == 1) return narrow;
  std::vector<float> lying(narrow.size());
  model::to_lying_order(spec, narrow, lying);
  return lying;
}

inline std::vector<float> to_seen(const model::ParameterSpec& spec, std::span<const float> lying) {
  std::vector<float> seen(lying.begin(), lying.end());
  if (spec.positions > 1) model::to_seen_order(spec, lying, seen);
  return seen;
}

inline model::ParameterSpec order_of(const model::StateTensor& tensor) {
  return {.name = tensor.name, .shape = tensor.shape, .positions = tensor.positions};
}

inline double root_of_squares(std::span<const double> values) {
  double sum = 0;
  for (const double value : values) sum += value * value;
  return std::sqrt(sum);
}

/// What a step is given, and what holds it.
struct Inputs {
  std::vector<float> images{};
  std::vector<std::int32_t> tokens{};
  std::vector<std::int32_t> targets{};

  explicit Inputs(const DoubleBatch& batch)
      : images(floats(batch.images)),
        tokens(batch.tokens),
        targets(batch.tokens.empty() ? batch.labels : batch.targets) {}
  /// Rows part * n / parts to (part + 1) * n / parts.
  [[nodiscard]] training::StepInput part(unsigned part, unsigned parts, float learning_rate) const {
    const auto some = [&](const auto& values) {
      return std::span(values).subspan(values.size() / parts * part, values.size() / parts);
    };
    return {.images = some(images), .tokens = some(tokens), .targets = some(targets), .learning_rate = learning_rate};
  }
};

/// Weights into a trainer, as checkpoints do it; moments and running statistics stay as they are.
inline Status load_weights_of(training::Trainer& trainer, const DoubleWeights& weights) {
  std::vector<std::vector<float>> whole;
  for (const model::StateTensor& tensor : trainer.whole_state()) {
    whole.emplace_back();
    if (tensor.what == model::StateTensor::What::kWeight)
      whole.back() = to_lying(order_of(tensor), weights.at(tensor.name));
  }
  return trainer.load(whole);
}

/// Name of a state's tensor that differs from all others: weights and statistics by their own.
inline std::string key_of(const model::StateTensor& tensor) {
  switch (tensor.what) {
    case model::StateTensor::What::kFirstMoment: return "first moment of " + tensor.name;
    case model::StateTensor::What::kSecondMoment: return "second moment of " + tensor.name;
    case model::StateTensor::What::kWeight:
    case model::StateTensor::What::kStatistic: break;
  }
  return tensor.name;
}

using States = std::map<std::string, std::vector<float>>;

/// Of what a rank holds, as it is seen. CPU.
inline States state_of(const training::Trainer& trainer) {
  States state;
  for (const model::StateTensor& tensor : trainer.state())
    state[key_of(tensor)] = to_seen(order_of(tensor), {tensor.values.device_data(), tensor.values.size()});
  return state;
}

// ----- ranks --------------------------------------------------------------------------------------------------------

/// A grid of ranks that are threads.
struct Grid {
  unsigned stages = 1;
  unsigned data_ranks = 1;
  std::chrono::milliseconds timeout{60'000};
  [[nodiscard]] unsigned size() const { return stages * data_ranks; }
};

struct RankOfGrid {
  unsigned number = 0;
  unsigned stage = 0;
  unsigned data_rank = 0;
  training::Ranks ranks{};
  ranks::Communicator* world = nullptr;  ///< Null for one rank.
};

/// Runs `body` on all ranks, and returns when all are done.
inline void run_ranks(const Grid& grid, const std::function<void(const RankOfGrid&)>& body) {
  const ranks::CommunicatorOptions options{.timeout = grid.timeout};
  const auto group = [&options](unsigned ranks) { return std::move(*ranks::Communicator::threads(ranks, options)); };
  std::vector<std::vector<ranks::Communicator>> of_data;  // [stage][data rank]
  std::vector<std::vector<ranks::Communicator>> of_pipeline;
  std::vector<std::vector<ranks::Communicator>> of_sums;
  std::vector<ranks::Communicator> world = group(grid.size());
  for (unsigned s = 0; s < grid.stages; ++s) of_data.push_back(group(grid.data_ranks));
  for (unsigned d = 0; d < grid.data_ranks; ++d) {
    of_pipeline.push_back(group(grid.stages));
    of_sums.push_back(group(grid.stages));
  }
  std::vector<std::thread> threads;
  for (unsigned r = 0; r < grid.size(); ++r) {
    threads.emplace_back([&, r] {
      RankOfGrid rank{.number = r, .stage = r / grid.data_ranks, .data_rank = r % grid.data_ranks};
      if (grid.data_ranks > 1) rank.ranks.data = &of_data[rank.stage][rank.data_rank];
      if (grid.stages > 1) {
        rank.ranks.pipeline = &of_pipeline[rank.data_rank][rank.stage];
        rank.ranks.pipeline_sums = &of_sums[rank.data_rank][rank.stage];
      }
      if (grid.size() > 1) rank.world = &world[r];
      body(rank);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

inline std::vector<std::string> schedules_of(training::Family family) {
  std::vector<std::string> names;
  for (const training::ScheduleName& name : training::schedule_names()) {
    if (name.family == family) names.emplace_back(name.name);
  }
  return names;
}

}  // namespace dunnock::test
