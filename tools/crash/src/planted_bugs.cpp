#include "planted_bugs.hpp"

#include <algorithm>
#include <array>
#include <utility>

#include "dunnock/base/check.hpp"

namespace dunnock::crash {
namespace {

using Kind = Mutation::Kind;

/// A bug that can be planted at every point of these kinds.
struct Pattern {
  Kind kind;
  unsigned steps;  ///< All of these PointRow::Kinds.
  std::string_view words;
};
constexpr std::array kPatterns = {
    Pattern{Kind::kDropStore, PointRow::kStore, "no store"},
    Pattern{Kind::kDropFlush, PointRow::kFlush, "no flush"},
    Pattern{Kind::kFlushTooEarly, PointRow::kStore | PointRow::kFlush, "flush before store"},
    Pattern{Kind::kDropFence, PointRow::kFence, "no fence"},
    Pattern{Kind::kSkipCheck, PointRow::kCheck, "no check"},
};

}  // namespace

Mutant bug_at(Point point, std::string_view name, Kind kind) {
  const auto* const pattern =
      std::find_if(kPatterns.begin(), kPatterns.end(), [&](const Pattern& one) { return one.kind == kind; });
  DUNNOCK_CHECK(pattern != kPatterns.end(), "the point has such a bug");
  return {std::string(pattern->words) + " " + std::string(name), {kind, point, {}}};
}

Mutant too_late(Kind kind, Point point, Point until, std::string name) {
  DUNNOCK_CHECK(kind == Kind::kStoreTooLate || kind == Kind::kFlushTooLate, "it can be too late");
  return {std::move(name), {kind, point, until}};
}

std::vector<Mutant> bugs_of(std::span<const PointRow> points) {
  std::vector<Mutant> all;
  for (const Pattern& pattern : kPatterns) {
    for (const PointRow& row : points) {
      if ((row.kinds & pattern.steps) == pattern.steps) all.push_back(bug_at(row.point, row.name, pattern.kind));
    }
  }
  return all;
}

std::vector<Mutant> PlantedBugs::all() const {
  std::vector<Mutant> bugs = bugs_of(points);
  std::erase_if(bugs, [this](const Mutant& one) { return is_excepted(one.mutation); });
  bugs.insert(bugs.end(), by_hand.begin(), by_hand.end());
  return bugs;
}

bool PlantedBugs::is_own(Point point) const noexcept {
  return std::any_of(points.begin(), points.end(), [&](const PointRow& row) { return row.point == point; });
}

bool PlantedBugs::is_excepted(const Mutation& mutation) const noexcept {
  const auto is_it = [&](const auto& one) { return one.kind == mutation.kind && one.point == mutation.point; };
  return std::any_of(elsewhere.begin(), elsewhere.end(), is_it) || std::any_of(no_bugs.begin(), no_bugs.end(), is_it);
}

}  // namespace dunnock::crash
