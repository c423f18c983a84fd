// DUNNOCK_CHECK stops the process, in every build, with what a reader of the message needs.
#include <gtest/gtest.h>

#include <csignal>
#include <dunnock/base/check.hpp>

namespace {

TEST(Check, does_nothing_when_the_condition_holds) {
  int evaluated = 0;
  DUNNOCK_CHECK(++evaluated == 1, "first");
  EXPECT_EQ(evaluated, 1) << "the condition is evaluated once, in release builds too";
}

TEST(CheckDeathTest, names_the_condition_the_reason_and_the_place) {
  const int lanes = 6;
  EXPECT_DEATH(DUNNOCK_CHECK(lanes <= 5, "a word has five lanes"),
               "check_test.cpp:[0-9]+: check failed: lanes <= 5 \\(a word has five lanes\\)");
}

TEST(CheckDeathTest, aborts_so_that_a_core_is_left) {
  EXPECT_EXIT(DUNNOCK_CHECK(false, "for the test"), testing::KilledBySignal(SIGABRT), "for the test");
}

TEST(Check, is_one_expression_and_needs_no_braces) {
  bool reached = false;
  if (reached)
    DUNNOCK_CHECK(false, "not reached");
  else
    reached = true;
  EXPECT_TRUE(reached);
}

TEST(Check, takes_whatever_converts_to_bool_when_asked) {
  const int number = 1;
  const int* pointer = &number;
  DUNNOCK_CHECK(pointer, "a pointer");
  SUCCEED();
}

}  // namespace
