// The models in double precision beside PyTorch's in float64, and beside closed forms.
#include "model/double_models.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <random>
#include <string>
#include <variant>
#include <vector>

#include "model/formula_values.hpp"
#include "model/golden_cases.hpp"
#include "support/seed.hpp"

namespace dunnock::test {
namespace {

double root_mean_square(const GoldenTensor& tensor) {
  std::size_t size = 1;
  for (const std::size_t side : tensor.shape) size *= side;
  return std::sqrt(tensor.squares / static_cast<double>(size));
}

TEST(FormulaValues, are_exact_in_f32_and_as_wide_as_they_say) {
  const auto weights = formula_weights("layers.0.weight", {17, 13});
  for (const double value : weights) EXPECT_EQ(static_cast<double>(static_cast<float>(value)), value);
  // 4^2 >= 13: from -1/2 to 1/2.
  EXPECT_GT(*std::ranges::max_element(weights), 0.45);
  EXPECT_LT(*std::ranges::max_element(weights), 0.5);
  EXPECT_LT(*std::ranges::min_element(weights), -0.45);
  EXPECT_GE(*std::ranges::min_element(weights), -0.5);
  for (const double value : formula_weights("ln_f.weight", {100})) EXPECT_LE(std::abs(value - 1), 0.25);
  for (const double value : formula_weights("ln_f.bias", {100})) EXPECT_LE(std::abs(value), 0.25);
  const auto labels = formula_integers("labels", 5, 0, 1000);
  for (std::int32_t label = 0; label < 5; ++label) EXPECT_NEAR(std::ranges::count(labels, label), 200, 60);
  const auto later = formula_integers("labels", 5, 7, 3);
  EXPECT_TRUE(std::equal(later.begin(), later.end(), labels.begin() + 7));
}

TEST(DoubleModels, have_the_parameters_that_pytorch_has) {
  for (const GoldenGradients& at : golden_gradients()) {
    std::map<std::string, std::vector<std::size_t>> shapes;
    for (const auto& [name, gradient] : at.gradients) shapes[name] = gradient.shape;
    EXPECT_EQ(parameter_shapes(at.model), shapes) << at.name;
  }
}

TEST(DoubleModels, have_the_losses_of_pytorch) {
  const auto cases = golden_gradients();
  EXPECT_EQ(cases.size(), 10U);
  for (const GoldenGradients& at : cases) {
    const double found = loss(at.model, formula_weights(at.model), formula_batch(at.model, at.rows, 0));
    EXPECT_NEAR(found, at.loss, 1e-12 * at.loss) << at.name;
  }
}

TEST(DoubleModels, have_the_gradients_of_pytorch) {
  constexpr double kStep = 1e-6;  // One of 1e-5 crosses a kink once; this one rounds to some 1e-10.
  for (const GoldenGradients& at : golden_gradients()) {
    DoubleIndices indices;
    for (const auto& [name, gradient] : at.gradients) indices[name] = gradient.indices;
    const auto found =
        central_differences(at.model, formula_weights(at.model), formula_batch(at.model, at.rows, 0), indices, kStep);
    for (const auto& [name, gradient] : at.gradients) {
      ASSERT_EQ(found.at(name).size(), gradient.values.size());
      for (std::size_t i = 0; i < gradient.values.size(); ++i) {
        EXPECT_NEAR(found.at(name)[i], gradient.values[i], 2e-9 + 1e-7 * root_mean_square(gradient))
            << at.name << ": " << name << " [" << gradient.indices[i] << "]";
      }
    }
  }
}

TEST(DoubleModels, of_one_linear_layer_have_the_gradients_of_their_closed_form) {
  auto random = generator(1);
  const auto draw = [&random] { return std::normal_distribution<double>()(random); };
  for (int round = 0; round < 20; ++round) {
    const model::MlpOptions model{.inputs = 1 + random() % 5, .hidden = {}, .classes = 2 + random() % 4};
    DoubleBatch batch{.rows = 1 + random() % 4};
    batch.images.resize(batch.rows * model.inputs);
    std::ranges::generate(batch.images, draw);
    for (std::size_t n = 0; n < batch.rows; ++n)
      batch.labels.push_back(static_cast<std::int32_t>(random() % model.classes));
    DoubleWeights weights;
    for (const auto& [name, shape] : parameter_shapes(model)) {
      weights[name] = formula_weights(name, shape);
      std::ranges::generate(weights[name], draw);
    }
    const std::vector<double>& weight = weights["layers.0.weight"];
    DoubleIndices all;
    std::vector<double> expected(weight.size());
    for (std::size_t i = 0; i < weight.size(); ++i) all["layers.0.weight"].push_back(i);
    // (softmax - 1 at the label) * x, the mean over rows.
    for (std::size_t n = 0; n < batch.rows; ++n) {
      std::vector<double> shares(model.classes);
      double sum = 0;
      for (std::size_t o = 0; o < model.classes; ++o) {
        double y = weights["layers.0.bias"][o];
        for (std::size_t i = 0; i < model.inputs; ++i)
          y += weight[o * model.inputs + i] * batch.images[n * model.inputs + i];
        sum += shares[o] = std::exp(y);
      }
      for (std::size_t o = 0; o < model.classes; ++o) {
        const double dy = shares[o] / sum - (batch.labels[n] == static_cast<std::int32_t>(o) ? 1 : 0);
        for (std::size_t i = 0; i < model.inputs; ++i)
          expected[o * model.inputs + i] += dy * batch.images[n * model.inputs + i] / static_cast<double>(batch.rows);
      }
    }
    const auto found = central_differences(model, weights, batch, all).at("layers.0.weight");
    for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(found[i], expected[i], 1e-8) << "round " << round;
  }
}

// ----- golden steps -------------------------------------------------------------------------------------------------

DoubleBatch part_of(const model::MlpOptions& model, const DoubleBatch& batch, std::size_t first, std::size_t rows) {
  const auto image = [&](std::size_t row) {
    return batch.images.begin() + static_cast<std::ptrdiff_t>(row * model.inputs);
  };
  const auto label = [&](std::size_t row) { return batch.labels.begin() + static_cast<std::ptrdiff_t>(row); };
  return {.rows = rows, .images = {image(first), image(first + rows)}, .labels = {label(first), label(first + rows)}};
}

/// A step of an optimizer as the golden file means it: written from the formulas of kernels/optimizer.hpp.
struct DoubleOptimizer {
  GoldenOptimizer options;
  DoubleWeights first{};
  DoubleWeights second{};
  int step = 0;

  void update(DoubleWeights& weights, DoubleWeights& gradients, double norm) {
    ++step;
    const double factor = options.clip > 0 ? std::min(1.0, options.clip / norm) : 1;
    for (auto& [name, weight] : weights) {
      const double decay = name.ends_with(".weight") ? options.weight_decay : 0;  // An MLP's only: it has no norms.
      first[name].resize(weight.size());
      second[name].resize(weight.size());
      for (std::size_t i = 0; i < weight.size(); ++i) {
        double g = factor * gradients[name][i];
        double& m = first[name][i];
        double& v = second[name][i];
        if (options.adamw) {
          weight[i] -= options.learning_rate * decay * weight[i];
          m = options.beta1 * m + (1 - options.beta1) * g;
          v = options.beta2 * v + (1 - options.beta2) * g * g;
          const double unbiased = std::sqrt(v / (1 - std::pow(options.beta2, step)));
          weight[i] -= options.learning_rate / (1 - std::pow(options.beta1, step)) * m / (unbiased + options.epsilon);
        } else {
          g += decay * weight[i];
          m = options.momentum * m + g;
          weight[i] -= options.learning_rate * (options.nesterov ? g + options.momentum * m : m);
        }
      }
    }
  }
};

TEST(GoldenSteps, of_mlps_are_what_central_differences_and_the_optimizers_formulas_give) {
  int cases = 0;
  for (const GoldenSteps& at : golden_steps()) {
    const auto* model = std::get_if<model::MlpOptions>(&at.model);
    if (model == nullptr) continue;
    ++cases;
    DoubleWeights weights = formula_weights(at.model);
    DoubleIndices all;
    for (const auto& [name, values] : weights) {
      for (std::size_t i = 0; i < values.size(); ++i) all[name].push_back(i);
    }
    DoubleOptimizer optimizer{.options = at.optimizer};
    const std::size_t rows = at.rows / at.micro_batches;
    for (std::size_t step = 0; step < at.losses.size(); ++step) {
      const DoubleBatch batch = formula_batch(at.model, at.rows, step);
      DoubleWeights gradients;
      double mean = 0;
      for (std::size_t part = 0; part < at.micro_batches; ++part) {
        const DoubleBatch micro_batch = part_of(*model, batch, part * rows, rows);
        mean += loss(at.model, weights, micro_batch) / static_cast<double>(at.micro_batches);
        for (const auto& [name, values] : central_differences(at.model, weights, micro_batch, all)) {
          gradients[name].resize(values.size());
          for (std::size_t i = 0; i < values.size(); ++i)
            gradients[name][i] += values[i] / static_cast<double>(at.micro_batches);
        }
      }
      double squares = 0;
      for (const auto& [name, values] : gradients) {
        for (const double value : values) squares += value * value;
      }
      EXPECT_NEAR(mean, at.losses[step], 1e-7) << at.name << ", step " << step;
      EXPECT_NEAR(std::sqrt(squares), at.gradient_norms[step], 1e-7) << at.name << ", step " << step;
      optimizer.update(weights, gradients, std::sqrt(squares));
    }
    for (const auto& [name, tensor] : at.state) {
      double sum = 0;
      double squares = 0;
      for (const double value : weights.at(name)) {
        sum += value;
        squares += value * value;
      }
      EXPECT_NEAR(sum, tensor.sum, 1e-6) << at.name << ": " << name;
      EXPECT_NEAR(squares, tensor.squares, 1e-6) << at.name << ": " << name;
      for (std::size_t i = 0; i < tensor.indices.size(); ++i)
        EXPECT_NEAR(weights.at(name)[tensor.indices[i]], tensor.values[i], 1e-7) << at.name << ": " << name;
    }
  }
  EXPECT_EQ(cases, 3);
}

TEST(GoldenSteps, begin_with_the_losses_of_the_double_models) {
  const auto cases = golden_steps();
  EXPECT_EQ(cases.size(), 16U);
  for (const GoldenSteps& at : cases) {
    if (at.micro_batches != 1) continue;
    const double found = loss(at.model, formula_weights(at.model), formula_batch(at.model, at.rows, 0));
    EXPECT_NEAR(found, at.losses[0], 1e-12 * found) << at.name;
  }
}

// ----- misuse -------------------------------------------------------------------------------------------------------

TEST(DoubleModelsDeathTest, stop_at_what_does_not_fit) {
  const model::MlpOptions model{.inputs = 2, .hidden = {3}, .classes = 2};
  const DoubleBatch batch = formula_batch(model, 2, 0);
  const DoubleWeights weights = formula_weights(model::ModelOptions(model));
  DoubleWeights missing = weights;
  missing.erase("layers.1.bias");
  EXPECT_DEATH(static_cast<void>(loss(model, missing, batch)), "layers.1.bias");
  DoubleWeights short_one = weights;
  short_one["layers.0.weight"].pop_back();
  EXPECT_DEATH(static_cast<void>(loss(model, short_one, batch)), "layers.0.weight");
  DoubleBatch other = batch;
  other.images.pop_back();
  EXPECT_DEATH(static_cast<void>(loss(model, weights, other)), "does not fit the model");
  other = batch;
  other.labels[1] = 2;
  EXPECT_DEATH(static_cast<void>(loss(model, weights, other)), "a target that the model does not have");
  other.labels.pop_back();
  EXPECT_DEATH(static_cast<void>(loss(model, weights, other)), "a target for each row");
  EXPECT_DEATH(static_cast<void>(central_differences(model, weights, batch, {{"fc.bias", {0}}})), "fc.bias");
  EXPECT_DEATH(static_cast<void>(central_differences(model, weights, batch, {{"layers.1.bias", {2}}})),
               "layers.1.bias");
  const model::GptOptions gpt{.vocabulary = 3, .context = 2, .layers = 1, .heads = 1, .width = 2};
  DoubleBatch tokens = formula_batch(gpt, 1, 0);
  const DoubleWeights gpt_weights = formula_weights(model::ModelOptions(gpt));
  tokens.tokens[0] = 3;
  EXPECT_DEATH(static_cast<void>(loss(gpt, gpt_weights, tokens)), "a token that the model does not have");
  tokens.tokens.pop_back();
  EXPECT_DEATH(static_cast<void>(loss(gpt, gpt_weights, tokens)), "does not fit the model");
}

}  // namespace
}  // namespace dunnock::test
