// The filter's words on a device: the same as on the host, in both directions.
#include "dunnock/kernels/filter_view.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "dunnock/filter/cuckoo_filter.hpp"
#include "filter_words.hpp"
#include "support/devices.hpp"
#include "support/seed.hpp"

namespace dunnock::kernels {
namespace {

class FilterViews : public test::OnEachDevice {};
DUNNOCK_ON_EACH_DEVICE(FilterViews);

constexpr FilterPolicy kHalfLine{.group_words = 4};
template <unsigned kBits, FilterPolicy kPolicy = FilterPolicy{}>
using HostFilter = CuckooFilter<kBits, DramMedia, kPolicy>;

std::vector<std::uint64_t> random_keys(std::mt19937_64& random, std::size_t count) {
  std::vector<std::uint64_t> keys(count);
  for (auto& key : keys) key = random();
  return keys;
}

/// A device's copy of a filter's words, and the calls that a test makes on it.
template <class Filter>
class Replica {
 public:
  Replica(const Filter& filter, device::Device device) : stream_(std::move(*device::Stream::create(device))) {
    const auto words = filter.words();
    buffer_ = std::move(*device::Buffer<std::uint64_t>::create(words.size(), stream_));
    upload(buffer_.span(), words, stream_);
    FilterShape shape;
    shape.fingerprint_bits = Filter::kFingerprintBits;
    shape.group_words = Filter::kGroupWords;
    shape.groups = words.size() / Filter::kGroupWords;
    shape.seed = filter.seed().words;
    view_.emplace(*FilterView::create(shape, buffer_));
  }

  template <class Key>
  std::vector<std::uint8_t> call(void (FilterView::*operation)(device::Span<const Key>, device::Span<std::uint8_t>,
                                                               device::Stream&) const,
                                 const std::vector<Key>& keys) {
    auto there = device::Buffer<Key>::create(keys.size(), stream_);
    auto answers = device::Buffer<std::uint8_t>::create(keys.size(), stream_);
    EXPECT_TRUE(there && answers);
    upload(there->span(), keys, stream_);
    ((*view_).*operation)(*there, *answers, stream_);
    std::vector<std::uint8_t> back(keys.size(), 77);
    download(back, answers->span(), stream_);
    EXPECT_TRUE(stream_.synchronize());
    return back;
  }
  template <class Key>
  std::vector<std::uint8_t> contains(const std::vector<Key>& keys) {
    return call<Key>(&FilterView::contains, keys);
  }
  template <class Key>
  std::vector<std::uint8_t> insert(const std::vector<Key>& keys) {
    return call<Key>(&FilterView::insert, keys);
  }
  template <class Key>
  std::vector<std::uint8_t> erase(const std::vector<Key>& keys) {
    return call<Key>(&FilterView::erase, keys);
  }
  std::vector<std::uint64_t> words() {
    std::vector<std::uint64_t> words(buffer_.size());
    download(words, buffer_.span(), stream_);
    EXPECT_TRUE(stream_.synchronize());
    return words;
  }
  [[nodiscard]] const FilterView& view() const { return *view_; }
  [[nodiscard]] device::Stream& stream() { return stream_; }

 private:
  device::Stream stream_;
  device::Buffer<std::uint64_t> buffer_;
  std::optional<FilterView> view_;
};

std::size_t yes(const std::vector<std::uint8_t>& answers) {
  EXPECT_TRUE(std::ranges::all_of(answers, [](std::uint8_t one) { return one <= 1; }));
  return static_cast<std::size_t>(std::ranges::count(answers, 1));
}

/// Fills a filter to `load` on the host, then all that a replica says must be what the host says.
template <class Filter>
void compare_lookups(device::Device device, double load, std::uint64_t number) {
  auto random = test::generator(number);
  auto filter = Filter::create_volatile({.slots = 60000, .seed = HashSeed::from(random())});
  ASSERT_TRUE(filter);
  std::vector<std::uint64_t> keys = random_keys(random, static_cast<std::size_t>(load * 60000));
  for (const std::uint64_t key : keys) (void)filter->insert(key);
  const auto others = random_keys(random, 50000);
  keys.insert(keys.end(), others.begin(), others.end());
  Replica<Filter> replica(*filter, device);
  const auto answers = replica.contains(keys);
  for (std::size_t i = 0; i < keys.size(); ++i)
    ASSERT_EQ(answers[i], filter->contains(keys[i]) ? 1 : 0) << "key " << keys[i] << " at load " << load;
}

TEST_P(FilterViews, answer_as_the_host_does_at_any_load) {
  for (const double load : {0.0, 0.4, 0.8, 0.95}) {
    compare_lookups<HostFilter<8>>(device(), load, 1);
    compare_lookups<HostFilter<12>>(device(), load, 2);
    compare_lookups<HostFilter<16>>(device(), load, 3);
    compare_lookups<HostFilter<12, kHalfLine>>(device(), load, 4);
  }
}

/// Fills on the device, reopens on the host, erases on the device again.
template <class Filter>
void fill_and_empty(device::Device device, double load, std::uint64_t number) {
  auto random = test::generator(number);
  const FilterOptions options{.slots = 60000, .seed = HashSeed::from(random())};
  auto filter = Filter::create_volatile(options);
  ASSERT_TRUE(filter);
  // Some are there before, inserted by the host; some keys come twice.
  auto keys = random_keys(random, static_cast<std::size_t>(load * 60000));
  std::copy_n(keys.begin(), keys.size() / 50, keys.end() - static_cast<std::ptrdiff_t>(keys.size() / 50));
  const std::size_t by_host = keys.size() / 4;
  for (std::size_t i = 0; i < by_host; ++i) ASSERT_TRUE(filter->insert(keys[i]));
  const std::vector<std::uint64_t> rest(keys.begin() + static_cast<std::ptrdiff_t>(by_host), keys.end());
  Replica<Filter> replica(*filter, device);
  ASSERT_EQ(yes(replica.insert(rest)), rest.size()) << "at load " << load;
  ASSERT_EQ(yes(replica.contains(keys)), keys.size());

  auto reopened = Filter::create_volatile(options);
  ASSERT_TRUE(reopened);
  ASSERT_TRUE(reopened->assign_words(replica.words()));
  EXPECT_EQ(reopened->size(), keys.size());
  EXPECT_TRUE(reopened->check().ok());
  for (const std::uint64_t key : keys) ASSERT_TRUE(reopened->contains(key));
  const auto strangers = random_keys(random, 20000);
  const auto answers = replica.contains(strangers);
  for (std::size_t i = 0; i < strangers.size(); ++i) ASSERT_EQ(answers[i], reopened->contains(strangers[i]) ? 1 : 0);

  // Half of them go on the device; the others must stay.
  std::shuffle(keys.begin(), keys.end(), random);
  const std::vector<std::uint64_t> gone(keys.begin(), keys.begin() + static_cast<std::ptrdiff_t>(keys.size() / 2));
  const std::vector<std::uint64_t> kept(keys.begin() + static_cast<std::ptrdiff_t>(keys.size() / 2), keys.end());
  ASSERT_EQ(yes(replica.erase(gone)), gone.size());
  ASSERT_EQ(yes(replica.contains(kept)), kept.size());
  // The host goes on where the device stopped, and it ends empty.
  auto third = Filter::create_volatile(options);
  ASSERT_TRUE(third);
  ASSERT_TRUE(third->assign_words(replica.words()));
  EXPECT_TRUE(third->check().ok());
  for (const std::uint64_t key : kept) ASSERT_TRUE(third->erase(key));
  EXPECT_EQ(third->size(), 0U);
  EXPECT_EQ(third->check().items, 0U);
}

TEST_P(FilterViews, fill_and_empty_what_the_host_reopens) {
  for (const double load : {0.3, 0.9, 0.95}) {
    fill_and_empty<HostFilter<8>>(device(), load, 11);
    fill_and_empty<HostFilter<12>>(device(), load, 12);
    fill_and_empty<HostFilter<16>>(device(), load, 13);
    fill_and_empty<HostFilter<12, kHalfLine>>(device(), 0.9 * load, 14);
  }
}

TEST_P(FilterViews, refuse_keys_when_they_are_full_and_keep_the_others) {
  auto random = test::generator(21);
  auto filter = HostFilter<12>::create_volatile({.slots = 4000, .seed = HashSeed::from(random())});
  ASSERT_TRUE(filter);
  Replica<HostFilter<12>> replica(*filter, device());
  const auto keys = random_keys(random, 6000);
  const auto accepted = replica.insert(keys);
  EXPECT_GT(yes(accepted), filter->slots() * 95 / 100);
  EXPECT_LE(yes(accepted), filter->slots());
  const auto found = replica.contains(keys);
  for (std::size_t i = 0; i < keys.size(); ++i) ASSERT_LE(accepted[i], found[i]);
  ASSERT_TRUE(filter->assign_words(replica.words()));
  EXPECT_EQ(filter->size(), yes(accepted));
  EXPECT_TRUE(filter->check().ok());
}

TEST_P(FilterViews, take_inserts_and_erasures_from_several_streams_at_a_time) {
  auto random = test::generator(31);
  for (unsigned round = 0; round < 6; ++round) {
    auto filter = HostFilter<12>::create_volatile({.slots = 3000, .seed = HashSeed::from(random())});
    ASSERT_TRUE(filter);
    Replica<HostFilter<12>> replica(*filter, device());
    constexpr std::size_t kStreams = 4;
    // Few different fingerprints and groups, many equal keys: everybody meets everybody.
    std::vector<std::vector<std::uint64_t>> keys(kStreams);
    for (std::size_t i = 0; i < filter->slots() * 93 / 100; ++i) keys[i % kStreams].push_back(random() % 2500);
    std::vector<std::uint64_t> all;
    for (const auto& some : keys) all.insert(all.end(), some.begin(), some.end());
    std::vector<device::Stream> streams;
    std::vector<device::Buffer<std::uint64_t>> in;
    std::vector<device::Buffer<std::uint8_t>> out;
    for (std::size_t s = 0; s < kStreams; ++s) {
      streams.push_back(std::move(*device::Stream::create(device())));
      in.push_back(std::move(*device::Buffer<std::uint64_t>::create(keys[s].size(), streams[s])));
      out.push_back(std::move(*device::Buffer<std::uint8_t>::create(keys[s].size(), streams[s])));
      upload(in[s].span(), keys[s], streams[s]);
    }
    ASSERT_TRUE(replica.stream().synchronize());
    std::vector<std::vector<std::uint8_t>> accepted(kStreams);
    for (std::size_t s = 0; s < kStreams; ++s) replica.view().insert(in[s], out[s], streams[s]);
    for (std::size_t s = 0; s < kStreams; ++s) {
      accepted[s].resize(keys[s].size());
      download(accepted[s], out[s].span(), streams[s]);
    }
    for (device::Stream& stream : streams) ASSERT_TRUE(stream.synchronize());
    std::size_t count = 0;
    for (const auto& some : accepted) count += yes(some);
    ASSERT_TRUE(filter->assign_words(replica.words()));
    ASSERT_EQ(filter->size(), count) << "none is lost, none is there twice";
    ASSERT_TRUE(filter->check().ok());
    for (std::size_t s = 0; s < kStreams; ++s) {
      for (std::size_t i = 0; i < keys[s].size(); ++i) {
        if (accepted[s][i] == 1) {
          ASSERT_TRUE(filter->contains(keys[s][i]));
        }
      }
    }
    // Now everything that was accepted is erased, by all streams at a time.
    for (std::size_t s = 0; s < kStreams; ++s) {
      std::vector<std::uint64_t> mine;
      for (std::size_t i = 0; i < keys[s].size(); ++i) {
        if (accepted[s][i] == 1) mine.push_back(keys[s][i]);
      }
      keys[s] = std::move(mine);
      upload(in[s].span().subspan(0, keys[s].size()), keys[s], streams[s]);
    }
    for (std::size_t s = 0; s < kStreams; ++s)
      replica.view().erase(in[s].span().subspan(0, keys[s].size()), out[s].span().subspan(0, keys[s].size()),
                           streams[s]);
    std::size_t erased = 0;
    for (std::size_t s = 0; s < kStreams; ++s) {
      std::vector<std::uint8_t> back(keys[s].size());
      download(back, out[s].span().subspan(0, keys[s].size()), streams[s]);
      ASSERT_TRUE(streams[s].synchronize());
      erased += yes(back);
    }
    ASSERT_EQ(erased, count);
    auto empty = HostFilter<12>::create_volatile({.slots = 3000, .seed = filter->seed()});
    ASSERT_TRUE(empty->assign_words(replica.words()));
    ASSERT_EQ(empty->size(), 0U);
  }
}

TEST_P(FilterViews, take_keys_of_128_bits_and_find_the_longest_prefix) {
  auto random = test::generator(41);
  auto filter = HostFilter<16>::create_volatile({.slots = 100000, .seed = HashSeed::from(random())});
  ASSERT_TRUE(filter);
  Replica<HostFilter<16>> replica(*filter, device());
  std::vector<Key128> hashes;
  std::vector<std::uint32_t> first{0};
  std::vector<std::uint32_t> stored;
  std::vector<Key128> there;
  for (unsigned r = 0; r < 500; ++r) {
    const auto blocks = static_cast<std::uint32_t>(random() % 100);
    stored.push_back(blocks == 0 ? 0 : static_cast<std::uint32_t>(random() % (blocks + 1)));
    for (std::uint32_t b = 0; b < blocks; ++b) {
      hashes.push_back({random(), random()});
      if (b < stored.back()) there.push_back(hashes.back());
    }
    first.push_back(static_cast<std::uint32_t>(hashes.size()));
  }
  ASSERT_EQ(yes(replica.insert(there)), there.size());
  const auto answers = replica.contains(there);
  EXPECT_EQ(yes(answers), there.size());
  device::Stream& stream = replica.stream();
  auto on_device = device::Buffer<Key128>::create(hashes.size(), stream);
  auto firsts = device::Buffer<std::uint32_t>::create(first.size(), stream);
  auto lengths = device::Buffer<std::uint32_t>::create(stored.size(), stream);
  ASSERT_TRUE(on_device && firsts && lengths);
  upload(on_device->span(), hashes, stream);
  upload(firsts->span(), first, stream);
  replica.view().longest_prefix(*on_device, *firsts, *lengths, stream);
  std::vector<std::uint32_t> back(stored.size());
  download(back, lengths->span(), stream);
  ASSERT_TRUE(stream.synchronize());
  unsigned longer = 0;
  for (std::size_t r = 0; r < stored.size(); ++r) {
    ASSERT_GE(back[r], stored[r]) << "a stored prefix is found";
    ASSERT_LE(back[r], first[r + 1] - first[r]);
    longer += back[r] > stored[r] ? 1 : 0;
  }
  EXPECT_LT(longer, 5U) << "fingerprints of 16 bits are rarely wrong";
  // Erased, they are not there any more.
  EXPECT_EQ(yes(replica.erase(there)), there.size());
  EXPECT_EQ(yes(replica.contains(there)), 0U);
}

TEST(FilterWords, hash_as_the_filter_does) {
  auto random = test::generator(51);
  const KeyHasher hasher(HashSeed::from(random()));
  detail::FilterSeed seed{};
  std::ranges::copy(hasher.seed().words, seed.words);
  for (unsigned i = 0; i < 10000; ++i) {
    const std::uint64_t low = random();
    const std::uint64_t high = random();
    ASSERT_EQ(detail::hash_of(seed, low), hasher(low));
    ASSERT_EQ(detail::hash_of(seed, Key128{low, high}), hasher(low, high));
  }
}

/// One thread's words, and the 32-byte sectors that it has loaded since it was asked last.
struct CountedAccess {
  static std::uint64_t load(const std::uint64_t* word) {
    sectors.insert(reinterpret_cast<std::uintptr_t>(word) / 32);
    return *word;
  }
  template <unsigned kWords>
  static void load_group(const std::uint64_t* words, std::uint64_t (&values)[kWords]) {
    for (unsigned i = 0; i < kWords; ++i) values[i] = load(words + i);
  }
  static bool swap(std::uint64_t* word, std::uint64_t expected, std::uint64_t desired) {
    if (*word != expected) return false;
    *word = desired;
    return true;
  }
  static void fence() {}
  static inline std::set<std::uintptr_t> sectors;
};

/// Fills to each load and compares the sectors a lookup touches with the table in filter_words.hpp.
template <unsigned kGroupWords>
void compare_sectors(const std::vector<std::array<double, 3>>& load_absent_present) {
  constexpr std::uint64_t kGroups = (1 << 18) / kGroupWords;
  constexpr std::uint64_t kSlots = kGroups * kGroupWords * 5;
  auto random = test::generator(61);
  std::vector<std::uint64_t> memory(kGroups * kGroupWords + 8);
  std::uint64_t* const words = memory.data() + (64 - reinterpret_cast<std::uintptr_t>(memory.data()) % 64) / 8;
  const detail::FilterWords<12, kGroupWords, CountedAccess> filter(words, kGroups);
  std::vector<detail::Move> moves(detail::kMovesMax);
  std::vector<std::uint64_t> there;
  for (const auto& [load, absent, present] : load_absent_present) {
    while (static_cast<double>(there.size()) < load * static_cast<double>(kSlots)) {
      there.push_back(random());
      const Place place = filter.place(there.back());
      const bool in = filter.insert_near(place) == detail::Insertion::kAccepted ||
                      filter.insert_aside(place) == detail::Insertion::kAccepted ||
                      filter.insert_far(place, moves.data()) == detail::Insertion::kAccepted;
      ASSERT_TRUE(in);
    }
    for (const bool stranger : {true, false}) {
      constexpr unsigned kLookups = 100'000;
      std::size_t touched = 0;
      for (unsigned i = 0; i < kLookups; ++i) {
        const Place place = filter.place(stranger ? random() : there[random() % there.size()]);
        CountedAccess::sectors.clear();
        const bool yes = filter.contains(place, filter.home_of(place));
        ASSERT_TRUE(yes || stranger);
        touched += CountedAccess::sectors.size();
      }
      EXPECT_NEAR(static_cast<double>(touched) / kLookups, stranger ? absent : present, 0.015)
          << kGroupWords << " words a group, load " << load;
    }
  }
}

TEST(FilterWords, need_so_many_sectors_a_lookup) {
  compare_sectors<8>({{0.5, 1.04, 1.03}, {0.7, 1.15, 1.08}, {0.8, 1.26, 1.13}, {0.9, 1.45, 1.24}, {0.95, 1.63, 1.33}});
  compare_sectors<4>({{0.5, 1.00, 1.00}, {0.7, 1.01, 1.01}, {0.8, 1.03, 1.03}, {0.9, 1.09, 1.06}, {0.95, 1.15, 1.09}});
}

TEST(FilterWords, bisect_as_a_walk_would) {
  for (std::uint32_t blocks = 0; blocks < 40; ++blocks) {
    for (std::uint32_t stored = 0; stored <= blocks; ++stored) {
      unsigned probes = 0;
      EXPECT_EQ(detail::longest_prefix(blocks,
                                       [&](std::uint32_t block) {
                                         ++probes;
                                         EXPECT_LT(block, blocks);
                                         return block < stored;
                                       }),
                stored);
      EXPECT_LE(probes, 6U);
    }
  }
}

TEST(FilterShapes, are_checked) {
  std::vector<std::uint64_t> words(80);
  const device::Span<std::uint64_t> span(words.data(), words.size());
  const auto refused = [&](const FilterShape& shape) {
    const auto view = FilterView::create(shape, span);
    return !view && view.error().code == ErrorCode::kInvalidArgument && !view.error().message.empty();
  };
  EXPECT_TRUE(FilterView::create({.groups = 10}, span));
  EXPECT_TRUE(FilterView::create({.fingerprint_bits = 8, .group_words = 4, .groups = 20}, span));
  EXPECT_TRUE(refused({.fingerprint_bits = 9, .groups = 10}));
  EXPECT_TRUE(refused({.group_words = 5, .groups = 16}));
  const auto odd = FilterView::create({.groups = 9}, device::Span<std::uint64_t>(words.data() + 1, 72));
  ASSERT_FALSE(odd);
  EXPECT_EQ(odd.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(odd.error().message.find("16 bytes"), std::string::npos) << odd.error().message;
  EXPECT_TRUE(refused({.groups = 0}));
  EXPECT_TRUE(refused({.groups = 11}));
  EXPECT_TRUE(refused({.groups = 1ULL << 40}));
}

}  // namespace
}  // namespace dunnock::kernels
