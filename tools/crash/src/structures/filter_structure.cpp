// The cuckoo filter in dunnock-crash.
#include "dunnock/filter/points.hpp"
#include "structures.hpp"
#include "structures/filter_kinds.hpp"
#include "structures/filter_subject.hpp"

namespace dunnock::crash {
namespace {

std::unique_ptr<Subject> subject(const SubjectOptions& options) {
  auto kind = options.fingerprint_bits == 8    ? filter_kind_of<8>(options)
              : options.fingerprint_bits == 16 ? filter_kind_of<16>(options)
                                               : filter_kind_of<12>(options);
  return std::make_unique<FilterSubject>(options.workload, std::move(kind));
}

/// Not among them because it is no bug: the item count stored after the mark that vouches for it. The mark is a
/// checksum of the count, so in between there is no clean shutdown, as before.
std::vector<Mutant> wrong_orders() {
  using namespace filter_point;
  constexpr auto kStore = Mutation::Kind::kStoreTooLate;
  constexpr auto kFlush = Mutation::Kind::kFlushTooLate;
  return {
      too_late(kStore, kSpillMark, kSpill, "spill mark after the spilled copy"),
      too_late(kStore, kOverflowMark, kOverflow, "overflow mark after the overflowed copy"),
      too_late(kFlush, kOverflowMark, kOverflow, "overflow mark durable only with the copy"),
      too_late(kStore, kEraseMarks, kErase, "marks after the erase that needs them"),
      too_late(kStore, kKickCopy, kKickRemove, "kick copies after it has deleted"),
      too_late(kStore, kLogFields, kLogArm, "log armed before it is filled"),
      too_late(kStore, kLogArm, kKickRemove, "log armed after the kick"),
      too_late(kFlush, kLogArm, kKickFence, "log durable only after the kick"),
      too_late(kFlush, kKickCopy, kLogRetire, "log retired before the copy is durable"),
      too_late(kFlush, kKickRemove, kLogRetire, "log retired before the delete is durable"),
      too_late(kStore, kFormatFields, kFormatMagic, "header filled after its magic word"),
      too_late(kFlush, kRecoverCopy, kRecoverRetire, "recovery retires before its copy is durable"),
      too_late(kFlush, kClearWord, kClearEnd, "clear ends before the table is durably empty"),
  };
}

}  // namespace

Structure filter_structure() {
  using namespace filter_point;
  constexpr auto kCheck = Mutation::Kind::kSkipCheck;
  constexpr std::string_view kTest = "SecondLooks.of_the_filter_are_each_missed";
  return {.name = "filter",
          .subject = subject,
          .point_name = filter_point::name,
          .bugs = {.points = kTable,
                   .by_hand = wrong_orders(),
                   .elsewhere = {{kCheck, kLevelAgain, kTest},
                                 {kCheck, kBulkLevelAgain, kTest},
                                 {kCheck, kOwnGroupAgain, kTest}}},
          .kill = kill_filter,
          .corrupt = corrupt_filter};
}

}  // namespace dunnock::crash
