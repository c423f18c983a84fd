// dunnock-crash as a person uses it: exit codes, JSON, replay.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

namespace {

int exit_code(const std::string& arguments, std::string* output = nullptr) {
  const std::string path = std::filesystem::temp_directory_path() / ("dunnock_crash_tool_" + std::to_string(getpid()));
  const int status = std::system((std::string(DUNNOCK_CRASH_TOOL) + " " + arguments + " > " + path + " 2>&1").c_str());
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  if (output != nullptr) *output = text.str();
  std::filesystem::remove(path);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(CrashTool, explains_itself_and_refuses_nonsense) {
  std::string output;
  EXPECT_EQ(exit_code("--help", &output), 0);
  EXPECT_NE(output.find("explore"), std::string::npos);
  EXPECT_EQ(exit_code(""), 2);
  EXPECT_EQ(exit_code("explode"), 2);
  EXPECT_EQ(exit_code("explore --structure castle", &output), 2);
  EXPECT_NE(output.find("castle"), std::string::npos);
  EXPECT_EQ(exit_code("explore --fingerprint-bits 13"), 2);
  EXPECT_EQ(exit_code("kill --directory /nowhere/at/all"), 3);
}

TEST(CrashTool, writes_json) {
  const std::string json = std::filesystem::temp_directory_path() / ("dunnock_crash_json_" + std::to_string(getpid()));
  EXPECT_EQ(exit_code("explore --images 2000 --json " + json), 0);
  std::ifstream file(json);
  std::stringstream text;
  text << file.rdbuf();
  EXPECT_NE(text.str().find("\"violations\": 0"), std::string::npos);
  std::filesystem::remove(json);
  EXPECT_EQ(exit_code("explore --images 2000 --json /nowhere/at/all.json"), 3);
}

TEST(CrashTool, gives_the_same_result_for_the_same_seed) {
  std::string first, again;
  EXPECT_EQ(exit_code("explore --seed 77 --only-seed --threads 4", &first), 0);
  EXPECT_EQ(exit_code("explore --seed 77 --only-seed --threads 4", &again), 0);
  EXPECT_EQ(first.substr(0, first.find(" moments")), again.substr(0, again.find(" moments")));
}

TEST(CrashTool, ends_with_1_when_planted_bugs_are_missed) {
  // With a budget of nothing hardly anything can be caught.
  EXPECT_EQ(exit_code("mutants --budget 1"), 1);
}

}  // namespace
