// PrefixStore under the explorer: a few prompts that share prefixes, with room for half of their blocks, so that blocks
// come and go all the time; and a checker that wants whole prefixes of right blocks.
#pragma once

#include <algorithm>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "dunnock/crash/explorer.hpp"
#include "dunnock/crash/linearizability.hpp"
#include "dunnock/crash/sequential_objects.hpp"
#include "dunnock/index/prefix_store.hpp"
#include "filter_subject.hpp"  // ImageMedia

namespace dunnock::crash {

template <class Sim>
class PrefixSubject final : public Subject {
 public:
  using Recorded = PrefixStore<Sim>;
  using Checked = PrefixStore<ImageMedia>;

  explicit PrefixSubject(const FilterWorkload& workload) : workload_(workload) { generate(); }

  [[nodiscard]] std::size_t bytes() const override { return log_at_ + log_bytes_; }
  [[nodiscard]] std::size_t operations() const override { return operations_.size(); }

  std::optional<std::string> record(SimMemory& memory, const std::vector<std::size_t>& keep) override {
    violation_.reset();
    sure_.clear();
    changes_ = {};
    images_seen_ = 0;
    {
      Checked store = *format<ImageMedia>(memory.data(), {});
      const IndexKey root = store.root({});
      prompts_.clear();
      for (const auto& tokens : prompt_tokens_) prompts_.push_back(Checked::keys_of(root, tokens, 1));
      for (std::size_t n = 0; n < prefill_; ++n) serve(store, prompts_[n % prompts_.size()]);
      begin_history(store);
    }
    memory.start();
    auto store = attach<Sim>(memory.data(), Sim(memory));
    if (!store) return "it can't be opened: " + store.error().message;
    std::vector<std::function<void()>> threads;
    for (unsigned t = 0; t < workload_.threads; ++t) {
      threads.push_back([this, &memory, &keep, &store, t] {
        for (const std::size_t n : keep) {
          if (operations_[n].thread == t && !violation_) run(memory, *store, operations_[n]);
        }
      });
    }
    if (!memory.run_threads(threads, workload_.seed + schedule_ * 0x9e3779b97f4a7c15ULL, switch_every()))
      return "all threads wait for each other";
    if (violation_) return violation_;
    if (!has_an_order()) return "after running: no order explains the calls";
    const IndexCheck report = store->check();
    return report.ok() ? std::nullopt : std::optional("after running: " + report.violations.front());
  }

  std::optional<std::string> check(std::byte* image, std::size_t events, std::size_t more) override {
    auto opened = attach<ImageMedia>(image, {});
    if (!opened) return "it can't be opened: " + opened.error().message;
    Checked& store = *opened;
    const IndexCheck report = store.check();  // Every block's parent is there, and every value is sound.
    if (!report.ok()) return report.violations.front();
    for (std::size_t p = 0; p < prompts_.size(); ++p) {
      const auto& keys = prompts_[p];
      const auto match = store.lookup(keys);
      for (std::size_t i = 0; i < match.blocks(); ++i) {
        const auto block = store.get(keys[i]);
        if (!block) return "block " + std::to_string(i) + " of prompt " + std::to_string(p) + " can't be read";
        if (!std::ranges::equal(block.bytes, block_of(keys[i]))) return "a wrong block was served";
      }
    }
    for (const Sure& one : sure_) {
      // As long as they are pinned nothing of them can be evicted.
      if (more == 0 && one.from <= events && events <= one.to &&
          store.lookup(prompts_[one.prompt]).blocks() < one.blocks)
        return "blocks that somebody has pinned are lost";
    }
    if (events % 4 != 0) return std::nullopt;
    for (const auto& keys : prompts_) {
      if (auto wrong = serve(store, keys)) return wrong;
    }
    const IndexCheck end = store.check();
    return end.ok() ? std::nullopt : std::optional("after going on: " + end.violations.front());
  }

  [[nodiscard]] bool recovery_has_work(const std::byte*) const override { return ++images_seen_ % 128 == 8; }

  void recover(SimMemory& memory, std::size_t events) override {
    auto store = attach<Sim>(memory.data(), Sim(memory));
    if (!store) return;
    (void)serve(*store, prompts_[events % prompts_.size()]);
    memory.mark();
  }

  bool reschedule(std::uint64_t schedule) override {
    schedule_ = schedule;
    return workload_.threads > 1;
  }

  [[nodiscard]] std::string describe(std::size_t operation) const override {
    const Operation& op = operations_[operation];
    return "thread " + std::to_string(op.thread) + ": " +
           (op.evicts != 0     ? "evict " + std::to_string(op.evicts)
            : op.blindly < 100 ? "put one block of prompt " + std::to_string(op.prompt)
                               : "serve prompt " + std::to_string(op.prompt));
  }

 private:
  struct Operation {
    unsigned thread;
    std::size_t prompt;
    std::size_t evicts;   // if not 0: evicts this many blocks, and serves nothing
    std::size_t blindly;  // puts one block, this many before the last, without having looked
    unsigned held;        // turns of other threads in which what was found stays pinned
  };
  /// Puts, and evictions that were asked for, of all threads.
  struct Changes {
    std::size_t begun = 0, over = 0;
  };
  struct Sure {
    std::size_t from, to;  // events
    std::size_t prompt;
    std::size_t blocks;
  };

  static std::vector<std::byte> block_of(const IndexKey& key) {
    std::vector<std::byte> bytes(24 + key.low % 60);
    for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(key.high * (i + 1) >> 9);
    return bytes;
  }
  /// Can the first `blocks` blocks all be read, and are they correct? Returns a sentence if not.
  template <class Store>
  static std::optional<std::string> read(const Store& store, const std::vector<IndexKey>& keys, std::size_t blocks) {
    for (std::size_t i = 0; i < blocks; ++i) {
      const auto block = store.get(keys[i]);
      if (!block || !std::ranges::equal(block.bytes, block_of(keys[i])))
        return "while running: block " + std::to_string(i) + " is missing or wrong";
    }
    return std::nullopt;
  }
  /// Reads what is there and puts the rest. Counts its puts in `changes`. `watch` runs the calls on the store:
  /// watch.lookup(keys), watch.put(keys, at).
  template <class Store, class Watch>
  static std::optional<std::string> serve(Store& store, const std::vector<IndexKey>& keys, Changes& changes,
                                          const Watch& watch) {
    const auto match = watch.lookup(keys);
    if (auto wrong = read(store, keys, match.blocks())) return wrong;
    std::size_t there = match.blocks();
    const Changes before = changes;
    std::size_t own = 0;
    for (; there < keys.size(); ++there) {
      ++changes.begun, ++own;
      const PutBlock put = watch.put(keys, there);
      ++changes.over;
      if (put > PutBlock::kThere) break;
    }
    // Its own puts evict none of them: they are the ancestors of the last. Those of others may.
    const std::size_t found = watch.lookup(keys).blocks();
    const bool alone = before.begun == before.over && changes.begun - before.begun == own;
    if (alone && found < there) return "while running: what was put is not found";
    return std::nullopt;
  }
  template <class Store>
  static std::optional<std::string> serve(Store& store, const std::vector<IndexKey>& keys) {
    struct Unwatched {
      Store& store;
      auto lookup(const std::vector<IndexKey>& all) const { return store.lookup(all); }
      PutBlock put(const std::vector<IndexKey>& all, std::size_t at) const {
        return store.put(all, at, block_of(all[at]));
      }
    };
    Changes changes;
    return serve(store, keys, changes, Unwatched{store});
  }

  // ----- the history ------------------------------------------------------------------------------------------------

  /// Numbers the blocks, and notes which are there.
  void begin_history(const Checked& store) {
    calls_.clear();
    time_ = 0;
    tree_ = {};
    tree_.evicts_by_itself = true;
    first_ = {};
    first_.tree = &tree_;
    numbers_.clear();
    for (const auto& keys : prompts_) {
      for (std::size_t i = 0; i < keys.size(); ++i) {
        const auto number = static_cast<std::uint8_t>(numbers_.size());
        if (!numbers_.try_emplace({keys[i].low, keys[i].high}, number).second) continue;
        tree_.parents.push_back(i == 0 ? -1 : number_of(keys[i - 1]));
      }
      const std::size_t there = store.lookup(keys).blocks();
      for (std::size_t i = 0; i < there; ++i) first_.there |= std::uint64_t{1} << number_of(keys[i]);
    }
  }
  [[nodiscard]] std::uint8_t number_of(const IndexKey& key) const { return numbers_.at({key.low, key.high}); }

  /// A match whose release is a call, too.
  class WatchedMatch {
   public:
    WatchedMatch(PrefixSubject& subject, typename Recorded::Match match, std::optional<std::uint8_t> last)
        : subject_(subject), match_(std::move(match)), last_(last) {}
    WatchedMatch(const WatchedMatch&) = delete;
    WatchedMatch& operator=(const WatchedMatch&) = delete;
    ~WatchedMatch() {
      const std::uint64_t began = ++subject_.time_;
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
      const std::uint64_t began = ++subject.time_;
      auto match = store.lookup(keys);
      const std::size_t found = match.blocks();
      subject.called(began, {PrefixTree::What::kLookup, blocks, found, {}, false});
      return WatchedMatch(subject, std::move(match), found == 0 ? std::nullopt : std::optional(blocks[found - 1]));
    }
    [[nodiscard]] PutBlock put(const std::vector<IndexKey>& keys, std::size_t at) const {
      using Answer = PrefixTree::Answer;
      const std::uint64_t began = ++subject.time_;
      const PutBlock put = store.put(keys, at, block_of(keys[at]));
      const Answer answer = put == PutBlock::kStored     ? Answer::kStored
                            : put == PutBlock::kThere    ? Answer::kThere
                            : put == PutBlock::kNoParent ? Answer::kNoParent
                                                         : Answer::kFull;
      subject.called(began, {PrefixTree::What::kPut, {subject.number_of(keys[at])}, 0, answer, false});
      return put;
    }
  };
  void called(std::uint64_t began, PrefixTree::Call call) { calls_.push_back({std::move(call), began, ++time_}); }

  [[nodiscard]] bool has_an_order() {
    for (auto& one : calls_) {  // See PrefixTree::Call::contended.
      const bool looks = one.call.what == PrefixTree::What::kLookup;
      if (looks && one.call.count == one.call.blocks.size()) continue;
      const std::uint8_t block = one.call.blocks.empty() ? 0 : one.call.blocks[looks ? one.call.count : 0];
      one.call.contended = std::ranges::any_of(calls_, [&](const auto& other) {
        const bool puts = other.call.what == PrefixTree::What::kPut &&
                          ((tree_.evicts_by_itself && !looks) || other.call.blocks[0] == block);
        return &other != &one && (puts || (other.call.what == PrefixTree::What::kEvict && !looks)) &&
               other.began < one.returned && one.began < other.returned;
      });
    }
    return linearize<PrefixTree>(calls_, first_, 20000).linearizable;
  }

  void run(SimMemory& memory, Recorded& store, const Operation& op) {
    if (op.evicts != 0) {
      ++changes_.begun;
      const std::uint64_t began = ++time_;
      const std::size_t gone = store.evict(op.evicts);
      called(began, {PrefixTree::What::kEvict, {}, gone, {}, false});
      ++changes_.over;
      return;
    }
    const std::vector<IndexKey>& keys = prompts_[op.prompt];
    const Watched watch{*this, store};
    if (op.blindly < keys.size()) {
      ++changes_.begun;
      (void)watch.put(keys, keys.size() - 1 - op.blindly);
      ++changes_.over;
      return;
    }
    auto wrong = serve(store, keys, changes_, watch);
    // What is told now is there, as long as it is pinned.
    const auto match = watch.lookup(keys);
    const std::size_t from = memory.mark();
    for (unsigned n = 0; n < op.held; ++n) memory.pause();
    if (!wrong) wrong = read(store, keys, match.blocks());
    sure_.push_back({from, memory.mark(), op.prompt, match.blocks()});
    if (wrong && !violation_) violation_ = wrong;
  }

  template <class M>
  Result<PrefixStore<M>> format(std::byte* memory, M media) const {
    DUNNOCK_TRY(auto index,
                KvIndex<M>::format(region(memory, index_meta_bytes_), chunks(memory), store_options_.index, media));
    DUNNOCK_TRY(auto log, ValueLog<M>::format(region(memory + log_meta_at_, log_meta_bytes_),
                                              region(memory + log_at_, log_bytes_), store_options_.log, media));
    return PrefixStore<M>::attach(KvStore<M>(std::move(index), std::move(log)), options_);
  }
  template <class M>
  Result<PrefixStore<M>> attach(std::byte* memory, M media) const {
    DUNNOCK_TRY(auto log, ValueLog<M>::attach(region(memory + log_meta_at_, log_meta_bytes_),
                                              region(memory + log_at_, log_bytes_), media));
    DUNNOCK_TRY(auto index, KvIndex<M>::attach(region(memory, index_meta_bytes_), chunks(memory), media));
    return PrefixStore<M>::attach(KvStore<M>(std::move(index.index), std::move(log)), options_);
  }
  static Region region(std::byte* memory, std::uint64_t bytes) { return Region({memory}, bytes, std::bit_ceil(bytes)); }
  [[nodiscard]] IndexMemory chunks(std::byte* memory) const {
    std::byte* first = memory + index_meta_bytes_;
    const auto chunk = [first](unsigned, std::uint64_t bytes) -> Result<Region> { return region(first, bytes); };
    return {chunk, chunk};
  }

  void generate() {
    std::mt19937_64 random(workload_.seed * 0x9e3779b97f4a7c15ULL + 17);
    options_.capacity_bytes = (5 + random() % 3) * 1024;
    options_.segment_bytes = 1024;
    options_.blocks_max = 6 + random() % 10;
    options_.fill_max = 0.6;
    options_.seed = HashSeed::from(workload_.seed);
    prefill_ = random() % 12;
    store_options_ = Checked::store_options(options_);
    store_options_.index.entries = 0;
    store_options_.index.segment_groups = 2;
    store_options_.index.bytes_max = KvIndex<Sim>::segment_bytes(2);
    index_meta_bytes_ = KvIndex<Sim>::meta_bytes(store_options_.index);
    log_meta_at_ = index_meta_bytes_ + KvIndex<Sim>::segment_bytes(2);
    log_meta_bytes_ = ValueLog<Sim>::meta_bytes(store_options_.log);
    log_at_ = log_meta_at_ + log_meta_bytes_;
    log_bytes_ = ValueLog<Sim>::data_bytes(store_options_.log);
    for (int n = 0; n < 6; ++n) {
      std::vector<std::uint32_t> tokens(1 + random() % 5);
      for (std::uint32_t& token : tokens) token = static_cast<std::uint32_t>(random() % 2);
      prompt_tokens_.push_back(std::move(tokens));
    }
    switch_every_ = 1 + static_cast<unsigned>(random() % 6);
    static constexpr unsigned kHeld[] = {0, 0, 8, 64, 256};
    for (unsigned n = 0; n < workload_.operations; ++n) {
      operations_.push_back({static_cast<unsigned>(random() % workload_.threads), random() % prompt_tokens_.size(),
                             random() % 6 == 0 ? 1 + random() % 6 : 0, random() % 5 == 0 ? random() % 3 : 100,
                             workload_.threads == 1 ? 0 : kHeld[random() % std::size(kHeld)]});
    }
  }

  FilterWorkload workload_;
  PrefixOptions options_{.seed = {}};
  StoreOptions store_options_{.index = {.seed = {}}, .log = {}};
  std::uint64_t prefill_ = 0;
  std::uint64_t index_meta_bytes_ = 0, log_meta_at_ = 0, log_meta_bytes_ = 0, log_at_ = 0, log_bytes_ = 0;
  std::vector<std::vector<std::uint32_t>> prompt_tokens_;
  std::vector<Operation> operations_;
  unsigned switch_every_ = 1;
  std::uint64_t schedule_ = 0;
  [[nodiscard]] unsigned switch_every() const { return 1 + static_cast<unsigned>((switch_every_ - 1 + schedule_) % 6); }

  std::vector<std::vector<IndexKey>> prompts_;
  std::vector<Sure> sure_;
  Changes changes_;
  std::map<std::pair<std::uint64_t, std::uint64_t>, std::uint8_t> numbers_;  // of blocks, by key
  PrefixTree::Tree tree_;
  PrefixTree::State first_;
  std::vector<Timed<PrefixTree::Call>> calls_;
  std::uint64_t time_ = 0;  // of calls: counts their beginnings and returns
  mutable std::size_t images_seen_ = 0;
  std::optional<std::string> violation_;
};

}  // namespace dunnock::crash
