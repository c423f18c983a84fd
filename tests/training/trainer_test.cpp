// The trainer: every schedule ends with the weights of plain training.
#include "dunnock/training/trainer.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <map>
#include <random>
#include <thread>

#include "support/seed.hpp"

namespace dunnock::training {
namespace {

model::GptOptions small_gpt() {
  return {.vocabulary = 29, .context = 12, .layers = 3, .heads = 2, .width = 16, .mlp_ratio = 2};
}
model::MlpOptions small_mlp() { return {.inputs = 20, .hidden = {24, 17, 16, 15, 12, 11, 10}, .classes = 5}; }

/// Steps of random numbers, of `rows` rows in all.
struct Data {
  std::vector<std::vector<float>> images;
  std::vector<std::vector<std::int32_t>> tokens;
  std::vector<std::vector<std::int32_t>> targets;
};

Data random_data(const model::ModelOptions& model, std::size_t rows, unsigned steps, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  Data data;
  for (unsigned t = 0; t < steps; ++t) {
    std::vector<float> images;
    std::vector<std::int32_t> tokens;
    std::vector<std::int32_t> targets;
    const auto some = [&](std::size_t below) { return static_cast<std::int32_t>(random() % below); };
    if (const auto* gpt = std::get_if<model::GptOptions>(&model)) {
      for (std::size_t i = 0; i < rows * gpt->context; ++i) {
        tokens.push_back(some(gpt->vocabulary));
        targets.push_back(some(gpt->vocabulary));
      }
    } else {
      const auto& mlp = std::get<model::MlpOptions>(model);
      std::normal_distribution<float> normal;
      for (std::size_t i = 0; i < rows * mlp.inputs; ++i) images.push_back(normal(random));
      for (std::size_t i = 0; i < rows; ++i) targets.push_back(some(mlp.classes));
    }
    data.images.push_back(std::move(images));
    data.tokens.push_back(std::move(tokens));
    data.targets.push_back(std::move(targets));
  }
  return data;
}

/// Rows rank * n / ranks to (rank + 1) * n / ranks of each step.
StepInput input_of(const Data& data, unsigned step, unsigned rank, unsigned ranks, float learning_rate) {
  const auto part = [&](const auto& values) {
    return std::span(values).subspan(values.size() / ranks * rank, values.size() / ranks);
  };
  return {.images = part(data.images[step]),
          .tokens = part(data.tokens[step]),
          .targets = part(data.targets[step]),
          .learning_rate = learning_rate};
}

struct Trained {
  std::map<std::string, std::vector<float>> state;
  std::vector<double> losses;
  std::string choice;
};

/// Of one rank.
void train(Trainer& trainer, const Data& data, unsigned rank, unsigned ranks, unsigned window, Trained& trained) {
  std::vector<StepInput> steps;
  for (unsigned t = 0; t < data.targets.size(); ++t) {
    steps.push_back(input_of(data, t, rank, ranks, 0.01F / static_cast<float>(t + 1)));
    if (steps.size() < window && t + 1 < data.targets.size()) continue;
    const auto results = trainer.run(steps);
    ASSERT_TRUE(results) << results.error().message;
    for (const StepResult& result : *results) trained.losses.push_back(result.loss);
    steps.clear();
  }
  for (const model::StateTensor& tensor : trainer.state()) {
    const auto* first = tensor.values.device_data();
    trained.state[tensor.name + "/" + std::to_string(static_cast<int>(tensor.what))].assign(
        first, first + tensor.values.size());
  }
}

struct Setup {
  TrainerOptions options;
  unsigned stages = 1;
  unsigned data_ranks = 1;
};

/// Ranks are threads; the states of all stages together, of the first data-parallel rank, and the others must agree.
Trained train_all(const Setup& setup, const Data& data) {
  const unsigned ranks = setup.stages * setup.data_ranks;
  std::vector<std::vector<ranks::Communicator>> of_data;  // [stage][data rank]
  std::vector<std::vector<ranks::Communicator>> of_pipeline;
  std::vector<std::vector<ranks::Communicator>> of_sums;
  for (unsigned s = 0; s < setup.stages; ++s)
    of_data.push_back(std::move(*ranks::Communicator::threads(setup.data_ranks)));
  for (unsigned d = 0; d < setup.data_ranks; ++d) {
    of_pipeline.push_back(std::move(*ranks::Communicator::threads(setup.stages)));
    of_sums.push_back(std::move(*ranks::Communicator::threads(setup.stages)));
  }
  std::vector<Trained> trained(ranks);
  std::vector<std::thread> threads;
  for (unsigned r = 0; r < ranks; ++r) {
    threads.emplace_back([&, r] {
      const unsigned stage = r / setup.data_ranks;
      const unsigned d = r % setup.data_ranks;
      const Ranks mine{setup.data_ranks > 1 ? &of_data[stage][d] : nullptr,
                       setup.stages > 1 ? &of_pipeline[d][stage] : nullptr,
                       setup.stages > 1 ? &of_sums[d][stage] : nullptr};
      auto trainer = Trainer::create(device::Device::cpu(r), setup.options, mine);
      ASSERT_TRUE(trainer) << trainer.error().message;
      trained[r].choice = (*trainer)->plan().choice;
      train(**trainer, data, d, setup.data_ranks, setup.options.window, trained[r]);
    });
  }
  for (std::thread& thread : threads) thread.join();
  Trained all = std::move(trained[0]);
  for (unsigned r = 1; r < ranks; ++r) {
    EXPECT_EQ(trained[r].losses, all.losses) << "rank " << r;
    for (auto& [name, values] : trained[r].state) {
      const auto [there, added] = all.state.try_emplace(name, values);
      if (!added) {
        EXPECT_EQ(there->second, values) << name << " of rank " << r;
      }
    }
  }
  return all;
}

void expect_equal(const Trained& one, const Trained& other) {
  EXPECT_EQ(one.losses, other.losses);
  ASSERT_EQ(one.state.size(), other.state.size());
  for (const auto& [name, values] : one.state) EXPECT_EQ(values, other.state.at(name)) << name;
}

void expect_near(const Trained& one, const Trained& other, float bound) {
  ASSERT_EQ(one.losses.size(), other.losses.size());
  for (std::size_t i = 0; i < one.losses.size(); ++i)
    EXPECT_NEAR(one.losses[i], other.losses[i], bound * (1 + std::abs(one.losses[i])));
  ASSERT_EQ(one.state.size(), other.state.size());
  for (const auto& [name, values] : one.state) {
    const std::vector<float>& others = other.state.at(name);
    ASSERT_EQ(values.size(), others.size());
    for (std::size_t i = 0; i < values.size(); ++i) ASSERT_NEAR(values[i], others[i], bound) << name << " " << i;
  }
}

TrainerOptions options_for(const model::ModelOptions& model, std::size_t rows, const std::string& schedule) {
  return {.model = model,
          .rows = rows,
          .seed = 3,
          .optimizer = {.weight_decay = 0.1F},
          .schedule = schedule,
          .window = 4,
          .threads = 1,
          .plan = {.link = {.latency_us = 20, .gb_per_s = 1}}};
}

std::vector<std::string> schedules_of(Family family) {
  std::vector<std::string> names;
  for (const ScheduleName& name : schedule_names()) {
    if (name.family == family) names.emplace_back(name.name);
  }
  return names;
}

/// Of an Adam step, what the smallest gradients become is a matter of rounding.
constexpr float kRounding = 2e-4F;

TEST(Trainer, ranks_that_measure_their_costs_make_the_same_plan) {
  const model::ModelOptions model = small_gpt();
  const Data data = random_data(model, 8, 6, test::seed());
  TrainerOptions plain = options_for(model, 2, "1f1b");
  plain.micro_batches = 2;
  plain.window = 2;
  TrainerOptions measuring = plain;
  measuring.measures_costs = true;
  // Other costs cut the model elsewhere, which changes nothing; ranks that cut it differently would not agree.
  expect_equal(train_all({plain, 2, 2}, data), train_all({measuring, 2, 2}, data));
}

TEST(Trainer, loss_falls_on_what_it_has_seen) {
  const model::ModelOptions model = small_gpt();
  Data data = random_data(model, 4, 1, test::seed());
  while (data.targets.size() < 60) {
    data.images.push_back(data.images[0]);
    data.tokens.push_back(data.tokens[0]);
    data.targets.push_back(data.targets[0]);
  }
  auto trainer = Trainer::create(device::Device::cpu(), options_for(model, 4, "conventional"));
  ASSERT_TRUE(trainer) << trainer.error().message;
  std::vector<double> losses;
  for (unsigned t = 0; t < 60; ++t) {
    const StepInput input = input_of(data, t, 0, 1, 0.01F);
    const auto results = (*trainer)->run({&input, 1});
    ASSERT_TRUE(results) << results.error().message;
    losses.push_back(results->front().loss);
  }
  EXPECT_NEAR(losses.front(), std::log(29.0), 0.2);
  EXPECT_LT(losses.back(), 1.5);
  EXPECT_EQ((*trainer)->steps_done(), 60U);
}

TEST(Trainer, waits_for_a_snapshot_before_it_changes_anything_and_only_then) {
  for (const bool as_graph : {false, true}) {
    const model::ModelOptions model = small_mlp();
    const Data data = random_data(model, 4, 6, test::seed());
    TrainerOptions options = options_for(model, 4, "conventional");
    options.window = 2;
    options.as_graph = as_graph;
    auto trainer = Trainer::create(device::Device::cpu(), options);
    ASSERT_TRUE(trainer) << trainer.error().message;
    const auto run = [&](unsigned first) {
      const std::vector<StepInput> steps{input_of(data, first, 0, 1, 0.01F), input_of(data, first + 1, 0, 1, 0.01F)};
      const auto results = (*trainer)->run(steps);
      ASSERT_TRUE(results) << results.error().message;
    };
    const auto state = [&] {
      std::vector<std::vector<float>> all;
      for (const model::StateTensor& tensor : (*trainer)->state())
        all.emplace_back(tensor.values.device_data(), tensor.values.device_data() + tensor.values.size());
      return all;
    };
    run(0);
    const auto before = state();
    std::atomic<unsigned> calls = 0;
    std::atomic<bool> unchanged = true;
    (*trainer)->before_next_update([&]() -> Status {
      ++calls;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
      if (calls == 1) unchanged = state() == before;
      return {};
    });
    run(2);  // The one in which a graph is recorded.
    EXPECT_GT(calls, 0U);
    EXPECT_TRUE(unchanged);
    EXPECT_NE(state(), before);
    const unsigned called = calls;
    run(4);
    EXPECT_EQ(calls, called) << "a later run";
  }
}

/// Each rank's rows make running statistics of their own; there is one model to evaluate.
TEST(Trainer, data_parallel_ranks_evaluate_the_same_model) {
  const model::ModelOptions model =
      model::CnnOptions{.image = {6, 6, 1}, .stages = {{4}}, .batch_norm = true, .hidden = {}, .classes = 3};
  std::mt19937_64 random(test::seed());
  std::normal_distribution<float> normal;
  std::vector<float> images(8 * 36);
  std::ranges::generate(images, [&] { return normal(random); });
  const std::vector<std::int32_t> targets{0, 1, 2, 0, 1, 2, 0, 1};
  std::vector<ranks::Communicator> ends = std::move(*ranks::Communicator::threads(2));
  std::vector<Evaluation> evaluations(2);
  std::vector<std::thread> threads;
  for (unsigned rank = 0; rank < 2; ++rank) {
    threads.emplace_back([&, rank] {
      auto trainer =
          Trainer::create(device::Device::cpu(rank), options_for(model, 4, "overlap"), {.data = &ends[rank]});
      ASSERT_TRUE(trainer) << trainer.error().message;
      const StepInput step{.images = std::span(images).subspan(rank * std::size_t{144}, 144),
                           .targets = std::span(targets).subspan(rank * std::size_t{4}, 4),
                           .learning_rate = 0.1F};
      ASSERT_TRUE((*trainer)->run({&step, 1}));
      const auto evaluation = (*trainer)->evaluate({.images = images, .targets = targets});
      ASSERT_TRUE(evaluation) << evaluation.error().message;
      evaluations[rank] = *evaluation;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_GT(evaluations[0].loss, 0);
  EXPECT_EQ(evaluations[0].loss, evaluations[1].loss);
  EXPECT_EQ(evaluations[0].correct, evaluations[1].correct);
}

class OneDevice : public ::testing::TestWithParam<std::tuple<std::string, bool>> {};
TEST_P(OneDevice, schedules_end_with_the_same_weights) {
  const auto& [schedule, clips] = GetParam();
  for (const model::ModelOptions& model : {model::ModelOptions(small_gpt()), model::ModelOptions(small_mlp())}) {
    const Data data = random_data(model, 4, 10, test::seed());
    TrainerOptions plain = options_for(model, 4, "conventional");
    plain.window = 1;
    plain.optimizer.clip = clips ? 0.5F : 0;
    TrainerOptions other = plain;
    other.schedule = schedule;
    other.window = 4;
    // Costs with which dW go beside, and some into the next forward pass.
    Step costs = estimate_step(model, model::DataType::kF32, 4, {});
    for (Layer& layer : costs.layers) {
      for (Cost* cost : {&layer.forward, &layer.output_gradient, &layer.weight_gradient}) {
        if (cost->us > 0) *cost = {10, 0.4};
      }
      layer.weight_gradient.us = std::holds_alternative<model::GptOptions>(model) ? 12 : 20;
      layer.update.us = 1;
    }
    other.costs = costs;
    const Trained expected = train_all({plain}, data);
    const Trained trained = train_all({other}, data);
    expect_equal(expected, trained);
    if (schedule == "multi-stream") {
      EXPECT_EQ(trained.choice.find(" 0 dW beside"), std::string::npos) << trained.choice;
      if (!clips) {
        EXPECT_EQ(trained.choice.find(" 0 of them delayed"), std::string::npos) << trained.choice;
      }
    }
  }
}
INSTANTIATE_TEST_SUITE_P(All, OneDevice,
                         ::testing::Combine(::testing::ValuesIn(schedules_of(Family::kOneDevice)), ::testing::Bool()));

class DataParallel : public ::testing::TestWithParam<std::tuple<std::string, bool>> {};
TEST_P(DataParallel, schedules_end_with_the_same_weights) {
  const auto& [schedule, clips] = GetParam();
  for (const model::ModelOptions& model : {model::ModelOptions(small_gpt()), model::ModelOptions(small_mlp())}) {
    const Data data = random_data(model, 8, 6, test::seed());
    TrainerOptions plain = options_for(model, 2, "no-overlap");
    plain.window = 1;
    plain.optimizer.clip = clips ? 0.5F : 0;
    TrainerOptions other = plain;
    other.schedule = schedule;
    other.window = 4;
    other.plan.message_bytes = 1024;  // So that some are slices, and some of several layers.
    const Trained trained = train_all({other, 1, 4}, data);
    expect_equal(train_all({plain, 1, 4}, data), trained);
    // One device with all the rows adds up in another order.
    TrainerOptions alone = options_for(model, 8, "conventional");
    alone.optimizer.clip = plain.optimizer.clip;
    expect_near(train_all({alone}, data), trained, kRounding);
  }
}
INSTANTIATE_TEST_SUITE_P(All, DataParallel,
                         ::testing::Combine(::testing::ValuesIn(schedules_of(Family::kDataParallel)),
                                            ::testing::Bool()));

class Pipelines : public ::testing::TestWithParam<std::tuple<std::string, unsigned>> {};
TEST_P(Pipelines, schedules_end_with_the_same_weights) {
  const auto& [schedule, stages] = GetParam();
  for (const model::ModelOptions& model : {model::ModelOptions(small_gpt()), model::ModelOptions(small_mlp())}) {
    const Data data = random_data(model, 12, 6, test::seed());
    TrainerOptions plain = options_for(model, 2, "conventional");
    plain.micro_batches = 6;
    TrainerOptions other = plain;
    other.schedule = schedule;
    other.window = 2;
    expect_equal(train_all({plain}, data), train_all({other, stages, 1}, data));
  }
}
INSTANTIATE_TEST_SUITE_P(All, Pipelines,
                         ::testing::Combine(::testing::ValuesIn(schedules_of(Family::kPipeline)),
                                            ::testing::Values(1U, 2U, 4U)));

class Hybrid : public ::testing::TestWithParam<std::string> {};
TEST_P(Hybrid, pipelines_of_data_parallel_stages_end_with_the_same_weights) {
  for (const bool clips : {false, true}) {
    const model::ModelOptions model = small_gpt();
    const Data data = random_data(model, 12, 5, test::seed());
    TrainerOptions plain = options_for(model, 2, "no-overlap");
    plain.micro_batches = 3;
    plain.optimizer.clip = clips ? 0.5F : 0;
    TrainerOptions other = plain;
    other.schedule = GetParam();
    other.window = 2;
    const Trained expected = train_all({plain, 1, 2}, data);
    const Trained trained = train_all({other, 2, 2}, data);
    if (clips) {
      expect_near(expected, trained, kRounding);  // Squares are added up by stage.
    } else {
      expect_equal(expected, trained);
    }
  }
}
INSTANTIATE_TEST_SUITE_P(All, Hybrid, ::testing::ValuesIn(schedules_of(Family::kPipeline)));

}  // namespace
}  // namespace dunnock::training
