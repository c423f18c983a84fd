// Where a KvStore of one small segment and its log are in simulated memory.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "dunnock/index/kv_store.hpp"
#include "image_media.hpp"

namespace dunnock::crash {

//   | header and directory of the index | its segment | header of the log | its segments | what the subject adds
class StoreMemory {
 public:
  static constexpr std::uint32_t kGroups = 2;  // of the segment
  static std::uint64_t segment_bytes() { return KvIndex<ImageMedia>::segment_bytes(kGroups); }

  StoreMemory() = default;
  /// The index has only one segment, whatever the options say.
  explicit StoreMemory(StoreOptions options) : options_(options) {
    options_.index.segment_groups = kGroups;
    options_.index.bytes_max = segment_bytes();
    index_meta_bytes_ = KvIndex<ImageMedia>::meta_bytes(options_.index);
    log_meta_at_ = index_meta_bytes_ + segment_bytes();
    log_meta_bytes_ = ValueLog<ImageMedia>::meta_bytes(options_.log);
    log_at_ = log_meta_at_ + log_meta_bytes_;
    log_bytes_ = ValueLog<ImageMedia>::data_bytes(options_.log);
  }
  [[nodiscard]] std::uint64_t bytes() const { return log_at_ + log_bytes_; }

  static Region region(std::byte* at, std::uint64_t bytes) { return Region({at}, bytes, std::bit_ceil(bytes)); }

  // The log comes last when it is made and first when it is opened, so that nothing else stands in for its steps.
  template <class M>
  Result<KvStore<M>> format(std::byte* memory, M media) const {
    DUNNOCK_TRY(auto index, KvIndex<M>::format(index_meta(memory), chunks(memory), options_.index, media));
    DUNNOCK_TRY(auto log, ValueLog<M>::format(log_meta(memory), log_data(memory), options_.log, media));
    return KvStore<M>(std::move(index), std::move(log));
  }
  template <class M>
  Result<KvStore<M>> attach(std::byte* memory, M media) const {
    DUNNOCK_TRY(auto log, ValueLog<M>::attach(log_meta(memory), log_data(memory), media));
    DUNNOCK_TRY(auto index, KvIndex<M>::attach(index_meta(memory), chunks(memory), media));
    return KvStore<M>(std::move(index.index), std::move(log));
  }

 private:
  [[nodiscard]] Region index_meta(std::byte* memory) const { return region(memory, index_meta_bytes_); }
  [[nodiscard]] Region log_meta(std::byte* memory) const { return region(memory + log_meta_at_, log_meta_bytes_); }
  [[nodiscard]] Region log_data(std::byte* memory) const { return region(memory + log_at_, log_bytes_); }
  [[nodiscard]] IndexMemory chunks(std::byte* memory) const {
    std::byte* first = memory + index_meta_bytes_;
    const auto chunk = [first](unsigned, std::uint64_t bytes) -> Result<Region> { return region(first, bytes); };
    return {chunk, chunk};
  }

  StoreOptions options_{.index = {.seed = {}}, .log = {}};
  std::uint64_t index_meta_bytes_ = 0, log_meta_at_ = 0, log_meta_bytes_ = 0, log_at_ = 0, log_bytes_ = 0;
};

}  // namespace dunnock::crash
