// Results carry a value or an error; every code has a name of its own.
#include <gtest/gtest.h>

#include <dunnock/base/result.hpp>
#include <memory>
#include <set>
#include <string>

namespace {

using namespace dunnock;

Result<int> half(int number) {
  if (number % 2 != 0) return make_error(ErrorCode::kInvalidArgument, std::to_string(number) + " is odd");
  return number / 2;
}

Status only_even(int number) {
  const auto result = half(number);
  if (!result) return tl::unexpected(result.error());
  return {};
}

TEST(Result, holds_the_value_when_all_is_well) {
  const auto result = half(8);
  ASSERT_TRUE(result.has_value());
  EXPECT_EQ(*result, 4);
}

TEST(Result, holds_the_code_and_the_sentence_when_not) {
  const auto result = half(7);
  ASSERT_FALSE(result.has_value());
  EXPECT_EQ(result.error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(result.error().message, "7 is odd");
}

TEST(Result, hands_its_error_on_to_another_type) {
  EXPECT_TRUE(only_even(2).has_value());
  const Status status = only_even(3);
  ASSERT_FALSE(status.has_value());
  EXPECT_EQ(status.error().message, "3 is odd");
}

TEST(Result, moves_values_that_can_not_be_copied) {
  Result<std::unique_ptr<int>> result = std::make_unique<int>(5);
  const std::unique_ptr<int> taken = std::move(*result);
  EXPECT_EQ(*taken, 5);
}

TEST(ErrorCode, has_a_name_that_no_other_has) {
  constexpr unsigned kCodes = static_cast<unsigned>(ErrorCode::kIo) + 1;  // kIo is the last.
  std::set<std::string_view> names;
  for (unsigned code = 0; code < kCodes; ++code) names.insert(to_string(static_cast<ErrorCode>(code)));
  EXPECT_EQ(names.size(), kCodes);
  EXPECT_FALSE(names.contains("Unknown"));
  EXPECT_FALSE(names.contains(""));
}

TEST(ErrorCode, is_named_as_in_the_source_without_its_k) {
  EXPECT_EQ(to_string(ErrorCode::kNotADunnockPool), "NotADunnockPool");
  EXPECT_EQ(to_string(ErrorCode::kIo), "Io");
}

TEST(ErrorCode, that_does_not_exist_is_called_unknown) {
  EXPECT_EQ(to_string(static_cast<ErrorCode>(static_cast<unsigned>(ErrorCode::kIo) + 1)), "Unknown");
}

}  // namespace
