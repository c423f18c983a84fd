// Configs: what a file says is read, what it does not say has a default, and whatever is wrong is said with its place.
#include "config.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <random>
#include <set>

#include "dunnock/pmem/detect.hpp"
#include "dunnock/training/schedules.hpp"
#include "support/seed.hpp"
#include "support/temporary_folder.hpp"

namespace dunnock::train {
namespace {

using test::TemporaryFolder;
using Overrides = std::vector<std::string>;

/// The config; a failure with the reasons when it is refused.
TrainConfig config_of(const std::string& text, const Overrides& overrides = {}) {
  const auto loaded = parse_config(text, "runs/a.toml", overrides);
  if (loaded) return loaded->config;
  ADD_FAILURE() << loaded.error().message;
  return {};
}

/// Why it is refused.
std::string reasons(const std::string& text, const Overrides& overrides = {}) {
  const auto loaded = parse_config(text, "runs/a.toml", overrides);
  if (loaded) return "accepted";
  EXPECT_EQ(loaded.error().code, ErrorCode::kInvalidArgument);
  return loaded.error().message;
}

// ----- reading ------------------------------------------------------------------------------------------------------

TEST(Config, of_nothing_is_all_defaults) {
  EXPECT_EQ(config_of(""), TrainConfig{});
  EXPECT_EQ(config_of("# nothing\n[model]\n[run]\n"), TrainConfig{});
}

TEST(Config, takes_former_names_of_keys_with_a_note) {
  const std::string file = "[data]\ntokeniser = 'llama2c'\ntokeniser_file = 'a.bin'\n";
  const auto former = parse_config(file, "runs/a.toml", Overrides{"data.tokeniser = gpt2"});
  ASSERT_TRUE(former) << former.error().message;
  EXPECT_EQ(former->config.data.tokenizer, TokenizerKind::kGpt2);
  EXPECT_EQ(former->config.data.tokenizer_file, "a.bin");
  EXPECT_EQ(
      former->notes,
      (std::vector<std::string>{
          "runs/a.toml:2:1: data.tokeniser is now called data.tokenizer; the next version refuses the former name",
          "runs/a.toml:3:1: data.tokeniser_file is now called data.tokenizer_file; the next version refuses the "
          "former name",
          "--set data.tokeniser = gpt2: data.tokeniser is now called data.tokenizer; the next version refuses the "
          "former name"}));
  EXPECT_EQ(to_toml(former->config).find("tokeniser"), std::string::npos);
  const auto now = parse_config("[data]\ntokenizer = 'llama2c'\ntokenizer_file = 'a.bin'\n", "runs/a.toml",
                                Overrides{"data.tokenizer=gpt2"});
  ASSERT_TRUE(now);
  EXPECT_TRUE(now->notes.empty());
  EXPECT_EQ(now->config, former->config);
  EXPECT_EQ(reasons("[data]\ntokenizer = 'bytes'\ntokeniser = 'gpt2'\n"),
            "runs/a.toml:2:1: data.tokenizer: expected this key or its former name (data.tokeniser), got both");
  EXPECT_EQ(reasons("[data]\ntokeniser = 7\n"),
            "runs/a.toml:2:13: data.tokenizer: expected \"bytes\", \"gpt2\" or \"llama2c\", got 7");
}

TEST(Config, takes_what_the_file_says) {
  const TrainConfig config = config_of(R"(
[model]
kind = "gpt"
dtype = "bf16"
layers = 3
heads = 2
width = 0x40
positions = "rotary"
[data]
text = 'a "b".txt'
order = "anywhere"
[optimizer]
learning_rate = 1
schedule = "linear"
final_share = 2.5e-1
[run]
epochs = 7
as_graph = true
[sample]
prompt = "\tO Romeo\n"
)");
  EXPECT_EQ(config.model.dtype, DataType::kBf16);
  EXPECT_EQ(config.model.layers, 3U);
  EXPECT_EQ(config.model.width, 64U);
  EXPECT_EQ(config.model.positions, Positions::kRotary);
  EXPECT_EQ(config.data.text, "a \"b\".txt");
  EXPECT_EQ(config.data.order, data::Order::kAnywhere);
  EXPECT_EQ(config.optimizer.learning_rate, 1.0);
  EXPECT_EQ(config.optimizer.schedule, training::RateSchedule::kLinear);
  EXPECT_EQ(config.optimizer.final_share, 0.25);
  EXPECT_EQ(config.run.epochs, 7U);
  EXPECT_EQ(config.run.steps, 0U) << "steps or epochs";
  EXPECT_TRUE(config.run.as_graph);
  EXPECT_EQ(config.sample.prompt, "\tO Romeo\n");
  EXPECT_EQ(config_of("model = {kind = \"mlp\", hidden = [3, 4]}").model.hidden, (std::vector<unsigned>{3, 4}));
}

TEST(Config, has_defaults_of_each_kind_of_model) {
  EXPECT_EQ(config_of("model.kind = \"mlp\"").model.hidden, (std::vector<unsigned>{256}));
  const ModelConfig cnn = config_of("model.kind = \"cnn\"").model;
  EXPECT_EQ(cnn.stages, (std::vector<std::vector<unsigned>>{{32, 32}, {64, 64}}));
  EXPECT_EQ(cnn.hidden, (std::vector<unsigned>{128}));
  const ModelConfig resnet = config_of("model.kind = \"resnet\"").model;
  EXPECT_EQ(resnet.blocks, (std::vector<unsigned>{2, 2, 2}));
  EXPECT_EQ(resnet.width, 16U);
  EXPECT_EQ(resnet.stem, Stem::kSmall);
  EXPECT_FALSE(resnet.bottleneck);
  const ModelConfig densenet = config_of("model.kind = \"densenet\"").model;
  EXPECT_EQ(densenet.blocks, (std::vector<unsigned>{6, 12, 24, 16}));
  EXPECT_EQ(densenet.growth, 32U);
  EXPECT_EQ(densenet.stem, Stem::kLarge);
  EXPECT_TRUE(densenet.bottleneck);
}

TEST(Config, fills_sizes_from_a_preset_which_given_keys_override) {
  const ModelConfig large = config_of("[model]\npreset = \"gpt2-large\"\nlayers = 2\n").model;
  EXPECT_EQ(large.layers, 2U);
  EXPECT_EQ(large.heads, 20U);
  EXPECT_EQ(large.width, 1280U);
  EXPECT_EQ(large.context, 1024U);
  EXPECT_EQ(large.vocabulary, 50257U);
  const auto sizes = [](const char* preset) {
    const ModelConfig model = config_of("", {std::string("model.preset=") + preset}).model;
    return std::array{model.layers, model.heads, model.width};
  };
  EXPECT_EQ(sizes("gpt2"), (std::array{12U, 12U, 768U}));
  EXPECT_EQ(sizes("gpt2-medium"), (std::array{24U, 16U, 1024U}));
  EXPECT_EQ(sizes("gpt2-xl"), (std::array{48U, 25U, 1600U}));
}

TEST(Config, is_overridden_by_the_last_word) {
  const TrainConfig config =
      config_of("[model]\nlayers = 3\n", {"model.layers=4", "model.layers = 5", "data.text=my text.txt",
                                          "data.tokenizer=llama2c", "sample.prompt=\"a\\nb\"", "run.as_graph=true"});
  EXPECT_EQ(config.model.layers, 5U);
  EXPECT_EQ(config.data.text, "my text.txt") << "text needs no quotes";
  EXPECT_EQ(config.data.tokenizer, TokenizerKind::kLlama2c);
  EXPECT_EQ(config.sample.prompt, "a\nb") << "but may have them";
  EXPECT_TRUE(config.run.as_graph);
  const TrainConfig cnn = config_of("", {"model.kind=cnn", "model.stages=[[1], [2, 3]]", "data.mean=[0.5]"});
  EXPECT_EQ(cnn.model.stages, (std::vector<std::vector<unsigned>>{{1}, {2, 3}}));
  EXPECT_EQ(config_of("", {"sample.prompt=a\\b = \"c\""}).sample.prompt, "a\\b = \"c\"");
  EXPECT_EQ(config_of("", {"sample.prompt="}).sample.prompt, "");
}

TEST(Config, lets_an_override_choose_what_the_file_has_not_chosen) {
  const std::string file =
      "[model]\nkind = \"gpt\"\nlayers = 3\n[data]\ntext = \"a\"\n[optimizer]\nbeta2 = 0.5\nschedule = \"cosine\"\n"
      "final_share = 0.5\n[run]\nsteps = 5\n";
  const TrainConfig epochs = config_of(file, {"run.epochs=2"});
  EXPECT_EQ(epochs.run.steps, 0U);
  EXPECT_EQ(epochs.run.epochs, 2U);
  EXPECT_EQ(config_of("[run]\nepochs = 2\n", {"run.steps=5"}), config_of("[run]\nsteps = 5\n"));
  EXPECT_EQ(config_of(file, {"model.kind=mlp"}).model, config_of("", {"model.kind=mlp"}).model);
  EXPECT_EQ(config_of(file, {"model.kind=mlp"}).data, config_of("", {"model.kind=mlp"}).data);
  EXPECT_EQ(config_of(file, {"optimizer.kind=sgd"}).optimizer.final_share, 0.5);
  EXPECT_EQ(config_of(file, {"optimizer.schedule=constant"}).optimizer.beta2, 0.5);
  EXPECT_EQ(config_of("[data]\ntokenizer = \"llama2c\"\ntokenizer_file = \"a\"\n", {"data.tokenizer=bytes"}),
            TrainConfig{});
  EXPECT_EQ(parse_config(file, "a", Overrides{"model.kind=mlp"})->places.count("data.text"), 0U);
  // But not what contradicts itself, nor what does not depend on it.
  EXPECT_EQ(reasons(file, {"run.epochs=2", "run.steps=3"}),
            "--set run.epochs=2: run.epochs: expected steps or epochs, got both");
  EXPECT_EQ(reasons(file, {"model.kind=mlp", "model.heads=3"}),
            "--set model.heads=3: model.heads: expected only with model.kind = \"gpt\"");
  EXPECT_EQ(reasons("[optimizer]\nmomentum = 0.5\n", {"model.kind=mlp"}),
            "runs/a.toml:2:12: optimizer.momentum: expected only with optimizer.kind = \"sgd\"");
}

TEST(Config, knows_where_its_values_stand_and_its_paths_begin) {
  const auto loaded = parse_config("\n[data]\n  text = \"a.txt\"\n", "runs/a.toml", Overrides{"run.batch=64"});
  ASSERT_TRUE(loaded);
  EXPECT_EQ(loaded->where("data.text"), "runs/a.toml:3:10: data.text");
  EXPECT_EQ(loaded->where("run.batch"), "--set run.batch=64: run.batch");
  EXPECT_EQ(loaded->where("run.seed"), "runs/a.toml: run.seed");
  EXPECT_EQ(loaded->path_of("a.txt"), "runs/a.txt");
  EXPECT_EQ(loaded->path_of("/a.txt"), "/a.txt");
  EXPECT_EQ(parse_config("", "a.toml")->path_of("b/a.txt"), "b/a.txt");
}

// ----- what is wrong ------------------------------------------------------------------------------------------------

TEST(ConfigErrors, name_what_is_no_TOML) {
  const std::string why = reasons("[model]\nkind = \n");
  EXPECT_TRUE(why.starts_with("runs/a.toml:2:")) << why;
  EXPECT_TRUE(reasons("[model]\nlayers = 3\nlayers = 3\n").starts_with("runs/a.toml:3:"));
  EXPECT_TRUE(reasons("[model]\nkind = \"\xff\"\n").starts_with("runs/a.toml:2:"));
  // Characters beyond ASCII, which toml++ must not see but in quotes and comments.
  EXPECT_EQ(reasons("[run]\nseed = 1\u20113\n"),
            "runs/a.toml:2:9: this character is allowed only in quotes and comments");
  EXPECT_EQ(reasons("\u00e9 = 1"), "runs/a.toml:1:1: this character is allowed only in quotes and comments");
  EXPECT_EQ(reasons("", {"run.seed=\u00e9"}),
            "--set run.seed=\u00e9: run.seed: expected a whole number of 0 or more, got \u00e9");
  EXPECT_EQ(config_of("\ufeff# \u00e9 \" '\n[sample]\nprompt = \"\\\"\u00e9\"").sample.prompt, "\"\u00e9");
  EXPECT_EQ(config_of("[sample]\nprompt = '\\\u00e9'  # \u00e9").sample.prompt, "\\\u00e9");
  EXPECT_EQ(config_of("[sample]\nprompt = \"\"\"\u00e9\n\"\u00e9\"\"\"\"\"").sample.prompt, "\u00e9\n\"\u00e9\"\"");
  EXPECT_EQ(config_of("[sample]\nprompt = '''\u00e9\n\u00e9'''").sample.prompt, "\u00e9\n\u00e9");
  EXPECT_EQ(config_of("[sample]\nprompt = ''\n[data]\ntext=\"\u00e9\"").data.text, "\u00e9");
  // toml++ asserts that these are keys.
  for (const char* header : {"[=", "[\1]", "[[=", "[.]"})
    EXPECT_TRUE(reasons(std::string("\n") + header + "\n").starts_with("runs/a.toml:2:")) << header;
}

TEST(ConfigErrors, name_the_nearest_key) {
  EXPECT_EQ(reasons("[model]\nlayer = 3\n"), "runs/a.toml:2:1: model.layer: unknown key; the nearest is model.layers");
  EXPECT_EQ(reasons("[optimizer]\nbatch = 3\n"),
            "runs/a.toml:2:1: optimizer.batch: unknown key; the nearest is run.batch");
  EXPECT_EQ(reasons("seed = 3\n"), "runs/a.toml:1:1: seed: unknown key; the nearest is run.seed");
  EXPECT_EQ(reasons("\n[optimiser]\nkind = \"sgd\"\n"),
            "runs/a.toml:2:2: [optimiser]: unknown section; the nearest is [optimizer]");
  EXPECT_EQ(reasons("run = 3\n"), "runs/a.toml:1:1: run: expected a section, [run], got 3");
  EXPECT_EQ(reasons("[[run]]\n"), "runs/a.toml:1:3: run: expected a section, [run], got a list of 1");
  EXPECT_EQ(reasons("", {"model.width_=3"}), "--set model.width_=3: unknown key; the nearest is model.width");
  EXPECT_EQ(reasons("", {"model.width"}), "--set model.width: expected section.key=value");
  EXPECT_EQ(reasons("", {"=3"}).substr(0, 25), "--set =3: unknown key; th");
}

TEST(ConfigErrors, say_what_was_expected) {
  EXPECT_EQ(reasons("[model]\n  layers = 0\n"),
            "runs/a.toml:2:12: model.layers: expected a whole number from 1 to 1024, got 0");
  EXPECT_EQ(reasons("[model]\nlayers = 1.5"),
            "runs/a.toml:2:10: model.layers: expected a whole number from 1 to 1024, got 1.5");
  EXPECT_EQ(reasons("[model]\nlayers = -1"),
            "runs/a.toml:2:10: model.layers: expected a whole number from 1 to 1024, got -1");
  EXPECT_EQ(reasons("[model]\nlayers = 1025"),
            "runs/a.toml:2:10: model.layers: expected a whole number from 1 to 1024, got 1025");
  EXPECT_EQ(reasons("[run]\nseed = -1"), "runs/a.toml:2:8: run.seed: expected a whole number of 0 or more, got -1");
  EXPECT_EQ(reasons("[run]\nas_graph = 1"), "runs/a.toml:2:12: run.as_graph: expected true or false, got 1");
  EXPECT_EQ(reasons("[model]\nkind = \"gtp\""),
            "runs/a.toml:2:8: model.kind: expected \"gpt\", \"mlp\", \"cnn\", \"resnet\" or \"densenet\", got \"gtp\"; "
            "the nearest is \"gpt\"");
  EXPECT_EQ(reasons("[model]\ndtype = 16"), "runs/a.toml:2:9: model.dtype: expected \"f32\" or \"bf16\", got 16");
  EXPECT_EQ(reasons("[data]\ntext = [\"a\"]"), "runs/a.toml:2:8: data.text: expected a path, got a list of 1");
  EXPECT_EQ(reasons("[data]\ntext = \"a\\u0000b\""), "runs/a.toml:2:8: data.text: expected a path, got \"a\\u0000b\"");
  EXPECT_EQ(reasons("[data]\ntext = 2026-11-25"), "runs/a.toml:2:8: data.text: expected a path, got a date or time");
  EXPECT_EQ(reasons("[data]\ntext = {}"), "runs/a.toml:2:8: data.text: expected a path, got a table");
  EXPECT_EQ(reasons("[sample]\nprompt = true"), "runs/a.toml:2:10: sample.prompt: expected text, got true");
  EXPECT_EQ(reasons("[optimizer]\nlearning_rate = 0"),
            "runs/a.toml:2:17: optimizer.learning_rate: expected a number above 0, up to 1000, got 0");
  EXPECT_EQ(reasons("[optimizer]\nlearning_rate = nan"),
            "runs/a.toml:2:17: optimizer.learning_rate: expected a number above 0, up to 1000, got nan");
  EXPECT_EQ(reasons("[optimizer]\nclip = inf"),
            "runs/a.toml:2:8: optimizer.clip: expected a number from 0 to 1e+30, got inf");
  EXPECT_EQ(reasons("[optimizer]\nbeta1 = 1.0"),
            "runs/a.toml:2:9: optimizer.beta1: expected a number from 0, below 1, got 1.0");
  EXPECT_EQ(reasons("[optimizer]\nbeta1 = \"1\""),
            "runs/a.toml:2:9: optimizer.beta1: expected a number from 0, below 1, got \"1\"");
  EXPECT_EQ(reasons("", {"model.layers=many"}),
            "--set model.layers=many: model.layers: expected a whole number from 1 to 1024, got many");
  EXPECT_EQ(reasons("", {"model.layers=99999"}),
            "--set model.layers=99999: model.layers: expected a whole number from 1 to 1024, got 99999");
  EXPECT_EQ(
      reasons("", {"model.layers=1\nlayers = 2"}),
      "--set model.layers=1\nlayers = 2: model.layers: expected a whole number from 1 to 1024, got 1\nlayers = 2");
  EXPECT_EQ(reasons("", {"data.text=\xff"}), "--set data.text=\xff: data.text: expected a path, got \xff");
}

TEST(ConfigErrors, are_at_the_element_of_a_list) {
  EXPECT_EQ(reasons("[model]\nkind = \"cnn\"\nstages = [\n  [32],\n  [32, 0],\n]\n"),
            "runs/a.toml:5:8: model.stages: expected a list of 1 to 16, each a list of 1 to 16, each a whole number "
            "from 1 to 65536, got 0");
  EXPECT_EQ(reasons("[model]\nkind = \"resnet\"\nblocks = []\n"),
            "runs/a.toml:3:10: model.blocks: expected a list of 1 to 16, each a whole number from 1 to 1024, got a "
            "list of 0");
  EXPECT_EQ(reasons("[model]\nkind = \"mlp\"\nhidden = 3\n"),
            "runs/a.toml:3:10: model.hidden: expected a list of at most 64, each a whole number from 1 to 1048576, "
            "got 3");
  EXPECT_EQ(config_of("[model]\nkind = \"mlp\"\nhidden = []\n").model.hidden, std::vector<unsigned>{});
}

TEST(ConfigErrors, come_all_at_once_in_the_order_of_the_file) {
  EXPECT_EQ(reasons("[sample]\ntop_k = -1\nwhat = 1\n[model]\nlayers = 0\n", {"run.batch=0"}),
            "runs/a.toml:2:9: sample.top_k: expected a whole number from 0 to 2147483648, got -1\n"
            "runs/a.toml:3:1: sample.what: unknown key; the nearest is model.width\n"
            "runs/a.toml:5:10: model.layers: expected a whole number from 1 to 1024, got 0\n"
            "--set run.batch=0: run.batch: expected a whole number from 1 to 16777216, got 0");
}

TEST(ConfigErrors, refuse_keys_of_other_kinds) {
  EXPECT_EQ(reasons("[model]\nkind = \"mlp\"\nlayers = 3\n"),
            "runs/a.toml:3:10: model.layers: expected only with model.kind = \"gpt\"");
  EXPECT_EQ(reasons("[model]\nhidden = [3]\n"),
            "runs/a.toml:2:10: model.hidden: expected only with model.kind = \"mlp\" or \"cnn\"");
  EXPECT_EQ(reasons("[data]\nimages = \"a\"\n"), "runs/a.toml:2:10: data.images: expected only with models of images");
  EXPECT_EQ(reasons("[data]\nmerges = \"a\"\n"),
            "runs/a.toml:2:10: data.merges: expected only with data.tokenizer = \"gpt2\"");
  EXPECT_EQ(reasons("[data]\ntokenizer_file = \"a\"\n"),
            "runs/a.toml:2:18: data.tokenizer_file: expected only with data.tokenizer = \"gpt2\" or \"llama2c\"");
  EXPECT_EQ(reasons("[optimizer]\nmomentum = 0.5\n"),
            "runs/a.toml:2:12: optimizer.momentum: expected only with optimizer.kind = \"sgd\"");
  EXPECT_EQ(reasons("[optimizer]\nkind = \"sgd\"\nbeta2 = 0.5\n"),
            "runs/a.toml:3:9: optimizer.beta2: expected only with optimizer.kind = \"adamw\"");
  EXPECT_EQ(reasons("[optimizer]\nfinal_share = 0.5\n"),
            "runs/a.toml:2:15: optimizer.final_share: expected only with optimizer.schedule = \"cosine\" or "
            "\"linear\"");
  EXPECT_EQ(reasons("[optimizer]\ndrop_every = 5\n"),
            "runs/a.toml:2:14: optimizer.drop_every: expected only with optimizer.schedule = \"step\"");
}

TEST(ConfigErrors, name_what_does_not_go_together) {
  const std::string a = "runs/a.toml:2:";
  EXPECT_EQ(reasons("[model]\nheads = 3\n"),
            a + "9: model.heads: expected a width that the heads divide, got width 128 and 3 heads");
  EXPECT_EQ(reasons("[model]\nwidth = 126\n"),
            a + "9: model.width: expected a width that the heads divide, got width 126 and 4 heads");
  EXPECT_EQ(reasons("[model]\npositions = \"rotary\"\nwidth = 12\n"),
            a + "13: model.positions: expected heads of an even width for rotary positions, got 3");
  EXPECT_EQ(reasons("[data]\ntokens = \"a\"\ntext = \"b\"\n"),
            a + "10: data.tokens: expected text or tokens, got both");
  EXPECT_EQ(reasons("[data]\ntoken_format = \"llm.c\"\n"),
            a + "16: data.token_format: expected model.vocabulary too, which files of this format do not contain");
  EXPECT_EQ(reasons("", {"model.kind=mlp", "data.labels=a"}),
            "--set data.labels=a: data.labels: expected images and labels, got one of them");
  EXPECT_EQ(reasons("", {"model.kind=mlp", "data.test_images=a"}),
            "--set data.test_images=a: data.test_images: expected test images and test labels, got one of them");
  EXPECT_EQ(reasons("", {"model.kind=mlp", "data.order=anywhere"}),
            "--set data.order=anywhere: data.order: expected \"sequential\" or \"shuffled\" for images, got "
            "\"anywhere\"");
  EXPECT_EQ(reasons("", {"model.kind=mlp", "data.mean=[0, 0, 0]"}),
            "--set data.mean=[0, 0, 0]: data.mean: expected as many means as deviations, got 3 and 1");
  EXPECT_EQ(reasons("[optimizer]\nnesterov = true\nkind = \"sgd\"\n"),
            a + "12: optimizer.nesterov: expected optimizer.momentum above 0 with it, got 0");
  EXPECT_EQ(reasons("[run]\nepochs = 3\nsteps = 4\n"), a + "10: run.epochs: expected steps or epochs, got both");
  EXPECT_EQ(reasons("[optimizer]\nwarmup = 1001\n"),
            a + "10: optimizer.warmup: expected at most run.steps (1000), got 1001");
  EXPECT_EQ(reasons("[run]\nmicro_batches = 3\n"),
            a + "17: run.micro_batches: expected a batch that is a multiple of micro_batches x data_parallel (3 x 1), "
                "got 32");
  EXPECT_TRUE(
      reasons("[run]\nschedule = \"zb-h3\"\n").starts_with(a + "12: run.schedule: expected \"conventional\", "));
  EXPECT_TRUE(reasons("[run]\nschedule = \"zb-h3\"\n").ends_with("got \"zb-h3\"; the nearest is \"zb-h1\""));
  EXPECT_EQ(reasons("[run]\ndata_parallel = 2\n"),
            a + "17: run.data_parallel: expected \"no-overlap\", \"overlap\", \"priority\" or \"reverse-first-k\" for "
                "run.data_parallel = 2, got \"conventional\"");
  EXPECT_TRUE(reasons("[run]\nschedule = \"overlap\"\npipeline = 4\n")
                  .starts_with(a + "12: run.schedule: expected \"gpipe\", \"1f1b\", "));
  EXPECT_EQ(reasons("[checkpoint]\nevery = 10\n"),
            a + "9: checkpoint.every: expected a checkpoint.pool with it, got none");
  EXPECT_EQ(reasons("[log]\njson = \"a\"\ncsv = \"a\"\n"), a + "8: log.json: expected a file of its own");
  EXPECT_EQ(reasons("[log]\nplot = \"a\"\ncsv = \"a\"\n"), a + "8: log.plot: expected a file of its own");
  EXPECT_EQ(reasons("[log]\nplot = \"a\"\njson = \"a\"\n"), "runs/a.toml:3:8: log.json: expected a file of its own");
}

TEST(Config, accepts_every_schedule_with_the_ranks_of_its_family) {
  for (const training::ScheduleName& one : training::schedule_names()) {
    const bool pipeline = one.family == training::Family::kPipeline;
    const bool data = one.family == training::Family::kDataParallel;
    const TrainConfig config =
        config_of("", {"run.schedule=" + std::string(one.name), std::string("run.pipeline=") + (pipeline ? "4" : "1"),
                       std::string("run.data_parallel=") + (data || pipeline ? "2" : "1")});
    EXPECT_EQ(config.run.schedule, one.name);
  }
}

TEST(Config, accepts_the_medias_that_pools_have) {
  for (const char* media : {"file", "direct", "eadr", "process"}) {
    EXPECT_EQ(config_of("", {std::string("checkpoint.media=") + media}).checkpoint.media, media);
    EXPECT_TRUE(media_kind(media));
  }
}

TEST(ConfigFiles, are_read_with_their_folder) {
  const TemporaryFolder folder;
  const std::string path = folder.write("a.toml", "[data]\ntext = \"b.txt\"\n");
  const auto loaded = read_config(path, Overrides{"run.seed=5"});
  ASSERT_TRUE(loaded);
  EXPECT_EQ(loaded->config.run.seed, 5U);
  EXPECT_EQ(loaded->path_of(loaded->config.data.text), folder.path("b.txt"));
}

TEST(ConfigFiles, that_can_not_be_read_are_errors) {
  const TemporaryFolder folder;
  EXPECT_EQ(read_config(folder.path("none.toml")).error().code, ErrorCode::kNotFound);
  EXPECT_EQ(read_config(folder.path("")).error().code, ErrorCode::kInvalidArgument);
  const auto large = read_config(folder.write("large.toml", std::string((1 << 20) + 1, '#')));
  EXPECT_EQ(large.error().code, ErrorCode::kInvalidArgument);
  EXPECT_TRUE(large.error().message.ends_with("large.toml has more than 1 MiB, the limit of a config file"));
  EXPECT_TRUE(read_config(folder.write("empty.toml", "")));
}

TEST(ConfigReadiness, asks_for_the_data_of_the_kind) {
  const auto why = [](const Overrides& overrides) {
    const auto loaded = parse_config("", "a.toml", overrides);
    EXPECT_TRUE(loaded) << loaded.error().message;
    const Status ready = check_ready(*loaded);
    return ready ? "ready" : ready.error().message;
  };
  EXPECT_EQ(why({}),
            "a.toml: data.text: expected a path, got none: model.kind = \"gpt\" is trained on text, or on "
            "data.tokens");
  EXPECT_EQ(why({"data.text=a"}), "ready");
  EXPECT_EQ(why({"data.tokens=a"}), "ready");
  EXPECT_EQ(why({"data.text=a", "data.tokenizer=gpt2"}),
            "a.toml: data.vocabulary: expected a path, got none: data.tokenizer = \"gpt2\" needs it, or "
            "data.tokenizer_file");
  EXPECT_EQ(why({"data.text=a", "data.tokenizer=gpt2", "data.tokenizer_file=b"}), "ready");
  EXPECT_EQ(why({"data.text=a", "data.tokenizer=gpt2", "data.vocabulary=b"}),
            "a.toml: data.merges: expected a path, got none: data.tokenizer = \"gpt2\" needs it");
  EXPECT_EQ(why({"data.text=a", "data.tokenizer=llama2c"}),
            "a.toml: data.tokenizer_file: expected a path, got none: data.tokenizer = \"llama2c\" needs it");
  EXPECT_EQ(why({"model.kind=cnn"}),
            "a.toml: data.images: expected a path, got none: model.kind = \"cnn\" is trained on images");
  EXPECT_EQ(why({"model.kind=cnn", "data.images=a", "data.labels=b"}), "ready");
}

// ----- writing ------------------------------------------------------------------------------------------------------

void comes_back(const TrainConfig& config) {
  const std::string text = to_toml(config);
  const auto again = parse_config(text, "again.toml");
  ASSERT_TRUE(again) << again.error().message << "\n" << text;
  EXPECT_EQ(again->config, config) << text;
  EXPECT_EQ(to_toml(again->config), text);
  EXPECT_EQ(identity_of(again->config), identity_of(config));
}

TEST(ConfigDump, is_read_back_equal) {
  for (const char* kind : {"gpt", "mlp", "cnn", "resnet", "densenet"})
    comes_back(config_of("", {std::string("model.kind=") + kind}));
  comes_back(config_of("", {"model.preset=gpt2-medium", "model.width=512", "data.tokenizer=gpt2", "data.merges=m"}));
  comes_back(config_of("", {"run.epochs=5", "optimizer.schedule=step", "optimizer.drop_factor=0.3"}));
  comes_back(config_of("", {"sample.prompt=\"\\u0000\\u0001\\\\ \\\" \\u007f \\u00e9 \\U0001F600 \\r\\n\\t\\b\""}));
  comes_back(config_of("", {"optimizer.learning_rate=5e-324", "optimizer.clip=1e30", "optimizer.weight_decay=-0.0",
                            "optimizer.epsilon=1", "run.seed=9223372036854775807"}));
}

TEST(ConfigDump, of_random_values_is_read_back_equal) {
  auto random = test::generator(1);
  for (int round = 0; round < 300; ++round) {
    const auto number = [&] { return std::to_string(std::uniform_real_distribution<double>(1e-9, 0.999)(random)); };
    const auto exact = [&] {
      char text[40];
      std::snprintf(text, sizeof text, "%.17g",
                    std::ldexp(std::generate_canonical<double, 53>(random) + 1e-9, -static_cast<int>(random() % 60)));
      return std::string(text);
    };
    std::string prompt;
    for (std::uint64_t i = random() % 20; i > 0; --i) prompt += static_cast<char>(random() % 128);
    const char* kinds[] = {"gpt", "mlp", "cnn", "resnet", "densenet"};
    const Overrides overrides = {std::string("model.kind=") + kinds[random() % 5],
                                 "optimizer.learning_rate=" + exact(),
                                 "optimizer.beta1=" + number(),
                                 "optimizer.beta2=" + exact(),
                                 "sample.temperature=" + exact(),
                                 "run.seed=" + std::to_string(random() >> 1),
                                 "run.batch=" + std::to_string(1 + random() % 1000)};
    TrainConfig config = config_of("", overrides);
    config.sample.prompt = prompt;
    comes_back(config);
  }
}

TEST(ConfigIdentity, changes_with_what_determines_the_weights_and_with_nothing_else) {
  const std::uint64_t plain = identity_of(config_of(""));
  const auto with = [](const std::string& one) { return identity_of(config_of("", {one})); };
  for (const char* one :
       {"model.kind=resnet", "model.dtype=bf16", "model.layers=7", "model.vocabulary=300", "model.positions=rotary",
        "data.text=a", "data.tokens=a", "data.validation_share=0.2", "data.order=sequential", "data.tokenizer=gpt2",
        "optimizer.kind=sgd", "optimizer.learning_rate=0.1", "optimizer.beta1=0.5", "optimizer.clip=1",
        "optimizer.schedule=cosine", "optimizer.warmup=3", "run.batch=64", "run.seed=2"})
    EXPECT_NE(with(one), plain) << one;
  for (const char* one :
       {"run.steps=2000", "run.epochs=5", "run.micro_batches=2", "run.schedule=multi-stream", "run.window=8",
        "run.threads=2", "run.device=cuda", "run.as_graph=true", "run.measure_costs=true", "run.evaluate_every=5",
        "run.peer_timeout_s=5", "run.log_every=7", "run.bucket_kib=4", "run.memory_limit_mib=100", "checkpoint.pool=a",
        "checkpoint.media=process", "log.csv=a", "sample.tokens=5", "sample.prompt=a"})
    EXPECT_EQ(with(one), plain) << one;
  EXPECT_EQ(with("optimizer.weight_decay=-0.0"), plain) << "equal configs have one identity";
  EXPECT_EQ(with("data.text=a/b.txt"), with("data.text=/c/b.txt")) << "the folder does not count";
  EXPECT_EQ(identity_of(config_of("", {"run.schedule=zb-h1", "run.pipeline=2", "run.data_parallel=2"})), plain);
  const auto cosine = [](const std::string& steps) {
    return identity_of(config_of("", {"optimizer.schedule=cosine", steps}));
  };
  EXPECT_NE(cosine("run.steps=2000"), cosine("run.steps=1000")) << "the rates depend on the steps";
  // The sizes count, not where they come from.
  EXPECT_EQ(identity_of(config_of("", {"model.preset=gpt2"})),
            identity_of(config_of("", {"model.layers=12", "model.heads=12", "model.width=768", "model.context=1024",
                                       "model.vocabulary=50257"})));
}

TEST(ConfigIdentity, is_the_same_in_every_build) { EXPECT_EQ(identity_of(TrainConfig{}), 13415884408750562001U); }

TEST(ConfigRates, are_those_of_the_optimizer) {
  const training::LearningRate rate = learning_rate_of(
      config_of("", {"optimizer.schedule=cosine", "optimizer.warmup=5", "optimizer.learning_rate=0.5"}), 70);
  EXPECT_EQ(rate, (training::LearningRate{.schedule = training::RateSchedule::kCosine,
                                          .peak = 0.5,
                                          .warmup_steps = 5,
                                          .steps = 70,
                                          .final_share = 0.1,
                                          .drop_every = 1000,
                                          .drop_factor = 0.1}));
}

// ----- the tree -----------------------------------------------------------------------------------------------------

TEST(Examples, are_all_read_and_ready) {
  std::set<std::string> found;
  for (const auto& entry : std::filesystem::directory_iterator(DUNNOCK_SOURCE_DIR "/examples")) {
    if (entry.path().extension() != ".toml") continue;
    found.insert(entry.path().filename().string());
    const auto loaded = read_config(entry.path().string());
    ASSERT_TRUE(loaded) << loaded.error().message;
    const Status ready = check_ready(*loaded);
    EXPECT_TRUE(ready) << ready.error().message;
    comes_back(loaded->config);
    // The data of all but one lies in the tree.
    if (entry.path().filename() == "gpt2.toml") continue;
    const DataConfig& data = loaded->config.data;
    for (const std::string& path : {data.text, data.images, data.labels, data.test_images, data.test_labels})
      EXPECT_TRUE(path.empty() || std::filesystem::is_regular_file(loaded->path_of(path))) << path;
  }
  EXPECT_EQ(found, (std::set<std::string>{"gpt2.toml", "mlp.toml", "mnist.toml", "shakespeare.toml"}));
}

TEST(Readme, has_every_key_with_what_it_may_hold_and_its_default) {
  const std::string readme = test::file_bytes(DUNNOCK_SOURCE_DIR "/tools/train/README.md");
  for (const KeyDescription& key : known_keys()) {
    // The names of schedules are listed elsewhere.
    const std::string type = key.name == "run.schedule" ? "a schedule's name" : key.type;
    const std::string row = "| `" + key.name + "` | " + type + " | `" + key.fallback + "` |";
    EXPECT_NE(readme.find(row), std::string::npos) << row;
  }
}

TEST(Words, are_those_of_the_files) {
  EXPECT_EQ(to_string(ModelKind::kDensenet), "densenet");
  EXPECT_EQ(to_string(DataType::kBf16), "bf16");
  EXPECT_EQ(to_string(Positions::kRotary), "rotary");
  EXPECT_EQ(to_string(Preset::kNone), "");
  EXPECT_EQ(to_string(Preset::kGpt2Xl), "gpt2-xl");
  EXPECT_EQ(to_string(Stem::kLarge), "large");
  EXPECT_EQ(to_string(TokenizerKind::kLlama2c), "llama2c");
  EXPECT_EQ(to_string(OptimizerKind::kSgd), "sgd");
  EXPECT_EQ(to_string(DeviceKind::kCuda), "cuda");
}

}  // namespace
}  // namespace dunnock::train
