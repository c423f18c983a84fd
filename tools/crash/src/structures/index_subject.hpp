// KvIndex under the explorer, on the media `Sim`.
#pragma once

#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "index_history.hpp"

namespace dunnock::crash {

template <class Sim>
class IndexSubject final : public IndexHistory {
 public:
  using Recorded = KvIndex<Sim>;
  using Kind = IndexOperation::Kind;
  static constexpr std::size_t kGoesOn = 4;  // operations after a recovery

  explicit IndexSubject(const Workload& workload) : IndexHistory(workload) {}

  std::optional<std::string> record(SimMemory& memory, const std::vector<std::size_t>& keep) override {
    begin_index_record(memory.data());
    memory.start();
    if (life_) {
      auto index = Recorded::format(meta(memory.data()), chunks(memory.data()), options(), Sim(memory));
      if (!index) return "format failed: " + index.error().message;
      format_acked_ = memory.mark();
      index_ = std::make_unique<Recorded>(std::move(*index));
    } else {
      auto opened = Recorded::attach(meta(memory.data()), chunks(memory.data()), Sim(memory));
      if (!opened) return "attach failed: " + opened.error().message;
      index_ = std::make_unique<Recorded>(std::move(opened->index));
    }
    const auto run_one = [&](const IndexOperation& op) { run(memory, op); };
    // close() needs the index for itself: in a life, threads take turns.
    if (!run_history(memory, operations_, keep, life_, run_one)) return "all threads are in a deadlock";
    if (!violation_)
      violation_ = calls_.unexplained([&](std::size_t i) { return MapKey::State{values_.base(i).latest()}; });
    if (!violation_) violation_ = check_lanes(memory);
    index_.reset();
    return violation_;
  }

  void recover(SimMemory& memory, std::size_t events) override {
    values_.begin_to_continue(events);
    recover_violation_.reset();
    std::mt19937_64 random(workload_.seed + events);
    std::unique_ptr<Recorded> index;
    const auto attach = [&] {
      auto opened = Recorded::attach(meta(memory.data()), chunks(memory.data()), Sim(memory));
      if (opened) index = std::make_unique<Recorded>(std::move(opened->index));
      return index != nullptr;
    };
    recover_and_continue(memory, attach, [&] { go_on(memory, *index, random); });
  }

 private:
  using What = ValueChange::What;
  using Ask = MapKey::What;
  using Answer = MapKey::Answer;
  using Value = ValueHistory::Value;

  /// Nobody crashed, so every lane that a split or an erase was to free is free.
  std::optional<std::string> check_lanes(const SimMemory& memory) const {
    const IndexCheck report = index_->check();
    if (report.dead_lanes != 0) return "after running: a lane points to no entry";
    for (const SimMemory::Event& event : memory.events()) {
      if (event.kind == SimMemory::EventKind::kStore && event.point == index_point::kResetRecord)
        return "after running: a put found an entry without a lane";
    }
    if (!report.ok()) return "after running: " + report.violations.front();
    return std::nullopt;
  }

  /// A few more operations after a recovery, most of them on keys that were being changed, or on their twins.
  void go_on(SimMemory& memory, Recorded& index, std::mt19937_64& random) {
    std::uint64_t value = 1000;
    const std::vector<ValueHistory>& now = values_.continued();
    std::vector<std::size_t> order;
    for (std::size_t i = 0; i < keys_.size(); ++i) {
      if (!now[i].in_flight()) continue;
      const Value seen = seen_in(index.get(keys_[i]));
      values_.note_continued({memory.mark(), i, What::kSettle, seen});
      if (twin_[i] != i) order.push_back(twin_[i]);
      if (random() % 2 == 0) order.push_back(i);
    }
    order.push_back(random() % keys_.size());
    if (order.size() > kGoesOn) order.resize(kGoesOn);
    for (const std::size_t i : order) {
      const bool erase = now[i].latest() && random() % 2 == 0;
      const Value next = erase ? Value() : Value(value++);
      values_.note_continued({memory.events().size(), i, What::kIntend, next});
      if (erase) {
        (void)index.erase(keys_[i]);
      } else if (index.put(keys_[i], value_of(*next)) == PutResult::kFull) {
        const auto there = std::count_if(now.begin(), now.end(), [](const auto& one) { return one.latest(); });
        if (must_have_room(static_cast<std::size_t>(there)))
          recover_violation_ = "after recovery a put found no room, with " + std::to_string(there - 1) + " entries";
        values_.note_continued({memory.mark(), i, What::kSettle, std::nullopt});
        continue;
      }
      values_.note_continued({memory.mark(), i, What::kAcknowledge});
    }
  }

  // ----- operations -------------------------------------------------------------------------------------------------

  void run(SimMemory& memory, IndexOperation op) {
    if (op.follows) follow(op.keys);
    const bool reads = op.kind == Kind::kGet || op.kind == Kind::kGetBulk || op.kind == Kind::kMayContain;
    const UnderWay::Keys under_way = under_way_.enter(reads ? std::vector<std::size_t>() : op.keys);
    switch (op.kind) {
      case Kind::kPut:
      case Kind::kPutBulk: put(memory, op); break;
      case Kind::kErase:
      case Kind::kEraseBulk: erase(memory, op); break;
      case Kind::kReplaceIf: replace_if(memory, op.keys.front()); break;
      case Kind::kMayContain: may_contain(memory, op.keys.front()); break;
      case Kind::kGet:
      case Kind::kGetBulk: get(memory, op); break;
      case Kind::kReopen: close_and_reopen(memory); break;
    }
  }

  void intend(SimMemory& memory, std::size_t i, Value value) {
    values_.note({memory.events().size(), i, What::kIntend, value});
  }
  static Answer done(bool yes) { return yes ? Answer::kDone : Answer::kRefused; }
  static Value previously(bool there, const IndexValue& was) { return there ? Value(number_of(was)) : std::nullopt; }

  void put(SimMemory& memory, const IndexOperation& op) {
    const std::uint64_t began = calls_.now();
    std::vector<typename Recorded::Entry> entries;
    std::vector<bool> there;
    for (const std::size_t i : op.keys) {
      there.push_back(values_.now(i).latest().has_value());
      intend(memory, i, next_value_);
      entries.push_back({keys_[i], value_of(next_value_++)});
    }
    std::vector<PutResult> results(entries.size());
    std::vector<IndexValue> previous(entries.size());
    if (op.kind == Kind::kPut) {
      results[0] = index_->put(entries[0].key, entries[0].value, previous.data());
    } else {
      index_->put_bulk(entries, results.data(), previous.data());
    }
    const std::size_t acked = memory.mark();
    for (std::size_t n = 0; n < entries.size(); ++n) {
      const std::size_t i = op.keys[n];
      const bool replaced = results[n] == PutResult::kReplaced;
      const Answer answer = replaced ? Answer::kReplaced : done(results[n] == PutResult::kInserted);
      calls_.returned(i, {Ask::kPut, answer, number_of(entries[n].value), 0, previously(replaced, previous[n])}, began);
      if (results[n] == PutResult::kFull) {
        if (there[n]) wrong("is there, but there is no room for its value", i);
        values_.note({acked, i, What::kSettle, std::nullopt});
        continue;
      }
      if (replaced != there[n]) wrong("was put as if it were another", i);
      values_.note({acked, i, What::kAcknowledge});
    }
  }

  void erase(SimMemory& memory, const IndexOperation& op) {
    const std::uint64_t began = calls_.now();
    std::vector<IndexKey> keys;
    std::vector<bool> there;
    for (const std::size_t i : op.keys) {
      keys.push_back(keys_[i]);
      there.push_back(values_.now(i).latest().has_value());
      intend(memory, i, std::nullopt);
    }
    std::vector<std::uint8_t> erased(keys.size());
    std::vector<IndexValue> previous(keys.size());
    if (op.kind == Kind::kErase) {
      erased[0] = index_->erase(keys[0], previous.data()) ? 1 : 0;
    } else {
      index_->erase_bulk(keys, erased.data(), previous.data());
    }
    const std::size_t acked = memory.mark();
    for (std::size_t n = 0; n < keys.size(); ++n) {
      const bool yes = erased[n] != 0;
      calls_.returned(op.keys[n], {Ask::kErase, done(yes), 0, 0, previously(yes, previous[n])}, began);
      if (yes != there[n]) wrong("was erased as if it were another", op.keys[n]);
      values_.note({acked, op.keys[n], What::kAcknowledge});
    }
  }

  void replace_if(SimMemory& memory, std::size_t i) {
    const std::uint64_t first_began = calls_.now();
    const Value latest = values_.now(i).latest();
    if (index_->replace_if(keys_[i], value_of(123456), value_of(1))) wrong("was replaced though it differs", i);
    calls_.returned(i, {Ask::kReplaceIf, Answer::kRefused, 1, 123456, {}}, first_began);
    if (!latest) return;
    const std::uint64_t value = next_value_++;
    intend(memory, i, value);
    const std::uint64_t began = calls_.now();
    if (!index_->replace_if(keys_[i], value_of(*latest), value_of(value))) wrong("was not replaced", i);
    calls_.returned(i, {Ask::kReplaceIf, Answer::kDone, value, *latest, {}}, began);
    values_.note({memory.mark(), i, What::kAcknowledge});
  }

  void may_contain(SimMemory& memory, std::size_t i) {
    const std::uint64_t began = calls_.now();
    const std::size_t from = values_.now(i).floor();
    const bool maybe = index_->may_contain(keys_[i]);
    calls_.returned(i, {Ask::kMayContain, done(maybe), 0, 0, {}}, began);
    const auto absent = values_.now(i).find(std::nullopt, from);
    if (!maybe && !absent) wrong("is not in the filter", i);
    // No fingerprint: then it was absent at some moment.
    if (!maybe && absent) values_.note({memory.mark(), i, What::kRuleOutBefore, {}, *absent});
  }

  void get(SimMemory& memory, const IndexOperation& op) {
    const std::uint64_t began = calls_.now();
    std::vector<std::size_t> from;
    std::vector<IndexKey> keys;
    for (const std::size_t i : op.keys) {
      from.push_back(values_.now(i).floor());
      keys.push_back(keys_[i]);
    }
    std::vector<GetResult> found(keys.size());
    if (op.kind == Kind::kGet) {
      found[0] = index_->get(keys[0]);
    } else {
      index_->get_bulk(keys, found.data());
    }
    const std::size_t acked = memory.mark();
    for (std::size_t n = 0; n < keys.size(); ++n) {
      const std::size_t i = op.keys[n];
      if (found[n].state == GetState::kDamaged) wrong("is damaged", i);
      const Value value = seen_in(found[n]);
      calls_.returned(i, {Ask::kGet, Answer::kDone, 0, 0, value}, began);
      if (const auto seen = values_.now(i).find(value, from[n])) {
        values_.note({acked, i, What::kRuleOutBefore, {}, *seen});
      } else {
        wrong(values_.now(i).differs(value), i);
      }
    }
  }

  void close_and_reopen(SimMemory& memory) {
    index_->close();
    closed_.push_back(memory.mark());
    auto opened = Recorded::attach(meta(memory.data()), chunks(memory.data()), Sim(memory));
    if (!opened || !opened->report.clean_shutdown) {
      violation_ = "while running: a closed index does not open as clean";
      return;
    }
    *index_ = std::move(opened->index);
  }

  std::unique_ptr<Recorded> index_;
};

}  // namespace dunnock::crash
