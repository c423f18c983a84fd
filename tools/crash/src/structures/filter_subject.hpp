// The cuckoo filter under the explorer: tiny tables, a few operations on one or several threads, and a checker that
// knows which keys must, may and must not be there.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "any_filter.hpp"
#include "dunnock/crash/sequential_objects.hpp"
#include "filter_history.hpp"
#include "history_subject.hpp"

namespace dunnock::crash {

class FilterSubject final : public HistorySubject {
 public:
  FilterSubject(const Workload& workload, std::unique_ptr<FilterKind> kind);

  [[nodiscard]] std::size_t bytes() const override { return kind_->bytes(history_.slots); }
  [[nodiscard]] std::size_t operations() const override { return history_.operations.size(); }
  std::optional<std::string> record(SimMemory& memory, const std::vector<std::size_t>& keep) override;
  std::optional<std::string> check(std::byte* image, std::size_t events, std::size_t more) override;
  [[nodiscard]] bool recovery_has_work(const std::byte* image) const override;
  void recover(SimMemory& memory, std::size_t events) override;
  [[nodiscard]] std::string describe(std::size_t operation) const override;

 private:
  /// What has happened to a key by some moment. Each key is inserted and erased at most once.
  struct KeyState {
    bool inserted = false, insert_acked = false, refused = false;
    bool erased = false, erase_acked = false;
    bool seen = false, seen_gone = false;
  };
  enum class What : std::uint8_t { kInsert, kInserted, kRefused, kErase, kErased, kSeen, kSeenGone };
  struct Change {
    std::size_t events;
    std::size_t key;
    What what;
  };
  enum class Fate : std::uint8_t { kMust, kMay, kMustNot };
  static Fate fate_of(const KeyState& s);
  static void apply(KeyState& s, What what);

  [[nodiscard]] FilterOptions options() const { return {history_.slots, HashSeed::from(workload_.seed)}; }
  [[nodiscard]] std::string lost(const char* what, std::size_t key) const;
  void note(std::size_t events, std::size_t key, What what);
  void replay_until(std::size_t events, std::size_t more);

  void fill(SimMemory& memory);
  std::optional<std::string> begin(SimMemory& memory);

  // One operation, on the thread that it belongs to.
  void run(SimMemory& memory, FilterOperation op);
  void insert(SimMemory& memory, const FilterOperation& op);
  void erase(SimMemory& memory, const FilterOperation& op);
  void look_up(SimMemory& memory, const FilterOperation& op);
  void close_and_reopen(SimMemory& memory);
  void clear(SimMemory& memory);
  std::size_t followed(std::size_t otherwise);
  [[nodiscard]] std::vector<std::uint64_t> keys_of(const std::vector<std::size_t>& places) const;
  void judge_lookup(std::size_t i, bool found, const KeyState& before, std::size_t acked);

  // What an image must hold.
  std::optional<std::string> compare(const AnyFilter& filter, std::uint64_t items) const;
  std::optional<std::string> erase_all(AnyFilter& filter) const;

  std::unique_ptr<FilterKind> kind_;
  FilterHistory history_;
  std::unique_ptr<AnyFilter> filter_;
  std::vector<KeyState> base_states_, states_;
  std::vector<Change> changes_;
  UnderWay under_way_;  // keys that are being inserted or erased
  CallsOfKeys<FilterKey> calls_;
  std::vector<std::size_t> erased_by_clear_;
  std::vector<std::pair<std::size_t, std::size_t>> clears_;  // events at invocation and acknowledgement
  std::vector<Change> continued_;                            // what followed recovery
  std::size_t replayed_events_ = 0, replayed_more_ = 0;
  bool is_replayed_ = false;  // states_ are those at that moment
};

}  // namespace dunnock::crash
