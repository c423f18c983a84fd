// dunnock-crash as a person uses it: exit codes, JSON, replay.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

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

std::vector<std::string> lines_of(const std::string& arguments) {
  std::string output;
  EXPECT_EQ(exit_code(arguments, &output), 0) << output;
  std::vector<std::string> lines;
  std::stringstream text(output);
  for (std::string line; std::getline(text, line);) lines.push_back(line);
  return lines;
}

TEST(CrashTool, names_its_structures_and_the_bugs_that_it_plants) {
  const std::vector<std::string> structures = lines_of("structures");
  EXPECT_GE(structures.size(), 5U);
  EXPECT_EQ(structures.front(), "filter");
  for (const std::string& structure : structures) {
    const auto bugs = lines_of("mutants --list --structure " + structure);
    EXPECT_FALSE(bugs.empty()) << structure;
    for (const std::string& bug : lines_of("mutants --list --only 'no check' --structure " + structure))
      EXPECT_NE(bug.find("no check"), std::string::npos) << bug;
  }
  const auto bugs = lines_of("mutants --list");
  for (const char* bug : {"no store Home", "no fence GroupFence", "spill mark after the spilled copy"})
    EXPECT_NE(std::find(bugs.begin(), bugs.end(), bug), bugs.end()) << bug;
  const auto of_files = lines_of("mutants --list --media file");
  EXPECT_NE(std::find(of_files.begin(), of_files.end(), "no sync of a half"), of_files.end());
}

TEST(CrashTool, explores_files_the_same_for_the_same_seed) {
  for (const std::string& structure : lines_of("structures")) {
    const std::string how = "explore --media file --only-seed --structure " + structure + " --seed ";
    for (const char* seed : {"4", "5"}) {  // The second is one in which the disk refuses a call.
      std::string first, again;
      EXPECT_EQ(exit_code(how + seed, &first), 0) << first;
      EXPECT_EQ(exit_code(how + seed, &again), 0) << again;
      EXPECT_EQ(first.substr(0, first.find(" moments")), again.substr(0, again.find(" moments")));
    }
  }
  EXPECT_EQ(exit_code("explore --media file --eadr"), 2);
  EXPECT_EQ(exit_code("explore --media tape"), 2);
}

TEST(CrashTool, prints_a_line_that_replays_a_violation_of_a_file) {
  std::string found, again;
  EXPECT_EQ(exit_code("explore --media file --structure log --jobs 1 --mutant 'no sync of a half'", &found), 1);
  const std::size_t at = found.find("replay: dunnock-crash ");
  ASSERT_NE(at, std::string::npos) << found;
  const std::size_t begin = at + std::string("replay: dunnock-crash ").size();
  EXPECT_EQ(exit_code(found.substr(begin, found.find('\n', begin) - begin), &again), 1) << again;
  EXPECT_NE(again.find("VIOLATION"), std::string::npos);
}

TEST(CrashTool, notices_in_the_life_of_a_pool_when_syncs_do_nothing) {
  for (const char* syncs : {"folder", "folder while removal", "msync", "durable write", "fdatasync while opening",
                            "fdatasync while closing"}) {
    std::string output;
    EXPECT_EQ(exit_code("life --images 3000 --drop '" + std::string(syncs) + "'", &output), 1)
        << syncs << ": " << output;
    EXPECT_NE(output.find("VIOLATION"), std::string::npos) << output;
  }
  EXPECT_EQ(exit_code("life --images 0"), 2);
  for (const char* none : {"nosuch", "msync while sleeping", "folder while", "''"}) {
    std::string output;
    EXPECT_EQ(exit_code("life --images 10 --drop '" + std::string(none) + "'", &output), 2) << none << ": " << output;
    EXPECT_NE(output.find("folder, fdatasync, msync or durable write"), std::string::npos) << output;
    EXPECT_NE(output.find("opening after a crash"), std::string::npos) << output;
  }
  // A known name, of a sync that this structure does not have.
  EXPECT_EQ(exit_code("life --images 10 --drop 'folder while a fence'"), 1);
}

std::string line_with(const std::string& text, const std::string& word) {
  const std::size_t at = text.find(word);
  return at == std::string::npos ? "" : text.substr(at, text.find('\n', at) - at);
}

TEST(CrashTool, prints_a_line_that_replays_a_violation) {
  for (const char* bug : {"no flush Home", "no fence LogArm", "overflow mark durable only with the copy"}) {
    std::string found, again;
    EXPECT_EQ(exit_code("explore --jobs 1 --mutant '" + std::string(bug) + "'", &found), 1) << bug;
    const std::string replay = line_with(found, "replay: ");
    ASSERT_EQ(replay.find("replay: dunnock-crash "), 0U) << found;
    EXPECT_EQ(exit_code(replay.substr(std::string("replay: dunnock-crash ").size()), &again), 1) << replay;
    const std::string sentence = line_with(found, "VIOLATION");
    EXPECT_FALSE(sentence.empty());
    EXPECT_EQ(line_with(again, "VIOLATION"), sentence);
  }
  EXPECT_EQ(exit_code("explore --mutant 'a bug that nobody has thought of'"), 2);
}

TEST(CrashTool, says_what_to_replay_when_the_structure_stops_the_process) {
  // This bug is found by a lost key or by the filter's own check, whichever comes first; no seed may end by a signal.
  for (const char* seed : {"1", "2000", "9000"}) {
    std::string output;
    EXPECT_EQ(exit_code("explore --jobs 1 --mutant 'no store LogRetire' --seed " + std::string(seed), &output), 1)
        << seed;
    EXPECT_NE(output.find("VIOLATION"), std::string::npos) << output;
    EXPECT_NE(output.find("replay: dunnock-crash explore"), std::string::npos) << output;
  }
}

TEST(CrashTool, refuses_to_check_nothing) {
  for (const std::string option :
       {"explore --images", "explore --images-per-moment", "explore --recovery-every", "explore --ops",
        "explore --jobs", "explore --threads", "mutants --budget", "mutants --images-per-moment", "kill --kills",
        "kill --threads", "corrupt --rounds"}) {
    for (const std::string value : {"0", "-1", "18446744073709551616", "99999999999999999999999", "some", "''"}) {
      std::string output;
      EXPECT_EQ(exit_code(option + " " + value, &output), 2) << option << " " << value << ": " << output;
      EXPECT_EQ(output.find("no violation"), std::string::npos) << output;
    }
  }
  for (const std::string option : {"kill --kills", "corrupt --rounds"}) EXPECT_EQ(exit_code(option + " 4294967296"), 2);
  for (const std::string command : {"explore", "mutants", "kill", "corrupt"}) {
    EXPECT_EQ(exit_code(command + " --structure ''"), 2) << command;
    EXPECT_EQ(exit_code(command + " --seed -1"), 2) << command;
  }
}

TEST(CrashTool, fails_when_no_operation_is_left_to_explore) {
  std::string output;
  EXPECT_EQ(exit_code("explore --only-seed --keep 1000", &output), 1);
  EXPECT_NE(output.find("FAILED: no image of any operation was checked"), std::string::npos) << output;
  EXPECT_EQ(output.find("no violation"), std::string::npos) << output;
}

TEST(CrashTool, does_at_least_what_it_is_asked_for) {
  std::string output;
  EXPECT_EQ(exit_code("explore --images 1", &output), 0);
  // A rate may end in "0 images/s": the count is what begins a line.
  EXPECT_EQ(("\n" + output).find("\n0 images"), std::string::npos) << output;
  EXPECT_EQ(exit_code("corrupt --rounds 1", &output), 0);
  EXPECT_NE(output.find("no violation"), std::string::npos) << output;
}

TEST(CrashTool, ends_with_1_when_planted_bugs_are_missed) {
  // With a budget of nothing hardly anything can be caught.
  EXPECT_EQ(exit_code("mutants --budget 1"), 1);
}

}  // namespace
