#include "structures.hpp"

#include "dunnock/filter/points.hpp"
#include "filter_kill.hpp"
#include "filter_subject.hpp"

namespace dunnock::crash {
namespace {

template <class Sim>
std::unique_ptr<Subject> filter_subject_on(const FilterWorkload& workload, unsigned bits) {
  // Every fifth history on groups of half a line.
  const bool small = workload.seed % 5 == 0;
  switch (bits) {
    case 8:
      if (small) return std::make_unique<FilterSubject<8, Sim, 4>>(workload);
      return std::make_unique<FilterSubject<8, Sim>>(workload);
    case 16:
      if (small) return std::make_unique<FilterSubject<16, Sim, 4>>(workload);
      return std::make_unique<FilterSubject<16, Sim>>(workload);
    default:
      if (small) return std::make_unique<FilterSubject<12, Sim, 4>>(workload);
      return std::make_unique<FilterSubject<12, Sim>>(workload);
  }
}

std::unique_ptr<Subject> filter_subject(std::uint64_t seed, unsigned threads, unsigned operations, unsigned bits,
                                        bool eadr) {
  const FilterWorkload workload{seed, threads, operations};
  return eadr ? filter_subject_on<SimEadrMedia>(workload, bits) : filter_subject_on<SimMedia>(workload, bits);
}

/// Every durable step of the filter left out once, every flush done too early once, and the classic wrong orders.
/// Not in the list because it is no bug: the item count stored after the mark that vouches for it. The mark is a
/// checksum of the count, so in between there is no clean shutdown, as before.
std::vector<Mutant> filter_mutants() {
  using namespace filter_point;
  using Kind = Mutation::Kind;
  std::vector<Mutant> all;
  const auto add = [&all](Kind kind, const char* what, std::initializer_list<Point> points) {
    for (const Point point : points)
      all.push_back({std::string(what) + " " + std::string(name(point)), {kind, point, {}}});
  };
  add(Kind::kDropStore, "no store",
      {kHome,         kSpillMark,   kSpill,       kOverflowMark,  kOverflow,      kErase,
       kEraseMarks,   kLogFields,   kLogArm,      kKickCopy,      kKickRemove,    kLogRetire,
       kFormatFields, kFormatMagic, kRecoverCopy, kRecoverRemove, kRecoverRetire, kCloseCount,
       kCloseClean,   kOpenDirty,   kClearBegin,  kClearWord,     kClearEnd});
  const auto flushes = {kHome,        kSpill,       kOverflowMark,  kOverflow,      kErase,
                        kLogArm,      kKickCopy,    kKickRemove,    kLogRetire,     kFormatFields,
                        kFormatMagic, kRecoverCopy, kRecoverRemove, kRecoverRetire, kCloseClean,
                        kOpenDirty,   kClearBegin,  kClearWord,     kClearEnd};
  add(Kind::kDropFlush, "no flush", flushes);
  add(Kind::kDropFlush, "no flush", {kReaderPersist, kSpillMark});
  add(Kind::kFlushTooEarly, "flush before store", flushes);
  add(Kind::kDropFence, "no fence",
      {kHome,         kSpill,        kOverflowMark,  kOverflow,      kErase,         kLogArm,
       kKickFence,    kLogRetire,    kGroupFence,    kReaderPersist, kFormatFields,  kFormatMagic,
       kRecoverFence, kRecoverRetire, kCloseClean,   kOpenDirty,     kClearBegin,    kClearWord,
       kClearEnd,     kBulkMarkFence, kBulkArmFence, kBulkMoveFence, kBulkRetireFence});
  const auto late = [&all](Kind kind, Point point, Point until, const char* what) {
    all.push_back({what, {kind, point, until}});
  };
  late(Kind::kStoreTooLate, kSpillMark, kSpill, "spill mark after the spilled copy");
  late(Kind::kStoreTooLate, kOverflowMark, kOverflow, "overflow mark after the overflowed copy");
  late(Kind::kFlushTooLate, kOverflowMark, kOverflow, "overflow mark durable only with the copy");
  late(Kind::kStoreTooLate, kEraseMarks, kErase, "marks after the erase that needs them");
  late(Kind::kStoreTooLate, kKickCopy, kKickRemove, "kick copies after it has deleted");
  late(Kind::kStoreTooLate, kLogFields, kLogArm, "log armed before it is filled");
  late(Kind::kStoreTooLate, kLogArm, kKickRemove, "log armed after the kick");
  late(Kind::kFlushTooLate, kLogArm, kKickFence, "log durable only after the kick");
  late(Kind::kFlushTooLate, kKickCopy, kLogRetire, "log retired before the copy is durable");
  late(Kind::kFlushTooLate, kKickRemove, kLogRetire, "log retired before the delete is durable");
  late(Kind::kStoreTooLate, kFormatFields, kFormatMagic, "header filled after its magic word");
  late(Kind::kFlushTooLate, kRecoverCopy, kRecoverRetire, "recovery retires before its copy is durable");
  late(Kind::kFlushTooLate, kClearWord, kClearEnd, "clear ends before the table is durably empty");
  return all;
}

}  // namespace

const std::vector<Structure>& structures() {
  static const std::vector<Structure> kAll = {
      {"filter", filter_subject, filter_mutants, filter_point::name, kill_filter, corrupt_filter}};
  return kAll;
}

}  // namespace dunnock::crash
