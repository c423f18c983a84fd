// What PyTorch in float64 has worked out for tiny models, whose weights and batches come from a formula
// (formula_values.hpp): tests/model/data/double_models.json and training_steps.json, made by
// `bench/training_peer.py golden`.
#pragma once

#include <cstddef>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <variant>
#include <vector>

#include "dunnock/base/check.hpp"
#include "dunnock/model/models.hpp"
#include "model/double_models.hpp"
#include "model/formula_values.hpp"

namespace dunnock::test {

/// Of a tensor, row-major in PyTorch's shape.
struct GoldenTensor {
  std::vector<std::size_t> shape;
  double sum = 0;
  double squares = 0;  ///< Sum of the squares.
  std::vector<std::size_t> indices;
  std::vector<double> values;  ///< At these indices.
};

/// One batch, the first of its formula: the loss and its gradients, of all parameters.
struct GoldenGradients {
  std::string name;
  model::ModelOptions model;
  std::size_t rows = 0;
  double loss = 0;
  std::map<std::string, GoldenTensor> gradients;
};

/// As training_peer.py has it: clip 0 is none; tensors of one dimension do not decay; factor of the gradients is
/// min(1, clip / norm).
struct GoldenOptimizer {
  bool adamw = true;  ///< Else SGD.
  double learning_rate = 0;
  double beta1 = 0;
  double beta2 = 0;
  double epsilon = 0;
  double weight_decay = 0;
  double momentum = 0;
  bool nesterov = false;
  double clip = 0;
};

/// Some steps, each on a batch of its own.
struct GoldenSteps {
  std::string name;
  model::ModelOptions model;
  std::size_t rows = 0;           ///< Of a batch.
  std::size_t micro_batches = 1;  ///< That a batch is taken in, one after another; batch norms see one at a time.
  GoldenOptimizer optimizer;
  std::vector<double> losses;                 // (steps): before each step's update, the mean over the whole batch
  std::vector<double> gradient_norms;         // (steps): before clipping
  std::map<std::string, GoldenTensor> state;  ///< After the last step: parameters, running means and variances.
};

namespace golden {

inline model::ImageShape image_of(const nlohmann::json& model) {
  const auto& image = model.at("image");
  return {.height = image.at("height"), .width = image.at("width"), .channels = image.at("channels")};
}

inline model::ModelOptions model_of(const nlohmann::json& model) {
  const std::string kind = model.at("kind");
  if (kind == "mlp") {
    return model::MlpOptions{
        .inputs = model.at("inputs"), .hidden = model.at("hidden"), .classes = model.at("classes")};
  }
  if (kind == "cnn") {
    return model::CnnOptions{.image = image_of(model),
                             .stages = model.at("stages"),
                             .batch_norm = model.at("batch_norm"),
                             .hidden = model.at("hidden"),
                             .classes = model.at("classes")};
  }
  if (kind == "resnet") {
    return model::ResNetOptions{.image = image_of(model),
                                .blocks = model.at("blocks"),
                                .width = model.at("width"),
                                .bottleneck = model.at("bottleneck"),
                                .large_stem = model.at("large_stem"),
                                .classes = model.at("classes")};
  }
  if (kind == "densenet") {
    return model::DenseNetOptions{.image = image_of(model),
                                  .blocks = model.at("blocks"),
                                  .growth = model.at("growth"),
                                  .stem_width = model.at("stem_width"),
                                  .bottleneck = model.at("bottleneck"),
                                  .large_stem = model.at("large_stem"),
                                  .classes = model.at("classes")};
  }
  DUNNOCK_CHECK(kind == "gpt", "a model that the golden files do not have");
  const bool rotary = model.at("positions") == "rotary";
  return model::GptOptions{.vocabulary = model.at("vocabulary"),
                           .context = model.at("context"),
                           .layers = model.at("layers"),
                           .heads = model.at("heads"),
                           .width = model.at("width"),
                           .mlp_ratio = model.at("mlp_ratio"),
                           .positions = rotary ? model::Positions::kRotary : model::Positions::kLearned};
}

inline std::map<std::string, GoldenTensor> tensors_of(const nlohmann::json& object) {
  std::map<std::string, GoldenTensor> tensors;
  for (const auto& [name, tensor] : object.items()) {
    tensors[name] = {.shape = tensor.at("shape"),
                     .sum = tensor.at("sum"),
                     .squares = tensor.at("squares"),
                     .indices = tensor.at("indices"),
                     .values = tensor.at("values")};
  }
  return tensors;
}

inline nlohmann::json cases_of(const std::string& file) {
  std::ifstream stream(std::string(DUNNOCK_SOURCE_DIR) + "/tests/model/data/" + file);
  DUNNOCK_CHECK(stream.good(), file.c_str());
  return nlohmann::json::parse(stream).at("cases");
}

}  // namespace golden

[[nodiscard]] inline std::vector<GoldenGradients> golden_gradients() {
  std::vector<GoldenGradients> cases;
  for (const auto& at : golden::cases_of("double_models.json")) {
    cases.push_back({.name = at.at("name"),
                     .model = golden::model_of(at.at("model")),
                     .rows = at.at("rows"),
                     .loss = at.at("loss"),
                     .gradients = golden::tensors_of(at.at("gradients"))});
  }
  return cases;
}

[[nodiscard]] inline std::vector<GoldenSteps> golden_steps() {
  std::vector<GoldenSteps> cases;
  for (const auto& at : golden::cases_of("training_steps.json")) {
    const auto& optimizer = at.at("optimizer");
    cases.push_back({.name = at.at("name"),
                     .model = golden::model_of(at.at("model")),
                     .rows = at.at("rows"),
                     .micro_batches = at.at("micro_batches"),
                     .optimizer = {.adamw = optimizer.at("kind") == "adamw",
                                   .learning_rate = optimizer.at("learning_rate"),
                                   .beta1 = optimizer.at("beta1"),
                                   .beta2 = optimizer.at("beta2"),
                                   .epsilon = optimizer.at("epsilon"),
                                   .weight_decay = optimizer.at("weight_decay"),
                                   .momentum = optimizer.at("momentum"),
                                   .nesterov = optimizer.at("nesterov"),
                                   .clip = optimizer.at("clip")},
                     .losses = at.at("losses"),
                     .gradient_norms = at.at("gradient_norms"),
                     .state = golden::tensors_of(at.at("state"))});
  }
  return cases;
}

/// The batch of a step, 0, 1, ..., by the formula.
[[nodiscard]] inline DoubleBatch formula_batch(const model::ModelOptions& model, std::size_t rows, std::size_t step) {
  DoubleBatch batch{.rows = rows};
  const auto labelled = [&](std::size_t values, std::size_t classes) {
    batch.images = formula_images(step * rows * values, rows * values);
    batch.labels = formula_integers("labels", classes, step * rows, rows);
  };
  if (const auto* gpt = std::get_if<model::GptOptions>(&model)) {
    const std::size_t length = gpt->context + 1;
    const auto tokens = formula_integers("tokens", gpt->vocabulary, step * rows * length, rows * length);
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      if (i % length + 1 < length) batch.tokens.push_back(tokens[i]);
      if (i % length > 0) batch.targets.push_back(tokens[i]);
    }
  }
  if (const auto* mlp = std::get_if<model::MlpOptions>(&model)) labelled(mlp->inputs, mlp->classes);
  if (const auto* cnn = std::get_if<model::CnnOptions>(&model)) labelled(cnn->image.size(), cnn->classes);
  if (const auto* resnet = std::get_if<model::ResNetOptions>(&model)) labelled(resnet->image.size(), resnet->classes);
  if (const auto* densenet = std::get_if<model::DenseNetOptions>(&model))
    labelled(densenet->image.size(), densenet->classes);
  return batch;
}

/// All parameters by the formula.
[[nodiscard]] inline DoubleWeights formula_weights(const model::ModelOptions& model) {
  DoubleWeights weights;
  for (const auto& [name, shape] : parameter_shapes(model)) weights[name] = formula_weights(name, shape);
  return weights;
}

}  // namespace dunnock::test
