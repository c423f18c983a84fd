// KvIndex in dunnock-crash.
#include "dunnock/index/index_points.hpp"
#include "structures.hpp"
#include "structures/index_subject.hpp"
#include "structures/recorded.hpp"

namespace dunnock::crash {
namespace {

/// Not among the bugs of the table, because they would be none: the stores that free lanes (EraseLane, ScrubLane,
/// CleanWord) and records of the old segment (CleanRecord) may be lost, since a lane without an entry means nothing,
/// and are not flushed. That they happen is checked where nobody crashes.
std::vector<Mutant> wrong_orders() {
  using namespace index_point;
  constexpr auto kStore = Mutation::Kind::kStoreTooLate;
  constexpr auto kFlush = Mutation::Kind::kFlushTooLate;
  return {
      too_late(kStore, kRecordFields, kRecordLive, "record live before it is filled"),
      too_late(kStore, kUpdateFields, kUpdateLive, "value switched before it is there"),
      too_late(kStore, kGroupMark, kLane, "spill mark after the spilled entry"),
      too_late(kStore, kFarMark, kLane, "overflow mark after the overflowed entry"),
      too_late(kFlush, kFarMark, kPutFence, "overflow mark durable only with the entry"),
      too_late(kStore, kSplitRecord, kSplitCommit, "records copied after the new segment exists"),
      too_late(kStore, kSplitWord, kSplitCommit, "words copied after the new segment exists"),
      too_late(kFlush, kSplitRecord, kSplitCommit, "records durable only after the new segment exists"),
      too_late(kFlush, kSplitWord, kSplitCommit, "words durable only after the new segment exists"),
      too_late(kStore, kDepth, kSplitCommit, "depth after the segment that needs it"),
      too_late(kFlush, kDepth, kSplitCommit, "depth durable only with the segment that needs it"),
      too_late(kStore, kFormatFields, kFormatMagic, "header filled after its magic word"),
  };
}

}  // namespace

Structure index_structure() {
  using namespace index_point;
  constexpr auto kCheck = Mutation::Kind::kSkipCheck;
  constexpr std::string_view kTest = "SecondLooks.of_the_index_are_each_missed";
  return {.name = "index",
          .subject = recorded<IndexSubject>,
          .point_name = index_point::name,
          .bugs = {.points = kTable,
                   .by_hand = wrong_orders(),
                   .elsewhere = {{kCheck, kSplitAgain, kTest},
                                 {kCheck, kSplitAgainMaybe, kTest},
                                 {kCheck, kLaneAgain, "SecondLooks.of_the_index_tell_no_value_of_a_put_under_way"},
                                 {kCheck, kPersistMaybe,
                                  "SecondLooks.of_the_index_tell_nothing_that_a_crash_contradicts"}}},
          .kill = kill_index,
          .corrupt = corrupt_index};
}

}  // namespace dunnock::crash
