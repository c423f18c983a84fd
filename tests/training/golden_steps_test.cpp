// Ten whole steps of the trainer beside PyTorch's in float64: losses, norms of gradients, weights and running
// statistics.
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <ostream>
#include <string>
#include <vector>

#include "dunnock/training/optimizer.hpp"
#include "dunnock/training/parameters.hpp"
#include "dunnock/training/trainer.hpp"
#include "training/formula_values.hpp"
#include "training/golden_cases.hpp"

namespace dunnock::test {

void PrintTo(const GoldenSteps& golden, std::ostream* out) { *out << golden.name; }  // GoogleTest finds it by its name.

namespace {

using training::StateTensor;

// Of f32, over ten steps; PyTorch in f32 is as far from these values.
constexpr double kLoss = 1e-6;
constexpr double kValue = 1e-5;  // Of a tensor's root mean square.

training::OptimizerOptions optimizer_of(const GoldenOptimizer& golden) {
  return {.kind = golden.adamw ? training::OptimizerKind::kAdamw : training::OptimizerKind::kSgd,
          .beta1 = static_cast<float>(golden.beta1),
          .beta2 = static_cast<float>(golden.beta2),
          .epsilon = static_cast<float>(golden.epsilon),
          .weight_decay = static_cast<float>(golden.weight_decay),
          .momentum = static_cast<float>(golden.momentum),
          .nesterov = golden.nesterov,
          .clip = static_cast<float>(golden.clip)};
}

std::vector<float> in_f32(const std::vector<double>& values) { return {values.begin(), values.end()}; }

training::ParameterSpec spec_of(const StateTensor& tensor) {
  return {.name = tensor.name, .shape = tensor.shape, .positions = tensor.positions};
}

bool moment(const StateTensor& tensor) {
  return tensor.what == StateTensor::What::kFirstMoment || tensor.what == StateTensor::What::kSecondMoment;
}

/// Of a summary: for errors that are a share of a tensor's size.
double root_mean_square(const GoldenTensor& tensor, std::size_t size) {
  return std::sqrt(tensor.squares / static_cast<double>(size));
}

class GoldenStepsOf : public ::testing::TestWithParam<GoldenSteps> {};

TEST_P(GoldenStepsOf, are_pytorchs_to_rounding) {
  const GoldenSteps& golden = GetParam();
  auto created =
      training::Trainer::create(gpu::Device::cpu(), {.model = golden.model,
                                                     .rows = golden.rows / golden.micro_batches,
                                                     .micro_batches = static_cast<unsigned>(golden.micro_batches),
                                                     .optimizer = optimizer_of(golden.optimizer),
                                                     .window = 1,
                                                     .threads = 1});
  ASSERT_TRUE(created) << created.error().message;
  training::Trainer& trainer = **created;
  const std::vector<StateTensor> tensors = trainer.whole_state();
  std::vector<std::vector<float>> initial(tensors.size());  // Empty ones stay as they are.
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (tensors[i].what != StateTensor::What::kWeight) continue;
    const std::vector<float> seen = in_f32(formula_weights(tensors[i].name, tensors[i].shape));
    initial[i].resize(seen.size());
    training::to_lying_order(spec_of(tensors[i]), seen, initial[i]);
  }
  const Status loaded = trainer.load(initial);
  ASSERT_TRUE(loaded) << loaded.error().message;

  for (std::size_t step = 0; step < golden.losses.size(); ++step) {
    const DoubleBatch batch = formula_batch(golden.model, golden.rows, step);
    const std::vector<float> images = in_f32(batch.images);
    const training::StepInput input{.images = images,
                                    .tokens = batch.tokens,
                                    .targets = batch.targets.empty() ? batch.labels : batch.targets,
                                    .learning_rate = static_cast<float>(golden.optimizer.learning_rate)};
    const auto results = trainer.run({&input, 1});
    ASSERT_TRUE(results) << results.error().message;
    EXPECT_NEAR(results->at(0).loss, golden.losses[step], kLoss * golden.losses[step]) << "step " << step;
    ASSERT_EQ(results->at(0).gradient_norm.has_value(), golden.optimizer.clip > 0);
    if (golden.optimizer.clip > 0) {
      const double norm = golden.gradient_norms[step];
      EXPECT_NEAR(*results->at(0).gradient_norm, norm, kLoss * norm) << "step " << step;
    }
  }

  const auto trained = trainer.gather();
  ASSERT_TRUE(trained) << trained.error().message;
  std::size_t compared = 0;
  for (std::size_t tensor_at = 0; tensor_at < tensors.size(); ++tensor_at) {
    const StateTensor& tensor = tensors[tensor_at];
    if (moment(tensor)) continue;
    ASSERT_TRUE(golden.state.contains(tensor.name)) << tensor.name;
    const GoldenTensor& expected = golden.state.at(tensor.name);
    EXPECT_EQ(tensor.shape, expected.shape) << tensor.name;
    std::vector<float> values(trained->at(tensor_at).size());
    training::to_seen_order(spec_of(tensor), trained->at(tensor_at), values);
    const double size = root_mean_square(expected, values.size());
    double squares = 0;
    for (const float value : values) squares += static_cast<double>(value) * value;
    EXPECT_NEAR(squares, expected.squares, kValue * expected.squares) << tensor.name;
    for (std::size_t i = 0; i < expected.indices.size(); ++i) {
      EXPECT_NEAR(values[expected.indices[i]], expected.values[i], kValue * size)
          << tensor.name << " [" << expected.indices[i] << "]";
    }
    ++compared;
  }
  EXPECT_EQ(compared, golden.state.size());
}

std::string name_of(const ::testing::TestParamInfo<GoldenSteps>& info) {
  std::string name;
  for (const char c : info.param.name) {
    if (c != ',') name += c == ' ' ? '_' : c;
  }
  return name;
}

INSTANTIATE_TEST_SUITE_P(All, GoldenStepsOf, ::testing::ValuesIn(golden_steps()), name_of);

}  // namespace
}  // namespace dunnock::test
