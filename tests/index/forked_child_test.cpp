// Structures in the child of a fork: locks that other threads held at that moment are held for ever there, so every
// call has to answer without them, that the medium is gone. Threads of the parent work on all structures meanwhile.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <filesystem>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "dunnock/filter/cuckoo_filter.hpp"
#include "dunnock/index/checkpoint_store.hpp"
#include "dunnock/index/kv_store.hpp"
#include "dunnock/index/prefix_store.hpp"
#include "support/seed.hpp"

namespace dunnock {
namespace {

using M = ProcessMedia;
using Filter = CuckooFilter<12, M>;
using Prefixes = PrefixStore<M>;
using Checkpoints = CheckpointStore<M>;

std::vector<std::byte> bytes(std::size_t count) { return std::vector<std::byte>(count, std::byte{7}); }

struct Structures {
  Filter filter;
  KvIndex<M> index;
  KvStore<M> store;
  Prefixes prefixes;
  Checkpoints checkpoints;
};

class ForkedChild : public ::testing::Test {
 protected:
  void SetUp() override {
    path_ = (std::filesystem::temp_directory_path() / ("forked_child_test." + std::to_string(getpid()))).string();
    std::filesystem::remove(path_);
    auto pool = Pool::create(path_, {.bytes = 128 << 20});
    ASSERT_TRUE(pool) << pool.error().message;
    pool_.emplace(std::move(*pool));
    // Small, so that threads meet at locks, and segments are compacted and blocks evicted all the time.
    auto filter = Filter::create(*pool_, "f", {.slots = 200}, {});
    auto index = KvIndex<M>::create(*pool_, "i", {.entries = 1000, .bytes_max = 4 << 20, .segment_groups = 2}, {});
    auto store = KvStore<M>::create(*pool_, "s",
                                    {.index = {.entries = 1000, .bytes_max = 4 << 20},
                                     .log = {.capacity_bytes = 64 << 10, .segment_bytes = 8 << 10}},
                                    {});
    auto prefixes =
        Prefixes::create(*pool_, "p", {.capacity_bytes = 64 << 10, .segment_bytes = 8 << 10, .blocks_max = 20}, {});
    auto checkpoints = Checkpoints::create(
        *pool_, "c", {.capacity_bytes = 4 << 20, .chunk_bytes = 4096, .segment_bytes = 256 << 10}, {});
    ASSERT_TRUE(filter && index && store && prefixes && checkpoints);
    all_.emplace(Structures{std::move(*filter), std::move(*index), std::move(*store), std::move(*prefixes),
                            std::move(*checkpoints)});
  }
  void TearDown() override {
    all_.reset();
    pool_.reset();
    std::filesystem::remove(path_);
  }

  /// One of each kind of call. Returns how many were acknowledged.
  int call_all(std::uint64_t seed, const std::atomic<bool>& ends) {
    std::mt19937_64 random(seed);
    Structures& s = *all_;
    int done = 0;
    const auto note = [&](bool acknowledged) { done += acknowledged ? 1 : 0; };
    const std::vector<std::byte> value = bytes(300), part = bytes(5000);
    for (int turn = 0; turn < 20 && !ends; ++turn) {
      const std::uint64_t key = random() % 150;
      note(s.filter.insert(key));
      note(s.filter.erase(key));
      const std::array<std::uint64_t, 3> keys{key + 1000, key + 2000, key + 3000};
      std::array<std::uint8_t, 3> verdicts{};
      note(s.filter.insert_bulk(keys, verdicts.data()) != 0);
      note(s.filter.erase_bulk(keys, verdicts.data()) != 0);
      (void)s.filter.size();

      const IndexKey one{key, 1};
      note(s.index.put(one, IndexValue::of(key)) != PutResult::kIo);
      note(s.index.replace_if(one, IndexValue::of(key), IndexValue::of(key)));
      const std::array<KvIndex<M>::Entry, 1> entries{{{{key, 2}, IndexValue::of(key)}}};
      PutResult result{};
      s.index.put_bulk(entries, &result);
      note(result != PutResult::kIo);
      note(s.index.erase(one));
      note(s.index.erase_bulk(std::array{IndexKey{key, 2}}) != 0);
      (void)s.index.size();

      note(s.store.put({key % 40, 3}, value) != PutResult::kIo);
      note(s.store.put_bulk(std::array<ValueLog<M>::Item, 1>{{{{key % 40, 4}, value}}}));
      note(static_cast<bool>(s.store.get({key % 40, 3})));
      note(s.store.compact(1) != 0);
      note(s.store.erase({key % 40, 4}));

      const std::array<IndexKey, 2> chain{IndexKey{key % 30, 5}, IndexKey{key % 30, 6}};
      note(s.prefixes.put(chain, 0, value) != PutBlock::kIo);
      note(s.prefixes.put(chain, 1, value) != PutBlock::kIo);
      {
        const auto match = s.prefixes.lookup(chain);
        note(match.blocks() != 0);
      }
      note(s.prefixes.evict(1) != 0);
      (void)s.prefixes.stats();

      const std::array sources{TensorSource{{"t", Dtype::kU8, {5000}}, part, {}, {}}};
      const std::string run = "run" + std::to_string(seed % 3);
      note(s.checkpoints.save(run, static_cast<std::uint64_t>(turn) + 1, sources, {}).has_value());
      note(s.checkpoints.retain(run, {.keep_last = 1}).has_value());
      note(s.checkpoints.collect().has_value());
      note(s.checkpoints.latest(run).has_value());
      note(s.checkpoints.manifest(run).has_value());
      note(s.checkpoints.verify(run, kLatestVersion).has_value());
      note(s.checkpoints.diff(run, kLatestVersion, run, kLatestVersion).has_value());
      std::vector<std::byte> back(5000);
      note(s.checkpoints.restore(run, kLatestVersion, std::array{TensorSink{{"t", Dtype::kU8, {5000}}, back, {}}})
               .has_value());
      (void)s.checkpoints.list();
      (void)s.checkpoints.damaged();
    }
    return done;
  }

  std::string path_;
  std::optional<Pool> pool_;
  std::optional<Structures> all_;
};

TEST_F(ForkedChild, answers_that_the_medium_is_gone_and_waits_for_nobody) {
  std::atomic<bool> ends{false};
  std::atomic<std::uint64_t> acknowledged{0};
  std::vector<std::thread> threads;
  for (std::uint64_t t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      for (std::uint64_t n = 0; !ends; ++n)
        acknowledged += static_cast<std::uint64_t>(call_all(test::seed() + t * 1000 + n, ends));
    });
  }
  for (std::uint64_t n = 0; n < 60; ++n) {
    // Held over the fork by this thread, and let go by both.
    const std::array<IndexKey, 1> chain{IndexKey{n % 30, 5}};
    auto match = std::make_unique<Prefixes::Match>(all_->prefixes.lookup(chain));
    const pid_t child = fork();
    if (child == 0) {
      alarm(20);  // It must not hang.
      const std::atomic<bool> never{false};
      const int done = call_all(n, never);
      match.reset();
      _exit(done == 0 ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFEXITED(status)) << "it hung in fork " << n << ", or crashed: signal " << WTERMSIG(status);
    ASSERT_EQ(WEXITSTATUS(status), 0) << "something was acknowledged in the child";
  }
  ends = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_GT(acknowledged.load(), 1000u) << "the threads of the parent were at work";
  EXPECT_TRUE(all_->index.check().ok());
  EXPECT_TRUE(all_->store.check().ok());
}

}  // namespace
}  // namespace dunnock
