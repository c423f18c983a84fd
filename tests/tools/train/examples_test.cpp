// The configs in examples/, each as it is shipped, and the commands of docs/training.md that train: run for a step, on
// small stand-ins for what is not shipped. They have the layout of the real ones: GPT-2's vocabulary of 50,257 tokens
// as vocab.json and merges.txt, tokens of 16 bits, weights under Hugging Face's names with its masks.
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <filesystem>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "dunnock/data/bpe.hpp"
#include "dunnock/index/checkpoint_files.hpp"
#include "support/seed.hpp"
#include "support/temporary_folder.hpp"
#include "tools/train/child.hpp"

namespace dunnock::test {
namespace {

using Words = std::vector<std::string>;

constexpr unsigned kSecondsMax = 600;  // A busy machine's.
constexpr std::int32_t kVocabulary = 50257;
constexpr std::uint64_t kContext = 16, kWidth = 32;

/// What makes a run of an example short. Sizes are cut where an example's model is large.
Words short_run(const std::string& example) {
  Words words{"--set", "run.device=cpu", "--set", "run.threads=1", "--steps", "1", "--set", "optimizer.warmup=0"};
  words.insert(words.end(), {"--set", "run.evaluate_batches=1", "--set", "run.batch=4"});
  if (example == "gpt2.toml" || example == "shakespeare.toml")
    words.insert(words.end(), {"--set", "model.context=16", "--set", "model.layers=2", "--set", "sample.tokens=3"});
  if (example == "gpt2.toml")
    words.insert(words.end(), {"--set", "model.width=32", "--set", "model.heads=2", "--set", "run.micro_batches=2"});
  return words;
}

class Examples : public ::testing::Test {
 protected:
  /// A copy of examples/, with its data and the stand-ins beside it.
  Examples() {
    const std::filesystem::path shipped = std::filesystem::path(DUNNOCK_SOURCE_DIR) / "examples";
    const std::filesystem::path here = folder_.path("examples");
    std::filesystem::create_directories(here);
    for (const auto& entry : std::filesystem::directory_iterator(shipped)) {
      if (entry.path().extension() != ".toml") continue;
      std::filesystem::copy_file(entry.path(), here / entry.path().filename());
      names_.insert(entry.path().filename().string());
    }
    std::filesystem::copy(shipped / "data", here / "data", std::filesystem::copy_options::recursive);
    std::mt19937_64 random = generator(1);
    std::vector<std::uint16_t> tokens(3000);
    for (auto& token : tokens) token = static_cast<std::uint16_t>(random() % kVocabulary);
    tokens[5] = kVocabulary - 1;
    (void)folder_.write("examples/data/tokens.bin",
                        std::string(reinterpret_cast<const char*>(tokens.data()), tokens.size() * 2));
    // The 256 bytes, words of two letters and so on up to 50,256, and the last one.
    const auto bytes = data::Bpe::train("", {.vocabulary = 256, .end_of_text = false});
    std::string vocabulary = bytes->vocabulary_json(), merges = "#version: 0.2\n";
    vocabulary.resize(vocabulary.find_last_of('}'));
    std::int32_t next = 256;
    std::vector<std::string> before;
    for (char c = 'a'; c <= 'z'; ++c) before.emplace_back(1, c);
    while (next < kVocabulary - 1) {
      std::vector<std::string> longer;
      for (const std::string& left : before) {
        for (char c = 'a'; c <= 'z' && next < kVocabulary - 1; ++c) {
          longer.push_back(left + c);
          vocabulary.append(", \"").append(longer.back()).append("\": ").append(std::to_string(next++));
          merges.append(left).append(" ").append(1, c).append("\n");
        }
      }
      before = std::move(longer);
    }
    vocabulary += ", \"<|endoftext|>\": " + std::to_string(next) + "}";
    (void)folder_.write("examples/data/vocab.json", vocabulary);
    (void)folder_.write("examples/data/merges.txt", merges);
  }

  /// Weights as Hugging Face's GPT-2 has them, with sizes of short_run().
  void write_gpt2(const std::string& path) {
    std::map<std::string, std::vector<std::uint64_t>> shapes{{"wte.weight", {kVocabulary, kWidth}},
                                                             {"wpe.weight", {kContext, kWidth}},
                                                             {"ln_f.weight", {kWidth}},
                                                             {"ln_f.bias", {kWidth}}};
    for (const std::string layer : {"h.0.", "h.1."}) {
      for (const std::string norm : {"ln_1", "ln_2"}) {
        shapes[layer + norm + ".weight"] = {kWidth};
        shapes[layer + norm + ".bias"] = {kWidth};
      }
      for (const auto& [name, in, out] :
           {std::tuple("attn.c_attn", kWidth, 3 * kWidth), std::tuple("attn.c_proj", kWidth, kWidth),
            std::tuple("mlp.c_fc", kWidth, 4 * kWidth), std::tuple("mlp.c_proj", 4 * kWidth, kWidth)}) {
        shapes[layer + name + ".weight"] = {in, out};
        shapes[layer + name + ".bias"] = {out};
      }
      shapes[layer + "attn.bias"] = {1, 1, kContext, kContext};
    }
    std::vector<TensorSpec> specs;
    for (const auto& [name, shape] : shapes) specs.push_back({name, Dtype::kF32, shape});
    auto writer = SafetensorsWriter::create(path, specs, {});
    ASSERT_TRUE(writer) << writer.error().message;
    std::mt19937_64 random = generator(2);
    for (std::size_t i = 0; i < specs.size(); ++i) {
      std::vector<float> values(*specs[i].bytes() / sizeof(float));
      for (float& value : values) value = static_cast<float>(random() % 1000) / 25000.0F - 0.02F;
      ASSERT_TRUE(writer->write(i, 0, std::as_bytes(std::span(values))));
    }
    ASSERT_TRUE(writer->commit());
  }

  /// In the folder that examples/ lies in, as docs and comments have it.
  ChildEnd run(const Words& words) {
    const std::filesystem::path before = std::filesystem::current_path();
    std::filesystem::current_path(folder_.path(""));
    ChildEnd ended = run_child(folder_, words, kSecondsMax);
    std::filesystem::current_path(before);
    return ended;
  }

  TemporaryFolder folder_;
  std::set<std::string> names_;
};

TEST_F(Examples, are_read_and_train_a_step) {
  ASSERT_EQ(names_, (std::set<std::string>{"gpt2.toml", "mlp.toml", "mnist.toml", "shakespeare.toml"}));
  for (const std::string& name : names_) {
    Words words{DUNNOCK_TRAIN, "--quiet", "--config", "examples/" + name};
    for (const std::string& word : short_run(name)) words.push_back(word);
    const ChildEnd ended = run(words);
    EXPECT_EQ(ended.status, 0) << name << ": " << ended.output;
  }
  EXPECT_TRUE(std::filesystem::exists(folder_.path("gpt2.pool"))) << "its checkpoint";
}

TEST_F(Examples, are_trained_by_the_commands_of_the_guide) {
  // Lines of code that begin with the program, or with mpirun; a line that ends in \ goes on.
  std::istringstream guide(file_bytes(std::string(DUNNOCK_SOURCE_DIR) + "/docs/training.md"));
  std::vector<Words> commands;
  std::string line, whole;
  while (std::getline(guide, line)) {
    const bool begins = line.starts_with("    dunnock-train ") || line.starts_with("    mpirun ");
    if (!begins && whole.empty()) continue;
    whole += line.substr(0, line.find('#'));
    if (whole.ends_with("\\")) {
      whole.pop_back();
      continue;
    }
    std::istringstream words(whole);
    whole.clear();
    commands.emplace_back();
    for (std::string word; words >> word;) commands.back().push_back(word);
  }
  ASSERT_EQ(commands.size(), 6U);
  // The run that some of them go on with, so far as it is here: a step, not 4000.
  std::string config_of_run = file_bytes(folder_.path("examples/shakespeare.toml"));
  const std::string data = "data/shakespeare.txt";
  config_of_run.replace(config_of_run.find(data), data.size(), "examples/" + data);
  (void)folder_.write("run.toml", config_of_run);
  const Words pool{"--set", "checkpoint.pool=run.pool"};
  Words first{DUNNOCK_TRAIN, "--quiet", "--config", "run.toml"};
  for (const Words& more : {short_run("shakespeare.toml"), pool}) first.insert(first.end(), more.begin(), more.end());
  const ChildEnd begun = run(first);
  ASSERT_EQ(begun.status, 0) << begun.output;
  write_gpt2(folder_.path("gpt2.safetensors"));
  setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 1);
  setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 1);
  setenv("OMPI_MCA_rmaps_base_oversubscribe", "1", 1);
  unsigned weights = 0;
  for (Words& words : commands) {
    std::string config;
    for (std::size_t i = 0; i < words.size(); ++i) {
      if (words[i] == "dunnock-train") words[i] = DUNNOCK_TRAIN;
      if (words[i] == "--config") config = words.at(i + 1);
      if (words[i] == "--weights") ++weights;
      if (words[i] == "--resume-step") words.at(i + 1) = "1";
    }
#ifdef DUNNOCK_MPIEXEC
    if (words[0] == "mpirun") words[0] = DUNNOCK_MPIEXEC;
#endif
    if (words[0] == "mpirun") continue;
    const bool goes_on = config == "run.toml";
    const std::string name = goes_on ? "shakespeare.toml" : std::filesystem::path(config).filename().string();
    for (const std::string& word : short_run(name)) words.push_back(word);
    if (goes_on) words.insert(words.end(), pool.begin(), pool.end());
    if (words[0] != DUNNOCK_TRAIN) words.insert(words.end(), {"--set", "run.batch=8"});  // Of its ranks' micro-batches.
    const ChildEnd ended = run(words);
    EXPECT_EQ(ended.status, 0) << ::testing::PrintToString(words) << "\n" << ended.output;
    std::filesystem::remove(folder_.path("gpt2.pool"));
    std::filesystem::remove(folder_.path("gpt2.pool.journal"));
    if (config == "examples/gpt2.toml") {
      EXPECT_NE(ended.output.find("are not weights and are left out: h.0.attn.bias, h.1.attn.bias"), std::string::npos)
          << ended.output;
    }
  }
  EXPECT_EQ(weights, 1U);
}

TEST_F(Examples, of_gpt2_with_a_padded_vocabulary_trains_and_prints_text_but_takes_no_weights_of_the_real_one) {
  Words words{DUNNOCK_TRAIN, "--quiet", "--config", "examples/gpt2.toml"};
  for (const std::string& word : short_run("gpt2.toml")) words.push_back(word);
  words.insert(words.end(), {"--set", "model.vocabulary=50304"});
  const ChildEnd ended = run(words);
  EXPECT_EQ(ended.status, 0) << ended.output;
  write_gpt2(folder_.path("gpt2.safetensors"));
  words.insert(words.end(), {"--weights", "gpt2.safetensors"});
  const ChildEnd refused = run(words);
  EXPECT_EQ(refused.status, 1);
  EXPECT_NE(refused.output.find("[50257, 32], but the model's is [50304, 32]: model.vocabulary=50257 matches it"),
            std::string::npos)
      << refused.output;
}

TEST_F(Examples, of_gpt2_reads_a_tokenizer_json_instead) {
  Words words{DUNNOCK_TRAIN, "--quiet", "--config", "examples/gpt2.toml"};
  for (const std::string& word : short_run("gpt2.toml")) words.push_back(word);
  const std::string vocabulary = file_bytes(folder_.path("examples/data/vocab.json"));
  (void)folder_.write(
      "examples/data/tokenizer.json",
      R"({"version": "1.0", "added_tokens": [{"id": 50256, "content": "<|endoftext|>", "special": true}],
                          "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false},
                          "decoder": {"type": "ByteLevel"},
                          "model": {"type": "BPE", "merges": [["a", "b"]], "vocab": )" +
          vocabulary + "}}");
  words.insert(words.end(), {"--set", "data.tokenizer_file=data/tokenizer.json", "--set", "data.vocabulary=", "--set",
                             "data.merges="});
  const ChildEnd ended = run(words);
  EXPECT_EQ(ended.status, 0) << ended.output;
}

}  // namespace
}  // namespace dunnock::test
