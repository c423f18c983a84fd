// Subject for any filter: its loops.
#pragma once

#include <x86intrin.h>

#include <memory>
#include <utility>
#include <vector>

#include "dunnock/base/check.hpp"
#include "filter/subject.hpp"

namespace dunnock::bench {

template <class F>
class SubjectOf final : public Subject {
 public:
  /// `home`: what the filter is in. It goes after the filter.
  template <class... Arguments>
  explicit SubjectOf(std::shared_ptr<void> home, Arguments&&... arguments)
      : home_(std::move(home)), filter_(std::forward<Arguments>(arguments)...) {}

  [[nodiscard]] std::uint64_t slots() const override { return filter_.slots(); }
  [[nodiscard]] std::uint64_t memory_bytes() const override { return filter_.memory_bytes(); }
  [[nodiscard]] bool can_erase() const override { return kHasErase; }

  std::uint64_t insert(KeySpan keys) override {
    std::uint64_t placed = 0;
    for (const std::uint64_t key : keys) placed += filter_.insert(key) ? 1 : 0;
    return placed;
  }
  [[nodiscard]] std::uint64_t contains(KeySpan keys) const override {
    std::uint64_t found = 0;
    for (const std::uint64_t key : keys) found += filter_.contains(key) ? 1 : 0;
    return found;
  }
  std::uint64_t erase(KeySpan keys) override {
    std::uint64_t erased = 0;
    if constexpr (kHasErase) {
      for (const std::uint64_t key : keys) erased += filter_.erase(key) ? 1 : 0;
    }
    return erased;
  }
  std::uint64_t mixed(KeySpan moving, KeySpan present, KeySpan absent) override {
    std::uint64_t found = 0;
    if constexpr (kHasErase) {
      for (std::size_t i = 0; i < moving.size(); ++i) {
        filter_.erase(moving[i]);
        filter_.insert(moving[i]);
        found += (filter_.contains(present[i]) ? 1U : 0U) + (filter_.contains(absent[i]) ? 1U : 0U);
      }
    }
    return found;
  }

  std::uint64_t insert_bulk(KeySpan keys) override {
    DUNNOCK_CHECK(kHasBulk, "this filter has bulk operations");
    if constexpr (kHasBulk) return filter_.insert_bulk(keys);
    return 0;
  }
  [[nodiscard]] std::uint64_t contains_bulk(KeySpan keys, std::uint8_t* found) const override {
    DUNNOCK_CHECK(kHasBulk, "this filter has bulk operations");
    if constexpr (kHasBulk) return filter_.contains_bulk(keys, found);
    return 0;
  }

  [[nodiscard]] std::vector<std::uint64_t> ticks_of(Call call, KeySpan keys) override {
    switch (call) {
      case Call::kInsert: return ticks_of(keys, [this](std::uint64_t key) { return filter_.insert(key); });
      case Call::kContains: return ticks_of(keys, [this](std::uint64_t key) { return filter_.contains(key); });
      case Call::kErase:
        if constexpr (kHasErase) return ticks_of(keys, [this](std::uint64_t key) { return filter_.erase(key); });
    }
    return {};
  }

 private:
  static constexpr bool kHasErase = requires(F & filter) { filter.erase(std::uint64_t{1}); };
  static constexpr bool kHasBulk = requires(F & filter, KeySpan keys) { filter.insert_bulk(keys); };

  template <class One>
  static std::vector<std::uint64_t> ticks_of(KeySpan keys, const One& one) {
    std::vector<std::uint64_t> ticks(keys.size());
    [[maybe_unused]] volatile bool sink = false;  // No call may be left out.
    for (std::size_t i = 0; i < keys.size(); ++i) {
      unsigned core;
      const std::uint64_t before = __rdtscp(&core);
      sink = one(keys[i]);
      ticks[i] = __rdtscp(&core) - before;
    }
    return ticks;
  }

  std::shared_ptr<void> home_;
  F filter_;
};

}  // namespace dunnock::bench
