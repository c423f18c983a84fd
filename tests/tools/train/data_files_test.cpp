// dunnock-train on files of tokens and weights that are not what they should be: what is wrong is found before the
// first step, and a run is resumed with its own data only.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "dunnock/index/checkpoint_files.hpp"
#include "support/seed.hpp"
#include "support/temporary_folder.hpp"
#include "tools/train/child.hpp"

namespace dunnock::test {
namespace {

using Words = std::vector<std::string>;
using Tokens = std::vector<std::uint16_t>;

constexpr unsigned kSecondsMax = 120;  // A busy machine's.

class DataFiles : public ::testing::Test {
 protected:
  DataFiles() : tokens_(4000) {
    auto random = generator(1);
    for (auto& token : tokens_) token = static_cast<std::uint16_t>(random() % 250);
  }

  [[nodiscard]] std::string path(const std::string& name) const { return folder_.path(name); }
  /// As nanoGPT has it, or llm.c.
  void write_tokens(const Tokens& tokens, const std::string& format) {
    std::string bytes(reinterpret_cast<const char*>(tokens.data()), tokens.size() * 2);
    if (format == "llm.c") {
      std::vector<std::uint32_t> header(256, 0);
      header[0] = 20240520;
      header[1] = 1;
      header[2] = static_cast<std::uint32_t>(tokens.size());
      bytes.insert(0, reinterpret_cast<const char*>(header.data()), header.size() * 4);
    }
    (void)folder_.write("tokens.bin", bytes);
  }
  [[nodiscard]] ChildEnd run(const std::string& format, const Words& more) const {
    Words words{DUNNOCK_TRAIN, "--set", "run.steps=6"};
    for (const std::string& value :
         {"data.tokens=" + path("tokens.bin"), "data.token_format=" + format, std::string("model.vocabulary=256"),
          std::string("model.context=8"), std::string("model.layers=1"), std::string("model.heads=1"),
          std::string("model.width=16"), std::string("run.batch=4"), std::string("run.threads=1"),
          std::string("run.evaluate_batches=1"), "checkpoint.pool=" + path("run.pool")})
      words.insert(words.end(), {"--set", value});
    words.insert(words.end(), more.begin(), more.end());
    return run_child(folder_, words, kSecondsMax);
  }

  TemporaryFolder folder_;
  Tokens tokens_;
};

TEST_F(DataFiles, with_a_token_above_the_vocabulary_are_refused_before_the_first_step) {
  for (const std::string format : {"raw16", "llm.c"}) {
    Tokens bad = tokens_;
    bad[3999] = 256;  // In the part for validation, even.
    write_tokens(bad, format);
    const ChildEnd ended = run(format, {"--events", path("events")});
    EXPECT_EQ(ended.status, 1) << ended.output;
    EXPECT_NE(ended.output.find("data.tokens: " + path("tokens.bin") +
                                ": token number 3999 is 256, which is out of range: the vocabulary has 256 tokens"),
              std::string::npos)
        << ended.output;
    EXPECT_EQ(file_bytes(path("events")), "") << "nothing has started";
    EXPECT_FALSE(std::filesystem::exists(path("run.pool")));
  }
}

TEST_F(DataFiles, of_other_tokens_of_the_same_count_are_refused_on_resuming) {
  for (const std::string format : {"raw16", "llm.c"}) {
    std::filesystem::remove(path("run.pool"));
    write_tokens(tokens_, format);
    ASSERT_EQ(run(format, {}).status, 0);
    Tokens other = tokens_;
    other[2000] = static_cast<std::uint16_t>(249 - other[2000]);  // One token, and it is another for every value of it.
    write_tokens(other, format);
    for (const Words& more : {Words{"--resume"}, Words{"--resume", "--verify"}, Words{"--resume-step", "6"}}) {
      Words longer{"--steps", "8"};
      longer.insert(longer.end(), more.begin(), more.end());
      const ChildEnd ended = run(format, longer);
      EXPECT_EQ(ended.status, 1) << ended.output;
      EXPECT_NE(
          ended.output.find("data.tokens: " + path("tokens.bin") + " differs from what the checkpoint was trained on"),
          std::string::npos)
          << ended.output;
    }
    write_tokens(tokens_, format);
    const ChildEnd resumed = run(format, {"--steps", "8", "--resume", "--verify"});
    EXPECT_EQ(resumed.status, 0) << resumed.output;
  }
}

TEST_F(DataFiles, of_weights_with_a_nan_are_refused_before_the_first_step) {
  write_tokens(tokens_, "raw16");
  const std::string weights = path("weights.safetensors");
  const ChildEnd saved = run("raw16", {"--save-weights", weights});
  ASSERT_EQ(saved.status, 0) << saved.output;
  std::string bytes = file_bytes(weights);
  const float nan = std::nanf("");
  // The last value of all, in the order of the bytes.
  std::memcpy(bytes.data() + bytes.size() - 4, &nan, sizeof nan);
  (void)folder_.write("weights.safetensors", bytes);
  const auto file = SafetensorsFile::open(weights);
  ASSERT_TRUE(file) << file.error().message;
  std::filesystem::remove(path("run.pool"));
  const ChildEnd ended = run("raw16", {"--weights", weights, "--events", path("events")});
  EXPECT_EQ(ended.status, 1) << ended.output;
  EXPECT_NE(ended.output.find(weights + " has '" + file->header().tensors.back().spec.name + "' with NaN at ["),
            std::string::npos)
      << ended.output;
  EXPECT_EQ(file_bytes(path("events")), "") << "nothing has started";
}

}  // namespace
}  // namespace dunnock::test
