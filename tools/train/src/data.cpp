#include "data.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <variant>

#include "dunnock/base/input_file.hpp"
#include "dunnock/data/bpe.hpp"
#include "dunnock/data/byte_tokenizer.hpp"
#include "dunnock/data/idx.hpp"
#include "dunnock/data/llama2c_tokenizer.hpp"

namespace dunnock::train {
namespace {

using model::ModelOptions;
using training::StepInput;

tl::unexpected<Error> invalid(std::string what) { return make_error(ErrorCode::kInvalidArgument, std::move(what)); }

/// An error of what a key names.
tl::unexpected<Error> about(const LoadedConfig& loaded, const std::string& key, const Error& error) {
  return make_error(error.code, loaded.where(key) + ": " + error.message);
}

using Tokenizer = std::variant<std::monostate, data::Bpe, data::Llama2cTokenizer>;  // First: bytes.

Result<Tokenizer> open_tokenizer(const LoadedConfig& loaded) {
  const DataConfig& data = loaded.config.data;
  switch (data.tokenizer) {
    case TokenizerKind::kBytes: break;
    case TokenizerKind::kGpt2: {
      if (!data.tokenizer_file.empty()) {
        auto bpe = data::Bpe::load_json(loaded.path_of(data.tokenizer_file));
        if (!bpe) return about(loaded, "data.tokenizer_file", bpe.error());
        return Tokenizer(std::move(*bpe));
      }
      // An error names the key and the file that it is about.
      const std::string vocabulary_path = loaded.path_of(data.vocabulary), merges_path = loaded.path_of(data.merges);
      const auto of_file = [](const std::string& path, const Error& error) {
        return Error{error.code, path + ": " + error.message};
      };
      const auto vocabulary = read_file(vocabulary_path);
      if (!vocabulary) return about(loaded, "data.vocabulary", vocabulary.error());
      const auto merges = read_file(merges_path);
      if (!merges) return about(loaded, "data.merges", merges.error());
      auto bpe = data::Bpe::parse_vocabulary(*vocabulary);
      if (!bpe) return about(loaded, "data.vocabulary", of_file(vocabulary_path, bpe.error()));
      if (Status added = bpe->add_merges(*merges); !added)
        return about(loaded, "data.merges", of_file(merges_path, added.error()));
      return Tokenizer(std::move(*bpe));
    }
    case TokenizerKind::kLlama2c: {
      auto llama = data::Llama2cTokenizer::load(loaded.path_of(data.tokenizer_file));
      if (!llama) return about(loaded, "data.tokenizer_file", llama.error());
      return Tokenizer(std::move(*llama));
    }
  }
  return Tokenizer();
}

std::vector<std::int32_t> encode_with(const Tokenizer& tokenizer, std::string_view text) {
  if (const auto* bpe = std::get_if<data::Bpe>(&tokenizer)) return bpe->encode(text);
  if (const auto* llama = std::get_if<data::Llama2cTokenizer>(&tokenizer)) return llama->encode(text, {});
  return data::ByteTokenizer::encode(text);
}

std::uint64_t vocabulary_of(const Tokenizer& tokenizer) {
  if (const auto* bpe = std::get_if<data::Bpe>(&tokenizer)) return static_cast<std::uint64_t>(bpe->vocabulary());
  if (const auto* llama = std::get_if<data::Llama2cTokenizer>(&tokenizer))
    return static_cast<std::uint64_t>(llama->vocabulary());
  return 256;
}

/// The text's tokens in a file whose name is gone as soon as it is open.
Result<data::TokenFile> as_token_file(const std::vector<std::int32_t>& tokens, std::uint64_t vocabulary) {
  std::error_code error;
  const std::filesystem::path folder = std::filesystem::temp_directory_path(error);
  if (error)
    return make_error(ErrorCode::kIo, "the directory for temporary files (TMPDIR) can't be used: " + error.message());
  DUNNOCK_TRY(auto made, create_new_file((folder / "dunnock-tokens-").string(), 0600));
  const std::string name = made.path;
  made.file.reset();
  const auto write = [&]() -> Result<data::TokenFile> {
    DUNNOCK_TRY(auto writer, data::TokenFileWriter::create(name, vocabulary));
    DUNNOCK_TRY(writer.append(tokens));
    DUNNOCK_TRY(writer.finish());
    return data::TokenFile::open(name);
  };
  auto file = write();
  (void)file_system().unlink(AT_FDCWD, name.c_str());
  return file;
}

std::vector<std::size_t> sizes(const std::vector<unsigned>& some) { return {some.begin(), some.end()}; }

Result<ModelOptions> gpt_of(const LoadedConfig& loaded, std::uint64_t vocabulary) {
  const ModelConfig& model = loaded.config.model;
  if (model.vocabulary != 0 && model.vocabulary < vocabulary)
    return invalid(loaded.where("model.vocabulary") + ": expected at least the data's " + std::to_string(vocabulary) +
                   ", got " + std::to_string(model.vocabulary));
  return ModelOptions(
      model::GptOptions{.vocabulary = model.vocabulary != 0 ? model.vocabulary : static_cast<std::size_t>(vocabulary),
                        .context = model.context,
                        .layers = model.layers,
                        .heads = model.heads,
                        .width = model.width,
                        .mlp_ratio = model.mlp_ratio,
                        .positions = model.positions});
}

Result<ModelOptions> image_model_of(const LoadedConfig& loaded, const model::ImageShape& image) {
  const ModelConfig& model = loaded.config.model;
  const std::size_t classes = loaded.config.data.classes;
  switch (model.kind) {
    case ModelKind::kMlp:
      return ModelOptions(model::MlpOptions{.inputs = image.size(), .hidden = sizes(model.hidden), .classes = classes});
    case ModelKind::kCnn: {
      model::CnnOptions cnn{.image = image,
                            .stages = {},
                            .batch_norm = model.batch_norm,
                            .hidden = sizes(model.hidden),
                            .classes = classes};
      for (const auto& stage : model.stages) cnn.stages.push_back(sizes(stage));
      return ModelOptions(cnn);
    }
    case ModelKind::kResnet:
      return ModelOptions(model::ResNetOptions{.image = image,
                                               .blocks = sizes(model.blocks),
                                               .width = model.width,
                                               .bottleneck = model.bottleneck,
                                               .large_stem = model.stem == Stem::kLarge,
                                               .classes = classes});
    case ModelKind::kDensenet:
      if (!model.bottleneck || model.compression != 0.5)
        return make_error(ErrorCode::kUnsupported,
                          "only DenseNets with bottlenecks and a compression of 0.5 (DenseNet-BC) are supported");
      return ModelOptions(
          model::DenseNetOptions{.image = image,
                                 .blocks = sizes(model.blocks),
                                 .growth = model.growth,
                                 .stem_width = model.stem_width != 0 ? model.stem_width : 2 * std::size_t{model.growth},
                                 .large_stem = model.stem == Stem::kLarge,
                                 .classes = classes});
    case ModelKind::kGpt: break;
  }
  return invalid("a GPT can't be trained on images");
}

struct NamedPath {
  std::string key;
  std::string path;
};

/// An error names the key and the file that it is about.
Result<data::ImageSet> open_images_of(const LoadedConfig& loaded, const NamedPath& images, const NamedPath& labels) {
  const unsigned classes = loaded.config.data.classes;
  auto pixels = data::read_images(loaded.path_of(images.path));
  if (!pixels) return about(loaded, images.key, pixels.error());
  auto shown = data::read_labels(loaded.path_of(labels.path), classes);
  if (!shown) return about(loaded, labels.key, shown.error());
  auto set = data::ImageSet::create(std::move(*pixels), std::move(*shown), classes);
  if (!set)
    return about(loaded, labels.key,
                 {set.error().code, loaded.path_of(labels.path) + " does not match " + loaded.path_of(images.path) +
                                        ": " + set.error().message});
  return set;
}

/// Images first .. first + count - 1 of a set.
Result<data::ImageSet> part_of(const data::ImageSet& all, std::size_t first, std::size_t count) {
  std::vector<std::byte> pixels;
  std::vector<std::byte> labels;
  for (std::size_t i = first; i < first + count; ++i) {
    const auto bytes = std::as_bytes(all.image(i));
    pixels.insert(pixels.end(), bytes.begin(), bytes.end());
    labels.push_back(static_cast<std::byte>(all.label(i)));
  }
  const auto n = static_cast<std::uint32_t>(count);
  data::IdxArray images{data::IdxType::kU8,
                        {n, static_cast<std::uint32_t>(all.channels()), static_cast<std::uint32_t>(all.height()),
                         static_cast<std::uint32_t>(all.width())},
                        std::move(pixels)};
  return data::ImageSet::create(std::move(images), {data::IdxType::kU8, {n}, std::move(labels)}, all.classes());
}

}  // namespace

struct TrainingData::State {
  LoadedConfig config;
  data::Shard shard;
  ModelOptions model;
  // Tokens.
  Tokenizer tokenizer;
  std::uint64_t vocabulary = 0;  // Of the data.
  std::optional<data::TokenFile> file;
  data::TokenSplit split;
  std::optional<data::TokenLoader> tokens;
  std::vector<data::TokenBatch> token_batches;
  // Images.
  std::shared_ptr<const data::ImageSet> images;
  std::shared_ptr<const data::ImageSet> validation;
  std::optional<data::ImageLoader> image_loader;
  std::vector<data::ImageBatch> image_batches;
  std::vector<std::vector<float>> turned;  // Of each batch, channels innermost.

  [[nodiscard]] bool has_tokens() const { return file.has_value(); }

  Status open_tokens();
  Status open_images();
  Result<data::TokenLoader> token_loader(data::TokenRange range, data::Order order, unsigned buffers,
                                         const data::LoaderPosition* start) const;
  Result<data::ImageLoader> make_image_loader(std::shared_ptr<const data::ImageSet> set, data::Order order,
                                              bool remainder, unsigned buffers,
                                              const data::LoaderPosition* start) const;
  /// (rows, channels, height, width) -> (rows, height, width, channels); the same memory where there is one channel.
  std::span<const float> turn(const data::ImageBatch& batch, std::vector<float>& to) const;
};

TrainingData::TrainingData(std::unique_ptr<State> state) noexcept : state_(std::move(state)) {}
TrainingData::TrainingData(TrainingData&&) noexcept = default;
TrainingData& TrainingData::operator=(TrainingData&&) noexcept = default;
TrainingData::~TrainingData() = default;

Status TrainingData::State::open_tokens() {
  const DataConfig& data = config.config.data;
  DUNNOCK_TRY(auto opened, open_tokenizer(config));
  tokenizer = std::move(opened);
  vocabulary = vocabulary_of(tokenizer);
  if (!data.text.empty()) {
    const auto text = read_file(config.path_of(data.text));
    if (!text) return about(config, "data.text", text.error());
    auto made = as_token_file(encode_with(tokenizer, *text), vocabulary);
    if (!made) return about(config, "data.text", made.error());
    file = std::move(*made);
  } else {
    auto made = data::TokenFile::open(config.path_of(data.tokens),
                                      {.format = data.token_format, .vocabulary = config.config.model.vocabulary});
    if (!made) return about(config, "data.tokens", made.error());
    vocabulary = made->vocabulary();
    file = std::move(*made);
  }
  split = data::split_tokens(file->count(), data.validation_share);
  DUNNOCK_TRY(auto gpt, gpt_of(config, vocabulary));
  model = gpt;
  return {};
}

Status TrainingData::State::open_images() {
  const DataConfig& data = config.config.data;
  DUNNOCK_TRY(auto set, open_images_of(config, {"data.images", data.images}, {"data.labels", data.labels}));
  auto all = std::make_shared<const data::ImageSet>(std::move(set));
  const auto share = [&](const Result<data::ImageSet>& part, std::shared_ptr<const data::ImageSet>& to) -> Status {
    DUNNOCK_TRY(part);
    to = std::make_shared<const data::ImageSet>(*part);
    return {};
  };
  images = all;
  if (!data.test_images.empty()) {
    const auto test =
        open_images_of(config, {"data.test_images", data.test_images}, {"data.test_labels", data.test_labels});
    DUNNOCK_TRY(test);
    if (test->pixels() != all->pixels() || test->channels() != all->channels())
      return invalid(config.where("data.test_images") + ": the test images differ in size from the training images");
    DUNNOCK_TRY(share(test, validation));
  } else if (const auto kept = static_cast<std::size_t>(data.validation_share * static_cast<double>(all->count()));
             kept > 0) {
    DUNNOCK_TRY(share(part_of(*all, all->count() - kept, kept), validation));
    DUNNOCK_TRY(share(part_of(*all, 0, all->count() - kept), images));
  }
  DUNNOCK_TRY(auto made, image_model_of(config, {all->height(), all->width(), all->channels()}));
  model = made;
  return {};
}

Result<data::TokenLoader> TrainingData::State::token_loader(data::TokenRange range, data::Order order, unsigned buffers,
                                                            const data::LoaderPosition* start) const {
  return data::TokenLoader::create(*file, range,
                                   {.batch = config.config.run.batch,
                                    .tokens = std::get<model::GptOptions>(model).context,
                                    .order = order,
                                    .seed = config.config.run.seed,
                                    .shard = shard,
                                    .buffers = buffers},
                                   device::Device::cpu(), start);
}

Result<data::ImageLoader> TrainingData::State::make_image_loader(std::shared_ptr<const data::ImageSet> set,
                                                                 data::Order order, bool remainder, unsigned buffers,
                                                                 const data::LoaderPosition* start) const {
  const DataConfig& data = config.config.data;
  return data::ImageLoader::create(std::move(set),
                                   {.batch = config.config.run.batch,
                                    .order = order,
                                    .keep_remainder = remainder,
                                    .seed = config.config.run.seed,
                                    .mean = {data.mean.begin(), data.mean.end()},
                                    .deviation = {data.deviation.begin(), data.deviation.end()},
                                    .shard = shard,
                                    .buffers = buffers},
                                   device::Device::cpu(), start);
}

std::span<const float> TrainingData::State::turn(const data::ImageBatch& batch, std::vector<float>& to) const {
  const std::size_t channels = images->channels();
  if (channels == 1) return batch.images();
  const std::size_t positions = images->pixels() / channels;
  to.resize(batch.images().size());
  for (std::size_t row = 0; row < batch.rows(); ++row) {
    const float* from = batch.images().data() + row * channels * positions;
    float* into = to.data() + row * channels * positions;
    for (std::size_t c = 0; c < channels; ++c) {
      for (std::size_t p = 0; p < positions; ++p) into[p * channels + c] = from[c * positions + p];
    }
  }
  return to;
}

Result<TrainingData> TrainingData::open(const LoadedConfig& loaded, const data::Shard& shard) {
  auto state = std::make_unique<State>();
  state->config = loaded;
  state->shard = shard;
  const Status opened = loaded.config.model.kind == ModelKind::kGpt ? state->open_tokens() : state->open_images();
  DUNNOCK_TRY(opened);
  DUNNOCK_TRY(check(state->model));
  TrainingData data(std::move(state));
  DUNNOCK_TRY(data.start(nullptr));
  return data;
}

const model::ModelOptions& TrainingData::model() const { return state_->model; }

std::uint64_t TrainingData::batches_per_epoch() const {
  return state_->has_tokens() ? state_->tokens->batches_per_epoch() : state_->image_loader->batches_per_epoch();
}
std::string_view TrainingData::items() const { return state_->has_tokens() ? "tokens" : "images"; }
std::uint64_t TrainingData::items_per_batch() const {
  const std::uint64_t rows = state_->config.config.run.batch;
  return state_->has_tokens() ? rows * std::get<model::GptOptions>(state_->model).context : rows;
}

Status TrainingData::start(const data::LoaderPosition* position) {
  State& state = *state_;
  state.token_batches.clear();
  state.image_batches.clear();
  const unsigned buffers = state.config.config.run.window + 2;
  const data::Order order = state.config.config.data.order;
  if (state.has_tokens()) {
    const std::string key = state.config.config.data.text.empty() ? "data.tokens" : "data.text";
    auto loader = state.token_loader(state.split.training, order, buffers, position);
    if (!loader && position != nullptr)
      return about(
          state.config, key,
          {loader.error().code,
           state.config.path_of(key == "data.text" ? state.config.config.data.text : state.config.config.data.tokens) +
               " differs from what the checkpoint was trained on: " + loader.error().message});
    if (!loader) return about(state.config, key, loader.error());
    state.tokens.emplace(std::move(*loader));
    return {};
  }
  auto loader = state.make_image_loader(state.images, order, false, buffers, position);
  if (!loader) return about(state.config, "data.images", loader.error());
  state.image_loader.emplace(std::move(*loader));
  return {};
}

data::LoaderPosition TrainingData::position() const {
  return state_->has_tokens() ? state_->tokens->position() : state_->image_loader->position();
}

Result<std::vector<StepInput>> TrainingData::next(std::size_t count) {
  State& state = *state_;
  std::vector<StepInput> inputs;
  state.token_batches.clear();
  state.image_batches.clear();
  state.turned.resize(count);
  for (std::size_t i = 0; i < count; ++i) {
    if (state.has_tokens()) {
      DUNNOCK_TRY(auto batch, state.tokens->next());
      state.token_batches.push_back(std::move(batch));
      inputs.push_back(
          {.tokens = state.token_batches.back().inputs(), .targets = state.token_batches.back().targets()});
    } else {
      DUNNOCK_TRY(auto batch, state.image_loader->next());
      state.image_batches.push_back(std::move(batch));
      inputs.push_back({.images = state.turn(state.image_batches.back(), state.turned[i]),
                        .targets = state.image_batches.back().labels()});
    }
  }
  return inputs;
}

Result<std::optional<training::Evaluation>> TrainingData::evaluate(training::Trainer& trainer, std::uint64_t batches,
                                                                   const std::function<Result<bool>()>& stops) {
  State& state = *state_;
  training::Evaluation sum;
  // One micro-batch after the other: a request to stop is noticed after each. Returns whether there was one.
  const auto add = [&](const StepInput& input, std::size_t rows) -> Result<bool> {
    const std::size_t at_once = trainer.options().rows;
    for (std::size_t first = 0; first < rows; first += at_once) {
      const std::size_t some = std::min(at_once, rows - first);
      const auto part = [&](auto values) {
        const std::size_t a_row = values.size() / rows;
        return values.subspan(first * a_row, some * a_row);
      };
      DUNNOCK_TRY(const auto made,
                  trainer.evaluate(
                      {.images = part(input.images), .tokens = part(input.tokens), .targets = part(input.targets)}));
      sum.loss += made.loss;
      sum.correct += made.correct;
      sum.targets += made.targets;
      auto stopped = stops();
      if (!stopped || *stopped) return stopped;
    }
    return false;
  };
  if (state.has_tokens()) {
    auto loader = state.token_loader(state.split.validation, data::Order::kSequential, 3, nullptr);
    if (!loader) return std::nullopt;  // Too few tokens for a batch.
    const std::uint64_t all = loader->batches_per_epoch();
    for (std::uint64_t i = 0; i < (batches == 0 ? all : std::min(all, batches)); ++i) {
      DUNNOCK_TRY(const auto batch, loader->next());
      DUNNOCK_TRY(const auto stopped, add({.tokens = batch.inputs(), .targets = batch.targets()}, batch.rows()));
      if (stopped) break;
    }
    return sum;
  }
  if (state.validation == nullptr) return std::nullopt;
  DUNNOCK_TRY(auto loader, state.make_image_loader(state.validation, data::Order::kSequential, true, 3, nullptr));
  const std::uint64_t all = loader.batches_per_epoch();
  std::vector<float> turned;
  for (std::uint64_t i = 0; i < (batches == 0 ? all : std::min(all, batches)); ++i) {
    DUNNOCK_TRY(const auto batch, loader.next());
    DUNNOCK_TRY(const auto stopped,
                add({.images = state.turn(batch, turned), .targets = batch.labels()}, batch.rows()));
    if (stopped) break;
  }
  return sum;
}

bool TrainingData::start_lacks_checksum() const { return state_->tokens && state_->tokens->start_lacks_checksum(); }

std::size_t TrainingData::vocabulary() const { return std::min(state_->vocabulary, vocabulary_of(state_->tokenizer)); }

Result<std::vector<std::int32_t>> TrainingData::encode(std::string_view text) const {
  // The vocabulary may be larger, filled up to what matrix products like: what the file has counts.
  const std::uint64_t known = vocabulary_of(state_->tokenizer);
  const std::uint64_t largest = state_->file->largest().value_or(0);
  if (largest >= known)
    return invalid("data.tokens has the token " + std::to_string(largest) + ", but data.tokenizer has only " +
                   std::to_string(known) + " tokens");
  return encode_with(state_->tokenizer, text);
}

Result<std::string> TrainingData::decode(std::span<const std::int32_t> tokens) const {
  if (const auto* bpe = std::get_if<data::Bpe>(&state_->tokenizer)) return bpe->decode(tokens);
  if (const auto* llama = std::get_if<data::Llama2cTokenizer>(&state_->tokenizer)) return llama->decode(tokens);
  return data::ByteTokenizer::decode(tokens);
}

}  // namespace dunnock::train
