// Ten steps of the trainer beside PyTorch's in double precision, from the same weights and on the same batches: on one
// device, as stages of a pipeline and as data-parallel ranks, by every schedule.
//
// Bounds: a step in f32 rounds each weight to 2^-24 of it, and its gradient to some 1e-6 of the largest values that
// were added up. Ten steps of SGD keep that order; AdamW divides a gradient by its own size, or by epsilon where it is
// small, and so errors of 1e-9 in a gradient of 0 become learning_rate * 1e-9 / epsilon.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "dunnock/training/trainer.hpp"
#include "training/runs.hpp"

namespace dunnock::test {
namespace {

using training::Family;
using training::TrainerOptions;

struct Way {
  std::string schedule = "conventional";
  Grid grid{};
  unsigned micro_batches = 1;  // Of a rank.
  unsigned window = 4;
};

struct Run {
  std::vector<training::StepResult> results;
  States state;  // Of all ranks; equal where several hold a tensor.
  unsigned layers = 0;
};

training::OptimizerOptions optimizer_of(const GoldenOptimizer& golden) {
  const auto narrow = [](double value) { return static_cast<float>(value); };
  return {.kind = golden.adamw ? training::OptimizerKind::kAdamw : training::OptimizerKind::kSgd,
          .beta1 = narrow(golden.beta1),
          .beta2 = narrow(golden.beta2),
          .epsilon = narrow(golden.epsilon),
          .weight_decay = narrow(golden.weight_decay),
          .momentum = narrow(golden.momentum),
          .nesterov = golden.nesterov,
          .clip = narrow(golden.clip)};
}

Run run_golden(const GoldenSteps& at, const Way& way) {
  std::vector<Inputs> inputs;
  for (std::size_t step = 0; step < at.losses.size(); ++step)
    inputs.emplace_back(formula_batch(at.model, at.rows, step));
  const TrainerOptions options{.model = at.model,
                               .rows = at.rows / way.grid.data_ranks / way.micro_batches,
                               .micro_batches = way.micro_batches,
                               .seed = 1,
                               .optimizer = optimizer_of(at.optimizer),
                               .schedule = way.schedule,
                               .window = way.window,
                               .threads = 1,
                               .as_graph = false,
                               .measures = false,
                               .plan = {.message_bytes = 512},
                               .costs = training::estimate_step(at.model, model::DataType::kF32, 4, {})};
  const DoubleWeights weights = formula_weights(at.model);
  Run run;
  std::mutex mutex;
  run_ranks(way.grid, [&](const RankOfGrid& rank) {
    auto trainer = training::Trainer::create(device::Device::cpu(rank.number), options, rank.ranks);
    ASSERT_TRUE(trainer) << trainer.error().message;
    ASSERT_TRUE(load_weights_of(**trainer, weights));
    std::vector<training::StepResult> results;
    std::vector<training::StepInput> window;
    for (std::size_t step = 0; step < inputs.size(); ++step) {
      window.push_back(
          inputs[step].part(rank.data_rank, way.grid.data_ranks, static_cast<float>(at.optimizer.learning_rate)));
      if (window.size() < way.window && step + 1 < inputs.size()) continue;
      const auto some = (*trainer)->run(window);
      ASSERT_TRUE(some) << some.error().message;
      results.insert(results.end(), some->begin(), some->end());
      window.clear();
    }
    const std::lock_guard lock(mutex);
    if (run.results.empty()) run.results = results;
    for (std::size_t i = 0; i < results.size(); ++i) EXPECT_EQ(results[i].loss, run.results[i].loss);
    for (const auto& [name, values] : state_of(**trainer)) {
      const auto [there, added] = run.state.try_emplace(name, values);
      if (!added) {
        EXPECT_EQ(there->second, values) << name << " of rank " << rank.number;
      }
    }
  });
  return run;
}

// Losses and norms by 1 + themselves, weights by the largest of their tensor. The worst of all cases and ways uses a
// tenth of its bound.
constexpr double kOfLosses = 1e-5;
constexpr double kOfNorms = 2e-5;
constexpr double kOfWeights = 5e-5;

void expect_golden(const GoldenSteps& at, const Run& run) {
  ASSERT_EQ(run.results.size(), at.losses.size());
  for (std::size_t step = 0; step < at.losses.size(); ++step) {
    EXPECT_NEAR(run.results[step].loss, at.losses[step], kOfLosses * (1 + at.losses[step])) << "step " << step;
    ASSERT_EQ(run.results[step].gradient_norm.has_value(), at.optimizer.clip > 0);
    if (at.optimizer.clip > 0) {
      EXPECT_NEAR(*run.results[step].gradient_norm, at.gradient_norms[step], kOfNorms * (1 + at.gradient_norms[step]))
          << "step " << step;
    }
  }
  for (const auto& [name, tensor] : at.state) {
    ASSERT_TRUE(run.state.contains(name)) << name;
    const std::vector<float>& values = run.state.at(name);
    double sum = 0;
    double squares = 0;
    double largest = 0;
    for (const float value : values) {
      const auto wide = static_cast<double>(value);
      sum += wide;
      squares += wide * wide;
      largest = std::max(largest, std::abs(wide));
    }
    const double size = static_cast<double>(values.size());
    const double bound = kOfWeights * largest;
    EXPECT_NEAR(sum, tensor.sum, bound * size) << name;
    EXPECT_NEAR(std::sqrt(squares), std::sqrt(tensor.squares), bound * std::sqrt(size)) << name;
    for (std::size_t i = 0; i < tensor.indices.size(); ++i)
      EXPECT_NEAR(values.at(tensor.indices[i]), tensor.values[i], bound) << name << " [" << tensor.indices[i] << "]";
  }
  // Nothing else is trained: what is more are moments.
  for (const auto& [name, values] : run.state)
    EXPECT_TRUE(at.state.contains(name) || name.find("moment of ") != std::string::npos) << name;
}

std::size_t layers_of(const model::ModelOptions& model) {
  return training::estimate_step(model, model::DataType::kF32, 1, {}).layers.size();
}

class GoldenRuns : public ::testing::TestWithParam<std::string> {};

TEST_P(GoldenRuns, on_one_device_are_those_of_py_torch) {
  int cases = 0;
  for (const GoldenSteps& at : golden_steps()) {
    const auto micro_batches = static_cast<unsigned>(at.micro_batches);
    SCOPED_TRACE(at.name + " in " + std::to_string(micro_batches) + " by " + GetParam());
    ++cases;
    expect_golden(at, run_golden(at, {.schedule = GetParam(), .grid = {}, .micro_batches = micro_batches}));
  }
  EXPECT_EQ(cases, 16);
}
INSTANTIATE_TEST_SUITE_P(OneDevice, GoldenRuns, ::testing::ValuesIn(schedules_of(Family::kOneDevice)));

class GoldenPipelines : public ::testing::TestWithParam<std::string> {};

/// Any number of micro-batches has the same mean gradient where no batch norm sees them one at a time.
TEST_P(GoldenPipelines, are_those_of_py_torch) {
  int cases = 0;
  for (const GoldenSteps& at : golden_steps()) {
    if (layers_of(at.model) < 4) continue;  // Too few for two stages of two runs of layers.
    for (const unsigned micro_batches : {static_cast<unsigned>(at.micro_batches), 3U}) {
      if (micro_batches != at.micro_batches && (has_batch_norm(at.model) || at.rows % micro_batches != 0)) continue;
      SCOPED_TRACE(at.name + " in " + std::to_string(micro_batches) + " by " + GetParam());
      ++cases;
      expect_golden(at, run_golden(at, {.schedule = GetParam(),
                                        .grid = {.stages = 2, .data_ranks = 1},
                                        .micro_batches = micro_batches,
                                        .window = 2}));
    }
  }
  EXPECT_GE(cases, 12);
}
INSTANTIATE_TEST_SUITE_P(All, GoldenPipelines, ::testing::ValuesIn(schedules_of(Family::kPipeline)));

class GoldenDataParallel : public ::testing::TestWithParam<std::string> {};

TEST_P(GoldenDataParallel, are_those_of_py_torch) {
  int cases = 0;
  for (const GoldenSteps& at : golden_steps()) {
    if (has_batch_norm(at.model) || at.rows % 2 != 0) continue;
    for (const unsigned micro_batches : {1U, 3U}) {
      if (at.rows % (2 * micro_batches) != 0) continue;
      SCOPED_TRACE(at.name + " in " + std::to_string(micro_batches) + " by " + GetParam());
      ++cases;
      expect_golden(at, run_golden(at, {.schedule = GetParam(),
                                        .grid = {.stages = 1, .data_ranks = 2},
                                        .micro_batches = micro_batches,
                                        .window = 3}));
    }
  }
  EXPECT_GE(cases, 8);
}
INSTANTIATE_TEST_SUITE_P(All, GoldenDataParallel, ::testing::ValuesIn(schedules_of(Family::kDataParallel)));

TEST(GoldenHybrid, pipelines_of_data_parallel_stages_are_those_of_py_torch) {
  for (const GoldenSteps& at : golden_steps()) {
    if (has_batch_norm(at.model) || at.rows % 4 != 0 || layers_of(at.model) < 4) continue;
    SCOPED_TRACE(at.name);
    expect_golden(at,
                  run_golden(at, {.schedule = "zb-h1", .grid = {.stages = 2, .data_ranks = 2}, .micro_batches = 2}));
  }
}

}  // namespace
}  // namespace dunnock::test
