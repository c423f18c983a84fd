// Checkpoints on a system that has no thread to give: saves and restores go on with those that there are.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "dunnock/index/checkpoint_saver.hpp"
#include "support/refused_threads.hpp"

namespace dunnock {
namespace {

using Store = CheckpointStore<ProcessMedia>;
using Saver = CheckpointSaver<ProcessMedia>;
constexpr std::uint64_t kChunk = 4096;
constexpr std::uint64_t kBytes = 50 * kChunk;

class RefusedThreads : public ::testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::remove(path_);
    pool_.emplace(std::move(*Pool::create(path_, {.bytes = 96 << 20})));
    auto store =
        Store::create(*pool_, "c", {.capacity_bytes = 16 << 20, .chunk_bytes = kChunk, .segment_bytes = 1 << 18}, {});
    ASSERT_TRUE(store) << store.error().message;
    store_.emplace(std::move(*store));
  }
  void TearDown() override {
    store_.reset();
    pool_.reset();
    std::filesystem::remove(path_);
  }
  [[nodiscard]] static std::vector<std::byte> tensor_of(std::uint64_t version) {
    std::vector<std::byte> bytes(kBytes);
    for (std::uint64_t at = 0; at < kBytes; ++at) bytes[at] = static_cast<std::byte>(at / kChunk * 7 + version);
    return bytes;
  }
  [[nodiscard]] static std::vector<TensorSource> sources(std::span<const std::byte> bytes) {
    return {{{"t", Dtype::kU8, {kBytes}}, bytes, {}, {}}};
  }
  void expect_restored(std::uint64_t version, unsigned threads = 1) {
    std::vector<std::byte> back(kBytes);
    const std::vector<TensorSink> sinks{{{"t", Dtype::kU8, {kBytes}}, back, {}}};
    const auto restored = store_->restore("run", version, sinks, threads);
    ASSERT_TRUE(restored) << restored.error().message;
    EXPECT_EQ(back, tensor_of(version));
  }
  std::string path_ =
      (std::filesystem::temp_directory_path() / ("refused_threads_test." + std::to_string(getpid()))).string();
  std::optional<Pool> pool_;
  std::optional<Store> store_;
};

TEST_F(RefusedThreads, saves_and_restores_with_those_that_there_are) {
  for (const int left : {0, 1, 3}) {
    const auto version = static_cast<std::uint64_t>(left) + 1;
    const std::vector<std::byte> bytes = tensor_of(version);
    const int refused = test::threads_refused;
    {
      const test::ThreadsLeft some(left);
      const auto saved = store_->save("run", version, sources(bytes), {.threads = 8, .notes = {}});
      ASSERT_TRUE(saved) << saved.error().message;
    }
    EXPECT_EQ(test::threads_refused, refused + 1) << "it does not try again";
    const test::ThreadsLeft some(left);
    expect_restored(version, 8);
    EXPECT_EQ(test::threads_refused, refused + 2);
  }
  EXPECT_TRUE(store_->check().ok());
}

TEST_F(RefusedThreads, more_than_1024_are_an_invalid_argument) {
  const std::vector<std::byte> bytes = tensor_of(1);
  ASSERT_TRUE(store_->save("run", 1, sources(bytes)));
  std::vector<std::byte> back(kBytes);
  const std::vector<TensorSink> sinks{{{"t", Dtype::kU8, {kBytes}}, back, {}}};
  const test::ThreadsLeft none(0);
  for (const unsigned threads : {kCheckpointThreadsMax + 1, 100'000u, 1u << 31, ~0u}) {
    const auto saved = store_->save("run", 2, sources(bytes), {.threads = threads, .notes = {}});
    ASSERT_FALSE(saved);
    EXPECT_EQ(saved.error().code, ErrorCode::kInvalidArgument);
    EXPECT_NE(saved.error().message.find("at most 1024 threads"), std::string::npos) << saved.error().message;
    const auto restored = store_->restore("run", 1, sinks, threads);
    ASSERT_FALSE(restored);
    EXPECT_EQ(restored.error().code, ErrorCode::kInvalidArgument);
  }
  EXPECT_TRUE(store_->save("run", 2, sources(bytes), {.threads = kCheckpointThreadsMax, .notes = {}}));
  EXPECT_TRUE(store_->restore("run", 1, sinks, kCheckpointThreadsMax));
  EXPECT_TRUE(store_->restore("run", 1, sinks, 0)) << "the calling thread";
}

TEST_F(RefusedThreads, a_saver_saves_in_the_order_of_its_callers) {
  for (const std::uint64_t staging : {std::uint64_t{0}, staging_bytes_min(3, kChunk)}) {
    for (const int left : {0, 1, 2}) {
      SCOPED_TRACE(std::to_string(staging) + " bytes, " + std::to_string(left) + " threads");
      std::unique_ptr<Saver> saver;
      {
        const test::ThreadsLeft some(left);
        auto made = Saver::create(*store_, {.staging_bytes = staging, .threads = 3, .retention = Retention{2}});
        ASSERT_TRUE(made) << made.error().message;
        saver = std::move(*made);
      }
      const test::ThreadsLeft none(0);  // For the saves, too.
      std::uint64_t newest = store_->latest("run").value().value_or(0);
      for (int i = 0; i < 3; ++i) {
        std::vector<std::byte> bytes = tensor_of(++newest);
        const PendingSave save = saver->save("run", newest, sources(bytes));
        if (left == 0) EXPECT_TRUE(save.done()) << "there is nobody who could do it later";
        save.wait_captured();
        std::fill(bytes.begin(), bytes.end(), std::byte{0xff});
        ASSERT_TRUE(save.wait()) << save.wait().error().message;
        expect_restored(newest);
      }
      if (left < 2) EXPECT_EQ(saver->staged_bytes_most(), 0u) << "nothing is copied without a thread for it";
      // An error is answered as ever.
      EXPECT_EQ(saver->save("run", newest, sources(tensor_of(newest))).wait().error().code, ErrorCode::kAlreadyExists);
      saver->wait_all();
      EXPECT_EQ(store_->list("run").size(), 2u);
    }
  }
}

TEST_F(RefusedThreads, callers_of_a_saver_take_turns) {
  std::unique_ptr<Saver> saver;
  {
    const test::ThreadsLeft none(0);
    saver = std::move(*Saver::create(*store_, {.pending_max = 1}));
  }
  std::vector<std::thread> callers;
  for (std::uint64_t caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&, caller] {
      for (std::uint64_t i = 1; i <= 5; ++i) {
        const std::uint64_t version = caller * 5 + i;
        const std::vector<std::byte> bytes = tensor_of(version);
        const auto saved = saver->save("run", version, sources(bytes)).wait();
        EXPECT_TRUE(saved) << saved.error().message;
        saver->wait_all();
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (std::uint64_t version = 1; version <= 20; ++version) expect_restored(version);
}

}  // namespace
}  // namespace dunnock
