// Paths: two that lead to one file are found however they are spelled; outputs are tried without a trace.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <dunnock/base/paths.hpp>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

namespace {

using namespace dunnock;
namespace fs = std::filesystem;

class Paths : public ::testing::Test {
 protected:
  Paths() {
    std::string name = (fs::temp_directory_path() / "dunnock-paths-XXXXXX").string();
    folder_ = mkdtemp(name.data());
  }
  ~Paths() override { fs::remove_all(folder_); }

  [[nodiscard]] std::string path(const std::string& name) const { return folder_ + "/" + name; }
  std::string write(const std::string& name, const std::string& text) const {
    std::ofstream(path(name)) << text;
    return path(name);
  }
  [[nodiscard]] std::string text(const std::string& name) const {
    std::ifstream file(path(name));
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  }
  [[nodiscard]] std::size_t files() const {
    return static_cast<std::size_t>(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()));
  }

  std::string folder_;
};

TEST_F(Paths, of_one_file_are_the_same_through_every_spelling_and_link) {
  const std::string file = write("a", "x");
  fs::create_directory(path("folder"));
  fs::create_symlink("a", path("link"));
  fs::create_hard_link(file, path("second"));
  fs::create_directory_symlink(folder_, path("here"));
  for (const char* other : {"a", "./a", "folder/../a", "link", "second", "here/a", "here/here/link"})
    EXPECT_TRUE(is_same_file(file, path(other))) << other;
  EXPECT_FALSE(is_same_file(file, write("b", "x")));
  EXPECT_FALSE(is_same_file(file, path("nowhere")));
}

TEST_F(Paths, of_a_file_that_is_not_there_yet_are_compared_by_folder_and_name) {
  fs::create_directory(path("folder"));
  fs::create_directory_symlink(folder_, path("here"));
  fs::create_symlink("new", path("link"));  // Leads to what is not there.
  fs::create_symlink("link", path("link_of_link"));
  fs::create_symlink(path("new"), path("folder/absolute"));
  for (const char* other : {"new", "./new", "folder/../new", "here/new", "link", "link_of_link", "folder/absolute"})
    EXPECT_TRUE(is_same_file(path("new"), path(other))) << other;
  EXPECT_FALSE(is_same_file(path("new"), path("folder/new")));
  EXPECT_FALSE(is_same_file(path("new"), path("newer")));
  EXPECT_TRUE(is_same_file(path("no/such/new"), path("no/such/../such/new")));
}

TEST_F(Paths, that_lead_nowhere_are_the_same_as_none) {
  fs::create_symlink("circle", path("circle"));
  EXPECT_FALSE(is_same_file(path("circle"), path("circle")));
  EXPECT_FALSE(is_same_file("", ""));
  EXPECT_FALSE(is_same_file("", path("a")));
}

TEST_F(Paths, relative_ones_begin_at_the_working_directory) {
  const fs::path before = fs::current_path();
  fs::current_path(folder_);
  EXPECT_TRUE(is_same_file("new", path("new")));
  EXPECT_TRUE(check_output("new", OutputKind::kInPlace));
  fs::current_path(before);
}

TEST_F(Paths, an_output_that_can_be_written_leaves_no_trace) {
  const std::string file = write("there", "kept");
  const std::size_t before = files();
  for (const OutputKind kind : {OutputKind::kInPlace, OutputKind::kReplaced}) {
    EXPECT_TRUE(check_output(file, kind));
    EXPECT_TRUE(check_output(path("new"), kind));
  }
  EXPECT_EQ(text("there"), "kept");
  EXPECT_EQ(files(), before);
}

TEST_F(Paths, an_output_in_a_folder_that_is_not_there_is_found_out) {
  for (const OutputKind kind : {OutputKind::kInPlace, OutputKind::kReplaced}) {
    const Status missing = check_output(path("no/such/file"), kind);
    ASSERT_FALSE(missing);
    EXPECT_EQ(missing.error().code, ErrorCode::kNotFound);
    EXPECT_NE(missing.error().message.find(path("no/such/file")), std::string::npos) << missing.error().message;
    const Status below_a_file = check_output(write("file", "") + "/below", kind);
    ASSERT_FALSE(below_a_file);
    EXPECT_EQ(below_a_file.error().code, ErrorCode::kNotFound);
  }
}

TEST_F(Paths, an_output_that_is_a_folder_is_found_out) {
  for (const OutputKind kind : {OutputKind::kInPlace, OutputKind::kReplaced}) {
    for (const std::string& name : {folder_, folder_ + "/", path("new/"), std::string()}) {
      const Status folder = check_output(name, kind);
      ASSERT_FALSE(folder) << name;
      EXPECT_EQ(folder.error().code, ErrorCode::kInvalidArgument) << name;
    }
  }
}

TEST_F(Paths, a_device_is_written_in_place_and_not_replaced) {
  EXPECT_TRUE(check_output("/dev/null", OutputKind::kInPlace));
  const Status replaced = check_output("/dev/null", OutputKind::kReplaced);
  ASSERT_FALSE(replaced);
  EXPECT_EQ(replaced.error().code, ErrorCode::kInvalidArgument);
  ASSERT_EQ(mkfifo(path("pipe").c_str(), 0600), 0);
  EXPECT_TRUE(check_output(path("pipe"), OutputKind::kInPlace)) << "does not wait for its reader";
  const int reader = ::open(path("pipe").c_str(), O_RDONLY | O_NONBLOCK);
  ASSERT_GE(reader, 0);
  EXPECT_TRUE(check_output(path("pipe"), OutputKind::kInPlace));
  pollfd looked{reader, POLLIN, 0};
  EXPECT_EQ(::poll(&looked, 1, 0), 0) << "a reader that is waiting has not met the end";
  (void)::close(reader);
}

TEST_F(Paths, an_output_that_the_disk_has_no_room_for_is_found_out) {
  EXPECT_TRUE(check_output(path("small"), OutputKind::kReplaced, 1));
  const Status large = check_output(path("large"), OutputKind::kReplaced, std::uint64_t{1} << 60);
  ASSERT_FALSE(large);
  EXPECT_EQ(large.error().code, ErrorCode::kNoSpace);
}

}  // namespace
