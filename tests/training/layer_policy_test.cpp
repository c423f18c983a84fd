// Layers that train in some steps only: what is passed over stays as it is, and every schedule computes the same.
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "dunnock/model/network.hpp"
#include "dunnock/training/trainer.hpp"
#include "support/seed.hpp"
#include "training/runs.hpp"

namespace dunnock::test {
namespace {

using training::Family;
using training::StepInput;
using training::StepResult;
using training::Trainer;
using training::TrainerOptions;

class Policy final : public training::LayerPolicy {
 public:
  using Trains = std::function<bool(unsigned, std::uint64_t)>;
  explicit Policy(Trains trains) : trains_(std::move(trains)) {}
  [[nodiscard]] bool trains(unsigned layer, std::uint64_t step) const override { return trains_(layer, step); }

 private:
  Trains trains_;
};
std::shared_ptr<const Policy> policy(Policy::Trains trains) { return std::make_shared<Policy>(std::move(trains)); }

constexpr unsigned kMicroBatches = 4;
constexpr std::size_t kRows = 2;
constexpr unsigned kSteps = 5;

/// Its first and last layer share a table.
const model::ModelOptions& gpt() {
  static const model::ModelOptions model =
      model::GptOptions{.vocabulary = 29, .context = 6, .layers = 3, .heads = 2, .width = 8, .mlp_ratio = 2};
  return model;
}

TrainerOptions options_of(const std::string& schedule, unsigned micro_batches, float clip) {
  return {.model = gpt(),
          .rows = kRows,
          .micro_batches = micro_batches,
          .seed = 3,
          .optimizer = {.weight_decay = 0.1F, .clip = clip},
          .schedule = schedule,
          .window = 2,
          .threads = 1,
          .plan = {.message_bytes = 512},
          .costs = training::estimate_step(gpt(), model::DataType::kF32, kRows, {})};
}

/// What comes out at rank 0: the whole state, and the results of the steps.
struct Outcome {
  std::vector<std::vector<float>> state;
  std::vector<StepResult> results;
};

Outcome train(const Grid& grid, const TrainerOptions& options) {
  Outcome outcome;
  auto random = generator(7);
  std::vector<Inputs> inputs;
  for (unsigned i = 0; i < kSteps; ++i)
    inputs.emplace_back(random_batch(gpt(), kRows * options.micro_batches * grid.data_ranks, random));
  run_ranks(grid, [&](const RankOfGrid& rank) {
    auto trainer = Trainer::create(device::Device::cpu(rank.number), options, rank.ranks);
    ASSERT_TRUE(trainer) << trainer.error().message;
    std::vector<StepResult> results;
    for (unsigned i = 0; i < kSteps; i += options.window) {
      std::vector<StepInput> steps;
      for (unsigned k = i; k < std::min(kSteps, i + options.window); ++k)
        steps.push_back(inputs[k].part(rank.data_rank, grid.data_ranks, 0.01F));
      const auto done = (*trainer)->run(steps);
      ASSERT_TRUE(done) << done.error().message;
      results.insert(results.end(), done->begin(), done->end());
    }
    const auto state = (*trainer)->gather();
    ASSERT_TRUE(state) << state.error().message;
    if (rank.number == 0) outcome = {*state, results};
  });
  return outcome;
}

/// Names of the parameters that a layer owns.
std::set<std::string> names_of_layer(unsigned layer) {
  std::set<std::string> names;
  for (const model::ParameterSpec& spec : model::layers_of<float>(gpt())[layer]->parameters()) {
    if (!spec.tied) names.insert(spec.name);
  }
  return names;
}

TEST(LayerPolicy, that_lets_all_layers_train_changes_no_bit) {
  for (const float clip : {0.0F, 0.01F}) {
    for (const unsigned micro_batches : {1U, 2U}) {
      TrainerOptions options = options_of("conventional", micro_batches, clip);
      const Outcome without = train({}, options);
      options.policy = policy([](unsigned, std::uint64_t) { return true; });
      const Outcome with = train({}, options);
      EXPECT_EQ(with.state, without.state);
    }
  }
}

TEST(LayerPolicy, keeps_weights_and_moments_of_layers_that_it_passes_over) {
  const auto trainer = Trainer::create(device::Device::cpu(), options_of("conventional", 1, 0));
  ASSERT_TRUE(trainer);
  const std::vector<model::StateTensor> names = (*trainer)->whole_state();
  const auto before = (*trainer)->gather();
  ASSERT_TRUE(before);
  const unsigned layers = static_cast<unsigned>(model::layers_of<float>(gpt()).size());
  for (unsigned frozen = 0; frozen < layers; ++frozen) {
    for (const float clip : {0.0F, 0.01F}) {
      TrainerOptions options = options_of("conventional", frozen % 2 == 0 ? 1 : 2, clip);
      options.policy = policy([frozen](unsigned layer, std::uint64_t) { return layer != frozen; });
      const Outcome after = train({}, options);
      const std::set<std::string> own = names_of_layer(frozen);
      for (std::size_t i = 0; i < names.size(); ++i) {
        EXPECT_EQ(after.state.at(i) == before->at(i), own.contains(names[i].name))
            << key_of(names[i]) << ", layer " << frozen;
      }
    }
  }
}

TEST(LayerPolicy, counts_only_gradients_of_layers_that_train_in_the_norm) {
  TrainerOptions options = options_of("conventional", 2, 0.01F);
  const Outcome all = train({}, options);
  options.policy = policy([](unsigned layer, std::uint64_t) { return layer == 1; });
  const Outcome one = train({}, options);
  options.policy = policy([](unsigned, std::uint64_t step) { return step == 2; });
  const Outcome second = train({}, options);
  EXPECT_GT(*one.results[0].gradient_norm, 0);
  EXPECT_LT(*one.results[0].gradient_norm, *all.results[0].gradient_norm);
  for (unsigned step = 0; step < kSteps; ++step) {
    EXPECT_EQ(*second.results[step].gradient_norm > 0, step == 1) << "step " << step + 1;
  }
}

TEST(LayerPolicy, gives_the_same_weights_by_every_schedule) {
  const auto in_turn = policy([](unsigned layer, std::uint64_t step) { return (layer + step) % 3 != 0; });
  const auto with = [&](const std::string& schedule, unsigned micro_batches) {
    TrainerOptions options = options_of(schedule, micro_batches, 0);
    options.policy = in_turn;
    return options;
  };
  const Outcome one_by_one = train({}, with("conventional", 1));
  for (const std::string& schedule : schedules_of(Family::kOneDevice))
    EXPECT_EQ(train({}, with(schedule, 1)).state, one_by_one.state) << schedule;
  const Outcome accumulated = train({}, with("conventional", kMicroBatches));
  for (const std::string& schedule : schedules_of(Family::kPipeline))
    EXPECT_EQ(train({.stages = 2}, with(schedule, kMicroBatches)).state, accumulated.state) << schedule;
  const std::vector<std::string> parallel = schedules_of(Family::kDataParallel);
  const Outcome first = train({.data_ranks = 2}, with(parallel.front(), 1));
  for (const std::string& schedule : parallel)
    EXPECT_EQ(train({.data_ranks = 2}, with(schedule, 1)).state, first.state) << schedule;
}

TEST(LayerPolicy, is_refused_for_recorded_graphs) {
  TrainerOptions options = options_of("conventional", 1, 0);
  options.as_graph = true;
  options.policy = policy([](unsigned, std::uint64_t) { return true; });
  const auto trainer = Trainer::create(device::Device::cpu(), options);
  ASSERT_FALSE(trainer);
  EXPECT_EQ(trainer.error().code, ErrorCode::kUnsupported);
}

}  // namespace
}  // namespace dunnock::test
