#include "file_structures.hpp"

#include "checkpoint_subject.hpp"
#include "filter_subject.hpp"
#include "index_subject.hpp"
#include "log_subject.hpp"
#include "prefix_subject.hpp"

namespace dunnock::crash {

std::unique_ptr<Subject> file_subject(std::string_view structure, std::uint64_t seed, unsigned threads,
                                      unsigned operations, unsigned bits) {
  const FilterWorkload workload{seed, threads, operations};
  const FilterWorkload alone{seed, 1, operations};
  if (structure == "index") return std::make_unique<IndexSubject<SimFileMedia>>(workload);
  if (structure == "log") return std::make_unique<LogSubject<SimFileMedia>>(workload);
  if (structure == "checkpoint") return std::make_unique<CheckpointSubject<SimFileMedia>>(alone);
  if (structure == "prefix") return std::make_unique<PrefixSubject<SimFileMedia>>(alone);
  switch (bits) {
    case 8: return std::make_unique<FilterSubject<8, SimFileMedia>>(workload);
    case 16: return std::make_unique<FilterSubject<16, SimFileMedia>>(workload);
    default: return std::make_unique<FilterSubject<12, SimFileMedia>>(workload);
  }
}

std::vector<FileMutant> file_mutants(std::string_view) {
  using Kind = FileMutation::Kind;
  std::vector<FileMutant> all;
  const auto at = [&all](Kind kind, const char* what, std::initializer_list<Site> sites) {
    for (const Site site : sites) all.push_back({std::string(what) + " " + std::string(name(site)), {kind, site, {}}});
  };
  at(Kind::kNotDone, "no",
     {Site::kEarlySync, Site::kRangeSync, Site::kAllSync, Site::kHalfSync, Site::kBeginHead, Site::kBeginSync,
      Site::kNoteWrite, Site::kNoteSync, Site::kGroup, Site::kRevokes, Site::kHandOver, Site::kCloseSync,
      Site::kForgetWrite, Site::kForgetSync, Site::kReplayWrite, Site::kReplaySync, Site::kReplayForgetWrite,
      Site::kReplayForgetSync});
  at(Kind::kNotDurable, "not durable:", {Site::kGroup, Site::kRevokes, Site::kHandOver});
  at(Kind::kSwapped, "one call too late:",
     {Site::kEarlySync, Site::kRangeSync, Site::kAllSync, Site::kHalfSync, Site::kBeginHead, Site::kBeginSync,
      Site::kNoteWrite, Site::kNoteSync, Site::kGroup, Site::kRevokes, Site::kHandOver, Site::kCloseSync,
      Site::kForgetWrite, Site::kForgetSync, Site::kReplayWrite, Site::kReplaySync, Site::kReplayForgetWrite,
      Site::kReplayForgetSync});
  at(Kind::kFailed, "ignored error:",
     {Site::kEarlySync, Site::kRangeSync, Site::kAllSync, Site::kHalfSync, Site::kBeginHead, Site::kBeginSync,
      Site::kNoteWrite, Site::kNoteSync, Site::kGroup, Site::kRevokes, Site::kHandOver, Site::kCloseSync,
      Site::kForgetWrite, Site::kForgetSync, Site::kReplayWrite, Site::kReplaySync, Site::kReplayForgetWrite,
      Site::kReplayForgetSync, Site::kLongWrite});
  for (const char* step :
       {"hand-over", "write-back of a half", "older half", "write-back of ranges", "revoke", "write-back of all",
        "revoke of all", "write-back at closing", "error of a half", "error of a sync", "error of the journal",
        "error of the note", "error of a new journal", "error before closing"})
    all.push_back({std::string("left out: ") + step, {Kind::kLeftOut, {}, step}});
  return all;
}

}  // namespace dunnock::crash
