// The worked examples in docs/on_media_format.md, word for word: what this code writes, and for a catalog line what it
// computes.
#include <fcntl.h>
#include <fmt/core.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "dunnock/filter/cuckoo_filter.hpp"
#include "dunnock/index/checkpoint_format.hpp"
#include "dunnock/index/kv_store.hpp"
#include "dunnock/index/log_format.hpp"
#include "dunnock/index/prefix_store.hpp"
#include "dunnock/pmem/pool.hpp"
#include "journal.hpp"

namespace dunnock {
namespace {

class FormatExamples : public ::testing::Test {
 protected:
  void SetUp() override {
    auto made = Pool::create(path_, {.bytes = 32 << 20});
    ASSERT_TRUE(made) << made.error().message;
    pool_.emplace(std::move(*made));
  }
  void TearDown() override {
    pool_.reset();
    std::filesystem::remove(path_);
  }

  [[nodiscard]] Region region(const std::string& name) const {
    auto opened = pool_->open_region(name);
    if (!opened) ADD_FAILURE() << opened.error().message;
    return opened ? *opened : Region();
  }
  static std::uint64_t word(const Region& region, std::uint64_t offset) {
    std::uint64_t value = 0;
    std::memcpy(&value, region.at(offset), sizeof value);
    return value;
  }
  void line(const std::string& text) { text_ += "    " + text + "\n"; }
  /// The document has the lines so far, in a row.
  void expect_in_document() const {
    std::ifstream file(DUNNOCK_SOURCE_DIR "/docs/on_media_format.md");
    const std::string document{std::istreambuf_iterator<char>(file), {}};
    EXPECT_NE(document.find("\n\n" + text_ + "\n"), std::string::npos) << "it should have\n\n" << text_;
  }

  std::string path_ =
      (std::filesystem::temp_directory_path() / ("format_examples_test." + std::to_string(getpid()))).string();
  std::optional<Pool> pool_;
  std::string text_;
};

TEST_F(FormatExamples, of_the_filter) {
  auto filter = CuckooFilter<12, ProcessMedia>::create(*pool_, "f", {.slots = 80, .seed = HashSeed::from(1)}, {});
  ASSERT_TRUE(filter) << filter.error().message;
  for (std::uint64_t key = 1; key <= 56; ++key) EXPECT_TRUE(filter->insert(key));
  using L = Layout<12>;
  const Region table = region("f.table");
  for (std::uint64_t at = 0; at < kLineBytes; at += 8) {  // The first group.
    const std::uint64_t value = word(table, at);
    std::string lanes;
    for (unsigned i = L::kLanes; i-- > 0;) lanes += fmt::format(" {:03x}", L::lane(value, i));
    line(fmt::format("f.table + {:#05x}   {:016x}   level {}, count {}, lanes 4 to 0:{}", at, value, L::level(value),
                     L::foreign_count(value), lanes));
  }
  expect_in_document();
}

TEST_F(FormatExamples, of_the_index_and_the_log) {
  auto store = KvStore<ProcessMedia>::create(*pool_, "s",
                                             {.index = {.entries = 100, .segment_groups = 2, .seed = HashSeed::from(1)},
                                              .log = {.capacity_bytes = 4096, .segment_bytes = 1024}},
                                             {});
  ASSERT_TRUE(store) << store.error().message;
  const std::string_view text = "a value of 23 bytes ...";
  ASSERT_EQ(store->put({5, 6}, std::as_bytes(std::span(text))), PutResult::kInserted);

  const Region meta = region("s.meta");
  for (std::uint64_t at = kIndexDirectoryOffset; at < meta.bytes(); at += 8) {
    if (const std::uint64_t value = word(meta, at); value != 0)
      line(fmt::format("s.meta + {:#07x}      {:016x}   segment {}: slot {}", at, value,
                       (at - kIndexDirectoryOffset) / 8, (value & 0xffffffff) - 1));
  }
  const Region slots = region("s.s0");
  constexpr std::uint64_t kLanesOfSegment = 2 * std::uint64_t{kIndexGroupWords} * 8;
  const std::uint64_t segment_bytes = 2 * (kLineBytes + kIndexGroupLanes * kLineBytes);
  for (std::uint64_t at = 0; at < slots.bytes(); at += 8) {
    const std::uint64_t value = word(slots, at);
    if (value == 0) continue;
    if (at % segment_bytes < kLanesOfSegment) {
      line(fmt::format("s.s0 + {:#07x}        {:016x}   lane {} of word {} of group {}", at, value,
                       Layout<12>::lane_of(value & (0 - value)), at % kLineBytes / 8, at % segment_bytes / kLineBytes));
      continue;
    }
    using detail::Control;
    constexpr std::array kWhat = {"", "key", "", "position of the value: epoch 1, offset 0", "its length and checksum"};
    const std::uint64_t part = at % kLineBytes / 8;
    ASSERT_LT(part, kWhat.size());
    line(fmt::format("s.s0 + {:#07x}        {:016x}   {}", at, value,
                     part != 0 ? kWhat[part]
                               : fmt::format("checksum, sequence {}, tag {}, value {}, live {}", value >> 7 & 0x1ffffff,
                                             Control::tag(value), Control::slot(value), Control::live(value) ? 1 : 0)));
  }
  const Region log_meta = region("s.logmeta");
  for (std::uint64_t at = kLogTableOffset; at < log_meta.bytes(); at += 8) {
    const std::uint64_t value = word(log_meta, at);
    if ((value & 1) != 0)
      line(fmt::format("s.logmeta + {:#07x}   {:016x}   segment {}: epoch {}, in use", at, value,
                       (at - kLogTableOffset) / 8, value >> 48));
  }
  const Region log = region("s.log");
  constexpr std::array kOfRecord = {"key", "", "length 23 and checksum of the payload", "mark", "the payload", "", ""};
  for (std::uint64_t at = 0; at < 56; at += 8)
    line(fmt::format("s.log + {:#07x}       {:016x}   {}", at, word(log, at), kOfRecord[at / 8]));
  while (text_.find(" \n") != std::string::npos) text_.erase(text_.find(" \n"), 1);
  expect_in_document();
}

TEST_F(FormatExamples, of_a_catalog_line) {
  const CatalogPlace place{.id = catalog_name_hash("c"), .line = 0};
  const CatalogFields fields{.manifest_id = 0x1234,
                             .manifest_bytes = 304,
                             .name_hash = catalog_name_hash("run"),
                             .version = 7,
                             .created_seconds = 1767225600,
                             .tensor_bytes = 4096};
  line(fmt::format("c.catalog + 0x1000   {:016x}   state: the checkpoint exists", catalog_mark(fields, place)));
  line(fmt::format("c.catalog + 0x1008   {:016x}   manifest id", fields.manifest_id));
  line(fmt::format("c.catalog + 0x1010   {:016x}   manifest bytes", fields.manifest_bytes));
  line(fmt::format("c.catalog + 0x1018   {:016x}   hash of the name \"run\"", fields.name_hash));
  line(fmt::format("c.catalog + 0x1020   {:016x}   version", fields.version));
  line(fmt::format("c.catalog + 0x1028   {:016x}   2026-01-01 00:00 UTC, in seconds", fields.created_seconds));
  line(fmt::format("c.catalog + 0x1030   {:016x}   bytes of all tensors", fields.tensor_bytes));
  line(fmt::format("c.catalog + 0x1038   {:016x}", 0));
  line(fmt::format("c.catalog + 0x1040   {:016x}   state of the next line: it is free",
                   catalog_free({.id = place.id, .line = 1})));
  expect_in_document();
}

TEST_F(FormatExamples, of_two_prefix_blocks) {
  auto store = PrefixStore<ProcessMedia>::create(
      *pool_, "p", {.capacity_bytes = 65536, .segment_bytes = 4096, .blocks_max = 16, .seed = HashSeed::from(1)}, {});
  ASSERT_TRUE(store) << store.error().message;
  const IndexKey root = store->root({.model_digest = {7, 8}, .dtype = "bf16", .layout = "tokens, heads", .tenant = ""});
  const std::array<std::uint32_t, 4> tokens = {10, 11, 12, 13};
  const auto keys = PrefixStore<ProcessMedia>::keys_of(root, tokens, 2);
  constexpr std::array<std::string_view, 2> kBytes = {"block 10", "block 12"};
  for (std::size_t block = 0; block < keys.size(); ++block)
    ASSERT_EQ(store->put(keys, block, std::as_bytes(std::span(kBytes[block]))), PutBlock::kStored);

  const Region log = region("p.log");
  constexpr std::array kWhat = {"key of the block",
                                "",
                                "length 40 and checksum of the payload",
                                "mark",
                                "the payload: key of the block before",
                                "",
                                "depth",
                                "age",
                                "the bytes of the block"};
  for (std::uint64_t block = 0; block < keys.size(); ++block) {
    const std::uint64_t begin = block * ValueLog<ProcessMedia>::record_bytes(40);
    for (std::uint64_t at = 0; at < 72; at += 8)
      line(fmt::format("p.log + {:#07x}   {:016x}   {}", begin + at, word(log, begin + at), kWhat[at / 8]));
  }
  while (text_.find(" \n") != std::string::npos) text_.erase(text_.find(" \n"), 1);
  expect_in_document();
}

TEST_F(FormatExamples, of_a_group_of_the_journal) {
  const std::string path = path_ + ".journal";
  UniqueFd file(::open(path.c_str(), O_CREAT | O_TRUNC | O_RDWR | O_CLOEXEC, 0600));
  const detail::JournalExtent extent{detail::kJournalBlock, detail::kJournalBytesMin};
  ASSERT_EQ(::ftruncate(file.get(), static_cast<off_t>(extent.offset + extent.bytes)), 0);
  detail::Journal::Options options;
  options.file = UniqueFd(::open(path.c_str(), O_RDWR | O_CLOEXEC | O_DSYNC));
  options.extent = extent;
  options.id = 0x77;
  options.pool_bytes = 1 << 20;
  options.write_back = [] { return 0; };
  auto journal = detail::Journal::create(std::move(options));
  ASSERT_TRUE(journal) << journal.error().message;
  const std::array<std::uint64_t, 1> offsets = {0x2040};
  const std::array<detail::JournalRevoke, 1> revokes = {{{0x8000, 0x1000}}};
  ASSERT_EQ((*journal)->append(offsets, revokes,
                               [](std::uint64_t, std::uint64_t* words) {
                                 for (std::uint64_t i = 0; i < kLineBytes / 8; ++i) words[i] = 0x100 + i;
                               }),
            0);
  constexpr std::array kWhat = {"id",
                                "number of the group",
                                "lines",
                                "revokes",
                                "checksum",
                                "oldest group that is needed",
                                "",
                                "",
                                "revoke: offset",
                                "bytes",
                                "line: offset in the pool",
                                "its eight words"};
  std::array<std::uint64_t, 19> words{};
  ASSERT_EQ(::pread(file.get(), words.data(), sizeof words, 2 * detail::kJournalBlock), ssize_t{sizeof words});
  for (std::size_t i = 0; i < words.size(); ++i) {
    const std::string_view what = i < kWhat.size() ? kWhat[i] : "";
    line(fmt::format("half A + {:#05x}   {:016x}{}{}", 8 * i, words[i], what.empty() ? "" : "   ", what));
  }
  journal->reset();
  file.reset();
  std::filesystem::remove(path);
  expect_in_document();
}

}  // namespace
}  // namespace dunnock
