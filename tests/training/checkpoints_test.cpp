// Checkpoints of training runs: what is brought back goes on to the same bits; what cannot be brought back says so.
#include "dunnock/training/checkpoints.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "dunnock/index/checkpoint_format.hpp"
#include "dunnock/pmem/pool.hpp"
#include "support/seed.hpp"
#include "support/temporary_folder.hpp"
#include "training/runs.hpp"

namespace dunnock::test {
namespace {

using model::ModelOptions;
using training::Checkpoints;
using training::CheckpointsOptions;
using training::OptimizerOptions;
using training::Position;
using training::Trainer;
using training::TrainerOptions;

constexpr std::uint64_t kSetup = 77;
constexpr unsigned kSteps = 10;
/// Where the disk's own time is not the matter: survives the process, not the machine.
constexpr MediaKind kFast = MediaKind::kProcess;

/// A model, and batches of its steps.
struct Job {
  TrainerOptions options;
  std::vector<Inputs> inputs;
};

ModelOptions model_of(const std::string& kind) {
  if (kind == "mlp") return model::MlpOptions{.inputs = 13, .hidden = {17, 9, 11}, .classes = 5};
  if (kind == "large mlp") return model::MlpOptions{.inputs = 211, .hidden = {403, 301}, .classes = 10};
  if (kind == "cnn")
    return model::CnnOptions{
        .image = {9, 8, 2}, .stages = {{4, 3}, {5}}, .batch_norm = true, .hidden = {7}, .classes = 4};
  if (kind == "densenet")
    return model::DenseNetOptions{
        .image = {8, 8, 1}, .blocks = {2, 1}, .growth = 3, .stem_width = 5, .bottleneck = 2, .classes = 3};
  return model::GptOptions{.vocabulary = 29,
                           .context = 11,
                           .layers = 2,
                           .heads = 3,
                           .width = 12,
                           .positions = kind == "rotary gpt" ? model::Positions::kRotary : model::Positions::kLearned};
}

Job job_of(const std::string& kind, bool adamw, std::size_t rows = 6, unsigned micro_batches = 1) {
  auto random = generator(11);
  const ModelOptions model = model_of(kind);
  Job job{.options = {.model = model,
                      .rows = rows / micro_batches,
                      .micro_batches = micro_batches,
                      .seed = 5,
                      .optimizer = {.kind = adamw ? training::OptimizerKind::kAdamw : training::OptimizerKind::kSgd,
                                    .weight_decay = 0.1F,
                                    .momentum = adamw ? 0 : 0.9F},
                      .window = 2,
                      .threads = 1,
                      .plan = {},
                      .costs = {}},
          .inputs = {}};
  for (unsigned step = 0; step < kSteps; ++step) job.inputs.emplace_back(random_batch(model, rows, random));
  return job;
}

std::unique_ptr<Trainer> trainer_of(const TrainerOptions& options, const RankOfGrid& rank = {}) {
  auto trainer = Trainer::create(device::Device::cpu(rank.number), options, rank.ranks);
  EXPECT_TRUE(trainer) << trainer.error().message;
  return trainer ? std::move(*trainer) : nullptr;
}

/// Steps first ... last - 1; their losses.
std::vector<double> train(Trainer& trainer, const Job& job, unsigned first, unsigned last, unsigned rank = 0,
                          unsigned ranks = 1, float learning_rate = 0.01F) {
  std::vector<double> losses;
  std::vector<training::StepInput> window;
  for (unsigned step = first; step < last; ++step) {
    window.push_back(job.inputs[step].part(rank, ranks, learning_rate));
    if (window.size() < job.options.window && step + 1 < last) continue;
    const auto results = trainer.run(window);
    EXPECT_TRUE(results) << results.error().message;
    if (!results) return losses;
    for (const training::StepResult& result : *results) losses.push_back(result.loss);
    window.clear();
  }
  return losses;
}

Position position_at(std::uint64_t step) {
  return {.step = step, .setup = kSetup, .next_batch = {.setup = 3, .epoch = 1, .batch = step}, .best_loss_bits = 42};
}

Checkpoints open_or_fail(const CheckpointsOptions& options, Trainer& trainer, ranks::Communicator* world = nullptr) {
  auto opened = Checkpoints::open(options, trainer, world);
  EXPECT_TRUE(opened) << opened.error().message;
  return std::move(*opened);
}

/// Saves, and waits for it.
Result<std::optional<SaveReport>> save_now(Checkpoints& checkpoints, const Position& position) {
  if (auto before = checkpoints.save(position); !before) return before;
  return checkpoints.wait();
}

// ----- exact --------------------------------------------------------------------------------------------------------

class ExactResume : public ::testing::TestWithParam<std::tuple<std::string, bool, std::uint64_t>> {};

TEST_P(ExactResume, ends_with_the_bits_of_an_undisturbed_run) {
  const auto& [kind, adamw, staging_bytes] = GetParam();
  const Job job = job_of(kind, adamw);
  const auto undisturbed = trainer_of(job.options);
  std::vector<double> losses = train(*undisturbed, job, 0, kSteps);
  const States expected = state_of(*undisturbed);

  const TemporaryFolder folder;
  const CheckpointsOptions options{.path = folder.path("pool"),
                                   .chunk_bytes = 4096,
                                   .staging_bytes = staging_bytes,
                                   .media = staging_bytes == 0 ? std::nullopt : std::optional(kFast)};
  {
    const auto saved = trainer_of(job.options);
    Checkpoints checkpoints = open_or_fail(options, *saved);
    const auto none = checkpoints.resume(kSetup);
    ASSERT_TRUE(none) << none.error().message;
    EXPECT_FALSE(none->has_value());
    train(*saved, job, 0, 5);
    const auto before = checkpoints.save(position_at(5));
    ASSERT_TRUE(before) << before.error().message;
    EXPECT_FALSE(before->has_value());
    train(*saved, job, 5, kSteps);  // While it is saved, which changes nothing.
    EXPECT_EQ(state_of(*saved), expected);
    const auto report = checkpoints.wait();
    ASSERT_TRUE(report) << report.error().message;
    ASSERT_TRUE(report->has_value());
    EXPECT_EQ((*report)->version, 5U);
    EXPECT_EQ(checkpoints.versions(), std::vector<std::uint64_t>{5});
    EXPECT_TRUE(checkpoints.verify());
  }
  TrainerOptions other_seed = job.options;
  other_seed.seed = 99;
  const auto resumed = trainer_of(other_seed);
  EXPECT_NE(state_of(*resumed), expected);
  Checkpoints checkpoints = open_or_fail(options, *resumed);
  const auto position = checkpoints.resume(kSetup);
  ASSERT_TRUE(position) << position.error().message;
  ASSERT_TRUE(position->has_value());
  const Position wanted = position_at(5);
  EXPECT_EQ(std::memcmp(&**position, &wanted, sizeof(Position)), 0);
  EXPECT_EQ(resumed->steps_done(), 5U);
  losses.erase(losses.begin(), losses.begin() + 5);
  EXPECT_EQ(train(*resumed, job, 5, kSteps), losses);
  EXPECT_EQ(state_of(*resumed), expected);
}
INSTANTIATE_TEST_SUITE_P(All, ExactResume,
                         ::testing::Combine(::testing::Values("mlp", "large mlp", "gpt", "cnn", "densenet"),
                                            ::testing::Bool(), ::testing::Values(0, 1)));  // 1: the least that goes.

TEST(Checkpoints, of_every_step_are_kept_as_the_retention_says) {
  const Job job = job_of("mlp", true);
  const TemporaryFolder folder;
  const CheckpointsOptions options{
      .path = folder.path("pool"), .chunk_bytes = 4096, .media = kFast, .retention = {.keep_last = 2, .keep_every = 4}};
  const auto trainer = trainer_of(job.options);
  Checkpoints checkpoints = open_or_fail(options, *trainer);
  States at_last;
  for (unsigned step = 0; step < kSteps; ++step) {
    train(*trainer, job, step, step + 1);
    at_last = state_of(*trainer);
    const auto before = checkpoints.save(position_at(step + 1));
    ASSERT_TRUE(before) << before.error().message;
    if (step > 0) {
      ASSERT_TRUE(before->has_value());
      EXPECT_EQ((*before)->version, step);
    }
  }
  ASSERT_TRUE(checkpoints.wait());
  EXPECT_EQ(checkpoints.versions(), (std::vector<std::uint64_t>{4, 8, 9, 10}));
  // Back in the same trainer, after it has gone on.
  train(*trainer, job, 0, 3);
  const auto position = checkpoints.resume(kSetup);
  ASSERT_TRUE(position) << position.error().message;
  EXPECT_EQ((*position)->step, kSteps);
  EXPECT_EQ(state_of(*trainer), at_last);
}

TEST(Checkpoints, of_the_same_step_twice_are_refused_and_the_first_stays) {
  const Job job = job_of("mlp", true);
  const TemporaryFolder folder;
  const auto trainer = trainer_of(job.options);
  Checkpoints checkpoints = open_or_fail({.path = folder.path("pool"), .media = kFast}, *trainer);
  const States first = state_of(*trainer);
  ASSERT_TRUE(save_now(checkpoints, position_at(3)));
  train(*trainer, job, 0, 2);
  const auto again = save_now(checkpoints, position_at(3));
  ASSERT_FALSE(again);
  EXPECT_EQ(again.error().code, ErrorCode::kAlreadyExists) << again.error().message;
  ASSERT_TRUE(checkpoints.resume(kSetup));
  EXPECT_EQ(state_of(*trainer), first);
}

// ----- from an older one --------------------------------------------------------------------------------------------

CheckpointsOptions keeping_all(const TemporaryFolder& folder) {
  return {.path = folder.path("pool"), .chunk_bytes = 4096, .media = kFast, .retention = {.keep_last = 50}};
}

/// Checkpoints of steps 2, 4, ..., kSteps; the state after step 4.
States save_every_second(const Job& job, const CheckpointsOptions& options) {
  const auto trainer = trainer_of(job.options);
  Checkpoints checkpoints = open_or_fail(options, *trainer);
  States at_four;
  for (unsigned step = 0; step < kSteps; step += 2) {
    train(*trainer, job, step, step + 2);
    if (step == 2) at_four = state_of(*trainer);
    EXPECT_TRUE(save_now(checkpoints, position_at(step + 2)));
  }
  return at_four;
}

TEST(Checkpoints, of_an_older_step_go_on_from_there_and_newer_ones_go) {
  const Job job = job_of("gpt", true);
  const TemporaryFolder folder;
  const CheckpointsOptions options = keeping_all(folder);
  const States at_four = save_every_second(job, options);
  const auto trainer = trainer_of(job.options);
  train(*trainer, job, 0, kSteps);
  const States last = state_of(*trainer);
  Checkpoints checkpoints = open_or_fail(options, *trainer);
  const auto none = checkpoints.resume_from(5, kSetup);
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().code, ErrorCode::kNotFound);
  EXPECT_NE(none.error().message.find("2, 4, 6, 8, 10"), std::string::npos) << none.error().message;
  EXPECT_FALSE(checkpoints.resume_from(4, kSetup + 1));
  EXPECT_FALSE(checkpoints.verify(5));
  EXPECT_EQ(checkpoints.versions(), (std::vector<std::uint64_t>{2, 4, 6, 8, 10})) << "what is refused removes nothing";
  EXPECT_EQ(state_of(*trainer), last);

  EXPECT_TRUE(checkpoints.verify(4));
  const auto position = checkpoints.resume_from(4, kSetup);
  ASSERT_TRUE(position) << position.error().message;
  EXPECT_EQ(position->step, 4U);
  EXPECT_EQ(trainer->steps_done(), 4U);
  EXPECT_EQ(state_of(*trainer), at_four);
  EXPECT_EQ(checkpoints.versions(), (std::vector<std::uint64_t>{2, 4, 6, 8, 10})) << "to look is not to remove";
  ASSERT_TRUE(checkpoints.remove_newer(4));
  EXPECT_EQ(checkpoints.versions(), (std::vector<std::uint64_t>{2, 4}));
  train(*trainer, job, 4, 6);
  ASSERT_TRUE(save_now(checkpoints, position_at(6))) << "its step is free again";
  EXPECT_EQ(checkpoints.versions(), (std::vector<std::uint64_t>{2, 4, 6}));
  train(*trainer, job, 6, kSteps);
  EXPECT_EQ(state_of(*trainer), last);
}

TEST(Checkpoints, that_are_still_being_saved_are_waited_for_before_others_are_resumed) {
  const Job job = job_of("large mlp", true);
  const TemporaryFolder folder;
  const CheckpointsOptions options{.path = folder.path("pool"), .chunk_bytes = 4096, .retention = {.keep_last = 1}};
  const auto trainer = trainer_of(job.options);
  Checkpoints checkpoints = open_or_fail(options, *trainer);
  train(*trainer, job, 0, 2);
  ASSERT_TRUE(save_now(checkpoints, position_at(2)));
  train(*trainer, job, 2, 4);
  const States at_four = state_of(*trainer);
  ASSERT_TRUE(checkpoints.save(position_at(4)));
  const auto position = checkpoints.resume(kSetup);
  ASSERT_TRUE(position) << position.error().message;
  EXPECT_EQ((*position)->step, 4U);
  EXPECT_EQ(state_of(*trainer), at_four);
  const auto report = checkpoints.wait();
  ASSERT_TRUE(report && report->has_value()) << "its report is still to be had";
  EXPECT_EQ((*report)->version, 4U);
}

TEST(Checkpoints, of_a_manifest_that_is_damaged_are_told_and_others_resume) {
  const Job job = job_of("mlp", true);
  const TemporaryFolder folder;
  const CheckpointsOptions options = keeping_all(folder);
  const States at_four = save_every_second(job, options);
  {
    // Tensor names are in manifests alone; the last one that was written is that of the newest.
    auto pool = Pool::open(options.path);
    ASSERT_TRUE(pool) << pool.error().message;
    auto log = pool->open_region("training.data.log");
    ASSERT_TRUE(log);
    const std::string_view bytes(reinterpret_cast<const char*>(log->at(0)), log->bytes());
    std::vector<std::size_t> found;
    for (std::size_t at = bytes.find("training.position"); at != std::string_view::npos;
         at = bytes.find("training.position", at + 1))
      found.push_back(at);
    ASSERT_EQ(found.size(), 5U);
    *log->at(found.back()) ^= std::byte{1};
  }
  const auto trainer = trainer_of(job.options);
  Checkpoints checkpoints = open_or_fail(options, *trainer);
  EXPECT_EQ(checkpoints.versions(), (std::vector<std::uint64_t>{2, 4, 6, 8}));
  const auto newest = checkpoints.resume(kSetup);
  ASSERT_FALSE(newest);
  EXPECT_EQ(newest.error().code, ErrorCode::kCorrupt);
  ASSERT_TRUE(checkpoints.resume_from(4, kSetup));
  EXPECT_EQ(state_of(*trainer), at_four);
  ASSERT_TRUE(checkpoints.remove_newer(4));
  const auto again = checkpoints.resume(kSetup);
  ASSERT_TRUE(again) << again.error().message;
  EXPECT_EQ((*again)->step, 4U);
}

TEST(Checkpoints, when_the_newest_cannot_be_told_are_not_passed_over_in_silence) {
  const Job job = job_of("mlp", true);
  const TemporaryFolder folder;
  const CheckpointsOptions options = keeping_all(folder);
  const States at_four = save_every_second(job, options);
  {
    // The fifth line of the catalog is that of step 10.
    auto pool = Pool::open(options.path);
    ASSERT_TRUE(pool) << pool.error().message;
    auto catalog = pool->open_region("training.catalog");
    ASSERT_TRUE(catalog);
    auto* line = reinterpret_cast<std::uint64_t*>(catalog->at(kCatalogLinesOffset + 4 * kLineBytes));
    ASSERT_EQ(line[4], 10U);
    line[4] ^= 32;
  }
  const auto trainer = trainer_of(job.options);
  const States fresh = state_of(*trainer);
  Checkpoints checkpoints = open_or_fail(options, *trainer);
  EXPECT_EQ(checkpoints.versions(), (std::vector<std::uint64_t>{2, 4, 6, 8}));
  for (const Error& error : {checkpoints.resume(kSetup).error(), checkpoints.verify().error()}) {
    EXPECT_EQ(error.code, ErrorCode::kCorrupt);
    EXPECT_NE(error.message.find("2, 4, 6, 8"), std::string::npos) << error.message;
  }
  EXPECT_EQ(state_of(*trainer), fresh);
  ASSERT_TRUE(checkpoints.verify(4));
  ASSERT_TRUE(checkpoints.resume_from(4, kSetup));
  EXPECT_EQ(state_of(*trainer), at_four);
  EXPECT_FALSE(checkpoints.resume(kSetup)) << "nothing is settled yet";
  ASSERT_TRUE(checkpoints.remove_newer(4));
  // From here on all is as it should be.
  EXPECT_EQ(checkpoints.versions(), (std::vector<std::uint64_t>{2, 4}));
  const auto again = checkpoints.resume(kSetup);
  ASSERT_TRUE(again) << again.error().message;
  EXPECT_EQ((*again)->step, 4U);
}

TEST(OtherRanks, go_on_from_an_older_step_together) {
  const Job one = job_of("gpt", true, 6, 3);
  Job pipeline = one;
  pipeline.options.schedule = "1f1b";
  const TemporaryFolder folder;
  const CheckpointsOptions options = keeping_all(folder);
  const States at_four = save_every_second(one, options);
  run_ranks({.stages = 2, .data_ranks = 1}, [&](const RankOfGrid& rank) {
    const auto trainer = trainer_of(pipeline.options, rank);
    Checkpoints checkpoints = open_or_fail(options, *trainer, rank.world);
    const auto none = checkpoints.resume_from(3, kSetup);
    ASSERT_FALSE(none);
    EXPECT_NE(none.error().message.find("2, 4, 6, 8, 10"), std::string::npos) << "all are told";
    ASSERT_TRUE(checkpoints.resume_from(4, kSetup));
    EXPECT_EQ(trainer->steps_done(), 4U);
    for (const auto& [name, values] : state_of(*trainer)) EXPECT_EQ(values, at_four.at(name)) << name;
    ASSERT_TRUE(checkpoints.remove_newer(4));
    if (rank.number == 0) {
      EXPECT_EQ(checkpoints.versions(), (std::vector<std::uint64_t>{2, 4}));
    }
  });
}

// ----- on other ranks -----------------------------------------------------------------------------------------------

/// Steps of all ranks, with a checkpoint resumed before (if wanted) and one saved behind; the state of all of them.
States run_and_save(const Job& job, const Grid& grid, const std::string& path, unsigned first, unsigned last,
                    bool resumes) {
  States state;
  std::mutex mutex;
  run_ranks(grid, [&](const RankOfGrid& rank) {
    const auto trainer = trainer_of(job.options, rank);
    ASSERT_NE(trainer, nullptr);
    Checkpoints checkpoints = open_or_fail({.path = path, .chunk_bytes = 4096, .media = kFast}, *trainer, rank.world);
    if (resumes) {
      const auto position = checkpoints.resume(kSetup);
      ASSERT_TRUE(position) << position.error().message;
      ASSERT_TRUE(position->has_value());
      EXPECT_EQ((*position)->step, first);
      EXPECT_EQ(trainer->steps_done(), first);
    }
    train(*trainer, job, first, last, rank.data_rank, grid.data_ranks);
    const auto saved = save_now(checkpoints, position_at(last));
    ASSERT_TRUE(saved) << saved.error().message;
    EXPECT_EQ(saved->has_value(), rank.number == 0) << "rank 0 does the work";
    const std::lock_guard lock(mutex);
    for (const auto& [name, values] : state_of(*trainer)) {
      const auto [there, added] = state.try_emplace(name, values);
      if (!added) {
        EXPECT_EQ(there->second, values) << name;
      }
    }
  });
  return state;
}

class OtherRanks : public ::testing::TestWithParam<std::string> {};

TEST_P(OtherRanks, a_pipeline_and_one_device_resume_each_others_runs) {
  const Job one = job_of(GetParam(), true, 6, 3);
  Job pipeline = one;
  pipeline.options.schedule = "1f1b";
  const Grid alone{};
  const Grid two{.stages = 2, .data_ranks = 1};
  const TemporaryFolder folder;
  const States expected = run_and_save(one, alone, folder.path("undisturbed"), 0, 9, false);
  run_and_save(pipeline, two, folder.path("pool"), 0, 3, false);
  run_and_save(one, alone, folder.path("pool"), 3, 5, true);
  pipeline.options.schedule = "zb-v";  // Stages that are dealt otherwise.
  EXPECT_EQ(run_and_save(pipeline, two, folder.path("pool"), 5, 9, true), expected);
}
INSTANTIATE_TEST_SUITE_P(All, OtherRanks, ::testing::Values("mlp", "gpt", "rotary gpt", "cnn", "densenet"));

TEST(OtherRanks, one_device_resumes_data_parallel_ranks) {
  Job two = job_of("gpt", true, 6);
  two.options.schedule = "overlap";
  two.options.rows = 3;
  const Job one = job_of("gpt", true, 6);
  const TemporaryFolder folder;
  const States saved = run_and_save(two, {.stages = 1, .data_ranks = 2}, folder.path("pool"), 0, 4, false);
  const auto trainer = trainer_of(one.options);
  {
    Checkpoints checkpoints = open_or_fail({.path = folder.path("pool"), .media = kFast}, *trainer);
    ASSERT_TRUE(checkpoints.resume(kSetup));
    EXPECT_EQ(state_of(*trainer), saved);
  }
  // And the other way.
  train(*trainer, one, 4, 6);
  {
    Checkpoints checkpoints = open_or_fail({.path = folder.path("pool"), .media = kFast}, *trainer);
    ASSERT_TRUE(save_now(checkpoints, position_at(6)));
  }
  EXPECT_EQ(run_and_save(two, {.stages = 1, .data_ranks = 2}, folder.path("pool"), 6, 8, true).size(), saved.size());
}

TEST(OtherRanks, stages_gather_alike_where_the_last_has_as_many_tensors_as_there_are) {
  // Rotary positions: the first stage has the table alone, and the last one all others and a copy of the table.
  Job job = job_of("rotary gpt", true, 6, 2);
  job.options.schedule = "gpipe";
  training::Step costs = training::estimate_step(job.options.model, model::DataType::kF32, 3, {});
  costs.layers.front().forward.us = 1e6;
  job.options.costs = costs;
  const TemporaryFolder folder;
  const States saved = run_and_save(job, {.stages = 2, .data_ranks = 1}, folder.path("pool"), 0, 2, false);
  const auto trainer = trainer_of(job_of("rotary gpt", true, 6, 2).options);
  Checkpoints checkpoints = open_or_fail({.path = folder.path("pool"), .media = kFast}, *trainer);
  ASSERT_TRUE(checkpoints.resume(kSetup));
  EXPECT_EQ(state_of(*trainer), saved);
}

TEST(OtherRanks, wait_for_a_save_longer_than_for_any_message) {
  Job job = job_of("large mlp", true, 6);
  job.options.schedule = "overlap";
  job.options.rows = 3;
  const TemporaryFolder folder;
  constexpr std::chrono::milliseconds kTimeout{200};
  std::vector<ranks::Communicator> worlds = std::move(*ranks::Communicator::threads(2, {.timeout = kTimeout}));
  run_ranks({.stages = 1, .data_ranks = 2}, [&](const RankOfGrid& rank) {
    const auto trainer = trainer_of(job.options, rank);
    // Chunks so small that a save takes long.
    Checkpoints checkpoints = open_or_fail({.path = folder.path("pool"), .capacity_bytes = 64 << 20, .chunk_bytes = 64},
                                           *trainer, &worlds[rank.number]);
    const auto begin = std::chrono::steady_clock::now();
    const auto saved = save_now(checkpoints, position_at(1));
    ASSERT_TRUE(saved) << saved.error().message;
    const Status verified = checkpoints.verify();
    ASSERT_TRUE(verified) << verified.error().message;
    const auto resumed = checkpoints.resume(kSetup);
    ASSERT_TRUE(resumed) << resumed.error().message;
    const auto took = std::chrono::steady_clock::now() - begin;
    EXPECT_GT(took, kTimeout) << "or this shows nothing: smaller chunks, or more of them";
  });
}

TEST(OtherRanks, all_hear_that_a_pool_cannot_be_opened) {
  const Job job = job_of("mlp", true);
  Job pipeline = job;
  pipeline.options.schedule = "gpipe";
  run_ranks({.stages = 2, .data_ranks = 1}, [&](const RankOfGrid& rank) {
    const auto trainer = trainer_of(pipeline.options, rank);
    const auto opened = Checkpoints::open({.path = "/nowhere/at/all/pool"}, *trainer, rank.world);
    ASSERT_FALSE(opened);
    EXPECT_NE(opened.error().message.find("/nowhere/at/all"), std::string::npos) << opened.error().message;
  });
}

// ----- what cannot be resumed ---------------------------------------------------------------------------------------

TEST(Checkpoints, of_another_setup_are_refused_and_nothing_is_changed) {
  const Job job = job_of("mlp", true);
  const TemporaryFolder folder;
  const CheckpointsOptions options{.path = folder.path("pool"), .media = kFast};
  const auto trainer = trainer_of(job.options);
  Checkpoints checkpoints = open_or_fail(options, *trainer);
  ASSERT_TRUE(save_now(checkpoints, position_at(4)));
  train(*trainer, job, 0, 2);
  const States before = state_of(*trainer);
  const auto resumed = checkpoints.resume(kSetup + 1);
  ASSERT_FALSE(resumed);
  EXPECT_EQ(resumed.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(resumed.error().message.find("step 4"), std::string::npos) << resumed.error().message;
  EXPECT_EQ(state_of(*trainer), before);
  EXPECT_EQ(trainer->steps_done(), 2U);
}

TEST(Checkpoints, of_other_tensors_are_refused_and_nothing_is_changed) {
  const TemporaryFolder folder;
  const CheckpointsOptions options{.path = folder.path("pool"), .media = kFast};
  const Job job = job_of("mlp", true);
  {
    const auto trainer = trainer_of(job.options);
    Checkpoints checkpoints = open_or_fail(options, *trainer);
    ASSERT_TRUE(save_now(checkpoints, position_at(4)));
  }
  Job wider = job;
  std::get<model::MlpOptions>(wider.options.model).hidden = {17, 10, 11};
  Job deeper = job;
  std::get<model::MlpOptions>(deeper.options.model).hidden = {17, 9, 11, 5};
  Job other = job_of("gpt", true);
  for (const auto& [changed, code] :
       {std::pair(wider, ErrorCode::kInvalidArgument), std::pair(deeper, ErrorCode::kNotFound),
        std::pair(other, ErrorCode::kNotFound)}) {
    const auto trainer = trainer_of(changed.options);
    const States before = state_of(*trainer);
    Checkpoints checkpoints = open_or_fail(options, *trainer);
    const auto resumed = checkpoints.resume(kSetup);
    ASSERT_FALSE(resumed);
    EXPECT_EQ(resumed.error().code, code) << resumed.error().message;
    EXPECT_EQ(state_of(*trainer), before);
    EXPECT_EQ(trainer->steps_done(), 0U);
  }
}

TEST(Checkpoints, damaged_ones_are_never_taken_for_sound_ones) {
  const TemporaryFolder folder;
  const Job job = job_of("cnn", true);
  const CheckpointsOptions options{
      .path = folder.path("pool"), .capacity_bytes = 16 << 20, .chunk_bytes = 4096, .media = kFast};
  States saved;
  {
    const auto trainer = trainer_of(job.options);
    Checkpoints checkpoints = open_or_fail(options, *trainer);
    train(*trainer, job, 0, 2);
    ASSERT_TRUE(save_now(checkpoints, position_at(2)));
    saved = state_of(*trainer);
  }
  const std::string sound = file_bytes(options.path);
  std::vector<std::size_t> written;
  for (std::size_t i = 0; i < sound.size(); ++i) {
    if (sound[i] != 0) written.push_back(i);
  }
  auto random = generator(12);
  unsigned refused = 0;
  TrainerOptions other_seed = job.options;
  other_seed.seed = 6;
  const auto trainer = trainer_of(other_seed);
  const States fresh = state_of(*trainer);
  for (int round = 0; round < 40; ++round) {
    const std::size_t at = written[random() % written.size()];
    SCOPED_TRACE("byte " + std::to_string(at));
    const CheckpointsOptions damaged{.path = folder.path("damaged"), .chunk_bytes = 4096, .media = kFast};
    std::filesystem::copy_file(options.path, damaged.path, std::filesystem::copy_options::overwrite_existing);
    {
      std::fstream file(damaged.path, std::ios::binary | std::ios::in | std::ios::out);
      file.seekp(static_cast<std::streamoff>(at));
      file.put(static_cast<char>(sound[at] ^ static_cast<char>(1 << random() % 8)));
    }
    const States before = state_of(*trainer);
    auto opened = Checkpoints::open(damaged, *trainer);
    if (!opened) {
      ++refused;
      continue;
    }
    const bool verified = opened->verify().has_value();
    const auto resumed = opened->resume(kSetup);
    if (!resumed) {
      ++refused;
      EXPECT_FALSE(verified);
      EXPECT_FALSE(resumed.error().message.empty());
      EXPECT_EQ(state_of(*trainer), before) << "nothing is changed";
      continue;
    }
    if (resumed->has_value()) {
      EXPECT_EQ(state_of(*trainer), saved);
    } else {
      ADD_FAILURE() << "a checkpoint that was there is passed over without a word";
    }
  }
  EXPECT_GT(refused, 10U) << "most of what is written is tensors";
}

TEST(Checkpoints, one_whose_manifest_is_damaged_is_said_to_be_damaged_and_no_older_one_takes_its_place) {
  const TemporaryFolder folder;
  const Job job = job_of("cnn", true);
  const CheckpointsOptions options{
      .path = folder.path("pool"), .capacity_bytes = 16 << 20, .chunk_bytes = 4096, .media = kFast};
  const auto trainer = trainer_of(job.options);
  {
    Checkpoints checkpoints = open_or_fail(options, *trainer);
    for (std::uint64_t step = 1; step <= 3; ++step) ASSERT_TRUE(save_now(checkpoints, position_at(step)));
  }
  // Steps 2 and 3 are kept, and the manifest of step 3 is the last one in the file.
  const std::string bytes = file_bytes(options.path);
  const std::size_t manifest = bytes.rfind("DNNKMAN1");
  ASSERT_NE(manifest, std::string::npos);
  {
    std::fstream file(options.path, std::ios::binary | std::ios::in | std::ios::out);
    file.seekp(static_cast<std::streamoff>(manifest + 20));
    file.put(static_cast<char>(bytes[manifest + 20] ^ 1));
  }
  Checkpoints checkpoints = open_or_fail(options, *trainer);
  EXPECT_EQ(checkpoints.versions(), std::vector<std::uint64_t>{2});
  const auto expect_damage = [](const Error& error) {
    EXPECT_EQ(error.code, ErrorCode::kCorrupt);
    EXPECT_EQ(error.message.find("there is no checkpoint"), std::string::npos) << error.message;
  };
  const auto of_step = checkpoints.resume_from(3, kSetup);
  ASSERT_FALSE(of_step);
  expect_damage(of_step.error());
  EXPECT_NE(of_step.error().message.find("the checkpoint of step 3 is damaged"), std::string::npos)
      << of_step.error().message;
  const auto newest = checkpoints.resume(kSetup);
  ASSERT_FALSE(newest);
  expect_damage(newest.error());
  expect_damage(checkpoints.verify().error());
  expect_damage(checkpoints.verify(3).error());
  EXPECT_EQ(checkpoints.resume_from(1, kSetup).error().code, ErrorCode::kNotFound) << "that one was never damaged";
  const auto older = checkpoints.resume_from(2, kSetup);
  ASSERT_TRUE(older) << older.error().message;
  ASSERT_TRUE(checkpoints.remove_newer(2));
  EXPECT_TRUE(checkpoints.resume(kSetup));
}

// ----- what is written ----------------------------------------------------------------------------------------------

SaveReport report_or_fail(Result<std::optional<SaveReport>> report) {
  EXPECT_TRUE(report) << report.error().message;
  EXPECT_TRUE(report && report->has_value());
  return report && report->has_value() ? **report : SaveReport{};
}

TEST(Checkpoints, what_has_not_changed_is_not_written_again) {
  const TemporaryFolder folder;
  const Job job = job_of("large mlp", true);
  const auto trainer = trainer_of(job.options);
  Checkpoints checkpoints = open_or_fail({.path = folder.path("pool"), .chunk_bytes = 4096}, *trainer);
  train(*trainer, job, 0, 1);
  const SaveReport whole = report_or_fail(save_now(checkpoints, position_at(1)));
  EXPECT_GT(whole.chunks_written, whole.chunks * 9 / 10);
  // Nothing but the position.
  const SaveReport again = report_or_fail(save_now(checkpoints, position_at(2)));
  EXPECT_EQ(again.chunks, whole.chunks);
  EXPECT_LE(again.chunks_written, 1U);
  EXPECT_LT(again.bytes_written, whole.bytes_written / 10) << "a manifest";
  // Both moments, but not the weights.
  train(*trainer, job, 1, 2, 0, 1, 0);
  const SaveReport moments = report_or_fail(save_now(checkpoints, position_at(3)));
  EXPECT_GT(moments.chunks_written, whole.chunks / 2);
  EXPECT_LE(moments.chunks_written, whole.chunks * 2 / 3 + 2);
}

TEST(Checkpoints, without_learning_only_the_position_is_written) {
  const TemporaryFolder folder;
  Job job = job_of("large mlp", false);
  job.options.optimizer.momentum = 0;
  const auto trainer = trainer_of(job.options);
  Checkpoints checkpoints = open_or_fail({.path = folder.path("pool"), .chunk_bytes = 4096}, *trainer);
  report_or_fail(save_now(checkpoints, position_at(0)));
  train(*trainer, job, 0, 4, 0, 1, 0);
  EXPECT_LE(report_or_fail(save_now(checkpoints, position_at(4))).chunks_written, 1U);
}

/// Kernels read copies of the weights there, which a checkpoint does not have.
TEST(Checkpoints, of_bf16_runs_resume_exactly) {
  const TemporaryFolder folder;
  Job job = job_of("gpt", true);
  job.options.type = model::DataType::kBf16;
  const auto undisturbed = trainer_of(job.options);
  train(*undisturbed, job, 0, 4);
  const std::vector<double> expected = train(*undisturbed, job, 4, kSteps);
  {
    const auto first = trainer_of(job.options);
    Checkpoints checkpoints = open_or_fail({.path = folder.path("pool"), .media = kFast}, *first);
    train(*first, job, 0, 4);
    report_or_fail(save_now(checkpoints, position_at(4)));
  }
  TrainerOptions other = job.options;
  other.seed = 6;
  const auto second = trainer_of(other);
  Checkpoints checkpoints = open_or_fail({.path = folder.path("pool"), .media = kFast}, *second);
  ASSERT_TRUE(checkpoints.resume(kSetup));
  EXPECT_EQ(train(*second, job, 4, kSteps), expected);
  EXPECT_EQ(state_of(*second), state_of(*undisturbed));
}

TEST(Checkpoints, of_weights_that_are_no_numbers_are_refused) {
  const TemporaryFolder folder;
  Job job = job_of("mlp", false);
  job.options.window = 1;
  const auto trainer = trainer_of(job.options);
  Checkpoints checkpoints = open_or_fail({.path = folder.path("pool"), .media = kFast}, *trainer);
  train(*trainer, job, 0, 1);
  report_or_fail(save_now(checkpoints, position_at(1)));
  const auto sound = state_of(*trainer);
  // The loss of this step is that of sound weights; what the update makes of them is not.
  for (const double loss : train(*trainer, job, 1, 2, 0, 1, INFINITY)) EXPECT_TRUE(std::isfinite(loss));
  const auto refused = checkpoints.save(position_at(2));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(refused.error().message.find("not finite after step 2"), std::string::npos) << refused.error().message;
  EXPECT_EQ(checkpoints.versions(), (std::vector<std::uint64_t>{1}));
  const auto resumed = checkpoints.resume(kSetup);
  ASSERT_TRUE(resumed);
  EXPECT_EQ((*resumed)->step, 1U);
  EXPECT_EQ(state_of(*trainer), sound);
}

TEST(Checkpoints, a_path_that_cannot_be_is_an_error) {
  const auto trainer = trainer_of(job_of("mlp", false).options);
  const auto opened = Checkpoints::open({.path = "/tmp/" + std::string(5000, 'a')}, *trainer);
  ASSERT_FALSE(opened);
}

TEST(Checkpoints, a_full_pool_fails_the_save_and_leaves_what_is_there) {
  const TemporaryFolder folder;
  const Job job = job_of("large mlp", true);
  const CheckpointsOptions options{.path = folder.path("pool"),
                                   .capacity_bytes = 16 << 20,
                                   .chunk_bytes = 4096,
                                   .retention = {.keep_last = 100, .keep_every = 0}};
  States newest;
  std::uint64_t last = 0;
  {
    const auto trainer = trainer_of(job.options);
    const auto undisturbed = trainer_of(job.options);
    Checkpoints checkpoints = open_or_fail(options, *trainer);
    unsigned step = 0;
    std::optional<Error> failed;
    while (!failed && step < kSteps) {
      train(*trainer, job, step, step + 1);
      train(*undisturbed, job, step, step + 1);
      ++step;
      const States now = state_of(*trainer);
      const auto saved = save_now(checkpoints, position_at(step));
      if (!saved) {
        failed = saved.error();
      } else {
        newest = now;
        last = step;
      }
    }
    ASSERT_TRUE(failed) << "the pool never was full";
    EXPECT_EQ(failed->code, ErrorCode::kNoSpace) << failed->message;
    ASSERT_GT(last, 0U);
    EXPECT_EQ(checkpoints.versions().size(), last);
    EXPECT_TRUE(checkpoints.verify());
    // Training goes on, as if nothing had been; and the next save fails as cleanly.
    if (step < kSteps) {
      train(*trainer, job, step, step + 1);
      train(*undisturbed, job, step, step + 1);
    }
    EXPECT_EQ(state_of(*trainer), state_of(*undisturbed));
    const auto again = save_now(checkpoints, position_at(step + 1));
    ASSERT_FALSE(again);
    EXPECT_EQ(again.error().code, ErrorCode::kNoSpace);
    // A save that fails in the background says so at the next.
    ASSERT_TRUE(checkpoints.save(position_at(step + 2)));
    const auto next = checkpoints.save(position_at(step + 3));
    ASSERT_FALSE(next);
    EXPECT_EQ(next.error().code, ErrorCode::kNoSpace);
    (void)checkpoints.wait();
    EXPECT_EQ(checkpoints.versions().size(), last);
  }
  const auto trainer = trainer_of(job.options);
  Checkpoints checkpoints = open_or_fail(options, *trainer);
  const auto position = checkpoints.resume(kSetup);
  ASSERT_TRUE(position) << position.error().message;
  EXPECT_EQ((*position)->step, last);
  EXPECT_EQ(state_of(*trainer), newest);
}

TEST(Checkpoints, retention_makes_room_in_a_small_pool) {
  const TemporaryFolder folder;
  const Job job = job_of("large mlp", true);
  const auto trainer = trainer_of(job.options);
  Checkpoints checkpoints = open_or_fail({.path = folder.path("pool"),
                                          .capacity_bytes = 24 << 20,
                                          .chunk_bytes = 4096,
                                          .retention = {.keep_last = 1, .keep_every = 0}},
                                         *trainer);
  for (unsigned step = 0; step < kSteps; ++step) {
    train(*trainer, job, step, step + 1);
    const auto saved = save_now(checkpoints, position_at(step + 1));
    ASSERT_TRUE(saved) << "step " << step << ": " << saved.error().message;
  }
  EXPECT_EQ(checkpoints.versions(), std::vector<std::uint64_t>{kSteps});
  EXPECT_TRUE(checkpoints.verify());
}

TEST(Checkpoints, that_are_not_there_are_not_verified) {
  const TemporaryFolder folder;
  const auto trainer = trainer_of(job_of("mlp", true).options);
  const Checkpoints checkpoints = open_or_fail({.path = folder.path("pool"), .media = kFast}, *trainer);
  const Status verified = checkpoints.verify();
  ASSERT_FALSE(verified);
  EXPECT_EQ(verified.error().code, ErrorCode::kNotFound);
  EXPECT_TRUE(checkpoints.versions().empty());
}

}  // namespace
}  // namespace dunnock::test
