// CheckpointSaver: saves checkpoints in the background, from a snapshot, in a bounded amount of memory.
//
// What it is for: a training loop that must not stop while its state is written. What it is not for: a snapshot of
// tensors that change while it is taken; between save() and wait_captured() they must only be read.
//
//   training thread   save()  forward, backward (read the weights)  wait_captured()  optimizer step (writes them) ...
//   capture thread    copies pieces into the staging memory ------->|
//   save thread          hashes, compares, writes pieces, frees their memory -----------> durable: wait() returns
//
// Source of the two steps, snapshot and persist: CheckFreq (Mohan et al., FAST 2021). Here the snapshot waits for
// staging memory to become free if that is smaller than the tensors; without staging memory, the tensors are written
// from where they are.
#pragma once

#include <unistd.h>

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "dunnock/base/result.hpp"
#include "dunnock/index/checkpoint_store.hpp"

namespace dunnock {

struct SaverOptions {
  /// Memory for copies of tensors. 0: nothing is copied, and tensors are captured when they are durable; otherwise at
  /// least staging_bytes_min(threads, chunk_bytes).
  std::uint64_t staging_bytes = 0;
  /// That write one checkpoint, besides the one that copies: up to kCheckpointThreadsMax, as in SaveOptions.
  unsigned threads = 1;
  /// Saves that may be under way: one more waits in save().
  unsigned pending_max = 2;
  /// Applied to the name after each save.
  std::optional<Retention> retention;
};

/// The least staging memory with which a save can go on: the piece that each of its threads writes and one on its way
/// to it, and one that is being copied. 2^64 - 1 where it would be more.
[[nodiscard]] constexpr std::uint64_t staging_bytes_min(unsigned threads, std::uint64_t chunk_bytes) noexcept {
  const std::uint64_t pieces = 2 * std::uint64_t{threads == 0 ? 1 : threads} + 1;
  constexpr std::uint64_t kMost = std::numeric_limits<std::uint64_t>::max();
  return chunk_bytes > kMost / pieces ? kMost : pieces * chunk_bytes;
}

/// Remembers the process that made this object. fork() copies neither a saver's threads nor what they hold.
class OwnerProcess {
 public:
  /// Is this another process, a child of that one?
  [[nodiscard]] bool is_gone() const noexcept { return process_ != ::getpid(); }

 private:
  pid_t process_ = ::getpid();
};

/// A save in progress, or done. Copies refer to the same save. Threads: any number, at any time.
class PendingSave {
 public:
  /// Returns when the tensors may change: they are copied, or durable, or the save has failed.
  void wait_captured() const;
  /// Returns when the checkpoint is durable or the save has failed. Errors: those of CheckpointStore::save.
  [[nodiscard]] Result<SaveReport> wait() const;
  [[nodiscard]] bool captured() const;
  [[nodiscard]] bool done() const;

 private:
  template <Media M>
  friend class CheckpointSaver;
  struct State;
  explicit PendingSave(std::shared_ptr<State> state) noexcept : state_(std::move(state)) {}
  std::shared_ptr<State> state_;
};

/// Threads: save and wait_all may be called by any number of threads. Saves become durable in the order in which they
/// were given. In a child of fork(), saves answer Io, and nothing waits for the threads that are not there. Crashes: as
/// with CheckpointStore; of a save that is not done nothing is seen.
///
/// Where the system has no thread to give when a saver is created, it works with those that there are: without the one
/// that copies, nothing is copied, as with staging_bytes 0; without the one that saves, save() returns when the save is
/// done.
template <Media M>
class CheckpointSaver {
 public:
  /// Errors: InvalidArgument (options). The store must stay where it is, and outlive the saver.
  [[nodiscard]] static Result<std::unique_ptr<CheckpointSaver>> create(CheckpointStore<M>& store,
                                                                       const SaverOptions& options);
  CheckpointSaver(const CheckpointSaver&) = delete;
  CheckpointSaver& operator=(const CheckpointSaver&) = delete;
  /// Waits for the saves in progress.
  ~CheckpointSaver();

  /// Starts to save the tensors, which must not change until wait_captured() of the result returns. Waits while
  /// pending_max saves are in progress.
  [[nodiscard]] PendingSave save(std::string_view name, std::uint64_t version, std::vector<TensorSource> tensors,
                                 std::vector<std::pair<std::string, std::string>> notes = {});
  /// Returns when no save is in progress.
  void wait_all();
  /// The most bytes that copies have occupied at any time.
  [[nodiscard]] std::uint64_t staged_bytes_most() const;

 private:
  using StatePointer = std::shared_ptr<PendingSave::State>;
  struct Shared;

  CheckpointSaver(CheckpointStore<M>& store, const SaverOptions& options);
  void capture_all();
  void capture(PendingSave::State& save);
  void save_all();
  void save_one(const StatePointer& save);
  [[nodiscard]] std::vector<TensorSource> staged_sources(const StatePointer& save) const;

  CheckpointStore<M>& store_;
  SaverOptions options_;
  std::shared_ptr<Shared> shared_;
  OwnerProcess owner_;
  std::unique_ptr<std::thread> capture_thread_;  // If anything is to be copied.
  std::unique_ptr<std::thread> save_thread_;     // Null: save() does its work.
};

}  // namespace dunnock

#include "dunnock/index/detail/checkpoint_saver.ipp"  // IWYU pragma: export
#include "dunnock/index/detail/standard_media.hpp"

namespace dunnock {

DUNNOCK_ON_STANDARD_MEDIA(extern, CheckpointSaver);

}  // namespace dunnock
