// The explorer for structures in ordinary files: what a disk may hold after a power failure, recovered and checked.
//
// The record is that of a SimFile: stores to the mapping, and the calls that write and sync, each with its beginning
// and its end. The model (docs/crash_consistency.md says it in words):
//
//   * the file is made of units: lines of 64 bytes, sectors of 512 or pages of 4096, another size in each history (the
//     journal and the root always in sectors). After a power failure a unit holds what the last sync made durable, or
//     that with any number of the later stores and writes to it, in their order; units are independent;
//   * a sync that returns makes durable what was stored and written before it began. A durable write that returns is
//     durable; before that, any of its sectors is there or not;
//   * a call that fails may have done any part of its work, and the pages of a sync that fails count as clean: a later
//     sync makes only those of them durable that were changed since;
//   * after FileSync has frozen the mapping, stores do not reach the file.
//
// Of each image the journal that its root asks for is replayed, by the production code. Then every line must be as
// media.hpp promises: with all stores that a fence has made durable, and with a prefix of the others. And then the
// structure is opened and checked as by the explorer of memory. Images also are recovered under recording, replay
// included, and the failures in the middle of that are explored.
#pragma once

#include <bitset>

#include "dunnock/crash/explorer.hpp"
#include "sim_file.hpp"

namespace dunnock::crash {

struct FileExploreOptions {
  std::size_t images_per_moment = 8;
  std::size_t recovery_every = 16;
  std::uint64_t seed = 1;
  bool errors = true;  ///< Let a call fail in three of four histories.
  FileMutation mutation;
};

struct FileExploreResult : ExploreResult {
  std::uint64_t replayed = 0;  ///< Images whose journal was needed.
  std::uint64_t refused = 0;   ///< Histories in which a call failed.
  std::bitset<kSites> sites;   ///< What the calls of the records were for.
};

[[nodiscard]] FileExploreResult explore_file(Subject& subject, const std::vector<std::size_t>& keep,
                                             const FileExploreOptions& options);

}  // namespace dunnock::crash
