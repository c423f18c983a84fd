// PrefixStore under the explorer: a few prompts that share prefixes, with room for half of their blocks, so that blocks
// come and go all the time; and a checker that wants whole prefixes of right blocks.
#pragma once

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "dunnock/crash/explorer.hpp"
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
    images_seen_ = 0;
    {
      Checked store = *format<ImageMedia>(memory.data(), {});
      const IndexKey root = store.root({});
      prompts_.clear();
      for (const auto& tokens : prompt_tokens_) prompts_.push_back(Checked::keys_of(root, tokens, 1));
      for (std::size_t n = 0; n < prefill_; ++n) serve(store, prompts_[n % prompts_.size()]);
    }
    memory.start();
    auto store = attach<Sim>(memory.data(), Sim(memory));
    if (!store) return "it can't be opened: " + store.error().message;
    for (const std::size_t n : keep) {
      const auto& keys = prompts_[operations_[n]];
      if (auto wrong = serve(*store, keys)) return wrong;
      // What is told now is there, until something is put again.
      const std::size_t there = store->lookup(keys).blocks();
      sure_.push_back({memory.mark(), operations_[n], there});
    }
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
      // Between its acknowledgement and the next event nothing can have been evicted.
      if (more == 0 && one.events == events && store.lookup(prompts_[one.prompt]).blocks() < one.blocks)
        return "blocks whose put had returned are lost";
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

  [[nodiscard]] std::string describe(std::size_t operation) const override {
    return "serve prompt " + std::to_string(operations_[operation]);
  }

 private:
  struct Sure {
    std::size_t events;
    std::size_t prompt;
    std::size_t blocks;
  };

  static std::vector<std::byte> block_of(const IndexKey& key) {
    std::vector<std::byte> bytes(24 + key.low % 60);
    for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(key.high * (i + 1) >> 9);
    return bytes;
  }
  /// Reads what is there and puts the rest.
  template <class Store>
  static std::optional<std::string> serve(Store& store, const std::vector<IndexKey>& keys) {
    const auto match = store.lookup(keys);
    for (std::size_t i = 0; i < match.blocks(); ++i) {
      const auto block = store.get(keys[i]);
      if (!block || !std::ranges::equal(block.bytes, block_of(keys[i])))
        return "while running: block " + std::to_string(i) + " is missing or wrong";
    }
    std::size_t there = match.blocks();
    while (there < keys.size() && store.put(keys, there, block_of(keys[there])) <= PutBlock::kThere) ++there;
    // Its own puts evict none of them: they are the ancestors of the last.
    if (store.lookup(keys).blocks() < there) return "while running: what was put is not found";
    return std::nullopt;
  }

  template <class M>
  Result<PrefixStore<M>> format(std::byte* memory, M media) const {
    auto index = KvIndex<M>::format(region(memory, index_meta_bytes_), chunks(memory), store_options_.index, media);
    if (!index) return tl::unexpected(index.error());
    auto log = ValueLog<M>::format(region(memory + log_meta_at_, log_meta_bytes_), region(memory + log_at_, log_bytes_),
                                   store_options_.log, media);
    if (!log) return tl::unexpected(log.error());
    return PrefixStore<M>(KvStore<M>(std::move(*index), std::move(*log)), options_);
  }
  template <class M>
  Result<PrefixStore<M>> attach(std::byte* memory, M media) const {
    auto log = ValueLog<M>::attach(region(memory + log_meta_at_, log_meta_bytes_), region(memory + log_at_, log_bytes_),
                                   media);
    if (!log) return tl::unexpected(log.error());
    auto index = KvIndex<M>::attach(region(memory, index_meta_bytes_), chunks(memory), media);
    if (!index) return tl::unexpected(index.error());
    return PrefixStore<M>(KvStore<M>(std::move(index->index), std::move(*log)), options_);
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
    for (unsigned n = 0; n < workload_.operations; ++n) operations_.push_back(random() % prompt_tokens_.size());
  }

  FilterWorkload workload_;
  PrefixOptions options_{.seed = {}};
  StoreOptions store_options_{.index = {.seed = {}}, .log = {}};
  std::uint64_t prefill_ = 0;
  std::uint64_t index_meta_bytes_ = 0, log_meta_at_ = 0, log_meta_bytes_ = 0, log_at_ = 0, log_bytes_ = 0;
  std::vector<std::vector<std::uint32_t>> prompt_tokens_;
  std::vector<std::size_t> operations_;  // the prompt of each

  std::vector<std::vector<IndexKey>> prompts_;
  std::vector<Sure> sure_;
  mutable std::size_t images_seen_ = 0;
  std::optional<std::string> violation_;
};

}  // namespace dunnock::crash
