// The progress line: what it says, how it fits into its columns, and when it is drawn.
#include "progress.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <limits>
#include <vector>

namespace dunnock::train {
namespace {

const ProgressFacts kFacts{.step = 1200,
                           .steps = 3000,
                           .loss = 1.73214,
                           .validation_loss = 1.8012,
                           .items_per_second = 12345,
                           .peak_share = 0.451,
                           .memory_bytes = 312 << 20,
                           .seconds_left = 151};

/// What a Progress prints while `use` has it.
template <class Use>
std::string printed(const Progress::Options& options, Use&& use) {
  char* text = nullptr;
  std::size_t bytes = 0;
  std::FILE* const out = open_memstream(&text, &bytes);
  {
    Progress progress(out, options);
    use(progress);
  }
  std::fclose(out);
  std::string all(text, bytes);
  std::free(text);
  return all;
}

TEST(ProgressLine, says_everything_where_there_is_room) {
  EXPECT_EQ(progress_line(kFacts, 120),
            "[############..................]  1200/3000  loss 1.7321  2:31 left  12.3k tokens/s  45 % of peak  "
            "val 1.8012  312 MiB");
  EXPECT_EQ(progress_line(kFacts, 1000), progress_line(kFacts, 120)) << "the bar is long enough then";
}

TEST(ProgressLine, leaves_out_the_least_where_there_is_not) {
  EXPECT_EQ(progress_line(kFacts, 98),
            "[####......]  1200/3000  loss 1.7321  2:31 left  12.3k tokens/s  45 % of peak  val 1.8012  312 MiB");
  EXPECT_EQ(progress_line(kFacts, 97),
            "[#######...........]  1200/3000  loss 1.7321  2:31 left  12.3k tokens/s  45 % of peak  val 1.8012");
  EXPECT_EQ(progress_line(kFacts, 80),
            "[#####........]  1200/3000  loss 1.7321  2:31 left  12.3k tokens/s  45 % of peak");
  EXPECT_EQ(progress_line(kFacts, 63), "[####......]  1200/3000  loss 1.7321  2:31 left  12.3k tokens/s");
  EXPECT_EQ(progress_line(kFacts, 47), "[####......]  1200/3000  loss 1.7321  2:31 left");
  EXPECT_EQ(progress_line(kFacts, 46), "1200/3000  loss 1.7321  2:31 left");
  EXPECT_EQ(progress_line(kFacts, 32), "1200/3000  loss 1.7321");
  EXPECT_EQ(progress_line(kFacts, 13), "1200/3000  lo");
  EXPECT_EQ(progress_line(kFacts, 0), "");
}

TEST(ProgressLine, is_never_longer_than_its_columns) {
  ProgressFacts wide = kFacts;
  wide.step = wide.steps = std::numeric_limits<std::uint64_t>::max();
  wide.loss = 1e300;
  wide.memory_bytes = std::numeric_limits<std::uint64_t>::max();
  for (std::size_t columns = 0; columns < 500; ++columns) {
    for (const ProgressFacts& facts : {kFacts, wide, ProgressFacts{}})
      ASSERT_LE(progress_line(facts, columns).size(), columns);
  }
}

TEST(ProgressLine, leaves_out_what_is_not_known) {
  EXPECT_EQ(progress_line({.step = 1, .steps = 4, .loss = 2, .items_per_second = 3, .items = "images"}, 60),
            "[######...................]  1/4  loss 2.0000  3.00 images/s");
  EXPECT_NE(progress_line({.loss = std::nan("")}, 100).find("loss nan"), std::string::npos);
}

TEST(ProgressLine, has_a_full_bar_when_it_is_done_and_not_before) {
  const auto line = [](std::uint64_t step, std::uint64_t steps) {
    return progress_line({.step = step, .steps = steps}, 200).substr(0, 32);
  };
  const std::string full = "[" + std::string(30, '#') + "]";
  EXPECT_EQ(line(1000, 1000), full);
  EXPECT_EQ(line(1001, 1000), full);
  EXPECT_EQ(line(0, 0), full);
  EXPECT_EQ(line(999, 1000), "[" + std::string(29, '#') + ".]");
  EXPECT_EQ(line(0, 1000), "[" + std::string(30, '.') + "]");
}

TEST(ProgressTexts, of_times) {
  EXPECT_EQ(time_text(0), "0:00");
  EXPECT_EQ(time_text(0.2), "0:01");
  EXPECT_EQ(time_text(59.5), "1:00");
  EXPECT_EQ(time_text(3599), "59:59");
  EXPECT_EQ(time_text(3600), "1:00:00");
  EXPECT_EQ(time_text(359999), "99:59:59");
  EXPECT_EQ(time_text(360000), "4 d 04 h");
  EXPECT_EQ(time_text(std::nan("")), "?");
  EXPECT_EQ(time_text(-1), "?");
  EXPECT_EQ(time_text(std::numeric_limits<double>::infinity()), "?");
}

TEST(ProgressTexts, of_rates) {
  EXPECT_EQ(rate_text(0), "0.00");
  EXPECT_EQ(rate_text(9.994), "9.99");
  EXPECT_EQ(rate_text(9.996), "10.0");
  EXPECT_EQ(rate_text(99.96), "100");
  EXPECT_EQ(rate_text(999.4), "999");
  EXPECT_EQ(rate_text(999.6), "1.00k");
  EXPECT_EQ(rate_text(12345), "12.3k");
  EXPECT_EQ(rate_text(1.2e6), "1.20M");
  EXPECT_EQ(rate_text(5e15), "5000T");
  EXPECT_EQ(rate_text(std::numeric_limits<double>::infinity()), "?");
  EXPECT_EQ(rate_text(-1), "?");
}

TEST(Progress, prints_a_line_now_and_then_where_there_is_no_terminal) {
  const Progress::Options options{.terminal = false, .columns = [] { return std::size_t{20}; }, .seconds_between = 30};
  EXPECT_EQ(printed(options,
                    [](Progress& progress) {
                      progress.show({.step = 1, .steps = 9}, 1000);
                      progress.show({.step = 2, .steps = 9}, 1029.9);
                      progress.show({.step = 3, .steps = 9}, 1030);
                      progress.print("a checkpoint");
                      progress.show({.step = 4, .steps = 9}, 1059);
                      progress.finish({.step = 9, .steps = 9});
                    }),
            "1/9  loss 0.0000\n3/9  loss 0.0000\na checkpoint\n9/9  loss 0.0000\n");
}

TEST(Progress, is_drawn_in_place_on_a_terminal) {
  const Progress::Options options{.terminal = true, .columns = [] { return std::size_t{20}; }, .seconds_between = 1};
  EXPECT_EQ(printed(options,
                    [](Progress& progress) {
                      progress.show({.step = 1, .steps = 9}, 0);
                      progress.show({.step = 2, .steps = 9}, 0.5);
                      progress.show({.step = 3, .steps = 9}, 1);
                      progress.print("a checkpoint");
                      progress.finish({.step = 9, .steps = 9});
                    }),
            "\r1/9  loss 0.0000\x1b[K\r3/9  loss 0.0000\x1b[K\r\x1b[Ka checkpoint\n3/9  loss 0.0000"
            "\r9/9  loss 0.0000\x1b[K\n");
}

TEST(Progress, ends_its_line_when_it_goes) {
  const Progress::Options options{.terminal = true, .columns = [] { return std::size_t{20}; }, .seconds_between = 1};
  EXPECT_EQ(printed(options, [](Progress& progress) { progress.show({.step = 1, .steps = 9}, 0); }),
            "\r1/9  loss 0.0000\x1b[K\n");
  EXPECT_EQ(printed(options, [](Progress& progress) { progress.print("a"); }), "a\n");
}

TEST(Progress, asks_for_the_width_each_time) {
  auto columns = std::make_shared<std::size_t>(20);
  const Progress::Options options{.terminal = true, .columns = [columns] { return *columns; }, .seconds_between = 1};
  EXPECT_EQ(printed(options,
                    [&](Progress& progress) {
                      progress.show({.step = 1, .steps = 9}, 0);
                      *columns = 3;
                      progress.finish({.step = 2, .steps = 9});
                    }),
            "\r1/9  loss 0.0000\x1b[K\r2/9\x1b[K\n");
}

TEST(Progress, knows_that_a_file_is_no_terminal) {
  std::FILE* const file = std::tmpfile();
  ASSERT_NE(file, nullptr);
  EXPECT_FALSE(Progress::options_for(file).terminal);
  std::fclose(file);
}

}  // namespace
}  // namespace dunnock::train
