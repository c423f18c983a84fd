// The journal of FileMedia: whatever pages the kernel has written when the power fails, every fenced line is there.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <mutex>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "dunnock/pmem/pool.hpp"
#include "journal.hpp"
#include "line_copy.hpp"
#include "support/refused_threads.hpp"
#include "support/seed.hpp"

namespace {
std::atomic<std::uint64_t> msyncs{0}, fdatasyncs{0};
}  // namespace

// Before those of the C library: what reaches the disk by itself is counted.
extern "C" int msync(void* address, std::size_t bytes, int flags) {
  ++msyncs;
  return static_cast<int>(syscall(SYS_msync, address, bytes, flags));
}
std::function<void()> before_fdatasync;
extern "C" int fdatasync(int file) {
  ++fdatasyncs;
  if (before_fdatasync) before_fdatasync();
  return static_cast<int>(syscall(SYS_fdatasync, file));
}

namespace dunnock {
namespace {

#if defined(__SANITIZE_THREAD__)
constexpr bool kThreadSanitizer = true;  // It makes these tests thirty times as slow.
#else
constexpr bool kThreadSanitizer = false;
#endif

constexpr std::uint64_t kPages = 64;
constexpr std::uint64_t kRegionBytes = kPages * 4096;
constexpr std::uint64_t kLines = kRegionBytes / kLineBytes;
constexpr std::uint64_t kWords = kLineBytes / 8;
/// Halves of 31 blocks. A group of up to 55 lines takes one.
constexpr std::uint64_t kJournalBytes = 256 << 10;

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
    // When the pages are written back, what they held before is not on the disk any more.
    before_fdatasync = [this] {
      const std::lock_guard lock(mutex_);
      before_ = {contents()};
    };
  }
  void TearDown() override {
    before_fdatasync = nullptr;
    pool_.reset();
    close(to_opener_);
    close(from_opener_);
    waitpid(opener_, nullptr, 0);
    for (const std::string& path : {path_, image_}) (void)Pool::remove(path);
  }
  [[nodiscard]] Word& word(std::uint64_t line, std::uint64_t at) const {
    return *reinterpret_cast<Word*>(region_.at(line * kLineBytes + at * 8));
  }
  /// Copies the region as the kernel reads its pages: at any time, beside threads that store.
  [[nodiscard, gnu::no_sanitize("thread")]] std::string contents() const {
    std::string copy(kRegionBytes, '\0');
    const auto* from = reinterpret_cast<const volatile std::uint64_t*>(region_.at(0));
    auto* to = reinterpret_cast<std::uint64_t*>(copy.data());
    for (std::uint64_t i = 0; i < kRegionBytes / 8; ++i) to[i] = from[i];
    return copy;
  }
  /// Where the journal lies in a pool's bytes: its head has the magic word, at the start of a page.
  static std::size_t journal_in(const std::string& pool) {
    std::size_t at = 0;
    while (at < pool.size() && std::memcmp(pool.data() + at, &detail::kJournalMagic, 8) != 0) at += 4096;
    EXPECT_LT(at, pool.size());
    return at;
  }
  /// From now on the disk may hold the region as it is now, until its pages are written back.
  void note_contents() {
    const std::lock_guard lock(mutex_);
    before_.push_back(contents());
  }
  /// What a disk may hold when the power fails: of each page of the region what it was at some moment since the pages
  /// were written back, or what it is now. `written`: pages that must be as they are now.
  void make_image(std::mt19937_64& random, const std::vector<bool>& written = {}) {
    const std::lock_guard lock(mutex_);
    const std::string before = before_.empty() ? contents() : before_[random() % before_.size()];
    std::string pool = read_file(path_);
    const std::string now = contents();
    const std::size_t at = offset_in(pool, now);
    for (std::uint64_t page = 0; page < kPages; ++page) {
      const bool old = (written.empty() || !written[page]) && random() % 2 == 0;
      pool.replace(at + page * 4096, 4096, (old ? before : now).substr(page * 4096, 4096));
    }
    std::ofstream(image_, std::ios::binary) << pool;
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
    return opened.region;
  }
  /// Where they differ, instead of what they are.
  static ::testing::AssertionResult same(const std::string& a, const std::string& b) {
    if (a.size() != b.size()) return ::testing::AssertionFailure() << a.size() << " bytes, expected " << b.size();
    const auto at = std::mismatch(a.begin(), a.end(), b.begin()).first - a.begin();
    if (static_cast<std::size_t>(at) == a.size()) return ::testing::AssertionSuccess();
    return ::testing::AssertionFailure() << "differs at " << at;
  }
  /// Stores, fences and recovers images of what a disk may hold then.
  void expect_every_fenced_line(std::mt19937_64& random);
  static std::uint64_t word_in(const std::string& bytes, std::uint64_t line, std::uint64_t at) {
    std::uint64_t value = 0;
    std::memcpy(&value, bytes.data() + line * kLineBytes + at * 8, 8);
    return value;
  }

  std::string path_ = (std::filesystem::temp_directory_path() / ("journal_test." + std::to_string(getpid()))).string();
  std::string image_ = path_ + ".image";
  pid_t opener_ = -1;
  int to_opener_ = -1, from_opener_ = -1;
  std::mutex mutex_;
  std::vector<std::string> before_;  // the region at moments since its pages were written back
  std::optional<Pool> pool_;
  Region region_;
  std::optional<FileMedia> media_;
};

void Journal::expect_every_fenced_line(std::mt19937_64& random) {
  // Line 0 is never stored to, and marks the region. The words of a line are stored in order.
  media_->store(Point{1}, word(0, 1), random() | 1);
  media_->flush(Point{1}, &word(0, 1));
  media_->fence(Point{1});
  std::vector<std::uint64_t> stored(kLines), fenced(kLines);
  std::uint64_t version = 0;
  for (int image = 0; image < (kThreadSanitizer ? 8 : 25); ++image) {
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
      note_contents();
    }
    make_image(random);
    const std::string pool_before = read_file(image_);
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
      const std::size_t at = offset_in(read_file(image_), bytes);
      std::string pool = pool_before;
      for (std::uint64_t page = 1; page < kPages; ++page) {
        if (random() % 2 == 0) pool.replace(at + page * 4096, 4096, bytes.substr(page * 4096, 4096));
      }
      std::ofstream(image_, std::ios::binary) << pool;
    }
  }
}

TEST_F(Journal, holds_every_fenced_line_whatever_the_kernel_has_written) {
  std::mt19937_64 random = test::generator(1);
  expect_every_fenced_line(random);
}

/// Its journal found no thread to be had when it was begun.
class JournalWithoutThread : public Journal {
 protected:
  void SetUp() override {
    const int refused = test::threads_refused;
    const test::ThreadsLeft none(0);
    Journal::SetUp();
    ASSERT_EQ(test::threads_refused, refused + 1);
  }
};

TEST_F(JournalWithoutThread, writes_halves_back_at_a_fence) {
  std::mt19937_64 random = test::generator(11);
  const std::uint64_t before = fdatasyncs;
  expect_every_fenced_line(random);
  EXPECT_GT(fdatasyncs, before) << "halves have been written back";
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
    note_contents();
    std::vector<std::thread> threads;
    for (unsigned t = 0; t < kThreads; ++t) {
      const std::uint64_t seed = random();
      threads.emplace_back([&, t, seed] {
        std::mt19937_64 mine(seed);
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
    make_image(random);
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
    {
      // What was written past the journal in the rounds before is on the disk.
      const std::lock_guard lock(mutex_);
      before_ = {contents()};
    }
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
    make_image(random, written);
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
  make_image(random);
  EXPECT_TRUE(same(recovered(), expected));
}

TEST_F(Journal, is_not_needed_by_a_pool_that_was_closed) {
  media_->store(Point{1}, word(5, 5), 5);
  before_fdatasync = nullptr;
  const std::uint64_t syncs = fdatasyncs;
  EXPECT_TRUE(pool_->close());
  EXPECT_EQ(fdatasyncs, syncs + 4) << "the pages; that no journal is needed; what libpmemobj wrote last; the seal";
  pool_.reset();
  std::string pool_bytes = read_file(path_);
  std::memset(pool_bytes.data() + journal_in(pool_bytes), 0x77, kJournalBytes);
  std::ofstream(path_, std::ios::binary) << pool_bytes;
  auto pool = Pool::open(path_, {.journal_bytes = 0});
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

TEST_F(Journal, takes_the_room_of_the_one_before) {
  const std::size_t at = journal_in(read_file(path_));
  std::uint64_t room = 0;
  before_fdatasync = nullptr;
  for (int i = 0; i < 5; ++i) {
    pool_.reset();
    // The size that is wished for decides; the same size, or none in particular, is the same extent.
    pool_.emplace(std::move(*Pool::open(path_, {.journal_bytes = i % 2 == 0 ? kJournalBytes : kJournalBytesAuto})));
    region_ = *pool_->open_region("r");
    const FileMedia media = pool_->file_media();
    for (std::uint64_t k = 0; k < 40; ++k) {
      media.store(Point{1}, word(k, 1), k);
      media.flush(Point{1}, &word(k, 1));
      media.fence(Point{1});
    }
    ASSERT_TRUE(media.has_journal());
    EXPECT_EQ(journal_in(read_file(path_)), at);
    std::uint64_t free = 0;
    while (pool_->create_regions(std::array{RegionSpec{std::string(1, static_cast<char>('A' + free)), 1 << 20}}))
      ++free;
    if (i == 0) room = free;
    EXPECT_EQ(free, room) << "nothing leaks";
    for (std::uint64_t k = 0; k < free; ++k)
      ASSERT_TRUE(pool_->remove_region(std::string(1, static_cast<char>('A' + k))));
  }
}

TEST_F(Journal, is_done_without_where_there_is_no_room) {
  before_fdatasync = nullptr;
  pool_.reset();
  ASSERT_TRUE(Pool::remove(path_));
  pool_.emplace(std::move(*Pool::create(path_, {16 << 20})));
  for (std::uint64_t bytes = 8 << 20; bytes >= 4096; bytes /= 2) {
    while (pool_->create_regions(
        std::array{RegionSpec{std::to_string(bytes) + "." + std::to_string(pool_->regions().size()), bytes}})) {
    }
  }
  region_ = *pool_->open_region(pool_->regions().front().name);
  const FileMedia media = pool_->file_media();
  for (std::uint64_t i = 0; i < 100; ++i) {
    media.store(Point{1}, word(i, 1), i);
    media.flush(Point{1}, &word(i, 1));
    media.fence(Point{1});
  }
  EXPECT_TRUE(media.ok());
  EXPECT_FALSE(media.has_journal());
  pool_.reset();
  EXPECT_TRUE(Pool::open(path_));
}

TEST_F(Journal, that_is_damaged_is_an_error_and_nothing_is_changed) {
  std::mt19937_64 random = test::generator(5);
  for (std::uint64_t i = 0; i < 20; ++i) {
    media_->store(Point{1}, word(i, 1), random());
    media_->flush(Point{1}, &word(i, 1));
    media_->fence(Point{1});
  }
  const std::string pool = read_file(path_);
  const std::size_t at = journal_in(pool);
  const auto with = [&](const std::string& other) {
    std::ofstream(image_, std::ios::binary) << other;
    const Opened opened = open_image();
    if (opened.code != -1) {
      EXPECT_EQ(opened.code, static_cast<int>(ErrorCode::kCorrupt)) << opened.message;
      EXPECT_TRUE(same(read_file(image_), other)) << "nothing was changed";
    }
    return opened.code == -1;
  };
  EXPECT_TRUE(with(pool));
  std::string other = pool;
  other.replace(at, kJournalBytes, kJournalBytes, '\0');
  EXPECT_FALSE(with(other));
  other = pool;
  other[at + 8] = static_cast<char>(other[at + 8] ^ 1);
  EXPECT_FALSE(with(other)) << "another opening's";
  // A group in the middle.
  other = pool;
  other[at + 4096 + 4096 + 100] = static_cast<char>(other[at + 4096 + 4096 + 100] ^ 1);
  EXPECT_FALSE(with(other)) << "what was fenced after it can't be brought back";
  // Anywhere: an error, or all that was fenced before it. Nothing else.
  for (int i = 0; i < 20; ++i) {
    other = pool;
    const std::size_t where = at + random() % (4096 + 25 * 4096);
    other[where] = static_cast<char>(other[where] ^ (1 << random() % 8));
    (void)with(other);
  }
}

// A thread stores the words of a line in order, each with the number of the round; some of it happens while the line is
// being read. A copy that has a younger word has all older ones.
TEST(Line, is_copied_as_it_was_at_one_moment) {
  std::mt19937_64 random = test::generator(8);
  alignas(kLineBytes) std::array<std::uint64_t, kWords> line{};
  std::array<std::uint64_t, kWords> copy{};
  unsigned torn = 0;
  for (const unsigned readings : {2U, 1U}) {
    std::uint64_t stored = 0;  // words, in all rounds
    for (int i = 0; i < 2000; ++i) {
      unsigned stores_left = static_cast<unsigned>(random() % 12);  // Faster than the reading, now and then.
      detail::copy_line(
          reinterpret_cast<const std::byte*>(line.data()), copy.data(),
          [&] {
            for (std::uint64_t stores = random() % 4; stores != 0 && stores_left != 0;
                 --stores, --stores_left, ++stored)
              line[stored % kWords] = stored / kWords + 1;
          },
          readings);
      // In order: the words of a round, and then those of the round before.
      bool in_order = true;
      for (std::size_t at = 1; at < kWords; ++at) in_order = in_order && copy[at] <= copy[at - 1];
      in_order = in_order && copy[0] - copy[kWords - 1] <= 1;
      if (readings == 2) {
        ASSERT_TRUE(in_order);
      } else {
        torn += in_order ? 0 : 1;
      }
    }
  }
  EXPECT_GT(torn, 0u) << "one reading would not do";
}

/// A file with an extent for a journal of the given size, and what a crash leaves of it.
class JournalFile : public ::testing::Test {
 protected:
  static constexpr std::uint64_t kOffset = 3 * detail::kJournalBlock, kId = 77, kPoolBytes = 1 << 20;

  void make(std::uint64_t half_blocks, std::function<int()> write_back, bool in_background = true) {
    extent_ = {kOffset, std::max(detail::kJournalBlock * (1 + 2 * half_blocks), detail::kJournalBytesMin)};
    file_ = UniqueFd(open(path_.c_str(), O_CREAT | O_TRUNC | O_RDWR | O_CLOEXEC, 0600));
    ASSERT_EQ(ftruncate(file_.get(), static_cast<off_t>(kOffset + extent_.bytes)), 0);
    detail::Journal::Options options;
    options.file = UniqueFd(open(path_.c_str(), O_RDWR | O_CLOEXEC | O_DSYNC));
    options.extent = extent_;
    options.id = kId;
    options.pool_bytes = kPoolBytes;
    options.write_back = std::move(write_back);
    options.in_background = in_background;
    auto made = detail::Journal::create(std::move(options));
    ASSERT_TRUE(made) << made.error().message;
    journal_ = std::move(*made);
  }
  void TearDown() override {
    journal_.reset();
    unlink(path_.c_str());
  }
  /// Appends a group of this many lines that hold its number. Returns 0, or an errno.
  int append(std::uint64_t lines = 1) {
    ++number_;
    std::vector<std::uint64_t> offsets;
    for (std::uint64_t i = 0; i < lines; ++i) offsets.push_back((number_ % 100 + i) * kLineBytes);
    const int error = journal_->append(offsets, {}, [this](std::uint64_t, std::uint64_t* words) {
      for (std::uint64_t at = 0; at < kWords; ++at) words[at] = number_;
    });
    if (error != 0) --number_;
    return error;
  }
  [[nodiscard]] std::string bytes() const { return read_file(path_).substr(kOffset); }
  /// The numbers that a replay of these bytes brings back, ascending; nothing and an error.
  static std::vector<std::uint64_t> replayed(const std::string& bytes, Status& status) {
    std::vector<std::uint64_t> numbers;
    status = detail::replay_journal(std::as_bytes(std::span(bytes)), kId, kPoolBytes, {},
                                    [&](std::uint64_t, const std::uint64_t* words) { numbers.push_back(*words); });
    std::sort(numbers.begin(), numbers.end());
    return numbers;
  }
  [[nodiscard]] std::vector<std::uint64_t> replayed() const {
    Status status;
    const auto numbers = replayed(bytes(), status);
    EXPECT_TRUE(status) << status.error().message;
    return numbers;
  }

  std::string path_ = (std::filesystem::temp_directory_path() / ("journal_file." + std::to_string(getpid()))).string();
  UniqueFd file_;
  detail::JournalExtent extent_;
  /// What a write-back shares with its test. The journal's thread uses it until the journal is gone.
  std::mutex mutex_;
  std::condition_variable changed_;
  unsigned begun_ = 0, allowed_ = 0;
  std::unique_ptr<detail::Journal> journal_;
  std::uint64_t number_ = 0;  // of the youngest group that was asked for
};

TEST_F(JournalFile, begins_a_half_anew_only_when_the_pool_was_written_back) {
  constexpr std::uint64_t kGroups = 8;  // in a half; the ninth block is kept for a word about the other half
  make(kGroups + 1, [this] {
    std::unique_lock lock(mutex_);
    ++begun_;
    changed_.notify_all();
    return changed_.wait_for(lock, std::chrono::seconds(30), [&] { return allowed_ >= begun_; }) ? 0 : EIO;
  });
  while (number_ < 2 * kGroups) ASSERT_EQ(append(), 0);  // Both halves.
  {
    std::unique_lock lock(mutex_);
    ASSERT_TRUE(changed_.wait_for(lock, std::chrono::seconds(30), [&] { return begun_ == 1; }));
  }
  // The first half is being written back. What comes next has to wait for that.
  std::atomic<bool> appended = false;
  std::thread next([&] {
    EXPECT_EQ(append(), 0);
    appended = true;
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_FALSE(appended);
  const auto all = replayed();
  ASSERT_EQ(all.size(), 2 * kGroups);
  EXPECT_EQ(all.front(), 1u);
  {
    const std::lock_guard lock(mutex_);
    allowed_ = 1;  // The second half stays as it is.
    changed_.notify_all();
  }
  next.join();
  EXPECT_TRUE(appended);
  const auto later = replayed();
  ASSERT_EQ(later.size(), kGroups + 1) << "the second half and the first group of the next";
  EXPECT_EQ(later.front(), kGroups + 1);
  EXPECT_EQ(later.back(), number_);
  {
    const std::lock_guard lock(mutex_);
    allowed_ = 1000;
    changed_.notify_all();
  }
  for (int i = 0; i < 1000; ++i) ASSERT_EQ(append(), 0);
  EXPECT_EQ(replayed().back(), number_);
}

TEST_F(JournalFile, fails_when_the_pool_can_not_be_written_back_and_keeps_what_is_needed) {
  for (const bool in_background : {true, false}) {
    number_ = 0;
    make(
        9, [] { return ENOSPC; }, in_background);
    int error = 0;
    for (int i = 0; i < 17 && error == 0; ++i) error = append();
    EXPECT_EQ(error, ENOSPC);
    EXPECT_EQ(append(), ENOSPC) << "and stays so";
    EXPECT_EQ(journal_->write_back_error(), ENOSPC);
    const auto all = replayed();
    ASSERT_EQ(all.size(), number_);
    EXPECT_EQ(all.front(), 1u);
  }
}

/// Calls `torn` with what a power failure may leave of each durable write, in the middle of it.
class TearingFiles : public FileSystem {
 public:
  explicit TearingFiles(std::function<void(const std::function<std::string()>& part)> torn) : torn_(std::move(torn)) {
    set_file_system(this);
  }
  ~TearingFiles() override { set_file_system(nullptr); }
  bool pwrite_durably(int fd, const void* from, std::size_t bytes, std::uint64_t offset) noexcept override {
    std::string before(bytes, '\0');
    EXPECT_EQ(pread(fd, before.data(), bytes, static_cast<off_t>(offset)), static_cast<ssize_t>(bytes));
    const auto* now = static_cast<const char*>(from);
    torn_([&] {
      std::string part = before;
      for (std::size_t at = 0; at < bytes; at += 512) {
        if (random_() % 2 == 0) part.replace(at, 512, now + at, 512);
      }
      return std::string(reinterpret_cast<const char*>(&offset), sizeof offset) + part;
    });
    return FileSystem::pwrite_durably(fd, from, bytes, offset);
  }

 private:
  std::function<void(const std::function<std::string()>& part)> torn_;
  std::mt19937_64 random_ = test::generator(7);
};

// A write of several blocks that has not returned may be there in any part. The half that it begins anew was written
// back, so nothing of what it held is needed.
TEST_F(JournalFile, replays_whatever_part_of_the_youngest_write_is_there) {
  std::mt19937_64 random = test::generator(6);
  unsigned images = 0, begun_anew = 0;
  for (int round = 0; round < (kThreadSanitizer ? 10 : 40); ++round) {
    number_ = 0;
    journal_.reset();
    std::uint64_t acknowledged = 0;
    make(
        16, [] { return 0; }, random() % 2 == 0);
    const TearingFiles files([&](const std::function<std::string()>& part) {
      const std::string sound = bytes();
      for (int image = 0; image < 6; ++image, ++images) {
        const std::string torn = part();
        std::uint64_t offset = 0;
        std::memcpy(&offset, torn.data(), sizeof offset);
        std::string all = sound;
        all.replace(offset - kOffset, torn.size() - sizeof offset, torn, sizeof offset);
        begun_anew += offset - kOffset == detail::kJournalBlock && acknowledged > 0 ? 1 : 0;
        Status status;
        const auto numbers = replayed(all, status);
        ASSERT_TRUE(status) << status.error().message << " in round " << round << ", group " << number_;
        const std::uint64_t newest = numbers.empty() ? 0 : numbers.back();
        // A group without lines that says something about the other half brings none back.
        ASSERT_GE(newest, acknowledged);
        ASSERT_LE(newest, acknowledged + 1);
      }
    });
    for (std::uint64_t left = 40 + random() % 60; left != 0; --left) {
      ASSERT_EQ(append(1 + random() % 3 * 60), 0);
      acknowledged = number_;
    }
  }
  EXPECT_GT(begun_anew, 100u);
  RecordProperty("images", std::to_string(images));
}

TEST_F(JournalFile, refuses_a_half_that_is_needed_and_damaged) {
  make(
      9, [] { return 0; }, false);  // The first half is written back when it is to be begun anew: not yet.
  for (int i = 0; i < 12; ++i) ASSERT_EQ(append(), 0);
  const std::string sound = bytes();
  for (std::size_t block = 0; block < 8; ++block) {
    std::string damaged = sound;
    damaged[detail::kJournalBlock * (1 + block) + 90] ^= 1;
    Status status;
    EXPECT_TRUE(replayed(damaged, status).empty());
    ASSERT_FALSE(status) << "group " << block + 1;
    EXPECT_EQ(status.error().code, ErrorCode::kCorrupt);
  }
}

TEST_F(JournalFile, takes_no_group_that_does_not_fit) {
  make(7, [] { return 0; });
  EXPECT_TRUE(journal_->fits(100, 10));
  EXPECT_FALSE(journal_->fits(1000, 0));
  EXPECT_FALSE(journal_->fits(0, 1000));
  EXPECT_FALSE(journal_->fits(~std::size_t{0} / 72, 0)) << "no overflow";
}

}  // namespace
}  // namespace dunnock
