// PrefixStore in a real process on a real pool file: killed, and damaged.
#include <algorithm>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "damage.hpp"
#include "dunnock/index/prefix_store.hpp"
#include "storm.hpp"
#include "structures/numbered_bytes.hpp"

namespace dunnock::crash {
namespace {

using What = JournalLine::What;

/// Prompts that share prefixes: about 1,100 blocks in all.
std::vector<std::uint32_t> prompt_of(std::uint64_t number) {
  std::mt19937_64 random(number);
  std::vector<std::uint32_t> tokens(1 + random() % 8);
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<std::uint32_t>(random() % (i < 2 ? 3 : 2));
  return tokens;
}
std::vector<std::byte> block_of(const IndexKey& key) { return bytes_of(key.low ^ key.high, 8, 500); }

template <class Store>
std::vector<IndexKey> keys_of_prompt(const Store& store, std::uint64_t number) {
  return Store::keys_of(store.root({}), prompt_of(number), 1);
}

template <class M>
class PrefixStorm final : public StormSystem {
 public:
  /// `roomy`: nothing has to be evicted, so nothing that was acknowledged may be missing.
  PrefixStorm(unsigned threads, bool roomy) : threads_(threads), roomy_(roomy) {
    options_.capacity_bytes = roomy ? 2 << 20 : 1 << 18;
    options_.segment_bytes = 1 << 14;
    options_.blocks_max = roomy ? 5000 : 400;
    options_.seed = HashSeed::from(5);
  }
  std::string create(Pool& pool) override {
    auto made = PrefixStore<M>::create(pool, "p", options_, media_of<M>(pool));
    return made ? "" : made.error().message;
  }
  [[nodiscard]] std::uint64_t pool_bytes() const override { return 64 << 20; }
  [[nodiscard]] std::vector<Point> seldom() const override {
    return {log_point::kTake, log_point::kFree, index_point::kEraseRecord, index_point::kPutFence,
            log_point::kAppendFence};
  }
  void live(Pool& pool, Fuse& fuse, int journal, std::uint64_t seed) override {
    auto opened = PrefixStore<FusedMedia<M>>::open(pool, "p", options_, {media_of<M>(pool), fuse});
    if (!opened) return;
    std::vector<std::thread> threads;
    for (unsigned t = 0; t < threads_; ++t) {
      threads.emplace_back([&, t] {
        std::mt19937_64 random(seed + t);
        for (;;) {
          const auto keys = keys_of_prompt(*opened, random() % 3000);
          const auto match = opened->lookup(keys);
          for (std::size_t i = 0; i < match.blocks(); ++i) {
            const auto block = opened->get(keys[i]);
            if (!block || !std::ranges::equal(block.bytes, block_of(keys[i])))
              say(journal, {What::kWrong, t, keys[i].low, keys[i].high});
          }
          for (std::size_t i = match.blocks(); i < keys.size(); ++i) {
            if (opened->put(keys, i, block_of(keys[i])) > PutBlock::kThere) break;
            say(journal, {What::kDone, t, keys[i].low, keys[i].high});
          }
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  bool open_only(Pool& pool, Fuse& fuse) override {
    return PrefixStore<FusedMedia<M>>::open(pool, "p", options_, {media_of<M>(pool), fuse}).has_value();
  }
  std::string verify(Pool& pool, const std::string& journal, KillResult& result) override {
    for (const JournalLine& line : lines_of(journal)) {
      if (line.what == What::kWrong) return "while running: a block was missing or wrong";
      acknowledged_.emplace(line.key, line.value);
      ++result.acknowledged;
    }
    auto opened = open_timed(result, [&] { return PrefixStore<M>::open(pool, "p", options_, media_of<M>(pool)); });
    if (!opened) return opened.error().message;
    if (const IndexCheck report = opened->check(); !report.ok()) return report.violations.front();
    for (std::uint64_t number = 0; number < 3000; number += 7) {
      const auto keys = keys_of_prompt(*opened, number);
      const auto match = opened->lookup(keys);
      for (std::size_t i = 0; i < match.blocks(); ++i) {
        const auto block = opened->get(keys[i]);
        if (!block || !std::ranges::equal(block.bytes, block_of(keys[i]))) return "a block is missing or wrong";
      }
    }
    for (const auto& [low, high] : acknowledged_) {
      if (roomy_ && !opened->get({low, high})) return "an acknowledged block is lost, and none had to be evicted";
    }
    return {};
  }

 private:
  unsigned threads_;
  bool roomy_;
  PrefixOptions options_;
  std::set<std::pair<std::uint64_t, std::uint64_t>> acknowledged_;
};

}  // namespace

KillResult kill_prefix(const KillOptions& options) {
  return run_storm_of<PrefixStorm>(options, options.threads, options.seed % 2 == 0);
}

std::vector<CorruptCase> corrupt_prefix(const CorruptOptions& options) {
  const PrefixOptions prefix{
      .capacity_bytes = 2 << 20, .segment_bytes = 1 << 14, .blocks_max = 5000, .seed = HashSeed::from(5)};
  DamageSystem system;
  system.pool_bytes = 40 << 20;
  system.magics = {kIndexMagic, kLogMagic};
  system.create = [&](Pool& pool) -> std::string {
    auto made = PrefixStore<ProcessMedia>::create(pool, "p", prefix, {});
    if (!made) return made.error().message;
    for (std::uint64_t number = 0; number < 500; ++number) {
      const auto keys = keys_of_prompt(*made, number);
      for (std::size_t i = 0; i < keys.size(); ++i) (void)made->put(keys, i, block_of(keys[i]));
    }
    made->close();
    return {};
  };
  system.use = [&](Pool& pool, std::string& error) -> int {
    auto opened = PrefixStore<ProcessMedia>::open(pool, "p", prefix, {});
    if (!opened) return refuse(opened.error(), error);
    const bool sound = opened->check().ok();
    std::uint64_t missing = 0;
    for (std::uint64_t number = 0; number < 500; ++number) {
      const auto keys = keys_of_prompt(*opened, number);
      const auto match = opened->lookup(keys);
      for (std::size_t i = 0; i < keys.size(); ++i) {
        const auto block = i < match.blocks() ? opened->get(keys[i]) : PrefixStore<ProcessMedia>::Block{};
        if (block && !std::ranges::equal(block.bytes, block_of(keys[i]))) return kLostSilently;
        missing += block ? 0 : 1;
      }
    }
    if (!sound) return kFound;
    return missing == 0 ? kUnharmed : kLostSilently;
  };
  return run_damage(options, system);
}

}  // namespace dunnock::crash
