// Histories of a KvStore, and so of ValueLog: segments of 1024 bytes, so that puts fill them and compact them all the
// time, and a checker that knows which value each key may have.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "dunnock/crash/sequential_objects.hpp"
#include "dunnock/index/kv_store.hpp"
#include "history_subject.hpp"
#include "image_media.hpp"
#include "store_memory.hpp"
#include "value_history.hpp"

namespace dunnock::crash {

struct LogOperation {
  enum class Kind : std::uint8_t { kPut, kPutBulk, kErase, kGet, kCompact };
  Kind kind;
  unsigned thread;
  std::vector<std::size_t> keys;
  unsigned held = 0;  // turns of other threads in which a value that was read is kept
};

/// What does not depend on the media that the history is recorded on.
class LogHistory : public HistorySubject {
 public:
  using Checked = KvStore<ImageMedia>;

  [[nodiscard]] std::size_t bytes() const override { return memory_.bytes(); }
  [[nodiscard]] std::size_t operations() const override { return operations_.size(); }
  std::optional<std::string> check(std::byte* image, std::size_t events, std::size_t more) override;
  [[nodiscard]] bool recovery_has_work(const std::byte* image) const override;
  /// Long values have many words, and nobody looks at one before its entry is there.
  [[nodiscard]] bool is_unseen(Point point) const override { return big_ && point == log_point::kPayload; }
  [[nodiscard]] std::string describe(std::size_t operation) const override;

 protected:
  static constexpr std::size_t kKeys = 12;

  explicit LogHistory(const Workload& workload);

  /// The number, and bytes that follow from it, of a length that follows from it.
  static std::vector<std::byte> value_of(std::uint64_t number);
  /// What the key has: none when it is missing, a number that no value has when it is damaged.
  template <class Found>
  static ValueHistory::Value value_of_found(const Found& found) {
    if (found.state == GetState::kMissing) return std::nullopt;
    if (!found || found.bytes().size() < sizeof(std::uint64_t)) return ~0ULL;
    std::uint64_t number;
    std::memcpy(&number, found.bytes().data(), sizeof number);
    return std::ranges::equal(found.bytes(), value_of(number)) ? number : ~0ULL;
  }
  template <class Store>
  ValueHistory::Value value_in(const Store& store, std::size_t i) const {
    return value_of_found(store.get(keys_[i]));
  }

  /// Forgets the record before, and fills the store.
  void begin_log_record(std::byte* memory);
  void wrong(const std::string& what, std::size_t key) {
    violation_ = "while running: key #" + std::to_string(key) + " " + what;
  }

  StoreMemory memory_;
  std::vector<IndexKey> keys_;
  std::vector<LogOperation> operations_;
  std::uint64_t next_value_ = 1;
  CallsOfKeys<MapKey> calls_;
  ValueHistories values_;

 private:
  static constexpr std::uint64_t kBig = 1 << 20;  // values from this number on are long

  void generate();
  std::optional<std::string> compare(const Checked& store, const char* when) const;

  std::size_t prefill_ = 0;
  bool big_ = false;
};

}  // namespace dunnock::crash
