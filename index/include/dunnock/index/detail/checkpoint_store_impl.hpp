// The functions of CheckpointStore.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstring>
#include <ctime>
#include <map>
#include <unordered_set>

#include "dunnock/base/printable.hpp"
#include "dunnock/index/checkpoint_store.hpp"
#include "dunnock/index/detail/run_on_threads.hpp"
#include "dunnock/pmem/header.hpp"

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
  std::mutex mutex;                               // of what follows
  std::unordered_set<IndexKey, KeyHash> writing;  // keys that it has reached, and relies on
  std::vector<Left> left;                         // chunks that the log had no room for
  std::vector<Batch> unpublished;                 // chunks that the index had no room for
  Status status;

  void fail(ErrorCode code, std::string what) {
    const std::lock_guard lock(mutex);
    if (!failed.exchange(true)) status = make_error(code, std::move(what));
  }
  void fail_for_room() {
    fail(ErrorCode::kNoSpace, "there is no room for " + std::to_string(first_chunk.back()) + " chunks");
  }
  void count(std::uint64_t chunk_bytes) {
    bytes_written += chunk_bytes + ValueLog<M>::kOverheadBytes;
    ++chunks_written;
  }
};

// ----- life -------------------------------------------------------------------------------------------------------

template <Media M>
CheckpointStore<M>::CheckpointStore(Region catalog, KvStore<M> data, const CatalogHeader& header, M media)
    : media_(std::move(media)),
      chunk_bytes_(header.chunk_bytes),
      lines_(header.lines),
      id_(header.id),
      catalog_(std::move(catalog)),
      data_(std::move(data)) {}

/// Checks a header before create() writes it and after attach() reads it. Empty: nothing is wrong.
template <Media M>
std::string CheckpointStore<M>::wrong_with(const CatalogHeader& header, std::uint64_t segment_bytes) {
  if (header.chunk_bytes < 64 || header.chunk_bytes > segment_bytes / 2)
    return "a chunk has 64 bytes to half a segment of " + std::to_string(segment_bytes) + " bytes, not " +
           std::to_string(header.chunk_bytes);
  if (header.lines == 0 || header.lines > 1U << 20)
    return "a store has 1 to 2^20 checkpoints, not " + std::to_string(header.lines);
  if (header.zero != decltype(header.zero){}) return "fields that are not used are not zero";
  return {};
}

template <Media M>
Status CheckpointStore<M>::check_options(const CheckpointOptions& options) {
  if (std::string wrong = wrong_with(header_for(options, {}), options.segment_bytes); !wrong.empty())
    return make_error(ErrorCode::kInvalidArgument, std::move(wrong));
  return KvStore<M>::check_options(store_options(options));
}

template <Media M>
CatalogHeader CheckpointStore<M>::header_for(const CheckpointOptions& options, std::string_view name) {
  CatalogHeader header{};
  header.magic = kCatalogMagic;
  header.format_version = kCatalogFormatVersion;
  header.chunk_bytes = options.chunk_bytes;
  header.lines = options.checkpoints_max;
  header.id = catalog_name_hash(name);
  header.checksum = checksum_of(header);
  return header;
}

template <Media M>
std::uint64_t CheckpointStore<M>::catalog_bytes(const CheckpointOptions& options) noexcept {
  return kCatalogLinesOffset + options.checkpoints_max * kLineBytes;
}

template <Media M>
StoreOptions CheckpointStore<M>::store_options(const CheckpointOptions& options) noexcept {
  StoreOptions store;
  store.log = {.capacity_bytes = options.capacity_bytes, .segment_bytes = options.segment_bytes};
  // Small tensors make small chunks: room for four times as many entries as there are whole chunks, and it may grow.
  store.index.entries = options.capacity_bytes / options.chunk_bytes;
  store.index.segment_groups = options.index_segment_groups;
  store.index.bytes_max = std::max<std::uint64_t>(16ULL << 20, store.index.entries * 4 * 2 * kLineBytes);
  return store;
}

template <Media M>
std::uint64_t CheckpointStore<M>::pool_bytes(const CheckpointOptions& options) noexcept {
  const StoreOptions store = store_options(options);
  const std::array regions{catalog_bytes(options), store.log.capacity_bytes, ValueLog<M>::meta_bytes(store.log),
                           KvIndex<M>::meta_bytes(store.index), store.index.bytes_max};
  return Pool::bytes_for(regions);
}

template <Media M>
auto CheckpointStore<M>::format(Region catalog, KvStore<M> data, const CheckpointOptions& options, M media,
                                std::string_view name) -> Result<CheckpointStore> {
  DUNNOCK_TRY(check_options(options));
  if (catalog.bytes() < catalog_bytes(options))
    return make_error(ErrorCode::kInvalidArgument, "the catalog's region does not fit its options");
  const CatalogHeader header = header_for(options, name);
  for (std::uint64_t line = 0; line < header.lines; ++line) {
    Word& state = reinterpret_cast<CatalogLine*>(catalog.at(kCatalogLinesOffset + line * kLineBytes))->state;
    media.store(checkpoint_point::kFormatLines, state, catalog_free({header.id, line}));
    media.flush(checkpoint_point::kFormatLines, &state);
  }
  write_header(media, {.fields = checkpoint_point::kFormatFields, .magic = checkpoint_point::kFormatMagic}, catalog,
               header);
  return CheckpointStore(std::move(catalog), std::move(data), header, std::move(media));
}

template <Media M>
auto CheckpointStore<M>::attach(Region catalog, KvStore<M> data, M media) -> Result<CheckpointStore> {
  CatalogHeader header;
  DUNNOCK_TRY(read_header(kHeaderKind, catalog, kCatalogLinesOffset, header));
  const std::uint64_t segment_bytes = data.log().value_bytes_max() + ValueLog<M>::kOverheadBytes;
  if (std::string what = wrong_with(header, segment_bytes); !what.empty())
    return kHeaderKind.refuse(ErrorCode::kCorrupt, what);
  if ((catalog.bytes() - kCatalogLinesOffset) / kLineBytes < header.lines)
    return kHeaderKind.refuse(ErrorCode::kCorrupt, "its lines do not fit its catalog");
  return CheckpointStore(std::move(catalog), std::move(data), header, std::move(media));
}

/// Does the region hold only free lines and part of a header?
template <Media M>
bool CheckpointStore<M>::is_unformatted(const Region& catalog, std::string_view name) noexcept {
  if (catalog.bytes() < kCatalogLinesOffset || word_of(catalog, 0) != 0) return false;
  const std::uint64_t id = catalog_name_hash(name);
  return is_blank(catalog, kCatalogLinesOffset, [id](std::uint64_t at) -> std::uint64_t {
    const std::uint64_t in_lines = at - kCatalogLinesOffset;
    return in_lines % kLineBytes == 0 ? catalog_free({id, in_lines / kLineBytes}) : 0;
  });
}

/// The regions that a crash has left of a creation in a pool of an older format: a catalog without a magic word, which
/// was made first there, and a KvStore in any state but used. Errors: AlreadyExists: other data exists.
template <Media M>
Result<std::vector<std::string>> CheckpointStore<M>::left_over(Pool& pool, std::string_view name) {
  const std::string catalog_name = std::string(name) + ".catalog";
  const std::string data_name = std::string(name) + ".data";
  const auto catalog = pool.open_region(catalog_name);
  // A KvStore without a catalog belongs to someone else. Its own creation handles what is left of one.
  if (!catalog) return std::vector<std::string>();
  if (!is_unformatted(*catalog, name))
    return make_error(ErrorCode::kAlreadyExists,
                      "there is a checkpoint store " + in_quotes(name) + " in " + pool.path());
  auto left = KvStore<M>::left_over(pool, data_name, true);
  if (left) left->push_back(catalog_name);
  return left;
}

template <Media M>
auto CheckpointStore<M>::create_in(PendingRegions& pending, std::string_view name, const CheckpointOptions& options,
                                   M media) -> Result<CheckpointStore> {
  DUNNOCK_TRY(check_options(options));
  Pool& pool = pending.pool();
  DUNNOCK_TRY(const auto left, left_over(pool, name));
  DUNNOCK_TRY(pool.remove_regions(left));
  const std::string catalog_name = std::string(name) + ".catalog";
  DUNNOCK_TRY(auto regions, pending.create(std::array{RegionSpec{catalog_name, catalog_bytes(options)}}));
  DUNNOCK_TRY(auto data, KvStore<M>::create_in(pending, std::string(name) + ".data", store_options(options), media));
  return format(regions.front(), std::move(data), options, std::move(media), name);
}

template <Media M>
auto CheckpointStore<M>::create(Pool& pool, std::string_view name, const CheckpointOptions& options, M media)
    -> Result<CheckpointStore> {
  return detail::create_structure(
      pool, [&](PendingRegions& pending) { return create_in(pending, name, options, std::move(media)); });
}

/// `options`, if not null: what the store must have been created with.
template <Media M>
auto CheckpointStore<M>::open_as(Pool& pool, std::string_view name, const CheckpointOptions* options, M media)
    -> Result<CheckpointStore> {
  DUNNOCK_TRY(auto catalog, pool.open_region(std::string(name) + ".catalog"));
  const std::string about = detail::about("checkpoint store", name, pool);
  if (word_of(catalog, 0) == 0 && left_over(pool, name)) return detail::never_finished(about);
  StoreOptions parts;
  typename KvStore<M>::Agreement agreement;
  if (options != nullptr) {
    CatalogHeader header;
    if (read_header(kHeaderKind, catalog, kCatalogLinesOffset, header))
      DUNNOCK_TRY(detail::check_agreed(
          about, std::array{detail::Agreed{"chunk_bytes", header.chunk_bytes, options->chunk_bytes},
                            detail::Agreed{"checkpoints_max", header.lines, options->checkpoints_max}}));
    parts = store_options(*options);
    agreement = {.index = &parts.index, .log = &parts.log};
  }
  DUNNOCK_TRY(auto data, KvStore<M>::open_as(pool, std::string(name) + ".data", agreement, media));
  return attach(catalog, std::move(data.store), std::move(media));
}

template <Media M>
auto CheckpointStore<M>::open(Pool& pool, std::string_view name, M media) -> Result<CheckpointStore> {
  return open_as(pool, name, nullptr, std::move(media));
}

template <Media M>
auto CheckpointStore<M>::open_or_create(Pool& pool, std::string_view name, const CheckpointOptions& options, M media)
    -> Result<CheckpointStore> {
  DUNNOCK_TRY(check_options(options));
  return detail::open_or_create_structure(
      pool, [&] { return open_as(pool, name, &options, media); },
      [&](PendingRegions& pending) { return create_in(pending, name, options, media); });
}

template <Media M>
auto CheckpointStore<M>::open_or_create(const std::string& path, std::string_view name,
                                        const CheckpointOptions& options) -> Result<InPool<CheckpointStore>>
requires PoolMedia<M> {
  DUNNOCK_TRY(check_options(options));
  return detail::open_or_create_in_file(path, pool_bytes(options), [&](Pool& pool) {
    return open_or_create(pool, name, options, detail::media_of<M>(pool));
  });
}

// ----- the catalog ------------------------------------------------------------------------------------------------

template <Media M>
std::optional<CatalogFields> CheckpointStore<M>::read_line(std::uint64_t line, bool* damaged) const noexcept {
  const CatalogLine& at = line_at(line);
  const std::uint64_t state = media_.load(at.state);
  if (state == catalog_free(place_of(line))) return std::nullopt;
  const CatalogFields fields{media_.load(at.manifest_id),     media_.load(at.manifest_bytes),
                             media_.load(at.name_hash),       media_.load(at.version),
                             media_.load(at.created_seconds), media_.load(at.tensor_bytes)};
  if (state == catalog_mark(fields, place_of(line))) return fields;
  if (damaged != nullptr) *damaged = true;
  return std::nullopt;
}

/// Under the mutex of the catalog.
template <Media M>
std::optional<std::uint64_t> CheckpointStore<M>::find_line(std::string_view name, std::uint64_t version) const {
  const std::uint64_t hash = catalog_name_hash(name);
  std::optional<std::uint64_t> best;
  std::uint64_t best_version = 0;
  for (std::uint64_t line = 0; line < lines_; ++line) {
    const auto fields = read_line(line);
    if (!fields || fields->name_hash != hash) continue;
    if (fields->version == version) return line;
    if (version != kLatestVersion || (best && fields->version < best_version)) continue;
    best = line;
    best_version = fields->version;
  }
  return best;
}

template <Media M>
std::uint64_t CheckpointStore<M>::pieces_of(std::uint64_t manifest_bytes) const noexcept {
  return (manifest_bytes + piece_bytes() - 1) / piece_bytes();
}

template <Media M>
Result<Manifest> CheckpointStore<M>::read_manifest(const CatalogFields& fields) const {
  std::vector<std::byte> bytes;
  for (std::uint64_t piece = 0; piece < pieces_of(fields.manifest_bytes); ++piece) {
    const auto found = data_.get(manifest_key(fields.manifest_id, piece));
    if (!found) return make_error(ErrorCode::kCorrupt, "a manifest is damaged or missing");
    bytes.insert(bytes.end(), found.bytes().begin(), found.bytes().end());
  }
  auto manifest = decode_manifest(bytes);
  if (!manifest) return manifest;
  if (manifest->version != fields.version || catalog_name_hash(manifest->name) != fields.name_hash ||
      manifest->chunk_bytes != chunk_bytes_)
    return make_error(ErrorCode::kCorrupt, "a manifest is that of another checkpoint");
  return manifest;
}

template <Media M>
Result<Manifest> CheckpointStore<M>::manifest_of(std::string_view name, std::uint64_t version) const {
  DUNNOCK_TRY(status());
  std::optional<CatalogFields> fields;
  {
    const std::lock_guard lock(shared_->catalog);
    // A newer one may be in a line that can't be read: an older one is not silently returned instead.
    const bool unsure = version == kLatestVersion && count_damaged() != 0;
    if (const auto line = find_line(name, version); line && !unsure) fields = read_line(*line);
  }
  if (!fields) return no_such(name, version);
  auto manifest = read_manifest(*fields);
  DUNNOCK_TRY(status());
  if (!manifest)
    return make_error(manifest.error().code, "checkpoint " + in_quotes(name) + " of version " +
                                                 std::to_string(fields->version) + ": " + manifest.error().message);
  return manifest;
}

/// The error that the checkpoint does not exist, as far as the catalog can be read.
template <Media M>
tl::unexpected<Error> CheckpointStore<M>::no_such(std::string_view name, std::uint64_t version) const {
  const std::uint64_t lines = damaged();
  const std::string what =
      in_quotes(name) + (version == kLatestVersion ? std::string() : " of version " + std::to_string(version));
  if (lines == 0) return make_error(ErrorCode::kNotFound, "no checkpoint " + what);
  return make_error(ErrorCode::kCorrupt,
                    std::to_string(lines) + " of the catalog's lines can't be read, so " +
                        (version == kLatestVersion ? "which checkpoint " + what + " is the newest can't be told"
                                                   : "whether there is a checkpoint " + what + " can't be told"));
}

template <Media M>
Result<Manifest> CheckpointStore<M>::manifest(std::string_view name, std::uint64_t version) const {
  DUNNOCK_TRY(status());
  const std::shared_lock gate(shared_->gate);
  return manifest_of(name, version);
}

template <Media M>
void CheckpointStore<M>::publish(std::uint64_t line, const CatalogFields& fields) {
  CatalogLine& at = line_at(line);
  media_.store(checkpoint_point::kFields, at.manifest_id, fields.manifest_id);
  media_.store(checkpoint_point::kFields, at.manifest_bytes, fields.manifest_bytes);
  media_.store(checkpoint_point::kFields, at.name_hash, fields.name_hash);
  media_.store(checkpoint_point::kFields, at.version, fields.version);
  media_.store(checkpoint_point::kFields, at.created_seconds, fields.created_seconds);
  media_.store(checkpoint_point::kFields, at.tensor_bytes, fields.tensor_bytes);
  media_.store(checkpoint_point::kPublish, at.state, catalog_mark(fields, place_of(line)));
  media_.flush(checkpoint_point::kPublish, &at);
  media_.fence(checkpoint_point::kPublish);  // The checkpoint exists.
}

// ----- saving -----------------------------------------------------------------------------------------------------

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
    if (bits_of(tensor.spec.dtype) == 0) return refuse("has no known dtype");
    if (tensor.spec.shape.size() > 255) return refuse("has more than 255 dimensions");
    if (!bytes) return refuse("is too large, or does not fill whole bytes");
    if (!tensor.read && !tensor.piece && tensor.bytes.size() != *bytes)
      return refuse("has bytes that do not fit its shape");
  }
  return {};
}

template <Media M>
Result<SaveReport> CheckpointStore<M>::save(std::string_view name, std::uint64_t version,
                                            std::span<const TensorSource> tensors, const SaveOptions& options) {
  if constexpr (kIsReadOnly<M>) return make_error(ErrorCode::kReadOnly, "the pool is open for reading only");
  const auto start = std::chrono::steady_clock::now();
  if (name.empty() || name.size() > 1024 || version == kLatestVersion)
    return make_error(ErrorCode::kInvalidArgument, "a checkpoint needs a name of 1 to 1024 bytes and a version");
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
    const auto there = find_line(name, version);
    if (there || shared.saving.contains(title)) {
      const auto fields = there ? read_line(*there) : std::nullopt;
      return make_error(ErrorCode::kAlreadyExists,
                        "checkpoint " + in_quotes(name) + " of version " + std::to_string(version) +
                            (fields && !read_manifest(*fields) ? " is there, but it is damaged: remove it first"
                                                               : " is there, or is being saved"));
    }
    while (save.line < lines_ && (media_.load(line_at(save.line).state) != catalog_free(place_of(save.line)) ||
                                  shared.lines_taken.contains(save.line)))
      ++save.line;
    if (save.line == lines_)
      return make_error(ErrorCode::kNoSpace, "there are " + std::to_string(lines_) + " checkpoints already");
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
  if (!write_manifest(save, fields)) return make_error(ErrorCode::kNoSpace, "there is no room for the manifest");
  const std::lock_guard lock(shared_->catalog);
  publish(save.line, fields);
  note_references(save.manifest);
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
    save.fail(readable.error().code, "tensor " + in_quotes(source.spec.name) + " can't be read at " +
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

// ----- restoring --------------------------------------------------------------------------------------------------

template <Media M>
Status CheckpointStore<M>::restore_chunk(const ManifestTensor& from, const TensorSink& to, std::uint64_t chunk) const {
  const std::uint64_t offset = chunk * chunk_bytes_;
  const std::uint64_t length = std::min<std::uint64_t>(chunk_bytes_, from.spec.bytes().value_or(0) - offset);
  const auto found = data_.get(from.chunks[chunk]);
  if (!found || found.bytes().size() != length)
    return make_error(ErrorCode::kCorrupt,
                      "tensor " + in_quotes(from.spec.name) + " is damaged at byte " + std::to_string(offset) +
                          ": its chunk " + (found.state == GetState::kMissing ? "is missing" : "fails its checksum"));
  if (!to.write) {
    if (length != 0) std::memcpy(to.bytes.data() + offset, found.bytes().data(), length);
  } else if (Status written = to.write(offset, found.bytes()); !written) {
    return make_error(written.error().code, "tensor " + in_quotes(from.spec.name) + " can't be written at " +
                                                std::to_string(offset) + ": " + written.error().message);
  }
  return {};
}

template <Media M>
Result<RestoreReport> CheckpointStore<M>::restore(std::string_view name, std::uint64_t version,
                                                  std::span<const TensorSink> tensors, unsigned threads) const {
  const auto start = std::chrono::steady_clock::now();
  DUNNOCK_TRY(detail::check_threads(threads, kCheckpointThreadsMax));
  DUNNOCK_TRY(status());
  const std::shared_lock gate(shared_->gate);  // What it reads is not collected.
  DUNNOCK_TRY(const auto manifest, manifest_of(name, version));
  RestoreReport report;
  report.version = manifest.version;
  std::map<std::string_view, const ManifestTensor*> by_name;
  for (const ManifestTensor& tensor : manifest.tensors) by_name[tensor.spec.name] = &tensor;
  std::vector<const ManifestTensor*> sources;
  std::vector<std::uint64_t> first_chunk{0};
  for (const TensorSink& sink : tensors) {
    const auto found = by_name.find(sink.spec.name);
    if (found == by_name.end())
      return make_error(ErrorCode::kNotFound, "checkpoint " + in_quotes(name) + " of version " +
                                                  std::to_string(manifest.version) + " has no tensor " +
                                                  in_quotes(sink.spec.name));
    const ManifestTensor& source = *found->second;
    if (!(source.spec == sink.spec))
      return make_error(ErrorCode::kInvalidArgument, "tensor " + in_quotes(sink.spec.name) + " is " +
                                                         describe(source.spec) + " in the checkpoint, expected " +
                                                         describe(sink.spec));
    const std::uint64_t bytes = source.spec.bytes().value_or(0);
    if (!sink.write && sink.bytes.size() != bytes)
      return make_error(ErrorCode::kInvalidArgument, "tensor " + in_quotes(sink.spec.name) + " has " +
                                                         std::to_string(bytes) + " bytes, and there is room for " +
                                                         std::to_string(sink.bytes.size()));
    sources.push_back(&source);
    first_chunk.push_back(first_chunk.back() + source.chunks.size());
    report.tensor_bytes += bytes;
  }
  std::atomic<std::uint64_t> next{0};
  std::atomic<bool> failed{false};
  std::mutex mutex;
  Status status;
  detail::run_on_threads(threads, [&] {
    while (!failed) {
      const std::uint64_t at = next.fetch_add(1);
      if (at >= first_chunk.back()) return;
      const auto tensor = static_cast<std::size_t>(std::upper_bound(first_chunk.begin(), first_chunk.end(), at) -
                                                   first_chunk.begin() - 1);
      Status done = restore_chunk(*sources[tensor], tensors[tensor], at - first_chunk[tensor]);
      if (done) continue;
      const std::lock_guard lock(mutex);
      if (!failed.exchange(true)) status = std::move(done);
    }
  });
  DUNNOCK_TRY(this->status());
  DUNNOCK_TRY(status);
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report;
}

// ----- all of them ------------------------------------------------------------------------------------------------

/// What the catalog has, line by line: of one name (by its hash) and what may be of it, or of all.
template <Media M>
auto CheckpointStore<M>::entries(std::optional<std::uint64_t> name_hash) const -> std::vector<Entry> {
  if (shared_->fork.is_child()) return {};
  const std::shared_lock gate(shared_->gate);
  const std::lock_guard lock(shared_->catalog);
  std::vector<Entry> all;
  for (std::uint64_t line = 0; line < lines_; ++line) {
    bool damaged = false;
    const auto fields = read_line(line, &damaged);
    if (!damaged && (!fields || (name_hash && fields->name_hash != *name_hash))) continue;
    CheckpointInfo& info = all.emplace_back().info;
    info.line = line;
    if (!fields) {
      info.status = make_error(ErrorCode::kCorrupt, "catalog line " + std::to_string(line) + " fails its checksum");
      continue;
    }
    all.back().name_hash = fields->name_hash;
    info.version = fields->version;
    info.created_seconds = fields->created_seconds;
    info.tensor_bytes = fields->tensor_bytes;
    if (const auto manifest = read_manifest(*fields)) {
      info.name = manifest->name;
      info.tensors = manifest->tensors.size();
    } else {
      info.status = tl::unexpected(manifest.error());
    }
  }
  return all;
}

template <Media M>
std::vector<CheckpointInfo> CheckpointStore<M>::sorted(std::vector<Entry> entries) {
  std::map<std::uint64_t, std::string> names;  // by their hash: one whose manifest can't be read may be another's too
  for (const Entry& entry : entries) {
    if (!entry.info.name.empty()) names[entry.name_hash] = entry.info.name;
  }
  std::vector<CheckpointInfo> all;
  for (Entry& entry : entries) {
    if (const auto name = names.find(entry.name_hash); name != names.end()) entry.info.name = name->second;
    all.push_back(std::move(entry.info));
  }
  std::sort(all.begin(), all.end(), [](const CheckpointInfo& a, const CheckpointInfo& b) {
    return std::tie(a.name, a.version, a.line) < std::tie(b.name, b.version, b.line);
  });
  return all;
}

template <Media M>
std::vector<CheckpointInfo> CheckpointStore<M>::list() const {
  return sorted(entries({}));
}

template <Media M>
std::vector<CheckpointInfo> CheckpointStore<M>::list(std::string_view name) const {
  const std::uint64_t hash = catalog_name_hash(name);
  std::vector<Entry> found = entries(hash);
  for (Entry& entry : found) {
    if (entry.name_hash == hash) entry.info.name = std::string(name);
  }
  return sorted(std::move(found));
}

template <Media M>
Result<std::optional<std::uint64_t>> CheckpointStore<M>::latest(std::string_view name) const {
  DUNNOCK_TRY(status());
  if (damaged() != 0) return no_such(name, kLatestVersion);
  const std::lock_guard lock(shared_->catalog);
  const auto line = find_line(name, kLatestVersion);
  if (!line) return std::nullopt;
  const auto fields = read_line(*line);
  DUNNOCK_TRY(status());
  return fields ? std::optional(fields->version) : std::nullopt;
}

template <Media M>
Status CheckpointStore<M>::verify(std::string_view name, std::uint64_t version) const {
  DUNNOCK_TRY(status());
  const std::shared_lock gate(shared_->gate);
  DUNNOCK_TRY(const auto manifest, manifest_of(name, version));
  for (const ManifestTensor& tensor : manifest.tensors) {
    for (std::size_t chunk = 0; chunk < tensor.chunks.size(); ++chunk) {
      const auto found = data_.get(tensor.chunks[chunk]);
      DUNNOCK_TRY(status());
      if (!found || !(chunk_digest(found.bytes()).key == tensor.chunks[chunk]))
        return make_error(ErrorCode::kCorrupt, "tensor " + in_quotes(tensor.spec.name) + " is damaged at byte " +
                                                   std::to_string(chunk * chunk_bytes_));
    }
  }
  return {};
}

template <Media M>
Result<CheckpointDiff> CheckpointStore<M>::diff(std::string_view first_name, std::uint64_t first_version,
                                                std::string_view second_name, std::uint64_t second_version) const {
  DUNNOCK_TRY(status());
  const std::shared_lock gate(shared_->gate);
  DUNNOCK_TRY(const auto first, manifest_of(first_name, first_version));
  DUNNOCK_TRY(const auto second, manifest_of(second_name, second_version));
  std::unordered_set<IndexKey, KeyHash> there;
  std::map<std::string_view, const ManifestTensor*> before, after;
  for (const ManifestTensor& tensor : first.tensors) {
    before[tensor.spec.name] = &tensor;
    there.insert(tensor.chunks.begin(), tensor.chunks.end());
  }
  CheckpointDiff diff;
  for (const ManifestTensor& tensor : second.tensors) {
    after[tensor.spec.name] = &tensor;
    const std::uint64_t bytes = tensor.spec.bytes().value_or(0);
    for (std::size_t chunk = 0; chunk < tensor.chunks.size(); ++chunk) {
      if (there.insert(tensor.chunks[chunk]).second)
        diff.changed_bytes += std::min<std::uint64_t>(chunk_bytes_, bytes - chunk * chunk_bytes_);
    }
    const auto old = before.find(tensor.spec.name);
    if (old == before.end()) {
      diff.added.push_back(tensor.spec.name);
    } else if (!(old->second->spec == tensor.spec)) {
      diff.reshaped.push_back(tensor.spec.name);
    } else {
      (old->second->chunks == tensor.chunks ? diff.same : diff.changed).push_back(tensor.spec.name);
    }
  }
  for (const ManifestTensor& tensor : first.tensors) {
    if (!after.contains(tensor.spec.name)) diff.removed.push_back(tensor.spec.name);
  }
  return diff;
}

/// Removes the checkpoint, durably. Under the mutex of the catalog.
template <Media M>
void CheckpointStore<M>::clear_line(std::uint64_t line) {
  media_.store(checkpoint_point::kRemove, line_at(line).state, catalog_free(place_of(line)));
  media_.flush(checkpoint_point::kRemove, &line_at(line));
  media_.fence(checkpoint_point::kRemove);
}

template <Media M>
Status CheckpointStore<M>::remove(std::string_view name, std::uint64_t version) {
  if constexpr (kIsReadOnly<M>) return make_error(ErrorCode::kReadOnly, "the pool is open for reading only");
  DUNNOCK_TRY(status());
  Shared& shared = *shared_;
  bool missing = false;
  {
    const std::lock_guard lock(shared.catalog);
    const auto line = find_line(name, version);
    missing = !line || (version == kLatestVersion && count_damaged() != 0);
  }
  if (missing) return no_such(name, version);
  {
    const std::lock_guard lock(shared.catalog);
    const auto line = find_line(name, version);
    const auto fields = line ? read_line(*line) : std::nullopt;
    if (!fields) return make_error(ErrorCode::kNotFound, "checkpoint " + in_quotes(name) + " has just been removed");
    auto manifest = read_manifest(*fields);
    count_references();
    clear_line(*line);
    DUNNOCK_TRY(status());
    // Without its manifest it is unknown what only it needed; collect() finds out.
    if (manifest) shared.removed.emplace_back(*fields, std::move(*manifest));
  }
  give_back_removed();
  return status();
}

/// Erases what only removed checkpoints needed, if no save or restore is in progress; otherwise the last of them does.
template <Media M>
void CheckpointStore<M>::give_back_removed() {
  Shared& shared = *shared_;
  const std::unique_lock gate(shared.gate, std::try_to_lock);
  if (!gate.owns_lock() || !status()) return;
  const std::lock_guard lock(shared.catalog);
  std::vector<IndexKey> unneeded;
  for (const auto& [fields, manifest] : shared.removed) {
    for (const ManifestTensor& tensor : manifest.tensors) {
      for (const IndexKey& chunk : tensor.chunks) {
        const auto count = shared.references->find(chunk);
        if (count == shared.references->end() || --count->second != 0) continue;
        shared.references->erase(count);
        // A save that waits for room may rely on it.
        const bool counted_upon = std::any_of(shared.saving.begin(), shared.saving.end(), [&chunk](const auto& saving) {
          return saving.second->writing.contains(chunk);
        });
        if (!shared.references_unsure && !counted_upon) unneeded.push_back(chunk);
      }
    }
    for (std::uint64_t piece = 0; piece < pieces_of(fields.manifest_bytes); ++piece)
      unneeded.push_back(manifest_key(fields.manifest_id, piece));
  }
  data_.erase_bulk(unneeded);
  shared.removed.clear();
}

/// Counts how often existing checkpoints name each chunk. Under the mutex of the catalog.
template <Media M>
void CheckpointStore<M>::count_references() {
  Shared& shared = *shared_;
  if (shared.references) return;
  shared.references.emplace();
  for (std::uint64_t line = 0; line < lines_; ++line) {
    bool damaged = false;
    const auto fields = read_line(line, &damaged);
    const auto manifest = fields ? read_manifest(*fields) : Result<Manifest>(Manifest{});
    // What a damaged checkpoint needs is unknown, so nothing that it may need is erased.
    shared.references_unsure = shared.references_unsure || damaged || !manifest;
    if (manifest) note_references(*manifest);
  }
}

template <Media M>
void CheckpointStore<M>::note_references(const Manifest& manifest) {
  if (!shared_->references) return;
  for (const ManifestTensor& tensor : manifest.tensors) {
    for (const IndexKey& chunk : tensor.chunks) ++(*shared_->references)[chunk];
  }
}

template <Media M>
std::uint64_t CheckpointStore<M>::damaged() const {
  if (shared_->fork.is_child()) return 0;
  const std::lock_guard lock(shared_->catalog);
  return count_damaged();
}

/// Under the mutex of the catalog.
template <Media M>
std::uint64_t CheckpointStore<M>::count_damaged() const {
  std::uint64_t count = 0;
  for (std::uint64_t line = 0; line < lines_; ++line) {
    bool damaged = false;
    (void)read_line(line, &damaged);
    count += damaged ? 1 : 0;
  }
  return count;
}

template <Media M>
std::uint64_t CheckpointStore<M>::forget_damaged() {
  if constexpr (kIsReadOnly<M>) return 0;
  if (!status()) return 0;
  const std::lock_guard lock(shared_->catalog);
  std::uint64_t count = 0;
  for (std::uint64_t line = 0; line < lines_; ++line) {
    bool damaged = false;
    const auto fields = read_line(line, &damaged);
    if (fields) {
      const auto manifest = read_manifest(*fields);
      damaged = !manifest && manifest.error().code == ErrorCode::kCorrupt;  // Not one that a later release has written.
    }
    if (!damaged) continue;
    clear_line(line);
    count += status() ? 1 : 0;
  }
  return count;
}

template <Media M>
Status CheckpointStore<M>::check_retention(const Retention& retention) {
  if (retention.keep_last == 0)
    return make_error(ErrorCode::kInvalidArgument, "at least the newest version is to be kept: 0 would remove all");
  return {};
}

template <Media M>
Result<RetainReport> CheckpointStore<M>::retain(std::string_view name, const Retention& retention) {
  if constexpr (kIsReadOnly<M>) return make_error(ErrorCode::kReadOnly, "the pool is open for reading only");
  DUNNOCK_TRY(check_retention(retention));
  DUNNOCK_TRY(status());
  std::vector<std::uint64_t> versions;
  {
    const std::lock_guard lock(shared_->catalog);
    const std::uint64_t hash = catalog_name_hash(name);
    for (std::uint64_t line = 0; line < lines_; ++line) {
      const auto fields = read_line(line);
      if (fields && fields->name_hash == hash) versions.push_back(fields->version);
    }
  }
  std::sort(versions.rbegin(), versions.rend());
  RetainReport report;
  std::uint64_t kept = 0;
  for (const std::uint64_t version : versions) {
    if (kept < retention.keep_last) {
      // A checkpoint that can't be read is not one to fall back on.
      ++(manifest(name, version) ? kept : report.damaged);
      continue;
    }
    if (retention.keep_every != 0 && version % retention.keep_every == 0) continue;
    report.removed += remove(name, version) ? 1 : 0;
  }
  DUNNOCK_TRY(status());
  return report;
}

template <Media M>
Result<std::uint64_t> CheckpointStore<M>::collect() {
  if constexpr (kIsReadOnly<M>) return make_error(ErrorCode::kReadOnly, "the pool is open for reading only");
  DUNNOCK_TRY(status());
  Shared& shared = *shared_;
  const std::unique_lock gate(shared.gate);
  const std::lock_guard lock(shared.catalog);
  std::unordered_set<IndexKey, KeyHash> needed;
  for (std::uint64_t line = 0; line < lines_; ++line) {
    bool damaged = false;
    const auto fields = read_line(line, &damaged);
    // What a damaged one needs is unknown, so nothing is erased.
    const auto refuse = [line](ErrorCode code, const std::string& why) {
      return make_error(code, "no space is given back while a checkpoint can't be read: catalog line " +
                                  std::to_string(line) + ": " + why);
    };
    if (damaged) return refuse(ErrorCode::kCorrupt, "it fails its checksum");
    if (!fields) continue;
    const auto manifest = read_manifest(*fields);
    if (!manifest) return refuse(manifest.error().code, manifest.error().message);
    for (const ManifestTensor& tensor : manifest->tensors) needed.insert(tensor.chunks.begin(), tensor.chunks.end());
    for (std::uint64_t piece = 0; piece < pieces_of(fields->manifest_bytes); ++piece)
      needed.insert(manifest_key(fields->manifest_id, piece));
  }
  for (const auto& [title, save] : shared.saving) needed.insert(save->writing.begin(), save->writing.end());
  std::vector<IndexKey> garbage;
  // What the index can't read stays.
  (void)data_.index().for_each([&](const IndexKey& key, const IndexValue&) {
    if (!needed.contains(key)) garbage.push_back(key);
  });
  data_.erase_bulk(garbage);
  DUNNOCK_TRY(status());
  shared.removed.clear();
  shared.references.reset();  // They still count what was removed.
  shared.references_unsure = false;
  return garbage.size();
}

template <Media M>
CheckpointCheck CheckpointStore<M>::check() const {
  CheckpointCheck report;
  const auto violated = [&report](std::string what) {
    if (report.violations.size() < 100) report.violations.push_back(std::move(what));
  };
  for (const std::string& one : data_.check().violations) violated(one);
  for (std::uint64_t line = 0; line < lines_; ++line) {
    bool damaged = false;
    const auto fields = read_line(line, &damaged);
    if (damaged) violated("catalog line " + std::to_string(line) + " fails its checksum");
    if (!fields) continue;
    ++report.checkpoints;
    const auto manifest = read_manifest(*fields);
    if (!manifest) {
      violated("catalog line " + std::to_string(line) + ": " + manifest.error().message);
      continue;
    }
    for (const ManifestTensor& tensor : manifest->tensors) {
      for (std::size_t chunk = 0; chunk < tensor.chunks.size(); ++chunk, ++report.chunks_read) {
        const auto found = data_.get(tensor.chunks[chunk]);
        if (!found || !(chunk_digest(found.bytes()).key == tensor.chunks[chunk]))
          violated("checkpoint " + in_quotes(manifest->name) + " of version " + std::to_string(manifest->version) +
                   ": tensor " + in_quotes(tensor.spec.name) + " is damaged at byte " +
                   std::to_string(chunk * chunk_bytes_));
      }
    }
  }
  return report;
}

}  // namespace dunnock
