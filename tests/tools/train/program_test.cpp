// dunnock-train as a program: killed at random moments it ends with the weights of an undisturbed run; and what goes
// wrong is said, with the last checkpoint intact.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "dunnock/index/checkpoint_store.hpp"
#include "log.hpp"
#include "support/seed.hpp"
#include "support/temporary_folder.hpp"

namespace dunnock::train {
namespace {

using test::file_bytes;
using test::TemporaryFolder;
using Words = std::vector<std::string>;

struct Ended {
  int status = -1;  // Of exit; 128 + N of signal N.
  std::string output;
};

/// A program under way; its output goes to a file.
class Child {
 public:
  Child(const TemporaryFolder& folder, Words words) : output_(folder.path("output.txt")) {
    std::vector<char*> arguments;
    for (std::string& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    id_ = fork();
    if (id_ == 0) {
      if (std::freopen(output_.c_str(), "w", stdout) == nullptr) _exit(126);
      dup2(fileno(stdout), fileno(stderr));
      execvp(arguments[0], arguments.data());
      _exit(127);
    }
  }
  void signal(int number) const { kill(id_, number); }
  [[nodiscard]] pid_t id() const { return id_; }
  Ended wait() {
    int status = 0;
    waitpid(id_, &status, 0);
    return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), file_bytes(output_)};
  }

 private:
  std::string output_;
  pid_t id_ = -1;
};

class Program : public ::testing::Test {
 protected:
  Program() {
    const std::string text = file_bytes(std::string(DUNNOCK_SOURCE_DIR) + "/examples/data/shakespeare.txt");
    (void)folder_.write("text.txt", text.substr(0, 60'000));
    (void)folder_.write("config.toml", R"(
[model]
kind = "gpt"
context = 16
layers = 2
heads = 2
width = 32
[data]
text = "text.txt"
[optimizer]
learning_rate = 3e-3
schedule = "cosine"
[run]
steps = 60
batch = 8
threads = 1
evaluate_batches = 2
log_every = 5
)");
  }

  [[nodiscard]] std::string path(const std::string& name) const { return folder_.path(name); }
  [[nodiscard]] Words words(const Words& more) const {
    Words all{DUNNOCK_TRAIN, "--config", path("config.toml"), "--quiet"};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  [[nodiscard]] Ended run(const Words& more) const { return Child(folder_, words(more)).wait(); }
  [[nodiscard]] Words with_pool(const std::string& name, Words more = {}) const {
    more.insert(more.begin(), {"--set", "checkpoint.every=4"});
    more.insert(more.end(), {"--set", "checkpoint.pool=" + path(name + ".pool"), "--set",
                             "log.json=" + path(name + ".log"), "--save-weights", path(name + ".safetensors")});
    return more;
  }

  TemporaryFolder folder_;
};

/// A run that is killed again and again, each time a random moment after its start, until it ends.
void kill_and_resume(const TemporaryFolder& folder, const std::function<Words(bool resume)>& words, unsigned kills,
                     std::mt19937_64& random, double seconds) {
  for (unsigned i = 0; i < 200; ++i) {
    Child child(folder, words(i > 0 && std::filesystem::exists(folder.path("killed.pool"))));
    if (i < kills) {
      const double after = std::uniform_real_distribution<>(0.02, 1.0)(random) * seconds;
      std::this_thread::sleep_for(std::chrono::duration<double>(after));
      child.signal(SIGKILL);
    }
    const Ended ended = child.wait();
    if (ended.status == 0) return;
    ASSERT_EQ(ended.status, 128 + SIGKILL) << ended.output;
  }
  FAIL() << "it never ended";
}

TEST_F(Program, killed_at_random_moments_ends_with_the_weights_of_an_undisturbed_run) {
  std::mt19937_64 random = test::generator(1);
  for (const char* schedule : {"conventional", "multi-stream"}) {
    for (const char* name : {"undisturbed", "killed"}) {
      for (const char* end : {".pool", ".log", ".safetensors"}) std::filesystem::remove(path(std::string(name) + end));
    }
    const auto begin = std::chrono::steady_clock::now();
    const Ended undisturbed = run(with_pool("undisturbed", {"--schedule", schedule}));
    ASSERT_EQ(undisturbed.status, 0) << undisturbed.output;
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    kill_and_resume(
        folder_,
        [&](bool resume) {
          Words more{"--schedule", schedule};
          if (resume) more.insert(more.end(), {"--resume", "--verify"});
          return words(with_pool("killed", more));
        },
        8, random, seconds);
    EXPECT_EQ(file_bytes(path("killed.safetensors")), file_bytes(path("undisturbed.safetensors"))) << schedule;
    const auto expected = read_log(path("undisturbed.log"));
    const auto rows = read_log(path("killed.log"));
    ASSERT_TRUE(expected);
    ASSERT_TRUE(rows);
    ASSERT_EQ(rows->size(), expected->size());  // The log goes on as well.
    EXPECT_EQ(rows->back().validation_loss, expected->back().validation_loss);
    for (std::size_t i = 0; i < rows->size(); ++i) EXPECT_EQ((*rows)[i].step, (*expected)[i].step);
  }
}

TEST_F(Program, interrupt_saves_and_resume_goes_on_exactly) {
  ASSERT_EQ(run(with_pool("whole")).status, 0);
  Child child(folder_, words(with_pool("stopped", {"--events", path("events")})));
  const auto begun = [&] { return file_bytes(path("events")).find("saving") != std::string::npos; };
  while (!begun()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  child.signal(SIGINT);
  const Ended stopped = child.wait();
  // It may have been done just before the signal came.
  ASSERT_TRUE(stopped.status == 130 || stopped.status == 0) << stopped.output;
  const Ended resumed = run(with_pool("stopped", {"--resume"}));
  ASSERT_EQ(resumed.status, 0) << resumed.output;
  EXPECT_EQ(file_bytes(path("stopped.safetensors")), file_bytes(path("whole.safetensors")));
}

TEST_F(Program, errors_name_their_cause) {
  const auto fails = [&](const Words& more, const std::string& what) {
    const Ended ended = run(more);
    EXPECT_EQ(ended.status, 1) << ended.output;
    EXPECT_NE(ended.output.find(what), std::string::npos) << ended.output;
  };
  fails({"--set", "run.stepz=3"}, "run.steps");
  fails({"--schedule", "one-forward-no-backward"}, "1f1b");
  fails({"--schedule", "overlap", "--set", "run.data_parallel=2"}, "mpirun -n 2");
  fails({"--set", "data.text=" + path("nowhere.txt")}, "nowhere.txt: No such file");
  fails({"--set", "data.text=" + folder_.write("short.txt", "to be")}, "data.text");
  fails({"--set", "run.device=cuda"}, "");
  fails({"--set", "run.batch=7", "--set", "run.micro_batches=2"}, "7");
  fails({"--resume"}, "checkpoint.pool");
  fails({"--set", "checkpoint.pool=" + path("no/such/folder/a.pool")}, "no/such/folder/a.pool");
  fails({"--weights", path("nowhere.safetensors")}, "nowhere.safetensors");
  fails({"--weights", folder_.write("broken.safetensors", "not a file of tensors")}, "broken.safetensors");
  const Ended missing = Child(folder_, {DUNNOCK_TRAIN, "--config", path("nowhere.toml")}).wait();
  EXPECT_EQ(missing.status, 1);
  EXPECT_NE(missing.output.find("nowhere.toml"), std::string::npos) << missing.output;
}

TEST_F(Program, loss_that_is_no_number_stops_with_the_last_checkpoint_intact) {
  // Weights of some 1e19 overflow in their products.
  const Ended ended = run(with_pool("nan", {"--set", "optimizer.learning_rate=1000", "--set", "optimizer.kind=sgd",
                                            "--set", "optimizer.momentum=0.99", "--set", "optimizer.weight_decay=100",
                                            "--set", "checkpoint.every=1", "--set", "run.window=1"}));
  ASSERT_EQ(ended.status, 1) << ended.output;
  EXPECT_NE(ended.output.find("the loss is"), std::string::npos) << ended.output;
  EXPECT_NE(ended.output.find("is intact"), std::string::npos) << ended.output;
  EXPECT_NE(ended.output.find("optimizer.learning_rate"), std::string::npos) << ended.output;
}

/// The line after the one that says "can be resumed with".
std::string command_in(const std::string& output) {
  const std::string mark = "can be resumed with\n";
  const std::size_t at = output.find(mark);
  if (at == std::string::npos) return {};
  return output.substr(at + mark.size(), output.find('\n', at + mark.size()) - at - mark.size());
}

TEST_F(Program, a_run_that_has_gone_astray_goes_on_with_the_command_that_it_gives) {
  const Ended ended =
      run(with_pool("astray", {"--set", "optimizer.learning_rate=1000", "--set", "optimizer.kind=sgd", "--set",
                               "optimizer.momentum=0.99", "--set", "optimizer.weight_decay=100", "--set",
                               "checkpoint.every=1", "--set", "run.window=1", "--set", "sample.prompt=it's"}));
  ASSERT_EQ(ended.status, 1) << ended.output;
  const std::string command = command_in(ended.output);
  ASSERT_NE(command.find("--change optimizer.learning_rate=100 --change optimizer.clip=1"), std::string::npos)
      << ended.output;
  // A decay of 100 at a tenth of this rate goes astray again; with a change that fits, the command goes on.
  const Words fits{"/bin/sh", "-c",
                   command + " --change optimizer.learning_rate=1e-6 --change optimizer.weight_decay=0"};
  const Ended resumed = Child(folder_, fits).wait();
  EXPECT_EQ(resumed.status, 0) << command << "\n" << resumed.output;
  const Ended again =
      run(with_pool("astray", {"--resume", "--set", "optimizer.learning_rate=1000", "--set", "optimizer.kind=sgd",
                               "--set", "optimizer.momentum=0.99", "--set", "optimizer.weight_decay=100"}));
  EXPECT_EQ(again.status, 0) << "the next --resume knows the changed values: " << again.output;
}

TEST_F(Program, a_resumed_run_keeps_its_changes) {
  const Words often{"--set", "checkpoint.keep_last=100"};
  const auto with = [&](Words more) {
    more.insert(more.end(), often.begin(), often.end());
    return with_pool("changed", more);
  };
  ASSERT_EQ(run(with({})).status, 0);
  const Words change{"--resume-step", "20", "--change", "optimizer.learning_rate=1e-3", "--change", "optimizer.clip=1"};
  Words first_half = change;
  first_half.insert(first_half.end(), {"--max-seconds", "1e-9"});
  const Ended stopped = run(with(first_half));
  ASSERT_EQ(stopped.status, 130) << stopped.output;
  // Nothing was trained, so there is no checkpoint with the changes yet: the same words again.
  const Ended changed = run(with(change));
  ASSERT_EQ(changed.status, 0) << changed.output;
  const std::string weights = file_bytes(path("changed.safetensors"));
  const auto rows = read_log(path("changed.log"));
  ASSERT_TRUE(rows);
  EXPECT_TRUE(rows->back().gradient_norm) << "it is clipped";
  // Back to the middle, with the old words: the same weights, and so the same rates.
  const Ended again = run(with({"--resume-step", "40"}));
  ASSERT_EQ(again.status, 0) << again.output;
  EXPECT_EQ(file_bytes(path("changed.safetensors")), weights);
  const Ended other = run(with({"--resume", "--set", "optimizer.learning_rate=2e-3"}));
  EXPECT_EQ(other.status, 1);
  EXPECT_NE(other.output.find("optimizer.learning_rate is 0.002 here and 0.001 there"), std::string::npos)
      << other.output;
  const Ended before = run(with({"--resume-step", "16"}));
  EXPECT_EQ(before.status, 0) << "the run before the change: " << before.output;
}

TEST_F(Program, changes_that_make_another_run_are_refused_by_name) {
  ASSERT_EQ(run(with_pool("run")).status, 0);
  for (const char* change : {"model.width=64", "run.seed=2", "data.order=sequential", "optimizer.kind=sgd",
                             "checkpoint.pool=other.pool", "run.threads=2"}) {
    const Ended ended = run(with_pool("run", {"--resume", "--change", change}));
    EXPECT_EQ(ended.status, 1) << ended.output;
    const std::string text = change;
    EXPECT_NE(ended.output.find(text.substr(0, text.find('=')) + " can't be changed"), std::string::npos)
        << ended.output;
  }
}

/// Saves the newest checkpoint of a pool once more, as the next version and without its notes: as checkpoints were
/// before there were notes.
void save_without_notes(const std::string& path) {
  auto pool = Pool::open(path);
  ASSERT_TRUE(pool) << pool.error().message;
  auto store = CheckpointStore<FileMedia>::open(*pool, "training", pool->file_media());
  ASSERT_TRUE(store) << store.error().message;
  const auto manifest = store->manifest("run");
  ASSERT_TRUE(manifest);
  ASSERT_FALSE(manifest->notes.empty());
  std::vector<std::vector<std::byte>> bytes;
  std::vector<TensorSink> sinks;
  std::vector<TensorSource> sources;
  bytes.reserve(manifest->tensors.size());
  for (const ManifestTensor& tensor : manifest->tensors) {
    bytes.emplace_back(tensor.spec.bytes().value());
    sinks.push_back({tensor.spec, bytes.back(), {}});
    TensorSource source;
    source.spec = tensor.spec;
    source.bytes = bytes.back();
    sources.push_back(std::move(source));
  }
  ASSERT_TRUE(store->restore("run", kLatestVersion, sinks));
  ASSERT_TRUE(store->save("run", manifest->version + 1, sources));
  store->close();
}

TEST_F(Program, of_an_old_checkpoint_only_the_hash_is_compared) {
  ASSERT_EQ(run(with_pool("old", {"--steps", "8"})).status, 0);
  save_without_notes(path("old.pool"));
  const Ended other = run(with_pool("old", {"--steps", "8", "--resume", "--set", "model.width=64"}));
  EXPECT_EQ(other.status, 1);
  EXPECT_NE(other.output.find("it contains only a hash of its config"), std::string::npos) << other.output;
  EXPECT_EQ(run(with_pool("old", {"--steps", "8", "--resume"})).status, 0);
}

TEST_F(Program, mistakes_on_the_command_line_end_with_status2) {
  const auto misused = [&](const Words& more, const std::string& what) {
    const Ended ended = run(more);
    EXPECT_EQ(ended.status, 2) << what << ": " << ended.output;
    EXPECT_NE(ended.output.find(what), std::string::npos) << ended.output;
  };
  misused({"--no-such-option"}, "--no-such-option");
  misused({"--save-weights"}, "--save-weights");
  misused({"--save-weights", ""}, "--save-weights");
  misused({"stray"}, "stray");
  misused({"--change", "optimizer.clip=1"}, "--resume");
  for (const char* number : {"0", "-3", "1.5", "1e3", "99999999999999999999", "1099511627777", "abc", ""})
    misused({"--steps", number},
            "--steps: expected a whole number from 1 to 1099511627776, got " + std::string(number));
  for (const char* number : {"-1", "18446744073709551616", "0x10", "+5"})
    misused({"--resume-step", number}, "--resume-step: expected a whole number from 0");
  for (const char* number : {"0", "-2", "nan", "inf", "1e999", "soon"})
    misused({"--max-seconds", number}, "--max-seconds: expected a number above 0, got " + std::string(number));
  const Ended evil = run({"--steps", "\x1b[31m\n1\u202e", "\x1b[0m"});
  EXPECT_EQ(evil.status, 2);
  EXPECT_NE(evil.output.find("got \\x1b[31m\\n1\\u202e"), std::string::npos) << evil.output;
  EXPECT_EQ(evil.output.find_first_of('\x1b'), std::string::npos);
  const Ended help = Child(folder_, {DUNNOCK_TRAIN, "--help"}).wait();
  EXPECT_EQ(help.status, 0) << help.output;
}

TEST_F(Program, outputs_that_cannot_be_written_are_found_before_the_first_step) {
  std::filesystem::create_directory(path("folder"));
  const std::vector<std::pair<std::string, Words>> outputs{{"--save-weights", {"--save-weights", ""}},
                                                           {"--trace", {"--trace", ""}},
                                                           {"--events", {"--events", ""}},
                                                           {"log.plot", {"--set", "log.plot="}},
                                                           {"log.csv", {"--set", "log.csv="}},
                                                           {"log.json", {"--set", "log.json="}}};
  for (const auto& [what, option] : outputs) {
    for (const std::string& bad : {path("no/such/folder/file"), path("folder"), path("config.toml/below")}) {
      Words more = option;
      more.back() += bad;
      more.insert(more.end(), {"--set", "checkpoint.pool=" + path("unused.pool")});
      const Ended ended = run(more);
      EXPECT_EQ(ended.status, 1) << what << ": " << ended.output;
      EXPECT_NE(ended.output.find(what + ": " + bad + " can't be written"), std::string::npos) << ended.output;
      EXPECT_FALSE(std::filesystem::exists(path("unused.pool"))) << what;
    }
  }
  // What is there stays as it is when another output can't be written.
  (void)folder_.write("old.csv", "old\n");
  (void)folder_.write("old.svg", "old\n");
  const Ended ended = run({"--set", "log.csv=" + path("old.csv"), "--set", "log.plot=" + path("old.svg"),
                           "--save-weights", path("no/such/file")});
  EXPECT_EQ(ended.status, 1);
  EXPECT_EQ(file_bytes(path("old.csv")), "old\n");
  EXPECT_EQ(file_bytes(path("old.svg")), "old\n");
  const Ended device = run({"--save-weights", "/dev/null", "--set", "log.csv=/dev/null", "--trace", "/dev/null"});
  EXPECT_EQ(device.status, 1) << "a device would be replaced by a file";
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/null"));
}

TEST_F(Program, two_paths_of_a_run_are_never_one_file) {
  const std::string text = file_bytes(path("text.txt"));
  const std::string config = file_bytes(path("config.toml"));
  std::filesystem::create_symlink("text.txt", path("link"));
  std::filesystem::create_hard_link(path("text.txt"), path("second"));
  std::filesystem::create_symlink("new.pool", path("link_to_pool"));
  (void)folder_.write("weights", "any");
  const auto refused = [&](const Words& more, const std::string& what, const std::string& other) {
    Words all = more;
    all.insert(all.end(), {"--set", "checkpoint.pool=" + path("new.pool")});
    const Ended ended = run(all);
    EXPECT_EQ(ended.status, 1) << what << ": " << ended.output;
    EXPECT_NE(ended.output.find(what), std::string::npos) << ended.output;
    EXPECT_NE(ended.output.find("is the same file as " + other), std::string::npos) << ended.output;
    EXPECT_EQ(file_bytes(path("text.txt")), text) << what;
    EXPECT_EQ(file_bytes(path("config.toml")), config) << what;
    EXPECT_FALSE(std::filesystem::exists(path("new.pool"))) << what;
    for (const char* old : {"text.txt.old", "config.toml.old", "new.pool.old"})
      EXPECT_FALSE(std::filesystem::exists(path(old))) << what;
  };
  for (const char* output : {"log.csv", "log.json", "log.plot"}) {
    const auto set = [&](const std::string& name) { return Words{"--set", output + ("=" + path(name))}; };
    for (const char* name : {"text.txt", "./text.txt", "link", "second"}) refused(set(name), output, "data.text");
    refused(set("config.toml"), output, "--config");
    refused(set("new.pool"), output, "checkpoint.pool");
    refused(set("link_to_pool"), output, "checkpoint.pool");
    refused(set("new.pool.journal"), "the .journal file of checkpoint.pool", output);
  }
  for (const char* option : {"--save-weights", "--trace", "--events"}) {
    refused({option, path("link")}, option, "data.text");
    refused({option, path("config.toml")}, option, "--config");
    refused({option, path("new.pool")}, option, "checkpoint.pool");
    refused({option, path("a"), "--set", "log.csv=" + path("./a")}, option, "log.csv");
  }
  refused({"--save-weights", path("weights"), "--weights", path("weights")}, "--save-weights", "--weights");
  refused({"--save-weights", path("a"), "--trace", path("a")}, "--trace", "--save-weights");
  // The names that a log takes besides: its old file would take the data's place.
  refused({"--set", "log.csv=" + path("log"), "--set", "data.text=" + folder_.write("log.old", text)},
          "the .old file of log.csv", "data.text");
  // The pool itself.
  Words pool{"--set", "checkpoint.pool=" + path("link")};
  EXPECT_NE(run(pool).output.find("is the same file as data.text"), std::string::npos);
  // Devices are nobody's file.
  const Ended devices = run({"--set", "log.csv=/dev/null", "--events", "/dev/null"});
  EXPECT_EQ(devices.status, 0) << devices.output;
}

TEST_F(Program, a_signal_is_heard_in_an_evaluation) {
  // A step of milliseconds, and an evaluation of many seconds.
  Words more = with_pool("evaluated", {"--steps", "1", "--events", path("events"), "--set", "model.width=256", "--set",
                                       "model.layers=6", "--set", "model.context=64", "--set", "run.batch=2", "--set",
                                       "data.validation_share=0.9", "--set", "run.evaluate_batches=0"});
  Child child(folder_, words(more));
  while (file_bytes(path("events")).find("started") == std::string::npos)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  std::this_thread::sleep_for(std::chrono::milliseconds(1500));
  const auto begin = std::chrono::steady_clock::now();
  child.signal(SIGINT);
  const Ended ended = child.wait();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  EXPECT_EQ(ended.status, 130) << ended.output;
  const std::string events = file_bytes(path("events"));
  EXPECT_NE(events.find("\"saved\", \"step\": 1"), std::string::npos) << events;
  EXPECT_NE(events.find("\"stopped\", \"step\": 1"), std::string::npos) << events;
  RecordProperty("seconds", std::to_string(seconds));
}

TEST_F(Program, a_signal_is_heard_while_text_is_generated) {
  Child child(
      folder_,
      words(with_pool("sampled", {"--steps", "4", "--events", path("events"), "--set", "sample.tokens=10000000"})));
  while (file_bytes(path("events")).find("\"done\"") == std::string::npos)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  child.signal(SIGINT);
  const Ended ended = child.wait();
  EXPECT_EQ(ended.status, 130) << ended.output;
  EXPECT_NE(file_bytes(path("events")).find("\"saved\", \"step\": 4"), std::string::npos);
}

TEST_F(Program, a_signal_before_the_first_step_ends_at_once) {
  // Events that go to a pipe wait for its reader for a moment.
  ASSERT_EQ(mkfifo(path("pipe").c_str(), 0600), 0);
  for (const int number : {SIGINT, SIGTERM}) {
    Child child(folder_, words({"--events", path("pipe")}));
    // From the moment in which it catches signals, which a busy machine may delay.
    const auto catches = [&] {
      const std::string status = file_bytes("/proc/" + std::to_string(child.id()) + "/status");
      const std::size_t at = status.find("SigCgt:");
      return at != std::string::npos && (std::stoull(status.substr(at + 7), nullptr, 16) >> (SIGTERM - 1) & 1) != 0;
    };
    for (int wait = 0; wait < 60'000 && !catches(); ++wait) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    child.signal(number);
    const Ended ended = child.wait();
    EXPECT_EQ(ended.status, 130) << ended.output;
    EXPECT_NE(ended.output.find("stopped before the first step"), std::string::npos) << ended.output;
  }
}

TEST_F(Program, full_disks_and_lost_folders_are_no_crash) {
  const Ended events =
      run({"--events", "/dev/full", "--set", "run.window=1", "--set", "run.log_every=1", "--set", "checkpoint.every=1",
           "--set", "checkpoint.pool=" + path("full.pool"), "--save-weights", path("full.safetensors")});
  EXPECT_EQ(events.status, 1) << events.output;
  EXPECT_EQ(events.output, "--events: can't write /dev/full: No space left on device (training continues)\n")
      << "once, also of a quiet run";
  EXPECT_TRUE(std::filesystem::exists(path("full.safetensors")));
  for (const std::string key : {"log.csv", "log.json"}) {
    for (const bool quiet : {true, false}) {
      Words full = words({"--set", key + "=/dev/full", "--save-weights", path(key)});
      if (!quiet) std::erase(full, "--quiet");
      const Ended log = Child(folder_, full).wait();
      EXPECT_EQ(log.status, 1) << log.output;
      EXPECT_NE(log.output.find("can't write /dev/full"), std::string::npos) << log.output;
      EXPECT_NE(log.output.find("the log: 12 rows are missing"), std::string::npos) << log.output;
      EXPECT_TRUE(std::filesystem::exists(path(key))) << "it was trained all the same";
    }
  }
  const Ended long_path = run({"--set", "checkpoint.pool=" + path(std::string(5000, 'a'))});
  EXPECT_EQ(long_path.status, 1) << long_path.output;
  setenv("TMPDIR", path("nowhere").c_str(), 1);
  const Ended no_folder = run({});
  unsetenv("TMPDIR");
  EXPECT_EQ(no_folder.status, 1) << no_folder.output;
  EXPECT_NE(no_folder.output.find("TMPDIR"), std::string::npos) << no_folder.output;
}

TEST_F(Program, graphs_are_not_traced_and_that_is_said_at_once) {
  const Ended ended = run({"--trace", path("trace.json"), "--set", "run.as_graph=true"});
  EXPECT_EQ(ended.status, 1);
  EXPECT_NE(ended.output.find("run.as_graph"), std::string::npos) << ended.output;
}

TEST_F(Program, old_checkpoints_are_not_overwritten_by_a_new_run) {
  ASSERT_EQ(run(with_pool("run")).status, 0);
  const Ended again = run(with_pool("run"));
  EXPECT_EQ(again.status, 1);
  EXPECT_NE(again.output.find("--resume"), std::string::npos) << again.output;
  // Nor continued by a run of something else.
  const Ended other = run(with_pool("run", {"--resume", "--set", "model.width=64"}));
  EXPECT_EQ(other.status, 1);
  EXPECT_NE(other.output.find("another model"), std::string::npos) << other.output;
}

TEST_F(Program, resumes_from_an_older_step_and_its_log_is_cut_there) {
  const Words all{"--set", "checkpoint.keep_last=100"};
  ASSERT_EQ(run(with_pool("whole", all)).status, 0);
  ASSERT_EQ(run(with_pool("back", all)).status, 0);
  const auto back = [&](const std::string& step) {
    Words more{"--resume-step", step, "--verify"};
    more.insert(more.end(), all.begin(), all.end());
    return run(with_pool("back", more));
  };
  const Ended none = back("21");
  EXPECT_EQ(none.status, 1);
  EXPECT_NE(none.output.find("16, 20, 24"), std::string::npos) << none.output;
  std::filesystem::remove(path("back.safetensors"));
  const Ended resumed = back("20");
  ASSERT_EQ(resumed.status, 0) << resumed.output;
  EXPECT_EQ(file_bytes(path("back.safetensors")), file_bytes(path("whole.safetensors")));
  const auto rows = read_log(path("back.log"));
  const auto expected = read_log(path("whole.log"));
  ASSERT_TRUE(rows && expected);
  ASSERT_EQ(rows->size(), expected->size());
  for (std::size_t i = 0; i < rows->size(); ++i) EXPECT_EQ((*rows)[i].step, (*expected)[i].step);
  EXPECT_EQ(rows->back().validation_loss, expected->back().validation_loss);
}

TEST_F(Program, stops_with_a_save_where_none_was_due) {
  // Enough steps that no pause of a busy machine lets it end before it gets the signal to stop.
  const Words steps{"--steps", "600", "--set", "checkpoint.every=0"};
  ASSERT_EQ(run(with_pool("whole", steps)).status, 0);
  Words more = with_pool("stopped", {"--events", path("events")});
  more.insert(more.end(), steps.begin(), steps.end());
  more.insert(more.end(), {"--set", "run.window=1"});
  Child child(folder_, words(more));
  while (file_bytes(path("events")).find("started") == std::string::npos)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  child.signal(SIGTERM);
  const Ended stopped = child.wait();
  ASSERT_EQ(stopped.status, 130) << stopped.output;
  more.push_back("--resume");
  const Ended resumed = run(more);
  ASSERT_EQ(resumed.status, 0) << resumed.output;
  const auto step_of = [&](const std::string& event) {
    std::istringstream lines(file_bytes(path("events")));
    std::string line;
    while (std::getline(lines, line)) {
      const auto read = nlohmann::json::parse(line);
      if (read.at("event") == event) return read.at("step").get<int>();
    }
    return -1;
  };
  EXPECT_LT(step_of("stopped"), 600);
  EXPECT_EQ(step_of("saved"), step_of("stopped"));
  EXPECT_EQ(step_of("resumed"), step_of("stopped"));
  EXPECT_EQ(file_bytes(path("stopped.safetensors")), file_bytes(path("whole.safetensors")));
}

TEST_F(Program, what_resume_step_cannot_go_on_from_removes_nothing) {
  const Words all{"--set", "checkpoint.keep_last=100"};
  ASSERT_EQ(run(with_pool("back", all)).status, 0);
  const auto back = [&](const std::string& name, const std::string& what) {
    Words more = with_pool(name, all);
    more.insert(more.end(), {"--resume-step", "20"});
    const Ended ended = run(more);
    EXPECT_EQ(ended.status, 1) << ended.output;
    EXPECT_NE(ended.output.find(what), std::string::npos) << ended.output;
  };
  // Another text of the same name.
  const std::string text = file_bytes(path("text.txt"));
  (void)folder_.write("text.txt", text.substr(1000) + text.substr(0, 1000));
  back("back", "data");
  (void)folder_.write("text.txt", text);
  // A log that is none.
  const std::string log = file_bytes(path("back.log"));
  (void)folder_.write("back.log", "this is no log\n");
  back("back", "back.log");
  (void)folder_.write("back.log", log);
  // A pool that is not there.
  back("bakc", "bakc.pool does not exist");
  EXPECT_FALSE(std::filesystem::exists(path("bakc.pool")));
  // All are still there.
  Words none = with_pool("back", all);
  none.insert(none.end(), {"--resume-step", "21"});
  EXPECT_NE(run(none).output.find("48, 52, 56, 60"), std::string::npos);
}

TEST_F(Program, damaged_checkpoints_are_told_with_those_to_go_on_from) {
  const Words all{"--set", "checkpoint.keep_last=100"};
  ASSERT_EQ(run(with_pool("worn", all)).status, 0);
  // One bit of the weights of the newest, which are those that were written at the end.
  const std::string weights = file_bytes(path("worn.safetensors"));
  std::string pool = file_bytes(path("worn.pool"));
  const std::size_t at = pool.find(weights.substr(weights.size() - 64));
  ASSERT_NE(at, std::string::npos);
  pool[at] = static_cast<char>(pool[at] ^ 1);
  (void)folder_.write("worn.pool", pool);
  Words more = with_pool("worn", all);
  more.insert(more.end(), {"--resume", "--verify"});
  const Ended ended = run(more);
  EXPECT_EQ(ended.status, 1) << ended.output;
  EXPECT_NE(ended.output.find("is damaged at byte"), std::string::npos) << ended.output;
  EXPECT_NE(ended.output.find("--resume-step"), std::string::npos) << ended.output;
  EXPECT_NE(ended.output.find("52, 56"), std::string::npos) << ended.output;
  more.pop_back();
  more.back() = "--resume-step=56";
  const Ended resumed = run(more);
  ASSERT_EQ(resumed.status, 0) << resumed.output;
  EXPECT_EQ(file_bytes(path("worn.safetensors")), weights);
}

TEST_F(Program, saves_without_copies_when_that_is_wanted) {
  ASSERT_EQ(run(with_pool("copied")).status, 0);
  ASSERT_EQ(run(with_pool("uncopied", {"--set", "checkpoint.staging_mib=0"})).status, 0);
  EXPECT_EQ(file_bytes(path("uncopied.safetensors")), file_bytes(path("copied.safetensors")));
}

TEST_F(Program, full_pool_is_told_and_training_goes_on) {
  // Room for the log's segments, and not for many states of 3 MiB.
  const Ended ended = run(with_pool("small", {"--events", path("events"), "--set", "model.width=128", "--set",
                                              "checkpoint.keep_last=50", "--set", "checkpoint.pool_mib=40"}));
  EXPECT_EQ(ended.status, 1) << "the last state is not saved: " << ended.output;
  EXPECT_NE(ended.output.find("was not saved"), std::string::npos) << "quiet or not: " << ended.output;
  const std::string events = file_bytes(path("events"));
  EXPECT_NE(events.find("\"saved\""), std::string::npos) << events;
  EXPECT_NE(events.find("\"save failed\""), std::string::npos) << events;
  EXPECT_NE(events.find("\"done\", \"step\": 60"), std::string::npos) << events;
  // What was saved before is there.
  const Ended resumed = run(with_pool("small", {"--resume", "--verify", "--set", "model.width=128", "--set",
                                                "checkpoint.keep_last=1", "--set", "checkpoint.pool_mib=40"}));
  EXPECT_EQ(resumed.status, 0) << resumed.output;
}

/// The process of dunnock-train that was started last with this config.
std::optional<pid_t> process_of(const std::string& config) {
  std::optional<pid_t> found;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const std::string name = entry.path().filename();
    if (!std::ranges::all_of(name, [](char c) { return c >= '0' && c <= '9'; })) continue;
    const std::string line = file_bytes(entry.path() / "cmdline");
    if (!line.starts_with(DUNNOCK_TRAIN) || line.find(config) == std::string::npos) continue;
    found = std::max(found.value_or(0), std::stoi(name));
  }
  return found;
}

#ifdef DUNNOCK_MPIEXEC
class Processes : public Program {
 protected:
  Processes() {
    for (const char* pair :
         {"OMPI_ALLOW_RUN_AS_ROOT=1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1", "OMPI_MCA_rmaps_base_oversubscribe=1"}) {
      const std::string text = pair;
      setenv(text.substr(0, text.find('=')).c_str(), text.substr(text.find('=') + 1).c_str(), 1);
    }
  }
  [[nodiscard]] Words ranks(unsigned count, const Words& more) const {
    Words all{DUNNOCK_MPIEXEC, "-n", std::to_string(count)};
    const Words each = words(more);
    all.insert(all.end(), each.begin(), each.end());
    return all;
  }
  [[nodiscard]] Ended run_ranks(unsigned count, const Words& more) const {
    return Child(folder_, ranks(count, more)).wait();
  }
};

TEST_F(Processes, pipelines_end_with_the_weights_of_one_process) {
  const Ended alone = run(with_pool("alone", {"--set", "run.micro_batches=4"}));
  ASSERT_EQ(alone.status, 0) << alone.output;
  for (const char* schedule : {"1f1b", "zb-h1", "fast-forwarding"}) {
    std::filesystem::remove(path("ranks.pool"));
    const Ended ended = run_ranks(
        2, with_pool("ranks", {"--set", "run.micro_batches=4", "--set", "run.pipeline=2", "--schedule", schedule}));
    ASSERT_EQ(ended.status, 0) << ended.output;
    EXPECT_EQ(file_bytes(path("ranks.safetensors")), file_bytes(path("alone.safetensors"))) << schedule;
  }
}

TEST_F(Processes, resume_on_other_ranks) {
  const Words half{"--max-seconds", "1000", "--set", "optimizer.schedule=constant", "--set", "run.micro_batches=2"};
  const auto with = [&](Words more) {
    more.insert(more.end(), half.begin(), half.end());
    return with_pool("grid", more);
  };
  const Ended grid = run_ranks(4, with({"--set", "run.pipeline=2", "--set", "run.data_parallel=2", "--schedule", "1f1b",
                                        "--set", "run.steps=20"}));
  ASSERT_EQ(grid.status, 0) << grid.output;
  const Ended line = run_ranks(
      2, with({"--resume", "--set", "run.data_parallel=2", "--schedule", "reverse-first-k", "--set", "run.steps=40"}));
  ASSERT_EQ(line.status, 0) << line.output;
  const Ended one = run(with({"--resume", "--set", "run.steps=60"}));
  ASSERT_EQ(one.status, 0) << one.output;
  const Ended alone = run(with_pool("alone", half));
  ASSERT_EQ(alone.status, 0) << alone.output;
  const auto rows = read_log(path("grid.log"));
  const auto expected = read_log(path("alone.log"));
  ASSERT_TRUE(rows);
  ASSERT_TRUE(expected);
  EXPECT_EQ(rows->back().step, 60U);
  // Other ranks add up in another order.
  EXPECT_NEAR(rows->back().loss, expected->back().loss, 1e-3);
}

TEST_F(Processes, dead_rank_stops_the_job_and_it_resumes) {
  const Words ring =
      with_pool("ring", {"--set", "run.data_parallel=4", "--schedule", "overlap", "--set", "run.steps=1000000",
                         "--events", path("events"), "--set", "optimizer.schedule=constant"});
  Child job(folder_, ranks(4, ring));
  const auto saved = [&] { return file_bytes(path("events")).find("\"saved\"") != std::string::npos; };
  while (!saved()) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  const auto victim = process_of(path("config.toml"));
  ASSERT_TRUE(victim);
  kill(*victim, SIGKILL);
  const Ended ended = job.wait();
  EXPECT_NE(ended.status, 0);
  EXPECT_TRUE(ended.output.find("rank") != std::string::npos) << ended.output;
  const Ended resumed = run(with_pool("ring", {"--resume", "--verify", "--set", "optimizer.schedule=constant",
                                               "--max-seconds", "1", "--set", "run.steps=1000000"}));
  EXPECT_EQ(resumed.status, 130) << resumed.output;
}

TEST_F(Processes, all_stop_with_a_save_when_one_gets_a_signal) {
  Words more = with_pool("ring", {"--set", "run.data_parallel=2", "--schedule", "overlap", "--set", "run.steps=1000000",
                                  "--events", path("events"), "--set", "optimizer.schedule=constant"});
  more.insert(more.end(), {"--set", "checkpoint.every=0"});
  Child job(folder_, ranks(2, more));
  while (file_bytes(path("events")).find("started") == std::string::npos)
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  const auto one = process_of(path("config.toml"));
  ASSERT_TRUE(one);
  kill(*one, SIGTERM);
  const Ended ended = job.wait();
  EXPECT_NE(ended.status, 0);
  const std::string events = file_bytes(path("events"));
  EXPECT_NE(events.find("\"saved\""), std::string::npos) << ended.output;
  EXPECT_NE(events.find("\"stopped\""), std::string::npos) << ended.output;
}

/// Steps of about a second, which mpirun does not wait for, of a small state.
class LongSteps : public Processes {
 protected:
  LongSteps() {
    (void)folder_.write("text.txt", file_bytes(std::string(DUNNOCK_SOURCE_DIR) + "/examples/data/shakespeare.txt"));
  }
  [[nodiscard]] Words with_long_steps(const std::string& name, Words more = {}) const {
    for (const char* value : {"run.batch=16384", "run.micro_batches=8", "run.window=1", "run.log_every=1",
                              "run.evaluate_batches=1", "optimizer.schedule=constant"})
      more.insert(more.end(), {"--set", value});
    more = with_pool(name, more);
    more.insert(more.end(), {"--set", "checkpoint.every=0"});
    return more;
  }
  [[nodiscard]] Words side_by_side(const std::string& name, Words more = {}) const {
    for (const char* value : {"run.data_parallel=2", "run.schedule=overlap", "run.steps=6"})
      more.insert(more.end(), {"--set", value});
    return with_long_steps(name, more);
  }
  [[nodiscard]] std::size_t rows_of(const std::string& name) const {
    const auto rows = read_log(path(name + ".log"));
    return rows ? rows->size() : 0;
  }
};

TEST_F(LongSteps, an_interrupted_launcher_loses_nothing_but_the_step_under_way) {
  Child job(folder_, ranks(2, side_by_side("long", {"--events", path("events")})));
  while (rows_of("long") < 3) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  const auto before = read_log(path("long.log"));
  const double a_step = before->at(2).seconds - before->at(1).seconds;
  std::this_thread::sleep_for(std::chrono::duration<double>(a_step / 4));  // In the middle of the fourth.
  job.signal(SIGINT);
  const Ended ended = job.wait();
  EXPECT_NE(ended.status, 0) << ended.output;
  const std::string events = file_bytes(path("events"));
  ASSERT_NE(events.find("\"saved\""), std::string::npos)
      << "a step takes " << a_step << " s: " << events << ended.output;
  // It goes on to the weights of a run that nobody disturbs.
  const Ended resumed = run_ranks(2, side_by_side("long", {"--resume", "--verify", "--events", path("again")}));
  ASSERT_EQ(resumed.status, 0) << resumed.output;
  const std::string again = file_bytes(path("again"));
  const auto event = nlohmann::json::parse(again.substr(0, again.find('\n')));
  EXPECT_EQ(event.at("event"), "resumed");
  EXPECT_GE(event.at("step").get<int>(), 3) << "a step takes " << a_step << " s";
  const Ended whole = run_ranks(2, side_by_side("whole"));
  ASSERT_EQ(whole.status, 0) << whole.output;
  EXPECT_EQ(file_bytes(path("long.safetensors")), file_bytes(path("whole.safetensors")));
}

TEST_F(LongSteps, of_stages_say_how_to_launch_them) {
  Words words =
      with_long_steps("stages", {"--set", "run.pipeline=2", "--set", "run.schedule=1f1b", "--set", "run.steps=3"});
  words = ranks(2, words);
  std::erase(words, "--quiet");
  const Ended ended = Child(folder_, words).wait();
  ASSERT_EQ(ended.status, 0) << ended.output;
  EXPECT_NE(ended.output.find("mpirun --mca odls_base_sigkill_timeout"), std::string::npos) << ended.output;
}

TEST_F(Processes, a_signal_is_heard_by_all_ranks_in_an_evaluation) {
  Words more = with_pool("ranks", {"--steps",  "1",
                                   "--events", path("events"),
                                   "--set",    "run.data_parallel=2",
                                   "--set",    "run.schedule=overlap",
                                   "--set",    "model.width=128",
                                   "--set",    "model.layers=4",
                                   "--set",    "run.batch=2",
                                   "--set",    "data.validation_share=0.9",
                                   "--set",    "run.evaluate_batches=0",
                                   "--set",    "run.peer_timeout_s=20"});
  Child job(folder_, ranks(2, more));
  while (file_bytes(path("events")).find("started") == std::string::npos)
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  const auto one = process_of(path("config.toml"));
  ASSERT_TRUE(one);
  kill(*one, SIGTERM);
  const Ended ended = job.wait();
  EXPECT_NE(ended.status, 0);
  const std::string events = file_bytes(path("events"));
  EXPECT_NE(events.find("\"saved\", \"step\": 1"), std::string::npos) << events << ended.output;
  EXPECT_NE(events.find("\"stopped\", \"step\": 1"), std::string::npos) << events << ended.output;
}

TEST_F(Processes, loss_that_is_no_number_stops_all_with_the_last_checkpoint_intact) {
  const Ended ended =
      run_ranks(2, with_pool("nan", {"--set", "optimizer.learning_rate=1000", "--set", "optimizer.kind=sgd", "--set",
                                     "optimizer.momentum=0.99", "--set", "optimizer.weight_decay=100", "--set",
                                     "checkpoint.every=1", "--set", "run.window=1", "--set", "run.data_parallel=2",
                                     "--schedule", "overlap", "--set", "run.peer_timeout_s=20"}));
  EXPECT_NE(ended.status, 0);
  EXPECT_NE(ended.output.find("the loss is"), std::string::npos) << ended.output;
  EXPECT_NE(ended.output.find("is intact"), std::string::npos) << ended.output;
  EXPECT_EQ(ended.output.find("there is no checkpoint yet"), std::string::npos) << "all know: " << ended.output;
}

TEST_F(Processes, a_last_save_that_is_refused_keeps_nobody_waiting) {
  // A weight of a pixel that is always 0 decays into an infinity without a word in the loss.
  const std::string data = std::string(DUNNOCK_SOURCE_DIR) + "/examples/data/mnist/train-";
  (void)folder_.write("config.toml", "[model]\nkind = \"mlp\"\n[data]\nimages = \"" + data +
                                         "images-idx3-ubyte.gz\"\nlabels = \"" + data +
                                         "labels-idx1-ubyte.gz\"\n[optimizer]\nkind = \"sgd\"\n[run]\nsteps = 1\n");
  const Ended made = run({"--save-weights", path("large.safetensors")});
  ASSERT_EQ(made.status, 0) << made.output;
  std::string file = file_bytes(path("large.safetensors"));
  std::uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file.data(), sizeof header_bytes);
  const auto header = nlohmann::json::parse(file.substr(8, header_bytes));
  for (const auto& [name, tensor] : header.items()) {
    if (name == "__metadata__" || tensor.at("shape").size() != 2 || tensor.at("shape").at(1) != 784) continue;
    const float large = 3e38F;
    std::memcpy(file.data() + 8 + header_bytes + tensor.at("data_offsets").at(0).get<std::size_t>(), &large, 4);
  }
  (void)folder_.write("large.safetensors", file);
  const Words more{"--weights", path("large.safetensors"),   "--set",      "optimizer.weight_decay=1000",
                   "--set",     "optimizer.learning_rate=1", "--set",      "run.pipeline=2",
                   "--set",     "run.micro_batches=2",       "--schedule", "1f1b",
                   "--set",     "checkpoint.every=1",        "--set",      "checkpoint.pool=" + path("large.pool"),
                   "--set",     "run.peer_timeout_s=5"};
  const Ended ended = run_ranks(2, more);
  EXPECT_NE(ended.status, 0);
  EXPECT_NE(ended.output.find("values that are not finite"), std::string::npos) << ended.output;
  EXPECT_EQ(ended.output.find("lost"), std::string::npos) << ended.output;
}
#endif

}  // namespace
}  // namespace dunnock::train
