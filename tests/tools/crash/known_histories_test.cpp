// The file of histories that are known to catch planted bugs.
#include "known_histories.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

namespace dunnock::crash {
namespace {

class KnownHistoriesFile : public ::testing::Test {
 protected:
  void TearDown() override { std::filesystem::remove(path_); }
  void write(const std::string& text) const { std::ofstream(path_) << text; }
  std::string path_ =
      (std::filesystem::temp_directory_path() / ("known_histories_test." + std::to_string(getpid()))).string();
  Settings filter_{.structure = "filter"};
  Settings log_file_{.structure = "log", .media = "file"};
};

using Seeds = std::vector<std::uint64_t>;

TEST_F(KnownHistoriesFile, is_read_as_it_was_written) {
  KnownHistories known;
  known.learn(filter_, "no flush Home", 7);
  known.learn(filter_, "no fence Home", 9);
  known.learn(log_file_, "no flush Home", 8);
  ASSERT_TRUE(known.write(path_));
  const auto read = KnownHistories::read(path_, false);
  ASSERT_TRUE(read) << read.error().message;
  EXPECT_EQ(read->of(filter_, "no flush Home"), Seeds{7});
  EXPECT_EQ(read->of(log_file_, "no flush Home"), Seeds{8});
  EXPECT_EQ(read->of(log_file_, "no fence Home"), Seeds{});
  EXPECT_EQ(read->of(Settings{.structure = "index"}, "no flush Home"), Seeds{});
  EXPECT_EQ(read->all_of(filter_), (Seeds{7, 9}));
}

TEST_F(KnownHistoriesFile, follows_lines_of_the_source_that_move) {
  KnownHistories known;
  known.learn(filter_, "no flush Home at ops.ipp:10", 4);
  known.learn(filter_, "no flush Home at ops.ipp:90", 3);
  known.learn(filter_, "no flush Home at bulk.ipp:10", 5);
  EXPECT_EQ(known.of(filter_, "no flush Home at ops.ipp:10"), Seeds{4});
  EXPECT_EQ(known.of(filter_, "no flush Home at ops.ipp:12"), (Seeds{3, 4}));
  EXPECT_EQ(known.of(filter_, "no flush Home"), Seeds{});
  known.forget(filter_);
  EXPECT_EQ(known.all_of(filter_), Seeds{});
}

TEST_F(KnownHistoriesFile, is_refused_with_a_reason) {
  EXPECT_EQ(KnownHistories::read(path_, false).error().code, ErrorCode::kNotFound);
  EXPECT_TRUE(KnownHistories::read(path_, true)) << "a file to be written";
  for (const char* const text : {"", "{", "[]", "7", R"({"filter": 3})", R"({"filter": {"no flush Home": -1}})",
                                 R"({"filter": {"no flush Home": "7"}})", R"({"filter": {"no flush Home": 1.5}})"}) {
    write(text);
    const auto read = KnownHistories::read(path_, true);
    ASSERT_FALSE(read) << text;
    EXPECT_EQ(read.error().code, ErrorCode::kInvalidArgument) << text;
    EXPECT_NE(read.error().message.find(path_), std::string::npos) << read.error().message;
  }
}

}  // namespace
}  // namespace dunnock::crash
