// PendingRegions: the regions of a creation get their names together, or none is left.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <optional>
#include <thread>

#include "dunnock/pmem/pool.hpp"
#include "pmem/killed_write_back.hpp"
#include "support/pool_objects.hpp"

namespace dunnock {
namespace {

constexpr std::array kTwo{RegionSpec{"a", 1 << 20}, RegionSpec{"b", 2 << 20, 1 << 19}};
constexpr std::array kOne{RegionSpec{"c", 1 << 20}};

class PendingRegionsTest : public testing::Test {
 protected:
  void SetUp() override {
    (void)Pool::remove(path_);
    pool_.emplace(std::move(*Pool::create(path_, {24 << 20})));
  }
  void TearDown() override {
    pool_.reset();
    (void)Pool::remove(path_);
  }
  /// Frees the regions that have names; then the pool holds nothing. To be called last.
  void expect_no_leak() {
    std::vector<std::string> names;
    for (const RegionInfo& info : pool_->regions()) names.push_back(info.name);
    ASSERT_TRUE(pool_->remove_regions(names));
    pool_.reset();
    EXPECT_EQ(test::objects_in(path_), 0U) << "memory has leaked";
  }
  void reopen() {
    pool_.reset();
    auto opened = Pool::open(path_);
    ASSERT_TRUE(opened) << opened.error().message;
    pool_.emplace(std::move(*opened));
  }

  std::string path_ =
      (std::filesystem::temp_directory_path() / ("dunnock_pending." + std::to_string(getpid()))).string();
  std::optional<Pool> pool_;
};

TEST_F(PendingRegionsTest, are_seen_by_nobody_before_they_are_finished_and_by_all_afterwards) {
  {
    PendingRegions pending(*pool_);
    auto two = pending.create(kTwo);
    ASSERT_TRUE(two) << two.error().message;
    ASSERT_TRUE(pending.create(kOne));
    std::memset((*two)[0].at(0), 7, 1 << 20);
    EXPECT_TRUE(pool_->regions().empty());
    EXPECT_EQ(pool_->open_region("a").error().code, ErrorCode::kNotFound);
    EXPECT_EQ(pool_->remove_region("a").error().code, ErrorCode::kNotFound);
    EXPECT_EQ(pool_->create_regions(kOne).error().code, ErrorCode::kAlreadyExists) << "the name is taken";
    EXPECT_EQ(pending.create(kOne).error().code, ErrorCode::kAlreadyExists);
    ASSERT_TRUE(pending.finish());
  }
  reopen();
  EXPECT_EQ(pool_->regions().size(), 3U);
  auto region = pool_->open_region("a");
  ASSERT_TRUE(region);
  for (std::uint64_t at = 0; at < 1 << 20; ++at) ASSERT_EQ(*region->at(at), std::byte{7});
}

TEST_F(PendingRegionsTest, that_are_not_finished_are_freed) {
  {
    PendingRegions pending(*pool_);
    ASSERT_TRUE(pending.create(kTwo));
    EXPECT_EQ(pending.create(std::array{RegionSpec{"big", 1 << 30}}).error().code, ErrorCode::kNoSpace);
  }
  EXPECT_TRUE(pool_->regions().empty());
  EXPECT_TRUE(pool_->create_regions(kTwo)) << "the names are free";
  expect_no_leak();
}

TEST_F(PendingRegionsTest, are_created_all_or_none_where_the_catalog_is_nearly_full) {
  // 256 entries of half a MiB at least.
  pool_.reset();
  ASSERT_TRUE(Pool::remove(path_));
  pool_.emplace(std::move(*Pool::create(path_, {192 << 20})));
  std::vector<std::string> names;
  for (unsigned i = 0; i < 255; ++i) {
    names.push_back("r" + std::to_string(i));
    ASSERT_TRUE(pool_->create_regions(std::array{RegionSpec{names.back(), 64}})) << i;
  }
  {
    PendingRegions pending(*pool_);
    EXPECT_EQ(pending.create(kTwo).error().code, ErrorCode::kNoSpace);
    EXPECT_TRUE(pending.create(kOne));
    EXPECT_EQ(pending.create(std::array{RegionSpec{"d", 64}}).error().code, ErrorCode::kNoSpace);
  }
  EXPECT_EQ(pool_->regions().size(), 255U);
  expect_no_leak();
}

TEST_F(PendingRegionsTest, of_a_process_that_was_killed_are_freed_by_the_next_opening) {
  unsigned kept = 0;
  long step = 1;
  for (;; ++step) {  // Each of libpmemobj's write-backs in it.
    SCOPED_TRACE(step);
    pool_.reset();
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      auto pool = Pool::open(path_);
      if (!pool) _exit(1);
      test::write_backs_left = step;
      PendingRegions pending(*pool);
      if (!pending.create(kTwo) || !pending.create(kOne) || !pending.finish()) _exit(1);
      _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    reopen();
    ASSERT_TRUE(WIFSIGNALED(status) || WEXITSTATUS(status) == 0);
    const auto regions = pool_->regions();
    EXPECT_TRUE(regions.empty() || regions.size() == 3) << regions.size();
    if (!regions.empty()) {
      ++kept;
      const std::vector<std::string> names{"a", "b", "c"};
      ASSERT_TRUE(pool_->remove_regions(names));
    }
    if (!WIFSIGNALED(status)) break;
  }
  EXPECT_GT(step, 15);
  EXPECT_GT(kept, 0U);
  expect_no_leak();
}

TEST_F(PendingRegionsTest, are_freed_also_when_the_opening_that_frees_them_is_killed) {
  long step = 1;
  for (;; ++step) {
    SCOPED_TRACE(step);
    pool_.reset();
    const auto in_child = [&](const auto& work) {
      const pid_t child = fork();
      if (child == 0) {
        work();
        _exit(0);
      }
      int status = 0;
      waitpid(child, &status, 0);
      return WIFSIGNALED(status);
    };
    ASSERT_TRUE(in_child([&] {
      auto pool = Pool::open(path_);
      PendingRegions pending(*pool);
      if (pending.create(kTwo) && pending.create(kOne)) kill(getpid(), SIGKILL);
    }));
    const bool killed = in_child([&] {
      test::write_backs_left = step;
      (void)Pool::open(path_);
      test::write_backs_left = 0;
    });
    reopen();
    EXPECT_TRUE(pool_->regions().empty());
    if (!killed) break;
  }
  EXPECT_GT(step, 5);
  expect_no_leak();
}

TEST_F(PendingRegionsTest, of_several_threads_come_one_after_the_other) {
  std::atomic<int> inside{0};
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 20; ++i) {
        PendingRegions pending(*pool_);
        if (++inside != 1) ++wrong;
        const std::string name = std::to_string(t);
        if (!pending.create(std::array{RegionSpec{name, 1 << 20}})) ++wrong;
        --inside;
        if (i % 2 == 0) {
          if (!pending.finish() || !pool_->remove_region(name)) ++wrong;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  expect_no_leak();
}

TEST_F(PendingRegionsTest, regions_are_removed_together_or_not_at_all) {
  ASSERT_TRUE(pool_->create_regions(kTwo));
  const std::vector<std::string> wrong{"a", "none"};
  EXPECT_EQ(pool_->remove_regions(wrong).error().code, ErrorCode::kNotFound);
  EXPECT_EQ(pool_->regions().size(), 2U);
  const std::vector<std::string> twice{"a", "b", "a"};
  EXPECT_TRUE(pool_->remove_regions(twice));
  EXPECT_TRUE(pool_->regions().empty());
  expect_no_leak();
}

TEST_F(PendingRegionsTest, a_pool_goes_away_again_when_what_is_made_in_it_is_refused) {
  const std::string path = path_ + ".with";
  (void)Pool::remove(path);
  const auto refused = Pool::create_with(path, {24 << 20}, [](Pool& pool) -> Status {
    EXPECT_TRUE(pool.create_regions(kOne));
    EXPECT_FALSE(std::filesystem::exists(pool.path())) << "it has its name when it is whole";
    return make_error(ErrorCode::kInvalidArgument, "a capacity of 1 is too small");
  });
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().message, "a capacity of 1 is too small");
  EXPECT_FALSE(std::filesystem::exists(path));
  const auto made = Pool::create_with(path, {24 << 20}, [](Pool& pool) -> Status {
    auto regions = pool.create_regions(kOne);
    return regions ? Status() : tl::unexpected(regions.error());
  });
  ASSERT_TRUE(made) << made.error().message;
  EXPECT_EQ(made->regions().size(), 1U);
  // One that was there is nobody's to remove.
  bool called = false;
  EXPECT_EQ(Pool::create_with(path, {24 << 20},
                              [&called](Pool&) -> Status {
                                called = true;
                                return make_error(ErrorCode::kIo, "");
                              })
                .error()
                .code,
            ErrorCode::kAlreadyExists);
  EXPECT_FALSE(called);
  EXPECT_TRUE(std::filesystem::exists(path));
}

}  // namespace
}  // namespace dunnock
