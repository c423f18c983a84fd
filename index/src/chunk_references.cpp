#include "dunnock/index/detail/chunk_references.hpp"

namespace dunnock::detail {

void ChunkReferences::reset() noexcept {
  counts_.reset();
  unsure_ = false;
}

void ChunkReferences::note(const Manifest& manifest) {
  if (!counts_) return;
  for (const ManifestTensor& tensor : manifest.tensors) {
    for (const IndexKey& chunk : tensor.chunks) ++(*counts_)[chunk];
  }
}

bool ChunkReferences::drop(const IndexKey& chunk) {
  if (!counts_) return false;
  const auto count = counts_->find(chunk);
  if (count == counts_->end() || --count->second != 0) return false;
  counts_->erase(count);
  return true;
}

}  // namespace dunnock::detail
