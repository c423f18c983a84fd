// What runs the tests: a run that would check nothing is refused, and no pass.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

namespace {

const std::filesystem::path kRoot = DUNNOCK_SOURCE_DIR;

int status_of(const std::string& command) {
  const int status = std::system((command + " > /dev/null 2>&1").c_str());
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(Fuzzers, are_not_run_for_no_time) {
  const std::string folder = std::filesystem::temp_directory_path() / ("dunnock_nothing_" + std::to_string(getpid()));
  for (const std::string seconds : {"0", "00", "-1", "1.5", "''", "soon", "99999999999999999999"}) {
    EXPECT_EQ(status_of((kRoot / "tests/fuzz/run.sh").string() + " " + kRoot.string() + " " + folder + " " + seconds),
              2)
        << seconds;
  }
  EXPECT_FALSE(std::filesystem::exists(folder)) << "nothing was built";
}

TEST(Sanitizers, are_not_run_without_a_program) {
  EXPECT_EQ(status_of((kRoot / "tests/sanitized/run.sh").string() + " " + kRoot.string() + " /nowhere/at/all thread"),
            2);
}

TEST(Programs, fail_when_a_filter_leaves_no_test) {
  const std::string self = std::filesystem::read_symlink("/proc/self/exe");
  EXPECT_EQ(status_of(self + " --gtest_filter=Nothing.at_all"), 2);
  EXPECT_EQ(status_of(self + " --gtest_filter=Nothing.at_all --gtest_list_tests"), 0);
}

TEST(Presets, fail_when_a_filter_leaves_no_test) {
  std::ifstream file(kRoot / "CMakePresets.json");
  const std::string text(std::istreambuf_iterator<char>(file), {});
  EXPECT_NE(text.find(R"("execution": {"noTestsAction": "error"})"), std::string::npos);
  for (const std::string preset : {"release", "dev", "asan", "tsan"}) {
    EXPECT_NE(text.find(R"({"name": ")" + preset + R"(", "inherits": "strict", "configurePreset")"), std::string::npos)
        << preset;
  }
}

}  // namespace
