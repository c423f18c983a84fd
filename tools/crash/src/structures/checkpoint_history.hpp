// Histories of a CheckpointStore: a few versions of a few small tensors, saved, removed and collected, so that crashes
// fall between the chunks, the manifest and the catalog line of a checkpoint.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "dunnock/index/checkpoint_store.hpp"
#include "history_subject.hpp"
#include "image_media.hpp"
#include "store_memory.hpp"
#include "value_history.hpp"

namespace dunnock::crash {

struct CheckpointOperation {
  enum class Kind : std::uint8_t { kChange, kCollect, kRestore };
  Kind kind;
  std::uint64_t version;
};

/// What does not depend on the media that the history is recorded on. The value of a version is its contents, a number.
class CheckpointHistory : public HistorySubject {
 public:
  using Checked = CheckpointStore<ImageMedia>;

  [[nodiscard]] std::size_t bytes() const override { return memory_.bytes() + catalog_bytes_; }
  [[nodiscard]] std::size_t operations() const override { return operations_.size(); }
  std::optional<std::string> check(std::byte* image, std::size_t events, std::size_t more) override;
  [[nodiscard]] bool recovery_has_work(const std::byte* image) const override;
  [[nodiscard]] std::string describe(std::size_t operation) const override;

 protected:
  static constexpr std::size_t kVersions = 5;
  static constexpr const char* kName = "run";

  explicit CheckpointHistory(const Workload& workload);

  /// Forgets the record before, and saves the first versions.
  void begin_checkpoint_record(std::byte* memory);

  // The catalog comes last when it is made and first when it is opened, so that nothing else stands in for its steps.
  template <class M>
  Result<CheckpointStore<M>> format(std::byte* memory, M media) const {
    DUNNOCK_TRY(auto store, memory_.format(memory, media));
    return CheckpointStore<M>::format(catalog(memory), std::move(store), options_, media);
  }
  template <class M>
  Result<CheckpointStore<M>> attach(std::byte* memory, M media) const {
    std::uint64_t magic;
    std::memcpy(&magic, memory + memory_.bytes(), sizeof magic);
    if (magic != kCatalogMagic) return make_error(ErrorCode::kWrongLayout, "the catalog is missing");
    DUNNOCK_TRY(auto store, memory_.attach(memory, media));
    return CheckpointStore<M>::attach(catalog(memory), std::move(store), media);
  }

  /// Three tensors; those of neighboring contents share some chunks.
  static std::vector<std::vector<std::byte>> tensors_of(std::uint64_t contents);
  static TensorSpec spec_of(std::size_t tensor, std::size_t bytes) {
    return {std::string(1, static_cast<char>('a' + tensor)), Dtype::kU8, {bytes}};
  }
  template <class Store>
  static bool save(Store& store, std::uint64_t version, std::uint64_t contents) {
    const auto tensors = tensors_of(contents);
    std::vector<TensorSource> sources;
    for (std::size_t i = 0; i < tensors.size(); ++i)
      sources.push_back({spec_of(i, tensors[i].size()), tensors[i], {}, {}});
    return store.save(kName, version, sources).has_value();
  }
  /// None when the version is missing, a number that no contents have when it is wrong.
  template <class Store>
  static ValueHistory::Value value_in(const Store& store, std::uint64_t version) {
    auto tensors = tensors_of(0);
    std::vector<TensorSink> sinks;
    for (std::size_t i = 0; i < tensors.size(); ++i)
      sinks.push_back({spec_of(i, tensors[i].size()), tensors[i], {}});
    const auto restored = store.restore(kName, version, sinks);
    if (!restored) return restored.error().code == ErrorCode::kNotFound ? ValueHistory::Value() : ~0ULL;
    std::uint64_t contents;
    std::memcpy(&contents, tensors[2].data(), sizeof contents);
    return tensors == tensors_of(contents) ? contents : ~0ULL;
  }

  std::vector<CheckpointOperation> operations_;
  std::uint64_t contents_ = 1;
  ValueHistories values_;

 private:
  void generate();
  std::optional<std::string> compare(const Checked& store, const char* when) const;
  [[nodiscard]] Region catalog(std::byte* memory) const {
    return StoreMemory::region(memory + memory_.bytes(), catalog_bytes_);
  }

  StoreMemory memory_;
  CheckpointOptions options_;
  std::uint64_t catalog_bytes_ = 0;
  std::uint64_t prefill_ = 0;
};

}  // namespace dunnock::crash
