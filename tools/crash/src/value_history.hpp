// What a key may hold after a power failure, for structures that map keys to values.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
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

  /// "is 3, expected 1 or 2"
  [[nodiscard]] std::string differs(Value value) const {
    return "is " + (value ? std::to_string(*value) : std::string("nothing")) + ", expected " + describe();
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

/// The histories of all keys: as they are while the structure runs, as they were when it crashed, and as they continue
/// after a recovery.
class ValueHistories {
 public:
  using Value = ValueHistory::Value;

  void begin(std::vector<ValueHistory> base) {
    base_ = std::move(base);
    now_ = base_;
    changes_.clear();
    replayed_.clear();
  }
  void note(ValueChange change) {
    change.apply(now_[change.key]);
    changes_.push_back(change);
  }
  [[nodiscard]] const ValueHistory& base(std::size_t key) const { return base_[key]; }
  [[nodiscard]] const ValueHistory& now(std::size_t key) const { return now_[key]; }

  /// Crash when `events` events had happened; if `more` is not 0, a second one when it had continued for that many.
  void replay_until(std::size_t events, std::size_t more) {
    if (events == replayed_events_ && more == 0 && replayed_more_ == 0 && !replayed_.empty()) return;
    replayed_ = base_;
    for (const ValueChange& change : changes_) {
      if (change.events > events) break;
      change.apply(replayed_[change.key]);
    }
    for (const ValueChange& change : continued_changes_) {
      if (more != 0 && change.events <= more) change.apply(replayed_[change.key]);
    }
    replayed_events_ = events;
    replayed_more_ = more;
  }
  [[nodiscard]] const ValueHistory& replayed(std::size_t key) const { return replayed_[key]; }
  /// A sentence if the crash can't have left this value. `whose`, such as "key #3".
  [[nodiscard]] std::optional<std::string> refuse(std::size_t key, Value value, const std::string& whose) const {
    if (replayed_[key].allows(value)) return std::nullopt;
    return whose + " has " + (value ? std::to_string(*value) : "nothing") + ", expected " + replayed_[key].describe();
  }

  /// From the moment of this crash.
  void begin_to_continue(std::size_t events) {
    replay_until(events, 0);
    continued_ = replayed_;
    continued_changes_.clear();
  }
  void note_continued(ValueChange change) {
    change.apply(continued_[change.key]);
    continued_changes_.push_back(change);
  }
  [[nodiscard]] const std::vector<ValueHistory>& continued() const { return continued_; }

 private:
  std::vector<ValueHistory> base_, now_, replayed_, continued_;
  std::vector<ValueChange> changes_, continued_changes_;
  std::size_t replayed_events_ = 0, replayed_more_ = 0;
};

}  // namespace dunnock::crash
