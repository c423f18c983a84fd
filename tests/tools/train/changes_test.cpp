// Changes: what a run that goes on may change, what it keeps of that, and what it says when it may not.
#include "changes.hpp"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace dunnock::train {
namespace {

constexpr const char* kFile = "[model]\nwidth = 32\n[optimizer]\nlearning_rate = 0.003\n[run]\nsteps = 60\n";

LoadedConfig config(const std::vector<std::string>& overrides = {}, const std::string& text = kFile) {
  auto loaded = parse_config(text, "a.toml", overrides);
  EXPECT_TRUE(loaded) << (loaded ? "" : loaded.error().message);
  return *loaded;
}

/// The checkpoint that a run of this config saves.
SavedRun saved_by(const Resolved& run, std::uint64_t step = 20) { return {step, run.notes()}; }
SavedRun saved_by(const LoadedConfig& loaded, std::uint64_t step = 20) {
  return saved_by(Resolved{.loaded = loaded}, step);
}

std::string refusal(const LoadedConfig& given, const std::vector<std::string>& changes,
                    const std::optional<SavedRun>& saved) {
  const auto resolved = resolve(given, changes, saved);
  EXPECT_FALSE(resolved);
  return resolved ? "" : resolved.error().message;
}

TEST(Changes, are_in_the_config_that_goes_on) {
  const auto saved = saved_by(config());
  const auto resolved = resolve(
      config(), std::vector<std::string>{"optimizer.learning_rate=0.001", "optimizer.clip = 1", "run.steps=80"}, saved);
  ASSERT_TRUE(resolved) << resolved.error().message;
  EXPECT_EQ(resolved->loaded.config.optimizer.learning_rate, 0.001);
  EXPECT_EQ(resolved->loaded.config.optimizer.clip, 1);
  EXPECT_EQ(resolved->loaded.config.run.steps, 80U);
  EXPECT_EQ(resolved->setup, identity_of(config().config)) << "the checkpoint is of the run before";
}

TEST(Changes, are_known_to_the_next_resume_with_the_old_file) {
  auto first = resolve(config(), std::vector<std::string>{"optimizer.learning_rate=0.001"}, saved_by(config()));
  ASSERT_TRUE(first);
  auto second = resolve(config(), std::vector<std::string>{"optimizer.warmup=5", "run.steps=80"}, saved_by(*first));
  ASSERT_TRUE(second) << second.error().message;
  const auto third = resolve(config(), {}, saved_by(*second));
  ASSERT_TRUE(third) << third.error().message;
  EXPECT_EQ(third->loaded.config, second->loaded.config);
  EXPECT_EQ(third->loaded.config.optimizer.learning_rate, 0.001);
  EXPECT_EQ(third->loaded.config.optimizer.warmup, 5U);
  EXPECT_EQ(third->loaded.config.run.steps, 80U);
  EXPECT_EQ(third->notes(), second->notes());
}

TEST(Changes, are_known_to_the_next_resume_with_a_file_that_says_the_same) {
  const auto changed = resolve(config(), std::vector<std::string>{"optimizer.learning_rate=0.001"}, saved_by(config()));
  ASSERT_TRUE(changed);
  const auto resolved = resolve(config({"optimizer.learning_rate=0.001"}), {}, saved_by(*changed));
  ASSERT_TRUE(resolved) << resolved.error().message;
  EXPECT_EQ(resolved->loaded.config.optimizer.learning_rate, 0.001);
}

TEST(Changes, of_a_schedule_bring_its_own_keys) {
  const auto first = resolve(
      config(), std::vector<std::string>{"optimizer.schedule=cosine", "optimizer.final_share=0.2"}, saved_by(config()));
  ASSERT_TRUE(first) << first.error().message;
  const auto second = resolve(config(), {}, saved_by(*first));
  ASSERT_TRUE(second) << second.error().message;
  EXPECT_EQ(second->loaded.config, first->loaded.config);
  EXPECT_EQ(second->loaded.config.optimizer.final_share, 0.2);
  const auto back = resolve(config(), std::vector<std::string>{"optimizer.schedule=constant"}, saved_by(*second));
  EXPECT_FALSE(back) << "a final share belongs to a schedule that falls";
}

TEST(Changes, that_the_config_contradicts_are_differences_with_both_values) {
  const auto changed = resolve(config(), std::vector<std::string>{"optimizer.learning_rate=0.001"}, saved_by(config()));
  ASSERT_TRUE(changed);
  const std::string why = refusal(config({"optimizer.learning_rate=0.002"}), {}, saved_by(*changed));
  EXPECT_NE(why.find("optimizer.learning_rate is 0.002 here and 0.001 there"), std::string::npos) << why;
  EXPECT_NE(why.find("--change optimizer.learning_rate=0.002"), std::string::npos) << why;
  // What makes no other run is the config's to say.
  const auto more_steps = resolve(config(), std::vector<std::string>{"run.steps=80"}, saved_by(config()));
  ASSERT_TRUE(more_steps);
  const auto other = resolve(config({"run.steps=100"}), {}, saved_by(*more_steps));
  ASSERT_TRUE(other) << other.error().message;
  EXPECT_EQ(other->loaded.config.run.steps, 100U);
}

TEST(Changes, name_every_key_that_makes_another_run) {
  const std::string why =
      refusal(config({"model.width=64", "run.seed=2", "optimizer.clip=1"}), {}, saved_by(config(), 48));
  for (const char* part :
       {"step 48", "another model", "model.width is 64 here and 32 there", "run.seed is 2 here and 1 there",
        "optimizer.clip is 1.0 here and 0.0 there", "--change optimizer.clip=1.0"})
    EXPECT_NE(why.find(part), std::string::npos) << part << " in: " << why;
  EXPECT_EQ(why.find("--change model"), std::string::npos) << why;
  EXPECT_EQ(why.find("--change run.seed"), std::string::npos) << why;
  // Also beside a change that is allowed.
  const std::string beside = refusal(config({"model.width=64"}), {"optimizer.clip=1"}, saved_by(config()));
  EXPECT_NE(beside.find("model.width"), std::string::npos) << beside;
}

TEST(Changes, of_every_key_are_allowed_or_refused_by_name_with_a_reason) {
  std::size_t allowed = 0;
  for (const KeyDescription& key : known_keys()) {
    const Status may = may_change(key.name);
    if (may) {
      ++allowed;
      continue;
    }
    EXPECT_NE(may.error().message.find(key.name), std::string::npos);
    EXPECT_NE(may.error().message.find(": "), std::string::npos) << may.error().message;
  }
  for (const char* key : {"optimizer.learning_rate", "optimizer.warmup", "optimizer.schedule", "optimizer.clip",
                          "optimizer.weight_decay", "run.steps", "run.log_every", "checkpoint.every", "log.csv"})
    EXPECT_TRUE(may_change(key)) << key;
  for (const char* key : {"model.width", "model.dtype", "data.text", "data.order", "run.batch", "run.seed",
                          "optimizer.kind", "checkpoint.pool", "run.threads", "run.schedule"})
    EXPECT_FALSE(may_change(key)) << key;
  EXPECT_GE(allowed, 20U);
  EXPECT_FALSE(may_change("run.stepz"));
  EXPECT_FALSE(may_change(""));
}

TEST(Changes, that_are_none_are_refused) {
  const auto saved = saved_by(config());
  for (const char* change : {"optimizer.clip", "=1", " = 1", "", "model.width=64", "run.stepz=3", "optimizer.clip=-1",
                             "optimizer.clip=abc", "run.steps=0", "optimizer.warmup=61"})
    EXPECT_NE(refusal(config(), {change}, saved).find(change), std::string::npos) << change;
}

TEST(Changes, of_a_momentum_need_moments) {
  const LoadedConfig without = config({"optimizer.kind=sgd"});
  EXPECT_NE(refusal(without, {"optimizer.momentum=0.9"}, saved_by(without)).find("moments"), std::string::npos);
  const LoadedConfig with = config({"optimizer.kind=sgd", "optimizer.momentum=0.9"});
  EXPECT_NE(refusal(with, {"optimizer.momentum=0"}, saved_by(with)).find("moments"), std::string::npos);
  EXPECT_TRUE(resolve(with, std::vector<std::string>{"optimizer.momentum=0.5"}, saved_by(with)));
}

TEST(Changes, of_an_old_checkpoint_leave_its_hash_to_be_compared) {
  const auto resolved = resolve(config(), std::vector<std::string>{"optimizer.clip=1"}, SavedRun{20, {}});
  ASSERT_TRUE(resolved);
  EXPECT_TRUE(resolved->hash_only);
  EXPECT_EQ(resolved->setup, identity_of(config().config));
  EXPECT_EQ(resolved->loaded.config.optimizer.clip, 1);
  const auto strange = resolve(config(), {}, SavedRun{20, {{"config", "[model]\nwidths = 3\n"}}});
  ASSERT_TRUE(strange) << "of another version of the program";
  EXPECT_TRUE(strange->hash_only);
  EXPECT_FALSE(resolve(config(), {}, saved_by(config()))->hash_only);
}

TEST(Changes, without_a_checkpoint_are_the_config) {
  const auto resolved = resolve(config(), std::vector<std::string>{"optimizer.clip=1"}, std::nullopt);
  ASSERT_TRUE(resolved);
  EXPECT_EQ(resolved->loaded.config.optimizer.clip, 1);
}

TEST(Commands, are_quoted_as_a_shell_reads_them) {
  EXPECT_EQ(command_line(std::vector<std::string>{"a/b.c", "--x=1,2", "it's", "", "$HOME *"}),
            "a/b.c --x=1,2 'it'\\''s' '' '$HOME *'");
}

TEST(Commands, that_resume_take_the_place_of_what_they_replace) {
  const std::vector<std::string> words{"t",        "--resume",        "--resume-step",  "3",
                                       "--change", "a.b=1",           "--change=c.d=2", "--change",
                                       "e.f=3",    "--resume-step=4", "--set",          "g.h=5"};
  EXPECT_EQ(resuming_command(words, 7, std::vector<std::string>{"a.b=9", "c.d=8"}),
            (std::vector<std::string>{"t", "--change", "e.f=3", "--set", "g.h=5", "--resume-step", "7", "--change",
                                      "a.b=9", "--change", "c.d=8"}));
}

}  // namespace
}  // namespace dunnock::train
