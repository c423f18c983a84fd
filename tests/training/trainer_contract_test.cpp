// What the trainer promises besides correct weights: errors in words that leave it usable, NaN shown as such, lost
// ranks noticed, graphs and windows of any length with the same bits, and what it reports about its runs.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <limits>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "dunnock/training/trainer.hpp"
#include "support/seed.hpp"
#include "training/runs.hpp"

namespace dunnock::test {
namespace {

using model::ModelOptions;
using training::Family;
using training::StepInput;
using training::Trainer;
using training::TrainerOptions;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

ModelOptions small_gpt() {
  return model::GptOptions{.vocabulary = 29, .context = 6, .layers = 2, .heads = 2, .width = 8, .mlp_ratio = 2};
}
ModelOptions small_mlp() { return model::MlpOptions{.inputs = 7, .hidden = {9, 8, 6}, .classes = 5}; }
ModelOptions small_cnn() {
  return model::CnnOptions{.image = {6, 5, 2}, .stages = {{4}, {3}}, .batch_norm = true, .hidden = {5}, .classes = 3};
}

TrainerOptions options_of(const ModelOptions& model, const std::string& schedule = "conventional") {
  return {.model = model,
          .rows = 2,
          .seed = 3,
          .schedule = schedule,
          .threads = 1,
          .plan = {.message_bytes = 512},
          .costs = training::estimate_step(model, model::DataType::kF32, 2, {})};
}

std::unique_ptr<Trainer> trainer_of(const TrainerOptions& options, const RankOfGrid& rank = {}) {
  auto trainer = Trainer::create(device::Device::cpu(rank.number), options, rank.ranks);
  EXPECT_TRUE(trainer) << trainer.error().message;
  return trainer ? std::move(*trainer) : nullptr;
}

std::vector<Inputs> batches_of(const ModelOptions& model, std::size_t rows, unsigned count, std::uint64_t number = 41) {
  auto random = generator(number);
  std::vector<Inputs> inputs;
  for (unsigned i = 0; i < count; ++i) inputs.emplace_back(random_batch(model, rows, random));
  return inputs;
}

void expect_invalid(const Status& status, const std::string& word) {
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, ErrorCode::kInvalidArgument) << status.error().message;
  EXPECT_NE(status.error().message.find(word), std::string::npos) << status.error().message;
}
template <class T>
Status status_of(const Result<T>& result) {
  if (!result) return tl::unexpected(result.error());
  return {};
}

// ----- wrong arguments ----------------------------------------------------------------------------------------------

TEST(TrainerContract, steps_that_do_not_fit_are_refused_and_nothing_is_changed) {
  for (const ModelOptions& model : {small_gpt(), small_mlp()}) {
    const auto trainer = trainer_of(options_of(model));
    const auto untouched = trainer_of(options_of(model));
    const std::vector<Inputs> inputs = batches_of(model, 2, 1);
    const StepInput sound = inputs[0].part(0, 1, 0.01F);
    const auto refused = [&](const StepInput& step, const std::string& word) {
      expect_invalid(status_of(trainer->run({&step, 1})), word);
      if (step.targets.size() == sound.targets.size()) expect_invalid(status_of(trainer->evaluate(step)), word);
    };
    const bool is_gpt = sound.images.empty();
    StepInput bad = sound;
    bad.targets = sound.targets.subspan(1);
    refused(bad, "targets");
    bad = sound;
    if (is_gpt) {
      bad.tokens = sound.tokens.subspan(1);
      refused(bad, "tokens");
      bad.tokens = {};
      refused(bad, "tokens");
    } else {
      bad.images = sound.images.subspan(1);
      refused(bad, "image values");
    }
    for (const std::int32_t number : {-1, -100, is_gpt ? 29 : 5, std::numeric_limits<std::int32_t>::max()}) {
      std::vector<std::int32_t> targets(sound.targets.begin(), sound.targets.end());
      targets.back() = number;
      bad = sound;
      bad.targets = targets;
      refused(bad, "target " + std::to_string(number));
      if (!is_gpt) continue;
      std::vector<std::int32_t> tokens(sound.tokens.begin(), sound.tokens.end());
      tokens.front() = number;
      bad = sound;
      bad.tokens = tokens;
      refused(bad, "token " + std::to_string(number));
    }
    const std::vector<StepInput> many(5, sound);
    expect_invalid(status_of(trainer->run(many)), "at most 4 steps");
    const auto none = trainer->run({});
    ASSERT_TRUE(none);
    EXPECT_TRUE(none->empty());
    std::vector<std::vector<float>> whole(trainer->whole_state().size());
    whole.pop_back();
    expect_invalid(trainer->load(whole), "tensors, expected");
    whole.emplace_back();
    whole.front().resize(trainer->state().front().values.size(), 1.0F);
    whole.back().resize(1);
    expect_invalid(trainer->load(whole), "has 1 values, expected");
    EXPECT_EQ(state_of(*trainer), state_of(*untouched));
    EXPECT_EQ(trainer->steps_done(), 0U);
    // And it goes on as if nothing had been.
    ASSERT_TRUE(trainer->run({&sound, 1}));
    ASSERT_TRUE(untouched->run({&sound, 1}));
    EXPECT_EQ(state_of(*trainer), state_of(*untouched));
  }
}

TEST(TrainerContract, options_that_do_not_fit_are_refused) {
  const TrainerOptions sound = options_of(small_mlp());
  const auto refused = [](const TrainerOptions& options, const std::string& word) {
    expect_invalid(status_of(Trainer::create(device::Device::cpu(), options)), word);
  };
  TrainerOptions bad = sound;
  bad.rows = 0;
  refused(bad, "at least one row");
  bad = sound;
  bad.micro_batches = 0;
  refused(bad, "micro-batch");
  bad = sound;
  bad.window = 0;
  refused(bad, "window");
  bad = sound;
  bad.optimizer = {.kind = training::OptimizerKind::kSgd, .nesterov = true};
  refused(bad, "nesterov");
  bad = sound;
  bad.model = model::MlpOptions{.inputs = 3, .hidden = {0}, .classes = 2};
  refused(bad, "hidden");
  bad = sound;
  bad.schedule = "no such schedule";
  const auto unknown = Trainer::create(device::Device::cpu(), bad);
  ASSERT_FALSE(unknown);
  EXPECT_EQ(unknown.error().code, ErrorCode::kNotFound);
  for (const training::ScheduleName& name : training::schedule_names())
    EXPECT_NE(unknown.error().message.find(name.name), std::string::npos) << name.name;
}

TEST(TrainerContract, schedules_that_do_not_fit_the_ranks_are_refused) {
  const auto refused = [](const Grid& grid, const std::string& schedule, const std::string& word, bool sums = true) {
    run_ranks(grid, [&](const RankOfGrid& rank) {
      training::Ranks ranks = rank.ranks;
      if (!sums) ranks.pipeline_sums = nullptr;
      expect_invalid(
          status_of(Trainer::create(device::Device::cpu(rank.number), options_of(small_mlp(), schedule), ranks)), word);
    });
  };
  const Grid data{.stages = 1, .data_ranks = 2};
  const Grid pipeline{.stages = 2, .data_ranks = 1};
  for (const std::string& name : schedules_of(Family::kOneDevice)) {
    refused(data, name, "is for one device");
    refused(pipeline, name, "is not for pipelines");
  }
  for (const std::string& name : schedules_of(Family::kDataParallel)) refused(pipeline, name, "is not for pipelines");
  for (const std::string& name : schedules_of(Family::kPipeline)) {
    refused(pipeline, name, "a communicator for their sums", false);
    refused({.stages = 5, .data_ranks = 1}, name, "can't be divided among 5 devices");
  }
}

// ----- lost ranks ---------------------------------------------------------------------------------------------------

class LostRank : public ::testing::TestWithParam<std::tuple<std::string, unsigned, unsigned>> {};

TEST_P(LostRank, is_noticed_by_the_others_within_the_timeout) {
  const auto& [schedule, stages, lost] = GetParam();
  const Grid grid{.stages = stages, .data_ranks = 2 / stages, .timeout = std::chrono::milliseconds(400)};
  const std::vector<Inputs> inputs = batches_of(small_mlp(), 4, 1);
  run_ranks(grid, [&](const RankOfGrid& rank) {
    TrainerOptions options = options_of(small_mlp(), schedule);
    options.micro_batches = 2;
    const auto trainer = trainer_of(options, rank);
    const StepInput input = inputs[0].part(0, 1, 0.01F);
    ASSERT_TRUE(trainer->run({&input, 1}));
    if (rank.number == lost) return;
    const auto begin = std::chrono::steady_clock::now();
    const auto results = trainer->run({&input, 1});
    const auto took = std::chrono::steady_clock::now() - begin;
    ASSERT_FALSE(results);
    EXPECT_EQ(results.error().code, ErrorCode::kPeerLost) << results.error().message;
    EXPECT_LT(took, std::chrono::seconds(10));
  });
}
INSTANTIATE_TEST_SUITE_P(All, LostRank,
                         ::testing::Combine(::testing::Values("gpipe", "1f1b", "zb-h1"), ::testing::Values(2U),
                                            ::testing::Values(0U, 1U)));
INSTANTIATE_TEST_SUITE_P(DataParallel, LostRank,
                         ::testing::Combine(::testing::ValuesIn(schedules_of(Family::kDataParallel)),
                                            ::testing::Values(1U), ::testing::Values(0U, 1U)));

// ----- NaN and infinities -------------------------------------------------------------------------------------------

TEST(TrainerContract, a_loss_that_is_no_number_is_shown) {
  for (const ModelOptions& model : {small_mlp(), small_cnn(), small_gpt()}) {
    for (const float clip : {0.0F, 1.0F}) {
      SCOPED_TRACE(to_string(model));
      TrainerOptions options = options_of(model);
      options.optimizer.clip = clip;
      std::vector<Inputs> inputs = batches_of(model, 2, 1);
      const auto check_run = [&](Trainer& trainer) {
        const StepInput step = inputs[0].part(0, 1, 0.01F);
        const auto results = trainer.run({&step, 1});
        ASSERT_TRUE(results) << results.error().message;
        EXPECT_TRUE(std::isnan(results->front().loss)) << results->front().loss;
        if (clip > 0) {
          EXPECT_TRUE(std::isnan(*results->front().gradient_norm)) << *results->front().gradient_norm;
        }
        // It does not go away.
        const auto again = trainer.run({&step, 1});
        ASSERT_TRUE(again);
        EXPECT_TRUE(std::isnan(again->front().loss)) << again->front().loss;
        const auto evaluation = trainer.evaluate(step);
        ASSERT_TRUE(evaluation);
        EXPECT_TRUE(std::isnan(evaluation->loss)) << evaluation->loss;
      };
      // A weight of the first layer, which all later layers must propagate.
      const auto trainer = trainer_of(options);
      std::vector<std::vector<float>> whole = std::move(*trainer->gather());
      std::ranges::fill(whole.front(), kNan);
      ASSERT_TRUE(trainer->load(whole));
      check_run(*trainer);
      // One value of an image.
      if (inputs[0].images.empty()) continue;
      inputs[0].images[inputs[0].images.size() / 2] = kNan;
      check_run(*trainer_of(options));
    }
  }
}

TEST(TrainerContract, a_loss_that_is_no_number_of_one_rank_is_that_of_all) {
  std::vector<Inputs> inputs = batches_of(small_mlp(), 4, 1);
  inputs[0].images.back() = kNan;  // Of rank 1.
  run_ranks({.stages = 1, .data_ranks = 2}, [&](const RankOfGrid& rank) {
    const auto trainer = trainer_of(options_of(small_mlp(), "overlap"), rank);
    const StepInput step = inputs[0].part(rank.data_rank, 2, 0.01F);
    const auto results = trainer->run({&step, 1});
    ASSERT_TRUE(results);
    EXPECT_TRUE(std::isnan(results->front().loss));
  });
}

// ----- windows and graphs -------------------------------------------------------------------------------------------

/// All steps in windows of these lengths, over and over; the states of all stages.
std::map<std::string, std::vector<float>> run_in(const TrainerOptions& options, const Grid& grid,
                                                 const std::vector<Inputs>& inputs, std::vector<unsigned> lengths,
                                                 std::vector<double>* losses = nullptr) {
  States all;
  std::mutex mutex;
  run_ranks(grid, [&](const RankOfGrid& rank) {
    const auto trainer = trainer_of(options, rank);
    ASSERT_NE(trainer, nullptr);
    std::size_t step = 0;
    for (std::size_t i = 0; step < inputs.size(); ++i) {
      std::vector<StepInput> window;
      while (window.size() < lengths[i % lengths.size()] && step < inputs.size())
        window.push_back(inputs[step++].part(rank.data_rank, grid.data_ranks, 0.01F));
      const auto results = trainer->run(window);
      ASSERT_TRUE(results) << results.error().message;
      ASSERT_EQ(results->size(), window.size());
      if (losses != nullptr && rank.number == 0) {
        for (const training::StepResult& result : *results) losses->push_back(result.loss);
      }
    }
    EXPECT_EQ(trainer->steps_done(), inputs.size());
    if (rank.data_rank > 0) return;  // Running statistics are those of the first.
    const std::lock_guard lock(mutex);
    all.merge(state_of(*trainer));
  });
  return all;
}

class AnyWindow : public ::testing::TestWithParam<std::string> {};

TEST_P(AnyWindow, and_graphs_of_them_give_the_same_bits) {
  const auto& names = training::schedule_names();
  const Family family = std::ranges::find(names, GetParam(), &training::ScheduleName::name)->family;
  Grid grid;
  if (family == Family::kDataParallel) grid.data_ranks = 2;
  if (family == Family::kPipeline) grid.stages = 2;
  for (const ModelOptions& model : {small_gpt(), small_mlp(), small_cnn()}) {
    for (const float clip : {0.0F, 0.5F}) {
      SCOPED_TRACE(to_string(model));
      TrainerOptions options = options_of(model, GetParam());
      options.window = 5;
      options.micro_batches = family == Family::kPipeline ? 2 : 1;
      options.optimizer.clip = clip;
      if (family == Family::kOneDevice) {
        // So that some dW go beside, and some into the next forward pass.
        for (training::Layer& layer : options.costs->layers) {
          for (training::Cost* cost : {&layer.forward, &layer.output_gradient, &layer.weight_gradient}) {
            if (cost->us > 0) *cost = {10, 0.4};
          }
          layer.weight_gradient.us = 20;
          layer.update.us = 1;
        }
      }
      const std::vector<Inputs> inputs = batches_of(model, 4, 11);
      if (family == Family::kOneDevice) options.rows = 4;
      std::vector<double> losses;
      const States expected = run_in(options, grid, inputs, {1}, &losses);
      std::vector<double> others;
      EXPECT_EQ(run_in(options, grid, inputs, {5, 1, 2}, &others), expected);
      EXPECT_EQ(others, losses);
      EXPECT_EQ(run_in(options, grid, inputs, {2, 3}), expected);
      if (family != Family::kOneDevice) continue;  // Others' ranks meet on the host.
      options.as_graph = true;
      others.clear();
      EXPECT_EQ(run_in(options, grid, inputs, {2, 2, 1, 3}, &others), expected);
      EXPECT_EQ(others, losses);
    }
  }
}
INSTANTIATE_TEST_SUITE_P(OneDevice, AnyWindow, ::testing::ValuesIn(schedules_of(Family::kOneDevice)));
INSTANTIATE_TEST_SUITE_P(DataParallel, AnyWindow, ::testing::ValuesIn(schedules_of(Family::kDataParallel)));
INSTANTIATE_TEST_SUITE_P(Pipeline, AnyWindow, ::testing::ValuesIn(schedules_of(Family::kPipeline)));

TEST(TrainerContract, costs_that_nobody_gives_are_measured) {
  TrainerOptions options = options_of(small_cnn(), "multi-stream");
  const std::vector<Inputs> inputs = batches_of(small_cnn(), 2, 6);
  options.optimizer.clip = 0.5F;  // The norm of all gradients comes before every update, whatever was measured.
  const States expected = run_in(options_of(small_cnn()), {}, inputs, {1});
  TrainerOptions plain = options;
  plain.schedule = "conventional";
  const States clipped = run_in(plain, {}, inputs, {1});
  EXPECT_NE(clipped, expected);
  options.costs.reset();
  EXPECT_EQ(run_in(options, {}, inputs, {4}), clipped);
}

// ----- what is told of a run ----------------------------------------------------------------------------------------

TEST(TrainerContract, measures_give_a_timeline_of_every_operation) {
  for (const std::string& schedule : schedules_of(Family::kOneDevice)) {
    TrainerOptions options = options_of(small_gpt(), schedule);
    options.measures = true;
    const auto trainer = trainer_of(options);
    expect_invalid(status_of(trainer->last_run()), "nothing has run");
    const std::vector<Inputs> inputs = batches_of(small_gpt(), 2, 3);
    for (const std::size_t steps : {3U, 2U}) {
      std::vector<StepInput> window;
      for (std::size_t i = 0; i < steps; ++i) window.push_back(inputs[i].part(0, 1, 0.01F));
      ASSERT_TRUE(trainer->run(window));
      const auto timeline = trainer->last_run();
      ASSERT_TRUE(timeline) << timeline.error().message;
      ASSERT_EQ(timeline->intervals.size(), trainer->rank_graph().ops().size());
      std::set<std::string> names;
      std::set<schedule::OpId> ops;
      for (const schedule::Interval& one : timeline->intervals) {
        EXPECT_LE(one.start_us, one.end_us);
        EXPECT_GE(one.start_us, 0);
        ops.insert(one.op);
        names.insert(trainer->rank_graph().op(one.op).name);
      }
      EXPECT_EQ(ops.size(), timeline->intervals.size());
      EXPECT_EQ(names.size(), timeline->intervals.size()) << "each operation has a name of its own";
      EXPECT_GT(timeline->makespan_us(), 0);
    }
  }
  const auto silent = trainer_of(options_of(small_gpt()));
  const std::vector<Inputs> inputs = batches_of(small_gpt(), 2, 1);
  const StepInput step = inputs[0].part(0, 1, 0.01F);
  ASSERT_TRUE(silent->run({&step, 1}));
  ASSERT_FALSE(silent->last_run());
  EXPECT_EQ(silent->last_run().error().code, ErrorCode::kInvalidArgument);
}

class Snapshot : public ::testing::TestWithParam<bool> {};

TEST_P(Snapshot, is_waited_for_once_before_the_next_run_changes_anything) {
  for (const ModelOptions& model : {small_gpt(), small_cnn()}) {
    for (const char* schedule : {"conventional", "multi-stream"}) {
      TrainerOptions options = options_of(model, schedule);
      options.as_graph = GetParam();
      const auto trainer = trainer_of(options);
      const std::vector<Inputs> inputs = batches_of(model, 2, 2);
      const std::vector<StepInput> window{inputs[0].part(0, 1, 0.01F), inputs[1].part(0, 1, 0.01F)};
      ASSERT_TRUE(trainer->run(window));
      for (int round = 0; round < 3; ++round) {
        const States before = state_of(*trainer);
        std::atomic<int> calls = 0;
        States at_call;
        trainer->before_next_update([&]() -> Status {
          if (++calls == 1) {
            std::this_thread::sleep_for(std::chrono::milliseconds(20));
            at_call = state_of(*trainer);
          }
          return {};
        });
        ASSERT_TRUE(trainer->evaluate(window[0]));  // Changes nothing.
        EXPECT_EQ(calls, 0);
        ASSERT_TRUE(trainer->run(window));
        EXPECT_EQ(calls, 1);
        EXPECT_EQ(at_call, before);
        ASSERT_TRUE(trainer->run(window));
        EXPECT_EQ(calls, 1) << "that run alone";
      }
    }
  }
}
INSTANTIATE_TEST_SUITE_P(EagerAndGraph, Snapshot, ::testing::Bool());

TEST(TrainerContract, a_snapshot_that_fails_stops_the_run_before_it_changes_anything) {
  const auto trainer = trainer_of(options_of(small_mlp()));
  const std::vector<Inputs> inputs = batches_of(small_mlp(), 2, 1);
  const StepInput step = inputs[0].part(0, 1, 0.01F);
  const States before = state_of(*trainer);
  trainer->before_next_update([]() -> Status { return make_error(ErrorCode::kIo, "the disk is gone"); });
  const auto results = trainer->run({&step, 1});
  ASSERT_FALSE(results);
  EXPECT_EQ(results.error().code, ErrorCode::kIo) << results.error().message;
  EXPECT_NE(results.error().message.find("the disk is gone"), std::string::npos) << results.error().message;
  EXPECT_EQ(state_of(*trainer), before);
}

// ----- evaluation ---------------------------------------------------------------------------------------------------

TEST(TrainerContract, evaluations_of_any_number_of_rows_are_those_of_the_double_models) {
  for (const ModelOptions& model : {small_gpt(), small_mlp()}) {
    auto random = generator(43);
    const DoubleWeights weights = random_weights(model, random);
    TrainerOptions options = options_of(model);
    options.rows = 3;
    const auto trainer = trainer_of(options);
    ASSERT_TRUE(load_weights_of(*trainer, weights));
    const States before = state_of(*trainer);
    for (const std::size_t rows : {1U, 3U, 4U, 7U}) {
      const DoubleBatch batch = random_batch(model, rows, random);
      const Inputs inputs(batch);
      const auto found = trainer->evaluate(inputs.part(0, 1, 0));
      ASSERT_TRUE(found) << found.error().message;
      EXPECT_EQ(found->targets, inputs.targets.size());
      EXPECT_NEAR(found->loss / static_cast<double>(found->targets), loss(model, weights, batch), 1e-5);
      // The largest logit, by the logits of each row.
      std::size_t correct = 0;
      const std::size_t a_row = inputs.targets.size() / rows;
      for (unsigned row = 0; row < rows; ++row) {
        const auto logits = trainer->logits(inputs.part(row, static_cast<unsigned>(rows), 0));
        ASSERT_TRUE(logits);
        const std::size_t classes = logits->size() / a_row;
        for (std::size_t i = 0; i < a_row; ++i) {
          const auto begin = logits->begin() + static_cast<std::ptrdiff_t>(i * classes);
          const auto largest = std::max_element(begin, begin + static_cast<std::ptrdiff_t>(classes));
          correct += largest - begin == inputs.targets[row * a_row + i] ? 1 : 0;
        }
      }
      EXPECT_EQ(found->correct, correct);
    }
    EXPECT_EQ(state_of(*trainer), before);
  }
}

TEST(TrainerContract, stages_evaluate_together_and_have_no_logits_of_their_own) {
  for (const ModelOptions& model : {small_gpt(), small_mlp(), small_cnn()}) {
    const std::vector<Inputs> inputs = batches_of(model, 5, 1);
    const StepInput input = inputs[0].part(0, 1, 0);
    const auto expected = trainer_of(options_of(model))->evaluate(input);
    ASSERT_TRUE(expected);
    run_ranks({.stages = 2, .data_ranks = 1}, [&](const RankOfGrid& rank) {
      const auto trainer = trainer_of(options_of(model, "1f1b"), rank);
      const auto found = trainer->evaluate(input);
      ASSERT_TRUE(found) << found.error().message;
      EXPECT_EQ(found->loss, expected->loss);
      EXPECT_EQ(found->correct, expected->correct);
      EXPECT_EQ(found->targets, expected->targets);
      expect_invalid(status_of(trainer->logits(input)), "can't compute logits alone");
    });
  }
}

}  // namespace
}  // namespace dunnock::test
