// The log: what is written is read, a resumed run goes on behind its step wherever the last one was cut off, and a disk
// that is full costs rows, not the run.
#include "log.hpp"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cmath>
#include <csignal>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>

#include "support/seed.hpp"
#include "support/temporary_folder.hpp"

namespace dunnock::train {
namespace {

using test::file_bytes;
using test::TemporaryFolder;

LogRow row_at(std::uint64_t step) {
  LogRow row{.step = step, .epoch = static_cast<double>(step) / 7, .loss = 1.0 / static_cast<double>(step + 3)};
  if (step % 2 == 0) row.validation_loss = 0.1 * static_cast<double>(step);
  row.learning_rate = 1e-3;
  row.memory_bytes = 1 << 30;
  return row;
}

std::vector<LogRow> rows_to(std::uint64_t last) {
  std::vector<LogRow> rows;
  for (std::uint64_t step = 1; step <= last; ++step) rows.push_back(row_at(step));
  return rows;
}

std::string text_of(const std::vector<LogRow>& rows, LogFormat format) {
  std::string text = format == LogFormat::kCsv ? csv_header() : "";
  for (const LogRow& row : rows) text += to_line(row, format);
  return text;
}

TrainingLog open_or_fail(const LogPaths& paths, std::optional<std::uint64_t> step = std::nullopt) {
  auto log = TrainingLog::open(paths, step);
  EXPECT_TRUE(log) << log.error().message;
  return std::move(log.value());
}

LogPaths paths_of(const std::string& path, LogFormat format) {
  return format == LogFormat::kCsv ? LogPaths{.csv = path} : LogPaths{.json = path};
}

class Log : public ::testing::TestWithParam<LogFormat> {};
INSTANTIATE_TEST_SUITE_P(Formats, Log, ::testing::Values(LogFormat::kCsv, LogFormat::kJsonLines),
                         [](const auto& format) { return format.param == LogFormat::kCsv ? "csv" : "json"; });

// ----- rows ---------------------------------------------------------------------------------------------------------

TEST(LogRows, are_lines_of_CSV) {
  EXPECT_EQ(csv_header(),
            "step,epoch,loss,validation_loss,accuracy,learning_rate,gradient_norm,items_per_second,peak_share,"
            "memory_bytes,seconds,checkpoint_bytes\n");
  const LogRow row{.step = 10,
                   .epoch = 0.5,
                   .loss = 2.25,
                   .accuracy = 0.75,
                   .learning_rate = 0.001,
                   .items_per_second = 12345,
                   .memory_bytes = 1000,
                   .seconds = 1.5,
                   .checkpoint_bytes = 7};
  EXPECT_EQ(to_line(row, LogFormat::kCsv), "10,0.5,2.25,,0.75,0.001,,12345,,1000,1.5,7\n");
}

TEST(LogRows, are_lines_of_JSON) {
  const LogRow row{.step = 10, .loss = std::numeric_limits<double>::quiet_NaN(), .gradient_norm = 0.25};
  const auto json = nlohmann::json::parse(to_line(row, LogFormat::kJsonLines));
  EXPECT_EQ(json.size(), 12U);
  EXPECT_EQ(json["step"], 10);
  EXPECT_TRUE(json["loss"].is_null());
  EXPECT_EQ(json["gradient_norm"], 0.25);
  EXPECT_TRUE(json["accuracy"].is_null());
}

TEST_P(Log, gives_back_every_bit_of_random_rows) {
  auto random = test::generator(1);
  const auto number = [&] {
    return std::ldexp(std::generate_canonical<double, 53>(random), static_cast<int>(random() % 200) - 100);
  };
  const auto perhaps = [&] { return random() % 2 == 0 ? std::optional<double>() : number(); };
  for (int round = 0; round < 500; ++round) {
    const LogRow row{random(),  number(), number(),  perhaps(), perhaps(), number(),
                     perhaps(), number(), perhaps(), random(),  number(),  random()};
    std::string line = to_line(row, GetParam());
    ASSERT_EQ(line.back(), '\n');
    line.pop_back();
    ASSERT_EQ(row_of(line, GetParam()), row) << line;
  }
}

TEST_P(Log, keeps_a_loss_that_is_no_number) {
  for (const double loss : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    std::string line = to_line({.step = 1, .loss = loss}, GetParam());
    line.pop_back();
    const auto row = row_of(line, GetParam());
    ASSERT_TRUE(row) << line;
    EXPECT_FALSE(std::isfinite(row->loss));
  }
}

TEST(LogRows, that_are_none_are_refused) {
  for (const char* line :
       {"", "1", "1,2,3,,,4,,5,,6,7", "1,2,3,,,4,,5,,6,7,8,9", "x,2,3,,,4,,5,,6,7,8", "-1,2,3,,,4,,5,,6,7,8",
        "1,,3,,,4,,5,,6,7,8", "1,2,3,,,4,,5,,6,7,8 ", "1.5,2,3,,,4,,5,,6,7,8"})
    EXPECT_FALSE(row_of(line, LogFormat::kCsv)) << line;
  std::string line = to_line(row_at(2), LogFormat::kJsonLines);
  line.pop_back();
  ASSERT_TRUE(row_of(line, LogFormat::kJsonLines));
  const auto changed = [&](std::string_view from, std::string_view to) {
    std::string text = line;
    text.replace(text.find(from), from.size(), to);
    return text;
  };
  for (const std::string& wrong : {std::string(), std::string("[]"), std::string("{"), changed("\"step\": 2, ", ""),
                                   changed("\"step\": 2", "\"step\": \"2\""), changed("\"step\": 2", "\"step\": null"),
                                   changed("\"step\"", "\"more\": 1, \"step\""), changed("}", "}}")})
    EXPECT_FALSE(row_of(wrong, LogFormat::kJsonLines)) << wrong;
}

// ----- files --------------------------------------------------------------------------------------------------------

TEST_P(Log, has_the_rows_that_were_added) {
  const TemporaryFolder folder;
  const std::string path = folder.path("log");
  TrainingLog log = open_or_fail(paths_of(path, GetParam()));
  for (const LogRow& row : rows_to(20)) EXPECT_TRUE(log.add(row));
  EXPECT_EQ(file_bytes(path), text_of(rows_to(20), GetParam())) << "each row is in the file as soon as it is added";
  EXPECT_EQ(read_log(path).value(), rows_to(20));
  EXPECT_EQ(log.rows_lost(), 0U);
}

TEST(LogFiles, may_be_both_or_none) {
  const TemporaryFolder folder;
  TrainingLog log = open_or_fail({.csv = folder.path("a"), .json = folder.path("b")});
  EXPECT_TRUE(log.add(row_at(1)));
  EXPECT_EQ(read_log(folder.path("a")).value(), rows_to(1));
  EXPECT_EQ(read_log(folder.path("b")).value(), rows_to(1));
  TrainingLog none = open_or_fail({});
  EXPECT_TRUE(none.add(row_at(1)));
}

TEST_P(Log, of_a_new_run_keeps_the_old_one_aside) {
  const TemporaryFolder folder;
  const std::string path = folder.write("log", "precious\n");
  TrainingLog log = open_or_fail(paths_of(path, GetParam()));
  EXPECT_TRUE(log.add(row_at(1)));
  EXPECT_EQ(read_log(path).value(), rows_to(1));
  EXPECT_EQ(file_bytes(path + ".old"), "precious\n");
}

TEST_P(Log, of_a_resumed_run_goes_on_behind_its_step) {
  const TemporaryFolder folder;
  const std::string path = folder.write("log", text_of(rows_to(10), GetParam()));
  {
    TrainingLog log = open_or_fail(paths_of(path, GetParam()), 6);
    EXPECT_EQ(file_bytes(path), text_of(rows_to(6), GetParam()));
    for (std::uint64_t step = 7; step <= 12; ++step) EXPECT_TRUE(log.add(row_at(step)));
  }
  EXPECT_EQ(file_bytes(path), text_of(rows_to(12), GetParam()));
  // Nothing to cut off: the file itself goes on.
  struct stat before {
  }, after{};
  ASSERT_EQ(stat(path.c_str(), &before), 0);
  TrainingLog log = open_or_fail(paths_of(path, GetParam()), 12);
  EXPECT_TRUE(log.add(row_at(13)));
  ASSERT_EQ(stat(path.c_str(), &after), 0);
  EXPECT_EQ(before.st_ino, after.st_ino);
  EXPECT_EQ(file_bytes(path), text_of(rows_to(13), GetParam()));
}

TEST_P(Log, goes_on_wherever_a_crash_has_cut_it_off) {
  const TemporaryFolder folder;
  const std::string whole = text_of(rows_to(4), GetParam());
  for (std::size_t bytes = 0; bytes <= whole.size(); ++bytes) {
    const std::string path = folder.write("log", whole.substr(0, bytes));
    TrainingLog log = open_or_fail(paths_of(path, GetParam()), 4);
    // The rows whose lines are whole, and then the next.
    std::vector<LogRow> expected;
    for (std::uint64_t step = 1; step <= 4; ++step) {
      if (text_of(rows_to(step), GetParam()).size() <= bytes) expected.push_back(row_at(step));
    }
    EXPECT_TRUE(log.add(row_at(5)));
    expected.push_back(row_at(5));
    ASSERT_EQ(file_bytes(path), text_of(expected, GetParam())) << bytes << " bytes";
  }
  EXPECT_FALSE(std::filesystem::exists(folder.path("log.resumed")));
}

TEST_P(Log, goes_on_behind_a_process_that_was_killed) {
  const TemporaryFolder folder;
  const std::string path = folder.path("log");
  auto random = test::generator(2);
  std::uint64_t done = 0;  // Steps that are in a checkpoint, as it were.
  for (int round = 0; round < 20; ++round) {
    const pid_t child = fork();
    if (child == 0) {
      auto log = TrainingLog::open(paths_of(path, GetParam()), done);
      if (!log) _exit(1);
      for (std::uint64_t step = done + 1;; ++step) (void)log->add(row_at(step));
    }
    usleep(static_cast<useconds_t>(1000 + random() % 4000));
    int status = 0;
    ASSERT_EQ(kill(child, SIGKILL), 0);
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the log could not be resumed";
    // Killed before it was begun, perhaps; otherwise every row up to some step.
    if (!std::filesystem::exists(path)) continue;
    const auto rows = read_log(path);
    ASSERT_TRUE(rows) << rows.error().message;
    ASSERT_EQ(*rows, rows_to(rows->size()));
    ASSERT_GE(rows->size(), done);
    done = rows->size() - rows->size() / 3;
  }
  const TrainingLog log = open_or_fail(paths_of(path, GetParam()), done);
  EXPECT_EQ(file_bytes(path), done == 0 ? "" : text_of(rows_to(done), GetParam()));
  EXPECT_GT(done, 0U);
}

TEST_P(Log, leaves_the_old_file_or_the_new_one_when_a_resumption_crashes) {
  // What a crash before the renaming leaves: the old file, and a part of the new one, which the next takes no notice
  // of.
  const TemporaryFolder folder;
  const std::string path = folder.write("log", text_of(rows_to(10), GetParam()));
  const std::string part = folder.write("log.part-" + std::to_string(getpid()) + "-0", std::string(100000, 'x'));
  TrainingLog log = open_or_fail(paths_of(path, GetParam()), 6);
  EXPECT_EQ(file_bytes(path), text_of(rows_to(6), GetParam()));
  EXPECT_EQ(file_bytes(part), std::string(100000, 'x')) << "nobody's file is written over";
}

TEST_P(Log, begins_when_there_is_none_to_resume) {
  const TemporaryFolder folder;
  const std::string path = folder.path("log");
  TrainingLog log = open_or_fail(paths_of(path, GetParam()), 100);
  EXPECT_TRUE(log.add(row_at(101)));
  EXPECT_EQ(read_log(path).value(), std::vector{row_at(101)});
}

TEST_P(Log, keeps_nothing_when_it_resumes_before_the_first_row) {
  const TemporaryFolder folder;
  const std::string path = folder.write("log", text_of(rows_to(3), GetParam()));
  TrainingLog log = open_or_fail(paths_of(path, GetParam()), 0);
  EXPECT_TRUE(log.add(row_at(1)));
  EXPECT_EQ(file_bytes(path), text_of(rows_to(1), GetParam()));
}

TEST_P(Log, is_not_made_of_what_is_no_log) {
  const TemporaryFolder folder;
  const std::string sound = text_of(rows_to(3), GetParam());
  const std::size_t line = GetParam() == LogFormat::kCsv ? 5 : 4;
  for (const std::string& text : {std::string("something\nelse\n"), sound + "nonsense\n"}) {
    const std::string path = folder.write("log", text);
    const auto log = TrainingLog::open(paths_of(path, GetParam()), 3);
    ASSERT_FALSE(log);
    EXPECT_EQ(log.error().code, ErrorCode::kCorrupt);
    EXPECT_TRUE(log.error().message.starts_with(path + ":" + std::to_string(text == sound + "nonsense\n" ? line : 1)))
        << log.error().message;
    EXPECT_EQ(file_bytes(path), text) << "it is untouched";
    EXPECT_EQ(read_log(path).error().code, ErrorCode::kCorrupt);
  }
}

TEST(LogFiles, that_can_not_be_opened_are_errors) {
  const TemporaryFolder folder;
  EXPECT_EQ(TrainingLog::open({.csv = folder.path("none/log")}).error().code, ErrorCode::kNotFound);
  EXPECT_EQ(TrainingLog::open({.json = folder.path("none/log")}, 3).error().code, ErrorCode::kNotFound);
  EXPECT_EQ(TrainingLog::open({.csv = folder.path("")}).error().code, ErrorCode::kIo) << "a directory";
  EXPECT_EQ(TrainingLog::open({.csv = folder.path("")}, 3).error().code, ErrorCode::kInvalidArgument) << "a directory";
  EXPECT_EQ(read_log(folder.path("none")).error().code, ErrorCode::kNotFound);
  // The old log's name is taken by a folder that is not empty.
  const std::string path = folder.write("log", "a\n");
  std::filesystem::create_directories(folder.path("log.old/more"));
  EXPECT_FALSE(TrainingLog::open({.csv = path}));
  EXPECT_EQ(file_bytes(path), "a\n");
}

/// Files may not grow beyond `bytes` while it lives: what a full disk is like, with a part that still fits.
class FullDisk {
 public:
  explicit FullDisk(std::size_t bytes) {
    before_ = std::signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &limit_);
    const rlimit lower{bytes, limit_.rlim_max};
    EXPECT_EQ(setrlimit(RLIMIT_FSIZE, &lower), 0);
  }
  FullDisk(const FullDisk&) = delete;
  FullDisk& operator=(const FullDisk&) = delete;
  ~FullDisk() {
    setrlimit(RLIMIT_FSIZE, &limit_);
    std::signal(SIGXFSZ, before_);
  }

 private:
  rlimit limit_{};
  void (*before_)(int) = nullptr;
};

TEST_P(Log, says_once_that_the_disk_is_full_and_goes_on_when_it_is_not) {
  const TemporaryFolder folder;
  const std::string path = folder.path("log");
  TrainingLog log = open_or_fail(paths_of(path, GetParam()));
  EXPECT_TRUE(log.add(row_at(1)));
  {
    const FullDisk full(file_bytes(path).size() + 10);
    const Status first = log.add(row_at(2));
    ASSERT_FALSE(first);
    EXPECT_EQ(first.error().code, ErrorCode::kNoSpace);
    EXPECT_TRUE(first.error().message.starts_with("can't write " + path + " (training continues): "))
        << first.error().message;
    EXPECT_EQ(file_bytes(path), text_of(rows_to(1), GetParam())) << "no part of the row";
    EXPECT_TRUE(log.add(row_at(3))) << "it was told";
  }
  EXPECT_EQ(log.rows_lost(), 2U);
  EXPECT_TRUE(log.add(row_at(4)));
  EXPECT_EQ(read_log(path).value(), (std::vector{row_at(1), row_at(4)}));
  const FullDisk full(file_bytes(path).size() + 10);
  EXPECT_FALSE(log.add(row_at(5))) << "another time it is told again";
}

TEST_P(Log, is_as_it_was_when_the_disk_is_full_while_it_resumes) {
  const TemporaryFolder folder;
  const std::string path = folder.write("log", text_of(rows_to(10), GetParam()));
  const FullDisk full(100);
  const auto log = TrainingLog::open(paths_of(path, GetParam()), 9);
  ASSERT_FALSE(log);
  EXPECT_EQ(log.error().code, ErrorCode::kNoSpace);
  EXPECT_EQ(file_bytes(path), text_of(rows_to(10), GetParam()));
  EXPECT_FALSE(std::filesystem::exists(path + ".resumed"));
}

TEST(LogFiles, write_into_the_other_when_one_is_full) {
  const TemporaryFolder folder;
  if (!std::filesystem::exists("/dev/full")) GTEST_SKIP() << "there is no /dev/full here";
  TrainingLog log = open_or_fail({.csv = "/dev/full", .json = folder.path("log")});
  const Status first = log.add(row_at(1));
  ASSERT_FALSE(first);
  EXPECT_EQ(first.error().code, ErrorCode::kNoSpace);
  EXPECT_TRUE(log.add(row_at(2)));
  EXPECT_EQ(read_log(folder.path("log")).value(), rows_to(2));
  EXPECT_EQ(log.rows_lost(), 2U);
}

}  // namespace
}  // namespace dunnock::train
