// Checkpoints: the whole state of a training run, saved in the background while it continues, and restored exactly.
//
//   rank 0                       Checkpoints ---- CheckpointSaver ---- CheckpointStore ---- pool file
//   state of the trainer  ---->  weights, moments, statistics; position in the data; number of steps
//   of other stages, gathered
//
// Only what differs from existing checkpoints is written. A checkpoint exists completely or not at all: a crash at any
// moment leaves those whose save was done, and the run resumes from the newest and reaches the same weights as without
// the crash. A checkpoint does not depend on ranks: a run may be resumed on another number of them, or by another
// schedule.
//
// The store "training" has tensors by name: those of the model (f32, in their order in memory: convolutions (out,
// kernel positions, in)), "optimizer.first_moment.NAME", "optimizer.second_moment.NAME", and "training.position"
// (Position's 64 bytes).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "dunnock/base/result.hpp"
#include "dunnock/data/loader.hpp"
#include "dunnock/index/checkpoint_store.hpp"
#include "dunnock/pmem/detect.hpp"
#include "dunnock/ranks/communicator.hpp"
#include "dunnock/training/trainer.hpp"

namespace dunnock::training {

/// Where a run is, besides its tensors. Plain data, saved byte for byte.
struct Position {
  std::uint64_t version = 1;
  std::uint64_t step = 0;             ///< Number of completed steps.
  std::uint64_t setup = 0;            ///< Any hash of model, data and optimizer: a run with another setup is refused.
  data::LoaderPosition next_batch{};  ///< The next batch, of all ranks together.
  std::uint64_t best_loss_bits = 0;   ///< For the caller's use.
  std::uint64_t zero = 0;
};
static_assert(sizeof(Position) == 64);

/// Texts that are kept with a checkpoint, by name, and exported as safetensors' __metadata__.
using CheckpointNotes = std::vector<std::pair<std::string, std::string>>;

/// A checkpoint's description of itself.
struct CheckpointLabel {
  std::uint64_t step = 0;
  CheckpointNotes notes;
};

struct CheckpointsOptions {
  std::string path;                  ///< Path of the pool, which is created if it does not exist.
  std::uint64_t capacity_bytes = 0;  ///< 0: room for six whole states.
  std::uint32_t chunk_bytes = 64 << 10;
  std::uint64_t staging_bytes = 0;   ///< Memory for copies; 0: enough for a whole state, up to 256 MiB.
  std::optional<MediaKind> media{};  ///< Empty: as detect_media() finds for the file.
  Retention retention{.keep_last = 2, .keep_every = 0};
};

/// Threads: one at a time, the trainer's. All ranks make an object and make the same calls; rank 0 of `world` does the
/// work, and the others have no pool; they wait for it, however long it takes.
class Checkpoints {
 public:
  /// Opens or creates the pool. `world`: all ranks, null if there is one. Errors: those of Pool and CheckpointStore; on
  /// all ranks.
  [[nodiscard]] static Result<Checkpoints> open(const CheckpointsOptions& options, Trainer& trainer,
                                                ranks::Communicator* world = nullptr);
  /// The notes of the newest checkpoint, or of the one of `step`. Needs no trainer, so the notes can determine its
  /// options; the pool is closed again. Empty: there is no such pool or checkpoint, or it can't be read; resume() says
  /// which. All ranks of `world` must call it. Errors: PeerLost, Device.
  [[nodiscard]] static Result<std::optional<CheckpointLabel>> label(const std::string& path,
                                                                    std::optional<MediaKind> media,
                                                                    std::optional<std::uint64_t> step,
                                                                    ranks::Communicator* world = nullptr);
  Checkpoints(Checkpoints&&) noexcept;
  Checkpoints& operator=(Checkpoints&&) noexcept;
  /// Waits for the save in progress.
  ~Checkpoints();

  /// Loads the newest checkpoint into the trainer, then removes those that the retention does not keep, which may be a
  /// smaller one than before. Empty: there is no checkpoint, and nothing is changed. Errors: InvalidArgument: the
  /// checkpoint is of another setup or has other tensors; Corrupt: it is damaged, or the store can't determine which
  /// was the newest; NotFound (a tensor).
  [[nodiscard]] Result<std::optional<Position>> resume(std::uint64_t setup);
  /// The same with the checkpoint of `step`. Additional errors: NotFound (none of that step); Corrupt also if an
  /// unreadable checkpoint may be the one of that step. A run that continues from it calls remove_newer() first, since
  /// each step is saved only once.
  [[nodiscard]] Result<Position> resume_from(std::uint64_t step, std::uint64_t setup);
  /// Removes the checkpoints after `step`, the newest first, then the unreadable parts of the catalog. A crash leaves
  /// some of them. Errors: only those of lost ranks.
  [[nodiscard]] Status remove_newer(std::uint64_t step);
  /// Starts to save the trainer's current state; the trainer's next run waits where it must. Waits first for a save
  /// that is still in progress, and returns its report. Errors: those of the previous save, or of gathering;
  /// InvalidArgument: a value is not finite, so no run could continue from it. Existing checkpoints stay as they are,
  /// and training may continue.
  [[nodiscard]] Result<std::optional<SaveReport>> save(const Position& position, CheckpointNotes notes = {});
  /// Waits for the save in progress, if there is one.
  [[nodiscard]] Result<std::optional<SaveReport>> wait();
  /// Existing versions (steps) whose manifest can be read, ascending. On rank 0.
  [[nodiscard]] std::vector<std::uint64_t> versions() const;
  /// Reads all of a checkpoint, the newest or the one of `step`, and compares it with its checksums. Errors: NotFound,
  /// Corrupt (for the newest also if the store can't determine which it was).
  [[nodiscard]] Status verify(std::optional<std::uint64_t> step = {}) const;

  /// The newest checkpoint of a step before `below` that verify() finds valid; empty if there is none. Errors:
  /// PeerLost, Device.
  [[nodiscard]] Result<std::optional<std::uint64_t>> newest_sound(std::uint64_t below) const;
  /// For a launcher that kills ranks: saves only on this rank, the first, from any thread, while Trainer::run() is held
  /// (hold_updates()) and no other thread calls anything here. Calls `captured` when the run may continue, and returns
  /// when the checkpoint is durable. Errors: those of save(); Unsupported: this rank does not hold the state to be
  /// saved.
  [[nodiscard]] Result<SaveReport> save_held(const Position& position, CheckpointNotes notes,
                                             const std::function<void()>& captured);

  class Impl;  ///< For the layer itself.

 private:
  explicit Checkpoints(std::unique_ptr<Impl> impl) noexcept;
  std::unique_ptr<Impl> impl_;
};

}  // namespace dunnock::training
