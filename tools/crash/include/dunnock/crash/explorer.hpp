// Explorer: simulates the power failures that a recorded run allows, and recovers and checks after each one.
//
// You bring a Subject: your structure, a workload on a SimMemory, and a checker that knows what was acknowledged. The
// explorer records the workload, walks through the record, and for every moment builds the images that a power failure
// may leave there:
//
//   line 3:  base | s1 | s2 | s3 | s4         stores in the order in which they became visible
//                      ^floor         ^now    flushed and fenced up to s2: the image holds s1 s2, s1 .. s3 or s1 .. s4
//   line 8:  base | s1                        independent of line 3
//
// It checks all combinations if they are few, otherwise a seeded sample that includes the extremes. Images are checked
// after each store (those that hold it) and after each acknowledgement (all, since the checker then expects more); at
// other moments nothing new is possible.
//
// With eADR (caches survive) there is one image per moment: everything visible.
//
// Images that give recovery work to do are also recovered under recording, and failures during that recovery are
// explored in the same way.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "dunnock/pmem/sim_media.hpp"

namespace dunnock::crash {

/// One structure with one workload. Used by one thread.
class Subject {
 public:
  virtual ~Subject() = default;

  /// Bytes of simulated memory that the structure needs: a multiple of a line.
  [[nodiscard]] virtual std::size_t bytes() const = 0;

  /// Number of operations in the workload, for shrinking.
  [[nodiscard]] virtual std::size_t operations() const = 0;

  /// Prepares `memory` (zeroed), calls memory.start(), and runs the operations named in `keep` (indices in ascending
  /// order) deterministically, calling memory.mark() at each acknowledgement. A returned sentence is a violation found
  /// while running.
  virtual std::optional<std::string> record(SimMemory& memory, const std::vector<std::size_t>& keep) = 0;

  /// Recovers from `image` (which it may change) after a crash when `events` events had happened, and checks it
  /// against what was acknowledged by then. `more`: then recover() ran, and there was a second crash when that record
  /// had this many events; 0 if there was none. A returned sentence is a violation.
  virtual std::optional<std::string> check(std::byte* image, std::size_t events, std::size_t more) = 0;

  /// Would recovery of this image store anything that matters? Then it is explored, too.
  [[nodiscard]] virtual bool recovery_has_work(const std::byte* image) const = 0;
  /// Recovers on a recording memory after a crash when `events` events had happened, and continues to work a little
  /// (with mark() at each acknowledgement), so that a recovery that leaves something unfinished is noticed.
  virtual void recover(SimMemory& memory, std::size_t events) = 0;

  /// Does a store of this point go where nothing is read before a later store announces it (a copy that is being made)?
  /// Then a few images after it are enough; those after the later store contain all its variants.
  [[nodiscard]] virtual bool is_unseen(Point) const { return false; }

  /// From now on record() schedules its threads in another way, one for each number; 0 is the first way. False: there
  /// is only one.
  virtual bool reschedule(std::uint64_t schedule) {
    (void)schedule;
    return false;
  }

  /// One operation in words, for the report of a violation.
  [[nodiscard]] virtual std::string describe(std::size_t operation) const = 0;
};

struct ExploreOptions {
  bool eadr = false;
  std::size_t images_per_moment = 64;  ///< If there are more legal images, they are sampled.
  std::size_t recovery_every = 1;      ///< Explores one in this many of the recoveries that have work.
  std::uint64_t seed = 1;              ///< Seed of the samples.
  std::uint64_t schedules = 0;         ///< Other schedules of the threads, which are run without taking images.
  Mutation mutation;
};

struct ExploreResult {
  std::uint64_t images = 0;           ///< Images recovered and checked, including those inside recovery.
  std::uint64_t recovery_images = 0;  ///< Those inside recovery.
  std::uint64_t moments = 0;          ///< Stores and acknowledgements after which images were taken.
  std::uint64_t moments_sampled = 0;  ///< Of these, the ones with too many legal images for all.
  std::uint64_t schedules = 0;        ///< Schedules of the threads that were run, besides the first one.
  std::optional<std::string> violation;
  /// A step that the records contain: a line of the source that stores, flushes or fences, or asks is_taken().
  struct Step {
    Mutation::Kind left_out_by;  ///< The kind of planted bug that leaves it out.
    Point point;
    std::uint32_t line;
    std::string_view file;  ///< Its name, without folders.
  };
  /// All steps, each once, so that a list of planted bugs can be shown to be complete.
  std::vector<Step> steps;
  [[nodiscard]] bool saw(SimMemory::EventKind kind, Point point) const;
};

/// The kind of planted bug that leaves out a step that is recorded as this kind of event; kNone for a mark.
[[nodiscard]] Mutation::Kind left_out_by(SimMemory::EventKind kind) noexcept;

/// Records the subject's workload and explores it, up to the first violation.
[[nodiscard]] ExploreResult explore(Subject& subject, const std::vector<std::size_t>& keep,
                                    const ExploreOptions& options);

/// Removes operations as long as the violation stays. Returns the ones that are needed.
[[nodiscard]] std::vector<std::size_t> shrink(Subject& subject, std::vector<std::size_t> keep,
                                              const ExploreOptions& options);

}  // namespace dunnock::crash
