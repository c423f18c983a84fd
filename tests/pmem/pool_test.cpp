// Pool and FileMedia: regions come and go as a whole, errors are clear, fences reach the disk together.
#include "dunnock/pmem/pool.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <thread>

#include "dunnock/pmem/detect.hpp"
#include "support/seed.hpp"

namespace dunnock {
namespace {

class PoolFile : public testing::Test {
 protected:
  std::string path_ = std::filesystem::temp_directory_path() / ("dunnock_pool_" + std::to_string(getpid()) + ".pool");
  void SetUp() override { std::filesystem::remove(path_); }
  void TearDown() override { static_cast<void>(Pool::remove(path_)); }
};

TEST_F(PoolFile, gives_regions_back_as_they_were_left) {
  {
    auto pool = Pool::create(path_, {24 << 20});
    ASSERT_TRUE(pool.has_value()) << pool.error().message;
    const std::array specs{RegionSpec{"a", 100000, 8192}, RegionSpec{"b", 64}};
    auto regions = pool->create_regions(specs);
    ASSERT_TRUE(regions.has_value()) << regions.error().message;
    EXPECT_EQ((*regions)[0].extents().size(), 13U);
    for (const Region& region : *regions) {
      for (const std::byte* extent : region.extents()) {
        EXPECT_EQ(reinterpret_cast<std::uintptr_t>(extent) % 4096, 0U);
      }
      for (std::uint64_t at = 0; at < region.bytes(); ++at) ASSERT_EQ(*region.at(at), std::byte{0});
    }
    for (std::uint64_t at = 0; at < 100000; ++at) *(*regions)[0].at(at) = static_cast<std::byte>(at * 7);
    EXPECT_EQ(pool->create_regions(specs).error().code, ErrorCode::kAlreadyExists);
    EXPECT_EQ(pool->open_region("c").error().code, ErrorCode::kNotFound);
    EXPECT_EQ(pool->remove_region("c").error().code, ErrorCode::kNotFound);
    ASSERT_TRUE(pool->remove_region("b").has_value());
    EXPECT_EQ(pool->regions().size(), 1U);
  }
  auto pool = Pool::open(path_);
  ASSERT_TRUE(pool.has_value()) << pool.error().message;
  auto region = pool->open_region("a");
  ASSERT_TRUE(region.has_value());
  for (std::uint64_t at = 0; at < 100000; ++at) ASSERT_EQ(*region->at(at), static_cast<std::byte>(at * 7));
  EXPECT_EQ(pool->open_region("b").error().code, ErrorCode::kNotFound);
}

TEST_F(PoolFile, creates_all_regions_of_a_call_or_none) {
  auto pool = Pool::create(path_, {24 << 20});
  ASSERT_TRUE(pool.has_value());
  const std::array specs{RegionSpec{"fits", 4096}, RegionSpec{"does not", 1ULL << 30}};
  EXPECT_EQ(pool->create_regions(specs).error().code, ErrorCode::kNoSpace);
  EXPECT_TRUE(pool->regions().empty());
  // And nothing leaks: the same room can be had again and again.
  for (int i = 0; i < 50; ++i) {
    const std::array one{RegionSpec{"r", 8 << 20}};
    ASSERT_TRUE(pool->create_regions(one).has_value());
    ASSERT_TRUE(pool->remove_region("r").has_value());
  }
  EXPECT_EQ(pool->create_regions(std::array{RegionSpec{"", 64}}).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(pool->create_regions(std::array{RegionSpec{"z", 0}}).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(pool->create_regions(std::array{RegionSpec{"z", 64, 5000}}).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(pool->create_regions(std::array{RegionSpec{"t", 64}, RegionSpec{"t", 64}}).error().code,
            ErrorCode::kAlreadyExists);
}

TEST_F(PoolFile, is_there_wholly_or_not_when_its_creation_is_killed) {
  std::mt19937_64 random(test::seed());
  unsigned created = 0;
  for (unsigned round = 0; round < 40; ++round) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      auto pool = Pool::create(path_, {24 << 20});
      _exit(pool ? 0 : 1);
    }
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 30000));
    kill(child, SIGKILL);
    int status = 0;
    waitpid(child, &status, 0);
    EXPECT_FALSE(WIFEXITED(status) && WEXITSTATUS(status) != 0);
    auto pool = Pool::open(path_);
    if (pool) {
      ++created;
      EXPECT_TRUE(pool->create_regions(std::array{RegionSpec{"r", 64}}).has_value());
    } else {
      ASSERT_EQ(pool.error().code, ErrorCode::kNotFound) << pool.error().message;
      ASSERT_TRUE(Pool::create(path_, {24 << 20}).has_value()) << "what the crash has left is in the way";
    }
    pool = make_error(ErrorCode::kNotFound, "");  // Closes it.
    ASSERT_TRUE(Pool::remove(path_).has_value());
  }
  RecordProperty("created", std::to_string(created));
}

TEST_F(PoolFile, is_created_by_one_and_never_over_another_file) {
  std::ofstream(path_) << "of value";
  EXPECT_EQ(Pool::create(path_, {24 << 20}).error().code, ErrorCode::kAlreadyExists);
  EXPECT_EQ(std::filesystem::file_size(path_), 8U);
  std::filesystem::remove(path_);

  EXPECT_TRUE(Pool::create(path_, {24 << 20}).has_value());
  EXPECT_EQ(Pool::create("/nonexistent/p.pool", {24 << 20}).error().code, ErrorCode::kNotFound);
}

TEST_F(PoolFile, is_whole_after_a_kill_while_regions_come_and_go) {
  std::mt19937_64 random = test::generator(1);
  ASSERT_TRUE(Pool::create(path_, {24 << 20}).has_value());
  for (int round = 0; round < 15; ++round) {
    const pid_t child = fork();
    if (child == 0) {
      auto pool = Pool::open(path_);
      if (!pool) _exit(1);
      for (;;) {
        (void)pool->create_regions(std::array{RegionSpec{"x", 1 << 20}, RegionSpec{"y", 2 << 20, 1 << 19}});
        (void)pool->remove_region("x");
        (void)pool->remove_region("y");
      }
    }
    usleep(static_cast<useconds_t>(5000 + random() % 20000));
    kill(child, SIGKILL);
    int status = 0;
    waitpid(child, &status, 0);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the child could not open the pool";
    auto pool = Pool::open(path_);
    ASSERT_TRUE(pool.has_value()) << pool.error().message;
    for (const RegionInfo& info : pool->regions()) {
      ASSERT_TRUE(pool->open_region(info.name).has_value());
      ASSERT_TRUE(pool->remove_region(info.name).has_value());
    }
    ASSERT_TRUE(pool->create_regions(std::array{RegionSpec{"z", 8 << 20}}).has_value()) << "memory has leaked";
    ASSERT_TRUE(pool->remove_region("z").has_value());
  }
}

TEST_F(PoolFile, lets_threads_create_and_remove_regions_side_by_side) {
  constexpr int kThreads = 4;
  auto pool = Pool::create(path_, {64 << 20});
  ASSERT_TRUE(pool.has_value()) << pool.error().message;
  std::vector<std::thread> threads;
  std::atomic<int> failed = 0;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 20; ++i) {
        const std::string name = std::to_string(t) + "." + std::to_string(i);
        const std::array specs{RegionSpec{name, 10000}};
        auto made = pool->create_regions(specs);
        if (!made || !pool->open_region(name)) {
          ++failed;
          continue;
        }
        std::memset((*made)[0].at(0), t + 1, 10000);
        if (i % 5 != 0 && !pool->remove_region(name)) ++failed;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(failed, 0);
  ASSERT_EQ(pool->regions().size(), kThreads * 4U);
  for (const RegionInfo& info : pool->regions()) {
    auto region = pool->open_region(info.name);
    ASSERT_TRUE(region) << info.name;
    const auto expected = static_cast<std::byte>(info.name[0] - '0' + 1);
    for (std::uint64_t at = 0; at < 10000; ++at) ASSERT_EQ(*region->at(at), expected) << info.name;
  }
}

TEST_F(PoolFile, tells_what_is_wrong_with_a_file) {
  EXPECT_EQ(Pool::open(path_).error().code, ErrorCode::kNotFound);
  EXPECT_EQ(Pool::create(path_, {1000}).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(Pool::create("/no/such/place/x.pool", {24 << 20}).error().code, ErrorCode::kNotFound);
  std::ofstream(path_) << "not a pool";
  EXPECT_EQ(Pool::open(path_).error().code, ErrorCode::kNotADunnockPool);
  EXPECT_EQ(Pool::create(path_, {24 << 20}).error().code, ErrorCode::kAlreadyExists);
}

TEST_F(PoolFile, is_open_once) {
  auto pool = Pool::create(path_, {24 << 20});
  ASSERT_TRUE(pool.has_value());
  EXPECT_EQ(Pool::open(path_).error().code, ErrorCode::kAlreadyOpen);
}

TEST_F(PoolFile, in_an_ordinary_file_calls_for_the_file_media) {
  ASSERT_TRUE(Pool::create(path_, {24 << 20}).has_value());
  const auto detection = detect_media(path_);
  ASSERT_TRUE(detection.has_value()) << detection.error().message;
  EXPECT_EQ(detection->kind, MediaKind::kFile);
  EXPECT_FALSE(detection->why.empty());
  EXPECT_EQ(detect_media(path_ + ".none").error().code, ErrorCode::kNotFound);
  for (const char* name : {"dram", "process", "file", "direct", "eadr"}) {
    EXPECT_EQ(to_string(*media_kind(name)), name);
  }
  EXPECT_EQ(media_kind("tape").error().code, ErrorCode::kInvalidArgument);
}

TEST_F(PoolFile, writes_back_once_for_the_fences_that_meet) {
  auto pool = Pool::create(path_, {24 << 20});
  auto regions = pool->create_regions(std::array{RegionSpec{"r", 4 << 20}});
  ASSERT_TRUE(regions.has_value());
  const Region region = (*regions)[0];
  const FileMedia media = pool->file_media();
  const auto word = [&region](std::uint64_t page) -> Word& { return *reinterpret_cast<Word*>(region.at(page * 4096)); };

  media.fence(Point{1});
  EXPECT_EQ(media.syncs(), 0U) << "nothing was flushed";
  for (std::uint64_t page = 0; page < 100; ++page) {
    media.store(Point{1}, word(page), page);
    media.flush(Point{1}, &word(page));
  }
  media.fence(Point{1});
  EXPECT_EQ(media.syncs(), 1U) << "one for all pages of a fence";

  constexpr int kFences = 20;
  std::vector<std::thread> threads;
  for (std::uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kFences; ++i) {
        media.store(Point{1}, word(t * 100), static_cast<std::uint64_t>(i));
        media.flush(Point{1}, &word(t * 100));
        media.fence(Point{1});
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(media.fences(), 1U + 4 * kFences);
  EXPECT_LE(media.syncs(), media.fences());
  EXPECT_GE(media.syncs(), 1U + kFences) << "a thread's next fence can't be served by an earlier write-back";
}

}  // namespace
}  // namespace dunnock
