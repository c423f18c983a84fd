// Steps of random numbers for a model: what trainers are timed on.
#pragma once

#include <cstdint>
#include <random>
#include <variant>
#include <vector>

#include "dunnock/training/trainer.hpp"

namespace dunnock::bench {

/// Memory for the input of any number of equal steps.
struct RandomInput {
  std::vector<float> images;
  std::vector<std::int32_t> tokens;
  std::vector<std::int32_t> targets;

  RandomInput(const model::ModelOptions& model, std::size_t rows, std::uint64_t seed) {
    std::mt19937_64 random(seed);
    const auto below = [&](std::size_t bound) { return static_cast<std::int32_t>(random() % bound); };
    std::size_t values = 0;
    std::size_t classes = 0;
    std::size_t context = 0;
    const auto sizes = [&](const auto& sizes_of) {
      if constexpr (requires { sizes_of.classes; }) classes = sizes_of.classes;
      if constexpr (requires { sizes_of.vocabulary; }) classes = sizes_of.vocabulary;
      if constexpr (requires { sizes_of.inputs; }) values = sizes_of.inputs;
      if constexpr (requires { sizes_of.image; }) values = sizes_of.image.size();
      if constexpr (requires { sizes_of.context; }) context = sizes_of.context;
    };
    std::visit(sizes, model);
    std::normal_distribution<float> normal;
    for (std::size_t i = 0; i < rows * values; ++i) images.push_back(normal(random));
    for (std::size_t i = 0; i < rows * context; ++i) tokens.push_back(below(classes));
    for (std::size_t i = 0; i < rows * (context == 0 ? 1 : context); ++i) targets.push_back(below(classes));
  }
  [[nodiscard]] training::StepInput step(float learning_rate) const {
    return {.images = images, .tokens = tokens, .targets = targets, .learning_rate = learning_rate};
  }
  [[nodiscard]] std::vector<training::StepInput> steps(unsigned count, float learning_rate) const {
    return std::vector<training::StepInput>(count, step(learning_rate));
  }
};

}  // namespace dunnock::bench
