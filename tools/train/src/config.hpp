// TrainConfig: everything about a run of dunnock-train, read from a TOML file and from `--set section.key=value`.
//
//   file --> toml++ --+--> values by key --> TrainConfig --> to_toml(), identity_of()
//   --set  -----------+        (each with its place, for errors)
//
// Strict: a key that is not known, does not belong to the chosen kind of model or optimizer, or is out of its range is
// an error with its place, and a key that looks like one is named. All keys: tools/train/README.md; the table that
// they are made from: each_key() in config.cpp. Not for weights and not for the state of a run.
//
// Paths in [data] are relative to the file's folder (LoadedConfig::path_of), those of results to the working directory.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dunnock/base/result.hpp"
#include "dunnock/data/loader.hpp"
#include "dunnock/data/token_file.hpp"
#include "dunnock/model/models.hpp"
#include "dunnock/training/learning_rate.hpp"
#include "dunnock/training/optimizer.hpp"

namespace dunnock::train {

using model::DataType;
using model::Positions;
using training::OptimizerKind;

enum class ModelKind : std::uint8_t { kGpt, kMlp, kCnn, kResnet, kDensenet };
enum class Preset : std::uint8_t { kNone, kGpt2, kGpt2Medium, kGpt2Large, kGpt2Xl };
enum class Stem : std::uint8_t {
  kSmall,  ///< A convolution of 3x3: for images of some 30 pixels.
  kLarge,  ///< A convolution of 7x7 in steps of 2, and a max pool: for ImageNet's.
};
enum class TokenizerKind : std::uint8_t { kBytes, kGpt2, kLlama2c };
enum class DeviceKind : std::uint8_t { kCpu, kCuda };

// As they stand in files: "gpt", "bf16", "gpt2-medium" (no preset: ""), ...
[[nodiscard]] std::string_view to_string(ModelKind kind) noexcept;
[[nodiscard]] std::string_view to_string(DataType type) noexcept;
[[nodiscard]] std::string_view to_string(Positions positions) noexcept;
[[nodiscard]] std::string_view to_string(Preset preset) noexcept;
[[nodiscard]] std::string_view to_string(Stem stem) noexcept;
[[nodiscard]] std::string_view to_string(TokenizerKind kind) noexcept;
[[nodiscard]] std::string_view to_string(OptimizerKind kind) noexcept;
[[nodiscard]] std::string_view to_string(DeviceKind kind) noexcept;

/// [model]. Members that do not belong to the kind keep the values that they have here.
struct ModelConfig {
  ModelKind kind = ModelKind::kGpt;
  DataType dtype = DataType::kF32;  ///< Of activations; weights are kept in f32 in either case.
  // gpt
  Preset preset = Preset::kNone;  ///< Fills the sizes; keys that are given override it.
  unsigned vocabulary = 0;        ///< 0: that of the data.
  unsigned context = 128;         ///< Tokens that the model sees at once.
  unsigned layers = 6;
  unsigned heads = 4;      ///< Divides the width.
  unsigned width = 128;    ///< gpt: of a token's vector; resnet: channels of the first stage (default 16).
  unsigned mlp_ratio = 4;  ///< Width inside the MLP, in widths.
  Positions positions = Positions::kLearned;
  // mlp, cnn
  std::vector<unsigned> hidden;               ///< Widths of the hidden layers (defaults: mlp 256, cnn 128).
  std::vector<std::vector<unsigned>> stages;  ///< cnn: channels of each stage's convolutions; a max pool ends a stage.
  bool batch_norm = false;                    ///< cnn: after each convolution.
  // resnet, densenet
  std::vector<unsigned> blocks;  ///< Of each stage (defaults: resnet 2, 2, 2; densenet 6, 12, 24, 16).
  bool bottleneck = false;       ///< resnet: 1x1, 3x3, 1x1; densenet: 1x1 before each 3x3 (default there: true).
  Stem stem = Stem::kSmall;      ///< (default: resnet small, densenet large)
  unsigned growth = 32;          ///< densenet: channels that each layer adds.
  unsigned stem_width = 0;       ///< densenet: channels after the stem; 0: twice the growth.
  double compression = 0.5;      ///< densenet: share of the channels that a transition keeps.
  friend bool operator==(const ModelConfig&, const ModelConfig&) = default;
};

/// [data]. Text or tokens (gpt), or images (the others); each path "" if not given.
struct DataConfig {
  std::string text;
  std::string tokens;  ///< A token file.
  data::TokenFile::Format token_format = data::TokenFile::Format::kDunnock;
  TokenizerKind tokenizer = TokenizerKind::kBytes;
  std::string vocabulary;         ///< gpt2: vocab.json, and
  std::string merges;             ///< merges.txt, or
  std::string tokenizer_file;     ///< gpt2: tokenizer.json; llama2c: its file
  double validation_share = 0.1;  ///< Of the tokens or, without test images, of the images: the last ones.
  std::string images, labels, test_images, test_labels;  ///< IDX
  unsigned classes = 10;
  std::vector<double> mean = {0}, deviation = {1};  ///< Of pixels from 0 to 1: one of each, or one a channel.
  data::Order order = data::Order::kShuffled;
  friend bool operator==(const DataConfig&, const DataConfig&) = default;
};

/// [optimizer]
struct OptimizerConfig {
  OptimizerKind kind = OptimizerKind::kAdamw;
  double learning_rate = 1e-3;  ///< The peak.
  double weight_decay = 0;
  double beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8;  // adamw
  double momentum = 0;                                // sgd
  bool nesterov = false;                              // sgd
  double clip = 0;                                    ///< Longest gradient, all tensors together; 0: not clipped.
  training::RateSchedule schedule = training::RateSchedule::kConstant;
  std::uint64_t warmup = 0;         ///< Steps.
  double final_share = 0.1;         ///< cosine, linear: of the learning rate, at the end.
  std::uint64_t drop_every = 1000;  ///< step: steps between drops.
  double drop_factor = 0.1;         ///< step
  friend bool operator==(const OptimizerConfig&, const OptimizerConfig&) = default;
};

/// [run]
struct RunConfig {
  std::uint64_t steps = 1000;  ///< This or `epochs`; the other is 0.
  std::uint64_t epochs = 0;
  unsigned batch = 32;                    ///< Rows or images of a whole step, of all ranks and micro-batches together.
  unsigned micro_batches = 1;             ///< That each rank's part of a batch is cut into.
  std::uint64_t seed = 1;                 ///< At most 2^63 - 1, as TOML has it.
  std::string schedule = "conventional";  ///< One of training::schedule_names().
  unsigned data_parallel = 1;             ///< Ranks that share a batch.
  unsigned pipeline = 1;                  ///< Stages that a model is cut into.
  unsigned window = 4;                    ///< Steps that are issued at once.
  unsigned peer_timeout_s = 60;           ///< Seconds that ranks wait for each other before they give up.
  unsigned threads = 0;                   ///< Of the CPU backend; 0: as many as there are cores.
  DeviceKind device = DeviceKind::kCpu;
  bool measure_costs = false;          ///< All ranks measure the costs for schedules; false: estimates.
  bool as_graph = false;               ///< Record a window once, and issue it as one graph.
  std::uint64_t evaluate_every = 0;    ///< Steps; 0: at the end only.
  std::uint64_t evaluate_batches = 0;  ///< 0: all.
  std::uint64_t log_every = 10;        ///< Steps.
  std::uint64_t bucket_kib = 0;        ///< Gradients that are summed at a time; 0: searched.
  std::uint64_t memory_limit_mib = 0;  ///< Of each device; 0: none.
  friend bool operator==(const RunConfig&, const RunConfig&) = default;
};

/// What communicators of this run are made with.
[[nodiscard]] inline std::chrono::milliseconds peer_timeout(const RunConfig& run) {
  return std::chrono::seconds(run.peer_timeout_s);
}

/// [checkpoint]
struct CheckpointConfig {
  std::string pool;                ///< "": no checkpoints.
  std::uint64_t every = 0;         ///< Steps; 0: when the run ends or is interrupted.
  unsigned keep_last = 2;          ///< This many of the last are kept, and
  std::uint64_t keep_every = 0;    ///< those whose step is a multiple of this; 0: no others.
  std::uint64_t pool_mib = 0;      ///< Of a new pool; 0: chosen by the model's size.
  std::string media = "auto";      ///< "auto" (detect_media()), or a name of MediaKind: file, direct, eadr, process.
  std::uint64_t staging_mib = 64;  ///< For copies of tensors that are being saved; 0: the least that goes.
  friend bool operator==(const CheckpointConfig&, const CheckpointConfig&) = default;
};

/// [log]: paths, each "" if not wanted.
struct LogConfig {
  std::string csv;
  std::string json;  ///< JSON lines.
  std::string plot;  ///< SVG.
  friend bool operator==(const LogConfig&, const LogConfig&) = default;
};

/// [sample]: text that is generated at the end.
struct SampleConfig {
  unsigned tokens = 0;
  double temperature = 0.8;  ///< 0: always the likeliest token.
  unsigned top_k = 0;        ///< 0: of all tokens.
  std::string prompt = "\n";
  friend bool operator==(const SampleConfig&, const SampleConfig&) = default;
};

struct TrainConfig {
  ModelConfig model;
  DataConfig data;
  OptimizerConfig optimizer;
  RunConfig run;
  CheckpointConfig checkpoint;
  LogConfig log;
  SampleConfig sample;
  friend bool operator==(const TrainConfig&, const TrainConfig&) = default;
};

/// "section.key=value", and what errors call it by.
struct Override {
  std::string text;
  std::string by = "--set";
};

/// A config, and where it came from.
struct LoadedConfig {
  TrainConfig config;
  std::string name;                           ///< Of the file, as errors say it.
  std::string folder;                         ///< Of the file; "" is the working directory.
  std::map<std::string, std::string> places;  ///< Of each key that was given: "FILE:LINE:COLUMN" or "--set KEY=VALUE".
  std::string text;                           ///< Of the file.
  bool has_file = false;                      ///< `name` is the path of a file.
  std::vector<Override> overrides;            ///< That were given with it.
  std::vector<std::string> notes;  ///< Former names of keys, a line each: "PLACE: KEY is now called KEY; ...".

  /// What of [data] is opened: `path`, from the file's folder on unless it is absolute.
  [[nodiscard]] std::string path_of(const std::string& path) const;
  /// "FILE:LINE:COLUMN: section.key" for errors about a value; the file's name alone where the default is meant.
  [[nodiscard]] std::string where(const std::string& key) const;
};

/// Reads a file and then the overrides, "section.key=value" each; values as in TOML, but text may stand without quotes.
/// The last of several wins; one of run.steps and run.epochs takes the other's place, and where one chooses another
/// kind (of model, optimizer, rates or tokenizer), what the file says for its own kind is passed over. Errors:
/// NotFound, ReadOnly, InvalidArgument (not a file, or larger than 1 MiB), Io; InvalidArgument: everything that is
/// wrong, a line each, in the order of the file: PLACE: KEY: expected WHAT, got WHAT.
[[nodiscard]] Result<LoadedConfig> read_config(const std::string& path, std::span<const std::string> overrides = {});
/// The same of a text. `name`: for errors, and its folder for paths.
[[nodiscard]] Result<LoadedConfig> parse_config(std::string_view text, const std::string& name,
                                                std::span<const std::string> overrides = {});

/// Another time, with more overrides behind those that it had.
[[nodiscard]] Result<LoadedConfig> with_overrides(const LoadedConfig& loaded, std::span<const Override> more);

/// What a run needs beyond a sound config: the data of its kind of model, and the files of its tokenizer.
/// Errors: InvalidArgument, naming the keys. Opens nothing.
[[nodiscard]] Status check_ready(const LoadedConfig& loaded);

/// Every key that applies, in a fixed order. parse_config() of it gives an equal config.
[[nodiscard]] std::string to_toml(const TrainConfig& config);

/// XXH3-64 of what determines the weights after each step, so that a run goes on with the checkpoint of another config
/// only where that makes sense: model, data (names of files without their folders), optimizer, batch and seed; the
/// length of the run where the learning rate depends on it. Not: schedule, ranks, micro-batches (they change the sums'
/// order, and what batch norm sees at once), device, checkpoints, logs, samples. The data's content is the loader's to
/// compare (LoaderPosition::setup). Stable between builds and machines.
[[nodiscard]] std::uint64_t identity_of(const TrainConfig& config);

/// The value of a key, as in TOML; none: it does not apply, or is not used (steps beside epochs), or there is no such
/// key.
[[nodiscard]] std::optional<std::string> value_of(const TrainConfig& config, std::string_view key);

/// A key that identity_of() takes in, with its values in two configs, as in TOML; "none" where it does not apply.
struct ConfigDifference {
  std::string key, here, there;
  friend bool operator==(const ConfigDifference&, const ConfigDifference&) = default;
};
/// Why identity_of() of the two is not the same.
[[nodiscard]] std::vector<ConfigDifference> differences(const TrainConfig& here, const TrainConfig& there);

/// The learning rate of a run of `steps` steps.
[[nodiscard]] training::LearningRate learning_rate_of(const TrainConfig& config, std::uint64_t steps);

/// For the manual, which tests/tools/train/config_test.cpp compares.
struct KeyDescription {
  std::string name;      ///< "model.kind"
  std::string type;      ///< "\"adamw\" or \"sgd\"", "a whole number from 1 to 64"
  std::string fallback;  ///< As in TOML, for the model that it belongs to first.
};
[[nodiscard]] std::vector<KeyDescription> known_keys();

}  // namespace dunnock::train
