// The journal of FileMedia: whatever pages the kernel has written when the power fails, every fenced line is there.
#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "dunnock/pmem/pool.hpp"
#include "journal.hpp"
#include "support/seed.hpp"

namespace {
std::atomic<std::uint64_t> msyncs{0}, fdatasyncs{0};
}

// Before those of the C library: what reaches the disk by itself is counted.
extern "C" int msync(void* address, std::size_t bytes, int flags) {
  ++msyncs;
  return static_cast<int>(syscall(SYS_msync, address, bytes, flags));
}
extern "C" int fdatasync(int file) {
  ++fdatasyncs;
  return static_cast<int>(syscall(SYS_fdatasync, file));
}

namespace dunnock {
namespace {

constexpr std::uint64_t kPages = 64;
constexpr std::uint64_t kRegionBytes = kPages * 4096;
constexpr std::uint64_t kLines = kRegionBytes / kLineBytes;
constexpr std::uint64_t kWords = kLineBytes / 8;
/// Halves of 32 blocks. A group of up to 55 lines takes one, so the last 31 groups are always in the journal.
constexpr std::uint64_t kJournalBytes = 256 << 10;
constexpr std::size_t kGroupsKept = 31;

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream all;
  all << file.rdbuf();
  return std::move(all).str();
}

class Journal : public ::testing::Test {
 protected:
  void SetUp() override {
    for (const std::string& path : {path_, image_}) (void)Pool::remove(path);
    start_opener();
    pool_.emplace(std::move(*Pool::create(path_, {24 << 20, kJournalBytes})));
    const std::array specs{RegionSpec{"r", kRegionBytes}};
    region_ = pool_->create_regions(specs)->front();
    media_.emplace(pool_->file_media());
    // Until there is a journal.
    for (int i = 0; i < 40; ++i) {
      media_->store(Point{1}, word(0, 0), 0);
      media_->flush(Point{1}, &word(0, 0));
      media_->fence(Point{1});
    }
    ASSERT_TRUE(media_->has_journal());
  }
  void TearDown() override {
    pool_.reset();
    close(to_opener_);
    close(from_opener_);
    waitpid(opener_, nullptr, 0);
    for (const std::string& path : {path_, image_}) (void)Pool::remove(path);
  }
  [[nodiscard]] Word& word(std::uint64_t line, std::uint64_t at) const {
    return *reinterpret_cast<Word*>(region_.at(line * kLineBytes + at * 8));
  }
  [[nodiscard]] std::string contents() const { return {reinterpret_cast<const char*>(region_.at(0)), kRegionBytes}; }
  [[nodiscard]] static std::string journal_of(const std::string& path) { return path + ".journal"; }

  /// What a disk may hold when the power fails: of each page of the region what it was at `before`, or what it is now.
  /// `written`: pages that must be as they are now.
  void make_image(const std::string& before, std::mt19937_64& random, const std::vector<bool>& written = {}) {
    std::string pool = read_file(path_);
    const std::string now = contents();
    const std::size_t at = offset_in(pool, now);
    for (std::uint64_t page = 0; page < kPages; ++page) {
      const bool old = (written.empty() || !written[page]) && random() % 2 == 0;
      pool.replace(at + page * 4096, 4096, (old ? before : now).substr(page * 4096, 4096));
    }
    std::ofstream(image_, std::ios::binary) << pool;
    std::filesystem::copy_file(journal_of(path_), journal_of(image_),
                               std::filesystem::copy_options::overwrite_existing);
  }
  /// Where the region lies in the pool's file. Its first page holds a mark that occurs once.
  static std::size_t offset_in(const std::string& pool, const std::string& region) {
    std::size_t at = 0;
    while (at < pool.size() && pool.compare(at, 4096, region, 0, 4096) != 0) at += 4096;
    EXPECT_LT(at, pool.size());
    return at;
  }
  struct Opened {
    int code = -1;        // of the error, or -1
    std::string message;  // of the error
    std::string region;   // what the region `name` holds
  };
  /// Opens the image in a process that has not opened the pool: libpmemobj refuses a copy of an open one.
  [[nodiscard]] Opened open_image(const char* name = "r") const {
    const char request = *name;
    EXPECT_EQ(write(to_opener_, &request, 1), 1);
    char code = 0;
    EXPECT_EQ(read(from_opener_, &code, 1), 1);
    Opened opened;
    if (code != 100) opened.code = code;
    (opened.code == -1 ? opened.region : opened.message) = read_file(image_ + ".out");
    std::filesystem::remove(image_ + ".out");
    return opened;
  }
  /// Starts the process that open_image() asks.
  void start_opener() {
    std::array<int, 2> requests, answers;
    ASSERT_EQ(pipe(requests.data()), 0);
    ASSERT_EQ(pipe(answers.data()), 0);
    opener_ = fork();
    if (opener_ == 0) {
      close(requests[1]);
      for (char name = 0; read(requests[0], &name, 1) == 1;) {
        const char code = static_cast<char>(write_region(std::string(1, name)));
        if (write(answers[1], &code, 1) != 1) break;
      }
      _exit(0);
    }
    close(requests[0]);
    close(answers[1]);
    to_opener_ = requests[1];
    from_opener_ = answers[0];
  }
  /// Writes what the image's region holds, or an error, to a file. The error's code, or 100.
  [[nodiscard]] int write_region(const std::string& name) const {
    std::ofstream file(image_ + ".out", std::ios::binary);
    auto pool = Pool::open(image_);
    if (!pool) {
      file << pool.error().message;
      return static_cast<int>(pool.error().code);
    }
    const Region region = *pool->open_region(name);
    for (std::uint64_t at = 0; at < region.bytes(); at += 4096)
      file.write(reinterpret_cast<const char*>(region.at(at)), 4096);
    return 100;
  }
  /// The region after the image was opened.
  [[nodiscard]] std::string recovered() const {
    const Opened opened = open_image();
    EXPECT_EQ(opened.code, -1) << opened.message;
    EXPECT_FALSE(std::filesystem::exists(journal_of(image_)));
    return opened.region;
  }
  /// Where they differ, instead of what they are.
  static ::testing::AssertionResult same(const std::string& a, const std::string& b) {
    if (a.size() != b.size()) return ::testing::AssertionFailure() << a.size() << " bytes, expected " << b.size();
    const auto at = std::mismatch(a.begin(), a.end(), b.begin()).first - a.begin();
    if (static_cast<std::size_t>(at) == a.size()) return ::testing::AssertionSuccess();
    return ::testing::AssertionFailure() << "differs at " << at;
  }
  static std::uint64_t word_in(const std::string& bytes, std::uint64_t line, std::uint64_t at) {
    std::uint64_t value = 0;
    std::memcpy(&value, bytes.data() + line * kLineBytes + at * 8, 8);
    return value;
  }

  std::string path_ = (std::filesystem::temp_directory_path() / ("journal_test." + std::to_string(getpid()))).string();
  std::string image_ = path_ + ".image";
  pid_t opener_ = -1;
  int to_opener_ = -1, from_opener_ = -1;
  std::optional<Pool> pool_;
  Region region_;
  std::optional<FileMedia> media_;
};

TEST_F(Journal, holds_every_fenced_line_whatever_the_kernel_has_written) {
  std::mt19937_64 random = test::generator(1);
  // Line 0 is never stored to, and marks the region. The words of a line are stored in order.
  media_->store(Point{1}, word(0, 1), random() | 1);
  media_->flush(Point{1}, &word(0, 1));
  media_->fence(Point{1});
  std::vector<std::uint64_t> stored(kLines), fenced(kLines);
  std::uint64_t version = 0;
  std::deque<std::string> before{contents()};
  for (int image = 0; image < 25; ++image) {
    for (std::uint64_t groups = 1 + random() % 60; groups != 0; --groups) {
      std::vector<std::uint64_t> flushed;
      for (std::uint64_t stores = 1 + random() % 40; stores != 0; --stores) {
        const std::uint64_t line = 64 + random() % (kLines - 64);
        stored[line] = ++version;
        for (std::uint64_t at = 0; at < kWords; ++at) media_->store(Point{1}, word(line, at), version);
        if (random() % 3 == 0) continue;
        media_->flush(Point{1}, &word(line, random() % kWords));
        flushed.push_back(line);
      }
      media_->fence(Point{1});
      for (const std::uint64_t line : flushed) fenced[line] = stored[line];
      before.push_back(contents());
      if (before.size() > kGroupsKept) before.pop_front();
    }
    make_image(before[random() % before.size()], random);
    const std::string pool_before = read_file(image_);
    const std::string journal = read_file(journal_of(image_));
    for (const bool again : {false, true}) {
      const std::string bytes = recovered();
      ASSERT_EQ(bytes.size(), kRegionBytes);
      for (std::uint64_t line = 64; line < kLines; ++line) {
        for (std::uint64_t at = 0; at < kWords; ++at) {
          ASSERT_GE(word_in(bytes, line, at), fenced[line]) << "image " << image << ", line " << line;
          ASSERT_LE(word_in(bytes, line, at), stored[line]);
        }
      }
      if (again) break;
      // The power fails once more, in the middle of the replay: some pages are as before, the journal is there.
      std::string pool = read_file(image_);
      const std::size_t at = offset_in(pool, bytes);
      pool = pool_before;
      for (std::uint64_t page = 1; page < kPages; ++page) {
        if (random() % 2 == 0) pool.replace(at + page * 4096, 4096, bytes.substr(page * 4096, 4096));
      }
      std::ofstream(image_, std::ios::binary) << pool;
      std::ofstream(journal_of(image_), std::ios::binary) << journal;
    }
  }
}

TEST_F(Journal, holds_the_words_of_many_threads_in_the_same_lines) {
  std::mt19937_64 random = test::generator(2);
  media_->store(Point{1}, word(0, 1), random() | 1);
  media_->flush(Point{1}, &word(0, 1));
  media_->fence(Point{1});
  constexpr unsigned kThreads = 4;
  constexpr std::uint64_t kShared = 30;
  std::array<std::array<std::uint64_t, kShared>, kThreads> acknowledged{};
  for (int image = 0; image < 15; ++image) {
    const std::string before = contents();
    std::vector<std::thread> threads;
    for (unsigned t = 0; t < kThreads; ++t) {
      const std::uint64_t seed = random();
      threads.emplace_back([&, t, seed] {
        std::mt19937_64 mine(seed);
        // At most 28 groups: what was there before them is still in the journal.
        for (int i = 0; i < 7; ++i) {
          const std::uint64_t line = mine() % kShared;
          const std::uint64_t value = acknowledged[t][line] + 1;
          media_->store(Point{1}, word(64 + line, t), value);
          media_->flush(Point{1}, &word(64 + line, t));
          media_->fence(Point{1});
          acknowledged[t][line] = value;
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    make_image(before, random);
    const std::string bytes = recovered();
    ASSERT_EQ(bytes.size(), kRegionBytes);
    for (unsigned t = 0; t < kThreads; ++t) {
      for (std::uint64_t line = 0; line < kShared; ++line)
        ASSERT_EQ(word_in(bytes, 64 + line, t), acknowledged[t][line]);
    }
  }
}

TEST_F(Journal, does_not_bring_lines_back_over_a_long_write) {
  std::mt19937_64 random = test::generator(3);
  media_->store(Point{1}, word(0, 1), random() | 1);
  media_->flush(Point{1}, &word(0, 1));
  media_->fence(Point{1});
  for (int image = 0; image < 20; ++image) {
    const std::string before = contents();
    for (int i = 0; i < 10; ++i) {
      const std::uint64_t line = 64 + random() % (kLines - 64);
      media_->store(Point{1}, word(line, 0), random());
      media_->flush(Point{1}, &word(line, 0));
      media_->fence(Point{1});
    }
    const std::uint64_t from = 4096 + random() % 64 * 64, length = 20000 + random() % 100000;
    std::vector<std::byte> bytes(length);
    for (std::byte& one : bytes) one = static_cast<std::byte>(random());
    media_->write(Point{1}, region_.at(from), bytes.data(), length);
    ASSERT_EQ(std::memcmp(region_.at(from), bytes.data(), length), 0) << "the mapping shows what was written";
    media_->fence(Point{1});
    // And a line in the middle of it, afterwards.
    const std::uint64_t line = from / kLineBytes + 10 + random() % 100;
    media_->store(Point{1}, word(line, 3), 77);
    media_->flush(Point{1}, &word(line, 3));
    media_->fence(Point{1});
    const std::string expected = contents();
    std::vector<bool> written(kPages);
    for (std::uint64_t page = from / 4096; page <= (from + length - 1) / 4096; ++page) written[page] = true;
    make_image(before, random, written);
    ASSERT_TRUE(same(recovered(), expected)) << "image " << image;
  }
}

TEST_F(Journal, leaves_a_long_write_to_the_file_which_is_written_back) {
  const std::vector<std::byte> bytes(100000, std::byte{9});
  const std::uint64_t before = media_->syncs();
  const std::uint64_t msyncs_before = msyncs;
  media_->write(Point{1}, region_.at(8192), bytes.data(), bytes.size());
  EXPECT_EQ(media_->syncs(), before);
  media_->fence(Point{1});
  EXPECT_EQ(media_->syncs(), before + 1) << "the range; there is nothing for the journal";
  EXPECT_EQ(msyncs, msyncs_before + 1);
  // Now the journal has a line there, which must be revoked.
  media_->store(Point{1}, word(200, 0), 1);
  media_->flush(Point{1}, &word(200, 0));
  media_->fence(Point{1});
  media_->write(Point{1}, region_.at(8192), bytes.data(), bytes.size());
  media_->fence(Point{1});
  EXPECT_EQ(media_->syncs(), before + 4);
}

TEST_F(Journal, forgets_a_region_that_is_removed) {
  media_->store(Point{1}, word(0, 1), 12345);
  for (std::uint64_t line = 0; line < 200; ++line) {
    media_->store(Point{1}, word(line, 2), line);
    media_->flush(Point{1}, &word(line, 2));
  }
  media_->fence(Point{1});
  const std::byte* const old = region_.at(0);
  ASSERT_TRUE(pool_->remove_region("r"));
  // The rest of the pool gets another use; one of these regions lies where the old one did.
  std::string over;
  for (char name = '!'; name <= '~' && over.empty(); ++name) {
    const std::array specs{RegionSpec{std::string_view(&name, 1), kRegionBytes}};
    const auto made = pool_->create_regions(specs);
    if (!made) break;
    for (std::uint64_t at = 0; at < kRegionBytes; at += 4096) std::memset(made->front().at(at), 0x5a, 4096);
    if (made->front().at(0) <= old && old < made->front().at(0) + (kRegionBytes)) over = name;
  }
  ASSERT_FALSE(over.empty());
  // All pages have reached the disk, by the kernel's own choice; then the power fails.
  std::filesystem::copy_file(path_, image_);
  std::filesystem::copy_file(journal_of(path_), journal_of(image_));
  const Opened opened = open_image(over.c_str());
  ASSERT_EQ(opened.code, -1) << opened.message;
  EXPECT_TRUE(same(opened.region, std::string(kRegionBytes, 0x5a)));
}

TEST_F(Journal, takes_more_lines_in_a_fence_than_fit) {
  for (std::uint64_t round = 1; round <= 3; ++round) {
    for (std::uint64_t line = 0; line < kLines; ++line) {
      media_->store(Point{1}, word(line, 0), line + round);
      media_->flush(Point{1}, &word(line, 0));
    }
    const std::uint64_t syncs = fdatasyncs;
    media_->fence(Point{1});
    EXPECT_EQ(fdatasyncs, syncs + 1) << "the whole file is written back instead";
  }
  const std::string expected = contents();
  std::mt19937_64 random = test::generator(4);
  make_image(expected, random);
  EXPECT_TRUE(same(recovered(), expected));
}

TEST_F(Journal, is_gone_when_the_pool_is_closed) {
  EXPECT_TRUE(std::filesystem::exists(journal_of(path_)));
  media_->store(Point{1}, word(5, 5), 5);
  const std::uint64_t syncs = fdatasyncs;
  pool_.reset();
  EXPECT_EQ(fdatasyncs, syncs + 2) << "everything, before the journal goes; and the seal";
  EXPECT_FALSE(std::filesystem::exists(journal_of(path_)));
  auto pool = Pool::open(path_, 0);
  ASSERT_TRUE(pool) << pool.error().message;
  region_ = *pool->open_region("r");
  EXPECT_EQ(word(5, 5).load(), 5u);
  // Without one, fences write back pages.
  const FileMedia media = pool->file_media();
  for (std::uint64_t i = 0; i < 100; ++i) {
    media.store(Point{1}, word(i, 1), i);
    media.flush(Point{1}, &word(i, 1));
    media.fence(Point{1});
  }
  EXPECT_FALSE(media.has_journal());
  EXPECT_EQ(media.syncs(), 100u);
}

TEST_F(Journal, is_done_without_when_it_can_not_be_made) {
  pool_.reset();
  std::filesystem::create_directory(journal_of(path_));
  pool_.emplace(std::move(*Pool::open(path_)));
  region_ = *pool_->open_region("r");
  const FileMedia media = pool_->file_media();
  for (std::uint64_t i = 0; i < 100; ++i) {
    media.store(Point{1}, word(i, 1), i);
    media.flush(Point{1}, &word(i, 1));
    media.fence(Point{1});
  }
  EXPECT_FALSE(media.has_journal());
  pool_.reset();
  std::filesystem::remove(journal_of(path_));
  EXPECT_TRUE(Pool::open(path_));
}

TEST_F(Journal, that_is_missing_or_damaged_is_an_error_and_nothing_is_changed) {
  std::mt19937_64 random = test::generator(5);
  for (std::uint64_t i = 0; i < 20; ++i) {
    media_->store(Point{1}, word(i, 1), random());
    media_->flush(Point{1}, &word(i, 1));
    media_->fence(Point{1});
  }
  const std::string expected = contents();
  std::filesystem::copy_file(path_, image_);
  const Opened missing = open_image();
  EXPECT_EQ(missing.code, static_cast<int>(ErrorCode::kCorrupt));
  EXPECT_NE(missing.message.find(".journal is missing"), std::string::npos) << missing.message;
  const std::string pool = read_file(image_);
  const std::string journal = read_file(journal_of(path_));
  const auto with = [&](const std::string& other) {
    std::ofstream(image_, std::ios::binary) << pool;
    std::ofstream(journal_of(image_), std::ios::binary) << other;
    const Opened opened = open_image();
    if (opened.code != -1) {
      EXPECT_EQ(opened.code, static_cast<int>(ErrorCode::kCorrupt)) << opened.message;
      EXPECT_TRUE(same(read_file(image_), pool)) << "nothing was changed";
      EXPECT_TRUE(same(read_file(journal_of(image_)), other));
    }
    return opened.code == -1;
  };
  EXPECT_TRUE(with(journal));
  EXPECT_FALSE(with(""));
  EXPECT_FALSE(with(std::string(journal.size(), '\0')));
  EXPECT_FALSE(with(journal.substr(0, journal.size() / 2)));
  std::string other = journal;
  other[8] = static_cast<char>(other[8] ^ 1);
  EXPECT_FALSE(with(other)) << "another pool's";
  // A group in the middle.
  other = journal;
  other[4096 + 4096 + 100] = static_cast<char>(other[4096 + 4096 + 100] ^ 1);
  EXPECT_FALSE(with(other)) << "what was fenced after it can't be brought back";
  // Anywhere: an error, or all that was fenced before it. Nothing else.
  for (int i = 0; i < 100; ++i) {
    other = journal;
    const std::size_t at = random() % (4096 + 25 * 4096);
    other[at] = static_cast<char>(other[at] ^ (1 << random() % 8));
    (void)with(other);
  }
}

TEST_F(Journal, of_a_pool_that_is_removed_does_not_haunt_the_next) {
  const std::string journal = read_file(journal_of(path_));
  pool_.reset();
  std::ofstream(journal_of(path_), std::ios::binary) << journal;  // As if the pool had been killed and then removed.
  EXPECT_EQ(Pool::create(path_, {24 << 20}).error().code, ErrorCode::kAlreadyExists);
  EXPECT_TRUE(std::filesystem::exists(journal_of(path_))) << "it may be that of the pool that is there";
  std::filesystem::remove(path_);
  EXPECT_TRUE(Pool::create(path_, {24 << 20}));
  EXPECT_FALSE(std::filesystem::exists(journal_of(path_)));
  std::ofstream(journal_of(path_), std::ios::binary) << journal;
  EXPECT_TRUE(Pool::remove(path_));
  EXPECT_FALSE(std::filesystem::exists(journal_of(path_)));
  EXPECT_EQ(Pool::remove(path_).error().code, ErrorCode::kNotFound);
}

/// Appends a group of one line that says its number.
bool append(detail::Journal& journal, std::uint64_t number) {
  const std::uint64_t offset = number % 100 * kLineBytes;
  return journal.append({&offset, 1}, {}, [number](std::uint64_t, std::uint64_t* words) {
    for (std::uint64_t at = 0; at < kWords; ++at) words[at] = number;
  });
}

TEST(JournalHalf, is_begun_anew_only_when_the_pool_was_written_back) {
  const std::string path =
      (std::filesystem::temp_directory_path() / ("journal_half." + std::to_string(getpid()))).string();
  constexpr std::uint64_t kGroups = 8;  // in a half
  std::mutex mutex;
  std::condition_variable changed;
  unsigned begun = 0, allowed = 0;
  auto made = detail::Journal::create(path, 77, kGroups * detail::kJournalBlock, 1 << 20, [&] {
    std::unique_lock lock(mutex);
    ++begun;
    changed.notify_all();
    return changed.wait_for(lock, std::chrono::seconds(30), [&] { return allowed >= begun; });
  });
  ASSERT_TRUE(made) << made.error().message;
  detail::Journal& journal = **made;
  std::uint64_t number = 0;
  while (number < 2 * kGroups) ASSERT_TRUE(append(journal, ++number));  // Both halves.
  const auto lines_after_a_crash = [&] {
    const std::string bytes = read_file(path);
    std::vector<std::uint64_t> numbers;
    const Status replayed =
        detail::replay_journal(std::as_bytes(std::span(bytes)), 77, 1 << 20,
                               [&](std::uint64_t, const std::uint64_t* words) { numbers.push_back(*words); });
    EXPECT_TRUE(replayed) << replayed.error().message;
    std::sort(numbers.begin(), numbers.end());
    return numbers;
  };
  {
    std::unique_lock lock(mutex);
    ASSERT_TRUE(changed.wait_for(lock, std::chrono::seconds(30), [&] { return begun == 1; }));
  }
  // The first half is being written back. What comes next has to wait for that.
  std::atomic<bool> appended = false;
  std::thread next([&] {
    EXPECT_TRUE(append(journal, number + 1));
    appended = true;
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_FALSE(appended);
  const auto all = lines_after_a_crash();
  ASSERT_EQ(all.size(), 2 * kGroups);
  EXPECT_EQ(all.front(), 1u);
  {
    const std::lock_guard lock(mutex);
    allowed = 1000;
    changed.notify_all();
  }
  next.join();
  EXPECT_TRUE(appended);
  ++number;
  const auto later = lines_after_a_crash();
  ASSERT_EQ(later.size(), kGroups + 1) << "the second half and the first group of the next";
  EXPECT_EQ(later.front(), kGroups + 1);
  EXPECT_EQ(later.back(), number);
  for (int i = 0; i < 1000; ++i) ASSERT_TRUE(append(journal, ++number));
  EXPECT_EQ(lines_after_a_crash().back(), number);
  made->reset();
  std::filesystem::remove(path);
}

TEST(JournalHalf, fails_when_the_pool_can_not_be_written_back) {
  const std::string path =
      (std::filesystem::temp_directory_path() / ("journal_fails." + std::to_string(getpid()))).string();
  auto made = detail::Journal::create(path, 77, 8 * detail::kJournalBlock, 1 << 20, [] { return false; });
  ASSERT_TRUE(made) << made.error().message;
  bool fine = true;
  for (std::uint64_t number = 1; number <= 17 && fine; ++number) fine = append(**made, number);
  EXPECT_FALSE(fine);
  made->reset();
  std::filesystem::remove(path);
  EXPECT_FALSE(detail::Journal::create("/no/such/place/j", 1, 1 << 20, 1 << 20, [] { return true; }));
}

}  // namespace
}  // namespace dunnock
