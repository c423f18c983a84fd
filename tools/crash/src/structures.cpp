#include "structures.hpp"

#include "checkpoint_subject.hpp"
#include "dunnock/filter/points.hpp"
#include "dunnock/index/checkpoint_points.hpp"
#include "dunnock/index/index_points.hpp"
#include "dunnock/index/log_points.hpp"
#include "dunnock/index/prefix_points.hpp"
#include "filter_kill.hpp"
#include "filter_subject.hpp"
#include "index_storms.hpp"
#include "index_subject.hpp"
#include "log_subject.hpp"
#include "prefix_subject.hpp"

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
  for (const Point point : {kBulkLogArm, kBulkLogRetire}) {
    add(Kind::kDropStore, "no store", {point});
    add(Kind::kDropFlush, "no flush", {point});
    add(Kind::kFlushTooEarly, "flush before store", {point});
  }
  add(Kind::kSkipCheck, "no check", {kNearStripe, kFarStripe, kBulkStripe});
  add(Kind::kFlushTooEarly, "flush before store", flushes);
  add(Kind::kDropFence, "no fence",
      {kHome,         kSpill,         kOverflowMark, kOverflow,      kErase,          kLogArm,
       kKickFence,    kLogRetire,     kGroupFence,   kReaderPersist, kFormatFields,   kFormatMagic,
       kRecoverFence, kRecoverRetire, kCloseClean,   kOpenDirty,     kClearBegin,     kClearWord,
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

std::unique_ptr<Subject> index_subject(std::uint64_t seed, unsigned threads, unsigned operations, unsigned, bool eadr) {
  const FilterWorkload workload{seed, threads, operations};
  if (eadr) return std::make_unique<IndexSubject<SimEadrMedia>>(workload);
  return std::make_unique<IndexSubject<SimMedia>>(workload);
}

/// Not in the list because they are no bugs: the stores that free lanes (EraseLane, ScrubLane, CleanWord) and records
/// of the old segment (CleanRecord) may be lost, since a lane without an entry means nothing, and are not flushed.
/// That they happen is checked where nobody crashes.
std::vector<Mutant> index_mutants() {
  using namespace index_point;
  using Kind = Mutation::Kind;
  std::vector<Mutant> all;
  const auto add = [&all](Kind kind, const char* what, std::initializer_list<Point> points) {
    for (const Point point : points)
      all.push_back({std::string(what) + " " + std::string(name(point)), {kind, point, {}}});
  };
  add(Kind::kDropStore, "no store",
      {kResetRecord, kRecordFields, kRecordLive,  kGroupMark,  kFarMark,    kLane,        kUpdateFields, kUpdateLive,
       kEraseRecord, kEraseLane,    kSplitRecord, kSplitWord,  kDepth,      kSplitCommit, kCleanRecord,  kCleanWord,
       kScrubLane,   kFormatFields, kFormatMagic, kCloseCount, kCloseClean, kOpenDirty});
  const auto flushes = {kResetRecord,  kRecordLive,  kFarMark,    kLane,     kUpdateLive,
                        kEraseRecord,  kSplitRecord, kSplitWord,  kDepth,    kSplitCommit,
                        kFormatFields, kFormatMagic, kCloseClean, kOpenDirty};
  add(Kind::kDropFlush, "no flush", flushes);
  add(Kind::kDropFlush, "no flush", {kReadPersist});
  add(Kind::kSkipCheck, "no check",
      {kControlAgain, kSplitAgainLocked, kOwnGroupDirty, kOtherGroupDirty, kPersistOther, kPersistGet});
  add(Kind::kFlushTooEarly, "flush before store", flushes);
  add(Kind::kDropFence, "no fence",
      {kResetRecord, kFarMark, kPutFence, kUpdateLive, kEraseRecord, kBatchFence, kReadPersist, kSplitFence, kDepth,
       kSplitCommit, kFormatFields, kFormatMagic, kCloseClean, kOpenDirty});
  const auto late = [&all](Kind kind, Point point, Point until, const char* what) {
    all.push_back({what, {kind, point, until}});
  };
  late(Kind::kStoreTooLate, kRecordFields, kRecordLive, "record live before it is filled");
  late(Kind::kStoreTooLate, kUpdateFields, kUpdateLive, "value switched before it is there");
  late(Kind::kStoreTooLate, kGroupMark, kLane, "spill mark after the spilled entry");
  late(Kind::kStoreTooLate, kFarMark, kLane, "overflow mark after the overflowed entry");
  late(Kind::kFlushTooLate, kFarMark, kPutFence, "overflow mark durable only with the entry");
  late(Kind::kStoreTooLate, kSplitRecord, kSplitCommit, "records copied after the new segment exists");
  late(Kind::kStoreTooLate, kSplitWord, kSplitCommit, "words copied after the new segment exists");
  late(Kind::kFlushTooLate, kSplitRecord, kSplitCommit, "records durable only after the new segment exists");
  late(Kind::kFlushTooLate, kSplitWord, kSplitCommit, "words durable only after the new segment exists");
  late(Kind::kStoreTooLate, kDepth, kSplitCommit, "depth after the segment that needs it");
  late(Kind::kFlushTooLate, kDepth, kSplitCommit, "depth durable only with the segment that needs it");
  late(Kind::kStoreTooLate, kFormatFields, kFormatMagic, "header filled after its magic word");
  return all;
}

std::unique_ptr<Subject> log_subject(std::uint64_t seed, unsigned threads, unsigned operations, unsigned, bool eadr) {
  const FilterWorkload workload{seed, threads, operations};
  if (eadr) return std::make_unique<LogSubject<SimEadrMedia>>(workload);
  return std::make_unique<LogSubject<SimMedia>>(workload);
}

/// The log's own steps; those of the index in front of it are in its list.
std::vector<Mutant> log_mutants() {
  using namespace log_point;
  using Kind = Mutation::Kind;
  std::vector<Mutant> all;
  const auto add = [&all](Kind kind, const char* what, std::initializer_list<Point> points) {
    for (const Point point : points)
      all.push_back({std::string(what) + " " + std::string(name(point)), {kind, point, {}}});
  };
  add(Kind::kDropStore, "no store", {kHeader, kPayload, kPayloadEnd, kTake, kFree, kFormatFields, kFormatMagic});
  add(Kind::kDropFlush, "no flush", {kHeader, kPayload, kPayloadEnd, kTake, kFormatFields, kFormatMagic});
  add(Kind::kFlushTooEarly, "flush before store", {kHeader, kPayload, kPayloadEnd, kTake, kFormatFields, kFormatMagic});
  add(Kind::kDropFence, "no fence", {kAppendFence, kMovedFence, kTake, kFormatFields, kFormatMagic});
  add(Kind::kSkipCheck, "no check", {kPin, kVictimUnpinned, kFreedUnpinned, kStillPinned});
  const auto late = [&all](Kind kind, Point point, Point until, const char* what) {
    all.push_back({what, {kind, point, until}});
  };
  late(Kind::kStoreTooLate, kPayload, index_point::kLane, "value written after its entry");
  late(Kind::kStoreTooLate, kHeader, index_point::kLane, "record header written after the entry");
  late(Kind::kFlushTooLate, kPayload, index_point::kPutFence, "value durable only with its entry");
  late(Kind::kFlushTooLate, kPayload, index_point::kUpdateLive, "value durable only with its replaced entry");
  late(Kind::kStoreTooLate, kTake, kAppendFence, "segment in use after the record in it");
  late(Kind::kFlushTooLate, kTake, index_point::kPutFence, "segment durably in use only with the entry");
  late(Kind::kStoreTooLate, kFormatFields, kFormatMagic, "log header filled after its magic word");
  return all;
}

std::unique_ptr<Subject> checkpoint_subject(std::uint64_t seed, unsigned, unsigned operations, unsigned, bool eadr) {
  const FilterWorkload workload{seed, 1, operations};
  if (eadr) return std::make_unique<CheckpointSubject<SimEadrMedia>>(workload);
  return std::make_unique<CheckpointSubject<SimMedia>>(workload);
}

/// The catalog's own steps, and the orders between it and what it names.
std::vector<Mutant> checkpoint_mutants() {
  using namespace checkpoint_point;
  using Kind = Mutation::Kind;
  std::vector<Mutant> all;
  const auto add = [&all](Kind kind, const char* what, std::initializer_list<Point> points) {
    for (const Point point : points)
      all.push_back({std::string(what) + " " + std::string(name(point)), {kind, point, {}}});
  };
  add(Kind::kDropStore, "no store", {kFields, kPublish, kRemove, kFormatLines, kFormatFields, kFormatMagic});
  add(Kind::kDropFlush, "no flush", {kPublish, kRemove, kFormatLines, kFormatFields, kFormatMagic});
  add(Kind::kFlushTooEarly, "flush before store", {kPublish, kRemove, kFormatLines, kFormatFields, kFormatMagic});
  add(Kind::kDropFence, "no fence", {kPublish, kRemove, kFormatFields, kFormatMagic});
  const auto late = [&all](Kind kind, Point point, Point until, const char* what) {
    all.push_back({what, {kind, point, until}});
  };
  late(Kind::kStoreTooLate, kFields, kPublish, "catalog line live before it is filled");
  late(Kind::kFlushTooLate, index_point::kLane, kPublish, "chunks durable only with the checkpoint");
  late(Kind::kFlushTooLate, index_point::kRecordLive, kPublish, "entries durable only with the checkpoint");
  late(Kind::kFlushTooLate, log_point::kPayload, kPublish, "bytes durable only with the checkpoint");
  late(Kind::kStoreTooLate, kRemove, index_point::kEraseRecord, "chunks erased before their checkpoint is removed");
  late(Kind::kFlushTooLate, kRemove, index_point::kEraseRecord, "checkpoint durably removed after its chunks");
  late(Kind::kStoreTooLate, kFormatFields, kFormatMagic, "catalog header filled after its magic word");
  late(Kind::kStoreTooLate, kFormatLines, kFormatMagic, "catalog lines free after the header's magic word");
  return all;
}

std::unique_ptr<Subject> prefix_subject(std::uint64_t seed, unsigned threads, unsigned operations, unsigned,
                                        bool eadr) {
  const FilterWorkload workload{seed, threads, operations};
  if (eadr) return std::make_unique<PrefixSubject<SimEadrMedia>>(workload);
  return std::make_unique<PrefixSubject<SimMedia>>(workload);
}

/// It has no durable steps of its own, but checks: its promise (whole prefixes) rests on the order of those below.
std::vector<Mutant> prefix_mutants() {
  using Kind = Mutation::Kind;
  std::vector<Mutant> all;
  const auto add = [&all](Kind kind, const char* what, std::initializer_list<Point> points) {
    for (const Point point : points)
      all.push_back({std::string(what) + " " + std::string(prefix_point::name(point)), {kind, point, {}}});
  };
  {
    using namespace prefix_point;
    add(Kind::kSkipCheck, "no check", {kLeafFirst, kEvictUnpinned, kStillThere, kParentStays});
  }
  using namespace index_point;
  add(Kind::kDropStore, "no store", {kRecordLive, kLane, kEraseRecord, log_point::kHeader, log_point::kPayload});
  add(Kind::kDropFlush, "no flush", {kRecordLive, kLane, kEraseRecord, log_point::kHeader, log_point::kPayload});
  add(Kind::kDropFence, "no fence", {kPutFence, kEraseRecord, log_point::kAppendFence});
  const auto late = [&all](Kind kind, Point point, Point until, const char* what) {
    all.push_back({what, {kind, point, until}});
  };
  late(Kind::kFlushTooLate, kLane, log_point::kAppendFence, "a block durable only after the one that follows it");
  late(Kind::kFlushTooLate, kEraseRecord, kPutFence, "evicted durably only after something else was put");
  return all;
}

}  // namespace

const std::vector<Structure>& structures() {
  // Tests of readers that are stopped before each of their loads, in tests/index/second_looks_test.cpp.
  constexpr auto kCheck = Mutation::Kind::kSkipCheck;
  constexpr std::string_view kOfFilter = "SecondLooks.of_the_filter_are_each_missed";
  constexpr std::string_view kOfIndex = "SecondLooks.of_the_index_are_each_missed";
  constexpr std::string_view kOfLog = "SecondLooks.of_the_log_are_each_missed";
  static const std::vector<Structure> kAll = {
      {"filter",
       filter_subject,
       filter_mutants,
       filter_point::name,
       kill_filter,
       corrupt_filter,
       1,
       {{kCheck, filter_point::kLevelAgain, kOfFilter},
        {kCheck, filter_point::kBulkLevelAgain, kOfFilter},
        {kCheck, filter_point::kOwnGroupAgain, kOfFilter}}},
      {"index",
       index_subject,
       index_mutants,
       index_point::name,
       kill_index,
       corrupt_index,
       1,
       {{kCheck, index_point::kSplitAgain, kOfIndex},
        {kCheck, index_point::kSplitAgainMaybe, kOfIndex},
        {kCheck, index_point::kLaneAgain, "SecondLooks.of_the_index_tell_no_value_of_a_put_under_way"},
        {kCheck, index_point::kPersistMaybe, "SecondLooks.of_the_index_tell_nothing_that_a_crash_contradicts"}}},
      {"log",
       log_subject,
       log_mutants,
       log_point::name,
       kill_log,
       corrupt_log,
       log_point::kFirst,
       {{kCheck, log_point::kStillInUse, kOfLog},
        {kCheck, log_point::kSameEpoch, kOfLog},
        {kCheck, log_point::kLookAgain, kOfLog}}},
      {"checkpoint", checkpoint_subject, checkpoint_mutants, checkpoint_point::name, kill_checkpoint,
       corrupt_checkpoint, checkpoint_point::kFirst},
      {"prefix", prefix_subject, prefix_mutants, prefix_point::name, kill_prefix, corrupt_prefix,
       prefix_point::kFirst}};
  return kAll;
}

const Structure* find_structure(std::string_view name) {
  for (const Structure& one : structures()) {
    if (one.name == name) return &one;
  }
  return nullptr;
}

}  // namespace dunnock::crash
