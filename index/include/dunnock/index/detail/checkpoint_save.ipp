// Part of CheckpointStore: saving.
//
//   chunks     those that are not stored yet, by all threads, in batches that share fences
//   manifest   the same way, after all of its chunks
//   line       of the catalog: one store makes the checkpoint exist
#pragma once

#include <algorithm>
#include <chrono>
#include <ctime>
#include <unordered_set>

#include "dunnock/base/printable.hpp"
#include "dunnock/index/detail/run_on_threads.hpp"

namespace dunnock {

/// One save in progress.
template <Media M>
struct CheckpointStore<M>::Save {
  using Batch = typename KvStore<M>::Batch;
  using Memory = std::shared_ptr<const std::byte[]>;
  /// A chunk for which there was no room, with its memory unless that is the tensor's own.
  struct Left {
    typename KvStore<M>::Item item;
    Memory memory;
  };

  Manifest manifest;
  std::uint64_t line = 0;
  std::uint64_t number = 0;
  std::vector<std::uint64_t> first_chunk;  // of each tensor, in the count of all; and one more
  std::atomic<std::uint64_t> next_chunk{0};
  std::atomic<std::uint64_t> chunks_written{0};
  std::atomic<std::uint64_t> chunks_healed{0};
  std::atomic<std::uint64_t> bytes_written{0};
  std::atomic<bool> failed{false};
  std::mutex mutex;                                       // of what follows
  std::unordered_set<IndexKey, detail::KeyHash> writing;  // keys that it has reached, and relies on
  std::vector<Left> left;                                 // chunks that the log had no room for
  std::vector<Batch> unpublished;                         // chunks that the index had no room for
  Status status;

  void fail(ErrorCode code, std::string what) {
    const std::lock_guard lock(mutex);
    if (!failed.exchange(true)) status = make_error(code, std::move(what));
  }
  void fail_for_room() {
    fail(ErrorCode::kNoSpace,
         "the store has no room for the checkpoint's " + std::to_string(first_chunk.back()) + " chunks");
  }
  void count(std::uint64_t chunk_bytes) {
    bytes_written += chunk_bytes + ValueLog<M>::kOverheadBytes;
    ++chunks_written;
  }
};

template <Media M>
Status CheckpointStore<M>::check_tensors(std::span<const TensorSource> tensors) {
  std::unordered_set<std::string_view> names;
  for (const TensorSource& tensor : tensors) {
    const auto refuse = [&tensor](const char* what) {
      return make_error(ErrorCode::kInvalidArgument, "tensor " + in_quotes(tensor.spec.name) + " " + what);
    };
    const auto bytes = tensor.spec.bytes();
    if (tensor.spec.name.empty() || tensor.spec.name.size() > 65535) return refuse("needs a name of 1 to 65535 bytes");
    if (!names.insert(tensor.spec.name).second) return refuse("occurs twice");
    if (bits_of(tensor.spec.dtype) == 0) return refuse("has an unknown dtype");
    if (tensor.spec.shape.size() > 255) return refuse("has more than 255 dimensions");
    if (!bytes) return refuse("is too large or does not fill whole bytes");
    if (!tensor.read && !tensor.piece && tensor.bytes.size() != *bytes)
      return refuse("has a size in bytes that does not match its shape");
  }
  return {};
}

template <Media M>
Result<SaveReport> CheckpointStore<M>::save(std::string_view name, std::uint64_t version,
                                            std::span<const TensorSource> tensors, const SaveOptions& options) {
  if constexpr (kIsReadOnly<M>) return make_error(ErrorCode::kReadOnly, "the pool is open read-only");
  const auto start = std::chrono::steady_clock::now();
  if (name.empty() || name.size() > 1024 || version == kLatestVersion)
    return make_error(ErrorCode::kInvalidArgument,
                      "a checkpoint needs a name of 1 to 1024 bytes and a version below 2^64 - 1");
  DUNNOCK_TRY(detail::check_threads(options.threads, kCheckpointThreadsMax));
  DUNNOCK_TRY(check_tensors(tensors));
  DUNNOCK_TRY(status());

  Save save;
  save.manifest.name = std::string(name);
  save.manifest.version = version;
  save.manifest.created_seconds = static_cast<std::uint64_t>(std::time(nullptr));
  save.manifest.chunk_bytes = chunk_bytes_;
  save.manifest.notes = options.notes;
  save.first_chunk.push_back(0);
  for (const TensorSource& tensor : tensors) {
    const std::uint64_t chunks = chunks_of(tensor.spec.bytes().value_or(0), chunk_bytes_);
    save.manifest.tensors.push_back({tensor.spec, std::vector<IndexKey>(chunks)});
    save.first_chunk.push_back(save.first_chunk.back() + chunks);
  }

  Shared& shared = *shared_;
  const std::pair<std::string, std::uint64_t> title(name, version);
  {
    const std::lock_guard lock(shared.catalog);
    const auto there = catalog_.find(name, version);
    if (there || shared.saving.contains(title)) {
      const auto fields = there ? catalog_.read(*there) : std::nullopt;
      return make_error(ErrorCode::kAlreadyExists,
                        "checkpoint " + in_quotes(name) + " of version " + std::to_string(version) +
                            (fields && !read_manifest(*fields) ? " already exists, but it is damaged: remove it first"
                                                               : " already exists or is being saved"));
    }
    while (save.line < catalog_.lines() && (!catalog_.is_free(save.line) || shared.lines_taken.contains(save.line)))
      ++save.line;
    if (save.line == catalog_.lines())
      return make_error(ErrorCode::kNoSpace,
                        "the catalog is full: it holds " + std::to_string(catalog_.lines()) + " checkpoints");
    shared.saving.emplace(title, &save);
    shared.lines_taken.insert(save.line);
    save.number = shared.saves++;
  }
  Status saved = save_once(save, tensors, options.threads);
  if (!saved && saved.error().code == ErrorCode::kNoSpace && status() && collect().value_or(0) != 0)
    saved = save_once(save, tensors, options.threads);  // Continues where it stopped.
  {
    const std::lock_guard lock(shared.catalog);
    shared.saving.erase(title);
    shared.lines_taken.erase(save.line);
  }
  give_back_removed();
  DUNNOCK_TRY(status());  // Whatever else it looked like.
  DUNNOCK_TRY(saved);
  SaveReport report;
  report.name = title.first;
  report.version = version;
  report.tensor_bytes = save.manifest.bytes();
  report.chunks = save.first_chunk.back();
  report.chunks_written = save.chunks_written.load();
  report.chunks_healed = save.chunks_healed.load();
  report.bytes_written = save.bytes_written.load();
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report;
}

/// Writes chunks, manifest and catalog line, in this order. After NoSpace it may be called again, and continues.
template <Media M>
Status CheckpointStore<M>::save_once(Save& save, std::span<const TensorSource> tensors, unsigned threads) {
  const std::shared_lock gate(shared_->gate);  // Nothing is collected that this save relies on.
  save.failed = false;
  save.status = {};
  if (!write_left(save)) return save.status;
  detail::run_on_threads(threads, [&] { save_chunks(save, tensors); });
  if (save.failed) return save.status;
  CatalogFields fields;
  if (!write_manifest(save, fields))
    return make_error(ErrorCode::kNoSpace, "the store has no room for the checkpoint's manifest");
  const std::lock_guard lock(shared_->catalog);
  catalog_.publish(save.line, fields);
  shared_->references.note(save.manifest);
  return {};
}

/// Writes what an earlier attempt has left. False: there is no room.
template <Media M>
bool CheckpointStore<M>::write_left(Save& save) {
  while (!save.unpublished.empty() && save.unpublished.back().commit()) save.unpublished.pop_back();
  typename Save::Batch batch(data_);
  while (save.unpublished.empty() && !save.left.empty() && batch.add(save.left.back().item)) {
    save.count(save.left.back().item.bytes.size());
    save.left.pop_back();
  }
  finish(save, batch);
  if (!save.unpublished.empty() || !save.left.empty()) save.fail_for_room();
  return !save.failed;
}

template <Media M>
void CheckpointStore<M>::finish(Save& save, typename Save::Batch& batch) {
  if (batch.commit()) return;
  save.fail_for_room();
  const std::lock_guard lock(save.mutex);
  save.unpublished.push_back(std::move(batch));
}

/// The work of one thread: takes the next chunks until there are no more.
template <Media M>
void CheckpointStore<M>::save_chunks(Save& save, std::span<const TensorSource> tensors) {
  typename Save::Batch batch(data_);
  std::shared_ptr<std::byte[]> buffer;  // For a tensor that is read.
  while (!save.failed) {
    const bool full = batch.bytes() >= kSaveBatchBytes || batch.size() >= kSaveBatchChunks;
    if (full && !batch.commit()) break;
    const std::uint64_t at = save.next_chunk.fetch_add(1);
    if (at >= save.first_chunk.back()) break;
    const auto tensor = static_cast<std::size_t>(
        std::upper_bound(save.first_chunk.begin(), save.first_chunk.end(), at) - save.first_chunk.begin() - 1);
    save_chunk(save, tensors[tensor], tensor, at - save.first_chunk[tensor], batch, buffer);
  }
  finish(save, batch);
}

/// Puts a chunk into the batch unless it is durable already.
template <Media M>
void CheckpointStore<M>::save_chunk(Save& save, const TensorSource& source, std::size_t tensor, std::uint64_t chunk,
                                    typename Save::Batch& batch, std::shared_ptr<std::byte[]>& buffer) {
  ManifestTensor& target = save.manifest.tensors[tensor];
  const std::uint64_t offset = chunk * chunk_bytes_;
  const std::uint64_t length = std::min<std::uint64_t>(chunk_bytes_, target.spec.bytes().value_or(0) - offset);
  typename Save::Memory memory;
  const std::byte* bytes = nullptr;
  Status readable;
  if (source.piece) {
    auto lent = source.piece(offset, length);
    if (lent) {
      memory = std::move(*lent);
      bytes = memory.get();
    } else {
      readable = tl::unexpected(lent.error());
    }
  } else if (source.read) {
    if (!buffer) buffer = std::shared_ptr<std::byte[]>(new std::byte[chunk_bytes_]);
    readable = source.read(offset, std::span(buffer.get(), length));
    memory = buffer;
    bytes = buffer.get();
  } else {
    bytes = source.bytes.data() + offset;
  }
  if (!readable) {
    save.fail(readable.error().code, "tensor " + in_quotes(source.spec.name) + " can't be read at byte " +
                                         std::to_string(offset) + ": " + readable.error().message);
    return;
  }
  const ChunkDigest digest = chunk_digest({bytes, length});
  target.chunks[chunk] = digest.key;
  {
    const std::lock_guard lock(save.mutex);
    if (!save.writing.insert(digest.key).second) return;  // This save has it already.
  }
  const typename KvStore<M>::Item item{digest.key, {bytes, length}, digest.checksum};
  // That a key exists says nothing about its bytes, and we have the correct ones. Equal bytes are durable, since a get
  // never returns what is not.
  const Compared compared = data_.compare(item);
  if (compared == Compared::kSame) return;
  if (compared == Compared::kDifferent) ++save.chunks_healed;
  if (batch.add(item)) {
    save.count(length);
    return;
  }
  save.fail_for_room();
  const std::lock_guard lock(save.mutex);
  save.left.push_back({item, std::move(memory)});
}

template <Media M>
bool CheckpointStore<M>::write_manifest(Save& save, CatalogFields& fields) {
  const std::vector<std::byte> bytes = encode(save.manifest);
  fields.manifest_bytes = bytes.size();
  fields.name_hash = catalog_name_hash(save.manifest.name);
  fields.version = save.manifest.version;
  fields.created_seconds = save.manifest.created_seconds;
  fields.tensor_bytes = save.manifest.bytes();
  // Different from that of any manifest whose pieces may still be freed.
  fields.manifest_id = catalog_manifest_id(save.line, save.number, fields.name_hash, fields.version);
  for (std::uint64_t piece = 0; piece < pieces_of(bytes.size()); ++piece) {
    const std::uint64_t from = piece * piece_bytes();
    const auto part = std::span(bytes).subspan(from, std::min<std::uint64_t>(piece_bytes(), bytes.size() - from));
    if (data_.put(manifest_key(fields.manifest_id, piece), part) > PutResult::kReplaced) return false;
    save.bytes_written += part.size() + ValueLog<M>::kOverheadBytes;
  }
  return true;
}

}  // namespace dunnock
