// Histories of an index: segments of two groups, nearly full, so that the next puts split them; and a checker that
// knows which value each key may have.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "dunnock/crash/sequential_objects.hpp"
#include "dunnock/index/kv_index.hpp"
#include "history_subject.hpp"
#include "image_media.hpp"
#include "value_history.hpp"

namespace dunnock::crash {

struct IndexOperation {
  enum class Kind : std::uint8_t {
    kPut,
    kErase,
    kGet,
    kPutBulk,
    kGetBulk,
    kEraseBulk,
    kReplaceIf,
    kMayContain,
    kReopen
  };
  Kind kind;
  unsigned thread;
  std::vector<std::size_t> keys;
  bool follows = false;  // a key that another thread is at instead, if there is one
};

/// What does not depend on the media that the history is recorded on.
class IndexHistory : public HistorySubject {
 public:
  using Checked = KvIndex<ImageMedia>;
  static constexpr std::uint32_t kGroups = 2;
  static constexpr std::size_t kSegmentLanes = kGroups * kIndexGroupLanes;

  [[nodiscard]] std::size_t bytes() const override {
    return meta_bytes_ + segments_max_ * Checked::segment_bytes(kGroups);
  }
  [[nodiscard]] std::size_t operations() const override { return operations_.size(); }
  std::optional<std::string> check(std::byte* image, std::size_t events, std::size_t more) override;
  [[nodiscard]] bool recovery_has_work(const std::byte* image) const override;
  [[nodiscard]] bool is_unseen(Point point) const override;
  [[nodiscard]] std::string describe(std::size_t operation) const override;

 protected:
  explicit IndexHistory(const Workload& workload);

  /// Values differ in every byte and in their length, so that a mixture is found out.
  static IndexValue value_of(std::uint64_t number);
  static std::uint64_t number_of(const IndexValue& value);
  static ValueHistory::Value seen_in(const GetResult& found) {
    return found ? ValueHistory::Value(number_of(found.value)) : std::nullopt;
  }

  [[nodiscard]] Region meta(std::byte* memory) const;
  [[nodiscard]] IndexMemory chunks(std::byte* memory) const;
  [[nodiscard]] const IndexOptions& options() const { return options_; }

  /// Forgets the record before, and puts the residents.
  void begin_index_record(std::byte* memory);
  /// With one segment any key has room while a lane is free, or points to no entry.
  [[nodiscard]] bool must_have_room(std::size_t entries) const {
    return segments_max_ == 1 && entries <= kSegmentLanes;
  }
  /// The keys of an operation that follows: those that others are at, or a resident, which a split may be moving.
  void follow(std::vector<std::size_t>& keys);
  void wrong(const std::string& what, std::size_t key) {
    violation_ = "while running: key #" + std::to_string(key) + " " + what;
  }

  std::vector<IndexKey> keys_;
  std::vector<std::size_t> twin_;  // the key that shares fingerprint, bucket and segment; or the key itself
  std::vector<IndexOperation> operations_;
  std::uint64_t next_value_ = 1;
  UnderWay under_way_;  // keys that are being changed
  CallsOfKeys<MapKey> calls_;
  ValueHistories values_;
  std::optional<std::string> recover_violation_;

 private:
  class Generator;
  static constexpr std::size_t kLookedAtEvery = 512;  // Most images have such work, and each costs thousands more.

  [[nodiscard]] std::optional<std::string> compare(const Checked& index, std::uint64_t entries,
                                                   std::uint64_t& found) const;
  [[nodiscard]] std::optional<std::string> put_and_erase_again(Checked& index, std::size_t events) const;

  std::uint64_t initial_segments_ = 1;
  std::uint64_t segments_max_ = 1;
  IndexOptions options_{.seed = {}};
  std::uint64_t meta_bytes_ = 0;
  bool clean_before_ = false;
  std::size_t prefilled_ = 0;  // keys_[0 .. prefilled_) are there before the record starts
  std::size_t erased_before_ = 0;
};

}  // namespace dunnock::crash
