// Explorer: plays the power failures that a recorded run allows, and has each one recovered and checked.
//
// You bring a Subject: your structure, a workload on a SimMemory, and a checker that knows what was acknowledged. The
// explorer records the workload, walks through the record, and for every moment builds the images that a power failure
// may leave there:
//
//   line 3:  base | s1 | s2 | s3 | s4         stores in the order in which they became visible
//                      ^floor         ^now    flushed and fenced up to s2: the image holds s1 s2, s1 .. s3 or s1 .. s4
//   line 8:  base | s1                        independent of line 3
//
// All combinations when they are few, a seeded sample with the extremes in it when they are many. An image is checked
// after each store (those that hold it) and after each acknowledgement (all, for the checker expects more then); at
// other moments nothing new is possible.
//
// With eADR (caches survive) there is one image at a moment: everything visible.
//
// Images that recovery itself has work on are recovered under recording too, and the failures in the middle of that
// are explored likewise.
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
  /// Recovers on a recording memory after a crash when `events` events had happened, and goes on working a little (with
  /// mark() at each acknowledgement), so that a recovery that leaves something behind is found out.
  virtual void recover(SimMemory& memory, std::size_t events) = 0;

  /// Does a store of this point go where nobody looks before a later store says so (a copy that is being made)? Then
  /// a few images after it are enough; those after the later store hold it in all its forms.
  [[nodiscard]] virtual bool is_unseen(Point) const { return false; }

  /// From now on record() lets its threads take turns in another way, one for each number; 0 is the first way. False:
  /// there is only one.
  virtual bool reschedule(std::uint64_t schedule) {
    (void)schedule;
    return false;
  }

  /// One operation in words, for the report of a violation.
  [[nodiscard]] virtual std::string describe(std::size_t operation) const = 0;
};

struct ExploreOptions {
  bool eadr = false;
  std::size_t images_per_moment = 64;  ///< More legal images than that are sampled.
  std::size_t recovery_every = 1;      ///< Explores one in this many of the recoveries that have work.
  std::uint64_t seed = 1;              ///< Of the samples.
  std::uint64_t schedules = 0;         ///< Other ways for the threads to take turns, of which no images are taken.
  Mutation mutation;
};

struct ExploreResult {
  std::uint64_t images = 0;           ///< Images recovered and checked, those inside recovery included.
  std::uint64_t recovery_images = 0;  ///< Those inside recovery.
  std::uint64_t moments = 0;          ///< Stores and acknowledgements after which images were taken.
  std::uint64_t moments_sampled = 0;  ///< Of these, the ones with too many legal images for all.
  std::uint64_t schedules = 0;        ///< Ways in which the threads have taken turns, besides the first one.
  std::optional<std::string> violation;
  /// A step that the records contain: a line of the source that stores, flushes or fences, or asks is_taken().
  struct Step {
    Mutation::Kind left_out_by;  ///< The kind of planted bug that leaves it out.
    Point point;
    std::uint32_t line;
    std::string_view file;  ///< Its name, without folders.
  };
  /// All of them, each once, so that a list of planted bugs can be shown to leave none out.
  std::vector<Step> steps;
  [[nodiscard]] bool saw(SimMemory::EventKind kind, Point point) const;
};

/// The kind of planted bug that leaves out a step which is recorded so; kNone for a mark.
[[nodiscard]] Mutation::Kind left_out_by(SimMemory::EventKind kind) noexcept;

/// Records the subject's workload and explores it, up to the first violation.
[[nodiscard]] ExploreResult explore(Subject& subject, const std::vector<std::size_t>& keep,
                                    const ExploreOptions& options);

/// Takes operations away while the violation stays. Returns the ones that are needed.
[[nodiscard]] std::vector<std::size_t> shrink(Subject& subject, std::vector<std::size_t> keep,
                                              const ExploreOptions& options);

}  // namespace dunnock::crash
