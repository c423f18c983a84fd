// Weights as safetensors files: round trips, orders, names of others, and what is wrong with a file in words.
#include "dunnock/training/weights.hpp"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "dunnock/index/checkpoint_files.hpp"
#include "support/seed.hpp"
#include "support/temporary_folder.hpp"
#include "training/runs.hpp"

namespace dunnock::test {
namespace {

using model::ModelOptions;
using training::load_weights;
using training::save_weights;
using training::Trainer;

std::unique_ptr<Trainer> trainer_of(const ModelOptions& model, std::uint64_t seed, const RankOfGrid& rank = {},
                                    const std::string& schedule = "conventional") {
  auto trainer = Trainer::create(
      device::Device::cpu(rank.number),
      {.model = model, .rows = 2, .seed = seed, .schedule = schedule, .threads = 1, .plan = {}, .costs = {}},
      rank.ranks);
  EXPECT_TRUE(trainer) << trainer.error().message;
  return trainer ? std::move(*trainer) : nullptr;
}

/// Weights and running statistics, as they are seen.
States weights_of(const Trainer& trainer) {
  States weights;
  for (auto& [name, values] : state_of(trainer)) {
    if (name.find("moment of ") == std::string::npos) weights[name] = values;
  }
  return weights;
}

struct FileTensor {
  Dtype dtype = Dtype::kF32;
  std::vector<std::uint64_t> shape{};
  std::vector<std::byte> bytes{};
};
using FileTensors = std::map<std::string, FileTensor>;

FileTensor tensor_of(const std::vector<std::uint64_t>& shape, const std::vector<float>& values) {
  const auto bytes = std::as_bytes(std::span(values));
  return {Dtype::kF32, shape, {bytes.begin(), bytes.end()}};
}

FileTensors read_file(const std::string& path) {
  FileTensors tensors;
  const auto file = SafetensorsFile::open(path);
  EXPECT_TRUE(file) << file.error().message;
  for (const SafetensorsEntry& entry : file->header().tensors) {
    FileTensor& tensor = tensors[entry.spec.name];
    tensor = {entry.spec.dtype, entry.spec.shape, std::vector<std::byte>(*entry.spec.bytes())};
    EXPECT_TRUE(file->read(entry.begin_bytes, tensor.bytes));
  }
  return tensors;
}

void write_file(const std::string& path, const FileTensors& tensors) {
  std::vector<TensorSpec> specs;
  for (const auto& [name, tensor] : tensors) specs.push_back({name, tensor.dtype, tensor.shape});
  auto writer = SafetensorsWriter::create(path, specs, {});
  ASSERT_TRUE(writer) << writer.error().message;
  std::size_t number = 0;
  for (const auto& [name, tensor] : tensors) ASSERT_TRUE(writer->write(number++, 0, tensor.bytes));
  ASSERT_TRUE(writer->commit());
}

class RoundTrip : public ::testing::TestWithParam<std::string> {};

TEST_P(RoundTrip, gives_the_same_bits) {
  auto random = generator(21);
  const TemporaryFolder folder;
  for (int round = 0; round < 4; ++round) {
    const ModelOptions model = random_model(GetParam(), random);
    SCOPED_TRACE(to_string(model));
    const auto from = trainer_of(model, 1);
    ASSERT_TRUE(load_weights_of(*from, random_weights(model, random)));
    const std::string path = folder.path("weights");
    ASSERT_TRUE(save_weights(*from, path));
    const auto to = trainer_of(model, 2);
    ASSERT_NE(weights_of(*to), weights_of(*from));
    const auto loaded = load_weights(*to, path);
    ASSERT_TRUE(loaded) << loaded.error().message;
    EXPECT_EQ(weights_of(*to), weights_of(*from));
    // In the file, names and shapes are PyTorch's, and values lie as they are seen.
    const FileTensors file = read_file(path);
    const States seen = weights_of(*from);
    EXPECT_EQ(file.size(), seen.size());
    for (const auto& [name, shape] : parameter_shapes(model)) {
      ASSERT_TRUE(file.contains(name)) << name;
      EXPECT_EQ(file.at(name).shape, std::vector<std::uint64_t>(shape.begin(), shape.end())) << name;
      ASSERT_EQ(file.at(name).bytes.size(), seen.at(name).size() * sizeof(float)) << name;
      EXPECT_EQ(std::memcmp(file.at(name).bytes.data(), seen.at(name).data(), file.at(name).bytes.size()), 0) << name;
    }
  }
}
INSTANTIATE_TEST_SUITE_P(All, RoundTrip, ::testing::ValuesIn(random_kinds()));

TEST(WeightsFile, convolutions_and_the_linear_layer_behind_them_lie_channels_innermost) {
  const model::CnnOptions model{.image = {4, 6, 2}, .stages = {{3}}, .batch_norm = false, .hidden = {}, .classes = 2};
  const TemporaryFolder folder;
  const auto counted = [](std::vector<std::uint64_t> shape) {
    std::size_t size = 1;
    for (const std::uint64_t side : shape) size *= side;
    std::vector<float> values(size);
    for (std::size_t i = 0; i < size; ++i) values[i] = static_cast<float>(i);
    return tensor_of(shape, values);
  };
  write_file(folder.path("weights"), {{"features.0.weight", counted({3, 2, 3, 3})},
                                      {"features.0.bias", counted({3})},
                                      {"classifier.0.weight", counted({2, 3 * 2 * 3})},
                                      {"classifier.0.bias", counted({2})}});
  const auto trainer = trainer_of(ModelOptions(model), 1);
  const auto loaded = load_weights(*trainer, folder.path("weights"));
  ASSERT_TRUE(loaded) << loaded.error().message;
  int found = 0;
  for (const model::StateTensor& tensor : trainer->state()) {
    if (tensor.what != model::StateTensor::What::kWeight || tensor.shape.size() < 2) continue;
    ++found;
    const bool linear = tensor.name == "classifier.0.weight";
    const std::size_t channels = linear ? 3 : 2;
    const std::size_t positions = linear ? 2 * 3 : 9;
    ASSERT_EQ(tensor.positions, positions) << tensor.name;
    // (out, positions, channels) of what was (out, channels, positions).
    for (std::size_t i = 0; i < tensor.values.size(); ++i) {
      const std::size_t out = i / (positions * channels);
      const std::size_t position = i / channels % positions;
      const std::size_t channel = i % channels;
      EXPECT_EQ(tensor.values.device_data()[i], static_cast<float>((out * channels + channel) * positions + position))
          << tensor.name << " [" << i << "]";
    }
  }
  EXPECT_EQ(found, 2);
}

// ----- files of others ----------------------------------------------------------------------------------------------

/// Of a tiny GPT: a sound file, and its weights.
struct Gpt {
  ModelOptions model =
      model::GptOptions{.vocabulary = 7, .context = 5, .layers = 2, .heads = 2, .width = 8, .mlp_ratio = 2};
  TemporaryFolder folder;
  std::string path = folder.path("weights");
  FileTensors tensors;
  States weights;

  Gpt() {
    const auto trainer = trainer_of(model, 3);
    EXPECT_TRUE(save_weights(*trainer, path));
    tensors = read_file(path);
    weights = weights_of(*trainer);
  }
  Result<model::LoadedWeights> load_into(Trainer& trainer) {
    write_file(path, tensors);
    return load_weights(trainer, path);
  }
  /// Loads it, and expects this.
  void expect_error(ErrorCode code, const std::string& word) {
    const auto trainer = trainer_of(model, 4);
    const States before = weights_of(*trainer);
    const auto loaded = load_into(*trainer);
    ASSERT_FALSE(loaded);
    EXPECT_EQ(loaded.error().code, code) << loaded.error().message;
    EXPECT_NE(loaded.error().message.find(word), std::string::npos) << loaded.error().message;
    EXPECT_EQ(weights_of(*trainer), before) << "found before anything was taken over";
  }
};

/// The same tensors, each name changed.
FileTensors renamed(const FileTensors& tensors, const std::function<std::string(const std::string&)>& name) {
  FileTensors made;
  for (const auto& [old, tensor] : tensors) made[name(old)] = tensor;
  return made;
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const std::size_t at = text.find(from);
  return at == std::string::npos ? text : text.replace(at, from.size(), to);
}

TEST(WeightsFile, of_hugging_face_has_a_prefix_masks_and_a_tied_head) {
  for (const std::string prefix :
       {"", "transformer.", "model.", "module.", "_orig_mod.", "model.transformer.", "module._orig_mod.transformer.",
        "_orig_mod.module.model.transformer.", "module.module.", "_fsdp_wrapped_module.transformer."}) {
    Gpt gpt;
    FileTensors named = renamed(gpt.tensors, [&](const std::string& name) { return prefix + name; });
    for (const char* layer : {"h.0", "h.1"}) {
      named[prefix + layer + ".attn.bias"] = tensor_of({1, 1, 5, 5}, std::vector<float>(25, 1.0F));
      named[prefix + layer + ".attn.masked_bias"] = tensor_of({}, {-1e4F});
    }
    named[prefix + "lm_head.weight"] = gpt.tensors.at("wte.weight");
    gpt.tensors = named;
    const auto trainer = trainer_of(gpt.model, 4);
    const auto loaded = gpt.load_into(*trainer);
    ASSERT_TRUE(loaded) << prefix << ": " << loaded.error().message;
    EXPECT_EQ(weights_of(*trainer), gpt.weights) << prefix;
    EXPECT_EQ(loaded->left_out, (std::vector<std::string>{prefix + "h.0.attn.bias", prefix + "h.0.attn.masked_bias",
                                                          prefix + "h.1.attn.bias", prefix + "h.1.attn.masked_bias"}));
    EXPECT_EQ(loaded->files, std::vector<std::string>{gpt.path});
  }
}

TEST(WeightsFile, of_blocks_that_were_compiled_one_by_one_is_read) {
  Gpt gpt;
  gpt.tensors = renamed(gpt.tensors, [](const std::string& name) {
    return "transformer." +
           replaced(replaced(name, "h.0.", "h.0._orig_mod."), "h.1.", "h.1._checkpoint_wrapped_module.");
  });
  const auto trainer = trainer_of(gpt.model, 4);
  const auto loaded = gpt.load_into(*trainer);
  ASSERT_TRUE(loaded) << loaded.error().message;
  EXPECT_EQ(weights_of(*trainer), gpt.weights);
}

TEST(WeightsFile, may_have_the_head_instead_of_the_table_that_it_is_tied_to) {
  for (const std::string prefix : {"", "transformer.", "module."}) {
    Gpt gpt;
    const FileTensor table = gpt.tensors.at("wte.weight");
    gpt.tensors.erase("wte.weight");
    gpt.tensors[prefix + "lm_head.weight"] = table;
    const auto trainer = trainer_of(gpt.model, 4);
    const auto loaded = gpt.load_into(*trainer);
    ASSERT_TRUE(loaded) << loaded.error().message;
    EXPECT_EQ(weights_of(*trainer), gpt.weights);
  }
}

TEST(WeightsFile, with_an_untied_head_is_refused_at_the_first_value_that_differs) {
  Gpt gpt;
  FileTensor head = gpt.tensors.at("wte.weight");
  const float other = 0.5F;
  std::memcpy(head.bytes.data() + 4 * (2 * 8 + 3), &other, sizeof other);
  gpt.tensors["lm_head.weight"] = head;
  gpt.expect_error(ErrorCode::kInvalidArgument, "untied head");
  gpt.expect_error(ErrorCode::kInvalidArgument, "[2, 3] (index 19)");
  // One of another shape is another one, too, and so is a head that has a bias.
  head.shape[0] += 1;
  head.bytes.resize(head.bytes.size() + 8 * sizeof(float));
  gpt.tensors["lm_head.weight"] = head;
  gpt.expect_error(ErrorCode::kInvalidArgument, "'lm_head.weight' of the shape [8, 8]");
  gpt.tensors.erase("lm_head.weight");
  gpt.tensors["lm_head.bias"] = tensor_of({7}, std::vector<float>(7));
  gpt.expect_error(ErrorCode::kInvalidArgument, "'lm_head.bias'");
}

TEST(WeightsFile, with_more_layers_than_the_model_is_refused_and_names_them_all) {
  Gpt gpt;
  FileTensors more = gpt.tensors;
  for (const auto& [name, tensor] : gpt.tensors) {
    if (name.starts_with("h.1.")) more["h.2." + name.substr(4)] = tensor;
  }
  more["h.2.attn.bias"] = tensor_of({1, 1, 5, 5}, std::vector<float>(25, 1.0F));  // A mask, but of no layer of ours.
  const std::size_t added = more.size() - gpt.tensors.size();
  ASSERT_EQ(added, 13U);
  gpt.tensors = more;
  const auto trainer = trainer_of(gpt.model, 4);
  const auto loaded = gpt.load_into(*trainer);
  ASSERT_FALSE(loaded);
  EXPECT_EQ(loaded.error().code, ErrorCode::kInvalidArgument);
  for (const auto& [name, tensor] : more) {
    EXPECT_EQ(loaded.error().message.find("'" + name + "'") != std::string::npos, name.starts_with("h.2.")) << name;
  }
}

TEST(WeightsFile, is_refused_for_everything_that_is_wrong_at_once) {
  Gpt gpt;
  gpt.tensors.erase("h.1.mlp.c_fc.bias");
  gpt.tensors.erase("ln_f.weight");
  std::swap(gpt.tensors.at("h.0.mlp.c_fc.weight").shape[0], gpt.tensors.at("h.0.mlp.c_fc.weight").shape[1]);
  gpt.tensors["score.weight"] = tensor_of({2, 8}, std::vector<float>(16));
  gpt.tensors.at("ln_f.bias").dtype = Dtype::kI32;
  // No mask, but something of its name; and no counter of this model.
  gpt.tensors["h.0.attn.bias"] = tensor_of({24}, std::vector<float>(24));
  gpt.tensors["num_batches_tracked"] = tensor_of({}, {1});
  for (const char* words :
       {"7 reasons", "no tensor 'h.1.mlp.c_fc.bias'", "no tensor 'ln_f.weight'", "[16, 8], but the model's is [8, 16]",
        "'score.weight'", "'ln_f.bias' of the type I32", "'h.0.attn.bias'", "'num_batches_tracked'"})
    gpt.expect_error(ErrorCode::kInvalidArgument, words);
}

TEST(WeightsFile, with_another_vocabulary_says_which_one_fits) {
  Gpt gpt;
  FileTensor& table = gpt.tensors.at("wte.weight");
  table.shape[0] = 9;
  table.bytes.resize(std::size_t{9} * 8 * sizeof(float));
  gpt.expect_error(ErrorCode::kInvalidArgument, "model.vocabulary=9");
}

TEST(WeightsFile, with_one_tensor_twice_is_refused_and_names_both) {
  Gpt gpt;
  gpt.tensors["module.transformer.ln_f.bias"] = gpt.tensors.at("ln_f.bias");
  gpt.expect_error(ErrorCode::kInvalidArgument, "'ln_f.bias' twice");
  gpt.expect_error(ErrorCode::kInvalidArgument, "'module.transformer.ln_f.bias'");
}

TEST(WeightsFile, with_values_that_are_no_numbers_names_tensor_and_index) {
  for (const auto& [value, words] :
       {std::pair(std::nanf(""), "NaN"), std::pair(INFINITY, "with Inf"), std::pair(-INFINITY, "-Inf")}) {
    Gpt gpt;
    FileTensor& tensor = gpt.tensors.at("h.1.attn.c_attn.weight");  // (8, 24)
    std::memcpy(tensor.bytes.data() + 4 * (5 * 24 + 7), &value, sizeof value);
    std::memcpy(tensor.bytes.data() + 4 * (7 * 24 + 23), &value, sizeof value);
    gpt.expect_error(ErrorCode::kCorrupt, words);
    gpt.expect_error(ErrorCode::kCorrupt, "'h.1.attn.c_attn.weight'");
    gpt.expect_error(ErrorCode::kCorrupt, "[5, 7] (index 127)");
    gpt.expect_error(ErrorCode::kCorrupt, "the first of 2");
  }
  // Of halves, and in what a head alone would have; a scalar running statistic is looked at as well.
  Gpt gpt;
  for (auto& [name, tensor] : gpt.tensors) {
    tensor.dtype = Dtype::kBF16;
    tensor.bytes.resize(tensor.bytes.size() / 2);
  }
  FileTensor head = gpt.tensors.at("wte.weight");
  const std::uint16_t infinity = 0x7F80;
  std::memcpy(head.bytes.data() + 2 * 9, &infinity, 2);
  gpt.tensors["lm_head.weight"] = head;
  gpt.expect_error(ErrorCode::kCorrupt, "'lm_head.weight' with Inf at [1, 1]");
}

TEST(WeightsFile, of_batch_norms_has_counters) {
  auto random = generator(23);
  const ModelOptions model = random_model("resnet", random);
  const TemporaryFolder folder;
  const auto from = trainer_of(model, 1);
  ASSERT_TRUE(save_weights(*from, folder.path("weights")));
  FileTensors tensors = read_file(folder.path("weights"));
  std::size_t counters = 0;
  for (const auto& [name, values] : weights_of(*from)) {
    if (!name.ends_with("running_mean")) continue;
    tensors["module." + replaced(name, "running_mean", "num_batches_tracked")] =
        FileTensor{Dtype::kI64, {}, std::vector<std::byte>(8)};
    ++counters;
  }
  ASSERT_GT(counters, 0U);
  write_file(folder.path("weights"), tensors);
  const auto to = trainer_of(model, 2);
  const auto loaded = load_weights(*to, folder.path("weights"));
  ASSERT_TRUE(loaded) << loaded.error().message;
  EXPECT_EQ(loaded->left_out.size(), counters);
  EXPECT_EQ(weights_of(*to), weights_of(*from));
}

// ----- several files ------------------------------------------------------------------------------------------------

/// A Gpt's tensors in two files and an index, as save_pretrained() writes them.
struct Shards {
  Gpt gpt;
  TemporaryFolder folder;
  FileTensors first, second;
  std::map<std::string, std::string> map;

  Shards() {
    for (const auto& [name, tensor] : gpt.tensors) {
      const bool early = first.size() < gpt.tensors.size() / 2;
      (early ? first : second)["transformer." + name] = tensor;
      map["transformer." + name] = early ? "model-00001-of-00002.safetensors" : "model-00002-of-00002.safetensors";
    }
  }
  [[nodiscard]] std::string index() const { return folder.path("model.safetensors.index.json"); }
  void write() {
    write_file(folder.path("model-00001-of-00002.safetensors"), first);
    write_file(folder.path("model-00002-of-00002.safetensors"), second);
    std::string json = R"({"metadata": {"total_size": 1}, "weight_map": {)";
    for (const auto& [name, file] : map)
      json.append(json.back() == '{' ? "\"" : ", \"").append(name).append("\": \"").append(file).append("\"");
    (void)folder.write("model.safetensors.index.json", json + "}}");
  }
  Result<model::LoadedWeights> load(const std::string& path) {
    const auto trainer = trainer_of(gpt.model, 4);
    const States before = weights_of(*trainer);
    auto loaded = load_weights(*trainer, path);
    EXPECT_EQ(weights_of(*trainer), loaded ? gpt.weights : before);
    return loaded;
  }
  void expect_error(ErrorCode code, const std::string& word) {
    const auto loaded = load(index());
    ASSERT_FALSE(loaded);
    EXPECT_EQ(loaded.error().code, code) << loaded.error().message;
    EXPECT_NE(loaded.error().message.find(word), std::string::npos) << loaded.error().message;
  }
};

TEST(WeightsFiles, of_an_index_and_of_a_folder_are_read) {
  Shards shards;
  shards.write();
  for (const std::string& path : {shards.index(), shards.folder.path(""), shards.folder.path(".")}) {
    const auto loaded = shards.load(path);
    ASSERT_TRUE(loaded) << loaded.error().message;
    EXPECT_EQ(loaded->files.size(), 2U);
  }
  // A folder with one file, and one with neither or both.
  std::filesystem::remove(shards.index());
  const auto none = shards.load(shards.folder.path(""));
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().code, ErrorCode::kNotFound) << none.error().message;
  write_file(shards.folder.path("model.safetensors"), shards.gpt.tensors);
  const auto one = shards.load(shards.folder.path(""));
  EXPECT_TRUE(one) << one.error().message;
  shards.write();
  const auto both = shards.load(shards.folder.path(""));
  ASSERT_FALSE(both);
  EXPECT_NE(both.error().message.find("give the path of one of the two"), std::string::npos) << both.error().message;
}

TEST(WeightsFiles, with_one_tensor_in_two_of_them_are_refused) {
  Shards shards;
  shards.second["transformer.h.0.ln_1.bias"] = shards.first.at("transformer.h.0.ln_1.bias");
  shards.write();
  shards.expect_error(ErrorCode::kInvalidArgument,
                      "'h.0.ln_1.bias' twice, as 'transformer.h.0.ln_1.bias' (in model-00001-of-00002.safetensors)");
}

TEST(WeightsFiles, other_than_their_index_says_are_refused) {
  {
    Shards shards;
    shards.map["transformer.h.7.ln_1.bias"] = "model-00001-of-00002.safetensors";
    shards.write();
    shards.expect_error(ErrorCode::kInvalidArgument, "'transformer.h.7.ln_1.bias' is in model-00001-of-00002");
  }
  {
    Shards shards;
    shards.map.erase("transformer.h.0.ln_1.bias");
    shards.write();
    shards.expect_error(ErrorCode::kInvalidArgument, "does not name 'transformer.h.0.ln_1.bias'");
  }
  {
    Shards shards;
    shards.map["transformer.h.0.ln_1.bias"] = "model-00002-of-00002.safetensors";
    shards.write();
    shards.expect_error(ErrorCode::kInvalidArgument, "'transformer.h.0.ln_1.bias' is in model-00002-of-00002");
  }
  Shards shards;
  shards.write();
  std::filesystem::remove(shards.folder.path("model-00002-of-00002.safetensors"));
  shards.expect_error(ErrorCode::kNotFound, "model-00002-of-00002.safetensors");
}

TEST(WeightsFiles, of_an_index_that_is_none_are_refused) {
  Shards shards;
  const auto refused = [&](const std::string& text, const std::string& words) {
    (void)shards.folder.write("model.safetensors.index.json", text);
    shards.expect_error(ErrorCode::kCorrupt, words);
  };
  refused("", "not valid JSON");
  refused("[]", "not a JSON object");
  refused("{}", "weight_map");
  refused(R"({"weight_map": {}})", "weight_map");
  refused(R"({"weight_map": {"a": 1}})", "has no file name");
  refused(R"({"weight_map": {"a": "../a.safetensors"}})", "not a file in the directory of the index");
  refused(R"({"weight_map": {"a": "/a.safetensors"}})", "not a file in the directory of the index");
  refused(R"({"weight_map": {"a": "x", "a": "y"}})", "'a' occurs twice");
  refused(R"({"weight_map": {"a": "x"}} trailing)", "not valid JSON");
  refused(std::string("{\"weight_map\": {\"a\": \"x\"}}\0", 27), "NUL");
  refused(std::string(200, '['), "not valid JSON");
  refused(std::string(200, '[') + std::string(200, ']'), "64 levels deep");
}

TEST(WeightsFiles, that_are_fifos_or_devices_are_refused_at_once) {
  Shards shards;
  ASSERT_EQ(mkfifo(shards.folder.path("fifo").c_str(), 0600), 0);
  ASSERT_EQ(mkfifo(shards.folder.path("fifo.json").c_str(), 0600), 0);
  for (const std::string& path :
       {shards.folder.path("fifo"), shards.folder.path("fifo.json"), std::string("/dev/zero")}) {
    const auto loaded = shards.load(path);
    ASSERT_FALSE(loaded);
    EXPECT_EQ(loaded.error().code, ErrorCode::kInvalidArgument) << loaded.error().message;
    EXPECT_NE(loaded.error().message.find("regular"), std::string::npos) << loaded.error().message;
  }
}

TEST(WeightsFile, of_sixteen_bits_is_read_exactly) {
  // Values of both: all halves that are numbers, and the upper halves of floats.
  for (const Dtype dtype : {Dtype::kF16, Dtype::kBF16}) {
    Gpt gpt;
    auto random = generator(22);
    States expected = gpt.weights;
    for (auto& [name, tensor] : gpt.tensors) {
      tensor.dtype = dtype;
      tensor.bytes.resize(tensor.bytes.size() / 2);
      for (std::size_t i = 0; i < expected.at(name).size(); ++i) {
        auto bits = static_cast<std::uint16_t>(random());
        double value = 0;
        if (dtype == Dtype::kBF16) {
          if ((bits & 0x7F80) == 0x7F80) bits &= 0x7FFF & ~0x4000;  // No infinities and no NaN.
          value = static_cast<double>(std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16));
        } else {
          if ((bits & 0x7C00) == 0x7C00) bits &= ~0x4000;
          const int exponent = bits >> 10 & 31;
          const double fraction = bits & 1023;
          value = exponent == 0 ? fraction * std::exp2(-24) : (1 + fraction / 1024) * std::exp2(exponent - 15);
          if ((bits & 0x8000) != 0) value = -value;
        }
        std::memcpy(tensor.bytes.data() + 2 * i, &bits, 2);
        expected[name][i] = static_cast<float>(value);
      }
    }
    const auto trainer = trainer_of(gpt.model, 4);
    const auto loaded = gpt.load_into(*trainer);
    ASSERT_TRUE(loaded) << loaded.error().message;
    EXPECT_EQ(weights_of(*trainer), expected);
  }
}

TEST(WeightsFile, without_a_tensor_says_which) {
  Gpt gpt;
  gpt.tensors.erase("h.1.mlp.c_fc.bias");
  gpt.expect_error(ErrorCode::kNotFound, "'h.1.mlp.c_fc.bias'");
}

TEST(WeightsFile, of_another_shape_says_both) {
  Gpt gpt;
  FileTensor& tensor = gpt.tensors.at("h.0.mlp.c_fc.weight");
  std::swap(tensor.shape[0], tensor.shape[1]);  // As a linear layer has it, and not GPT-2.
  gpt.expect_error(ErrorCode::kInvalidArgument, "[16, 8]");
  gpt.expect_error(ErrorCode::kInvalidArgument, "[8, 16]");
}

TEST(WeightsFile, of_another_type_says_which) {
  Gpt gpt;
  FileTensor& tensor = gpt.tensors.at("ln_f.bias");
  tensor.dtype = Dtype::kI32;
  gpt.expect_error(ErrorCode::kUnsupported, "I32");
}

TEST(WeightsFile, that_is_cut_off_or_is_none_is_refused) {
  Gpt gpt;
  const auto trainer = trainer_of(gpt.model, 4);
  const States before = weights_of(*trainer);
  const std::string bytes = file_bytes(gpt.path);
  for (const std::size_t size : {std::size_t{0}, std::size_t{5}, std::size_t{40}, bytes.size() / 2, bytes.size() - 1}) {
    const auto loaded = load_weights(*trainer, gpt.folder.write("cut", bytes.substr(0, size)));
    ASSERT_FALSE(loaded) << size;
    EXPECT_EQ(loaded.error().code, ErrorCode::kCorrupt) << size << ": " << loaded.error().message;
  }
  const auto missing = load_weights(*trainer, gpt.folder.path("nowhere"));
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code, ErrorCode::kNotFound) << missing.error().message;
  EXPECT_EQ(weights_of(*trainer), before);
}

TEST(WeightsFile, that_cannot_be_written_says_so) {
  Gpt gpt;
  const auto trainer = trainer_of(gpt.model, 4);
  const Status saved = save_weights(*trainer, gpt.folder.path("no/such/folder/weights"));
  ASSERT_FALSE(saved);
  EXPECT_EQ(saved.error().code, ErrorCode::kNotFound) << saved.error().message;
}

TEST(WeightsFile, of_a_pipeline_is_that_of_one_device) {
  Gpt gpt;
  const TemporaryFolder folder;
  run_ranks({.stages = 2, .data_ranks = 1}, [&](const RankOfGrid& rank) {
    const auto trainer = trainer_of(gpt.model, 9, rank, "gpipe");
    const auto loaded = load_weights(*trainer, gpt.path);
    ASSERT_TRUE(loaded) << loaded.error().message;
    for (const auto& [name, values] : weights_of(*trainer)) EXPECT_EQ(values, gpt.weights.at(name)) << name;
    const Status saved = save_weights(*trainer, folder.path("again"));
    ASSERT_TRUE(saved) << saved.error().message;
  });
  EXPECT_EQ(file_bytes(folder.path("again")), file_bytes(gpt.path));
}

}  // namespace
}  // namespace dunnock::test
