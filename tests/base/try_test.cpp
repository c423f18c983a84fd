// DUNNOCK_TRY: an error leaves the function, a value stays.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "dunnock/base/result.hpp"

namespace dunnock {
namespace {

Status status_of(int code) {
  if (code != 0) return make_error(ErrorCode::kIo, "code " + std::to_string(code));
  return {};
}
Result<std::unique_ptr<int>> pointer_to(int value) {
  if (value < 0) return make_error(ErrorCode::kInvalidArgument, "below 0");
  return std::make_unique<int>(value);
}
template <class A, class B>
Result<std::vector<int>> two(A first, B second) {
  return std::vector<int>{first, second};
}

Status all_of(int first, int second, int& reached) {
  DUNNOCK_TRY(status_of(first));
  reached = 1;
  const Status stored = status_of(second);
  DUNNOCK_TRY(stored);
  reached = 2;
  return {};
}

Result<int> sum(int first, int second) {
  DUNNOCK_TRY(const auto one, pointer_to(first));
  DUNNOCK_TRY(auto other, pointer_to(second));
  std::vector<int> values;
  DUNNOCK_TRY(values, two<int, int>(*one, *other));  // Commas are no trouble.
  return values[0] + values[1];
}

TEST(Try, goes_on_where_all_is_well) {
  int reached = 0;
  EXPECT_TRUE(all_of(0, 0, reached));
  EXPECT_EQ(reached, 2);
  EXPECT_EQ(sum(3, 4), 7);
}

TEST(Try, hands_the_first_error_on_as_it_is) {
  int reached = 0;
  EXPECT_EQ(all_of(5, 0, reached).error().message, "code 5");
  EXPECT_EQ(reached, 0);
  EXPECT_EQ(all_of(0, 6, reached).error().code, ErrorCode::kIo);
  EXPECT_EQ(reached, 1);
  EXPECT_EQ(sum(-1, 4).error().message, "below 0");
  EXPECT_EQ(sum(3, -1).error().code, ErrorCode::kInvalidArgument);
}

TEST(Try, is_one_statement_without_a_value) {
  const auto call = [](bool asked) -> Status {
    if (asked)
      DUNNOCK_TRY(status_of(1));
    else
      return make_error(ErrorCode::kNotFound, "not asked");
    return {};
  };
  EXPECT_EQ(call(true).error().code, ErrorCode::kIo);
  EXPECT_EQ(call(false).error().code, ErrorCode::kNotFound);
}

}  // namespace
}  // namespace dunnock
