// KvStore, and so ValueLog, under the explorer, on the media `Sim`.
#pragma once

#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "log_history.hpp"

namespace dunnock::crash {

template <class Sim>
class LogSubject final : public LogHistory {
 public:
  using Recorded = KvStore<Sim>;

  explicit LogSubject(const Workload& workload) : LogHistory(workload) {}

  std::optional<std::string> record(SimMemory& memory, const std::vector<std::size_t>& keep) override {
    begin_log_record(memory.data());
    memory.start();
    auto store = life_ ? memory_.format<Sim>(memory.data(), Sim(memory))
                       : memory_.attach<Sim>(memory.data(), Sim(memory));
    if (!store) return "it can't be made or opened: " + store.error().message;
    if (life_) format_acked_ = memory.mark();
    store_ = std::make_unique<Recorded>(std::move(*store));
    const auto run_one = [&](const LogOperation& op) { run(memory, op); };
    if (!run_history(memory, operations_, keep, false, run_one)) return "all threads are in a deadlock";
    if (!violation_)
      violation_ = calls_.unexplained([&](std::size_t i) { return MapKey::State{values_.base(i).latest()}; });
    if (!violation_) {
      const IndexCheck report = store_->check();
      if (!report.ok()) violation_ = "after running: " + report.violations.front();
    }
    store_.reset();
    return violation_;
  }

  void recover(SimMemory& memory, std::size_t events) override {
    values_.begin_to_continue(events);
    std::mt19937_64 random(workload_.seed + events);
    std::unique_ptr<Recorded> store;
    const auto attach = [&] {
      auto opened = memory_.attach<Sim>(memory.data(), Sim(memory));
      if (opened) store = std::make_unique<Recorded>(std::move(*opened));
      return store != nullptr;
    };
    recover_and_continue(memory, attach, [&] {
      for (std::size_t i = 0; i < kKeys; ++i) {
        if (values_.continued()[i].in_flight())
          values_.note_continued({memory.mark(), i, What::kSettle, value_in(*store, i)});
      }
      for (std::uint64_t value = 10000; value < 10003; ++value) {
        const std::size_t i = random() % kKeys;
        values_.note_continued({memory.events().size(), i, What::kIntend, value});
        const bool full = store->put(keys_[i], value_of(value)) == PutResult::kFull;
        const std::size_t acked = memory.mark();
        values_.note_continued(full ? ValueChange{acked, i, What::kSettle, value_in(*store, i)}
                                    : ValueChange{acked, i, What::kAcknowledge});
      }
    });
  }

 private:
  using Kind = LogOperation::Kind;
  using What = ValueChange::What;
  using Ask = MapKey::What;
  using Answer = MapKey::Answer;

  void run(SimMemory& memory, const LogOperation& op) {
    switch (op.kind) {
      case Kind::kPut:
      case Kind::kPutBulk: put(memory, op); break;
      case Kind::kErase: erase(memory, op.keys.front()); break;
      case Kind::kGet: get(memory, op); break;
      case Kind::kCompact: store_->compact(1 + op.keys.size(), 0.9); break;
    }
  }

  void put(SimMemory& memory, const LogOperation& op) {
    const std::uint64_t began = calls_.now();
    const std::uint64_t first_value = next_value_;
    std::vector<std::vector<std::byte>> values;
    std::vector<typename Recorded::Item> items;
    for (const std::size_t i : op.keys) {
      values_.note({memory.events().size(), i, What::kIntend, next_value_});
      values.push_back(value_of(next_value_++));
    }
    for (std::size_t n = 0; n < op.keys.size(); ++n) items.push_back({keys_[op.keys[n]], values[n]});
    bool put = false;
    if (op.kind == Kind::kPut) {
      const PutResult result = store_->put(items[0].key, items[0].bytes);
      const Answer answer = result == PutResult::kFull       ? Answer::kFull
                            : result == PutResult::kReplaced ? Answer::kReplaced
                                                             : Answer::kDone;
      calls_.returned(op.keys[0], {Ask::kPut, answer, first_value, 0, {}}, began);
      put = result != PutResult::kFull;
    } else {  // It does not say which keys were there, or which of them it has put when it could not put all.
      put = store_->put_bulk(items);
      for (std::size_t n = 0; n < op.keys.size(); ++n)
        calls_.never_returned(op.keys[n], {Ask::kPut, Answer::kNone, first_value + n, 0, {}}, began);
    }
    const std::size_t acked = memory.mark();
    for (const std::size_t i : op.keys) {
      values_.note(put ? ValueChange{acked, i, What::kAcknowledge}
                       : ValueChange{acked, i, What::kSettle, value_in(*store_, i)});
    }
  }

  void erase(SimMemory& memory, std::size_t i) {
    const std::uint64_t began = calls_.now();
    const bool there = values_.now(i).latest().has_value();
    values_.note({memory.events().size(), i, What::kIntend, std::nullopt});
    const bool erased = store_->erase(keys_[i]);
    calls_.returned(i, {Ask::kErase, erased ? Answer::kDone : Answer::kRefused, 0, 0, {}}, began);
    if (erased != there) wrong("was erased as if it were another", i);
    values_.note({memory.mark(), i, What::kAcknowledge});
  }

  void get(SimMemory& memory, const LogOperation& op) {
    const std::uint64_t began = calls_.now();
    const std::size_t i = op.keys.front();
    const std::size_t from = values_.now(i).floor();
    const auto found = store_->get(keys_[i]);
    const ValueHistory::Value value = value_of_found(found);
    calls_.returned(i, {Ask::kGet, Answer::kDone, 0, 0, value}, began);
    const std::size_t acked = memory.mark();
    if (const auto seen = values_.now(i).find(value, from)) {
      values_.note({acked, i, What::kRuleOutBefore, {}, *seen});
    } else {
      wrong(values_.now(i).differs(value), i);
    }
    for (unsigned n = 0; n < op.held; ++n) memory.pause();
    if (value_of_found(found) != value) wrong("has changed in the hands of who read it", i);
  }

  std::unique_ptr<Recorded> store_;
};

}  // namespace dunnock::crash
