// KvStore, and so ValueLog, in dunnock-crash.
#include "dunnock/index/log_points.hpp"
#include "structures.hpp"
#include "structures/log_subject.hpp"
#include "structures/recorded.hpp"

namespace dunnock::crash {
namespace {

/// Between the log's own steps and those of the index in front of it, which is a structure of its own.
std::vector<Mutant> wrong_orders() {
  using namespace log_point;
  constexpr auto kStore = Mutation::Kind::kStoreTooLate;
  constexpr auto kFlush = Mutation::Kind::kFlushTooLate;
  return {
      too_late(kStore, kPayload, index_point::kLane, "value written after its entry"),
      too_late(kStore, kHeader, index_point::kLane, "record header written after the entry"),
      too_late(kFlush, kPayload, index_point::kPutFence, "value durable only with its entry"),
      too_late(kFlush, kPayload, index_point::kUpdateLive, "value durable only with its replaced entry"),
      too_late(kStore, kTake, kAppendFence, "segment in use after the record in it"),
      too_late(kFlush, kTake, index_point::kPutFence, "segment durably in use only with the entry"),
      too_late(kStore, kFormatFields, kFormatMagic, "log header filled after its magic word"),
  };
}

}  // namespace

Structure log_structure() {
  using namespace log_point;
  constexpr auto kCheck = Mutation::Kind::kSkipCheck;
  constexpr std::string_view kTest = "SecondLooks.of_the_log_are_each_missed";
  return {.name = "log",
          .subject = recorded<LogSubject>,
          .point_name = log_point::name,
          .bugs = {.points = kTable,
                   .by_hand = wrong_orders(),
                   .elsewhere = {{kCheck, kStillInUse, kTest},
                                 {kCheck, kSameEpoch, kTest},
                                 {kCheck, kLookAgain, kTest}}},
          .kill = kill_log,
          .corrupt = corrupt_log};
}

}  // namespace dunnock::crash
