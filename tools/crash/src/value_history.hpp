// What a key may hold after a power failure, for structures that map keys to values.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace dunnock::crash {

/// What a key may hold after a crash. Each key has one writer, so its values come one after the other; acknowledging
/// one, or telling a reader of it, rules out those before.
class ValueHistory {
 public:
  using Value = std::optional<std::uint64_t>;  // none: absent

  explicit ValueHistory(Value first = std::nullopt) : values_{first} {}

  void intend(Value next) { values_.push_back(next); }
  void acknowledge() { floor_ = values_.size() - 1; }
  void rule_out_before(std::size_t index) { floor_ = std::max(floor_, index); }
  /// It is this one: after a crash, the first look at it decides. (Those before stay where they are, for a reader that
  /// began earlier may still have seen one.)
  void settle(Value value) {
    values_.push_back(value);
    floor_ = values_.size() - 1;
  }
  [[nodiscard]] std::size_t floor() const { return floor_; }
  [[nodiscard]] std::size_t last() const { return values_.size() - 1; }
  [[nodiscard]] Value latest() const { return values_.back(); }
  [[nodiscard]] bool in_flight() const { return floor_ != last(); }
  /// The first index in [from, last] with that value.
  [[nodiscard]] std::optional<std::size_t> find(Value value, std::size_t from) const {
    for (std::size_t i = from; i < values_.size(); ++i) {
      if (values_[i] == value) return i;
    }
    return std::nullopt;
  }
  [[nodiscard]] bool allows(Value value) const { return find(value, floor_).has_value(); }
  [[nodiscard]] std::string describe() const {
    std::string text;
    for (std::size_t i = floor_; i < values_.size(); ++i)
      text += (i == floor_ ? "" : " or ") + (values_[i] ? std::to_string(*values_[i]) : std::string("nothing"));
    return text;
  }

 private:
  std::vector<Value> values_;
  std::size_t floor_ = 0;
};

/// What happened to the history of a key, and when, so that it can be replayed up to any moment.
struct ValueChange {
  enum class What : std::uint8_t { kIntend, kAcknowledge, kRuleOutBefore, kSettle };
  std::size_t events;
  std::size_t key;
  What what;
  ValueHistory::Value value{};
  std::size_t index = 0;
  void apply(ValueHistory& history) const {
    switch (what) {
      case What::kIntend: history.intend(value); break;
      case What::kAcknowledge: history.acknowledge(); break;
      case What::kRuleOutBefore: history.rule_out_before(index); break;
      case What::kSettle: history.settle(value); break;
    }
  }
};

}  // namespace dunnock::crash
