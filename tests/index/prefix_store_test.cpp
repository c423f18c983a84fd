// PrefixStore: the longest prefix is found, blocks are right or missing, ancestors outlive descendants, and bounds
// hold.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "dunnock/crash/sequential_objects.hpp"
#include "dunnock/index/prefix_store.hpp"
#include "support/histories.hpp"
#include "support/seed.hpp"

namespace dunnock {
namespace {

using Store = PrefixStore<ProcessMedia>;
using Prompt = std::vector<std::uint32_t>;
constexpr std::size_t kTokens = 4;

/// Bytes that follow from the key, of a length that does, too.
std::vector<std::byte> block_of(const IndexKey& key) {
  std::vector<std::byte> bytes(20 + key.low % 400);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(key.high * (i + 1) >> 7);
  return bytes;
}
/// Prompts that share prefixes: each block's tokens are one of a few.
Prompt random_prompt(std::mt19937_64& random, std::size_t blocks_max) {
  Prompt tokens;
  const std::size_t blocks = 1 + random() % blocks_max;
  for (std::size_t i = 0; i < blocks; ++i) {
    const auto kind = static_cast<std::uint32_t>(random() % (i < 2 ? 3 : 2));
    for (std::uint32_t t = 0; t < kTokens; ++t) tokens.push_back(kind * 100 + t);
  }
  return tokens;
}

class PrefixStoreTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::remove(path_);
    pool_.emplace(std::move(*Pool::create(path_, {.bytes = 64 << 20})));
    make(options_);
  }
  void TearDown() override {
    store_.reset();
    pool_.reset();
    std::filesystem::remove(path_);
  }
  void make(const PrefixOptions& options) {
    auto store = Store::create(*pool_, "p" + std::to_string(made_++), options, {});
    ASSERT_TRUE(store) << store.error().message;
    store_.emplace(std::move(*store));
    root_ = store_->root({.model_digest = {1, 2}, .dtype = "BF16", .layout = "hnd", .tenant = "t"});
  }
  void reopen() {
    store_.reset();
    pool_.reset();
    pool_.emplace(std::move(*Pool::open(path_)));
    auto opened = Store::open(*pool_, "p" + std::to_string(made_ - 1), options_, {});
    ASSERT_TRUE(opened) << opened.error().message;
    store_.emplace(std::move(*opened));
  }
  [[nodiscard]] std::vector<IndexKey> keys(const Prompt& prompt) const {
    return Store::keys_of(root_, prompt, kTokens);
  }
  /// As a server does: looks up, reads what is there, computes and puts the rest. Returns how many were there.
  std::size_t serve(const Prompt& prompt) {
    const auto all = keys(prompt);
    const auto match = store_->lookup(all);
    for (std::size_t i = 0; i < match.blocks(); ++i) {
      const auto block = store_->get(all[i]);
      EXPECT_TRUE(block) << "a pinned block is missing";
      EXPECT_TRUE(std::ranges::equal(block.bytes, block_of(all[i]))) << "a wrong block";
    }
    for (std::size_t i = match.blocks(); i < all.size(); ++i) {
      if (store_->put(all, i, block_of(all[i])) > PutBlock::kThere) break;
    }
    return match.blocks();
  }
  std::string path_ =
      (std::filesystem::temp_directory_path() / ("prefix_store_test." + std::to_string(getpid()))).string();
  PrefixOptions options_{
      .capacity_bytes = 1 << 20, .segment_bytes = 1 << 15, .blocks_max = 4000, .seed = HashSeed::from(3)};
  unsigned made_ = 0;
  std::optional<Pool> pool_;
  std::optional<Store> store_;
  IndexKey root_;
};

/// Where the bytes of a block lie in the log.
std::byte* find_block(const Pool& pool, const std::string& name, std::span<const std::byte> bytes) {
  const auto log = pool.open_region(name + ".log");
  for (std::uint64_t at = 0; log && at + bytes.size() <= log->bytes(); at += 32) {
    if (std::memcmp(log->at(at), bytes.data(), bytes.size()) == 0) return log->at(at);
  }
  return nullptr;
}

TEST_F(PrefixStoreTest, heals_a_block_that_has_rotted_when_it_is_put_again) {
  const Prompt prompt(6 * kTokens, 7);
  const auto all = keys(prompt);
  for (std::size_t i = 0; i < all.size(); ++i) ASSERT_EQ(store_->put(all, i, block_of(all[i])), PutBlock::kStored);
  std::byte* const block = find_block(*pool_, "p0", block_of(all[2]));
  ASSERT_NE(block, nullptr);
  // In its bytes; in the parent and the depth before them; in the header of the record.
  for (const int offset : {10, -32, -16, -40}) {
    std::byte* const at = find_block(*pool_, "p0", block_of(all[2]));
    ASSERT_NE(at, nullptr);
    at[offset] ^= std::byte{4};
    EXPECT_EQ(store_->put(all, 2, block_of(all[2])), PutBlock::kStored) << offset;
    at[offset] ^= std::byte{8};  // What is no longer pointed to does not matter.
    at[0] ^= std::byte{1};
    EXPECT_EQ(store_->put(all, 2, block_of(all[2])), PutBlock::kThere) << offset;
    EXPECT_EQ(store_->lookup(all).blocks(), all.size()) << "those behind it stay";
    for (const IndexKey& key : all) EXPECT_TRUE(std::ranges::equal(store_->get(key).bytes, block_of(key)));
  }
  EXPECT_EQ(store_->stats().healed, 4u);
  EXPECT_EQ(store_->stats().quarantined, 0u);
  EXPECT_EQ(store_->put(all, 2, block_of(all[3])), PutBlock::kThere) << "other bytes that are sound stay";
  EXPECT_TRUE(std::ranges::equal(store_->get(all[2]).bytes, block_of(all[2])));
  reopen();
  EXPECT_EQ(serve(prompt), all.size());
  EXPECT_TRUE(store_->check().ok());
}

TEST_F(PrefixStoreTest, throws_away_what_it_cannot_read_and_what_hangs_from_it) {
  const Prompt prompt(6 * kTokens, 7);
  const auto all = keys(prompt);
  for (std::size_t i = 0; i < all.size(); ++i) ASSERT_EQ(store_->put(all, i, block_of(all[i])), PutBlock::kStored);
  std::byte* const at = find_block(*pool_, "p0", block_of(all[3]));
  ASSERT_NE(at, nullptr);
  at[-40] ^= std::byte{4};  // Its length: nothing of it can be read.
  reopen();
  const Prompt other(kTokens, 9);
  ASSERT_EQ(store_->put(keys(other), 0, block_of(keys(other)[0])), PutBlock::kStored);
  EXPECT_EQ(store_->stats().quarantined, 3u);
  EXPECT_EQ(store_->stats().blocks, 4u) << "none stays for ever that is neither found nor evicted";
  EXPECT_TRUE(store_->check().ok());
  EXPECT_EQ(serve(prompt), 3u);
  EXPECT_EQ(serve(prompt), 6u);
}

TEST_F(PrefixStoreTest, refuses_the_same_options_when_it_is_made_and_when_it_is_opened) {
  const auto codes = [&](PrefixOptions options) {
    options.capacity_bytes = 1 << 20;
    options.segment_bytes = 1 << 15;
    const auto made = Store::create(*pool_, "q", options, {});
    const auto opened = Store::open(*pool_, "p0", options, {});
    EXPECT_EQ(made.has_value(), opened.has_value());
    for (const char* end : {".log", ".logmeta", ".meta", ".s0"}) (void)pool_->remove_region(std::string("q") + end);
    return made ? "fine" : to_string(made.error().code);
  };
  EXPECT_EQ(codes({.blocks_max = 0}), "InvalidArgument");
  EXPECT_EQ(codes({.blocks_max = ~0ULL}), "InvalidArgument");
  for (const double fill : {0.0, -0.5, 1.5, 1e300, std::numeric_limits<double>::quiet_NaN()})
    EXPECT_EQ(codes({.blocks_max = 1000, .fill_max = fill}), "InvalidArgument") << fill;
  EXPECT_EQ(codes({.blocks_max = 1000, .fill_max = 1.0}), "fine");
}

TEST_F(PrefixStoreTest, finds_the_longest_prefix) {
  const Prompt prompt(10 * kTokens + 3, 7);
  const auto all = keys(prompt);
  ASSERT_EQ(all.size(), 10u) << "the last tokens are no whole block";
  EXPECT_EQ(store_->lookup(all).blocks(), 0u);
  for (std::size_t i = 0; i < 7; ++i) ASSERT_EQ(store_->put(all, i, block_of(all[i])), PutBlock::kStored);
  EXPECT_EQ(store_->put(all, 3, block_of(all[3])), PutBlock::kThere);
  EXPECT_EQ(store_->put(all, 8, block_of(all[8])), PutBlock::kNoParent);
  EXPECT_EQ(store_->lookup(all).blocks(), 7u);
  EXPECT_EQ(store_->lookup(std::span(all).first(4)).blocks(), 4u);
  EXPECT_EQ(store_->lookup({}).blocks(), 0u);
  Prompt other = prompt;
  other[5 * kTokens] = 8;
  EXPECT_EQ(store_->lookup(keys(other)).blocks(), 5u);
}

TEST_F(PrefixStoreTest, keeps_models_layouts_shards_and_tenants_apart) {
  const PrefixDomain domain{.model_digest = {1, 2}, .dtype = "BF16", .layout = "hnd", .tenant = "t"};
  std::set<std::pair<std::uint64_t, std::uint64_t>> roots;
  const auto add = [&](PrefixDomain one) {
    const IndexKey key = store_->root(one);
    return roots.emplace(key.low, key.high).second;
  };
  EXPECT_TRUE(add(domain));
  EXPECT_FALSE(add(domain));
  PrefixDomain other = domain;
  other.model_digest.high = 3;
  EXPECT_TRUE(add(other));
  other = domain;
  other.dtype = "F16";
  EXPECT_TRUE(add(other));
  other = domain;
  other.dtype = "BF16h";
  other.layout = "nd";
  EXPECT_TRUE(add(other)) << "fields run together";
  other = domain;
  other.shard = 1;
  EXPECT_TRUE(add(other));
  other = domain;
  other.tenant = "";
  EXPECT_TRUE(add(other));
}

TEST_F(PrefixStoreTest, serves_right_blocks_within_its_bounds_and_after_reopening) {
  auto random = test::generator(1);
  std::size_t found = 0;
  for (int round = 0; round < 4; ++round) {
    for (int i = 0; i < 800; ++i) found += serve(random_prompt(random, 14));
    const IndexCheck report = store_->check();
    EXPECT_TRUE(report.ok()) << report.violations.front();
    EXPECT_LE(store_->stats().blocks, 4000u);
    EXPECT_LE(store_->stats().bytes, 0.85 * (1 << 20));
    if (round % 2 == 0) reopen();
  }
  EXPECT_GT(found, 5000u);
  reopen();
  Prompt prompt = random_prompt(random, 14);
  (void)serve(prompt);
  const std::size_t there = serve(prompt);
  reopen();
  EXPECT_EQ(store_->lookup(keys(prompt)).blocks(), there);
}

TEST_F(PrefixStoreTest, evicts_leaves_that_were_used_longest_ago) {
  make({.capacity_bytes = 1 << 20, .segment_bytes = 1 << 15, .blocks_max = 30, .seed = HashSeed::from(3)});
  const auto prompt_of = [](std::uint32_t n) { return Prompt(10 * kTokens, n); };
  for (std::uint32_t n = 0; n < 3; ++n) (void)serve(prompt_of(n));
  (void)serve(prompt_of(0));
  for (std::uint32_t n = 3; n < 5; ++n) (void)serve(prompt_of(n));
  EXPECT_EQ(store_->lookup(keys(prompt_of(0))).blocks(), 10u) << "it was used again";
  EXPECT_EQ(store_->lookup(keys(prompt_of(1))).blocks(), 0u);
  EXPECT_EQ(store_->lookup(keys(prompt_of(4))).blocks(), 10u);
  const auto match = store_->lookup(keys(prompt_of(0)));
  EXPECT_EQ(store_->evict(100), 20u) << "a pinned prefix stays";
  EXPECT_EQ(store_->lookup(keys(prompt_of(0))).blocks(), 10u);
}

TEST_F(PrefixStoreTest, refuses_politely) {
  const Prompt prompt(3 * kTokens, 1);
  const auto all = keys(prompt);
  EXPECT_EQ(store_->put(all, 0, std::vector<std::byte>(1 << 15)), PutBlock::kFull) << "longer than a segment";
  make({.capacity_bytes = 1 << 20, .segment_bytes = 1 << 15, .blocks_max = 2, .seed = HashSeed::from(3)});
  ASSERT_EQ(store_->put(all, 0, block_of(all[0])), PutBlock::kStored);
  ASSERT_EQ(store_->put(all, 1, block_of(all[1])), PutBlock::kStored);
  EXPECT_EQ(store_->put(all, 2, block_of(all[2])), PutBlock::kFull) << "its own ancestors are not evicted for it";
  EXPECT_EQ(store_->lookup(all).blocks(), 2u);
  EXPECT_TRUE(store_->check().ok());
}

TEST_F(PrefixStoreTest, admits_blocks_that_come_a_second_time) {
  PrefixOptions options = options_;
  options.admission = Admission::kSecondTime;
  make(options);
  auto random = test::generator(2);
  const Prompt prompt(5 * kTokens, 9);
  EXPECT_EQ(serve(prompt), 0u);
  EXPECT_EQ(store_->stats().blocks, 0u);
  for (int i = 0; i < 6; ++i) (void)serve(prompt);  // The first block comes in, then the second ...
  EXPECT_EQ(serve(prompt), 5u);
  EXPECT_GT(store_->stats().not_admitted, 0u);
}

/// The process has this many bytes of addresses besides those in use.
class AddressesLeft {
 public:
  explicit AddressesLeft(std::uint64_t bytes) {
    std::uint64_t pages = 0;
    std::ifstream("/proc/self/statm") >> pages;
    getrlimit(RLIMIT_AS, &before_);
    const rlimit small{pages * 4096 + bytes, before_.rlim_max};
    setrlimit(RLIMIT_AS, &small);
  }
  ~AddressesLeft() { setrlimit(RLIMIT_AS, &before_); }
  AddressesLeft(const AddressesLeft&) = delete;
  AddressesLeft& operator=(const AddressesLeft&) = delete;

 private:
  rlimit before_{};
};

TEST_F(PrefixStoreTest, without_memory_for_its_admission_is_refused_and_nothing_is_left) {
  PrefixOptions options = options_;
  options.admission = Admission::kSecondTime;
  options.blocks_max = 1 << 28;  // Filters of 512 MiB.
  store_.reset();
  const auto open_names = [&] {
    std::vector<std::string> there;
    for (const std::string name : {"p0", "new"}) {
      if (Store::open(*pool_, name, options_, {})) there.push_back(name);
    }
    return there;
  };
  const auto expect_no_memory = [](const auto& result, const char* what) {
    ASSERT_FALSE(result) << what;
    EXPECT_EQ(result.error().code, ErrorCode::kNoSpace) << what;
    EXPECT_NE(result.error().message.find("can't allocate"), std::string::npos) << what << result.error().message;
  };
  {
    const AddressesLeft few(64 << 20);
    expect_no_memory(Store::open(*pool_, "p0", options, {}), "open");
    expect_no_memory(Store::open_or_create(*pool_, "p0", options, {}), "open_or_create of one");
    expect_no_memory(Store::open_or_create(*pool_, "new", options, {}), "open_or_create of none");
    expect_no_memory(Store::create(*pool_, "new", options, {}), "create");
    PendingRegions pending(*pool_);
    expect_no_memory(Store::create_in(pending, "new", options, {}), "create_in");
    auto data = KvStore<ProcessMedia>::open(*pool_, "p0", {});
    ASSERT_TRUE(data) << data.error().message;
    expect_no_memory(Store::attach(std::move(data->store), options), "attach");
  }
  EXPECT_EQ(open_names(), std::vector<std::string>{"p0"});
  options.blocks_max = 1000;
  ASSERT_TRUE(Store::open(*pool_, "p0", options, {}));
}

TEST_F(PrefixStoreTest, blocks_without_tokens_or_beyond_the_keys_are_programmer_errors) {
  const Prompt prompt(3 * kTokens, 1);
  EXPECT_DEATH((void)Store::keys_of(root_, prompt, 0), "a block has at least one token");
  EXPECT_TRUE(Store::keys_of(root_, {}, 1).empty());
  const auto all = keys(prompt);
  EXPECT_DEATH((void)store_->put(all, all.size(), {}), "the block that is put is one of the keys");
  EXPECT_DEATH((void)store_->put({}, 0, {}), "the block that is put is one of the keys");
}

TEST_F(PrefixStoreTest, throws_away_what_is_damaged_with_all_that_follows) {
  const Prompt prompt(6 * kTokens, 1);
  const auto all = keys(prompt);
  (void)serve(prompt);
  Prompt branch = prompt;
  branch[4 * kTokens] = 2;
  (void)serve(branch);
  auto data = pool_->open_region("p0.log");
  ASSERT_TRUE(data);
  const Locator locator = store_->data().index().get(all[2]).value.locator();
  data->at(locator.position & ((1ULL << 48) - 1))[32 + 40] ^= std::byte{1};
  EXPECT_EQ(store_->get(all[2]).state, GetState::kDamaged);
  EXPECT_EQ(store_->get(all[2]).state, GetState::kMissing);
  EXPECT_EQ(store_->lookup(all).blocks(), 2u);
  EXPECT_EQ(store_->stats().quarantined, 6u) << "blocks 2 to 5, and two of the branch";
  EXPECT_TRUE(store_->check().ok());
  (void)serve(prompt);
  EXPECT_EQ(serve(prompt), 6u);
}

TEST_F(PrefixStoreTest, many_threads_never_see_a_wrong_block) {
#if defined(__SANITIZE_THREAD__)
  constexpr int kSteps = 150;
#else
  constexpr int kSteps = 1500;
#endif
  make({.capacity_bytes = 1 << 19, .segment_bytes = 1 << 15, .blocks_max = 500, .seed = HashSeed::from(3)});
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t) {
    threads.emplace_back([this, t] {
      auto random = test::generator(10 + t);
      for (int i = 0; i < kSteps; ++i) (void)serve(random_prompt(random, 10));
    });
  }
  for (std::thread& thread : threads) thread.join();
  const IndexCheck report = store_->check();
  EXPECT_TRUE(report.ok()) << report.violations.front();
  EXPECT_GT(store_->stats().evicted, 100u);
}

/// Threads look prompts up that share prefixes, put what is missing, and evict; then an order of all calls is searched
/// that a tree of one thread could have run. `evicts_by_itself`: there is room for half of the blocks.
void judge_histories(Store& store, const IndexKey& root, bool evicts_by_itself) {
  using crash::PrefixTree;
  using What = PrefixTree::What;
#if defined(__SANITIZE_THREAD__)
  constexpr int kRounds = 8;
#else
  constexpr int kRounds = 60;
#endif
  constexpr unsigned kThreads = 3;
  for (int round = 0; round < kRounds; ++round) {
    // A tree of its own each round: every block has up to two that follow it.
    PrefixTree::Tree tree;
    tree.evicts_by_itself = evicts_by_itself;
    std::vector<std::vector<IndexKey>> keys;         // of each block: those up to it
    std::vector<std::vector<std::uint8_t>> numbers;  // the same as numbers
    auto seeds = test::generator(1000 + static_cast<std::uint64_t>(round));
    for (unsigned block = 0; block < 14; ++block) {
      const int parent = block == 0 ? -1 : static_cast<int>((block - 1) / 2);
      tree.parents.push_back(parent);
      keys.push_back(parent < 0 ? std::vector<IndexKey>() : keys[static_cast<std::size_t>(parent)]);
      numbers.push_back(parent < 0 ? std::vector<std::uint8_t>() : numbers[static_cast<std::size_t>(parent)]);
      const std::array<std::uint32_t, 3> tokens{static_cast<std::uint32_t>(seeds()), block,
                                                static_cast<std::uint32_t>(round)};
      keys.back().push_back(Store::next_key(parent < 0 ? root : keys.back().back(), tokens));
      numbers.back().push_back(static_cast<std::uint8_t>(block));
    }
    test::Histories<PrefixTree> histories(kThreads);
    std::atomic<unsigned> wrong{0};
    std::vector<std::thread> threads;
    for (unsigned t = 0; t < kThreads; ++t) {
      threads.emplace_back([&, t] {
        auto random = test::generator(static_cast<std::uint64_t>(round) * kThreads + t);
        for (int step = 0; step < 30; ++step) {
          const std::size_t leaf = random() % keys.size();
          if (random() % 8 == 0) {
            const std::size_t gone = histories.timed(t, [&] { return store.evict(1 + random() % 2); });
            histories.note(t, 0, {What::kEvict, {}, gone, {}, false});
            continue;
          }
          std::size_t there = 0;
          {
            auto match = histories.timed(t, [&] { return store.lookup(keys[leaf]); });
            there = match.blocks();
            histories.note(t, 0, {What::kLookup, numbers[leaf], there, {}, false});
            for (std::size_t i = 0; i < there; ++i) {
              const auto block = store.get(keys[leaf][i]);
              wrong += block && std::ranges::equal(block.bytes, block_of(keys[leaf][i])) ? 0 : 1;
            }
            (void)histories.timed(t, [&] {
              match = Store::Match();
              return 0;
            });
            if (there != 0) histories.note(t, 0, {What::kUnpin, {numbers[leaf][there - 1]}, 0, {}, false});
          }
          for (std::size_t i = there; i < keys[leaf].size(); ++i) {
            const PutBlock put = histories.timed(t, [&] { return store.put(keys[leaf], i, block_of(keys[leaf][i])); });
            const auto answer = put == PutBlock::kStored     ? PrefixTree::Answer::kStored
                                : put == PutBlock::kThere    ? PrefixTree::Answer::kThere
                                : put == PutBlock::kNoParent ? PrefixTree::Answer::kNoParent
                                                             : PrefixTree::Answer::kFull;
            histories.note(t, 0, {What::kPut, {numbers[leaf][i]}, 0, answer, false});
            if (put > PutBlock::kThere) break;
          }
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    ASSERT_EQ(wrong.load(), 0u);
    std::vector<crash::Timed<PrefixTree::Call>> calls = histories.parts()[0];
    for (auto& one : calls) {  // See PrefixTree::Call::contended.
      const bool looks = one.call.what == What::kLookup;
      if (looks && one.call.count == one.call.blocks.size()) continue;
      const std::uint8_t block = one.call.blocks.empty() ? 0 : one.call.blocks[looks ? one.call.count : 0];
      one.call.contended = std::ranges::any_of(calls, [&](const auto& other) {
        const bool puts =
            other.call.what == What::kPut && ((evicts_by_itself && !looks) || other.call.blocks[0] == block);
        return &other != &one && (puts || (other.call.what == What::kEvict && !looks)) && other.began < one.returned &&
               one.began < other.returned;
      });
    }
    PrefixTree::State state;
    state.tree = &tree;
    const crash::Verdict verdict = crash::linearize<PrefixTree>(calls, state);
    ASSERT_FALSE(verdict.gave_up) << "round " << round;
    ASSERT_TRUE(verdict.linearizable) << "no order explains the " << calls.size() << " calls of round " << round
                                      << "; the longest has " << verdict.order.size();
    if (evicts_by_itself) continue;
    while (store.evict(100) != 0) {
    }
  }
}

TEST_F(PrefixStoreTest, histories_of_threads_that_evict_are_linearizable) {
  make({.capacity_bytes = 1 << 20, .segment_bytes = 1 << 15, .blocks_max = 500, .seed = HashSeed::from(3)});
  judge_histories(*store_, root_, false);
}

TEST_F(PrefixStoreTest, histories_in_a_store_that_is_full_are_linearizable) {
  make({.capacity_bytes = 1 << 20, .segment_bytes = 1 << 15, .blocks_max = 7, .seed = HashSeed::from(3)});
  judge_histories(*store_, root_, true);
}

}  // namespace
}  // namespace dunnock
