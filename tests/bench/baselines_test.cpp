// The baselines do what a filter does, or the comparison would mean nothing; and the model predicts.
#include <gtest/gtest.h>

#include <thread>

#include "counting_media.hpp"
#include "dunnock/filter/cuckoo_filter.hpp"
#include "dunnock/pmem/emulated_nvm.hpp"
#include "model.hpp"
#include "support/seed.hpp"
#include "textbook_cuckoo_filter.hpp"

namespace dunnock::bench {
namespace {

template <class F>
void behaves_like_a_filter(F& filter, std::uint64_t slots, double rate_max) {
  const std::uint64_t items = slots * 94 / 100;
  for (std::uint64_t key = 0; key < items; ++key) ASSERT_TRUE(filter.insert(key)) << key;
  for (std::uint64_t key = 0; key < items; ++key) ASSERT_TRUE(filter.contains(key)) << key;
  int found = 0;
  for (std::uint64_t key = 0; key < 200000; ++key) found += filter.contains((1ULL << 40) + key) ? 1 : 0;
  EXPECT_LT(found / 200000.0, rate_max);
  EXPECT_GT(found / 200000.0, rate_max / 1000);
  for (std::uint64_t key = 0; key < items; key += 2) ASSERT_TRUE(filter.erase(key)) << key;
  for (std::uint64_t key = 1; key < items; key += 2) ASSERT_TRUE(filter.contains(key)) << key;
}

TEST(Textbook, is_a_filter_with_12_bits) {
  TextbookCuckooFilter<12> filter(200000, HashSeed::from(test::seed()));
  behaves_like_a_filter(filter, filter.slots(), 0.0025);
}
TEST(Textbook, is_a_filter_with_16_bits) {
  TextbookCuckooFilter<16> filter(200000, HashSeed::from(test::seed()));
  behaves_like_a_filter(filter, filter.slots(), 0.0004);
}
TEST(Textbook, does_the_same_in_bulk) {
  TextbookCuckooFilter<12> filter(200000, HashSeed::from(test::seed()));
  std::vector<std::uint64_t> keys(filter.slots() * 9 / 10);
  for (std::size_t i = 0; i < keys.size(); ++i) keys[i] = i;
  EXPECT_EQ(filter.insert_bulk(keys), keys.size());
  std::vector<std::uint8_t> found(keys.size());
  EXPECT_EQ(filter.contains_bulk(keys, found.data()), keys.size());
}
TEST(Textbook, made_durable_is_a_filter_for_threads_too) {
  DurableTextbookFilter<DirectMedia> filter(200000, HashSeed::from(test::seed()), {});
  behaves_like_a_filter(filter, filter.slots(), 0.0025);
  DurableTextbookFilter<DirectMedia> shared(200000, HashSeed::from(test::seed()), {});
  const std::uint64_t each = shared.slots() * 45 / 100;
  std::thread other([&] {
    for (std::uint64_t key = 0; key < each; ++key) EXPECT_TRUE(shared.insert(1ULL << 32 | key));
  });
  for (std::uint64_t key = 0; key < each; ++key) EXPECT_TRUE(shared.insert(key));
  other.join();
  for (std::uint64_t key = 0; key < each; ++key) ASSERT_TRUE(shared.contains(key) && shared.contains(1ULL << 32 | key));
}
TEST(BlockedBloom, has_no_false_negatives_and_few_false_positives) {
  BlockedBloomFilter filter(100000 * 13, HashSeed::from(test::seed()));
  for (std::uint64_t key = 0; key < 100000; ++key) filter.insert(key);
  for (std::uint64_t key = 0; key < 100000; ++key) ASSERT_TRUE(filter.contains(key));
  int found = 0;
  for (std::uint64_t key = 0; key < 100000; ++key) found += filter.contains((1ULL << 40) + key) ? 1 : 0;
  EXPECT_LT(found, 1500);
}

/// Lines touched per insert in the last percent before `load`, and per negative lookup at it.
std::pair<double, double> measured(double load) {
  using F = CuckooFilter<12, CountingMedia<DirectMedia>, FilterPolicy{.multi_writer = false}>;
  auto filter = std::move(*F::create_volatile({400000, HashSeed::from(test::seed())}));
  const auto end = static_cast<std::uint64_t>(load * static_cast<double>(filter.slots()));
  std::uint64_t key = 0;
  for (; key < end - filter.slots() / 100; ++key) filter.insert(key);
  Counter& counter = Counter::here();
  std::uint64_t before = counter.counts.lines;
  const std::uint64_t first = key;
  for (; key < end; ++key) {
    counter.begin_operation();
    filter.insert(key);
  }
  const double insert = static_cast<double>(counter.counts.lines - before) / static_cast<double>(key - first);
  before = counter.counts.lines;
  for (std::uint64_t i = 0; i < 100000; ++i) {
    counter.begin_operation();
    (void)filter.contains((1ULL << 40) + i);
  }
  return {insert, static_cast<double>(counter.counts.lines - before) / 100000};
}

TEST(Model, predicts_the_lines_that_lookups_and_inserts_touch) {
  for (const double load : {0.5, 0.7, 0.8, 0.9}) {
    const auto [insert, negative] = measured(load);
    const ModelPoint predicted = model_at(load - 0.005);
    EXPECT_NEAR(predicted.insert_lines, insert, 0.15 * insert) << load;
    EXPECT_NEAR(predicted.negative_lines, negative, 0.05 * negative) << load;
  }
}

TEST(Counts, a_plain_durable_insert_or_erase_is_one_line_and_one_fence) {
  using F = CuckooFilter<12, CountingMedia<DirectMedia>>;
  auto filter = std::move(*F::create_volatile({400000, HashSeed::from(test::seed())}));
  Counter& counter = Counter::here();
  for (std::uint64_t key = 0; key < 40000; ++key) {  // At a tenth of the load nothing spills but by rare chance.
    const Counts before = counter.counts;
    ASSERT_TRUE(filter.insert(key));
    ASSERT_EQ(counter.counts.flushes - before.flushes, 1U);
    ASSERT_EQ(counter.counts.fences - before.fences, 1U);
  }
  for (std::uint64_t key = 0; key < 40000; ++key) {
    const Counts before = counter.counts;
    ASSERT_TRUE(filter.erase(key));
    ASSERT_EQ(counter.counts.flushes - before.flushes, 1U);
    ASSERT_EQ(counter.counts.fences - before.fences, 1U);
  }
  const Counts before = counter.counts;
  for (std::uint64_t key = 0; key < 1000; ++key) (void)filter.contains(key);
  EXPECT_EQ(counter.counts.flushes, before.flushes);
  EXPECT_EQ(counter.counts.fences, before.fences);
}

TEST(EmulatedNvm, waits_for_far_blocks_and_for_bandwidth_and_not_for_near_ones) {
  NvmModel model({.read_ns = 20000, .write_gb_per_s = 0.001});  // 20 us a block; 256 us a written block
  alignas(256) static Word words[256] = {};
  const auto took = [](const auto& work) {
    const auto start = std::chrono::steady_clock::now();
    work();
    return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count();
  };
  const EmulatedNvm media(model);
  EXPECT_GE(took([&] { (void)media.load(words[0]); }), 20.0);
  EXPECT_GE(took([&] { (void)media.load(words[32]); }), 20.0);  // The next block.
  std::vector<double> near;
  for (int i = 0; i < 101; ++i) near.push_back(took([&] { (void)media.load(words[1]); }));
  std::nth_element(near.begin(), near.begin() + 50, near.end());
  EXPECT_LT(near[50], 20.0);  // The median: one may be interrupted.
  EXPECT_GE(took([&] {
              media.flush(Point{1}, &words[0]);
              media.flush(Point{1}, &words[64]);
              media.fence(Point{1});
            }),
            512.0);
}

}  // namespace
}  // namespace dunnock::bench
