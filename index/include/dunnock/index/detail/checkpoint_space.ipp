// Part of CheckpointStore: removing checkpoints, and freeing the space of what none needs.
#pragma once

#include <algorithm>
#include <unordered_set>

#include "dunnock/base/printable.hpp"

namespace dunnock {

template <Media M>
Status CheckpointStore<M>::remove(std::string_view name, std::uint64_t version) {
  if constexpr (kIsReadOnly<M>) return make_error(ErrorCode::kReadOnly, "the pool is open read-only");
  DUNNOCK_TRY(status());
  Shared& shared = *shared_;
  bool missing = false;
  {
    const std::lock_guard lock(shared.catalog);
    const auto line = catalog_.find(name, version);
    missing = !line || (version == kLatestVersion && catalog_.count_damaged() != 0);
  }
  if (missing) return no_such(name, version);
  {
    const std::lock_guard lock(shared.catalog);
    const auto line = catalog_.find(name, version);
    const auto fields = line ? catalog_.read(*line) : std::nullopt;
    if (!fields) return make_error(ErrorCode::kNotFound, "checkpoint " + in_quotes(name) + " has just been removed");
    auto manifest = read_manifest(*fields);
    count_references();
    catalog_.clear(*line);
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
        if (!shared.references.drop(chunk)) continue;
        // A save that waits for room may rely on it.
        const bool counted_upon = std::any_of(shared.saving.begin(), shared.saving.end(), [&chunk](const auto& saving) {
          return saving.second->writing.contains(chunk);
        });
        if (!shared.references.unsure() && !counted_upon) unneeded.push_back(chunk);
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
  if (shared.references.counted()) return;
  shared.references.start();
  for (std::uint64_t line = 0; line < catalog_.lines(); ++line) {
    bool damaged = false;
    const auto fields = catalog_.read(line, &damaged);
    const auto manifest = fields ? read_manifest(*fields) : Result<Manifest>(Manifest{});
    // What a damaged checkpoint needs is unknown, so nothing that it may need is erased.
    if (damaged || !manifest) shared.references.be_unsure();
    if (manifest) shared.references.note(*manifest);
  }
}

template <Media M>
std::uint64_t CheckpointStore<M>::damaged() const {
  if (shared_->fork.is_child()) return 0;
  const std::lock_guard lock(shared_->catalog);
  return catalog_.count_damaged();
}

template <Media M>
std::uint64_t CheckpointStore<M>::forget_damaged() {
  if constexpr (kIsReadOnly<M>) return 0;
  if (!status()) return 0;
  const std::lock_guard lock(shared_->catalog);
  std::uint64_t count = 0;
  for (std::uint64_t line = 0; line < catalog_.lines(); ++line) {
    bool damaged = false;
    const auto fields = catalog_.read(line, &damaged);
    if (fields) {
      const auto manifest = read_manifest(*fields);
      damaged = !manifest && manifest.error().code == ErrorCode::kCorrupt;  // Not one that a later release has written.
    }
    if (!damaged) continue;
    catalog_.clear(line);
    count += status() ? 1 : 0;
  }
  return count;
}

template <Media M>
Status CheckpointStore<M>::check_retention(const Retention& retention) {
  if (retention.keep_last == 0)
    return make_error(ErrorCode::kInvalidArgument,
                      "keep_last is 0, which would remove all versions: it must be at least 1");
  return {};
}

template <Media M>
Result<RetainReport> CheckpointStore<M>::retain(std::string_view name, const Retention& retention) {
  if constexpr (kIsReadOnly<M>) return make_error(ErrorCode::kReadOnly, "the pool is open read-only");
  DUNNOCK_TRY(check_retention(retention));
  DUNNOCK_TRY(status());
  std::vector<std::uint64_t> versions;
  {
    const std::lock_guard lock(shared_->catalog);
    const std::uint64_t hash = catalog_name_hash(name);
    for (std::uint64_t line = 0; line < catalog_.lines(); ++line) {
      const auto fields = catalog_.read(line);
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
  if constexpr (kIsReadOnly<M>) return make_error(ErrorCode::kReadOnly, "the pool is open read-only");
  DUNNOCK_TRY(status());
  Shared& shared = *shared_;
  const std::unique_lock gate(shared.gate);
  const std::lock_guard lock(shared.catalog);
  std::unordered_set<IndexKey, detail::KeyHash> needed;
  for (std::uint64_t line = 0; line < catalog_.lines(); ++line) {
    bool damaged = false;
    const auto fields = catalog_.read(line, &damaged);
    // What a damaged one needs is unknown, so nothing is erased.
    const auto refuse = [line](ErrorCode code, const std::string& why) {
      return make_error(code, "space can't be freed while a checkpoint is unreadable: catalog line " +
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
  return garbage.size();
}

}  // namespace dunnock
