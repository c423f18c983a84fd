// Part of CheckpointStore: looking at checkpoints.
#pragma once

#include <algorithm>
#include <map>
#include <unordered_set>

#include "dunnock/base/printable.hpp"

namespace dunnock {

// ----- one of them ------------------------------------------------------------------------------------------------

template <Media M>
std::uint64_t CheckpointStore<M>::pieces_of(std::uint64_t manifest_bytes) const noexcept {
  return (manifest_bytes + piece_bytes() - 1) / piece_bytes();
}

template <Media M>
Result<Manifest> CheckpointStore<M>::read_manifest(const CatalogFields& fields) const {
  std::vector<std::byte> bytes;
  for (std::uint64_t piece = 0; piece < pieces_of(fields.manifest_bytes); ++piece) {
    const auto found = data_.get(manifest_key(fields.manifest_id, piece));
    if (!found) return make_error(ErrorCode::kCorrupt, "its manifest is damaged or missing");
    bytes.insert(bytes.end(), found.bytes().begin(), found.bytes().end());
  }
  auto manifest = decode_manifest(bytes);
  if (!manifest) return manifest;
  if (manifest->version != fields.version || catalog_name_hash(manifest->name) != fields.name_hash ||
      manifest->chunk_bytes != chunk_bytes_)
    return make_error(ErrorCode::kCorrupt, "its manifest belongs to another checkpoint");
  return manifest;
}

template <Media M>
Result<Manifest> CheckpointStore<M>::manifest_of(std::string_view name, std::uint64_t version) const {
  DUNNOCK_TRY(status());
  std::optional<CatalogFields> fields;
  {
    const std::lock_guard lock(shared_->catalog);
    // A newer one may be in a line that can't be read: an older one is not silently returned instead.
    const bool unsure = version == kLatestVersion && catalog_.count_damaged() != 0;
    if (const auto line = catalog_.find(name, version); line && !unsure) fields = catalog_.read(*line);
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
  if (lines == 0) return make_error(ErrorCode::kNotFound, "checkpoint " + what + " does not exist");
  return make_error(ErrorCode::kCorrupt,
                    std::to_string(lines) + " of the catalog's lines can't be read, so " +
                        (version == kLatestVersion ? "the newest version of checkpoint " + what + " is unknown"
                                                   : "it is unknown whether checkpoint " + what + " exists"));
}

template <Media M>
Result<Manifest> CheckpointStore<M>::manifest(std::string_view name, std::uint64_t version) const {
  DUNNOCK_TRY(status());
  const std::shared_lock gate(shared_->gate);
  return manifest_of(name, version);
}

// ----- all of them ------------------------------------------------------------------------------------------------

/// What the catalog has, line by line: of one name (by its hash) and what may be of it, or of all.
template <Media M>
auto CheckpointStore<M>::entries(std::optional<std::uint64_t> name_hash) const -> std::vector<Entry> {
  if (shared_->fork.is_child()) return {};
  const std::shared_lock gate(shared_->gate);
  const std::lock_guard lock(shared_->catalog);
  std::vector<Entry> all;
  for (std::uint64_t line = 0; line < catalog_.lines(); ++line) {
    bool damaged = false;
    const auto fields = catalog_.read(line, &damaged);
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
  const auto line = catalog_.find(name, kLatestVersion);
  if (!line) return std::nullopt;
  const auto fields = catalog_.read(*line);
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
  std::unordered_set<IndexKey, detail::KeyHash> there;
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

template <Media M>
CheckpointCheck CheckpointStore<M>::check() const {
  CheckpointCheck report;
  const auto violated = [&report](std::string what) {
    if (report.violations.size() < 100) report.violations.push_back(std::move(what));
  };
  for (const std::string& one : data_.check().violations) violated(one);
  for (std::uint64_t line = 0; line < catalog_.lines(); ++line) {
    bool damaged = false;
    const auto fields = catalog_.read(line, &damaged);
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
