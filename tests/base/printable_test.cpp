// Text of others reaches a terminal without anything that acts on it.
#include "dunnock/base/printable.hpp"

#include <gtest/gtest.h>

#include <random>

#include "support/seed.hpp"

namespace dunnock {
namespace {

TEST(Printable, leaves_ordinary_text_of_any_language_as_it_is) {
  for (const char* text :
       {"", "model.layers.0.weight", "a b", "naïve", "日本語", "🦆", "C:\\x41\\n", "~!@#$%^&*()_+\"'`"})
    EXPECT_EQ(printable(text), text);
}

TEST(Printable, escapes_what_acts_on_a_terminal) {
  EXPECT_EQ(printable("\x1b[31mred\x1b[0m"), "\\x1b[31mred\\x1b[0m");
  EXPECT_EQ(printable("a\nb\rc\td"), "a\\nb\\rc\\td");
  EXPECT_EQ(printable(std::string_view("\0\a\b\x7f", 4)), "\\x00\\x07\\x08\\x7f");
  EXPECT_EQ(printable("\xc2\x9b[31m"), "\\u009b[31m") << "a control of Latin-1 begins a sequence, too";
  EXPECT_EQ(printable("\xe2\x80\xae"
                      "fdp.exe"),
            "\\u202efdp.exe");
  EXPECT_EQ(printable("\xe2\x81\xa6\xe2\x81\xa9\xe2\x80\x8e\xd8\x9c"), "\\u2066\\u2069\\u200e\\u061c");
  EXPECT_EQ(printable("\xe2\x80\xa8\xe2\x80\xa9"), "\\u2028\\u2029");
}

TEST(Printable, escapes_bytes_that_are_no_utf8) {
  EXPECT_EQ(printable("\xff"), "\\xff");
  EXPECT_EQ(printable("\x9b[31m"), "\\x9b[31m");
  EXPECT_EQ(printable("a\xc3"), "a\\xc3") << "cut off";
  EXPECT_EQ(printable("\xc0\x8a"), "\\xc0\\x8a") << "a newline in a longer form";
  EXPECT_EQ(printable("\xed\xa0\x80"), "\\xed\\xa0\\x80") << "half of a pair";
  EXPECT_EQ(printable("\xf4\x90\x80\x80"), "\\xf4\\x90\\x80\\x80") << "beyond Unicode";
}

TEST(Printable, gives_one_line_of_utf8_for_any_bytes_and_the_same_the_second_time) {
  auto random = test::generator(1);
  for (int round = 0; round < 20000; ++round) {
    std::string text(random() % 12, '\0');
    for (char& one : text) one = static_cast<char>(random() % 3 == 0 ? 0xe2 - random() % 3 : random());
    const std::string once = printable(text);
    for (const char one : once) {
      ASSERT_GE(static_cast<unsigned char>(one), 0x20U);
      ASSERT_NE(one, '\x7f');
    }
    ASSERT_EQ(printable(once), once);
  }
}

}  // namespace
}  // namespace dunnock
