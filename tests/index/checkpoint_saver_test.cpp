// CheckpointSaver: what is saved in the background is what the tensors were, in bounded memory, whatever happens then.
#include "dunnock/index/checkpoint_saver.hpp"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "support/seed.hpp"

namespace dunnock {
namespace {

using Store = CheckpointStore<ProcessMedia>;
using Saver = CheckpointSaver<ProcessMedia>;
constexpr std::uint64_t kChunk = 64 << 10;

class CheckpointSaverTest : public ::testing::TestWithParam<std::uint64_t> {
 protected:
  void SetUp() override {
    std::filesystem::remove(path_);
    pool_.emplace(std::move(*Pool::create(path_, {.bytes = 192 << 20})));
    store_.emplace(std::move(*Store::create(*pool_, "c", options_, {})));
  }
  void TearDown() override {
    store_.reset();
    pool_.reset();
    std::filesystem::remove(path_);
  }
  [[nodiscard]] std::unique_ptr<Saver> saver(SaverOptions options = {}) {
    options.staging_bytes = GetParam();
    return std::move(*Saver::create(*store_, options));
  }
  /// Does every byte of the tensor "t" of this version equal `byte`?
  [[nodiscard]] ::testing::AssertionResult is_all(std::uint64_t version, std::uint64_t bytes, std::byte byte) {
    std::vector<std::byte> back(bytes);
    const std::vector<TensorSink> sinks{{{"t", Dtype::kU8, {bytes}}, back, {}}};
    const auto restored = store_->restore("run", version, sinks);
    if (!restored) return ::testing::AssertionFailure() << restored.error().message;
    for (std::uint64_t at = 0; at < bytes; ++at) {
      if (back[at] != byte) return ::testing::AssertionFailure() << "differs at " << at;
    }
    return ::testing::AssertionSuccess();
  }
  std::string path_ =
      (std::filesystem::temp_directory_path() / ("checkpoint_saver_test." + std::to_string(getpid()))).string();
  CheckpointOptions options_{.capacity_bytes = 96 << 20,
                             .chunk_bytes = kChunk,
                             .segment_bytes = 1 << 20,
                             .checkpoints_max = 64,
                             .index_segment_groups = 4};
  std::optional<Pool> pool_;
  std::optional<Store> store_;
};

TEST_P(CheckpointSaverTest, saves_what_the_tensors_were_while_training_goes_on) {
  constexpr std::uint64_t kBytes = 20 << 20;
  const auto saver = this->saver();
  std::vector<std::byte> weights(kBytes);
  std::vector<PendingSave> saves;
  for (int step = 1; step <= 6; ++step) {
    for (std::uint64_t at = 0; at < kBytes; ++at) weights[at] = static_cast<std::byte>(step + at / 4096);
    saves.push_back(saver->save("run", static_cast<std::uint64_t>(step),
                                {{{"t", Dtype::kU8, {kBytes}}, weights, {}, {}}}, {{"step", std::to_string(step)}}));
    saves.back().wait_captured();
  }
  for (const PendingSave& save : saves) EXPECT_TRUE(save.wait()) << save.wait().error().message;
  saver->wait_all();
  if (GetParam() != 0) EXPECT_LE(saver->staged_bytes_most(), GetParam());
  std::vector<std::byte> back(kBytes);
  for (int step = 1; step <= 6; ++step) {
    const std::vector<TensorSink> sinks{{{"t", Dtype::kU8, {kBytes}}, back, {}}};
    ASSERT_TRUE(store_->restore("run", static_cast<std::uint64_t>(step), sinks));
    for (std::uint64_t at = 0; at < kBytes; ++at)
      ASSERT_EQ(back[at], static_cast<std::byte>(step + at / 4096)) << step << " at " << at;
    EXPECT_EQ(store_->manifest("run", static_cast<std::uint64_t>(step))->notes[0].second, std::to_string(step));
  }
}

TEST_P(CheckpointSaverTest, goes_on_when_thousands_of_small_tensors_fill_its_batches) {
  const auto saver = this->saver({.threads = 2});
  std::mt19937_64 random(test::seed());
  std::vector<std::vector<std::byte>> bytes;
  std::vector<TensorSource> sources;
  std::vector<TensorSink> sinks;
  std::vector<std::vector<std::byte>> back;
  for (int i = 0; i < 3000; ++i) {
    bytes.emplace_back(random() % 7 == 0 ? 0 : random() % (i % 100 == 0 ? 300000 : 300));
    for (std::byte& one : bytes.back()) one = static_cast<std::byte>(random());
    back.emplace_back(bytes.back().size());
  }
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    const TensorSpec spec{std::to_string(i), Dtype::kU8, {bytes[i].size()}};
    sources.push_back({spec, bytes[i], {}, {}});
    sinks.push_back({spec, back[i], {}});
  }
  const auto report = saver->save("run", 1, sources).wait();
  ASSERT_TRUE(report) << report.error().message;
  ASSERT_TRUE(store_->restore("run", 1, sinks, 2));
  EXPECT_EQ(bytes, back);
}

TEST_P(CheckpointSaverTest, takes_tensors_from_functions) {
  constexpr std::uint64_t kBytes = 30 << 20;
  const auto saver = this->saver({.threads = 3});
  const auto read = [](std::uint64_t offset, std::span<std::byte> into) {
    for (std::size_t at = 0; at < into.size(); ++at) into[at] = static_cast<std::byte>((offset + at) / 777);
    return Status();
  };
  const auto piece = [read](std::uint64_t offset, std::uint64_t bytes) -> Result<std::shared_ptr<const std::byte[]>> {
    auto lent = std::make_shared<std::byte[]>(bytes);
    (void)read(offset, {lent.get(), bytes});
    return std::shared_ptr<const std::byte[]>(std::move(lent));
  };
  const auto report =
      saver
          ->save("run", 1,
                 {{{"read", Dtype::kU8, {kBytes}}, {}, read, {}}, {{"lent", Dtype::kU8, {kBytes}}, {}, {}, piece}})
          .wait();
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_EQ(report->chunks, 2 * kBytes / kChunk);
  EXPECT_EQ(report->chunks_written, kBytes / kChunk);  // They are the same.
  std::atomic<bool> same = true;
  for (const char* name : {"read", "lent"}) {
    const TensorSink sink{{name, Dtype::kU8, {kBytes}}, {}, [&](std::uint64_t offset, std::span<const std::byte> from) {
                            for (std::size_t at = 0; at < from.size(); ++at) {
                              if (from[at] != static_cast<std::byte>((offset + at) / 777)) same = false;
                            }
                            return Status();
                          }};
    ASSERT_TRUE(store_->restore("run", 1, {&sink, 1}, 2));
  }
  EXPECT_TRUE(same);
}

TEST_P(CheckpointSaverTest, keeps_what_retention_says) {
  const auto saver = this->saver({.retention = Retention{.keep_last = 2, .keep_every = 4}});
  std::vector<std::byte> weights(1 << 20);
  for (std::uint64_t step = 1; step <= 10; ++step) {
    weights[0] = static_cast<std::byte>(step);
    ASSERT_TRUE(saver->save("run", step, {{{"t", Dtype::kU8, {weights.size()}}, weights, {}, {}}}).wait());
  }
  std::vector<std::uint64_t> versions;
  for (const CheckpointInfo& info : store_->list()) versions.push_back(info.version);
  EXPECT_EQ(versions, (std::vector<std::uint64_t>{4, 8, 9, 10}));
}

TEST_P(CheckpointSaverTest, tells_of_failures_and_goes_on) {
  const auto saver = this->saver();
  std::vector<std::byte> weights(40 << 20, std::byte{1});
  std::mt19937_64 random(test::seed());
  for (std::byte& one : weights) one = static_cast<std::byte>(random());
  const TensorSource good{{"t", Dtype::kU8, {weights.size()}}, weights, {}, {}};
  EXPECT_TRUE(saver->save("run", 1, {good}).wait());
  EXPECT_EQ(saver->save("run", 1, {good}).wait().error().code, ErrorCode::kAlreadyExists);
  const TensorSource short_one{{"t", Dtype::kU8, {weights.size() + 1}}, weights, {}, {}};
  EXPECT_EQ(saver->save("run", 2, {short_one}).wait().error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(saver->save("run", 2, {good, good}).wait().error().code, ErrorCode::kInvalidArgument);
  const TensorSource unreadable{{"u", Dtype::kU8, {weights.size()}},
                                {},
                                [](std::uint64_t offset, std::span<std::byte>) -> Status {
                                  if (offset < 20 << 20) return {};
                                  return make_error(ErrorCode::kIo, "the rest is gone");
                                },
                                {}};
  EXPECT_EQ(saver->save("run", 2, {good, unreadable}).wait().error().code, ErrorCode::kIo);
  // Too much for the store: 40 MiB of its 96 are taken.
  std::vector<std::byte> more(80 << 20);
  for (std::byte& one : more) one = static_cast<std::byte>(random());
  const auto full = saver->save("run", 2, {{{"t", Dtype::kU8, {more.size()}}, more, {}, {}}});
  full.wait_captured();
  EXPECT_EQ(full.wait().error().code, ErrorCode::kNoSpace);
  EXPECT_TRUE(full.done() && full.captured());
  EXPECT_TRUE(saver->save("run", 3, {good}).wait());
  EXPECT_TRUE(store_->check().ok());
  EXPECT_TRUE(store_->verify("run", 3));
}

TEST_P(CheckpointSaverTest, heals_what_has_rotted) {
  const auto saver = this->saver();
  std::mt19937_64 random(test::seed());
  std::vector<std::byte> weights(3 * kChunk);
  for (std::byte& one : weights) one = static_cast<std::byte>(random());
  const TensorSource source{{"t", Dtype::kU8, {weights.size()}}, weights, {}, {}};
  ASSERT_TRUE(saver->save("run", 1, {source}).wait());
  const auto log = pool_->open_region("c.data.log");
  ASSERT_TRUE(log);
  std::uint64_t at = 0;
  while (at + 64 < log->bytes() && std::memcmp(log->at(at), weights.data() + kChunk, 64) != 0) at += 32;
  ASSERT_LT(at + 64, log->bytes());
  *log->at(at + 1000) ^= std::byte{1};
  ASSERT_FALSE(store_->verify("run", 1));
  const auto report = saver->save("run", 2, {source}).wait();
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_EQ(report->chunks_healed, 1u);
  EXPECT_TRUE(store_->verify("run", 1));
  EXPECT_TRUE(store_->verify("run", 2));
}

TEST_P(CheckpointSaverTest, says_why_a_tensor_cannot_be_read) {
  const auto saver = this->saver();
  const TensorSource unreadable{
      {"u", Dtype::kU8, {8}},
      {},
      [](std::uint64_t, std::span<std::byte>) -> Status { return make_error(ErrorCode::kIo, "the disk is gone"); },
      {}};
  const auto report = saver->save("run", 1, {unreadable}).wait();
  ASSERT_FALSE(report);
  EXPECT_NE(report.error().message.find("the disk is gone"), std::string::npos) << report.error().message;
}

TEST_P(CheckpointSaverTest, refuses_a_retention_that_would_remove_everything) {
  const auto refused = CheckpointSaver<ProcessMedia>::create(*store_, {.retention = Retention{.keep_last = 0}});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kInvalidArgument);
}

TEST_P(CheckpointSaverTest, finds_room_where_a_save_that_failed_left_chunks) {
  const auto saver = this->saver();
  std::mt19937_64 random(test::seed());
  std::vector<std::byte> weights(60 << 20);
  for (std::byte& one : weights) one = static_cast<std::byte>(random());
  const TensorSource unreadable{
      {"u", Dtype::kU8, {8}},
      {},
      [](std::uint64_t, std::span<std::byte>) -> Status { return make_error(ErrorCode::kIo, "the disk is gone"); },
      {}};
  const TensorSource source{{"t", Dtype::kU8, {weights.size()}}, weights, {}, {}};
  ASSERT_FALSE(saver->save("run", 1, {source, unreadable}).wait());
  for (std::byte& one : weights) one = static_cast<std::byte>(random());
  const auto report = saver->save("run", 1, {source}).wait();  // Finds the store full in its middle.
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_EQ(report->chunks_written, weights.size() / kChunk);
  EXPECT_TRUE(store_->verify("run", 1));
  EXPECT_TRUE(store_->check().ok());
}

TEST_P(CheckpointSaverTest, saves_of_many_threads_end_when_it_goes) {
  constexpr std::uint64_t kBytes = 3 << 20;
  std::vector<std::vector<std::byte>> weights;
  for (int t = 0; t < 4; ++t) weights.emplace_back(kBytes, static_cast<std::byte>(t + 1));
  {
    const auto saver = this->saver({.threads = 2, .pending_max = 1});
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&, t] {
        for (std::uint64_t i = 0; i < 5; ++i)
          (void)saver->save("run", static_cast<std::uint64_t>(t) * 5 + i,
                            {{{"t", Dtype::kU8, {kBytes}}, weights[static_cast<std::size_t>(t)], {}, {}}});
      });
    }
    for (auto& thread : threads) thread.join();
  }
  for (std::uint64_t version = 0; version < 20; ++version)
    EXPECT_TRUE(is_all(version, kBytes, static_cast<std::byte>(version / 5 + 1))) << version;
}

// fork() copies the saver, and not its threads: the child must not wait for them, nor save anything.
TEST_P(CheckpointSaverTest, is_not_for_the_child_of_a_fork) {
  constexpr std::uint64_t kBytes = 4 << 20;
  const auto tensors = [](const std::vector<std::byte>& bytes) {
    return std::vector<TensorSource>{{{"t", Dtype::kU8, {kBytes}}, bytes, {}, {}}};
  };
  const std::vector<std::byte> one(kBytes, std::byte{1}), two(kBytes, std::byte{2});
  auto saver = this->saver();
  const PendingSave before = saver->save("run", 1, tensors(one));
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);
    before.wait_captured();
    int wrong = before.done() && before.captured() ? 0 : 1;
    (void)before.wait();
    if (saver->save("run", 2, tensors(two)).wait()) wrong = 2;
    saver->wait_all();
    saver.reset();
    store_.reset();
    pool_.reset();
    _exit(wrong);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status)) << "it was ended by signal " << WTERMSIG(status);
  EXPECT_EQ(WEXITSTATUS(status), 0);
  ASSERT_TRUE(before.wait());
  ASSERT_TRUE(saver->save("run", 3, tensors(two)).wait());
  EXPECT_TRUE(is_all(1, kBytes, std::byte{1}));
  EXPECT_TRUE(is_all(3, kBytes, std::byte{2}));
}

INSTANTIATE_TEST_SUITE_P(Staging, CheckpointSaverTest, ::testing::Values(0, staging_bytes_min(3, kChunk), 64 << 20),
                         [](const auto& info) { return std::to_string(info.param) + "_bytes"; });

static_assert(staging_bytes_min(0, 1 << 20) == 3 << 20);
static_assert(staging_bytes_min(1U << 31, 1 << 20) == ((1ULL << 32) + 1) << 20);
static_assert(staging_bytes_min(~0U, 1ULL << 32) == ~0ULL);

TEST(CheckpointSaverOptions, are_checked) {
  const std::string path =
      (std::filesystem::temp_directory_path() / ("saver_options." + std::to_string(getpid()))).string();
  auto pool = Pool::create(path, {.bytes = 96 << 20});
  ASSERT_TRUE(pool);
  auto store =
      Store::create(*pool, "c", {.capacity_bytes = 4 << 20, .chunk_bytes = 4096, .segment_bytes = 1 << 16}, {});
  ASSERT_TRUE(store) << store.error().message;
  EXPECT_EQ(Saver::create(*store, {.staging_bytes = 8192}).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(Saver::create(*store, {.staging_bytes = staging_bytes_min(2, 4096) - 1, .threads = 2}).error().code,
            ErrorCode::kInvalidArgument);
  EXPECT_EQ(Saver::create(*store, {.pending_max = 0}).error().code, ErrorCode::kInvalidArgument);
  EXPECT_TRUE(Saver::create(*store, {.staging_bytes = staging_bytes_min(2, 4096), .threads = 2}));
  for (const unsigned threads : {kCheckpointThreadsMax + 1, 100'000u, 1u << 31, ~0u}) {
    for (const std::uint64_t staging : {0ULL, 1ULL << 20, ~0ULL}) {
      const auto refused = Saver::create(*store, {.staging_bytes = staging, .threads = threads});
      ASSERT_FALSE(refused) << threads;
      EXPECT_EQ(refused.error().code, ErrorCode::kInvalidArgument);
      EXPECT_NE(refused.error().message.find("at most 1024 threads"), std::string::npos) << refused.error().message;
    }
  }
  EXPECT_TRUE(Saver::create(*store, {.threads = kCheckpointThreadsMax}));
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace dunnock
