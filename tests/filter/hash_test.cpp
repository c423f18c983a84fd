// The hash: what the filter takes from it is even and independent for keys of every shape that users have.
#include "dunnock/filter/hash.hpp"

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "dunnock/filter/layout.hpp"
#include "support/seed.hpp"

namespace dunnock {
namespace {

/// Chi-square of `counts` against evenness, as a number of standard deviations from its mean.
double deviation(const std::vector<std::uint64_t>& counts) {
  double total = 0;
  for (const std::uint64_t count : counts) total += static_cast<double>(count);
  const double expected = total / static_cast<double>(counts.size());
  double chi = 0;
  for (const std::uint64_t count : counts) {
    const double difference = static_cast<double>(count) - expected;
    chi += difference * difference / expected;
  }
  const double freedom = static_cast<double>(counts.size() - 1);
  return (chi - freedom) / std::sqrt(2 * freedom);
}

struct KeyShape {
  const char* name;
  std::function<std::uint64_t(std::uint64_t)> key;
};

class HashOfShape : public testing::TestWithParam<KeyShape> {};

// Ten standard deviations above even: a fault shows as hundreds. (Below even is no fault: sequences may spread better
// than chance.)
constexpr double kTooUneven = 10;

TEST_P(HashOfShape, spreads_groups_buckets_and_fingerprints_evenly_and_independently) {
  for (std::uint64_t trial = 0; trial < 3; ++trial) {
    const KeyHasher hash(HashSeed::from(test::seed() + trial));
    constexpr std::uint64_t kKeys = 1 << 20;
    constexpr std::uint64_t kGroups = 5003;  // not a power of two
    std::vector<std::uint64_t> groups(kGroups), words(8), fingerprints(4096), group_and_word(512),
        word_and_fingerprint(8 * 256), group_and_fingerprint(64 * 64);
    for (std::uint64_t i = 0; i < kKeys; ++i) {
      const Place place = Layout<12>::place(hash(GetParam().key(i)), kGroups * 8);
      const std::uint64_t group = place.bucket / 8;
      const std::uint64_t word = place.bucket % 8;
      ++groups[group];
      ++words[word];
      ++fingerprints[place.fingerprint];
      ++group_and_word[group % 64 * 8 + word];
      ++word_and_fingerprint[word * 256 + place.fingerprint % 256];
      ++group_and_fingerprint[group * 64 / kGroups * 64 + place.fingerprint / 64];
    }
    EXPECT_EQ(fingerprints[0], 0U);
    fingerprints.erase(fingerprints.begin(), fingerprints.begin() + 2);  // 1 is twice as likely, by design
    EXPECT_LT(deviation(groups), kTooUneven);
    EXPECT_LT(deviation(words), kTooUneven);
    EXPECT_LT(deviation(fingerprints), kTooUneven);
    EXPECT_LT(deviation(group_and_word), kTooUneven);
    // The remainders of fingerprints 0 and 1 share the doubled one: leave room for it.
    EXPECT_LT(deviation(word_and_fingerprint), kTooUneven + 30);
    EXPECT_LT(deviation(group_and_fingerprint), kTooUneven);
  }
}

const KeyShape kShapes[] = {
    {"sequence", [](std::uint64_t i) { return i; }},
    {"even_numbers", [](std::uint64_t i) { return 2 * i; }},
    {"multiples_of_4096", [](std::uint64_t i) { return i << 12; }},
    {"high_half_only", [](std::uint64_t i) { return i << 32; }},
    {"top_bits_only", [](std::uint64_t i) { return i << 44; }},
    {"both_halves_equal", [](std::uint64_t i) { return i << 32 | i; }},
    {"both_halves_opposite", [](std::uint64_t i) { return i << 32 | (~i & 0xffffffffU); }},
    {"grid", [](std::uint64_t i) { return (i >> 10) << 32 | (i & 1023); }},
    {"golden_stride", [](std::uint64_t i) { return i * 0x9e3779b97f4a7c15ULL; }},
    {"negative_numbers", [](std::uint64_t i) { return ~i; }},
    {"sparse_bits",
     [](std::uint64_t i) {
       std::uint64_t key = 0;
       for (unsigned bit = 0; bit < 20; ++bit) key |= (i >> bit & 1) << (bit * 3);
       return key;
     }},
};
INSTANTIATE_TEST_SUITE_P(Shapes, HashOfShape, testing::ValuesIn(kShapes),
                         [](const auto& shape) { return std::string(shape.param.name); });

TEST(Hash, flips_half_of_the_output_bits_on_average_when_one_input_bit_flips) {
  const KeyHasher hash(HashSeed::from(test::seed()));
  std::mt19937_64 random = test::generator(1);
  for (unsigned bit = 0; bit < 64; ++bit) {
    std::uint64_t flipped = 0;
    constexpr int kKeys = 4096;
    for (int i = 0; i < kKeys; ++i) {
      const std::uint64_t key = random();
      flipped += static_cast<std::uint64_t>(std::popcount(hash(key) ^ hash(key ^ 1ULL << bit)));
    }
    const double average = static_cast<double>(flipped) / kKeys;
    EXPECT_GT(average, 28) << "input bit " << bit;
    EXPECT_LT(average, 36) << "input bit " << bit;
  }
}

TEST(Hash, depends_on_the_seed_and_only_on_it) {
  std::mt19937_64 random = test::generator(2);
  const KeyHasher a(HashSeed::from(test::seed())), again(HashSeed::from(test::seed())),
      b(HashSeed::from(test::seed() + 1));
  int same = 0;
  for (int i = 0; i < 1000; ++i) {
    const std::uint64_t key = random();
    const std::string text = std::to_string(key);
    EXPECT_EQ(a(key), again(key));
    EXPECT_EQ(a(text), again(text));
    same += a(key) == b(key) || a(text) == b(text) ? 1 : 0;
  }
  EXPECT_EQ(same, 0);
  EXPECT_NE(HashSeed::random(), HashSeed::random());
}

TEST(Hash, of_strings_sees_every_byte_and_the_length) {
  const KeyHasher hash(HashSeed::from(test::seed()));
  for (std::size_t length = 1; length < 600; ++length) {
    std::string text(length, 'a');
    const std::uint64_t before = hash(text);
    EXPECT_NE(before, hash(text + 'a'));
    for (std::size_t i = 0; i < length; i += length / 8 + 1) {
      text[i] = 'b';
      EXPECT_NE(hash(text), before);
      text[i] = 'a';
    }
  }
  EXPECT_NE(hash(std::string_view()), hash(std::string_view("\0", 1)));
}

}  // namespace
}  // namespace dunnock
