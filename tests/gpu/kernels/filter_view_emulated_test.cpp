// The filter's CUDA kernels, thread by thread: their tiles, tails and lists, beside FilterView on the CPU. Races
// between threads are not for the emulator, whose threads change turns at barriers only;
// tests/gpu/kernels/filter_view_test.cpp has them.
#include "dunnock/kernels/filter_view.hpp"

#include <algorithm>
#include <vector>

#include "filter_launchers.hpp"
#include "runners.hpp"

namespace dunnock::kernels {
namespace {

using test::Runner;

class FilterKernels : public test::OnEachRunner {
 protected:
  FilterShape shape(unsigned bits, unsigned group_words, std::uint64_t groups) {
    FilterShape shape{.fingerprint_bits = bits, .group_words = group_words, .groups = groups};
    for (auto& word : shape.seed) word = random()() | 1;
    return shape;
  }
  template <class Key>
  std::vector<Key> keys(std::size_t count) {
    std::vector<Key> keys(count);
    for (Key& key : keys) {
      if constexpr (std::is_same_v<Key, Key128>) {
        key = {random()(), random()()};
      } else {
        key = random()();
      }
    }
    return keys;
  }
  template <class Key>
  std::vector<std::uint8_t> call(detail::FilterOperation operation, const FilterShape& shape,
                                 device::Span<std::uint64_t> words, const std::vector<Key>& keys) {
    const auto in = put(keys, stream());
    const auto out = put(std::vector<std::uint8_t>(keys.size(), 9), stream());
    if (emulated()) {
      detail::emulated::filter_operation<Key>(operation, shape, words.device_data(), in.span(), out.span(), stream());
    } else {
      const FilterView view = *FilterView::create(shape, words);
      if (operation == detail::FilterOperation::kContains) view.contains(in.span(), out.span(), stream());
      if (operation == detail::FilterOperation::kInsert) view.insert(in.span(), out.span(), stream());
      if (operation == detail::FilterOperation::kErase) view.erase(in.span(), out.span(), stream());
    }
    return get(out.span(), stream());
  }
  /// What the CPU says of the same words.
  template <class Key>
  std::vector<std::uint8_t> contained(const FilterShape& shape, const std::vector<std::uint64_t>& words,
                                      const std::vector<Key>& keys) {
    const auto there = put(words, twin_stream());
    const auto in = put(keys, twin_stream());
    const auto out = put(std::vector<std::uint8_t>(keys.size(), 9), twin_stream());
    FilterView::create(shape, there.span())->contains(in.span(), out.span(), twin_stream());
    return get(out.span(), twin_stream());
  }

  template <class Key>
  void fill_ask_and_empty(unsigned bits, unsigned group_words, std::size_t slots, double load) {
    using detail::FilterOperation;
    const std::uint64_t groups = slots / (std::uint64_t{group_words} * (60 / bits));
    const FilterShape filter = shape(bits, group_words, groups);
    const auto words = put(std::vector<std::uint64_t>(groups * group_words), stream());
    const auto inserted = keys<Key>(static_cast<std::size_t>(load * static_cast<double>(slots)));
    const auto all = [](const std::vector<std::uint8_t>& answers, std::uint8_t value) {
      return std::ranges::all_of(answers, [value](std::uint8_t one) { return one == value; });
    };
    const std::string what = std::to_string(bits) + " bits, groups of " + std::to_string(group_words) + ", load " +
                             std::to_string(load) + ", " + std::to_string(slots) + " slots";
    ASSERT_TRUE(all(call(FilterOperation::kInsert, filter, words.span(), inserted), 1)) << what;
    ASSERT_TRUE(all(call(FilterOperation::kContains, filter, words.span(), inserted), 1)) << what;
    const auto strangers = keys<Key>(any_size(3000));
    ASSERT_EQ(call(FilterOperation::kContains, filter, words.span(), strangers),
              contained(filter, get(words.span(), stream()), strangers))
        << what;
    ASSERT_TRUE(all(call(FilterOperation::kErase, filter, words.span(), inserted), 1)) << what;
    for (const std::uint64_t word : get(words.span(), stream())) ASSERT_EQ(word << 4, 0U) << what;
  }
};
DUNNOCK_ON_EACH_RUNNER(FilterKernels);

TEST_P(FilterKernels, fill_answer_and_empty_a_filter) {
  for (const unsigned group_words : {8U, 4U}) {
    for (const unsigned bits : {8U, 12U, 16U}) {
      for (const double load : {0.3, 0.9}) fill_ask_and_empty<std::uint64_t>(bits, group_words, 9000, load);
    }
    fill_ask_and_empty<Key128>(12, group_words, 9000, 0.9);
  }
}

TEST_P(FilterKernels, take_any_number_of_keys) {
  for (const std::size_t slots : {std::size_t{40}, std::size_t{2000}, any_size(5000) + 100})
    fill_ask_and_empty<std::uint64_t>(12, 4, slots / 20 * 20, 0.5);
}

/// More tiles of keys than an emulated device has blocks: each block takes several, and its lists are used again.
TEST_P(FilterKernels, go_from_tile_to_tile) { fill_ask_and_empty<std::uint64_t>(12, 4, 1'300'000, 0.9); }

TEST_P(FilterKernels, refuse_keys_of_a_full_filter_and_keep_the_others) {
  using detail::FilterOperation;
  const FilterShape filter = shape(12, 4, 200);
  const auto words = put(std::vector<std::uint64_t>(800), stream());
  const auto many = keys<std::uint64_t>(6000);
  const auto accepted = call(FilterOperation::kInsert, filter, words.span(), many);
  const auto found = call(FilterOperation::kContains, filter, words.span(), many);
  std::size_t count = 0;
  for (std::size_t i = 0; i < many.size(); ++i) {
    ASSERT_LE(accepted[i], 1) << "every key gets an answer";
    ASSERT_LE(accepted[i], found[i]);
    count += accepted[i];
  }
  EXPECT_GT(count, 3800U);
  EXPECT_LE(count, 4000U);
  std::size_t there = 0;
  for (const std::uint64_t word : get(words.span(), stream())) there += Layout<12>::occupied(word);
  EXPECT_EQ(there, count);
}

TEST_P(FilterKernels, find_the_longest_prefix) {
  using detail::FilterOperation;
  const FilterShape filter = shape(16, 4, 1000);
  const auto words = put(std::vector<std::uint64_t>(4000), stream());
  const auto hashes = keys<Key128>(4000);
  std::vector<std::uint32_t> first{0};
  std::vector<std::uint32_t> stored;
  std::vector<Key128> there;
  while (first.back() < hashes.size()) {
    const auto blocks = std::min<std::uint32_t>(static_cast<std::uint32_t>(random()() % 50),
                                                static_cast<std::uint32_t>(hashes.size()) - first.back());
    stored.push_back(static_cast<std::uint32_t>(random()() % (blocks + 1)));
    there.insert(there.end(), hashes.begin() + first.back(), hashes.begin() + first.back() + stored.back());
    first.push_back(first.back() + blocks);
  }
  (void)call(FilterOperation::kInsert, filter, words.span(), there);
  const auto in = put(hashes, stream());
  const auto ends = put(first, stream());
  const auto out = put(std::vector<std::uint32_t>(stored.size(), 99), stream());
  if (emulated()) {
    detail::emulated::filter_longest_prefix(filter, words.span().device_data(), in.span(), ends.span(), out.span(),
                                            stream());
  } else {
    FilterView::create(filter, words.span())->longest_prefix(in.span(), ends.span(), out.span(), stream());
  }
  const auto lengths = get(out.span(), stream());
  std::size_t longer = 0;
  for (std::size_t r = 0; r < stored.size(); ++r) {
    ASSERT_GE(lengths[r], stored[r]);
    ASSERT_LE(lengths[r], first[r + 1] - first[r]);
    longer += lengths[r] > stored[r] ? 1 : 0;
  }
  EXPECT_LE(longer, stored.size() / 20 + 2);
}

}  // namespace
}  // namespace dunnock::kernels
