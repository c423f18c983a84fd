// dunnock-demo: kill a process that trains a language model while it saves a checkpoint, and lose nothing that was
// saved.
//
//   1  a run that nobody disturbs                          weights, loss
//   2  the same run; SIGKILL in the middle of a save
//   3  what is in the pool?  the checkpoint before, whole; of the one that was being saved, nothing
//   4  the run goes on from there                          the same weights to the bit, the same loss; some text
//   5  what the crash has cost, on one page
//
// The runs are dunnock-train's, with an out-of-order schedule (multi-stream) and saves in the background. A kill is not
// a power failure: for those see the crash harness (docs/testing.md).
#include <fcntl.h>
#include <fmt/core.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include <dunnock/base/command_line.hpp>
#include <dunnock/base/program.hpp>
#include <dunnock/index/checkpoint_store.hpp>
#include <dunnock/pmem/pool.hpp>

namespace {

constexpr int kSurroundings = 3;  // The system refuses, standard output included.

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;
using Store = dunnock::CheckpointStore<dunnock::FileMedia>;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

struct Options {
  unsigned steps = 800;
  unsigned every = 40;  // Steps between saves.
  std::uint64_t seed = std::random_device{}();
  std::string folder;
  std::string train = DUNNOCK_TRAIN;
  std::string config = DUNNOCK_EXAMPLES "/shakespeare.toml";
  bool small = false;
};

[[noreturn]] void give_up(const std::string& why) {
  fmt::print(stderr, "dunnock-demo: {}\n", why);
  std::exit(1);
}

/// One run of dunnock-train, in its own process.
class Training {
 public:
  Training(const Options& options, const std::string& name) : options_(options), name_(name) {}

  void start(bool resume) {
    const std::string base = options_.folder + "/" + name_;
    std::vector<std::string> words{options_.train,   "--config",       options_.config,      "--events",
                                   base + ".events", "--save-weights", base + ".safetensors"};
    const auto set = [&words](const std::string& value) { words.insert(words.end(), {"--set", value}); };
    set("run.steps=" + std::to_string(options_.steps));
    set("run.batch=16");
    set("run.schedule=multi-stream");
    set("run.threads=1");  // Of each of the two lanes.
    set("run.evaluate_every=0");
    set("run.evaluate_batches=8");
    set("optimizer.warmup=20");
    set("optimizer.clip=0");  // Updates do not wait for all gradients, so dW may go into the next forward pass.
    set("checkpoint.pool=" + base + ".pool");
    set("checkpoint.every=" + std::to_string(options_.every));
    set("log.json=" + base + ".log");
    set("sample.tokens=" + std::string(resume ? (options_.small ? "40" : "300") : "0"));
    if (options_.small) {
      for (const char* value : {"model.layers=2", "model.width=64", "model.context=64", "run.batch=8"}) set(value);
    }
    if (resume) words.insert(words.end(), {"--resume", "--verify"});
    std::vector<char*> arguments;
    for (std::string& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    begun_ = Clock::now();
    child_ = fork();
    if (child_ < 0) give_up("can't start a process");
    if (child_ == 0) {
      execv(arguments[0], arguments.data());
      fmt::print(stderr, "dunnock-demo: {} can't be started\n", options_.train);
      _exit(127);
    }
  }

  /// Until it ends by itself.
  void finish() {
    int status = 0;
    waitpid(child_, &status, 0);
    seconds_ += seconds_since(begun_);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) give_up("dunnock-train has failed");
  }

  /// Kills it a moment after a save after step `from` has begun; returns the step of that save. Empty: it ended before.
  std::optional<std::uint64_t> kill_in_save(std::uint64_t from, std::chrono::microseconds after) {
    while (true) {
      for (const nlohmann::json& event : events()) {
        if (event.at("event") != "saving" || event.at("step") < from) continue;
        std::this_thread::sleep_for(after);
        ::kill(child_, SIGKILL);
        int status = 0;
        waitpid(child_, &status, 0);
        seconds_ += seconds_since(begun_);
        if (!WIFSIGNALED(status)) return std::nullopt;
        return event.at("step").get<std::uint64_t>();
      }
      int status = 0;
      if (waitpid(child_, &status, WNOHANG) != 0) give_up("dunnock-train ended before it was killed");
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
  }

  [[nodiscard]] std::vector<nlohmann::json> events() const { return lines(options_.folder + "/" + name_ + ".events"); }
  [[nodiscard]] nlohmann::json last_row() const {
    const auto rows = lines(options_.folder + "/" + name_ + ".log");
    if (rows.empty()) give_up("there is no log");
    return rows.back();
  }
  [[nodiscard]] std::string weights() const { return text(options_.folder + "/" + name_ + ".safetensors"); }
  [[nodiscard]] std::string pool() const { return options_.folder + "/" + name_ + ".pool"; }
  [[nodiscard]] double seconds() const { return seconds_; }

 private:
  static std::string text(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::ostringstream all;
    all << file.rdbuf();
    return all.str();
  }
  static std::vector<nlohmann::json> lines(const std::string& path) {
    std::vector<nlohmann::json> all;
    std::istringstream rows(text(path));
    for (std::string line; std::getline(rows, line) && !rows.eof();) all.push_back(nlohmann::json::parse(line));
    return all;
  }

  const Options& options_;
  std::string name_;
  pid_t child_ = -1;
  Clock::time_point begun_;
  double seconds_ = 0;
};

/// What lies in a pool that nobody has open.
struct Found {
  std::vector<std::uint64_t> versions;
  double open_seconds = 0;
  double verify_seconds = 0;
  std::uint64_t bytes = 0;
};

Found look_into(const std::string& path) {
  Found found;
  const auto begin = Clock::now();
  auto pool = dunnock::Pool::open(path);
  if (!pool) give_up(pool.error().message);
  auto store = Store::open(*pool, "training", pool->file_media());
  if (!store) give_up(store.error().message);
  found.open_seconds = seconds_since(begin);
  for (const dunnock::CheckpointInfo& info : store->list()) {
    if (!info.status) give_up(info.status.error().message);
    found.versions.push_back(info.version);
    found.bytes = info.tensor_bytes;
  }
  std::ranges::sort(found.versions);
  const auto checked = Clock::now();
  for (const std::uint64_t version : found.versions) {
    if (auto sound = store->verify("run", version); !sound) give_up(sound.error().message);
  }
  found.verify_seconds = seconds_since(checked);
  store->close();
  return found;
}

std::string listed(const std::vector<std::uint64_t>& versions) {
  std::string text;
  for (const std::uint64_t version : versions) text += (text.empty() ? "" : ", ") + std::to_string(version);
  return text.empty() ? "none" : text;
}

double mebibytes(std::uint64_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

int run(int argc, char** argv) {
  Options options;
  CLI::App app{
      "Trains a small GPT on Shakespeare, is killed in the middle of a save, recovers, and ends as if it had "
      "not been."};
  app.add_option("--steps", options.steps, "Of training")->check(CLI::Range(40U, 1'000'000U));
  app.add_option("--every", options.every, "Steps between saves")->check(CLI::Range(2U, 1'000'000U));
  app.add_option("--seed", options.seed, "Of the moment of the kill");
  app.add_option("--folder", options.folder, "Where pools and logs go and stay; otherwise they are removed");
  app.add_option("--train", options.train, "The program dunnock-train");
  app.add_option("--config", options.config, "What is trained");
  app.add_flag("--small", options.small, "A model of 0.1 million parameters");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const std::string complaint =
        dunnock::explain_parse_error(app, error, {argv, static_cast<std::size_t>(argc)});
    (void)std::fputs(complaint.c_str(), stderr);
    return complaint.empty() ? 0 : 2;
  }
  const bool keeps = !options.folder.empty();
  if (keeps) {
    fs::create_directories(options.folder);
    if (!fs::is_empty(options.folder)) give_up(options.folder + " is not empty");
  } else {
    std::string made = (fs::temp_directory_path() / "dunnock-demo-XXXXXX").string();
    if (mkdtemp(made.data()) == nullptr) give_up("can't create a directory in " + made);
    options.folder = made;
  }
  std::mt19937_64 random(options.seed);

  fmt::print("1. A run of {} steps that nobody disturbs\n", options.steps);
  std::fflush(stdout);
  Training undisturbed(options, "undisturbed");
  undisturbed.start(false);
  undisturbed.finish();
  double save_seconds = 0;
  std::uint64_t saved_bytes = 0;
  std::uint64_t tensor_bytes = 0;
  std::uint64_t saves = 0;
  for (const nlohmann::json& event : undisturbed.events()) {
    if (event.at("event") != "saved") continue;
    ++saves;
    save_seconds += event.at("seconds").get<double>();
    saved_bytes += event.at("bytes").get<std::uint64_t>();
    tensor_bytes += event.at("tensor_bytes").get<std::uint64_t>();
  }
  if (saves == 0) give_up("nothing was saved");
  save_seconds /= static_cast<double>(saves);

  fmt::print("\n2. The same run, killed (SIGKILL, seed {}) in the middle of a save\n", options.seed);
  std::fflush(stdout);
  Training killed(options, "killed");
  Found found;
  std::uint64_t in_save = 0;
  unsigned kills = 0;
  // A save that was done before the signal came is no middle: then the next one.
  for (std::uint64_t from = options.steps / 2;; from = in_save + 1) {
    killed.start(kills > 0);
    const double moment = std::uniform_real_distribution<>(0.1, 0.7)(random) * save_seconds * 1e6;
    const auto step = killed.kill_in_save(from, std::chrono::microseconds(static_cast<std::int64_t>(moment)));
    if (!step) give_up("it ended before the signal came");
    in_save = *step;
    ++kills;
    found = look_into(killed.pool());
    if (found.versions.empty() || found.versions.back() < in_save) break;
    fmt::print("   the save of step {} was done {:.1f} ms after it had begun; once more\n", in_save, moment / 1e3);
    if (in_save + options.every >= options.steps) give_up("no save was slow enough to be hit");
  }
  if (found.versions.empty()) give_up("no checkpoint survived");
  const std::uint64_t newest = found.versions.back();
  std::uint64_t lost = 0;  // Saves that were told to be done, and are not there.
  for (const nlohmann::json& event : killed.events())
    lost += event.at("event") == "saved" && event.at("step") > newest ? 1 : 0;

  fmt::print("\n3. What is in the pool\n");
  fmt::print("   checkpoints of steps {}; of step {}, which was being saved, nothing is seen\n", listed(found.versions),
             in_save);
  fmt::print("   opened in {:.1f} ms; {:.1f} MiB each, every byte compared with its checksum in {:.1f} ms: sound\n",
             found.open_seconds * 1e3, mebibytes(found.bytes), found.verify_seconds * 1e3);

  fmt::print("\n4. The run continues after step {}\n", newest);
  std::fflush(stdout);
  const auto again = Clock::now();
  killed.start(true);
  killed.finish();
  const double again_seconds = seconds_since(again);

  const nlohmann::json expected = undisturbed.last_row();
  const nlohmann::json reached = killed.last_row();
  const bool same_weights = undisturbed.weights() == killed.weights() && !killed.weights().empty();
  const bool same_loss =
      expected.at("loss") == reached.at("loss") && expected.at("validation_loss") == reached.at("validation_loss");
  const double step_seconds = undisturbed.seconds() / options.steps;
  fmt::print("\n5. What the crash has cost\n\n");
  fmt::print("   {:<44}{:>14}{:>14}\n", "", "undisturbed", "killed");
  fmt::print("   {:<44}{:>14}{:>14}\n", "steps", expected.at("step").get<std::uint64_t>(),
             reached.at("step").get<std::uint64_t>());
  fmt::print("   {:<44}{:>14.6f}{:>14.6f}\n", "training loss at the end", expected.at("loss").get<double>(),
             reached.at("loss").get<double>());
  fmt::print("   {:<44}{:>14.6f}{:>14.6f}\n", "validation loss at the end",
             expected.at("validation_loss").get<double>(), reached.at("validation_loss").get<double>());
  fmt::print("   {:<44}{:>14}{:>14}\n", "weights", "", same_weights ? "the same bits" : "DIFFERENT");
  fmt::print("   {:<44}{:>12.1f} s{:>12.1f} s\n\n", "time of the processes", undisturbed.seconds(), killed.seconds());
  fmt::print("   {:<44}{:>14}\n", "steps done again", in_save - newest);
  fmt::print("   {:<44}{:>12.2f} s\n", "  which took about", static_cast<double>(in_save - newest) * step_seconds);
  fmt::print("   {:<44}{:>11.1f} ms\n", "to open the pool after the kill", found.open_seconds * 1e3);
  fmt::print("   {:<44}{:>12.2f} s\n", "second start to end", again_seconds);
  fmt::print("   {:<44}{:>14}\n", "acknowledged checkpoints that were lost", lost);
  fmt::print("   {:<44}{:>14}\n", "saves of the undisturbed run", saves);
  fmt::print("   {:<44}{:>11.1f} ms\n", "  one took, in the background", save_seconds * 1e3);
  fmt::print("   {:<44}{:>10.1f} MiB of {:.1f}\n", "  one wrote (AdamW changes almost everything)",
             mebibytes(saved_bytes / saves), mebibytes(tensor_bytes / saves));
  if (!keeps) fs::remove_all(options.folder);
  if (!same_weights || !same_loss || lost != 0) {
    fmt::print("\nNOT the same as the undisturbed run.\n");
    return 1;
  }
  fmt::print("\nThe same loss and the same weights, to the bit, as if nothing had happened.\n");
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return dunnock::run_program("dunnock-demo", kSurroundings, [&] { return run(argc, argv); });
}
