// Histories of a PrefixStore: a few prompts that share prefixes, with room for half of their blocks, so that blocks
// come and go all the time; and a checker that wants whole prefixes of right blocks.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "dunnock/crash/sequential_objects.hpp"
#include "dunnock/index/prefix_store.hpp"
#include "history_subject.hpp"
#include "image_media.hpp"
#include "store_memory.hpp"

namespace dunnock::crash {

struct PrefixOperation {
  unsigned thread;
  std::size_t prompt;
  std::size_t evicts;   // if not 0: evicts this many blocks, and serves nothing
  std::size_t blindly;  // puts one block, this many before the last, without having looked
  unsigned held;        // turns of other threads in which what was found stays pinned
};

/// What does not depend on the media that the history is recorded on.
class PrefixHistory : public HistorySubject {
 public:
  using Checked = PrefixStore<ImageMedia>;

  [[nodiscard]] std::size_t bytes() const override { return memory_.bytes(); }
  [[nodiscard]] std::size_t operations() const override { return operations_.size(); }
  std::optional<std::string> check(std::byte* image, std::size_t events, std::size_t more) override;
  [[nodiscard]] bool recovery_has_work(const std::byte*) const override { return is_one_in(128); }
  [[nodiscard]] std::string describe(std::size_t operation) const override;

 protected:
  /// Puts, and evictions that were asked for, of all threads.
  struct Changes {
    std::size_t begun = 0, over = 0;
  };
  struct Sure {
    std::size_t from, to;  // events
    std::size_t prompt;
    std::size_t blocks;
  };

  explicit PrefixHistory(const Workload& workload);

  /// Forgets the record before, fills the store, numbers the blocks, and notes which are there.
  void begin_prefix_record(std::byte* memory);
  [[nodiscard]] std::uint8_t number_of(const IndexKey& key) const { return numbers_.at({key.low, key.high}); }
  [[nodiscard]] std::uint64_t now() { return ++time_; }
  void called(std::uint64_t began, PrefixTree::Call call) { calls_.push_back({std::move(call), began, ++time_}); }
  [[nodiscard]] bool has_an_order();

  template <class M>
  Result<PrefixStore<M>> attach(std::byte* memory, M media) const {
    DUNNOCK_TRY(auto store, memory_.attach(memory, media));
    return PrefixStore<M>::attach(std::move(store), options_);
  }

  static std::vector<std::byte> block_of(const IndexKey& key);
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

  std::vector<PrefixOperation> operations_;
  std::vector<std::vector<IndexKey>> prompts_;
  std::vector<Sure> sure_;
  Changes changes_;

 private:
  void generate();
  void begin_history(const Checked& store);
  std::optional<std::string> check_prompt(const Checked& store, std::size_t prompt) const;

  StoreMemory memory_;
  PrefixOptions options_{.seed = {}};
  std::uint64_t prefill_ = 0;
  std::vector<std::vector<std::uint32_t>> prompt_tokens_;
  std::map<std::pair<std::uint64_t, std::uint64_t>, std::uint8_t> numbers_;  // of blocks, by key
  PrefixTree::Tree tree_;
  PrefixTree::State first_;
  std::vector<Timed<PrefixTree::Call>> calls_;
  std::uint64_t time_ = 0;  // of calls: counts their beginnings and returns
};

}  // namespace dunnock::crash
