// dunnock-bench filter, training and simulator, in a tiny form: they end well, and their files have the shape that is
// read.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

namespace dunnock::bench {
namespace {

using nlohmann::json;

class Commands : public ::testing::Test {
 protected:
  void SetUp() override { std::filesystem::create_directories(directory_); }
  void TearDown() override { std::filesystem::remove_all(directory_); }
  /// The exit status.
  [[nodiscard]] int run(const std::string& arguments) const {
    const int status =
        std::system((std::string(DUNNOCK_BENCH) + " " + arguments + " >" + at("output") + " 2>&1").c_str());
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  [[nodiscard]] std::string at(const std::string& name) const { return (directory_ / name).string(); }
  /// What a command wrote, and what it printed where it did not.
  [[nodiscard]] json result(const std::string& arguments) const {
    const int status = run(arguments + " --json " + at("result"));
    std::ifstream output(at("output"));
    EXPECT_EQ(status, 0) << std::string(std::istreambuf_iterator<char>(output), {});
    std::ifstream file(at("result"));
    return json::parse(file, nullptr, false);
  }

 private:
  std::filesystem::path directory_ =
      std::filesystem::temp_directory_path() / ("dunnock-commands-" + std::to_string(getpid()));
};

/// The second and the last part of "command/what/setting/system"; none of these has a '/' in it.
std::set<std::pair<std::string, std::string>> whats_and_systems(const json& result) {
  std::set<std::pair<std::string, std::string>> some;
  for (const json& row : result["benchmarks"]) {
    const auto name = row["name"].get<std::string>();
    const std::size_t first = name.find('/');
    some.emplace(name.substr(first + 1, name.find('/', first + 1) - first - 1), name.substr(name.rfind('/') + 1));
  }
  return some;
}

void expect_finite_samples(const json& result) {
  ASSERT_FALSE(result["benchmarks"].empty());
  for (const json& row : result["benchmarks"]) {
    ASSERT_FALSE(row["samples"].empty()) << row["name"];
    for (const json& sample : row["samples"]) EXPECT_TRUE(sample.is_number()) << row["name"];  // NaN would be null.
  }
}

TEST_F(Commands, refuse_to_measure_nothing) {
  EXPECT_EQ(run("kernels --quick --only a-kernel-that-nobody-has"), 2);
  for (const std::string option :
       {"kernels --rounds", "simulator --rounds", "simulator --repeats", "training --rounds", "training --seconds",
        "training --saves", "collectives --repeat", "collectives --ranks", "overlap --repeat", "index --repeat",
        "index --operations", "checkpoint --repeat", "checkpoint --steps", "prefix --repeat", "prefix --after",
        "filter --repeat", "filter --slots", "filter --nvm-slots", "model --slots"}) {
    for (const std::string value : {"0", "-1", "99999999999999999999999"})
      EXPECT_EQ(run(option + " " + value), 2) << option << " " << value;
  }
}

TEST_F(Commands, filter_measures_every_case_and_writes_the_same_rows_as_json_and_csv) {
  const json result =
      this->result("filter --quick --slots 200000 --repeat 1 --loads 95 --media dram,direct --csv " + at("csv"));
  std::set<std::string> names;
  for (const json& row : result["benchmarks"]) {
    names.insert(row["name"].get<std::string>());
    EXPECT_EQ(row["run_type"], "iteration") << row["name"];
    EXPECT_EQ(row["time_unit"], "ns") << row["name"];
    EXPECT_GT(row["real_time"].get<double>(), 0) << row["name"];
  }
  for (const char* const name :
       {"dunnock-12/dram/negative/bulk/load:95/threads:1", "dunnock-12/dram/insert/single/load:94/threads:1",
        "textbook-4x12/dram/fill/single/load:95/threads:1", "textbook-4x16/dram/positive/bulk/load:95/threads:1",
        "dunnock-12-parallel/dram/mixed/single/load:95/threads:2", "blocked-bloom/dram/fill/single/load:95/threads:1",
        "dunnock-12/direct (dram)/erase/single/load:95/threads:2",
        "textbook-durable/direct (dram)/insert/single/load:95/threads:1"}) {
    EXPECT_TRUE(names.contains(name)) << name;
  }
  EXPECT_EQ(names.size(), result["benchmarks"].size());
  const json& targets = result["context"]["targets"];
  EXPECT_EQ(targets.size(), 16U);
  EXPECT_NEAR(targets["bits per item at the top load"].get<double>(), 13.5, 0.5);  // 12.8 / 0.95, and 8 KiB.
  EXPECT_LT(targets["durable fill, flushed lines per insert, log and marks included"].get<double>(), 1.4);
  EXPECT_TRUE(targets["reopen and recover 1 GiB after a kill"].is_null());  // Not with --quick.
  EXPECT_GT(result["context"]["floors_ns"]["persist_16_a_fence"].get<double>(), 0);

  std::ifstream csv(at("csv"));
  std::string line;
  std::getline(csv, line);
  EXPECT_EQ(line,
            "structure,media,op,mode,load,threads,ns,mops,flushes_per_op,fences_per_op,lines_per_op,bits_per_item,fpr,"
            "p50_ns,p99_ns,p999_ns");
  std::size_t lines = 0;
  while (std::getline(csv, line)) {
    EXPECT_EQ(std::count(line.begin(), line.end(), ','), 15) << line;
    ++lines;
  }
  EXPECT_EQ(lines, names.size());
}

TEST_F(Commands, training_measures_steps_schedules_and_saves) {
  const json result = this->result("training --quick --no-torch --threads 1 --models mlp,gpt --dtype f32,bf16" +
                                   std::string(" --directory ") + at(""));
  expect_finite_samples(result);
  EXPECT_EQ(result["context"]["command"], "training");
  EXPECT_EQ(result["context"]["torch"], "skipped: not wanted");
  const auto rows = whats_and_systems(result);
  const std::vector<std::pair<const char*, const char*>> expected{
      {"step", "dunnock"},
      {"arithmetic", "dunnock"},
      {"arithmetic", "matmul, the peak"},
      {"share of peak", "dunnock"},
      {"memory", "dunnock, buffers"},
      {"step by schedule", "multi-stream, 2 lanes x 1 thread"},
      {"step", "saving"},
      {"step", "not saving"},
      {"bytes of a save", "dunnock"},
      {"training slowed by a save", "dunnock"}};
  for (const auto& [what, system] : expected) EXPECT_TRUE(rows.contains({what, system})) << what << ", " << system;
  unsigned types = 0;
  for (const json& row : result["benchmarks"]) {
    const auto name = row["name"].get<std::string>();
    if (name == "training/step/GPT tiny, batch 4, f32/dunnock" ||
        name == "training/step/GPT tiny, batch 4, bf16/dunnock")
      ++types;
  }
  EXPECT_EQ(types, 2U);
}

TEST_F(Commands, training_says_why_there_is_no_peer) {
  const json result = this->result("training --quick --threads 1 --models mlp --parts steps --python /no/such/python");
  EXPECT_EQ(result["context"]["torch"],
            "skipped: no Python here has torch and numpy (--python or DUNNOCK_TORCH_PYTHON names one)");
  EXPECT_FALSE(whats_and_systems(result).contains({"step", "PyTorch"}));
  EXPECT_TRUE(whats_and_systems(result).contains({"step", "dunnock"}));
}

TEST_F(Commands, training_asks_a_live_peer_for_its_rounds) {
  // A peer of few words; it dies in its second round, which the benchmark outlives.
  {
    std::ofstream peer(at("peer.py"));
    peer << "import json, sys\n"
            "rounds = 0\n"
            "ready = False\n"
            "for line in sys.stdin:\n"
            "  if line.strip() != 'round':\n"
            "    ready = json.loads(line)['model']['kind'] == 'mlp'\n"
            "    print(json.dumps({'ready': ready, 'way': ['f32']}), flush=True)\n"
            "  elif not ready:\n"
            "    print(json.dumps({'error': 'a round before any request'}), flush=True)\n"
            "  else:\n"
            "    rounds += 1\n"
            "    if rounds == 2: sys.exit(1)\n"
            "    print(json.dumps({'milliseconds': {'median': 2000.0}}), flush=True)\n";
  }
  const json result =
      this->result("training --quick --threads 1 --models mlp --parts steps --python python3 --peer " + at("peer.py"));
  std::vector<double> theirs;
  std::vector<double> ratios;
  for (const json& row : result["benchmarks"]) {
    const auto name = row["name"].get<std::string>();
    if (name == "training/step/MLP tiny, batch 8, f32/PyTorch") theirs = row["samples"].get<std::vector<double>>();
    if (name.find("step, times PyTorch's") != std::string::npos) ratios = row["samples"].get<std::vector<double>>();
  }
  EXPECT_EQ(theirs, std::vector<double>{2000});
  ASSERT_EQ(ratios.size(), 1U);
  EXPECT_GT(ratios[0], 0);
  EXPECT_LT(ratios[0], 1);
}

TEST_F(Commands, the_simulator_predicts_and_measures_every_schedule) {
  const json result = this->result("simulator --quick");
  expect_finite_samples(result);
  EXPECT_EQ(result["context"]["ranks"], "threads");
  EXPECT_TRUE(result["context"]["mean_error_percent"].is_number());
  const auto rows = whats_and_systems(result);
  for (const char* const schedule :
       {"conventional", "multi-stream", "no-overlap", "overlap", "priority", "reverse-first-k", "gpipe", "1f1b",
        "interleaved-1f1b", "modulo", "gpipe-fast-forwarding", "gpipe-fast-forwarding-modulo", "fast-forwarding",
        "fast-forwarding-modulo", "zb-h1", "zb-h2", "zb-v", "dualpipe-v", "zb-auto"}) {
    for (const char* const what : {"predicted", "measured", "error"})
      EXPECT_TRUE(rows.contains({what, schedule})) << what << ", " << schedule;
  }
  // Each error is that of its row.
  for (const json& row : result["benchmarks"]) {
    if (row["unit"] == "ms") EXPECT_GT(row["value"].get<double>(), 0) << row["name"];
  }
}

TEST_F(Commands, refuse_what_they_do_not_know) {
  EXPECT_EQ(run("training --models vgg"), 2);
  EXPECT_EQ(run("training --dtype f16"), 2);
  EXPECT_EQ(run("simulator --families ring"), 2);
  EXPECT_EQ(run("training --quick --no-torch --threads 1 --models mlp --parts steps --json /no/such/folder/x"), 3);
}

}  // namespace
}  // namespace dunnock::bench
