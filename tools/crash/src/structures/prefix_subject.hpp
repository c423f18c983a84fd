// PrefixStore under the explorer, on the media `Sim`.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "prefix_history.hpp"

namespace dunnock::crash {

template <class Sim>
class PrefixSubject final : public PrefixHistory {
 public:
  using Recorded = PrefixStore<Sim>;

  explicit PrefixSubject(const Workload& workload) : PrefixHistory(workload) {}

  std::optional<std::string> record(SimMemory& memory, const std::vector<std::size_t>& keep) override {
    begin_prefix_record(memory.data());
    memory.start();
    auto store = attach<Sim>(memory.data(), Sim(memory));
    if (!store) return "it can't be opened: " + store.error().message;
    const auto run_one = [&](const PrefixOperation& op) { run(memory, *store, op); };
    if (!run_history(memory, operations_, keep, false, run_one)) return "all threads are in a deadlock";
    if (violation_) return violation_;
    if (!has_an_order()) return "after running: no order explains the calls";
    const IndexCheck report = store->check();
    return report.ok() ? std::nullopt : std::optional("after running: " + report.violations.front());
  }

  void recover(SimMemory& memory, std::size_t events) override {
    auto store = attach<Sim>(memory.data(), Sim(memory));
    if (!store) return;
    (void)serve(*store, prompts_[events % prompts_.size()]);
    memory.mark();
  }

 private:
  /// A match whose release is a call, too.
  class WatchedMatch {
   public:
    WatchedMatch(PrefixSubject& subject, typename Recorded::Match match, std::optional<std::uint8_t> last)
        : subject_(subject), match_(std::move(match)), last_(last) {}
    WatchedMatch(const WatchedMatch&) = delete;
    WatchedMatch& operator=(const WatchedMatch&) = delete;
    ~WatchedMatch() {
      const std::uint64_t began = subject_.now();
      match_ = typename Recorded::Match();
      if (last_) subject_.called(began, {PrefixTree::What::kUnpin, {*last_}, 0, {}, false});
    }
    [[nodiscard]] std::size_t blocks() const { return match_.blocks(); }

   private:
    PrefixSubject& subject_;
    typename Recorded::Match match_;
    std::optional<std::uint8_t> last_;
  };
  /// Notes the calls on the store.
  struct Watched {
    PrefixSubject& subject;
    Recorded& store;
    [[nodiscard]] WatchedMatch lookup(const std::vector<IndexKey>& keys) const {
      std::vector<std::uint8_t> blocks;
      for (const IndexKey& key : keys) blocks.push_back(subject.number_of(key));
      const std::uint64_t began = subject.now();
      auto match = store.lookup(keys);
      const std::size_t found = match.blocks();
      subject.called(began, {PrefixTree::What::kLookup, blocks, found, {}, false});
      return WatchedMatch(subject, std::move(match), found == 0 ? std::nullopt : std::optional(blocks[found - 1]));
    }
    [[nodiscard]] PutBlock put(const std::vector<IndexKey>& keys, std::size_t at) const {
      using Answer = PrefixTree::Answer;
      const std::uint64_t began = subject.now();
      const PutBlock put = store.put(keys, at, block_of(keys[at]));
      const Answer answer = put == PutBlock::kStored     ? Answer::kStored
                            : put == PutBlock::kThere    ? Answer::kThere
                            : put == PutBlock::kNoParent ? Answer::kNoParent
                                                         : Answer::kFull;
      subject.called(began, {PrefixTree::What::kPut, {subject.number_of(keys[at])}, 0, answer, false});
      return put;
    }
  };

  void run(SimMemory& memory, Recorded& store, const PrefixOperation& op) {
    if (op.evicts != 0) return evict(store, op.evicts);
    const std::vector<IndexKey>& keys = prompts_[op.prompt];
    const Watched watch{*this, store};
    if (op.blindly < keys.size()) {
      ++changes_.begun;
      (void)watch.put(keys, keys.size() - 1 - op.blindly);
      ++changes_.over;
      return;
    }
    auto wrong = serve(store, keys, changes_, watch);
    // What is found now is there, as long as it is pinned.
    const auto match = watch.lookup(keys);
    const std::size_t from = memory.mark();
    for (unsigned n = 0; n < op.held; ++n) memory.pause();
    if (!wrong) wrong = read(store, keys, match.blocks());
    sure_.push_back({from, memory.mark(), op.prompt, match.blocks()});
    if (wrong && !violation_) violation_ = wrong;
  }

  void evict(Recorded& store, std::size_t blocks) {
    ++changes_.begun;
    const std::uint64_t began = now();
    const std::size_t gone = store.evict(blocks);
    called(began, {PrefixTree::What::kEvict, {}, gone, {}, false});
    ++changes_.over;
  }
};

}  // namespace dunnock::crash
