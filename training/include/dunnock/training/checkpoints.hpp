// Checkpoints: the whole state of a training run, saved in the background while it goes on, and brought back exactly.
//
//   rank 0                       Checkpoints ---- CheckpointSaver ---- CheckpointStore ---- pool file
//   state of the trainer  ---->  weights, moments, statistics; where the data is; how many steps
//   of other stages, gathered
//
// Only what differs from the checkpoints that are there is written. A checkpoint is there wholly or not at all: a crash
// at any moment leaves those whose save was done, and the run goes on from the newest to the same weights as if nothing
// had been. It knows nothing of ranks: a run may be resumed on another number of them, or by another schedule.
//
// In the store "training", tensors by name: those of the model (f32, as they lie: convolutions (out, kernel positions,
// in)), "optimizer.first_moment.NAME", "optimizer.second_moment.NAME", and "training.position" (Position's 64 bytes).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "dunnock/base/result.hpp"
#include "dunnock/gpu/communicator.hpp"
#include "dunnock/index/checkpoint_store.hpp"
#include "dunnock/pmem/detect.hpp"
#include "dunnock/training/loader.hpp"
#include "dunnock/training/trainer.hpp"

namespace dunnock::training {

/// Where a run is, besides its tensors. Plain data, saved as it lies.
struct Position {
  std::uint64_t version = 1;
  std::uint64_t step = 0;       ///< Steps that are done.
  std::uint64_t setup = 0;      ///< Of the model, the data and the optimizer (any hash): a run of others is refused.
  LoaderPosition next_batch{};  ///< Of all ranks together.
  std::uint64_t best_loss_bits = 0;  ///< For the caller's use.
  std::uint64_t zero = 0;
};
static_assert(sizeof(Position) == 64);

/// Words that are kept with a checkpoint, by name, and come out as safetensors' __metadata__.
using CheckpointNotes = std::vector<std::pair<std::string, std::string>>;

/// What a checkpoint says of itself.
struct CheckpointLabel {
  std::uint64_t step = 0;
  CheckpointNotes notes;
};

struct CheckpointsOptions {
  std::string path;                  ///< Of the pool; made if it is not there.
  std::uint64_t capacity_bytes = 0;  ///< 0: room for six whole states.
  std::uint32_t chunk_bytes = 64 << 10;
  std::uint64_t staging_bytes = 0;   ///< For copies; 0: of a whole state, up to 256 MiB.
  std::optional<MediaKind> media{};  ///< None: what the file calls for.
  Retention retention{.keep_last = 2, .keep_every = 0};
};

/// Threads: one at a time, that of the trainer. All ranks make one, and call its functions alike; rank 0 of `world`
/// does the work, and the others have no pool; they wait with it, however long it takes.
class Checkpoints {
 public:
  /// Opens or makes the pool. `world`: all ranks, null for one. Errors: those of Pool and CheckpointStore; on all
  /// ranks.
  [[nodiscard]] static Result<Checkpoints> open(const CheckpointsOptions& options, Trainer& trainer,
                                                gpu::Communicator* world = nullptr);
  /// The notes of the newest checkpoint, or of that of `step`, before there is a trainer, which they may decide about;
  /// the pool is closed again. None: there is no such pool or checkpoint, or it can't be read; resume() says which. All
  /// ranks of `world` must call it. Errors: PeerLost, Device.
  [[nodiscard]] static Result<std::optional<CheckpointLabel>> label(const std::string& path,
                                                                    std::optional<MediaKind> media,
                                                                    std::optional<std::uint64_t> step,
                                                                    gpu::Communicator* world = nullptr);
  Checkpoints(Checkpoints&&) noexcept;
  Checkpoints& operator=(Checkpoints&&) noexcept;
  /// Waits for the save under way.
  ~Checkpoints();

  /// Brings the newest checkpoint into the trainer, and then removes those that the retention does not keep, which may
  /// be a smaller one than before; none: there is none, and nothing is changed. Errors:
  /// InvalidArgument: it is of another setup or has other tensors; Corrupt: it is damaged, or the store can't tell
  /// which was the newest; NotFound (a tensor).
  [[nodiscard]] Result<std::optional<Position>> resume(std::uint64_t setup);
  /// The same with the checkpoint of `step`. Errors besides: NotFound (none of that step); Corrupt, too, where what
  /// can't be read may be the one of that step. A run that goes on from it
  /// calls remove_newer() first, for steps are saved once.
  [[nodiscard]] Result<Position> resume_from(std::uint64_t step, std::uint64_t setup);
  /// Removes the checkpoints behind `step`, the newest first, then what can't be read of the catalog. A crash leaves
  /// some of them. Errors: none but that others are lost.
  [[nodiscard]] Status remove_newer(std::uint64_t step);
  /// Starts to save what the trainer has now; its next run waits where it must. A save that is still under way is
  /// waited for first, and its report is given. Errors: of the save before, or of gathering; InvalidArgument: a value
  /// is no number, and no run could go on from it. The checkpoints that are there stay as they are, and training may go
  /// on.
  [[nodiscard]] Result<std::optional<SaveReport>> save(const Position& position, CheckpointNotes notes = {});
  /// Waits for the save under way, if there is one.
  [[nodiscard]] Result<std::optional<SaveReport>> wait();
  /// Versions (steps) that there are and whose manifest can be read, ascending. On rank 0.
  [[nodiscard]] std::vector<std::uint64_t> versions() const;
  /// Reads all of a checkpoint, the newest or that of `step`, and compares it with its checksums. Errors:
  /// NotFound, Corrupt (which for the newest includes that the store can't tell which it was).
  [[nodiscard]] Status verify(std::optional<std::uint64_t> step = {}) const;

  /// The newest checkpoint of a step before `below` that verify() finds sound; none: there is none. Errors: PeerLost,
  /// Device.
  [[nodiscard]] Result<std::optional<std::uint64_t>> newest_sound(std::uint64_t below) const;
  /// For a launcher that kills: saves on this rank alone, the first, from any thread, while Trainer::run() is held
  /// (hold_updates()) and nobody else calls anything here. Calls `captured` when the run may go on, and returns when
  /// the checkpoint is durable. Errors: those of save(); Unsupported: what is saved does not lie here.
  [[nodiscard]] Result<SaveReport> save_held(const Position& position, CheckpointNotes notes,
                                             const std::function<void()>& captured);

  class Impl;  ///< For the layer itself.

 private:
  explicit Checkpoints(std::unique_ptr<Impl> impl) noexcept;
  std::unique_ptr<Impl> impl_;
};

}  // namespace dunnock::training
