// PrefixStore in dunnock-crash.
#include "dunnock/index/prefix_points.hpp"
#include "structures.hpp"
#include "structures/prefix_subject.hpp"
#include "structures/recorded.hpp"

namespace dunnock::crash {
namespace {

std::unique_ptr<Subject> subject(SubjectOptions options) {
  // On a file, one thread: its histories are about the disk.
  if (options.recording == Recording::kFile) options.workload.threads = 1;
  return recorded<PrefixSubject>(options);
}

/// It has no durable steps of its own, but checks: its promise (whole prefixes) rests on the steps below it and their
/// order.
std::vector<Mutant> bugs_below() {
  using namespace index_point;
  using log_point::kAppendFence, log_point::kHeader, log_point::kPayload;
  using Kind = Mutation::Kind;
  std::vector<Mutant> all;
  for (const Point point : {kRecordLive, kLane, kEraseRecord, kHeader, kPayload}) {
    all.push_back(bug_at(point, log_point::name(point), Kind::kDropStore));
    all.push_back(bug_at(point, log_point::name(point), Kind::kDropFlush));
  }
  for (const Point point : {kPutFence, kEraseRecord, kAppendFence})
    all.push_back(bug_at(point, log_point::name(point), Kind::kDropFence));
  all.push_back(
      too_late(Kind::kFlushTooLate, kLane, kAppendFence, "a block durable only after the one that follows it"));
  all.push_back(
      too_late(Kind::kFlushTooLate, kEraseRecord, kPutFence, "evicted durably only after something else was put"));
  return all;
}

}  // namespace

Structure prefix_structure() {
  return {.name = "prefix",
          .subject = [](const SubjectOptions& options) { return subject(options); },
          .point_name = prefix_point::name,
          .bugs = {.points = prefix_point::kTable, .by_hand = bugs_below()},
          .kill = kill_prefix,
          .corrupt = corrupt_prefix};
}

}  // namespace dunnock::crash
