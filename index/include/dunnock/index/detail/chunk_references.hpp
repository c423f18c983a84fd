// How often the manifests of the existing checkpoints name each chunk: what a removed checkpoint alone needed.
//
// Counted from all manifests when first needed, and kept up to date then. Not thread-safe: callers hold the store's
// mutex of the catalog.
#pragma once

#include <cstdint>
#include <optional>
#include <unordered_map>

#include "dunnock/index/detail/key_hash.hpp"
#include "dunnock/index/index_format.hpp"
#include "dunnock/index/manifest.hpp"

namespace dunnock::detail {

class ChunkReferences {
 public:
  [[nodiscard]] bool counted() const noexcept { return counts_.has_value(); }
  /// Begins to count: note() follows for each manifest that exists.
  void start() { counts_.emplace(); }
  /// They no longer count what exists.
  void reset() noexcept;
  /// A checkpoint exists whose manifest can't be read, so what it needs is unknown.
  void be_unsure() noexcept { unsure_ = true; }
  [[nodiscard]] bool unsure() const noexcept { return unsure_; }

  /// A checkpoint with this manifest exists. Ignored unless counted().
  void note(const Manifest& manifest);
  /// A manifest that names the chunk is gone. True: no other names it.
  [[nodiscard]] bool drop(const IndexKey& chunk);

 private:
  std::optional<std::unordered_map<IndexKey, std::uint32_t, KeyHash>> counts_;
  bool unsure_ = false;
};

}  // namespace dunnock::detail
