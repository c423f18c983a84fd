// Part of CheckpointStore: restoring.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstring>
#include <map>

#include "dunnock/base/printable.hpp"
#include "dunnock/index/detail/run_on_threads.hpp"

namespace dunnock {

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
    return make_error(written.error().code, "tensor " + in_quotes(from.spec.name) + " can't be written at byte " +
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
                                                         std::to_string(bytes) + " bytes, but its destination has " +
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

}  // namespace dunnock
