// Every path that dunnock-train is given may be something else than the file that it should be: a folder, a FIFO, a
// device, nothing, a link to nothing, or what may not be read. Each is an error with its reason, its key and status 1;
// none is waited for, and no exception leaves the program.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "dunnock/data/bpe.hpp"
#include "support/temporary_folder.hpp"
#include "tools/train/child.hpp"

namespace dunnock::test {
namespace {

using Words = std::vector<std::string>;

constexpr unsigned kSecondsMax = 120;  // A busy machine's.

class Paths : public ::testing::Test {
 protected:
  Paths() {
    const auto bpe = data::Bpe::train("to be or not to be", {.vocabulary = 270});
    (void)folder_.write("vocab.json", bpe->vocabulary_json());
    (void)folder_.write("merges.txt", bpe->merges_text());
    (void)folder_.write("text.txt", std::string(5000, 'a'));
    gpt_ = {"--set", "model.context=4", "--set", "model.layers=1", "--set",   "model.width=8",
            "--set", "model.heads=1",   "--set", "run.batch=2",    "--steps", "1",
            "--set", "run.threads=1"};
    const std::string mnist = std::string(DUNNOCK_SOURCE_DIR) + "/examples/data/mnist/";
    mlp_ = {"--set", "model.kind=mlp", "--set",        "model.hidden=[8]", "--set", "run.batch=2", "--steps",
            "1",     "--set",          "run.threads=1"};
    for (const auto& [key, file] :
         {std::pair("images", "train-images-idx3-ubyte.gz"), std::pair("labels", "train-labels-idx1-ubyte.gz"),
          std::pair("test_images", "t10k-images-idx3-ubyte.gz"), std::pair("test_labels", "t10k-labels-idx1-ubyte.gz")})
      mlp_.insert(mlp_.end(), {"--set", std::string("data.") + key + "=" + mnist + file});
  }

  [[nodiscard]] ChildEnd run(Words words) const {
    words.insert(words.begin(), {DUNNOCK_TRAIN, "--quiet"});
    return run_child(folder_, words, kSecondsMax);
  }

  struct Bad {
    std::string what;
    std::string path;
    std::string words;  // That the error has.
  };
  /// Whatever a path may be, but a sound file.
  std::vector<Bad> bad_paths() {
    std::filesystem::create_directories(folder_.path("a directory"));
    (void)mkfifo(folder_.path("a fifo").c_str(), 0600);
    std::error_code exists;
    std::filesystem::create_symlink(folder_.path("vanished"), folder_.path("a link"), exists);
    std::vector<Bad> all{{"a directory", folder_.path("a directory"), "is a directory"},
                         {"a FIFO", folder_.path("a fifo"), "is a FIFO"},
                         {"a device", "/dev/zero", "is a device"},
                         {"nothing", folder_.path("vanished"), "No such file"},
                         {"a link to nothing", folder_.path("a link"), "No such file"},
                         {"in a file", folder_.path("text.txt/more"), "Not a directory"},
                         {"a name that is too long", folder_.path(std::string(300, 'n')), "too long"}};
    if (geteuid() != 0) {
      const std::string unreadable = folder_.write("unreadable", "secret");
      chmod(unreadable.c_str(), 0);
      all.push_back({"unreadable", unreadable, "Permission denied"});
    }
    return all;
  }
  /// `words_of`: how the program is told of a path; `key`: what its error names besides.
  void expect_refused(const std::string& key, const std::function<Words(const std::string& path)>& words_of) {
    for (const Bad& bad : bad_paths()) {
      SCOPED_TRACE(key + ": " + bad.what);
      const ChildEnd ended = run(words_of(bad.path));
      EXPECT_EQ(ended.status, 1) << ended.output;
      EXPECT_NE(ended.output.find(bad.path), std::string::npos) << ended.output;
      EXPECT_NE(ended.output.find(key), std::string::npos) << ended.output;
      EXPECT_TRUE(ended.output.find(bad.words) != std::string::npos ||
                  ended.output.find("not a regular file") != std::string::npos)
          << ended.output;
    }
  }
  [[nodiscard]] Words with(Words all, const Words& more) const {
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }

  TemporaryFolder folder_;
  Words gpt_, mlp_;
};

TEST_F(Paths, of_texts_and_tokens_are_refused_with_their_key) {
  expect_refused("data.text", [&](const std::string& path) { return with(gpt_, {"--set", "data.text=" + path}); });
  expect_refused("data.tokens", [&](const std::string& path) {
    return with(gpt_,
                {"--set", "data.tokens=" + path, "--set", "data.token_format=raw16", "--set", "model.vocabulary=300"});
  });
}

TEST_F(Paths, of_tokenizers_are_refused_with_their_key) {
  const Words gpt2 = with(gpt_, {"--set", "data.text=" + folder_.path("text.txt"), "--set", "data.tokenizer=gpt2"});
  const std::string vocabulary = "data.vocabulary=" + folder_.path("vocab.json");
  const std::string merges = "data.merges=" + folder_.path("merges.txt");
  const ChildEnd sound = run(with(gpt2, {"--set", vocabulary, "--set", merges}));
  ASSERT_EQ(sound.status, 0) << sound.output;
  expect_refused("data.vocabulary", [&](const std::string& path) {
    return with(gpt2, {"--set", "data.vocabulary=" + path, "--set", merges});
  });
  expect_refused("data.merges", [&](const std::string& path) {
    return with(gpt2, {"--set", "data.merges=" + path, "--set", vocabulary});
  });
  expect_refused("data.tokenizer_file", [&](const std::string& path) {
    return with(gpt2, {"--set", "data.tokenizer_file=" + path});
  });
  // What is in the one or the other file is said of that one.
  const ChildEnd bad =
      run(with(gpt2, {"--set", vocabulary, "--set", "data.merges=" + folder_.write("bad", "a b c\n")}));
  EXPECT_NE(bad.output.find("data.merges: " + folder_.path("bad: ")), std::string::npos) << bad.output;
}

TEST_F(Paths, of_images_and_labels_are_refused_with_their_key) {
  const ChildEnd sound = run(mlp_);
  ASSERT_EQ(sound.status, 0) << sound.output;
  for (const std::string key : {"data.images", "data.labels", "data.test_images", "data.test_labels"}) {
    expect_refused(key, [&](const std::string& path) { return with(mlp_, {"--set", key + "=" + path}); });
    // And so is what is wrong in the file.
    const ChildEnd bad = run(with(mlp_, {"--set", key + "=" + folder_.write("bad", "nothing of the kind")}));
    EXPECT_EQ(bad.status, 1);
    EXPECT_NE(bad.output.find(key + ": " + folder_.path("bad: ")), std::string::npos) << bad.output;
  }
}

TEST_F(Paths, of_weights_and_configs_are_refused) {
  const Words text = with(gpt_, {"--set", "data.text=" + folder_.path("text.txt")});
  for (const Bad& bad : bad_paths()) {
    SCOPED_TRACE(bad.what);
    for (const char* option : {"--weights", "--config"}) {
      const ChildEnd ended = run(with(text, {option, bad.path}));
      EXPECT_EQ(ended.status, 1) << option << ": " << ended.output;
      EXPECT_NE(ended.output.find(bad.path), std::string::npos) << ended.output;
    }
  }
}

TEST_F(Paths, of_what_is_written_end_no_program_by_signal) {
  std::filesystem::create_directories(folder_.path("a directory"));
  (void)mkfifo(folder_.path("a fifo").c_str(), 0600);
  const Words text = with(gpt_, {"--set", "data.text=" + folder_.path("text.txt")});
  for (const std::string key : {"checkpoint.pool", "log.csv", "log.json"}) {
    for (const std::string& path : {folder_.path("a directory"), folder_.path("a fifo"), folder_.path("no/such/folder"),
                                    folder_.path("text.txt/more"), folder_.path(std::string(300, 'n'))}) {
      const ChildEnd ended = run(with(text, {"--set", key + "=" + path}));
      EXPECT_EQ(ended.status, 1) << key << "=" << path << ": " << ended.output;
      EXPECT_NE(ended.output.find(path), std::string::npos) << ended.output;
    }
  }
}

TEST_F(Paths, of_fifos_that_nobody_reads_end_the_run_and_others_are_written) {
  const Words text = with(gpt_, {"--set", "data.text=" + folder_.path("text.txt")});
  const std::string fifo = folder_.path("a fifo");
  ASSERT_EQ(mkfifo(fifo.c_str(), 0600), 0);
  for (const char* option : {"--trace", "--events"}) {
    const ChildEnd ended = run(with(text, {option, fifo}));
    EXPECT_EQ(ended.status, 1) << option << ": " << ended.output;
    EXPECT_NE(ended.output.find(fifo + ": no process reads from this FIFO"), std::string::npos) << ended.output;
    std::string got;
    std::thread reader([&] { got = file_bytes(fifo); });
    const ChildEnd read = run(with(text, {option, fifo}));
    if (read.status != 0) {  // Or the reader waits for a writer without an end.
      const int writer = open(fifo.c_str(), O_WRONLY | O_NONBLOCK);
      if (writer >= 0) close(writer);
    }
    reader.join();
    EXPECT_EQ(read.status, 0) << option << ": " << read.output;
    EXPECT_NE(got.find(std::string(option) == "--trace" ? "traceEvents" : "\"done\""), std::string::npos) << got;
  }
}

TEST_F(Paths, absurd_sizes_are_an_error_with_a_reason) {
  const Words text = with(gpt_, {"--set", "data.text=" + folder_.path("text.txt")});
  for (const Words& more :
       {Words{"--set", "model.vocabulary=2147483647", "--set", "model.width=65536", "--set", "model.heads=256"},
        Words{"--set", "run.batch=16777216", "--set", "run.micro_batches=1"}}) {
    const ChildEnd ended = run(with(text, more));
    EXPECT_EQ(ended.status, 1) << ended.output;
    EXPECT_NE(ended.output.find("dunnock-train: "), std::string::npos) << ended.output;
    EXPECT_EQ(ended.output.find("terminate"), std::string::npos) << ended.output;
  }
}

}  // namespace
}  // namespace dunnock::test
