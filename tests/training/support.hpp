// Steps for the tests of schedules.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "dunnock/training/schedules.hpp"

namespace dunnock::test {

/// Layers that all cost F, B and W, and keep `kept` bytes, all of them until dW is done.
inline training::Step equal_step(unsigned layers, double f = 1, double b = 1, double w = 1, std::uint64_t kept = 100) {
  return training::uniform_step(layers, {.forward = {f},
                                         .output_gradient = {b},
                                         .weight_gradient = {w},
                                         .kept_bytes = kept,
                                         .kept_for_weights_bytes = kept});
}

inline training::Step random_step(std::mt19937_64& random, unsigned layers) {
  const auto cost = [&random] {
    return training::Cost{static_cast<double>(1 + random() % 20), static_cast<double>(1 + random() % 10) / 10};
  };
  training::Step step{"random", {}};
  unsigned block = 0;
  for (unsigned i = 0; i < layers; ++i) {
    block += random() % 3 == 0 ? 1 : 0;
    training::Layer layer{.name = std::to_string(i + 1), .block = block};
    layer.forward = cost();
    layer.output_gradient = cost();
    if (random() % 6 != 0) {
      layer.weight_gradient = cost();
      layer.update = cost();
      layer.weight_bytes = random() % 1000;
      layer.gradient_bytes = 1 + random() % 1000;
    }
    layer.output_bytes = random() % 100;
    layer.kept_bytes = random() % 1000;
    layer.kept_for_weights_bytes = random() % (layer.kept_bytes + 1);
    step.layers.push_back(layer);
  }
  return step;
}

/// How often each part comes: [part][iteration, chunk, micro-batch].
using Counts = std::map<std::array<unsigned, 4>, unsigned>;
inline Counts counts_of(const training::Plan& plan) {
  Counts counts;
  for (const schedule::Slot& slot : plan.schedule.slots) {
    const training::OpTag& tag = plan.tags[slot.op];
    ++counts[{static_cast<unsigned>(tag.part), tag.iteration, tag.chunk, tag.micro_batch}];
  }
  return counts;
}

inline std::uint64_t largest(const std::vector<std::uint64_t>& values) { return *std::ranges::max_element(values); }

/// The plan; a failure with the reason when there is none.
inline training::Plan plan_or_fail(std::string_view name, const training::Step& step,
                                   const training::PlanOptions& options) {
  auto plan = training::make_plan(name, step, options);
  if (plan) return std::move(*plan);
  ADD_FAILURE() << name << ": " << plan.error().message;
  return {};
}

inline training::Figures figures_or_fail(const training::Plan& plan) {
  auto figures = training::figures_of(plan);
  if (figures) return std::move(*figures);
  ADD_FAILURE() << plan.name << ": " << figures.error().message;
  return {};
}

}  // namespace dunnock::test
