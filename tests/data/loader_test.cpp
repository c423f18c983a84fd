// Loaders: each order sees what it promises, ranks divide the same batches, a resumed run sees the same ones, and what
// goes wrong on the thread comes to the caller.
#include "dunnock/data/loader.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <filesystem>
#include <limits>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <thread>

#include "permutation.hpp"
#include "prefetch.hpp"
#include "support/seed.hpp"
#include "support/temporary_folder.hpp"

namespace dunnock::data {
namespace {

using test::TemporaryFolder;
using Rows = std::vector<std::vector<std::int32_t>>;

const device::Device kDevice = device::Device::cpu();

// ----- orders
// ---------------------------------------------------------------------------------------------------------

TEST(Permutation, has_each_number_once_whatever_the_size) {
  auto generator = test::generator(1);
  for (std::uint64_t size = 1; size < 300; ++size) {
    const detail::Permutation permutation(size, generator());
    std::set<std::uint64_t> seen;
    for (std::uint64_t i = 0; i < size; ++i) seen.insert(permutation(i));
    EXPECT_EQ(seen.size(), size);
    EXPECT_EQ(*seen.rbegin(), size - 1);
  }
  const std::uint64_t large = (std::uint64_t{1} << 40) + 12345;
  const detail::Permutation permutation(large, 5);
  for (int i = 0; i < 1000; ++i) EXPECT_LT(permutation(generator() % large), large);
}

/// Chi-square of how often each place gets each number, over many keys. Fixed keys: the answer is always the same.
TEST(Permutation, has_no_favourites) {
  for (const std::uint64_t size : {3ULL, 5ULL, 16ULL, 37ULL}) {
    constexpr std::uint64_t kKeys = 20'000;
    std::vector<std::uint64_t> counts(size * size);
    for (std::uint64_t key = 0; key < kKeys; ++key) {
      const detail::Permutation permutation(size, detail::mixed(7, key));
      for (std::uint64_t i = 0; i < size; ++i) ++counts[i * size + permutation(i)];
    }
    const double expected = static_cast<double>(kKeys) / static_cast<double>(size);
    double chi2 = 0;
    for (const std::uint64_t count : counts) chi2 += std::pow(static_cast<double>(count) - expected, 2) / expected;
    const auto freedom = static_cast<double>((size - 1) * (size - 1));
    EXPECT_LT(chi2, freedom + 5 * std::sqrt(2 * freedom)) << size;
  }
}

// ----- the thread
// ------------------------------------------------------------------------------------------------------

TEST(Prefetch, gives_the_batches_before_an_error_and_then_the_error) {
  detail::Prefetch<int> prefetch(std::vector<int>(2), 10, [](std::uint64_t number, int& slot) -> Status {
    if (number == 15) return make_error(ErrorCode::kCorrupt, "fifteen");
    slot = static_cast<int>(number);
    return {};
  });
  for (int number = 10; number < 15; ++number) {
    const auto slot = prefetch.next();
    ASSERT_TRUE(slot);
    EXPECT_EQ(prefetch.slot(*slot), number);
    prefetch.give_back(*slot);
  }
  for (int i = 0; i < 3; ++i) EXPECT_EQ(prefetch.next().error().message, "fifteen");
}

TEST(Prefetch, refuses_to_wait_for_the_caller_itself) {
  detail::Prefetch<int> prefetch(std::vector<int>(2), 0, [](std::uint64_t, int&) { return Status(); });
  const auto first = prefetch.next(), second = prefetch.next();
  ASSERT_TRUE(first && second);
  const auto third = prefetch.next();
  ASSERT_FALSE(third);
  EXPECT_EQ(third.error().code, ErrorCode::kInvalidArgument);
  prefetch.give_back(*first);
  EXPECT_TRUE(prefetch.next());
}

TEST(Prefetch, fills_ahead_of_the_caller_and_no_further_than_it_has_slots) {
  std::atomic<int> filled = 0;
  detail::Prefetch<int> prefetch(std::vector<int>(3), 0, [&](std::uint64_t, int&) {
    ++filled;
    return Status();
  });
  while (filled < 3) std::this_thread::yield();  // Without a next().
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_EQ(filled, 3);
}

// ----- tokens
// ----------------------------------------------------------------------------------------------------------

/// A file with the tokens 0, 1, 2, ..
TokenFile counting_file(const TemporaryFolder& folder, std::int32_t count) {
  auto writer = TokenFileWriter::create(folder.path("tokens"), 1 << 20);
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(count));
  for (std::int32_t i = 0; i < count; ++i) tokens[static_cast<std::size_t>(i)] = i;
  EXPECT_TRUE(writer->append(tokens));
  EXPECT_TRUE(writer->finish());
  return *TokenFile::open(folder.path("tokens"));
}
TokenLoader loader_of(const TokenFile& file, const TokenLoaderOptions& options, const LoaderPosition* start = nullptr) {
  auto loader = TokenLoader::create(file, file.all(), options, kDevice, start);
  EXPECT_TRUE(loader) << loader.error().message;
  return std::move(*loader);
}
/// The windows of the next batch, row by row; looks that inputs and targets are theirs.
Rows next_rows(TokenLoader& loader) {
  const LoaderPosition position = loader.position();
  const auto batch = loader.next();
  EXPECT_TRUE(batch) << batch.error().message;
  EXPECT_EQ(batch->position(), position);
  Rows rows;
  const std::size_t tokens = batch->tokens();
  for (std::size_t row = 0; row < batch->rows(); ++row) {
    const auto window = batch->windows().subspan(row * (tokens + 1), tokens + 1);
    const auto inputs = batch->inputs().subspan(row * tokens, tokens);
    const auto targets = batch->targets().subspan(row * tokens, tokens);
    EXPECT_TRUE(std::equal(inputs.begin(), inputs.end(), window.begin()));
    EXPECT_TRUE(std::equal(targets.begin(), targets.end(), window.begin() + 1));
    for (std::size_t i = 1; i <= tokens; ++i) EXPECT_EQ(window[i], window[0] + static_cast<std::int32_t>(i));
    rows.emplace_back(window.begin(), window.end());
  }
  return rows;
}
std::vector<std::int32_t> begins_of_epoch(TokenLoader& loader) {
  std::vector<std::int32_t> begins;
  for (std::uint64_t i = 0; i < loader.batches_per_epoch(); ++i) {
    for (const auto& row : next_rows(loader)) begins.push_back(row[0]);
  }
  return begins;
}

TEST(TokenLoader, in_sequence_sees_the_windows_as_they_lie) {
  TemporaryFolder folder;
  auto loader =
      loader_of(counting_file(folder, 41), {.batch = 3, .tokens = 4, .order = Order::kSequential});  // 10 windows.
  EXPECT_EQ(loader.batches_per_epoch(), 3u);
  const std::vector<std::int32_t> expected{0, 4, 8, 12, 16, 20, 24, 28, 32};
  EXPECT_EQ(begins_of_epoch(loader), expected);
  EXPECT_EQ(loader.position().epoch, 1u);
  EXPECT_EQ(begins_of_epoch(loader), expected);
}

TEST(TokenLoader, shuffled_sees_each_window_once_an_epoch_and_cuts_them_elsewhere_the_next_time) {
  TemporaryFolder folder;
  auto loader = loader_of(counting_file(folder, 8 * 101), {.batch = 4, .tokens = 8, .seed = 3});  // 100 windows.
  ASSERT_EQ(loader.batches_per_epoch(), 25u);
  std::set<std::vector<std::int32_t>> orders;
  std::set<std::int32_t> phases;
  for (int epoch = 0; epoch < 20; ++epoch) {
    auto begins = begins_of_epoch(loader);
    orders.insert(begins);
    EXPECT_FALSE(std::ranges::is_sorted(begins));
    std::ranges::sort(begins);
    phases.insert(begins[0]);
    EXPECT_LT(begins[0], 8);
    for (std::size_t i = 0; i < begins.size(); ++i) EXPECT_EQ(begins[i], begins[0] + 8 * static_cast<std::int32_t>(i));
  }
  EXPECT_EQ(orders.size(), 20u);
  EXPECT_GT(phases.size(), 4u);
}

TEST(TokenLoader, anywhere_begins_at_every_token_but_the_last_ones) {
  TemporaryFolder folder;
  auto loader = loader_of(counting_file(folder, 21), {.batch = 2, .tokens = 5, .order = Order::kAnywhere, .seed = 3});
  EXPECT_EQ(loader.batches_per_epoch(), 2u);
  std::map<std::int32_t, int> counts;
  for (int i = 0; i < 2000; ++i) {
    for (const auto& row : next_rows(loader)) ++counts[row[0]];
  }
  ASSERT_EQ(counts.size(), 16u);
  EXPECT_EQ(counts.rbegin()->first, 15);
  for (const auto& [begin, count] : counts) EXPECT_NEAR(count, 250, 80) << begin;  // 5 standard deviations.
}

TEST(TokenLoader, stays_in_its_range) {
  TemporaryFolder folder;
  const TokenFile file = counting_file(folder, 1000);
  for (const Order order : {Order::kSequential, Order::kShuffled, Order::kAnywhere}) {
    auto loader = TokenLoader::create(file, {900, 61}, {.batch = 5, .tokens = 6, .order = order}, kDevice);
    ASSERT_TRUE(loader) << loader.error().message;
    for (int i = 0; i < 50; ++i) {
      for (const auto& row : next_rows(*loader)) {
        EXPECT_GE(row.front(), 900);
        EXPECT_LE(row.back(), 960);
      }
    }
  }
}

TEST(TokenLoader, depends_on_the_seed_alone) {
  TemporaryFolder folder;
  const TokenFile file = counting_file(folder, 5000);
  const auto begins = [&](std::uint64_t seed) {
    auto loader = loader_of(file, {.batch = 4, .tokens = 8, .seed = seed});
    return begins_of_epoch(loader);
  };
  EXPECT_EQ(begins(1), begins(1));
  EXPECT_NE(begins(1), begins(2));
}

/// The model: the batches of one rank that never stops. Against it, any number of ranks, stopped and resumed at random,
/// also on another number of ranks.
TEST(TokenLoader, ranks_and_resumed_runs_see_the_batches_of_one_run) {
  TemporaryFolder folder;
  const TokenFile file = counting_file(folder, 3000);
  auto generator = test::generator(2);
  for (int round = 0; round < 15; ++round) {
    TokenLoaderOptions options{
        .batch = 1 + generator() % 12, .tokens = 1 + generator() % 40, .order = {}, .seed = generator()};
    options.order = static_cast<Order>(generator() % 3);
    constexpr int kBatches = 60;
    std::vector<Rows> expected;
    auto alone = loader_of(file, options);
    for (int i = 0; i < kBatches; ++i) expected.push_back(next_rows(alone));

    std::optional<LoaderPosition> position;
    for (std::size_t at = 0; at < expected.size();) {
      options.shard.ranks = 1 + static_cast<unsigned>(generator() % options.batch);
      options.buffers = 2 + static_cast<unsigned>(generator() % 3);
      std::vector<TokenLoader> ranks;
      for (options.shard.rank = 0; options.shard.rank < options.shard.ranks; ++options.shard.rank)
        ranks.push_back(loader_of(file, options, position ? &*position : nullptr));
      const std::size_t until = std::min(expected.size(), at + generator() % 30);
      for (; at < until; ++at) {
        Rows all;
        for (TokenLoader& rank : ranks) {
          for (auto& row : next_rows(rank)) all.push_back(std::move(row));
        }
        ASSERT_EQ(all, expected[at]);
      }
      position = ranks.back().position();
      for (const TokenLoader& rank : ranks) EXPECT_EQ(rank.position(), *position);
    }
    EXPECT_EQ(*position, alone.position());
  }
}

TEST(TokenLoader, refuses_options_out_of_range_and_says_why) {
  TemporaryFolder folder;
  const TokenFile file = counting_file(folder, 100);
  const auto says = [&](const TokenLoaderOptions& options, TokenRange range, const char* word,
                        const LoaderPosition* start = nullptr) {
    const auto loader = TokenLoader::create(file, range, options, kDevice, start);
    if (loader) return false;
    EXPECT_EQ(loader.error().code, ErrorCode::kInvalidArgument);
    return loader.error().message.find(word) != std::string::npos;
  };
  EXPECT_TRUE(says({.batch = 0, .tokens = 4}, file.all(), "rows"));
  EXPECT_TRUE(says({.batch = 4, .tokens = 0}, file.all(), "tokens"));
  EXPECT_TRUE(says({.batch = 4, .tokens = 4, .shard = {.rank = 2, .ranks = 2}}, file.all(),
                   "rank 2 is out of range: the number of ranks is 2"));
  EXPECT_TRUE(
      says({.batch = 4, .tokens = 4, .shard = {.rank = 0, .ranks = 0}}, file.all(), "the number of ranks is 0"));
  EXPECT_TRUE(says({.batch = 4, .tokens = 4, .shard = {.rank = 0, .ranks = 5}}, file.all(),
                   "4 rows can't be divided among 5 ranks"));
  EXPECT_TRUE(says({.batch = 4, .tokens = 4, .buffers = 1}, file.all(), "buffers"));
  EXPECT_TRUE(says({.batch = 4, .tokens = 4}, {50, 51}, "tokens 50 to 101 are out of range: the file has 100"));
  EXPECT_TRUE(says({.batch = 4, .tokens = 4}, {101, 0}, "are out of range: the file has 100"));
  EXPECT_TRUE(says({.batch = 5, .tokens = 20, .order = Order::kSequential}, file.all(), "too few"));
  EXPECT_TRUE(says({.batch = 1, .tokens = 100, .order = Order::kAnywhere}, file.all(), "too few"));
  EXPECT_TRUE(says({.batch = 1, .tokens = 1}, {5, 0}, "too few"));
  EXPECT_TRUE(
      TokenLoader::create(file, {0, 101 - 1}, {.batch = 1, .tokens = 99, .order = Order::kSequential}, kDevice));

  const TokenLoaderOptions options{.batch = 4, .tokens = 4, .seed = 1};
  LoaderPosition position = loader_of(file, options).position();
  EXPECT_TRUE(TokenLoader::create(file, file.all(), options, kDevice, &position));
  EXPECT_TRUE(says({.batch = 4, .tokens = 4, .seed = 2}, file.all(), "position", &position));
  EXPECT_TRUE(says({.batch = 3, .tokens = 4, .seed = 1}, file.all(), "position", &position));
  EXPECT_TRUE(says({.batch = 4, .tokens = 3, .seed = 1}, file.all(), "position", &position));
  EXPECT_TRUE(
      says({.batch = 4, .tokens = 4, .order = Order::kSequential, .seed = 1}, file.all(), "position", &position));
  EXPECT_TRUE(says(options, {0, 99}, "position", &position));
  LoaderPosition beyond = position;
  beyond.batch = 6;
  EXPECT_TRUE(says(options, file.all(), "batch 6 of 6", &beyond));
  beyond = position;
  beyond.epoch = std::numeric_limits<std::uint64_t>::max();
  EXPECT_TRUE(says(options, file.all(), "the position is out of range", &beyond));
}

TEST(TokenLoader, a_position_in_other_tokens_of_the_same_count_is_refused_in_every_format) {
  TemporaryFolder folder;
  const auto opened = [&](std::uint16_t token, TokenFile::Format format, bool verify) {
    std::vector<std::uint32_t> header;
    if (format == TokenFile::Format::kLlmC) {
      header.resize(256);
      header[0] = 20240520;
      header[1] = 1;
      header[2] = 200;
    }
    std::vector<std::uint16_t> tokens(200, 1);
    tokens[117] = token;
    return *TokenFile::open(
        folder.write("raw", std::string(reinterpret_cast<const char*>(header.data()), header.size() * 4) +
                                std::string(reinterpret_cast<const char*>(tokens.data()), tokens.size() * 2)),
        {.format = format, .vocabulary = 1 << 20, .verify = verify});
  };
  const TokenLoaderOptions options{.batch = 2, .tokens = 5};
  using Format = TokenFile::Format;
  for (const Format format : {Format::kRaw16, Format::kRaw32, Format::kLlmC}) {
    const TokenFile file = opened(3, format, true);
    const LoaderPosition position = loader_of(file, options).position();
    EXPECT_FALSE(loader_of(file, options, &position).start_lacks_checksum());
    const TokenFile other = opened(4, format, true);
    const auto refused = TokenLoader::create(other, other.all(), options, kDevice, &position);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, ErrorCode::kInvalidArgument);
    // A position from when there was no checksum of such files: it goes on, that can be said, and the next one has it.
    const LoaderPosition old = loader_of(opened(3, format, false), options).position();
    EXPECT_NE(old.setup, position.setup);
    const TokenLoader loader = loader_of(file, options, &old);
    EXPECT_TRUE(loader.start_lacks_checksum());
    EXPECT_EQ(loader.position().setup, position.setup);
  }
}

TEST(TokenLoader, errors_of_the_thread_come_to_the_caller_after_the_batches_before_them) {
  TemporaryFolder folder;
  std::vector<std::uint16_t> tokens(100, 1);
  tokens[50] = 999;
  const std::string path =
      folder.write("raw", {reinterpret_cast<const char*>(tokens.data()), tokens.size() * sizeof tokens[0]});
  const auto file = TokenFile::open(path, {.format = TokenFile::Format::kRaw16, .vocabulary = 10, .verify = false});
  ASSERT_TRUE(file);
  auto loader =
      TokenLoader::create(*file, file->all(), {.batch = 1, .tokens = 10, .order = Order::kSequential}, kDevice);
  ASSERT_TRUE(loader);
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(loader->next());
  const LoaderPosition position = loader->position();
  for (int i = 0; i < 2; ++i) {
    const auto batch = loader->next();
    ASSERT_FALSE(batch);
    EXPECT_EQ(batch.error().code, ErrorCode::kCorrupt);
    EXPECT_NE(batch.error().message.find("token 999 "), std::string::npos);
  }
  EXPECT_EQ(loader->position(), position) << "what was not given is not behind us";
}

TEST(TokenLoader, batches_outlive_their_loader_and_go_on_other_threads) {
  TemporaryFolder folder;
  std::optional<TokenBatch> kept;
  {
    auto loader = loader_of(counting_file(folder, 5000), {.batch = 4, .tokens = 8, .order = Order::kSequential});
    auto first = loader.next(), second = loader.next();
    ASSERT_TRUE(first && second);
    const auto full = loader.next();
    ASSERT_TRUE(full) << "the third of three buffers";
    EXPECT_FALSE(loader.next()) << "the caller holds all";
    kept.emplace(std::move(*first));
    std::thread([batch = std::move(*second)] { EXPECT_EQ(batch.inputs()[0], 32); }).join();
  }
  EXPECT_EQ(kept->inputs()[31], 31);
}

// ----- images
// ----------------------------------------------------------------------------------------------------------

/// `count` images of 2 channels, 1 x 2 pixels: image i is i, i + 1, i + 2, i + 3; its label i % 7.
std::shared_ptr<const ImageSet> counting_images(std::uint32_t count) {
  IdxArray images{IdxType::kU8, {count, 2, 1, 2}, {}}, labels{IdxType::kU8, {count}, {}};
  for (std::uint32_t i = 0; i < count; ++i) {
    for (std::uint32_t pixel = 0; pixel < 4; ++pixel) images.data.push_back(static_cast<std::byte>(i + pixel));
    labels.data.push_back(static_cast<std::byte>(i % 7));
  }
  return std::make_shared<const ImageSet>(*ImageSet::create(std::move(images), std::move(labels), 7));
}
/// Which images the next batch has; looks at pixels and labels.
std::vector<int> next_images(ImageLoader& loader, const ImageLoaderOptions& options) {
  const LoaderPosition position = loader.position();
  const auto batch = loader.next();
  EXPECT_TRUE(batch);
  EXPECT_EQ(batch->position(), position);
  std::vector<int> all;
  for (std::size_t row = 0; row < batch->rows(); ++row) {
    const auto image = batch->images().subspan(row * 4, 4);
    const auto pixel = static_cast<int>(std::lround((image[0] * options.deviation[0] + options.mean[0]) * 255));
    for (std::size_t i = 0; i < 4; ++i) {
      const std::size_t channel = options.mean.size() == 1 ? 0 : i / 2;
      const float value = static_cast<float>(pixel + static_cast<int>(i)) / 255.0F;
      EXPECT_EQ(image[i], (value - options.mean[channel]) / options.deviation[channel]);
    }
    EXPECT_EQ(batch->labels()[row], pixel % 7);
    all.push_back(pixel);
  }
  return all;
}

TEST(ImageLoader, shuffles_anew_each_epoch_and_normalises_each_channel) {
  const auto images = counting_images(100);
  const ImageLoaderOptions options{.batch = 9, .seed = 4, .mean = {0.25F, 0.5F}, .deviation = {0.5F, 2}};
  auto loader = ImageLoader::create(images, options, kDevice);
  ASSERT_TRUE(loader);
  EXPECT_EQ(loader->batches_per_epoch(), 11u);
  std::set<std::vector<int>> orders;
  for (int epoch = 0; epoch < 10; ++epoch) {
    std::vector<int> order;
    for (int i = 0; i < 11; ++i) std::ranges::copy(next_images(*loader, options), std::back_inserter(order));
    orders.insert(order);
    EXPECT_EQ(std::set(order.begin(), order.end()).size(), 99u) << "each at most once";
  }
  EXPECT_EQ(orders.size(), 10u);
}

TEST(ImageLoader, keeps_the_rest_of_an_epoch_where_it_is_asked_to) {
  const ImageLoaderOptions options{.batch = 8, .order = Order::kSequential, .keep_remainder = true};
  auto loader = ImageLoader::create(counting_images(21), options, kDevice);
  ASSERT_TRUE(loader);
  EXPECT_EQ(loader->batches_per_epoch(), 3u);
  for (int epoch = 0; epoch < 2; ++epoch) {
    std::vector<int> order;
    for (int i = 0; i < 3; ++i) std::ranges::copy(next_images(*loader, options), std::back_inserter(order));
    ASSERT_EQ(order.size(), 21u);
    for (int i = 0; i < 21; ++i) EXPECT_EQ(order[static_cast<std::size_t>(i)], i);
  }
}

TEST(ImageLoader, ranks_and_resumed_runs_see_the_batches_of_one_run) {
  auto generator = test::generator(3);
  for (int round = 0; round < 15; ++round) {
    const auto images = counting_images(static_cast<std::uint32_t>(60 + generator() % 50));
    ImageLoaderOptions options{
        .batch = 1 + generator() % 20, .keep_remainder = generator() % 2 == 0, .seed = generator()};
    options.order = generator() % 2 == 0 ? Order::kShuffled : Order::kSequential;
    std::vector<std::vector<int>> expected;
    auto alone = ImageLoader::create(images, options, kDevice);
    ASSERT_TRUE(alone);
    for (int i = 0; i < 40; ++i) expected.push_back(next_images(*alone, options));
    std::optional<LoaderPosition> position;
    for (std::size_t at = 0; at < expected.size();) {
      options.shard.ranks = 1 + static_cast<unsigned>(generator() % options.batch);
      std::vector<ImageLoader> ranks;
      for (options.shard.rank = 0; options.shard.rank < options.shard.ranks; ++options.shard.rank) {
        auto made = ImageLoader::create(images, options, kDevice, position ? &*position : nullptr);
        ASSERT_TRUE(made) << made.error().message;
        ranks.push_back(std::move(*made));
      }
      const std::size_t until = std::min(expected.size(), at + generator() % 20);
      for (; at < until; ++at) {
        std::vector<int> all;
        for (ImageLoader& rank : ranks) std::ranges::copy(next_images(rank, options), std::back_inserter(all));
        ASSERT_EQ(all, expected[at]);
      }
      position = ranks.back().position();
    }
  }
}

TEST(ImageLoader, refuses_a_position_in_other_images) {
  const LoaderPosition position = ImageLoader::create(counting_images(40), {.batch = 4}, kDevice)->position();
  EXPECT_TRUE(ImageLoader::create(counting_images(40), {.batch = 4}, kDevice, &position));
  IdxArray images{IdxType::kU8, {40, 2, 1, 2}, std::vector<std::byte>(160)};
  IdxArray labels{IdxType::kU8, {40}, std::vector<std::byte>(40)};
  const auto others = [&] { return std::make_shared<const ImageSet>(*ImageSet::create(images, labels, 7)); };
  const LoaderPosition zeros = ImageLoader::create(others(), {.batch = 4}, kDevice)->position();
  EXPECT_FALSE(ImageLoader::create(others(), {.batch = 4}, kDevice, &position));
  labels.data[39] = std::byte{1};
  EXPECT_FALSE(ImageLoader::create(others(), {.batch = 4}, kDevice, &zeros));
}

TEST(ImageLoader, refuses_options_out_of_range_and_says_why) {
  const auto images = counting_images(20);
  const auto says = [&](const ImageLoaderOptions& options, const char* word, const LoaderPosition* start = nullptr) {
    const auto loader = ImageLoader::create(images, options, kDevice, start);
    if (loader) return false;
    EXPECT_EQ(loader.error().code, ErrorCode::kInvalidArgument);
    return loader.error().message.find(word) != std::string::npos;
  };
  EXPECT_TRUE(says({.batch = 0}, "rows"));
  EXPECT_TRUE(says({.batch = 21}, "20 images are too few"));
  EXPECT_TRUE(says({.batch = 4, .order = Order::kAnywhere}, "sequential or shuffled"));
  EXPECT_TRUE(says({.batch = 4, .mean = {}}, "2 channels"));
  EXPECT_TRUE(says({.batch = 4, .mean = {1, 2, 3}}, "2 channels"));
  EXPECT_TRUE(says({.batch = 4, .deviation = {1, 2, 3}}, "2 channels"));
  EXPECT_TRUE(says({.batch = 4, .deviation = {0}}, "above 0"));
  EXPECT_TRUE(says({.batch = 4, .deviation = {1, -1}}, "above 0"));
  EXPECT_TRUE(says({.batch = 4, .mean = {std::nanf("")}}, "mean"));
  EXPECT_TRUE(says({.batch = 4, .shard = {.rank = 0, .ranks = 5}}, "4 rows can't be divided among 5 ranks"));
  EXPECT_TRUE(says({.batch = 4, .buffers = 0}, "buffers"));
  const auto loader = ImageLoader::create(images, {.batch = 4}, kDevice);
  LoaderPosition position = loader->position();
  EXPECT_TRUE(says({.batch = 4, .seed = 9}, "position", &position));
  position.batch = 5;
  EXPECT_TRUE(says({.batch = 4}, "batch 5 of 5", &position));
}

TEST(ImageLoader, says_when_all_batches_are_held) {
  auto loader = ImageLoader::create(counting_images(20), {.batch = 4, .buffers = 2}, kDevice);
  ASSERT_TRUE(loader);
  const auto first = loader->next(), second = loader->next();
  ASSERT_TRUE(first && second);
  EXPECT_EQ(loader->next().error().code, ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace dunnock::data
