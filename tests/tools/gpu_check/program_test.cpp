// dunnock-gpu-check as ./run calls it, on the CPU backend, and the programs that it starts.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "budget.hpp"
#include "kernel_benchmarks.hpp"
#include "process.hpp"
#include "sanitizer.hpp"

namespace dunnock::gpu_check {
namespace {

using nlohmann::json;

// ----- processes
// ------------------------------------------------------------------------------------------------------

TEST(Processes, are_run_to_their_end) {
  const auto finished = run_process({"sh", "-c", "echo out; echo error >&2; exit 5"}, {.with_errors = true});
  EXPECT_EQ(finished.status, 5);
  EXPECT_FALSE(finished.timed_out);
  EXPECT_EQ(finished.output, "out\nerror\n");
}
TEST(Processes, that_are_not_there_say_127) { EXPECT_EQ(run_process({"no-such-program-of-dunnock"}).status, 127); }
TEST(Processes, that_are_killed_have_no_status) {
  const auto finished = run_process({"sh", "-c", "echo before; kill -9 $$"});
  EXPECT_EQ(finished.status, -1);
  EXPECT_FALSE(finished.timed_out);
  EXPECT_EQ(finished.output, "before\n");
}
TEST(Processes, are_ended_with_their_children_when_their_time_is_over) {
  const auto begin = std::chrono::steady_clock::now();
  const auto finished = run_process({"sh", "-c", "echo begun; sleep 100 & sleep 100; echo done"}, {.seconds_max = 0.3});
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(20));
  EXPECT_TRUE(finished.timed_out);
  EXPECT_EQ(finished.output, "begun\n");
}
TEST(Processes, are_ended_when_they_close_their_output_and_go_on) {
  const auto finished =
      run_process({"sh", "-c", "exec >&- 2>&-; sleep 100"}, {.seconds_max = 0.3, .with_errors = true});
  EXPECT_TRUE(finished.timed_out);
}
TEST(Processes, may_print_more_than_is_kept) {
  const auto finished = run_process({"sh", "-c", "head -c 1000000 /dev/zero; exit 4"}, {.output_bytes_max = 1000});
  EXPECT_EQ(finished.output.size(), 1000U);
  EXPECT_EQ(finished.status, 4);
}
TEST(Programs, are_found_on_path) {
  EXPECT_FALSE(find_program("sh").empty());
  EXPECT_TRUE(find_program("no-such-program-of-dunnock").empty());
}

// ----- the budget
// -----------------------------------------------------------------------------------------------------

TEST(Budgets, run_out) {
  EXPECT_GT(Budget(100).seconds_left(), 99);
  EXPECT_EQ(Budget(-1).seconds_left(), 0);
}
TEST(Watchdogs, bark_once_when_the_time_is_over_and_not_before) {
  std::atomic<int> barks = 0;
  const Budget ample(100);
  {
    const Watchdog calm(ample, [&] { ++barks; });
  }
  EXPECT_EQ(barks, 0);
  const Budget tight(0.05);
  const Watchdog alarmed(tight, [&] { ++barks; });
  for (int i = 0; i < 1000 && barks == 0; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_EQ(barks, 1);
}

// ----- compute-sanitizer
// ----------------------------------------------------------------------------------------------

Verdict judge(int status, const std::string& output) { return judge_sanitizer({status, false, output}, 60); }

TEST(Sanitizers, pass_only_with_a_summary) {
  EXPECT_EQ(judge(0, "right\n========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n").outcome,
            Outcome::kPassed);
  EXPECT_EQ(judge(0, "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n").outcome,
            Outcome::kPassed);
  const Verdict silent = judge(0, "right\n");
  EXPECT_EQ(silent.outcome, Outcome::kSkipped) << "who says nothing has looked at nothing";
  EXPECT_EQ(silent.why, "it does not work on this machine: right");
}
TEST(Sanitizers, fail_with_the_first_lines) {
  const Verdict found = judge(kSanitizerFound,
                              "========= COMPUTE-SANITIZER\n========= Invalid __global__ read of size 8 bytes\n"
                              "right: something\n=========     at contains_kernel\n=========\n"
                              "========= ERROR SUMMARY: 1 error\n");
  EXPECT_EQ(found.outcome, Outcome::kFailed);
  EXPECT_EQ(found.why, "Invalid __global__ read of size 8 bytes | at contains_kernel | ERROR SUMMARY: 1 error");
  const Verdict wrong = judge(1, "failed a check\n========= ERROR SUMMARY: 0 errors\n");
  EXPECT_EQ(wrong.outcome, Outcome::kFailed);
  EXPECT_EQ(wrong.why, "the checks ended with 1 under it: ERROR SUMMARY: 0 errors");
}
TEST(Sanitizers, say_what_kernels_the_checks_had_no_time_for) {
  EXPECT_EQ(why_kernels_were_left_out("passed   graphs\n========= ERROR SUMMARY: 0 errors\n"), "");
  EXPECT_EQ(why_kernels_were_left_out("passed   graphs\nskipped  all kernels beside their twins: 3 of 40\nmore\n"),
            "3 of 40");
  EXPECT_EQ(why_kernels_were_left_out("skipped  all kernels beside their twins: cut"), "cut");
}
TEST(Sanitizers, are_skipped_where_they_do_not_work_or_take_too_long) {
  const Verdict refused = judge(1, "========= COMPUTE-SANITIZER\n========= Error: device not supported\n");
  EXPECT_EQ(refused.outcome, Outcome::kSkipped);
  EXPECT_EQ(refused.why, "it does not work on this machine: Error: device not supported");
  const Verdict late = judge_sanitizer({-1, true, "========= COMPUTE-SANITIZER\n"}, 60);
  EXPECT_EQ(late.outcome, Outcome::kSkipped);
  EXPECT_EQ(late.why, "it was not finished within 60 s");
}

// ----- the program
// ----------------------------------------------------------------------------------------------------

/// A folder with the programs of a made-up PATH, and a report.
class Program : public ::testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::create_directories(folder_);
    before_ = std::getenv("PATH") == nullptr ? "" : std::getenv("PATH");
    setenv("PATH", (folder_.string() + ":" + before_).c_str(), 1);
    add("python3", "echo '{\"name\": \"torch\", \"error\": \"none in this test\"}'; exit 3");
  }
  void TearDown() override {
    setenv("PATH", before_.c_str(), 1);
    std::filesystem::remove_all(folder_);
  }
  void add(const std::string& name, const std::string& script) const {
    std::ofstream(folder_ / name) << "#!/bin/sh\n" << script << "\n";
    std::filesystem::permissions(folder_ / name, std::filesystem::perms::owner_all);
  }
  [[nodiscard]] Finished call(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), DUNNOCK_GPU_CHECK);
    return run_process(arguments, {.seconds_max = 300, .with_errors = true});
  }
  [[nodiscard]] std::string path() const { return (folder_ / "report.json").string(); }
  [[nodiscard]] json report() const {
    std::ifstream file(path());
    return json::parse(file);
  }
  static std::string outcome(const json& report, const std::string& name) {
    for (const auto& check : report["checks"]) {
      if (check["name"] == name) return std::string(check["outcome"]) + ": " + std::string(check["why"]);
    }
    return "absent";
  }

 private:
  std::filesystem::path folder_ =
      std::filesystem::temp_directory_path() / ("dunnock-gpu-check-" + std::to_string(getpid()));
  std::string before_;
};

TEST_F(Program, rehearses_and_writes_a_whole_report) {
  const auto done = call({"--rehearse", "--seed", "7", "--json", path()});
  ASSERT_EQ(done.status, 0) << done.output;
  const json all = report();
  EXPECT_EQ(all["rehearsal"], true);
  EXPECT_EQ(all["device"]["name"], "cpu");
  EXPECT_EQ(std::string(all["date"]).size(), std::string("2026-11-24T00:00:00Z").size());
  EXPECT_EQ(all["peers"], "none: none in this test");
  EXPECT_EQ(outcome(all, "blocked Bloom filter, seed 7"), "passed: ");
  EXPECT_EQ(outcome(all, "collectives of one rank, bf16, seed 7"), "passed: ");
  EXPECT_EQ(outcome(all, "layer norm beside its twin, seed 7"), "passed: ");
  EXPECT_EQ(outcome(all, "paged attention beside its twin, seed 7"), "passed: ");
  EXPECT_EQ(outcome(all, "filter of 12 bits, groups of 4, load 90 %, seed 15"), "passed: ");
  std::set<std::string> figures;
  for (const auto& figure : all["figures"]) {
    figures.insert(figure["name"]);
    EXPECT_TRUE(figure["met"].is_null()) << "a rehearsal meets no target";
    for (const char* const part :
         {"value", "unit", "ceiling", "ceiling_value", "share", "peer", "peer_value", "ratio", "target"})
      EXPECT_TRUE(figure.contains(part)) << part;
  }
  for (const std::string who : {"FilterView, 4 words a group", "FilterView, 8 words a group", "blocked Bloom filter",
                                "set, load 50 %", "set, load 80 %"}) {
    for (const std::string what : {"inserts", "lookups, present", "lookups, absent", "bits per item"})
      EXPECT_TRUE(figures.contains(who + ": " + what)) << who << ": " << what;
  }
  EXPECT_TRUE(figures.contains("FilterView, 4 words a group: false positives"));
  EXPECT_TRUE(figures.contains("ceiling: copy within the device"));
  for (const bench::KernelCase& one : measured_cases(true)) EXPECT_TRUE(figures.contains(one.name())) << one.name();
  EXPECT_TRUE(figures.contains("times less"));
}

TEST_F(Program, runs_its_small_checks_under_the_sanitizer) {
  // It does what the real one does on the outside: run the program that follows its options, and close with a summary.
  add("compute-sanitizer",
      "tool=$2\nshift 6\n"
      "test $tool = memcheck && \"$@\" --seconds 20 && echo '========= ERROR SUMMARY: 0 errors' && exit 0\n"
      "test $tool = racecheck && echo '========= Race reported' && echo '========= RACECHECK SUMMARY: 1 hazard' && "
      "exit 86\n"
      "echo 'can not attach'; exit 1");
  const auto done = call({"--rehearse", "--json", path()});
  EXPECT_EQ(done.status, 1) << "a race was found";
  const json all = report();
  EXPECT_EQ(outcome(all, "compute-sanitizer memcheck"), "passed: ");
  EXPECT_TRUE(outcome(all, "compute-sanitizer memcheck, all kernels beside their twins").starts_with("skipped: "))
      << "20 s are too little for the kernels, and the report says so";
  EXPECT_EQ(outcome(all, "compute-sanitizer racecheck"), "failed: Race reported | RACECHECK SUMMARY: 1 hazard");
  EXPECT_EQ(outcome(all, "compute-sanitizer initcheck"), "skipped: it does not work on this machine: can not attach");
}

TEST_F(Program, skips_what_does_not_fit_into_its_time) {
  const auto done = call({"--rehearse", "--seconds", "14", "--json", path()});
  ASSERT_EQ(done.status, 0) << done.output;
  const json all = report();
  EXPECT_EQ(outcome(all, "set"), "skipped: no time is left");
  EXPECT_TRUE(outcome(all, "all kernels beside their twins").starts_with("skipped: "));
  EXPECT_TRUE(outcome(all, "kernels measured").starts_with("skipped: "));
  EXPECT_EQ(outcome(all, "PyTorch"), "skipped: no time is left");
  EXPECT_EQ(all["peers"], "none: no time was left");
}

TEST_F(Program, ends_with_a_report_when_something_hangs) {
  // Nothing hangs on the CPU; but no checks are done in a millisecond.
  const auto done = call({"--rehearse", "--seconds", "0.001", "--json", path()});
  EXPECT_EQ(done.status, 1);
  EXPECT_EQ(outcome(report(), "the time"),
            "failed: the time limit was reached: something hangs, or --seconds is too small");
}

TEST_F(Program, does_checks_only) {
  const auto done = call({"--rehearse", "--checks-only", "--small", "--json", path()});
  ASSERT_EQ(done.status, 0) << done.output;
  EXPECT_TRUE(report()["figures"].empty());
  EXPECT_GT(report()["checks"].size(), 20U);
}

TEST_F(Program, lists_its_cases) {
  const auto done = call({"--list-cases"});
  EXPECT_EQ(done.status, 0);
  EXPECT_EQ(json::parse(done.output.substr(0, done.output.find('\n')))["op"], "matmul");
}

TEST_F(Program, refuses_what_it_does_not_know) {
  EXPECT_EQ(call({"--help"}).status, 0);
  EXPECT_EQ(call({"--seconds", "400", "--help"}).status, 0);
  for (const std::vector<std::string>& wrong : std::vector<std::vector<std::string>>{
           {"--no"}, {"--json"}, {"--seconds", "-1"}, {"--seconds", "soon"}, {"--seed", "1x"}, {"--rehearse", "more"}})
    EXPECT_EQ(call(wrong).status, 2) << wrong.back();
  EXPECT_EQ(call({"--rehearse", "--checks-only", "--small", "--json", "/no/such/folder/x"}).status, 2);
}

}  // namespace
}  // namespace dunnock::gpu_check
