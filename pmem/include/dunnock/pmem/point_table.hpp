// Tables of durable points: one row per point of a structure, with its name, what happens there, and what is true then.
// The constants, their numbers and their names follow from the table, and so do the bugs that dunnock-crash plants.
//
// A structure writes its table as a macro, in a namespace of its own, one row per line:
//
//   namespace dunnock::counter_point {
//   #define DUNNOCK_COUNTER_POINTS(POINT)
//     POINT(kValue, "CounterValue", kStore | kFlush | kFence, "the value is durable")
//     POINT(kValueAgain, "CounterValueAgain", kCheck, "is the value still the same?")
//   DUNNOCK_POINT_TABLE(DUNNOCK_COUNTER_POINTS, no_point)
//   #undef DUNNOCK_COUNTER_POINTS
//   }
//
// That declares in the namespace: the constants kValue and kValueAgain; kFirst and kLast, their lowest and highest
// number; kTable, the rows; and name(point). The second argument is the namespace of a structure that works with this
// one on the same media, and whose numbers these continue: log_point continues index_point. For none it is no_point.
#pragma once

#include <array>
#include <string_view>

#include "dunnock/pmem/media.hpp"

namespace dunnock {

/// One durable point of a structure.
struct PointRow {
  enum Kinds : unsigned {
    kStore = 1,
    kFlush = 2,
    kFence = 4,
    kCheck = 8,  ///< is_taken(media, point)
  };
  Point point;
  std::string_view name;  ///< That of the constant without the k, with a prefix where structures work together.
  unsigned kinds;         ///< All Kinds of steps at this point.
  std::string_view then;  ///< What is true after them; of a check, its question.
  [[nodiscard]] constexpr bool has(Kinds kind) const noexcept { return (kinds & kind) != 0; }
};

namespace no_point {

inline constexpr unsigned kLast = 0;
[[nodiscard]] constexpr std::string_view name(Point) noexcept { return "?"; }

}  // namespace no_point

}  // namespace dunnock

#define DUNNOCK_POINT_NUMBER(constant, ...) constant,
#define DUNNOCK_POINT_CONSTANT(constant, ...) inline constexpr Point constant{kFirst + unsigned(Order::constant)};
#define DUNNOCK_POINT_ROW(constant, ...) PointRow{constant, __VA_ARGS__},

#define DUNNOCK_POINT_TABLE(TABLE, before)                                                    \
  inline constexpr unsigned kFirst = before::kLast + 1;                                       \
  enum class Order : unsigned { TABLE(DUNNOCK_POINT_NUMBER) };                                \
  TABLE(DUNNOCK_POINT_CONSTANT)                                                               \
  inline constexpr auto kTable = [] {                                                         \
    using enum PointRow::Kinds;                                                               \
    return std::to_array<PointRow>({TABLE(DUNNOCK_POINT_ROW)});                               \
  }();                                                                                        \
  inline constexpr unsigned kLast = kFirst + unsigned(kTable.size()) - 1;                     \
  /* The name of a point in this table or one before it. "?" for an unknown point. */         \
  [[nodiscard]] constexpr std::string_view name(Point point) noexcept {                       \
    const auto number = static_cast<unsigned>(point);                                         \
    if (number < kFirst) return before::name(point);                                          \
    return number <= kLast ? kTable[number - kFirst].name : std::string_view("?");            \
  }
