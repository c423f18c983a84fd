// The bugs that dunnock-crash plants: a point in a table gets its own without more, and no structure leaves one out
// without a reason.
#include "planted_bugs.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "dunnock/pmem/point_table.hpp"
#include "structures.hpp"

namespace dunnock {

namespace below_point {
#define DUNNOCK_BELOW_POINTS(POINT)                             \
  POINT(kOne, "BelowOne", kStore, "one")                        \
  POINT(kTwo, "BelowTwo", kFlush | kFence, "two")
DUNNOCK_POINT_TABLE(DUNNOCK_BELOW_POINTS, no_point)
#undef DUNNOCK_BELOW_POINTS
}  // namespace below_point

namespace counter_point {
#define DUNNOCK_COUNTER_POINTS(POINT)                                                  \
  POINT(kValue, "CounterValue", kStore | kFlush | kFence, "the value is durable")      \
  POINT(kMark, "CounterMark", kStore, "it is marked (same line as kValue)")            \
  POINT(kRead, "CounterRead", kFlush, "what was read is flushed")                      \
  POINT(kAgain, "CounterAgain", kCheck, "is the value still the same?")
DUNNOCK_POINT_TABLE(DUNNOCK_COUNTER_POINTS, below_point)
#undef DUNNOCK_COUNTER_POINTS
}  // namespace counter_point

namespace crash {
namespace {

using Kind = Mutation::Kind;

std::vector<std::string> names_of(const std::vector<Mutant>& bugs) {
  std::vector<std::string> names;
  for (const Mutant& one : bugs) names.push_back(one.name);
  std::sort(names.begin(), names.end());
  return names;
}

TEST(PointTable, numbers_and_names_its_points_after_those_before) {
  static_assert(below_point::kFirst == 1 && below_point::kOne == Point{1} && below_point::kTwo == Point{2});
  static_assert(counter_point::kFirst == 3 && counter_point::kValue == Point{3} && counter_point::kLast == 6);
  EXPECT_EQ(counter_point::name(counter_point::kAgain), "CounterAgain");
  EXPECT_EQ(counter_point::name(below_point::kTwo), "BelowTwo");
  EXPECT_EQ(counter_point::name(Point{}), "?");
  EXPECT_EQ(counter_point::name(Point{7}), "?");
  EXPECT_EQ(below_point::name(counter_point::kValue), "?");
}

TEST(PlantedBugs, follow_from_a_table_of_points) {
  EXPECT_EQ(names_of(bugs_of(counter_point::kTable)),
            (std::vector<std::string>{"flush before store CounterValue", "no check CounterAgain",
                                      "no fence CounterValue", "no flush CounterRead", "no flush CounterValue",
                                      "no store CounterMark", "no store CounterValue"}));
  for (const Mutant& one : bugs_of(counter_point::kTable)) {
    EXPECT_NE(one.mutation.kind, Kind::kNone) << one.name;
    EXPECT_TRUE(one.name.ends_with(counter_point::name(one.mutation.point))) << one.name;
    EXPECT_EQ(one.mutation.line, 0U);
  }
}

TEST(PlantedBugs, are_those_of_the_table_without_the_exceptions_and_those_by_hand) {
  const PlantedBugs bugs{
      .points = counter_point::kTable,
      .by_hand = {too_late(Kind::kStoreTooLate, counter_point::kMark, counter_point::kValue, "marked too late")},
      .elsewhere = {{Kind::kSkipCheck, counter_point::kAgain, "Some.test"}},
      .no_bugs = {{Kind::kFlushTooEarly, counter_point::kValue, "a reason"}}};
  EXPECT_EQ(names_of(bugs.all()),
            (std::vector<std::string>{"marked too late", "no fence CounterValue", "no flush CounterRead",
                                      "no flush CounterValue", "no store CounterMark", "no store CounterValue"}));
  EXPECT_TRUE(bugs.is_own(counter_point::kMark));
  EXPECT_FALSE(bugs.is_own(below_point::kTwo));
  EXPECT_TRUE(bugs.is_excepted({Kind::kSkipCheck, counter_point::kAgain, {}}));
  EXPECT_FALSE(bugs.is_excepted({Kind::kSkipCheck, counter_point::kValue, {}}));
}

TEST(PlantedBugs, of_each_structure_leave_out_every_step_of_its_table) {
  for (const Structure& structure : structures()) {
    const std::vector<Mutant> all = structure.bugs.all();
    for (const Mutant& expected : bugs_of(structure.bugs.points)) {
      const bool planted = std::any_of(all.begin(), all.end(), [&](const Mutant& one) {
        return one.name == expected.name && one.mutation.kind == expected.mutation.kind &&
               one.mutation.point == expected.mutation.point;
      });
      EXPECT_NE(planted, structure.bugs.is_excepted(expected.mutation)) << structure.name << ": " << expected.name;
    }
    const std::vector<std::string> names = names_of(all);
    EXPECT_EQ(std::set<std::string>(names.begin(), names.end()).size(), names.size()) << structure.name;
  }
}

/// An exception that excepts nothing would hide a step that a later table has.
TEST(PlantedBugs, have_no_exception_without_a_step_and_none_without_a_reason) {
  for (const Structure& structure : structures()) {
    const std::vector<Mutant> table = bugs_of(structure.bugs.points);
    const auto is_in_table = [&](Kind kind, Point point) {
      return std::any_of(table.begin(), table.end(),
                         [&](const Mutant& one) { return one.mutation.kind == kind && one.mutation.point == point; });
    };
    for (const CaughtElsewhere& one : structure.bugs.elsewhere) {
      EXPECT_TRUE(is_in_table(one.kind, one.point)) << structure.name << ": " << one.test;
      EXPECT_FALSE(one.test.empty());
    }
    for (const NoBug& one : structure.bugs.no_bugs) {
      EXPECT_TRUE(is_in_table(one.kind, one.point)) << structure.name << ": " << one.reason;
      EXPECT_FALSE(one.reason.empty());
    }
  }
}

}  // namespace
}  // namespace crash
}  // namespace dunnock
