// The functions of CheckpointSaver.
#pragma once

#include <algorithm>
#include <cstring>
#include <utility>

#include "dunnock/index/detail/run_on_threads.hpp"
#include "dunnock/pmem/start_thread.hpp"

namespace dunnock {

struct PendingSave::State {
  std::string name;
  std::uint64_t version = 0;
  std::vector<TensorSource> tensors;
  std::vector<std::pair<std::string, std::string>> notes;

  OwnerProcess owner;

  mutable std::mutex mutex;
  mutable std::condition_variable changed;
  bool captured = false;
  bool given_up = false;  // Its pieces are not needed any more.
  std::optional<Result<SaveReport>> result;

  // Pieces that are copied and not yet taken, in the order of the tensors and their offsets.
  struct Piece {
    std::size_t tensor;
    std::uint64_t offset_bytes;
    Result<std::shared_ptr<const std::byte[]>> bytes;  // Or why the piece can't be read.
  };
  std::deque<Piece> pieces;
};

inline void PendingSave::wait_captured() const {
  if (state_->owner.is_gone()) return;
  std::unique_lock lock(state_->mutex);
  state_->changed.wait(lock, [this] { return state_->captured; });
}

inline Result<SaveReport> PendingSave::wait() const {
  if (state_->owner.is_gone()) return make_error(ErrorCode::kIo, "the save was begun by a parent process");
  std::unique_lock lock(state_->mutex);
  state_->changed.wait(lock, [this] { return state_->result.has_value(); });
  return *state_->result;
}

inline bool PendingSave::captured() const {
  if (state_->owner.is_gone()) return true;
  const std::lock_guard lock(state_->mutex);
  return state_->captured;
}

inline bool PendingSave::done() const {
  if (state_->owner.is_gone()) return true;
  const std::lock_guard lock(state_->mutex);
  return state_->result.has_value();
}

/// State that the threads share, and that pieces in use keep when the saver is destroyed.
template <Media M>
struct CheckpointSaver<M>::Shared {
  mutable std::mutex mutex;
  std::condition_variable changed;
  std::mutex turn;  // Of callers that save for want of a save thread; taken before `mutex`.
  std::deque<StatePointer> to_capture;
  std::deque<StatePointer> to_save;
  unsigned pending = 0;
  bool ends = false;
  std::uint64_t staged_bytes = 0;
  std::uint64_t staged_bytes_most = 0;
  std::vector<std::unique_ptr<std::byte[]>> spare;  // Of chunk_bytes each.

  void give_back(std::unique_ptr<std::byte[]> piece, std::uint64_t bytes, bool whole) {
    const std::lock_guard lock(mutex);
    if (whole) spare.push_back(std::move(piece));
    staged_bytes -= bytes;
    changed.notify_all();
  }
};

template <Media M>
CheckpointSaver<M>::CheckpointSaver(CheckpointStore<M>& store, const SaverOptions& options)
    : store_(store), options_(options), shared_(std::make_shared<Shared>()) {
  save_thread_ = detail::start_thread([this] { save_all(); });
  // Copies are for a thread that saves them meanwhile. (It looks at the options once there is a save.)
  if (save_thread_ && options_.staging_bytes != 0) capture_thread_ = detail::start_thread([this] { capture_all(); });
  if (!capture_thread_) options_.staging_bytes = 0;
}

template <Media M>
auto CheckpointSaver<M>::create(CheckpointStore<M>& store, const SaverOptions& options)
    -> Result<std::unique_ptr<CheckpointSaver>> {
  DUNNOCK_TRY(detail::check_threads(options.threads, kCheckpointThreadsMax));
  const std::uint64_t least = staging_bytes_min(options.threads, store.chunk_bytes());
  if (options.staging_bytes != 0 && options.staging_bytes < least)
    return make_error(ErrorCode::kInvalidArgument, "staging memory of " + std::to_string(options.staging_bytes) +
                                                       " bytes is too small: it must be 0 or at least " +
                                                       std::to_string(least));
  if (options.pending_max == 0)
    return make_error(ErrorCode::kInvalidArgument, "pending_max is 0: it must be at least 1");
  if (options.retention) {
    DUNNOCK_TRY(CheckpointStore<M>::check_retention(*options.retention));
  }
  return std::unique_ptr<CheckpointSaver>(new CheckpointSaver(store, options));
}

template <Media M>
CheckpointSaver<M>::~CheckpointSaver() {
  if (owner_.is_gone()) {
    // fork has copied neither the threads nor a right to the locks that they may have held.
    (void)capture_thread_.release();
    (void)save_thread_.release();
    new std::shared_ptr<Shared>(std::move(shared_));
    return;
  }
  {
    const std::lock_guard lock(shared_->mutex);
    shared_->ends = true;
    shared_->changed.notify_all();
  }
  if (capture_thread_) capture_thread_->join();
  if (save_thread_) save_thread_->join();
}

template <Media M>
PendingSave CheckpointSaver<M>::save(std::string_view name, std::uint64_t version, std::vector<TensorSource> tensors,
                                     std::vector<std::pair<std::string, std::string>> notes) {
  const auto save = std::make_shared<PendingSave::State>();
  save->name = std::string(name);
  save->version = version;
  save->tensors = std::move(tensors);
  save->notes = std::move(notes);
  if (owner_.is_gone()) {
    save->captured = true;
    save->result = make_error(ErrorCode::kIo, "the saver belongs to a parent process");
    return PendingSave(save);
  }
  std::unique_lock<std::mutex> turn;
  if (!save_thread_) turn = std::unique_lock(shared_->turn);
  std::unique_lock lock(shared_->mutex);
  shared_->changed.wait(lock, [this] { return shared_->pending < options_.pending_max; });
  ++shared_->pending;
  if (!save_thread_) {
    lock.unlock();
    save_one(save);
    return PendingSave(save);
  }
  if (options_.staging_bytes != 0) shared_->to_capture.push_back(save);
  shared_->to_save.push_back(save);
  shared_->changed.notify_all();
  return PendingSave(save);
}

template <Media M>
void CheckpointSaver<M>::wait_all() {
  if (owner_.is_gone()) return;
  std::unique_lock lock(shared_->mutex);
  shared_->changed.wait(lock, [this] { return shared_->pending == 0; });
}

template <Media M>
std::uint64_t CheckpointSaver<M>::staged_bytes_most() const {
  if (owner_.is_gone()) return 0;
  const std::lock_guard lock(shared_->mutex);
  return shared_->staged_bytes_most;
}

/// The capture thread.
template <Media M>
void CheckpointSaver<M>::capture_all() {
  while (true) {
    StatePointer save;
    {
      std::unique_lock lock(shared_->mutex);
      shared_->changed.wait(lock, [this] { return shared_->ends || !shared_->to_capture.empty(); });
      if (shared_->to_capture.empty()) return;
      save = std::move(shared_->to_capture.front());
      shared_->to_capture.pop_front();
    }
    capture(*save);
    const std::lock_guard lock(save->mutex);
    save->captured = true;
    save->changed.notify_all();
  }
}

/// Copies the tensors, piece by piece, as staging memory allows.
template <Media M>
void CheckpointSaver<M>::capture(PendingSave::State& save) {
  const std::uint64_t chunk_bytes = store_.chunk_bytes();
  for (std::size_t tensor = 0; tensor < save.tensors.size(); ++tensor) {
    const TensorSource& source = save.tensors[tensor];
    // CheckpointStore::save refuses what is inconsistent.
    const std::uint64_t bytes = source.spec.bytes().value_or(0);
    if (!source.read && !source.piece && source.bytes.size() != bytes) return;
    for (std::uint64_t offset = 0; offset < bytes; offset += chunk_bytes) {
      const std::uint64_t length = std::min(chunk_bytes, bytes - offset);
      std::unique_ptr<std::byte[]> copy;
      {
        std::unique_lock lock(shared_->mutex);
        const auto given_up = [&save] {
          const std::lock_guard save_lock(save.mutex);
          return save.given_up;
        };
        shared_->changed.wait(lock,
                              [&] { return shared_->staged_bytes + length <= options_.staging_bytes || given_up(); });
        if (given_up()) return;
        shared_->staged_bytes += length;
        shared_->staged_bytes_most = std::max(shared_->staged_bytes_most, shared_->staged_bytes);
        if (length == chunk_bytes && !shared_->spare.empty()) {
          copy = std::move(shared_->spare.back());
          shared_->spare.pop_back();
        }
      }
      if (!copy) copy = std::make_unique_for_overwrite<std::byte[]>(length);
      Status readable;
      if (source.piece) {
        const auto lent = source.piece(offset, length);
        if (lent) {
          std::memcpy(copy.get(), lent->get(), length);
        } else {
          readable = tl::unexpected(lent.error());
        }
      } else if (source.read) {
        readable = source.read(offset, {copy.get(), length});
      } else {
        std::memcpy(copy.get(), source.bytes.data() + offset, length);
      }
      // Its memory is returned when the last holder releases it.
      const bool whole = length == chunk_bytes;
      std::shared_ptr<const std::byte[]> piece(
          copy.release(), [shared = shared_, length, whole](const std::byte* held) {
            shared->give_back(std::unique_ptr<std::byte[]>(const_cast<std::byte*>(held)), length, whole);
          });
      Result<std::shared_ptr<const std::byte[]>> copied = std::move(piece);
      if (!readable) copied = tl::unexpected(readable.error());
      const std::lock_guard lock(save.mutex);
      save.pieces.push_back({tensor, offset, std::move(copied)});
      save.changed.notify_all();
    }
  }
}

/// The sources as CheckpointStore::save sees them: the pieces that the capture thread has copied.
template <Media M>
std::vector<TensorSource> CheckpointSaver<M>::staged_sources(const StatePointer& save) const {
  std::vector<TensorSource> sources;
  for (std::size_t tensor = 0; tensor < save->tensors.size(); ++tensor) {
    const TensorSource& source = save->tensors[tensor];
    TensorSource staged{source.spec, {}, {}, {}};
    if (source.read || source.piece || source.bytes.size() == source.spec.bytes()) {
      staged.piece = [state = save.get(), tensor](std::uint64_t offset, std::uint64_t) {
        std::unique_lock lock(state->mutex);
        auto found = state->pieces.end();
        state->changed.wait(lock, [&] {
          found = std::find_if(state->pieces.begin(), state->pieces.end(), [&](const PendingSave::State::Piece& piece) {
            return piece.tensor == tensor && piece.offset_bytes == offset;
          });
          return found != state->pieces.end();
        });
        Result<std::shared_ptr<const std::byte[]>> bytes = std::move(found->bytes);
        state->pieces.erase(found);
        return bytes;
      };
    }
    sources.push_back(std::move(staged));
  }
  return sources;
}

/// The save thread.
template <Media M>
void CheckpointSaver<M>::save_all() {
  while (true) {
    StatePointer save;
    {
      std::unique_lock lock(shared_->mutex);
      shared_->changed.wait(lock, [this] { return shared_->ends || !shared_->to_save.empty(); });
      if (shared_->to_save.empty()) return;
      save = std::move(shared_->to_save.front());
      shared_->to_save.pop_front();
    }
    save_one(save);
  }
}

/// Saves it, and says how that went.
template <Media M>
void CheckpointSaver<M>::save_one(const StatePointer& save) {
  const bool staged = options_.staging_bytes != 0;
  Result<SaveReport> result = store_.save(save->name, save->version, staged ? staged_sources(save) : save->tensors,
                                          {.threads = options_.threads, .notes = save->notes});
  if (!staged) {
    const std::lock_guard lock(save->mutex);
    save->captured = true;
    save->changed.notify_all();
  }
  if (result && options_.retention) (void)store_.retain(save->name, *options_.retention);
  std::deque<PendingSave::State::Piece> unwanted;
  {
    const std::lock_guard lock(save->mutex);
    save->given_up = true;
    unwanted.swap(save->pieces);
  }
  unwanted.clear();  // Not under the mutex: it gives memory back.
  {
    const std::lock_guard lock(shared_->mutex);
    shared_->changed.notify_all();  // The capture thread may wait for memory in vain.
  }
  {
    std::unique_lock lock(save->mutex);
    // With copies, the capture thread tells that it touches the tensors no more.
    if (staged) save->changed.wait(lock, [&save] { return save->captured; });
    unwanted.swap(save->pieces);
  }
  unwanted.clear();
  save->tensors.clear();
  {
    const std::lock_guard lock(save->mutex);
    save->result.emplace(std::move(result));
    save->changed.notify_all();
  }
  const std::lock_guard lock(shared_->mutex);
  --shared_->pending;
  shared_->changed.notify_all();
}

}  // namespace dunnock
