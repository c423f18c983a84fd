#include "file_bugs.hpp"

#include <initializer_list>

namespace dunnock::crash {

std::vector<FileMutant> file_bugs() {
  using Kind = FileMutation::Kind;
  std::vector<FileMutant> all;
  const auto at = [&all](Kind kind, const char* what, Site site) {
    all.push_back({std::string(what) + " " + std::string(name(site)), {kind, site, {}}});
  };
  const auto sites = {Site::kEarlySync,   Site::kRangeSync,  Site::kAllSync,     Site::kHalfSync,
                      Site::kBeginHead,   Site::kBeginSync,  Site::kNoteWrite,   Site::kNoteSync,
                      Site::kGroup,       Site::kRevokes,    Site::kHandOver,    Site::kCloseSync,
                      Site::kForgetWrite, Site::kForgetSync, Site::kReplayWrite, Site::kReplaySync,
                      Site::kReplayForgetWrite, Site::kReplayForgetSync};
  for (const Site site : sites) {
    at(Kind::kNotDone, "no", site);
    // The sync of the note after the first group is no bug: that group's fence has not returned by then.
    if (site != Site::kNoteSync) at(Kind::kSwapped, "one call too late:", site);
    at(Kind::kFailed, "ignored error:", site);
  }
  at(Kind::kFailed, "ignored error:", Site::kLongWrite);
  for (const Site site : {Site::kGroup, Site::kRevokes, Site::kHandOver})
    at(Kind::kNotDurable, "not durable:", site);
  for (const char* step :
       {"hand-over", "write-back of a half", "older half", "write-back of ranges", "revoke", "write-back of all",
        "revoke of all", "write-back at closing", "error of a half", "error of a sync", "error of the journal",
        "error of the note", "error of a new journal", "error before closing"})
    all.push_back({std::string("left out: ") + step, {Kind::kLeftOut, {}, step}});
  return all;
}

}  // namespace dunnock::crash
