// The bugs that are planted in a structure, one at a time. Those that leave a step out follow from its table of points;
// by hand come the classic wrong orders, and the reasons why one of the table is no bug or is caught elsewhere.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dunnock/pmem/point_table.hpp"
#include "dunnock/pmem/sim_media.hpp"

namespace dunnock::crash {

/// A planted bug with a name for people.
struct Mutant {
  std::string name;
  Mutation mutation;
};

/// A step whose planted bug a test of its own catches: the explorer's histories would need more images than it has time
/// for to come across what shows it.
struct CaughtElsewhere {
  Mutation::Kind kind;
  Point point;
  std::string_view test;
};

/// A step that the structure can do without.
struct NoBug {
  Mutation::Kind kind;
  Point point;
  std::string_view reason;
};

struct PlantedBugs {
  std::span<const PointRow> points;  ///< Those of the structure itself, and not of another one that it uses.
  std::vector<Mutant> by_hand{};
  std::vector<CaughtElsewhere> elsewhere{};
  std::vector<NoBug> no_bugs{};

  /// Those of the table without the exceptions, then those by hand.
  [[nodiscard]] std::vector<Mutant> all() const;
  [[nodiscard]] bool is_own(Point point) const noexcept;
  /// Do the exceptions name it?
  [[nodiscard]] bool is_excepted(const Mutation& mutation) const noexcept;
};

/// Every store, flush, fence and check of the table left out once, and every flush of a store done before it.
[[nodiscard]] std::vector<Mutant> bugs_of(std::span<const PointRow> points);

/// Such as "no store Home".
[[nodiscard]] Mutant bug_at(Point point, std::string_view name, Mutation::Kind kind);

/// The stores (kStoreTooLate) or flushes (kFlushTooLate) of `point` happen only at `until`.
[[nodiscard]] Mutant too_late(Mutation::Kind kind, Point point, Point until, std::string name);

}  // namespace dunnock::crash
