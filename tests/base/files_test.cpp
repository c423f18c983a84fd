// How files are written: in pieces if the system wants it so. What a program writes for a user: whole or not at all,
// through links and devices, never over one of its own inputs; and standard output whose failures are noticed.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <stdexcept>
#include <string>
#include <thread>

#include "dunnock/base/output_file.hpp"
#include "dunnock/base/paths.hpp"
#include "dunnock/base/program.hpp"
#include "dunnock/base/standard_streams.hpp"

namespace dunnock {
namespace {

class Files : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / ("base_files_test." + std::to_string(getpid()));
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  [[nodiscard]] std::string at(const std::string& name) const { return (folder_ / name).string(); }
  static std::string read(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  static void write(const std::string& path, std::string_view text) { std::ofstream(path) << text; }
  static mode_t mode_of(const std::string& path) {
    struct stat info {};
    return ::lstat(path.c_str(), &info) == 0 ? info.st_mode : 0;
  }
  [[nodiscard]] std::size_t count() const {
    return static_cast<std::size_t>(std::distance(std::filesystem::directory_iterator(folder_), {}));
  }
  std::filesystem::path folder_;
};
using OutputFiles = Files;
using SamePaths = Files;

// ----- writes that the system does in pieces ------------------------------------------------------------------------

void ignore_alarm(int) {}

/// A pipe holds 64 KiB, and its reader is slow: write(2) waits in the middle, and a signal that comes often interrupts
/// it there, with a part written, or before anything is.
TEST_F(Files, are_written_whole_though_signals_interrupt) {
  struct sigaction interrupting {
  }, before{};
  interrupting.sa_handler = ignore_alarm;  // Without SA_RESTART.
  ASSERT_EQ(::sigaction(SIGALRM, &interrupting, &before), 0);
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  std::string sent(1 << 20, ' '), received;
  for (std::size_t i = 0; i < sent.size(); ++i) sent[i] = static_cast<char>(i * 7 + i / 251);
  // The alarm is for the thread that writes.
  sigset_t alarm, all;
  sigemptyset(&alarm);
  sigaddset(&alarm, SIGALRM);
  ASSERT_EQ(pthread_sigmask(SIG_BLOCK, &alarm, &all), 0);
  std::thread reader([&] {
    char piece[10000];
    for (ssize_t got; (got = ::read(ends[0], piece, sizeof piece)) > 0;) {
      received.append(piece, static_cast<std::size_t>(got));
      std::this_thread::sleep_for(std::chrono::microseconds(500));
    }
  });
  ASSERT_EQ(pthread_sigmask(SIG_SETMASK, &all, nullptr), 0);
  const itimerval often{{0, 200}, {0, 200}}, never{};
  ASSERT_EQ(::setitimer(ITIMER_REAL, &often, nullptr), 0);
  const bool fine = file_system().write(ends[1], sent.data(), sent.size());
  ASSERT_EQ(::setitimer(ITIMER_REAL, &never, nullptr), 0);
  ::close(ends[1]);
  reader.join();
  ::close(ends[0]);
  ::sigaction(SIGALRM, &before, nullptr);
  EXPECT_TRUE(fine);
  EXPECT_TRUE(received == sent);
}

/// A limit of the file's size (or a disk that is almost full) lets the system write a part and then nothing.
TEST_F(Files, that_take_a_part_only_are_an_error_with_its_reason) {
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  rlimit small = before;
  small.rlim_cur = 1000;
  auto* const handler = std::signal(SIGXFSZ, SIG_IGN);
  const UniqueFd file(file_system().open(AT_FDCWD, at("f").c_str(), O_WRONLY | O_CREAT, 0600));
  ASSERT_TRUE(file);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const std::string text(3000, 'x');
  errno = 0;
  const bool fine = file_system().pwrite(file.get(), text.data(), text.size(), 0);
  const int error = errno;
  ::setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  EXPECT_FALSE(fine);
  EXPECT_EQ(error, EFBIG);
  EXPECT_EQ(read(at("f")).size(), 1000u) << "the part that there was room for";
}

TEST_F(Files, that_are_new_are_nobody_elses) {
  const auto first = create_new_file(at("new-"), 0600);
  ASSERT_TRUE(first) << first.error().message;
  const auto second = create_new_file(at("new-"), 0600);
  ASSERT_TRUE(second) << second.error().message;
  EXPECT_NE(first->path, second->path);
  EXPECT_EQ(mode_of(first->path) & 0777, 0600u);
  EXPECT_EQ(create_new_file(at("nowhere/new-"), 0600).error().code, ErrorCode::kNotFound);
}

TEST_F(OutputFiles, get_their_name_when_they_are_whole) {
  write(at("f"), "old");
  {
    auto output = OutputFile::create(at("f"));
    ASSERT_TRUE(output) << output.error().message;
    ASSERT_TRUE(output->append("new"));
    ASSERT_TRUE(output->append("er"));
    EXPECT_EQ(read(at("f")), "old");
    ASSERT_TRUE(output->commit());
  }
  EXPECT_EQ(read(at("f")), "newer");
  EXPECT_EQ(count(), 1u);
}

TEST_F(OutputFiles, leave_what_was_there_when_they_are_given_up) {
  write(at("f"), "old");
  {
    auto output = OutputFile::create(at("f"));
    ASSERT_TRUE(output && output->append("new"));
  }
  EXPECT_EQ(read(at("f")), "old");
  EXPECT_EQ(count(), 1u) << "what was begun is gone";
}

TEST_F(OutputFiles, pass_on_the_mode_of_the_file_that_they_replace) {
  write(at("f"), "secret");
  ASSERT_EQ(::chmod(at("f").c_str(), 0600), 0);
  ASSERT_TRUE(write_output_file(at("f"), "more"));
  EXPECT_EQ(mode_of(at("f")) & 07777, 0600u);
  const mode_t before = ::umask(027);
  ASSERT_TRUE(write_output_file(at("g"), "new"));
  ::umask(before);
  EXPECT_EQ(mode_of(at("g")) & 07777, 0640u);
}

TEST_F(OutputFiles, take_no_file_of_somebody_else_for_their_own) {
  const std::string part = at("f") + ".part-" + std::to_string(getpid()) + "-0";
  write(at("other"), "mine");
  std::filesystem::create_symlink(at("other"), part);
  ASSERT_TRUE(write_output_file(at("f"), "text"));
  EXPECT_EQ(read(at("other")), "mine");
  EXPECT_TRUE(std::filesystem::is_symlink(part));
  EXPECT_EQ(read(at("f")), "text");
}

TEST_F(OutputFiles, go_where_a_link_leads_and_leave_the_link) {
  std::filesystem::create_directory(at("d"));
  write(at("d/f"), "old");
  std::filesystem::create_symlink("d/f", at("link"));
  std::filesystem::create_symlink("link", at("link2"));
  ASSERT_TRUE(write_output_file(at("link2"), "new"));
  EXPECT_TRUE(std::filesystem::is_symlink(at("link")) && std::filesystem::is_symlink(at("link2")));
  EXPECT_EQ(read(at("d/f")), "new");
  std::filesystem::create_symlink("d/g", at("to nothing"));
  ASSERT_TRUE(write_output_file(at("to nothing"), "made"));
  EXPECT_TRUE(std::filesystem::is_symlink(at("to nothing")));
  EXPECT_EQ(read(at("d/g")), "made");
  std::filesystem::create_symlink("loop", at("loop"));
  EXPECT_FALSE(write_output_file(at("loop"), "x"));
}

TEST_F(OutputFiles, write_through_devices_and_pipes) {
  std::filesystem::create_symlink("/dev/null", at("null"));
  for (const std::string& path : {std::string("/dev/null"), at("null")}) {
    const Status done = write_output_file(path, "text");
    EXPECT_TRUE(done) << done.error().message;
  }
  EXPECT_TRUE(S_ISCHR(mode_of("/dev/null")));
  EXPECT_TRUE(std::filesystem::is_symlink(at("null")));
  const Status full = write_output_file("/dev/full", "text");
  ASSERT_FALSE(full);
  EXPECT_EQ(full.error().code, ErrorCode::kNoSpace);
  EXPECT_NE(full.error().message.find(std::strerror(ENOSPC)), std::string::npos) << full.error().message;

  ASSERT_EQ(::mkfifo(at("pipe").c_str(), 0600), 0);
  const auto unread = OutputFile::create(at("pipe"));
  ASSERT_FALSE(unread);
  EXPECT_NE(unread.error().message.find("no process reads from this FIFO"), std::string::npos)
      << unread.error().message;
  std::string got;
  std::thread reader([&] { got = read(at("pipe")); });
  auto output = OutputFile::create(at("pipe"));
  ASSERT_TRUE(output) << output.error().message;
  EXPECT_TRUE(output->is_stream());
  EXPECT_TRUE(output->write_at(0, std::as_bytes(std::span("abc", 3))));
  EXPECT_EQ(output->write_at(5, std::as_bytes(std::span("xyz", 3))).error().code, ErrorCode::kInvalidArgument);
  EXPECT_TRUE(output->append("def"));
  EXPECT_TRUE(output->commit());
  reader.join();
  EXPECT_EQ(got, "abcdef");
  EXPECT_TRUE(S_ISFIFO(mode_of(at("pipe"))));
}

TEST_F(OutputFiles, write_in_place_through_a_descriptor) {
  const int file = ::open(at("f").c_str(), O_WRONLY | O_CREAT, 0644);
  ASSERT_GE(file, 0);
  ASSERT_TRUE(write_output_file("/proc/self/fd/" + std::to_string(file), "text"));
  struct stat open {
  }, named{};
  EXPECT_EQ(::fstat(file, &open), 0);
  EXPECT_EQ(::stat(at("f").c_str(), &named), 0);
  EXPECT_EQ(open.st_ino, named.st_ino);
  EXPECT_EQ(read(at("f")), "text");
  ::close(file);
}

TEST_F(OutputFiles, say_why_they_cannot_be) {
  EXPECT_EQ(write_output_file("", "").error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(write_output_file(folder_.string(), "").error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(write_output_file(at("new/"), "").error().code, ErrorCode::kInvalidArgument);
  const Status missing = write_output_file(at("no/folder"), "");
  EXPECT_EQ(missing.error().code, ErrorCode::kNotFound);
  EXPECT_NE(missing.error().message.find(at("no/folder")), std::string::npos);
  write(at("f"), "");
  EXPECT_EQ(write_output_file(at("f/g"), "").error().code, ErrorCode::kNotFound);
  if (::geteuid() != 0) {
    ASSERT_EQ(::chmod(at("f").c_str(), 0444), 0);
    EXPECT_EQ(write_output_file(at("f"), "").error().code, ErrorCode::kReadOnly);
  }
  EXPECT_TRUE(write_output_file(at(std::string(255, 'n')), "a name as long as may be"));
}

TEST_F(SamePaths, are_known_by_what_they_lead_to) {
  write(at("f"), "");
  std::filesystem::create_symlink("f", at("link"));
  std::filesystem::create_hard_link(at("f"), at("hard"));
  std::filesystem::create_symlink(".", at("here"));
  for (const std::string& other : {at("f"), at("./f"), at("here/f"), at("link"), at("hard"), at("here/here/hard")})
    EXPECT_TRUE(is_same_file(at("f"), other)) << other;
  write(at("g"), "");
  EXPECT_FALSE(is_same_file(at("f"), at("g")));
  EXPECT_FALSE(is_same_file(at("f"), at("none")));
  EXPECT_FALSE(is_same_file(at("f"), ""));
  EXPECT_FALSE(is_same_file("", ""));
}

TEST_F(SamePaths, are_known_before_there_is_anything) {
  std::filesystem::create_symlink(".", at("here"));
  std::filesystem::create_symlink("none", at("to none"));
  for (const std::string& other : {at("none"), at("./none"), at("here/none"), at("to none")})
    EXPECT_TRUE(is_same_file(at("none"), other)) << other;
  EXPECT_FALSE(is_same_file(at("none"), at("other")));
  EXPECT_FALSE(is_same_file(at("none"), at("here/../none"))) << "the folder above the one that the link leads to";
  EXPECT_TRUE(is_same_file(at("no/folder/f"), at("no/./folder/../folder/f")));
  const std::filesystem::path before = std::filesystem::current_path();
  std::filesystem::current_path(folder_);
  EXPECT_TRUE(is_same_file("none", at("none")));
  std::filesystem::current_path(before);
}

TEST_F(SamePaths, do_not_include_what_may_be_shared) {
  EXPECT_FALSE(is_same_file("/dev/null", "/dev/null"));
  ASSERT_EQ(::mkfifo(at("pipe").c_str(), 0600), 0);
  EXPECT_FALSE(is_same_file(at("pipe"), at("pipe")));
}

TEST_F(SamePaths, are_refused_where_one_is_written) {
  write(at("f"), "");
  const std::vector<NamedPath> read_twice{{"data.text", at("f"), false}, {"data.tokens", at("f"), false}};
  EXPECT_TRUE(check_paths(read_twice));
  const std::vector<NamedPath> written{{"data.text", at("f"), false}, {"log.csv", at("./f"), true}};
  const Status wrong = check_paths(written);
  ASSERT_FALSE(wrong);
  EXPECT_EQ(wrong.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(wrong.error().message.find("log.csv"), std::string::npos) << wrong.error().message;
  const std::vector<NamedPath> apart{{"data.text", at("f"), false}, {"log.csv", at("g"), true}, {"log.json", "", true}};
  EXPECT_TRUE(check_paths(apart));
}

/// What `work` returns in a process of its own whose standard output is `descriptor`; -1: closed.
int in_process(int descriptor, const std::function<int()>& work) {
  const pid_t process = fork();
  if (process == 0) {
    if (descriptor >= 0) {
      (void)::dup2(descriptor, STDOUT_FILENO);
    } else {
      (void)::close(STDOUT_FILENO);
    }
    ::_exit(work());
  }
  int status = -1;
  ::waitpid(process, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 255;
}

TEST(StandardOutput, tells_why_what_was_printed_did_not_arrive) {
  const int full = ::open("/dev/full", O_WRONLY | O_CLOEXEC);
  ASSERT_GE(full, 0);
  for (const std::size_t bytes : {1, 100000}) {  // Less than the buffer holds, and more.
    const auto prints = [bytes](bool by_stdio) {
      return [bytes, by_stdio] {
        const std::string text(bytes, 'x');
        by_stdio ? void(std::printf("%s", text.c_str())) : write_standard_output(text);
        const Status done = flush_standard_output();
        if (done) return 1;
        return done.error().code == ErrorCode::kNoSpace &&
                       done.error().message.find(std::strerror(ENOSPC)) != std::string::npos
                   ? 0
                   : 2;
      };
    };
    EXPECT_EQ(in_process(full, prints(false)), 0) << bytes;
    EXPECT_EQ(in_process(full, prints(true)), 0) << bytes;
  }
  ::close(full);
}

TEST_F(Files, a_closed_standard_output_is_no_place_for_the_next_file) {
  const auto work = [this] {
    keep_standard_descriptors();
    const int file = ::open(at("pool").c_str(), O_RDWR | O_CREAT, 0600);
    if (file <= STDERR_FILENO) return 1;
    write_standard_output("text");
    if (flush_standard_output()) return 2;
    struct stat info {};
    return ::fstat(file, &info) == 0 && info.st_size == 0 ? 0 : 3;
  };
  EXPECT_EQ(in_process(-1, work), 0);
}

TEST(Program, ends_with_its_own_status_or_that_of_a_failure) {
  const int full = ::open("/dev/full", O_WRONLY | O_CLOEXEC);
  ASSERT_GE(full, 0);
  constexpr int kFailed = 7;
  const auto program = [](int status, std::string_view printed) {
    return [status, printed] {
      return run_program("program", kFailed, [&] {
        write_standard_output(printed);
        if (status < 0) throw std::runtime_error("no status");
        return status;
      });
    };
  };
  EXPECT_EQ(in_process(STDERR_FILENO, program(0, "")), 0);
  EXPECT_EQ(in_process(STDERR_FILENO, program(4, "")), 4);
  EXPECT_EQ(in_process(STDERR_FILENO, program(-1, "")), kFailed) << "an exception";
  EXPECT_EQ(in_process(full, program(0, "text")), kFailed) << "an output that is not whole is no success";
  EXPECT_EQ(in_process(full, program(4, "text")), 4);
  EXPECT_EQ(in_process(full, program(-1, "text")), kFailed);
  EXPECT_EQ(in_process(-1, program(0, "text")), kFailed) << "standard output is closed";
  ::close(full);
}

TEST_F(Files, a_program_reports_an_exception_without_its_control_characters) {
  const auto work = [this] {
    if (std::freopen(at("errors").c_str(), "w", stderr) == nullptr) return 1;
    const int status = run_program("program", 7, []() -> int { throw std::runtime_error("of \x1b[2J a file"); });
    return std::fflush(stderr) == 0 ? status : 2;
  };
  EXPECT_EQ(in_process(STDERR_FILENO, work), 7);
  const std::string errors = read(at("errors"));
  EXPECT_EQ(errors.find('\x1b'), std::string::npos) << "a terminal would obey it";
  EXPECT_NE(errors.find("[2J a file"), std::string::npos) << errors;
}

TEST(StandardOutput, is_fine_when_all_has_arrived) {
  EXPECT_EQ(in_process(STDERR_FILENO,
                       [] {
                         write_standard_output("");
                         return flush_standard_output() ? 0 : 1;
                       }),
            0);
}

}  // namespace
}  // namespace dunnock
