// PyTorch's side: lines whole and broken, and programs that do not behave.
#include "peers.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "kernel_benchmarks.hpp"
#include "process.hpp"
#include "support/seed.hpp"

namespace dunnock::gpu_check {
namespace {

TEST(FlatObjects, are_read) {
  const auto object =
      parse_flat_object(R"( {"name": "a \"b\" \\ \u0041\n", "ms": -1.5e-3, "yes": true,"no":false, "n": null} )");
  ASSERT_TRUE(object);
  EXPECT_EQ(object->size(), 4U);
  EXPECT_EQ(std::get<std::string>(object->at("name")), "a \"b\" \\ A ");
  EXPECT_EQ(std::get<double>(object->at("ms")), -1.5e-3);
  EXPECT_TRUE(std::get<bool>(object->at("yes")));
  EXPECT_FALSE(std::get<bool>(object->at("no")));
  EXPECT_TRUE(parse_flat_object("{}")->empty());
}

TEST(FlatObjects, are_refused_when_they_are_broken) {
  for (const char* const line : {"",
                                 "x",
                                 "{",
                                 "}",
                                 "{\"a\"}",
                                 "{\"a\":}",
                                 "{\"a\": 1,}",
                                 "{\"a\": 1} x",
                                 "{\"a\": [1]}",
                                 "{\"a\": {}}",
                                 "{\"a\": nan}",
                                 "{\"a\": inf}",
                                 "{\"a\": -inf}",
                                 "{\"a\": NaN}",
                                 "{\"a\": 1e999}",
                                 "{\"a\": \"b}",
                                 "{\"a\": \"\\x\"}",
                                 "{\"a\": \"\\u12\"}",
                                 "{\"a\": \"\\u12g4\"}",
                                 "{\"a\": \"\\",
                                 "{'a': 1}",
                                 "{\"a\" 1}",
                                 "{\"a\": tru}",
                                 "[1]",
                                 "\"a\"",
                                 "{\"a\": \"\x01\"}"}) {
    EXPECT_FALSE(parse_flat_object(line)) << line;
  }
}

TEST(FlatObjects, do_not_crash_on_whatever_is_cut_out_of_a_line) {
  auto random = test::generator(1);
  const std::string line =
      R"({"name": "layer_norm \u0041\\", "ms": 0.123, "gb_per_s": 2200.5, "ok": true, "why": null})";
  ASSERT_TRUE(parse_flat_object(line));
  for (unsigned i = 0; i < line.size(); ++i) EXPECT_FALSE(parse_flat_object(line.substr(0, i))) << i;
  for (unsigned i = 0; i < 100'000; ++i) {
    std::string broken = line;
    for (unsigned changes = 0; changes < 3; ++changes) broken[random() % broken.size()] = static_cast<char>(random());
    (void)parse_flat_object(broken);
  }
}

TEST(Peers, are_read_line_by_line) {
  const auto results = read_peers(
      "{\"name\": \"torch\", \"version\": \"2.8.0\", \"device\": \"NVIDIA H200\"}\n"
      "{\"name\": \"gelu bf16\", \"ms\": 0.25, \"gb_per_s\": 2000}\r\n"
      "\n"
      "a warning that went to the wrong stream\n"
      "{\"name\": \"adamw\", \"error\": \"out of memory\"}\n"
      "{\"name\": \"sum\", \"ms\": 0}\n"
      "{\"name\": \"max\", \"ms\": \"fast\"}\n"
      "{\"ms\": 1}\n"
      "{\"name\": \"cut off\", \"ms\": 1");
  EXPECT_EQ(results.about, "PyTorch 2.8.0 on NVIDIA H200");
  ASSERT_EQ(results.ms.size(), 1U);
  EXPECT_EQ(results.ms.at("gelu bf16"), 0.25);
  ASSERT_EQ(results.errors.size(), 1U);
  EXPECT_EQ(results.errors.at("adamw"), "out of memory");
  EXPECT_EQ(results.broken_lines, 5U);
  EXPECT_TRUE(read_peers("").about.starts_with("none: "));
}

/// A folder of its own, in which python3 is a script.
class FakePython : public ::testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::create_directories(folder_);
    before_ = std::getenv("PATH") == nullptr ? "" : std::getenv("PATH");
  }
  void TearDown() override {
    setenv("PATH", before_.c_str(), 1);
    std::filesystem::remove_all(folder_);
  }
  void becomes(const std::string& script) {
    const auto path = folder_ / "python3";
    std::ofstream(path) << "#!/bin/sh\n" << script << "\n";
    std::filesystem::permissions(path, std::filesystem::perms::owner_all);
    setenv("PATH", (folder_.string() + ":" + before_).c_str(), 1);
  }
  static PeerOptions options() { return {.script = "peers.py", .cases = "{}\n", .seconds_max = 10}; }

 private:
  std::filesystem::path folder_ =
      std::filesystem::temp_directory_path() / ("dunnock-peers-" + std::to_string(getpid()));
  std::string before_;
};

TEST_F(FakePython, gets_the_table_and_the_time) {
  becomes(
      "test \"$1\" = peers.py && test \"$2\" = --cases && test \"$(cat $3)\" = '{}' && test \"$4\" = --seconds &&\n"
      "echo '{\"name\": \"torch\", \"version\": \"9\", \"device\": \"d\"}' && echo '{\"name\": \"a\", \"ms\": 2}'");
  const auto results = run_peers(options());
  EXPECT_EQ(results.about, "PyTorch 9 on d");
  EXPECT_EQ(results.ms.at("a"), 2);
}
TEST_F(FakePython, says_why_there_is_no_pytorch) {
  becomes("echo '{\"name\": \"torch\", \"error\": \"no GPU\"}'; exit 3");
  EXPECT_EQ(run_peers(options()).about, "none: no GPU");
  becomes("exit 3");
  EXPECT_EQ(run_peers(options()).about, "none: peers.py found no PyTorch");
}
TEST_F(FakePython, may_die_half_way) {
  becomes(
      "echo '{\"name\": \"torch\", \"version\": \"9\", \"device\": \"d\"}'; echo '{\"name\": \"a\", \"ms\": 2}'; exit "
      "7");
  const auto results = run_peers(options());
  EXPECT_EQ(results.about, "PyTorch 9 on d (it ended with 7)");
  EXPECT_EQ(results.ms.size(), 1U);
}
TEST_F(FakePython, is_ended_when_its_time_is_over) {
  becomes("echo '{\"name\": \"torch\", \"version\": \"9\", \"device\": \"d\"}'; sleep 100");
  auto soon = options();
  soon.seconds_max = 0.3;
  EXPECT_EQ(run_peers(soon).about, "PyTorch 9 on d (its time was over)");
}
TEST_F(FakePython, may_be_missing) {
  setenv("PATH", "/no/such/folder", 1);
  EXPECT_EQ(run_peers(options()).about, "none: python3 was not found");
}

/// peers.py itself, with PyTorch where this machine has it, and without it where not.
TEST(PeersScript, does_every_case_or_says_that_there_is_no_pytorch) {
  PeerOptions options{.script = DUNNOCK_PEERS_SCRIPT, .cases = "", .seconds_max = 300, .rehearse = true};
  std::vector<bench::KernelCase> cases = measured_cases(true);
  std::erase_if(cases, [](const bench::KernelCase& one) { return one.operation.op.empty(); });
  for (const bench::KernelCase& one : cases) options.cases += json_of(one) + "\n";
  const auto results = run_peers(options);
  if (results.about.starts_with("none: PyTorch is not installed")) GTEST_SKIP() << results.about;
  EXPECT_TRUE(results.about.starts_with("PyTorch ")) << results.about;
  EXPECT_TRUE(results.about.ends_with(" on cpu")) << results.about;
  EXPECT_EQ(results.broken_lines, 0U);
  for (const auto& [name, error] : results.errors) ADD_FAILURE() << name << ": " << error;
  for (const bench::KernelCase& one : cases) EXPECT_TRUE(results.ms.contains(one.name())) << one.name();
}

/// A PyTorch that does nothing, for machines that have none: does peers.py know every operation, and find in each case
/// the sizes that it reads?
TEST(PeersScript, knows_every_case_with_its_sizes) {
  if (find_program("python3").empty()) GTEST_SKIP() << "python3 was not found";
  const auto folder = std::filesystem::temp_directory_path() / ("dunnock-torch-" + std::to_string(getpid()));
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "torch.py") << "import sys\n"
                                        "class Anything:\n"
                                        "  def __getattr__(self, name): return Anything()\n"
                                        "  def __call__(self, *a, **b): return Anything()\n"
                                        "  def __getitem__(self, key): return self\n"
                                        "  def __iter__(self): return iter((Anything(), Anything()))\n"
                                        "  def __mul__(self, other): return self\n"
                                        "  def __add__(self, other): return self\n"
                                        "  def __str__(self): return 'of nothing'\n"
                                        "sys.modules[__name__] = Anything()\n";
  setenv("PYTHONPATH", folder.c_str(), 1);
  PeerOptions options{.script = DUNNOCK_PEERS_SCRIPT, .cases = "", .seconds_max = 300, .rehearse = true};
  unsigned count = 0;
  for (const bench::KernelCase& one : measured_cases(true)) {
    if (one.operation.op.empty()) continue;
    options.cases += json_of(one) + "\n";
    ++count;
  }
  options.cases += R"({"name": "unknown", "op": "no_such_operation", "type": "f32", "bytes": 1, "flops": 0})"
                   "\n"
                   R"({"name": "short of sizes", "op": "matmul", "type": "f32", "m": 1, "bytes": 1, "flops": 1})"
                   "\n";
  const auto results = run_peers(options);
  unsetenv("PYTHONPATH");
  std::filesystem::remove_all(folder);
  EXPECT_EQ(results.about, "PyTorch of nothing on cpu");
  EXPECT_EQ(results.broken_lines, 0U);
  EXPECT_EQ(results.ms.size(), count);
  EXPECT_EQ(results.errors,
            (std::map<std::string, std::string>{{"unknown", "ValueError: no such operation: no_such_operation"},
                                                {"short of sizes", "KeyError: 'k'"}}));
}

}  // namespace
}  // namespace dunnock::gpu_check
