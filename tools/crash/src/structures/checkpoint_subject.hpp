// CheckpointStore under the explorer, on the media `Sim`.
#pragma once

#include <functional>
#include <random>
#include <string>
#include <vector>

#include "checkpoint_history.hpp"

namespace dunnock::crash {

template <class Sim>
class CheckpointSubject final : public CheckpointHistory {
 public:
  using Recorded = CheckpointStore<Sim>;

  /// Of one thread, whatever the workload says.
  explicit CheckpointSubject(const Workload& workload) : CheckpointHistory({workload.seed, 1, workload.operations}) {}

  std::optional<std::string> record(SimMemory& memory, const std::vector<std::size_t>& keep) override {
    begin_checkpoint_record(memory.data());
    memory.start();
    auto store = life_ ? format<Sim>(memory.data(), Sim(memory)) : attach<Sim>(memory.data(), Sim(memory));
    if (!store) return "it can't be made or opened: " + store.error().message;
    if (life_) format_acked_ = memory.mark();
    for (const std::size_t n : keep) {
      if (!violation_) run(memory, *store, operations_[n]);
    }
    if (!violation_) {
      const CheckpointCheck report = store->check();
      if (!report.ok()) violation_ = "after running: " + report.violations.front();
    }
    return violation_;
  }

  void recover(SimMemory& memory, std::size_t events) override {
    values_.begin_to_continue(events);
    std::mt19937_64 random(workload_.seed + events);
    auto store = attach<Sim>(memory.data(), Sim(memory));
    if (!store) return;
    const auto note = [this](const ValueChange& change) { values_.note_continued(change); };
    for (std::size_t i = 0; i < kVersions; ++i) {
      if (values_.continued()[i].in_flight()) note({memory.mark(), i, What::kSettle, value_in(*store, i)});
    }
    // On another thread, so that a fence that recovery forgot is not made up for.
    const auto go_on = [&] {
      for (int n = 0; n < 2; ++n) {
        const std::size_t i = random() % kVersions;
        change_one(memory, *store, i, 5000 + random() % 1000, values_.continued()[i], note);
      }
    };
    const std::vector<std::function<void()>> threads = {[] {}, go_on};
    (void)memory.run_threads(threads, workload_.seed, 1);
  }

 private:
  using Kind = CheckpointOperation::Kind;
  using What = ValueChange::What;

  /// Removes the version if it exists, otherwise saves it with these contents.
  template <class Note>
  void change_one(SimMemory& memory, Recorded& store, std::size_t i, std::uint64_t contents,
                  const ValueHistory& history, const Note& note) {
    const bool there = history.latest().has_value();
    note({memory.events().size(), i, What::kIntend, there ? ValueHistory::Value() : ValueHistory::Value(contents)});
    const bool done = there ? store.remove(kName, i).has_value() : save(store, i, contents);
    if (done) {
      note({memory.mark(), i, What::kAcknowledge});
    } else {
      note({memory.mark(), i, What::kSettle, there ? history.latest() : ValueHistory::Value()});
      if (there) violation_ = "while running: version " + std::to_string(i) + " can't be removed";
    }
  }

  void run(SimMemory& memory, Recorded& store, const CheckpointOperation& op) {
    const auto note = [this](const ValueChange& change) { values_.note(change); };
    const std::size_t version = op.version;
    switch (op.kind) {
      case Kind::kChange: change_one(memory, store, version, contents_++, values_.now(version), note); break;
      case Kind::kCollect: (void)store.collect(); break;
      case Kind::kRestore:
        if (value_in(store, version) != values_.now(version).latest())
          violation_ = "while running: version " + std::to_string(version) + " is wrong";
        break;
    }
  }
};

}  // namespace dunnock::crash
